"""What travels between the parts of the grader: plain values, each of which can be written as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEVIATIONS = {                       # from the letter of the assignment; the rubric may price them
    "folder": "the program lies in another folder than the contract's",
    "name": "a file has another name than the contract's",
    "group": "group.txt is missing or odd",
    "report": "the report is missing or odd",
    "link": "model_path.txt is missing or odd",
    "column": "the CSV's header is not Predicted_Label",
    "encoding": "the CSV has a byte order mark, blank lines or labels such as 4.0",
    "rows": "the CSV has too few or too many rows",
    "labels": "the CSV has labels that are no classes",
    "key": "the array of reconstructions is not called data",
    "values": "reconstructions lie outside 0..1, or are of another type or shape",
    "traceback": "the program ended with an error after it had written its file",
    "random": "two tests of one model differ",
    "shim": "the program asks for CUDA, which is read as cpu here",
    "whole model": "the model file holds the whole model, not its state_dict",
}
RULES = {                            # of the assignment; for a person to look at
    "pretrained": "weights that were trained elsewhere",
    "ready network": "a network that others designed",
    "scikit-learn": "scikit-learn beyond what the assignment allows",
    "scipy": "SciPy where the assignment asks for one's own code",
    "parameters": "more parameters than allowed",
    "seed": "no seed, or another one",
    "code": "code that runs other code",
}


@dataclass(frozen=True)
class Finding:
    """Something for a person to look at, with its place; it costs what the rubric says of its kind."""

    kind: str                        # of DEVIATIONS or RULES
    text: str                        # one sentence
    file: str = ""
    line: int = 0
    source: str = ""                 # the line itself


@dataclass(frozen=True)
class Submission:
    """What one group handed in, copied to a folder of the grader's own; only regular files are in it."""

    entry: str                       # "2021CS10001_2021CS10002" where known: a file name, unique in the batch
    source: str                      # the name of the file or folder that the teacher gave
    folder: Path                     # of the program and its files
    program: Path | None             # bird.py or vae.py in it
    models: dict[str, Path]          # bird.pth, or vae.pth and gmm_params.pkl, where they are given
    submitted: str | None = None     # date and time, ISO 8601, where known
    faults: tuple[str, ...] = ()     # sentences: why nothing of it can be run
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Scored:
    """Two scores of one output: by the letter, and of what could be found by the stated rules."""

    strict: dict[str, float]
    found: dict[str, float]
    findings: tuple[Finding, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)      # of what was found
