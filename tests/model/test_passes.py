"""Passes over many batches, also where they do not fit in memory."""

import warnings

import pytest
import torch
from tiny import WORDS, tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.fit.moments import EigenvalueCorrection, KroneckerMoments
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.passes import (
    check_finite,
    drawn,
    likelihood_cotangent,
    measured_budget,
    unit_cotangent,
)
from bayesrm_fast.model.shortcut_trials import RowFrame
from bayesrm_fast.model.taps import TappedModel
from bayesrm_fast.text.examples import TokenizedPair, TokenizedRow

CANDIDATES = [{"prompt": words(3, 1), "responses": [words(2 + i % 6, i) for i in range(20)]}]
TEXTS = ([words(3, 1)] * 20, CANDIDATES[0]["responses"])


@pytest.fixture
def small_memory(monkeypatch):
    """A device on which no more than `tokens` fit, unless layers are run again in the backward pass."""
    limit = {"tokens": 10**9, "refused": 0}
    forward = Forward.__call__

    def limited(self, batch):
        checkpoints = any(getattr(m, "gradient_checkpointing", False) and m.training for m in self.model.modules())
        if batch.input_ids.numel() > limit["tokens"] and not checkpoints:
            limit["refused"] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, batch)

    monkeypatch.setattr(Forward, "__call__", limited)
    return limit


def model():
    return BayesianRewardModel(tiny_adapter("llama"), tiny_tokenizer("llama"))


def told(record):
    return [str(w.message) for w in record if "did not fit" in str(w.message)]


def test_smaller_batches_give_the_same_and_it_is_said_once(small_memory):
    rm = model().fit(tiny_pairs(), rank=4)
    expected, best = rm.score(*TEXTS), rm.best_of_each(CANDIDATES, relative=False)[0]
    small_memory["tokens"] = 20
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        found, again = rm.score(*TEXTS), rm.best_of_each(CANDIDATES, relative=False)[0]
    assert small_memory["refused"] > 1
    assert len(told(record)) == 1
    assert rm.passes().budget.batch_tokens <= 200
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-4, atol=0)
    assert again.index == best.index


def test_a_fit_in_smaller_batches_gives_the_same_and_counts_nothing_twice(small_memory):
    expected = model().fit(tiny_pairs(), rank=4, prior_precision=1.0).score(*TEXTS)
    rm = model()
    rm.shortcuts  # noqa: B018  (tried before memory is short)
    small_memory["tokens"] = 60
    with pytest.warns(UserWarning, match="did not fit"):
        rm.fit(tiny_pairs(), rank=4, prior_precision=1.0)
    small_memory["tokens"] = 10**9
    torch.testing.assert_close(rm.score(*TEXTS).variance, expected.variance, rtol=1e-4, atol=0)


def test_one_row_that_does_not_fit_is_run_with_checkpoints(small_memory):
    rm = model().fit(tiny_pairs(), rank=4)
    expected = rm.score(*TEXTS)
    small_memory["tokens"] = 1
    with pytest.warns(UserWarning, match="did not fit"):
        found = rm.score(*TEXTS)
    assert rm.passes().budget.checkpoints
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-4, atol=0)
    layers = rm.model.get_base_model().model.layers
    assert not any("gradient_checkpointing" in vars(layer) and layer.gradient_checkpointing for layer in layers)


def test_where_nothing_is_left_to_give_up_the_error_is_the_devices(small_memory):
    rm = model().fit(tiny_pairs(), rank=4)
    small_memory["tokens"] = 1
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="did not fit"):
        rm.best_of_each(CANDIDATES, relative=False)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


class Counts:
    """Examples and rows' gradients that have been seen at each site; the first of its kind may fail on the way."""

    gradients_alone = True

    def __init__(self, fails_at=None, error=OUT_OF_MEMORY):
        self.examples, self.calls, self.fails_at, self.error = {}, 0, fails_at, error

    def consume(self, site, p, q, offsets):
        self.calls += 1
        if self.calls == self.fails_at:
            raise self.error
        self.examples[site.name] = self.examples.get(site.name, 0) + offsets.numel() - 1


@pytest.fixture
def passes():
    rm = model().fit(tiny_pairs(), rank=4, prior_precision=1.0)
    passes = rm.passes()
    passes.budget.batch_tokens = 100
    return passes


