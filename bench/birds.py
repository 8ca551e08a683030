"""Birds: speed and score against what a user would otherwise take.

    python -m bench.birds speed [--photos 512]               # on photos drawn here, 1200 x 800 pixels
    python -m bench.birds busy                               # training steps, alone and beside another busy program
    python -m bench.birds peers DATASET ASIDE --minutes 20   # on real photos; ASIDE is only scored, once a network
    python -m bench.birds uneven DATASET ASIDE --minutes 10  # a fifth of every second class, with and without weights
    python -m bench.birds copies --minutes 4                 # on a drawn set with known copies
    python -m bench.birds copies DATASET ASIDE --minutes 10  # on real photos, with copies made of some

Every comparison is a ratio within one run, the two sides in turn. The tables go into bench/RESULTS.md, the curves of
`peers` into docs/birds.png.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import bird  # before torch, as it settles how long torch's threads wait awake, on both sides

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from bench.table import publish, stamp
from nestling.data.birds import QUALITY, TURNS, make_birds, turned
from nestling.data.drawn import SPECIES, draw
from nestling.runs import history_of

CPU = torch.device("cpu")
SIZE = 128      # px, of the photos that the network sees in the comparisons of speed


# ---- the other side: what most people write


def loader(data: ImageFolder | Subset, train: bool, batch: int = 32) -> DataLoader:
    """The usual loader: two workers, each photo read and decoded from its file each time."""
    return DataLoader(data, batch_size=batch, shuffle=train, drop_last=train, num_workers=2)


def usual_views(size: int, train: bool) -> T.Compose:
    """The usual transforms: a random crop, a mirror image and colour for training, a plain resize for reading."""
    seen = [T.RandomResizedCrop(size, scale=(0.35, 1)), T.RandomHorizontalFlip(), T.ColorJitter(0.3, 0.3, 0.3)]
    return T.Compose([*(seen if train else [T.Resize((size, size))]), T.ToTensor(), T.Normalize([0.5] * 3, [0.25] * 3)])


class FiveBlocks(nn.Sequential):
    """Five blocks of convolution, ReLU and pooling, and two linear layers: the CNN of most tutorials, at 64 px."""

    def __init__(self, classes: int):
        widths = [3, 32, 64, 128, 256, 256]
        blocks: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*blocks, nn.Flatten(), nn.Linear(4 * 256, 256), nn.ReLU(), nn.Dropout(0.5),
                         nn.Linear(256, classes))


# ---- speed


def paint(task: tuple[Path, str, int]) -> None:
    """One drawn photo of 1200 x 800 pixels, as a JPEG."""
    folder, species, index = task
    picture, _ = draw(species, 0, index, 1200)
    folder.joinpath(species).mkdir(exist_ok=True)
    picture.crop((0, 200, 1200, 1000)).save(folder / species / f"{index:04d}.jpg", quality=90)


def paint_photos(folder: Path, count: int) -> None:
    """`count` photos of all species, in one folder a species."""
    names = list(SPECIES)
    with ProcessPoolExecutor() as pool:
        list(pool.map(paint, [(folder, names[i % len(names)], i // len(names)) for i in range(count)]))


def in_turn(sides: dict[str, Callable[[], object]], rounds: int = 3) -> dict[str, list[float]]:
    """Seconds of each side in each of `rounds` rounds; one goes after the other, so that a slow minute meets both."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def row(what: str, photos: int, ours: Callable[[], object], theirs: Callable[[], object]) -> str:
    """A row of the table: photos a second of both sides, which go through `photos` each, and the ratio."""
    seconds = in_turn({"ours": ours, "theirs": theirs})
    ratios = sorted(b / a for a, b in zip(*seconds.values(), strict=True))
    rates = " | ".join(f"{photos / statistics.median(side):.0f}" for side in seconds.values())
    line = f"| {what} | {rates} | {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) |"
    print(line, flush=True)
    return line


def our_epochs(run: bird.Run, birds: bird.Birds) -> Callable[[int], None]:
    """A function that trains the epochs of `run` from the given one on."""
    sizes = run.sizes()
    ready = {size: bird.resized(birds.pixels, bird.side_for(size)) for size in sizes}

    def train(first: int) -> None:
        for run.epoch in range(first, len(sizes)):
            run.step, run.sums = 0, (0.0, 0.0, 0)
            bird.train_epoch(run, birds, ready[sizes[run.epoch]], threading.Event(), lambda now: None)

    return train


