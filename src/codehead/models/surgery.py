"""Attach a decision layer to a model of transformers in place, and take it off again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from codehead import codes, heads
from codehead.codes.codebook import Codebook
from codehead.codes.table import CodewordTable
from codehead.decoding.chain import Chain
from codehead.errors import CodebookError, ConfigurationError
from codehead.heads.base import HEADS, gives_log_probabilities
from codehead.heads.shortlist import ShortlistHead
from codehead.layer import Decision
from codehead.models import gguf, guards, stock
from codehead.models.causality import refuse_non_causal
from codehead.models.coded import CodedCausalLM, coded_class
from codehead.models.description import METHOD, Description, weights_checksum
from codehead.models.hidden import Statistics
from codehead.models.initial import initialise
from codehead.models.names import refuse_lost_names
from codehead.models.single_tokens import SingleTokens
from codehead.models.tail import Tail
from codehead.models.undo import all_or_nothing
from codehead.readings import Tokens

Model = TypeVar("Model", bound=nn.Module)


def is_coded(model: object) -> bool:
    """Whether the model has a decision layer."""
    return isinstance(model, CodedCausalLM)


@all_or_nothing
def attach(
    model: Model,
    code: str | Path | Codebook = "minrandom",
    bits: int | None = None,
    head: str = "linear",
    width: int | None = None,
    loss: str = "bitwise",
    decoder: str = "likelihood",
    seed: int = 0,
    *,
    assignment: str | None = None,
    shortlist: int | Sequence[int] = 0,
    shortlist_split: bool = False,
    token_bias: bool = False,
    token_scale: bool = False,
    refined: int | Sequence[int] = 0,
    refined_bits: int = 64,
    start: str = "random",
    statistics: Statistics | None = None,
    code_params: dict[str, Any] | None = None,
    head_params: dict[str, Any] | None = None,
    keep_head: bool = True,
) -> Model:
    """Replace the Softmax head of a causal language model by an error-correcting output code, in place.

    Args:
        model: any causal LM of transformers, `(hidden → V)` by its output embedding.
        code: name of a design, path of a saved codebook, or a Codebook.
        bits: codeword length n; None lets the design choose.
        head: "linear" (ECOC head), "mtl" (MTL-ECOC head), "tower" (hidden layers that bits share), "chain" (later bits
            see the earlier ones), "low_rank" (a bottleneck), "adaptive" (adaptive softmax; needs one_vs_all).
        width: d, the hidden width of each node of an MTL head, of each tower, or of each block of bits of a chain.
        loss: "bitwise" (never V wide) or "codeword" (normalised over the codewords).
        decoder: how `model.decision.decode` ranks tokens.
        seed: of the codebook and of the head's initial weights; the global random state is not touched.
        assignment: which token gets which codeword: None as the design says, or a method of `codes.assign`. "frequency"
            takes the counts of `statistics`, "similar_near" and "similar_far" the rows of the Softmax head.
        shortlist: K tokens that get a dense row of their own beside the code, added to their scores: the most
            frequent by `statistics`, or a list of ids. Needs the loss "codeword".
        shortlist_split: instead of adding the rows to scores, share the probability between the listed tokens and
            "other" by them alone, and that of "other" by the code.
        token_bias: give every token a bias. Needs the loss "codeword".
        token_scale: multiply what a token scores by its codeword by a number of its own. Needs the loss "codeword".
        refined: K tokens whose codewords are longer than those of the others, in the same form. Needs the loss
            "codeword" and a binary code.
        refined_bits: m, so many bits longer: a code of what the code of all tokens leaves of the Softmax head's rows.
        start: "random", or "old_head": the weights with which a linear head comes closest to the Softmax head
            that it replaces (least squares), or, with one_vs_all, its own.
        statistics: what text like yours shows of the model: how often tokens occur, and where hidden states vary.
            It chooses the shortlist, orders the tokens of an adaptive softmax, tells a design that looks at the old
            head which rows and directions matter, weighs the tokens for start="old_head", and from start="random"
            begins the bias at their log frequency.
        code_params: further options of the design, and `parity`, `parity_kind`. A design that looks at the
            classes (additive, itq, merged_decoc, …) takes `prototypes`, by default the rows of the model's own
            Softmax head. They mean something only if that head was trained: for a model that starts
            from scratch give vectors from elsewhere, or choose another design.
        head_params: further options of the head.
        keep_head: keep the old head in memory, for `detach`; a tied model can always be detached.

    Raises:
        ConfigurationError: the model or an option does not allow it; nothing has changed then.
        CodebookError: the code has another number of classes than the model has tokens.

    Returns:
        The same model, now coded.

    """
    target: Any = model
    old = _check(target)
    hidden_size = old.weight.shape[1]
    _check_statistics(statistics, old)
    single = SingleTokens(shortlist, shortlist_split, token_bias, token_scale, refined, refined_bits)
    codebook = _codebook(code, old, bits, seed, code_params or {}, statistics, single)
    if assignment is not None:
        codebook = _assigned(codebook, assignment, old.weight, statistics, seed)
    log_probabilities = gives_log_probabilities(HEADS.get(head))
    if log_probabilities:
        Tokens(CodewordTable(codebook)).check()  # before a head for so few tokens is made
    capped = codebook.design == "one_vs_all" and not log_probabilities
    if not capped:
        stock.refuse_fixed_soft_cap(target)
    if log_probabilities:
        _refuse_factor(target, head)
    options = {**(head_params or {}), **({} if width is None else {"width": width})}
    corrections = single.corrections(codebook, old, statistics, seed)
    rows = 0 if corrections is None else corrections.num_outputs
    new, chain = _seeded_head(head, hidden_size, codebook.length, rows, options, seed)
    new, chain = new.to(old.weight), None if chain is None else chain.to(old.weight)
    decision = Decision(codebook, loss, decoder, corrections, chain, log_probabilities).to(old.weight.device)
    tail = Tail.of(target) if start == "old_head" and corrections is not None else Tail()
    initialise(start, old, new, decision, statistics, tail)

    changed = stock.before(target, old, capped=capped)
    fresh = weights_checksum(new) if start == "random" and not decision.table.is_implicit else ""
    description = Description.of(codebook, head, options, decision, changed, fresh)
    gguf.clear_marks(target)
    stock.alter(target, changed)
    if not capped and not old.weight.is_meta:
        for width in (decision.num_outputs, len(old.weight)):
            Tail.of(target, width)
    target.config.quantization_config = description.to_dict()
    install(target, new, decision, old if keep_head else None)
    refuse_lost_names(target)
    return model


def _refuse_factor(model: Any, head: str) -> None:
    factor = Tail.of(model).scale
    if factor != 1:
        raise ConfigurationError(
            f"{type(model).__name__} multiplies what its head gives by {factor:g}, which would make other numbers of "
            f"the log-probabilities of head {head!r}; choose another head"
        )


def install(model: Any, head: nn.Module, decision: Decision, old: nn.Module | None = None) -> None:
    """Make a model coded whose configuration says so already; the `old` head is kept for `detach`."""
    kept = stock.Kept(old, model.loss_type)
    stock.replace_head(model, head.train(model.training))
    model.decision = decision.train(model.training)
    guards.allow_saving(model)  # a folded head is gone
    model.loss_type = "ForCausalLM"  # so that the Trainer counts shifted labels
    stock_class: Any = type(model)
    model.__class__ = coded_class(stock_class)
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    model._kept = kept


@all_or_nothing
def detach(model: Model) -> Model:
    """Put the Softmax head from before `attach` back, in place: tied to the embedding again if it was.

    A ConfigurationError tells if the old head was not kept, as after `keep_head=False` or loading from a
    checkpoint.
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
    del model.decision, model._kept, model.config.quantization_config
    if head.bias is not None and not has_bias:  # no checkpoint of this class has a place for it
        guards.refuse_saving_bias(model)


