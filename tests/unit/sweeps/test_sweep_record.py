import json
from pathlib import Path

import pytest

from atlas.config import ConfigError
from atlas.config.keys import override_name
from atlas.sweeps.closing import close_sweep
from atlas.sweeps.sweep_record import Job, SweepRecord, read_record


def record(*jobs: list[str]) -> SweepRecord:
    made = (Job(number, str(number), tuple(overrides), f"key{number}") for number, overrides in enumerate(jobs))
    return SweepRecord(("seed=0,1",), ("hydra/launcher=joblib",), tuple(made))


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = record(["seed=0"], ["seed=1"])
    written.write(tmp_path)
    assert read_record(tmp_path, "sweep.resume") == written


def test_the_closing_table_compares_tokenizers_per_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(["data.path=a"], ["data.path=b"]).write(tmp_path)
    for number, size in enumerate((1.0, 2.0)):
        run = tmp_path / str(number)
        run.mkdir()
        found = {"folder": str(run), "status": "completed", "validation_loss": 4.0, "bytes_per_token": size}
        (run / "summary.json").write_text(json.dumps(found))
    close_sweep(tmp_path, tmp_path, interrupted=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()[:3]] == [
        ["job", "settings", "status", "validation", "nats/byte", "recall", "health"],
        ["0", "data.path=a", "completed", "4.0000", "-", "healthy"],
        ["1", "data.path=b", "completed", "2.0000", "-", "healthy"],
    ]


@pytest.mark.parametrize("content", [None, "torn {", "[]", json.dumps({"task": [], "hydra": [], "jobs": [{"a": 1}]})])
def test_a_folder_without_a_sound_record_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "sweep.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as refusal:
        read_record(tmp_path, "sweep.resume")
    assert str(refusal.value) == f"sweep.resume={tmp_path}: must be the folder of a sweep (with sweep.json)"


def test_a_job_is_named_by_what_differs() -> None:
    sweep = record(["a=1", "b=x", "c=0"], ["a=1", "b=y\\:z", "c=0"], ["a=1", "b=y\\:z"])
    assert [sweep.swept(job) for job in sweep.jobs] == [{"b": "x", "c": "0"}, {"b": "y:z", "c": "0"}, {"b": "y:z"}]


def test_the_only_job_is_named_by_all_it_was_given() -> None:
    sweep = record(["a=1", "b=x"])
    assert sweep.swept(sweep.jobs[0]) == {"a": "1", "b": "x"}


def test_a_job_is_found_by_its_folder() -> None:
    sweep = record(["a=1"], ["a=2"])
    assert sweep.job_in("1").overrides == ("a=2",)


@pytest.mark.parametrize(
    ("override", "name"),
    [("a.b=1", "a.b"), ("+a=1", "a"), ("++a.b=c=d", "a.b"), ("~a", "a"), ("db@x.y=z", "db"), ("hydra/x=y", "hydra/x")],
)
def test_the_name_of_an_override(override: str, name: str) -> None:
    assert override_name(override) == name
