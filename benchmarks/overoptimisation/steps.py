"""What is computed of a seed's reward model for every task: each step gives arrays that rules choose by."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from bayesrm_fast import BayesianRewardModel, FitOptions
from bayesrm_fast.fit.prior import by_evidence
from bayesrm_fast.model.layers import last_layer
from bayesrm_fast.posterior.base import Posterior, VarianceConsumer
from bayesrm_fast.score.relative import Comparison, over_differences
from bayesrm_fast.sites import Site
from benchmarks.data import embedded_encoder
from benchmarks.overoptimisation.tasks import Pairs, Task

PRECISIONS = (0.1, 1.0, 10.0, 100.0)
"""λ of the grid; each posterior's own λ by evidence comes last."""

PRIOR = 1e12
"""λ at which nothing is left of a posterior but the prior; stds are multiplied by its root."""

EXACT = FitOptions("ggn", None, 1.0)
"""Keeps every pair's gradient: the linearised posterior itself."""

STRUCTURES = {
    "exact": EXACT,
    "ggn": FitOptions("ggn", 128, 1.0),
    "kfac": FitOptions("kfac", 64, 1.0),
    "ekfac": FitOptions("ekfac", 64, 1.0),
}

VIRTUAL_RANK = 8
DRAWS = 64
"""Of the joint posterior, for Thompson sampling."""

Arrays = dict[str, np.ndarray]
OfTask = Callable[[Task], Arrays]


class Curves:
    """A consumer that feeds each posterior's variances at its own values of λ."""

    gradients_alone = True

    def __init__(self, posteriors: Sequence[tuple[Posterior, Sequence[float]]]) -> None:
        self.inner: list[tuple[set[str], VarianceConsumer]] = [
            ({site.name for site in posterior.sites}, posterior.variance_curve_consumer(precisions))
            for posterior, precisions in posteriors
        ]

    def consume(self, site: Site, p: Tensor, q: Tensor, offsets: Tensor) -> None:
        """Take one site."""
        for sites, consumer in self.inner:
            if site.name in sites:
                consumer.consume(site, p, q, offsets)

    def stds(self) -> list[np.ndarray]:  # shape of each: (L, N)
        """Of each posterior."""
        return [consumer.variance.double().clamp(min=0).sqrt().cpu().numpy() for _, consumer in self.inner]


def stds_of(
    rm: BayesianRewardModel, task: Task, posteriors: dict[str, tuple[Posterior, list[float]]]
) -> tuple[np.ndarray, Arrays]:  # shape of the first: (U,)
    """Rewards of the distinct samples, and by each posterior `<name>/absolute` and `<name>/relative` `[L, U]`."""
    rows = rm.tokenize([task.prompt] * len(task.texts), task.texts)
    own = list(range(len(rows)))
    comparisons = [Comparison(own, []), Comparison(own, task.samples)]
    (batch,) = over_differences(rm.passes(), rows, comparisons, lambda: Curves(list(posteriors.values())))
    arrays: Arrays = {}
    for name, stds in zip(posteriors, batch.consumer.stds(), strict=True):
        arrays |= {f"{name}/absolute": stds[:, : len(own)], f"{name}/relative": stds[:, len(own) :]}
    return batch.mean[: len(own)].double().numpy(), arrays


def structures(rm: BayesianRewardModel, pairs: Pairs) -> OfTask:
    """`gold [N]`, `samples [N]`, `mean [U]`, `mbr [U]` and every structure's stds; the prior's are `[1, U]`."""
    posteriors: dict[str, tuple[Posterior, list[float]]] = {}
    for name, options in STRUCTURES.items():
        posterior = rm.fit(pairs, options).fitted
        posteriors[name] = (posterior, [*PRECISIONS, by_evidence(posterior).precision])
    exact, precisions = posteriors["exact"]
    layer = last_layer(rm.model)
    assert layer is not None
    inside = set(layer.modules())
    sites = [site for tap in rm.passes().tapped.taps if tap.module in inside for site in tap.sites]
    posteriors["last layer"] = (exact.conditional(sites), precisions)
    posteriors["prior"] = (posteriors["ggn"][0], [PRIOR])

    def of_task(task: Task) -> Arrays:
        mean, arrays = stds_of(rm, task, posteriors)
        for kind in ("absolute", "relative"):
            arrays[f"prior/{kind}"] *= PRIOR**0.5
        evidence = {f"{name}/evidence": np.array(posteriors[name][1][-1]) for name in STRUCTURES}
        judged = {"gold": np.array(task.gold), "samples": np.array(task.samples)}
        return arrays | evidence | judged | {"mean": mean, "mbr": mean_similarity(task)}

    return of_task


def joint(rm: BayesianRewardModel, pairs: Pairs) -> OfTask:
    """Of the exact posterior: `best [U]`, `draws [DRAWS, U]`, and stds at λ by margins under the name `margins`."""
    by_margins = rm.fit(pairs, rank=None, prior_precision="margins").fitted
    posteriors = {"margins": (by_margins, [by_margins.prior_precision])}
    rm.fit(pairs, rank=None, prior_precision="evidence")

    def of_task(task: Task) -> Arrays:
        _, arrays = stds_of(rm, task, posteriors)
        rewards = rm.covariance(task.prompt, task.texts, outside="exact")
        best = rewards.probability_of_being_best().numpy()
        return arrays | {"best": best, "draws": rewards.samples(DRAWS).double().numpy()}

    return of_task


def virtual(rm: BayesianRewardModel, pairs: Pairs, targets: list[str]) -> OfTask:
    """Stds by virtual adapters of the merged model, by what a fit does by default where there is no LoRA."""
    merged = BayesianRewardModel(
        rm.model.merge_and_unload(),
        rm.tokenizer,
        virtual_rank=VIRTUAL_RANK,
        virtual_targets=targets,
        max_length=rm.encoder.max_length,
    )
    posterior = merged.fit(pairs).fitted
    posteriors = {"virtual": (posterior, [posterior.prior_precision])}
    return lambda task: stds_of(merged, task, posteriors)[1]


def member(rm: BayesianRewardModel, number: int) -> OfTask:
    """Rewards of one member of an ensemble, `member<number> [U]`."""

    def of_task(task: Task) -> Arrays:
        rewards = rm.rewards([task.prompt] * len(task.texts), task.texts)
        return {f"member{number}": rewards.double().numpy()}

    return of_task


@cache
def _encoder() -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(embedded_encoder()), device="cpu")


def mean_similarity(task: Task) -> np.ndarray:  # shape: (U,)
    """Mean cosine similarity to all samples, by the encoder as it is: what minimum Bayes risk chooses by."""
    embedded = (
        _encoder()
        .encode(
            [text[:1500] for text in task.texts],
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        .astype(np.float64)
    )
    weights = np.bincount(task.samples, minlength=len(task.texts)) / len(task.samples)
    similarity: np.ndarray = embedded @ (weights @ embedded)
    return similarity
