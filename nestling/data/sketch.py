"""A bird as strokes: from a species and a pose to coloured outlines, in body lengths.

2-D points are complex numbers, so that turning is a product: x to the bill, y up. A row of n shapes is an (n, k)
array.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import ImageColor

from nestling.data.species import Coat, Species

FEATHER = np.array([0.0, 0.12, 0.35, 0.6, 0.8, 0.92, 0.985, 1.0])  # stations along a blade ...
GIRTH = np.array([0.25, 0.5, 0.84, 1.0, 0.9, 0.66, 0.3, 0.0])  # ... and its half-width there
RING = np.exp(2j * np.pi * np.arange(16) / 16)


@cache
def rgb(colour: str) -> np.ndarray:
    """(3,) float32 in 0..255 of a hex colour."""
    return np.array(ImageColor.getrgb(colour)[:3], dtype=np.float32)


def turn(degrees: float | np.ndarray) -> Any:
    """The unit complex number at an angle; an array of them for an array."""
    return np.exp(1j * np.deg2rad(degrees))


def blades(root: np.ndarray, tip: np.ndarray, width: np.ndarray | float, bend: float = 0.0) -> np.ndarray:
    """(n, 16) outlines of feathers or leaves from (n,) roots and tips; `bend` bows them to the left."""
    along = (tip - root)[:, None]
    spine = root[:, None] + along * (FEATHER + 1j * bend * FEATHER * (1 - FEATHER))
    side = 1j * along / np.abs(along) * np.reshape(width, (-1, 1)) * GIRTH
    return np.concatenate([spine + side, (spine - side)[:, ::-1]], axis=1)


def dye(coat: Coat, t: np.ndarray, s: np.ndarray) -> np.ndarray:
    """(len(t), len(s), 3) colours of a coat."""

    def inside(x: np.ndarray, span: tuple[float, float], soft: float) -> np.ndarray:
        return np.clip((x - span[0]) / soft + 0.5, 0, 1) * np.clip((span[1] - x) / soft + 0.5, 0, 1)

    round_t = t[:, None] + 0.07 * (s**2 - 0.4)  # a band around a tube looks bowed
    rise = np.clip((s - coat.split) / 0.5 + 0.5, 0, 1)[None, :, None]
    colours = np.repeat(rgb(coat.lower) + rise * (rgb(coat.upper) - rgb(coat.lower)), len(t), axis=0)
    for patch in coat.patches:
        part = (inside(round_t, patch.t, patch.soft) * inside(s, patch.s, patch.soft))[:, :, None]
        colours += part * (rgb(patch.colour) - colours)
    return colours


class Sketch:
    """Strokes in the order of drawing: (n, k) complex outlines, (n, 3) fills and, for lines, a width (0: filled)."""

    def __init__(self) -> None:
        self.strokes: list[tuple[np.ndarray, np.ndarray, float]] = []

    def add(self, outlines: np.ndarray, fill: np.ndarray, width: float = 0.0) -> None:
        """Add polygons, or lines where `width` is given; one fill for all or one each."""
        outlines = np.atleast_2d(outlines)
        self.strokes.append((outlines, np.broadcast_to(fill, (len(outlines), 3)), width))

    def tube(self, spine: np.ndarray, above: np.ndarray, below: np.ndarray, coat: Coat, cells: int, flip: int = 1):
        """Skin a spine (n,) of half-widths above and below with a coat; return the grid (n, cells + 1)."""
        s = np.linspace(-1, 1, cells + 1)
        tangent = np.gradient(spine)
        normal = flip * 1j * tangent / np.abs(tangent)
        grid = spine[:, None] + normal[:, None] * s * np.where(s > 0, above[:, None], below[:, None])
        t = np.concatenate([[0], np.cumsum(np.abs(np.diff(spine)))])
        t /= t[-1]
        colours = dye(coat, (t[1:] + t[:-1]) / 2, (s[1:] + s[:-1]) / 2)
        quads = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], axis=-1)
        self.add(quads.reshape(-1, 4), colours.reshape(-1, 3))
        return grid

    def feathers(self, root, tip, width, fill, edge=None, end=None, bend=0.0, eyed=False) -> None:
        """A row of feathers, the first one lowest: rim, vane, lighter half, perhaps an end or an eye."""
        n, along = len(root), tip - root
        fill = np.broadcast_to(fill, (n, 3))
        width = np.broadcast_to(width, (n,))
        vane = blades(root, tip, width, bend)
        half = vane.copy()
        half[:, 8:] = (vane[:, 8:] + vane[:, 7::-1]) / 2
        layers = [(blades(root, tip + along * 0.02, width * 1.16, bend), fill * 0.74 if edge is None else edge)]
        layers += [(vane, fill), (half, fill * 1.1)]
        if end is not None:
            layers.append((blades(root + along * 0.78, tip, width * 0.9), end))
        if eyed:
            centre = (tip - along / np.abs(along) * 0.08)[:, None]
            for radius, colour in (1.25, "#b58a34"), (0.85, "#2fa7a0"), (0.5, "#16307e"):
                layers.append((centre + RING * radius * width[:, None], rgb(colour)))
        outlines = np.stack([outline for outline, _ in layers], axis=1)
        fills = np.stack([np.broadcast_to(colour, (n, 3)) for _, colour in layers], axis=1)
        self.add(outlines.reshape(-1, 16), fills.reshape(-1, 3))

    def disc(self, centre: complex, radius: float, colour: str) -> None:
        """A filled circle."""
        self.add(centre + radius * RING, rgb(colour))

    def points(self) -> np.ndarray:
        """All points, flat."""
        return np.concatenate([outlines.ravel() for outlines, _, _ in self.strokes])


@dataclass(frozen=True)
class Pose:
    """What a bird is doing; angles in degrees."""

    flying: bool
    resting: bool
    lean: float  # added to the species' posture
    neck: float  # angle of the neck above the ground
    head: float  # angle of the bill above the ground
    back: bool  # looks over its shoulder
    stretch: float  # of the neck
    spread: float  # of the wings, 0 closed to 1 open
    beat: float  # angle of the open wings
    show: float  # of the tail, 0 closed to 1 fanned
    cock: float  # of the tail
    gape: float  # opening of the bill
    turned: float  # 1 seen from the side, less: turned to or from us
    stride: float


def strike_pose(bird: Species, rng: np.random.Generator) -> Pose:
    """A pose: mostly standing, at times feeding, resting, showing off or in flight."""
    kind = rng.choice(["stand", "look back", "feed", "rest", "show", "fly"], p=[0.42, 0.12, 0.12, 0.06, 0.1, 0.18])
    flying, feed, show = kind == "fly", kind == "feed", kind == "show"
    lean = rng.normal(0, 7) - feed * rng.uniform(8, 24) - flying * (bird.posture - rng.uniform(-12, 28))
    neck = bird.neck_angle + rng.normal(0, 10) - feed * rng.uniform(60, 110) - flying * rng.uniform(35, 60)
    return Pose(
        flying=bool(flying),
        resting=bool(kind == "rest"),
        lean=lean,
        neck=neck,
        head=rng.normal(2, 11) - feed * rng.uniform(25, 60),
        back=bool(kind == "look back"),
        stretch=rng.uniform(0.8, 1.15),
        spread=rng.uniform(0.75, 1) if flying else rng.uniform(0.5, 0.9) if show and rng.random() < 0.6 else 0.0,
        beat=rng.uniform(35, 140) if not flying or rng.random() < 0.7 else rng.uniform(-110, -50),
        show=rng.uniform(0.4, 1) if flying or show else rng.uniform(0, 0.2),
        cock=rng.normal(0, 6) + show * bird.tail.train * rng.uniform(-86, -70),
        gape=max(0.0, rng.normal(-6, 12)),
        turned=rng.uniform(0.74, 1),
        stride=rng.normal(0, 0.05),
    )


def wing(sketch: Sketch, bird: Species, shoulder: complex, axis: complex, pose: Pose, far: bool) -> None:
    """Flight feathers, then rows of coverts, along an arm that is folded or spread; the innermost lie on top."""
    coat, size, dim = bird.wing, bird.wing.length, 0.72 if far else 1.0
    if pose.spread:
        side = np.sign(pose.beat)
        reach = axis * turn(pose.beat + 16 * far)
        arm, inner = 0.62 * reach * pose.spread * size, -axis * turn(-8 * side)
        outer = reach * turn(side * (10 * pose.spread - 24))
        count, short, long, girth, bulge = 17, 0.5, 0.85, 0.062, 0.0
    else:
        arm, inner, outer = -1.05j * axis * bird.depth, -axis * turn(7), -axis * turn(-13)
        count, short, long, girth, bulge = 11, 0.52, 1.0, 0.055, 0.15
    u = np.linspace(1, 0, count)  # 1 outermost, drawn first
    root = shoulder + arm * u + axis * bulge * np.sin(np.pi * (0.15 + 0.75 * u))
    way = inner * np.exp(1j * np.angle(outer / inner) * u)
    length = size * (short + (long - short) * u)
    flight = rgb(coat.inner) + np.clip((u - 0.35) / 0.2, 0, 1)[:, None] * (rgb(coat.outer) - rgb(coat.inner))
    edge = np.broadcast_to(rgb(coat.edge) if coat.edge else flight * 0.6, flight.shape)
    sketch.feathers(root, root + way * length, girth * size, flight * dim, edge=flight * 0.62 * dim)
    if coat.patch:
        base, out = root + way * length * 0.3, u > 0.45
        sketch.feathers(base[out], (base + way * length * 0.34)[out], girth * 0.85, rgb(coat.patch) * dim)
    row = slice(None, None, 1 if pose.spread else 2)  # coverts are few and broad on a folded wing
    v, broad = u[row], girth * size * (1.1 if pose.spread else 1.75)
    for share, colour, end in (0.55, coat.coverts, coat.bar), (0.37, coat.lesser, coat.bar), (0.2, coat.lesser, ""):
        ends = np.where(v[:, None] > 0.12, rgb(end or colour), rgb(colour))
        rim, tips = (edge[row] + rgb(colour)) / 2, root[row] + way[row] * (share * size * (0.62 + 0.25 * v))
        sketch.feathers(root[row], tips, broad, rgb(colour) * dim, edge=rim * dim, end=ends * dim if end else None)
    sketch.add(np.concatenate([root - way * 0.035, (root + way * 0.09)[::-1]]), rgb(coat.lesser) * dim)


def tail(sketch: Sketch, bird: Species, root: complex, way: complex, pose: Pose) -> None:
    """A fan of feathers, outermost lowest; a peacock's train is such a fan in rows, with eyes."""
    kind, u = bird.tail, np.linspace(-1, 1, bird.tail.count)
    fan = kind.fan + (kind.open - kind.fan) * pose.show
    if kind.train:
        rows = 0.3 + 0.7 * ((np.arange(kind.count) * 5) % 8 + 1) / 8
        order = np.argsort(-rows, kind="stable")
        u, rows = u[order], rows[order]
        reach = kind.length * (1 - 0.35 * pose.show)
        tint = rgb(kind.colour) * (0.75 + 0.35 * (1 - rows[:, None]))
        backing = np.concatenate([[0], turn(np.linspace(-fan, fan, 15)) * way * reach * 0.8])
        sketch.add(root + backing, rgb(kind.colour) * 0.55)
        tips = root + way * turn(fan * u) * reach * rows
        sketch.feathers(root + 0 * u, tips, kind.width * 0.8, tint, edge=rgb("#6f7f35"), eyed=True)
        return
    u = u[np.argsort(-np.abs(u), kind="stable")]
    vane = way * turn(fan * u) * kind.length * (1 + kind.grade * (0.5 - np.abs(u)))
    fill = np.repeat(rgb(kind.colour)[None], kind.count, axis=0)
    if kind.outer:
        fill = np.where((np.abs(u) > 0.6)[:, None], rgb(kind.outer), fill)
    if kind.streamer:
        middle = root + way * turn(np.array([-0.8, 0.8])) * kind.length * (1 + kind.streamer)
        sketch.feathers(np.array([root, root]), middle, kind.width * 0.28, fill[:2])
    end = rgb(kind.tip) if kind.tip else None
    sketch.feathers(root + 0 * u, root + vane, kind.width, fill, end=end)
    if kind.band:
        sketch.add(blades(root + vane * 0.66, root + vane * 0.86, kind.width * 0.95), rgb(kind.band))


