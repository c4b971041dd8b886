"""The committed decisions are those of the committed evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.phase2.decide import PROTOCOLS, main
from experiments.phase2.decision import DATA, Protocol, digest, document, read_record, read_records

DOCUMENT = Path(__file__).parents[3] / "experiments" / "phase2" / "PHASE2_DECISIONS.md"
EVIDENCE = DOCUMENT.parent / DATA


def test_the_document_shows_the_figures_of_the_evidence() -> None:
    assert {path.stem for path in EVIDENCE.glob("*.json")} <= {protocol.name for protocol in PROTOCOLS}
    assert DOCUMENT.read_text(encoding="utf-8") == document(read_records(EVIDENCE, PROTOCOLS), PROTOCOLS)


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
    assert capsys.readouterr().err == f"atlas: {path}: protocol=speed: must be {allowed}\n"


def edit(name: str, *place: str | int, value: Any = None) -> dict[str, Any]:
    """Committed evidence with another value in one place; without a value, the entry is taken out."""
    content: dict[str, Any] = json.loads((EVIDENCE / f"{name}.json").read_text(encoding="utf-8"))
    node: Any = content
    for key in place[:-1]:
        node = node[key]
    if value is None:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return content


CHUNKS, PROBES, DELTAS = "chunk_sizes", "probe_frequency", "rollback_threshold"
AT = "evidence"
KINDS = [one["kind"] for one in edit(CHUNKS, "rule")[AT]]
SET, RUNS = KINDS.index("SetInvestigation"), len(KINDS) - KINDS.count("SetInvestigation")
EDITS = [
    (edit(CHUNKS, AT, 0, "speeds", 10, value=float("nan")), "evidence[0].speeds[10]=nan: must be a finite number"),
    (edit(CHUNKS, AT, 0, "speeds", 10, value=-5.0), "evidence[0].speeds[10]=-5.0: must be > 0"),
    (edit(CHUNKS, AT, 0, "speeds", 10, value="fast"), "evidence[0].speeds[10]=fast: must be a number"),
    (edit(CHUNKS, AT, 0, "speeds"), "evidence[0].speeds=nothing: must be there: the file is not whole"),
    (edit(CHUNKS, AT, 0, "more", value=1), "evidence[0].more=1: must be left out: this version does not know it"),
    (edit(CHUNKS, AT, 0, "kind", value="Run"), "evidence[0].kind=Run: must be one of ChunkRun, LearningRun, "),
    (edit(CHUNKS, AT, 0, "batch_size", value=4), "job 1 batch_size=8: must be 4 at 512 tokens, as in the first run"),
    (edit(CHUNKS, AT, 0, "fits", value=1), "evidence[0].fits=1: must be true or false"),
    (edit(CHUNKS, AT, 14), f"runs={RUNS - 1}: must be {RUNS}, as the provenance says: one is missing or doubled"),
    (edit(CHUNKS, AT, 14, "round", value=1), "runs of Set B at 4096 tokens in round 0=0: must be 1"),
    (edit(CHUNKS, AT, SET), "investigation=Set B, Set C: must be of every set that fits; Set A is missing"),
    (edit(CHUNKS, AT, SET, "candidate", value="Set B"), "investigation=Set B, Set B, Set C: must be once of each set"),
    (edit(CHUNKS, AT, SET, "products", value=[1]), f"evidence[{SET}].products=[1]: must be 2 values"),
    (
        edit(CHUNKS, AT, SET, "peak_flops", value=float("inf")),
        f"evidence[{SET}].peak_flops=inf: must be a finite",
    ),
    (edit(CHUNKS, AT, value=[]), f"runs=0: must be {RUNS}, as the provenance says"),
    (edit(CHUNKS, AT, value=3), "must be a decision.json that can be read (TypeError: "),
    (edit(CHUNKS, "provenance", value=[]), "provenance=[]: must be at least one sweep"),
    (edit(CHUNKS, "provenance", 0, "runs", value=0), "provenance[0].runs=0: must be > 0"),
    (edit(PROBES, AT, 0, "steps", value=0), "evidence[0].steps=0: must be > 0"),
    (edit(PROBES, AT, 0, "probes", value=0), "job 0 niah.every=20: must be <= 120, the steps of the run"),
    (edit(PROBES, AT, 0, "probe_seconds", value=float("nan")), "evidence[0].probe_seconds=nan: must be a finite"),
    (edit(PROBES, AT, 1, "round", value=1), "job 0 round=0: must be a run without probes (niah.enabled=false) of the"),
    (edit(DELTAS, AT, 1, "deltas", 3, value=float("nan")), "evidence[1].deltas[3]=nan: must be a finite number"),
    (edit(DELTAS, AT, 1, "seed", value=0), "seed=[0, 0, 2]: must be at least 3 different values"),
]


@pytest.mark.parametrize(("content", "message"), EDITS, ids=[message for _, message in EDITS])
def test_evidence_that_no_run_leaves_is_refused_in_one_line(
    content: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "decision.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"atlas: {path}: sha256={content.pop('sha256')}: must be ")
    path.write_text(json.dumps(content | {"sha256": digest(content)}), encoding="utf-8")
    assert main([str(path)]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith(f"atlas: {path}: {message}")


def test_evidence_without_its_sum_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, path = edit(DELTAS, "sha256"), tmp_path / "decision.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert main([str(path)]) == 2
    assert capsys.readouterr().err == (
        f"atlas: {path}: sha256=missing: must be the sum of what the file holds: it was changed after decide wrote it,"
        " or written by an older decide. Restore it, or make it again from its sweeps with python -m"
        " experiments.phase2.decide\n"
    )


def test_sweeps_of_two_revisions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = edit(DELTAS, "sha256")
    (source,) = content["provenance"]
    content["provenance"] = [source | {"runs": 1}, source | {"runs": 2, "git": "deadbee"}]
    path = tmp_path / "decision.json"
    path.write_text(json.dumps(content | {"sha256": digest(content)}), encoding="utf-8")
    assert main([str(path)]) == 2
    found = f"revision={source['git']}, deadbee: must be one for all sweeps of a decision"
    assert capsys.readouterr().err == f"atlas: {path}: {found}\n"


def test_the_protocol_of_a_file_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for given, allowed in (("probe_frequency", ""), ("nonsense", "")):
        assert main([str(EVIDENCE / "chunk_sizes.json"), f"protocol={given}"]) == 2
        allowed = "chunk_sizes, that of the file, or left out"
        assert capsys.readouterr().err == f"atlas: protocol={given}: must be {allowed}\n"


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_the_recorded_outcome_is_that_of_the_rule(protocol: Protocol) -> None:
    path = EVIDENCE / f"{protocol.name}.json"
    if path.is_file():  # else the document says that it was not measured
        assert json.loads(read_record(path, [protocol]).json()) == json.loads(path.read_text(encoding="utf-8"))
