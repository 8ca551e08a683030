"""Laws and references for bird.py."""

import inspect
import io
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, call, start
from PIL import Image
from torch.optim.swa_utils import AveragedModel
from torchvision.datasets import ImageFolder

import bird
import vae

CPU = torch.device("cpu")
OFF: dict = {"hflip": 0, "vflip": 0, "degrees": 0, "min_scale": 1, "log_ratio": 0, "jitter": 0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=seeded(), dtype=torch.uint8)


def test_images_come_in_the_order_of_image_folder(tmp_path):
    for name in ["10/b.jpg", "10/a.PNG", "2/z/q.jpeg", "2/a.webp", "2/.hid.jpg", "2/.jpg", "1/x.tif", "1/notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found, reference = zip(*bird.find_images(tmp_path), strict=True), ImageFolder(tmp_path)
    assert [(str(path), name) for path, name in found] == [
        (path, reference.classes[k]) for path, k in reference.samples]


def tree(root: Path, *names: str) -> Path:
    """Empty files; a name with -> is a link."""
    for name in names:
        path, _, target = name.partition(" -> ")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target) if target else (root / path).write_bytes(b"")
    return root


def test_a_link_to_a_folder_above_is_not_followed_and_others_are(tmp_path):
    tree(tmp_path, "set/a/x.jpg", "set/a/again -> .", "set/a/up -> ..", "set/a/over -> ../b", "set/b/y.jpg",
         "set/b/back -> ../a", "set/c -> b")
    paths, names = bird.find_images(tmp_path / "set")
    found = [str(path.relative_to(tmp_path / "set")) for path in paths]
    assert found == ["a/x.jpg", "a/over/y.jpg", "b/y.jpg", "b/back/x.jpg", "c/y.jpg", "c/back/x.jpg"]
    assert names == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize(("names", "place"), [
    (["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"], "train"),
    (["train/a/1.jpg", "valid/a/1.jpg", "test/a/1.jpg", "images to test/1.jpg"], "train"),
    (["Training/a/1.jpg", "Testing/a/1.jpg"], "Training"), (["seg_train/a/1.jpg", "seg_test/1.jpg"], "seg_train"),
    (["Birds/train/a/1.jpg", "Birds/test/a/1.jpg"], "Birds/train"), (["images/a/1.jpg", "test/1.jpg"], "images"),
    (["train/a/1.jpg", "__MACOSX/train/a/._1.jpg"], "train"),
    (["crow/young/1.jpg", "crow/old/1.jpg", "valley quail/1.jpg"], None), (["1.jpg", "sub/notes.txt"], None)])
def test_class_folders_one_level_deeper_are_named(names, place, tmp_path):
    tree(tmp_path, *names)
    if place is None:
        assert len(bird.find_images(tmp_path)[0]) == sum(name.endswith("jpg") for name in names)
    else:
        with pytest.raises(bird.UserError, match=f"one level deeper; name {tmp_path / place}[.]$"):
            bird.find_images(tmp_path)


def test_what_is_not_read_is_told_by_folder_kind_and_number(tmp_path):
    tree(tmp_path, "a/1.jpg", "a/2.jfif", "a/.x.jpg", "b/1.heic", "b/sub/2.heic", "c/.keep", ".git/x.py", "1.png")
    assert bird.left_out(tmp_path, bird.find_images(tmp_path)[0]) == [
        (tmp_path, "1 .png files are not read"), (tmp_path / "a", "1 .jfif files are not read"),
        (tmp_path / "b", "1 .heic files are not read"), (tmp_path / "b/sub", "1 .heic files are not read"),
        (tmp_path / "b", "it holds no images and is no class"),
        (tmp_path / "c", "it holds no images and is no class"), (tmp_path, "1 hidden images are left aside")]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_hidden_and_broken_files_are_not_trained_on(content, few, tmp_path, capsys):
    folder = shutil.copytree(few, tmp_path / "set")
    bad = sorted(folder.rglob("*.jpg"))[3]
    shutil.copytree(bad.parent, folder / ".cache")
    shutil.copy(bad, bad.parent / ".x.jpg")
    bad.write_bytes(content)
    data = bird.load_data(folder, 0)
    assert data.classes == sorted(path.name for path in few.iterdir())
    assert sorted([*data.train.tolist(), *data.val.tolist()]) == [i for i in range(36) if i != 3]
    said = capsys.readouterr().err
    assert f"{bad} cannot be read" in said
    assert "13 hidden images are left aside" in said


