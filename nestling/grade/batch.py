"""A class's submissions: each is taken in, run in the box, scored, and written down; a killed batch goes on.

    OUT/<entry>/record.json      what was run, found and scored: marks are made from it alone
    OUT/<entry>/results.json     the marks in Gradescope's form; feedback.txt: the same in words
    OUT/<entry>/<run>/           what the run wrote, where it is small
    OUT/leaderboard.csv, index.html
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nestling import runs
from nestling.files import UserError, read_json, say, write_json
from nestling.grade import box, intake, lay, rules, score
from nestling.grade.box import Box, Limits, Outcome
from nestling.grade.cuda_is_cpu import SAID
from nestling.grade.facts import Finding, Scored, Submission
from nestling.grade.marks import Rubric, marks, read_rubric
from nestling.grade.results import state as state_of
from nestling.grade.results import write_batch, write_submission
from nestling.submit import RULES, judge_report

KEPT = 20_000_000                          # bytes of the files of a run that OUT keeps; a model may be larger
TEST_LIMITS = Limits(seconds=1200, memory=8192, processes=256, disk=1024)
TRAIN_LIMITS = {"bird": Limits(seconds=2.2 * 3600, memory=8192, processes=256, disk=4096),
                "vae": Limits(seconds=1.1 * 3600, memory=8192, processes=256, disk=1024)}
CODE = ("box.py", "intake.py", "lay.py", "rules.py", "score.py", "batch.py")     # what decides a record


@dataclass(frozen=True)
class Work:
    """What all submissions of a batch share."""

    part: str
    box: Box
    laid: lay.Laid
    out: Path
    test: Limits
    train: Limits | None                   # None: nothing is trained anew


def grade(sources: list[Path], part: str, out: Path, *, test: Path | None, train: Path | None = None,
          val: Path | None = None, recon: Path | None = None, models: Path | None = None, rubric: Path | None = None,
          jobs: int = 1, threads: int | None = None, dask: str | None = None, minutes: float | None = None,
          python: Path | None = None, unsafe: bool = False) -> list[dict[str, Any]]:
    """Grades the submissions and writes all results; those that are done for the same inputs are kept.

    minutes: at most for a training; None: the assignment's 2 hours (vae: 1 hour), and a tenth more.
    """
    priced = read_rubric(rubric, part)
    if test is None or (part == "vae" and train is not None and val is None):
        raise UserError("grading needs --test, and for a training of vae.py --train and --val; name them.")
    if not sources:
        raise UserError("no submission is named; give zips, folders, or a folder of them.")
    if inside := [source for source in sources if source.resolve() in out.resolve().parents]:
        raise UserError(f"{out} lies in {inside[0]}, where it would be taken for a submission; give another --out.")
    found, why = box.find_level(python)
    if found.level == "none" and not unsafe:
        raise UserError(f"no sandbox stands here, so nothing was run ({why.strip()}) Mend that, or take --unsafe for "
                        "submissions that you trust.")
    say(f"level: {found.level}. {why}".strip())
    with tempfile.TemporaryDirectory(dir=shared(out) if dask else None) as name:
        folder = Path(name)
        os.chmod(folder, 0o755)
        submissions = intake.intake(sources, part, models, folder / "submissions")
        laid = (lay.lay_birds(test, train, folder / "inputs") if part == "bird" else
                lay.lay_digits(test, recon or test, val, train, folder / "inputs"))
        if part == "bird" and train:
            laid.paths["train"] = readable(train, folder / "train")
        limits = TRAIN_LIMITS[part]
        if minutes is not None:
            limits = Limits(60 * minutes, limits.memory, limits.processes, limits.disk)
        work = Work(part, found, laid, out.absolute(), TEST_LIMITS, limits if train else None)
        records = run_all(work, submissions, jobs, threads, dask)
        pairs = similarity(submissions)
    write_all(out, records, priced, pairs)
    states = Counter(state_of(record) for record in records)
    say(f"{out}/index.html: {', '.join(f'{count} {state}' for state, count in sorted(states.items()))}")
    return records


def grade_again(out: Path, part: str, rubric: Path | None = None) -> list[dict[str, Any]]:
    """Makes the marks of all records in OUT anew, by a rubric that may have changed; nothing is run."""
    records = [read_json(path, "entry", "runs", "scores") for path in sorted(out.glob("*/record.json"))]
    if not records:
        raise UserError(f"{out} holds no graded submissions; name the folder of `nestling grade --out`.")
    pairs = [tuple(pair) for pair in json.loads((out / "similarity.json").read_text())]
    write_all(out, records, read_rubric(rubric, part), pairs)
    return records


def shared(out: Path) -> Path:
    """OUT itself, which the workers of a Dask scheduler see too."""
    out.mkdir(parents=True, exist_ok=True)
    return out.absolute()


def write_all(out: Path, records: list[dict[str, Any]], rubric: Rubric, pairs: list) -> None:
    """Marks, feedback, leaderboard and page from the records."""
    made = [marks(record, rubric) for record in records]
    for record, each in zip(records, made, strict=True):
        write_submission(out, record, each, rubric)
    (out / "similarity.json").write_text(json.dumps(pairs))
    write_batch(out, records, made, rubric, pairs)


def run_all(work: Work, submissions: list[Submission], jobs: int, threads: int | None,
            dask: str | None) -> list[dict[str, Any]]:
    """The records of all submissions, by entry; what is done already is read."""
    code = hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in CODE)).hexdigest()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    records, todo, photos = {}, {}, work.laid.paths.get("train")
    trained = sorted((str(path.relative_to(photos)), path.stat().st_size) for path in photos.rglob("*")) if (
        photos and photos.is_dir()) else []
    for submission in submissions:
        settings = (code, work.part, work.box.level, work.laid.digest, trained, work.test, work.train)
        key = hashlib.sha256(repr((settings, intake.digest(submission))).encode()).hexdigest()
        path = work.out / submission.entry / "record.json"
        if path.is_file() and (record := read_json(path, "entry", "runs", "scores")).get("key") == key:
            records[submission.entry] = record
        else:
            todo[submission.entry] = (submission, key)
    say(f"{len(submissions)} submissions: {len(records)} are done, {len(todo)} to do")
    with runs.workers(jobs, dask) as pool:
        futures = {pool.submit(grade_one, work, submission, key, threads or max(1, cores // jobs)): entry
                   for entry, (submission, key) in todo.items()}
        bar = tqdm(as_completed(futures), "grading", len(futures), disable=None)
        try:
            for future in bar:
                record = future.result()
                records[record["entry"]] = record
                bar.set_postfix_str(f"{record['entry']} {state_of(record)}")
        except BaseException:                              # Ctrl-C: what runs would go on for hours
            box.stop()
            raise
    return [records[submission.entry] for submission in sorted(submissions, key=lambda each: each.entry)]


# ------------------------------------------------------ one submission

def grade_one(work: Work, submission: Submission, key: str, threads: int) -> dict[str, Any]:
    """Runs and scores a submission and writes its record; a fault of the grader's own is told in it."""
    folder = work.out / submission.entry
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record: dict[str, Any] = {
        "key": key, "entry": submission.entry, "source": submission.source, "part": work.part,
        "submitted": submission.submitted, "level": work.box.level, "faults": list(submission.faults),
        "program": submission.program and submission.program.name, "parameters": None, "runs": {}, "scores": {},
        "details": {}}
    findings = list(submission.findings)
    if submission.program and not submission.faults:
        findings += rules.check_source(submission.folder / submission.program, work.part)
        with tempfile.TemporaryDirectory() as name:
            os.chmod(name, 0o755)
            one = One(work, submission, Path(name), folder, threads, record, findings)
            try:
                one.inspect()
                one.test("shipped", submission.models)
                if work.train:
                    one.train()
            except box.Stopped:
                raise
            except Exception as error:                     # ours: the other submissions go on, this one is done anew
                record["key"] = None
                record["runs"]["grading"] = asdict(Outcome(
                    "grader", None, 0.0, 0.0, "", traceback.format_exc(), 0, f"{type(error).__name__}: {error}", ""))
    unique = list(dict.fromkeys(findings))
    record["findings"] = [asdict(finding) for finding in unique]
    write_json(folder / "record.json", record)
    return record


