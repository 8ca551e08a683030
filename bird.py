"""bird.py - a convolutional network of our own learns bird species from a folder of photos.

    python bird.py DATASET train bird.pth    # trains from random weights, saves the model
    python bird.py DATASET test  bird.pth    # writes bird.csv in the current folder

DATASET holds one folder a class. The file reads in the order of the data: find -> decode -> split -> augment ->
BirdNet -> train -> predict. It needs torch, torchvision, numpy, pillow, scikit-learn and tqdm, and nothing else.

(macro + micro F1) / 2 on 1,036 photos put aside, two plain cores: 0.944 in 101 minutes (the defaults, seed 0), 0.912 to
0.918 in 19 to 20 (--budget 20, seeds 0 to 2; 0.887 and 0.889 on cores a third as quick). Where cores multiply
bfloat16: 0.949 in 97 minutes (0.947 with the batch statistics taken since), 0.925 to 0.941 in 17; an earlier program
0.953 in 94 minutes, at one seed.
Which program had which, with hardware, date and commands: bench/RESULTS.md.
Failed experiments: docs/log.md.
"""

import argparse
import contextlib
import ctypes
import hashlib
import importlib.util
import io
import json
import math
import os
import pickle
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

# Read when torch is loaded: a thread waits awake for a thirtieth of GNU OpenMP's usual time, then sleeps. Beside
# another busy program bird.py's steps are several times as fast so (bench/RESULTS.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageOps
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import cross_val_predict
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

OPEN: Any = None                    # a dial that the length of the training sets
NARROW, WIDE = (40, 64, 128, 256), (48, 80, 160, 320)      # channels of the four stages
FINE, COARSE = (1, 2, 2, 1), (1, 2, 2, 2)                  # strides of the stages: a last map of 1/16 of the side (as
                                    # nets that tell one person from another have, Luo et al. 2019), or 1/32
EARLIER: dict[str, Any] = {"channels": list(NARROW), "strides": list(COARSE)}      # of models that do not tell
SHORTER: dict[str, Any] = {"channels": NARROW, "strides": FINE, "batch": 64, "turn": 12.0, "zoom": 0.6,
                           "colour": 0.2, "mix": 0.0, "renewed": 1024}
LONGER: dict[str, Any] = {"channels": NARROW, "strides": COARSE, "batch": 128, "turn": 20.0, "zoom": 0.45,
                          "colour": 0.3, "mix": 0.5, "renewed": 4096}
LONGEST: dict[str, Any] = {**LONGER, "channels": WIDE}
LENGTHS = {1: SHORTER, 64: LONGER, 224: LONGEST}           # from so many epochs on: in few, photos are learned better
                                    # plain, finely and in more steps, in many a wide network is worth its time


@dataclass(frozen=True)
class Config:
    """Every dial. What was tried stands in docs/log.md; the command line sets the first four."""

    seed: int = 0
    epochs: int | None = None       # None: as many as the budget allows
    budget: float = 110.0           # minutes of wall time from start to saved model; not a limit where epochs is set
    device: str | None = None       # None: cuda, mps or cpu, the first that is here
    # data
    val_fraction: float = 0.2       # of each class, near-duplicates kept on one side
    batch: int = OPEN               # images a step
    # the network
    channels: tuple[int, ...] = OPEN
    strides: tuple[int, ...] = OPEN
    # augmentation: one affine warp a photo, then light and colour; 0 switches a dial off
    flip: float = 0.5               # probability of a mirror image
    upside_down: float = 0.5        # probability of half a turn, in classes whose photos hang either way up
    turn: float = OPEN              # degrees, either way
    zoom: float = OPEN              # the shortest side of a crop, as a share of the photo's
    stretch: float = 0.2            # log of the aspect ratio, either way
    colour: float = OPEN            # brightness, contrast, saturation and tint, each 1 +- this (tint a third)
    mix: float = OPEN               # probability that a batch is mixed, but in the last fifth, 30 epochs at most
    # learning
    lr: float = 8e-3                # peak step size of Muon and AdamW
    weight_decay: float = 0.4       # on weights of convolutions and head only
    schedule: str = "onecycle"      # linear warm-up, then half a cosine to 0; or "constant"
    warmup: float = 0.15            # share of the training in which the step size rises
    smoothing: float = 0.1          # label smoothing
    class_weights: bool = True      # cross-entropy weighted inversely to the class sizes
    dropout: float = 0.2            # before the head
    batch_norm: bool = True
    average: float = 0.98           # decay of the averaged weights, a step; 0: the last weights are used
    renewed: int = OPEN             # photos to fit that batch statistics are taken of at the end, at most
    patience: float = 0.3           # early stopping: share of the planned epochs (10 at least) without a lower loss

    def __post_init__(self):
        if self.epochs is not None and self.epochs < 1:
            raise Mistake(f"--epochs is {self.epochs}; it must be at least 1.")
        if not 0 < self.budget < math.inf:
            raise Mistake(f"--budget is {self.budget} minutes; it must be above 0 (110 is the default).")
        if not 0 < self.val_fraction < 1 or (self.batch or 2) < 2 or self.schedule not in ("onecycle", "constant"):
            raise Mistake(f"val_fraction {self.val_fraction}, batch {self.batch}, schedule {self.schedule}: expected a "
                          "share between 0 and 1, at least 2, and onecycle or constant.")


STORED = 240                        # px; each photo is kept at this size, every training size is made from it
SIZES = ((0.4, 64, 1.4), (0.8, 96, 1.2), (1.0, 128, 1.0))   # up to this share of the epochs, this many px: small and
LARGER = (120_000, 200_000, 350_000, 500_000, 750_000)      # quick first; and 16 px more from each of these numbers of
                                    # photos seen on, counted each time, times the last number of SIZES, so that no
                                    # two sizes grow at once and plans leave little time over
MIDDLE, CLOSER = 0.9, 0.7           # sides of the two looks at a photo to be labelled, as shares of the photo's
LOOK = 0.4                          # time of a look at a photo, as a share of a training step's
SURE, DOUBT = 0.85, 0.6             # probabilities of the likeliest class: from SURE on one look is enough; below DOUBT
                                    # after two, both are taken once more, mirrored


# ---------------------------------------------------------------------------------------------------------------------
# Helpers that bird.py and vae.py both hold, word for word (a test keeps them so)
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# 1. Find the images
# ---------------------------------------------------------------------------------------------------------------------

def find_images(folder: Path) -> tuple[list[Path], list[str]]:
    """Paths and class-folder names ("" in a flat folder), in the order of `torchvision.datasets.ImageFolder`.

    Every file that ImageFolder would list is listed, hidden ones too, so that rows can be matched with it.
    Raises Mistake where there is nothing to find.
    """
    if not folder.exists():
        raise Mistake(f"{folder} does not exist; name the folder that holds one folder of photos a class.")
    if not folder.is_dir():
        raise Mistake(f"{folder} is a file; name the folder that holds one folder of photos a class.")
    paths, names = [], []
    for name in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
        found = images_below(folder / name)
        paths += found
        names += [name] * len(found)
    loose = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in IMG_EXTENSIONS)
    if paths and loose:
        note(f"{folder} also holds {len(loose)} images outside the class folders ({loose[0].name}, ...): left out.")
    if not paths:
        paths, names = loose, [""] * len(loose)
    if not paths:
        raise Mistake(f"{folder} holds no images ({', '.join(IMG_EXTENSIONS)}); "
                      f"expected {folder}/<class name>/<image>.jpg.")
    return paths, names


def images_below(folder: Path) -> list[Path]:
    """All images in `folder` and below, in the order in which ImageFolder walks."""
    return [Path(root) / name for root, _, files in sorted(os.walk(folder, followlinks=True))
            for name in sorted(files) if name.lower().endswith(IMG_EXTENSIONS)]


def check_level(folder: Path, paths: list[Path], classes: list[str] | None = None) -> None:
    """Raises Mistake if the class folders lie one level deeper, as in Birds/train/<class>; names the right folder.

    classes: the model's class names, where they are known; only folders of these names then count as class folders.
    """
    below = {path.relative_to(folder).parts[:-1] for path in paths}
    if any(len(parts) < 2 for parts in below):         # some images lie where they should
        return
    inner = {parts[0]: {q[1] for q in below if q[0] == parts[0]} for parts in sorted(below)}
    usual = {"train", "test", "val", "valid", "validation"}
    if classes is None:
        higher = [name for name in inner if len(inner[name]) > 1 and (len(inner) == 1 or inner.keys() <= usual)]
    else:
        higher = [name for name in inner if inner[name] & set(classes) and name not in classes]
    if higher:
        part = "train" if classes is None else "test"
        right = folder / (part if part in higher else higher[0])
        raise Mistake(f"{folder} holds the class folders one level deeper; did you mean {right}?")


