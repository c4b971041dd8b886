"""What one benchmark run measures: `key=value` arguments, checked before any work. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import atlas
from atlas.config import ConfigError, RunConfig, require
from atlas.config.composition import options as option_names
from experiments.speed.names import ALL_NAMES, NAME_GRAMMAR

PARTS = ("whole", "contexts", "branch", "decode", "titans")
DEVICES = ("cpu", "cuda")
SHORTEST_CONTEXT = 1024  # tokens
LONGEST_CONTEXT = {"cpu": 16 * 1024, "cuda": 32 * 1024}
QUICK = {"rounds": 2, "parts": ("whole", "branch", "decode"), "contestants": ("transformer", "gd_c16", "gd_set_a")}
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    device: str = "cpu"
    model: str = "small"  # an option of conf/model with a memory
    parts: tuple[str, ...] = PARTS
    contestants: tuple[str, ...] = ()  # () = each part's own
    contexts: tuple[int, ...] = ()  # tokens; () = doubling from 1k, or from the shard, to 16k (CUDA: 32k)
    rounds: int = 5  # timed steps of every contestant; contexts and long steps take fewer
    batch: int = 2  # sequences per step, part whole
    sequence: int = 0  # tokens per sequence, part whole; 0 = what the model is made for
    tokens: int = 0  # per step, part contexts and branch; 0 = the longest context
    threads: int = 0  # 0 = torch's own choice
    compile: bool = False  # blocks by torch.compile, of all contestants
    quick: bool = False  # few rounds, contestants and parts, unless they are named
    folder: Path = HERE  # where the results go

    def __post_init__(self) -> None:
        require(self.device in DEVICES, "device", self.device, f"one of {', '.join(DEVICES)}")
        require(all(part in PARTS for part in self.parts), "parts", _join(self.parts), f"among {', '.join(PARTS)}")
        for name in self.contestants:
            require(name in ALL_NAMES, "contestants", name, NAME_GRAMMAR)
        for key in ("rounds", "batch"):
            require(getattr(self, key) >= 1, key, getattr(self, key), ">= 1")
        for key in ("sequence", "tokens", "threads"):
            require(getattr(self, key) >= 0, key, getattr(self, key), ">= 0")
        require(self.folder.is_dir(), "folder", self.folder, "a folder that exists")
        for context in self.contexts:
            require(
                context >= 1 and self.step_tokens % context == 0,
                "contexts",
                _join(self.contexts),
                f"divisors of tokens={self.step_tokens}, the tokens of a step; {context} is not one",
            )

    @property
    def step_tokens(self) -> int:
        return self.tokens or max(self.contexts)


def parse(arguments: Sequence[str]) -> Options:
    """`key=value` arguments -> options with every length filled in. Raises `ConfigError`."""
    known = {field.name: field for field in fields(Options)}
    given: dict[str, object] = {}
    for argument in arguments:
        key, sign, text = argument.partition("=")
        if not sign or key not in known:
            raise ConfigError(f"{argument}: must be key=value with key one of {', '.join(known)}")
        given[key] = _read(key, text)
    if given.get("quick"):
        given = {**QUICK, **given}
    return Options(**_lengths(given))  # type: ignore[arg-type]


def _read(key: str, text: str) -> object:
    if key in ("parts", "contestants"):
        return tuple(text.split(",")) if text else ()
    if key == "contexts":
        return tuple(_number(key, part) for part in text.split(",")) if text else ()
    if key in ("rounds", "batch", "sequence", "tokens", "threads"):
        return _number(key, text)
    if key in ("quick", "compile"):
        require(text in ("true", "false"), key, text, "true or false")
        return text == "true"
    return Path(text) if key == "folder" else text


def _number(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{key}={text}: must be a whole number") from None


def _lengths(given: dict[str, object]) -> dict[str, object]:
    """Fill in the lengths that depend on the model and the device."""
    model, device = str(given.get("model", Options.model)), str(given.get("device", Options.device))
    config = model_config(model)
    native = config.model.native
    filled = {**given, "sequence": given.get("sequence") or native.sequence}
    if not given.get("contexts"):
        lengths = _doublings(max(SHORTEST_CONTEXT, native.shard), LONGEST_CONTEXT.get(device, 0))
        filled["contexts"] = lengths[:4:3] if given.get("quick") else lengths
    return filled


def _doublings(first: int, last: int) -> tuple[int, ...]:
    lengths = []
    while first <= last:
        lengths.append(first)
        first *= 2
    return tuple(lengths)


def model_config(model: str) -> RunConfig:
    """The configuration of an option of conf/model. Raises `ConfigError` for one without a memory."""
    allowed = [name for name in option_names("model") if name not in ("attention_only", "transformer")]
    require(model in allowed, "model", model, f"one of {', '.join(allowed)}")
    return atlas.compose([f"model={model}", "niah=off", "logger=none", "data=stdlib"])


def _join(values: Sequence[object]) -> str:
    return ",".join(map(str, values))
