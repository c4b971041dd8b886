"""Code of the user's that leaves by `sys.exit()`: an error of that code, never the end of the command."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

_PYTHON = sysconfig.get_paths()["stdlib"]


class ExitError(Exception):
    """Code that was called left by SystemExit, or by another exception that is neither an error nor a signal."""


@contextmanager
def no_exit() -> Iterator[None]:
    """Raise `ExitError`, with file and line, for what `except Exception` would not see. Ctrl-C and signals pass."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ExitError(f"{error!r} at {place_of(error)}: raise an error to end a run") from error


def place_of(error: BaseException) -> str:
    """File, line and function of the last frame that is not Python's own: `exit()` and argparse leave in theirs. Nor is
    it one of a library that has put its own function in the place of `sys.exit`, as wandb does."""
    frames = traceback.extract_tb(error.__traceback__)
    replaced = getattr(getattr(sys.exit, "__code__", None), "co_filename", "")
    own = [frame for frame in frames if not in_python(frame.filename) and frame.filename != replaced] or frames
    return f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}"


def in_python(file: str) -> bool:
    """Whether the file is part of Python itself."""
    return file.startswith((f"{_PYTHON}/", "<frozen")) and "-packages/" not in file