def usual_epochs(folder: Path, sizes: list[int], classes: int) -> Callable[[int], None]:
    """The same network in the usual loop: a function that trains the epochs of these sizes from the given one on."""
    net = bird.BirdNet(classes)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    batches = {size: loader(ImageFolder(str(folder), usual_views(size, train=True)), train=True) for size in sizes}

    def train(first: int) -> None:
        net.train()
        for size in sizes[first:]:
            for x, y in batches[size]:
                optimiser.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimiser.step()

    return train


@torch.no_grad()
def batch_of_one(net: nn.Module, data: ImageFolder) -> list[int]:
    """The assignment's own test loop: one image at a time."""
    return [int(net(data[i][0][None]).argmax()) for i in range(len(data))]


def precision() -> str:
    """What bird.py multiplies in here. It names sections, so that each kind of processor keeps its own results."""
    return str(bird.half_type(CPU) or torch.float32).removeprefix("torch.")


def convolution_seconds(net: bird.BirdNet, batch: int) -> float:
    """Seconds of one training step's convolutions alone, forward and backward, in the precision of the training."""
    shapes: list[tuple[nn.Conv2d, torch.Size]] = []
    handles = [m.register_forward_hook(lambda m, inputs, _: shapes.append((m, inputs[0].shape)))
               for m in net.modules() if isinstance(m, nn.Conv2d)]
    net(torch.rand(batch, 3, SIZE, SIZE))
    for handle in handles:
        handle.remove()
    kind, total = bird.half_type(CPU) or torch.float32, 0.0
    for k, (conv, shape) in enumerate(shapes):
        # the photo itself needs no gradient
        x = torch.rand(shape, dtype=kind).contiguous(memory_format=torch.channels_last).requires_grad_(k > 0)
        weight = conv.weight.detach().to(kind).requires_grad_()
        gradient, times = None, []
        for _ in range(6):
            start = time.perf_counter()
            y = F.conv2d(x, weight, None, conv.stride, conv.padding)
            gradient = torch.ones_like(y) if gradient is None else gradient
            torch.autograd.grad(y, [x, weight] if k else [weight], gradient)
            times.append(time.perf_counter() - start)
        total += statistics.median(times[1:])
    return total


def share(run: bird.Run, train: Callable[[int], None]) -> str:
    """The time of the bare convolutions over that of the whole last epoch: median and range of three rounds."""
    shares = []
    train(run.epochs - 1)
    for _ in range(3):
        bare = convolution_seconds(run.net, run.batch) * run.steps
        start = time.perf_counter()
        train(run.epochs - 1)
        shares.append(bare / (time.perf_counter() - start))
    return f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"


