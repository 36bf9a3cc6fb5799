from __future__ import annotations

import json

import pytest

from codehead.errors import ConfigurationError, DataError
from codehead.training.data import Rows, tokenize
from codehead.training.sources import read_rows
from codehead.training.tokenizer import load_tokenizer, train_bpe

OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}" + OPEN
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}" + OPEN
)
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] if loop.last else 'cut') }}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + OPEN
)
ALTERNATING = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('users begin') }}{% endif %}" + CHATML

ASKED = {"role": "user", "content": "Wie heißt du?"}
ANSWERED = {"role": "assistant", "content": "Jürgen 你好."}
TALK = [{"role": "system", "content": "Be kind."}, ASKED, ANSWERED, {"role": "user", "content": "bye"}]
TALK += [{"role": "assistant", "content": "Bye.\n"}]


@pytest.fixture(scope="module")
def tokenizer():
    made = train_bpe(["Wie heißt du? Be kind. bye user assistant system"] * 3, 300)
    made.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


@pytest.fixture
def rows(tmp_path):
    def write(*records):
        path = tmp_path / "chat.jsonl"
        path.write_text("\n".join(json.dumps(record) for record in records))
        return read_rows(str(path))

    return write


def learnt(example, tokenizer):
    return tokenizer.decode([label for label in example["labels"] if label >= 0])


SHAPES = {
    "messages": {"messages": TALK},
    "conversations": {"conversations": [{"from": m["role"], "value": m["content"]} for m in TALK]},
    "sharegpt": {
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]}
            for m in TALK
        ]
    },
    "system beside": {"system": "Be kind.", "messages": TALK[1:]},
    "parts": {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in TALK]},
}


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_turns_of_the_assistant_are_learnt_and_nothing_else(tokenizer, rows, shape, template):
    tokenizer.chat_template = template
    (example,) = tokenize(rows(SHAPES[shape]), tokenizer, 200)
    assert learnt(example, tokenizer) == "Jürgen 你好.<|im_end|>Bye.\n<|im_end|>"
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert tokenizer.decode(example["input_ids"]) == text
    words = text.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert sum(example["num_bytes"]) == len(words.encode())  # special tokens are no text
    assert all(label in (-100, token) for label, token in zip(example["labels"], example["input_ids"], strict=True))


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_what_the_prompt_holds_is_given(tokenizer, rows, template):
    tokenizer.chat_template = template
    (example,) = tokenize(rows({"prompt": TALK[:4], "completion": TALK[4:]}), tokenizer, 200)
    assert learnt(example, tokenizer) == "Bye.\n<|im_end|>"


@pytest.mark.parametrize("keys", [("prompt", "response"), ("question", "answer")])
def test_a_question_and_its_answer_are_two_turns(tokenizer, rows, keys):
    tokenizer.chat_template = CHATML
    record = dict(zip(keys, (ASKED["content"], ANSWERED["content"]), strict=True))
    (example,) = tokenize(rows({**record, "system_prompt": "Be kind."}), tokenizer, 200)
    assert learnt(example, tokenizer) == "Jürgen 你好.<|im_end|>"
    assert tokenizer.decode(example["input_ids"]).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user")


def test_the_prompt_of_a_turn_is_that_of_a_generation(tokenizer, rows):
    tokenizer.chat_template = CHATML
    (example,) = tokenize(rows({"messages": [ASKED, ANSWERED]}), tokenizer, 200)
    asked = tokenizer.apply_chat_template([ASKED], add_generation_prompt=True, return_dict=True)["input_ids"]
    first = next(place for place, label in enumerate(example["labels"]) if label >= 0)
    assert example["input_ids"][:first] == asked


def test_conversations_are_cut_and_those_without_an_answer_left_out(tokenizer, rows):
    tokenizer.chat_template = CHATML
    long = {"messages": [{"role": "user", "content": "Wie heißt du? " * 40}, ANSWERED]}
    examples = tokenize(rows({"messages": TALK}, long), tokenizer, 50)
    assert [len(ids) for ids in examples["input_ids"]] == [50]
    with pytest.raises(DataError, match="in no conversation of the text does the assistant say anything within"):
        tokenize(rows(long), tokenizer, 50)


