"""The main job on real text, by the command line: stories, then instructions, with Softmax and with a code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
MODEL = "{model_type: opt, hidden_size: 64, word_embed_proj_dim: 64, ffn_dim: 128, num_hidden_layers: 2, " + (
    "num_attention_heads: 4, max_position_embeddings: 256}"
)
STEPS = ["--max-steps", "12", "--batch-size", "4", "--learning-rate", "3e-3", "--block-size", "128"]


def codehead(*arguments: object) -> str:
    command = [sys.executable, "-m", "codehead", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pretrained(data_dir, tmp_path_factory):
    """A Softmax model that has seen a few stories, with OPT's own tokenizer of 50,265 tokens."""
    out = tmp_path_factory.mktemp("runs") / "softmax"
    source = data_dir("tinystories/stories.jsonl")
    tokenizer = data_dir("tokenizers/opt")
    shape = ["--model", MODEL, "--tokenizer", tokenizer]
    codehead("pretrain", "--train", source, "--max-documents", 400, *shape, "--out", out, *STEPS)
    return out


@pytest.mark.parametrize("loss", ["bitwise", "codeword"])
def test_a_softmax_model_learns_instructions_through_a_code(pretrained, data_dir, tmp_path, loss):
    records = json.loads(data_dir("alpaca/alpaca.json").read_text(encoding="utf-8"))
    for name, part in (("train", records[:200]), ("test", records[200:230])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    out = tmp_path / "coded"
    code = ["--code", "minrandom", "--bits", 32, "--loss", loss]
    codehead("finetune", "--model", pretrained, "--train", tmp_path / "train.json", *code, "--out", out, *STEPS)
    history = [entry["loss"] for entry in json.loads((out / "run.json").read_text())["log_history"] if "loss" in entry]
    assert history[-1] < history[0] or len(history) == 1
    data = ["--data", tmp_path / "test.json", "--block-size", 128, "--repeats", 1]
    metrics = json.loads(codehead("evaluate", out, *data, "--json"))["metrics"]
    assert metrics["size"]["head_parameters"] == 32 * 64
    assert metrics["node_loss"] < 0.693
    assert metrics["bit_accuracy"] > 0.5
    assert codehead("generate", out, "--prompt", "What is a cat?", "--max-new-tokens", 5).strip()
