from __future__ import annotations

import json

import pytest
from small_runs import TEXT
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from codehead.errors import CheckpointError
from codehead.lab.answers import generate_answers
from codehead.lab.bertscore import bert_score, find_encoder
from codehead.lab.result import Result
from codehead.models.surgery import is_coded
from codehead.training.model import load_model
from codehead.training.sources import read_rows
from codehead.training.tokenizer import load_tokenizer, train_bpe


def test_attach_saves_a_coded_checkpoint(coded_folder):
    model = load_model(str(coded_folder))
    assert is_coded(model)
    assert model.decision.table.length == 20


def test_attach_passes_options_of_code_and_head(codehead, place, tmp_path):
    options = ("--code", "minrandom", "--bits", 20, "--param", "candidates=2", "--head-param", "bias=true")
    status, _, err = codehead("attach", place / "model", "--out", tmp_path / "out", *options)
    assert status == 0, err
    model = load_model(str(tmp_path / "out"))
    assert model.get_output_embeddings().bias is not None
    assert model.config.quantization_config["decision"]["code_params"]["candidates"] == 2


def test_attach_does_not_write_over_files(codehead, place, coded_folder):
    status, _, err = codehead("attach", place / "model", "--out", coded_folder)
    assert status == 2
    assert "is not empty" in err


def test_evaluate_prints_and_writes(codehead, place, coded_folder, tmp_path):
    file = tmp_path / "result.json"
    arguments = ("--data", place / "text.txt", "--block-size", 16, "--repeats", 1, "--new-tokens", 2)
    status, out, err = codehead("evaluate", coded_folder, *arguments, "--out", file)
    assert status == 0, err
    assert "bits per byte" in out
    assert "%  evaluating, 0:00:00 elapsed" in err
    result = Result.read(file)
    assert result.metrics["generation"]["new_tokens"] == 2
    assert result.metrics["size"]["head_parameters"] == 16 * 20
    assert result.config["decision"]["decision"]["code"] == "minrandom"
    assert result.provenance["data"] == [
        {"name": "text.txt", "bytes": len(TEXT), "sha256": result.provenance["data"][0]["sha256"]}
    ]
    assert str(place) not in file.read_text()
    file.write_text(file.read_text().replace('"top1": 0', '"top1": 1'))
    with pytest.raises(CheckpointError, match="edited by hand"):
        Result.read(file)
    assert codehead("evaluate", coded_folder, *arguments, "--out", file)[0] == 2
    assert codehead("evaluate", coded_folder, *arguments, "--out", file, "--overwrite")[0] == 0
    assert Result.read(file).metrics["top1"] == result.metrics["top1"]


def test_evaluate_a_stock_model_as_json(codehead, place):
    arguments = ("--data", place / "text.txt", "--block-size", 16, "--repeats", 0, "--json")
    status, out, _ = codehead("evaluate", place / "model", *arguments)
    metrics = json.loads(out)["metrics"]
    assert status == 0
    assert metrics["node_loss"] is None
    assert "generation" not in metrics
    assert metrics["perplexity"] == pytest.approx(272, rel=0.1)


def test_packed_codewords_give_the_same_figures_from_fewer_bytes(codehead, place, coded_folder):
    arguments = ("--data", place / "text.txt", "--block-size", 16, "--repeats", 0, "--json")
    plain, packed = (
        json.loads(codehead("evaluate", coded_folder, *arguments, *flag)[1])["metrics"] for flag in ((), ("--packed",))
    )
    assert packed["top1"] == plain["top1"]
    assert packed["perplexity"] == pytest.approx(plain["perplexity"], rel=1e-5)
    assert packed["size"]["bytes_resident"] == packed["size"]["bytes_stored"] == plain["size"]["bytes_stored"]
    assert continuation(codehead, coded_folder, "--packed") == continuation(codehead, coded_folder)
    for command in (("evaluate", *arguments), ("generate", "--prompt", "The cat")):
        status, _, err = codehead(command[0], place / "model", *command[1:], "--packed")
        assert status == 2
        assert "has no codewords that could stay packed; omit --packed" in " ".join(err.split())


