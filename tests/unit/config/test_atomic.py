from __future__ import annotations

from pathlib import Path

import pytest

from atlas.config.atomic import write_atomically


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.json"
    for content in ("long é\n", b"short"):
        write_atomically(path, content, durable=durable)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_where_the_file_cannot_be_replaced_the_old_one_stays_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()  # a folder in its place
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "a.json", "new")
    assert [(each.name, each.is_dir()) for each in tmp_path.iterdir()] == [("a.json", True)]
