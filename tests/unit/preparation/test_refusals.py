"""What a preparation refuses: one line that names file and line, or the key, and nothing half-made."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from atlas.data.store_format import STORE_FILE, read_record
from atlas.prepare import main

GOOD = b"".join(b'{"text": "document %d"}\n' % number for number in range(40))
SKIP = "(on_error=skip leaves such text out)"
ZIPPED = gzip.compress(GOOD, mtime=0)


def error(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    assert main([str(one) for one in arguments]) == status
    return capsys.readouterr().err.splitlines()[-1].removeprefix("atlas: ")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", GOOD + b'{"body": "x"}\n', "line 41 has no field 'text'; it has body (field=NAME)"),
        ("a.jsonl", GOOD + b'{"text": null}\n', "line 41 has null for 'text'"),
        ("a.jsonl", GOOD + b'{"text": 3}\n', "line 41 has no text in 'text', but int"),
        ("a.jsonl", GOOD + b'{"text": "\\ud800"}\n', "line 41 has half of a character in 'text', at 0"),
        ("a.jsonl", GOOD + b'\n{"text"}\n', "line 42 is no JSON (Expecting ':' delimiter, column 8)"),
        ("a.jsonl", GOOD + b'{"text": "\xff"}\n', "line 41 is not UTF-8 at byte 10"),
        ("a.jsonl", GOOD + b"[1]\n", "line 41 is no JSON object"),
        ("a.jsonl.gz", ZIPPED[:-12], "is damaged (Compressed file ended before the end-of-stream marker was reached)"),
        ("a.jsonl.gz", GOOD, "is damaged (Not a gzipped file (b'{\"'))"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_read_is_named_with_the_line(
    name: str, content: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / name, tmp_path / "out"
    path.write_bytes(content)
    place = f"{str(path)!r} {reason}"
    told = error(capsys, path, f"out={out}", "workers=1", "validation_share=0.5")
    assert told == f"SOURCE={path}: must be readable; {place} {SKIP}"
    assert sorted(tmp_path.iterdir()) == [path]
    if name == "a.jsonl":
        assert main([str(path), f"out={out}", "workers=1", "validation_share=0.5", "on_error=skip"]) == 0
        record = json.loads((out / STORE_FILE).read_text())
        assert (record["skipped_count"], record["skipped"]) == (1, [place])
        assert sum(split["documents"] for split in record["splits"].values()) == 40


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_row_of_parquet_that_is_not_utf8_is_bytes_or_is_named(
    dictionary: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arrow calls a column a string without a look at its bytes."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    given = [*(b"document %d" % number for number in range(40)), b"caf\xe9"]
    column = arrow.StringArray.from_buffers(41, *arrow.array(given).buffers()[1:])
    parquet.write_table(
        arrow.table({"text": column.dictionary_encode() if dictionary else column}), tmp_path / "a.parquet"
    )
    keys = (tmp_path / "a.parquet", "workers=1", "validation_share=0.5")
    assert main([*map(str, keys), f"out={tmp_path}/bytes"]) == 0
    splits = read_record(tmp_path / "bytes", "out").splits.values()
    assert sum(split.bytes for split in splits) == sum(map(len, given))
    place = f"'{tmp_path}/a.parquet' row 41 is not UTF-8 at byte 3"
    told = error(capsys, *keys, "tokenizer=train:257", f"out={tmp_path}/refused")
    assert told == f"SOURCE={tmp_path}/a.parquet: must be readable; {place} {SKIP}"
    assert main([*map(str, keys), "tokenizer=train:257", "on_error=skip", f"out={tmp_path}/skipped"]) == 0
    assert read_record(tmp_path / "skipped", "out").skipped == [place]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["out="], "out=: must be the folder of the new store, such as out=stores/mine"),
        (["out=/"], "out=/: must be the folder of the new store, such as out=stores/mine"),
        (["validation_share=0"], "validation_share=0.0: must be in (0, 1)"),
        (["validation_share=x"], "validation_share=x: must be a number, such as 0.01"),
        (["tokenizer=train:10"], "tokenizer=train:10: must be train:N with N in [257, 1048576]"),
        (["end_of_document=x"], "end_of_document=x: must be left out: only a tokenizer.json leaves a choice"),
        (["on_error=stop"], "on_error=stop: must be one of refuse, skip"),
        (["workers=-1"], "workers=-1: must be in [0, 1024] (0 = one per core)"),
        (
            ["filed=x"],
            "filed=x: must be one of the keys out, tokenizer, end_of_document, field, format, separator, split,"
            " validation_share, on_error, workers; did you mean field?",
        ),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_used(
    keys: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    assert error(capsys, tmp_path / "a.jsonl", f"out={tmp_path}/out", *keys) == message
    assert not (tmp_path / "out.partial").exists()


def test_sources_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"out={tmp_path}/out"
    usage = "python -m atlas.prepare SOURCE... out=DIR"
    assert error(capsys, out) == f"SOURCE=: must be at least one file, pattern or folder: {usage}"
    told = error(capsys, tmp_path / "*.txt", out)
    assert told == f"SOURCE=['{tmp_path}/*.txt']: must be patterns that match files; '{tmp_path}/*.txt' matches none"
    (tmp_path / "a.txt").write_bytes(b"")
    assert error(capsys, tmp_path / "a.txt", out) == (
        f"SOURCE={tmp_path}/a.txt: must be a file that can be read; '{tmp_path}/a.txt' is empty"
    )
    assert error(capsys, tmp_path / "*.txt", out) == (
        f"SOURCE={tmp_path}/*.txt: must be files of text, JSONL or Parquet; all 1 files found are of no use;"
        f" the first: '{tmp_path}/a.txt' is empty"
    )
    (tmp_path / "b.json").write_bytes(GOOD)
    assert error(capsys, tmp_path / "b.json", out) == (
        f"SOURCE={tmp_path}/b.json: must be given with format=jsonl (an object in each line) or format=text"
    )
    assert error(capsys, "hub:one", out) == "SOURCE=hub:one: must be hub:OWNER/NAME[:SUBSET]"


def test_a_store_in_the_place_of_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(GOOD)
    told = f"out={source}: must be another place than that of the source '{source}'"
    assert error(capsys, source, f"out={source}") == told
    assert source.read_bytes() == GOOD


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"text" + bytes(508), "holds NUL bytes"),  # as in a tar file
        (gzip.compress(b"text"), "is compressed (gzip)"),
        (b"", "is empty"),
    ],
    ids=["binary", "compressed twice", "empty"],
)
@pytest.mark.parametrize("end", ["gz", "zst"])
def test_a_compressed_file_that_is_no_text_is_none(
    end: str, content: bytes, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a.tar.{end}"
    if end == "gz":
        path.write_bytes(gzip.compress(content))
    else:
        arrow = pytest.importorskip("pyarrow")
        with arrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    told = error(capsys, path, f"out={tmp_path}/out", "workers=1")
    assert told == f"SOURCE={path}: must be a file that can be read; {str(path)!r} {fault}"


def test_a_name_of_the_hub_needs_the_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
    assert error(capsys, "hub:owner/name:part", f"out={tmp_path}/out", "workers=1") == (
        "SOURCE=hub:owner/name:part: must be used with the package datasets installed:"
        ' pip install -c constraints.txt -e ".[data]" in a checkout'
    )
    assert list(tmp_path.iterdir()) == []


def test_what_the_hub_does_not_give_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unreachable))
    assert error(capsys, "hub:owner/name", f"out={tmp_path}/out", "workers=1") == (
        "SOURCE=hub:owner/name: must be a data set that the hub gives; it needs a network"
        " (ConnectionError: Couldn't reach the hub)"
    )
    assert list(tmp_path.iterdir()) == []


def test_rows_of_the_hub_become_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def rows(*names: object, **settings: object) -> list[dict[str, str]]:
        asked.append((names, settings))
        return [{"content": f"document {number}"} for number in range(40)]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=rows))
    given = ["hub:owner/name:part", f"out={tmp_path}/out", "workers=1", "validation_share=0.5", "split=test"]
    wanted = "has no column 'text'; it has content (field=NAME)"
    assert wanted in error(capsys, *given)
    assert main([*given, "field=content"]) == 0
    assert asked[-1] == (("owner/name", "part"), {"split": "test", "streaming": True})
    counts = read_record(tmp_path / "out", "out").splits
    assert counts["train"].documents + counts["validation"].documents == 40


def test_an_empty_part_is_told_with_what_would_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"only one")
    assert error(capsys, tmp_path / "a.txt", f"out={tmp_path}/out", "workers=1") == (
        "validation_share=0.01: must be such that training and validation each get a document: none is for validation;"
        " the sources have 1 documents (separator=TEXT cuts a text into more)"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_disk_without_room_is_told_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 500_000)
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 900_000))
    assert error(capsys, tmp_path / "a.txt", f"out={tmp_path}/out", "workers=1") == (
        f"out={tmp_path}/out: must be on a disk with about 0.001 GB free for the store; 0.0009 GB are"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_work_on_many_documents_stays_where_one_part_gets_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(10_000)))
    assert error(capsys, source, f"out={tmp_path}/out", "workers=1", "validation_share=1e-9") == (
        "validation_share=1e-09: must be such that training and validation each get a document: none is for validation;"
        " the sources have 10000 documents (separator=TEXT cuts a text into more);"
        f" the work stays in {tmp_path}/out.partial, to go on with more sources, or to be removed"
    )
    assert len(list((tmp_path / "out.partial/units").glob("*.json"))) == 2


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_the_room_is_for_the_text_and_not_for_what_else_its_source_holds(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 MB of text among other columns: 4 MB of ids."""
    arrow = pytest.importorskip("pyarrow")
    rng = random.Random(0)
    table = {
        "text": [rng.randbytes(500).hex() for _ in range(2000)],
        "more": [rng.randbytes(3000) for _ in range(2000)],
    }
    if kind == "jsonl":
        path = tmp_path / "a.jsonl"
        rows = zip(table["text"], table["more"], strict=True)
        path.write_text("".join(json.dumps({"more": more.hex()[:3000], "text": text}) + "\n" for text, more in rows))
    elif kind == "parquet":
        path = tmp_path / "a.parquet"
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table(table), path, compression="none")
    else:
        path = tmp_path / "saved"
        path.mkdir()
        (path / "dataset_info.json").write_text("{}")
        (path / "state.json").write_text('{"_data_files": [{"filename": "0.arrow"}]}')
        with arrow.ipc.new_stream(str(path / "0.arrow"), arrow.table(table).schema) as stream:
            stream.write_table(arrow.table(table), max_chunksize=1000)
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 3_700_000))
    assert error(capsys, path, f"out={tmp_path}/out", "workers=1") == (
        f"out={tmp_path}/out: must be on a disk with about 0.004 GB free for the store; 0.0037 GB are"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 4_300_000))
    assert main([str(path), f"out={tmp_path}/out", "workers=1"]) == 0
    assert (tmp_path / "out/train.tokens").stat().st_size == pytest.approx(4_000_000, rel=0.02)


