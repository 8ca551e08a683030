"""bird.py - a convolutional network, trained from random weights, names the bird in a photo.

    python bird.py DATASET train bird.pth    # DATASET/<class>/<image>; trains, saves the model
    python bird.py DATASET test  bird.pth    # writes bird.csv in the current folder

The file reads in the order of the data: find -> decode -> split -> augment -> BirdNet ->
optimise -> train -> predict. Results: bench/RESULTS.md. Experiments: docs/log.md.
Axes: N photos, B images a batch, K classes, C channels, S px a side stored, s px a side seen.
"""

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import re
import signal
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageFile, ImageOps
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

STORED = 240             # px a side: each photo is decoded once, to this size
MOST_PIXELS = 50e6       # of a photo, where it is no JPEG, which is decoded at a reduced size
PART = re.compile(r"(?<![a-z])(train|test|val|valid|eval|images)(ing|idation|set)?(?![a-z])", re.I)
EPOCHS = sorted({round(1.1**k) for k in range(61)})    # plans, 1 to 304 epochs; more gain nothing


@dataclass(frozen=True)
class Config:
    """Every hyper-parameter: one recipe for all budgets. The command line sets the first four."""

    seed: int = 0
    epochs: int | None = None        # None: as many as fit the budget
    budget: float = 110.0         # minutes from the start to the saved model; ignored with `epochs`
    device: str | None = None        # None: cuda, mps or cpu, the first one found
    # augmentation, at full magnitude
    hflip: float = 0.5               # probability of a mirror image
    vflip: float = 0.15              # probability of an upside-down image
    degrees: float = 20.0            # rotation, either way
    min_scale: float = 0.45          # shortest side of a crop, as a share of the photo's
    log_ratio: float = 0.2           # log of the aspect ratio, either way
    jitter: float = 0.3            # brightness, contrast, saturation: times 1 +- this; hue: a third
    mixup: float = 0.5               # probability that a batch is mixed, except in the last fifth
    # optimisation
    batch_size: int = 128
    lr: float = 8e-3                 # peak learning rate of Muon and AdamW
    weight_decay: float = 0.4        # decoupled, on the weights of convolutions and linear layers
    warmup: float = 0.15             # share of the training; then half a cosine to 0
    schedule: str = "cosine"         # or "constant"
    label_smoothing: float = 0.1
    class_weights: bool = True       # cross-entropy weighted inversely to the class sizes
    dropout: float = 0.2             # before the head
    batch_norm: bool = True
    ema_decay: float = 0.98          # of the averaged weights, a step; 0: no averaging
    patience: float = 0.3            # early stopping: share of the epochs without a lower loss

    def __post_init__(self):
        if (self.epochs is not None and self.epochs < 1) or not 0 < self.budget < math.inf:
            raise UserError(f"--epochs {self.epochs} or --budget {self.budget:g} is not above 0.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed} does not lie in 0 to 2**63 - 1.")


# ------------------------------------------------------ shared with vae.py, word for word (tested)

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


# ------------------------------------------------------ 1. find the images
def files_below(folder: Path) -> list[Path]:
    """All files, in ImageFolder's order; links are followed, but to no folder above them."""
    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); move it elsewhere.")

    found = []
    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        here = Path(os.path.abspath(root))
        above = {os.path.realpath(path) for path in (here, *here.parents)}
        folders[:] = [name for name in folders if os.path.realpath(here / name) not in above]
        found.append((root, sorted(names)))
    return [Path(root, name) for root, names in sorted(found) for name in names]


def find_images(folder: Path) -> tuple[list[Path], list[str]]:
    """Paths and class-folder names ("" in a flat folder), in ImageFolder's order."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); expected "
                        f"{folder}/<class name>/<image>.jpg.") from error
    found = [(path, name) for name in entries if (folder / name).is_dir()
             for path in files_below(folder / name) if path.name.lower().endswith(IMG_EXTENSIONS)]
    found = found or [(folder / name, "") for name in entries
                      if name.lower().endswith(IMG_EXTENSIONS) and not (folder / name).is_dir()]
    if not found:
        raise UserError(f"{folder} holds no images; expected {folder}/<class name>/<image>.jpg.")
    inside = [(path, name) for path, name in found if name and not hidden(path, folder)]
    sizes = Counter(name for _, name in inside)
    deep = set(sizes) - {name for path, name in inside if path.parent == folder / name}
    if deep and (len(deep) == len(sizes) or any(map(PART.search, sizes))):
        place = folder / max(deep, key=lambda name: ("train" in name.lower(), sizes[name]))
        find_images(place)                                 # which may name a folder deeper still
        raise UserError(f"{folder} holds its class folders one level deeper; name {place}.")
    return [path for path, _ in found], [name for _, name in found]


def left_out(folder: Path, paths: list[Path]) -> list[tuple[Path, str]]:
    """Folders and what is not used of them: files of other kinds, class folders without images."""
    known, with_images = set(paths), {path.relative_to(folder).parts[0] for path in paths}
    kinds = Counter((path.parent, path.suffix) for path in files_below(folder)
                    if path not in known and not hidden(path, folder))
    return [*((place, f"{count} {kind or 'nameless'} files are not read")
              for (place, kind), count in sorted(kinds.items())),
            *((path, "it holds no images and is no class") for path in sorted(folder.iterdir())
              if path.is_dir() and path.name not in with_images and not hidden(path, folder)),
            *((folder, f"{count} hidden images are left aside")
              for count in [sum(hidden(path, folder) for path in paths)] if count)]


def hidden(path: Path, folder: Path) -> bool:
    """As macOS, Jupyter and others leave files: a name on the way begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


