"""The command line as a user meets it, in a folder of its own.

Loading PyTorch takes a process longer than a refusal, so most refusals come from this process.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import atlas
from atlas.config.composition import GROUPS, options
from tests.integration.sweep_commands import command

ROOT = Path(__file__).parents[2]
# A run of seconds: one small layer on short sequences.
SHORT = [
    "train=smoke",
    "train.steps=2",
    "train.batch_size=2",
    "train.sequence=128",
    "model.width=32",
    "model.layers=1",
    "model.feedforward=32",
    "model.memory.hidden=16",
    "chunk_size.shard=64",
    "chunk_size.global_size=64",
    "data=stdlib",
    "niah=off",
    "logger=none",
    "device=cpu",
]


def start(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atlas.train", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def status(summary: Path) -> str:
    return str(json.loads(summary.read_text(encoding="utf-8"))["status"])


def test_help_explains_every_option_with_five_examples(tmp_path: Path) -> None:
    text = start("--help", folder=tmp_path).stdout
    for group in GROUPS:
        assert re.search(rf"^{group}: \w", text, re.MULTILINE), group
        for option in options(group):
            assert re.search(rf"^  [ *] {option} +\S", text, re.MULTILINE), f"{group}={option}"
    assert len(re.findall(r"^  python -m atlas.train", text, re.MULTILINE)) == 5
    assert "As PATH, latest is the newest run in outputs/runs." in text
    marked = re.findall(r"^  \* (\w+)", text, re.MULTILINE)
    assert marked == ["tiny", "c16", "none", "mixed", "muon", *["default"] * 5, "measure", "auto", "auto", "wandb"]
    assert written(tmp_path) == []


def test_the_examples_of_help_compose() -> None:
    text = command("--help").out
    for example in re.findall(r"^  python -m atlas.train(.*?)  +\S", text, re.MULTILINE):
        arguments = [argument for argument in shlex.split(example) if argument != "-m"]
        wanted = [argument if "[" in argument else argument.split(",")[0] for argument in arguments]
        assert atlas.compose(wanted).seed == 0


def test_cfg_job_shows_the_configuration_without_torch(tmp_path: Path) -> None:
    check = (
        "import sys, atlas, atlas.train\n"
        "sys.argv = ['atlas-train', '--cfg', 'job', 'niah.every=77']\n"
        "code = atlas.train.main()\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    result = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "niah:\n  enabled: true\n  every: 77\n" in result.stdout


A_RUN = "a run folder (with config.yaml) or one of its checkpoints"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chunk_size=c9"], "chunk_size=c9: must be one of c8, c16, c32, c64, set_a, set_b, set_c"),
        (["niah.evry=5"], "niah.evry=5: must be a key that exists (--cfg job lists them); did you mean niah.every?"),
        (["niah.every=0"], "niah.every=0: must be >= 1 (niah=off switches the probes off)"),
        (["+data.extra=1"], "data.extra=1: must be a key of data: "),
        (["-m", "chunk_size=c8,c9"], "chunk_size=c9: must be one of c8, c16, c32, c64, set_a, set_b, set_c"),
        (["-m", "niah.every=5,x"], "niah.every=x: must be an integer, such as 1000"),
        (["hydra.run.dir=/proc/atlas"], "hydra.run.dir=/proc/atlas: must be a folder that can be written"),
        (["hydra.run.dir=file/run"], "hydra.run.dir=file/run: must be a folder that can be written (Not a directory)"),
        (["-m", "hydra.sweep.dir=file/sweep", "seed=0,1"], "hydra.sweep.dir="),
        (["hydra.run.dir="], "hydra.run.dir=: must be a folder, such as outputs/mine (. is the current one)"),
        (["-m", "hydra.sweep.dir=", "seed=0,1"], "hydra.sweep.dir=: must be a folder, such as outputs/mine"),
        (["data=text", 'data.paths=["nothing/*.txt"]'], "data.paths="),
        (["data=text", "data.paths=[file]"], "data.paths="),
        (["data=text"], "data.paths=[]: must be at least one file or pattern"),
        (["optim.lr=abc"], "optim.lr=abc: must be a number in (0, inf)"),
        (
            ["logger.tags=foo"],
            "logger.tags=foo: must be a list of texts, such as [a,b], each a text of 1 to 64 characters",
        ),
        (["--steps=100"], "--steps=100: must be written train.steps=100"),
        (["resume="], "resume=: must be a run or a checkpoint, or left out"),
        (["-m", "sweep.resume="], "sweep.resume=: must be the folder of a sweep, or left out"),
        (["resume=nowhere"], f"resume=nowhere: must be auto, latest, {A_RUN}"),
        (["data._target_=stranger.Data"], "data._target_=stranger.Data: must be a component of atlas, unless "),
        (["device.threads=100000"], "device.threads=100000: must be in [0, 1024] (0 = torch's own choice)"),
        (["--plan", "-m", "seed=0,1"], "--plan=-m: must be given for one run, without -m"),
        (["--plan", "data=tokens"], "data.path=: must be the folder of a token store"),
        (["model.width=1048576", "model.heads=8"], "model.width=1048576: must be, with model.layers, model.vocabulary"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_no_run_folder(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    ended = command(*arguments)
    assert (ended.status, ended.out, len(ended.err)) == (2, "", 1)
    assert ended.err[0].startswith(f"atlas: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_plan_is_printed_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = command("--plan", *SHORT, "hydra.run.dir=sub/deeper")
    assert (ended.status, ended.err, list(tmp_path.iterdir())) == (0, [], [])
    titles = [line.split("  ")[0] for line in ended.out.splitlines() if not line.startswith(" ")]
    assert titles == ["parameters", "operations", "peak memory", "a step", "the run"]


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = start("device=cuda", folder=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("atlas: device.kind=cuda: must be auto or cpu")
    assert (result.stderr.count("\n"), written(tmp_path)) == (1, [])


def test_hydras_own_traceback_can_be_had(tmp_path: Path) -> None:
    result = start("chunk_size=c9", folder=tmp_path, HYDRA_FULL_ERROR="1")
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr


@pytest.mark.slow
def test_a_run_in_the_folder_of_the_environment(tmp_path: Path) -> None:
    result = start(*SHORT, folder=tmp_path, ATLAS_RUN_DIR="chosen")
    assert (result.returncode, result.stderr) == (0, "")
    files = {"config.yaml", "events.jsonl", "metrics.jsonl", "summary.json"}
    assert files <= {path.name for path in (tmp_path / "chosen").iterdir()}
    assert status(tmp_path / "chosen" / "summary.json") == "completed"


@pytest.mark.slow
def test_a_failing_job_does_not_take_the_sweep_with_it(tmp_path: Path) -> None:
    result = start("-m", *SHORT, "init_from=none,null", "hydra.sweep.dir=sweep", folder=tmp_path)
    assert result.returncode == 1
    reason = "init_from=none: must be a run folder (with checkpoints/) or one of its checkpoints"
    assert f"job 0 failed: {reason}" in result.stderr
    assert result.stderr.splitlines()[-1] == "atlas: 1 of 2 jobs completed; see sweep"
    failed = json.loads((tmp_path / "sweep" / "0" / "summary.json").read_text(encoding="utf-8"))
    assert (failed["status"], failed["reason"]) == ("failed", reason)
    assert status(tmp_path / "sweep" / "1" / "summary.json") == "completed"


def test_the_module_is_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, folder = atlas.compose(SHORT), tmp_path / "outputs" / "runs" / "first"
    run = atlas.train(config, folder)
    assert (run.status, run.step, run.folder) == ("completed", 2, str(folder))
    for named in (folder, "latest"):
        _, loaded = atlas.load(named)
        assert loaded == config


def test_a_folder_that_cannot_be_written_is_refused_by_the_function(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(atlas.ConfigError, match=r"^folder=.*/file/run: must be a folder that can be written"):
        atlas.train(atlas.compose(SHORT), tmp_path / "file" / "run")
    long = tmp_path / "a" / ("b" * 300)
    with pytest.raises(
        atlas.ConfigError, match=r"^folder=.*/b{300}: must be a folder that can be written \(File name too"
    ):
        atlas.train(atlas.compose(SHORT), long)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_a_wheel_works_outside_of_the_checkout(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"atlas_test_time_memory-{atlas.__version__}-py3-none-any.whl"
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    code = "import atlas, atlas.config.composition as c; print(c.CONF_DIR); print(atlas.compose(['chunk_size=set_c']))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    conf_dir, config = result.stdout.splitlines()
    assert conf_dir == str(site / "atlas" / "conf")
    assert config == repr(atlas.compose(["chunk_size=set_c"]))
    script = (site / "bin" / "atlas-train").read_text(encoding="utf-8")
    assert "from atlas.train import main" in script


@pytest.fixture(scope="module")
def example() -> str:
    """The Python of the README."""
    (found,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


@pytest.mark.slow
def test_the_example_of_the_readme_runs(example: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.slow
def test_the_example_of_the_readme_has_the_types_that_mypy_wants(example: str, tmp_path: Path) -> None:
    """A few seconds where `make types` ran before: the types of PyTorch are then in mypy's cache."""
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "example.py")]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    found = subprocess.run(mypy, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
    assert "checked 1 source file" in found or "in 1 source file" in found
    assert "example.py:" not in found  # those of the package are told by `make types`