def describe(model: Any, action: str) -> Description:
    """The description of a coded model; a ConfigurationError for another names the `action` that cannot be."""
    if not is_coded(model):
        raise ConfigurationError(
            f"cannot {action}: this {type(model).__name__} has no decision layer; attach one first, or "
            "unwrap the model from PEFT or torch.compile"
        )
    return Description.from_dict(model.config.quantization_config)


def _check(model: Any) -> nn.Linear:
    """The output embedding of a model that a decision layer can be attached to."""
    from transformers import PreTrainedModel  # at module level it would be a circle: see registration.py

    if is_coded(model) or hasattr(model, "_detach"):
        kind = "decision layer" if is_coded(model) else "screen"
        raise ConfigurationError(f"this model has a {kind} already; codehead.detach(model) it first")
    if not isinstance(model, PreTrainedModel):
        raise ConfigurationError(
            f"cannot attach to a {type(model).__name__}: it is not a model of transformers. Attach to the "
            "model itself before wrapping it (PEFT, torch.compile); for models of your own there is "
            "codehead.DecisionLayer"
        )
    method = getattr(model, "quantization_method", None) if getattr(model, "is_quantized", False) else None
    if method is not None and method != METHOD and not gguf.is_unpacked(model):
        raise ConfigurationError(
            f"cannot attach to a model quantised with {getattr(method, 'value', method)}: transformers has "
            "one slot for a quantizer in config.json, and coded checkpoints are loaded through it. Load "
            "the model unquantised, a GGUF file with quantization_config=GgufConfig(dequantize=True)"
        )
    entry = getattr(model.config, "quantization_config", None)
    if isinstance(entry, dict) and entry.get("quant_method") == METHOD:
        raise ConfigurationError(
            "the configuration of this model is that of a coded one, but it has no decision layer: it was built from "
            "the config.json of a coded checkpoint. Load the checkpoint with from_pretrained, or build the model from "
            "a stock configuration"
        )
    guards.refuse_patched_forward(model, "attach")
    old: nn.Linear = model.get_submodule(stock.head_path(model))
    refuse_non_causal(model)
    return old


