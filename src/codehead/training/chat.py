"""Conversations → examples in the tokenizer's own chat template, with loss on the assistant's turns alone.

Which tokens are the assistant's is what the template says itself, by `{% generation %}` around them. Where it does not,
a turn begins where the messages before it end with the prompt for a generation, and ends where the template ends it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from codehead.boundaries import reason
from codehead.errors import ConfigurationError, DataError
from codehead.training.conversations import Message
from codehead.training.tokenization import IGNORED, Columns, byte_counts, map_rows, require_offsets

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]
"""Where a token or a turn begins and ends, in characters of the rendered conversation."""


def tokenize_chats(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int, name: str = "the text"
) -> Dataset:
    """Conversations → one example each, cut at `block_size` tokens; only the assistant's turns have labels.

    Conversations in which the assistant says nothing within the block are left out. Raises ConfigurationError if the
    tokenizer has no chat template, DataError if that cannot render a conversation, does not tell the turns apart, or
    if no example is left of the rows called `name`.
    """
    require_offsets(tokenizer)
    marked = bool(MARKS.search(_template(tokenizer)))
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def examples_of(batch: dict[str, list[Any]]) -> Columns:
        columns: Columns = {"input_ids": [], "labels": [], "num_bytes": []}
        for messages, given in zip(batch["messages"], batch["given"], strict=True):
            text = _render(messages, tokenizer)
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
            learnt = (_marked if marked else _derived)(messages, given, text, offsets, tokenizer)
            if not any(learnt[:block_size]):
                continue
            labels = [token if own else IGNORED for token, own in zip(ids, learnt, strict=True)]
            counts = byte_counts(text, offsets)  # what a template writes as a special token is no text
            columns["num_bytes"].append(
                [0 if token in special else count for token, count in zip(ids, counts, strict=True)][:block_size]
            )
            columns["input_ids"].append(ids[:block_size])
            columns["labels"].append(labels[:block_size])
        return columns

    examples = map_rows(rows, examples_of)
    if not len(examples):
        raise DataError(
            f"in no conversation of {name} does the assistant say anything within data.block_size={block_size} tokens; "
            "raise it"
        )
    return examples


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        raise ConfigurationError(
            "the data are conversations, but the tokenizer has no chat template to write them in; give the tokenizer of "
            "a chat model of the same family (--tokenizer), save one with its chat_template set, or read the data as "
            "text (data.as_text)"
        ) from None


def _render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, open_turn: bool = False) -> str:
    """The text of messages; with `open_turn`, up to where the assistant's next turn begins."""
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=open_turn))
    except Exception as error:  # a template is a program of its own
        raise DataError(
            f"the chat template cannot write the conversation that begins {_beginning(messages)}: {reason(error)}; mend "
            "or omit the record"
        ) from error


def _marked(
    messages: list[Message], given: int, text: str, offsets: Sequence[Span], tokenizer: PreTrainedTokenizerBase
) -> list[bool]:
    """Whether each token is the assistant's, as the template marks it, and none of the `given` messages."""
    encoded: Any = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    start = 0
    if any(message["role"] == "assistant" for message in messages[:given]):
        start = _begins(messages, given, text, tokenizer)
    return [bool(own) and begin >= start for own, (begin, _) in zip(encoded["assistant_masks"], offsets, strict=True)]


def _derived(
    messages: list[Message], given: int, text: str, offsets: Sequence[Span], tokenizer: PreTrainedTokenizerBase
) -> list[bool]:
    """The same by what the template writes for the messages up to each turn."""
    turns = [number for number, message in enumerate(messages) if number >= given and message["role"] == "assistant"]
    spans = [_turn(messages, number, text, tokenizer) for number in turns]
    return [any(start <= begin < end for start, end in spans) for begin, _ in offsets]


def _turn(messages: list[Message], number: int, text: str, tokenizer: PreTrainedTokenizerBase) -> Span:
    """Where a turn stands in the text: from its first word to the special token that ends it, if there is one."""
    start, through = _begins(messages, number, text, tokenizer), _render(messages[: number + 1], tokenizer)
    _require_prefix(through, text, messages)
    ending = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    said = through.rstrip()  # a generation stops at the special token, and never comes to a line break after it
    return start, len(said) if ending and said.endswith(ending) else len(through)


def _begins(messages: list[Message], number: int, text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Where the turn of message `number` begins in the text."""
    before = _render(messages[:number], tokenizer, open_turn=True)
    _require_prefix(before, text, messages)
    return len(before)


def _require_prefix(part: str, text: str, messages: list[Message]) -> None:
    if not text.startswith(part):
        raise DataError(
            f"the chat template writes the beginning of the conversation {_beginning(messages)} otherwise once more "
            "follows (some drop what the assistant thought), so its turns cannot be told apart; mark them in the "
            "template with {% generation %}, or end each conversation after one turn of the assistant"
        )


def _beginning(messages: Sequence[Message]) -> str:
    return repr(messages[0]["content"][:40]) if messages else "without a message"
