"""Attach a decision layer to a transformers model in place, and detach it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from codehead import codes, heads
from codehead.codes.codebook import Codebook
from codehead.codes.table import CodewordTable
from codehead.config import DecisionConfig
from codehead.config.blocks import require_that
from codehead.config.decision import NEAR_OLD_HEAD
from codehead.decoding.extras import ExtendedHead
from codehead.errors import CodebookError, ConfigurationError
from codehead.head_outputs import Tokens
from codehead.heads.chain import Chain
from codehead.heads.feedforward import HEADS, gives_log_probabilities
from codehead.layer import Decision
from codehead.models import guards, stock
from codehead.models.coded import CodedCausalLM, own_class
from codehead.models.description import Description, weights_checksum
from codehead.models.guards import all_or_nothing
from codehead.models.hidden import Statistics
from codehead.models.integrity import refuse_lost_names
from codehead.models.old_head import OldHead, build_extras, initialise, weights_of_tokens
from codehead.models.probe import LogitScaling, refuse_non_causal
from codehead.models.registration import METHOD

Model = TypeVar("Model", bound=nn.Module)

FROM_OLD_HEAD = {**NEAR_OLD_HEAD, "token_bias": True}
"""What `attach` uses if no code is given: codehead's recommendation as far as it needs no text."""


def is_coded(model: object) -> bool:
    """Whether the model has a decision layer."""
    return isinstance(model, CodedCausalLM)


@all_or_nothing
def attach(
    model: Model,
    decision: DecisionConfig | str | Path | Codebook | None = None,
    *,
    statistics: Statistics | None = None,
    keep_head: bool = True,
    **fields: Any,
) -> Model:
    """Replace the Softmax head of a causal language model by an error-correcting output code, in place.

    Args:
        model: any transformers causal LM whose output embedding maps `(hidden → V)`.
        decision: a DecisionConfig, the name of a design, the path of a saved codebook, or a Codebook. Without it, and
            without `code` among the fields: an additive code of the old head's rows, with the loss and start that fit.
        statistics: token counts, and how hidden states vary, on text like yours. They choose the tokens with dense rows
            and extra bits, order the tokens of an adaptive softmax, tell a design that looks at the old head which rows
            and directions matter, and initialise biases to log frequencies.
        keep_head: keep the old head in memory, for `detach`; a tied model can always be detached.
        fields: fields of DecisionConfig; they override those of `decision`.

    A design that looks at the classes (additive, itq, merged_decoc, …) takes `code_params={"prototypes": …}`, by
    default the rows of the model's own Softmax head, which are meaningful only if that head was trained.

    Raises:
        ConfigurationError: the model or an option does not allow it; the model is unchanged.
        CodebookError: the code's number of classes is not the model's number of tokens.

    Returns:
        The same model, now coded.

    """
    target: Any = model
    old = _check(target)
    seen = OldHead.of(old, statistics)
    config, codebook = _described(decision, fields)
    codebook = _codebook(config, seen) if codebook is None else _fitting(codebook, config, seen)
    if config.assignment is not None:
        codebook = _assigned(codebook, config, seen)
    capped = _keeps_soft_cap(target, config, codebook)
    extras = build_extras(config, codebook, seen)
    new, chain = _seeded_head(config, old.weight.shape[1], codebook.length, 0 if extras is None else extras.num_outputs)
    parts = (extras, chain, gives_log_probabilities(new))
    layer = Decision(codebook, config.loss, config.decoder, *parts).to(old.weight)
    new.to(old.weight)
    layer.packed = config.packed
    scale = LogitScaling.of(target).scale if config.start == "old_head" and extras is not None else 1.0
    initialise(config.start, seen, new, layer, scale)

    changed = stock.before(target, old, capped=capped)
    fresh = weights_checksum(new) if config.start == "random" and not layer.table.is_implicit else ""
    stock.clear_marks(target)
    description = Description.of(config, codebook, layer, changed, fresh, stock.quantizer_entry(target))
    stock.alter(target, changed)
    if not capped and not old.weight.is_meta:
        for width in (layer.num_outputs, len(old.weight)):
            LogitScaling.of(target, width)
    target.config.quantization_config = description.to_dict()
    install(target, new, layer, old if keep_head else None)
    refuse_lost_names(target)
    return model


