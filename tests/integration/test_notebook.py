"""What a notebook uses: tables, figures and text of a run, from Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import atlas
from atlas.config import ConfigError, RunConfig
from atlas.generate import GenerationSettings, continuation
from atlas.runs.summary import RunSummary

ROWS = (
    {"step": 1, "segment": 0, "loss": 3.0, "perplexity": 20.0},
    {"step": 2, "segment": 0, "loss": 9.0, "perplexity": None},
    {"step": 2, "segment": 1, "loss": 2.5, "perplexity": None},
)
ROLLBACK = {"kind": "rollback", "step": 1, "segment": 1, "from_step": 2}


@pytest.fixture
def run(tmp_path: Path) -> RunSummary:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "events.jsonl").write_text(json.dumps(ROLLBACK) + "\n")
    niah = {"recall": {"verdict": "PASSED: <b>"}}
    return RunSummary(str(tmp_path), status="completed", step=2, steps=2, validation_loss=2.25, niah=niah)


def test_metrics_are_columns_with_undone_rows_marked(run: RunSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    columns = run.metrics()
    assert {name: column.tolist() for name, column in columns.items() if name != "perplexity"} == {
        "step": [1, 2, 2],
        "segment": [0, 0, 1],
        "undone": [False, True, False],
        "loss": [3.0, 9.0, 2.5],
    }
    np.testing.assert_equal(columns["perplexity"], [20.0, np.nan, np.nan])


def test_a_plot_shows_what_was_undone_apart(run: RunSummary) -> None:
    figure = run.plot("loss")
    assert [(trace.name, list(trace.x), list(trace.y)) for trace in figure.data] == [
        ("loss", [1, 2], [3.0, 2.5]),
        ("loss, undone by a rollback", [2], [9.0]),
    ]
    assert {trace.name for trace in run.plot().data} == {"loss", "loss, undone by a rollback"}
    with pytest.raises(ConfigError, match=r"^columns=lost: must be some of loss, perplexity$"):
        run.plot("lost")


def test_a_notebook_shows_run_and_settings(run: RunSummary) -> None:
    html = run._repr_html_()
    assert "<tr><th>validation_loss</th><td>2.25</td></tr>" in html
    assert "<tr><th>niah recall</th><td>PASSED: &lt;b&gt;</td></tr>" in html
    assert "reason" not in html
    shown = f"RunSummary(status='completed', step=2, steps=2, tokens=0, validation_loss=2.25, folder={run.folder!r})"
    assert repr(run) == shown
    html = atlas.build_model(atlas.compose(["logger=none"]))._repr_html_()
    assert "<tr><th>embedding</th><td>32,768</td></tr>" in html
    assert "<th>2 blocks: memory</th>" in html
    assert "width: 128" in atlas.compose(["logger=none"])._repr_html_()


def test_text_from_a_model(untrained: Path, tiny: Callable[..., RunConfig]) -> None:
    model, _ = atlas.load(untrained)
    settings = {"tokens": 20, "temperature": 1.5, "seed": 3}
    wanted = b"".join(continuation(str(untrained), GenerationSettings(prompt="the né", **settings)))  # type: ignore[arg-type]
    for prompt in ("the né", "the né".encode()):
        assert atlas.generate(model, prompt, **settings) == wanted.decode("utf-8", "replace")
    with pytest.raises(ConfigError, match=r"^device=cuda: must be left out: the model is used as it is$"):
        atlas.generate(model, "a", device="cuda")
    with pytest.raises(ConfigError, match=r"^tokens=0: must be in "):
        atlas.generate(model, "a", tokens=0)
