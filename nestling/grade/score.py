"""Scores of what a submission wrote: by the letter of the contract, and of what is found by stated rules.

Nothing written by a submission is trusted: no link is followed, no size believed, nothing unpickled.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import io
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nestling.grade.facts import Finding, Scored

HEADER = "Predicted_Label"
LABEL_SCORES = ("score", "macro_f1", "micro_f1", "accuracy", "macro_precision", "macro_recall")
IMAGE_SCORES = ("ssim", "one_minus_mse")
SIDE = 28
FORMS = ((SIDE, SIDE), (SIDE**2,), (1, SIDE, SIDE), (SIDE, SIDE, 1))     # of one image
MOST_FILES = 20                      # of other names that are looked at
MOST_COLUMNS = 20                    # of a CSV
MOST_ARRAYS = 8                      # of a .npz
SHOWN = 10                           # images for the page


@dataclass(frozen=True)
class Output:
    """What a file of a submission holds."""

    rows: Any                        # labels, None where there is no whole number; or images (n, 28, 28) in 0..1
    letter: bool                     # it is as the contract says
    findings: tuple[Finding, ...]
    copy: bool = False               # it is the input itself


def score_labels(folder: Path, name: str, truth: list[int], classes: list[int],
                 given: Set[str] = frozenset()) -> Scored:
    """Scores the CSV of labels that a submission wrote into `folder`.

    name: the contract's. truth: a label a row, each of `classes`. given: names of files that were there before.
    Rows that are absent, or hold no class, are wrong. Precision, recall and macro F1 are means over the classes in
    `truth`; the micro F1 is that of all rows, so the accuracy.
    """
    try:
        output = find_output(folder, name, len(truth), given, lambda path: read_labels(path, len(truth)))
    except ValueError as error:
        return nothing(LABEL_SCORES, error)
    labels, findings = output.rows[:len(truth)], list(output.findings)
    if len(output.rows) != len(truth):
        rest = "the first ones count" if len(output.rows) > len(truth) else "absent ones are wrong"
        text = f"{name} has {len(output.rows)} labels for {len(truth)} images; {rest}."
        findings.append(Finding("rows", text, name))
    known = {label for label in labels if label is not None}
    if known and not known <= set(classes) and known <= set(range(len(classes))):
        text = f"The labels lie in 0 to {len(classes) - 1}: these look like cluster numbers, not the classes' own."
        findings.append(Finding("labels", text, name))
    elif strange := [label for label in labels if label is not None and label not in classes]:
        text = f"{len(strange)} labels are no classes, such as {strange[0]}; they are wrong."
        findings.append(Finding("labels", text, name))
    labels += [None] * (len(truth) - len(labels))
    found, details = measure_labels(truth, [label if label in classes else -1 for label in labels], classes)
    return Scored(dict(found) if output.letter else dict.fromkeys(found, 0.0), found, tuple(findings), details)


def score_reconstruction(folder: Path, name: str, truth: np.ndarray, given: Set[str] = frozenset()) -> Scored:
    """Scores the .npz of reconstructions of `truth`, (N, 28, 28) in 0..1, that a submission wrote into `folder`.

    name: the contract's. given: names of files that were there before. An absent image has SSIM 0 and MSE 1.
    """
    from skimage.metrics import structural_similarity

    truth = truth.astype(np.float64)
    try:
        output = find_output(folder, name, len(truth), given, lambda path: read_images(path, truth))
    except ValueError as error:
        return nothing(IMAGE_SCORES, error)
    images, findings = output.rows[:len(truth)], list(output.findings)
    if len(output.rows) != len(truth):
        rest = "the first ones count" if len(output.rows) > len(truth) else "absent ones count as SSIM 0 and MSE 1"
        text = f"{name} has {len(output.rows)} images for {len(truth)}; {rest}."
        findings.append(Finding("values", text, name))
    pairs, absent = list(zip(truth, images, strict=False)), len(truth) - len(images)
    similarity = sum(float(structural_similarity(a, b, data_range=1)) for a, b in pairs)
    error_sum = sum(float(((a - b) ** 2).mean()) for a, b in pairs) + absent
    found = {"ssim": similarity / len(truth), "one_minus_mse": 1 - error_sum / len(truth)}
    details = {key: np.rint(255 * part[:SHOWN]).astype(np.uint8).tolist()
               for key, part in (("originals", truth), ("images", images))}
    return Scored(dict(found) if output.letter else dict.fromkeys(found, 0.0), found, tuple(findings), details)


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file. ValueError, a sentence: it is missing, something else, or more than `most`."""
    name = plain(path.name)
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise ValueError(f"{name} cannot be read ({reason}).") from error
    try:
        info = os.fstat(number)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{name} is a folder, a pipe or a device, not a file.")
        if info.st_size > most:
            raise ValueError(f"{name} has {info.st_size:,} bytes, more than {most:,}.")
        with open(number, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(number)


# ------------------------------------------------------ the file

def find_output(folder: Path, name: str, count: int, given: Set[str], read: Callable[[Path], Output]) -> Output:
    """The file of the contract's name or, where it cannot be read, the only other one with `count` rows.

    read: raises ValueError for a file without such rows. ValueError, a sentence: nothing is found.
    """
    fault = f"{name} was not written."
    if name in given:
        fault = f"{name} was handed in, not written by the program."
    elif os.path.lexists(folder / name):
        try:
            return read(folder / name)
        except ValueError as error:
            fault = str(error)
    fitting = {}
    others = sorted(other for other in os.listdir(folder) if other.lower().endswith(Path(name).suffix))
    for other in [other for other in others if other not in {name, *given}][:MOST_FILES]:
        with contextlib.suppress(ValueError):        # not what is sought
            output = read(folder / other)
            if len(output.rows) == count:
                fitting[other] = output
    fitting = {other: output for other, output in fitting.items() if not output.copy} or fitting
    if len(fitting) != 1:
        several = f" Several others would fit: {', '.join(map(plain, fitting))}." if fitting else ""
        raise ValueError(fault + several)
    [(other, output)] = fitting.items()
    finding = Finding("name", f"{fault.removesuffix('.')}; {plain(other)} is read in its place.", plain(other))
    return replace(output, letter=False, findings=(finding, *output.findings))


def nothing(names: tuple[str, ...], error: ValueError) -> Scored:
    """Zeros, and the sentence that says why."""
    return Scored(dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), details={"missing": str(error)})


