"""What a class hands in: hostile zips and folders, form, names; and what a program's syntax tree tells."""

import json
import os
import random
import stat
import zipfile
from pathlib import Path

import pytest

from nestling.files import UserError
from nestling.grade import intake, rules
from nestling.grade.intake import digest

A, B = "2021CS10001", "2020AIZ8123"
GROUP, LINK = f"{A}_{B}", "https://example.org/bird.pth"
GOOD = {f"{GROUP}/bird.py": b"print(1)\n", f"{GROUP}/group.txt": f"{A}\n{B}\n".encode(),
        f"{GROUP}/model_path.txt": f"{LINK}\n".encode(), f"{GROUP}/{GROUP}.pdf": b"%PDF-1.7"}


def moved(change: dict[str, bytes | None]) -> dict[str, bytes]:
    """The good submission with files added, replaced, or left out (None)."""
    return {name: data for name, data in (GOOD | change).items() if data is not None}


def write_zip(path: Path, files: dict, mode: int = 0o100644, method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            info.external_attr, info.create_system = info.external_attr or mode << 16, 3
            archive.writestr(info, data, method)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def take(tmp_path):
    """Takes in sources; the names of the teacher's files and their bytes stay as they were."""
    def run(*sources: Path, part: str = "bird", models: Path | None = None):
        return intake.intake(list(sources), part, models, tmp_path / "work")

    return run


def kinds(submission) -> list[str]:
    return [finding.kind for finding in submission.findings]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------ form

def test_a_good_zip_has_no_finding_and_is_copied_whole(take, tmp_path):
    path = write_zip(tmp_path / "submission.zip", GOOD)
    before = path.read_bytes()
    [got] = take(path)
    assert (got.entry, got.source, got.submitted) == (GROUP, "submission.zip", None)
    assert (got.faults, got.findings) == ((), ())
    assert got.folder == tmp_path / "work" / GROUP
    assert got.program == got.folder / GROUP / "bird.py"
    assert contents(got.folder) == GOOD
    assert got.models == {}
    assert path.read_bytes() == before
    assert [item.name for item in (tmp_path / "work").iterdir()] == [GROUP]


def test_a_good_folder_is_the_contract_s_own(take, tmp_path):
    write_folder(tmp_path, GOOD)
    [got] = take(tmp_path / GROUP)
    assert (got.entry, got.faults, got.findings) == (GROUP, (), ())
    assert contents(tmp_path / GROUP) == contents(got.folder)


@pytest.mark.parametrize(("change", "expected", "words"), [
    ({f"{GROUP}/group.txt": None}, "group", "missing"),
    ({f"{GROUP}/group.txt": b"Asha and Ivo\n"}, "group", "no entry number"),
    ({f"{GROUP}/group.txt": f"{A}\n".encode()}, "group", f"not list {B}"),
    ({f"{GROUP}/model_path.txt": None}, "link", "missing"),
    ({f"{GROUP}/model_path.txt": b""}, "link", "no web address"),
    ({f"{GROUP}/model_path.txt": b"\n" + LINK.encode()}, "link", "first line"),
    ({f"{GROUP}/model_path.txt": b"https://" + b"." * 60_000 + b" x"}, "link", "no web address"),
    ({f"{GROUP}/{GROUP}.pdf": None}, "report", "missing"),
    ({f"{GROUP}/{GROUP}.pdf": None, f"{GROUP}/report.pdf": b""}, "report", "called report.pdf"),
    ({f"{GROUP}/{GROUP}.pdf": None, f"{GROUP}/{A}.pdf": b""}, "report", f"called {A}.pdf"),
])
def test_each_fault_of_form_is_one_finding(take, tmp_path, change, expected, words):
    [got] = take(write_zip(tmp_path / "s.zip", moved(change)))
    assert got.entry == GROUP
    assert kinds(got) == [expected]
    assert words in got.findings[0].text
    assert not got.faults


@pytest.mark.parametrize("change", [
    {f"{GROUP}/group.txt": f"{B.lower()}\r\n{A}".encode("utf-16")},                     # as Windows writes it
    {f"{GROUP}/group.txt": b"\xef\xbb\xbf" + f"{A}\n{B}".encode()},
    {f"{GROUP}/{GROUP}.pdf": None, f"{GROUP}/{B.lower()}_{A}.PDF": b""},
    {f"{GROUP}/model_path.txt": b"\xef\xbb\xbfhttps://drive.google.com/file/d/1/view?usp=sharing \r\nmore"},
    {"__MACOSX/bird.py": b"", f"{GROUP}/.ipynb_checkpoints/bird.py": b"", f"{GROUP}/.DS_Store": b"",
     f"{GROUP}/__pycache__/bird.pyc": b"", f"{GROUP}/.git/{'x' * 240}/{'x' * 240}/{'x' * 240}": b""},
])
def test_what_is_no_deviation_is_no_finding(take, tmp_path, change):
    [got] = take(write_zip(tmp_path / "s.zip", moved(change)))
    assert (got.faults, got.findings) == ((), ())
    assert not [name for name in contents(got.folder) if "__" in name or "/." in name]


# ------------------------------------------------------------------ the program

@pytest.mark.parametrize(("place", "finding"), [
    ("bird.py", []), ("x/bird.py", []), ("A3/src/bird.py", ["folder"]),
])
def test_the_program_is_found_two_levels_down(take, tmp_path, place, finding):
    [got] = take(write_zip(tmp_path / f"{A}.zip", {place: b"1"}))
    assert got.program == got.folder / place
    assert not got.faults
    assert [kind for kind in kinds(got) if kind == "folder"] == finding


def test_a_folder_named_by_its_entry_is_the_contract_s_one_folder(take, tmp_path):
    write_folder(tmp_path / A, {"src/bird.py": b"1"})
    [got] = take(tmp_path / A)
    assert (got.entry, got.findings[0].kind, got.findings[0].file) == (A, "folder", "src/bird.py")


@pytest.mark.parametrize(("files", "words"), [
    ({"a/bird.py": b"", "b/bird.py": b""}, "a/bird.py and b/bird.py; only one"),
    ({"a/b/c/bird.py": b""}, "first 2 levels of folders; there is a/b/c/bird.py"),
    ({"a/model.py": b"", "a/x.pdf": b""}, "the only program in it is a/model.py"),
    ({"a/Bird.py": b"", "a/vae.py": b""}, "there are a/Bird.py and a/vae.py"),
    ({"a/bird.ipynb": b""}, "there is a/bird.ipynb"),
    ({f"{k}.txt": b"" for k in range(9)}, "0.txt, 1.txt, 2.txt, 3.txt and 5 more"),
    ({}, "no file in it"),
])
def test_without_one_program_the_sentence_names_what_is_there(take, tmp_path, files, words):
    [got] = take(write_zip(tmp_path / f"{A}.zip", files))
    assert got.entry == A
    assert got.program is None
    assert words in got.faults[0]
    assert len(got.faults) == 1


# ------------------------------------------------------------------ hostile zips

def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(("files", "words"), [
    ({special("bird.csv", stat.S_IFLNK | 0o777): b"/etc/passwd"}, "bird.csv, which is a link"),
    ({special("pipe", stat.S_IFIFO | 0o777): b""}, "no regular file"),
    ({"../evil.py": b""}, "leads out"), ({"a/../../evil.py": b""}, "leads out"), ({"/etc/evil": b""}, "leads out"),
    ({"..\\evil.py": b""}, "leads out"), ({"C:\\evil.py": b""}, "leads out"),
    ({"__MACOSX/../../evil.py": b""}, "leads out"),
    ({"a": b"", "a/b": b""}, "twice"), ({"a/b": b"", "a": b""}, "twice"),
    ({"./bird.py": b"", "bird.py": b""}, "twice"),
    ({"x" * 251: b""}, "too long"), ({"abcdefg/" * 70 + "x": b""}, "too long"),
    ({"submission_metadata.yml": b""}, "unpack it"),
])
def test_a_zip_that_reaches_out_is_a_fault_and_leaves_nothing(take, tmp_path, files, words):
    [got] = take(write_zip(tmp_path / f"{A}.zip", {"bird.py": b"1", **files}))
    assert got.entry == A
    assert got.program is None
    assert words in got.faults[0]
    assert contents(got.folder) == {}
    assert not list(tmp_path.rglob("evil*"))


def test_real_bytes_and_files_are_counted(take, tmp_path, monkeypatch):
    bomb = write_zip(tmp_path / f"{A}.zip", {"bird.py": bytes(10_000_000)})
    many = write_zip(tmp_path / f"{B}.zip", {f"{k}.txt": b"" for k in range(20)})
    assert bomb.stat().st_size < 20_000
    monkeypatch.setattr(intake, "MAX_BYTES", 9_000_000)
    monkeypatch.setattr(intake, "MAX_FILES", 20)
    first, second = take(bomb, many)
    assert "more than 9,000,000 bytes" in first.faults[0]
    assert "no bird.py" in second.faults[0]
    monkeypatch.setattr(intake, "MAX_FILES", 19)
    assert "more than 19 files" in take(many)[0].faults[0]
    write_folder(tmp_path / "folder", {"bird.py": bytes(9_000_001)})
    assert "more than 9,000,000 bytes" in take(tmp_path / "folder")[0].faults[0]
    monkeypatch.setattr(intake, "MAX_TABLE", 500)
    assert "table of contents is too large" in take(many)[0].faults[0]


def patched(path: Path, marks: tuple[bytes, bytes], offsets: tuple[int, int], value: bytes) -> Path:
    """Overwrites a field in a zip's local header and its table of contents."""
    data = bytearray(path.read_bytes())
    for mark, offset in zip(marks, offsets, strict=True):
        start = data.index(mark) + offset
        data[start:start + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("offsets", "value", "words"), [
    ((6, 8), b"\x01\x00", "encrypted"), ((8, 10), b"\x0c\x00", "method 12"), ((8, 10), b"\x63\x00", "method 99"),
    ((22, 24), b"\x05\x00\x00\x00", "damaged"), ((22, 24), b"\xff\xff\x00\x00", "size that it declares"),
    ((18, 20), b"\x03\x00\x00\x00", "damaged"), ((14, 16), b"\x03\x00\x00\x00", "damaged"),
    ((6, 42), b"\x00\xff\xff\x7f", "damaged"),
])
def test_a_zip_whose_headers_lie_is_a_fault(take, tmp_path, offsets, value, words):
    path = write_zip(tmp_path / f"{A}.zip", {"bird.py": os.urandom(1000).hex().encode()})
    [got] = take(patched(path, (b"PK\3\4", b"PK\1\2"), offsets, value))
    assert got.entry == A
    assert words in got.faults[0]
    assert contents(got.folder) == {}


def test_no_damage_stops_the_batch(take, tmp_path):
    good = write_zip(tmp_path / "good.zip", GOOD).read_bytes()
    chance, paths = random.Random(0), []
    for k in range(150):
        data = bytearray(good[:chance.randrange(len(good))] if k % 3 == 0 else good)
        for _ in range(chance.randrange(1, 5) if data else 0):
            data[chance.randrange(len(data))] = chance.randrange(256)
            data[-chance.randrange(1, min(len(data), 300) + 1)] = chance.choice((0, 1, 0x7f, 0xff))
        paths.append(tmp_path / "zips" / f"{k:03}.zip")
        paths[-1].parent.mkdir(exist_ok=True)
        paths[-1].write_bytes(data)
    got = take(tmp_path / "zips")
    assert len(got) == 150
    assert len({each.entry for each in got}) == 150
    assert all(each.program or each.faults for each in got)
    assert sum(bool(each.faults) for each in got) > 75


@pytest.mark.parametrize(("name", "raw", "marked"), [
    ("prüfung.txt", "prüfung.txt".encode("cp437"), False), ("prüfung.txt", "prüfung.txt".encode(), False),
    ("प्रश्न.txt", "प्रश्न.txt".encode(), True), ("a_[2J_.txt", b"a\x1b[2J\n.txt", False),
])
def test_names_in_cp437_and_utf_8(take, tmp_path, name, raw, marked):
    path = write_zip(tmp_path / f"{A}.zip", {"bird.py": b"", "N" * len(raw): b"text"})
    data = path.read_bytes().replace(b"N" * len(raw), raw)
    if marked:
        data = data.replace(b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\0\x08").replace(
            b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\0\x08")
    path.write_bytes(data)
    [got] = take(path)
    assert contents(got.folder) == {"bird.py": b"", "".join(c if c.isprintable() else "_" for c in name): b"text"}


def test_backslashes_are_folders(take, tmp_path):
    [got] = take(write_zip(tmp_path / "s.zip", {name.replace("/", "\\"): data for name, data in GOOD.items()}))
    assert (got.entry, got.findings) == (GROUP, ())


# ------------------------------------------------------------------ hostile folders

def test_only_regular_files_of_a_folder_are_copied(take, tmp_path):
    secret = write_folder(tmp_path / "secret", {"key.txt": b"secret"})
    folder = write_folder(tmp_path / A, {"bird.py": b"1", f"{A}.pdf": b""})
    os.mkfifo(folder / "group.txt")
    (folder / "model_path.txt").symlink_to(secret / "key.txt")
    (folder / "all").symlink_to(secret)
    (folder / "loop").symlink_to(folder)
    (folder / "\udcff.txt").write_bytes(b"odd")
    [got] = take(folder)
    assert contents(got.folder) == {"bird.py": b"1", f"{A}.pdf": b"", "_.txt": b"odd"}
    assert kinds(got) == ["group", "link"]
    (folder / "bird.py").unlink()
    (folder / "bird.py").symlink_to(secret / "key.txt")
    assert "no bird.py was found" in take(folder)[0].faults[0]


def test_a_deep_folder_is_a_fault(take, tmp_path):
    (tmp_path / A / ("d/" * 400)).mkdir(parents=True)
    (tmp_path / A / ("d/" * 400) / "x").write_bytes(b"")
    assert "too long" in take(tmp_path / A)[0].faults[0]


def test_links_in_a_class_s_folder_are_named_and_not_followed(take, tmp_path):
    good = write_zip(tmp_path / "elsewhere" / "good.zip", GOOD)
    write_folder(tmp_path / "class", {f"{B}/bird.py": b"1"})
    (tmp_path / "class" / f"{A}.zip").symlink_to(good)
    first, second = take(tmp_path / "class")
    assert (first.entry, second.entry) == (B, A)
    assert not first.faults
    assert "a link" in second.faults[0]


# ------------------------------------------------------------------ sources

def test_a_folder_of_zips_and_folders(take, tmp_path):
    write_zip(tmp_path / "class" / "one.zip", GOOD)
    write_zip(tmp_path / "class" / "Asha Rao_17_file" / "submission.ZIP", {"bird.py": b""})        # as Moodle does
    write_folder(tmp_path / "class", {f"{A}/bird.py": b"1", "list.csv": b"", "x/src/bird.py": b"", "task.pdf": b"",
                                      "old.rar": b"Rar!", ".hidden/bird.py": b"", "work/y/bird.py": b""})
    got = intake.intake([tmp_path / "class"], "bird", None, tmp_path / "class" / "work")
    assert {each.source: each.entry for each in got} == {
        f"{A}": A, "Asha Rao_17_file/submission.ZIP": "Asha-Rao_17_file-submission", "old.rar": "old",
        "one.zip": GROUP, "x": "x"}
    assert [each.source for each in got if each.faults] == ["old.rar"]
    assert {each.source: kinds(each) for each in got}["x"] == ["group", "link", "report"]
    again = intake.intake([tmp_path / "class"] * 2, "bird", None, tmp_path / "class" / "work")
    assert again == got                              # each once, and the copies are replaced


def test_entries_are_unique_and_safe(take, tmp_path):
    for k in range(3):
        write_zip(tmp_path / "class" / f"{k}.zip", GOOD)
    write_zip(tmp_path / "class" / "=cmd|' !A0.zip", {"bird.py": b""})
    write_zip(tmp_path / "class" / "@@.zip", {"bird.py": b""})
    write_zip(tmp_path / "class" / "Ä.zip", {"bird.py": b"", "-rf/--x.txt": b""})
    entries = [each.entry for each in take(tmp_path / "class")]
    assert entries == [GROUP, f"{GROUP}-2", f"{GROUP}-3", "cmd----A0", "submission", "submission-2"]


@pytest.mark.parametrize(("source", "files", "entry"), [
    ("x.zip", {f"{GROUP}.pdf": b"", "bird.py": b""}, GROUP),
    ("x.zip", {"group.txt": f"{A}, {B}".encode(), "bird.py": b""}, GROUP),
    (f"{A}.zip", {f"{GROUP}/bird.py": b""}, GROUP),                 # the zip's name and the others of the group
    (f"{A}.zip", {"2019EE10999/bird.py": b""}, A),                  # somebody else's number counts for nothing
    (f"sub_{A.lower()}_v2.zip", {"a/bird.py": b""}, A),
    ("x.zip", {"group.txt": b"2021CS100011234", "bird.py": b""}, "x"),
    ("x.zip", {"group.txt": " ".join(f"2021CS1000{k}" for k in range(9)).encode()},
     "_".join(f"2021CS1000{k}" for k in range(6))),
])
def test_the_entry_is_of_the_folder_the_zip_the_report_or_the_group(take, tmp_path, source, files, entry):
    assert take(write_zip(tmp_path / source, files))[0].entry == entry


EXPORT = f"""---
submission_1:
  :submitters:
  - :name: Asha Rao
    :sid: '{A}'
    :email: asha@example.org
  - :name: Ivo
    :sid: {B.lower()}
  :created_at: 2026-11-20 10:00:00.123456000 Z
  :score: 1.0
  :results: {{}}
submission_2:
  :submitters:
  - :name: "Lena: \\e[31m"
    :sid: 007
  :created_at: !ruby/object:ActiveSupport::TimeWithZone
    utc: &1 2026-11-20 23:30:00.000000000 Z
    zone: !ruby/object:ActiveSupport::TimeZone
      name: Asia/Kolkata
    time: *1
submission_3:
  :submitters:
  :created_at: yesterday
"""


def test_a_gradescope_export(take, tmp_path):
    root = write_folder(tmp_path / "export", {
        "submission_metadata.yml": EXPORT.encode(), "submission_1/2019EE10999/bird.py": b"",
        "submission_2/bird.py": b"",
        "submission_2/submission_metadata.json": b'{"created_at": "2001-01-01T00:00"}',
        "submission_3/bird.py": b"", "submission_4/bird.py": b""})
    expected = [(GROUP, "2026-11-20T10:00:00+00:00"), ("submission_2", "2026-11-20T23:30:00+00:00"),
                ("submission_3", None), ("submission_4", None)]
    assert [(each.entry, each.submitted) for each in take(root)] == expected
    assert [(each.entry, each.submitted) for each in take(tmp_path / "export" / "..")] == expected
    (root / "submission_metadata.yml").write_text("a: [")
    with pytest.raises(UserError, match="Gradescope's metadata"):
        take(root)


@pytest.mark.parametrize(("text", "submitted"), [
    (json.dumps({"created_at": "2026-11-20T10:00:00.5+05:30", "users": []}), "2026-11-20T04:30:00+00:00"),
    (json.dumps({"created_at": "0001-01-01T00:00:00+05:30"}), None), ("[1]", None), ("{", None),
    ('{"created_at": 7}', None), ("[" * 50_000, None), ("1" * 5000, None),
])
def test_gradescope_s_json_at_the_top_of_a_folder(take, tmp_path, text, submitted):
    files = {"bird.py": b"", "submission_metadata.json": text.encode()}
    assert take(write_folder(tmp_path / "s", files))[0].submitted == submitted
    assert take(write_zip(tmp_path / "s.zip", files))[0].submitted is None       # a student's own word


def test_the_teacher_s_mistakes_are_said(take, tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    write_folder(tmp_path / "one", {"bird.py": b""})
    write_folder(tmp_path / "work" / "x", {"bird.py": b""})
    for source, words in (("none.zip", "does not exist"), ("empty", "holds no submission"), ("pipe", "neither"),
                          ("work/x", "lies in")):
        with pytest.raises(UserError, match=words):
            take(tmp_path / source)
    with pytest.raises(UserError, match="--models names the folder"):
        take(tmp_path / "one", models=tmp_path / "one" / "bird.py")
    with pytest.raises(UserError, match="lies in the submission"):
        intake.intake([tmp_path / "one"], "bird", None, tmp_path / "one" / "work")
    with pytest.raises(UserError, match="cannot be written"):
        intake.intake([tmp_path / "one"], "bird", None, write_zip(tmp_path / "s.zip", GOOD) / "work")


# ------------------------------------------------------------------ models and the digest

@pytest.mark.parametrize(("part", "given", "expected"), [
    ("bird", [f"{GROUP}.pth"], {"bird.pth": f"{GROUP}.pth"}), ("bird", [f"{B}.pth"], {"bird.pth": f"{B}.pth"}),
    ("bird", [f"{GROUP.lower()}/bird.pth"], {"bird.pth": f"{GROUP.lower()}/bird.pth"}),
    ("bird", [f"{A}/bird.pth", f"{GROUP}.pth"], {"bird.pth": f"{GROUP}.pth"}),
    ("bird", [f"{GROUP}-2.pth", f"{GROUP}.pth"], {"bird.pth": f"{GROUP}.pth"}),
    ("bird", ["2019EE10999.pth", f"{A}.txt", f".{A}.pth", f"{A}/other.pth"], {}),
    ("vae", [f"{A}/vae.pth", f"{A}/gmm_params.pkl"],
     {"vae.pth": f"{A}/vae.pth", "gmm_params.pkl": f"{A}/gmm_params.pkl"}),
    ("vae", [f"{A}.pth"], {"vae.pth": f"{A}.pth"}),
])
def test_the_teacher_s_models(take, tmp_path, part, given, expected):
    models = write_folder(tmp_path / "models", dict.fromkeys(["z.pth", *given], b"model"))
    path = write_zip(tmp_path / "s.zip", moved({f"{GROUP}/vae.py": b""}))
    assert take(path, part=part, models=models)[0].models == {
        name: models / place for name, place in expected.items()}


def test_models_in_the_submission_and_before_them_the_teacher_s(take, tmp_path):
    path = write_zip(tmp_path / "s.zip", moved({
        f"{GROUP}/vae.py": b"", "vae.pth": b"outer", f"{GROUP}/vae.pth": b"own", "gmm_params.pkl": b"mixture"}))
    [got] = take(path, part="vae")
    assert {name: file.read_bytes() for name, file in got.models.items()} == {
        "vae.pth": b"own", "gmm_params.pkl": b"mixture"}
    models = write_folder(tmp_path / "models", {f"{A}/vae.pth": b"teacher's"})
    (models / A / "gmm_params.pkl").symlink_to("/etc/passwd")
    [got] = take(path, part="vae", models=models)
    assert [got.models[name].read_bytes() for name in ("vae.pth", "gmm_params.pkl")] == [b"teacher's", b"mixture"]


def test_the_digest_changes_with_each_byte_and_name(take, tmp_path):
    models = write_folder(tmp_path / "models", {f"{A}.pth": b"model"})
    def of(files: dict, **options) -> str:
        return digest(take(write_zip(tmp_path / "s.zip", files), **options)[0])

    first = of(GOOD)
    assert first == of(dict(reversed(GOOD.items())))
    others = [of(moved({f"{GROUP}/bird.py": b"print(2)\n"})), of(moved({f"{GROUP}/x": b""})),
              of(GOOD, models=models), of({}), of({"../x": b""})]
    (models / f"{A}.pth").write_bytes(b"MODEL")
    others.append(of(GOOD, models=models))
    assert len({first, *others}) == 7


# ------------------------------------------------------------------ the rules

SEEDED = "\nimport torch; torch.manual_seed(0)"


@pytest.mark.parametrize(("part", "source", "expected"), [
    ("bird", "from torchvision import models\nnet = models.resnet18(weights=None)", ["1 ready", "2 ready"]),
    ("bird", "import torchvision\nnet = torchvision.models.resnet18()", ["2 ready"]),
    ("bird", "import torchvision.models as M\nM.resnet18(\n  pretrained=True)",
     ["1 ready", "2 ready", "3 pretrained"]),
    ("bird", "from torchvision.models import resnet18 as r, \\\n  ResNet18_Weights as W\n\nr(weights=W.DEFAULT)",
     ["1 ready", "2 ready", "4 pretrained", "4 ready"]),
    ("bird", "from torchvision.models import resnet18\nresnet18(True)\nresnet18(False)",
     ["1 ready", "2 pretrained", "2 ready", "3 ready"]),
    ("bird", "from torchvision.models import *", ["1 ready"]),
    ("bird", "import timm\nx = timm.create_model('a', pretrained=flag)", ["1 ready", "2 pretrained", "2 ready"]),
    ("bird", "import torch\nx = torch.hub.load('a', 'b')", ["2 pretrained"]),
    ("bird", "from torch.hub import load_state_dict_from_url as f", ["1 pretrained"]),
    ("bird", "from transformers import ViT\nx = ViT.from_pretrained('a')", ["1 ready", "2 pretrained", "2 ready"]),
    ("bird", "x = build(weights='IMAGENET1K_V1')\ny = Net(pretrained=True)", ["1 pretrained", "2 pretrained"]),
    ("bird", "import numpy as np\nx = np.average(a, weights=w)\n"
             "random.choices(a, weights=[1, 2])\nNet(pretrained=False)", []),
    ("bird", "def f():\n  '''torchvision.models'''\n  # import timm; eval(x)\n  return 'pretrained=True'", []),
    ("bird", "from torchvision import transforms, datasets\nfrom torchvision.models_of_mine import x", []),
    ("bird", "from sklearn.model_selection import train_test_split, StratifiedShuffleSplit\n"
             "from sklearn.utils.class_weight import compute_class_weight\nimport sklearn.metrics as m", []),
    ("bird", "from sklearn.ensemble import RandomForestClassifier\n"
             "from sklearn import svm\nimport sklearn.cluster",
     ["1 scikit", "2 scikit", "3 scikit"]),
    ("vae", "import sklearn\nfrom sklearn.metrics import f1_score\n"
            "from sklearn import model_selection, preprocessing", []),
    ("vae", "from sklearn.mixture import GaussianMixture\n"
            "from sklearn.utils import shuffle\n\ng = GaussianMixture(3)",
     ["1 scikit", "2 scikit", "4 scikit"]),
    ("vae", "from scipy.stats import norm\nx = norm.ppf(0.5)\nimport scipy.stats as s\ny = s.norm.cdf(0)", []),
    ("vae", "from scipy import stats, cluster\nx = stats.multivariate_normal(a).pdf(b)", ["1 scipy", "2 scipy"]),
    ("vae", "from scipy.stats import multivariate_normal as mvn\nfrom scipy.cluster.vq import kmeans2",
     ["1 scipy", "2 scipy"]),
    ("vae", "from scipy.special import logsumexp", []), ("bird", "from scipy.cluster.vq import kmeans2", []),
    ("bird", "eval('1')\nmodel.eval()\nexec(x)\ny = __import__('os')", ["1 code", "3 code", "4 code"]),
    ("bird", "def eval(model):\n  model.eval()\n\neval(net)", []),
    ("bird", "def f(eval=False):\n  if eval: pass", []),
    ("bird", "import os, subprocess\nos.system('ls')\nos.execv('a')\nos.listdir('.')",
     ["1 code", "2 code", "3 code"]),
    ("bird", "from os import popen\nimport socket\nfrom urllib.request import urlopen\n"
             "import requests as r\nimport ctypes",
     ["1 code", "2 code", "3 code", "4 code", "5 code"]),
    ("bird", "import pickle, importlib\nfrom . import helper\nfrom .torchvision import models", []),
    ("bird", "try:\n  import timm\nexcept ImportError:\n  pass", ["2 ready"]),
])
def test_findings_have_their_kind_and_line(tmp_path, part, source, expected):
    (tmp_path / "bird.py").write_text(source + SEEDED)
    found = rules.check_source(tmp_path / "bird.py", part)
    assert [f"{each.line} {each.kind.split()[0].split('-')[0]}" for each in found] == expected
    lines = (source + SEEDED).split("\n")
    assert all(each.file == "bird.py" and each.source == lines[each.line - 1].strip() for each in found)


@pytest.mark.parametrize(("source", "expected"), [
    ("import torch", [(0, "Nothing calls")]), ("# torch.manual_seed(0)", [(0, "Nothing calls")]),
    ("import torch\ng = torch.Generator()\ng.manual_seed(0)", [(0, "Nothing calls")]),
    ("import torch\ntorch.cuda.manual_seed_all(0)", [(0, "Nothing calls")]),
    ("import torch\ntorch.manual_seed(0)", []), ("from torch import manual_seed as s\ns(0)", []),
    ("from torch import *\nmanual_seed(0)", []), ("import lightning as L\nL.seed_everything(0, workers=True)", []),
    ("import torch\ntorch.manual_seed(42)", [(2, "42, not 0")]),
    ("import torch\ntorch.manual_seed(seed=37)", [(2, "37, not 0")]),
    ("import torch\nSEED = 14\ntorch.manual_seed(SEED)", [(3, "14, not 0")]),
    ("import torch\nclass C:\n  seed: int = 14\ntorch.manual_seed(C.seed)", [(4, "14, not 0")]),
    ("import torch\ndef f(seed=42):\n  torch.manual_seed(seed)\nf()", [(3, "42, not 0")]),
    ("import torch\ndef f(seed=42):\n  torch.manual_seed(seed)\nf(0)", []),
    ("import torch\ndef f(seed=0):\n  torch.manual_seed(seed)\nf(seed=7)", [(3, "7, not 0")]),
    ("import torch\nclass C:\n  def f(self, s):\n    torch.manual_seed(s)\nC().f(9)", [(4, "9, not 0")]),
    ("import torch\ndef f(s):\n  torch.manual_seed(s)\ndef g(s=5):\n  f(s)\ng()", [(3, "5, not 0")]),
    ("import torch\ndef f(s):\n  torch.manual_seed(s)\n  f(s)", []),
    ("import torch\nfor s in range(3):\n  torch.manual_seed(s)", []),
    ("import torch, argparse\np.add_argument('--seed', type=int, default=42)\ntorch.manual_seed(args.seed)",
     [(3, "42, not 0")]),
    ("import torch\nSEED = 0\nif x:\n  SEED = 3\ntorch.manual_seed(SEED)", []),
    ("import torch\ntorch.manual_seed(0)\ntorch.cuda.manual_seed_all(1)", [(3, "1, not 0")]),
])
def test_the_seed(tmp_path, source, expected):
    (tmp_path / "bird.py").write_text(source)
    found = rules.check_source(tmp_path / "bird.py", "bird")
    assert [each.kind for each in found] == ["seed"] * len(expected)
    assert [each.line for each in found] == [line for line, _ in expected]
    assert all(words in each.text for each, (_, words) in zip(found, expected, strict=True))


@pytest.mark.parametrize(("source", "line", "words"), [
    (b"def broken(:\n  pass", 1, "no valid Python"), (b"x = 1\n\ny = \xff", 0, "utf-8"),
    (b"x = 1\0", 0, "null bytes"), (b"# coding: klingon\n", 0, "unknown encoding"),
    (b"# coding: utf-7\n", 0, "encoding is utf-7"), (b"# coding: cp1252\nx = '\x81'", 0, "cannot be checked"),
    (b"a" + b".b" * 50_000, 0, "recursion"), (b"-" * 100_000 + b"1", 0, "nested too deeply"),
    (b"(" * 1000, 1, "too many nested"), (b"x = " + b"9" * 5000, 1, "4300 digits"),
    (b"#" * 300_000, 0, "larger than"),
])
def test_what_is_no_python_is_one_finding(tmp_path, source, line, words):
    (tmp_path / "bird.py").write_bytes(source)
    [found] = rules.check_source(tmp_path / "bird.py", "bird")
    assert (found.kind, found.line) == ("code", line)
    assert words in found.text
    assert len(found.source) <= 200


@pytest.mark.parametrize("source", [
    b"\xef\xbb\xbfimport torch\r\ntorch.manual_seed(0)\r\nimport timm",
    b"import torch\rtorch.manual_seed(0)\rimport timm",
    b"# coding: latin-1\nimport torch; torch.manual_seed(0) # \xe9\nimport timm",
    b"import torch\ntorch.manual_seed(0), '\\d'\nimport timm\x20\x0c",
])
def test_marks_encodings_and_line_ends(tmp_path, source):
    (tmp_path / "bird.py").write_bytes(source)
    [found] = rules.check_source(tmp_path / "bird.py", "bird")
    assert (found.kind, found.line, found.source) == ("ready network", 3, "import timm")


def test_a_long_line_is_cut_and_many_findings_are_too(tmp_path):
    (tmp_path / "bird.py").write_text(f"import timm; x = '\x1b[2J{'y' * 300}'\n" + "eval(x)\n" * 200)
    found = rules.check_source(tmp_path / "bird.py", "bird")
    assert len(found) == rules.MAX_FINDINGS
    assert found[1].source == f"import timm; x = '_[2J{'y' * 200}"[:200]


@pytest.mark.parametrize("part", ["bird", "vae"])
def test_the_project_s_own_programs_have_no_finding(part):
    assert rules.check_source(Path(__file__).parent.parent / f"{part}.py", part) == []
