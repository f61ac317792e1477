"""Reward models on a Ray cluster: rows of a dataset by Ray Data, requests by Ray Serve."""

import os
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pyarrow
import ray
import ray.data
from pydantic import BaseModel, Field
from ray.data import ActorPoolStrategy, Dataset

from bayesrm_fast.errors import InputError
from bayesrm_fast.integrations.result_rows import chosen_rows, scoring_of
from bayesrm_fast.reward_model import BayesianRewardModel
from bayesrm_fast.select.checks import whole
from bayesrm_fast.select.named_rules import rule_of
from bayesrm_fast.select.penalties import Penalty, PenaltyOfStd
from bayesrm_fast.text.records import iter_candidate_sets

if TYPE_CHECKING:  # a worker of Ray Data needs none of it
    from fastapi import FastAPI
    from ray import serve

    from bayesrm_fast.serve.options import ServerOptions

Row = dict[str, Any]
OfRow = Callable[[Row], Row]

MOST_REQUESTS = 1024
"""That a replica has at once: more than trainers have in flight, so that its engine has all of them for its batches."""

MOST_DEATHS = 3
"""Of workers at the same batch, after which another one tries it; one more ends the run: no worker would survive it."""


@dataclass(frozen=True)
class ScoringConfig:
    """What a processor does, in the style of the configurations of `ray.data.llm`.

    Attributes:
        model: folder of a model with its posterior, at the same place on every node.
        rule: by which the best response of every prompt is chosen, as for `BayesianRewardModel.best_of_n`; None for
            scores of all of them.
        k: weight of a named rule's penalty: a number, or "tuned".
        relative: whether mean and variance are of the difference to the mean of the prompt's responses. Default: they
            are for a choice, and not for scores.
        batch_size: rows that an actor is given together, and that are lost and scored again where it dies.
        concurrency: actors; or the fewest and the most, between which their number follows the work. None for one a GPU
            of the cluster, or where it has none one a core but one.
        max_batch_tokens: of a batch of the model, padding included.

    Raises:
        InputError: an unknown rule, or a number that is none.
    """

    model: str | os.PathLike[str]
    rule: str | Mapping[str, Any] | None = None
    k: float | Literal["tuned"] | None = None
    relative: bool | None = None
    batch_size: int = 64
    concurrency: int | tuple[int, int] | None = None
    max_batch_tokens: int | None = None

    def __post_init__(self) -> None:
        whole(self.batch_size, 1, "batch_size")
        if self.concurrency is not None:
            _bounds(self.concurrency, "concurrency")
        if self.rule is not None:
            rule_of(self.rule, None if self.k == "tuned" else self.k)
        elif self.k is not None:
            raise InputError("k is the weight of a rule's penalty, and there is no rule")


def build_processor(
    config: ScoringConfig, preprocess: OfRow | None = None, postprocess: OfRow | None = None
) -> Callable[[Dataset], Dataset]:
    """A function of a Ray dataset that adds rewards with their uncertainty to its rows, or the best response.

    Rows have the columns that files of `bayesrm score` and `bayesrm best-of-n` have, and get the columns that those
    commands write; all others stay. Where a row has one of a result's name, it is the result's then.

    Args:
        config: what is done, and by how many actors.
        preprocess: of a row, before; makes `prompt` and `responses` of what a dataset has.
        postprocess: of a row with its results.
    """

    def process(dataset: Dataset) -> Dataset:
        if preprocess is not None:
            dataset = dataset.map(preprocess)
        room = WorkerRoom.of_cluster()
        fewest, most = _bounds(config.concurrency or room.workers, "concurrency")
        dataset = dataset.map_batches(
            _Scorer,
            fn_constructor_args=(replace(config, model=_placed(config.model)),),
            batch_format="pyarrow",
            batch_size=config.batch_size,
            compute=ActorPoolStrategy(min_size=fewest, max_size=most),
            udf_modifying_row_count=False,
            ray_remote_args_fn=lambda: {"max_task_retries": MOST_DEATHS},
            **room.each,
        )
        return dataset if postprocess is None else dataset.map(postprocess)

    return process


