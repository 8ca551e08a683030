"""Runs other people's programs: inputs read-only, one writable folder of fixed size, limits, no network.

How well a program is walled in is its level. It is found by running what a hostile program would try (`find_level`),
not by trusting flags:

    strong   bubblewrap, started as an unprivileged user; memory and processes bounded by a cgroup
    walls    bubblewrap; memory by rlimits alone, which memory shared between processes escapes
    weak     another user and rlimits, no namespaces: the network and world-readable files are open
    none     the user who grades and rlimits; only on demand

A supervisor inside starts the program, ends whatever it leaves behind, and sends the files that it wrote through a
pipe as a tar archive, which is read as hostile too. Measurements behind the choices: docs/grading.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

LEVELS = ("strong", "walls", "weak", "none")
STATES = ("done", "failed", "time", "memory", "processes", "disk", "output", "environment", "grader")
PRINTED = 100_000_000                      # bytes that a program may print
KEPT = 20_000                              # bytes kept of the head and of the tail of what it printed
GRACE = 30.0                               # seconds that the supervisor has to start and to send the files
MIB = 2**20
MARK = "NESTLING_BOX"                      # in the environment of all that a run starts


class Stopped(Exception):
    """The grader is ending, so nothing is run any more."""


RUNNING: set[subprocess.Popen] = set()
STOP = threading.Event()


def stop() -> None:
    """Kills all runs of this process; those that begin later raise Stopped."""
    STOP.set()
    for process in list(RUNNING):
        process.terminate()                                # bubblewrap dies of it, a bare supervisor cleans up
    for process in list(RUNNING):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()


@dataclass(frozen=True)
class Limits:
    """What a run may use. Memory and disk are in MiB; files written count as both on `strong`."""

    seconds: float = 600.0
    memory: int = 4096
    processes: int = 128
    disk: int = 1024


@dataclass(frozen=True)
class Outcome:
    """How a run ended; `peak` in MiB, `printed` in bytes, of which head and tail are kept."""

    state: str
    rc: int | None
    seconds: float
    peak: float
    head: str
    tail: str
    printed: int
    reason: str
    level: str


@dataclass(frozen=True)
class Box:
    """Where programs run: the level, and the Python that they get."""

    level: str
    python: Path = field(default_factory=lambda: Path(sys.executable))


SUPERVISOR = r"""
import ctypes, io, json, os, resource, shutil, signal, stat, subprocess, sys, tarfile, time
spec = json.loads(sys.argv[1])
for option, value in (36, 1), (1, signal.SIGTERM):     # orphans become children of this process, and it ends if the
    ctypes.CDLL(None).prctl(option, value)             # grader does: PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG
shutil.copytree(spec["start"], spec["work"], dirs_exist_ok=True, symlinks=True)
os.chdir(spec["work"])
for root, folders, names in os.walk("."):
    for name in (*folders, *names):
        os.chmod(os.path.join(root, name), 0o700, follow_symlinks=True)
