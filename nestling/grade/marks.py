"""From a record of what ran and a rubric to marks, each with a sentence that says how it came about.

Nothing is run and nothing is stored: another rubric, or another due date, gives other marks at once.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nestling.files import UserError
from nestling.grade.facts import DEVIATIONS

DEFAULT = Path(__file__).with_name("rubric.toml")
SCORES = {                                 # of each part: the score, the run that gives it, its name
    "bird": {"classification": ("test", "Classification")},
    "vae": {"classification": ("classify", "Classification"), "ssim": ("reconstruct", "Reconstruction, SSIM"),
            "one_minus_mse": ("reconstruct", "Reconstruction, 1 - MSE")},
}
STOPPED = ("time", "memory", "processes", "disk", "output")          # states: the grader ended the run
CHOICES = {"counts": ("strict", "found"), "visibility": ("hidden", "after_due_date", "after_published", "visible")}
NUMBERS = {"stopped_percent": 99, "tolerance": 1, "late_percent": 100, "late_days": 1000}   # 0 up to these
MOST = 10_000                              # marks that anything may give or cost


@dataclass(frozen=True)
class Scale:
    """Marks that rise from 0 at the score `floor` to all at `full`."""

    marks: float
    floor: float
    full: float

    def __call__(self, score: float) -> float:
        return self.marks * min(1.0, max(0.0, (score - self.floor) / (self.full - self.floor)))


@dataclass(frozen=True)
class Rubric:
    """What a submission of one part can get and lose; rubric.toml says what each key means."""

    part: str                              # bird or vae
    counts: str
    stopped_percent: float
    tolerance: float
    due: datetime | None
    late_percent: float
    late_days: float
    visibility: str
    scales: dict[str, Scale]               # of the scores in SCORES
    reproducibility: float
    form: float
    deviations: dict[str, float]


@dataclass(frozen=True)
class Item:
    """Some of the marks, and one sentence on how they came about."""

    name: str
    score: float
    most: float
    why: str


@dataclass(frozen=True)
class Marks:
    """All marks of a submission; `late` says in words how late it was and what that costs."""

    items: tuple[Item, ...]
    late_days: int
    penalty: float
    total: float
    most: float
    late: str


# ------------------------------------------------------------------------------- the rubric

def read_rubric(path: Path | None, part: str) -> Rubric:
    """The rubric for bird or vae; None: the default one, which also gives whatever a file leaves out.

    Raises UserError, naming the file and the key, where a key or a value is wrong.
    """
    values = read_toml(DEFAULT)
    if path is not None:
        values = merged(values, read_toml(path), path)
    rubrics = {name: build(values, name, path or DEFAULT) for name in SCORES}         # mistakes in either show
    return rubrics[part]


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a rubric in TOML.") from error
    except ValueError as error:
        raise UserError(f"{path} is no valid TOML ({error}); correct it.") from error


def merged(old: dict[str, Any], new: dict[str, Any], path: Path, at: str = "") -> dict[str, Any]:
    """The old tables with the new values; each new key must be among the old ones."""
    out = dict(old)
    for key, value in new.items():
        if key not in old:
            raise UserError(f"{path} has an unknown key {at}{key}; the known ones there are {', '.join(old)}.")
        if isinstance(old[key], dict):
            if not isinstance(value, dict):
                raise UserError(f"{path}: {at}{key} is {value!r}; give a table of {', '.join(old[key])}.")
            value = merged(old[key], value, path, f"{at}{key}.")
        out[key] = value
    return out


def build(values: dict[str, Any], part: str, path: Path) -> Rubric:
    """One part's rubric of checked values."""
    def number(key: str, value: Any, most: float = MOST) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise UserError(f"{path}: {key} is {value!r}; give a number from 0 to {most}.")
        return value

    for key, choices in CHOICES.items():
        if values[key] not in choices:
            raise UserError(f"{path}: {key} is {values[key]!r}; give one of {', '.join(choices)}.")
    section, scales = values[part], {}
    for name in SCORES[part]:
        scale = Scale(**{key: number(f"{part}.{name}.{key}", section[name][key], MOST if key == "marks" else 1)
                         for key in ("marks", "floor", "full")})
        if scale.floor >= scale.full:
            raise UserError(f"{path}: {part}.{name}.floor is {scale.floor}; give less than full, {scale.full}.")
        scales[name] = scale
    form = number(f"{part}.form", section["form"])
    costs = {kind: number(f"deviations.{kind}", values["deviations"][kind]) for kind in DEVIATIONS}
    return Rubric(part=part, counts=values["counts"], visibility=values["visibility"], scales=scales, form=form,
                  reproducibility=number(f"{part}.reproducibility", section["reproducibility"]),
                  deviations=costs, due=due(values["due"], path),
                  **{key: number(key, values[key], most) for key, most in NUMBERS.items()})


