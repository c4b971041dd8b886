"""Checkpoints that somebody else made: whatever they hold, they are passed over with a reason."""

import hashlib
import json
import math
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas.checkpoint.folder import CheckpointError
from atlas.checkpoint.manager import CheckpointManager
from atlas.checkpoint.manifest import _digest, encode, read_manifest
from tests.unit.checkpoint.checkpoints import payload, same, save

DEEP = 100_000


def rewritten(**changes: Any) -> Callable[[Path], None]:
    """The manifest with other content and the digest that belongs to it."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_bytes())
        del content["digest"]
        content = {key: value for key, value in {**content, **changes}.items() if value != "left out"}
        (folder / "manifest.json").write_text(json.dumps({**content, "digest": _digest(content)}), encoding="utf-8")

    return change


def written(text: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "manifest.json").write_bytes(text) and None


MANIFESTS = {
    "an extra key": (rewritten(extra=1), r"manifest\.json is damaged: 'extra' is missing or not a key of it"),
    "a path": (rewritten(path="/etc"), r"manifest\.json is damaged: 'path' is missing or not a key of it"),
    "no step": (rewritten(step="left out"), r"manifest\.json is damaged: 'step' is missing or not a key of it"),
    "another step": (rewritten(step=7), r"manifest\.json is of step 7"),
    "a step that is text": (rewritten(step="20"), r"manifest\.json is damaged: step is '20'"),
    "a negative size": (rewritten(bytes=-1), r"manifest\.json is damaged: bytes is -1"),
    "a size that is huge": (rewritten(bytes=10**30), r"manifest\.json is damaged: bytes is 10{29}"),
    "a size that is true": (rewritten(bytes=True), r"manifest\.json is damaged: bytes is True"),
    "a list as health": (rewritten(health=[1]), r"manifest\.json is damaged: health is \[1\]"),
    "text in health": (rewritten(health={"validation_loss": "low"}), r"manifest\.json is damaged: health is"),
    "NaN in health": (rewritten(health={"validation_loss": math.nan}), r"manifest\.json is damaged: health is"),
    "infinity in health": (rewritten(health={"loss": -math.inf}), r"manifest\.json is damaged: health is"),
    "a huge number in health": (rewritten(health={"validation_loss": 10**400}), r"manifest\.json is damaged: health"),
    "healthy as a number": (rewritten(healthy=1), r"manifest\.json is damaged: healthy is 1"),
    "a hash that is none": (rewritten(config_hash=None), r"manifest\.json is damaged: config_hash is None"),
    "versions in a list": (rewritten(versions=["1"]), r"manifest\.json is damaged: versions is \['1'\]"),
    "a format that is a list": (rewritten(format=[1]), r"manifest\.json has format \[1\], this version reads 1"),
    "escapes": (rewritten(format="\x1b[2J"), r"manifest\.json has format '\\x1b\[2J', this version reads 1"),
    "nested deeply": (written(b"[" * DEEP + b"]" * DEEP), r"manifest\.json is damaged$"),
    "nested deeply inside": (written(b'{"digest":' + b"[" * DEEP + b"]" * DEEP + b"}"), r"manifest\.json is damaged$"),
    "no object": (written(b"7"), r"manifest\.json is damaged$"),
    "too large": (written(b" " * 2**20), r"manifest\.json is damaged$"),
    "a number too long": (written(b'{"step":' + b"9" * 5000 + b"}"), r"manifest\.json is damaged$"),
}


@pytest.mark.parametrize(("change", "reason"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_manifest_of_any_content_is_passed_over_with_a_reason(
    manager: CheckpointManager, root: Path, change: Callable[[Path], None], reason: str
) -> None:
    save(manager, 10, 20)
    change(root / "step-00000020")
    assert same(manager.load()[0], 10)
    assert re.match(reason, manager.skipped[0][1])
    assert [manifest.step for manifest in manager.list()] == [10]


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def as_loop(path: Path) -> None:
    path.symlink_to(path)


def as_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (as_pipe, "not a regular file"),
        (as_device, "not a regular file"),
        (as_folder, "not a regular file"),
        (as_loop, "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_regular_file_is_never_read(
    manager: CheckpointManager, root: Path, name: str, make: Callable[[Path], None], reason: str
) -> None:
    save(manager, 10, 20)
    path = root / "step-00000020" / name
    path.unlink()
    make(path)
    assert same(manager.load()[0], 10)
    assert manager.skipped[0][1] == f"{name} cannot be read: {reason}"


def forge(folder: Path, content: object) -> None:
    """A state file with `content` and a manifest that agrees with it."""
    torch.save(content, folder / "state.pt")
    agree(folder)


def agree(folder: Path) -> None:
    data = (folder / "state.pt").read_bytes()
    forged = replace(read_manifest(folder), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / "manifest.json").write_bytes(encode(forged))


def test_an_archive_that_grows_is_not_unpacked(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10, 20)
    bomb = root / "step-00000020" / "state.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("state/data.pkl", "w") as entry:
        for _ in range(64):
            entry.write(bytes(2**20))
    agree(bomb.parent)
    assert bomb.stat().st_size < 2**17
    assert same(manager.load()[0], 10)
    assert re.fullmatch(r"state\.pt is refused: its [\d,]+ bytes unpack to 67,108,864", manager.skipped[0][1])


def test_entries_that_share_their_bytes_are_not_unpacked(manager: CheckpointManager, root: Path) -> None:
    """A thousand names for the same megabyte, without compression."""
    save(manager, 10, 20)
    bomb = root / "step-00000020" / "state.pt"
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("state/0", bytes(2**20))
        entry = archive.getinfo("state/0")
        archive.filelist += [entry] * 1000
    agree(bomb.parent)
    assert same(manager.load()[0], 10)
    assert "bytes unpack to 1,049,624,576" in manager.skipped[0][1]


def with_weight(weight: torch.Tensor) -> dict[str, Any]:
    return {**payload(20), "model": {"weight": weight}}


def knotted() -> dict[str, Any]:
    """2**60 values, as lists that hold the same list twice."""
    knot: list[Any] = [0, 0]
    for _ in range(60):
        knot = [knot, knot]
    return {**payload(20), "more": knot}


STATES = {
    "NaN": (with_weight(torch.tensor([1.0, math.nan])), "state.pt: the weights weight are not finite"),
    "infinite": (with_weight(torch.tensor([[math.inf]])), "state.pt: the weights weight are not finite"),
    "half": (with_weight(torch.tensor([math.nan]).bfloat16()), "state.pt: the weights weight are not finite"),
    "no model": ({"step": 20}, "state.pt lacks the part model"),
    "a list": ([1], "state.pt holds a list instead of a dict"),
}


@pytest.mark.parametrize(("content", "reason"), STATES.values(), ids=STATES.keys())
def test_a_state_that_cannot_be_continued_is_passed_over(root: Path, content: object, reason: str) -> None:
    with_parts = CheckpointManager(root, keep=2, parts=("model",))
    save(with_parts, 10, 20)
    with_parts.close()
    forge(root / "step-00000020", content)
    assert same(with_parts.load()[0], 10)
    assert with_parts.skipped[0][1] == reason


def test_a_tensor_that_claims_more_than_the_file_is_refused(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10)
    forge(root / "step-00000010", with_weight(torch.zeros(1).expand(2**50)))
    with pytest.raises(CheckpointError, match=r"state\.pt: model\.weight is no tensor of the file's [\d,]+ bytes"):
        manager.load()


def test_lists_that_repeat_each_other_are_looked_at_once(manager: CheckpointManager, root: Path) -> None:
    save(manager, 10)
    forge(root / "step-00000010", knotted())
    assert manager.load()[1].step == 10
