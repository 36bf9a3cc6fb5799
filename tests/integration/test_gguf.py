"""A GGUF file as input: everywhere a model is, and models that transformers has read from one."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from small_runs import TEXT
from tiny_gguf import write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

import codehead
from codehead.errors import CheckpointError, ConfigurationError
from codehead.models import named, stock
from codehead.models.named import model_shape
from codehead.training.model import load_model
from codehead.training.tokenizer import load_tokenizer

IDS = torch.tensor([[5, 7, 11, 13]])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The path of a GGUF file, and the model in it."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    torch.manual_seed(0)
    return path, write_gguf(path, [TEXT])


@pytest.fixture
def command(request):
    """The command line, under a name that is not the package's."""
    return request.getfixturevalue("codehead")


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_the_file_is_the_model_that_was_written(written):
    path, model = written
    torch.testing.assert_close(logits(load_model(str(path))), logits(model))
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.decode(tokenizer("The cat sat")["input_ids"]) == "The cat sat"
    shape = model_shape(str(path))
    assert (shape.hidden_size, shape.num_classes, shape.positions) == (32, len(tokenizer), 64)
    assert shape.quantised is None


def test_what_is_loaded_is_a_stock_model(written, tmp_path):
    path, model = written
    load_model(str(path)).save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(again), logits(model))
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_files_beside_it_belong_to_other_models(written, tmp_path):
    path, model = written
    shutil.copy(path, tmp_path / "tiny.gguf")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    torch.testing.assert_close(logits(load_model(str(tmp_path / "tiny.gguf"))), logits(model))
    assert len(load_tokenizer(str(tmp_path / "tiny.gguf"))) == model.config.vocab_size


def test_a_file_without_a_head_has_that_of_the_embedding(tmp_path):
    model = write_gguf(tmp_path / "tied.gguf", [TEXT], tied=True)
    found = load_model(str(tmp_path / "tied.gguf"))
    torch.testing.assert_close(logits(found), logits(model))
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert model_shape(str(tmp_path / "tied.gguf")).tied


def from_transformers(path):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def test_attach_to_a_model_that_transformers_has_read_from_the_file(written, tmp_path):
    path, _ = written
    coded = codehead.attach(from_transformers(path), "minrandom", bits=24)
    coded.save_pretrained(tmp_path / "coded")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "coded")
    torch.testing.assert_close(logits(again), logits(coded))


def test_detached_it_is_a_stock_model(written, tmp_path):
    path, model = written
    stock = codehead.detach(codehead.attach(from_transformers(path), "minrandom", bits=24))
    stock.save_pretrained(tmp_path / "stock")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "stock")), logits(model))


def test_a_refused_attach_leaves_the_marks(written):
    model = from_transformers(written[0])
    with pytest.raises(codehead.errors.CodeheadError):
        codehead.attach(model, "minrandom", bits=2)
    assert model.quantization_method == stock.GGUF and model.is_quantized


def test_weights_in_blocks_stay_refused(written):
    model = from_transformers(written[0])
    projection = model.model.layers[0].mlp.up_proj
    projection.weight = torch.nn.Parameter(torch.zeros(64, 34, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigurationError, match=r"quantised with gguf.*dequantize=True"):
        codehead.attach(model, "minrandom", bits=24)


def test_a_damaged_file(written, tmp_path):
    path, _ = written
    content = path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: len(content) // 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy and gguf may say what they stumble over
        for load in (load_model, load_tokenizer, model_shape):
            with pytest.raises(CheckpointError, match=r"cut\.gguf"):
                load(str(tmp_path / "cut.gguf"))


def test_a_file_of_another_format_or_none(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="does not start like a GGUF file"):
        load_model(str(tmp_path / "model.gguf"))
    with pytest.raises(ConfigurationError, match="no such file"):
        model_shape(str(tmp_path / "none.gguf"))


def test_without_the_package_that_reads_it(written, monkeypatch):
    monkeypatch.setattr(named, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'codehead\[gguf\]'"):
        load_tokenizer(str(written[0]))


@pytest.mark.parametrize(
    "arguments",
    [
        ("params", "MODEL"),
        ("recommend", "MODEL", "--bits", 24),
        ("evaluate", "MODEL", "--data", "TEXT"),
        ("generate", "MODEL", "--prompt", "The cat", "--max-new-tokens", 4),
        ("attach", "MODEL", "--bits", 24, "--out", "OUT"),
        ("convert", "MODEL", "--data", "TEXT", "--bits", 24, "--steps", 4, "--tokens", 500, "--out", "OUT"),
        ("finetune", "--model", "MODEL", "--train", "TEXT", "--max-steps", 2, "--block-size", 32, "--out", "OUT"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_takes_it(written, tmp_path, stories, arguments, command):
    meant = {"MODEL": written[0], "TEXT": stories, "OUT": tmp_path / "out"}
    status, _, errors = command(*(meant.get(argument, argument) for argument in arguments))
    assert status == 0, errors
    if "OUT" in arguments:
        assert AutoTokenizer.from_pretrained(tmp_path / "out")("The cat")["input_ids"]


@pytest.mark.slow
def test_a_real_file_is_the_checkpoint_that_was_unpacked_from_it(real_model):
    folder = real_model("SmolLM2-135M-Instruct")
    path = folder.with_suffix(".gguf")
    if not path.exists():
        pytest.skip(f"there is no {path}: the model came from the hub")
    found, expected = load_model(str(path)), load_model(str(folder))
    torch.testing.assert_close(logits(found), logits(expected))
    texts = ["The capital of France is", "In 2024, 1,234 don't\n\n\tx = 1"]
    assert load_tokenizer(str(path))(texts)["input_ids"] == load_tokenizer(str(folder))(texts)["input_ids"]
