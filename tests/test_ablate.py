"""Ablations: the table is what the runs say, done runs are kept, failures are named, Dask does the same work."""

import csv
import json
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bird
import vae
from nestling import ablate, cli, runs


@pytest.fixture(scope="module")
def specks(tmp_path_factory) -> Path:
    """Two classes of eight small pictures, red and blue."""
    folder, rng = tmp_path_factory.mktemp("specks"), np.random.default_rng(0)
    for name, colour in (("blue", (60, 60, 200)), ("red", (200, 60, 60))):
        (folder / name).mkdir()
        for k in range(8):
            pixels = np.clip(rng.normal(colour, 40, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


def fake_run(out: Path, setting: str, seed: int, score: float | None, reason: str = "") -> None:
    """A run folder as `runs` leaves it: whole, failed, or begun only."""
    run = runs.ask(out / setting / f"seed-{seed}", "bird", setting, bird.Config(seed=seed), {"dataset": "/d"})
    if score is not None:
        runs.write_json(run / "result.json", {"score": score, "minutes": 2.0 + seed})
    elif reason:
        (run / "failed.txt").write_text(reason + "\n")


def score_of_saved(run: Path, folder: Path, seed: int) -> float:
    """The saved network's score on the validation photos of the run's split."""
    net, cfg = bird.load_model(run / "bird.pth"), bird.Config(seed=seed)
    _, _, macro, micro = bird.judge(net, bird.read_birds(folder, run, cfg), torch.device("cpu"))
    return (macro + micro) / 2


@pytest.mark.parametrize("program", ["bird", "vae"])
def test_each_setting_changes_the_dials_it_names_and_no_other(program):
    settings = ablate.settings_of(program)
    default = asdict(ablate.config_of(program, settings[ablate.BASELINE].changes))
    for name, setting in settings.items():
        changed = asdict(ablate.config_of(program, setting.changes))
        assert {dial: value for dial, value in changed.items() if value != default[dial]} == setting.changes, name
    assert len({repr(setting.changes) for setting in settings.values()}) == len(settings)      # no setting twice


def test_the_plain_vae_is_the_one_of_vae_py():
    assert ablate.config_of("vae", ablate.VAE["plain"].changes) == vae.Config().plain()


def test_the_table_is_what_the_runs_say(tmp_path):
    base, flip = [0.80, 0.84, 0.81], [0.70, 0.78]
    for seed, score in enumerate(base):
        fake_run(tmp_path, "baseline", seed, score)
    for seed, score in enumerate(flip):
        fake_run(tmp_path, "no-flip", seed, score)
    fake_run(tmp_path, "no-flip", 2, None, "the disk is full")
    fake_run(tmp_path, "no-turn", 0, 0.79)                     # one seed: no spread is known
    fake_run(tmp_path, "no-zoom", 0, None)                     # begun, neither done nor failed
    rows = {row["setting"]: row for row in ablate.write_tables("bird", tmp_path)}
    row = rows["no-flip"]
    assert row["score"] == pytest.approx(np.mean(flip))
    assert row["spread"] == pytest.approx(np.std(flip, ddof=1))
    assert row["difference"] == pytest.approx(np.mean(flip) - np.mean(base[:2]))        # seeds that both have
    assert row["noise"] == pytest.approx(np.hypot(np.std(flip, ddof=1), np.std(base, ddof=1)))
    assert row["beyond"] is True
    assert row["minutes"] == pytest.approx(2.5)
    assert row["failed"] == ["seed-2: the disk is full"]
    assert rows["no-turn"]["beyond"] is None
    assert rows["no-zoom"]["score"] is None
    assert next(iter(rows)) == "baseline"
    with open(tmp_path / "table.csv", newline="") as file:
        written = {line["setting"]: line for line in csv.DictReader(file)}
    assert float(written["no-flip"]["difference"]) == pytest.approx(row["difference"], abs=1e-6)
    assert (written["no-flip"]["beyond"], written["no-turn"]["beyond"]) == ("yes", "")
    text = (tmp_path / "table.md").read_text()
    assert "no-flip, seed-2: the disk is full" in text
    assert f"{np.mean(flip):.4f} ± {np.std(flip, ddof=1):.4f}" in text
    before = {path.name: path.read_bytes() for path in tmp_path.glob("table.*")}
    ablate.write_tables("bird", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("table.*")} == before


def test_runs_are_carried_out_kept_and_named_where_they_fail(specks, tmp_path, capsys):
    out = tmp_path / "runs"
    (out / "no-flip" / "seed-3" / "environment.json").mkdir(parents=True)        # a folder where a file must go
    command = ["ablate", "bird", str(specks), "--out", str(out), "--epochs", "1", "--seeds", "3", "--only", "no-flip"]
    assert call(*command, "--jobs", "2") == 0                             # the baseline is always run
    assert "no-flip seed 3: failed:" in capsys.readouterr().out
    rows = {row["setting"]: row for row in ablate.table("bird", out)}
    assert "environment.json cannot be written" in rows["no-flip"]["failed"][0]
    assert rows["baseline"]["runs"] == 1

    kept = out / "baseline" / "seed-3" / "result.json"
    written = kept.stat().st_mtime_ns
    shutil.rmtree(out / "no-flip" / "seed-3" / "environment.json")
    assert call(*command) == 0                                            # the mended one is done now, the other stays
    assert "1 runs are done, 1 to do" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == written
    row = ablate.table("bird", out)[1]
    run = out / "no-flip" / "seed-3"
    assert (row["scores"], row["failed"]) == ([score_of_saved(run, specks, seed=3)], [])
    assert bird.load_model(run / "bird.pth").extra["classes"] == ["blue", "red"]
    assert runs.read_json(run / "config.json")["config"]["flip"] == 0.0
    assert runs.read_json(run / "environment.json")["versions"]["torch"] == version("torch")

    command[command.index("1")] = "2"
    assert call(*command) == 2
    assert "another config" in capsys.readouterr().err


def test_dask_workers_carry_out_the_same_runs(specks, tmp_path):
    from distributed import LocalCluster

    (tmp_path / "baseline" / "seed-1" / "environment.json").mkdir(parents=True)       # this run cannot go well
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        rows = ablate.ablate("bird", {"dataset": str(specks)}, tmp_path, seeds=[0, 1], only="baseline", epochs=1,
                             dask=cluster.scheduler_address)
    run = tmp_path / "baseline" / "seed-0"
    scores = [score_of_saved(run, specks, seed=0)]
    assert rows[0]["scores"] == scores == [json.loads((run / "result.json").read_text())["score"]]
    assert "environment.json cannot be written" in rows[0]["failed"][0]


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--only", "no-beak"], "no setting"), (["--seeds", "0,x"], "whole numbers"), (["--seeds", "1,1"], "different"),
    (["--dask", "tcp://127.0.0.1:9"], "no Dask scheduler answers"), (["--epochs", "0"], "epochs"),
])
def test_bad_input_is_one_sentence_and_status_2(specks, tmp_path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.setattr(ablate, "PATIENCE", "1s")
    assert call("ablate", "bird", str(specks), "--out", str(tmp_path), *arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_data_that_no_run_could_use_is_refused_before_any_run(tmp_path, capsys):
    out = tmp_path / "runs"
    assert call("ablate", "bird", str(tmp_path / "nowhere"), "--out", str(out), "--only", "baseline") == 2
    assert "does not exist" in capsys.readouterr().err
    assert not out.exists()


def test_an_ablation_without_a_run_that_went_well_is_a_mistake(specks, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs, "execute", lambda run, threads: "the disk is full")
    assert call("ablate", "bird", str(specks), "--out", str(tmp_path), "--seeds", "0", "--only", "baseline") == 2
    assert "no run went well" in capsys.readouterr().err


def test_processors_of_one_name_are_told_apart(tmp_path):
    told = tmp_path / "cpuinfo"
    cores = "processor\t: {}\nvendor_id\t: AuthenticAMD\ncpu family\t: {}\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\n"
    told.write_text(cores.format(0, 23) + cores.format(1, 23))
    assert runs.processor(told) == "AMD EPYC (family 23, model 1)"
    told.write_text(cores.format(0, 25))
    assert runs.processor(told) == "AMD EPYC (family 25, model 1)"
    told.write_text("processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: 0x41\n")        # ARM names no model
    assert runs.processor(told) == runs.processor(tmp_path / "missing") != ""


def test_the_reason_of_a_failure_is_its_last_line_or_signal():
    assert runs.reason_of(2, "epoch 1\nerror: no photos there\n\n") == "no photos there"
    assert "signal 9" in runs.reason_of(-9, "epoch 1")
    assert runs.reason_of(1, "") == "it printed nothing"


def call(*arguments: str) -> int:
    """The exit status of the nestling command."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return ended.value.code or 0
