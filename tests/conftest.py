"""What all tests share: one thread a process, a small set of drawn birds, and the programs as a user starts them."""

import os

os.environ["OMP_NUM_THREADS"] = "1"        # before torch: tests run side by side, and bits depend on the thread count

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)


def start(program: str, *args: object, cwd: Path, **options) -> subprocess.Popen:
    """Starts a program of the project as a user would, with its output in pipes."""
    return subprocess.Popen([sys.executable, str(ROOT / program), *map(str, args)], cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def call(program: str, *args: object, cwd: Path, **options) -> subprocess.CompletedProcess:
    """Runs a program of the project to its end."""
    process = start(program, *args, cwd=cwd, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """A set of drawn birds with known copies: train/, test/, masks/, copies.json."""
    from nestling.data.birds import make_birds

    out = tmp_path_factory.mktemp("drawn") / "birds"
    make_birds(out, per_class=16, size=128, workers=1)
    return out
