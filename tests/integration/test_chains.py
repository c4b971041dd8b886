"""The two chains of calls of docs/architecture.md are those of a run: every function of the package on the way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.kernels.library import missing
from tests.integration.small_runs import JOB

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
MOST = 6  # functions of a chain
RUN = """
import json, os, sys
import atlas.train

package, found = os.path.dirname(atlas.__file__), {}

def watch(frame, event, _):
    name = frame.f_code.co_qualname
    if event != "call" or name not in ("TrainStep.__call__", "Kernel.__call__") or name in found:
        return
    if name == "TrainStep.__call__" or found and frame.f_locals["self"].name == "atlas_scan_forward":
        calls = []
        while frame is not None:
            if frame.f_code.co_filename.startswith(package):
                calls.insert(0, f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}")
            frame = frame.f_back
        found[name] = calls

sys.setprofile(watch)
code = atlas.train.main()
sys.setprofile(None)
json.dump([*found.values(), code], open("found.json", "w"))
"""


@pytest.mark.slow
def test_a_run_takes_the_two_chains_of_the_map(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    (tmp_path / "text.txt").write_text("All work and no play. " * 500, encoding="utf-8")
    arguments = [*JOB, "train.steps=1", "data.paths=[text.txt]", "device.kernels=compiled"]
    subprocess.run([sys.executable, "-c", RUN, *arguments], cwd=tmp_path, check=True)
    to_step, to_kernel, code = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert code == 0
    to_kernel = to_kernel[to_kernel.index("atlas.models.language_model.AtlasModel.forward") :]
    chapters = re.split(r"\*\*From (?:command|model) to \w+:\*\*", ARCHITECTURE.read_text(encoding="utf-8"))[1:]
    for calls, chapter in zip((to_step, to_kernel), chapters, strict=True):
        documented = re.findall(r"^\d\. `([\w.]+)`", chapter.partition("\n## ")[0], re.MULTILINE)
        assert len(calls) == len(documented) <= MOST, calls
        assert all(call.endswith(f".{name}") for call, name in zip(calls, documented, strict=True)), calls
