"""vae.py - digits in a plane: a variational autoencoder, and a Gaussian mixture that classifies.

    python vae.py TRAIN VAL train vae.pth gmm_params.pkl
    python vae.py RECON test_reconstruction vae.pth             # writes vae_reconstructed.npz
    python vae.py TEST  test_classifier vae.pth gmm_params.pkl  # writes vae.csv

A VAE (Kingma & Welling 2014) whose prior is a mixture (VaDE, Jiang et al. 2017) over clusters that
are learned first, without labels (IIC, Ji et al. 2019), from an image and one of its nearest
neighbours (SCAN, Van Gansbeke et al. 2020). The file reads in the order of the method:
images -> VAE -> losses -> mixture -> train -> reconstruct, classify.
Results: bench/RESULTS.md. Experiments: docs/log.md.
Axes: N images, C clusters, H heads, K components, D = 2 latents.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import pickletools
import re
import signal
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset
from tqdm import tqdm

SIDE, LATENT = 28, 2
MOST_BYTES = 1_000_000_000           # of a .npz, unpacked


@dataclass(frozen=True)
class Config:
    """Every hyper-parameter, chosen on held-out training digits."""

    seed: int = 0
    epochs: int | None = None        # of the latent phase; None: 64, or fewer in a short budget
    cluster_share: float = 0.25      # epochs of the cluster phase before it, as a share of these
    budget: float = 50.0          # minutes from the start to the saved model; ignored with `epochs`
    batch_size: int = 128
    min_steps: int = 64              # an epoch goes through a small set several times for them
    lr: float = 1e-3                 # peak learning rate of AdamW in the latent phase
    cluster_lr: float = 3e-3         # and in the cluster phase
    weight_decay: float = 1e-2
    ema_decay: float = 0.99          # of the averaged weights, a step
    recon: str = "bce"               # or "mse": the reconstruction term, summed over pixels
    beta: float = 0.1                # weight of the KL term
    ssim: float = 100.0              # weight of 1 - SSIM beside them; 0: the assignment's loss
    clusters: bool = True            # prior: a mixture over clusters; False: N(0, I)
    neighbours: int = 5              # an image is paired with one of its nearest; 0: with itself
    warp: bool = True                # in the first half of the phase, both images are warped
    heads: int = 5                   # sub-heads of IIC, of which the most certain one is used
    entropy: float = 1.5             # weight of the marginal entropies; 1: plain IIC
    separation: float = 2.8          # half the distance of neighbouring prior means, in stds

    def __post_init__(self):
        if (self.epochs is not None and self.epochs < 1) or not 0 < self.budget < math.inf:
            raise UserError(f"--epochs {self.epochs} or --budget {self.budget:g} is not above 0.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed} does not lie in 0 to 2**63 - 1.")


# ------------------------------------------------------ shared with bird.py, word for word (tested)
class UserError(Exception):
    """The user's mistake: one sentence that names the file and the remedy; exit status 2."""


def say(text: str, stream: str = "stdout") -> None:
    """Prints; where its reader is gone or the disk is full, the work goes on in silence."""
    try:
        print(text, file=getattr(sys, stream), flush=True)
    except OSError:
        setattr(sys, stream, open(os.devnull, "w"))        # noqa: SIM115


def seed_everything(seed: int) -> None:
    """Seeds torch's generators and asks for deterministic kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def pick_device(name: str | None) -> torch.device:
    """The device asked for, or the best one found."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    found = ["cuda"] * cuda + ["mps"] * mps + ["cpu"]
    if (name or "cpu") not in found:
        raise UserError(f"--device {name}: torch finds no {name} device; leave the option out.")
    return torch.device(name or found[0])


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: after a kill or on a full disk the earlier one stays."""
    target = Path(os.path.realpath(path))                  # a link stays; its file is replaced
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path] = ()) -> None:
    """Fails before the work rather than after it; no output is an input or another output."""
    taken = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path} is a folder, a pipe or a device; name a file to write.")
        if os.path.realpath(path) in taken:
            raise UserError(f"{path} is read too, or named twice; name another file to write.")
        taken.add(os.path.realpath(path))
        write_atomic(probe := path.with_name(f"{path.name}.probe"), b"")
        probe.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(model_path: Path) -> Iterator[None]:
    """Of two trainings that write one model at the same time the second is refused."""
    check_outputs([path := Path(f"{model_path}.lock")])
    with open(path, "w") as file:
        try:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass                                           # Windows cannot tell
        except BlockingIOError as error:
            raise UserError(f"another training writes {model_path} now; name another.") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def save(path: Path, state: dict) -> None:
    """`torch.save`, atomically."""
    torch.save(state, buffer := io.BytesIO())
    write_atomic(path, buffer.getvalue())


def read_file(path: Path) -> io.BytesIO:
    """A file's content; a pipe, whose reader would wait for ever, is none."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(0, "no file")
    return io.BytesIO(path.read_bytes())