def limit():
    for name, value in spec["rlimits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
def ended(*_):
    raise subprocess.TimeoutExpired("", 0)
signal.signal(signal.SIGTERM, ended)
os.write(spec["fd"], b"began\n")
began = time.monotonic()
try:
    process = subprocess.Popen(spec["argv"], stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=limit,
                               close_fds=True)
    rc = process.wait(spec["seconds"])
except subprocess.TimeoutExpired:
    rc = None
except (OSError, subprocess.SubprocessError) as error:
    rc, process = 127, None
    print(error, flush=True)
seconds = time.monotonic() - began
def children():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = open("/proc/%s/stat" % pid).read().rpartition(")")[2].split()
            found += [int(pid)] if int(fields[1]) == os.getpid() else []
        except OSError:
            pass
    return found
left = True
while left:                                # whatever it has started ends too
    try:
        os.kill(-1, signal.SIGKILL) if spec["alone"] else [os.kill(pid, signal.SIGKILL) for pid in children()]
    except ProcessLookupError:
        pass
    try:
        os.waitpid(-1, 0)                  # ends with ChildProcessError: nobody is left
    except ChildProcessError:
        left = False
usage, space = resource.getrusage(resource.RUSAGE_CHILDREN), os.statvfs(".")
report = {"rc": rc, "seconds": seconds, "peak": usage.ru_maxrss / 1024,
          "full": space.f_bavail * space.f_frsize < 2**20 or space.f_files > 0 == space.f_favail}
with tarfile.open(fileobj=os.fdopen(spec["fd"], "wb"), mode="w|") as tar:
    def add(name, file, size):
        info = tarfile.TarInfo(name)
        info.size = size
        tar.addfile(info, file)
    data = json.dumps(report).encode()
    add("report", io.BytesIO(data), len(data))
    for name in sorted(os.listdir(".")):
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and status.st_size <= spec["most"]:
                add("out/" + name, os.fdopen(file, "rb"), status.st_size)
        except OSError:
            pass
"""


def run(box: Box, argv: list[str], start: Path, reads: dict[str, Path], out: Path, limits: Limits,
        env: dict[str, str] | None = None) -> Outcome:
    """Runs a program in a copy of the folder `start`; the regular files that lie there at its end come to `out`.

    argv: "{python}" stands for the box's Python, "{in}" for the folder in which `reads` lie under their names.
    """
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        stage = Path(name)
        group = Group(limits) if box.level == "strong" else None
        try:
            return _run(box, argv, start, reads, out, limits, env or {}, stage, group)
        finally:
            if group:
                group.close()


def _run(box: Box, argv: list[str], start: Path, reads: dict[str, Path], out: Path, limits: Limits,
         env: dict[str, str], stage: Path, group: Group | None) -> Outcome:
    walled = box.level in ("strong", "walls")
    inside = Path("/in") if walled else stage / "in"
    words = [word.replace("{in}", str(inside)).replace("{python}", str(box.python)) for word in argv]
    spec: dict = {"argv": words, "start": "/start" if walled else str(stage / "start"),
            "work": "/out" if walled else str(stage / "out"), "seconds": limits.seconds,
            "most": limits.disk * MIB, "alone": box.level != "none", "rlimits": {
                "RLIMIT_DATA": limits.memory * MIB, "RLIMIT_AS": 4 * limits.memory * MIB, "RLIMIT_CORE": 0,
                "RLIMIT_FSIZE": limits.disk * MIB, "RLIMIT_NPROC": limits.processes}}
    if box.level == "none":
        del spec["rlimits"]["RLIMIT_NPROC"]                # it would count all of the user's processes
    receive, send = os.pipe()
    spec["fd"] = send
    supervisor = [str(box.python), "-I", "-S", "-c", SUPERVISOR, json.dumps(spec)]
    command = (walls if walled else bare)(box, supervisor, start, reads, limits, stage, group)
    clean = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "USER": "box", MARK: stage.name,
             "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", **env}
    try:
        if STOP.is_set():
            raise Stopped
        process = subprocess.Popen(command, env={k: v.replace("{in}", str(inside)) for k, v in clean.items()},
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   pass_fds=[send], start_new_session=True)
    except (OSError, Stopped):
        os.close(receive)
        raise
    finally:
        os.close(send)
    RUNNING.add(process)
    assert process.stdout is not None
    printed, archive = Printed(process.stdout, process), stage / "archive"
    collector = threading.Thread(target=drain, args=(receive, archive, 2 * limits.disk * MIB))
    for thread in (printed, collector):
        thread.start()
    late = False
    try:
        process.wait(limits.seconds + GRACE)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        RUNNING.discard(process)
        if not walled:                                     # no namespace of processes ends with it
            end_all(f"{MARK}={stage.name}".encode())
    printed.join(5)
    collector.join(5)
    process.stdout.close()
    if STOP.is_set():
        raise Stopped
    report = unpack(archive, out, limits.disk * MIB)
    if group:
        report |= group.report()
    return judge(box, report, printed, late, start, limits)


def end_all(mark: bytes) -> None:
    """Kills the processes that carry a mark in their environment."""
    found = True
    while found:
        found = False
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):             # it has ended, or is none of ours
                if mark in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    found = True


def judge(box: Box, report: dict, printed: Printed, late: bool, start: Path, limits: Limits) -> Outcome:
    """The state, in this order: what the walls say, then the status, then the last words."""
    head, tail = printed.text()
    rc, lines = report.get("rc"), [line for line in tail.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "it printed nothing"
    seconds = min(float(report.get("seconds", limits.seconds)), limits.seconds)

    def says(pattern: str) -> bool:
        return rc != 0 and re.search(pattern, tail) is not None

    missing = re.search(r"No module named '([\w.]+)'", tail) if rc else None
    own = missing and any(start.glob(f"**/{missing[1].split('.')[0]}*"))
    if printed.killed:
        state, reason = "output", f"it printed more than {PRINTED // 10**6} MB"
    elif late or ("rc" in report and rc is None):
        state, reason = "time", f"it did not end within {limits.seconds:g} seconds"
    elif report.get("oom") or says(r"MemoryError|[Cc]an(no|')t allocate memory|DefaultCPUAllocator|bad_alloc"):
        state, reason = "memory", f"it needs more than {limits.memory} MiB of memory"
    elif rc != 0 and (report.get("refused") or says(r"can't start new thread|Resource temporarily unavailable")):
        state, reason = "processes", f"it starts more than {limits.processes} processes and threads"
    elif rc != 0 and (report.get("full") or rc == -signal.SIGXFSZ or says(r"No space left|File too large")):
        state, reason = "disk", f"it writes more than {limits.disk} MiB"
    elif "rc" not in report:
        ended = "the supervisor was killed, perhaps by the program: " if report.get("began") else ""
        state, reason = ("failed" if report.get("began") else "grader"), f"{ended}{last}"
    elif missing and not own:
        state, reason = "environment", f"it needs {missing[1]}, which the grading environment lacks"
    else:
        state, reason = ("done", "") if rc == 0 else ("failed", last)
    return Outcome(state, rc, round(seconds, 2), round(float(report.get("peak", 0.0)), 1), head, tail,
                   printed.size, reason, box.level)


# ------------------------------------------------------ the command of each level

def walls(box: Box, supervisor: list[str], start: Path, reads: dict[str, Path], limits: Limits, stage: Path,
          group: Group | None) -> list[str]:
    """bubblewrap: nothing of the machine but /usr and Python, read-only; /out and /tmp of fixed sizes."""
    system = [Path(name) for name in ("/usr", "/etc/ld.so.cache", "/etc/fonts") if Path(name).exists()]
    pythons = {Path(sys.base_prefix), Path(sys.prefix)} if box.python == Path(sys.executable) else set()
    binds = [(path, str(path)) for path in (*system, *pythons) if path in system or not path.is_relative_to("/usr")]
    binds += [(start.resolve(), "/start"), *((path.resolve(), f"/in/{name}") for name, path in reads.items())]
    arguments = ["--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--hostname", "box",
                 "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev",
                 *sized("/dev/shm", limits.memory), *sized("/tmp", limits.disk), *sized("/out", limits.disk)]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if Path("/", name).is_symlink():
            arguments += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif Path("/", name).is_dir():
            binds.append((Path("/", name), f"/{name}"))
    root, places = os.geteuid() == 0, stage / "binds"
    lines = [f"mount -t tmpfs -o mode=755,size=1m tmpfs {places}"]
    places.mkdir()
    for number, (path, inside) in enumerate(binds):
        source = places / str(number) if root else path
        arguments += ["--ro-bind", str(source), inside]
        lines.append(f"{'mkdir' if path.is_dir() else 'touch'} {source}; mount --bind \"${{{number + 1}}}\" {source}")
    arguments += ["--chdir", "/out", "--remount-ro", "/proc", "--remount-ro", "/", "--", *supervisor]
    if not root:
        return ["bwrap", *arguments]
    # an unprivileged user could not reach a Python in a home folder: its folders are bound to a place of their own
    lines += [f"echo $$ > {path}" for path in (group.joins if group else ())]
    user, last = str(random.randrange(61_000, 64_000)), len(binds)
    lines += [f"shift {last}", f"exec setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs bwrap \"$@\""]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", "\n".join(lines), "sh",
            *(str(path) for path, _ in binds), *arguments]


def sized(place: str, mib: int) -> list[str]:
    """bubblewrap's words for a writable folder in memory of at most so many MiB."""
    return ["--perms", "1777", "--size", str(mib * MIB), "--tmpfs", place]


def bare(box: Box, supervisor: list[str], start: Path, reads: dict[str, Path], limits: Limits, stage: Path,
         group: Group | None) -> list[str]:
    """No namespaces: `weak` as another user, who needs root to start; `none` as this one."""
    for name, path in (("start", start), *((f"in/{name}", path) for name, path in reads.items())):
        place = stage / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, place) if path.is_dir() else shutil.copy(path, place)
    (work := stage / "out").mkdir()
    if box.level == "none":
        return supervisor
    user = random.randrange(61_000, 64_000)
    os.chown(work, user, user)
    words = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups", "--no-new-privs"]
    return [*words, *supervisor]


