"""A coded head on a backbone that another library has quantised: QLoRA, saving, loading, detaching."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from architectures import MODERN, VOCAB, make, tokens
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    QuantoConfig,
    TorchAoConfig,
    Trainer,
    TrainingArguments,
)

import codehead
from codehead.errors import CheckpointError, ConfigurationError
from codehead.training.model import attention_projections

# Said by the backends about themselves, and by the Trainer of switches that transformers renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:.*(torchao|bitsandbytes|optimum).*"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*inputs will be cast from.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Merge lora module to:UserWarning"),
]


def int8_of_torchao():
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


BACKENDS = {
    "bitsandbytes nf4": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "bitsandbytes int8": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "torchao int8": ("torchao", int8_of_torchao),
    "quanto int8": ("optimum", lambda: QuantoConfig(weights="int8")),
}
WIDE = {**MODERN, "hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 2}
"""bitsandbytes takes multiples of 32 on a CPU."""
SAVED = [name for name in BACKENDS if "quanto" not in name]
LAYERS = {
    "linear": {"code": "minrandom", "bits": 24},
    "mtl": {"code": "minrandom", "bits": 24, "head": "mtl", "width": 3},
    "from the old head": {"code": None, "dense_rows": [5, 3]},
}


@pytest.fixture
def quantised(tmp_path):
    """Makes a tiny stock model whose backbone a backend has quantised; skips if the backend is not installed."""

    def build(backend, tied=True):
        package, config = BACKENDS[backend]
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (pip install {package})")
        torch.manual_seed(0)
        stock = AutoModelForCausalLM.from_config(LlamaConfig(**WIDE, initializer_range=0.2, tie_word_embeddings=tied))
        stock.save_pretrained(tmp_path / "stock")
        return AutoModelForCausalLM.from_pretrained(tmp_path / "stock", quantization_config=config())

    return build


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=tokens()).logits


def train(model, folder, steps=4):
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        max_steps=steps,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-2,
        dataloader_pin_memory=False,
    )
    data = [{"input_ids": row, "labels": row} for row in tokens(8, 7).tolist()]
    run = Trainer(model=model, args=arguments, train_dataset=data)
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("backend", SAVED)
def test_a_saved_model_comes_back_bit_for_bit(backend, layer, quantised, tmp_path):
    model = codehead.attach(quantised(backend), **LAYERS[layer])
    expected, projection = logits(model), "model.layers.0.self_attn.q_proj"
    assert expected.shape == (2, 7, VOCAB)
    model.save_pretrained(tmp_path / "coded")
    entry = json.loads((tmp_path / "coded" / "config.json").read_text())["quantization_config"]
    assert entry["quant_method"] == "codehead"
    assert entry["backbone"]["quant_method"] in backend
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "coded")
    assert torch.equal(logits(loaded), expected)
    assert type(loaded.get_submodule(projection).weight) is type(model.get_submodule(projection).weight)
    assert all(type(values) is nn.Parameter for values in loaded.get_output_embeddings().parameters())
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_adapters_and_the_head_train_on_it(backend, quantised, tmp_path):
    def base():
        return codehead.attach(quantised(backend), **LAYERS["linear"])

    model = prepare_model_for_kbit_training(base(), use_gradient_checkpointing=False)
    settings = LoraConfig(r=2, target_modules=attention_projections(model), modules_to_save=["lm_head"])
    model, inputs = get_peft_model(model, settings), {"input_ids": tokens(), "labels": tokens()}
    before = model.get_output_embeddings().weight.detach().clone()
    with torch.no_grad():
        torch.testing.assert_close(model.train()(**inputs).loss, model.eval()(**inputs).loss, rtol=0.02, atol=0.0)
    losses = train(model, tmp_path / "run")
    assert losses[-1] < losses[0]
    assert not torch.equal(model.get_output_embeddings().weight, before)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(PeftModel.from_pretrained(base(), str(tmp_path / "adapter"))), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", SAVED)
def test_adapters_on_a_saved_model_come_back(backend, quantised, tmp_path):
    codehead.attach(quantised(backend), **LAYERS["mtl"]).save_pretrained(tmp_path / "coded")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "coded")
    settings = LoraConfig(r=2, target_modules=attention_projections(model), modules_to_save=["lm_head"])
    model = get_peft_model(prepare_model_for_kbit_training(model, use_gradient_checkpointing=False), settings)
    train(model, tmp_path / "run", steps=1)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "coded")
    assert torch.equal(logits(PeftModel.from_pretrained(again, str(tmp_path / "adapter"))), expected)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_detach_gives_the_model_of_the_backend_back(backend, tied, quantised, tmp_path):
    model = quantised(backend, tied=tied)
    expected, config, quantizer = logits(model), model.config.quantization_config, model.hf_quantizer
    codehead.detach(codehead.attach(model, **LAYERS["linear"]))
    assert torch.equal(logits(model), expected)
    assert model.config.quantization_config is config and model.hf_quantizer is quantizer and model.is_quantized
    if backend in SAVED:
        model.save_pretrained(tmp_path / "plain")
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "plain")), expected)


def test_the_loader_leaves_the_quantizer_of_the_backend(quantised, tmp_path):
    model = codehead.attach(quantised("bitsandbytes nf4"), **LAYERS["mtl"])
    kind = type(model.hf_quantizer)
    model.save_pretrained(tmp_path / "coded")
    assert "get_state_dict_and_metadata" not in vars(model.hf_quantizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "coded")
    assert type(loaded.hf_quantizer) is kind and loaded.is_quantized
    backbone = AutoModel.from_pretrained(tmp_path / "coded")
    assert not codehead.is_coded(backbone)
    assert backbone.config.quantization_config.quant_method == "bitsandbytes"


def test_quanto_refuses_to_save(quantised, tmp_path):
    model = codehead.attach(quantised("quanto int8"), **LAYERS["linear"])
    with pytest.raises(ValueError, match="quanto and is not serializable"):
        model.save_pretrained(tmp_path / "coded")


def test_a_quantised_head_is_refused(quantised, tmp_path):
    quantised("bitsandbytes nf4", tied=False)
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["q_proj"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "stock", quantization_config=config)
    with pytest.raises(ConfigurationError, match=r"llm_int8_skip_modules=\['lm_head'\]"):
        codehead.attach(model, **LAYERS["linear"])


def test_other_quantizers_are_refused():
    model = make("llama")
    model.is_quantized, model.quantization_method = True, "hqq"
    with pytest.raises(ConfigurationError, match="bitsandbytes, torchao, quanto"):
        codehead.attach(model, **LAYERS["linear"])


def test_an_edited_entry_of_the_backend_is_refused(quantised, tmp_path):
    codehead.attach(quantised("bitsandbytes nf4"), **LAYERS["linear"]).save_pretrained(tmp_path / "coded")
    path = tmp_path / "coded" / "config.json"
    for field, value in (("bnb_4bit_quant_type", "fp4"), ("quant_method", "hqq")):
        config = json.loads(path.read_text())
        kept = json.dumps(config)
        config["quantization_config"]["backbone"][field] = value
        path.write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"quantization_config\.backbone"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "coded")
        path.write_text(kept)
