"""Which photos of each class to show with their heat, and what there is to say about each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import bird
from bird import BirdNet, Mistake
from nestling.explain import draw


@dataclass(frozen=True)
class Album:
    """A labelled set as the network sees it.

    pixels (N, 3, S, S) uint8, squashed; aspect (N,) width / height; labels (N,); p (N, K) probabilities; names: each
    photo's path relative to the folder; classes: the K names as figures can show them; broken: how many files could
    not be read.
    """

    pixels: Tensor
    aspect: Tensor
    labels: Tensor
    p: Tensor
    names: list[Path]
    classes: list[str]
    broken: int

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each photo, (N,)."""
        return self.p.argmax(dim=1)


def read_album(net: BirdNet, folder: Path, scratch: Path | None = None) -> Album:
    """Decodes and labels all photos of FOLDER/<class>/; broken ones are left out. `scratch` as for `bird.decode`.

    Raises Mistake where there are no photos, or a folder's name is no class of the network.
    """
    classes = net.extra["classes"]
    paths, names = bird.find_images(folder)
    bird.check_level(folder, paths, classes)
    if foreign := sorted(set(names) - set(classes)):
        raise Mistake(f"{folder} holds photos in {foreign[0] or 'no class folder'!r}, which is no class of the model; "
                      f"expected {folder}/<class>/ with the classes {', '.join(classes)}.")
    photos = bird.decode(paths, scratch)
    bird.name_broken(paths, photos.broken, "not shown")
    whole = sorted(set(range(len(paths))) - set(photos.broken))
    pixels = photos.pixels[whole] if photos.broken else photos.pixels
    labels = torch.tensor([classes.index(names[i]) for i in whole])
    p = bird.predict(net, pixels, net.extra["size"], net.mean.device)
    return Album(pixels, photos.aspect[whole], labels, p, [paths[i].relative_to(folder) for i in whole],
                 legible(classes), len(photos.broken))


def legible(names: list[str]) -> list[str]:
    """The names; one with a letter that the figures' font lacks becomes `class` and its number in bird.csv."""
    shown = []
    for k, name in enumerate(names):
        lacking = draw.lacking(name)
        shown.append(f"class {k}" if lacking else name)
        if lacking:
            bird.note(f"the font of the figures has no letter {min(lacking)}: {name} is shown as class {k}.")
    return shown


def choose(p: Tensor, labels: Tensor, right: int = 3, wrong: int = 2) -> list[tuple[list[int], list[int]]]:
    """For each class the photos to show: the most confident right ones, and the wrong ones surest of another class.

    p (N, K), labels (N,) -> K pairs of lists of indices, at most `right` and `wrong` long, the surest first.
    """
    sure, predicted = p.max(dim=1)
    order = torch.argsort(sure, descending=True, stable=True)
    shown = []
    for k in range(p.shape[1]):
        of_class = order[labels[order] == k]
        is_right = predicted[of_class] == k
        shown.append((of_class[is_right][:right].tolist(), of_class[~is_right][:wrong].tolist()))
    return shown