class Group:
    """A cgroup, version 1 or 2, that bounds the memory and the processes of one run."""

    def __init__(self, limits: Limits):
        name, memory = f"nestling-{os.getpid()}-{random.randrange(10**9)}", str((limits.memory + limits.disk) * MIB)
        own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
        base, processes = Path("/sys/fs/cgroup"), str(limits.processes + 8)            # the box's own
        self.folders: list[Path] = []
        if "memory" in own and "pids" in own:              # version 1
            self.version = 1
            wanted = [(base / "memory" / own["memory"].lstrip("/"), {"memory.limit_in_bytes": memory}),
                      (base / "pids" / own["pids"].lstrip("/"), {"pids.max": processes})]
        else:
            self.version = 2
            parent = base / own.get("", "/").lstrip("/")
            with contextlib.suppress(OSError):
                (parent / "cgroup.subtree_control").write_text("+memory +pids")
            wanted = [(parent, {"memory.max": memory, "memory.swap.max": "0", "pids.max": processes})]
        for parent, settings in wanted:
            for old in parent.glob("nestling-*"):          # of graders that were killed
                if not Path("/proc", old.name.split("-")[1]).exists():
                    with contextlib.suppress(OSError):
                        old.rmdir()
            (folder := parent / name).mkdir()
            self.folders.append(folder)
            for key, value in settings.items():
                if key != "memory.swap.max" or (folder / key).exists():
                    (folder / key).write_text(value)
        self.joins = [folder / "cgroup.procs" for folder in self.folders]

    def report(self) -> dict:
        """The peak in MiB, whether memory was refused, and how often a process was."""
        def number(path: Path, pattern: str = r"(\d+)") -> int:
            found = re.search(pattern, path.read_text()) if path.is_file() else None
            return int(found[1]) if found else 0
        memory, processes = self.folders[0], self.folders[-1]
        if self.version == 1:
            peak, events = number(memory / "memory.max_usage_in_bytes"), memory / "memory.oom_control"
        else:
            peak, events = number(memory / "memory.peak"), memory / "memory.events"
        oom = number(events, r"oom_kill (\d+)")
        return {"peak": peak / MIB, "oom": oom > 0,
                "refused": number(processes / "pids.events", r"max (\d+)")}

    def close(self) -> None:
        """Removes it; its processes have been killed, but take a moment to be gone."""
        for folder in self.folders:
            for _ in range(100):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)