@dataclass(frozen=True)
class WorkerRoom:
    """What a cluster has for workers, which hold a model each.

    Attributes:
        kind: what Ray calls that of which a worker takes one: GPU, or CPU where the cluster has no GPU.
        most: workers that there is room for.
        workers: where nobody says how many: all, but for a core that is left to reading and writing.
    """

    kind: Literal["GPU", "CPU"]
    most: int
    workers: int

    @classmethod
    def of_cluster(cls) -> Self:
        """That of the cluster that this process is connected to."""
        there = ray.cluster_resources()
        gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        return cls("GPU", gpus, gpus) if gpus else cls("CPU", cores, max(1, cores - 1))

    @property
    def each(self) -> dict[str, float]:
        """What a worker takes, as arguments of Ray's."""
        return {"num_gpus": float(self.kind == "GPU"), "num_cpus": float(self.kind == "CPU")}


def _bounds(count: int | tuple[int, int], name: str) -> tuple[int, int]:
    """The fewest and the most; raises InputError for numbers that are none, or in the wrong order."""
    fewest, most = count if isinstance(count, tuple) else (count, count)
    return whole(fewest, 1, name), whole(most, fewest, name)


def _placed(model: str | os.PathLike[str]) -> str:
    """A folder by its whole path, because a worker runs elsewhere; a name of the hub as it is."""
    return os.path.abspath(model) if os.path.isdir(model) else os.fspath(model)


def _load(model: str | os.PathLike[str], max_batch_tokens: int | None) -> BayesianRewardModel:
    rm = BayesianRewardModel.from_pretrained(model, max_batch_tokens=max_batch_tokens)
    rm.fitted  # noqa: B018  (raises where there is none)
    return rm


class _Scorer:
    """An actor of Ray Data, with a model that is loaded once."""

    def __init__(self, config: ScoringConfig) -> None:
        self._config = config
        self._rm = _load(config.model, config.max_batch_tokens)

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """The batch with the columns of its results; all others stay as they are, of whatever type."""
        results = self._results(batch.to_pylist())
        names = dict.fromkeys(name for row in results for name in row if name != "prompt")
        kept = batch.drop_columns([name for name in batch.column_names if name in names])
        for name in names:
            kept = kept.append_column(name, pyarrow.array([row.get(name) for row in results]))
        return kept

    def _results(self, rows: list[Row]) -> list[Row]:
        config = self._config
        source = f"the batch from {reprlib.repr(rows[0])} on"  # a dataset's rows have no numbers
        if config.rule is None:
            scoring = scoring_of(rows[0], bool(config.relative))
            return scoring(self._rm, list(scoring.read(rows, source)))
        relative = config.relative is None or config.relative
        rule = rule_of(config.rule, self._rm.penalty_weight(config.k, relative, config.rule))
        sets = list(iter_candidate_sets(rows, source))
        return chosen_rows(self._rm, sets, rule, self._rm.best_of_each(sets, rule, relative=relative))


