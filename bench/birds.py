"""Birds: speed and score against what one would otherwise take.

    python -m bench.birds speed [--photos 512]                               # of the data, on drawn photos
    python -m bench.birds peers DATASET HELD_OUT [--minutes 20] [--seed 0]   # of the network, on real photos

HELD_OUT is only scored, once a network. `peers` keeps its models in --out: after a kill the same command
resumes. The tables go into bench/RESULTS.md, the curves of `peers` into docs/birds.png.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

import bird
from bench.table import publish, race, rows, stamp
from nestling.data.birds import make_birds
from nestling.runs import history_of

FIGURE = Path(__file__).parent.parent / "docs" / "birds.png"


# ------------------------------------------------------ the network: the same training for each

class Peer(bird.BirdNet):
    """Other layers and a linear head on their mean; in all else a BirdNet, so that `bird.train` trains it."""

    def __init__(self, features: nn.Sequential, channels: int, classes: int, **settings):
        super().__init__(classes, **settings)
        self.features, self.head = features, nn.Linear(channels, classes)

    def classify(self, h: Tensor) -> Tensor:
        return self.head(self.dropout(h.mean(dim=(2, 3))))


class ResNet18(Peer):
    """torchvision's resnet18."""

    def __init__(self, classes: int = 10, **settings):
        net = torchvision.models.resnet18(weights=None)
        super().__init__(nn.Sequential(*list(net.children())[:-2]), net.fc.in_features, classes, **settings)


class FiveBlocks(Peer):
    """Five times convolution, batch normalisation, ReLU and max-pooling: the CNN of most tutorials."""

    def __init__(self, classes: int = 10, **settings):
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths := (3, 32, 64, 128, 256, 256)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
                       nn.MaxPool2d(2)]
        super().__init__(nn.Sequential(*layers), widths[-1], classes, **settings)


NETWORKS = {                         # with the learning rates of which validation chooses one
    "bird.py": (bird.BirdNet, (bird.Config.lr,)),
    "resnet18": (ResNet18, (bird.Config.lr,)),
    "five blocks": (FiveBlocks, (0.004, 0.008, 0.016))}


def trained(name: str, data: Path, cfg: bird.Config, out: Path) -> dict[Path, bird.BirdNet]:
    """A network trained with each of its learning rates, by the file of its model."""
    network, rates = NETWORKS[name]
    found = {}
    with mock.patch.object(bird, "BirdNet", network):
        for lr in rates:
            model = out / f"{name.replace(' ', '-')}-{lr:g}-seed{cfg.seed}.pth"
            if not model.exists():
                bird.train(data, model, replace(cfg, lr=lr))
            found[model] = bird.load_model(model)
    return found


def validated(net: bird.BirdNet) -> float:
    """The validation score that `bird.train` noted in the model."""
    return sum(net.extra["validation"].values()) / 2


def peers(data: Path, held_out: Path, cfg: bird.Config, out: Path) -> None:
    """Trains every network with `cfg`, but for the learning rate, and compares them."""
    out.mkdir(parents=True, exist_ok=True)
    paths, names = bird.find_images(held_out)
    pixels, _, _ = bird.decode(paths, "scored as a black photo")
    curves, table, errors, tried = {}, [], [], []
    for name in NETWORKS:
        nets = trained(name, data, cfg, out)
        tried += [f"{model.stem}: {validated(net):.4f}" for model, net in nets.items()]
        model, net = max(nets.items(), key=lambda pair: validated(pair[1]))
        labels = torch.tensor([net.extra["classes"].index(folder) for folder in names])
        predicted = bird.predict(net.to(bird.pick_device(cfg.device)), pixels).argmax(dim=1)
        macro, micro = bird.f1(labels, predicted)
        errors.append(1 - micro)
        curves[name] = [(row["seconds"] / 60, row["val_score"]) for row in history_of(model)]
        table.append((name, f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M", len(curves[name]),
                      f"{curves[name][-1][0]:.1f}", f"{validated(net):.4f}", f"{(macro + micro) / 2:.4f}",
                      f"{errors[-1]:.4f}", f"{errors[-1] / errors[0]:.2f}" if errors[0] else "-"))
        print(rows(table[-1:]), flush=True)
    plot(curves, FIGURE)
    publish(f"birds-peers-seed{cfg.seed}", f"""### The same training, other networks

{stamp(f"python -m bench.birds peers DATASET HELD_OUT --minutes {cfg.budget:g} --seed {cfg.seed}")}
`bird.train` trains them all, from random weights: the same photos, split, image sizes, augmentation,
optimisers (Muon for convolutions, AdamW for the rest), schedule, EMA, test-time augmentation, precision and
minutes. Only the network differs, and the learning rate, which validation chose ({", ".join(tried)}).
Scores are (macro F1 + micro F1) / 2. Error rate: 1 - accuracy on the {len(paths)} held-out photos; its ratio
to that of bird.py.

| Network | Parameters | Epochs | Minutes | Validation score | Held-out score | Error rate | Ratio |
|---|---|---|---|---|---|---|---|
{rows(table)}
""")


