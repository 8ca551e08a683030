"""vae.py - digits in two dimensions: a variational autoencoder, and a Gaussian mixture that reads its latents.

    python vae.py TRAIN VAL train vae.pth gmm_params.pkl
    python vae.py RECON test_reconstruction vae.pth             writes vae_reconstructed.npz
    python vae.py TEST  test_classifier vae.pth gmm_params.pkl  writes vae.csv

Seeds 0 to 4, 3.5 minutes each on two cores: (macro + micro F1) / 2 0.9912 to 0.9959, SSIM 0.763 to 0.767 on the 3,672
test images (bench/RESULTS.md). What each step gave at half the epochs, means of five seeds (docs/log-vae.md, failures
too): the assignment's loss alone 0.767; a prior over clusters that are learned first, from warped copies, 0.984; from
copies of near images 0.989; the SSIM term lifts SSIM from 0.716 to 0.738.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
import json
import math
import os
import pickle
import random
import sys
import time
import warnings
import zipfile
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

# Read when torch is loaded: a thread waits awake for a thirtieth of GNU OpenMP's usual time, then sleeps. Beside
# another busy program bird.py's steps are several times as fast so (bench/RESULTS.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

PROGRAM, VERSION = "vae", 1
SIDE, PIXELS, LATENT = 28, 28 * 28, 2


@dataclass(frozen=True)
class Config:
    """Every dial of a training; the defaults were chosen on a part of the training digits (docs/log-vae.md)."""

    epochs: int | None = None       # of the latent phase; None: `full_epochs`, or fewer where the budget is short
    budget: float = 50.0            # minutes of wall clock that the training may take; no bound if `epochs` is given
    seed: int = 0
    full_epochs: int = 64           # of the latent phase
    cluster_share: float = 0.125    # epochs of each of the two cluster phases, as a share of the latent phase's
    batch: int = 128                # images a step
    least_steps: int = 64           # steps an epoch at the least; a small set is gone through several times for it
    lr: float = 1e-3                # peak AdamW step size of the latent phase
    cluster_lr: float = 3e-3        # the same of the cluster phases
    weight_decay: float = 1e-2      # AdamW's
    average: float = 0.99           # decay a step of the averaged weights; 0: none
    beta: float = 0.1               # weight of the KL term
    loss: str = "bce"               # "bce" or "mse": the assignment's reconstruction term, summed over pixels
    ssim: float = 100.0             # weight of (1 - SSIM) beside it; 0: the assignment's own loss
    latent_phase: bool = True       # prior: the mixture over the clusters; False: no cluster phase, N(0, I)
    neighbours: int = 5             # the cluster phases compare an image with one of its nearest; 0: with itself
    warping: bool = True            # the first of them warps both
    encoder: str = "mlp"            # "mlp" or "conv": what places an image within its cluster
    heads: int = 5                  # clusterings learned side by side, of which the most certain one is kept
    lookalikes: int = 50            # training images, near each labelled one, that name the mixture's components
    balance: float = 1.5            # weight of the entropies that keep the clusters even (1: plain information)
    separation: float = 2.8         # half the distance of neighbouring centres, in standard deviations
    held_out: float = 0.03          # share of the training images that is only looked at, for the history

    def __post_init__(self) -> None:
        """Stops at the first value that cannot work, naming it."""
        for name, low in {"epochs": 1, "full_epochs": 1, "batch": 2, "least_steps": 1, "heads": 1, "neighbours": 0,
                          "lookalikes": 1, "seed": 0}.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise ValueError(f"--{name} is {value}; it must be at least {low}")
        for name in ("budget", "cluster_share", "lr", "cluster_lr", "separation"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be above 0")
        if self.loss not in ("bce", "mse") or self.encoder not in ("mlp", "conv"):
            raise ValueError(f"loss is {self.loss!r}, encoder {self.encoder!r}; they must be bce or mse, mlp or conv")

    def plain(self) -> Config:
        """The assignment's own method: one phase, reconstruction + KL to N(0, I)."""
        return replace(self, latent_phase=False, ssim=0.0, beta=1.0)


# ---------------------------------------------------------------- twins: the same in bird.py, held equal by a test


class Mistake(Exception):
    """A user's mistake: one sentence that names the file and the mend. `main` prints it and exits with status 2."""


def seed_everything(seed: int) -> None:
    """Seeds every generator in use and asks for kernels that give the same bits on every run."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")   # cuBLAS is deterministic only with this
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, mends nothing
    torch.backends.cudnn.benchmark = False


def pick_device(name: str | None) -> torch.device:
    """The device asked for, or the best one here. Mistake if this machine does not have it."""
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = name or next(n for n in ("cuda", "mps", "cpu") if here[n])
    if not here[name]:
        raise Mistake(f"--device {name}: this machine has no {name} device that torch can use; leave the option out.")
    return torch.device(name)


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: an earlier file stays as it was until the new one is on the disk.

    Raises Mistake where the disk is full or the folder cannot be written.
    """
    part = path.with_name(f"{path.name}.part")   # same folder, so that the rename stays on one disk
    try:
        with open(part, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):       # the part may never have come into being
            part.unlink()
        raise Mistake(f"{path} cannot be written ({error.strerror}); free some space or name another place. "
                      "What was saved before is untouched.") from error


def check_writable(path: Path) -> None:
    """Raises Mistake now rather than after the training if `path` will not be writable; changes nothing."""
    folder = path.parent
    if path.is_dir():
        raise Mistake(f"{path} is a folder; name a file to write.")
    if not folder.is_dir():
        raise Mistake(f"{folder} does not exist, so {path.name} cannot be written there; create the folder first.")
    write_atomic(path.with_name(f"{path.name}.probe"), b"")
    path.with_name(f"{path.name}.probe").unlink()


def save_atomic(path: Path, state: dict) -> None:
    """`torch.save`, whole or not at all; serialised in memory first, so that a full disk shows as an OSError."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: Path, program: str) -> dict:
    """The state_dict that `program` saved at `path` (safe loading: tensors and plain values only).

    Raises Mistake for a file that is missing, broken, or another program's.
    """
    try:
        with warnings.catch_warnings(action="ignore"):     # of torch, on odd pickles
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Mistake(f"{path} cannot be read ({error.strerror}); name the model file that `train` wrote.") from error
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError,
            pickle.UnpicklingError) as error:    # all that torch.load raises on bytes which are no model
        raise Mistake(f"{path} is not a whole model file of PyTorch; copy it anew or train again.") from error
    extra = state.get("_extra_state") if isinstance(state, dict) else None
    found = extra.get("program") if isinstance(extra, dict) else None
    if found != program:
        raise Mistake(f"{path} is not a model of {program}.py but of {f'{found}.py' if found else 'something else'}; "
                      f"name the file that `{program}.py ... train` wrote.")
    return state


def write_history(path: Path, rows: list[dict]) -> None:
    """One JSON line an epoch; rewritten whole, so that a resumed run leaves no line twice."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def coarse_epochs(fit: float, least: int = 1, most: int = 100_000) -> int:
    """The largest of 1 to 12, 14, 16, ... 22, 24, 28, 32, ... 44, 48, 56, ... that is at most `fit`, in [least, most].

    Coarse on purpose: timing noise seldom changes the plan, so the same command mostly gives the same model.
    """
    ladder = [1, 2, 3, 4, 5, *(step << k for k in range(15) for step in (6, 7, 8, 9, 10, 11))]
    return min(max([e for e in ladder if e <= fit], default=least), most) if fit >= least else least


