"""The zip of the contract: the same bytes each time, and each thing that a grader would refuse is named."""

import zipfile
from pathlib import Path

import pytest
import typst

import bird
from nestling import cli, submit

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
    return {"name": "bird", "program": tmp_path / "bird.py", "report": pdf(tmp_path / "report.pdf"), "link": LINK,
            "entries": ENTRIES, "out": tmp_path / "submission.zip"}


def test_the_zip_is_the_contract_s_and_its_bytes_do_not_change(parts):
    names = submit.submit(**parts)
    group = "2021CS10001_2020AIZ8123"
    assert names == sorted(f"{group}/{name}" for name in ("bird.py", "model_path.txt", "group.txt", f"{group}.pdf"))
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


@pytest.mark.parametrize("name", ["bird", "vae"])
def test_the_project_s_own_programs_pass(name, parts):
    parts |= {"name": name, "program": submit.home_of(name)}
    assert f"2021CS10001_2020AIZ8123/{name}.py" in submit.submit(**parts)


@pytest.mark.parametrize(("change", "mend"), [
    ({"entries": ""}, "give the entry numbers"), ({"entries": "21CS1,2021CS10001"}, "such as 2021CS10001"),
    ({"entries": "2021CS10001,2021cs10001"}, "give each once"), ({"link": "bird.pth"}, "starts with https://"),
    ({"link": "https://example.org/a b"}, "starts with https://"), ({"link": "ftp://example.org/x"}, "https://"),
    ({"entries": "2021CS10001,2019EE10999"}, "2019EE10999 on its first page"),
])
def test_a_wrong_word_is_refused_with_its_mend(parts, change, mend):
    with pytest.raises(bird.Mistake, match=mend):
        submit.submit(**parts | change)
    assert not parts["out"].exists()


@pytest.mark.parametrize(("source", "mend"), [
    ("import nestling.ablate\n", "write what is needed into bird.py itself"), ("from . import helper\n", "imports ."),
    ("raise OSError('no data here')\n", "does not start alone"), ("def broken(:\n", "no valid Python"),
    ("x = 1\n", "no class BirdNet"), (PROGRAM.format(count=80_000_001), "80,000,001 parameters, more than 80,000,000"),
])
def test_a_program_that_would_fail_at_the_grader_s_is_refused(parts, source, mend):
    parts["program"].write_text(source)
    with pytest.raises(bird.Mistake, match=mend):
        submit.submit(**parts)
    assert not parts["out"].exists()


def test_a_report_that_would_fail_is_refused(parts, tmp_path):
    long = pdf(tmp_path / "long.pdf", pages=4)
    for report, mend in ((long, "has 4 pages; shorten"), (tmp_path / "no.pdf", "does not exist"),
                         (tmp_path / "bird.py", "cannot be read as a PDF")):
        with pytest.raises(bird.Mistake, match=mend):
            submit.submit(**parts | {"report": report})
    parts["out"].write_bytes(b"an earlier one")
    with pytest.raises(bird.Mistake):
        submit.submit(**parts | {"link": ""})
    assert parts["out"].read_bytes() == b"an earlier one"


def test_all_faults_are_named_at_once_and_the_status_is_2(parts, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["submit", "bird", "--report", str(tmp_path / "no.pdf"), "--link", "x", "--entries", "a",
                  "--out", str(tmp_path / "s.zip"), "--program", str(parts["program"])])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert all(mend in said for mend in ("such as 2021CS10001", "starts with https://", "nestling report"))
