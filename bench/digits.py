"""Digits: what vae.py reaches, with five labels a class, with one, on all ten digits; and others in the same time.

    python -m bench.digits TRAIN VAL TEST --out DIR [--seeds 0,1] [--only nestling,one-label] [--minutes M]

One measurement after the other in one process. Each is kept in DIR/digits.jsonl as soon as it is done, so the same
command goes on where it was stopped. The table goes into bench/RESULTS.md. `pip install 'nestling[bench]'` for pythae.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

import vae
from bench.table import publish, stamp
from nestling.data.digits import TEST_SHARE, VAL_PER_DIGIT, enlarge, pick

PIXELS, LATENT = 784, 2


@dataclass(frozen=True)
class Bench:
    """What is measured on, and where the rows are kept."""

    train: Path                      # images; labels are not used
    val: Path                        # a few labelled images a class
    test: Path                       # labelled; only scored
    out: Path
    minutes: float | None            # the budget of a training of vae.py; None: its default
    stamp: str

    @cached_property
    def settings(self) -> dict:
        """What a kept row must agree with to stand for a new measurement."""
        seen = hashlib.sha256(b"".join(path.read_bytes() for path in (self.train, self.val, self.test)))
        return {"minutes allowed": self.minutes, "data": seen.hexdigest()[:12]}

    def kept(self) -> list[dict]:
        """All rows of DIR/digits.jsonl."""
        file = self.out / "digits.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def rows(self) -> list[dict]:
        """Those of these settings."""
        return [row for row in self.kept() if self.settings.items() <= row.items()]

    def row(self, name: str, seed: int) -> dict:
        """The kept row, or else a new measurement, kept at once."""
        for row in self.rows():
            if (row["name"], row["seed"]) == (name, seed):
                return row
        measured = ROWS[name](self, seed)
        row = {"name": name, "seed": seed, **measured, **self.settings, "stamp": self.stamp}
        vae.write_history(self.out / "digits.jsonl", [*self.kept(), row])
        print(f"== {name}, seed {seed}: {json.dumps(measured)}", flush=True)
        return row

    def model(self, seed: int) -> tuple[Path, Path]:
        """The trained VAE and its mixture."""
        return self.out / f"vae-{seed}.pth", self.out / f"gmm-{seed}.pkl"

    def config(self, seed: int) -> vae.Config:
        """The defaults, but for the seed and the budget."""
        return vae.Config(seed=seed) if self.minutes is None else vae.Config(seed=seed, budget=self.minutes)


def labelled(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 28, 28) and labels (N,)."""
    data = vae.DigitDataset(path)
    return data.images, data.examples()


def judge(labels: Tensor, predicted: Tensor, images: Tensor, made: Tensor) -> dict[str, float]:
    """The three scores of the assignment; SSIM is scikit-image's, one image at a time."""
    ssim = [structural_similarity(a, b, data_range=1) for a, b in zip(images.numpy(), made.numpy(), strict=True)]
    return {"score": vae.scores(labels.numpy(), predicted.numpy())["(macro F1 + micro F1) / 2"],
            "ssim": float(np.mean(ssim)), "1 - mse": 1 - float((images - made).square().mean())}


# ---- vae.py


def train_and_judge(train: Path, val: Path, test: Path, model: tuple[Path, Path], config: vae.Config) -> dict:
    """Trains vae.py anew and scores it on TEST."""
    began = time.monotonic()
    vae.train(train, val, *model, config, resume=False)
    minutes = (time.monotonic() - began) / 60
    net, mixture, (images, labels) = vae.load_model(model[0]), vae.load_mixture(model[1]), labelled(test)
    made = vae.reconstruct(net, images)
    return {**judge(labels, vae.classify(net, mixture, images), images, made), "minutes": minutes}


def nestling(bench: Bench, seed: int) -> dict:
    """The defaults on the digits given."""
    return train_and_judge(bench.train, bench.val, bench.test, bench.model(seed), bench.config(seed))


