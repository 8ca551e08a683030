"""Laws of bird.py: what goes in comes out right side up, in order, the same each time, and nothing breaks it."""

import ast
import inspect
import itertools
import json
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, call, start
from PIL import Image
from torchvision.datasets import ImageFolder

import bird
import vae
from nestling.data.drawn import SPECIES, draw

STILL = bird.Config(flip=0, upside_down=0, turn=0, zoom=1, stretch=0, colour=0, mix=0)   # augmentation switched off


@pytest.fixture(scope="session")
def few(drawn, tmp_path_factory) -> Path:
    """Three classes of twelve drawn photos, for the tests that train."""
    out = tmp_path_factory.mktemp("few") / "birds"
    for folder in sorted((drawn / "train").iterdir())[:3]:
        (out / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:12]:
            shutil.copy(path, out / folder.name)
    return out


@pytest.fixture(scope="session")
def model(few, tmp_path_factory) -> Path:
    """A model trained for one epoch on `few`."""
    path = tmp_path_factory.mktemp("model") / "bird.pth"
    bird.train(few, path, bird.Config(epochs=1, batch=8))
    return path


def picture(size: int = 64) -> Image.Image:
    """A smooth picture that looks different from each side and in each channel."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    return Image.fromarray((np.stack([x, y, (1 - x) * y], axis=-1) * 255).astype(np.uint8))


def refused(capsys, *args: object) -> str:
    """Runs bird.py on bad input and returns its one sentence, after checking that it is one and the status is 2."""
    with pytest.raises(SystemExit) as stop:      # argparse exits by itself, the rest comes back as a number
        raise SystemExit(bird.run(bird.main, [str(a) for a in args]))
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in err
    messages = [line for line in err.splitlines() if "error:" in line]
    assert len(messages) == 1, err
    return messages[0]


# ---- find ----

def test_images_come_in_the_order_of_image_folder(tmp_path):
    for name in ["10/b.jpg", "10/a.PNG", "2/z/q.jpeg", "2/a.webp", "2/.hid.jpg", "1/x.tif", "1/notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    paths, names = bird.find_images(tmp_path)
    theirs = ImageFolder(tmp_path)
    assert [str(p) for p in paths] == [p for p, _ in theirs.samples]
    assert names == [theirs.classes[k] for _, k in theirs.samples]


def test_training_leaves_out_hidden_files_and_says_so(few, tmp_path, capsys):
    shutil.copytree(few, tmp_path / "set")
    first = sorted(few.rglob("*.jpg"))[0]
    for hidden in (".ipynb_checkpoints/x.jpg", f"{first.parent.name}/.x.jpg"):
        (tmp_path / "set" / hidden).parent.mkdir(exist_ok=True)
        shutil.copy(first, tmp_path / "set" / hidden)
    paths, labels, classes = bird.find_training_images(tmp_path / "set")
    assert classes == sorted(p.name for p in few.iterdir())
    assert len(paths) == len(labels) == 36
    assert "left out 2 images in hidden" in capsys.readouterr().err


# ---- decode ----

SAVED = {   # how the same picture is stored -> file name, how to store it
    "jpeg": ("a.jpg", lambda p, f: p.save(f, quality=95)),
    "exif": ("a.jpg", lambda p, f: p.transpose(Image.Transpose.ROTATE_90).save(f, quality=95, exif=turned())),
    "rgba": ("a.png", lambda p, f: p.convert("RGBA").save(f)),
    "cmyk": ("a.jpg", lambda p, f: p.convert("CMYK").save(f, quality=95)),
    "palette": ("a.png", lambda p, f: p.quantize(256).save(f)),
    "bmp": ("a.bmp", lambda p, f: p.save(f)),
    "webp": ("a.webp", lambda p, f: p.save(f, lossless=True)),
}


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6               # "turn it a quarter clockwise to see it"
    return exif


def read(path: Path, size: int) -> tuple[np.ndarray, float | None]:
    """A photo as `bird.decode` reads it, and its width / height."""
    pixels = np.empty((3, size, size), np.uint8)
    return pixels, bird.read_photo(path, pixels)


@pytest.mark.parametrize("kind", SAVED)
def test_every_kind_of_file_gives_the_same_picture(kind, tmp_path):
    name, save = SAVED[kind]
    save(picture(), tmp_path / name)
    pixels, aspect = read(tmp_path / name, 64)
    assert abs(pixels.astype(int) - np.asarray(picture()).transpose(2, 0, 1)).mean() < 4
    assert aspect == 1


def test_grey_of_8_and_of_16_bits_are_the_same(tmp_path):
    grey = np.asarray(picture().convert("L"))
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    small, large = (read(tmp_path / f"{k}.png", 64)[0] for k in (8, 16))
    assert np.array_equal(small, large)
    assert np.array_equal(small[0], grey)


def test_what_is_transparent_is_white(tmp_path):
    clear = picture().convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "rgba.png")
    spot = Image.new("P", (64, 64), 0)
    spot.putpalette([0, 0, 0])
    spot.save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba.png", "palette.png"):
        assert (read(tmp_path / name, 64)[0] == 255).all()


def test_scaled_decoding_looks_like_decoding_in_full(tmp_path):
    picture(1200).resize((1200, 800)).save(tmp_path / "large.jpg", quality=90)
    quick, aspect = read(tmp_path / "large.jpg", 96)
    full = np.asarray(Image.open(tmp_path / "large.jpg").resize((96, 96), Image.Resampling.BILINEAR))
    assert abs(quick.astype(int) - full.transpose(2, 0, 1)).mean() < 2
    assert aspect == pytest.approx(1.5)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None])
def test_broken_files_are_found_and_the_rest_is_used(content, few, tmp_path, capsys):
    shutil.copytree(few, tmp_path / "set")
    bad = sorted((tmp_path / "set").rglob("*.jpg"))[3]
    bad.write_bytes(bad.read_bytes()[:len(bad.read_bytes()) // 2] if content is None else content)
    birds = bird.read_birds(tmp_path / "set", tmp_path, bird.Config())
    assert len(birds.fit) + len(birds.validation) == 35
    assert 3 not in {*birds.fit.tolist(), *birds.validation.tolist()}
    assert f"{bad} cannot be read" in capsys.readouterr().err


def test_pixels_beyond_memory_go_to_the_disk_and_are_the_same(few, tmp_path, monkeypatch):
    paths, _ = bird.find_images(few)
    here = bird.decode(paths)
    monkeypatch.setattr(bird, "free_memory", lambda: 1000.0)
    there = bird.decode(paths, scratch=tmp_path)
    assert torch.equal(here.pixels, there.pixels)
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert list(tmp_path.iterdir()) == []                  # the file has no name and goes with the tensor


# ---- split ----

def test_split_is_stratified_repeatable_and_keeps_groups_whole():
    labels = torch.tensor([0] * 200 + [1] * 70 + [2] * 30)
    groups = torch.arange(300) // 2                        # pairs
    fit, validation = bird.split(labels, groups, 0.2, seed=0)
    assert sorted([*fit.tolist(), *validation.tolist()]) == list(range(300))
    assert not set(groups[fit].tolist()) & set(groups[validation].tolist())
    for label, size in Counter(labels.tolist()).items():
        assert (labels[validation] == label).sum().item() == pytest.approx(0.2 * size, abs=1)
    assert torch.equal(validation, bird.split(labels, groups, 0.2, seed=0)[1])
    assert not torch.equal(validation, bird.split(labels, groups, 0.2, seed=1)[1])


def test_a_class_of_two_alike_photos_still_has_one_on_each_side():
    labels, groups = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])
    fit, validation = bird.split(labels, groups, 0.2, seed=0)
    assert sorted(labels[fit].tolist()) == sorted(labels[validation].tolist()) == [0, 1]


def test_known_copies_are_found_and_strangers_are_not(drawn):
    paths, _ = bird.find_images(drawn / "train")
    groups = bird.near_duplicates(bird.decode(paths))
    place = {str(p.relative_to(drawn)): i for i, p in enumerate(paths)}
    copies = [(place[copy], place[made["of"]]) for copy, made in known_copies(drawn).items()]
    found = sum(bool(groups[a] == groups[b]) for a, b in copies)
    assert found >= 0.9 * len(copies)
    true = torch.arange(len(paths))
    for a, b in copies:
        true[true == true[a].item()] = true[b].item()
    same, truly = groups[:, None] == groups, true[:, None] == true
    assert (same & ~truly).sum() <= 0.02 * len(paths)      # strangers taken for copies


def known_copies(drawn: Path) -> dict[str, dict]:
    """Of each training file that is a copy: {"of": the original, "how": ..., "by": ...}."""
    return json.loads((drawn / "copies.json").read_text())


# ---- augment ----

def test_augmentation_switched_off_is_plain_resizing():
    x = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    out = bird.augment(x, 64, torch.rand(3, bird.DRAWS), STILL)
    torch.testing.assert_close(out, x / 255, atol=1e-4, rtol=0)


def test_mirror_and_half_turn_do_what_they_say():
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    u = torch.rand(2, bird.DRAWS)
    mirrored = bird.augment(x, 32, u, bird.Config(**{**vars(STILL), "flip": 1}))
    torch.testing.assert_close(mirrored, x.flip(3) / 255, atol=1e-3, rtol=0)
    over = bird.augment(x, 32, u, bird.Config(**{**vars(STILL), "upside_down": 1}))
    torch.testing.assert_close(over, x.flip(2, 3) / 255, atol=1e-3, rtol=0)


def test_classes_that_hang_either_way_up_are_found_by_their_photos_alone():
    pixels = torch.stack([torch.from_numpy(np.array(draw(SPECIES[k], 5, i, 64)[0])).permute(2, 0, 1)
                          for k in range(4) for i in range(100)])
    labels = torch.arange(4).repeat_interleave(100)
    few = torch.arange(400).view(4, 100)[:, :8].flatten()
    assert bird.either_way_up(pixels, labels, torch.arange(400), 4).tolist() == [False] * 4
    assert bird.either_way_up(pixels, labels, few, 4).tolist() == [False] * 4         # too few to be sure
    over = ((labels == 1) | (labels == 3)) & (torch.arange(400) % 2 == 0)
    pixels[over] = pixels[over].flip(2)
    assert bird.either_way_up(pixels, labels, torch.arange(400), 4).tolist() == [False, True, False, True]


def test_only_photos_of_classes_that_hang_either_way_up_are_turned_upside_down(monkeypatch):
    shown = []
    augment = bird.augment
    monkeypatch.setattr(bird, "augment", lambda *args: shown.append(augment(*args)) or shown[-1])
    cfg = bird.Config(**{**vars(STILL), "upside_down": 1, "epochs": 1, "batch": 8})
    x, rows = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)
    birds = bird.Birds(x, rows % 2, rows, rows, ["upright", "either way"], torch.tensor([False, True]))
    run = bird.new_run(birds, cfg, 1, torch.device("cpu"), 0.0)
    bird.train_step(run, x, birds.labels, 32, torch.rand(8, bird.DRAWS), torch.rand(2))
    expected = torch.stack([photo.flip(1, 2) if k % 2 else photo for k, photo in enumerate(x / 255)])
    torch.testing.assert_close(shown[0], expected, atol=1e-3, rtol=0)


def test_colour_is_brightness_contrast_saturation_and_tint_in_turn():
    x, u = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8), torch.rand(4, bird.DRAWS)
    out = bird.augment(x, 16, u, bird.Config(**{**vars(STILL), "colour": 0.3}))
    brightness, contrast, saturation = (0.7 + 0.6 * u[:, k, None, None, None] for k in (7, 8, 9))
    tint = 0.9 + 0.2 * u[:, 10:13, None, None]
    y = x / 255
    y = saturation * (y - y.mean(dim=1, keepdim=True)) + y.mean(dim=1, keepdim=True)
    mean = (x / 255).mean(dim=(1, 2, 3), keepdim=True)
    y = tint * brightness * (contrast * (y - mean) + mean)
    torch.testing.assert_close(out, y.clamp(0, 1), atol=1e-3, rtol=0)


def test_a_photo_is_warped_the_same_in_any_company():
    x = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8)
    u = torch.rand(6, bird.DRAWS)
    cfg = bird.settled(bird.Config(), 64)
    together = bird.augment(x, 32, u, cfg)
    alone = torch.cat([bird.augment(x[i:i + 1], 32, u[i:i + 1], cfg) for i in range(6)])
    torch.testing.assert_close(together, alone)
    assert together.min() >= 0
    assert together.max() <= 1


def test_a_crop_is_cut_where_an_affine_grid_cuts_it():
    x, theta = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8), 2 * torch.rand(4, 2, 3) - 1
    right, down, centre = theta.unbind(dim=2)
    grid = F.affine_grid(theta, [4, 3, 24, 24], align_corners=False)
    for beyond in ("reflection", "border"):
        out = bird.cut(x, 24, centre, right, down, beyond)
        there = F.grid_sample(x / 255, grid, padding_mode=beyond, align_corners=False)
        torch.testing.assert_close(out, there, atol=1e-3, rtol=0)


def test_mixed_targets_hold_the_shares_of_the_pixels():
    target = torch.eye(4)
    x = torch.arange(4.0)[:, None, None, None].expand(4, 3, 20, 20).contiguous()      # photo k is all k
    for seed in range(20):
        u = torch.rand(2, generator=torch.Generator().manual_seed(seed))
        mixed, shares = bird.mixup(x, target, u, mix=1.0)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), shares @ torch.arange(4.0), atol=1e-5, rtol=0)
        assert 0.5 <= shares.diagonal().min() == shares.diagonal().max() < 1
    assert bird.mixup(x, target, torch.tensor([0.3, 0.5]), mix=0.3) == (x, target)     # drawn at or above: not mixed


def test_only_long_trainings_are_mixed_and_cut_small():
    settled = {epochs: bird.settled(bird.Config(), epochs) for epochs in (1, 56, 64, 300)}
    assert {epochs: (cfg.zoom, cfg.mix, cfg.batch, cfg.turn, cfg.colour) for epochs, cfg in settled.items()} == {
        1: (0.6, 0, 64, 12, 0.2), 56: (0.6, 0, 64, 12, 0.2),
        64: (0.45, 0.5, 128, 20, 0.3), 300: (0.45, 0.5, 128, 20, 0.3)}
    assert {k for k, v in vars(settled[1]).items() if v is bird.OPEN} == {"epochs", "device"}
    still = bird.Config(**{**vars(STILL), "batch": 32, "channels": bird.NARROW, "strides": bird.FINE,
                           "renewed": 99})
    assert bird.settled(still, 300) == still                          # what is set stays, 0 too
    assert bird.settled(bird.Config(zoom=0.7), 200) == bird.Config(**{**bird.LONGER, "zoom": 0.7})
    assert bird.settled(bird.Config(zoom=0.7), 300) == bird.Config(**{**bird.LONGEST, "zoom": 0.7})


def test_a_very_long_training_has_a_wide_network():
    channels = [bird.settled(bird.Config(), epochs).channels for epochs in (1, 64, 223, 224, 1000)]
    assert channels == [(40, 64, 128, 256)] * 3 + [(48, 80, 160, 320)] * 2
    assert vars(bird.settled(bird.Config(), 224)) == {**vars(bird.settled(bird.Config(), 64)), "channels": channels[3]}


def test_long_trainings_take_batch_statistics_of_more_photos():
    assert [bird.settled(bird.Config(), epochs).renewed for epochs in (1, 63, 64, 300)] == [1024, 1024, 4096, 4096]


def test_nothing_is_mixed_at_the_end():
    cfg = bird.Config(mix=0.3)
    assert bird.mix_share(0.5, 64, cfg) == 0.3
    assert bird.mix_share(0.8, 64, cfg) == 0
    assert bird.mix_share(0.85, 300, cfg) == 0.3                      # of a long one, only the last 30 epochs
    assert bird.mix_share(0.9, 300, cfg) == 0


# ---- the network ----

@pytest.mark.parametrize("channels", [bird.NARROW, bird.WIDE])
def test_a_saved_model_loads_in_anyones_hands(channels, tmp_path):
    net = bird.BirdNet(channels=channels)
    bird.save_atomic(tmp_path / "bird.pth", net.state_dict())
    program = ("from bird import BirdNet; import torch; model = BirdNet();"
               "model.load_state_dict(torch.load('bird.pth', weights_only=True)); model.eval();"
               "print(model(torch.zeros(1, 3, 100, 140)).shape)")
    shutil.copy(ROOT / "bird.py", tmp_path)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([1, 10])", done.stderr
    again = bird.load_model(tmp_path / "bird.pth")
    x = torch.rand(2, 3, 70, 60)
    torch.testing.assert_close(again(x), net.eval()(x), atol=1e-4, rtol=1e-4)
    assert again.extra == net.extra


def test_a_model_of_an_earlier_version_is_read_as_that_version_did(tmp_path):
    net = bird.BirdNet(strides=bird.COARSE).eval()
    x = torch.rand(2, 3, 96, 96)
    expected = net(x)
    assert net.see(x).shape[2:] == (3, 3)
    del net.extra["channels"], net.extra["strides"]        # as earlier versions saved it
    bird.save_atomic(tmp_path / "bird.pth", net.state_dict())
    again = bird.load_model(tmp_path / "bird.pth")
    assert again.extra["channels"] == list(bird.NARROW)
    torch.testing.assert_close(again(x), expected, atol=1e-4, rtol=1e-4)


def test_the_last_stage_keeps_a_sixteenth_of_the_side():
    assert bird.BirdNet(3).see(torch.rand(2, 3, 96, 144)).shape == (2, 256, 6, 9)
    assert bird.BirdNet(3, strides=bird.COARSE).see(torch.rand(2, 3, 96, 144)).shape == (2, 256, 3, 5)


def test_a_short_training_has_the_finer_last_map_and_a_long_one_the_coarser(few):
    birds = bird.read_birds(few, few.parent, bird.Config())
    for epochs, strides in ((1, [1, 2, 2, 1]), (63, [1, 2, 2, 1]), (64, [1, 2, 2, 2]), (300, [1, 2, 2, 2])):
        run = bird.new_run(birds, bird.Config(batch=4), epochs, torch.device("cpu"), time.monotonic())
        assert run.net.extra["strides"] == strides
        assert [run.net.features[-k].body[0].stride[0] for k in (6, 5, 4, 2)] == strides


def test_a_model_of_other_stages_is_told_in_a_sentence(tmp_path):
    net = bird.BirdNet()
    net.extra["channels"] = [40, 64, 128]
    bird.save_atomic(tmp_path / "bird.pth", net.state_dict())
    with pytest.raises(bird.Mistake, match="does not fit the network of this bird"):
        bird.load_model(tmp_path / "bird.pth")


def test_a_network_that_becomes_wide_stays_in_its_mode():
    wide = bird.BirdNet(3, channels=bird.WIDE).state_dict()
    for mode in (True, False):
        net = bird.BirdNet(3).train(mode)
        net.load_state_dict(wide)
        assert {module.training for module in net.modules()} == {mode}
    with pytest.raises(RuntimeError, match="Missing key"):
        bird.BirdNet(3).load_state_dict({})


def test_parameters_stay_under_the_cap():
    assert bird.count_parameters(bird.BirdNet()) < bird.count_parameters(bird.BirdNet(channels=bird.WIDE)) <= 30_000_000


def test_every_parameter_learns_and_nothing_is_nan():
    net = bird.BirdNet(3)
    for _ in range(2):                                     # the first step wakes the blocks that start as the identity
        loss = F.cross_entropy(net(torch.rand(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0]))
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.01 * p.grad
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_loss_is_the_weighted_cross_entropy_of_the_assignment(few):
    birds = bird.read_birds(few, few.parent, bird.Config())
    run = bird.new_run(birds, bird.Config(), 1, torch.device("cpu"), 0.0)
    counts = birds.counts()
    torch.testing.assert_close(run.weights * counts, (counts.sum() / 3).expand(3))     # each class counts the same
    logits, y = torch.randn(50, 3), torch.randint(0, 3, (50,))
    soft = F.cross_entropy(logits, F.one_hot(y, 3).float(), weight=run.weights)
    by_hand = -(run.weights[y] * logits.log_softmax(dim=1)[torch.arange(50), y]).mean()
    torch.testing.assert_close(soft, by_hand)


def test_averaging_follows_its_formula():
    a, b = bird.BirdNet(2), bird.BirdNet(2)
    before = [p.clone() for p in a.parameters()]
    bird.average(a, b, 0.9)
    for was, now, new in zip(before, a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * new)


@pytest.mark.parametrize("shape", [(24, 80), (80, 24), (32, 27), (40, 40)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_gradient_is_made_orthogonal(shape, kind):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(g, full_matrices=False)
    found = bird.orthogonal(g.to(kind)).float()
    made = u.T @ found @ v.T                           # diagonal: the singular vectors stay as they are
    assert (made - made.diag().diag()).abs().max() < (1e-4 if kind == torch.float32 else 0.03)
    counted = values > 0.02 * g.norm()                 # others may end lower
    assert counted.float().mean() >= 0.9
    assert made.diag()[counted].sub(0.945).abs().max() < 0.265 + (0 if kind == torch.float32 else 0.03)
    assert torch.equal(bird.orthogonal(torch.zeros(shape, dtype=kind)), torch.zeros(shape, dtype=kind))


def test_muon_is_the_one_of_torch_on_filters_in_place_of_matrices():
    draw = torch.Generator().manual_seed(0)
    filters = torch.nn.Parameter(torch.randn(32, 16, 3, 3, generator=draw))
    matrix = torch.nn.Parameter(filters.detach().flatten(1).clone())
    ours = bird.Muon([filters], lr=0.1, weight_decay=0.5, kind=torch.bfloat16)
    theirs = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.5, momentum=0.9, ns_steps=3,
                              adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        filters.grad = torch.randn(filters.shape, generator=draw)
        matrix.grad = filters.grad.flatten(1).clone()
        before = matrix.detach().clone()
        ours.step()
        theirs.step()
        step = (filters.detach().flatten(1) - before, matrix.detach() - before)
        assert (step[0] - step[1]).norm() < 0.02 * step[1].norm()            # products in bfloat16, in another order
        filters.data.copy_(matrix.detach().view_as(filters))


def test_step_size_rises_then_falls_to_nothing():
    rates = [bird.rate(k / 1000, bird.Config()) for k in range(1001)]
    top = int(np.argmax(rates))
    assert max(rates) == pytest.approx(1, abs=1e-3)
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert all(np.diff(rates[:top]) > 0)
    assert all(np.diff(rates[top + 1:]) < 0)


def test_planned_epochs_are_coarse():
    plans = [bird.coarse_epochs(fit, 1, 10_000) for fit in range(1, 2000)]
    assert all(plan <= fit < 1.17 * plan + 1 for fit, plan in enumerate(plans, start=1))
    assert len(set(plans)) < 60


# ---- train ----

def test_same_seed_same_bytes_other_seed_other_bytes(few, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        bird.train(few, tmp_path / f"{name}.pth", bird.Config(epochs=1, batch=8, seed=seed))
    a, b, c = ((tmp_path / f"{name}.pth").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    rows = [json.loads(line) for line in (tmp_path / "a.history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1]
    assert not list(tmp_path.glob("*.resume.pt"))


@pytest.mark.parametrize("signal_sent", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_training_goes_on_to_the_same_bytes(signal_sent, few, tmp_path):
    command = (few, "train", "bird.pth", "--epochs", 4)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    assert call("bird.py", *command, cwd=whole).returncode == 0
    process = start("bird.py", *command, cwd=cut)
    assert wait_for(lambda: (cut / "bird.resume.pt").exists(), process)
    process.send_signal(signal_sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if signal_sent == signal.SIGINT else -signal.SIGKILL)
    assert (signal_sent == signal.SIGKILL) or "The same command goes on" in err
    assert not (cut / "bird.pth").exists()
    again = call("bird.py", *command, cwd=cut)
    assert "going on after" in again.stdout, again.stdout + again.stderr
    assert (cut / "bird.pth").read_bytes() == (whole / "bird.pth").read_bytes()
    epochs = [json.loads(line)["epoch"] for line in (cut / "bird.history.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4]
    assert not (cut / "bird.resume.pt").exists()


def test_the_weights_of_the_lowest_loss_are_kept_whatever_the_score(few, monkeypatch):
    birds = bird.read_birds(few, few.parent, bird.Config())
    run = bird.new_run(birds, bird.Config(), 5, torch.device("cpu"), 0.0)
    run.sums = (1.0, 1, 1)
    truth = torch.tensor([0, 1, 2])
    for run.epoch, (sure, score) in enumerate([(0.5, 0.7), (0.8, 0.6), (0.7, 0.9), (0.9, 0.5), (math.nan, 1.0)]):
        p = sure * torch.eye(3) + (1 - sure) / 2 * (1 - torch.eye(3))
        monkeypatch.setattr(bird, "judge", lambda *_, p=p, score=score: (p, truth, score, score))
        with torch.no_grad():
            run.averaged.head.bias.fill_(run.epoch)
        run.history.append(bird.validate(run, birds, 0.0))
    assert [row["best"] for row in run.history] == [True, True, False, True, False]
    assert run.history[3]["val_loss"] == pytest.approx(-math.log(0.9))
    assert run.best_state["head.bias"].tolist() == [3, 3, 3]
    assert run.stale == 1


def wait_for(happened, process: subprocess.Popen, seconds: float = 120) -> bool:
    """True as soon as `happened()`; False if the process ends or the time is over before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if happened():
            return True
        time.sleep(0.02)
    return False


