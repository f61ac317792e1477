"""What the package, its workflows and its templates say of each other."""

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import typer
import yaml

from bayesrm_fast.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GITHUB = ROOT / ".github"


def test_every_extra_that_is_named_is_there():
    places = [ROOT / "README.md", ROOT / "pyproject.toml"]
    places += [path for folder in ("bayesrm_fast", "docs", "deploy") for path in (ROOT / folder).rglob("*")]
    named = set()
    for path in places:
        if path.is_file() and path.suffix in (".py", ".md", ".toml", ""):
            for extras in re.findall(r"(?:bayesrm_fast|['\"]\.)\[([a-z,]+)\]", path.read_text(encoding="utf-8")):
                named |= set(extras.split(","))
    assert {"serve", "train", "eval"} <= named
    assert named <= set(PYPROJECT["project"]["optional-dependencies"])


def test_the_source_distribution_has_what_a_build_needs(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    needed = {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md"}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")}
    for pattern in ("*.py", "*.html", "py.typed"):
        needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "bayesrm_fast").rglob(pattern)}
    assert needed <= names
    assert not any(name.startswith("tests/") for name in names)  # setuptools takes some of them, which run nowhere


def test_the_changelog_begins_with_the_version_that_is_packed():
    (version,) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[:1]
    assert version == PYPROJECT["project"]["version"]


def test_wheels_are_built_for_every_python_from_the_least_on():
    least = int(PYPROJECT["project"]["requires-python"].removeprefix(">=3."))
    built = [int(re.fullmatch(r"cp3(\d+)-\*", one)[1]) for one in PYPROJECT["tool"]["cibuildwheel"]["build"]]
    assert built == list(range(least, built[-1] + 1))
    assert built[-1] >= 14


def test_the_workflows_run_what_everybody_runs():
    commands = {}
    for path in (GITHUB / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
        commands[path.stem] = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert commands["ci"] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    assert any("cibuildwheel" in command for command in commands["wheels"])


def test_the_templates_ask_for_commands_that_are_there():
    text = (GITHUB / "ISSUE_TEMPLATE" / "bug_report.yml").read_text(encoding="utf-8")
    asked = re.findall(r"`python -m bayesrm_fast ([^`]+)`", text)
    assert "info" in asked
    for command in asked:
        name, *arguments = command.split()
        typer.main.get_command(app).commands[name].make_context(name, arguments)
    for path in (GITHUB / "ISSUE_TEMPLATE").glob("*_*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form.keys() >= {"name", "description", "body"}
        ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(ids) == len(set(ids)) > 0


def test_the_citation_names_the_papers_that_the_readme_links():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert "version" not in citation  # pyproject.toml has it
    assert citation["license"] == PYPROJECT["project"]["license"]
    cited = {one["value"] for reference in citation["references"] for one in reference["identifiers"]}
    assert cited == {"arXiv:2402.13210", "arXiv:2308.13111"}
