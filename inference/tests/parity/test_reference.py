"""The numpy reference computes what `transformers` computed: `python3 -m unittest` in this folder.

Together with the engine's own parity test this says that three independent programs agree.
"""

import json
import pathlib
import unittest

import numpy as np
import reference
import reference_encoder

HERE = pathlib.Path(__file__).parent
BOUND = 1e-4


FIXTURES = ["untied", "tied", "llama3", "llama-linear", "mistral", "gemma3"]
ENCODERS = ["bert", "bert-masked"]


class Reference(unittest.TestCase):
    def test_logits(self):
        for name in FIXTURES:
            with self.subTest(name):
                expected = reference.read_safetensors(HERE / name / "expected.safetensors")
                found = reference.logits(HERE / name, expected["ids"])
                scale = np.abs(expected["logits"]).max(axis=1)
                worst = (np.abs(found - expected["logits"]).max(axis=1) / scale).max()
                print(f"{name}: worst {worst:.2e}")
                self.assertLessEqual(worst, BOUND)

    def test_greedy(self):
        """The best token after each prefix of the continuation is its next one."""
        for name in FIXTURES:
            with self.subTest(name):
                expected = reference.read_safetensors(HERE / name / "expected.safetensors")
                prompt, greedy = expected["greedy_prompt"], expected["greedy"]
                rows = reference.logits(HERE / name, [*prompt, *greedy[:-1]])[len(prompt) - 1 :]
                self.assertEqual(rows.argmax(axis=1).tolist(), greedy.tolist())

    def test_embeddings(self):
        for name in ENCODERS:
            with self.subTest(name):
                expected = reference.read_safetensors(HERE / name / "expected.safetensors")
                texts = json.loads((HERE / name / "expected_texts.json").read_text())
                rows = [reference_encoder.hidden(HERE / name, text["ids"]) for text in texts]
                for way, pool in reference_encoder.POOLING.items():
                    found = np.stack([pool(one) for one in rows])
                    scale = np.abs(expected[way]).max(axis=1)
                    worst = (np.abs(found - expected[way]).max(axis=1) / scale).max()
                    print(f"{name}, {way}: worst {worst:.2e}")
                    self.assertLessEqual(worst, BOUND)


if __name__ == "__main__":
    unittest.main()
