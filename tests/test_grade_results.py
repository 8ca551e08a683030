"""Marks, each with its reason; and what students and teachers read, in which hostile text does nothing."""

import csv
import io
import itertools
import json
import random
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from nestling.files import UserError
from nestling.grade import results
from nestling.grade.facts import DEVIATIONS
from nestling.grade.marks import DEFAULT, marks, read_rubric

EVIL = "<script>alert(1)</script>\x1b[31mred\x1b[0m\x1b]0;title\x07 \x9b2J\u202egnp"
TIME = {"state": "time", "rc": None, "reason": "it did not end within 600 seconds"}


def run(**changes) -> dict:
    """A run that ended well."""
    return {"state": "done", "rc": 0, "seconds": 3.2, "peak": 700.5, "head": "", "tail": "saved bird.csv\n",
            "printed": 120, "reason": ""} | changes


def labels(score: float, strict: float | None = None) -> dict:
    """The scores of a CSV."""
    return {kind: {"score": value, "macro_f1": value, "micro_f1": value}
            for kind, value in (("strict", score if strict is None else strict), ("found", score))}


def images(ssim: float, one_minus_mse: float) -> dict:
    """The scores of reconstructions."""
    return {kind: {"ssim": ssim, "one_minus_mse": one_minus_mse} for kind in ("strict", "found")}


def bird(shipped: Any = 0.95, retrained: Any = 0.94, runs: dict | None = None, **changes) -> dict:
    """The record of a good bird.py, but for these changes; `runs` changes runs."""
    names = ["test", "test again", *(["train", "retest"] if retrained is not None else [])]
    scores = {"shipped": {"classification": labels(shipped)}}
    if retrained is not None:
        scores["retrained"] = {"classification": labels(retrained)}
    return {"entry": "2021CS10001", "source": "sub.zip", "part": "bird", "submitted": "2026-11-20T10:00:00+00:00",
            "level": "strong", "program": "bird.py", "parameters": 1575090, "faults": [], "findings": [],
            "runs": {name: run() | (runs or {}).get(name, {}) for name in names}, "scores": scores,
            "details": {"shipped": {"classification": table(random.Random(0), 10)}}} | changes


def vae(**changes) -> dict:
    """The record of a good vae.py."""
    names = ("reconstruct", "classify", "train", "rereconstruct", "reclassify")
    both = {"classification": labels(0.97), "reconstruction": images(0.72, 0.98)}
    return bird() | {"part": "vae", "program": "vae.py", "runs": {name: run() for name in names},
                     "scores": {"shipped": both, "retrained": both}, "details": {}} | changes


def table(rng: random.Random, classes: int) -> dict:
    """A confusion of so many classes."""
    confusion = [[rng.randrange(100) for _ in range(classes)] for _ in range(classes)]
    each = [{"precision": 0.5, "recall": 0.5, "f1": rng.random(), "number": 100} for _ in range(classes)]
    return {"classes": [str(k) for k in range(classes)], "confusion": confusion, "per_class": each}


def finding(kind: str, text: str = "the header is 'label'", **changes) -> dict:
    return {"kind": kind, "text": text, "file": "bird.csv", "line": 1, "source": "label"} | changes


def rubric(tmp_path, text: str = "", part: str = "bird"):
    """The default rubric with these changes."""
    (tmp_path / "my.toml").write_text(text)
    return read_rubric(tmp_path / "my.toml", part)


def priced(tmp_path, record: dict, text: str = ""):
    return marks(record, rubric(tmp_path, text, record["part"]))


# ------------------------------------------------------------------------------- marks

LOST = {"scores": {}, "details": {"shipped": {"classification": {"missing": "bird.csv was not written."}}}}


