"""The app under another host than uvicorn."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.serve.client import Client

APP = """
from bayesrm_fast import BayesianRewardModel
from bayesrm_fast.serve.app import create_app
from bayesrm_fast.serve.engine import AsyncScorer

app = create_app({"rm": AsyncScorer(BayesianRewardModel.from_pretrained(FOLDER, device="cpu"))})
"""


def test_granian_serves_the_app_and_ends_it(model_folder, tmp_path):
    pytest.importorskip("granian", reason="granian is not installed")
    (tmp_path / "served.py").write_text(APP.replace("FOLDER", repr(str(model_folder))))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--interface", "asgi", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    running = subprocess.Popen(
        [sys.executable, "-m", "granian", *options, "served:app"], env=os.environ | {"PYTHONPATH": path}
    )
    try:
        client = Client(f"http://127.0.0.1:{port}", patience=60)
        found = client.score(["able"] * 2, ["act", "again"])
        expected = BayesianRewardModel.from_pretrained(model_folder, device="cpu").score(["able"] * 2, ["act", "again"])
        assert found.mean.tolist() == pytest.approx(expected.mean.tolist(), rel=1e-4, abs=1e-6)
        assert found.std.tolist() == pytest.approx(expected.std.tolist(), rel=1e-3)
        assert httpx.get(f"{client.url}/health").status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait(60)
