"""`recommend`: what fits a budget, a length or a speed, what it costs, and the command that builds it."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from architectures import HIDDEN, VOCAB, make
from transformers import AutoConfig

from codehead import attach, recommend
from codehead.config import DecisionConfig, ModelShape
from codehead.errors import ConfigurationError
from codehead.models.named import model_shape
from codehead.recommendation import SetUp, Value


@pytest.fixture
def wide(tmp_path):
    """The folder of a configuration with H = 1,024 and V = 50,000."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 1024, "vocab_size": 50_000}))
    return str(tmp_path)


@pytest.fixture
def measured(monkeypatch):
    """Two experiments that nobody made."""
    at = {"top1_share": Value(0.9, 0.004), "perplexity_ratio": Value(1.5, None)}
    both = [
        SetUp("results/frontier-8", "", 160, 8192, "70 steps of learning", 3, ((0.01, at), (0.1, at))),
        SetUp("results/frontier-9", "2M", 64, 1000, "80 steps of learning", 1, ((0.2, at), (0.3, at))),
    ]
    monkeypatch.setattr("codehead.recommendation.set_ups", lambda: both)


def test_cost_expectation_and_command_are_told(wide, measured, codehead):
    status, told, _ = codehead("recommend", wide, "--budget", "5%", "--details")
    told = " ".join(told.split())
    assert status == 0 and "dense rows for" in told and "bytes read per token" in told
    assert f"codehead convert {wide} --data YOUR_TEXT --budget 5% --out FOLDER" in told
    assert f"codehead finetune --model {wide} --train YOUR_TEXT --budget 5% --adapt full --out FOLDER" in told
    assert "90.0 ± 0.4% × 1.50 H=160, V=8,192, after 70 steps of learning (results/frontier-8, 3 seeds)" in told
    assert "– 20.0% to 30.0% only H=64, V=1,000, after 80 steps of learning (results/frontier-9, 2M, 1 seed)" in told


