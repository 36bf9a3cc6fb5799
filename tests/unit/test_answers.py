"""Answers to prompts: greedy, the same in every batch, and from the tokens that training saw."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from tokenizers import processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import codehead
from codehead.errors import ConfigurationError, DataError
from codehead.lab.answers import Answers, generate_answers
from codehead.training.tokenizer import IGNORED, prompt_ids, tokenize_records, train_bpe

V = 280
NEW = 6
POSITIONS = 64
PROMPTS = ["The cat sat on", "Why?", "One day the dog ran to the park and saw", "Zoë ate", "Say: the cat"]
RESPONSES = ["the mat.", "Because.", "a bird.", "crêpes.", "the cat"]
SMALL = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
BLOCK = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": POSITIONS}
MODELS = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**SMALL, **BLOCK, ffn_dim=32, word_embed_proj_dim=16, dropout=0.5)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, **BLOCK, intermediate_size=32)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, **BLOCK, intermediate_size=32, num_key_value_heads=1)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, n_positions=POSITIONS)),
}


def make(name: str = "llama", *, coded: bool = False):
    """A random model whose logits differ from token to token; the seed keeps it the same."""
    torch.manual_seed(0)
    model = MODELS[name]()
    if coded:
        codehead.attach(model, "minrandom", bits=24)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([*PROMPTS, *RESPONSES] * 3, V)


@pytest.fixture(scope="module")
def rows():
    return Dataset.from_dict({"prompt": PROMPTS, "response": RESPONSES})


def greedy_by_hand(model, prompt):
    """The most probable token, one at a time, without cache and padding."""
    ids = torch.tensor([prompt])
    for _ in range(NEW):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


def up_to(ids, end):
    return ids[: ids.index(end) + 1] if end in ids else ids


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_padded_batches_answer_like_one_prompt_at_a_time(name, coded, tokenizer, rows):
    model = make(name, coded=coded)
    expected = [up_to(greedy_by_hand(model, ids), 0) for ids in prompt_ids(PROMPTS, tokenizer)]
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert len(set(texts)) > 2  # answers that depend on their prompt, or the order would not be tested
    for batch_size in (1, 4):
        found = generate_answers(model, tokenizer, rows, max_new_tokens=NEW, batch_size=batch_size)
        assert found == Answers(PROMPTS, RESPONSES, texts, [len(ids) for ids in expected], skipped=0)


def test_an_answer_ends_at_an_end_token_of_the_model(tokenizer, rows):
    model = make()
    written = [greedy_by_hand(model, ids) for ids in prompt_ids(PROMPTS, tokenizer)]
    end = written[0][2]
    assert written[0].index(end) < NEW - 1
    model.generation_config.eos_token_id = [end, V - 1]
    found = generate_answers(model, tokenizer, rows, max_new_tokens=NEW)
    assert found.new_tokens == [min(len(up_to(ids, e)) for e in (0, end, V - 1)) for ids in written]
    assert found.answers[0] == tokenizer.decode(up_to(written[0], end)).strip()


def test_special_tokens_are_no_part_of_an_answer(tokenizer, rows):
    model = make(coded=False)
    with torch.no_grad():  # a model that ends every answer at once
        model.lm_head.weight.zero_()
    found = generate_answers(model, tokenizer, rows, max_new_tokens=NEW)
    assert found.answers == [""] * len(PROMPTS)
    assert found.new_tokens == [1] * len(PROMPTS)


def test_prompts_are_those_of_training(rows, monkeypatch):
    tokenizer = train_bpe([*PROMPTS, *RESPONSES] * 3, V)
    special = [(tokenizer.eos_token, tokenizer.eos_token_id)]
    around = processors.TemplateProcessing(single=f"{special[0][0]} $A {special[0][0]}", special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = around
    trained = tokenize_records(rows, tokenizer, POSITIONS)
    expected = [
        [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]
        for row in trained
    ]
    model, seen = make(), []
    generate = model.generate

    def watch(input_ids, attention_mask, **options):
        pairs = zip(input_ids, attention_mask.bool(), strict=True)
        seen.extend(ids[mask].tolist() for ids, mask in pairs)
        assert (attention_mask.diff(dim=1) >= 0).all()  # padding is on the left
        return generate(input_ids=input_ids, attention_mask=attention_mask, **options)

    monkeypatch.setattr(model, "generate", watch)
    generate_answers(model, tokenizer, rows, max_new_tokens=1, batch_size=3)
    assert sorted(seen) == sorted(expected)
    assert all(ids[0] == tokenizer.eos_token_id != ids[-1] for ids in seen)


def test_rows_that_do_not_fit_are_left_out_and_counted(tokenizer, rows):
    model = make()
    lengths = [len(ids) for ids in prompt_ids(PROMPTS, tokenizer)]
    room = POSITIONS - max(lengths)
    everything = generate_answers(model, tokenizer, rows, max_new_tokens=room)
    assert everything.skipped == 0
    kept = [i for i, length in enumerate(lengths) if length < max(lengths)]
    found = generate_answers(model, tokenizer, rows, max_new_tokens=room + 1)
    assert (found.prompts, found.skipped) == ([PROMPTS[i] for i in kept], len(PROMPTS) - len(kept))
    assert found.references == [RESPONSES[i] for i in kept]
    assert len(found.answers) == len(found.new_tokens) == len(kept)
    with pytest.raises(
        DataError, match=rf"no prompt .* the 64 positions .* {POSITIONS} new tokens; lower max_new_tokens"
    ):
        generate_answers(model, tokenizer, rows, max_new_tokens=POSITIONS)


def test_greedy_whatever_the_generation_config_says(tokenizer, rows):
    model = make("qwen2").train()
    plain = generate_answers(model, tokenizer, rows, max_new_tokens=NEW)
    own = model.generation_config
    own.update(do_sample=True, temperature=3.0, top_k=5, repetition_penalty=9.0, max_length=3, num_beams=2)
    torch.manual_seed(0)
    assert generate_answers(model, tokenizer, rows, max_new_tokens=NEW) == plain
    assert model.generation_config is own and own.do_sample
    assert model.training


def test_dropout_is_off_and_the_mode_comes_back_after_an_error(tokenizer, rows):
    model = make("opt")
    expected = generate_answers(model, tokenizer, rows, max_new_tokens=NEW)
    assert not model.training
    assert generate_answers(model.train(), tokenizer, rows, max_new_tokens=NEW) == expected

    def interrupt(done, total):
        raise KeyboardInterrupt

    own = model.generation_config
    with pytest.raises(KeyboardInterrupt):
        generate_answers(model, tokenizer, rows, max_new_tokens=NEW, progress=interrupt)
    assert model.training
    assert model.generation_config is own


def test_progress_counts_prompts(tokenizer, rows):
    calls = []
    generate_answers(
        make(), tokenizer, rows, max_new_tokens=1, batch_size=2, progress=lambda *counts: calls.append(counts)
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_samples_are_the_first():
    answers = Answers(["p", "q"], ["r", "s"], ["a", "b"], [1, 2], skipped=0)
    assert answers.samples(1) == [{"prompt": "p", "reference": "r", "answer": "a"}]
    assert answers.samples(9)[1] == {"prompt": "q", "reference": "s", "answer": "b"}
    assert len(answers.samples(9)) == 2


def test_what_cannot_be_answered_is_refused(tokenizer, rows):
    model = make()
    with pytest.raises(DataError, match="columns text, which ask for no answer; give instruction records"):
        generate_answers(model, tokenizer, Dataset.from_dict({"text": ["a story"]}))
    with pytest.raises(DataError, match=r"prompt of row 2 is empty, .*leave the row out"):
        generate_answers(model, tokenizer, Dataset.from_dict({"prompt": ["a", ""], "response": ["b", "c"]}))
    with pytest.raises(ConfigurationError, match="max_new_tokens=0"):
        generate_answers(model, tokenizer, rows, max_new_tokens=0)
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        generate_answers(model, tokenizer, rows, batch_size=0)
    larger = train_bpe([*PROMPTS, *RESPONSES] * 3, V)
    larger.add_tokens([f"<{i}>" for i in range(20)])
    with pytest.raises(ConfigurationError, match="tokenizer has 300 entries but the model only 280"):
        generate_answers(model, larger, rows)
