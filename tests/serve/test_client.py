"""Clients of a server, over a socket of this machine."""

import asyncio
import os
import pickle
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from fake_scorer import FakeScorer
from fake_scorer import reward as known_reward
from listening import served_at
from tiny import words

from bayesrm_fast import InputError
from bayesrm_fast.serve import client as client_module
from bayesrm_fast.serve.client import AsyncClient, Client, ServerError
from bayesrm_fast.serve.engine import AsyncScorer
from bayesrm_fast.serve.options import ServerOptions

PROMPTS = [words(3), words(4, 7), words(3), words(4, 7), words(3)]
RESPONSES = [words(2 + i, 3 * i) for i in range(5)]


@pytest.fixture(scope="module")
def url(rm):
    with served_at({"rm": AsyncScorer(rm)}) as url:
        yield url


def asynchronous(url, **options):
    """An asynchronous client, called as the other one."""
    own = AsyncClient(url, **options)

    class Called:
        def __getattr__(self, name):
            return lambda *args, **given: asyncio.run(getattr(own, name)(*args, **given))

    return Called()


KINDS = pytest.mark.parametrize("make", [Client, asynchronous], ids=["sync", "async"])


@KINDS
@pytest.mark.parametrize("relative_to", [None, "prompt", [words(2, 11)] * 5])
def test_a_client_has_the_scores_of_the_model_in_the_order_of_its_rows(rm, url, make, relative_to):
    found = make(url).score(PROMPTS, RESPONSES, relative_to=relative_to)
    expected = rm.score(PROMPTS, RESPONSES, relative_to=relative_to)
    for name in ("mean", "variance"):
        torch.testing.assert_close(getattr(found, name).float(), getattr(expected, name), rtol=1e-3, atol=1e-6)
    assert (found.baseline is None) == (relative_to is None)
    assert found.truncated.tolist() == expected.truncated.tolist()
    assert found.tokens.tolist() == expected.tokens.tolist()


@KINDS
def test_a_client_chooses_as_the_model_does(rm, url, make):
    found, expected = (
        make(url).best_of_n(words(3), RESPONSES, "std", 0.5),
        rm.best_of_n(words(3), RESPONSES, "std", 0.5),
    )
    assert (found.index, found.response) == (expected.index, expected.response)
    torch.testing.assert_close(found.scores.float(), expected.scores.float(), rtol=1e-3, atol=1e-6)
    conversation = [{"role": "user", "content": words(3)}]
    described = make(url).best_of_n(conversation, RESPONSES, {"rule": "mean"})
    assert described.variances_computed <= 1


@KINDS
def test_means_alone_take_no_backward_pass(rm, make):
    with served_at({"rm": AsyncScorer(rm)}) as url:
        client = make(url)
        torch.testing.assert_close(
            client.rewards(PROMPTS, RESPONSES).float(), rm.rewards(PROMPTS, RESPONSES), rtol=1e-3, atol=1e-6
        )
        page = httpx.get(f"{url}/metrics").text
    assert 'bayesrm_rows_total{model="rm",variance="false"} 5.0' in page
    assert 'variance="true"} 5.0' not in page


