"""What token stores cost: the measures of the README's table, each in processes of its own.

python -m experiments.corpus.table [parts=tokenise,batch,separate,store,logits] [megabytes=24] [source=FILE.jsonl]

`tokenise`, `batch` and `separate` are timings: run them on a quiet machine. `source` is what is tokenised in the place
of random words, such as a file of `python -m experiments.corpus.recipe`. Writes to the console only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from atlas.config import require
from atlas.config.arguments import names, read_settings, run_command
from atlas.data.store import sha256_of
from atlas.data.store_format import SPLITS, STORE_FILE, SplitRecord, StoreRecord, files_of
from atlas.data.tokenizer import ByteTokenizer
from experiments.corpus.kills import write_source

VOCABULARY = 8192
SMALL_BYTES, LARGE_BYTES = 10**7, 10**9  # of text in the two stores that are compared
DOCUMENT = 2000  # bytes
PEAK = "import resource, sys; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
ALONE = """
import os, sys, time, json
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ["RAYON_NUM_THREADS"] = sys.argv[3]
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2])
texts = [json.loads(line)["text"] for line in open(sys.argv[1], encoding="utf-8")]
began = time.perf_counter()
for first in range(0, len(texts), 1000):
    tokenizer.encode_batch_fast(texts[first : first + 1000], add_special_tokens=False)
print(time.perf_counter() - began)
"""
TRAINED = """
import sys, atlas
settings = ["model=tiny", "data=tokens", f"data.path={sys.argv[1]}", "train.steps=40", "train.batch_size=8", "niah=off"]
settings += ["calibration=off", "logger=none", "device=cpu", "train.validation_batches=1", "checkpoint.every=40"]
atlas.train(atlas.compose(settings), sys.argv[2])
"""
STEPPED = """
import sys, torch, atlas
from atlas.runs.build import build_model, build_optimizer
vocabulary = int(sys.argv[1])
config = atlas.compose(["model=small", f"model.vocabulary={vocabulary}", "train.sequence=2048", "niah=off"])
model = build_model(config)
optimizer = build_optimizer(config, model)
tokens = torch.randint(vocabulary, (8, 2049), generator=torch.Generator().manual_seed(0))
model.losses(model.read(tokens[:, :-1]).hidden, tokens[:, 1:]).mean().backward()
optimizer.step(1)
"""
BATCHED = """
import sys, time, torch, atlas
from atlas.runs.build import build_data, build_model
of_batch = 0.0
for documents in ("packed", "separate"):
    settings = ["data=tokens", f"data.path={sys.argv[1]}", f"data.documents={documents}", "train.batch_size=8"]
    config = atlas.compose(["model=small", *settings, "niah=off", "model.vocabulary=257"])
    data = build_data(config)
    batch = data.batch(1)
    began = time.perf_counter()
    for step in range(2, 52):
        data.batch(step)
    of_batch = max(of_batch, (time.perf_counter() - began) / 50)
model = build_model(config)
began = time.perf_counter()
model.losses(model.read(batch.inputs).hidden, batch.targets).mean().backward()
print(of_batch / (time.perf_counter() - began))
"""
SEPARATED = """
import sys, time, torch, atlas
from atlas.runs.allocator import keep_freed_memory
from atlas.runs.build import build_data, build_model
keep_freed_memory()  # as in a run
ways, model, seconds, counted = {}, None, {}, {}
for way in ("packed", "separate"):
    settings = ["data=tokens", f"data.path={sys.argv[1]}", f"data.documents={way}", "model.vocabulary=257", "niah=off"]
    config = atlas.compose(settings)
    ways[way], model = build_data(config), model or build_model(config)
    seconds[way] = counted[way] = 0.0
for step in range(25):
    for way, data in ways.items():
        began = time.perf_counter()
        batch = data.batch(step + 1)
        losses = model.losses(model.read(batch.inputs).hidden, batch.targets)
        ((losses * batch.weights).sum() / batch.weights.sum()).backward()
        model.zero_grad()
        if step:
            seconds[way] += time.perf_counter() - began
            counted[way] += batch.weights.sum().item()
cost = {way: seconds[way] / counted[way] for way in ways}
print(cost["separate"] / cost["packed"] - 1)
"""


@dataclass
class TableSettings:
    parts: str = "tokenise,batch,separate,store,logits"
    megabytes: int = 24  # of random text that is tokenised
    source: str = ""  # JSONL that is tokenised in its place

    def __post_init__(self) -> None:
        unknown = set(names(self.parts)) - set(PARTS)
        require(not unknown, "parts", self.parts, f"some of {', '.join(PARTS)}")


def child(code: str, *arguments: object) -> float:
    """The last line that Python code prints, as a number."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(shown.splitlines()[-1])


