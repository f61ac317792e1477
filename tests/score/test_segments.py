"""Scores of segments, jointly, and what is made of them."""

import pytest
import torch
from tiny import tiny_adapter, tiny_step_model, tiny_steps, tiny_tokenizer
from tolerances import FLOAT32_INSIDE
from whole_rows import whole_rows

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.score import segments
from bayesrm_fast.score.joint import JointRewards, joint_rewards, joint_scores
from bayesrm_fast.score.segments import SegmentScores

STEPS = tiny_steps(1, seed=9)[0]
PROMPT, COMPLETIONS = STEPS["prompt"], [*STEPS["completions"], "air all", "above"]


@pytest.fixture(scope="module", params=["llama", "bert"])
def rm(request):
    rm = BayesianRewardModel(*tiny_step_model(request.param, dtype=torch.float64))
    return rm.fit(tiny_steps(6), rank=16, prior_precision=0.7)


def scores(temperature=1.0):
    mean = torch.tensor([1.2, -0.3, 2.0])
    factor = torch.tensor([[0.9, 0.0], [0.5, 0.7], [0.4, -0.6]])
    joint = JointRewards(mean, factor @ factor.T, *whole_rows(3), temperature=temperature)
    return SegmentScores(joint, [1, 5, 6, 7, 44, 8, 44], torch.tensor([2, 4, 6]))


def test_the_variances_are_those_of_the_joint_posterior(rm):
    found = rm.score_segments(PROMPT, COMPLETIONS)
    assert found.mean.shape == found.variance.shape == found.std.shape == (len(COMPLETIONS),)
    assert found.covariance.shape == (len(COMPLETIONS),) * 2
    torch.testing.assert_close(found.covariance.diagonal(), found.variance)
    assert torch.linalg.eigvalsh(found.covariance).min() > -1e-9 * found.variance.max()
    assert not found.truncated


def test_the_text_with_its_ends_is_scored_as_the_model_reads_it(rm):
    """A span's score is the model's own logit at its last token."""
    response = "act add age air all"
    found = rm.score_segments(PROMPT, response, ends=[7, 11, 19])
    row = rm.encoder.encode([PROMPT], [response])[0]
    inputs = {"input_ids": torch.tensor([row.input_ids])}
    if row.token_type_ids is not None:
        inputs["token_type_ids"] = torch.tensor([row.token_type_ids])
    with torch.no_grad():
        logits = rm.model(**inputs).logits[0]
    assert found.input_ids == row.input_ids
    torch.testing.assert_close(found.mean, (logits[:, 1] - logits[:, 0])[found.ends], rtol=1e-6, atol=1e-6)


def test_a_row_for_each_segment_says_the_same(rm):
    """Which is how a fit sees them."""
    (row,) = rm.tokenize_steps([STEPS | {"completions": COMPLETIONS, "labels": None}])
    found = joint_rewards(rm.passes(), row.reads(rm.shortcuts.no_mask), rm.fitted)
    expected = rm.score_segments(PROMPT, COMPLETIONS)
    torch.testing.assert_close(found.mean, expected.mean, rtol=FLOAT32_INSIDE, atol=FLOAT32_INSIDE)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=FLOAT32_INSIDE, atol=FLOAT32_INSIDE)


@pytest.mark.parametrize("outside", ["exact", "sketch"])
@pytest.mark.parametrize(("most", "sizes"), [(1, [1] * 8), (2, [1, 1, 2, 2, 2]), (16, [2, 3, 3])])
def test_responses_of_as_many_steps_share_their_passes(rm, monkeypatch, most, sizes, outside):
    monkeypatch.setattr(segments, "MOST_RESPONSES", most)
    found = []

    def counted(passes, rows, *options):
        found.append(len(rows))
        return joint_scores(passes, rows, *options)

    monkeypatch.setattr(segments, "joint_scores", counted)
    rows = tiny_steps(8, seed=4)
    together = rm.score_tokenized_segments(rm.tokenize_steps(rows), outside=outside)
    assert sorted(found) == sizes
    close = {"rtol": FLOAT32_INSIDE, "atol": FLOAT32_INSIDE * max(float(one.variance.max()) for one in together)}
    for one, row in zip(together, rows, strict=True):
        alone = rm.score_segments(row["prompt"], row["completions"], outside=outside)
        torch.testing.assert_close(one.covariance, alone.covariance, **close)
        torch.testing.assert_close(one.mean, alone.mean, **close)
        assert one.input_ids == alone.input_ids
        assert torch.equal(one.ends, alone.ends)
        assert (one.joint.sketch_error is None) == (outside == "exact")


