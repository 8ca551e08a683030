"""Where measured numbers go: sections of RESULTS.md that only a script writes, each with its conditions."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from statistics import median

import sklearn
import torch

from nestling.runs import processor
from vae import write_atomic

RESULTS = Path(__file__).with_name("RESULTS.md")


def publish(name: str, text: str) -> None:
    """Puts `text` between the marks of section `name` of RESULTS.md; a new section goes to the end.

    All else in the file stays as it is. Raises ValueError if the section is opened there but never closed.
    """
    opened, closed = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    section = f"{opened}\n\n{text.strip()}\n\n{closed}"
    old = RESULTS.read_text(encoding="utf-8")
    before, found, rest = old.partition(opened)
    _, ended, after = rest.partition(closed)
    if found and not ended:
        raise ValueError(f"{RESULTS} has {opened} but no {closed} after it; add that line")
    new = f"{before}{section}{after}" if found else f"{old.rstrip()}\n\n{section}\n"
    write_atomic(RESULTS, new.encode())


def rows(table: Iterable[Iterable[object]]) -> str:
    """Rows of cells as lines of a Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in table)


def race(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float, str]:
    """Median seconds of both, and the ratio: median (lowest to highest).

    They take turns, so that a slow moment meets both; the first round warms up and does not count.
    """
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for side, call in zip(times, (ours, theirs), strict=True):
            began = time.perf_counter()
            call()
            side.append(time.perf_counter() - began)
    a, b = (side[1:] for side in times)
    ratio = sorted(y / x for x, y in zip(a, b, strict=True))
    return median(a), median(b), f"{median(ratio):.2f} ({ratio[0]:.2f} to {ratio[-1]:.2f})"


def stamp(command: str) -> str:
    """One line: date, processor, cores, torch's threads, versions, command."""
    return (f"{date.today()}, {processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
            f"Python {platform.python_version()}, torch {torch.__version__}, "
            f"scikit-learn {sklearn.__version__}; `{command}`.")
