from __future__ import annotations

import dataclasses
import errno
import inspect
import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, TrainerState, TrainingArguments

from codehead.cli.finetune import finetune
from codehead.cli.options import KEYS
from codehead.cli.pretrain import pretrain
from codehead.errors import CheckpointError, ConfigurationError
from codehead.evaluation.answers import generate_answers
from codehead.evaluation.bertscore import bert_score
from codehead.evaluation.encoder import find_encoder
from codehead.evaluation.result import Result
from codehead.models import is_coded
from codehead.training import progress
from codehead.training.config import DECISION_KEYS, RunConfig
from codehead.training.model import load_model
from codehead.training.sources import read_rows
from codehead.training.tokenizer import load_tokenizer, train_bpe

TEXT = "The cat sat on the mat.\n\nThe dog ran to the park.\n\n" * 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text(TEXT)
    tokenizer = train_bpe([TEXT], 270)
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, vocab_size=272, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config.n_positions = 32
    GPT2LMHeadModel(config).save_pretrained(folder / "short")
    tokenizer.save_pretrained(folder / "short")
    tokenizer.add_tokens([f"<{number}>" for number in range(279 - len(tokenizer))])
    tokenizer.save_pretrained(folder / "large")
    return folder


def test_the_command_line_is_light():
    heavy = "torch transformers datasets peft matplotlib accelerate".split()  # noqa: SIM905
    script = f"import sys, codehead.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_names_every_command(codehead):
    status, out, _ = codehead("--help")
    assert status == 0
    for name in ("params", "attach", "pretrain", "finetune", "evaluate", "generate", "code", "demo"):
        assert name in out


# --- params


def test_params_of_the_paper(codehead):
    status, out, _ = codehead("params", "--hidden-size", 2048, "--vocab-size", 50272)
    assert status == 0
    for number in ("102,957,056", "32,768", "102,400", "16,785,408", "52,454,400"):
        assert number in out
    assert "(16, 512)" in out


def test_params_of_a_model_and_of_its_config_file(codehead, place):
    _, from_folder, _ = codehead("params", place / "model", "--json")
    _, from_file, _ = codehead("params", place / "model" / "config.json", "--json")
    values = json.loads(from_folder)
    assert values == json.loads(from_file)
    assert (values["hidden_size"], values["vocab_size"], values["tied"]) == (16, 272, True)
    assert values["configurations"][0]["head_parameters"] == 16 * 272
    assert "embedding, which stays" in " ".join(codehead("params", place / "model")[1].split())


def test_params_want_one_source(codehead, place):
    assert codehead("params")[0] == 2
    status, _, err = codehead("params", place / "model", "--hidden-size", 3)
    assert status == 2
    assert "either a model, or both" in err


# --- attach, evaluate, generate


@pytest.fixture(scope="module")
def coded(place):
    from codehead.cli.attach import attach

    attach(str(place / "model"), place / "coded", bits=20)
    return place / "coded"


def test_attach_saves_a_coded_checkpoint(coded):
    model = load_model(str(coded))
    assert is_coded(model)
    assert model.decision.table.length == 20


def test_attach_passes_options_of_code_and_head(codehead, place, tmp_path):
    options = ("--bits", 20, "--param", "candidates=2", "--head-param", "bias=true")
    status, _, err = codehead("attach", place / "model", "--out", tmp_path / "out", *options)
    assert status == 0, err
    model = load_model(str(tmp_path / "out"))
    assert model.get_output_embeddings().bias is not None
    assert model.config.quantization_config["params"]["candidates"] == 2


def test_attach_does_not_write_over_files(codehead, place, coded):
    status, _, err = codehead("attach", place / "model", "--out", coded)
    assert status == 2
    assert "is not empty" in err