def one_label(bench: Bench, seed: int) -> dict:
    """The scores with one labelled image a class, for every choice of one of VAL's each, but 125 at the most.

    The VAE learns from TRAIN alone (of VAL it takes the number of classes), so that only the mixture is fitted again.
    """
    bench.row("nestling", seed)
    net, train = vae.load_model(bench.model(seed)[0]), vae.DigitDataset(bench.train).images
    (shown, labels), (images, truth) = labelled(bench.val), labelled(bench.test)
    near = vae.lookalikes(shown, train, bench.config(seed).lookalikes)
    z, z_val, z_test = (vae.latent_means(net, x) for x in (train, shown, images))
    places = [(labels == digit).nonzero().flatten().tolist() for digit in labels.unique()]
    scores = []
    for one in map(list, islice(product(*places), 125)):         # an index into VAL for each class
        read = vae.fit_mixture(z, near[one], z_val[one], labels[one], net.centres).read(z_test)
        scores.append(vae.scores(truth.numpy(), read.numpy())["(macro F1 + micro F1) / 2"])
    return {"scores": scores}


def ten_digits(bench: Bench, seed: int) -> dict:
    """The defaults on scikit-learn's digits, all ten classes."""
    folder = bench.out / "ten"
    folder.mkdir(exist_ok=True)
    write_ten_digits(folder)
    train, val, test = (folder / f"{name}.npz" for name in ("train", "val", "test"))
    return train_and_judge(train, val, test, (folder / "vae.pth", folder / "gmm.pkl"), bench.config(seed))


def write_ten_digits(folder: Path) -> None:
    """scikit-learn's 1,797 digits at 28 x 28: TEST a fifth, VAL five a class, TRAIN the rest, without labels."""
    bunch, rng = load_digits(), np.random.default_rng(0)
    data, labels = np.stack([enlarge(image) for image in bunch.images]), bunch.target.astype(np.int64)
    test = pick(rng, labels, {digit: round(TEST_SHARE * int((labels == digit).sum())) for digit in range(10)})
    fit = np.setdiff1d(np.arange(len(labels)), test)
    val = fit[pick(rng, labels[fit], dict.fromkeys(range(10), VAL_PER_DIGIT))]
    train = rng.permutation(np.setdiff1d(fit, val))
    np.savez_compressed(folder / "train.npz", data=data[train])
    np.savez_compressed(folder / "val.npz", data=data[val], labels=labels[val])
    np.savez_compressed(folder / "test.npz", data=data[test], labels=labels[test])


def ten_back(bench: Bench, seed: int, rounds: int = 5) -> dict:
    """Seconds of `vae.py RECON test_reconstruction MODEL` on ten images, beyond those of `import torch`."""
    bench.row("nestling", seed)
    recon, made = bench.out / "recon.npz", bench.out / "reconstructed.npz"
    np.savez(recon, data=labelled(bench.test)[0][:10].numpy())
    command = [vae.__file__, recon, "test_reconstruction", bench.model(seed)[0], "--npz", made]
    imports, beyond = [], []
    for _ in range(rounds + 1):                                  # the first round fills the disk's cache
        whole, bare = (vae.timed(subprocess.run, [sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
                       for words in (command, ["-c", "import torch"]))
        imports.append(bare)
        beyond.append(whole - bare)
    return {"seconds": beyond[1:], "import torch": imports[1:]}


# ---- the others


@dataclass(frozen=True)
class Peer:
    """Another VAE with two latents."""

    net: nn.Module
    loss: Callable[[Tensor], Tensor]      # (B, 28, 28) -> what its training lowers
    encode: Callable[[Tensor], Tensor]    # (B, 28, 28) -> latent means (B, 2)
    decode: Callable[[Tensor], Tensor]    # (B, 2) -> (B, 28, 28) in 0..1


class ExampleVAE(nn.Module):
    """The network and the loss of pytorch/examples, vae/main.py, with 2 latents in place of its 20."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(PIXELS, 400)
        self.mean, self.logvar = nn.Linear(400, LATENT), nn.Linear(400, LATENT)
        self.decoder = nn.Sequential(nn.Linear(LATENT, 400), nn.ReLU(), nn.Linear(400, PIXELS), nn.Sigmoid())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 28, 28) -> mu, logvar, both (B, 2)."""
        h = self.hidden(x.flatten(1)).relu()                     # (B, 400)
        return self.mean(h), self.logvar(h)

    def loss(self, x: Tensor) -> Tensor:
        """Cross-entropy + KL to N(0, I), summed over pixels, latents and images as there."""
        mu, logvar = self.encode(x)
        x_hat = self.decoder(mu + (0.5 * logvar).exp() * torch.randn_like(mu))                   # (B, 784)
        kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()
        return F.binary_cross_entropy(x_hat, x.flatten(1), reduction="sum") + kl


def example() -> Peer:
    """The VAE of pytorch/examples."""
    net = ExampleVAE()
    return Peer(net, net.loss, lambda x: net.encode(x)[0], lambda z: net.decoder(z).unflatten(1, (28, 28)))


def pythae(reconstruction: str) -> Peer:
    """pythae's VAE with its own networks; `reconstruction` is "mse", its default, or "bce"."""
    from pythae.models import VAE, VAEConfig
    net = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss=reconstruction))
    return Peer(net, lambda x: net({"data": x[:, None]}).loss, lambda x: net.encoder(x[:, None]).embedding,
                lambda z: net.decoder(z).reconstruction.view(-1, 28, 28))


