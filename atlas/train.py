"""Entry point of a training run: `python -m atlas.train`, `atlas-train`, `atlas.train(config)`.

Exit status: 0 completed; 1 failed or aborted, in a sweep any job; 2 refused configuration; 130 stopped by Ctrl-C,
SIGTERM, SIGHUP or SIGUSR1.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import hydra
from hydra.conf import OverridesConf
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from atlas.config import ConfigError, RunConfig, require
from atlas.config.arguments import run_command
from atlas.config.composition import register, to_run_config
from atlas.config.files import CONF_DIR
from atlas.config.help import help_text
from atlas.config.path_overrides import quoted, readable
from atlas.config.refusals import refuse, refuse_flags
from atlas.runs.folder import LOG_FILE, log_file, make_folder, reason, record_failure, remove_if_empty, say
from atlas.runs.resume import resumed_config, run_folder
from atlas.runs.signals import handled_by, interrupt
from atlas.runs.summary import RunSummary, read_summary
from atlas.sweeps.job import run_job
from atlas.sweeps.launchers import require_installed
from atlas.sweeps.resumption import full_command
from atlas.telemetry.run_files import CONFIG_FILE
from atlas.telemetry.sinks import SweepJob


def train(config: RunConfig, folder: str | Path | None = None) -> RunSummary:
    """Train as `python -m atlas.train` does; `folder` is the run folder, by default outputs/runs/<time>.

    With `resume=PATH` it is the folder of that run. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 that the caller does not handle
    save the step reached and raise KeyboardInterrupt; outside of the main thread they do nothing here.
    """
    require(config.sweep.resume is None, "sweep.resume", config.sweep.resume, "given on the command line")
    return _train_in(config, _folder(config, folder))


def _train_in(config: RunConfig, folder: Path, job: SweepJob | None = None) -> RunSummary:
    from atlas.runs.run import run  # imports torch

    make_folder(folder, "folder")
    try:
        with log_file(folder):
            return run(config, folder, job)
    finally:
        remove_if_empty(folder)


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
        return run_command(lambda _: 0, ["--help"], help_text())
    register()
    try:
        with handled_by(interrupt):
            refuse_flags(sys.argv[1:], CONF_DIR)
            arguments = full_command(readable(sys.argv[1:]))
            require_installed(arguments)
            with refuse(CONF_DIR, arguments), _hydra_sees(arguments):
                _start()
    except ConfigError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        say(error)
        return 2
    except KeyboardInterrupt:  # before a run began, or a second time
        return 130
    return 0


@contextmanager
def _hydra_sees(arguments: Sequence[str]) -> Iterator[None]:
    """Let Hydra start with these arguments, and raise errors instead of printing a report of its own."""
    before, own_choice = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [before[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        if own_choice is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = own_choice


class Check(Callback):
    """Refuses a run that cannot be, before Hydra makes its folder."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        try:
            task = config.copy()
            with open_dict(task):
                del task["hydra"]
            to_run_config(task)
            make_folder(Path(config.hydra.run.dir), "hydra.run.dir")
        except ConfigError as error:  # Hydra turns an exception of a callback into a warning
            _refuse(error)


def run_composed(composed: DictConfig) -> None:
    """One run, or one job of a sweep: what Hydra and its launchers call."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        run_job(composed, _train_in)
    elif _run(composed) != "completed":
        sys.exit(1)


_start = hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")(run_composed)


def _run(composed: DictConfig) -> str:
    """A single run; returns its status."""
    running = HydraConfig.get()
    folder = Path(running.runtime.output_dir)
    try:
        config, folder = _continued(to_run_config(composed), running.overrides, folder)
        return _train_in(config, folder).status
    except KeyboardInterrupt:
        _tell_how_to_continue(folder)
        sys.exit(130)
    except ConfigError as error:
        remove_if_empty(Path(running.runtime.output_dir))
        _refuse(error)
    except Exception as error:
        record_failure(folder, error, composed)
        say(f"the run failed: {reason(error)}; the traceback is in {folder / LOG_FILE}")
        return "failed"


def _continued(config: RunConfig, overrides: OverridesConf, made: Path) -> tuple[RunConfig, Path]:
    """The configuration and the folder to run in: with `resume` those of the run that is continued.

    `made` is the folder that Hydra made.
    """
    folder = made
    if config.resume not in (None, "auto"):
        folder = run_folder(config.resume)
        if made.resolve() != folder:
            remove_if_empty(made)
            chosen = next((text for text in overrides.hydra if text.startswith("hydra.run.dir=")), None)
            require(chosen is None, "resume", config.resume, f"given without {chosen}: the run goes on in {folder}")
    if config.resume is not None and (folder / CONFIG_FILE).exists():
        config = resumed_config(config, overrides.task, folder)
    return config, folder


def _tell_how_to_continue(folder: Path) -> None:
    summary = read_summary(folder)
    if summary is None or summary.status == "completed" or not (folder / CONFIG_FILE).exists():
        return
    named = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
    given = named if re.fullmatch(r"[\w./-]+", named) else quoted(named)
    with suppress(OSError):  # the terminal may be gone
        print(f"continue with: python -m atlas.train {shlex.quote(f'resume={given}')}", flush=True)


def _refuse(error: ConfigError) -> NoReturn:
    say(error)
    sys.exit(2)


class _CallableModule(ModuleType):
    """Lets `atlas.train` be the module that `python -m` runs and the function of the public API at once."""

    def __call__(self, config: RunConfig, folder: str | Path | None = None) -> RunSummary:
        return train(config, folder)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    # The imported module, not `__main__`, so that launchers can pickle the job by name.
    from atlas.train import main as imported_main

    sys.exit(imported_main())
