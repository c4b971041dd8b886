"""The experiment files measure what their protocols ask for."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import atlas
from atlas.config.files import CONF_DIR
from experiments.phase2.chunk_sizes import BASELINE, SETS, STEPS_MIN
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


def test_all_contexts_have_as_many_tokens_a_step_and_the_configured_one_enough_steps() -> None:
    keys = swept("chunk_size_lock")
    configs = [
        atlas.compose(["experiment=chunk_size_lock", "chunk_size=baseline", train]).train for train in keys["train"]
    ]
    default = atlas.compose()
    assert {config.sequence * config.batch_size for config in configs} == {
        default.train.sequence * default.train.batch_size
    }
    (configured,) = [config for config in configs if config.sequence == default.model.native.sequence]
    assert configured.steps * len(keys["sweep.round"]) >= STEPS_MIN


def test_the_candidates_are_those_of_the_protocol() -> None:
    options = {value.removeprefix("chunk_size=") for value in swept("chunk_size_lock")["chunk_size"]}
    sizes = {name: tuple(atlas.compose([f"chunk_size={name}"]).chunk_size.local) for name in options}
    assert sizes == {BASELINE: (8,), "set_a": SETS["Set A"], "set_b": SETS["Set B"], "set_c": SETS["Set C"]}


def test_the_probes_are_the_default_ones_but_for_how_often_they_run() -> None:
    keys = swept("niah_frequency")
    probed, plain = (atlas.compose(["experiment=niah_frequency", value]) for value in keys["niah"])
    assert (probed.niah.enabled, plain.niah.enabled) == (True, False)
    default = atlas.compose().niah
    default.every = probed.niah.every
    assert probed.niah == default
    assert probed.train.steps // probed.niah.every * len(keys["sweep.round"]) >= PROBES_MIN
