"""Entry point of a training run: `python -m atlas.train`, `atlas-train`, `atlas.train(config)`.

Exit status: 0 completed; 1 failed or aborted, in a sweep any job; 2 refused configuration; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NoReturn

import hydra
from hydra.conf import OverridesConf
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from atlas.composition import CONF_DIR, register, to_run_config
from atlas.config import ConfigError, RunConfig, require
from atlas.help import help_text
from atlas.refusals import refuse
from atlas.resuming import CONFIG_FILE, resumed_config, run_folder
from atlas.training.summary import SUMMARY_FILE, RunSummary

log = logging.getLogger("atlas")


def train(config: RunConfig, folder: str | Path | None = None) -> RunSummary:
    """Train as `python -m atlas.train` does; `folder` is the run folder, by default outputs/runs/<time>.

    With `resume=PATH` it is the folder of that run.
    """
    from atlas.run import run  # imports torch

    path = _folder(config, folder)
    make_folder(path, "folder")
    try:
        with _log_file(path / "train.log"):
            return run(config, path)
    finally:
        _remove_unless_used(path)


def _folder(config: RunConfig, folder: str | Path | None) -> Path:
    if config.resume not in (None, "auto"):
        named = run_folder(config.resume)
        holds = folder is None or Path(folder).resolve() == named
        require(holds, "folder", folder, f"left out, or the folder of resume={config.resume}")
        return named
    stamp = f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    return Path(folder or os.environ.get("ATLAS_RUN_DIR") or f"outputs/runs/{stamp}").resolve()


def main() -> int:
    """The command line."""
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        print(help_text())
        return 0
    register()
    signal.signal(signal.SIGTERM, _interrupt)  # a cluster that wants its node back: end in good order, as with Ctrl-C
    own_choice = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing its own report
    try:
        with refuse(CONF_DIR, sys.argv[1:]):
            _job()
    except ConfigError as error:
        _remove_unless_used(Check.sweep)
        if own_choice == "1":
            raise
        _say(error)
        return 2
    finally:
        if own_choice is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = own_choice
    return 0


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


class Check(Callback):
    """Refuses what cannot be used before Hydra makes a folder, and tells after a sweep whether all jobs completed."""

    sweep: ClassVar[Path | None] = None  # folder of the sweep that this process started

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        try:
            to_run_config(_without_hydra(config))
            make_folder(Path(config.hydra.run.dir), "hydra.run.dir")
        except ConfigError as error:  # Hydra turns an exception of a callback into a warning
            _refuse(error)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Check.sweep = Path(config.hydra.sweep.dir).resolve()
        try:
            make_folder(Check.sweep, "hydra.sweep.dir")
        except ConfigError as error:
            _refuse(error)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        summaries = sorted(Path(config.hydra.sweep.dir).rglob(SUMMARY_FILE))
        statuses = [json.loads(path.read_text(encoding="utf-8"))["status"] for path in summaries]
        completed = statuses.count("completed")
        _say(f"{completed} of {len(statuses)} jobs completed; see {config.hydra.sweep.dir}")
        if completed < len(statuses):
            sys.exit(1)


def make_folder(path: Path, key: str) -> None:
    """Make the folder. Raises `ConfigError` where that, or writing to it, does not work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"{key}={path}: must be a folder that can be written ({error.strerror})") from error


@hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")
def _job(composed: DictConfig) -> None:
    """One run, or one job of a sweep. A job that fails leaves its summary, and the sweep goes on."""
    running = HydraConfig.get()
    folder, in_sweep = Path(running.runtime.output_dir), running.mode == RunMode.MULTIRUN
    name = f"job {running.job.num}" if in_sweep else "the run"
    if in_sweep:
        _say(f"{name}: {' '.join(running.overrides.task)}")
    try:
        config = to_run_config(composed)
        config, folder = _continued(config, running.overrides, folder)
        status = train(config, folder).status
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not in_sweep and isinstance(error, ConfigError):
            _refuse(error)
        _record_failure(folder, error, composed)
        _say(f"{name} failed: {_reason(error)}; the traceback is in {folder / 'train.log'}")
        status = "failed"
    if status != "completed" and not in_sweep:
        sys.exit(1)


def _continued(config: RunConfig, overrides: OverridesConf, made: Path) -> tuple[RunConfig, Path]:
    """The configuration and the folder to run in: with `resume` those of the run that is continued.

    `made` is the folder that Hydra made.
    """
    folder = made
    if config.resume not in (None, "auto"):
        folder = run_folder(config.resume)
        if made.resolve() != folder:
            _remove_unless_used(made)
            chosen = next((text for text in overrides.hydra if text.startswith("hydra.run.dir=")), None)
            require(chosen is None, "resume", config.resume, f"given without {chosen}: the run goes on in {folder}")
    if config.resume is not None and (folder / CONFIG_FILE).exists():
        config = resumed_config(config, overrides.task, folder)
    return config, folder


def _record_failure(folder: Path, error: Exception, composed: DictConfig) -> None:
    """Leave what a run leaves that fails, for a job that failed before its run began."""
    if (folder / SUMMARY_FILE).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _log_file(folder / "train.log"):
        log.error("the run failed", exc_info=error)
    if not (folder / "config.yaml").exists():
        OmegaConf.save(composed, folder / "config.yaml")
    RunSummary(str(folder), status="failed", reason=_reason(error)).write()


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Send the package's log to a file, which comes to be with the first line."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()


def _without_hydra(config: DictConfig) -> DictConfig:
    task = config.copy()
    with open_dict(task):
        del task["hydra"]
    return task


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"


def _remove_unless_used(folder: Path | None) -> None:
    """Remove the folder of a run or sweep in which no work was done."""
    if folder is None or not folder.is_dir() or any(path.name != "multirun.yaml" for path in folder.iterdir()):
        return
    (folder / "multirun.yaml").unlink(missing_ok=True)
    folder.rmdir()


def _refuse(error: ConfigError) -> NoReturn:
    _say(error)
    sys.exit(2)


def _say(message: object) -> None:
    print(f"atlas: {message}", file=sys.stderr)


class _CallableModule(ModuleType):
    """Lets `atlas.train` be the module that `python -m` runs and the function of the public API at once."""

    def __call__(self, config: RunConfig, folder: str | Path | None = None) -> RunSummary:
        return train(config, folder)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    # The imported module, not `__main__`, so that launchers can pickle the job by name.
    from atlas.train import main as imported_main

    sys.exit(imported_main())
