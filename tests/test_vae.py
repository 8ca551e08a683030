"""vae.py: its losses against their references, what it learns, its files and its three commands."""

import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch
from conftest import ROOT
from skimage.metrics import structural_similarity
from sklearn.metrics import f1_score
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import vae
from nestling.data.digits import make_digits
from vae import VAE, Config, DigitDataset, GaussianMixture

TRAIN = ("train.npz", "val.npz", "train", "vae.pth", "gmm_params.pkl")
RECON = ("recon.npz", "test_reconstruction", "vae.pth")
TEST = ("test.npz", "test_classifier", "vae.pth", "gmm_params.pkl")
FILES = (*TRAIN[:2], *TRAIN[3:])
SHORT = Config(epochs=2, cluster_share=1.0, min_steps=2)           # for `small`: 4 epochs of two steps


def history() -> list[dict]:
    return [json.loads(line) for line in Path("vae.history.jsonl").read_text().splitlines()]


def outputs() -> list[bytes]:
    return [Path(name).read_bytes() for name in ("vae.pth", "gmm_params.pkl")]


def assert_close(found, expected, atol=1e-5) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected).to(found), atol=atol, rtol=1e-4)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """scikit-learn's digits 1, 4 and 8 in the contract's files, with a model that has learned nothing."""
    make_digits(folder := tmp_path_factory.mktemp("digits") / "all")
    vae.save(folder / "vae.pth", VAE().state_dict())
    vae.save_mixture(folder / TRAIN[4], GaussianMixture.fit(torch.randn(99, 2), torch.eye(3, 2), [1, 4, 8]))
    return folder


@pytest.fixture
def small(digits, tmp_path, monkeypatch) -> Path:
    """The current folder: a copy of `digits` with 40 training images; a training takes a moment."""
    for path in digits.iterdir():
        (os.link if path.suffix == ".pth" else shutil.copy)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    np.savez("train.npz", data=DigitDataset("train.npz").images[:40], labels=np.zeros(40, int))
    return tmp_path


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory) -> Path:
    """A copy of `digits` with a model that reads most of them."""
    folder = shutil.copytree(digits, tmp_path_factory.mktemp("trained") / "all")
    train, val, model, gmm = (folder / name for name in FILES)
    vae.train(train, val, model, gmm, Config(epochs=1, cluster_share=4, batch_size=100, min_steps=32), "cpu")
    return folder


@pytest.fixture
def model(trained, monkeypatch) -> tuple[VAE, GaussianMixture]:
    """That model and its mixture; its folder is the current one."""
    monkeypatch.chdir(trained)
    return vae.load_model("vae.pth"), vae.load_mixture("gmm_params.pkl")


@pytest.mark.parametrize("recon", ["bce", "mse"])
def test_the_elbo_is_summed_over_pixels_and_latents_and_averaged_over_images(recon):
    x, x_hat, mu, logvar = *torch.rand(2, 9, 28, 28), *torch.randn(2, 9, 2)
    bce, mse = -(x * x_hat.log() + (1 - x) * (1 - x_hat).log()), (x - x_hat) ** 2
    found, kl = vae.elbo_terms(x, x_hat, mu, logvar, recon)
    assert_close(found, (bce if recon == "bce" else mse).sum() / 9)
    posterior = Normal(mu, (0.5 * logvar).exp())
    assert_close(kl, kl_divergence(posterior, Normal(0.0, 1.0)).sum() / 9)
    q, means, std = torch.randn(9, 3).softmax(dim=1), torch.randn(3, 2), torch.rand(2) + 0.1
    parts = torch.stack([kl_divergence(posterior, Normal(mean, std)).sum(dim=1) for mean in means], dim=1)
    assert_close(vae.kl_divergence(mu[:, None], logvar[:, None], means, std), parts)
    assert_close(vae.elbo_terms(x, x_hat, mu, logvar, recon, (q, means, std))[1], (q * parts).sum() / 9)


