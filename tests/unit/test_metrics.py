from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

import codehead
from codehead.errors import ConfigurationError, DataError
from codehead.evaluation import metrics
from codehead.evaluation.metrics import evaluate
from codehead.losses import bitwise

V = 60
LENGTHS = [9, 4, 12, 1, 7]


def make_model(**decision):
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=V, n_positions=16, bos_token_id=0, eos_token_id=0)
    config.initializer_range = 0.6  # logits far enough apart that ranks mean something
    model = GPT2LMHeadModel(config)
    return codehead.attach(model, **decision) if decision else model


@pytest.fixture(scope="module")
def examples():
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(V, (length,), generator=generator).tolist()
        labels = [-100 if i % 4 == 1 else label for i, label in enumerate(ids)]
        rows.append({"input_ids": ids, "labels": labels, "num_bytes": [1 + label % 3 for label in ids]})
    return rows


def by_hand(model, examples, decoder):
    """The same metrics one example at a time, with whole (tokens, V) tensors in float64."""
    nats, first, top, num_bytes, bits, labels = 0.0, 0, 0, 0, [], []
    for example in examples:
        ids = torch.tensor([example["input_ids"]])
        with torch.no_grad():
            logits = model.eval()(ids).logits[0, :-1].double()
            if codehead.is_coded(model):
                bits.append(model.bit_logits(ids)[0, :-1])
        for t, label in enumerate(example["labels"][1:]):
            if label == -100:
                labels.append(label)
                continue
            labels.append(label)
            nats -= float(logits[t].log_softmax(-1)[label])
            num_bytes += example["num_bytes"][t + 1]
            scores = logits[t]
            if decoder == "hamming":
                scores = model.decision.table.signs().double() @ bits[-1][t].double().sign()
            rank = int((scores > scores[label]).sum() + (scores[:label] == scores[label]).sum())
            first += rank < 1
            top += rank < 5
    tokens = sum(label != -100 for label in labels)
    per_node = None
    if bits:
        per_node = bitwise(torch.cat(bits), torch.tensor(labels), model.decision.table).per_node
    return tokens, first / tokens, top / tokens, nats / tokens, nats / math.log(2) / num_bytes, per_node


