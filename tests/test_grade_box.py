"""The box: what hostile programs try ends in the right state, and nothing leaves it, on each level there is."""

import os
from pathlib import Path

import pytest

from nestling.files import UserError
from nestling.grade import box
from nestling.grade.box import Box, Limits

pytestmark = pytest.mark.slow

LIMITS = Limits(seconds=20, memory=400, processes=40, disk=64)
SYSTEM = Path("/usr/bin/python3")          # another user may not reach a Python in a home folder
BOXES = {"strongest": None, "walls": Box("walls"), "weak": Box("weak", SYSTEM), "none": Box("none")}
WALLED = ("strongest", "walls")


@pytest.fixture(scope="session")
def strongest() -> Box:
    found, why = box.find_level()
    assert found.level in ("strong", "walls"), why         # .ci/run installs bubblewrap
    return found


@pytest.fixture(params=BOXES)
def each(request, strongest) -> Box:
    return BOXES[request.param] or strongest


def run(where: Box, tmp_path: Path, source: str, limits: Limits = LIMITS, **reads: Path) -> tuple[box.Outcome, dict]:
    """Runs a program; how it ended, and the files that came out."""
    (tmp_path / "start").mkdir(exist_ok=True)
    (tmp_path / "start" / "a.py").write_text(source)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    command, out = ["{python}", "-S", "a.py", "{in}/data"], tmp_path / "out"
    outcome = box.run(where, command, tmp_path / "start", reads, out, limits)
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "a.py"}
    return outcome, files


