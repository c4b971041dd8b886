"""The folder of a run: made, logged into, told of a failure, and removed again where no work was done."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atlas.config import ConfigError
from atlas.config.untrusted import printable
from atlas.runs.resume import CONFIG_FILE
from atlas.runs.summary import RunSummary, read_summary

LOG_FILE = "train.log"
log = logging.getLogger("atlas")


def make_folder(path: Path, key: str) -> None:
    """Make the folder. Raises `ConfigError` where that, or writing to it, does not work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"{key}={path}: must be a folder that can be written ({error.strerror})") from error


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run in which no work was done."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Send the package's log to train.log, which comes to be with the first line."""
    handler = logging.FileHandler(folder / LOG_FILE, encoding="utf-8", delay=True)
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


def record_failure(folder: Path, error: Exception, composed: DictConfig, launcher: str = "") -> None:
    """Leave what a run leaves that fails, where it failed before it could do so itself.

    What an earlier start left stays: its numbers in summary.json, its lines in train.log.
    """
    summary = read_summary(folder)
    if summary is not None and (summary.status, summary.reason) == ("failed", reason(error)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with log_file(folder):
        log.error("the run failed", exc_info=error)
    if not (folder / CONFIG_FILE).exists():
        with suppress(OmegaConfBaseException):
            OmegaConf.resolve(composed)
        OmegaConf.save(composed, folder / CONFIG_FILE)
    summary = summary or RunSummary(str(folder), launcher=launcher)
    summary.status, summary.reason = "failed", reason(error)
    summary.write()


def reason(error: BaseException) -> str:
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"


def say(message: object) -> None:
    """A line to whoever started the command."""
    print(printable(f"atlas: {message}"), file=sys.stderr, flush=True)
