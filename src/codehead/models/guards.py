"""Guards of a model: failed operations leave it unchanged, and whatever would train or sample it wrongly is refused."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from codehead.decoding import refuse_non_finite
from codehead.errors import ConfigurationError
from codehead.models.description import weights_checksum

FUSED_LOSSES = {
    "liger_kernel": "Liger's fused loss multiplies the hidden states by lm_head.weight as if it were a "
    "Softmax head. Keep Liger's other kernels and switch this one off: "
    "TrainingArguments(liger_kernel_config={'fused_linear_cross_entropy': False}), or "
    "use_liger_kernel=False",
    "trl": "TRL's fused LM head multiplies the hidden states by lm_head.weight as if it were a Softmax "
    "head, and in this version codehead cannot answer in its place; the table in docs/models.md says in which it can. "
    "Or train with transformers.Trainer or `codehead finetune`",
}


def refuse_fused_loss(forward: Any) -> None:
    """Raise a ConfigurationError if `forward`, about to be set on a coded model, bypasses the decision layer.

    Wrappers that call the model's own forward (accelerate's mixed precision, device hooks) are allowed. The
    function's globals show where it was defined; `__module__` is copied by `functools.wraps`.
    """
    function = getattr(forward, "__func__", forward)
    library = str(getattr(function, "__globals__", {}).get("__name__", "")).partition(".")[0]
    if library in FUSED_LOSSES:
        raise ConfigurationError(f"{library} tried to replace the forward of a coded model. {FUSED_LOSSES[library]}")


def guarded(model: nn.Module, path: str, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The tensors to save, `state` or the model's own, so that no stock model loads without its coded head at `path`.

    A head of several parts has no tensor called `weight`: a stock model would start with a new head, with only a
    warning. A `weight` of an impossible shape makes it stop. Nothing is added if weights are offloaded.
    """
    own: dict[str, Tensor] = model.state_dict() if state is None else state
    name = f"{path}.weight"
    if name in own or any(values.is_meta for values in own.values()):
        return own
    return {**own, name: torch.zeros(0)}


def refuse_saving_bias(model: Any) -> None:
    """Let `save_pretrained` raise a ConfigurationError: loading would drop the bias of the head."""
    model.save_pretrained = functools.partial(_refuse_to_save, type(model).__name__)


def refuses_saving(model: Any) -> bool:
    """Whether `refuse_saving_bias` was called on a model."""
    return getattr(vars(model).get("save_pretrained"), "func", None) is _refuse_to_save


def allow_saving(model: Any) -> None:
    """Undo `refuse_saving_bias`."""
    if refuses_saving(model):
        del model.save_pretrained


def _refuse_to_save(name: str, *args: Any, **kwargs: Any) -> None:
    raise ConfigurationError(
        f"a head of {name} has no bias, so a checkpoint would lose the bias of every token and be another model. Fold "
        "it into the rows, approximately: codehead.fold(model, statistics), or codehead fold --data TEXT, which "
        "measures the loss; or attach without bias in head_params, and attach or convert with decision.token_bias=false"
    )


def refuse_patched_forward(model: nn.Module, action: str) -> None:
    """Raise a ConfigurationError if the instance has its own forward, which a new class cannot change."""
    if "forward" in vars(model):
        raise ConfigurationError(
            f"cannot {action}: the forward of this {type(model).__name__} was replaced on the instance (by "
            "device hooks over several devices, mixed precision or a patch), so a new class would not "
            f"change it. {action.capitalize()} before the model is dispatched, prepared or patched; a "
            "saved coded model can be loaded with any device_map"
        )


def refuse_resize(num_tokens: int, num_classes: int, maker: str) -> None:
    """Raise a ConfigurationError if an embedding is to have more or fewer rows than the code has classes.

    `maker` names the function that made the model.
    """
    if num_tokens != num_classes:
        raise ConfigurationError(
            f"cannot resize the token embeddings of this model from {num_classes} to {num_tokens}: every token needs a "
            f"codeword. First codehead.detach(model), then resize, then codehead.{maker}(model, ...) again; or "
            f"{maker} it after adding the tokens"
        )


