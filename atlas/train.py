"""Entry point of a training run: `python -m atlas.train`, `atlas-train`, `atlas.train(config)`.

With `--plan` the command prints what the run would need, and starts nothing.

Exit status: 0 completed; 1 failed or aborted, in a sweep any job; 2 refused configuration; 130 stopped by Ctrl-C,
SIGTERM, SIGHUP or SIGUSR1.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from atlas.config import ConfigError, RunConfig, require
from atlas.config.arguments import run_command
from atlas.config.composition import checked, register
from atlas.config.console import drop_unwritten, print_result
from atlas.config.exits import no_exit
from atlas.config.files import CONF_DIR
from atlas.config.help import help_text
from atlas.config.path_overrides import quoted, readable
from atlas.config.refusals import flags_first, is_multirun, only_shows, refuse, refuse_flags
from atlas.parallel.launch import (
    current,
    first_by_environment,
    launched,
    refuse_launch,
    start_timeout_of,
    to_launched_config,
)
from atlas.parallel.ranks import log_name
from atlas.runs.folder import make_folder, reason, record_failure, remove_if_empty, require_folder, say
from atlas.runs.resume import option_folders, resumed_config, run_folder
from atlas.runs.signals import handled_by, interrupt
from atlas.runs.summary import RunSummary, read_summary
from atlas.runs.torchrun import ending_with_torchrun
from atlas.sweeps.job import run_job
from atlas.sweeps.launchers import require_installed
from atlas.sweeps.resumption import full_command
from atlas.telemetry.run_files import CONFIG_FILE
from atlas.training.errors import StopRequested

PLAN = "--plan"


def train(config: RunConfig, folder: str | Path | None = None) -> RunSummary:
    """Train from Python, in `folder`; by default in $ATLAS_RUN_DIR, else in outputs/runs/<time>.

    The command has its own entry, `run_composed`; both make the run by `runs.run.run`.

    The global random generators start from `config.seed`, and each rank's differ.

    With `resume=PATH` the folder is that of the resumed run, and every setting that may change becomes that of
    `config`, a default too: change the run's own settings, which `atlas.load(PATH)` returns. Raises `ConfigError`.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 that the caller does not handle save the step reached and raise
    KeyboardInterrupt; outside of the main thread they are not handled here. In processes that torchrun has started,
    each calls it with the same configuration.
    """
    config = checked(config)
    with ending_with_torchrun(), launched(config.parallel.start_timeout_s) as ranks, ranks.starting():
        chosen = _chosen_folder(config, folder)
        from atlas.runs.run import run  # imports torch

        return run(config, chosen, ranks=ranks)


def _chosen_folder(config: RunConfig, folder: str | Path | None) -> Path:
    require(config.sweep.resume is None, "sweep.resume", config.sweep.resume, "given on the command line")
    if config.resume in (None, "auto"):
        stamp = f"{datetime.now():%Y%m%d-%H%M%S-%f}"
        return Path(folder or os.environ.get("ATLAS_RUN_DIR") or f"outputs/runs/{stamp}").resolve()
    chosen = run_folder(config.resume)
    same = folder is None or Path(folder).resolve() == chosen
    require(same, "folder", folder, f"left out, or the folder of resume={config.resume}")
    return chosen


def main() -> int:
    """The command line."""
    shows = only_shows(sys.argv[1:])
    if shows and not first_by_environment():
        return 0
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        return run_command(lambda _: 0, ["--help"], help_text())
    register()
    atexit.register(gc.freeze)  # the search for cycles in all of torch took seconds at the end
    try:
        with handled_by(interrupt), ending_with_torchrun(), ExitStack() as ranks:
            try:
                if not shows:
                    ranks.enter_context(launched(start_timeout_of(sys.argv[1:])))
                given = [argument for argument in sys.argv[1:] if argument != PLAN]
                task = run_composed if given == sys.argv[1:] else plan_composed
                refuse_flags(given, CONF_DIR)
                arguments = full_command(flags_first(readable(given, first_by_environment())))
                sweeps = is_multirun(arguments)
                require(task is run_composed or not sweeps, PLAN, "-m", "given for one run, without -m")
                refuse_launch(arguments, sweeps)
                require_installed(arguments)
                with refuse(CONF_DIR, arguments), _hydra_sees(arguments):
                    hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")(task)()
            except ConfigError as error:  # inside of `launched`: the ranks agree on who tells it
                if os.environ.get("HYDRA_FULL_ERROR") == "1":
                    raise
                _tell(error)
                return 2
    except KeyboardInterrupt as interruption:
        if first_by_environment():
            _tell_of_no_step(interruption)
        return 130
    return 0


def _tell(error: ConfigError) -> None:
    """Say why no run starts: in a run of several processes once."""
    ranks = current()
    reason = ranks.settle(error) or error
    if ranks.tells(reason):
        say(reason)


@contextmanager
def _hydra_sees(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra starts with these arguments, and raises errors instead of printing its own report."""
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
    """Refuses a configuration or a folder before Hydra makes the folder."""

    made: ClassVar[list[Path]] = []  # the folder of this run and those above it, where they were not there

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        try:
            task = config.copy()
            with open_dict(task):
                del task["hydra"]
            require_folder("hydra.run.dir", config.hydra.run.dir)
            made = Path(config.hydra.run.dir)
            _settings(task, config.hydra, made)
            Check.made = make_folder(made, "hydra.run.dir")
        except ConfigError as error:  # Hydra would turn it into a warning, but lets SystemExit through
            _tell(error)
            sys.exit(2)


