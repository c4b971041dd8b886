import re
from pathlib import Path

import numpy as np
import pytest

from atlas.config import ConfigError
from atlas.data.corpus import COUNTED, frequencies, load_corpus, split_files, stdlib_corpus, validation_files

NAMES = [f"folder/file{number}.txt" for number in range(40)]


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def many(count: int = 20) -> dict[str, bytes]:
    return {f"sub/{number:02d}.txt": bytes([number + 65]) * 100 for number in range(count)}


def test_split_has_no_file_in_both_parts_and_every_file_in_one() -> None:
    files = {name: bytes([number]) * 10 for number, name in enumerate(NAMES)}
    train, validation = split_files(files, 0.1)
    assert len(validation) == 4 * 10
    assert set(train.tolist()) & set(validation.tolist()) == set()
    assert set(train.tolist()) | set(validation.tolist()) == set(range(40))


def test_split_is_pinned() -> None:
    # Change me only if you mean it: validation losses of old runs cannot be compared any more.
    assert sorted(validation_files(NAMES, 0.1)) == [f"folder/file{number}.txt" for number in (0, 22, 25, 3)]


def test_split_depends_on_names_only() -> None:
    assert validation_files(NAMES, 0.25) == validation_files(NAMES[::-1], 0.25)


@pytest.mark.parametrize(("share", "held_out"), [(0.001, 1), (0.999, 39)])
def test_neither_part_is_left_without_a_file(share: float, held_out: int) -> None:
    assert len(validation_files(NAMES, share)) == held_out


def test_few_files_are_split_at_the_tail_of_their_bytes() -> None:
    train, validation = split_files({"b": b"BBBBB", "a": b"AAAAA"}, 0.3)
    assert bytes(train) == b"AAAAABB"
    assert bytes(validation) == b"BBB"


def test_stdlib_is_the_source_text_without_tests() -> None:
    corpus = stdlib_corpus(0.1)
    whole = bytes(corpus.train) + bytes(corpus.validation)
    assert Path(re.__file__).read_bytes() in whole
    assert b"class TestProgram" in whole  # unittest/main.py
    assert b"import test.regrtest" not in whole
    assert 0.02 < len(corpus.validation) / len(whole) < 0.3
    assert b"decoding_table" not in whole  # encodings/
    assert corpus.describe()["train_bytes"] == len(corpus.train)
    assert corpus.warnings == []  # little of validation stands in training
    assert np.array_equal(stdlib_corpus(0.1).validation, corpus.validation)


def test_globs_cross_folders_and_a_file_counts_once(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"aaaa", "x/y/b.txt": b"bbbb", "x/c.md": b"cccc"})
    corpus = load_corpus([f"{tmp_path}/**/*.txt", f"{tmp_path}/a.txt"], "utf8", 0.5)
    assert corpus.files == 2
    assert bytes(corpus.train) + bytes(corpus.validation) == b"aaaabbbb"


@pytest.mark.parametrize(("encoding", "share"), [("utf-8", None), ("utf-16-le", "50.0%")])
def test_validation_text_in_another_encoding_is_told(encoding: str, share: str | None, tmp_path: Path) -> None:
    text = "".join(chr(97 + number) for number in np.random.default_rng(0).integers(0, 26, 40000))
    write(tmp_path, {"a.txt": text.encode() + text[:4000].encode(encoding)})
    size = 4000 if encoding == "utf-8" else 8000
    corpus = load_corpus([f"{tmp_path}/a.txt"], "bytes", size / (40000 + size))
    why = (
        "the two parts differ in language, subject or encoding; the validation loss says little about what was learned"
    )
    told = [f"{share} of the validation ids are less than a tenth as frequent in training: {why}"] if share else []
    assert [line for line in corpus.warnings if "frequent" in line] == told


def test_bytes_that_training_never_has_are_told(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"one line " * 900 + b"one line\n" * 100})
    corpus = load_corpus([f"{tmp_path}/a.txt"], "bytes", 0.1)
    told = (
        "11.1% of the validation bytes never occur in training: the two parts differ in how they were read or cleaned"
    )
    assert told in corpus.warnings
    write(tmp_path, {"b.txt": b"one line\n" * 1000})
    assert load_corpus([f"{tmp_path}/b.txt"], "bytes", 0.1).unseen == 0


def test_ids_are_counted_all_over_a_long_part() -> None:
    part = np.zeros(4 * COUNTED, dtype=np.uint8)
    part[2 * COUNTED :] = 1
    assert frequencies(part, 2).tolist() == [0.5, 0.5]


def test_split_does_not_depend_on_where_the_files_lie(tmp_path: Path) -> None:
    parts = []
    for root in (tmp_path / "one", tmp_path / "two" / "deeper"):
        write(root, many())
        parts.append(bytes(load_corpus([f"{root}/**/*.txt"], "bytes", 0.2).validation))
    assert parts[0] == parts[1]
    assert len(parts[0]) == 4 * 100


def test_a_wildcard_passes_over_folders(tmp_path: Path) -> None:
    write(tmp_path, {"sub/a.txt": b"aaaa"})
    assert load_corpus([f"{tmp_path}/**"], "bytes", 0.5).files == 1


def refusal(paths: object, encoding: str = "bytes", share: float = 0.1) -> str:
    with pytest.raises(ConfigError) as caught:
        load_corpus(paths, encoding, share)  # type: ignore[arg-type]
    return str(caught.value)


def test_refuses_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    pattern = f"{tmp_path}/*.txt"
    assert (
        refusal([pattern]) == f"data.paths=['{pattern}']: must be patterns that match files; '{pattern}' matches none"
    )


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that nobody can read, root included")
def test_refuses_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.txt").symlink_to("/proc/self/mem")
    message = refusal([f"{tmp_path}/*.txt"])
    assert message.startswith("data.paths=")
    assert message.endswith("broken.txt' cannot be read (Input/output error)")


def test_refuses_bytes_that_are_not_utf8_where_asked_to(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"abc\xff\xfe"})
    told = "a.txt' is not UTF-8 at byte 3 (data.encoding=bytes takes text of any encoding)"
    assert told in refusal([f"{tmp_path}/a.txt"], "utf8")
    assert load_corpus([f"{tmp_path}/a.txt"], "bytes", 0.5).files == 1


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (("notes.txt",), "data.paths=notes.txt: must be a list"),
        ((None,), "data.paths=None: must be a list"),
        (([3],), "data.paths=[3]: must be a list"),
        ((["a"], "latin1"), "data.encoding=latin1: must be one of ['bytes', 'utf8']"),
        ((["a"], "utf8", 0.0), "data.validation_share=0.0: must be between 0 and 1"),
        ((["a"], "utf8", 1.0), "data.validation_share=1.0: must be between 0 and 1"),
    ],
)
def test_refuses_bad_settings(arguments: tuple[object, ...], start: str) -> None:
    assert refusal(*arguments).startswith(start)  # type: ignore[arg-type]


def test_refuses_a_part_shorter_than_a_sequence(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"a" * 100})
    corpus = load_corpus([f"{tmp_path}/a.txt"], "bytes", 0.1)
    corpus.require_length(9)
    with pytest.raises(ConfigError, match=r"^data\.paths=.*train\.sequence=10 bytes.* have 90 and 10"):
        corpus.require_length(10)
    with pytest.raises(ConfigError, match=r"^train\.sequence=100000000: must be < "):
        stdlib_corpus(0.1).require_length(100_000_000)
