"""The model card of an exported run: what was measured, with its controls, and how to use the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

from atlas import __version__
from atlas.config import LEVELS, RunConfig
from atlas.telemetry.run_files import EARLIER, RunFiles, mappings

Verdict = Mapping[str, Any]


def verdicts(files: RunFiles, checkpoint: str, step: int) -> list[Verdict]:
    """The newest result of each probe level at this checkpoint: of `python -m atlas.niah` where it read as the exported
    model does, without `lasting`, else of training."""
    found: list[Verdict] = [event for event in files.of_kind("probe") if event.get("step") == step]
    for probing in reversed([files.niah, *mappings(files.niah.get(EARLIER))]):  # the newest one counts
        if probing.get("checkpoint") == checkpoint and not probing.get("lasting"):
            found += mappings(probing.get("results"))
    newest = {one["level"]: one for one in found if isinstance(one.get("level"), str) and "verdict" in one}
    left_out = ("kind", "time", "cells", "details")
    return [{key: value for key, value in one.items() if key not in left_out} for one in newest.values()]


def model_card(
    name: str,
    config: RunConfig,
    files: RunFiles,
    step: int,
    loss: float | None,
    probes: Sequence[Verdict],
    parameters: int,
    *,
    of_bytes: bool = True,
) -> str:
    """README.md. `loss`: of validation at this step, nats per token, if measured. `of_bytes`: tokens are bytes."""
    unit = "byte" if of_bytes else "token"
    rule = config.model.memory.own_rule.get("_target_", config.model.memory.rule.value)
    summary, settings = files.summary, config.model
    measured = (
        "not measured at this step" if loss is None else f"{loss:.4f} nats/{unit}, {loss / log(2):.3f} bits/{unit}"
    )
    verdict_of = dict.fromkeys(LEVELS, "NOT MEASURED at this step") | {one["level"]: one["verdict"] for one in probes}
    levels = [f"| {level} | {verdict} |" for level, verdict in verdict_of.items()]
    chunks = config.chunk_size
    return _CARD.format(
        name=name,
        version=__version__,
        reads="It reads bytes: the id of a token is the value of its byte."
        if of_bytes
        else f"Its vocabulary has {config.model.vocabulary:,} tokens.",
        parameters=f"{parameters:,}",
        size=f"{settings.layers} layer{'' if settings.layers == 1 else 's'} of width {settings.width},"
        f" {settings.heads} heads, window {settings.window}",
        memory=f"rule {rule}, local chunks {chunks.local}, global chunk {chunks.global_size}, shard {chunks.shard}"
        if settings.memory.enabled
        else "none",
        step=step,
        steps=config.train.steps,
        sequence=config.train.sequence,
        loss=measured,
        baseline=f"{baseline:.4f} nats/{unit}" if (baseline := summary.get("baseline_loss")) else "not measured",
        baseline_name=summary.get("baseline_name") or "bigram baseline",
        data=config.data.get("_target_", ""),
        digest=summary.get("data_digest") or "none",
        git=summary.get("git") or "unknown",
        config_hash=summary.get("config_hash", ""),
        seed=config.seed,
        probes="\n".join(levels),
    )


_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [test-time-memory]
---

# {name}

A language model whose memory learns at test time. {reads} Exported by atlas {version}.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
prompt = tokenizer("def main(", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(prompt, max_new_tokens=100)[0]))
```

It needs transformers 5.24 or newer and the package `atlas-test-time-memory`, not `atlas` of PyPI. The cache is the
state of the memories and of the attention window: with a window, a token costs the same at any context. `memory="off"`
or `"frozen"` in a call is the control. `lasting=0.5` in `from_pretrained` is for texts longer than the trained length:
only large writes last, so more needles are found and the loss of text is higher. The memory learns from every token,
so there is no padding: texts of different lengths are given one at a time.

## Needle-in-a-haystack probes

| level | verdict |
|---|---|
{probes}

## Training

| | |
|---|---|
| parameters | {parameters} |
| model | {size} |
| memory | {memory} |
| trained | step {step} of {steps}, sequences of {sequence} tokens |
| validation loss | {loss} |
| {baseline_name} | {baseline} |
| data | `{data}`, digest {digest} |
| code | revision {git}, configuration {config_hash}, seed {seed} |
"""
