"""What results are called in tables and pictures, and which of them share a colour."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from codehead.codes import DESIGNS
from codehead.config.decision import design_name
from codehead.lab.result import Result

LEARNT = ("converted", "labelled", "joint", "trained")
"""Families of codes with the codeword loss that learnt from a Softmax head and end in integers, by how: see `_way`."""
OVER_TOKENS = ("softmax", "codeword", "refined", *LEARNT, "peer")
"""Families whose training loss is one over V tokens, not over bits."""


def label_of(result: Result) -> str:
    """The configuration as the paper writes it: `MinRandom MTL-ECOC (50, 512)`; and what the paper does not have."""
    decision, peer = result.metrics["decision"], result.metrics.get("peer")
    if peer is not None and not peer.get("convert"):
        return _label_of_peer(peer)
    if decision is None:
        return "Softmax"
    asked = _asked(result)
    return ", ".join([_label_of_code(decision, asked), *_weights(decision), *_told(result)])


def _weights(decision: Mapping[str, Any]) -> list[str]:
    return [f"int{decision.get('rounded_bits', 8)}"] if decision.get("rounded") else []


def _asked(result: Result) -> Mapping[str, Any]:
    """The keywords of a decision layer, of a run or a conversion."""
    convert = (result.config.get("peer") or {}).get("convert")
    return ((result.config.get("run") if convert is None else convert) or {}).get("decision") or {}


def _told(result: Result) -> list[str]:
    """In a word or two, how a decision layer learnt from a Softmax head; none for a plain conversion."""
    distil = _distillation(result)
    weight = distil.get("label_weight", 0)
    words = {
        "backbone too": backbone_steps(distil),
        f"labels {weight:g}": weight,
        "trained on": _way(result) == "trained",
    }
    return [word for word, applies in words.items() if applies]


def _way(result: Result) -> str:
    """How a decision layer learnt from a Softmax head; nothing if it did not.

    "converted" with a frozen backbone, "labelled" with the text's own tokens, "joint" with the backbone, in place of
    a finished head; "trained" before a training of its own.
    """
    distil = _distillation(result)
    if not distil:
        return ""
    if result.metrics.get("peer") is None:
        return "trained"
    return "joint" if backbone_steps(distil) else "labelled" if distil.get("label_weight") else "converted"


def _distillation(result: Result) -> Mapping[str, Any]:
    """The options of learning from a Softmax head, of a conversion or before a training; empty without any."""
    peer, run = result.metrics.get("peer"), result.config.get("run") or {}
    return (run if peer is None else peer.get("convert") or {}).get("distil") or {}


def backbone_steps(distil: Mapping[str, Any]) -> int:
    """Steps in which the backbone learnt too, also under the name of version 0.1."""
    return int(distil.get("backbone_steps") or distil.get("trunk_steps") or 0)


def _label_of_code(decision: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Of what a decision layer is; `asked` tells how many of its bits are check bits, and who has which codeword."""
    if decision["head"] == "low_rank" and decision["design"] == "one_vs_all":
        return f"Low rank {decision['rank']}"
    if decision["head"] == "adaptive":
        return f"Adaptive softmax {decision['head_options'].get('cutoffs') or ''}".strip()
    design = design_name(decision["design"])
    if decision["design"] == "learned" and asked.get("code") in DESIGNS.names():
        design += f" {design_name(asked['code'])}"
    kind = {"mtl": "MTL-ECOC", "chain": "chain"}.get(decision["head"], "ECOC")
    parity = (asked.get("code_params") or {}).get("parity", 0)
    bits = f"{decision['bits'] - parity} + {parity}" if parity else str(decision["bits"])
    named = design if "ECOC" in design and kind == "ECOC" else f"{design} {kind}"
    label = f"{named} ({bits}, {decision['width']})"
    if asked.get("assignment"):
        label += f", {asked['assignment'].replace('_', ' ')}"
    if decision.get("refined"):
        label += f" + {decision['refined_bits']} bits for {decision['refined']:,}"
    if decision.get("shortlist") or decision.get("token_bias"):  # these imply the codeword loss
        return f"{label} + {decision['shortlist']} tokens" if decision["shortlist"] else f"{label} + bias"
    return label if decision["loss"] == "bitwise" else f"{label} + {decision['loss']} loss"


def _label_of_peer(peer: Mapping[str, Any]) -> str:
    if peer["keep"] is not None:
        return f"Trimmed to {peer['keep']:,} tokens" + (f", int{peer['bits']}" if peer["bits"] else "")
    return f"int{peer['bits']}, {'error-corrected' if peer['corrected'] else 'rounded'}"


def family_of(result: Result) -> str:
    """The colour group of a result."""
    decision = result.metrics["decision"]
    if decision is None:
        return "softmax" if result.metrics.get("peer") is None else "peer"
    if decision["design"] == "one_vs_all":
        return "peer"
    if decision.get("rounded") and decision["loss"] == "codeword" and _way(result):
        return _way(result)
    if decision.get("refined"):
        return "refined"
    return "codeword" if decision["loss"] == "codeword" else decision["head"]


# Short names for tables and pictures: `code 5%`, where a cell is called after its share of the bytes.


NUMBER = re.compile(r"-(\d+(?:\.\d+)?)(?=-|$)")
NEAR = 2.0
"""How many times a cell's number may differ from the per cent that its head takes, and still stand for them."""


def short_name(result: Result, label: str, byte_share: float | None) -> str:
    """`low rank 5%` for the cell `low-rank-5`, with the share that the head really takes; else its `label`."""
    cell = str(result.config["cell"])
    numbers = list(NUMBER.finditer(cell))
    if len(numbers) != 1 or not byte_share or not 1 / NEAR < float(numbers[0][1]) / (100 * byte_share) < NEAR:
        return label
    (found,) = numbers
    named = f"{cell[: found.start()]} {100 * byte_share:{'.0f' if byte_share > 0.1 else '.1f'}}%{cell[found.end() :]}"
    return named.replace(".0%", "%").replace("-", " ")
