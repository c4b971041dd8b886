"""The records of the contestants as tables, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from experiments.field.contestants import (
    ATTENTION,
    CONVOLVED,
    DEFAULT,
    ITERATIONS,
    LSTM,
    MORE_LOCALS,
    MUON,
    SIZES,
    TRANSFORMER,
)
from experiments.field.record import Record
from experiments.field.worker import HAYSTACKS

RECALL_WANTED = 0.95  # of the default's needles at the trained length, beyond the window
POLARISED_PEAK, POLARISED_END = 0.8, 0.2  # shares of polarised gates that a form of the fusion needs
GATELESS = "fusion additive"  # older records have the shares of a gate that nothing was multiplied by
FUSIONS = (DEFAULT, GATELESS, "fusion multiplicative")
ABOUT = """\
Written by `python -m experiments.field`; do not edit. A cell is the mean over the seeds, and the range. Loss: nats per
byte of validation text. Recall: share of needles found by their key, one of four, beyond the reach of the default's
window, at three depths, in noise and in text of 1, 2 and 4 times the trained length. Memory off: the same model in
noise of the trained length. Speed: training steps in turn with the default's, on all cores of the machine."""
SIGNS = {  # TNT Table 3: the sign of the change of perplexity
    "no global memory": 1,
    "no Q-K projection": 1,
    MORE_LOCALS: -1,
}


@dataclass(frozen=True)
class Field:
    records: Sequence[Record]
    speeds: Mapping[str, float]  # tokens per second of training, timed in turn
    steps: int  # at equal tokens
    in_time: Mapping[str, int]  # steps at equal time by contestant; empty: not asked for
    packages: str
    size: str = "tiny"

    def of(self, name: str, steps: int) -> list[Record]:
        """By seed."""
        return sorted((one for one in self.records if (one.name, one.steps) == (name, steps)), key=lambda one: one.seed)


def document(field: Field) -> str:
    """RESULTS.md."""
    equal_tokens = dict.fromkeys(field.speeds, field.steps)
    parts = [
        "# The field: results",
        ABOUT,
        f"## At equal tokens: {field.steps} steps",
        _table(field, equal_tokens),
    ]
    if field.in_time:
        parts += ["## At equal time: as many steps as the default's time allows", _table(field, field.in_time)]
    parts += [
        "## What it says",
        "\n".join(f"- {line}" for say in (_beside, _convolution, _fusion, _signs, _iterations) for line in say(field)),
    ]
    named = [(name, SIZES[field.size][name]) for name in field.speeds]
    about = [
        f"- {name}: {one.about}" + "; `{}`".format(" ".join(one.settings)) * bool(one.settings) for name, one in named
    ]
    parts += ["## The contestants", "\n".join(about)]
    revisions = " or ".join(sorted({one.git for one in field.records}))
    return "\n\n".join([*parts, f"Revision {revisions}; {field.packages}."]) + "\n"


def _table(field: Field, steps: Mapping[str, int]) -> str:
    records = [one for name in steps for one in field.of(name, steps[name])]
    lengths = list(records[0].recall["noise"]) if records else []
    recall = [f"{haystack} {length}" for haystack in HAYSTACKS.values() for length in lengths]
    head = ["contestant", "parameters", "seeds", "steps", "loss of text", *recall, "memory off", "speed"]
    lines = [_line(head), "|---" * len(head) + "|"]
    for name, count in steps.items():
        group = field.of(name, count)
        if not group:
            continue
        cells = [name, f"{group[0].parameters:,}", ", ".join(str(one.seed) for one in group), str(count)]
        cells.append(_spread([one.loss for one in group], ".4f"))
        for haystack in HAYSTACKS.values():
            cells += [_spread([one.recall[haystack][length] for one in group], ".0%") for length in lengths]
        off = [one.recall_off for one in group if one.recall_off is not None]
        cells += [_spread(off, ".0%") if off else "-", f"{field.speeds[name] / field.speeds[DEFAULT]:.2f}"]
        lines.append(_line(cells))
    if blind := next((one.key_blind for one in records if one.key_blind), None):
        shares = [f"{blind[haystack][length]:.0%}" for haystack in HAYSTACKS.values() for length in lengths]
        lines.append(_line(["the best reader that ignores the key", *["-"] * 4, *shares, "-", "-"]))
    return "\n".join(lines)


