"""What a reader's browser says about every page of the built site."""

from __future__ import annotations

import html.parser
import re
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

from .conftest import SHOTS, SITE, pages

PAGES = pages()
# Pages that are looked at by eye, at the width of a desktop and of a phone, and in the dark.
SHOWN = ["index.html", *(page for page in PAGES if page.startswith(("book/", "lab/")))]
VIEWS = {"desktop": (1280, 900, "light"), "phone": (390, 844, "light"), "dark": (1280, 900, "dark")}


class Page(html.parser.HTMLParser):
    """Addresses that a page links to, the ids that it has, and its text outside of code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self._code: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        if of.get("id"):
            self.ids.append(str(of["id"]))
        if tag == "a" and of.get("href"):
            self.links.append(str(of["href"]))
        inside = bool(self._code) and tag == self._code[-1]
        if inside or tag in ("pre", "code", "script", "style") or self._is_math(of):
            self._code.append(tag)

    @staticmethod
    def _is_math(of: dict[str, str | None]) -> bool:
        """Formulas that KaTeX takes in the browser stand in the HTML as they were written."""
        return "math" in (of.get("class") or "").split()

    def handle_endtag(self, tag: str) -> None:
        if self._code and self._code[-1] == tag:
            self._code.pop()

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.text.append(data)


READ = {page: Page((SITE / page).read_text(encoding="utf-8")) for page in PAGES}


def test_there_are_pages(site: str) -> None:
    assert {"index.html", "api.html", "spec.html", "book/averaging.html"} <= set(PAGES)


def test_links_inside_the_site_lead_somewhere(site: str) -> None:
    broken = []
    for page, read in READ.items():
        for link in read.links:
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            address, fragment = urldefrag(urljoin(f"/{page}", link))
            target = unquote(address.lstrip("/"))
            if not (SITE / target).is_file():
                broken.append(f"{page}: {link}")
            elif fragment and target in READ and unquote(fragment) not in READ[target].ids:
                broken.append(f"{page}: {link} (no such place in {target})")
    assert broken == []


def test_ids_are_unique_in_a_page(site: str) -> None:
    twice = {page: sorted({one for one in read.ids if read.ids.count(one) > 1}) for page, read in READ.items()}
    assert {page: ids for page, ids in twice.items() if ids} == {}


def test_no_dollar_of_a_formula_is_left_in_the_text(site: str) -> None:
    left = {page: re.findall(r".{0,30}\$.{0,30}", " ".join(read.text)) for page, read in READ.items()}
    assert {page: found for page, found in left.items() if found} == {}


def test_a_dollar_in_the_text_is_found() -> None:
    read = Page('<p>costs $x^2$ <code>$ make</code> <span class="math">\\(a\\)<span>$</span></span></p>')
    assert "".join(read.text).count("$") == 2


class View(NamedTuple):
    """A tab of one width and theme, and what went wrong in it since it was last cleared."""

    tab: Any
    faults: list[str]


@pytest.fixture(scope="module")
def views(browser: Any, site: str) -> dict[str, View]:
    return {name: view(browser, site, *look) for name, look in VIEWS.items()}


def view(browser: Any, site: str, width: int, height: int, scheme: str) -> View:
    """Every error and every request that leaves the site is noted; the request is not made."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab, faults = context.new_page(), []
    tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("response", lambda answer: faults.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)

    def outside(route: Any) -> None:
        faults.append(f"outside: {route.request.url}")
        route.abort()

    tab.route(lambda url: not url.startswith((site, "data:", "blob:")), outside)
    return View(tab, faults)


@pytest.mark.parametrize("address", PAGES)
def test_page_opens_without_an_error_and_asks_nobody_else(views: dict[str, View], site: str, address: str) -> None:
    tab, faults = views["desktop"]
    faults.clear()
    tab.goto(f"{site}/{address}")
    assert faults == []
    assert tab.locator(".katex-error").all_text_contents() == []


@pytest.mark.parametrize("name", list(VIEWS))
@pytest.mark.parametrize("address", SHOWN)
def test_page_fits_and_axe_finds_no_serious_fault(views: dict[str, View], site: str, address: str, name: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab, _ = views[name]
    tab.goto(f"{site}/{address}")
    folder = SHOTS / name
    folder.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=folder / (address.replace("/", "-").removesuffix(".html") + ".png"), full_page=True)
    wider = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0, f"{address} is {wider} pixels wider than the screen"
    if name == "desktop":
        return  # what axe sees of it, it sees on the phone, and the colours again in the dark
    faults = [fault for fault in axe.run(tab).response["violations"] if fault["impact"] in ("serious", "critical")]
    assert [f"{fault['id']}: {node['target']} {node['html']}" for fault in faults for node in fault["nodes"]] == []


def test_an_error_and_a_request_that_leaves_are_noticed(browser: Any, site: str) -> None:
    tab, faults = view(browser, site, *VIEWS["desktop"])
    tab.goto(f"{site}/index.html")
    assert faults == []
    tab.evaluate("fetch('http://elsewhere.test/x').catch(() => console.error('mine'))")
    tab.wait_for_timeout(300)
    tab.context.close()
    assert "outside: http://elsewhere.test/x" in faults and "mine" in faults
