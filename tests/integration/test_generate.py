"""`python -m atlas.generate` on a run folder."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import atlas
from atlas.checkpoint.manager import CheckpointManager
from atlas.config import ConfigError, RunConfig
from atlas.config.composition import save_config
from atlas.config.errors import CheckpointWarning
from atlas.generate import GenerationSettings, continuation, main, print_stream
from atlas.runs.build import build_model

PROMPT = "the memory learns while it reads, "


@pytest.fixture
def run(tiny: Callable[..., RunConfig], tmp_path: Path) -> Path:
    """A run folder with one checkpoint, of an untrained model that does not repeat its last byte for ever."""
    config, folder = tiny(), tmp_path / "run"
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    model = build_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("out.weight", "down.weight", "rate.bias")):
                parameter.mul_(8 if "rate" not in name else -1)  # write rates of 0.9
    checkpoints = CheckpointManager(folder / "checkpoints", keep=2)
    checkpoints.save(7, {"model": model.state_dict()}, {"loss": 1.0})
    checkpoints.close()
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_printed_bytes_are_the_argmax_of_one_full_pass(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = GenerationSettings(prompt=PROMPT, tokens=40, temperature=0)
    added = b"".join(continuation(str(run), settings))
    assert (len(added), len(set(added)) > 5) == (40, True)
    for folder in (run, run / "checkpoints" / "step-00000007"):
        text = printed(capsys, str(folder), f"prompt={PROMPT}", "tokens=40", "temperature=0")
        assert text.removesuffix("\n") == added.decode(errors="replace").removesuffix("\n")
    model, _ = atlas.load(run)
    with torch.no_grad():
        logits = model(torch.tensor([list(PROMPT.encode() + added)])).logits
    assert bytes(logits[0, len(PROMPT) - 1 : -1].argmax(-1).tolist()) == added


@pytest.mark.slow
def test_every_setting_reaches_the_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text(*settings: str) -> str:
        return printed(capsys, str(run), f"prompt={PROMPT}", "tokens=20", "temperature=1.5", *settings)

    usual = text()
    assert text() == usual
    changes = ["seed=1", "top_k=3", "top_p=0.4", "temperature=3", "memory=off", "memory=frozen", "resets=off"]
    assert {setting for setting in [*changes, "chunk=1"] if text(setting) == usual} == set()
    assert text("lasting=0.99") == usual  # nothing changes within the trained length
    assert text("lasting=0.99", "period=4") != usual
    with pytest.raises(ConfigError, match="period=0: must be given with lasting"):
        atlas.generate(atlas.load(run)[0], PROMPT, lasting=0.5)


def test_half_of_a_surrogate_pair_is_no_prompt() -> None:
    with pytest.raises(ConfigError) as refused:
        GenerationSettings("a\ud800").prompt_bytes()
    told = "must be text that can be encoded; its character 1 cannot (surrogates not allowed)"
    assert str(refused.value) == rf"prompt='a\ud800': {told}"
    assert GenerationSettings("a\udcff").prompt_bytes() == b"a\xff"


def test_a_prompt_from_a_standard_input_that_is_closed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match=r"^prompt_file=-: must be a file: standard input is closed$"):
        GenerationSettings(prompt_file="-").prompt_bytes()


def test_settings_from_python_have_their_type(run: Path) -> None:
    model, _ = atlas.load(run)
    for key, value, allowed in (
        ("seed", None, "an integer"),
        ("tokens", 1.5, "an integer"),
        ("temperature", "1", "a number"),
        ("memory", None, "one of on, off, frozen"),
    ):
        with pytest.raises(ConfigError) as refused:
            atlas.generate(model, PROMPT, **{key: value})
        assert str(refused.value) == f"{key}={value}: must be {allowed}"
    with pytest.raises(ConfigError) as refused:
        atlas.generate(model, Path("prompt.txt"))  # type: ignore[arg-type]
    assert str(refused.value) == "prompt=prompt.txt: must be text or bytes"  # its name was read as the prompt
    assert atlas.generate(model, PROMPT, tokens=2, temperature=0) == atlas.generate(
        model, PROMPT, tokens=np.int64(2), temperature=np.float32(0)
    )


def test_a_prompt_from_a_file_is_the_same_prompt(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT)
    found = [
        printed(capsys, str(run), argument, "tokens=8", "temperature=0")
        for argument in (f"prompt={PROMPT}", f"prompt_file={tmp_path / 'prompt.txt'}")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "prompt=: must be a text that is not empty"),
        (["prompt="], "prompt=: must be a text that is not empty"),
        (["prompt=a", "prompt_file=b"], "prompt_file=b: must be left out where prompt is given"),
        (["prompt_file=nowhere.txt"], "prompt_file=nowhere.txt: must be a file that can be read"),
        (["prompt_file=/dev/zero"], "prompt_file=/dev/zero: must be a file that can be read (not a regular file)\n"),
        (["prompt_file=pipe"], "prompt_file=pipe: must be a file that can be read (not a regular file)\n"),
        (["prompt_file=large.txt"], "prompt_file=large.txt: must be at most 16 MiB\n"),
        (["prompt_file=empty.txt"], "prompt_file=empty.txt: must be a file that is not empty"),
        (["prompt=a", "tokens=0"], "tokens=0: must be in [1, 2**31)"),
        (["prompt=a", f"tokens={10**30}"], f"tokens={10**30}: must be in [1, 2**31)"),
        (["prompt=a", f"tokens={'9' * 5000}"], f"tokens={'9' * 5000}: must be an integer, such as 256"),
        (["prompt=a", "temperature=-0.1"], "temperature=-0.1: must be 0 (the likeliest token) or >= 1e-06"),
        (["prompt=a", "temperature=1e-308"], "temperature=1e-308: must be 0 (the likeliest token) or >= 1e-06"),
        (["prompt=a", "temperature=nan"], "temperature=nan: must be 0 (the likeliest token) or >= 1e-06"),
        (["prompt=a", "top_k=-1"], "top_k=-1: must be in [0, 2**31) (0 = all)"),
        (["prompt=a", f"top_k={10**30}"], f"top_k={10**30}: must be in [0, 2**31) (0 = all)"),
        (["prompt=a", "top_p=0"], "top_p=0.0: must be in (0, 1]"),
        (["prompt=a", "lasting=2"], "lasting=2.0: must be in [0, 1] (0 = all writes last)"),
        (["prompt=a", "period=-1"], "period=-1: must be in [0, 2**31) (0 = the trained length)"),
        (["prompt=a", "period=64"], "period=64: must be left out where lasting=0\n"),
        (["prompt=a", "seed=-1"], "seed=-1: must be in [0, 2**63)"),
        (["prompt=a", "threads=-1"], "threads=-1: must be in [0, 1024] (0 = torch's own choice)"),
        (["prompt=a", "threads=100000"], "threads=100000: must be in [0, 1024] (0 = torch's own choice)"),
        (["prompt=a", "device.threads=100000"], "device.threads=100000: must be in [0, 1024]"),
        (["prompt=a", "--tokens=5"], "--tokens=5: must be written tokens=5: python -m atlas.generate RUN "),
        (["prompt=a", "chunk=4"], "chunk=4: must be one of trained, 1"),
        (["prompt=a", "memory=maybe"], "memory=maybe: must be one of on, off, frozen"),
        (["prompt=a", "temprature=1"], "temprature=1: must be one of the keys prompt, prompt_file, "),
        (["prompt=a", "other"], "RUN="),
    ],
)
def test_a_bad_argument_is_refused(
    settings: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.txt").touch()
    os.truncate(tmp_path / "large.txt", 2**24 + 1)
    assert main([str(tmp_path / "no run"), *settings]) == 2
    found = capsys.readouterr()
    assert found.err.startswith(f"atlas: {message}")
    assert (found.out, found.err.count("\n")) == ("", 1)


def test_a_damaged_checkpoint_is_told_in_a_line_with_the_one_that_is_taken(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From Python it is a warning."""
    before = sorted((run / "checkpoints").glob("step-*"))[-1]
    damaged = before.with_name("step-00009999")
    shutil.copytree(before, damaged)
    reason = "step-00009999 was passed over: manifest.json is of step 7"
    assert main([str(run), "prompt=a", "tokens=1", "device=cpu"]) == 0
    assert capsys.readouterr().err == f"atlas: {reason}; {before.name} is taken instead\n"
    with pytest.warns(CheckpointWarning, match=f"{reason}; {before.name} is taken instead"):
        atlas.load(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "prompt=a"]) == 2
    assert capsys.readouterr().err.startswith(f"atlas: RUN={tmp_path}: must be a run folder")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def bytewise(data: bytes) -> Iterator[bytes]:
    return (bytes([one]) for one in data)


