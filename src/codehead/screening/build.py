"""Screen a model or a checkpoint, without training, and time what that would gain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from codehead.boundaries import library_bars_hidden
from codehead.codes.additive import MAX_DIGITS
from codehead.config.blocks import require, require_that
from codehead.config.size import positions_of
from codehead.decoding import fast_scan
from codehead.decoding.numerics import no_autocast
from codehead.errors import ConfigurationError
from codehead.models import guards, stock
from codehead.models.description import weights_checksum
from codehead.models.hidden import hidden_states
from codehead.models.own_text import write
from codehead.models.probe import LogitScaling, refuse_non_causal
from codehead.models.surgery import is_coded
from codehead.screening.calibration import CONFIDENCE, SCANNED, Progress, exact, fast, is_large, order_statistic, parted
from codehead.screening.head import ScreenedLinear
from codehead.screening.model import install, is_screened
from codehead.screening.screen import CERTIFICATES, MODES, Screen, Settings

Model = TypeVar("Model", bound=nn.Module)

OWN_TEXT = "text that the model wrote"
POSITIONS = 12_000
"""Hidden states: a quarter for the code, half for the calibration, a quarter for the measurement."""
WRITTEN = 128
"""Tokens per text that the model writes itself."""
WRITERS = 16
"""Texts written at once."""


def screen(
    model: Model,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    *,
    mode: str = "fast",
    bits: int | None = None,
    recall: float = 0.999,
    certificate: str = "calibrated",
    positions: int = POSITIONS,
    hidden: Tensor | None = None,
    data: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Model:
    """Give a stock causal LM a code that finds the tokens worth scoring, in place; its weights stay as they are.

    Args:
        model: any causal LM of transformers with a linear output embedding, tied or not.
        batches: text like yours, as `input_ids` and `labels` `(batch, length)`; None: the model writes its own.
        mode: "fast" takes the best of some candidates, with a promised recall. "exact" gives the greedy text of the
            dense head: it falls back to that head wherever a token outside the candidates might win.
        bits: n of the code; None: the length at which a step reads least.
        recall: in mode "fast", the share of positions where the dense head's choice must be a candidate.
        certificate: of mode "exact": "calibrated" (a stated failure probability) or "proof" (longer codes).
        positions: the number of hidden states to use.
        hidden: hidden states `(positions, H)` measured earlier, instead of `batches`.
        data: where the text comes from, for the record.
        progress: called as the work proceeds.

    Raises:
        ConfigurationError: the model cannot be screened, an argument is impossible, or the recall cannot be promised
            from so few positions or with so few bits; the model is unchanged.

    Returns:
        The same model, now screened.

    """
    if hidden is not None:
        positions = _count(hidden)
    head = check(model, mode, certificate, recall, positions, bits)
    if hidden is None:
        source = own_text(model, positions, progress) if batches is None else batches
        data = data or (OWN_TEXT if batches is None else "text that was given")
        hidden = hidden_states(model, source, positions, lambda done, total: progress("hidden states", done, total))
    size = head.in_features
    require_that(hidden.shape[1] == size, "hidden", tuple(hidden.shape), f"give (positions, {size})")
    with torch.no_grad(), no_autocast(head.weight.device.type):
        parts = parted(head, hidden.float(), progress)
        if mode == "exact":
            made = exact(head, parts, certificate, bits, progress)
        else:
            made = fast(head, parts, bits, recall, progress)
    made.settings = replace(made.settings, data=data or "hidden states that were given")
    made.seal.close(made.integers())
    install(model, made)
    return model


def _count(hidden: Any) -> int:
    """How many hidden states were given."""
    if not isinstance(hidden, Tensor) or hidden.ndim != 2:
        kind = tuple(hidden.shape) if hasattr(hidden, "shape") else type(hidden).__name__
        raise ConfigurationError(f"hidden is {kind}; give a tensor (positions, H)")
    return len(hidden)


def check(model: Any, mode: str, certificate: str, recall: float, positions: int, bits: int | None) -> nn.Linear:
    """The head of a model that can be screened with these options; ConfigurationError otherwise, before any work."""
    from transformers import PreTrainedModel  # at module level it would be circular: see models/registration.py

    for name, value, known in (("mode", mode, MODES), ("certificate", certificate, CERTIFICATES)):
        if value not in known:
            raise ConfigurationError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")
    require(positions, "positions", minimum=1)
    if not isinstance(recall, float) or not 0 < recall < 1:
        raise ConfigurationError(f"recall={recall!r} is not between 0 and 1; give a share of positions such as 0.999")
    if is_coded(model) or is_screened(model):
        raise ConfigurationError("this model has a decision layer or a screen already; codehead.detach(model) it first")
    if not isinstance(model, PreTrainedModel):
        raise ConfigurationError(f"cannot screen a {type(model).__name__}: it is not a transformers model")
    if getattr(model, "is_quantized", False):
        raise ConfigurationError(
            "cannot screen a quantised model: config.json has room for only one quantizer; load it unquantised"
        )
    guards.refuse_patched_forward(model, "screen")
    head = model.get_submodule(stock.head_path(model))
    if type(head) is not nn.Linear:
        raise ConfigurationError(
            f"cannot screen: the output embedding is a {type(head).__name__}, and codes are made for the rows of a "
            "torch.nn.Linear; merge or remove adapters first"
        )
    _require_scan(head.weight.device.type)
    if bits is not None:
        require(bits, "bits", minimum=1, maximum=MAX_DIGITS * head.in_features)
    refuse_non_causal(model)
    for width in (head.out_features, 1):  # report obstacles now, not when the first text is written
        LogitScaling.of(model, width)
    if mode == "fast":
        order_statistic(positions * 3 // 4 - positions // 4, recall, CONFIDENCE)
    return head


def _require_scan(device: str) -> None:
    """Raise ConfigurationError unless codes can be scanned on a device of this type."""
    obstacle = fast_scan.obstacle(device)
    if obstacle is not None:
        raise ConfigurationError(f"cannot screen: {obstacle}; it takes FAISS, and a model on the CPU (model.to('cpu'))")


def own_text(model: Any, positions: int, progress: Progress) -> list[dict[str, Tensor]]:
    """At least `positions` tokens sampled from the model; a list, since its head must not be probed until all exist."""
    config = model.config.get_text_config()
    first = (getattr(config, name, None) for name in ("bos_token_id", "eos_token_id"))
    start = next((token for token in first if isinstance(token, int)), 0)
    batches: list[dict[str, Tensor]] = []
    written = min(WRITTEN, room(model) - 1)
    while len(batches) * written * WRITERS < positions:
        ids = write(model, torch.full((WRITERS, 1), start), written + 1, seed=len(batches))
        batches.append({"input_ids": ids, "labels": ids})
        progress("text of the model's own", min(len(batches) * written * WRITERS, positions), positions)
    return batches


def room(model: Any) -> int:
    """The longest text, in tokens, that the model takes."""
    return positions_of(model.config) or 2**20


# From a checkpoint to a screened one; hidden states survive an interruption.


STAGE = ".hidden"
HIDDEN = f"{STAGE}.safetensors"
"""In the output folder until the screened checkpoint is written: the hidden states, which take longest to compute."""
BLOCK, BATCH = 256, 8


def screen_checkpoint(
    name: str, out: Path, *, data: str | None, text_field: str | None, dtype: str, show: Progress, **options: Any
) -> Settings:
    """Screen the model called `name` as `screen` does with these options, and save it with its tokenizer.

    `options` are mode, certificate, recall, positions and bits.

    Raises:
        ConfigurationError, DataError, CheckpointError: from loading, reading and screening; `out` then holds at most
            the hidden states.
    """
    from codehead.training.data import check_vocabulary  # training needs an extra; `screen` does not
    from codehead.training.folder import RECORD, locked
    from codehead.training.model import load_model
    from codehead.training.provenance import file_records
    from codehead.training.tokenizer import load_tokenizer, tokenizer_checksum

    with locked(out):
        model, tokenizer = load_model(name, dtype=dtype).eval(), load_tokenizer(name)
        check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings)
        check(model, **options)
        positions: int = options["positions"]

        def measured() -> Tensor:
            block = min(BLOCK, room(model))
            text = text_batches(data, tokenizer, text_field, block) if data else own_text(model, positions, show)
            return hidden_states(model, text, positions, lambda done, total: show("hidden states", done, total))

        described = {
            "model": name, "weights": weights_checksum(model), "data": data or OWN_TEXT,
            "files": file_records([data] if data else []), "text_field": text_field, "positions": positions,
            "dtype": str(model.dtype), "tokenizer": tokenizer_checksum(tokenizer) if data else None,
        }  # fmt: skip
        hidden = _kept(out, described, measured)
        screen(model, hidden=hidden, data=data or OWN_TEXT, progress=show, **options)
        with library_bars_hidden():
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
        (out / HIDDEN).unlink()
        (out / RECORD).unlink(missing_ok=True)  # of the run whose model was overwritten
    return model.screen.settings


def _kept(out: Path, described: dict[str, Any], measured: Callable[[], Tensor]) -> Tensor:
    """The hidden states that an interrupted screening left in a folder, or else measured now and saved there.

    ConfigurationError if those left there are not of what is `described`.
    """
    from codehead.training.folder import first_difference
    from codehead.training.loop import Stages

    hidden, found = Stages(out).kept(STAGE, lambda: ({"hidden": measured()}, described))
    difference = first_difference(found, described)
    if difference:
        raise ConfigurationError(
            f"{out / HIDDEN} holds hidden states of something else: {difference}; delete it, or choose another folder"
        )
    return hidden["hidden"]


def text_batches(data: str, tokenizer: Any, text_field: str | None, block: int) -> Iterator[dict[str, Tensor]]:
    """The text called `data`, tokenised, in batches of `(BATCH, block)`."""
    from codehead.training.data import Collator, load_examples

    examples = load_examples(data, tokenizer, block_size=block, split="train", text_field=text_field)
    return Collator(tokenizer.pad_token_id).batches(examples, BATCH)


# What screening a head would gain on this machine: timed in a few seconds, on a head of the same shape.


PREFIX = 512
"""Bits scanned of a large vocabulary's code."""
TURNS = 9
"""Timings of each head, in turn; the minimum is reported, as the one that other programs disturbed least."""


