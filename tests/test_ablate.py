"""Ablations: the table is what the runs say, done runs are kept, failures are named, here and on Dask."""

import csv
import importlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bird
import vae
from nestling import ablate, cli, files, runs


@pytest.fixture(scope="module")
def specks(tmp_path_factory) -> Path:
    """Two classes of eight small photos, reddish and bluish."""
    folder, rng = tmp_path_factory.mktemp("specks"), np.random.default_rng(0)
    for name, colour in (("blue", (60, 60, 200)), ("red", (200, 60, 60))):
        (folder / name).mkdir()
        for k in range(8):
            pixels = np.clip(rng.normal(colour, 60, (6, 6, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((48, 48)).save(folder / name / f"{k}.png")
    return folder


def call(*arguments: object) -> int:
    """The exit status of the nestling command."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def fake_run(out: Path, setting: str, seed: int, score: float | None, reason: str = "") -> None:
    """A run folder as `runs` leaves it: done, failed, or only begun."""
    run = runs.ask(out / setting / f"seed-{seed}", "bird", setting, bird.Config(seed=seed), {"dataset": "/d"})
    if score is not None:
        files.write_json(run / "result.json", {"score": score, "minutes": 2.0 + seed})
    elif reason:
        (run / "failed.txt").write_text(reason + "\n")


@pytest.mark.parametrize("program", ["bird", "vae"])
def test_each_setting_changes_the_fields_it_names_and_no_other(program):
    settings, config = ablate.settings_of(program), importlib.import_module(program).Config
    default = asdict(config())
    for name, setting in settings.items():
        config_of_it = asdict(config(**setting.changes)).items()
        assert dict(config_of_it - default.items()) == setting.changes, name
    assert next(iter(settings)) == ablate.BASELINE
    assert len({repr(setting.changes) for setting in settings.values()}) == len(settings)      # none twice


def test_without_augmentation_a_batch_is_only_resized():
    cfg = bird.Config(**ablate.settings_of("bird")["no-augmentation"].changes)
    pixels = torch.arange(4 * 3 * 64 * 64).mul(7919).remainder(256).view(4, 3, 64, 64).to(torch.uint8)
    plain = bird.augment(pixels, 64, cfg, 1.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain, pixels / 255, atol=1e-5, rtol=0)
    assert cfg.mixup == 0
    single = {key for name, setting in ablate.settings_of("bird").items() for key in setting.changes
              if name != "no-augmentation"}
    assert set(ablate.PLAIN_PHOTOS) <= single


def test_the_plain_vae_is_that_of_vae_py(monkeypatch):
    asked = []
    monkeypatch.setattr(vae, "train", lambda *arguments, **_: asked.append(arguments[4]))
    vae.main(["a.npz", "b.npz", "train", "c.pth", "d.pkl", "--plain"])
    assert asked == [vae.Config(**ablate.settings_of("vae")["plain"].changes)]


def test_the_table_is_what_the_runs_say(tmp_path):
    base, flip = [0.80, 0.84, 0.81], [0.70, 0.78]
    for seed, score in enumerate(base):
        fake_run(tmp_path, "baseline", seed, score)
    for seed, score in enumerate(flip):
        fake_run(tmp_path, "no-hflip", seed, score)
    fake_run(tmp_path, "no-hflip", 2, None, "the disk is full")
    fake_run(tmp_path, "no-rotation", 0, 0.79)                 # one seed: no spread is known
    fake_run(tmp_path, "no-crop", 0, None)                     # begun, neither done nor failed
    rows = {row["setting"]: row for row in ablate.write_tables("bird", tmp_path)}
    row = rows["no-hflip"]
    assert row["score"] == pytest.approx(np.mean(flip))
    assert row["spread"] == pytest.approx(np.std(flip, ddof=1))
    assert row["difference"] == pytest.approx(np.mean(flip) - np.mean(base[:2]))        # seeds that both have
    assert row["noise"] == pytest.approx(np.hypot(np.std(flip, ddof=1), np.std(base, ddof=1)))
    assert row["beyond"] is True
    assert row["minutes"] == pytest.approx(2.5)
    assert row["failed"] == ["seed 2: the disk is full"]
    assert rows["no-rotation"]["beyond"] is None
    assert rows["no-crop"]["score"] is None
    assert next(iter(rows)) == "baseline"
    with open(tmp_path / "table.csv", newline="") as file:
        written = {line["setting"]: line for line in csv.DictReader(file)}
    assert float(written["no-hflip"]["difference"]) == pytest.approx(row["difference"], abs=5e-5)
    assert (written["no-hflip"]["beyond"], written["no-rotation"]["beyond"]) == ("yes", "")
    assert (written["no-rotation"]["runs"], written["no-crop"]["runs"]) == ("1", "0")
    text = (tmp_path / "table.md").read_text()
    assert "seed 2: the disk is full" in text
    assert f"| {np.mean(flip):.4f} | {np.std(flip, ddof=1):.4f} |" in text
    before = {path.name: path.read_bytes() for path in tmp_path.glob("table.*")}
    assert len(before) == 3
    ablate.write_tables("bird", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("table.*")} == before


@pytest.mark.parametrize("where", ["here", "dask"])
def test_runs_are_done_once_kept_and_named_where_they_fail(where, specks, tmp_path, capsys, monkeypatch):
    out, again = tmp_path / "runs", tmp_path / "again"

    def fake(run: str, threads: int | None = None) -> str | None:
        if "no-hflip" in run and not again.exists():
            (Path(run) / "failed.txt").write_text("the disk is full")
            return "the disk is full"
        files.write_json(Path(run) / "result.json", {"score": 0.5 + int(run[-1]) / 10, "minutes": 1.0})
        return None

    monkeypatch.setattr(runs, "execute", fake)
    options: dict[str, Any] = {"seeds": 2, "only": "no-hflip", "epochs": 1}
    if where == "dask":
        from distributed import LocalCluster
        with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
            rows = ablate.ablate("bird", {"dataset": specks}, out, dask=cluster.scheduler_address, **options)
    else:
        rows = ablate.ablate("bird", {"dataset": specks}, out, jobs=2, **options)
    assert "no-hflip seed 1: failed: the disk is full" in capsys.readouterr().out
    assert [row["setting"] for row in rows] == ["baseline", "no-hflip"]   # the baseline is always run
    assert (rows[0]["scores"], rows[1]["failed"][0]) == ([0.5, 0.6], "seed 0: the disk is full")

    kept = out / "baseline" / "seed-0" / "result.json"
    written = kept.stat().st_mtime_ns
    again.touch()
    rows = ablate.ablate("bird", {"dataset": specks}, out, **options)     # only what is missing is done
    assert "2 runs are done, 2 to do" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == written
    assert rows[1]["scores"] == [0.5, 0.6]
    assert json.loads((out / "no-hflip" / "seed-1" / "config.json").read_text())["config"]["hflip"] == 0.0
    with pytest.raises(files.UserError, match="another config"):
        ablate.ablate("bird", {"dataset": specks}, out, **options | {"epochs": 2})


@pytest.mark.slow
def test_a_run_of_bird_scores_the_saved_network(specks, tmp_path):
    config = bird.Config(seed=3, epochs=1)
    run = runs.ask(tmp_path / "run", "bird", "baseline", config, {"dataset": str(specks)})
    assert runs.execute(str(run), threads=1) is None
    net, data = bird.load_model(run / "bird.pth"), bird.load_data(specks, 3)
    macro, micro = bird.f1(data.labels[data.val], bird.predict(net, data.pixels[data.val]).argmax(dim=1))
    result, rows = files.read_json(run / "result.json"), runs.history_of(run / "bird.pth")
    assert (result["score"], result["epochs"]) == ((macro + micro) / 2, 1)
    assert result["minutes"] == rows[-1]["seconds"] / 60
    assert net.extra["classes"] == ["blue", "red"]
    environment = files.read_json(run / "environment.json")
    assert (environment["threads"], environment["versions"]["torch"]) == (1, version("torch"))


def test_a_run_of_vae_scores_digits_that_it_has_not_seen(tmp_path):
    data, rng = {}, np.random.default_rng(0)
    for name, count in (("train", 60), ("val", 10), ("score_on", 20)):
        labels = np.arange(count) % 2 * 3 + 1                  # digits 1 and 4: left and right bars
        images = rng.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        images[labels == 1, 4:24, 5:9], images[labels == 4, 4:24, 19:23] = 250, 250
        np.savez(tmp_path / f"{name}.npz", data=images, labels=labels)
        data[name] = str(tmp_path / f"{name}.npz")
    run = runs.ask(tmp_path / "run", "vae", "baseline", vae.Config(epochs=1, min_steps=2), data)
    runs.train_and_score(run)
    net, mixture = vae.load_model(run / "vae.pth"), vae.load_mixture(run / "gmm_params.pkl")
    test, result = vae.DigitDataset(data["score_on"]), files.read_json(run / "result.json")
    assert test.labels is not None
    found = vae.scores(test.labels, vae.classify(net, mixture, test.images))
    assert (result["macro_f1"], result["accuracy"]) == pytest.approx((found["macro F1"], found["accuracy"]))
    assert 0 < result["ssim"] <= 1
    assert result["minutes"] == runs.history_of(run / "vae.pth")[-1]["seconds"] / 60


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--only", "no-beak"], "no setting"), (["--seeds", "0,x"], "--seeds"), (["--epochs", "0"], "--epochs"),
    (["--budget", "-1"], "--budget -1"), (["--dask", "tcp://127.0.0.1:9"], "no Dask scheduler answers"),
])
def test_bad_input_is_one_sentence_and_status_2(specks, tmp_path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.setattr(runs, "PATIENCE", "1s")
    assert call("ablate", "bird", specks, "--out", tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_data_that_no_run_could_use_is_refused_before_any_run(tmp_path, capsys):
    out = tmp_path / "runs"
    assert call("ablate", "bird", tmp_path / "nowhere", "--out", out) == 2
    assert "nowhere cannot be read" in capsys.readouterr().err
    np.savez(tmp_path / "digits.npz", data=np.zeros((20, 28, 28), np.uint8))
    assert call("ablate", "vae", tmp_path / "digits.npz", tmp_path / "digits.npz", "--out", out) == 2
    assert "name labelled digits" in capsys.readouterr().err
    assert not out.exists()


def test_an_ablation_without_a_run_that_went_well_is_an_error(specks, tmp_path, capsys, monkeypatch):
    for program in ("bird", "vae"):
        with pytest.raises(files.UserError, match="holds no runs"):
            ablate.table(program, tmp_path)
    monkeypatch.setattr(runs, "execute", lambda run, threads: Path(run, "failed.txt").write_text("no memory"))
    assert call("ablate", "bird", specks, "--out", tmp_path, "--seeds", 1, "--only", "baseline") == 2
    assert "no run went well; the first failed with: seed 0: no memory" in capsys.readouterr().err


def test_a_run_that_cannot_go_well_says_why(tmp_path):
    tmp_path.joinpath("config.json").write_text("{half")
    assert "config.json cannot be read as JSON" in (runs.execute(str(tmp_path)) or "")
    assert "config.json cannot be read as JSON" in (tmp_path / "failed.txt").read_text()


def test_why_a_process_ended(tmp_path, monkeypatch):
    def ending(status: int, text: str) -> str | None:
        def fake(command, stdout, **_):
            stdout.write(text)
            return status

        monkeypatch.setattr(runs.subprocess, "call", fake)
        (tmp_path / "log.txt").unlink(missing_ok=True)
        return runs.execute(str(tmp_path))

    assert ending(2, "epoch 1\nerror: no photos there\n\n") == "no photos there"
    assert (tmp_path / "failed.txt").read_text() == "no photos there"
    assert ending(-9, "epoch 1\n") == "killed by signal 9, often for want of memory"
    assert ending(1, "") == "it printed nothing"
    ending(130, "stopped\n")                                   # by Ctrl-C, which is no failure
    assert not (tmp_path / "failed.txt").exists()


def test_a_history_is_whole_lines_or_an_error(tmp_path):
    model, path = tmp_path / "bird.pth", tmp_path / "bird.history.jsonl"
    assert runs.history_of(model) == []
    row = {"epoch": 1, "seconds": 2.5, "phase": "clusters", "information": 0.5, "held_information": 0.25}
    bird.record(path, [row, row | {"epoch": 2}])
    assert runs.history_of(model) == [row, row | {"epoch": 2}]
    less, other = {k: v for k, v in row.items() if k != "seconds"}, row | {"information": "much"}
    for text in ('{"epoch": 1', '{"loss": 1}', "[]", "\xff", "[" * 10_000, *map(json.dumps, (
            less, other, row | {"phase": "?"}, row | {"phase": [1]}))):
        path.write_text(text)
        with pytest.raises(files.UserError, match="no history"):
            runs.history_of(model)


def test_processors_of_one_name_are_told_apart(tmp_path):
    path = tmp_path / "cpuinfo"
    core = "processor\t: {}\ncpu family\t: {}\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\n"
    for family in (23, 25):
        path.write_text(core.format(0, family) + core.format(1, family))
        assert runs.processor(path) == f"AMD EPYC (family {family}, model 1)"
    path.write_text("processor\t: 0\nCPU implementer\t: 0x41\n")                     # ARM names no model
    assert runs.processor(path) == runs.processor(tmp_path / "missing") != ""
