"""What all tests share: one thread a process, drawn birds, and the programs as a user runs them."""

import os

os.environ["OMP_NUM_THREADS"] = "1"        # before torch: bits depend on the number of threads

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """A set of drawn birds with known copies: train/, test/, masks/, copies.json."""
    from nestling.data.birds import make_birds

    out = tmp_path_factory.mktemp("drawn") / "birds"
    make_birds(out, per_class=16, size=128, workers=1)
    return out


@pytest.fixture(scope="session")
def few(drawn, tmp_path_factory) -> Path:
    """Three classes of twelve drawn photos."""
    out = tmp_path_factory.mktemp("few") / "birds"
    for folder in sorted((drawn / "train").iterdir())[:3]:
        (out / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:12]:
            shutil.copy(path, out / folder.name)
    return out


@pytest.fixture(scope="session")
def bird_model(few, tmp_path_factory) -> Path:
    """A BirdNet trained for one epoch on `few`."""
    import bird

    path = tmp_path_factory.mktemp("model") / "bird.pth"
    bird.train(few, path, bird.Config(epochs=1, batch_size=8))
    return path


@pytest.fixture
def simulation(tmp_path, monkeypatch) -> SimpleNamespace:
    """`bird.train` without its arithmetic: a step takes `pace` seconds at 64 px, and losses are given."""
    import bird

    sim = SimpleNamespace(path=tmp_path / "bird.pth", now=0.0, pace=0.0, epoch=0, lr=[], losses=None)
    rows, pixels = torch.arange(10), torch.zeros(10, 3, 64, 64, dtype=torch.uint8)
    sim.data = bird.Data(pixels, rows % 2, rows[:8], rows[8:], ["a", "b"])
    sim.history = lambda: list(map(json.loads, (tmp_path / "bird.history.jsonl").read_text().splitlines()))

    def step(training, x, target, lr):
        sim.now += sim.pace * x.shape[-1] ** 2 / 64**2
        sim.lr.append(lr)
        return torch.tensor([1.0, 0.5])

    def evaluate(training, data, size):
        if sim.losses == []:
            raise KeyboardInterrupt
        sim.epoch += 1
        torch.nn.init.constant_(training.ema.module.head.bias, sim.epoch)      # marks the weights
        loss = sim.losses.pop(0) if sim.losses else 1 / sim.epoch
        return {"val_loss": loss, "val_accuracy": 0.5, "val_macro_f1": 0.5, "val_score": 0.5}

    def recalibrate(net, pixels):                                  # takes about an epoch
        sim.now += 4 * sim.pace * sim.history()[-1]["size"] ** 2 / 64**2

    def train(resume: bool = True, **settings) -> int:
        def main(argv: list[str]) -> None:
            bird.train(Path("photos"), sim.path, bird.Config(batch_size=2, **settings), resume)
        return bird.run(main, [])

    sim.train = train
    monkeypatch.setattr(bird.BirdNet, "STAGES", ((8, 1, 1),))
    monkeypatch.setattr(bird.Training, "step", step)
    monkeypatch.setattr(bird.Training, "evaluate", evaluate)
    monkeypatch.setattr(bird, "recalibrate", recalibrate)
    monkeypatch.setattr(bird, "time", SimpleNamespace(monotonic=lambda: sim.now))
    monkeypatch.setattr(bird, "load_data", lambda *_: sim.data)
    monkeypatch.setattr(bird, "augment", lambda pixels, size, *_: torch.zeros(len(pixels), 3, size, size))
    return sim
