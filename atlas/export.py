"""Write a trained model for the library `transformers`: `python -m atlas.export RUN out=DIR`.

RUN is a run folder (its newest healthy checkpoint), a checkpoint folder, or `latest`, the newest run in outputs/runs.
DIR gets model.safetensors, with the verdicts of the probes and their controls in its metadata, config.json, the
tokenizer, the code that loads it, and a model card.
`AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` loads it, `init_from=DIR` trains on from it. Nothing
is uploaded. The package safetensors is needed (the extra `hf`).

  out=DIR                       a folder that does not exist or is empty
  weights=trained | averaged    averaged: of a run with train.ema
  trust=MODULE                  a module of your own that the run's components come from

Exit status: 0 written; 1 stdout cannot be written; 2 refused; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from atlas import __version__
from atlas.config import require
from atlas.config.arguments import Weights, names, read_settings, run_command, split_arguments
from atlas.config.choices import Choices
from atlas.config.console import print_result
from atlas.config.exits import no_exit
from atlas.config.path_overrides import expanded
from atlas.runs.folder import make_folder, remove_if_empty
from atlas.telemetry.run_files import RunFiles

USAGE = "python -m atlas.export RUN out=DIR [weights=averaged] [trust=MODULE]"


@dataclass
class ExportSettings(Choices):
    """What the command line may set; see the module's docstring."""

    out: str = ""
    weights: Weights = Weights.trained
    trust: str = ""

    def __post_init__(self) -> None:
        require(bool(self.out.strip()), "out", self.out, "a folder to write")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(_export, arguments, f"{USAGE}\n\n{__doc__}")


@no_exit()
def _export(arguments: Sequence[str]) -> int:
    path, given = split_arguments(arguments, USAGE)
    settings = read_settings(ExportSettings, given)
    print_result(str(export(path, expanded(settings.out), names(settings.trust), weights=settings.weights)))
    return 0


def export(path: str | Path, folder: Path, trust: Sequence[str] = (), *, weights: Weights = Weights.trained) -> Path:
    """Write the model of a run or checkpoint into `folder`, which is returned. Raises `ConfigError`."""
    from atlas.pretrained.folder import require_new

    require_new("out", folder)
    with ExitStack() as closing:
        closing.callback(remove_if_empty, *make_folder(folder, "out"))
        return _write(path, folder, trust, weights)


def _write(path: str | Path, folder: Path, trust: Sequence[str], weights: Weights) -> Path:
    from atlas.pretrained.card import model_card, verdicts
    from atlas.pretrained.folder import write_pretrained
    from atlas.runs.data_record import end_of_document, tokenizer_file
    from atlas.runs.load import load_checkpointed

    model, config, manifest = load_checkpointed(path, trust, weights=weights)
    chunks = replace(config.chunk_size, local=list(model.plan.local))  # of Stage 2 those of the checkpoint
    config = replace(config, chunk_size=chunks)
    run = manifest.path.parents[1]
    files = RunFiles(run, strict=False)
    known = weights is Weights.trained  # what the run measured, it measured with the trained weights
    probes = verdicts(files, manifest.path.name, manifest.step) if known else []
    loss = manifest.validation_loss if known and isfinite(manifest.validation_loss) else None
    metadata = {
        "atlas_version": __version__,
        "step": str(manifest.step),
        "config_hash": manifest.config_hash,
        "validation_loss": json.dumps(loss),
        "probes": json.dumps(probes),
    }
    tokenizer = tokenizer_file(run)
    name, parameters = folder.resolve().name, sum(parameter.numel() for parameter in model.parameters())
    card = model_card(name, config, files, manifest.step, loss, probes, parameters, of_bytes=tokenizer is None)
    write_pretrained(folder, model, config, card, metadata, tokenizer, end_of_document(run))
    return folder


if __name__ == "__main__":
    sys.exit(main())
