from __future__ import annotations

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from codehead.errors import ConfigurationError, DataError
from codehead.training.config import DataConfig
from codehead.training.data import Collator, check_labels, check_vocabulary, load_examples, load_rows
from codehead.training.sources import alpaca_prompt, read_rows
from codehead.training.tokenizer import END_OF_TEXT, IGNORED, byte_counts, load_tokenizer, train_bpe

STORIES = ["One day a cat sat.", "The dog ran to the park.", "Zoë ate 🍎 and naïve crêpes.", "The end."]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(STORIES * 3, 300)


def write_jsonl(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return str(path)


# --- the tokenizer


def test_trained_tokenizer_encodes_any_text(tokenizer):
    assert len(tokenizer) == 300
    assert tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
    assert tokenizer.decode(tokenizer("日本 🙂\tx").input_ids) == "日本 🙂\tx"


def test_trained_tokenizer_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded("The cat").input_ids == tokenizer("The cat").input_ids
    assert loaded.pad_token_id == tokenizer.pad_token_id


def test_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"tokenizer .*nowhere' could not be loaded"):
        load_tokenizer(str(tmp_path / "nowhere"))


# --- byte counts


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_byte_counts_sum_to_the_length_of_the_text(tokenizer, text):
    offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    counts = byte_counts(text, offsets)
    assert sum(counts) == len(text.encode("utf-8"))
    assert min(counts, default=0) >= 0


def test_byte_counts_follow_the_tokens():
    # "é🙂 a": é in two tokens, a space outside all offsets, a special token in front, a dropped tail
    offsets = [(0, 0), (0, 1), (0, 1), (1, 2), (3, 4)]
    assert byte_counts("é🙂 a  ", offsets) == [0, 2, 0, 4, 4]


# --- sources


def test_every_suffix_gives_the_same_rows(tmp_path):
    records = [{"text": text, "other": 1} for text in STORIES]
    write_jsonl(tmp_path / "a.jsonl", records)
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "a.txt").write_text("\n\n".join(STORIES) + "\n\n\n", encoding="utf-8")
    Dataset.from_list(records).to_parquet(str(tmp_path / "a.parquet"))
    for suffix in ("jsonl", "json", "txt", "parquet"):
        assert read_rows(str(tmp_path / f"a.{suffix}"))["text"] == STORIES, suffix


def test_limit_and_text_field(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"story": text} for text in STORIES])
    assert read_rows(path, text_field="story", limit=2)["text"] == STORIES[:2]


@pytest.mark.parametrize(
    ("record", "context"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "1 2"),
        ({"instruction": "Add.", "input": "", "output": "3"}, ""),
        ({"instruction": "Add.", "context": "1 2", "response": "3"}, "1 2"),
        ({"instruction": "Add.", "output": "3"}, ""),
    ],
)
def test_instruction_records_use_the_template(tmp_path, record, context):
    row = read_rows(write_jsonl(tmp_path / "a.jsonl", [record]))[0]
    assert row == {"prompt": alpaca_prompt("Add.", context), "response": "3"}
    assert ("### Input:\n1 2\n" in row["prompt"]) == bool(context)
    assert row["prompt"].endswith("### Response:\n")


