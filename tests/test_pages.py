"""Every page of the built book works as a reader opens it: from the disk, in a browser, without a network."""

import os
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

HTML = Path(__file__).resolve().parents[1] / "_build" / "html"
# the index at the top only leads on to the first page
PATHS = sorted(path for path in HTML.rglob("*.html") if path != HTML / "index.html" and "_static" not in path.parts)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}

# Luminance of the page's ground and of its text, from 0 to 1.
COLOURS = """() => {
    const luminance = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
        return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
    };
    const heading = document.querySelector('h1');
    return {
        ground: luminance(getComputedStyle(document.body).backgroundColor),
        ink: luminance(getComputedStyle(heading).color),
    };
}"""

# Decoding first: an image further down is fetched only when it is scrolled to.
IMAGES = """() => Promise.all([...document.querySelectorAll('main img')].map(async image => {
    image.loading = 'eager';
    await image.decode().catch(() => null);
    return {source: image.src.slice(-80), alt: image.alt, width: image.naturalWidth};
}))"""

pytestmark = pytest.mark.skipif(not PATHS, reason="the book is not built: make book")
every_page = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.relative_to(HTML).with_suffix("").as_posix())


@pytest.fixture(scope="module")
def context() -> Iterator:
    """A browser without a network."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra test has it")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as p:
        # as root, which containers run as, Chromium starts only without its sandbox; the pages are our own
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        context = browser.new_context(viewport=DESKTOP, offline=True)
        context.set_default_timeout(20_000)
        yield context
        browser.close()


@pytest.fixture
def page(context) -> Iterator:
    page = context.new_page()
    page.faults = []
    page.on("console", lambda message: message.type == "error" and page.faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: page.faults.append(f"error: {error}"))
    page.on("requestfailed", lambda request: page.faults.append(f"request failed: {request.url}"))
    page.on("request", lambda r: r.url.startswith("http") and page.faults.append(f"asks for a network: {r.url}"))
    yield page
    page.close()


def open_page(page, path: Path, query: str = "") -> None:
    page.goto(path.as_uri() + query)
    page.evaluate("() => window.MathJax?.startup?.promise")


@every_page
def test_page_renders_on_desktop_and_phone_in_light_and_dark(page, path):
    page.emulate_media(color_scheme="light")
    open_page(page, path)
    assert page.title()
    assert page.locator("h1").count() >= 1
    light = page.evaluate(COLOURS)
    assert light["ground"] > 0.8 > 0.5 > light["ink"], light
    formulas = page.evaluate("() => document.querySelectorAll('main .math').length")
    rendered = page.evaluate("() => document.querySelectorAll('main mjx-container').length")
    assert rendered >= formulas
    assert page.locator("mjx-merror").count() == 0
    for image in page.evaluate(IMAGES):
        assert image["width"] > 1, f"an empty image: {image['source']}"
        assert image["alt"].strip(), f"an image without alternative text: {image['source']}"
    page.set_viewport_size(PHONE)
    overflow = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0, f"{overflow} pixels wider than a phone"
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")
    page.wait_for_timeout(100)  # colours fade
    dark = page.evaluate(COLOURS)
    assert dark["ground"] < 0.3 < 0.6 < dark["ink"], dark
    assert not page.faults


def test_search_finds_mahalanobis(page):
    open_page(page, HTML / "search.html", "?q=Mahalanobis")
    page.wait_for_selector("#search-results li a")
    found = " ".join(page.locator("#search-results li a").all_inner_texts())
    assert "Recalibration" in found
    # summaries are fetched from the pages, which a browser forbids on a disk; the list of pages does without
    of_fetching = ("fetch", "ERR_FAILED", "request failed")
    assert not [fault for fault in page.faults if not any(word in fault for word in of_fetching)]


class Anchors(HTMLParser):
    """Targets and links of one page."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        of = dict(attributes)
        self.ids |= {of[name] for name in ("id", "name") if of.get(name)}
        self.links |= {of[name] for name in ("href", "src") if of.get(name)}


def test_every_internal_link_leads_to_a_page_and_a_place_on_it():
    pages = {path: Anchors(path) for path in PATHS}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            place = unquote(url.fragment)
            if not target.is_file() or (place and target in pages and place not in pages[target].ids):
                dead.append(f"{path.relative_to(HTML)}: {link}")
    assert not dead
