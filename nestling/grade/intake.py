"""What a class handed in, copied to folders of the grader's own: nothing is run, imported or unpickled here.

Zips and folders are hostile: bytes are summed as they are unpacked, links and special files are never followed,
and each mistake becomes a finding or a sentence, so that one bad submission cannot stop the others.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

from nestling.files import UserError
from nestling.grade.facts import Finding, Submission
from nestling.submit import RULES, Rules, check_words

MODELS = {"bird": ("bird.pth",), "vae": ("vae.pth", "gmm_params.pkl")}
MAX_FILES, MAX_BYTES = 200, 1 << 30                  # of one submission, unpacked
MAX_TABLE = 4 << 20                                  # bytes of a zip's table of contents
MAX_TEXT, MAX_JSON = 1 << 16, 4 << 20                # bytes of group.txt or model_path.txt, of METADATA
MAX_NAME, MAX_LINE = 500, 2000                       # bytes of a file's path, characters of a link
LEVELS = 2                                           # folders in which the program is searched
CHUNK = 1 << 20
IGNORED = {"__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini"}       # and all that begins with a dot
ARCHIVES = {".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz"}
EXPORT = "submission_metadata.yml"                   # of a Gradescope export
METADATA = "submission_metadata.json"                # of Gradescope's, for one submission


class Fault(Exception):
    """Why a submission cannot be used: one sentence."""


@dataclass(frozen=True)
class Given:
    """One submission as the teacher gave it."""

    path: Path                                       # a zip or a folder
    name: str                                        # for people
    people: str = ""                                 # the submitters' numbers, in Gradescope's words
    submitted: str | None = None

    def title(self) -> str:
        """The name without a zip's ending."""
        return self.name if self.path.is_dir() else str(PurePosixPath(self.name).with_suffix(""))


def intake(sources: list[Path], part: str, models: Path | None, work: Path) -> list[Submission]:
    """Copies each submission to work/<entry>, where it replaces an earlier copy; the sources stay untouched.

    sources: zips, submission folders, folders of either, Gradescope exports. part: bird or vae. models: a folder
    with <entry>.pth, or a folder <entry> with the files of MODELS; one entry number of a group is enough.
    UserError: a source or the models do not exist, or the work cannot be written.
    """
    if models is not None and not models.is_dir():
        raise UserError(f"{models} is no folder; --models names the folder of the downloaded models.")
    work = work.resolve()
    given: dict[Path, Given] = {}
    for source in sources:
        for item in expand(source, RULES[part], work):
            given.setdefault(item.path, item)
    taken: set[str] = set()
    try:
        work.mkdir(parents=True, exist_ok=True)
        return [take(item, part, models, work, taken) for item in given.values()]
    except OSError as error:
        raise UserError(f"{work} cannot be written ({error.strerror}); name another folder.") from error