def test_a_damaged_store_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    out = tmp_path / "out"
    assert main([str(tmp_path / "a.jsonl"), f"out={out}", "workers=1", "validation_share=0.5"]) == 0
    capsys.readouterr()
    assert main(["--verify", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: all is as it was written\n"
    path = out / "train.tokens"
    good = path.read_bytes()
    path.write_bytes(good[:10] + bytes([good[10] ^ 1]) + good[11:])
    whole = f"--verify={out}: must be a whole store; train.tokens"
    assert error(capsys, "--verify", out) == f"{whole}: its content is not what was written"
    path.write_bytes(good[:-1])
    assert error(capsys, "--verify", out) == f"{whole}: it has {len(good) - 1} of {len(good)} bytes"
    path.unlink()
    assert error(capsys, "--inspect", out) == f"{whole.replace('verify', 'inspect')}: it is missing"
    (out / STORE_FILE).write_text("{}")
    made = "a folder that python -m atlas.prepare has made"
    told = error(capsys, "--inspect", out)
    assert told == f"--inspect={out}: must be {made}; its format is None, this version reads 1"
    assert error(capsys, "--inspect", tmp_path) == (
        f"--inspect={tmp_path}: must be {made} (store.json: No such file or directory)"
    )


def test_inspecting_shows_counts_and_three_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    assert main([str(tmp_path / "a.jsonl"), f"out={tmp_path}/out", "workers=1", "validation_share=0.5"]) == 0
    made = capsys.readouterr().out
    assert main(["--inspect", f"{tmp_path}/out"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(made)
    assert shown.count("document ") >= 6
    assert "tokenizer  bytes, 257 ids (uint16)" in made
    assert "0 documents that equal an earlier one" in made
    assert "\n\ndocument 1 of 22, 11 tokens:\ndocument 1\n\ndocument 12 of 22, 12 tokens:\ndocument 23\n\n" in shown


def test_sources_without_any_text_say_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": ""}\n')
    found = error(capsys, tmp_path / "a.jsonl", f"out={tmp_path / 'out'}", "tokenizer=bytes")
    lost = "2 are empty and 0 could not be read"
    assert found == f"SOURCE={tmp_path / 'a.jsonl'}: must hold at least two documents with text; {lost}"
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_complete_store_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(GOOD)
    command = [str(source), f"out={tmp_path}/out", "workers=1", "validation_share=0.2"]
    assert main(command) == 0
    before = content(tmp_path / "out")
    assert main(command) == 0
    assert f"the store in {tmp_path}/out is complete: nothing is left to do" in capsys.readouterr().err
    other = f"atlas: out={tmp_path}/out: must be a folder that does not exist yet; it holds a store "

    def refused(*changed: str) -> str:
        capsys.readouterr()
        assert main([*command, *changed]) == 2
        return capsys.readouterr().err

    assert refused("validation_share=0.3") == f"{other}with validation_share=0.2, not 0.3\n"
    assert refused("tokenizer=train:300") == f"{other}with tokenizer=bytes, not train:300\n"
    os.utime(source, ns=(0, 0))  # as large as before
    assert refused() == f"{other}of sources with other names, sizes or times\n"
    record = json.loads(before["store.json"])
    del record["settings"]["modified"]  # a store of an earlier version
    (tmp_path / "out/store.json").write_text(json.dumps(record))
    assert main(command) == 0
    source.write_bytes(source.read_bytes() + b"\n")
    os.utime(source, (2**32, 2**32))
    assert refused() == f"{other}of sources with other names, sizes or times: '{source}' is newer than it\n"
    assert content(tmp_path / "out") == {**before, "store.json": json.dumps(record).encode()}