@dataclass
class One:
    """A submission that is being graded: runs fill `record` and `findings`."""

    work: Work
    submission: Submission
    scratch: Path
    folder: Path
    threads: int
    record: dict[str, Any]
    findings: list[Finding]

    @property
    def model_names(self) -> list[str]:
        """The files of a model, as the contract names them."""
        return ["bird.pth"] if self.work.part == "bird" else ["vae.pth", "gmm_params.pkl"]

    def run(self, name: str, argv: list[str], models: dict[str, Path], limits: Limits) -> tuple[Outcome, Path]:
        """One run: a fresh copy of the submission, with these models in it. Returns how it went and what it wrote."""
        start, out = self.scratch / f"{name} start", self.scratch / f"{name} out"
        assert self.submission.program is not None
        shutil.copytree((self.submission.folder / self.submission.program).parent, start)
        for model in self.model_names:
            if (start / model).is_dir():
                shutil.rmtree(start / model)
            (start / model).unlink(missing_ok=True)
        for model, path in models.items():
            shutil.copyfile(path, start / model)
        shim = self.scratch / "shim"
        shim.mkdir(exist_ok=True)
        shutil.copyfile(Path(__file__).with_name("cuda_is_cpu.py"), shim / "sitecustomize.py")
        opened(start)
        env = {"MPLBACKEND": "Agg", "PYTHONPATH": "{in}/shim", "OMP_NUM_THREADS": str(self.threads),
               "OMP_WAIT_POLICY": "PASSIVE"}               # threads that spin would slow the boxes beside them
        command = ["{python}", self.submission.program.name, *argv]
        laid = self.work.laid.paths
        reads = {"shim": shim} | {key + path.suffix * path.is_file(): path for key, path in laid.items()}
        outcome = box.run(self.work.box, command, start, reads, out, limits, env)
        if outcome.state == "grader":                      # our own fault: once more
            outcome = box.run(self.work.box, command, start, reads, out, limits, env)
        self.record["runs"][name] = {key: value for key, value in asdict(outcome).items() if key != "level"}
        if SAID in outcome.head or SAID in outcome.tail:
            self.findings.append(Finding("shim", "the program asks for CUDA; there is no GPU here, so the CPU did it"))
        for path in sorted(out.iterdir()):
            before = start / path.name
            if before.is_file() and filecmp.cmp(before, path, shallow=False):
                path.unlink()                              # it was handed in, and is no output
            elif path.stat().st_size < KEPT:
                (self.folder / name).mkdir(exist_ok=True)
                shutil.copyfile(path, self.folder / name / path.name)
        shutil.rmtree(start)
        return outcome, out

    def test(self, which: str, models: dict[str, Path]) -> None:
        """Scores a model, shipped or retrained, twice: a program whose tests differ is told."""
        if missing := [name for name in self.model_names if name not in models]:
            how = "handed in" if which == "shipped" else "saved by the training"
            self.record["details"][which] = {"missing": f"no {' and no '.join(missing)} was {how}"}
            return
        suffix = "" if which == "shipped" else " retrained"
        results = {}
        for what, run, argv in self.tests():
            name = f"{run}{suffix}"
            results[what] = self.scored(name, argv, what, models)
            if self.record["runs"][name]["state"] == "done":       # what was stopped would be stopped again
                again = self.scored(f"{name} again", argv, what, models)
                labels = [{path.name: path.read_bytes() for path in (self.folder / each).glob("*.csv")}
                          for each in (name, f"{name} again")]
                if again.found != results[what].found or labels[0] != labels[1]:
                    self.findings.append(Finding("random", f"two tests of the {which} model give different results"))
        self.record["scores"][which] = {what: {"strict": each.strict, "found": each.found}
                                        for what, each in results.items()}
        self.record["details"][which] = {what: each.details for what, each in results.items()}

    def tests(self) -> list[tuple[str, str, list[str]]]:
        """What is scored, the run's name and the contract's arguments."""
        if self.work.part == "bird":
            return [("classification", "test", ["{in}/test", "test", "bird.pth"])]
        return [("reconstruction", "reconstruct", ["{in}/recon.npz", "test_reconstruction", "vae.pth"]),
                ("classification", "classify", ["{in}/test.npz", "test_classifier", "vae.pth", "gmm_params.pkl"])]

    def scored(self, name: str, argv: list[str], what: str, models: dict[str, Path]) -> Scored:
        """Runs one test and scores what it wrote."""
        outcome, out = self.run(name, argv, models, self.work.test)
        laid, part = self.work.laid, self.work.part
        if what == "classification":
            classes = list(range(len(laid.classes))) if part == "bird" else list(lay.DIGITS)
            result = score.score_labels(out, f"{part}.csv", laid.truth, classes)
        else:
            assert laid.images is not None
            result = score.score_reconstruction(out, "vae_reconstructed.npz", laid.images)
        self.findings += result.findings
        if outcome.rc not in (0, None) and any(result.found.values()):
            self.findings.append(Finding("traceback", f"{name} wrote its file and then failed: {outcome.reason}"))
        return result

    def train(self) -> None:
        """Trains anew by the contract's command, and scores the model that comes of it."""
        argv = (["{in}/train", "train", "bird.pth"] if self.work.part == "bird" else
                ["{in}/train.npz", "{in}/val.npz", "train", "vae.pth", "gmm_params.pkl"])
        assert self.work.train is not None
        _, out = self.run("train", argv, {}, self.work.train)
        saved = {name: self.scratch / f"trained {name}" for name in self.model_names if (out / name).is_file()}
        for name, path in saved.items():
            shutil.move(out / name, path)
        self.test("retrained", saved)

    def inspect(self) -> None:
        """Number of parameters, and the report's pages and first line: read in the box, as both files are hostile."""
        start, out = self.scratch / "inspect start", self.scratch / "inspect"
        start.mkdir()
        (start / "facts_of_files.py").write_text(INSPECT)
        limits = RULES[self.work.part]
        numbers = intake.find_numbers(limits, self.submission.entry)
        pdfs = [path for path in sorted(self.submission.folder.rglob("*")) if path.suffix.lower() == ".pdf"]
        pdfs = [path for path in pdfs if intake.is_report_name(limits, path.stem, numbers)] or pdfs
        model = self.submission.models.get(self.model_names[0])
        if model and not zipfile.is_zipfile(model):        # as torch.save writes it; spares importing torch
            self.findings.append(Finding("whole model", "the model file is none of torch.save", model.name))
            model = None
        for name, path in (("report", pdfs[0] if pdfs else None), ("model", model)):
            if path:
                shutil.copyfile(path, start / name)
        if not pdfs and not model:
            return
        opened(start)
        box.run(self.work.box, ["{python}", "facts_of_files.py"], start, {}, out, self.work.test)
        found = read_facts(out / "facts.json")
        if pdfs:
            self.findings += [Finding("report", text, pdfs[0].name) for text in judge_report(
                limits, pdfs[0].name, numbers, found.get("pages"), str(found.get("first", "")))]
        if model:
            count = found.get("parameters")
            self.record["parameters"] = count if isinstance(count, int) else None
            if not isinstance(count, int):
                self.findings.append(Finding("whole model", "the model file is no state_dict of tensors", model.name))
            elif count > limits.parameters:
                self.findings.append(Finding(
                    "parameters", f"{count:,} parameters, more than {limits.parameters:,}", model.name))


