"""`bayesrm rewardbench`."""

import json

import pytest
from tiny import words

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli.rewardbench import rewardbench
from bayesrm_fast.text.files import read_rows, write_rows


def pairs(count=10):
    subsets = ("donotanswer", "hep-go", "own")
    return [
        {"id": i, "subset": subsets[i % 3], "prompt": words(3, i), "chosen": words(4, i), "rejected": words(5, 40 + i)}
        for i in range(count)
    ]


def fours():
    texts = {"prompt": "able", "chosen": ["act"], "rejected": ["age all", "art", "air all"]}
    tied = {"prompt": "about", "subset": "Ties", "chosen": ["act", "add"], "rejected": ["art again"]}
    return [
        *(texts | {"id": str(i), "subset": "Math", "prompt": words(4, i)} for i in range(3)),
        tied | {"id": "tied:1"},
        tied | {"id": "ref:1", "chosen": ["act"]},
    ]


@pytest.fixture
def data(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", pairs())
    return tmp_path / "pairs.jsonl"


def content(tmp_path, folder, name="model"):
    return json.loads((tmp_path / "out" / folder / f"{name}.json").read_text())


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".parquet", ".json"])
def test_pairs_are_scored_into_the_files_of_rewardbench(model_folder, tmp_path, summary, kind):
    path = tmp_path / f"rows{kind}"
    if kind == ".json":
        path.write_text(json.dumps(pairs()))
    else:
        write_rows(path, pairs())
    told = summary("rewardbench", model_folder, path, "--output", tmp_path / "out", "--in-domain", "own")
    scores = BayesianRewardModel.from_pretrained(model_folder, device="cpu").score_pairs(pairs())
    right = [float(mean > 0) for mean in scores.mean]
    expected = {name: sum(right[i::3]) / len(right[i::3]) for i, name in enumerate(("donotanswer", "hep-go", "own"))}
    accuracies = content(tmp_path, "eval-set")
    assert {name: accuracies[name] for name in expected} == expected
    assert accuracies["model"] == "model"
    columns = content(tmp_path, "eval-set-scores")
    differences = [a - b for a, b in zip(columns["scores_chosen"], columns["scores_rejected"], strict=True)]
    assert differences == pytest.approx(scores.mean.tolist(), rel=1e-4, abs=1e-5)
    ours = content(tmp_path, "eval-set-uncertainty")
    assert ours["domains"]["in_domain_subsets"] == ["own"]
    assert ours["figures"]["decided"] == 10
    assert told["rows"] == 10
    assert told["outside_of_sections"] == "own"
    assert told["sections_without_rows"] == "Chat, Chat Hard"
    assert told["Safety"] == expected["donotanswer"]
    assert told["overall"] == pytest.approx((expected["donotanswer"] + expected["hep-go"]) / 4)


def test_version_2_has_best_of_four_and_ties(model_folder, tmp_path, summary):
    write_rows(tmp_path / "rows.jsonl", fours())
    told = summary(
        "rewardbench", model_folder, tmp_path / "rows.jsonl", "--output", tmp_path / "out", "--name", "org/m"
    )
    rm = BayesianRewardModel.from_pretrained(model_folder, device="cpu")
    results = []
    for row in fours()[:3]:
        texts = row["chosen"] + row["rejected"]
        results.append(float(rm.rewards([row["prompt"]] * 4, texts).argmax() == 0))
    accuracies = content(tmp_path, "eval-set", "org/m")
    assert accuracies["Math"] == told["Math"] == pytest.approx(sum(results) / 3)
    assert content(tmp_path, "eval-set-scores", "org/m")["results"] == [*results, None, None]
    assert 0 <= accuracies["Ties"] <= 1.01
    assert told["sections_without_rows"] == "Factuality, Precise IF, Safety, Focus"


def test_a_person_is_shown_tables_and_a_figure(model_folder, data, tmp_path, bayesrm, monkeypatch):
    pytest.importorskip("matplotlib", reason="the extra `eval` is not installed")
    arguments = ("--output", tmp_path / "out", "--figure", tmp_path / "figure.png", "--in-domain", "own")
    out, _ = bayesrm("rewardbench", model_folder, data, *arguments)
    for shown in ("donotanswer", "outside of sections", "out of domain", "by |Δ| alone", "overall"):
        assert shown in out
    assert (tmp_path / "figure.png").is_file()


def test_a_killed_run_is_continued(model_folder, data, tmp_path, bayesrm, monkeypatch):
    monkeypatch.setattr("bayesrm_fast.cli.resumable.CHUNK", 4)
    scored, calls = BayesianRewardModel.score_differences, []

    def fails(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scored(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(BayesianRewardModel, "score_differences", fails)
        with pytest.raises(KeyboardInterrupt):
            rewardbench(model_folder, data, tmp_path / "out")
    partial = tmp_path / "out" / "eval-set-rows" / "model.jsonl.partial"
    assert partial.read_bytes().count(b"\n") == 1 + 4
    bayesrm("rewardbench", model_folder, data, "--output", tmp_path / "out", "--resume")
    assert not partial.exists()
    bayesrm("rewardbench", model_folder, data, "--output", tmp_path / "again")
    for folder in ("eval-set", "eval-set-scores", "eval-set-uncertainty"):
        again = (tmp_path / "again" / folder / "model.json").read_bytes()
        assert (tmp_path / "out" / folder / "model.json").read_bytes() == again
    assert len(read_rows(tmp_path / "out" / "eval-set-rows" / "model.jsonl")) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--in-domain", "other"], "there is no subset 'other'"),
        (["--name", "../model"], "--name must be a name"),
        (["--name", "/model"], "--name must be a name"),
        (["--figure", "figure.txt"], "figure.txt cannot be written: its name must end in"),
        (["--output", "{model}/results"], "is in the model's folder"),
        (["--output", "{data}"], "exists and is not a folder"),
    ],
)
def test_what_cannot_be_served_is_told_before_the_model_is_loaded(
    model_folder, data, tmp_path, refused, no_model, arguments, message, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = [one.format(model=model_folder, data=data) for one in arguments]
    assert message in refused("rewardbench", model_folder, data, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_bad_row_is_named(model_folder, tmp_path, refused, no_model):
    write_rows(tmp_path / "rows.jsonl", [*pairs(2), {**pairs(3)[2], "subset": ""}])
    line = refused("rewardbench", model_folder, tmp_path / "rows.jsonl", "--output", tmp_path / "out")
    assert line == f"bayesrm: {tmp_path}/rows.jsonl, row 3: subset must be a text, not ''"
