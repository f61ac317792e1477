"""The models of a server."""

import pytest

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.serve.loading import served_models


def test_adapters_of_one_base_model_share_it(model_folder):
    loaded = served_models({"a.b": model_folder, "c": model_folder}, BayesianRewardModel.from_pretrained)
    assert loaded["a.b"].model is loaded["c"].model


def test_a_token_classifier_is_refused_by_its_folder(step_adapter_folder):
    with pytest.raises(InputError, match=f"{step_adapter_folder} is a token classifier"):
        served_models({"steps": step_adapter_folder}, BayesianRewardModel.from_pretrained)