def test_instruction_fields_go_before_text_unless_a_field_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "Add.", "output": "3", "text": "Add. 3"}])
    assert read_rows(path).column_names == ["prompt", "response"]
    assert read_rows(path, text_field="text")[0] == {"text": "Add. 3"}
    plain = write_jsonl(tmp_path / "b.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match="has the fields 'text'; expected 'body' "):
        read_rows(plain, text_field="body")


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Add.", "output": "3"},
        {"prompt": "1+2=", "completion": "3"},
        {"messages": [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": "3"}]},
    ],
)
def test_no_other_field_replaces_the_one_that_is_named(tmp_path, record):
    path = write_jsonl(tmp_path / "a.jsonl", [{**record, "story": "a"}])
    assert read_rows(path, text_field="story")[0] == {"text": "a"}
    with pytest.raises(DataError, match=r"'story'; expected 'stroy' \(data\.text_field names it\) or, without"):
        read_rows(path, text_field="stroy")


def test_prompt_and_completion_are_taken_as_they_are(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "1+2=", "completion": "3"}])
    assert read_rows(path)[0] == {"prompt": "1+2=", "response": "3"}


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": \n')
    with pytest.raises(DataError, match=r"line 3 of '.*a\.jsonl' is not valid JSON"):
        read_rows(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x", r"unknown suffix '\.csv'; known: \.txt, \.jsonl, \.json, \.parquet"),
        ("a.txt", "", "holds no text"),
        ("a.jsonl", "", "holds no text"),
        ("a.json", "[]", "holds no text"),
        ("a.json", '{"text": "a"}', "holds dict; expected a list"),
        ("a.json", '[{"text": "a"},\n{]', "line 2 of .* is not valid JSON"),
        ("a.parquet", "no", "not a Parquet file"),
        ("a.jsonl", '{"title": "a", "body": "b"}', "line 1 of .* has the fields 'title', 'body'"),
        ("a.jsonl", '{"instruction": "a"}', "has the fields 'instruction'"),
        ("a.jsonl", '{"text": 3}', "field 'text' of line 1 of .* is int"),
        ("a.jsonl", "[1]", "line 1 of .* is list"),
        ("a.jsonl", '{"text": "\\ud800"}', "half of a surrogate pair"),
        ("a.jsonl", '{"text": "a"}\n{"prompt": "a", "completion": "b"}', "mixes plain texts"),
    ],
)
def test_unusable_files_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "hello there\n\nmore"),
        ("a.jsonl", '{"text": "hello there"}\n'),
        ("a.json", '[{"text": "hello there"}]'),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_rows(str(tmp_path / name))[0]["text"] == "hello there"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[" * 100_000, "is not valid JSON: it is nested too deeply"),
        ("a.jsonl", '{"text": "a"}\n' + "[" * 100_000, "line 2 of .* is not valid JSON: it is nested too deeply"),
        ("a.jsonl", f'{{"text": {"1" * 6000}}}', "line 1 of .* is not valid JSON: Exceeds the limit"),
    ],
)
def test_json_that_python_cannot_hold(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows(str(tmp_path / name))


def test_damaged_tables(tmp_path):
    offsets, text = pa.array([0, 4], pa.int32()).buffers()[1], pa.py_buffer(b"caf\xe9")
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(1, offsets, text)}), tmp_path / "latin.parquet")
    with pytest.raises(DataError, match=r"latin\.parquet' cannot be read: it is not UTF-8 text"):
        read_rows(str(tmp_path / "latin.parquet"))
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(500)]}), tmp_path / "page.parquet")
    content = (tmp_path / "page.parquet").read_bytes()
    (tmp_path / "page.parquet").write_bytes(content[:100] + bytes(400) + content[500:])
    with pytest.raises(DataError, match=r"page\.parquet' cannot be read: .*fix it or name another"):
        read_rows(str(tmp_path / "page.parquet"))


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("pipe.jsonl", "zero.txt"):
        with pytest.raises(DataError, match="is not a regular file"):
            read_rows(str(tmp_path / name))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl' does not exist"):
        read_rows(str(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        read_rows(str(tmp_path))


def test_bytes_that_are_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match="not UTF-8 text \\(byte 3\\)"):
        read_rows(str(tmp_path / "a.txt"))


# --- blocks of text


def test_blocks_are_the_documents_in_a_row(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in STORIES])
    stream = [i for text in STORIES for i in [*tokenizer(text).input_ids, tokenizer.eos_token_id]]
    examples = load_examples(path, tokenizer, block_size=7)
    whole = len(stream) // 7
    assert len(examples) == whole
    assert [i for row in examples["input_ids"] for i in row] == stream[: whole * 7]
    assert examples["labels"] == examples["input_ids"]


@pytest.mark.parametrize("size", [2, 7, 31])
def test_a_bos_token_begins_every_block_and_is_no_label(tmp_path, size):
    """Models such as Gemma depend on it, also in a block that begins within a document."""
    tokenizer = train_bpe(STORIES * 3, 300)
    bos = tokenizer.bos_token_id
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in STORIES])
    stream = [i for text in STORIES for i in [*tokenizer(text).input_ids, tokenizer.eos_token_id]]
    examples = load_examples(path, tokenizer, block_size=size)
    inner = size - 1
    assert all(row[0] == bos for row in examples["input_ids"])
    assert [i for row in examples["input_ids"] for i in row[1:]] == stream[1 : 1 + len(examples) * inner]
    assert len(examples) == (len(stream) - 1) // inner
    assert [row[1:] for row in examples["labels"]] == [row[1:] for row in examples["input_ids"]]
    assert {row[0] for row in examples["labels"]} == {IGNORED} and {row[0] for row in examples["num_bytes"]} == {0}


def test_bytes_of_one_block_are_those_of_the_text(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in STORIES])
    length = sum(len(tokenizer(text).input_ids) + 1 for text in STORIES)
    examples = load_examples(path, tokenizer, block_size=length)
    assert sum(examples["num_bytes"][0]) == sum(len(text.encode()) for text in STORIES)


def test_a_text_shorter_than_one_block(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "The"}])
    tokens = len(tokenizer("The").input_ids) + 1
    with pytest.raises(DataError, match=f"has {tokens} tokens, .*give more text, or lower .* to at most {tokens}"):
        load_examples(path, tokenizer, block_size=64)


# --- records


def test_only_the_response_has_labels(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "The cat ", "completion": "naïve dog"}])
    example = load_examples(path, tokenizer, block_size=64)[0]
    prompt = tokenizer("The cat ").input_ids
    response = [*tokenizer("naïve dog").input_ids, tokenizer.eos_token_id]
    assert example["input_ids"] == prompt + response
    assert example["labels"] == [IGNORED] * len(prompt) + response
    assert sum(example["num_bytes"][len(prompt) :]) == len("naïve dog".encode())


