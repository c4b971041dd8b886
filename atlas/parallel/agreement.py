"""What must be the same on every rank: settings and versions, the persistent memory, all weights.

DDP takes over the weights of rank 0 when it is made, and a difference would be hidden; so they are compared before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import nn

from atlas.config import ConfigError
from atlas.parallel.ranks import RankError, Ranks

SHOWN = 12  # characters of a digest in messages


def require_same_settings(ranks: Ranks, settings: Mapping[str, str]) -> None:
    """Raise `ConfigError` on every rank where a rank has other settings than rank 0. `settings`: name -> text."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if len(set(ranks.gather(digest))) == 1:
        return
    first, *others = ranks.gather(dict(settings))
    for rank, theirs in enumerate(others, start=1):
        for key in dict.fromkeys([*first, *theirs]):
            if theirs.get(key) != first.get(key):
                raise ConfigError(
                    f"rank {rank}: {key}={theirs.get(key)} instead of {first.get(key)}: must be as on rank 0"
                )


def require_same_weights(ranks: Ranks, model: nn.Module, when: str) -> None:
    """Raise `RankError` on every rank where the persistent memory, or any weight, of a rank is another than rank 0's.

    `when`: for the message, such as `before step 1`.
    """
    if ranks.world == 1:
        return
    digests = {name: _digest(name, parameter) for name, parameter in sorted(model.state_dict().items())}
    persistent = {name: digest for name, digest in digests.items() if ".persistent." in f".{name}"}
    for what, parts in (("persistent memory", persistent), ("weights", digests)):
        whole = hashlib.sha256("".join(parts.values()).encode()).hexdigest()
        found = ranks.gather(whole)
        other = next((rank for rank, theirs in enumerate(found) if theirs != found[0]), None)
        if other is None:
            continue
        every = ranks.gather(parts)
        name = next(name for name in {**every[0], **every[other]} if every[0].get(name) != every[other].get(name))
        raise RankError(
            f"{what}: must be the same on every rank {when}; rank {other} has {found[other][:SHOWN]}, "
            f"rank 0 {found[0][:SHOWN]} (first at {name})"
        )


def _digest(name: str, tensor: torch.Tensor) -> str:
    """SHA-256 over name, dtype, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    head = f"{name} {plain.dtype} {tuple(plain.shape)}\0".encode()
    return hashlib.sha256(head + plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
