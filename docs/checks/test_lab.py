"""The live pages in Chromium: numbers, controls by keyboard and mouse, and what stands in when they are off."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import ROOT, SITE
from .test_pages import VIEWS, view

sys.path.insert(0, str(ROOT / "docs"))
from lab import alignment, explorer, runtime
from lab.controls import defaults

STARTED = 60_000  # milliseconds: how long a page may take is measured by benchmarks/lab_times.py, on a quiet machine
CELLS = "book/averaging.html"

# Moves controls and waits for what Python answers. Sliders round to their steps, which is a control's own business.
MOVE = """([name, changes]) => new Promise((resolve) => {
  const root = document.querySelector(`[data-lab="${name}"]`);
  root.addEventListener("lab:shown", ({ detail }) => resolve(detail), { once: true });
  let last;
  for (const [one, value] of Object.entries(changes)) {
    last = root.querySelector(`[name="${one}"]`);
    last.value = value;
  }
  last.dispatchEvent(new Event("input", { bubbles: true }));
})"""


def opened(browser: Any, site: str, address: str, look: str = "desktop") -> tuple[Any, list[str]]:
    tab, faults = view(browser, site, *VIEWS[look])
    tab.goto(f"{site}/{address}")
    return tab, faults


@pytest.fixture(scope="module")
def live(browser: Any, site: str) -> Iterator[dict[str, tuple[Any, list[str]]]]:
    """Both live pages, once Python has answered."""
    if not runtime.is_complete(SITE / "_static" / "pyodide"):
        pytest.skip("the site has no Python for the browser: make lab-runtime docs")
    tabs = {name: view(browser, site, *VIEWS["desktop"]) for name in ("explorer", "alignment")}
    asked: set[str] = set()
    for name, (tab, _) in tabs.items():
        tab.on("request", lambda request: asked.add(request.url))
        tab.goto(f"{site}/lab/{name}.html")
    for tab, _ in tabs.values():
        tab.wait_for_selector(".lab[data-live]", timeout=STARTED)
    # What the worker asks for is seen as well: else nobody would notice a request of it that leaves the site.
    fetched = {f"{site}/_static/pyodide/{name}" for name in runtime.ORIGINALS}
    assert fetched | {f"{site}/_static/lab/sources.zip"} <= asked
    yield tabs
    for tab, faults in tabs.values():
        tab.context.close()
        assert faults == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n": 256, "d": 256},
        {"n": 1, "d": 1},
        {"sharpness": 0},
        {"sharpness": 1, "n": 200},
        {"sharpness": 0.03, "n": 255, "d": 3, "sigma": 0.05},
        {"mean": 0, "shift": 0},
        {"mean": 2, "shift": 2, "sigma": 5, "d": 255, "n": 7},
        {"sigma": 1.35, "n": 111, "d": 93, "sharpness": 0.37, "mean": 0.65, "shift": 1.15},
    ],
)
def test_the_explorer_finds_the_numbers_of_this_machine(live: dict[str, Any], changes: dict[str, float]) -> None:
    """To the last bit, those that are measured included: JSON keeps a float64 as it is."""
    tab, _ = live["explorer"]
    state = defaults(explorer.SLIDERS) | changes
    wanted = json.loads(json.dumps(explorer.respond(state)["values"]))
    assert tab.evaluate(MOVE, ["explorer", state])["values"] == wanted


def test_another_setting_has_other_numbers(live: dict[str, Any]) -> None:
    """The comparison above can fail."""
    tab, _ = live["explorer"]
    state = defaults(explorer.SLIDERS)
    wanted = json.loads(json.dumps(explorer.respond(state | {"sigma": 1.05})["values"]))
    found = tab.evaluate(MOVE, ["explorer", state])["values"]
    assert found["theory"]["snr"] != wanted["theory"]["snr"] and found["measured"]["snr"] != wanted["measured"]["snr"]


@pytest.mark.parametrize("name", [one.name for one in explorer.SLIDERS])
def test_a_slider_moves_by_keyboard(live: dict[str, Any], name: str) -> None:
    tab, _ = live["explorer"]
    tab.evaluate(MOVE, ["explorer", defaults(explorer.SLIDERS)])
    before = tab.inner_html('[data-part="figure"]')
    slider = tab.locator(f'[name="{name}"]')
    value = slider.input_value()
    slider.focus()
    slider.press("ArrowRight")
    tab.wait_for_function("old => document.querySelector('[data-part=\"figure\"]').innerHTML !== old", arg=before)
    step = next(one.step for one in explorer.SLIDERS if one.name == name)
    assert float(slider.input_value()) == pytest.approx(float(value) + step)
    assert tab.locator(f'output[data-of="{name}"]').inner_text() == slider.input_value()


def test_a_slider_moves_by_mouse(live: dict[str, Any]) -> None:
    tab, _ = live["explorer"]
    tab.evaluate(MOVE, ["explorer", defaults(explorer.SLIDERS)])
    slider = tab.locator('[name="sharpness"]')
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + 0.1 * box["width"], middle)
    tab.mouse.down()
    for share in (0.3, 0.5, 0.7, 0.9, 1.0):
        tab.mouse.move(box["x"] + share * box["width"] - (share == 1.0), middle)
    tab.mouse.up()
    assert float(slider.input_value()) == 1.0
    tab.wait_for_function("document.querySelector('.lab-summary').textContent.includes('n_eff = 1 of 64')")


def test_many_moves_end_with_the_last(live: dict[str, Any]) -> None:
    tab, _ = live["explorer"]
    tab.evaluate(
        """() => {
          const slider = document.querySelector('[name="n"]');
          for (let n = 1; n <= 256; n += 1) {
            slider.value = n;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
          }
        }"""
    )
    tab.wait_for_function("document.querySelector('.lab-summary').textContent.includes('of 256 tokens')")


def flatten(tab: Any) -> None:
    tab.evaluate(MOVE, ["alignment", {"x": "ALIGNED", "y": "ALIGNED", "shift": 2, "content": 4}])
    tab.click("[data-flatten]")
    tab.wait_for_function("document.querySelector('.lab-summary').textContent.includes('bias is flat')")


def summary(tab: Any) -> str:
    return tab.inner_text('.lab [data-part="summary"]')


def test_a_knot_moves_by_keyboard_and_says_its_offset(live: dict[str, Any]) -> None:
    tab, _ = live["alignment"]
    flatten(tab)
    knot = tab.get_by_label("bias at offset 2", exact=True)
    knot.focus()
    for _ in range(5):
        knot.press("ArrowUp")
    tab.wait_for_function("document.querySelector('.lab-summary').textContent.includes('highest at offset +2')")
    assert float(knot.input_value()) > 0


def test_a_knot_is_dragged_by_mouse_and_the_curve_follows(live: dict[str, Any]) -> None:
    tab, _ = live["alignment"]
    flatten(tab)
    for offset in (2, -5):
        knot = tab.get_by_label(f"bias at offset {offset}", exact=True)
        knot.scroll_into_view_if_needed()
        box = knot.bounding_box()
        x = box["x"] + box["width"] / 2
        tab.mouse.move(x, box["y"] + box["height"] / 2)
        tab.mouse.down()
        tab.mouse.move(x, box["y"] + box["height"] / 4)
        tab.mouse.move(x, box["y"] + 1)
        tab.mouse.up()
        assert float(knot.input_value()) == alignment.HIGHEST_KNOT
    tab.wait_for_function("document.querySelector('.lab-summary').textContent.startsWith('7 of 7')")
    # The thumb lies on the curve: both are drawn from the same share of the same height.
    curve = tab.locator(".lab-curve-svg .lab-exact").get_attribute("d")
    assert f" {9.0}" in curve


def test_it_learns_by_keyboard(live: dict[str, Any]) -> None:
    tab, _ = live["alignment"]
    flatten(tab)
    assert summary(tab).startswith("0 of 7")
    button = tab.locator("[data-learn]")
    button.focus()
    button.press("Enter")
    tab.wait_for_function("document.querySelector('.lab-summary').textContent.startsWith('7 of 7')")
    tab.wait_for_function("document.querySelector('[data-learn]').textContent === 'let it learn'", timeout=STARTED)
    knots = tab.evaluate("[...document.querySelectorAll('[data-offset]')].map((one) => Number(one.value))")
    start = defaults(alignment.SLIDERS) | alignment.START
    # Another machine's exponential may round otherwise, 40 times over.
    assert knots == pytest.approx(alignment.learn({**start, "steps": 40})["knots"], abs=1e-6)


def test_words_are_edited_and_refused_in_words(live: dict[str, Any]) -> None:
    tab, _ = live["alignment"]
    flatten(tab)
    tab.get_by_label("word x").fill("cat")
    tab.wait_for_function("document.querySelector('.lab-summary').textContent.includes('of 3 queries')")
    tab.get_by_label("word x").fill("c@t")
    tab.wait_for_function("document.querySelector('.lab-status').textContent.includes('2 to 8 letters')")
    tab.get_by_label("word x").fill("aligned")
    tab.wait_for_function("document.querySelector('.lab-status').textContent.startsWith('Live')")


def test_a_cell_is_chosen_in_all_maps_by_keyboard_and_mouse(live: dict[str, Any]) -> None:
    tab, _ = live["alignment"]
    flatten(tab)
    tab.locator('.lab-map-content [data-i="1"][data-j="1"]').hover()
    tab.wait_for_function("document.querySelectorAll('.lab-chosen').length === 4")
    assert tab.inner_text("[data-cell]").startswith("Query 2 asks for L; position 2 has the key L and the value D.")
    tab.locator('[data-part="maps"]').focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    assert tab.inner_text("[data-cell]").startswith("Query 3 asks for I; position 3 has the key I and the value A.")
    assert tab.locator(".lab-chosen").count() == 4


@pytest.fixture
def book(live: dict[str, Any], browser: Any, site: str) -> Iterator[Any]:
    tab, faults = opened(browser, site, CELLS)
    yield tab
    tab.context.close()
    assert faults == []


def test_a_cell_of_the_book_is_edited_and_run(book: Any) -> None:
    button = book.get_by_role("button", name="edit and run cell 2", exact=True)
    button.focus()
    button.press("Enter")
    field = book.get_by_label("code of cell 2", exact=True)
    field.fill(field.input_value() + "\nprint('effective', n_eff.shape)")
    field.press("Control+Enter")
    output = book.locator(".lab-output")
    book.wait_for_function(
        "document.querySelector('.lab-output').textContent.includes('effective (8,)')", timeout=STARTED
    )
    assert "lab-failed" not in output.get_attribute("class")
    field.fill("undefined_name")
    field.press("Control+Enter")
    book.wait_for_function("document.querySelector('.lab-output').textContent.includes('NameError')")
    field.fill("import torch")
    field.press("Control+Enter")
    book.wait_for_function("document.querySelector('.lab-output').textContent.includes('needs PyTorch')")


def test_every_cell_of_the_book_runs_or_says_what_it_needs(book: Any) -> None:
    """The last that each page shows, after all above it; a cell that fails above fails this."""
    failed = {}
    for path in sorted((SITE / "book").glob("*.html")):
        found = re.search(r'id="lab-cells"[^>]*>(.*?)</script>', path.read_text(encoding="utf-8"))
        if found is None:
            continue
        cells = json.loads(found[1])
        last = max(k for k, cell in enumerate(cells) if cell["number"])
        run = "async (cells) => (await import('/_static/lab/python.js')).call('cells', 'run', { cells })"
        error = book.evaluate(run, cells[: last + 1])["error"]
        if error and not re.fullmatch(r"This cell needs .*, which the browser does not have\.", error):
            failed[path.name] = error
    assert failed == {}


def test_a_cell_that_never_ends_is_stopped(book: Any) -> None:
    book.get_by_role("button", name="edit and run cell 1", exact=True).click()
    field = book.get_by_label("code of cell 1", exact=True)
    field.fill("while True: pass")
    field.press("Control+Enter")
    book.get_by_role("button", name="stop", exact=True).click()
    book.wait_for_function("document.querySelector('.lab-output').textContent.includes('stopped')")
    field.fill("print(6 * 7)")
    field.press("Control+Enter")
    book.wait_for_function("document.querySelector('.lab-output').textContent === '42'", timeout=STARTED)


@pytest.mark.parametrize("name", ["explorer", "alignment"])
def test_without_scripts_the_figure_is_there_and_says_why(browser: Any, site: str, name: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{site}/lab/{name}.html")
    assert "The controls are off: they need JavaScript." in tab.inner_text(".lab-status")
    assert tab.locator(".lab-svg").count() >= 3 and tab.locator(".lab-svg").first.is_visible()
    assert tab.locator('.lab [type="range"]').first.is_disabled()
    context.close()


@pytest.mark.parametrize("name", ["explorer", "alignment"])
def test_without_the_runtime_the_figure_is_there_and_says_why(browser: Any, site: str, name: str) -> None:
    tab, faults = view(browser, site, *VIEWS["desktop"])
    text = (
        (SITE / "lab" / f"{name}.html").read_text(encoding="utf-8").replace('data-runtime="yes"', 'data-runtime="no"')
    )
    tab.route(f"**/lab/{name}.html", lambda route: route.fulfill(body=text, content_type="text/html"))
    tab.goto(f"{site}/lab/{name}.html")
    tab.wait_for_function(
        "document.querySelector('.lab-status').textContent.includes('built without the Python runtime')"
    )
    assert tab.locator(".lab-svg").first.is_visible() and tab.locator('.lab [type="range"]').first.is_disabled()
    assert faults == []
    tab.context.close()
