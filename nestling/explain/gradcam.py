"""Grad-CAM (Selvaraju et al. 2017): where in a photo a class finds its evidence. Arrays only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bird import BirdNet

SCALES = (1.25, 2.0)                       # of the network's image size, at which `cam_maps` shows a photo


def grad_cam(net: BirdNet, x: Tensor, target: Tensor | int) -> Tensor:
    """Maps (B, h, w) >= 0 of the evidence for `target`, one class or (B,), in x (B, 3, s, s) in 0..1.

    `net` is in eval mode. Without the maxima in the head, and without the ReLU here, the cells would add up
    to the logit less its bias. A map of zeros: nothing in the photo speaks for the class. Works under
    `no_grad` and with frozen weights.
    """
    with torch.inference_mode(False):
        with torch.no_grad():
            h = net.feature_map(x)                         # (B, C, h, w)
        with torch.enable_grad():
            logits = net.classify(h.requires_grad_())      # (B, K)
            index = torch.as_tensor(target, device=logits.device).expand(len(x))
            score = logits.gather(1, index[:, None]).sum() # a photo's map depends on its own logit only
            (grad,) = torch.autograd.grad(score, h)
    alpha = grad.mean(dim=(2, 3), keepdim=True)            # (B, C, 1, 1), eq. 1
    return (alpha * h.detach()).sum(dim=1).relu()          # (B, h, w), eq. 2


def upsample(maps: Tensor, size: int) -> Tensor:
    """Maps (B, h, w) -> (B, size, size), smooth and still >= 0, in the same unit."""
    return F.interpolate(maps[:, None], (size, size), mode="bicubic", align_corners=False)[:, 0].clamp(min=0)


def cam_maps(net: BirdNet, pixels: Tensor, target: Tensor) -> Tensor:
    """Maps (N, h, w) of decoded photos (N, 3, S, S) uint8 for the classes `target` (N,), batch by batch.

    Means over two scales of the photo and its mirror image, in logits a cell of the larger grid.
    """
    maps = []
    for batch, classes in zip(pixels.split(32), target.split(32), strict=True):
        views = []
        for size in (round(scale * net.extra["size"] / 16) * 16 for scale in SCALES):
            x = F.interpolate(batch.to(net.head.weight) / 255, (size, size), mode="bilinear", antialias=True)
            x = x.contiguous(memory_format=torch.channels_last)
            views += [grad_cam(net, x, classes), grad_cam(net, x.flip(3), classes).flip(2)]
        side = views[-1].shape[-1]
        maps.append(torch.stack([upsample(m, side) * (m.shape[-1] / side) ** 2 for m in views]).mean(dim=0))
    return torch.cat(maps) if maps else torch.empty(0, 1, 1)
