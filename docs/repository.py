"""MkDocs hooks: what of the site is not under docs/, and links between files of the repository."""

import json
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
"""Pages that are not under docs/, by their paths in the repository and in the site alike."""

LINKED = ("benchmarks/results/*", "deploy/*", "LICENSE")
"""What pages link beside pages."""

COMMANDS = "reference/command-line.md"

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is outside of docs/, and each notebook as a page."""
    linked = [path.relative_to(ROOT).as_posix() for pattern in LINKED for path in ROOT.glob(pattern)]
    for name in (*OUTSIDE, *sorted(linked)):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            page = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, page, content=as_markdown(json.loads(file.content_string))))
    return files


def commands() -> str:
    """Every command with its options, as typer tells them, without a title."""
    arguments = (sys.executable, "-m", "typer", "bayesrm_fast.cli.main", "utils", "docs", "--name", "bayesrm")
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return done.stdout.partition("\n")[2]


def as_markdown(notebook: dict[str, Any]) -> str:
    """A notebook with what its cells printed."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
        parts += ["```text\n{}```".format("".join(output["text"])) for output in cell.get("outputs", ())]
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into those of the site, and add the help of the commands."""
    here = page.file.src_uri
    if here == COMMANDS:
        markdown += commands()
    folder = posixpath.dirname(here if here in OUTSIDE else f"docs/{here}")

    def of_the_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1])).removeprefix("docs/")
        if files.get_file_from_path(target) is None:
            return match[0]
        return posixpath.relpath(target, posixpath.dirname(here))

    return LINK.sub(of_the_site, markdown)