def test_ssim_is_the_one_of_scikit_image(digits):
    x = DigitDataset(digits / "recon.npz").images
    y = (x + 0.2 * torch.rand_like(x)).clamp(0, 1)
    expected = [structural_similarity(a.numpy(), b.numpy(), data_range=1) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(vae.ssim(x, y).numpy(), expected, atol=1e-5)


def test_mutual_information_is_log_c_for_even_clusters_and_0_for_independent_ones():
    even = torch.eye(4).repeat(30, 1)[:, None]                                             # (120, 1, 4)
    assert_close(vae.mutual_information(even, even), [np.log(4)], 1e-4)
    assert_close(vae.mutual_information(even, even, 1.5), [2 * np.log(4)], 1e-4)
    assert_close(vae.mutual_information(even, torch.full_like(even, 0.25)), [0.0], 1e-4)
    p, q = torch.randn(2, 50, 3, 4).softmax(dim=3)
    assert_close(vae.mutual_information(p, q), vae.mutual_information(q, p))
    assert_close(vae.mutual_information(p, q)[[2]], vae.mutual_information(p[:, [2]], q[:, [2]]))


@pytest.mark.parametrize("clusters", range(11))
def test_the_prior_has_mean_0_and_covariance_1(clusters):
    means, std = vae.prior(clusters, 2.8)
    assert_close(means.mean(dim=0), torch.zeros(2))
    assert_close(torch.diag(std.square()) + means.T @ means / len(means), torch.eye(2))
    if clusters > 2:
        assert_close((means[0] - means[1]).norm() / std[0], 5.6)


def test_reparameterised_draws_have_their_moments_and_repeat_with_their_generator():
    mu, logvar = torch.tensor([3.0, -1.0]).repeat(20_000, 1), torch.full((20_000, 2), 2 * np.log(0.5))
    z = vae.reparameterise(mu, logvar, vae.generator(1))
    assert_close(z.mean(dim=0), mu[0], 0.02)
    assert_close(torch.cov(z.T), 0.25 * torch.eye(2), 0.01)
    assert torch.equal(z, vae.reparameterise(mu, logvar, vae.generator(1)))


def test_nearest_neighbours_are_those_of_all_distances():
    x, images = torch.rand(52, 28, 28).split([12, 40])
    order = (x[:, None] - images).square().sum(dim=(2, 3)).argsort(dim=1)
    assert torch.equal(vae.nearest_neighbours(x, images, 3), order[:, :3])
    assert torch.equal(vae.nearest_neighbours(x, images, 50), order)


def test_a_warp_keeps_the_range_repeats_and_is_the_identity_without_its_draws(monkeypatch):
    x = torch.rand(7, 28, 28)
    warped = vae.warp(x, vae.generator(0))
    assert 0 <= warped.min() <= warped.max() <= 1
    assert torch.equal(warped, vae.warp(x, vae.generator(0)))
    assert (warped - x).abs().mean() > 0.05
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, 0.5))   # half of -1..1
    monkeypatch.setattr(torch, "randn", lambda *shape, generator: torch.zeros(shape))
    assert_close(vae.warp(x, vae.generator(0)), x, 1e-4)


@pytest.mark.parametrize("shape", [(3, 5, 2.8), (0, 5, 2.8), (2, 1, 2.0), (7, 2, 2.8)])
def test_a_model_takes_on_the_shape_of_any_state(shape):
    saved, net, x = VAE(*shape).eval(), VAE(), torch.rand(5, 28, 28)
    net.load_state_dict(saved.state_dict())
    assert all(map(torch.equal, net.eval()(x), saved(x)))
    assert 0 <= (images := net.decode(100 * torch.randn(200, 2))).min() <= images.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [5, 2, 1])
