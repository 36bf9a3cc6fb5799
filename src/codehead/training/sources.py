"""A hub id or a local file → rows of one shape.

`{text}`, `{prompt, response}` for instruction data, or `{messages, given}` for conversations.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codehead.boundaries import read_text, reading, reason, require_file
from codehead.errors import DataError
from codehead.training.conversations import conversation, text_of

if TYPE_CHECKING:
    from datasets import Dataset

# Alpaca's template (Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca).
_TASK = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
PROMPT_WITH_INPUT = (
    f"{_TASK}, paired with an input that provides further context. {_REQUEST}### Input:\n{{input}}\n\n### Response:\n"
)
PROMPT_WITHOUT_INPUT = f"{_TASK}. {_REQUEST}### Response:\n"
Row = dict[str, Any]
Reader = Callable[[Path], Iterator[tuple[str, Any]]]


def read_rows(
    source: str | Sequence[str],
    *,
    split: str = "train",
    subset: str | None = None,
    text_field: str | None = None,
    as_text: bool = False,
    limit: int | None = None,
) -> Dataset:
    """The first `limit` rows of one source or several: a `Dataset` of `text`, of `prompt` and `response`, or of
    `messages` and `given`, the number of them that carry no loss.

    A local file ends in .txt (documents separated by blank lines), .jsonl, .json (a list of records) or
    .parquet. A hub id may name its split after a colon: `roneneldan/TinyStories:train[:1%]`. Empty texts
    are dropped; with `as_text`, records become texts. Raises DataError for missing, empty or malformed data.
    """
    from datasets import Dataset

    sources = [source] if isinstance(source, str) else source
    places = chain.from_iterable(_records(name, split, subset) for name in sources)
    found = islice((to_row(record, text_field, place) for place, record in places), limit)
    rows = [row for row in found if any(texts_of(row))]
    if as_text:
        rows = [{"text": ("\n\n" if "messages" in row else "").join(texts_of(row))} for row in rows]
    if not rows:
        raise DataError(f"{', '.join(map(repr, sources))} holds no text; give a source with at least one document")
    kinds = {tuple(row) for row in rows}
    if len(kinds) > 1:
        raise DataError(
            f"{', '.join(map(repr, sources))} mixes plain texts and instruction records or conversations; split "
            "it into sources of one kind, or, where the command lets you, read records as text (data.as_text)"
        )
    return Dataset.from_list(rows)


def texts_of(row: Mapping[str, Any]) -> list[str]:
    """The texts of a row; for a conversation, the content of each message."""
    return [message["content"] for message in row["messages"]] if "messages" in row else list(row.values())


def check_source(source: str) -> None:
    """Raise DataError for a local file that does not exist or has an unknown suffix."""
    if _is_local(source):
        _reader(Path(os.path.expanduser(source)))


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The prompt of an instruction record, up to and including the line before the response."""
    template = PROMPT_WITH_INPUT if context.strip() else PROMPT_WITHOUT_INPUT
    return template.format(instruction=instruction, input=context)


def to_row(record: Any, text_field: str | None, place: str) -> Row:
    """One record in the shape of its kind; `place` ("record 3 of 'a.json'") names it in errors.

    The field `text_field`; without it instruction fields, conversations, or a field called `text`.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{place} is {type(record).__name__}; expected an object with named fields")
    for read in (_instruction, conversation, _completion) if text_field is None else ():
        row = read(record, place)
        if row is not None:
            return row
    field = "text" if text_field is None else text_field
    if field in record:
        return {"text": _string(record, field, place)}
    raise DataError(
        f"{place} has the fields {', '.join(map(repr, record)) or '(none)'}; expected {field!r} (data.text_field names "
        "it) or, without data.text_field, instruction/input/output, instruction/context/response, prompt/completion, "
        "or a conversation: messages, conversations, prompt/response, question/answer"
    )


def _instruction(record: Mapping[str, Any], place: str) -> Row | None:
    """Prompt and response of an Alpaca or Dolly record; None if it is neither."""
    response = next((key for key in ("output", "response") if key in record), None)
    if "instruction" not in record or response is None:
        return None
    context = next((_string(record, key, place) for key in ("input", "context") if key in record), "")
    prompt = alpaca_prompt(_string(record, "instruction", place), context)
    return {"prompt": prompt, "response": _string(record, response, place)}


def _completion(record: Mapping[str, Any], place: str) -> Row | None:
    if "prompt" not in record or "completion" not in record:
        return None
    return {"prompt": _string(record, "prompt", place), "response": _string(record, "completion", place)}


def _string(record: Mapping[str, Any], key: str, place: str) -> str:
    value = record[key]
    if value is None:
        return ""
    return text_of(value, f"field {key!r} of {place}", "a string")


def _records(source: str, split: str, subset: str | None) -> Iterator[tuple[str, Any]]:
    if not _is_local(source):
        return _hub(source, split, subset)
    path = Path(os.path.expanduser(source))
    return _reader(path)(path)


def _is_local(source: str) -> bool:
    suffix = Path(source).suffix
    looks_like_path = source.startswith((".", "/", "~")) or suffix in _READERS or source.count("/") > 1
    return os.path.exists(source) or (looks_like_path and ":" not in source)


def _reader(path: Path) -> Reader:
    require_file(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"data file {str(path)!r} has the unknown suffix {path.suffix!r}; known: {', '.join(_READERS)}")
    return reader


def _txt(path: Path) -> Iterator[tuple[str, Any]]:
    for number, text in enumerate(re.split(r"\n\s*\n", read_text(path)), start=1):
        yield f"paragraph {number} of {str(path)!r}", {"text": text.strip("\n")}


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"line {number} of {str(path)!r}", _parsed(line, path, number)


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    records = _parsed(read_text(path), path)
    if not isinstance(records, list):
        raise DataError(f"{str(path)!r} holds {type(records).__name__}; expected a list of records")
    for number, record in enumerate(records, start=1):
        yield f"record {number} of {str(path)!r}", record


def _parsed(text: str, path: Path, line: int | None = None) -> Any:
    """The value of a JSON text: a whole file, or one `line` of it."""
    hint = "" if line else "; one record per line needs the suffix .jsonl"
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"{error.msg} (column {error.colno})"
        line = line or error.lineno
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        problem = str(error)
    place = repr(str(path)) if line is None else f"line {line} of {str(path)!r}"
    raise DataError(f"{place} is not valid JSON: {problem}{hint}") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with reading(path):
        try:
            table = pq.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise DataError(f"{str(path)!r} is not a Parquet file: {error}") from None
        records = (record for batch in table.iter_batches() for record in batch.to_pylist())
        for number, record in enumerate(records, start=1):
            yield f"record {number} of {str(path)!r}", record


_READERS = {".txt": _txt, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}


def _hub(source: str, split: str, subset: str | None) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    name, _, chosen = source.partition(":")
    try:
        dataset = load_dataset(name, subset, split=chosen or split)
    except Exception as error:  # a hub data set raises whatever its files and builder raise
        raise DataError(
            f"{source!r} is neither a local file nor a data set that could be loaded from the hub: {reason(error)}; "
            "check the name"
        ) from error
    for number, record in enumerate(dataset, start=1):
        yield f"record {number} of {source!r}", record
