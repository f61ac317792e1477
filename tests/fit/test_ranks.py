"""Fitting in several processes: the posterior of one, and what each is told of another that fails."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from fit.ranked_fits import FITS, PAIRS, every_fit, failures, found_by, model_of
from ranked import SHORT, on_ranks
from tiny import tiny_pairs, words
from tolerances import RELATIVE

from bayesrm_fast import InputError
from bayesrm_fast.fit import ranks
from bayesrm_fast.fit.ranks import ALONE, digest_of


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return on_ranks(4, every_fit, tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    return on_ranks(4, failures, tmp_path_factory.mktemp("failed"), SHORT)


def check_same(found, expected):
    for name in ("variance", "numbers"):
        torch.testing.assert_close(found[name], expected[name], rtol=RELATIVE[torch.float64], atol=0)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.filterwarnings("ignore:rank 4 is larger", "ignore:the evidence is largest")
def test_ranks_have_the_posterior_that_one_process_fits_to_the_last_bit_alike(fitted, name):
    found = [fitted(name)[rank] for rank in FITS[name].ranks]
    check_same(found[0], found_by(FITS[name].alone()))
    for other in found[1:]:
        assert torch.equal(other["numbers"], found[0]["numbers"])
        assert other["tensors"].keys() == found[0]["tensors"].keys()
        assert all(torch.equal(tensor, found[0]["tensors"][part]) for part, tensor in other["tensors"].items())


def test_a_calibration_chooses_alike_on_all_ranks_and_as_one_does(fitted):
    alone = FITS["kfac"].alone()
    alone.calibrate(tiny_pairs(9, 500))
    chosen = fitted("calibrated")
    assert chosen == [chosen[0]] * 4
    assert chosen[0] == (alone.posterior.prior_precision, alone.posterior.temperature)


def test_refreshed_and_unlabelled_posteriors_are_fitted_together_too(fitted):
    kfac = FITS["kfac"].alone()
    kfac.calibrate(tiny_pairs(9, 500))
    texts = [words(3, i // 2) for i in range(8)], [words(4, i) for i in range(8)]
    check_same(fitted("refreshed")[1], found_by(kfac.refresh(tiny_pairs(PAIRS))))
    check_same(fitted("unlabelled")[3], found_by(model_of().fit_unlabelled(*texts, rank=8)))


def test_a_rank_that_fits_without_a_group_waits_for_nobody(fitted):
    assert [found is not None for found in fitted("by itself")] == [False, False, True, False]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("other pairs", ["rank 1 was given other pairs than rank 0"] * 3),
        ("other options", ["rank 2 was given other options than rank 0"] * 3),
        ("unreadable", ["rank 1 failed: pairs, row 5", "pairs, row 5", "rank 1 failed: pairs, row 5"]),
        ("other calibration", ["rank 1 was given other options than rank 0"] * 3),
        ("nothing to refresh", ["rank 1 failed: there is no", "there is no posterior", "rank 1 failed: there is no"]),
        ("other dtypes", ["rank 2 was given other dtypes"] * 3),
        ("other sums", ["rank 2 was given other shapes or dtypes of sums than rank 0"] * 3),
        ("afterwards", ["nothing"] * 3),
    ],
)
def test_every_rank_is_told_which_one_cannot_go_on_and_why(failed, name, told):
    for (message, _), expected in zip(failed(name)[:3], told, strict=True):
        assert message.startswith(expected)


def test_a_rank_that_raises_is_named_on_the_others_and_no_posterior_is_left(failed):
    for rank in (0, 1):
        assert failed("raises")[rank][0] == "rank 2 failed: RuntimeError: the fan has stopped"
    assert failed("kept nothing")[:3] == [True] * 3


def test_a_rank_that_hangs_is_named_within_the_timeout_and_is_told_when_it_comes(failed):
    for rank in (0, 2):
        message, seconds = failed("late")[rank]
        assert "rank 1" in message
        assert seconds < 3 * SHORT.total_seconds()
    assert any(failed("late")[rank][0].startswith("rank 1 did not come within 8 s: dead, hanging") for rank in (0, 2))
    assert "waited 8 s for rank 1, and gave up" in failed("late")[1][0]


@pytest.mark.parametrize(("name", "dead"), [("dies in a pass", 3), ("dies in an exchange", 2)])
def test_a_rank_that_dies_is_named_on_every_other_one(failed, name, dead):
    found = failed(name)[:dead]
    assert failed(name)[dead] is None
    assert all(f"rank {dead}" in message for message, _ in found)


def test_a_process_outside_of_the_group_is_refused(failed):
    assert failed("outside")[3][0] == "this process is not in the group that is to fit"


def test_alone_nothing_is_exchanged():
    tensor = torch.ones(3)
    ALONE.add([tensor])
    assert ALONE.from_first({"a": tensor})["a"] is tensor
    assert ALONE.meet("hello") == ["hello"]
    assert ALONE.least(5) == ALONE.object_from_first(5) == 5
    assert ALONE.share(model_of().tokenize_pairs(tiny_pairs(4))) == [0, 1, 2, 3]


def test_what_ranks_were_given_differs_by_its_tokens_and_its_order():
    rm = model_of()
    pairs, others = (rm.tokenize_pairs(tiny_pairs(4, seed)) for seed in (0, 1))
    assert digest_of(pairs) == digest_of(rm.tokenize_pairs(tiny_pairs(4)))
    assert len({digest_of(pairs), digest_of(pairs[::-1]), digest_of(others), digest_of(())}) == 4


def test_small_tensors_share_an_exchange_by_dtype_and_large_ones_do_not(monkeypatch):
    monkeypatch.setattr(ranks, "BUCKET", 80)
    sizes = [(3, torch.float64), (4, torch.float32), (11, torch.float64), (5, torch.float64), (3, torch.float64)]
    tensors = [torch.zeros(size, dtype=dtype) for size, dtype in [*sizes, (0, torch.float64)]]
    found = [[tensor.numel() for tensor in bucket] for bucket in ranks._buckets(tensors)]
    assert sorted(found) == [[3], [3, 5], [4], [11]]


def test_an_input_error_names_the_store_that_is_gone(monkeypatch):
    class Gone:
        timeout = timedelta(seconds=1)

        def add(self, *_):
            return 1

        def set(self, *_):
            raise dist.DistNetworkError("Broken pipe")

    class Group:
        def get_group_store(self):
            return Gone()

    monkeypatch.setattr(dist, "get_rank", lambda _: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda _: 2)
    with pytest.raises(InputError, match="the ranks' store, mostly rank 0's, is gone: Broken pipe"):
        ranks.Ranks(Group(), torch.device("cpu")).meet()
