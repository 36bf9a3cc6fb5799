"""A decision layer in every architecture: what the model returns, learns and refuses; taking it off again."""

from __future__ import annotations

import copy
import io
import pickle
import types

import numpy as np
import pytest
import torch
from architectures import CONFIGS, HIDDEN, MODERN, VOCAB, make, tokens
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from transformers import AutoModelForCausalLM, PhiConfig

import codehead
from codehead import codes
from codehead.errors import CodebookError, ConfigurationError

ARCHITECTURES = pytest.mark.parametrize("name", CONFIGS)
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
LAYERS = {
    "linear": {"code": "minrandom", "bits": 24},
    "mtl": {"code": "minrandom", "bits": 24, "head": "mtl", "width": 3},
    "ternary": {"code": "sparse_random", "bits": 44},
    "ternary_mtl": {"code": "sparse_random", "bits": 44, "head": "mtl", "width": 3},
}


def stock_state(model):
    """Everything that attach changes and detach must put back."""
    config = {k: v for k, v in model.config.to_dict().items() if k != "dtype"}
    return type(model), config, model.loss_type, dict(model.all_tied_weights_keys)


@pytest.mark.parametrize("layer", LAYERS)
@TIED
@ARCHITECTURES
def test_logits_are_the_codeword_posterior(name, tied, layer, coded):
    model = coded(name, tied, **LAYERS[layer])
    ids = tokens()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        bits = model.bit_logits(input_ids=ids).double()
    codewords = model.decision.table.signs().double()
    likelihood = (F.logsigmoid(codewords * bits.unsqueeze(-2)) * codewords.abs()).sum(-1)
    assert logits.shape == (2, 7, VOCAB)
    assert bits.shape == (2, 7, codewords.shape[1])
    torch.testing.assert_close(logits.double().softmax(-1), likelihood.softmax(-1), rtol=1e-4, atol=1e-6)
    assert likelihood.softmax(-1).std() > 1e-4  # equal probabilities everywhere would prove nothing
    assert type(model).__name__ == type(make(name)).__name__
    assert isinstance(model, type(make(name)))


@TIED
@ARCHITECTURES
def test_detach_restores_the_stock_model_bit_for_bit(name, tied, coded):
    stock = make(name, tied)
    before, expected = stock_state(stock), stock(input_ids=tokens()).logits
    model = coded(name, tied)
    assert stock_state(model) != before
    codehead.detach(model)
    assert stock_state(model) == before
    assert torch.equal(model(input_ids=tokens()).logits, expected)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


@TIED
def test_detach_moves_the_head_to_the_precision_of_the_model(tied, coded):
    model = codehead.detach(coded("llama", tied).half())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert torch.equal(model(input_ids=tokens()).logits, make("llama", tied).half()(input_ids=tokens()).logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{"code": "minrandom", "bits": 24}, {}], ids=["at random", "near the old head"])
def test_the_default_dtype_changes_nothing(options, dtype, default_dtype):
    expected, model = codehead.attach(make("llama"), **options), make("llama")
    default_dtype(dtype)
    codehead.attach(model, **options)
    for values, other in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
        assert values.dtype == other.dtype and torch.equal(values, other)


def test_a_head_that_only_the_configuration_calls_tied_is_restored(tmp_path):
    model = make("llama", tied=True)
    model.get_output_embeddings().weight = torch.nn.Parameter(torch.randn(VOCAB, HIDDEN))
    expected = model(input_ids=tokens()).logits
    codehead.detach(codehead.attach(model, "minrandom", bits=24))
    assert torch.equal(model(input_ids=tokens()).logits, expected)
    model.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model(input_ids=tokens()).logits, expected)
    model.config.tie_word_embeddings = True
    with pytest.raises(ConfigurationError, match="was not kept"):
        codehead.detach(codehead.attach(model, "minrandom", bits=24, keep_head=False))


