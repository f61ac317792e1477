"""What sharing a prompt's forward pass could save where every candidate has a backward pass of its own: a prototype.

The prompt runs once. What follows it runs for each candidate, on copies of the prompt's keys and values that require
gradients; their cotangents then go through the prompt's one graph side by side, as autograd's batched gradients. No tap
takes part: what a posterior makes of the gradients, and holding them for it, comes on top.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.baselines import empty_pass
from benchmarks.scoring.llama import BATCH_TOKENS
from benchmarks.shapes import LlamaShape, passes_of, random_rows
from benchmarks.timing import in_turns, one_thread

SHAPES = ((512, 64, 8), (64, 64, 64), (2048, 256, 8))
"""Tokens of the prompt and of each response, and candidates."""


def shared_backward_part(quick: bool) -> dict[str, Any]:
    """Beside the pass of today, which runs whole rows and feeds a consumer that does nothing."""
    hidden, layers, shapes = (64, 1, ((32, 8, 4),)) if quick else (256, 4, SHAPES)
    results = {}
    for prompt, response, count in shapes:
        model = LlamaShape(hidden, layers).model().requires_grad_(False)
        passes = passes_of(model, BATCH_TOKENS)
        rows = random_rows([prompt + response] * count, prompt=prompt)
        ids = torch.tensor([row.input_ids for row in rows])
        whole, shared = "whole rows, empty consumer", "prompt's forward pass shared"
        formulations: dict[str, Callable[[], Any]] = {
            whole: partial(empty_pass, passes, rows),
            shared: partial(shared_forward, model, ids, prompt),
        }
        with one_thread():
            timed = in_turns(formulations, 1 if quick else 3, clock=time.process_time)
        results[f"{prompt} + {response} × {count}"] = {
            "hidden": hidden,
            "layers": layers,
            "clock": "processor time of one thread",
            "formulations": timed,
            "ratio": timed[shared]["seconds"] / timed[whole]["seconds"],
            "of_tokens": (prompt + count * (prompt + 2 * response)) / (2 * count * (prompt + response)),
        }
    return results


def shared_forward(model: Any, ids: Tensor, prompt: int) -> Tensor:  # (N, T) -> (N, T, hidden)
    """Every candidate's cotangents of its embedded tokens, the first `prompt` of which are the same for all."""
    count, embed = len(ids), model.get_input_embeddings()
    beginning = embed(ids[:1, :prompt]).requires_grad_()
    cache: Any = DynamicCache()
    model.get_base_model().model(inputs_embeds=beginning, past_key_values=cache, use_cache=True)
    shared = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    own = [part.detach().expand(count, *part.shape[1:]).clone().requires_grad_() for part in shared]
    copies = DynamicCache()
    for layer in range(len(own) // 2):
        copies.update(own[2 * layer], own[2 * layer + 1], layer)
    following = embed(ids[:, prompt:]).requires_grad_()
    positions = torch.arange(prompt, ids.shape[1]).expand(count, -1)
    rewards = model(inputs_embeds=following, past_key_values=copies, use_cache=True, position_ids=positions).logits
    of_following, *of_shared = torch.autograd.grad(rewards.sum(), [following, *own])
    cotangents = [part[:, None] for part in of_shared]
    (of_beginning,) = torch.autograd.grad(shared, [beginning], cotangents, is_grads_batched=True)
    return torch.cat([of_beginning[:, 0], of_following], 1)
