"""Five failures that were invented before anyone looked at the watchers' code, from the issue's kinds alone.

How many of them the watchers noticed as they were, and what was added: README.md.
"""

from __future__ import annotations

from experiments.silent.bench import TEXT, Bench
from experiments.silent.data import little_text
from experiments.silent.failure import Facts, Failure, Procedure, facts, trained, with_data, with_optimizer

MIDDLE = 100


def encoded_otherwise(bench: Bench, broken: bool) -> Facts:
    """The validation text, the last tenth of the file, is UTF-16 behind UTF-8, or all is UTF-8."""
    bench.scratch.mkdir(parents=True, exist_ok=True)
    text, corpus = little_text(), bench.scratch / "corpus.txt"
    at = 17 * len(text) // 19  # two bytes for each character behind it
    corpus.write_bytes(text[:at].encode() + text[at:].encode("utf-16-le" if broken else "utf-8"))
    return facts(bench.run("data=text", f'data.paths=["{corpus}"]', "data.validation_share=0.1"))


def folder_shared(bench: Bench, broken: bool) -> Facts:
    """A second run is started in the folder of one that is going on, or in a folder of its own."""
    first = bench.start(*TEXT)
    first.wait_for_step(MIDDLE)
    second = bench.run(*TEXT, folder="run" if broken else "other")
    first.wait()
    return facts(second)


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
        "the last tenth of the file, the validation text, is UTF-16 behind UTF-8",
        encoded_otherwise,
    ),
    _failure(
        "memory_leaks",
        f"from step {MIDDLE} on a cache keeps 2 MB of each batch: the machine runs out of memory, hours later",
        with_data("Hoarding", at=MIDDLE),
    ),
    Failure("folder_shared", "invented", "a second run starts in the folder of one that is going on", folder_shared),
)
