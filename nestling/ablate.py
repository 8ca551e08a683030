"""What each part is worth: the programs trained with one setting changed at a time, over several seeds.

    settings x seeds -> run folders -> a process each (here or on Dask) -> table.csv, table.md, table.svg

Runs that are done are kept, so the same command resumes where it was stopped; a run that fails is named
with its reason, and the others go on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import bird
import vae
from nestling import runs
from nestling.explain import draw
from nestling.files import UserError, read_json, say, write_atomic


@dataclass(frozen=True)
class Setting:
    """One row of an ablation: the fields of Config that differ from the defaults, and what that means."""

    changes: dict[str, Any]
    what: str


@dataclass(frozen=True)
class Program:
    """What an ablation needs to know of bird.py or vae.py; runs.TRAIN says how each is trained and scored."""

    config: type
    check: Callable[[dict[str, Path]], Any]          # of data by name: fails where every run would
    minutes: float                                   # a run, where neither --budget nor --epochs is given
    scored_on: str
    settings: dict[str, Setting]


def check_digits(data: dict[str, Path]) -> None:
    """Fails for val or score_on without labels."""
    for name, path in data.items():
        if vae.DigitDataset(path).labels is None and name != "train":
            raise UserError(f"{path} holds no array `labels`; name labelled digits.")


BASELINE = "baseline"
PLAIN_PHOTOS = {"hflip": 0.0, "vflip": 0.0, "degrees": 0.0, "min_scale": 1.0, "log_ratio": 0.0, "jitter": 0.0,
                "mixup": 0.0}
BIRD = Program(bird.Config, lambda data: bird.find_images(data["dataset"]), 20.0, "the validation photos", {
    BASELINE: Setting({}, "all defaults"),
    "no-hflip": Setting({"hflip": 0.0}, "without horizontal flips"),
    "no-vflip": Setting({"vflip": 0.0}, "without vertical flips"),
    "no-rotation": Setting({"degrees": 0.0}, "without rotations"),
    "no-crop": Setting({"min_scale": 1.0}, "without random crops"),
    "no-aspect-ratio": Setting({"log_ratio": 0.0}, "without changes of the aspect ratio"),
    "no-jitter": Setting({"jitter": 0.0}, "without colour jitter"),
    "no-mixup": Setting({"mixup": 0.0}, "without mixup"),
    "no-augmentation": Setting(PLAIN_PHOTOS, "without any augmentation"),
    "no-weight-decay": Setting({"weight_decay": 0.0}, "without weight decay (L2)"),
    "no-dropout": Setting({"dropout": 0.0}, "without dropout"),
    "no-batch-norm": Setting({"batch_norm": False}, "without batch normalisation"),
    "no-label-smoothing": Setting({"label_smoothing": 0.0}, "without label smoothing"),
    # patience 1: all planned epochs; the model saved is still that of the lowest validation loss
    "no-early-stopping": Setting({"patience": 1.0}, "without early stopping: to the last epoch"),
    "no-ema": Setting({"ema_decay": 0.0}, "without averaged weights (EMA)"),
    "no-class-weights": Setting({"class_weights": False}, "without class weights"),
    "no-schedule": Setting({"schedule": "constant"}, "without a schedule: constant learning rate"),
})
VAE = Program(vae.Config, check_digits, 6.0, "the labelled digits of {score_on}", {
    BASELINE: Setting({}, "all defaults"),
    "plain": Setting({"clusters": False, "ssim": 0.0, "beta": 1.0}, "the assignment's loss alone, beta 1"),
    "no-clusters": Setting({"clusters": False}, "prior N(0, I) in place of the clusters' mixture"),
    "no-neighbours": Setting({"neighbours": 0}, "clusters learned without neighbours"),
    "no-warp": Setting({"warp": False}, "clusters learned without warped images"),
    "one-head": Setting({"heads": 1}, "one sub-head in place of several"),
    "no-ssim": Setting({"ssim": 0.0}, "without the SSIM term"),
    "mse": Setting({"recon": "mse"}, "squared error in place of cross-entropy"),
    "no-weight-decay": Setting({"weight_decay": 0.0}, "without weight decay (L2)"),
    "no-ema": Setting({"ema_decay": 0.0}, "without averaged weights (EMA)"),
})
PROGRAMS = {"bird": BIRD, "vae": VAE}


def settings_of(program: str) -> dict[str, Setting]:
    """Name -> setting, the baseline first."""
    return PROGRAMS[program].settings


def ablate(name: str, data: dict[str, Path], out: Path, *, seeds: int = 3, only: str | None = None,
           budget: float | None = None, epochs: int | None = None, jobs: int = 1,
           dask: str | None = None) -> list[dict[str, Any]]:
    """Does all runs that are not done yet and writes the tables; returns the rows (see `table`).

    name: bird or vae. data: {"dataset"} or {"train", "val", "score_on"}.
    """
    program = PROGRAMS[name]
    known, minutes = program.settings, program.minutes if budget is None else budget
    names = [BASELINE, *only.replace(" ", "").split(",")] if only else list(known)
    if unknown := set(names) - set(known):
        raise UserError(f"--only names {min(unknown)!r}, which is no setting; there are {', '.join(known)}.")
    settings = {setting: known[setting] for setting in known if setting in names}
    program.check(data)
    asked, todo = {name: str(path.absolute()) for name, path in data.items()}, {}
    for seed in range(seeds):
        for setting in settings:
            config = program.config(**settings[setting].changes, seed=seed, epochs=epochs, budget=minutes)
            run = runs.ask(out.absolute() / setting / f"seed-{seed}", name, setting, config, asked)
            if not runs.result_of(run):
                todo[setting, seed] = run
    say(f"{len(settings)} settings x {seeds} seeds: {len(settings) * seeds - len(todo)} runs are done, "
        f"{len(todo)} to do")
    threads = None if dask else max(1, torch.get_num_threads() // jobs)
    with runs.workers(jobs, dask) as pool:
        futures = {pool.submit(runs.execute, str(run), threads): key for key, run in todo.items()}
        for done, future in enumerate(as_completed(futures), start=1):
            setting, seed = futures[future]
            outcome = f"failed: {future.exception() or future.result()}"
            if result := runs.result_of(todo[setting, seed]):
                outcome = f"score {result['score']:.4f}, {result['minutes']:.1f} minutes"
            say(f"{done}/{len(todo)} {setting} seed {seed}: {outcome}")
            write_tables(name, out)                  # after each run: a half-done ablation can be read
    rows = write_tables(name, out)
    if not any(row["runs"] for row in rows):
        reason = next((row["failed"][0] for row in rows if row["failed"]), "no reason given")
        raise UserError(f"no run went well; the first failed with: {reason} (log.txt in {out} has more).")
    say(f"{out}/table.csv, table.md and table.svg hold the result")
    return rows


# ------------------------------------------------------ tables

def table(program: str, out: Path) -> list[dict[str, Any]]:
    """One row a setting that has a run in `out`, the baseline first.

    Each: setting, what, runs (that are done), seeds, scores (one a run), score (their mean), spread (their
    standard deviation; None for one run), ssim (vae), minutes, difference (mean over the seeds that the
    baseline has too), noise (the standard deviation of the difference of two runs: root of the sum of both
    variances), beyond (whether the difference is larger than that; None if unknown), failed (reasons).
    """
    known = settings_of(program)
    found = {name: results_of(out / name) for name in known if any((out / name).glob("seed-*/config.json"))}
    if not found:
        raise UserError(f"{out} holds no runs of {program}; name the folder of `nestling ablate {program}`.")
    base = found.get(BASELINE, ({}, []))[0]
    return [row_of(name, known[name], done, failed, base) for name, (done, failed) in found.items()]


def results_of(folder: Path) -> tuple[dict[int, dict], list[str]]:
    """The results of one setting by seed, and the reasons of the runs that failed."""
    done, failed = {}, []
    for seed in sorted(int(run.name.removeprefix("seed-")) for run in folder.glob("seed-*")):
        run = folder / f"seed-{seed}"
        if result := runs.result_of(run):
            done[seed] = result
        elif (run / "failed.txt").exists():
            failed.append(f"seed {seed}: {(run / 'failed.txt').read_text().strip()}")
    return done, failed


def row_of(name: str, setting: Setting, done: dict[int, dict], failed: list[str],
           base: dict[int, dict]) -> dict[str, Any]:
    """One row of `table`, from results by seed."""
    scores = [result["score"] for result in done.values()]
    spread, base_spread = (stdev(values) if len(values) > 1 else None
                           for values in (scores, [result["score"] for result in base.values()]))
    difference = noise = beyond = None
    if name != BASELINE:
        difference = mean_of(done[seed]["score"] - base[seed]["score"] for seed in done if seed in base)
    if difference is not None and spread is not None and base_spread is not None:
        noise = (spread**2 + base_spread**2) ** 0.5
        beyond = abs(difference) > noise
    return {"setting": name, "what": setting.what, "runs": len(done), "seeds": list(done), "scores": scores,
            "score": mean_of(scores), "spread": spread,
            "ssim": mean_of(result["ssim"] for result in done.values() if "ssim" in result),
            "minutes": mean_of(result["minutes"] for result in done.values()), "difference": difference,
            "noise": noise, "beyond": beyond, "failed": failed}


def mean_of(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    values = list(values)
    return mean(values) if values else None


COLUMNS = {"setting": "", "what": "", "runs": "d", "score": ".4f", "spread": ".4f", "ssim": ".4f",
           "difference": "+.4f", "noise": ".4f", "beyond": "", "minutes": ".1f", "failed": ""}


def write_tables(program: str, out: Path) -> list[dict[str, Any]]:
    """Writes OUT/table.csv, table.md and table.svg from the runs in OUT; returns the rows."""
    rows = table(program, out)
    columns = [column for column in COLUMNS if any(row[column] not in (None, []) for row in rows)]
    cells = [columns, *([cell(row[column], COLUMNS[column]) for column in columns] for row in rows)]
    csv.writer(text := io.StringIO(), lineterminator="\n").writerows(cells)
    lines = [f"| {' | '.join(line)} |" for line in cells]
    lines.insert(1, "|---" * len(columns) + "|")
    write_atomic(out / "table.csv", text.getvalue().encode())
    write_atomic(out / "table.md", "\n".join([
        f"# Ablation of {program}.py", "", measured_on(program, out),
        "Spread: standard deviation over seeds. Noise: root of the sum of the setting's and the baseline's",
        "variances; a difference is beyond the noise where it is larger.", "", *lines, ""]).encode())
    draw.ablation(rows, out / "table.svg")
    return rows


def cell(value: Any, form: str) -> str:
    """One value of a table as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "; ".join(value) if isinstance(value, list) else "" if value is None else format(value, form)


def measured_on(program: str, out: Path) -> str:
    """A sentence: what the scores of the runs in `out` are."""
    data = read_json(min(out.glob("*/seed-*/config.json")), "data")["data"]
    where = PROGRAMS[program].scored_on.format_map({name: Path(path).name for name, path in data.items()})
    return f"Score: (macro F1 + micro F1) / 2 on {where}."