@pytest.fixture
def rows():
    return model().tokenize(*TEXTS)


@pytest.fixture
def batches(monkeypatch):
    """Rows of every batch that a tapped model runs."""
    ran, run = [], TappedModel.run

    def recorded(self, batch, *args, **options):
        ran.append(batch.input_ids.shape[0])
        return run(self, batch, *args, **options)

    monkeypatch.setattr(TappedModel, "run", recorded)
    return ran


def test_a_consumer_that_has_seen_a_part_is_thrown_away(passes, rows):
    """It fails at a site in the middle of its second batch's backward pass."""
    sites = len(passes.tapped.sites)
    waiting = [Counts(sites + 5), Counts(2), Counts()]
    made, told = [], []

    def make_consumer():
        made.append(waiting.pop(0))
        return made[-1]

    with pytest.warns(UserWarning, match="did not fit"):
        rewards, consumer = passes.gather(rows, unit_cotangent, make_consumer, lambda *at: told.append(at))
    assert consumer is made[2]
    assert waiting == []
    assert set(consumer.examples.values()) == {len(rows)}  # every site saw every row exactly once
    assert len(consumer.examples) == sites
    assert 0 < made[0].examples[next(iter(made[0].examples))] < len(rows)
    batches = list(passes.over(rows, unit_cotangent, Counts))
    expected = {i: value for batch in batches for i, value in zip(batch.positions, batch.scalars, strict=True)}
    expected = torch.stack([expected[i] for i in range(len(rows))])
    torch.testing.assert_close(rewards, expected, rtol=1e-4, atol=1e-5)
    dones = [done for done, _ in told]
    again = next(i for i in range(1, len(dones)) if dones[i] <= dones[i - 1])  # counted from the beginning
    assert dones[again:] == sorted(set(dones[again:]))
    assert told[-1] == (len(rows), len(rows))


def test_an_ekfac_fit_starts_only_the_failing_pass_again(batches, monkeypatch):
    rm, pairs = model(), tiny_pairs()
    rm.fit(pairs, structure="ekfac", rank=4, prior_precision=1.0)
    expected = rm.score(*TEXTS).variance
    assert batches[:2] == [12, 12]  # the six pairs' twelve rows fit in a batch, in either pass
    batches.clear()
    consume, made, consumers = EigenvalueCorrection.consume, KroneckerMoments.__init__, []
    seen = []

    def fails_once(self, *args):
        seen.append(self)
        if len(seen) == 3:
            raise OUT_OF_MEMORY
        consume(self, *args)

    monkeypatch.setattr(EigenvalueCorrection, "consume", fails_once)
    monkeypatch.setattr(KroneckerMoments, "__init__", lambda self, *a: (consumers.append(self), made(self, *a))[1])
    with pytest.warns(UserWarning, match="did not fit"):
        rm.fit(pairs, structure="ekfac", rank=4, prior_precision=1.0)
    assert len(consumers) == 1
    assert len({id(one) for one in seen}) == 2
    assert batches[:2] == [12, 12]  # the first pass, and the second one's batch that failed
    assert sum(batches[2:]) == 12
    assert len(batches) > 3
    torch.testing.assert_close(rm.score(*TEXTS).variance, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), KeyboardInterrupt(), InputError("no")])
def test_other_errors_go_through_at_once(passes, rows, error):
    made = []

    def make_consumer():
        made.append(Counts(3, error))
        return made[-1]

    before = passes.budget.batch_tokens
    for ask in (passes.gather, lambda *args: list(passes.over(*args))):
        made.clear()
        with pytest.raises(type(error)) as raised:
            ask(rows, unit_cotangent, make_consumer)
        assert raised.value is error
        assert len(made) == 1
    with pytest.raises(type(error)):
        list(
            passes.in_batches(
                rows, lambda positions: Counts(1, error).consume(None, None, None, None), has_backward=True
            )
        )
    assert passes.budget.batch_tokens == before


def test_where_memory_never_suffices_gathering_ends(passes):
    (row,) = model().tokenize(["able"], ["act"])
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="gradient checkpointing"):
        passes.gather([row], unit_cotangent, lambda: Counts(1))
    assert passes.budget.checkpoints


