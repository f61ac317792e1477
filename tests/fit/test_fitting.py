"""From pairs to a posterior: what is held out, and what the record says."""

import pytest
import torch
from tiny import tiny_adapter, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.fit.fitting import HELD_OUT_EVERY, MARGIN_PAIRS
from bayesrm_fast.fit.prior import by_margins, margins_and_norms
from bayesrm_fast.model.passes import drawn
from bayesrm_fast.posterior.files import CLASSES
from bayesrm_fast.versions import library_versions

TEXTS = [words(3, 1)] * 4, [words(5, i) for i in range(4)]


@pytest.fixture
def rm():
    return BayesianRewardModel(tiny_adapter("bert"), tiny_tokenizer("bert"))


def test_every_tenth_pair_is_kept_out_of_the_fit_and_chooses_the_prior(rm):
    assert HELD_OUT_EVERY == 10
    pairs = tiny_pairs(24)
    held_out = [pairs[5], pairs[15]]
    posterior = rm.fit(pairs, rank=4, prior_precision="validation").posterior
    variance = rm.score(*TEXTS).variance
    rest = [pair for i, pair in enumerate(pairs) if i not in (5, 15)]
    expected = rm.fit(rest, rank=4, prior_precision="validation", validation_pairs=held_out).posterior
    assert posterior.record == expected.record
    assert posterior.record.pairs == 22
    assert posterior.prior == expected.prior
    torch.testing.assert_close(variance, rm.score(*TEXTS).variance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("count", [2, 5])
def test_of_few_pairs_the_last_one_is_held_out(rm, count):
    pairs = tiny_pairs(count)
    posterior = rm.fit(pairs, rank=4, prior_precision="validation").posterior
    expected = rm.fit(pairs[:-1], rank=4, prior_precision="validation", validation_pairs=pairs[-1:]).posterior
    assert (posterior.record, posterior.prior) == (expected.record, expected.prior)


def test_one_pair_cannot_be_divided(rm):
    with pytest.raises(InputError, match="at least two pairs"):
        rm.fit(tiny_pairs(1), prior_precision="validation")


@pytest.mark.parametrize("structure", CLASSES)
def test_the_record_says_what_was_fitted(rm, structure):
    pairs = tiny_pairs(7)
    record = rm.fit(pairs, structure=structure, rank=4, prior_precision=2.0).posterior.record
    assert (record.structure, record.rank, record.pairs) == (structure, 4, 7)
    likelihood = torch.nn.functional.logsigmoid(rm.score_pairs(pairs).mean.double()).sum()
    assert record.log_likelihood == pytest.approx(float(likelihood), rel=1e-5)
    weights = [weight.detach().double() for name, weight in rm.model.named_parameters() if "lora_" in name]
    assert record.squared_norm == pytest.approx(float(sum(weight.square().sum() for weight in weights)), rel=1e-6)
    assert record.versions == library_versions()
    assert record.include_head is False
    assert rm.posterior.prior.method == "given"
    assert rm.posterior.temperature == 1.0


def test_the_heads_weight_counts_where_it_is_in_the_posterior(rm):
    alone = rm.fit(tiny_pairs(), rank=4).posterior.record
    record = rm.fit(tiny_pairs(), rank=4, include_head=True).posterior.record
    head = rm.model.get_base_model().classifier.weight.detach()
    assert record.squared_norm - alone.squared_norm == pytest.approx(float(head.double().square().sum()), rel=1e-5)
    assert record.include_head is True


@pytest.mark.parametrize("structure", CLASSES)
def test_without_labels_there_is_no_likelihood_and_margins_choose_the_prior(rm, structure):
    prompts, responses = [words(3, i // 2) for i in range(8)], [words(4, i) for i in range(8)]
    posterior = rm.fit_unlabelled(prompts, responses, structure=structure, rank=4).posterior
    assert posterior.record.log_likelihood is None
    assert posterior.record.pairs == 4
    assert posterior.prior.method == "margins"
    for choice in ("evidence", "validation"):
        with pytest.raises(InputError, match="needs labels"):
            rm.fit_unlabelled(prompts, responses, structure=structure, prior_precision=choice)


def test_margins_are_those_of_pairs_drawn_by_lot(rm, monkeypatch):
    monkeypatch.setattr("bayesrm_fast.fit.fitting.MARGIN_PAIRS", 3)
    assert MARGIN_PAIRS == 128
    pairs = tiny_pairs(12)
    found = rm.fit(pairs, rank=4, prior_precision="margins").posterior.prior
    sample = drawn(rm.tokenize_pairs(pairs), 3)
    expected = by_margins(*margins_and_norms(rm.passes(), sample))
    assert found.precision == pytest.approx(expected.precision, rel=1e-6)


def test_the_count_of_a_validation_fit_has_the_held_out_pairs(rm):
    told = []
    rm.fit(
        tiny_pairs(12), structure="ekfac", rank=4, prior_precision="validation", progress=lambda *at: told.append(at)
    )
    assert told[-1] == (11 + 11 + 1, 11 + 11 + 1)
    assert {total for _, total in told} == {23}


@pytest.mark.parametrize("position", [5, 6])
def test_a_pair_that_cannot_be_scored_has_its_own_number_held_out_or_not(rm, position):
    """Of twelve pairs the sixth is held out, and those after it move up."""
    pairs = [{side: text.replace("art", "a") for side, text in pair.items()} for pair in tiny_pairs(12)]
    pairs[position]["chosen"] = "art"
    with torch.no_grad():
        rm.model.get_base_model().bert.embeddings.word_embeddings.weight[rm.tokenizer("art").input_ids[1]] = float(
            "nan"
        )
    with pytest.raises(InputError, match=rf"pairs, row {position + 1}: .*NaN"):
        rm.fit(pairs, rank=4, prior_precision="validation")
    assert rm.posterior is None


@pytest.mark.parametrize("structure", ["kfac", "ekfac"])
def test_a_curvature_beyond_float32_is_refused(structure):
    """B so large, and A so small, that rewards stay as they are and A's gradients do not."""
    model = tiny_adapter("llama")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.mul_(1e-25 if "lora_A" in name else 1e25)
    with pytest.raises(InputError, match="the curvature is NaN or infinite: the pairs' gradients are too large"):
        BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(), structure=structure, rank=4)
