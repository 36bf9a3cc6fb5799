"""Installing is enough: tools that never import codehead load its checkpoints, and no fault of ours stops torch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from small_runs import TEXT
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import codehead
import codehead_autoload
from codehead.models import registration
from codehead.models.hidden import probed
from codehead.training.tokenizer import train_bpe

TRANSFORMERS = (sys.executable, "-m", "transformers.cli.transformers")
"""The command `transformers`, wherever it is installed."""
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
PROMPT = "The cat sat on"
NEW = 8
PLAIN = """
from transformers import AutoModelForCausalLM, AutoTokenizer
import json, sys
texts = []
for folder in sys.argv[1:]:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("The cat sat on", return_tensors="pt")["input_ids"]
    texts.append(model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist())
print(json.dumps(texts))
"""
SPAWNED = """
import multiprocessing, sys
def load(folder):
    from transformers import AutoModelForCausalLM
    return len(AutoModelForCausalLM.from_pretrained(folder).config.quantization_config)
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(load, sys.argv[1:]))
"""
TIMES = """
import os, sys
os.environ["CODEHEAD_AUTOLOAD"] = "0"
import torch
assert "codehead" not in sys.modules
os.environ["CODEHEAD_AUTOLOAD"] = "1"
before = set(sys.modules)
import codehead_autoload
codehead_autoload.register()
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints `coded` and `screened` of a tiny model, with a tokenizer that knows conversations."""
    folder, tokenizer = tmp_path_factory.mktemp("autoload"), train_bpe([TEXT], 300)
    tokenizer.chat_template = CHAT
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name in ("coded", "screened"):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **special))
        if name == "coded":
            codehead.attach(model, code="minrandom", bits=20)
        else:
            ids = torch.randint(0, len(tokenizer), (20, 20))
            with probed(model) as read, torch.no_grad():
                hidden = read(input_ids=ids, use_cache=False).flatten(0, 1)
            codehead.screen(model, hidden=hidden, bits=64, recall=0.9)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in ("coded", "screened")}


def truth(folder: Path) -> list[int]:
    """The ids of the prompt and of what the model writes after it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    return model.generate(ids, max_new_tokens=NEW, do_sample=False)[0].tolist()


def run(*command: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that knows no more than what is installed."""
    words, own = list(map(str, command)), {**OFFLINE, **environment}
    return subprocess.run(words, input=stdin, capture_output=True, text=True, env=own, check=False)


FIRST = ["", pytest.param("import transformers.quantizers.auto", marks=pytest.mark.slow)]


@pytest.mark.parametrize("first", FIRST, ids=["plain", "tables first"])
def test_an_unmodified_script_loads_and_generates(first: str, folders: dict[str, Path]) -> None:
    process = run(sys.executable, "-c", first + PLAIN, *folders.values())
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == [truth(folder) for folder in folders.values()]


@pytest.mark.slow
def test_a_spawned_worker_loads(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SPAWNED)
    process = run(sys.executable, tmp_path / "script.py", *folders.values())
    assert process.returncode == 0 and process.stdout.startswith("["), process.stderr


def test_torch_brings_little_and_nothing_where_a_variable_says_so() -> None:
    assert run(sys.executable, "-c", TIMES).stdout.strip() == "['codehead']"


def test_the_entry_point_stands_outside_of_the_package() -> None:
    (entry,) = metadata.entry_points(group="torch.backends", name="codehead")
    assert entry.load() is codehead_autoload.register
    assert Path(str(codehead_autoload.__file__)).parent == Path(metadata.distribution("codehead").locate_file(""))


def test_a_broken_package_is_told_of_and_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "codehead").mkdir()
    (tmp_path / "codehead" / "__init__.py").write_text("<<<<<<< HEAD")
    process = run(
        sys.executable, "-W", "error", "-c", "import torch; print(torch.ones(1).item())", PYTHONPATH=str(tmp_path)
    )
    assert process.stdout == "1.0\n"
    assert "CODEHEAD_AUTOLOAD=0" in process.stderr and "Traceback" not in process.stderr


def test_a_missing_package_is_told_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "codehead", None)
    codehead_autoload.register()
    assert "Mend or uninstall it" in caplog.text


def test_the_loader_waits_for_the_tables_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not there yet where torch is first imported from within their module."""
    under_way = ModuleType(registration.REGISTRY)
    monkeypatch.setitem(sys.modules, registration.REGISTRY, under_way)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    registration.register_loader()
    registration.register_loader()
    (waiting,) = [finder for finder in sys.meta_path if isinstance(finder, registration._Registration)]
    assert waiting.find_spec("transformers.models") is None and waiting in sys.meta_path
    tables = {"AUTO_QUANTIZER_MAPPING": {}, "AUTO_QUANTIZATION_CONFIG_MAPPING": {}}
    vars(under_way).update(tables)
    assert waiting.find_spec("transformers.models") is None and waiting not in sys.meta_path
    assert [list(table) for table in tables.values()] == [["codehead"], ["codehead"]]


def test_a_transformers_with_other_tables_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = ModuleType(registration.REGISTRY)
    vars(other)["AUTO_QUANTIZATION_CONFIG_MAPPING"] = None
    monkeypatch.setitem(sys.modules, registration.REGISTRY, other)
    registration.register_loader()
    assert "cannot register its loader" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coded", "screened"])
def test_the_harness_s_own_command(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    ids, tokenizer = truth(folders[name]), AutoTokenizer.from_pretrained(folders[name])
    written = tokenizer.decode(ids)[len(PROMPT) :]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": PROMPT, "written": written}) + "\n")
    task = {
        "task": "write",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_target": "written",
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["§"], "max_gen_toks": NEW},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "write.yaml").write_text(yaml.safe_dump(task))
    options = f"--model hf --tasks write --device cpu --include_path {tmp_path} --output_path {tmp_path / 'out'}"
    process = run(
        sys.executable, "-m", "lm_eval", *options.split(), "--model_args", f"pretrained={folders[name]}",
        HF_DATASETS_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    (result,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(result.read_text())["results"]["write"]["exact_match,none"] == 1.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of `transformers serve`, which loads what is asked for."""
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi, uvicorn and openai")
    pytest.importorskip("uvicorn")
    pytest.importorskip("openai")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*TRANSFORMERS, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=OFFLINE) as process:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            told.append(line)
            if "Uvicorn running" in line:
                break
        else:
            pytest.fail("".join(told))
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        yield f"http://127.0.0.1:{port}/v1"
        process.terminate()
        drain.join()


@pytest.mark.slow
def test_serving_to_the_openai_client_and_to_the_chat(server: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from openai import OpenAI

    for folder in folders.values():
        expected = AutoTokenizer.from_pretrained(folder).decode(truth(folder))[len(PROMPT) :]
        message = {"role": "user", "content": PROMPT}
        with OpenAI(base_url=server, api_key="none") as client:
            answer = client.chat.completions.create(
                model=str(folder), messages=[message], temperature=0, max_tokens=NEW
            )
        assert answer.choices[0].message.content == expected
        options = [folder, server, "do_sample=False", f"max_new_tokens={NEW}"]
        process = run(*TRANSFORMERS, "chat", *options, stdin=f"{PROMPT}\nn\n!exit\n", HF_HUB_OFFLINE="0")
        assert process.returncode == 0, process.stderr
        assert "tok/s" in process.stdout  # the text itself is rendered as Markdown
