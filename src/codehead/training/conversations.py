"""Records of conversations, in the usual shapes → examples with loss on the assistant's turns alone.

They are written with the tokenizer's own chat template. The template marks the assistant's tokens with
`{% generation %}`. If it does not, a turn begins where the messages before it end with the generation prompt, and ends
where the template ends it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codehead.boundaries import reason
from codehead.errors import ConfigurationError, DataError
from codehead.training.tokenizer import IGNORED, byte_counts, cut, map_rows, require_offsets

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


LISTS = ("messages", "conversations")
"""Fields that hold a whole conversation: OpenAI's and TRL's, and ShareGPT's."""
PAIRS = (("prompt", "response"), ("question", "answer"))
"""Fields of one question and its answer, as text."""
SYSTEM = ("system", "system_prompt")
"""Fields of the text before the first message."""
KEYS = (("role", "content"), ("from", "value"))
ROLES = {name: name for name in ("system", "user", "assistant", "tool")} | {"human": "user", "gpt": "assistant"}
UNREAD = ("tools", "functions", "tool_calls", "function_call")
"""Fields that would change how a conversation is written, and are not supported here."""

Message = dict[str, str]


def conversation(record: Mapping[str, Any], place: str) -> dict[str, Any] | None:
    """`{messages, given}` of a record: its messages, and how many of the first ones carry no loss.

    None if the record is not a conversation; DataError, which names it by `place`, if it is malformed or has no turn
    of the assistant.
    """
    found = _found(record, place)
    if found is None:
        return None
    messages, given = found
    _refuse_tools(record, place)
    opening = next((record[key] for key in SYSTEM if record.get(key)), None)
    if opening is not None and not (messages and messages[0]["role"] == "system"):
        messages, given = [_message({"role": "system", "content": opening}, place), *messages], given + bool(given)
    if messages and not any(message["role"] == "assistant" for message in messages[given:]):
        raise DataError(f"{place} has no turn of the assistant to learn from; omit the record")
    return {"messages": messages, "given": given}


def _found(record: Mapping[str, Any], place: str) -> tuple[list[Message], int] | None:
    """The messages of a record in any of the shapes, and how many of them carry no loss."""
    for field in LISTS:
        if field in record:
            return _messages(record, field, place), 0
    if any(isinstance(record.get(field), list) for field in ("prompt", "completion")) and "completion" in record:
        prompt = _messages(record, "prompt", place)
        return prompt + _messages(record, "completion", place), len(prompt)
    for asked, answered in PAIRS:
        if asked in record and answered in record:
            if record.get("context"):
                raise DataError(
                    f"{place} has a 'context' beside {asked!r} and {answered!r}, which no conversation has; name the "
                    "fields instruction, context and response"
                )
            pair = (("user", record[asked]), ("assistant", record[answered]))
            return [_message({"role": role, "content": text}, place) for role, text in pair], 0
    return None


def _messages(record: Mapping[str, Any], field: str, place: str) -> list[Message]:
    values = record.get(field)
    if not isinstance(values, list):
        raise DataError(f"field {field!r} of {place} is {type(values).__name__}; expected a list of messages")
    return [_message(value, f"message {number} of {place}") for number, value in enumerate(values, start=1)]


def _message(value: Any, place: str) -> Message:
    keys = next((keys for keys in KEYS if isinstance(value, Mapping) and all(key in value for key in keys)), None)
    if keys is None:
        raise DataError(f"{place} is {value!r}; expected an object with role and content, or with from and value")
    _refuse_tools(value, place)
    role, content = (value[key] for key in keys)
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"{keys[0]!r} of {place} is {role!r}; known: {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": _text(content, place)}


def _text(content: Any, place: str) -> str:
    """Text as it is; the parts of a list of texts are joined."""
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        return "".join(_text(part.get("text"), place) for part in content)
    return text_of(content, f"the content of {place}", "text (no images, no sound)")


def text_of(value: Any, what: str, expected: str) -> str:
    """A value that is valid text; DataError, which names it `what`, if it is not what was `expected`."""
    if not isinstance(value, str):
        raise DataError(f"{what} is {type(value).__name__}; expected {expected}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{what} holds half of a surrogate pair: not valid text") from None
    return value


def _refuse_tools(value: Mapping[str, Any], place: str) -> None:
    for key in UNREAD:
        if value.get(key):
            raise DataError(f"{place} has {key!r}: conversations with tool calls are not supported; omit the record")


MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]
"""Where a token or a turn begins and ends, in characters of the rendered conversation."""


def tokenize_chats(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int, name: str = "the text"
) -> Dataset:
    """Conversations → one example each, cut at `block_size` tokens; only the assistant's turns have labels.

    Conversations in which the assistant says nothing within the block are dropped. Raises ConfigurationError if the
    tokenizer has no chat template, DataError if the template cannot write a conversation or tell its turns apart, or
    if no example is left of the rows called `name`.
    """
    require_offsets(tokenizer)
    template = _Template(tokenizer)
    examples = map_rows(rows, lambda batch: cut(map(template.example, batch["messages"], batch["given"]), block_size))
    if not len(examples):
        raise DataError(
            f"in no conversation of {name} does the assistant say anything within data.block_size={block_size} tokens; "
            "raise it, where it can be chosen, or give shorter conversations"
        )
    return examples


class _Template:
    """The chat template of a tokenizer, and which tokens are the assistant's by it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.is_marked = bool(MARKS.search(_template(tokenizer)))
        self.special = {
            number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }

    def example(self, messages: list[Message], given: int) -> dict[str, list[int]]:
        """`input_ids`, `labels` and `num_bytes` of a conversation, whose first `given` messages carry no loss.

        Special tokens count no bytes: the template wrote them, and they are not text.
        """
        text = self.render(messages)
        encoded: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        own = (self._marked if self.is_marked else self._derived)(messages, given, text, offsets)
        counts = zip(ids, byte_counts(text, offsets), strict=True)
        return {
            "input_ids": ids,
            "labels": [token if learnt else IGNORED for token, learnt in zip(ids, own, strict=True)],
            "num_bytes": [0 if token in self.special else count for token, count in counts],
        }

    def render(self, messages: list[Message], *, open_turn: bool = False) -> str:
        """The text of messages; with `open_turn`, up to where the assistant's next turn begins."""
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn))
        except Exception as error:  # a template is a program and may raise anything
            raise DataError(
                f"the chat template cannot write the conversation {_beginning(messages)}: {reason(error)}; fix "
                "or omit the record"
            ) from error

    def _marked(self, messages: list[Message], given: int, text: str, offsets: Sequence[Span]) -> list[bool]:
        """Whether each token is the assistant's, by the template's marks, and outside the `given` messages."""
        encoded: Any = self.tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        spoken = any(message["role"] == "assistant" for message in messages[:given])
        start = self._begins(messages, given, text) if spoken else 0
        tokens = zip(encoded["assistant_masks"], offsets, strict=True)
        return [bool(own) and begin >= start for own, (begin, _) in tokens]

    def _derived(self, messages: list[Message], given: int, text: str, offsets: Sequence[Span]) -> list[bool]:
        """The same, derived from what the template writes for the messages up to each turn."""
        numbers = [number for number in range(given, len(messages)) if messages[number]["role"] == "assistant"]
        turns = [self._turn(messages, number, text) for number in numbers]
        return [any(start <= begin < end for start, end in turns) for begin, _ in offsets]

    def _turn(self, messages: list[Message], number: int, text: str) -> Span:
        """The span of a turn in the text: from its first word to the special token that ends it, if there is one."""
        start, through = self._begins(messages, number, text), self.render(messages[: number + 1])
        _require_prefix(through, text, messages)
        said = through.rstrip()  # generation stops at the special token, before any line break after it
        return start, len(said) if said.endswith(tuple(self.special.values())) else len(through)

    def _begins(self, messages: list[Message], number: int, text: str) -> int:
        """Where the turn of message `number` begins in the text."""
        before = self.render(messages[:number], open_turn=True)
        _require_prefix(before, text, messages)
        return len(before)


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        raise ConfigurationError(
            "the data are conversations, but the tokenizer has no chat template to write them with; save it with its "
            "chat_template set to that of a chat model of the same family, or, where the command lets you, name "
            "another tokenizer or read the data as text (data.as_text)"
        ) from None


def _require_prefix(part: str, text: str, messages: list[Message]) -> None:
    if not text.startswith(part):
        raise DataError(
            f"the chat template writes the start of the conversation {_beginning(messages)} differently once more "
            "turns follow (some drop the assistant's thinking), so its turns cannot be told apart; mark them in the "
            "template with {% generation %}, or end each conversation after one turn of the assistant"
        )


def _beginning(messages: Sequence[Message]) -> str:
    return f"that begins {messages[0]['content'][:40]!r}" if messages else "without a message"
