"""What patterns find in a folder as people have them."""

import bz2
import gzip
import lzma
import os
import socket
from pathlib import Path

import pytest

from atlas.config import ConfigError
from atlas.data.corpus import load_corpus
from atlas.data.files import read_files
from atlas.telemetry.run_files import CONFIG_FILE, JOBS_FILE, METRICS_FILE

TEXT = b"a line of text\n" * 9


def found(*patterns: str, encoding: str = "bytes") -> list[bytes]:
    texts, notes = read_files(patterns, encoding)
    assert notes == []
    return list(texts.values())


def refusal(*patterns: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_files(patterns, "bytes")
    return str(caught.value)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("links", [("a", "b"), ("sub/up", "sub/again"), ("sub/a", "b")])
def test_links_that_lead_in_circles_end(links: tuple[str, str], here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "x.txt").write_bytes(TEXT)
    for link in links:
        (here / link).symlink_to(here)
    assert found("**/*.txt") == [TEXT]
    assert found("**/sub/**/*.txt") == [TEXT]


def test_a_folder_behind_a_link_is_read_once_under_its_own_name(here: Path) -> None:
    (here / "z").mkdir()
    (here / "z" / "x.txt").write_bytes(TEXT)
    (here / "a").symlink_to("z")
    assert list(read_files(["**/*.txt"], "bytes")[0]) == [here / "z" / "x.txt"]
    assert found("a/*.txt") == [TEXT]


def test_hidden_names_match_only_hidden_patterns(here: Path) -> None:
    for name in (".hidden/a.txt", ".b.txt", "c.txt"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(name.encode())
    assert found("**/*.txt") == found("**") == [b"c.txt"]
    assert found("**/.*.txt") == [b".b.txt"]
    assert found(".hidden/**") == [b".hidden/a.txt"]


NO_TEXTS = {
    "empty": (b"", "is empty"),
    "a.gz": (gzip.compress(TEXT), "is compressed (gzip)"),
    "a.bz2": (bz2.compress(TEXT), "is compressed (bzip2)"),
    "a.xz": (lzma.compress(TEXT), "is compressed (xz)"),
    "a.zst": (b"\x28\xb5\x2f\xfd" + TEXT, "is compressed (zstd)"),
    "utf16": ("text".encode("utf-16"), "is UTF-16; convert it to UTF-8"),
    "utf16 without a mark": ("text".encode("utf-16-be"), "holds NUL bytes"),
    "utf32": ("text".encode("utf-32-be"), "holds NUL bytes"),
    "nul": (bytes(100), "holds NUL bytes"),
}


@pytest.mark.parametrize("name", NO_TEXTS)
def test_what_is_no_text_is_passed_over_or_refused_by_name(name: str, here: Path) -> None:
    content, fault = NO_TEXTS[name]
    (here / name).write_bytes(content)
    assert refusal("*") == (
        f"data.paths=['*']: must match files of text; all 1 files found are none; the first: '{here / name}' {fault}"
    )
    assert refusal(name) == f"data.paths=['{name}']: must be files of text; '{here / name}' {fault}"
    (here / "zz.txt").write_bytes(TEXT)
    texts, notes = read_files(["*"], "utf8")
    assert list(texts) == [here / "zz.txt"]
    assert notes == [f"data.paths: 1 file passed over, as no text; the first: '{here / name}' {fault}"]


def test_special_files_are_passed_over_unread(here: Path) -> None:
    os.mkfifo(here / "fifo")
    (here / "device").symlink_to("/dev/zero")
    (here / "gone").symlink_to("nowhere")
    (here / "self").symlink_to("self")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        (here / "x.txt").write_bytes(TEXT)
        texts, notes = read_files(["*"], "bytes")
        assert refusal("socket").endswith("/socket' is no regular file")
    assert list(texts.values()) == [TEXT]
    first = f"'{here / 'device'}' is no regular file"
    assert notes == [f"data.paths: 5 files passed over, as no text; the first: {first}"]
    assert refusal("gone").endswith("/gone' is a link to nothing")
    assert refusal("self").endswith("/self' is a link to nothing")
    assert refusal("/dev/zero").endswith("'/dev/zero' is no regular file")


def test_names_that_are_not_utf8_are_read_and_split(here: Path) -> None:
    for number in range(12):
        (here / os.fsdecode(b"\xff%02d.txt" % number)).write_bytes(bytes([65 + number]) * 10)
    corpus = load_corpus(["*.txt"], "bytes", 0.1)
    assert (corpus.files, len(corpus.validation), corpus.notes) == (12, 10, ())


@pytest.mark.parametrize(
    "name", ["a[1].txt", "what?.txt", "*.txt", "[ab]/x.txt", "{a,b}=c d.txt", "~x.txt", "中 ä.txt"]
)
def test_a_name_that_exists_is_no_pattern(name: str, here: Path) -> None:
    (here / "a1.txt").write_bytes(b"another")
    (here / name).parent.mkdir(exist_ok=True)
    (here / name).write_bytes(TEXT)
    assert found(name) == [TEXT]
    assert found(str(here / name)) == [TEXT]
    assert found(name.replace("x.txt", "*.txt")) == [TEXT]


def test_a_folder_is_all_that_is_in_it_and_a_tilde_is_home(here: Path) -> None:
    (here / "docs" / "sub").mkdir(parents=True)
    (here / "docs" / "sub" / "x.md").write_bytes(TEXT)
    assert found("docs") == found("docs/") == found("~/docs") == found("~/docs/**/*.md") == found(".") == [TEXT]
    (here / "empty").mkdir()
    assert refusal("empty").endswith("must be patterns that match files; 'empty' matches none")
    assert refusal("~nobody-of-this-name/x").endswith("'~nobody-of-this-name/x' matches none")


def test_a_pattern_leaves_out_the_reports_of_runs_and_a_name_does_not(here: Path) -> None:
    for name in ("notes/a.md", "runs/one/report/report.md", "sweep/0/report/report.md", "sweep/report/report.md"):
        (here / name).parent.mkdir(parents=True)
        (here / name).write_bytes(name.encode())
    for name in (f"runs/one/{CONFIG_FILE}", f"runs/one/{METRICS_FILE}", f"sweep/{JOBS_FILE}", f"notes/{CONFIG_FILE}"):
        (here / name).write_bytes(TEXT)
    (here / "link").symlink_to("runs/one")
    for pattern in ("**/*.md", "**"):
        assert b"notes/a.md" in found(pattern)
        assert not any(b"report" in text for text in found(pattern))
    assert found("runs/one/report") == found("runs/one/**/*.md") == [b"runs/one/report/report.md"]
    assert refusal("runs/*/*/*.md") == (
        "data.paths=['runs/*/*/*.md']: must be patterns that match files; 'runs/*/*/*.md' matches none outside of the"
        f" folders of runs, such as '{here}/runs/one'"
    )


def test_equal_contents_count_once(here: Path) -> None:
    (here / "a.txt").write_bytes(TEXT)
    (here / "b.txt").symlink_to("a.txt")
    os.link(here / "a.txt", here / "c.txt")
    for number in range(12):
        (here / f"copy{number:02}.txt").write_bytes(TEXT)
    (here / "other.txt").write_bytes(TEXT + b"and more")
    texts, notes = read_files(["*.txt", "b.txt"], "bytes")
    assert list(texts) == [here / "a.txt", here / "other.txt"]
    assert notes == [
        f"data.paths: 14 files left out whose content is read already; the first: '{here / 'b.txt'}' equals"
        f" '{here / 'a.txt'}'"
    ]


def test_bytes_that_are_not_utf8_are_refused_where_asked(here: Path) -> None:
    (here / "a.txt").write_bytes(b"abc\xe4 ")
    with pytest.raises(ConfigError) as caught:
        read_files(["*.txt"], "utf8", "the tokenizer takes nothing else")
    assert str(caught.value) == (
        f"data.paths=['*.txt']: must be UTF-8 files; '{here / 'a.txt'}' is not UTF-8 at byte 3"
        " (the tokenizer takes nothing else)"
    )
    assert found("*.txt") == [b"abc\xe4 "]
