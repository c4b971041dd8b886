"""The tensors of a checkpoint of layout `sharded`: a folder that torch.distributed.checkpoint (DCP) writes.

    tensors/__<rank>_0.distcp    what this rank has: its slices, or its share of what all ranks have
    tensors/.metadata            where the parts of each tensor lie

DCP's metadata is a pickle, and nothing in a run folder may be executed. So it is read by an unpickler that knows the
plain classes of DCP only, and the files that it names must be those of the manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atlas.checkpoint.manifest import STATE_FILE, TENSORS, UnsoundError
from atlas.config.untrusted import open_regular

PARTS = ("model", "optimizer", "average")  # of a payload: tensors in these lie in the folder, all else in state.pt
METADATA = ".metadata"
_METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}


def take_apart(payload: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A payload with None for the tensors that lie in the folder, and these by their place (JSON)."""
    tensors: dict[str, Tensor] = {}

    def without(value: Any, place: tuple[str | int, ...]) -> Any:
        if isinstance(value, dict):
            return {key: without(item, (*place, key)) for key, item in value.items()}
        if type(value) is list:
            return [without(item, (*place, index)) for index, item in enumerate(value)]
        if isinstance(value, Tensor) and value.dim() > 0:
            tensors[json.dumps(place)] = value.detach()
            return None
        return value

    plain = {key: without(value, (key,)) if key in PARTS else value for key, value in payload.items()}
    return plain, tensors


def put_together(plain: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The payload again. Raises `UnsoundError` for a place that it does not have."""
    for text, tensor in tensors.items():
        try:
            *place, last = json.loads(text)
            owner: Any = plain
            for key in place:
                owner = owner[key]
            free = owner[last] is None
            owner[last] = tensor
        except (LookupError, TypeError, ValueError, RecursionError):
            free = False
        if not free:
            raise UnsoundError(
                f"{TENSORS}/{METADATA} names a tensor at {text!r:.60}, which {STATE_FILE} has no place for"
            )
    return plain


def hashes(folder: Path, rank: int, *, first: bool) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of the files that a rank has written there; rank 0 also of the metadata."""
    mine = [*sorted(folder.glob(f"__{rank}_*")), *([folder / METADATA] if first else [])]
    found = {}
    for path in mine:
        with open_regular(path) as stream:
            found[path.name] = (path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())
    return found


def read_tensors(folder: Path, files: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors whole, on the CPU, by this process alone. `files`: of the manifest, verified.

    Raises `UnsoundError` for a folder that is not one of tensors.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # imported late: they take a second
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    class Reader(FileSystemReader):
        def read_metadata(self, *_: Any, **__: Any) -> Any:
            return metadata

    try:
        metadata = _Plain(io.BytesIO((folder / METADATA).read_bytes())).load()
        places = {info.relative_path for info in metadata.storage_data.values()}
        extended = any(info.transform_descriptors for info in metadata.storage_data.values())
        sizes = {
            name: (tuple(map(int, one.size)), one.properties.dtype)
            for name, one in metadata.state_dict_metadata.items()
        }
    except Exception as error:  # the bytes are verified, so they hold something else
        raise UnsoundError(f"{TENSORS}/{METADATA} is refused: it does not describe tensors only ({error})") from error
    if extended or not places <= files.keys():
        raise UnsoundError(f"{TENSORS}/{METADATA} is refused: it names files that are not of the checkpoint")
    there = sum(size for size, _ in files.values())
    needed = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in sizes.values())
    if needed > there:
        raise UnsoundError(f"{TENSORS}/{METADATA} is refused: {needed:,} bytes of tensors in files of {there:,}")
    found = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in sizes.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is wanted
            load(found, storage_reader=Reader(folder), no_dist=True)
    except (Exception, CheckpointException) as error:
        raise UnsoundError(f"{TENSORS} cannot be read: {type(error).__name__}") from error
    return found


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if name in _METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")