@pytest.mark.parametrize(("record", "given", "said"), [
    (bird(), [70, 20, 10], "The shipped model's score (found) is 0.9500"),
    (bird(0.6, 0.6), [35, 20, 10], "0.6000, where 0.3 gives no marks and 0.9 gives all."),
    (bird(0.2, 0.2), [0, 0, 10], "No score of the shipped model earns marks: there is nothing to reproduce."),
    (vae(scores={which: {"classification": labels(0.3), "reconstruction": images(0.2, 0.935)}
                 for which in ("shipped", "retrained")}), [0, 0, 7.5, 20, 10], "0.9350"),
    (bird(0.95, 0.85), [70, 0, 10], "0.8500 when trained anew and 0.9500 as shipped, which differ by 0.1000"),
    (bird(0.85, 0.95), [70 * 55 / 60, 0, 10], "more than the tolerance of 0.02"),
    (bird(0.95, 0.93), [70, 20, 10], "within the tolerance"),
    (bird(0.95, None), [70, 0, 10], "not trained anew, so this counts neither way"),
    (bird(runs={"test": TIME}), [35, 20, 10],
     "the run was stopped (test: it did not end within 600 seconds), so 50 % of it is kept."),
    (bird(runs={"test again": TIME}), [35, 20, 10], "test again: it did not end within"),
    (bird(runs={"train": TIME}), [70, 10, 10], "train: it did not end within"),
    (bird(runs={"test": TIME}, **LOST), [0, 0, 10], "No score: test: it did not end within 600 seconds."),
    (bird(**LOST), [0, 0, 10], "No score: bird.csv was not written."),
    (bird(**LOST | {"scores": {which: {"classification": labels(0)} for which in ("shipped", "retrained")}}),
     [0, 0, 10], "No score: bird.csv was not written."),             # both 0 is nothing reproduced
    (bird(runs={"train": {"state": "failed", "reason": "ValueError: no"}}, details={"retrained": {
        "missing": "no bird.pth was saved"}}), [70, 0, 10], "no score to compare with: train: ValueError: no."),
    (bird(runs={"test": {"state": "grader", "reason": "no memory"}}, **LOST), [0, 0, 10],
     "the grader failed, not the submission; grade it again"),
    (bird(runs={"test": {"state": "environment", "reason": "it needs cv2, which the grading environment lacks"}},
          **LOST), [0, 0, 10], "No score: test: it needs cv2, which"),
    (bird(faults=["No bird.py was found."], scores={}, details={}) | {"runs": {}}, [0, 0, 0],
     "No bird.py was found."),
    (bird(scores={"retrained": {"classification": labels(0.95)}},
          details={"shipped": {"missing": "no bird.pth was handed in"}}) | {
              "runs": {"train": run(), "retest": run()}}, [70, 0, 10],
     "The shipped model has no score to compare with: no bird.pth was handed in."),
    (bird(findings=[finding("column"), finding("column"), finding("shim"), finding("pretrained")]),
     [70, 20, 9], "Deviations: the CSV's header is not Predicted_Label (-1); the program asks for CUDA"),
    (vae(), [40, 15, 15, 20, 10], "1 - MSE"),
    (vae(scores={"shipped": {"classification": labels(0.97), "reconstruction": images(0.5, 0.935)},
                 "retrained": {"classification": labels(0.97), "reconstruction": images(0.6, 0.935)}}),
     [40, 7.5, 7.5, 0, 10], "Reconstruction, SSIM: 0.6000 when trained anew and 0.5000 as shipped"),
    (vae(runs={"reconstruct": run(), "classify": run(**TIME)}), [20, 15, 15, 0, 10], "classify: it did not end"),
])
def test_marks_and_their_reasons(tmp_path, record, given, said):
    got = priced(tmp_path, record)
    assert [item.score for item in got.items] == pytest.approx(given, abs=0.01)
    assert got.total == pytest.approx(sum(given), abs=0.01)
    assert said in " ".join(f"{item.name}. {item.why}" for item in got.items)
    assert all(item.why.endswith(".") and 0 <= item.score <= item.most for item in got.items)
    assert got == priced(tmp_path, json.loads(json.dumps(record)))
    assert got.most == (80 if not record["faults"] and "train" not in record["runs"] else 100)
    if any(each["state"] == "time" for each in record["runs"].values()):
        assert got.total < got.most


