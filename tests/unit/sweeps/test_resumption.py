from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from atlas.config import ConfigError
from atlas.config.path_overrides import quoted
from atlas.sweeps.resumption import full_command
from atlas.sweeps.sweep_record import Job, SweepRecord

TASK = ("seed=0,1", "logger=wandb", "logger.mode=offline", "train.steps=5")
HYDRA = ("hydra.sweep.dir=elsewhere", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.mode=MULTIRUN")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    jobs = tuple(Job(n, str(n), (f"seed={n}", *TASK[1:]), "key") for n in (0, 1))
    SweepRecord(TASK, HYDRA, jobs).write(tmp_path)
    return tmp_path


def places(sweep: Path) -> list[str]:
    return [f"hydra.sweep.dir='{sweep}'", f"sweep.resume='{sweep}'"]


def test_latest_is_the_newest_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^sweep.resume=latest: must be a folder, while there is no sweep in"):
        full_command(["sweep.resume=latest"])
    newest = Path("outputs/sweeps/b")
    newest.mkdir(parents=True)
    SweepRecord(TASK, HYDRA, ()).write(newest)
    assert full_command(["sweep.resume=latest"])[-2:] == places(newest)


def test_a_command_without_resume_stays_as_it_is() -> None:
    assert full_command(["-m", "seed=0,1"]) == ["-m", "seed=0,1"]
    assert full_command(["sweep.resume=null"]) == ["sweep.resume=null"]


def test_the_recorded_command_is_repeated(sweep: Path) -> None:
    expected = ["--multirun", *TASK, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *places(sweep)]
    assert full_command([f"sweep.resume={sweep}"]) == expected
    assert full_command([f"sweep.resume={sweep}", "train.steps=5"]) == expected
    assert full_command(["-m", f"sweep.resume='{sweep}'"]) == ["-m", *expected[1:]]


def test_a_search_goes_on_with_more_trials(tmp_path: Path) -> None:
    hydra = ("hydra/sweeper=optuna", "hydra.sweeper.trials=2", "hydra.sweeper.metric=niah/recall/accuracy")
    SweepRecord(("optim.lr=tag(log,interval(1e-4,1e-2))",), hydra, ()).write(tmp_path)
    kept = ["optim.lr=tag(log,interval(1e-4,1e-2))", hydra[0], hydra[2], "hydra.sweeper.trials=4", *places(tmp_path)]
    assert full_command(["-m", f"sweep.resume={tmp_path}", "hydra.sweeper.trials=4"]) == ["-m", *kept]
    with pytest.raises(ConfigError, match=r"^hydra.sweeper.metric=loss: must be left out, or as in "):
        full_command(["-m", f"sweep.resume={tmp_path}", "hydra.sweeper.metric=loss"])


def test_a_change_replaces_what_it_settles(sweep: Path) -> None:
    changed = full_command(["-m", f"sweep.resume={sweep}", "logger=none", "hydra/launcher=basic"])
    assert changed == ["-m", "seed=0,1", "train.steps=5", "logger=none", "hydra/launcher=basic", *places(sweep)]
    more = full_command(["-m", f"sweep.resume={sweep}", "hydra.launcher.n_jobs=3"])
    assert more == ["-m", *TASK, "hydra/launcher=joblib", "hydra.launcher.n_jobs=3", *places(sweep)]


@pytest.mark.parametrize("override", ["seed=2", "train.steps=6", "sweep.round=1", "resume=auto", "hydra.sweep.dir=x"])
def test_what_would_make_it_another_sweep_is_refused(override: str, sweep: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{override}: must be left out"):
        full_command(["-m", f"sweep.resume={sweep}", override])


@pytest.mark.parametrize("text", ["plain", "with space", "a,b", "it's", "{brace}", "back\\slash", "a=b", "end\\'quote"])
def test_hydra_reads_a_quoted_value_back(text: str) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([f"key={quoted(text)}"])
    assert parsed.value() == text


@pytest.mark.parametrize("swept", ["seed='0,1'", 'model="tiny,small"', "optim.lr=0.1"])
def test_what_an_experiment_sweeps_by_itself_is_repeated(swept: str, tmp_path: Path) -> None:
    override = f"+hydra.sweeper.params.{swept}"
    SweepRecord((), (override,), (Job(0, "0", ("seed=0",), "key"),)).write(tmp_path)
    assert full_command([f"sweep.resume={tmp_path}"]) == ["--multirun", override, *places(tmp_path)]


@pytest.mark.parametrize("swept", ["trust='[evil]'", "model='../evil'", "hydra.launcher._target_=evil", "a='\\.\\./b'"])
def test_what_a_strangers_experiment_would_slip_in_is_refused(swept: str, tmp_path: Path) -> None:
    override = f"+hydra.sweeper.params.{swept}"
    SweepRecord((), (override,), (Job(0, "0", ("seed=0",), "key"),)).write(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        full_command([f"sweep.resume={tmp_path}"])
    allowed = f"repeated on the command line, since it may execute code, or taken out of {tmp_path / 'sweep.json'}"
    assert str(refusal.value) == f"{override}: must be {allowed}"
