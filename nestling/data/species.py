"""The ten drawn species as data: proportions, bills, tails, wings and coats; one program draws them all (`sketch.py`).

Lengths count in body lengths (rump to breast). A coat is a map over a tube: t runs from the tail end (0) to the bill
end (1), s from the underside (-1) to the upper side (+1). Colours are hex RGB.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Patch:
    """A mark of one colour on t x s of a coat; `soft` is the width of its edge in the same units."""

    colour: str
    t: tuple[float, float] = (-1, 2)
    s: tuple[float, float] = (-2, 2)
    soft: float = 0.1


@dataclass(frozen=True)
class Coat:
    """What a body, neck or head wears: an upper and a lower colour that meet at s = `split`, and patches over them."""

    upper: str
    lower: str
    split: float = -0.2
    patches: tuple[Patch, ...] = ()


@dataclass(frozen=True)
class Bill:
    """Length and base depth; `curve` > 0 bends the tip down; `casque` is the height of a hornbill's helmet."""

    length: float
    depth: float
    upper: str
    lower: str
    curve: float = 0.1
    tip: str = ""
    casque: float = 0.0


@dataclass(frozen=True)
class Tail:
    """`count` feathers; `grade` > 0 lengthens the middle, < 0 forks it; `streamer` lengthens the middle pair."""

    length: float
    width: float
    colour: str
    outer: str = ""
    tip: str = ""
    band: str = ""
    count: int = 7
    grade: float = 0.0
    streamer: float = 0.0
    fan: float = 7.0  # half the spread, degrees, when closed
    open: float = 30.0  # the same, when shown
    train: bool = False  # rows of eyed feathers instead of one row
    droop: float = -6.0  # degrees, turned down if positive


@dataclass(frozen=True)
class Wing:
    """Three rows of feathers (lesser and greater coverts, flight) and the tip colours that make bars and edges."""

    lesser: str
    coverts: str
    inner: str
    outer: str
    bar: str = ""
    edge: str = ""
    patch: str = ""  # colour of the base of the outer flight feathers
    length: float = 1.0


@dataclass(frozen=True)
class Crest:
    """`count` plumes on the crown, fanned around `angle` degrees above the bill's line; `dot` colours their ends."""

    count: int
    length: float
    colour: str
    angle: float = 120.0
    fan: float = 25.0
    dot: str = ""


@dataclass(frozen=True)
class Species:
    """One species: everything that does not change from picture to picture."""

    posture: float  # degrees of the body's axis above the ground
    depth: float  # half the body's depth
    neck: float
    neck_width: float  # half the neck's width below the head
    head: float  # the head's radius
    legs: float
    leg_width: float
    leg_colour: str
    body: Coat
    nape: Coat
    face: Coat
    bill: Bill
    tail: Tail
    wing: Wing
    crest: Crest | None = None
    iris: str = "#2a1a12"
    eye: float = 0.2  # in head radii
    ring: str = ""
    streaks: float = 0.05  # contrast of the small feathers
    neck_angle: float = field(default=62.0)


BEE_EATER = Species(
    posture=48, depth=0.23, neck=0.2, neck_width=0.145, head=0.18, legs=0.16, leg_width=0.022, leg_colour="#4a4038",
    body=Coat("#4f9d35", "#8cc152", -0.25, (Patch("#7fc7a4", (0.0, 0.2), (-1, -0.3), 0.2),)),
    nape=Coat("#b98a36", "#62b04a", 0.1, (Patch("#1d2320", (0.36, 0.5), (-1.2, 0.0), 0.05),
                                         Patch("#4fbfc0", (0.52, 1.2), (-1.2, -0.15), 0.12))),
    face=Coat("#c08a35", "#49b9bd", -0.3, (Patch("#15181a", (0.18, 1.1), (-0.16, 0.26), 0.05),)),
    bill=Bill(0.46, 0.05, "#1b1b1d", "#2b2b2d", 0.16),
    tail=Tail(0.75, 0.07, "#4d9a3b", tip="#23402a", count=7, streamer=0.5, fan=4, open=22),
    wing=Wing("#57a83b", "#63b146", "#7fae45", "#8a8f3c", edge="#23402a", length=1.0),
    iris="#a3231c", eye=0.19,
)  # fmt: skip

