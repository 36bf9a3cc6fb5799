"""What is no causal language model, or changes what its head says, is refused and stays as it is."""

from __future__ import annotations

import pytest
import torch
import transformers
from architectures import CONFIGS, MODERN, VOCAB, make
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

import codehead
from codehead.errors import ConfigurationError
from codehead.models.probe import refuse_non_causal
from codehead.training.model import load_model, new_model

BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
}
SEQ2SEQ = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
WHISPER = {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16}
T5 = {"vocab_size": VOCAB, "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
XLNET = {"vocab_size": VOCAB, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}
REFUSED = {
    "BertForMaskedLM": ("bert", BERT, "not a class that generates text"),
    "BertLMHeadModel": ("bert", BERT, "is_decoder"),
    "RobertaForCausalLM": ("roberta", BERT, "is_decoder"),
    "DistilBertForMaskedLM": ("distilbert", {"vocab_size": VOCAB, "dim": 16, "n_heads": 2, "n_layers": 1}, "generates"),
    "T5ForConditionalGeneration": ("t5", T5, "encoder-decoder"),
    "BartForConditionalGeneration": ("bart", SEQ2SEQ, "encoder-decoder"),
    "WhisperForConditionalGeneration": ("whisper", WHISPER, "encoder-decoder"),
    "BartForCausalLM": ("bart", {**SEQ2SEQ, "is_decoder": True}, "does not shift labels"),
    "WhisperForCausalLM": ("whisper", WHISPER, "does not shift labels"),
    "XLNetLMHeadModel": ("xlnet", XLNET, "looks at later tokens"),
}


def build(name):
    model_type, options, _ = REFUSED[name]
    torch.manual_seed(0)
    return getattr(transformers, name)(AutoConfig.for_model(model_type, **options)).eval()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_causal_language_model_is_refused(name):
    model = build(name)
    before = type(model), model.config.to_dict(), dict(model.all_tied_weights_keys), model.get_output_embeddings()
    with pytest.raises(ConfigurationError, match=REFUSED[name][2]) as caught:
        codehead.attach(model, "minrandom", bits=24)
    assert name in str(caught.value)
    assert "use a causal language model" in str(caught.value)
    after = type(model), model.config.to_dict(), dict(model.all_tied_weights_keys), model.get_output_embeddings()
    assert after == before


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_not_screened_either(name):
    with pytest.raises(ConfigurationError, match=REFUSED[name][2]):
        codehead.screen(build(name), recall=0.9)


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "XLNetLMHeadModel"])
def test_it_is_refused_in_low_precision_too(name):
    with pytest.raises(ConfigurationError, match=REFUSED[name][2]):
        codehead.attach(build(name).bfloat16(), "minrandom", bits=24)


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "BertLMHeadModel", "RobertaForCausalLM", "T5ForConditionalGeneration"]
)
def test_it_is_refused_without_weights_too(name):
    with torch.device("meta"):
        model = build(name)
    with pytest.raises(ConfigurationError, match=REFUSED[name][2]):
        codehead.attach(model, "minrandom", bits=24)


def test_a_bert_built_as_a_decoder_is_causal():
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", **BERT, is_decoder=True)
    model = codehead.attach(transformers.BertLMHeadModel(config).eval(), "minrandom", bits=24)
    ids = torch.arange(3, 10)[None]
    expected = model.decision.loss(model.bit_logits(input_ids=ids)[:, :-1], ids[:, 1:])
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_looking_changes_nothing(name):
    model = make(name)
    model.train()
    model.get_input_embeddings().eval()
    modes, head = [module.training for module in model.modules()], model.get_output_embeddings()
    state = torch.get_rng_state()
    refuse_non_causal(model)
    assert [module.training for module in model.modules()] == modes
    assert model.get_output_embeddings() is head
    assert torch.equal(torch.get_rng_state(), state)


