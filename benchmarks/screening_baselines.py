"""Heads that `benchmarks/screening.py` compares: each gives the best token for hidden states, exactly or approximately.

A head is a function of hidden states `(batch, H)`, float32, to token ids `(batch,)`, with the bytes that a step reads
and those that are in memory. Methods that only find candidates multiply the rows of REFINED candidates with the hidden
state.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Step = Callable[[Tensor], Tensor]
REFINED = 256
"""Candidates whose rows are multiplied."""
PROBES = (8, 16, 32, 64, 128, 256)
"""Numbers of clusters to search, tried until the recall reaches the screen's."""


@dataclass
class Head:
    """One way from hidden states to the best token."""

    step: Step
    bytes_read: int
    """Bytes read in a step for one position: weights, codes, and rows of candidates."""
    bytes_held: int
    """Bytes in memory, those of the old head's rows included where they are multiplied."""
    build_seconds: float = 0.0


def built(make: Callable[[], tuple[Step, int] | tuple[Step, int, int]]) -> Head:
    """A head, with the seconds that building it took; one that reads all it has need not say what it holds."""
    start = time.perf_counter()
    step, read, *held = make()
    return Head(step, read, held[0] if held else read, time.perf_counter() - start)


def refined(weight: Tensor, candidates: Callable[[np.ndarray], np.ndarray]) -> Step:
    """The best of the candidates `(batch, k)` found for hidden states, by their rows; −1 means none."""

    def step(hidden: Tensor) -> Tensor:
        found = torch.from_numpy(candidates(hidden.numpy())).clamp(min=0)
        best = [ids[F.linear(one, weight[ids]).argmax()] for one, ids in zip(hidden[:, None], found, strict=True)]
        return torch.stack(best)

    return step


def torch_heads(weight: Tensor) -> dict[str, Head]:
    """Softmax in float32, in bfloat16 where the CPU multiplies it, and dynamic int8 of torch."""
    heads = {"torch fp32": built(lambda: (lambda hidden: F.linear(hidden, weight).argmax(-1), weight.nbytes))}
    if torch.cpu._is_avx512_bf16_supported():
        half = weight.bfloat16()
        heads["torch bf16"] = built(lambda: (lambda hidden: F.linear(hidden.bfloat16(), half).argmax(-1), half.nbytes))
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(linear), dtype=torch.qint8)
    heads["torch int8"] = built(lambda: (lambda hidden: quantised(hidden).argmax(-1), weight.numel()))
    return heads


def onnx_heads(weight: Tensor, threads: int) -> dict[str, Head]:
    """onnxruntime: float32, dynamic int8, and MatMulNBits int4 with accuracy_level 4; the argmax is in the graph."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    model, heads = onnx_model(weight), {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.onnx") for name in ("fp32", "int8", "int4")}
        save(model, paths["fp32"])

        def int8() -> tuple[Step, int]:
            quantize_dynamic(paths["fp32"], paths["int8"], weight_type=QuantType.QInt8, use_external_data_format=True)
            return onnx_step(paths["int8"], threads), weight.numel()

        def int4() -> tuple[Step, int]:
            config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4)
            quantizer = MatMulNBitsQuantizer(model, algo_config=config)
            quantizer.process()
            save(quantizer.model.model, paths["int4"])
            return onnx_step(paths["int4"], threads), weight.numel() * 9 // 16  # 4 bits, and a float32 scale for 32

        heads["onnxruntime fp32"] = built(lambda: (onnx_step(paths["fp32"], threads), weight.nbytes))
        heads["onnxruntime int8"] = built(int8)
        heads["onnxruntime int4"] = built(int4)
    return heads


def onnx_model(weight: Tensor) -> Any:
    """hidden `(batch, H)` → best `(batch,)`."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("MatMul", ["hidden", "weight"], ["logits"], name="head"),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=-1, keepdims=0),
    ]
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", weight.shape[1]])
    best = helper.make_tensor_value_info("best", TensorProto.INT64, ["batch"])
    rows = numpy_helper.from_array(np.ascontiguousarray(weight.T.numpy()), "weight")
    graph = helper.make_graph(nodes, "head", [hidden], [best], [rows])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def save(model: Any, path: str) -> None:
    """Write a model, with its weights in a file beside it."""
    import onnx

    onnx.save(onnx.ModelProto.FromString(model.SerializeToString()), path, save_as_external_data=True)


def onnx_step(path: str, threads: int) -> Step:
    """The step that a file describes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait would disturb others
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda hidden: torch.from_numpy(session.run(None, {"hidden": hidden.numpy()})[0])


def rabitq(weight: Tensor, digits: int) -> tuple[Step, int, int]:
    """RaBitQ codes of the randomly rotated rows, at `bits` per dimension, with FAISS's fast scan."""
    classes, size = weight.shape
    whole = 64 * -(-size // 64)
    rotation = faiss.RandomRotationMatrix(size, whole)
    rotation.init(0)
    inner = faiss.IndexRaBitQFastScan(whole, faiss.METRIC_INNER_PRODUCT, 32, digits)
    index = faiss.IndexPreTransform(rotation, inner)
    index.train(weight.numpy())
    index.add(weight.numpy())
    codes = classes * (whole * digits // 8 + 8)
    step = refined(weight, lambda hidden: index.search(hidden, REFINED)[1])
    return step, codes + REFINED * size * 4, codes + weight.nbytes


def low_rank(weight: Tensor, hidden: Tensor, rank: int) -> tuple[Step, int, int]:
    """Scores in the `rank` directions of largest variance, then exact rows (SVD-softmax, K. Shim et al. 2017)."""
    mean = hidden.mean(0)
    variances, vectors = torch.linalg.eigh(torch.cov((hidden - mean).T.double()))
    root = (vectors * variances.clamp(min=0).sqrt()) @ vectors.T
    directions = torch.linalg.eigh(root @ (weight.T @ weight).double() @ root).eigenvectors[:, -rank:]
    rows = (weight @ (root @ directions).float()).contiguous()
    project = torch.linalg.lstsq(root @ directions, torch.eye(len(root), dtype=torch.float64)).solution.float()
    bias = weight @ mean

    def candidates(some: np.ndarray) -> np.ndarray:
        scores = (torch.from_numpy(some) - mean) @ project.T @ rows.T + bias
        return scores.topk(REFINED, dim=1, sorted=False).indices.numpy()

    short = rows.nbytes + bias.nbytes
    return refined(weight, candidates), short + REFINED * weight.shape[1] * 4, short + weight.nbytes


def clustered(weight: Tensor) -> Iterator[tuple[str, Head]]:
    """Rows in clusters, of which more and more are searched (multi-probe)."""
    classes, size = weight.shape
    clusters = int(4 * classes**0.5)
    start = time.perf_counter()
    quantizer = faiss.IndexFlatIP(size)
    index = faiss.IndexIVFFlat(quantizer, size, clusters, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 10
    index.train(weight.numpy())
    index.add(weight.numpy())
    seconds = time.perf_counter() - start
    for probes in PROBES:

        def step(hidden: Tensor, probes: int = probes) -> Tensor:
            index.nprobe = probes
            return torch.from_numpy(index.search(hidden.numpy(), 1)[1][:, 0])

        row = size * 4
        read, held = (clusters + classes * probes // clusters) * row, (clusters + classes) * row
        yield f"clusters, {probes} probed", Head(step, read, held, seconds)
