"""The lm-evaluation-harness on an exported model: `python -m atlas.harness --model atlas --model_args pretrained=DIR
--tasks TASK,...`, with the harness's own arguments.

DIR is what `python -m atlas.export` wrote; `memory=off` or `memory=frozen` among `--model_args` is the control, and
`lasting=0.5` reads texts beyond the trained length as `python -m atlas.niah` does. The harness and its forty packages
need an environment of their own: some are pinned to other versions than this package's tested set, and the harness's
extra `math` wants another antlr4 than Hydra. In a checkout:

  python -m venv .venv-harness
  .venv-harness/bin/pip install -e ".[hf]" "lm_eval[hf]>=0.4.13"
  .venv-harness/bin/python -m atlas.harness --model atlas --model_args pretrained=DIR --tasks lambada_openai
"""

from __future__ import annotations

import sys
from typing import Any

USAGE = "python -m atlas.harness --model atlas --model_args pretrained=DIR --tasks TASK,..."
START, END = ord("\n"), 0  # bytes: what stands before a text that has no context; no text holds the other


def register() -> None:
    """Make the model `atlas` known to the harness. Raises ImportError where that is not installed."""
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM

    @register_model("atlas")
    class AtlasLM(HFLM):
        """An exported model. Where its tokens are bytes, none of them is special."""

        def __init__(self, pretrained: str, **settings: Any) -> None:
            settings["trust_remote_code"] = True  # of this package
            super().__init__(pretrained, **settings)

        @property
        def eot_token_id(self) -> int:
            end: int | None = self.tokenizer.eos_token_id
            return END if end is None else end

        @property
        def prefix_token_id(self) -> int:
            chosen: int | None = self.custom_prefix_token_id
            end: int | None = self.tokenizer.eos_token_id
            return chosen if chosen is not None else START if end is None else end

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            """One text at a time: shorter ones would be padded in front, and the memory learns from what it reads."""
            self.batch_size_per_gpu = 1
            found: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
            return found


def main() -> int:
    """The command line of the harness."""
    try:
        register()
    except ImportError as error:
        print(
            f"atlas: the harness must be installed, in an environment of its own ({error})\n\n{__doc__}",
            file=sys.stderr,
        )
        return 2
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
