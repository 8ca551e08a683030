"""Laws of nestling/explain: maps equal to two packages', nothing left behind, known numbers."""

import gc
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline
from PIL import Image
from sklearn.metrics import confusion_matrix

import bird
import vae
from nestling import cli
from nestling.explain import draw, gradcam, latent, photos, pointing, sheets
from nestling.files import UserError


def network(classes: int = 4, seed: int = 7) -> bird.BirdNet:
    """Random weights, also where a new BirdNet has zeros, and batch statistics that are not those of a new
    one.

    In float64, where sums that nearly cancel come out the same in any order.
    """
    torch.manual_seed(seed)
    net = bird.BirdNet(classes)
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.2, 1.0 if name.endswith("weight") else 0.4)
    with torch.no_grad():
        net.train()(torch.rand(8, 3, 64, 64))
        net.head.weight.mul_(1000)                         # so that the 1e-7 that grad-cam adds is nothing
    return net.eval().double()


@pytest.fixture(scope="module")
def net() -> bird.BirdNet:
    return network()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---- Grad-CAM ----

def test_maps_are_those_of_captum(net, x):
    from captum.attr import LayerGradCam

    target = torch.tensor([0, 3, 1])
    theirs = LayerGradCam(net, net.features).attribute(x, target, relu_attributions=True)[:, 0]
    ours = gradcam.grad_cam(net, x, target)
    assert ours.shape == (3, 8, 8)                         # output stride 16
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-9, atol=0)
    assert theirs.max() > 0


def test_maps_are_those_of_grad_cam(net, x):
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    target = net(x).argmax(dim=1)                          # there is evidence for it
    with GradCAM(net, [net.features]) as package:
        theirs = package(x, [ClassifierOutputTarget(k) for k in target.tolist()])      # each from 0 to 1
    maps = gradcam.grad_cam(net, x, target)
    ours = torch.nn.functional.interpolate(maps[:, None], (128, 128), mode="bilinear")[:, 0]
    ours = ours - ours.amin(dim=(1, 2), keepdim=True)
    np.testing.assert_allclose(ours / ours.amax(dim=(1, 2), keepdim=True), theirs, atol=2e-6)


def test_the_cells_add_up_to_the_logit_less_its_bias(x):
    net = network()
    net.head.weight.data.abs_()                            # then the ReLU has nothing to cut off
    net.head.weight.data[:, net.head.in_features // 2:] = 0            # the maxima's half
    logits = net(x).detach()
    for k in range(4):
        sums = gradcam.grad_cam(net, x, k).sum(dim=(1, 2))
        torch.testing.assert_close(sums, logits[:, k] - net.head.bias[k].detach())


def test_a_map_depends_on_its_own_photo_only_whatever_its_shape(net):
    x = torch.rand(3, 3, 96, 160).double()
    together = gradcam.grad_cam(net, x, 2)
    assert together.shape == (3, 6, 10)
    torch.testing.assert_close(together, torch.cat([gradcam.grad_cam(net, photo[None], 2) for photo in x]))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_gradient_mode_does_not_matter_and_stays(around, net, x):
    frozen = network().requires_grad_(False)
    expected = gradcam.grad_cam(net, x, 1)
    with around():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        torch.testing.assert_close(gradcam.grad_cam(frozen, x.clone(), 1), expected)
        assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())


