"""The README's picture: the ten drawn species, one a column, above a row of the shipped digits."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nestling.data.digits import shipped
from nestling.data.drawn import SPECIES, draw
from nestling.files import UserError

TILE, GAP, ROWS = 130, 6, 3  # px, px, pictures of each species
STEP = 4  # brightness levels are this far apart, which halves the file
PAPER, INK = "#fbfaf6", "#4a4a46"


def make_picture(out: Path, seed: int = 13) -> None:
    """Write the picture as a PNG. Raises UserError if it cannot be written."""
    step, columns = TILE + GAP, len(SPECIES)
    sheet = Image.new("RGB", (columns * step + GAP, ROWS * step + TILE // 2 + 2 * GAP + 40), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, species in enumerate(SPECIES):
        for row in range(ROWS):
            image = draw(species, seed, row, 2 * TILE)[0].resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(image, (GAP + column * step, GAP + row * step))
        middle = GAP + column * step + TILE // 2
        for line, text in enumerate(textwrap.wrap(species.replace("-", " "), 14)):
            pen.text((middle, ROWS * step + GAP + 16 * line), text, INK, font, anchor="mt")
    digits, _ = shipped()
    rng = np.random.default_rng(seed)
    half = TILE // 2
    for k, digit in enumerate(digits[rng.choice(len(digits), 2 * columns, replace=False)]):
        image = Image.fromarray(255 - digit).resize((half - 2, half - 2), Image.Resampling.BICUBIC)
        sheet.paste(image, (GAP + k // 2 * step + k % 2 * half + 1, ROWS * step + GAP + 40))
    try:
        sheet.point(lambda value: value - value % STEP + STEP // 2).save(out, optimize=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{out} cannot be written: {error}") from error