QUARTER_TURN = Image.Exif()
QUARTER_TURN[0x0112] = 6
SAVED = {
    "a.jpg": lambda p, f: p.save(f, quality=95),
    "large.jpg": lambda p, f: p.resize((1536, 1024)).save(f, quality=95),      # decoded at a fraction
    "exif.jpg": lambda p, f: p.transpose(Image.Transpose.ROTATE_90).save(f, exif=QUARTER_TURN),
    "cmyk.jpg": lambda p, f: p.convert("CMYK").save(f, quality=95),
    "rgba.png": lambda p, f: p.convert("RGBA").save(f),
    "palette.png": lambda p, f: p.quantize(256).save(f),
    "a.webp": lambda p, f: p.save(f, lossless=True),
    "grey, 16 bits.png": lambda p, f: Image.fromarray(np.asarray(p.convert("L"), "uint16") * 257).save(f),
    "white, transparent.png": lambda p, f: Image.new("RGBA", p.size, (9, 9, 9, 0)).save(f),
    "white, palette.png": lambda p, f: Image.new("P", p.size, 0).save(f, transparency=0)}


@pytest.mark.parametrize("name", SAVED)
def test_every_format_decodes_to_the_same_picture(name, tmp_path):
    y, x = np.mgrid[0:64, 0:96] / 96                       # differs from each side and in each channel
    picture = Image.fromarray((np.stack([x, y, (1 - x) * y], axis=-1) * 255).astype(np.uint8))
    SAVED[name](picture, tmp_path / name)
    pixels = np.empty((3, 64, 64), np.uint8)
    assert bird.decode_image(tmp_path / name, pixels) == 1.5
    seen = (picture.convert("L") if "grey" in name else picture).convert("RGB").resize((64, 64))
    expected = 255 if "white" in name else np.asarray(seen, int).transpose(2, 0, 1)
    assert abs(pixels - expected).mean() < 4


