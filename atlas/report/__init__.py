"""Reports of runs and sweeps, made from their files: `python -m atlas.report DIR...`."""

from atlas.report.writing import write_report

__all__ = ["write_report"]
