"""What each of four ranks does in the tests of `fit.ranks`."""

import contextlib
import os
import time
import warnings
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from ranked import SHORT
from tiny import tiny_adapter, tiny_pairs, tiny_step_model, tiny_steps, tiny_tokenizer, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.fit.ranks import Ranks
from bayesrm_fast.model.passes import Passes
from bayesrm_fast.model.taps import TappedModel

TEXTS = [words(3, 1)] * 5, [words(5, i) for i in range(5)]
PAIRS = 13
"""Which neither two nor four ranks divide."""

MANY = 45
"""Of which a ggn of rank 4 keeps a sketch."""


@dataclass(frozen=True)
class Fit:
    """A fit that ranks do together.

    Attributes:
        options: of the fit.
        pairs: how many there are; of responses in steps, for a model of those.
        model: of `BayesianRewardModel`.
        ranks: which fit.
        short_of_memory: a rank whose first batch does not fit in memory.
    """

    options: dict
    pairs: int = PAIRS
    model: dict = field(default_factory=dict)
    of_steps: bool = False
    ranks: tuple = (0, 1, 2, 3)
    short_of_memory: int | None = None

    def alone(self):
        """What one process fits."""
        return self.on(None)

    def on(self, group):
        rm = model_of(self.of_steps, **self.model)
        data = tiny_steps(self.pairs) if self.of_steps else tiny_pairs(self.pairs)
        return rm.fit(data, group=group, **self.options)


FITS = {
    "kfac": Fit(dict(structure="kfac", rank=4)),
    "ekfac": Fit(dict(structure="ekfac", rank=4, prior_precision="margins")),
    "ggn of every pair": Fit(dict(rank=8)),
    "a sketched ggn": Fit(dict(rank=4, second_pass=True), pairs=MANY),
    "two ranks": Fit(dict(structure="ekfac", rank=4), ranks=(1, 3)),
    "held-out pairs": Fit(dict(rank=8, prior_precision="validation"), pairs=22),
    "virtual adapters": Fit(dict(structure="kfac", rank=4, include_head=True), model=dict(virtual_rank=2)),
    "steps": Fit(dict(structure="ekfac", rank=4), pairs=5, of_steps=True),
    "two ranks without a pair": Fit(dict(structure="ekfac", rank=4, prior_precision="margins"), pairs=2),
    "two ranks without a pair, ggn": Fit(dict(rank=8), pairs=2),
    "a rank short of memory": Fit(dict(structure="kfac", rank=4), short_of_memory=1),
    "a rank short of memory, ggn": Fit(dict(rank=8), short_of_memory=2),
}


def model_of(of_steps=False, **options):
    if of_steps:
        return BayesianRewardModel(*tiny_step_model("llama", dtype=torch.float64), max_batch_tokens=64)
    model = tiny_adapter("llama", dtype=torch.float64)
    return BayesianRewardModel(model, tiny_tokenizer("llama"), max_batch_tokens=64, **options)


def found_by(rm):
    """What a fit has found, and what follows from it."""
    variance = rm.score_steps(tiny_steps(3, 1))[0].covariance if rm.segments else rm.score(*TEXTS).variance
    record = rm.posterior.record
    numbers = (record.pairs, record.log_likelihood or 0.0, record.squared_norm, rm.posterior.prior_precision)
    return {"variance": variance, "numbers": torch.tensor(numbers), "tensors": rm.posterior.tensors()}


@contextlib.contextmanager
def short_of_memory():
    """The second batch does not fit, once: a consumer that has seen the first one is given up."""
    run, calls = TappedModel.run, []

    def failing(self, batch, *args, **options):
        calls.append(batch.input_ids.shape[0])
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no memory")
        return run(self, batch, *args, **options)

    TappedModel.run = failing
    try:
        yield
    finally:
        TappedModel.run = run
    assert len(calls) > 3


