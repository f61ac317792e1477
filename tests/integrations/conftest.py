"""What tests of the integrations share."""

import pytest

from bayesrm_fast import BayesianRewardModel


@pytest.fixture(scope="session")
def rm(model_folder):
    """A saved model with its posterior; not to be changed."""
    return BayesianRewardModel.from_pretrained(model_folder, device="cpu")
