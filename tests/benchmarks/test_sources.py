"""The benchmark of several sources on hand-made texts."""

import math
import random

import pytest

from benchmarks.sources import (
    alarms,
    largest_threshold,
    of_one_policy,
    of_one_prompt,
    of_two_prompts,
    similarities,
    with_strays,
)


def prompts(first_token, sizes):
    """Responses of 20 tokens out of 30 that are each prompt's own."""
    lot = random.Random(first_token)
    vocabularies = [range(first_token + 100 * i, first_token + 100 * i + 30) for i in range(len(sizes))]
    return [
        [lot.sample(vocabulary, 20) for _ in range(size)] for vocabulary, size in zip(vocabularies, sizes, strict=True)
    ]


OWN = prompts(0, (16, 12, 8))
STRAYS = prompts(1000, (3, 3))


def count_of(source, texts):
    return sum(text in [other for prompt in source for other in prompt] for text in texts)


def test_sets_are_made_of_what_their_name_says():
    lot = random.Random(0)
    assert [len(texts) for texts in of_one_prompt(OWN, 12, lot)] == [12, 12]
    assert [len(texts) for texts in of_one_policy(OWN, None, lot)] == [16, 12, 8]
    assert [count_of(STRAYS, texts) for texts in with_strays(OWN, 12, STRAYS, 4, lot)] == [3, 3]
    for own, texts in zip(OWN[:2], of_two_prompts(OWN, 12, lot), strict=True):
        # One of the other prompts has 8 responses, so half of a set is always there.
        assert count_of([own], texts) == 6
        assert len(texts) == 12


def test_alarms_are_raised_by_two_prompts_and_not_by_one():
    lot = random.Random(0)
    alone = alarms(similarities(of_one_policy(OWN, 12, lot)))
    assert (alone["sets"], alone["share"], alone["standard_error"]) == (40, 0, 0)
    mixed = similarities(of_two_prompts(OWN, 12, lot))
    assert alarms(mixed) == {"sets": 2, "no_groups": 0, "alarms": 2, "share": 1, "standard_error": 0}
    half = alarms([*mixed, math.nan, 1.0])
    assert (half["no_groups"], half["share"], half["standard_error"]) == (1, 0.5, 0.25)


@pytest.mark.parametrize(("low", "threshold"), [(1, 0.35), (2, 0.15)])
def test_a_threshold_is_the_largest_with_at_most_one_false_alarm_in_a_hundred(low, threshold):
    assert largest_threshold([0.17] * low + [0.38] * (100 - low)) == threshold
