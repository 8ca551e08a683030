"""The tab of the mistakes: the confusion matrix and its photos."""

import base64
import re

import pytest
from playwright.sync_api import expect

from nestling.page import build

pytestmark = pytest.mark.slow


def numbers(page, pattern):
    return [float(each) for each in re.findall(pattern, page.locator("#gallery").inner_text())]


def test_a_cell_opens_its_photos_by_mouse_and_by_link(visit, site):
    page = visit("#tab=mistakes")
    cells = page.locator("#matrix button")
    expect(page.locator("#gallery li")).to_have_count(24)
    assert sum(map(int, cells.all_inner_texts())) == len(site.photos)
    cell = page.locator("#matrix td:not(.right) button").first
    i, j = map(int, cell.get_attribute("data-cell").split("-"))
    names = [name.replace("-", " ").replace("_", " ") for name in site.blocks["mistakes"]["classes"]]
    cell.click()
    said = re.compile(f"^{names[i]}, the network says {names[j]}: {cell.inner_text()} photo")
    expect(page.locator("#gallery-title")).to_have_text(said)
    expect(page.locator("#gallery li")).to_have_count(int(cell.inner_text()))
    expect(cell).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#live")).to_have_text(said)                   # to a screen reader
    expect(page).to_have_url(re.compile(f"cell={i}-{j}"))
    expect(visit(page.url[page.url.index("#"):]).locator("#gallery-title")).to_have_text(said)
    for other in ("0-9", "x", "-1", "1.5-0"):              # there is no such cell
        page.evaluate("cell => { location.hash = `tab=mistakes&cell=${cell}`; }", other)
        expect(page.locator("#gallery-title")).to_have_text("The 24 photos of highest loss")
        page.evaluate("cell => { location.hash = `tab=mistakes&cell=${cell}`; }", f"{i}-{j}")
        expect(page.locator("#gallery-title")).to_have_text(said)


def test_the_worst_photos_come_first(visit, site):
    """Of all that the page holds; the mistakes alone are one button away."""
    shown = sorted(site.blocks["mistakes"]["shown"], key=lambda photo: -photo["loss"])
    wrong = [photo["loss"] for photo in shown if photo["label"] != photo["predicted"]]
    page = visit("#tab=mistakes")
    expect(page.locator("#gallery li")).to_have_count(24)
    assert numbers(page, r"loss (\d+\.\d+)") == pytest.approx([photo["loss"] for photo in shown[:24]], abs=6e-3)
    page.get_by_role("button", name="Mistakes").click()
    expect(page.locator("#gallery .wrong")).to_have_count(len(wrong))
    assert numbers(page, r"loss (\d+\.\d+)") == pytest.approx(wrong, abs=6e-3)


def test_the_matrix_is_walked_with_arrow_keys(visit):
    """It is one stop of the Tab key; Enter opens the cell."""
    page = visit("#tab=mistakes")
    cells = page.locator("#matrix button")
    expect(page.locator("#matrix button[tabindex='0']")).to_have_count(1)
    cells.first.focus()
    for _ in range(cells.count()):                                     # one after another; at the last it stays
        page.keyboard.press("ArrowRight")
    expect(cells.last).to_be_focused()
    page.keyboard.press("ArrowUp")
    row = cells.last.get_attribute("data-cell").split("-")[0]
    chosen = page.locator("#matrix button:focus")
    assert int(chosen.get_attribute("data-cell").split("-")[0]) < int(row)
    page.keyboard.press("Enter")
    expect(chosen).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Tab")
    expect(page.locator("#show-worst")).to_be_focused()


def test_heat_maps_are_laid_over_the_photos(visit, site):
    """Where there is any heat; the choice is in the link."""
    page = visit("#tab=mistakes")
    given = site.blocks["mistakes"]
    hot = [any(base64.b64decode(given["shown"][i]["heat"])) for i in given["worst"]]
    expect(page.locator("#gallery canvas")).to_have_count(24)

    def pictures():
        return page.locator("#gallery canvas").evaluate_all("all => all.map(canvas => canvas.toDataURL())")

    bare = pictures()
    page.get_by_label("Heat maps").check()
    assert [before != after for before, after in zip(bare, pictures(), strict=True)] == hot
    assert sum(hot) > 6
    expect(page).to_have_url(re.compile("maps=1"))
    linked = visit(page.url[page.url.index("#"):])
    expect(linked.get_by_label("Heat maps")).to_be_checked()


def test_touch_on_a_phone(visit):
    """A tap shows the photos, which lie below the matrix; only the matrix scrolls sideways."""
    page = visit("#tab=mistakes", has_touch=True, viewport={"width": 360, "height": 640})
    page.locator("#matrix button").first.tap()
    expect(page.locator("#gallery canvas").first).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize(("kinds", "width"), [(2, 360), (60, 360), (60, 1280)])
def test_any_number_of_classes_with_any_names(visit, site, tmp_path, kinds, width):
    """One without photos, no mistakes at all, names that look like HTML or are long."""
    names = ["Höcker-Schwan's \"<b>\"", "A" * 80, "</script><!--"] + [f"species {i}" for i in range(kinds)]
    given = site.blocks["mistakes"]
    known = {**given["shown"][0], "label": 0, "predicted": 0, "file": "<i>" + "x" * 90 + ".jpg"}
    matrix = [[3 * (i == j == 0) for j in range(kinds)] for i in range(kinds)]
    mistakes = {**given, "classes": names[:kinds], "photos": 3, "matrix": matrix, "worst": [0], "shown": [known]}
    (tmp_path / "page.html").write_text(build.html({"mistakes": mistakes}, ""), "utf-8")
    page = visit((tmp_path / "page.html").as_uri(), viewport={"width": width, "height": 800})
    expect(page.locator("#matrix-title")).to_have_text("No mistakes in 3 test photos")
    expect(page.locator("#show-wrong")).to_be_hidden()
    expect(page.locator("#gallery li b")).to_have_text("Höcker Schwan's \"<b>\"")
    page.locator("#matrix button").click()
    expect(page.locator("#gallery-title")).to_contain_text("recognised: the 1 least sure of 3 photos")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("#gallery").bounding_box()["width"] > 300


def test_a_mistake_opens_in_the_tab_of_the_birds(visit, site):
    """With its label, and with the answer that the matrix counts."""
    page = visit("#tab=mistakes&cell=all")
    card = page.locator("#gallery li").first
    says = re.search(r"the network says (.*),\s", card.inner_text()).group(1)
    file = card.locator(".file").inner_text()
    card.get_by_role("button").press("Enter")
    expect(page.locator("#photo-caption")).to_contain_text(f"/{file}; its label says")
    expect(page.locator("#species-hint")).to_contain_text("Click a species")
    expect(page.locator("#answer")).to_contain_text(says)
    page.go_back()
    expect(page.locator("#mistakes")).to_be_visible()
