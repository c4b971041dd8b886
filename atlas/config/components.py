"""Components: the groups `data`, `optim` and `logger`, each a `_target_` with keyword arguments that stand in YAML.

Their keys are those of the target's signature, less the arguments that the run itself hands over.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from difflib import get_close_matches
from functools import cache
from pkgutil import resolve_name
from typing import Any, get_type_hints

from atlas.config import ConfigError
from atlas.config.exits import ExitError, no_exit, place_of
from atlas.config.files import CONF_DIR
from atlas.config.keys import lies_in
from atlas.config.values import check_value

# What `build.py` hands to a component besides its keys in YAML.
HANDED_OVER: Mapping[str, frozenset[str]] = {
    "data": frozenset({"sequence", "batch_size", "seed", "steps", "carry_memory"}),
    "optim": frozenset({"model", "steps"}),
    "logger": frozenset(),
}
_TARGET = re.compile(r"^ *_target_: (\S+)", re.MULTILINE)
_HYDRA_KEYS = frozenset({"_target_", "_args_", "_convert_", "_recursive_", "_partial_"})


def untrusted(key: str, node: Any, trust: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Key and target for each target in `node`, at `key`, that is neither in `conf/` nor in a trusted module.

    Nothing is imported: a run folder or an option file of a stranger is not executed unasked.
    """
    if isinstance(node, Mapping):
        path = node.get("_target_")
        if "_target_" in node and path not in own_targets(key.partition(".")[0]):
            yield from untrusted_names(f"{key}._target_", [path], trust)
        for name, value in node.items():
            yield from untrusted(f"{key}.{name}", value, trust)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from untrusted(key, value, trust)


def untrusted_names(key: str, paths: Sequence[object], trust: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The same of dotted names that are given at `key`."""
    return ((key, str(path)) for path in paths if not (isinstance(path, str) and lies_in(path, trust)))


def refuse_untrusted(found: Iterable[tuple[str, str]]) -> None:
    """Raise one `ConfigError` that names all that `untrusted` found."""
    names = list(dict.fromkeys(found))
    if names:
        given = ", ".join(f"{key}={path}" for key, path in names)
        modules = ",".join(dict.fromkeys(path.rpartition(".")[0] or path for _, path in names))
        what = "a component of atlas, unless it is" if len(names) == 1 else "components of atlas, unless they are"
        raise ConfigError(f"{given}: must be {what} code that you trust to be executed: trust=[{modules}]")


@cache
def own_targets(group: str) -> frozenset[str]:
    """The targets that the options of a group name."""
    files = sorted((CONF_DIR / group).rglob("*.yaml"))
    return frozenset(found[1] for path in files if (found := _TARGET.search(path.read_text(encoding="utf-8"))))


def loggers(settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The loggers of the group by key: what it names itself, and every part of it that names a `_target_`.

    So options that keep to a key of their own stand beside each other: `logger=[wandb,tensorboard]`.
    """
    parts = {name: part for name, part in settings.items() if isinstance(part, Mapping) and "_target_" in part}
    first = {name: value for name, value in settings.items() if name not in parts}
    return ({"logger": first} if first else {}) | {f"logger.{name}": part for name, part in parts.items()}


def check_component(key: str, settings: Mapping[str, Any], handed_over: frozenset[str] = frozenset(), /) -> None:
    """Raise `ConfigError` where `settings`, found at `key`, do not fit the signature of their `_target_`.

    Types and ranges are those of its annotations (`values.py`); a parameter without one takes anything.
    """
    target = named_callable(f"{key}._target_", settings.get("_target_"))
    parameters, kinds = inspect.signature(target).parameters, _annotations(target)
    named = {name for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in settings.items():
        if name in _HYDRA_KEYS:
            continue
        if name in handed_over:
            raise ConfigError(f"{key}.{name}={value}: must be left out, the run sets it")
        if name not in named and not takes_any:
            raise ConfigError(f"{key}.{name}={value}: must be {_one_of(key, name, named - handed_over)}")
        if isinstance(value, Mapping) and "_target_" in value:
            check_component(f"{key}.{name}", value)
        if name in kinds:
            check_value(f"{key}.{name}", value, kinds[name])
    required = {name for name in named if parameters[name].default is inspect.Parameter.empty}
    for name in sorted(required - handed_over - set(settings)):
        raise ConfigError(f"{key}.{name}: must be set, {settings['_target_']} needs it")


def _annotations(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a class's constructor or of a function; {} where they cannot be evaluated."""
    if inspect.isclass(target):
        owner = next(one for one in inspect.getmro(target) if "__init__" in vars(one))
        target = target if "__dataclass_params__" in vars(owner) else vars(owner)["__init__"]
    try:
        return get_type_hints(target, include_extras=True)
    except (NameError, TypeError):  # of a component of the user's: a name that only type checkers import
        return {}


def _one_of(key: str, name: str, known: Set[str]) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {key}.{near[0]}?" if near else ""
    return f"a key of {key}: {', '.join(sorted(known)) or 'it has none'}{hint}"


def named_callable(key: str, path: object) -> Callable[..., Any]:
    """The class or function of this dotted name. Raises `ConfigError` naming `key` where there is none."""
    if not isinstance(path, str):
        raise ConfigError(f"{key}={path}: must be the dotted name of a class or function")
    try:
        with no_exit():
            target = resolve_name(path)
    except (ImportError, AttributeError, ValueError, ExitError) as error:
        raise ConfigError(f"{key}={path}: must be the name of a class or function ({error})") from error
    except Exception as error:  # of code that is executed by the import
        told = f"{type(error).__name__}: {error}"
        told += "" if isinstance(error, SyntaxError) else f" at {place_of(error)}"  # which names its place itself
        raise ConfigError(f"{key}={path}: must be in a module that can be imported ({told})") from error
    if not callable(target):
        raise ConfigError(f"{key}={path}: must be the name of a class or function")
    return target  # type: ignore[no-any-return]


def make(settings: Mapping[str, Any]) -> Any:
    """The object that checked `settings` describe: their `_target_`, called with their other keys."""
    return named_callable("_target_", settings["_target_"])(
        **{k: v for k, v in settings.items() if k not in _HYDRA_KEYS}
    )