def test_nothing_is_left_behind_also_after_an_error(x):
    net = network()
    state = {name: value.clone() for name, value in [*net.named_parameters(), *net.named_buffers()]}
    gradcam.grad_cam(net, x, 1)
    for target, pixels in ((99, x), (1, x[:, :2])):        # no such class; two channels
        with pytest.raises((RuntimeError, IndexError)):
            gradcam.grad_cam(net, pixels, target)
    assert not any(module._forward_hooks or module._backward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
    assert torch.is_grad_enabled()


def test_memory_stays_flat_in_a_loop(net, x):
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(type(o), type) and issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    gradcam.grad_cam(net, x[:1], 0)
    before = tensors()
    for _ in range(10):
        gradcam.grad_cam(net, x[:1], 0)
    assert tensors() == before


def test_the_map_of_a_photo_and_of_its_mirror_image_are_mirror_images():
    net = network().float()
    net.extra["size"] = 64
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    maps = gradcam.cam_maps(net, pixels, torch.tensor([0, 1]))
    assert maps.shape == (2, 8, 8)                         # of the larger scale, 2 x 64 px
    torch.testing.assert_close(gradcam.cam_maps(net, pixels.flip(3), torch.tensor([0, 1])).flip(2), maps,
                               rtol=1e-3, atol=1e-3 * maps.max().item())


def test_no_evidence_is_said_and_not_divided_by(x, tmp_path):
    net = network()
    net.head.weight.data.abs_().neg_()                     # nothing can speak for any class
    maps = gradcam.grad_cam(net, x, 0)
    assert not maps.any()
    mask = torch.ones(3, 64, 64, dtype=torch.bool)
    assert pointing.share_inside(maps, mask).tolist() == [0, 0, 0]
    net.extra["size"] = 64
    labels = torch.zeros(3, dtype=torch.long)
    game = pointing.pointing_game(net.float(), (x * 255).byte(), labels, mask, seeds=(0,))
    assert (game["pointing"], game["empty"]) == (0, 3)
    assert np.allclose(sheets.blend(np.full((64, 64, 3), 200, np.uint8), maps[0].numpy()), 200 / 255)
    empty, full = (sheets.cam_row("a", [{**photo(), "cam": cam}], tmp_path / f"{k}.svg")
                   for k, cam in enumerate((maps[0].numpy(), np.ones((4, 4)))))
    assert "no evidence" in empty.read_text()              # text stands in comments of the SVG
    assert "no evidence" not in full.read_text()


# ---- pointing ----

def test_peak_hit_and_share_of_a_map_that_is_known():
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 2] = 3.0
    maps[1, 3, 0] = 1.0
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 16:32, 32:48] = True                          # the very cell
    masks[1, :32] = True                                   # far away
    assert pointing.hits(maps, masks).tolist() == [True, False]
    assert pointing.hits(maps, ~masks).tolist() == [False, True]
    middle = torch.zeros(2, 64, 64, dtype=torch.bool)      # of the cells, with no tolerance
    middle[0, 23:25, 39:41] = middle[1, 48:, :16] = True
    assert pointing.hits(maps, middle).all()
    share = pointing.share_inside(maps, masks)
    assert 0.5 < share[0] < 0.75                           # some of the smoothed cell lies beyond its edge
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


def test_masks_are_found_beside_a_drawn_set_and_fit_the_birds(birds):
    assert pointing.mask_folder(birds / "train") == birds.absolute() / "masks" / "train"
    assert pointing.mask_folder(birds / "masks") is None
    paths = [p.relative_to(birds / "test") for p in bird.find_images(birds / "test")[0]]
    masks = pointing.read_masks(birds / "masks" / "test", paths, 48)
    assert masks.shape == (len(paths), 48, 48)
    whole = np.asarray(Image.open(birds / "masks" / "test" / paths[0].with_suffix(".png")).convert("L")) > 127
    assert masks[0].float().mean().item() == pytest.approx(whole.mean(), abs=0.03)
    with pytest.raises(UserError, match="mask"):
        pointing.read_masks(birds / "masks" / "test", [Path("nobody/0.jpg")], 48)


# ---- photos and latents ----