def test_evaluate_prints_and_writes(codehead, place, coded, tmp_path):
    file = tmp_path / "result.json"
    arguments = ("--data", place / "text.txt", "--block-size", 16, "--repeats", 1, "--new-tokens", 2)
    status, out, err = codehead("evaluate", coded, *arguments, "--out", file)
    assert status == 0, err
    assert "bits per byte" in out
    assert "%  evaluating, 0:00:00 elapsed" in err
    result = Result.read(file)
    assert result.metrics["generation"]["new_tokens"] == 2
    assert result.metrics["size"]["head_parameters"] == 16 * 20
    assert result.config["decision"]["design"] == "minrandom"
    assert result.provenance["data"] == [
        {"name": "text.txt", "bytes": len(TEXT), "sha256": result.provenance["data"][0]["sha256"]}
    ]
    assert str(place) not in file.read_text()
    file.write_text(file.read_text().replace('"top1": 0', '"top1": 1'))
    with pytest.raises(CheckpointError, match="edited by hand"):
        Result.read(file)
    assert codehead("evaluate", coded, *arguments, "--out", file)[0] == 2
    assert codehead("evaluate", coded, *arguments, "--out", file, "--overwrite")[0] == 0
    assert Result.read(file).metrics["top1"] == result.metrics["top1"]


def test_evaluate_a_stock_model_as_json(codehead, place):
    arguments = ("--data", place / "text.txt", "--block-size", 16, "--repeats", 0, "--json")
    status, out, _ = codehead("evaluate", place / "model", *arguments)
    metrics = json.loads(out)["metrics"]
    assert status == 0
    assert metrics["node_loss"] is None
    assert "generation" not in metrics
    assert metrics["perplexity"] == pytest.approx(272, rel=0.1)


def test_packed_codewords_give_the_same_figures_from_fewer_bytes(codehead, place, coded):
    arguments = ("--data", place / "text.txt", "--block-size", 16, "--repeats", 0, "--json")
    plain, packed = (
        json.loads(codehead("evaluate", coded, *arguments, *flag)[1])["metrics"] for flag in ((), ("--packed",))
    )
    assert packed["top1"] == plain["top1"]
    assert packed["perplexity"] == pytest.approx(plain["perplexity"], rel=1e-5)
    assert packed["size"]["bytes_resident"] == packed["size"]["bytes_stored"] == plain["size"]["bytes_stored"]
    assert continuation(codehead, coded, "--packed") == continuation(codehead, coded)
    for command in (("evaluate", *arguments), ("generate", "--prompt", "The cat")):
        status, _, err = codehead(command[0], place / "model", *command[1:], "--packed")
        assert status == 2
        assert "has no codewords that could stay packed; leave --packed away" in " ".join(err.split())


def test_what_was_saved_packed_stays_so_unless_asked(codehead, place, coded, tmp_path):
    model = load_model(str(coded), packed=True)
    model.save_pretrained(tmp_path / "packed")
    load_tokenizer(str(coded)).save_pretrained(tmp_path / "packed")
    assert load_model(str(tmp_path / "packed")).decision.packed
    assert not load_model(str(tmp_path / "packed"), packed=False).decision.packed
    arguments = ("--data", place / "text.txt", "--block-size", 16, "--repeats", 0, "--json")
    found = [
        json.loads(codehead("evaluate", tmp_path / "packed", *arguments, *flag)[1]) for flag in ((), ("--unpacked",))
    ]
    assert [result["config"]["packed"] for result in found] == [True, False]
    stored, resident = (
        tuple(result["metrics"]["size"][f"bytes_{kind}"] for result in found) for kind in ("stored", "resident")
    )
    assert stored[0] == stored[1] == resident[0] < resident[1]


def test_evaluate_takes_what_the_model_has_positions_for(codehead, place):
    arguments = ("--data", place / "text.txt", "--repeats", 1, "--json")
    status, out, err = codehead("evaluate", place / "short", *arguments)
    assert status == 0, err
    assert json.loads(out)["config"]["block_size"] == 32
    assert json.loads(out)["metrics"]["generation"]["new_tokens"] == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--block-size", 65), "--block-size is 65, but the model takes at most 64 tokens"),
        (("evaluate", "--new-tokens", 57), "a prompt of 8 with --new-tokens 57 is 65, but the model takes at most 64"),
        (("evaluate", "--tokenizer", "large"), "the tokenizer has 279 entries but the model only 272"),
        (("generate", "--max-new-tokens", 63), "--max-new-tokens 63 is 69, but the model takes at most 64 tokens"),
        (("generate", "--tokenizer", "large"), "the tokenizer has 279 entries but the model only 272"),
    ],
)
def test_what_a_model_has_no_room_for_is_told(codehead, place, arguments, message):
    command, option, value = arguments
    value = place / value if value == "large" else value
    rest = ("--data", place / "text.txt") if command == "evaluate" else ("--prompt", "The cat sat")
    status, out, err = codehead(command, place / "model", *rest, option, value)
    assert (status, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("decoder", "message"), [("nonsense", "unknown decoder 'nonsense'"), ("hamming", "leave the decoder away")]
)
def test_a_stock_model_has_no_decoder(codehead, place, decoder, message):
    status, _, err = codehead("evaluate", place / "model", "--data", place / "text.txt", "--decoder", decoder)
    assert (status, message in err) == (2, True)


