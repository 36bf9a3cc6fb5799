"""Screened checkpoints in vLLM: the dense head's text, without its product where the best tokens are enough."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` makes an environment with it")
import torch

pytest.importorskip("faiss", reason="FAISS is not installed (pip install 'codehead[fast]')")

from engines import by_transformers, by_vllm, engine, prompts, stock

import codehead
from codehead.models.hidden import hidden_states
from codehead.vllm.requests import FewTokens


@pytest.fixture(scope="module", params=["fast", "exact"])
def folders(request, tmp_path_factory):
    """A stock checkpoint, and the same with a screen."""
    place, model = tmp_path_factory.mktemp(request.param), stock("llama")
    model.save_pretrained(place / "stock")
    ids = torch.tensor(prompts(300, 16))
    states = hidden_states(model, [{"input_ids": ids, "labels": ids}], 4000)
    options = {"recall": 0.99} if request.param == "fast" else {}
    codehead.screen(model, hidden=states, mode=request.param, **options).save_pretrained(place / "screened")
    return place


class _Products:
    """Counts the products with all rows of the head."""

    def __init__(self, patch):
        from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

        self.count, dense = 0, UnquantizedEmbeddingMethod.apply

        def counted(*args, **options):
            self.count += 1
            return dense(*args, **options)

        patch.setattr(UnquantizedEmbeddingMethod, "apply", counted)


@pytest.mark.slow
def test_one_request_after_the_other_needs_no_product_with_all_rows(folders, monkeypatch):
    some = prompts(6)
    text, _ = by_transformers(folders / "stock", some)
    with engine(folders / "screened", logits_processors=[FewTokens]) as made:
        products = _Products(monkeypatch)
        greedy = [by_vllm(made, [one])[0] for one in some]
        drawn = [by_vllm(made, [one], temperature=1.0, top_k=1)[0] for one in some]
        assert products.count == 0
        assert [list(answer.token_ids) for answer in greedy] == text
        assert [list(answer.token_ids) for answer in drawn] == text
        for answer in by_vllm(made, some[:1], logprobs=2), by_vllm(made, some[:1], repetition_penalty=1.2):
            assert len(answer[0].token_ids) == len(text[0])
        assert products.count > 0


@pytest.mark.slow
def test_without_the_processor_the_dense_head_is_used(folders):
    some = prompts(6)
    text, logits = by_transformers(folders / "stock", some)
    with engine(folders / "screened") as made:
        answers = by_vllm(made, some, logprobs=1)
    expected = logits.log_softmax(-1)
    for row, answer in enumerate(answers):
        assert list(answer.token_ids) == text[row]
        for place, (token, found) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True)):
            assert found[token].logprob == pytest.approx(float(expected[row, place, token]), abs=1e-3)