def test_what_was_saved_packed_stays_so_unless_asked(codehead, place, coded_folder, tmp_path):
    model = load_model(str(coded_folder), packed=True)
    model.save_pretrained(tmp_path / "packed")
    load_tokenizer(str(coded_folder)).save_pretrained(tmp_path / "packed")
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


def test_as_much_is_generated_as_the_model_has_positions_for(codehead, place):
    status, told, err = codehead("generate", place / "short", "--prompt", "The cat sat")
    assert status == 0 and told.startswith("The cat sat"), err
    status, _, err = codehead("generate", place / "short", "--prompt", "The cat sat on the mat " * 9)
    assert status == 2 and "--max-new-tokens is 1 after a prompt of" in err and "give a shorter prompt" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--block-size", 65), "--block-size is 65, but the model takes at most 64 tokens"),
        (
            ("evaluate", "--new-tokens", 57),
            "--new-tokens is 57 after a prompt of 8 tokens, but the model takes at most 64 tokens; give at most 56",
        ),
        (("evaluate", "--tokenizer", "large"), "the tokenizer has 279 entries but the model only 272"),
        (
            ("generate", "--max-new-tokens", 63),
            "--max-new-tokens is 63 after a prompt of 6 tokens, but the model takes at most 64 tokens; give at most 58",
        ),
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
    ("decoder", "message"), [("nonsense", "unknown decoder 'nonsense'"), ("hamming", "omit the decoder")]
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


def test_evaluate_scores_answers(codehead, place, coded_folder, records, tmp_path):
    encoder = ("--encoder", place / "encoder", "--encoder-layers", 1, "--answer-tokens", 4)
    arguments = ("--data", records, "--repeats", 0, "--batch-size", 2, *encoder)
    file = tmp_path / "result.json"
    status, out, err = codehead("evaluate", coded_folder, *arguments, "--prompts", 3, "--out", file)
    assert status == 0, err
    assert "%  answering, " in err
    rows = read_rows(str(records), limit=3)
    found = generate_answers(
        load_model(str(coded_folder)), load_tokenizer(str(coded_folder)), rows, max_new_tokens=4, batch_size=2
    )
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
    status, out, err = codehead("evaluate", coded_folder, *arguments)
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
    f"{{model}} --data {{text}} {ENCODER}": "holds plain text, which asks for no answer; omit --encoder",
    "none --data none --encoder {encoder} --as-text": "--as-text is True, but a text asks for no answer",
    "none --data none --encoder {here}": "has no config.json in its folder",
    "none --data none --encoder {encoder}": "layers is not given",
    "none --data none --encoder {encoder} --encoder-layers 3": "layers is 3, but encoder 'encoder' has 2",
    "none --data none --encoder-layers 1": "--encoder-layers is 1, but it belongs to --encoder; name one, or omit",
    "none --data none --prompts 3": "--prompts is 3, but it belongs to --encoder",
    "none --data none --answer-tokens 3": "--answer-tokens is 3, but it belongs to --encoder",
    "none --tasks none --encoder {encoder}": "', but it belongs to --data; with --tasks, omit it",
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

    monkeypatch.setattr("codehead.lab.measure.evaluate", measured)
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


def test_generate_samples_by_its_seed(codehead, coded_folder):
    greedy = continuation(codehead, coded_folder)
    assert continuation(codehead, coded_folder, "--temperature", 0) == greedy
    texts = [continuation(codehead, coded_folder, "--temperature", 2.0, "--seed", seed) for seed in (0, 1, 0)]
    assert texts[0] == texts[2]
    assert len({greedy, *texts}) == 3
    assert continuation(codehead, coded_folder, "--temperature", 2.0, "--top-k", 1) == greedy


def test_generate_with_beams(codehead, coded_folder):
    model, tokenizer = load_model(str(coded_folder)).eval(), load_tokenizer(str(coded_folder))
    inputs = tokenizer("The cat", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=12, num_beams=8, do_sample=False, pad_token_id=0)
    found = continuation(codehead, coded_folder, "--num-beams", 8)
    assert found == tokenizer.decode(ids[0], skip_special_tokens=True) + "\n"
    assert found != continuation(codehead, coded_folder)


def test_generate_needs_a_prompt(codehead, coded_folder):
    status, _, err = codehead("generate", coded_folder, "--prompt", "")
    assert status == 2
    assert "--prompt is empty" in err
