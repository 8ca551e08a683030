"""The facts of a report -> a PDF of at most three pages, set by typst."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.ft2font import FT2Font

from nestling.explain.draw import missing_letters
from nestling.files import UserError, check_outputs, write_atomic

MOST_PAGES = 3
SIZES = (9.5, 9.0, 8.5, 8.0)               # pt, the largest that fits is taken; figures shrink with the text


def typeset(program: str, facts: dict[str, Any], folder: Path, out: Path) -> int:
    """Sets the facts, whose figures lie in `folder`, as large as fits; returns the number of pages.

    Raises UserError if three pages do not hold them, if no author is named, or if no font here has the
    letters of a name.
    """
    try:
        import typst
        from pypdf import PdfReader
    except ImportError as error:
        raise UserError("reports need typst and pypdf: pip install 'nestling[report]'.") from error
    if not facts["authors"] or not all(author.strip() for author in facts["authors"]):
        raise UserError("no author is named; give --author \"NAME ENTRY\" for each of you.")
    check_outputs([out])
    for source in Path(__file__).parent.glob("*.typ"):
        shutil.copy(source, folder)
    compiler = typst.Compiler(str(folder / f"{program}.typ"), root=str(folder), ignore_system_fonts=True,
                              font_paths=fonts_for(json.dumps(facts, ensure_ascii=False)))
    for size in SIZES:
        data = json.dumps({**facts, "size": size}, ensure_ascii=False)
        pdf = compiler.compile(format="pdf", sys_inputs={"data": data}, timestamp=0)
        assert isinstance(pdf, bytes)
        pages = len(PdfReader(io.BytesIO(pdf)).pages)
        if pages <= MOST_PAGES:
            write_atomic(out, pdf)
            return pages
    raise UserError(f"{out} is not written: the report has {pages} pages, of {MOST_PAGES} allowed; shorten "
                    "the notes.")


def fonts_for(text: str) -> Any:
    """Typst's own fonts and DejaVu Sans; where they lack a letter of the text, the system's too."""
    import typst

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [str(folder / f"DejaVuSans{style}.ttf") for style in ("", "-Bold", "-Oblique", "-BoldOblique")]
    missing = missing_letters(text)
    fonts = typst.Fonts(include_system_fonts=bool(missing), font_paths=files)
    for font in fonts.fonts() if missing else ():
        missing -= letters_of(font.path) if font.path else set()
    if missing:
        raise UserError(f"no font here has the letter {min(missing)} of the authors' names or the notes; install "
                        "one that does (on Debian: fonts-noto), or write it in Latin letters.")
    return fonts


def letters_of(font: str) -> set[str]:
    """All letters that a font file has; none if it cannot be read."""
    try:
        return {chr(code) for code in FT2Font(font).get_charmap()}
    except (RuntimeError, OSError):
        return set()


def read_notes(path: Path) -> list[dict[str, Any]]:
    """The student's words: paragraphs, `# headings`, `- points`; **strong**, *emph*, `code` in them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text; name a text file (UTF-8) with --notes.") from error
    pieces: list[dict[str, Any]] = []
    kinds = {"": "paragraph", "#": "heading", "-": "point", "*": "point"}
    text = re.sub(r"^\s*#.*", r"\n\g<0>\n", text, flags=re.MULTILINE)      # a heading stands alone
    for piece in re.split(r"\n\s*\n|\n(?=\s*[-*]\s)", text):
        found = re.fullmatch(r"((?:#{1,6}|[-*])\s)?(.*)", " ".join(piece.split()))
        if found and found[2]:
            pieces.append({"kind": kinds[(found[1] or "")[:1]], "runs": styled(found[2])})
    return pieces


def styled(text: str) -> list[dict[str, str]]:
    """Markdown's three marks within a line -> runs of text with a style."""
    runs = []
    for part in filter(None, re.split(r"(\*\*\S.*?\*\*|\*\S.*?\*|`.+?`)", text)):
        found = re.fullmatch(r"\*\*(?P<strong>.+)\*\*|\*(?P<emph>.+)\*|`(?P<code>.+)`", part)
        style = (found and found.lastgroup) or ""
        runs.append({"text": found[style] if found and style else part, "style": style})
    return runs
