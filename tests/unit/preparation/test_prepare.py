"""A token store is what its sources hold, whatever stopped the command in between."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas.config import ConfigError
from atlas.config.lock import RunLock, is_held
from atlas.data.store import StoreSplit, TokenStore
from atlas.preparation import preparation, sample, units, work, worker
from atlas.preparation.preparation import prepare
from atlas.preparation.settings import OnError, PrepareSettings

WORDS = ("memory", "reads", "what", "the", "gate", "lets", "through", "é", "and", "no\nmore", "👋")


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 40))) for _ in range(count)]


def store(out: Path, *sources: object, **keys: Any) -> TokenStore:
    prepare(PrepareSettings([str(one) for one in sources], out=str(out), **{"workers": 1, **keys}))
    return TokenStore(out, "data.path")


def documents(split: StoreSplit) -> list[list[int]]:
    return [[int(one) for one in split.document(number)] for number in range(len(split.ends))]


def held(made: TokenStore) -> tuple[list[bytes], list[bytes]]:
    """The documents of a store of bytes, training and validation; each must end with the end-of-document id."""
    found = []
    for split in (made.train, made.validation):
        ids = documents(split)
        assert all(one[-1] == 256 and max(one[:-1]) < 256 for one in ids)
        found.append([bytes(one[:-1]) for one in ids])
    return found[0], found[1]


def everything(made: TokenStore) -> list[bytes]:
    train, validation = held(made)
    return sorted(train + validation)


def in_validation(text: bytes, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") < share * 2**64


def jsonl(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"id": 1, "text": line}) + "\n" for line in lines), encoding="utf-8")
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_store_holds_every_document_in_its_order_on_the_side_of_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "SMALLEST_UNIT", 2000)
    given = texts(300)
    made = store(tmp_path / "out", jsonl(tmp_path / "a.jsonl", given), validation_share=0.2)
    train, validation = held(made)
    expected = [text.encode() for text in given]
    assert train == [text for text in expected if not in_validation(text, 0.2)]
    assert validation == [text for text in expected if in_validation(text, 0.2)]
    assert made.record.splits["train"].bytes == sum(map(len, train))
    assert made.record.splits["validation"].documents == len(validation)
    assert made.train.tokens.tolist() == [one for text in train for one in (*text, 256)]


@pytest.mark.parametrize(("share", "missing"), [(0.01, "validation"), (0.99, "train")])
def test_of_a_few_files_one_is_for_the_part_that_would_get_none(tmp_path: Path, share: float, missing: str) -> None:
    """The one whose hash is nearest to the bound, so that its copies follow it."""
    given = [text.encode() for text in texts(9, seed=2)]
    numbers = {text: int.from_bytes(hashlib.sha256(text).digest()[:8], "big") for text in given}
    assert len({in_validation(text, share) for text in given}) == 1
    nearest = (min if missing == "validation" else max)(given, key=numbers.__getitem__)
    for number, text in enumerate([*given, nearest]):
        (tmp_path / f"{number}.txt").write_bytes(text)
    train, validation = held(store(tmp_path / "out", tmp_path / "*.txt", validation_share=share))
    few, many = (validation, train) if missing == "validation" else (train, validation)
    assert few == [nearest, nearest]
    assert many == [text for text in given if text != nearest]


def test_work_that_began_with_fewer_files_begins_anew_where_they_move_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "SMALLEST_UNIT", 64)
    given = sorted((text.encode() for text in texts(9, seed=2)), key=lambda text: hashlib.sha256(text).digest())
    for number, text in enumerate(given[1:]):
        (tmp_path / f"{number}.txt").write_bytes(text)
    stopped(monkeypatch, 24, tmp_path / "out", tmp_path / "*.txt")
    (tmp_path / "9.txt").write_bytes(given[0])
    train, validation = held(store(tmp_path / "out", tmp_path / "*.txt"))
    assert (train, validation) == (given[1:], [given[0]])


def test_text_is_a_document_a_file_or_cut_at_a_separator(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo \xff\n\n\n\nthree")
    (tmp_path / "b.md").write_bytes(b"four")
    (tmp_path / "c.bin").write_bytes(b"\0\1")
    (tmp_path / "d.txt").write_bytes(b"")
    whole = store(tmp_path / "out", tmp_path / "*.*", validation_share=0.5)
    assert everything(whole) == [b"four", b"one\n\ntwo \xff\n\n\n\nthree"]
    cut = store(tmp_path / "cut", tmp_path / "*.txt", separator="\\n\\n", validation_share=0.5)
    assert everything(cut) == [b"one", b"three", b"two \xff"]
    assert cut.record.empty == 1


def test_a_separator_across_two_reads_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas.preparation import readers

    monkeypatch.setattr(readers, "PIECE_BYTES", 7)
    given = [text.replace("\n", " ") for text in texts(40)]
    (tmp_path / "a.txt").write_text("<|end|>".join(given), encoding="utf-8")
    made = store(tmp_path / "out", tmp_path / "a.txt", separator="<|end|>", validation_share=0.5)
    assert everything(made) == sorted(text.encode() for text in given)


def test_every_kind_of_file_holds_the_same_documents(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    given = texts(50)
    plain = jsonl(tmp_path / "a.jsonl", given)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with arrow.CompressedOutputStream(str(tmp_path / "c.jsonl.zst"), "zstd") as file:
        file.write(plain.read_bytes())
    table = arrow.table({"id": list(range(50)), "text": given})
    parquet.write_table(table, tmp_path / "d.parquet", row_group_size=7)
    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    (saved.parent / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (saved / "dataset_info.json").write_text("{}")
    (saved / "state.json").write_text('{"_data_files": [{"filename": "e-0.arrow"}, {"filename": "e-1.arrow"}]}')
    for index, part in enumerate((table.slice(0, 20), table.slice(20))):
        with arrow.ipc.new_stream(str(saved / f"e-{index}.arrow"), table.schema) as stream:
            stream.write_table(part, max_chunksize=9)
    sources = (plain, tmp_path / "b.jsonl.gz", tmp_path / "c.jsonl.zst", tmp_path / "d.parquet", saved.parent, saved)
    wanted = held(store(tmp_path / "wanted", plain, validation_share=0.3))
    for index, source in enumerate(sources):
        assert held(store(tmp_path / f"out{index}", source, validation_share=0.3)) == wanted


def test_copies_are_counted_and_stand_on_one_side(tmp_path: Path) -> None:
    given = texts(60)
    made = store(tmp_path / "out", jsonl(tmp_path / "a.jsonl", given + given[:20] + given[:20]), validation_share=0.5)
    train, validation = held(made)
    assert made.record.duplicates == 100 - len(set(given))
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == 100


def test_a_validation_document_inside_of_a_training_one_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    given = ["".join(map(chr, rng.integers(97, 123, 600))) for _ in range(60)]
    clean = store(tmp_path / "clean", jsonl(tmp_path / "a.jsonl", given), validation_share=0.2)
    assert clean.record.validation_in_training == 0
    validation = held(clean)[1]
    copied = next(
        text
        for text in (f"{number}{validation[0].decode()}" for number in range(100))
        if not in_validation(text.encode(), 0.2)
    )
    leaky = store(tmp_path / "leaky", jsonl(tmp_path / "b.jsonl", [*given, copied]), validation_share=0.2)
    assert held(leaky)[1] == validation
    blocks = sum(len(text) + 1 for text in validation) - 127
    assert leaky.record.validation_in_training == pytest.approx((600 - 127) / blocks, abs=2 / blocks)


class Killed(BaseException):
    pass


def stopped(monkeypatch: pytest.MonkeyPatch, writes: int, out: Path, source: Path, **keys: Any) -> None:
    """The process ends after so many writes of files, wherever that is."""
    left = [writes]

    def write(genuine: Callable[..., None], *arguments: Any, **further: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        genuine(*arguments, **further)

    with monkeypatch.context() as patch:
        for place, name in ((worker, "write_atomically"), (preparation, "write_atomically"), (work, "_append")):
            patch.setattr(place, name, partial(write, getattr(place, name)))
        with pytest.raises(Killed):
            store(out, source, **keys)


def test_a_store_that_was_stopped_at_any_write_is_bytewise_the_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "SMALLEST_UNIT", 3000)
    source = jsonl(tmp_path / "a.jsonl", texts(120))
    wanted = content(store(tmp_path / "wanted", source, validation_share=0.2).folder)
    for calls in range(8):
        stopped(monkeypatch, calls, tmp_path / "out", source, validation_share=0.2)
        assert not (tmp_path / "out").exists()
    assert content(store(tmp_path / "out", source, validation_share=0.2).folder) == wanted
    assert not (tmp_path / "out.partial").exists()


def test_finished_units_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "SMALLEST_UNIT", 3000)
    source = jsonl(tmp_path / "a.jsonl", texts(120))
    stopped(monkeypatch, 24, tmp_path / "out", source, validation_share=0.2)
    finished = sorted((tmp_path / "out.partial/units").glob("*.json"))
    times = [path.stat().st_mtime_ns for path in finished]
    assert len(finished) == 4
    stopped(monkeypatch, 3, tmp_path / "out", source, validation_share=0.2)
    assert [path.stat().st_mtime_ns for path in finished] == times


def test_a_unit_that_a_power_cut_kept_from_the_disk_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "SMALLEST_UNIT", 3000)
    source = jsonl(tmp_path / "a.jsonl", texts(120))
    wanted = content(store(tmp_path / "wanted", source, validation_share=0.2).folder)
    stopped(monkeypatch, 24, tmp_path / "out", source, validation_share=0.2)
    made = tmp_path / "out.partial"
    part = made / "units/00001.part"
    part.write_bytes(bytes(part.stat().st_size))
    (made / "units/00002.hashes").write_bytes(b"")
    os.truncate(made / "store/train.tokens", 10)
    assert content(store(tmp_path / "out", source, validation_share=0.2).folder) == wanted


@pytest.mark.parametrize("lost", ["00001.hashes", "00001.json"])
@pytest.mark.parametrize("left", [0, 1])
def test_a_unit_that_a_power_cut_kept_from_the_disk_after_the_store_took_it_is_made_again(
    left: int, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then its part is removed, and those of the units behind it. The file is empty, or has its length in zeros."""
    monkeypatch.setattr(units, "SMALLEST_UNIT", 3000)
    monkeypatch.setattr(work, "SYNC_BYTES", 1)
    source = jsonl(tmp_path / "a.jsonl", texts(120))
    wanted = content(store(tmp_path / "wanted", source, validation_share=0.2).folder)
    stopped(monkeypatch, 28, tmp_path / "out", source, validation_share=0.2)
    made = tmp_path / "out.partial/units"
    assert not list(made.glob("*.part"))
    assert (made / "00002.json").exists()
    (made / lost).write_bytes(bytes(left * (made / lost).stat().st_size))
    assert content(store(tmp_path / "out", source, validation_share=0.2).folder) == wanted