# ------------------------------------------------------ 2. decode each photo once
def to_rgb(image: Image.Image, size: int) -> Image.Image:
    """Squashed to size x size: 16 bits scaled to 8, transparency on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode.startswith("I"):                       # 16-bit grey, which `convert` would clip
        image = image.convert("I")
    elif image.mode != "L":
        image = image.convert("RGB")
    image = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
    if image.mode == "I":
        image = image.point(lambda value: value / 257).convert("L")
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8, above 4 for a photo on its side; 1 where there is none or it is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
        return int(value) if value in range(1, 9) else 1  # type: ignore[arg-type]
    except Exception:                                      # other tags make Pillow raise anything
        return 1


def decode_image(path: Path, pixels: np.ndarray) -> float | str:
    """Fills `pixels` (3, S, S) uint8 with the squashed photo; its aspect ratio, or its fault."""
    size = pixels.shape[-1]
    try:
        if not path.is_file():                             # a pipe would wait for ever
            raise OSError("no regular file")
        with Image.open(path) as image:
            image.draft("RGB", (size * 4 // 5, size * 4 // 5))      # a JPEG at 1/1, 1/2, 1/4 or 1/8
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} px are too many")
            small, turn = to_rgb(image, size), orientation(image)
            small.info, small.getexif()[ExifTags.Base.Orientation] = {}, turn
            pixels[:] = np.asarray(ImageOps.exif_transpose(small)).transpose(2, 0, 1)
            aspect = image.width / image.height
            return 1 / aspect if turn > 4 else aspect
    except Exception as error:                             # damaged bytes raise anything
        pixels[:] = 0
        return str(error) or type(error).__name__


def decode(paths: list[Path], if_broken: str) -> tuple[Tensor, Tensor, list[int]]:
    """Pixels (N, 3, S, S) uint8, aspect ratios (N,), and the indices of broken files."""
    pixels, broken = torch.empty(len(paths), 3, STORED, STORED, dtype=torch.uint8), []
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(decode_image, paths, pixels.numpy())
        aspects = list(tqdm(decoded, "decoding", len(paths), leave=False, disable=None))
        for i, fault in enumerate(aspects):
            if isinstance(fault, str):                     # once more: what does it still show?
                ImageFile.LOAD_TRUNCATED_IMAGES = True
                aspects[i] = decode_image(paths[i], pixels[i].numpy())
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                if pixels[i].min() < pixels[i].max():
                    say(f"note: {paths[i]} is damaged ({fault}); what is whole is used.", "stderr")
                else:
                    broken.append(i)
                    aspects[i] = 1.0
                    say(f"warning: {paths[i]} cannot be read ({fault}): {if_broken}.", "stderr")
    return pixels, torch.tensor(aspects), broken


def resize(pixels: Tensor, size: int) -> Tensor:
    """(N, 3, S, S) uint8 -> (N, 3, size, size) uint8, antialiased."""
    if pixels.shape[-1] == size:
        return pixels
    return torch.cat([F.interpolate(part, (size, size), mode="bilinear", antialias=True)
                      for part in pixels.split(256)])


# ------------------------------------------------------ 3. split 80/20, near-duplicates on one side
def polar(pixels: Tensor, aspect: Tensor, zoom: float) -> Tensor:
    """Photos sampled on 12 circles about their centres, (N, 3, 12, 64): a rotation is a shift."""
    radius = torch.linspace(0.15, 0.95, 12)[:, None] * zoom
    angle = torch.arange(64) * (2 * math.pi / 64)
    circles = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)        # (12, 64, 2)
    unsquash = torch.stack([(1 / aspect).clamp(max=1), aspect.clamp(max=1)], dim=1)     # (N, 2)
    rays = F.grid_sample(pixels.float(), circles * unsquash[:, None, None], align_corners=False)
    return rays - rays.mean(dim=(1, 2, 3), keepdim=True)


def near_duplicates(pixels: Tensor, aspect: Tensor, threshold: float = 0.98) -> Tensor:
    """A group number a photo, (N,): rotated, mirrored, cropped, re-compressed copies share one.

    Rotating and mirroring leave the magnitudes of Fourier coefficients along circles as they are.
    """
    small, groups = resize(pixels, 48), torch.arange(len(pixels))
    keys = [F.normalize(torch.fft.rfft(polar(small, aspect, zoom), dim=-1).abs().flatten(1), dim=1)
            for zoom in (1.0, 0.9, 0.8, 0.7)]              # each (N, 3 * 12 * 33), of length 1
    for key in keys:
        for block in keys[0].split(1024):                  # an (N, N) table would not fit in memory
            for alike in block @ key.T > threshold:        # (N,), to one photo
                members = groups[alike].unique()
                groups[torch.isin(groups, members)] = members[:1]
    return groups


@dataclass(frozen=True)
class Data:
    """A training set: pixels (N, 3, S, S) uint8, labels (N,), rows to train and to validate on."""

    pixels: Tensor
    labels: Tensor
    train: Tensor
    val: Tensor
    classes: list[str]


def load_data(folder: Path, seed: int, outputs: Iterable[Path] = ()) -> Data:
    """Finds, decodes and splits the photos of a training set, but for hidden ones.

    outputs: files that will be written, of which none may be a photo.
    """
    images, names = find_images(folder)
    check_outputs(outputs, images)
    for place, what in left_out(folder, images):
        say(f"note: {place}: {what}.", "stderr")
    found = [(path, name) for path, name in zip(images, names, strict=True)
             if not hidden(path, folder)]
    paths, classes = [path for path, _ in found], sorted({name for _, name in found})
    labels = torch.tensor([classes.index(name) for _, name in found])
    pixels, aspect, broken = decode(paths, "left out of the training")
    rows = np.setdiff1d(np.arange(len(paths)), broken)
    groups = near_duplicates(pixels, aspect).numpy()[rows]
    sizes = np.bincount(labels[rows], minlength=len(classes))
    splits = min(5, max(sizes), len(np.unique(groups)))
    if len(classes) < 2 or min(sizes) < 2 or splits < 2:
        raise UserError(f"{folder} needs 2 class folders or more, 2 different images in each.")
    folds = StratifiedGroupKFold(n_splits=splits, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings(action="ignore"):         # of classes smaller than that
        folds = next(folds.split(rows, labels.numpy()[rows], groups))
    train, val = (torch.from_numpy(rows[fold]) for fold in folds)
    say(f"data: {len(rows)} photos of {len(classes)} classes, {len(train)} to train, {len(val)} "
      f"to validate; {len(rows) - len(np.unique(groups))} near-duplicates kept on one side")
    return Data(pixels, labels, train, val, classes)


# ------------------------------------------------------ 4. augment whole batches on the device
# torchvision's transforms draw once a batch; here each image has its own draw.

def augment(pixels: Tensor, size: int, cfg: Config, m: float, g: torch.Generator) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, 3, size, size) in 0..1: an affine crop, then colour jitter.

    m: magnitude, 0 to 1. Random numbers are drawn on the CPU: the same for any device.
    """
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(len(pixels), *shape, generator=g)).to(pixels.device)

    angle = torch.deg2rad(m * uniform(-cfg.degrees, cfg.degrees))
    flip_x, flip_y = (1 - 2 * (uniform(0, 1) < p).float() for p in (cfg.hflip, cfg.vflip))
    scale = (m * uniform(math.log(cfg.min_scale), math.log(1.1) * (cfg.min_scale < 1))).exp()
    ratio = (m * uniform(-cfg.log_ratio, cfg.log_ratio)).exp()
    centre = uniform(-1, 1, 2) * (1 - scale).abs()[:, None]            # the crop stays in the photo
    right = torch.stack([angle.cos(), angle.sin()], dim=1) * (scale * ratio * flip_x)[:, None]
    down = torch.stack([-angle.sin(), angle.cos()], dim=1) * (scale / ratio * flip_y)[:, None]
    x = crop(pixels, torch.stack([right, down, centre], dim=2), size)                 # (B, 3, s, s)

    # jitter: tint (contrast (grey + saturation (x - grey)) + (1 - contrast) mean), as a matrix
    c = m * cfg.jitter
    brightness, contrast, saturation = (uniform(1 - c, 1 + c, 1, 1) for _ in range(3))  # (B, 1, 1)
    tint = brightness * uniform(1 - c / 3, 1 + c / 3, 3, 1)                             # (B, 3, 1)
    saturate = (1 - saturation) / 3 + saturation * torch.eye(3, device=x.device)        # (B, 3, 3)
    offset = tint * (1 - contrast) * x.mean(dim=(1, 2, 3))[:, None, None]
    return torch.baddbmm(offset, tint * contrast * saturate, x.flatten(2)).view_as(x).clamp_(0, 1)


