"""Code of the user's that changes after a run was started: a continued run and whoever reads the run name the file."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import atlas
from atlas.config import RunConfig
from atlas.runs.own_code import changed_code, record_code
from tests.integration.conftest import Left
from tests.integration.sweep_commands import command

FILES = {
    "mine_base": "from atlas.telemetry.sinks import Sink\n\nclass Quiet(Sink):\n    pass\n",
    "mine_sink": "from mine_base import Quiet\n\nclass Mine(Quiet):\n    pass\n",
    "mine_norm": "import mine_lib\n\ndef norm(model, step):\n    return {'norm': mine_lib.one()}\n",
    "mine_lib": "import json\nfrom pathlib import Path\n\nimport torch\n\ndef one():\n    return 1.0\n",
}
TRUST = ["mine_sink", "mine_norm"]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a logger, whose base has a file of its own, and a metric, which imports another one."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / f"{name}.py").write_text(content)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    return folder


def with_own_code(config: RunConfig) -> RunConfig:
    config.logger, config.telemetry.metrics, config.trust = {"_target_": "mine_sink.Mine"}, ["mine_norm.norm"], TRUST
    return config


@pytest.mark.slow
def test_a_changed_file_is_named_until_a_start_has_taken_it(
    small: list[str], mine: Path, tmp_path: Path, left: Callable[[Path], Left]
) -> None:
    folder = tmp_path / "run"
    atlas.train(with_own_code(atlas.compose([*small, "optim.warmup=1"])), folder)
    known = {name: (mine / f"{name}.py") for name in FILES}
    assert json.loads((folder / "code.json").read_text()) == {
        name: {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for name, file in known.items()
    }
    atlas.load(folder, TRUST)  # a warning is an error here
    (mine / "mine_base.py").write_text(FILES["mine_base"] + "# edited\n")
    told = (
        f"code of your own has changed since the run was last started: {mine / 'mine_base.py'}"
        " (logger._target_=mine_sink.Mine)"
    )
    with pytest.warns(UserWarning, match="code of your own has changed") as caught:
        atlas.load(folder, TRUST)
    assert [str(one.message) for one in caught] == [told]
    assert command(f"resume={folder}", "train.steps=5", f"trust=[{','.join(TRUST)}]").status == 0
    assert [event["message"] for event in left(folder).events("notice")] == ["resumed from step-00000004", told]
    atlas.load(folder, TRUST)


def test_what_a_start_leaves_out_stays_known_and_a_run_without_own_code_has_no_record(
    small: list[str], mine: Path, tmp_path: Path
) -> None:
    config, plain = with_own_code(atlas.compose(small)), atlas.compose(small)
    record_code(tmp_path, plain)
    assert not (tmp_path / "code.json").exists()
    assert changed_code(tmp_path, config) == []  # of a run that is older than the record
    record_code(tmp_path, config)
    record_code(tmp_path, plain)
    (mine / "mine_lib.py").write_text("def one():\n    return 2.0\n")
    assert changed_code(tmp_path, plain) == []
    assert changed_code(tmp_path, config) == [
        f"code of your own has changed since the run was last started: {mine / 'mine_lib.py'}"
        " (telemetry.metrics=mine_norm.norm)"
    ]
