"""The page about a scored file: what stands there, and that nothing of a text is markup."""

import re

import pytest
from browser import chromium
from evaluate.test_scores_report import line, of

from bayesrm_fast.evaluate.scored_file import KnownOfRow, ScoredLine
from bayesrm_fast.evaluate.scores_page import ENTRIES, page
from bayesrm_fast.evaluate.scores_report import scores_report

pytest.importorskip("matplotlib", reason="the extra `eval` is not installed")

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">{{ 7 * 7 }}"


def responses(text="a text"):
    lines = [ScoredLine(text, [0.0, 1.0, 0.5], [0.1, 2.0, 0.3], [], False)] * 4
    return page(scores_report(of("responses", *lines), [KnownOfRow([text, "b", "c"], [1.0, 0.0, 0.5])] * 4))


def pairs():
    lines = [line([d], [1.0], [p]) for d, p in ((2.0, 0.8), (-1.0, 0.3), (0.5, 0.6))]
    return page(scores_report(of("pairs", *lines), [KnownOfRow(["good", "bad"], labels=[True])] * 3))


def steps():
    lines = [line([1.0, -1.0], [0.1, 0.1], [0.7, 0.2])]
    return page(scores_report(of("steps", *lines), [KnownOfRow(["first", "second"], labels=[True, False])]))


@pytest.mark.parametrize(
    ("text", "there", "absent"),
    [
        (responses(), ("gold of the best of n", "At n = 3 reward − std is worth +0.5 ± 0 over reward alone"), ("NLL",)),
        (pairs(), ("of the reward alone", "chosen: good\nrejected: bad", "P(preferred)"), ("gold",)),
        (steps(), ("P(correct)", "wrong", "second"), ("gold",)),
    ],
    ids=["responses", "pairs", "steps"],
)
def test_a_page_has_what_is_known(text, there, absent):
    assert all(what in text for what in there)
    assert not any(what in text for what in absent)


def test_a_page_names_no_place_to_load_from():
    for text in (responses(), pairs(), steps()):
        markup = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)  # names of formats, which nothing loads
        assert re.findall(r"https?://", markup) == []
        assert "default-src 'none'" in text


def test_a_page_has_the_same_bytes_every_time():
    assert responses() == responses()


def test_no_text_is_markup():
    text = responses(HOSTILE)
    assert "<script" not in text
    assert "<img" not in text
    assert "{{ 7 * 7 }}" in text


def test_of_many_responses_the_best_are_shown_and_the_others_counted():
    count = ENTRIES + 3
    text = page(scores_report(of("responses", line([float(i) for i in range(count)], [0.0] * count)), None))
    assert "and 3 more" in text
    assert text.count('<svg class="bar"') == ENTRIES


def test_a_browser_shows_it_and_asks_for_nothing(tmp_path):
    (tmp_path / "page.html").write_text(responses(HOSTILE), encoding="utf-8")
    with chromium() as driver:
        driver.get((tmp_path / "page.html").as_uri())
        assert driver.title == "Scores of scores.jsonl"
        assert HOSTILE in [one.text for one in driver.find_elements("css selector", ".text")]
        assert driver.find_element("css selector", ".charts svg").size["height"] > 100
        loaded = driver.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert [name for name in loaded if not name.startswith("data:")] == []
        assert driver.get_log("browser") == []
        wider = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
        for width in (400, 1200):
            driver.set_window_size(width, 800)
            assert not driver.execute_script(wider)
