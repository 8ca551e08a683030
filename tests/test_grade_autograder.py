"""The autograder's zip, run as Gradescope would."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
from test_grade_batch import GOOD, submission, teacher  # noqa: F401

from nestling.files import UserError
from nestling.grade.autograder import make


@pytest.mark.slow
def test_the_autograder_grades_what_gradescope_gives_it(teacher, tmp_path):  # noqa: F811
    for name in ("a.zip", "b.zip"):
        make(tmp_path / name, "vae", teacher["test"], teacher["val"])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    root = tmp_path / "autograder"
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(root / "source")
    with zipfile.ZipFile(submission(tmp_path, "2021CS10001", GOOD)) as archive:
        archive.extractall(root)
    (root / "2021CS10001").rename(root / "submission")
    (root / "submission_metadata.json").write_text(json.dumps({
        "created_at": "2026-11-20T10:00:00.000000+00:00", "users": [{"name": "A. Student", "sid": "2021CS10001"}]}))
    env = os.environ | {"AUTOGRADER": str(root), "PYTHON": sys.executable}
    done = subprocess.run(["bash", root / "source" / "run_autograder"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((root / "results" / "results.json").read_text())
    assert results["score"] > 0
    assert {"tests", "output", "visibility", "leaderboard"} <= set(results)
    assert (root / "results").stat().st_mode & 0o077 == 0          # the submission, another user, cannot read it


def test_an_autograder_without_a_held_out_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs --test"):
        make(tmp_path / "a.zip", "bird", tmp_path / "none")
