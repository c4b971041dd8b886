"""Five more failures that were invented without looking at the watchers' code, and run on the code as it was.

Ten were written down, as users of training frameworks tell of them:

  best_by_reference       the best weights are kept without a copy of them (tutorials 188, PyPOTS 667)
  layers_in_a_list        layers are in a list of Python, and nobody trains them (pytorch 715, texar-pytorch 72)
  memory_shared_by_rows   the rows of a batch write into one memory (titans-pytorch 6, torch-autograd 170)
  noise_in_place          noise for a batch is added to the text itself, and adds up (pycls 21, doctr 840)
  normalised_over_time    a norm has the wrong dimension, and sees later tokens (Kronos 228, video-diffusion-pytorch 23)
  schedule_starts_anew    a resumed run has the warm-up again (lightly-train 301, TorchEasyRec 664)
  schedule_swings         a cosine over epochs is stepped at each batch (SimCLR 8, ivadomed 57)
  update_added            the memory adds the gradient and does not subtract it (pytorch 1871, NAO 12)
  validation_is_training  validation reads the training text (detecto 37, x-vector-pytorch 8)
  vocabulary_by_hash      a vocabulary in the order of a set (gensim 2859, deep-machine-learning 9)

`random.Random(20261129).sample(these, 10)` gave five, and the order in which the others replace one that does no harm:
noise_in_place, memory_shared_by_rows, update_added, schedule_starts_anew, validation_is_training. The five were
best_by_reference, schedule_swings, normalised_over_time, layers_in_a_list and vocabulary_by_hash. schedule_swings (a
cosine over 5 epochs in a run of 240 steps) does no harm: the last validation losses, of 2.4, differ from those of the
calm runs by -0.099, -0.069 and -0.093, with three seeds. So noise_in_place has the place.

What harm the five do, with seed 0:

  best_by_reference       validation loss 2.80, with copies 2.22
  layers_in_a_list        it tells 2.348; with the saved weights, and layers made anew, it is 2.480, 2.499 and 2.502
  noise_in_place          2.71 instead of 2.01
  normalised_over_time    it tells 2.130; it is 2.234 when no token sees a later one, and 2.204 with the right dimension
  vocabulary_by_hash      3.98 instead of 3.09, 50 steps after the resume

How many of the five the watchers noticed: README.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.silent.bench import STEPS, TEXT, Bench
from experiments.silent.failure import Facts, Failure, Procedure, facts, trained
from experiments.silent.invented_fourth import PACKAGE

TRUST = "trust=[experiments.silent]"
TARGET = "optim._target_=experiments.silent."
SOURCE = "data._target_=experiments.silent.wrong_data."


def vocabulary_by_hash(bench: Bench, broken: bool) -> Facts:
    """Stopped and resumed in another process, whose strings have other hashes, as in every start of Python."""
    given = (*TEXT, TRUST, f"{SOURCE}{'InHashOrder' if broken else 'InVocabulary'}")
    bench.start(*given, "train.steps=50", environment={"PYTHONHASHSEED": "1"}, executed=True).wait()
    resumed = (*given, "train.steps=100", "resume=auto")
    return facts(bench.start(*resumed, environment={"PYTHONHASHSEED": "2"}, executed=True).wait(), 50)


def _failure(name: str, what: str, run_and_twin: tuple[Procedure, str]) -> Failure:
    run, twin = run_and_twin
    return Failure(name, "invented", what, run, twin)


def _beside(cause: str, calm: str, data: Sequence[str] = TEXT) -> tuple[Procedure, str]:
    """A run with the user's part `cause`, beside one with the same part as it should be."""
    return trained(f"{TARGET}{cause}", calm=(f"{TARGET}{calm}",), shared=("optim=adamw", TRUST, *data))


SHORT = (f'data.paths=["{PACKAGE}/training/trainer.py"]', "data.validation_share=0.3")  # read eight times
# Little text and many steps: the last validation loss is far above the lowest.
LITTLE = (f'data.paths=["{PACKAGE}/training/optimizer.py"]', "data.validation_share=0.3", "optim.lr=5e-3")

BY_REFERENCE = _beside(
    "wrong_optim.best_by_reference", "wrong_optim.best_copied", ("data=text", *LITTLE, f"train.steps={2 * STEPS}")
)
FAILURES = (
    Failure(
        "best_by_reference",
        "invented",
        "the weights of the lowest validation loss are kept without a copy: those taken at the end are the last ones",
        *BY_REFERENCE,
        rightly="by_heart|divergence",  # both runs learn a little text by heart before the best weights come back
    ),
    _failure(
        "noise_in_place",
        "noise for the tokens of a batch is written into the text itself, and adds up from step to step",
        trained(f"{SOURCE}NoisedInPlace", calm=(f"{SOURCE}Noised",), shared=("data=text", *SHORT, TRUST)),
    ),
    _failure(
        "normalised_over_time",
        "a normalisation of the user's own has the dimension of the tokens: each token sees a mean of later ones",
        _beside("wrong_model.normalised_over_time", "wrong_model.normalised_over_channels"),
    ),
    _failure(
        "layers_in_a_list",
        "the layers of the feed-forward part are in a list of Python: nobody trains or saves them",
        _beside("wrong_model.layers_in_a_list", "wrong_model.layers_in_a_module_list"),
    ),
    Failure(
        "vocabulary_by_hash",
        "invented",
        "a vocabulary has the order of a set, another one in each process: after a resume tokens mean other characters",
        vocabulary_by_hash,
    ),
)
