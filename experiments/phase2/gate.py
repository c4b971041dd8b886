"""The exit gate of Phase 2.

python -m experiments.phase2.gate [only=G2-3,G2-6] [folder=PATH] [GROUP=OPTION ...] [KEY=VALUE ...]

Runs G2-1 to G2-7 for real on the default configuration with these overrides, which must be quiet minutes of the
machine: two sweeps are timed. Writes gate.json and gate.md into outputs/gates/<time>, beside the runs and their logs.

  python -m experiments.phase2.gate                                   all of it
  python -m experiments.phase2.gate device=cuda                       on a GPU
  python -m experiments.phase2.gate only=G2-3,G2-6                    the others say NOT RUN, which is not passed
  python -m experiments.phase2.gate evidence.chunk_sizes=SWEEP evidence.probe_frequency=SWEEP
                                                         finished sweeps of experiment=chunk_size_lock and
                                                         niah_frequency, of this machine and configuration

Exit status: 0 every check passed; 1 one did not or was not run; 2 refused; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from atlas.config import ConfigError
from atlas.config.arguments import run_command
from atlas.runs.resume import flat
from experiments.phase2.checks.arguments import PROTOCOLS, GateArguments, parse_arguments
from experiments.phase2.checks.commands import Progress
from experiments.phase2.checks.decisions import judge_decision, require_same_origin
from experiments.phase2.checks.evidence import Evidence
from experiments.phase2.checks.finding import CHECKS, Finding, failed
from experiments.phase2.checks.perplexity import judge_ppl_delta, last_readings
from experiments.phase2.checks.rehearsal import judge_rollback
from experiments.phase2.checks.training import judge_needles, judge_stability
from experiments.phase2.checks.verdict import MARKDOWN_FILE, Verdict

# The long run comes first, so that what it trained is there for the others; the sweeps last, as the longest.
ORDER = ("G2-4", "G2-5", "G2-7", "G2-3", "G2-6", "G2-2", "G2-1")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(pass_gate, arguments, __doc__ or "")


def pass_gate(given: Sequence[str]) -> int:
    """Run the checks and tell; returns the exit status. Raises `ConfigError` before any work."""
    arguments = parse_arguments(given)
    origin = _origin(arguments, given)
    folder = arguments.folder or Path(f"outputs/gates/{datetime.now():%Y%m%d-%H%M%S-%f}").resolve()
    _make(folder)
    verdict, progress = Verdict(origin), Progress(sys.stderr)
    progress.say(f"evidence goes to {folder}")
    stopped = False
    try:
        _run_checks(arguments, folder, verdict, progress)
    except KeyboardInterrupt:
        stopped = True
    finally:
        verdict.write(folder)
    progress.say(f"\nfiles  {folder / MARKDOWN_FILE}\n")
    print("\n".join(verdict.lines()), flush=True)
    return 130 if stopped else int(not verdict.complete)


def _run_checks(arguments: GateArguments, folder: Path, verdict: Verdict, progress: Progress) -> None:
    """Whatever happens to one check, the others are run; what is known is on file at every moment."""
    judges = _judges(Evidence(arguments, folder, progress.show))
    names = {check.id: check.name for check in CHECKS}
    for check_id in (name for name in ORDER if name in arguments.only):
        verdict.write(folder)
        progress.begin(f"[{check_id}] {names[check_id]}")
        began = time.perf_counter()
        try:
            finding = judges[check_id]()
        except Exception as error:
            trace = folder / "error.log"
            with trace.open("a", encoding="utf-8") as file:
                file.write(f"{check_id}\n{traceback.format_exc()}\n")
            finding = failed(f"{type(error).__name__}: {error}", f"the traceback is in {trace}")
        verdict.findings[check_id], verdict.seconds[check_id] = finding, time.perf_counter() - began
        progress.end(finding.told)


def _judges(evidence: Evidence) -> Mapping[str, Callable[[], Finding]]:
    """Evidence -> finding, per check."""
    return {
        "G2-1": lambda: judge_decision(PROTOCOLS["G2-1"], *evidence.decision(PROTOCOLS["G2-1"])),
        "G2-2": lambda: judge_decision(PROTOCOLS["G2-2"], *evidence.decision(PROTOCOLS["G2-2"])),
        "G2-3": lambda: _judge_projection(evidence),
        "G2-4": lambda: judge_stability(evidence.training),
        "G2-5": lambda: judge_needles(evidence.training),
        "G2-6": lambda: judge_rollback(evidence.forced, evidence.calm, evidence.trained),
        "G2-7": lambda: judge_ppl_delta(evidence.training, last_readings(evidence.training)),
    }


def _judge_projection(evidence: Evidence) -> Finding:
    from experiments.phase2.checks.projection import judge_projection, measure_projection

    model, source = evidence.model()
    return judge_projection(measure_projection(model), source)


def _origin(arguments: GateArguments, given: Sequence[str]) -> dict[str, Any]:
    """What the numbers come from. Raises `ConfigError` for a device that is missing, or evidence of another origin."""

    from atlas.runs.build import prepare_device
    from atlas.runs.environment import config_hash, device_name, git_revision, versions

    config = arguments.config
    device, _ = prepare_device(config.device)
    origin = {
        "command": shlex.join(["python", "-m", "experiments.phase2.gate", *given]),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": device_name(device),
        "git": git_revision(),
        "config_hash": config_hash(config),
        "versions": versions(),
    }
    for protocol, sweep in arguments.sweeps.items():
        key = f"evidence.{protocol}"
        require_same_origin(key, sweep, protocol, origin["device"], origin["versions"], flat(asdict(config)))  # type: ignore[arg-type]
    return origin


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"folder={folder}: must be a folder that can be written ({error.strerror})") from error


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # ends in good order, as Ctrl-C does
    sys.exit(main())
