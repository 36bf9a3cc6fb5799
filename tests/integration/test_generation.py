"""Generation: every way of generate() works on token logits, never on bit logits."""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, VOCAB, make, tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, pipeline

import codehead

ARCHITECTURES = pytest.mark.parametrize("name", CONFIGS)
LENGTH = 6
NEW = 5


def greedy_by_hand(model, ids):
    """The most probable token, one at a time, without a cache."""
    for _ in range(NEW):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def generate(model, ids, **options):
    model.generation_config.eos_token_id = None  # so that every row has the same length
    return model.generate(ids, max_new_tokens=NEW, **options)


@ARCHITECTURES
def test_greedy_takes_the_most_probable_token(name, coded):
    model, ids = coded(name), tokens(length=LENGTH)
    found = generate(model, ids, do_sample=False)
    assert torch.equal(found, greedy_by_hand(model, ids))
    assert found[:, LENGTH:].max() >= model.decision.table.length  # ids that no bit index could give


@pytest.mark.parametrize("layer", [{"head": "mtl", "width": 3}, {"code": "sparse_random", "bits": 44}])
def test_greedy_with_other_layers(layer, coded):
    model, ids = coded(**layer), tokens(length=LENGTH)
    assert torch.equal(generate(model, ids, do_sample=False), greedy_by_hand(model, ids))


@ARCHITECTURES
def test_left_padding_changes_nothing(name, coded):
    model = coded(name)
    rows = [tokens(1, LENGTH, seed=2), tokens(1, LENGTH - 3, seed=3)]
    padded = torch.nn.functional.pad(rows[1], (3, 0))
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :3] = 0
    batch = generate(model, torch.cat([rows[0], padded]), attention_mask=mask, do_sample=False)
    single = [generate(model, row, attention_mask=torch.ones_like(row), do_sample=False) for row in rows]
    assert torch.equal(batch[0], single[0][0])
    assert torch.equal(batch[1, 3:], single[1][0])


def test_sampling_draws_from_the_codeword_posterior(coded):
    model, ids = coded(), tokens(1, LENGTH)
    with torch.no_grad():
        posterior = model(input_ids=ids).logits[0, -1].softmax(-1)
    torch.manual_seed(0)
    model.generation_config.eos_token_id = None
    draws = model.generate(ids.repeat(4000, 1), max_new_tokens=1, do_sample=True, top_k=0)[:, -1]
    found = torch.bincount(draws, minlength=VOCAB) / 4000
    assert (found - posterior).abs().max() < 0.04
    assert posterior.max() > 0.1  # the test could not fail on a flat posterior


def test_a_seed_repeats_a_sample(coded):
    model, ids = coded(), tokens(length=LENGTH)
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append(generate(model, ids, do_sample=True))
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_beams_find_a_sequence_at_least_as_probable_as_greedy(coded):
    model, ids = coded(), tokens(1, LENGTH)

    def log_probability(sequence):
        with torch.no_grad():
            scores = model(input_ids=sequence).logits.log_softmax(-1)
        return scores[0, LENGTH - 1 : -1].gather(-1, sequence[0, LENGTH:, None]).sum()

    beams = generate(model, ids, num_beams=4, do_sample=False)
    greedy = generate(model, ids, do_sample=False)
    assert log_probability(beams) >= log_probability(greedy) - 1e-5


def test_a_static_cache_changes_nothing(coded):
    model, ids = coded(), tokens(length=LENGTH)
    model.generation_config.disable_compile = True
    static = generate(model, ids, do_sample=False, cache_implementation="static")
    assert torch.equal(static, generate(model, ids, do_sample=False))


def test_repetition_penalty_and_banned_tokens_act_on_tokens(coded):
    model, ids = coded(), tokens(1, LENGTH)
    first = int(generate(model, ids, do_sample=False)[0, LENGTH])
    banned = generate(model, ids, do_sample=False, bad_words_ids=[[first]])
    assert first not in banned[0, LENGTH:]
    penalised = generate(model, ids, do_sample=False, repetition_penalty=1e6)[0, LENGTH:]
    assert len(set(penalised.tolist())) == NEW


@ARCHITECTURES
def test_logits_to_keep_cuts_before_the_head(name, coded):
    model, ids = coded(name), tokens()
    assert model._supports_logits_to_keep()
    with torch.no_grad():
        everything = model(input_ids=ids).logits
        last = model(input_ids=ids, logits_to_keep=1).logits
    assert last.shape == (2, 1, VOCAB)
    torch.testing.assert_close(last, everything[:, -1:])


def test_generation_during_training_warns_of_nothing(coded):
    generate(coded().train(), tokens(length=LENGTH), do_sample=False)


def test_generate_returns_scores_as_wide_as_the_vocabulary(coded):
    outputs = generate(
        coded(), tokens(length=LENGTH), do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert [tuple(step.shape) for step in outputs.logits] == [(2, VOCAB)] * NEW


def word_tokenizer():
    """A tokenizer whose words are w3 … w119."""
    vocabulary = {"[PAD]": 0, "[BOS]": 1, "[EOS]": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]")


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt_350m"])
def test_the_text_generation_pipeline(name, coded, tmp_path):
    model, tokenizer = coded(name), word_tokenizer()
    model.generation_config.eos_token_id = None
    prompt = tokenizer("w5 w7 w9", return_tensors="pt").input_ids
    expected = tokenizer.decode(greedy_by_hand(model, prompt)[0, 3:])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    run = pipeline("text-generation", str(tmp_path), device="cpu")
    found = run("w5 w7 w9", max_new_tokens=NEW, do_sample=False, return_full_text=False)
    assert found[0]["generated_text"] == expected


def test_one_vs_all_generates_what_the_stock_model_does():
    stock, model = make("qwen2", tied=False), make("qwen2", tied=False)
    weight = model.get_output_embeddings().weight.detach().clone()
    codehead.attach(model, "one_vs_all", loss="codeword")
    model.get_output_embeddings().weight.data.copy_(weight)
    ids = tokens(length=LENGTH)
    for options in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 3, "do_sample": False}):
        results = []
        for network in (stock, model):
            torch.manual_seed(0)
            results.append(generate(network, ids, **options))
        assert torch.equal(*results)
