"""`bayesrm info`."""

import shutil

from dying import killed

from bayesrm_fast.ops.cpu import unavailable
from bayesrm_fast.posterior.files import load_posterior, save_posterior


def test_it_shows_the_posterior(model_folder, summary, bayesrm, no_model):
    record = summary("info", model_folder)
    assert record["pairs"] == 6
    shown, _ = bayesrm("info", model_folder)
    for word in ("evidence", "effective parameters", "prior precision", "ekfac", "torch"):
        assert word in shown


def test_without_a_model_it_shows_the_machine(summary):
    assert "torch" in summary("info")


def test_it_says_which_backend_serves_and_why(summary):
    told = summary("info", "--backends")
    assert told["kron_variance, reference"] == "serves"
    assert told["kron_variance, cpu"] in ("serves", unavailable())


def test_it_says_which_shortcuts_a_model_takes(model_folder, summary):
    told = summary("info", model_folder, "--shortcuts")
    assert told["beginnings that rows share"] == "once"
    assert "last token alone" in told["last layer"]


def test_a_folder_without_a_posterior_is_told(adapter_folder, tmp_path, refused):
    for folder in (adapter_folder, tmp_path, tmp_path / "nothing"):
        assert "posterior.json cannot be read: No such file" in refused("info", folder)


def test_a_folder_whose_save_was_killed_is_settled_first(model_folder, tmp_path, summary):
    folder = shutil.copytree(model_folder, tmp_path / "rm")
    posterior = load_posterior(folder)
    assert killed(lambda: save_posterior(posterior, folder), 2)
    assert summary("info", folder) == summary("info", model_folder)