def find_training_images(folder: Path) -> tuple[list[Path], Tensor, list[str]]:
    """Paths, labels (N,) int64 and the sorted class names of a training set; hidden files and folders are left out.

    Raises Mistake for fewer than two classes.
    """
    paths, names = find_images(folder)
    check_level(folder, paths)
    hidden = [any(part.startswith(".") for part in path.relative_to(folder).parts) for path in paths]
    if any(hidden):
        note(f"left out {sum(hidden)} images in hidden folders or files, such as {paths[hidden.index(True)]}.")
    kept = [i for i, is_hidden in enumerate(hidden) if not is_hidden]
    classes = sorted({names[i] for i in kept})
    if len(classes) < 2:
        raise Mistake(f"{folder} holds {len(classes)} class folder{'s' * (len(classes) != 1)} with images, at least 2 "
                      f"are needed; expected {folder}/<class name>/<image>.jpg.")
    return [paths[i] for i in kept], torch.tensor([classes.index(names[i]) for i in kept]), classes


def note(message: str) -> None:
    """Says on stderr what a user should know; nothing stops."""
    if place()[0] == 0:
        print(f"note: {message}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# 2. Decode each photo once
# ---------------------------------------------------------------------------------------------------------------------

def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a person sees it: turned as EXIF says, 16 bits scaled to 8, transparency on white, RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):                     # 16-bit grey; `convert` would clip it to white
        image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:                    # RGBA, LA, or a palette with a transparent entry
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_photo(path: Path, pixels: np.ndarray) -> float | None:
    """Squashes one photo into `pixels`, (3, size, size) uint8; its width / height, or None if the file is broken.

    A JPEG is decoded at the smallest of 1/1, 1/2, 1/4, 1/8 that still covers 0.8 of `size`: the scaling is part of its
    inverse cosine transform and costs nothing (libjpeg's `scale_denom`). So 1200 x 800 is read as 300 x 200.
    """
    size = pixels.shape[-1]
    try:
        with Image.open(path) as file:
            file.draft("RGB", (size * 4 // 5, size * 4 // 5))      # does nothing for other formats
            image = to_rgb(file)
            small = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
            pixels[:] = np.asarray(small).transpose(2, 0, 1)
            return image.width / image.height
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):   # PIL's ways to say "broken"
        pixels[:] = 0
        return None


@dataclass(frozen=True)
class Photos:
    """Decoded photos: pixels (N, 3, STORED, STORED) uint8; aspect (N,) width / height; broken: indices not read."""

    pixels: Tensor
    aspect: Tensor
    broken: list[int]


def decode(paths: list[Path], scratch: Path | None = None, quiet: bool = False) -> Photos:
    """Decodes all photos in parallel (PIL lets go of Python's lock while it decodes).

    Where half of the free memory would not hold them, the pixels live in a file in the folder `scratch`, without a
    name there, so that nothing is left behind, and the system pages them in as they are used.
    """
    shape = (len(paths), 3, STORED, STORED)
    pixels, aspect, broken = empty_pixels(shape, scratch), torch.ones(len(paths)), []
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(os.cpu_count()) as pool:   # PIL's, on odd files
        # the threads fill the rows by NumPy: a copy by torch would wake threads of its own, and they get in the way
        for i, found in enumerate(progress(pool.map(read_photo, paths, pixels.numpy()), len(paths), "decoding", quiet)):
            if found is None:
                broken.append(i)
            else:
                aspect[i] = found
    return Photos(pixels, aspect, broken)


def empty_pixels(shape: tuple[int, ...], scratch: Path | None) -> Tensor:
    """An unset uint8 tensor, in memory or, where that is too small, in an unnamed file in `scratch`."""
    size = math.prod(shape)
    if scratch is None or size < free_memory() / 2:
        return torch.empty(shape, dtype=torch.uint8)
    with tempfile.TemporaryFile(dir=scratch) as file:
        file.truncate(size)
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))


def free_memory() -> float:
    """Bytes of memory that are free now; infinite where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):      # Windows has no sysconf, macOS not this name
        return math.inf


def progress(items, total: int, what: str, quiet: bool = False):
    """A tqdm bar on a terminal; nothing where the output is a file, so that logs stay readable."""
    hidden = quiet or not sys.stderr.isatty()
    return tqdm(items, total=total, desc=what, leave=False, disable=hidden, dynamic_ncols=True)


def resized(pixels: Tensor, size: int, scratch: Path | None = None) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, 3, size, size) uint8, antialiased; `scratch` as for `decode`."""
    if pixels.shape[-1] == size:
        return pixels
    small = empty_pixels((len(pixels), 3, size, size), scratch)
    for start in range(0, len(pixels), 256):
        part = pixels[start:start + 256]
        small[start:start + 256] = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
    return small


# ---------------------------------------------------------------------------------------------------------------------
# 3. Split, near-duplicates on one side
# ---------------------------------------------------------------------------------------------------------------------

def polar(pixels: Tensor, aspect: Tensor, zoom: float = 1.0, rings: int = 12, angles: int = 64) -> Tensor:
    """Each photo read along circles about its centre: (N, 3, rings, angles), zero mean and unit norm a photo.

    In these coordinates a turn of the photo is a shift along the last axis and a mirror image reverses it. The circles
    keep to the largest disc inside the original frame (of `zoom` times its size), which survives turning.
    """
    radius = torch.linspace(0.15, 0.95, rings) * zoom
    angle = torch.arange(angles) * (2 * math.pi / angles)
    x, y = radius[:, None] * angle.cos(), radius[:, None] * angle.sin()     # (rings, angles), 1 = half the side
    wide, high = (1 / aspect).clamp(max=1), aspect.clamp(max=1)              # (N,) the disc, squashed
    grid = torch.stack([x * wide[:, None, None], y * high[:, None, None]], dim=-1)             # (N, rings, angles, 2)
    rays = F.grid_sample(pixels.float(), grid, align_corners=False)                            # (N, 3, rings, angles)
    rays = rays - rays.mean(dim=(1, 2, 3), keepdim=True)
    return rays / rays.flatten(1).norm(dim=1).clamp(min=1e-6)[:, None, None, None]


def near_duplicates(photos: Photos, zooms: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7), alike: float = 0.95) -> Tensor:
    """A group number for each photo, (N,) int64: copies that are turned, mirrored, cropped or re-compressed share one.

    Candidates agree in the magnitudes of the Fourier coefficients along the circles, which neither a turn nor a mirror
    changes; a pair is taken where the best turn then gives a correlation of at least `alike`.
    """
    small = resized(photos.pixels, 48)
    full = polar(small, photos.aspect)
    groups = torch.arange(len(small))
    key = signature(full)
    for zoom in zooms:
        other = full if zoom == 1.0 else polar(small, photos.aspect, zoom)
        other_key = signature(other)
        for start in range(0, len(key), 1024):                            # blocks keep the (N, N) table out of memory
            close = key[start:start + 1024] @ other_key.T > alike - 0.02                        # (1024, N)
            i, j = close.nonzero(as_tuple=True)
            i = i + start
            keep = (i < j) if zoom == 1.0 else (i != j)
            for a, b in zip(i[keep].split(4096), j[keep].split(4096), strict=True):
                sure = best_turn(full[a], other[b]) >= alike if len(a) else a.bool()
                for p, q in zip(a[sure].tolist(), b[sure].tolist(), strict=True):
                    groups[groups == groups[q]] = groups[p].item()
    return groups


def signature(rays: Tensor) -> Tensor:
    """(N, 3, R, A) -> (N, D) unit vectors that turning and mirroring leave as they are."""
    return F.normalize(torch.fft.rfft(rays, dim=-1).abs().flatten(1), dim=1)


def best_turn(a: Tensor, b: Tensor) -> Tensor:
    """The highest correlation of a and b (M, 3, R, A) over all turns of b and of its mirror image: (M,)."""
    fa, fb = torch.fft.rfft(a, dim=-1), torch.fft.rfft(b, dim=-1)
    turned = [torch.fft.irfft((fa * f).sum(dim=(1, 2)), n=a.shape[-1]).amax(dim=-1) for f in (fb.conj(), fb)]
    return torch.maximum(*turned)


