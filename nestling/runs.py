"""One run = one folder: what was asked for, what it ran on, what came out.

    RUN/config.json             program, setting, seed, every dial, the data
    RUN/environment.json        versions, hardware, threads, date
    RUN/bird.pth                the model (vae.pth and gmm_params.pkl for digits)
    RUN/bird.history.jsonl      one line an epoch, as bird.py and vae.py write it
    RUN/log.txt                 all that the training printed
    RUN/result.json             the scores; the last file to be written, so where it is the run is whole
    RUN/failed.txt              in its place, where the run failed: the reason

`python -m nestling.runs RUN` trains what RUN/config.json asks for; a run that was killed goes on where it was. Torch is
imported in that process only, so that those who start runs (Dask's workers, for one) stay small.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nestling.data.folder import mistake

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn", "scikit-image")


def write_json(path: Path, value: Any) -> None:
    """Writes plain values, whole or not at all. Raises Mistake where that cannot be done."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(json.dumps(value, indent=1) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise mistake(f"{path} cannot be written ({error.strerror}); free some space or name another place.") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises Mistake if it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise mistake(f"{path} cannot be read as JSON; remove it and make it anew.") from error


def history_of(model: Path) -> list[dict]:
    """The lines of `<model>.history.jsonl`, one an epoch; none where there is no such file, or it is empty.

    The shortest trainings of vae.py end before a first epoch and leave an empty one. Raises Mistake for a
    file that cannot be read as one JSON object a line.
    """
    path = model.with_suffix(".history.jsonl")
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        if not all(isinstance(row, dict) and "epoch" in row for row in rows):
            raise ValueError("a line is no epoch")
        return rows
    except (OSError, ValueError) as error:
        raise mistake(f"{path} is not a history that can be read, one JSON line an epoch; copy it anew or train "
                      "again.") from error


def model_of(run: Path, program: str) -> Path:
    """The model file of a run: `run` itself if it is a file, else `<program>.pth` in the folder. Raises Mistake."""
    path = run / f"{program}.pth" if run.is_dir() else run
    if not path.is_file():
        raise mistake(f"{path} does not exist; name the model that `{program}.py ... train` wrote, or its folder.")
    return path


def environment() -> dict[str, Any]:
    """What decides a run's speed and bits besides its settings: versions, hardware, threads, and the date (UTC)."""
    import torch

    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"python": platform.python_version(), "system": platform.platform(), "processor": processor(), "gpu": gpu,
            "cores": os.cpu_count(), "threads": torch.get_num_threads(), "versions": found,
            "date": datetime.now(UTC).isoformat(timespec="seconds")}


