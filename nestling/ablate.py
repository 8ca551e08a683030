"""What each part is worth: the programs trained with one setting changed at a time, over several seeds.

    settings x seeds -> run folders -> a process each (here, or on Dask's workers) -> table.csv, table.md, table.svg

Runs that are done are kept, so the same command goes on where it was stopped; a run that fails is named with its reason
and the others go on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from bird import Mistake, write_atomic
from nestling import runs


@dataclass(frozen=True)
class Setting:
    """One row of an ablation: the dials that differ from the defaults, and in a few words what that means."""

    changes: dict[str, Any]
    what: str
    family: str = "learning"


def rates(default: float) -> dict[str, Setting]:
    """A grid of peak learning rates about the default."""
    return {f"lr-x{factor:g}": Setting({"lr": factor * default}, f"peak learning rate {factor * default:g}", "rate")
            for factor in (0.25, 0.5, 2.0, 4.0)}


BASELINE = "baseline"
AUGMENTATION = {"flip": 0.0, "upside_down": 0.0, "turn": 0.0, "zoom": 1.0, "stretch": 0.0, "colour": 0.0,
                "mix": 0.0}
BIRD = {
    BASELINE: Setting({}, "all defaults", "baseline"),
    "no-flip": Setting({"flip": 0.0}, "without mirror images", "augmentation"),
    "no-upside-down": Setting({"upside_down": 0.0}, "without half turns", "augmentation"),
    "no-turn": Setting({"turn": 0.0}, "without small turns", "augmentation"),
    "no-zoom": Setting({"zoom": 1.0}, "without crops and shifts", "augmentation"),
    "no-stretch": Setting({"stretch": 0.0}, "without changes of the aspect ratio", "augmentation"),
    "no-colour": Setting({"colour": 0.0}, "without changes of light and colour", "augmentation"),
    "mix": Setting({"mix": 0.5}, "with mixup also below 64 epochs", "augmentation"),
    "no-mix": Setting({"mix": 0.0}, "without mixup, also from 64 epochs on", "augmentation"),
    "no-augmentation": Setting(AUGMENTATION, "without any augmentation", "augmentation"),
    "no-weight-decay": Setting({"weight_decay": 0.0}, "without weight decay (L2)", "regularisation"),
    "no-dropout": Setting({"dropout": 0.0}, "without dropout", "regularisation"),
    "no-batch-norm": Setting({"batch_norm": False}, "without batch normalisation", "regularisation"),
    "no-smoothing": Setting({"smoothing": 0.0}, "without label smoothing", "regularisation"),
    "no-early-stop": Setting({"patience": 1.0}, "without early stopping: to the last planned epoch", "regularisation"),
    "no-averaging": Setting({"average": 0.0}, "without averaged weights", "regularisation"),
    "no-class-weights": Setting({"class_weights": False}, "without class weights", "learning"),
    "no-schedule": Setting({"schedule": "constant"}, "without a schedule: constant learning rate", "learning"),
}
VAE = {
    BASELINE: Setting({}, "all defaults", "baseline"),
    "plain": Setting({"latent_phase": False, "ssim": 0.0, "beta": 1.0}, "the assignment's loss alone, beta 1", "loss"),
    "no-latent-phase": Setting({"latent_phase": False}, "prior N(0, I) in place of the mixture", "latents"),
    "no-neighbours": Setting({"neighbours": 0}, "clusters learned without an image's neighbours", "latents"),
    "no-warping": Setting({"warping": False}, "clusters learned without warped copies", "latents"),
    "one-head": Setting({"heads": 1}, "one clustering learned in place of several", "latents"),
    "no-ssim": Setting({"ssim": 0.0}, "without the SSIM term", "loss"),
    "mse": Setting({"loss": "mse"}, "squared error in place of cross-entropy", "loss"),
    "conv": Setting({"encoder": "conv"}, "convolutional encoder", "network"),
    "no-weight-decay": Setting({"weight_decay": 0.0}, "without weight decay", "learning"),
    "no-averaging": Setting({"average": 0.0}, "without averaged weights", "learning"),
}
PATIENCE = "10s"                               # how long a Dask scheduler may take to answer
BUDGET = {"bird": 20.0, "vae": 6.0}            # minutes a run, where neither --budget nor --epochs is given


def settings_of(program: str) -> dict[str, Setting]:
    """Name -> setting, the baseline first; the grids are multiples of what the program's Config says today."""
    if program == "bird":
        import bird

        return BIRD | rates(bird.Config.lr)
    import vae

    betas = {f"beta-x{factor:g}": Setting({"beta": factor * vae.Config.beta}, f"beta {factor * vae.Config.beta:g}",
                                          "loss") for factor in (0.1, 10.0)}
    return VAE | betas


