"""Composition: every option works, every bad value is refused in one line that names key, value and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import atlas
from atlas.config import C_G, C_L_OPTIONS, PERSISTENT_KEYS, S_L, ConfigError, DeviceKind, K
from atlas.config.composition import GROUPS, load_config, options, save_config
from atlas.config.files import CONF_DIR
from atlas.config.refusals import flags_first, refuse_flags

EVERY_OPTION = [(group, option) for group in GROUPS for option in options(group)]


def refusal(*overrides: str) -> str:
    with pytest.raises(atlas.ConfigError) as error:
        atlas.compose(list(overrides))
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("group", "option"), EVERY_OPTION, ids=lambda value: str(value))
def test_every_option_composes_and_is_saved_and_loaded(group: str, option: str, tmp_path: Path) -> None:
    config = atlas.compose([f"{group}={option}"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_a_run_from_before_a_setting_keeps_what_it_was_trained_with(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(atlas.compose([]), path)
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"\n *(curvature_max(_local)?|gate_sharpness_max): .*", "", text), encoding="utf-8")
    model = load_config(path).model
    assert (model.memory.curvature_max, model.memory.curvature_max_local, model.gate_sharpness_max) == (0, 0, 0)
    path.write_text(text, encoding="utf-8")
    model = load_config(path).model
    assert (model.memory.curvature_max, model.memory.curvature_max_local, model.gate_sharpness_max) == (2, 2, 30)


LOCAL = {
    "baseline": [8],
    "c8": [8],
    "c16": [16],
    "c32": [32],
    "c64": [64],
    "set_a": [8, 16, 32, 64],
    "set_b": [16, 32, 64, 128],
    "set_c": [8, 32, 64],
}
# Only the lengths of a model decide: the shortest and the longest model meet every option.
FITS = [(model, option) for model in ("tiny", "atlas_60m") for option in options("chunk_size")]
OTHERS = sorted({*options("model")} - {"tiny", "atlas_60m"})
FITS += [(model, option) for model in OTHERS for option in ("baseline", "set_b")]


@pytest.mark.parametrize(("model", "chunk_size"), FITS)
def test_every_chunk_option_fits_every_model(model: str, chunk_size: str) -> None:
    config = atlas.compose([f"model={model}", f"chunk_size={chunk_size}"])
    native = config.model.native
    assert config.chunk_size.local == LOCAL[chunk_size]
    assert (config.train.sequence, config.chunk_size.shard, config.chunk_size.global_size) == (
        native.sequence,
        native.sequence if chunk_size == "baseline" else native.shard,
        native.global_size,
    )


@pytest.mark.parametrize("model", options("model"))
@pytest.mark.parametrize("niah", ["default", "thorough"])
def test_probes_ask_for_needles_at_several_depths_beyond_attention(model: str, niah: str) -> None:
    """With one such depth recall is not measured (probes/recall.py)."""
    config = atlas.compose([f"model={model}", f"niah={niah}"])
    reach, slot = config.model.layers * (config.model.window - 1), 8
    distances = [(1 - depth) * config.train.sequence - slot for depth in config.niah.depths]
    assert sum(distance > reach for distance in distances) >= (3 if niah == "default" else 2)


def test_options_of_the_groups_that_scripts_rely_on() -> None:
    assert options("chunk_size") == ["baseline", "c8", "c16", "c32", "c64", "set_a", "set_b", "set_c"]
    assert {"default", "quick", "thorough", "off"} <= set(options("niah"))
    assert {"default", "observe", "off"} <= set(options("rollback"))
    assert options("device") == ["auto", "cpu", "cuda"]
    assert {"tiny", "small", "atlas_60m", "attention_only", "transformer"} <= set(options("model"))
    assert {"blend", "mixed", "mixed_tokens", "recall", "stdlib", "text", "tokens"} <= set(options("data"))


def test_the_baseline_is_one_memory_in_sequence_whatever_the_context() -> None:
    config = atlas.compose(["chunk_size=baseline", "train.sequence=1000"])
    assert (config.chunk_size.local, config.chunk_size.shard) == ([8], 1000)
    assert (config.model.memory.use_global, config.model.memory.qk_projection.range.value) == (False, "off")


def test_constants_of_the_papers() -> None:
    full = atlas.compose(["model=atlas_60m"])
    assert (C_G, S_L, C_L_OPTIONS, K, PERSISTENT_KEYS) == (2048, 2048, (8, 16, 32, 64), 5, 64)
    assert (full.model.width, full.model.window) == (768, 512)
    assert (full.chunk_size.global_size, full.chunk_size.shard) == (C_G, S_L)


def test_overrides_reach_the_configuration() -> None:
    config = atlas.compose(["niah.every=1000", "device=cpu", "optim.lr=1e-4", "chunk_size.local=[8,32]", "seed=7"])
    assert (config.niah.every, config.device.kind, config.optim["lr"]) == (1000, DeviceKind.cpu, 1e-4)
    assert (config.chunk_size.local, config.seed) == ([8, 32], 7)


def test_experiment_files_begin_with_their_command() -> None:
    for option in options("experiment"):
        header, command = (CONF_DIR / "experiment" / f"{option}.yaml").read_text(encoding="utf-8").splitlines()[:2]
        assert header == "# @package _global_"  # Hydra reads it on the first line only
        assert command.startswith("# python -m atlas.")
        assert f"experiment={option}" in command.split()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("chunk_size=c9", "chunk_size=c9: must be one of c8, c16, c32, c64, set_a, set_b, set_c"),
        ("train=1", "train=1: must be one of default, smoke"),
        ("model.memory.rule=adam", "model.memory.rule=adam: must be one of gd"),
        ("niah.every=0", "niah.every=0: must be >= 1 (niah=off switches the probes off)"),
        ("niah.every=1e3", "niah.every=1e3: must be an integer, such as 1000"),
        ("niah.every=often", "niah.every=often: must be an integer, such as 1000"),
        ("niah.levels=[memory,luck]", "niah.levels=['memory', 'luck']: must be some of"),
        ("niah.depths=[1.5]", "niah.depths=[1.5]: must be in [0, 1]"),
        ("niah.threshold=1.5", "niah.threshold=1.5: must be in (0, 1]"),
        ("rollback.threshold=0", "rollback.threshold=0.0: must be > 0"),
        ("checkpoint.keep=1", "checkpoint.keep=1: must be >= 2 (the newest may be damaged)"),
        ("telemetry.every=0", "telemetry.every=0: must be >= 1"),
        ("telemetry.samples=101", "telemetry.samples=101: must be in [0, 100] (0 = none)"),
        ("telemetry.sample_tokens=0", "telemetry.sample_tokens=0: must be >= 1"),
        ("train.steps=0", "train.steps=0: must be >= 1"),
        ("train.accumulate=3", "train.accumulate=3: must be a divisor of train.batch_size=8"),
        ("train.gradient_clip=nan", "train.gradient_clip=nan: must be >= 0 (0 = off)"),
        ("train.gate.monitor=maybe", "train.gate.monitor=maybe: must be one of abort, warn, off"),
        ("train.gate.std_min=0.6", "train.gate.std_min=0.6: must be in [0, 0.5): gates in [0, 1] have no larger std"),
        ("train.gate.nontrivial_std=-2", "train.gate.nontrivial_std=-2.0: must be in [0, 0.5)"),
        ("train.gate.variance_ratio_min=-5", "train.gate.variance_ratio_min=-5.0: must be >= 0"),
        ("device.kind=tpu", "device.kind=tpu: must be one of auto, cpu, cuda"),
        ("init_from=", "init_from=: must be a run or a checkpoint, or left out"),
        ("resume=", "resume=: must be a run or a checkpoint, or left out"),
        ("debug.inject=", "debug.inject=: must be KIND@STEP[:SIZE][:always], or left out"),
        ("debug.profile=", "debug.profile=: must be FIRST:LAST, or left out"),
        ("seed=-1", "seed=-1: must be in [0, 2**63)"),
        ("seed=null", "seed=null: must be an integer, such as 0"),
        ("model.memory.enabled=perhaps", "model.memory.enabled=perhaps: must be true or false"),
        ("model.heads=3", "model.heads=3: must be a divisor of model.width=128"),
        ("chunk_size.local=8", "chunk_size.local=8: must be a list of integers, such as [8,16]"),
        ("chunk_size.local=[]", "chunk_size.local=[]: must be a list of at least one chunk size"),
        (
            "chunk_size.local=[7]",
            "chunk_size.local=[7]: must be positive divisors of chunk_size.shard=128; 7 is not one",
        ),
        (
            "chunk_size.shard=1024",
            "chunk_size.shard=1024: must be <= train.sequence=512 (or set train.pad_shards=true)",
        ),
        (
            "train.sequence=640 chunk_size.shard=256",
            "train.sequence=640: must be a multiple of chunk_size.shard=256 (or set train.pad_shards=true)",
        ),
        ("chunk_size.global_size=1024", "chunk_size.global_size=1024: must be <= train.sequence=512, else"),
        ("chunk_size.shard=${model.nothing}", "chunk_size.shard: Interpolation key 'model.nothing' not found"),
    ],
)
def test_a_bad_value_is_refused(overrides: str, message: str) -> None:
    assert refusal(*overrides.split()).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("niah.evry=5", "niah.evry=5: must be a key that exists (--cfg job lists them); did you mean niah.every?"),
        ("nihh.every=5", "nihh.every=5: must be a key that exists (--cfg job lists them); did you mean niah.every?"),
        ("chunk_sise=c8", "chunk_sise=c8: must be a key that exists (--cfg job lists them); did you mean chunk_size?"),
        ("data.pathz=x", "data.pathz=x: must be a key that exists (--cfg job lists them); did you mean data.path?"),
        ("hydra.run.dri=x", "hydra.run.dri=x: must be a key that exists (--cfg hydra lists them)"),
        ("+niah.new=1", "niah.new=1: must be a key that exists"),
        ("++train.gate.new=1", "train.gate.new=1: must be a key that exists"),
        ("+quux=1", "quux=1: must be a key that exists (--cfg job lists them)"),
        ("+niah=quick", "niah: must be given once, as niah=OPTION without +"),
    ],
)
def test_an_unknown_key_is_refused(override: str, message: str) -> None:
    assert refusal(override).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("niah", "niah: must be written KEY=VALUE or GROUP=OPTION (quote special characters)"),
        (
            "niah.levels=[a",
            "niah.levels=[a: must be written KEY=VALUE or GROUP=OPTION"
            " (quote special characters: 'niah.levels=[\"a\"]')",
        ),
        (
            "chunk_size=c8,c16",
            "chunk_size=c8,c16: must be one value; add -m to sweep over several"
            " (quote special characters: 'chunk_size=\"c8,c16\"')",
        ),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(override: str, message: str) -> None:
    assert refusal(override) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+data.recall_hold_=1",
            "data.recall_hold_=1: must be a key of data: encoding, paths, recall, recall_blend_end, recall_hold,"
            " recall_share_end, recall_share_start, validation_share; did you mean data.recall_hold?",
        ),
        ("+data.recall.needles=1", "data.recall.needles=1: must be a key of data.recall: curriculum_steps, "),
        ("+data.seed=1", "data.seed=1: must be left out, the run sets it"),
        ("~data.validation_share", "data.validation_share: must be set, atlas.data.mixed.MixedData needs it"),
        ("+optim.momentum=0.9", "optim.momentum=0.9: must be a key of optim: betas, decay, lr, lr_min_ratio, "),
        ("~optim", "optim._target_=None: must be the dotted name of a class or function"),
        (
            "data._target_=nowhere.Data",
            "data._target_=nowhere.Data: must be a component of atlas, unless it is code that you trust to be executed:"
            " trust=[nowhere]",
        ),
        (
            "data._target_=nowhere.Data trust=[nowhere]",
            "data._target_=nowhere.Data: must be the name of a class or function (No module named 'nowhere')",
        ),
        (
            "data._target_=atlas.config.K trust=[atlas.config]",
            "data._target_=atlas.config.K: must be the name of a class or function",
        ),
        ("data._target_=nowhere.Data trust=[nowher]", "data._target_=nowhere.Data: must be a component of atlas,"),
        ("data._target_=5", "data._target_=5: must be a component of atlas,"),
    ],
)
def test_a_component_that_does_not_fit_its_target_is_refused(override: str, message: str) -> None:
    assert refusal(*override.split()).startswith(message)


def test_a_key_of_another_option_is_not_suggested_as_itself() -> None:
    with pytest.raises(atlas.ConfigError) as refusal:
        atlas.compose(["data=stdlib", "data.paths=[]"])
    assert str(refusal.value) == (
        "data.paths=[]: must be a key that exists (--cfg job lists them); another option of data has it"
    )


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("lr=0.01", "did you mean optim.lr=0.01?"),
        ("every=5", "did you mean checkpoint.every=5 or niah.every=5 or telemetry.every=5?"),
        ("batch_size=2", "did you mean train.batch_size=2?"),
    ],
)
def test_the_last_word_of_a_key_is_enough_to_tell_the_whole(override: str, told: str) -> None:
    assert refusal(override) == f"{override}: must be a key that exists (--cfg job lists them); {told}"


@pytest.mark.parametrize(
    ("argument", "allowed"),
    [
        ("--steps=100", "written train.steps=100"),
        ("--train.steps=100", "written train.steps=100"),
        ("--batch-size", "written train.batch_size=VALUE"),
        ("--nonsense=1", "one of the flags that --hydra-help shows"),
    ],
)
def test_a_setting_written_as_a_flag_is_told_how_it_is_written(argument: str, allowed: str) -> None:
    refuse_flags(["--cfg", "job", "--multirun", "-m", "--config-dir=x", "--multi"], CONF_DIR)
    with pytest.raises(atlas.ConfigError) as error:
        refuse_flags([argument], CONF_DIR)
    assert str(error.value) == f"{argument}: must be {allowed}"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("a=1 -m b=2,3", "-m a=1 b=2,3"),
        ("a=1 --cfg job b=2 a=1", "--cfg job a=1 b=2 a=1"),
        ("a=1 -cd=folder b=2 --multirun", "-cd=folder --multirun a=1 b=2"),
    ],
)
def test_a_flag_may_stand_between_settings(given: str, taken: str) -> None:
    assert flags_first(given.split()) == taken.split()


def test_a_flag_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        flags_first(["a=1", "-x", "b=2"])
    assert str(error.value) == "-x: must be one of the flags that --hydra-help shows"


def test_what_hydra_cannot_read_is_told_how_it_is_written(tmp_path: Path) -> None:
    told = "must be written KEY=VALUE or GROUP=OPTION (quote special characters"
    assert refusal("resume=~/run") == f"resume=~/run: {told}: 'resume=\"~/run\"')"
    assert refusal(str(tmp_path)) == (
        f"{tmp_path}: must be resume={tmp_path} to continue that run (python -m atlas.niah, generate or report read it)"
    )


def test_the_package_lists_its_public_names() -> None:
    assert set(atlas.__all__) <= set(dir(atlas))


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("muon_rate_max", "muon.rate_max"),
        ("muon_rate_init", "muon.rate_init"),
        ("muon_iterations", "muon.iterations"),
        ("omega_window", "omega.window"),
        ("omega_gate", "omega.gate"),
    ],
)
def test_a_former_key_of_a_rule_is_refused_and_the_new_one_named(former: str, now: str, tmp_path: Path) -> None:
    allowed = f"must be a key that exists (--cfg job lists them); did you mean model.memory.{now}?"
    with pytest.raises(ConfigError) as error:
        atlas.compose([f"model.memory.{former}=1"])
    assert str(error.value) == f"model.memory.{former}=1: {allowed}"
    file = tmp_path / "config.yaml"  # of an older run
    file.write_text(f"model:\n  memory:\n    {former}: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(file)
    assert str(error.value) == f"model.memory.{former}: {allowed}"


def test_a_trigger_that_nothing_tells_of_is_refused() -> None:
    message = (
        r"^rollback\.triggers=\['niah', 'gate'\]: must be without gate, which train\.gate\.monitor=off never tells of$"
    )
    for monitor in ("abort", "warn"):
        atlas.compose(["rollback.triggers=[niah,gate]", f"train.gate.monitor={monitor}"])
    with pytest.raises(ConfigError, match=message):
        atlas.compose(["rollback.triggers=[niah,gate]", "train.gate.monitor=off"])