def due(value: Any, path: Path) -> datetime | None:
    """A TOML date and time, or a string of ISO 8601, with its offset from UTC; None for an empty string."""
    if value == "":
        return None
    try:
        date = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        date = None
    if date is None or date.tzinfo is None:
        raise UserError(f"{path}: due is {str(value)!r}; give date, time and offset, as in "
                        "2026-11-20T23:59:00+05:30.")
    return date


# -------------------------------------------------------------------------------- the marks

def marks(record: dict[str, Any], rubric: Rubric) -> Marks:
    """Marks for one record; a pure function. Faults give none; a run that was stopped never gives all."""
    items = [*(scored(record, rubric, name) for name in rubric.scales), reproduced(record, rubric),
             formed(record, rubric)]
    if record["faults"]:
        items = [Item(item.name, 0.0, item.most, " ".join(record["faults"])) for item in items]
    reached = sum(item.score for item in items)
    days, share, words = lateness(record["submitted"], rubric)
    penalty = round(reached * share, 2)
    return Marks(tuple(items), days, penalty, round(reached - penalty, 2), sum(item.most for item in items), words)


def kind_of(name: str) -> str:
    """Where a record keeps this score."""
    return "classification" if name == "classification" else "reconstruction"


def missing(record: dict[str, Any], model: str, name: str) -> str:
    """Why there was nothing to score, in the words of whoever looked; empty where there was."""
    details = record["details"].get(model, {})
    return details.get("missing") or details.get(kind_of(name), {}).get("missing", "")


def score_of(record: dict[str, Any], model: str, name: str, counts: str) -> float | None:
    """One score of the shipped or retrained model; None where nothing was written that could be scored."""
    scores = record["scores"].get(model, {}).get(kind_of(name), {}).get(counts, {})
    value = scores.get("score" if name == "classification" else name)
    return None if value is None or missing(record, model, name) or not math.isfinite(value) else value


def runs_of(record: dict[str, Any], model: str) -> dict[str, dict[str, Any]]:
    """The runs with the shipped model, which come before the training, or with the retrained one."""
    names = list(record["runs"])
    cut = names.index("train") if "train" in names else len(names)
    return {name: record["runs"][name] for name in (names[:cut] if model == "shipped" else names[cut:])}


def runs_for(record: dict[str, Any], model: str, name: str) -> dict[str, dict[str, Any]]:
    """Those among them that a score comes from."""
    verb = SCORES[record["part"]][name][0]
    return {title: run for title, run in runs_of(record, model).items() if verb in title or title == "train"}


def model_of(record: dict[str, Any]) -> str:
    """The model whose scores count: the shipped one, or the retrained one where none was shipped."""
    return "shipped" if runs_of(record, "shipped") or not record["runs"] else "retrained"


def reason(record: dict[str, Any], model: str, name: str) -> str:
    """Why there is no score: the first run for it that did not end well, or what it lacks."""
    for title, run in runs_for(record, model, name).items():
        if run["state"] == "grader":
            return f"{title}: the grader failed, not the submission; grade it again ({run['reason']})"
        if run["state"] != "done":
            return told(title, run)
    return missing(record, model, name).rstrip(".") or "nothing was run"


def told(title: str, run: dict[str, Any]) -> str:
    """The run and its reason."""
    return f"{title}: {run['reason'].rstrip('.') or run['state']}"


def stopped(runs: dict[str, dict[str, Any]]) -> str:
    """What stopped the first of these runs that was stopped; empty where none was."""
    return next((told(title, run) for title, run in runs.items() if run["state"] in STOPPED), "")