def digest(submission: Submission) -> str:
    """SHA-256 of the names and bytes of the submission's files and of the models, and of the faults."""
    total = hashlib.sha256()
    files = [(path.relative_to(submission.folder).as_posix(), path)
             for path in submission.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    models = [(f"model {name}", path) for name, path in submission.models.items()]
    for name, path in sorted(files) + sorted(models):
        own = hashlib.sha256()
        with regular(path) as file:
            while piece := file.read(CHUNK):
                own.update(piece)
        total.update(f"{len(name)} {name} {own.hexdigest()}\n".encode())
    total.update("\n".join(submission.faults).encode())
    return total.hexdigest()


# ------------------------------------------------------------------ the sources: what is one submission

def expand(source: Path, rules: Rules, work: Path) -> Iterator[Given]:
    """The submissions in a zip, a submission's folder, a folder of them or a Gradescope export."""
    source = source.resolve()
    if not source.exists():
        raise UserError(f"{source} does not exist; give a zip, a folder of submissions or a Gradescope export.")
    if not (source.is_file() or source.is_dir()):
        raise UserError(f"{source} is neither a file nor a folder; give a zip or a folder of submissions.")
    if source.is_relative_to(work):
        raise UserError(f"{source} lies in {work}, where the copies are written; name another folder for them.")
    if source.is_file() or is_submission(source, rules):
        if work.is_relative_to(source):
            raise UserError(f"{work}, where the copies are written, lies in the submission; name another folder.")
        yield Given(source, source.name)
        return
    found = False
    for item in children(source, rules, work):
        found = True
        yield item
    if not found:
        raise UserError(f"{source} holds no submission; give a folder of zips or of submission folders.")


def is_submission(folder: Path, rules: Rules) -> bool:
    """Whether a folder that the teacher names is one submission rather than a folder of them."""
    items = visible(folder)
    names = {item.name for item in items}
    if EXPORT in names or not items:
        return False
    if rules.program in names:
        return True
    if any(is_archive(item) for item in items):
        return False
    if find_numbers(rules, folder.name) or names & {"group.txt", "model_path.txt"}:
        return True
    return any(name.endswith(".py") for name in names) or not any(item.is_dir() for item in items)


def children(folder: Path, rules: Rules, work: Path) -> Iterator[Given]:
    """The submissions in a folder of them: zips, folders, and folders with zips in them."""
    export = read_export(folder / EXPORT, rules) if (folder / EXPORT).is_file() else {}
    for item in visible(folder):
        if item == work or (work in item.parents):
            continue
        people, submitted = export.get(item.name, ("", None))
        if is_archive(item) or (item.is_symlink() and item.is_dir()):
            yield Given(item, item.name, people, submitted)
        elif item.is_dir() and not work.is_relative_to(item):
            inner = visible(item)
            zips = [path for path in inner if is_archive(path) and not path.is_symlink()]
            if any(path.name == EXPORT for path in inner):
                yield from children(item, rules, work)
            elif zips and not any(path.suffix == ".py" for path in inner):
                for path in zips:
                    yield Given(path, f"{item.name}/{path.name}", people, submitted)
            else:
                yield Given(item, item.name, people, submitted)


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without what is ignored; nothing where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not ignored(path.name))
    except PermissionError:
        return []


def ignored(name: str) -> bool:
    """Whether a file or folder of this name is no work of the student's."""
    return name.startswith(".") or name in IGNORED


def is_archive(path: Path) -> bool:
    """Whether it is a file that somebody packed."""
    return path.suffix.lower() in ARCHIVES and path.is_file()


