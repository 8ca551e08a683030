"""Photos of birds that nobody took: ten species drawn by one program, with the bird's mask known to the pixel.

What tells a species apart (`species.py`: body, bill, tail, legs, crest, plumage) is fixed; all else is drawn anew for
each picture from (seed, species, index): pose, size, place, light, colour cast, background, perch, leaves, blur, grain.

    pose -> strokes (`sketch.py`) -> place in the frame -> surroundings (`scene.py`) -> paint, shade -> camera
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from nestling.data.scene import surround
from nestling.data.sketch import Sketch, sketch_bird, strike_pose, turn
from nestling.data.species import BIRDS

SPECIES: tuple[str, ...] = tuple(BIRDS)
FINE = 3  # strokes are painted this many times larger, then averaged

Box = tuple[slice, slice]


def draw(species: str, seed: int, index: int, size: int = 256) -> tuple[Image.Image, np.ndarray]:
    """Draw picture `index` of a species: an RGB image of size x size and the bool mask (size, size) of the bird."""
    rng = np.random.default_rng([seed, SPECIES.index(species), index])
    bird = BIRDS[species]
    pose = strike_pose(bird, rng)
    sketch, foot = sketch_bird(bird, pose)
    squash = rng.choice([-1, 1]) * pose.turned
    place, scale = compose(sketch, rng, squash)
    stand = None if pose.flying else place + scale * complex(foot.real * squash, foot.imag)

    picture, behind, before = surround(rng, size, stand, scale)
    overlay(picture, *paint(behind, size))
    plumage, box = paint(sketch, size, place, scale, squash)
    plumage[..., :3] *= rng.uniform(0.9, 1.1, 3).astype(np.float32)
    shade(plumage, bird.depth * scale * size, turn(rng.uniform(40, 140)))
    overlay(picture, plumage, box)
    seen = np.zeros((size, size, 1), np.float32)
    overlay(seen, plumage[..., 3:], box, plumage[..., 3:])
    veil, box = paint(before, size)
    overlay(picture, veil, box)
    overlay(seen, 0 * veil[..., 3:], box, veil[..., 3:])
    return expose(picture, rng), seen[..., 0] > 127


def compose(sketch: Sketch, rng: np.random.Generator, squash: float) -> tuple[complex, float]:
    """Where the bird's origin goes (y up) and how long a body length is, so that it fills 0.25 to 0.9 of the frame."""
    points = sketch.points()
    x, y = points.real * squash, points.imag
    low, span = np.array([x.min(), y.min()]), np.array([np.ptp(x), np.ptp(y)])
    scale = (0.25 + 0.65 * rng.beta(2.4, 1.8)) / span.max()
    corner = rng.uniform(-0.02, 1.02 - span * scale)
    return complex(*(corner - low * scale)), scale


def paint(
    sketch: Sketch, size: int, place: complex = 0, scale: float = 1.0, squash: float = 1.0
) -> tuple[np.ndarray, Box]:
    """Paint strokes, scaled, squashed in x (mirrored if negative) and moved to `place`, on a frame of `size` px.

    Returns float32 (h, w, 4) in 0..255, colours already weighted by alpha, and the rows and columns that it covers.
    """
    if not sketch.strokes:
        return np.zeros((0, 0, 4), np.float32), np.s_[:0, :0]
    fine = size * FINE
    points = sketch.points()
    x = (points.real * (squash * scale) + place.real) * fine
    y = (1 - place.imag - points.imag * scale) * fine
    margin = 2 * FINE + max(width for _, _, width in sketch.strokes) * scale * fine
    left, top = (int(np.clip((v.min() - margin) // FINE, 0, size - 1)) for v in (x, y))
    right, bottom = (int(np.clip((v.max() + margin) // FINE, low + 1, size)) for v, low in ((x, left), (y, top)))
    image = Image.new("RGBX", ((right - left) * FINE, (bottom - top) * FINE))  # the fourth band holds alpha
    pen = ImageDraw.Draw(image)
    flat = np.stack([x - left * FINE, y - top * FINE], axis=-1)
    start = 0
    for outlines, fills, width in sketch.strokes:
        stop = start + outlines.size
        shapes = flat[start:stop].reshape(len(outlines), -1).tolist()
        colours = np.clip(fills, 0, 255).astype(int).tolist()
        start = stop
        for shape, colour in zip(shapes, colours, strict=True):
            if width:
                pen.line(shape, (*colour, 255), max(2, round(width * scale * fine)), joint="curve")
            else:
                pen.polygon(shape, (*colour, 255))
    return np.array(image.reduce(FINE), dtype=np.float32), np.s_[top:bottom, left:right]


def overlay(picture: np.ndarray, layer: np.ndarray, box: Box, alpha: np.ndarray | None = None) -> None:
    """Lay a painted layer over a picture (size, size, C), in place; `alpha` (h, w, 1) if it isn't in the layer."""
    if alpha is None:
        layer, alpha = layer[..., :3], layer[..., 3:]
    picture[box] *= 1 - alpha * np.float32(1 / 255)
    picture[box] += layer


def shade(layer: np.ndarray, girth: float, sun: complex) -> None:
    """Round the bird, in place: its blurred outline is a height, whose slope to the sun is light. Girth in px."""
    outline = Image.fromarray(layer[..., 3].astype(np.uint8))
    height = np.zeros(layer.shape[:2], np.float32)
    for radius, strength in (girth * 0.55, 1.0), (girth * 0.16, 0.3):
        blurred = outline.filter(ImageFilter.BoxBlur(float(max(radius, 0.6))))
        height += np.asarray(blurred, dtype=np.float32) * np.float32(strength * radius / 255)
    down, right = np.gradient(height)
    light = 1 + np.clip(down * np.float32(sun.imag) - right * np.float32(sun.real), -0.42, 0.46)
    layer[..., :3] *= light[..., None]


def expose(picture: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """The camera: exposure, warm or cool light that falls off to one side, blur, grain."""
    size = len(picture)
    warm = rng.normal(0, 0.07)
    gain = rng.uniform(0.72, 1.2) * np.array([1 + warm, 1, 1 - warm], dtype=np.float32)
    slope = rng.uniform(0, 0.35) * turn(rng.uniform(0, 360))
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    fall = 1 + np.float32(slope.real) * ramp + np.float32(slope.imag) * ramp[:, None]
    grain = rng.standard_normal((size, size), dtype=np.float32) * np.float32(rng.uniform(0.5, 6))
    picture = picture * (fall[..., None] * gain) + grain[..., None]
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    soft = rng.gamma(1.0, 0.35) * size / 256
    return image.filter(ImageFilter.GaussianBlur(soft)) if soft > 0.25 else image
