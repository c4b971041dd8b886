"""The registry of watchers: judges, settings, options and the table in docs/watchers.md are in step."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import atlas
from atlas.config import WATCHERS, ConfigError, WatchAction, WatchConfig
from atlas.config.watch import watcher_table
from atlas.training import watchers
from atlas.training.watchers import JUDGES
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.record import Record

DOCUMENT = Path(atlas.__file__).parents[1] / "docs" / "watchers.md"


def test_every_watcher_has_a_setting_and_a_judge() -> None:
    assert list(JUDGES) == list(WATCHERS) == [one.name for one in fields(WatchConfig)]


@pytest.mark.parametrize("name", WATCHERS)
def test_a_run_that_has_not_begun_is_calm(name: str) -> None:
    assert JUDGES[name](Record(Facts(steps=10))) is None


def test_watch_off_switches_every_watcher_off() -> None:
    off = atlas.compose(["watch=off"]).watch
    assert {getattr(off, name) for name in WATCHERS} == {WatchAction.off}
    assert atlas.compose(["watch=off", "watch.clock=abort"]).watch.clock is WatchAction.abort


def test_a_rollback_is_refused_where_it_can_undo_nothing() -> None:
    with pytest.raises(ConfigError) as refused:
        atlas.compose(["watch.labels=rollback"])
    assert str(refused.value) == "watch.labels=rollback: must be warn, abort or off: a rollback cannot undo it"
    with pytest.raises(ConfigError) as refused:
        atlas.compose(["watch.labels=loud"])
    assert str(refused.value) == "watch.labels=loud: must be one of warn, abort, rollback, off"


def test_what_a_finding_advises_can_be_set() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in Path(watchers.__file__).parent.glob("*.py"))
    advised = set(re.findall(r"watch\.(\w+)=rollback", texts))
    assert "gradient_jump" in advised
    assert [name for name in sorted(advised) if not WATCHERS[name].undone] == []


def test_the_readme_has_the_table() -> None:
    assert "\n".join(watcher_table()) in DOCUMENT.read_text(encoding="utf-8")