@pytest.fixture(scope="module")
def records(place):
    """Instruction records, the last too long for the model, and beside them an encoder with random weights."""
    prompts = ["The cat sat", "Where did the dog run?", "The dog", "Tell me of the mat", "The cat " * 30]
    lines = [json.dumps({"prompt": prompt, "completion": " on the mat."}) + "\n" for prompt in prompts]
    (place / "records.jsonl").write_text("".join(lines))
    tokenizer = train_bpe([TEXT], 270)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    around = [("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)]
    bracketed = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    tokenizer.backend_tokenizer.post_processor = bracketed
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **shape)).save_pretrained(place / "encoder")
    tokenizer.save_pretrained(place / "encoder")
    return place / "records.jsonl"


def test_evaluate_scores_answers(codehead, place, coded, records, tmp_path):
    encoder = ("--encoder", place / "encoder", "--encoder-layers", 1, "--answer-tokens", 4)
    arguments = ("--data", records, "--repeats", 0, "--batch-size", 2, *encoder)
    file = tmp_path / "result.json"
    status, out, err = codehead("evaluate", coded, *arguments, "--prompts", 3, "--out", file)
    assert status == 0, err
    assert "%  answering, " in err
    rows = read_rows(str(records), limit=3)
    found = generate_answers(load_model(str(coded)), load_tokenizer(str(coded)), rows, max_new_tokens=4, batch_size=2)
    scores = bert_score(found.answers, found.references, find_encoder(str(place / "encoder"), 1)).as_dict()
    assert Result.read(file).metrics["answers"] == {
        "prompts": 3,
        "skipped": 0,
        "new_tokens": 4,
        "batch_size": 2,
        "mean_new_tokens": sum(found.new_tokens) / 3,
        "bertscore": scores,
        "samples": found.samples(4),
    }
    assert str(place) not in file.read_text()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "│ answers │ 3 scored by encoder, layer 1 │" in lines
    for name, value in (("precision", scores["precision"]), ("recall", scores["recall"]), ("F1", scores["f1"])):
        assert f"│ BERTScore {name} │ {value:.4f} │" in lines
    status, out, err = codehead("evaluate", coded, *arguments)
    assert status == 0, err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "│ answers │ 4 scored by encoder, layer 1 │" in lines
    assert "│ records too long to answer │ 1 │" in lines


def test_evaluate_reads_records_as_text_if_asked(codehead, place, records, tmp_path):
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": "".join(row.values())}) + "\n" for row in rows))
    measured = {}
    for name, data in {"text": (text,), "as text": (records, "--as-text"), "records": (records,)}.items():
        status, out, err = codehead("evaluate", place / "model", "--data", *data, "--repeats", 0, "--json")
        assert status == 0, err
        measured[name] = json.loads(out)
    assert measured["as text"]["metrics"] == measured["text"]["metrics"]
    assert measured["as text"]["metrics"]["tokens"] != measured["records"]["metrics"]["tokens"]
    assert [measured[name]["config"]["as_text"] for name in ("as text", "records")] == [True, False]


def test_evaluate_without_an_encoder_answers_nothing(codehead, place, records):
    status, out, err = codehead("evaluate", place / "model", "--data", records, "--repeats", 0, "--json")
    assert status == 0, err
    assert "answers" not in json.loads(out)["metrics"]


