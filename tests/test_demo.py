"""The demo's data: made the same every time, and nothing held out is trained on."""

from demo.passages import IN_DISTRIBUTION, candidates, passages, preference_pairs, split


def test_the_data_is_deterministic():
    assert passages() == passages()
    train, held_out = split()
    assert (train, held_out) == split()
    assert preference_pairs(train, 50) == preference_pairs(train, 50)
    assert candidates(held_out[0], held_out) == candidates(held_out[0], held_out)


def test_no_topic_is_both_trained_on_and_held_out():
    train, held_out = split()
    assert len(train) > 200
    assert len(held_out) > 40
    assert not {passage.topic for passage in train} & {passage.topic for passage in held_out}


def test_pairs_differ_and_candidates_hold_both_sides():
    train, held_out = split()
    pairs = preference_pairs(train, 400)
    assert len(pairs) > 350
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    kinds = [kind for kind, _ in candidates(held_out[0], held_out)]
    assert kinds[0] == "intact passage"
    assert 1 < sum(kind in IN_DISTRIBUTION for kind in kinds) < len(kinds) - 3
