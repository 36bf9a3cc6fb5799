"""Calls of the command that cannot succeed, by kind, and the damaged files that they name.

`prepare` writes the files from two sound models and a text; `bad_calls` lists the command lines.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEEP = "[" * 100_000 + "]" * 100_000
LONG_NAME = "n" * 300
DIGITS = "1" * 6000

CONFIGS: dict[str, Any] = {
    "list": [],
    "number": 3,
    "null": None,
    "no_type": {"model_type": None},
    "type_list": {"model_type": ["gpt2"]},
    "type_unknown": {"model_type": "gtp2"},
    "hidden_text": {"n_embd": "sixteen"},
    "hidden_zero": {"n_embd": 0},
    "hidden_negative": {"n_embd": -16},
    "hidden_other": {"n_embd": 24},
    "hidden_list": {"n_embd": [16]},
    "hidden_null": {"n_embd": None},
    "hidden_float": {"n_embd": 16.5},
    "heads_zero": {"n_head": 0},
    "heads_odd": {"n_head": 3},
    "layers_negative": {"n_layer": -1},
    "layers_text": {"n_layer": "one"},
    "vocabulary_other": {"vocab_size": 100},
    "vocabulary_zero": {"vocab_size": 0},
    "vocabulary_negative": {"vocab_size": -272},
    "vocabulary_text": {"vocab_size": "272"},
    "vocabulary_null": {"vocab_size": None},
    "positions_text": {"n_positions": "64"},
    "positions_zero": {"n_positions": 0},
    "dtype_unknown": {"dtype": "float31", "torch_dtype": "float31"},
    "dtype_number": {"dtype": 3, "torch_dtype": 3},
    "activation_unknown": {"activation_function": "gelo"},
    "quantised_text": {"quantization_config": "int4"},
    "quantised_list": {"quantization_config": [1]},
    "quantised_package": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "quantised_empty": {"quantization_config": {"quant_method": "codehead"}},
}
"""What replaces config.json of a sound stock model, or is laid over it."""

ENTRIES: dict[str, Any] = {
    "bits_text": {"bits": "20"},
    "bits_negative": {"bits": -20},
    "bits_huge": {"bits": 10**12},
    "bits_null": {"bits": None},
    "head_list": {"head": ["linear"]},
    "head_unknown": {"head": "liner"},
    "options_text": {"head_options": "none"},
    "options_width": {"head_options": {"width": -3}},
    "classes_text": {"num_classes": "all"},
    "classes_negative": {"num_classes": -1},
    "decoder_number": {"decoder": 7},
    "rows_negative": {"dense_rows": -5},
    "rows_text": {"dense_rows": "some"},
    "rounded_text": {"rounded": "yes"},
    "checksum_number": {"checksum": 5},
    "params_list": {"params": [1]},
    "seed_text": {"seed": "a"},
    "loss_unknown": {"loss": "bitwize"},
}
"""What is laid over `quantization_config` of a sound coded model."""

MANIFESTS: dict[str, str] = {
    "list": "[]",
    "number": "3",
    "files_list": '{"files": [1]}',
    "files_text": '{"files": "model.safetensors"}',
    "files_null": '{"files": null}',
    "file_number": '{"files": {"model.safetensors": 3}}',
    "file_list": '{"files": {"model.safetensors": [1, 2]}}',
    "broken": "{",
    "deep": DEEP,
}
"""Contents of codehead.json."""

TOKENIZERS: dict[str, str] = {
    "list": "[]",
    "broken": "{",
    "empty": "{}",
    "model_unknown": '{"model": {"type": "none"}}',
    "deep": DEEP,
    "text": "no tokenizer",
}
"""Contents of tokenizer.json."""

TEXTS: dict[str, str | bytes] = {
    "latin.txt": b"caf\xe9 " * 40,
    "utf16.jsonl": '{"text": "a"}'.encode("utf-16"),
    "empty.txt": "",
    "blank.jsonl": "\n\n",
    "deep.json": DEEP,
    "deep.jsonl": DEEP,
    "deeper.jsonl": '{"text": ' * 50_000,
    "digits.jsonl": f'{{"text": {DIGITS}}}',
    "digits.json": f'[{{"text": {DIGITS}}}]',
    "cut.json": '[{"text": "a"},',
    "object.json": '{"text": "a"}',
    "numbers.jsonl": "1\n2",
    "null.jsonl": '{"text": null}',
    "surrogate.jsonl": '{"text": "\\ud800"}',
    "surrogate_key.jsonl": '{"\\ud800": "a"}',
    "nan.jsonl": "NaN",
    "fields.jsonl": '{"title": "a"}',
    "noise.parquet": b"PAR1" + bytes(range(256)) * 4 + b"PAR1",
    "short.parquet": b"PA",
    "none.parquet": b"",
    "table.csv": "a,b\n1,2",
    "nothing": "a",
    "roles.jsonl": '{"messages": [{"role": "teacher", "content": "a"}]}',
    "messages_text.jsonl": '{"messages": "hello"}',
    "messages_empty.jsonl": '{"messages": []}',
    "messages_numbers.jsonl": '{"messages": [1, 2]}',
    "messages_content.jsonl": '{"messages": [{"role": "user", "content": 3}]}',
    "messages_keys.jsonl": '{"messages": [{"role": "user"}]}',
    "messages_image.jsonl": '{"messages": [{"role": "user", "content": [{"type": "image", "url": "a"}]}]}',
    "silent.jsonl": '{"messages": [{"role": "user", "content": "a"}]}',
    "chat.jsonl": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    "mixed_prompt.jsonl": '{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}',
}
"""Data files that cannot be used (the last ones by a tokenizer without a chat template)."""

YAMLS: dict[str, str | bytes] = {
    "list.yaml": "- a",
    "number.yaml": "3",
    "empty.yaml": "",
    "tab.yaml": "model:\n\t- a",
    "latin.yaml": b"model: caf\xe9",
    "bytes.yaml": bytes(range(256)),
    "deep.yaml": "a: " + "[" * 3_000 + "]" * 3_000,
    "flow.yaml": "a: " + "{a: " * 3_000,
    "number_key.yaml": "3: a\nmodel: m",
    "null_key.yaml": "null: a\nmodel: m",
    "list_key.yaml": "? [a, b]\n: c",
    "map_key.yaml": "? {a: b}\n: c",
    "date_key.yaml": "2020-01-01: a",
    "tag.yaml": "!!python/object/apply:os.system ['true']",
    "alias.yaml": "a: *none",
    "recursive.yaml": "data: &a\n  train: *a\n",
    "recursive_list.yaml": "model: &a [*a]\n",
    "digits.yaml": f"seed: {DIGITS}",
    "twice.yaml": "a: 1\na: 2",
    "bad_date.yaml": "model: 2020-13-45",
    "binary.yaml": "model: !!binary a",
    "set.yaml": "data: !!set {a, b}",
    "merge.yaml": "<<: 3\nmodel: a",
    "merge_list.yaml": "<<: [1, 2]",
    "block_key.yaml": "data:\n  3: a",
    "training_key.yaml": "model: m\noutput_dir: o\ndata: {train: a.txt}\ntraining: {3: a}",
    "training_list.yaml": "model: m\noutput_dir: o\ndata: {train: a.txt}\ntraining: [a]",
    "decision_key.yaml": "model: m\noutput_dir: o\ndata: {train: a.txt}\ndecision: {null: a}",
}
"""Configurations that cannot be read."""

SETTINGS = (
    "model=[a]", "model=3", "model={{model_type: [gpt2]}}", "model={{1: 2}}", "model=null", "output_dir=[a]",
    "output_dir={{}}", "tokenizer=[a]", "tokenizer=''", "tokenizer={{train: [bpe]}}", "data=[a]", "data.train=[]",
    "data.train=3", "data.train=[3]", "data.train=[[a]]", "data.train={{a: b}}", "data.validation=[a]",
    "data.validation=''", "data.train=''", "data.subset=3", "data.text_field=[a]", "data.block_size=-5",
    "data.block_size=1e9", "data.block_size=0", "data.block_size=[16]", "data.block_size=99999999999999999999999",
    "data.max_documents=0", "data.max_documents=-1", "data.validation_fraction=.nan", "data.validation_fraction=-0.1",
    "data.validation_fraction=2", "data.validation_fraction=true", "data.max_documents=99999999999999999999999",
    "adapt=[lora]", "adapt={{}}", "adapt=3", "dtype=[float32]", "dtype={{}}", "dtype=3", "dtype=null",
    "seed=4294967296", "seed=99999999999999999999999999", "seed=-1", "seed=1.5", "seed=null", "seed=[1]", "seed=.inf",
    "seed=18446744073709551615", "lora.r=-8", "lora.r=0", "lora.r=1000000000000", "lora.alpha=.nan", "lora.alpha=.inf",
    "lora.alpha=-.inf", "lora.dropout=.nan", "lora.dropout=1", "lora.target_modules=[3]", "lora.target_modules=[]",
    "lora.target_modules=''", "lora.target_modules='('", "lora.target_modules=none_such", "lora=3", "decision=3",
    "decision.code=[a]", "decision.code={{}}", "decision.code=''", "decision.bits=-3", "decision.bits=1000000000000",
    "decision.bits=abc", "decision.bits=.nan", "decision.head=[linear]", "decision.head={{}}", "decision.loss=[a]",
    "decision.loss=3", "decision.decoder=[a]", "decision.decoder={{}}", "decision.seed=-1", "decision.seed=abc",
    "decision.seed=99999999999999999999999", "decision.seed=1.5", "decision.dense_rows=-3", "decision.dense_rows=abc",
    "decision.dense_rows=1000000000000", "decision.code_params={{3: 4}}", "decision.head_params={{null: 4}}",
    "decision.head_params=[a]", "decision.width=-1", "decision.start=[a]", "decision.token_bias=abc",
    "decision.assignment=[a]", "training=3", "training.learning_rate=.nan", "training.learning_rate=.inf",
    "training.learning_rate=-1", "training.learning_rate=[1]", "training.weight_decay=.nan",
    "training.weight_decay=-.inf", "training.adam_beta1=2", "training.adam_beta1=.nan", "training.adam_epsilon=-1",
    "training.adam_epsilon=.nan", "training.max_grad_norm=.nan", "training.warmup_steps=-5",
    "training.warmup_steps=.nan", "training.lr_scheduler_type=[a]", "training.lr_scheduler_type=bogus",
    "training.optim=bogus", "training.optim=[a]", "training.num_train_epochs=.nan", "training.num_train_epochs=.inf",
    "training.per_device_train_batch_size=-1", "training.per_device_train_batch_size=0",
    "training.per_device_train_batch_size=1000000000000000000000000", "training.dataloader_num_workers=-1",
    "training.save_steps=-1", "training.save_steps=0", "training.save_steps=.nan", "training.logging_steps=0",
    "training.logging_steps=-3", "training.save_strategy=bogus", "training.save_strategy=[a]",
    "training.report_to=bogus", "training.report_to=[3]", "training.report_to=wandb", "training.data_seed=-1",
    "training.data_seed=99999999999999999999999", "training.fsdp=bogus", "training.deepspeed=none.json", "training.3=4",
    "training.gradient_accumulation_steps=0", "training.lr_scheduler_kwargs={{a: 1}}",
    "training.lr_scheduler_kwargs=[1]", "training.accelerator_config=3", "training.resume_from_checkpoint=x",
    "training.save_total_limit=-2", "training.max_steps=99999999999999999999999", "training.metric_for_best_model=[a]",
    "training.load_best_model_at_end=true", "training.local_rank=abc", "calibrate=3", "calibrate={{tokens: .nan}}",
    "distil=3", "distil.steps=-1", "head_learning_rate=.nan", "head_learning_rate=-1", "head_learning_rate=[1]",
    "int8=1", "int4=abc", "packed=1", "a=1", "=1", "model", "a.b.c=1", "..=1", "data..train=1", "data.=1",
    "data.train.x=1",
)  # fmt: skip
"""Assignments after --set that no fine-tuning takes."""

NEW_MODELS = (
    "{{model_type: gpt2, n_embd: 0}}", "{{model_type: gpt2, n_embd: -4}}", "{{model_type: gpt2, n_embd: a}}",
    "{{model_type: gpt2, n_embd: 15, n_head: 2}}", "{{model_type: gpt2, n_head: 0}}",
    "{{model_type: gpt2, n_layer: -1}}", "{{model_type: gpt2, vocab_size: -1}}",
    "{{model_type: gpt2, vocab_size: [3]}}", "{{model_type: gpt2, dtype: float31}}",
    "{{model_type: gpt2, n_embd: 1000000000000000}}", "{{model_type: gpt2, n_embd: .nan}}", "{{model_type: 3}}",
    "{{model_type: gpt2, 3: 4}}", "{{model_type: [gpt2]}}", "{{model_type: gpt2, n_layer: [1]}}",
    "{{model_type: gpt2, resid_pdrop: 3}}", "{{model_type: gpt2, resid_pdrop: .nan}}",
    "{{model_type: gpt2, activation_function: gelo}}", "{{model_type: gpt2, n_positions: -1}}", "{{model_type: vit}}",
    "{{model_type: null}}", "{{}}",
)  # fmt: skip
"""Architectures that cannot be built."""

NEW_TOKENIZERS = (
    "{{train: bpe, vocab_size: 1000000000000}}", "{{train: bpe, vocab_size: 99999999999999999999999}}",
    "{{train: bpe, vocab_size: -1}}", "{{train: bpe, vocab_size: .nan}}", "{{train: bpe, vocab_size: [300]}}",
    "{{train: bpe}}", "{{train: [bpe], vocab_size: 300}}", "{{3: 4}}", "{{vocab_size: 300}}", "{{train: bpe, size: 3}}",
    "{here}/none_such", "{here}/file", "''",
)  # fmt: skip
"""Tokenizers that cannot be trained or loaded."""

LINES = (
    # paths
    "attach {model} --out ''", "convert {model} --data {text} --out ''", "calibrate {coded} --data {text} --out ''",
    "finetune --model {model} --train {text} --out ''", "code gray --classes 4 --out ''", "demo --out ''",
    "evaluate {model} --data {text} --out ''", "evaluate {model} --data ''", "evaluate '' --data {text}",
    "generate '' --prompt a", "params ''", "recommend '' --budget 5%", "attach '' --out {here}/new",
    "finetune --config '' --out {here}/new", "protocol run '' --out {here}/new", "protocol report ''",
    "protocol run small-1 --out ''", "protocol embed ''", "evaluate {model} --data {text} --tokenizer ''",
    "generate {model} --prompt a --tokenizer ''", "finetune --model '' --train {text} --out {here}/new",
    "finetune --model {model} --train '' --out {here}/new", "attach {model} --code '' --out {here}/new",
    "evaluate {model} --data {text} --encoder ''", "evaluate {model} --tasks ''", "protocol report {here} --to ''",
    "finetune --model {model} --train {text} --tokenizer '' --out {here}/new", "attach {model} --out /proc/new",
    "convert {model} --data {text} --out /proc/new --budget 50%", "code gray --classes 4 --out /proc/new",
    "code gray --classes 4 --out /proc/new/deep/code.safetensors",
    "evaluate {model} --data {text} --repeats 0 --out /proc/new", "demo --out /proc/new",
    "finetune --model {model} --train {text} --block-size 16 --max-steps 1 --out /proc/new",
    "calibrate {coded} --data {text} --out /proc/new", "protocol run small-1 --out /proc/new",
    "attach {model} --out {here}/{long}", "code gray --classes 4 --out {here}/{long}",
    "evaluate {model} --data {text} --repeats 0 --out {here}/{long}", "demo --out {here}/{long}",
    "finetune --model {model} --train {text} --block-size 16 --max-steps 1 --out {here}/{long}",
    "convert {model} --data {text} --out {here}/{long}", "evaluate {model} --data {here}/{long}.txt",
    "evaluate {long} --data {text}", "params {long}", "finetune --config {here}/{long} --out {here}/new",
    "protocol run {here}/{long}.yaml", "protocol report {here}/{long}", "protocol embed {here}/{long}",
    "generate {model} --prompt a --tokenizer {long}",
    "attach {model} --code {here}/{long}.safetensors --out {here}/new", "evaluate {model} --data {here}",
    "evaluate {model} --data {here}/none.txt", "evaluate {here}/file --data {text}", "evaluate {text} --data {text}",
    "params {text}", "params {here}", "attach {here} --out {here}/new", "protocol embed {here}",
    "protocol embed {here}/none.md", "protocol embed {here}/file.bin", "protocol report {here}",
    "protocol report {here}/none", "protocol run none_such", "protocol run {here}", "protocol run {text}",
    "finetune --config {here}/none.yaml", "attach {model} --code {here} --out {here}/new",
    "attach {model} --code {text} --out {here}/new", "attach {model} --code {weights} --out {here}/new",
    "attach {model} --out {here}/file", "evaluate {model} --data {text} --tokenizer {here}",
    "evaluate {model} --data {text} --tokenizer {here}/none", "evaluate {model} --data {text} --encoder {here}",
    "evaluate {model} --tasks {text}", "evaluate {model} --tasks none_such_task",
    # FIFOs and devices
    "evaluate {model} --data {here}/fifo.txt", "evaluate {model} --data {here}/fifo.parquet",
    "finetune --config {here}/fifo.yaml", "finetune --model {model} --train {here}/fifo.jsonl --out {here}/new",
    "params {here}/fifo.json", "evaluate {here}/model_fifo --data {text}", "protocol run {here}/fifo.yaml",
    "protocol embed {here}/fifo.md", "attach {model} --code {here}/fifo.safetensors --out {here}/new",
    "evaluate {here}/weights_fifo --data {text}", "evaluate {model} --data {text} --tokenizer {here}/tokenizer_fifo",
    "evaluate {model} --data {here}/zero.txt", "recommend {here}/fifo.json --budget 5%",
    # shares, speeds, numbers
    "recommend {model} --budget ٥%", "recommend {model} --budget 1_0%", "recommend {model} --budget ' 5%'",
    "recommend {model} --budget '5 %'", "recommend {model} --budget nan", "recommend {model} --budget inf",
    "recommend {model} --budget -5%", "recommend {model} --budget 0%", "recommend {model} --budget 200%",
    "recommend {model} --budget 5%%", "recommend {model} --budget %", "recommend {model} --budget ''",
    "recommend {model} --budget 0x5", "recommend {model} --speed ٤x", "recommend {model} --speed 4xx",
    "recommend {model} --speed nan", "recommend {model} --speed infx", "recommend {model} --speed 1e400",
    "recommend {model} --speed ''", "recommend {model} --speed 1_0x", "recommend {model} --bits 0",
    "recommend {model} --bits -4", "recommend {model} --bits 1000000000000", "recommend {model}",
    "recommend {model} --bits 8 --budget 5%", "convert {model} --data {text} --out {here}/new --budget ٥%",
    "finetune --model {model} --train {text} --out {here}/new --budget 1_0%", "params --hidden-size 0 --vocab-size 5",
    "params --hidden-size 5", "params --hidden-size a --vocab-size 5", "code gray --classes 0",
    "code gray --classes -1", "code gray --classes 1", "code gray --classes 99999999999999999999999",
    "code none_such --classes 4", "code minrandom --classes 4 --bits -1", "code minrandom --classes 4 --bits 0",
    "code minrandom --classes 4 --seed -1", "code minrandom --classes 4 --bits 1000000000000000",
    "code minrandom --classes 4 --param a=b", "code minrandom --classes 4 --param a", "code one_vs_one --classes 50000",
    "code minrandom --classes 4 --param 3=4", "code '' --classes 4", "code gray --classes 4 --param num_classes=3",
    "attach {model} --bits 20 --seed -1 --out {here}/new", "attach {model} --bits -1 --out {here}/new",
    "attach {model} --bits 1000000000000 --out {here}/new", "attach {model} --head none --out {here}/new",
    "attach {model} --head mtl --width -1 --out {here}/new",
    "attach {model} --head mtl --head-param activation=3 --out {here}/new", "attach {model} --loss 3 --out {here}/new",
    "attach {model} --decoder '' --out {here}/new", "attach {model} --start none --out {here}/new",
    "attach {model} --bits 20 --seed 99999999999999999999999 --out {here}/new", "attach {coded} --out {here}/new",
    "attach {model} --head-param hidden_size=3 --out {here}/new", "attach {model} --param bits=3 --out {here}/new",
    "generate {model} --prompt a --max-new-tokens 0", "generate {model} --prompt a --temperature nan",
    "generate {model} --prompt a --temperature inf", "generate {model} --prompt a --temperature -1",
    "generate {model} --prompt a --top-p 2", "generate {model} --prompt a --top-p nan --temperature 1",
    "generate {model} --prompt a --top-k 0", "generate {model} --prompt a --max-new-tokens 1000000000000",
    "generate {model} --prompt a --num-beams 0", "generate {model} --prompt ''", "generate {model}",
    "generate {model} --prompt a --seed 99999999999999999999999 --temperature 1", "generate none_such --prompt a",
    "generate {model} --prompt a\udcff", "generate {model} --prompt \udcff",
    "evaluate {model} --data {text} --batch-size 0", "evaluate {model} --data {text} --block-size 1",
    "evaluate {model} --data {text} --block-size 1000000000000", "evaluate {model} --data {text} --decoder bogus",
    "evaluate {model} --data {text} --max-documents 0", "evaluate {model} --data {text} --text-field a",
    "evaluate {model} --data {text} --tasks a", "evaluate {model}", "evaluate {model} --data {text} --limit 3",
    "evaluate none_such --data {text}", "evaluate a/b/c --data {text}", "evaluate 'a b' --data {text}",
    "evaluate {model} --data none_such", "evaluate {model} --data a/b:train[", "evaluate {model}\udcff --data {text}",
    "evaluate {model} --data {text}\udcff", "attach {model} --out {here}/file/\udcff", "params \udcff",
    "recommend \udcff --budget 5%", "protocol embed {here}/\udcff", "finetune --config {here}/\udcff",
    "calibrate {model} --data {text} --out {here}/new", "calibrate {coded} --data {text} --tokens 0 --out {here}/new",
    "calibrate {coded} --data {text} --seed -1 --out {here}/new", "calibrate none --data {text} --out {here}/new",
    "fold {model} --out {here}/new", "fold {model} --data {text} --out {here}/new", "fold none --out {here}/new",
    "fold {coded} --out {here}", "fold {coded} --data none.txt --out {here}/new", "fold {coded} --out ''",
    "fold {coded} --data {text} --batch-size 0 --out {here}/new", "fold {coded} --out /proc/new",
    "convert {coded} --data {text} --out {here}/new", "convert {model} --data {text} --steps 0 --out {here}/new",
    "convert {model} --data {text} --seed 4294967296 --out {here}/new", "convert none --data {text} --out {here}/new",
    "convert {model} --data {text} --dtype float31 --out {here}/new",
    "convert {model} --data none.txt --out {here}/new", "convert {model} --data {text} --seed -1 --out {here}/new",
    "demo --seed -1", "none_such", "protocol none_such", "convert {model} --data {text} --set a --out {here}/new",
    "protocol run small-1 --jobs 0 --out {here}/new",
)  # fmt: skip
"""Command lines of every other kind."""

FINETUNE = "finetune --model {model} --train {text} --block-size 16 --max-steps 1 --out {here}/new"
PRETRAIN = "pretrain --train {text} --block-size 16 --max-steps 1 --out {here}/new"
SMALL = "{{model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2, n_positions: 64}}"
TABLE = {"long": LONG_NAME}


def bad_calls() -> dict[str, list[str]]:
    """Kind → command lines: '…' stands around words that hold spaces, `{here}` and others for places."""
    settings = [f"{FINETUNE} --set '{setting.replace(chr(39), chr(34))}'" for setting in SETTINGS]
    models = [f"{PRETRAIN} --tokenizer {{model}} --model '{model}'" for model in NEW_MODELS]
    tokenizers = [f"{PRETRAIN} --model '{SMALL}' --tokenizer {_quoted(name)}" for name in NEW_TOKENIZERS]
    return {
        "config": [f"evaluate {{here}}/config_{name} --data {{text}} --repeats 0" for name in CONFIGS]
        + [f"params {{here}}/config_{name}" for name in ("list", "number", "null", "hidden_text", "hidden_zero")],
        "entry": [f"evaluate {{here}}/entry_{name} --data {{text}} --repeats 0" for name in ENTRIES],
        "manifest": [f"evaluate {{here}}/manifest_{name} --data {{text}} --repeats 0" for name in MANIFESTS],
        "tokenizer": [f"evaluate {{model}} --data {{text}} --tokenizer {{here}}/tokenizer_{n}" for n in TOKENIZERS]
        + tokenizers,
        "weights": [f"evaluate {{here}}/weights_{name} --data {{text}} --repeats 0" for name in WEIGHTS],
        "data": [f"evaluate {{model}} --data {{here}}/{name} --repeats 0" for name in [*TEXTS, *TABLES]],
        "yaml": [f"finetune --config {{here}}/{name} --out {{here}}/new" for name in YAMLS]
        + [f"protocol run {{here}}/{name} --out {{here}}/new" for name in YAMLS],
        "setting": settings + models,
        "line": list(LINES),
    }


def _quoted(word: str) -> str:
    return word if word.startswith(("'", "{here}")) else f"'{word}'"


def prepare(here: Path, model: Path, coded: Path) -> None:
    """Write the files that the calls name into `here`, from a sound stock model and a sound coded one."""
    for name, changes in CONFIGS.items():
        _edit(shutil.copytree(model, here / f"config_{name}"), lambda old, new=changes: _laid_over(old, new))
    for name, changes in ENTRIES.items():
        copy = shutil.copytree(coded, here / f"entry_{name}")
        _edit(copy, lambda old, new=changes: {**old, "quantization_config": {**old["quantization_config"], **new}})
    for name, text in MANIFESTS.items():
        (shutil.copytree(coded, here / f"manifest_{name}") / "codehead.json").write_text(text)
    for name, text in TOKENIZERS.items():
        (shutil.copytree(model, here / f"tokenizer_{name}") / "tokenizer.json").write_text(text)
    for name, change in WEIGHTS.items():
        path = shutil.copytree(model, here / f"weights_{name}") / "model.safetensors"
        change(path)
    for name, content in {**TEXTS, **YAMLS, "file": "not a folder", "file.bin": bytes(range(128, 256))}.items():
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, write in TABLES.items():
        write(here / name)
    for suffix in ("txt", "parquet", "yaml", "jsonl", "json", "md", "safetensors"):
        os.mkfifo(here / f"fifo.{suffix}")
    (here / "zero.txt").symlink_to("/dev/zero")
    for name in ("config.json", "tokenizer.json"):
        path = shutil.copytree(model, here / {"config.json": "model_fifo"}.get(name, "tokenizer_fifo")) / name
        path.unlink()
        os.mkfifo(path)


def _laid_over(old: dict[str, Any], new: Any) -> Any:
    return {**old, **new} if isinstance(new, dict) else new


def _edit(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of the JSON header of a safetensors file."""

    def write(path: Path) -> None:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])

    return write