def crop(pixels: Tensor, theta: Tensor, size: int) -> Tensor:
    """(B, 3, S, S) uint8 and affine maps (B, 2, 3) -> (B, 3, size, size) in 0..1."""
    grid = F.affine_grid(theta, [len(pixels), 3, size, size], align_corners=False)
    x = F.grid_sample(pixels.float(), grid, padding_mode="reflection", align_corners=False)
    return x.div_(255)


def mixup(x: Tensor, target: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images and targets (B, K) mixed with their neighbours in the batch (Zhang et al. 2018)."""
    share = 0.5 + 0.5 * torch.rand((), generator=g).item() ** 2        # of the image itself
    return (share * x + (1 - share) * x.roll(1, dims=0),
            share * target + (1 - share) * target.roll(1, dims=0))


# ------------------------------------------------------ 5. the network
def conv(inputs: int, outputs: int, kernel: int, stride: int, batch_norm: bool) -> list[nn.Module]:
    """A convolution with batch normalisation, or with a bias in its place."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not batch_norm)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return [layer, nn.BatchNorm2d(outputs)] if batch_norm else [layer]


class Block(nn.Module):
    """A residual block (He et al. 2016), average-pooled shortcut (ResNet-D, He et al. 2019), and
    squeeze-and-excitation where `se` (Hu et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, batch_norm: bool, se: bool):
        super().__init__()
        self.body = nn.Sequential(*conv(inputs, outputs, 3, stride, batch_norm),
                                  nn.ReLU(inplace=True), *conv(outputs, outputs, 3, 1, batch_norm))
        nn.init.zeros_(self.body[-1].get_parameter("weight"))  # starts as identity (Goyal 2017)
        self.se = nn.Sequential(
            nn.Linear(outputs, outputs // 8), nn.ReLU(inplace=True),
            nn.Linear(outputs // 8, outputs), nn.Sigmoid()) if se else None
        self.shortcut = nn.Sequential(*[nn.AvgPool2d(2, ceil_mode=True)] * (stride == 2), *(
            conv(inputs, outputs, 1, 1, batch_norm) if inputs != outputs else []))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)                                        # (B, C, h, w)
        if self.se is not None:
            h = h * self.se(h.mean(dim=(2, 3)))[:, :, None, None]
        return F.relu(self.shortcut(x) + h, inplace=True)


class BirdNet(nn.Module):
    """A residual network for photos of any size: RGB in 0..1 -> one logit a class."""

    STAGES = ((40, 1, 1), (64, 2, 1), (128, 2, 2), (256, 1, 1))        # channels, stride, blocks

    def __init__(self, classes: int = 10, *, dropout: float = 0.2, batch_norm: bool = True):
        super().__init__()
        self.extra: dict[str, Any] = {
            "program": "bird", "classes": [str(k) for k in range(classes)], "counts": [1] * classes,
            "size": 128, "batch_norm": batch_norm}
        channels = self.STAGES[0][0]
        layer, *norm = conv(32, channels, 3, 1, batch_norm)
        layers = [*conv(3, 32, 3, 2, batch_norm=False), nn.ReLU(inplace=True),  # (B, 32, s/2, s/2)
                  layer, nn.MaxPool2d(2), *norm, nn.ReLU(inplace=True)]
        for stage, (outputs, stride, blocks) in enumerate(self.STAGES):
            for block in range(blocks):
                step = stride if block == 0 else 1
                layers.append(Block(channels, outputs, step, batch_norm, se=stage > 1))
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:                            # (B, 3, s, s) RGB in 0..1
        return self.classify(self.feature_map(x))                      # (B, K) logits

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, 3, s, s) -> (B, 256, s/16, s/16), the map that Grad-CAM reads."""
        return self.features(((x - 0.5) / 0.25).contiguous(memory_format=torch.channels_last))

    def classify(self, h: Tensor) -> Tensor:
        """(B, C, h, w) -> logits (B, K), from the mean and the maximum of each channel."""
        h = torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1)                  # (B, 2 C)
        return self.head(self.dropout(h))

    def cam_centre(self, h: Tensor) -> Tensor:
        """(B, C, s, s) -> (B, 2), x and y in -1..1: the centre of mass of the class activation map
        of the predicted class (Zhou et al. 2016)."""
        weights = self.head.weight[self.classify(h).argmax(dim=1), :h.shape[1]]         # (B, C)
        cam = F.relu(torch.einsum("bchw,bc->bhw", h, weights))
        cam = cam / cam.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)
        axis = torch.arange(0.5, h.shape[3], device=h.device) * 2 / h.shape[3] - 1      # of squares
        return torch.stack([cam.sum(dim=1) @ axis, cam.sum(dim=2) @ axis], dim=1)

    def get_extra_state(self) -> dict:                                 # rides in the state_dict
        return self.extra

    def set_extra_state(self, state: dict) -> None:
        self.extra = state

    def load_state_dict(self, state_dict, *args, **kwargs):
        """As any module's, of any number of classes: the network first takes on the state's."""
        extra = state_dict["_extra_state"]
        classes, batch_norm = extra["classes"], extra["batch_norm"]
        if (len(classes), batch_norm) != (self.head.out_features, self.extra["batch_norm"]):
            self.__init__(len(classes), batch_norm=batch_norm)  # type: ignore[misc]
        return super().load_state_dict(state_dict, *args, **kwargs)