@pytest.mark.parametrize(("submitted", "days", "total", "said"), [
    ("2026-11-20T23:59:00+05:30", 0, 100, "Submitted in time."),
    ("2026-11-20T18:29:01+00:00", 1, 90, "1 day late: 10 % of the marks are lost."),
    ("2026-11-20T18:29:01", 1, 90, "1 day late"), ("2026-11-23T18:28:00Z", 3, 70, "3 days late: 30 %"),
    ("2026-11-25T18:30:00Z", 6, 0, "6 days late, more than the 5 of the rubric: no marks are left."),
    (None, 0, 100, "is not known, so nothing is taken"),
])
def test_late_days_are_counted_from_the_due_date_each_time(tmp_path, submitted, days, total, said):
    record = bird(submitted=submitted)
    for due in ('"2026-11-20T23:59:00+05:30"', "2026-11-20T23:59:00+05:30"):          # a string and TOML's own
        got = priced(tmp_path, record, f"due = {due}")
        assert (got.late_days, got.total, got.penalty) == (days, total, 100 - total)
        assert said in got.late
    assert priced(tmp_path, record).total == 100
    assert priced(tmp_path, record, 'due = "2027-01-01T00:00:00Z"').total == 100


def test_strict_scores_may_count(tmp_path):
    record = bird(scores={"shipped": {"classification": labels(0.95, 0.0)}}, findings=[finding("column")])
    assert priced(tmp_path, record).items[0].score == 70
    got = priced(tmp_path, record, 'counts = "strict"\n[deviations]\ncolumn = 12')
    assert [item.score for item in got.items] == [0, 0, 0]
    assert "(strict) is 0.0000" in got.items[0].why


def test_the_default_rubric_prices_each_kind_and_sums_to_100():
    for part in ("bird", "vae"):
        default = read_rubric(None, part)
        assert set(default.deviations) == set(DEVIATIONS)
        assert default == read_rubric(DEFAULT, part)
        scores = sum(scale.marks for scale in default.scales.values())
        assert scores + default.reproducibility + default.form == 100


@pytest.mark.parametrize(("text", "said"), [
    ("conts = 'found'", "unknown key conts; .* counts, stopped_percent"), ("counts = 3", "counts is 3"),
    ("counts = ['found']", "counts is .*give one of strict, found"), ("visibility = 'on'", "visibility is 'on'"),
    ("tolerance = true", "tolerance is True"), ("tolerance = nan", "tolerance is nan"),
    ("stopped_percent = 100", "stopped_percent is 100; give a number from 0 to 99"), ("bird = 7", "bird is 7; "),
    ("late_days = -1", "late_days is -1"), ("[bird]\nform = '10'", r"bird\.form is '10'"),
    ("[bird]\nssim = {marks = 3}", r"unknown key bird\.ssim"), ("[vae]\nssim = 3", r"vae\.ssim is 3"),
    ("[bird]\nclassification = {floor = 0.9}", r"bird\.classification\.floor is 0\.9; give less than full, 0\.9"),
    ("[deviations]\ncolumm = 1", r"unknown key deviations\.columm"),
    ("[deviations]\ncolumn = -1", "deviations.column is -1"), ("due = 2026-11-20T23:59:00", "due is .*offset"),
    ("due = 2026-11-20", "due is"), ("due = 'soon'", "due is 'soon'"), ("due = 5", "due is '5'"),
    ("a = ", "no valid TOML"),
])
@pytest.mark.parametrize("part", ["bird", "vae"])
def test_a_wrong_rubric_is_refused_by_file_and_key(tmp_path, text, said, part):
    with pytest.raises(UserError, match=rf"my\.toml.*{said}"):
        rubric(tmp_path, text, part)


def test_a_rubric_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml cannot be read"):
        read_rubric(tmp_path / "none.toml", "bird")


# --------------------------------------------------------------------- one submission

def written(tmp_path, record: dict, text: str = "") -> tuple[dict, str]:
    """results.json and feedback.txt."""
    given = rubric(tmp_path, text, record["part"])
    results.write_submission(tmp_path, record, marks(record, given), given)
    folder = tmp_path / record["entry"]
    return json.loads((folder / "results.json").read_text()), (folder / "feedback.txt").read_text()


