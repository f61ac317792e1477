"""Sums of shards."""

import torch

from bayesrm_fast.fit.sums import Sums


class Totals(Sums):
    def __init__(self, first, second):
        self.first, self.second = torch.tensor(first), torch.tensor(second)

    def sums(self):
        return [self.first, self.second]


def test_a_shard_is_added_to_every_sum_in_place():
    own = Totals([1.0, 2.0], 3.0)
    first = own.first
    own.merge(Totals([10.0, 20.0], 30.0))
    assert own.first is first
    assert (first.tolist(), own.second.item()) == ([11.0, 22.0], 33.0)