def turned_jpeg(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """A JPEG that EXIF turns by 90 degrees, with one more tag of an unusual type."""
    entries = sorted([(0x0112, 3, 1, b"\6\0"), (tag, kind, count, value)])
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(
        struct.pack("<HHI", *head) + value.ljust(4, b"\0") for *head, value in entries) + bytes(4)
    Image.new("RGB", (60, 40), "teal").save(buffer := io.BytesIO(), "JPEG", exif=exif)
    return buffer.getvalue()


def encoded(form: str, **options) -> bytearray:
    Image.radial_gradient("L").convert("RGB").save(buffer := io.BytesIO(), form, **options)
    return bytearray(buffer.getvalue())


def avif_with_a_damaged_block() -> bytes:
    data = encoded("AVIF")
    start = data.index(b"mdat") + 40
    data[start:start + 64] = bytes(64)
    return bytes(data)


GIF_OF_177_MILLION_PIXELS = (b"GIF89a\xf4\x33\xf4\x33\x80\0\0\0\0\0\0\0\0!\xf9\4\1\0\0\0\0,"
                             b"\0\0\0\0\1\0\1\0\0\2\2L\1\0;")


@pytest.mark.parametrize(("content", "outcome"), [
    *[(turned_jpeg(*tag), 2 / 3) for tag in [
        (0x011A, 2, 3, b"72"), (0x0100, 2, 4, b"60px"), (0x0106, 3, 2, b"ab"), (0x010E, 11, 1, b"abcd"),
        (0x0103, 4, 1, b"zzzz"), (0x829A, 1, 1, b"a")]],
    (encoded("PNG", exif=b"Exif\0\0garbage"), 1.0), (avif_with_a_damaged_block(), "decode"),
    (GIF_OF_177_MILLION_PIXELS, "are too many"), (b"", "cannot identify"), (None, "no regular file")])
def test_a_photo_is_used_where_its_pixels_are_whole_and_else_broken(content, outcome, tmp_path):
    path, pixels = tmp_path / "a.jpg", np.ones((3, 64, 64), np.uint8)
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with warnings.catch_warnings(action="ignore"):                 # of bombs, as `decode` does
        found = bird.decode_image(path, pixels)
    assert found == pytest.approx(outcome) if isinstance(outcome, float) else outcome in found
    assert (pixels == 0).all() == isinstance(outcome, str)


def test_what_is_whole_of_a_truncated_photo_is_used(tmp_path, capsys):
    whole = encoded("JPEG", quality=95)
    for name, content in {"0": whole, "1": whole[:-2], "2": whole[:len(whole) // 2], "3": whole[:200]}.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    pixels, aspect, broken = bird.decode(sorted(tmp_path.iterdir()), "left out")
    assert (broken, aspect.tolist()) == ([3], [1, 1, 1, 1])
    assert (pixels[1].int() - pixels[0]).abs().max() <= 1
    assert (pixels[2, :, :100].int() - pixels[0, :, :100]).abs().max() <= 1
    said = capsys.readouterr().err
    assert (said.count("is damaged"), said.count("cannot be read")) == (2, 1)


def test_near_duplicates_are_found_and_strangers_are_not(drawn):
    paths, _ = bird.find_images(drawn / "train")
    groups = bird.near_duplicates(*bird.decode(paths, "")[:2])
    index = {str(path.relative_to(drawn)): i for i, path in enumerate(paths)}
    copies = json.loads((drawn / "copies.json").read_text())       # {copy: {"of": original, ...}}
    found = [bool(groups[index[copy]] == groups[index[made["of"]]]) for copy, made in copies.items()]
    assert sum(found) >= 0.8 * len(copies)
    assert len(groups.unique()) == len(paths) - sum(found)         # no other two share a group


def test_the_split_is_stratified_and_cuts_no_group(drawn, few, monkeypatch):
    data, again, other = (bird.load_data(drawn / "train", seed) for seed in (0, 0, 1))
    assert sorted([*data.train.tolist(), *data.val.tolist()]) == list(range(len(data.labels)))
    assert (data.labels[data.val].bincount() - data.labels.bincount() / 5).abs().max() <= 2
    assert torch.equal(data.val, again.val)
    assert not torch.equal(data.val, other.val)
    pairs = torch.arange(36) // 2
    monkeypatch.setattr(bird, "near_duplicates", lambda pixels, aspect: pairs)
    for data in (bird.load_data(few, seed) for seed in range(5)):
        assert not set(pairs[data.train].tolist()) & set(pairs[data.val].tolist())


@pytest.mark.parametrize(("settings", "m", "flipped"), [
    (OFF, 1, ()), ({"hflip": 0, "vflip": 0}, 0, ()), (OFF | {"hflip": 1}, 1, 3), (OFF | {"vflip": 1}, 1, 2)])
def test_augmentation_switched_off_is_the_photo_and_flips_mirror_it(settings, m, flipped):
    x = noise(3, 3, 64, 64)
    out = bird.augment(x, 64, bird.Config(**settings), m, seeded())
    torch.testing.assert_close(out, x.flip(flipped) / 255, atol=1e-3, rtol=0)


def test_each_photo_is_augmented_by_a_draw_of_its_own_and_stays_in_range():
    out = bird.augment(noise(1, 3, 40, 40).expand(16, 3, 40, 40), 32, bird.Config(), 1, seeded())
    assert len(out.flatten(1).unique(dim=0)) == 16
    assert 0 <= out.min() < out.max() <= 1


def test_jitter_is_of_brightness_contrast_saturation_and_hue():
    x = 96 + noise(8, 3, 16, 16) // 4                              # mid-range: nothing is clamped
    out = bird.augment(x, 16, bird.Config(**OFF | {"jitter": 0.3}), 1, seeded()).flatten(2)[..., None]
    x, grey = x / 255, (x / 255).mean(dim=1, keepdim=True)
    terms = torch.stack([x, grey.expand_as(x), torch.ones_like(x)], dim=-1).flatten(2, 3).double()
    fitted = torch.linalg.lstsq(terms, out.double()).solution      # out is linear in x, its grey and 1
    torch.testing.assert_close(terms @ fitted, out.double(), atol=1e-4, rtol=0)
    own, of_grey, constant = fitted[..., 0].unbind(dim=2)          # (8, 3), a column a channel
    contrast = (own + of_grey) / (own + of_grey + constant / x.mean(dim=(1, 2, 3))[:, None])
    for factor in (own / (own + of_grey), contrast):               # saturation is the first
        assert 0.69 < factor.min() < 0.9 < 1.1 < factor.max() < 1.31
        assert factor.std(dim=1).max() < 0.01 < ((own + of_grey) / contrast).std(dim=1).min()      # of hue


def test_a_crop_is_cut_where_its_affine_map_says():
    columns = torch.arange(40, dtype=torch.uint8).expand(4, 40, 40)
    ramps = torch.stack([columns, columns.mT, columns], dim=1)     # the values are the places
    theta = torch.rand(4, 2, 3, generator=seeded()) * 0.6 - 0.3    # stays in the photo
    u = ((torch.arange(24) + 0.5) / 12 - 1).expand(24, 24)         # -1..1
    places = torch.einsum("nij,jhw->nihw", theta, torch.stack([u, u.mT, torch.ones(24, 24)]))
    out = bird.crop(ramps, theta, 24)[:, :2] * 255
    torch.testing.assert_close(out, 20 * places + 19.5, atol=1e-2, rtol=0)


def test_mixed_targets_hold_the_shares_of_the_pixels():
    photos = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)         # photo k is all k
    for seed in range(20):
        mixed, shares = bird.mixup(photos, torch.eye(4), seeded(seed))
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
        torch.testing.assert_close(mixed, torch.einsum("ij,jchw->ichw", shares, photos))
        assert 0.5 <= shares.diagonal().min() <= shares.diagonal().max() <= 1


@pytest.mark.parametrize(("classes", "batch_norm"), [(3, True), (12, True), (10, False)])
def test_a_saved_model_loads_in_anyones_hands(classes, batch_norm, tmp_path):
    net, model = bird.BirdNet(classes, batch_norm=batch_norm).eval(), bird.BirdNet()
    net.extra["classes"] = [f"species {k}" for k in range(classes)]
    torch.save(net.state_dict(), tmp_path / "bird.pth")
    model.load_state_dict(torch.load(tmp_path / "bird.pth"))
    assert model.eval().extra == net.extra
    assert sum(p.numel() for p in model.parameters()) < 30e6
    assert batch_norm == any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    for x in (torch.rand(2, 3, 100, 140), torch.rand(2, 3, 33, 47)):
        assert net(x).shape == (2, classes)
        torch.testing.assert_close(model(x), net(x))
        torch.testing.assert_close(bird.load_model(tmp_path / "bird.pth")(x), net(x), atol=1e-4, rtol=1e-4)


def test_the_cam_centre_is_where_the_evidence_for_the_predicted_class_is():
    net, h = bird.BirdNet(3).eval(), torch.zeros(3, 256, 5, 5)
    h[0, 7, 1, 3] = 2                                              # one cell of row 1, column 3
    h[1, 7, 1, 3] = h[1, 7, 3, 3] = 2                              # two cells: their middle
    h[:, 8, 4, 0] = 9                                              # evidence for another class
    net.head.weight.data[:], net.head.bias.data = 0, torch.tensor([0.0, 1.0, 0.0])
    net.head.weight.data[1, 7], net.head.weight.data[2, 8] = 1, 1e-3
    torch.testing.assert_close(net.cam_centre(h), torch.tensor([[0.4, -0.4], [0.4, 0.0], [0.0, 0.0]]))


def test_muon_is_that_of_torch_on_filters_as_matrices():
    filters = torch.nn.Parameter(torch.randn(32, 16, 3, 3, generator=seeded()))
    matrix = torch.nn.Parameter(filters.detach().flatten(1).clone())
    ours = bird.Muon([filters], lr=0.1, weight_decay=0.5)
    reference = torch.optim.Muon([matrix], 0.1, 0.5, 0.9, ns_steps=3, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        before, filters.grad = matrix.detach().clone(), torch.randn(filters.shape, generator=seeded(seed))
        matrix.grad = filters.grad.flatten(1).clone()
        ours.step()
        reference.step()                                           # multiplies in bfloat16
        assert (filters.flatten(1) - matrix).norm() < 0.02 * (matrix - before).norm()
        filters.data.copy_(matrix.detach().view_as(filters))


def test_the_learning_rate_warms_up_then_falls_to_zero():
    rates = [bird.lr_multiplier(k / 100, bird.Config(warmup=0.15)) for k in range(121)]
    assert [rates[0], rates[15], *rates[100:]] == pytest.approx([0, 1] + 21 * [0])
    assert (np.diff(rates[:16]) > 0).all()
    assert (np.diff(rates[15:101]) < 0).all()
    assert {bird.lr_multiplier(k / 10, bird.Config(schedule="constant")) for k in range(11)} == {1.0}


@pytest.mark.parametrize(("epochs", "photos"), [(1, 28), (20, 4000), (190, 4000), (304, 50_000)])
def test_images_grow_with_progress_and_with_the_photos_seen(epochs, photos):
    sizes = [bird.image_size(k / 100, epochs, photos) for k in range(101)]
    assert sizes == sorted(sizes)
    assert all(size % 16 == 0 and 64 <= size <= 208 for size in sizes)
    assert sizes[0] < sizes[-1] <= bird.image_size(1.0, 2 * epochs, photos)


def test_as_many_epochs_are_planned_as_fit_the_seconds():
    row, times = {"epoch": 20, "progress": 0.2, "size": 64, "epoch_seconds": 2}, np.geomspace(1, 9999, 99)
    plans = [bird.fit_epochs(t, row, 4000) for t in times]
    assert plans == sorted(plans) == [bird.fit_epochs(2 * t, row | {"epoch_seconds": 4}, 4000) for t in times]
    assert (plans[0], plans[-1]) == (21, 304)
    assert set(plans) <= {21, *bird.EPOCHS}
    sizes = [[bird.image_size(0.2 + 0.8 * k / (n - 20), n, 4000) for k in range(n - 20)] for n in plans]
    used = [2 * sum(size**2 + 48**2 for size in some) / (64**2 + 48**2) for some in sizes]
    assert all(0.7 < u / t < 1 for u, t, n in zip(used, times, plans, strict=True) if 60 < n < 304)


def test_the_ema_has_a_low_decay_at_first():
    linear = torch.nn.Linear(1, 1, bias=False)
    ema, expected = AveragedModel(linear, multi_avg_fn=bird.ema_fn(0.5)), 0.0
    for n in range(20):
        linear.weight.data.fill_(n)
        ema.update_parameters(linear)
        expected += (1 - min(0.5, (1 + n) / (10 + n))) * (n - expected)
        assert next(ema.parameters()).item() == pytest.approx(expected)


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0}, {"class_weights": False}])
def test_the_loss_is_the_weighted_cross_entropy(settings):
    cfg, rows = bird.Config(dropout=0, **settings), torch.arange(8)
    data = bird.Data(noise(8, 3, 64, 64), rows % 3, rows, rows, ["a", "b", "c"])
    training, x, target = bird.Training(data, cfg, CPU), data.pixels / 255, F.one_hot(rows % 3).float()
    with torch.no_grad(), bird.autocast(CPU):
        log_p = training.net.train()(x).float().log_softmax(dim=1)
    weights = 8 / (3 * torch.tensor([3, 3, 2])) if cfg.class_weights else torch.ones(3)
    smooth = (1 - cfg.label_smoothing) * target + cfg.label_smoothing / 3
    loss, accuracy = training.step(x, target, 0.0)
    torch.testing.assert_close(loss, -(smooth * weights * log_p).sum(dim=1).mean())
    assert accuracy == (log_p.argmax(dim=1) == rows % 3).float().mean()


