"""Files that are there whole or not at all, and the user's mistakes. Needs no torch."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


class UserError(Exception):
    """The user's mistake: one sentence that names the file and the remedy; exit status 2."""


def user_errors() -> tuple[type[Exception], ...]:
    """The UserError of this module and, where they are loaded, those of bird and vae, which stand alone."""
    return tuple(sys.modules[name].UserError for name in (__name__, "bird", "vae") if name in sys.modules)


def say(text: str, stream: str = "stdout") -> None:
    """Prints; where its reader is gone or the disk is full, the work goes on in silence."""
    try:
        print(text, file=getattr(sys, stream), flush=True)
    except OSError:
        setattr(sys, stream, open(os.devnull, "w"))        # noqa: SIM115


def prepare_process() -> None:
    """SIGTERM and SIGHUP stop as Ctrl-C does; what the terminal cannot write is escaped."""
    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:  # Windows lacks one
        if signal.getsignal(number) == signal.SIG_DFL:     # not where nohup ignores it
            signal.signal(number, stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(main: Callable[..., int | None], *arguments: Any) -> int:
    """Calls main; a user's mistake and a signal become one sentence and an exit status."""
    prepare_process()
    try:
        return main(*arguments) or 0
    except KeyboardInterrupt as signalled:
        say("\nstopped.", "stderr")
        return 128 + (signalled.args or (signal.SIGINT,))[0]
    except user_errors() as error:
        say(f"error: {' '.join(str(error).splitlines())}", "stderr")
        return 2


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: after a kill or on a full disk the earlier one stays."""
    target = Path(os.path.realpath(path))                  # a link stays; its file is replaced
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path] = ()) -> None:
    """Fails before the work rather than after it; no output is an input or another output."""
    taken = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"{path} is a folder, a pipe or a device; name a file to write.")
        if os.path.realpath(path) in taken:
            raise UserError(f"{path} is read too, or named twice; name another file to write.")
        taken.add(os.path.realpath(path))
        write_atomic(probe := path.with_name(f"{path.name}.probe"), b"")
        probe.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """Plain values for JSON, which knows no infinity and no NaN: None in their place."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes plain values, indented."""
    write_atomic(path, (json.dumps(finite(value), indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The object in a JSON file, which has these keys."""
    try:
        value = json.loads(path.read_text())
        if not (isinstance(value, dict) and set(keys) <= set(value)):
            raise ValueError("no object, or it lacks a key")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON with {', '.join(keys) or 'names'}; remove it and make it "
                        "anew.") from error


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, whose files are moved to `out` at the end, or removed if anything fails.

    It lies beside `out` or, where `out` is an empty folder already, in it: somebody may stand there.
    """
    out = out.absolute()
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already and is not an empty folder; give a new name, or remove it.")
    part = (out if out.is_dir() else out.parent) / f".{out.name}.{secrets.token_hex(4)}.part"
    try:
        part.mkdir(parents=True)
        yield part
        if out.is_dir():
            for path in part.iterdir():
                path.rename(out / path.name)
        else:
            part.rename(out)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{out} cannot be written ({reason}); name another folder.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
