"""`bayesrm serve`."""

import ipaddress
import logging
import os
import signal
import socket
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from bayesrm_fast.cli.arguments import MaxBatchTokens
from bayesrm_fast.cli.models import load_fitted
from bayesrm_fast.cli.terminal import ShownWarnings
from bayesrm_fast.errors import InputError

if TYPE_CHECKING:
    from bayesrm_fast.select.penalties import Penalty

logger = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that wait to be accepted: trainers open one for each sample of a rollout."""


def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="NAME=FOLDER...", help="Models by name. A folder alone is named by itself.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.")] = 8000,
    token_file: Annotated[Path | None, typer.Option(help="File with the bearer token that clients must send.")] = None,
    penalty: Annotated[
        str, typer.Option(help="What drop-ins subtract from a mean: std for k·std, entropic for k/2·std², or none.")
    ] = "none",
    k: Annotated[float | None, typer.Option(help="Weight of the penalty. [default: 1]")] = None,
    threshold: Annotated[
        float, typer.Option(help="Reward above which OpenRLHF's scores count a sample as good.")
    ] = 0.0,
    max_queue_tokens: Annotated[int, typer.Option(min=1, help="Tokens that may wait for the model.")] = 1_000_000,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long a batch waits for company.")] = 2.0,
    max_batch_tokens: MaxBatchTokens = None,
    max_responses: Annotated[int, typer.Option(help="Texts that one request may have scored.")] = 256,
    max_body_bytes: Annotated[int, typer.Option(help="Size of a request.")] = 8 * 2**20,
    patience: Annotated[float, typer.Option(help="Seconds after which a drop-in's request ends with 503.")] = 100.0,
) -> None:
    """Serve rewards with their uncertainty over HTTP, also to trainers and clients of other reward servers."""
    from bayesrm_fast.select.penalties import PenaltyOfStd
    from bayesrm_fast.serve.options import ServerOptions

    folders = _folders(models)
    if k is not None and penalty == "none":
        raise InputError("--k is the weight of a penalty, and there is none: give --penalty std or entropic")
    token = None if token_file is None else token_file.read_text(encoding="utf-8").strip()
    options = ServerOptions(
        penalty=PenaltyOfStd(cast("Penalty", penalty), 1.0 if k is None else k),
        threshold=threshold,
        token=token,
        max_body_bytes=max_body_bytes,
        max_responses=max_responses,
        patience=patience,
    )
    with _listening(host, port) as listener:
        try:
            import uvicorn

            from bayesrm_fast.serve.app import create_app
            from bayesrm_fast.serve.engine import AsyncScorer
            from bayesrm_fast.serve.loading import served_models
            from bayesrm_fast.serve.logs import JsonLines
        except ImportError as error:
            raise InputError(f"serving needs the extra: pip install 'bayesrm_fast[serve]' ({error})") from error

        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
        warnings.showwarning = ShownWarnings(logger.warning)
        if token is None and not _is_loopback(host):
            logger.warning(f"{host} can be reached from other machines, and there is no --token-file")
        loaded = served_models(folders, partial(load_fitted, max_batch_tokens=max_batch_tokens))
        scorers = {
            name: AsyncScorer(rm, max_wait_ms=max_wait_ms, max_queue_tokens=max_queue_tokens)
            for name, rm in loaded.items()
        }
        config = uvicorn.Config(
            create_app(scorers, options),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=options.seconds_to_shut_down,
        )
        address = "http://{}:{}".format(*listener.getsockname()[:2])
        logger.info("listening", extra={"fields": {"address": address, "models": list(folders)}})
        # uvicorn finishes what it has accepted, and then raises the signal again: by then it has been obeyed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listener])
        logger.info("stopped")


def _folders(models: list[str]) -> dict[str, Path]:
    """Folders by name.

    Raises:
        InputError: a name that is empty or given twice.
    """
    found: dict[str, Path] = {}
    for given in models:
        name, _, folder = given.rpartition("=")
        name = name or Path(folder).resolve().name
        if not name or not folder or given.startswith("="):
            raise InputError(f"a model is given as NAME=FOLDER, not {given!r}")
        if name in found:
            raise InputError(f"two models are named {name}: give them as NAME=FOLDER")
        found[name] = Path(folder)
    return found


def _listening(host: str, port: int) -> socket.socket:
    """A socket that holds the port before the model is loaded, so that two servers never load for one port.

    Raises:
        InputError: an address that cannot be listened on, or a port that is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror
        raise InputError(f"{host} port {port} cannot be listened on: {reason}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
