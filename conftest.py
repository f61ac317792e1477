"""Test-wide settings and fixtures."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # pytest runs one process a core, and so do the commands that tests start

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is decorated

from ray_cluster import alone
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_step_model, tiny_token_classifier, tiny_tokenizer

from bayesrm_fast import BayesianRewardModel

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A tiny base model on disk, with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tiny_base("llama").save_pretrained(folder)
    tiny_tokenizer("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(base_folder, tmp_path_factory):
    """A saved adapter of `base_folder`, without a posterior."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForSequenceClassification.from_pretrained(base_folder)
    tiny_adapter("llama", base=base).save_pretrained(folder)
    tiny_tokenizer("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def step_base_folder(tmp_path_factory):
    """A tiny token classifier on disk, with its tokenizer."""
    folder = tmp_path_factory.mktemp("step-base")
    tiny_token_classifier("llama").save_pretrained(folder)
    tiny_tokenizer("llama", knows_line_breaks=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def step_adapter_folder(step_base_folder, tmp_path_factory):
    """A saved adapter of `step_base_folder`, without a posterior."""
    from transformers import AutoModelForTokenClassification

    folder = tmp_path_factory.mktemp("step-adapter")
    base = AutoModelForTokenClassification.from_pretrained(step_base_folder)
    model, tokenizer = tiny_step_model("llama", base=base)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(adapter_folder, tmp_path_factory):
    """An adapter with a fitted posterior; not to be written to."""
    folder = tmp_path_factory.mktemp("fitted") / "model"
    rm = BayesianRewardModel.from_pretrained(adapter_folder, device="cpu")
    rm.fit(tiny_pairs(), structure="ekfac", rank=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster with four cores by name, one for all tests and the processes that they start: it takes seconds."""
    alone()
    import ray

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")  # else a token is written to $HOME
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        environment.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        yield ray
        ray.shutdown()