@ARCHITECTURES
def test_one_vs_all_with_the_old_weights_is_the_stock_model_bit_for_bit(name):
    stock, model = make(name, tied=False), make(name, tied=False)
    weight = model.get_output_embeddings().weight.detach().clone()
    codehead.attach(model, "one_vs_all", loss="codeword")
    model.get_output_embeddings().weight.data.copy_(weight)
    ids = tokens()
    labels = ids.masked_fill(ids % 5 == 0, -100)
    for num_items in (None, torch.tensor(17)):
        gradients = []
        for network in (stock, model):
            network.zero_grad()
            outputs = network(input_ids=ids, labels=labels, num_items_in_batch=num_items)
            outputs.loss.backward()
            gradients.append([parameter.grad for parameter in network.parameters()])
            network.result = outputs
        assert torch.equal(model.result.logits, stock.result.logits)
        assert torch.equal(model.result.loss, stock.result.loss)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


@pytest.mark.parametrize("layer", LAYERS)
def test_training_with_labels_makes_no_tensor_as_wide_as_the_vocabulary(layer, coded):
    model = coded(**LAYERS[layer]).train()
    ids = tokens()
    with Shapes() as shapes:
        outputs = model(input_ids=ids, labels=ids)
        outputs.loss.backward()
    own = {tuple(values.shape) for values in model.state_dict().values()}
    assert "logits" not in outputs
    assert (2, 7, HIDDEN) in shapes.seen
    assert [shape for shape in shapes.seen - own if VOCAB in shape] == []
    with Shapes() as shapes:
        model(input_ids=ids, labels=ids, output_token_logits=True)
    assert (2, 7, VOCAB) in shapes.seen


def test_output_token_logits_decides_in_training_and_in_evaluation(coded):
    model, ids = coded(), tokens()
    assert model(input_ids=ids, labels=ids).logits.shape == (2, 7, VOCAB)
    assert model(input_ids=ids, labels=ids, output_token_logits=False).logits is None
    model.train()
    assert "logits" not in model(input_ids=ids, labels=ids)
    assert model(input_ids=ids, labels=ids, output_token_logits=False).logits is None
    assert model(input_ids=ids, labels=ids, output_token_logits=True).logits.shape == (2, 7, VOCAB)


