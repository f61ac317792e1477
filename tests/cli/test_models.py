"""The model that a command works with."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import tiny_pairs

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.cli.models import load, load_fitted, posterior_summary
from bayesrm_fast.posterior.files import FILES


def test_a_model_is_loaded_with_its_options_and_without_a_report(model_folder, capfd):
    rm = load(model_folder, max_length=16, device="cpu")
    assert rm.encoder.max_length == 16
    assert load_fitted(model_folder, 77).passes().budget.batch_tokens == 77
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_model_without_a_posterior_is_refused_where_one_is_needed(adapter_folder):
    with pytest.raises(InputError, match="there is no posterior: call fit"):
        load_fitted(adapter_folder, None)


def test_what_is_shown_of_a_saved_fit(model_folder):
    record = json.loads((model_folder / "posterior.json").read_text())
    shown = posterior_summary(model_folder)
    assert shown["prior_chosen_by"] == "evidence"
    for name in ("structure", "rank", "pairs", "prior_precision", "temperature", "log_evidence"):
        assert shown[name] == record[name]
    assert "virtual_rank" not in shown


def test_a_rank_of_none_is_shown_and_an_evidence_of_none_is_not(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    record = FILES.read_record(folder)
    FILES.write(folder, replace(record, rank=None, log_evidence=None), FILES.read_tensors(folder, record))
    shown = posterior_summary(folder)
    assert shown["rank"] is None
    assert "log_evidence" not in shown


def test_virtual_adapters_are_shown(base_folder, tmp_path):
    rm = BayesianRewardModel.from_pretrained(
        base_folder, virtual_rank=2, virtual_targets=["q_proj"], device=torch.device("cpu")
    )
    rm.fit(tiny_pairs(), rank=4).save_pretrained(tmp_path / "saved")
    shown = posterior_summary(tmp_path / "saved")
    assert (shown["virtual_rank"], shown["virtual_layers"], shown["prior_chosen_by"]) == (2, 2, "margins")