def run(main, argv: list[str]) -> int:
    """Calls `main(argv)`; a user's mistake and Ctrl-C become one sentence on stderr and a status, 2 and 130."""
    try:
        main(argv)
        return 0
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nstopped. {stop}", file=sys.stderr)
        return 130


# ---------------------------------------------------------------- images in, whatever their form


class DigitDataset(Dataset):
    """Images (N, 28, 28), float32 in 0..1, and labels (N,) or None, from a .npz or .npy file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        arrays = open_arrays(self.path)
        labels = next((arrays.pop(name) for name in ("labels", "label", "y") if name in arrays), None)
        alike = (a for a in arrays.values() if a.ndim and PIXELS in (a.size, a[:1].size))
        images = arrays.get("data", next(alike, None))
        if images is None:
            shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items()) or "only labels"
            raise Mistake(f"{path} holds no images ({shapes}); expected an array `data` of N x 28 x 28.")
        self.images = torch.from_numpy(to_unit(self.path, images))
        self.labels = None if labels is None else torch.from_numpy(to_digits(self.path, labels, len(self.images)))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i):
        """The image (or, for a slice or an index tensor, the images) and the label, -1 where it is unknown."""
        image = self.images[i]
        return image, (torch.full(image.shape[:-2], -1) if self.labels is None else self.labels[i])

    def examples(self) -> Tensor:
        """The labels, where they are to name the digits: 2 to 10 of them."""
        if self.labels is None:
            raise Mistake(f"{self.path} has no labels; VAL names the digits, so give it an array `labels`.")
        if not 2 <= (n := len(self.labels.unique())) <= 10:
            raise Mistake(f"{self.path} shows {n} digit{'s' * (n > 1)}; give a few images of each of 2 to 10 digits.")
        return self.labels


def open_arrays(path: Path) -> dict[str, np.ndarray]:
    """The file's arrays by name, never unpickling anything."""
    if path.is_dir():
        raise Mistake(f"{path} is a folder; name the .npz or .npy file with the digits.")
    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            return {"data": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except OSError as error:
        raise Mistake(f"{path} cannot be read ({error.strerror or 'no array file'}); "
                      "name the .npz or .npy file with the digits.") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise Mistake(f"{path} is broken or holds something other than plain arrays of numbers; "
                      "write it anew with numpy.savez(path, data=images, labels=labels).") from error


def to_unit(path: Path, a: np.ndarray) -> np.ndarray:
    """Any of the accepted shapes and ranges -> float32 (N, 28, 28) in 0..1; Mistake for all others."""
    one = ((SIDE, SIDE), (PIXELS,))
    if a.size == 0:
        raise Mistake(f"{path} holds no image at all (its array is {a.shape}); give at least one.")
    if a.shape not in one and a.shape[1:] not in (*one, (1, SIDE, SIDE), (SIDE, SIDE, 1)):
        raise Mistake(f"{path} holds an array of shape {a.shape}; expected N x 28 x 28 (or N x 784).")
    if a.dtype.kind not in "buif":
        raise Mistake(f"{path} holds values of type {a.dtype}; expected numbers (uint8 0-255, or floats 0-1).")
    low, high = float(a.min()), float(a.max())       # NaN spreads to both
    if not 0 <= low <= high <= 255:
        raise Mistake(f"{path} holds values from {low:g} to {high:g}; images must lie in 0-255 or 0-1.")
    if a.dtype.kind == "f" and high > 1:
        print(f"note: {path} holds floats up to {high:g}, read as 0-255.", file=sys.stderr)
    top = 255 if a.dtype.kind in "ui" or high > 1 else 1
    return np.ascontiguousarray(a.reshape(-1, SIDE, SIDE), np.float32) / top


def to_digits(path: Path, labels: np.ndarray, n: int) -> np.ndarray:
    """Labels as int64 (n,); Mistake if they are no whole numbers or not one an image."""
    if labels.size != n:
        raise Mistake(f"{path} holds {n} images but {labels.size} labels; give one label an image.")
    if labels.dtype.kind not in "uif" or not np.array_equal(labels, np.trunc(labels).clip(0, 1e6)):
        raise Mistake(f"{path} holds labels that are no whole numbers; give the digits themselves (1, 4, 8).")
    return labels.reshape(n).astype(np.int64)


# ---------------------------------------------------------------- the model


def conv_trunk(width: int) -> nn.Sequential:
    """(B, 784) -> (B, 8 width): three convolutions, 28 -> 14 -> 7 pixels a side, and a linear layer."""
    def layer(c_in: int, c_out: int, kernel: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)), *layer(1, width, 5, 2), *layer(width, 2 * width, 3, 2),
        *layer(2 * width, 4 * width, 3, 1), nn.Flatten(), nn.Linear(49 * 4 * width, 8 * width, bias=False),
        nn.BatchNorm1d(8 * width), nn.ReLU())


