"""Where drawn birds are: far backdrops, grounds, boughs, stones, wires and leaves; nothing here depends on the species.

A frame's side is 1. Sketches count y upwards; pictures are (size, size, 3) float32 in 0..255 and are changed in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from nestling.data.sketch import Sketch, blades, rgb, turn
from nestling.data.species import Coat


@dataclass(frozen=True)
class Backdrop:
    """What lies far behind: a gradient, and `count` soft blobs about `wide` x `tall` of the frame."""

    top: str
    bottom: str
    blobs: tuple[str, ...]
    count: int
    wide: float
    tall: float
    blur: float


BACKDROPS = (
    Backdrop("#5b97d6", "#cfe4f2", ("#ffffff", "#eaf3fa"), 9, 0.22, 0.05, 2.2),  # fair sky
    Backdrop("#b9c3cc", "#e6e9ea", ("#d5dbe0", "#f2f2f0"), 8, 0.3, 0.08, 3.0),  # overcast
    Backdrop("#6f7fb5", "#f0b27a", ("#f6cf9c", "#d98c86"), 10, 0.3, 0.04, 2.0),  # dusk
    Backdrop("#4f7f3c", "#27491f", ("#86b454", "#3b6a2c", "#c3d67a", "#1f3a1a", "#a8cf6d"), 60, 0.08, 0.08, 1.3),
    Backdrop("#9fbf86", "#5d8f52", ("#dbe9b8", "#7fae62", "#f3f0c8", "#b7d49a"), 30, 0.13, 0.13, 2.4),  # sunlit leaves
    Backdrop("#a9814a", "#6d4a2c", ("#d9a85a", "#b5592e", "#e6c98a", "#5b3d24"), 45, 0.09, 0.08, 1.6),  # autumn
    Backdrop("#8a9a5a", "#6b7a3c", ("#c9bf7a", "#4f5f2c", "#e0d6a0", "#7d8a48"), 60, 0.02, 0.32, 1.3),  # reeds
    Backdrop("#6a5a4c", "#3d342d", ("#8a7764", "#2d2621", "#a08c74", "#554839"), 40, 0.05, 0.4, 1.3),  # bark
    Backdrop("#86b2bd", "#3f7484", ("#c3dfe2", "#2f5f70", "#6aa0ac", "#e6f1ee"), 50, 0.25, 0.022, 1.0),  # water
    Backdrop("#d9c79c", "#b4915e", ("#e9dcb8", "#9a7a4e", "#c7ab78"), 40, 0.16, 0.03, 1.1),  # sand
    Backdrop("#2f3e46", "#1c262c", ("#46606a", "#5f7a6a", "#7d8f66"), 22, 0.14, 0.14, 2.6),  # deep shade
)
GROUNDS = (("#86a957", "#557a35"), ("#d8c092", "#a98a58"), ("#9a8f84", "#655d55"), ("#b7a46a", "#7f7040"))
WATER = ("#8fb9c4", "#3f7284")
BARKS = ("#6b5442", "#8a7a68", "#4f4038", "#9a8b7a")
STONES = ("#8d867c", "#a39a8c", "#6f6a64", "#7d6a55")
BLADES = ("#6f9440", "#8fae52", "#b3a760", "#557a35")
LEAVES = ("#5f8f3c", "#84ad4a", "#3f6f34", "#a9b852", "#b98a3a")


def choose(rng: np.random.Generator, colours: tuple[str, ...]) -> np.ndarray:
    """One of the colours, as rgb."""
    return rgb(colours[rng.integers(len(colours))])


def hexed(colour: np.ndarray) -> str:
    """The hex form that a coat wants."""
    return "#{:02x}{:02x}{:02x}".format(*np.clip(colour, 0, 255).astype(int).tolist())


def backdrop(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) float32: one of the far scenes, painted small and enlarged softly."""
    scene = BACKDROPS[rng.integers(len(BACKDROPS))]
    small = 64
    ramp = np.linspace(0, 1, small)[:, None, None] ** rng.uniform(0.6, 1.6)
    colours = rgb(scene.top) + ramp * (rgb(scene.bottom) - rgb(scene.top))
    image = Image.fromarray(np.repeat(colours, small, axis=1).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    count = int(scene.count * rng.uniform(0.6, 1.3))
    place = rng.uniform(-0.05, 1.05, (count, 2)) * small
    radius = np.array([scene.wide, scene.tall]) * rng.uniform(0.3, 1.0, (count, 1)) * small
    tint = rng.uniform(0.88, 1.1, count)
    pick = rng.integers(len(scene.blobs), size=count)
    for low, high, k, shade in zip((place - radius).tolist(), (place + radius).tolist(), pick, tint, strict=True):
        pen.ellipse(low + high, tuple(np.minimum(rgb(scene.blobs[k]) * shade, 255).astype(int).tolist()))
    image = image.filter(ImageFilter.GaussianBlur(scene.blur * rng.uniform(0.8, 1.5)))
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def ground(picture: np.ndarray, rng: np.random.Generator, level: float, colours: tuple[str, str]) -> None:
    """A plain below `level` (of the frame's height), streaked by foreshortening."""
    size = len(picture)
    streaks = Image.fromarray(rng.integers(0, 255, (size // 6, size // 24), dtype=np.uint8))
    noise = np.asarray(streaks.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)[..., None] / 255 - 0.5
    y = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    near = np.clip((y - level) / max(1 - level, 0.1), 0, 1)
    plain = (rgb(colours[0]) + near * (rgb(colours[1]) - rgb(colours[0]))) * (1 + (0.1 + 0.35 * near) * noise)
    part = np.clip((y - level) * size / rng.uniform(2, 12) + 0.5, 0, 1)
    picture += (part * (plain - picture)).astype(np.float32)


def twig(sketch: Sketch, rng: np.random.Generator, start: complex, end: complex, leaf: float, girth: float) -> None:
    """A bowed stem with leaves of about the length `leaf` on alternate sides and at its end; y up."""
    count = max(2, round(2.2 * abs(end - start) / leaf))
    u = np.linspace(0, 1, count + 1)
    stem = start + (end - start) * (u + 1j * rng.uniform(-0.25, 0.25) * u * (1 - u))
    sketch.add(stem, choose(rng, BARKS) * 0.9, girth)
    root, way = stem[1:], (end - start) / abs(end - start)
    side = np.where(np.arange(count) % 2, 1, -1) * (np.arange(count) < count - 1)
    tip = root + leaf * rng.uniform(0.7, 1.15, count) * way * turn(side * rng.uniform(35, 75, count))
    colour = choose(rng, LEAVES) * rng.uniform(0.75, 1.1, (count, 1))
    sketch.feathers(root, tip, leaf * 0.2, colour, edge=colour * 0.8, bend=rng.uniform(-0.3, 0.3))
    sketch.add(np.stack([root, root + (tip - root) * 0.9], axis=1), colour * 0.8, leaf * 0.03)


def branch(sketch: Sketch, rng: np.random.Generator, foot: complex, girth: float) -> None:
    """A bough through the frame whose upper side passes under `foot`, with twigs and leaves; y up."""
    slope = np.tan(np.deg2rad(rng.uniform(-16, 16)))
    x = np.linspace(-0.1, 1.1, 25)
    bow = rng.uniform(-0.25, 0.25)
    y = foot.imag + slope * (x - foot.real) + bow * (x - foot.real) ** 2
    taper = 1 + rng.choice([-0.25, 0.25]) * np.linspace(-1, 1, 25)
    thick = girth * taper * (1 + 0.07 * np.sin(x * rng.uniform(20, 40)))
    colour = choose(rng, BARKS) * rng.uniform(0.8, 1.15)
    spine = x + 1j * (y - thick * 0.9)
    for start in rng.choice(24, rng.integers(0, 4), replace=False):
        end = spine[start] + rng.uniform(0.1, 0.3) * turn(rng.choice([-1, 1]) * rng.uniform(25, 80))
        twig(sketch, rng, spine[start], end, rng.uniform(0.05, 0.09), girth * 0.5)
    sketch.tube(spine, thick, thick, Coat(hexed(colour), hexed(colour * 0.55), 0.1), 6)
    knots = spine[rng.integers(1, 24, 26)] + 1j * girth * rng.uniform(-0.8, 0.7, 26)
    cracks = rng.uniform(0.02, 0.06, 26) * turn(rng.uniform(-8, 8, 26))
    sketch.add(blades(knots, knots + cracks, girth * 0.07), colour * 0.55)


def boulder(sketch: Sketch, rng: np.random.Generator, foot: complex) -> None:
    """A rock or a post with its top under `foot`; y up."""
    wide, drop = rng.uniform(0.09, 0.3), foot.imag + 0.1
    t = np.linspace(0, 1, 15)
    spine = foot.real + rng.uniform(-0.3, 0.3) * wide + 1j * (foot.imag + 0.004 - drop * t)
    flare = wide * (0.35 + 0.65 * np.minimum(1, t * rng.uniform(1, 4)) ** 0.6) * (1 + 0.05 * rng.standard_normal(15))
    base = choose(rng, STONES)
    sides = rng.permutation([1.12, 0.6])
    sketch.tube(spine, flare, flare, Coat(hexed(base * sides[0]), hexed(base * sides[1]), 0.0), 10)
    spots = spine[rng.integers(1, 14, 30)] + wide * rng.uniform(-0.6, 0.6, 30)
    cracks = rng.uniform(0.01, 0.05, 30) * turn(rng.uniform(-120, -60, 30))
    sketch.add(blades(spots, spots + cracks, 0.004), base * 0.72)


def grass(sketch: Sketch, rng: np.random.Generator, left: float, right: float, level: float, count: int) -> None:
    """Blades of grass rooted below `level`; y up."""
    root = rng.uniform(left, right, count) + 1j * (level - rng.uniform(0, 0.05, count))
    tip = root + rng.uniform(0.03, 0.13, count) * turn(rng.normal(90, 18, count))
    colour = choose(rng, BLADES) * rng.uniform(0.7, 1.15, (count, 1))
    sketch.add(blades(root, tip, 0.0045, rng.uniform(-0.3, 0.3)), colour)


def surround(
    rng: np.random.Generator, size: int, foot: complex | None, scale: float
) -> tuple[np.ndarray, Sketch, Sketch]:
    """A backdrop, the strokes behind and those before a bird `scale` of the frame long that stands at `foot` (y up).

    Without a foot the bird is in the air.
    """
    picture, behind, before = backdrop(rng, size), Sketch(), Sketch()
    perch = str(rng.choice(["branch", "ground", "water", "rock", "wire"], p=[0.36, 0.36, 0.08, 0.14, 0.06]))
    if foot is None:
        if rng.random() < 0.4:
            ground(picture, rng, rng.uniform(0.5, 0.9), GROUNDS[rng.integers(len(GROUNDS))])
    elif perch == "branch":
        branch(behind, rng, foot, rng.uniform(0.012, 0.05))
    elif perch == "rock":
        if rng.random() < 0.5:
            ground(picture, rng, rng.uniform(0.5, 0.9), GROUNDS[rng.integers(len(GROUNDS))])
        boulder(behind, rng, foot)
    elif perch == "wire":
        x = np.linspace(-0.1, 1.1, 9)
        sag = rng.uniform(-0.1, 0.1) * (x - foot.real) + rng.uniform(0, 0.15) * (x - foot.real) ** 2
        behind.add(x + 1j * (foot.imag + sag), rgb("#2b2b2e"), rng.uniform(0.006, 0.014))
    else:
        level = 1 - foot.imag - rng.uniform(0.03, 0.25)
        ground(picture, rng, level, WATER if perch == "water" else GROUNDS[rng.integers(len(GROUNDS))])
        x, y = np.linspace(0, 1, size), np.linspace(1, 0, size)[:, None]
        shadow = ((x - foot.real) / (0.45 * scale)) ** 2 + ((y - foot.imag) / (0.09 * scale)) ** 2
        picture *= (1 - 0.45 * np.exp(-shadow))[..., None].astype(np.float32)
        if perch == "water":
            ripple = foot + scale * np.array([0, 0.06 - 0.05j])
            before.add(blades(ripple - 0.3 * scale, ripple + 0.3 * scale, 0.01 * scale), rgb("#cfe3e6"))
        elif rng.random() < 0.6:
            grass(behind, rng, -0.05, 1.05, foot.imag, int(rng.integers(20, 90)))
            grass(before, rng, foot.real - 0.2, foot.real + 0.2, foot.imag - 0.03, int(rng.integers(5, 25)))
    if rng.random() < 0.22:  # a spray of leaves that reaches in from outside the frame and may hide a part of the bird
        out = turn(rng.uniform(0, 360))
        centre = complex(*rng.uniform(0.3, 0.7, 2))
        twig(before, rng, centre + 0.75 * out, centre + rng.uniform(0, 0.3) * out, rng.uniform(0.08, 0.17), 0.008)
    return picture, behind, before