MYNA = Species(
    posture=30, depth=0.28, neck=0.22, neck_width=0.155, head=0.195, legs=0.36, leg_width=0.04, leg_colour="#e0a92a",
    body=Coat("#6b4630", "#94694b", -0.1, (Patch("#f2ece0", (-1, 0.22), (-1.2, -0.25), 0.1),
                                          Patch("#2b2325", (0.86, 2), (-2, 2), 0.12))),
    nape=Coat("#211c1f", "#2a2326", 0.0),
    face=Coat("#1b181b", "#262023", -0.2, (Patch("#efb727", (0.5, 0.86), (-0.28, 0.42), 0.07),)),
    bill=Bill(0.27, 0.075, "#efb727", "#e5a51f", 0.07),
    tail=Tail(0.55, 0.09, "#2b2220", tip="#f4efe6", count=7, grade=0.12, fan=7, open=32),
    wing=Wing("#6b4630", "#5f3e2b", "#50352a", "#211c1b", patch="#f6f1e8", length=0.98),
    iris="#7a3a1c", eye=0.19,
)  # fmt: skip

ROSEFINCH = Species(
    posture=36, depth=0.29, neck=0.16, neck_width=0.17, head=0.205, legs=0.2, leg_width=0.026, leg_colour="#7b5b48",
    body=Coat("#96604f", "#efd9d0", -0.3, (Patch("#cf4650", (0.55, 2), (-2, -0.05), 0.3),
                                          Patch("#c54a50", (-1, 0.14), (0.1, 2), 0.15))),
    nape=Coat("#b2444a", "#d0383f", 0.2),
    face=Coat("#c1303a", "#d63f45", -0.1, (Patch("#8d4a42", (0.2, 0.8), (0.02, 0.24), 0.1),)),
    bill=Bill(0.18, 0.1, "#7f6a5c", "#a8907d", 0.05),
    tail=Tail(0.58, 0.075, "#5c463d", count=8, grade=-0.14, fan=6, open=22),
    wing=Wing("#9a5548", "#7b5547", "#6a4d40", "#4a3a33", bar="#e6b7a6", edge="#b98d7a", length=0.95),
    iris="#1c1412", eye=0.18, streaks=0.1,
)  # fmt: skip

CROW = Species(
    posture=26, depth=0.28, neck=0.26, neck_width=0.165, head=0.2, legs=0.36, leg_width=0.045, leg_colour="#26262a",
    body=Coat("#1f2228", "#2c3036", -0.1, (Patch("#8f8a83", (0.7, 2), (-2, 2), 0.2),
                                          Patch("#6d6b69", (0.5, 0.7), (-2, -0.1), 0.2))),
    nape=Coat("#918b83", "#9a948b", 0.0, (Patch("#1c1e23", (0.8, 2), (-2, -0.2), 0.2),)),
    face=Coat("#16181c", "#1d2025", 0.0, (Patch("#8a857e", (-1, 0.2), (-2, 0.5), 0.12),)),
    bill=Bill(0.36, 0.115, "#17181b", "#222327", 0.15),
    tail=Tail(0.62, 0.1, "#1b1e26", count=7, grade=0.1, fan=7, open=30),
    wing=Wing("#272c38", "#222838", "#1d2230", "#161922", edge="#3c4a63", length=1.1),
    iris="#1b1310", eye=0.17,
)  # fmt: skip