class Residual(nn.Module):
    """x + silu(linear(norm(x))), the block of the decoder."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return x + F.silu(self.linear(self.norm(x)))


class VAE(nn.Module):
    """x (N, 28, 28) in 0..1 -> z (N, 2) -> x_hat (N, 28, 28) in 0..1.

    The latent mean is the centre of the image's cluster and an offset: mu(x) = sum_c q(c|x) m_c + s o(x).
    `clusters=0` is the assignment's plain VAE: mu = o, prior N(0, I).
    """

    head: Tensor
    centres: Tensor
    spread: Tensor

    def __init__(self, clusters: int = 3, heads: int = 5, encoder: str = "mlp", separation: float = 2.8):
        super().__init__()
        self.shape = {"clusters": clusters, "heads": heads, "encoder": encoder, "separation": separation}
        if clusters:
            self.clusterer = nn.Sequential(conv_trunk(16), nn.Linear(128, heads * clusters))
            self.register_buffer("head", torch.tensor(0))      # the clustering in use
        centres, spread = ring(clusters, separation)
        self.register_buffer("centres", centres)               # (C, 2) prior means, C = max(clusters, 1)
        self.register_buffer("spread", spread)                 # (2,) prior standard deviations, the same in each
        mlp = (nn.Linear(PIXELS, 512), nn.SiLU(), nn.Linear(512, 512), nn.SiLU(), nn.Linear(512, 512), nn.SiLU())
        self.encoder = nn.Sequential(*(mlp if encoder == "mlp" else (conv_trunk(16), nn.Linear(128, 512), nn.SiLU())),
                                     nn.Linear(512, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, 512), nn.SiLU(), *(Residual(512) for _ in range(5)),
                                     nn.Linear(512, PIXELS))

    def clusterings(self, x: Tensor) -> Tensor:
        """(N, 28, 28) -> (N, heads, C): the probability of each cluster, in each of the clusterings."""
        return self.clusterer(x.flatten(1)).unflatten(1, (self.shape["heads"], -1)).softmax(dim=2)

    def clusters(self, x: Tensor) -> Tensor:
        """(N, 28, 28) -> (N, C) q(c|x) of the clustering in use; all ones where there is but one cluster."""
        return self.clusterings(x)[:, int(self.head)] if self.shape["clusters"] else x.new_ones(len(x), 1)

    def place(self, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (N, 2) of q(z|x), given q(c|x)."""
        offset, logvar = self.encoder(x.flatten(1)).chunk(2, dim=1)
        return q @ self.centres + self.spread * offset, logvar.clamp(-10, 4)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 28, 28) or (N, 784) -> mu, logvar, both (N, 2)."""
        x = x.reshape(-1, SIDE, SIDE)
        return self.place(x, self.clusters(x))

    def decode(self, z: Tensor) -> Tensor:
        """(N, 2) -> (N, 28, 28) in 0..1."""
        return self.decoder(z).sigmoid().unflatten(1, (SIDE, SIDE))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat, mu, logvar; z is sampled while training, the mean otherwise."""
        mu, logvar = self.encode(x)
        return self.decode(sample(mu, logvar) if self.training else mu), mu, logvar

    def get_extra_state(self) -> dict:
        """Rides in the state_dict: what is needed to build this very model again."""
        return {"program": PROGRAM, "version": VERSION, **self.shape}

    def set_extra_state(self, extra: dict) -> None:
        """Refuses another program's model."""
        if extra.get("program") != PROGRAM:
            raise ValueError(f"this is a model of {extra.get('program')}, not of {PROGRAM}")

    def load_state_dict(self, state_dict, *args, **kwargs):
        """As always, but the model first takes on the shape (number of clusters, encoder) of what it loads."""
        extra = state_dict.get("_extra_state", {})
        shape = {name: extra.get(name, value) for name, value in self.shape.items()}
        if shape != self.shape:
            self.__init__(**shape)   # type: ignore[misc]
        return super().load_state_dict(state_dict, *args, **kwargs)


def ring(k: int, separation: float) -> tuple[Tensor, Tensor]:
    """k centres on a circle (k, 2) and their common spread (2,), so that the mixture has mean 0, covariance I.

    Neighbouring centres lie 2 * separation standard deviations apart. k < 2: one centre, N(0, I).
    """
    if k < 2:
        return torch.zeros(1, LATENT), torch.ones(LATENT)
    half = math.sin(math.pi / k)                                     # half the neighbours' distance at radius 1
    radius = separation / math.sqrt(half**2 + separation**2 * (1.0 if k == 2 else 0.5))
    angle = 2 * math.pi * torch.arange(k) / k
    centres = radius * torch.stack((angle.cos(), angle.sin()), dim=1)
    return centres, (1 - centres.square().mean(dim=0)).sqrt()


def sample(mu: Tensor, logvar: Tensor, g: torch.Generator | None = None) -> Tensor:
    """z = mu + sigma * eps, eps ~ N(0, I): differentiable in mu and sigma (Kingma and Welling 2014)."""
    eps = torch.randn(mu.shape, generator=g).to(mu.device)           # drawn on the CPU: the same on any device
    return mu + (0.5 * logvar).exp() * eps


# ---------------------------------------------------------------- the losses


