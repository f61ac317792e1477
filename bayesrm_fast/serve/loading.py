"""The models of a server, from their folders."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bayesrm_fast.errors import InputError
from bayesrm_fast.reward_model import BayesianRewardModel


def served_models(
    folders: Mapping[str, Path], load: Callable[[Path], BayesianRewardModel]
) -> dict[str, BayesianRewardModel]:
    """The models by their names; adapters of one base model share it where they can.

    Args:
        folders: by name.
        load: loads a folder with its posterior.

    Raises:
        InputError: a model that cannot be loaded, has no posterior, or scores segments.
    """
    loaded: dict[str, BayesianRewardModel] = {}
    for name, folder in folders.items():
        beside = _beside(loaded.values(), folder, f"served{len(loaded)}")
        loaded[name] = beside or load(folder)
        if loaded[name].segments is not None:
            raise InputError(f"{folder} is a token classifier, and a server scores whole responses")
    return loaded


def _beside(others: Iterable[BayesianRewardModel], folder: Path, adapter: str) -> BayesianRewardModel | None:
    """An adapter on the base model of another one; None where none takes it."""
    for other in others:
        with contextlib.suppress(InputError):
            found = other.with_adapter(folder, adapter)
            found.fitted  # noqa: B018  (raises where there is none)
            return found
    return None
