"""The zip of the contract: the same bytes each time, and each thing that a grader would refuse is named."""

import zipfile
from pathlib import Path

import pytest
import typst

import bird
from nestling import cli, submit
from nestling.files import UserError

LINK, ENTRIES = "https://example.org/bird.pth", "2021CS10001, 2020aiz8123"
PROGRAM = """
class BirdNet:
    def parameters(self):
        class P:
            def numel(self):
                return {count}
        return [P()]
"""


def pdf(path: Path, pages: int = 2, first: str = "Asha Rao 2021CS10001, Ivo Petrov 2020AIZ8123") -> Path:
    """A report of so many pages."""
    text = "#set document(date: none)\n" + "#pagebreak()\n".join([f"{first}\n\n", *["more\n"] * (pages - 1)])
    path.write_bytes(typst.compile(text.encode(), format="pdf", ignore_system_fonts=True))
    return path


@pytest.fixture
def parts(tmp_path) -> dict:
    """A good submission of a small stand-in for bird.py."""
    (tmp_path / "bird.py").write_text(PROGRAM.format(count=7))
    return {"name": "bird", "program": tmp_path / "bird.py", "report": pdf(tmp_path / "report.pdf"),
            "link": LINK, "entries": ENTRIES, "out": tmp_path / "submission.zip"}


def test_the_zip_is_the_contract_s_and_its_bytes_do_not_change(parts):
    names = submit.submit(**parts)
    group = "2021CS10001_2020AIZ8123"
    files = ("bird.py", "model_path.txt", "group.txt", f"{group}.pdf")
    assert names == sorted(f"{group}/{name}" for name in files)
    with zipfile.ZipFile(parts["out"]) as archive:
        assert archive.testzip() is None
        assert archive.read(f"{group}/model_path.txt").decode().splitlines()[0] == LINK
        assert archive.read(f"{group}/group.txt").decode() == "2021CS10001\n2020AIZ8123\n"
        assert archive.read(f"{group}/bird.py") == parts["program"].read_bytes()
        assert archive.read(f"{group}/{group}.pdf") == parts["report"].read_bytes()
    before = parts["out"].read_bytes()
    parts["program"].touch()
    submit.submit(**parts)
    assert parts["out"].read_bytes() == before


@pytest.mark.slow
def test_the_project_s_own_programs_pass(parts, monkeypatch):
    assert "2021CS10001_2020AIZ8123/vae.py" in submit.submit(**parts | {"name": "vae", "program": None})
    count = sum(p.numel() for p in bird.BirdNet().parameters())  # here, as importing torch costs seconds
    monkeypatch.setattr(submit, "count_parameters", lambda *_: str(count))
    assert "2021CS10001_2020AIZ8123/bird.py" in submit.submit(**parts | {"program": None})


@pytest.mark.parametrize(("change", "remedy"), [
    ({"entries": ""}, "give the entry numbers"), ({"entries": "2021CS10001,2021cs10001"}, "give each once"),
    ({"entries": "21CS1,2021CS10001"}, "21CS1 has an unknown form"),
    ({"entries": "2021CS10001,2019EE10999"}, "2019EE10999 in its first line"),
    *(({"link": link}, "starts with https://") for link in (
        "bird.pth", "https://nowhere", "ftp://example.org/x", "https://example.org/a b")),
])
def test_a_wrong_word_is_refused_with_its_remedy(parts, change, remedy):
    with pytest.raises(UserError, match=remedy):
        submit.submit(**parts | change)
    assert not parts["out"].exists()


@pytest.mark.parametrize(("source", "remedy"), [
    ("import nestling.ablate\n", r"imports nestling, .* write what is needed into bird\.py itself"),
    ("from . import helper\n", r"imports \.,"),
    ("raise OSError('no data here')\n", r"no BirdNet .*\(OSError: no data here\)"), ("x = 1\n", "no BirdNet"),
    ("def broken(:\n", "no valid Python"),
    (PROGRAM.format(count=80_000_001), "80,000,001 parameters, more than 80,000,000"),
])
def test_a_program_that_would_fail_at_the_grader_s_is_refused(parts, source, remedy):
    parts["program"].write_text(source)
    with pytest.raises(UserError, match=remedy):
        submit.submit(**parts)
    assert not parts["out"].exists()


def test_a_program_of_another_name_is_refused(parts):
    parts["program"] = parts["program"].rename(parts["program"].with_name("my_bird.py"))
    for program in (parts["program"], parts["program"].with_name("bird.py")):
        with pytest.raises(UserError, match=r"no file called bird\.py"):
            submit.submit(**parts | {"program": program})


def test_a_report_that_would_fail_is_refused(parts, tmp_path):
    long = pdf(tmp_path / "long.pdf", pages=4)
    for report, remedy in ((long, "has 4 pages; shorten"), (tmp_path / "no.pdf", "does not exist"),
                         (tmp_path / "bird.py", "cannot be read as a PDF")):
        with pytest.raises(UserError, match=remedy):
            submit.submit(**parts | {"report": report})
    parts["out"].write_bytes(b"an earlier one")
    with pytest.raises(UserError):
        submit.submit(**parts | {"link": ""})
    assert parts["out"].read_bytes() == b"an earlier one"


def test_all_faults_are_named_at_once_and_the_status_is_2(parts, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["submit", "bird", "--report", str(tmp_path / "no.pdf"), "--link", "x", "--entries", "a",
                  "--out", str(tmp_path / "s.zip"), "--program", str(parts["program"])])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    for remedy in ("such as 2021CS10001", "starts with https://", "nestling report"):
        assert remedy in said