def speed(photos: int) -> None:
    """The table of speeds."""
    cfg, kind = bird.Config(batch=128), precision()
    photos -= photos % cfg.batch                         # both sides then see all of them in an epoch
    bird.keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paint_photos(folder, photos)
        birds = bird.read_birds(folder, folder, cfg)     # the photos are a stand-in: only the speed is looked at
        birds = replace(birds, fit=torch.arange(photos))
        paths, _ = bird.find_images(folder)
        run = bird.new_run(birds, cfg, 5, CPU, time.monotonic())     # unmixed; the fifth at full size
        sizes = run.sizes()
        ours, theirs = our_epochs(run, birds), usual_epochs(folder, sizes, len(birds.classes))
        model, csv = folder / "bird.pth", folder / "bird.csv"
        small = ImageFolder(name, T.Compose([T.Resize((bird.STORED, bird.STORED)), T.PILToTensor()]))

        def test() -> None:
            with contextlib.redirect_stdout(None):
                bird.test(folder, model, csv, CPU)

        rows = [row(f"first pass: read, decode and shrink to {bird.STORED} px; against `ImageFolder` + `Resize`, "
                    "2 workers", photos, lambda: bird.decode(paths), lambda: list(loader(small, train=False)))]
        ours(4)                                          # once before the clock runs
        rows += [row(f"second and later epochs at {SIZE} px, same network; against `ImageFolder` + "
                     "`DataLoader(num_workers=2)`", photos, lambda: ours(4), lambda: theirs(4)),
                 row(f"five epochs as a short training spends them, at {', '.join(map(str, sizes))} px on both sides",
                     5 * photos, lambda: ours(0), lambda: theirs(0))]
        with contextlib.redirect_stdout(None):           # a network that knows little looks four times at most photos
            bird.train(folder, model, bird.Config(epochs=20))
        net = bird.load_model(model)
        plain = ImageFolder(name, usual_views(net.extra["size"], train=False))
        once, twice = (bird.predict(net, birds.pixels, net.extra["size"], CPU, looks=n).amax(dim=1) for n in (1, 2))
        sure, doubtful = (100 * part.float().mean() for part in (
            once >= bird.SURE, (once < bird.SURE) & (twice < bird.DOUBT)))
        rows.append(row("`bird.py test` from files; against the assignment's loop over batches of one",
                        photos, test, lambda: batch_of_one(net, plain)))
        of_convolutions = f"{share(run, ours)} in {kind}"
        if kind != "float32":                            # as processors without such units do it
            with mock.patch.object(bird, "half_type", return_value=None):
                run = bird.new_run(birds, cfg, 5, CPU, time.monotonic())
                of_convolutions += f", {share(run, our_epochs(run, birds))} in float32"
    publish(f"birds-speed-{kind}", f"""### Speed of bird.py, training in {kind}

{stamp([0], "python -m bench.birds speed")} {photos} drawn photos of 1200 x 800 px; ratios of 3 rounds in turn, median
(lowest to highest); the other side trains in float32. Both sides give photos a second; waiting threads sleep on both
sides as bird.py has them. `bird.py test` has a network of 20 epochs, which looks once at
{sure:.0f} % of the photos, four times at {doubtful:.0f} %, twice at the others.

| What | bird.py | Otherwise | Ratio |
|---|---|---|---|
{chr(10).join(rows)}

Share of the epoch's time at {SIZE} px in which the bare convolutions would be done (same shapes, same precision):
{of_convolutions}.
""")


# ---- beside another busy program


def steps() -> None:
    """Prints the photos a second of training steps at 64 and at 128 px, medians of five, as JSON."""
    bird.keep_freed_memory()
    batch = torch.arange(64)
    pixels = torch.randint(256, (64, 3, bird.STORED, bird.STORED), dtype=torch.uint8)
    birds = bird.Birds(pixels, batch % 10, batch, batch, [str(k) for k in range(10)], torch.arange(10) < 5)
    run = bird.new_run(birds, bird.Config(batch=64), 1, CPU, time.monotonic())
    rates = {}
    for size in (64, 128):
        small = bird.resized(pixels, bird.side_for(size))

        def step(small=small, size=size) -> None:
            bird.train_step(run, small, birds.labels, size, torch.rand(64, bird.DRAWS), torch.rand(2))

        step()
        rates[str(size)] = 64 / statistics.median(in_turn({"step": step}, rounds=5)["step"])
    print(json.dumps(rates))


def busy() -> None:
    """Training steps with bird.py's waiting threads and with GNU OpenMP's own, alone and beside a busy process."""
    sides = {"bird.py": {}, "usual": {"GOMP_SPINCOUNT": "300000"}}       # the library's default
    code = "import bird\nfrom bench.birds import steps\nsteps()"         # bird.py comes before torch, as in its own use
    outer = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    rows = []
    for where in ("alone", "beside a busy process"):
        rates: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        with contextlib.ExitStack() as stack:
            if where != "alone":
                endless = [sys.executable, "-c", "while True: pass"]        # in a session of its own, as a program of
                other = stack.enter_context(subprocess.Popen(endless, start_new_session=True))       # another window
                stack.callback(other.kill)
            for _, (name, setting) in itertools.product(range(3), sides.items()):
                done = subprocess.run([sys.executable, "-c", code], env={**outer, **setting}, capture_output=True,
                                      text=True, check=True)
                rates[name].append(json.loads(done.stdout))
        for size in ("64", "128"):
            ours, usual = ([rate[size] for rate in rates[name]] for name in sides)
            ratios = sorted(a / b for a, b in zip(ours, usual, strict=True))
            rows.append(f"| {where}, {size} px | {statistics.median(ours):.0f} | {statistics.median(usual):.0f} | "
                        f"{ratios[1]:.1f} ({ratios[0]:.1f} to {ratios[2]:.1f}) |")
            print(rows[-1], flush=True)
    publish(f"birds-busy-{precision()}", f"""### Beside another busy program, training in {precision()}

{stamp([0], "python -m bench.birds busy")} Training steps of 64 photos, photos a second; ratios of 3 rounds in turn,
median (lowest to highest). bird.py's threads wait awake for 10,000 turns and then sleep; GNU OpenMP's usual 300,000.

| Where | bird.py | The usual wait | Ratio |
|---|---|---|---|
{chr(10).join(rows)}
""")