def load(path: Path) -> dict[str, Any]:
    """`torch.load` of tensors and plain values, nothing else, where the checksums are right."""
    try:
        content = read_file(path)
        with zipfile.ZipFile(content) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            values = sum(size for name, size in sizes.items() if name.endswith(".pkl"))
            if sum(sizes.values()) > len(content.getbuffer()) or values > 4e6 or archive.testzip():
                raise ValueError("packed, damaged, or more names and numbers than a model has")
        content.seek(0)
        with warnings.catch_warnings(action="ignore"):
            return dict(torch.load(content, map_location="cpu", weights_only=True))
    except Exception as error:                             # damaged bytes make torch raise anything
        reason = getattr(error, "strerror", None) or "no whole PyTorch file"
        raise UserError(f"{path} cannot be read ({reason}); name another, or train.") from error


def load_checkpoint(path: Path, key: str, cfg: Any) -> dict[str, Any] | None:
    """The checkpoint of a stopped training of the same `fingerprint`, or None.

    One of another training is not overwritten: it may hold hours of work.
    """
    if not os.path.exists(path):
        return None
    try:
        saved = load(path)
        epochs, settings = len(saved["history"]), dict(saved["settings"])
    except (UserError, LookupError, TypeError, ValueError):
        say(f"note: {path} is no whole checkpoint: starting anew.", "stderr")
        return None
    if saved.get("key") != key:
        other = [f"{name} {settings.get(name)}, now {value}" for name, value in vars(cfg).items()
                 if settings.get(name) != value] or ["other data, machine or program"]
        raise UserError(f"{path} holds {epochs} epochs of another training ({', '.join(other)}); "
                        "give its command, another name, or --no-resume to lose them.")
    say(f"resuming after epoch {epochs}, from {path}")
    return saved


def fingerprint(settings: Any, *data: Tensor) -> str:
    """Of settings, data, program and version: a checkpoint continues only the same training."""
    digest = hashlib.sha256(repr((settings, torch.__version__)).encode())
    if "__file__" in globals():                            # not in a notebook's cell
        digest.update(Path(__file__).read_bytes())
    for tensor in data:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def record(path: Path, history: list[dict]) -> None:
    """Writes the history, one JSON line an epoch, and prints the last one."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in history).encode())
    last = ((k, f"{v:.4g}" if isinstance(v, float) else v) for k, v in history[-1].items())
    say("  ".join(f"{key} {value}" for key, value in last))


def generator(*key: Any) -> torch.Generator:
    """A random stream for each (seed, epoch, ...): it depends on no earlier draw."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def ema_fn(decay: float) -> Callable:
    """For `AveragedModel`: the decay starts low, lest the random start stay in the average."""
    return lambda averaged, current, n: get_ema_multi_avg_fn(
        min(decay, float((1 + n) / (10 + n))))(averaged, current, n)


def prepare_process() -> None:
    """SIGTERM and SIGHUP stop as Ctrl-C does; what the terminal cannot write is escaped."""
    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:  # Windows lacks one
        if signal.getsignal(number) == signal.SIG_DFL:     # not where nohup ignores it
            signal.signal(number, stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(main: Callable[[list[str]], None], argv: list[str]) -> int:
    """Calls `main(argv)`; a user's mistake, a signal or want of memory become one sentence."""
    prepare_process()
    try:
        main(argv)
        return 0
    except UserError as error:
        say(f"error: {error}", "stderr")
        return 2
    except KeyboardInterrupt as signalled:
        say("\nstopped; the same command resumes from the last epoch.", "stderr")
        return 128 + (signalled.args or (signal.SIGINT,))[0]
    except (MemoryError, RuntimeError) as error:
        if not re.search("Memory|out of memory|allocate|a primitive|new thread", repr(error)):
            raise
        say("error: memory is short; close other programs or give fewer images.", "stderr")
        return 2


# ------------------------------------------------------ the images
def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz or .npy file by name; nothing is unpickled."""
    try:
        found = np.load(read_file(path), allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"data": found}
        if sum(member.file_size for member in found.zip.infolist()) > MOST_BYTES:
            raise ValueError("it unpacks to more than 1 GB")
        arrays = {name: a for name in found.files if isinstance(a := found[name], np.ndarray)}
        if not arrays:
            raise ValueError("a zip without arrays: unpack it first")
        return arrays
    except Exception as error:                             # damaged bytes make NumPy raise anything
        raise UserError(f"{path} cannot be read as arrays ({str(error) or type(error).__name__}); "
                        "write it with numpy.savez(path, data=images, labels=labels).") from error


def is_images(a: np.ndarray) -> bool:
    """Is it one or more images of 28 x 28 numbers, in a form that is known?"""
    one = ((SIDE, SIDE), (SIDE**2,), (1, SIDE, SIDE), (SIDE, SIDE, 1))
    return a.size > 0 and a.dtype.kind in "buif" and (a.shape in one or a.shape[1:] in one)


class DigitDataset(Dataset):
    """Images (N, 28, 28), float32 in 0..1, and labels (N,) or None, from a .npz or .npy file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        arrays = read_arrays(self.path)
        labels = next((arrays.pop(k) for k in ("labels", "label", "y") if k in arrays), None)
        named = {name: a for name, a in arrays.items() if is_images(a)}
        if not ("data" in named or len(named) == 1):
            found = ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in arrays.items())
            raise UserError(f"{path} holds {len(named)} arrays of images ({found}); save one as "
                            "`data`, N x 28 x 28, and as many `labels`.")
        images = named["data"] if "data" in named else next(iter(named.values()))
        low, high = float(images.min()), float(images.max())           # NaN spreads to both
        top, margin = 1 if high <= 1.1 else 255, 0.1 * (images.dtype.kind == "f")
        if not -margin <= low / top <= high / top <= 1 + margin:       # floats: resizing overshoots
            raise UserError(f"{path} holds values from {low:g} to {high:g}, not in 0-255 or 0-1.")
        unit = images.reshape(-1, SIDE, SIDE).astype(np.float32)
        self.images, self.labels = torch.from_numpy(unit).div_(top).clamp_(0, 1), None
        if not 0.02 < (mean := float(self.images.mean())) < 0.5:
            say(f"note: {path}: the mean pixel is {mean:.3f} of white; expected white digits on "
                "black, at about 0.1.", "stderr")
        if labels is not None:
            digits = labels.size == len(unit) and labels.dtype.kind in "uif"
            if not digits or not np.array_equal(labels, np.trunc(labels).clip(0, 9)):
                raise UserError(f"{path}: `labels` must hold {len(unit)} digits, one an image.")
            self.labels = torch.from_numpy(labels.reshape(-1).astype(np.int64))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.images[i], torch.tensor(-1) if self.labels is None else self.labels[i]


