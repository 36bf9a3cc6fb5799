"""What real models and real text have, and tiny ones made for tests do not: each on tiny ones."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import codehead as package
from codehead.models.hidden import Statistics
from codehead.training.data import Collator
from codehead.training.model import load_model
from codehead.training.tokenizer import train_bpe

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "red", "dog", "ran", "to", "park", "two", "big", "birds"]
TEXTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 30)) for i in range(1, 41)]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
CONVERT = ("--bits", 24, "--steps", 4, "--block-size", 32)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def byte_pairs():
    tokenizer = train_bpe(TEXTS, 290)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def words_alone(**special):
    """A tokenizer of words, without any special token but those given."""
    vocabulary = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="the"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=vocabulary, **special)


def saved(folder, tokenizer, padding=0, tied=True):
    """A model for a tokenizer, with `padding` more rows than it has tokens."""
    size = len(tokenizer) + padding
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        torch.nn.init.normal_(model.lm_head.weight, std=0.5)
        model.lm_head.weight[len(tokenizer) :] = 0  # padding rows are often all alike
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def through(codehead, tmp_path, text):
    """Takes a model through recommend, convert, evaluate and generate; the folder of the coded one."""

    def run(model, *options):
        for arguments in (
            ("recommend", model, "--bits", 24),
            ("convert", model, "--data", text, *CONVERT, *options, "--out", tmp_path / "coded"),
            ("evaluate", tmp_path / "coded", "--data", text, "--repeats", 0),
            ("generate", tmp_path / "coded", "--prompt", "the cat", "--max-new-tokens", 4),
        ):
            status, _, errors = codehead(*arguments)
            assert status == 0, (arguments[0], errors)
        return tmp_path / "coded"

    return run


@pytest.mark.parametrize("padding", [6, 700])
def test_a_padded_vocabulary(through, tmp_path, padding):
    """Rows without a token, up to most of them: each still needs a codeword of its own."""
    coded = load_model(str(through(saved(tmp_path / "model", byte_pairs(), padding), "--tokens", 500)))
    codewords = coded.decision.table.lookup(torch.arange(coded.config.vocab_size))
    assert len(codewords.unique(dim=0)) == coded.config.vocab_size


def test_a_tokenizer_without_a_pad_token(through, tmp_path, codehead, text):
    """The eos token pads instead, masked."""
    folder = through(saved(tmp_path / "model", words_alone(eos_token="</s>"), padding=4), "--tokens", 500)
    status, _, errors = codehead(
        *("finetune", "--model", folder, "--train", text, "--max-steps", 2, "--block-size", 32),
        *("--batch-size", 3, "--out", tmp_path / "tuned"),
    )
    assert status == 0, errors


def test_a_tokenizer_that_cannot_end_a_document(codehead, tmp_path, text):
    model = saved(tmp_path / "model", words_alone())
    for command in (("evaluate", model, "--data", text), ("convert", model, "--data", text, *CONVERT, "--out", "out")):
        status, _, errors = codehead(*command)
        assert status == 2 and "no eos token to end a document with; set one and save it" in errors


def test_padding_needs_no_pad_token():
    batch = Collator(None)([{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7], "labels": [7]}])
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[5, 6], [7, -100]]


def test_the_chat_template_is_kept(through, tmp_path):
    folder = through(saved(tmp_path / "model", byte_pairs()), "--tokens", 500)
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE


@pytest.mark.parametrize("tied", [True, False])
def test_fewer_positions_than_hidden_units(through, tmp_path, tied):
    """A singular covariance: H is 32, and the head is fitted to 20 positions."""
    folder = through(saved(tmp_path / "model", byte_pairs(), tied=tied), "--tokens", 20)
    coded = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert bool(torch.isfinite(coded(input_ids=torch.tensor([[5, 7, 11]])).logits).all())


def test_directions_that_no_position_shows_do_not_vary():
    """Of 5 positions about their mean, 4 directions; what rounding leaves of the others is no fifth one."""
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    root = Statistics.of(torch.ones(10), hidden).root
    assert int(torch.linalg.matrix_rank(root, hermitian=True)) == 4


def test_a_low_rank_head_ignores_directions_that_no_position_shows(tmp_path):
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    statistics = Statistics.of(torch.ones(290), hidden)
    model = load_model(str(saved(tmp_path / "model", byte_pairs(), tied=False)))
    options = {"code": "one_vs_all", "loss": "codeword", "head": "low_rank", "head_params": {"rank": 8}}
    size = model.config.vocab_size
    statistics = Statistics.of(torch.ones(size), hidden)
    coded = package.attach(model, **options, start="old_head", statistics=statistics)
    _, _, directions = torch.linalg.svd(hidden - hidden.mean(0))
    with torch.no_grad():
        unseen = coded.get_output_embeddings().weight @ directions[4:].T
    assert float(unseen.abs().max()) < 1e-4