# ------------------------------------------------------ what comes out

class Printed(threading.Thread):
    """Reads what a program prints to its end, keeps head and tail, and kills it where it is too much."""

    def __init__(self, stream: IO[bytes], process: subprocess.Popen):
        super().__init__(daemon=True)
        self.stream, self.process = stream, process
        self.head, self.last, self.size, self.killed = b"", b"", 0, False

    def run(self) -> None:
        """The thread's work."""
        while block := os.read(self.stream.fileno(), 2**16):
            self.head = (self.head + block[:KEPT])[:KEPT]
            self.last = (self.last + block)[-KEPT:]
            self.size += len(block)
            if self.size > PRINTED and not self.killed:
                self.killed = True
                self.process.terminate()                   # the supervisor ends the program, and sends its files

    def text(self) -> tuple[str, str]:
        """Head and tail; the tail is empty where the head has all."""
        whole = self.size <= KEPT
        head = self.head.decode(errors="replace")
        return (head, head) if whole else (head, self.last.decode(errors="replace"))


def drain(descriptor: int, path: Path, most: int) -> None:
    """Copies a pipe to a file, at most so many bytes; what is beyond is read and dropped."""
    with open(path, "wb") as file, os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while block := pipe.read(2**20):
            if file.tell() + len(block) <= most:
                file.write(block)


