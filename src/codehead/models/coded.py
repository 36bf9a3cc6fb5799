"""A causal LM whose output embedding yields bit logits: how it differs from its stock class."""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.compiler import is_compiling
from torch.nn import functional as F
from torch.nn.utils import parametrize

from codehead.config import ModelShape
from codehead.layer import WRITTEN, Decision
from codehead.losses import IGNORE
from codehead.models import card, guards, integrity, stock
from codehead.models.description import Description, written
from codehead.models.selection import Selecting, Selection, Step, announcing, awaited, spread


class OwnCausalLM(Selecting):
    """The common base of coded and screened models, mixed into a model's class; the result keeps that class's name."""

    # Set by `own_class`.
    _kind: Any
    _stock_class: Any

    # Defined by the two subclasses.
    _maker: str
    """The function that makes such a model."""
    _num_tokens: Callable[[], int]
    """V."""
    _entry: Callable[[], dict[str, Any]]
    """The `quantization_config` entry of the configuration for the model as it is now."""
    _entry_place: Callable[[], str]
    """The module under which that entry is saved as a tensor."""
    _state: Callable[[dict[str, Tensor] | None], dict[str, Tensor]]
    """The tensors to save: those given, or the model's own."""

    # Defined by the stock class.
    config: Any
    get_input_embeddings: Callable[[], nn.Module]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """`type(model)(config)` and `type(model).from_pretrained` start with the stock model."""
        if not args and not kwargs:  # an empty shell, for copies and DataParallel replicas
            return object.__new__(cls)
        return cls._stock_class(*args, **kwargs)

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        """The end of `from_pretrained`: tensors missing from a checkpoint are refused, not initialised."""
        super()._adjust_missing_and_unexpected_keys(loading_info)  # type: ignore[misc]
        integrity.refuse_missing(loading_info.missing_keys)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle via the stock class, which can be imported by name."""
        return _rebuild, (self._kind, self._stock_class), self.__dict__

    @classmethod
    def _members(cls, base: Any) -> dict[str, Any]:
        """Members of the mixed class that depend on the stock class `base`."""
        return {}

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """The input embedding, if the number of tokens stays the same; a ConfigurationError otherwise."""
        size = self._num_tokens() if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            size = math.ceil(size / pad_to_multiple_of) * pad_to_multiple_of
        guards.refuse_resize(size, self._num_tokens(), self._maker)
        return self.get_input_embeddings()

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], *args: Any, **options: Any) -> Any:
        """As in transformers, with the model's own card, not one made from a template at every upload."""
        card.renew(Path(working_dir), self)
        return super()._upload_modified_files(working_dir, *args, **options)  # type: ignore[misc]

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """As in transformers, but all or nothing, and with checksums of the weights in `codehead.json`.

        CheckpointError if codewords, token ids or int8 or int4 weights were changed in part, as by averaging.
        """
        save = super().save_pretrained  # type: ignore[misc]
        options |= dict(zip(list(inspect.signature(save).parameters)[1:], args, strict=False))
        integrity.check_integers(self)
        integrity.check_state(self, options.get("state_dict"))
        self.config.quantization_config = entry = self._entry()
        state = self._state(options.get("state_dict"))
        options["state_dict"] = {**state, f"{self._entry_place()}.{WRITTEN}": written(entry)}
        if stock.was_quantised(self):
            options.setdefault("save_original_format", False)
        is_main = options.get("is_main_process", True)
        with stock.saving_quantised(self, options["state_dict"]):
            if is_main and not options.get("push_to_hub") and not options.get("distributed_checkpoint"):
                with integrity.staged(save_directory, options.get("variant")) as folder:
                    save(folder, **options)
                    card.write(folder, self)
            else:  # this process writes nothing, or transformers does more with the folder than fill it
                save(save_directory, **options)


def _rebuild(kind: Any, base: Any) -> Any:
    own = own_class(kind, base)
    return own.__new__(own)


@functools.cache
def own_class(kind: Any, base: Any) -> Any:
    """A subclass of a stock class with `kind` mixed in, under the stock name: tools keyed on names keep working."""
    named = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    members = {"_kind": kind, "_stock_class": base, "prepare_inputs_for_generation": announcing(base)}
    return type(base.__name__, (kind, base), {**named, **members, **kind._members(base)})


