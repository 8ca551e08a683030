"""The layers of a network, as it really is: one image is sent through, and what each layer gives is written down."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

KINDS = {"BatchNorm1d": "batch norm", "BatchNorm2d": "batch norm", "LayerNorm": "layer norm", "ReLU": "ReLU",
         "SiLU": "SiLU", "GELU": "GELU", "Sigmoid": "sigmoid", "Linear": "linear"}
SILENT = (nn.Flatten, nn.Unflatten, nn.Identity)       # they change no number


@dataclass(frozen=True)
class Layer:
    """One row: `part` of the network, what is done, the shape of one image's outcome, trained numbers, repeats."""

    part: str
    what: str
    shape: tuple[int, ...]
    parameters: int
    times: int = 1


@dataclass
class Call:
    """One module at work: what it was given and what it gave, for a single image."""

    part: str
    module: nn.Module
    given: Tensor
    gave: Tensor


@torch.no_grad()
def layers(net: nn.Module, x: Tensor) -> list[Layer]:
    """The layers that a batch of one image x (1, ...) passes, in order; their parameters add up to the network's.

    Normalisation, activation and the like are told on the line of the layer before them; equal neighbours are one line.
    """
    rows: list[Layer] = []
    before: Call | None = None
    leading: list[str] = []                            # of a part that begins with something without parameters
    for call in calls(net, x):
        if before and before.gave.ndim == 4 and call.given.ndim == 2 and (what := pooling(before.gave, call.given)):
            h, w = before.gave.shape[2:]
            rows.append(Layer(before.part, f"{what} over {h} × {w}", tuple(call.given.shape[1:]), 0))
        if before and before.part != call.part:
            before = None
        own, said = sum(p.numel() for p in call.module.parameters()), describe(call.module)
        shape = tuple(call.gave.shape[1:])
        if own and not is_norm(call.module):
            rows.append(Layer(call.part, ", ".join([*leading, said]), shape, own))
            leading = []
        elif before is None:
            leading.append(said)
        else:
            last = rows[-1]
            rows[-1] = replace(last, what=f"{last.what}, {said}", shape=shape, parameters=last.parameters + own)
        before = call
    return collapsed(rows)


def calls(net: nn.Module, x: Tensor) -> list[Call]:
    """What each unit does with x, in the order of the first calls. A unit is a module that is no plain chain."""
    seen: list[Call] = []
    handles = []
    for part, module in units(net):
        def keep(module: nn.Module, given: tuple[Tensor, ...], gave: Tensor, part: str = part) -> None:
            if not isinstance(module, SILENT) and all(call.module is not module for call in seen):
                seen.append(Call(part, module, given[0].clone(), gave.clone()))     # in-place layers come after
        handles.append(module.register_forward_hook(keep))
    training = net.training
    try:
        net.eval()(x)
    finally:
        net.train(training)
        for handle in handles:
            handle.remove()
    return seen


def units(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The network's parts, chains taken apart: (name of the outermost part, module)."""
    def taken_apart(part: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
        if not isinstance(module, nn.Sequential):
            return [(part, module)]
        return [unit for child in module for unit in taken_apart(part, child)]
    return [unit for name, child in net.named_children() for unit in taken_apart(name, child)]


def is_norm(module: nn.Module) -> bool:
    """Is it a normalisation, told on the line of the layer before it?"""
    return "Norm" in type(module).__name__


def pooling(maps: Tensor, vector: Tensor) -> str:
    """What made the vector (1, C or 2 C) of the maps (1, C, h, w), in words; "" if it is neither of those tried."""
    mean, most = maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))
    tried = {"mean": mean, "maximum": most, "mean and maximum": torch.cat([mean, most], dim=1)}
    return next((what for what, pooled in tried.items()
                 if pooled.shape == vector.shape and torch.allclose(pooled, vector, atol=1e-4, rtol=1e-3)), "")


def collapsed(rows: list[Layer]) -> list[Layer]:
    """Equal neighbours as one line that says how often."""
    short: list[Layer] = []
    for row in rows:
        last = short[-1] if short else None
        if last and (last.part, last.what, last.shape) == (row.part, row.what, row.shape):
            short[-1] = replace(last, times=last.times + 1, parameters=last.parameters + row.parameters)
        else:
            short.append(row)
    return short


def describe(module: nn.Module) -> str:
    """A module in a few words, from its own attributes; one with parts as the list of them."""
    kind = type(module).__name__
    if isinstance(module, nn.Conv2d):
        stride = f", stride {module.stride[0]}" if module.stride[0] > 1 else ""
        return f"convolution {side(module.kernel_size)}{stride}"
    if isinstance(module, nn.Dropout):
        return f"dropout {module.p:g}"
    if "Pool" in kind:
        size, step = getattr(module, "kernel_size", "?"), getattr(module, "stride", None)
        return (f"{'mean' if 'Avg' in kind else 'maximum'} of {side(size)}"
                + (f", stride {step}" if step not in (None, size) else ""))
    if kind in KINDS:
        return KINDS[kind]
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        return " → ".join(describe(child).replace("convolution", "conv") for child in children.values()) or "as it is"
    told = [f"{name}: {describe(child)}" if isinstance(child, nn.Sequential) else describe(child)
            for name, child in children.items()]
    return f"{kind} ({'; '.join(told)})" if told else kind


def side(size: int | tuple[int, ...] | str) -> str:
    """A kernel's size: 3 -> "3 × 3"."""
    return " × ".join(map(str, size)) if isinstance(size, tuple) else f"{size} × {size}"
