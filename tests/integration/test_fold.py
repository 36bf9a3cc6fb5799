"""A coded model written out as a stock one: the same logits in every tool, or a refusal with the remedy."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from architectures import HIDDEN, MODERN, VOCAB, make, tokens
from gguf import GGUFReader
from test_checkpoints import run_without_codehead
from tiny_gguf import write_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import codehead
from codehead.errors import ConfigurationError
from codehead.models import folding
from codehead.models.folding import into_rows, norm_before_head
from codehead.models.hidden import Statistics, hidden_states

EXTRAS = {"dense_rows": [3, 7, 50], "extra_bit_tokens": [5, 9, 20, 21], "extra_bits": 8, "loss": "codeword"}
LAYERS = {
    "linear": {},
    "bias": {"head_params": {"bias": True}},
    "low rank": {"head": "low_rank", "head_params": {"rank": 5, "bias": True}},
    "extras": EXTRAS,
    "token bias": {**EXTRAS, "token_bias": True},
    "int8": {**EXTRAS, "token_bias": True},
    "int4": {**EXTRAS, "token_bias": True},
}
ROUND = {"int8": codehead.to_int8, "int4": codehead.to_int4}
LAYER_NORMS = ("gpt2", "opt", "gpt_neox")
"""Without a bias in the head, but with a LayerNorm before it."""


def double(name, layer, coded):
    """A coded model in float64, every weight of which counts."""
    model = coded(name, **LAYERS[layer]).double()
    for norm in model.modules():
        if isinstance(norm, torch.nn.LayerNorm):
            torch.nn.init.normal_(norm.weight, mean=1.0)
            torch.nn.init.normal_(norm.bias)
    return ROUND[layer](model) if layer in ROUND else model


def logits(model, ids=None):
    with torch.no_grad():
        return model.eval()(input_ids=tokens() if ids is None else ids).logits


def assert_kept(model, folder):
    """A float64 model has the same logits once it is folded, saved and loaded."""
    expected = logits(model)
    codehead.fold(model).save_pretrained(folder)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    loaded, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values())
    assert loaded.dtype == torch.float64
    torch.testing.assert_close(logits(loaded), expected.to(logits(loaded)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", LAYER_NORMS)
def test_everything_that_is_linear_is_kept_where_a_layer_norm_holds_the_bias(name, layer, coded, tmp_path):
    assert_kept(double(name, layer, coded), tmp_path)


@pytest.mark.parametrize("layer", ["linear", "extras"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "granite"])
def test_without_a_bias_every_class_keeps_everything(name, layer, coded, tmp_path):
    assert_kept(double(name, layer, coded), tmp_path)


@pytest.mark.slow
def test_it_is_loaded_where_there_is_no_codehead(coded, tmp_path):
    model = double("gpt2", "int4", coded)
    expected = logits(model)
    codehead.fold(model).save_pretrained(tmp_path)
    script = (
        "import torch; from architectures import tokens; from transformers import AutoModelForCausalLM; "
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
        "torch.save(model(input_ids=tokens()).logits.detach(), sys.argv[1] + '/logits.pt')"
    )
    found = run_without_codehead(script, tmp_path)
    assert found.returncode == 0, found.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "place"), [("gpt2", "transformer.ln_f"), ("llama", None), ("opt_350m", None)])
def test_only_a_layer_norm_right_before_the_head_counts(name, place):
    model = make(name)
    expected = None if place is None else model.get_submodule(place)
    assert norm_before_head(model) is expected


@pytest.mark.parametrize("name", ["llama", "opt_350m"])
def test_a_bias_without_a_place_is_refused_with_the_remedies(name, coded, tmp_path):
    model = codehead.fold(coded(name, loss="codeword", token_bias=True))
    with pytest.raises(ConfigurationError, match=r"has no bias.*--data.*token_bias=false"):
        model.save_pretrained(tmp_path)


def batches():
    ids = tokens(60, 9)
    return [{"input_ids": ids, "labels": ids}]


def test_statistics_bring_a_bias_nearer_than_leaving_it_out(coded, tmp_path):
    model = coded("llama", loss="codeword", token_bias=True)
    statistics = Statistics.of(torch.zeros(VOCAB), hidden_states(model, batches(), 400))
    others = tokens(seed=7)
    expected, bias = logits(model, others), model.decision.corrections.token_bias.detach()
    codehead.fold(model, statistics).save_pretrained(tmp_path)
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path), others)
    assert (found - expected).square().mean() < 0.7 * bias.square().mean()


def test_where_hidden_states_tell_a_constant_the_rows_hold_the_bias_exactly():
    hidden = torch.randn(500, HIDDEN).double()
    hidden[:, 3] = 2.0
    weight, bias = torch.randn(VOCAB, HIDDEN).double(), torch.randn(VOCAB).double()
    found = into_rows(weight, bias, Statistics.of(torch.zeros(VOCAB), hidden))
    torch.testing.assert_close(hidden @ found.T, hidden @ weight.T + bias, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigurationError, match="counts alone"):
        into_rows(weight, bias, Statistics(torch.zeros(VOCAB)))


def test_a_failed_fold_leaves_the_layer_norm(coded, monkeypatch):
    model = coded("gpt2", loss="codeword", token_bias=True)
    expected = logits(model)
    monkeypatch.setattr(folding, "uninstall", None)
    with pytest.raises(TypeError):
        codehead.fold(model)
    assert torch.equal(logits(model), expected)


@pytest.fixture(scope="module")
def llama(place, tmp_path_factory):
    """The folder of a coded Llama with a bias per token, its text, and the tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    torch.manual_seed(0)
    config = LlamaConfig(**{**MODERN, "vocab_size": len(tokenizer)}, tie_word_embeddings=True)
    model = codehead.attach(LlamaForCausalLM(config), token_bias=True)
    torch.nn.init.normal_(model.decision.corrections.token_bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def command(request):
    """The command line, under a name that is not the package's."""
    return request.getfixturevalue("codehead")


def test_the_command_writes_a_stock_model_with_its_tokenizer(command, coded_folder, tmp_path):
    status, printed, errors = command("fold", coded_folder, "--out", tmp_path / "dense")
    assert (status, errors) == (0, "")
    assert "Saved to" in printed
    dense, coded = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "dense", coded_folder))
    assert not codehead.is_coded(dense)
    torch.testing.assert_close(logits(dense), logits(coded), rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "dense")("The cat")["input_ids"]


