"""Every key of every component has a type and a range, told before any work; a user's own component works as it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atlas
from atlas.config import ConfigError
from atlas.config.components import HANDED_OVER, check_component, loggers
from atlas.config.composition import options

if TYPE_CHECKING:
    from nowhere import Unknown

GROUPS = {group: options(group) for group in ("data", "optim", "logger")}
LONG = "x" * 200


@cache
def composed(option: str) -> Mapping[str, Any]:
    group = next(group for group, names in GROUPS.items() if option in names)
    found: Mapping[str, Any] = getattr(atlas.compose([f"{group}={option}"]), group)
    return found


def refusal(option: str, key: str, value: object) -> str:
    """What the component of this option says to a value; "" where it takes it."""
    settings = deepcopy(dict(composed(option)))
    group, *parents, last = key.split(".")
    holder = settings[parents[0]] if parents else settings
    holder[last] = value
    components = loggers(settings) if group == "logger" else {group: settings}
    try:
        for name, keys in components.items():
            check_component(name, keys, HANDED_OVER[group])
    except ConfigError as error:
        return str(error)
    return ""


POSITIVE, SHARE, NAME = "a number in (0, inf)", "a number in [0, 1]", "a text of 1 to 128 characters"
BETAS = "a list of numbers, such as [0.25,0.5] of two numbers in [0, 1)"
CASES = [
    ("muon", "optim.lr", ["abc", True, float("inf"), float("nan"), 0, -1, None, [1], "1e-3"], POSITIVE),
    ("adamw", "optim.lr", ["abc", True, float("inf")], POSITIVE),
    ("muon", "optim.weight_decay", ["x", float("inf"), -0.1], "a number in [0, inf)"),
    ("muon", "optim.warmup", [1.5, -1, True, "5"], "an integer in [0, inf)"),
    ("muon", "optim.lr_min_ratio", [2, "x", True], SHARE),
    ("muon", "optim.betas", [0.9, [0.9], [0.9, 1], ["a", "b"], "ab", [True, False]], BETAS),
    ("muon", "optim.schedule", ["step", 1], "one of cosine, linear, constant, wsd"),
    ("adamw", "optim.decay", [2, "x"], SHARE),
    ("tensorboard", "logger.tensorboard.flush_seconds", [0, 1.5], "an integer in [1, inf)"),
    ("wandb", "logger.mode", ["on", 1, True], "one of auto, online, offline, disabled"),
    ("wandb", "logger.project", ["a/b", "a:b", "a?b"], f"{NAME} without any of /\\#?%:"),
    ("wandb", "logger.project", ["", LONG, None], f"{NAME} without any of /\\#?%:"),
    ("wandb", "logger.name", ["", LONG, ["a"]], f"{NAME} or null"),
    ("wandb", "logger.group", ["", LONG], f"{NAME} or null"),
    ("wandb", "logger.job_type", ["", LONG], "a text of 1 to 64 characters or null"),
    (
        "wandb",
        "logger.tags",
        ["foo", [LONG], [""], [1], {"a": 1}],
        "a list of texts, such as [a,b], each a text of 1 to 64 characters",
    ),
    ("mixed", "data.paths", ["a.txt", [1], {"a": 1}, None], "a list of texts, such as [a,b]"),
    ("text", "data.encoding", ["latin1", 8], "one of bytes, utf8"),
    ("stdlib", "data.validation_share", [0, 1, 1.5, "x", True], "a number in (0, 1)"),
    ("tokens", "data.documents", ["joined", 1], "one of packed, separate"),
    ("blend", "data.weights", ["x", ["x"], None], "a list of numbers, such as [0.25,0.5]"),
    ("tokens", "data.path", [None, ["a"]], "a text"),
    ("mixed", "data.recall_hold", [-0.1, 1.1, "x", True], SHARE),
    ("mixed", "data.recall_share_start", [-0.1, "x"], SHARE),
    ("mixed", "data.recall.pairs", [1.5, "x", True], "an integer"),
    ("recall", "data.recall.sparse_share", ["x", True], "a number"),
    ("recall", "data.recall", [5, ["x"]], "an option of the group, or keys as {key: value}"),
]


@pytest.mark.parametrize(("option", "key", "values", "allowed"), CASES, ids=lambda value: str(value)[:20])
def test_a_value_that_does_not_fit_is_refused(option: str, key: str, values: Sequence[Any], allowed: str) -> None:
    found = [refusal(option, key, value) for value in values]
    assert found == [f"{key}={value}: must be {allowed}" for value in values]


def test_a_number_as_a_name_is_told_how_to_be_quoted() -> None:
    hint = (
        "logger.name=2024: must be a text of 1 to 128 characters or null; in quotes it is one: logger.name=\"'2024'\""
    )
    assert refusal("wandb", "logger.name", 2024) == hint
    assert atlas.compose(["logger.name='2024'"]).logger["name"] == "2024"


def test_values_at_the_ends_of_their_ranges_fit() -> None:
    for key, value in [("optim.lr", 3), ("optim.warmup", 0), ("optim.betas", [0, 0.5]), ("optim.weight_decay", 0)]:
        assert refusal("muon", key, value) == ""
    for key, value in [("logger.tags", ["x" * 64]), ("logger.name", "x" * 128), ("logger.project", "a b.c-d")]:
        assert refusal("wandb", key, value) == ""


def test_numbers_of_settings_are_finite_and_fit_64_bits() -> None:
    for override, told in {
        "train.gradient_clip=inf": "train.gradient_clip=inf: must be finite",
        f"train.steps={10**30}": f"train.steps={10**30}: must be in [-2**63, 2**63)",
        "train.gate.polarisation_peak=inf": "train.gate.polarisation_peak=inf: must be finite",
        "device.threads=100000": "device.threads=100000: must be in [0, 1024] (0 = torch's own choice)",
    }.items():
        with pytest.raises(ConfigError) as error:
            atlas.compose([override])
        assert str(error.value) == told


@dataclass(kw_only=True)
class Inner:
    width: int


class Own:
    """A component as a user writes one: some annotations, a path, a nested object, names of type checkers only."""

    def __init__(self, *, rate: float, folder: Path, inner: Inner, anything, **more: Any) -> None:  # type: ignore[no-untyped-def]
        self.rate = rate


def unknown(*, path: Unknown, count: int = 1) -> None: ...


def test_a_users_own_component_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    inner = {"_target_": "mine.Inner", "width": 3}
    own = {"_target_": "mine.Own", "rate": float("inf"), "folder": "x", "inner": inner, "anything": [{}], "extra": 1}
    check_component("logger", own)
    check_component("logger", {"_target_": "mine.unknown", "path": 3, "count": "many"})
    for changed, told in {
        "rate": ("fast", "logger.rate=fast: must be a number"),
        "inner": ({**inner, "width": 1.5}, "logger.inner.width=1.5: must be an integer"),
    }.values():
        key = told.partition("=")[0].split(".")[1]
        with pytest.raises(ConfigError) as error:
            check_component("logger", {**own, key: changed})
        assert str(error.value) == told
