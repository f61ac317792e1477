"""What a ggn fit keeps, known before it begins."""

import gc
import itertools
from dataclasses import replace

import pytest
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer
from torch.profiler import ProfilerActivity, profile

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.fit import memory
from bayesrm_fast.fit.memory import SPARE, FitMemory, ggn_memory, weights_that_fit
from bayesrm_fast.fit.sketches import GGN_OVERSAMPLING, GgnSketch

# 90 vectors may be planned with.
WHOLE = FitMemory(vector=1000, vectors=90, free=100_000, rank=20, margin=30)


@pytest.fixture
def rm():
    return BayesianRewardModel(tiny_adapter("bert"), tiny_tokenizer("bert"))


@pytest.fixture
def free(monkeypatch):
    def set_free(count):
        monkeypatch.setattr(memory, "free_bytes", lambda _: count)

    return set_free


def test_what_fits_is_let_through_and_one_vector_more_is_refused_with_the_rank_that_would_fit():
    assert SPARE == 0.9
    WHOLE.refuse_what_does_not_fit()
    with pytest.raises(InputError, match=r"rank=20 does not fit: .*; rank=20 would fit"):
        replace(WHOLE, vectors=91).refuse_what_does_not_fit()
    with pytest.raises(InputError, match=r"no rank would; structure='kfac' needs less"):
        replace(WHOLE, vectors=91, margin=88).refuse_what_does_not_fit()


def test_it_is_told_in_units_that_can_be_read():
    assert str(replace(WHOLE, vector=2**20, free=2**29)) == "the fit keeps 90.0 MiB of 0.5 GiB that are free"


@pytest.mark.parametrize(
    ("rank", "second_pass", "kept"),
    [(None, False, 2 * 60), (40, False, 60 + 40), (100, True, 2 * 60), (4, False, 2 * 36 + 4), (4, True, 3 * 36)],
)
def test_vectors_are_those_of_sketch_or_gradients_and_what_is_made_of_them(rank, second_pass, kept):
    rm = BayesianRewardModel(tiny_adapter("bert"), tiny_tokenizer("bert"), max_batch_tokens=1)
    pairs = rm.tokenize_pairs(tiny_pairs(60))
    rm.fit(tiny_pairs(2), rank=1)
    passes = rm.passes()
    found = ggn_memory(passes, pairs, rank, second_pass)
    assert GGN_OVERSAMPLING == 32
    assert found.vectors == kept + 1  # a batch is one pair
    assert found.margin == 3 * 32 + 1
    assert found.vector == 4 * rm.posterior.parameters
    assert found.rank == rank
    sketch = GgnSketch(passes.tapped.sites, rank, 60, passes.device, passes.tapped.gradient_dtype)
    if not sketch.is_exact:
        rows = [len(rows) for rows in (next(iter(sketch.omega.values())), next(iter(sketch.total.values())))]
        assert sum(rows) == 2 * 36


def test_weights_that_fit_are_those_whose_fit_is_let_through(rm, free):
    pairs = rm.tokenize_pairs(tiny_pairs(60))
    rm.fit(tiny_pairs(2), rank=1)
    parameters = rm.posterior.parameters
    for rank, second_pass in ((None, False), (4, False), (4, True), (100, False)):
        free(10**9)
        vectors = ggn_memory(rm.passes(), pairs, rank, second_pass).vectors
        for spare, fits in ((4, True), (-4, False)):
            free(int((vectors * 4 * parameters + spare) / SPARE) + 1)
            assert (weights_that_fit(rm.passes(), pairs, rank, second_pass) >= parameters) == fits


def test_what_does_not_fit_is_refused_before_a_pass_and_the_rank_that_is_advised_fits(rm, free):
    parameters = sum(site.r * site.d for site in rm.fit(tiny_pairs(), rank=2).posterior.sites)
    before = rm.posterior
    pairs = tiny_pairs(120)
    free(200 * 4 * parameters)
    told = []
    with pytest.raises(InputError, match=r"rank=60 does not fit: the fit keeps .* MiB of .* MiB .*rank=(\d+)") as error:
        rm.fit(pairs, structure="ggn", rank=60, progress=lambda *at: told.append(at))
    assert rm.posterior is before
    assert not told
    advised = int(str(error.value).split("rank=")[2].split()[0])
    assert rm.fit(pairs, structure="ggn", rank=advised).posterior.record.rank == advised


def peak_of(run):
    """Bytes of tensors that are alive at once at most, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


@pytest.mark.parametrize("layers", ["every", "one"])
def test_the_peak_of_a_fit_in_two_passes_is_what_was_announced(layers):
    """With the garbage collector off: what a pass leaves to it would be beside the next pass's sums."""
    # Sites so large that what batches take to run is small beside the vectors.
    base = tiny_base("bert", num_hidden_layers=1, intermediate_size=24 if layers == "every" else 1024)
    targets = ["query", "value", "output.dense"] if layers == "every" else ["layer.0.output.dense"]
    model = tiny_adapter("bert", base=base, r=32, target_modules=targets)
    rm = BayesianRewardModel(model, tiny_tokenizer("bert"), max_batch_tokens=128)
    rm.shortcuts  # noqa: B018  (tried before memory is measured)
    pairs = tiny_pairs(40)
    announced = ggn_memory(rm.passes_over(rm.taps(None)), rm.tokenize_pairs(pairs), 4, second_pass=True).total
    gc.collect()
    gc.disable()
    try:
        peak = peak_of(lambda: rm.fit(pairs, rank=4, second_pass=True, prior_precision=1.0))
    finally:
        gc.enable()
    assert 0.9 * announced < peak < 1.1 * announced
