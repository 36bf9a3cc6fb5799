"""Records of conversations, in the shapes people have, → rows of `messages`, each with `role` and `content`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codehead.errors import DataError

LISTS = ("messages", "conversations")
"""Fields that hold a whole conversation: of OpenAI and TRL, of ShareGPT."""
PAIRS = (("prompt", "response"), ("question", "answer"))
"""Fields of one question and its answer, as text."""
SYSTEM = ("system", "system_prompt")
"""Fields of what stands before the first message."""
KEYS = (("role", "content"), ("from", "value"))
ROLES = {name: name for name in ("system", "user", "assistant", "tool")} | {"human": "user", "gpt": "assistant"}
UNREAD = ("tools", "functions", "tool_calls", "function_call")
"""What would change how a conversation is written, and is not read here."""

Message = dict[str, str]


def conversation(record: Mapping[str, Any], place: str) -> dict[str, Any] | None:
    """`{messages, given}` of a record: its messages, and how many of them come first that carry no loss.

    None if the record is no conversation; DataError, which calls it by `place`, if it is a broken one, or one in which
    the assistant says nothing.
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
    """The messages of a record in any of the shapes, and how many are given."""
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
    """Text as it is, or the parts of a list of texts in a row."""
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        return "".join(_text(part.get("text"), place) for part in content)
    if not isinstance(content, str):
        raise DataError(f"the content of {place} is {type(content).__name__}; expected text (no images, no sound)")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"the content of {place} holds half of a surrogate pair: not valid text") from None
    return content


def _refuse_tools(value: Mapping[str, Any], place: str) -> None:
    for key in UNREAD:
        if value.get(key):
            raise DataError(f"{place} has {key!r}: conversations with calls of tools are not read; omit the record")