def unpack(archive: Path, out: Path, most: int) -> dict:
    """The supervisor's report; the files come to `out`, plain names and regular files only."""
    report: dict = {}
    out.mkdir(parents=True, exist_ok=True)
    try:
        with open(archive, "rb") as stream:
            report |= {"began": True} if stream.readline(10) == b"began\n" else {}
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    file, name = tar.extractfile(member) if member.isreg() else None, member.name.removeprefix("out/")
                    if file is None or member.size > most or "/" in name or name in ("", ".", "..") or "\0" in name:
                        continue
                    if member.name == "report":
                        found = json.loads(file.read(10_000))
                        report |= {key: found[key] for key in ("rc", "seconds", "peak", "full")}
                    elif member.name.startswith("out/"):
                        with open(out / name, "wb") as target:
                            shutil.copyfileobj(file, target)
    except (tarfile.TarError, OSError, ValueError, LookupError, TypeError, EOFError):
        pass                                               # of a supervisor that was killed: what came counts
    return report


# ------------------------------------------------------ the level, by trying

ATTACK = r"""
import ctypes, glob, json, os, socket, subprocess, sys, time
port, python, marker, outside = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
held = {}
def opens(path, flags):
    try:
        os.close(os.open(path, flags | os.O_NONBLOCK))
        return True
    except OSError:
        return False
sysctls = [path for path in glob.glob("/proc/sys/**", recursive=True) if os.path.isfile(path)]
held["sysctl"] = not any(opens(path, os.O_WRONLY) for path in sysctls)
def environ(pid):
    try:
        return open("/proc/%s/environ" % pid, "rb").read()
    except OSError:
        return b""
held["environ"] = not any(marker.encode() in environ(pid) for pid in os.listdir("/proc") if pid.isdigit())
held["write"] = not any(opens(os.path.join(place, "nestling-probe"), os.O_WRONLY | os.O_CREAT)
                        for place in ("/", "/usr", "/etc", os.path.dirname(python), outside))
held["read"] = not opens(outside, os.O_RDONLY)
try:
    socket.create_connection(("127.0.0.1", port), 1).close()
    held["network"] = False
except OSError:
    held["network"] = True
children = []
try:
    for _ in range(200):
        pid = os.fork()
        if not pid:
            time.sleep(30); os._exit(0)
        children.append(pid)
    held["fork"] = False
except OSError:
    held["fork"] = True
for pid in children:
    os.kill(pid, 9); os.waitpid(pid, 0)
try:
    blocks = [bytearray(2**20) for _ in range(600)]
    held["memory"] = False
except MemoryError:
    held["memory"] = True
blocks = None
try:
    with open("fill", "wb") as file:
        for _ in range(200):
            file.write(bytes(2**20)); file.flush()
    held["disk"] = False
except OSError:
    held["disk"] = True
os.remove("fill")
subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)", marker], start_new_session=True)
json.dump(held, open("held.json", "w"))
"""
HOG = r"""
import os
for k in range(40):                        # RLIMIT_FSIZE bounds each, and nothing bounds their sum
    fd = os.memfd_create(str(k))
    for _ in range(32):
        os.write(fd, bytes(2**20))
print("unhindered")
"""
NEEDED = {"strong": {"sysctl", "environ", "write", "read", "network", "fork", "memory", "disk", "daemon", "memfd"},
          "walls": {"sysctl", "environ", "write", "read", "network", "fork", "memory", "disk", "daemon"},
          "weak": {"environ", "write", "fork", "memory", "daemon"}, "none": set()}


