"""The drawn birds as a data set on disk: uneven classes, turned copies whose originals are known, and masks.

    OUT/train/<species>/0000.jpg   OUT/test/<species>/0000.jpg   OUT/copies.json
    OUT/masks/train/<species>/0000.png   OUT/masks/test/...      white where the bird is seen

As in the real set, some pictures are mirrored, upside down, tilted with black corners, cropped or re-compressed; in
`train` they are copies of other pictures there, in `test` pictures of their own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from nestling.data.drawn import SPECIES, draw
from nestling.files import UserError, whole_folder

TURNS = {  # how a picture can be turned, and the range of the number that says by how much
    "mirrored": (0, 0),
    "upside down": (0, 0),
    "tilted": (8, 40),  # degrees anticlockwise or, if negative, clockwise; the corners turn black
    "cropped": (6, 18),  # percent of the side that is cut off at each edge
    "recompressed": (25, 60),  # JPEG quality
}
QUALITY = 90  # of JPEG
UNSEEN = 1_000_000  # test pictures have indices from here on


@dataclass(frozen=True)
class Picture:
    """One file to draw: its place under the root without suffix, what is drawn, and how it is turned ("" for not)."""

    part: str
    species: str
    number: int
    index: int
    how: str = ""
    by: int = 0

    def path(self, root: Path, suffix: str) -> Path:
        """The file below a root."""
        return root / self.part / self.species / f"{self.number:04d}{suffix}"


def make_birds(
    out: Path, per_class: int = 120, seed: int = 0, size: int = 256, copies: float = 0.15, workers: int | None = None
) -> None:
    """Draw a set into the new folder `out`: on average `per_class` training pictures a species, a quarter for testing.

    The same arguments give the same bytes, for any number of worker processes. Raises UserError if `out` is not free.
    """
    if per_class < 4 or size < 32:
        raise UserError(f"--per-class {per_class} --size {size}: at least 4 pictures a species and 32 px are needed")
    plan = plan_set(per_class, seed, copies)
    with whole_folder(out) as part:
        for folder in ("train", "test", "masks/train", "masks/test"):
            for species in SPECIES:
                (part / folder / species).mkdir(parents=True)
        work = partial(write, part, seed, size)
        workers = min(workers or cores(), len(plan))
        if workers == 1:
            list(map(work, plan))
        else:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
                list(pool.map(work, plan, chunksize=8))
        (part / "copies.json").write_text(json.dumps(list_copies(plan), indent=1) + "\n")


def cores() -> int:
    """Those that this process may use; macOS and Windows do not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan_set(per_class: int, seed: int, copies: float) -> list[Picture]:
    """What to draw: class sizes spread over 0.6 to 1.4 of the mean, and a share `copies` of turned pictures."""
    rng = np.random.default_rng([seed, UNSEEN])
    plan = []
    for part, mean, first in ("train", per_class, 0), ("test", per_class / 4, UNSEEN):
        for species, share in zip(SPECIES, rng.permutation(np.linspace(0.6, 1.4, len(SPECIES))), strict=True):
            count = max(1, round(mean * share))
            turned = int(copies * count)
            fresh = count - turned if part == "train" else count
            indices = np.concatenate([np.arange(fresh), rng.choice(fresh, turned, replace=False)])[:count]
            hows = [""] * (count - turned) + [str(how) for how in rng.choice(list(TURNS), turned)]
            for number, k in enumerate(rng.permutation(count).tolist()):
                low, high = TURNS.get(hows[k], (0, 0))
                by = int(rng.integers(low, high + 1)) * (int(rng.choice([-1, 1])) if hows[k] == "tilted" else 1)
                plan.append(Picture(part, species, number, first + int(indices[k]), hows[k], by))
    return plan


def write(root: Path, seed: int, size: int, picture: Picture) -> None:
    """Draw one picture and its mask, turn both, write both."""
    image, mask = draw(picture.species, seed, picture.index, size)
    shape = Image.fromarray(mask.astype(np.uint8) * 255)
    image, shape = (turned(each, picture.how, picture.by) for each in (image, shape))
    quality = picture.by if picture.how == "recompressed" else QUALITY
    image.save(picture.path(root, ".jpg"), quality=quality)
    shape.convert("1").save(picture.path(root / "masks", ".png"))


def turned(image: Image.Image, how: str, by: int) -> Image.Image:
    """A picture or a mask (mode L) mirrored, upside down, tilted by degrees or cropped by percent; else as it is."""
    smooth = Image.Resampling.NEAREST if image.mode == "L" else Image.Resampling.BICUBIC
    if how == "mirrored":
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if how == "upside down":
        return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if how == "tilted":
        return image.rotate(by, smooth)
    if how == "cropped":
        side, edge = image.width, image.width * by / 100
        return image.resize(image.size, smooth, (edge, edge, side - edge, side - edge))
    return image


def list_copies(plan: list[Picture]) -> dict[str, dict[str, str | int]]:
    """For each training file that is a turned copy: the file it was made `of`, `how`, and `by` how much (see TURNS)."""
    train = [picture for picture in plan if picture.part == "train"]
    originals = {(p.species, p.index): str(p.path(Path(), ".jpg")) for p in train if not p.how}
    return {
        str(p.path(Path(), ".jpg")): {"of": originals[p.species, p.index], "how": p.how, "by": p.by}
        for p in train
        if p.how
    }
