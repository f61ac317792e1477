"""SGLang's form of `/classify`, and its embeddings."""

import pytest


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("sglang_classify", "/classify"),
        ("sglang_classify_list", "/classify"),
        ("sglang_embeddings", "/v1/embeddings"),
    ],
)
def test_the_bytes_are_the_clients(golden, name, path):
    """`sglang_embeddings` is what the reward loop of verl 0.9.1 sends."""
    golden(name, path)


def test_an_empty_list_gets_an_empty_list(client):
    assert client.post("/classify", json={"text": []}).json() == []
