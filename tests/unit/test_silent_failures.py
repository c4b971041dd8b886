"""What counts as noticed in the catalogue of silent failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.silent.catalogue import CATALOGUE
from experiments.silent.failure import Facts, Finding, outcome
from experiments.silent.readme import documents, kinds, summary
from experiments.silent.table import Caused, read_results, revision, text_of, write_results

CALM = Facts(0, [Finding("warning", "the text has 12 odd files", 0)])
USUAL = Finding("warning", "the text has 7 odd files", 0)
SLOW = Finding("watch", "slowdown: a step takes 4.1 times as long", 90)
NOTICED = {
    "nothing": ([], 0, "", ("NOT NOTICED", None, "")),
    "what the calm run tells too": ([USUAL], 0, "", ("NOT NOTICED", None, "")),
    "a slow machine": ([SLOW], 0, "", ("NOT NOTICED", None, "")),
    "a slow machine, where that is the failure": ([SLOW], 0, "slow", ("warned at step 90", 30, SLOW.message)),
    "another complaint": ([Finding("watch", "gates: open", 90)], 0, "norm", ("NOT NOTICED", None, "")),
    "a finding": ([USUAL, Finding("watch", "gates: open", 90)], 0, "", ("warned at step 90", 30, "gates: open")),
    "a refusal": ([Finding("refused", "atlas: no")], 2, "", ("refused before the start", None, "atlas: no")),
    "a rollback": (
        [Finding("spike", "up", 90), Finding("rollback", "back", 95)],
        0,
        "",
        ("rolled back", 30, "up"),
    ),
    "an end": ([Finding("ended", "status 1: no", 90)], 1, "", ("aborted", 30, "status 1: no")),
}


@pytest.mark.parametrize("case", NOTICED)
def test_a_failure_is_noticed_by_what_the_calm_run_does_not_tell(case: str) -> None:
    findings, status, says, wanted = NOTICED[case]
    assert outcome(Facts(status, findings, 60), CALM, says) == wanted


def test_the_table_counts_failures_that_are_noticed_with_every_seed() -> None:
    failure = CATALOGUE[0]
    noticed = Facts(0, [Finding("watch", "gates: open", 3)])
    text = text_of([Caused(failure, 0, noticed, CALM, 1.0), Caused(failure, 1, CALM, CALM, 1.0)])
    assert "0 of 1 failures are noticed or told, with every seed that ran. False alarms: 2." in text
    assert "warned (1 of 2); NOT NOTICED (1 of 2) | 3 | 2 | gates: open |" in text


def test_what_is_recorded_says_the_same_when_it_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.silent.table.HERE", tmp_path)
    assert read_results(CATALOGUE) == []
    reports = [Facts(0, [Finding("told", line) for line in lines]) for lines in (["a", "killed"], ["a"])]
    killed = next(failure for failure in CATALOGUE if failure.name == "killed_but_running")
    found = [Caused(killed, 1, *reports, 1.0, "older")]
    found.append(Caused(CATALOGUE[0], 0, Facts(0, [SLOW], 60), CALM, 2.0, revision()))
    write_results(found, CATALOGUE)
    assert [one.failure.name for one in read_results(CATALOGUE)] == [CATALOGUE[0].name]
    again = read_results(CATALOGUE, older=True)
    assert [(one.failure.name, one.seed, one.outcome, one.false_alarms) for one in again] == [
        (one.failure.name, one.seed, one.outcome, one.false_alarms) for one in reversed(found)
    ]
    assert [one.outcome[0] for one in again] == ["NOT NOTICED", "told"]
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert f"2 of the {len(CATALOGUE)} failures of the catalogue ran, with the seeds 0, 1." in text
    assert f"revision {revision()} (1 runs), older (1 runs); do not edit." in text
    assert kinds(again)[2] == "| learning | 1 | 0 | 1 NOT NOTICED |"
    assert summary(again, "there").startswith(
        "1 of 2 failures are noticed, each caused with 2 seeds. False alarms: 1 in 2 calm twins"
    )


def test_the_documents_say_what_the_results_say() -> None:
    for file, text in documents().items():
        assert text == file.read_text(encoding="utf-8")


def test_the_catalogue_names_each_of_at_least_30_failures_once() -> None:
    names = [failure.name for failure in CATALOGUE]
    assert (len(set(names)), len(names) >= 30) == (len(names), True)