def test_in_batches_yields_positions_and_what_was_made_of_them(passes, rows):
    found = list(passes.in_batches(rows, lambda positions: [10 * i for i in positions], has_backward=False))
    assert len(found) > 1
    assert sorted(i for positions, _ in found for i in positions) == list(range(len(rows)))
    assert all(value == [10 * i for i in positions] for positions, value in found)


def test_a_batch_that_does_not_fit_is_planned_again_with_those_that_wait(passes, rows):
    tried = []

    def run(positions):
        tried.append(list(positions))
        if len(positions) > 3:
            raise OUT_OF_MEMORY
        return len(positions)

    with pytest.warns(UserWarning, match="did not fit"):
        found = list(passes.in_batches(rows, run, has_backward=False))
    assert sorted(i for positions, _ in found for i in positions) == list(range(len(rows)))
    assert all(value == len(positions) <= 3 for positions, value in found)
    assert [len(positions) for positions in tried if len(positions) > 3]


def test_a_result_of_none_is_a_result(passes, rows):
    """What `run` gives is the caller's own."""
    found = list(passes.in_batches(rows, lambda positions: None, has_backward=False))
    assert sorted(i for positions, _ in found for i in positions) == list(range(len(rows)))


@pytest.fixture
def a_gpu(monkeypatch):
    """CUDA's figures, of a device on which a token takes a thousand bytes."""
    peak = {"bytes": 0}
    run = TappedModel.run

    def recorded(self, batch, *args, **options):
        peak["bytes"] = max(peak["bytes"], 1000 * batch.input_ids.numel())
        return run(self, batch, *args, **options)

    monkeypatch.setattr(TappedModel, "run", recorded)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.update(bytes=0))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak["bytes"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**7, 10**8))


def test_a_measured_budget_is_what_fits_and_draws_no_random_number_of_the_callers(passes, a_gpu):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    budget = measured_budget(passes.tapped, 64, passes.collate, RowFrame(ends=(2,)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert budget.batch_tokens == int(0.7 * 10**7 / 1000)
    assert not budget.checkpoints


def test_few_are_drawn_and_the_same_every_time():
    examples = [TokenizedRow([i], None, False) for i in range(50)]
    before = torch.random.get_rng_state()
    found = drawn(examples, 10)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found == drawn(examples, 10)
    assert len({row.input_ids[0] for row in found}) == 10
    assert sorted(row.input_ids[0] for row in drawn(examples, 80)) == list(range(50))


def test_scalars_that_are_not_finite_are_named_by_their_example():
    row = TokenizedRow([1], None, False, "row 1")
    examples = [TokenizedPair(row, row, f"pairs, row {i}") for i in (1, 2, 3)]
    check_finite(torch.ones(3, 2), examples)
    for value in (float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"^pairs, row 2: the model's reward is NaN or infinite$"):
            check_finite(torch.tensor([[1.0, 2.0], [1.0, value], [value, 1.0]]), examples)


def test_the_likelihoods_cotangent_is_the_root_of_its_curvature():
    differences = torch.tensor([-3.0, 0.0, 0.5, 100.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(-torch.nn.functional.logsigmoid(differences).sum(), differences, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), differences)
    torch.testing.assert_close(likelihood_cotangent(differences.detach()).square(), curvature)
    assert unit_cotangent(differences.detach()).tolist() == [1.0] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{"structure": "kfac", "include_head": True}, {"structure": "ggn"}], ids=str)
@pytest.mark.parametrize("virtual_rank", [None, 2])
def test_a_reward_that_is_nan_is_named_before_its_gradients_are(dtype, options, virtual_rank):
    """In float16 they overflow; in others they reach eigenvalues, or a search for the scored token."""
    base = tiny_base("llama", dtype=dtype)
    model = base if virtual_rank else tiny_adapter("llama", base=base)
    with torch.no_grad():
        next(m for name, m in model.named_modules() if name.endswith("embed_tokens")).weight[7] = torch.nan
    rm = BayesianRewardModel(model, tiny_tokenizer("llama"), virtual_rank=virtual_rank)
    pairs = tiny_pairs(4)
    word = WORDS[7 - 4]
    pairs = [{name: text.replace(word, "a") for name, text in pair.items()} for pair in pairs]
    pairs[2]["rejected"] += f" {word}"
    with pytest.raises(InputError, match=r"^pairs, row 3(: rejected)?: the model's reward is NaN"):
        rm.fit(pairs, rank=4, prior_precision=1.0, **options)
