"""Reports of runs and sweeps, made of the files that they left: `python -m atlas.report DIR...`."""

from atlas.report.writing import write_report

__all__ = ["write_report"]
