"""One seed's reward model, and all that rules need to know of the test tasks: computed once, kept in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bayesrm_fast import BayesianRewardModel, FitOptions
from bayesrm_fast.fit.prior import by_evidence
from bayesrm_fast.model.layers import last_layer
from bayesrm_fast.posterior.base import Posterior, VarianceConsumer
from bayesrm_fast.score.relative import Comparison, over_differences
from bayesrm_fast.sites import Site
from bayesrm_fast.train.adapter import TrainOptions, train_adapter
from benchmarks.data import embedded_encoder
from benchmarks.overoptimisation.tasks import Task, split

PRECISIONS = (0.1, 1.0, 10.0, 100.0)
"""λ of the grid; each posterior's own λ by evidence comes last."""

PRIOR = 1e12
"""λ at which nothing is left of a posterior but the prior; stds are multiplied by its root."""

STRUCTURES = {
    "exact": FitOptions("ggn", None, 1.0),
    "ggn": FitOptions("ggn", 128, 1.0),
    "kfac": FitOptions("kfac", 64, 1.0),
    "ekfac": FitOptions("ekfac", 64, 1.0),
}
"""`exact` keeps every pair's gradient: the linearised posterior itself."""


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


def measured(
    seed: int, noise: float, scale: dict[str, Any], folder: Path, progress: Any
) -> tuple[list[Task], list[dict[str, np.ndarray]], dict[str, float]]:
    """Every test task, its arrays, and each structure's λ by evidence; from the folder where they are there already.

    Returns:
        The tasks; for each `gold [N]`, `samples [N]`, `mean [U]`, `mbr [U]`, `<structure>/absolute [L, U]`,
        `<structure>/relative [L, U]`, `prior/absolute [U]`, `prior/relative [U]`.
    """
    path = folder / f"seed{seed}-noise{noise:g}.npz"
    pairs, tasks = split(seed, noise, scale["training_tasks"], scale["test_tasks"])
    if not path.exists():
        adapter = folder / f"seed{seed}-noise{noise:g}.adapter"
        if not (adapter / "adapter_config.json").exists():
            options = TrainOptions(
                target_modules=["query", "value"],
                epochs=scale["epochs"],
                learning_rate=5e-4,
                max_length=scale["max_length"],
                seed=seed,
            )
            train_adapter(embedded_encoder(), pairs, adapter, options, progress)
        rm = BayesianRewardModel.from_pretrained(adapter, max_length=scale["max_length"], device="cpu")
        arrays, chosen = _computed(rm, pairs, tasks, progress)
        flat = {f"{number}|{name}": array for number, one in enumerate(arrays) for name, array in one.items()}
        flat |= {f"lambda|{name}": np.array(precision) for name, precision in chosen.items()}
        np.savez(path.with_suffix(".writing.npz"), **flat)  # type: ignore[arg-type]
        path.with_suffix(".writing.npz").rename(path)
    with np.load(path) as held:
        found: list[dict[str, np.ndarray]] = [{} for _ in tasks]
        for key in held.files:
            number, name = key.split("|")
            if number != "lambda":
                found[int(number)][name] = held[key]
        return tasks, found, {key.split("|")[1]: float(held[key]) for key in held.files if key.startswith("lambda|")}


def _computed(
    rm: BayesianRewardModel, pairs: list[dict[str, str]], tasks: list[Task], progress: Any
) -> tuple[list[dict[str, np.ndarray]], dict[str, float]]:
    posteriors: dict[str, tuple[Posterior, list[float]]] = {}
    chosen = {}
    for name, options in STRUCTURES.items():
        posterior = rm.fit(pairs, options).fitted
        chosen[name] = by_evidence(posterior).precision
        posteriors[name] = (posterior, [*PRECISIONS, chosen[name]])
    exact = posteriors["exact"][0]
    layer = last_layer(rm.model)
    assert layer is not None
    inside = set(layer.modules())
    sites = [site for tap in rm.passes().tapped.taps if tap.module in inside for site in tap.sites]
    posteriors["last layer"] = (exact.conditional(sites), [*PRECISIONS, chosen["exact"]])
    posteriors["prior"] = (posteriors["ggn"][0], [PRIOR])
    found = []
    for number, task in enumerate(tasks):
        rows = rm.tokenize([task.prompt] * len(task.texts), task.texts)
        own = list(range(len(rows)))
        comparisons = [Comparison(own, []), Comparison(own, task.samples)]
        (batch,) = over_differences(rm.passes(), rows, comparisons, lambda: Curves(list(posteriors.values())))
        count = len(own)
        one = {
            "gold": np.array(task.gold),
            "samples": np.array(task.samples),
            "mean": batch.mean[:count].double().numpy(),
            "mbr": _mean_similarity(task),
        }
        for name, stds in zip(posteriors, batch.consumer.stds(), strict=True):
            scaled = stds * PRIOR**0.5 if name == "prior" else stds
            one |= {f"{name}/absolute": scaled[:, :count], f"{name}/relative": scaled[:, count:]}
        found.append(one)
        if progress is not None:
            progress(number + 1, len(tasks))
    return found, chosen


_encoder: Any = None


def _mean_similarity(task: Task) -> np.ndarray:  # shape: (U,)
    """Mean cosine similarity to all samples, by the encoder as it is: what minimum Bayes risk chooses by."""
    global _encoder
    if _encoder is None:
        from sentence_transformers import SentenceTransformer

        _encoder = SentenceTransformer(str(embedded_encoder()), device="cpu")
    embedded = _encoder.encode(
        [text[:1500] for text in task.texts], normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
    ).astype(np.float64)
    weights = np.bincount(task.samples, minlength=len(task.texts)) / len(task.samples)
    similarity: np.ndarray = embedded @ (weights @ embedded)
    return similarity
