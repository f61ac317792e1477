"""The report, and the files that it is written to."""

import json
import math
import random

import pytest
from rewardbench_peer import needs_rewardbench, peer, utils

from bayesrm_fast import InputError
from bayesrm_fast.evaluate.accuracy import ScoredRow, overall_score
from bayesrm_fast.evaluate.report import layouts, report, write_layout
from bayesrm_fast.evaluate.rows import benchmark_rows
from bayesrm_fast.text.files import read_rows
from benchmarks.data import data_folder

KNOWN = ("model", "model_type", "chat_template")


def pair(subset, number):
    return {"id": number, "subset": subset, "prompt": "able", "chosen": "act", "rejected": "age"}


def made_scores(rows, seed=0):
    """Right where the difference is large beside its std, for the most part."""
    lot = random.Random(seed)
    found = []
    for row in rows:
        scores = [lot.gauss(0.5 * (i < row.num_correct), 1) for i in range(len(row.responses))]
        variance = lot.uniform(0.1, 2)
        matrix = [[variance * (i != j) for j in range(len(scores))] for i in range(len(scores))]
        found.append(ScoredRow(row.id, row.subset, row.num_correct, scores, matrix, False))
    return found


@pytest.fixture
def pairs():
    subsets = {"donotanswer": 30, "hep-go": 20, "own": 12}
    return benchmark_rows([pair(subset, i) for subset, count in subsets.items() for i in range(count)]).rows


@pytest.fixture
def several():
    four = {"prompt": "able", "chosen": ["act"], "rejected": ["age", "air", "all"]}
    rows = [four | {"id": str(i), "subset": subset} for subset in ("Math", "Focus", "own") for i in range(6)]
    tied = {"prompt": "able", "chosen": ["act", "add"], "rejected": ["age"], "subset": "Ties", "id": "tied:1"}
    return benchmark_rows([*rows, tied, tied | {"chosen": ["act"], "id": "ref:1"}]).rows


def test_unknown_subsets_are_scored_and_outside_of_the_sections(pairs):
    told = report(1, made_scores(pairs), in_domain=["own"])
    assert told.outside_of_sections == ["own"]
    assert told.absent_sections == ["Chat", "Chat Hard"]
    assert told.subsets.keys() == told.by_subset.keys() == {"donotanswer", "hep-go", "own"}
    assert told.sections["Safety"] == told.subsets["donotanswer"]
    assert told.overall == overall_score(told.sections)
    assert told.figures.rows == told.figures.decided == 62
    assert told.domains.in_domain == told.by_subset["own"]
    assert told.domains.out_of_domain.rows == 50


def test_accuracy_at_full_coverage_is_the_accuracy_in_every_order(pairs):
    told = report(1, made_scores(pairs))
    full = [accuracies["1"] for accuracies in told.figures.accuracy_at_coverage.values()]
    assert full == [pytest.approx(told.figures.accuracy)] * 2
    assert told.curves["coverage"][-1] == 1
    assert told.curves["posterior"][49] == told.figures.accuracy_at_coverage["posterior"]["0.5"]


def test_a_constant_variance_orders_as_the_margin_does(pairs):
    """The control: an uncertainty that knows nothing of the row is worth what |Δ| is."""
    rows = [ScoredRow(row.id, row.subset, 1, row.scores, [[0, 0.7], [0.7, 0]], False) for row in made_scores(pairs)]
    figures = report(1, rows, temperature=1.3).figures
    assert figures.auroc_for_wrong["probability"] == figures.auroc_for_wrong["margin"]
    assert figures.auroc_for_wrong["std"] == 0.5
    assert figures.mean_risk["posterior"] == figures.mean_risk["margin"]


def test_ties_have_a_score_and_no_decisions(several):
    scored = made_scores(several)
    told = report(2, scored)
    assert "Ties" in told.subsets
    assert "Ties" not in told.by_subset
    assert told.absent_sections == ["Factuality", "Precise IF", "Safety"]
    assert (told.figures.rows, told.figures.decided) == (20, 18)
    alone = report(2, scored[-2:])
    assert alone.figures is None
    assert alone.curves == {}
    assert report(2, scored, in_domain=["Ties"]).domains is None


@pytest.mark.parametrize(
    ("in_domain", "message"),
    [
        (["other"], "there is no subset 'other' to be in-domain: the data has donotanswer, hep-go, own"),
        (["own", "hep-go", "donotanswer"], "all subsets are named as in-domain"),
    ],
)
def test_in_domain_subsets_that_cannot_be_compared_are_refused(pairs, in_domain, message):
    with pytest.raises(InputError, match=message):
        report(1, made_scores(pairs), in_domain=in_domain)


def test_files_are_those_of_rewardbench(pairs, several, tmp_path):
    scored = made_scores(pairs)
    told = report(1, scored, in_domain=["own"])
    files = layouts(told, pairs, scored, "org/model", "tokenizer")
    assert files["eval-set"] == told.subsets | dict(
        zip(KNOWN, ("org/model", "Seq. Classifier", "tokenizer"), strict=True)
    )
    columns = {name: column for name, column in files["eval-set-scores"].items() if name not in KNOWN}
    assert columns.keys() == {
        "id",
        "subset",
        "results",
        "text_chosen",
        "text_rejected",
        "scores_chosen",
        "scores_rejected",
    }
    assert {len(column) for column in columns.values()} == {len(pairs)}
    assert columns["results"] == [int(one.scores[0] > one.scores[1]) for one in scored]
    assert columns["text_chosen"][0] == [
        {"role": "user", "content": "able"},
        {"role": "assistant", "content": "act"},
    ]
    path = tmp_path / "model.json"
    for content in files.values():
        write_layout(path, content)
        assert path.read_text() == json.dumps(content, indent=4, sort_keys=True)
    scored = made_scores(several)
    columns = layouts(report(2, scored), several, scored, "model", None)["eval-set-scores"]
    assert columns.keys() == {"id", "subset", "results", "text", "scores", "num_correct", *KNOWN}
    assert columns["scores"][-2] == scored[-2].scores
    assert columns["num_correct"][-2] == 2
    assert columns["results"][-2:] == [None, None]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write_layout(tmp_path / "absent" / "model.json", {})


@needs_rewardbench
@pytest.mark.skipif(data_folder() is None, reason="the real data is not here: BAYESRM_DATA names no folder")
def test_real_rows_with_made_scores_are_scored_as_the_package_does():
    rows = benchmark_rows(read_rows(data_folder() / "rewardbench_like.jsonl.gz")).rows
    scored = made_scores(rows)
    told = report(1, scored)
    constants, theirs = peer("constants"), {}
    for subset in {row.subset for row in rows}:
        results = [int(one.scores[0] > one.scores[1]) for one in scored if one.subset == subset]
        theirs[subset] = sum(results) / len(results)
    assert told.subsets == pytest.approx(theirs, abs=1e-12)
    sections = utils().calculate_scores_per_section(constants.EXAMPLE_COUNTS, constants.SUBSET_MAPPING, theirs)
    assert told.sections == pytest.approx(sections, abs=1e-12)
    assert told.outside_of_sections == ["gsm8k-math", "prmbench-math"]
    assert len(rows) == told.figures.rows == 3233
    assert all(map(math.isfinite, told.figures.auroc_for_wrong.values()))