def test_the_photos_shown_are_the_most_confident_of_each_kind():
    p = torch.tensor([[.9, .1], [.6, .4], [.2, .8], [.45, .55], [.3, .7], [.95, .05]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    assert photos.choose(p, labels, number=2, wrong=1) == [[0, 2], [4, 5]]
    assert photos.choose(p, labels, number=3, wrong=0) == [[0, 1, 2], [4, 5]]      # a wrong one fills up
    assert photos.choose(p[:4], labels[:4], number=3, wrong=3) == [[0, 2, 3], []]


def test_a_class_that_the_figures_cannot_write_is_shown_by_its_number():
    assert photos.legible(["Zoë_#1*", "鳥", "$x$"]) == ["Zoë_#1*", "class 1", "$x$"]


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
    known = latent.encode(net, mixture, vae.DigitDataset(digits / "test.npz"))
    group, names, _ = latent.groups(known, mixture)
    assert names == ["1", "4", "8"]
    assert np.array_equal(np.array([1, 4, 8])[group], known.labels)
    assert known.wrong.sum() == (known.labels != known.predicted).sum() > 0
    unknown = latent.encode(net, mixture, vae.DigitDataset(digits / "recon.npz"))
    group, names, _ = latent.groups(unknown, mixture)
    assert np.array_equal(np.array([int(name) for name in names])[group], unknown.predicted)
    assert not unknown.wrong.any()


# ---- drawing ----

def photo(**more) -> dict:
    rng = np.random.default_rng(0)
    return {"photo": rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), "cam": rng.random((4, 4)),
            "aspect": 1.5, "wrong": "", "p": 0.8, **more}


BIRD_ROWS = [{"epoch": e, "epochs": 5, "seconds": 9.0 * e, "size": 96 if e < 3 else 128, "train_loss": 2 / e,
              "train_accuracy": e / 9, "val_loss": 2.5 / e, "val_accuracy": e / 10, "val_macro_f1": e / 11,
              "best": e in (1, 4)} for e in range(1, 6)]
VAE_ROWS = [{"epoch": 1, "phase": "clusters", "information": 0.3, "held_information": 0.4, "seconds": 5.0},
            *({"epoch": e, "phase": "latents", "loss": 9 / e, "held_loss": 8 / e, "recon": 9 / e, "kl": e,
               "held_recon": 8 / e, "held_kl": e, "ssim": 0.5, "held_ssim": 0.4, "seconds": 5.0 * e}
              for e in range(2, 9))]
ABLATION = [{"setting": name, "what": name, "runs": 2, "score": 0.8 + d, "scores": [0.8, 0.8 + 2 * d],
             "difference": d or None, "beyond": d < 0} for name, d in (("baseline", 0.0), ("a", 0.1))]
RNG = np.random.default_rng(0)
Z, GROUP, DIGITS = RNG.normal(size=(50, 2)), RNG.integers(0, 3, 50), RNG.random((17, 28, 28))
FIGURES = {
    "curves of a bird": (draw.curves, BIRD_ROWS),
    "curves of a vae": (draw.curves, VAE_ROWS),
    "curves of one epoch": (draw.curves, BIRD_ROWS[:1]),
    "ablation": (draw.ablation, ABLATION),
    "confusion": (draw.confusion, RNG.integers(0, 9, (6, 6)), [f"class number {k}" for k in range(6)]),
    "maps": (sheets.cam_row, "$x$ 鳥", [photo(), photo(wrong="a very long name of a bird")]),
    "no maps": (sheets.cam_row, "a", []),
    "reconstructions": (sheets.reconstructions, DIGITS, DIGITS),
    "manifold": (sheets.manifold, DIGITS[:9].reshape(3, 3, 28, 28), np.array([-1.0, 0.0, 1.0])),
    "latents": (sheets.latents, Z, GROUP, ["1", "4", "8"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_arrays_give_the_same_bytes_and_fit_on_a_page(name, tmp_path):
    function, *arrays = FIGURES[name]
    first, second = (function(*arrays, tmp_path / f"{k}.svg").read_text() for k in "ab")
    assert first == second
    assert 6.5 < float(first.split('width="')[1].split("pt")[0]) / 72 * 2.54 < 17.1            # cm


def test_ellipses_and_misclassified_points_are_drawn(tmp_path):
    more = {"mixture": (np.zeros((1, 2)), np.eye(2)[None], ["C"]), "wrong": GROUP == 1}
    plain, mixture = (sheets.latents(Z, GROUP, ["1", "4", "8"], tmp_path / "a.svg", **given).read_text()
                      for given in ({}, more))
    for text in (f"<!-- misclassified ({(GROUP == 1).sum()}) -->", "<!-- C -->"):
        assert text in mixture
        assert text not in plain


def test_names_are_wrapped_and_never_cut(tmp_path):
    name = "White-Breasted-Kingfisher"
    svg = sheets.cam_row(name, [photo(wrong=name)], tmp_path / "a.svg").read_text()
    lines = re.findall("<!-- (.*?) -->", svg)
    assert lines[:2] == [name, "predicted as"]
    assert "".join(lines[2:]) == f"{name} (0.80)"


def test_a_figure_that_cannot_be_written_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        sheets.reconstructions(DIGITS, DIGITS, tmp_path / "nowhere" / "a.svg")


# ---- the command, end to end ----

@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """A small drawn set, and a network of random weights for it."""
    from nestling.data.birds import make_birds

    out = tmp_path_factory.mktemp("explain") / "birds"
    make_birds(out, per_class=4, size=48, workers=1)
    net = network(10).float()
    net.extra |= {"classes": sorted(path.name for path in (out / "test").iterdir()), "size": 32}
    bird.save(out / "bird.pth", net.state_dict())
    (out / "bird.history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in BIRD_ROWS))
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
    vae.save(out / "vae.pth", net.state_dict())
    vae.save_mixture(out / "gmm.pkl", vae.fit_mixture(net, train.images, val.images, val.labels))
    return out


def command(*words: object) -> int:
    """The exit status of `nestling explain ...`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["explain", *map(str, words)])
    return stop.value.code


@pytest.mark.slow
def test_explain_bird_from_end_to_end(birds, tmp_path, capsys):
    out = tmp_path / "deep" / "figures"
    assert command("bird", birds / "bird.pth", birds / "test", "--out", out) == 0
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    classes = bird.load_model(birds / "bird.pth").extra["classes"]
    assert {p.name for p in out.iterdir()} == {"cams", "cams.png", "confusion.svg", "curves.svg",
                                               "summary.json"}
    assert {p.stem for p in (out / "cams").iterdir()} == set(classes)
    bird.test(birds / "test", birds / "bird.pth", tmp_path / "bird.csv", torch.device("cpu"))
    assert f"score {summary['score']:.4f}" in capsys.readouterr().out          # what `bird.py test` prints
    assert f"score {summary['score']:.4f}" in printed
    predicted = [int(line) for line in (tmp_path / "bird.csv").read_text().split()[1:]]
    labels = [classes.index(name) for name in bird.find_images(birds / "test")[1]]
    assert summary["confusion"] == confusion_matrix(labels, predicted, labels=range(10)).tolist()
    numbers = [row["number"] for row in summary["classes"].values()]
    assert numbers == np.bincount(labels, minlength=10).tolist()
    game = summary["pointing game"]
    assert game["photos"] == len(labels)
    assert all(0 <= game[key] <= 1 for key in ("pointing", "heat_inside", "random_pointing", "centre"))
    assert f"pointing game {game['pointing']:.3f}" in printed


@pytest.mark.slow
def test_explain_vae_from_end_to_end(digits, tmp_path, capsys):
    out = tmp_path / "figures"
    assert command("vae", digits / "vae.pth", digits / "gmm.pkl", digits / "test.npz", "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert {p.name for p in out.iterdir()} == {"reconstructions.png", "manifold.png", "scatter.svg",
                                               "ellipses.svg", "confusion.svg", "summary.json"}
    assert "vae.history.jsonl" in capsys.readouterr().err  # there is none: said, not an error
    data = vae.DigitDataset(digits / "test.npz")
    mixture = vae.load_mixture(digits / "gmm.pkl")
    predicted = vae.classify(vae.load_model(digits / "vae.pth"), mixture, data.images)
    assert summary["scores"] == pytest.approx(vae.scores(data.labels, predicted))
    assert summary["misclassified"] == (predicted != data.labels).nonzero()[:, 0].tolist()
    assert sum(map(sum, summary["confusion"])) == len(data)
    (digits / "vae.history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in VAE_ROWS))
    out = tmp_path / "unlabelled"
    assert command("vae", digits / "vae.pth", digits / "gmm.pkl", digits / "recon.npz", "--out", out) == 0
    assert (out / "curves.svg").exists()
    assert not (out / "confusion.svg").exists()
    assert "scores" not in json.loads((out / "summary.json").read_text())


def test_wrong_input_is_one_sentence_and_status_2(birds, digits, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    shutil.copytree(birds / "test", foreign)
    min(foreign.iterdir()).rename(foreign / "Dodo")
    broken = tmp_path / "bird.pth"
    shutil.copy(birds / "bird.pth", broken)
    broken.with_suffix(".history.jsonl").write_text("{half")
    a_file, out = tmp_path / "file", tmp_path / "out"
    a_file.write_text("")
    cases = [
        (("bird", tmp_path / "none.pth", birds / "test", "--out", out), "none.pth"),
        (("bird", digits / "vae.pth", birds / "test", "--out", out), "vae.pth"),
        (("bird", birds / "bird.pth", tmp_path / "nowhere", "--out", out), "nowhere"),
        (("bird", birds / "bird.pth", foreign, "--out", out), "Dodo"),
        (("bird", birds / "bird.pth", birds / "test", "--out", a_file), "file"),
        (("bird", broken, birds / "test", "--out", out), "history"),
        (("vae", birds / "bird.pth", digits / "gmm.pkl", digits / "test.npz", "--out", out), "bird.pth"),
        (("vae", digits / "vae.pth", digits / "vae.pth", digits / "test.npz", "--out", out), "mixture"),
        (("vae", digits / "vae.pth", digits / "gmm.pkl", birds, "--out", out), "birds"),
    ]
    for words, fact in cases:
        assert command(*words) == 2, words
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert fact in errors[0]
