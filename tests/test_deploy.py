"""The files that a deployment is made of name what is there."""

import configparser
import json
import re
import shlex
from pathlib import Path

import typer

from bayesrm_fast.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def served(arguments):
    """What `bayesrm serve` understands of these arguments."""
    return typer.main.get_command(app).commands["serve"].make_context("serve", arguments).params


def test_the_unit_starts_a_server_on_loopback_with_a_token():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "bayesrm.service")
    service = unit["Service"]
    command, name, *arguments = shlex.split(service["ExecStart"])
    assert (Path(command).name, name) == ("bayesrm", "serve")
    found = served(arguments)
    assert (found["host"], str(found["token_file"])) == ("127.0.0.1", "%d/token")
    assert int(service["TimeoutStopSec"]) > found["patience"]


def test_the_image_starts_a_server_with_a_token():
    command, name, *arguments = json.loads(re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)[1])
    assert (Path(command).name, name) == ("bayesrm", "serve")
    assert served([*arguments, "rm=/models/my-rm"])["token_file"] is not None
    assert "USER bayesrm" in DOCKERFILE


def test_the_image_is_built_from_what_a_build_needs():
    kept = re.findall(r"^!(.*)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.M)
    assert all((ROOT / name).exists() for name in kept)
    assert {"bayesrm_fast", "csrc", "CMakeLists.txt", "pyproject.toml", "setup.py", "README.md"} <= set(kept)
