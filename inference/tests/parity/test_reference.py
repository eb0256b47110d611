"""The numpy reference computes what `transformers` computed: `python3 -m unittest` in this folder.

Together with the engine's own parity test this says that three independent programs agree.
"""

import pathlib
import unittest

import numpy as np
import reference

HERE = pathlib.Path(__file__).parent
BOUND = 1e-4


class Reference(unittest.TestCase):
    def check(self, name):
        expected = reference.read_safetensors(HERE / name / "expected.safetensors")
        found = reference.logits(HERE / name, expected["ids"])
        scale = np.abs(expected["logits"]).max(axis=1)
        worst = (np.abs(found - expected["logits"]).max(axis=1) / scale).max()
        print(f"{name}: worst {worst:.2e}")
        self.assertLessEqual(worst, BOUND)

    def greedy(self, name):
        expected = reference.read_safetensors(HERE / name / "expected.safetensors")
        ids = list(expected["greedy_prompt"])
        for token in expected["greedy"]:
            self.assertEqual(int(reference.logits(HERE / name, ids)[-1].argmax()), int(token))
            ids.append(token)

    def test_untied(self):
        self.check("untied")

    def test_tied_bf16(self):
        self.check("tied")

    def test_greedy_untied(self):
        self.greedy("untied")

    def test_greedy_tied(self):
        self.greedy("tied")


if __name__ == "__main__":
    unittest.main()
