"""Every page of the report in a browser: offline, without errors, complete, and as wide as the window."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from sample_report import make_project, write_notebook

from companion import paths, report
from companion.report import contents, index, landing, library, page

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()), reason="needs Debian's packages chromium and chromium-driver"
)
AXE = Path(os.environ.get("AXE", paths.DATA / "downloads" / "axe.min.js"))
RULES = """
const done = arguments[0];
axe.run({resultTypes: ["violations"]}).then(found => done(found.violations
  .filter(each => ["serious", "critical"].includes(each.impact))
  .map(each => [each.id, each.nodes.length, each.nodes[0].html.slice(0, 200)])));
"""
LOOK = """
document.querySelectorAll('details').forEach(each => each.open = true);
return {images: [...document.images].map(each => [each.alt, each.naturalWidth]),
        links: [...document.links].map(each => each.href)};
"""


CONTROLS = """
const first = document.querySelector('main > figure, .output figure');
return !first ? [] : [...document.querySelectorAll('main :is(input, select, button, summary)')]
  .filter(each => each.checkVisibility() && each.compareDocumentPosition(first) & Node.DOCUMENT_POSITION_FOLLOWING)
  .map(each => each.outerHTML.slice(0, 80));
"""
UNSAID = """
return [...document.querySelectorAll('main figure:has(img)')].filter(each => {
  const caption = each.querySelector('figcaption');
  return !caption || !caption.checkVisibility() || caption.innerText.trim().length < 15;
}).map(each => each.outerHTML.slice(0, 80));
"""
ROWS = """
return [...document.querySelectorAll('.claims tbody tr')]
  .filter(each => each.checkVisibility()).map(each => each.innerText);
"""


@dataclass
class Visit:
    """What the browser saw on one page."""

    page: Path
    images: list[tuple[str, int]]
    links: list[str]
    requests: list[str]
    errors: list[str]
    widths: dict[int, int]  # of the window, of the content


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report's pages where `dvc repro` has made them, or else those of a sample."""
    if (paths.REPORTS / "quick/index.html").exists():
        yield sorted(paths.REPORTS.rglob("*.html"))
        return
    with pytest.MonkeyPatch.context() as patch:
        root = make_project(tmp_path_factory.mktemp("sample"), patch)
        for name in ("11-first", "12-second"):
            make_section(root, name, patch)
        run = contents.load_run()
        for place in contents.groundwork(run):
            page.render(
                nbformat.read(place.notebook, as_version=4), paths.REPORTS / "quick" / place.file, run=run, page=place
            )
        library.render(run)
        index.scale_index(run)
        landing.render()
        yield sorted(paths.REPORTS.rglob("*.html"))


def make_section(root, name, patch):
    """A page with a table, a figure, equations and code, as its notebook would make it."""
    target = root / "reports/quick" / name / "index.html"
    patch.setenv(paths.PAGE, str(target.parent))
    names = [{"dataset": "digits", "example": e, "network": n} for e in ("fgsm", "pgd") for n in ("vgg16", "wrn28-10")]
    rows = pd.DataFrame(names).assign(value=50.0, low=45.0, high=55.0, n=100)
    options = {"index": ["dataset"], "columns": ["example", "network"], "reference": {"dataset": "cifar10"}}
    table = report.table(rows, artefact="kim-table-2", caption="Agreement", **options)
    report.style()
    fig, _ = plt.subplots()
    figure = report.figure(fig, artefact="kim-figure-5", alt="Empty axes", data=rows)
    cells = ["# A claim\n\n[Table](#kim-table-2)\n\n$$" + "x + " * 60 + "\\frac{1}{2}$$", "table", "figure"]
    companion = {"paper": "Kim et al. 2021", "section": "3", "artefacts": {"kim-table-2": "A", "kim-figure-5": "B"}}
    path = write_notebook(root, name, cells, companion=companion)
    made = nbformat.read(path, as_version=4)
    for cell, shown in zip(made.cells[1:], (table, figure), strict=True):
        cell["outputs"] = [nbformat.v4.new_output("execute_result", {"text/html": shown.html})]
    place = next(place for place in contents.sections() if place.notebook == path)
    page.render(made, target, run=contents.load_run(), page=place)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = f"--user-data-dir={tmp_path_factory.mktemp('browser')}"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", profile):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def visits(browser, pages):
    return [visit(browser, path) for path in pages]


def resize(browser, width):
    window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)


def visit(browser, path):
    browser.get(path.as_uri())
    seen, widths = browser.execute_script(LOOK), {}
    for width in (1280, 400):
        resize(browser, width)
        widths[width] = browser.execute_script("return document.scrollingElement.scrollWidth")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    errors = [entry["message"] for entry in browser.get_log("browser")]
    return Visit(path, seen["images"], seen["links"], requests, errors, widths)


def test_no_page_asks_for_anything_outside_the_file_system(visits):
    asked = [(named(visit.page), url) for visit in visits for url in visit.requests]
    assert len(asked) >= len(visits) > 0
    assert not [each for each in asked if urlsplit(each[1]).scheme not in ("file", "data", "about", "blob", "chrome")]


def test_no_page_reports_an_error(visits):
    assert not [(named(visit.page), error) for visit in visits for error in visit.errors]


def test_every_image_is_drawn_and_described(visits):
    assert not [(named(visit.page), alt) for visit in visits for alt, width in visit.images if not alt or width == 0]
    assert any(visit.images for visit in visits)