def _pairs(field: Field, name: str, other: str, steps: Callable[[str], int]) -> list[tuple[Record, Record]]:
    """Records of the same seed."""
    others = {one.seed: one for one in field.of(other, steps(other))}
    return [(one, others[one.seed]) for one in field.of(name, steps(name)) if one.seed in others]


def _beside(field: Field) -> list[str]:
    """The default beside models without a memory."""
    lines = []
    ways: list[tuple[str, Callable[[str], int]]] = [("tokens", lambda _: field.steps)]
    ways += [("time", field.in_time.__getitem__)] if field.in_time else []
    for way, steps in ways:
        for other in (ATTENTION, TRANSFORMER, *CONVOLVED, LSTM):
            if pairs := _pairs(field, DEFAULT, other, steps) if other in field.speeds else []:
                gaps = [one.loss - two.loss for one, two in pairs]
                below = sum(gap < 0 for gap in gaps)
                lines.append(
                    f"At equal {way} the default's loss of text minus that of {other}: {_spread(gaps, '+.4f')},"
                    f" below in {below} of {len(gaps)}."
                )
    return lines


def _convolution(field: Field) -> list[str]:
    """How much of what the default gains its convolution gives alone."""
    lines = []
    for plain, convolved in zip((ATTENTION, TRANSFORMER), CONVOLVED, strict=True):
        without = {one.seed: one.loss for one in field.of(plain, field.steps)}
        pairs = [pair for pair in _pairs(field, DEFAULT, convolved, lambda _: field.steps) if pair[0].seed in without]
        shares = [(without[one.seed] - two.loss) / (without[one.seed] - one.loss) for one, two in pairs]
        if shares:
            lines.append(
                f"Of what the default's loss of text is below that of {plain}, convolution alone gives"
                f" {_spread(shares, '.0%')}."
            )
    return lines


def _fusion(field: Field) -> list[str]:
    """The rule of README.md; nothing where there is no choice."""
    groups = {name: group for name in FUSIONS if (group := field.of(name, field.steps))}
    passing: dict[str, float] = {}
    lines = []
    for name, group in groups.items() if len(groups) > 1 else ():
        recall = [next(iter(one.recall["noise"].values())) for one in group]
        peak, end = ([getattr(one, key) for one in group] for key in ("polarised_peak", "polarised_end"))
        gated = name != GATELESS and None not in peak
        sound = gated and min(peak) >= POLARISED_PEAK and min(end) >= POLARISED_END
        if sound and min(recall) > RECALL_WANTED:
            passing[name] = mean(one.loss for one in group)
        gates = f"gates polarised {min(peak):.0%} at the peak, {min(end):.0%} at the end" if gated else "no gate"
        lines.append(f"Fusion, {name}: lowest recall {min(recall):.0%}, {gates}, {len(group)} seeds.")
    if passing:
        lines.append(f"Of the fusions that pass the rule, {min(passing, key=passing.__getitem__)} has the lowest loss.")
    return lines + ([] if passing or not lines else ["No fusion passes the rule."])


def _signs(field: Field) -> list[str]:
    """Whether the ablations of TNT's Table 3 change the loss of text in its direction, in every seed."""
    lines = []
    for name, sign in SIGNS.items():
        gaps = [one.loss - two.loss for one, two in _pairs(field, name, DEFAULT, lambda _: field.steps)]
        if gaps:
            agreeing = sum(gap * sign > 0 for gap in gaps)
            said = (
                "reproduced" if agreeing == len(gaps) else "NOT reproduced" if agreeing == 0 else "not distinguishable"
            )
            change = "raises" if sign > 0 else "lowers"
            lines.append(f"TNT Table 3, {name} {change} the loss: {said}, {_spread(gaps, '+.4f')}, {len(gaps)} seeds.")
    return lines


def _iterations(field: Field) -> list[str]:
    """Muon with other numbers of Newton-Schulz iterations beside its default."""
    lines = []
    for name in ITERATIONS:
        if pairs := _pairs(field, name, MUON, lambda _: field.steps):
            gaps = [one.loss - two.loss for one, two in pairs]
            speed = field.speeds[name] / field.speeds[MUON]
            lines.append(
                f"Loss of text of {name} minus that of {MUON}: {_spread(gaps, '+.4f')}, speed {speed:.2f} of it."
            )
    return lines


def _spread(values: Sequence[float], form: str) -> str:
    ranged = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{mean(values):{form}}{ranged}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
