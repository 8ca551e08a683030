"""What a grading gives to read: per submission results.json (Gradescope's form) and feedback.txt, and for the
whole batch leaderboard.csv and one static index.html.

The students' text in them is hostile: it is cut, freed of terminal sequences and control characters, and escaped.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from nestling.files import write_atomic, write_json
from nestling.grade.facts import DEVIATIONS, RULES
from nestling.grade.marks import SCORES, Marks, Rubric, model_of, score_of

OUTPUT = 60_000                            # bytes of the text in results.json, as JSON
PAGE = 1_000_000                           # bytes that index.html stays under
TAIL = 1500                                # characters shown of what a run printed at its end
PAIRS = 20                                 # of the most similar submissions
STATES = {                                 # of a run, or of a submission: its first run that did not end well
    "done": "ran to its end",
    "failed": "ended with an error",
    "time": "did not end in time",
    "memory": "needed more memory than allowed",
    "processes": "started more processes than allowed",
    "disk": "wrote more than allowed",
    "output": "printed more than allowed",
    "environment": "needs a package that the grading environment lacks",
    "grader": "was lost by the grader; not the submission's fault",
    "refused": "could not be run",
    "not run": "left nothing to run",
}
LEVELS = {
    "strong": "no network, files read-only, memory and processes bounded from outside",
    "walls": "no network, files read-only; memory bounded by the process's own limits only",
    "weak": "another user and limits, but no walls: network and readable files were open",
    "none": "no walls at all",
}
COLUMNS = ("entry", "state", "strict", "found", "retrained", "ssim", "one_minus_mse", "parameters", "findings",
           "late days", "marks")
DETAILS = (                                # of the page: characters of bad and good runs, images, findings
    (TAIL, TAIL, 10, 50), (TAIL, 0, 10, 20), (600, 0, 10, 10), (200, 0, 5, 5), (100, 0, 0, 3), (0, 0, 0, 0))
ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")


# ------------------------------------------------------------------------------ hostile text

def block(text: str, most: int = TAIL) -> str:
    """The end of a text, without terminal sequences, overwritten lines and characters that do not print."""
    text = ESCAPES.sub("", text[-2 * most:] if most else "")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    lines = ["".join(c for c in line if c.isprintable() or c == "\t") for line in lines]
    return "\n".join(lines)[-most:].strip("\n")


def line(text: str, most: int = 300) -> str:
    """The beginning of a text as one line."""
    text = " ".join(block(text.replace("\r", " ")[:2 * most], 2 * most).split())
    return text if len(text) <= most else f"{text[:most - 1]}\N{HORIZONTAL ELLIPSIS}"


# ----------------------------------------------------------------------------- one submission

def write_submission(out: Path, record: dict[str, Any], marks: Marks, rubric: Rubric) -> None:
    """Writes OUT/<entry>/results.json and feedback.txt, each whole or not at all."""
    folder, text = out / record["entry"], feedback(record, marks, rubric)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "feedback.txt", text.encode())
    write_json(folder / "results.json", gradescope(record, marks, rubric, text))


def gradescope(record: dict[str, Any], marks: Marks, rubric: Rubric, text: str) -> dict[str, Any]:
    """The results in the form that Gradescope reads."""
    tests = [{"score": item.score, "max_score": item.most, "name": item.name, "number": str(number),
              "output": line(item.why, 1000), "visibility": rubric.visibility}
             for number, item in enumerate(marks.items, 1)]
    board = [{"name": name, "value": value, "order": "desc"}
             for name, value in [("Marks", marks.total), *scores(record, rubric.counts)]]
    seconds = sum(run["seconds"] for run in record["runs"].values())
    return {"score": marks.total, "execution_time": round(seconds, 2), "output": fitting(text, OUTPUT),
            "visibility": rubric.visibility, "stdout_visibility": "hidden",
            "extra_data": {"state": state(record), "level": record["level"], "late_days": marks.late_days,
                           "penalty": marks.penalty, "scores": record["scores"]},
            "tests": tests, "leaderboard": board}


def fitting(text: str, most: int) -> str:
    """The beginning of a text that takes at most so many bytes in JSON."""
    size = 0
    for place, character in enumerate(text):
        size += len(json.dumps(character)) - 2
        if size > most - 20:
            return text[:place] + "\n(cut here)"
    return text


def state(record: dict[str, Any]) -> str:
    """Of the submission: refused, not run, that of its first run that did not end well, or done."""
    if record["faults"] or not record["runs"]:
        return "refused" if record["faults"] else "not run"
    return next((run["state"] for run in record["runs"].values() if run["state"] != "done"), "done")


def scores(record: dict[str, Any], counts: str) -> list[tuple[str, float | None]]:
    """The names and values of the scores that count."""
    return [(title, score_of(record, model_of(record), name, counts))
            for name, (_, title) in SCORES[record["part"]].items()]


def feedback(record: dict[str, Any], marks: Marks, rubric: Rubric) -> str:
    """All that a student should know, in plain words."""
    lines = [f"{line(record['entry'])}: {marks.total:g} of {marks.most:g} marks", ""]
    if record["faults"]:
        lines += ["Nothing was run:", *(f"- {line(fault, 500)}" for fault in record["faults"]), ""]
    lines += [part for name, run in record["runs"].items() for part in ran(name, run)]
    if record["scores"]:
        lines += ["Scores", *compared(record), f"The {rubric.counts} ones count. Labels in the sandbox are dummies, so "
                  "scores that the program itself prints mean nothing.", *differing(record), ""]
    lines += found("Deviations from the contract", record, DEVIATIONS)
    lines += found("For a person to look at", record, RULES)
    lines += ["Marks", *(f"- {item.name}: {item.score:g} of {item.most:g}. {line(item.why, 1000)}"
                         for item in marks.items)]
    lines += [f"- Lateness: {-marks.penalty or 0:g}. {marks.late}",
              f"Together: {marks.total:g} of {marks.most:g}", "",
              f"Level of the walls around the runs: {record['level']} ({LEVELS[record['level']]})."]
    return "\n".join(lines) + "\n"


def ran(name: str, run: dict[str, Any]) -> list[str]:
    """One run in words, with the last lines that it printed where it did not end well."""
    said = f": {line(run['reason'])}" if run["reason"] else ""
    lines = [f"Run \"{name}\": {STATES[run['state']]}{said} "
             f"({run['seconds']:.1f} s, {run['peak']:.0f} MiB of memory)"]
    if run["state"] != "done":
        last = block(run["tail"])
        lines += [f"The last of the {run['printed']:,} bytes that it printed:" if last else "It printed nothing."]
        lines += [f"    {text}" for text in last.split("\n") if last]
    return [*lines, ""]


def compared(record: dict[str, Any]) -> list[str]:
    """Both scores of each kind and model, a line each."""
    return [f"- {title}, {model} model: " + ", ".join(f"{number(value)} {kind}" for kind, value in pair)
            for title, model, pair in score_pairs(record)]


def score_pairs(record: dict[str, Any]) -> list[tuple[str, str, list[tuple[str, float | None]]]]:
    """Title, model, and (strict, score) and (found, score), where either is known."""
    rows = [(title, model, [(kind, score_of(record, model, name, kind)) for kind in ("strict", "found")])
            for model in ("shipped", "retrained") for name, (_, title) in SCORES[record["part"]].items()]
    return [row for row in rows if any(value is not None for _, value in row[2])]


def differing(record: dict[str, Any]) -> list[str]:
    """A sentence on why the strict and the found scores differ; none where they do not."""
    if all(pair[0][1] == pair[1][1] for _, _, pair in score_pairs(record)):
        return []
    kinds = {finding["kind"] for finding in record["findings"]}
    causes = [DEVIATIONS[kind] for kind in ("name", "column", "encoding", "rows", "labels", "key", "values")
              if kind in kinds]
    why = "; ".join(causes) or "see the findings"
    return [f"Strict and found differ: {why}. Strict keeps to the letter of the contract; found is of what could "
            "be read."]


def found(title: str, record: dict[str, Any], kinds: dict[str, str], most: int = 50) -> list[str]:
    """The findings of these kinds, with file, line and the line itself."""
    findings = [finding for finding in record["findings"] if finding["kind"] in kinds]
    lines = [title] if findings else []
    for finding in findings[:most]:
        lines.append(f"- {place(finding)}{line(finding['text'])}")
        lines += [f"      {line(finding['source'])}"] if finding["source"].strip() else []
    if len(findings) > most:
        lines.append(f"- and {len(findings) - most} more")
    return [*lines, ""] if lines else []


def place(finding: dict[str, Any]) -> str:
    """file:line and a colon, as far as known."""
    at = line(finding["file"]) + (f":{finding['line']}" if finding["line"] else "")
    return f"{at}: " if at else ""


def number(value: float | None) -> str:
    """Four digits; nothing where there is no score."""
    return "none" if value is None else f"{value:.4f}"


# ---------------------------------------------------------------------------------- the batch

def write_batch(out: Path, records: list[dict[str, Any]], marks: list[Marks], rubric: Rubric,
                similarity: Sequence[tuple[str, str, float]] = ()) -> None:
    """Writes OUT/leaderboard.csv and OUT/index.html; the same records give the same bytes.

    marks: one for each record. similarity: two entries and how alike their programs are, 0 to 1.
    """
    both = sorted(zip(records, marks, strict=True), key=lambda pair: pair[0]["entry"])
    write_atomic(out / "leaderboard.csv", leaderboard(both, rubric).encode())
    write_atomic(out / "index.html", page(both, rubric, similarity).encode())


def leaderboard(both: list[tuple[dict[str, Any], Marks]], rubric: Rubric) -> str:
    """The table as CSV: nothing in it depends on the time or on the machine's speed."""
    def score(record: dict[str, Any], model: str, name: str, counts: str = rubric.counts) -> str:
        value = score_of(record, model, name, counts)
        return "" if value is None else f"{value:.4f}"

    writer = csv.writer(buffer := io.StringIO(), lineterminator="\n")
    writer.writerow(COLUMNS)
    for record, got in both:
        writer.writerow([
            cell(record["entry"]), state(record), score(record, "shipped", "classification", "strict"),
            score(record, "shipped", "classification", "found"), score(record, "retrained", "classification"),
            score(record, "shipped", "ssim"), score(record, "shipped", "one_minus_mse"),
            "" if record["parameters"] is None else record["parameters"], len(record["findings"]),
            got.late_days, f"{got.total:.2f}"])
    return buffer.getvalue()


def cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    text = line(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def page(both: list[tuple[dict[str, Any], Marks]], rubric: Rubric,
         similarity: Sequence[tuple[str, str, float]]) -> str:
    """index.html, with as much detail of each submission as fits into it."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters |= {"line": line, "digest": digest, "number": number}
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    entries = {record["entry"]: f"s{place}" for place, (record, _) in enumerate(both)}
    pairs = sorted(similarity, key=lambda pair: (-pair[2], *pair[:2]))[:PAIRS]
    totals, counted = [got.total for _, got in both], [scores(record, rubric.counts)[0][1] for record, _ in both]
    most = max((got.most for _, got in both), default=0.0)
    text = ""
    for details in DETAILS:                          # less and less, until the page is small enough
        strips: dict[str, str] = {}                  # originals, which most submissions share: picture -> id
        rows = [view(record, got, rubric.counts, details, strips) for record, got in both]
        text = template.render(
            rows=rows, strips=strips, short=details != DETAILS[0], rubric=rubric,
            names=[title.rpartition(", ")[2] for _, title in SCORES[rubric.part].values()],
            states=STATES, counts=Counter(row["state"] for row in rows),
            levels=sorted(Counter(record["level"] for record, _ in both).items()), level_words=LEVELS,
            histograms=[("Marks", bars(totals, most)),
                        (f"Classification score ({rubric.counts})", bars(counted, 1.0))],
            pairs=[(a, entries.get(a, ""), b, entries.get(b, ""), share) for a, b, share in pairs])
        if len(text.encode()) < PAGE:
            break
    return text


def digest(text: str) -> str:
    """A source of the Content-Security-Policy that allows exactly this style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def bars(values: Sequence[float | None], most: float) -> list[tuple[str, int]]:
    """A histogram of ten bars: the lower edge and the count; None is left out."""
    known = [value for value in values if value is not None]
    counts = Counter(min(9, max(0, int(10 * value / most))) if most else 0 for value in known)
    return [(f"{most * place / 10:g}", counts[place]) for place in range(10)]


def view(record: dict[str, Any], got: Marks, counts: str, details: tuple[int, int, int, int],
         strips: dict[str, str]) -> dict[str, Any]:
    """What the page shows of one submission; `strips` takes the pictures that it shares with others."""
    bad, good, images, findings = details
    kept = record["details"].get(model_of(record), {})
    pictures, labels = kept.get("reconstruction", {}), kept.get("classification", {})
    originals = strip(pictures.get("originals", [])[:images])
    return {
        "entry": line(record["entry"]), "state": state(record), "got": got,
        "faults": record["faults"], "source": record["source"], "parameters": record["parameters"],
        "counted": scores(record, counts), "strict": scores(record, "strict"), "found": scores(record, "found"),
        "pairs": score_pairs(record),
        "retrained": score_of(record, "retrained", "classification", counts), "differ": differing(record),
        "runs": [(name, run, block(run["tail"], good if run["state"] == "done" else bad))
                 for name, run in record["runs"].items()],
        "findings": [(place(finding), finding["text"], finding["source"])
                     for finding in record["findings"][:findings]],
        "number": len(record["findings"]), "table": labels if "classes" in labels else None,
        "originals": strips.setdefault(originals, f"o{len(strips)}") if originals else "",
        "images": strip(pictures.get("images", [])[:images]), "level": record["level"],
    }


def strip(images: list[list[list[int]]]) -> str:
    """Images of 28 x 28 grey levels 0..255 beside each other, as a PNG in a data URI; empty without images."""
    return png(b"".join(bytes(image[row]) for row in range(28) for image in images)) if images else ""


@lru_cache(1000)
def png(data: bytes) -> str:
    """Rows of grey levels, 28 of equal length, as a PNG of 16 levels in a data URI."""
    picture = Image.frombytes("P", (len(data) // 28, 28), data.translate(bytes((k + 8) // 17 for k in range(256))))
    picture.putpalette([17 * (place // 3) for place in range(48)])
    picture.save(buffer := io.BytesIO(), "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