def split(labels: Tensor, groups: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices for fitting and for validation: `fraction` of each class in whole groups, drawn at random.

    Only a class whose groups are all too large for that has one of them cut, so that no side lacks it.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    validation = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = order[labels[order] == label]
        wanted = max(1, round(fraction * len(members)))
        chosen: list[int] = []
        for group in dict.fromkeys(groups[members].tolist()):                          # groups in random order
            photos = members[groups[members] == group].tolist()
            if len(chosen) + len(photos) <= wanted:
                chosen += photos
        validation[chosen or members[:1]] = True
    return (~validation).nonzero()[:, 0], validation.nonzero()[:, 0]


# ---------------------------------------------------------------------------------------------------------------------
# 4. Augment whole batches, on the training device
# ---------------------------------------------------------------------------------------------------------------------

DRAWS = 16                                             # uniform numbers that one photo needs for one epoch


def stream(*key: int) -> torch.Generator:
    """A generator that depends on the numbers given (seed, epoch, ...) and on nothing that ran before."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def settled(cfg: Config, epochs: int) -> Config:
    """The dials left open are set for a training of this length."""
    dials = LENGTHS[max(least for least in LENGTHS if least <= epochs)]
    return replace(cfg, **{name: value for name, value in dials.items() if getattr(cfg, name) is OPEN})


def most_epochs(epochs: int) -> int:
    """The longest training whose open dials are set as those of one of `epochs`."""
    return min([least - 1 for least in LENGTHS if least > epochs], default=1000)


def either_way_up(pixels: Tensor, labels: Tensor, rows: Tensor, classes: int) -> Tensor:
    """Which classes hang upside down about as often as upright, by the rows named: (K,) bool.

    In each class a linear classifier tells the photos from themselves upside down; a fifth at a time, it learns from
    the rest. Where it is right less than 0.7 of the time, by two standard errors, neither way up is the right one (a
    two-sample test, Lopez-Paz & Oquab 2017). pixels: (N, 3, S, S) uint8; labels: (N,).
    """
    signs = torch.cat([upright_signs(pixels[some]) for some in rows.split(256)])                      # (R, 11, 4, 4)
    signs /= signs.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)
    either = torch.zeros(classes, dtype=torch.bool)
    for k in range(classes):
        own = signs[labels[rows] == k].flatten(1).numpy()                                             # (n, 176)
        if len(own) >= 5:
            upright = cross_val_predict(Ridge(2 * len(own), fit_intercept=False), own, np.ones(len(own)), cv=5) > 0
            either[k] = bool(upright.mean() + 2 * math.sqrt(0.25 / len(own)) < 0.7)
    return either


def upright_signs(pixels: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, 11, 4, 4): where edges of eight directions and red, green and blue lie.

    What the photo upside down would show is taken off, so that its own signs are these with a minus.
    """
    x = resized(pixels, 64).float() / 255
    down, right = torch.gradient(x.mean(dim=1), dim=(1, 2))                                           # (B, 64, 64)
    ways = torch.arange(0.5, 8) * (math.pi / 4)                           # upside down, the first becomes the last
    edges = torch.stack([(right * way.cos() + down * way.sin()).relu() for way in ways], dim=1)
    edges, light = F.adaptive_avg_pool2d(edges, 4), F.adaptive_avg_pool2d(x, 4)
    return torch.cat([edges - edges.flip(1, 2), light - light.flip(2)], dim=1)


def augment(pixels: Tensor, size: int, u: Tensor, cfg: Config, either_way: Tensor | bool = True) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, 3, size, size) floats in 0..1: one affine warp a photo, then light and colour.

    u: (B, DRAWS) uniform in 0..1, all the randomness there is, so that the result does not depend on the batch.
    cfg: `settled`. either_way: (B,) bool, which photos may be turned upside down.
    """
    def between(k: int, low: float, high: float) -> Tensor:
        return low + (high - low) * u[:, k]                                                            # (B,)

    angle = torch.deg2rad(between(0, -cfg.turn, cfg.turn)) + math.pi * (either_way & (u[:, 1] < cfg.upside_down))
    mirror = 1 - 2 * (u[:, 2] < cfg.flip).float()
    side = between(3, math.log(cfg.zoom), math.log(1.1)).exp() if cfg.zoom < 1 else torch.ones_like(u[:, 3])
    aspect = between(4, -cfg.stretch, cfg.stretch).exp()
    centre = (2 * u[:, 5:7] - 1) * (1 - side).abs()[:, None]           # as far out as the crop stays in the photo
    wide, high, cos, sin = side * aspect * mirror, side / aspect, angle.cos(), angle.sin()
    x = cut(pixels, size, centre, torch.stack([wide * cos, wide * sin], 1), torch.stack([-high * sin, high * cos], 1),
            "reflection")                                                                              # (B, 3, s, s)
    if cfg.colour:                                     # x <- tint * (contrast * (saturated x - mean) + mean)
        c = cfg.colour
        contrast, saturation = between(8, 1 - c, 1 + c), between(9, 1 - c, 1 + c)
        tint = between(7, 1 - c, 1 + c)[:, None] * (1 + c / 3 * (2 * u[:, 10:13] - 1))                 # (B, 3)
        mixing = (1 - saturation)[:, None, None] / 3 + saturation[:, None, None] * torch.eye(3, device=u.device)
        offset = tint * ((1 - contrast) * x.mean(dim=(1, 2, 3)))[:, None]                              # (B, 3)
        matrix = (tint * contrast[:, None])[:, :, None] * mixing                                       # (B, 3, 3)
        x = torch.baddbmm(offset[:, :, None], matrix, x.flatten(2)).view_as(x)
    return x.clamp_(0, 1)


def cut(pixels: Tensor, size: int, centre: Tensor, right: Tensor, down: Tensor, beyond: str) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, 3, size, size) floats in 0..1: a parallelogram of each photo, between its pixels.

    centre, right, down: (B, 2), its middle and the ways from there to its right and lower sides; x and y are in -1..1
    of the photo. beyond: the padding mode of `grid_sample`.
    """
    places = torch.arange(1 - size, size, 2, device=pixels.device)[:, None] / size     # (s, 1), middles of pixels
    rows = centre[:, None] + places * down[:, None]                                                    # (B, s, 2)
    grid = rows[:, :, None] + (places * right[:, None])[:, None]                                       # (B, s, s, 2)
    return F.grid_sample(pixels.float(), grid, padding_mode=beyond, align_corners=False).div_(255)


def mix_share(done: float, epochs: int, cfg: Config) -> float:
    """The probability that a batch is mixed after the share `done` of `epochs`: never at the end. cfg: `settled`."""
    return 0.0 if 1 - done <= min(0.2, 30 / epochs) + 1e-9 else cfg.mix     # unmixed photos are fitted in a few epochs


def mixup(x: Tensor, target: Tensor, u: Tensor, mix: float) -> tuple[Tensor, Tensor]:
    """Each photo of a mixed batch with its neighbour (Zhang et al. 2018); the batch is shuffled, so that is chance.

    x (B, 3, s, s); target (B, K) one-hot; u (2,) uniform numbers of this step.
    """
    if u[0] >= mix:
        return x, target
    share = 0.5 + 0.5 * (1 - u[1]) ** 2                # of the photo itself
    return share * x + (1 - share) * x.roll(1, dims=0), share * target + (1 - share) * target.roll(1, dims=0)


# ---------------------------------------------------------------------------------------------------------------------
# 5. The network
# ---------------------------------------------------------------------------------------------------------------------

class Block(nn.Module):
    """Two 3 x 3 convolutions and a way past them (He et al. 2016); it averages before it strides (ResNet-D).

    A gated block weighs its channels by what the whole photo shows (squeeze and excitation, Hu et al. 2018).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, batch_norm: bool, gated: bool):
        super().__init__()
        self.body = nn.Sequential(*convolution(inputs, outputs, 3, stride, batch_norm), nn.ReLU(inplace=True),
                                  *convolution(outputs, outputs, 3, 1, batch_norm))
        nn.init.zeros_(self.body[-1].get_parameter("weight"))   # a block starts as the identity (Goyal et al. 2017)
        self.gate = nn.Sequential(nn.Linear(outputs, outputs // 8), nn.ReLU(inplace=True),
                                  nn.Linear(outputs // 8, outputs), nn.Sigmoid()) if gated else None   # (B, C)
        self.past = nn.Sequential(*[nn.AvgPool2d(2, ceil_mode=True)] * (stride == 2),
                                  *convolution(inputs, outputs, 1, 1, batch_norm) if inputs != outputs else [])

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.gate is not None:                      # what the whole photo shows weighs the channels
            h = h * self.gate(h.mean(dim=(2, 3)))[:, :, None, None]
        return F.relu(self.past(x) + h, inplace=True)


def convolution(inputs: int, outputs: int, kernel: int, stride: int, batch_norm: bool) -> list[nn.Module]:
    """A convolution with its batch normalisation, or with a bias in place of it."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not batch_norm)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(outputs)] if batch_norm else [conv]