def load_model(path: Path) -> BirdNet:
    """The network that `train` saved, in eval mode."""
    net, state = BirdNet(), load(path)
    try:
        match state:                                       # sizes first, before anything is built
            case {"head.weight": Tensor() as head, "_extra_state": {
                    "program": "bird", "classes": [*classes], "counts": [*counts],
                    "size": int(size), "batch_norm": bool()}} if (
                    len(set(classes)) == len(counts) == len(head) and head.is_contiguous()
                    and 32 <= size <= STORED and {type(count) for count in counts} == {int}
                    and all(Path(name).name == name for name in classes)):     # no path
                net.load_state_dict(state)
            case _:
                raise ValueError("of another program")
        if not net.eval()(torch.rand(1, 3, 64, 64)).isfinite().all():
            raise ValueError("broken weights")
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no model of this bird.py; name one that it trained.") from error
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


# ------------------------------------------------------ 6. optimiser and schedules
class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al. 2024) for convolutions, as matrices (O, I k k).

    Scaled to AdamW's step length (Liu et al. 2025), so that both share one learning rate.
    `torch.optim.Muon` takes no 4-d weights, and multiplies in bfloat16, which few CPUs can.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.9})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]).flatten(1)              # Nesterov
                p.mul_(1 - group["lr"] * group["weight_decay"])
                scale = 0.2 * group["lr"] * max(update.shape) ** 0.5
                p.sub_(scale * orthogonalise(update).view_as(p))