ENCODER = "--encoder {encoder} --encoder-layers 1"
NO_ANSWERS = {
    f"{{model}} --data {{text}} {ENCODER}": "holds plain text, which asks for no answer; leave --encoder away",
    "none --data none --encoder {encoder} --as-text": "--as-text is True, but a text asks for no answer",
    "none --data none --encoder {here}": "has no config.json in its folder",
    "none --data none --encoder {encoder}": "layers is not given",
    "none --data none --encoder {encoder} --encoder-layers 3": "layers is 3, but encoder 'encoder' has 2",
    "none --data none --encoder-layers 1": "--encoder-layers is 1, but it belongs to --encoder; name one, or leave",
    "none --data none --prompts 3": "--prompts is 3, but it belongs to --encoder",
    "none --data none --answer-tokens 3": "--answer-tokens is 3, but it belongs to --encoder",
    "none --tasks none --encoder {encoder}": "', but it belongs to --data; with --tasks, leave it away",
    "none --tasks none --prompts 3": "--prompts is 3, but it belongs to --data",
}


@pytest.mark.parametrize("line", NO_ANSWERS)
def test_what_cannot_be_answered_or_scored_is_told_first(codehead, place, records, tmp_path, line):
    places = {"model": place / "model", "text": place / "text.txt", "encoder": place / "encoder", "here": tmp_path}
    status, out, err = codehead("evaluate", *(word.format(**places) for word in line.split()))
    assert (status, out) == (2, "")
    assert err.startswith("Error: ")
    assert NO_ANSWERS[line] in err


def test_answers_without_room_are_told_before_anything_is_measured(codehead, place, records, monkeypatch):
    def measured(*_, **__):
        raise AssertionError

    monkeypatch.setattr("codehead.evaluation.checkpoint.evaluate", measured)
    encoder = ("--encoder", place / "encoder", "--encoder-layers", 1, "--answer-tokens", 64)
    status, _, err = codehead("evaluate", place / "model", "--data", records, *encoder)
    assert status == 2
    assert "64 new tokens; lower max_new_tokens (--answer-tokens)" in err


def continuation(codehead, model, *options):
    status, out, err = codehead("generate", model, "--prompt", "The cat", "--max-new-tokens", 12, *options)
    assert status == 0, err
    assert out.startswith("The cat")
    assert out.endswith("\n")
    return out


def test_generate_samples_by_its_seed(codehead, coded):
    greedy = continuation(codehead, coded)
    assert continuation(codehead, coded, "--temperature", 0) == greedy
    texts = [continuation(codehead, coded, "--temperature", 2.0, "--seed", seed) for seed in (0, 1, 0)]
    assert texts[0] == texts[2]
    assert len({greedy, *texts}) == 3
    assert continuation(codehead, coded, "--temperature", 2.0, "--top-k", 1) == greedy


def test_generate_with_beams(codehead, coded):
    model, tokenizer = load_model(str(coded)).eval(), load_tokenizer(str(coded))
    inputs = tokenizer("The cat", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=12, num_beams=8, do_sample=False, pad_token_id=0)
    found = continuation(codehead, coded, "--num-beams", 8)
    assert found == tokenizer.decode(ids[0], skip_special_tokens=True) + "\n"
    assert found != continuation(codehead, coded)


def test_generate_needs_a_prompt(codehead, coded):
    status, _, err = codehead("generate", coded, "--prompt", "")
    assert status == 2
    assert "--prompt is empty" in err


# --- pretrain, finetune


def test_pretrain_from_flags_alone(codehead, place, tmp_path):
    status, _, err = codehead(
        "pretrain",
        *("--model", "{model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2, n_positions: 32}"),
        *("--tokenizer", "{train: bpe, vocab_size: 270}", "--train", place / "text.txt", "--block-size", 16),
        *("--code", "minimal", "--max-steps", 2, "--batch-size", 2, "--set", "training.warmup_steps=1"),
        *("--out", tmp_path / "run"),
    )
    assert status == 0, err
    assert load_model(str(tmp_path / "run")).decision.table.length == 9
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["training"] == {"max_steps": 2, "per_device_train_batch_size": 2, "warmup_steps": 1}


