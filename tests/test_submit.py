"""The zip of the contract: the same bytes each time, and each thing that a grader would refuse is named."""

import os
import sys
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


def raw_pdf(content: bytes, trailer: bytes = b"", stream: bytes = b"") -> bytes:
    """A PDF of one page with this content, by hand."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
               b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
               b"<</Length %d%b>>\nstream\n%b\nendstream" % (len(content), stream, content),
               b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>"]
    out, places = b"%PDF-1.7\n", []
    for k, body in enumerate(objects):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (k + 1, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + (b"xref\n0 6\n0000000000 65535 f \n%btrailer\n<</Size 6/Root 1 0 R%b>>\nstartxref\n%d\n%%%%EOF\n"
                  % (table, trailer, len(out)))


LINE = b"BT /F1 12 Tf 10 100 Td (A. Student 2021CS10001) Tj ET\n"
AES = (b"/ID[<00><00>]/Encrypt<</Filter/Standard/V 5/R 6/Length 256/O(%b)/U(%b)/OE(%b)/UE(%b)/Perms(%b)/P -4/CF<</StdCF"
       b"<</CFM/AESV3/Length 32/AuthEvent/DocOpen>>>>/StmF/StdCF/StrF/StdCF>>" % (
           b"a" * 48, b"b" * 48, b"c" * 32, b"d" * 32, b"e" * 16))


@pytest.mark.parametrize(("content", "remedy"), [
    (raw_pdf(LINE), None), (raw_pdf(LINE, AES), "cannot be read as a PDF"),
    (raw_pdf(LINE, b"/ID[<00><00>]/Encrypt<</Filter/Foo/V 9/R 9>>"), "cannot be read as a PDF"),
    (raw_pdf(b"[" * 100_000 + LINE), "cannot be read as a PDF"),
    (raw_pdf(LINE, stream=b"/Filter/JBIG2Decode"), "cannot be read as a PDF"),
    (raw_pdf(b"BT /F1 12 Tf 10 100 Td (Nobody) Tj 0 -20 Td (as 2021CS10001 showed) Tj ET"), "in its first line"),
    (raw_pdf(LINE.replace(b"10001", b"100019")), "in its first line")],
    ids=["good", "encrypted", "unknown handler", "deep", "JBIG2", "second line", "longer number"])
def test_a_strange_pdf_is_one_sentence(content, remedy, tmp_path):
    (tmp_path / "r.pdf").write_bytes(content)
    found = list(submit.check_report(submit.RULES["bird"], tmp_path / "r.pdf", ["2021CS10001"]))
    assert len(found) == (remedy is not None)
    assert all(remedy in sentence for sentence in found)


def test_what_a_program_starts_ends_with_it(tmp_path):
    code = ("import os, subprocess, sys, time\n"
            "sleep = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
            "for new in (False, True):\n"
            "    print(subprocess.Popen(sleep, start_new_session=new).pid, flush=True)\n")
    for more, seconds, expected in (("", 60, 0), ("time.sleep(60)", 1, None)):
        status, out, _ = submit.run_alone([sys.executable, "-c", code + more], tmp_path, seconds)
        assert status == expected
        for pid in map(int, out.split()):
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert len(out.split()) == 2


@pytest.mark.parametrize("source", [
    b"\xef\xbb\xbfimport torch\r\n", b"# -*- coding: cp1252 -*-\nname = 'M\xe9sange'\nimport torch\n"])
def test_a_program_saved_by_a_windows_editor_is_read(source):
    assert submit.imports(source) == {"torch"}


def test_all_faults_are_named_at_once_and_the_status_is_2(parts, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["submit", "bird", "--report", str(tmp_path / "no.pdf"), "--link", "x", "--entries", "a",
                  "--out", str(tmp_path / "s.zip"), "--program", str(parts["program"])])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    for remedy in ("such as 2021CS10001", "starts with https://", "nestling report"):
        assert remedy in said