def write_store(folder: Path, size: int, *, uneven: bool = False) -> None:
    """A store of bytes with random text, without a preparation; documents of `DOCUMENT` bytes, or of 300 on average."""
    folder.mkdir()
    tokenizer, rng = ByteTokenizer(), np.random.default_rng(0)
    splits = {}
    for split, share in zip(SPLITS, (size, size // 50), strict=True):
        lengths = np.full(max(share // DOCUMENT, 1), DOCUMENT)
        if uneven:
            lengths = 20 + rng.geometric(1 / 280, share // 300)
        ends_at = np.cumsum(lengths + 1, dtype="<i8")
        tokens, ends = (folder / name for name in files_of(split))
        with tokens.open("wb") as file:
            for first in range(0, len(lengths), 10_000):
                inside = ends_at[first : first + 10_000] - (ends_at[first - 1] if first else 0)
                block = rng.integers(97, 123, inside[-1], dtype=np.uint16)
                block[inside - 1] = tokenizer.end_of_document
                file.write(block.astype("<u2").tobytes())
        ends_at.tofile(ends)
        hashes = (sha256_of(tokens), sha256_of(ends))
        splits[split] = SplitRecord(int(ends_at[-1]), len(lengths), int(lengths.sum()), *hashes)
    record = StoreRecord(
        "uint16", tokenizer.vocabulary, tokenizer.end_of_document, "bytes", tokenizer.sha256,
        tokenizer.symbols().record(), splits, 0, 0.0, [], 0, 0, ["random"], {},
    )  # fmt: skip
    (folder / STORE_FILE).write_text(json.dumps(asdict(record)))


def tokenise(folder: Path, settings: TableSettings) -> str:
    source, cores = folder / "text.jsonl", len(os.sched_getaffinity(0))
    if settings.source:
        source = Path(settings.source).resolve()
    else:
        write_source(source, settings.megabytes)
    command = [sys.executable, "-m", "atlas.prepare", str(source), f"workers={cores}"]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, f"out={folder}/trained", f"tokenizer=train:{VOCABULARY}"], **quiet)  # type: ignore[call-overload]
    tokenizer = folder / "trained" / "tokenizer.json"
    alone, ours = [], []
    for turn in range(3):
        alone.append(child(ALONE, source, tokenizer, cores))
        began = time.perf_counter()
        subprocess.run([*command, f"out={folder}/turn{turn}", f"tokenizer={tokenizer}"], **quiet)  # type: ignore[call-overload]
        ours.append(time.perf_counter() - began)
    size = sum(len(json.loads(line)["text"].encode()) for line in source.open("rb")) / 1e6
    speeds = [size / sorted(times)[1] for times in (ours, alone)]
    both = f"{speeds[0]:.1f} of {speeds[1]:.1f} MB/s (medians of 3 turns, the whole command against encode_batch)"
    what = f"tokenise {size:.0f} MB on {cores} cores, {VOCABULARY} ids"
    return f"{what}: {speeds[0] / speeds[1]:.0%} of the library alone, {both}"


def store(folder: Path, settings: TableSettings) -> str:
    peaks = []
    for name, size in (("small", SMALL_BYTES), ("large", LARGE_BYTES)):
        write_store(folder / name, size)
        peaks.append(child(TRAINED + PEAK, folder / name, folder / f"run-{name}"))
    sizes = " and ".join(f"{peak / 2**20:.0f} MiB" for peak in peaks)
    return f"memory while training from a 1 GB store over a 10 MB one: {peaks[1] / peaks[0] - 1:+.1%} ({sizes})"


def batch(folder: Path, settings: TableSettings) -> str:
    write_store(folder / "batches", SMALL_BYTES)
    return (
        "time of a batch, packed or separate, over that of a forward and backward pass of small:"
        f" {child(BATCHED, folder / 'batches'):.3%}"
    )


def separate(folder: Path, settings: TableSettings) -> str:
    write_store(folder / "uneven", SMALL_BYTES, uneven=True)
    cost = child(SEPARATED, folder / "uneven")
    return f"documents=separate over packed, time for each token of text, documents of 300 tokens: {cost:+.1%}"


def logits(folder: Path, settings: TableSettings) -> str:
    few, many = (child(STEPPED + PEAK, vocabulary) for vocabulary in (256, 49_152))
    sizes = f"{many / 2**30:.2f} over {few / 2**30:.2f} GiB"
    return f"peak memory of a step of small, 8 x 2048 tokens, 49,152 ids over 256: {many / few:.2f} ({sizes})"


PARTS = {"tokenise": tokenise, "batch": batch, "separate": separate, "store": store, "logits": logits}


def main(arguments: Sequence[str]) -> int:
    settings = read_settings(TableSettings, arguments)
    for part in names(settings.parts):
        with tempfile.TemporaryDirectory() as folder:
            print(PARTS[part](Path(folder), settings), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
