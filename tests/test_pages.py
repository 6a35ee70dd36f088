"""Every page of the built book works as a reader opens it: from the disk, in a browser, without a network."""

import os
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

HTML = Path(__file__).resolve().parents[1] / "_build" / "html"
# the index at the top only leads on to the first page
PATHS = sorted(path for path in HTML.rglob("*.html") if path != HTML / "index.html" and "_static" not in path.parts)
# listings of source are all made alike: one stands for them
LISTINGS = [path for path in PATHS if "_modules" in path.parts]
OPENED = [path for path in PATHS if path not in LISTINGS] + LISTINGS[-1:]
WHOLE = "01-noise"  # the page that axe sees whole; from the others what is alike everywhere is taken out
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
RULES = [
    *("color-contrast", "heading-order", "page-has-heading-one", "document-title", "html-has-lang"),
    *("image-alt", "role-img-alt", "svg-img-alt", "label", "select-name", "button-name", "link-name"),
    *("empty-table-header", "scrollable-region-focusable", "list", "listitem", "duplicate-id-aria"),
    *("aria-allowed-attr", "aria-allowed-role", "aria-required-children", "aria-valid-attr", "aria-valid-attr-value"),
]

# Luminance of the page's ground, from 0 to 1.
GROUND = """() => {
    const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number);
    return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
}"""

# What a page is made of. Decoding first: an image further down is fetched only when it is scrolled to.
CONTENT = """async () => {
    const all = selector => [...document.querySelectorAll(selector)];
    const images = await Promise.all(all('main img').map(async image => {
        image.loading = 'eager';
        await image.decode().catch(() => null);
        return {source: image.src.slice(-80), alt: image.alt, width: image.naturalWidth};
    }));
    return {
        images,
        headings: all('h1').length,
        formulas: all('main .math').length,
        rendered: all('main mjx-container').length,
        broken: all('mjx-merror').length,
        unnumbered: all('main figure').filter(f => !f.querySelector('figcaption .caption-number')).map(f => f.id),
        empty: all('.tad-explore').filter(f => !f.querySelector('.stage').children.length).map(f => f.id),
    };
}"""

# What is wider than its place, with all that is folded open. A figure may scroll; text may not.
CLIPPED = """() => {
    document.querySelectorAll('main details').forEach(box => { box.open = true; });
    document.querySelectorAll('main .toggle-hidden').forEach(box => box.classList.remove('toggle-hidden'));
    dispatchEvent(new Event('resize'));
    const wide = (e, room) => e.offsetParent !== null && e.scrollWidth > room + 1;
    const found = (kind, selector, room) => [...document.querySelectorAll(selector)].filter(e => wide(e, room(e)))
        .map(e => `${kind}, ${e.scrollWidth} of ${room(e)} pixels: ${e.innerText.slice(0, 60)}`);
    const own = e => e.clientWidth;
    return [
        ...found('code', 'main pre', own),
        ...found('table', 'main table', own),
        ...found('table', 'main table', e => e.closest('.bd-content, main').clientWidth),
        ...found('formula', 'main mjx-container[display=true]', e => e.closest('div.math')?.clientWidth ?? own(e)),
    ];
}"""

# The smallest type of each figure in pixels, as it is shown: 7 points at 150 dots an inch in pictures, measured in SVG.
SMALL_TYPE = """() => [
    ...[...document.querySelectorAll('main figure img')].filter(i => i.offsetParent && i.naturalWidth > 700)
        .map(i => [i.src.slice(-60), 7 / 72 * 150 * i.clientWidth / i.naturalWidth]),
    ...[...document.querySelectorAll('main figure svg text')].filter(e => e.getClientRects().length).map(e =>
        [e.textContent, parseFloat(getComputedStyle(e).fontSize) * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b)]),
].filter(([, size]) => size < 9)"""

# Figures on a phone that are wider than their place and than legible type needs.
TOO_WIDE = """() => [...document.querySelectorAll('main figure img')].filter(i => i.offsetParent
    && i.clientWidth > Math.max(i.closest('figure').clientWidth, 0.64 * i.naturalWidth) + 1)
    .map(i => i.src.slice(-60))"""

AXE = """async rules => {
    const found = await axe.run(document, {
        runOnly: {type: 'rule', values: rules}, resultTypes: ['violations'], elementRef: false,
    });
    return found.violations.flatMap(v => v.nodes.map(
        node => `${v.id}: ${node.html.slice(0, 120)} ${node.any[0]?.message ?? ''}`
    ));
}"""

# axe takes a time that grows with the page: coloured code, formulas and the API's entries look alike everywhere
THIN_OUT = """() => {
    const rest = (selector, kept) => [...document.querySelectorAll(selector)].slice(kept).forEach(e => e.remove());
    rest('main .highlight span', 0);
    rest('main mjx-container', 3);
    rest('main dl.py', 3);
    rest('main .indextable li', 6);
    rest('main table tr', 24);
    rest('.bd-sidebar-primary li', 12);
}"""

