"""A local network for the Python tests, started with the real command line."""

import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def program():
    return os.environ.get("COCOON_BIN", str(ROOT / "target/release/cocoon"))


@pytest.fixture(scope="session")
def testnet(tmp_path_factory):
    """Starts `cocoon testnet up --detach` and yields what it printed; stops it at the end."""
    state = tmp_path_factory.mktemp("testnet")
    up = subprocess.run(
        [program(), "testnet", "up", "--workers", "1", "--detach", "--json", "--state", str(state)],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert up.returncode == 0, up.stderr
    yield json.loads(up.stdout)
    subprocess.run([program(), "testnet", "down", "--state", str(state)], check=True, timeout=60)
