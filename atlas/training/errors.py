"""Exceptions by which a run ends itself."""

from __future__ import annotations


class AbortError(Exception):
    """A safeguard stopped the run. The message is the reason."""

    status = "aborted"  # of the run


class WatchError(AbortError):
    """A watcher whose setting is `abort` has found something."""

    status = "failed"


class StopRequested(KeyboardInterrupt):
    """A signal stopped the run at a place where it can be resumed. The message names the signal."""
