"""An autograder for Gradescope: form, rules and the shipped model, which fit into its 40 minutes; nothing is trained.

    setup.sh            once, as root: Debian packages, then this project at its pinned versions
    run_autograder      for each submission; /autograder/results/results.json
    source/             this project
    data/               the held-out set, and the rubric; readable by root only while submissions run
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from nestling.files import UserError, check_outputs, write_atomic
from nestling.grade.marks import read_rubric

HOME = Path(__file__).parents[2]
SOURCE = ("bird.py", "vae.py", "install.sh", "pyproject.toml", "constraints.txt", "README.md", "nestling/**/*.py",
          "nestling/**/*.typ", "nestling/**/*.toml", "nestling/**/*.html")
SETUP = """#!/usr/bin/env bash
set -euo pipefail
apt-get update -q && apt-get install -qy bubblewrap python3 python3-venv
cd "${AUTOGRADER:-/autograder}/source/source" && ./install.sh
.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[grade]"
"""
RUN = """#!/usr/bin/env bash
# Gradescope calls this as root; the submission runs as another user, in a sandbox where one stands.
set -euo pipefail
root=${AUTOGRADER:-/autograder}
umask 022
mkdir -p "$root/results"
chmod 700 "$root/results" "$root/source/data"
rm -rf "$root/work" && mkdir "$root/work"
cp -r "$root/submission" "$root/work/submission"
[ ! -f "$root/submission_metadata.json" ] || cp "$root/submission_metadata.json" "$root/work/submission/"
cd "$root/source/source"
${PYTHON:-.venv/bin/python} -m nestling.cli grade "$root/work/submission" --part PART OPTIONS \\
    --rubric "$root/source/data/rubric.toml" --out "$root/work/graded"
cp "$root"/work/graded/*/results.json "$root/results/results.json"
"""


def make(out: Path, part: str, test: Path | None, val: Path | None = None, recon: Path | None = None,
         rubric: Path | None = None) -> None:
    """Writes the zip to upload; the same inputs give the same bytes.

    Raises UserError if `test` is missing or the rubric is wrong.
    """
    if test is None or not test.exists():
        raise UserError(f"--make-autograder needs --test, the held-out set; {test or 'none'} does not exist.")
    check_outputs([out], [path for path in (test, val, recon, rubric) if path])
    read_rubric(rubric, part)                              # a wrong one is told here, not on Gradescope
    members = {f"source/{path.relative_to(HOME)}": path for pattern in SOURCE for path in HOME.glob(pattern)}
    options = []
    for name, given in (("test", test), ("val", val), ("recon", recon)):
        if given and given.is_dir():
            members |= {f"data/{name}/{path.relative_to(given)}": path for path in given.rglob("*") if path.is_file()}
        elif given:
            members[f"data/{name}{given.suffix}"] = given
        if given:
            options.append(f'--{name} "$root/source/data/{name}{given.suffix * given.is_file()}"')
    members["data/rubric.toml"] = rubric or Path(__file__).with_name("rubric.toml")
    texts = {"setup.sh": SETUP, "run_autograder": RUN.replace("PART", part).replace("OPTIONS", " ".join(options))}
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name in sorted([*members, *texts]):
            info = zipfile.ZipInfo(name)
            executable = name in texts or name.endswith(".sh")
            info.create_system, info.external_attr = 3, (0o100755 if executable else 0o100644) << 16
            content = texts[name].encode() if name in texts else members[name].read_bytes()
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    write_atomic(out, buffer.getvalue())