@pytest.mark.parametrize(
    ("stream", "data", "expected"),
    [
        (io.StringIO(), "né\t→\n".encode(), "né\t→\n"),  # whole characters, and no second line break
        (io.StringIO(), b"a\xffb\xc3", "a\ufffdb\ufffd\n"),
        (io.StringIO(), b"\x1b[31mred", "\x1b[31mred\n"),  # a file gets what the model said
        (Terminal(), b"\x1b[31mred\x07\n", "\ufffd[31mred\ufffd\n"),  # a terminal is not steered by it
    ],
)
def test_bytes_are_shown_as_characters(stream: io.StringIO, data: bytes, expected: str) -> None:
    print_stream(bytewise(data), stream)
    assert stream.getvalue() == expected


def test_a_stream_that_takes_ascii_only() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_stream(bytewise("é!".encode()), stream)
    assert raw.getvalue() == b"?!\n"


def test_a_character_is_written_as_soon_as_it_is_whole() -> None:
    stream, seen = io.StringIO(), []

    def pieces() -> Iterator[bytes]:
        for one in "aé".encode() + b"b":
            yield bytes([one])
            seen.append(stream.getvalue())

    print_stream(pieces(), stream)
    assert seen == ["a", "a", "aé", "aéb"]


def test_a_folder_whose_name_looks_like_a_setting(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    run.rename("lr=3")
    Path("sweep").mkdir()
    Path("lr=3").rename("sweep/lr=3")
    assert main(["sweep/lr=3", "prompt=a", "tokens=1"]) == 0
    monkeypatch.chdir("sweep")
    monkeypatch.setenv("HOME", str(run.parent))
    for folder in ("lr=3", "./lr=3", "lr=3/checkpoints/step-00000007", "~/sweep/lr=3"):
        assert main([folder, "prompt=a", "tokens=1"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")]
)
@pytest.mark.parametrize("arguments", [["prompt=a", "tokens=3"], ["--help"]], ids=["text", "help"])
def test_a_stdout_that_takes_nothing_gets_one_line(
    run: Path, redirection: str, reason: str, arguments: list[str]
) -> None:
    line = f"{shlex.join([sys.executable, '-m', 'atlas.generate', str(run), *arguments])} {redirection}"
    ended = subprocess.run(line, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.stderr == f"atlas: stdout: must be open and take what is written ({reason})\n"
    assert ended.returncode == 1


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_it_in_silence(run: Path) -> None:
    command = [sys.executable, "-m", "atlas.generate", str(run), f"prompt={PROMPT}", "tokens=100000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(timeout=60), errors) == (0, b"")
