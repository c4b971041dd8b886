"""The example of one's own text, in the README and in --help, reads what lies in this repository."""

import re
from pathlib import Path

import pytest

from atlas.config.help import help_text
from atlas.data.corpus import load_corpus

ROOT = Path(__file__).parents[3]


def test_the_example_of_your_own_text_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    option = (ROOT / "conf" / "data" / "text.yaml").read_text(encoding="utf-8")
    for text in ((ROOT / "README.md").read_text(encoding="utf-8"), help_text(), option):
        patterns = re.findall(r"""(?<!resume=RUN )'data\.paths=\["(.*?)"\]'""", text)
        assert len(patterns) >= 1
        for pattern in patterns:
            load_corpus([pattern], "utf8", 0.1).require_length(512)
