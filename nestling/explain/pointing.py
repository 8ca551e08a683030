"""Do the heat maps hit the bird? The pointing game (Zhang et al. 2018) and the share of heat inside known masks.

And the sanity check of Adebayo et al. 2018: maps of a network whose weights are random must do clearly worse, and a
fixed point in the middle of the picture is the score that needs no network at all.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bird import BirdNet, Mistake
from nestling.explain.gradcam import heat, is_empty, look


def masks_of(dataset: Path) -> Path | None:
    """The folder of the masks of a drawn set's part, birds/masks/test for birds/test; None if there is none."""
    folder = dataset.absolute().parent / "masks" / dataset.absolute().name
    return folder if folder.is_dir() else None


def read_masks(folder: Path, names: list[Path], size: int) -> Tensor:
    """Masks (N, size, size) bool, white where the bird is, of the photos `names`, relative to their data set.

    Raises Mistake if one is missing or broken.
    """
    masks = []
    for name in names:
        path = folder / name.with_suffix(".png")
        try:
            with Image.open(path) as file:
                masks.append(np.asarray(file.convert("L").resize((size, size), Image.Resampling.NEAREST)) > 127)
        except OSError as error:
            raise Mistake(f"{path} cannot be read as a mask; draw the set anew with `nestling data birds`.") from error
    return torch.from_numpy(np.stack(masks))


def peaks(maps: Tensor, size: int) -> Tensor:
    """Where each map (B, h, w), brought to `size` x `size`, is hottest: shares of the side, (B, 2) row, column."""
    at = heat(maps, size).flatten(1).argmax(dim=1)
    return torch.stack(((at // size + 0.5) / size, (at % size + 0.5) / size), dim=1)


def hits(points: Tensor, masks: Tensor) -> Tensor:
    """Whether each point (B, 2), in shares of the side, lies on the bird of its mask (B, s, s): (B,) bool."""
    row, column = (points * masks.shape[-1]).long().clamp(0, masks.shape[-1] - 1).unbind(dim=1)
    return masks[torch.arange(len(masks)), row, column]


def share_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map's heat that lies on the bird, (B,) in 0..1; 0 for a map without heat."""
    warm = heat(maps, masks.shape[-1])
    total = warm.sum(dim=(1, 2))
    return (warm * masks).sum(dim=(1, 2)) / total.where(total > 0, 1)


def randomised(net: BirdNet, seed: int) -> BirdNet:
    """The same network with fresh random weights; class names, sizes and normalisation are kept."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        other = BirdNet(len(net.extra["classes"]), channels=net.extra["channels"], strides=net.extra["strides"],
                        batch_norm=net.extra["batch_norm"])
    other.extra = deepcopy(net.extra)
    other.mean.copy_(net.mean)
    other.std.copy_(net.std)
    other = other.eval().to(net.mean.device)
    return other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def pointing_game(net: BirdNet, pixels: Tensor, labels: Tensor, masks: Tensor,
                  seeds: tuple[int, ...] = (0, 1, 2), most: int = 150) -> dict:
    """Scores of the maps of the true classes `labels` (N,), means over the photos (N, 3, S, S) uint8.

    Of more than `most` photos, so many are taken, evenly spread over the set.

    pointing        share of maps whose peak lies on the bird, with no tolerance; one without heat is a miss
    heat_inside     share of the heat that lies on the bird
    empty           number of maps without heat
    random_*        the same, mean over networks of random weights, one for each of `seeds`
    centre          share of birds that the middle of the picture lies on
    area            share of the picture that the bird covers: what heat spread evenly would score
    """
    pick = torch.linspace(0, len(labels) - 1, min(most, len(labels))).round().long()
    pixels, labels, masks = pixels[pick], labels[pick], masks[pick]

    def score(judged: BirdNet) -> tuple[float, float, int]:
        maps = look(judged, pixels, labels).cpu()
        empty = is_empty(maps)
        on_bird = hits(peaks(maps, masks.shape[-1]), masks) & ~empty
        return on_bird.float().mean().item(), share_inside(maps, masks).mean().item(), int(empty.sum())

    pointing, inside, empty = score(net)
    random = np.mean([score(randomised(net, seed))[:2] for seed in seeds], axis=0)
    return {"photos": len(labels), "pointing": pointing, "heat_inside": inside, "empty": empty,
            "random_pointing": float(random[0]), "random_heat_inside": float(random[1]), "random_seeds": list(seeds),
            "centre": hits(torch.full((len(masks), 2), 0.5), masks).float().mean().item(),
            "area": masks.float().mean().item()}
