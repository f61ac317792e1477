"""Servers in threads of this process."""

import contextlib
import threading
import time

import uvicorn

from bayesrm_fast.serve.app import create_app


@contextlib.contextmanager
def served_at(scorers, options=None, port=0):
    """The address of a server of these engines."""
    server = uvicorn.Server(uvicorn.Config(create_app(scorers, options), port=port, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
