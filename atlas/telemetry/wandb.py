"""`WandbSink`: mirrors a run to Weights & Biases, online with a login, else into files that can be uploaded later."""

from __future__ import annotations

import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from atlas.config.keys import flat
from atlas.config.values import Allowed, of_length
from atlas.telemetry.sinks import RunInfo, Sink, SweepJob

if TYPE_CHECKING:
    from wandb import Run, Settings

MODES = ("auto", "online", "offline", "disabled")
FORMER_MODES = {"dryrun": "offline", "run": "online"}  # names that W&B still takes
DEFAULT_HOST = "https://api.wandb.ai"
INIT_SECONDS = 20.0  # timeout of a network that does not answer, at the start
FINISH_SECONDS = 60.0  # and at the end
LONGEST_NAME, LONGEST_TAG = 128, 64  # characters that W&B takes
Name = Annotated[str, of_length(1, LONGEST_NAME)]
SPECIAL = "/\\#?%:"
WITHOUT_SPECIAL = Allowed(f"without any of {SPECIAL}", lambda text: not set(text) & set(SPECIAL))
OFFLINE_HINT = "upload later with `wandb sync`"


def has_login() -> bool:
    """Whether W&B finds a key: in WANDB_API_KEY, or in the netrc file for the host in use."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or DEFAULT_HOST).hostname or ""
    home = Path.home()
    files = [Path(named)] if (named := os.environ.get("NETRC")) else [home / ".netrc", home / "_netrc"]
    for file in files:
        try:
            if netrc.netrc(file).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def asked_mode() -> str:
    """What WANDB_MODE names, else what `wandb offline` or `wandb disabled` left in W&B's settings file; "": none."""
    asked = os.environ.get("WANDB_MODE", "")
    if not asked:
        import wandb

        found = str(wandb.setup(settings=wandb.Settings(silent=True)).settings.mode)
        asked = "" if found == "online" else found  # that is also its default
    return FORMER_MODES.get(asked, asked)


def run_id(folder: Path) -> str:
    """The W&B id of the run in `folder`, made at the first call and kept in the file wandb_id."""
    file = folder / "wandb_id"
    if file.exists() and (known := file.read_text().strip()):
        return known
    fresh = secrets.token_hex(6)
    file.write_text(fresh + "\n")
    return fresh


def decision_numbers(summary: Mapping[str, Any]) -> dict[str, float | bool | str]:
    """The numbers of `summary` by flat names (`a/b`), with status and reason: what W&B's tables can compare."""
    found = flat(summary, separator="/").items()
    return {key: value for key, value in found if isinstance(value, int | float) or key in ("status", "reason")}


def job_tags(job: SweepJob) -> list[str]:
    """A tag for each override in which the job differs: W&B's table of runs shows `chunk_size=c8` nowhere else."""
    return [tag for key, value in job.swept.items() if len(tag := f"{key}={value}") <= LONGEST_TAG]


def short(text: str, longest: int) -> str | None:
    """`text` if it is not too long, else its beginning; None if there is none."""
    return (text if len(text) <= longest else text[: longest - 1] + "…") or None


