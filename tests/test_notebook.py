"""run.ipynb: it runs from top to bottom, finds photos where Kaggle mounts them, streams its output."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import ROOT

from nestling.data.digits import make_digits

NOTEBOOK = nbformat.read(ROOT / "run.ipynb", as_version=4)
SETUP = next(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code")

# in a process of its own: the client of Jupyter's kernels raises warnings that are not ours
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def set_up(monkeypatch, tmp_path: Path) -> dict:
    """The names that the first cell defines, run in the project's folder with tmp_path/input mounted."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("NESTLING_INPUT", str(tmp_path / "input"))
    monkeypatch.setenv("NESTLING_OUT", str(tmp_path / "out"))
    names: dict = {}
    exec(SETUP, names)
    return names


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_it_is_kept_without_outputs():
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in NOTEBOOK.cells)


@pytest.mark.parametrize("place", ["Birds/train", "birds/Birds/train", "datasets/owner/birds/photos"])
def test_photos_are_found_where_kaggle_mounts_them(place, tmp_path, monkeypatch):
    photos = tmp_path / "input" / place
    touch(*(photos / str(k) / "x.JPG" for k in range(3)), photos / "notes" / "x.txt", photos.parent / "x.jpg")
    names = set_up(monkeypatch, tmp_path)
    assert names["photos"] == photos
    assert [path.name for path in names["class_folders"](photos)] == ["0", "1", "2"]


def test_training_photos_are_preferred(tmp_path, monkeypatch):
    for part in ("test", "train", "a"):
        touch(*(tmp_path / "input" / "Birds" / part / str(k) / "x.jpg" for k in range(2)))
    assert set_up(monkeypatch, tmp_path)["photos"].name == "train"


def test_without_photos_nothing_is_found(tmp_path, monkeypatch):
    assert set_up(monkeypatch, tmp_path)["photos"] is None           # not mounted at all
    touch(tmp_path / "input" / "digits" / "train.npz", tmp_path / "input" / "one" / "0" / "x.jpg")
    assert set_up(monkeypatch, tmp_path)["photos"] is None


def test_birds_are_drawn_where_no_photos_are_mounted(tmp_path, drawn, monkeypatch):
    names, commands = set_up(monkeypatch, tmp_path), []

    def run(*command: object) -> None:
        commands.append(command)
        shutil.copytree(drawn, tmp_path / "out" / "birds")

    names["run"] = run
    draw = next(cell.source for cell in NOTEBOOK.cells if cell.source.startswith("if not photos"))
    for _ in range(2):
        exec(draw, names)
        names["plt"].close("all")
        assert names["photos"] == tmp_path / "out" / "birds" / "train"
        assert names["test_photos"] == tmp_path / "out" / "birds" / "test"
        names["photos"] = None                             # as when the notebook is run again
    assert [command[:4] for command in commands] == [("-m", "nestling.cli", "data", "birds")]


def test_lines_are_shown_as_they_are_printed_and_a_failure_stops(tmp_path, monkeypatch):
    """The program goes on as soon as its first line has been shown."""
    names, shown = set_up(monkeypatch, tmp_path), []

    def show(line: str, end: str) -> None:
        shown.append(line)
        (tmp_path / "shown").touch()

    names["print"] = show
    with pytest.raises(RuntimeError, match="exit status 3"):
        names["run"]("-c", PROGRAM, tmp_path / "shown")
    assert shown == ["first\n"]


PROGRAM = """
import pathlib, sys, time
print("first")
for _ in range(6000):
    if pathlib.Path(sys.argv[1]).exists():
        sys.exit(3)
    time.sleep(0.01)
"""


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, drawn):
    photos, out, executed = tmp_path / "input" / "Birds", tmp_path / "out", tmp_path / "run.ipynb"
    for part, number in ("train", 6), ("test", 1):
        for species in sorted((drawn / part).iterdir()):
            (photos / part / species.name).mkdir(parents=True)
            for photo in sorted(species.iterdir())[:number]:
                shutil.copy(photo, photos / part / species.name)
    few_digits(out / "digits")
    settings = {"NESTLING_INPUT": str(photos.parent), "NESTLING_OUT": str(out), "NESTLING_EPOCHS": "1"}
    subprocess.run([sys.executable, "-c", EXECUTE, ROOT / "run.ipynb", executed], cwd=ROOT, check=True,
                   env={**os.environ, **settings})
    assert len((out / "bird.csv").read_text().splitlines()) == 11
    assert len((out / "vae.csv").read_text().splitlines()) == 21
    for part in ("bird", "vae"):
        assert (out / f"report_{part}.pdf").read_bytes().startswith(b"%PDF")
    printed = "".join(output.get("text", "") for cell in nbformat.read(executed, as_version=4).cells
                      for output in cell.get("outputs", []))
    assert printed.count("epoch 1  ") == 2                 # of both histories


def few_digits(folder: Path) -> None:
    """Those of make_digits, but fewer."""
    make_digits(folder)
    for name, number in ("train", 60), ("test", 20):
        arrays = np.load(folder / f"{name}.npz")
        np.savez(folder / f"{name}.npz", data=arrays["data"][:number], labels=arrays["labels"][:number])
