"""The numbers of steps against `dense_reference`: every structure, a decoder and an encoder."""

from typing import get_args

import numpy as np
import pytest
import torch
from dense_reference import DenseSteps
from tiny import ARCHITECTURES, tiny_step_model, tiny_steps, tiny_token_classifier, tiny_tokenizer
from tolerances import FLOAT32_INSIDE, RELATIVE

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.model.readout import OnePassAggregate

PRECISION = 0.7
WEIGHTS = {1: (1.0,), 2: (-1.0, 1.0)}
WITHOUT = ("opt", "gemma3_text")
"""Of which transformers has no token classifiers."""

HEADS = {"llama": "score", "bert": "classifier"}


def ids_and_ends(rm, row):
    """By the tokenizer alone: its bos, the prompt, and each step before a line break."""
    tokenizer = rm.tokenizer
    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids += tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    ends = []
    for step in row["completions"]:
        ids += [*tokenizer(step, add_special_tokens=False)["input_ids"], len(tokenizer) - 1]
        ends.append(len(ids) - 1)
    return ids, ends


def dense_of(rm, rows, outputs, dense=DenseSteps, **options):
    steps = []
    for row in rows:
        ids, ends = ids_and_ends(rm, row)
        for end, label in zip(ends, row["labels"], strict=True):
            # Of a decoder, no token after a step belongs to it: KFAC's mean of activations is over those before.
            steps.append((ids[: end + 1] if rm.tokenizer.bos_token_id else ids, end, label))
    return dense(rm.model, steps, output_weights=WEIGHTS[outputs], **options)


class DenseAggregates(DenseSteps):
    """A row may be `(ids, ends, by)` too, whose number is made of the log-odds at its ends."""

    def reward(self, row):
        if len(row) == 2:
            return super().reward(row)
        ids, ends, by = row
        z = self.model(input_ids=torch.tensor([ids])).logits[0, ends] @ self.output_weights
        return {"mean": z.mean(), "last": z[-1], "min": z.min(), "log_product": torch.sigmoid(z).log().sum()}[by]


def assert_numbers_agree(rm, dense, row, structure, rank, relative):
    ids, ends = ids_and_ends(rm, row)
    whole = [(ids, end) for end in ends]
    expected = dense.covariance(whole, structure, rank, PRECISION)
    found = rm.score_segments(row["prompt"], row["completions"])

    def close(ours, theirs):
        theirs = np.asarray(theirs)
        np.testing.assert_allclose(
            np.asarray(ours, dtype=np.float64), theirs, rtol=relative, atol=relative * np.abs(theirs).max()
        )

    close(found.mean, [dense.reward(one).item() for one in whole])
    close(found.covariance, expected)
    close(found.aggregate("mean").variance, expected.mean())
    close(found.aggregate("last").variance, expected[-1, -1])
    assert found.ends.tolist() == ends
    assert rm.posterior.log_evidence() == pytest.approx(dense.log_evidence(structure, rank, PRECISION), rel=relative)


@pytest.mark.parametrize(
    ("structure", "rank"), [("kfac", None), ("ekfac", None), ("kfac", 5), ("ekfac", 5), ("ggn", 32)]
)
@pytest.mark.parametrize(("architecture", "outputs"), [("llama", 2), ("bert", 2), ("llama", 1)])
def test_variance_covariance_and_evidence(architecture, outputs, structure, rank):
    rows = tiny_steps()
    rm = BayesianRewardModel(*tiny_step_model(architecture, dtype=torch.float64, num_labels=outputs))
    rm.fit(rows, structure=structure, rank=rank, prior_precision=PRECISION)
    assert rm.posterior.record.pairs == sum(len(row["completions"]) for row in rows)
    dense = dense_of(rm, rows, outputs)
    assert_numbers_agree(rm, dense, tiny_steps(1, seed=7)[0], structure, rank, RELATIVE[torch.float64])


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in ("llama", "bert", *WITHOUT)])
def test_every_architecture(architecture):
    rows = tiny_steps()
    rm = BayesianRewardModel(*tiny_step_model(architecture, dtype=torch.float64))
    rm.fit(rows, structure="ggn", rank=32, prior_precision=PRECISION)
    assert_numbers_agree(rm, dense_of(rm, rows, 2), tiny_steps(1, seed=7)[0], "ggn", 32, FLOAT32_INSIDE)


@pytest.mark.parametrize("structure", ["kfac", "ggn"])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_the_head_in_the_posterior(architecture, structure):
    rows = tiny_steps()
    rm = BayesianRewardModel(*tiny_step_model(architecture, dtype=torch.float64))
    rm.fit(rows, structure=structure, rank=None, prior_precision=PRECISION, include_head=True)
    dense = dense_of(rm, rows, 2, head=HEADS[architecture])
    assert_numbers_agree(rm, dense, tiny_steps(1, seed=7)[0], structure, None, RELATIVE[torch.float64])


@pytest.mark.parametrize(("structure", "rank"), [("kfac", None), ("ekfac", 5), ("ggn", 32)])
@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_virtual_adapters(architecture, structure, rank):
    rows = tiny_steps()
    model = tiny_token_classifier(architecture, dtype=torch.float64)
    tokenizer = tiny_tokenizer(architecture, knows_line_breaks=True)
    rm = BayesianRewardModel(model, tokenizer, virtual_rank=2)
    rm.fit(rows, structure=structure, rank=rank, prior_precision=PRECISION)
    dense = dense_of(rm, rows, 2, virtual={tap.name: tap.down for tap in rm.virtual.taps})
    assert_numbers_agree(rm, dense, tiny_steps(1, seed=7)[0], structure, rank, FLOAT32_INSIDE)


