"""`python -m atlas.export`, and what takes its folder: `init_from` and the library transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from math import log
from pathlib import Path

import pytest
import torch

import atlas
from atlas.checkpoint.manager import CheckpointManager
from atlas.config import ConfigError, RunConfig
from atlas.config.composition import save_config
from atlas.export import main
from atlas.generate import GenerationSettings, continuation
from atlas.pretrained.card import model_card
from atlas.pretrained.folder import read_weights
from atlas.pretrained.tokenizer import byte_tokenizer, end_token
from atlas.runs.build import build_model
from atlas.telemetry.run_files import RunFiles

safetensors = pytest.importorskip("safetensors", reason="the extra hf is not installed")
PROBE = {
    "kind": "probe",
    "step": 7,
    "time": 1.0,
    "level": "recall",
    "passed": False,
    "accuracy": 0.5,
    "control": 0.25,
    "verdict": "FAILED: 50.0% with memory, 25.0% without",
}


@pytest.fixture
def exported(untrained: Path, tmp_path: Path) -> Path:
    (untrained / "events.jsonl").write_text(
        "".join(json.dumps(PROBE | other) + "\n" for other in ({"step": 3, "accuracy": 1.0}, {}))
    )
    assert main([str(untrained), f"out={tmp_path / 'out'}"]) == 0
    return tmp_path / "out"


def test_the_folder_holds_the_weights_and_what_was_measured(untrained: Path, exported: Path) -> None:
    model, _ = atlas.load(untrained)
    weights = read_weights("path", exported)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    modes = {(exported / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1
    with safetensors.safe_open(exported / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["probes"]) == [{key: PROBE[key] for key in PROBE if key not in ("kind", "time")}]
    assert (metadata["step"], json.loads(metadata["validation_loss"])) == ("7", None)
    card = (exported / "README.md").read_text()
    assert "| recall | FAILED: 50.0% with memory, 25.0% without |" in card
    assert "| memory | NOT MEASURED at this step |" in card
    assert "| validation loss | not measured at this step |" in card
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "modeling_atlas.py",
        "README.md",
    }


def test_a_probe_that_reads_otherwise_is_not_told_of_the_exported_model(untrained: Path, tmp_path: Path) -> None:
    for lasting in (0.0, 0.5):
        probed = {"checkpoint": "step-00000007", "lasting": lasting, "results": [PROBE]}
        probed["earlier"] = [3, {**probed, "results": [4, {"level": "recall"}, {"level": []}]}]  # somebody else's
        (untrained / "niah.json").write_text(json.dumps(probed))
        assert main([str(untrained), f"out={tmp_path / str(lasting)}"]) == 0
        told = PROBE["verdict"] in (tmp_path / str(lasting) / "README.md").read_text()
        assert told == (lasting == 0.0)


def test_the_card_names_a_rule_of_ones_own(tiny: Callable[..., RunConfig], untrained: Path) -> None:
    own = "atlas.ops.rules.gd.GradientDescent"
    config = tiny(f"+model.memory.own_rule._target_={own}", "trust=[atlas.ops.rules.gd]")
    card = model_card("model", config, RunFiles(untrained, strict=False), 7, None, [], 1)
    assert f"| memory | rule {own}, local chunks " in card


@pytest.mark.slow
def test_a_run_starts_from_it(untrained: Path, exported: Path, tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    settings = ["train.steps=1", "seed=5", "optim.lr=1e-12", "calibration=off"]
    runs = [
        atlas.train(tiny(*settings, f"init_from={source}"), tmp_path / name)
        for name, source in (("from export", exported), ("from run", untrained))
    ]
    assert runs[0].loss == runs[1].loss
    notices = [
        line for line in (tmp_path / "from export" / "events.jsonl").read_text().splitlines() if "notice" in line
    ]
    assert f"starts from the weights of {exported}" in notices[-1]
    with pytest.raises(
        ConfigError, match=r"init_from=.*/out: must hold the weights of this model \(it has model.width=32, not 16\)"
    ):
        atlas.train(tiny(*settings, f"init_from={exported}", "model.width=16"), tmp_path / "other")
    (exported / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"init_from=.*/out: must hold a sound model.safetensors"):
        atlas.train(tiny(*settings, f"init_from={exported}"), tmp_path / "torn")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "out=: must be a folder to write"),
        (["out=taken"], "out=taken: must be a folder that does not exist or is empty"),
        (["out=taken/new"], "out=taken/new: must be a folder that can be written (Not a directory)"),
        ([f"out=a/{'b' * 300}"], f"out=a/{'b' * 300}: must be a folder that can be written (File name too long)"),
        (["out=/proc/new"], "out=/proc/new: must be a folder that can be written (No such file or directory)"),
        (["out=new", "step=7"], "step=7: must be one of the keys out, weights, trust"),
    ],
)
def test_a_bad_argument_is_refused(
    settings: list[str],
    message: str,
    untrained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(untrained)
    (untrained / "taken").write_text("")
    shutil.rmtree(untrained / "checkpoints")  # refused before the model is loaded
    assert main([str(untrained), *settings]) == 2
    assert capsys.readouterr() == ("", f"atlas: {message}\n")
    assert {path.name for path in untrained.iterdir()} == {"config.yaml", "taken"}


def test_a_model_that_cannot_be_read_or_written_leaves_no_folder(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(weights: object, file: Path, metadata: object) -> None:
        assert file.parent.name == ".unfinished"
        raise safetensors.SafetensorError("no space left")

    out = tmp_path / "a" / "b"
    assert main([str(tmp_path / "nowhere"), f"out={out}"]) == 2
    capsys.readouterr()
    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert main([str(untrained), f"out={out}"]) == 2
    assert capsys.readouterr().err == (
        f"atlas: out={out}: must be a folder that takes all of the files (no space left)\n"
    )
    assert not out.parent.exists()


def test_a_folder_that_a_killed_call_has_begun_is_filled(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "mine"
    (begun / ".unfinished").mkdir(parents=True)
    (begun / ".unfinished" / "model.safetensors").write_bytes(b"torn")
    monkeypatch.chdir(begun)
    assert main([str(untrained), "out=."]) == 0
    model, _ = atlas.load(untrained)
    weights = read_weights("path", begun)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    card = (begun / "README.md").read_text()
    assert "\n# mine\n" in card
    assert f"| parameters | {sum(parameter.numel() for parameter in model.parameters()):,} |" in card  # no summary.json
    assert ".unfinished" not in {path.name for path in begun.iterdir()}


COMPARE = """
import sys, torch, atlas
from transformers import AutoModelForCausalLM, AutoTokenizer
run, folder = sys.argv[1:]
model, _ = atlas.load(run)
theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
text = "né\\t→ the memory\\n"
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
tokens = tokenizer(text, return_tensors="pt").input_ids
assert tokens[0].tolist() == list(text.encode()), tokens
assert tokenizer.decode(tokens[0]) == text
with torch.no_grad():
    out, found = model(tokens), theirs(tokens)
    assert torch.equal(found.logits, out.logits)
    for mode in ("off", "frozen"):
        assert torch.equal(theirs(tokens, memory=mode).logits, model(tokens, mode=mode).logits)
        assert not torch.equal(theirs(tokens, memory=mode).logits, out.logits)
    state, last, wanted, logits = out.state, out.logits[:, -1:], [], []
    for _ in range(40):  # longer than a shard and the attention's window
        token = last[:, -1].argmax(-1, keepdim=True)
        wanted.append(int(token)); logits.append(last[0, -1])
        out = model(token, state)
        state, last = out.state, out.logits
    state, rest = model(tokens[:, :4]).state, tokens[:, 4:]
    known = theirs(tokens[:, :4]).cache  # `past_key_values` is the name of before
    assert torch.equal(theirs(rest, past_key_values=known).logits, model(rest, state).logits)
