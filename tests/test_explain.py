"""Laws of nestling/explain: maps equal to two packages', nothing left behind, numbers equal to scikit-learn's."""

import gc
import json
import os
import shutil
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import bird
import vae
from nestling import cli
from nestling.explain import counts, draw, gradcam, latent, photos, pointing, write


def network(classes: int = 4, seed: int = 7, strides: tuple[int, ...] = bird.FINE) -> bird.BirdNet:
    """Random weights, also where a new BirdNet has zeros, and batch statistics that are not those of a new one.

    In float64, where sums that nearly cancel come out the same in any order.
    """
    torch.manual_seed(seed)
    net = bird.BirdNet(classes, strides=strides)
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.2, 1.0 if name.endswith("weight") else 0.4)
    with torch.no_grad():
        net.train()(torch.rand(8, 3, 64, 64))
        net.head.weight.mul_(1000)                                  # so that the 1e-7 that grad-cam adds is nothing
    return net.eval().double()


@pytest.fixture(scope="module")
def net() -> bird.BirdNet:
    return network()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---- Grad-CAM ----


@pytest.mark.parametrize("where", ["last", "earlier"])
def test_maps_are_those_of_captum(where, net, x):
    from captum.attr import LayerGradCam

    target, layer = torch.tensor([0, 3, 1]), net.features if where == "last" else net.features[-5]
    theirs = LayerGradCam(net, layer).attribute(x, target, relu_attributions=True)[:, 0]
    ours = gradcam.grad_cam(net, x, target, None if where == "last" else layer)
    assert ours.shape == (3, *((8, 8) if where == "last" else (16, 16)))
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-9, atol=0)
    assert theirs.max() > 0


@pytest.mark.parametrize("where", ["last", "earlier"])
def test_maps_are_those_of_grad_cam(where, net, x):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer = net.features if where == "last" else net.features[-5]
    target = net(x).argmax(dim=1)                                   # there is evidence for it
    with GradCAM(net, [layer]) as package:
        theirs = package(x, [ClassifierOutputTarget(k) for k in target.tolist()])      # each from 0 to 1
    maps = gradcam.grad_cam(net, x, target, layer)
    ours = torch.nn.functional.interpolate(maps[:, None], (128, 128), mode="bilinear")[:, 0]
    ours = ours - ours.amin(dim=(1, 2), keepdim=True)
    np.testing.assert_allclose(ours / ours.amax(dim=(1, 2), keepdim=True), theirs, atol=2e-6)


@pytest.mark.parametrize("strides", [bird.FINE, bird.COARSE])
def test_a_heat_map_is_read_at_a_sixteenth_of_the_side(strides, x):
    net = network(strides=strides)
    assert gradcam.grad_cam(net, x, 0, gradcam.fine_layer(net)).shape == (3, 8, 8)
    net.extra["size"] = 64                                           # looked at 64 and 128 px, in steps of 32
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    assert gradcam.look(net.float(), pixels, torch.tensor([0, 1])).shape == (2, 8, 8)


def test_the_cells_add_up_to_the_logit_less_its_bias(x):
    net = network()
    net.head.weight.data.abs_()                                     # then the ReLU has nothing to cut off
    net.head.weight.data[:, net.head.in_features // 2:] = 0         # the maxima's half: the law is the mean's
    logits = net(x).detach()
    for k in range(4):
        sums = gradcam.grad_cam(net, x, k).sum(dim=(1, 2))
        torch.testing.assert_close(sums, logits[:, k] - net.head.bias[k].detach())


def test_every_shape_of_photo_has_its_map(net):
    assert gradcam.grad_cam(net, torch.rand(2, 3, 96, 160).double(), 1).shape == (2, 6, 10)


def test_a_map_does_not_depend_on_its_neighbours(net, x):
    together = gradcam.grad_cam(net, x, 2)
    alone = torch.cat([gradcam.grad_cam(net, photo[None], 2) for photo in x])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_gradient_switch_does_not_matter_and_stays(around, x):
    net = network().requires_grad_(False)
    expected = gradcam.grad_cam(network(), x, 1)
    with around():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        torch.testing.assert_close(gradcam.grad_cam(net, x.clone(), 1), expected)
        assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())


