"""Caution: how far a small net, fitted on responses without labels, is from a hidden layer of the reward model.

Of *From Curiosity to Caution* (arXiv 2604.04648): the score is r − λ‖P − T‖², T the hidden states of a layer of the
reward model, P a lighter net that learns to predict them on typical responses. Where P is wrong, the response is not
like those it has seen. The paper's layer is the tenth of 24; ours stands at the same share of the model's depth. Its
best P has token embeddings of its own, learnt from many samples of the policy; 900 texts do not teach any, so that
ours reads the reward model's. Over which tokens of a row the error is taken is for tuning to choose.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.model.forward import Forward
from bayesrm_fast.model.layers import layer_stack
from bayesrm_fast.text.batches import TokenBatch, plan_batches
from bayesrm_fast.text.examples import TokenizedRow
from benchmarks.overoptimisation.steps import OfTask
from benchmarks.overoptimisation.tasks import Pairs, Task

DEPTH = 10 / 24
"""Share of the layers up to T's."""

TOKENS = ("all tokens", "those of the response", "the scored token")
"""What ‖P − T‖² is the mean over: first the whole row, as in P's loss."""

WIDTH = 128
LAYERS = 2
HEADS = 4
EPOCHS = 16
LEARNING_RATE = 1e-3
BATCH_TOKENS = 2048


class _Reached(Exception):
    """The layers after T's need not run."""


class Target:
    """A reward model up to a layer.

    Args:
        rm: whose model is read.
    """

    def __init__(self, rm: BayesianRewardModel) -> None:
        stack = layer_stack(rm.model)
        self.forward, self.collate = Forward(rm.model, rm.readout), rm.collator
        self.first, self.last = stack[0], stack[int(np.ceil(DEPTH * len(stack))) - 1]

    def __call__(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:  # shapes: (B, T, d), (B, T, d)
        """What the first layer reads, and what T's layer gives."""
        found: list[Tensor] = []

        def read(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            found.append(arguments[0])

        def stop(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            found.append(output if isinstance(output, Tensor) else output[0])
            raise _Reached

        handles = [self.first.register_forward_pre_hook(read), self.last.register_forward_hook(stop)]
        try:
            with self.forward.prepared(batch, every_token=True), torch.no_grad():
                self.forward.model(**batch.model_inputs())
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        embedded, hidden = found
        return embedded, hidden

    def over(self, rows: Sequence[TokenizedRow]) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
        """For each batch: positions of its rows, what the first layer reads, what T's gives, and which are tokens."""
        for positions in plan_batches(rows, BATCH_TOKENS):
            batch = self.collate([rows[i] for i in positions])
            yield positions, *self(batch), batch.attention_mask.bool()


class Predictor(nn.Module):
    """P: a narrow transformer from what the first layer reads to T.

    Args:
        size: d, of a hidden state.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.inner = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.narrow, self.widen = nn.Linear(size, WIDTH), nn.Linear(WIDTH, size)

    def errors(
        self,
        embedded: Tensor,  # shape: (B, T, d)
        hidden: Tensor,  # shape: (B, T, d)
        is_token: Tensor,  # shape: (B, T), bool
    ) -> Tensor:  # shape: (B, T)
        """‖P − T‖² of each token, 0 on padding."""
        predicted = self.widen(self.inner(self.narrow(embedded), src_key_padding_mask=~is_token))
        return (predicted - hidden).square().sum(-1) * is_token

    def loss(self, embedded: Tensor, hidden: Tensor, is_token: Tensor) -> Tensor:
        """The mean over tokens of each row, and over rows."""
        return (self.errors(embedded, hidden, is_token).sum(1) / is_token.sum(1)).mean()


def caution(rm: BayesianRewardModel, pairs: Pairs) -> OfTask:
    """`caution [len(TOKENS), U]`: ‖P − T‖² in units of P's loss on the pairs' texts, of which it knows no label."""
    texts = sorted({(pair["prompt"], pair[side]) for pair in pairs for side in ("chosen", "rejected")})
    target = Target(rm)
    rows = rm.tokenize([prompt for prompt, _ in texts], [response for _, response in texts])
    batches = [(embedded, hidden, is_token) for _, embedded, hidden, is_token in target.over(rows)]
    predictor, typical = _fitted(batches)
    is_scored_first = rm.encoder.joining == "pair"

    @torch.no_grad()
    def of_task(task: Task) -> dict[str, np.ndarray]:
        rows = rm.tokenize([task.prompt] * len(task.texts), task.texts)
        alone = rm.encoder.encode_responses(task.texts)
        found = np.empty((len(TOKENS), len(rows)))
        for positions, *of_batch in target.over(rows):
            for i, errors in zip(positions, predictor.errors(*of_batch).double().numpy() / typical, strict=True):
                own, types = errors[: len(rows[i].input_ids)], rows[i].token_type_ids
                last = max(len(alone[i]) if types is None else sum(types), 1)
                found[:, i] = own.mean(), own[-last:].mean(), own[0 if is_scored_first else -1]
        return {"caution": found}

    return of_task


def _fitted(batches: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Predictor, float]:
    """P, and its loss on what it was fitted on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predictor = Predictor(batches[0][0].shape[-1])
        optimizer = torch.optim.Adam(predictor.parameters(), LEARNING_RATE)
        for _ in range(EPOCHS):
            for i in torch.randperm(len(batches)).tolist():
                loss = predictor.loss(*batches[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        losses = [float(predictor.loss(*batch)) * len(batch[0]) for batch in batches]
    return predictor, sum(losses) / sum(len(batch[0]) for batch in batches)