settings = {"max_new_tokens": 40, "do_sample": False, "temperature": None}
generated = theirs.generate(tokens, **settings, return_dict_in_generate=True, output_logits=True)
assert generated.sequences[0, tokens.shape[1]:].tolist() == wanted
assert all(torch.equal(a[0], b) for a, b in zip(generated.logits, logits, strict=True))
assert generated.cache.state.position == tokens.shape[1] + 39
one = theirs.generate(tokens, num_beams=3, **settings)
without = theirs.generate(tokens, num_beams=3, use_cache=False, **settings)
assert torch.equal(one, without)
both = theirs.generate(tokens.repeat(2, 1), **settings)
assert torch.equal(both[1], generated.sequences[0])
try:
    theirs(tokens, attention_mask=torch.zeros_like(tokens))
except ValueError as error:
    assert str(error).startswith("attention_mask has zeros: must be left out or all ones"), error
else:
    raise AssertionError("padding was read")
theirs.save_pretrained(folder + "-again")
again = AutoModelForCausalLM.from_pretrained(folder + "-again", trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(again(tokens).logits, found.logits)
frozen = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, memory="frozen")
with torch.no_grad():
    assert torch.equal(frozen(tokens).logits, model(tokens, mode="frozen").logits)
lasting = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, lasting=0.2)
longer = torch.arange(3 * lasting.config.trained_length)[None] % 251
with torch.no_grad():
    plain = model(longer).logits
    model.plan = model.plan.with_lasting(0.2, lasting.config.trained_length)
    wanted = model(longer).logits
    assert torch.equal(lasting(longer).logits, wanted)
    assert not torch.equal(plain, wanted)
loss = theirs(tokens, labels=tokens).loss
assert torch.equal(loss, torch.nn.functional.cross_entropy(found.logits[0, :-1], tokens[0, 1:]))
print("same")
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="the extra hf is not installed")
def test_transformers_gives_the_logits_of_the_run(untrained: Path, exported: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMPARE, str(untrained), str(exported)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "same\n"), ended.stderr