@pytest.mark.parametrize(("losses", "patience", "epochs", "best"), [
    (range(1, 99), 0.05, 11, 1), (range(1, 99), 0.2, 21, 1), ([3, 1, 2, math.nan], 0.2, 3, 2)])
def test_a_rising_or_infinite_loss_ends_the_training(losses, patience, epochs, best, simulation):
    simulation.losses = list(losses)
    assert simulation.train(epochs=100, patience=patience) == 0
    assert (len(simulation.history()), torch.load(simulation.path)["head.bias"][0]) == (epochs, best)
    before, simulation.losses = simulation.path.read_bytes(), [math.inf]
    assert simulation.train(epochs=100) == 2                       # never finite: nothing is written
    assert simulation.path.read_bytes() == before


@pytest.mark.parametrize(("change", "sentence"), [
    ("", "resuming after epoch 2"), ("seed", "seed 0, now 1"), ("data", "other data"),
    ("broken", "starting anew"), ("--no-resume", "")])
def test_a_checkpoint_continues_only_the_same_training(change, sentence, simulation, capsys):
    simulation.losses, checkpoint = [3.0, 2.0], simulation.path.with_suffix(".checkpoint.pt")
    assert simulation.train(epochs=4) == 130                       # Ctrl-C in the third epoch
    assert "same command resumes" in capsys.readouterr().err
    simulation.data.pixels[0] += change == "data"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000 if change == "broken" else None])
    simulation.losses, simulation.epoch = None, 0
    status = simulation.train(change != "--no-resume", epochs=4, seed=int(change == "seed"))
    said = "".join(capsys.readouterr())
    known = ("resuming after epoch 2", "starting anew", "seed 0, now 1", "other data")
    assert "".join(words for words in known if words in said) == sentence
    if change in ("seed", "data"):                                 # nothing is overwritten
        assert (status, simulation.epoch, checkpoint.exists()) == (2, 0, True)
        return
    assert (status, checkpoint.exists()) == (0, False)
    assert (simulation.epoch, len(simulation.history())) == (4 if change else 2, 4)