def kept(score: float, why: str, runs: dict[str, dict[str, Any]], rubric: Rubric) -> tuple[float, str]:
    """The marks and the sentence; less of them where a run was stopped."""
    if end := stopped(runs):
        score *= rubric.stopped_percent / 100
        why += f"; the run was stopped ({end}), so {rubric.stopped_percent:g} % of it is kept"
    return round(score, 2), f"{why}."


def scored(record: dict[str, Any], rubric: Rubric, name: str) -> Item:
    """The marks for one score, between its floor and its full score."""
    scale, model, title = rubric.scales[name], model_of(record), SCORES[rubric.part][name][1]
    value = score_of(record, model, name, rubric.counts)
    if value is None:
        return Item(title, 0.0, scale.marks, f"No score: {reason(record, model, name)}.")
    why = (f"The {model} model's score ({rubric.counts}) is {value:.4f}, where {scale.floor:g} gives no marks and "
           f"{scale.full:g} gives all")
    score, why = kept(scale(value), why, runs_for(record, model, name), rubric)
    return Item(title, score, scale.marks, why)


def reproduced(record: dict[str, Any], rubric: Rubric) -> Item:
    """All marks where no score of the retrained model lies farther from the shipped one's than allowed.

    None where no score of the shipped model earns anything: a program that gives constants repeats itself too.
    """
    title, most, runs = "Reproducibility", rubric.reproducibility, runs_of(record, "retrained")
    if not runs and not record["faults"]:
        return Item(title, 0.0, 0.0, "The model was not trained anew, so this counts neither way.")
    pairs, earns = {}, False
    for name, scale in rubric.scales.items():
        old, new = (score_of(record, model, name, rubric.counts) for model in ("shipped", "retrained"))
        if old is None or new is None:
            model = "shipped" if old is None else "retrained"
            why = f"The {model} model has no score to compare with: {reason(record, model, name)}."
            return Item(title, 0.0, most, why)
        pairs[SCORES[rubric.part][name][1]] = (old, new)
        earns |= scale(old) > 0
    if not earns:
        return Item(title, 0.0, most, "No score of the shipped model earns marks: there is nothing to reproduce.")
    worst, (old, new) = max(pairs.items(), key=lambda item: abs(item[1][0] - item[1][1]))
    gap = round(abs(old - new), 6)
    why = (f"{worst}: {new:.4f} when trained anew and {old:.4f} as shipped, which differ by {gap:.4f}, "
           f"{'more than' if gap > rubric.tolerance else 'within'} the tolerance of {rubric.tolerance:g}")
    score, why = kept(0.0 if gap > rubric.tolerance else most, why, runs, rubric)
    return Item(title, score, most, why)


def formed(record: dict[str, Any], rubric: Rubric) -> Item:
    """The marks for form, less what each kind of deviation costs, once."""
    kinds = {finding["kind"] for finding in record["findings"]}
    costs = {kind: cost for kind, cost in rubric.deviations.items() if kind in kinds}
    score = round(max(0.0, rubric.form - sum(costs.values())), 2)
    why = "; ".join(f"{DEVIATIONS[kind]} ({f'-{cost:g}' if cost else 'free'})" for kind, cost in costs.items())
    return Item("Form", score, rubric.form, f"Deviations: {why}." if why else "As the contract asks.")


def lateness(submitted: str | None, rubric: Rubric) -> tuple[int, float, str]:
    """Days begun after the due date, the share of the marks that they cost, and both in words."""
    if rubric.due is None:
        return 0, 0.0, "No due date is set."
    if submitted is None:
        return 0, 0.0, "When it was submitted is not known, so nothing is taken for lateness."
    date = datetime.fromisoformat(submitted)
    days = math.ceil(((date if date.tzinfo else date.replace(tzinfo=UTC)) - rubric.due) / timedelta(days=1))
    if days <= 0:
        return 0, 0.0, "Submitted in time."
    late = f"{days} day{'s' * (days > 1)} late"
    if days > rubric.late_days:
        return days, 1.0, f"{late}, more than the {rubric.late_days:g} of the rubric: no marks are left."
    percent = min(100, days * rubric.late_percent)
    return days, percent / 100, f"{late}: {percent:g} % of the marks are lost."
