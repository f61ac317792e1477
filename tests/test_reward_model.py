"""The public class: options, refusals, results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import WORDS, tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError, PreferencePair
from bayesrm_fast.fit.prior import GRID
from bayesrm_fast.select.rules import Need, Rule
from bayesrm_fast.text.prefetching import AHEAD

ROOT = Path(__file__).resolve().parent.parent

PROMPT, RESPONSES = words(3, 1), [words(4 + i, i) for i in range(4)]


@pytest.fixture(scope="module")
def rm():
    model = BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))
    return model.fit(tiny_pairs(), rank=4, prior_precision=10.0)


@pytest.fixture
def unfitted():
    return BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))


def test_scores(rm):
    scores = rm.score([PROMPT] * 4, RESPONSES)
    for values in (scores.mean, scores.variance, scores.std):
        assert (values.dtype, values.device.type, values.shape) == (torch.float32, "cpu", (4,))
    torch.testing.assert_close(scores.std.square(), scores.variance)
    assert scores.truncated.tolist() == [False] * 4
    frame = scores.to_pandas()
    assert list(frame.columns) == ["mean", "variance", "std", "truncated"]
    assert len(frame) == 4


def test_pairs_are_differences_with_a_probability(rm):
    pairs = [PreferencePair(PROMPT, RESPONSES[0], RESPONSES[1])]
    scored = rm.score_pairs(pairs)
    joint = rm.covariance(PROMPT, RESPONSES[:2])
    torch.testing.assert_close(scored.mean[0], joint.mean[0] - joint.mean[1], rtol=1e-4, atol=1e-5)
    difference = torch.tensor([1.0, -1.0])
    torch.testing.assert_close(scored.variance[0], difference @ joint.covariance @ difference, rtol=1e-4, atol=1e-5)
    map_probability = torch.sigmoid(scored.mean[0])
    assert abs(scored.probability[0] - 0.5) < abs(map_probability - 0.5)
    assert "probability" in scored.to_pandas().columns


def test_the_dimming_of_the_probability_is_the_logistic_gaussian_integral(rm):
    """MacKay's approximation is within 0.02 of the integral."""
    scored = rm.score_pairs(tiny_pairs())
    draws = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    integral = torch.sigmoid(scored.mean + draws * scored.std).mean(0)
    assert (integral - scored.probability).abs().max() < 0.02


@pytest.mark.parametrize("rule", ["mean", "std", "variance"])
def test_best_of_n(rm, rule):
    best = rm.best_of_n(PROMPT, RESPONSES, rule, k=None if rule == "mean" else 0.3, relative=False)
    scores = rm.score([PROMPT] * 4, RESPONSES)
    by_hand = {
        "mean": scores.mean,
        "std": scores.mean - 0.3 * scores.std,
        "variance": scores.mean - 0.3 * scores.variance,
    }
    assert best.index == int(by_hand[rule].argmax())
    assert best.response == RESPONSES[best.index]
    torch.testing.assert_close(best.scores, by_hand[rule])


class Optimist(Rule):
    needs = frozenset({Need.VARIANCE})

    def scores(self, known):
        return known.mean + known.variance.sqrt()


class Shy(Rule):
    needs = frozenset({Need.VARIANCE})

    def scores(self, known):
        return known.mean - 5 * known.variance.sqrt()

    def ceilings(self, mean, floor):
        return mean


def test_a_rule_of_ones_own(rm):
    with pytest.warns(UserWarning, match="Optimist has no ceilings, so every variance is computed"):
        best = rm.best_of_n(PROMPT, RESPONSES, Optimist(), relative=False)
    assert best.variances_computed == 4
    assert best.index == int((best.mean + best.variance.sqrt()).argmax())
    shy = rm.best_of_n(PROMPT, RESPONSES, Shy(), relative=False)
    assert shy.index == rm.best_of_n(PROMPT, RESPONSES, k=5.0, relative=False).index


