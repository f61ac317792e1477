"""`bayesrm serve`, as a process of its own where signals and sockets are what is tested."""

import contextlib
import http.client
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.cli import serve

COMMAND = Path(sys.executable).with_name("bayesrm")
ASKED = {"prompt": "able", "responses": ["act", "act again"]}


class Server:
    """A running server.

    Attributes:
        lines: of its log so far.
        port: that it listens on.
    """

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [COMMAND, "serve", *map(str, arguments), "--port", "0"], stderr=subprocess.PIPE, text=True, bufsize=1
        )
        self.lines = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = int(self.line("listening")["address"].rpartition(":")[2])
        self.line("ready")

    def _read(self):
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(json.loads(line))
                self._changed.notify_all()

    def line(self, message, **fields):
        """The first line with this message and these fields, once it is there."""

        def found():
            return next((one for one in self.lines if {"message": message, **fields}.items() <= one.items()), None)

        with self._changed:
            assert self._changed.wait_for(found, timeout=120), self.lines
            return found()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def stop(self):
        """End it where it still runs."""
        self.process.kill()
        self.process.wait(60)
        self._reader.join(10)


@pytest.fixture(scope="module")
def server(model_folder, tmp_path_factory):
    """One process for all tests, of which the last ends it. What it has loaded from is gone."""
    folders = [tmp_path_factory.mktemp("served") / name for name in ("first", "second")]
    for folder in folders:
        shutil.copytree(model_folder, folder)
    running = Server(*folders, "--penalty", "std")
    for folder in folders:
        shutil.rmtree(folder)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def rm(model_folder):
    return BayesianRewardModel.from_pretrained(model_folder, device="cpu")


def test_numbers_are_those_of_the_model(server, rm):
    scores = rm.score([ASKED["prompt"]] * 2, ASKED["responses"])
    for name in ("first", "second"):
        found = httpx.post(f"{server.url}/v1/rewards", json=ASKED | {"model": name}).json()["rewards"]
        for i, one in enumerate(found):
            assert one["mean"] == pytest.approx(float(scores.mean[i]), rel=1e-4)
            assert one["std"] == pytest.approx(float(scores.std[i]), rel=1e-3)
    texts = ["able act", "act again"]
    reward = httpx.post(f"{server.url}/get_reward", json={"query": texts}).json()
    for i, value in enumerate(reward["rewards"]):
        logs = reward["extra_logs"]
        assert value == pytest.approx(logs["reward_mean"][i] - logs["reward_std"][i])


def test_every_route_scores_by_the_model(server):
    posts = {
        "/v1/rewards": ASKED | {"relative": "prompt"},
        "/v1/best_of_n": ASKED | {"rule": {"rule": "thompson"}},
        "/v1/covariance": ASKED,
        "/classify": {"input": ["able", "act"]},
        "/pooling": {"input": "able"},
        "/score": {"queries": "able", "documents": ["act"]},
        "/rerank": {"query": "able", "documents": ["act"]},
        "/v1/embeddings": {"input": "able"},
        "/reward": {"prompt": "able ", "response": "act"},
        "/v1/score/evaluation": {"model": "model", "messages": ["able"]},
    }
    for path, body in posts.items():
        answer = httpx.post(f"{server.url}{path}", json=body)
        assert answer.status_code == 200, (path, answer.text)
    assert [card["id"] for card in httpx.get(f"{server.url}/v1/models").json()["data"]] == ["first", "second"]
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert "bayesrm_batches_total" in httpx.get(f"{server.url}/metrics").text


