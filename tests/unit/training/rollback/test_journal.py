from __future__ import annotations

from pathlib import Path

import pytest

from atlas.training.rollback.journal import JournalEntry, read_journal

ENTRY = JournalEntry(step=20, segment=2, rollbacks=2, skipped=31, lr_scale=0.25, restarted=True)


def test_the_newest_entry_replaces_the_one_before(tmp_path: Path) -> None:
    assert read_journal(tmp_path) is None
    JournalEntry(10, 1, 1, 5, 0.5, False).write(tmp_path)
    ENTRY.write(tmp_path)
    assert read_journal(tmp_path) == ENTRY
    assert [path.name for path in tmp_path.iterdir()] == ["rollback.json"]


@pytest.mark.parametrize("content", ["", "{", '{"step": 1}', "[]", '{"step": 1, "other": 2}'])
def test_a_damaged_journal_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "rollback.json").write_text(content)
    with pytest.raises(ValueError, match=r"."):
        read_journal(tmp_path)
