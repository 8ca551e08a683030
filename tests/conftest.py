"""What all tests share: one thread a process, drawn birds, the programs as a user runs them, and a browser."""

import os

os.environ["OMP_NUM_THREADS"] = "1"        # before torch: bits depend on the number of threads

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """Debian's Chromium, without a window. Missing, it fails the tests in CI; elsewhere they are skipped."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium here: apt-get install chromium")
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def site(few, tmp_path_factory) -> SimpleNamespace:
    """Two networks of random weights, drawn photos, shipped digits, two histories, and the page of all that."""
    import bird
    import vae
    from nestling.data.digits import make_digits
    from nestling.page import build

    root = tmp_path_factory.mktemp("site")
    torch.manual_seed(0)
    net, coder = bird.BirdNet(3).eval(), vae.VAE().eval()
    with torch.no_grad():                                          # so that the classes differ
        logits = net(bird.resize(bird.decode(sorted(few.glob("*/*.jpg")), "")[0], 64) / 255)
        net.head.weight *= (scale := 1.5 / logits.std(dim=0).mean())
        net.head.bias.copy_(-scale * logits.mean(dim=0))
    net.extra |= {"size": 64, "classes": sorted(path.name for path in few.iterdir())}
    mixture = vae.GaussianMixture(
        torch.full((3,), 1 / 3).double(), torch.tensor([[-1.0, 0], [1, 0], [0, 1.5]]).double(),
        0.2 * torch.eye(2).double().expand(3, 2, 2).clone(), [1, 4, 8])
    bird.save(root / "bird.pth", net.state_dict())
    vae.save(root / "vae.pth", coder.state_dict())
    vae.save_mixture(root / "gmm_params.pkl", mixture, coder)
    shutil.copytree(few, root / "data" / "birds")
    make_digits(root / "data" / "digits")
    for program, rows in (("bird", bird_rows(3)), ("vae", vae_rows(2, 3))):
        write_history(root / f"{program}.history.jsonl", rows)
    paths = root / "bird.pth", root / "vae.pth", root / "gmm_params.pkl"
    blocks, footer = build.gather(*paths, root / "data")
    (root / "page.html").write_text(build.html(blocks, footer), "utf-8")
    return SimpleNamespace(root=root, paths=paths, data=root / "data", page=root / "page.html", blocks=blocks,
                           footer=footer, net=net, coder=coder, mixture=mixture,
                           photos=sorted((root / "data" / "birds").glob("*/*.jpg")))


def bird_rows(epochs: int, planned: int = 4) -> list[dict]:
    """A history such as bird.py's, a minute an epoch."""
    names = "train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_macro_f1", "val_score"
    return [{"epoch": e, "epochs": planned, "progress": e / planned, "seconds": 60.0 * e, "best": e < 3,
             **dict.fromkeys(names, 1 / e)} for e in range(1, epochs + 1)]


def vae_rows(clusters: int, latents: int, planned: int = 4) -> list[dict]:
    """A history such as vae.py's, a minute an epoch."""
    names = {"clusters": ("information",), "latents": ("loss", "recon", "kl", "ssim")}
    phases = ["clusters"] * clusters + ["latents"] * latents
    return [{"epoch": e, "phase": phase, "progress": (e - clusters * (phase == "latents")) / planned, "lr": 1e-3,
             **{f"{held}{name}": 1 / e for name in names[phase] for held in ("", "held_")}, "seconds": 60.0 * e}
            for e, phase in enumerate(phases, 1)]


def write_history(path: Path, rows: list[dict]) -> None:
    """One JSON line an epoch."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def visit(chromium, site) -> Iterator[Callable]:
    """visit(fragment or address, **options of the context) -> the opened page.

    At the end it has written nothing on the console and asked for nothing elsewhere.
    """
    seen: list[str] = []
    contexts = []

    def visit(where: str = "", **options):
        contexts.append(context := chromium.new_context(**options))
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        allowed = "file:", "data:", "blob:", "http://127.0.0.1:"
        page.on("request", lambda request: request.url.startswith(allowed) or seen.append(request.url))
        page.goto(where if "://" in where else site.page.as_uri() + where)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not seen