@pytest.mark.parametrize(("first", "later"), [(1, 1), (1, 2), (1, 0.5), (1e-3, 1e-3)])
def test_the_budget_is_kept_and_used_on_a_machine_whose_pace_changes(first, later, simulation, monkeypatch):
    def plan(*args, fit_epochs=bird.fit_epochs):
        simulation.pace = later                                    # after the first epoch
        return fit_epochs(*args)
    simulation.pace = first
    monkeypatch.setattr(bird, "fit_epochs", plan)
    monkeypatch.setattr(bird, "save", lambda path, state: None)    # checkpoints cost time
    assert simulation.train(budget=15) == 0
    assert (0.85 * 900 if first == 1 else 0) < simulation.now <= 900
    assert (len(simulation.history()) == 304) == (first < 1)      # the longest plan
    assert simulation.lr[-1] < 0.01 * max(simulation.lr)
    plans = [row["epochs"] for row in simulation.history()[1:]]
    assert (plans[-1] > 1.3 * plans[0]) == (later == 0.5)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(few, bird_model, tmp_path):
    for seed in (0, 1):
        bird.train(few, tmp_path / f"{seed}.pth", bird.Config(epochs=1, batch_size=8, seed=seed))
    assert (tmp_path / "0.pth").read_bytes() == bird_model.read_bytes() != (tmp_path / "1.pth").read_bytes()


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_bytes(few, tmp_path):
    bird.train(few, tmp_path / "whole.pth", bird.Config(epochs=5))
    command = ("bird.py", few, "train", "bird.pth", "--epochs", 5)
    process = start(*command, cwd=tmp_path)
    while process.poll() is None and not (tmp_path / "bird.checkpoint.pt").exists():
        time.sleep(0.01)
    process.kill()                                                 # SIGKILL, after the first epoch
    process.communicate()
    assert "resuming after epoch" in call(*command, cwd=tmp_path).stdout
    assert (tmp_path / "bird.pth").read_bytes() == (tmp_path / "whole.pth").read_bytes()
    assert (tmp_path / "bird.history.jsonl").read_text().count("\n") == 5


