"""A thousand prompts: coded and screened checkpoints write in vLLM what they write in transformers, in float32."""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` makes an environment with it")
import torch

pytest.importorskip("faiss", reason="FAISS is not installed (pip install 'codehead[fast]')")

from engines import CONFIGS, by_transformers, by_vllm, engine, prompts, stock
from transformers import AutoModelForCausalLM, AutoTokenizer

import codehead
from codehead.models.hidden import Statistics, hidden_states
from codehead.vllm.requests import FewTokens

TIE = 1e-4
"""Scores that are nearer to each other than this come in the order of the rounding of the layers below."""
SMOL = Path("real-models/SmolLM2-135M-Instruct")
STORIES = Path(os.environ.get("CODEHEAD_TEST_DATA", "data")) / "tinystories" / "stories.jsonl"


def coded(model, calibration):
    return codehead.attach(model, statistics=Statistics(torch.arange(model.config.vocab_size, 0, -1).float()))


def screened(model, calibration):
    ids = torch.tensor(calibration)
    states = hidden_states(model, [{"input_ids": part, "labels": part} for part in ids.split(50)], 4000)
    return codehead.screen(model, hidden=states, mode="exact")


def ties(answers, text, logits):
    """How many answers leave the text where two scores are equal but for rounding; an AssertionError for the others."""
    count = 0
    for row, answer in enumerate(answers):
        found = list(answer.token_ids)
        first = next((at for at, pair in enumerate(zip(found, text[row], strict=False)) if pair[0] != pair[1]), None)
        if first is not None:
            ours, theirs = logits[row, first, found[first]], logits[row, first, text[row][first]]
            assert abs(float(theirs - ours)) <= TIE * max(1.0, abs(float(theirs))), f"prompt {row}, token {first}"
            count += 1
    return count


def check_logprobs(answers, text, logits):
    expected = logits.log_softmax(-1)
    for row, answer in enumerate(answers):
        if list(answer.token_ids) == text[row][: len(answer.token_ids)]:
            values = [place[token].logprob for token, place in zip(answer.token_ids, answer.logprobs, strict=True)]
            right = [float(expected[row, at, token]) for at, token in enumerate(answer.token_ids)]
            assert values == pytest.approx(right, abs=1e-3)


def compared(folder, some, new, with_logprobs, record, **options):
    """Texts of greedy requests, by few tokens and by all, and log-probabilities; how many end in a tie."""
    text, logits = by_transformers(folder, some, new)
    with engine(folder, logits_processors=[FewTokens], **options) as made:
        few = by_vllm(made, some, new)
        told = by_vllm(made, some[:with_logprobs], new, logprobs=1)
    check_logprobs(told, text, logits)
    count = ties(few, text, logits)
    record("ties", count)
    ties(told, text, logits)
    assert count <= len(some) // 100


@pytest.mark.slow
@pytest.mark.parametrize("made", [coded, screened])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_thousand_prompts_have_the_text_of_transformers(family, made, tmp_path, record_property):
    made(stock(family), prompts(300, 16)).save_pretrained(tmp_path)
    at_once = 1 if made is screened else 16  # a screen works where few requests run at once
    compared(tmp_path, prompts(1000), 8, 100, record_property, max_num_seqs=at_once)


def stories(count, length):
    """The first tokens of so many stories, in SmolLM2's tokens."""
    tokenizer = AutoTokenizer.from_pretrained(SMOL)
    with STORIES.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(3 * count), strict=False)]
    ids = [tokenizer(text)["input_ids"][:length] for text in texts]
    return [one for one in ids if len(one) == length][:count]


@pytest.mark.slow
@pytest.mark.skipif(not (SMOL.is_dir() and STORIES.is_file()), reason="needs `make real-models` and CODEHEAD_TEST_DATA")
@pytest.mark.parametrize("made", [coded, screened])
def test_a_real_model_has_the_text_of_transformers(made, tmp_path, record_property):
    model = AutoModelForCausalLM.from_pretrained(SMOL, dtype=torch.float32).eval()
    made(model, stories(120, 36)).save_pretrained(tmp_path)
    at_once = 1 if made is screened else 16
    compared(tmp_path, stories(100, 32), 16, 20, record_property, max_num_seqs=at_once)