def test_finetune_with_a_file_and_flags_over_it(codehead, place, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {place / 'model'}\ndata: {{train: {place / 'text.txt'}, block_size: 16}}\n"
        f"decision: {{code: minrandom, bits: 20}}\noutput_dir: {tmp_path / 'run'}\ntraining: {{max_steps: 9}}\n"
    )
    status, _, err = codehead("finetune", "-c", file, "--max-steps", 1, "--bits", 24, "--adapt", "head")
    assert status == 0, err
    assert load_model(str(tmp_path / "run")).decision.table.length == 24
    status, _, err = codehead("finetune", "-c", file, "--max-steps", 1, "--bits", 24, "--adapt", "head")
    assert status == 2
    assert "finished" in err


def test_finetune_a_coded_model_with_another_loss_and_decoder(codehead, place, coded, tmp_path):
    out = tmp_path / "run"
    run = ("--train", place / "text.txt", "--out", out, "--block-size", 16, "--max-steps", 1, "--adapt", "head")
    status, _, err = codehead("finetune", "--model", coded, *run, "--loss", "codeword", "--decoder", "hamming")
    assert status == 0, err
    decision, before = load_model(str(out)).decision, load_model(str(coded)).decision
    assert (decision.loss_name, decision.decoder_name) == ("codeword", "hamming")
    assert torch.equal(decision.table.sign_plane, before.table.sign_plane)


def test_finetune_within_a_budget(codehead, place, tmp_path):
    run = ("--train", place / "text.txt", "--out", tmp_path / "run", "--max-steps", 2, "--block-size", 16)
    options = ("--set", "training.use_cpu=true", "--budget", "60%")
    status, _, err = codehead("finetune", "--model", place / "model", *run, *options)
    assert status == 0, err
    assert "% of the Softmax head's 8,704 in bf16" in " ".join(err.split())
    described = load_model(str(tmp_path / "run")).config.quantization_config
    assert described["rounded"] and described["design"] == "learned" and described["token_bias"] and described["packed"]
    plain = (*options, "--set", "packed=false", "--set", "int8=false", "--overwrite")
    assert codehead("finetune", "--model", place / "model", *run, *plain)[0] == 0
    described = load_model(str(tmp_path / "run")).config.quantization_config
    assert not described["packed"] and not described["rounded"]
    status, _, err = codehead("finetune", "--model", place / "model", *run, *options, "--bits", 20)
    assert status == 2 and "leave it away, or decision.bits" in " ".join(err.split())
    options = (*options, "--set", "distil.steps=3", "--overwrite")
    status, _, err = codehead("finetune", "--model", place / "model", *run, *options)
    assert status == 0, err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["distil"]["steps"] == 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.optim=foo", "transformers refuses"),
        ("training.lr_scheduler_type=foo", "transformers refuses"),
        ("training.logging_steps=0", "transformers refuses"),
        ("training.report_to=comet_ml", "transformers refuses"),
        ("training.per_device_train_batch_size=0", "give a whole number of at least 1"),
        ("training.gradient_accumulation_steps=0", "give a whole number of at least 1"),
        ("training.max_steps=0", "training.max_steps is 0"),
        ("training.max_steps=-5", "training.max_steps is -5"),
        ("training.num_train_epochs=0", "training.num_train_epochs is 0"),
        ("lora.target_modules=[foo]", "matches no module"),
        ("data.validation=SHORT", "the validation data has 3 tokens"),
    ],
)
def test_mistakes_are_told_before_anything_is_learnt(codehead, place, tmp_path, monkeypatch, setting, message):
    monkeypatch.setattr("codehead.training.model.fit_decision_layer", None)  # a call would fail
    (tmp_path / "short.jsonl").write_text('{"text": "ab"}')
    run = ("--train", place / "text.txt", "--out", tmp_path / "run", "--block-size", 16, "--budget", "60%")
    setting = setting.replace("SHORT", str(tmp_path / "short.jsonl"))
    status, _, err = codehead("finetune", "--model", place / "model", *run, "--set", setting)
    assert status == 2 and message in " ".join(err.split())


def test_a_mistake_does_not_lock_a_folder_that_was_to_be_overwritten(codehead, place, tmp_path, monkeypatch):
    run = ("--train", place / "text.txt", "--out", tmp_path / "run", "--max-steps", 1, "--block-size", 16)
    run = ("finetune", "--model", place / "model", *run, "--budget", "60%", "--set", "distil.steps=2")
    assert codehead(*run)[0] == 0
    monkeypatch.setattr("codehead.training.distil._check", refuse)
    assert codehead(*run, "--overwrite")[0] == 2
    monkeypatch.undo()
    status, _, err = codehead(*run, "--overwrite")
    assert status == 0, err


