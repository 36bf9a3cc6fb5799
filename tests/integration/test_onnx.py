"""Every kind of decision layer as an ONNX graph: onnxruntime gives the logits that torch gives."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from architectures import HIDDEN, VOCAB, make, tokens

import codehead
from codehead.errors import ConfigurationError
from codehead.models.hidden import Statistics, probed
from codehead.screening import calibration
from codehead.screening.graph import exportable

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

EXTRAS = {
    "dense_rows": [3, 7, 50], "extra_bit_tokens": [5, 9, 20, 21], "extra_bits": 8, "token_bias": True,
    "loss": "codeword",
}  # fmt: skip
KINDS = {
    "linear": {},
    "linear, packed": {"packed": True},
    "low_rank": {"head": "low_rank", "head_params": {"rank": 5}},
    "mtl": {"head": "mtl", "width": 3},
    "mtl in groups": {"head": "mtl", "width": 12, "head_params": {"groups": 5}},
    "adaptive": {
        "code": "one_vs_all", "bits": None, "head": "adaptive", "head_params": {"cutoffs": [20, 60]},
        "loss": "codeword", "statistics": Statistics(torch.arange(VOCAB)),
    },
    "one_vs_all": {"code": "one_vs_all", "bits": None},
    "ternary": {"code": "sparse_random", "bits": 44, "loss": "codeword"},
    "dense rows": {"dense_rows": [3, 7, 50], "loss": "codeword"},
    "extra bits": {"extra_bit_tokens": [5, 9, 20, 21], "extra_bits": 8, "loss": "codeword"},
    "token bias": {"token_bias": True, "loss": "codeword"},
    "all extras": EXTRAS,
    "all extras in int8": EXTRAS,
    "all extras in int4": EXTRAS,
    "mtl in int4": {"head": "mtl", "width": 3},
}  # fmt: skip


class Layer(torch.nn.Module):
    """The decision layer of a model: hidden states `(batch, length, hidden)` → logits `(batch, length, V)`."""

    def __init__(self, model):
        super().__init__()
        self.head, self.decision = model.get_output_embeddings(), model.decision

    def forward(self, hidden):
        return self.decision.logits(self.head(hidden))


class Logits(torch.nn.Module):
    """A model as a function of token ids."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids, use_cache=False).logits


def of_kind(kind, coded):
    model = coded("llama", **KINDS[kind])
    if kind.endswith(("int8", "int4")):
        (codehead.to_int8 if kind.endswith("int8") else codehead.to_int4)(model)
    return model.eval()


def exported(module, example, path, dynamic):
    """A function of the input of a module: what onnxruntime computes by the graph of the module."""
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")} if dynamic else None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            module, (example,), dynamo=True, dynamic_shapes=(axes,) if dynamic else None, verbose=False
        )
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda given: torch.from_numpy(session.run(None, {name: given.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_decision_layer_is_exported(kind, dynamic, coded, tmp_path):
    layer = Layer(of_kind(kind, coded))
    run = exported(layer, torch.randn(2, 7, HIDDEN), tmp_path / "layer.onnx", dynamic)
    for shape in [(2, 7), (1, 1), (3, 5)] if dynamic else [(2, 7)]:
        hidden = torch.randn(*shape, HIDDEN)
        with torch.no_grad():
            expected = layer(hidden)
        torch.testing.assert_close(run(hidden), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_whole_model_is_exported_with_dynamic_shapes(coded, tmp_path):
    model = of_kind("all extras in int4", coded)
    run = exported(Logits(model), tokens(), tmp_path / "model.onnx", dynamic=True)
    others = tokens(3, 5, seed=4)
    with torch.no_grad():
        expected = model(input_ids=others).logits
    torch.testing.assert_close(run(others), expected, rtol=1e-4, atol=1e-4)


def screened(**options):
    model = make("granite")
    with probed(model) as read, torch.no_grad():
        hidden = read(input_ids=tokens(20, 20, seed=9), use_cache=False).flatten(0, 1)
    return codehead.screen(model, hidden=hidden, bits=64, recall=0.9, **options), hidden


@pytest.fixture
def _few_candidates(monkeypatch):
    """So that tiny vocabularies leave tokens out."""
    monkeypatch.setattr(calibration, "FEW", 32)
    monkeypatch.setattr(calibration, "MOST", 64)


@pytest.mark.usefixtures("_few_candidates")
def test_a_screened_head_as_a_graph_finds_what_the_screen_finds():
    model, hidden = screened()
    graph = exportable(model)
    assert model.obstacle() is None
    ids, logits = graph(hidden)
    assert ids.shape == (len(hidden), graph.candidates) and graph.candidates < VOCAB
    dense = model.get_output_embeddings()(hidden) / 4  # granite divides
    torch.testing.assert_close(logits, dense.gather(-1, ids), rtol=1e-4, atol=1e-5)
    assert torch.equal(logits, logits.sort(descending=True).values)
    searched = torch.from_numpy(model.screen.search.best(hidden, graph.candidates).ids)
    shared = (ids.unsqueeze(-1) == searched.unsqueeze(-2)).any(-1).float().mean()
    assert shared > 0.97  # the scan rounds its tables
    assert (ids[:, 0] == dense.argmax(-1)).float().mean() >= model.screen.settings.promised


@pytest.mark.usefixtures("_few_candidates")
def test_a_screen_that_is_certain_is_no_graph():
    model, _ = screened(mode="exact")
    with pytest.raises(ConfigurationError, match="mode='fast'"):
        exportable(model)


@pytest.mark.slow
@pytest.mark.usefixtures("_few_candidates")
def test_a_screened_head_is_exported(tmp_path):
    model, hidden = screened()
    graph = exportable(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(graph, (hidden[:2],), dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(tmp_path / "screen.onnx")
    nodes = {node.op_type for node in program.model_proto.graph.node}
    assert {"TopK", "Gather"} <= nodes
    session = onnxruntime.InferenceSession(tmp_path / "screen.onnx", providers=["CPUExecutionProvider"])
    _, logits = session.run(None, {session.get_inputs()[0].name: hidden[:9].numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), graph(hidden[:9])[1], rtol=1e-4, atol=1e-4)