def chosen(program: str, only: str | None) -> dict[str, Setting]:
    """The settings named in `only` ("a,b"), with the baseline; all where it is None. Raises Mistake for others."""
    known = settings_of(program)
    names = [name.strip() for name in only.split(",") if name.strip()] if only else list(known)
    if unknown := [name for name in names if name not in known]:
        raise Mistake(f"--only names {unknown[0]!r}, which is no setting; there are {', '.join(known)}.")
    return {name: setting for name, setting in known.items() if name in names or name == BASELINE}


def seeds_of(text: str) -> list[int]:
    """ "0,1,2" -> [0, 1, 2]. Raises Mistake for anything but different whole numbers from 0 on."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise Mistake(f"--seeds is {text!r}; give different whole numbers such as 0,1,2.")
    return seeds


def config_of(program: str, changes: dict[str, Any], **dials: Any) -> Any:
    """A bird.Config or vae.Config. Raises Mistake if the program has no such dial or refuses its value."""
    try:
        if program == "bird":
            import bird

            return bird.Config(**changes, **dials)
        import vae

        return vae.Config(**changes, **dials)
    except (TypeError, ValueError) as error:
        raise Mistake(f"{program}.py refuses the setting: {error}.") from error


def check_data(program: str, data: dict[str, str]) -> None:
    """Raises Mistake now for data that every run would stumble over."""
    if program == "bird":
        import bird

        bird.find_training_images(Path(data["dataset"]))
    else:
        import vae

        vae.DigitDataset(data["train"])
        for name in ("val", "score_on"):
            vae.DigitDataset(data[name]).examples()


def ablate(program: str, data: dict[str, str], out: Path, *, seeds: list[int], only: str | None = None,
           budget: float | None = None, epochs: int | None = None, jobs: int = 1,
           dask: str | None = None) -> list[dict[str, Any]]:
    """Carries out all runs that are not done yet and writes the tables; returns the rows (see `table`).

    data: absolute paths by name, {"dataset"} or {"train", "val", "score_on"}. Raises Mistake if no run went well.
    """
    settings = chosen(program, only)
    dials = {"epochs": epochs, "budget": budget if budget is not None else BUDGET[program]}
    check_data(program, data)
    asked = {(name, seed): runs.ask(out / name / f"seed-{seed}", program, name,
                                    config_of(program, setting.changes, seed=seed, **dials), data)
             for seed in seeds for name, setting in settings.items()}
    todo = {key: run for key, run in asked.items() if not runs.result_of(run)}
    limit = f"{epochs} epochs" if epochs else f"at most {dials['budget']:g} minutes"
    print(f"{len(settings)} settings x {len(seeds)} seeds: {len(asked) - len(todo)} runs are done, {len(todo)} to do, "
          f"{limit} each", flush=True)
    carried = on_dask(todo, dask) if dask else as_processes(todo, jobs)
    for done, ((name, seed), reason) in enumerate(carried, start=1):
        run = todo[name, seed]
        result = runs.result_of(run)
        word = f"score {result['score']:.4f}, {result['minutes']:.1f} minutes" if result else f"failed: {reason}"
        print(f"{done}/{len(todo)} {name} seed {seed}: {word}", flush=True)
        write_tables(program, out)                   # after each run, so that a half-done ablation can be read
    rows = write_tables(program, out)
    if not any(row["runs"] for row in rows):
        raise Mistake(f"no run went well; the first failed with: {rows[0]['failed'] or 'no reason given'} "
                      f"(log.txt in {out} has more).")
    return rows


def as_processes(todo: dict[tuple[str, int], Path], jobs: int) -> Iterator[tuple[tuple[str, int], str | None]]:
    """Carries the runs out, `jobs` at a time, on this machine; yields (setting, seed) and the reason of a failure."""
    if jobs < 1:
        raise Mistake(f"--jobs is {jobs}; it must be at least 1.")
    pool, threads = ThreadPoolExecutor(jobs), max(1, torch.get_num_threads() // jobs)
    futures = {pool.submit(runs.execute, str(run), threads): key for key, run in todo.items()}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:                                         # after Ctrl-C: the runs that have begun save and end
        pool.shutdown(cancel_futures=True)


def on_dask(todo: dict[tuple[str, int], Path], address: str) -> Iterator[tuple[tuple[str, int], str | None]]:
    """The same on the workers of a Dask scheduler, which must see the run folders and the data at the same paths."""
    try:
        from distributed import Client
        from distributed import as_completed as completed
    except ImportError as error:
        raise Mistake("--dask needs Dask's distributed scheduler: pip install 'nestling[dask]'.") from error
    try:
        client = Client(address, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise Mistake(f"no Dask scheduler answers at {address}; start one with `dask scheduler`.") from error
    with client:
        futures = {client.submit(runs.execute, str(run), pure=False): key for key, run in todo.items()}
        for future in completed(futures):
            yield futures[future], future.result() if future.status == "finished" else str(future.exception())


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------

def table(program: str, out: Path) -> list[dict[str, Any]]:
    """One row a setting that has a folder in `out`, the baseline first.

    Each: setting, what, family, runs (that are whole), seeds, scores (one a run), score (their mean), spread (their
    standard deviation; None for one run), ssim (vae), minutes, difference (mean over the seeds that the baseline has
    too), noise (the spread of the difference of two runs: root of both variances' sum), beyond (is the difference
    larger than that; None if not known), failed (reasons). Raises Mistake if `out` holds no run.
    """
    known = settings_of(program)
    found = {name: results_of(out / name) for name in known if (out / name).is_dir()}
    if not found:
        raise Mistake(f"{out} holds no runs of {program}; name the folder that `nestling ablate {program}` wrote.")
    base = found.get(BASELINE, ({}, []))[0]
    return [row_of(name, known[name], done, failed, base) for name, (done, failed) in found.items()]


def results_of(folder: Path) -> tuple[dict[int, dict], list[str]]:
    """The results of one setting by seed, and the reasons of the runs that failed."""
    done, failed = {}, []
    for run in sorted(folder.glob("seed-*"), key=lambda run: (len(run.name), run.name)):
        if result := runs.result_of(run):
            done[int(run.name.removeprefix("seed-"))] = result
        elif reason := runs.failure_of(run):
            failed.append(f"{run.name}: {reason}")
    return done, failed


def row_of(name: str, setting: Setting, done: dict[int, dict], failed: list[str], base: dict[int, dict]) -> dict:
    """One row of `table`, from results by seed."""
    scores = {seed: result["score"] for seed, result in done.items()}
    shared = [seed for seed in scores if seed in base] if name != BASELINE else []
    spread, base_spread = spread_of(scores.values()), spread_of(result["score"] for result in base.values())
    difference = mean(scores[seed] - base[seed]["score"] for seed in shared) if shared else None
    noise = beyond = None
    if difference is not None and spread is not None and base_spread is not None:
        noise = (spread**2 + base_spread**2) ** 0.5
        beyond = abs(difference) > noise
    return {"setting": name, "what": setting.what, "family": setting.family, "runs": len(done), "seeds": list(scores),
            "scores": list(scores.values()), "score": mean_of(scores.values()), "spread": spread,
            "ssim": mean_of(result["ssim"] for result in done.values() if "ssim" in result),
            "minutes": mean_of(result["minutes"] for result in done.values()), "difference": difference,
            "noise": noise, "beyond": beyond, "failed": failed}


def mean_of(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    values = list(values)
    return mean(values) if values else None


def spread_of(values: Iterable[float]) -> float | None:
    """The standard deviation (n - 1); None for fewer than two values."""
    values = list(values)
    return stdev(values) if len(values) > 1 else None


COLUMNS = ("setting", "what", "runs", "score", "spread", "ssim", "difference", "noise", "beyond", "minutes", "failed")
VERDICT = {True: "yes", False: "no", None: "not known"}


def write_tables(program: str, out: Path) -> list[dict[str, Any]]:
    """Writes OUT/table.csv, table.md and table.svg from the runs in OUT; returns the rows."""
    rows = table(program, out)
    columns = [column for column in COLUMNS if column != "ssim" or program == "vae"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([plain(row[column]) for column in columns] for row in rows)
    write_atomic(out / "table.csv", text.getvalue().encode())
    write_atomic(out / "table.md", markdown(program, out, rows).encode())
    write_atomic(out / "table.svg", picture(rows))
    return rows


def plain(value: Any) -> str:
    """A cell of the CSV: floats with six decimals, empty for None."""
    if isinstance(value, float):
        return f"{value:.6f}"
    return "; ".join(value) if isinstance(value, list) else {None: "", True: "yes", False: "no"}.get(value, str(value))


def measured_on(program: str, out: Path) -> str:
    """A sentence: what the scores of the runs in `out` are."""
    asked = runs.read_json(next(iter(sorted(out.glob("*/seed-*/config.json")))))
    where = (f"the labelled digits of {Path(asked['data']['score_on']).name}" if program == "vae" else
             "the validation photos of each run's own split")
    return f"Score: (macro F1 + micro F1) / 2 on {where}."


def markdown(program: str, out: Path, rows: list[dict]) -> str:
    """The table for people."""
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    ssim = program == "vae"
    lines = [f"# Ablation of {program}.py", "", measured_on(program, out),
             "± is the standard deviation over seeds. A difference is beyond the noise where it is larger than the "
             "root of the sum of the setting's and the baseline's variances over seeds.", "",
             f"| setting | what changes | runs | score | {'SSIM | ' * ssim}difference | beyond the noise | minutes |",
             f"|---|---|---:|---:|{'---:|' * ssim}---:|---|---:|"]
    for row in rows:
        score = number(row["score"], ".4f") + (f" ± {row['spread']:.4f}" if row["spread"] is not None else "")
        verdict = VERDICT[row["beyond"]] if row["difference"] is not None else ""
        lines.append(f"| {row['setting']} | {row['what']} | {row['runs']} | {score} | "
                     f"{number(row['ssim'], '.4f') + ' | ' if ssim else ''}{number(row['difference'], '+.4f')} | "
                     f"{verdict} | {number(row['minutes'], '.1f')} |")
    failed = [f"- {row['setting']}, {reason}" for row in rows for reason in row["failed"]]
    return "\n".join([*lines, *(["", "Failed:", "", *failed] if failed else []), ""])


def picture(rows: list[dict]) -> bytes:
    """The scores as an SVG: a dot a run, a bar from the baseline's mean to each setting's."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["runs"]]
    with matplotlib.rc_context({"svg.hashsalt": "nestling", "font.size": 9}):
        figure = Figure(figsize=(7, 0.9 + 0.26 * len(shown)), layout="constrained")
        axes = figure.subplots()
        base = next((row["score"] for row in shown if row["setting"] == BASELINE), None)
        for y, row in enumerate(shown):
            colour = "#222222" if base is None or row["setting"] == BASELINE else (
                "#1b7837" if row["score"] > base else "#b2182b")
            axes.barh(y, row["score"] - (base or 0), height=0.6, left=base or 0, color=colour,
                      alpha=0.6 if row["beyond"] else 0.25)
            axes.plot(row["scores"], [y] * len(row["scores"]), "o", color=colour, markersize=3.5)
        if base is not None:
            axes.axvline(base, color="#222222", linewidth=0.8)
        axes.set(yticks=range(len(shown)), yticklabels=[row["what"] for row in shown], xlabel="score")
        axes.invert_yaxis()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
