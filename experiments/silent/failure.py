"""One silent failure: its cause, the run that has it and the calm run beside it, and what both told."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from atlas.telemetry.run_files import RunFiles
from experiments.silent.bench import STEPS, TEXT, Bench, Ended, of_table

TELLING = ("watch", "warning", "spike", "rollback", "error", "notice")
USUAL = re.compile(
    "injects |resumed from|starts from the weights of|W&B is offline"
)  # notices of what the catalogue itself does


@dataclass(frozen=True)
class Finding:
    """Something that a run told: an event, a line of the closing table, or a refusal. `step`: None outside of a run."""

    kind: str
    message: str
    step: int | None = None

    @property
    def what(self) -> str:
        """The same for the same complaint: without its numbers."""
        return f"{self.kind} {re.sub(r'[-+]?[0-9][0-9.,e%+-]*', '#', self.message)}"


@dataclass(frozen=True)
class Facts:
    """What a user can see of a failure: `findings` in their order, `status` of the command at fault."""

    status: int
    findings: Sequence[Finding]
    cause_step: int = 0  # the last step that was sound

    def record(self) -> dict[str, Any]:
        return asdict(self)


Procedure = Callable[[Bench, bool], Facts]


@dataclass(frozen=True)
class Failure:
    """`run(bench, broken)` makes the run with its cause, or the calm one. `twin`: failures of one twin share its run.

    `says`: a pattern that a finding must match to count, where others could come by. `rightly`: of what the calm run is
    right to tell, since it holds there as well; no false alarm.
    """

    name: str
    kind: str
    what: str
    run: Procedure
    twin: str = ""
    says: str = ""
    rightly: str = ""
    tags: Sequence[str] = field(default=())


def facts(ended: Ended, cause_step: int = 0) -> Facts:
    """What a training run told."""
    found: list[Finding] = []
    if ended.status == 2:
        told = [line for line in ended.printed.splitlines() if line.startswith("atlas: ")]
        return Facts(2, [Finding("refused", (told or ["?"])[-1])], cause_step)
    for event in ended.events:
        if event["kind"] in TELLING and not USUAL.match(str(event.get("message"))):
            step = event.get("from_step", event["step"])
            name = f"{event['watch']}: " if "watch" in event else ""
            message = f"{name}{event.get('message') or event.get('reason') or ''}"
            found.append(Finding(str(event["kind"]), message, int(str(step))))
    table = of_table(ended)
    if ended.status != 0:
        recorded = RunFiles(ended.folder, strict=False).summary.get("reason")
        reason = recorded or (ended.printed.strip().splitlines() or [""])[-1]
        found.append(Finding("ended", f"status {ended.status}: {reason}", _last_step(ended)))
    # A verdict in the closing table that is no event; the last line, of the watchers, repeats events.
    found += [Finding("table", f"{name}: {value}") for name, value in table.items() if _tells(name, value)]
    return Facts(ended.status, found, cause_step)


def _tells(name: str, value: str) -> bool:
    return name.startswith("niah ") and ("fail" in value.lower() or "not " in value)


def _last_step(ended: Ended) -> int | None:
    steps = [int(str(event["step"])) for event in ended.events]
    return max(steps, default=None)


def new(broken: Facts, calm: Facts, says: str) -> list[Finding]:
    """The findings that the calm run does not have, of the wanted pattern."""
    usual = {finding.what for finding in calm.findings}
    other = [f for f in broken.findings if f.what not in usual and (not of_machine(f) or "slow" in says)]
    return [f for f in other if re.search(says, f"{f.kind} {f.message}", re.I)]


def of_machine(finding: Finding) -> bool:
    """Whether it tells that the machine has become slow: where others use it too, that is true of any run."""
    return finding.message.startswith("slowdown: ")


def outcome(broken: Facts, calm: Facts, says: str) -> tuple[str, int | None, str]:
    """(what the run did, delay in steps from the cause, the message); delay None where it has no meaning."""
    findings = new(broken, calm, says)
    if not findings:
        return "NOT NOTICED", None, ""
    first = findings[0]
    delay = None if first.step is None else max(first.step - broken.cause_step, 0)
    kinds = {finding.kind for finding in findings}
    if first.kind == "refused":
        return "refused before the start", None, first.message
    if first.kind == "table":
        return "told in the closing table", None, first.message
    if first.kind == "told":
        return "told", None, first.message
    if "rollback" in kinds:
        return "rolled back", delay, first.message
    if "ended" in kinds and broken.status == 1:
        return "aborted", delay, first.message
    if first.kind == "notice":
        return "told at the start", None, first.message
    early = first.step == broken.cause_step == 0
    return ("warned at the start" if early else f"warned at step {first.step}"), delay, first.message


def trained(*cause: str, calm: Sequence[str] = (), shared: Sequence[str] = TEXT, at: int = 0) -> tuple[Procedure, str]:
    """(a training run with the settings `cause`, or with `calm` in their place; the name of that calm run).

    `at`: the last step that the cause leaves sound.
    """

    def run(bench: Bench, broken: bool) -> Facts:
        return facts(bench.run(*shared, *(cause if broken else calm)), at)

    return run, " ".join((*shared, *calm))


def with_optimizer(name: str, *settings: str, at: int | None = None, steps: int = STEPS) -> tuple[Procedure, str]:
    """A run of so many steps whose optimiser is `wrong_optim.NAME`, beside one with that of the package."""
    given = () if at is None else (f"+optim.at={at}",)
    shared = ("optim=adamw", "trust=[experiments.silent]", f"train.steps={steps}", *TEXT)
    target = "optim._target_=experiments.silent.wrong_optim."
    cause = (f"{target}{name}", *given, *settings)
    return trained(*cause, calm=(f"{target}sound",), shared=shared, at=at or 0)


def with_model(name: str, data: Sequence[str] = TEXT) -> tuple[Procedure, str]:
    """A model with a mistake in it (wrong_model.py) beside a sound one."""
    target = "optim._target_=experiments.silent."
    shared = ("optim=adamw", "trust=[experiments.silent]", *data)
    return trained(f"{target}wrong_model.{name}", calm=(f"{target}wrong_optim.sound",), shared=shared)


def with_data(name: str, *settings: str, at: int = 0) -> tuple[Procedure, str]:
    """A run whose batches come from `wrong_data.NAME`, beside one with those of the package."""
    target = "data._target_=experiments.silent.wrong_data."
    shared = (*TEXT, "trust=[experiments.silent]")
    given = (f"+data.at={at}",) if at else ()
    return trained(f"{target}{name}", *given, *settings, calm=(f"{target}Sound",), shared=shared, at=at)