def orthogonalise(g: Tensor) -> Tensor:
    """(O, I) -> roughly U V' of g = U S V': three Newton-Schulz steps, composed on x x'."""
    def polynomial(a: Tensor) -> Tensor:                            # 3.4445 - 4.7750 a + 2.0315 a a
        return torch.addmm(3.4445 * torch.eye(len(a)).to(a) - 4.7750 * a, a, a, alpha=2.0315)

    x = g / g.norm().clamp(min=1e-12)
    x = x.T if len(g) > g.shape[1] else x
    a = x @ x.T
    q = polynomial(a)
    for _ in range(2):
        q = polynomial(q @ a @ q) @ q
    return (q @ x).T if len(g) > g.shape[1] else q @ x


def lr_multiplier(progress: float, cfg: Config) -> float:
    """Linear warm-up, then half a cosine to 0."""
    if cfg.schedule == "constant":
        return 1.0
    if progress < cfg.warmup:
        return progress / cfg.warmup
    return 0.5 * (1 + math.cos(math.pi * (min(progress, 1) - cfg.warmup) / (1 - cfg.warmup)))


def image_size(progress: float, epochs: int, photos: int) -> int:
    """Progressive resizing: half the final size at first; it grows with the photos seen in all."""
    final = min(max(128 * (epochs * photos / 100_000) ** 0.25, 128), 208)
    share = 0.5 if progress < 0.4 else 0.75 if progress < 0.8 else 1.0
    return 16 * round(final * share / 16)


def fit_epochs(seconds: float, row: dict[str, Any], photos: int) -> int:
    """The most epochs in all whose rest takes `seconds`, at the pace of the history's last row."""
    past, done = row["epoch"], row["progress"]

    def needed(epochs: int) -> float:                      # a step costs its pixels, and a constant
        left = epochs - past
        sizes = [image_size(done + (1 - done) * k / left, epochs, photos) for k in range(left)]
        cost = sum(size**2 + 48**2 for size in [*sizes, sizes[-1]])    # the end costs an epoch
        return row["epoch_seconds"] * cost / (row["size"] ** 2 + 48**2)

    return max((n for n in EPOCHS if n > past and needed(n) < seconds), default=past + 1)