class FewTokens(list):
    """As much of a tokenizer as a new model asks for."""

    bos_token_id = eos_token_id = pad_token_id = None


def test_commands_refuse_it_where_they_load_or_build_it(tmp_path):
    build("BertLMHeadModel").save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigurationError, match=r"bert'.*is_decoder"):
        load_model(str(tmp_path / "bert"))
    with pytest.raises(ConfigurationError, match="is_decoder"):
        new_model({"model_type": "bert", **BERT}, FewTokens())


class Altered(GPT2LMHeadModel):
    """A model that does something to its logits."""

    def forward(self, input_ids=None, labels=None, **options):
        outputs = super().forward(input_ids, **options)
        logits = self.alter(outputs.logits)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(loss=loss, logits=logits)


def masks_a_token(logits):
    logits[..., 5] = torch.finfo(logits.dtype).min
    return logits


ALTERATIONS = {
    "a token is masked": masks_a_token,
    "a high token is masked": lambda logits: logits.index_fill(-1, torch.tensor([VOCAB - 1]), -100.0),
    "a bias as wide as the vocabulary": lambda logits: logits + torch.zeros(VOCAB),
    "a constant is added": lambda logits: logits + 0.5,
    "they are squashed": torch.tanh,
    "they are normalised": lambda logits: logits.log_softmax(-1),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_logits_that_are_changed_after_the_head_are_refused(name, monkeypatch):
    monkeypatch.setattr(Altered, "alter", staticmethod(ALTERATIONS[name]), raising=False)
    model = Altered(CONFIGS["gpt2"]())
    head = model.get_output_embeddings()
    with pytest.raises(ConfigurationError, match="one_vs_all"):
        codehead.attach(model, "minrandom", bits=24)
    assert model.get_output_embeddings() is head
    with pytest.raises(ConfigurationError, match="another architecture"):
        codehead.screen(model, recall=0.9)
    codehead.attach(model, "one_vs_all", loss="codeword")  # what the model does to its logits, it goes on doing


@pytest.mark.parametrize(
    "alter", [lambda logits: logits, lambda logits: 0.25 * logits, lambda logits: logits.bfloat16()]
)
def test_a_factor_or_another_precision_is_welcome(alter, monkeypatch):
    monkeypatch.setattr(Altered, "alter", staticmethod(alter), raising=False)
    codehead.attach(Altered(CONFIGS["gpt2"]()), "minrandom", bits=24)


@pytest.mark.parametrize("bits", [64, 110])
def test_chameleon_masks_image_tokens(bits):
    vocabulary = {"<image>": 5, **{f"IMGIMG{letter}Z": 100 + number for number, letter in enumerate("ABCDEFGH")}}
    pictures = {"embed_dim": 8, "num_embeddings": 8, "latent_channels": 8, "base_channels": 32, "num_res_blocks": 1}
    vq = {**pictures, "channel_multiplier": [1], "resolution": 16}
    model = ChameleonForConditionalGeneration(ChameleonConfig(**MODERN, vocabulary_map=vocabulary, vq_config=vq))
    with pytest.raises(ConfigurationError, match="Chameleon"):
        codehead.attach(model, "minrandom", bits=bits)


class Unshifted(LlamaForCausalLM):
    """Its labels are aligned with its logits."""

    def forward(self, input_ids=None, labels=None, **options):
        logits = super().forward(input_ids, **options).logits
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits)


class Lossless(LlamaForCausalLM):
    """It ignores its labels."""

    def forward(self, input_ids=None, labels=None, **options):
        return super().forward(input_ids, **options)


@pytest.mark.parametrize("kind", [Unshifted, Lossless])
def test_classes_of_ones_own_are_told_by_what_they_do(kind):
    model = kind(CONFIGS["llama"]())
    with pytest.raises(ConfigurationError, match=f"the loss of {kind.__name__} is not that of the next token"):
        codehead.attach(model, "minrandom", bits=24)