@pytest.mark.parametrize(("method", "reason"), [("codehead", "has a decision layer"), ("gptq", "quantised with gptq")])
@pytest.mark.parametrize(
    "command",
    [
        ["recommend"],
        ["convert", "--data", "absent.txt", "--out", "absent"],
        ["finetune", "--train", "absent.txt", "--out", "absent", "--model"],
    ],
)
def test_a_budget_for_a_checkpoint_without_a_stock_head_is_refused_before_anything_is_read(
    tmp_path, codehead, command, method, reason
):
    config = {"model_type": "gpt2", "n_embd": 64, "vocab_size": 500, "quantization_config": {"quant_method": method}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, _, errors = codehead(*command, str(tmp_path), "--budget", "50%")
    assert status == 2 and reason in " ".join(errors.split())


def test_the_command_that_is_recommended_can_be_pasted(wide, tmp_path, measured, codehead):
    place = shutil.copytree(wide, tmp_path / "my model")
    for model in (place, place / "config.json"):
        _, told, _ = codehead("recommend", str(model), "--budget", "5%", "--json")
        commands = json.loads(told)["commands"]
        assert [shlex.split(commands[name])[at] for name, at in (("convert", 2), ("finetune", 3))] == [str(place)] * 2


def test_without_results_of_such_heads_no_number_is_told(wide, monkeypatch, codehead):
    monkeypatch.setattr("codehead.recommendation.set_ups", lambda: ())
    status, told, _ = codehead("recommend", wide, "--budget", "5%")
    assert status == 0 and "None of our experiments covers 5% of the bytes: measure it" in told and "top-1" not in told


def test_where_the_old_head_fits_itself_it_is_told(wide, measured, codehead):
    told = {share: " ".join(codehead("recommend", wide, "--budget", share)[1].split()) for share in ("20%", "40%")}
    assert "takes 28% and needs no training: prefer that" in told["40%"] and "prefer that" not in told["20%"]


def test_the_verdict_is_one_line(wide, measured, codehead):
    """The default budget is 5%, between the two that the nearer experiment measured."""
    _, told, _ = codehead("recommend", wide)
    _, plain, verdict, *_ = ["", *told.splitlines()]
    assert plain.startswith("H = 1,024, V = 50,000")
    assert verdict == (
        "In a small model (H = 160, results/frontier-8) 5% of the bytes kept 90% of Softmax's top-1 accuracy at 1.50 "
        "times its perplexity; a real model may lose more. It reads 97 MB less per token, but saves no memory: the "
        "head is the embedding. Its step is faster on a CPU, which scans the codewords; nothing was timed on a GPU. "
        "For the same answers, faster: codehead screen."
    )
    assert "bytes read per token" not in told
    assert json.loads(codehead("recommend", wide, "--json")[1])["verdict"] == verdict


def test_a_pretrained_model_speaks_first(wide, measured, monkeypatch):
    at = {"top1_share": Value(0.94, None), "perplexity_ratio": Value(1.3, None)}
    real = SetUp("results/x.json", "", 32, 1000, "learning", 1, ((0.02, at), (0.1, at)), "Some-135M")
    small = recommend(wide).evidence
    monkeypatch.setattr("codehead.recommendation.set_ups", lambda: [*small, real])
    found = recommend(wide)
    assert found.evidence == [real, *small]
    assert found.verdict.startswith(
        "On Some-135M (results/x.json) 5% of the bytes kept 94% of Softmax's top-1 accuracy"
    )
    assert "may lose more" not in found.verdict and recommend(wide, budget="1%").verdict.startswith("In a small model")


def test_python_says_what_the_command_says(wide, measured, codehead):
    found = recommend(ModelShape(1024, 50_000, tied=True))
    assert found.verdict == json.loads(codehead("recommend", wide, "--json")[1])["verdict"]
    assert found.config == recommend(wide, budget=0.05).config == DecisionConfig.for_budget(found.shape, "5%")
    assert found.byte_share == pytest.approx(0.05, rel=0.01)
    untied = recommend(ModelShape(1024, 50_000, tied=False), budget="40%").verdict
    assert "It saves 70 MB of 102 MB." in untied and untied.endswith("needs no training: prefer that.")


def test_whether_it_is_faster_is_told(measured, monkeypatch):
    wide, small = ModelShape(1024, 50_000), ModelShape(64, 300)
    assert "Its step is faster on a CPU" in recommend(wide).verdict
    assert recommend(small, budget="20%").verdict.endswith("So small a vocabulary gains no time.")
    assert "gains no time. The old head in int4" in recommend(small, budget="40%").verdict
    assert "heads of more than 5% were not timed" in recommend(wide, budget="20%").verdict
    monkeypatch.setattr("codehead.recommendation.find_spec", lambda name: None)
    times = recommend(wide).config.multiply_adds(wide) / wide.softmax_weights
    assert f"A token takes {times:.2g} times the multiply-adds of Softmax; without FAISS" in recommend(wide).verdict


def test_a_model_in_memory_is_recommended_for(measured):
    model = make("llama")
    found = recommend(model, bits=24)
    assert found.shape == ModelShape(HIDDEN, VOCAB, True, 64) and found.config.bits == 24
    with pytest.raises(ConfigurationError, match="has a decision layer already"):
        recommend(attach(model, "minrandom", bits=24))


def test_a_length_or_a_speed_instead_of_a_budget(wide, measured, codehead):
    status, told, _ = codehead("recommend", wide, "--bits", "100", "--json")
    found = json.loads(told)
    assert (
        status == 0
        and found["decision"]["bits"] == 100
        and found["commands"] == {"convert": f"codehead convert {wide} --data YOUR_TEXT --bits 100 --out FOLDER"}
    )
    assert found["costs"]["bytes_stored"] == pytest.approx(found["byte_share"] * 2 * 1024 * 50_000)
    first, second = found["expected"]
    assert first["expected"]["top1_share"] == {"mean": pytest.approx(0.9), "half_width": 0.004}
    assert second["expected"] is None and second["measured"] == [0.2, 0.3]
    status, told, _ = codehead("recommend", wide, "--speed", "8x", "--json")
    found = json.loads(told)
    assert 8 * found["costs"]["multiply_adds"] <= found["softmax"]["multiply_adds"] == 1024 * 50_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "5%", "--speed", "2"), "not budget and speed"),
        (("--budget", "five"), "budget is 'five'"),
        (("--speed", "fast"), "speed is 'fast'"),
        (("--speed", "-2"), "speed is '-2'"),
        (("--budget", "1%"), "give at least that"),
        (("--bits", "5"), "need at least 9"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, codehead, options, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 32, "vocab_size": 290}))
    status, _, errors = codehead("recommend", str(tmp_path), *options)
    assert status == 2 and message in " ".join(errors.split())


def test_a_shape_that_is_written_out_is_the_one_that_transformers_reads(tmp_path):
    for name in ("llama", "gpt2", "opt", "opt_350m"):
        make(name).config.save_pretrained(tmp_path / name)
        assert model_shape(str(tmp_path / name)) == ModelShape.of_config(AutoConfig.from_pretrained(tmp_path / name))


def test_faster_times_screening_and_names_its_command(tmp_path, codehead):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 16, "vocab_size": 2000}))
    status, told, _ = codehead("recommend", str(tmp_path / "config.json"), "--faster", "--json")
    found = json.loads(told)
    assert status == 0
    assert found["dense_ms"] > 0 < found["screened_ms"]
    assert found["pays"] == (found["ratio"] > 1)
    assert found["command"] == f"codehead screen {shlex.quote(str(tmp_path))} --out FOLDER"


def test_faster_keeps_the_head_so_that_a_budget_is_refused(wide, codehead):
    status, _, told = codehead("recommend", wide, "--faster", "--budget", "5%")
    assert status == 2
    assert "--faster" in told and "--budget=5%" in told
