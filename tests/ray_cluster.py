"""A Ray cluster of this process, and processes of it to be killed."""

import os
import signal
import socket
import time

import psutil
import pytest

SECONDS = 120
"""Within which whatever is waited for has happened, or the test fails."""


def alone():
    """Skip where Ray could be reached from elsewhere, or is not installed.

    It listens on every address of the machine, whatever it is told, and runs what it is sent.
    """
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        pytest.skip("Ray listens on all addresses: `make ray` runs this where loopback is the only one")


def process_of(name):
    """The id of the one process of the cluster that is called so."""
    found = []
    deadline = time.monotonic() + SECONDS
    while not found and time.monotonic() < deadline:
        found = [one.pid for one in psutil.process_iter(["cmdline"]) if name in " ".join(one.info["cmdline"] or [])]
        time.sleep(0.02)
    assert found, f"no process is called {name}"
    return found[0]


def kill(pid):
    """At once, without a word."""
    os.kill(pid, signal.SIGKILL)


def until(condition):
    """Waits for it."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
