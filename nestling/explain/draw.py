"""The one place that draws: arrays and a path in, the path of an SVG, PDF or 200-dpi PNG out, in one quiet style.

Widths fit an A4 page: FULL is the whole column, HALF leaves room for two side by side. The same arrays give the same
bytes. Raises bird.Mistake where the path cannot be written.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from bird import Mistake, write_atomic
from nestling.explain.latent import ellipse

FULL, HALF = 17.0, 8.3  # cm
INK, SOFT, FAINT = "#333333", "#767676", "#dddddd"
FIT, VALIDATION = "#3f90da", "#e76300"  # training and validation
WRONG = "#bd1f01"
KEPT: dict = {"color": SOFT, "linewidth": 0.8, "linestyle": (0, (2, 2))}
# Petroff 2021: ten colours told apart with any colour vision
PALETTE = ("#3f90da", "#ffa90e", "#832db6", "#bd1f01", "#94a4a2", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
BLUES = LinearSegmentedColormap.from_list("blues", ["#ffffff", "#c6ddf3", "#3f90da", "#163a63"])
HEAT = matplotlib.colormaps["inferno"]

STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7.5,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "text.parse_math": False,  # a class may be called $x$
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.titlelocation": "left",
    "axes.edgecolor": SOFT, "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "axes.grid": False, "grid.color": FAINT, "grid.linewidth": 0.5, "lines.linewidth": 1.2, "legend.frameon": False,
    "figure.constrained_layout.use": True, "figure.dpi": 100, "savefig.dpi": 200, "savefig.facecolor": "white",
    "pdf.fonttype": 42, "svg.hashsalt": "nestling", "image.interpolation": "nearest",
}


styled = matplotlib.rc_context(STYLE)  # a decorator; figures are made without pyplot, so none is left open


def lacking(text: str) -> set[str]:
    """The letters of `text` that the figures' font, DejaVu Sans, does not have."""
    known = get_font(findfont(STYLE["font.family"])).get_charmap()
    return {letter for letter in text if ord(letter) not in known and not letter.isspace()}


def save(figure: Figure, path: str | Path) -> Path:
    """Writes the figure whole or not at all, without date or version in it. Raises Mistake if it cannot be written."""
    path = Path(path)
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise Mistake(f"{path} is no figure's name; let it end in .svg, .png or .pdf.")
    if not path.parent.is_dir():
        raise Mistake(f"{path.parent} does not exist, so {path.name} cannot be written there; create the folder first.")
    blank: Any = {".svg": {"Date": None}, ".png": {"Software": None}, ".pdf": {"CreationDate": None}}[path.suffix]
    buffer = io.BytesIO()
    with missing_glyphs_as_boxes():
        figure.savefig(buffer, format=path.suffix[1:], metadata=blank)
    write_atomic(path, buffer.getvalue())
    return path


