"""Texts to token ids."""

import random

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import AutoTokenizer

from bayesrm_fast.text.encoder import TextEncoder
from benchmarks.data import embedded_encoder

ROWS = 256
LONGEST = 150
"""Words of a prompt, and of a response: the longest rows are cut."""

TEMPLATE = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["pair", "chat-template"])
def test_encode(benchmark: BenchmarkFixture, template: str | None) -> None:
    """256 ragged rows of words from the tokenizer's own vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_encoder())
    tokenizer.chat_template = template
    words = sorted(token for token in tokenizer.get_vocab() if token.isalpha())
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(1, LONGEST))) for _ in range(2 * ROWS)]
    benchmark(TextEncoder(tokenizer, max_length=256).encode, texts[:ROWS], texts[ROWS:])