@pytest.mark.parametrize("decoder", [None, "hamming"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_coded_metrics_are_those_by_hand(examples, batch_size, decoder):
    model = make_model(code="minrandom", bits=11)
    result = evaluate(model, None, examples, batch_size=batch_size, decoder=decoder)
    tokens, top1, top5, nats, bits_per_byte, per_node = by_hand(model, examples, decoder)
    assert result.tokens == tokens
    assert (result.top1, result.top5) == (top1, top5)
    assert math.log(result.perplexity) == pytest.approx(nats, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(bits_per_byte, rel=1e-5)
    assert result.node_losses == pytest.approx(per_node.tolist(), rel=1e-5)
    assert result.node_loss == pytest.approx(per_node.mean().item(), rel=1e-5)
    assert result.decoder == (decoder or "likelihood")
    assert len(result.bit_accuracies) == 11


def test_stock_metrics_are_those_by_hand(examples):
    model = make_model()
    result = evaluate(model, None, examples, batch_size=2)
    tokens, top1, top5, nats, bits_per_byte, _ = by_hand(model, examples, None)
    assert (result.tokens, result.top1, result.top5) == (tokens, top1, top5)
    assert math.log(result.perplexity) == pytest.approx(nats, rel=1e-5)
    assert result.bits_per_byte == pytest.approx(bits_per_byte, rel=1e-5)
    assert result.node_loss is result.node_losses is result.bit_accuracy is None


def test_softmax_is_one_vs_all_with_the_codeword_loss(examples):
    stock = make_model()
    coded = make_model(code="one_vs_all", loss="codeword")
    coded.get_output_embeddings().load_state_dict({"weight": stock.lm_head.weight})
    assert evaluate(coded, None, examples) == evaluate(stock, None, examples)


def test_bit_accuracy_counts_signs(examples):
    model = make_model(code="minrandom", bits=11)
    right = []
    for example in examples:
        bits = model.eval().bit_logits(torch.tensor([example["input_ids"]]))[0, :-1].detach()
        labels = torch.tensor(example["labels"][1:])
        kept = labels != -100
        right.append((bits[kept] > 0) == (model.decision.table.lookup(labels[kept]) > 0))
    expected = torch.cat(right).double().mean(0)
    result = evaluate(model, None, examples)
    assert result.bit_accuracies == pytest.approx(expected.tolist())
    assert result.bit_accuracy == pytest.approx(expected.mean().item())


def test_zeros_of_a_ternary_code_do_not_count(examples):
    model = make_model(code="sparse_random", bits=20)
    result = evaluate(model, None, examples)
    nats, count = 0.0, 0.0
    for example in examples:
        bits = model.eval().bit_logits(torch.tensor([example["input_ids"]]))[0, :-1].detach()
        for t, label in enumerate(example["labels"][1:]):
            if label != -100:
                codeword = model.decision.table.lookup(torch.tensor(label))
                nats += float((F.softplus(-codeword * bits[t]) * codeword.abs()).sum())
                count += float(codeword.abs().sum())
    assert result.node_loss == pytest.approx(nats / count, rel=1e-5)


def test_small_chunks_change_nothing(examples, monkeypatch):
    model = make_model(code="minrandom", bits=11)
    whole = evaluate(model, None, examples).as_dict()
    monkeypatch.setattr(metrics, "SCORE_BYTES", 4 * V * 2)
    parts = evaluate(model, None, examples).as_dict()
    assert parts["top5"] == whole["top5"]
    assert parts["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-6)
    assert parts["node_losses"] == pytest.approx(whole["node_losses"], rel=1e-6)


@pytest.mark.parametrize("decision", [{}, {"code": "one_vs_all"}])
def test_a_wide_head_is_given_no_more_positions_at_a_time_than_scores_are_held_for(decision, examples, monkeypatch):
    model, given = make_model(**decision), positions_given(monkeypatch)
    assert sum(found := given(model, examples)) > 2 == max(found)


def test_a_narrow_head_is_given_all_positions_of_a_batch_at_once(examples, monkeypatch):
    model, given = make_model(code="minrandom", bits=11), positions_given(monkeypatch)
    assert len(given(model, examples)) == 1


def positions_given(monkeypatch):
    """A function of model and examples: how many positions the head is given by each of its calls in an evaluation."""
    monkeypatch.setattr(metrics, "SCORE_BYTES", 4 * V * 2)

    def measure(model, examples):
        calls = []
        model.get_output_embeddings().register_forward_hook(lambda head, args, found: calls.append(len(args[0])))
        assert evaluate(model, None, examples).tokens == sum(calls)
        return calls

    return measure


@pytest.mark.parametrize("decision", [{}, {"code": "minrandom", "bits": 11}])
def test_models_that_ask_for_the_dtype_of_their_head(decision, examples):
    config = MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, state_size=4, initializer_range=0.6)
    model = MambaForCausalLM(config).bfloat16()
    if decision:
        codehead.attach(model, **decision)
    found, nats = evaluate(model, None, examples, batch_size=1), by_hand(model, examples, None)[3]
    assert math.log(found.perplexity) == pytest.approx(nats, rel=1e-3)


def test_a_model_that_cannot_be_measured_stays_in_training_mode(examples):
    with torch.device("meta"):
        model = make_model().train()
    with pytest.raises(ConfigurationError, match="meta"):
        evaluate(model, None, examples)
    assert model.training


def test_without_byte_counts_there_are_no_bits_per_byte(examples):
    bare = [{key: row[key] for key in ("input_ids", "labels")} for row in examples]
    assert evaluate(make_model(), None, bare).bits_per_byte is None


def test_the_model_stays_in_training_mode(examples):
    model = make_model(code="minrandom", bits=11).train()
    evaluate(model, None, examples)
    assert model.training


@pytest.mark.parametrize("decision", [{}, {"code": "minrandom", "bits": 11}])
def test_labels_out_of_range(decision):
    rows = [{"input_ids": [1, 2], "labels": [1, V]}]
    with pytest.raises(DataError, match=f"label {V}, but the model has {V} tokens"):
        evaluate(make_model(**decision), None, rows)


def test_labels_are_checked_before_the_embedding_meets_them():
    rows = [{"input_ids": [1, V], "labels": [1, V]}]
    with pytest.raises(DataError, match=f"label {V}, but the model has {V} tokens"):
        evaluate(make_model(), None, rows)


@pytest.mark.parametrize(
    ("decoder", "message"), [("haming", "unknown decoder 'haming'"), ("likelihood", "Softmax head")]
)
def test_a_softmax_has_no_decoder(examples, decoder, message):
    with pytest.raises(ConfigurationError, match=message):
        evaluate(make_model(), None, examples, decoder=decoder)


def test_the_decoder_reported_is_the_one_that_ranked(examples):
    model = make_model(code="one_vs_all", decoder="hamming").eval()
    ids = torch.tensor([examples[0]["input_ids"]])
    likeliest = [-100, *model(ids).logits[0, :-1].argmax(-1).tolist()]
    rows = [{"input_ids": ids[0].tolist(), "labels": likeliest}]
    own, likelihood = evaluate(model, None, rows), evaluate(model, None, rows, decoder="likelihood")
    assert (own.decoder, likelihood.decoder) == ("hamming", "likelihood")
    assert own.top1 < 1 == likelihood.top1


@pytest.mark.parametrize("rows", [[], [{"input_ids": [1, 2], "labels": [1, -100]}]])
def test_nothing_to_score(rows):
    with pytest.raises(DataError, match="no labelled token"):
        evaluate(make_model(), None, rows)


def test_progress_is_told(examples):
    seen = []
    evaluate(make_model(), None, examples, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_diverged_model_gives_none_not_nan(examples):
    model = make_model()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    assert evaluate(model, None, examples).as_dict()["perplexity"] is None


def test_lists_hold_none_not_nan_either(examples):
    result = evaluate(make_model(code="minrandom", bits=11), None, examples)
    diverged = dataclasses.replace(result, node_losses=[math.inf, 0.5, math.nan])
    assert diverged.as_dict()["node_losses"] == [None, 0.5, None]