def _codebook(
    code: str | Path | Codebook,
    old: nn.Linear,
    bits: int | None,
    seed: int,
    params: dict[str, Any],
    statistics: Statistics | None,
    single: SingleTokens,
) -> Codebook:
    """The codebook meant by `code`, with one codeword per row of the `old` output embedding.

    A design that looks at the classes sees these rows, as the hidden states see them if there are statistics and
    weighted by what single tokens count if it takes weights, unless `params` have something else for it to look at.
    """
    num_classes = len(old.weight)
    if isinstance(code, str) and not code.endswith(".safetensors"):
        options = codes.DESIGNS.get(code).params()
        if "prototypes" in options and not {"prototypes", "samples"} & params.keys():
            params = {**_looked_at(code, options, old, statistics, single), **params}
        return codes.build(code, num_classes, bits=bits, seed=seed, **params)
    codebook = code if isinstance(code, Codebook) else codes.load(code)
    if params or (bits is not None and bits != codebook.length):
        raise ConfigurationError(
            f"bits={bits} and code_params={params} describe a code to be built, but code is a finished "
            f"codebook of length {codebook.length}; leave them out"
        )
    if codebook.num_classes != num_classes:
        raise CodebookError(
            f"the codebook has {codebook.num_classes} classes, but the output embedding of the model has "
            f"{num_classes} rows; build it with num_classes={num_classes} (the tokenizer may know fewer "
            "tokens)"
        )
    return codebook


def _looked_at(
    code: str, options: list[str], old: nn.Linear, statistics: Statistics | None, single: SingleTokens
) -> dict[str, np.ndarray]:
    """What a design that looks at classes sees of the `old` output embedding."""
    seen = {"prototypes": _seen(f"code={code!r}", "give code_params={'prototypes': ...}", old.weight, statistics)}
    weights = single.weights(old, statistics) if "weights" in options else None
    return seen if weights is None else {**seen, "weights": weights.cpu().numpy()}


def _seen(argument: str, remedy: str, weight: torch.Tensor, statistics: Statistics | None) -> np.ndarray:
    """The rows of an output embedding `(V, H)`, as the hidden states see them if there are statistics."""
    if weight.is_meta:
        raise ConfigurationError(
            f"{argument} looks at the rows of the model's Softmax head, which is on the meta device; {remedy}, or load "
            "the weights first"
        )
    rows = weight.detach()
    return (rows.float().cpu() if statistics is None else statistics.seen(rows)).numpy()


def _assigned(
    codebook: Codebook, method: str, weight: torch.Tensor, statistics: Statistics | None, seed: int
) -> Codebook:
    """The codewords dealt out anew, in view of an output embedding `(V, H)` and of the counts."""
    if method == "frequency" and statistics is None:
        raise ConfigurationError(
            "assignment='frequency' asks how often tokens occur: give statistics, with counts over text like yours"
        )
    seen = None
    if method.startswith("similar"):
        seen = _seen(f"assignment={method!r}", "choose another method", weight, statistics)
    counts = None if statistics is None else statistics.counts.numpy()
    return codes.assign(codebook, method, prototypes=seen, counts=counts, seed=seed)


def _check_statistics(statistics: Statistics | None, old: nn.Linear) -> None:
    if statistics is None:
        return
    num_classes, hidden_size = old.weight.shape
    if len(statistics.counts) != num_classes:
        raise ConfigurationError(
            f"statistics hold counts of {len(statistics.counts)} tokens, but the output embedding of the model has "
            f"{num_classes} rows; count with the model's own tokenizer"
        )
    if statistics.mean is not None and len(statistics.mean) != hidden_size:
        raise ConfigurationError(
            f"statistics are of hidden states of size {len(statistics.mean)}, but those of the model have "
            f"{hidden_size}; measure them on this model"
        )


def build_head(name: str, hidden_size: int, num_bits: int, further: int, options: dict[str, Any]) -> nn.Module:
    """The head called `name`, with so many rows for further bits and a shortlist if there are any."""
    head = heads.build(name, hidden_size, num_bits, **options)
    return ShortlistHead(head, hidden_size, further) if further else head


def _seeded_head(
    name: str, hidden_size: int, num_bits: int, further: int, options: dict[str, Any], seed: int
) -> tuple[nn.Module, Chain | None]:
    """A head, and the chain it is for, with their own initial weights.

    Made on the CPU so that a seed means the same on every device.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        head = build_head(name, hidden_size, num_bits, further, options)
        return head, Chain.of(head)
