"""Whole batches: submissions of every odd kind get the right state, scores and sentences, killed or not."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from nestling import cli
from nestling.files import UserError
from nestling.grade import batch, box
from nestling.grade.facts import Submission

GOOD = """import sys
import numpy as np
words = sys.argv[1:]
if "train" in words:
    open(words[3], "wb").write(b"a model"); open(words[4], "wb").write(b"a mixture")
elif words[1] == "test_reconstruction":
    np.savez("vae_reconstructed.npz", data=np.load(words[0])["data"] / np.float32(300))
else:
    x = np.load(words[0])["data"].astype(int)                # digit k has a mean pixel of about 20 k
    means = x.mean(axis=(1, 2))
    labels = [(1, 4, 8)[abs(np.array([20, 80, 160]) - mean).argmin()] for mean in means]
    open("vae.csv", "w").write("Predicted_Label\\n" + "".join(f"{label}\\n" for label in labels))
"""


def writes(csv_text: str) -> str:
    """GOOD, but for how it writes its labels."""
    head, _, _ = GOOD.rpartition('    open("vae.csv"')
    return f"{head}    {csv_text}"


def csv_of(header: str = "Predicted_Label", row: str = "{x}", end: str = "\\n", rows: str = "labels",
           name: str = "vae.csv") -> str:
    """A program's line that writes its labels."""
    return f'open({name!r}, "w").write("{header}{end}" + "".join(f"{row}{end}" for x in {rows}))\n'


def fails_in(command: str, code: str) -> str:
    """GOOD, but for what it does first in one command."""
    return GOOD.replace("if \"train\"", f"if {command!r} in words:\n    {code}\nif \"train\"", 1)


