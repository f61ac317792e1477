"""slime's remote reward model."""

import pytest
from fake_scorer import STD, reward

SAMPLE = {"prompt": "able ", "response": "act", "label": {"answer": 4}}


@pytest.mark.parametrize("name", ["slime", "slime_messages"])
def test_the_bytes_are_the_trainers(golden, name):
    golden(name, "/reward")


def test_a_dict_has_all_that_is_known(client):
    assert client.post("/reward", params={"form": "dict", "penalty": "std"}, json=SAMPLE).json() == {
        "reward": reward("able act") - STD,
        "mean": reward("able act"),
        "std": STD,
        "tokens": 2,
        "truncated": False,
    }


def test_a_plain_prompt_is_joined_as_the_model_joins_it(client):
    """The fake joins by a space, where a rendered text is continued as it stands."""
    assert client.post("/reward", json=SAMPLE).json() == reward("able act")
    assert client.post("/reward", params={"prompts": "plain"}, json=SAMPLE).json() == reward("able  act")


@pytest.mark.parametrize("prompt", ["able ", [{"role": "user", "content": "able"}]])
@pytest.mark.parametrize("address", [{}, {"prompts": "plain"}])
def test_the_lower_bound_of_a_bare_number(client, prompt, address):
    sample = SAMPLE | {"prompt": prompt}
    mean = client.post("/reward", params=address, json=sample).json()
    bound = client.post("/reward", params={**address, "penalty": "std", "k": 0.5}, json=sample).json()
    assert bound == mean - STD / 2
