"""`submission.zip` as the assignment asks for it, checked as a grader would; a bad one is never written.

    2021CS10001_2021CS10002/bird.py                            or vae.py
    2021CS10001_2021CS10002/model_path.txt                     one line: where the model can be fetched
    2021CS10001_2021CS10002/group.txt                          the entry numbers, one a line
    2021CS10001_2021CS10002/2021CS10001_2021CS10002.pdf        the report
"""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

from bird import Mistake, check_writable, write_atomic

ENTRY = re.compile(r"\d{4}[A-Z]{2}[A-Z0-9]\d{4,5}")       # year, department, number
ENTRY_FORM = "four digits, three letters or two letters and a digit, then four or five digits, such as 2021CS10001"
NETWORK = {"bird": "BirdNet", "vae": "VAE"}
MOST_PARAMETERS = {"bird": 80_000_000, "vae": 20_000_000}
MOST_PAGES = 3
PACKAGES = {"torch", "torchvision", "numpy", "PIL", "sklearn", "tqdm"}      # what the grader's machine has
SECONDS = 120                                             # that importing the program may take


def submit(name: str, program: Path, report: Path, link: str, entries: str, out: Path) -> list[str]:
    """Checks everything and writes the zip; the same input gives the same bytes. Returns the names in the zip.

    name: bird or vae. entries: "A,B". Raises Mistake with one sentence for each thing that a grader would refuse.
    """
    numbers = [part.strip().upper() for part in entries.split(",") if part.strip()]
    check_writable(out)
    faults = [*check_entries(numbers), *check_link(link), *check_report(report, numbers), *check_program(name, program)]
    if faults:
        raise Mistake(f"{out} is not written. " + "\n".join(faults))
    group = "_".join(numbers)
    files = {f"{name}.py": program.read_bytes(), "model_path.txt": f"{link.strip()}\n".encode(),
             "group.txt": "".join(f"{number}\n" for number in numbers).encode(), f"{group}.pdf": report.read_bytes()}
    data = packed({f"{group}/{path}": content for path, content in files.items()})
    write_atomic(out, data)
    return zipfile.ZipFile(io.BytesIO(data)).namelist()


def home_of(name: str) -> Path:
    """Where this project's bird.py or vae.py lies."""
    return Path(sys.modules[Mistake.__module__].__file__ or "").with_name(f"{name}.py")


def packed(files: dict[str, bytes]) -> bytes:
    """A zip whose bytes depend on the names and contents alone: sorted, with one date for all."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(files):
            info = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16       # a plain file, whatever made the zip
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, files[path])
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Checks: each returns its faults, a sentence each, that says the mend
# ---------------------------------------------------------------------------------------------------------------------

def check_entries(numbers: list[str]) -> list[str]:
    """The entry numbers: at least one, each of the known form, none twice."""
    if not numbers:
        return [f"--entries names nobody; give the entry numbers ({ENTRY_FORM}), separated by commas."]
    faults = [f"Entry number {number} has an unknown form; expected {ENTRY_FORM}."
              for number in numbers if not ENTRY.fullmatch(number)]
    if len(set(numbers)) < len(numbers):
        faults.append("--entries names the same entry number twice; give each once.")
    return faults


def check_link(link: str) -> list[str]:
    """The link to the model: one line, http or https, a host. (It is not fetched.)"""
    link = link.strip()
    try:
        parts = urlsplit(link)
        good = parts.scheme in ("http", "https") and "." in (parts.hostname or "") and not re.search(r"\s", link)
    except ValueError:
        good = False
    return [] if good else [f"--link {link!r} is no web address; give one that starts with https://, "
                            "where the model file can be downloaded."]


def check_report(report: Path, numbers: list[str]) -> list[str]:
    """The report: a PDF of at most three pages that shows the entry numbers on its first page."""
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise Mistake("submit reads the report with pypdf: pip install 'nestling[report]'.") from error
    if not report.is_file():
        return [f"{report} does not exist; make it with `nestling report`, or name another PDF."]
    try:
        pages = PdfReader(report, strict=True).pages
        count, first = len(pages), re.sub(r"\s", "", pages[0].extract_text()).upper()
    except (PyPdfError, OSError, ValueError, LookupError, AttributeError, TypeError):    # whatever a broken file brings
        return [f"{report} cannot be read as a PDF; export the report as PDF again."]
    faults = [] if count <= MOST_PAGES else [f"{report} has {count} pages; shorten it to at most {MOST_PAGES}."]
    missing = [number for number in numbers if number not in first]
    if missing:
        faults.append(f"{report} does not show {', '.join(missing)} on its first page; "
                      "its first line must name the authors with their entry numbers.")
    return faults


def check_program(name: str, program: Path) -> list[str]:
    """The program: named as the grader calls it, needing no other file of ours, starting alone, not too large."""
    if not program.is_file():
        return [f"{program} does not exist; name {name}.py with --program."]
    if program.name != f"{name}.py":
        return [f"{program} has the wrong name; the grader calls {name}.py, so rename it."]
    try:
        foreign = sorted(imports(program.read_text()) - PACKAGES - set(sys.stdlib_module_names))
    except (SyntaxError, ValueError) as error:
        return [f"{program} is no valid Python ({error}); mend it first."]
    if foreign:
        return [f"{program} imports {', '.join(foreign)}, which the grader's machine does not have; "
                f"write what is needed into {name}.py itself."]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / program.name).write_bytes(program.read_bytes())
        status, said = call(folder, program.name, "--help")
        if status != 0:
            return [f"{program} does not start alone in an empty folder ({said}); "
                    f"`python {name}.py --help` must end well there."]
        network = NETWORK[name]
        status, said = call(folder, "-c", f"from {name} import {network}\n"
                                          f"print(sum(p.numel() for p in {network}().parameters()))")
    if status != 0 or not said.isdecimal():
        return [f"{program} has no class {network} that can be made without arguments ({said}); "
                f"`{network}()` must work, for that is how the grader loads the model."]
    most = MOST_PARAMETERS[name]
    if int(said) > most:
        return [f"{network} has {int(said):,} parameters, more than {most:,}; make it narrower."]
    return []


def imports(source: str) -> set[str]:
    """The outermost names of all modules that a program imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level or (node.module or "").split(".")[0])
    return found


def call(folder: str, *arguments: str) -> tuple[int, str]:
    """Runs Python in `folder` as a stranger's machine would; its status, and the last line that it printed."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        done = subprocess.run([sys.executable, *arguments], cwd=folder, env=known, capture_output=True, text=True,
                              timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return 1, f"no end after {SECONDS} seconds"
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()
    return done.returncode, lines[-1] if lines else "no words"
