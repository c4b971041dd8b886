"""The closing table names what models without a memory reach by the same recipe on the same text."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from atlas.config import RunConfig
from atlas.config.composition import compose
from atlas.runs.baselines import FILE, Baseline, comparable, recipe
from atlas.runs.closing_table import closing_table
from atlas.runs.summary import RunSummary

COMMITTED = [Baseline(**one) for one in json.loads(FILE.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def default() -> RunConfig:
    return compose()


def test_the_default_recipe_has_measured_baselines(default: RunConfig) -> None:
    """Fails where the default recipe changes: `python -m experiments.baselines` measures anew."""
    own = [one for one in COMMITTED if one.recipe == recipe(default)]
    assert "attention_only" in {one.model for one in own}
    assert all(1.0 < loss < 2.0 for one in own for loss in one.losses)


def test_a_baseline_stands_only_beside_a_run_that_can_be_compared_with_it(default: RunConfig) -> None:
    first = COMMITTED[0]
    near = comparable(default, first.parameters, first.digest)
    assert first.model in {one["model"] for one in near}
    assert comparable(replace(default, seed=7), first.parameters + 500, first.digest) == near
    assert comparable(compose(["train.steps=2000"]), first.parameters, first.digest) == []
    assert comparable(compose(["optim.lr=0.1"]), first.parameters, first.digest) == []
    assert comparable(compose(["init_from=outputs/runs/a"]), first.parameters, first.digest) == []
    assert comparable(default, 2 * first.parameters, first.digest) == []
    assert comparable(default, first.parameters, "of another text") == []


def test_the_closing_table_names_the_figure_and_where_it_comes_from() -> None:
    one = Baseline("attention_only", 10, [1.25, 1.5], "0123456789", "digest", {})
    changed = replace(one, about="with a change").told("token")
    assert changed == one.told("token").replace("model=attention_only", "model=attention_only with a change")
    summary = RunSummary("folder", baselines=[vars(one)])
    assert dict(closing_table(summary))["without memory"] == (
        "1.3750 nats/byte (2 seeds, 1.2500 to 1.5000), model=attention_only, same recipe, measured at revision 0123456"
    )
