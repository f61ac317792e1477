"""The model that a command works with."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrm_fast.cli.imports import without_collections
from bayesrm_fast.cli.terminal import quiet_transformers

if TYPE_CHECKING:
    from bayesrm_fast.reward_model import BayesianRewardModel


def load(model: Path, **options: Any) -> "BayesianRewardModel":
    """`BayesianRewardModel.from_pretrained` without the reports that transformers prints."""
    with without_collections():
        from bayesrm_fast.reward_model import BayesianRewardModel

    quiet_transformers()
    return BayesianRewardModel.from_pretrained(model, **options)


def load_fitted(model: Path, max_batch_tokens: int | None) -> "BayesianRewardModel":
    """The same; raises InputError where there is no posterior, before anything is written."""
    loaded = load(model, max_batch_tokens=max_batch_tokens)
    loaded.fitted  # noqa: B018
    return loaded


def posterior_summary(folder: Path) -> dict[str, Any]:
    """What is shown of a saved fit."""
    from bayesrm_fast.posterior.files import FILES
    from bayesrm_fast.saved.virtual_record import read_virtual_record

    record = FILES.read_record(folder)
    names = ("structure", "rank", "pairs", "prior_precision", "temperature", "log_evidence", "effective_parameters")
    shown = {name: held for name in names if (held := getattr(record, name)) is not None or name == "rank"}
    if record.step_separator is not None:
        shown = {"steps" if name == "pairs" else name: held for name, held in shown.items()}
    shown |= {"prior_chosen_by": record.prior.method}
    virtual = read_virtual_record(folder)
    if virtual is not None:
        shown |= {"virtual_rank": virtual.virtual_rank, "virtual_layers": len(virtual.layers)}
    return shown
