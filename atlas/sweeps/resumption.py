"""`sweep.resume=DIR`: the command line of an unfinished sweep again, with the few settings that may change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from atlas.config import CHANGEABLE, ConfigError, require
from atlas.config.continuing import changeable
from atlas.config.keys import lies_in, override_name
from atlas.config.latest import is_latest, latest_sweep
from atlas.config.path_overrides import expanded, quoted
from atlas.sweeps.sweep_record import SweepRecord, read_record
from atlas.telemetry.run_files import JOBS_FILE

KEY = "sweep.resume"
PLACES = ("hydra.sweep.dir", "hydra.mode")  # the sweep stays where it is
_FIXED = (KEY, "sweep.round", "resume")  # may change in a run that is continued, but not in a sweep
_LAUNCHER = "hydra/launcher"
_TRIALS = "hydra.sweeper.trials"  # a search may be given more
_SWEPT = "hydra.sweeper.params."  # an experiment that is a sweep by itself
_QUOTES = "'\""
_RISKY = re.compile(r"hydra|_target_|trust|[\\!]")  # in an option file; the last two can hide a key
_HARMLESS = re.compile(
    r"trust=.*|hydra/sweeper=\w+|hydra\.sweeper\.(trials|metric|direction|seed|max_batch_size)=[\w./-]+|"
    r"hydra\.(mode|run\.dir|sweep\.dir|sweep\.subdir)=.*|hydra/launcher=\w+|"
    r"hydra\.launcher\.(n_jobs|partition|account|qos|constraint|timeout_min|nodes|tasks_per_node|cpus_per_task|"
    r"gpus_per_node|mem_gb|array_parallelism)=[\w.:-]+"
)


def full_command(arguments: Sequence[str]) -> list[str]:
    """The arguments; with `sweep.resume=DIR` among them, also those that the sweep in DIR was started with.

    Raises `ConfigError` where there is no sweep, and for an override that would make it another sweep.
    """
    chosen = [argument for argument in arguments if override_name(argument) == KEY and "=" in argument]
    value = chosen[-1].partition("=")[2].strip("'\"") if chosen else "null"
    if value == "null" or not {"-c", "--cfg"}.isdisjoint(arguments):
        return list(arguments)
    require(bool(value.strip()), KEY, value, "the folder of a sweep, or left out")
    folder = latest_sweep(KEY) if is_latest(value) else expanded(value)
    record = read_record(folder, KEY)
    parsed = get_args_parser().parse_intermixed_args(list(arguments))
    fields = {flag: flag.partition("=")[0].removeprefix("--").replace("-", "_") for flag in record.flags}
    places = [flag for flag, field in fields.items() if getattr(parsed, field) is None]
    risky = [flag for flag in places if not _harmless_place(flag)]
    risky += [text for text in (*record.task, *record.hydra) if text not in arguments and not _harmless(text)]
    if risky:
        allowed = f"repeated on the command line, since it may execute code, or taken out of {folder / JOBS_FILE}"
        raise ConfigError(f"{risky[0]}: must be {allowed}")
    flags = [argument for argument in arguments if argument not in parsed.overrides]
    given = [override for override in parsed.overrides if override not in chosen]
    # A file must not decide whom to trust.
    recorded = [override for override in (*record.task, *record.hydra) if override_name(override) != "trust"]
    changes = [override for override in given if override not in recorded]
    _refuse_other_sweep(changes, record, folder)
    kept = _kept(recorded, changes)
    mode = ["--multirun"] if {"-m", "--multirun"}.isdisjoint(flags) else []
    return [*flags, *mode, *places, *kept, *changes, f"hydra.sweep.dir={quoted(folder)}", f"{KEY}={quoted(folder)}"]


def _harmless_place(flag: str) -> bool:
    """Whether the option files that a recorded flag names hold plain settings only, nothing of Hydra or of trust."""
    name, _, value = flag.partition("=")
    if name == "--config-name":
        return "/" not in value and ".." not in value
    texts = [
        path.read_text(encoding="utf-8", errors="replace") for path in Path(value).rglob("*.y*ml") if path.is_file()
    ]
    return not any(_RISKY.search(text) for text in texts)


def _harmless(override: str) -> bool:
    """Whether an override from a stranger's sweep executes nothing and reads none of the stranger's files."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except (HydraException, ValueError):
        return False
    key, value = parsed.key_or_group, override.partition("=")[2]
    if key.startswith(_SWEPT):  # Hydra makes KEY=VALUE of it
        swept = key.removeprefix(_SWEPT)
        plain = "\\" not in value and not swept.startswith(("hydra", "trust"))
        return plain and _harmless(f"{swept}={value.strip(_QUOTES)}")
    if key.startswith("hydra") or key == "trust":
        return _HARMLESS.fullmatch(override) is not None
    is_option = "." not in key and key not in ("resume", "init_from")
    return not (is_option and ("/" in value or ".." in value))


def config_flags(arguments: Sequence[str]) -> tuple[str, ...]:
    """Hydra's flags that name the place of the configuration, made independent of the working folder."""
    parsed = get_args_parser().parse_intermixed_args(list(arguments))
    given = {"--config-path": parsed.config_path, "--config-name": parsed.config_name}
    given["--config-dir"] = parsed.config_dir and Path(parsed.config_dir).resolve()  # the path: from atlas/train.py
    return tuple(f"{flag}={value}" for flag, value in given.items() if value is not None)


def _refuse_other_sweep(changes: Iterable[str], record: SweepRecord, folder: Path) -> None:
    for override in changes:
        name = override_name(override)
        swept = any(_sets(name, varying) or _sets(varying, name) for varying in record.varying)
        require(not swept, name, override.partition("=")[2], "left out: the sweep gives it several values")
        free = changeable(name) and name not in _FIXED
        if not free and not _sets(_LAUNCHER, name) and name != _TRIALS:
            allowed = ", ".join([*(key for key in CHANGEABLE if key not in _FIXED), "hydra.launcher"])
            raise ConfigError(
                f"{override}: must be left out, or as in {folder / JOBS_FILE}, to resume that sweep; only {allowed}"
                " may change"
            )


def _kept(recorded: Iterable[str], changes: Sequence[str]) -> list[str]:
    """The recorded overrides that no change replaces."""
    changed = [override_name(override) for override in changes]
    return [
        override
        for override in recorded
        if override_name(override) not in PLACES and not any(_sets(name, override_name(override)) for name in changed)
    ]


def _sets(name: str, key: str) -> bool:
    """Whether an override of `name` also sets `key`: a group sets the keys of its options."""
    return lies_in(key, (name, name.replace("/", ".")))