def refuse(*_):
    raise ConfigurationError("no")


def test_finetune_passes_options_of_code_and_head(codehead, place, tmp_path):
    out = tmp_path / "run"
    run = ("--train", place / "text.txt", "--out", out, "--block-size", 16, "--max-steps", 1, "--adapt", "head")
    options = ("--set", "decision.head_params={bias: true}", "--set", "decision.code_params.candidates=2")
    status, _, err = codehead("finetune", "--model", place / "model", *run, "--bits", 20, *options)
    assert status == 0, err
    model = load_model(str(out))
    assert model.get_output_embeddings().bias is not None
    assert model.config.quantization_config["params"]["candidates"] == 2


def test_each_training_command_refuses_the_other_kind(codehead, place, tmp_path):
    common = ("--train", place / "text.txt", "--out", tmp_path / "run")
    status, _, err = codehead("pretrain", "--model", place / "model", *common)
    assert (status, "use codehead finetune" in err) == (2, True)
    architecture = ("--model", "{model_type: gpt2}", "--tokenizer", place / "model")
    status, _, err = codehead("finetune", *architecture, *common)
    assert (status, "codehead pretrain" in err) == (2, True)


def test_every_flag_sets_a_key_that_exists():
    values = RunConfig.from_dict({"model": "m", "data": {"train": "t"}, "output_dir": "o"}).to_dict()
    for key in set(KEYS.values()):
        block, _, name = key.partition(".")
        assert block in values
        if block in ("data", "lora"):
            assert name in values[block]
    assert {key.partition(".")[2] for key in KEYS.values() if key.startswith("decision.")} <= set(DECISION_KEYS)
    training = {key.partition(".")[2] for key in KEYS.values() if key.startswith("training.")}
    assert training <= {field.name for field in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize(("command", "more"), [(pretrain, set()), (finetune, {"budget"})])
def test_every_flag_sets_a_key(command, more):
    others = {"context", "config", "assignments", "overwrite", *more}
    assert set(inspect.signature(command).parameters) - set(KEYS) == others


# --- how errors are told


def test_errors_are_one_message_without_traceback(codehead, place):
    status, out, err = codehead("evaluate", place / "model", "--data", place / "none.txt")
    assert (status, out) == (2, "")
    assert err.strip() == f"Error: data file '{place / 'none.txt'}' does not exist"


@pytest.fixture
def places(place, coded, tmp_path):
    """What the mistakes below need: a file, a folder, a model that is cut off; and the models of this module."""
    (tmp_path / "file").write_text("not a folder")
    shutil.copytree(place / "model", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return {"here": tmp_path, "model": place / "model", "coded": coded, "text": place / "text.txt"}


TRAIN = "--train {text} --out {here}/run"
MISTAKES = {
    f"finetune --model {{model}} {TRAIN} --set a=[1": "a is '[1', which is not valid YAML",
    f"pretrain --model {{{{model_type:gpt2 {TRAIN}": "model is '{model_type:gpt2', which is not valid YAML",
    "finetune --config {here}": "cannot be read",
    "attach {model} --out {here}/file": "is a file; name another folder",
    "finetune --model {model} --train {text} --out {here}/file": "is a file; name another folder",
    "finetune --model {model} --train {text} --out {here}/file/run": "is a file; name another folder",
    "demo --out {here}/file": "is a file; name another folder",
    "protocol run x.yaml --out {here}/file": "is a file; name another folder",
    "evaluate none --data none --out {here}": "is a folder; name a file in it",
    "evaluate none --data none --out {here}/file": "exists already; choose another file or use --overwrite",
    "code gray --classes 4 --out {here}": "is a folder; name a file in it",
    f"finetune --model {{model}} {TRAIN} --set training.eval_strategy=steps": "give data.validation or",
    f"finetune --model {{model}} {TRAIN} --set training.max_steps=abc": "training.max_steps is 'abc'; give a whole",
    f"finetune --model {{model}} {TRAIN} --set lora.alpha=abc": "lora.alpha is 'abc'; give a number",
    f"finetune --model {{coded}} {TRAIN} --block-size 16 --bits 9": "--bits, --head, --width, --budget away",
    f"finetune --model {{coded}} {TRAIN} --block-size 16 --loss bitwize": "unknown loss 'bitwize'; did you mean",
    "evaluate {here}/cut --data {text}": "cut/model.safetensors is not a complete safetensors file",
    "attach {model} --out {here}/coded --head-param bias": "--head-param 'bias' is not KEY=VALUE",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_told_in_one_message(codehead, places, line):
    status, out, err = codehead(*(word.format(**places) for word in line.split()))
    assert (status, out) == (2, "")
    assert err.startswith("Error: ")
    assert MISTAKES[line] in err


def test_ctrl_c_in_any_command_is_told(codehead, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("codehead.evaluation.checkpoint.evaluate_checkpoint", interrupted)
    status, out, err = codehead("evaluate", "m", "--data", "d")
    assert (status, out, err.strip()) == (130, "", "Interrupted.")
    monkeypatch.setattr("codehead.protocols.protocol.Protocol.from_yaml", interrupted)
    status, _, err = codehead("protocol", "run", "x.yaml", "--out", tmp_path)
    assert (status, err.strip()) == (130, "Interrupted; give the same command again to go on.")


def test_ctrl_c_tells_how_to_go_on(codehead, place, tmp_path, monkeypatch):
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-7"
    arguments = ("finetune", "--model", place / "model", "--train", place / "text.txt", "--out", tmp_path / "run")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("codehead.training.run.train", interrupted)
    status, _, err = codehead(*arguments)
    assert status == 130
    assert "No checkpoint was saved yet" in err
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    status, _, err = codehead(*arguments)
    assert status == 130
    assert f"Saved: {checkpoint}. The same command" in err


def test_ctrl_c_while_the_new_head_learns_tells_that_this_was_kept(codehead, place, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("codehead.training.replacement.softmax_head", interrupted)  # the text has been read by then
    arguments = ("--train", place / "text.txt", "--out", tmp_path / "run", "--block-size", 16, "--budget", "60%")
    status, _, err = codehead("finetune", "--model", place / "model", *arguments, "--set", "training.use_cpu=true")
    assert status == 130
    assert "What the new head has learnt was saved" in " ".join(err.split())


# --- progress without a terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: `clock[0]` are its seconds."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_lines_come_every_ten_seconds_with_the_time_left(clock):
    out = io.StringIO()
    with progress.shown(Console(file=out)) as show:
        for done in range(0, 100, 2):
            clock[0] = done / 2  # two units of work a second
            show("early" if done < 60 else "late", done, 100)
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["0%", "20%", "40%", "60%", "80%"]
    assert lines[0] == "  0%  early, 0:00:00 elapsed"
    assert lines[3] == " 60%  late, 0:00:30 elapsed, about 0:00:20 left"


def test_training_lines_count_from_where_the_run_goes_on(clock):
    out = io.StringIO()
    told = progress.RichProgress("run", Console(file=out))
    state = TrainerState(global_step=50, max_steps=100, is_world_process_zero=True)
    told.on_train_begin(None, state, None)
    for step in range(51, 101):
        clock[0], state.global_step = float(step - 50), step
        told.on_step_end(None, state, None)
        told.on_log(None, state, None, logs={"loss": step / 10})
    lines = out.getvalue().splitlines()
    assert [line.split()[3] for line in lines] == ["50/100", "60/100", "70/100", "80/100", "90/100", "100/100"]
    assert lines[1] == " 60%  run: step 60/100 loss 5.9000, 0:00:10 elapsed, about 0:00:40 left"
    assert "loss 10.0000" in lines[-1]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 136320 vs 136208"),
    ],
)
def test_a_full_disk_is_told(codehead, place, tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("codehead.training.run.train", full)
    status, _, err = codehead("finetune", "--model", "m", "--train", "t.txt", "--out", tmp_path / "run")
    assert status == 2
    assert "the disk is full" in err


def test_other_errors_keep_their_traceback(codehead, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("codehead.training.run.train", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        codehead("finetune", "--model", "m", "--train", "t.txt", "--out", tmp_path / "run")
