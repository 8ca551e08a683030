"""Damaged and hostile files for each reader: it gives a value or the user's error, nothing else.

    python -m bench.fuzz [INPUTS] [--seed N] [--keep DIR]

Of the INPUTS (100,000 by default) each reader gets its share. Told at the end: what raised anything but a
UserError, took over 5 seconds, or over 1 GB of memory; DIR keeps these inputs. Figures: docs/reliability.md.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import bird
import vae
from nestling import files, runs
from nestling.report import tables
from nestling.submit import RULES, check_report

SECONDS, MEGABYTES = 5.0, 1000.0
RNG = np.random.Generator


@dataclass(frozen=True)
class Reader:
    """What opens files of a kind, the share of the inputs that it gets, and whole files to damage."""

    read: Callable[[Path], object]
    name: str                                  # of the file
    share: float
    samples: Callable[[], list[bytes]]


# ------------------------------------------------------ whole files

def photos() -> list[bytes]:
    """One picture in each format that Pillow may find under a .jpg name."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a bird"
    made = []
    for form, mode in (("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB"),
                       ("TIFF", "RGB"), ("TIFF", "I;16"), ("BMP", "RGB"), ("PPM", "RGB"), ("GIF", "P"),
                       ("AVIF", "RGB"), ("ICO", "RGBA"), ("DDS", "RGBA"), ("TGA", "RGB"), ("JPEG2000", "RGB")):
        image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
        image = Image.fromarray(np.asarray(image, np.uint16) * 257) if mode == "I;16" else image
        image.save(buffer := io.BytesIO(), form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP") else {}))
        made.append(buffer.getvalue())
    return made


def digit_files() -> list[bytes]:
    """The forms of .npz and .npy."""
    rng, made = np.random.default_rng(0), []
    data, labels = rng.integers(0, 255, (6, 28, 28)).astype(np.uint8), np.array([1, 4, 8, 1, 4, 8])
    for save, arrays in ((np.savez, {"data": data, "labels": labels}),
                         (np.savez_compressed, {"x": data / 255, "y": labels}), (np.savez, {"images": data})):
        save(buffer := io.BytesIO(), **arrays)
        made.append(buffer.getvalue())
    for array in (data, np.asfortranarray(data / 255.0), data.reshape(6, 784).astype(">f4")):
        np.save(buffer := io.BytesIO(), array)
        made.append(buffer.getvalue())
    return made


def saved(write: Callable[[Path], object]) -> bytes:
    """What a function writes into a file."""
    with tempfile.TemporaryDirectory() as folder:
        write(path := Path(folder, "file"))
        return path.read_bytes()


def mixtures() -> list[bytes]:
    """As `save_mixture` writes them, and pickles of others."""
    mixture = vae.GaussianMixture.fit(torch.randn(99, 2), torch.eye(3, 2), [1, 4, 8])
    plain = {"weights": mixture.weights.tolist(), "digits": [1, 4, 8]}
    return [saved(lambda path: vae.save_mixture(path, mixture)),
            *(pickle.dumps(value, protocol) for protocol in (0, 2, 5)
              for value in (plain, {"weights": mixture.weights.numpy()}, plain | {"digits": {1, 4, 8}}))]


def states(state: dict) -> list[bytes]:
    """A model file."""
    return [saved(lambda path: bird.save(path, state))]


ROW = {"epoch": 1, "epochs": 2, "seconds": 1.5, "size": 64, "train_loss": 1.0, "train_accuracy": 0.5,
       "val_loss": 1.0, "val_accuracy": 0.5, "val_macro_f1": 0.5, "best": True}


def histories() -> list[bytes]:
    """Two epochs of bird.py, and one of each phase of vae.py."""
    pairs = ("information", "recon", "kl", "ssim")
    latents = {"epoch": 1, "seconds": 2.0, **{f"{held}{key}": 0.5 for key in pairs for held in ("", "held_")}}
    both = [latents | {"phase": phase} for phase in ("clusters", "latents")]
    return ["".join(json.dumps(row) + "\n" for row in rows).encode() for rows in ([ROW, ROW | {"epoch": 2}], both)]


def reports() -> list[bytes]:
    """A PDF of one page."""
    Image.new("RGB", (40, 30), "teal").save(buffer := io.BytesIO(), "PDF")
    return [buffer.getvalue()]


# ------------------------------------------------------ readers

def read_photo(path: Path) -> object:
    """As training, testing, explaining and checking do."""
    return bird.decode([path], "left out")


def read_bird(path: Path) -> object:
    """The model, which must then give labels."""
    return bird.predict(bird.load_model(path), torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def read_vae(path: Path) -> object:
    """The model, which must then give latents."""
    return vae.latent_means(vae.load_model(path), torch.zeros(1, 28, 28))


def read_history(path: Path) -> object:
    """The rows, which a report must then be able to show."""
    rows = runs.history_of(path.with_name("a.pth"))
    if not rows:
        return None
    return tables.training_vae(rows) if all("phase" in row for row in rows) else tables.training_bird(rows)


READERS = {
    "photo": Reader(read_photo, "a.jpg", 0.4, photos),
    "digits": Reader(vae.DigitDataset, "a.npz", 0.2, digit_files),
    "mixture": Reader(vae.load_mixture, "a.pkl", 0.2, mixtures),
    "bird model": Reader(read_bird, "a.pth", 0.03, lambda: states(bird.BirdNet(3).state_dict())),
    "vae model": Reader(read_vae, "a.pth", 0.03, lambda: states(vae.VAE().state_dict())),
    "checkpoint": Reader(lambda path: bird.load_checkpoint(path, "key", bird.Config()), "a.pt", 0.02, lambda: states(
        {"key": "key", "settings": vars(bird.Config()), "history": [ROW], "best": {}, "epochs": 2, "stale": 0})),
    "history": Reader(read_history, "a.history.jsonl", 0.07, histories),
    "report": Reader(lambda path: list(check_report(RULES["bird"], path, ["2021CS10001"])), "a.pdf", 0.05, reports),
}


# ------------------------------------------------------ damage

def damaged(rng: RNG, content: bytes, zipped: bool = True) -> bytes:
    """One to four of: flipped, deleted, doubled, swapped or telling bytes, a cut; in a zip also of a member."""
    if zipped and content[:2] == b"PK" and rng.random() < 0.7:
        return damaged_member(rng, content)
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(0, len(data) or 1) * rng.choice([1, 0.02]))           # heads matter most
        some = slice(start, start + int(rng.choice([1, 2, 4, 8, 64])))
        match rng.integers(7):
            case 0:
                data[some] = rng.bytes(len(data[some]))
            case 1:
                del data[some]
            case 2:
                data[start:start] = data[some] * int(rng.choice([1, 2, 100]))
            case 3:
                data[some] = rng.choice([b"\x00", b"\xff", b"\x7f", b"\x80"]) * len(data[some])
            case 4:
                data[some] = int(rng.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**63 - 1])).to_bytes(8, "little")
            case 5 if len(data) > start:
                data[start] ^= 1 << int(rng.integers(8))
            case 6 if rng.random() < 0.3:
                del data[start:]
    return bytes(data)


