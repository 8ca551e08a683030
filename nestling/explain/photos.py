"""A labelled folder as the network sees it, and which of its photos to show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import bird
from nestling.explain import draw
from nestling.files import UserError, say


@dataclass(frozen=True)
class Predictions:
    """Decoded photos and what the network predicts for them."""

    pixels: Tensor                         # (N, 3, S, S) uint8, squashed
    aspect: Tensor                         # (N,) width / height
    labels: Tensor                         # (N,)
    probabilities: Tensor                  # (N, K)
    paths: list[Path]                      # relative to the folder
    classes: list[str]                     # K names as figures can show them
    broken: int                            # number of unreadable files

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each photo, (N,)."""
        return self.probabilities.argmax(dim=1)

    @property
    def ratio(self) -> float:
        """A usual width / height, for the places of figures."""
        return float(self.aspect.median().clamp(0.8, 1.5))


def predict_folder(net: bird.BirdNet, folder: Path) -> Predictions:
    """Decodes and classifies all photos of FOLDER/<class>/; broken ones are left out."""
    classes = net.extra["classes"]
    paths, names = bird.find_images(folder)
    seen = [i for i, path in enumerate(paths) if not bird.hidden(path, folder)]
    if len(seen) < len(paths):
        say(f"note: {folder}: {len(paths) - len(seen)} hidden images are left aside.", "stderr")
    paths, names = [paths[i] for i in seen], [names[i] for i in seen]
    if foreign := sorted(set(names) - set(classes)):
        raise UserError(f"{folder} holds photos in {foreign[0] or 'no class folder'!r}, which is no class of "
                        f"the model; expected {folder}/<class>/ with the classes {', '.join(classes)}.")
    pixels, aspect, broken = bird.decode(paths, "left out")
    rows = sorted(set(range(len(paths))) - set(broken))
    pixels = pixels[rows] if broken else pixels
    labels = torch.tensor([classes.index(names[i]) for i in rows])
    return Predictions(pixels, aspect[rows], labels, bird.predict(net, pixels),
                       [paths[i].relative_to(folder) for i in rows], legible(classes), len(broken))


def legible(names: list[str]) -> list[str]:
    """The names; one that the figures' font cannot write becomes `class` and its number in bird.csv."""
    return [f"class {k}" if draw.missing_letters(name) else name for k, name in enumerate(names)]


def choose(probabilities: Tensor, labels: Tensor, number: int = 3, wrong: int = 1) -> list[list[int]]:
    """Of each class the rows of `number` photos, the most confident right ones, then the wrong ones.

    `wrong` of these, more where the right ones are too few. probabilities (N, K), labels (N,) -> K lists.
    """
    confidence, predicted = probabilities.max(dim=1)
    order = torch.argsort(confidence, descending=True, stable=True)
    chosen = []
    for k in range(probabilities.shape[1]):
        of_class = order[labels[order] == k]
        right, others = (of_class[(predicted[of_class] == k) == hit].tolist() for hit in (True, False))
        keep = max(number - len(others[:wrong]), 0)
        chosen.append((right[:keep] + others)[:number])
    return chosen
