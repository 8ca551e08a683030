"""Grad-CAM (Selvaraju et al. 2017): where in a photo a class finds its evidence. Arrays only, hooks of our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bird import BirdNet

SIZES = (1.25, 2.0)  # the sides at which `look` looks at a photo, in sizes of the network


def grad_cam(net: BirdNet, x: Tensor, target: Tensor | int, layer: nn.Module | None = None) -> Tensor:
    """Maps (B, h, w) >= 0 of the evidence for `target`, one class for all or (B,), in photos x (B, 3, s, s) in 0..1.

    They are read at the output of `layer`, by default the network's last feature map. A cell's value is in logits: were
    there no maxima in the head, the cells of that map would, without the ReLU, add up to the logit less its bias. A map
    of zeros says that nothing in the photo speaks for the class. Works under `no_grad` and with
    frozen weights.
    """
    with borrowed(net, layer or net.features) as seen:
        logits = net(x)  # (B, K)
        index = torch.as_tensor(target, device=logits.device).expand(len(x))
        score = logits.gather(1, index[:, None]).sum()  # a photo's map depends on its own logit only
        (grad,) = torch.autograd.grad(score, seen["map"])  # (B, C, h, w)
    alpha = grad.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1), eq. 1
    return (alpha * seen["map"].detach()).sum(dim=1).relu()  # (B, h, w), eq. 2


@contextmanager
def borrowed(net: BirdNet, layer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within it `net` is in eval mode and leaves the layer's output in the dict, the start of what is differentiated.

    Hook, modes and the gradient switch are as they were afterwards, also after an error.
    """
    seen: dict[str, Tensor] = {}

    def keep(_module, _inputs, out: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # from here on: the layers before need no gradient, and no memory for it
        seen["map"] = out.detach().requires_grad_()
        return seen["map"]

    modes = [(module, module.training) for module in net.modules()]
    try:
        with layer.register_forward_hook(keep), torch.inference_mode(False), torch.no_grad():
            net.eval()
            yield seen
    finally:
        for module, training in modes:
            module.training = training


def heat(maps: Tensor, size: int) -> Tensor:
    """Maps (B, h, w) brought to (B, size, size), smooth and still >= 0, in the same unit."""
    return F.interpolate(maps[:, None], (size, size), mode="bicubic", align_corners=False)[:, 0].clamp(min=0)


def is_empty(maps: Tensor) -> Tensor:
    """Which maps (B, h, w) are zero throughout, (B,) bool: no evidence, so there is no peak and nothing to scale."""
    return maps.flatten(1).amax(dim=1) <= 0


def fine_layer(net: BirdNet) -> nn.Module:
    """The last layer whose map has 1/16 of the photo's side: the last of all, or the one before a last halving."""
    return net.features if net.extra["strides"][-1] == 1 else net.features[-1 - net.BLOCKS[-1]]


def look(net: BirdNet, pixels: Tensor, target: Tensor) -> Tensor:
    """Maps (N, h, w) of decoded photos (N, 3, S, S) uint8, batch by batch: what `nestling explain` shows.

    They are read at 1/16 of the side, and are means over two sizes of the photo and its mirror image, on the grid of
    the larger one, in logits a cell of it. What that is worth in the pointing game: docs/log.md.
    """
    layer, device = fine_layer(net), net.mean.device
    maps = []
    for batch, classes in zip(pixels.split(32), target.split(32), strict=True):
        found = []
        for size in (round(ratio * net.extra["size"] / 32) * 32 for ratio in SIZES):
            x = F.interpolate(batch.to(device).float() / 255, (size, size), mode="bilinear", antialias=True)
            x = x.contiguous(memory_format=torch.channels_last)
            found += [grad_cam(net, x, classes, layer), grad_cam(net, x.flip(3), classes, layer).flip(2)]
        side = found[-1].shape[-1]
        maps.append(torch.stack([heat(m, side) * (m.shape[-1] / side) ** 2 for m in found]).mean(dim=0))
    return torch.cat(maps) if maps else torch.empty(0, 1, 1)
