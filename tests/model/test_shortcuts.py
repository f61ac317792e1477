"""What is told of shortcuts."""

from bayesrm_fast.model.shortcuts import Shortcuts


def test_each_shortcut_says_what_it_does_or_why_it_is_not_taken():
    taken = Shortcuts(no_mask=True, scored_token="last", shared_prefix=True).told()
    assert taken == {
        "attention mask": "left out",
        "last layer": "queries and feed-forward block at the last token alone",
        "rows of other lengths": "padded to one length",
        "beginnings that rows share": "once",
    }
    reasons = (("no_mask", "one reason"), ("scored_token", "another"), ("shared_prefix", "a third"))
    assert list(Shortcuts(reasons=reasons).told().values()) == [
        "kept: one reason",
        "at every token: another",
        "padded to one length",
        "in every row: a third",
    ]
    apart = Shortcuts(equal_lengths=True, reasons=(("padding", "why"),)).told()
    assert apart["rows of other lengths"] == "in calls of their own: why"
    assert Shortcuts(switches=(12,)).told()["rows of other lengths"].endswith("apart from those of over 12 tokens")


def test_none_is_taken_on_trust():
    assert Shortcuts() == Shortcuts(no_mask=False, scored_token=None, shared_prefix=False)