def attack(box: Box) -> tuple[set[str], str]:
    """Runs what a hostile program would try; which of it the walls held, and what was said where nothing ran."""
    limits, marker = Limits(seconds=20, memory=400, processes=40, disk=64), f"nestling{random.randrange(10**12)}"
    with tempfile.TemporaryDirectory() as name, listener() as port:
        folder, os.environ["NESTLING_PROBE"] = Path(name), marker
        try:
            for part in ("start", "hog", "outside"):
                (folder / part).mkdir()
            (folder / "start" / "attack.py").write_text(ATTACK)
            (folder / "hog" / "hog.py").write_text(HOG)
            words = ["attack.py", str(port), str(box.python), marker, str(folder / "outside")]
            outcome = run(box, ["{python}", "-I", "-S", *words], folder / "start", {}, folder / "out", limits)
            if not (folder / "out" / "held.json").is_file():
                return set(), outcome.reason or outcome.tail
            held = {what for what, it in json.loads((folder / "out" / "held.json").read_text()).items() if it}
            if not any(marker.encode() in path for path in command_lines()):
                held.add("daemon")
            if box.level == "strong":
                hog = run(box, ["{python}", "-I", "-S", "hog.py"], folder / "hog", {}, folder / "out2", limits)
                held |= {"memfd"} if hog.state == "memory" else set()
            return held, ""
        except OSError as error:                           # no cgroup, no setpriv, no bwrap
            return set(), f"{error.filename or ''} {error.strerror}".strip()
        finally:
            del os.environ["NESTLING_PROBE"]


@contextlib.contextmanager
def listener() -> Iterator[int]:
    """A port of this machine that somebody listens on."""
    import socket
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def command_lines() -> list[bytes]:
    """Of all processes, but this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes() if path.parent.name != str(os.getpid()) else b"")
    return found


REMEDIES = {                               # what is said where a level does not stand -> what to do
    "cgroup": "grade as root, where a cgroup of its own can bound memory",
    "bwrap": "install bubblewrap (Debian: apt install bubblewrap)",
    "uid map|RTM_NEWADDR|Permission denied|Operation not permitted|No permissions": (
        "unprivileged user namespaces are forbidden here: allow them (on Ubuntu the AppArmor profile "
        "bwrap-userns-restrict, in Docker --security-opt seccomp=unconfined), or grade as root"),
}


def find_level(python: Path | None = None) -> tuple[Box, str]:
    """The strongest box that holds what its level promises; and what keeps a stronger one from standing, or ""."""
    box, why = Box("none", python or Path(sys.executable)), ""
    for level in LEVELS[:-1]:
        if level == "weak" and os.geteuid():
            continue                                       # only root can start a program as another user
        held, said = attack(replace(box, level=level))
        if held >= NEEDED[level]:
            return replace(box, level=level), why
        open_ = ", ".join(sorted(NEEDED[level] - held)) if held else said
        remedy = next((text for pattern, text in REMEDIES.items() if re.search(pattern, said)), "")
        why += f"not {level}: {open_[:200]}{'; ' + remedy if remedy else ''}. "
    return box, why
