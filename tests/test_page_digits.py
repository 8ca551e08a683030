"""The tab of the digits: the plane, the walk, the drawing, by mouse, touch and keys in Chromium."""

import io
import re
from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from playwright.sync_api import expect

from nestling.page import build
from vae import DigitDataset

pytestmark = pytest.mark.slow
ONE, EIGHT = (-1.0, 0.0), (0.0, 1.5)         # means of two components of the `site`
TOUCH = {"has_touch": True, "viewport": {"width": 360, "height": 900}}


def pixels(canvas) -> np.ndarray:
    """The grey values of a canvas, (h, w) in 0..1."""
    size, values = canvas.evaluate(
        "c => [[c.height, c.width], Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]")
    return np.array(values).reshape(*size, 4)[:, :, 0] / 255


def seen(element) -> np.ndarray:
    """What is seen of it on the screen, (h, w, 3) in 0..255."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB")).astype(int)


def ready(page) -> dict[str, float]:
    """Where the plane is on the screen, once it is drawn and scrolled into view."""
    expect(page.locator("#decoded-caption")).to_contain_text("decoded")
    page.locator("#plane").scroll_into_view_if_needed()
    return page.locator("#plane").bounding_box()


def fragment(page, key: str, holds: Callable[..., bool]) -> tuple[float, ...]:
    """The numbers of a key of the address's fragment, once there are such and the condition holds."""
    def numbers(url: str) -> tuple[float, ...]:
        return tuple(map(float, dict(parse_qsl(urlsplit(url).fragment)).get(key, "nan").split(",")))

    page.wait_for_url(lambda url: np.isfinite(numbers(url)).all() and holds(*numbers(url)))
    return numbers(page.url)


def at(box: dict[str, float], view: tuple[float, ...], z: tuple[float, ...]) -> tuple[float, float]:
    """Where a point is on the screen, by the plane's box there and the view's centre and span."""
    scale = box["width"] / view[2]
    return (box["x"] + box["width"] / 2 + (z[0] - view[0]) * scale,
            box["y"] + box["height"] / 2 - (z[1] - view[1]) * scale)


def fingers(session, kind: str, *places: tuple[float, float]) -> None:
    """Sends a touch event, with these fingers on the screen."""
    points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
    session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


VIEW = (0, 0.5, 6)
OPEN = "#tab=digits&view=0,0.5,6&z="


@torch.no_grad()
def test_a_point_is_decoded_and_classified_as_by_torch(visit, site):
    page = visit("#tab=digits&z=0.5,-0.25")
    expect(page.locator("#decoded-caption")).to_have_text("decoded at 0.50, −0.25")
    z = torch.tensor([[0.5, -0.25]])
    assert np.abs(pixels(page.locator("#decoded")) - site.coder.decode(z)[0].numpy()).max() < 0.006
    r, _ = site.mixture.e_step(z)
    for share, number in zip(r[0], page.locator("#components .number").all_inner_texts(), strict=True):
        assert abs(float(re.search(r"[\d.]+", number)[0]) / 100 - share) < 0.006


def test_the_mouse_points_and_a_click_keeps(visit, site):
    z, labels = np.array(site.blocks["points"]["z"]), site.blocks["points"]["labels"]
    alone = np.sort(np.hypot(*(z[:, None] - z).T), axis=0)[1].argmax()         # the point farthest from the others
    view = (*z[alone].tolist(), 1)
    page = visit(f"#tab=digits&z=9,9&view={view[0]},{view[1]},1")
    box = ready(page)
    expect(page.locator("#near-caption")).to_have_text("no image near")
    page.mouse.move(*at(box, view, view))
    expect(page.locator("#near-caption")).to_contain_text(f"nearest image: a {labels[alone]}")
    image = F.avg_pool2d(DigitDataset(site.data / "digits" / "train.npz").images, 2)
    assert np.abs(pixels(page.locator("#near-image")) - image.numpy()).max(axis=(1, 2)).min() < 0.003
    page.mouse.move(5, 5)
    expect(page.locator("#decoded-caption")).to_have_text("decoded at 9.00, 9.00")     # where it was before
    page.mouse.click(*at(box, view, view))
    page.mouse.move(5, 5)
    fragment(page, "z", lambda *point: np.hypot(*np.subtract(point, view[:2])) < 0.01)
    expect(page.locator("#near-caption")).to_contain_text(f"nearest image: a {labels[alone]}")