def every_fit(at):
    """All of `FITS`, then a calibration, and a fit that one rank does by itself while the others do something else."""
    warnings.simplefilter("ignore")
    groups = {ranks: at.group(*ranks) for ranks in {fit.ranks for fit in FITS.values()}}
    for name, fit in FITS.items():
        if groups[fit.ranks] is None:
            continue
        with short_of_memory() if at.rank == fit.short_of_memory else contextlib.nullcontext():
            rm = fit.on(groups[fit.ranks])
        at.keep(name, found_by(rm))
    rm = FITS["kfac"].on(groups[0, 1, 2, 3])
    rm.calibrate(tiny_pairs(9, 500), group=groups[0, 1, 2, 3])
    at.keep("calibrated", (rm.posterior.prior_precision, rm.posterior.temperature))
    refreshed = rm.refresh(tiny_pairs(PAIRS), group=groups[0, 1, 2, 3])
    at.keep("refreshed", found_by(refreshed))
    texts = [words(3, i // 2) for i in range(8)], [words(4, i) for i in range(8)]
    at.keep("unlabelled", found_by(model_of().fit_unlabelled(*texts, rank=8, group=groups[0, 1, 2, 3])))
    if at.rank == 2:
        at.keep("by itself", found_by(FITS["kfac"].alone()))
    dist.barrier()


def failures(at):
    """Ranks that fail, come late or die, one after the other; and what the others are told."""
    warnings.simplefilter("ignore")
    some = at.group(0, 1, 2)

    def told(name, call):
        started = time.monotonic()
        try:
            call()
        except (InputError, RuntimeError) as error:
            at.keep(name, (str(error), time.monotonic() - started))
        else:
            at.keep(name, ("nothing", 0.0))

    rm = model_of()
    rm.fit(tiny_pairs(5), rank=4)  # what a first fit takes longer for is done
    dist.barrier()
    if some is not None:
        rm = model_of()
        told("other pairs", lambda: rm.fit(tiny_pairs(5, seed=int(at.rank == 1)), group=some, rank=4))
        told("other options", lambda: rm.fit(tiny_pairs(5), group=some, rank=4 + int(at.rank == 2)))
        broken = tiny_pairs(5) if at.rank != 1 else [*tiny_pairs(4), {"prompt": "a"}]
        told("unreadable", lambda: rm.fit(broken, group=some, rank=4))
        fitted = model_of().fit(tiny_pairs(5), rank=4)
        chosen = 1.0 if at.rank == 1 else "validation"
        told("other calibration", lambda: fitted.calibrate(tiny_pairs(5, 100), chosen, group=some))
        refreshed = fitted if at.rank != 1 else rm
        told("nothing to refresh", lambda: refreshed.refresh(tiny_pairs(5), group=some))
        if at.rank == 2:
            fitted.model.to(torch.float32)
        told("other dtypes", lambda: fitted.fit(tiny_pairs(5), group=some, rank=4))
        told("other sums", lambda: Ranks(some, torch.device("cpu")).add([torch.zeros(2 + at.rank // 2)]))
        with _before_a_pass(_raise) if at.rank == 2 else contextlib.nullcontext():
            told("raises", lambda: rm.fit(tiny_pairs(5), group=some, rank=4))
        at.keep("kept nothing", rm.posterior is None)
        told("afterwards", lambda: rm.fit(tiny_pairs(5), group=some, rank=4))
        late = _before_a_pass(lambda: time.sleep(SHORT.total_seconds() + 1))
        with late if at.rank == 1 else contextlib.nullcontext():
            told("late", lambda: rm.fit(tiny_pairs(5), group=some, rank=4))
    if at.rank == 3:
        told("outside", lambda: rm.fit(tiny_pairs(5), group=dist.GroupMember.NON_GROUP_MEMBER, rank=4))
        time.sleep(SHORT.total_seconds())  # the others wait as long for the one that is late
    if at.rank == 3:
        Passes.gather = lambda *_: os._exit(0)
    told("dies in a pass", lambda: rm.fit(tiny_pairs(5), group=dist.group.WORLD, rank=4))
    if at.rank == 2:
        dist.all_reduce = lambda *_, **__: os._exit(0)
    told("dies in an exchange", lambda: rm.fit(tiny_pairs(5), group=some, rank=4))


def _raise():
    raise RuntimeError("the fan has stopped")


@contextlib.contextmanager
def _before_a_pass(act):
    """What a rank does before it passes over its share."""
    gather = Passes.gather

    def acting(self, *args):
        act()
        return gather(self, *args)

    Passes.gather = acting
    try:
        yield
    finally:
        Passes.gather = gather