def test_a_store_that_another_process_has_made_in_the_meantime_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets its name, and the work is removed, after this process has looked and before it locks the folder."""
    source, out = jsonl(tmp_path / "a.jsonl", texts(40)), tmp_path / "out"

    def lock(root: Path) -> RunLock:
        monkeypatch.undo()
        store(out, source, validation_share=0.2)
        monkeypatch.setattr(preparation, "Worker", None)  # no unit is begun
        root.mkdir()
        return RunLock(root)

    monkeypatch.setattr(preparation, "RunLock", lock)
    settings = PrepareSettings([str(source)], out=str(out), workers=1, validation_share=0.2)
    assert prepare(settings)[1] == [f"the store in {out} is complete: nothing is left to do"]
    assert sorted(tmp_path.iterdir()) == [source, out]


def test_the_work_is_removed_under_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def remove(root: Path) -> None:
        held.append(is_held(root))

    monkeypatch.setattr(preparation, "remove_work", remove)
    store(tmp_path / "out", jsonl(tmp_path / "a.jsonl", texts(40)), validation_share=0.2)
    assert held == [True]


def test_a_pattern_that_finds_the_store_itself_does_not_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonl(tmp_path / "a.jsonl", texts(120))
    wanted = content(store(tmp_path / "wanted", tmp_path / "a.jsonl", validation_share=0.2).folder)
    del wanted["store.json"]  # which has the pattern
    (tmp_path / "text").mkdir()
    (tmp_path / "a.jsonl").rename(tmp_path / "text/a.jsonl")
    stopped(monkeypatch, 2, tmp_path / "text/out", tmp_path / "text", validation_share=0.2)
    made = content(store(tmp_path / "text/out", tmp_path / "text", validation_share=0.2).folder)
    assert {name: made[name] for name in wanted} == wanted


def test_a_source_that_changed_is_read_again_and_those_before_it_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "SMALLEST_UNIT", 3000)
    for index in range(3):
        jsonl(tmp_path / f"{index}.jsonl", texts(60, index))
    (tmp_path / "2.jsonl").write_text('{"text": broken\n')
    with pytest.raises(ConfigError) as refusal:
        store(tmp_path / "out", tmp_path / "*.jsonl", validation_share=0.2)
    assert str(refusal.value) == (
        f"SOURCE={tmp_path}/2.jsonl: must be readable; '{tmp_path}/2.jsonl' line 1 is no JSON"
        " (Expecting value, column 10) (on_error=skip leaves such text out)"
    )
    jsonl(tmp_path / "2.jsonl", texts(60, 2))
    made = store(tmp_path / "out", tmp_path / "*.jsonl", validation_share=0.2)
    assert content(made.folder) == content(store(tmp_path / "new", tmp_path / "*.jsonl", validation_share=0.2).folder)


@pytest.mark.parametrize("writes", [28, 1000])
def test_documents_that_a_killed_start_left_out_are_refused_where_that_is_asked_for(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a complete store."""
    monkeypatch.setattr(units, "SMALLEST_UNIT", 3000)
    monkeypatch.setattr(sample, "ESTIMATE_BYTES", 1000)
    source = jsonl(tmp_path / "a.jsonl", texts(120))
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    source.write_text("".join([*lines[:20], "{broken\n", *lines[20:]]), encoding="utf-8")
    keys = {"validation_share": 0.2, "on_error": OnError.skip}
    if writes < 1000:
        stopped(monkeypatch, writes, tmp_path / "out", source, **keys)
        assert (tmp_path / "out.partial/units/00002.json").exists()
        told = f"SOURCE: must be readable; '{source}' line 21 is no JSON"
    else:
        store(tmp_path / "out", source, **keys)
        free = "a folder that does not exist yet"
        told = f"out={tmp_path}/out: must be {free}; it holds a store without 1 documents that on_error=skip left out"
    with pytest.raises(ConfigError) as refusal:
        store(tmp_path / "out", source, validation_share=0.2)
    assert str(refusal.value).startswith(told)
    wanted = content(store(tmp_path / "wanted", source, **keys).folder)
    assert content(store(tmp_path / "out", source, **keys).folder) == wanted


def test_a_source_that_breaks_off_is_left_out_once_however_often_the_work_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.jsonl.gz"
    source.write_bytes(gzip.compress(jsonl(tmp_path / "a.jsonl", texts(200)).read_bytes())[:-100])
    keys = {"validation_share": 0.2, "on_error": OnError.skip}

    def killed(*_: Any) -> None:
        raise Killed

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(preparation, "_finish", killed)
            with pytest.raises(Killed):
                store(tmp_path / "out", source, **keys)
    made = store(tmp_path / "out", source, **keys)
    assert made.record.skipped_count == len(made.record.skipped) == 1
    assert content(made.folder) == content(store(tmp_path / "wanted", source, **keys).folder)


def test_unfinished_work_with_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = jsonl(tmp_path / "a.jsonl", texts(20))
    stopped(monkeypatch, 0, tmp_path / "out", source)
    with pytest.raises(ConfigError) as refusal:
        store(tmp_path / "out", source, validation_share=0.3)
    assert str(refusal.value) == (
        f"validation_share=0.3: must be 0.01, with which the unfinished work in {tmp_path}/out.partial began;"
        " or remove that folder"
    )
