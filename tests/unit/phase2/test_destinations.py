"""Where the decisions are written: looked at before any work, and all or nothing."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atlas.config.atomic import write_together
from experiments.phase2 import gate
from experiments.phase2.decide import main
from tests.unit.phase2.test_committed import DOCUMENT, EVIDENCE
from tests.unit.phase2.test_evidence import WriteSweep, probe_jobs, write_sweep

__all__ = ["write_sweep"]
RECORDED = str(EVIDENCE / "probe_frequency.json")


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file takes more than `size` bytes: what a full disk answers, but for the number of the error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    return printed.err.removeprefix("atlas: ").strip()


def test_a_document_that_cannot_be_written_is_refused_before_any_work(
    write_sweep: WriteSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(probe_jobs(), "niah_frequency")
    (tmp_path / "data").mkdir()
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "data" / "probe_frequency.json").write_bytes(Path(RECORDED).read_bytes())
    (tmp_path / "link.md").symlink_to(tmp_path / "data" / "probe_frequency.json")
    (sweep / "data").touch()
    before = content(tmp_path)
    for document, allowed in (
        (tmp_path, "a file whose name ends in .md"),
        (tmp_path / "folder.md", "a file whose name ends in .md"),
        (tmp_path / "data" / "probe_frequency.json", "a file whose name ends in .md"),
        (tmp_path / "link.md", "a file whose name ends in .md"),
        (sweep / "decision.md", "another file than decision.md"),
        (sweep / "x.md", f"beside a folder data; {sweep / 'data'} is a file"),
        (tmp_path / "nowhere" / "x.md", f"a file in a folder that exists; {tmp_path / 'nowhere'} does not"),
    ):
        assert refusal(capsys, str(sweep), f"document={document}") == f"document={document}: must be {allowed}"
    assert content(tmp_path) == before


def test_a_disk_without_room_is_told_before_any_work_and_nothing_is_lost(
    write_sweep: WriteSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(probe_jobs(), "niah_frequency")
    document, folder = tmp_path / "x.md", tmp_path / "gate"
    assert main([RECORDED, f"document={document}"]) == 0
    capsys.readouterr()
    before = content(tmp_path)
    with no_room(100_000):
        told = "must be where 1 MiB can be written (File too large)"
        assert refusal(capsys, RECORDED, f"document={document}") == f"document={document}: {told}"
        assert refusal(capsys, str(sweep)) == f"SWEEP={sweep}: {told}"
        assert gate.main([f"folder={folder}", "only=G2-3", "device=cpu"]) == 2
        assert capsys.readouterr().err == f"atlas: folder={folder}: {told}\n"
    assert content(tmp_path) == before


def test_evidence_is_replaced_only_with_its_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, data = tmp_path / "x.md", tmp_path / "data"
    data.mkdir()
    (data / "probe_frequency.json").write_text("older evidence", encoding="utf-8")
    (data / "chunk_sizes.json").write_text("{}", encoding="utf-8")  # damaged, and a part of the document
    before = content(tmp_path)
    assert refusal(capsys, RECORDED, f"document={document}").startswith(f"{data / 'chunk_sizes.json'}: must be ")
    assert content(tmp_path) == before
    (data / "chunk_sizes.json").unlink()
    assert main([RECORDED, f"document={document}"]) == 0
    assert content(data) == {"probe_frequency.json": Path(RECORDED).read_bytes()}


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_together({first: "1", second: "2"})
    before = content(tmp_path)
    with no_room(10), pytest.raises(OSError, match="File too large"):
        write_together({first: "3", second: "4" * 20})
    assert content(tmp_path) == before == {"first": b"1", "second": b"2"}


def test_the_committed_document_is_made_again_byte_by_byte(tmp_path: Path) -> None:
    document = tmp_path / DOCUMENT.name
    assert main([*map(str, sorted(EVIDENCE.glob("*.json"))), f"document={document}"]) == 0
    assert document.read_bytes() == DOCUMENT.read_bytes()
    assert content(tmp_path / "data") == content(EVIDENCE)
