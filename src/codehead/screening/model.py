"""A causal LM whose Softmax head is screened: how it differs from its stock class, and how its checkpoints load."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from codehead.codes.table import version
from codehead.decoding.numerics import no_autocast
from codehead.errors import CheckpointError, ConfigurationError
from codehead.layer import WRITTEN
from codehead.models import card, guards, stock
from codehead.models.coded import OwnCausalLM, own_class
from codehead.models.integrity import check_integers, names_in_memory
from codehead.models.loader import CodeheadConfig, CodeheadLoader, OwnLoader, Shapes, expect_additions, expect_files
from codehead.models.probe import LogitScaling
from codehead.models.registration import METHOD
from codehead.models.selection import Selection, selecting
from codehead.screening.head import ScreenedLinear
from codehead.screening.screen import Screen, Settings

FIELD = "screening"
"""Of `quantization_config`: a checkpoint that has it is screened."""
_lock = threading.Lock()
"""Held while a thread prepares a code or counts steps; not kept with a model, which can be pickled."""


class ScreenedCausalLM(OwnCausalLM):
    """Mixed into the class of a model by `screen`.

    `generate` computes only the candidates' logits where no other token can be chosen, and otherwise all logits of the
    dense head, with one warning per reason. Outside of `generate` the model is the stock model. `steps` and `whole`
    count the tokens generated, and those of them that took the dense head.
    """

    _maker = "screen"
    steps: int = 0
    whole: int = 0
    _told: frozenset[str] = frozenset()

    @property
    def screen(self) -> Screen:
        """The code beside the head."""
        return screened_head(self).screen

    def _may_select(self, chosen: Selection | str) -> Selection | None:
        reason = chosen if isinstance(chosen, str) else self.obstacle()
        if reason is None and isinstance(chosen, Selection):
            return chosen
        if reason not in self._told:
            self._told |= {str(reason)}
            warnings.warn(f"the dense head computes all logits: {reason}", stacklevel=2)
        return None

    def _beam_search(self, *args: Any, **options: Any) -> Any:
        self._may_select("beams need the probabilities of all tokens")
        return super()._beam_search(*args, **options)  # type: ignore[misc]

    def _assisted_decoding(self, *args: Any, **options: Any) -> Any:
        self._may_select("an assistant's draft is checked with all logits")
        return super()._assisted_decoding(*args, **options)  # type: ignore[misc]

    def obstacle(self) -> str | None:
        """Why the code cannot be used now; prepares it otherwise."""
        head: Any = self.get_output_embeddings()  # type: ignore[attr-defined]
        if not isinstance(head, ScreenedLinear):
            return "another module has replaced the screened head (LoRA on the head?); screen the merged model"
        if head.screen.settings.mode == "exact" and torch.is_autocast_enabled("cpu"):
            return "torch.autocast rounds rows and hidden states, of which mode 'exact' is certain only as they are"
        with _lock:
            return self._prepare(head)

    def _prepare(self, head: ScreenedLinear) -> str | None:
        """Build the index, if rows or bias are not those that it was built for; why it cannot be built."""
        kept = [(id(part), version(part)) for part in (head.weight, head.bias) if part is not None]
        if self.__dict__.get("_prepared") == kept and head.screen.is_ready(head.weight):
            return None
        reason = head.screen.obstacle(head.weight)
        if reason is None:
            with torch.no_grad(), no_autocast(head.weight.device.type):
                head.scaling = LogitScaling.of(self)
                head.screen.prepare(head.weight, head.bias)
            self._prepared = kept
        return reason

    @contextmanager
    def _selecting(self, processors: Any, config: Any) -> Iterator[Any]:
        with super()._selecting(processors, config) as given, torch.no_grad():
            if not isinstance(given, Selection):
                yield given
                return
            try:
                with selecting(screened_head(self), given):
                    yield given
            finally:
                with _lock:
                    self.steps, self.whole = self.steps + given.steps, self.whole + given.whole

    def _num_tokens(self) -> int:
        return self.screen.settings.num_classes

    def _entry(self) -> dict[str, Any]:
        return entry_of(self.screen.settings)

    def _entry_place(self) -> str:
        return f"{stock.head_path(cast('Any', self))}.screen"

    def _state(self, given: dict[str, Tensor] | None) -> dict[str, Tensor]:
        return given or cast("Any", self).state_dict()

    def _told_in_card(self) -> card.Told:
        kept = self.screen.settings
        promise = (
            f"{kept.promised:.3%} is promised, with {kept.confidence:.0%} confidence"
            if kept.mode == "fast"
            else "a step that has no certificate takes the dense head"
        )
        return card.Told(
            f"Its weights are unchanged. A code of {kept.bits} bits per token, made by codehead, chooses "
            f"{kept.candidates:,} of {kept.num_classes:,} tokens in generation, and the head scores these "
            f"(mode `{kept.mode}`).",
            f"The dense head's choice was among the candidates at {kept.measured:.3%} of {kept.test_positions:,} "
            f"held-out positions; {promise}.",
            " with its extra `fast`",
        )

    def _detach(self) -> Any:
        """The stock model, bit for bit: only the code is removed."""
        guards.refuse_patched_forward(self, "detach")  # type: ignore[arg-type]
        head: Any = screened_head(self)
        del head.screen
        head.__dict__.pop("scaling", None)
        head.__class__ = nn.Linear
        self.__class__ = self._stock_class
        for name in ("steps", "whole", "_told", "_prepared"):
            self.__dict__.pop(name, None)
        del self.config.quantization_config
        return self


def install(model: Any, screen: Screen) -> None:
    """Put a screen beside the output embedding of a stock model."""
    head = model.get_submodule(stock.head_path(model))
    head.__class__ = ScreenedLinear
    head.screen = screen
    stock_class: Any = type(model)
    model.__class__ = own_class(ScreenedCausalLM, stock_class)
    model.config.quantization_config = entry_of(screen.settings)


def entry_of(settings: Settings) -> dict[str, Any]:
    """The entry `quantization_config` of the configuration of a screened model."""
    return {"quant_method": METHOD, FIELD: asdict(settings)}


def is_screened(model: object) -> bool:
    """Whether the head of the model is screened."""
    return isinstance(model, ScreenedCausalLM)


def screened_head(model: Any) -> ScreenedLinear:
    """The head of a screened model; ConfigurationError if another module is in its place."""
    head = model.get_output_embeddings()
    if not isinstance(head, ScreenedLinear):
        raise ConfigurationError(
            f"the output embedding of this {type(model).__name__} is a {type(head).__name__}, not a screened head; "
            "codehead.screen(model, …) makes one if there are no adapters on the head"
        )
    return head


# The loader of screened checkpoints: those whose `quantization_config` has the field `screening`.


class ScreeningConfig(QuantizationConfigMixin):
    """The entry `quantization_config` of a screened checkpoint, in the class that transformers expects."""

    def __init__(self, **entry: Any) -> None:
        unknown = [key for key in entry if key not in ("quant_method", FIELD)]
        if unknown:
            raise CheckpointError(f"quantization_config.{unknown[0]} in config.json is not a field of a screened model")
        self.entry, self.settings = entry, Settings.from_dict(entry[FIELD])
        self.quant_method = METHOD

    def to_dict(self) -> dict[str, Any]:
        return entry_of(self.settings)


class ScreeningLoader(OwnLoader):
    """Puts an empty screen beside the head before the weights are loaded, and checks that the two fit afterwards."""

    def build(self, model: Any, files: Sequence[str]) -> None:
        settings = self.quantization_config.settings
        stored = expect_files(model, files, self.quantization_config.entry)
        head = model.get_submodule(stock.head_path(model))
        expect_head(settings, head.weight.shape if type(head) is nn.Linear else (), head)
        with torch.device("meta"):
            screen = Screen(settings)
        install(model, screen)
        if files:
            _check_screen(model, stored)

    def finish(self, model: Any) -> None:
        if is_screened(model):
            model.screen.seal.on_guard = True
            check_integers(model)
            model.config.quantization_config = self.quantization_config.to_dict()
        else:
            del model.config.quantization_config


def expect_head(settings: Settings, shape: tuple[int, ...], head: object) -> None:
    """Raise CheckpointError unless the head has the shape of the one that was screened."""
    if shape != (settings.num_classes, settings.hidden_size):
        raise CheckpointError(
            f"quantization_config.screening in config.json is for {settings.num_classes} rows of "
            f"{settings.hidden_size} numbers, but the head is {head}; restore config.json from the original checkpoint"
        )


def _check_screen(model: Any, stored: Shapes) -> None:
    """Check that the files hold exactly the tensors of the screen, in the shapes of the configuration."""
    prefix = f"{stock.head_path(model)}.screen."
    description = f"{prefix}{WRITTEN}"
    expect_additions(model, description)
    own = {name: list(values.shape) for name, values in model.state_dict().items() if name.startswith(prefix)}
    found = {place: stored[name] for name, place in names_in_memory(model, stored).items() if place.startswith(prefix)}
    own[description] = found.get(description, [])  # of any length, but present
    for name in sorted({*own, *found}):
        if own.get(name) != found.get(name):
            raise CheckpointError(
                f"tensor {name} of the checkpoint has shape {found.get(name)}, but quantization_config.screening in "
                f"config.json makes it {own.get(name)} (None: it is missing); restore config.json and the weights from "
                "the original checkpoint"
            )


def config_of(entry: dict[str, Any]) -> QuantizationConfigMixin:
    """The entry `quantization_config` of a screened or coded checkpoint, by what it holds."""
    return (ScreeningConfig if FIELD in entry else CodeheadConfig).from_dict(entry)


def loader_of(config: Any, **options: Any) -> HfQuantizer:
    """The loader of a checkpoint with this entry."""
    if isinstance(config, ScreeningConfig):
        return ScreeningLoader(config, **options)
    loader, backbone = CodeheadLoader(config, **options), config.description.backbone
    return loader if backbone is None else stock.with_head(backbone, loader)
