"""Runs over a file of rows: in chunks, and told from any other run."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bayesrm_fast.versions import library_versions

if TYPE_CHECKING:
    from bayesrm_fast.reward_model import BayesianRewardModel

CHUNK = 64
"""Rows of an input file that are scored together; a resumed run continues at a multiple of it."""

T = TypeVar("T")


def job_header(loaded: "BayesianRewardModel", input_file: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What the results of a run follow from: the posterior, the model, the input and the options."""
    from bayesrm_fast.posterior.files import tensors_sha256

    posterior = loaded.fitted
    with input_file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "input_sha256": digest,
        "base_model": posterior.record.base_model,
        "fingerprint": posterior.record.fingerprint_sha256,
        "posterior_sha256": tensors_sha256(posterior),
        "structure": posterior.record.structure,
        "rank": posterior.record.rank,
        "prior_precision": posterior.prior_precision,
        "temperature": posterior.temperature,
        "max_length": loaded.encoder.max_length,
        "versions": library_versions(),
        **options,
    }


def in_chunks(records: Iterable[T], done: int) -> Iterator[list[T]]:
    """The records after those that are done, in chunks."""
    left = itertools.islice(records, done, None)
    while chunk := list(itertools.islice(left, CHUNK)):
        yield chunk