def test_results_json_is_in_gradescope_s_form(tmp_path):
    got, feedback = written(tmp_path, vae(), 'visibility = "after_published"')
    assert list(got) == ["score", "execution_time", "output", "visibility", "stdout_visibility", "extra_data",
                         "tests", "leaderboard"]
    assert got["score"] == 100
    assert got["execution_time"] == 16.0
    assert got["output"] == feedback
    assert got["stdout_visibility"] == "hidden"
    assert [list(test) for test in got["tests"]] == 5 * [["score", "max_score", "name", "number", "output",
                                                          "visibility"]]
    assert {test["visibility"] for test in got["tests"]} == {got["visibility"]} == {"after_published"}
    assert [list(each) for each in got["leaderboard"]] == 4 * [["name", "value", "order"]]
    assert got["leaderboard"][1] == {"name": "Classification", "value": 0.97, "order": "desc"}


@pytest.mark.parametrize("character", ["x", "\u00e9", "\U0001f426", '"', "<"])
def test_results_json_stays_small(tmp_path, character):
    long = character * 5000
    record = bird(runs={name: TIME | {"tail": long, "reason": long} for name in ("test", "test again", "train")},
                  findings=[finding(kind, long, source=long) for kind in ("column", "seed") for _ in range(500)])
    got, feedback = written(tmp_path, record)
    assert len(json.dumps(got["output"])) <= 60_000
    assert (tmp_path / record["entry"] / "results.json").stat().st_size < 100_000
    assert "and 450 more" in feedback


def test_feedback_says_everything_in_words(tmp_path):
    record = bird(
        0.95, 0.7, scores={"shipped": {"classification": labels(0.95, 0.0)}},
        runs={"train": TIME | {"seconds": 600.0, "printed": 34567, "tail":
                               "epoch 1\r\nepoch 2:  10%|#\repoch 2:  90%|#####\nlast line\n"},
              "retest": {"state": "failed", "reason": "KeyError: 'x'", "tail": ""}},
        findings=[finding("column"), finding("pretrained", "torchvision.models is imported", file="bird.py",
                                             line=12, source="from torchvision.models import resnet18")])
    _, text = written(tmp_path, record, 'due = "2026-11-19T10:00:00Z"')
    assert text.splitlines()[0] == "2021CS10001: 71.1 of 100 marks"
    for sentence in (
            'Run "test": ran to its end (3.2 s, 700 MiB of memory)',
            'Run "train": did not end in time: it did not end within 600 seconds (600.0 s, 700 MiB of memory)',
            "The last of the 34,567 bytes that it printed:\n    epoch 1\n    epoch 2:  90%|#####\n    last line\n",
            'Run "retest": ended with an error: KeyError: \'x\'', "It printed nothing.",
            "- Classification, shipped model: 0.0000 strict, 0.9500 found", "The found ones count.",
            "Strict and found differ: the CSV's header is not Predicted_Label.",
            "Deviations from the contract\n- bird.csv:1: the header is 'label'\n      label\n",
            "For a person to look at\n- bird.py:12: torchvision.models is imported\n"
            "      from torchvision.models import resnet18\n",
            "- Classification: 70 of 70. The shipped", "- Reproducibility: 0 of 20. The retrained model has no",
            "- Form: 9 of 10. Deviations: the CSV's header", "- Lateness: -7.9. 1 day late: 10 %",
            "Together: 71.1 of 100", "Level of the walls around the runs: strong (no network"):
        assert sentence in text, sentence


def test_feedback_of_a_submission_that_was_not_run(tmp_path):
    record = bird(faults=["no bird.py was found"], scores={}, details={}) | {"runs": {}}
    got, text = written(tmp_path, record)
    assert "Nothing was run:\n- no bird.py was found\n" in text
    assert got["score"] == 0
    assert got["extra_data"]["state"] == "refused"


