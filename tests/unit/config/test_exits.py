"""Code that leaves by an exit is an error with its place; errors, Ctrl-C and signals stay what they are."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from importlib import import_module
from inspect import getsourcelines
from pathlib import Path

import pytest

from atlas.config import ConfigError
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


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero at {place}:2 in <module>"),
        ("def f(:\n", "SyntaxError: invalid syntax (fails_at_import.py, line 1)"),
    ],
)
def test_a_module_that_fails_when_it_is_imported_is_refused(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "fails_at_import.py"
    place.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as refused:
        named_callable("data._target_", "fails_at_import.Data")
    assert str(refused.value) == (
        f"data._target_=fails_at_import.Data: must be in a module that can be imported ({told.format(place=place)})"
    )


def test_a_library_that_replaces_the_exit_is_not_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hooks.py").write_text("import sys\nleave = sys.exit\n\n\ndef hook(code=None):\n    leave(code)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "exit", import_module("hooks").hook)
    with pytest.raises(ExitError) as caught, no_exit():
        sys.exit(3)
    assert str(caught.value).startswith(f"SystemExit(3) at {__file__}:")