# ---- score for the same wall time


def usual_training(net: nn.Module, data: Path, size: int, minutes: float, optimiser: torch.optim.Optimizer,
                   factor: Callable[[float], float], smoothing: float = 0.0) -> Iterator[tuple[float, float]]:
    """Trains `net` by the usual loop for so many minutes and yields (minutes, validation score) after each epoch.

    factor: the step size's factor after a share of the time. The split is bird.py's own, for the same photos.
    """
    birds = bird.read_birds(data, data, bird.Config())
    start = time.monotonic()
    train_set = ImageFolder(str(data), usual_views(size, train=True))
    fit = loader(Subset(train_set, birds.fit.tolist()), train=True)
    seen = loader(Subset(ImageFolder(str(data), usual_views(size, train=False)), birds.validation.tolist()),
                  train=False, batch=128)
    peak = [group["lr"] for group in optimiser.param_groups]
    done = 0.0
    while done < 1:
        net.train()
        for x, y in fit:
            done = (time.monotonic() - start) / (60 * minutes)
            if done >= 1:
                break
            for group, lr in zip(optimiser.param_groups, peak, strict=True):
                group["lr"] = lr * factor(done)
            optimiser.zero_grad()
            F.cross_entropy(net(x), y, label_smoothing=smoothing).backward()
            optimiser.step()
        truth, predicted = answers(net, seen)
        yield (time.monotonic() - start) / 60, sum(bird.scores(truth, predicted)) / 2


@torch.no_grad()
def answers(net: nn.Module, batches: DataLoader) -> tuple[list[int], list[int]]:
    """The true and the predicted classes."""
    net.eval()
    pairs = [(y, net(x).argmax(dim=1)) for x, y in batches]
    truth, predicted = (torch.cat(side).tolist() for side in zip(*pairs, strict=True))
    return truth, predicted


def peers(data: Path, aside: Path, minutes: float, out: Path) -> None:
    """Both peers for so many minutes each, and the nestling run of the same budget if it is not in `out` already."""
    out.mkdir(parents=True, exist_ok=True)
    classes = len(bird.find_training_images(data)[2])
    model = out / "bird.pth"
    if not model.exists():
        bird.train(data, model, bird.Config(budget=minutes))
    curves = {"bird.py": [(row["seconds"] / 60, row["val_score"]) for row in history_of(model)]}
    final = {"bird.py": (curves["bird.py"][-1][0], sum(score_on(model, aside)) / 2)}
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(num_classes=classes)
    five = FiveBlocks(classes)
    others = {
        # torchvision's reference: SGD 0.1 at 256 photos a step (here 32), momentum 0.9, weight decay 1e-4, a tenth of
        # the step size after each third
        "resnet18, 224 px, SGD in three steps": (resnet, 224, torch.optim.SGD(
            resnet.parameters(), lr=0.1 * 32 / 256, momentum=0.9, weight_decay=1e-4),
            lambda done: 0.1 ** math.floor(3 * done)),
        "five blocks, 64 px, Adam": (five, 64, torch.optim.Adam(five.parameters(), lr=1e-3), lambda done: 1.0)}
    for name, (peer, size, optimiser, factor) in others.items():
        curves[name] = []
        for point in usual_training(peer, data, size, minutes, optimiser, factor):
            curves[name].append(point)
            print(name, *(f"{v:.3f}" for v in point), flush=True)
        seen = loader(ImageFolder(str(aside), usual_views(size, train=False)), train=False, batch=128)
        final[name] = (curves[name][-1][0], sum(bird.scores(*answers(peer, seen))) / 2)
        (out / "curves.json").write_text(json.dumps({"curves": curves, "final": final}))
    plot(curves, Path("docs/birds.png"))
    rows = []
    for name, (spent, score) in final.items():
        epochs = [y for _, y in curves[name]]
        rows.append(f"| {name} | {spent:.1f} | {epochs[-1]:.4f} | {max(epochs):.4f} | {score:.4f} |")
    kind = precision()
    publish(f"birds-peers-{kind}", f"""### The same wall time, bird.py training in {kind}

{stamp([0], f"python -m bench.birds peers DATASET ASIDE --minutes {minutes:g}")} The same photos, the same split, from
random weights; the others train in float32 and are fed by `ImageFolder` and `DataLoader(num_workers=2)`. On the fifth
put aside bird.py reads with the weights that it saved, those with the lowest loss, the others with their last.

| Network | Minutes | Validation score, last epoch | best epoch | Score on the fifth put aside |
|---|---|---|---|---|
{chr(10).join(rows)}
""")


