"""The exit gate of Phase 2.

python -m experiments.phase2.gate [only=G2-3,G2-6] [folder=PATH] [GROUP=OPTION ...] [KEY=VALUE ...]

Runs G2-1 to G2-7 for real on the default configuration with these overrides. Two sweeps are timed, so the machine must
be quiet: where other processes use more than 10 % of its cores, G2-1 and G2-2 do not pass, and say so. All of it takes
some 25 minutes on 2 cores; only=G2-3 is the quickest. Writes gate.json and gate.md into outputs/gates/<time>, beside
the runs and their logs.

  python -m experiments.phase2.gate                                   all of it
  python -m experiments.phase2.gate device=cuda                       on a GPU
  python -m experiments.phase2.gate only=G2-3,G2-6                    the others say NOT RUN, which is not passed
  python -m experiments.phase2.gate evidence.chunk_sizes=SWEEP evidence.probe_frequency=SWEEP
                                                         the sweeps of an earlier gate of this machine, revision
                                                         and configuration, chunk_sizes and probe_frequency in its
                                                         folder: machine.json there says how quiet it was

Exit status: 0 every check passed; 1 one did not or was not run; 2 refused; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TextIO

from atlas.config import ConfigError
from atlas.config.arguments import run_command
from atlas.config.composition import compose
from atlas.config.keys import flat, plain
from atlas.runs.folder import make_folder
from experiments.phase2.arguments import PROTOCOLS, ExitArguments, parse_arguments
from experiments.phase2.check_decisions import judge_decision, require_same_origin
from experiments.phase2.check_rollback import judge_rollback
from experiments.phase2.check_run import judge_needles, judge_ppl_delta, judge_stability, last_readings
from experiments.phase2.destinations import require_room
from experiments.phase2.evidence import Evidence, sweep_overrides
from experiments.phase2.finding import CHECKS, Finding, failed
from experiments.phase2.report import MARKDOWN_FILE, ExitReport

# The long run comes first, so that the trained model is there for the others; the sweeps last, as the longest.
ORDER = ("G2-4", "G2-5", "G2-7", "G2-3", "G2-6", "G2-2", "G2-1")
# Said where there is no long run, because only=... does not ask for it or because it could not be made.
LEFT_OUT = {
    "G2-3": "Left out: the trained model, which only the long run of G2-4, G2-5 and G2-7 makes.",
    "G2-6": "Left out: false alarms in the long run, which only G2-4, G2-5 and G2-7 make.",
}
WIDTH = 100  # characters of a progress line: a line that wraps cannot be written over


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(pass_gate, arguments, __doc__ or "")


def pass_gate(given: Sequence[str]) -> int:
    """Run the checks and report; returns the exit status. Raises `ConfigError` before any work."""
    arguments = parse_arguments(given)
    report, progress = ExitReport(_origin(arguments, given)), Progress(sys.stderr)
    folder = arguments.folder or Path(f"outputs/gates/{datetime.now():%Y%m%d-%H%M%S-%f}").resolve()
    make_folder(folder, "folder")
    require_room(folder, "folder", folder)
    progress.say(f"evidence goes to {folder}")
    lost: OSError | None = None
    try:
        _run_checks(arguments, folder, report, progress)
    except KeyboardInterrupt:
        report.interrupted = f"stopped while {progress.title} ran"
    except OSError as error:
        lost = error
    try:
        report.write(folder)
    except OSError as error:
        lost = error
    if lost is None:
        progress.say(f"\nfiles  {folder / MARKDOWN_FILE}\n")
    print("\n".join(report.lines()), flush=True)
    if lost is not None:
        raise ConfigError(f"folder={folder}: must be where the report can be written ({lost.strerror})")
    return 130 if report.interrupted else int(not report.complete)


def _run_checks(arguments: ExitArguments, folder: Path, report: ExitReport, progress: Progress) -> None:
    """A check that raises has failed, and the others still run. The files are written anew before each check."""
    evidence = Evidence(arguments, folder, progress.show)
    judges = _judges(evidence)
    names = {check.id: check.name for check in CHECKS}
    for check_id in (name for name in ORDER if name in arguments.only):
        report.write(folder)
        progress.begin(f"[{check_id}] {names[check_id]}")
        began = time.perf_counter()
        try:
            finding = judges[check_id]()
        except Exception as error:
            trace = folder / "error.log"
            with suppress(OSError), trace.open("a", encoding="utf-8") as file:  # the disk may be what has no room
                file.write(f"{check_id}\n{traceback.format_exc()}\n")
            finding = failed(f"{type(error).__name__}: {error}", f"the traceback is in {trace}")
        if check_id in LEFT_OUT and evidence.trained is None:
            finding = replace(finding, evidence=(*finding.evidence, LEFT_OUT[check_id]))
        report.findings[check_id], report.seconds[check_id] = finding, time.perf_counter() - began
        progress.end(finding.line)


def _judges(evidence: Evidence) -> Mapping[str, Callable[[], Finding]]:
    def projection() -> Finding:
        from experiments.phase2.check_projection import judge_projection, measure_projection  # imports torch

        model, source = evidence.model()
        return judge_projection(measure_projection(model), source)

    def decision(check_id: str) -> Finding:
        protocol = PROTOCOLS[check_id]
        decision = evidence.decision(protocol)
        return judge_decision(protocol, decision, evidence.quiet.get(protocol))

    return {
        "G2-1": lambda: decision("G2-1"),
        "G2-2": lambda: decision("G2-2"),
        "G2-3": projection,
        "G2-4": lambda: judge_stability(evidence.training),
        "G2-5": lambda: judge_needles(evidence.training),
        "G2-6": lambda: judge_rollback(evidence.forced, evidence.calm, evidence.trained),
        "G2-7": lambda: judge_ppl_delta(evidence.training, last_readings(evidence.training)),
    }


def _origin(arguments: ExitArguments, given: Sequence[str]) -> dict[str, Any]:
    """What the numbers come from. Raises `ConfigError` for a device that is missing, or evidence of another origin."""
    from atlas.runs.build import prepare_device
    from atlas.runs.environment import config_hash, device_name, git_revision, versions

    config = arguments.config
    device, _ = prepare_device(config.device)
    name, installed, revision = device_name(device), versions(), git_revision()
    for protocol, sweep in arguments.sweeps.items():
        settings = flat(plain(compose(sweep_overrides(protocol, arguments.overrides))))
        require_same_origin(f"evidence.{protocol}", sweep, protocol, name, installed, revision, settings)
    return {
        "command": shlex.join(["python", "-m", "experiments.phase2.gate", *given]),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": name,
        "git": revision,
        "config_hash": config_hash(config),
        "versions": installed,
    }


class Progress:
    """The newest line of what is running: written over on a terminal, elsewhere a line a minute."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.live = stream, stream.isatty()
        self.wait_seconds = 0.2 if self.live else 60.0
        self.title, self._began, self._shown = "", 0.0, 0.0

    def begin(self, title: str) -> None:
        self.title, self._began = title, time.perf_counter()
        self._shown = self._began
        self.say(f"{title} ...", keep=not self.live)

    def show(self, line: str) -> None:
        now = time.perf_counter()
        if line and now - self._shown >= self.wait_seconds:
            self._shown = now
            self.say(f"  {now - self._began:4.0f} s  {line.strip()}"[:WIDTH], keep=not self.live)

    def end(self, outcome: str) -> None:
        self.say(f"{self.title}: {outcome}, {time.perf_counter() - self._began:.0f} s")

    def say(self, line: str, *, keep: bool = True) -> None:
        """`keep`: the next line goes below this one, not over it."""
        clear = "\r\x1b[2K" if self.live else ""
        print(f"{clear}{line}", end="\n" if keep else "", file=self.stream, flush=True)


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # ends in good order, as Ctrl-C does
    sys.exit(main())
