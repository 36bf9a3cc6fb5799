"""Coded checkpoints in vLLM: text and log-probabilities are those of transformers."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` makes an environment with it")
import torch
from engines import VOCABULARY, by_transformers, by_vllm, engine, prompts, stock

import codehead
from codehead.models.hidden import Statistics

CASES = {
    "from the old head": ("llama", {}, "float"),
    "linear": ("qwen3", {"code": "minrandom", "bits": 40}, "float"),
    "mtl": ("gemma3", {"code": "dense_random", "bits": 64, "head": "mtl", "width": 32}, "float"),
    "ternary": ("gpt2", {"code": "sparse_random", "bits": 64}, "float"),
    "one_vs_all": ("gemma3", {"code": "one_vs_all", "loss": "codeword"}, "float"),
    "chain": ("qwen3", {"code": "minimal", "head": "chain", "width": 16}, "float"),
    "dense rows and extra bits": (
        "gpt2", {"code": "dense_random", "bits": 64, "loss": "codeword", "dense_rows": 20, "extra_bits": 8,
                 "extra_bit_tokens": 50, "token_bias": True}, "float",
    ),
    "int8": ("llama", {"code": "dense_random", "bits": 64, "loss": "codeword", "token_bias": True}, "int8"),
    "int4": ("llama", {"code": "dense_random", "bits": 64, "head": "mtl", "width": 32}, "int4"),
}  # fmt: skip


def coded(folder, case):
    family, fields, weights = CASES[case]
    model = stock(family)
    codehead.attach(model, statistics=Statistics(torch.arange(VOCABULARY, 0, -1).float()), **fields)
    if weights != "float":
        {"int8": codehead.to_int8, "int4": codehead.to_int4}[weights](model)
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_text_and_log_probabilities_are_those_of_transformers(case, tmp_path):
    folder, some = coded(tmp_path, case), prompts(16)
    text, logits = by_transformers(folder, some)
    with engine(folder) as made:
        answers = by_vllm(made, some, logprobs=5)
    expected = logits.log_softmax(-1)
    for row, answer in enumerate(answers):
        assert list(answer.token_ids) == text[row]
        for place, found in enumerate(answer.logprobs):
            for token, value in found.items():
                assert value.logprob == pytest.approx(float(expected[row, place, token]), abs=1e-3)


@pytest.mark.slow
def test_few_tokens_are_enough_for_the_same_text(tmp_path, monkeypatch):
    from codehead.layer import Decision
    from codehead.vllm.requests import FewTokens

    folder, some = tmp_path, prompts(4)
    codehead.attach(stock("llama", vocabulary=5000)).save_pretrained(folder)  # as many are scanned faster than scored
    text, _ = by_transformers(folder, some)
    with engine(folder, logits_processors=[FewTokens]) as made:
        with monkeypatch.context() as patch:
            patch.setattr(Decision, "logits", lambda *_: pytest.fail("logits of all tokens"))
            greedy = by_vllm(made, some)
            drawn = by_vllm(made, some, temperature=1.0, top_k=1, seed=0)
        assert [list(answer.token_ids) for answer in greedy] == text
        assert [list(answer.token_ids) for answer in drawn] == text
        with_logprobs = by_vllm(made, some, logprobs=1)
        assert [list(answer.token_ids) for answer in with_logprobs] == text
        pairs = [pair for one in with_logprobs for pair in zip(one.token_ids, one.logprobs, strict=True)]
        assert all(place[token].logprob < 0 for token, place in pairs)
