"""Five more failures that were invented without looking at the watchers' code, and run on the code as it was.

Ten were written down, as users of training frameworks tell of them:

  averaged_weights_stay          averaged weights are put in for validation and stay (openfold 90, Open-Sora-Plan 186)
  dropout_mask_fixed             a seed set at every step: one dropout mask (MAE-pytorch 28, pytorch-lightning 20412)
  labels_of_other_rows           inputs and labels are shuffled apart (DrexelChatbot 15, conditional-flow-matching 172)
  plugin_edited                  the user's code is edited between two starts (submitit 1717)
  running_statistics_stand_still batch norm's running statistics are not updated (tensorflow 11965, DeepSpeech 1445)
  second_moment_in_half          Adam's second moment in bfloat16, beta2=0.999 (keras-hub 2629, OneTrainer 1005)
  setting_ignored                a sweep over a setting that goes nowhere (tensorflow 58831, arctic-captions 34)
  state_never_reset              a sequence goes on with the state of the last batch (cudnn.torch 348, RWKV-Runner 441)
  validation_drawn_anew          validation batches are drawn without a seed (raster-vision 6, nnUNet 1216)
  values_lag_keys                keys and values are one token apart in the memory (lm-engine 496)

`random.Random(20261127).sample(these, 10)` gave five, and the order in which the others replace one that does no harm:
second_moment_in_half, labels_of_other_rows, setting_ignored, values_lag_keys, plugin_edited. The five were
averaged_weights_stay, running_statistics_stand_still, validation_drawn_anew, state_never_reset and dropout_mask_fixed.
dropout_mask_fixed (dropout of 0.2 behind the feed-forward layer) does no harm, nor does second_moment_in_half: the last
validation losses, of 2.2, differ from those of the calm runs by -0.014, 0.013 and 0.006, and by 0.0002, 0.0013 and
0.0004, with three seeds. So labels_of_other_rows has the place.

How many of the five the watchers noticed: README.md.
"""

from __future__ import annotations

from experiments.silent.bench import STEPS, TEXT, Bench
from experiments.silent.failure import Facts, Failure, Procedure, trained, with_data, with_model
from experiments.silent.invented_fourth import RECALL
from experiments.silent.learning import stopped_and_resumed

TRUST = "trust=[experiments.silent]"
TARGET = "optim._target_=experiments.silent."


def validation_drawn_anew(bench: Bench, broken: bool) -> Facts:
    """Stopped and resumed: the second start validates on other batches, or on the same."""
    name = "Redrawn" if broken else "Sound"
    return stopped_and_resumed(bench, f"data._target_=experiments.silent.wrong_data.{name}")


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str]) -> Failure:
    run, twin = run_and_twin
    return Failure(name, "invented", what, run, twin)


def _beside(cause: str, calm: str) -> tuple[Procedure, str]:
    """A run with the user's part `cause`, beside one with the same part as it should be."""
    return trained(f"{TARGET}{cause}", calm=(f"{TARGET}{calm}",), shared=("optim=adamw", TRUST, *TEXT))


FAILURES = (
    _failure(
        "averaged_weights_stay",
        "an average of the weights takes their place for each validation, and training goes on from it",
        _beside("wrong_optim.averaged_weights_stay", "wrong_optim.averaged_weights_restored"),
    ),
    _failure(
        "running_statistics_stand_still",
        "a batch normalisation of the user's own never updates its running statistics, which validation reads",
        _beside("wrong_model.statistics_stand_still", "wrong_model.statistics_run"),
    ),
    Failure(
        "validation_drawn_anew",
        "invented",
        "validation batches are drawn without a seed: a resumed run compares losses on different ones",
        validation_drawn_anew,
    ),
    _failure(
        "state_never_reset",
        "the model keeps its state: a sequence goes on with the state of another one, of the batch before",
        with_model("state_never_reset", (*RECALL, f"train.steps={2 * STEPS}")),
    ),
    _failure(
        "labels_of_other_rows",
        "inputs and labels of a batch are shuffled apart from each other",
        with_data("LabelsOfOtherRows"),
    ),
)
