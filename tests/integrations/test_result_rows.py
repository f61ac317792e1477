"""What rows become."""

import pickle

import pytest
from tiny import tiny_pairs, tiny_steps, words

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.integrations.result_rows import chosen_rows, scoring_of
from bayesrm_fast.select.named_rules import rule_of
from bayesrm_fast.text.records import candidate_sets

ROWS = [{"prompt": words(3, i), "responses": [words(2 + j, 7 * i + j) for j in range(2 + i)]} for i in range(3)]


@pytest.mark.parametrize("relative", [False, True])
def test_candidates_have_a_list_of_each_column(rm, relative):
    scoring = pickle.loads(pickle.dumps(scoring_of(ROWS[0], relative)))  # as it goes to another process
    found = scoring(rm, list(scoring.read(ROWS, "rows")))
    for row, one in zip(ROWS, found, strict=True):
        expected = rm.score(
            [row["prompt"]] * len(row["responses"]), row["responses"], relative_to="prompt" if relative else None
        )
        for name, values in expected.columns().items():
            assert one[name] == pytest.approx(values.tolist(), rel=1e-3, abs=1e-4)
        assert ("baseline" in one) == relative


def test_pairs_have_a_number_of_each_column(rm):
    pairs = tiny_pairs()
    scoring = scoring_of(pairs[0], False)
    found = scoring(rm, list(scoring.read(pairs, "pairs")))
    assert [row["mean"] for row in found] == pytest.approx(rm.score_pairs(pairs).mean.tolist(), rel=1e-3, abs=1e-4)


def test_steps_need_a_token_classifier(rm, step_adapter_folder):
    scoring = scoring_of(tiny_steps()[0], False)
    with pytest.raises(InputError, match="scores whole responses"):
        scoring.check(rm)
    scoring.check(BayesianRewardModel.from_pretrained(step_adapter_folder, device="cpu"))


@pytest.mark.parametrize("row", [tiny_pairs(1)[0], tiny_steps(1)[0]])
def test_only_candidates_are_relative(row):
    with pytest.raises(InputError, match="relative is for rows of responses"):
        scoring_of(row, True)


def test_a_choice_says_what_it_was_made_by(rm):
    sets = candidate_sets(ROWS)
    chosen = rm.best_of_each(sets, "std", 0.5)
    for row, best in zip(chosen_rows(rm, sets, rule_of("std", 0.5), chosen, explain=True), chosen, strict=True):
        assert (row["index"], row["response"], row["candidates"]) == (best.index, best.response, len(best.mean))
        assert "warnings" in row["advice"]