def test_zoom_and_pan_by_mouse_wheel_and_buttons(visit):
    page = visit(OPEN + "0,0")
    box = ready(page)
    x, y = at(box, VIEW, EIGHT)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -200)
    view = fragment(page, "view", lambda *view: view[2] == 3.6392)     # 6 exp(-200 / 400)
    assert np.hypot(*np.subtract(at(box, view, EIGHT), (x, y))) < 1   # what is pointed at stays
    page.mouse.down()
    page.mouse.move(x - 60, y + 30, steps=3)
    page.mouse.up()
    fragment(page, "view", lambda *view: np.hypot(*np.subtract(at(box, view, EIGHT), (x - 60, y + 30))) < 1)
    expect(page.locator("#walk-text")).to_contain_text("two places")   # a drag is no click
    page.locator("#zoom-out").click()
    fragment(page, "view", lambda *view: view[2] == 5.4588)
    page.locator("#zoom-all").click()
    page.wait_for_url(lambda url: "view" not in url)


def test_a_walk_by_keys(visit):
    page = visit(OPEN + "-1,0")
    ready(page)
    plane = page.locator("#plane")
    plane.press("Enter")
    expect(page.locator("#walk-text")).to_contain_text("begins here, at a 1")
    for _ in range(7):
        plane.press("Shift+ArrowRight")
    plane.press("Enter")
    expect(page.locator("#walk figcaption")).to_have_text(["1"] * 4 + ["4"] * 5)
    plane.press("Escape")
    expect(page.locator("#walk")).to_be_hidden()
    plane.press("+")
    for _ in range(20):
        plane.press("Shift+ArrowRight")                                # the view follows the point
    fragment(page, "view", lambda *view: view[0] > 2 and view[2] == 4.6154)