def number_or_text(value: str) -> float | str:
    """W&B puts numbers on an axis, and texts side by side."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


class WandbSink(Sink):
    """A W&B run. `mode`: auto (online with a login, else offline), online, offline or disabled.

    WANDB_MODE, `wandb offline` and `wandb disabled` decide for `auto`. Keys come from the environment or the netrc file
    only. A job of a sweep is named by the overrides in which it differs, and grouped with the others, unless the
    settings say otherwise.
    """

    takes_pictures = True

    def __init__(
        self,
        *,
        mode: Literal["auto", "online", "offline", "disabled"],
        project: Annotated[str, of_length(1, LONGEST_NAME), WITHOUT_SPECIAL],
        group: Name | None,
        name: Name | None,
        job_type: Annotated[str, of_length(1, LONGEST_TAG)] | None,
        tags: Sequence[Annotated[str, of_length(1, LONGEST_TAG)]],
    ) -> None:
        self._mode = mode
        self._project, self._group, self._name, self._job_type = project, group, name, job_type
        self._tags = list(tags)
        self._run: Run | None = None

    def open(self, info: RunInfo) -> str | None:
        mode, notice = self._resolve_mode()
        if mode == "disabled":
            return None
        identity = run_id(info.folder)
        if mode == "online":
            try:
                self._start(info, identity, online=True)
            except Exception as error:  # no network, a refused key: W&B has many errors, and none may stop a run
                # W&B still holds the id that failed, so the files get their own.
                identity += "-offline"
                notice = f"W&B is offline ({_first_line(error)}); {OFFLINE_HINT}"
        if self._run is None:
            self._start(info, identity, online=False)
        return notice

    def _resolve_mode(self) -> tuple[str, str | None]:
        """The mode to use, and a line for the user if it is not what might be expected."""
        if self._mode != "auto":
            return self._mode, None
        asked = asked_mode()
        if asked in MODES[1:]:
            return asked, None
        if has_login():
            return "online", None
        return "offline", f"W&B is offline (no key in WANDB_API_KEY or netrc); {OFFLINE_HINT}"

    def _start(self, info: RunInfo, identity: str, *, online: bool) -> None:
        import wandb

        job = info.job
        wandb.setup(settings=wandb.Settings(silent=True))
        self._run = wandb.init(
            mode="online" if online else "offline",
            project=self._project,
            group=self._group or (job.sweep if job else None),
            name=self._name or (short(job.name, LONGEST_NAME) if job else None),
            job_type=self._job_type or ("sweep" if job else "train"),
            tags=[*self._tags, *(job_tags(job) if job else [])],
            id=identity,
            resume="allow" if online else None,  # offline files ignore it
            dir=info.folder,
            config={
                **info.config,
                "versions": dict(info.versions),
                **({"swept": {key: number_or_text(value) for key, value in job.swept.items()}} if job else {}),
            },
            reinit="create_new",  # a sweep's jobs share a process: never take over the run of a job that died
            settings=_settings(),
        )
        # Never pass step= to log: rows logged again after a rollback would be dropped.
        self._run.define_metric("train/step")
        self._run.define_metric("*", step_metric="train/step")

    def row(self, row: Mapping[str, Any]) -> None:
        if self._run is not None:
            measured = {key: value for key, value in row.items() if value is not None and key != "step"}
            self._run.log({"train/step": row["step"], **measured})

    def event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "sample" and self._run is not None:
            import wandb

            parts = "".join(f"<pre>{escape(event[part])}</pre>" for part in ("prompt", "text"))
            html = wandb.Html(parts, inject=False)
            self._run.log({"train/step": event["step"], f"sample/{event['number']}": html})
        failed_probe = event["kind"] == "probe" and event.get("passed") is False
        if event["kind"] == "watch":
            self._alert(f"watch.{event['watch']} at step {event['step']}", event["message"])
        elif event["kind"] == "rollback" or failed_probe:
            title = "rollback" if event["kind"] == "rollback" else "probe failed"
            fields = {key: value for key, value in event.items() if key not in ("kind", "time")}
            self._alert(title, ", ".join(f"{key}={value}" for key, value in fields.items()))

    def places(self) -> list[Path]:
        return [] if self._run is None else [Path(self._run.settings.sync_dir)]

    def picture(self, name: str, file: Path, step: int) -> None:
        if self._run is not None:
            import wandb

            self._run.log({"train/step": step, name: wandb.Image(str(file))})

    def close(self, status: str, summary: Mapping[str, Any], table: Sequence[tuple[str, str]]) -> None:
        if self._run is None:
            return
        run = self._run
        try:
            if status != "completed":
                self._alert(f"run {status}", str(summary.get("reason") or status))
            run.summary.update(decision_numbers({"status": status, **summary}))
        finally:
            self._run = None
            run.finish(exit_code=0 if status == "completed" else 1)

    def _alert(self, title: str, text: str) -> None:
        if self._run is not None:
            self._run.alert(title, text, level="WARN", wait_duration=0)


def _settings() -> Settings:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        save_code=False,
        disable_job_creation=True,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