@pytest.mark.parametrize(("text", "block", "line"), [
    ("a\x1b[1;31mb\x1b[0m\x1b]8;;http://x\x1b\\c\x1b(Bd\x9b1me", "abcde", "abcde"),
    (" 10%|#\r 90%|##\r\n100%\r", " 90%|##\n100%", "10%|# 90%|## 100%"),
    ("a\x00\x07\u202e\ud800b\tc", "ab\tc", "ab c"), ("a\x1b[", "a", "a"),
    ("x" * 2000, "x" * 1500, "x" * 299 + "\u2026"),
])
def test_hostile_text_is_tamed(text, block, line):
    assert results.block(text) == block
    assert results.line(text) == line


# --------------------------------------------------------------------------- the batch

class Reader(HTMLParser):
    """Counts tags, and gathers the attributes that load or run something."""

    def __init__(self):
        super().__init__()
        self.tags, self.loaded, self.text = {}, [], []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.loaded += [value for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_data(self, data):
        self.text.append(data)


def batch(tmp_path, records: list[dict], similarity=(), text: str = "") -> tuple[str, str]:
    """leaderboard.csv and index.html."""
    given = rubric(tmp_path, text, records[0]["part"])
    results.write_batch(tmp_path, records, [marks(record, given) for record in records], given, similarity)
    return (tmp_path / "leaderboard.csv").read_text(), (tmp_path / "index.html").read_text()


def test_the_leaderboard_is_sorted_and_holds_no_formula(tmp_path):
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "\t=2", 'a"b,c', "2021CS10001"]
    entries = [bird(entry=name) for name in names]
    entries.append(bird(entry="b", faults=["no"], scores={}, parameters=None) | {"runs": {}})
    text, page = batch(tmp_path, entries)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["entry", "state", "strict", "found", "retrained", "ssim", "one_minus_mse", "parameters",
                       "findings", "late days", "marks"]
    assert [row[0] for row in rows[1:]] == ["'=2", "'+1", "'-1", "2021CS10001", "'=cmd|' /C calc'!A0", "'@x",
                                            'a"b,c', "b"]
    assert rows[4][1:] == ["done", "0.9500", "0.9500", "0.9400", "", "", "1575090", "0", "0", "100.00"]
    assert rows[-1][1:] == ["refused", "", "", "", "", "", "", "0", "0", "0.00"]
    slower = [record | {"runs": {name: run(seconds=9.9, peak=1.0, tail="x") for name in record["runs"]}}
              for record in reversed(entries)]
    assert batch(tmp_path, slower)[0] == text                        # whatever time and machine
    assert page.count("<tr><td><a href=") == len(entries)


def test_the_leaderboard_of_digits(tmp_path):
    row = next(csv.DictReader(io.StringIO(batch(tmp_path, [vae()])[0])))
    assert [row[name] for name in ("ssim", "one_minus_mse", "marks")] == ["0.7200", "0.9800", "100.00"]


def test_hostile_text_does_nothing_on_the_page(tmp_path):
    record = bird(entry=f"x{EVIL}".replace("/", "|"), source=EVIL, program=EVIL, runs={
        name: {"state": "failed", "reason": EVIL, "tail": EVIL} for name in ("test", "train")}, findings=[
        finding(kind, EVIL, file=EVIL, source=EVIL) for kind in ("column", "seed")])
    plain, refused = bird(), bird(faults=[EVIL], entry='"><img src=x>')
    _, page = batch(tmp_path, [record, plain, refused], [(record["entry"], plain["entry"], 0.9), (EVIL, "b", 0.1)])
    clean = Reader()
    clean.feed(batch(tmp_path, [plain])[1])
    reader = Reader()
    reader.feed(page)
    assert reader.tags["script"] == clean.tags["script"] == 1
    assert "img" not in reader.tags
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page)
    assert "[31m" not in page
    assert all(value.startswith(("#", "./", "data:image/png;base64,")) for value in reader.loaded)
    assert sum("<script>alert(1)</script>red gnp" in text for text in reader.text) > 8
    _, feedback = written(tmp_path, record | {"entry": "x"})
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", feedback)


def test_the_page_allows_its_own_style_and_script_alone(tmp_path):
    _, page = batch(tmp_path, [bird()])
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag in ("style", "script"):
        [source] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        assert f"{tag}-src '{results.digest(source)}'" in policy
    assert "http:" not in page
    assert "https:" not in page