def test_a_walk_and_a_pinch_by_touch(visit):
    page = visit(OPEN + "0,0", **TOUCH)
    box = ready(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for end in (ONE, EIGHT):
        page.touchscreen.tap(*at(box, VIEW, end))
    expect(page.locator("#walk-text")).to_have_text("A walk from a 1 to an 8: nine images along the line.")
    expect(page.locator("#walk canvas")).to_have_count(9)
    page.locator("#drop-walk").tap()
    expect(page.locator("#walk")).to_be_hidden()
    box = ready(page)
    session = page.context.new_cdp_session(page)
    (x, y), (u, v) = at(box, VIEW, ONE), at(box, VIEW, (1, 0))
    fingers(session, "touchStart", (x, y))
    fingers(session, "touchMove", (u, v))
    expect(page.locator("#decoded-caption")).to_contain_text("decoded at 1.0")         # one finger points
    fingers(session, "touchEnd")
    expect(page.locator("#walk-text")).to_contain_text("two places")
    fingers(session, "touchStart", (x, y), (u, v))
    fingers(session, "touchMove", (x - 40, y), (u + 40, v))               # two zoom, and keep the middle
    fingers(session, "touchEnd")
    view = fragment(page, "view", lambda *view: abs(view[2] / 6 * (u - x + 80) / (u - x) - 1) < 0.03)
    assert np.hypot(*np.subtract(at(box, view, (0, 0)), ((x + u) / 2, y))) < 2
    expect(page.locator("#decoded-caption")).to_contain_text("decoded at 1.0")         # and leave the point


def test_a_link_shows_the_same(visit):
    page = visit(OPEN + "0,0")
    box = ready(page)
    page.locator("#colour").select_option("certainty")
    for end in (ONE, EIGHT):
        page.mouse.click(*at(box, VIEW, end))
    page.locator("#zoom-in").click()
    fragment(page, "view", lambda *view: view[2] == 4)
    other = visit(page.url)
    ready(other)
    for id_ in ("decoded", "plane"):
        assert np.array_equal(seen(page.locator(f"#{id_}")), seen(other.locator(f"#{id_}")))
    for id_ in ("walk-text", "legend", "decoded-caption"):
        assert other.locator(f"#{id_}").inner_text() == page.locator(f"#{id_}").inner_text()
    before = seen(other.locator("#plane")).mean()
    other.emulate_media(color_scheme="dark")
    other.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert seen(other.locator("#plane")).mean() < before / 2


def strokes(page, *ways) -> None:
    """Draws ways of places, in shares of the canvas, with the mouse."""
    page.locator("#ink").scroll_into_view_if_needed()
    box = page.locator("#ink").bounding_box()
    for way in ways:
        for i, (x, y) in enumerate(way):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
            if not i:
                page.mouse.down()
        page.mouse.up()


def test_a_drawing_is_read(visit, site):
    page = visit("#tab=digits")
    reading = page.locator("#reading")
    expect(reading).to_have_text("The canvas is empty: draw a 1, a 4, or an 8 on it.")
    strokes(page, [(0.1, 0.1), (0.15, 0.4), (0.4, 0.4)], [(0.35, 0.1), (0.35, 0.7)])
    expect(reading).to_contain_text("Read as")
    shown = pixels(page.locator("#seen"))
    rows, columns = np.nonzero(shown > 0.2)
    assert abs(np.average(rows, weights=shown[rows, columns]) - 14) < 1        # centred as MNIST
    assert abs(np.average(columns, weights=shown[rows, columns]) - 14) < 1
    with torch.no_grad():
        x = torch.tensor(shown, dtype=torch.float32)[None]
        mu, logvar = site.coder.encode(x)
        error = (site.coder.decode(mu) - x).square().mean()
    told = page.locator("#drawn-place").inner_text().replace("−", "-")
    place = [float(number) for number in re.findall(r"[-\d.]*\d", told)]
    assert np.abs(np.array(place[:2]) - mu[0].numpy()).max() < 0.02
    assert np.abs(np.array(place[2:4]) / logvar[0].div(2).exp().numpy() - 1).max() < 0.05
    assert abs(place[4] - error) < 0.002
    page.locator("#ink").press("Control+z")
    page.locator("#undo").click()
    expect(reading).to_contain_text("The canvas is empty")


def test_the_drawing_is_marked_in_the_plane(visit):
    page = visit("#tab=digits&view=0,0,6")
    ready(page)
    before = seen(plane := page.locator("#plane"))
    strokes(page, [(0.5, 0.2), (0.5, 0.8)])
    expect(page.locator("#drawn-place")).to_contain_text("It lies at")
    red = [(image[:, :, 0] - image[:, :, 1:].max(axis=2) > 90).sum() for image in (before, seen(plane))]
    assert red[1] > red[0] + 100                                       # its dot and its ellipses
    expect(page.locator("#show-drawn")).to_be_hidden()
    far = visit("#tab=digits&view=50,50,1")
    ready(far)
    strokes(far, [(0.5, 0.2), (0.5, 0.8)])
    far.locator("#show-drawn").click()
    expect(far.locator("#show-drawn")).to_be_hidden()


def test_a_drawing_by_keys_and_by_touch(visit):
    page = visit("#tab=digits", **TOUCH)
    ink, reading = page.locator("#ink"), page.locator("#reading")
    for key in ("ArrowUp", "Space", "Shift+ArrowDown", "Shift+ArrowDown"):
        ink.press(key)
    expect(reading).to_contain_text("Read as")
    page.locator("#clear").tap()
    expect(reading).to_contain_text("The canvas is empty")
    ink.scroll_into_view_if_needed()
    session = page.context.new_cdp_session(page)
    box, scrolled = ink.bounding_box(), page.evaluate("scrollY")
    fingers(session, "touchStart", (box["x"] + 90, box["y"] + 150))
    for y in range(140, 20, -20):
        fingers(session, "touchMove", (box["x"] + 90, box["y"] + y))
    fingers(session, "touchEnd")
    expect(reading).to_contain_text("Read as")
    assert np.ptp(np.nonzero(pixels(page.locator("#seen")) > 0.2)[0]) in (19, 20)     # a box of 20 pixels
    assert page.evaluate("scrollY") == scrolled


def test_the_picture_is_saved_with_the_walk(visit):
    page = visit("#tab=digits&walk=-1,0,0,1.5")
    ready(page)
    with page.expect_download() as download:
        page.locator("#save-plane").click()
    width, height = page.locator("#plane").evaluate("c => [c.width, c.height]")
    with Image.open(download.value.path()) as image:
        assert image.size == (width, height + width // 9)


def test_a_drawing_that_is_reconstructed_badly_is_doubted(visit, site, tmp_path):
    """`site`'s random network reconstructs nothing: the error that is usual decides."""
    for usual, doubted in ((0.0, True), (1.0, False)):
        blocks = {**site.blocks, "points": {**site.blocks["points"], "error": usual}}
        (tmp_path / "page.html").write_text(build.html(blocks, ""), "utf-8")
        page = visit((tmp_path / "page.html").as_uri() + "#tab=digits")
        page.locator("#ink").press("Space")
        expect(page.locator("#reading")).to_contain_text("Read as")
        assert ("it may be none of them" in page.locator("#drawn-place").inner_text()) == doubted