def damaged_member(rng: RNG, content: bytes) -> bytes:
    """The zip with one member damaged and its checksums right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    small = [name for name, data in members.items() if len(data) < 100_000]
    chosen = str(rng.choice(small))
    members[chosen] = damaged(rng, members[chosen], zipped=False)
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", int(rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED]))
                         ) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


# ------------------------------------------------------ trying

def attempt(reader: Reader, path: Path, content: bytes) -> str | None:
    """Reads one input; what is wrong with how that went, or None."""
    path.write_bytes(content)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        with warnings.catch_warnings(action="ignore"):
            reader.read(path)
    except (bird.UserError, vae.UserError, files.UserError):
        pass
    except Exception as error:
        return "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = time.monotonic() - began
    if seconds > SECONDS or grown > MEGABYTES:
        return f"{seconds:.0f} seconds, {grown:.0f} MB"
    return None


def fuzz(kind: str, inputs: int, seed: int, keep: Path | None = None) -> list[str]:
    """Tries so many inputs on a reader; the faults found, one a line."""
    reader, found = READERS[kind], []
    torch.set_num_threads(1)
    torch.manual_seed(0)
    said = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = io.StringIO()                # notes and warnings about each input
    samples = reader.samples()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(inputs):
            rng = np.random.default_rng([seed, number])
            content = damaged(rng, samples[number % len(samples)])
            if fault := attempt(reader, Path(folder, reader.name), content):
                found.append(f"{kind} {seed} {number}: {fault}")
                if keep:
                    (keep / f"{kind}-{seed}-{number}").write_bytes(content)
            if number % 1000 == 0:
                sys.stdout = sys.stderr = io.StringIO()
    sys.stdout, sys.stderr = said
    return found


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args(argv)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    parts = [(kind, int(args.inputs * reader.share / 10), 10 * args.seed + part)
             for kind, reader in READERS.items() for part in range(10)]
    found: dict[str, list[str]] = {kind: [] for kind in READERS}
    with ProcessPoolExecutor() as pool:
        futures = [(kind, pool.submit(fuzz, kind, inputs, seed, args.keep)) for kind, inputs, seed in parts]
        for kind, future in futures:
            found[kind] += future.result()
    for kind, faults in found.items():
        inputs = sum(inputs for name, inputs, _ in parts if name == kind)
        print(f"{kind:<12}{inputs:>8} inputs, {len(faults)} faults")
        print(*faults, sep="\n", end="\n" if faults else "")
    print(json.dumps({"inputs": sum(inputs for _, inputs, _ in parts), "faults": sum(map(len, found.values()))}))


if __name__ == "__main__":
    sys.exit(bird.run(main, sys.argv[1:]))
