"""The project's own promises: starter files, pins, imports, lengths, notebook and CI say what is true."""

import ast
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT

SIX = {"torch", "torchvision", "numpy", "pillow", "scikit-learn", "tqdm"}
LINES = {"bird.py": 950, "vae.py": 890, "README.md": 110, "bench/RESULTS.md": 150, "docs/log.md": 300,
         "docs/decisions.md": 60}


def pins() -> dict[str, str]:
    """Package -> version, of the one constraints file."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if not line.startswith("#"))


def imports(path: Path) -> set[str]:
    """Every module and name that a file imports, at its top or inside; relative ones made absolute."""
    found, package = set(), path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def test_environment_yml_has_the_pinned_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (through_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    asked = dict(requirement.split("==") for requirement in through_pip)
    assert set(asked) >= SIX
    assert asked == {name: pins()[name] for name in asked}


def test_all_that_pyproject_asks_for_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {name.lower() for name in asked} <= set(pins())
    assert set(asked) >= SIX


@pytest.mark.parametrize("name", sorted(SIX))
def test_the_version_in_use_is_the_pinned_one(name):
    assert version(name).split("+")[0] == pins()[name]


@pytest.mark.parametrize("program", ["bird.py", "vae.py"])
def test_a_program_imports_the_six_packages_and_nothing_else(program):
    modules = {name.split(".")[0] for name in imports(ROOT / program)} - sys.stdlib_module_names
    assert modules <= {"torch", "torchvision", "numpy", "PIL", "sklearn", "tqdm"}


def test_report_page_and_grade_never_import_each_other():
    rooms = {"report", "page", "grade"}
    for room in rooms:
        others = tuple(f"nestling.{other}" for other in rooms - {room})
        for path in (ROOT / "nestling" / room).rglob("*.py"):
            assert not [name for name in imports(path) if name.startswith(others)], path


def test_imports_are_found_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "nestling" / "report").mkdir(parents=True)
    file = tmp_path / "nestling" / "report" / "a.py"
    file.write_text("import os.path\ndef f():\n    from .. import page\n    from ..grade.marks import m\n"
                    "    from nestling import cli\n    from . import b\n")
    assert imports(file) == {"os.path", "nestling", "nestling.page", "nestling.grade.marks", "nestling.cli",
                             "nestling.grade.marks.m", "nestling.report", "nestling.report.b"}


@pytest.mark.parametrize("name", LINES)
def test_a_file_stays_short(name):
    lines = len((ROOT / name).read_text().splitlines())
    assert lines <= LINES[name]


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


@pytest.mark.parametrize(("word", "python", "status", "sentence"), [
    ("--help", "python3", 0, "./install.sh --dev"), ("-h", "python3", 0, "./install.sh --conda"),
    ("--Dev", "python3", 2, "--Dev is no option"), ("--dev", "python9", 2, "python9 is not found")])
def test_install_sh_tells_wrong_words_before_it_installs(word, python, status, sentence):
    done = subprocess.run([ROOT / "install.sh", word], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": python})
    assert (done.returncode, sentence in done.stdout + done.stderr) == (status, True)


def test_install_sh_refuses_an_old_python(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")        # as sys.exit(sys.version_info < (3, 11))
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run([ROOT / "install.sh"], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": str(tmp_path / "python")})
    assert done.returncode == 2
    assert "3.11 or newer" in done.stderr


def test_readme_and_ci_name_the_same_test_command():
    assert "make test" in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(ROOT / "run.ipynb", as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