def plot(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Validation score against minutes, all networks in one picture."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel="minutes", ylabel="validation score", ylim=(0, 1), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=160)
    plt.close(figure)


# ------------------------------------------------------ the data: the same steps on photos from elsewhere

def usual_loader(folder: Path, transform: T.Compose, batch_size: int, train: bool) -> DataLoader:
    """Two workers; each photo is read and decoded anew each time."""
    photos = ImageFolder(str(folder), transform)
    return DataLoader(photos, batch_size, shuffle=train, drop_last=train, num_workers=2)


def speed(photos: int, cfg: bird.Config, side: int = 1200) -> None:
    """Decoding, epochs and labelling, by bird.py and by torchvision's ImageFolder and transforms."""
    cpu, table = torch.device("cpu"), []
    with tempfile.TemporaryDirectory() as name:
        folder, model, csv = Path(name, "birds", "train"), Path(name, "bird.pth"), Path(name, "bird.csv")
        make_birds(folder.parent, per_class=photos // 10, size=side)
        data, paths = bird.load_data(folder, cfg.seed), bird.find_images(folder)[0]
        photos, steps, g = len(paths), len(paths) // cfg.batch_size, torch.Generator()
        training = bird.Training(data, cfg, cpu)
        bird.save(model, training.net.state_dict())

        def step(x: Tensor, labels: Tensor) -> None:
            training.step(x, F.one_hot(labels, len(data.classes)).float(), cfg.lr)

        def our_epoch(size: int) -> None:
            pixels = bird.resize(data.pixels, min(bird.STORED, 2 * size))
            for batch in torch.randperm(photos).split(cfg.batch_size)[:steps]:
                step(bird.augment(pixels[batch], size, cfg, 1.0, g), data.labels[batch])

        def usual_epoch(size: int) -> None:
            transform = T.Compose([
                T.RandomResizedCrop(size, scale=(0.35, 1)), T.RandomHorizontalFlip(), T.RandomRotation(20),
                T.ColorJitter(0.3, 0.3, 0.3, 0.1), T.ToTensor()])
            for x, labels in usual_loader(folder, transform, cfg.batch_size, train=True):
                step(x, labels)

        def our_test() -> None:
            with contextlib.redirect_stdout(None):
                bird.test(folder, model, csv, cpu)

        @torch.no_grad()
        def usual_test() -> None:
            net = bird.load_model(model)
            for x, _ in ImageFolder(str(folder), T.Compose([T.Resize((128, 128)), T.ToTensor()])):
                net(x[None]).argmax()

        def compare(what: str, count: int, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
            a, b, ratio = race(ours, theirs, rounds=3)
            table.append((what, f"{count / a:.0f}", f"{count / b:.0f}", ratio))
            print(rows(table[-1:]), flush=True)

        small = T.Compose([T.Resize((bird.STORED, bird.STORED)), T.PILToTensor()])
        sizes, count = [bird.image_size(k / 5, 5, photos) for k in range(5)], steps * cfg.batch_size
        compare(f"first pass: read, decode, resize to {bird.STORED} px", photos,
                lambda: bird.decode(paths, ""), lambda: list(usual_loader(folder, small, 32, train=False)))
        for size in sorted(set(sizes)):
            compare(f"a later epoch, {size} px", count, partial(our_epoch, size), partial(usual_epoch, size))
        compare("first pass and five epochs", 5 * count,
                lambda: (bird.decode(paths, ""), *map(our_epoch, sizes)), lambda: [*map(usual_epoch, sizes)])
        compare("`test`, four views a photo; otherwise one view, one photo at a time", photos,
                our_test, usual_test)
    publish("birds-speed", f"""### Speed of the data pipeline

{stamp("python -m bench.birds speed")} {photos} drawn photos of {side} x {side} px, photos a second,
three rounds in turn; ratio: median (lowest to highest). Both sides take the same training steps of the same
network; the other side feeds them by `ImageFolder`, torchvision's transforms and `DataLoader(num_workers=2)`.

| What | bird.py | Otherwise | Ratio |
|---|---|---|---|
{rows(table)}
""")


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.birds")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("speed").add_argument("--photos", type=int, default=512)
    of_peers = commands.add_parser("peers")
    of_peers.add_argument("dataset", type=Path, help="DATASET/<class>/<image>, to train and validate on")
    of_peers.add_argument("held_out", type=Path, help="HELD_OUT/<class>/<image>, only scored")
    of_peers.add_argument("--minutes", type=float, default=20, help="of each training (default %(default)s)")
    of_peers.add_argument("--seed", type=int, default=0)
    of_peers.add_argument("--out", type=Path, help="of the models; default build/peers-MINUTES")
    args = parser.parse_args(argv)
    if args.command == "speed":
        speed(args.photos, bird.Config())
    else:
        out = args.out or Path("build", f"peers-{args.minutes:g}")
        peers(args.dataset, args.held_out, bird.Config(seed=args.seed, budget=args.minutes), out)


if __name__ == "__main__":
    sys.exit(bird.run(main, sys.argv[1:]))