def refuse_posterior_loss() -> None:
    """Raise the ConfigurationError for a loss that is about to be computed from `.logits` instead of from the bits."""
    raise ConfigurationError(
        "a training forward without labels, or one whose .logits are read: a loss computed from them (in your own "
        "compute_loss or compute_loss_func, or with label_smoothing_factor > 0) is that of the codeword posterior and "
        "builds (tokens, vocabulary) tensors; it is not this model's bitwise loss. Pass labels to the model, take its "
        ".loss and set label_smoothing_factor=0, or attach with loss='codeword'. To look at logits while training, use "
        "torch.no_grad(), model.eval() or output_token_logits=True"
    )


def warn_of_frozen_head(model: Any) -> None:
    """Warn, once, if a coded model is trained while its head is frozen at its random weights.

    This happens with a LoRA configuration that names the head neither in `modules_to_save` nor in `target_modules`.
    """
    head, fresh = model.get_output_embeddings(), model.config.quantization_config["fresh"]
    if model._kept.frozen_seen or any(weight.requires_grad for weight in head.parameters()):
        return
    model._kept.frozen_seen = True
    if fresh and weights_checksum(head) == fresh:
        path = next(name for name, module in model.named_modules() if module is head)
        warnings.warn(
            f"the new head of this {type(model).__name__} is untrained and frozen, so it stays random: no weight of "
            f"{path} requires a gradient. With PEFT, give modules_to_save=[{path.rpartition('.')[2]!r}]; otherwise "
            f"call model.{path}.requires_grad_(True)",
            stacklevel=2,
        )


def refuse_nan(bit_logits: Tensor) -> None:
    """Raise a ConfigurationError if bit logits at the last position, from which text continues, are not finite.

    Greedy generation would repeat token 0. Earlier positions may be padding.
    """
    if not bit_logits.is_meta and not torch.compiler.is_compiling():
        refuse_non_finite(bit_logits[..., -1:, :])


Function = TypeVar("Function", bound=Callable[..., Any])


def all_or_nothing(operation: Function) -> Function:
    """An operation on a model, its first argument, that leaves the model unchanged if it raises anything.

    Modules, their classes, parameters, attributes and configurations are restored. Values are not copied: the operation
    may replace tensors, but must not write into them.
    """

    @functools.wraps(operation)
    def undone(model: Any, *args: Any, **kwargs: Any) -> Any:
        kept = [_Kept(part) for part in _parts(model)] if isinstance(model, nn.Module) else []
        try:
            return operation(model, *args, **kwargs)
        except BaseException:
            for part in kept:
                part.put_back()
            raise

    return undone  # type: ignore[return-value]


def _parts(model: nn.Module) -> Iterator[Any]:
    """The modules and parameters of a model and of the head kept for `detach`, and its configurations."""
    head = getattr(vars(model).get("_kept"), "head", None)
    for root in (model,) if head is None else (model, head):
        yield from root.modules()
        yield from root.parameters()
    configs = [vars(module).get("config") for module in model.modules()]
    known: set[int] = set()
    while configs:
        config = configs.pop()
        if hasattr(config, "to_dict") and id(config) not in known:
            known.add(id(config))
            configs += vars(config).values()
            yield config


class _Kept:
    """The state of one object: its class, its attributes, and the contents of the containers among them."""

    def __init__(self, part: Any) -> None:
        self.part, self.kind = part, type(part)
        self.attributes = dict(vars(part))
        containers = (value for value in self.attributes.values() if isinstance(value, dict | set | list))
        self.containers = [(value, value.copy()) for value in containers]
        self.tensor = (part.data, part.requires_grad) if isinstance(part, nn.Parameter) else None

    def put_back(self) -> None:
        if type(self.part) is not self.kind:
            self.part.__class__ = self.kind
        vars(self.part).clear()
        vars(self.part).update(self.attributes)
        for container, held in self.containers:
            container.clear()
            container.extend(held) if isinstance(container, list) else container.update(held)
        if self.tensor is not None:
            self.part.data, trained = self.tensor
            self.part.requires_grad_(trained)