def plain(text: str) -> str:
    """The submission's own words, printable and short."""
    text = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text[:100])
    return text if len(text) <= 80 else f"{text[:77]}..."


# ------------------------------------------------------ labels

def read_labels(path: Path, count: int) -> Output:
    """The labels of a CSV; ValueError, a sentence: there is no column that clearly holds them."""
    data, name = read_regular(path, 1_000_000 + 100 * count), plain(path.name)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if wide else "utf-8-sig", errors="replace")
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        raw = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{name} cannot be read as CSV ({error}).") from error
    rows = [(line, [cell.strip() for cell in row]) for line, row in raw if any(map(str.strip, row))]
    if not rows or len(rows[0][1]) > MOST_COLUMNS:
        raise ValueError(f"{name} has {'too many columns' if rows else 'no rows'}.")
    head, headed = rows[0][1], True
    if any(whole(cell) is not None for cell in head):      # no header, or the one that pandas makes: 0
        headed = len(rows) == count + 1 and head[-1] == "0"
    body = rows[headed:]
    if headed and body and all(len(row) == len(head) + 1 for _, row in body):
        head = ["", *head]                           # as pandas reads it: the first column is an index
    column = label_column(head if headed else [""] * len(head), [row for _, row in body])
    if column is None:
        raise ValueError(f"{name} has {len(head)} columns, none of which clearly holds the labels.")
    cells = [(line, row[column] if column < len(row) else "") for line, row in body]
    labels = [whole(cell) for _, cell in cells]
    if all(label is None for label in labels):
        raise ValueError(f"{name} holds no whole numbers.")

    findings = []
    if not headed or head != [HEADER]:
        what = f"the header {plain(head[column])!r}" if headed else "no header"
        more = f" and {len(head)} columns, of which number {column + 1} is read" if len(head) > 1 else ""
        findings.append(Finding("column", f"{name} has {what}{more}; it must be {HEADER} alone.", name, rows[0][0],
                                plain(first)))
    if odd := [what for what, met in {
            "a byte order mark": wide or data.startswith(codecs.BOM_UTF8),
            "blank lines": len(rows) < len(raw),
            "quotes": '"' in text,
            "spaces around its cells": any(cell != cell.strip() for _, row in raw for cell in row),
            "labels such as 4.0": any(label is not None and not re.fullmatch(r"-?[0-9]+", cell)
                                      for label, (_, cell) in zip(labels, cells, strict=True))}.items() if met]:
        findings.append(Finding("encoding", f"{name} has {' and '.join(odd)}.", name))
    if bad := [(line, cell) for label, (line, cell) in zip(labels, cells, strict=True) if label is None]:
        text = f"{len(bad)} rows of {name} hold no whole number."
        findings.append(Finding("labels", text, name, bad[0][0], plain(bad[0][1])))
    return Output(labels, by_the_letter(data, count), tuple(findings))


