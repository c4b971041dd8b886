"""What was measured, in README.md and docs/watchers.md, between two markers: from silent.json and calm.json.

python -m experiments.silent.readme

Writes it there; a test compares both with the two files.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from atlas.config.arguments import run_command
from experiments.silent.catalogue import CATALOGUE
from experiments.silent.table import HERE, Caused, read_results

ROOT = Path(__file__).parents[2]
README, WATCHERS = ROOT / "README.md", ROOT / "docs" / "watchers.md"
BEGIN, END = "<!-- python -m experiments.silent.readme -->", "<!-- end -->"


def kinds(found: Sequence[Caused]) -> list[str]:
    """Of the runs in silent.json, a line for each kind."""
    lines = ["| failures of | caused | noticed with every seed | what the run does, by runs |", "|---|---|---|---|"]
    for kind in dict.fromkeys(one.failure.kind for one in found):
        ones = [one for one in found if one.failure.kind == kind]
        caused, seen = _caused_and_noticed(ones)
        did = Counter(one.outcome[0].partition(" at ")[0] for one in ones)
        what = ", ".join(f"{count} {name}" for name, count in did.most_common())
        lines.append(f"| {kind} | {caused} | {seen} | {what} |")
    return lines


def summary(found: Sequence[Caused], folder: str) -> str:
    """Of the runs in silent.json and calm.json, a line. `folder`: where they are, seen from the document."""
    if not found:
        return f"The catalogue in `{folder}` has not run yet."
    caused, noticed = _caused_and_noticed(found)
    seeds = len({one.seed for one in found})
    twins = {(one.failure.twin or one.failure.name, one.seed): len(one.false_alarms) for one in found}
    calm = json.loads((HERE / "calm.json").read_text(encoding="utf-8"))["runs"] if (HERE / "calm.json").exists() else {}
    alarms = sum(len(run["findings"]) for run in calm.values())
    return (
        f"{noticed} of {caused} failures are noticed, each caused with {seeds} seeds. False alarms: "
        f"{sum(twins.values())} in {len(twins)} calm twins, {alarms} in {len(calm)} other calm runs "
        f"([failures]({folder}/RESULTS.md), [calm runs]({folder}/CALM.md), with their revisions)."
    )


def _caused_and_noticed(found: Sequence[Caused]) -> tuple[int, int]:
    """Failures, and those that were noticed with every seed."""
    names = {one.failure.name for one in found}
    return len(names), len(names - {one.failure.name for one in found if not one.noticed})


def with_part(text: str, lines: Sequence[str]) -> str:
    """The document with these lines between the markers."""
    before, _, rest = text.partition(BEGIN)
    return "\n".join([f"{before}{BEGIN}", *lines, f"{END}{rest.partition(END)[2]}"])


def documents() -> dict[Path, str]:
    """Both, with what the results say now."""
    found = read_results(CATALOGUE, older=True)
    lines = {
        README: [summary(found, "experiments/silent")],
        WATCHERS: [*kinds(found), "", summary(found, "../experiments/silent")],
    }
    return {file: with_part(file.read_text(encoding="utf-8"), part) for file, part in lines.items()}


def main(_: list[str]) -> int:
    for file, text in documents().items():
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
