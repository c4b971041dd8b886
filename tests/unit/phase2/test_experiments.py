"""The experiment files measure what their protocols ask for."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import atlas
from atlas.config.files import CONF_DIR
from experiments.phase2 import chunk_learning, rollback_threshold
from experiments.phase2.chunk_runs import BASELINE, SETS
from experiments.phase2.chunk_sizes import STEPS_MIN
from experiments.phase2.probe_frequency import PROBES_MIN


def swept(experiment: str) -> dict[str, list[str]]:
    """The keys that an experiment sweeps, in their order, each with its values as overrides."""
    params: Any = OmegaConf.load(CONF_DIR / "experiment" / f"{experiment}.yaml").hydra.sweeper.params
    parser = OverridesParser.create()
    overrides = parser.parse_overrides([f"{key}={values}" for key, values in params.items()])
    return {
        override.key_or_group: [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]
        for override in overrides
    }


@pytest.mark.parametrize("experiment", ["chunk_size_lock", "niah_frequency"])
def test_rounds_are_interleaved(experiment: str) -> None:
    keys = swept(experiment)
    assert next(iter(keys)) == "sweep.round"  # the first key of a sweep is its outermost loop
    assert len(keys["sweep.round"]) >= 2


def test_contexts_have_as_many_tokens_a_step_where_they_can_and_the_configured_one_enough_steps() -> None:
    keys = swept("chunk_size_lock")
    parser: Any = OverridesParser.create()
    lengths = [parser.parse_override(train).value() for train in keys["train"]]
    default = atlas.compose()
    tokens = default.train.sequence * default.train.batch_size
    assert {one["sequence"]: one["batch_size"] for one in lengths} == {
        one["sequence"]: max(tokens // one["sequence"], 1) for one in lengths
    }
    assert max(one["sequence"] for one in lengths) == 16 * 1024
    (configured,) = [one for one in lengths if one["sequence"] == default.model.native.sequence]
    assert configured["steps"] * len(keys["sweep.round"]) >= STEPS_MIN


def test_the_candidates_are_those_of_the_protocol() -> None:
    options = {value.removeprefix("chunk_size=") for value in swept("chunk_size_lock")["chunk_size"]}
    sizes = {name: tuple(atlas.compose([f"chunk_size={name}"]).chunk_size.local) for name in options}
    assert sizes == {BASELINE: (8,), "set_a": SETS["Set A"], "set_b": SETS["Set B"], "set_c": SETS["Set C"]}


def test_what_the_sets_learn_is_read_long_enough_over_enough_seeds() -> None:
    keys = swept("chunk_size_learning")
    options = [value.removeprefix("chunk_size=") for value in keys["chunk_size"]]
    assert options == ["set_a", "set_b", "set_c"]
    assert len(keys["seed"]) >= chunk_learning.SEEDS_MIN
    config = atlas.compose(["experiment=chunk_size_learning", "chunk_size=set_a"])
    assert config.train.steps > chunk_learning.STEPS_MIN  # a faster set takes more of them in the same time
    assert config.niah.every == config.train.validation_every == 50


def test_the_threshold_is_measured_on_the_default_run_without_rollback() -> None:
    assert len(swept("rollback_threshold")["seed"]) >= rollback_threshold.SEEDS_MIN
    observed, default = atlas.compose(["experiment=rollback_threshold"]), atlas.compose()
    assert observed.rollback.observe
    observed.rollback.observe = False
    assert (observed.rollback, observed.train, observed.data) == (default.rollback, default.train, default.data)


def test_the_probes_are_the_default_ones_but_for_how_often_they_run() -> None:
    keys = swept("niah_frequency")
    probed, plain = (atlas.compose(["experiment=niah_frequency", value]) for value in keys["niah"])
    assert (probed.niah.enabled, plain.niah.enabled) == (True, False)
    default = atlas.compose().niah
    default.every = probed.niah.every
    assert probed.niah == default
    assert probed.train.steps // probed.niah.every * len(keys["sweep.round"]) >= PROBES_MIN
