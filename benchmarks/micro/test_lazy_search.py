"""The search for the best candidates with the fewest variances."""

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bayesrm_fast.select.rules import PenalisedReward
from bayesrm_fast.select.search import LazySearch

PROMPTS, CANDIDATES = 10_000, 4
TOKENS = 100
WAVE_TOKENS = 16_384


def search_to_its_end(means: list[Tensor], floors: list[Tensor], variances: Tensor) -> LazySearch:
    """A new search, every wave of which is answered from what is known."""
    search = LazySearch(PenalisedReward(), means, floors, [[TOKENS] * CANDIDATES] * PROMPTS, WAVE_TOKENS)
    while wave := search.next_wave():
        search.learn(wave, variances[tuple(torch.tensor(wave).T)])
    return search


def test_lazy_search(benchmark: BenchmarkFixture) -> None:
    """10,000 prompts of four candidates, of whose variances nothing is known beforehand."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(PROMPTS, CANDIDATES, generator=generator)
    variances = torch.rand(PROMPTS, CANDIDATES, generator=generator)
    benchmark(search_to_its_end, list(means), list(torch.zeros_like(means)), variances)
