"""A run that goes on finds the text that it was trained on, wherever that lies now, or says which file differs."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.config import ConfigError
from atlas.runs.resume import resumed_config
from atlas.training.state import TrainState
from tests.integration.small_runs import JOB

NEEDLES = ["pairs=2", "queries=2", "sparse_pairs=1", "sparse_queries=1", "distance_min=16"]
OPTIONS = {"text": ["data=text"], "mixed": ["data=mixed", *(f"data.recall.{setting}" for setting in NEEDLES)]}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with three texts in it."""
    texts = tmp_path / "home" / "texts"
    texts.mkdir(parents=True)
    for name in ("a", "b", "c"):
        words = random.Random(name).choices(["one", "two", "tree", "four"], k=900)
        (texts / f"{name}.txt").write_text(" ".join(words))
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def cut_off(folder: Path, interrupting: Any, *more: str) -> None:
    config = atlas.compose([*JOB, "data.paths=[texts/*.txt]", *more])
    with pytest.raises(KeyboardInterrupt):
        atlas.train(replace(config, logger=interrupting(at=3)), folder)


def go_on(folder: Path, *more: str) -> Any:
    overrides = [f"resume={folder}", "trust=[interrupting]", *more]
    return atlas.train(replace(resumed_config(atlas.compose(overrides), overrides, folder), logger={}))


@pytest.mark.slow
@pytest.mark.parametrize("data", OPTIONS)
def test_a_run_whose_text_moved_goes_on_bitwise(
    data: str, home: Path, interrupting: Any, left: Any, same_state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, second, whole = left(home / "run"), left(home / "second"), left(home / "whole")
    finished = atlas.train(atlas.compose([*JOB, "data.paths=[texts/*.txt]", *OPTIONS[data]]), whole.folder)
    cut_off(run.folder, interrupting, *OPTIONS[data])
    shutil.copytree(run.folder, second.folder)
    monkeypatch.chdir(home.parent)  # relative paths hold wherever one stands
    assert go_on(run.folder).status == "completed"
    (home / "texts").rename(home.parent / "elsewhere")
    with pytest.raises(ConfigError, match=r"texts/\*\.txt' matches none"):
        go_on(second.folder)
    summary = go_on(second.folder, "data.paths=[elsewhere/*.txt]")
    for other in (run, second):
        assert other.rows == whole.rows
        assert same_state(other.state, whole.state)
    assert summary.data_digest == finished.data_digest == second.state["data"]
    assert len(summary.data_digest) == 64
    assert go_on(second.folder).status == "completed"  # the new place is the run's


Change = Callable[[Path], object]
CHANGES: dict[str, tuple[Change, str]] = {
    "a byte": (lambda texts: (texts / "a.txt").write_text("X" * 3000), "'a.txt' changed"),
    "one more": (lambda texts: (texts / "d.txt").write_text("more text"), "'d.txt' added"),
    "one less": (lambda texts: (texts / "a.txt").unlink(), "'a.txt' missing"),
    "another name": (
        lambda texts: (texts / "a.txt").rename(texts / "z.txt"),
        "files 1 added, 1 missing; the first: 'a.txt' missing",
    ),
}


@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=[] if name == "a byte" else pytest.mark.slow) for name in CHANGES]
)
def test_another_text_is_refused_by_name_or_accepted(change: str, home: Path, interrupting: Any, left: Any) -> None:
    run = left(home / "run")
    cut_off(run.folder, interrupting)
    before = sorted(run.folder.rglob("*"))
    make, difference = CHANGES[change]
    make(home / "texts")
    with pytest.raises(ConfigError) as caught:
        go_on(run.folder)
    assert str(caught.value) == (
        f"resume={run.folder}: must find the text that the run was trained on; {difference}"
        " (accept_changed_data=true goes on with the text as it is now;"
        " data.paths=[...] names the place that it was moved to)"
    )
    assert sorted(run.folder.rglob("*")) == before
    assert go_on(run.folder, "accept_changed_data=true").status == "completed"
    told = [event["message"] for event in run.events("notice")]
    assert f"goes on with another text (accept_changed_data=true): {difference}" in told
    assert "restored" not in [event["watch"] for event in run.events("watch")]
    assert go_on(run.folder).status == "completed"  # what was accepted is the run's text now


@pytest.mark.slow
def test_another_standard_library_is_refused(
    home: Path, interrupting: Any, left: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = left(home / "run")
    for text in (home / "texts").iterdir():
        text.rename(text.with_suffix(".py"))
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(home / "texts")})
    config = atlas.compose([option for option in JOB if option != "data=text"] + ["data=stdlib"])
    with pytest.raises(KeyboardInterrupt):
        atlas.train(replace(config, logger=interrupting(at=3)), run.folder)
    (home / "texts" / "b.py").unlink()
    monkeypatch.setattr("platform.python_version", lambda: "9.9.9")
    said = (
        r"Python 9\.9\.9 standard library instead of Python 3\.\S+ standard library:"
        r" 'b\.py' missing \(accept_changed_data=true goes on with the text as it is now\)$"
    )
    with pytest.raises(ConfigError, match=said):
        go_on(run.folder)
    with pytest.raises(
        ConfigError, match=r"^data\.paths=\['texts'\] instead of None: must be as in .*that run has no such setting"
    ):
        go_on(run.folder, "data.paths=[texts]")


@pytest.mark.slow
def test_a_checkpoint_that_is_older_than_the_digest_goes_on_and_says_so(
    home: Path, interrupting: Any, left: Any
) -> None:
    run, payload = left(home / "run"), TrainState.payload
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            TrainState,
            "payload",
            lambda self, **how: {key: value for key, value in payload(self, **how).items() if key != "data"},
        )
        cut_off(run.folder, interrupting)
    (run.folder / "data.json").unlink()
    assert go_on(run.folder).status == "completed"
    told = "the checkpoint does not tell what text it was trained on: whether it is still the same was not checked"
    assert told in [event["message"] for event in run.events("notice")]
    assert len(run.state["data"]) == 64
