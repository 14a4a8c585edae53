"""How waiting threads are told to sleep: by the environment, before PyTorch is loaded."""

import os
import subprocess
import sys

import pytest

SEEN = """
import os, fastmim.system.threads as t
t.wait_briefly()
print({name: os.environ.get(name) for name in t.BRIEFLY})
"""
FIRST = """
import os, fastmim.cli.entry as cli
cli._dispatch = lambda _: print(os.environ["GOMP_SPINCOUNT"])
cli.main([])
"""


def printed(code, **variables):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP", "KMP"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment | variables
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ("PASSIVE", "1000")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None)),
        ({"GOMP_SPINCOUNT": "7"}, (None, "7")),
        ({"KMP_BLOCKTIME": "7"}, (None, None)),
    ],
)
def test_what_the_user_said_holds(variables, expected):
    assert printed(SEEN, **variables) == str(
        dict(zip(("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"), expected, strict=True))
    )


def test_once_pytorch_is_loaded_it_is_too_late():
    assert "1000" not in printed("import torch\n" + SEEN)


def test_the_command_line_says_it_first():
    assert printed(FIRST) == "1000"
