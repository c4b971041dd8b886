"""Five more failures that were invented without looking at the watchers' code, and run on the code as it was.

Ten were written down, as users of training frameworks tell of them:

  cache_stale              a cache of the tokens outlives the text that it was made of (pylearn2 870, xgboost 4237)
  cleaned_in_training      the text is cleaned for training and nowhere else (gregory-ai 732, tagger 15)
  gradients_stale          each step takes the gradients of an earlier one (optax 1725, marin 6431)
  heads_by_view            heads are split by a view without its transpose (transformer-from-scratch 6, FuxiCTR 30)
  metric_quantises         a metric quantises the weights in place (Pytorch_Quantize_impls 10, aihwkit-lightning 15)
  offsets_wrap             positions in the text are too narrow an integer and wrap (translate 411, marin 1970)
  projection_not_saved     a random projection is in no checkpoint: each start draws another (ccnn 14, outperformer 1)
  rule_forgets             the share to keep is given as that to forget (PyTorch-YOLOv3 230, pytorch 15298)
  separator_masked         the padding's token ends lines too, and its mask takes both (trl 6357, Megatron-Bridge 4660)
  temperature_in_training  logits have a temperature in training alone (tinker-cloud 26, unsloth-zoo 1029)

`random.Random(20261128).sample(these, 10)` gave five, and the order in which the others replace one that does no harm:
heads_by_view, metric_quantises, temperature_in_training, projection_not_saved, gradients_stale. The five were
rule_forgets, cleaned_in_training, separator_masked, cache_stale and offsets_wrap.

How many of the five the watchers noticed: README.md.
"""

from __future__ import annotations

from experiments.silent.bench import STEPS, TEXT, Bench
from experiments.silent.data import little_text
from experiments.silent.failure import Facts, Failure, Procedure, facts, trained, with_data
from experiments.silent.invented_fourth import KINDS, RECALL, of_three_kinds

TRUST = "trust=[experiments.silent]"
SOURCE = "data._target_=experiments.silent.wrong_data."


def cache_stale(bench: Bench, broken: bool) -> Facts:
    """The text is replaced between two runs; the second finds the cache of the first, or one of its own."""
    bench.scratch.mkdir(parents=True, exist_ok=True)
    corpus = bench.scratch / "corpus.txt"
    source = f"{SOURCE}{'CachedByName' if broken else 'CachedByContent'}"
    given = ("data=text", f'data.paths=["{corpus}"]', TRUST, source)
    corpus.write_text("".join(file.read_text(encoding="utf-8") for file in KINDS["markdown"]), encoding="utf-8")
    bench.run(*given, "train.steps=50", folder="first")
    corpus.write_text(little_text(), encoding="utf-8")
    return facts(bench.run(*given))


def offsets_wrap(bench: Bench, broken: bool) -> Facts:
    """Three kinds of text, of which positions of 16 bits reach the first alone, or all of them."""
    return of_three_kinds(bench, "Wrapped" if broken else "Sound")


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str]) -> Failure:
    run, twin = run_and_twin
    return Failure(name, "invented", what, run, twin)


def _with_rule(share: float, calm: float) -> tuple[Procedure, str]:
    """Recall with a learning rule of the user's own, whose memories lose `share` of themselves at a chunk's end."""
    rule = "+model.memory.own_rule._target_=experiments.silent.wrong_model.Forgetful"
    name = "+model.memory.own_rule.share"
    shared = (*RECALL, TRUST, rule, f"train.steps={2 * STEPS}")
    return trained(f"{name}={share}", calm=(f"{name}={calm}",), shared=shared)


FAILURES = (
    _failure(
        "rule_forgets",
        "a learning rule of the user's own forgets the 99 % that it was to keep, at the end of each chunk",
        _with_rule(0.99, calm=0.01),
    ),
    _failure(
        "cleaned_in_training",
        "white space is cleaned away in the training text, and not in the validation text",
        with_data("Cleaned"),
    ),
    _failure(
        "separator_masked",
        "padding is the token that ends a line, and the mask goes by the token: no end of a line counts",
        trained(f"{SOURCE}MaskedByValue", calm=(f"{SOURCE}PaddedWithLines",), shared=(*TEXT, TRUST)),
    ),
    Failure(
        "cache_stale",
        "invented",
        "a cache is named by the text's name: the run reads an older text than the file has",
        cache_stale,
    ),
    Failure(
        "offsets_wrap",
        "invented",
        "positions of 16 bits wrap at 65,536: of 300 kB the run reads the first 64, all of one kind",
        offsets_wrap,
    ),
)
