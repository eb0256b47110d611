"""The numpy reference computes what `transformers` computed: `python3 -m unittest` in this folder.

Together with the engine's own parity test this says that three independent programs agree.
"""

import pathlib
import unittest

import numpy as np
import reference

HERE = pathlib.Path(__file__).parent
BOUND = 1e-4


FIXTURES = ["untied", "tied", "llama3", "llama-linear", "mistral", "gemma3"]


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


if __name__ == "__main__":
    unittest.main()
