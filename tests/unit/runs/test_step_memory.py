"""The memory of a training step before it starts: counted, in proportion, and refused where it cannot fit."""

import gc
from dataclasses import replace

import pytest
import torch

from atlas import compose
from atlas.config import ConfigError
from atlas.runs.build import build_model, build_optimizer
from atlas.runs.plan import parameters, plan
from atlas.runs.step_memory import _count, _kept, device_memory, fixed_memory, require_room, step_memory

CPU, SINGLE = torch.device("cpu"), torch.float32
SMALL = ["model.width=32", "model.feedforward=48", "chunk_size.shard=32", "chunk_size.global_size=32", "niah=off"]
SMALL += ["train.sequence=96", "data.recall.pairs=4", "data.recall.queries=8", "data.recall.sparse_queries=4"]


@pytest.mark.parametrize("settings", [[], ["ablation=no_memory", "model.window=0"]])
def test_what_is_kept_is_in_proportion_to_layers_and_sequences(settings: list[str]) -> None:
    config = compose([*SMALL, *settings, "train.sequence=32"])
    of_row, layer_of_row, of_layer = _kept(config, CPU, SINGLE)
    wanted = 3 * (of_row + 3 * layer_of_row) + 4 * of_layer
    assert _count(config, CPU, SINGLE, layers=4, rows=3) == pytest.approx(wanted, rel=0.05)


def test_counting_leaves_no_tensor_behind() -> None:
    config = compose([*SMALL, "train.sequence=32"])
    _count(config, CPU, SINGLE, layers=1, rows=1)
    before = _tensors()
    _count(config, CPU, SINGLE, layers=2, rows=3)
    assert _tensors() == before


def _tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def test_fixed_memory_is_that_of_the_tensors() -> None:
    config = compose(SMALL)
    model = build_model(config)
    optimizer = build_optimizer(config, model)
    model.losses(
        model.read(torch.zeros(1, 32, dtype=torch.int64)).hidden, torch.zeros(1, 32, dtype=torch.int64)
    ).sum().backward()
    optimizer.step(1)
    held = [state for one in optimizer.optimizers for state in one.state.values()]
    state = sum(value.nbytes for each in held for value in each.values() if value.numel() > 1)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    found = fixed_memory(config)
    assert found["weights"] == found["gradients"] == weights
    assert found["optimiser"] == pytest.approx(state, rel=0.01)


def test_micro_batches_divide_what_is_kept() -> None:
    whole = step_memory(compose([*SMALL, "train.batch_size=8"]), CPU, SINGLE)
    parts = step_memory(compose([*SMALL, "train.batch_size=8", "train.accumulate=4"]), CPU, SINGLE)
    assert parts["activations"] == pytest.approx(whole["activations"] / 4, rel=0.05)


