"""The page: whole without the network, and drawing what the API answers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Gallery
from serving_suite import listening

import perdure
from serve.api import make_app
from serve.backend import FusedBackend
from serve.schemas import ServeArgs

WEB = Path(perdure.__file__).parent / "web"
FILES = ("index.html", "docs.html", "app.js", "docs.js", "style.css", "icon.svg")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_fetched_from_elsewhere(name: str) -> None:
    text = (WEB / name).read_text()
    assert [url for url in re.findall(r"https?://[^\s\"'`)]+", text) if url != "http://www.w3.org/2000/svg"] == []
    assert "//cdn" not in text and "@import" not in text


def test_every_element_that_the_script_names_is_on_the_page() -> None:
    page, script = (WEB / "index.html").read_text(), (WEB / "app.js").read_text()
    named = set(re.findall(r"\$\(\"([a-z-]+)\"\)", script))
    present = set(re.findall(r"id=\"([a-z-]+)\"", page))
    assert len(named) > 20 and named <= present


def test_inline_code_would_be_refused_by_our_own_policy() -> None:
    for name in ("index.html", "docs.html"):
        page = (WEB / name).read_text()
        assert not re.search(r"<script(?![^>]*src=)", page) and "<style" not in page and not re.search(r"\son[a-z]+=", page)
        assert " style=" not in page


def look(address: str, tmp_path: Path) -> str:
    """The page's elements after its script has run."""
    assert CHROMIUM
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-gpu"]
    command = [CHROMIUM, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000"]
    return subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_shows_results_releases_and_errors(gallery: Gallery, tmp_path: Path) -> None:
    args = ServeArgs(registry=str(gallery.folder))
    backend = FusedBackend(args)
    backend.start()
    with listening(make_app(backend, args)) as url:
        found = look(f"{url}/?q=a%20red%20circle", tmp_path)
        failed = look(f"{url}/?id=no-such-item", tmp_path)
        docs = look(f"{url}/docs", tmp_path)
    backend.stop()
    assert found.count('class="card"') == 12 + 1  # and the template
    assert "results from demo@v1" in found and "Serving demo@v1" in found
    assert found.count('class="release') == 2 and "Promote demo@v2" in found
    assert "Not found" in failed and "no item 'no-such-item'" in failed
    assert "/v1/search" in docs and "partial_ok" in docs