# ------------------------------------------------------ the model
class Residual(nn.Module):
    """x + silu(linear(norm(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(self.norm(x)))


class VAE(nn.Module):
    """x (N, 28, 28) in 0..1 -> z (N, 2) -> x_hat (N, 28, 28) in 0..1.

    The latent mean is the prior mean of the image's cluster and an offset:
    mu(x) = sum_c q(c|x) m_c + s o(x). With `clusters=0`, the plain VAE: mu = o, prior N(0, I).
    """

    head: Tensor
    prior_means: Tensor
    prior_std: Tensor
    z_mean: Tensor
    z_std: Tensor

    def __init__(self, clusters: int = 3, heads: int = 5, separation: float = 2.8):
        super().__init__()
        self.shape = {"clusters": clusters, "heads": heads, "separation": separation}
        if clusters:
            def conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
                layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
                return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())
            self.clusterer = nn.Sequential(                    # 28 -> 14 -> 7 pixels a side
                nn.Unflatten(1, (1, SIDE)), conv(1, 16, 5, 2), conv(16, 32, 3, 2),
                conv(32, 64, 3, 1), nn.Flatten(), nn.Linear(64 * 7 * 7, 128, bias=False),
                nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, heads * clusters))
            self.register_buffer("head", torch.tensor(0))      # the one in use
        means, std = prior(clusters, separation)
        self.register_buffer("prior_means", means)             # (C, 2)
        self.register_buffer("prior_std", std)                 # (2,), the same in each cluster
        self.register_buffer("z_mean", torch.zeros(LATENT))    # latents are standardised by these
        self.register_buffer("z_std", torch.ones(LATENT))      # of the training images
        self.encoder = nn.Sequential(
            nn.Linear(SIDE**2, 512), nn.SiLU(), nn.Linear(512, 512), nn.SiLU(), nn.Linear(512, 512),
            nn.SiLU(), nn.Linear(512, 2 * LATENT))
        blocks = (Residual(512) for _ in range(5))
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 512), nn.SiLU(), *blocks, nn.Linear(512, SIDE**2))

    def cluster_probs(self, x: Tensor) -> Tensor:
        """(N, 28, 28) -> q(c|x) of each head, (N, H, C)."""
        return self.clusterer(x).unflatten(1, (self.shape["heads"], -1)).softmax(dim=2)

    def clusters(self, x: Tensor) -> Tensor:
        """(N, 28, 28) -> q(c|x) (N, C) of the head in use; ones for the plain VAE."""
        one = self.shape["clusters"] == 0
        return x.new_ones(len(x), 1) if one else self.cluster_probs(x)[:, int(self.head)]

    def encode(self, x: Tensor, q: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, 28, 28) -> mean and log-variance (N, 2) of q(z|x), given q(c|x) or computing it."""
        q = self.clusters(x) if q is None else q
        offset, logvar = self.encoder(x.flatten(1)).chunk(2, dim=1)
        mu = q @ self.prior_means + self.prior_std * offset
        return (mu - self.z_mean) / self.z_std, logvar.clamp(-10, 4) - 2 * self.z_std.log()

    def decode(self, z: Tensor) -> Tensor:
        """(N, 2) -> (N, 28, 28) in 0..1."""
        return self.decoder(z * self.z_std + self.z_mean).sigmoid().unflatten(1, (SIDE, SIDE))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_hat, mu, logvar; z is sampled in training, the mean otherwise."""
        mu, logvar = self.encode(x)
        return self.decode(reparameterise(mu, logvar) if self.training else mu), mu, logvar

    def get_extra_state(self) -> dict:
        return {"program": "vae", **self.shape}

    def set_extra_state(self, extra: dict) -> None:
        pass                                               # `load_state_dict` has taken it

    def load_state_dict(self, state_dict, *args, **kwargs):
        """As any module's; the model first takes on the number of clusters of the state."""
        extra = state_dict.get("_extra_state", {})
        shape = {name: extra.get(name, value) for name, value in self.shape.items()}
        if shape != self.shape:
            self.__init__(**shape)   # type: ignore[misc]
        return super().load_state_dict(state_dict, *args, **kwargs)


