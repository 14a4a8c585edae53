"""Runs the tests on a simulated accelerator, which need a process of their own (see `simulated_device`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

from simulated_device import ON_DEVICE

FOLDER = Path(__file__).parent


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no backends in Python",
)
def test_everything_works_on_an_accelerator():
    files = sorted(FOLDER.rglob(f"*{ON_DEVICE}"))
    assert files
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)],
        cwd=FOLDER.parent,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
