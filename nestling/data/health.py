"""A look at a folder of classes before hours are spent on it: what is broken, doubtful, or worth knowing."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bird import Mistake, images_below

ORIENTATION = 0x0112  # the EXIF tag
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Finding:
    """One thing found; a `fault` harms training, anything else is for information."""

    kind: str
    path: Path
    text: str
    fault: bool = True

    def __str__(self) -> str:
        return f"{'fault' if self.fault else 'note '}  {self.kind}: {self.path}: {self.text}"


@dataclass(frozen=True)
class Look:
    """What one file showed: the hash of its bytes, the image's mode, whether EXIF turns it, or why it is unreadable."""

    path: Path
    digest: str = ""
    mode: str = ""
    rotated: bool = False
    trouble: str = ""


def check(folder: Path) -> list[Finding]:
    """Everything worth saying about FOLDER/<class>/<image>, faults first; each image is decoded fully.

    Raises Mistake if `folder` is not a folder.
    """
    if not folder.is_dir():
        raise Mistake(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    classes = {sub: images_below(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    full = {sub: paths for sub, paths in classes.items() if paths}
    if not full:
        return [Finding("no images", folder, "no class folder in it holds an image")]
    if all(path.parent != sub for sub, paths in full.items() for path in paths):
        meant = folder / "train" if folder / "train" in full else next(iter(full))
        return [Finding("too high", folder, f"its folders hold folders, not images; did you mean {meant}?")]
    found = check_classes(folder, classes)
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        looks = list(pool.map(look, [path for paths in classes.values() for path in paths]))
    found += [Finding("unreadable", seen.path, seen.trouble) for seen in looks if seen.trouble]
    found += check_twins(looks) + check_modes(looks)
    return sorted(found, key=lambda finding: not finding.fault)


def look(path: Path) -> Look:
    """Read and decode one file."""
    try:
        content = path.read_bytes()
        if not content:
            return Look(path, trouble="the file is empty")
        with Image.open(path) as image:
            image.load()
            rotated = image.getexif().get(ORIENTATION, 1) != 1
            return Look(path, hashlib.sha256(content).hexdigest(), image.mode, rotated)
    except UNREADABLE as error:
        return Look(path, trouble=f"it cannot be decoded ({error})".replace(str(path), path.name))


def check_classes(folder: Path, classes: dict[Path, list[Path]]) -> list[Finding]:
    """Class folders that are empty or hidden, and the class sizes."""
    found = []
    for sub, paths in classes.items():
        if sub.name.startswith("."):
            found.append(Finding("hidden folder", sub, "ImageFolder would take it for a class; remove it"))
        elif not paths:
            found.append(Finding("empty class", sub, "it holds no image; remove it or fill it"))
    sizes = {sub.name: len(paths) for sub, paths in classes.items() if paths and not sub.name.startswith(".")}
    if sizes:
        least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        text = f"{len(sizes)} classes, from {sizes[least]} images ({least}) to {sizes[most]} ({most})"
        found.append(Finding("class sizes", folder, text, fault=False))
    return found


def check_twins(looks: list[Look]) -> list[Finding]:
    """Files whose bytes are the same; worst where the classes differ."""
    groups = defaultdict(list)
    for seen in looks:
        if seen.digest:
            groups[seen.digest].append(seen.path)
    found = []
    for first, *rest in groups.values():
        for twin in rest:
            other = " under another class" if twin.parent != first.parent else ""
            found.append(Finding("duplicate", twin, f"it has the same bytes as {first}{other}", fault=bool(other)))
    return found


def check_modes(looks: list[Look]) -> list[Finding]:
    """How many images are neither RGB nor grey, and how many EXIF turns."""
    found = []
    modes = Counter(seen.mode for seen in looks if seen.mode not in ("", "RGB", "L"))
    first = {seen.mode: seen.path for seen in reversed(looks)}
    for mode, count in sorted(modes.items()):
        found.append(Finding("mode", first[mode], f"{count} of mode {mode}, converted to RGB on reading", fault=False))
    turned = [seen.path for seen in looks if seen.rotated]
    if turned:
        found.append(Finding("EXIF", turned[0], f"{len(turned)} turned by EXIF, set upright on reading", fault=False))
    return found