HORNBILL = Species(
    posture=44, depth=0.26, neck=0.32, neck_width=0.15, head=0.21, legs=0.18, leg_width=0.04, leg_colour="#5b5752",
    body=Coat("#918a7e", "#d6cfc2", -0.25),
    nape=Coat("#989184", "#b3aca0", -0.1),
    face=Coat("#8b8478", "#a9a296", -0.2, (Patch("#ddd8cc", (0.05, 0.85), (0.36, 0.6), 0.1),
                                          Patch("#4f4a45", (0.2, 0.95), (-0.1, 0.3), 0.12))),
    bill=Bill(0.62, 0.15, "#b9a77d", "#9c8a63", 0.2, tip="#e9dcb8", casque=0.12),
    tail=Tail(1.15, 0.085, "#8a8478", tip="#f2eee4", band="#2c2a28", count=7, grade=0.25, fan=5, open=24),
    wing=Wing("#8a8377", "#7f786c", "#6d675d", "#45413c", edge="#b8b1a4", length=1.0),
    crest=Crest(5, 0.16, "#8f887c", 160, 25),
    iris="#8a3a1f", eye=0.19, streaks=0.04,
)  # fmt: skip

PEACOCK = Species(
    posture=22, depth=0.29, neck=0.72, neck_width=0.105, head=0.155, legs=0.5, leg_width=0.045, leg_colour="#8a7f72",
    body=Coat("#2f7a4f", "#1d2f55", -0.1, (Patch("#1c55b8", (0.66, 2), (-2, 2), 0.25),
                                          Patch("#8fa03e", (-1, 0.4), (0.1, 2), 0.25))),
    nape=Coat("#1d59c0", "#1748a6", 0.0, (Patch("#1aa0b0", (-1, 0.3), (-1.2, 0.2), 0.4),)),
    face=Coat("#1c52b5", "#1b4aa5", 0.0, (Patch("#f1f0ea", (0.35, 0.95), (0.32, 0.56), 0.08),
                                         Patch("#10142a", (0.3, 1.1), (0.08, 0.3), 0.06),
                                         Patch("#f1f0ea", (0.36, 0.86), (-0.42, 0.02), 0.1))),
    bill=Bill(0.19, 0.06, "#8b867c", "#a09a8e", 0.14),
    tail=Tail(2.1, 0.085, "#4d7f3a", count=36, fan=7, open=88, train=True, droop=4),
    wing=Wing("#d9cba8", "#b79f76", "#8a6a48", "#a5552a", edge="#4d3a2a", length=0.85),
    crest=Crest(7, 0.3, "#20406a", 100, 26, dot="#1f7f9a"),
    iris="#2a1a12", eye=0.2,
)  # fmt: skip

LAPWING = Species(
    posture=14, depth=0.25, neck=0.36, neck_width=0.11, head=0.17, legs=0.72, leg_width=0.034, leg_colour="#e3bf35",
    body=Coat("#a3805c", "#f6f3ec", -0.05, (Patch("#17161a", (0.8, 2), (-2, 0.35), 0.08),)),
    nape=Coat("#1a181b", "#17161a", 0.0, (Patch("#f6f3ec", (-1, 0.9), (-0.05, 0.62), 0.1),)),
    face=Coat("#151417", "#18171a", 0.0, (Patch("#f4f0e8", (-1, 0.42), (-0.5, 0.02), 0.1),
                                         Patch("#d3302b", (0.66, 1.1), (-0.1, 0.42), 0.06))),
    bill=Bill(0.26, 0.06, "#d8352f", "#d8352f", 0.05, tip="#1b1a1c"),
    tail=Tail(0.5, 0.1, "#f4f1ea", band="#18171a", tip="#e9e4da", count=7, fan=6, open=28),
    wing=Wing("#ac8862", "#a07c58", "#8f6d4d", "#1d1a1b", bar="#d9c8ac", edge="#c8aa83", length=1.05),
    iris="#7a1d18", eye=0.19, ring="#d3302b",
)  # fmt: skip

