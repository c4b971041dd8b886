"""The models of the tables, as settings of a run."""

from __future__ import annotations

import atlas
from atlas.config import RunConfig
from atlas.models.language_model import AtlasModel
from atlas.runs.build import build_model
from experiments.field.convolved import with_convolution
from experiments.mqar.tasks import TASKS

VOCABULARY = 8192
WINDOW = 16  # tokens of the window attention beside the memory
MEMORY, FULL = "memory", "full attention"
NARROW_MEMORY, LEAST_MEMORY = "memory of 16", "memory of 4"  # hidden widths, instead of 64: less state
NARROW, WIDE = "window of 16", "window of 64"
CONVOLVED_NARROW, CONVOLVED_FULL = "window of 16 with convolution", "full attention with convolution"
MODELS = {
    MEMORY: (f"model.window={WINDOW}",),
    NARROW_MEMORY: (f"model.window={WINDOW}", "model.memory.hidden=16"),
    LEAST_MEMORY: (f"model.window={WINDOW}", "model.memory.hidden=4"),
    NARROW: ("model=attention_only", f"model.window={WINDOW}"),
    WIDE: ("model=attention_only", "model.window=64"),
    CONVOLVED_NARROW: ("model=attention_only", f"model.window={WINDOW}"),
    FULL: ("model=transformer",),
    CONVOLVED_FULL: ("model=transformer",),
}


def heads(width: int) -> int:
    """One for each full 64 of the width."""
    return max(width // 64, 1)


def configuration(name: str, task: str, width: int, rate: float, steps: int) -> RunConfig:
    """zoology's recipe: AdamW, a cosine to 0, no clipping, 2 layers, nothing between the mixers.

    A feed-forward layer of hidden width 1 stands for none. The memory has chunks of 8 and is reset at half the longest
    sequence of training; global chunk: see `Task`.
    """
    given = TASKS[task]
    return atlas.compose(
        [
            *MODELS[name],
            *(f"model.width={width}", f"model.heads={heads(width)}", "model.feedforward=1"),
            *(f"model.vocabulary={VOCABULARY}", f"train.sequence={given.tokens}", f"train.batch_size={given.rows}"),
            *("chunk_size.local=[8]", f"chunk_size.shard={given.tokens // 2}"),
            *(f"chunk_size.global_size={given.global_chunk}", f"optim.weight_decay={given.weight_decay}"),
            *("optim=adamw", "optim.betas=[0.9,0.999]", "optim.lr_min_ratio=0"),
            *(f"optim.lr={rate}", "optim.warmup=0", "train.gradient_clip=0", f"train.steps={steps}", "logger=none"),
        ]
    )


def model_of(name: str, config: RunConfig) -> AtlasModel:
    """On the CPU. A convolution is the memory's, on queries, keys and values."""
    model = build_model(config)
    return with_convolution(model, config.seed) if name in (CONVOLVED_NARROW, CONVOLVED_FULL) else model