@pytest.mark.slow
def test_processes_of_torchrun_average_their_gradients(few, tmp_path):
    (tmp_path / "rank.py").write_text(f"""import sys, torch
sys.path.insert(0, {str(ROOT)!r})
import bird
def step(self, x, *args, step=bird.Training.step):
    result, rank = step(self, x, *args), torch.distributed.get_rank()
    torch.save([x, *(p.grad for p in self.net.parameters())], f"rank{{rank}}.pt")
    return result
bird.Training.step = step
sys.exit(bird.run(bird.main, sys.argv[1:]))
""")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "rank.py", few, "train", "bird.pth", "--epochs", "1"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("saved bird.pth")) == (0, 1), done.stderr
    (x, *gradients), (y, *others) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert not torch.equal(x, y)                                   # other photos, the same gradients
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    assert len(bird.load_model(tmp_path / "bird.pth").extra["classes"]) == 3


def seen_by(layer: torch.nn.Module, net: bird.BirdNet, pixels: torch.Tensor, tta: bool) -> list[torch.Tensor]:
    """The inputs of a layer while `predict` runs."""
    seen: list[torch.Tensor] = []
    with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float())):
        bird.predict(net, pixels, tta)
    return seen


def test_test_time_augmentation_is_the_mean_over_two_views_and_their_mirror_images(few, bird_model):
    net, pixels = bird.load_model(bird_model), bird.decode(bird.find_images(few)[0], "")[0]
    views, (alone,) = (seen_by(net.features, net, pixels, tta) for tta in (True, False))
    assert [sum(torch.equal(a, b.flip(3)) for b in views) for a in views] == [1, 1, 1, 1]
    with torch.no_grad(), bird.autocast(CPU):
        p = torch.stack([net.classify(net.features(x)).float().softmax(dim=1) for x in (alone, *views)])
    torch.testing.assert_close(bird.predict(net, pixels, tta=False), p[0])
    torch.testing.assert_close(bird.predict(net, pixels), p[1:].mean(dim=0))


def test_batch_statistics_are_recalibrated_to_those_of_what_predict_sees(bird_model, monkeypatch):
    monkeypatch.setattr(bird.BirdNet, "cam_centre", lambda self, h: torch.zeros(len(h), 2))
    net, before, pixels = bird.load_model(bird_model), bird.load_model(bird_model), noise(6, 3, 96, 96)
    bird.recalibrate(net, pixels)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before.parameters(), strict=True))
    norm = next(module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d))
    x = torch.cat(seen_by(norm, net, pixels, tta=True))
    torch.testing.assert_close(norm.running_mean, x.mean(dim=(0, 2, 3)), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(norm.running_var, x.var(dim=(0, 2, 3)), atol=0.05, rtol=0.1)


@pytest.mark.slow
def test_it_learns_drawn_birds(few, tmp_path):
    bird.train(few, tmp_path / "bird.pth", bird.Config(epochs=14, batch_size=7))
    data, net = bird.load_data(few, 0), bird.load_model(tmp_path / "bird.pth")
    right = bird.predict(net, data.pixels).argmax(dim=1) == data.labels
    assert right.float().mean() > 0.8                              # chance is a third
    assert right[data.val].float().mean() > 0.6


def test_the_same_photos_have_the_same_labels_in_any_folder(few, bird_model, tmp_path, capsys):
    net, (paths, names) = bird.load_model(bird_model), bird.find_images(few)
    pixels, labels = bird.decode(paths, "")[0], [net.extra["classes"].index(name) for name in names]
    net.head.bias.data -= bird.predict(net, pixels).log().mean(dim=0)          # else one class wins
    expected = bird.predict(net, pixels).argmax(dim=1)
    expected[30] = (bird.predict(net, 0 * pixels[:1]).argmax() + 1) % 3        # not what is seen in black
    net.extra["counts"] = [int(k == expected[30]) for k in range(3)]
    assert len(expected.unique()) == 3
    bird.save(tmp_path / "bird.pth", net.state_dict())
    for kind, first, place in (("whole", 0, "{name}"), ("lacking", 24, "{name}"), ("flat", 0, "."),
                               ("dummy", 0, "unknown")):
        for i, (path, name) in list(enumerate(zip(paths, names, strict=True)))[first:]:
            (folder := tmp_path / kind / place.format(name=name)).mkdir(parents=True, exist_ok=True)
            (folder / f"{i:02d}.jpg").write_bytes(path.read_bytes() if i != 30 else b"")
        bird.test(tmp_path / kind, tmp_path / "bird.pth", tmp_path / "bird.csv", CPU)
        rows = (tmp_path / "bird.csv").read_text().splitlines()
        assert rows == ["Predicted_Label", *map(str, expected[first:].tolist())]
        out, err = capsys.readouterr()
        assert "30.jpg cannot be read" in err
        score = np.mean(bird.f1(labels[first:], expected[first:]))
        assert ("no score" if kind in ("flat", "dummy") else f"score {score:.4f}") in out


def test_scores_are_those_of_the_assignment():
    labels, predicted = (torch.randint(k, (200,), generator=seeded(k)) for k in (4, 6))
    hits = [2 * int(((labels == k) & (predicted == k)).sum()) for k in range(4)]
    macro = np.mean([hits[k] / int((labels == k).sum() + (predicted == k).sum()) for k in range(4)])
    assert bird.f1(labels, predicted) == pytest.approx((macro, sum(hits) / 400))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file(broken, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")
    (tmp_path / "bird.pth").write_bytes(b"earlier")
    monkeypatch.setattr(bird.os, broken, full)
    with pytest.raises(bird.UserError, match=r"bird.pth cannot be written \(No space left"):
        bird.save(tmp_path / "bird.pth", {"x": torch.zeros(3)})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"earlier"]


def test_a_link_is_followed_and_two_writers_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "link.csv").symlink_to("far/o.csv")
    bird.write_atomic(tmp_path / "link.csv", b"new")
    assert ((tmp_path / "far/o.csv").read_bytes(), (tmp_path / "link.csv").is_symlink()) == (b"new", True)

    def other(_):                                                  # another process writes meanwhile
        monkeypatch.undo()
        monkeypatch.setattr(os, "getpid", lambda: 1)
        bird.write_atomic(tmp_path / "a", b"second")
        monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", other)
    bird.write_atomic(tmp_path / "a", b"first")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert {path.name for path in tmp_path.iterdir()} == {"far", "link.csv", "a"}


