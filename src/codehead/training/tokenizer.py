"""Tokenizers, and rows → examples of token ids, labels and the exact number of UTF-8 bytes each token covers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codehead.boundaries import library_bars_hidden, loading
from codehead.errors import ConfigurationError, DataError
from codehead.models import named

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained`, padding with the eos token where it has no pad token; some have neither."""
    from transformers import AutoTokenizer

    with loading("tokenizer", name), named.pretrained(name) as (place, options):
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        tokenizer("a")  # some values in its files are checked only now
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_checksum(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what decides which tokens a text becomes: its files, its special tokens and its chat template."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else ""  # a slow one is refused later
    parts = [backend, tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE (Radford et al. 2019) of at most `vocab_size` entries; any text can be encoded.

    Its only special token, `<|endoftext|>`, ends documents and pads.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


IGNORED = -100  # the label of tokens that carry no loss
BATCH = 1000  # rows tokenised at a time
Columns = dict[str, list[list[int]]]


def byte_counts(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """How many UTF-8 bytes of `text` each token adds, from the (start, end) characters of the tokens.

    A token counts `text[end of the tokens before it : its end]`, so spaces missing from the offsets count
    for the token after them, a character in several tokens for the first of these, and the sum is the
    byte length of the text. Special tokens, at (0, 0), count nothing.
    """
    if not offsets:
        return []
    position = _byte_positions(text)
    ends = np.maximum.accumulate(np.array([end for _, end in offsets], dtype=np.int64))
    ends[_last_token(offsets) :] = len(text)
    return np.diff(position[ends], prepend=0).tolist()


def tokenize_text(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int, name: str = "the text"
) -> Dataset:
    """Documents → blocks of `block_size` tokens: all documents concatenated, each ended by the eos token.

    A tokenizer's bos token begins every document and every block: some models, such as Gemma, depend on it.
    Tokens that do not fill the last block are dropped. Raises DataError, which names them by `name`, if no block is
    full.
    """
    tokens = map_rows(rows, lambda batch: _documents(batch["text"], tokenizer))
    return _blocks(tokens, start_of_text(tokenizer), block_size, name)


def tokenize_records(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int, name: str = "the text"
) -> Dataset:
    """Prompts and responses → one example each, cut at `block_size` tokens; only the response has labels.

    Prompt and response are tokenised separately, so that the prompt's tokens are the same as at
    generation. Records whose prompt alone fills the block are dropped.
    """
    examples = map_rows(rows, lambda batch: _records(batch["prompt"], batch["response"], tokenizer, block_size))
    if not len(examples):
        raise DataError(
            f"every prompt of {name} fills data.block_size={block_size} tokens, which leaves no response; raise it, "
            "where it can be chosen, or give shorter prompts"
        )
    return examples


def prompt_ids(prompts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of every prompt as in `tokenize_records`: what a model must see to give a response."""
    return [ids for ids, _ in _prompts(prompts, tokenizer)]


def start_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The bos token, where the tokenizer begins every text with it; an eos that doubles as bos only separates texts."""
    first = tokenizer("a").input_ids[:1]
    return first if first == [tokenizer.bos_token_id] != [tokenizer.eos_token_id] else []


def map_rows(rows: Dataset, tokenise: Callable[[dict[str, list[Any]]], Columns]) -> Dataset:
    """`rows.map` by batches, with every column a list of int32."""
    from datasets import Features, Sequence, Value

    with library_bars_hidden():
        tokens = rows.map(tokenise, batched=True, batch_size=BATCH, remove_columns=rows.column_names)
        return tokens.cast(Features(dict.fromkeys(tokens.column_names, Sequence(Value("int32")))))


def _documents(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Columns:
    encoded = _encode(tokenizer, texts, special=False)
    eos, start = _eos(tokenizer), start_of_text(tokenizer)
    return {
        "input_ids": [start + ids + [eos] for ids, _ in encoded],
        "num_bytes": [[0] * len(start) + count + [0] for _, count in encoded],
    }


def _records(prompts: list[str], responses: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int) -> Columns:
    eos = _eos(tokenizer)
    encoded = zip(_prompts(prompts, tokenizer), _encode(tokenizer, responses, special=False), strict=True)
    examples = (
        {
            "input_ids": prompt + response + [eos],
            "labels": [IGNORED] * len(prompt) + response + [eos],
            "num_bytes": prompt_bytes + response_bytes + [0],
        }
        for (prompt, prompt_bytes), (response, response_bytes) in encoded
    )
    return cut(examples, block_size)


def cut(examples: Iterable[dict[str, list[int]]], block_size: int) -> Columns:
    """The columns of examples, cut at `block_size` tokens; those without a label before that are dropped."""
    columns: Columns = {"input_ids": [], "labels": [], "num_bytes": []}
    for example in examples:
        if any(label != IGNORED for label in example["labels"][:block_size]):
            for name, values in example.items():
                columns[name].append(values[:block_size])
    return columns


def _prompts(prompts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int]]]:
    """Ids and byte counts of every prompt, with special tokens except the eos that ends a text."""
    eos = _eos(tokenizer)
    return [
        (ids[:-1], counts[:-1]) if len(ids) > 1 and ids[-1] == eos else (ids, counts)  # some tokenizers end every text
        for ids, counts in _encode(tokenizer, prompts, special=True)
    ]


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool
) -> list[tuple[list[int], list[int]]]:
    require_offsets(tokenizer)
    encoded = tokenizer(texts, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    return [
        (ids, byte_counts(text, offsets))
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _blocks(tokens: Dataset, start: list[int], block_size: int, name: str) -> Dataset:
    """Blocks of `block_size` tokens that begin with `start`, as the first document does."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    length, size = len(start), block_size - len(start)
    ids, num_bytes = (
        tokens.data.column(column).combine_chunks().flatten()[length:].to_numpy()
        for column in ("input_ids", "num_bytes")
    )
    if len(ids) < size:
        total = length + len(ids)
        raise DataError(
            f"{name} has {total} tokens, less than one block of {block_size}; give more text, or lower "
            f"data.block_size, where it can be chosen, to at most {total}"
        )
    rows = {
        "input_ids": _rows(ids, start, size),
        "num_bytes": _rows(num_bytes, [0] * length, size),
        "labels": _rows(ids, [IGNORED] * length, size),
    }
    return Dataset(
        pa.table({key: pa.FixedSizeListArray.from_arrays(found.ravel(), block_size) for key, found in rows.items()})
    )


def _rows(values: np.ndarray, start: list[int], size: int) -> np.ndarray:
    """Rows of `start` and the next `size` values; those that fill no row are dropped."""
    rows = values[: len(values) // size * size].reshape(-1, size)
    return np.insert(rows, [0] * len(start), start, axis=1) if start else rows


def _byte_positions(text: str) -> np.ndarray:
    """Byte offset of every character boundary, `(characters + 1,)`."""
    encoded = np.frombuffer(text.encode(), dtype=np.uint8)
    starts = np.flatnonzero((encoded & 0xC0) != 0x80)  # all but the continuation bytes of UTF-8
    return np.append(starts, len(encoded))


def _last_token(offsets: Sequence[tuple[int, int]]) -> int:
    """Index of the last token with text of its own; it also counts what the tokenizer drops at the end."""
    return next((i for i in reversed(range(len(offsets))) if offsets[i][1] > 0), len(offsets) - 1)


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ConfigurationError("the tokenizer has no eos token to end a document with; set one and save it")
    return int(tokenizer.eos_token_id)


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigurationError for a tokenizer that does not give the offsets of its tokens in the text."""
    if not tokenizer.is_fast:
        raise ConfigurationError(
            f"tokenizer {type(tokenizer).__name__} gives no character offsets, which the byte counts need; "
            "use a fast tokenizer (one with a tokenizer.json)"
        )