class BirdNet(nn.Module):
    """A residual network for photos of any size: RGB in 0..1 -> one logit a class.

    `self.features` gives the last feature map, (B, C, s/16, s/16), or of s/32 with COARSE strides. Class names, class
    sizes, channels, strides, the image size at which the network reads best and, once trained, its validation scores
    ride in the state_dict as plain values.
    """

    BLOCKS = (1, 1, 2, 2)                              # of the four stages, after a stem that gives 1/4 of the side

    def __init__(self, classes: int = 10, *, channels: tuple[int, ...] = NARROW, strides: tuple[int, ...] = FINE,
                 dropout: float = 0.2, batch_norm: bool = True):
        super().__init__()
        self.extra: dict[str, Any] = {"program": "bird", "classes": [str(k) for k in range(classes)],
                                      "counts": [1] * classes, "size": 128, "batch_norm": batch_norm}
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.full((3,), 0.5))     # of the training photos, by channel
        self.register_buffer("std", torch.full((3,), 0.25))
        self.dropout = nn.Dropout(dropout)
        self.build(list(channels), list(strides))

    def build(self, channels: list[int], strides: list[int]) -> None:
        """Stages of such channels, and strides of their first blocks, with random weights."""
        self.extra |= {"channels": channels, "strides": strides}
        batch_norm, inputs, blocks = self.extra["batch_norm"], channels[0], []
        for stage, (outputs, stride, depth) in enumerate(zip(channels, strides, self.BLOCKS, strict=True)):
            for k in range(depth):
                blocks.append(Block(inputs, outputs, stride if k == 0 else 1, batch_norm, gated=stage > 1))
                inputs = outputs
        conv, *norm = convolution(32, channels[0], 3, 1, batch_norm)
        self.features = nn.Sequential(
            *convolution(3, 32, 3, 2, batch_norm=False), nn.ReLU(inplace=True),
            conv, nn.MaxPool2d(2), *norm, nn.ReLU(inplace=True),   # pooled first: a quarter is left to normalise
            *blocks)
        self.head = nn.Linear(2 * inputs, len(self.extra["classes"]))

    def forward(self, x: Tensor) -> Tensor:                       # (B, 3, s, s) RGB in 0..1
        return self.read(self.see(x))

    def see(self, x: Tensor) -> Tensor:
        """(B, 3, s, s) RGB in 0..1 -> the last feature map, (B, C, s/16, s/16) or of s/32."""
        return self.features((x - self.mean[:, None, None]).div_(self.std[:, None, None]))

    def read(self, h: Tensor) -> Tensor:
        """The last feature map -> logits (B, K)."""
        h = torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1)    # (B, 2 C), whatever the size
        return self.head(self.dropout(h))

    def gaze(self, h: Tensor) -> Tensor:
        """Where the evidence for the likeliest class lies: (B, 2), x and y in -1..1 of the picture's sides.

        It is the centre of mass of the class activation map (Zhou et al. 2016) of the averaged half of the head.
        """
        weights = self.head.weight[self.read(h).argmax(dim=1), :h.shape[1]]                       # (B, C)
        heat = F.relu(torch.einsum("bchw,bc->bhw", h, weights))
        heat = heat / heat.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)   # of no evidence at all, the middle
        across, down = (torch.arange(0.5, n, device=h.device) * 2 / n - 1 for n in (h.shape[3], h.shape[2]))
        return torch.stack([heat.sum(dim=1) @ across, heat.sum(dim=2) @ down], dim=1)

    def load_state_dict(self, state_dict, *args, **kwargs):
        """As any module's; where the state is of other channels or strides, this network is built like it first."""
        told = {**EARLIER, **state_dict.get("_extra_state", self.extra)}
        if any(told[name] != self.extra[name] for name in EARLIER):
            self.build(told["channels"], told["strides"])
            self.train(self.training).to(self.mean.device)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def get_extra_state(self) -> dict:
        return self.extra

    def set_extra_state(self, state: dict) -> None:
        self.extra = {**EARLIER, **state}


def load_model(path: Path) -> BirdNet:
    """The network that `train` saved, in eval mode. Raises Mistake for a file that is not one."""
    state = load_state(path, "bird")
    extra = state["_extra_state"]
    net = BirdNet(len(extra["classes"]), batch_norm=extra["batch_norm"])
    try:
        net.load_state_dict(state)
    except (RuntimeError, ValueError) as error:        # of other layers, of another number of stages
        raise Mistake(f"{path} does not fit the network of this bird.py; use the version that trained it, "
                      "or train again.") from error
    return net.eval().to(memory_format=torch.channels_last)


def count_parameters(net: nn.Module) -> int:
    """The number of trained numbers."""
    return sum(p.numel() for p in net.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# 6. Train; every process of torchrun takes its share of each batch, rank 0 decides, prints and writes
# ---------------------------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, if it did; gives the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    elif device.type == "mps":
        raise Mistake("--device mps works in one process only; start bird.py without torchrun, or with --device cpu.")
    # between machines gloo would look its own name up, and on many a Linux that is the loopback
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1 and (found := interface_towards(os.environ["MASTER_ADDR"])):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                                timeout=timedelta(hours=12))      # the others wait while rank 0 decodes
    except RuntimeError as error:
        raise Mistake("the processes of torchrun do not find each other; give --master-addr the first machine's "
                      "address (not its name), or GLOO_SOCKET_IFNAME the network interface that leads to it "
                      f"({str(error).splitlines()[0]}).") from error
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if dist.get_rank() else sys.stdout):
            yield device
    except RuntimeError as error:
        if "gloo/transport" not in str(error):         # not of the connections
            raise
        raise Mistake("another process or machine of this training is lost; see what it printed, then give the same "
                      f"commands again: they go on from the last save ({str(error).splitlines()[0]}).") from error
    finally:
        dist.destroy_process_group()


def interface_towards(address: str) -> str | None:
    """The name of the network interface by which this machine reaches `address`; None where Linux does not tell."""
    if sys.platform != "linux":
        return None
    import fcntl  # not on Windows

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))                # sends nothing, only picks the way
        except OSError:                                # IPv6 alone, or no way
            return None
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):         # an interface without an IPv4 address
                reply = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))     # SIOCGIFADDR
                if socket.inet_ntoa(reply[20:24]) == probe.getsockname()[0]:
                    return name
    return None


def place() -> tuple[int, int]:
    """The rank of this process and the number of them: (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def add_up(t: Tensor) -> Tensor:
    """The sum of `t` over the processes of torchrun; `t` itself where there is but one."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(t)
    return t


def from_first(decide: Callable[[], Any]) -> Any:
    """What `decide` returns in rank 0, for every process; the Mistake that it raises there is raised in all of them."""
    answer: list[Any] = [None]
    if place()[0] == 0:
        try:
            answer = [decide()]
        except Mistake as mistake:
            answer = [mistake]
    if place()[1] > 1:
        dist.broadcast_object_list(answer, 0)
    if isinstance(answer[0], Mistake):
        raise answer[0]
    return answer[0]


@dataclass(frozen=True)
class Birds:
    """A training set: pixels (N, 3, STORED, STORED) uint8, labels (N,), class names, and the two sides of the split.

    The sides are row numbers, so that broken photos stay where they are and nothing is copied.
    """

    pixels: Tensor
    labels: Tensor
    fit: Tensor
    validation: Tensor
    classes: list[str]
    either_way: Tensor                  # (K,) bool: classes whose photos hang either way up

    def counts(self) -> Tensor:
        """The size of each class among the photos to fit, (K,) int64."""
        return torch.bincount(self.labels[self.fit], minlength=len(self.classes))

    def digest(self) -> str:
        """A short name of the data: the same photos, labels and split give the same."""
        hashed = hashlib.sha256(repr(self.classes).encode())
        for tensor in (self.labels, self.fit, self.validation, self.pixels[:, :, ::16, ::16].contiguous()):
            hashed.update(tensor.numpy().tobytes())
        return hashed.hexdigest()[:16]


def read_birds(folder: Path, scratch: Path, cfg: Config) -> Birds:
    """Finds, decodes and splits the training photos; broken ones are named and left out."""
    paths, labels, classes = find_training_images(folder)
    photos = decode(paths, scratch)
    name_broken(paths, photos.broken, "left out of the training")
    broken = set(photos.broken)
    rows = torch.tensor([i for i in range(len(paths)) if i not in broken])
    counts = torch.bincount(labels[rows], minlength=len(classes))
    if counts.min() < 2:
        raise Mistake(f"{folder / classes[counts.argmin()]} holds {counts.min()} readable photos, at least 2 are "
                      "needed to split a class; add photos or remove the folder.")
    groups = near_duplicates(photos)[rows]
    fit, validation = (rows[side] for side in split(labels[rows], groups, cfg.val_fraction, cfg.seed))
    either_way = either_way_up(photos.pixels, labels, fit, len(classes))
    print(f"data: {len(rows)} photos of {len(classes)} classes ({counts.min()} to {counts.max()} each), {len(fit)} "
          f"to fit, {len(validation)} to validate; "
          f"{len(rows) - len(groups.unique())} near-duplicates kept on one side of the split; "
          f"either way up: {', '.join(name for name, k in zip(classes, either_way, strict=True) if k) or 'no class'}")
    return Birds(photos.pixels, labels, fit, validation, classes, either_way)