def _described(
    decision: DecisionConfig | str | Path | Codebook | None, fields: dict[str, Any]
) -> tuple[DecisionConfig, Codebook | None]:
    """The description given to `attach`, and the finished codebook if one was given."""
    if decision is None:
        decision = fields.pop("code", None)
    if decision is None:
        return DecisionConfig.from_fields({**FROM_OLD_HEAD, **fields}), None
    if isinstance(decision, Codebook):
        return DecisionConfig.from_fields({"code": decision.design, **fields}), decision
    if isinstance(decision, DecisionConfig):
        config = DecisionConfig.from_fields({**decision.to_dict(), **fields})
        remedy = "give one: additive starts near the old head, minrandom at random; or use DecisionConfig.for_budget"
        require_that(config.code is not None, "code", None, remedy)
        return config, None
    return DecisionConfig.from_fields({"code": decision, **fields}), None


def _keeps_soft_cap(model: Any, config: DecisionConfig, codebook: Codebook) -> bool:
    """Whether the new head's outputs keep the model's soft cap; ConfigurationError if head and model do not fit."""
    tokens = gives_log_probabilities(HEADS.get(config.head))
    if tokens:
        Tokens(CodewordTable(codebook)).check()  # refuses too few tokens before the head is built
        factor = LogitScaling.of(model).scale
        if factor != 1:
            raise ConfigurationError(
                f"{type(model).__name__} multiplies its head's outputs by {factor:g}, which would distort the "
                f"log-probabilities of head {config.head!r}; choose another head"
            )
    capped = codebook.design == "one_vs_all" and not tokens
    if not capped:
        stock.refuse_fixed_soft_cap(model)
    return capped


def install(model: Any, head: nn.Module, decision: Decision, old: nn.Module | None = None) -> None:
    """Make a model coded whose configuration already describes it so; keep the `old` head for `detach`."""
    kept = stock.Kept(old, model.loss_type)
    stock.replace_head(model, head.train(model.training))
    model.decision = decision.train(model.training)
    guards.allow_saving(model)  # a folded head is gone
    model.loss_type = "ForCausalLM"  # so that the Trainer counts shifted labels
    stock_class: Any = type(model)
    model.__class__ = own_class(CodedCausalLM, stock_class)
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    model._kept = kept


@all_or_nothing
def detach(model: Model) -> Model:
    """Restore the Softmax head from before `attach`, in place; tied to the embedding again if it was.

    Raises ConfigurationError if the old head was not kept: after `keep_head=False`, or loading from a checkpoint.
    """
    target: Any = model
    if hasattr(target, "_detach"):  # screened: nothing was replaced
        detached: Model = target._detach()
        return detached
    changed = describe(target, "detach").stock
    guards.refuse_patched_forward(target, "detach")
    head = target._kept.head
    if head is None and changed["tie_word_embeddings"] and not changed["bias"]:
        head = stock.tied_head(target)
    if head is None:
        raise ConfigurationError(
            "cannot detach: the Softmax head was not kept (keep_head=False, or the model was loaded from a "
            "coded checkpoint); codehead.fold(model) turns a linear head with a binary code into an "
            "equivalent Softmax head"
        )
    uninstall(target, head)
    stock.restore(target, changed)
    return model


def uninstall(model: Any, head: nn.Linear) -> None:
    """Give a coded model its stock class back, with `head` as its output embedding."""
    has_bias = describe(model, "uninstall").stock["bias"]
    if not head.weight.is_meta:
        head.to(next(model.get_output_embeddings().parameters()))
    stock.replace_head(model, head.train(model.training))
    model.loss_type = model._kept.loss_type
    model.__class__ = model._stock_class
    del model.decision, model._kept
    stock.give_back_quantizer(model)
    if head.bias is not None and not has_bias:  # no checkpoint of this class has a place for it
        guards.refuse_saving_bias(model)


def describe(model: Any, action: str) -> Description:
    """The description of a coded model; for any other, a ConfigurationError that names the refused `action`."""
    if not is_coded(model):
        raise ConfigurationError(
            f"cannot {action}: this {type(model).__name__} has no decision layer; attach one first, or "
            "unwrap the model from PEFT or torch.compile"
        )
    return Description.from_dict(model.config.quantization_config)


