"""The tokenizer of a run: loaded from a hub id or folder, or trained on the run's own text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from codehead.boundaries import loading
from codehead.models import named

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained`, padding with the eos token where it has no pad token; some have neither."""
    from transformers import AutoTokenizer

    with loading("tokenizer", name), named.pretrained(name) as (place, options):
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        tokenizer("a")  # some values of its files are looked at only now
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