def leg(sketch: Sketch, bird: Species, hip: complex, foot: complex, axis: complex, pose: Pose, dim: float) -> None:
    """A feathered thigh, a joint that bends backwards and, on the ground, four toes."""
    colour = rgb(bird.leg_colour) * dim
    if pose.flying:
        foot = hip - axis * turn(-6) * bird.legs * 1.05
    joint = hip + (foot - hip) * 0.45 + (foot - hip) * 1j * 0.07 * (-1 if not pose.flying else 0)
    sketch.add(np.array([hip, joint, foot]), colour, bird.leg_width)
    sketch.disc(joint, bird.leg_width * 0.75, bird.leg_colour)
    shin = hip + (joint - hip) * min(1.0, 0.17 / abs(joint - hip))
    thigh = blades(np.array([hip + 0.05j]), np.array([shin]), 0.02 + bird.leg_width)
    sketch.add(thigh, rgb(bird.body.lower) * dim * 0.92)
    toe = 0.05 + 0.18 * bird.legs**0.5
    spread = np.array([-172, -38, -12, 10]) if not pose.flying else np.array([188, 176, 182, 170])
    way = toe * turn(spread) * np.array([0.5, 0.75, 1, 0.8]) * (1 if not pose.flying else axis)
    for tip in foot + way:
        sketch.add(np.array([foot, tip]), colour, bird.leg_width * 0.8)


