"""A model has one caller at a time, and gives the same numbers whatever state torch is in around the call."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer
from torch_states import STATES, default_dtype

from bayesrm_fast import BayesianRewardModel, InputError, RewardEnsemble
from bayesrm_fast.model.exclusive import exclusively

PAIRS, MORE_PAIRS = tiny_pairs(8), tiny_pairs(50)
PROMPTS, RESPONSES = [pair["prompt"] for pair in PAIRS], [pair["chosen"] for pair in PAIRS]


def model(architecture="llama", **options):
    return BayesianRewardModel(tiny_adapter(architecture), tiny_tokenizer(architecture), **options)


CALLS = {
    "rewards": lambda rm: (rm.rewards(PROMPTS, RESPONSES),),
    "score": lambda rm: scored(rm.score(PROMPTS, RESPONSES)),
    "score within prompts": lambda rm: scored(rm.score(PROMPTS[:4] * 2, RESPONSES, relative_to="prompt")),
    "score pairs": lambda rm: (*scored(found := rm.score_pairs(PAIRS)), found.probability),
    "stream": lambda rm: tuple(
        torch.tensor(
            list(rm.score_stream(zip(PROMPTS, RESPONSES, strict=True), window=3)), dtype=torch.float64, device="cpu"
        )
    ),
    "covariance": lambda rm: joint(rm.covariance(PROMPTS[0], RESPONSES)),
    "sketched covariance": lambda rm: joint(rm.covariance(PROMPTS[0], RESPONSES, outside="sketch")),
    "best of n": lambda rm: best(rm.best_of_n(PROMPTS[0], RESPONSES)),
    "best of n by absolute variances": lambda rm: best(rm.best_of_n(PROMPTS[0], RESPONSES, relative=False)),
}


def scored(scores):
    return scores.mean, scores.variance, scores.truncated


def joint(rewards):
    return rewards.mean, rewards.covariance, rewards.probability_of_being_best(1000), rewards.samples(10)


def best(choice):
    return choice.scores, choice.mean, choice.variance, choice.truncated


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.device) == (other.dtype, other.device)
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def refitted(rm, structure="ggn"):
    return rm.fit(PAIRS, structure=structure, rank=4)


@pytest.fixture(scope="module", params=["ggn", "ekfac"])
def before(request):
    """A fitted model, and what it gives."""
    rm = refitted(model(), request.param)
    return rm, {name: call(rm) for name, call in CALLS.items()}


@pytest.mark.parametrize("state", STATES)
def test_no_state_of_torch_changes_a_number_or_its_dtype(before, state):
    rm, expected = before
    with STATES[state]():
        found = {name: call(rm) for name, call in CALLS.items()}
    for name, tensors in found.items():
        assert_equal(tensors, expected[name])
    assert expected["score"][0].dtype == expected["score"][1].dtype == torch.float32


FITS = {
    "ggn": lambda rm: refitted(rm),
    "a sketch in two passes": lambda rm: rm.fit(MORE_PAIRS, rank=4, second_pass=True),
    "kfac": lambda rm: refitted(rm, "kfac"),
    "ekfac by validation": lambda rm: rm.fit(PAIRS, structure="ekfac", rank=4, prior_precision="validation"),
    "virtual": lambda rm: rm.fit_unlabelled(PROMPTS[:4] * 2, RESPONSES, rank=4),
}


def unfitted(fit):
    if fit == "virtual":
        return BayesianRewardModel(tiny_base("bert"), tiny_tokenizer("bert"), virtual_rank=2)
    return model()


def fitted_by(fit, rm):
    calibration = FITS[fit](rm).calibrate(PAIRS)
    chosen = (rm.posterior.prior_precision, calibration.prior_precision, calibration.temperature, calibration.after.nll)
    return chosen, tuple(rm.posterior.tensors().values())


@pytest.fixture(scope="module")
def expected_fits():
    return {fit: fitted_by(fit, unfitted(fit)) for fit in FITS}


OF_EACH_KIND = ["default dtype float64", "default dtype bfloat16", "default device", "autocast", "inference mode"]


@pytest.mark.parametrize("state", OF_EACH_KIND)
@pytest.mark.parametrize("fit", FITS)
def test_no_state_of_torch_changes_a_fit_or_its_calibration(expected_fits, fit, state):
    rm = unfitted(fit)
    with STATES[state]():
        chosen, tensors = fitted_by(fit, rm)
    assert chosen == expected_fits[fit][0]
    assert_equal(tensors, expected_fits[fit][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_of_another_dtype_keeps_the_dtype_that_is_promised(dtype):
    rm = refitted(BayesianRewardModel(tiny_base("llama", dtype=dtype), tiny_tokenizer("llama"), virtual_rank=2))
    expected = scored(rm.score(PROMPTS, RESPONSES))
    assert expected[0].dtype == expected[1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for other in (torch.float64, torch.bfloat16):
        with default_dtype(other):
            assert_equal(scored(rm.score(PROMPTS, RESPONSES)), expected)


@pytest.mark.parametrize("state", OF_EACH_KIND)
def test_no_state_of_torch_changes_what_is_loaded_or_saved(model_folder, tmp_path, state):
    expected = scored(BayesianRewardModel.from_pretrained(model_folder, device="cpu").score(PROMPTS, RESPONSES))
    with STATES[state]():
        BayesianRewardModel.from_pretrained(model_folder, device="cpu").save_pretrained(tmp_path)
        loaded = BayesianRewardModel.from_pretrained(tmp_path, device="cpu")
    assert_equal(scored(loaded.score(PROMPTS, RESPONSES)), expected)


def test_a_model_made_under_inference_mode_is_refused():
    with torch.inference_mode():
        made = tiny_adapter("llama")
    with pytest.raises(InputError, match=r"made under torch\.inference_mode: load it outside"):
        BayesianRewardModel(made, tiny_tokenizer("llama"))


def hooks_and_gradients(module):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]
    modes = [m.training for m in module.modules()]
    return hooks, modes, [(p.requires_grad, p.grad) for p in module.parameters()], module.config.pad_token_id


THREADED = CALLS | {"fit": lambda rm: tuple(refitted(rm).posterior.tensors().values())}


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference mode"])
def test_eight_threads_get_what_one_gets_and_leave_the_model_as_it_was(inference):
    rm = refitted(model())
    rm.model.train()
    before = hooks_and_gradients(rm.model)
    expected = {name: call(rm) for name, call in THREADED.items()}
    start = threading.Barrier(8)

    def every_call(number):
        start.wait()
        names = list(THREADED)
        with torch.inference_mode(inference):
            return {name: THREADED[name](rm) for name in names[number:] + names[:number]}

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(every_call, range(8)):
            for name, tensors in found.items():
                assert_equal(tensors, expected[name])
    assert hooks_and_gradients(rm.model) == before


def test_another_thread_waits_until_the_model_is_free():
    rm, order = model(), []
    with ThreadPoolExecutor(1) as pool:
        with exclusively(rm.model):
            rm.rewards(PROMPTS, RESPONSES)  # the thread that has the model may use it
            waiting = pool.submit(lambda: (rm.rewards(PROMPTS, RESPONSES), order.append("other")))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.05)
            order.append("own")
        waiting.result(timeout=30)
    assert order == ["own", "other"]


def test_adapters_on_one_base_have_one_lock_and_models_of_their_own_do_not(model_folder):
    first = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    second = first.with_adapter(model_folder, "second")
    wrapping = BayesianRewardModel(first.model.get_base_model(), first.tokenizer, virtual_rank=2)
    free = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    with ThreadPoolExecutor(4) as pool, exclusively(first.model):
        assert pool.submit(free.rewards, PROMPTS, RESPONSES).result(timeout=30).shape == (8,)
        waiting = [pool.submit(other.rewards, PROMPTS, RESPONSES) for other in (second, wrapping)]
        for one in waiting:
            with pytest.raises(TimeoutError):
                one.result(timeout=0.05)


def test_threads_may_share_an_ensemble_and_its_members(model_folder):
    ensemble = RewardEnsemble.from_pretrained([model_folder] * 3, device="cpu")
    with torch.no_grad():
        for number, member in enumerate(ensemble.members):
            member.posterior.prior_precision = 1.0 + number
            for tap in member.lora:
                tap.up.mul_(1 + number)
            member.posterior = member.posterior  # of the weights as they now are

    def score(_):
        found = ensemble.score(PROMPTS, RESPONSES)
        return found.members, found.within

    expected = score(0)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(score, range(16)):
            assert_equal(found, expected)


def test_a_stream_that_is_left_half_read_keeps_nobody_waiting():
    rm = refitted(model())
    half_read = rm.score_stream(zip(PROMPTS, RESPONSES, strict=True), window=2)
    next(half_read)
    over = rm.passes().over(rm.tokenize(PROMPTS, RESPONSES), torch.ones_like, rm.posterior.variance_consumer)
    next(over)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(rm.score, PROMPTS, RESPONSES).result(timeout=30).mean.shape == (8,)
    half_read.close()


def test_a_copy_and_a_pickle_of_a_model_have_a_lock_of_their_own():
    rm = refitted(model())
    expected = scored(rm.score(PROMPTS, RESPONSES))
    with exclusively(rm.model), ThreadPoolExecutor(1) as pool:
        for other in (copy.deepcopy(rm), pickle.loads(pickle.dumps(rm))):
            assert_equal(scored(pool.submit(other.score, PROMPTS, RESPONSES).result(timeout=30)), expected)
