"""The site: it builds without a warning, has the public names, and asks nobody else for anything."""

import ast
import functools
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import chromium

import bayesrm_fast

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")

ROOT = Path(__file__).resolve().parent.parent
LEADING = {"canonical", "prev", "next", "alternate"}
"""Links of a page's head that nobody follows but a reader."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """What a browser loads to show a page."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.addresses += [given[name] for name in ("src", "srcset", "poster", "data") if given.get(name)]
        if tag == "link" and not LEADING & set(given["rel"].split()):
            self.addresses.append(given["href"])


def is_elsewhere(address):
    return re.match(r"(\w+:)?//", address) is not None


def test_no_page_loads_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        parser = Loaded()
        parser.feed(text)
        assert parser.addresses
        assert not [address for address in parser.addresses if is_elsewhere(address)], page
        assert 'class="mermaid"' not in text, f"{page}: the theme would load mermaid from elsewhere"


def test_no_style_loads_anything_from_elsewhere(site):
    styles = list(site.rglob("*.css"))
    assert styles
    for style in styles:
        text = style.read_text(encoding="utf-8")
        addresses = re.findall(r"url\(['\"]?([^)'\"]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text)
        assert not [address for address in addresses if is_elsewhere(address)], style


@pytest.mark.parametrize("name", bayesrm_fast.__all__)
def test_every_public_name_is_in_the_reference(site, name):
    home = f"bayesrm_fast.{bayesrm_fast._HOMES[name]}.{name}"
    pages = [page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html")]
    assert any(f'id="{home}"' in page for page in pages)


def imported_by_pages():
    """Names of this package that the Python of a page imports, by their full names."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    blocks = [
        block for page in pages for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{one.name}" for node in nodes for one in node.names}
    return sorted(name for name in names if re.match(r"bayesrm_fast\.\w+\.", name))


@pytest.mark.parametrize("name", imported_by_pages())
def test_every_name_that_a_page_imports_is_in_the_reference(site, name):
    pages = [page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html")]
    assert any(f'id="{name}"' in page for page in pages)


def test_links_lead_where_they_lead_in_the_repository(site):
    rules = (site / "rules.html").read_text(encoding="utf-8")
    assert 'href="benchmarks/results/overoptimisation-humaneval-noise0.25.json"' in rules
    security = (site / "SECURITY.html").read_text(encoding="utf-8")
    assert 'href="server.html#security"' in security
    assert (site / "benchmarks/results/overoptimisation-humaneval-noise0.25.json").is_file()


def test_a_browser_asks_nobody_else_and_finds_what_is_searched(site):
    handler = functools.partial(SimpleHTTPRequestHandler, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        for page in ("index.html", "maths.html", "reference/models.html"):
            driver.get(here + page)
            loaded = driver.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
            assert loaded
            assert all(address.startswith(here) for address in loaded)
        driver.get(here + "index.html?q=tune_penalty")
        driver.implicitly_wait(60)  # the index is read when the page is there
        assert driver.find_element("css selector", ".md-search-result__item a").get_attribute("href").startswith(here)
        server.shutdown()