@dataclass(frozen=True)
class Gain:
    """Milliseconds of the step from a hidden state to the best token, in float32, for one sequence."""

    hidden_size: int
    num_classes: int
    threads: int
    dense: float
    screened: float

    @property
    def ratio(self) -> float:
        """How many times faster the screened head is."""
        return self.dense / self.screened

    @property
    def pays(self) -> bool:
        """Whether screening is faster."""
        return self.ratio > 1

    @property
    def verdict(self) -> str:
        """In two lines: what was timed, and what to do."""
        timed = (
            f"The head's step (H = {self.hidden_size:,}, V = {self.num_classes:,}) takes {self.screened:.3g} ms "
            f"screened and {self.dense:.3g} ms as it is: one sequence, float32, {self.threads} threads, this machine."
        )
        if not self.pays:
            return f"{timed}\nScreening gains nothing here."
        return (
            f"{timed}\nScreen it: mode fast finds the same token at a promised share of positions, 99.9% by "
            "default; mode exact gives the dense head's greedy text and gains less. On a GPU neither should gain "
            "anything."
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"dense_ms": self.dense, "screened_ms": self.screened, "ratio": self.ratio, "pays": self.pays}


@torch.no_grad()
def gain(hidden_size: int, num_classes: int, *, bits: int = 1024, candidates: int = 256) -> Gain:
    """Time a head `(hidden_size → num_classes)`, dense and screened, with meaningless rows and codewords.

    Codes are about as long as those of `screen`, and scanned in two stages where it does so.

    Raises:
        ConfigurationError: FAISS is not installed.
    """
    _require_scan("cpu")
    weight = torch.full((num_classes, hidden_size), 0.01)
    head = ScreenedLinear.of(weight, _meaningless(weight, bits, min(candidates, num_classes)))
    steps = (lambda some: nn.functional.linear(some, weight).argmax(-1), head.best)
    turns = [[timeit(partial(step, torch.randn(1, hidden_size)), number=1) for step in steps] for _ in range(TURNS + 2)]
    dense, screened = (1e3 * min(seconds) for seconds in zip(*turns[2:], strict=True))
    return Gain(hidden_size, num_classes, torch.get_num_threads(), dense, screened)


def _meaningless(weight: Tensor, bits: int, candidates: int) -> Screen:
    """A ready screen of random codewords."""
    classes, size = weight.shape
    rank = min(bits, size)
    prefix, scanned = (PREFIX, SCANNED) if is_large(classes, bits) else (0, 0)
    made = Screen(Settings(classes, size, bits, candidates=candidates, rank=rank, prefix=prefix, scanned=scanned))
    generator = torch.Generator().manual_seed(0)
    made.plane.random_(0, 256, generator=generator)
    made.coordinates.copy_(torch.arange(bits) % rank)
    made.set("white", torch.randn(rank, size, generator=generator))
    made.set("sizes", torch.rand(bits, generator=generator))
    made.prepare(weight, None)
    return made