def test_exhaustive_gives_every_variance(rm):
    responses = [words(2 + i % 30, i) for i in range(60)]
    lazy, all_of_them = (rm.best_of_n(PROMPT, responses, k=0.01, relative=False, exhaustive=e) for e in (False, True))
    assert lazy.variances_computed < 60 == all_of_them.variances_computed
    assert not all_of_them.scores.isnan().any()
    assert lazy.index == all_of_them.index


def test_tokenized_rows_and_pairs_are_scored_as_their_texts_are(rm):
    scores = rm.score_tokenized(rm.tokenize([PROMPT] * 4, RESPONSES))
    assert torch.equal(scores.variance, rm.score([PROMPT] * 4, RESPONSES).variance)
    assert torch.equal(
        rm.score_tokenized_pairs(rm.tokenize_pairs(tiny_pairs())).probability, rm.score_pairs(tiny_pairs()).probability
    )
    with pytest.raises(InputError, match="nothing to score"):
        rm.score_tokenized([])


def test_one_prompt_with_12500_candidates(rm):
    responses = [" ".join(WORDS[i // len(WORDS) ** place % len(WORDS)] for place in range(3)) for i in range(12_500)]
    best = rm.best_of_n(PROMPT, responses, relative=False)
    assert best.mean.shape == (12_500,)
    assert 1 <= best.variances_computed < 12_500
    few = sorted({best.index, *best.mean.topk(20).indices.tolist()})
    again = rm.best_of_n(PROMPT, [responses[i] for i in few], relative=False, exhaustive=True)
    assert few[again.index] == best.index


def test_ten_thousand_prompts_with_four_candidates(rm):
    sets = [
        {"prompt": words(3, i), "responses": [WORDS[(i + j) % len(WORDS)] for j in range(4)]} for i in range(10_000)
    ]
    best = rm.best_of_each(sets, relative=False)
    assert len(best) == 10_000
    some = rm.best_of_each(sets[:40], relative=False, exhaustive=True)
    assert [one.index for one in some] == [one.index for one in best[:40]]


def test_equal_candidates_tie_to_the_first(rm):
    assert rm.best_of_n(PROMPT, [RESPONSES[0]] * 3).index == 0


def test_chat_messages():
    tokenizer = tiny_tokenizer("llama", chat_template="{% for m in messages %}{{ m['content'] }} </s> {% endfor %}")
    rm = BayesianRewardModel(tiny_adapter("llama"), tokenizer)
    pairs = [
        {
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "chosen": [{"role": "assistant", "content": pair["chosen"]}],
            "rejected": pair["rejected"],
        }
        for pair in tiny_pairs()
    ]
    rm.fit(pairs, rank=4)
    messages = rm.score([[{"role": "user", "content": PROMPT}]], [RESPONSES[0]])
    torch.testing.assert_close(messages.mean, rm.score([PROMPT], [RESPONSES[0]]).mean)


def test_rows_that_were_cut_are_told():
    rm = BayesianRewardModel(tiny_adapter("bert"), tiny_tokenizer("bert"), max_length=16).fit(tiny_pairs(), rank=4)
    texts = ["again", "again " * 100_000]
    short = len(rm.tokenizer(PROMPT, texts[0])["input_ids"])
    relative = rm.score([PROMPT] * 2, texts, relative_to=["about"] * 2)
    for found in (rm.score([PROMPT] * 2, texts), relative, rm.covariance(PROMPT, texts)):
        assert found.truncated.tolist() == [False, True]
        assert found.tokens.tolist() == [short, 16]


def test_an_empty_response_is_scored_with_a_warning(rm):
    with pytest.warns(UserWarning, match="empty response"):
        assert rm.score([PROMPT], [""]).mean.isfinite().all()


@pytest.mark.parametrize("tokenizer_has_one", [True, False])
def test_no_padding_token(tokenizer_has_one):
    base = tiny_base("llama", pad_token_id=None)
    tokenizer = tiny_tokenizer("llama")
    if not tokenizer_has_one:
        tokenizer.pad_token = None
    rm = BayesianRewardModel(tiny_adapter("llama", base=base), tokenizer).fit(tiny_pairs(), rank=4)
    together = rm.score([PROMPT] * 4, RESPONSES)
    for i in range(4):
        alone = rm.score([PROMPT], [RESPONSES[i]])
        torch.testing.assert_close(together.mean[i], alone.mean[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.variance[i], alone.variance[0], rtol=1e-4, atol=1e-5)
    assert base.config.pad_token_id is None


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ([], [], "the list is empty"),
        (["a"], ["b", "c"], "1 prompts but 2 responses"),
        ("a", ["b"], "prompts must be a list"),
        (["a"], "b", "responses must be a list"),
        (["a", "a"], ["b", 5], r"responses\[1\] must be a string"),
        (["a\0"], ["b"], r"prompts\[0\] contains a NUL"),
        (["a"], ["b\udfff"], r"responses\[0\] contains a lone surrogate"),
    ],
)
def test_bad_rows_are_named(rm, prompts, responses, message):
    with pytest.raises(ValueError, match=message):
        rm.score(prompts, responses)


def test_no_candidates(rm):
    with pytest.raises(InputError, match="empty"):
        rm.best_of_n(PROMPT, [])
    with pytest.raises(InputError, match="empty"):
        rm.covariance(PROMPT, [])


def test_scoring_without_a_posterior(unfitted):
    with pytest.raises(InputError, match="call fit"):
        unfitted.score([PROMPT], RESPONSES[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior_precision": 0}, "positive"),
        ({"prior_precision": -1.0}, "positive"),
        ({"prior_precision": float("nan")}, "positive"),
        ({"prior_precision": "evidense"}, "'evidence', 'validation' or 'margins'"),
        ({"structure": "diag"}, "structure"),
        ({"rank": 0}, "rank"),
        ({"rank": 2.5}, "rank"),
        ({"validation_pairs": [{"prompt": "a", "chosen": "able", "rejected": "act"}]}, "validation_pairs"),
    ],
)
def test_bad_options(unfitted, options, message):
    with pytest.raises(InputError, match=message):
        unfitted.fit(tiny_pairs(), **options)
    assert unfitted.posterior is None


def test_a_rank_larger_than_a_site_is_clamped_with_a_warning(unfitted):
    with pytest.warns(UserWarning, match="rank 20 is larger than the 16 columns"):
        unfitted.fit(tiny_pairs(), structure="kfac", rank=20)
    assert unfitted.posterior.blocks["model.layers.0.self_attn.q_proj.lora_A"].basis_q.shape == (16, 16)
    assert unfitted.posterior.blocks["model.layers.0.mlp.up_proj.lora_B"].basis_q.shape == (24, 20)


def test_a_failed_fit_keeps_the_earlier_posterior(unfitted):
    unfitted.fit(tiny_pairs(), rank=4)
    before = unfitted.posterior
    with pytest.raises(InputError):
        unfitted.fit([{"prompt": "a", "chosen": "b", "rejected": "b"}])
    assert unfitted.posterior is before


@pytest.mark.parametrize("structure", ["kfac", "ekfac", "ggn"])
def test_evidence_chooses_the_maximum_of_its_curve(unfitted, structure):
    posterior = unfitted.fit(tiny_pairs(), structure=structure, rank=4, prior_precision="evidence").posterior
    chosen = posterior.log_evidence()
    assert all(chosen >= value for _, value in posterior.prior.curve)
    assert chosen >= max(posterior.log_evidence(posterior.prior_precision * factor) for factor in (0.99, 1.01))
    # MacKay's fixed point
    expected = posterior.effective_parameters() / posterior.record.squared_norm
    assert posterior.prior_precision == pytest.approx(expected, rel=1e-6)
    assert 0 < posterior.effective_parameters() < posterior.parameters


@pytest.mark.parametrize("own", [True, False])
def test_validation_chooses_by_the_nll_of_held_out_pairs(unfitted, own):
    pairs, held_out = tiny_pairs(20), tiny_pairs(5, seed=77)
    unfitted.fit(pairs, rank=4, prior_precision="validation", validation_pairs=held_out if own else None)
    record, prior = unfitted.posterior.record, unfitted.posterior.prior
    assert record.pairs == (20 if own else 18)
    assert prior.method == "validation"
    assert len(prior.curve) == len(GRID)
    if own:
        nll = {}
        for precision in GRID[::8]:
            unfitted.posterior.prior_precision = precision
            nll[precision] = -unfitted.score_pairs(held_out).probability.log().mean().item()
        curve = dict(map(tuple, prior.curve))
        for precision, value in nll.items():
            assert curve[precision] == pytest.approx(value, rel=1e-4)


def test_a_new_prior_precision_needs_no_new_fit(rm, unfitted):
    before = rm.posterior.prior_precision
    try:
        rm.posterior.prior_precision = 3.0
        changed = rm.score([PROMPT], RESPONSES[:1]).variance
        with pytest.raises(InputError, match="positive"):
            rm.posterior.prior_precision = 0.0
    finally:
        rm.posterior.prior_precision = before
    unfitted.fit(tiny_pairs(), rank=4, prior_precision=3.0)
    torch.testing.assert_close(unfitted.score([PROMPT], RESPONSES[:1]).variance, changed, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("structure", "options", "done"), [("kfac", {}, 6), ("ekfac", {}, 12), ("ggn", {"second_pass": True}, 6)]
)
def test_progress_counts_every_pass(unfitted, structure, options, done):
    told = []
    unfitted.fit(tiny_pairs(), structure=structure, progress=lambda *at: told.append(at), **options)
    assert told[-1] == (done, done)
    assert [count for count, _ in told] == sorted(count for count, _ in told)


def test_labels_do_not_matter_to_the_curvature():
    a, b, prompt = words(6, 30), words(7, 31), words(3, 1)
    rm = BayesianRewardModel(tiny_base("llama"), tiny_tokenizer("llama"), virtual_rank=2)
    rm.fit_unlabelled([prompt, prompt], [a, b], prior_precision=1.0)
    unlabelled = rm.score([PROMPT] * 4, RESPONSES).variance
    for chosen, rejected in ((a, b), (b, a)):
        rm.fit([{"prompt": prompt, "chosen": chosen, "rejected": rejected}], prior_precision=1.0)
        torch.testing.assert_close(rm.score([PROMPT] * 4, RESPONSES).variance, unlabelled, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("prompts", "responses", "options", "message"),
    [
        (["a"], ["b"], dict(prior_precision=1.0), "nothing to compare"),
        (["a", "a"], ["b", "b"], dict(prior_precision=1.0), "nothing to compare"),
        (["a", "a"], ["b"], dict(prior_precision=1.0), "2 prompts but 1"),
        (["a", "a"], ["b", "c"], dict(prior_precision="evidence"), "give a number, or 'margins'"),
        (["a", "a"], ["b", "c"], dict(prior_precision=-1.0), "positive"),
    ],
)
def test_unlabelled_candidates_that_cannot_be_served(unfitted, prompts, responses, options, message):
    with pytest.raises(InputError, match=message):
        unfitted.fit_unlabelled(prompts, responses, **options)
    assert unfitted.posterior is None


def test_lora_takes_unlabelled_candidates_too():
    rm = BayesianRewardModel(tiny_adapter("bert"), tiny_tokenizer("bert"))
    rm.fit_unlabelled(
        [words(3, 1)] * 4, [words(3 + i, i) for i in range(4)], prior_precision=1.0, structure="kfac", rank=None
    )
    assert rm.posterior.record.pairs == 2


@pytest.mark.parametrize("as_mapping", [False, True])
def test_a_stream_gives_what_score_gives_in_order(rm, as_mapping):
    prompts, responses = [words(1 + i % 5, i) for i in range(23)], [words(1 + i % 7, 50 + i) for i in range(23)]
    scores = rm.score(prompts, responses)
    rows = zip(prompts, responses, strict=True)
    if as_mapping:
        rows = ({"prompt": prompt, "response": response} for prompt, response in rows)
    means, variances, truncated = zip(*rm.score_stream(rows, window=5), strict=True)
    torch.testing.assert_close(torch.tensor(means), scores.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(variances), scores.variance, rtol=1e-4, atol=0)
    assert list(truncated) == scores.truncated.tolist()


def test_a_stream_reads_no_more_than_it_needs(rm):
    read = []
    stream = rm.score_stream((read.append(i) or ("able", words(3, i)) for i in range(10_000)), window=4)
    for _ in range(8):
        next(stream)
    stream.close()
    assert len(read) <= 4 * (2 + AHEAD + 2)


def test_a_bad_row_is_named_after_the_windows_before_it(rm):
    stream = rm.score_stream([("able", "act")] * 6 + [("able", None)], window=3)
    assert len([next(stream) for _ in range(6)]) == 6
    with pytest.raises(InputError, match="row 7: response must be"):
        next(stream)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel tells no peak memory here")
def test_the_peak_memory_of_a_stream_does_not_grow_with_its_rows():
    """Rows that stayed would take 4 kB each for their token ids alone; an allocator's noise is some MiB."""
    peaks = []
    for rows in (512, 8192):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.stream_memory", str(rows), "64", "1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(json.loads(done.stdout)["peak_bytes"])
    assert peaks[1] - peaks[0] < 2048 * (8192 - 512)


@pytest.mark.parametrize("number", [2, 5])
def test_a_reward_that_is_nan_is_named_by_its_row(number):
    model = tiny_adapter("llama")
    rm = BayesianRewardModel(model, tiny_tokenizer("llama")).fit(tiny_pairs(), rank=4)
    with torch.no_grad():  # the rows that hold this word, and no others
        model.get_base_model().model.embed_tokens.weight[rm.tokenizer.convert_tokens_to_ids("art")] = float("nan")
    rm.posterior = rm.posterior  # of the model as it is now
    rows = [("able", "again art" if i == number else "again" + " all" * i) for i in range(1, 7)]
    prompts, responses = zip(*rows, strict=True)
    for ask in (rm.score, rm.rewards):
        with pytest.raises(InputError, match=f"^row {number}: the model's reward is NaN or infinite"):
            ask(prompts, responses)
    stream = rm.score_stream(rows, window=3)
    for _ in range(number // 3 * 3):
        next(stream)
    with pytest.raises(InputError, match=f"^row {number}: the model's reward is NaN or infinite"):
        next(stream)
    with pytest.raises(InputError, match=r"^candidates, row 2: responses\[1\]: the model's reward is NaN"):
        rm.best_of_each([{"prompt": "able", "responses": one} for one in (["act"], ["act", "art", "add"])])
    pairs = [{"prompt": "able", "chosen": "act", "rejected": text} for text in ("all", "add", "art")]
    for ask in (rm.score_pairs, rm.fit):
        with pytest.raises(InputError, match=r"^pairs, row 3: the model's reward is NaN"):
            ask(pairs)


def test_a_fit_on_other_pairs_makes_other_directions():
    rm = BayesianRewardModel(tiny_base("llama"), tiny_tokenizer("llama"), virtual_rank=2)
    rm.fit(tiny_pairs(), prior_precision=1.0)
    before = rm.virtual.taps[0].down
    rm.fit(tiny_pairs(seed=50), prior_precision=1.0)
    assert not torch.allclose(rm.virtual.taps[0].down, before)


@pytest.mark.parametrize("responses", [None, "able", (one for one in RESPONSES)], ids=["null", "str", "generator"])
def test_candidates_that_are_no_list_are_named(rm, responses):
    for call in (rm.best_of_n, rm.covariance, rm.advice):
        with pytest.raises(InputError, match="responses must be a list, not"):
            call(PROMPT, responses)