@KINDS
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "gopher://127.0.0.1:1", "http://[::1", "http://a:b"])
def test_a_proxy_that_cannot_be_used_is_told(url, make, monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(InputError, match=r"a proxy of the environment .* cannot be used"):
        make(url).models()


@KINDS
def test_a_client_goes_on_where_its_server_is_started_anew(make):
    """Its connections are kept, and end with the server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = make(f"http://127.0.0.1:{port}", patience=30)
    for _ in range(3):
        with served_at({"rm": FakeScorer()}, port=port):
            assert client.rewards(["able"], ["act"]).tolist() == [known_reward("able act")]


def test_a_client_comes_out_of_a_pickle_with_the_same_scores(rm, url):
    client = Client(url, model="rm")
    before = client.rewards(PROMPTS, RESPONSES)
    again = pickle.loads(pickle.dumps(client))
    assert again == client
    torch.testing.assert_close(again.rewards(PROMPTS, RESPONSES), before)
    assert again.models() == ["rm"]


@KINDS
def test_what_the_server_refuses_for_good_is_an_error_with_its_words(url, make):
    with pytest.raises(InputError, match=r"/v1/rewards: 404, .*rm"):
        make(url, model="other").score(["a"], ["b"])
    with pytest.raises(InputError, match=r"422, .*rule"):
        make(url).best_of_n("a", ["b"], "nothing of that name")


@KINDS
def test_what_no_server_could_serve_is_refused_here(url, make):
    with pytest.raises(InputError, match="nothing to score"):
        make(url).score([], [])
    with pytest.raises(InputError, match="2 prompts but 1 responses"):
        make(url).score(["a", "b"], ["c"])
    with pytest.raises(InputError, match=r"responses\[0\] must be a string"):
        make(url).score(["a"], [None])
    with pytest.raises(InputError, match="url must be that of a server"):
        make("127.0.0.1:8000")
    with pytest.raises(InputError, match="patience must be a finite number"):
        make(url, patience=0)


def test_a_token_is_sent_and_never_shown():
    with served_at({"rm": FakeScorer()}, ServerOptions(token="secret")) as url:
        with pytest.raises(InputError, match="401"):
            Client(url).score(["a"], ["b"])
        client = Client(url, token="secret")
        assert len(client.score(["a"], ["b"]).mean) == 1
        assert "secret" not in repr(client)


class Sequence(BaseHTTPRequestHandler):
    """Answers as the server object is told, one after another."""

    def do_GET(self):
        status, headers, body = self.server.answers.pop(0)
        if status is None:
            self.connection.close()
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def answering(monkeypatch):
    """A server that gives these answers, and the seconds that were waited."""
    waited = []
    monkeypatch.setattr(client_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=waited.append))

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr(client_module, "asyncio", SimpleNamespace(gather=asyncio.gather, sleep=sleep))
    server = HTTPServer(("127.0.0.1", 0), Sequence)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()

    def start(*answers):
        server.answers = list(answers)
        return f"http://127.0.0.1:{server.server_port}", waited

    yield start
    server.shutdown()
    server.server_close()


MODELS = (200, {}, b'{"data": [{"id": "rm"}]}')


@KINDS
def test_a_busy_server_is_asked_again_when_it_says_and_a_lost_one_too(answering, make):
    """A 500 that is not the server's own words is that of a proxy, such as Ray Serve's, whose server has died."""
    of_proxy = (500, {}, b"Internal Server Error")
    url, waited = answering((503, {"Retry-After": "3"}, b""), (None, {}, b""), (502, {}, b""), of_proxy, MODELS)
    assert make(url).models() == ["rm"]
    assert [low <= seconds <= 1.25 * low for seconds, low in zip(waited, (3, 0.5, 1.0, 2.0), strict=True)] == [True] * 4


@KINDS
@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(503, {"Retry-After": "20"}, b"")] * 3, "no answer in 1 tries .*503"),
        ([(500, {}, b'{"error": {"message": "a fault"}}')], "500, a fault"),
        ([(200, {}, b"<html>")], "is no JSON; is this a server of bayesrm"),
        ([(200, {}, b"[]")], "is no object"),
    ],
)
def test_patience_ends_and_faults_are_told(answering, make, answers, message):
    url, _ = answering(*answers)
    with pytest.raises(ServerError, match=message):
        make(url, patience=10).models()


@KINDS
@pytest.mark.parametrize("name", ["score", "rewards", "best_of_n"])
def test_an_answer_that_is_none_gives_no_numbers(answering, make, name):
    url, _ = answering((200, {}, b'{"something": "else"}'))
    with pytest.raises(ServerError, match="; is this a server of bayesrm"):
        getattr(make(url), name)(*(["a", ["b"]] if name == "best_of_n" else [["a"], ["b"]]))


@KINDS
def test_a_redirect_is_told_at_once(answering, make):
    url, waited = answering((307, {"Location": "https://elsewhere"}, b""))
    with pytest.raises(InputError, match="307 Temporary Redirect to https://elsewhere: give the url"):
        make(url).models()
    assert waited == []


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("url", [5, "http://", "http://[::1", "http://host:8000\n", "http://host?model=rm"])
def test_an_address_of_no_server_is_refused(kind, url):
    with pytest.raises(InputError, match="url must be that of a server"):
        kind(url)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("token", ["", "secret\n", " secret"])
def test_a_token_as_a_file_has_it_is_refused_and_not_shown(kind, token):
    with pytest.raises(InputError, match=r"^the token is empty, or has spaces or ends of lines around it$"):
        kind("http://host", token=token)


@KINDS
def test_texts_and_numbers_are_read_as_the_model_reads_them(rm, url, make):
    with pytest.raises(InputError, match="prompts must be a list, not str"):
        make(url).score("ab", "cd")
    with pytest.raises(InputError, match="responses must be a list"):
        make(url).best_of_n("a", "bc")
    with pytest.raises(InputError, match="reference 2 must be a string"):
        make(url).score(["a", "a"], ["b", "c"], relative_to=["d", None])
    with pytest.raises(InputError, match="cannot be written as JSON"):
        make(url).best_of_n("a", ["b", "c"], k=float("nan"))
    with pytest.raises(InputError, match="cannot be written as JSON: it has a object"):
        make(url).score([[{"role": "user", "content": "a", "at": object()}]], ["b"])
    expected = rm.best_of_n("a", ["all", "any"], "log_probability", log_probabilities=[-2.0, -1.0])
    for given in (np.array([-2.0, -1.0]), torch.tensor([-2.0, -1.0])):
        found = make(url).best_of_n("a", np.array(["all", "any"]), "log_probability", log_probabilities=given)
        assert (found.index, found.scores.tolist()) == (expected.index, expected.scores.tolist())


def test_a_forked_child_has_connections_of_its_own(url):
    client = Client(url)
    client.models()
    (parents,) = client._connections.values()
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if client._http is not parents and client.models() == ["rm"] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client._http is parents
