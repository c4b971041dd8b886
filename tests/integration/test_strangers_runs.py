"""A run folder that a stranger sent: no command executes anything of it, and each says in one line what is wrong."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

import atlas
from atlas import generate, niah
from atlas.checkpoint.manager import CheckpointManager
from atlas.config import RunConfig
from atlas.config.composition import save_config
from atlas.report.__main__ import main as report
from atlas.runs.build import build_model
from experiments.lengths.needles import main as needles
from experiments.phase2.decide import main as decide
from tests.integration.sweep_commands import command

Change = Callable[[dict[str, Any]], None]


class Marker:
    """Unpickled, it makes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that comes to be when the stranger's code is executed, be it by an import of his module."""
    path = tmp_path / "executed"
    (tmp_path / "stranger.py").write_text(f"from pathlib import Path\nPath({str(path)!r}).touch()\ndef run(**_): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def run(tiny: Callable[..., RunConfig], tmp_path: Path) -> Path:
    """The one job of a sweep, with a checkpoint."""
    folder = tmp_path / "sweep" / "0"
    folder.mkdir(parents=True)
    config = tiny()
    save_config(config, folder / "config.yaml")
    checkpoints = CheckpointManager(folder / "checkpoints", keep=2)
    checkpoints.save(7, {"model": build_model(config).state_dict()}, {"loss": 1.0})
    checkpoints.close()
    (folder / "summary.json").write_text('{"folder": "0", "status": "completed"}')
    (folder.parent / "multirun.yaml").write_text("hydra: {runtime: {choices: {experiment: chunk_size_lock}}}\n")
    (folder.parent / "sweep.json").write_text(
        '{"task": ["seed=0"], "hydra": [], "jobs": [{"number": 0, "folder": "0", "overrides": [], "key": ""}]}'
    )
    return folder


def load(folder: str) -> int:
    try:
        atlas.load(folder)
    except atlas.ConfigError as error:
        print(f"atlas: {error}")
        return 2
    return 0


def commands(folder: Path, overrides: list[str]) -> dict[str, tuple[int, list[str]]]:
    """Exit status and lines of every command that reads a run, by its name."""
    calls: dict[str, Callable[[], int]] = {
        "niah": lambda: niah.main([str(folder), "niah=quick"]),
        "generate": lambda: generate.main([str(folder), "prompt=a", "tokens=1"]),
        "load": lambda: load(str(folder)),
        "report": lambda: report([str(folder)]),
        "decide": lambda: decide([str(folder.parent)]),
        "needles": lambda: needles([str(folder.parent), "samples=1", f"folder={folder.parent}"]),
    }
    ended = {}
    for name, call in calls.items():
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            status = call()
        ended[name] = (status, (err.getvalue() or out.getvalue()).splitlines())
    for name, arguments in {
        "resume": [f"resume={folder}"],
        "init_from": [f"init_from={folder}", *overrides, "train.steps=1", "hydra.run.dir=new"],
    }.items():
        trained = command(*arguments)
        ended[name] = (trained.status, trained.err)
    return ended


def few_fast(cases: Iterable[str]) -> list[Any]:
    """The first case in the fast tier: each one runs every command."""
    first, *rest = cases
    return [first, *(pytest.param(case, marks=pytest.mark.slow) for case in rest)]


def set_target(path: str, place: str = "data._target_", **arguments: Any) -> Change:
    def change(settings: dict[str, Any]) -> None:
        *parents, last = place.split(".")
        for name in parents:
            settings = settings[name]
        settings[last] = {"_target_": path, **arguments} if arguments else path

    return change


TARGETS = {
    "module": (set_target("stranger.run"), "data._target_=stranger.run"),
    "nested": (set_target("stranger.run", "data.paths", a=1), "data.paths._target_=stranger.run"),
    "inside a list": (
        lambda config: config["data"].update(paths=[{"_target_": "stranger.run"}]),
        "data.paths._target_=",
    ),
    "function": (set_target("pathlib.Path.touch", "optim._target_"), "optim._target_=pathlib.Path.touch"),
    "through atlas": (
        set_target("atlas.runs.environment.subprocess.run", "logger", args="touch executed", shell=True),
        "logger._target_=atlas.runs.environment.subprocess.run",
    ),
    "self-trusted": (
        lambda config: (set_target("stranger.run")(config), config.update(trust=["stranger"])),
        "data._target_=stranger.run",
    ),
}
UNTOUCHED = {"init_from", "decide", "report"}  # they read no settings, or read them as text


@pytest.mark.parametrize("name", few_fast(TARGETS))
def test_a_target_is_neither_imported_nor_called(name: str, run: Path, marker: Path, overrides: list[str]) -> None:
    change, told = TARGETS[name]
    settings = yaml.safe_load((run / "config.yaml").read_text())
    change(settings)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    ended = commands(run, overrides)
    assert not marker.exists()
    for command_name in set(ended) - UNTOUCHED:
        status, (line,) = ended[command_name]
        assert (command_name, status) == (command_name, 2)
        assert line.startswith(f"atlas: {told}")
        assert ": must be a component of atlas, unless it is code that you trust to be executed: trust=[" in line
    assert {name: ended[name][0] for name in UNTOUCHED} == {"report": 0, "decide": 2, "init_from": 0}


BOMB = "\n".join([f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 'x'}]" for i in range(10)])
FILES = {
    "tag": ("data: !!python/object/apply:os.system ['touch executed']\n", "must be plain YAML (could not determine"),
    "aliases": (BOMB, "must be plain YAML (it holds an alias, *a0)"),
    "references": ("data: {a: {x: 1}, b: {x: '${data.a}', y: '${data.a}'}}\n", "must hold values, not the reference"),
    "resolver": ("data: {paths: ['${oc.env:HOME}']}\n", "must hold values, not the reference ${oc.env:HOME}"),
    "nesting": (f"data: {'[' * 5000}\n", "must be plain YAML (it is nested too deeply)"),
    "size": (f"data: [{'x, ' * 500_000}]\n", "must be a file of at most 1 MiB"),
    "no keys": ("- 1\n", "must be plain YAML (it holds no keys)"),
    "no text": ("\udcff", "must be UTF-8 ("),
    "number": (f"seed: {'9' * 5000}\n", "must be plain YAML ("),
}


@pytest.mark.parametrize("name", few_fast(FILES))
def test_settings_that_no_run_writes_are_refused(name: str, run: Path, marker: Path, overrides: list[str]) -> None:
    content, told = FILES[name]
    (run / "config.yaml").write_bytes(content.encode("utf-8", "surrogateescape"))
    ended = commands(run, overrides)
    assert not marker.exists()
    for command_name in set(ended) - UNTOUCHED:
        status, (line,) = ended[command_name]
        assert (command_name, status) == (command_name, 2)
        assert told in line
    assert {name: ended[name][0] for name in UNTOUCHED} == {"report": 0, "decide": 2, "init_from": 0}


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ({"layers": 10**8}, r"model\.layers=100000000, it has \d+ tensors"),
        ({"width": 2_000_000}, r"Error\(s\) in loading state_dict for AtlasModel: size mismatch for embedding\.weight"),
        ({"feedforward": 10**12}, r"Error\(s\) in loading state_dict for AtlasModel: size mismatch for blocks\.0\."),
    ],
)
def test_a_model_larger_than_its_weights_is_not_built(size: dict[str, int], reason: str, run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"].update(size)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(atlas.ConfigError, match=rf"must hold the weights of this model \({reason}"):
        atlas.load(run)


@pytest.mark.parametrize("size", [{"layers": 10**8}, {"width": 2_000_000}, {"feedforward": 10**12}])
def test_a_run_whose_model_is_larger_than_its_checkpoints_is_not_resumed(size: dict[str, int], run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"].update(size)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    ended = command(f"resume={run}")
    assert (ended.status, len(ended.err)) == (2, 1)
    told = rf"resume={run}: must be settings whose model fits into the checkpoints of {run} \(\d+ bytes\)"
    assert re.search(told, ended.err[0])


def test_a_pickle_is_not_unpickled(run: Path, marker: Path, overrides: list[str]) -> None:
    state = next(run.glob("checkpoints/*/state.pt"))
    state.write_bytes(pickle.dumps({"model": Marker(marker)}))
    ended = commands(run, overrides)
    assert not marker.exists()
    for name in ("niah", "generate", "load", "resume", "init_from"):
        assert (name, ended[name][0], len(ended[name][1])) == (name, 2, 1)


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.x._target_=stranger.run",
        " hydra.callbacks.check._target_=stranger.run",
        "hydra.launcher._target_=stranger.run",
        "hydra.searchpath=[pkg://stranger]",
        "hydra/launcher=../../stranger",
        "experiment=../../../stranger",
        "--config-dir=stranger",
        " trust=[stranger]",
    ],
)
def test_a_strangers_sweep_says_nothing_that_executes_code(override: str, run: Path, marker: Path) -> None:
    record = run.parent / "sweep.json"
    record.write_text(record.read_text().replace("seed=0", override))
    ended = command("-m", f"sweep.resume={run.parent}")
    told = "must be repeated on the command line, since it may execute code, or taken out of"
    assert (ended.status, len(ended.err), marker.exists()) == (2, 1, False)
    assert ended.err[0].startswith(f"atlas: {override}: {told}")


@pytest.mark.parametrize(
    "option", ["trust: [stranger]", "hydra: {callbacks: {x: {_target_: stranger.run}}}", '"\\x74rust": [stranger]']
)
def test_a_strangers_options_are_not_taken_unasked(option: str, run: Path, marker: Path, tmp_path: Path) -> None:
    (tmp_path / "options" / "experiment").mkdir(parents=True)
    (tmp_path / "options" / "experiment" / "theirs.yaml").write_text(f"# @package _global_\n{option}\n")
    record, flag = run.parent / "sweep.json", f"--config-dir={tmp_path / 'options'}"
    theirs = json.loads(record.read_text()) | {"task": ["experiment=theirs"], "flags": [flag]}
    record.write_text(json.dumps(theirs))
    ended = command("-m", f"sweep.resume={run.parent}")
    assert (ended.status, len(ended.err), marker.exists()) == (2, 1, False)
    assert ended.err[0].startswith(f"atlas: {flag}: must be repeated on the command line, since it may execute code")


def test_code_that_is_trusted_is_executed(run: Path, marker: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["logger"] = {"_target_": "stranger.run"}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    _, config = atlas.load(run, trust=["stranger"])
    assert (config.logger, config.trust, marker.exists()) == ({"_target_": "stranger.run"}, ["stranger"], True)
    assert generate.main([str(run), "prompt=a", "tokens=1", "trust=stranger"]) == 0
    assert niah.main([str(run), "niah=quick", "niah.levels=[memory]", "trust=[other,stranger.run]"]) in (0, 1)
