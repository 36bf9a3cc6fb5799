"""Screened models: the dense head's tokens and logits, from some of its rows; everything else as before."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pytest
import torch
from architectures import HIDDEN, VOCAB, make, tokens
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MptConfig, MptForCausalLM, PhiConfig, PhiForCausalLM

import codehead
from codehead.errors import CheckpointError, ConfigurationError
from codehead.models.hidden import probed
from codehead.screening import build, calibration
from codehead.screening import screen as screen_module
from codehead.screening.model import install
from codehead.screening.screen import Settings

NAMES = pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "granite", "opt_350m", "gpt_neox"])
MODES = pytest.mark.parametrize(
    "options",
    [{"bits": 64, "recall": 0.9}, {"mode": "exact"}, {"mode": "exact", "certificate": "proof"}],
    ids=["fast", "calibrated", "proof"],
)


def states(model, count: int = 400) -> torch.Tensor:
    """Hidden states of random tokens."""
    with probed(model) as read, torch.no_grad():
        return read(input_ids=tokens(count // 20, 20, seed=9), use_cache=False).flatten(0, 1)


def screened(name: str = "llama", tied: bool = True, seed: int = 0, **options):
    model = make(name, tied, seed)
    options = {"bits": 64, **options}
    if "recall" not in options and options.get("mode") != "exact":
        options["recall"] = 0.9
    return codehead.screen(model, hidden=states(model), **options)


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch):
    """So that tiny vocabularies leave tokens out."""
    monkeypatch.setattr(calibration, "FEW", 32)
    monkeypatch.setattr(calibration, "MOST", 64)
    monkeypatch.setattr(screen_module, "AROUND", -1e9)


def generate(model, ids, **options):
    model.generation_config.eos_token_id = None
    torch.manual_seed(0)
    return model.generate(ids, max_new_tokens=8, pad_token_id=0, **{"do_sample": False, **options})


@NAMES
@pytest.mark.parametrize("tied", [True, False])
@MODES
def test_greedy_text_is_the_dense_head_s(name, tied, options):
    model, ids = screened(name, tied, **options), tokens(3, 6)
    found = generate(model, ids)
    assert torch.equal(found, generate(make(name, tied), ids))
    assert model.steps == 8 * 3
    if options.get("mode") != "exact":
        assert model.whole == 0


@pytest.mark.parametrize("way", [
    {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"num_beams": 3}, {"do_sample": True, "top_k": 5},
    {"do_sample": True, "top_k": 0, "min_p": 0.3}, {"do_sample": True, "top_k": 0}, {"cache_implementation": "static"},
    {"sequence_bias": {(9,): 30.0}}, {"bad_words_ids": [[5]]},
], ids=str)  # fmt: skip
def test_every_way_of_generation_in_exact_mode(way):
    model, ids = screened(mode="exact", certificate="proof"), tokens(1, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.generation_config.disable_compile = True
        found = generate(model, ids, **way)
    stock = make("llama")
    stock.generation_config.disable_compile = True
    assert torch.equal(found, generate(stock, ids, **way))


@NAMES
def test_candidates_have_the_dense_logits_and_the_others_none(name):
    model, ids = screened(name), tokens(1, 6)
    with torch.no_grad():
        dense = model(ids).logits[:, -1]
        assert torch.isfinite(dense).all()
        with model._selecting(*_greedy(model)) as selection:
            logits = model(ids).logits
            assert logits.shape == (1, 1, VOCAB)
            known = selection.step.logits[:, -1] > -torch.inf
        assert torch.equal(model(ids).logits[:, -1], dense)
    assert 0 < int(known.sum()) < VOCAB
    torch.testing.assert_close(logits[:, -1][known], dense[known], rtol=1e-5, atol=1e-5)
    assert int(dense.argmax()) in known[0].nonzero().flatten().tolist()


@pytest.mark.parametrize(("rows", "certificate"), [(1, "proof"), (3, "calibrated")])
def test_few_steps_of_exact_mode_take_the_dense_head(rows, certificate):
    model, ids = screened(mode="exact", certificate=certificate), tokens(rows, 6)
    for options in ({}, {"min_new_tokens": 8}, {"repetition_penalty": 1.1}):
        model.steps = model.whole = 0
        generate(model, ids, **options)
        assert model.steps == 8 * rows
        assert model.whole <= 4 * rows


def test_one_sequence_that_is_not_certain_takes_the_dense_head_for_all():
    model = screened(mode="exact")
    head, hidden = model.get_output_embeddings(), states(model)[:3].clone()
    with torch.no_grad():
        assert len(head.candidates(hidden).ids) == 3
        first, second = head.weight[(head.weight @ hidden[1]).topk(2).indices]
        apart = first - second
        hidden[1] -= (hidden[1] @ apart) / (apart @ apart) * apart  # now the two best tokens tie
        assert head.candidates(hidden[:1]) is not None
        assert head.candidates(hidden) is None


def test_a_proof_leaves_several_sequences_to_the_dense_head():
    model, ids = screened(mode="exact", certificate="proof"), tokens(2, 6)
    assert torch.equal(generate(model, ids), generate(make("llama"), ids))
    assert model.whole == model.steps == 16


def _greedy(model):
    from transformers import LogitsProcessorList

    config = copy.copy(model.generation_config)
    config.do_sample = False
    return LogitsProcessorList(), config


@MODES
def test_detaching_gives_the_stock_model_back(options):
    model, stock = screened(**options), make("llama")
    assert codehead.detach(model) is model
    assert type(model) is type(stock)
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    assert model.config.to_dict() == stock.config.to_dict()
    assert model.state_dict().keys() == stock.state_dict().keys()
    assert all(torch.equal(values, stock.state_dict()[name]) for name, values in model.state_dict().items())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("tied", [True, False])
@MODES
def test_saving_and_loading_gives_the_same_model(tied, options, tmp_path):
    model, ids = screened(tied=tied, **options), tokens(2, 6)
    expected = generate(model, ids)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.screen.settings == model.screen.settings
    for name, values in model.screen.named_buffers():
        assert torch.equal(dict(loaded.screen.named_buffers())[name], values)
    assert torch.equal(generate(loaded, ids), expected)
    assert loaded.whole == model.whole
    shared = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert shared == tied


@pytest.mark.parametrize(("apart", "bits"), [(0, 8), (1e9, 128)], ids=["rows are free", "rows are dear"])
def test_the_length_is_that_with_which_a_step_reads_least(apart, bits, monkeypatch):
    monkeypatch.setattr(calibration, "LENGTHS", (8, 128))
    monkeypatch.setattr(calibration, "APART", apart)
    assert screened(bits=None).screen.settings.bits == bits


def test_bounds_are_those_of_every_number_of_candidates():
    model = screened(mode="exact")
    search, hidden = model.screen.search, states(model)[:5]
    bounds = search.bounds(hidden, 40)
    assert (np.diff(bounds) <= 0).all()
    for count in (1, 7, 40):
        assert np.allclose(search.best(hidden, count).rest, bounds[:, count - 1])


def test_exact_mode_begins_with_the_candidates_that_read_least(monkeypatch):
    monkeypatch.setattr(calibration, "FEW", 2)
    model = screened(mode="exact")
    head, made, row = model.get_output_embeddings(), model.screen, 4 * HIDDEN
    needed = np.array([1, 5, VOCAB])  # with 2 and then 8: one round, two, two and the dense head
    scans, rows = 1 + 2 + 2, 2 + (2 + 8) + (2 + 8)
    assert calibration._bytes(made, head, needed, 2) * 3 == pytest.approx(
        scans * made.bytes_read + calibration.APART * rows * row + VOCAB * row
    )
    hidden = states(model)[100:300]
    head.requires_grad_(False)
    best = head(hidden).argmax(-1)
    found = calibration._first(made, head, calibration.Positions(hidden, best), lambda *_: None)
    needed = (made.search.bounds(hidden, VOCAB) >= head(hidden).amax(1, keepdim=True).numpy()).sum(1) + 1
    costs = {count: calibration._bytes(made, head, needed, count) for count in (2, 4, 8, 16)}
    assert found == min(costs, key=costs.get) == made.settings.candidates


@pytest.fixture
def prefixed(monkeypatch):
    """A screened model that scans a prefix of its code."""
    monkeypatch.setattr(calibration, "SAVED", 0)
    monkeypatch.setattr(calibration, "SCANNED", 64)
    monkeypatch.setattr(calibration, "LENGTHS", (16, 32, 64, 128))
    return screened(bits=128)


def test_all_bits_choose_among_the_tokens_that_a_prefix_leaves(prefixed):
    kept, search = prefixed.screen.settings, prefixed.screen.search
    assert kept.prefix in (16, 32, 64) and kept.scanned == 64 < VOCAB
    hidden = states(prefixed)[:7]
    logits = search.bit_logits(search.whitened(hidden)).astype("float64")
    bits = np.unpackbits(prefixed.screen.plane.numpy(), axis=1, count=kept.bits, bitorder="little")
    weight = prefixed.get_output_embeddings().weight.detach()
    biases = (weight @ prefixed.screen.get("mean")).double().numpy()
    prefix, whole = (logits[:, :length] @ bits[:, :length].T + biases for length in (kept.prefix, kept.bits))
    error = search.scan.search(search.tables(search.whitened(hidden), logits), 1).errors.max() + search.numbers.error
    left = np.sort(prefix, axis=1)[:, -kept.scanned, None]
    scores = np.take_along_axis(whole, search.best(hidden, 20).ids, axis=1)
    for shift, sign in ((2 * error, 1), (-2 * error, -1)):  # tokens that the prefix leaves for certain, or perhaps
        best = -np.sort(-np.where(prefix >= left + shift, whole, -np.inf), axis=1)[:, :20]
        assert (sign * (scores - best) >= -2 * error).all()
    found = search.scan.search(search.tables(search.whitened(hidden), logits), kept.scanned)
    total = np.full(whole.shape, np.nan)
    rest = np.take_along_axis(logits[:, kept.prefix :] @ bits[:, kept.prefix :].T, found.ids, axis=1)
    np.put_along_axis(total, found.ids, found.scores + rest, axis=1)
    ordered = np.take_along_axis(total, search.best(hidden, kept.scanned).ids, axis=1)
    assert (np.diff(ordered) < 1e-4).all()  # best first


def test_the_file_of_a_checkpoint_is_a_state_dict_of_the_model(tmp_path):
    model, other, ids = screened(tied=False, seed=1), screened(tied=False), tokens(1, 6)
    model.save_pretrained(tmp_path)
    generate(other, ids)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(generate(other, ids), generate(model, ids)) and other.obstacle() is None


def test_a_prefix_is_saved_and_loaded(prefixed, tmp_path):
    prefixed.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.screen.settings == prefixed.screen.settings
    assert torch.equal(generate(again, tokens(1, 6)), generate(prefixed, tokens(1, 6)))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    screened().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"bits": 64', '"bits": 72'))
    with pytest.raises(CheckpointError, match="screen"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    config.write_text(text.replace('"mode": "fast"', '"mode": "quick"'))
    with pytest.raises(CheckpointError, match=r"screening\.mode"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="unexpected"):
        Settings.from_dict({"num_classes": 1, "hidden_size": 1, "bits": 1, "unexpected": 2})


def test_bfloat16_and_copies_keep_the_code(tmp_path):
    model, ids = screened(), tokens(1, 6)
    expected = generate(model, ids)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(generate(other, ids), expected)
    half = model.to(torch.bfloat16)
    assert torch.equal(generate(half, ids), generate(make("llama").to(torch.bfloat16), ids))
    assert half.whole == 0


@pytest.mark.parametrize(("way", "reason"), [
    ({"do_sample": True, "top_k": 0}, "sampling without top_k"), ({"num_beams": 2}, "beams"),
    ({"num_beams": 2, "do_sample": True, "top_k": 5}, "beams"), ({"prompt_lookup_num_tokens": 2}, "draft is checked"),
], ids=str)  # fmt: skip
def test_a_dense_path_is_announced_once(way, reason):
    model, ids = screened(), tokens(1, 6)
    with pytest.warns(UserWarning, match=reason):
        generate(model, ids, **way)
    generate(model, ids, **way)
    assert model.steps == 0


def test_a_head_that_was_trained_takes_the_dense_path_openly():
    model, ids = screened(), tokens(1, 6)
    generate(model, ids)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    with pytest.warns(UserWarning, match="not those that its code was made for"):
        generate(model, ids)


EDITS = {
    "one number": lambda rows: rows[77, 3].add_(0.05),
    "a row of the same norm": lambda rows: rows[77].neg_(),
    "a row behind torch's back": lambda rows: rows.data[77].neg_(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("again", [False, True], ids=["at once", "after it generated"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=list(EDITS))
def test_a_row_that_changes_takes_the_dense_path_openly(edit, again, dtype):
    model, ids = make("llama", tied=False).to(dtype), tokens(1, 6)
    codehead.screen(model, hidden=states(make("llama", tied=False)), mode="exact", certificate="proof")
    if again:
        generate(model, ids)
    with torch.no_grad():
        edit(model.get_output_embeddings().weight)
    with pytest.warns(UserWarning, match="not those that its code was made for"):
        generate(model, ids)


def test_a_bias_that_changes_after_the_first_text_counts():
    config = PhiConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2)
    model, ids = PhiForCausalLM(config), tokens(1, 6)
    codehead.screen(model, hidden=states(model), mode="exact", certificate="proof")
    generate(model, ids)
    with torch.no_grad():
        model.get_output_embeddings().bias[77] = 100
    assert generate(model, ids)[0, 6:].tolist() == [77] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_gives_the_text_of_the_dense_head_under_autocast(dtype):
    model, stock, ids = screened(recall=0.95).to(dtype), make("llama").to(dtype), tokens(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generate(model, ids), generate(stock, ids))
    assert model.steps == 24 and model.whole == 0


def test_exact_mode_leaves_autocast_to_the_dense_head_openly():
    model, ids = screened(mode="exact"), tokens(1, 6)
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="autocast rounds"):
        assert torch.equal(generate(model, ids), generate(make("llama"), ids))
    assert model.steps == 0 and torch.equal(generate(model, ids), generate(make("llama"), ids))


def test_autocast_makes_no_other_code():
    expected, hidden = screened(mode="exact").screen, states(make("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        made = codehead.screen(make("llama"), bits=64, hidden=hidden, mode="exact").screen
    assert made.settings == expected.settings
    assert all(torch.equal(*pair) for pair in zip(made.buffers(), expected.buffers(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_default_dtype_changes_nothing(dtype, default_dtype, tmp_path):
    expected, stock, hidden, ids = screened(), make("llama"), states(make("llama")), tokens(1, 6)
    text = generate(expected, ids)
    default_dtype(dtype)
    model = codehead.screen(stock, hidden=hidden, bits=64, recall=0.9)
    assert all(torch.equal(*pair) for pair in zip(model.screen.buffers(), expected.screen.buffers(), strict=True))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(generate(loaded, ids), text) and loaded.whole == 0


def test_a_compiled_model_generates_as_before():
    model, ids = screened(), tokens(1, 6)
    expected = generate(screened(), ids)
    model.compile(backend="eager")
    assert torch.equal(generate(model, ids), expected)


def test_weights_made_in_inference_mode_are_screened():
    with torch.inference_mode():
        model, ids = screened().to(torch.bfloat16), tokens(1, 6)
        assert torch.equal(generate(model, ids), generate(make("llama").to(torch.bfloat16), ids))
    assert model.whole == 0


@pytest.mark.parametrize(("made", "used"), [
    (torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.float32, torch.float64),
    (torch.bfloat16, torch.float32), (torch.bfloat16, torch.float16), (torch.float64, torch.float32),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_a_cast_is_not_a_change(made, used, scale):
    model = make("llama", tied=False).to(made)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    hidden = states(make("llama", tied=False))
    codehead.screen(model, hidden=hidden, mode="exact", certificate="proof")
    assert model.to(used).obstacle() is None


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_tokens_trained_by_peft_and_merged_take_the_dense_path_openly():
    from peft import LoraConfig, get_peft_model

    model, ids = screened(mode="exact", certificate="proof"), tokens(1, 6)
    generate(model, ids)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices=[70, 71]))
    with torch.no_grad():
        for name, values in wrapped.named_parameters():
            if "trainable_tokens_delta" in name:
                values.mul_(-1)
    merged = wrapped.merge_and_unload()
    with pytest.warns(UserWarning, match="not those that its code was made for"):
        generate(merged, ids)


def test_a_checkpoint_without_marks_of_the_rows_still_loads(tmp_path):
    model = screened(mode="exact")
    made = screen_module.Screen(dataclasses.replace(model.screen.settings, dtype=""))
    made.load_state_dict({name: values for name, values in model.screen.state_dict().items() if name != "marks"})
    made.seal.close(made.integers())
    old = make("llama")
    install(old, made)
    old.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert '"dtype": ""' in text
    loaded, ids = AutoModelForCausalLM.from_pretrained(tmp_path), tokens(1, 6)
    assert torch.equal(generate(loaded, ids), generate(model, ids))
    assert loaded.steps > loaded.whole


def test_labels_and_likelihoods_are_the_stock_model_s():
    model, stock, ids = screened(), make("llama"), tokens()
    for network in (model, stock):
        network.train()
    assert torch.equal(model(ids, labels=ids).loss, stock(ids, labels=ids).loss)
    assert torch.equal(model(ids).logits, stock(ids).logits)


def test_assisted_decoding_both_ways():
    model, stock, ids = screened(), make("llama", seed=4), tokens(1, 6)
    expected = generate(stock, ids)
    assert torch.equal(generate(stock, ids, assistant_model=model), expected)
    expected = generate(make("llama"), ids)
    with pytest.warns(UserWarning, match="an assistant's draft is checked"):
        assert torch.equal(generate(model, ids, assistant_model=stock), expected)


def test_a_screen_on_a_model_that_writes_its_own_text(monkeypatch):
    monkeypatch.setattr(build, "WRITTEN", 20)
    text = build.own_text(make("llama"), 600, lambda *_: None)
    assert [batch["input_ids"].shape for batch in text] == [(16, 21)] * 2
    assert len(text[1]["input_ids"].unique()) > 20
    model = codehead.screen(make("llama"), positions=300, recall=0.9, bits=64)
    assert model.screen.settings.data == "text that the model wrote"
    assert model.screen.settings.calibration_positions == 150


def test_a_model_writes_as_much_as_it_has_positions_for():
    model = MptForCausalLM(MptConfig(vocab_size=VOCAB, d_model=HIDDEN, n_heads=2, n_layers=1, max_seq_len=24))
    text = build.own_text(model, 600, lambda *_: None)
    assert {batch["input_ids"].shape for batch in text} == {(16, 24)}


BEYOND = {"input_ids": torch.tensor([[0, VOCAB]]), "labels": torch.tensor([[-100, -3]])}


@pytest.mark.parametrize(("options", "message"), [
    ({"mode": "quick"}, "mode='quick'"), ({"certificate": "sure"}, "certificate='sure'"), ({"recall": 1.0}, "recall"),
    ({"recall": 0.999}, "positions"), ({"bits": 0, "recall": 0.9}, "bits is 0"), ({"recall": "0.9"}, "recall='0.9'"),
    ({"bits": "64"}, "bits is '64'"), ({"bits": 64.0}, r"bits is 64\.0"), ({"bits": 10**6}, "bits is 1000000"),
    ({"hidden": None, "positions": -5}, "positions is -5"), ({"hidden": None, "positions": "9"}, "positions is '9'"),
    ({"hidden": torch.randn(400, HIDDEN + 1), "recall": 0.9}, r"hidden is \(400, 17\); give \(positions, 16\)"),
    ({"hidden": torch.randn(400)}, r"hidden is \(400,\)"), ({"hidden": [[0.0]]}, "hidden is list"),
    ({"hidden": torch.ones(400, HIDDEN), "recall": 0.9}, "400 hidden states are the same"),
    ({"hidden": None, "batches": "text"}, "a batch is str"), ({"hidden": None, "batches": [{"ids": 3}]}, "labels"),
    ({"hidden": None, "batches": [BEYOND]}, f"input_ids of a batch holds {VOCAB}, but"),
    ({"hidden": None, "batches": [BEYOND | {"input_ids": torch.tensor([[0, 1]])}]}, "labels of a batch holds -3, but"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_is_impossible_is_refused_and_changes_nothing(options, message):
    model = make("llama")
    with pytest.raises(ConfigurationError, match=message):
        codehead.screen(model, **{"bits": 64, "hidden": states(model), **options})
    assert type(model) is type(make("llama"))
    assert type(model.get_output_embeddings()) is torch.nn.Linear


def test_what_is_no_stock_model_is_refused(coded):
    with pytest.raises(ConfigurationError, match="detach"):
        codehead.screen(coded(), hidden=torch.randn(40, HIDDEN))
    with pytest.raises(ConfigurationError, match="detach"):
        codehead.screen(screened(), hidden=torch.randn(40, HIDDEN))
    with pytest.raises(ConfigurationError, match="screen already"):
        codehead.attach(screened(), bits=24)
    with pytest.raises(ConfigurationError, match="detach"):
        codehead.screen(codehead.screen(make("llama"), hidden=states(make("llama")), recall=0.9), recall=0.9)


def test_resizing_the_vocabulary_is_refused_with_the_way_out():
    model = screened()
    assert model.resize_token_embeddings(VOCAB) is model.get_input_embeddings()
    for arguments in ({"new_num_tokens": VOCAB + 1}, {"pad_to_multiple_of": 64}):
        with pytest.raises(ConfigurationError, match=r"detach\(model\), then resize, then codehead\.screen"):
            model.resize_token_embeddings(**arguments)
    assert model.get_input_embeddings().weight.shape == (VOCAB, HIDDEN)


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path):
    screened().save_pretrained(tmp_path / "checkpoint", is_main_process=False)
    assert not list((tmp_path / "checkpoint").glob("*"))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_lora_on_the_head_takes_the_dense_path_openly():
    from peft import LoraConfig, get_peft_model

    model, ids = screened(tied=False), tokens(1, 6)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["lm_head"]))
    with pytest.warns(UserWarning, match="LoRA on the head"):
        generate(wrapped, ids)


def test_more_sequences_than_it_pays_for_take_the_dense_head(monkeypatch):
    monkeypatch.setattr(screen_module, "AROUND", 4e6)
    model, ids = screened("llama", True), tokens(3, 6)
    assert torch.equal(generate(model, ids), generate(make("llama", True), ids))
    assert model.whole == model.steps == 24
