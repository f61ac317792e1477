"""Caution: small on what P has seen, large on what it has not, and blind to labels."""

import numpy as np
import pytest
import torch
from tiny import WORDS, tiny_adapter, tiny_tokenizer

from bayesrm_fast import BayesianRewardModel
from benchmarks.overoptimisation.caution import DEPTH, Target, caution
from benchmarks.overoptimisation.tasks import Task


def made(lot, vocabulary, count):
    return [" ".join(lot.choice(vocabulary, size=8)) for _ in range(count)]


LOT = np.random.default_rng(0)
SEEN, UNSEEN = WORDS[:12], WORDS[20:]
PAIRS = [
    {"prompt": "able", "chosen": chosen, "rejected": rejected}
    for chosen, rejected in zip(made(LOT, SEEN, 30), made(LOT, SEEN, 30), strict=True)
]


@pytest.fixture(scope="module", params=["bert", "llama"])
def rm(request):
    return BayesianRewardModel(tiny_adapter(request.param), tiny_tokenizer(request.param), max_length=32)


def errors(rm, pairs, texts):
    return caution(rm, pairs)(Task("task", "able", texts, list(range(len(texts))), [0.0] * len(texts)))["caution"]


def test_it_is_larger_where_responses_are_not_like_those_of_the_pairs(rm, monkeypatch):
    monkeypatch.setattr("benchmarks.overoptimisation.caution.EPOCHS", 60)  # of a single batch each
    unlike, own = made(LOT, UNSEEN, 12), [pair[side] for pair in PAIRS for side in ("chosen", "rejected")]
    found = errors(rm, PAIRS, unlike + own)
    assert found.shape == (3, len(unlike) + len(own))
    assert found[0, len(unlike) :].mean() == pytest.approx(1.0, abs=1e-5)
    for of_tokens in found[:2]:
        assert of_tokens[: len(unlike)].mean() > 1.4 * of_tokens[len(unlike) :].mean()


def test_labels_and_the_order_of_pairs_change_nothing_and_neither_does_a_second_fit(rm, monkeypatch):
    monkeypatch.setattr("benchmarks.overoptimisation.caution.EPOCHS", 2)
    swapped = [pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in reversed(PAIRS)]
    texts = made(LOT, WORDS, 4)
    np.testing.assert_array_equal(errors(rm, PAIRS, texts), errors(rm, swapped, texts))


def test_the_target_is_the_hidden_state_after_the_layer_at_its_depth(rm):
    """Of two layers the first; it stops there, and leaves the model as it was."""
    assert np.ceil(2 * DEPTH) == 1
    rows = rm.tokenize(["able", "able"], made(LOT, SEEN, 2))
    before = rm.rewards(["able"], ["about"])
    ((_, embedded, hidden, is_token),) = Target(rm).over(rows)
    batch = rm.collator(rows)
    states = rm.model(**batch.model_inputs(), output_hidden_states=True).hidden_states
    for found, expected in ((embedded, states[0]), (hidden, states[1])):
        torch.testing.assert_close(found[is_token], expected[batch.attention_mask.bool()].detach())
    assert rm.rewards(["able"], ["about"]).equal(before)


def test_the_error_is_taken_over_the_row_the_response_and_the_scored_token(rm, monkeypatch):
    """Of rows of token ids alone: what is put in the place of P's errors is each token's position."""
    texts = ["about above", "accept across act"]
    lengths = [len(row.input_ids) for row in rm.tokenize(["able"] * 2, texts)]
    begin = len(rm.tokenize(["able"], [texts[0]])[0].input_ids) - (3 if rm.encoder.joining == "pair" else 2)
    of_task = caution(rm, PAIRS[:2])
    monkeypatch.setattr(
        "benchmarks.overoptimisation.caution.Predictor.errors",
        lambda predictor, embedded, hidden, is_token: torch.arange(is_token.shape[1]) * is_token,
    )
    found = of_task(Task("task", "able", texts, [0, 1], [0.0, 1.0]))["caution"]
    scored = 0 if rm.encoder.joining == "pair" else lengths[1] - 1
    np.testing.assert_allclose(
        found[:, 1] / found[0, 1],
        np.array([(lengths[1] - 1) / 2, np.arange(begin, lengths[1]).mean(), scored]) / ((lengths[1] - 1) / 2),
    )
