"""The command in this process, as `bayesrm` runs it: starting Python for it takes seconds each time."""

import json
import logging
import sys
import warnings

import pytest
from tiny import tiny_pairs, words

from bayesrm_fast.cli.main import main
from bayesrm_fast.text.files import write_rows


@pytest.fixture
def bayesrm(monkeypatch, capfd):
    """Run a command to its exit code; gives what it has written to standard output and standard error."""

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["bayesrm", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which main replaces
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        assert stopped.value.code == code, err
        return out, err

    logger = logging.getLogger("bayesrm_fast")
    level = logger.level
    yield run
    logger.setLevel(level)


@pytest.fixture
def summary(bayesrm):
    """The same, with its summary as JSON."""
    return lambda *arguments: json.loads(bayesrm(*arguments, "--json")[0])


@pytest.fixture
def refused(bayesrm):
    """The one line on standard error of a command that exits with code 2."""

    def run(*arguments):
        out, err = bayesrm(*arguments, code=2)
        lines = [line for line in err.splitlines() if line]
        assert out == ""
        assert len(lines) == 1, err
        assert lines[0].startswith("bayesrm: ")
        return lines[0]

    return run


@pytest.fixture
def no_model(monkeypatch):
    """A model that is not to be loaded."""

    def load(*args, **options):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("bayesrm_fast.reward_model.BayesianRewardModel.from_pretrained", load)
    monkeypatch.setattr("bayesrm_fast.reward_model.load_reward_model", load)


@pytest.fixture
def pairs_file(tmp_path):
    """Six pairs."""
    write_rows(tmp_path / "pairs.jsonl", tiny_pairs())
    return tmp_path / "pairs.jsonl"


@pytest.fixture
def candidates_file(tmp_path):
    """Five prompts with three responses each."""
    rows = [{"prompt": words(3, i), "responses": [words(4 + j, 10 * i + j) for j in range(3)]} for i in range(5)]
    write_rows(tmp_path / "candidates.jsonl.gz", rows)
    return tmp_path / "candidates.jsonl.gz"


@pytest.fixture
def nan_at(model_folder, monkeypatch):
    """Every loaded model gives NaN for a row that holds this word, and for no other."""
    from bayesrm_fast.reward_model import BayesianRewardModel

    def spoil(word):
        import torch

        load = BayesianRewardModel.from_pretrained

        def spoiled(*args, **options):
            rm = load(*args, **options)
            with torch.no_grad():
                embeddings = rm.model.get_base_model().model.embed_tokens.weight
                embeddings[rm.tokenizer.convert_tokens_to_ids(word)] = float("nan")
            rm.posterior = rm.posterior  # of the model as it is now
            return rm

        monkeypatch.setattr(BayesianRewardModel, "from_pretrained", spoiled)

    return spoil