def deployment(
    models: Mapping[str, str | os.PathLike[str]],
    options: "ServerOptions | None" = None,
    *,
    replicas: int | tuple[int, int] = 1,
    target_requests: int = 32,
    gpus: float = 0,
    cpus: float = 1,
    max_batch_tokens: int | None = None,
    max_wait_ms: float = 2.0,
    max_queue_tokens: int = 1_000_000,
) -> "serve.Application":
    """The server of `bayesrm serve` as an application for `ray.serve.run`.

    A replica has the models and their engines, which put the requests that come to it into shared batches by their
    tokens: Ray Serve sends a replica what comes, and does not hold it back. One whose engine has died is replaced.

    Args:
        models: folders with their posteriors, at the same place on every node, by the names under which clients know
            them; the first is asked where they name none.
        options: as for `create_app`.
        replicas: how many; or the fewest and the most, between which their number follows the requests.
        target_requests: that a replica should have at once, where their number follows the requests.
        gpus, cpus: of a replica.
        max_batch_tokens, max_wait_ms, max_queue_tokens: as for `AsyncScorer`.

    Raises:
        InputError: no model, or replicas that are no number of at least 1.
    """
    from ray import serve

    from bayesrm_fast.serve.options import ServerOptions

    if not models:
        raise InputError("there is no model to serve")
    options = options or ServerOptions()
    placed = {name: Path(_placed(folder)) for name, folder in models.items()}
    load = partial(_load, max_batch_tokens=max_batch_tokens)

    def build() -> "FastAPI":
        from bayesrm_fast.serve.app import create_app
        from bayesrm_fast.serve.engine import AsyncScorer
        from bayesrm_fast.serve.loading import served_models

        loaded = served_models(placed, load)
        scorers = {
            name: AsyncScorer(rm, max_wait_ms=max_wait_ms, max_queue_tokens=max_queue_tokens)
            for name, rm in loaded.items()
        }
        return create_app(scorers, options)

    fewest, most = _bounds(replicas, "replicas")
    scaling = {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": target_requests}
    decorated = serve.deployment(
        name="bayesrm",
        ray_actor_options={"num_gpus": gpus, "num_cpus": cpus},
        autoscaling_config=scaling,
        max_ongoing_requests=MOST_REQUESTS,
        graceful_shutdown_timeout_s=options.seconds_to_shut_down,
    )
    return decorated(serve.ingress(build)(_Replica)).bind()


class _Replica:
    """What Ray Serve asks of a replica beside its requests; `serve.ingress` adds the app."""

    app: "FastAPI"

    def check_health(self) -> None:
        """Raise where an engine has died: Ray Serve then replaces the replica."""
        dead = [name for name, scorer in self.app.state.served.scorers.items() if not scorer.accepts]
        if dead:
            raise RuntimeError(f"the engine of {', '.join(dead)} has ended")


class ServedArguments(BaseModel, extra="forbid"):
    """What `args` of an application in a file for `serve run` and `serve deploy` may hold.

    Replicas, and what each takes of a node, are said there under `deployments`, as for every deployment of Ray Serve.
    """

    models: dict[str, str] = Field(min_length=1, description="Folders by the names under which clients know them.")
    token_file: Path | None = Field(None, description="File with the bearer token that clients must send.")
    penalty: Penalty = Field("none", description="What drop-ins subtract from a mean.")
    k: float = Field(1.0, description="Weight of the penalty.")
    threshold: float = Field(0.0, description="Reward above which OpenRLHF's scores count a sample as good.")
    patience: float = Field(100.0, description="Seconds after which a drop-in's request ends with 503.")
    max_batch_tokens: int | None = Field(None, description="Tokens of a batch, padding included.")
    max_wait_ms: float = Field(2.0, description="How long a batch waits for company.")
    max_queue_tokens: int = Field(1_000_000, description="Tokens that may wait for the model.")


def application(args: ServedArguments) -> "serve.Application":
    """`deployment` by what a file for Ray Serve says: `import_path: bayesrm_fast.integrations.ray:application`.

    Raises:
        InputError: as for `deployment`, or an option that cannot be served.
    """
    from bayesrm_fast.serve.options import ServerOptions

    options = ServerOptions(
        penalty=PenaltyOfStd(args.penalty, args.k),
        threshold=args.threshold,
        token=None if args.token_file is None else args.token_file.read_text(encoding="utf-8").strip(),
        patience=args.patience,
    )
    return deployment(
        args.models,
        options,
        max_batch_tokens=args.max_batch_tokens,
        max_wait_ms=args.max_wait_ms,
        max_queue_tokens=args.max_queue_tokens,
    )
