"""Five more failures that were invented without looking at the watchers' code, and run on the code as it was.

Ten were written down, as users of training frameworks tell of them:

  softmax_twice           the model returns probabilities, and the loss takes them for logits (tflearn 562, SciCo 2)
  answers_masked          the mask of the loss covers the answers, and not the questions (trl 632, LlamaFactory 4635)
  unknown_tokens          a tokenizer without small letters: each is one and the same token (aprender 1585)
  gradients_overwritten   gradients are set to zero before each micro-batch: the last one alone counts (RAE 67)
  binaries_match          a pattern takes the archives beside the texts as well
  weights_made_anew       weights are initialised after those of `init_from` are loaded (transformers 36221, 48722)
  head_untied             head and embedding come apart, and the checkpoint has one of them (Megatron-LM 656)
  writes_detached         what the memory writes is cut from the graph (titans-pytorch 34)
  memories_of_other_rows  rows read the memory of another row of the batch (titans-pytorch 6, MP-SENet 64)
  second_moment_poisoned  gradients of one step keep the loss scale: Adam's second moment stays large (pytorch 26512)

`random.Random(20261126).sample(these, 10)` gave five, and the order in which the others replace one that does no harm:
memories_of_other_rows, unknown_tokens, answers_masked, head_untied, gradients_overwritten. The five were
writes_detached, second_moment_poisoned, softmax_twice, binaries_match and weights_made_anew. `binaries_match` does no
harm: files that are no text are passed over, with a warning, and its losses are those of its calm run to the bit. So
memories_of_other_rows has its place.

How many of the five the watchers noticed, and what was added: README.md.
"""

from __future__ import annotations

from experiments.silent.bench import STEPS, TEXT, Bench
from experiments.silent.failure import Facts, Failure, Procedure, facts, with_model, with_optimizer
from experiments.silent.invented_fourth import RECALL

MIDDLE = 120
TRUST = "trust=[experiments.silent]"


def weights_made_anew(bench: Bench, broken: bool) -> Facts:
    """A fine-tuning that keeps the weights it has loaded, or initialises them."""
    base = bench.run(*TEXT, "optim=adamw", folder="base").folder
    target = f"optim._target_=experiments.silent.{'wrong_model.made_anew' if broken else 'wrong_optim.sound'}"
    return facts(bench.run(*TEXT, "optim=adamw", TRUST, target, f"init_from={base}", "train.steps=100"))


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str]) -> Failure:
    run, twin = run_and_twin
    return Failure(name, "invented", what, run, twin)


FAILURES = (
    _failure(
        "writes_detached",
        "what the memory writes is cut from the graph: its keys, values and rates learn nothing",
        with_model("writes_detached", (*RECALL, f"train.steps={2 * STEPS}")),
    ),
    _failure(
        "second_moment_poisoned",
        f"the gradients of step {MIDDLE + 1} keep a loss scale of 2^16: AdamW hardly moves a weight from then on",
        with_optimizer("unscaled_once", at=MIDDLE),
    ),
    _failure(
        "softmax_twice",
        "the model returns probabilities, and the loss takes them for logits",
        with_model("softmax_twice"),
    ),
    _failure(
        "memories_of_other_rows",
        "each row of a batch reads the memory of the row before it",
        with_model("memories_of_other_rows", (*RECALL, f"train.steps={2 * STEPS}")),
    ),
    Failure(
        "weights_made_anew",
        "invented",
        "all weights are initialised after those of `init_from` are loaded: the fine-tuning starts from nothing",
        weights_made_anew,
    ),
)