def deal(read: Callable[[], Birds], scratch: Path, batch: int) -> tuple[Birds, str]:
    """This process's share of the photos that rank 0 reads, of both sides of the split, and the digest of all.

    Only rank 0 needs the folder; the pixels travel to the others 256 photos at a time.
    """
    rank, count = place()
    if count == 1:
        birds = read()
        return birds, birds.digest()
    whole: list[Birds] = []

    def first() -> tuple:
        birds = read()
        if count > min(len(birds.validation), batch):
            raise Mistake(f"{count} processes are too many for {batch} photos a step and {len(birds.validation)} to "
                          "validate; start fewer.")
        whole.append(birds)
        hands = [(birds.fit[r::count], birds.validation[r::count]) for r in range(count)]
        return birds.labels, birds.classes, birds.either_way, birds.digest(), hands

    labels, classes, either_way, digest, hands = from_first(first)
    fit, validation = hands[rank]
    pixels = empty_pixels((len(fit) + len(validation), 3, STORED, STORED), scratch)
    for r, hand in enumerate(hands):
        for start, rows in zip(range(0, len(labels), 256), torch.cat(hand).split(256)):     # noqa: B905
            if rank == 0 and r == 0:
                pixels[start:start + 256] = whole[0].pixels[rows]
            elif rank == 0:
                dist.send(whole[0].pixels[rows], r)
            elif rank == r:
                dist.recv(pixels[start:start + 256], 0)
    return Birds(pixels, labels[torch.cat(hands[rank])], torch.arange(len(fit)),
                 torch.arange(len(fit), len(pixels)), classes, either_way), digest


def name_broken(paths: list[Path], broken: list[int], fate: str) -> None:
    """Names the files that could not be read. Raises Mistake if none could."""
    if len(broken) == len(paths):
        raise Mistake(f"none of the {len(paths)} images can be read ({paths[0]}, ...); are they whole image files?")
    for i in broken:
        note(f"{paths[i]} cannot be read: {fate}.")


