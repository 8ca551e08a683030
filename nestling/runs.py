"""One run = one folder: what was asked for, what it ran on, what came out.

    RUN/config.json             program, setting, seed, every hyper-parameter, the data
    RUN/environment.json        versions, hardware, threads, date
    RUN/bird.pth                the model (vae.pth and gmm_params.pkl for digits)
    RUN/bird.history.jsonl      one line an epoch, as bird.py and vae.py write it
    RUN/log.txt                 all that the training printed
    RUN/result.json             the scores; written last: where it is, the run is done
    RUN/failed.txt              in its place, where the run failed: the reason

`python -m nestling.runs RUN` trains what RUN/config.json asks for; a run that was killed resumes. Torch
is imported in that process only, so that what starts runs (a Dask worker, for one) stays small.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nestling import files
from nestling.files import UserError, read_json, write_json

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn")
RESULT = ("score", "minutes")                  # what an ablation reads of result.json
PATIENCE = "10s"                               # how long a Dask scheduler may take to answer


def model_of(run: Path, program: str) -> Path:
    """The model file of a run: `run` itself if it is a file, else `<program>.pth` in the folder."""
    path = run / f"{program}.pth" if run.is_dir() else run
    if not path.is_file():
        raise UserError(f"{path} does not exist; name the model of `{program}.py train`, or its folder.")
    return path


NEEDED = {                                     # numbers in a row of a history, by its phase: bird.py has none
    None: ("epochs", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1", "best"),
    "clusters": ("information", "held_information"),
    "latents": ("recon", "held_recon", "kl", "held_kl", "ssim", "held_ssim")}


def history_of(model: Path) -> list[dict]:
    """The rows of `<model>.history.jsonl`, one an epoch; none where there is no such file."""
    path = model.with_suffix(".history.jsonl")
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            values = [row[key] for key in ("epoch", "seconds", *NEEDED[row.get("phase")])]
            if not all(isinstance(value, int | float) for value in values):
                raise ValueError("no number")
        return rows
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no history, a JSON line an epoch; train again.") from error


def environment() -> dict[str, Any]:
    """What decides a run's speed and bits besides its settings, and the date (UTC)."""
    import torch
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"python": platform.python_version(), "system": platform.platform(), "processor": processor(),
            "gpu": gpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in PACKAGES},
            "date": datetime.now(UTC).isoformat(timespec="seconds")}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Its name with family and model, which tell apart the generations that a virtual machine calls one."""
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if len(facts) < 3:                         # not Linux, or not x86
        return platform.processor() or platform.machine()
    return "{model name} (family {cpu family}, model {model})".format_map(facts)


# ------------------------------------------------------ in a process of its own: train and score

def train_and_score(run: Path) -> None:
    """Trains what RUN/config.json asks for and writes the result."""
    asked = read_json(run / "config.json", "program", "data", "config")
    write_json(run / "environment.json", environment())
    scores = TRAIN[asked["program"]](run, asked["data"], asked["config"])
    rows = history_of(run / f"{asked['program']}.pth")
    minutes = rows[-1]["seconds"] / 60 if rows else 0.0
    write_json(run / "result.json", {**scores, "epochs": len(rows), "minutes": minutes})


def train_bird(run: Path, data: dict[str, str], config: dict[str, Any]) -> dict[str, float]:
    """Trains bird.py; the scores are those on the validation photos of its own split."""
    import bird
    with bird.lock(run / "bird.pth"):
        macro, micro = bird.train(Path(data["dataset"]), run / "bird.pth", bird.Config(**config))
    return {"score": (macro + micro) / 2, "macro_f1": macro, "accuracy": micro}


def train_vae(run: Path, data: dict[str, str], config: dict[str, Any]) -> dict[str, float]:
    """Trains vae.py; the scores are those on the labelled digits of `score_on`, unseen in training."""
    import vae
    model, gmm = run / "vae.pth", run / "gmm_params.pkl"
    with vae.lock(model):
        mixture = vae.train(data["train"], data["val"], model, gmm, vae.Config(**config))
    net, test = vae.load_model(model), vae.DigitDataset(data["score_on"])
    assert test.labels is not None             # `ablate` has checked it
    scores = vae.scores(test.labels, vae.classify(net, mixture, test.images))
    made = vae.reconstruct(net, test.images)
    return {"score": scores["(macro F1 + micro F1) / 2"], "macro_f1": scores["macro F1"],
            "accuracy": scores["accuracy"], "ssim": vae.ssim(test.images, made).mean().item(),
            "one_minus_mse": 1 - (made - test.images).square().mean().item()}


TRAIN = {"bird": train_bird, "vae": train_vae}


# ------------------------------------------------------ from outside: ask for a run, start it, look at it

def ask(run: Path, program: str, setting: str, config: Any, data: dict[str, str]) -> Path:
    """Makes the run folder with its config.json; one that asks for the very same is left as it is.

    config: a bird.Config or vae.Config.
    """
    asked = {"program": program, "setting": setting, "config": asdict(config), "data": data}
    path = run / "config.json"
    if not path.exists():
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{run} cannot be made ({error.strerror}); give another --out.") from error
        write_json(path, asked)
    elif (before := read_json(path)) != asked:
        other = next(name for name in asked if before.get(name) != asked[name])
        raise UserError(f"{run} holds a run of another {other}; give another --out, or remove that folder.")
    return run


def result_of(run: Path) -> dict[str, Any] | None:
    """What a run scored; None for one that is not done."""
    return read_json(run / "result.json", *RESULT) if (run / "result.json").is_file() else None


def execute(run: str, threads: int | None = None) -> str | None:
    """Does a run in a process of its own; None if it went well, else the reason in one sentence.

    threads: of torch in that process; None: as many as it would take by itself.
    """
    folder = Path(run)
    (folder / "failed.txt").unlink(missing_ok=True)
    home = str(Path(__file__).parent.parent)   # where nestling, bird.py and vae.py lie
    env = {**os.environ, "PYTHONPATH": home + os.pathsep + os.environ.get("PYTHONPATH", "")}
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)  # torch reads it once, on import
    with open(folder / "log.txt", "a") as log:
        status = subprocess.call([sys.executable, "-m", "nestling.runs", run], env=env,
                                 stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    if status == 0 and result_of(folder):
        return None
    lines = (folder / "log.txt").read_text(errors="replace").split("\n")
    reason = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    if status < 0:
        reason = f"killed by signal {-status}" + ", often for want of memory" * (status == -9)
    if status != 130:                          # Ctrl-C is no failure: the run resumes when asked for again
        (folder / "failed.txt").write_text(reason.removeprefix("error: "))
    return reason.removeprefix("error: ")


@contextmanager
def workers(jobs: int, dask: str | None) -> Iterator[Executor]:
    """So many threads here or, at the address of a Dask scheduler, its workers; both take `submit`.

    Workers must see the files at the same paths.
    """
    if dask is None:
        pool = ThreadPoolExecutor(jobs)
        try:
            yield pool
        finally:                               # after Ctrl-C only the calls that have begun are waited for
            pool.shutdown(cancel_futures=True)
        return
    try:
        from distributed import Client
        client = Client(dask, timeout=PATIENCE)
    except ImportError as error:
        raise UserError("--dask needs Dask's scheduler: pip install 'nestling[dask]'.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {dask}; start one with `dask scheduler`.") from error
    with client:
        yield client.get_executor(pure=False)


if __name__ == "__main__":
    sys.exit(files.run(train_and_score, *map(Path, sys.argv[1:])))