def test_a_second_training_of_the_same_model_is_refused(tmp_path):
    refused = pytest.raises(bird.UserError, match="another training writes")
    with bird.lock(tmp_path / "a.pth"), bird.lock(tmp_path / "b.pth"), refused, bird.lock(tmp_path / "a.pth"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_output_that_ends_does_not_end_the_work(tmp_path):
    code = "from nestling.files import say; say('a' * 9); say('b'); say('c', 'stderr')"    # as bird.say (tested)
    for disk_is_full in ({"stdout"}, {"stdout", "stderr"}):
        with open("/dev/full", "w") as full, open(tmp_path / "said", "w+") as said:
            streams = {name: full if name in disk_is_full else said for name in ("stdout", "stderr")}
            assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, **streams).returncode == 0
            assert (tmp_path / "said").read_text() == ("" if "stderr" in disk_is_full else "c\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_is_told_how_to_go_on(number, status, capsys, monkeypatch):
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)       # pytest-xdist's workers ignore it
    assert bird.run(lambda _: signal.raise_signal(number), []) == status
    assert "the same command resumes" in capsys.readouterr().err
    signal.signal(signal.SIGHUP, signal.SIG_IGN)                   # as nohup starts it
    assert bird.run(lambda _: signal.raise_signal(signal.SIGHUP), []) == 0
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
                                   torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("another")])
def test_want_of_memory_is_one_sentence_and_other_errors_are_ours(error, capsys):
    def main(_):
        raise error
    if "another" in str(error):
        with pytest.raises(RuntimeError):
            bird.run(main, [])
    else:
        assert bird.run(main, []) == 2
        assert capsys.readouterr().err.startswith("error: memory is short")


@pytest.mark.slow
def test_it_trains_when_pasted_into_a_notebook_s_cell(few, tmp_path):
    text = (ROOT / "bird.py").read_text().split('if __name__ == "__main__"')[0]
    code = f"exec(compile({text!r}, '<cell>', 'exec'), globals()); del __file__\n"
    code += f"main([{str(few)!r}, 'train', 'bird.pth', '--epochs', '1'])"
    (tmp_path / "cell.py").write_text(code)
    done = subprocess.run([sys.executable, "cell.py"], cwd=tmp_path, capture_output=True, text=True)
    assert "saved bird.pth" in done.stdout, done.stderr


