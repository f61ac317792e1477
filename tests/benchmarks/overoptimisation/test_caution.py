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
    assert found.shape == (len(unlike) + len(own),)
    assert found[: len(unlike)].mean() > 1.5
    assert found[len(unlike) :].mean() == pytest.approx(1.0, abs=1e-5)


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