CRANE = Species(
    posture=18, depth=0.27, neck=1.2, neck_width=0.07, head=0.12, legs=1.15, leg_width=0.042, leg_colour="#d08b86",
    body=Coat("#a7acb2", "#c3c7cb", -0.1),
    nape=Coat("#b4b9be", "#c6cacd", 0.0, (Patch("#e6e6e4", (0.4, 0.64), (-2, 2), 0.1),
                                         Patch("#c63a2f", (0.66, 2), (-2, 2), 0.06))),
    face=Coat("#c9352b", "#c63a2f", 0.0, (Patch("#c9ccc0", (0.3, 1.1), (0.42, 2), 0.12),)),
    bill=Bill(0.4, 0.062, "#9a9a80", "#a9a88c", 0.02),
    tail=Tail(0.55, 0.1, "#8d939b", count=8, fan=10, open=26, droop=20),
    wing=Wing("#b0b5ba", "#a5aab0", "#969ca4", "#4a4e55", edge="#d3d6d9", length=1.15),
    iris="#e0782a", eye=0.2, neck_angle=74,
)  # fmt: skip

KINGFISHER = Species(
    posture=56, depth=0.27, neck=0.16, neck_width=0.2, head=0.245, legs=0.12, leg_width=0.04, leg_colour="#cc3a2a",
    body=Coat("#2d93cf", "#74371f", 0.3, (Patch("#f7f3ea", (0.66, 2), (-2, -0.02), 0.12),)),
    nape=Coat("#6f3420", "#f7f3ea", 0.3),
    face=Coat("#6b3220", "#753822", 0.0, (Patch("#f7f3ea", (0.16, 1.1), (-2, -0.45), 0.14),)),
    bill=Bill(0.62, 0.135, "#cf3527", "#c52d22", 0.03),
    tail=Tail(0.55, 0.08, "#2b86c4", count=7, grade=0.12, fan=5, open=24),
    wing=Wing("#6b3220", "#1d1a1c", "#2f9bd6", "#2a3040", edge="#6cc6ee", patch="#eef4f6", length=0.9),
    iris="#241510", eye=0.17,
)  # fmt: skip

WAGTAIL = Species(
    posture=16, depth=0.24, neck=0.2, neck_width=0.14, head=0.175, legs=0.4, leg_width=0.024, leg_colour="#26242a",
    body=Coat("#949aa1", "#f5f5f1", -0.05, (Patch("#19191c", (0.74, 1.1), (-0.9, 0.1), 0.12),)),
    nape=Coat("#1a1a1d", "#1a1a1d", 0.0, (Patch("#f4f3ee", (0.3, 2), (-0.35, 0.3), 0.1),)),
    face=Coat("#17171a", "#1b1b1e", 0.0, (Patch("#f6f5f0", (0.16, 2), (-0.5, 0.5), 0.07),)),
    bill=Bill(0.2, 0.05, "#1c1c1f", "#26262a", 0.04),
    tail=Tail(1.0, 0.065, "#1b1b1f", outer="#f4f3ee", count=7, grade=0.05, fan=4, open=20),
    wing=Wing("#8e949b", "#3a3b40", "#2b2c31", "#1f2024", bar="#f4f3ee", edge="#c9cbce", length=0.92),
    iris="#141013", eye=0.2,
)  # fmt: skip

BIRDS: dict[str, Species] = {
    "Asian-Green-Bee-Eater": BEE_EATER,
    "Common-Myna": MYNA,
    "Common-Rosefinch": ROSEFINCH,
    "House-Crow": CROW,
    "Indian-Grey-Hornbill": HORNBILL,
    "Indian-Peacock": PEACOCK,
    "Red-Wattled-Lapwing": LAPWING,
    "Sarus-Crane": CRANE,
    "White-Breasted-Kingfisher": KINGFISHER,
    "White-Wagtail": WAGTAIL,
}
