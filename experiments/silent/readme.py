"""The part of README.md that says what was measured, between two markers: from silent.json and calm.json.

python -m experiments.silent.readme

Writes it into README.md, which a test compares with the two files.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from atlas.config.arguments import run_command
from experiments.silent.catalogue import CATALOGUE
from experiments.silent.table import HERE, Caused, read_results, revisions_of

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- python -m experiments.silent.readme -->", "<!-- end -->"


def measured(found: Sequence[Caused]) -> list[str]:
    """Of the runs in silent.json, a line for each kind, and of those in calm.json."""
    if not found:
        return ["The catalogue in `experiments/silent/` has not run yet."]
    lines = ["| failures of | caused | noticed with every seed | what the run does, by runs |", "|---|---|---|---|"]
    caused = noticed = 0
    for kind in dict.fromkeys(one.failure.kind for one in found):
        ones = [one for one in found if one.failure.kind == kind]
        names = {one.failure.name for one in ones}
        seen = names - {one.failure.name for one in ones if not one.noticed}
        did = Counter(one.outcome[0].partition(" at ")[0] for one in ones)
        what = ", ".join(f"{count} {name}" for name, count in did.most_common())
        lines.append(f"| {kind} | {len(names)} | {len(seen)} | {what} |")
        caused, noticed = caused + len(names), noticed + len(seen)
    seeds = len({one.seed for one in found})
    twins = {(one.failure.twin or one.failure.name, one.seed): len(one.false_alarms) for one in found}
    calm = json.loads((HERE / "calm.json").read_text(encoding="utf-8"))["runs"] if (HERE / "calm.json").exists() else {}
    alarms = sum(len(run["findings"]) for run in calm.values())
    lines += [
        "",
        f"{noticed} of {caused} failures are noticed, each caused with {seeds} seeds. False alarms: "
        f"{sum(twins.values())} in {len(twins)} calm twins, {alarms} in {len(calm)} other calm runs "
        f"([failures](experiments/silent/RESULTS.md), [calm runs](experiments/silent/CALM.md); "
        f"{revisions_of(one.git for one in found)}).",
    ]
    return lines


def with_part(text: str, lines: Sequence[str]) -> str:
    """The README with these lines between the markers."""
    before, _, rest = text.partition(BEGIN)
    return "\n".join([f"{before}{BEGIN}", *lines, f"{END}{rest.partition(END)[2]}"])


def main(_: list[str]) -> int:
    found = measured(read_results(CATALOGUE, older=True))
    README.write_text(with_part(README.read_text(encoding="utf-8"), found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