def processor(told: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, family and model as Linux tells them, or what Python knows.

    A name alone may stand for several generations of unlike speed, as "AMD EPYC" does in a virtual machine.
    """
    try:
        first = told.read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    if not {"model name", "cpu family", "model"} <= facts.keys():       # not Linux, or not x86
        return platform.processor() or platform.machine()
    return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"


# ---------------------------------------------------------------------------------------------------------------------
# In a process of its own: train and measure
# ---------------------------------------------------------------------------------------------------------------------

def carry_out(run: Path) -> None:
    """Trains what RUN/config.json asks for and writes the result. Raises Mistake as the programs do."""
    asked = read_json(run / "config.json")
    write_json(run / "environment.json", environment())
    train = {"bird": train_bird, "vae": train_vae}[asked["program"]]
    write_json(run / "result.json", train(run, asked))


def train_bird(run: Path, asked: dict) -> dict[str, Any]:
    """Trains bird.py; the scores are those of the saved network on the validation photos of its own split."""
    import bird

    macro, micro = bird.train(Path(asked["data"]["dataset"]), run / "bird.pth", bird.Config(**asked["config"]))
    rows = history_of(run / "bird.pth")
    best = [row for row in rows if row["best"]][-1]
    return {"score": (macro + micro) / 2, "macro_f1": macro, "accuracy": micro, "best_epoch": best["epoch"],
            "train_accuracy": best["train_accuracy"], "epochs": len(rows), "minutes": rows[-1]["seconds"] / 60}


def train_vae(run: Path, asked: dict) -> dict[str, Any]:
    """Trains vae.py; the scores are those of the labelled digits in `score_on`, which no training looks at."""
    import vae

    data, model, gmm = asked["data"], run / "vae.pth", run / "gmm_params.pkl"
    mixture = vae.train(data["train"], data["val"], model, gmm, vae.Config(**asked["config"]))
    rows, net, judged = history_of(model), vae.load_model(model), vae.DigitDataset(data["score_on"])
    truth = judged.examples()
    found = vae.scores(truth.numpy(), vae.classify(net, mixture, judged.images).numpy())
    made = vae.reconstruct(net, judged.images)
    return {"score": found["(macro F1 + micro F1) / 2"], "macro_f1": found["macro F1"], "accuracy": found["accuracy"],
            "ssim": vae.ssim(judged.images, made).mean().item(),
            "one_minus_mse": 1 - (made - judged.images).square().mean().item(),
            "epochs": len(rows), "minutes": sum(row["seconds"] for row in rows) / 60}


def main(argv: list[str]) -> int:
    """`python -m nestling.runs RUN`; returns the exit status, as the programs themselves do."""
    try:
        carry_out(Path(*argv))
        return 0
    except KeyboardInterrupt as stop:
        print(f"stopped. {stop}", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ != "Mistake":        # bird and vae stand alone, so each has its own
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


# ---------------------------------------------------------------------------------------------------------------------
# From outside: ask for a run, carry it out as a process, look at it
# ---------------------------------------------------------------------------------------------------------------------

def ask(run: Path, program: str, setting: str, config: Any, data: dict[str, str]) -> Path:
    """Makes the run folder with its config.json; one that asks for the very same is left as it is.

    config: a bird.Config or vae.Config. Raises Mistake if the folder holds a run of other settings or data.
    """
    asked = {"program": program, "setting": setting, "seed": config.seed, "config": asdict(config), "data": data}
    path = run / "config.json"
    if path.exists():
        if (before := read_json(path)) != asked:
            what = next(name for name in asked if before.get(name) != asked[name])
            raise mistake(f"{run} holds a run of another {what}; give another --out, or remove that folder.")
        return run
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise mistake(f"{run} cannot be made ({error.strerror}); give another --out.") from error
    write_json(path, asked)
    return run


def execute(run: str, threads: int | None = None) -> str | None:
    """Carries a run out in a process of its own; None if it went well, else the reason in one sentence.

    run: its folder. threads: of torch in that process; None: as many as it would take by itself.
    """
    folder = Path(run)
    (folder / "failed.txt").unlink(missing_ok=True)
    home = str(Path(__file__).parent.parent)         # where nestling, bird.py and vae.py lie
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))}
    if threads:
        known["OMP_NUM_THREADS"] = str(threads)      # torch reads it once, on import
    with open(folder / "log.txt", "a") as log:
        status = subprocess.call([sys.executable, "-m", "nestling.runs", run], env=known, stdout=log, stderr=log,
                                 stdin=subprocess.DEVNULL)
    if status == 0 and result_of(folder):
        return None
    reason = reason_of(status, (folder / "log.txt").read_text(errors="replace"))
    if status != 130:                                # Ctrl-C is no failure: the run goes on when it is asked for again
        (folder / "failed.txt").write_text(f"{reason}\n")
    return reason


def reason_of(status: int, log: str) -> str:
    """Why a process ended: its last words, or the signal that killed it (a signal k shows as the status -k)."""
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "it printed nothing")
    if status < 0:
        return f"killed by signal {-status}" + (", often for want of memory" if status == -9 else "")
    return last.removeprefix("error: ")


def result_of(run: Path) -> dict[str, Any] | None:
    """What a whole run scored; None for one that is not."""
    return read_json(run / "result.json") if (run / "result.json").is_file() else None


def failure_of(run: Path) -> str | None:
    """Why a run failed; None for one that did not, or has not run."""
    path = run / "failed.txt"
    return path.read_text().strip() if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
