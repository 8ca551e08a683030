"""Arrays and a path in, an SVG or PNG out, in one style: curves, confusion matrix, ablation.

Sizes are in centimetres and fit an A4 page. The same arrays give the same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nestling.files import write_atomic

FULL, HALF = 17.0, 8.3                     # cm: the text's width, and two side by side
INK, GREY, FAINT = "#333333", "#767676", "#dddddd"
TRAIN, VAL, GOOD, BAD = "#3f90da", "#e76300", "#2f7d4f", "#bd1f01"
BLUES = LinearSegmentedColormap.from_list("blues", ["#ffffff", "#c6ddf3", "#3f90da", "#163a63"])
SAVED: Any = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (2, 2))}
STEPS = (1, 2, 2.5, 5, 10)                 # of the ticks

STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
    "legend.fontsize": 7.5, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "text.parse_math": False,              # a class may be called $x$
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.titlelocation": "left",
    "axes.edgecolor": GREY, "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": GREY, "ytick.color": GREY, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "grid.color": FAINT, "grid.linewidth": 0.5, "lines.linewidth": 1.2, "legend.frameon": False,
    "figure.constrained_layout.use": True, "savefig.dpi": 200, "svg.hashsalt": "nestling",
    "image.interpolation": "nearest",
}
styled = matplotlib.rc_context(STYLE)      # a decorator; without pyplot no figure is left open


def missing_letters(text: str) -> set[str]:
    """The letters of `text` that the figures' font does not have."""
    known = get_font(findfont(STYLE["font.family"])).get_charmap()
    return {letter for letter in text if ord(letter) not in known and not letter.isspace()}


def axes_of(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, NDArray]:
    """A figure in centimetres and its axes (rows, columns)."""
    figure = Figure(figsize=(width / 2.54, height / 2.54))
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: str | Path) -> Path:
    """Writes the figure as .svg or .png, without date or version in it."""
    path, buffer = Path(path), io.BytesIO()
    blank: Any = {".svg": {"Date": None}, ".png": {"Software": None}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")         # a letter that the font lacks becomes a box
        figure.savefig(buffer, format=path.suffix[1:], metadata=blank[path.suffix])
    write_atomic(path, buffer.getvalue())
    return path


PANELS = (                                 # title and keys; drawn where the history has them
    ("loss (cross-entropy)", "train_loss", "val_loss"),
    ("accuracy", "train_accuracy", "val_accuracy"),
    ("reconstruction, nats an image", "recon", "held_recon"),
    ("KL divergence, nats an image", "kl", "held_kl"),
    ("SSIM of the reconstruction", "ssim", "held_ssim"),
    ("mutual information of the clusters, nats", "information", "held_information"),
)


@styled
def curves(rows: list[dict], path: str | Path) -> Path:
    """A training's history against epochs.

    The epoch whose weights were saved ("best") is marked, and where the image size or the phase changes.
    """
    panels = [panel for panel in PANELS if any(panel[1] in row for row in rows)]
    lines = max(1, -(-len(panels) // 2))
    figure, axes = axes_of(FULL, 2.6 + 2.2 * lines, lines, 2)
    epochs = [row["epoch"] for row in rows]
    stages = [row.get("phase") or f"{row.get('size')} px" for row in rows]
    starts = [i for i in range(1, len(rows)) if stages[i] != stages[i - 1]]
    saved = [row["epoch"] for row in rows if row.get("best")][-1:]
    for ax in axes.flat[len(panels):]:
        ax.set_axis_off()
    for place, (ax, (title, *keys)) in enumerate(zip(axes.flat, panels, strict=False)):
        for key, colour in zip(keys, (TRAIN, VAL), strict=True):
            y = [row.get(key, np.nan) for row in rows]
            ax.plot(epochs, y, color=colour, marker="o" if len(rows) <= 30 else "", markersize=2.2)
        ax.set_title(title, pad=10 if starts else 6)
        ax.grid(axis="y")
        ax.set_xlim(0.5, epochs[-1] + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=STEPS))
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        for i in starts:
            ax.axvline(epochs[i] - 0.5, color=FAINT, linewidth=0.8, zorder=0)
        for i in [0, *starts] if starts else []:
            ax.annotate(stages[i], (epochs[i] - 0.5, 1), xycoords=("data", "axes fraction"), xytext=(1, 2),
                        textcoords="offset points", color=GREY, fontsize=6)
        for epoch in saved:
            ax.axvline(epoch, zorder=1, **SAVED)
        if place >= len(panels) - 2:
            ax.set_xlabel("epoch")
    handles = [Line2D([], [], color=TRAIN, label="training"), Line2D([], [], color=VAL, label="validation")]
    handles += [Line2D([], [], label=f"saved: epoch {epoch}", **SAVED) for epoch in saved]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return save(figure, path)


@styled
def confusion(counts: NDArray, names: Sequence[str], path: str | Path) -> Path:
    """A confusion matrix (K, K), true classes downwards, coloured by the share of the row."""
    k = len(names)
    figure, ((ax,),) = axes_of(HALF if k <= 5 else FULL, min(FULL, 3.6 + 0.75 * k))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.pcolormesh(share, cmap=BLUES, vmin=0, vmax=1, edgecolors=FAINT, linewidth=0.5)
    ax.invert_yaxis()
    for i, j in zip(*counts.nonzero(), strict=True):
        ax.text(j + 0.5, i + 0.5, str(counts[i, j]), ha="center", va="center",
                color="white" if share[i, j] > 0.55 else INK)
    long = max(map(len, names)) > 3
    ax.set_xticks(np.arange(k) + 0.5, names, rotation=40 * long, ha="right" if long else "center",
                  rotation_mode="anchor")
    ax.set_yticks(np.arange(k) + 0.5, names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    return save(figure, path)


@styled
def ablation(rows: list[dict], path: str | Path) -> Path:
    """The rows of `nestling.ablate.table`: a dot a run, a bar from the baseline's mean to each setting's.

    Bars are pale where the difference is not beyond the noise.
    """
    shown = [row for row in rows if row["runs"]]
    base = next((row["score"] for row in shown if row["setting"] == "baseline"), None)
    figure, ((ax,),) = axes_of(FULL, 2 + 0.62 * len(shown))
    for y, row in enumerate(shown):
        difference = row["difference"] or 0.0
        colour = INK if not difference else GOOD if difference > 0 else BAD
        ax.barh(y, row["score"] - (base or 0), 0.6, base or 0, color=colour,
                alpha=0.6 if row["beyond"] else 0.25)
        ax.plot(row["scores"], [y] * len(row["scores"]), "o", color=colour, markersize=3)
    if base is not None:
        ax.axvline(base, color=INK, linewidth=0.8)
    ax.set_yticks(range(len(shown)), [row["what"] for row in shown])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.invert_yaxis()
    ax.set_xlabel("score")
    return save(figure, path)