@pytest.mark.parametrize("by", ["mean", "last", "min", "log_product"])
def test_an_aggregate_by_one_backward_pass_is_that_of_the_steps_to_first_order(rm, monkeypatch, by):
    monkeypatch.setattr(rm.fitted, "temperature", 1.7)
    rows = tiny_steps(8, seed=4)
    passes = []
    grad = torch.autograd.grad
    with monkeypatch.context() as counting:
        counting.setattr(torch.autograd, "grad", lambda *args, **kept: (passes.append(1), grad(*args, **kept))[1])
        found = rm.score_aggregates(rows, by)
    assert len(passes) == 3  # a batch of the rows with two steps, with three and with four
    temperature = 1.7
    for mean, variance, one in zip(found.mean, found.variance, rm.score_steps(rows), strict=True):
        z, steps = one.mean, len(one.mean)
        value, weights = {
            "mean": (z.mean(), torch.full_like(z, 1 / steps)),
            "last": (z[-1], torch.eye(steps, dtype=z.dtype)[-1]),
            "min": (z.min(), torch.eye(steps, dtype=z.dtype)[z.argmin()]),
            "log_product": (torch.sigmoid(z / temperature).log().sum(), torch.sigmoid(-z / temperature) / temperature),
        }[by]
        torch.testing.assert_close(mean, value, rtol=FLOAT32_INSIDE, atol=FLOAT32_INSIDE)
        torch.testing.assert_close(variance, weights @ one.covariance @ weights, rtol=FLOAT32_INSIDE, atol=0)


def test_aggregates_relative_to_the_prompt_are_those_of_its_own_responses(rm):
    own = [row | {"prompt": PROMPT} for row in tiny_steps(12, seed=5)]
    others = tiny_steps(3, seed=6)
    mixed = [*own[:5], *others[:2], *own[5:], others[2]]
    whole = [*range(5), *range(7, 14)]
    with pytest.warns(UserWarning, match=r"3 prompt\(s\) with a single response") as told:
        found = rm.score_aggregates(mixed, "mean", relative_to="prompt")
    assert told[0].filename == __file__
    alone = rm.score_aggregates(own, "mean", relative_to="prompt")
    close = {"rtol": FLOAT32_INSIDE, "atol": FLOAT32_INSIDE * float(alone.variance.max())}
    torch.testing.assert_close(found.mean[whole], alone.mean, **close)
    torch.testing.assert_close(found.variance[whole], alone.variance, **close)
    assert found.variance[[5, 6, 14]].tolist() == [0.0] * 3
    plain = rm.score_aggregates(own, "mean")
    torch.testing.assert_close(alone.baseline, plain.mean.mean().expand(12), **close)


