"""What the tests of models share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import make
from small_runs import TEXT, WORDS, pretraining
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import codehead
from codehead import __main__ as cli
from codehead.cli.checkpoints import attach
from codehead.training.run import train
from codehead.training.tokenizer import train_bpe


@pytest.fixture
def coded() -> Callable[..., PreTrainedModel]:
    """Makes a tiny coded model, with a head large enough that its logits differ from token to token."""

    def build(name: str = "llama", tied: bool = True, **options: Any) -> PreTrainedModel:
        model = codehead.attach(make(name, tied), **{"code": "minrandom", "bits": 24, **options})
        with torch.no_grad():
            for parameter in model.get_output_embeddings().parameters():
                parameter.mul_(5)
            for parameter in _starting_at_zero(model):
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        return model

    return build


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    """Sets torch's default dtype until the test ends."""
    kept = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(kept)


def _starting_at_zero(model: Any) -> list[torch.nn.Parameter]:
    """What a shortlist and a bias per token consist of; as zeros they would show nothing."""
    if model.decision.corrections is None:
        return []
    return [
        *model.decision.corrections.parameters(),
        *getattr(model.get_output_embeddings(), "rows", torch.nn.Module()).parameters(),
    ]


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of forty short texts."""
    path = tmp_path_factory.mktemp("data") / "stories.jsonl"
    records = [{"text": " ".join(WORDS[(i * j) % 17] for j in range(1, 40)) + "."} for i in range(1, 41)]
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


@pytest.fixture(scope="session")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of records with an answer each."""
    path = tmp_path_factory.mktemp("data") / "instructions.jsonl"
    records = [{"instruction": f"Say {w}.", "input": "", "output": f"{w}!"} for w in WORDS]
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


@pytest.fixture(scope="session")
def pretrained(stories: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two finished runs from scratch, with a coded head and with Softmax."""
    folder = tmp_path_factory.mktemp("runs")
    config = pretraining(stories, folder / "coded")
    return {
        "coded": train(config, progress=False),
        "softmax": train(pretraining(stories, folder / "softmax", decision=None), progress=False),
    }


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, two tiny models, one of them with few positions, and a tokenizer too large for them."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text(TEXT)
    tokenizer = train_bpe([TEXT], 270)
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, vocab_size=272, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config.n_positions = 32
    GPT2LMHeadModel(config).save_pretrained(folder / "short")
    tokenizer.save_pretrained(folder / "short")
    tokenizer.add_tokens([f"<{number}>" for number in range(279 - len(tokenizer))])
    tokenizer.save_pretrained(folder / "large")
    return folder


@pytest.fixture(scope="session")
def coded_folder(place: Path) -> Path:
    """The model of `place` with a decision layer, saved."""
    attach(str(place / "model"), place / "coded", code="minrandom", bits=20)
    return place / "coded"


@pytest.fixture(name="codehead")
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process; gives its exit status, output and errors."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["codehead", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        try:
            cli.main()
            status = 0
        except SystemExit as leave:
            status = int(leave.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
