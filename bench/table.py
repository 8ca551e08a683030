"""Where measured numbers go: sections of RESULTS.md that only a script writes, each with its circumstances."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import sklearn
import torch

from nestling.runs import processor
from vae import write_atomic

RESULTS = Path(__file__).with_name("RESULTS.md")


def publish(name: str, text: str) -> None:
    """Puts `text` between the marks of section `name` of RESULTS.md; the section goes to the end if it is new.

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


def stamp(seeds: Sequence[int], command: str) -> str:
    """One line: date, processor, cores, torch's threads, versions, seeds, command."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (f"{date.today()}, {processor()}, {cores} cores, torch on {torch.get_num_threads()} of them; Python "
            f"{platform.python_version()}, torch {torch.__version__}, scikit-learn {sklearn.__version__}; "
            f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; `{command}`.")
