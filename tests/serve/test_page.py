"""The page at `/`: what it may load, and what a person sees and does on it, in Chromium."""

import asyncio
import contextlib
import re
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from browser import chromium
from fake_scorer import FakeScorer
from listening import served_at

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.serve.engine import AsyncScorer
from bayesrm_fast.serve.options import ServerOptions

PROMPT = "able"
RESPONSES = ["act again", "act", "act again and all"]


class UnsureOfLongTexts(FakeScorer):
    """The std grows with the reward, so that the penalty decides who wins."""

    async def covariance(self, prompt, responses, *, wait=True):
        joint = await super().covariance(prompt, responses, wait=wait)
        joint.covariance.diagonal().copy_(((joint.mean + 2) / 2) ** 2)
        return joint


def test_the_page_needs_no_token_and_loads_nothing(served):
    with served(ServerOptions(token="secret")) as client:
        answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"https?://|\ssrc=|@import|url\(|<(style|script) ", answer.text)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_the_script_makes_markup_of_no_text(client):
    """Chromium holds this by the policy; other browsers may not."""
    assert "require-trusted-types-for 'script'" in client.get("/").headers["content-security-policy"]
    assert not re.search("HTML =|insertAdjacentHTML|document.write|eval", client.get("/").text)


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


class Page:
    """What a person does on the page, and what stands there then."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get(url)
        self.wait(lambda: self.text("status") == "")

    def wait(self, holds):
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, 30, 0.02).until(lambda _: holds())

    def at(self, name):
        return self.driver.find_element("id", name)

    def text(self, name):
        return self.at(name).text

    def press(self, *keys):
        """Keys by their names, and texts."""
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.driver).send_keys(*(getattr(Keys, key, key) for key in keys)).perform()

    @property
    def focused(self):
        return self.driver.switch_to.active_element.accessible_name

    def tab_to(self, name):
        """Tab on to a control by the name that it is read out with."""
        seen = []
        while len(seen) < 20:
            seen.append(self.focused)
            if seen[-1] == name:
                return
            self.press("TAB")
        raise AssertionError(f"Tab does not reach {name}, only {seen}")

    def fill(self, *responses):
        self.at("prompt").send_keys(PROMPT)
        while len(self.driver.find_elements("css selector", "#responses textarea")) < len(responses):
            self.at("add").click()
        for number, response in enumerate(responses, 1):
            self.at(f"response-{number}").send_keys(response)

    def compare(self, *responses):
        self.fill(*responses)
        self.at("compare").click()
        self.wait(lambda: self.text("status").startswith("Done"))

    def fault(self):
        """What the page says is wrong, once it does."""
        told = self.wait(lambda: self.text("fault"))
        assert self.at("fault").aria_role == "alert"
        return told

    def table(self, name):
        rows = "return [...document.getElementById(arguments[0]).rows]"
        return self.driver.execute_script(f"{rows}.map(row => [...row.cells].map(cell => cell.innerText))", name)

    def numbers(self):
        """Mean, std and score of every response."""
        return [[float(cell.replace("−", "-")) for cell in row[1:4]] for row in self.table("numbers")]

    def console(self):
        return self.driver.get_log("browser")


@pytest.fixture
def opened(browser):
    """The page of a server of these models; when the test is done, its console has nothing but refused requests."""
    with contextlib.ExitStack() as servers:
        yield lambda scorers, options=None: Page(browser, servers.enter_context(served_at(scorers, options)))
    assert [line for line in browser.get_log("browser") if line["source"] != "network"] == []


@pytest.fixture
def scorer():
    return UnsureOfLongTexts()


@pytest.fixture
def page(opened, scorer):
    return opened({"rm": scorer})


def joint_of(scorer, responses=RESPONSES):
    return asyncio.run(scorer.covariance(PROMPT, responses))


def as_shown(mean, std, k):
    """Numbers of the page, which shows two digits after the point."""
    score = mean - k * std
    return [pytest.approx(row, abs=0.00501) for row in torch.stack([mean, std, score], 1).tolist()]


def test_the_keyboard_is_enough(page, scorer):
    """To fill the form, to read the result, and to move the penalty until another response wins."""
    page.tab_to("Prompt")
    page.press(PROMPT, "TAB")
    assert page.focused == "Response 1"
    page.press(RESPONSES[0], "TAB")
    assert page.focused == "Remove response 1"
    page.press("TAB", RESPONSES[1])
    page.tab_to("Add a response")
    page.press("ENTER")
    assert page.focused == "Response 3"
    page.press(RESPONSES[2])
    page.tab_to("Compare")
    page.press("ENTER")
    page.wait(lambda: page.text("status").startswith("Done"))

    joint = joint_of(scorer)
    relative, spread = joint.relative().mean, joint.relative().covariance.diagonal().sqrt()
    assert page.numbers() == as_shown(relative, spread, k=1.0)
    probabilities = [float(row[4]) for row in page.table("numbers")]
    assert probabilities == pytest.approx(joint.probability_of_being_best().tolist(), abs=0.000501)
    regrets = [float(row[5]) for row in page.table("numbers")]
    assert regrets == pytest.approx(joint.expected_regret().tolist(), abs=0.00501)
    assert page.text("winner") == f"Response {int((relative - spread).argmax()) + 1} wins by mean − k·std."

    page.tab_to("Penalty k")
    before = page.text("winner")
    for steps in range(1, 71):
        page.press("ARROW_RIGHT")
        k = 1.0 + steps / 10
        winner = int((relative - k * spread).argmax()) + 1
        assert page.text("winner") == f"Response {winner} wins by mean − k·std."
        if page.text("winner") != before:
            break
    assert page.text("winner") != before
    assert page.numbers() == as_shown(relative, spread, k)
    assert [row[0] for row in page.table("numbers")][winner - 1] == f"{winner} wins"

    page.press("TAB", "ARROW_RIGHT")
    assert page.focused == "absolute"
    assert page.numbers() == as_shown(joint.mean, joint.covariance.diagonal().sqrt(), k)
    page.press("TAB")
    assert page.focused == "The same in numbers"
    assert page.console() == []


def test_every_control_is_read_out_by_a_name(page):
    page.compare(*RESPONSES)
    page.driver.execute_script(
        "document.querySelectorAll('[hidden], details').forEach(one => {one.hidden = false; one.open = true})"
    )
    controls = page.driver.find_elements("css selector", "button, input, select, textarea, summary, table, [tabindex]")
    assert len(controls) > 20
    assert all(control.accessible_name for control in controls)


def test_where_the_winner_changes_is_told(page, scorer):
    page.compare(*RESPONSES)
    joint = joint_of(scorer).relative()
    mean, spread = joint.mean, joint.covariance.diagonal().sqrt()
    grid = torch.arange(0, 8.001, 0.001, dtype=torch.float64)
    best = (mean[:, None] - grid * spread[:, None]).argmax(0)
    changes = (best.diff() != 0).nonzero()[:, 0]
    told = re.findall(r"response (\d)(?: up to k = ([\d.]+))?", page.text("k-hint"))
    assert [int(number) - 1 for number, _ in told] == [*best[changes].tolist(), int(best[-1])]
    assert [float(k) for _, k in told[:-1]] == pytest.approx(grid[changes].tolist(), abs=0.00601)


def test_rules_stand_beside_each_other(page, scorer):
    page.compare(*RESPONSES)
    joint = joint_of(scorer).relative()
    mean, variance = joint.mean, joint.covariance.diagonal()
    chosen = [mean, mean - variance.sqrt(), mean - variance, joint.probability_of_being_best()]
    assert [row[1] for row in page.table("rules")] == [f"Response {int(scores.argmax()) + 1}" for scores in chosen]


def test_rules_that_draw_are_those_of_the_engine(opened, model_folder):
    page = opened({"rm": AsyncScorer(BayesianRewardModel.from_pretrained(model_folder, device="cpu"))})
    page.compare(*RESPONSES)
    page.press("ESCAPE")  # does nothing where nothing is waited for
    page.at("draw").click()
    page.wait(lambda: len(page.table("rules")) == 7)
    for row, rule in zip(page.table("rules")[4:], ("soft", "poisson", "pessimism"), strict=True):
        asked = {"prompt": PROMPT, "responses": RESPONSES, "rule": rule}
        found = httpx.post(f"{page.driver.current_url}v1/best_of_n", json=asked).json()
        probability = found["candidates"][found["index"]]["score"]
        expected = f"Response {found['index'] + 1}", f"drawn, with probability {probability:.2f}"
        assert row == [f"{rule} at k = 1.0, relative", *expected]


def test_markup_in_a_text_stays_a_text(page):
    bad = "<img src=x onerror=document.title='bad'>"
    page.compare(bad, f"</td><script>document.title='bad'</script>{bad}")
    rows = [row.text for row in page.driver.find_elements("css selector", "#bars .text")]
    assert bad in rows[0] + rows[1]
    assert all("document.title" in row for row in rows)
    assert page.driver.find_elements("tag name", "img") == []
    assert page.driver.title == "Compare responses · bayesrm_fast"


def test_one_response_is_shown_as_it_is(page, scorer):
    page.fill("act", "")
    page.tab_to("Remove response 2")
    page.press("ENTER")
    assert page.focused == "Response 1"
    page.at("compare").click()
    page.wait(lambda: page.text("status").startswith("Done"))
    joint = joint_of(scorer, ["act"])
    assert page.numbers() == as_shown(joint.mean, joint.covariance.diagonal().sqrt(), k=1.0)
    page.compare("", "act again")
    assert page.numbers()[0][0] != pytest.approx(joint.mean[0].item(), abs=0.01)


def test_what_was_cut_is_told(page):
    page.compare("act " * 20, "act")
    assert [row[6] for row in page.table("numbers")] == ["8 (cut)", "2"]
    assert "8 tokens" in page.text("notes")


def test_many_responses_are_pasted_at_once(page):
    page.driver.find_element("tag name", "summary").click()
    page.at("many").send_keys("act\n\nagain\n---\n\nall --- air\n---  \n---\na\n")
    page.at("split").click()
    boxes = page.driver.find_elements("css selector", "#responses textarea")
    assert [box.get_property("value") for box in boxes] == ["act\n\nagain", "all --- air", "a"]
    assert page.focused == "Response 1"


class TestFaults:
    def test_the_server_has_its_say(self, page, scorer):
        scorer.is_full = True
        page.fill(*RESPONSES)
        page.at("compare").click()
        assert page.fault() == "The queue is full: try again in 3 s."
        assert not page.at("result").is_displayed()
        scorer.is_full = False
        page.at("compare").click()
        page.wait(page.at("result").is_displayed)
        assert not page.at("fault").is_displayed()

    def test_a_limit_of_the_server_is_told(self, opened, scorer):
        page = opened({"rm": scorer}, ServerOptions(max_responses=2))
        page.fill(*RESPONSES)
        page.at("compare").click()
        assert page.fault() == "The request has 3 texts to score, and at most 2 are taken in one."

    def test_a_server_that_is_gone(self, browser, scorer):
        with served_at({"rm": scorer}) as url:
            page = Page(browser, url)
            page.fill(*RESPONSES)
        page.at("compare").click()
        assert page.fault() == "The server cannot be reached."
        page.console()

    @pytest.mark.parametrize("how", ["button", "escape"])
    def test_a_request_that_is_cancelled_leaves_the_queue(self, page, scorer, how):
        page.compare(*RESPONSES)
        scorer.held = asyncio.Event()
        page.at("compare").click()
        page.wait(lambda: page.text("status") == "Scoring 3 responses… Esc cancels.")
        page.wait(lambda: len(scorer.begun) == 3)  # the first has warmed the server up
        page.at("compare").click()
        if how == "button":
            page.tab_to("Cancel")
            page.press("ENTER")
            assert page.focused == "Compare"
        else:
            page.press("ESCAPE")
        page.wait(lambda: page.text("status") == "Cancelled.")
        page.wait(lambda: len(scorer.cancelled) == 1)
        assert len(scorer.begun) == 3
        assert not page.at("cancel").is_displayed()
        assert not page.at("fault").is_displayed()


def test_a_token_is_asked_for_and_kept_nowhere(opened, scorer):
    page = opened({"rm": scorer}, ServerOptions(token="secret"))
    assert page.fault() == "The server wants a token."
    assert page.focused.startswith("Token")
    page.fill(*RESPONSES)
    for token, sentence in {"wrong": "does not take this token", "ключ": "character"}.items():
        page.at("token").send_keys(token)
        page.at("compare").click()
        page.wait(lambda sentence=sentence: sentence in page.text("fault"))
        page.at("token").clear()
    page.at("token").send_keys("secret")
    page.at("compare").click()
    page.wait(page.at("result").is_displayed)
    kept = "return [localStorage.length, sessionStorage.length, document.cookie, location.search + location.hash]"
    assert page.driver.execute_script(kept) == [0, 0, "", ""]
    page.driver.refresh()
    page.wait(page.at("token").is_displayed)
    assert page.at("token").get_property("value") == ""


def test_one_of_several_models_is_asked_and_has_its_penalty(opened, scorer):
    other = FakeScorer()
    other.rm.fitted.penalty = SimpleNamespace(k=2.5)
    page = opened({"first": scorer, "second": other})
    page.at("model").send_keys("second")
    page.compare(*RESPONSES)
    assert other.begun[-1][0] == f"{PROMPT} {RESPONSES[0]}"
    assert page.at("k").get_property("value") == "2.5"
    assert "tuned k to 2.5" in page.text("k-hint")
    page.at("model").send_keys("first")
    assert page.at("k").get_property("value") == page.text("k-value") == "2.5"  # of what is shown
    page.compare()
    assert page.at("k").get_property("value") == "1"
    page.driver.execute_script("arguments[0].focus()", page.at("k"))
    page.press("ARROW_RIGHT")
    page.compare()
    assert page.text("k-value") == "1.1"  # of one model it stays


CONTRASTS = Path(__file__).with_name("contrasts.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(page, scheme):
    """By the contrasts of WCAG AA, and on narrow and wide screens without scrolling sideways."""
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    page.compare("act " * 20, "a" * 80, *RESPONSES)
    texts, too_faint = page.driver.execute_script(CONTRASTS)
    assert texts > 50
    assert too_faint == []
    for width in (360, 1400):
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