@pytest.mark.slow
def test_a_batch_that_cannot_fit_is_refused_with_the_setting_that_would() -> None:
    most = device_memory(CPU)
    config = compose([*SMALL, "train.batch_size=4"])
    activations = step_memory(config, CPU, SINGLE)["activations"]
    rows = 2 ** (4 * most // activations).bit_length()  # up to twice as much as there is
    config = replace(config, train=replace(config.train, batch_size=rows))
    with pytest.raises(ConfigError) as refused:
        require_room(config, CPU, SINGLE)
    start, _, end = str(refused.value).partition(" it needs about ")
    memory = f"{most / 2**30:.3g} GiB"
    assert start == f"train.batch_size={rows}: must be such that a training step fits into the {memory} of memory here;"
    needed, _, fitting = end.partition("); ")
    assert float(needed.partition(" GiB (")[0]) > most / 2**30
    accumulate = int(fitting.removeprefix("train.accumulate=").removesuffix(" fits"))
    require_room(replace(config, train=replace(config.train, accumulate=accumulate)), CPU, SINGLE)
    with pytest.raises(ConfigError):
        require_room(replace(config, train=replace(config.train, accumulate=accumulate // 2)), CPU, SINGLE)


@pytest.mark.parametrize("settings", [["model.width=1048576", "model.heads=8"], ["model.layers=1000000000"]])
def test_a_model_that_cannot_fit_at_all_is_refused_without_being_built(settings: list[str]) -> None:
    config = compose([*settings, "niah=off"])
    with pytest.raises(ConfigError) as refused:
        require_room(config, CPU, SINGLE)
    memory = f"{device_memory(CPU) / 2**30:.3g} GiB"
    assert str(refused.value).startswith(
        f"model.width={config.model.width}: must be, with model.layers, model.vocabulary and train.sequence,"
        f" such that a training step fits into the {memory} of memory here; it needs more than "
    )


@pytest.mark.slow
def test_a_plan_names_parameters_operations_memory_and_time() -> None:
    config = compose([*SMALL, "model.vocabulary=300"])
    text, refusal = plan(config)
    assert refusal is None
    total = sum(parameter.numel() for parameter in build_model(config).parameters())
    assert text.splitlines()[0].split() == ["parameters", f"{total:,}"]
    assert sum(parameters(config).values()) == total
    assert parameters(config)["embedding"] == 300 * 32
    titles = [line[:12].strip() for line in text.splitlines() if line[:12].strip()]
    assert titles == ["parameters", "operations", "peak memory", "a step", "the run"]


def test_a_plan_of_a_run_that_does_not_fit_tells_what_it_needs_and_what_would_fit() -> None:
    config = compose([*SMALL, "train.batch_size=4"])
    rows = int(4 * device_memory(CPU) // step_memory(config, CPU, SINGLE)["activations"]) * 2
    table, refusal = plan(replace(config, train=replace(config.train, batch_size=rows)))
    titles = [line[:12].strip() for line in table.splitlines() if line[:12].strip()]
    assert titles == ["parameters", "operations", "peak memory"]
    assert str(refusal).startswith(f"train.batch_size={rows}: must be such that a training step fits into the ")
    assert " fits" in str(refusal).rpartition("train.accumulate=")[2]


def test_a_plan_of_a_run_that_goes_on_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^resume=auto: must be left out with --plan$"):
        plan(replace(compose(SMALL), resume="auto"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_a_plan_for_a_gpu_that_is_not_here_says_what_it_cannot_know() -> None:
    told = plan(compose(["device=cuda", "data=stdlib"])).table
    here = plan(compose(["device=cpu", "data=stdlib"])).table
    assert told.splitlines()[0] == here.splitlines()[0]  # parameters
    assert "peak memory" not in told
    assert told.splitlines()[-1].split() == [
        *["not", "known", "activations,", "and", "the", "time", "of", "a", "step:", "no", "GPU", "was", "found"]
    ]


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = device_memory(CPU)
    assert device_memory(CPU, 4) == whole // 4
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert device_memory(CPU, 4) == whole  # a launcher that does not tell how many are here
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device_memory(CPU, 4) == whole // 2
    monkeypatch.setattr("atlas.runs.step_memory.device_memory", lambda device, processes=1: 2**20)
    shared = "fits into the 0.000977 GiB of memory here, a share for each of 2 processes; it needs"
    with pytest.raises(ConfigError, match=shared):
        require_room(compose([*SMALL, "device.processes=4"]), CPU, SINGLE, 4)


def test_a_plan_of_several_processes_is_measured_with_the_threads_of_one() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def speed(*_: object) -> float:
        seen.append(torch.get_num_threads())
        return 1e9

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atlas.runs.plan._speed", speed)
        patch.setattr("atlas.runs.plan.usable_cores", lambda: 2)
        patch.setattr("atlas.config.cores.usable_cores", lambda: 2)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        tables = [plan(compose([*SMALL, "device=cpu", f"device.processes={n}"])).table for n in (1, 2, 4)]
    assert seen == [before, 1, 1]
    assert ["at 1 GFLOP/s" in table for table in tables] == [True, True, False]
    assert "at 500 MFLOP/s" in tables[2]
    assert torch.get_num_threads() == before
