"""The models of the table and the lengths of zoology's figure 2, as settings of a run."""

from __future__ import annotations

import atlas
from atlas.config import RunConfig
from atlas.models.language_model import AtlasModel
from atlas.runs.build import build_model
from experiments.field.convolved import with_convolution

VOCABULARY = 8192
LENGTHS = {64: 4, 128: 8, 256: 16, 512: 64}  # tokens -> key-value pairs
BATCHES = {64: 512, 128: 512, 256: 256, 512: 128}  # tokens -> rows of a batch
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


def configuration(name: str, length: int, width: int, rate: float, steps: int) -> RunConfig:
    """zoology's recipe: AdamW with weight decay 0.01, a cosine to 0, no clipping, 2 layers, nothing between the mixers.

    A feed-forward layer of hidden width 1 stands for none. The memory has chunks of 8, is reset at half the length and
    has a global chunk of an eighth of it.
    """
    return atlas.compose(
        [
            *MODELS[name],
            *(f"model.width={width}", f"model.heads={heads(width)}", "model.feedforward=1"),
            *(f"model.vocabulary={VOCABULARY}", f"train.sequence={length}", f"train.batch_size={BATCHES[length]}"),
            *("chunk_size.local=[8]", f"chunk_size.shard={length // 2}", f"chunk_size.global_size={length // 8}"),
            *("optim=adamw", "optim.weight_decay=0.01", "optim.betas=[0.9,0.999]", "optim.lr_min_ratio=0"),
            *(f"optim.lr={rate}", "optim.warmup=0", "train.gradient_clip=0", f"train.steps={steps}", "logger=none"),
        ]
    )


def model_of(name: str, config: RunConfig) -> AtlasModel:
    """On the CPU. A convolution is the memory's, on queries, keys and values."""
    model = build_model(config)
    return with_convolution(model, config.seed) if name in (CONVOLVED_NARROW, CONVOLVED_FULL) else model