@dataclass
class Run:
    """A training as it stands: what a killed one needs to go on, and go on to the same bits."""

    cfg: Config                         # `settled`
    device: torch.device
    net: BirdNet
    averaged: BirdNet                   # exponential moving average of net, the one that is validated and saved
    optimisers: list[torch.optim.Optimizer]             # Muon for the convolutions, AdamW for all else
    scaler: torch.amp.GradScaler        # for float16 on older CUDA devices; passes everything through elsewhere
    weights: Tensor                     # (K,) class weights of the loss
    either_way: Tensor                  # (K,) bool: classes whose photos are turned upside down too
    batch: int                          # photos a step in this process
    steps: int                          # a whole epoch's
    photos: int                         # seen in an epoch, in all processes
    closing: float                      # the time from the last epoch to the saved model, in epochs of the last size
    forward: Callable[[Tensor], Tensor]                 # net, compiled where that helps
    epochs: int                         # planned
    pace: dict[int, float] = field(default_factory=dict)     # seconds of an epoch by image size, as planned
    timed_again: bool = False           # after epochs that were quicker than the pace
    epoch: int = 0                      # finished
    step: int = 0                       # finished in this epoch
    sums: tuple[float, float, int] = (0.0, 0.0, 0)      # loss, right ones, photos of this epoch so far
    best: float = math.inf              # validation loss of best_state
    best_state: dict = field(default_factory=dict)
    stale: int = 0                      # epochs since then
    history: list[dict] = field(default_factory=list)
    spent: float = 0.0                  # seconds in earlier processes
    paced_from: int = 0                 # epochs whose seconds say nothing of the pace: of earlier processes, or before
                                        # sizes were timed again
    started: float = field(default_factory=time.monotonic)

    PLAIN = ("epochs", "pace", "timed_again", "epoch", "step", "sums", "best", "best_state", "stale", "history")

    def seconds(self) -> float:
        """Wall time of the training so far, over all processes."""
        return self.spent + time.monotonic() - self.started

    def sizes(self) -> list[int]:
        """Pixels a side for each epoch planned."""
        return image_sizes(self.epochs, self.photos)

    def done(self) -> float:
        """The share of the planned steps that are taken."""
        return (self.epoch * self.steps + self.step) / (self.epochs * self.steps)

    def state(self) -> dict:
        """All of it, as tensors and plain values that `torch.load(weights_only=True)` reads."""
        return {"spent": self.seconds(),
                "net": self.net.state_dict(), "averaged": self.averaged.state_dict(),
                "optimisers": [o.state_dict() for o in self.optimisers], "scaler": self.scaler.state_dict(),
                **{name: getattr(self, name) for name in self.PLAIN}}

    def restore(self, state: dict) -> None:
        """The reverse of `state`."""
        for name in ("net", "averaged", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        for name in self.PLAIN:
            setattr(self, name, state[name])
        self.spent, self.paced_from = state["spent"], len(self.history)


class Muon(torch.optim.Optimizer):
    """Steps in the direction of the momentum, made orthogonal (Jordan et al. 2024), for weights of convolutions.

    A step moves a weight by 0.2 * lr in root mean square, about as far as AdamW's do, so both share one schedule
    (Liu et al. 2025). Weight decay is decoupled. Products are taken in `kind`, a float type.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float, kind: torch.dtype):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.kind = kind

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                if p not in self.state:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"]
                momentum.lerp_(p.grad, 0.1)
                ahead = p.grad.lerp(momentum, 0.9).flatten(1)                # (O, I k k), as Nesterov looks ahead
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonal(ahead.to(self.kind)).view_as(p), alpha=-0.2 * group["lr"] * max(ahead.shape) ** 0.5)


def orthogonal(g: Tensor) -> Tensor:
    """(O, I) -> roughly U V' of its singular value decomposition U S V': three Newton-Schulz steps in the type of g.

    They bring singular values from a fiftieth of the norm on to between 0.68 and 1.21. Two more steps would bring
    smaller ones there (Jordan et al. 2024), and train no better. Each multiplies by a polynomial of x x', so all are
    worked out on that small matrix, and the long one is multiplied twice in all.
    """

    def factor(a: Tensor) -> Tensor:                                          # 3.4445 - 4.7750 a + 2.0315 a a
        p = torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315)
        p.diagonal().add_(3.4445)
        return p

    x = g / g.norm().clamp(min=1e-12)
    x = x.T if len(g) > g.shape[1] else x                                     # the smaller products
    a = x @ x.T
    q = factor(a)
    for _ in range(2):
        q = factor(q @ a @ q) @ q                                             # all of them commute
    x = q @ x
    return x.T if len(g) > g.shape[1] else x


def new_run(birds: Birds, cfg: Config, epochs: int, device: torch.device, started: float) -> Run:
    """Random weights from the seed, and all else at its start."""
    seed_everything(cfg.seed)
    cfg = settled(cfg, epochs)
    counts = add_up(birds.counts())
    steps = max(1, int(counts.sum()) // cfg.batch)
    net = BirdNet(len(birds.classes), channels=cfg.channels, strides=cfg.strides, dropout=cfg.dropout,
                  batch_norm=cfg.batch_norm)
    net.extra |= {"classes": birds.classes, "counts": counts.tolist()}
    sample = birds.pixels[birds.fit, :, ::8, ::8].double() / 255
    mean, square = add_up(torch.stack([(sample**k).mean(dim=(2, 3)).sum(dim=0) for k in (1, 2)])) / counts.sum()
    net.mean.copy_(mean)
    net.std.copy_((square - mean**2).sqrt())
    net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    filters, matrices, vectors = ([p for p in net.parameters() if p.ndim == n] for n in (4, 2, 1))
    optimisers = [Muon(filters, cfg.lr, cfg.weight_decay, half_type(device) or torch.float32),
                  torch.optim.AdamW([{"params": matrices, "weight_decay": cfg.weight_decay},
                                     {"params": vectors, "weight_decay": 0.0}],       # biases, scales
                                    lr=cfg.lr, betas=(0.9, 0.99), fused=device.type != "mps")]
    weights = counts.sum() / (len(counts) * counts) if cfg.class_weights else torch.ones(len(counts))
    batch = max(1, cfg.batch // place()[1])
    looks = 2 * min(cfg.renewed, len(birds.fit)) + 1.5 * len(birds.validation)               # of `finish`
    return Run(cfg, device, net, deepcopy(net).eval().requires_grad_(False), optimisers,
               torch.amp.GradScaler(device.type, enabled=half_type(device) == torch.float16), weights.to(device),
               birds.either_way.to(device), batch=batch, steps=steps, photos=steps * cfg.batch,
               closing=LOOK * looks / (steps * batch + LOOK * len(birds.validation)),
               forward=compiled(net) if worth_compiling(device, cfg) else net, epochs=epochs, started=started)


def worth_compiling(device: torch.device, cfg: Config) -> bool:
    """CUDA with Triton, in a training long enough to earn the compilations back: by default, or from 20 minutes on."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None and cfg.budget >= 20


def compiled(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The forward pass compiled anew for each image size; PyTorch goes on without where its compiler fails."""
    torch._dynamo.reset()                              # what an earlier network left counts against the limit
    torch._dynamo.config.suppress_errors = True
    return torch.compile(net, dynamic=False)


def half_type(device: torch.device) -> torch.dtype | None:
    """The short float of mixed precision: bfloat16 where the hardware multiplies it, float16 on older CUDA devices."""
    if device.type == "cpu":           # Intel's server processors since 2023 (matrix units), AMD's since 2022 (vectors)
        has = dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}
        return torch.bfloat16 if has.get("amx_bf16") or has.get("avx512_bf16") else None
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def mixed_precision(device: torch.device) -> torch.autocast:
    """Within it, convolutions run in `half_type` where there is one."""
    half = half_type(device)
    return torch.autocast(device.type, dtype=half, enabled=half is not None)


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next step; by default large blocks are given back and paged in anew."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 2**31 - 1) or libc.mallopt(-3, 2**25)      # M_MMAP_THRESHOLD; older ones stop at 32 MB
        libc.mallopt(-1, 2**31 - 1)                                 # M_TRIM_THRESHOLD


def train_step(run: Run, pixels: Tensor, labels: Tensor, size: int, u: Tensor, v: Tensor) -> None:
    """One step on one batch: pixels (B, 3, S, S) uint8, labels (B,), u (B, DRAWS) and v (2,) uniform."""
    cfg, device = run.cfg, run.device
    labels = labels.to(device)
    x = augment(pixels.to(device), size, u.to(device), cfg, run.either_way[labels])       # (B, 3, size, size) in 0..1
    target = F.one_hot(labels, len(run.weights)).float()                                  # (B, K)
    x, target = mixup(x, target, v, mix_share(run.done(), run.epochs, cfg))
    for group in (group for optimiser in run.optimisers for group in optimiser.param_groups):
        group["lr"] = cfg.lr * rate(run.done(), cfg)
    with mixed_precision(device):
        logits = run.forward(x.contiguous(memory_format=torch.channels_last)).float()     # (B, K)
    loss = F.cross_entropy(logits, target, weight=run.weights, label_smoothing=cfg.smoothing)
    run.net.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()
    average_gradients(run.net)
    for optimiser in run.optimisers:
        run.scaler.step(optimiser)
    run.scaler.update()
    run.step += 1
    decay = min(cfg.average, (run.epoch * run.steps + run.step) / (10 + run.epoch * run.steps + run.step))
    average(run.averaged, run.net, decay)
    right = (logits.detach().argmax(dim=1) == target.argmax(dim=1)).sum()
    run.sums = (run.sums[0] + loss.item() * len(x), run.sums[1] + right.item(), run.sums[2] + len(x))


def average_gradients(net: nn.Module) -> None:
    """The mean of the processes' gradients, in each of them, in one message."""
    count = place()[1]
    if count > 1:
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        flat = add_up(torch.cat([g.flatten() for g in gradients])) / count
        parts = flat.split([g.numel() for g in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


@torch.no_grad()
def average_statistics(net: nn.Module) -> None:
    """The mean of the processes' batch statistics, in each of them."""
    count = place()[1]
    for statistic in net.buffers() if count > 1 else ():
        if statistic.is_floating_point():
            statistic.copy_(add_up(statistic.clone()) / count)


def gathered(t: Tensor) -> Tensor:
    """The processes' rows, one after the other."""
    parts: list[Any] = [t] * place()[1]
    if len(parts) > 1:
        dist.all_gather_object(parts, t)
    return torch.cat(parts)


def rate(done: float, cfg: Config) -> float:
    """The step size's factor after the share `done` of the training: warm-up, then half a cosine (Smith 2018)."""
    if cfg.schedule == "constant":
        return 1.0
    if done < cfg.warmup:
        return done / cfg.warmup
    return 0.5 * (1 + math.cos(math.pi * (done - cfg.warmup) / (1 - cfg.warmup)))


@torch.no_grad()
def average(averaged: nn.Module, net: nn.Module, decay: float) -> None:
    """averaged <- decay * averaged + (1 - decay) * net, weights and batch statistics alike (Polyak & Juditsky 1992)."""
    pairs = [(a, b) for a, b in zip(averaged.state_dict().values(), net.state_dict().values(), strict=True)
             if isinstance(a, Tensor)]
    floats = [(a, b) for a, b in pairs if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
    for a, b in pairs:
        if not a.is_floating_point():                  # batch normalisation's counter
            a.copy_(b)


def image_sizes(epochs: int, photos: int) -> list[int]:
    """Pixels a side for each of `epochs` epochs of `photos` photos, full size last; a function of these two alone."""
    ladder = [(share, size + 16 * sum(epochs * photos >= later * seen for seen in LARGER))
              for share, size, later in SIZES]
    return [next(size for share, size in ladder if epoch + 1 <= share * epochs + 1e-9) for epoch in range(epochs)]


def all_sizes() -> list[int]:
    """Every size that `image_sizes` can give."""
    return sorted({size + 16 * times for _, size, _ in SIZES for times in range(len(LARGER) + 1)})


def side_for(size: int) -> int:
    """Pixels a side of the photos that crops of `size` are cut from: more than `size`, since a crop enlarges."""
    return min(STORED, 2 * size)


def plan(birds: Birds, cfg: Config, device: torch.device, started: float) -> Run:
    """A training ready to start, of as many epochs as the budget allows where `--epochs` does not say.

    Steps are timed as a short training takes them, and again as a long and a very long one do if there is the time.
    """
    if cfg.epochs is not None:
        return new_run(birds, cfg, cfg.epochs, device, started)
    plans: list[Run] = []
    for least in LENGTHS:
        run = new_run(birds, cfg, least, device, started)
        run.pace = time_epochs(birds, run.cfg, device)
        left = 0.95 * 60 * cfg.budget - from_first(run.seconds)         # some for a slower hour
        fit = epochs_within(left, run.pace, run.photos, closing=run.closing)
        if plans and fit < least:
            break
        run.epochs = coarse_epochs(min(fit, most_epochs(least)))
        plans.append(run)
        if run.epochs == fit:                          # the dials of longer ones are for more epochs than there are
            break
    run = plans[-1]
    sides = " then ".join(f"{size} px" for size in dict.fromkeys(run.sizes()))
    print(f"plan: {run.epochs} epochs of {run.steps} steps at {sides} for "
          f"{cfg.budget:g} minutes; --epochs {run.epochs} repeats it on any machine")
    return run


def time_epochs(birds: Birds, cfg: Config, device: torch.device) -> dict[int, float]:
    """Seconds of an epoch at each image size, with its validation.

    Two to five steps are timed at each of three sizes, fewer once they cost a hundredth of the budget, on a network
    thrown away after; time goes with the area between the sizes and beyond. The largest size, whose steps are slow, is
    left out where the budget is too short for any larger than SIZES has. cfg: `settled`.
    """
    run = new_run(birds, cfg, 1000, device, time.monotonic())
    timed: dict[int, float] = {}                                        # seconds of an epoch, by size
    batch = birds.fit[:run.batch]
    sizes = all_sizes()
    for size in (SIZES[0][1], SIZES[-1][1], sizes[-1]):
        if size == sizes[-1] and timed[sizes[0]] * LARGER[0] / run.photos > 60 * cfg.budget:
            break
        times: list[float] = []
        cost = torch.zeros(())                                          # over all processes, so that they stop together
        while len(times) < 2 or (len(times) < 5 and cost / place()[1] < 0.01 * 60 * cfg.budget):
            start = time.perf_counter()
            train_step(run, resized(birds.pixels[batch], side_for(size)), birds.labels[batch], size,
                       torch.rand(len(batch), DRAWS), torch.rand(2))
            times.append(time.perf_counter() - start)
            cost = add_up(torch.tensor(sum(times)))
        # the first step warms up
        seconds = min(times[1:]) * (run.steps + LOOK * len(birds.validation) / len(batch))
        timed[size] = add_up(torch.tensor(seconds)).item() / place()[1]
    last = max(timed)
    return {size: float(np.interp(size**2, [s**2 for s in timed], list(timed.values()))) * max(1, (size / last)**2)
            for size in sizes}


def epochs_within(left: float, pace: dict[int, float], photos: int, first: int = 0, most: int = 1000,
                  closing: float = 0.0) -> int:
    """The longest coarse plan, of `most` epochs at most, whose epochs from `first` on take at most `left` seconds.

    pace: seconds of an epoch by image size; photos: seen in an epoch; closing: `Run.closing`.
    """
    def needs(epochs: int) -> float:
        sizes = image_sizes(epochs, photos)
        return sum(pace[size] for size in sizes[first:]) + closing * pace[sizes[-1]]

    fit = first + 1
    while fit < most and needs(fit + 1) <= left:
        fit += 1
    return coarse_epochs(fit)


def train_epoch(run: Run, birds: Birds, pixels: Tensor, stop: threading.Event, save: Callable[[bool], None]) -> bool:
    """The rest of the epoch that `run` stands in. False if it was cut short.

    pixels: (N, 3, S, S) uint8, all photos at S = `side_for` this epoch's size; save(now) is called after each step.
    """
    size = run.sizes()[run.epoch]
    rank = place()[0]
    randomness = stream(run.cfg.seed, run.epoch, rank)
    order = birds.fit[torch.randperm(len(birds.fit), generator=randomness)]
    u = torch.rand(len(birds.labels), DRAWS, generator=randomness)       # by photo
    v = torch.rand(run.steps, 2, generator=randomness)                   # by step
    run.net.train()
    end = 60 * run.cfg.budget * 0.98 - run.closing * run.pace.get(run.sizes()[-1], 0)    # seconds; `finish` comes after
    bar = progress(range(run.step, run.steps), run.steps, f"epoch {run.epoch + 1}/{run.epochs}")
    for step in bar:
        torch.manual_seed(stream(run.cfg.seed, run.epoch, rank, step).initial_seed())     # of dropout
        batch = order[step * run.batch:(step + 1) * run.batch]
        train_step(run, pixels.index_select(0, batch), birds.labels[batch], size, u[batch], v[step])
        late = rank == 0 and run.cfg.epochs is None and run.seconds() > end
        stopped, late = add_up(torch.tensor([stop.is_set(), late], dtype=torch.int32)).tolist()
        save(stopped)
        if stopped:
            raise KeyboardInterrupt("The same command goes on from here.")
        if late:
            return False
    return True


def validate(run: Run, birds: Birds, seconds: float) -> dict:
    """The history's line of the epoch that has just ended; keeps the averaged weights if their loss is the lowest.

    The loss and not the score, which of a few hundred photos is the noisier guide: see docs/log.md.
    """
    size = run.sizes()[run.epoch]
    judged = run.averaged if run.cfg.average else deepcopy(run.net).eval()
    average_statistics(judged)
    judged.extra["size"] = size
    p, truth, macro, micro = judge(judged, birds, run.device)
    loss_sum, right, seen = add_up(torch.tensor(run.sums, dtype=torch.float64)).tolist()
    loss = F.nll_loss(p.clamp(min=1e-7).log(), truth, weight=run.weights.cpu()).item()
    row = {"epoch": run.epoch + 1, "epochs": run.epochs, "size": size, "lr": run.optimisers[0].param_groups[0]["lr"],
           "train_loss": loss_sum / seen, "train_accuracy": right / seen,
           "val_loss": loss, "val_accuracy": micro, "val_macro_f1": macro, "val_score": (macro + micro) / 2,
           "seconds": round(seconds, 2), "best": loss < run.best}
    run.stale = 0 if row["best"] else run.stale + 1
    if row["best"]:
        run.best, run.best_state = loss, deepcopy(judged.state_dict())
    return row


def judge(net: BirdNet, birds: Birds, device: torch.device) -> tuple[Tensor, Tensor, float, float]:
    """Of all processes' validation photos, looked at once: probabilities (V, K), labels (V,), macro and micro F1."""
    p = gathered(predict(net, birds.pixels, net.extra["size"], device, birds.validation, looks=1))
    truth = gathered(birds.labels[birds.validation])
    return p, truth, *scores(truth.tolist(), p.argmax(dim=1).tolist())


def finish(run: Run, birds: Birds) -> tuple[dict, float, float]:
    """The best weights with batch statistics of plain photos: their state_dict, macro and micro F1 in validation.

    Batches of training are of augmented crops. Here the statistics are taken anew, of photos to fit as `predict` looks
    at them (as Touvron et al. 2019 do for another size); no weight changes.
    """
    net = run.averaged
    net.load_state_dict(run.best_state)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    some = min(run.cfg.renewed, len(birds.fit) // 128 * 128 or len(birds.fit))  # batches of one length weigh the same
    rows = birds.fit[torch.randperm(len(birds.fit), generator=stream(run.cfg.seed, place()[0]))[:some]]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None                           # the mean over all batches
        norm.train()
    if norms:
        predict(net, birds.pixels, net.extra["size"], run.device, rows, looks=2)
    average_statistics(net.eval())
    _, _, macro, micro = judge(net, birds, run.device)
    net.extra["validated"] = {"macro_f1": macro, "accuracy": micro}
    return net.state_dict(), macro, micro


def train(folder: Path, model_path: Path, cfg: Config, resume: bool = True) -> tuple[float, float]:
    """Trains on the photos in `folder`; saves the best averaged weights as a state_dict at `model_path`.

    Returns macro and micro F1 of what is saved, on the validation photos.
    Beside it stand <name>.history.jsonl, one line an epoch, and, while it runs, <name>.resume.pt.
    """
    started = time.monotonic()
    with processes(pick_device(cfg.device)) as device:
        first = place()[0] == 0
        keep_freed_memory()
        from_first(lambda: check_writable(model_path))
        birds, digest = deal(lambda: read_birds(folder, model_path.parent, cfg), model_path.parent,
                             settled(cfg, 1).batch)
        history_path, resume_path = model_path.with_suffix(".history.jsonl"), model_path.with_suffix(".resume.pt")
        key = [repr(cfg), digest, str(torch.__version__), device.type, place()[1],
               hashlib.sha256(Path(__file__).read_bytes()).hexdigest()]
        state = from_first(lambda: read_resume(resume_path, key)) if resume else None
        if not state:
            run = plan(birds, cfg, device, started)
        else:
            run = new_run(birds, cfg, state["epochs"], device, started)
            run.restore(state)
            print(f"going on after {run.epoch} of {run.epochs} epochs and {run.step} of {run.steps} steps")
        print(f"network: {count_parameters(run.net):,} parameters, on {device}{f' x {place()[1]}' * (place()[1] > 1)}")
        pixels, whole, saved = torch.empty(0), True, -math.inf

        def save(now: bool) -> None:                       # otherwise not more often than every 20 seconds
            nonlocal saved
            if first and (now or time.monotonic() - saved > 20):
                save_atomic(resume_path, {"key": key, **run.state()})
                saved = time.monotonic()

        with ctrl_c_waits() as stop:
            while whole and run.epoch < run.epochs and run.stale < max(10, run.cfg.patience * run.epochs):
                side = side_for(run.sizes()[run.epoch])
                pixels = pixels if pixels.shape[-1] == side else resized(birds.pixels, side, model_path.parent)
                whole = train_epoch(run, birds, pixels, stop, save)
                if not math.isfinite(add_up(torch.tensor(run.sums[0]))):
                    note(f"the loss is no longer finite in epoch {run.epoch + 1}: training ends, the best weights "
                         "stay.")
                    break
                run.history.append(validate(run, birds, from_first(run.seconds)))
                show(run.history[-1])
                if first:
                    write_history(history_path, run.history)
                run.epoch, run.step, run.sums = run.epoch + 1, 0, (0.0, 0.0, 0)
                if whole:
                    keep_pace(run, birds)
        if not run.best_state:
            raise Mistake(f"{model_path} is not written: no epoch ended with a finite loss; try a lower learning rate.")
        best, macro, micro = finish(run, birds)
        if first:
            save_atomic(model_path, best)
            resume_path.unlink(missing_ok=True)
            print(f"saved {model_path}: validation score {(macro + micro) / 2:.4f}, {run.seconds() / 60:.1f} minutes")
        return macro, micro


def read_resume(path: Path, key: list) -> dict | None:
    """The state of a training that was cut off, or None; one of other settings or photos is not used, and said."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["key"] == key:
            return state
        note(f"{path} belongs to other settings, photos, another torch or bird.py: starting anew.")
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError):
        note(f"{path} is not a whole file: starting anew.")
    return None


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[threading.Event]:
    """Within it, Ctrl-C only sets the event, so that no step is cut in half; a second Ctrl-C stops at once."""
    stop = threading.Event()

    def on_signal(*_):
        if stop.is_set():
            raise KeyboardInterrupt("Stopped at once; the same command goes on from the last save.")
        stop.set()

    if threading.current_thread() is not threading.main_thread():       # only the main thread may set handlers
        yield stop
        return
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def keep_pace(run: Run, birds: Birds) -> None:
    """Holds the plan against the clock after each epoch.

    A slower machine: the next epochs are left out, no more at a time than the slowness asks for. None are for a
    disturbance that is over, nor early on for up to a fifth too much. A faster one, seen in the first half (or five
    epochs): all sizes are timed again, once, for a longer plan; where the last epochs took longer than that tells,
    all sizes are held to take as much longer.
    """
    recent = run.history[max(run.paced_from, len(run.history) - max(5, run.epochs // 8)):]
    if not run.pace or run.epoch >= run.epochs or len(recent) < 3:
        return

    def slowness(rows: list[dict]) -> float:           # of the epochs after the first of them; 1 as planned
        return max(1e-3, (rows[-1]["seconds"] - rows[0]["seconds"]) / sum(run.pace[row["size"]] for row in rows[1:]))

    slow = slowness(recent)
    slow_now = min(slow, slowness(recent[-4:]))
    left = 60 * run.cfg.budget * 0.98 - recent[-1]["seconds"]
    sizes = run.sizes()
    need = slow_now * (sum(run.pace[size] for size in sizes[run.epoch:]) + run.closing * run.pace[sizes[-1]])
    if need > left * (1.2 - 0.2 * run.done()):         # early on, a little may yet go by
        skipped = min(math.ceil(need / max(left, 1e-9)) - 1, run.epochs - 1 - run.epoch)
        if skipped:
            run.epoch += skipped
            note(f"{slow_now:.2f} times as slow as planned: {skipped} epoch{'s are' if skipped > 1 else ' is'} left "
                 f"out to end in time (--epochs {run.epochs} has them all).")
    elif slow < 0.9 and run.epoch <= max(5, 0.5 * run.epochs) and not run.timed_again:
        run.pace, run.timed_again = time_epochs(birds, run.cfg, run.device), True
        lag = max(1.0, slowness(recent))
        run.pace = {size: lag * seconds for size, seconds in run.pace.items()}
        run.paced_from = len(run.history)                              # the next epoch's seconds hold this timing
        longer = epochs_within(0.96 * left, run.pace, run.photos, run.epoch, most_epochs(run.epochs), run.closing)
        if longer > run.epochs:
            run.epochs = longer
            note(f"{slow:.2f} times the time planned: the plan is now {run.epochs} epochs.")


def show(row: dict) -> None:
    """One line of the history for people."""
    print(f"epoch {row['epoch']:3d}/{row['epochs']} {row['size']} px  loss {row['train_loss']:.3f}  validation loss "
          f"{row['val_loss']:.3f} accuracy {row['val_accuracy']:.4f} macro F1 {row['val_macro_f1']:.4f}"
          f"{' *' if row['best'] else '  '} {row['seconds'] / 60:.1f} min", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# 7. Predict
# ---------------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def predict(net: BirdNet, pixels: Tensor, size: int, device: torch.device, rows: Tensor | None = None,
            looks: int | None = None) -> Tensor:
    """(N, 3, S, S) uint8 -> (R, K) probabilities of the rows named (or all), means over the looks at a photo.

    The first is at all but the photo's edges, as large as training's crops show it. Where it is not SURE, a second one,
    mirrored, is closer to where the first found the bird; where the two leave DOUBT, both are taken mirrored as well.
    looks: 1 or 2 is so many at every photo, sure or not.
    """
    rows = torch.arange(len(pixels)) if rows is None else rows
    edge = round((1 - MIDDLE) / 2 * pixels.shape[-1])
    inner = pixels[:, :, edge:pixels.shape[-1] - edge, edge:pixels.shape[-1] - edge]
    p = torch.zeros(len(rows), net.head.out_features)
    centre = torch.zeros(len(rows), 2)                         # of the bird, by the first look

    def whole(some: Tensor) -> Tensor:
        return resized(inner[rows[some]], size).to(device, memory_format=torch.channels_last).float() / 255

    def close(some: Tensor) -> Tensor:
        cut_from = resized(pixels[rows[some]], side_for(size)).to(device)              # as sharp as training's crops
        return closer(cut_from, MIDDLE * centre[some].to(device), size).flip(3)

    def look(x: Tensor) -> tuple[Tensor, Tensor]:              # probabilities (B, K) and where the bird is (B, 2)
        with mixed_precision(device):
            h = net.see(x)
            answer = net.read(h).float().softmax(dim=1)
        return answer.cpu(), net.gaze(h.float()).cpu()

    def batches(some: Tensor) -> tuple[Tensor, ...]:
        return some.split(128) if len(some) else ()

    everything = torch.arange(len(rows))
    for some in batches(everything):
        p[some], centre[some] = look(whole(some))
    if looks == 1:
        return p
    unsure = everything if looks == 2 else everything[p.amax(dim=1) < SURE]
    for some in batches(unsure):
        p[some] = (p[some] + look(close(some))[0]) / 2
    if looks == 2:
        return p
    doubtful = unsure[p[unsure].amax(dim=1) < DOUBT]
    for some in batches(doubtful):
        p[some] = (2 * p[some] + sum(look(seen(some).flip(3))[0] for seen in (whole, close))) / 4
    return p


def closer(pixels: Tensor, centre: Tensor, size: int) -> Tensor:
    """(B, 3, S, S) uint8 -> the square of CLOSER times the side about `centre`, inside the photo, as floats in 0..1.

    centre: (B, 2), x and y in -1..1. Returns (B, 3, size, size), channels last.
    """
    centre = centre.clamp(CLOSER - 1, 1 - CLOSER)
    right, down = (CLOSER * torch.eye(2, device=centre.device)).expand(len(centre), 2, 2).unbind(1)
    return cut(pixels, size, centre, right, down, "border").contiguous(memory_format=torch.channels_last)


def scores(truth: list, predicted: list) -> tuple[float, float]:
    """Macro F1 over the classes that occur in `truth`, and micro F1 (for one label an image: the accuracy)."""
    macro = f1_score(truth, predicted, labels=sorted(set(truth)), average="macro", zero_division=0)
    return float(macro), float(accuracy_score(truth, predicted))


def test(folder: Path, model_path: Path, csv_path: Path, device: torch.device) -> None:
    """Writes one class index an image, in ImageFolder's order, and prints the scores where the folders name classes."""
    net = load_model(model_path).to(device)
    classes, counts, size = (net.extra[name] for name in ("classes", "counts", "size"))
    paths, names = find_images(folder)
    check_level(folder, paths, classes)
    check_writable(csv_path)
    predicted: list[int] = []
    broken: list[int] = []
    chunks = [paths[i:i + 512] for i in range(0, len(paths), 512)]      # so that any number of photos fits in memory
    for chunk in progress(chunks, len(chunks), "labelling"):
        photos = decode(chunk, quiet=True)
        broken += [len(predicted) + i for i in photos.broken]
        predicted += predict(net, photos.pixels, size, device).argmax(dim=1).tolist()
    name_broken(paths, broken, f"labelled as the most frequent class of the training, {classes[np.argmax(counts)]}")
    for i in broken:
        predicted[i] = int(np.argmax(counts))
    write_atomic(csv_path, "\n".join(["Predicted_Label", *map(str, predicted), ""]).encode())
    print(f"{len(paths)} images labelled: {csv_path}")
    if set(names) <= set(classes):
        macro, micro = scores([classes.index(name) for name in names], predicted)
        print(f"score {(macro + micro) / 2:.4f} = (macro F1 {macro:.4f} + micro F1 {micro:.4f}) / 2")
    else:
        unknown = sorted(set(names) - set(classes))[0]
        print(f"no score: {f'folder {unknown!r} is' if unknown else 'a flat folder names'} no class of the model")


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bird.py", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Trains a network on a folder of bird photos, or labels photos with it.",
        epilog="commands:\n  python bird.py DATASET train bird.pth   trains, saves the model as bird.pth\n"
               "  python bird.py DATASET test  bird.pth   writes bird.csv in the current folder")
    parser.add_argument("dataset", type=Path, help="DATASET/<class>/<image>, one folder a class")
    parser.add_argument("mode", choices=["train", "test"])
    parser.add_argument("model", type=Path, help="the model's file, such as bird.pth")
    parser.add_argument("--budget", type=float, default=Config.budget, metavar="MINUTES",
                        help="wall-clock limit that the training is fitted to (default %(default)g)")
    parser.add_argument("--epochs", type=int, metavar="N", help="this many epochs, however long they take")
    parser.add_argument("--seed", type=int, default=Config.seed, metavar="N", help="default %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda", "mps"], help="default: the best one here")
    parser.add_argument("--no-resume", action="store_true", help="start anew although a cut-off training could go on")
    parser.add_argument("--csv", type=Path, default=Path("bird.csv"), metavar="PATH", help="default %(default)s")
    args = parser.parse_args(argv)
    if args.mode == "train":
        cfg = Config(seed=args.seed, epochs=args.epochs, budget=args.budget, device=args.device)
        train(args.dataset, args.model, cfg, resume=not args.no_resume)
    elif int(os.environ.get("RANK", "0")) == 0:                         # of torchrun
        test(args.dataset, args.model, args.csv, pick_device(args.device))


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