def _check(model: Any) -> nn.Linear:
    """The output embedding of a model that a decision layer can be attached to."""
    from transformers import PreTrainedModel  # at module level it would be circular: see registration.py

    if is_coded(model) or hasattr(model, "_detach"):
        kind = "decision layer" if is_coded(model) else "screen"
        raise ConfigurationError(f"this model has a {kind} already; codehead.detach(model) it first")
    if not isinstance(model, PreTrainedModel):
        raise ConfigurationError(
            f"cannot attach to a {type(model).__name__}: it is not a transformers model. Attach to the "
            "model itself before wrapping it (PEFT, torch.compile); for your own models use "
            "codehead.DecisionLayer"
        )
    if getattr(model, "is_quantized", False) and not stock.is_unpacked(model):
        stock.check_backbone(model)
    entry = getattr(model.config, "quantization_config", None)
    if isinstance(entry, dict) and entry.get("quant_method") == METHOD:
        raise ConfigurationError(
            "this model's configuration describes a coded model, but it has no decision layer: it was built from "
            "the config.json of a coded checkpoint. Load the checkpoint with from_pretrained, or build the model from "
            "a stock configuration"
        )
    guards.refuse_patched_forward(model, "attach")
    old = model.get_submodule(stock.head_path(model))
    if not isinstance(old, nn.Linear):
        raise ConfigurationError(
            f"cannot attach: the output embedding is a {type(old).__name__}, and a decision layer takes the place of a "
            "torch.nn.Linear; merge or remove adapters first"
        )
    refuse_non_causal(model)
    return old


def _codebook(config: DecisionConfig, old: OldHead) -> Codebook:
    """The codebook of a description, with one codeword per row of the `old` output embedding.

    A design that looks at the classes gets these rows unless `code_params` give it others: multiplied by the root of
    the hidden states' covariance if there are statistics, and with per-token weights if the design takes them.
    """
    code = str(config.code)
    if config.is_codebook_file:
        return _fitting(codes.load(code), config, old)
    options, params = codes.DESIGNS.get(code).params(), dict(config.code_params)
    if "prototypes" in options and not {"prototypes", "samples"} & params.keys():
        params = {**_looked_at(config, options, old), **params}
    return codes.build(code, len(old.weight), bits=config.bits, seed=config.seed, **params)


def _fitting(codebook: Codebook, config: DecisionConfig, old: OldHead) -> Codebook:
    """A finished codebook; ConfigurationError or CodebookError if it does not fit the description or the model."""
    if config.code_params or (config.bits is not None and config.bits != codebook.length):
        raise ConfigurationError(
            f"bits={config.bits} and code_params={config.code_params} describe a code to be built, but code is a "
            f"finished codebook of length {codebook.length}; omit them"
        )
    if codebook.num_classes != len(old.weight):
        raise CodebookError(
            f"the codebook has {codebook.num_classes} classes, but the output embedding of the model has "
            f"{len(old.weight)} rows; build it with num_classes={len(old.weight)} (the tokenizer may know fewer "
            "tokens)"
        )
    return codebook


def _looked_at(config: DecisionConfig, options: list[str], old: OldHead) -> dict[str, np.ndarray]:
    """The parameters that a design which looks at classes gets from the `old` output embedding."""
    seen = {"prototypes": old.rows(f"code={config.code!r}", "give code_params={'prototypes': ...}").numpy()}
    weights = weights_of_tokens(config, old) if "weights" in options else None
    return seen if weights is None else {**seen, "weights": weights.cpu().numpy()}


def _assigned(codebook: Codebook, config: DecisionConfig, old: OldHead) -> Codebook:
    """The codewords reassigned to tokens, by the rows of the output embedding or the token counts."""
    method = str(config.assignment)
    if method == "frequency" and old.counts is None:
        raise ConfigurationError(
            "assignment='frequency' needs token counts: give statistics with counts over text like yours"
        )
    seen = None
    if method.startswith("similar"):
        seen = old.rows(f"assignment={method!r}", "choose another method").numpy()
    counts = None if old.counts is None else old.counts.numpy()
    return codes.assign(codebook, method, prototypes=seen, counts=counts, seed=config.seed)


def build_head(config: DecisionConfig, hidden_size: int, num_bits: int, further: int) -> nn.Module:
    """The head of a description, with `further` rows for extra bits and dense rows, if any."""
    head = heads.build(config.head, hidden_size, num_bits, **config.head_options)
    return ExtendedHead(head, hidden_size, further) if further else head


def _seeded_head(
    config: DecisionConfig, hidden_size: int, num_bits: int, further: int
) -> tuple[nn.Module, Chain | None]:
    """A head, and its chain if it has one, with initial weights.

    Built on the CPU, in float32, so that a seed gives the same weights on every device and for every default dtype.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), _float32():
        torch.default_generator.manual_seed(config.seed)
        head = build_head(config, hidden_size, num_bits, further)
        return head, Chain.of(head)


@contextmanager
def _float32() -> Iterator[None]:
    """float32 as torch's default dtype."""
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(kept)