# ------------------------------------------------------ 7. train
def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware multiplies it: CUDA since Ampere, Intel AMX, AMD since Zen 4."""
    cpu = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    bf16 = cpu.get("amx_bf16") or cpu.get("avx512_bf16") or (
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(bf16))


def from_rank_0(value: Any) -> Any:
    """Rank 0's value on every rank of torchrun, whose clocks and disks differ."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]


class Training:
    """A network of random weights, its average and its optimisers (`parts`, for checkpoints)."""

    def __init__(self, data: Data, cfg: Config, device: torch.device):
        seed_everything(cfg.seed)
        net = BirdNet(len(data.classes), dropout=cfg.dropout, batch_norm=cfg.batch_norm)
        counts = data.labels[data.train].bincount(minlength=len(data.classes)).clamp(min=1)
        net.extra |= {"classes": data.classes, "counts": counts.tolist()}
        self.cfg = cfg
        self.net: BirdNet = net.to(device).to(memory_format=torch.channels_last)  # type: ignore
        self.model = nn.parallel.DistributedDataParallel(net) if dist.is_initialized() else net
        self.ema = AveragedModel(net, multi_avg_fn=ema_fn(cfg.ema_decay), use_buffers=True)
        self.averaged: BirdNet = self.ema.module  # type: ignore[assignment]
        weights = counts.sum() / (len(counts) * counts)
        self.class_weights = (weights if cfg.class_weights else torch.ones(len(counts))).to(device)
        filters, linear, rest = ([p for p in net.parameters() if p.ndim == n] for n in (4, 2, 1))
        self.muon = Muon(filters, cfg.lr, cfg.weight_decay)
        self.adamw = torch.optim.AdamW([{"params": linear, "weight_decay": cfg.weight_decay},
                                        {"params": rest, "weight_decay": 0}], cfg.lr, (0.9, 0.99))
        self.parts: dict[str, Any] = {
            "net": net, "ema": self.ema, "muon": self.muon, "adamw": self.adamw}

    def step(self, x: Tensor, target: Tensor, lr: float) -> Tensor:
        """One step on images x (B, 3, s, s) and targets (B, K); loss and accuracy, (2,)."""
        self.net.train()
        with autocast(x.device):
            logits = self.model(x).float()                             # (B, K)
        loss = F.cross_entropy(logits, target, self.class_weights,
                               label_smoothing=self.cfg.label_smoothing)
        self.net.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in (self.muon, self.adamw):
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        self.ema.update_parameters(self.net)
        correct = logits.argmax(dim=1) == target.argmax(dim=1)
        return torch.stack([loss.detach(), correct.float().mean()])

    def evaluate(self, data: Data, size: int) -> dict[str, float]:
        """Loss and scores of the averaged weights on the validation photos, one view each."""
        self.averaged.eval().extra["size"] = size
        p, labels = predict(self.averaged, data.pixels[data.val], tta=False), data.labels[data.val]
        loss = F.nll_loss(p.clamp(min=1e-7).log(), labels, self.class_weights.cpu()).item()
        macro, micro = f1(labels, p.argmax(dim=1))
        return {"val_loss": loss, "val_accuracy": micro, "val_macro_f1": macro,
                "val_score": (macro + micro) / 2}


