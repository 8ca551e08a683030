"""Inputs that tell a submission nothing: photos in folders that mean nothing, digits with dummy labels.

The truth stays with the grader. Photos and digits are ordered by a hash of their contents, so that even who
knows the seed cannot infer the teacher's order, which is by class.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestling.files import UserError, whole_folder

DIGITS = (1, 4, 8)                   # of the assignment


@dataclass(frozen=True)
class Laid:
    """What the programs are given, and the truth about it, which they are not."""

    folder: Path
    paths: dict[str, Path]           # bird: "test"; vae: "test" and, where given, "recon", "val", "train"
    truth: list[int]                 # of each row of "test": the class's index (bird), the digit (vae)
    classes: list[str]               # sorted: the names of the training's folders; "1", "4", "8"
    digest: str                      # SHA-256 of all files, their names and the truth
    images: np.ndarray | None = None     # of "recon": (N, 28, 28) float32 in 0..1


def lay_birds(test: Path, train: Path | None, out: Path, seed: int = 0) -> Laid:
    """Copies TEST's photos to `out`, evenly over folders named like the training's classes, 00000.jpg and on.

    train: the training set, whose class names count; default: TEST's own. `truth` is in ImageFolder's order of
    `out`. Copies, not hard links: a link keeps the original's date and number, and its mode is the original's.
    UserError: TEST has no class folders, a class that `train` lacks, or fewer photos than there are classes.
    """
    photos = find_photos(test)
    classes = sorted({name for _, name in (find_photos(train) if train else photos)})
    if strange := {name for _, name in photos} - set(classes):
        raise UserError(f"{test} has the class folder {min(strange)!r}, which {train} lacks; rename or remove it.")
    if len(photos) < len(classes):
        raise UserError(f"{test} holds {len(photos)} photos, fewer than its {len(classes)} classes; add some.")
    photos.sort(key=lambda photo: mixing_key(seed, read(photo[0])))
    digest = hashlib.sha256()
    with whole_folder(out) as part:
        for name in classes:
            (part / name).mkdir()
            (part / name).chmod(0o755)               # whatever the umask: others shall read it
        for i, (path, _) in enumerate(photos):
            place = part / classes[i % len(classes)] / f"{i:0{digits_of(photos)}}{path.suffix.lower()}"
            lay(part, place, read(path), digest)
        part.chmod(0o755)
    truth = [classes.index(photos[i][1]) for k in range(len(classes)) for i in range(k, len(photos), len(classes))]
    return Laid(out, {"test": out}, truth, classes, finish(digest, classes, truth))


def lay_digits(test: Path, recon: Path | None, val: Path | None, train: Path | None, out: Path,
               seed: int = 0) -> Laid:
    """Writes test.npz and recon.npz, mixed, with labels 1, 4, 8 in turn; copies VAL and TRAIN as they are.

    `data` is N x 28 x 28 in the teacher's dtype. UserError: a file is unreadable, TEST or VAL has no labels, TEST
    others than 1, 4 and 8.
    """
    data, labels, _ = read_digits(test)
    if labels is None or not np.isin(labels, DIGITS).all():
        raise UserError(f"{test} must have `labels`, each 1, 4 or 8; add them to score the submissions by.")
    order, digest = mixed(seed, data), hashlib.sha256()
    truth = [int(label) for label in labels.reshape(-1)[order]]
    files, images = {"test.npz": packed(data[order], labels)}, None
    if recon:
        data, own, images = read_digits(recon)
        order = mixed(seed, data)
        images = images[order]
        files["recon.npz"] = packed(data[order], labels if own is None else own)
    for name, path in (("val", val), ("train", train)):
        if path:
            if read_digits(path)[1] is None and name == "val":
                raise UserError(f"{path} has no `labels`; add them, for they start the mixture.")
            if not zipfile.is_zipfile(path):
                raise UserError(f"{path} is no .npz, as the assignment has it; write it with numpy.savez.")
            files[f"{name}.npz"] = read(path)
    with whole_folder(out) as part:
        for name, content in files.items():
            lay(part, part / name, content, digest)
        part.chmod(0o755)
    classes = [str(digit) for digit in DIGITS]
    paths = {Path(name).stem: out / name for name in files}
    return Laid(out, paths, truth, classes, finish(digest, classes, truth), images)


# ------------------------------------------------------ the teacher's files

def find_photos(folder: Path) -> list[tuple[Path, str]]:
    """(path, class name) of each photo but for hidden ones. UserError: there are none, or no class folders."""
    import bird

    try:
        found = zip(*bird.find_images(folder), strict=True)
    except bird.UserError as error:
        raise UserError(str(error)) from error
    photos = [(path, name) for path, name in found if name and not bird.hidden(path, folder)]
    if not photos:
        raise UserError(f"{folder} has no class folders with photos; expected {folder}/<class name>/<image>.jpg.")
    return photos


def read_digits(path: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """The images (N, 28, 28) in their own dtype, the labels in theirs or None; the images as float32 in 0..1."""
    import vae

    try:
        images, arrays = vae.DigitDataset(path).images.numpy(), vae.read_arrays(path)
    except vae.UserError as error:
        raise UserError(str(error)) from error
    labels = next((arrays.pop(key) for key in ("labels", "label", "y") if key in arrays), None)
    named = {name: array for name, array in arrays.items() if vae.is_images(array)}
    data = named["data"] if "data" in named else next(iter(named.values()))
    return data.reshape(images.shape), labels, images


def read(path: Path) -> bytes:
    """Of a file of the teacher's; UserError: it cannot be read."""
    try:
        if not path.is_file():                       # a pipe would wait for ever
            raise OSError(0, "no regular file")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); repair or remove it.") from error


# ------------------------------------------------------ what is laid

def mixing_key(seed: int, content: bytes) -> bytes:
    """What photos and digits are sorted by: it depends on the seed and the contents alone."""
    return hashlib.sha256(f"{seed}\n".encode() + content).digest()


def mixed(seed: int, data: np.ndarray) -> list[int]:
    """The rows (N, ...) in the order in which they are laid."""
    return sorted(range(len(data)), key=lambda i: mixing_key(seed, data[i].tobytes()))


def digits_of(items: list) -> int:
    """Of the numbers in the names, all equally long, so that sorting names sorts numbers."""
    return max(5, len(str(len(items) - 1)))


def packed(data: np.ndarray, like: np.ndarray) -> bytes:
    """A .npz of images with dummy labels: 1, 4, 8 in turn, as a program may drop or refuse others."""
    np.savez(buffer := io.BytesIO(), data=data, labels=np.resize(DIGITS, len(data)).astype(like.dtype))
    return buffer.getvalue()


def lay(folder: Path, place: Path, content: bytes, digest: Any) -> None:
    """Writes a read-only file below `folder`; its name there and its content enter the digest."""
    place.write_bytes(content)
    place.chmod(0o444)
    digest.update(os.fsencode(place.relative_to(folder)) + f"\n{len(content)}\n".encode() + content)


def finish(digest: Any, classes: list[str], truth: list[int]) -> str:
    """The digest of the files, and of the truth: another truth gives other scores."""
    digest.update(json.dumps([classes, truth]).encode())
    return digest.hexdigest()
