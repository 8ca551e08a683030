"""Digits: vae.py against the VAEs of pythae and pytorch/examples with scikit-learn's mixture.

    python -m bench.digits TRAIN VAL TEST [--seeds 0,1] [--minutes M]

The others get the wall time that vae.py took with the same seed. TEST is only scored. The table goes into
bench/RESULTS.md after each training. `pip install 'nestling[bench]'` for pythae, else its rows are missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

import vae
from bench.table import publish, rows, stamp

PIXELS, LATENT = 784, 2


def judge(data: vae.DigitDataset, predicted: Tensor, made: Tensor) -> list[str]:
    """Cells of the table: the assignment's three scores."""
    assert data.labels is not None
    score = vae.scores(data.labels, predicted)["(macro F1 + micro F1) / 2"]
    ssim, mse = vae.ssim(data.images, made).mean(), (data.images - made).square().mean()
    return [f"{float(value):.4f}" for value in (score, ssim, 1 - mse)]


def ours(files: tuple[Path, Path, Path], seed: int, minutes: float) -> tuple[list[str], float]:
    """The scores of vae.py with its defaults and this budget, and the minutes that it took."""
    with tempfile.TemporaryDirectory() as name:
        model, gmm, began = Path(name, "vae.pth"), Path(name, "gmm_params.pkl"), time.monotonic()
        mixture = vae.train(files[0], files[1], model, gmm, vae.Config(seed=seed, budget=minutes))
        took, net, test = (time.monotonic() - began) / 60, vae.load_model(model), vae.DigitDataset(files[2])
    return judge(test, vae.classify(net, mixture, test.images), vae.reconstruct(net, test.images)), took


# ------------------------------------------------------ the others

@dataclass(frozen=True)
class Peer:
    """Another VAE with two latents."""

    net: nn.Module
    loss: Callable[[Tensor], Tensor]       # (B, 28, 28) -> scalar
    encode: Callable[[Tensor], Tensor]     # (B, 28, 28) -> latent means (B, 2)
    decode: Callable[[Tensor], Tensor]     # (B, 2) -> (B, 28, 28) in 0..1


class ExampleVAE(nn.Module):
    """The network and the loss of pytorch/examples, vae/main.py, with 2 latents in place of its 20."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(PIXELS, 400)
        self.mean, self.logvar = nn.Linear(400, LATENT), nn.Linear(400, LATENT)
        self.decoder = nn.Sequential(nn.Linear(LATENT, 400), nn.ReLU(), nn.Linear(400, PIXELS), nn.Sigmoid())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 28, 28) -> mu, logvar, both (B, 2)."""
        h = self.hidden(x.flatten(1)).relu()               # (B, 400)
        return self.mean(h), self.logvar(h)

    def loss(self, x: Tensor) -> Tensor:
        """Cross-entropy + KL to N(0, I), summed over pixels, latents and images as there."""
        mu, logvar = self.encode(x)
        x_hat = self.decoder(mu + (0.5 * logvar).exp() * torch.randn_like(mu))             # (B, 784)
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


def train_peer(peer: Peer, images: Tensor, seconds: float) -> list[float]:
    """Whole epochs of Adam (1e-3, batches of 128) until the time is up; the mean loss of each epoch.

    The batches are cut from one tensor: more epochs in the time than a DataLoader allows.
    """
    optimizer, end = torch.optim.Adam(peer.net.parameters(), lr=1e-3), time.monotonic() + seconds
    losses: list[float] = []
    peer.net.train()
    while not losses or time.monotonic() < end:
        total = 0.0
        for batch in torch.randperm(len(images)).split(128):
            loss = peer.loss(images[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(images))
    peer.net.eval()
    return losses


def sklearn_mixture(z: np.ndarray, z_val: np.ndarray, labels: np.ndarray, z_test: np.ndarray) -> np.ndarray:
    """Digits of `z_test` by scikit-learn's EM on `z`, started at the class means of VAL."""
    digits = np.unique(labels)
    means = np.stack([z_val[labels == digit].mean(axis=0) for digit in digits])
    mixture = GaussianMixture(len(digits), means_init=means, max_iter=500, random_state=0).fit(z)
    return digits[mixture.predict(z_test)]                 # components keep the order of their means


def theirs(files: tuple[Path, Path, Path], seed: int, minutes: float, make: Callable[[], Peer]) -> list[str]:
    """The scores of another VAE, trained so many minutes, with scikit-learn's mixture."""
    train, val, test = map(vae.DigitDataset, files)
    assert val.labels is not None
    torch.manual_seed(seed)
    train_peer(peer := make(), train.images, 60 * minutes)
    with torch.no_grad():
        z, z_val, z_test = (peer.encode(data.images).double() for data in (train, val, test))
        made = peer.decode(z_test.float())
    predicted = sklearn_mixture(*(a.numpy() for a in (z, z_val, val.labels, z_test)))
    return judge(test, torch.from_numpy(predicted), made)


PEERS: dict[str, Callable[[], Peer]] = {
    "pytorch/examples' VAE + scikit-learn's mixture": example,
    "pythae's VAE, squared error + scikit-learn's mixture": partial(pythae, "mse"),
    "pythae's VAE, cross-entropy + scikit-learn's mixture": partial(pythae, "bce")}


def main(argv: list[str]) -> None:
    """Measures, and writes the section `digits`."""
    parser = argparse.ArgumentParser(prog="python -m bench.digits")
    for name in ("train", "val", "test"):
        parser.add_argument(name, type=Path, help=".npz with `data` and `labels`")
    parser.add_argument("--seeds", default="0", help='such as "0,1,2"; default 0')
    parser.add_argument("--minutes", type=float, default=vae.Config.budget, help="of vae.py; default its own")
    args = parser.parse_args(argv)
    files, table = (args.train, args.val, args.test), []

    def add(name: str, seed: int, scores: list[str], minutes: float) -> None:
        table.append((name, seed, *scores, f"{minutes:.1f}"))
        publish("digits", f"""### Digits against other VAEs

{stamp(f"python -m bench.digits TRAIN VAL TEST --seeds {args.seeds} --minutes {args.minutes:g}")}
The others have two latents, Adam (1e-3, batches of 128) and the wall time that vae.py took with the same
seed; their mixture starts at the class means of VAL.

| What | Seed | (macro F1 + micro F1) / 2 | SSIM | 1 - MSE | Minutes |
|---|---|---|---|---|---|
{rows(table)}
""")

    for seed in map(int, args.seeds.split(",")):
        scores, minutes = ours(files, seed, args.minutes)
        add("vae.py", seed, scores, minutes)
        for name, make in PEERS.items():
            if "pythae" not in name or importlib.util.find_spec("pythae"):
                add(name, seed, theirs(files, seed, minutes, make), minutes)


if __name__ == "__main__":
    sys.exit(vae.run(main, sys.argv[1:]))