def test_a_resume_file_of_other_settings_or_half_written_is_not_used(few, tmp_path, capsys):
    path = tmp_path / "bird.resume.pt"
    path.write_bytes(b"half")
    assert bird.read_resume(path, ["a"]) is None
    assert "starting anew" in capsys.readouterr().err
    bird.save_atomic(path, {"key": ["other"]})
    assert bird.read_resume(path, ["a"]) is None
    assert "other settings" in capsys.readouterr().err


def test_a_budget_is_planned_printed_and_kept(few, tmp_path):
    done = call("bird.py", few, "train", "bird.pth", "--budget", "0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (plan,) = [line for line in done.stdout.splitlines() if line.startswith("plan:")]
    rows = [json.loads(line) for line in (tmp_path / "bird.history.jsonl").read_text().splitlines()]
    assert f"--epochs {rows[0]['epochs']}" in plan
    assert rows[-1]["seconds"] < 30


def test_short_plans_and_long_ones_are_timed_with_their_own_dials(few, monkeypatch):
    birds = bird.read_birds(few, few.parent, bird.Config())
    sizes, timed = bird.all_sizes(), []
    monkeypatch.setattr(bird, "time_epochs", lambda _, cfg, *__: timed.append(cfg.batch) or dict.fromkeys(sizes, 1.0))
    runs = [bird.plan(birds, bird.Config(budget=minutes), torch.device("cpu"), time.monotonic()) for minutes in (1, 2)]
    assert [(run.epochs, run.cfg.batch, run.cfg.mix) for run in runs] == [(56, 64, 0), (112, 128, 0.5)]
    assert timed == [64, 64, 128]
    fixed = bird.plan(birds, bird.Config(epochs=56), torch.device("cpu"), time.monotonic())
    assert vars(fixed.cfg) == {**vars(runs[0].cfg), "epochs": 56, "budget": 110}         # --epochs repeats the plan
    assert len(timed) == 3


def test_a_wide_network_is_planned_only_where_it_has_the_epochs_it_needs(few, monkeypatch):
    birds = bird.read_birds(few, few.parent, bird.Config())
    seconds = {bird.NARROW: 1.0, bird.WIDE: 1.4}
    monkeypatch.setattr(bird, "time_epochs", lambda _, cfg, *__: dict.fromkeys(bird.all_sizes(), seconds[cfg.channels]))
    runs = [bird.plan(birds, bird.Config(budget=minutes), torch.device("cpu"), time.monotonic())
            for minutes in (3, 4, 5, 7)]
    assert [(run.epochs, run.cfg.channels) for run in runs] == [
        (160, bird.NARROW), (192, bird.NARROW), (192, bird.NARROW), (256, bird.WIDE)]
    for run in runs:
        assert {p.shape[0] for p in run.net.parameters() if p.ndim == 4} == {32, *run.cfg.channels}


def test_large_photos_are_timed_only_where_the_budget_reaches_them(few, monkeypatch):
    birds, steps = bird.read_birds(few, few.parent, bird.Config()), []
    clock = iter(range(10**6))                         # a second passes between two looks at it, so a step takes one
    monkeypatch.setattr(bird, "train_step", lambda run, pixels, labels, size, u, v: steps.append(size))
    monkeypatch.setattr(bird.time, "perf_counter", lambda: next(clock))
    for hours, largest in ((1, 128), (100, 208)):      # an epoch takes 6 seconds, 120,000 photos 8 hours
        cfg = bird.settled(bird.Config(budget=60 * hours, batch=4), 1)
        pace = bird.time_epochs(birds, cfg, torch.device("cpu"))
        assert max(steps) == largest
        assert list(pace) == list(range(64, 209, 16))
        assert pace[208] == pytest.approx(pace[128] * (1 if largest == 208 else (208 / 128)**2))


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP tells its settings on Linux")
@pytest.mark.parametrize("program", ["bird", "vae"])
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(program):
    for mine, expected in (({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        env = {**os.environ, "OMP_DISPLAY_ENV": "VERBOSE"}
        env.pop("GOMP_SPINCOUNT", None)
        told = subprocess.run([sys.executable, "-c", f"import {program}"], cwd=ROOT, env=env | mine, text=True,
                              capture_output=True).stderr
        assert f"GOMP_SPINCOUNT = '{expected}'" in told


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
IN_TWO = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", str(ROOT / "bird.py")]


@pytest.fixture(scope="module")
def pair(few, tmp_path_factory) -> tuple[Path, str]:
    """Three epochs in two processes: the folder where they ran, and what they printed."""
    folder = tmp_path_factory.mktemp("pair")
    done = subprocess.run([*IN_TWO, str(few), "train", "bird.pth", "--epochs", "3"], cwd=folder, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_torchrun_trains_one_network_in_two_processes(pair, few):
    folder, printed = pair
    assert printed.count("saved bird.pth") == 1                             # rank 0 alone speaks
    assert printed.count("epoch ") == 3
    assert {path.name for path in folder.iterdir()} == {"bird.pth", "bird.history.jsonl"}
    rows = [json.loads(line) for line in (folder / "bird.history.jsonl").read_text().splitlines()]
    birds = bird.read_birds(few, few.parent, bird.Config())
    assert rows[-1]["val_accuracy"] * len(birds.validation) % 1 < 1e-9      # of all validation photos, not of a share
    state = torch.load(folder / "bird.pth", weights_only=True)
    net = bird.load_model(folder / "bird.pth")
    assert net.extra["counts"] == birds.counts().tolist()
    torch.testing.assert_close(state["mean"], bird.new_run(birds, bird.Config(), 1, torch.device("cpu"), 0.0).net.mean)
    p = bird.predict(net, birds.pixels, net.extra["size"], torch.device("cpu"), birds.validation, looks=1)
    macro, micro = bird.scores(birds.labels[birds.validation].tolist(), p.argmax(dim=1).tolist())
    assert f"saved bird.pth: validation score {(macro + micro) / 2:.4f}" in printed
    assert net.extra["validated"] == {"macro_f1": macro, "accuracy": micro}


def start_two_machines(few: Path, folder: Path) -> list[subprocess.Popen]:
    """Three epochs by two torchruns, each in a folder and session of its own; only the first has the photos."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = []
    for rank, photos in enumerate([few, "nowhere"]):
        (folder / str(rank)).mkdir(exist_ok=True)
        machines.append(subprocess.Popen(
            [*TORCHRUN, "--nnodes", "2", "--node-rank", str(rank), "--master-addr", "127.0.0.1", "--master-port",
             str(port), str(ROOT / "bird.py"), str(photos), "train", "bird.pth", "--epochs", "3"], text=True,
            cwd=folder / str(rank), env={**os.environ, "OMP_NUM_THREADS": "1"},       # as torchrun sets it for two
            start_new_session=True, stderr=subprocess.PIPE))
    return machines


def test_torchrun_on_two_machines_tells_a_lost_one_and_goes_on_to_the_same_bits(pair, few, tmp_path):
    first, second = start_two_machines(few, tmp_path)
    saved = tmp_path / "0" / "bird.resume.pt"
    assert wait_for(saved.exists, first)
    for process in [*psutil.Process(second.pid).children(recursive=True), psutil.Process(second.pid)]:
        process.kill()                                                      # as when the power goes
    told = first.communicate(timeout=120)[1]
    second.communicate()
    assert "error: another process or machine of this training is lost" in told
    assert "bird.py\", line" not in told                                     # no traceback of ours
    assert saved.exists()
    assert not (tmp_path / "0" / "bird.pth").exists()
    machines = start_two_machines(few, tmp_path)
    errors = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    assert {path.name for path in (tmp_path / "0").iterdir()} == {"bird.pth", "bird.history.jsonl"}
    assert not list((tmp_path / "1").iterdir())
    assert (tmp_path / "0" / "bird.pth").read_bytes() == (pair[0] / "bird.pth").read_bytes()


TWO_HOSTS = """                 # two hosts joined by a cable: namespaces whose loopbacks know nothing of each other
set -e
ip link set lo up
unshare --net sleep 300 & other=$!
trap 'kill $other' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.1; done
ip link add here type veth peer name there netns $other
ip addr add 10.77.0.1/24 dev here
ip link set here up
there() { nsenter --target $other --net "$@"; }
there ip link set lo up
there ip addr add 10.77.0.2/24 dev there
there ip link set there up
(cd 1; there "$@" --node-rank 1 "$BIRD" nowhere train bird.pth --epochs 3) & second=$!
(cd 0; "$@" --node-rank 0 "$BIRD" "$FEW" train bird.pth --epochs 3)
wait $second
"""


def hosts_can_be_made() -> bool:
    """Whether this user may make namespaces; where CI is set, the test is to fail rather than to be left out."""
    return "CI" in os.environ or (bool(shutil.which("unshare") and shutil.which("ip")) and subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "true"], capture_output=True).returncode == 0)


@pytest.mark.skipif(not hosts_can_be_made(), reason="needs Linux, iproute2 and leave to make namespaces")
def test_torchrun_on_two_hosts_finds_the_network_between_them(pair, few, tmp_path):
    for rank in "01":
        (tmp_path / rank).mkdir()
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "bash", "-c", TWO_HOSTS, "two-hosts", *TORCHRUN, "--nnodes",
         "2", "--master-addr", "10.77.0.1", "--master-port", "29500"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "BIRD": str(ROOT / "bird.py"), "FEW": str(few)}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "1").iterdir())
    assert (tmp_path / "0" / "bird.pth").read_bytes() == (pair[0] / "bird.pth").read_bytes()


def test_torchrun_tells_that_processes_do_not_meet(few, tmp_path):
    lost = subprocess.run([*IN_TWO, str(few), "train", "bird.pth"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "GLOO_SOCKET_IFNAME": "nowhere0"}, timeout=300)
    assert lost.returncode != 0
    assert "error: the processes of torchrun do not find each other" in lost.stderr
    assert "bird.py\", line" not in lost.stderr                              # no traceback of ours


def test_torchrun_tells_a_mistake(tmp_path):
    wrong = subprocess.run([*IN_TWO, "nowhere", "train", "bird.pth"], cwd=tmp_path, capture_output=True, text=True,
                           timeout=300)
    assert wrong.returncode != 0
    assert "nowhere does not exist" in wrong.stderr


HALVES = """
import sys
sys.path.insert(0, {root!r})
import torch, bird
torch.distributed.init_process_group("gloo", init_method={address!r}, world_size=2, rank=int(sys.argv[1]))
torch.manual_seed(0)
net = bird.BirdNet(3, dropout=0, batch_norm=False)
x, y = torch.rand(8, 3, 64, 64), torch.arange(8) % 3
mine = slice(4 * int(sys.argv[1]), 4 * int(sys.argv[1]) + 4)
torch.nn.functional.cross_entropy(net(x[mine]), y[mine]).backward()
bird.average_gradients(net)
torch.save([p.grad for p in net.parameters()], {out!r} + sys.argv[1])
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path):
    code = HALVES.format(root=str(ROOT), address=f"file://{tmp_path}/meet", out=str(tmp_path / "gradients"))
    both = [subprocess.Popen([sys.executable, "-c", code, rank]) for rank in "01"]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    torch.manual_seed(0)
    net = bird.BirdNet(3, dropout=0, batch_norm=False)
    F.cross_entropy(net(torch.rand(8, 3, 64, 64)), torch.arange(8) % 3).backward()
    for rank in "01":
        for p, theirs in zip(net.parameters(), torch.load(tmp_path / f"gradients{rank}"), strict=True):
            torch.testing.assert_close(theirs, p.grad, atol=1e-5, rtol=1e-4)


def paced(birds, epoch: int, seconds: list[float]) -> bird.Run:
    """A training of 20 planned epochs of 2 seconds for a minute's budget, `epoch` of them done."""
    run = bird.new_run(birds, bird.Config(budget=1), 20, torch.device("cpu"), time.monotonic() - 20)
    run.epoch, run.pace = epoch, {size: 2.0 for _, size, _ in bird.SIZES}
    run.history = [{"seconds": s, "size": 64} for s in seconds]
    return run


def test_a_slow_machine_leaves_out_no_more_than_its_slowness_asks_for(few, capsys):
    birds = bird.read_birds(few, few.parent, bird.Config())
    run = paced(birds, 3, [10, 12, 14])                # as planned: 34 of the 44.8 seconds left are needed
    bird.keep_pace(run, birds)
    assert (run.epoch, run.epochs) == (3, 20)
    run = paced(birds, 3, [10, 16, 22])                # three times as slow: 102 of 36.8 seconds
    bird.keep_pace(run, birds)
    assert (run.epoch, run.epochs) == (5, 20)
    assert "2 epochs are left out" in capsys.readouterr().err
    run.epoch += 1
    run.history += [{"seconds": s, "size": 64} for s in (24.0, 26.0, 28.0, 30.0)]      # as planned again: 28 of 28.8
    bird.keep_pace(run, birds)
    assert run.epoch == 6
    run = paced(birds, 18, [10, 30, 57])               # nearly out of time: the last epoch is kept
    bird.keep_pace(run, birds)
    assert run.epoch == 19


def test_a_disturbance_that_is_over_leaves_nothing_out(few):
    birds = bird.read_birds(few, few.parent, bird.Config())
    run = paced(birds, 6, [10, 22, 34, 36, 38, 40])    # six times as slow for two epochs: 28 of 28.6 left
    run.cfg = bird.Config(budget=70 / 60)
    bird.keep_pace(run, birds)
    assert run.epoch == 6
    run.history[-1]["seconds"] = 52                    # still slow
    bird.keep_pace(run, birds)
    assert run.epoch > 6


def test_little_slowness_leaves_epochs_out_late_but_not_early(few):
    birds = bird.read_birds(few, few.parent, bird.Config())
    run = paced(birds, 3, [10, 12.7, 15.4])            # 45.9 of 43.4 seconds: it may yet go by
    bird.keep_pace(run, birds)
    assert run.epoch == 3
    run = paced(birds, 15, [42.6, 45.3, 48])           # 13.5 of 10.8
    bird.keep_pace(run, birds)
    assert run.epoch == 16


def test_a_machine_that_turns_out_faster_gets_a_longer_plan_in_the_first_half_only(few, capsys, monkeypatch):
    birds = bird.read_birds(few, few.parent, bird.Config())
    timings = []
    monkeypatch.setattr(bird, "time_epochs", lambda *_: timings.append(1) or {64: 0.5, 96: 1.0, 128: 2.0})
    run = paced(birds, 3, [10, 10.5, 11])              # four times as fast at 64 px, and no faster than planned at 128
    bird.keep_pace(run, birds)
    assert run.epochs == 44                            # 14 at 64 px, 18 at 96, 9 at 128: 43 of 45.9 seconds
    assert "now 44 epochs" in capsys.readouterr().err
    run.epoch += 3
    run.history += [{"seconds": s, "size": 64} for s in (14, 14.5, 15)]    # the timing took 2.5 of them
    bird.keep_pace(run, birds)
    assert run.epoch == 6
    run.epoch = 3
    run.history = [{"seconds": s, "size": 64} for s in (10, 10.1, 10.2)]
    bird.keep_pace(run, birds)                         # timed again once, not after every epoch
    assert (run.epochs, len(timings)) == (44, 1)
    run = paced(birds, 12, [10, 10.5, 11])
    bird.keep_pace(run, birds)
    assert (run.epoch, run.epochs, len(timings)) == (12, 20, 1)
    run = paced(birds, 3, [10, 10.1, 10.2])
    run.cfg = bird.settled(bird.Config(budget=3), 20)
    bird.keep_pace(run, birds)
    assert (run.epochs, len(timings)) == (56, 2)       # a short training keeps its dials, so it stays one


def test_a_longer_plan_trusts_the_epochs_more_than_the_timed_steps(few, monkeypatch):
    birds = bird.read_birds(few, few.parent, bird.Config())
    monkeypatch.setattr(bird, "time_epochs", lambda *_: {64: 0.25, 96: 0.5, 128: 1.0})
    run = paced(birds, 3, [10, 10.5, 11])              # epochs took twice as long as the steps tell
    bird.keep_pace(run, birds)
    assert (run.epochs, run.pace) == (44, {64: 0.5, 96: 1.0, 128: 2.0})


def test_longer_trainings_see_larger_photos():
    epochs = (1, 10, 36, 37, 64, 110, 155, 230, 500)
    sizes = [bird.image_sizes(n, 3300) for n in epochs]
    assert [len(s) for s in sizes] == list(epochs)
    assert all(s == sorted(s) for s in sizes)
    assert [s[-1] for s in sizes] == sorted(s[-1] for s in sizes)
    assert sizes[0][-1] < sizes[-1][-1]
    assert all(size % 16 == 0 and size <= bird.STORED for s in sizes for size in s)
    assert {len(set(s)) for s in sizes[1:]} == {3}
    assert {max(s) for s in sizes} == set(range(128, 209, 16))
    assert max(bird.image_sizes(64, 10_000)) > max(bird.image_sizes(64, 1000))     # it is the photos seen that count


def test_no_two_sizes_grow_at_once():
    steps = [set(bird.image_sizes(n, 1000)) for n in range(10, 1200)]
    assert max(len(after - before) for before, after in itertools.pairwise(steps)) == 1


@pytest.mark.parametrize("photos", [1600, 3264, 7808])
@pytest.mark.parametrize("speed", [70, 700, 1500])                  # photos a second of 64 px
def test_a_plan_fills_its_budget(photos, speed):
    pace = {size: photos / speed * size**2 / 64**2 for size in bird.all_sizes()}
    for left in (60 * minutes for minutes in range(20, 120, 4)):
        epochs = bird.epochs_within(left, pace, photos)
        used = sum(pace[size] for size in bird.image_sizes(epochs, photos))
        assert 0.77 * left < used <= left, (left, epochs, used)


def test_a_plan_leaves_room_to_finish(few):
    pace = dict.fromkeys(bird.all_sizes(), 2.0)
    assert bird.epochs_within(20, pace, 1000) == 10
    assert bird.epochs_within(20, pace, 1000, closing=1.5) == 8
    birds = bird.read_birds(few, few.parent, bird.Config())
    run = bird.new_run(birds, bird.Config(budget=1), 20, torch.device("cpu"), time.monotonic() - 30)
    run.pace, run.steps = {64: 40.0, 96: 40.0, 128: 40.0}, 2
    looks, epoch = 2 * len(birds.fit) + 1.5 * len(birds.validation), 64 + 0.4 * len(birds.validation)
    assert run.closing == pytest.approx(0.4 * looks / epoch)               # a look costs 0.4 of a step
    for closing, whole in ((0.0, True), (1.0, False)):                     # 30 of 58.8 seconds are over, or of 18.8
        run.closing, run.step = closing, 0
        pixels = bird.resized(birds.pixels, bird.side_for(64))
        assert bird.train_epoch(run, birds, pixels, threading.Event(), lambda now: None) is whole
        assert run.step == (2 if whole else 1)


def test_a_loss_that_is_not_finite_keeps_what_was_saved(few, tmp_path, capsys, monkeypatch):
    old = tmp_path / "bird.pth"
    old.write_bytes(b"earlier model")
    cfg = bird.Config(epochs=1, batch=8, lr=float("inf"))
    assert bird.run(lambda _: bird.train(few, old, cfg), []) == 2
    assert "no epoch ended with a finite loss" in capsys.readouterr().err
    assert old.read_bytes() == b"earlier model"


def test_a_finished_network_has_the_batch_statistics_of_what_predict_looks_at(few, model, monkeypatch):
    birds = bird.read_birds(few, few.parent, bird.Config())
    run = bird.new_run(birds, bird.Config(), 1, torch.device("cpu"), time.monotonic())
    trained = torch.load(model, weights_only=True)
    first = next(name for name in trained if name.endswith("running_mean")).removesuffix(".running_mean")
    monkeypatch.setattr(bird.BirdNet, "gaze", lambda self, h: torch.zeros(len(h), 2))    # the middle, so no sum differs
    finished = []
    for junk in (0.0, 3.0):                            # what the statistics were does not matter
        run.best_state = {name: value + junk if "running" in name else value for name, value in trained.items()}
        finished.append(deepcopy(bird.finish(run, birds)))
    (state, *score), (other, *other_score) = finished
    assert score == other_score
    assert all(torch.equal(state[name], other[name]) for name in state if name != "_extra_state")
    changed = {name for name in state if name != "_extra_state" and not torch.equal(state[name], trained[name])}
    assert changed == {name for name in state if "running" in name}        # no weight

    net, seen = bird.BirdNet(3), []
    net.load_state_dict(state)
    net.eval().get_submodule(first).register_forward_hook(lambda _, given, __: seen.append(given[0]))
    cpu, size = torch.device("cpu"), net.extra["size"]
    bird.predict(net, birds.pixels, size, cpu, birds.fit, looks=2)
    assert len(seen) == 2
    torch.testing.assert_close(state[f"{first}.running_mean"], torch.cat(seen).float().mean(dim=(0, 2, 3)))
    p = bird.predict(net, birds.pixels, size, cpu, birds.validation, looks=1)
    assert score == pytest.approx(bird.scores(birds.labels[birds.validation].tolist(), p.argmax(1).tolist()))


@pytest.mark.parametrize(("renewed", "photos"), [(8, 8), (16, 16), (4096, 30)])
def test_so_many_photos_renew_the_batch_statistics(few, renewed, photos, monkeypatch):
    birds = bird.read_birds(few, few.parent, bird.Config())
    assert len(birds.fit) == 30
    run = bird.new_run(birds, bird.Config(renewed=renewed), 20, torch.device("cpu"), time.monotonic())
    run.best_state = deepcopy(run.averaged.state_dict())
    looked, predict = [], bird.predict

    def spy(net, pixels, size, device, rows, looks):
        looked.append((set(rows.tolist()), looks))
        return predict(net, pixels, size, device, rows, looks=looks)

    monkeypatch.setattr(bird, "predict", spy)
    bird.finish(run, birds)
    (rows, looks), (judged, _) = looked
    assert (len(rows), looks, judged) == (photos, 2, set(birds.validation.tolist()))
    assert rows <= set(birds.fit.tolist())
    epoch = 64 * run.steps + 0.4 * len(birds.validation)
    assert run.closing == pytest.approx(0.4 * (2 * photos + 1.5 * len(birds.validation)) / epoch)


def test_it_learns_drawn_birds(drawn, tmp_path):
    small = tmp_path / "set"
    for folder in sorted((drawn / "train").iterdir())[:3]:
        shutil.copytree(folder, small / folder.name)
    bird.train(small, tmp_path / "bird.pth", bird.Config(epochs=16, batch=8, mix=0, warmup=0.3))
    rows = [json.loads(line) for line in (tmp_path / "bird.history.jsonl").read_text().splitlines()]
    assert rows[-1]["train_loss"] < 0.9 * rows[0]["train_loss"]
    assert max(row["val_score"] for row in rows) > 0.5     # chance is a third


# ---- label ----

def labels_in(path: Path) -> list[int]:
    header, *rows = path.read_text().splitlines()
    assert header == "Predicted_Label"
    return [int(row) for row in rows]


def test_the_same_photos_get_the_same_labels_in_any_folder(few, model, tmp_path, capsys):
    paths, names = bird.find_images(few)
    (tmp_path / "dummy" / "unknown").mkdir(parents=True)
    (tmp_path / "flat").mkdir()
    for i, path in enumerate(paths):
        shutil.copy(path, tmp_path / "dummy" / "unknown" / f"{i:03d}.jpg")
        shutil.copy(path, tmp_path / "flat" / f"{i:03d}.jpg")
    shutil.copytree(few, tmp_path / "lacking")
    shutil.rmtree(tmp_path / "lacking" / sorted(set(names))[0])
    answers = {}
    for folder in (few, tmp_path / "dummy", tmp_path / "flat", tmp_path / "lacking"):
        bird.test(folder, model, tmp_path / "bird.csv", torch.device("cpu"))
        answers[folder.name] = labels_in(tmp_path / "bird.csv")
        assert ("no score" in capsys.readouterr().out) == (folder.name in ("dummy", "flat"))
    assert answers["birds"] == answers["dummy"] == answers["flat"]
    assert answers["lacking"] == answers["birds"][names.count(names[0]):]


def test_a_broken_test_image_has_its_row(few, model, tmp_path, capsys):
    shutil.copytree(few, tmp_path / "set")
    bad = sorted((tmp_path / "set").rglob("*.jpg"))[-2]
    bad.write_bytes(b"")
    bird.test(tmp_path / "set", model, tmp_path / "bird.csv", torch.device("cpu"))
    state = torch.load(model)["_extra_state"]
    answers = labels_in(tmp_path / "bird.csv")
    assert len(answers) == 36
    assert answers[-2] == int(np.argmax(state["counts"]))
    assert f"{bad} cannot be read" in capsys.readouterr().err


def test_the_second_look_is_where_the_evidence_is():
    net = bird.BirdNet(3).eval()
    h = torch.zeros(3, 256, 5, 5)
    h[0, 7, 1, 3] = 2                                  # one cell of row 1, column 3
    h[1, 7, 1, 3] = h[1, 7, 3, 3] = 2                  # two cells: their middle
    torch.nn.init.zeros_(net.head.weight)
    torch.nn.init.zeros_(net.head.bias)
    net.head.weight.data[1, 7] = 1
    torch.testing.assert_close(net.gaze(h), torch.tensor([[0.4, -0.4], [0.4, 0.0], [0.0, 0.0]]))


def test_a_closer_look_stays_inside_the_photo():
    ramp = torch.arange(96, dtype=torch.uint8).expand(2, 3, 96, 96).clone()        # brightness is the column
    middle, corner = bird.closer(ramp, torch.tensor([[0.1, 0.0], [1.0, 1.0]]), 60) * 255
    assert middle.shape == (3, 60, 60)
    torch.testing.assert_close(middle.mean(), torch.tensor(47.5 + 0.1 * 48), atol=0.1, rtol=0)
    torch.testing.assert_close(corner[0, 0, [0, -1]], torch.tensor([0.3 * 96, 95.0]), atol=1.0, rtol=0)


def test_the_second_look_at_fine_stripes_sees_grey_not_coarser_stripes(model, monkeypatch):
    net, seen, plain = bird.load_model(model), [], bird.closer
    stripes = (torch.arange(bird.STORED) % 2 * 255).to(torch.uint8).expand(2, 3, bird.STORED, bird.STORED).clone()
    monkeypatch.setattr(bird, "closer", lambda *args: seen.append(plain(*args)) or seen[-1])
    bird.predict(net, stripes, 64, torch.device("cpu"))
    assert plain(stripes, torch.zeros(2, 2), 64).std() > 0.2               # as they would alias
    assert seen[0].std() < 0.05


def test_the_first_look_leaves_out_the_edges_and_says_where_in_the_photo(model, monkeypatch):
    net, cpu = bird.load_model(model), torch.device("cpu")
    pixels = torch.randint(256, (3, 3, 200, 200), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    framed = torch.zeros_like(pixels)
    framed[:, :, 10:190, 10:190] = pixels[:, :, 10:190, 10:190]
    torch.testing.assert_close(bird.predict(net, framed, 96, cpu, looks=1),
                               bird.predict(net, pixels, 96, cpu, looks=1))
    seen = []
    plain = bird.closer
    monkeypatch.setattr(net, "gaze", lambda h: torch.tensor([[0.5, -0.2]]).expand(len(h), 2))
    monkeypatch.setattr(bird, "closer", lambda pixels, centre, size: seen.append(centre) or plain(pixels, centre, size))
    bird.predict(net, pixels, 96, cpu)
    torch.testing.assert_close(seen[0], torch.tensor([[0.45, -0.18]]).expand(3, 2))    # half of 0.9 of the photo's side


@pytest.mark.parametrize(("units", "kind"), [("amx_bf16", torch.bfloat16), ("avx512_bf16", torch.bfloat16),
                                             ("avx512_f", torch.float32)])
def test_a_processor_that_multiplies_bfloat16_is_asked_to(units, kind, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, "avx512_bf16": False, units: True})
    with bird.mixed_precision(torch.device("cpu")):
        assert torch.nn.Conv2d(3, 4, 3)(torch.rand(1, 3, 8, 8)).dtype == kind


def test_a_photo_is_looked_at_as_often_as_it_needs(model, monkeypatch):
    net, cpu, seen = bird.load_model(model), torch.device("cpu"), []
    pixels = torch.randint(256, (6, 3, 96, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    first, two = (bird.predict(net, pixels, 64, cpu, looks=n) for n in (1, 2))
    monkeypatch.setattr(bird, "SURE", float(first.amax(dim=1).sort().values[3:5].mean()))      # four of six are below
    unsure = (first.amax(dim=1) < bird.SURE).nonzero()[:, 0]
    left = two[unsure].amax(dim=1)
    monkeypatch.setattr(bird, "DOUBT", float(left.sort().values[1:3].mean()))                  # two of the four are
    doubtful = left < bird.DOUBT
    monkeypatch.setattr(net, "see", lambda x, plain=net.see: seen.append(x) or plain(x))
    p = bird.predict(net, pixels, 64, cpu)
    assert [len(x) for x in seen] == [6, 4, 2, 2]
    torch.testing.assert_close(seen[2], seen[0][unsure[doubtful]].flip(3))
    torch.testing.assert_close(seen[3], seen[1][doubtful].flip(3))
    with torch.no_grad(), bird.mixed_precision(cpu):
        second, *mirrored = (net(x).float().softmax(dim=1) for x in seen[1:])
    expected = first.clone()
    expected[unsure] = (first[unsure] + second) / 2
    expected[unsure[doubtful]] = torch.stack([first[unsure[doubtful]], second[doubtful], *mirrored]).mean(dim=0)
    torch.testing.assert_close(p, expected)

    monkeypatch.setattr(bird, "SURE", 0.0)
    assert torch.equal(bird.predict(net, pixels, 64, cpu), first)
    monkeypatch.setattr(bird, "SURE", 1.1)
    monkeypatch.setattr(bird, "DOUBT", 0.0)
    assert torch.equal(bird.predict(net, pixels, 64, cpu), two)


def test_order_does_not_matter(few, model):
    net = bird.load_model(model)
    pixels = bird.decode(bird.find_images(few)[0]).pixels
    cpu, rows = torch.device("cpu"), torch.arange(36)
    p = bird.predict(net, pixels, 64, cpu)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(36))
    torch.testing.assert_close(bird.predict(net, pixels, 64, cpu, rows.flip(0)).flip(0), p, atol=1e-4, rtol=0)
    assert not torch.allclose(bird.predict(net, pixels, 64, cpu, looks=1), p)


def test_scores_are_those_of_the_definition():
    macro, micro = bird.scores([0, 0, 1, 1, 1], [0, 1, 1, 1, 2])
    assert micro == pytest.approx(3 / 5)
    assert macro == pytest.approx((2 / 3 + 2 * 2 / 6) / 2)        # 2 TP / (2 TP + FP + FN), of the classes that occur


# ---- bad input: one sentence, status 2 ----

def test_bad_folders(few, drawn, model, tmp_path, capsys):
    one = tmp_path / "one"
    shutil.copytree(sorted(few.iterdir())[0], one / "only")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text" / "class").mkdir(parents=True)
    (tmp_path / "text" / "class" / "a.txt").write_text("no image")
    (tmp_path / "file").write_text("x")
    for name in ("a", "b"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "x.jpg").write_bytes(b"not a photo")
    out = tmp_path / "bird.pth"
    for mode, target in (("train", out), ("test", model)):
        assert "does not exist" in refused(capsys, tmp_path / "missing", mode, target)
        assert "holds no images" in refused(capsys, tmp_path / "empty", mode, target)
        assert "holds no images" in refused(capsys, tmp_path / "text", mode, target)
        assert "is a file" in refused(capsys, tmp_path / "file", mode, target)
        assert "none of the 2 images can be read" in refused(capsys, tmp_path / "broken", mode, target)
    assert "1 class folder " in refused(capsys, one, "train", out)
    above = tmp_path / "above"
    (above).mkdir()
    (above / "train").symlink_to(drawn / "train", target_is_directory=True)
    assert f"did you mean {above / 'train'}?" in refused(capsys, above, "train", out)
    (above / "test").symlink_to(few, target_is_directory=True)
    assert f"did you mean {above / 'train'}?" in refused(capsys, above, "train", out)
    (above / "train").unlink()
    assert f"did you mean {above / 'test'}?" in refused(capsys, above, "test", model)
    assert not out.exists()


def test_bad_models(few, model, tmp_path, capsys):
    whole = model.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "foreign.pth")
    vae.save_atomic(tmp_path / "vae.pth", vae.VAE().state_dict())
    assert "cannot be read" in refused(capsys, few, "test", tmp_path / "missing.pth")
    assert "cannot be read" in refused(capsys, few, "test", tmp_path)
    for name in ("cut", "text", "empty"):
        assert "not a whole model file" in refused(capsys, few, "test", tmp_path / f"{name}.pth")
    assert "something else" in refused(capsys, few, "test", tmp_path / "foreign.pth")
    assert "of vae.py" in refused(capsys, few, "test", tmp_path / "vae.pth")
    state = torch.load(model)
    state.pop("head.bias")
    torch.save(state, tmp_path / "other.pth")
    assert "does not fit" in refused(capsys, few, "test", tmp_path / "other.pth")


def test_a_model_that_would_run_code_is_refused_and_runs_nothing(few, tmp_path, capsys):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "proof"),)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"_extra_state": Evil()}, tmp_path / "evil2.pth")
    for name in ("evil", "evil2"):
        refused(capsys, few, "test", tmp_path / f"{name}.pth")
    assert not (tmp_path / "proof").exists()


