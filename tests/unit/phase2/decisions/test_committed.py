"""The committed decisions are those of the committed evidence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.phase2.decisions.document import DATA, document
from experiments.phase2.decisions.protocols import PROTOCOLS
from experiments.phase2.decisions.record import read_record, record_text

DOCUMENT = Path(__file__).parents[4] / "experiments" / "PHASE2_DECISIONS.md"
EVIDENCE = DOCUMENT.parent / DATA
COMMITTED = sorted(path.stem for path in EVIDENCE.glob("*.json"))


def test_the_document_shows_the_figures_of_the_evidence() -> None:
    assert sorted(PROTOCOLS) == COMMITTED
    assert DOCUMENT.read_text(encoding="utf-8") == document(EVIDENCE)


@pytest.mark.parametrize("name", COMMITTED)
def test_the_recorded_outcome_is_that_of_the_rule(name: str) -> None:
    path = EVIDENCE / f"{name}.json"
    assert json.loads(record_text(read_record(path))) == json.loads(path.read_text(encoding="utf-8"))