def by_the_letter(data: bytes, count: int) -> bool:
    """The header, then `count` rows of an integer, whichever way lines end: CR LF is RFC 4180's own."""
    header, *rows = data.splitlines()
    return (header == HEADER.encode() and len(rows) == count
            and all(re.fullmatch(rb"-?[0-9]{1,15}", row) for row in rows))


def label_column(names: list[str], rows: list[list[str]]) -> int | None:
    """The column that alone is called Predicted_Label, else alone has "pred" in its name, else is the only one,
    else alone holds whole numbers that do not merely count the rows; None if there is no such."""
    keys = [re.sub("[^a-z]", "", name.lower()) for name in names]
    counting = [[str(i) for i in range(start, start + len(rows))] for start in (0, 1)]

    def holds_labels(column: int) -> bool:
        cells = [row[column] if column < len(row) else "" for row in rows]
        return cells not in counting and all(whole(cell) is not None for cell in cells)

    rules: tuple[Callable[[int], bool], ...] = (
        lambda i: keys[i] == "predictedlabel", lambda i: "pred" in keys[i], lambda _: len(names) == 1,
        holds_labels)
    for rule in rules:
        if len(columns := [i for i in range(len(names)) if rule(i)]) == 1:
            return columns[0]
    return None


def whole(cell: str) -> int | None:
    """The whole number that a cell holds, also as 4.0 or 4e+00; None if it holds none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return int(value) if value.is_integer() and abs(value) < 1e15 else None


def measure_labels(truth: list[int], predicted: list[int], classes: list[int]) -> tuple[dict, dict]:
    """The scores and the details of labels, -1 where one is no class."""
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predicted, labels=sorted(set(truth)), average="macro", zero_division=0)
    accuracy = float(accuracy_score(truth, predicted))
    values = ((f1 + accuracy) / 2, f1, accuracy, accuracy, precision, recall)
    table = precision_recall_fscore_support(truth, predicted, labels=classes, average=None, zero_division=0)
    per_class = [{"precision": float(p), "recall": float(r), "f1": float(f), "number": int(n)}
                 for p, r, f, n in zip(*table, strict=True)]
    confusion = confusion_matrix(truth, predicted, labels=classes).tolist()
    return ({key: float(value) for key, value in zip(LABEL_SCORES, values, strict=True)},
            {"classes": [str(label) for label in classes], "confusion": confusion, "per_class": per_class,
             "invalid": predicted.count(-1)})


# ------------------------------------------------------ reconstructions

def read_images(path: Path, truth: np.ndarray) -> Output:
    """The reconstructions in a .npz: the array called data, else the only one with "recon" in its name, else the
    only one of as many images; none that equals the input, `truth`, where there is another.

    Shapes are read before data. ValueError, a sentence: there is no such array.
    """
    name = plain(path.name)
    most = 1_000_000 + 32 * truth.size               # of four arrays of float64; unpacked too
    data = read_regular(path, most)
    try:
        if data.count(b"PK\x01\x02") > MOST_ARRAYS:  # each begins an entry: millions are not even listed
            raise ValueError(f"it has more than {MOST_ARRAYS} arrays")
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if (total := sum(member.file_size for member in members.values())) > most:
            raise ValueError(f"it unpacks to {total:,} bytes, more than {most:,}")
        arrays = {key: array for key, member in members.items()
                  if (array := read_array(archive, member, 2 * len(truth))) is not None}
    except Exception as error:                       # damaged or hostile bytes make both modules raise anything
        raise ValueError(f"{name} cannot be read as arrays ({plain(str(error))}).") from error
    units = {key: to_unit(array) for key, array in arrays.items()}
    copies = {key for key, (images, _) in units.items()     # also where they were cut off to uint8
              if images.shape == truth.shape and np.abs(images - truth).max() < 1 / 255}
    pool = sorted(set(units) - copies or units)
    found = next(filter(None, ([key for key in pool if key == "data"],
                               [key for key in pool if "recon" in key.lower()],
                               [key for key in pool if len(arrays[key]) == len(truth)])), [])
    if len(found) != 1:
        what = f"several arrays ({', '.join(map(plain, found))}) that may be" if found else "no array of"
        raise ValueError(f"{name} holds {what} {len(truth)} reconstructions of {SIDE} x {SIDE} numbers.")

    [key] = found
    (images, odd), findings = units[key], []
    if list(members) != ["data"]:
        text = f"{name} holds {', '.join(map(plain, members))}, not data alone; {plain(key)} is read."
        findings.append(Finding("key", text, name))
    if odd:
        findings.append(Finding("values", f"{name}: the reconstructions {' and '.join(odd)}.", name))
    letter = not findings and len(images) == len(truth)
    if key in copies:
        findings.append(Finding("values", f"{name} holds the input itself, not its reconstruction.", name))
    return Output(images, letter, tuple(findings), key in copies)


def read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> np.ndarray | None:
    """An array of up to `most` images, in a form that is known; None, its data unread, if it is another."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is compressed in another way than NumPy's")       # without a bound on the memory
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(member) as stream:
        shape, fortran, dtype = headers[np.lib.format.read_magic(stream)](stream, max_header_size=1000)
        if shape[1:] not in FORMS or not 0 < shape[0] <= most or dtype.kind not in "buif" or dtype.itemsize > 8:
            return None
        content = stream.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def to_unit(array: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Images (n, 28, 28), float64 in 0..1, and what had to be done for it."""
    odd = []
    if array.shape[1:] != (SIDE, SIDE):
        odd.append(f"have the shape {array.shape}")
    if array.dtype.kind != "f":
        odd.append(f"have the type {array.dtype}")
    images = array.reshape(-1, SIDE, SIDE).astype(np.float64)
    if np.isnan(images).any():
        odd.append("have NaN, read as 0")
        images = np.nan_to_num(images, nan=0.0, posinf=np.inf, neginf=-np.inf)
    if ((images > 2) & (images < np.inf)).mean() > 0.01:           # more than an overshoot
        odd.append("are divided by 255")
        images = images / 255
    if images.min() < 0 or images.max() > 1:
        odd.append("are clipped to 0..1")
        images = images.clip(0, 1)
    return images, odd
