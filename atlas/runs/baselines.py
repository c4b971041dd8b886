"""What models without a memory reach by the same recipe on the same text: measured figures beside those of a run.

`baselines.json` is written by `python -m experiments.baselines` from finished runs and records. A figure is shown only
beside a run with the same text, data, steps and optimiser, and within `NEAR` of its number of parameters.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from atlas.config import RunConfig
from atlas.config.keys import flat

FILE = Path(__file__).with_name("baselines.json")
RECIPE = ("data", "train", "optim")  # groups that decide what a run learns from, and how
NEAR = 0.02  # of the parameters


@dataclass(frozen=True)
class Baseline:
    """Validation losses of text in nats per token, one of each seed."""

    model: str  # the option of the group `model`
    parameters: int
    losses: list[float]
    revision: str
    digest: str  # of the text
    recipe: dict[str, Any]
    about: str = ""  # what was changed in that model

    def told(self, token: str) -> str:
        """The row of the closing table; `token`: what a token of the text is."""
        several = f" ({len(self.losses)} seeds, {min(self.losses):.4f} to {max(self.losses):.4f})"
        seeds = several if len(self.losses) > 1 else ""
        what = " ".join(filter(None, (f"model={self.model}", self.about)))
        where = f"same recipe, measured at revision {self.revision[:7]}"
        return f"{mean(self.losses):.4f} nats/{token}{seeds}, {what}, {where}"


def recipe(config: RunConfig) -> dict[str, Any]:
    """The settings that two runs must share, by their dotted keys; of the text its digest counts, not its path."""
    found = {key: value for key, value in flat(asdict(config)).items() if key.split(".")[0] in RECIPE}
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return {key: value for key, value in plain.items() if key not in ("data.path", "data.paths")}


def comparable(config: RunConfig, parameters: int, digest: str) -> list[dict[str, Any]]:
    """The baselines of a run with these settings, this size and this text, as plain dictionaries.

    There are none for a run that starts with trained weights: it has read more than they have.
    """
    if config.init_from is not None:
        return []
    own = recipe(config)
    return [
        asdict(one)
        for one in (Baseline(**given) for given in json.loads(FILE.read_text(encoding="utf-8")))
        if one.recipe == own and one.digest == digest and abs(parameters - one.parameters) <= NEAR * parameters
    ]