def test_the_page_of_no_submission_s(tmp_path):
    given = read_rubric(None, "vae")
    results.write_batch(tmp_path, [], [], given)
    assert "0 submissions" in (tmp_path / "index.html").read_text()


def drawn(rng: random.Random, number: int) -> list:
    """Images of a stroke with grey edges, as digits are."""
    def image() -> list:
        x, lean = rng.uniform(10, 17), rng.uniform(-0.4, 0.4)
        return [[max(0, min(255, round(400 - 130 * abs(c - x - lean * r)))) * (4 <= r < 24) for c in range(28)]
                for r in range(28)]
    return [image() for _ in range(number)]


def many(number: int) -> list[dict]:
    """Records of a class, a quarter of which did not end well."""
    rng, originals, records = random.Random(0), drawn(random.Random(1), 10), []
    pool, bad = drawn(rng, 60), [state for state in results.STATES if state not in ("refused", "not run", "done")]
    for k in range(number):
        record = vae(entry=f"2021CS{k:05}", findings=[
            finding(rng.choice(list(DEVIATIONS)), "what is odd here " * 4, source="net.load_state_dict(load(x))")
            for _ in range(rng.randrange(5))], details={"shipped": {
                "classification": table(rng, 3), "reconstruction": {"originals": originals,
                                                                    "images": rng.sample(pool, 10)}}})
        if k % 4 == 0:
            record["runs"] |= {
                name: run(state=rng.choice(bad), reason="KeyError: 'x' " * 4, tail="<a line>\n" * 200)
                for name in ("classify", "train")}
        records.append(record)
    return records


def test_the_page_of_200_submissions_stays_under_a_megabyte(tmp_path):
    records = many(200)
    pairs = [(a["entry"], b["entry"], 0.5) for a, b in itertools.pairwise(records)]
    _, page = batch(tmp_path, records, pairs)
    assert len(page.encode()) < 1_000_000
    assert page.count("<details id=") == 200
    assert page.count("data:image/png;base64,") == 201               # the originals once
    assert page.count("<pre>") == 100
    assert "shows less" in page
    assert page.count("<td>0.50</td>") == results.PAIRS


def test_the_same_records_give_the_same_bytes(tmp_path):
    records = many(9)
    pairs = [(a["entry"], b["entry"], 0.5) for a, b in itertools.pairwise(records)]
    first = batch(tmp_path, records, pairs)
    assert batch(tmp_path, records[::-1], pairs[::-1]) == first
    assert batch(tmp_path, json.loads(json.dumps(records)), pairs) == first


def test_the_page_shows_less_where_it_would_be_too_large(tmp_path, monkeypatch):
    sizes = []
    for size in (1_000_000, 35_000, 25_000, 10_000):
        monkeypatch.setattr(results, "PAGE", size)
        _, page = batch(tmp_path, many(5))
        sizes.append(len(page.encode()))
        assert page.count("<h3>Marks</h3>") == 5
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 35_000 > sizes[1] > 25_000 > sizes[2]
    assert "<pre>" not in page
    assert "data:image" not in page


def test_a_small_class_is_shown_whole(tmp_path):
    rng = random.Random(1)
    record = vae(runs={"reconstruct": run(tail="y" * 5000), "classify": run(**TIME, tail="z" * 5000)}, details={
        "shipped": {"classification": table(rng, 3), "reconstruction": {"originals": drawn(rng, 10),
                                                                       "images": drawn(rng, 10)}}},
                 findings=[finding("key", f"odd {k}") for k in range(9)])
    _, page = batch(tmp_path, [record, vae(entry="b")], [("2021CS10001", "b", 0.42)])
    assert page.count("y" * 1500) == page.count("z" * 1500) == 1
    assert "y" * 1501 not in page
    assert page.count("data:image/png;base64,") == 2
    assert all(f"odd {k}" in page for k in range(9))
    assert "shows less" not in page
    assert "<td>0.42</td>" in page
    assert "did not end in time" in page