def test_a_second_server_on_a_port_ends_with_one_line(server):
    """Before it loads a model."""
    done = subprocess.run(
        [COMMAND, "serve", "/nowhere", "--port", str(server.port)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"bayesrm: 127.0.0.1 port {server.port} cannot be listened on: Address already in use"
    ]


def test_a_client_that_disconnects_is_logged_and_harms_nobody(server):
    body = json.dumps({"query": ["able " * 60] * 30})
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = "POST /get_reward HTTP/1.1\r\nHost: x\r\nX-Request-Id: gone\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body) + 1}\r\n\r\n{body}".encode())
    assert server.line("request", request_id="gone")["status"] in (499, 200)
    assert httpx.post(f"{server.url}/v1/rewards", json=ASKED).status_code == 200


def test_a_reader_that_never_reads_holds_up_nobody(server):
    with contextlib.ExitStack() as held:
        for _ in range(20):
            client = held.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        assert httpx.post(f"{server.url}/v1/rewards", json=ASKED, timeout=30).status_code == 200


def test_the_log_is_json_without_texts(server):
    httpx.post(f"{server.url}/get_reward", json={"query": ["a text of a client"]}, headers={"X-Request-Id": "quiet"})
    assert server.line("request", request_id="quiet")["rows"] == 1
    assert "a text of a client" not in json.dumps(server.lines)


def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest(server):
    body = json.dumps({"query": [f"able {'act ' * 50}{'add ' * i}" for i in range(60)]})
    clients = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(6)]
    for client in clients:
        client.request("POST", "/get_reward", body, {"Content-Type": "application/json"})
    with httpx.Client(base_url=server.url) as probe:
        while not any(
            line.startswith("bayesrm_queued_requests") and not line.endswith(" 0.0")
            for line in probe.get("/metrics").text.splitlines()
        ):
            pass
    server.process.send_signal(signal.SIGTERM)
    answers = [client.getresponse() for client in clients]
    assert [answer.status for answer in answers] == [200] * 6
    assert all(len(json.loads(answer.read())["rewards"]) == 60 for answer in answers)
    assert server.process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    assert server.line("stopped")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["=x"], "NAME=FOLDER, not '=x'"),
        (["a="], "NAME=FOLDER, not 'a='"),
        (["a=x", "a=y"], "two models are named a"),
        (["x/rm", "y/rm"], "two models are named rm"),
        (["a=x", "--penalty", "relative"], "penalty must be one of std, entropic, none"),
        (["a=x", "--penalty", "std", "--k", "-1"], "k must be a finite number"),
        (["a=x", "--k", "2"], "--k is the weight of a penalty, and there is none"),
        (["a=x", "--token-file", "/nowhere"], "No such file"),
        (["a=x", "--token-file", os.devnull], "the token is empty"),
        (["a=x", "--host", "256.0.0.1"], "256.0.0.1 port 8000 cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_told_before_a_model_is_loaded(refused, no_model, arguments, sentence):
    assert sentence in refused("serve", *arguments)


def test_a_posterior_with_nan_is_refused_by_its_file(refused, model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    tensors = load_file(folder / "posterior.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, folder / "posterior.safetensors")
    assert "posterior.safetensors" in refused("serve", folder, "--port", 0)


def test_a_missing_extra_is_named(refused, no_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'bayesrm_fast[serve]'" in refused("serve", "a=x")


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)],
)
def test_which_addresses_other_machines_reach(host, is_loopback):
    assert serve._is_loopback(host) == is_loopback


@pytest.mark.parametrize("token", [None, "s3cret"])
def test_an_open_address_without_a_token_is_warned_of(model_folder, tmp_path, bayesrm, caplog, monkeypatch, token):
    arguments = []
    if token is not None:
        (tmp_path / "token").write_text(f"{token}\n")
        arguments = ["--token-file", tmp_path / "token"]
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: [one.close() for one in sockets])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    formatters = {handler: handler.formatter for handler in logging.getLogger().handlers}
    try:
        bayesrm("serve", f"rm={model_folder}", "--host", "0.0.0.0", "--port", "0", *arguments)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for handler, formatter in formatters.items():
            handler.setFormatter(formatter)
    assert ("can be reached from other machines" in caplog.text) == (token is None)
    assert "s3cret" not in caplog.text
