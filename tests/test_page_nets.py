"""The networks in the browser against torch: export.py and nets.js, in Chromium."""

import base64
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from playwright.sync_api import Error
from torch import Tensor, nn

import bird
import vae
from nestling.explain.gradcam import grad_cam
from nestling.files import UserError
from nestling.page import export

pytestmark = pytest.mark.slow              # Chromium starts for it
Net = TypeVar("Net", bound=nn.Module)
SIZES = [(240, 240), (500, 375), (97, 130), (1300, 1010)]             # of photos: width, height


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    """A page opened from a file, with nets.js and nothing else."""
    path = tmp_path_factory.mktemp("page") / "nets.html"
    path.write_text(f'<script src="{Path(export.__file__).with_name("nets.js").as_uri()}"></script>')
    page = chromium.new_page()
    page.goto(path.as_uri())
    yield page
    page.close()


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """The reference computes in float32 on all hardware."""
    monkeypatch.setattr(bird, "autocast", lambda device: torch.autocast(device.type, enabled=False))


@pytest.fixture(params=["16 bits", "exact"])
def tolerance(request, monkeypatch) -> float:
    """Of probabilities and pixels: with weights as they are exported, and with exact ones, for the arithmetic."""
    if request.param == "16 bits":
        return 2e-4
    encoded = export.encoded
    monkeypatch.setattr(export, "LARGEST", 1)
    monkeypatch.setattr(Tensor, "round", lambda tensor: tensor)
    monkeypatch.setattr(export, "encoded", lambda tensor, dtype: encoded(tensor, "<f4"))
    return 2e-5


def randomise(net: Net) -> Net:
    """Statistics and affine weights of the normalisations as a training might leave them, some negative."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data[::5] *= -1
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"), std=0.5)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    return net.eval()


def bird_net(classes: int, size: int, batch_norm: bool = True) -> bird.BirdNet:
    """A network of random weights, whose features are about as large as a trained one's."""
    torch.manual_seed(size)
    net = bird.BirdNet(classes, batch_norm=batch_norm)
    net.extra |= {"classes": [f"Bird {k}" for k in range(classes)], "size": size}
    randomise(net)
    x = torch.stack([pixels_of(photo(i, 240, 240)) for i in range(3)]) / 255
    with torch.no_grad():
        net.head.weight /= net.classify(net.feature_map(x)).std() / 1.5      # not all of them sure of one class
    return net


def photo(seed: int, width: int, height: int) -> np.ndarray:
    """A smooth random photo (height, width, 3) uint8."""
    g = torch.Generator().manual_seed(seed)
    x = F.interpolate(torch.rand(1, 3, 9, 12, generator=g), (height, width), mode="bicubic").clamp(0, 1)
    return (255 * x[0]).round().byte().permute(1, 2, 0).numpy()


def pixels_of(rgb: np.ndarray) -> torch.Tensor:
    """As `bird.decode` has it, (3, 240, 240) uint8."""
    return torch.tensor(np.asarray(bird.to_rgb(Image.fromarray(rgb), bird.STORED))).permute(2, 0, 1)


def in_browser(page, net: bird.BirdNet, photos: list[np.ndarray]) -> list[dict]:
    """What `look` and `predict` say."""
    return page.evaluate("""([model, photos]) => {
        const net = Nets.bird(model);
        return photos.map(([rgb, width, height]) => {
          const bytes = Uint8ClampedArray.from(atob(rgb), c => c.charCodeAt(0));
          const small = net.squash(bytes, width, height);
          const look = net.look(small), {probabilities} = net.predict(small);
          return {...look, probabilities: [...look.probabilities], heat: [...look.heat],
                  predicted: [...probabilities]};
        });
      }""", [export.export_bird(net), [[text(rgb), rgb.shape[1], rgb.shape[0]] for rgb in photos]])


def text(rgb: np.ndarray) -> str:
    return base64.b64encode(rgb.tobytes()).decode()


@pytest.mark.parametrize(("stages", "classes", "size", "batch_norm"), [
    (None, 10, 128, True), (((6, 1, 1), (9, 2, 1), (16, 2, 1)), 3, 100, True),
    (((5, 1, 2), (8, 2, 1)), 2, 72, False),
    (((8, 1, 1), (8, 2, 1), (16, 1, 1), (17, 2, 1)), 4, 216, True), (((8, 2, 1),), 2, 33, True)],
    ids=["default", "small", "no batch norm", "uncropped size", "odd size"])
def test_birds_as_in_torch(page, monkeypatch, tolerance, stages, classes, size, batch_norm):
    if stages:
        monkeypatch.setattr(bird.BirdNet, "STAGES", stages)
    net = bird_net(classes, size, batch_norm)
    photos = [photo(i, *shape) for i, shape in enumerate(SIZES)]
    pixels = torch.stack(list(map(pixels_of, photos)))
    looks, predictions = bird.predict(net, pixels, tta=False), bird.predict(net, pixels)
    x = bird.resize(pixels[:, :, 12:-12, 12:-12], size) / 255
    heat = torch.stack([grad_cam(net, x, k) for k in range(classes)], dim=1).numpy()    # (N, K, h, w)
    for i, seen in enumerate(in_browser(page, net, photos)):
        assert (seen["h"], seen["w"]) == heat.shape[2:]
        assert seen["probabilities"] == pytest.approx(looks[i].tolist(), abs=tolerance)
        assert seen["predicted"] == pytest.approx(predictions[i].tolist(), abs=tolerance)
        difference = np.abs(np.reshape(seen["heat"], heat.shape[1:]) - heat[i]).max(axis=(1, 2))
        assert difference.max() < 1e-3 * heat[i].max()     # of the likely classes' maps
        if tolerance < 1e-4:                               # a map of nearly no evidence is all rounding
            assert (difference <= 1e-3 * heat[i].max(axis=(1, 2))).all()


