"""The tab of the birds: photos in, species, heat maps and covers out, in Chromium."""

import base64
import io
import re
import struct
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

import bird

pytestmark = pytest.mark.slow


def pixels(canvas) -> np.ndarray:
    """(h, w, 3) in 0..255."""
    url = canvas.evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(int)


def answered(page) -> tuple[str, float]:
    """Species and probability, once the network has given its answer."""
    page.locator("#species-hint", has_text="Click a species").wait_for()
    name, share = re.fullmatch(r"(.*),\s([\d.]+)\s%", page.locator("#answer").inner_text()).groups()
    return name, float(share) / 100


def until(page, look, right):
    """What `look` returns once it is right."""
    for _ in range(300):
        if right(seen := look()):
            return seen
        page.wait_for_timeout(100)
    raise AssertionError("it never came about")


def state(page, key: str) -> str:
    """A value of the fragment, once it is written."""
    return until(page, lambda: parse_qs(urlsplit(page.url).fragment).get(key, [""])[0], bool)


def test_photos_are_labelled_as_by_predict(visit, site, monkeypatch):
    monkeypatch.setattr(bird, "autocast", lambda device: torch.autocast(device.type, torch.bfloat16, enabled=False))
    page, paths = visit(), site.photos[::13]               # of three classes, and of different names
    answered(page)
    p = bird.predict(site.net, bird.decode(paths, "")[0])
    page.set_input_files("#pick", paths)                   # several at once: each gets its answer
    for i, path in enumerate(paths):
        button = page.locator("#strip button").nth(i)
        expect(button).to_have_attribute("title", path.name)
        expect(button.locator("span")).not_to_be_empty()
        button.click()
        page.locator("#photo-caption", has_text=path.name).wait_for()
        name, share = answered(page)
        assert name == site.net.extra["classes"][p[i].argmax()].replace("-", " ")
        assert abs(share - p[i].max()) < 0.02              # Chromium's JPEG decoder rounds in its own way


def test_heat_maps_of_each_species_and_of_two(visit):
    page = visit()
    answered(page)
    photo, species, captions = page.locator("#photo"), page.locator("#species button"), {}
    for i in range(3):
        species.nth(i).click()
        expect(species.nth(i)).to_have_attribute("aria-pressed", "true")
        captions[species.nth(i).locator(".name").inner_text()] = page.locator("#photo-caption").inner_text()
    assert all(caption.endswith(f"{name}.") for name, caption in captions.items())
    seen, other = sorted(captions, key=lambda name: "Brightest" not in captions[name])[:2]
    page.locator("#species button", has_text=seen).click()
    warm = until(page, lambda: pixels(photo), lambda image: np.ptp(image) > 0)
    page.locator("#opacity").fill("0")
    until(page, lambda: pixels(photo), lambda image: np.abs(image - warm).max() > 25)
    page.locator("#opacity").fill("65")
    page.locator("#compare").select_option(label=other)
    expect(page.locator("#second-caption")).to_contain_text(other)
    until(page, lambda: np.abs(pixels(photo) - pixels(page.locator("#photo-2"))).max(), lambda most: most > 25)


@pytest.mark.parametrize("by", ["mouse", "touch", "keys"])
def test_a_cover_changes_the_answer(visit, by):
    page = visit(has_touch=by == "touch", viewport={"width": 360, "height": 700} if by == "touch" else None)
    answered(page)
    before = page.locator("#species .number").all_inner_texts()
    page.locator("#covering").check()
    page.locator("#cover-size").fill("60")
    page.locator("#species-hint", has_text="the ticks mark").wait_for()
    cover = page.locator("#cover")
    cover.scroll_into_view_if_needed()
    box, middle = cover.bounding_box(), page.locator("#species .number").all_inner_texts()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    if by == "keys":
        cover.press("Shift+ArrowLeft")
    elif by == "mouse":
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 60, y - 10, steps=4)
        page.mouse.up()
    else:
        touch = page.context.new_cdp_session(page)
        for kind, at in (("touchStart", [(x, y)]), ("touchMove", [(x - 60, y - 10)]), ("touchEnd", [])):
            points = [{"x": x, "y": y} for x, y in at]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert cover.bounding_box()["x"] < box["x"] - 10
    expect(page.locator("#species .tick").first).to_be_visible()
    until(page, page.locator("#species .number").all_inner_texts, lambda after: after not in (before, middle))
    expect(page).to_have_url(re.compile(r"cover=0\.[0-4]"))
    page.locator("#covering").uncheck()
    answered(page)
    assert page.locator("#species .number").all_inner_texts() == before


