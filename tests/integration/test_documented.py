"""What README and tutorial show runs: every Python block and every command, in order, in one folder."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, Qwen3Config

from codehead.training.tokenizer import train_bpe

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md"]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A block of code; a comment in the line before says why it is not run."""
SHELL = """
codehead() { "$PYTHON" -m codehead "$@"; }
python() { "$PYTHON" "$@"; }
set -euo pipefail
"""
"""The command and the interpreter of these tests, whatever is installed beside them."""


SIZES = {
    "vocab_size": 1024, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0,
    "max_position_embeddings": 512,
}  # fmt: skip
LLAMA = LlamaConfig(**SIZES, intermediate_size=64, tie_word_embeddings=True)
NAMED = {
    "HuggingFaceTB/SmolLM2-135M": LLAMA,
    "HuggingFaceTB/SmolLM2-135M-Instruct": LLAMA,
    "Qwen/Qwen3-0.6B": Qwen3Config(**SIZES, intermediate_size=64, num_key_value_heads=1),
    "facebook/opt-1.3b": OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=64),
}
"""The models of the hub that the pages name. Here they are tiny and untrained, in folders of these names."""


class Block(NamedTuple):
    """A block of code in a document."""

    language: str
    code: str
    line: int
    is_run: bool


def blocks(text: str) -> list[Block]:
    """The Python and shell blocks of a document."""
    return [
        Block(found[2], found[3], text[: found.start(3)].count("\n") + 1, found[1] is None)
        for found in BLOCK.finditer(text)
    ]


def run_shell(block: Block, place: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-c", SHELL + block.code], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"line {block.line}: {block.code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def write_what_readers_have(place: Path) -> None:
    """Models under the names that they have on the hub, and two files of text."""
    paragraphs = [part for page in DOCUMENTS for part in page.read_text(encoding="utf-8").split("\n\n")]
    texts = [part for part in paragraphs if 20 < len(part.split()) < 200]
    for name, chosen in (("mine.jsonl", texts[:200]), ("test.jsonl", texts[200:230])):
        (place / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen), encoding="utf-8")
    tokenizer = train_bpe(texts, SIZES["vocab_size"])
    for name, config in NAMED.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_shown_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_what_readers_have(tmp_path)
    tokens = torch.randint(1, SIZES["vocab_size"], (2, 32))
    names = {"__name__": "documented", "input_ids": tokens, "labels": tokens}
    for block in blocks(page.read_text(encoding="utf-8")):
        if not block.is_run:
            continue
        if block.language == "bash":
            run_shell(block, tmp_path)
        else:
            padded = "\n" * (block.line - 1) + block.code  # a traceback tells the line of the document
            exec(compile(padded, str(page), "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_python_blocks_are_python(document):
    for block in blocks(document.read_text(encoding="utf-8")):
        if block.language == "python":
            ast.parse(block.code, filename=f"{document.name}:{block.line}")


def test_a_block_with_a_reason_is_not_run():
    text = "<!-- not run: from the hub -->\n```bash\nfalse\n```\n\n```bash\ntrue\n```\n"
    assert [(block.code, block.is_run, block.line) for block in blocks(text)] == [
        ("false\n", False, 3),
        ("true\n", True, 7),
    ]


def test_a_command_that_fails_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="codehead code nonsense"):
        run_shell(Block("bash", "codehead code nonsense\ntrue\n", 1, True), tmp_path)


LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ABROAD = ("http:", "https:", "mailto:")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    plain = (re.sub(r"`|\[|\]\([^)]*\)", "", heading).strip().lower() for heading in HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name
)
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        if target.startswith(ABROAD):
            continue
        path, _, anchor = target.partition("#")
        page = (document.parent / path).resolve() if path else document
        assert page.exists(), target
        if anchor and page.suffix == ".md":
            assert anchor in anchors(page.read_text(encoding="utf-8")), target
