"""Damaged files of each kind, a few seconds of them; `python -m bench.fuzz` tries 100,000."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from bench import fuzz


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.READERS)
def test_damaged_files_give_a_value_or_the_user_s_error(kind):
    assert fuzz.fuzz(kind, int(400 * fuzz.READERS[kind].share) + 10, seed=1000) == []


@pytest.mark.parametrize("kind", fuzz.READERS)
def test_whole_files_are_read(kind, tmp_path):
    reader = fuzz.READERS[kind]
    path = tmp_path / reader.name
    for content in reader.samples()[:1]:
        path.write_bytes(content)
        reader.read(path)


def test_faults_are_found(monkeypatch, tmp_path):
    def read(path):
        if path.read_bytes()[:1] != b"a":
            raise ZeroDivisionError("a defect")
    monkeypatch.setitem(fuzz.READERS, "text", fuzz.Reader(read, "a.txt", 1.0, lambda: [b"abc" * 9]))
    found = fuzz.fuzz("text", 50, 0, tmp_path)
    assert found
    assert all(line.endswith("ZeroDivisionError: a defect") for line in found)
    assert len(list(tmp_path.iterdir())) == len(found) < 50
