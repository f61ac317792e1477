"""What requests ask, run together and apart."""

import pytest
import torch
from serving import PROMPTS, assert_agree, fitted, responses

from bayesrm_fast import Candidates
from bayesrm_fast.select.rules import MeanReward, PenalisedReward
from bayesrm_fast.serve.texts import Responses
from bayesrm_fast.serve.work import Choice, Differences, Joint, Means, Scores


def references(i):
    return [responses(i)[j] for j in (1, 0, 1, 0)]


MAKE = {
    "means": lambda i: Means(Responses(PROMPTS[i], responses(i))),
    "scores": lambda i: Scores(Responses(PROMPTS[i], responses(i))),
    "within the prompt": lambda i: Differences(Responses(PROMPTS[i], responses(i)), "prompt"),
    "to references": lambda i: Differences(Responses(PROMPTS[i], responses(i)), references(i)),
    "choice": lambda i: Choice(Candidates(PROMPTS[i], responses(i)), "std", 1.0, True),
    "joint": lambda i: Joint(Candidates(PROMPTS[i], responses(i))),
}


@pytest.mark.parametrize("kind", MAKE)
def test_parts_of_several_requests_in_any_order_give_each_its_answer(rm, kind):
    works = [MAKE[kind](i) for i in range(3)]
    parts = [work.prepare(rm) for work in works]
    alone = [work.answer(own, work.run(rm, rm.passes(), own)) for work, own in zip(works, parts, strict=True)]
    mixed = [(number, place) for number, own in enumerate(parts) for place in range(len(own))]
    mixed = mixed[1::2] + mixed[::2]
    results = dict(zip(mixed, works[0].run(rm, rm.passes(), [parts[a][b] for a, b in mixed]), strict=True))
    for number, work in enumerate(works):
        own = [results[number, place] for place in range(len(parts[number]))]
        assert_agree(work.answer(parts[number], own), alone[number])


def test_works_share_a_call_where_they_ask_the_same():
    def prepared(rule, k=None, relative=True):
        work = Choice(Candidates("a", ["a", "able"]), rule, k, relative)
        work.prepare(model)
        return work.key

    model = fitted()
    assert prepared("std") == prepared(PenalisedReward("std", 1.0)) != prepared("std", 2.0)
    assert prepared("std") != prepared("std", relative=False)
    assert prepared("mean") == prepared(MeanReward())
    joint = [Joint(Candidates("a", ["a"])) for _ in range(2)]
    assert joint[0].key != joint[1].key
    texts = Responses("a", ["a"])
    assert len({work.key for work in (Means(texts), Scores(texts), Differences(texts, "prompt"))}) == 3


def test_a_comparison_is_a_part_of_its_own(rm):
    work = Differences(Responses(PROMPTS[0], responses(0)), references(0))
    parts = work.prepare(rm)
    assert [list(part.positions) for part in parts] == [[0, 2], [1, 3]]
    assert [len(part.rows) for part in parts] == [3, 3]
    assert torch.equal(
        work.answer(parts, work.run(rm, rm.passes(), parts)).mean,
        rm.score([PROMPTS[0]] * 4, responses(0), relative_to=references(0)).mean,
    )