@pytest.fixture(scope="session")
def wrong(few, bird_model, tmp_path_factory) -> Path:
    """Folders and models that each have one fault."""
    out, (first, second, _) = tmp_path_factory.mktemp("wrong"), sorted(few.iterdir())
    (out / "text" / "a").mkdir(parents=True)
    (out / "text" / "a" / "a.txt").write_text("no image")
    shutil.copytree(few, out / "deep" / "train")
    shutil.copytree(first, out / "small" / "a")
    shutil.copytree(second, out / "small" / "b", ignore=lambda folder, names: sorted(names)[1:])
    state = torch.load(bird_model)
    lacking = {name: value for name, value in state.items() if name != "head.bias"}
    for name, value in {"class": Path(), "vae": vae.VAE().state_dict(), "lacking": lacking,
                        "huge": state | {"features.0.weight": 1e38 * state["features.0.weight"]},
                        "nan": state | {"head.bias": torch.tensor([1, torch.nan, 1])},
                        "key": state | {5: torch.zeros(2)}, "list": [1, 2]}.items():
        torch.save(value, out / f"{name}.pth")
    many = {"classes": list(map(str, range(10**5))), "counts": [1] * 10**5}    # 0.2 GB, if it were built
    for name, change in {"none": {"classes": None}, "twice": {"classes": ["a", "a", "b"]}, "size": {"size": 5000},
                         "text": {"size": "128"}, "batch": {"batch_norm": None}, "counts": {"counts": [1]},
                         "path": {"classes": ["a", "../b", "c"]}, "many": many}.items():
        head = {"head.weight": torch.zeros(1, 1).expand(10**5, 512)} if name == "many" else {}
        torch.save(state | head | {"_extra_state": state["_extra_state"] | change}, out / f"x{name}.pth")
    flipped = bytearray(bird_model.read_bytes())
    flipped[len(flipped) // 2] ^= 4
    (out / "flipped.pth").write_bytes(flipped)
    os.mkfifo(out / "fifo.pth")
    code = b"cos\nmkdir\n(V%b\ntR." % bytes(out / "proof")         # a pickle that calls os.mkdir
    for name, content in {"cut": bird_model.read_bytes()[:99_999], "empty": b"", "code": code}.items():
        (out / f"{name}.pth").write_bytes(content)
    return out


@pytest.mark.parametrize(("command", "sentence"), [
    *[(f"WRONG/{folder} {mode}", sentence) for mode in ("train WRONG/m.pth", "test MODEL")
      for folder, sentence in {"missing": "cannot be read", "cut.pth": "cannot be read",
                               "text": "holds no images", "deep": "WRONG/deep/train"}.items()],
    *[(f"WRONG/{folder} train WRONG/m.pth", "2 class folders") for folder in ("small", "small/a")],
    ("FEW test WRONG", "cannot be read"), ("FEW test WRONG/missing.pth", "cannot be read"),
    *[(f"FEW test WRONG/{name}.pth", "no whole PyTorch") for name in (
        "cut", "empty", "code", "class", "list", "flipped")],
    *[(f"FEW test WRONG/{name}.pth", "no model of") for name in (
        "vae", "lacking", "key", "xnone", "xtwice", "xsize", "xtext", "xbatch", "xcounts", "xpath",
        "xmany", "nan", "huge")],
    ("FEW test WRONG/fifo.pth", "no file"),
    ("FEW test MODEL --csv WRONG", "is a folder"), ("FEW train WRONG", "is a folder"), ("FEW train .", "is a folder"),
    ("FEW test MODEL --csv WRONG/fifo.pth", "a pipe"), ("FEW train WRONG/fifo.pth", "a pipe"),
    ("FEW test MODEL --csv MODEL", "is read too"), ("FEW test MODEL --csv PHOTO", "is read too"),
    ("FEW train PHOTO", "is read too"),
    *[(f"FEW train WRONG/m.pth --seed {seed}", "--seed") for seed in (-1, 2**63, 20261129204712345678)],
    ("FEW learn WRONG/m.pth", "invalid choice"), ("FEW", "required"),
    ("FEW train WRONG/m.pth --epochs 0", "--epochs"), ("FEW train WRONG/m.pth --budget nan", "--budget"),
    ("FEW train WRONG/m.pth --device mps", "no mps device"),
    ("FEW train WRONG/nowhere/m.pth", "cannot be written"), ("FEW train /sys/m.pth", "cannot be written")])
def test_bad_input_gives_a_sentence_and_fails(command, sentence, few, wrong, bird_model, capsys, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(bird, "Training", None)                    # no input here may start one
    photo, before = bird.find_images(few)[0][0], bird_model.read_bytes()
    for name, path in {"FEW": few, "WRONG": wrong, "MODEL": bird_model, "PHOTO": photo}.items():
        command, sentence = command.replace(name, str(path)), sentence.replace(name, str(path))
    with pytest.raises(SystemExit, match="2"):                     # argparse exits by itself
        raise SystemExit(bird.run(bird.main, command.split()))
    (error,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    assert sentence in error
    assert not any((wrong / name).exists() for name in ("m.pth", "m.pth.lock", "proof"))
    assert bird_model.read_bytes() == before
    assert photo.stat().st_size > 500


@pytest.mark.slow
def test_it_runs_alone_in_an_empty_folder(tmp_path):
    shutil.copy(ROOT / "bird.py", tmp_path)
    command = [sys.executable, "-I", "bird.py", "--help"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr, os.listdir(tmp_path)) == (0, "", ["bird.py"])
    assert "python bird.py DATASET train bird.pth" in shown.stdout


@pytest.mark.parametrize("program", ["bird.py", "vae.py"])
def test_no_line_is_longer_than_100_characters(program):
    assert [line for line in (ROOT / program).read_text().splitlines() if len(line) > 100] == []


@pytest.mark.parametrize("name", [
    "UserError", "seed_everything", "pick_device", "write_atomic", "check_outputs", "lock", "save", "read_file", "load",
    "load_checkpoint", "fingerprint", "record", "generator", "ema_fn", "say", "prepare_process",
    "run"])
def test_shared_helpers_are_identical(name):
    assert inspect.getsource(getattr(bird, name)) == inspect.getsource(getattr(vae, name))