def test_nothing_is_left_behind_also_after_an_error(x):
    net = network().train()
    net.dropout.eval()
    modes = [module.training for module in net.modules()]
    statistics = {name: value.clone() for name, value in net.named_buffers()}
    gradcam.grad_cam(net, x, 1)
    for target, photos_ in ((99, x), (1, x[:, :2])):                # no such class; two channels
        with pytest.raises((RuntimeError, IndexError)):
            gradcam.grad_cam(net, photos_, target)
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_hooks or module._backward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(statistics[name], value) for name, value in net.named_buffers())
    assert torch.is_grad_enabled()


def test_memory_stays_flat_in_a_loop(net, x):
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(type(o), type) and issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    gradcam.grad_cam(net, x[:1], 0)
    before = tensors()
    for _ in range(20):
        gradcam.grad_cam(net, x[:1], 0)
    assert tensors() == before


def test_no_evidence_is_said_and_not_divided_by(x, tmp_path):
    net = network()
    net.head.weight.data.abs_().neg_()                              # nothing can speak for any class
    maps = gradcam.grad_cam(net, x, 0)
    assert gradcam.is_empty(maps).all()
    mask = torch.ones(3, 64, 64, dtype=torch.bool)
    assert pointing.share_inside(maps, mask).tolist() == [0, 0, 0]
    game = pointing.pointing_game(net.float(), (x * 255).byte(), torch.zeros(3, dtype=torch.long), mask, seeds=(0,))
    assert (game["pointing"], game["empty"]) == (0, 3)
    image = draw.blend(np.full((64, 64, 3), 200, np.uint8), maps[0].numpy(), 0.0)
    assert np.allclose(image, 200 / 255)
    draw.cam_sheet([{"name": "a", "tiles": [{**tile(), "heat": maps[0].numpy()}]}], tmp_path / "a.svg")


# ---- pointing ----


def test_peak_hit_and_share_of_a_map_that_is_known():
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 2] = 3.0
    maps[1, 3, 0] = 1.0
    at = pointing.peaks(maps, 64)
    assert at[0].tolist() == pytest.approx([0.375, 0.625], abs=1 / 64)   # the middle of the cell
    assert 0.75 < at[1, 0] < 1                                           # within it: there is no cell beyond the edge
    assert 0 < at[1, 1] < 0.25
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 16:32, 32:48] = True                                   # the very cell
    masks[1, :32] = True                                            # far away
    assert pointing.hits(at, masks).tolist() == [True, False]
    share = pointing.share_inside(maps, masks)
    assert 0.5 < share[0] < 0.75                                    # some of the smoothed cell lies beyond its edge
    assert share[1] < 0.01
    assert pointing.share_inside(torch.ones(2, 4, 4), masks).tolist() == pytest.approx([1 / 16, 0.5])