def elbo_terms(x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor, loss: str = "bce",
               prior: tuple[Tensor, Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Reconstruction and KL, each summed over its dimensions and averaged over the images (nats, for bce).

    `prior` is None for N(0, I), or (q (N, C), centres (C, 2), spread (2,)) for the mixture of VaDE
    (Jiang et al. 2017, eq. 8): KL = sum_c q(c|x) KL(q(z|x) || N(m_c, s^2)). Its term in q alone is a constant here.
    """
    x, x_hat = x.flatten(1), x_hat.flatten(1)                                                    # (N, 784)
    error = F.binary_cross_entropy(x_hat, x, reduction="none") if loss == "bce" else (x_hat - x).square()
    if prior is None:
        return error.sum(dim=1).mean(), kl_term(mu, logvar).mean()
    q, centres, spread = prior
    return error.sum(dim=1).mean(), (q * kl_term(mu[:, None], logvar[:, None], centres, spread)).sum(dim=1).mean()


def kl_term(mu: Tensor, logvar: Tensor, mean: Tensor | float = 0.0, spread: Tensor | float = 1.0) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(mean, spread^2)), diagonal, summed over the latents (Kingma and Welling, App. B)."""
    log_var = 2 * torch.as_tensor(spread).to(mu).log()
    return 0.5 * (((mu - mean).square() + logvar.exp()) / log_var.exp() - 1 - logvar + log_var).sum(dim=-1)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (N,) of images (N, 28, 28) in 0..1 (Wang et al. 2004), as scikit-image computes it:
    7 x 7 windows that fit wholly inside, unweighted, sample covariances."""
    n, c1, c2 = 7, 0.01**2, 0.03**2
    slide = torch.eye(SIDE).to(x).unfold(0, n, 1).mean(dim=2)                                    # (22, 28)
    mean_x, mean_y, xx, yy, xy = (slide @ a @ slide.T for a in (x, y, x * x, y * y, x * y))      # (N, 22, 22)
    var_x, var_y, cov = (n**2 / (n**2 - 1) * v for v in (xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y))
    return ((2 * mean_x * mean_y + c1) * (2 * cov + c2)
            / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(dim=(1, 2))


def information(p: Tensor, q: Tensor, balance: float = 1.0) -> Tensor:
    """Mutual information, in nats, of the clusters of paired images, for each clustering: p, q (N, H, C) -> (H,).

    IIC (Ji, Henriques, Vedaldi 2019, eq. 3); `balance` above 1 weights the marginal entropies, against empty clusters.
    """
    joint = torch.einsum("nhc,nhd->hcd", p, q) / len(p)
    joint = ((joint + joint.mT) / 2).clamp_min(1e-8)
    marginal = joint.sum(dim=2)
    return (joint * joint.log()).sum(dim=(1, 2)) - 2 * balance * (marginal * marginal.log()).sum(dim=1)


def nearest(x: Tensor, k: int) -> Tensor:
    """(N, 28, 28) -> (N, k): the indices of the k nearest other images, pixel by pixel; the image's own for k = 0."""
    own, flat = torch.arange(len(x), device=x.device)[:, None], x.flatten(1) - x.flatten(1).mean(dim=0)
    square, found = flat.square().sum(dim=1), []
    for rows in own.split(1024) if k else ():
        distance = square - 2 * flat[rows[:, 0]] @ flat.T
        found.append(distance.scatter(1, rows, math.inf).topk(min(k, len(x) - 1), largest=False).indices)
    return torch.cat(found) if k else own


def lookalikes(x: Tensor, images: Tensor, k: int) -> Tensor:
    """x (V, 28, 28), images (N, 28, 28) -> (V, k): the indices of the k images nearest to each x, pixel by pixel.

    No more than a fortieth of all images, that is a quarter of a class where there are ten.
    """
    flat, k = images.flatten(1), min(k, max(1, len(images) // 40))
    return torch.cat([torch.cdist(part.flatten(1), flat).topk(k, largest=False).indices for part in x.split(256)])


def warp(x: Tensor, g: torch.Generator) -> Tensor:
    """(N, 28, 28): each image turned, scaled, sheared, shifted and bent by random amounts that keep its digit."""
    n, u = len(x), lambda *shape: 2 * torch.rand(*shape, generator=g) - 1
    turn, (sx, sy), shear = u(n) * math.radians(25), (u(2, n) * 0.2).exp(), u(n) * 0.3
    cos, sin, zero = turn.cos(), turn.sin(), torch.zeros(n)
    rotate = torch.stack((cos, -sin, sin, cos), dim=1).view(n, 2, 2)
    scale = torch.stack((sx, shear * sx, zero, sy), dim=1).view(n, 2, 2)
    affine = torch.cat((rotate @ scale, u(n, 2, 1) * 2.5 * 2 / SIDE), dim=2)                     # shift in pixels
    grid = F.affine_grid(affine, [n, 1, SIDE, SIDE], align_corners=False)                        # (n, 28, 28, 2)
    bend = torch.randn(n, 2, 5, 5, generator=g) * 1.5 * 2 / SIDE
    grid = grid + F.interpolate(bend, size=SIDE, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return F.grid_sample(x[:, None], grid.to(x.device), align_corners=False)[:, 0]

# ---------------------------------------------------------------- the mixture


@dataclass
class Mixture:
    """p(z) = sum_k weights_k N(z | means_k, covariances_k), fitted by EM; float64 throughout.

    `digits` names the components. What the M-step needs are sums over the points: under torchrun each process
    holds its share of the points and the sums are added up.
    """

    weights: Tensor                  # (K,)
    means: Tensor                    # (K, D)
    covariances: Tensor              # (K, D, D)
    digits: list[int] | None = None

    @classmethod
    def start(cls, z: Tensor, means: Tensor, floor: float | None = None) -> Mixture:
        """One component for the points of z (N, D) that lie nearest to each of `means` (K, D)."""
        z, means = z.double(), means.double()
        k, dims = means.shape
        r = F.one_hot(torch.cdist(z, means).argmin(dim=1), k).T.to(z)                            # (K, N)
        sums = [add_up(s) for s in weighted_sums(r, z.T - means[:, :, None])]
        blank = cls(torch.full_like(means[:, 0], 1 / k), means, torch.eye(dims).to(z).repeat(k, 1, 1))
        return blank.m_step(sums, relative_floor(z) if floor is None else floor)

    def log_joint(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (n, D) -> log weights_k + log N(z | k), (K, n); and the differences z - means_k, (K, D, n)."""
        d = z.T.contiguous() - self.means[:, :, None]
        chol = torch.linalg.cholesky(self.covariances)
        white = torch.linalg.solve_triangular(chol, torch.eye(z.shape[1]).to(z).expand_as(chol), upper=False) @ d
        log_det = 2 * chol.diagonal(dim1=1, dim2=2).log().sum(dim=1)                             # (K,)
        constant = self.weights.log() - 0.5 * (log_det + z.shape[1] * math.log(2 * math.pi))
        return constant[:, None] - 0.5 * white.square().sum(dim=1), d

    def e_step(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (n, D) -> responsibilities (K, n), columns summing to 1; log p(z) (n,); z - means_k (K, D, n)."""
        log_p, d = self.log_joint(z)
        log_px = torch.logsumexp(log_p, dim=0)
        return (log_p - log_px).exp(), log_px, d

    def m_step(self, sums: list[Tensor], floor: float) -> Mixture:
        """The mixture of highest expected likelihood, from `weighted_sums` about the present means.

        Centred before squaring: E[zz'] - mm' would cancel. `floor` is added to each variance. A component that
        no point belongs to takes half of the heaviest one.
        """
        count, first, second = sums
        n = count.clamp_min(1e-300)[:, None]
        shift = first / n                                                                        # (K, D)
        covariances = second / n[:, None] - shift[:, :, None] * shift[:, None, :]
        covariances = (covariances + covariances.mT) / 2 + floor * torch.eye(shift.shape[1]).to(shift)
        new = Mixture(count / count.sum(), self.means + shift, covariances, self.digits)
        dead = (count < 1e-3) | (torch.linalg.cholesky_ex(covariances).info != 0)
        for k in dead.nonzero().flatten().tolist():
            new.split_heaviest(into=k, dead=dead)
        return new

    def split_heaviest(self, into: int, dead: Tensor) -> None:
        """Cuts the heaviest living component across its longest axis and gives one half to a dead one."""
        heavy = int(self.weights.masked_fill(dead, -1).argmax())
        variance, axes = torch.linalg.eigh(self.covariances[heavy])
        half = 0.5 * variance[-1].clamp_min(0).sqrt() * axes[:, -1]
        self.covariances[into] = self.covariances[heavy]
        self.means[into], self.means[heavy] = self.means[heavy] + half, self.means[heavy] - half
        self.weights[into] = self.weights[heavy] = (self.weights[heavy] + self.weights[into]) / 2

    def sweep(self, z: Tensor, chunk: int = 8192) -> tuple[list[Tensor], float]:
        """The E-step over all points, a cache-sized chunk at a time: sums for the M-step, and log p(z) a point."""
        k, dims = self.means.shape
        sums = [z.new_zeros(size) for size in ((k,), (k, dims), (k, dims, dims), (1,))]
        for part in z.split(chunk):
            r, log_px, d = self.e_step(part)
            for total, share in zip(sums, (*weighted_sums(r, d), log_px.sum()), strict=True):
                total += share
        *sums, log_likelihood = (add_up(total) for total in sums)
        return sums, float(log_likelihood / sums[0].sum())

    def fit(self, z: Tensor, tol: float = 1e-6, most: int = 500, floor: float | None = None) -> Mixture:
        """EM from this mixture on, until log p(z) a point moves by less than `tol`."""
        z = z.double()
        floor = relative_floor(z) if floor is None else floor
        mixture, before = self, -math.inf
        for _ in range(most):
            sums, score = mixture.sweep(z)
            mixture = mixture.m_step(sums, floor)
            if abs(score - before) < tol:
                break
            before = score
        return mixture

    def score(self, z: Tensor) -> float:
        """log p(z) a point, in nats (above 0 where the points lie close)."""
        return self.sweep(z.double())[1]

    def predict(self, z: Tensor) -> Tensor:
        """z (N, D) -> the likeliest component of each point, (N,)."""
        return torch.cat([self.log_joint(part)[0].argmax(dim=0) for part in z.double().split(8192)])

    def read(self, z: Tensor) -> Tensor:
        """z (N, D) -> the digit of the likeliest component of each point, (N,)."""
        return torch.tensor(self.digits)[self.predict(z)]


def weighted_sums(r: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """r (K, n), d (K, D, n) -> sums over the points of r, r d, r d d': (K,), (K, D), (K, D, D)."""
    rd = r[:, None] * d
    return r.sum(dim=1), rd.sum(dim=2), rd @ d.mT


def relative_floor(z: Tensor) -> float:
    """A millionth of the mean variance of z (N, D): what keeps a covariance invertible, whatever the scale."""
    n = add_up(torch.tensor(float(len(z)), dtype=z.dtype))
    mean = add_up(z.sum(dim=0)) / n
    return max(1e-6 * float((add_up((z - mean).square().sum(dim=0)) / n).mean()), 1e-24)


def add_up(t: Tensor) -> Tensor:
    """The sum of `t` over the processes of torchrun; `t` itself where there is but one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(t)
    return t


def fit_mixture(z: Tensor, near: Tensor, z_val: Tensor, labels: Tensor, centres: Tensor) -> Mixture:
    """EM on z (N, 2), started at the class means of the labelled z_val (V, 2), and also at the prior's centres.

    near (V, k): the training images that look most like each labelled one; they name the components. Of the two, the
    mixture that reads more of the labels right is kept; among equals, the likelier one.
    """
    digits = labels.unique()
    starts = [torch.stack([z_val[labels == digit].mean(dim=0) for digit in digits])]
    if len(centres) == len(digits):
        starts.append(centres)
    fits = [name_components(Mixture.start(z, means).fit(z), z, near, labels) for means in starts]
    return max(fits, key=lambda m: (float((m.read(z_val) == labels).double().mean()), m.score(z)))


def name_components(mixture: Mixture, z: Tensor, near: Tensor, labels: Tensor) -> Mixture:
    """Gives each digit the component that most of the images like its examples lie in, the clearest case first.

    Not the examples themselves vote: one in a few hundred lies in a wrong component, and with one example a digit that
    would swap two names. Sorted by digit.
    """
    digits, r = labels.unique().tolist(), mixture.e_step(z.double())[0]                         # r (K, N)
    votes = torch.stack([r[:, near[labels == digit]].mean(dim=(1, 2)) for digit in digits])     # (K digits, K)
    component = dict.fromkeys(digits, 0)
    for _ in digits:
        row, column = divmod(int(votes.argmax()), len(digits))
        component[digits[row]] = column
        votes[row], votes[:, column] = -1, -1
    order = list(component.values())
    return Mixture(mixture.weights[order], mixture.means[order], mixture.covariances[order], digits)


def save_mixture(path: Path, mixture: Mixture) -> None:
    """A pickle of plain lists, floats, ints and strings: it loads anywhere and can run nothing."""
    plain = {"program": PROGRAM, "version": VERSION, "weights": mixture.weights.tolist(),
             "means": mixture.means.tolist(), "covariances": mixture.covariances.tolist(), "digits": mixture.digits}
    write_atomic(path, pickle.dumps(plain, protocol=4))


class PlainUnpickler(pickle.Unpickler):
    """Loads plain values and NumPy arrays (other people's files hold them); every other name is refused."""

    names = ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer", "encode")
    modules = ("numpy", "numpy._core.multiarray", "numpy.core.multiarray", "numpy._core.numeric",
               "numpy.core.numeric", "_codecs")

    def find_class(self, module: str, name: str):
        """The object of that name, if the list has it."""
        if module in self.modules and name in self.names:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise Mistake(f"refused: the file asks for {module}.{name}, and a mixture needs no code; nothing was run. "
                      "Use the file that `vae.py ... train` wrote.")


def load_mixture(path: str | Path) -> Mixture:
    """The mixture that `train` saved, read without running anything that the file may ask for."""
    try:
        found = PlainUnpickler(io.BytesIO(Path(path).read_bytes())).load()
        weights, means, covariances = (torch.from_numpy(np.array(found[name], np.float64))
                                       for name in ("weights", "means", "covariances"))
        mixture, k = Mixture(weights, means, covariances, [int(digit) for digit in found["digits"]]), len(means)
        shapes = (weights.shape, means.shape, covariances.shape, len(found["digits"]))
        if shapes != ((k,), (k, LATENT), (k, LATENT, LATENT), k) or not math.isfinite(mixture.score(means)):
            raise ValueError("shapes or values that belong to no mixture")
    except Mistake as mistake:
        raise Mistake(f"{path}: {mistake}") from None
    except OSError as error:
        raise Mistake(f"{path} cannot be read ({error.strerror}); name the file that `train` wrote.") from error
    except Exception as error:     # a broken pickle raises anything at all
        raise Mistake(f"{path} is not a whole mixture; copy gmm_params.pkl anew or train again.") from error
    return mixture


# ---------------------------------------------------------------- training


@dataclass
class Run:
    """All that a training is at one moment; everything but the images goes into the resume file."""

    net: VAE
    config: Config
    images: Tensor                   # (N, 28, 28) trained on
    held: Tensor                     # (M, 28, 28) only looked at
    near: Tensor                     # (N, neighbours) indices of the images that lie near each
    key: str                         # fingerprint of the data and the settings
    placers: list[nn.Parameter]      # weights of encoder and decoder
    average: list[Tensor]            # the same, averaged over the steps
    optimisers: dict[str, torch.optim.Optimizer]      # one a phase
    plan: dict[str, int]             # epochs of each phase
    rows: list[dict]                 # the history, one an epoch
    elapsed: float = 0.0             # seconds, over all the sittings
    agreement: float = -math.inf     # the most that the clusters of near images ever agreed, in nats
    best: dict = field(default_factory=dict)          # the clusterer's state then

    def state(self) -> dict:
        """What the resume file holds."""
        return {"key": self.key, "net": self.net.state_dict(), "average": self.average, "plan": self.plan,
                "optimisers": {phase: o.state_dict() for phase, o in self.optimisers.items()},
                "rows": self.rows, "elapsed": self.elapsed, "agreement": self.agreement, "best": self.best}

    def take_up(self, kept: Path) -> bool:
        """Goes on from the resume file if that is of the very same data and settings."""
        try:
            state = torch.load(kept, map_location="cpu", weights_only=True)
            if state["key"] != self.key:
                print(f"{kept} is of other data or other settings: starting anew")
                return False
            self.net.load_state_dict(state["net"])
            for mine, saved in zip(self.average, state["average"], strict=True):
                mine.copy_(saved)
            for phase, saved in state["optimisers"].items():
                self.optimisers[phase].load_state_dict(saved)
            for name in ("plan", "rows", "elapsed", "agreement", "best"):
                setattr(self, name, state[name])
        except FileNotFoundError:
            return False
        except Exception:     # half a file, or another program's: whatever is wrong with it, it cannot be used
            print(f"{kept} cannot be read: starting anew")
            return False
        print(f"going on after epoch {len(self.rows)}, from {kept}")
        return True


def train(train_path: str | Path, val_path: str | Path, model_path: str | Path, gmm_path: str | Path,
          config: Config = Config(), device: str | None = None, resume: bool = True) -> Mixture:
    """Trains the VAE on TRAIN without its labels, fits the mixture, saves both."""
    began, model_path, gmm_path = time.monotonic(), Path(model_path), Path(gmm_path)
    check_writable(model_path)
    check_writable(gmm_path)
    data, val = DigitDataset(train_path), DigitDataset(val_path)
    labels = val.examples()
    if len(data) < 20:
        raise Mistake(f"{train_path} holds {len(data)} images; give at least 20 to train on.")
    if data.labels is not None and (missing := set(data.labels.tolist()) - set(labels.tolist())):
        raise Mistake(f"{val_path} lacks the digit {min(missing)}, which {train_path} holds; "
                      "give a few images of each digit.")     # the only look at TRAIN's labels
    run = prepare(data, val, config, pick_device(device))
    history, kept = (model_path.with_name(f"{model_path.stem}.{end}") for end in ("history.jsonl", "resume.pt"))
    print(f"VAE of {sum(p.numel() for p in run.net.parameters()):,} parameters, {len(data)} images, digits "
          f"{', '.join(map(str, labels.unique().tolist()))}")
    try:
        if not (resume and run.take_up(kept)):
            run.plan = make_plan(run, began)
        print(f"plan: {' + '.join(f'{n} epochs of {phase}' for phase, n in run.plan.items())}; "
              f"`--epochs {run.plan['latents']}` repeats it", flush=True)
        run_epochs(run, began - run.elapsed, history, kept)
    except KeyboardInterrupt:
        where = f"The training so far is kept in {kept}" if kept.exists() else "Nothing was trained yet"
        raise KeyboardInterrupt(f"{where}; give the same command to go on.") from None
    net = run.net.eval()
    for mine, averaged in zip(run.placers, run.average, strict=True):
        mine.data.copy_(averaged)
    if config.latent_phase:
        standardise(net, latent_means(net, data.images))
    z, z_val = latent_means(net, data.images), latent_means(net, val.images)
    near = lookalikes(val.images, data.images, config.lookalikes)
    mixture = fit_mixture(z, near, z_val, labels, net.centres.cpu())
    save_atomic(model_path, net.cpu().state_dict())
    save_mixture(gmm_path, mixture)
    kept.unlink(missing_ok=True)
    active = int((z.var(dim=0) > 0.01).sum())        # Burda et al. 2016: a unit is active if its mean moves
    print(f"active units {active} of {LATENT}; mixture {mixture.score(z):.3f} nats a point, reads "
          f"{int((mixture.read(z_val) == labels).sum())} of the {len(labels)} images of VAL right")
    print(f"{model_path} and {gmm_path} written after {(run.elapsed or time.monotonic() - began) / 60:.1f} minutes")
    return mixture


@torch.no_grad()
def standardise(net: VAE, z: Tensor) -> None:
    """Folds into the weights the shift and scale after which the latent means z have mean 0 and variance 1."""
    mean, scale = z.mean(dim=0).to(net.centres), z.std(dim=0).to(net.centres)
    encoder, decoder = net.encoder.state_dict(), net.decoder.state_dict()      # the very tensors, by name
    list(encoder.values())[-1][LATENT:] -= 2 * scale.log()                     # log-variance of what is scaled
    decoder["0.bias"] += decoder["0.weight"] @ mean                            # the decoder undoes it
    decoder["0.weight"] *= scale
    net.centres.sub_(mean).div_(scale)
    net.spread.div_(scale)


def prepare(data: DigitDataset, val: DigitDataset, config: Config, device: torch.device) -> Run:
    """A run at its very start, the same for the same seed."""
    seed_everything(config.seed)
    k = len(val.examples().unique()) if config.latent_phase else 0
    net = VAE(k, config.heads, config.encoder, config.separation).to(device)
    order = torch.randperm(len(data), generator=generator(config.seed, "split"))
    held, fit = order.split([n := max(2, int(config.held_out * len(data))), len(data) - n])
    seen = hashlib.sha256(repr((asdict(config), torch.__version__, str(device), VERSION)).encode())
    for tensor in (data.images, val.images, val.examples()):
        seen.update(tensor.numpy().tobytes())
    placers = [*net.encoder.parameters(), *net.decoder.parameters()]
    phases = {phase: list(net.clusterer.parameters()) for phase in ("clusters", "neighbours") if k}
    optimisers: dict[str, torch.optim.Optimizer] = {
        phase: torch.optim.AdamW(weights, weight_decay=config.weight_decay)
        for phase, weights in {**phases, "latents": placers}.items()}
    images = data.images[fit].to(device)
    near = nearest(images, config.neighbours if k else 0)
    return Run(net, config, images, data.images[held].to(device), near, seen.hexdigest(), placers,
               [p.detach().clone() for p in placers], optimisers, {}, [])


def generator(*what) -> torch.Generator:
    """A generator of its own for each (seed, phase, epoch): no draw depends on what was drawn before."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:7], "big"))


def make_plan(run: Run, began: float) -> dict[str, int]:
    """Epochs of each phase: those asked for, or as many as the budget has room for, timed on the first steps."""
    config, epochs = run.config, run.config.epochs
    share = {phase: 1.0 if phase == "latents" else config.cluster_share for phase in run.optimisers}
    if epochs is None:
        trial, cost = copy.deepcopy(run, {id(run.images): run.images}), 0.0
        steps = len(batches(len(run.images), config, generator()))
        for phase in run.optimisers:
            trial.plan = {phase: 1}
            run_epoch(trial, phase, 0, steps=2)      # the first ones are slower
            short, long = (timed(run_epoch, trial, phase, 0, steps=n) for n in (2, 10))
            cost += share[phase] * (short + max(steps - 2, 0) * max(long - short, 0) / 8)
        left = seconds_allowed(config) - time.monotonic() + began
        epochs = coarse_epochs(left / cost, 1, config.full_epochs)
    return {phase: math.ceil(share[phase] * epochs) for phase in run.optimisers}


def timed(function, *args, **kwargs) -> float:
    """Seconds that a call takes."""
    start = time.monotonic()
    function(*args, **kwargs)
    return time.monotonic() - start


def seconds_allowed(config: Config) -> float:
    """What the epochs may take of the budget, leaving some of it for the start, the mixture and the saving."""
    return max(0.5 * 60 * config.budget, 0.95 * 60 * config.budget - 8)


def run_epochs(run: Run, began: float, history: Path, kept: Path) -> None:
    """The epochs still to do, phase by phase; the run is saved after each, but not within 2 seconds of a save."""
    config, done, saved = run.config, len(run.rows), time.monotonic()
    todo = [(phase, e) for phase, n in run.plan.items() for e in range(n)]
    with tqdm(total=len(todo), initial=done, unit="epoch", disable=None) as bar:
        for phase, epoch in todo[done:]:
            allowed = seconds_allowed(config) * (1.0 if phase == "latents" else 0.4)
            deadline = began + allowed if config.epochs is None else math.inf
            if time.monotonic() > deadline:
                continue
            start = time.monotonic()
            row = {"epoch": len(run.rows) + 1, "phase": phase, **run_epoch(run, phase, epoch, deadline)}
            if not all(math.isfinite(value) for value in row.values() if isinstance(value, float)):
                raise Mistake(f"the loss is no longer finite in epoch {row['epoch']}; the state before it is kept in "
                              f"{kept}. Look at the images, or give another --seed.")
            run.rows.append({**row, "seconds": round(time.monotonic() - start, 3)})
            run.elapsed = time.monotonic() - began
            if time.monotonic() > saved + 2 or len(run.rows) == len(todo):     # epochs of small sets are short
                save_atomic(kept, run.state())
                write_history(history, run.rows)
                saved = time.monotonic()
            note = ", ".join(f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, float))
            bar.set_postfix_str(note)
            bar.update()
            if bar.disable:
                print(f"epoch {row['epoch']} of {len(todo)}, {phase}: {note}", flush=True)
    if len(run.rows) < len(todo):
        write_history(history, run.rows)
        print(f"the budget of {config.budget:g} minutes ended the training early, after epoch {len(run.rows)}")


def run_epoch(run: Run, phase: str, epoch: int, deadline: float = math.inf, steps: int | None = None) -> dict:
    """One pass over the training images; the means of the loss's parts, on them and on the held-out images."""
    config, net, optimiser, g = run.config, run.net, run.optimisers[phase], generator(run.config.seed, phase, epoch)
    peak = config.lr if phase == "latents" else config.cluster_lr
    if phase == "latents" and run.best:
        net.clusterer.load_state_dict(run.best)
    q = cluster_all(net, run.images) if phase == "latents" else torch.empty(len(run.images), 0)
    order = batches(len(q), config, g)
    sums: dict[str, Tensor] = {}
    for step, index in enumerate(order[:steps], start=epoch * len(order)):
        jolts = 1 - 0.95 * (step / (2 * len(order)) % 1)       # down in two epochs, and up at once
        lr = peak * (jolts if phase == "neighbours" else one_cycle(step / (run.plan[phase] * len(order))))
        optimiser.param_groups[0]["lr"] = lr
        net.train()
        mate = torch.randint(run.near.shape[1], index.shape, generator=g)
        given = q[index] if phase == "latents" else run.images[run.near[index, mate]]
        loss, parts = loss_of(phase, net, run.images[index], given, config, g)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 50.0)
        optimiser.step()
        if phase == "latents":       # early on the average forgets faster, or it would hold the random start
            decay = min(config.average, (1 + step) / (10 + step))
            torch._foreach_lerp_(run.average, [p.data for p in run.placers], 1 - decay)
        sums = {name: sums.get(name, 0) + value.detach() for name, value in parts.items()}
        if time.monotonic() > deadline:
            break
    means = {name: value / (step + 1 - epoch * len(order)) for name, value in sums.items()}
    if phase == "clusters":
        net.head.fill_(means["information"].argmax())
    agreed = {"agreement": keep_best(run)} if phase == "neighbours" else {}
    net.eval()
    with torch.no_grad():
        given = cluster_all(net, run.held) if phase == "latents" else run.held
        _, held = loss_of(phase, net, run.held, given, config, generator(config.seed, "held"))
    both = {**means, **{f"held_{name}": value for name, value in held.items()}}
    return {"lr": lr, **{name: float(value.max()) for name, value in both.items()}, **agreed}


def batches(n: int, config: Config, g: torch.Generator) -> tuple[Tensor, ...]:
    """The indices of an epoch's steps: every image once, shuffled; several times over where there are few."""
    size = min(config.batch, n)
    times = math.ceil(config.least_steps * size / n)
    return torch.cat([torch.randperm(n, generator=g) for _ in range(times)]).tensor_split(times * n // size)


def keep_best(run: Run) -> float:
    """How well the clusters of near images agree, in nats; remembers the clusterer for which it is most.

    The jolts of the step size make rare shapes change sides; without a label, this tells which side is right.
    """
    q = cluster_all(run.net, run.images)[:, None]                                                # (N, 1, C)
    found = sum(float(information(q, q[near], run.config.balance)) for near in run.near.T) / run.near.shape[1]
    if found > run.agreement:
        run.agreement, run.best = found, copy.deepcopy(run.net.clusterer.state_dict())
    return found


def loss_of(phase: str, net: VAE, x: Tensor, given: Tensor, config: Config, g: torch.Generator):
    """The loss of a phase and its parts; `given` is q(c|x) in the latent phase, images near x before it."""
    if phase == "latents":
        return latent_loss(net, x, given, config, g)
    return cluster_loss(net, x, given, config, g, warped=config.warping and phase == "clusters")


def one_cycle(progress: float, rise: float = 0.1) -> float:
    """The step size as a share of its peak: up in a straight line, then down along half a cosine."""
    if progress < rise:
        return 0.02 + 0.98 * progress / rise
    return 0.5 + 0.5 * math.cos(math.pi * (progress - rise) / (1 - rise))


def cluster_loss(net: VAE, x: Tensor, near: Tensor, config: Config, g: torch.Generator,
                 warped: bool) -> tuple[Tensor, dict]:
    """An image and one near it must fall in one cluster, and the clusters be even. No label is used."""
    pair = torch.cat((x, near))
    p, q = net.clusterings(warp(pair, g) if warped else pair).chunk(2)
    return -information(p, q, config.balance).sum(), {"information": information(p, q)}


def latent_loss(net: VAE, x: Tensor, q: Tensor, config: Config, g: torch.Generator) -> tuple[Tensor, dict]:
    """The assignment's loss, with the clusters' mixture as the prior, and (1 - SSIM) beside it."""
    mu, logvar = net.place(x, q)
    x_hat = net.decode(sample(mu, logvar, g))
    prior = (q, net.centres, net.spread) if config.latent_phase else None
    recon, kl = elbo_terms(x, x_hat, mu, logvar, config.loss, prior)
    likeness = ssim(x, x_hat).mean() if config.ssim else torch.ones(())
    loss = recon + config.beta * kl + config.ssim * (1 - likeness)
    return loss, {"loss": loss, "recon": recon, "kl": kl, "ssim": likeness}


@torch.no_grad()
def cluster_all(net: VAE, images: Tensor) -> Tensor:
    """(N, 28, 28) -> (N, C) q(c|x), which the latent phase takes as given."""
    net.eval()
    return torch.cat([net.clusters(part) for part in images.split(1024)])


# ---------------------------------------------------------------- using the model


def load_model(path: str | Path) -> VAE:
    """The model that `train` saved, ready for use."""
    net, state = VAE(), load_state(Path(path), PROGRAM)
    try:
        net.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise Mistake(f"{path} does not fit this version of {PROGRAM}.py; train again.") from error
    return net.eval()


@torch.no_grad()
def latent_means(net: VAE, images: Tensor) -> Tensor:
    """(N, 28, 28) -> (N, 2), on the CPU."""
    device = net.centres.device
    return torch.cat([net.encode(part.to(device))[0] for part in images.split(1024)]).cpu()


def reconstruct(net: VAE, images: Tensor, steps: int = 30, lr: float = 0.03) -> Tensor:
    """(N, 28, 28) -> (N, 28, 28) in 0..1: decoded from a z that a short descent found; the decoder stays as it is.

    The descent starts at the latent mean and at the best of a grid over the plane; the better end is taken. It is Adam
    (Kingma & Ba 2015, algorithm 1), written out: the import behind `torch.optim` takes longer than the descent.
    """
    device, made = net.centres.device, []
    ticks = torch.special.ndtri(torch.linspace(0.005, 0.995, 48))
    grid = torch.cartesian_prod(ticks, ticks).to(device)                                         # (2304, 2)
    with torch.no_grad():
        drawn = net.decode(grid).flatten(1)
    for x in images.to(device).split(256):
        best = torch.cdist(x.flatten(1), drawn).argmin(dim=1)
        z = torch.cat((latent_means(net, x).to(device), grid[best])).requires_grad_()            # (2 n, 2)
        both, first, second = torch.cat((x, x)), torch.zeros_like(z), torch.zeros_like(z)
        for t in range(1, steps + 1):
            (g,) = torch.autograd.grad(unlikeness(both, net.decode(z)).sum(), [z])
            first, second = first.lerp(g, 0.1), second.lerp(g.square(), 0.001)
            with torch.no_grad():
                z -= lr * first / (1 - 0.9**t) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        with torch.no_grad():
            ends = net.decode(z).unflatten(0, (2, -1))                                           # (2, n, 28, 28)
            first_wins = unlikeness(x, ends[0]) <= unlikeness(x, ends[1])
            made.append(torch.where(first_wins[:, None, None], ends[0], ends[1]).cpu())
    return torch.cat(made)


def unlikeness(x: Tensor, x_hat: Tensor) -> Tensor:
    """(N,): what the descent lowers, both of the scores that reconstructions are judged by."""
    return 100 * (1 - ssim(x, x_hat)) + 10 * (x - x_hat).square().sum(dim=(1, 2))


def classify(net: VAE, mixture: Mixture, images: Tensor) -> Tensor:
    """(N, 28, 28) -> the digits (N,): encoder, latent mean, the likeliest component, its digit."""
    return mixture.read(latent_means(net, images))


def scores(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The assignment's scores. Micro F1 is the accuracy (the two differ only for labels that are left out)."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support
    present = np.unique(labels)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=present, average="macro",
                                                               zero_division=0)
    accuracy = float(accuracy_score(labels, predicted))
    return {"(macro F1 + micro F1) / 2": (f1 + accuracy) / 2, "macro F1": f1, "micro F1": accuracy,
            "accuracy": accuracy, "macro precision": precision, "macro recall": recall}


# ---------------------------------------------------------------- the commands


def write_reconstruction(recon: str, model: str, out: Path, device: str | None = None) -> None:
    """RECON, model -> vae_reconstructed.npz."""
    net, images = load_model(model).to(pick_device(device)), DigitDataset(recon).images
    made = reconstruct(net, images)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, data=made.numpy())
    write_atomic(out, buffer.getvalue())
    print(f"{out}: {len(made)} images, 1 - MSE {1 - (made - images).square().mean():.4f}, "
          f"SSIM {ssim(images, made).mean():.4f}")


def write_labels(test: str, model: str, gmm: str, out: Path, device: str | None = None) -> None:
    """TEST, model, mixture -> vae.csv; the scores too where the labels are known."""
    net, mixture, data = load_model(model).to(pick_device(device)), load_mixture(gmm), DigitDataset(test)
    predicted = classify(net, mixture, data.images)
    write_atomic(out, "".join(f"{row}\n" for row in ("Predicted_Label", *predicted.tolist())).encode())
    print(f"{out}: {len(predicted)} labels")
    if data.labels is not None:
        for name, value in scores(data.labels.numpy(), predicted.numpy()).items():
            print(f"  {name:<26}{value:.4f}")


def parse(argv: list[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The words and options of the command line, and the parser that knows the usage."""
    parser = argparse.ArgumentParser(
        prog="vae.py", formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python vae.py TRAIN VAL train MODEL GMM | RECON test_reconstruction MODEL | "
              "TEST test_classifier MODEL GMM  [options]",
        description="A 2-d VAE of the digits and a Gaussian mixture on its latents.\n\n"
        "  python vae.py TRAIN VAL train vae.pth gmm_params.pkl\n"
        "  python vae.py RECON test_reconstruction vae.pth             writes vae_reconstructed.npz\n"
        "  python vae.py TEST  test_classifier vae.pth gmm_params.pkl  writes vae.csv\n\n"
        "TRAIN, VAL, RECON, TEST: .npz (`data`, `labels`) or .npy, images of 28 x 28.")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help="fix the plan: epochs of the latent phase")
    parser.add_argument("--budget", type=float, default=50.0, metavar="MINUTES",
                        help="the training ends within it (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the best one here")
    parser.add_argument("--no-resume", action="store_true", help="start anew even if a killed training is kept")
    parser.add_argument("--plain", action="store_true", help="the assignment's own loss only: no clusters, no SSIM")
    parser.add_argument("--csv", type=Path, default=Path("vae.csv"), metavar="PATH", help="default vae.csv")
    parser.add_argument("--npz", type=Path, default=Path("vae_reconstructed.npz"), metavar="PATH",
                        help="default vae_reconstructed.npz")
    return parser, parser.parse_intermixed_args(argv)


def main(argv: list[str]) -> None:
    """The three commands; the word in the middle says which."""
    parser, args = parse(argv)
    match args.words:
        case [train_path, val, "train", model, gmm]:
            try:
                config = Config(epochs=args.epochs, budget=args.budget, seed=args.seed)
            except ValueError as error:
                raise Mistake(f"{error}.") from error
            train(train_path, val, model, gmm, config.plain() if args.plain else config, args.device,
                  not args.no_resume)
        case [recon, "test_reconstruction", model]:
            write_reconstruction(recon, model, args.npz, args.device)
        case [test, "test_classifier", model, gmm]:
            write_labels(test, model, gmm, args.csv, args.device)
        case _:
            parser.error("one of the three commands above is needed (modes: train, test_reconstruction, "
                         "test_classifier).")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
