"""The project's own promises: starter files, pins, notebook, Makefile and CI say what is true."""

import os
import subprocess
import sys
import tomllib

import nbformat
import yaml
from conftest import ROOT


def pins() -> dict[str, str]:
    """Package -> version, of the one constraints file."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if not line.startswith("#"))


def test_environment_yml_has_the_pinned_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (through_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    six = {"torch", "torchvision", "numpy", "pillow", "scikit-learn", "tqdm"}
    assert six <= {requirement.split("==")[0] for requirement in through_pip}
    for requirement in through_pip:
        name, version = requirement.split("==")
        assert pins()[name] == version


def test_all_that_pyproject_asks_for_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {name.lower() for name in asked} <= set(pins())


def test_the_versions_in_use_are_the_pinned_ones():
    from importlib.metadata import version
    for name in ("torch", "torchvision", "numpy", "pillow", "scikit-learn", "tqdm"):
        assert version(name).split("+")[0] == pins()[name]


def test_install_sh_uses_conda_when_asked(tmp_path):
    (tmp_path / "conda").write_text('#!/bin/sh\necho "conda $@"\n')
    (tmp_path / "conda").chmod(0o755)
    with_conda = subprocess.run([ROOT / "install.sh", "--conda"], capture_output=True, text=True,
                                env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert with_conda.stdout.strip() == "conda env update --file environment.yml"
    without = subprocess.run([ROOT / "install.sh", "--conda"], capture_output=True, text=True,
                             env={**os.environ, "PATH": "/usr/bin:/bin"})
    assert without.returncode == 2
    assert "conda is not installed" in without.stderr


def test_install_sh_refuses_an_old_python(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")        # as `sys.exit(sys.version_info < (3, 11))` would
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run([ROOT / "install.sh"], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": str(tmp_path / "python")})
    assert done.returncode == 2
    assert "3.11 or newer" in done.stderr


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("NESTLING_MINUTES", "0.3")
    monkeypatch.setenv("NESTLING_BIRDS", "8")
    monkeypatch.setenv("NESTLING_OUT", str(tmp_path))
    notebook = nbformat.read(ROOT / "run.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)          # kept clean in the repository
    subprocess.run([sys.executable, "-c", NOTEBOOK, ROOT / "run.ipynb"], cwd=ROOT, check=True)
    assert (tmp_path / "bird.csv").exists()
    assert (tmp_path / "vae.csv").exists()
    for part in ("bird", "vae"):
        assert (tmp_path / f"report_{part}.pdf").read_bytes().startswith(b"%PDF")


# in a process of its own: the client of Jupyter's kernels raises warnings that are not ours
NOTEBOOK = """
import sys, nbformat
from nbclient import NotebookClient
NotebookClient(nbformat.read(sys.argv[1], as_version=4), timeout=300, kernel_name="python3").execute()
"""


def test_readme_and_ci_name_the_same_test_command():
    assert "make test" in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