def test_a_link_shows_the_same(visit, site):
    page = visit()
    answered(page)
    page.locator("#strip button").nth(4).click()
    answered(page)
    page.locator("#species button").nth(1).click()
    page.locator("#compare").select_option(index=1)
    page.locator("#opacity").fill("20")
    page.locator("#covering").check()
    page.locator("#species-hint", has_text="the ticks mark").wait_for()
    assert state(page, "cover")
    again = visit("#" + urlsplit(page.url).fragment)
    again.locator("#species-hint", has_text="the ticks mark").wait_for()
    for name in ("#photo-caption", "#second-caption", "#answer"):
        assert again.locator(name).inner_text() == page.locator(name).inner_text()
    assert again.locator("#opacity").input_value() == "20"
    pressed = "#strip button[aria-pressed=true]"
    assert again.locator(pressed).get_attribute("title") == page.locator(pressed).get_attribute("title")


def test_dropped_and_pasted_files_open_from_any_tab(visit, site):
    give = """([name, text, kind]) => {
      const files = new DataTransfer(), content = Uint8Array.from(atob(text), c => c.charCodeAt(0));
      files.items.add(new File([content], name, {type: "image/png"}));
      dispatchEvent(kind === "drop" ? new DragEvent("drop", {dataTransfer: files, cancelable: true})
        : new ClipboardEvent("paste", {clipboardData: files, cancelable: true}));
    }"""
    page = visit("#tab=digits")
    page.locator("#decoded-caption", has_text="decoded").wait_for()
    for kind in ("drop", "paste"):
        page.evaluate(give, [f"{kind}.png", site.blocks["samples"][0]["image"], kind])
        expect(page.locator("#photo-caption")).to_contain_text(f"{kind}.png")
        assert answered(page)[0]


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0) + bytes(40)


def test_files_that_are_no_photos_are_a_sentence_each(visit, site, tmp_path):
    faults = {"broken.jpg": (b"\xff\xd8\xff\xe0" + bytes(500), "is no photo that this browser can read"),
              "huge.png": (png(30_000, 30_000), "has 30000 × 30000 pixels, too many"),
              "bomb.jpg": (b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff" + bytes(40), "has 65535 × 65535 pixels"),
              "large.webp": (b"RIFF0000WEBPVP8L0000/" + (15999 * 16385).to_bytes(4, "little") + bytes(40),
                             "has 16000 × 16000 pixels"),
              "nothing.png": (b"", "is empty"),
              "drawn.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no photo"),
              "phone.heic": (b"\x00\x00\x00\x18ftypheic" + bytes(60), "is no photo"),
              "<b>text.txt": (b"a", "is no photo")}
    page = visit()
    answered(page)
    for name, (content, _) in faults.items():
        (tmp_path / name).write_bytes(content)
    page.set_input_files("#pick", [*(tmp_path / name for name in faults), site.photos[0]])
    page.locator("#photo-caption", has_text=site.photos[0].name).wait_for()     # the good one beside them
    expect(page.locator("#photo-error")).to_be_visible()
    told = page.locator("#photo-error").inner_text()
    for name, (_, words) in faults.items():
        assert f"{name} {words}" in told
    answered(page)


def test_photos_of_odd_shapes_and_kinds(visit, tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 1200, 4), dtype=np.uint8))
    image.save(tmp_path / "wide.png")                      # transparent, too
    image.convert("L").rotate(90, expand=True).save(tmp_path / "tall.webp")
    image.convert("RGB").resize((1, 1)).save(tmp_path / "dot.gif")
    page = visit()
    answered(page)
    for path in sorted(tmp_path.iterdir()):
        page.set_input_files("#pick", path)
        page.locator("#photo-caption", has_text=path.name).wait_for()
        answered(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_picture_is_saved(visit):
    page = visit()
    answered(page)
    page.locator("#compare").select_option(index=2)
    expect(page.locator("#second")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#save-photo").click()
    saved = Image.open(io.BytesIO(download.value.path().read_bytes()))
    assert download.value.suggested_filename.endswith(".nestling.png")
    assert saved.width > 1.9 * saved.height * 0.8          # two maps side by side, bars below