def train_peer(peer: Peer, images: Tensor, seconds: float, batch: int = 128) -> list[float]:
    """Whole epochs of Adam (1e-3) until the time is up; the mean loss a step of each epoch.

    The batches are cut from one tensor: more epochs in the time than a DataLoader allows.
    """
    optimiser, end = torch.optim.Adam(peer.net.parameters(), lr=1e-3), time.monotonic() + seconds
    losses: list[float] = []
    peer.net.train()
    while not losses or time.monotonic() < end:
        steps = []
        for index in torch.randperm(len(images)).split(batch):
            loss = peer.loss(images[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps.append(loss.item())
        losses.append(statistics.mean(steps))
    peer.net.eval()
    return losses


def read_by_mixture(z: np.ndarray, z_val: np.ndarray, labels: np.ndarray, z_test: np.ndarray) -> np.ndarray:
    """The digits of z_test (N, 2) by scikit-learn's mixture on z (M, 2), started at the class means of z_val.

    A component has the name that most of VAL's images in it have; without any, that of the class it started from.
    """
    digits = np.unique(labels)
    means = np.stack([z_val[labels == digit].mean(axis=0) for digit in digits])                  # (K, 2)
    mixture = GaussianMixture(len(digits), means_init=means, random_state=0).fit(z)
    shown = mixture.predict(z_val)
    names = [np.bincount(labels[shown == k]).argmax() if (shown == k).any() else digits[k] for k in range(len(digits))]
    return np.array(names)[mixture.predict(z_test)]


def peer_row(bench: Bench, seed: int, make: Callable[[], Peer]) -> dict:
    """Another VAE, trained for the wall time that vae.py took with this seed, and scikit-learn's mixture."""
    seconds = 60 * bench.row("nestling", seed)["minutes"]
    train = vae.DigitDataset(bench.train).images
    (shown, labels), (images, truth) = labelled(bench.val), labelled(bench.test)
    torch.manual_seed(seed)
    peer, began = make(), time.monotonic()
    epochs = len(train_peer(peer, train, seconds))
    minutes = (time.monotonic() - began) / 60
    with torch.no_grad():
        z, z_val, z_test = (peer.encode(x).double() for x in (train, shown, images))
        made = peer.decode(z_test.float())
    read = read_by_mixture(z.numpy(), z_val.numpy(), labels.numpy(), z_test.numpy())
    return {**judge(truth, torch.from_numpy(read), images, made), "minutes": minutes, "epochs": epochs}


# ---- the table

ROWS: dict[str, Callable[[Bench, int], dict]] = {
    "nestling": nestling, "one-label": one_label, "ten-back": ten_back, "ten-digits": ten_digits,
    "example": partial(peer_row, make=example), "pythae": partial(peer_row, make=partial(pythae, "mse")),
    "pythae-bce": partial(peer_row, make=partial(pythae, "bce"))}
WHAT = {
    "nestling": "vae.py", "ten-digits": "vae.py on scikit-learn's digits, all ten",
    "example": "the network of pytorch/examples + scikit-learn's mixture",
    "pythae": "pythae's VAE, its squared error + scikit-learn's mixture",
    "pythae-bce": "pythae's VAE, its cross-entropy + scikit-learn's mixture"}


def lines(row: dict) -> list[str]:
    """The row or rows of the table for one measurement."""
    seed = row["seed"]
    if row["name"] == "ten-back":
        return []
    if row["name"] == "one-label":
        return [f"| vae.py, one labelled image a class: {what} of {len(row['scores'])} | {seed} | {score:.4f} | | | |"
                for what, score in (("worst", min(row["scores"])), ("mean", statistics.mean(row["scores"])))]
    numbers = f"{row['score']:.4f} | {row['ssim']:.4f} | {row['1 - mse']:.4f} | {row['minutes']:.1f}"
    return [f"| {WHAT[row['name']]} | {seed} | {numbers} |"]


def table(rows: list[dict]) -> str:
    """The section of RESULTS.md."""
    order = list(ROWS)
    rows = sorted(rows, key=lambda row: (order.index(row["name"]), row["seed"]))
    stamps = "\n".join(dict.fromkeys(row["stamp"] for row in rows))
    cells = "\n".join(line for row in rows for line in lines(row))
    back = "".join(f"Ten images by `vae.py RECON test_reconstruction MODEL`, seed {row['seed']}: "
                   f"{statistics.median(row['seconds']):.2f} s beyond `import torch` ({min(row['seconds']):.2f} to "
                   f"{max(row['seconds']):.2f}; the import itself {statistics.median(row['import torch']):.2f} s).\n"
                   for row in rows if row["name"] == "ten-back")
    others = """ The others have two latents, Adam (1e-3, batches of 128 cut from one tensor) and the wall time that
vae.py took with the same seed; their mixture starts at the class means of VAL.""" if any(
        isinstance(ROWS[row["name"]], partial) for row in rows) else ""
    return f"""### Digits against others

{stamps}
One after the other.{others}

| What | Seed | (macro + micro F1) / 2 | SSIM | 1 - MSE | Training, minutes |
|---|---|---|---|---|---|
{cells}

{back}"""


def main(argv: list[str]) -> None:
    """Measures what is not yet kept and writes the section `digits`."""
    parser = argparse.ArgumentParser(prog="python -m bench.digits")
    for name in ("train", "val", "test"):
        parser.add_argument(name, type=Path, help=".npz with `data` and `labels`")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the rows and the models")
    parser.add_argument("--seeds", default="0", help='such as "0,1,2"; default 0')
    parser.add_argument("--only", default=",".join(ROWS), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, help="budget of each training of vae.py; default: its own")
    args = parser.parse_args(argv)
    seeds, names = [int(seed) for seed in args.seeds.split(",")], args.only.split(",")
    if unknown := set(names) - set(ROWS):
        raise vae.Mistake(f"--only names {min(unknown)!r}; there are {', '.join(ROWS)}.")
    if any("pythae" in name for name in names) and not importlib.util.find_spec("pythae"):
        raise vae.Mistake("pythae is not installed; pip install 'nestling[bench]', or name other rows with --only.")
    args.out.mkdir(parents=True, exist_ok=True)
    budget = "" if args.minutes is None else f" --minutes {args.minutes:g}"
    only = "" if names == list(ROWS) else f" --only {args.only}"
    command = f"python -m bench.digits TRAIN VAL TEST --out DIR --seeds {args.seeds}{only}{budget}"
    bench = Bench(args.train, args.val, args.test, args.out, args.minutes, stamp(seeds, command))
    for seed in seeds:
        for name in names:
            bench.row(name, seed)
    publish("digits", table(bench.rows()))


if __name__ == "__main__":
    sys.exit(vae.run(main, sys.argv[1:]))
