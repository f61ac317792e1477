"""A kfac fit beside the training step's forward and backward pass."""

from functools import partial
from typing import Any

import torch

from benchmarks import peers
from benchmarks.baselines import empty_pass, our_batches
from benchmarks.scoring.llama import BATCH_TOKENS, LENGTH
from benchmarks.shapes import LlamaShape, fitted, passes_of, random_pairs
from benchmarks.timing import in_turns


def fit_part(quick: bool) -> dict[str, Any]:
    """A kfac fit over the forward and backward pass of the same pairs by autograd."""
    hidden, layers, count = (64, 1, 4) if quick else (512, 4, 64)
    model = LlamaShape(hidden, layers).model()
    passes = passes_of(model, BATCH_TOKENS)
    pairs = random_pairs(count, LENGTH)
    batches = our_batches(passes, pairs)

    def autograd() -> None:
        peers.train_lora_alone(model)
        for inputs in batches:
            rewards = model(**inputs).logits[:, 0]
            (-torch.nn.functional.logsigmoid(rewards[0::2] - rewards[1::2])).sum().backward()
        model.zero_grad()

    timed = in_turns(
        {
            "forward and backward by autograd": autograd,
            # As a fit's consumers do it takes means over tokens, and so gets every real token of every site.
            "ours, empty consumer": partial(empty_pass, passes, pairs, gradients_alone=False),
            "ours, kfac fit": partial(fitted, passes, pairs),
        },
        2 if quick else 5,
    )
    ratio = timed["ours, kfac fit"]["seconds"] / timed["forward and backward by autograd"]["seconds"]
    return {"hidden": hidden, "pairs": f"{count} of 2 × {LENGTH} tokens", "formulations": timed, "ratio": ratio}