@contextlib.contextmanager
def missing_glyphs_as_boxes() -> Iterator[None]:
    """Within it, a class name in a script that the font lacks is drawn as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        yield


def sheet(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, NDArray]:
    """A figure in centimetres and its axes (rows, columns)."""
    figure = Figure(figsize=(width / 2.54, height / 2.54))
    return figure, figure.subplots(rows, columns, squeeze=False)


# ---- curves ----

PANELS = (  # title, key of the training's line, key of the validation's; drawn where the history has them
    ("loss", "train_loss", "val_loss"),
    ("accuracy", "train_accuracy", "val_accuracy"),
    ("reconstruction, nats an image", "recon", "held_recon"),
    ("KL, nats an image", "kl", "held_kl"),
    ("SSIM of the reconstruction", "ssim", "held_ssim"),
    ("information in the clusters, nats", "information", "held_information"),
    ("learning rate, 10⁻³", "milli_lr", None),
    ("minutes since the start", "minutes", None),
)
STEPS = (1, 2, 2.5, 5, 10)  # of the ticks


@styled
def curves(rows: list[dict], path: str | Path, *, width: float = FULL) -> Path:
    """A training's history against epochs: losses, accuracies, learning rate, time.

    The epoch whose weights were kept is marked where the rows say so ("best"), and the stages of the training (image
    size, phase) where there is more than one.
    """
    rows = derived(rows)
    panels = [panel for panel in PANELS if any(panel[1] in row for row in rows)]
    columns = 2 if len(panels) <= 4 else 3
    lines = -(-len(panels) // columns)
    figure, axes = sheet(width, 4.3 * lines + 0.6, lines, columns)
    kept = [row["epoch"] for row in rows if row.get("best")]
    for ax in axes.flat[len(panels):]:
        ax.set_axis_off()
    for place, (ax, (title, fit, validation)) in enumerate(zip(axes.flat, panels, strict=False)):
        curve(ax, rows, fit, FIT if validation else INK)
        if validation:
            curve(ax, rows, validation, VALIDATION)
        ax.set_title(title)
        ax.grid(axis="y")
        ax.set_xlim(0.5, rows[-1]["epoch"] + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=STEPS))
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        mark_stages(ax, rows, named=place < columns)
        if kept:
            ax.axvline(kept[-1], zorder=1, **KEPT)
        if place >= len(panels) - columns:
            ax.set_xlabel("epoch")
    key = [Line2D([], [], color=FIT, label="training"), Line2D([], [], color=VALIDATION, label="validation")]
    if kept:
        key.append(Line2D([], [], label=f"weights kept: epoch {kept[-1]}", **KEPT))
    figure.legend(handles=key, loc="outside upper left", ncols=3)
    return save(figure, path)


def derived(rows: list[dict]) -> list[dict]:
    """The rows with "minutes" since the start and thousandths of the learning rate.

    `bird.py` writes the seconds since the start, `vae.py` those of the epoch; and an SSIM of 1 where it computes none.
    """
    spent, more = 0.0, []
    for row in rows:
        row = {key: value for key, value in row.items() if not (key.endswith("ssim") and value == 1)}
        if "lr" in row:
            row["milli_lr"] = 1000 * row["lr"]
        if "seconds" in row:
            spent = row["seconds"] + (spent if "phase" in row else 0)
            row["minutes"] = spent / 60
        more.append(row)
    return more


def curve(ax, rows: list[dict], key: str, colour: str) -> None:
    """One line against epochs, broken where the rows lack it; dots where there are few."""
    y = np.array([row.get(key, np.nan) for row in rows], dtype=float)
    few = np.isfinite(y).sum() <= 30
    ax.plot([row["epoch"] for row in rows], y, color=colour, marker="o" if few else "", markersize=2.2)


def mark_stages(ax, rows: list[dict], named: bool) -> None:
    """Thin lines where the image size or the phase changes; where `named`, the panel gets room for the names on top."""
    stages = [row.get("phase") or (f"{row['size']} px" if "size" in row else "") for row in rows]
    starts = [i for i in range(len(rows)) if i == 0 or stages[i] != stages[i - 1]]
    if len(starts) < 2:
        return
    for i in starts[1:]:
        ax.axvline(rows[i]["epoch"] - 0.5, color=FAINT, linewidth=0.8, zorder=0)
    if named:
        ends = [*starts[1:], len(rows)]
        lines = 2 if any(end - i < 0.2 * len(rows) for i, end in zip(starts, ends, strict=True)) else 1
        low, high = ax.get_ylim()
        ax.set_ylim(low, high + 0.14 * lines * (high - low))
        for k, (i, end) in enumerate(zip(starts, ends, strict=True)):            # short stages: names on two lines
            short = lines == 2 and end - i < 0.2 * len(rows)
            x = rows[i]["epoch"] if short else (rows[i]["epoch"] + rows[end - 1]["epoch"]) / 2
            ax.annotate(stages[i], (x, 1 - 0.11 * (k % lines)), ha="left" if short else "center", va="top",
                        xycoords=("data", "axes fraction"), color=SOFT, fontsize=6.5)


# ---- heat maps ----


@styled
def cam_sheet(groups: Sequence[dict], path: str | Path, *, blocks: int = 1, tiles: int = 5, top: float | None = None,
              width: float = FULL) -> Path:
    """Photos with their heat over them, a row for each class; what is shown and on which scale is said below.

    groups: one {"name": the class, "tiles": [...]} a class; a tile is {"photo": (S, S, 3) uint8, "aspect": width /
    height, "heat": (h, w) >= 0 in logits a cell, "named": the class that the network names, whose heat this is, "p" and
    "p_true": the probabilities of that class and of the true one, "right": bool}. `blocks` classes stand side by side,
    each with room for `tiles` photos. `top`: heat of the brightest colour; by default each photo's own peak.
    """
    shown = [tile for group in groups for tile in group["tiles"][:tiles]]
    aspect = float(np.clip(np.median([tile["aspect"] for tile in shown] or [1.0]), 0.75, 1.5))
    gap, margin, above, below, foot = 0.4, 0.14, 0.42, 0.68, 0.85  # cm
    step = (width - gap * (blocks - 1)) / (blocks * tiles)
    side = step - margin
    line = above + side / aspect + below
    height = -(-len(groups) // blocks) * line + foot
    figure = Figure(figsize=(width / 2.54, height / 2.54))
    figure.set_layout_engine("none")  # every place is given in centimetres

    def box(x: float, y: float, w: float, h: float):  # cm, from the upper left corner
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    def write(x: float, y: float, text: str, **style) -> None:
        figure.text(x / width, 1 - y / height, text, **style)

    for number, group in enumerate(groups):
        x, y = number % blocks * (step * tiles + gap) + margin / 2, number // blocks * line
        points = 8 if blocks < 4 else 6.5
        write(x, y + 0.3, short(group["name"], step * tiles - margin, points, "bold"), fontweight="bold",
              fontsize=points)
        for column, tile in enumerate(group["tiles"][:tiles]):
            cam_tile(box(x + column * step, y + above, side, side / aspect), tile, top, room=side)
        if not group["tiles"]:
            write(x, y + above + 0.4, "no photo of this class", color=SOFT)
    scale = box(0.15, height - foot + 0.1, 3, 0.2)
    scale.imshow(HEAT(np.linspace(0, 1, 256))[None], aspect="auto", extent=(0, 1, 0, 1))
    scale.set_xticks([0, 1], ["0", "peak" if top is None else f"{top:.2f}"])
    scale.set_yticks([])
    scale.tick_params(labelsize=6.5, length=0, pad=2)
    cells = " x ".join(map(str, shown[0]["heat"].shape)) if shown else "no"
    write(3.6, height - foot + 0.32, "Heat: evidence for the class named below the photo, in logits a cell of "
          f"{cells}{', on a scale of its own in each photo' if top is None else ''};\n"
          "in the corner its peak. Below it the class that the network names, and probabilities; red: wrong.",
          fontsize=6.5, va="center", color=SOFT, linespacing=1.3)
    return save(figure, path)


def cam_tile(ax, tile: dict, top: float | None, room: float) -> None:
    """One photo with its heat, framed if it was read wrong, and two lines below, `room` cm wide at most."""
    peak = float(tile["heat"].max())
    ax.imshow(blend(tile["photo"], tile["heat"], top or peak), extent=(0, tile["aspect"], 0, 1))
    ax.set_anchor("N")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(not tile["right"])
    ax.spines[:].set_color(WRONG)
    ax.spines[:].set_linewidth(1.2)
    ax.annotate(f"{peak:.2f}" if peak > 0 else "no heat", (1, 0), xycoords="axes fraction", xytext=(-2, 2.5),
                textcoords="offset points", ha="right", va="bottom", fontsize=5.5, color="white",
                bbox={"boxstyle": "square,pad=0.15", "facecolor": "black", "alpha": 0.45, "linewidth": 0})
    below = f"{short(tile['named'], room, 6)}\n{tile['p']:.2f}"
    below += "" if tile["right"] else f", true {tile['p_true']:.2f}"
    ax.annotate(below, (0.5, 0), xycoords="axes fraction", xytext=(0, -2.5), textcoords="offset points", ha="center",
                va="top", fontsize=6, color=INK if tile["right"] else WRONG, linespacing=1.2)


def blend(photo: NDArray, heat: NDArray, top: float) -> NDArray:
    """A photo (S, S, 3) uint8 under its heat (h, w): the hotter, the more of the colour. Floats (S, S, 3) in 0..1."""
    warm = Image.fromarray(heat.astype(np.float32)).resize(photo.shape[1::-1], Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(warm) / (top or 1), 0, 1)
    alpha = (0.75 * share**0.75)[..., None]
    pale = (0.8 * photo + 0.2 * photo.mean(axis=2, keepdims=True)) / 255
    return (1 - alpha) * pale + alpha * HEAT(share)[..., :3]


def short(name: str, room: float, points: float, weight: str = "normal") -> str:
    """As much of a name as fits into `room` cm at a font size in points."""
    font, text = FontProperties(family="DejaVu Sans", size=points, weight=weight), name
    with missing_glyphs_as_boxes():
        for end in range(len(name), 0, -1):
            text = name if end == len(name) else f"{name[:end].rstrip('-_ ')}…"
            if text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] <= room / 2.54 * 72:
                break
    return text


# ---- counts ----


@styled
def confusion(counts: NDArray, names: Sequence[str], path: str | Path, *, width: float | None = None) -> Path:
    """A confusion matrix (K, K): numbers as counted, colours by the share of the row, true classes downwards."""
    k = len(names)
    width = width or (HALF if k <= 5 else FULL * 0.72)
    figure, ((ax,),) = sheet(width, min(width * 0.92, 3.2 + 0.75 * k))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(share, cmap=BLUES, vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(k, k):
        if counts[i, j]:
            ax.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8 if k <= 12 else 5,
                    color="white" if share[i, j] > 0.55 else INK)
    long = max(map(len, names)) > 3
    ax.set_xticks(range(k), names, rotation=40 if long else 0, ha="right" if long else "center",
                  rotation_mode="anchor" if long else None)
    ax.set_yticks(range(k), names)
    ax.set_xticks(np.arange(k - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(k - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("read as")
    ax.set_ylabel("true")
    return save(figure, path)


# ---- latents ----


@styled
def reconstructions(images: NDArray, made: NDArray, path: str | Path, *, columns: int = 15,
                    width: float = FULL) -> Path:
    """Images (M, 28, 28) above what the decoder makes of them, `columns` a line."""
    lines = max(1, -(-len(images) // columns))
    canvas = np.zeros((lines, 2, columns, 28, 28))
    for place, pair in enumerate(zip(images, made, strict=True)):
        canvas[place // columns, :, place % columns] = pair
    inner = width - 1.7
    figure, axes = sheet(width, lines * (2 * inner / columns + 0.15), lines)
    for ax, line in zip(axes.flat, canvas, strict=True):
        mosaic(ax, line, "gray_r", gap=2)
        ax.set_yticks([15, 45], ["original", "decoded"])
        ax.tick_params(length=0)
    return save(figure, path)


@styled
def manifold(images: NDArray, axis: NDArray, path: str | Path, *, width: float = 11.0) -> Path:
    """The grid (n, n, 28, 28) of decoded images in `gnuplot2`; `axis` (n,): the latents of its columns and rows."""
    n = len(images)
    figure, ((ax,),) = sheet(width, width * 0.97)
    mosaic(ax, images, "gnuplot2", gap=0)
    at = np.unique(np.linspace(0, n - 1, 4).round().astype(int))
    ticks = [f"{value:.2f}".replace("-", "−") for value in axis[at]]
    ax.set_xticks(28 * at + 14, ticks)
    ax.set_yticks(28 * (n - 1 - at) + 14, ticks)
    ax.set_xlabel("z₁")
    ax.set_ylabel("z₂", rotation=0, labelpad=8)
    return save(figure, path)


def mosaic(ax, images: NDArray, cmap: str, gap: int) -> None:
    """Images (rows, columns, h, w) in 0..1 side by side in one picture, `gap` pixels of paper between them."""
    rows, columns, h, w = images.shape
    canvas = np.full((rows * (h + gap), columns * (w + gap)), np.nan)
    for i, j in np.ndindex(rows, columns):
        canvas[i * (h + gap):, j * (w + gap):][:h, :w] = images[i, j]
    canvas = canvas[:len(canvas) - gap or None, :canvas.shape[1] - gap or None]
    ax.imshow(canvas, cmap=cmap, vmin=0, vmax=1, extent=(0, canvas.shape[1], canvas.shape[0], 0))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


@styled
def scatter(z: NDArray, group: NDArray, names: Sequence[str], path: str | Path, *, title: str = "",
            width: float = HALF) -> Path:
    """Latent means (N, 2), coloured by `group` (N,), which counts from 0 in the order of `names`."""
    figure, ((ax,),) = sheet(width, width * 1.02)
    points(ax, z, group, names)
    plane(ax, z)
    legend(ax, names, title)
    return save(figure, path)


@styled
def ellipses(z: NDArray, group: NDArray, names: Sequence[str], means: NDArray, covariances: NDArray, path: str | Path,
             *, component_names: Sequence[str] = (), wrong: NDArray | None = None, title: str = "",
             width: float = HALF) -> Path:
    """The mixture over the latent means: ellipses at 1 and 2 sigma of each component, misread points marked.

    group (N,) counts from 0 in the order of `names`; means (K, 2), covariances (K, 2, 2); wrong (N,) bool.
    """
    figure, ((ax,),) = sheet(width, width * 1.02)
    points(ax, z, group, names, alpha=0.35)
    for k, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
        for sigmas in (1, 2):
            ax.plot(*ellipse(mean, covariance, sigmas).T, color=INK, linewidth=1.1 if sigmas == 1 else 0.8)
        if component_names:
            ax.annotate(component_names[k], mean, ha="center", va="center", fontsize=10, fontweight="bold", color=INK,
                        bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8})
    marks = []
    if wrong is not None and wrong.any():
        marks = [ax.scatter(*z[wrong].T, s=16, marker="x", color=WRONG, linewidth=0.9, zorder=4,
                            label=f"misread ({wrong.sum()})")]
    outlines = np.concatenate([ellipse(m, c, 2.1) for m, c in zip(means, covariances, strict=True)])
    plane(ax, np.concatenate([z, outlines]))
    legend(ax, names, title, marks)
    return save(figure, path)


def points(ax, z: NDArray, group: NDArray, names: Sequence[str], alpha: float = 0.6) -> None:
    """Dots in the groups' colours, smaller where there are many, in an order that hides no group."""
    size = float(np.clip(3000 / max(len(z), 1), 1.2, 9))
    colours = np.array([to_rgb(PALETTE[k % len(PALETTE)]) for k in range(len(names))])
    order = np.random.default_rng(0).permutation(len(z))
    ax.scatter(*z[order].T, s=size, c=colours[group[order]], alpha=alpha, linewidths=0, rasterized=True)


