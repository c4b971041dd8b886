"""The state that a run starts from: step 1, the weights of another run, or a checkpoint of the same run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atlas.checkpoint.contents import MODEL
from atlas.checkpoint.folder import CheckpointError, folders
from atlas.checkpoint.manager import CheckpointManager
from atlas.checkpoint.manifest import MANIFEST_FILE, Manifest
from atlas.config import ConfigError, RunConfig, require
from atlas.config.composition import save_config
from atlas.config.keys import flat
from atlas.config.lock import is_held
from atlas.config.path_overrides import expanded
from atlas.data.corpus import Corpus
from atlas.pretrained.folder import is_pretrained, read_settings, read_weights
from atlas.runs.data_record import record_data, require_same_data
from atlas.runs.folder import HeldError
from atlas.runs.resume import refuse_other_settings
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.run_files import CHECKPOINTS, CONFIG_FILE, RunFiles
from atlas.training.rollback.journal import JournalEntry, read_journal
from atlas.training.state import TrainState


def starting_point(
    config: RunConfig,
    before: RunConfig | None,
    folder: Path,
    state: TrainState,
    checkpoints: CheckpointManager,
    corpus: Corpus | None,
) -> list[str]:
    """Load the state that the run starts from, lock its folder and freeze its configuration; returns notices.

    `before`: the recorded configuration of the run in `folder`, if there is one.

    Raises `ConfigError` if the folder holds another run, another process writes it, a checkpoint does not fit, or the
    text has changed.
    """
    taken = before is not None and config.resume is None
    require(not taken, "hydra.run.dir", folder, "a folder without a run (resume=auto continues the run in it)")
    if before is not None:
        refuse_other_settings(flat(asdict(config)), flat(asdict(before)), folder)
    if config.resume is None:
        notices = _take_weights(config, state)  # before anything is written
        _lock(folder, checkpoints)
    else:
        _lock(folder, checkpoints)
        notices = _resume(config, before, state, checkpoints, corpus)
    if corpus is not None:
        record_data(folder, corpus)
    if before is None or not folders(checkpoints.root):  # what a failed start has left lacks the data's vocabulary
        save_config(before or config, folder / CONFIG_FILE)
    return notices


def _lock(folder: Path, checkpoints: CheckpointManager) -> None:
    try:
        checkpoints.lock()
    except CheckpointError as error:
        raise HeldError(f"hydra.run.dir={folder}: must be a folder that this run alone writes ({error})") from error


def _resume(
    config: RunConfig,
    before: RunConfig | None,
    state: TrainState,
    checkpoints: CheckpointManager,
    corpus: Corpus | None,
) -> list[str]:
    chosen = None if config.resume == "auto" else _checkpoint_folder(expanded(config.resume or ""))
    if chosen is None and not folders(checkpoints.root):
        refuse_lost_checkpoints(checkpoints.root)
        return ["nothing to resume here: starts at step 1", *_take_weights(config, state)]
    journal = _read_journal(checkpoints)
    payload, manifest = load_checkpoint(checkpoints, chosen, "resume")
    notices = passed_over(checkpoints)
    _require_same_batches(payload.get("batches", 1), state.batches, manifest)
    notices += require_same_data(payload.get("data"), corpus, config.accept_changed_data, checkpoints.root.parent)
    try:
        behind = journal is not None and payload["position"]["segment"] < journal.segment
        if journal is not None and behind and manifest.step > journal.step:
            allowed = "one that no rollback has undone (init_from starts a new run from its weights)"
            require(manifest.path in folders(manifest.path.parent), "resume", manifest.path, allowed)
            checkpoints.retire(journal.step)  # the rollback was killed before this step
            payload, manifest = load_checkpoint(checkpoints, None, "resume")
            notices += [
                *passed_over(checkpoints),
                f"finishes the rollback to step {journal.step}, which was interrupted",
            ]
        state.restore(payload)
    except ConfigError:
        raise
    except Exception as error:  # plain data of another shape fails in many ways
        raise other_model("resume", manifest.path, error) from error
    steps = config.train.steps
    unchanged = before is None or steps == before.train.steps
    allowed = f"> {state.step}, the step of the checkpoint that the run goes on from"
    require(unchanged or steps > state.step, "train.steps", steps, allowed)
    if journal is not None and behind:
        journal.apply(state)
    if chosen is None and not notices:
        notices = gone(checkpoints.root.parent, manifest.step, journal if behind else None)
    if checkpoints.retire(manifest.step) and chosen is not None:
        notices.append(f"the steps after {manifest.step} are trained anew: their checkpoints are set aside")
    return [*notices, f"resumed from {manifest.path.name}"]


def refuse_lost_checkpoints(root: Path) -> None:
    """Raise `ConfigError` where the run had a checkpoint: starting it anew would replace its results."""
    summary, step = read_summary(root.parent), _told_step(root.parent)
    if step > 0 or (summary is not None and summary.status == "completed"):
        told = f"events.jsonl tells of that of step {step}" if step > 0 else "the run is complete"
        allowed = "a run with its checkpoints (a new folder trains it anew)"
        raise ConfigError(f"resume={root.parent}: must be {allowed}; {root} holds none, but {told}")


def _told_step(folder: Path) -> int:
    """The step of the checkpoint that a start would go on from, by events.jsonl; 0 where it tells of none."""
    ends = RunFiles(folder, strict=False).of_kind("start", "checkpoint", "rollback")  # a start may go back, too
    steps = [event["step"] for event in ends if isinstance(event.get("step"), int)]
    return steps[-1] if steps else 0


def gone(folder: Path, step: int, rollback: JournalEntry | None = None) -> list[str]:
    """A line where the run has told of a later checkpoint than the newest one that there is. `rollback`: the one after
    which the run goes on; it was killed where events.jsonl does not tell of that."""
    told = [event.get("segment") for event in RunFiles(folder, strict=False).of_kind("rollback")]
    untold = rollback is not None and rollback.segment not in told
    last = rollback.step if rollback is not None and untold else _told_step(folder)
    if last > step:
        lost = f"the checkpoint of step {last}, of which events.jsonl tells, is gone"
        return [f"{lost}: the run goes back to step {step}"]
    if untold:
        return [f"goes on after the rollback to step {last}, of which events.jsonl does not tell: the run was killed"]
    return []


def earlier(folder: Path, step: int) -> list[str]:
    """A line where the run made more steps than its newest checkpoint, that of `step`, has seen. A run that goes on has
    always made some; it is told of an untrained model only."""
    if step > 0 and is_held(folder / CHECKPOINTS):
        return []
    summary = read_summary(folder) or RunSummary(str(folder))
    if summary.status == "running":
        summary.take_last_step()
    if summary.step <= step:
        return []
    return [f"reads step {step} of a run that made {summary.step} steps: it has no later checkpoint"]


def _require_same_batches(version: object, own: int, manifest: Manifest) -> None:
    """Refuse a checkpoint whose run had other batches: it would go on silently with those of this version."""
    if version != own:
        raise ConfigError(
            f"resume={manifest.path}: must be of a run with this version's batches; it has those of an"
            f" {'earlier' if isinstance(version, int) and version < own else 'other'} one, other rows at every step"
            f" (init_from={manifest.path} starts a new run from its weights)"
        )


def _read_journal(checkpoints: CheckpointManager) -> JournalEntry | None:
    try:
        return read_journal(checkpoints.root)
    except (OSError, ValueError) as error:
        raise ConfigError(f"resume={checkpoints.root}: must hold a sound rollback.json ({error})") from error


def _take_weights(config: RunConfig, state: TrainState) -> list[str]:
    if config.init_from is None:
        allowed = "the run, checkpoint or exported folder that Stage 2 goes on from, with stage2.enabled=true"
        require(not config.stage2.enabled, "init_from", None, allowed)
        return []
    place = expanded(config.init_from)
    notices: list[str] = []
    if is_pretrained(place):
        weights, former = read_weights("init_from", place), read_settings(place)
    else:
        payload, manifest, notices = find_checkpoint(place, "init_from")
        weights, place = payload[MODEL], manifest.path
        former = RunFiles(place.parent.parent, strict=False).settings
    try:
        state.model.load_state_dict(weights)
    except Exception as error:
        raise other_model("init_from", place, error, config) from error
    if config.stage2.enabled:
        # The chunks of an earlier Stage 2 were those of its step, which its settings do not tell.
        chunks = None if former.get("stage2.enabled") else former.get("chunk_size.local")
        notices += config.stage2.notices(config.train.steps, chunks)
    return [*notices, f"starts from the weights of {place}"]


def find_checkpoint(path: Path, key: str) -> tuple[dict[str, Any], Manifest, list[str]]:
    """The checkpoint at `path`, or the newest sound and healthy one of the run there, and a line for each one skipped
    and where the run made more steps.

    Of a run without a healthy one it is the newest, and a line says so. Raises `ConfigError` naming `key`.
    """
    path = expanded(path)
    chosen = _checkpoint_folder(path)
    if chosen is not None and not (chosen / MANIFEST_FILE).is_file():
        raise ConfigError(f"{key}={path}: must be a run folder (with {CHECKPOINTS}/) or one of its checkpoints")
    root = path / CHECKPOINTS if chosen is None else chosen.parent
    checkpoints = CheckpointManager(root, keep=2, parts=(MODEL,))
    payload, manifest = load_checkpoint(checkpoints, chosen, key)
    skipped = passed_over(checkpoints)
    behind = earlier(root.parent, manifest.step) if chosen is None else []
    if manifest.healthy:
        return payload, manifest, _instead(skipped, manifest) + behind
    unhealthy = f"{manifest.path.name} is not healthy: the run had a bad reading or a suspicious loss at that step"
    if chosen is None:
        with suppress(CheckpointError):
            payload, manifest = checkpoints.rollback(manifest.step)
            return payload, manifest, _instead([*skipped, unhealthy], manifest)
    return payload, manifest, [*_instead(skipped, manifest), *behind, unhealthy]


def _instead(skipped: list[str], taken: Manifest) -> list[str]:
    return [f"{notice}; {taken.path.name} is taken instead" for notice in skipped]


def load_checkpoint(checkpoints: CheckpointManager, chosen: Path | None, key: str) -> tuple[dict[str, Any], Manifest]:
    try:
        return checkpoints.load(chosen)
    except CheckpointError as error:
        raise ConfigError(f"{key}={chosen or checkpoints.root}: must hold a sound checkpoint ({error})") from error


def passed_over(checkpoints: CheckpointManager) -> list[str]:
    """A line for every damaged checkpoint that the last load skipped."""
    return [f"{folder.name} was passed over: {reason}" for folder, reason in checkpoints.skipped]


def _checkpoint_folder(path: Path) -> Path | None:
    """`path` if it is a checkpoint, None if it is a run."""
    return None if (path / CHECKPOINTS).is_dir() else path


def other_model(key: str, place: Path, error: Exception, config: RunConfig | None = None) -> ConfigError:
    """The error for weights at `place` that do not fit; it names the settings in which their run differs from `config`,
    where it is a checkpoint of a run or an exported folder."""
    reason = " ".join((str(error) if isinstance(error, RuntimeError) else repr(error)).split())[:200]
    with suppress(OSError, ValueError, ConfigError):
        ours = flat(asdict(config)) if config else {}
        theirs = read_settings(place) if is_pretrained(place) else RunFiles(place.resolve().parent.parent).settings
        shaped = [name for name in ours if name.startswith(("model.", "chunk_size.")) and name in theirs]
        different = [f"{name}={theirs[name]}, not {ours[name]}" for name in shaped if theirs[name] != ours[name]]
        reason = f"it has {'; '.join(different)}" if different else reason
    return ConfigError(f"{key}={place}: must hold the weights of this model ({reason})")