def test_bad_words(few, tmp_path, capsys):
    refused(capsys, few, "learn", tmp_path / "bird.pth")
    refused(capsys, few)
    assert "--epochs is 0" in refused(capsys, few, "train", tmp_path / "bird.pth", "--epochs", 0)
    assert "--budget is -1" in refused(capsys, few, "train", tmp_path / "bird.pth", "--budget", -1)
    if not torch.cuda.is_available():
        assert "no cuda device" in refused(capsys, few, "train", tmp_path / "bird.pth", "--device", "cuda")
    assert "create the folder first" in refused(capsys, few, "train", tmp_path / "no" / "bird.pth")
    assert "is a folder" in refused(capsys, few, "train", tmp_path)


def test_help_shows_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        bird.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "python bird.py DATASET train bird.pth" in out
    assert "python bird.py DATASET test  bird.pth" in out


def test_a_full_disk_leaves_the_earlier_file(few, tmp_path):
    (tmp_path / "bird.pth").write_bytes(b"earlier model")

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))      # bytes a file; writing more fails
    done = call("bird.py", few, "train", "bird.pth", "--epochs", 1, cwd=tmp_path, preexec_fn=small_disk)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "bird.pth").read_bytes() == b"earlier model"
    assert not list(tmp_path.glob("*.part"))