def run_composed(composed: DictConfig) -> None:
    """One run, or one job of a sweep. Hydra and its launchers call this."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        run_job(composed)
        return
    made = folder = Path(hydra_config.runtime.output_dir)
    ranks = current()
    try:
        with ranks.starting():
            config, folder = _settings(composed, hydra_config, made)
            if folder.resolve() != made.resolve():
                remove_if_empty(made, *Check.made)
            seeds = composed.sweep.seeds
            require(seeds == 1, "sweep.seeds", seeds, "given with -m: only a sweep has several jobs")
            from atlas.runs.run import run  # imports torch

            status = run(config, folder, ranks=ranks).status
    except KeyboardInterrupt as interruption:
        if ranks.first:
            _tell_of_no_step(interruption)
            _print_how_to_continue(folder)
        drop_unwritten()
        sys.exit(130)
    except ConfigError as error:
        if ranks.first:
            remove_if_empty(made, *Check.made)
        _tell(error)
        sys.exit(2)
    except Exception as error:
        stands_in = not ranks.first and ranks.lowest and _is_killed(folder)  # for rank 0, which torchrun has lost
        told = f"the traceback is in {folder / log_name(ranks.rank)}"
        if ranks.first or stands_in:
            told = record_failure(folder, error, composed)
        if ranks.tells(error) or stands_in:
            say(f"the run failed: {reason(error)}; {told}")
        status = "failed"
    if status != "completed":
        sys.exit(1)


def plan_composed(composed: DictConfig) -> None:
    """Print what the run would need. Hydra calls this."""
    hydra_config, ranks = HydraConfig.get(), current()
    made = Path(hydra_config.runtime.output_dir)
    remove_if_empty(*Check.made)
    try:
        config, _ = _settings(composed, hydra_config, made)
        from atlas.runs.plan import plan  # imports torch

        with no_exit():
            found = plan(config, ranks)
    except ConfigError as error:
        _tell(error)
        sys.exit(2)
    if ranks.first:
        print_result(found.table)
    if found.refusal is not None:
        _tell(found.refusal)
        sys.exit(2)


def _settings(composed: DictConfig, hydra: HydraConf, made: Path) -> tuple[RunConfig, Path]:
    """The configuration and the folder to run in, with `resume` those of the resumed run. `made`: Hydra's folder.

    Raises `ConfigError`. What a resumed run has set counts before anything is checked.
    """
    folder = made
    with refuse(CONF_DIR):
        resume = composed.resume
    if resume not in (None, "auto"):
        folder = run_folder(resume, "auto, latest")
        if made.resolve() != folder:
            chosen = next((text for text in hydra.overrides.hydra if text.startswith("hydra.run.dir=")), None)
            require(chosen is None, "resume", resume, f"given without {chosen}: the run goes on in {folder}")
    if resume is not None and (folder / CONFIG_FILE).exists():
        return resumed_config(composed, hydra.overrides.task, folder, option_folders(hydra)), folder
    return to_launched_config(composed), folder


def _tell_of_no_step(interruption: KeyboardInterrupt) -> None:
    """Say which signal stopped this process before a run began; the closing table tells of one that had begun."""
    if str(interruption) and not isinstance(interruption, StopRequested):
        resumes = any(argument.partition("=")[0] in ("resume", "sweep.resume") for argument in sys.argv[1:])
        say(f"{interruption} before {'the first step of this start' if resumes else 'step 1'}")


def _is_killed(folder: Path) -> bool:
    summary = read_summary(folder)
    return summary is not None and summary.status == "killed"


def _print_how_to_continue(folder: Path) -> None:
    summary = read_summary(folder)
    if summary is None or summary.status == "completed" or not (folder / CONFIG_FILE).exists():
        return
    named = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
    given = named if re.fullmatch(r"[\w./-]+", named) else quoted(named)
    with suppress(OSError):  # the terminal may be gone
        print(f"continue with: python -m atlas.train {shlex.quote(f'resume={given}')}", flush=True)


class _CallableModule(ModuleType):
    """Makes `atlas.train` both the module that `python -m` runs and the function of the public API."""

    def __call__(self, config: RunConfig, folder: str | Path | None = None) -> RunSummary:
        return train(config, folder)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    # The imported module, not `__main__`, so that launchers can pickle the job by name.
    from atlas.train import main as imported_main

    sys.exit(imported_main())
