"""The committed decisions are those of the committed evidence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.phase2.decide import PROTOCOLS
from experiments.phase2.decision import DATA, Protocol, document, read_record

DOCUMENT = Path(__file__).parents[3] / "experiments" / "phase2" / "PHASE2_DECISIONS.md"
EVIDENCE = DOCUMENT.parent / DATA


def test_the_document_shows_the_figures_of_the_evidence() -> None:
    assert {path.stem for path in EVIDENCE.glob("*.json")} <= {protocol.name for protocol in PROTOCOLS}
    assert DOCUMENT.read_text(encoding="utf-8") == document(EVIDENCE, PROTOCOLS)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_the_recorded_outcome_is_that_of_the_rule(protocol: Protocol) -> None:
    path = EVIDENCE / f"{protocol.name}.json"
    if path.is_file():  # else the document says that it was not measured
        assert json.loads(read_record(path, protocol).json()) == json.loads(path.read_text(encoding="utf-8"))