def test_it_reads_digits_after_few_labelled_ones(model, labelled):
    (net, _), images, val = model, DigitDataset("train.npz").images, DigitDataset("val.npz")
    test, y = DigitDataset("test.npz"), np.asarray(val.labels)
    for first in range(0, 6 - labelled, labelled):
        rows = np.concatenate([np.flatnonzero(y == digit)[first:first + labelled] for digit in (1, 4, 8)])
        mixture = vae.fit_mixture(net, images, val.images[rows], torch.from_numpy(y[rows]))
        assert mixture.digits == [1, 4, 8]
        assert np.mean(vae.classify(net, mixture, test.images).numpy() == np.asarray(test.labels)) > 0.7


@pytest.mark.slow
def test_latents_are_standardised_and_classified_by_the_likeliest_component(model):
    (net, mixture), loaded, x = model, VAE(), DigitDataset("train.npz").images
    loaded.load_state_dict(torch.load("vae.pth"))
    z = loaded.eval().encode(x)[0].detach()
    assert_close(z.mean(dim=0), torch.zeros(2), 1e-3)
    assert_close(z.std(dim=0), torch.ones(2), 1e-3)
    density = MultivariateNormal(mixture.means, mixture.covariances).log_prob(z.double()[:, None])
    best = (density + mixture.weights.log()).argmax(dim=1)
    assert vae.classify(net, mixture, x).tolist() == [mixture.digits[k] for k in best]


@pytest.mark.slow
def test_reconstructions_beat_the_decoded_mean_and_the_scores_are_those_of_scikit_learn(model, capsys):
    assert vae.run(vae.main, [*RECON]) == vae.run(vae.main, [*TEST]) == 0
    first, _, *lines = capsys.readouterr().out.splitlines()
    (net, mixture), x, test = model, DigitDataset("recon.npz").images, DigitDataset("test.npz")
    with np.load("vae_reconstructed.npz") as found:
        assert found.files == ["data"]
        made = torch.from_numpy(found["data"])
    assert (made.shape, made.dtype) == (x.shape, torch.float32)
    assert 0 <= made.min() <= made.max() <= 1
    decoded, mse = net.decode(vae.latent_means(net, x)).detach(), (x - made).square().mean()
    assert vae.ssim(x, made).mean() > vae.ssim(x, decoded).mean()
    assert mse < (x - decoded).square().mean()
    assert f"1 - MSE {1 - mse:.4f}, SSIM {vae.ssim(x, made).mean():.4f}" in first
    header, *rows = Path("vae.csv").read_text().splitlines()
    predicted = [int(row) for row in rows]
    assert (header, predicted) == ("Predicted_Label", vae.classify(net, mixture, test.images).tolist())
    macro, micro = (f1_score(test.labels, predicted, average=average) for average in ("macro", "micro"))
    printed = {line[:28].strip(): float(line[28:]) for line in lines}
    expected = {"(macro F1 + micro F1) / 2": (macro + micro) / 2, "macro F1": macro, "accuracy": micro}
    assert {name: printed[name] for name in expected} == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("change", "classes"), [
    ({"recon": "mse"}, [1, 4, 8]), ({"warp": False}, [0, 7]), ({"neighbours": 0, "heads": 1}, [*range(10)])])
def test_each_setting_trains_and_val_decides_which_digits_there_are(small, change, classes):
    np.savez("val.npz", data=np.random.rand(len(classes), 28, 28), labels=classes)
    assert vae.train(*FILES, Config(epochs=1, min_steps=2, **change), "cpu").digits == classes
    assert vae.load_model("vae.pth").shape["clusters"] == len(classes)


