"""Networks -> what nets.js runs: a list of layers as plain values, weights as base64 of 16-bit integers.

A layer is {"type": ..., ...}; its tensors are {"shape", "dtype", "base64"}, little-endian. Batch
normalisation becomes a part of the convolution or linear layer just before it, or an affine layer. The weights
of an output are multiples of 1/32767 of the largest one: of as many bits as float16, and more exact.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import bird
import vae
from nestling.files import UserError

VERSION = 1                    # of the format, which nets.js checks
LARGEST = 2**15 - 1            # of a weight, in units
Layer = dict[str, Any]


def export_bird(net: bird.BirdNet) -> dict[str, Any]:
    """BirdNet -> plain values; `layers` makes the feature map, of whose means and maxima `head` makes logits."""
    inputs = affine(torch.full((3,), 1 / 0.25), torch.full((3,), -0.5 / 0.25))     # as in `feature_map`
    return {"version": VERSION, "classes": list(net.extra["classes"]), "size": net.extra["size"],
            "stored": bird.STORED, "layers": packed([inputs, *layers_of([net.features])]),
            "head": packed(layers_of([net.dropout, net.head]))}


def export_vae(net: vae.VAE, mixture: vae.GaussianMixture) -> dict[str, Any]:
    """VAE and mixture -> plain values; of the clusterer, the head in use alone (none in the plain VAE)."""
    clusterer = []
    if clusters := net.shape["clusters"]:
        *rest, last = layers_of([net.clusterer])
        rows = slice(int(net.head) * clusters, (int(net.head) + 1) * clusters)
        clusterer = [*rest, last | {"weight": last["weight"][rows], "bias": last["bias"][rows]}]
    numbers = {name: getattr(net, name).tolist() for name in ("prior_means", "prior_std", "z_mean", "z_std")}
    return {"version": VERSION, "side": vae.SIDE, **numbers,
            **{name: packed(layers) for name, layers in (
                ("clusterer", clusterer), ("encoder", layers_of([net.encoder])),
                ("decoder", layers_of([net.decoder])))},
            "mixture": {"digits": list(mixture.digits), **{
                name: getattr(mixture, name).tolist() for name in ("weights", "means", "covariances")}}}


def layers_of(modules: Iterable[nn.Module]) -> list[Layer]:
    """Modules that run one after the other -> layers, with tensors in float64."""
    layers: list[Layer] = []
    for module in flat(modules):
        match module:
            case nn.Dropout() | nn.Flatten() | nn.Unflatten() | nn.Identity():
                pass                                       # nothing in eval mode, or in nets.js
            case nn.Conv2d(kernel_size=(k, l), stride=(s, t), padding=(p, q), dilation=(1, 1), groups=1,
                           padding_mode="zeros") if k == l and s == t and p == q == k // 2:
                layers.append({"type": "conv", "stride": s, **weights(module)})
            case nn.Linear():
                layers.append({"type": "linear", **weights(module)})
            case (nn.BatchNorm1d() | nn.BatchNorm2d()) if module.affine and module.track_running_stats:
                normalise(layers, module)
            case nn.LayerNorm(weight=Tensor(), bias=Tensor(), normalized_shape=(_,)):
                layers.append({"type": "layernorm", "eps": module.eps, **weights(module)})
            case nn.MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False):
                layers.append({"type": "maxpool"})
            case nn.AvgPool2d(kernel_size=2, stride=2, padding=0, ceil_mode=True, divisor_override=None):
                layers.append({"type": "avgpool"})         # of what there is of a square, at the edges
            case nn.ReLU() | nn.SiLU() | nn.Sigmoid():
                layers.append({"type": type(module).__name__.lower()})
            case bird.Block():
                layers.append({"type": "block", "body": layers_of([module.body]),
                               "se": layers_of([module.se] if module.se else []),
                               "shortcut": layers_of([module.shortcut])})
            case vae.Residual():
                layers.append({"type": "residual", "body": layers_of([module.norm, module.linear, nn.SiLU()])})
            case _:
                layer = " ".join(str(module).split())
                raise UserError(f"the page cannot run the layer {layer} of this model; name a model that this "
                                "version's bird.py or vae.py trained.")
    return layers


def flat(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The modules, those inside nn.Sequential one by one."""
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from flat(module)
        else:
            yield module


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Weight and bias in float64; a bias of zeros where there is none."""
    weight = module.get_parameter("weight").detach().double().cpu()
    bias = getattr(module, "bias", None)
    return {"weight": weight, "bias": torch.zeros(len(weight)) if bias is None else bias.detach().double().cpu()}


def affine(scale: Tensor, bias: Tensor) -> Layer:
    """The layer scale x + bias, channel by channel."""
    return {"type": "affine", "weight": scale, "bias": bias}


def normalise(layers: list[Layer], norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Adds a batch normalisation by its running statistics: folded into the layer before it where that is one
    of sums of products, else as an affine layer."""
    var, mean = (norm.get_buffer(f"running_{name}").double().cpu() for name in ("var", "mean"))
    weight, beta = weights(norm).values()
    scale = weight / (var + norm.eps).sqrt()
    bias = beta - mean * scale
    if layers and layers[-1]["type"] in ("conv", "linear"):
        last = layers[-1]
        last["weight"] = last["weight"] * scale.view(-1, *[1] * (last["weight"].ndim - 1))
        last["bias"] = last["bias"] * scale + bias
    else:
        layers.append(affine(scale, bias))


def packed(layers: list[Layer]) -> list[Layer]:
    """The layers with text in the place of tensors."""
    def pack(value: Any) -> Any:
        if isinstance(value, list):
            return packed(value)
        if isinstance(value, Tensor):
            return encoded(value, "<f4")
        return value

    result = []
    for layer in layers:
        if layer["type"] in ("conv", "linear"):
            unit = layer["weight"].flatten(1).abs().amax(dim=1).clamp(min=1e-30) / LARGEST
            multiples = layer["weight"] / unit.view(-1, *[1] * (layer["weight"].ndim - 1))
            layer = layer | {"weight": encoded(multiples.round(), "<i2"), "unit": unit}
        result.append({name: pack(value) for name, value in layer.items()})
    return result


def encoded(tensor: Tensor, dtype: str) -> dict[str, Any]:
    """A tensor as text."""
    values = tensor.contiguous().numpy().astype(dtype)
    return {"shape": list(values.shape), "dtype": dtype, "base64": base64.b64encode(values.tobytes()).decode()}