def test_without_a_template_the_remedy_is_named(rows):
    bare = train_bpe(["some text"], 300)
    with pytest.raises(
        ConfigurationError, match=r"no chat template .* save it with its chat_template set .*, or, where"
    ):
        tokenize(rows({"messages": TALK}), bare, 60)


def test_a_template_that_rewrites_the_beginning_is_refused(tokenizer, rows):
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(DataError, match="differently once more turns follow"):
        tokenize(rows({"messages": TALK}), tokenizer, 200)


def test_what_the_template_refuses_names_the_conversation(tokenizer, rows):
    tokenizer.chat_template = ALTERNATING
    with pytest.raises(DataError, match=r"cannot write the conversation that begins 'Be kind\.': .*users begin"):
        tokenize(rows({"messages": TALK}), tokenizer, 200)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": "hello"}, "field 'messages' of line 1 of .* is str; expected a list of messages"),
        ({"messages": [3]}, "message 1 of line 1 of .* is 3; expected an object with role and content"),
        ({"messages": [{"role": "user"}]}, "expected an object with role and content"),
        (
            {"messages": [{"role": "teacher", "content": "a"}]},
            "'role' of message 1 .* is 'teacher'; known: system, user",
        ),
        ({"messages": [{"role": ["user"], "content": "a"}]}, r"'role' of message 1 .* is \['user'\]"),
        ({"messages": [{**ASKED, "content": None}]}, "the content of message 1 .* is NoneType; expected text"),
        ({"messages": [{**ASKED, "content": [{"type": "image"}]}]}, "expected text \\(no images, no sound\\)"),
        ({"messages": [{**ASKED, "content": "\ud800"}]}, "half of a surrogate pair"),
        ({"messages": [ASKED]}, "has no turn of the assistant to learn from"),
        ({"prompt": [ASKED, ANSWERED], "completion": [ASKED]}, "has no turn of the assistant to learn from"),
        ({"prompt": [ASKED], "completion": "text"}, "field 'completion' of line 1 of .* is str"),
        ({"messages": TALK, "tools": [{"name": "f"}]}, "has 'tools': conversations with tool calls"),
        ({"messages": [ASKED, {**ANSWERED, "tool_calls": [1]}]}, "message 2 of .* has 'tool_calls'"),
        ({"question": "a", "context": "b", "answer": "c"}, "has a 'context' beside 'question' and 'answer'"),
        ({"messages": []}, "holds no text"),
    ],
)
def test_broken_conversations_are_explained(rows, record, message):
    with pytest.raises(DataError, match=message):
        rows(record)


def test_conversations_do_not_stand_beside_texts(rows):
    with pytest.raises(DataError, match="mixes plain texts and instruction records or conversations"):
        rows({"text": "a"}, {"messages": TALK})


def test_conversations_read_as_text_and_as_what_a_tokenizer_learns_from(tmp_path, rows):
    found = rows({"messages": [ASKED, ANSWERED]})
    said = [ASKED["content"], ANSWERED["content"]]
    assert Rows(found, None).texts() == said
    assert read_rows(str(tmp_path / "chat.jsonl"), as_text=True)["text"] == ["\n\n".join(said)]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_real_tokenizer(data_dir, rows, template):
    real = load_tokenizer(str(data_dir("tokenizers/qwen2")))
    real.chat_template = template
    (example,) = tokenize(rows({"messages": TALK}), real, 200)
    assert learnt(example, real) == "Jürgen 你好.<|im_end|>Bye.\n<|im_end|>"


def test_a_tokenizer_that_puts_a_space_first(data_dir, rows):
    llama = load_tokenizer(str(data_dir("tokenizers/llama2")))
    llama.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    (example,) = tokenize(rows({"messages": [ASKED, ANSWERED, ASKED, ANSWERED]}), llama, 200)
    assert example["input_ids"].count(llama.bos_token_id) == 1
    assert learnt(example, llama).count("Jürgen 你好. </s>") == 2
    assert "INST" not in learnt(example, llama)
