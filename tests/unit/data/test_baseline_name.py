"""What a report calls the baseline of a data source."""

from __future__ import annotations

from typing import Any

import pytest

from atlas.data.mixed import MixedData
from atlas.data.recall import RecallData
from atlas.data.source import baseline_name
from atlas.data.text import TextData
from atlas.data.tokens import MixedTokenData, TokenData


class Plain:
    def baseline(self, batches: int) -> float:
        return float(batches)


class Named(Plain):
    baseline_name = "uniform guess"


class OwnBaseline(TextData):
    def baseline(self, batches: int) -> float:
        return float(batches)


class OtherBatches(TextData):
    pass


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, "bigram baseline") for kind in (TextData, MixedData, TokenData, MixedTokenData, OtherBatches)),
        (RecallData, "chance baseline"),
        (Plain, "baseline of the data source"),
        (OwnBaseline, "baseline of the data source"),
        (Named, "uniform guess"),
    ],
)
def test_the_name_is_that_of_the_class_that_computes_it(kind: Any, name: str) -> None:
    assert baseline_name(kind.__new__(kind)) == name
