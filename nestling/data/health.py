"""A look at a folder of classes before a long training: what is broken, doubtful, or worth knowing."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import bird


@dataclass(frozen=True)
class Finding:
    """One thing found; a `fault` harms training, anything else is for information."""

    kind: str
    path: Path
    text: str
    fault: bool = True

    def __str__(self) -> str:
        return f"{'fault' if self.fault else 'note '}  {self.kind}: {self.path}: {self.text}"


def check(folder: Path) -> list[Finding]:
    """Everything worth saying about FOLDER/<class>/<image>, faults first; each image is decoded fully.

    Raises UserError where bird.py would: no folder, no images, class folders one level deeper.
    """
    paths, names = bird.find_images(folder)
    found = [Finding("left out", place, what) for place, what in bird.left_out(folder, paths)]
    sizes = sorted((count, name) for name, count in Counter(names).items())
    text = f"{len(sizes)} classes, from {sizes[0][0]} images ({sizes[0][1]}) to {sizes[-1][0]} ({sizes[-1][1]})"
    found += [Finding("class sizes", folder, text, fault=False), *check_photos(paths)]
    return sorted(found, key=lambda finding: not finding.fault)


def read(path: Path) -> tuple[str, str, bool] | str:
    """Digest, mode, and whether EXIF rotates it, decoded as bird.py does; or why it is unreadable."""
    fault = bird.decode_image(path, np.empty((3, 64, 64), np.uint8))
    if isinstance(fault, str):
        return f"it cannot be decoded ({fault})"
    with Image.open(path) as image:
        return hashlib.sha256(path.read_bytes()).hexdigest(), image.mode, bird.orientation(image) != 1


def check_photos(paths: list[Path]) -> Iterator[Finding]:
    """Unreadable files; equal bytes, worst where the classes differ; unusual modes; rotation by EXIF."""
    first: dict[str, Path] = {}                      # of each digest
    notes: dict[tuple[str, str], list[Path]] = defaultdict(list)
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor() as pool:
        photos = list(pool.map(read, paths))
    for path, photo in zip(paths, photos, strict=True):
        if isinstance(photo, str):
            yield Finding("unreadable", path, photo)
            continue
        digest, mode, rotated = photo
        if (earlier := first.setdefault(digest, path)) != path:
            other = " under another class" * (path.parent != earlier.parent)
            yield Finding("duplicate", path, f"it has the same bytes as {earlier}{other}", bool(other))
        if mode not in ("RGB", "L"):
            notes["mode", f"of mode {mode}, converted to RGB on reading"].append(path)
        if rotated:
            notes["EXIF", "rotated by EXIF, set upright on reading"].append(path)
    for (kind, text), found in sorted(notes.items()):
        yield Finding(kind, found[0], f"{len(found)} {text}", fault=False)
