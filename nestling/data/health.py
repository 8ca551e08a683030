"""A look at a folder of classes before a long training: what is broken, doubtful, or worth knowing."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import bird
from nestling.files import UserError

ORIENTATION = 0x0112  # the EXIF tag


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
    """Everything worth saying about FOLDER/<class>/<image>, faults first; each image is decoded fully."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected {folder}/<class name>/<image>.jpg.")
    classes = {sub: images_in(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    full = [sub for sub, paths in classes.items() if paths]
    if not full:
        return [Finding("no images", folder, "no class folder in it holds an image")]
    if all(path.parent != sub for sub in full for path in classes[sub]):
        meant = folder / "train" if folder / "train" in full else full[0]
        return [Finding("too high", folder, f"its folders hold folders, not images; did you mean {meant}?")]
    found = [*check_classes(folder, classes), *check_photos([path for sub in full for path in classes[sub]])]
    return sorted(found, key=lambda finding: not finding.fault)


def images_in(folder: Path) -> list[Path]:
    """All images in a class folder and below."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in bird.IMG_EXTENSIONS and p.is_file())


def read(path: Path) -> tuple[str, str, bool] | str:
    """Digest, mode, and whether EXIF rotates it, decoded as bird.py does; or why it is unreadable."""
    try:
        if not (content := path.read_bytes()):
            return "the file is empty"
        with Image.open(io.BytesIO(content)) as image:
            bird.to_rgb(image)
            rotated = image.getexif().get(ORIENTATION, 1) != 1
            return hashlib.sha256(content).hexdigest(), image.mode, rotated
    except Exception as error:                       # whatever a broken file makes Pillow raise
        return f"it cannot be decoded ({str(error) or type(error).__name__})"


def check_classes(folder: Path, classes: dict[Path, list[Path]]) -> Iterator[Finding]:
    """Class folders that are empty or hidden, and the class sizes."""
    sizes = []
    for sub, paths in classes.items():
        if sub.name.startswith("."):
            yield Finding("hidden folder", sub, "ImageFolder would take it for a class; remove it")
        elif not paths:
            yield Finding("empty class", sub, "it holds no image; remove it or fill it")
        else:
            sizes.append((len(paths), sub.name))
    if sizes:
        (least, small), (most, large) = min(sizes), max(sizes)
        text = f"{len(sizes)} classes, from {least} images ({small}) to {most} ({large})"
        yield Finding("class sizes", folder, text, fault=False)


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
