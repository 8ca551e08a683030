"""The layers of a network, as torchinfo finds them when one image is sent through."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torchinfo
from torch import Tensor, nn

WORDS = {"BatchNorm1d": "BN", "BatchNorm2d": "BN", "LayerNorm": "layer norm", "Linear": "linear",
         "Sigmoid": "sigmoid", "MaxPool2d": "max pool", "AvgPool2d": "average pool"}
CHAINS = (nn.Sequential, nn.Flatten, nn.Unflatten)


def network_facts(net: nn.Module, x: Tensor, merged: bool = False) -> dict[str, Any]:
    """The layers that one image x (1, ...) passes, in lanes: one a part of the network, or all in one.

    side, channels, width: the largest map and vector, which scale the drawing.
    """
    rows, info = layers(net, x)
    given = {"mark": "in", "what": "", "shape": [1] * (4 - x.ndim) + list(x.shape[1:])}
    lanes = [{"name": name, "layers": [*([given] if name != "decoder" else []), *lane]}
             for name, lane in groupby(rows, key=lambda row: "" if merged else row["part"])]
    maps = [row["shape"] for row in [given, *rows] if len(row["shape"]) == 3]
    return {"lanes": lanes, "total": f"{info.total_params:,}", "millions": info.total_params / 1e6,
            "mult_adds": f"{info.total_mult_adds / 1e6:.0f}",
            "side": max(shape[1] for shape in maps), "channels": max(shape[0] for shape in maps),
            "width": max([row["shape"][0] for row in rows if len(row["shape"]) == 1], default=1)}


def layers(net: nn.Module, x: Tensor) -> tuple[list[dict[str, Any]], torchinfo.ModelStatistics]:
    """Rows {"mark", "part", "what", "shape", "parameters", "count", "share"}, and torchinfo's summary.

    Chains are taken apart. What has no parameters, and normalisation, stands on the line of the layer
    before; equal neighbours are one row.
    """
    info = torchinfo.summary(net, input_data=x, depth=9, verbose=0, mode="eval")
    rows: list[dict[str, Any]] = []
    before: list[int] = []                                 # shape of the last output
    for item in info.summary_list[1:]:
        path = [item]
        while (outer := path[-1].parent_info) and outer.depth:
            path.append(outer)
        if isinstance(item.module, CHAINS) or not all(isinstance(up.module, CHAINS) for up in path[1:]):
            continue                                       # no layer by itself, or inside of a block
        part, shape, what = path[-1].var_name, item.output_size[1:], describe(item.module)
        if len(before) == 3 and len(item.input_size) == 2 and path[-1] is item:        # done in `forward`
            how = "mean and maximum" if item.input_size[1] == 2 * before[0] else "global pooling"
            rows.append({"part": part, "what": f"{how} over {before[1]} × {before[2]}",
                         "shape": item.input_size[1:], "parameters": 0})
        if not rows or (item.num_params and "Norm" not in item.class_name):
            rows.append({"part": part, "what": what, "shape": shape, "parameters": item.num_params})
        else:
            rows[-1]["what"] += f", {what}"
            rows[-1]["shape"] = shape
            rows[-1]["parameters"] += item.num_params
        before = shape
    merged: list[dict[str, Any]] = []
    for _, group in groupby(rows, key=lambda row: (row["part"], row["what"], row["shape"])):
        first, *others = group
        parameters = sum(row["parameters"] for row in (first, *others))
        merged.append(first | {
            "mark": str(len(merged) + 1), "parameters": parameters,
            "count": f"{parameters:,}" if parameters else "",
            "what": f"{len(others) + 1} × [{first['what']}]" if others else first["what"],
            "share": parameters / info.total_params})
    return merged, info


def describe(module: nn.Module) -> str:
    """A module in a few words; one with parts as the list of those that have parameters."""
    kind, children = type(module).__name__, dict(module.named_children())
    if isinstance(module, nn.Conv2d):
        step = f" / {module.stride[0]}" if module.stride[0] > 1 else ""
        return f"conv {module.kernel_size[0]} × {module.kernel_size[1]}{step}"
    if isinstance(module, nn.Dropout):
        return f"dropout {module.p:g}"
    if isinstance(module, nn.Sequential):
        return ", ".join(map(describe, module))
    parts = [f"{name}: {describe(child)}" if isinstance(child, nn.Sequential) and k else describe(child)
             for k, (name, child) in enumerate(children.items()) if list(child.parameters())]
    size = f" {module.kernel_size} × {module.kernel_size}" if "Pool" in kind else ""
    return f"{kind} ({'; '.join(parts)})" if parts else WORDS.get(kind, kind) + size
