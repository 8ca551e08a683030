"""Files that are there whole or not at all, and the user's mistakes. Needs no torch."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class UserError(Exception):
    """The user's mistake: one sentence that names the file and the remedy; exit status 2."""


def user_errors() -> tuple[type[Exception], ...]:
    """The UserError of this module and, where they are loaded, those of bird and vae, which stand alone."""
    return tuple(sys.modules[name].UserError for name in (__name__, "bird", "vae") if name in sys.modules)


def run(main: Callable[..., int | None], *arguments: Any) -> int:
    """Calls main; a user's mistake and Ctrl-C become one sentence and an exit status."""
    try:
        return main(*arguments) or 0
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        return 130
    except user_errors() as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: after a kill or on a full disk the earlier one stays."""
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"{path} cannot be written ({error.strerror}); name another.") from error


def check_writable(path: Path) -> None:
    """Fails before the work rather than after it."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file to write.")
    write_atomic(probe := path.with_name(f"{path.name}.probe"), b"")
    probe.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes plain values, indented."""
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON; remove it and make it anew.") from error


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` to write into: renamed to `out` at the end, removed if anything fails."""
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already and is not an empty folder; give a new name, or remove it.")
    part = out.with_name(f"{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{out} cannot be written ({reason}); name another folder.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
