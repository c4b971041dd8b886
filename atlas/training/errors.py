"""Errors that end a run in good order."""

from __future__ import annotations


class AbortError(Exception):
    """A safeguard stopped the run. The message is its reason."""
