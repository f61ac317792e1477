"""Peak memory of `score_stream` over so many rows, by a model so wide and deep.

python -m benchmarks.stream_memory 4096 128 2
"""

import sys
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bayesrm_fast import BayesianRewardModel
from benchmarks.memory import report_peak
from benchmarks.shapes import LlamaShape

WORDS = [f"w{i}" for i in range(990)]


def rows(count: int) -> Iterator[tuple[str, str]]:
    """Prompts of 32 and responses of 96 random words, made as they are asked for."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        words = [WORDS[i] for i in torch.randint(len(WORDS), (128,), generator=generator).tolist()]
        yield " ".join(words[:32]), " ".join(words[32:])


def main(count: int, hidden: int, layers: int) -> None:
    """Fit on a few rows, then report the peak of a stream."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS])}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", model_max_length=256
    )
    rm = BayesianRewardModel(LlamaShape(hidden, layers).model(), tokenizer)
    texts = list(rows(32))
    pairs = [
        {"prompt": prompt, "chosen": a, "rejected": b}
        for (prompt, a), (_, b) in zip(texts[0::2], texts[1::2], strict=True)
    ]
    rm.fit(pairs, structure="kfac", rank=16, prior_precision=1.0)
    report_peak(lambda: sum(mean for mean, _, _ in rm.score_stream(rows(count))))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