INSPECT = r"""
import json, os
facts = {}
try:
    from pypdf import PdfReader
    pages = PdfReader("report", strict=False).pages
    facts["pages"], facts["first"] = len(pages), pages[0].extract_text().strip().partition("\n")[0][:500]
except Exception:
    pass
if os.path.exists("model"):
    try:
        import torch
        state = torch.load("model", weights_only=True, map_location="meta", mmap=True)
        facts["parameters"] = sum(value.numel() for name, value in state.items() if torch.is_tensor(value)
                                  and not name.endswith(("running_mean", "running_var", "num_batches_tracked")))
    except Exception:
        pass
json.dump(facts, open("facts.json", "w"))
"""


def read_facts(path: Path) -> dict[str, Any]:
    """What `INSPECT` wrote; nothing where a hostile file broke it."""
    try:
        found = json.loads(score.read_regular(path, 100_000))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def readable(folder: Path, copy: Path) -> Path:
    """The teacher's folder, or a copy where other users may not read it."""
    if all(path.stat().st_mode & 0o4 for path in (folder, *folder.rglob("*"))):
        return folder.resolve()
    shutil.copytree(folder, copy)
    opened(copy)
    return copy


def opened(folder: Path) -> None:
    """All may read it: the box is another user."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


# ------------------------------------------------------ similarity

COMPARE = r"""
import itertools, json, sys
from copydetect import CodeFingerprint, compare_files
prints = []
for entry, path in json.load(sys.stdin):
    try:
        prints.append((entry, CodeFingerprint(path, 25, 1)))
    except Exception:                      # no valid Python
        pass
found = []
for (a, one), (b, other) in itertools.combinations(prints, 2):
    shared, (share, back), _ = compare_files(one, other)
    found.append((a, b, round(float(max(share, back)), 3)))
json.dump(sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))[:500], sys.stdout)
"""


def similarity(submissions: list[Submission]) -> list[tuple[str, str, float]]:
    """The closest pairs of programs, and the larger share of either that the other has too (winnowing, copydetect)."""
    programs = [(each.entry, str(each.folder / each.program)) for each in submissions if each.program]
    if len(programs) < 2:
        return []
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPARE], input=json.dumps(programs), text=True,
                          capture_output=True, env={**os.environ, "PYTHONHASHSEED": "0"})     # it uses hash()
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"copydetect does not run ({last}); pip install 'nestling[grade]'.")
    return [tuple(pair) for pair in json.loads(done.stdout)]
