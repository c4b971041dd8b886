"""Errors that end a run in good order."""

from __future__ import annotations


class AbortError(Exception):
    """A safeguard stopped the run. The message is its reason."""


class StopRequested(KeyboardInterrupt):
    """A signal asked the run to end, and it has come to a place where it can. The message says which signal."""