pytestmark = pytest.mark.skipif(not PATHS, reason="the book is not built: make book")


@pytest.fixture(scope="module")
def tab() -> Iterator:
    """One tab of a browser without a network, for all pages; ``faults`` gathers what goes wrong in it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra test has it")
    pytest.importorskip("axe_playwright_python", reason="axe-core is not installed: the extra test has it")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as p:
        # as root, which containers run as, Chromium starts only without its sandbox; the pages are our own
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_context(viewport=DESKTOP, offline=True, reduced_motion="reduce").new_page()
        page.add_init_script((resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
        page.set_default_timeout(20_000)
        page.faults = []
        page.on("console", lambda message: message.type == "error" and page.faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: page.faults.append(f"error: {error}"))
        page.on("requestfailed", lambda request: page.faults.append(f"request failed: {request.url}"))
        page.on("request", lambda r: r.url.startswith("http") and page.faults.append(f"asks for a network: {r.url}"))
        yield page
        browser.close()


def open_page(tab, path: Path, query: str = "") -> None:
    tab.faults.clear()
    tab.set_viewport_size(DESKTOP)
    tab.emulate_media(color_scheme="light")
    tab.goto(path.as_uri() + query)
    tab.evaluate("() => window.MathJax?.startup?.promise")
    tab.add_style_tag(content="* { transition: none !important; animation: none !important; }")


def follows_keys(tab, box) -> bool:
    """Whether a choice made by arrow keys changes what a figure to look around in says."""
    before = box.locator(".said").inner_text()
    for control in box.locator("select, input").all():
        control.focus()
        tab.keyboard.press("ArrowDown" if control.evaluate("c => c.tagName") == "SELECT" else "ArrowRight")
        if box.locator(".said").inner_text() != before:
            return True
    return False


@pytest.mark.parametrize("path", OPENED, ids=lambda path: path.relative_to(HTML).with_suffix("").as_posix())
def test_page_works_on_desktop_and_phone_in_light_and_dark(tab, path):
    open_page(tab, path)
    content = tab.evaluate(CONTENT)
    assert tab.title()
    assert content["headings"] >= 1
    assert content["rendered"] >= content["formulas"]
    assert content["broken"] == 0
    assert not content["unnumbered"], "figures without a number and a caption"
    assert not content["empty"], "figures to look around in that show nothing"
    for box in tab.locator(".tad-explore").all():
        assert follows_keys(tab, box), "no key changes what a figure says"
    for image in content["images"]:
        assert image["width"] > 1, f"an empty image: {image['source']}"
        assert image["alt"].strip(), f"an image without alternative text: {image['source']}"

    assert tab.evaluate(CLIPPED) == [], "clipped on a desktop"
    tab.set_viewport_size(PHONE)
    assert tab.evaluate(CLIPPED) == [], "clipped on a phone"
    assert tab.evaluate(SMALL_TYPE) == [], "type of figures under 9 pixels on a phone"
    assert tab.evaluate(TOO_WIDE) == [], "figures wider than a phone needs them"
    overflow = tab.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0, f"{overflow} pixels wider than a phone"
    tab.set_viewport_size(DESKTOP)
    assert not tab.faults

    if path.stem != WHOLE:
        tab.evaluate(THIN_OUT)
    assert tab.evaluate(GROUND) > 0.8
    assert tab.evaluate(AXE, RULES) == []
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")
    assert tab.evaluate(GROUND) < 0.3
    assert tab.evaluate(AXE, ["color-contrast"]) == []


def test_every_chapter_has_a_figure_to_look_around_in():
    with_one = {path.stem for path in OPENED if 'class="tad-explore"' in path.read_text(encoding="utf-8")}
    chapters = {"01-noise", "02-trust", "03-recalibration", "04-experts-and-distillation"}
    assert with_one >= chapters | {"distillation", "results"}


def test_the_contents_open_on_a_phone(tab):
    open_page(tab, HTML / "book" / "intro.html")
    tab.set_viewport_size(PHONE)
    contents = tab.locator("nav a", has_text="Recalibration").first
    assert not contents.is_visible()
    tab.locator(".primary-toggle").click()
    contents.wait_for(state="visible")


def test_search_finds_mahalanobis(tab):
    open_page(tab, HTML / "search.html", "?q=Mahalanobis")
    tab.wait_for_selector("#search-results li a")
    found = " ".join(tab.locator("#search-results li a").all_inner_texts())
    assert "Recalibration" in found
    # summaries are fetched from the pages, which a browser forbids on a disk; the list of pages does without
    of_fetching = ("fetch", "ERR_FAILED", "request failed")
    assert not [fault for fault in tab.faults if not any(word in fault for word in of_fetching)]


def test_the_site_is_small():
    size = sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file())
    assert size < 30e6, f"{size / 1e6:.1f} MB"


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
