"""The room of data: drawn birds, digits, Kaggle's photos, the health check, and the commands for them."""

import inspect
import io
import json
import math
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import bird
import vae
from nestling import cli, files
from nestling.data import birds, health, kaggle
from nestling.data.digits import enlarge, make_digits
from nestling.data.drawn import SPECIES, draw
from nestling.files import UserError

SIDE = 64  # px, enough for the laws


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "birds"
    birds.make_birds(out, per_class=12, seed=5, size=SIDE, copies=0.3, workers=1)
    return out


@pytest.fixture(scope="module")
def sample() -> list[list[tuple[Image.Image, np.ndarray]]]:
    """Twelve pictures and masks of each species."""
    return [[draw(name, 3, k, SIDE) for k in range(12)] for name in SPECIES]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def pixels(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def arrays(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The four files of digits."""
    parts = {}
    for name in ("train", "val", "test", "recon"):
        with np.load(folder / f"{name}.npz") as file:
            parts[name] = dict(file)
    return parts


def status_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return int(stop.value.code or 0)


def fails(capsys, *arguments: str) -> str:
    """Run a command that must end with status 2 and one sentence; return the sentence."""
    capsys.readouterr()
    assert status_of(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


# drawn birds


def test_same_seed_same_picture_other_index_or_seed_another():
    for species in SPECIES:
        image, mask = draw(species, 1, 2, SIDE)
        again, same = draw(species, 1, 2, SIDE)
        assert image.tobytes() == again.tobytes()
        assert (mask == same).all()
        assert image.tobytes() != draw(species, 1, 3, SIDE)[0].tobytes()
        assert image.tobytes() != draw(species, 2, 2, SIDE)[0].tobytes()


@pytest.mark.slow
def test_number_of_processes_does_not_change_a_byte(tmp_path):
    for workers in (1, 2):
        birds.make_birds(tmp_path / str(workers), per_class=4, seed=5, size=32, copies=0.3, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize("species", SPECIES)
def test_mask_is_the_bird(species, monkeypatch):
    """Without the bird's strokes the picture is the same outside the mask's surroundings, not inside."""
    real = birds.draw.__globals__["paint"]
    for index in range(3):
        with monkeypatch.context() as patch:
            picture, mask = draw(species, 0, index, 128)
            calls: list[int] = []

            def bare(*arguments, calls=calls):
                layer, box = real(*arguments)
                calls.append(len(arguments))
                return (layer * 0 if len(arguments) > 2 else layer), box  # only the bird has a place

            patch.setitem(birds.draw.__globals__, "paint", bare)
            empty, nothing = draw(species, 0, index, 128)
        assert sorted(calls) == [2, 2, 5]
        assert not nothing.any()
        assert 0.004 < mask.mean() < 0.5
        change = np.abs(np.asarray(picture, float) - np.asarray(empty, float)).max(axis=2)
        near = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(9))) > 0
        assert (change[mask] > 8).mean() > 0.8
        assert change[~near].max() <= 2


def test_layout_and_names(drawn):
    assert sorted(path.name for path in drawn.iterdir()) == ["copies.json", "masks", "test", "train"]
    for part in ("train", "test"):
        assert sorted(path.name for path in (drawn / part).iterdir()) == sorted(SPECIES)
        for photo in (drawn / part).rglob("*.jpg"):
            mask = pixels(drawn / "masks" / photo.relative_to(drawn).with_suffix(".png"))
            assert mask.mode == "1"
            assert mask.size == pixels(photo).size == (SIDE, SIDE)
        for folder in (drawn / part).iterdir():
            names = sorted(path.name for path in folder.iterdir())
            assert names == [f"{k:04d}.jpg" for k in range(len(names))]


def test_class_sizes_are_uneven_and_the_shares_differ_between_train_and_test(drawn):
    train = np.array([len(list((drawn / "train" / name).iterdir())) for name in SPECIES])
    test = np.array([len(list((drawn / "test" / name).iterdir())) for name in SPECIES])
    assert train.mean() == pytest.approx(12, abs=0.5)
    assert test.mean() == pytest.approx(3, abs=0.5)
    assert train.max() > 1.8 * train.min()
    assert np.corrcoef(train, test)[0, 1] < 0.9


def test_train_and_test_show_different_pictures():
    plan = birds.plan_set(per_class=30, seed=0, copies=0.2)
    shown = {part: {(p.species, p.index) for p in plan if p.part == part} for part in ("train", "test")}
    assert not shown["train"] & shown["test"]


def test_copies_are_what_copies_json_says(drawn):
    copies = json.loads((drawn / "copies.json").read_text())
    files = [path for path in contents(drawn) if path.startswith("train")]
    assert 0.2 < len(copies) / len(files) < 0.35
    assert {copy["how"] for copy in copies.values()} == set(birds.TURNS)
    assert not set(copies) & {copy["of"] for copy in copies.values()}
    for name, copy in copies.items():
        expected = np.asarray(birds.turned(pixels(drawn / copy["of"]), copy["how"], copy["by"]), dtype=float)
        match = np.corrcoef(expected.ravel(), np.asarray(pixels(drawn / name), dtype=float).ravel())[0, 1]
        assert match > 0.95, (name, copy)


def test_tilted_pictures_have_black_corners_and_masks_turn_along():
    image, mask = draw(SPECIES[0], 0, 0, SIDE)
    tilted = birds.turned(image, "tilted", 20)
    assert all(tilted.getpixel(corner) == (0, 0, 0) for corner in ((0, 0), (SIDE - 1, 0), (0, SIDE - 1)))
    shape = birds.turned(Image.fromarray(mask.astype(np.uint8) * 255), "mirrored", 0)
    assert (np.asarray(shape) > 0).tolist() == mask[:, ::-1].tolist()


def nearest_mean_accuracy(features: np.ndarray) -> float:
    """Of the second half of each species' pictures, by the means of the first: features (species, 12, D)."""
    means, rest = features[:, :6].mean(axis=1), features[:, 6:]
    nearest = np.abs(rest[:, :, None] - means).sum(axis=3).argmin(axis=2)
    return (nearest == np.arange(len(SPECIES))[:, None]).mean()


def test_thumbnails_do_not_give_the_species_away(sample):
    """The mean colours say little (light, place and background vary), though it is the bird that differs."""
    thumbnails = np.array([[np.asarray(image.resize((8, 8), Image.Resampling.BOX)).ravel()
                            for image, _ in row] for row in sample], dtype=float)
    assert nearest_mean_accuracy(thumbnails) < 0.5


def test_species_are_separable_by_the_colours_of_the_bird_itself(sample):
    """A nearest-mean rule on colour histograms inside the mask is far above chance."""
    histograms = np.array([[np.bincount(np.asarray(image)[mask] // 64 @ [16, 4, 1], minlength=64) / mask.sum()
                            for image, mask in row] for row in sample])
    assert nearest_mean_accuracy(histograms) > 0.5


def test_a_failed_set_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(birds, "write", full_disk)
    with pytest.raises(UserError, match="No space left"):
        birds.make_birds(tmp_path / "birds", per_class=4, size=SIDE, workers=1)
    assert not list(tmp_path.iterdir())


# digits


def test_digits_are_disjoint_and_as_the_contract_says(tmp_path):
    make_digits(tmp_path / "digits", "shipped", 0)
    parts = arrays(tmp_path / "digits")
    for name, part in parts.items():
        assert part["data"].dtype == np.uint8
        assert part["data"].shape[1:] == (28, 28)
        assert part["data"].min() == 0
        assert part["data"].max() == 255
        assert set(part) == ({"data"} if name == "recon" else {"data", "labels"})
    assert np.unique(parts["val"]["labels"], return_counts=True)[1].tolist() == [5, 5, 5]
    for name in ("train", "test"):
        digits, counts = np.unique(parts[name]["labels"], return_counts=True)
        assert digits.tolist() == [1, 4, 8]
        assert counts.max() < 1.1 * counts.min()
    assert len(parts["recon"]["data"]) == 10
    assert sum(len(parts[name]["labels"]) for name in ("train", "val", "test")) == 537
    seen = {name: {image.tobytes() for image in part["data"]} for name, part in parts.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & (seen["train"] | seen["test"])
    assert seen["recon"] <= seen["test"]


def test_digits_repeat_with_the_seed(tmp_path):
    for name, seed in ("a", 0), ("b", 0), ("c", 1):
        make_digits(tmp_path / name, "shipped", seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")


def test_enlarged_digits_are_framed_as_mnist_frames_them():
    image = np.zeros((8, 8))
    image[2:6, 1] = 16
    large = enlarge(image).astype(float)
    centre = np.indices((28, 28)).reshape(2, -1) @ large.ravel() / large.sum()
    assert np.abs(centre - 13.5).max() <= 0.5
    rows = np.flatnonzero(large.any(axis=1))
    assert rows[-1] - rows[0] < 20


def test_mnist_is_split_from_its_own_parts(tmp_path, monkeypatch):
    import torch
    from torchvision import datasets

    class Fake:
        def __init__(self, root, train, download):
            assert download
            self.targets = torch.arange(200 if train else 100) % 10
            self.data = torch.randint(0, 256, (len(self.targets), 28, 28), dtype=torch.uint8)

    monkeypatch.setattr(datasets, "MNIST", Fake)
    make_digits(tmp_path / "mnist", "mnist", 0)
    sizes = {name: len(part["data"]) for name, part in arrays(tmp_path / "mnist").items()}
    assert sizes == {"train": 45, "val": 15, "test": 30, "recon": 10}


# Kaggle


@pytest.fixture
def fake_kaggle(tmp_path, monkeypatch) -> types.ModuleType:
    cache = tmp_path / "cache"
    for label, count in ("0", 10), ("1", 5):
        folder = cache / "Birds" / "train" / label
        folder.mkdir(parents=True)
        for k in range(count):
            (folder / f"{k}.jpg").write_bytes(f"{label} {k}".encode())
    module = types.ModuleType("kagglehub")
    module.dataset_download = lambda name: str(cache)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


def test_kaggle_photos_are_all_there_once_a_fifth_of_each_class_for_testing(fake_kaggle, tmp_path):
    kaggle.fetch_birds(tmp_path / "birds", seed=0)
    sizes = {f"{part}/{label}": len(list((tmp_path / "birds" / part / label).iterdir()))
             for part in ("train", "test") for label in "01"}  # fmt: skip
    assert sizes == {"train/0": 8, "train/1": 4, "test/0": 2, "test/1": 1}
    found = contents(tmp_path / "birds")
    assert sorted(found.values()) == sorted(contents(tmp_path / "cache").values())
    kaggle.fetch_birds(tmp_path / "again", seed=0)
    assert contents(tmp_path / "again") == found


def test_kaggle_out_of_reach_is_one_sentence(fake_kaggle, tmp_path, capsys, monkeypatch):
    def offline(name):
        raise ConnectionError("no route to host")

    fake_kaggle.dataset_download = offline
    assert "network" in fails(capsys, "data", "birds", str(tmp_path / "out"), "--source", "kaggle")
    fake_kaggle.dataset_download = lambda name: str(tmp_path)
    assert "layout" in fails(capsys, "data", "birds", str(tmp_path / "out"), "--source", "kaggle")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert "pip install" in fails(capsys, "data", "birds", str(tmp_path / "out"), "--source", "kaggle")
    assert not (tmp_path / "out").exists()


# the health check


def save(path: Path, mode: str = "RGB", **options) -> Path:
    """Write a small image that depends on the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(path.name.encode())).integers(0, 255, (16, 16, 3))
    Image.fromarray(noise.astype(np.uint8)).convert(mode).save(path, **options)
    return path


def test_health_check_finds_each_planted_fault(tmp_path):
    folder = tmp_path / "set"
    for label, names in ("crow", "abc"), ("heron", "de"):
        for name in names:
            save(folder / label / f"{name}.png")
    whole = save(folder / "crow" / "f.jpg").read_bytes()
    (folder / "crow" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "crow" / "nothing.jpg").write_bytes(b"")
    (folder / "crow" / "page.jpg").write_text("<html>not found</html>")
    (folder / "crow" / "g.png").write_bytes((folder / "crow" / "a.png").read_bytes())
    (folder / "heron" / "h.png").write_bytes((folder / "crow" / "b.png").read_bytes())
    save(folder / "heron" / "i.jpg", "CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6                                             # orientation
    save(folder / "heron" / "j.jpg", exif=exif)
    (folder / "stork").mkdir()
    save(folder / ".ipynb_checkpoints" / "k.png")
    found = {(finding.kind, finding.path.name, finding.fault) for finding in health.check(folder)}
    assert found == {
        ("unreadable", "cut.jpg", True),
        ("unreadable", "nothing.jpg", True),
        ("unreadable", "page.jpg", True),
        ("duplicate", "g.png", False),
        ("duplicate", "h.png", True),
        ("mode", "i.jpg", False),
        ("EXIF", "j.jpg", False),
        ("left out", "stork", True),                             # without images
        ("left out", "set", True),                               # hidden images
        ("class sizes", "set", False),
    }


def test_health_check_survives_any_bytes_and_agrees_with_bird_py(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "crow"
    folder.mkdir()
    noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3)).astype(np.uint8))
    for form in ("jpeg", "png", "webp", "tiff", "bmp", "ppm"):
        noise.save(whole := io.BytesIO(), form)
        for k in range(12):
            content = bytearray(whole.getvalue())
            for place in rng.integers(0, min(80, len(content)) if k % 2 else len(content), 3):
                content[place] = rng.integers(256)
            cut = rng.integers(1, len(content)) if k % 3 == 0 else len(content)
            folder.joinpath(f"{form}{k}.{form}").write_bytes(content[:cut])
    broken = {finding.path for finding in health.check(tmp_path) if finding.kind == "unreadable"}
    pixels = np.empty((3, 32, 32), np.uint8)
    with warnings.catch_warnings(action="ignore"):
        assert broken == {path for path in folder.iterdir() if isinstance(bird.decode_image(path, pixels), str)}
    assert 10 < len(broken) < 70


def test_health_check_refuses_what_bird_py_refuses(drawn, tmp_path):
    with pytest.raises(bird.UserError, match=str(drawn / "train")):
        health.check(drawn)
    with pytest.raises(bird.UserError, match="no images"):
        health.check(tmp_path)


def test_drawn_set_is_healthy(drawn):
    assert [finding.kind for finding in health.check(drawn / "train")] == ["class sizes"]


# the commands


@pytest.mark.slow
def test_commands_write_what_they_say(tmp_path, capsys):
    options = ("--per-class", "4", "--size", "48", "--seed", "3")
    assert status_of("data", "birds", str(tmp_path / "birds"), *options) == 0
    assert (tmp_path / "birds" / "train" / "House-Crow" / "0000.jpg").exists()
    assert status_of("data", "digits", str(tmp_path / "digits")) == 0
    capsys.readouterr()
    assert status_of("data", "check", str(tmp_path / "birds" / "train")) == 0
    assert capsys.readouterr().out.endswith("0 faults\n")
    (tmp_path / "birds" / "train" / "House-Crow" / "0000.jpg").write_text("damaged")
    assert status_of("data", "check", str(tmp_path / "birds" / "train")) == 1
    assert status_of("data", "check", str(tmp_path / "birds")) == 2


def test_mistakes_are_one_sentence_and_status_2(tmp_path, capsys, monkeypatch):
    from torchvision import datasets

    def offline(*_, **__):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(datasets, "MNIST", offline)
    (tmp_path / "full").mkdir()
    kept = tmp_path / "full" / "kept.txt"
    kept.write_text("mine")
    new = str(tmp_path / "new")
    assert "full" in fails(capsys, "data", "birds", str(tmp_path / "full"))
    assert "full" in fails(capsys, "data", "digits", str(tmp_path / "full"))
    assert "kept.txt" in fails(capsys, "data", "digits", str(kept))
    assert "kept.txt" in fails(capsys, "data", "digits", str(kept / "below"))
    assert "--source" in fails(capsys, "data", "birds", new, "--source", "web")
    assert "--per-class" in fails(capsys, "data", "birds", new, "--per-class", "0")
    assert "network" in fails(capsys, "data", "digits", new, "--source", "mnist")
    assert "new" in fails(capsys, "data", "check", new)
    assert "kept.txt" in fails(capsys, "data", "check", str(kept))
    monkeypatch.setattr("nestling.data.picture.ROWS", 0)
    assert "cannot be written" in fails(capsys, "data", "picture", str(tmp_path / "none" / "p.png"))
    assert "OUT" in fails(capsys, "data", "birds").upper()
    assert kept.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


@pytest.mark.slow
def test_picture_is_small_enough_for_a_readme(tmp_path):
    from nestling.data.picture import make_picture

    make_picture(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size <= 600_000
    assert pixels(tmp_path / "drawn.png").width > 1200


# files, and what all commands share


@pytest.mark.parametrize(("code", "heavy"), [
    ("import nestling.submit, nestling.runs", {"torch", "numpy", "rich"}),
    ("import nestling.data.birds", {"torch"}),
    ("from nestling import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass", {"torch", "rich"}),
])
def test_help_and_drawing_import_nothing_heavy(code, heavy):
    code += f"\nimport sys; print(sys.modules.keys() & {heavy})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize(("error", "status", "sentence"), [
    (bird.UserError("two\nlines"), 2, "error: two lines\n"), (vae.UserError("x"), 2, "error: x\n"),
    (UserError("y"), 2, "error: y\n"), (KeyboardInterrupt(), 130, ""),
])
def test_the_user_s_errors_are_one_sentence_and_a_status(error, status, sentence, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(health, "check", fail)
    assert status_of("data", "check", "x") == status
    assert capsys.readouterr().err == sentence
    error = ZeroDivisionError()                                  # any other is ours, and keeps its traceback
    with pytest.raises(ZeroDivisionError):
        cli.main(["data", "check", "x"])


def test_a_folder_that_is_there_is_filled_and_one_of_the_user_s_left_alone(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    (tmp_path / "new.part").mkdir()
    (tmp_path / "new.part" / "thesis.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path(), tmp_path / "link", tmp_path / "new"):
        with files.whole_folder(out) as part:
            (part / "a").write_text("whole")
    assert os.listdir() == os.listdir(tmp_path / "far") == os.listdir(tmp_path / "new") == ["a"]
    assert (tmp_path / "new.part" / "thesis.txt").read_text() == "mine"
    with pytest.raises(ZeroDivisionError), files.whole_folder(tmp_path / "half") as part:
        (part / "a").write_text(str(1 / 0))
    assert {path.name for path in tmp_path.iterdir()} == {"here", "far", "link", "new", "new.part"}


def test_json_is_what_strict_readers_accept(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [math.nan, (math.inf, 1.5)], "b": {"c": -math.inf}})
    assert files.read_json(tmp_path / "a.json", "a", "b") == {"a": [None, [None, 1.5]], "b": {"c": None}}
    for text in ("[1]", "{}", "{", "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=r"a\.json cannot be read as JSON with a"):
            files.read_json(tmp_path / "a.json", "a")


def test_cores_are_counted_where_linux_does_not_tell(monkeypatch):
    assert birds.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")           # as on macOS and Windows
    assert birds.cores() == os.cpu_count()


def test_files_are_written_as_bird_py_writes_them(tmp_path):
    for name in ("say", "prepare_process", "write_atomic", "check_outputs"):
        assert inspect.getsource(getattr(files, name)) == inspect.getsource(getattr(bird, name))
    files.write_json(tmp_path / "a.json", {"a": [1, None, "é"]})
    assert files.read_json(tmp_path / "a.json") == {"a": [1, None, "é"]}
    with pytest.raises(UserError, match="is a folder"):
        files.check_outputs([tmp_path])
    with pytest.raises(UserError, match="cannot be written"):
        files.check_outputs([tmp_path / "none" / "a.json"])
    with pytest.raises(UserError, match="cannot be read"):
        files.read_json(tmp_path / "none.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
