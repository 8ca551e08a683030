"""`submission.zip` as the assignment asks for it, checked as a grader would; a bad one is never written.

    2021CS10001_2021CS10002/bird.py                            or vae.py
    2021CS10001_2021CS10002/model_path.txt                     one line: where the model can be fetched
    2021CS10001_2021CS10002/group.txt                          the entry numbers, one a line
    2021CS10001_2021CS10002/2021CS10001_2021CS10002.pdf        the report
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nestling.files import UserError, check_outputs, write_atomic


@dataclass(frozen=True)
class Rules:
    """What the assignment asks of a submission, in numbers and names."""

    program: str                                     # the file that the grader calls
    network: str                                     # its class that holds the model
    parameters: int                                  # at most
    packages: tuple[str, ...] = ("torch", "torchvision", "numpy", "PIL", "sklearn", "tqdm")
    pages: int = 3                                   # of the report, at most
    entry: str = r"\d{4}[A-Z]{2}[A-Z0-9]\d{4,5}"     # year, department, number
    example: str = "2021CS10001"


RULES = {"bird": Rules("bird.py", "BirdNet", 80_000_000), "vae": Rules("vae.py", "VAE", 20_000_000)}
SECONDS = 120                                        # that importing the program may take
PR_SET_CHILD_SUBREAPER = 36                          # of Linux's prctl
HOME = Path(__file__).parent.parent                  # where this project's bird.py and vae.py lie


def submit(name: str, report: Path, link: str, entries: str, out: Path,
           program: Path | None = None) -> list[str]:
    """Checks everything and writes the zip; the same input gives the same bytes. Returns the names in it.

    name: bird or vae. entries: "A,B". program: default: this project's.
    """
    rules, numbers = RULES[name], [part.strip().upper() for part in entries.split(",") if part.strip()]
    program = program or HOME / rules.program
    check_outputs([out], [report, program])
    if faults := [*check_words(rules, numbers, link.strip()), *check_report(rules, report, numbers),
                  *check_program(rules, program)]:
        raise UserError(f"{out} is not written. " + "\n".join(faults))
    group = "_".join(numbers)
    files = {f"{group}/{rules.program}": program.read_bytes(), f"{group}/{group}.pdf": report.read_bytes(),
             f"{group}/group.txt": "".join(f"{number}\n" for number in numbers).encode(),
             f"{group}/model_path.txt": f"{link.strip()}\n".encode()}
    write_atomic(out, packed(files))
    return sorted(files)


def packed(files: dict[str, bytes]) -> bytes:
    """A zip whose bytes depend on the names and contents alone: sorted, all dated 1980."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for path in sorted(files):
            info = zipfile.ZipInfo(path)
            info.create_system, info.external_attr = 3, 0o100644 << 16       # a plain file, on any system
            archive.writestr(info, files[path], zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


# ------------------------------------------------------ checks: each yields its faults, with the remedy

def check_words(rules: Rules, numbers: list[str], link: str) -> Iterator[str]:
    """Entry numbers of the known form, none twice; the web address of the model, which is not fetched."""
    if not numbers:
        yield f"--entries names nobody; give the entry numbers, such as {rules.example}, separated by commas."
    for number in numbers:
        if not re.fullmatch(rules.entry, number):
            yield f"Entry number {number} has an unknown form; give one such as {rules.example}."
    if len(set(numbers)) < len(numbers):
        yield "--entries names the same entry number twice; give each once."
    if not re.fullmatch(r"https?://[^\s/]+\.[^\s/]+(/\S*)?", link):
        yield f"--link {link!r} is no web address; give one that starts with https://, of the model file."


def check_report(rules: Rules, report: Path, numbers: list[str]) -> Iterator[str]:
    """The report: a PDF, not too long, whose first line shows the entry numbers."""
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise UserError("submit reads the report with pypdf: pip install 'nestling[report]'.") from error
    if not report.is_file():
        yield f"{report} does not exist; make it with `nestling report`, or name another PDF."
        return
    try:
        pages = PdfReader(report, strict=True).pages
        count, first = len(pages), pages[0].extract_text().strip().partition("\n")[0]
    except Exception:                                # a damaged or hostile PDF makes pypdf raise anything
        count, first = None, ""
    yield from judge_report(rules, str(report), numbers, count, first)


def judge_report(rules: Rules, report: str, numbers: list[str], pages: int | None, first: str) -> Iterator[str]:
    """Of a PDF's number of pages, None if it cannot be read, and its first line."""
    if pages is None:
        yield f"{report} cannot be read as a PDF; export the report as PDF again."
        return
    if pages > rules.pages:
        yield f"{report} has {pages} pages; shorten it to at most {rules.pages}."
    if missing := [number for number in numbers if not re.search(rf"(?<!\w){number}(?!\w)", first.upper())]:
        yield (f"{report} does not show {', '.join(missing)} in its first line, which must name the authors with "
               "their entry numbers.")


def check_program(rules: Rules, program: Path) -> Iterator[str]:
    """The program: named as the grader calls it, in need of no other file, with a network not too large."""
    if not program.is_file() or program.name != rules.program:
        yield f"{program} is no file called {rules.program}, as the grader calls it; give another --program."
        return
    try:
        foreign = sorted(imports(program.read_bytes()) - {*rules.packages, *sys.stdlib_module_names})
    except (SyntaxError, ValueError) as error:
        yield f"{program} is no valid Python ({error}); correct it first."
        return
    if foreign:
        yield (f"{program} imports {', '.join(foreign)}, which the grader's machine does not have; write "
               f"what is needed into {rules.program} itself.")
    elif not (last := count_parameters(rules, program)).isdecimal():
        yield (f"{program} gives no {rules.network} alone in an empty folder ({last}); import it and call "
               f"{rules.network}() there, for so the grader loads the model.")
    elif int(last) > rules.parameters:
        yield f"{rules.network} has {int(last):,} parameters, more than {rules.parameters:,}; narrow it."


def imports(source: bytes) -> set[str]:
    """The outermost names of all modules that a program imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    return {name.split(".")[0] or "." for name in names}


def count_parameters(rules: Rules, program: Path) -> str:
    """Of the network, made in a process and a folder of its own; where that fails, the last line printed."""
    code = (f"from {program.stem} import {rules.network} as net\n"
            "print(sum(p.numel() for p in net().parameters()))")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, program.name).write_bytes(program.read_bytes())
        status, out, err = run_alone([sys.executable, "-c", code], Path(folder), SECONDS)
    if status is None:
        return f"no end after {SECONDS} seconds"
    lines = (err if status else out).strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def run_alone(command: list[str], folder: Path, seconds: float) -> tuple[int | None, str, str]:
    """Status, or None after so many seconds, and the ends of stdout and stderr; what it started ends too."""
    if sys.platform == "linux":                      # orphans become our children, whatever session they are in
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                   start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(process)
        return status, tail(out), tail(err)


def tail(file: IO[bytes], most: int = 10_000) -> str:
    """The last bytes of a file, as text."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - most))
    return file.read().decode(errors="replace")


def end(process: subprocess.Popen) -> None:
    """Kills a process, its group and, where /proc tells of them, all that it has started and left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    while left := orphans():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def orphans() -> list[int]:
    """This process's children in another session, as adopted ones are."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):           # it has ended meanwhile
            _, parent, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(parent) == os.getpid() and int(session) != os.getsid(0):
                found.append(int(path.parent.name))
    return found
