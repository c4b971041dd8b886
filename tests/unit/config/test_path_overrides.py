"""Paths of any characters on the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from atlas.config import ConfigError
from atlas.config.composition import compose
from atlas.config.path_overrides import readable, shell_example

NAMES = [
    "lr=3/run",
    "a,b",
    "two words",
    "a[1]",
    "{a}",
    "a(1)",
    "it's",
    'say "x"',
    "a#b&c;d!",
    "Läufe/中",
    "~x/y",
    "a\udcffb",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["resume", "init_from", "hydra.run.dir"])
def test_hydra_reads_the_path_that_was_typed(key: str, name: str) -> None:
    (parsed,) = OverridesParser.create().parse_overrides(readable([f"{key}={name}"]))
    assert (parsed.is_sweep_override(), parsed.value()) == (False, name)


def test_what_hydra_reads_as_it_is_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    plain = [
        "resume=auto",
        "resume=null",
        "resume='a,b'",
        'init_from="x y"',
        "hydra.run.dir=a/b-1.2",
        "data.paths=[a,b]",
    ]
    assert readable(plain) == plain
    assert readable(["resume=~/run", "init_from=~"]) == ["resume=/home/me/run", "init_from=/home/me"]
    (parsed,) = OverridesParser.create().parse_overrides(readable(["hydra.run.dir=out/${now:%Y}"]))
    assert parsed.value() == "out/${now:%Y}"


def test_a_run_that_is_continued_can_be_called_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^resume=latest: must be a folder, while there is no run in outputs/runs$"):
        readable(["resume=latest"])
    Path("outputs/runs/first run").mkdir(parents=True)
    Path("outputs/runs/first run/config.yaml").touch()
    named = "'outputs/runs/first run'"
    assert readable(["resume=latest", "init_from=latest"]) == [f"resume={named}", f"init_from={named}"]
    assert readable(["hydra.run.dir=latest"], tell=False) == ["hydra.run.dir=latest"]
    assert capsys.readouterr().err == "atlas: latest is outputs/runs/first run\n" * 2


def test_a_sweep_over_paths_stays_one_unless_the_path_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["-m", "init_from=a,b"]
    assert readable(sweep) == sweep
    assert readable(["-m", "init_from=choice(a,b)"]) == ["-m", "init_from=choice(a,b)"]
    (tmp_path / "a,b").mkdir()
    assert readable(sweep) == ["-m", "init_from='a,b'"]


@pytest.mark.parametrize(
    ("override", "example"),
    [
        ("data.paths=[lr=3/x.txt]", """'data.paths=["lr=3/x.txt"]'"""),
        ("data.paths=[~/x, 'a[1].txt',ä b]", """'data.paths=["~/x","a[1].txt","ä b"]'"""),
        ("logger.project=a,b", """'logger.project="a,b"'"""),
    ],
)
def test_a_refused_value_is_shown_with_the_quotes_that_work(override: str, example: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["data=text", "logger=wandb", override])
    assert str(caught.value).endswith(f"(quote special characters: {example})")
    assert shell_example(override) == example
    compose(["data=text", "logger=wandb", *shlex.split(example)])