def test_every_link_leads_to_a_file_and_every_anchor_to_an_element(visits):
    local = [
        (named(visit.page), urlsplit(link)) for visit in visits for link in visit.links if link.startswith("file:")
    ]
    assert local and not [each for each in local if not leads_somewhere(each[1])]


def named(path):
    """Pages of sections are all called index.html."""
    return f"{path.parent.name}/{path.name}"


def leads_somewhere(link):
    path = Path(unquote(link.path))
    found = re.escape(unquote(link.fragment))
    return path.is_file() and (not found or re.search(f'\\bid="{found}"', path.read_text("utf-8")) is not None)


def test_no_page_scrolls_sideways(visits):
    assert not [(named(each.page), *wide) for each in visits for wide in each.widths.items() if wide[1] > wide[0]]


def test_no_page_is_over_two_megabytes(pages):
    assert not [(named(path), size) for path in pages if (size := path.stat().st_size) > 2_000_000]


def today(pages):
    """The sections' pages and the first one, as this code makes them: what is published is kept as it was made."""
    return [
        path
        for path in pages
        if "published" not in path.parts and (path.parent.name[:1].isdigit() or path == first(pages))
    ]


def first(pages):
    return min(pages, key=lambda path: len(path.parts))


def test_before_its_first_figure_a_page_asks_for_three_decisions_at_most(browser, pages):
    found = {}
    for path in today(pages):
        browser.get(path.as_uri())
        found[named(path)] = browser.execute_script(CONTROLS)
    assert found and not {name: controls for name, controls in found.items() if len(controls) > 3}


def test_every_figure_has_a_caption_that_can_be_seen(browser, pages):
    found = []
    for path in today(pages):
        browser.get(path.as_uri())
        found += [(named(path), figure) for figure in browser.execute_script(UNSAID)]
    assert not found


def test_every_verdict_can_be_seen_at_both_widths(browser, pages):
    seen = 0
    for width in (1280, 400):
        resize(browser, width)
        for path in {
            *today(pages),
            *(path for path in pages if path.parent.name == "quick" and path.name == "index.html"),
        }:
            browser.get(path.as_uri())
            chips = browser.execute_script(
                "return [...document.querySelectorAll('.chip')].map(e => e.checkVisibility())"
            )
            assert all(chips), named(path)
            seen += len(chips)
    assert seen


def test_code_is_shown_by_one_switch(browser, pages):
    path = next(path for path in today(pages) if path.parent.name.startswith("11-"))
    browser.get(path.as_uri())
    shown = "return [...document.querySelectorAll('.cell > .code')].filter(each => each.checkVisibility()).length"
    before = browser.execute_script(shown)
    browser.find_element("id", "show-code").click()
    assert browser.execute_script(shown) > before


def test_claims_are_filtered_by_verdict_on_the_first_page(browser, pages):
    browser.get(first(pages).as_uri())
    every = browser.execute_script(ROWS)
    words = browser.execute_script(
        "return [...new Set([...document.querySelectorAll('.claims tr')].map(e => e.dataset.verdict))]"
    )
    for word in filter(None, words):
        browser.execute_script(
            "const s = document.querySelector('#filter [name=verdict]'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('change', {bubbles: true}));",
            word,
        )
        rows = browser.execute_script(ROWS)
        assert rows and len(rows) <= len(every) and all(word in row for row in rows)


@pytest.mark.parametrize("width", [1280, 400])
def test_in_the_dark_nothing_on_the_first_page_is_a_white_slab(browser, pages, width):
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    resize(browser, width)
    browser.get(first(pages).as_uri())
    grounds = browser.execute_script(
        "return [...document.querySelectorAll('body, body *')].filter(e => e.checkVisibility())"
        ".map(e => getComputedStyle(e).backgroundColor)"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert grounds and "rgb(255, 255, 255)" not in grounds


@pytest.mark.skipif(not AXE.exists(), reason=f"needs axe-core's axe.min.js as {AXE}, or where AXE says")
@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (400, "dark")])
def test_axe_finds_no_serious_violation(browser, pages, width, colours):
    scheme = {"name": "prefers-color-scheme", "value": colours}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    resize(browser, width)
    alike = {re.sub(r"(groundwork/[a-z]+)/.*", r"\1", path.as_posix()): path for path in pages}  # one page a stage
    found = []
    for path in alike.values():
        if "published" not in path.parts:  # those are kept as they were made
            browser.get(path.as_uri())
            browser.execute_script(LOOK)
            browser.execute_script(AXE.read_text("utf-8"))
            found += [(named(path), *violation) for violation in browser.execute_async_script(RULES)]
    assert not found


def test_search_finds_headings_artefacts_and_functions_and_enter_follows_the_first(browser, pages):
    from selenium.webdriver.support.ui import WebDriverWait

    def arrives(address):
        here = "return document.readyState === 'complete' && location.href"
        return WebDriverWait(browser, 20).until(lambda _: address in (browser.execute_script(here) or ""))

    start = next(path for path in pages if path.parent.name.startswith("11-") and "published" not in path.parts)
    browser.get(start.as_uri())
    box = browser.find_element("css selector", ".bar input")
    box.send_keys("kim-table-2\n")
    assert arrives("index.html?q=kim-table-2")
    found = browser.find_elements("css selector", "#search li a")
    assert found[0].text == "Table 2" and found[0].get_attribute("href").endswith("#kim-table-2")
    box = browser.find_element("css selector", "#search input")
    box.clear()
    box.send_keys("Ball")
    assert "attacks.ball" in browser.find_element("css selector", "#search ol").text
    box.send_keys("\n")
    assert arrives("library.html#")
