"""What a page holds, where it lies, and what the command says of bad input."""

import base64
import functools
import http.server
import io
import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

import bird
import vae
from nestling import cli
from nestling.files import write_json
from nestling.page import build, contents


def test_the_page_allows_its_own_scripts_and_nothing_else(site):
    text = site.page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; worker-src blob:; script-src\n  'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy
    assert not re.search(r"\son\w+=|style=", (build.HERE / "page.html").read_text())
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert site.page.stat().st_size < 20e6


def test_no_place_on_the_disk_is_told(site):
    assert str(site.root) not in site.page.read_text()
    assert "/" not in "".join(shown["file"] for shown in site.blocks["mistakes"]["shown"])


def test_json_cannot_end_its_script():
    assert build.as_json({"a": "</script><!--", "b": float("nan")}) == '{"a":"\\u003c/script>\\u003c!--","b":null}'


def test_mistakes_are_those_of_predict(site):
    found = site.blocks["mistakes"]
    pixels, _, _ = bird.decode(site.photos, "")
    labels = torch.tensor([found["classes"].index(path.parent.name) for path in site.photos])
    p = bird.predict(site.net, pixels)
    matrix = np.zeros((3, 3), int)
    np.add.at(matrix, (labels.numpy(), p.argmax(dim=1).numpy()), 1)
    assert found["matrix"] == matrix.tolist()
    loss = -p[range(36), labels].log()
    worst = [found["shown"][i] for i in found["worst"]]
    assert [each["loss"] for each in worst] == pytest.approx(loss.sort(descending=True)[0][:24].tolist(), abs=1e-3)
    assert [each["file"] for each in worst] == [site.photos[i].name for i in loss.argsort(descending=True)[:24]]
    wrong = [(each["label"], each["predicted"]) for each in found["shown"] if each["label"] != each["predicted"]]
    assert len(wrong) == (p.argmax(dim=1) != labels).sum()             # each mistake can be opened


def test_samples_show_each_class_and_tell_no_metadata(site, tmp_path):
    samples = site.blocks["samples"]
    assert len(samples) == len({sample["name"] for sample in samples}) == contents.SAMPLES
    assert {sample["label"] for sample in samples} == set(site.net.extra["classes"])
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "where it was taken", 6
    Image.open(site.photos[0]).resize((60, 30)).save(path, exif=exif)
    (sample,) = contents.samples([(path, 0)], ["a"])
    image = Image.open(io.BytesIO(base64.b64decode(sample["image"])))
    assert image.size == (240, 480)                                    # turned as it says
    assert not image.getexif()
    path.write_bytes(path.read_bytes().replace(b"where it was taken", b"where it was taken"[::-1]).replace(
        b"MM\0*", b"II*\0"))                                           # damaged EXIF
    assert len(list(contents.samples([(path, 0), (tmp_path / "gone.jpg", 0)], ["a"]))) == 1


def test_points_are_latent_means_and_thumbnails(site):
    points = site.blocks["points"]
    sets = [vae.DigitDataset(site.data / "digits" / name) for name in ("train.npz", "test.npz")]
    images = torch.cat([each.images for each in sets])
    assert len(points["z"]) == len(points["labels"]) == min(len(images), contents.MOST_POINTS)
    assert np.allclose(points["z"][0], vae.latent_means(site.coder, images[:1])[0], atol=1e-4)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(points["image"]))))
    expected = 255 * images[1].view(14, 2, 14, 2).mean(dim=(1, 3)).numpy()
    assert np.abs(sheet[:14, 14:28] - expected).max() <= 0.51


def test_sprites_hold_their_thumbnails():
    cells = np.random.default_rng(0).integers(0, 256, (53, 14, 14)).astype(np.uint8)
    sheet = contents.sprite(cells, "png")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["image"]))))
    assert (image[14:28, 28:42] == cells[52]).all()


def test_the_photos_of_a_run_are_those_it_validated_on(site, few, tmp_path):
    write_json(tmp_path / "config.json", {"program": "bird", "data": {"dataset": str(few)}, "config": {"seed": 3}})
    classes = site.net.extra["classes"]
    found, name = contents.labelled_photos(classes, None, tmp_path)
    assert name == "validation"
    paths = sorted(few.glob("*/*.jpg"))
    assert [path for path, _ in found] == [paths[i] for i in bird.load_data(few, 3).val]
    assert all(classes[label] == path.parent.name for path, label in found)


@pytest.mark.parametrize("config", [{}, {"program": "bird"}, {"program": "bird", "data": "x", "config": {"seed": 1}},
                                    {"program": "vae", "data": {"dataset": "x"}, "config": {"seed": 0}}])