EATS = "data = []\nwhile True: data.append(bytearray(2**20))\n"
ENDS = {
    "done": ("import sys; open('a.csv', 'w').write(open(sys.argv[1]).read()); print('it went well')", "done", ""),
    "fails": ("open('a.csv', 'w').write('1'); raise ValueError('no photos')", "failed", "ValueError: no photos"),
    "status": ("import sys; sys.exit(3)", "failed", "it printed nothing"),
    "loops": ("open('a.csv', 'w').write('half')\nwhile True: pass", "time", "within 2 seconds"),
    "sleeps deaf": ("import signal, time\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\ntime.sleep(99)",
                    "time", ""),
    "memory": (EATS, "memory", "more than 400 MiB"),
    "forks": ("import os, time\nfor _ in range(300):\n    if not os.fork(): time.sleep(30)", "processes", "than 40"),
    "threads": ("import threading, time\nfor _ in range(300):\n"
                "    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()", "processes", "than 40"),
    "one file": ("f = open('a', 'wb')\nwhile True: f.write(bytes(2**20))", "disk", "more than 64 MiB"),
    "imports": ("import cv2", "environment", "needs cv2"),
    "floods": ("import os\nwhile True: os.write(1, b'a' * 2**16)", "output", "more than 100 MB"),
    "kills all": ("import os, signal\nopen('a.csv', 'w').write('1')\nos.kill(-1, signal.SIGKILL)", "failed", ""),
    "no Python": ("def broken(:", "failed", "SyntaxError"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_run_ends_in_the_right_state(name, each, tmp_path):
    source, state, reason = ENDS[name]
    if each.level == "none" and name in ("forks", "threads", "kills all"):
        return                                             # it promises none of that, and all would be ours
    limits = Limits(seconds=2 if state == "time" else 20, memory=400, processes=40, disk=64)
    (tmp_path / "data").write_text("7 photos")
    outcome, files = run(each, tmp_path, source, limits, data=tmp_path / "data")
    assert (outcome.state, outcome.level) == (state, each.level), outcome
    assert reason in outcome.reason
    if name in ("done", "fails", "loops"):                 # what was written before the end counts
        assert files == {"a.csv": {"done": b"7 photos", "fails": b"1", "loops": b"half"}[name]}
    if name == "done":
        assert (outcome.head, outcome.rc) == ("it went well\n", 0)
    if name == "floods":
        assert outcome.head[:9] == outcome.tail[:9] == "aaaaaaaaa"
        assert len(outcome.head) + len(outcome.tail) <= 2 * box.KEPT < outcome.printed


@pytest.mark.parametrize("kind", ["MAP_SHARED", "memfd"])
def test_shared_memory_is_bounded_where_a_cgroup_is(kind, strongest, tmp_path):
    assert strongest.level == "strong"
    mapped = ("import mmap\nkept = []\nwhile True:\n    kept.append(mmap.mmap(-1, 2**25))\n"
              "    kept[-1].write(bytes(2**25))")
    outcome, _ = run(strongest, tmp_path, mapped if kind == "MAP_SHARED" else box.HOG)
    assert outcome.state == "memory"


def test_many_small_files_are_bounded(strongest, tmp_path):
    source = "for k in range(1000): open(str(k), 'wb').write(bytes(2**20))"
    outcome, files = run(strongest, tmp_path, source)
    assert outcome.state == "disk"
    assert sum(map(len, files.values())) <= 64 * 2**20


def test_only_regular_files_come_out(each, tmp_path):
    (tmp_path / "secret").write_text("labels")
    outcome, files = run(each, tmp_path, f"""import os
os.symlink("/etc/passwd", "a.csv"); os.symlink({str(tmp_path / "secret")!r}, "b.csv"); os.mkfifo("c.csv")
os.mkdir("d.csv"); open("d.csv/x", "w").write("1"); open(".hidden", "w").write("2"); open("good", "w").write("3")
try:
    open("e.csv", "w").truncate(2**40)
except OSError:
    os.remove("e.csv")
""")
    assert outcome.state == "done", outcome
    assert files == {"good": b"3", ".hidden": b"2"}


def test_nothing_leaves_the_walls(strongest, tmp_path, monkeypatch):
    monkeypatch.setenv("NESTLING_SECRET", "token")
    (tmp_path / "labels").write_text("1 4 8")
    for where in (strongest, BOXES["walls"]):
        outcome, _ = run(where, tmp_path, f"""import glob, os, socket, sys
def tries(what):
    try:
        what()
        print(what.__name__, "went through")
    except Exception:
        pass
def reads(): open({str(tmp_path / "labels")!r})
def writes(): open({str(tmp_path / "new")!r}, "w")
def inputs(): open(sys.argv[1], "a")
def core_pattern(): open("/proc/sys/kernel/core_pattern", "w").write("|/bin/sh")
def connects(): socket.create_connection(("1.1.1.1", 53), 2)
def resolves(): socket.getaddrinfo("example.org", 80)
def kills(): os.kill({os.getpid()}, 0)
for what in (reads, writes, inputs, core_pattern, connects, resolves): tries(what)
for path in glob.glob("/proc/*/environ"):
    if b"token" in open(path, "rb").read(): print("the environment leaks")
print("end")
""", data=tmp_path / "start")
        assert (outcome.state, outcome.head) == ("done", "end\n"), outcome


def test_what_is_left_behind_ends(each, tmp_path):
    mark = f"left-{tmp_path.name}-{os.getpid()}"
    source = ("import subprocess, sys\nfor new in (False, True):\n    subprocess.Popen([sys.executable, '-c', "
              f"'import time; time.sleep(60)', {mark!r}], start_new_session=new)\n")
    assert run(each, tmp_path, source)[0].state == "done"
    assert not [line for line in box.command_lines() if mark.encode() in line]


def test_boxes_leave_no_cgroup_and_no_file(strongest, tmp_path):
    run(strongest, tmp_path, "print(1)")
    for kind in ("memory", "pids", "unified"):
        assert not list(Path("/sys/fs/cgroup", kind).rglob(f"nestling-{os.getpid()}-*"))


@pytest.mark.parametrize("archive", [b"", b"no tar", b"began\n", b"began\n" + b"\0" * 10_240, os.urandom(5000)])
def test_a_forged_archive_is_no_report(archive, tmp_path):
    (tmp_path / "archive").write_bytes(archive)
    assert box.unpack(tmp_path / "archive", tmp_path / "out", 10**6) in ({}, {"began": True})
    assert list((tmp_path / "out").iterdir()) == []


def test_each_level_is_found_by_trying(strongest, monkeypatch):
    assert box.attack(BOXES["none"])[0] >= {"memory", "environ", "daemon"}
    if os.geteuid() == 0:
        assert box.attack(BOXES["weak"])[0] >= box.NEEDED["weak"]
    monkeypatch.setattr(box, "walls", lambda *_: ["no-bwrap"])
    monkeypatch.setattr(box, "bare", lambda *_: ["no-setpriv"])
    found, why = box.find_level()
    assert found.level == "none"
    assert "not strong: no-bwrap No such file or directory; install bubblewrap" in why

    def forbidden(limits):
        raise PermissionError(13, "Permission denied", "/sys/fs/cgroup/memory/nestling")
    monkeypatch.undo()
    monkeypatch.setattr(box, "Group", forbidden)
    found, why = box.find_level()
    assert found.level == "walls"
    assert "grade as root, where a cgroup" in why


def test_without_any_wall_nothing_is_run(tmp_path, monkeypatch):
    from nestling.grade import batch
    monkeypatch.setattr(box, "find_level", lambda python: (Box("none"), "not walls: bwrap is missing. "))
    with pytest.raises(UserError, match=r"nothing was run .*bwrap is missing.*--unsafe"):
        batch.grade([tmp_path / "class"], "bird", tmp_path / "out", test=tmp_path)