def test_a_randomised_network_is_another_one_and_the_same_each_time(net):
    state = torch.get_rng_state()
    a, b, c = (pointing.randomised(net, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert a.extra == net.extra
    assert torch.equal(a.head.weight, b.head.weight)
    assert not torch.equal(a.head.weight, c.head.weight)
    assert not torch.equal(a.features[0].weight, net.features[0].weight)
    assert torch.equal(a.mean, net.mean)


def test_masks_are_found_beside_a_drawn_set_and_fit_the_birds(birds):
    assert pointing.masks_of(birds / "train") == birds.absolute() / "masks" / "train"
    assert pointing.masks_of(birds / "masks") is None
    names = [p.relative_to(birds / "test") for p in bird.find_images(birds / "test")[0]]
    masks = pointing.read_masks(birds / "masks" / "test", names, 48)
    assert masks.shape == (len(names), 48, 48)
    whole = np.asarray(Image.open(birds / "masks" / "test" / names[0].with_suffix(".png")).convert("L")) > 127
    assert masks[0].float().mean().item() == pytest.approx(whole.mean(), abs=0.03)
    with pytest.raises(bird.Mistake, match="mask"):
        pointing.read_masks(birds / "masks" / "test", [Path("nobody/0.jpg")], 48)


def test_the_photos_shown_are_the_surest_of_each_kind():
    p = torch.tensor([[.9, .1], [.6, .4], [.2, .8], [.45, .55], [.3, .7], [.95, .05]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    assert photos.choose(p, labels, right=1, wrong=2) == [([0], [2, 3]), ([4], [5])]
    assert photos.choose(p[:4], labels[:4], right=3, wrong=0)[1] == ([], [])


# ---- counts and latents ----


def test_a_class_that_the_figures_cannot_write_is_shown_by_its_number(capsys):
    assert photos.legible(["Zoë_#1*", "鳥", "$x$"]) == ["Zoë_#1*", "class 1", "$x$"]
    assert "鳥 is shown as class 1" in capsys.readouterr().err


def test_confusion_matrix_and_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.choice([1, 4, 8], 200), rng.choice([1, 4, 8, 9], 200)
    names = [1, 4, 8, 9]                                            # no true 9: its recall is a share of nothing
    table = counts.confusion(labels, predicted, names)
    assert np.array_equal(table, confusion_matrix(labels, predicted, labels=names))
    theirs = precision_recall_fscore_support(labels, predicted, labels=names, zero_division=0)
    rows = counts.per_class(table)
    for key, column in zip(("precision", "recall", "f1", "number"), theirs, strict=True):
        assert [row[key] for row in rows] == pytest.approx(column.tolist())


@pytest.mark.parametrize(("sigmas", "share"), [(1, 0.393), (2, 0.865)])
def test_ellipses_hold_the_share_of_points_that_a_normal_distribution_says(sigmas, share):
    mean, covariance = np.array([1.0, -2.0]), np.array([[2.0, 0.9], [0.9, 0.7]])
    z = np.random.default_rng(0).multivariate_normal(mean, covariance, 40_000)
    outline = Outline(latent.ellipse(mean, covariance, sigmas))
    assert outline.contains_points(z).mean() == pytest.approx(share, abs=0.008)


def test_the_grid_is_the_assignments_with_z2_upwards():
    torch.manual_seed(0)
    net = vae.VAE().eval()
    axis = latent.percentiles()
    assert axis[[0, -1]] == pytest.approx([-1.6449, 1.6449], abs=1e-4)
    assert axis.shape == (20,)
    grid = latent.manifold(net)
    assert grid.shape == (20, 20, 28, 28)
    corners = {(0, 0): (0, 19), (0, 19): (19, 19), (19, 0): (0, 0), (19, 19): (19, 0), (3, 5): (5, 16)}
    with torch.no_grad():
        for (row, column), (i, j) in corners.items():
            z = torch.tensor([[axis[i], axis[j]]], dtype=torch.float32)
            np.testing.assert_allclose(grid[row, column], net.decode(z)[0].numpy(), atol=1e-6)


def test_colours_follow_labels_where_they_are_known_and_components_otherwise(digits):
    net, mixture = vae.load_model(digits / "vae.pth"), vae.load_mixture(digits / "gmm.pkl")
    known = latent.read(net, mixture, vae.DigitDataset(digits / "test.npz"))
    group, names, _ = latent.groups(known, mixture)
    assert names == ["1", "4", "8"]
    assert np.array_equal(np.array([1, 4, 8])[group], known.labels)
    assert known.wrong.sum() == (known.labels != known.predicted).sum()
    unknown = latent.read(net, mixture, vae.DigitDataset(digits / "recon.npz"))
    group, names, _ = latent.groups(unknown, mixture)
    assert np.array_equal(np.array([int(n) for n in names])[group], unknown.predicted)
    assert not unknown.wrong.any()


# ---- drawing ----


def tile(**more) -> dict:
    rng = np.random.default_rng(0)
    return {"photo": rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), "heat": rng.random((4, 4)), "aspect": 1.5,
            "named": "a very long name of a bird, longer than any photo is wide", "p": 0.8, "p_true": 0.1,
            "right": False, **more}


BIRD_ROWS = [{"epoch": e, "size": 96 if e < 3 else 128, "lr": 1e-3 / e, "train_loss": 2 / e, "train_accuracy": e / 9,
              "val_loss": 2.5 / e, "val_accuracy": e / 10, "seconds": 9 * e, "best": e in (1, 4)} for e in range(1, 6)]
VAE_ROWS = [{"epoch": 1, "phase": "clusters", "lr": 1e-3, "information": 0.3, "held_information": 0.4, "seconds": 5.0},
            *({"epoch": e, "phase": "latents", "lr": 1e-3, "loss": 9 / e, "held_loss": 8 / e, "recon": 9 / e, "kl": e,
               "held_recon": 8 / e, "held_kl": e, "ssim": 1.0, "held_ssim": 1.0, "seconds": 5.0} for e in range(2, 9))]
RNG = np.random.default_rng(0)
Z, GROUP, DIGITS = RNG.normal(size=(50, 2)), RNG.integers(0, 3, 50), RNG.random((17, 28, 28))
FIGURES = {
    "curves of a bird": (draw.curves, BIRD_ROWS),
    "curves of a vae": (draw.curves, VAE_ROWS),
    "curves of one epoch": (draw.curves, BIRD_ROWS[:1]),
    "cams": (draw.cam_sheet, [{"name": "$x$ 鳥", "tiles": [tile(), tile(right=True)]}, {"name": "", "tiles": []}]),
    "confusion": (draw.confusion, RNG.integers(0, 9, (13, 13)), [f"class number {k}" for k in range(13)]),
    "reconstructions": (draw.reconstructions, DIGITS, DIGITS),
    "manifold": (draw.manifold, DIGITS[:9].reshape(3, 3, 28, 28), np.array([-1.0, 0.0, 1.0])),
    "scatter": (draw.scatter, Z, GROUP, ["1", "4", "8"]),
    "ellipses": (draw.ellipses, Z, GROUP, ["1", "4", "8"], np.zeros((1, 2)), np.eye(2)[None]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_arrays_give_the_same_bytes(name, tmp_path):
    function, *arrays = FIGURES[name]
    suffix = ".png" if function is draw.cam_sheet else ".svg"
    first, second = (function(*arrays, tmp_path / f"{k}{suffix}") for k in "ab")
    assert first.read_bytes() == second.read_bytes()
    with Image.open(function(*arrays, tmp_path / "c.png")) as image:
        assert 6.5 < image.width / 200 * 2.54 < 17.1                # cm at 200 dpi, on an A4 page


def test_time_is_counted_from_the_start_for_both_programs():
    assert [row["minutes"] for row in draw.derived(BIRD_ROWS)] == pytest.approx([9 * e / 60 for e in range(1, 6)])
    assert draw.derived(VAE_ROWS)[-1]["minutes"] == pytest.approx(8 * 5 / 60)
    assert "ssim" not in draw.derived(VAE_ROWS)[-1]                 # 1 by definition where it is not in the loss


@pytest.mark.parametrize("path", ["a.bmp", "nowhere/a.svg"])
def test_a_figure_that_cannot_be_written_is_a_mistake(path, tmp_path):
    with pytest.raises(bird.Mistake, match=path.split("/")[0]):
        draw.reconstructions(DIGITS, DIGITS, tmp_path / path)
    assert not list(tmp_path.iterdir())


# ---- the command, end to end ----


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """A small drawn set, and a model that saw it for one epoch at a small size."""
    from nestling.data.birds import make_birds

    out = tmp_path_factory.mktemp("explain") / "birds"
    make_birds(out, per_class=5, size=64, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bird, "SIZES", ((1.0, 64, 1.0),))
        bird.train(out / "train", out / "bird.pth", bird.Config(epochs=1, batch=16))
    return out


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """The shipped digits, a VAE of random weights and a mixture fitted to its latents."""
    from nestling.data.digits import make_digits

    out = tmp_path_factory.mktemp("explain") / "digits"
    make_digits(out)
    vae.seed_everything(0)
    net = vae.VAE().eval()
    train, val = (vae.DigitDataset(out / name) for name in ("train.npz", "val.npz"))
    near = vae.lookalikes(val.images, train.images, 5)
    mixture = vae.fit_mixture(vae.latent_means(net, train.images), near, vae.latent_means(net, val.images), val.labels,
                              net.centres)
    vae.save_atomic(out / "vae.pth", net.state_dict())
    vae.save_mixture(out / "gmm.pkl", mixture)
    return out


def command(*words: object) -> int:
    """The exit status of `nestling explain ...`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["explain", *map(str, words)])
    return stop.value.code


def test_explain_bird_from_end_to_end(birds, tmp_path, capsys):
    out = tmp_path / "deep" / "figures"
    assert command("bird", birds / "bird.pth", birds / "test", "--out", out) == 0
    said = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    net = bird.load_model(birds / "bird.pth")
    classes = net.extra["classes"]
    assert {p.name for p in out.iterdir()} == {"cams", "cams.png", "confusion.svg", "curves.svg", "summary.json"}
    assert {p.stem for p in (out / "cams").iterdir()} == set(classes)
    bird.test(birds / "test", birds / "bird.pth", tmp_path / "bird.csv", torch.device("cpu"))
    assert f"score {summary['score']:.4f}" in capsys.readouterr().out           # what `bird.py test` prints
    assert f"score {summary['score']:.4f}" in said
    predicted = [int(line) for line in (tmp_path / "bird.csv").read_text().split()[1:]]
    labels = [classes.index(name) for name in bird.find_images(birds / "test")[1]]
    assert summary["confusion"] == confusion_matrix(labels, predicted, labels=range(10)).tolist()
    game = summary["pointing game"]
    assert game["photos"] == len(labels)
    assert all(0 <= game[key] <= 1 for key in ("pointing", "heat_inside", "random_pointing", "centre", "area"))
    assert f"pointing game {game['pointing']:.3f}" in said


def test_explain_vae_from_end_to_end(digits, tmp_path, capsys):
    out = tmp_path / "figures"
    assert command("vae", digits / "vae.pth", digits / "gmm.pkl", digits / "test.npz", "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert {p.name for p in out.iterdir()} == {"reconstructions.png", "manifold.png", "scatter.svg", "ellipses.svg",
                                               "confusion.svg", "summary.json"}
    assert "vae.history.jsonl" in capsys.readouterr().err                       # there is none: said, not an error
    data = vae.DigitDataset(digits / "test.npz")
    predicted = vae.classify(vae.load_model(digits / "vae.pth"), vae.load_mixture(digits / "gmm.pkl"), data.images)
    assert summary["scores"] == pytest.approx(vae.scores(data.labels.numpy(), predicted.numpy()))
    assert summary["misread"] == (predicted != data.labels).nonzero()[:, 0].tolist()
    assert sum(map(sum, summary["confusion"])) == len(data)
    (digits / "vae.history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in VAE_ROWS))
    unlabelled = tmp_path / "unlabelled"
    assert command("vae", digits / "vae.pth", digits / "gmm.pkl", digits / "recon.npz", "--out", unlabelled) == 0
    assert (unlabelled / "curves.svg").exists()
    assert not (unlabelled / "confusion.svg").exists()
    assert "scores" not in json.loads((unlabelled / "summary.json").read_text())


def test_a_training_too_short_for_an_epoch_has_no_curves(tmp_path, capsys):
    (tmp_path / "vae.history.jsonl").write_text("")
    assert write.history_of(tmp_path / "vae.pth") == []
    assert "vae.history.jsonl" in capsys.readouterr().err


def test_wrong_input_is_one_sentence_and_status_2(birds, digits, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    shutil.copytree(birds / "test", foreign)
    (foreign / sorted(p.name for p in foreign.iterdir())[0]).rename(foreign / "Dodo")
    broken = tmp_path / "bird.pth"
    shutil.copy(birds / "bird.pth", broken)
    broken.with_suffix(".history.jsonl").write_text("{half")
    a_file, out = tmp_path / "file", tmp_path / "out"
    a_file.write_text("")
    cases = [
        (("bird", tmp_path / "none.pth", birds / "test", "--out", out), "none.pth"),
        (("bird", digits / "vae.pth", birds / "test", "--out", out), "not a model of bird.py"),
        (("bird", birds / "bird.pth", tmp_path / "nowhere", "--out", out), "does not exist"),
        (("bird", birds / "bird.pth", birds, "--out", out), "did you mean"),
        (("bird", birds / "bird.pth", foreign, "--out", out), "Dodo"),
        (("bird", birds / "bird.pth", birds / "test", "--out", a_file), "cannot be made"),
        (("bird", broken, birds / "test", "--out", out), "history"),
        (("vae", birds / "bird.pth", digits / "gmm.pkl", digits / "test.npz", "--out", out), "not a model of vae.py"),
        (("vae", digits / "vae.pth", digits / "vae.pth", digits / "test.npz", "--out", out), "mixture"),
        (("vae", digits / "vae.pth", digits / "gmm.pkl", birds, "--out", out), "folder"),
        (("vae", digits / "vae.pth", digits / "gmm.pkl", digits / "test.npz"), "--out"),
    ]
    for words, fact in cases:
        assert command(*words) == 2, words
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(said) == 1
        assert fact in said[0]
