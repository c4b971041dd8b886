"""The folder of a run: made, logged into, reported of a failure, and removed again where no work was done."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atlas.config import ConfigError, require
from atlas.config.exits import ExitError
from atlas.config.lock import is_held
from atlas.config.untrusted import printable
from atlas.parallel.ranks import RankError
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.events import EventLog
from atlas.telemetry.room import when_there_is_room
from atlas.telemetry.run_files import CHECKPOINTS, CONFIG_FILE, EVENTS_FILE, RunFiles

LOG_FILE = "train.log"
log = logging.getLogger("atlas")


class HeldError(ConfigError):
    """Another process writes the run's folder."""


def require_folder(key: str, value: str | None) -> None:
    """Raise `ConfigError` for no folder: an empty path would be the current one."""
    require(bool(value and value.strip()), key, value, "a folder, such as outputs/mine (. is the current one)")


def make_folder(path: Path, key: str) -> list[Path]:
    """Make the folder; returns those that were made for it, the deepest first.

    Raises `ConfigError` where that, or writing to it, does not work.
    """
    made: list[Path] = []
    try:
        made += [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        return made
    except OSError as error:
        remove_if_empty(*made)
        raise ConfigError(f"{key}={path}: must be a folder that can be written ({error.strerror})") from error


def remove_if_empty(*folders: Path) -> None:
    """Remove the folders of a run in which no work was done, the deepest first."""
    for folder in folders:
        with suppress(OSError):  # it holds something, or is gone
            folder.rmdir()


@contextmanager
def log_file(folder: Path, name: str = LOG_FILE) -> Iterator[None]:
    """Send the package's log to the file `name`, which is made with its first line."""
    handler = _LogFile(folder / name, encoding="utf-8", delay=True)
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


class _LogFile(logging.FileHandler):
    """A log file that a full disk ends with one line on stderr; logging itself prints a traceback for each record."""

    reported = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        if not self.reported:
            say(f"warning: {self.baseFilename} cannot be written ({sys.exception()}); its lines are lost")
        self.reported = True

    def close(self) -> None:
        with suppress(OSError):  # what is buffered and does not fit; the error was reported
            super().close()


def record_failure(folder: Path, error: Exception, composed: DictConfig, launcher: str = "") -> str:
    """Write summary.json, train.log and config.yaml for a run that failed before it could write them itself; returns
    where the traceback is, in words.

    The numbers in summary.json and the lines in train.log of an earlier start stay. Events without an end get one.
    Nothing is written where another process writes the folder, or the run in it is complete.
    """
    told = f"the traceback is in {folder / LOG_FILE}"
    summary = read_summary(folder)
    if is_held(folder / CHECKPOINTS):
        return f"{folder} is left as it is: another process writes it"
    if summary is not None and summary.status == "completed":
        return f"{folder} is left as it is: the run in it is complete"
    if summary is not None and (summary.status, summary.reason) == ("failed", reason(error)):
        return told
    summary = summary or RunSummary(str(folder), launcher=launcher)
    summary.status, summary.reason = "failed", reason(error)
    summary.take_last_step()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with log_file(folder):
            log.error("the run failed", exc_info=error)
        if not (folder / CONFIG_FILE).exists():
            with suppress(OmegaConfBaseException):
                OmegaConf.resolve(composed)
            OmegaConf.save(composed, folder / CONFIG_FILE)
        when_there_is_room(summary.write)
        events = RunFiles(folder, strict=False).events
        if events and events[-1].get("kind") != "end":
            file = EventLog(folder / EVENTS_FILE)
            file.record("end", summary.step, status=summary.status, reason=summary.reason)
            file.close()
    except OSError as refusal:
        return f"it is not on record in {folder} ({refusal.strerror})"
    return told


def reason(error: BaseException) -> str:
    return str(error) if isinstance(error, ConfigError | ExitError | RankError) else f"{type(error).__name__}: {error}"


def say(message: object) -> None:
    """Print a line on stderr."""
    print(printable(f"atlas: {message}"), file=sys.stderr, flush=True)
