"""The page: whole without the network, and drawing what the API answers."""

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, QUIET, Page, browsing
from conftest import Gallery, damage, publish_task
from serving_suite import listening, wait

import perdure
from serve.api import make_app
from serve.backend import FusedBackend
from serve.schemas import ServeArgs

WEB = Path(perdure.__file__).parent / "web"
FILES = sorted(path.name for path in WEB.iterdir() if path.is_file())
SCRIPTS = ("app.js", "api.js", "page.js", "results.js", "filters.js", "releases.js")


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_fetched_from_elsewhere(name: str) -> None:
    text = (WEB / name).read_text()
    assert [url for url in re.findall(r"https?://[^\s\"'`)]+", text) if url != "http://www.w3.org/2000/svg"] == []
    assert "//cdn" not in text and "@import" not in text


def test_every_element_that_the_script_names_is_on_the_page() -> None:
    page, script = (WEB / "index.html").read_text(), "".join((WEB / name).read_text() for name in SCRIPTS)
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
    command = [CHROMIUM, "--headless", "--no-sandbox", *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000"]
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


pytest_browser = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")]


def with_browser(test: object) -> object:
    for mark in pytest_browser:
        test = mark(test)
    return test


@pytest.fixture
def served(gallery: Gallery, tmp_path: Path) -> Iterator[tuple[FusedBackend, str]]:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    told = {"compatibility": {"matrix": [[0.9, None], [0.4, 0.8]], "AC": 0.5, "BC": -0.1, "keep": []}}
    (tmp_path / "runs" / "demo" / "report.json").write_text(json.dumps(told))
    args = ServeArgs(registry=str(gallery.folder), runs=str(tmp_path / "runs"), poll_s=0.05)
    backend = FusedBackend(args)
    backend.start()
    with listening(make_app(backend, args)) as url:
        yield backend, url
    backend.stop()


@pytest.fixture
def page(served: tuple[FusedBackend, str], tmp_path: Path) -> Iterator[Page]:
    with browsing(tmp_path) as tab:
        tab.size(1200, 900)
        tab.open(f"{served[1]}/")
        tab.until("document.querySelector('#status')?.dataset.state === 'good'")
        tab.until("document.querySelectorAll('.strip button').length > 0")
        yield tab
        assert tab.complaints == []
        assert [url for url in tab.requested if not url.startswith((f"{served[1]}/", "data:", "blob:", "about:"))] == []


def cards(page: Page, scope: str = "#grid") -> list[str]:
    return page.run(f"[...document.querySelectorAll({json.dumps(scope + ' .label')})].map((one) => one.title)")


@with_browser
def test_a_person_searches_by_keyboard_filters_and_turns_pages(page: Page) -> None:
    page.key("/")
    page.do("Input.insertText", text="a red circle")
    page.key("Enter", 13)
    page.until("document.querySelectorAll('#grid .card').length === 12")
    assert "12 results from demo@v1" in page.run("document.querySelector('#summary-detail').textContent")
    named = page.run("document.querySelector('#grid .similar').getAttribute('aria-label')")
    assert re.search(r"Result 1: .+, score .+, task 0, encoder demo@v1", named)
    page.key("ArrowDown", 40)
    assert page.run("document.activeElement === document.querySelectorAll('#grid .similar')[0]")
    page.key("ArrowRight", 39)
    assert page.run("document.activeElement === document.querySelectorAll('#grid .similar')[1]")
    page.click("#more")
    page.until("document.querySelectorAll('#grid .card').length === 15", "the second page")
    assert len(set(cards(page))) == 15 and page.run("document.querySelector('#more').hidden")
    # a range of the payload
    page.click("#filter-box summary")
    page.choose("#filter-field", "price")
    page.choose("#filter-kind", "between")
    page.run("document.querySelector('#filter-value').value = 'dear'")
    page.click("#filter-form button")
    page.until("document.querySelector('#filter-problem').textContent.includes('price is a number')")
    page.run("document.querySelector('#filter-value').value = '6'; document.querySelector('#filter-to').value = '9'")
    page.click("#filter-form button")
    page.until("document.querySelectorAll('#grid .card').length === 3", "items 4, 5 and 6")
    assert sorted(re.findall(r"set/\d\d", " ".join(cards(page)))) == ["set/04", "set/05", "set/06"]
    assert page.run("document.querySelector('#filters').textContent") == "price ≥ 6, ≤ 9 ×"
    page.click("#filters .filter")
    page.until("document.querySelectorAll('#grid .card').length === 12")


@with_browser
def test_a_picture_is_pasted_and_dropped(page: Page, gallery: Gallery) -> None:
    picture = base64.b64encode(gallery.pictures[0]).decode()
    file = f"new File([Uint8Array.from(atob('{picture}'), (c) => c.charCodeAt(0))], 'mine.png', {{type: 'image/png'}})"
    give = "(() => {{ const d = new DataTransfer(); d.items.add({file}); {event} }})()"
    page.run(give.format(file=file, event="dispatchEvent(new ClipboardEvent('paste', {clipboardData: d}))"))
    page.until("document.querySelectorAll('#grid .card').length === 12")
    assert page.run("document.querySelector('#summary-title').textContent") == "Pictures like mine.png"
    assert "set/00.png" in cards(page)[0], "the picture itself is the best hit"
    page.click("#drop-picture")
    page.until("document.querySelectorAll('#grid .card').length === 0")
    page.run(give.format(file=file, event="document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: d, bubbles: true}))"))
    page.until("document.querySelectorAll('#grid .card').length === 12")
    text = "new File(['words'], 'notes.txt', {type: 'text/plain'})"
    page.run(give.format(file=text, event="document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: d, bubbles: true}))"))
    page.until("document.querySelector('#notice-text').textContent.includes('notes.txt')")


@with_browser
def test_a_candidate_is_tried_compared_and_promoted(page: Page, served: tuple[FusedBackend, str]) -> None:
    backend = served[0]
    page.click("#open-releases")
    page.click('[aria-label^="Put demo@v2 beside"]')
    page.until("document.querySelector('#confirm').open")
    page.click("#confirm-yes")
    wait(lambda: (place := backend.candidate()) is not None and place.ready and place.shadow == 10)
    page.until("document.querySelector('#other').textContent.includes('demo@v2 (candidate)')")
    page.open(f"{served[1]}/?q=a%20blue%20square&with=demo@v2")
    page.until("document.querySelectorAll('.column').length === 2")
    columns = page.run("[...document.querySelectorAll('.column h3')].map((one) => one.textContent)")
    assert columns == ["demo@v1", "demo@v2"]
    assert len(cards(page, ".column:first-child")) == len(cards(page, ".column:last-child")) == 12
    assert page.run("document.querySelectorAll('.column .note').length") == 24
    page.until("[...document.querySelectorAll('.column img')].every((one) => one.naturalWidth > 0 || one.loading === 'lazy')")
    page.click("#open-releases")
    page.until("!document.querySelector('#candidate').hidden")
    page.run("document.querySelector('.release details').open = true")
    page.until("document.querySelectorAll('.matrix').length === 1", "the compatibility matrix")
    assert "90.0" in page.run("document.querySelector('.matrix').textContent")
    page.click('[aria-label="Promote demo@v2"]')
    page.until("document.querySelector('#confirm').open")
    page.click("#confirm-yes")
    page.until("document.querySelector('#status-text').textContent === 'Serving demo@v2'")
    page.click("#open-releases")
    page.click("#rollback")
    page.until("document.querySelector('#confirm').open")
    page.click("#confirm-yes")
    page.until("document.querySelector('#status-text').textContent === 'Serving demo@v1'")


@with_browser
def test_a_bad_release_and_its_reason_are_seen(page: Page, served: tuple[FusedBackend, str], gallery: Gallery, tmp_path: Path) -> None:
    publish_task(gallery, 3, tmp_path)
    damage(gallery, "segment", 3, "partition-0001.faiss")
    gallery.registry().promote("demo@v3", by="test")
    wait(lambda: "damaged" in (served[0].state().problem or ""))
    page.click("#open-releases")
    page.until("document.querySelector('#release-problem').textContent.includes('partition-0001.faiss')")
    page.until("document.querySelector('#status-text').textContent === 'demo@v1 · demo@v3 is not loaded'")
    page.key("Escape", 27)
    assert page.run("document.querySelector('#releases').hidden")
    page.open(f"{served[1]}/?q=a%20circle")
    page.until("document.querySelectorAll('#grid .card').length === 12", "the release before answers on")


@with_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_small_dark_screen_shows_everything_without_scrolling_aside(page: Page, served: tuple[FusedBackend, str], dark: bool) -> None:
    page.size(360, 740, dark=dark)
    page.open(f"{served[1]}/?q=a%20circle")
    page.until("document.querySelectorAll('#grid .card').length === 12")
    assert page.run("document.documentElement.scrollWidth") <= 360
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(number) for number in re.findall(r"[0-9]+", ground)[:3]) < 150) is dark
    page.click("#filter-box summary")
    left, right = page.run(
        "(() => { const r = document.querySelector('#filter-form').getBoundingClientRect(); return [r.left, r.right]; })()"
    )
    assert left >= 0 and right <= 360
    page.key("Escape", 27)
    page.click("#open-releases")
    page.until("document.querySelectorAll('.release').length === 2")
    assert page.run("document.documentElement.scrollWidth") <= 360
    unnamed = (
        "[...document.querySelectorAll('button, input, select, a, progress')].filter((e) => e.checkVisibility() && "
        "!(e.getAttribute('aria-label') || e.textContent.trim() || e.title || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert page.run(unnamed) == []