@pytest.mark.slow
def test_killed_or_not_the_same_seed_gives_the_same_bytes_whatever_the_labels_of_train(small, capsys):
    vae.train(*FILES, SHORT, "cpu")
    first, rows = outputs(), history()
    assert [(row["epoch"], row["phase"][0]) for row in rows] == [(1, "c"), (2, "c"), (3, "l"), (4, "l")]
    assert np.diff([row["seconds"] for row in rows]).min() >= 0
    assert {"lr", "loss", "recon", "kl", "ssim", "held_loss", "held_recon", "held_kl"} < set(rows[-1])
    np.savez("train.npz", data=DigitDataset("train.npz").images, labels=np.arange(40) % 10)
    vae.train(*FILES, replace(SHORT, seed=1), "cpu")
    assert outputs() != first
    code = f"""import os, signal, vae; loss, calls = vae.latent_loss, iter("1234")     # of epochs 3 and 4
vae.latent_loss = lambda *of: loss(*of) if next(calls, None) else os.kill(os.getpid(), signal.SIGKILL)
vae.train(*{FILES}, vae.{SHORT}, "cpu")"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    vae.train(*FILES, SHORT, "cpu")
    assert "resuming after epoch 3" in capsys.readouterr().out
    assert (outputs(), [row["lr"] for row in history()]) == (first, [row["lr"] for row in rows])


def test_a_stopped_training_leaves_the_earlier_model_and_only_the_same_resumes(small, capsys, monkeypatch):
    before, loss, x = outputs(), vae.latent_loss, DigitDataset("train.npz").images
    monkeypatch.setattr(vae, "latent_loss", lambda *of: (loss(*of)[0], {"loss": torch.tensor(np.nan)}))
    with pytest.raises(vae.UserError, match="not finite"):
        vae.train(*FILES, SHORT, "cpu")
    monkeypatch.setattr(vae, "latent_loss", Mock(side_effect=KeyboardInterrupt))
    assert vae.run(lambda _: print(vae.train(*FILES, SHORT, "cpu")), []) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert outputs() == before
    torch.save([1, 2], "list.pt")
    Path("half.pt").write_bytes(Path("vae.checkpoint.pt").read_bytes()[:-1000])
    keys = {vae.fingerprint(*of) for of in [(Config(), x), (Config(seed=1), x), (Config(), x.flip(0))]}
    assert len(keys) == 3
    for name in ("list.pt", "half.pt"):
        assert vae.load_checkpoint(Path(name), keys.pop(), SHORT) is None
        assert "starting anew" in capsys.readouterr().err
    for cfg, other in ((replace(SHORT, seed=1), "seed 0, now 1"), (SHORT, "other data")):
        with pytest.raises(vae.UserError, match=f"another training .*{other}"):    # it is not overwritten
            vae.load_checkpoint(Path("vae.checkpoint.pt"), "", cfg)


@pytest.mark.parametrize(("tick", "whole"), [(1.5, True), (30, False), (1000, False)])
def test_the_budget_is_kept_even_if_interrupted_or_too_short_for_a_step(small, monkeypatch, tick, whole):
    monkeypatch.setattr(vae.time, "monotonic", Mock(side_effect=itertools.count(0.0, tick)))
    cfg = Config(budget=1.5, min_steps=4)
    if whole:                                    # Ctrl-C in the second epoch of the latents
        calls = [DEFAULT] * 7 + [KeyboardInterrupt] + [DEFAULT] * 999
        monkeypatch.setattr(vae, "latent_loss", Mock(wraps=vae.latent_loss, side_effect=calls))
        with pytest.raises(KeyboardInterrupt):
            vae.train(*FILES, cfg, "cpu")
    vae.train(*FILES, cfg, "cpu")
    assert "latents, clusters" not in ", ".join(row["phase"] for row in history())
    assert vae.load_model("vae.pth").decode(torch.zeros(1, 2)).isfinite().all()
    for phase, peak in (("clusters", cfg.cluster_lr), ("latents", cfg.lr)):
        rates = [row["lr"] for row in history() if row["phase"] == phase]
        assert rates[-1] < 0.05 * peak < 0.5 * peak < max(rates) <= peak if whole else len(rates) == 1
    assert not whole or 0.8 * 90 < history()[-1]["seconds"] < 90


@pytest.mark.slow
def test_it_runs_alone_in_a_folder_and_plain_is_the_assignments_loss(small):
    shutil.copy(ROOT / "vae.py", "vae.py")
    plain, wrong = (*TRAIN, "--plain", "--epochs", "1"), ("no", *TEST[1:])
    for words, outcome in ((plain, (0, "")), (wrong, (2, "error: no"))):
        done = subprocess.run([sys.executable, "vae.py", *words], capture_output=True, text=True)
        assert (done.returncode, done.stderr[:9]) == outcome
    (row,), net = history(), vae.load_model("vae.pth")
    assert row["loss"] == pytest.approx(row["recon"] + row["kl"], rel=1e-5)
    assert (row["phase"], net.shape["clusters"], net.prior_means.tolist()) == ("latents", 0, [[0, 0]])
    assert vae.run(vae.main, [*TEST, "--csv", "a.csv"]) == vae.run(vae.main, [*RECON, "--npz", "b"]) == 0
    made = {path.name for path in small.glob("[!rt]*")}
    assert made == {"val.npz", "vae.py", "vae.pth", "gmm_params.pkl", "vae.history.jsonl", "a.csv", "b"}


def test_every_form_of_the_images_is_read(small):
    with np.load("test.npz") as found:
        x, y = found["data"], found["labels"]
    forms = [x, x / 255, x.astype(float), x.reshape(-1, 784), x[:, None], x[..., None], {"pictures": x}]
    labelled = [{"data": x, "labels": y}, {"x": x, "label": y + 0.0}, {"v": 3, "a": x, "y": y[:, None]}]
    for i, form in enumerate([*forms, *labelled]):
        with open("form", "wb") as file:
            np.savez(file, **form) if isinstance(form, dict) else np.save(file, form)
        assert_close(DigitDataset("form").images, torch.from_numpy(x).float() / 255)
        assert DigitDataset("form")[3][1] == (-1 if i < len(forms) else y[3])
    np.save("a.npy", x[0])
    assert DigitDataset("a.npy").images.shape == (1, 28, 28)


def test_values_of_any_known_range_become_0_to_1(small, capsys):
    with np.load("test.npz") as found:
        x = found["data"]
    unit, bits = torch.from_numpy(x).float() / 255, torch.from_numpy(x > 127).float()
    for form, expected in [((x > 127).astype(np.uint8), bits), ((x > 127).astype(int), bits), (x > 127, bits),
                           ((x / 255 * 1.0000002).astype("f4"), unit), (x * 1.03, 1.03 * unit),
                           (x / 255 * 1.12 - 0.06, 1.12 * unit - 0.06)]:
        np.save("a.npy", form)
        assert_close(DigitDataset("a.npy").images, expected.clamp(0, 1))
    assert capsys.readouterr().err == ""
    for form in (255 - x, x // 100, 0 * x):                        # black on white, and all but black
        np.save("a.npy", form)
        DigitDataset("a.npy")
        assert "note: a.npy: the mean pixel" in capsys.readouterr().err


def zipped(**members: bytes) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return buffer.getvalue()


def npy(header: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


LIE = "{'descr': '|u1', 'fortran_order': False, 'shape': (60000000, 28, 28)}"
X, Y = np.zeros((6, 28, 28), np.uint8), np.arange(6)
AS_TEST, AS_MODEL, AS_MIXTURE = ("?", *TEST[1:]), (*RECON[:2], "?"), (*TEST[:3], "?")
AS_TRAIN, AS_VAL = ("?", *TRAIN[1:]), ("train.npz", "?", *TRAIN[2:])
WRONG = [  # a command, what the file at its "?" holds, a word of the sentence
    *[(AS_TEST, {"data": data, "labels": labels}, word) for data, labels, word in [
        (np.zeros((6, 27, 28)), Y, ""), (np.zeros((6, 28, 28, 3)), Y, ""), (X[:0], Y[:0], ""),
        (X + np.nan, Y, "nan"), (X + np.inf, Y, "inf"), (X - 1.0, Y, "-1"), (X + 300.0, Y, "300"),
        (X + 1j, Y, ""), (X.astype(str), Y, ""), (X.astype(object), Y, ""), (X, Y[:5], "labels"),
        *[(X, labels, "digits") for labels in (Y + 0.5, Y * np.nan, Y - 1, Y * 9, Y.astype(str))]]],
    *[(command, content, "") for command in (AS_TEST, AS_TRAIN, AS_VAL, AS_MODEL, AS_MIXTURE)
      for content in (None, Path.mkdir, b"", b"hello")],
    *[(command, os.mkfifo, "") for command in (AS_TEST, AS_MODEL, AS_MIXTURE)],
    *[(AS_TEST, content, word) for content, word in [
        (zipped(a_txt=b"x"), "unpack it first"), (zipped(train_npz=b"PK"), "unpack"), (npy(LIE), ""),
        (zipped(data_npy=npy(LIE)), ""), (zipped(data_npy=bytes(1_100_000_000)), "more than 1 GB"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}, "2 arrays of images .*save one"),
        ({"train_images": X, "train_labels": Y, "val_images": X}, "save one")]],
    (AS_TRAIN, {"data": np.full((40, 28, 28), 9)}, "40 times the same image"),
    (AS_TEST, {"labels": Y}, "images"), (AS_TEST, b"PK\x03\x04" + b"\xff" * 400, ""),
    (AS_TEST, lambda _: Path("test.npz").read_bytes()[:3000], ""),
    (AS_TEST, lambda _: Path("vae.pth").read_bytes(), ""), (AS_TRAIN, {"data": X}, "20"),
    (AS_VAL, {"data": X}, "labels"), (AS_VAL, {"data": X, "labels": 0 * Y}, "2 digits"),
    *[(AS_MODEL, content, "") for content in (
        [1, 2], {"a": torch.zeros(2)}, lambda _: torch.load("vae.pth") | {"z_mean": torch.zeros(3)},
        *[lambda _, change=change: torch.load("vae.pth") | {
            "_extra_state": VAE().get_extra_state() | change} for change in (
            {"clusters": "three"}, {"heads": 4_000_000}, {"heads": 0}, {"separation": 1e300}, {"program": "bird"})],
        lambda _: torch.load("vae.pth") | {"head": torch.tensor(99)},
        lambda _: torch.load("vae.pth") | {"z_mean": torch.tensor([0, torch.nan])},
        lambda _: Path("vae.pth").read_bytes()[:-5000])],
    ((*TRAIN[:3], "?", TRAIN[4]), Path.mkdir, "folder"), ((*TRAIN[:4], "no/?"), None, "written"),
    ((*TRAIN[:3], "?", "?"), None, "named twice"), ((*TRAIN[:3], "?", "wrong.history.jsonl"), None, "named twice"),
    *[(command, lambda _: Path("train.npz").read_bytes(), "is read too") for command in (
        ("?", *TRAIN[1:3], "?", TRAIN[4]), ("train.npz", "?", *TRAIN[2:4], "?"), ("?", *TEST[1:], "--csv", "?"),
        ("?", *RECON[1:], "--npz", "?"))],
    ((*TEST, "--csv", TEST[3]), None, "gmm_params.pkl is read too"), ((*RECON, "--npz", "vae.pth"), None, "vae.pth is"),
    ((*AS_TRAIN, "--seed", str(2**63)), None, "--seed"),
    *[((*AS_TRAIN, *option), None, option[0]) for option in [
        ("--epochs", "0"), ("--epochs", "-2"), ("--budget", "0"), ("--budget", "nan"), ("--budget", "-1")]],
]


@pytest.mark.parametrize(("command", "content", "word"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_file_is_one_sentence_and_status_2(small, capsys, command, content, word):
    before, path = outputs(), Path("wrong.npz")
    content = content(path) if callable(content) else content
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path) if command is AS_MODEL else np.savez(path, **content)
    assert vae.run(vae.main, [item.replace("?", "wrong.npz") for item in command]) == 2
    notes = r"(note: .*\n)*"                     # of images that are all black
    sentence = rf"{notes}error: (?=.*{'wrong' if '?' in command and '--' not in word else ''}).*{word}.*\n"
    assert re.fullmatch(sentence, capsys.readouterr().err)
    assert outputs() == before