def test_mean_and_last_are_linear():
    found = scores()
    covariance = found.covariance.double()
    mean, last = found.aggregate("mean"), found.aggregate("last")
    assert (mean.mean, mean.variance) == pytest.approx((float(found.mean.mean()), float(covariance.sum() / 9)))
    assert (last.mean, last.variance) == pytest.approx((2.0, float(covariance[2, 2])))
    assert last.std == pytest.approx(last.variance**0.5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("by", ["min", "product"])
def test_moments_and_draws_say_the_same(by, temperature):
    found = scores(temperature)
    exact, drawn = found.aggregate(by), found.aggregate(by, draws=200_000)
    assert exact.mean == pytest.approx(drawn.mean, abs=0.02 * drawn.std)
    assert exact.variance == pytest.approx(drawn.variance, rel=0.05)
    assert drawn == found.aggregate(by, draws=200_000)
    assert drawn != found.aggregate(by, draws=200_000, seed=1)


def test_the_first_error_is_somewhere_or_nowhere():
    found = scores(temperature=1.7)
    probability = found.first_error()
    assert probability.shape == (4,)
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool((probability >= 0).all())
    assert float(probability[3]) == pytest.approx(found.aggregate("product").mean)
    correct = torch.sigmoid(found.joint.samples(200_000).double() / 1.7)
    wrong_first = torch.cat([torch.ones(200_000, 1), correct.cumprod(1)[:, :-1]], 1) * (1 - correct)
    torch.testing.assert_close(probability[:3], wrong_first.mean(0), rtol=0.02, atol=0)


def test_probabilities_take_variance_and_temperature_into_account():
    certain, hot = scores(), scores(temperature=3.0)
    spread = (1 + torch.pi / 8 * certain.variance).sqrt()
    torch.testing.assert_close(certain.probability, torch.sigmoid(certain.mean / spread))
    assert bool(((hot.probability - 0.5).abs() < (certain.probability - 0.5).abs()).all())


def test_rewards_of_tokens_are_zero_but_where_a_segment_ends():
    found = scores()
    plain, penalised = found.token_rewards(), found.token_rewards(0.5)
    assert plain.shape == (7,)
    assert plain.nonzero().flatten().tolist() == [2, 4, 6]
    torch.testing.assert_close(plain[found.ends], found.mean)
    torch.testing.assert_close(penalised[found.ends], found.mean - 0.5 * found.variance.sqrt())
    assert penalised.nonzero().flatten().tolist() == [2, 4, 6]


def test_a_score_that_is_nan_is_named_by_its_row():
    model, tokenizer = tiny_step_model("llama")
    rows = [{"prompt": "able", "completions": ["act", word], "labels": [True, False]} for word in ("add", "art")]
    rm = BayesianRewardModel(model, tokenizer).fit(tiny_steps(), rank=8)
    posterior = rm.posterior
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("art")] = float("nan")
    with pytest.raises(InputError, match="pairs, row 2: segment 2: the model's reward is NaN"):
        rm.fit(rows)
    rm.posterior = posterior
    with pytest.raises(InputError, match="responses, row 2: the model's reward is NaN"):
        rm.score_steps(rows)


def test_what_cannot_be_asked_is_refused(rm):
    with pytest.raises(InputError, match="aggregate must be one of mean, last, min, product, not 'max'"):
        scores().aggregate("max")
    with pytest.raises(InputError, match="draws must be a whole number"):
        scores().aggregate("min", draws=0)
    for k in ("a", None, float("nan"), float("inf")):
        with pytest.raises(InputError, match="k must be a finite number"):
            scores().token_rewards(k)
    with pytest.raises(InputError, match="by must be one of mean, last, min, log_product, not 'product'"):
        rm.score_aggregates([STEPS], "product")
    with pytest.raises(InputError, match='relative_to must be "prompt" or None here'):
        rm.score_aggregates([STEPS], relative_to=["act"])
    with pytest.raises(InputError, match="there are no rows"):
        rm.score_aggregates([])
    with pytest.raises(InputError, match="without ends, must be a list of steps, not str"):
        rm.score_segments(PROMPT, "act add")
    with pytest.raises(InputError, match=r"completions\[1\] is an empty step"):
        rm.score_steps([{"prompt": PROMPT, "completions": ["act", ""]}])
    with pytest.raises(InputError, match="ForTokenClassification: it scores segments, not whole responses"):
        rm.score([PROMPT], ["act add"])
    pooled = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))
    with pytest.raises(InputError, match="LlamaForSequenceClassification scores whole responses"):
        pooled.score_segments(PROMPT, COMPLETIONS)
    with pytest.raises(InputError, match="LlamaForSequenceClassification scores whole responses"):
        pooled.score_aggregates([STEPS])