def prior(clusters: int, separation: float) -> tuple[Tensor, Tensor]:
    """Means on a circle (C, 2) and one std (2,): a mixture of mean 0 and covariance I.

    Neighbouring means lie 2 * separation stds apart. Fewer than 2 clusters: N(0, I).
    """
    if clusters < 2:
        return torch.zeros(1, LATENT), torch.ones(LATENT)
    spread = 1 if clusters == 2 else 0.5                   # variance of points on a circle, an axis
    radius = separation / math.sqrt(math.sin(math.pi / clusters) ** 2 + spread * separation**2)
    angle = 2 * math.pi * torch.arange(clusters) / clusters
    means = radius * torch.stack((angle.cos(), angle.sin()), dim=1)
    return means, (1 - means.square().mean(dim=0)).sqrt()


def reparameterise(mu: Tensor, logvar: Tensor, g: torch.Generator | None = None) -> Tensor:
    """z = mu + sigma * eps, eps ~ N(0, I); drawn on the CPU: the same for any device."""
    return mu + (0.5 * logvar).exp() * torch.randn(mu.shape, generator=g).to(mu.device)


# ------------------------------------------------------ the losses
def elbo_terms(x: Tensor, x_hat: Tensor, mu: Tensor, logvar: Tensor, recon: str = "bce",
               prior: tuple[Tensor, Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Reconstruction and KL, summed over pixels and latents, averaged over images (nats for bce).

    `prior`: None for N(0, I), or q(c|x) (N, C), means (C, 2), std (2,) of a mixture (VaDE, eq. 8):
    KL = sum_c q(c|x) KL(q(z|x) || N(m_c, s^2)); its term in q alone is a constant here.
    """
    x, x_hat = x.flatten(1), x_hat.flatten(1)              # (N, 784)
    square, cross_entropy = F.mse_loss, F.binary_cross_entropy
    error = (square if recon == "mse" else cross_entropy)(x_hat, x, reduction="none")
    q, means, std = prior or (x.new_ones(len(x), 1), x.new_zeros(1, LATENT), x.new_ones(LATENT))
    kl = (q * kl_divergence(mu[:, None], logvar[:, None], means, std)).sum(dim=1)
    return error.sum(dim=1).mean(), kl.mean()


def kl_divergence(mu: Tensor, logvar: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(mean, std^2)), summed over latents (K. & W., App. B)."""
    ratio = ((mu - mean).square() + logvar.exp()) / std**2
    return 0.5 * (ratio - 1 - logvar + 2 * std.log()).sum(dim=-1)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (N,) of images (N, 28, 28) in 0..1 (Wang et al. 2004), as scikit-image
    has it: 7 x 7 windows wholly inside, unweighted, sample covariances."""
    c1, c2, unbiased = 0.01**2, 0.03**2, 49 / 48
    slide = torch.eye(SIDE).to(x).unfold(0, 7, 1).mean(dim=2)                             # (22, 28)
    mx, my, xx, yy, xy = (slide @ a @ slide.T for a in (x, y, x * x, y * y, x * y))    # (N, 22, 22)
    var, cov = unbiased * (xx - mx**2 + yy - my**2), unbiased * (xy - mx * my)
    s = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (var + c2))
    return s.mean(dim=(1, 2))


def mutual_information(p: Tensor, q: Tensor, entropy: float = 1.0) -> Tensor:
    """Of the clusters of paired images, in nats: p, q (N, H, C) -> (H,) (IIC, eq. 3).
    `entropy` weights the marginal entropies, above 1 against empty clusters."""
    joint = torch.einsum("nhc,nhd->hcd", p, q) / len(p)
    joint = ((joint + joint.mT) / 2).clamp_min(1e-8)       # (H, C, C), rows sum to the marginal
    row = joint.sum(dim=2)
    return (joint * joint.log()).sum(dim=(1, 2)) - 2 * entropy * (row * row.log()).sum(dim=1)


def nearest_neighbours(x: Tensor, images: Tensor, k: int) -> Tensor:
    """x (M, 28, 28), images (N, 28, 28) -> (M, k): indices of the images nearest in pixels."""
    distances = (torch.cdist(part, images.flatten(1)) for part in x.flatten(1).split(512))
    return torch.cat([d.topk(min(k, len(images)), largest=False).indices for d in distances])


def warp(x: Tensor, g: torch.Generator) -> Tensor:
    """(N, 28, 28): each image rotated, scaled, sheared, shifted and bent, still recognisable."""
    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=g) - 1

    n, pixel = len(x), 2 / SIDE                            # grids span -1..1
    angle, shear = math.radians(25) * uniform(n), 0.3 * uniform(n)
    scale_x, scale_y = (0.2 * uniform(2, n)).exp()
    rotate = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=1).view(n, 2, 2)
    scale = torch.stack((scale_x, shear * scale_x, torch.zeros(n), scale_y), dim=1).view(n, 2, 2)
    affine = torch.cat((rotate @ scale, 2.5 * pixel * uniform(n, 2, 1)), dim=2)          # (n, 2, 3)
    grid = F.affine_grid(affine, [n, 1, SIDE, SIDE], align_corners=False)           # (n, 28, 28, 2)
    bend = 1.5 * pixel * torch.randn(n, 2, 5, 5, generator=g)
    bend = F.interpolate(bend, size=SIDE, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return F.grid_sample(x[:, None], (grid + bend).to(x.device), align_corners=False)[:, 0]


# ------------------------------------------------------ the mixture
@dataclass
class GaussianMixture:
    """p(z) = sum_k weights_k N(z | means_k, covariances_k), fitted by EM, all in float64."""

    weights: Tensor                  # (K,)
    means: Tensor                    # (K, D)
    covariances: Tensor              # (K, D, D)
    digits: list[int]                # of each component

    def log_joint(self, z: Tensor) -> Tensor:
        """z (N, D) -> log weights_k + log N(z_n | means_k, covariances_k), (N, K)."""
        cholesky = torch.linalg.cholesky(self.covariances)                               # (K, D, D)
        d = (z.double() - self.means[:, None]).mT                                        # (K, D, N)
        distance = torch.linalg.solve_triangular(cholesky, d, upper=False).square().sum(dim=1).T
        log_det = 2 * cholesky.diagonal(dim1=1, dim2=2).log().sum(dim=1)                    # (K,)
        return self.weights.log() - 0.5 * (distance + log_det + z.shape[1] * math.log(2 * math.pi))

    def e_step(self, z: Tensor) -> tuple[Tensor, float]:
        """Responsibilities (N, K), rows summing to 1, and the mean log-likelihood in nats."""
        log_p = self.log_joint(z)
        log_px = log_p.logsumexp(dim=1, keepdim=True)      # (N, 1) log p(z_n)
        return (log_p - log_px).exp(), float(log_px.mean())

    def m_step(self, z: Tensor, r: Tensor, floor: float) -> None:
        """Weights, means, covariances of highest expected likelihood, given r (N, K).

        `floor` is added to each variance, which keeps the covariances invertible.
        """
        n_k = r.sum(dim=0).clamp_min(1e-10)                # (K,)
        self.weights, self.means = n_k / n_k.sum(), r.T @ z / n_k[:, None]
        d = z - self.means[:, None]                  # (K, N, D), centred: E[zz'] - mm' would cancel
        covariances = (r.T[:, :, None] * d).mT @ d / n_k[:, None, None]
        self.covariances = covariances + floor * torch.eye(z.shape[1]).to(z)

    @classmethod
    def fit(cls, z: Tensor, means: Tensor, digits: list[int], tol: float = 1e-6,
            max_iter: int = 500) -> GaussianMixture:
        """EM on z (N, D), started from the points nearest to each of `means` (K, D)."""
        z, means = z.double(), means.double()
        floor, before = max(1e-6 * float(z.var(dim=0).mean()), 1e-24), -math.inf
        mixture = cls(means[:, 0], means, means[:, :, None], digits)
        r = F.one_hot(torch.cdist(z, means).argmin(dim=1), len(means)).to(z)
        for _ in range(max_iter):
            mixture.m_step(z, r, floor)
            r, likelihood = mixture.e_step(z)
            if likelihood - before < tol:
                break
            before = likelihood
        return mixture

    def predict(self, z: Tensor) -> Tensor:
        """z (N, D) -> the digit of the likeliest component, (N,)."""
        return torch.tensor(self.digits)[self.log_joint(z).argmax(dim=1)]


def digest(net: VAE) -> str:
    """Of the weights: a mixture belongs to the model whose latents it was fitted to."""
    values = [value.cpu() for value in net.state_dict().values() if isinstance(value, Tensor)]
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()


def save_mixture(path: Path, mixture: GaussianMixture, net: VAE | None = None) -> None:
    """A pickle of plain lists, floats and ints, and the digest of its model."""
    plain = {name: getattr(mixture, name).tolist() for name in ("weights", "means", "covariances")}
    plain |= {"digits": mixture.digits, **({"model": digest(net)} if net else {})}
    write_atomic(path, pickle.dumps(plain, protocol=4))


PLAIN = {                            # opcodes of `save_mixture`'s pickles
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "EMPTY_DICT", "EMPTY_LIST", "APPEND",
    "APPENDS", "SETITEM", "SETITEMS", "SHORT_BINUNICODE", "BINUNICODE", "BINFLOAT", "BININT",
    "BININT1", "BININT2"}


def load_mixture(path: str | Path, net: VAE | None = None) -> GaussianMixture:
    """The mixture that `train` saved with this model; other pickles are refused unloaded."""
    try:
        content = read_file(Path(path)).read(10**6)
        if {opcode.name for opcode, _, _ in pickletools.genops(content)} - PLAIN:
            raise ValueError("it holds more than plain lists and numbers; save arrays by .tolist()")
        plain = pickle.loads(content)
        model, digits = plain.pop("model", None), plain.pop("digits")      # others write no model
        weights, means, covariances = (torch.tensor(plain.pop(name), dtype=torch.float64)
                                       for name in ("weights", "means", "covariances"))
        k = len(digits)
        if plain or (weights.shape, means.shape, covariances.shape) != (
                (k,), (k, LATENT), (k, LATENT, LATENT)):
            raise ValueError("its arrays do not fit together")
        mixture = GaussianMixture(weights, means, covariances, digits)
        normal = mixture.log_joint(means).isfinite().all() and abs(weights.sum() - 1) < 1e-6
        if not (normal and weights.min() > 0 and torch.allclose(covariances, covariances.mT)
                and len(set(digits)) == k and all(digit in range(10) for digit in digits)):
            raise ValueError("its values are no mixture's")
    except Exception as error:                             # damaged bytes raise anything
        raise UserError(f"{path} is no mixture that vae.py saved ({error}).") from error
    if net and model and model != digest(net):
        raise UserError(f"{path} is not of this model; name the two files that one training saved.")
    return mixture


# ------------------------------------------------------ train: first the clusters, then the latents
def train(train_path: str | Path, val_path: str | Path, model_path: str | Path,
          gmm_path: str | Path, cfg: Config, device: str | None = None,
          resume: bool = True) -> GaussianMixture:
    """Trains the VAE on TRAIN without its labels, fits the mixture to its latents, saves both.

    Beside the model: NAME.history.jsonl, one line an epoch, and NAME.checkpoint.pt until the end.
    """
    began, model_path, gmm_path = time.monotonic(), Path(model_path), Path(gmm_path)
    history_path = model_path.parent / f"{model_path.stem}.history.jsonl"
    checkpoint_path = model_path.parent / f"{model_path.stem}.checkpoint.pt"
    outputs = (model_path, gmm_path, history_path, checkpoint_path)
    check_outputs(outputs, map(Path, (train_path, val_path)))
    data, val, place = DigitDataset(train_path), DigitDataset(val_path), pick_device(device)
    if val.labels is None or len(digits := val.labels.unique().tolist()) < 2 or len(data) < 20:
        raise UserError(f"{val_path} needs `labels` of 2 digits or more, {train_path} 20 images.")
    if (data.images == data.images[0]).all():
        raise UserError(f"{train_path} holds {len(data)} times the same image, and no digits.")
    order = torch.randperm(len(data), generator=generator(cfg.seed, "split"))
    held_out, images = data.images[order].to(place).tensor_split([max(2, len(data) // 32)])
    seed_everything(cfg.seed)
    net = VAE(len(digits) if cfg.clusters else 0, cfg.heads, cfg.separation).to(place)
    ema = AveragedModel(net, multi_avg_fn=ema_fn(cfg.ema_decay))
    parts: dict[str, Any] = {"net": net, "ema": ema}
    phases = {"clusters": [net.clusterer]} if cfg.clusters else {}
    for phase, modules in (phases := {**phases, "latents": [net.encoder, net.decoder]}).items():
        parameters = [p for module in modules for p in module.parameters()]
        parts[phase] = torch.optim.AdamW(parameters, weight_decay=cfg.weight_decay, fused=True)
    history: list[dict] = []
    key = fingerprint((cfg, place), data.images, val.images, val.labels)
    if resume and (saved := load_checkpoint(checkpoint_path, key, cfg)):
        history = saved["history"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    start = began - (history[-1]["seconds"] if history else 0.0)
    say(f"VAE: {sum(p.numel() for p in net.parameters()):,} parameters, on {place}; "
        f"{len(data)} images, digits {', '.join(map(str, digits))}")

    for phase in phases:
        if phase == "clusters":                      # until: share of the budget at the phase's end
            epochs, begin, until = math.ceil(cfg.cluster_share * (cfg.epochs or 64)), 0.0, 0.4
            given = nearest_neighbours(images, images, cfg.neighbours + 1)              # (N, k + 1)
        else:
            earlier = [row["seconds"] for row in history if row["phase"] == "clusters"]
            epochs, begin, until = cfg.epochs or 64, max(earlier, default=0.0), 0.95
            given = clusters(net, images)                  # (N, C) q(c|x), fixed from here on
        seconds = math.inf if cfg.epochs else max(1.0, until * 60 * cfg.budget - begin)

        def progress(done: float, epochs=epochs, begin=begin, seconds=seconds) -> float:
            """Of the phase, 0 to 1: of its epochs or, where the budget is short, of its time."""
            return max(done / epochs, 1.02 * (time.monotonic() - start - begin) / seconds - 0.02)

        while not (done := sum(row["phase"] == phase for row in history)) or progress(done) < 1:
            row = train_epoch(parts, phase, images, given, held_out, cfg, done, progress)
            if not all(map(math.isfinite, row.values())):
                raise UserError(f"the loss is not finite in epoch {len(history) + 1}; look at the "
                                f"images of {train_path}, or give another --seed.")
            elapsed = time.monotonic() - start
            share = min(1.0, progress(done + 1))
            history.append({"epoch": len(history) + 1, "phase": phase, "progress": share, **row,
                            "seconds": elapsed})
            record(history_path, history)
            states = {name: part.state_dict() for name, part in parts.items()}
            save(checkpoint_path, {
                "key": key, "settings": vars(cfg), "history": history} | states)

    net = parts["ema"].module
    if cfg.clusters:                                       # the latents become standardised
        z = latent_means(net, data.images)
        net.z_mean.copy_(z.mean(dim=0))
        net.z_std.copy_(z.std(dim=0))
    mixture = fit_mixture(net, data.images, val.images, val.labels)
    save(model_path, net.cpu().state_dict())
    save_mixture(gmm_path, mixture, net)
    checkpoint_path.unlink(missing_ok=True)
    right = int((classify(net, mixture, val.images) == val.labels).sum())
    say(f"saved {model_path} and {gmm_path}: {right} of the {len(val)} images of VAL right, "
        f"{(time.monotonic() - start) / 60:.1f} minutes")
    return mixture


def train_epoch(parts: dict[str, Any], phase: str, images: Tensor, given: Tensor, held_out: Tensor,
                cfg: Config, epoch: int, progress: Callable[[float], float]) -> dict[str, float]:
    """One epoch of a phase; learning rate, and the loss's terms on training and held-out images.
    given: each image's nearest ones (N, k), itself first, or q(c|x) (N, C)."""
    net, optimizer, g = parts["net"].train(), parts[phase], generator(cfg.seed, phase, epoch)
    size, outcomes = min(cfg.batch_size, len(images)), list[dict[str, Tensor]]()
    rounds = math.ceil(cfg.min_steps * size / len(images))             # through a small set
    order = torch.cat([torch.randperm(len(images), generator=g) for _ in range(rounds)])
    batches = order[:len(order) // size * size].split(size)
    for step, rows in enumerate(tqdm(batches, f"{phase} {epoch + 1}", leave=False, disable=None)):
        if (p := progress(epoch + step / len(batches))) >= 1 and outcomes:
            break
        if phase == "clusters":
            k = torch.randint(1, given.shape[1], (size,), generator=g) if cfg.neighbours else 0
            pair = torch.cat((images[rows], images[given[rows, k]]))
            x, near = (warp(pair, g) if cfg.warp and p < 0.5 else pair).chunk(2)
            loss, terms = cluster_loss(net, x, near, cfg.entropy)
        else:
            loss, terms = latent_loss(net, images[rows], given[rows], cfg, g)
        lr = lr_multiplier(p) * (cfg.lr if phase == "latents" else cfg.cluster_lr)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 50.0)
        optimizer.step()
        if phase == "latents":
            parts["ema"].update_parameters(net)
        outcomes.append(terms)
    means = {name: torch.stack([terms[name] for terms in outcomes]).mean(dim=0) for name in terms}
    if phase == "clusters":
        net.head.fill_(means["information"].argmax())      # the most certain head
    with torch.no_grad():
        x, g = held_out, generator("held out")
        _, held = (cluster_loss(net.eval(), x, x, cfg.entropy) if phase == "clusters" else
                   latent_loss(net.eval(), x, net.clusters(x), cfg, g))
    means |= {f"held_{name}": value for name, value in held.items()}
    return {"lr": lr, **{name: float(value.max()) for name, value in means.items()}}


def cluster_loss(net: VAE, x: Tensor, near: Tensor,
                 entropy: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Images and near ones must share their clusters, and these be even. No label is used."""
    p, q = net.cluster_probs(torch.cat((x, near))).chunk(2)            # (N, H, C)
    information = mutual_information(p, q).detach()        # (H,)
    return -mutual_information(p, q, entropy).sum(), {"information": information}


def latent_loss(net: VAE, x: Tensor, q: Tensor, cfg: Config,
                g: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The assignment's loss, with the clusters' mixture as the prior, and 1 - SSIM beside it."""
    mu, logvar = net.encode(x, q)
    x_hat = net.decode(reparameterise(mu, logvar, g))
    mixture_prior = (q, net.prior_means, net.prior_std) if cfg.clusters else None
    recon, kl = elbo_terms(x, x_hat, mu, logvar, cfg.recon, mixture_prior)
    similarity = ssim(x, x_hat).mean()
    loss = recon + cfg.beta * kl + cfg.ssim * (1 - similarity)
    terms = {"loss": loss, "recon": recon, "kl": kl, "ssim": similarity}
    return loss, {name: term.detach() for name, term in terms.items()}


def lr_multiplier(progress: float, warmup: float = 0.1) -> float:
    """Linear warm-up, then half a cosine to 0."""
    if progress < warmup:
        return 0.02 + 0.98 * progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (min(progress, 1) - warmup) / (1 - warmup)))


def fit_mixture(net: VAE, images: Tensor, x: Tensor, labels: Tensor,
                k: int = 50) -> GaussianMixture:
    """EM on the latent means of `images` (N, 28, 28), started at class means.

    The labels of x (V, 28, 28) are propagated to the k images nearest to each. Of as many clusters
    each digit takes one of its own, the clearest case first: so a single example may be misplaced.
    """
    near = nearest_neighbours(x, images, min(k, max(1, len(images) // 40)))                 # (V, k)
    digits, z, q = labels.unique().tolist(), latent_means(net, images), clusters(net, images).cpu()
    means = torch.stack([z[near[labels == digit]].mean(dim=(0, 1)) for digit in digits])
    votes = torch.stack([q[near[labels == digit]].mean(dim=(0, 1)) for digit in digits])    # (K, C)
    for _ in digits if q.shape[1] == len(digits) else ():
        row, cluster = divmod(int(votes.argmax()), len(digits))
        means[row] = q[:, cluster] @ z / q[:, cluster].sum()
        votes[row], votes[:, cluster] = -1, -1
    return GaussianMixture.fit(z, means, digits)


# ------------------------------------------------------ reconstruct, classify
def load_model(path: str | Path) -> VAE:
    """The model that `train` saved, in eval mode."""
    net, state = VAE(), load(Path(path))
    try:
        match state:                                       # sizes first, before anything is built
            case {"_extra_state": {"program": "vae", "clusters": int(clusters), "heads": int(heads),
                                   "separation": int() | float()}} if (
                    0 <= clusters <= 10 and 1 <= heads <= 100
                    and int(state.get("head", 0)) in range(heads)):
                net.load_state_dict(state)
            case _:
                raise ValueError("of another program")
        if not net.eval()(torch.rand(1, SIDE, SIDE))[0].isfinite().all():
            raise ValueError("broken weights")
    except (ArithmeticError, RuntimeError, LookupError, TypeError, ValueError,
            AttributeError) as error:
        raise UserError(f"{path} is no model of this vae.py; name one that it trained.") from error
    return net


@torch.no_grad()
def clusters(net: VAE, images: Tensor) -> Tensor:
    """(N, 28, 28) -> q(c|x) (N, C)."""
    net.eval()
    device = net.z_mean.device
    return torch.cat([net.clusters(part.to(device)) for part in images.split(1024)])


@torch.no_grad()
def latent_means(net: VAE, images: Tensor) -> Tensor:
    """(N, 28, 28) -> (N, 2), on the CPU."""
    net.eval()
    device = net.z_mean.device
    return torch.cat([net.encode(part.to(device))[0] for part in images.split(1024)]).cpu()


def reconstruct(net: VAE, images: Tensor, steps: int = 30, lr: float = 0.03) -> Tensor:
    """(N, 28, 28) -> (N, 28, 28): decoded from the latent mean, improved by descent on z."""
    made = []
    for x in images.to(net.z_mean.device).split(512):
        z = latent_means(net, x).to(x.device).requires_grad_()
        adam = torch.optim.Adam([z], lr)
        for _ in range(steps):
            x_hat = net.decode(z)
            error = 100 * (1 - ssim(x, x_hat)) + 10 * (x - x_hat).square().sum(dim=(1, 2))
            (z.grad,) = torch.autograd.grad(error.sum(), [z])
            adam.step()
        made.append(net.decode(z).detach().cpu())
    return torch.cat(made)


def classify(net: VAE, mixture: GaussianMixture, images: Tensor) -> Tensor:
    """(N, 28, 28) -> digits (N,): encoder, latent mean, likeliest component, its digit."""
    return mixture.predict(latent_means(net, images))


def scores(labels: Tensor, predicted: Tensor) -> dict[str, float]:
    """The assignment's scores; micro F1 is the accuracy."""
    precision, recall, f1 = map(float, precision_recall_fscore_support(
        labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)[:3])
    accuracy = float(accuracy_score(labels, predicted))
    return {"(macro F1 + micro F1) / 2": (f1 + accuracy) / 2, "macro F1": f1, "micro F1": accuracy,
            "accuracy": accuracy, "macro precision": precision, "macro recall": recall}


def main(argv: list[str]) -> None:
    """The three commands; the word in the middle says which."""
    parser = argparse.ArgumentParser(
        prog="vae.py", formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="see the three commands below", description="\n".join(__doc__.splitlines()[:5]),
        epilog="TRAIN, VAL, RECON, TEST: .npz (arrays `data`, `labels`) or .npy, images of 28 x 28")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, default=50.0, metavar="MINUTES", help="default 50")
    parser.add_argument("--epochs", type=int, metavar="N", help="of the latent phase; default 64")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--device", choices=["cpu", "cuda", "mps"], help="default: the best found")
    parser.add_argument("--no-resume", action="store_true", help="start anew despite a checkpoint")
    parser.add_argument("--plain", action="store_true", help="the assignment's own loss and prior")
    parser.add_argument("--csv", type=Path, default=Path("vae.csv"), metavar="PATH")
    parser.add_argument("--npz", type=Path, default=Path("vae_reconstructed.npz"), metavar="PATH")
    args = parser.parse_intermixed_args(argv)
    match args.words:
        case [train_path, val, "train", model, gmm]:
            cfg = Config(seed=args.seed, epochs=args.epochs, budget=args.budget)
            if args.plain:
                cfg = replace(cfg, clusters=False, ssim=0.0, beta=1.0)
            with lock(Path(model)):
                train(train_path, val, model, gmm, cfg, args.device, resume=not args.no_resume)
        case [recon, "test_reconstruction", model]:
            net, images = load_model(model).to(pick_device(args.device)), DigitDataset(recon).images
            check_outputs([args.npz], map(Path, (recon, model)))
            made = reconstruct(net, images)
            np.savez_compressed(buffer := io.BytesIO(), data=made.numpy())
            write_atomic(args.npz, buffer.getvalue())
            mse, similarity = (made - images).square().mean(), ssim(images, made).mean()
            say(f"{args.npz}: {len(made)} images, 1 - MSE {1 - mse:.4f}, SSIM {similarity:.4f}")
        case [test, "test_classifier", model, gmm]:
            net = load_model(model).to(pick_device(args.device))
            mixture, data = load_mixture(gmm, net), DigitDataset(test)
            check_outputs([args.csv], map(Path, (test, model, gmm)))
            predicted = classify(net, mixture, data.images)
            rows = ["Predicted_Label", *map(str, predicted.tolist()), ""]
            write_atomic(args.csv, "\n".join(rows).encode())
            say(f"{args.csv}: {len(predicted)} labels")
            if data.labels is not None:
                for name, value in scores(data.labels, predicted).items():
                    say(f"  {name:<26}{value:.4f}")
        case _:
            parser.error("give one of the three commands above")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