def plot(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Validation score against minutes, all networks in one picture, with the best of each."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for name, points in curves.items():
        x, y = zip(*points, strict=True)
        ours = name == "bird.py"
        line, = axes.plot(x, y, linewidth=2.2 if ours else 1.4)
        axes.annotate(f"{name}: {max(y):.3f}", (x[-1], y[-1]), xytext=(0, 6 if ours else -28), color=line.get_color(),
                      textcoords="offset points", ha="right", va="bottom" if ours else "top")
    axes.set(xlabel="minutes on 2 cores", ylabel="(macro + micro F1) / 2, validation", ylim=(0, 1), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=160)


# ---- uneven classes, and copies of photos


def score_on(model: Path, data: Path) -> tuple[float, float]:
    """Macro and micro F1 of a model on the photos in `data`."""
    net = bird.load_model(model)
    paths, names = bird.find_images(data)
    p = bird.predict(net, bird.decode(paths).pixels, net.extra["size"], CPU).argmax(dim=1)
    return bird.scores([net.extra["classes"].index(name) for name in names], p.tolist())


def uneven(data: Path, aside: Path, minutes: float) -> None:
    """Trains on a fifth of every second class, with and without class weights, and scores both on even classes."""
    rows, epochs = [], None
    with tempfile.TemporaryDirectory() as name:
        thin, sizes = Path(name) / "thin", []
        for k, folder in enumerate(sorted(p for p in data.iterdir() if p.is_dir())):
            (thin / folder.name).mkdir(parents=True)
            photos = sorted(folder.iterdir())
            for photo in photos[::5] if k % 2 else photos:
                (thin / folder.name / photo.name).symlink_to(photo.resolve())
            sizes.append(len(list((thin / folder.name).iterdir())))
        for weights in (True, False):
            model = Path(name) / f"{weights}.pth"
            bird.train(thin, model, bird.Config(budget=minutes, epochs=epochs, class_weights=weights))
            epochs = history_of(model)[-1]["epochs"]                       # the second has as many as the first
            macro, micro = score_on(model, aside)
            rows.append(f"| {'weighted' if weights else 'not weighted'} | {epochs} | {macro:.4f} | {micro:.4f} |")
    publish("birds-uneven", f"""### Uneven classes

{stamp([0], f"python -m bench.birds uneven DATASET ASIDE --minutes {minutes:g}")} Class sizes of the training set:
{", ".join(map(str, sizes))}. Scores on the fifth put aside, whose shares are those of the whole set.

| Classes in the loss | Epochs | Macro F1 | Micro F1 |
|---|---|---|---|
{chr(10).join(rows)}
""")


def copies(data: Path | None, aside: Path | None, minutes: float) -> None:
    """How many of the known copies are found, and what the split is worth that keeps them on one side."""
    rows, epochs = [], None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "birds"
        if data is None:
            make_birds(folder, copies=0.4)
            known = {folder / copy: folder / entry["of"]
                     for copy, entry in json.loads((folder / "copies.json").read_text()).items()}
        else:
            known = add_copies(data, folder / "train", 0.4)
        new = aside or folder / "test"
        for kept in (True, False):
            model = Path(name) / f"{kept}.pth"
            apart = mock.patch.object(bird, "near_duplicates", lambda photos: torch.arange(len(photos.pixels)))
            with contextlib.nullcontext() if kept else apart:
                bird.train(folder / "train", model, bird.Config(budget=minutes, epochs=epochs))
            epochs = history_of(model)[-1]["epochs"]                       # the second has as many as the first
            score = [row["val_score"] for row in history_of(model) if row["best"]][-1]
            test = sum(score_on(model, new)) / 2
            rows.append(f"| {'kept on one side' if kept else 'split at random'} | {epochs} | {score:.4f} | "
                        f"{test:.4f} | {score - test:+.4f} |")
        paths, _ = bird.find_images(folder / "train")
        groups = bird.near_duplicates(bird.decode(paths))
    where = {path: k for k, path in enumerate(paths)}
    found = sum(bool(groups[where[copy]] == groups[where[original]]) for copy, original in known.items())
    kind = "drawn" if data is None else "real"
    publish("birds-copies" + "-real" * (data is not None), f"""### Copies of {kind} photos

{stamp([0], f"python -m bench.birds copies {'DATASET ASIDE ' * (data is not None)}--minutes {minutes:g}")} {len(paths)}
{kind} photos, {len(known)} of them mirrored, turned, cropped or re-compressed copies of others: {found} are found, in
{len(groups.unique())} groups. Both networks are scored on the same new photos, which are no copies;
there they look as often as a photo needs, in validation once.

| Copies | Epochs | Validation score | Score on new photos | Validation promises too much by |
|---|---|---|---|---|
{chr(10).join(rows)}
""")


def add_copies(data: Path, out: Path, share: float) -> dict[Path, Path]:
    """Links to all photos of `data` in `out`, and turned copies of a share of them; for each copy, its original."""
    rng, known = np.random.default_rng(0), {}
    for path in bird.find_images(data)[0]:
        original = out / path.relative_to(data)
        original.parent.mkdir(parents=True, exist_ok=True)
        original.symlink_to(path.resolve())
        if rng.random() < share:
            how = str(rng.choice(list(TURNS)))
            by = int(rng.integers(TURNS[how][0], TURNS[how][1] + 1))
            copy = original.with_name(f"copy-{path.stem}.jpg")
            square = bird.to_rgb(Image.open(path)).resize((256, 256))
            turned(square, how, by).save(copy, quality=by if how == "recompressed" else QUALITY)
            known[copy] = original
    return known


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.birds")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("speed").add_argument("--photos", type=int, default=512)
    commands.add_parser("busy")
    of_peers = commands.add_parser("peers")
    of_peers.add_argument("dataset", type=Path)
    of_peers.add_argument("aside", type=Path)
    of_peers.add_argument("--minutes", type=float, default=20)
    of_peers.add_argument("--out", type=Path, default=Path("build/peers"))
    of_uneven = commands.add_parser("uneven")
    of_uneven.add_argument("dataset", type=Path)
    of_uneven.add_argument("aside", type=Path)
    of_uneven.add_argument("--minutes", type=float, default=10)
    of_copies = commands.add_parser("copies")
    of_copies.add_argument("dataset", type=Path, nargs="?")
    of_copies.add_argument("aside", type=Path, nargs="?")
    of_copies.add_argument("--minutes", type=float, default=4)
    args = parser.parse_args()
    if args.command == "speed":
        speed(args.photos)
    elif args.command == "busy":
        busy()
    elif args.command == "peers":
        peers(args.dataset, args.aside, args.minutes, args.out)
    elif args.command == "uneven":
        uneven(args.dataset, args.aside, args.minutes)
    elif args.dataset and not args.aside:
        parser.error(f"{args.dataset} is to be trained on; name new photos to score too, or neither.")
    else:
        copies(args.dataset, args.aside, args.minutes)


if __name__ == "__main__":
    main()
