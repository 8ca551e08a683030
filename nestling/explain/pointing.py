"""Do the maps lie on the bird? The pointing game (Zhang et al. 2018), and the share inside known masks.

Beside them the check of Adebayo et al. 2018: maps of a network of random weights must do clearly worse.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bird import BirdNet
from nestling.explain.gradcam import cam_maps, upsample
from nestling.files import UserError


def mask_folder(dataset: Path) -> Path | None:
    """The masks of a part of a drawn set, birds/masks/test for birds/test; None if there are none."""
    folder = dataset.absolute().parent / "masks" / dataset.absolute().name
    return folder if folder.is_dir() else None


def read_masks(folder: Path, paths: list[Path], size: int) -> Tensor:
    """Masks (N, size, size) bool, true on the bird, of the photos `paths`, relative to their data set."""
    masks = []
    for path in (folder / path.with_suffix(".png") for path in paths):
        try:
            with Image.open(path) as file:
                mask = file.convert("L").resize((size, size), Image.Resampling.NEAREST)
            masks.append(np.asarray(mask) > 127)
        except OSError as error:
            raise UserError(f"{path} cannot be read as a mask; draw the set anew by `nestling data "
                            "birds`.") from error
    return torch.from_numpy(np.stack(masks))


def hits(maps: Tensor, masks: Tensor) -> Tensor:
    """Whether the maximum of each map (B, h, w) lies in its mask (B, s, s), (B,); not for a map of zeros."""
    smooth = upsample(maps, masks.shape[-1]).flatten(1)
    on_bird = masks.flatten(1).gather(1, smooth.argmax(dim=1, keepdim=True))[:, 0]
    return on_bird & (smooth.amax(dim=1) > 0)


def share_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map (B, h, w) that lies in its mask (B, s, s), (B,); 0 for a map of zeros."""
    smooth = upsample(maps, masks.shape[-1])
    total = smooth.sum(dim=(1, 2))
    return (smooth * masks).sum(dim=(1, 2)) / total.where(total > 0, 1)


def randomised(net: BirdNet, seed: int) -> BirdNet:
    """The same network with random weights; class names and image size are kept."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        other = BirdNet(len(net.extra["classes"]), batch_norm=net.extra["batch_norm"])
    other.extra = deepcopy(net.extra)
    return other.eval().to(net.head.weight.device)


def pointing_game(net: BirdNet, pixels: Tensor, labels: Tensor, masks: Tensor,
                  seeds: tuple[int, ...] = (0, 1, 2), most: int = 150) -> dict:
    """Scores of the maps of the true classes `labels` (N,), means over `most` photos (N, 3, S, S) at most.

    pointing        share of maps whose maximum lies on the bird, with no tolerance; a map of zeros is a miss
    heat_inside     share of the evidence that lies on the bird
    empty           number of maps of zeros
    random_*        the same, mean over networks of random weights, one for each of `seeds`
    centre          share of birds that the middle of the picture lies on
    area            share of the picture that the bird covers: what evidence spread evenly would score
    """
    pick = torch.linspace(0, len(labels) - 1, min(most, len(labels))).round().long()
    pixels, labels, masks = pixels[pick], labels[pick], masks[pick]

    def score(judged: BirdNet) -> tuple[float, float, int]:
        maps = cam_maps(judged, pixels, labels).cpu()
        inside = share_inside(maps, masks).mean().item()
        return hits(maps, masks).float().mean().item(), inside, int((maps.amax(dim=(1, 2)) <= 0).sum())

    pointing, inside, empty = score(net)
    random = np.mean([score(randomised(net, seed))[:2] for seed in seeds], axis=0)
    return {"photos": len(labels), "pointing": pointing, "heat_inside": inside, "empty": empty,
            "random_pointing": float(random[0]), "random_heat_inside": float(random[1]),
            "centre": masks[:, masks.shape[1] // 2, masks.shape[2] // 2].float().mean().item(),
            "area": masks.float().mean().item()}
