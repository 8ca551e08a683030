"""The page as a whole, in Chromium: its tabs, links, widths, colours and manners."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

pytestmark = pytest.mark.slow
TABS = {"birds": ("#species-hint", "Click a species"), "mistakes": ("#gallery-title", "highest loss"),
        "digits": ("#decoded-caption", "decoded"), "training": ("#trainings", "lowest validation loss")}


def ready(page, tab: str) -> None:
    """The tab shows what it has to."""
    selector, words = TABS[tab]
    page.locator(selector, has_text=words).wait_for()


def test_tabs_by_keys_and_the_fragment(visit):
    page = visit("#tab=training")
    ready(page, "training")
    for key, tab in (("ArrowLeft", "digits"), ("Home", "birds"), ("ArrowLeft", "training"), ("ArrowRight", "birds"),
                     ("End", "training"), ("ArrowLeft", "digits")):
        page.locator("[role=tab][aria-selected=true]").press(key)
        expect(page.locator(f"#tab-{tab}")).to_be_focused()
        expect(page.locator(f"#tab-{tab}")).to_have_attribute("aria-selected", "true")
        expect(page.locator(f"#{tab}")).to_be_visible()
        assert page.locator("[role=tabpanel]:visible").count() == 1
    expect(page).to_have_url(re.compile("tab=digits"))
    page.goto(page.url.split("#")[0] + "#tab=mistakes")               # a link within the page
    ready(page, "mistakes")
    page.locator("#tab-training").click()
    ready(page, "training")
    page.go_back()
    expect(page.locator("#mistakes")).to_be_visible()
    page.go_forward()
    expect(page.locator("#training")).to_be_visible()


@pytest.mark.parametrize("fragment", [
    "#tab=nothing", "#%", "#tab=digits&z=a,b&view=1&walk=0&colour=x", "#tab=mistakes&cell=99-1", "#tab=mistakes&cell=a",
    "#tab=birds&photo=x&species=y&beside=z&cover=1,2&heat=x", "#tab=birds&cover=a,b,c&heat=1e9",
    "#tab=training&epoch-bird=-5&epoch-vae=1e9", "#__proto__=1&constructor=2"])
def test_a_damaged_link_shows_the_page_all_the_same(visit, fragment):
    page = visit(fragment)
    tab = fragment.partition("tab=")[2].partition("&")[0]
    ready(page, tab if tab in TABS else "birds")
    expect(page.locator("#photo-error")).to_be_hidden()


def test_the_link_is_copied(visit):
    page = visit("#tab=digits", permissions=["clipboard-read", "clipboard-write"])
    ready(page, "digits")
    page.locator("#digits .copy").click()
    expect(page.locator("#live")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    page.locator("#ink").press("Space")
    page.locator("#digits .copy").click()
    expect(page.locator("#live")).to_have_text("Copied, without the drawing")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280, 2560])
def test_axe_finds_nothing_serious(visit, scheme, width):
    page = visit(color_scheme=scheme, viewport={"width": width, "height": 800}, reduced_motion="reduce")
    for tab in TABS:
        page.locator(f"#tab-{tab}").click()
        ready(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") == width, tab
        found = Axe().run(page).response["violations"]
        assert not [(tab, each["id"], [node["html"] for node in each["nodes"]]) for each in found
                    if each["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("tab", TABS)
def test_everything_is_reached_by_the_tab_key_and_has_a_name(visit, tab):
    page = visit(f"#tab={tab}")
    ready(page, tab)
    expected = page.evaluate("""tab => [...document.querySelectorAll(`#${tab} :is(button, input, select, [tabindex])`)]
        .filter(each => each.checkVisibility() && !each.disabled && each.tabIndex >= 0)
        .map((each, i) => each.dataset.i = i)""", tab)
    page.locator(f"#tab-{tab}").focus()
    reached = set()
    for _ in range(len(expected) + 2):
        page.keyboard.press("Tab")
        here = page.evaluate("""() => { const e = document.activeElement;
            return [e.dataset.i, Boolean(e.textContent.trim() || e.labels?.length || e.ariaLabel)]; }""")
        if here[0] is not None:
            reached.add(int(here[0]))
            assert here[1]
    assert reached == set(expected)