def vae_net(clusters: int, heads: int = 3) -> vae.VAE:
    """A VAE of random weights and statistics, which uses its last head."""
    torch.manual_seed(clusters)
    net = randomise(vae.VAE(clusters, heads))
    net.z_mean.copy_(torch.tensor([0.3, -0.2]))
    net.z_std.copy_(torch.tensor([0.8, 1.3]))
    if clusters:
        net.head.fill_(heads - 1)
    return net


def mixture_of(digits: list[int]) -> vae.GaussianMixture:
    """Components of random means and covariances, one of them long and thin."""
    g = torch.Generator().manual_seed(1)
    a = torch.randn(len(digits), 2, 2, generator=g, dtype=torch.float64)
    covariances = a @ a.mT + 1e-6 * torch.eye(2)
    covariances[0] = torch.tensor([[1.0, 0.9999], [0.9999, 1.0]])
    weights = torch.rand(len(digits), generator=g, dtype=torch.float64).softmax(dim=0)
    return vae.GaussianMixture(weights, torch.randn(len(digits), 2, generator=g, dtype=torch.float64), covariances,
                               digits)


@pytest.mark.parametrize("clusters", [3, 2, 0])
def test_digits_as_in_torch(page, tolerance, clusters):
    net, mixture = vae_net(clusters), mixture_of([1, 4, 8])
    g = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(5, 1, 7, 7, generator=g), (28, 28), mode="bicubic").clamp(0, 1)[:, 0]
    z = torch.cat([torch.randn(5, 2, generator=g), torch.tensor([[30.0, -20.0], [0.0, 0.0]])])
    with torch.no_grad():
        (mu, logvar), q, made = net.encode(x), net.clusters(x), net.decode(z)
    seen = page.evaluate("""([model, xs, zs]) => {
        const net = Nets.vae(model);
        return {encoded: xs.map(x => net.encode(x)), decoded: zs.map(z => [...net.decode(z)]),
                shares: zs.map(z => net.mixture.responsibilities(z)), digits: net.mixture.digits};
      }""", [export.export_vae(net, mixture), x.flatten(1).tolist(), z.tolist()])
    close = tolerance / 2
    for i, encoded in enumerate(seen["encoded"]):
        assert encoded["mu"] == pytest.approx(mu[i].tolist(), abs=close)
        assert encoded["sigma"] == pytest.approx((logvar[i] / 2).exp().tolist(), abs=close)
        assert encoded["clusters"] == pytest.approx(q[i].tolist(), abs=close)
    for i, image in enumerate(seen["decoded"]):
        assert image == pytest.approx(made[i].flatten().tolist(), abs=close)
    assert seen["digits"] == [1, 4, 8]
    assert np.array(seen["shares"]) == pytest.approx(mixture.e_step(z)[0].numpy(), abs=1e-6)


def test_another_version_is_refused(page):
    with pytest.raises(Error, match="version 2"):
        page.evaluate("model => Nets.bird(model)", {"version": 2})


@pytest.mark.parametrize("layer", [
    nn.GELU(), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3), nn.MaxPool2d(3),
    nn.BatchNorm2d(4, affine=False)], ids=["GELU", "groups", "no padding", "pool of 3", "no weights"])
def test_an_unknown_layer_stops_the_export(monkeypatch, layer):
    monkeypatch.setattr(bird.BirdNet, "STAGES", ((4, 1, 1),))
    net = bird.BirdNet(2)
    net.features.append(nn.Sequential(layer))
    with pytest.raises(UserError, match=rf"^the page cannot run the layer {type(layer).__name__}\(.* trained\.$"):
        export.export_bird(net)


@pytest.mark.parametrize(("left", "top", "width", "height", "side"), [
    (5, 7, 20, 60, 140), (80, 3, 55, 30, 140), (0, 0, 280, 280, 280), (9, 9, 2, 2, 28), (100, 100, 160, 31, 280)])
def test_a_drawing_is_scaled_and_centred(page, left, top, width, height, side):
    ink = np.zeros((side, side))
    ink[top:top + height, left:left + width] = 1.0
    ink[top:top + height // 2, left:left + width // 2] = 0.5          # its centre of mass is not the box's
    out = np.reshape(page.evaluate("([ink, side]) => [...Nets.asMnist(Float32Array.from(ink), side)]",
                                   [ink.flatten().tolist(), side]), (28, 28))
    rows, columns = out.sum(axis=1), out.sum(axis=0)
    scale = 20 / max(width, height)
    assert out.sum() == pytest.approx(ink.sum() * scale**2, rel=1e-4)      # nothing is cut off
    assert 0 <= out.min() < out.max() < 1 + 1e-6
    for sums, length in ((rows, height), (columns, width)):
        assert sums @ np.arange(28) / sums.sum() == pytest.approx(14, abs=0.05)      # as in MNIST
        assert abs(np.flatnonzero(sums > 1e-6).size - length * scale) <= 2


def test_a_drawing_with_its_mass_far_aside_stays_in_the_frame(page):
    ink = np.zeros((100, 100))
    ink[10:90, 10:14], ink[12, 10:90] = 1.0, 0.2                       # a heavy stroke and a long hair
    out = np.array(page.evaluate("ink => [...Nets.asMnist(Float32Array.from(ink), 100)]", ink.flatten().tolist()))
    assert out.sum() == pytest.approx(ink.sum() * (20 / 80) ** 2, rel=1e-4)


def test_an_empty_drawing_stays_empty(page):
    assert page.evaluate("() => Nets.asMnist(new Float32Array(100), 10).every(value => value === 0)")