def test_records_are_cut_and_those_without_response_left_out(tmp_path, tokenizer):
    records = [{"prompt": "a" * 50, "completion": "b"}, {"prompt": "a", "completion": "b" * 50}]
    examples = load_examples(write_jsonl(tmp_path / "a.jsonl", records), tokenizer, block_size=8)
    assert len(examples) == 1
    assert len(examples[0]["input_ids"]) == len(examples[0]["labels"]) == len(examples[0]["num_bytes"]) == 8
    with pytest.raises(DataError, match=r"every prompt of the text fills data\.block_size=2"):
        load_examples(write_jsonl(tmp_path / "b.jsonl", records[:1]), tokenizer, block_size=2)


# --- the split, the batches, the checks


def test_validation_fraction_splits_whole_documents_by_seed(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"story {i}"} for i in range(20)])
    data = DataConfig(train=path, validation_fraction=0.25)
    first, again, other = load_rows(data, 0), load_rows(data, 0), load_rows(data, 1)
    assert len(first.validation) == 5
    assert {*first.train["text"], *first.validation["text"]} == {f"story {i}" for i in range(20)}
    assert len(first.train) == 15
    chosen = [list(rows.validation["text"]) for rows in (first, again, other)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(("fraction", "held_out"), [(0.01, 1), (0.5, 2), (0.99, 3)])
def test_a_fraction_leaves_a_document_on_either_side(tmp_path, fraction, held_out):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in STORIES])
    rows = load_rows(DataConfig(train=path, validation_fraction=fraction), 0)
    assert (len(rows.validation), len(rows.train)) == (held_out, 4 - held_out)


def test_one_document_has_no_part_to_hold_out(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match="there is only one; give at least two"):
        load_rows(DataConfig(train=path, validation_fraction=0.5), 0)


def test_collator_pads():
    batch = Collator(9, with_bytes=True)(
        [
            {"input_ids": [1, 2], "labels": [1, 2], "num_bytes": [3, 4]},
            {"input_ids": [5], "labels": [IGNORED], "num_bytes": [6]},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2], [5, 9]]
    assert batch["labels"].tolist() == [[1, 2], [IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["num_bytes"].tolist() == [[3, 4], [6, 0]]


def test_vocabulary_checks(tokenizer):
    with pytest.raises(ConfigurationError, match="tokenizer has 300 entries but the model only 299"):
        check_vocabulary(tokenizer, 299)
    check_vocabulary(tokenizer, 300)
    examples = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[IGNORED, 7]]})
    check_labels(examples, 8)
    with pytest.raises(DataError, match="labels holds the id 7, but the model has only 7 tokens"):
        check_labels(examples, 7)


# --- real tokenizers and texts


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama2"])
def test_real_instruction_records(data_dir, name):
    tokenizer = load_tokenizer(str(data_dir(f"tokenizers/{name}")))
    source = str(data_dir("alpaca/alpaca.json"))
    rows = read_rows(source, limit=60)
    examples = load_examples(source, tokenizer, block_size=2048, max_documents=60)
    for row, example in zip(rows, examples, strict=True):
        labelled = [i for i, label in enumerate(example["labels"]) if label != IGNORED]
        prompt = example["input_ids"][: labelled[0]]
        assert prompt == tokenizer(row["prompt"]).input_ids
        response = tokenizer.decode([example["labels"][i] for i in labelled])
        assert response.strip() == row["response"].strip() + tokenizer.eos_token
        assert sum(example["num_bytes"][i] for i in labelled) == len(row["response"].encode())
        assert sum(example["num_bytes"]) == len((row["prompt"] + row["response"]).encode())


@pytest.mark.parametrize("name", ["gpt2", "llama2", "qwen2"])
def test_real_stories(data_dir, name):
    tokenizer = load_tokenizer(str(data_dir(f"tokenizers/{name}")))
    source = str(data_dir("tinystories/stories.jsonl"))
    total = sum(len(text.encode()) for text in read_rows(source, limit=40)["text"])
    examples = load_examples(source, tokenizer, block_size=2, max_documents=40)
    counted = sum(sum(row) for row in examples["num_bytes"])
    assert 0 <= total - counted <= 20  # at most the one token that fills no block
    assert tokenizer.eos_token_id in [i for row in examples["input_ids"] for i in row]


def test_records_read_as_text_may_stand_beside_texts(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"prompt": "How many? ", "completion": "Two."}\n')
    (tmp_path / "text.txt").write_text("A text.\n\nAnother.")
    sources = [str(tmp_path / "records.jsonl"), str(tmp_path / "text.txt")]
    assert read_rows(sources, as_text=True)["text"] == ["How many? Two.", "A text.", "Another."]
    with pytest.raises(DataError, match=r"mixes plain texts and instruction records.*data\.as_text"):
        read_rows(sources)
