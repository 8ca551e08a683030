"""A folder that is there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def mistake(sentence: str) -> Exception:
    """A `bird.Mistake`, imported only to be raised: with bird comes torch, which drawing has no use for."""
    from bird import Mistake

    return Mistake(sentence)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` to write into: renamed to `out` at the end, removed if anything fails.

    Raises Mistake if `out` is a file, holds something already, or cannot be written.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise mistake(f"{out} exists already and is not an empty folder; give a new name, or remove it first")
    part = out.with_name(f"{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise mistake(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