@pytest.mark.parametrize(
    ("architecture", "structure", "rank"),
    [("llama", "kfac", 5), ("llama", "ekfac", None), ("llama", "ggn", 32), ("bert", "kfac", None), ("bert", "ggn", 32)],
)
def test_aggregates_of_responses_with_other_numbers_of_steps(architecture, structure, rank):
    rm = BayesianRewardModel(*tiny_step_model(architecture, dtype=torch.float64))
    rows = tiny_steps()
    rm.fit(rows, structure=structure, rank=rank, prior_precision=PRECISION)
    dense = dense_of(rm, rows, 2, DenseAggregates)
    compared = [row | {"prompt": "able act"} for row in tiny_steps(5, seed=7)]
    assert len({len(row["completions"]) for row in compared}) == 3
    for by in get_args(OnePassAggregate):
        own, relative = (rm.score_aggregates(compared, by, relative_to=to) for to in (None, "prompt"))
        asked = [(*ids_and_ends(rm, row), by) for row in compared]
        mean = torch.stack([dense.reward(one).detach() for one in asked])
        covariance = torch.as_tensor(dense.covariance(asked, structure, rank, PRECISION))
        centre = torch.eye(5, dtype=torch.float64) - 1 / 5
        close = {"rtol": RELATIVE[torch.float64], "atol": RELATIVE[torch.float64] * float(covariance.abs().max())}
        torch.testing.assert_close(own.mean, mean, **close)
        torch.testing.assert_close(own.variance, covariance.diagonal(), **close)
        torch.testing.assert_close(relative.mean, mean - mean.mean(), **close)
        torch.testing.assert_close(relative.variance, (centre @ covariance @ centre).diagonal(), **close)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_batches_of_other_sizes_and_the_whole_row_in_the_last_layer_give_the_same(architecture):
    rows, one = tiny_steps(), tiny_steps(1, seed=7)[0]
    found = []
    for tokens in (16, 4096):
        rm = BayesianRewardModel(*tiny_step_model(architecture, dtype=torch.float64), max_batch_tokens=tokens)
        assert rm.shortcuts.scored_token == "read"
        assert rm.shortcuts.no_mask == (architecture == "llama")
        rm.fit(rows, structure="ekfac", rank=5, prior_precision=PRECISION)
        found.append(rm.score_segments(one["prompt"], one["completions"]).covariance)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_the_evidence_chooses_the_precision_that_makes_it_largest():
    rows = tiny_steps(8)
    rm = BayesianRewardModel(*tiny_step_model("llama", dtype=torch.float64))
    chosen = rm.fit(rows, structure="ggn", rank=64).posterior.prior_precision
    dense = dense_of(rm, rows, 2)
    best = dense.log_evidence("ggn", 64, chosen)
    assert best >= max(dense.log_evidence("ggn", 64, factor * chosen) for factor in (0.9, 1.1))


def test_held_out_steps_are_those_of_whole_responses():
    rows = tiny_steps(6)
    rm = BayesianRewardModel(*tiny_step_model("llama", dtype=torch.float64))
    rm.fit(rows, structure="ggn", rank=64, prior_precision="validation")
    kept = [row for i, row in enumerate(rows) if i != 5]
    assert rm.posterior.record.pairs == sum(len(row["completions"]) for row in kept)
    explicit = BayesianRewardModel(*tiny_step_model("llama", dtype=torch.float64))
    explicit.fit(kept, structure="ggn", rank=64, prior_precision="validation", validation_pairs=rows[5:])
    assert explicit.posterior.prior_precision == rm.posterior.prior_precision
    with pytest.raises(InputError, match="steps of at least two responses"):
        rm.fit(rows[:1] * 1, prior_precision="validation")


def test_held_out_steps_are_judged_by_their_labels():
    """The NLL of a step that is wrong is that of −z."""
    rows, held = tiny_steps(6), tiny_steps(4, seed=11)
    rm = BayesianRewardModel(*tiny_step_model("llama", dtype=torch.float64))
    rm.fit(rows, structure="ggn", rank=64, prior_precision=1.0)
    calibration = rm.calibrate(held, prior_precision=2.0)
    rm.posterior.prior_precision, rm.posterior.temperature = 1.0, 1.0
    right, nll = [], []
    for scores, row in zip(rm.score_steps(held), held, strict=True):
        labels = torch.tensor(row["labels"])
        probability = torch.where(labels, scores.probability, 1 - scores.probability)
        right += (probability > 0.5).tolist()
        nll += (-probability.log()).tolist()
    assert calibration.pairs == len(right)
    assert calibration.before.accuracy == pytest.approx(np.mean(right))
    assert calibration.before.nll == pytest.approx(np.mean(nll))


def test_labels_change_the_likelihood_and_not_the_curvature():
    rows = tiny_steps()
    turned = [row | {"labels": [not label for label in row["labels"]]} for row in rows]
    found = []
    for given in (rows, turned):
        rm = BayesianRewardModel(*tiny_step_model("llama", dtype=torch.float64))
        found.append(rm.fit(given, structure="kfac", rank=None, prior_precision=PRECISION))
    first, second = found
    row = tiny_steps(1, seed=7)[0]
    variances = [rm.score_segments(row["prompt"], row["completions"]).variance for rm in found]
    torch.testing.assert_close(*variances, rtol=1e-12, atol=0)
    assert first.posterior.record.log_likelihood != pytest.approx(second.posterior.record.log_likelihood)
