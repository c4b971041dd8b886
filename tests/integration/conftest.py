"""Runs of a second or two: one small layer on short sequences of a made-up text."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import atlas
from atlas.checkpoint.manager import CheckpointManager
from atlas.config import RunConfig
from atlas.config.composition import save_config
from atlas.runs.build import build_model
from atlas.runs.summary import RunSummary
from atlas.telemetry.jsonl import read_jsonl
from atlas.telemetry.rows import without_clock
from atlas.telemetry.sinks import Sink
from tests.integration.small_runs import JOB, RUN

Tiny = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 kB of sentences made of 200 words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(200)]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(". ".join(" ".join(draw.choices(words, k=9)) for _ in range(1100)))
    return path


@pytest.fixture(scope="session")
def small(text: Path) -> list[str]:
    """A job of a sweep as a command line."""
    return [*JOB, f"data.paths=[{text}]"]


@pytest.fixture
def overrides(text: Path) -> list[str]:
    """The tiny run as a command line."""
    return [*RUN, f"data.paths=[{text}]"]


@cache
def _composed(*overrides: str) -> RunConfig:
    return atlas.compose(list(overrides))


@pytest.fixture(scope="session")
def tiny(text: Path) -> Tiny:
    """Composes the tiny run with further overrides."""
    return lambda *more: deepcopy(_composed(*RUN, f"data.paths=[{text}]", *more))


@pytest.fixture(scope="session")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """The tiny run, completed. Its folder is for reading only."""
    return atlas.train(tiny(), tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def untrained(tiny: Tiny, tmp_path: Path) -> Path:
    """A run folder with the checkpoint of step 7, of a model with its initial weights."""
    config, folder = tiny(), tmp_path / "untrained"
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    checkpoints = CheckpointManager(folder / "checkpoints", keep=2)
    checkpoints.save(7, {"model": build_model(config).state_dict()}, {"loss": 1.0})
    checkpoints.close()
    return folder


class Interrupt(Sink):
    """A logger that presses Ctrl-C: at step `at`, or at the first event of kind `on`."""

    def __init__(self, *, at: int, on: str) -> None:
        self.at, self.on = at, on

    def progress(self, step: int, values: Mapping[str, Any]) -> None:
        if step == self.at:
            raise KeyboardInterrupt

    def event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == self.on:
            raise KeyboardInterrupt


class Signal(Sink):
    """A logger that sends a signal: once `key` of step `at` is known, or at the first event of kind `on`.

    With `second` another one follows at once.
    """

    def __init__(self, *, number: int, at: int, key: str, on: str, second: int | None) -> None:
        self.numbers, self.at, self.key, self.on = [number, second], at, key, on

    def progress(self, step: int, values: Mapping[str, Any]) -> None:
        if step == self.at and self.key in values:
            self._send()

    def event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == self.on:
            self._send()

    def _send(self) -> None:
        numbers, self.numbers = self.numbers, []
        for number in filter(None, numbers):
            signal.raise_signal(number)


@pytest.fixture(scope="session")
def interrupting() -> Callable[..., dict[str, Any]]:
    """Settings of the logger that interrupts the run."""
    module = sys.modules["interrupting"] = ModuleType("interrupting")
    vars(module)["Interrupt"] = Interrupt
    return lambda *, at=-1, on="": {"_target_": "interrupting.Interrupt", "at": at, "on": on}


@pytest.fixture
def signalling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Settings of the logger that sends a signal to the run. Ctrl-C is as in a terminal, whoever started the tests."""
    module = ModuleType("signalling")
    vars(module)["Signal"] = Signal
    monkeypatch.setitem(sys.modules, "signalling", module)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def settings(
        number: signal.Signals, *, at: int = -1, key: str = "loss", on: str = "", second: int | None = None
    ) -> dict[str, Any]:
        target = {"_target_": "signalling.Signal", "number": int(number)}
        return {**target, "at": at, "key": key, "on": on, "second": None if second is None else int(second)}

    yield settings
    signal.signal(signal.SIGINT, before)


class Left:
    """What a run left in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [without_clock(row) for row in read_jsonl(self.folder / "metrics.jsonl")]

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in read_jsonl(self.folder / "events.jsonl") if event["kind"] in kinds]

    @property
    def state(self) -> dict[str, Any]:
        """The newest checkpoint, without the random states of the process."""
        payload, _ = CheckpointManager(self.folder / "checkpoints", keep=2).load()
        return {key: value for key, value in payload.items() if key != "rng"}


@pytest.fixture
def left() -> Callable[[Path], Left]:
    return Left


@pytest.fixture
def same_state() -> Callable[[Any, Any], bool]:
    """Whether two nested states are bitwise the same."""

    def compare(first: Any, second: Any) -> bool:
        leaves, structure = pytree.tree_flatten(first)
        others, other_structure = pytree.tree_flatten(second)
        return structure == other_structure and all(map(_same, leaves, others))

    return compare


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second)