def test_a_run_of_something_else_gives_no_photos(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert contents.labelled_photos(["a"], tmp_path, tmp_path) == ([], "")


def test_damaged_photos_and_foreign_classes_are_left_out(site, tmp_path):
    shutil.copytree(site.data / "birds", tmp_path / "birds")
    (tmp_path / "birds" / "Another" / "x").mkdir(parents=True)
    shutil.copy(site.photos[0], tmp_path / "birds" / "Another" / "y.jpg")
    site_class = tmp_path / "birds" / site.photos[0].parent.name
    (site_class / "broken.jpg").write_bytes(b"no photo")
    found = contents.photos(site.net, *contents.labelled_photos(site.net.extra["classes"], tmp_path, None))
    assert found["mistakes"]["photos"] == len(site.photos)


@pytest.mark.slow
def test_a_page_of_one_model_has_its_tabs_only(visit, site, tmp_path):
    for arguments, expected in [((None, *site.paths[1:]), ["digits", "training"]),
                                ((site.paths[0],), ["birds", "training"])]:
        build.make_page(tmp_path / "page.html", *arguments)
        page = visit((tmp_path / "page.html").as_uri())
        page.locator(f"#{expected[0]} .loading").wait_for(state="hidden")
        tabs = page.get_by_role("tab")
        assert [tabs.nth(i).inner_text().lower() for i in range(tabs.count()) if tabs.nth(i).is_visible()] == expected


@pytest.mark.slow
def test_a_folder_is_hosted(visit, site, tmp_path):
    out = tmp_path / "hosted"
    with pytest.raises(SystemExit) as done:
        cli.main(["page", "--bird", str(site.paths[0]), "--vae", str(site.paths[1]), "--gmm", str(site.paths[2]),
                  "--data", str(site.data), "--folder", "--out", str(out)])
    assert not done.value.code
    assert (out / "index.html").stat().st_size < 300_000
    assert json.loads((out / "samples.json").read_text()) == site.blocks["samples"]

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=out)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = visit(f"http://127.0.0.1:{server.server_address[1]}/")
        page.locator("#species-hint", has_text="Click a species").wait_for()
        page.locator("#tab-mistakes").click()
        page.locator("#gallery li").nth(23).wait_for()
        page.locator("#tab-digits").click()
        page.locator("#decoded-caption", has_text="decoded").wait_for()
        server.shutdown()


@pytest.mark.slow
def test_a_folder_opened_from_the_disk_says_what_to_do(chromium, site, tmp_path):
    build.make_page(tmp_path / "out", *site.paths, folder=True)
    page = chromium.new_page()
    page.goto((tmp_path / "out" / "index.html").as_uri())
    expect(page.locator("#birds .loading")).to_contain_text("python -m http.server")
    page.close()


def test_wrong_arguments_are_a_sentence(site, tmp_path, capsys):
    bird_path, vae_path, gmm_path = map(str, site.paths)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for words, sentence in [
            ([], "a page needs a model"), (["--vae", vae_path], "--vae and --gmm belong together"),
            (["--gmm", gmm_path], "belong together"), (["--bird", vae_path], "is no model of this bird.py"),
            (["--bird", bird_path, "--data", "gone"], "gone is no folder"),
            (["--bird", bird_path, "--run", bird_path], "is no folder; name one with a training"),
            (["--bird", bird_path, "--out", bird_path], "exists and is no page"),
            (["--bird", bird_path, "--out", str(tmp_path)], "is a folder"),
            (["--bird", bird_path, "--folder", "--out", str(tmp_path / "taken")], "is not an empty folder")]:
        with pytest.raises(SystemExit) as done:
            cli.main(["page", *words])
        err = capsys.readouterr().err
        assert (done.value.code, sentence in err, err.count("\n")) == (2, True, 1), err


def test_data_that_holds_nothing_of_use_is_told(site, tmp_path, capsys):
    build.make_page(tmp_path / "page.html", site.paths[0], data=tmp_path)
    assert f"note: {tmp_path} holds no photos of the model's classes" in capsys.readouterr().err


def test_nothing_but_the_command_and_its_bench_imports_the_page():
    root = Path(build.__file__).parents[2]
    for path in [*root.glob("*.py"), *(root / "nestling").rglob("*.py"), *(root / "bench").rglob("*.py")]:
        if path.parent != build.HERE and path.name not in ("cli.py", "page.py"):
            assert "nestling.page" not in path.read_text(), path


@pytest.mark.slow
def test_the_bench_compares_the_page_with_torch(site, tmp_path, monkeypatch, chromium):
    from bench import page, table

    monkeypatch.setattr(page, "COUNT", 4)
    monkeypatch.setattr(bird, "autocast", bird.autocast)               # put back what `main` changes
    monkeypatch.setattr(table, "RESULTS", results := tmp_path / "RESULTS.md")
    results.write_text("# Results\n")
    monkeypatch.setattr(page, "browser", chromium.new_page)            # a page closes as `browser` does
    page.main(*map(str, (site.paths[0], site.data / "birds", *site.paths[1:], site.data / "digits" / "test.npz")))
    values = dict(line[2:-2].split(" | ") for line in results.read_text().splitlines() if line.startswith("| "))
    assert values["photos of equal label, four views"] == values["digits of equal label"] == "4 of 4"
    assert float(values["largest difference of a heat map, shares of its peak"]) < 1e-3