def test_a_read_only_folder_is_told_before_the_training(few, capsys):
    assert "cannot be written" in refused(capsys, few, "train", "/sys/bird.pth")      # read-only for root too
    assert "epoch" not in capsys.readouterr().out


# ---- the file itself ----

@pytest.mark.parametrize("program", ["bird.py", "vae.py"])
def test_each_program_needs_only_the_six_packages(program):
    allowed = {"torch", "torchvision", "numpy", "PIL", "sklearn", "tqdm"} | sys.stdlib_module_names
    tree = ast.parse((ROOT / program).read_text())
    used = {(node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
            for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    assert used <= allowed


def test_it_runs_alone_in_an_empty_folder(few, tmp_path):
    shutil.copy(ROOT / "bird.py", tmp_path)
    for command in (("train", "bird.pth", "--epochs", "1"), ("test", "bird.pth")):
        done = subprocess.run([sys.executable, "-I", "bird.py", few, *command], cwd=tmp_path,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bird.csv", "bird.history.jsonl", "bird.pth", "bird.py"]
    assert len(labels_in(tmp_path / "bird.csv")) == 36


def test_twins_do_not_drift():
    twins = ["Mistake", "seed_everything", "pick_device", "write_atomic", "check_writable", "save_atomic", "load_state",
             "write_history", "coarse_epochs", "run", "add_up"]
    for name in twins:
        assert inspect.getsource(getattr(bird, name)) == inspect.getsource(getattr(vae, name)), name