ZOO = {                                    # entry -> program, then what is expected of its record
    "2021CS10001": (GOOD, {"state": "done", "strict": 1.0, "found": 1.0, "kinds": set()}),
    "2021CS10002": (writes(csv_of(header="label")),
                    {"state": "done", "strict": 0.0, "found": 1.0, "kinds": {"column"}}),
    "2021CS10003": (writes(csv_of(rows="labels[:6]")),
                    {"state": "done", "strict": 0.0, "kinds": {"rows"}}),
    "2021CS10004": (writes(csv_of("\\ufeffPredicted_Label", "{x}.0", "\\r\\n")),
                    {"state": "done", "strict": 0.0, "found": 1.0, "kinds": {"encoding"}}),
    "2021CS10005": (writes(csv_of(name="predictions.csv")),
                    {"state": "done", "strict": 0.0, "found": 1.0, "kinds": {"name"}}),
    "2021CS10006": (fails_in("test_classifier", "while True: pass"), {"state": "time", "reason": "within 20 seconds"}),
    "2021CS10007": (fails_in("test_classifier", "import tensorflow"),
                    {"state": "environment", "reason": "needs tensorflow"}),
    "2021CS10008": (GOOD + "raise SystemExit('plot failed')\n",
                    {"state": "failed", "strict": 1.0, "kinds": {"traceback"}}),
    "2021CS10009": (fails_in("test_classifier", "raise KeyError('no model')"), {"state": "failed", "found": 0.0}),
    "2021CS10010": (GOOD.replace('["data"].astype(int)', '["labels"]').replace("x.mean(axis=(1, 2))", "20 * x"),
                    {"state": "done", "kinds": set()}),     # reads the labels, which are dummies
    "2021CS10011": (writes('import os; os.symlink("/etc/passwd", "vae.csv")'), {"state": "done", "found": 0.0}),
    "2021CS10012": (writes('import os; os.mkfifo("vae.csv")'), {"state": "done", "found": 0.0}),
    "2021CS10013": (GOOD.replace("data=np", "original_images=np.load(words[0])['data'], reconstructed_images=np"),
                    {"state": "done", "strict": 1.0, "found": 1.0, "kinds": {"key"}}),
    "2021CS10014": (fails_in("test_classifier", "print('\\x1b[31m<script>alert(1)</script>' * 3); raise ValueError"),
                    {"state": "failed"}),
    "2021CS10015": (writes('open("vae.csv", "w").write("Predicted_Label\\n" + "1\\n" * len(labels))'),
                    {"state": "done", "kinds": set()}),
    "2021CS10016": (fails_in("test_reconstruction", "raise MemoryError"), {"state": "memory", "found": 1.0}),
    "2021CS10017": (writes("import random; random.shuffle(labels)\n    " + csv_of()),
                    {"state": "done", "kinds": {"random"}}),
    "2021CS10018": (GOOD.replace("import sys", "import sys\nfrom sklearn.mixture import GaussianMixture"),
                    {"kinds": {"scikit-learn"}}),
    "2021CS10019": ("def broken(:\n", {"state": "failed", "reason": "SyntaxError"}),
    "2021CS10020": (None, {"state": "refused"}),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> dict[str, Path]:
    """Digits whose brightness gives them away."""
    folder, rng = tmp_path_factory.mktemp("teacher"), np.random.default_rng(0)
    paths = {}
    for name, each in (("test", 4), ("train", 8), ("val", 2)):
        labels = np.repeat([1, 4, 8], each)
        data = (20 * labels[:, None, None] + rng.integers(-9, 9, (len(labels), 28, 28))).astype(np.uint8)
        np.savez(folder / f"{name}.npz", data=data, labels=labels)
        paths[name] = folder / f"{name}.npz"
    return paths


def submission(folder: Path, entry: str, program: str | None) -> Path:
    """A zip as the contract has it."""
    with zipfile.ZipFile(path := folder / f"{entry}.zip", "w") as archive:
        for name, content in {"vae.py": program, "vae.pth": "a model", "gmm_params.pkl": "a mixture",
                              "group.txt": f"{entry}\n", "model_path.txt": "https://example.org/vae.pth\n"}.items():
            if content is not None:
                archive.writestr(f"{entry}/{name}", content)
    return path


@pytest.fixture(scope="module")
def graded(teacher, tmp_path_factory) -> Path:
    """The zoo, graded."""
    folder = tmp_path_factory.mktemp("class")
    for entry, (program, _) in ZOO.items():
        submission(folder, entry, program)
    shutil.copy(folder / "2021CS10001.zip", folder / "=cmd|' C'!A1.zip")
    (folder / "damaged.zip").write_bytes(b"PK\x03\x04 no zip")
    out = tmp_path_factory.mktemp("graded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "TEST_LIMITS", box.Limits(seconds=20, memory=2048, processes=64, disk=64))
        batch.grade([folder], "vae", out, test=teacher["test"], jobs=2, threads=1)
    return out


def record_of(out: Path, entry: str) -> dict:
    return json.loads((out / entry / "record.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("entry", ZOO)
def test_each_submission_gets_its_state_scores_and_findings(entry, graded):
    record, expected = record_of(graded, entry), ZOO[entry][1]
    kinds = {finding["kind"] for finding in record["findings"]} - {"report", "whole model", "seed"}
    reasons = " ".join(run["reason"] for run in record["runs"].values())
    found = {"state": batch.state_of(record), "kinds": kinds}
    if record["scores"]:
        both = record["scores"]["shipped"]["classification"]
        found |= {kind: both[kind]["score"] for kind in ("strict", "found")}
    assert {key: found[key] for key in expected if key != "reason"} == {
        key: value for key, value in expected.items() if key != "reason"}, record
    assert expected.get("reason", "") in reasons
    assert (graded / entry / "feedback.txt").read_text().startswith(entry)
    assert json.loads((graded / entry / "results.json").read_text())["tests"]


@pytest.mark.slow
def test_a_submission_that_reads_the_labels_learns_nothing(graded):
    score = record_of(graded, "2021CS10010")["scores"]["shipped"]["classification"]["found"]["score"]
    assert score < 0.7                                     # dummy labels 1, 4, 8 in turn


@pytest.mark.slow
def test_the_table_and_the_page_hold_all_and_nothing_is_markup(graded):
    with open(graded / "leaderboard.csv", newline="") as file:
        rows = {row["entry"]: row for row in csv.DictReader(file)}
    assert set(ZOO) < set(rows)
    assert len(rows) == len(ZOO) + 2
    assert not [name for name in rows if name.startswith("=")]
    assert rows["2021CS10001"]["state"] == "done"
    page = (graded / "index.html").read_text()
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert all(entry in page for entry in ZOO)


@pytest.mark.slow
def test_graded_again_nothing_is_run_and_a_rubric_changes_the_marks(graded, tmp_path, monkeypatch):
    before = (graded / "leaderboard.csv").read_bytes()
    monkeypatch.setattr(box, "run", None)
    batch.grade_again(graded, "vae")
    assert (graded / "leaderboard.csv").read_bytes() == before
    (tmp_path / "strict.toml").write_text('counts = "strict"\n')
    batch.grade_again(graded, "vae", tmp_path / "strict.toml")
    assert (graded / "leaderboard.csv").read_bytes() != before
    batch.grade_again(graded, "vae")


@pytest.mark.slow
def test_a_killed_batch_goes_on_to_the_same_table(graded, teacher, tmp_path):
    out = tmp_path / "graded"
    some = [entry for entry in ZOO if entry not in ("2021CS10006", "2021CS10017")]    # no time-out, nothing random
    for entry in some[:8]:
        submission(tmp_path, entry, ZOO[entry][0])
    code = f"""from pathlib import Path
from nestling.grade import batch
files = {{name: Path(path) for name, path in { {name: str(path) for name, path in teacher.items()}!r}.items()}}
sources = sorted(Path({str(tmp_path)!r}).glob("*.zip"))
batch.grade(sources, "vae", Path({str(out)!r}), test=files["test"], jobs=2, threads=1)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None and len(list(out.glob("*/record.json"))) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " 0 are done" not in done.stdout
    both = [(folder / "leaderboard.csv").read_text().splitlines() for folder in (out, graded)]
    assert len(both[0]) == 9
    assert set(both[0]) <= set(both[1])


@pytest.mark.slow
def test_a_program_and_a_model_that_ask_for_cuda_get_the_cpu(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")     # as if saved on a GPU
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "vae.pth")
    cuda = ("import torch\nnet = torch.nn.Linear(2, 2).to('cuda').cuda()\nnet.load_state_dict(torch.load(words[2]))\n"
            "x = torch.zeros(3, 2, device=torch.device('cuda'))\nwith torch.autocast('cuda'): net(x.cuda())\n")
    path = submission(tmp_path, "2021CS10001", fails_in("test_classifier", cuda.replace("\n", "\n    ")))
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "2021CS10002.zip", "w") as new:
        for name in old.namelist():
            new.writestr(name, (tmp_path / "vae.pth").read_bytes() if name.endswith("vae.pth") else old.read(name))
    (record,) = batch.grade([tmp_path / "2021CS10002.zip"], "vae", tmp_path / "out", test=teacher["test"], threads=1)
    assert batch.state_of(record) == "done", record["runs"]
    assert record["parameters"] == 6
    assert [finding["kind"] for finding in record["findings"]].count("shim") == 1
    assert record["scores"]["shipped"]["classification"]["strict"]["score"] == 1.0


@pytest.mark.slow
def test_a_fault_of_the_grader_stops_no_other_submission(teacher, tmp_path, monkeypatch):
    def fail(path, *rest, score_labels=batch.score.score_labels):
        if not (path / "vae.csv").read_text().startswith("Predicted"):
            raise ZeroDivisionError("a defect")
        return score_labels(path, *rest)
    monkeypatch.setattr(batch.score, "score_labels", fail)
    (tmp_path / "class").mkdir()
    for entry in ("2021CS10001", "2021CS10002"):
        submission(tmp_path / "class", entry, ZOO[entry][0])
    records = batch.grade([tmp_path / "class"], "vae", tmp_path / "out", test=teacher["test"], threads=1)
    assert [batch.state_of(record) for record in records] == ["done", "grader"]
    assert records[1]["runs"]["grading"]["reason"] == "ZeroDivisionError: a defect"
    monkeypatch.undo()                                     # mended, and it is done anew
    records = batch.grade([tmp_path / "class"], "vae", tmp_path / "out", test=teacher["test"], threads=1)
    assert [batch.state_of(record) for record in records] == ["done", "done"]


@pytest.mark.slow
def test_the_workers_of_a_dask_scheduler_grade_too(teacher, tmp_path):
    from distributed import LocalCluster
    source, out = submission(tmp_path, "2021CS10001", GOOD), tmp_path / "out"
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        (record,) = batch.grade([source], "vae", out, test=teacher["test"], threads=1, dask=cluster.scheduler_address)
    assert record["scores"]["shipped"]["classification"]["strict"]["score"] == 1.0
    assert {path.name for path in out.iterdir()} == {"2021CS10001", "index.html", "leaderboard.csv", "similarity.json"}


def test_ctrl_c_ends_what_runs(tmp_path):
    (tmp_path / "start").mkdir()
    mark = f"interrupted-{tmp_path.name}-{os.getpid()}"
    (tmp_path / "start" / "a.py").write_text("import time; time.sleep(60)")
    for level in ("walls", "none"):
        command, out = ["{python}", "-S", "a.py", mark], tmp_path / "out"
        args = (box.Box(level), command, tmp_path / "start", {}, out, box.Limits())
        with ThreadPoolExecutor() as pool:
            future = pool.submit(box.run, *args)
            while not [line for line in box.command_lines() if mark.encode() in line and b"a.py" in line[:200]]:
                time.sleep(0.02)
            box.stop()
            with pytest.raises(box.Stopped):
                future.result(20)
        with pytest.raises(box.Stopped):
            box.run(*args)
        box.STOP.clear()
        assert not [line for line in box.command_lines() if mark.encode() in line]


@pytest.mark.slow
@pytest.mark.parametrize(("train", "state", "reproduced"), [
    (GOOD, "done", True), (fails_in("train", "sys.exit('no images')"), "failed", False),
    (GOOD.replace('open(words[3], "wb")', 'open("other.pth", "wb")'), "done", False)])
def test_a_model_trained_anew_is_tested_too(train, state, reproduced, teacher, tmp_path):
    source = submission(tmp_path, "2021CS10001", train)
    (record,) = batch.grade([source], "vae", tmp_path / "out", **teacher, threads=1)
    assert record["runs"]["train"]["state"] == state
    assert ("retrained" in record["scores"]) == reproduced
    if reproduced:
        assert record["scores"]["retrained"] == record["scores"]["shipped"]
        assert list(record["runs"])[-1] == "classify retrained again"
    else:
        assert "saved by the training" in record["details"]["retrained"]["missing"]


@pytest.mark.parametrize(("change", "sentence"), [
    ({"test": None}, "--test"), ({"test": Path("none.npz")}, "none.npz"), ({"rubric": Path("none.toml")}, "none.toml"),
    ({"val": None}, "--val"), ({"sources": [Path("nowhere.zip")]}, "nowhere.zip"), ({"sources": []}, "no submission"),
    ({"out": Path("class/out")}, "lies in")])
def test_the_teacher_s_mistakes_are_one_sentence(change, sentence, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("class").mkdir()
    submission(Path("class"), "2021CS10001", GOOD)
    settings = {"sources": [Path("class")], "part": "vae", "out": tmp_path / "out", **teacher, **change}
    with pytest.raises(UserError, match=sentence):
        batch.grade(**settings)


def test_the_command_tells_what_is_missing(tmp_path, capsys):
    for words, sentence in ((["a.zip"], "--test"), (["--again", "--out", str(tmp_path)], "no graded submissions")):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["grade", *words])
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_copy_with_other_names_is_found_and_an_honest_pair_is_not(tmp_path):
    """On programs of some length: nestling's own."""
    sources = {"a": (ROOT / "vae.py").read_text(), "c": (ROOT / "bird.py").read_text()}
    sources["b"] = re.sub(r"\b(net|images|mixture|labels|cfg|means|path)\b", r"my_\1", sources["a"])
    submissions = []
    for entry, text in sorted(sources.items()):
        (tmp_path / entry).mkdir()
        (tmp_path / entry / "vae.py").write_text(text)
        submissions.append(Submission(entry, entry, tmp_path / entry, tmp_path / entry / "vae.py", {}))
    pairs = batch.similarity(submissions)
    assert pairs == batch.similarity(submissions)          # PYTHONHASHSEED: the same each time
    shares = {frozenset(pair): share for *pair, share in pairs}
    assert shares[frozenset("ab")] > 0.9
    assert max(shares[frozenset("ac")], shares[frozenset("bc")]) < 0.7 < shares[frozenset("ab")]
