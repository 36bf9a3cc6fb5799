"""The description of a decision layer in `config.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codehead.codes.codebook import Codebook
from codehead.codes.table import CodewordTable
from codehead.config import DecisionConfig
from codehead.config.blocks import read_block, require, require_block, require_bool, require_that
from codehead.config.first_version import checkpoint_as_of_today
from codehead.errors import CheckpointError, ConfigurationError
from codehead.layer import Decision
from codehead.models.registration import METHOD
from codehead.version import VERSION

MOST = 2**31 - 1
"""The most tokens or bits: ids are int32."""
QUANTIZERS = ("bitsandbytes", "torchao", "quanto")
"""The backbone quantizers that a coded head was tested with, by their names in transformers."""
PIECE = 2**24
"""Weights of a head that a checksum reads at a time."""


def expect_written(entry: dict[str, Any], kept: Tensor) -> None:
    """Check an entry of `config.json` against its copy among the weights, which `written` made.

    A CheckpointError names the field that has changed since.
    """
    try:
        original, entry = _flat(json.loads(bytes(kept.tolist()))), _flat(entry)
        names = sorted({*original, *entry} - {"quant_method"})
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"the copy of quantization_config among the weights is damaged ({error}); restore the weights from the "
            "original checkpoint"
        ) from None
    for name in names:
        now, then = (_json(values[name]) if name in values else "missing" for values in (entry, original))
        if now != then:
            raise CheckpointError(
                f"quantization_config.{name} in config.json is {now}, but the weights were saved with {then}: one of "
                "them was changed; restore config.json and the weights from the original checkpoint"
            )


def written(entry: dict[str, Any]) -> Tensor:
    """An entry of `config.json` as bytes (uint8), stored among the weights so that the two can be compared."""
    return torch.frombuffer(bytearray(_json(entry).encode()), dtype=torch.uint8)


def _flat(entry: dict[str, Any], place: str = "") -> dict[str, Any]:
    """The entry with dotted names, as `decision.head`."""
    found: dict[str, Any] = {}
    for name, value in entry.items():
        inner = isinstance(value, dict) and name in ("decision", "codebook", "stock", "screening")
        found.update(_flat(value, f"{name}.") if inner else {place + str(name): value})
    return found


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _seen(decision: Decision) -> dict[str, Any]:
    """The fields of a DecisionConfig that a decision layer itself determines."""
    extras = decision.corrections
    refinement = None if extras is None else extras.refinement
    return {
        "loss": decision.loss_name,
        "decoder": decision.decoder_name,
        "dense_rows": 0 if extras is None else extras.num_rows,
        "token_bias": extras is not None and extras.token_bias is not None,
        "extra_bits": 0 if refinement is None else refinement.length,
        "extra_bit_tokens": 0 if refinement is None else refinement.num_tokens,
        "packed": decision.packed,
    }


def weights_checksum(head: nn.Module) -> str:
    """sha256 of the weights of a head as float32, so that a wider dtype changes nothing; empty on the meta device."""
    digest = hashlib.sha256()
    for values in head.parameters():
        if values.is_meta:
            return ""
        for some in values.detach().flatten().split(PIECE):
            digest.update(some.float().cpu().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class CodebookFacts:
    """The facts a checkpoint records of its codebook; the codewords themselves are among the weights."""

    length: int
    num_classes: int
    ternary: bool
    checksum: str
    """sha256 of the codebook; a checkpoint whose codebook differs is refused."""
    seed: int | None

    def __post_init__(self) -> None:
        require(self.length, "codebook.length", minimum=1, maximum=MOST)
        require(self.num_classes, "codebook.num_classes", minimum=2, maximum=MOST)

    @classmethod
    def of(cls, codebook: Codebook) -> CodebookFacts:
        """The facts of a codebook."""
        return cls(codebook.length, codebook.num_classes, codebook.is_ternary, codebook.checksum, codebook.seed)


@dataclass(frozen=True)
class Description:
    """The entry `quantization_config` of a coded model's configuration, checked when it is built."""

    decision: DecisionConfig
    """The layer as it is: `code` and `code_params` are the codebook's own, tokens are counted, their ids in the
    weights."""
    codebook: CodebookFacts
    stock: dict[str, Any]
    """The fields changed in the stock configuration, with their old values."""
    version: str = VERSION
    """Version of codehead that wrote this."""
    fresh: str = ""
    """sha256 of the head's random initial weights; empty if it started from the old head, or with one_vs_all."""
    backbone: dict[str, Any] | None = None
    """The entry of the backbone's quantizer, if it has one (`codehead.models.stock`)."""

    def __post_init__(self) -> None:
        if self.backbone is not None:
            require_block(self.backbone, "backbone")
            method = self.backbone.get("quant_method")
            require_that(method in QUANTIZERS, "backbone.quant_method", method, f"known: {', '.join(QUANTIZERS)}")
        for name in ("dense_rows", "extra_bit_tokens"):
            tokens = getattr(self.decision, name)
            require(tokens, f"decision.{name}", minimum=0, maximum=self.codebook.num_classes)
        require_block(self.stock, "stock")
        for name in ("bias", "tie_word_embeddings"):
            require_bool(self.stock.get(name), f"stock.{name}")

    @classmethod
    def of(
        cls,
        config: DecisionConfig,
        codebook: Codebook,
        decision: Decision,
        stock: dict[str, Any],
        fresh: str,
        backbone: dict[str, Any] | None = None,
    ) -> Description:
        """The description of a decision layer that is about to be attached.

        Raises ConfigurationError for options that a checkpoint could not hold.
        """
        try:
            json.dumps(config.head_params)
        except TypeError as error:
            raise ConfigurationError(
                f"head_params={config.head_params!r} cannot be written to config.json ({error}); give plain values"
            ) from None
        attached = dataclasses.replace(config, weights="float", **_of_codebook(codebook), **_seen(decision))
        return cls(attached, CodebookFacts.of(codebook), stock, fresh=fresh, backbone=backbone)

    @classmethod
    def current(cls, model: Any) -> Description:
        """The description of a coded model as it is now: loss, decoder, codebook or packing may have changed."""
        old, table = cls.from_dict(model.config.quantization_config), model.decision.table
        config, codebook = dataclasses.replace(old.decision, **_seen(model.decision)), old.codebook
        if table.sign_plane is not None and not table.sign_plane.is_meta:  # meta: offloaded, so not replaced
            now = old.rebuilt(table)
            if now.checksum != codebook.checksum:
                kept = {name: value for name, value in config.code_params.items() if name == "allow_duplicates"}
                config = dataclasses.replace(config, code="custom", bits=now.length, code_params=kept)
                codebook = dataclasses.replace(CodebookFacts.of(now), seed=None)
        return dataclasses.replace(old, decision=config, codebook=codebook)

    def rounded(self, weights: str) -> Description:
        """The same with weights in "int8" or "int4"."""
        return dataclasses.replace(self, decision=dataclasses.replace(self.decision, weights=weights))

    def of_another(self, codebook: Codebook) -> Description:
        """The same with another codebook."""
        decision = dataclasses.replace(self.decision, **_of_codebook(codebook))
        return dataclasses.replace(self, decision=decision, codebook=CodebookFacts.of(codebook))

    def rebuilt(self, table: CodewordTable) -> Codebook:
        """The codebook of a table under the name that this description gives it; CodebookError if it is invalid."""
        return table.to_codebook(self.design, self.codebook.seed, dict(self.decision.code_params))

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Description:
        """Read the entry of a `config.json`; a CheckpointError names a field that is missing, unknown or impossible."""
        values = {key: value for key, value in entry.items() if key != "quant_method"}
        try:
            if "decision" not in values and "design" in values:
                values = checkpoint_as_of_today(values)
            values["codebook"] = read_block(CodebookFacts, values.get("codebook"), "codebook")
            values["decision"] = DecisionConfig.from_dict(values.get("decision"))  # type: ignore[arg-type]
            return read_block(cls, values, "")
        except ConfigurationError as error:
            raise CheckpointError(
                f"quantization_config in config.json: {error}; restore config.json from the original checkpoint, or "
                "update codehead if a newer one wrote it"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The entry as in `config.json`."""
        entry = {"quant_method": METHOD, **dataclasses.asdict(self), "decision": self.decision.to_dict()}
        return {key: value for key, value in entry.items() if key != "backbone" or value is not None}

    @property
    def design(self) -> str:
        """The name of the codebook's design."""
        return str(self.decision.code)

    @property
    def is_implicit(self) -> bool:
        """Whether the code is too large to write down, so that the checkpoint holds no codebook."""
        return self.design == "one_vs_all"


def _of_codebook(codebook: Codebook) -> dict[str, Any]:
    """The fields of a DecisionConfig that a codebook determines."""
    params = dict(codebook.params)
    bits = None if codebook.design == "one_vs_all" else codebook.length - int(params.get("parity", 0))
    return {"code": codebook.design, "bits": bits, "code_params": params, "assignment": None}