def test_a_loss_of_ones_own_from_the_logits_of_a_codeword_loss_is_the_model_s(coded):
    model, ids = coded(loss="codeword").train(), tokens()
    outputs = model(input_ids=ids, labels=ids)
    assert list(outputs) == ["loss", *(["past_key_values"] if "past_key_values" in outputs else [])]
    own = F.cross_entropy(outputs["logits"][:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(own, outputs.loss)
    own.backward()
    assert model.get_output_embeddings().weight.grad.abs().sum() > 0
    assert outputs.logits is outputs["logits"]
    assert isinstance(outputs, type(make("llama")(input_ids=ids)))


def test_a_loss_of_ones_own_from_the_logits_of_a_bitwise_loss_is_refused_with_the_way_out(coded):
    model, ids = coded().train(), tokens()
    outputs = model(input_ids=ids, labels=ids)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"take its \.loss.*loss='codeword'"):
            _ = outputs.logits[:, :-1]
    with torch.no_grad():
        assert outputs.logits.shape == (2, 7, VOCAB)  # to look at


def test_outputs_with_logits_on_demand_can_be_copied_and_rebuilt(coded):
    model, ids = coded(loss="codeword").train(), tokens()
    outputs = model(input_ids=ids, labels=ids)
    leaves, tree = tree_flatten(outputs)
    assert torch.equal(tree_unflatten(leaves, tree).loss, outputs.loss)
    assert torch.equal(type(outputs)(**outputs).loss, outputs.loss)
    assert torch.equal(outputs.to_tuple()[0], outputs.loss)


def test_loss_shifts_labels_unless_they_come_shifted(coded):
    model, ids = coded(), tokens()
    bits = model.bit_logits(input_ids=ids)
    expected = model.decision.loss(bits[:, :-1], ids[:, 1:])
    shifted = F.pad(ids[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, expected)
    torch.testing.assert_close(model(input_ids=ids, shift_labels=shifted).loss, expected)
    total = model(input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(100)).loss
    torch.testing.assert_close(total, expected * 12 / 100)


def test_tuples_and_positional_arguments(coded):
    model, ids = coded(), tokens()
    outputs = model(input_ids=ids, labels=ids)
    loss, logits, *_ = model(ids, labels=ids, return_dict=False)
    assert torch.equal(loss, outputs.loss)
    assert torch.equal(logits, outputs.logits)
    positional = model(ids, None, None, None, None, ids)
    assert torch.equal(positional.loss, outputs.loss)


def test_mixture_of_experts_adds_its_router_loss(coded):
    model, ids = coded("mixtral"), tokens()
    outputs = model(input_ids=ids, labels=ids, output_router_logits=True)
    own = model.decision.loss(model.bit_logits(input_ids=ids)[:, :-1], ids[:, 1:])
    assert outputs.aux_loss > 0
    torch.testing.assert_close(outputs.loss, own + model.config.router_aux_loss_coef * outputs.aux_loss)


def test_logits_stay_in_float32_under_autocast_and_in_half_precision(coded):
    ids = tokens()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = coded()(input_ids=ids, labels=ids)
    assert outputs.logits.dtype == outputs.loss.dtype == torch.float32
    assert coded().bfloat16()(input_ids=ids).logits.dtype == torch.float32


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_soft_capping_is_off_for_bit_logits_and_on_for_one_vs_all(name, coded):
    model = coded(name)
    assert (
        model.bit_logits(input_ids=tokens()).abs().max()
        > model.config.quantization_config["stock"]["final_logit_softcapping"]
    )
    softmax = codehead.attach(make(name), "one_vs_all")
    softmax.get_output_embeddings().weight.data.mul_(100)
    assert softmax(input_ids=tokens()).logits.abs().max() <= softmax.config.final_logit_softcapping


def test_a_seed_gives_the_same_layer_and_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = codehead.attach(make("llama"), "minrandom", bits=24, seed=7)
    torch.manual_seed(5)
    second = make("llama")
    torch.manual_seed(5)
    codehead.attach(second, "minrandom", bits=24, seed=7)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.get_output_embeddings().weight, second.get_output_embeddings().weight)
    assert (
        first.config.quantization_config["codebook"]["checksum"]
        == second.config.quantization_config["codebook"]["checksum"]
    )
    other = codehead.attach(make("llama"), "minrandom", bits=24, seed=8)
    assert not torch.equal(first.get_output_embeddings().weight, other.get_output_embeddings().weight)


def test_attach_takes_a_codebook_or_its_file(tmp_path, coded):
    codebook = codes.build("minrandom", VOCAB, bits=20, seed=3)
    codebook.save(tmp_path / "code.safetensors")
    given = codehead.attach(make("opt"), codebook)
    read = codehead.attach(make("opt"), str(tmp_path / "code.safetensors"))
    assert given.config.quantization_config["codebook"]["checksum"] == codebook.checksum
    assert torch.equal(given(input_ids=tokens()).logits, read(input_ids=tokens()).logits)


REFUSED = {
    "vocabulary": ({"code": codes.build("minrandom", VOCAB + 1, bits=20)}, CodebookError, ["121", "120"]),
    "bits of a finished code": (
        {"code": codes.build("minrandom", VOCAB, bits=20), "bits": 21},
        ConfigurationError,
        ["bits=21", "20"],
    ),
    "design": ({"code": "minrandm"}, ConfigurationError, ["minrandm", "did you mean 'minrandom'"]),
    "head": ({"head": "liner"}, ConfigurationError, ["liner", "did you mean 'linear'"]),
    "loss": ({"loss": "bitwis"}, ConfigurationError, ["bitwis", "did you mean 'bitwise'"]),
    "decoder": ({"decoder": "haming"}, ConfigurationError, ["haming", "did you mean 'hamming'"]),
    "width": ({"code": "minrandom", "head": "mtl"}, ConfigurationError, ["width=None"]),
    "option": ({"head_params": {"depth": 3}}, ConfigurationError, ["depth"]),
    "field": ({"bit": 24}, ConfigurationError, ["no field 'bit'", "did you mean 'bits'"]),
    "renamed": ({"shortlist": 3}, ConfigurationError, ["shortlist is called dense_rows now", "dense_rows=3"]),
    "removed": ({"token_scale": True}, ConfigurationError, ["token_scale", "version 0.1", "omit it"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_attach_refuses_and_changes_nothing(case):
    options, error, words = REFUSED[case]
    model = make("gemma2")
    before, expected = stock_state(model), model(input_ids=tokens()).logits
    with pytest.raises(error) as caught:
        codehead.attach(model, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert stock_state(model) == before
    assert torch.equal(model(input_ids=tokens()).logits, expected)


def test_attach_twice_and_detach_of_a_stock_model_are_refused(coded):
    model = coded()
    assert codehead.is_coded(model)
    with pytest.raises(ConfigurationError, match=r"already; codehead\.detach"):
        codehead.attach(model)
    codehead.detach(model)
    assert not codehead.is_coded(model)
    with pytest.raises(ConfigurationError, match="no decision layer"):
        codehead.detach(model)
    with pytest.raises(ConfigurationError, match="no decision layer"):
        codehead.fold(model)
    with pytest.raises(ConfigurationError, match=r"unwrap the model from PEFT or torch\.compile"):
        codehead.detach(torch.compile(coded(), backend="eager"))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("operation", [
    lambda model: codehead.attach(model, "minrandom", bits=24), lambda model: codehead.screen(model, recall=0.9),
], ids=["attach", "screen"])  # fmt: skip
def test_an_adapter_on_the_head_is_refused(operation):
    from peft import LoraConfig

    model = make("llama", tied=False)
    model.add_adapter(LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    expected = model(input_ids=tokens()).logits
    with pytest.raises(ConfigurationError, match="merge or remove adapters first"):
        operation(model)
    assert torch.equal(model(input_ids=tokens()).logits, expected)


def test_attach_refuses_what_is_no_causal_language_model():
    with pytest.raises(ConfigurationError, match="not a transformers model"):
        codehead.attach(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="no output embedding"):
        codehead.attach(make("llama").model)
    with pytest.raises(ConfigurationError, match="before wrapping it"):
        codehead.attach(torch.compile(make("llama"), backend="eager"))


def test_attach_refuses_a_quantised_model():
    model = make("llama")
    model.is_quantized, model.quantization_method = True, "gptq"
    with pytest.raises(ConfigurationError, match=r"quantised with gptq.*bitsandbytes, torchao, quanto"):
        codehead.attach(model)


def test_attach_refuses_a_fixed_soft_cap():
    model = make("llama")
    model.config.logits_soft_cap = 30.0
    with pytest.raises(ConfigurationError, match="logits_soft_cap"):
        codehead.attach(model)
    codehead.attach(model, "one_vs_all")


def test_attach_refuses_a_forward_replaced_on_the_instance(coded):
    model = make("llama")
    model.forward = types.MethodType(type(model).forward, model)
    with pytest.raises(ConfigurationError, match="cannot attach: the forward"):
        codehead.attach(model)
    model = coded()
    model.forward = types.MethodType(type(model).forward, model)
    with pytest.raises(ConfigurationError, match="cannot detach: the forward"):
        codehead.detach(model)


def test_an_untied_head_that_was_not_kept_cannot_come_back(coded):
    model = coded(tied=False, keep_head=False)
    with pytest.raises(ConfigurationError, match=r"not kept.*codehead\.fold"):
        codehead.detach(model)
    tied = codehead.detach(coded(tied=True, keep_head=False))
    assert torch.equal(tied(input_ids=tokens()).logits, make("llama")(input_ids=tokens()).logits)


@pytest.mark.parametrize("bias", [False, True])
@TIED
@ARCHITECTURES
def test_fold_gives_a_stock_model_with_the_same_posterior(name, tied, bias, coded):
    model = coded(name, tied, head_params={"bias": bias})
    if bias:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    expected = model(input_ids=tokens()).logits.softmax(-1)
    assert codehead.fold(model) is model
    assert type(model) is type(make(name))
    assert not hasattr(model.config, "quantization_config")
    torch.testing.assert_close(model(input_ids=tokens()).logits.softmax(-1), expected, rtol=1e-4, atol=1e-6)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=tokens()).logits


def test_a_folded_bias_is_not_lost_in_a_checkpoint(tmp_path):
    """Stock Llama has no bias in its head: a checkpoint with one would be loaded without it, and a warning."""
    model = codehead.attach(make("llama", tied=False), "minrandom", bits=24, loss="codeword", token_bias=True)
    torch.nn.init.normal_(model.decision.corrections.token_bias)
    expected = logits(model)
    torch.testing.assert_close(logits(codehead.fold(model)), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigurationError, match="LlamaForCausalLM has no bias"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    codehead.attach(model, "minrandom", bits=24).save_pretrained(tmp_path)
    codehead.detach(model)  # the folded head is back
    with pytest.raises(ConfigurationError, match="LlamaForCausalLM has no bias"):
        model.save_pretrained(tmp_path)
    codehead.fold(codehead.attach(model, "minrandom", bits=24, loss="codeword", token_bias=True))
    with pytest.raises(ConfigurationError, match="LlamaForCausalLM has no bias"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("token_bias", [False, True])
def test_a_head_that_has_a_bias_is_folded_into_one(token_bias, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(PhiConfig(**MODERN, tie_word_embeddings=False)).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    codehead.attach(model, "minrandom", bits=24, loss="codeword", token_bias=token_bias)
    if token_bias:
        torch.nn.init.normal_(model.decision.corrections.token_bias)
    expected = logits(model)
    codehead.fold(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)


def test_fold_of_one_vs_all_keeps_its_weights():
    model = codehead.attach(make("gemma2"), "one_vs_all")
    expected = model(input_ids=tokens()).logits
    assert torch.equal(codehead.fold(model)(input_ids=tokens()).logits, expected)


@pytest.mark.parametrize(("layer", "reason"), [("mtl", "not linear"), ("ternary", r"log\(2 cosh")])
def test_fold_refuses_what_is_not_linear(layer, reason, coded):
    model = coded(**LAYERS[layer])
    with pytest.raises(ConfigurationError, match=reason):
        codehead.fold(model)
    assert codehead.is_coded(model)


def test_resizing_the_vocabulary_is_refused_with_the_way_out(coded):
    model = coded()
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(VOCAB, pad_to_multiple_of=8) is model.get_input_embeddings()
    for arguments in ({"new_num_tokens": VOCAB + 1}, {"pad_to_multiple_of": 64}):
        with pytest.raises(ConfigurationError, match=r"detach\(model\), then resize, then codehead\.attach"):
            model.resize_token_embeddings(**arguments)
    assert model.get_input_embeddings().weight.shape == (VOCAB, HIDDEN)


def test_the_way_out_works(coded):
    model = codehead.detach(coded())
    model.resize_token_embeddings(VOCAB + 5, mean_resizing=False)
    codehead.attach(model, "minrandom", bits=24)
    assert model(input_ids=tokens()).logits.shape[-1] == VOCAB + 5


@TIED
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_independent_models(how, tied, coded):
    model, ids = coded("gemma2", tied), tokens()
    expected = model(input_ids=ids).logits
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert type(twin) is type(model)
    assert torch.equal(twin(input_ids=ids).logits, expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(input_ids=ids).logits, expected)
    codehead.detach(twin)
    assert torch.equal(twin(input_ids=ids).logits, make("gemma2", tied)(input_ids=ids).logits)


def test_replicas_of_data_parallel_are_coded(coded):
    model = coded()
    replica = model._replicate_for_data_parallel()
    for name, module in model._modules.items():
        replica._modules[name] = module
    assert torch.equal(replica(input_ids=tokens()).logits, model(input_ids=tokens()).logits)


def test_the_class_of_a_coded_model_builds_stock_models(coded):
    model = coded()
    fresh = type(model)(model.config)
    assert type(fresh) is type(make("llama"))


def fused(library):
    """A function as another library would put over forward, disguised by functools.wraps."""
    function = types.FunctionType((lambda self, **kwargs: None).__code__, {"__name__": f"{library}.trainer.utils"})
    function.__module__ = "transformers.models.llama.modeling_llama"
    return function


@pytest.mark.parametrize(
    ("library", "remedy"),
    [("liger_kernel", "'fused_linear_cross_entropy': False"), ("trl", r"transformers\.Trainer")],
)
def test_fused_losses_of_other_libraries_are_refused(library, remedy, coded):
    model = coded()
    with pytest.raises(ConfigurationError, match=remedy):
        model.forward = types.MethodType(fused(library), model)
    model.forward = types.MethodType(fused("accelerate"), model)


def test_unwrapping_mixed_precision_keeps_the_decision_layer(coded):
    accelerate = pytest.importorskip("accelerate")
    model, ids = coded(), tokens()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # one for the process, whatever ran before
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare_model(model)
    assert prepared(input_ids=ids).logits.shape[-1] == VOCAB
    unwrapped = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert unwrapped(input_ids=ids).logits.shape[-1] == VOCAB


def test_a_training_forward_without_labels_is_refused_unless_logits_are_wanted(coded):
    model = coded().train()
    with pytest.raises(ConfigurationError, match="label_smoothing_factor=0"):
        model(input_ids=tokens())
    assert model(input_ids=tokens(), output_token_logits=True).logits.requires_grad
    coded(loss="codeword").train()(input_ids=tokens())
    with torch.no_grad():
        model(input_ids=tokens())


def test_models_that_share_a_configuration_stay_what_they_are():
    first = make("gemma2")
    second = type(first)(first.config)
    before = second(input_ids=tokens()).logits
    codehead.attach(first, "minrandom", bits=24)
    assert first.config is not second.config
    assert first.model.config is not second.model.config
    assert second.config.final_logit_softcapping is not None
    assert not hasattr(second.config, "quantization_config")
    assert torch.equal(second(input_ids=tokens()).logits, before)


def test_a_coded_configuration_without_a_decision_layer_is_refused(coded):
    model = coded()
    bare = model._stock_class(model.config)
    with pytest.raises(ConfigurationError, match="Load the checkpoint with from_pretrained"):
        codehead.attach(bare, "minrandom", bits=24)


def test_numbers_of_numpy_where_python_has_its_own_change_nothing():
    model = make("gemma2")
    with pytest.raises(ConfigurationError, match="give true or false"):
        codehead.attach(model, "minrandom", bits=24, head_params={"bias": np.bool_(True)})
    assert model.config.final_logit_softcapping is not None
    assert not codehead.is_coded(model)


def test_nan_hidden_states_are_told_instead_of_token_zero(coded):
    model = coded()
    with torch.no_grad():
        next(model.model.parameters()).fill_(float("nan"))
    with pytest.raises(ConfigurationError, match="NaN or infinity"):
        model.generate(tokens(), max_new_tokens=3, do_sample=False)
    assert torch.isnan(model(input_ids=tokens(), labels=tokens()).loss)
