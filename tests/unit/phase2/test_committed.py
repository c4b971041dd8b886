"""The committed decisions are those of the committed evidence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.phase2.decide import PROTOCOLS, main
from experiments.phase2.decision import DATA, Protocol, document, read_record

DOCUMENT = Path(__file__).parents[3] / "experiments" / "phase2" / "PHASE2_DECISIONS.md"
EVIDENCE = DOCUMENT.parent / DATA


def test_the_document_shows_the_figures_of_the_evidence() -> None:
    assert {path.stem for path in EVIDENCE.glob("*.json")} <= {protocol.name for protocol in PROTOCOLS}
    assert DOCUMENT.read_text(encoding="utf-8") == document(EVIDENCE, PROTOCOLS)


@pytest.mark.parametrize("path", sorted(EVIDENCE.glob("*.json")), ids=lambda path: path.stem)
def test_the_command_decides_again_from_the_evidence(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed = path.read_bytes()
    found = json.loads(committed)
    assert main([str(path)]) == (0 if found["passed"] else 1)
    text = capsys.readouterr().out
    assert text.startswith("## ")
    assert found["reason"] in text
    assert text.splitlines()[-1].endswith(f": {found['outcome']} ({found['headline']})")
    assert path.read_bytes() == committed


def test_a_file_that_is_no_decision_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "decision.json"
    path.write_text('{"protocol": "speed"}', encoding="utf-8")
    assert main([str(path)]) == 2
    allowed = "one of chunk_sizes, probe_frequency, rollback_threshold"
    assert capsys.readouterr().err == f"atlas: protocol=speed: must be {allowed}\n"


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_the_recorded_outcome_is_that_of_the_rule(protocol: Protocol) -> None:
    path = EVIDENCE / f"{protocol.name}.json"
    if path.is_file():  # else the document says that it was not measured
        assert json.loads(read_record(path, protocol).json()) == json.loads(path.read_text(encoding="utf-8"))