class CodedCausalLM(OwnCausalLM):
    """Mixed into the class of a model by `attach`.

    A class rather than hooks, because libraries such as PEFT call `base.forward(...)` directly, which skips
    hooks. Bit logits are never returned as `.logits`: those have one entry per token, and their softmax is
    the codeword posterior.
    """

    _maker = "attach"

    # Defined by the stock class or `install`; only declared here.
    _labels_position: int  # among the arguments of forward after self
    _kept: stock.Kept
    decision: Decision
    training: bool
    get_buffer: Callable[[str], Tensor]

    accepts_loss_kwargs = True  # Trainer: divide by num_items_in_batch in the model, not by accumulation steps

    @classmethod
    def _members(cls, base: Any) -> dict[str, Any]:
        position = [*inspect.signature(base.forward).parameters, "labels"].index("labels") - 1
        return {"_labels_position": position, "forward": _coded_forward(base)}

    def head_outputs(self, *args: Any, **kwargs: Any) -> Tensor:
        """The head's outputs for the inputs of `forward`: `(batch, length, num_outputs)`; labels are ignored.

        These are n bit logits, followed by the K logits of dense rows, or the features of a chain.
        """
        for name in ("labels", "shift_labels", "num_items_in_batch", "output_token_logits"):
            kwargs.pop(name, None)
        args, _ = _parted(args, self._labels_position)
        outputs: Tensor = self._stock_outputs(*args, **kwargs).logits
        return outputs

    def _stock_outputs(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the stock forward, with the head's outputs in place of logits."""
        if self.training and is_grad_enabled() and not is_compiling():
            stock.ready_to_train(self)
        outputs = self._stock_class.forward(self, *args, **{**kwargs, "return_dict": True})
        stock.refuse_half(self, outputs.logits)
        return outputs

    def bit_logits(self, *args: Any, **kwargs: Any) -> Tensor:
        """Bit logits `(batch, length, n)` for the inputs of `forward`; labels are ignored.

        Raises ConfigurationError if they depend on the token, as in a chain: see `model.decision.nodes`.
        """
        return self.decision.bit_logits(self.head_outputs(*args, **kwargs))

    def _decide(self, outputs: Any, labels: Tensor | None, num_items: Tensor | int | None, wanted: bool | None) -> Any:
        """Outputs with the loss and the token logits in place of the head's outputs `(batch, length, ·)`.

        `labels` are aligned with the head's outputs. In training with labels, token logits are computed on first
        access, unless `wanted` decides it.
        """
        own, loss = outputs.logits, None
        selection = None if is_compiling() else awaited(self)
        if selection is not None and labels is None:
            own = own[:, -1:]
            guards.refuse_nan(own)
            selection.step = step = self._best(own, selection.count)
            return type(outputs)(**{**outputs, "logits": step.logits})
        if labels is not None:
            loss = self._loss(outputs, labels, num_items)
        elif not self.training:
            guards.refuse_nan(own)
        at_once = wanted if wanted is not None else labels is None or not self.training
        logits = self._token_logits(own, wanted) if at_once else None
        decided = type(outputs)(**{**outputs, "loss": loss, "logits": logits})
        if wanted is not None or at_once or is_compiling():
            return decided
        kind: Any = type(decided)
        later = _with_logits_on_demand(kind)(**decided)
        later.compute = lambda: self._token_logits(own)
        return later

    def _token_logits(self, own: Tensor, wanted: bool | None = None) -> Tensor:
        """Token logits `(batch, length, V)` of the head's outputs; refused if a loss on them would not be bitwise."""
        if self.training and is_grad_enabled() and wanted is None and self.decision.loss_name == "bitwise":
            guards.refuse_posterior_loss()
        return self.decision.logits(own)

    def generate(self, *args: Any, **options: Any) -> Any:
        """As in transformers; integer weights are dequantised once, not at every token."""
        with parametrize.cached():
            return super().generate(*args, **options)

    def _may_select(self, chosen: Selection | str) -> Selection | None:
        scanned = self.decision.choice().impl == "scan"
        return chosen if scanned and isinstance(chosen, Selection) else None

    def _best(self, own: Tensor, count: int) -> Step:
        """The best tokens for head outputs `(batch, 1, ·)`, by the likelihood of their codewords."""
        classes = self.decision.table.num_classes
        ids, scores = self.decision.best(own, min(count, classes))
        logits = spread(ids, scores, classes)
        return Step(ids[:, -1], logits, scores[:, -1, -1], lambda: self.decision.logits(own))

    def _loss(self, outputs: Any, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
        """The loss of the decision layer, plus the load balancing loss that mixtures of experts report."""
        if self.training and not is_compiling():
            guards.warn_of_frozen_head(self)
        loss = self.decision.loss(outputs.logits, labels, num_items)
        router = getattr(outputs, "aux_loss", None)
        if isinstance(router, Tensor):
            loss = loss + stock.router_coefficient(self) * router.to(loss.device)
        return loss

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """As in transformers, without the head: a coded model's head is tied to nothing."""
        ties = super().get_expanded_tied_weights_keys(all_submodels)  # type: ignore[misc]
        return stock.without_head(self, ties)  # type: ignore[arg-type]

    def _num_tokens(self) -> int:
        return self.decision.table.num_classes

    def _entry(self) -> dict[str, Any]:
        return Description.current(self).to_dict()

    def _entry_place(self) -> str:
        return "decision"

    def _state(self, given: dict[str, Tensor] | None) -> dict[str, Tensor]:
        model: Any = self
        return guards.guarded(model, stock.head_path(model), given)

    def _told_in_card(self) -> card.Told:
        described = Description.from_dict(self.config.quantization_config)
        shape = ModelShape.of_config(self.config)
        name = described.decision.name(shape.num_classes)
        fresh = "" if described.fresh == "" else " The head is untrained."
        return card.Told(
            f"It ends in a decision layer of codehead, {name}. {described.decision.told(shape)}{fresh}",
            "Not measured when this was saved; `codehead evaluate this/folder --data text.jsonl` does.",
        )

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        for name in loading_info.missing_keys:
            if re.search(integrity.SEALS, name):  # of an old version: open
                self.get_buffer(name).zero_()
        super()._adjust_missing_and_unexpected_keys(loading_info)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            from codehead.models.trl_trainers import Request  # imports transformers

            request = Request.of(value)
            if request is not None:  # TRL's forward: this class answers its request itself
                self._kept.request = request
                return
            guards.refuse_fused_loss(value)
        super().__setattr__(name, value)

    def _per_token(
        self, outputs: Any, labels: Tensor, shift_labels: Tensor | None, num_items: Tensor | int | None
    ) -> Any:
        """The per-token values a TRL trainer asked for, from the stock forward's outputs (`.logits`: the head's)."""
        from codehead.models.trl_trainers import PerTokenOutput, Request, per_token

        own = outputs.logits[:, :-1] if shift_labels is None else outputs.logits
        labels = (labels[:, 1:] if shift_labels is None else shift_labels).to(own.device)
        found = per_token(self.decision, own, labels, self._kept.request or Request())
        known, loss = labels != IGNORE, (-found["log_probs"]).sum()
        loss = loss / (known.sum().clamp(min=1) if num_items is None else num_items)
        return PerTokenOutput(loss=loss, **found, label_mask=known, aux_loss=getattr(outputs, "aux_loss", None))

    def add_model_tags(self, tags: list[str] | str) -> None:
        """As in transformers; ConfigurationError for a TRL trainer that would train another objective."""
        from codehead.models.trl_trainers import refuse_trainer

        refuse_trainer(tags, sys._getframe(1), lambda model: isinstance(model, CodedCausalLM))
        super().add_model_tags(tags)  # type: ignore[misc]


def _parted(args: tuple[Any, ...], position: int) -> tuple[tuple[Any, ...], Any]:
    """The positional arguments of a forward without labels, and the labels if they are at `position`."""
    return (args, None) if len(args) <= position else ((*args[:position], None, *args[position + 1 :]), args[position])


def _coded_forward(base: Any) -> Callable[..., Any]:
    """The forward of a coded class, with the signature of the stock one.

    Labels are taken out of the call, so that the stock forward computes no loss from bit logits.
    """

    @functools.wraps(base.forward)
    def forward(
        self: Any,
        *args: Any,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_token_logits: bool | None = None,
        return_dict: bool | None = None,
        fused_lm_head: bool = False,
        **kwargs: Any,
    ) -> Any:
        args, given = _parted(args, self._labels_position)
        labels = given if labels is None else labels
        outputs = self._stock_outputs(*args, **kwargs)
        if fused_lm_head:
            return self._per_token(outputs, labels, shift_labels, num_items_in_batch)
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels, (0, 1), value=IGNORE)[..., 1:]
        outputs = self._decide(outputs, shift_labels, num_items_in_batch, output_token_logits)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if as_dict else outputs.to_tuple()

    # accelerate undoes mixed precision by following __wrapped__ to its end, which must not be the stock forward
    del forward.__wrapped__
    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
    return forward


@functools.cache
def _with_logits_on_demand(base: Any) -> Any:
    """A subclass of the output class `base` whose `.logits` are what `compute` returns, called on first access.

    Code that lists or gathers the entries still sees no logits.
    """

    def get(self: Any, name: str) -> Any:
        value = base.__getattribute__(self, name)
        if name != "logits" or value is not None or self.compute is None:
            return value
        self.logits = self.compute()
        self.compute = None
        return self.logits

    def item(self: Any, key: Any) -> Any:
        return self.logits if key == "logits" else base.__getitem__(self, key)

    members = {"compute": None, "__getattribute__": get, "__getitem__": item, "__module__": base.__module__}
    return type(f"{base.__name__}WithLogitsOnDemand", (base,), members)