def plane(ax, z: NDArray) -> None:
    """Both axes in the same unit, room for all of z, quiet lines through the origin."""
    low, high = z.min(axis=0), z.max(axis=0)
    reach = 0.53 * float((high - low).max()) or 1.0
    for set_limits, middle in zip((ax.set_xlim, ax.set_ylim), (low + high) / 2, strict=True):
        set_limits(middle - reach, middle + reach)
    ax.set_aspect("equal")
    ax.axhline(0, color=FAINT, linewidth=0.6, zorder=0)
    ax.axvline(0, color=FAINT, linewidth=0.6, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    ax.set_xlabel("z₁")
    ax.set_ylabel("z₂", rotation=0)


def legend(ax, names: Sequence[str], title: str, more: Sequence = ()) -> None:
    """The groups' colours and whatever else is marked, above the picture and under its title."""
    dots = [Line2D([], [], linestyle="", marker="o", markersize=4, color=PALETTE[k % len(PALETTE)], label=name)
            for k, name in enumerate(names)]
    ax.legend(handles=[*dots, *more], title=title or None, title_fontsize=8, alignment="left", loc="lower left",
              bbox_to_anchor=(0, 1), borderpad=0, borderaxespad=0.4, ncols=6, handletextpad=0, columnspacing=0.8,
              handlelength=1.4)