def bill(sketch: Sketch, bird: Species, root: complex, way: complex, up: complex, pose: Pose) -> None:
    """Two mandibles with a common curve, ajar by the gape; a helmet on top where the species has one."""
    beak = bird.bill
    u = np.linspace(0, 1, 9)
    sag = -beak.curve * u**2 * beak.length
    taper = beak.depth * (1 - u) ** 0.6
    upper, lower = way * turn(0), way
    if pose.gape:
        side = np.sign((up / (1j * way)).real)
        upper, lower = way * turn(side * pose.gape * 0.4), way * turn(-side * pose.gape * 0.6)

    def mandible(along: complex, over: np.ndarray, under: np.ndarray) -> np.ndarray:
        rise = up * along / way
        spine = along * u * beak.length + rise * sag
        return root + np.concatenate([spine + rise * over, (spine - rise * under)[::-1]])

    sketch.add(mandible(lower, 0 * u, taper * 0.75), rgb(beak.lower) * 0.85)
    sketch.add(mandible(upper, taper, 0.06 * taper), rgb(beak.upper))
    sketch.add(mandible(upper, taper * 0.85, -0.45 * taper), np.minimum(rgb(beak.upper) * 1.18 + 14, 255))
    if beak.tip:
        outline = mandible(upper, taper, 0.06 * taper).reshape(2, 9)
        sketch.add(np.concatenate([outline[0, 5:], outline[1, :4]]), rgb(beak.tip))
    if beak.casque:
        foot = root + up * beak.depth * 0.55
        front = foot + way * beak.length * 0.55 + up * beak.casque * 0.15
        helmet = blades(np.array([foot - way * 0.14]), np.array([front]), beak.casque * 0.62)
        sketch.add(helmet, rgb(beak.upper) * 0.78)
    nostril = root + way * beak.length * 0.16 + up * beak.depth * 0.35
    sketch.disc(nostril, beak.depth * 0.09, "#1a1512")