@pytest.mark.parametrize("words", ["", "# Mine\n"], ids=["ours", "with words of others"])
def test_the_folder_of_a_stock_model_tells_of_no_other(words, command, coded_folder, tmp_path):
    out = tmp_path / "dense"
    shutil.copytree(coded_folder, out)
    (out / "README.md").write_text((out / "README.md").read_text() + words)
    (out / "run.json").write_text("{}")
    assert command("fold", coded_folder, "--out", out, "--overwrite")[0] == 0
    assert not (out / "run.json").exists() and not (out / "codehead.json").exists()
    assert (out / "README.md").exists() == bool(words)
    assert not words or ("# Mine" in (text := (out / "README.md").read_text()) and "decision layer" not in text)


def test_the_command_refuses_to_lose_a_bias_and_leaves_no_folder(command, llama, tmp_path):
    status, _, errors = command("fold", llama, "--out", tmp_path / "dense")
    assert status == 2
    assert "LlamaForCausalLM has no bias" in errors and "--data" in errors
    assert not (tmp_path / "dense").exists()


def test_with_text_the_command_approximates_the_bias_and_tells_the_loss(command, llama, stories, tmp_path):
    status, printed, errors = command("fold", llama, "--data", stories, "--out", tmp_path / "dense", "--block-size", 32)
    assert status == 0, errors
    assert "perplexity" in printed and "folded" in printed
    record = json.loads((tmp_path / "dense" / "run.json").read_text())
    assert record["after"]["perplexity"] == pytest.approx(record["before"]["perplexity"], rel=0.3)
    assert not codehead.is_coded(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"))


def test_with_text_the_command_keeps_the_dtype(command, llama, stories, tmp_path):
    shutil.copytree(llama, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    text = ("--data", stories, "--block-size", 32)
    status, _, errors = command("fold", tmp_path / "half", "--out", tmp_path / "dense", *text)
    assert status == 0, errors
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "dense").dtype == torch.bfloat16


def tensors_in(path):
    """The tensors of a GGUF file by name."""
    return {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in GGUFReader(path).tensors}


def test_a_gguf_file_of_a_folded_model_holds_its_rows(llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.decision.corrections.token_bias.data.zero_()
    expected = logits(model)
    folded = codehead.fold(model, Statistics.of(torch.zeros(len(expected[0, 0])), torch.randn(50, 16)))
    tokenizer = AutoTokenizer.from_pretrained(llama)
    write_model(tmp_path / "folded.gguf", folded, tokenizer, exact=True)
    assert torch.equal(tensors_in(tmp_path / "folded.gguf")["output.weight"], folded.lm_head.weight)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="folded.gguf", dtype=torch.float32)
    torch.testing.assert_close(logits(read), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_llama_cpp_runs_a_folded_smollm2(real_model, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder = real_model("SmolLM2-135M-Instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = codehead.attach(
        model, "dense_random", bits=600, start="old_head", loss="codeword", dense_rows=[*range(100, 200)]
    )
    ids = tokenizer("The capital of France is Paris. The capital of Italy is", return_tensors="pt")["input_ids"]
    expected = logits(model, ids)[0]
    write_model(tmp_path / "folded.gguf", codehead.fold(model), tokenizer, pre="smollm", exact=True)
    run = llama_cpp.Llama(str(tmp_path / "folded.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    assert run.tokenize(b"The capital of France is Paris. The capital of Italy is", add_bos=False) == ids[0].tolist()
    run.eval(ids[0].tolist())
    found = torch.from_numpy(run.scores[: ids.shape[1]].copy())
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