def read_export(path: Path, rules: Rules) -> dict[str, tuple[str, str | None]]:
    """Of each folder of a Gradescope export: its submitters' entry numbers and the moment.

    The tree of nodes is read, not made into values: tags of Ruby and numbers such as 007 do no harm.
    """
    try:
        import yaml
    except ImportError as error:
        raise UserError(f"{path} is read with PyYAML: pip install pyyaml.") from error

    def fields(node: Any) -> dict[str, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        return {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}

    try:
        with open(path, "rb") as file:
            root = yaml.compose(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as Gradescope's metadata; export anew.") from error
    found = {}
    for name, node in fields(root).items():
        submission = fields(node)
        people = getattr(submission.get(":submitters"), "value", None)
        sids = [fields(person).get(":sid") for person in people if isinstance(people, list)] if people else []
        when = submission.get(":created_at")
        if isinstance(when, yaml.MappingNode):       # !ruby/object:ActiveSupport::TimeWithZone
            when = fields(when).get("utc") or fields(when).get("time")
        found[name] = ("_".join(find_numbers(rules, " ".join(str(sid.value) for sid in sids if sid))),
                       moment(when.value) if isinstance(when, yaml.ScalarNode) else None)
    return found


def moment(text: str) -> str | None:
    """A date with time as ISO 8601 in UTC, which it is taken for if it names no zone; None where it is none."""
    try:
        when = datetime.fromisoformat(re.sub(r"\s+(?=[Z+-])", "", text.strip()))
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        return None


# ------------------------------------------------------------------ one submission

def take(given: Given, part: str, models: Path | None, work: Path, taken: set[str]) -> Submission:
    """Copies one submission, finds its program, entry and models, and checks its form."""
    rules, top = RULES[part], work / f".{secrets.token_hex(8)}"
    files: list[PurePosixPath] = []
    program: PurePosixPath | None = None
    faults, findings = [], []
    try:
        top.mkdir()
        try:
            files = copy(given.path, top)
            program = find_program(rules, files)
        except Fault as fault:
            faults.append(str(fault))
        if not files:                                # of a fault in the middle, nothing is kept
            shutil.rmtree(top)
            top.mkdir()
        numbers = group_of(given, rules, top, files, program)
        if program is not None:
            named = given.path.is_dir() and find_numbers(rules, given.path.name)
            if len(program.parts) - 1 > (0 if named else 1):
                findings.append(Finding("folder", f"{rules.program} lies at {program}, deeper than in the one "
                                        "folder of the contract.", str(program)))
        if files:
            findings += check_form(rules, numbers, top, files, program)
        entry = unique("_".join(numbers) or safe(given.title()), taken)
        folder = work / entry
        submitted = given.submitted or (read_moment(top / METADATA) if given.path.is_dir() else None)
        shutil.rmtree(folder, ignore_errors=True)
        top.rename(folder)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    own = {name: folder / path for name in MODELS[part] if (path := nearest(files, name, program))}
    return Submission(entry, printable(given.name), folder, folder / program if program else None,
                      own | given_models(models, part, entry, numbers), submitted, tuple(faults), tuple(findings))


def find_program(rules: Rules, files: list[PurePosixPath]) -> PurePosixPath:
    """The program's place, at most LEVELS folders down; Fault where there is none or there are several."""
    name, places = rules.program, [path for path in files if path.name == rules.program]
    found = [path for path in places if len(path.parts) - 1 <= LEVELS]
    if len(found) == 1:
        return found[0]
    if found:
        raise Fault(f"{name} lies at {listed(found)}; only one of them can be graded.")
    if places:
        raise Fault(f"no {name} was found in the first {LEVELS} levels of folders; there is {listed(places)}.")
    others = [path for path in files if path.suffix == ".py"]
    if len(others) == 1:
        raise Fault(f"no {name} was found; the only program in it is {others[0]}.")
    if others or files:
        raise Fault(f"no {name} was found; there {'is' if len(files) == 1 else 'are'} {listed(others or files)}.")
    raise Fault(f"no {name} was found; there is no file in it.")


def group_of(given: Given, rules: Rules, top: Path, files: list[PurePosixPath],
             program: PurePosixPath | None) -> list[str]:
    """The entry numbers: Gradescope's, else those of the folder, the zip, a PDF's name or group.txt.

    What the teacher named counts more than what lies within, unless that names the others of the group too.
    """
    if given.people:
        return given.people.split("_")
    outer = find_numbers(rules, given.name)
    place = program or (files[0] if files else None)
    names = [folder.name for folder in place.parents] if place else []
    pdfs = [path.stem for path in by_depth(files) if path.suffix.lower() == ".pdf"]
    texts = [*names, given.name, *pdfs, read_text(top, nearest(files, "group.txt", program))]
    first = next((numbers for text in texts if (numbers := find_numbers(rules, text))), [])
    return first if set(outer) <= set(first) else outer


def check_form(rules: Rules, numbers: list[str], top: Path, files: list[PurePosixPath],
               program: PurePosixPath | None) -> Iterator[Finding]:
    """What group.txt, model_path.txt and the report's name lack; the report is not opened."""
    group, link = nearest(files, "group.txt", program), nearest(files, "model_path.txt", program)
    listing = find_numbers(rules, read_text(top, group))
    if group is None:
        yield Finding("group", "group.txt is missing.", "group.txt")
    elif not listing:
        yield Finding("group", "group.txt lists no entry number.", str(group))
    elif missing := [number for number in numbers if number not in listing]:
        yield Finding("group", f"group.txt does not list {', '.join(missing)}.", str(group))
    address = next(iter(read_text(top, link).splitlines()), "").strip()
    if link is None:
        yield Finding("link", "model_path.txt is missing.", "model_path.txt")
    elif len(address) > MAX_LINE or list(check_words(rules, [rules.example], address)):
        yield Finding("link", "The first line of model_path.txt is no web address.", str(link), 1,
                      printable(address)[:200])
    pdfs = [path for path in by_depth(files) if path.suffix.lower() == ".pdf"]
    wanted = "_".join(numbers) or "<entry>_<entry>"
    if not pdfs:
        yield Finding("report", f"The report is missing: there is no {wanted}.pdf.", f"{wanted}.pdf")
    elif not any(is_report_name(rules, path.stem, numbers) for path in pdfs):
        yield Finding("report", f"The report is called {pdfs[0].name}, not {wanted}.pdf.", str(pdfs[0]))


def is_report_name(rules: Rules, stem: str, numbers: list[str]) -> bool:
    """Whether it consists of entry numbers alone, in any order and case, those of the group among them."""
    parts = stem.upper().split("_")
    return all(re.fullmatch(rules.entry, part, re.ASCII) for part in parts) and set(numbers) <= set(parts)


def given_models(models: Path | None, part: str, entry: str, numbers: list[str]) -> dict[str, Path]:
    """The model's files in the teacher's folder, under the entry or any one of its numbers."""
    titles = {path: path.name if path.is_dir() else path.stem
              for path in (sorted(models.iterdir()) if models else []) if not ignored(path.name)}
    exact = [path for path, title in titles.items() if title.upper() == entry.upper()]
    other = [path for number in numbers for path, title in titles.items()
             if number in find_numbers(RULES[part], title)]
    found: dict[str, Path] = {}
    for path in exact + other:
        for name in MODELS[part]:
            inner = path / name
            if path.is_dir() and inner.is_file() and not inner.is_symlink():
                found.setdefault(name, inner.resolve())
            elif path.is_file() and path.suffix == inner.suffix:
                found.setdefault(name, path.resolve())
    return found


# ------------------------------------------------------------------ copying

def copy(source: Path, top: Path) -> list[PurePosixPath]:
    """Copies a zip's or a folder's regular files to `top`; their paths there. Fault: it cannot be used."""
    if source.is_symlink():
        raise Fault("it is a link, which is not followed.")
    store = Store(top)
    if source.is_dir():
        copy_folder(source, store)
    else:
        unpack(source, store)
    return store.files


class Store:
    """Writes files below a folder, at most so many and so large."""

    def __init__(self, top: Path):
        self.top, self.size = top, 0
        self.files: list[PurePosixPath] = []

    def add(self, name: PurePosixPath, file: IO[bytes]) -> int:
        """Copies one open file; its size."""
        if len(self.files) == MAX_FILES:
            raise Fault(f"it holds more than {MAX_FILES} files.")
        target, before = self.top.joinpath(name), self.size
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as out:
                for piece in pieces(file):
                    self.size += len(piece)
                    if self.size > MAX_BYTES:
                        raise Fault(f"it holds more than {MAX_BYTES:,} bytes when unpacked.")
                    out.write(piece)
        except (FileExistsError, NotADirectoryError) as error:
            raise Fault(f"it holds {name} twice.") from error
        except OSError as error:
            raise UserError(f"{target} cannot be written ({error.strerror}); free some space.") from error
        self.files.append(name)
        return self.size - before


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    """A file's bytes; what cannot be read is the submission's fault, what cannot be written is not."""
    try:
        while piece := file.read(CHUNK):
            yield piece
    except OSError as error:
        raise Fault(f"it cannot be read ({error.strerror}).") from error


def copy_folder(folder: Path, store: Store) -> None:
    """Its regular files; links, pipes and devices are left out."""
    pending: list[tuple[Path, str]] = [(folder, "")]
    while pending:
        here, prefix = pending.pop()
        try:
            items = sorted(os.scandir(here), key=lambda item: item.name)
        except OSError as error:
            raise Fault(f"it cannot be read ({error.strerror}).") from error
        for item in items:
            name = clean(prefix + item.name)
            if name is None:
                continue
            if item.is_dir(follow_symlinks=False):
                pending.append((Path(item.path), f"{prefix}{item.name}/"))
            elif item.is_file(follow_symlinks=False):
                try:
                    file = regular(Path(item.path))
                except OSError as error:
                    raise Fault(f"{name} cannot be read ({error.strerror}).") from error
                with file:
                    store.add(name, file)


class Bounded(io.FileIO):
    """A zip that is never read in pieces above MAX_TABLE: zipfile reads the table of contents at once."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(MAX_TABLE + 1 if size is None or size < 0 else min(size, MAX_TABLE + 1)) or b""
        if len(data) > MAX_TABLE:
            raise zipfile.BadZipFile("its table of contents is too large")
        return data


def unpack(path: Path, store: Store) -> None:
    """The regular files of a zip; anything else than files and folders in it is a Fault."""
    try:
        with Bounded(path) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                text = decoded(info)
                name = clean(text)
                if name is None or text.endswith("/"):
                    continue
                if name.name == EXPORT and len(name.parts) <= 2:
                    raise Fault("it is a whole Gradescope export: unpack it and give its folder.")
                check_member(name, info)
                with archive.open(info) as member:
                    if store.add(name, member) != info.file_size:
                        raise Fault(f"the zip is damaged: {name} has not the size that it declares.")
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
        raise Fault(f"it is no zip, or a damaged one ({printable(str(error))[:100]}).") from error
    except OSError as error:
        raise Fault(f"it cannot be read ({error.strerror}).") from error


def decoded(info: zipfile.ZipInfo) -> str:
    """A member's name: UTF-8 where it is valid, as many tools do not mark it, else CP437; always with slashes."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def check_member(name: PurePosixPath, info: zipfile.ZipInfo) -> None:
    """Fault: a link, a device, encrypted, or packed by a method whose memory cannot be bounded."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Fault(f"it holds {name}, which is {'a link' if kind == stat.S_IFLNK else 'no regular file'}.")
    if info.flag_bits & 0x41:
        raise Fault(f"it holds {name}, which is encrypted; a zip without a password is needed.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Fault(f"it holds {name}, which is packed by method {info.compress_type}; a plain zip is needed.")


def clean(name: str) -> PurePosixPath | None:
    """A path within the submission, each character printable; None where it is ignored. Fault: it leads out."""
    if name.startswith("/") or re.match("[A-Za-z]:/", name) or ".." in name.split("/"):
        raise Fault(f"it holds {printable(name)[:100]}, a path that leads out of its folder.")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or any(ignored(part) for part in parts):
        return None
    path = PurePosixPath(*(printable(part) for part in parts))
    if len(str(path).encode()) > MAX_NAME or any(len(part.encode()) > 250 for part in path.parts):
        raise Fault(f"it holds {str(path)[:100]}..., a path that is too long.")
    return path


# ------------------------------------------------------------------ names and small files

def find_numbers(rules: Rules, text: str) -> list[str]:
    """The entry numbers in a text, upper case, each once, at most six."""
    found = re.findall(rf"(?<![A-Z0-9]){rules.entry}(?![A-Z0-9])", text.upper(), re.ASCII)
    return list(dict.fromkeys(found))[:6]


def safe(name: str) -> str:
    """A name for a file, a table's cell and a command line alike."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:80].strip("-") or "submission"


def unique(entry: str, taken: set[str]) -> str:
    """The entry, or the entry with -2, -3 ...; it is taken from then on, in any case of its letters."""
    name, count = entry, 1
    while name.lower() in taken:
        name = f"{entry}-{(count := count + 1)}"
    taken.add(name.lower())
    return name


def printable(text: str) -> str:
    """The text with an underscore for each character that a terminal might obey."""
    return "".join(char if char.isprintable() else "_" for char in text)


def listed(paths: list[PurePosixPath]) -> str:
    """The first few paths, in words."""
    more = [f"{len(paths) - 4} more"] if len(paths) > 4 else []
    words = [*map(str, by_depth(paths)[:4]), *more]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def by_depth(paths: Iterable[PurePosixPath]) -> list[PurePosixPath]:
    """The outer ones first."""
    return sorted(paths, key=lambda path: (len(path.parts), path))


def nearest(files: list[PurePosixPath], name: str, program: PurePosixPath | None) -> PurePosixPath | None:
    """The file of this name beside the program, else the outermost one."""
    found = by_depth(path for path in files if path.name == name)
    beside = [path for path in found if program and path.parent == program.parent]
    return next(iter(beside + found), None)


def regular(path: Path) -> IO[bytes]:
    """Opens a regular file; OSError where it is a link, a pipe or a device."""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return open(number, "rb")


def read_text(top: Path, name: PurePosixPath | None) -> str:
    """The beginning of a small text file, as UTF-8 or with UTF-16's mark; empty without one."""
    if name is None:
        return ""
    with regular(top / name) as file:
        data = file.read(MAX_TEXT)
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "replace")


def read_moment(path: Path) -> str | None:
    """When it was submitted, by Gradescope's JSON at the top of a folder."""
    if not path.is_file():
        return None
    try:
        with regular(path) as file:
            value = json.loads(file.read(MAX_JSON))
    except (ValueError, RecursionError):
        return None
    when = value.get("created_at") if isinstance(value, dict) else None
    return moment(when) if isinstance(when, str) else None