def trunk(sketch: Sketch, bird: Species, axis: complex, breast: complex, skull: complex, way: complex) -> None:
    """An egg-shaped body along `axis`, and a neck that leaves the breast along it and reaches the skull along `way`."""
    t = np.linspace(0, 1, 22)
    girth = bird.depth * np.sin(np.pi * np.clip(t, 0.004, 0.996) ** 0.82) ** 0.62
    spine = axis * (t - 0.5 + 0.05j * np.sin(np.pi * t))
    ruffle(sketch, bird.body, sketch.tube(spine, girth * 0.84, girth * 1.1, bird.body, 12), bird.streaks)
    u, reach = np.linspace(0, 1, 17), abs(skull - breast)
    knots = (breast - 0.16 * axis, breast + 0.26 * axis * min(1, reach), skull - 0.45 * reach * way, skull)
    bezier = [(1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3]
    curve = np.array(knots) @ bezier
    width = bird.neck_width + (0.86 * bird.depth - bird.neck_width) * (1 - u) ** (1.6 + 0.8 * reach)
    ruffle(sketch, bird.nape, sketch.tube(curve, width * 0.95, width, bird.nape, 9), bird.streaks)


def head(sketch: Sketch, bird: Species, skull: complex, face: complex, brow: complex, pose: Pose) -> None:
    """Bill, crest, head and eye around `skull`; `face` points to the bill, `brow` to the crown."""
    flip, radius = (-1 if pose.back else 1), bird.head
    bill(sketch, bird, skull + face * radius * 0.93 - brow * radius * 0.08, face, brow, pose)
    if crest := bird.crest:
        plumes = face * turn(flip * (crest.angle + np.linspace(1, -1, crest.count) * crest.fan))
        root = skull + brow * radius * 0.6 + 0 * plumes
        plumes *= crest.length + radius * 0.3
        sketch.feathers(root, root + plumes, 0.012 if crest.dot else 0.035, rgb(crest.colour))
        if crest.dot:
            sketch.add(blades(root + plumes * 0.75, root + plumes * 1.06, 0.038), rgb(crest.dot))
    x = -np.cos(np.linspace(0, np.pi, 17))
    dome = radius * np.sqrt(1 - 0.998 * x**2)
    sketch.tube(skull + face * radius * 1.08 * x, dome * 0.96, dome * 0.94, bird.face, 13, flip)
    eye, pupil = skull + face * radius * 0.34 + brow * radius * 0.2, radius * bird.eye
    sketch.disc(eye, pupil * 1.35, bird.ring or "#22201f")
    sketch.disc(eye, pupil * 1.08, bird.iris)
    sketch.disc(eye, pupil * 0.72, "#0b0a0a")
    sketch.disc(eye + (0.35j - 0.25) * pupil, pupil * 0.34, "#ffffff")


def sketch_bird(bird: Species, pose: Pose) -> tuple[Sketch, complex]:
    """The strokes of a bird, the farthest first, in body lengths, and the point its feet stand on."""
    sketch = Sketch()
    axis = turn(bird.posture + pose.lean)

    def at(t: float, s: float) -> complex:  # t from rump to breast, s from belly to back
        return axis * (t - 0.5 + 1j * s * bird.depth)

    way, breast = turn(pose.neck), at(0.76, 0.12)
    skull = breast + 0.1 * axis + way * (bird.neck * pose.stretch + 0.18)
    face = turn(180 - pose.head if pose.back else pose.head)
    brow = -1j * face if pose.back else 1j * face
    hip, length = at(0.46, -0.62), bird.legs * (0.3 if pose.resting else 1)
    foot = complex(hip.real + 0.1 * length, hip.imag - 0.3 * bird.depth - length)
    step = 0.09 + pose.stride

    if pose.spread:
        wing(sketch, bird, at(0.72, 0.5), axis, pose, far=True)
    if not pose.resting:
        leg(sketch, bird, hip + 0.06, foot + step + 0.02j, axis, pose, 0.7)
        leg(sketch, bird, hip - 0.02, foot - step * 0.5, axis, pose, 1.0)
    tail(sketch, bird, at(0.1, 0.1), -axis * turn(pose.cock + bird.tail.droop), pose)
    trunk(sketch, bird, axis, breast, skull, way)
    head(sketch, bird, skull, face, brow, pose)
    wing(sketch, bird, at(0.7, 0.5), axis, pose, far=False)
    return sketch, foot


def ruffle(sketch: Sketch, coat: Coat, grid: np.ndarray, contrast: float) -> None:
    """Small feathers in staggered rows over a skin (n, m), each a little darker or lighter than what it lies on."""
    n, m = grid.shape
    rows, columns = np.meshgrid(np.arange(2, n - 1, 2), np.arange(1, m - 1, 2), indexing="ij")
    i, j = rows.ravel(), np.minimum(columns + (rows // 2) % 2, m - 2).ravel()
    root, tip = grid[i, j], grid[np.maximum(i - 2, 0), j]
    colour = dye(coat, np.linspace(0, 1, n), np.linspace(-1, 1, m))[i - 1, j]
    wide = np.abs(grid[i, j + 1] - grid[i, j]) * 0.8
    sketch.add(blades(root, tip, wide), colour * (1 - contrast))
    sketch.add(blades(root, tip * 0.7 + root * 0.3, wide * 0.6), np.minimum(colour * (1 + contrast * 0.6), 255))
