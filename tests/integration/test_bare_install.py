"""What codehead is without its extras: a coded checkpoint loads and generates; what is missing names its extra."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from codehead.boundaries import EXTRAS, missing_extra
from codehead.training.tokenizer import train_bpe

tomllib = pytest.importorskip("tomllib")  # since Python 3.11

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "data" / "checkpoints-0.1" / "converted-int4"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"yaml": "pyyaml", "faiss": "faiss-cpu", "sklearn": "scikit-learn"}
SIZES = {
    "vocab_size": 270, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
REPORT = f"""
from codehead.__main__ import main
sys.argv = ["codehead", "protocol", "report", {str(ROOT / "results" / "small-1")!r}]
main()
"""
GENERATE = f"""
import torch
from transformers import AutoModelForCausalLM
import codehead
model = AutoModelForCausalLM.from_pretrained({str(CHECKPOINT)!r})
print(model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=4, do_sample=False, pad_token_id=0).shape)
print(codehead.recommend(codehead.config.ModelShape(64, 300), budget="20%").config.bits)
"""
BLOCKED = f"""
import sys
BLOCKED = {sorted(set(EXTRAS) - {"yaml", "filelock"})!r}  # transformers brings these two
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def hidden(name, path=None, target=None):
    return None if name.partition(".")[0] in BLOCKED else find(name, path, target)
PathFinder.find_spec = staticmethod(hidden)
"""


def run(program: str, python: str | Path = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([str(python), "-c", program], capture_output=True, text=True, env=environment, check=False)


def test_a_coded_checkpoint_generates_without_any_extra() -> None:
    process = run(BLOCKED + GENERATE)
    assert "torch.Size([1, 7])" in process.stdout, process.stderr


def test_commands_that_train_nothing_need_no_extra(tmp_path: Path) -> None:
    train_bpe(["the cat sees a dog"], 270).save_pretrained(tmp_path / "stock")
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "stock")
    stock, coded = str(tmp_path / "stock"), str(tmp_path / "coded")
    lines = [["attach", stock, "--out", coded], ["generate", coded, "--prompt", "cat"], ["doctor", coded]]
    calls = "".join(f"app({line!r}, standalone_mode=False)\n" for line in lines)
    process = run(f"{BLOCKED}\nfrom codehead.__main__ import app\n{calls}")
    assert process.returncode == 0, process.stderr
    assert "decoded by plain: FAISS is not installed" in process.stdout


def test_a_command_names_the_extra_that_it_lacks() -> None:
    process = run(BLOCKED + REPORT)
    assert process.returncode == 2
    assert "pip install 'codehead[lab]'" in process.stderr


@pytest.mark.parametrize("package", EXTRAS)
def test_every_package_belongs_to_an_extra_that_brings_it(package: str) -> None:
    said = missing_extra(ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.inner"))
    assert said is not None and f"codehead[{EXTRAS[package]}]" in said
    brought = " ".join(PROJECT["optional-dependencies"][EXTRAS[package]])
    assert DISTRIBUTIONS.get(package, package).replace("_", "-") in brought.replace("_", "-")


def test_few_packages_are_required() -> None:
    assert len(PROJECT["dependencies"]) <= 8


@pytest.mark.slow
def test_the_wheel_alone_in_an_empty_environment(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), str(ROOT)]
    subprocess.run([str(python), *install], check=True)
    process = run(GENERATE, python)
    assert "torch.Size([1, 7])" in process.stdout, process.stderr
