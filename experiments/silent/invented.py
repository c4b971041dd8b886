"""Failures that were invented before anyone looked at the watchers' code, from the issue's kinds alone: five, and five
more that were run when the first five had been added.

How many of them the watchers noticed as they were, and what was added: README.md.
"""

from __future__ import annotations

import shutil

from experiments.silent.bench import STEPS, TEXT, Bench
from experiments.silent.data import little_text, written
from experiments.silent.failure import Facts, Failure, Procedure, facts, trained, with_data, with_optimizer
from experiments.silent.learning import stopped_and_resumed
from experiments.silent.machine import two_processes

MIDDLE = 100


def encoded_otherwise(bench: Bench, broken: bool) -> Facts:
    """The validation text, the last fifth of the file, is UTF-16 behind UTF-8, or all is UTF-8."""
    bench.scratch.mkdir(parents=True, exist_ok=True)
    text, corpus = little_text(), bench.scratch / "corpus.txt"
    at = 8 * len(text) // 9  # two bytes for each character behind it
    corpus.write_bytes(text[:at].encode() + text[at:].encode("utf-16-le" if broken else "utf-8"))
    return facts(bench.run("data=text", f'data.paths=["{corpus}"]', "data.validation_share=0.2"))


def folder_shared(bench: Bench, broken: bool) -> Facts:
    """A second run is started in the folder of one that is going on, or in a folder of its own."""
    first = bench.start(*TEXT)
    first.wait_for_step(MIDDLE)
    second = bench.run(*TEXT, folder="run" if broken else "other")
    first.wait()
    return facts(second)


def data_again(bench: Bench, broken: bool) -> Facts:
    """With a source that counts its batches from the start of the process, or with one that goes by the step."""
    name = "Counting" if broken else "Sound"
    return stopped_and_resumed(bench, f"data._target_=experiments.silent.wrong_data.{name}")


def older_checkpoints(bench: Bench, broken: bool) -> Facts:
    """Between two starts, `checkpoints/` of step 100 is replaced by a backup of step 50."""
    folder = bench.run(*TEXT, "train.steps=50").folder
    shutil.copytree(folder / "checkpoints", bench.scratch / "backup")
    bench.run(*TEXT, "resume=auto", "train.steps=100")
    if broken:
        shutil.rmtree(folder / "checkpoints")
        shutil.copytree(bench.scratch / "backup", folder / "checkpoints")
    return facts(bench.run(*TEXT, "resume=auto", "train.steps=150"), 100)


def same_rows(bench: Bench, broken: bool) -> Facts:
    """Two processes that train on the same rows of each batch, or each on its own."""
    return two_processes(bench, f"data._target_=experiments.silent.wrong_data.{'SameRows' if broken else 'Sound'}")


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str], says: str = "") -> Failure:
    run, twin = run_and_twin
    return Failure(name, "invented", what, run, twin, says)


FAILURES = (
    _failure(
        "decayed_away",
        "`optim.weight_decay=50`: weights shrink faster than they learn",
        trained("optim=adamw", "optim.weight_decay=50", calm=("optim=adamw",)),
    ),
    _failure(
        "values_collapsed",
        "one row for all of the value projection: every key recalls one direction",
        with_optimizer("same_values", at=0),
    ),
    Failure(
        "encoded_otherwise",
        "invented",
        "the last fifth of the file, the validation text, is UTF-16 behind UTF-8",
        encoded_otherwise,
    ),
    _failure(
        "memory_leaks",
        f"from step {MIDDLE} on a cache keeps 2 MB of each batch: the machine runs out of memory, hours later",
        with_data("Hoarding", at=MIDDLE),
    ),
    Failure("folder_shared", "invented", "a second run starts in the folder of one that is going on", folder_shared),
    Failure(
        "text_by_heart",
        "invented",
        "6 kB of text in 480 steps: the loss falls, that of new text rises",
        written(little_text()[:6000], f"train.steps={2 * STEPS}"),
    ),
    Failure("data_again", "invented", "a resumed run reads the first batches again", data_again),
    _failure("warmup_too_long", "`optim.warmup=1000` in 240 steps", trained("optim.warmup=1000")),
    Failure("older_checkpoints", "invented", "`checkpoints/` is put back from an older backup", older_checkpoints),
    Failure("same_rows", "invented", "both of two processes train on the same rows", same_rows),
)
