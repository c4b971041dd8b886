"""Code that leaves by an exit is an error with its place; errors, Ctrl-C and signals stay what they are."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from inspect import getsourcelines
from pathlib import Path

import pytest

from atlas.config.components import named_callable
from atlas.config.exits import ExitError, no_exit


def forgotten() -> None:
    sys.exit()


def in_python() -> None:
    argparse.ArgumentParser(prog="x", usage="").error("no")


def cancelled() -> None:
    raise asyncio.CancelledError


def closed() -> None:
    raise GeneratorExit


@pytest.mark.parametrize(
    ("leave", "told"),
    [
        (forgotten, "SystemExit()"),
        (in_python, "SystemExit(2)"),
        (cancelled, "CancelledError()"),
        (closed, "GeneratorExit()"),
    ],
)
def test_what_is_neither_an_error_nor_a_signal_names_its_place(leave: Callable[[], None], told: str) -> None:
    line = getsourcelines(leave)[1] + 1
    with pytest.raises(ExitError) as caught, no_exit():
        leave()
    assert str(caught.value) == f"{told} at {__file__}:{line} in {leave.__name__}: raise an error to end a run"


@pytest.mark.parametrize("error", [KeyboardInterrupt("stopped by SIGTERM"), ValueError("no"), OSError(5, "no")])
def test_errors_and_signals_pass_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, no_exit():
        raise error
    assert caught.value is error


def test_a_module_that_exits_when_it_is_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaves_at_once.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its whole message is compared
        named_callable("data._target_", "leaves_at_once.Data")
    place = tmp_path / "leaves_at_once.py"
    assert str(caught.value) == (
        "data._target_=leaves_at_once.Data: must be the name of a class or function"
        f" (SystemExit(0) at {place}:2 in <module>: raise an error to end a run)"
    )