TASKS = {
    "choices": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc}]
""",
    "text": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
""",
    "generation": """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}
QUESTIONS = [
    {"question": "the words of the text", "choices": [" are words", " zz"], "label": 0},
    {"question": "a longer question, of more than thirty-two bytes", "choices": [" is", " asked here"], "label": 1},
]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="the lm-evaluation-harness is not installed")
def test_the_harness_measures_what_the_model_says(untrained: Path, exported: Path, tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    for name, content in TASKS.items():
        head = f"task: own_{name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        (tmp_path / f"{name}.yaml").write_text(f"{head}test_split: test\n{content}")
    tasks = ",".join(f"own_{name}" for name in TASKS)
    command = [sys.executable, "-m", "atlas.harness", "--model", "atlas", "--device", "cpu", "--batch_size", "2"]
    command += ["--model_args", f"pretrained={exported}", "--tasks", tasks, "--include_path", str(tmp_path)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    environment = {**os.environ, **offline, "OMP_NUM_THREADS": "1"}
    results = tmp_path / "results"
    ended = subprocess.run(
        [*command, "--output_path", str(results)], capture_output=True, text=True, check=False, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    (file,) = results.rglob("results*.json")
    found = json.loads(file.read_text())["results"]
    model, _ = atlas.load(untrained)

    def nats(context: bytes, continuation: bytes) -> float:
        tokens = torch.tensor([list(context + continuation)])
        with torch.no_grad():
            logits = model(tokens[:, :-1]).logits[0].log_softmax(-1)
        return -float(logits.gather(-1, tokens[0, 1:, None])[len(context) - 1 :].sum())

    texts = [str(one["question"]).encode() for one in QUESTIONS]
    bits = sum(nats(b"\n", text) for text in texts) / sum(map(len, texts)) / log(2)
    assert found["own_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
    right = [
        min((nats(text, choice.encode()), at) for at, choice in enumerate(one["choices"]))[1] == one["label"]
        for text, one in zip(texts, QUESTIONS, strict=True)
    ]
    assert found["own_choices"]["acc,none"] == pytest.approx(sum(right) / 2)
    assert found["own_generation"]["exact_match,none"] == 0.0


def test_a_tokenizer_of_bytes_with_an_end_of_documents() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    read = tokenizers.Tokenizer.from_str(json.dumps(byte_tokenizer(with_end=True)))
    text = "né\t→ \x00"
    assert read.encode(f"{text}<|endoftext|>").ids == [*text.encode(), 256]
    assert read.decode([*text.encode(), 256]) == text
    assert (end_token(byte_tokenizer(with_end=True)), end_token(byte_tokenizer())) == (("<|endoftext|>", 256), None)


@pytest.fixture
def of_tokens(tiny: Callable[..., RunConfig], tmp_path: Path) -> Path:
    """A run folder of a model with 300 ids, and its tokenizer: bytes and the end of documents."""
    config, folder = tiny("model.vocabulary=300"), tmp_path / "of tokens"
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer(with_end=True)))
    checkpoints = CheckpointManager(folder / "checkpoints", keep=2)
    checkpoints.save(7, {"model": build_model(config).state_dict()}, {"loss": 1.0})
    checkpoints.close()
    return folder


def test_the_tokenizer_of_a_token_store_goes_along(of_tokens: Path, tmp_path: Path) -> None:
    assert main([str(of_tokens), f"out={tmp_path / 'out'}"]) == 0
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    config, tokenizer, settings, generation = (json.loads((tmp_path / "out" / name).read_text()) for name in names)
    assert config["vocab_size"] == 300
    assert tokenizer == byte_tokenizer(with_end=True)
    assert (settings["eos_token"], generation["eos_token_id"]) == ("<|endoftext|>", 256)
    assert "Its vocabulary has 300 tokens." in (tmp_path / "out" / "README.md").read_text()


def test_from_python_a_loaded_model_of_tokens_knows_its_tokenizer(of_tokens: Path) -> None:
    pytest.importorskip("tokenizers")
    model, config = atlas.load(of_tokens)
    settings = {"tokens": 12, "temperature": 1.5, "seed": 4}
    said = b"".join(continuation(str(of_tokens), GenerationSettings(prompt="abc", **settings)))  # type: ignore[arg-type]
    assert atlas.generate(model, "abc", **settings) == said.decode()
    bare = build_model(config)
    bare.load_state_dict(model.state_dict())
    for place in (of_tokens, of_tokens / "tokenizer.json"):
        assert atlas.generate(bare, "abc", tokenizer=str(place), **settings) == said.decode()
    with pytest.raises(ConfigError, match=r"^tokenizer=\S+: must be a run with a tokenizer.json, or such a file$"):
        atlas.generate(bare, "abc", tokenizer=str(of_tokens.parent / "none"), **settings)
    with pytest.raises(
        ConfigError, match=r"^model.vocabulary=300: must be of bytes, or read with the tokenizer of its"
    ):
        atlas.generate(bare, "abc", **settings)
