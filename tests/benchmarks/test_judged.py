"""Pairs and candidates of judged responses."""

from benchmarks.judged import DISTRACTORS, GAP, preference_pairs, with_distractors

ROWS = [
    {"prompt": f"p{i}", "responses": [{"text": f"p{i}, response {j}", "gold": j / 10} for j in range(4)]}
    for i in range(3)
]


def test_pairs_prefer_what_the_judge_does_by_a_gap():
    gold = {response["text"]: response["gold"] for row in ROWS for response in row["responses"]}
    pairs = preference_pairs(ROWS, 2, seed=0)
    assert len(pairs) == 6
    assert all(gold[pair["chosen"]] - gold[pair["rejected"]] >= GAP for pair in pairs)
    assert all(pair["chosen"].startswith(pair["prompt"]) for pair in pairs)
    assert pairs == preference_pairs(ROWS, 2, seed=0)


def test_distractors_answer_other_prompts_and_are_worth_nothing():
    for candidates, row in zip(with_distractors(ROWS, candidates=2, seed=0), ROWS, strict=True):
        own, strays = candidates["texts"][: candidates["own"]], candidates["texts"][candidates["own"] :]
        assert own == [response["text"] for response in row["responses"][:2]]
        assert len(strays) == DISTRACTORS
        assert not any(text.startswith(row["prompt"]) for text in strays)
        assert candidates["gold"].tolist() == [0.0, 0.1] + [0.0] * DISTRACTORS
