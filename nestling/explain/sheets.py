"""Maps over photos, digits, and the latent space, in the style of draw.py."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from nestling.explain.draw import BAD, FAINT, FULL, GREY, HALF, INK, STEPS, axes_of, save, styled
from nestling.explain.latent import ellipse

HEAT = matplotlib.colormaps["inferno"]
PALETTE = matplotlib.color_sequences["petroff10"]          # distinct with any colour vision


# ---- class activation maps ----

@styled
def cam_row(name: str, photos: Sequence[dict], path: str | Path, *, places: int = 3, width: float = HALF,
            ratio: float = 4 / 3) -> Path:
    """The photos of one class with their maps over them, in equal places of width / height `ratio`.

    A photo: {"photo": (S, S, 3) uint8, "aspect": width / height, "cam": (h, w) >= 0, "p": probability of
    the predicted class, whose map it is, "wrong": its name, or "" where it is `name`}. Colours run from 0
    to each map's own maximum. Names are wrapped, never cut.
    """
    gap, above, line = 0.12, 0.42, 0.27                    # cm
    side = width / places - gap
    captions = []
    for shown in photos:
        named = f"{shown['wrong']} ({shown['p']:.2f})" if shown["wrong"] else f"{shown['p']:.2f}"
        lines = ["predicted as"] * bool(shown["wrong"]) + textwrap.wrap(named, int(side / 0.135))
        captions.append("\n".join(lines + ["no evidence"] * (not shown["cam"].any())))
    height = above + side / ratio + 0.2 + line * max([text.count("\n") + 1 for text in captions], default=1)
    figure = Figure(figsize=(width / 2.54, height / 2.54))
    figure.set_layout_engine("none")                       # every place is given in centimetres
    figure.text(gap / 2 / width, 1 - 0.3 / height, name, fontweight="bold",
                fontsize=min(8, 40 * width / len(name)))
    for k, (shown, caption) in enumerate(zip(photos, captions, strict=True)):
        x, y = gap / 2 + k * width / places, height - above - side / ratio
        ax = figure.add_axes((x / width, y / height, side / width, side / ratio / height))
        ax.imshow(blend(shown["photo"], shown["cam"]), extent=(0, shown["aspect"], 0, 1),
                  interpolation="antialiased")
        ax.set_anchor("N")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set(visible=bool(shown["wrong"]), color=BAD, linewidth=1.5)
        figure.text((x + side / 2) / width, (y - 0.1) / height, caption, ha="center", va="top", fontsize=6.5,
                    color=BAD if shown["wrong"] else GREY, linespacing=1.15)
    return save(figure, path)


def blend(photo: NDArray, cam: NDArray) -> NDArray:
    """A photo (S, S, 3) uint8 under its map (h, w), the more evidence, the more: (S, S, 3) in 0..1."""
    smooth = Image.fromarray(cam.astype(np.float32)).resize(photo.shape[1::-1], Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(smooth) / (cam.max() or 1), 0, 1)
    alpha = (0.75 * share**0.75)[..., None]
    pale = (0.8 * photo + 0.2 * photo.mean(axis=2, keepdims=True)) / 255
    return (1 - alpha) * pale + alpha * HEAT(share)[..., :3]


def montage(paths: Sequence[Path], path: Path, columns: int = 2) -> Path:
    """PNGs put together in columns."""
    images = [Image.open(part).convert("RGB") for part in paths]
    width, height = (max(sides) for sides in zip(*(image.size for image in images), strict=True))
    canvas = Image.new("RGB", (width * columns, height * -(-len(images) // columns)), "white")
    for k, image in enumerate(images):
        canvas.paste(image, (k % columns * width, k // columns * height))
    canvas.save(path)
    return path


# ---- digits ----

@styled
def reconstructions(images: NDArray, decoded: NDArray, path: str | Path, *, columns: int = 15) -> Path:
    """Images (M, 28, 28) above what the decoder makes of them, `columns` a line."""
    lines = max(1, -(-len(images) // columns))
    canvas = np.zeros((lines, 2, columns, 28, 28))
    for place, pair in enumerate(zip(images, decoded, strict=True)):
        canvas[place // columns, :, place % columns] = pair
    figure, axes = axes_of(FULL, lines * (2 * (FULL - 1.7) / columns + 0.15), lines)
    for ax, line in zip(axes.flat, canvas, strict=True):
        mosaic(ax, line, "gray_r", gap=2)
        ax.set_yticks([15, 45], ["original", "decoded"])
        ax.tick_params(length=0)
    return save(figure, path)


@styled
def manifold(images: NDArray, axis: NDArray, path: str | Path) -> Path:
    """The grid (n, n, 28, 28) of decoded images; `axis` (n,): the latents of its columns and rows."""
    n = len(images)
    figure, ((ax,),) = axes_of(11.0, 10.7)
    mosaic(ax, images, "gnuplot2", gap=0)
    at = np.unique(np.linspace(0, n - 1, 4).round().astype(int))
    ticks = [f"{value:.2f}".replace("-", "−") for value in axis[at]]
    ax.set_xticks(28 * at + 14, ticks)
    ax.set_yticks(28 * (n - 1 - at) + 14, ticks)
    ax.set_xlabel("z₁")
    ax.set_ylabel("z₂", rotation=0, labelpad=8)
    return save(figure, path)


def mosaic(ax, images: NDArray, cmap: str, gap: int) -> None:
    """Images (rows, columns, h, w) in 0..1 side by side, `gap` pixels of paper around each."""
    rows, columns, h, w = images.shape
    framed = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    canvas = framed.swapaxes(1, 2).reshape(rows * (h + gap), columns * (w + gap))
    ax.imshow(canvas, cmap=cmap, vmin=0, vmax=1, extent=(0, canvas.shape[1], canvas.shape[0], 0))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


# ---- latents ----

@styled
def latents(z: NDArray, group: NDArray, names: Sequence[str], path: str | Path, *, title: str = "",
            mixture: tuple[NDArray, NDArray, list[str]] | None = None, wrong: NDArray | None = None) -> Path:
    """Latent means (N, 2), coloured by `group` (N,), which counts from 0 in the order of `names`.

    mixture: means (K, 2), covariances (K, 2, 2), names; drawn as ellipses at 1 and 2 standard deviations.
    wrong (N,) bool: points marked as misclassified.
    """
    figure, ((ax,),) = axes_of(HALF, HALF * 1.02)
    colours = np.array([to_rgb(PALETTE[k % len(PALETTE)]) for k in range(len(names))])
    order = np.random.default_rng(0).permutation(len(z))   # so that no group hides another
    ax.scatter(*z[order].T, s=float(np.clip(3000 / max(len(z), 1), 1.2, 9)), c=colours[group[order]],
               alpha=0.35 if mixture else 0.6, linewidths=0, rasterized=True)
    shown = z
    for mean, covariance, name in zip(*mixture, strict=True) if mixture else ():
        for sigmas, thickness in ((1, 1.1), (2, 0.8)):
            outline = ellipse(mean, covariance, sigmas)
            ax.plot(*outline.T, color=INK, linewidth=thickness)
            shown = np.concatenate([shown, outline])
        ax.annotate(name, mean, ha="center", va="center", fontsize=10, fontweight="bold", zorder=5,
                    bbox={"boxstyle": "circle,pad=0.15", "color": "white", "alpha": 0.8})
    key = [Line2D([], [], linestyle="", marker="o", markersize=4, color=PALETTE[k % len(PALETTE)], label=name)
           for k, name in enumerate(names)]
    if wrong is not None and wrong.any():
        key.append(ax.scatter(*z[wrong].T, s=16, marker="x", color=BAD, linewidth=0.9, zorder=4,
                              label=f"misclassified ({wrong.sum()})"))
    ax.legend(handles=key, title=title or None, title_fontsize=8, alignment="left", loc="lower left",
              bbox_to_anchor=(0, 1), borderpad=0, borderaxespad=0.4, ncols=6, handletextpad=0,
              columnspacing=0.8, handlelength=1.4)
    low, high = shown.min(axis=0), shown.max(axis=0)
    reach = 0.53 * float((high - low).max()) or 1.0        # the same unit on both axes
    x, y = (low + high) / 2
    ax.set(xlim=(x - reach, x + reach), ylim=(y - reach, y + reach), aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=STEPS))
    ax.axhline(0, color=FAINT, linewidth=0.6, zorder=0)
    ax.axvline(0, color=FAINT, linewidth=0.6, zorder=0)
    ax.set_xlabel("z₁")
    ax.set_ylabel("z₂", rotation=0)
    return save(figure, path)