def train(folder: Path, model_path: Path, cfg: Config, resume: bool = True) -> tuple[float, float]:
    """Trains on FOLDER/<class>/ and saves the averaged weights of the lowest validation loss.

    Beside the model: NAME.history.jsonl, one line an epoch, and NAME.checkpoint.pt until the end.
    Returns macro and micro F1 on the validation photos.
    """
    began, device = time.monotonic(), pick_device(cfg.device)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    history_path = model_path.parent / f"{model_path.stem}.history.jsonl"
    checkpoint_path = model_path.parent / f"{model_path.stem}.checkpoint.pt"
    outputs = (model_path, history_path, checkpoint_path) if rank == 0 else ()
    data = load_data(folder, cfg.seed, outputs)
    photos, steps, K = len(data.train), max(1, len(data.train) // cfg.batch_size), len(data.classes)
    training = Training(data, cfg, device)
    history: list[dict] = []
    epochs, stale, best = cfg.epochs or 30, 0, {}  # a first guess; epochs since the best state_dict
    key = fingerprint((cfg, device, world, data.classes), data.pixels, data.labels, data.train)
    if saved := from_rank_0(load_checkpoint(checkpoint_path, key, cfg) if resume else None):
        history, best, epochs, stale = (saved[k] for k in ("history", "best", "epochs", "stale"))
        for name, part in training.parts.items():
            part.load_state_dict(saved[name])
    parameters = sum(p.numel() for p in training.net.parameters())
    plan = f"{cfg.epochs}" if cfg.epochs else f"at most {EPOCHS[-1]} in {cfg.budget:g} minutes"
    say(f"BirdNet: {parameters:,} parameters, on {device}; {steps} steps an epoch; epochs: {plan}")
    seconds = math.inf if cfg.epochs else 0.97 * 60 * cfg.budget - (time.monotonic() - began)
    start = time.monotonic() - (history[-1]["seconds"] if history else 0.0)
    done = history[-1]["progress"] if history else 0.0     # share of the training, 0 to 1
    pixels, labels = torch.empty(0), data.labels.to(device)

    def progress(step: int) -> float:
        """As planned or, where the machine is slower, by the clock: only then bits depend on it."""
        planned = done + (1 - done) * step / steps / (epochs - len(history))
        elapsed = (time.monotonic() - start) / max(1.0, seconds * epochs / (epochs + 2))
        return from_rank_0(max(planned, 1.02 * elapsed - 0.02))

    while done < 1 and stale < max(10, cfg.patience * epochs):
        size = image_size(done, epochs, photos)
        magnitude = min(1.0, epochs / 64)                  # few epochs learn more from plain photos
        if pixels.shape[-1] != (side := min(STORED, 2 * size)):  # crops are cut from sharper photos
            pixels = resize(data.pixels, side).to(device)
        order = data.train[torch.randperm(photos, generator=generator(cfg.seed, len(history)))]
        g = generator(cfg.seed, len(history), rank)
        torch.manual_seed(g.initial_seed())                # of dropout
        outcomes: list[Tensor] = []                        # loss and accuracy of each step
        name = f"epoch {len(history) + 1}/{epochs}"
        for step in tqdm(range(steps), name, leave=False, disable=None):
            if (p := progress(step)) >= 1 and outcomes:
                break
            rows = order[step * cfg.batch_size:(step + 1) * cfg.batch_size][rank::world]
            x = augment(pixels[rows], size, cfg, magnitude, g)         # (B, 3, s, s)
            target = F.one_hot(labels[rows], K).float()                # (B, K)
            if p < 0.8 and torch.rand((), generator=g) < magnitude * cfg.mixup:
                x, target = mixup(x, target, g)
            lr = cfg.lr * lr_multiplier(p, cfg)
            outcomes.append(training.step(x, target, lr))
        done = min(1.0, progress(steps))
        loss, accuracy = torch.stack(outcomes).mean(dim=0).tolist()
        scores = from_rank_0(training.evaluate(data, size))
        if not math.isfinite(scores["val_loss"]):
            say("warning: the loss is no longer finite; the training ends here.", "stderr")
            break
        stale += 1
        if scores["val_loss"] < min((row["val_loss"] for row in history), default=math.inf):
            best, stale = deepcopy(training.averaged.state_dict()), 0
        elapsed, before = time.monotonic() - start, history[-1]["seconds"] if history else 0.0
        history.append({
            "epoch": len(history) + 1, "epochs": epochs, "progress": done, "size": size, "lr": lr,
            "train_loss": loss, "train_accuracy": accuracy, **scores, "best": stale == 0,
            "seconds": elapsed, "epoch_seconds": elapsed - before})
        if cfg.epochs is None and done < 1:                # the first two epochs make the plan, and
            fitting = from_rank_0(fit_epochs(seconds - elapsed, history[-1], photos))
            if len(history) < 3 or fitting > epochs:       # quicker ones a longer one
                epochs = fitting
        if rank == 0:
            record(history_path, history)
            state = {"key": key, "settings": vars(cfg), "history": history, "epochs": epochs,
                     "stale": stale, "best": best}
            parts = {name: part.state_dict() for name, part in training.parts.items()}
            save(checkpoint_path, state | parts)
    if not best:
        raise UserError(f"{model_path} is not written: the loss was never finite; lower `lr`.")
    net = training.averaged
    net.load_state_dict(best)
    sample = data.train[torch.randperm(photos, generator=generator(cfg.seed))[:2048]]
    recalibrate(net, data.pixels[sample])
    macro, micro = f1(data.labels[data.val], predict(net, data.pixels[data.val]).argmax(dim=1))
    net.extra["validation"] = {"macro_f1": macro, "accuracy": micro}
    if rank == 0:
        save(model_path, net.state_dict())
        checkpoint_path.unlink(missing_ok=True)
    say(f"saved {model_path}: validation score {(macro + micro) / 2:.4f}, "
        f"{(time.monotonic() - began) / 60:.1f} minutes")
    return macro, micro


def recalibrate(net: BirdNet, pixels: Tensor) -> None:
    """Batch statistics anew, of photos as `predict` shows them, not augmented."""
    norms = [module for module in net.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None                               # the mean over all batches
        norm.train()
    predict(net, pixels)
    net.eval()


# ------------------------------------------------------ 8. predict
@torch.no_grad()
def predict(net: BirdNet, pixels: Tensor, tta: bool = True) -> Tensor:
    """(N, 3, S, S) uint8 -> class probabilities (N, K), on the CPU, of the photo but for its edges;
    with test-time augmentation also 0.7 of its side about the CAM's centre, and both mirrored."""
    size, edge, device = net.extra["size"], pixels.shape[-1] // 20, net.head.weight.device
    probs = []
    for batch in pixels.split(128):
        x = resize(batch[:, :, edge:-edge, edge:-edge], size).to(device).float() / 255
        with autocast(device):
            h = net.feature_map(x)
            logits = [net.classify(h)]
            if tta:
                centre = (0.9 * net.cam_centre(h.float())).clamp(-0.3, 0.3)           # of the whole
                square = 0.7 * torch.eye(2, device=device).expand(len(x), 2, 2)
                sharp = resize(batch, min(STORED, 2 * size)).to(device)
                close = crop(sharp, torch.cat([square, centre[:, :, None]], dim=2), size)
                logits += [net(view) for view in (x.flip(3), close, close.flip(3))]
        probs.append(torch.stack(logits).float().softmax(dim=2).mean(dim=0).cpu())
    return torch.cat(probs)


def f1(labels: Tensor | list, predicted: Tensor | list) -> tuple[float, float]:
    """Macro F1 over the classes that occur in `labels`, and micro F1, here the accuracy."""
    macro = f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    return float(macro), float(accuracy_score(labels, predicted))


def test(folder: Path, model_path: Path, csv_path: Path, device: torch.device) -> None:
    """Writes a class index an image, in ImageFolder's order; prints scores of known labels."""
    net = load_model(model_path).to(device)
    classes, frequent = net.extra["classes"], int(np.argmax(net.extra["counts"]))
    paths, names = find_images(folder)
    check_outputs([csv_path], [model_path, *paths])
    for place, what in left_out(folder, paths):
        say(f"note: {place}: {what}.", "stderr")
    predicted: list[int] = []
    for part in (paths[i:i + 1024] for i in range(0, len(paths), 1024)):       # bounds the memory
        pixels, _, broken = decode(part, f"labelled {classes[frequent]}, the most frequent class")
        labels = predict(net, pixels).argmax(dim=1)
        labels[broken] = frequent
        predicted += labels.tolist()
    write_atomic(csv_path, "\n".join(["Predicted_Label", *map(str, predicted), ""]).encode())
    say(f"{csv_path}: {len(paths)} labels")
    seen = [(name, label) for path, name, label in zip(paths, names, predicted, strict=True)
            if not hidden(path, folder)]
    if foreign := {name for name, _ in seen} - set(classes):
        say(f"no score: {min(foreign)!r} is no class of the model")
    elif seen:
        macro, micro = f1([classes.index(name) for name, _ in seen], [label for _, label in seen])
        say(f"score {(macro + micro) / 2:.4f} (macro F1 {macro:.4f}, micro F1 {micro:.4f})")


def main(argv: list[str]) -> None:
    """The command line; under torchrun, one process of the training."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description="\n".join(__doc__.splitlines()[:4]))
    parser.add_argument("dataset", type=Path, help="DATASET/<class>/<image>")
    parser.add_argument("mode", choices=["train", "test"])
    parser.add_argument("model", type=Path, help="the model's file, such as bird.pth")
    parser.add_argument("--budget", type=float, default=110.0, metavar="MIN", help="default 110")
    parser.add_argument("--epochs", type=int, metavar="N", help="this many, however long they take")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--device", choices=["cpu", "cuda", "mps"], help="default: the best found")
    parser.add_argument("--no-resume", action="store_true", help="start anew despite a checkpoint")
    parser.add_argument("--csv", type=Path, default=Path("bird.csv"), metavar="PATH")
    args = parser.parse_args(argv)
    if args.mode == "test":
        return test(args.dataset, args.model, args.csv, pick_device(args.device))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:         # started by torchrun
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group()
        if dist.get_rank() > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    cfg = Config(args.seed, args.epochs, args.budget, args.device)
    with lock(args.model) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
        train(args.dataset, args.model, cfg, resume=not args.no_resume)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
