"""Checks of the content of state.pt, before and after it is unpacked: anyone can write a matching manifest."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atlas.checkpoint.manifest import STATE_FILE, UnsoundError

MODEL = "model"  # the part of a payload that holds the weights


def check_sizes(path: Path) -> None:
    """Raise `UnsoundError` for an archive that is larger unpacked than on the disk: torch packs without compression."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UnsoundError(f"{STATE_FILE} is refused: it does not hold plain data only ({error})") from error
    size = path.stat().st_size
    if unpacked > size:
        raise UnsoundError(f"{STATE_FILE} is refused: its {size:,} bytes unpack to {unpacked:,}")


def check_payload(payload: Any, size: int, parts: tuple[str, ...]) -> dict[str, Any]:
    """The payload, if it is one. Raises `UnsoundError` naming what is missing, too large or not finite.

    `size`: of the file, in bytes; a tensor that repeats its values may claim any shape.
    """
    if not isinstance(payload, dict):
        raise UnsoundError(f"{STATE_FILE} holds a {type(payload).__name__} instead of a dict")
    for part in parts:
        if part not in payload:
            raise UnsoundError(f"{STATE_FILE} lacks the part {part}")
    open_items: list[tuple[str, Any]] = [("", payload)]
    seen: set[int] = set()  # a container that occurs several times is checked once
    while open_items:
        place, value = open_items.pop()
        if isinstance(value, Tensor):
            plain = value.layout is torch.strided and value.device.type == "cpu"
            if not plain or value.numel() * value.element_size() > size:
                raise UnsoundError(f"{STATE_FILE}: {place} is no tensor of the file's {size:,} bytes")
            if place.startswith(f"{MODEL}.") and value.is_floating_point() and not bool(value.isfinite().all()):
                raise UnsoundError(f"{STATE_FILE}: the weights {place.removeprefix(f'{MODEL}.')} are not finite")
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            open_items += [(f"{place}.{key}" if place else str(key), item) for key, item in items]
    return payload
