"""Runs are named by the options they were made with."""

from __future__ import annotations

import json
from pathlib import Path

from atlas.report.options import chosen_options, defaults, options_of, swept_values
from atlas.report.settings import Difference, differences

TINY = dict(defaults())
ATTENTION = TINY | {"model.feedforward": 656, "model.memory.enabled": False}
WIDER = ATTENTION | {"model.width": 32}


def test_an_option_is_known_by_its_settings_also_beside_a_changed_one() -> None:
    assert options_of(TINY)["model"] == "tiny"
    assert options_of(ATTENTION)["model"] == options_of(WIDER)["model"] == "attention_only"
    assert "model" not in options_of(TINY | {"model.width": 32})  # no option sets this
    assert options_of({}) == {}


def test_a_component_is_known_by_its_class_whatever_else_is_set() -> None:
    store = {"data._target_": "atlas.data.tokens.TokenData", "data.path": "/texts/store", "data.documents": "packed"}
    library = {"data._target_": "atlas.data.text.StdlibData", "data.validation_share": 0.1}
    assert options_of(TINY | store)["data"] == "tokens"
    assert "data" not in options_of(TINY | store | {"data._target_": "mine.Data"})
    configs = [TINY | store, TINY | library, TINY | store | {"data.documents": "separate"}]
    found = differences(configs, (), chosen_options(configs, [{}] * 3))
    assert [(one.name, one.values) for one in found] == [
        ("data", ["tokens", "stdlib", "tokens"]),
        ("documents", ["packed", "(absent)", "separate"]),
    ]


def test_two_runs_are_named_by_their_options_and_other_differences_stay() -> None:
    configs = [TINY | {"optim.lr": 0.1}, WIDER | {"optim.lr": 0.2}]
    assert differences(configs, (), chosen_options(configs, [{}, {}])) == [
        Difference("model", "model", ["tiny", "attention_only"],
                   ("model.width", "model.feedforward", "model.memory.enabled")),
        Difference("optim.lr", "lr", [0.1, 0.2]),
    ]  # fmt: skip


def test_the_jobs_of_a_sweep_are_named_by_what_it_gave_them(tmp_path: Path) -> None:
    given = [["ablation=none", "seed=0"], ["ablation=no_memory", "seed=0"]]
    jobs = [{"folder": str(at), "overrides": overrides} for at, overrides in enumerate(given)]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    swept = swept_values(tmp_path)
    assert swept == {"0": {"ablation": "none"}, "1": {"ablation": "no_memory"}}
    configs = [TINY, ATTENTION, {}]
    options = chosen_options(configs, [*swept.values(), {}])
    assert options == {"ablation": ["none", "no_memory", None], "model": ["tiny", "attention_only", None]}
    options = chosen_options(configs[:2], list(swept.values()))
    assert options == {"ablation": ["none", "no_memory"]}
    assert [found.name for found in differences(configs[:2], ["ablation"], options)] == ["ablation"]


def test_a_key_that_an_older_run_lacks_has_its_default() -> None:
    older = {key: value for key, value in TINY.items() if key != "train.ema"}
    assert differences([TINY, older]) == []


def test_a_sweep_without_a_record_has_no_names(tmp_path: Path) -> None:
    assert swept_values(tmp_path) == {}
    (tmp_path / "sweep.json").write_text('{"jobs": [1]}')
    assert swept_values(tmp_path) == {}
