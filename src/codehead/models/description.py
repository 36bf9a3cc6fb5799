"""What `config.json` says of a decision layer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codehead import __version__
from codehead.codes.codebook import Codebook
from codehead.errors import CheckpointError, ConfigurationError
from codehead.layer import Decision
from codehead.registry import did_you_mean

METHOD = "codehead"
"""The name under which transformers finds the loader: `quantization_config.quant_method`."""

YOUNGER = ("refined", "refined_bits", "shortlist_split", "token_scale", "rounded", "rounded_bits", "packed", "fresh")
"""Fields that checkpoints of older versions do not have."""

ROUNDED_BITS = (4, 8)
"""Of an integer in a head."""

MOST = 2**31 - 1
"""Of tokens or bits: ids are int32."""

PIECE = 2**24
"""Numbers of a head that a checksum looks at at a time."""

JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "int | None": (int, type(None)),
    "bool": (bool,),
    "dict[str, Any]": (dict,),
}


def expect_written(entry: dict[str, Any], written: Tensor) -> None:
    """Check an entry of `config.json` against what stands among the weights, the `Description.to_tensor` of them.

    A CheckpointError names the field that was changed since.
    """
    try:
        original = dict(json.loads(bytes(written.tolist())))
        names = sorted({*original, *entry} - {"quant_method"})
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"tensor decision.description of the checkpoint is damaged ({error}); restore the weights from the "
            "original checkpoint"
        ) from None
    for name in names:
        now, then = (_json(values[name]) if name in values else "missing" for values in (entry, original))
        if now != then:
            raise CheckpointError(
                f"quantization_config.{name} in config.json is {now}, but the weights were saved with {then}: one of "
                "them was changed; restore config.json and the weights from the original checkpoint"
            )


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _seen(decision: Decision) -> dict[str, Any]:
    """The fields of a description that a decision layer itself tells."""
    corrections, table = decision.corrections, decision.table
    refinement = None if corrections is None else corrections.refinement
    return {
        "bits": table.length,
        "num_classes": table.num_classes,
        "ternary": table.is_ternary,
        "loss": decision.loss_name,
        "decoder": decision.decoder_name,
        "shortlist": 0 if corrections is None else corrections.num_rows,
        "token_bias": corrections is not None and corrections.token_bias is not None,
        "shortlist_split": corrections is not None and corrections.split,
        "token_scale": corrections is not None and corrections.token_scale is not None,
        "refined": 0 if refinement is None else refinement.num_tokens,
        "refined_bits": 0 if refinement is None else refinement.length,
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
class Description:
    """The entry `quantization_config` of a coded model's configuration, checked when it is built."""

    design: str
    bits: int
    num_classes: int
    ternary: bool
    seed: int | None
    params: dict[str, Any]
    checksum: str
    """sha256 of the codebook; a checkpoint whose codebook differs is refused."""
    head: str
    head_options: dict[str, Any]
    loss: str
    decoder: str
    shortlist: int
    """K, the tokens that have a dense row beside the code; their ids are in the weights."""
    token_bias: bool
    """Whether every token has a bias."""
    stock: dict[str, Any]
    """What was changed in the stock configuration, with the values from before."""
    version: str = __version__
    """Version of codehead that wrote this."""
    refined: int = 0
    """K, the tokens whose codewords are longer; which ones is in the weights."""
    refined_bits: int = 0
    """m, how much longer."""
    shortlist_split: bool = False
    """Whether the shortlist and the code share the probability between them."""
    token_scale: bool = False
    """Whether every token has a scale."""
    rounded: bool = False
    """Whether the weights of head and decision are integers, with a scale per row."""
    rounded_bits: int = 8
    """Of an integer in the matrices of the head, 8 or 4; all else has 8."""
    packed: bool = False
    """Whether codewords stay packed in memory."""
    fresh: str = ""
    """sha256 of the random weights that the head began with; empty if it began at the old head, or with one_vs_all."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            allowed = JSON_TYPES[str(entry.type)]
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise CheckpointError(
                    f"quantization_config.{entry.name} in config.json must be of type {entry.type}, got "
                    f"{value!r}; restore config.json from the original checkpoint"
                )
        if self.rounded_bits not in ROUNDED_BITS:
            raise CheckpointError(
                f"quantization_config.rounded_bits in config.json must be 4 or 8, got {self.rounded_bits}; restore "
                "config.json from the original checkpoint"
            )
        for name, (least, most) in self._bounds().items():
            if not least <= getattr(self, name) <= most:
                raise CheckpointError(
                    f"quantization_config.{name} in config.json must be from {least} to {most}, got "
                    f"{getattr(self, name)}; restore config.json from the original checkpoint"
                )
        for name in ("bias", "tie_word_embeddings"):
            if not isinstance(self.stock.get(name), bool):
                raise CheckpointError(
                    f"quantization_config.stock.{name} in config.json must be true or false, got "
                    f"{self.stock.get(name)!r}; restore config.json from the original checkpoint"
                )

    def _bounds(self) -> dict[str, tuple[int, int]]:
        """The least and the largest value of every number; what it takes of memory is up to the files."""
        some = {"shortlist": (0, self.num_classes), "refined": (0, self.num_classes), "refined_bits": (0, MOST)}
        return {"num_classes": (2, MOST), "bits": (1, MOST), **some}

    @classmethod
    def of(
        cls,
        codebook: Codebook,
        head: str,
        head_options: dict[str, Any],
        decision: Decision,
        stock: dict[str, Any],
        fresh: str,
    ) -> Description:
        """The description of a decision layer that is about to be attached.

        Raises ConfigurationError for options that a checkpoint could not hold.
        """
        try:
            json.dumps(head_options)
        except TypeError as error:
            raise ConfigurationError(
                f"head_params={head_options!r} cannot be written to config.json ({error}); give plain values"
            ) from None
        return cls(
            design=codebook.design,
            seed=codebook.seed,
            params=dict(codebook.params),
            checksum=codebook.checksum,
            head=head,
            head_options=head_options,
            stock=stock,
            fresh=fresh,
            **_seen(decision),
        )

    @classmethod
    def current(cls, model: Any) -> Description:
        """The description of a coded model as it is now: loss, decoder, codebook or packing may have changed since."""
        old, table = cls.from_dict(model.config.quantization_config), model.decision.table
        changed = _seen(model.decision)
        if table.sign_plane is not None and not table.sign_plane.is_meta:  # meta: offloaded, so not replaced
            checksum = table.to_codebook(old.design, old.seed, old.params).checksum
            if checksum != old.checksum:
                kept = {name: value for name, value in old.params.items() if name == "allow_duplicates"}
                changed |= {"design": "custom", "seed": None, "params": kept, "checksum": checksum}
        return dataclasses.replace(old, **changed)

    def to_tensor(self) -> Tensor:
        """The entry as bytes (uint8): it lies among the weights, so that `config.json` can be compared with it."""
        return torch.frombuffer(bytearray(_json(self.to_dict()).encode()), dtype=torch.uint8)

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Description:
        """Read the entry of a `config.json`; a CheckpointError names a field that is missing or unknown."""
        entry = {key: value for key, value in entry.items() if key != "quant_method"}
        known = [f.name for f in dataclasses.fields(cls)]
        for key in entry:
            if key not in known:
                hint = did_you_mean(key, known) or "; was the checkpoint written by a newer codehead?"
                raise CheckpointError(f"quantization_config.{key} in config.json is not a field of codehead{hint}")
        for key in known:
            if key not in entry and key not in YOUNGER:
                raise CheckpointError(
                    f"quantization_config.{key} is missing from config.json; restore config.json from the "
                    "original checkpoint"
                )
        return cls(**entry)

    def to_dict(self) -> dict[str, Any]:
        """The entry as it stands in `config.json`."""
        return {"quant_method": METHOD, **dataclasses.asdict(self)}

    @property
    def is_implicit(self) -> bool:
        """Whether the code is too large to be written down, so that the checkpoint holds no codebook."""
        return self.design == "one_vs_all"