def _each(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: {key: {**entry, **changes} if "shape" in entry else entry for key, entry in header.items()}


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "huge_header": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "list": _header(lambda header: []),
    "dtype": _header(_each(dtype="F31")),
    "dtype_number": _header(_each(dtype=3)),
    "shape_text": _header(_each(shape="all")),
    "shape_negative": _header(_each(shape=[-1])),
    "offsets": _header(_each(data_offsets=[0, 4])),
    "offsets_text": _header(_each(data_offsets="all")),
    "metadata": _header(lambda header: {**header, "__metadata__": {"format": 3}}),
    "metadata_list": _header(lambda header: {**header, "__metadata__": [1]}),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "fifo": _fifo,
}
"""Damage to model.safetensors."""


def _parquet(
    columns: dict[str, Any], damage: Callable[[bytes], bytes] = bytes, **options: Any
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path, **options)
        path.write_bytes(damage(path.read_bytes()))

    return write


def _latin(path: Path) -> None:
    """A column that says it is text and is not UTF-8."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    offsets, text = pa.array([0, 4], pa.int32()).buffers()[1], pa.py_buffer(b"caf\xe9")
    pq.write_table(pa.table({"text": pa.StringArray.from_buffers(1, offsets, text)}), path)


TABLES: dict[str, Callable[[Path], None]] = {
    "latin.parquet": _latin,
    "cut.parquet": _parquet({"text": ["some text"] * 500}, lambda content: content[: len(content) // 2]),
    "page.parquet": _parquet(
        {"text": [f"text {n}" for n in range(500)]},
        lambda content: content[:100] + bytes(400) + content[500:],
        compression="snappy",
    ),
    "page_plain.parquet": _parquet(
        {"text": [f"text {n}" for n in range(500)]},
        lambda content: content[:4] + b"\xff" * 300 + content[304:],
        compression="none",
        use_dictionary=False,
    ),
    "numbers.parquet": _parquet({"text": [1, 2]}),
    "rows.parquet": _parquet({"text": []}),
}
"""Parquet files that cannot be used."""


def words(line: str, places: dict[str, Any]) -> Iterator[str]:
    """The words of a line; what stands in '…' may hold spaces."""
    for number, part in enumerate(line.split("'")):
        for word in [part] if number % 2 else part.split():
            yield word.format(**places, **TABLE)
