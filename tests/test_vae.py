"""vae.py: its losses against their references, its files, its commands, and what it says to wrong input."""

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from sklearn.datasets import load_digits
from torch.distributions import Normal, kl_divergence

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import vae  # noqa: E402
from vae import VAE, Config, DigitDataset, Mistake  # noqa: E402

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
TRAIN = ("train.npz", "val.npz", "train", "vae.pth", "gmm_params.pkl")
RECON = ("recon.npz", "test_reconstruction", "vae.pth")
TEST = ("test.npz", "test_classifier", "vae.pth", "gmm_params.pkl")


QUICK = f"""
import functools, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)     # a job in the background inherits an ignored one
sys.path.insert(0, {str(ROOT)!r})
import vae
vae.Config = functools.partial(vae.Config, least_steps=8)
sys.exit(vae.run(vae.main, sys.argv[1:]))
"""      # vae.py, but for shorter epochs


def program(folder: Path, *words: str, **more) -> subprocess.CompletedProcess:
    """vae.py as a user runs it, in `folder`."""
    return subprocess.run([sys.executable, str(more.pop("script", ROOT / "vae.py")), *words], cwd=folder, env=ENV,
                          capture_output=True, text=True, timeout=180, **more)


def write_digits(folder: Path, digits=(1, 4, 8), per_class: int = 5) -> None:
    """scikit-learn's real digits, brought to 28 x 28, in the four files of the contract."""
    found = load_digits()
    keep = np.isin(found.target, digits)
    small, labels = torch.tensor(found.images[keep] / 16, dtype=torch.float32), found.target[keep]
    large = F.pad(F.interpolate(small[:, None], size=20, mode="bicubic").clamp(0, 1), (4, 4, 4, 4))[:, 0]
    images = (large * 255).round().numpy().astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], labels[order].astype(np.int64)
    val = np.concatenate([np.flatnonzero(labels == d)[:per_class] for d in digits])
    rest = np.setdiff1d(np.arange(len(images)), val)
    cut = len(rest) * 3 // 4
    np.savez(folder / "val.npz", data=images[val], labels=labels[val])
    np.savez(folder / "train.npz", data=images[rest[:cut]], labels=labels[rest[:cut]])
    np.savez(folder / "test.npz", data=images[rest[cut:]], labels=labels[rest[cut:]])
    np.savez(folder / "recon.npz", data=images[rest[-10:]])


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory) -> Path:
    """A folder as the three commands leave it, run alone: nothing in it but the program and the data."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(digits, folder, dirs_exist_ok=True)
    shutil.copy(ROOT / "vae.py", folder)
    for words in ((*TRAIN, "--epochs", "2"), RECON, TEST):
        done = program(folder, *words, script=folder / "vae.py")
        assert done.returncode == 0, done.stderr
        (folder / f"{words[2] if words is not RECON and words is not TEST else words[1]}.out").write_text(done.stdout)
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the trained folder, made the current one."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def says(capsys, *words: str) -> str:
    """Runs a command that must fail with status 2; its one sentence on stderr."""
    assert vae.run(vae.main, [str(w) for w in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    return err


# ---- the losses


def test_kl_is_the_one_of_torch():
    mu, logvar, mean, spread = torch.randn(64, 2), torch.randn(64, 2), torch.randn(2), torch.rand(2) + 0.1
    q = Normal(mu, (0.5 * logvar).exp())
    torch.testing.assert_close(vae.kl_term(mu, logvar), kl_divergence(q, Normal(0.0, 1.0)).sum(dim=1))
    torch.testing.assert_close(vae.kl_term(mu, logvar, mean, spread), kl_divergence(q, Normal(mean, spread)).sum(dim=1))


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_reconstruction_is_the_one_of_torch(loss):
    x, x_hat = torch.rand(9, 28, 28), torch.rand(9, 28, 28)
    mu, logvar = torch.randn(9, 2), torch.randn(9, 2)
    recon, kl = vae.elbo_terms(x, x_hat, mu, logvar, loss)
    reference = F.binary_cross_entropy if loss == "bce" else F.mse_loss
    torch.testing.assert_close(recon, reference(x_hat, x, reduction="sum") / 9)
    torch.testing.assert_close(kl, vae.kl_term(mu, logvar).mean())


def test_mixture_prior_of_one_standard_component_is_the_plain_prior():
    x, x_hat, mu, logvar = torch.rand(9, 784), torch.rand(9, 784), torch.randn(9, 2), torch.randn(9, 2)
    prior = (torch.ones(9, 1), torch.zeros(1, 2), torch.ones(2))
    for mine, theirs in zip(vae.elbo_terms(x, x_hat, mu, logvar, prior=prior),
                            vae.elbo_terms(x, x_hat, mu, logvar), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_ssim_is_the_one_of_scikit_image():
    x = torch.tensor(load_digits().images[:20] / 16, dtype=torch.float32)
    x = F.interpolate(x[:, None], size=28)[:, 0]
    y = (x + 0.2 * torch.rand_like(x)).clamp(0, 1)
    reference = [structural_similarity(a, b, data_range=1) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(vae.ssim(x, y).numpy(), reference, atol=1e-5)


def test_information_is_that_of_the_joint_table():
    p = torch.eye(3)[torch.randint(3, (300,), generator=torch.Generator().manual_seed(0))][:, None]   # (300, 1, 3)
    share = p.mean(dim=(0, 1))
    assert float(vae.information(p, p)) == pytest.approx(float(-(share * share.log()).sum()), abs=1e-5)
    other = torch.full_like(p, 1 / 3)
    assert float(vae.information(p, other)) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("k", range(11))
def test_the_prior_has_mean_0_and_covariance_1(k):
    centres, spread = vae.ring(k, 2.8)
    torch.testing.assert_close(centres.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    within = torch.diag(spread.square())
    torch.testing.assert_close(within + centres.T @ centres / len(centres), torch.eye(2), atol=1e-5, rtol=0)
    if k > 2:
        assert float((centres[0] - centres[1]).norm() / spread[0]) == pytest.approx(5.6, abs=1e-3)


def test_sampling_moves_with_mu_and_sigma_and_repeats_with_its_generator():
    mu, logvar = torch.zeros(20_000, 2), torch.full((20_000, 2), 2 * np.log(0.5))
    z = vae.sample(mu + 3, logvar, vae.generator(1))
    assert float(z.mean()) == pytest.approx(3, abs=0.02)
    assert float(z.std()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(z, vae.sample(mu + 3, logvar, vae.generator(1)))


def test_nearest_images_are_those_of_all_distances():
    x = torch.rand(40, 28, 28)
    distance = torch.cdist(x.flatten(1), x.flatten(1)).fill_diagonal_(float("inf"))
    assert torch.equal(vae.nearest(x, 3), distance.topk(3, largest=False).indices)
    assert torch.equal(vae.nearest(x, 0), torch.arange(40)[:, None])


def test_lookalikes_are_the_nearest_images():
    g = torch.Generator().manual_seed(0)
    x, images = torch.rand(260, 28, 28, generator=g), torch.rand(120, 28, 28, generator=g)
    distance = (x[:, None] - images).square().sum(dim=(2, 3))
    assert torch.equal(vae.lookalikes(x, images, 3), distance.topk(3, largest=False).indices)
    assert vae.lookalikes(x, images, 50).shape == (260, 3)                        # a fortieth at most


def test_standardising_moves_the_plane_and_not_the_pictures(trained):
    net, x = VAE().eval(), DigitDataset(trained / "test.npz").images
    with torch.no_grad():
        before = net.decode(net.encode(x)[0])
        vae.standardise(net, vae.latent_means(net, x))
        z = vae.latent_means(net, x)
        torch.testing.assert_close(z.mean(dim=0), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(z.std(dim=0), torch.ones(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(net.decode(z), before, atol=1e-4, rtol=1e-3)


def test_warped_copies_keep_their_range_and_repeat_with_their_generator():
    x = torch.rand(7, 28, 28)
    warped = vae.warp(x, vae.generator(0, "w"))
    assert warped.min() >= 0
    assert warped.max() <= 1
    assert not torch.equal(warped, x)
    assert torch.equal(warped, vae.warp(x, vae.generator(0, "w")))


def test_config_names_what_cannot_work():
    for wrong, name in (({"epochs": 0}, "--epochs"), ({"budget": 0.0}, "--budget"), ({"budget": float("nan")}, "bud"),
                        ({"seed": -1}, "--seed"), ({"loss": "l1"}, "l1"), ({"lr": 0.0}, "--lr")):
        with pytest.raises(ValueError, match=name):
            Config(**wrong)


# ---- the model and what the commands leave


def test_the_three_commands_alone_in_a_folder(trained):
    labels = (trained / "vae.csv").read_text().splitlines()
    assert labels[0] == "Predicted_Label"
    assert set(labels[1:]) <= {"1", "4", "8"}
    assert len(labels) - 1 == len(np.load(trained / "test.npz")["data"])
    with np.load(trained / "vae_reconstructed.npz") as made:
        assert made.files == ["data"]
        images = made["data"]
    assert images.shape == (10, 28, 28)
    assert images.dtype == np.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert sorted(p.name for p in trained.glob("vae.*")) == ["vae.csv", "vae.history.jsonl", "vae.pth", "vae.py"]
    out = (trained / "train.out").read_text()
    assert "parameters" in out
    assert "active units" in out
    assert "`--epochs 2` repeats it" in out


def test_the_scores_are_those_of_the_csv(trained):
    from sklearn.metrics import f1_score
    predicted = np.loadtxt(trained / "vae.csv", skiprows=1, dtype=int)
    labels = np.load(trained / "test.npz")["labels"]
    expected = (f1_score(labels, predicted, average="macro") + f1_score(labels, predicted, average="micro")) / 2
    lines = (trained / "test_classifier.out").read_text().splitlines()
    said = {name.strip(): float(value) for name, value in (line.rsplit(maxsplit=1) for line in lines[1:])}
    assert said["(macro F1 + micro F1) / 2"] == pytest.approx(expected, abs=1e-4)
    assert said["micro F1"] == said["accuracy"]
    assert {"macro F1", "macro precision", "macro recall"} <= set(said)


def test_the_digits_are_read(folder):
    mixture = vae.train("train.npz", "val.npz", "a.pth", "a.pkl", Config(epochs=3, cluster_share=2, least_steps=20))
    test = DigitDataset("test.npz")
    read = vae.classify(vae.load_model("a.pth"), mixture, test.images).numpy()
    assert np.mean(read == np.load("test.npz")["labels"]) > 0.75


def test_the_history_has_a_line_an_epoch(trained):
    rows = [json.loads(line) for line in (trained / "vae.history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 5))
    assert [row["phase"] for row in rows] == ["clusters", "neighbours"] + ["latents"] * 2
    assert {"lr", "seconds", "loss", "recon", "kl", "ssim", "held_loss", "held_recon", "held_kl"} <= set(rows[-1])
    assert rows[-1]["loss"] < rows[2]["loss"]
    assert rows[0]["information"] > 0


def test_the_history_is_whole_where_the_budget_ends_the_training(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def epoch_of_a_second(*_):
        clock.now += 1
        return {"loss": 1.0}

    monkeypatch.setattr(vae, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(vae, "run_epoch", epoch_of_a_second)
    run = SimpleNamespace(config=Config(budget=0.1), plan={"latents": 9}, rows=[], elapsed=0.0, state=dict)
    vae.run_epochs(run, 0.0, tmp_path / "history.jsonl", tmp_path / "resume.pt")       # 3 seconds for the epochs
    rows = [json.loads(row) for row in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


def test_the_model_loads_anywhere(trained):
    net = VAE()
    net.load_state_dict(torch.load(trained / "vae.pth"))
    net.eval()
    x = DigitDataset(trained / "test.npz").images
    mu, logvar = net.encode(x)
    assert mu.shape == logvar.shape == (len(x), 2)
    torch.testing.assert_close(net.encode(x.flatten(1))[0], mu)
    x_hat, again, _ = net(x)
    torch.testing.assert_close(again, mu)
    torch.testing.assert_close(x_hat, net.decode(mu))
    assert sum(p.numel() for p in net.parameters()) < 10e6
    torch.testing.assert_close(vae.latent_means(net, x), mu, atol=1e-5, rtol=1e-4)


def test_a_model_of_other_classes_takes_on_its_shape():
    for other in (VAE(7), VAE(0), VAE(2, encoder="conv")):
        net = VAE()
        net.load_state_dict(other.state_dict())
        assert net.shape == other.shape


def test_descent_lowers_the_error_and_leaves_the_model(trained):
    net, x = vae.load_model(trained / "vae.pth"), DigitDataset(trained / "test.npz").images
    before = {name: p.clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        mean = net.decode(vae.latent_means(net, x))
    start, end = vae.reconstruct(net, x, steps=0), vae.reconstruct(net, x)
    assert (vae.unlikeness(x, start) <= vae.unlikeness(x, mean) + 1e-4).all()     # never worse than the mean's
    assert vae.unlikeness(x, end).mean() < vae.unlikeness(x, start).mean()
    assert vae.ssim(x, end).mean() > vae.ssim(x, mean).mean()
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in net.named_parameters())
    began = time.monotonic()
    vae.reconstruct(net, x[:10])
    assert time.monotonic() - began < 2


def test_the_reading_is_encoder_mean_component_digit(trained):
    net, mixture = vae.load_model(trained / "vae.pth"), vae.load_mixture(trained / "gmm_params.pkl")
    x = DigitDataset(trained / "test.npz").images
    with torch.no_grad():
        z = net.encode(x)[0].double()
    density = torch.distributions.MultivariateNormal(mixture.means, mixture.covariances)
    best = (density.log_prob(z[:, None]) + mixture.weights.log()).argmax(dim=1)
    assert mixture.digits is not None
    assert vae.classify(net, mixture, x).tolist() == [mixture.digits[i] for i in best]


# ---- the same bytes again


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("vae.pth", "gmm_params.pkl")]


def test_killed_and_gone_on_gives_the_bytes_of_a_run_never_killed(tmp_path, digits):
    words = [sys.executable, "-c", QUICK, *TRAIN, "--epochs", "8"]
    once, often = tmp_path / "once", tmp_path / "often"
    shutil.copytree(digits, once)
    shutil.copytree(digits, often)
    assert subprocess.run(words, cwd=once, env=ENV, stdout=subprocess.DEVNULL, timeout=180).returncode == 0
    for how in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(words, cwd=often, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True) as process:
            wait_for_epoch(process, often / "vae.resume.pt")
            process.send_signal(how)
            _, err = process.communicate(timeout=60)
        assert not (often / "vae.pth").exists()
    assert process.returncode == 130
    assert "give the same command to go on" in err
    assert "Traceback" not in err
    done = subprocess.run(words, cwd=often, env=ENV, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "going on after epoch" in done.stdout
    assert outputs(once) == outputs(often)
    assert not (often / "vae.resume.pt").exists()
    assert [json.loads(row)["epoch"] for row in (often / "vae.history.jsonl").read_text().splitlines()] == [
        *range(1, 11)]


def wait_for_epoch(process: subprocess.Popen, kept: Path) -> None:
    """Returns when this very process has ended an epoch and a state is kept, perhaps by an earlier one."""
    for line in process.stdout:
        if line.startswith("epoch") and kept.exists():
            return
    raise AssertionError("the training never came so far")


def test_a_resume_file_of_other_settings_is_not_used(folder, capsys):
    run = vae.prepare(DigitDataset("train.npz"), DigitDataset("val.npz"), Config(epochs=2), torch.device("cpu"))
    run.plan = {"clusters": 1, "neighbours": 1, "latents": 2}
    torch.save(run.state(), "vae.resume.pt")
    other = vae.prepare(DigitDataset("train.npz"), DigitDataset("val.npz"), Config(epochs=3), torch.device("cpu"))
    assert not other.take_up(Path("vae.resume.pt"))
    assert "starting anew" in capsys.readouterr().out
    Path("vae.resume.pt").write_bytes(b"half a file")
    assert not run.take_up(Path("vae.resume.pt"))
    assert "starting anew" in capsys.readouterr().out


def test_the_clusterer_of_highest_agreement_is_used(digits):
    config = Config(least_steps=4, seed=1)
    run = vae.prepare(DigitDataset(digits / "train.npz"), DigitDataset(digits / "val.npz"), config, torch.device("cpu"))
    run.plan = {"neighbours": 4, "latents": 1}
    found, states = [], []
    for epoch in range(4):
        found.append(vae.run_epoch(run, "neighbours", epoch)["agreement"])
        states.append({name: t.clone() for name, t in run.net.clusterer.state_dict().items()})
    vae.run_epoch(run, "latents", 0)
    best = states[int(np.argmax(found))]
    assert all(torch.equal(t, best[name]) for name, t in run.net.clusterer.state_dict().items())


def test_plain_and_small_budget(folder, capsys):
    began = time.monotonic()
    assert vae.run(vae.main, [*TRAIN, "--plain", "--budget", "0.1"]) == 0
    assert time.monotonic() - began < 15
    assert "epochs of latents" in capsys.readouterr().out
    net = vae.load_model("vae.pth")
    assert net.shape["clusters"] == 0
    rows = [json.loads(line) for line in Path("vae.history.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in rows} == {"latents"}
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["recon"] + rows[-1]["kl"], rel=1e-5)


@pytest.mark.parametrize("change", [{"loss": "mse"}, {"encoder": "conv"}, {"warping": False}, {"average": 0.0},
                                    {"neighbours": 0}])
def test_every_dial_turns(folder, change):
    mixture = vae.train("train.npz", "val.npz", "a.pth", "a.pkl", Config(epochs=1, least_steps=3, **change))
    assert mixture.digits == [1, 4, 8]
    assert set(vae.classify(vae.load_model("a.pth"), mixture, DigitDataset("test.npz").images).tolist()) <= {1, 4, 8}


@pytest.mark.parametrize("classes", [(0, 7), (1, 3, 5, 9), tuple(range(10))])
def test_val_decides_which_digits_there_are(tmp_path, classes):
    write_digits(tmp_path, classes, per_class=3)
    mixture = vae.train(tmp_path / "train.npz", tmp_path / "val.npz", tmp_path / "v.pth", tmp_path / "g.pkl",
                        Config(epochs=1, least_steps=3))
    assert mixture.digits == list(classes)
    assert vae.load_model(tmp_path / "v.pth").shape["clusters"] == len(classes)


def test_a_loss_that_is_not_finite_stops(folder, monkeypatch):
    shutil.copy("vae.pth", "before.pth")
    monkeypatch.setattr(vae, "latent_loss", lambda net, x, q, *_: (  # as if the loss had overflowed
        net.place(x, q)[0].sum() * float("inf"), {"loss": torch.tensor(float("nan"))}))
    with pytest.raises(Mistake, match="no longer finite"):
        vae.train("train.npz", "val.npz", "vae.pth", "gmm_params.pkl", Config(epochs=2, least_steps=3))
    assert Path("vae.pth").read_bytes() == Path("before.pth").read_bytes()


# ---- images in every form


def test_every_accepted_form_gives_the_same_labels(folder, capsys):
    with np.load("test.npz") as found:
        images = found["data"]
    forms = {"a.npy": images, "floats.npz": images / 255, "flat.npz": images.reshape(-1, 784),
             "channel.npy": images[:, None], "last.npy": images[..., None], "double255.npy": images.astype(float)}
    for name, array in forms.items():
        if name.endswith("npy"):
            np.save(name, array)
        else:
            np.savez(name, pictures=array)
        assert vae.run(vae.main, [name, *TEST[1:]]) == 0
        assert Path("vae.csv").read_text() == (folder / "vae.csv").read_text()
        torch.testing.assert_close(DigitDataset(name).images, DigitDataset("test.npz").images)
    assert "read as 0-255" in capsys.readouterr().err
    np.savez("more.npz", version=3, pictures=images, y=np.ones(len(images)))
    assert DigitDataset("more.npz")[2:4][1].tolist() == [1, 1]
    np.save("one.npy", images[0])
    assert len(DigitDataset("one.npy")) == 1
    assert int(DigitDataset("one.npy")[0][1]) == -1


def test_options_name_the_files(folder):
    assert vae.run(vae.main, [*TEST, "--csv", "mine.csv"]) == 0
    assert vae.run(vae.main, [*RECON, "--npz", "mine.npz"]) == 0
    assert Path("mine.csv").read_bytes() == Path("vae.csv").read_bytes()
    assert Path("mine.npz").read_bytes() == Path("vae_reconstructed.npz").read_bytes()


# ---- what it says to wrong input


X = np.zeros((6, 28, 28), np.uint8)
WRONG: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "noimages": ({"weights": np.zeros(3)}, "no images"),
    "onlylabels": ({"labels": np.zeros(6, int)}, "no images"),
    "shape": ({"data": np.zeros((6, 27, 28))}, "shape"),
    "colour": ({"data": np.zeros((6, 28, 28, 3))}, "shape"),
    "nan": ({"data": np.full((6, 28, 28), np.nan)}, "nan"),
    "inf": ({"data": np.full((6, 28, 28), np.inf)}, "inf"),
    "negative": ({"data": X.astype(float) - 1}, "-1"),
    "large": ({"data": X.astype(float) + 300}, "300"),
    "empty": ({"data": X[:0]}, "no image at all"),
    "fewlabels": ({"data": X, "labels": np.zeros(5, int)}, "5 labels"),
    "textlabels": ({"data": X, "labels": np.array(list("abcdef"))}, "whole numbers"),
    "nanlabels": ({"data": X, "labels": np.full(6, np.nan)}, "whole numbers"),
    "text": ({"data": np.full((6, 28, 28), "a")}, "type"),
    "objects": ({"data": np.array([object()], dtype=object)}, "plain arrays"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arrays(folder, capsys, name):
    arrays, word = WRONG[name]
    np.savez(f"{name}.npz", **arrays)  # type: ignore[arg-type]
    assert word in (err := says(capsys, f"{name}.npz", *TEST[1:]))
    assert f"{name}.npz" in err
    assert f"{name}.npz" in says(capsys, f"{name}.npz", "val.npz", *TRAIN[2:])


def test_wrong_files(folder, capsys):
    Path("folder.npz").mkdir()
    Path("text.npz").write_text("hello")
    Path("none.npz").write_bytes(b"")
    Path("half.npz").write_bytes(Path("test.npz").read_bytes()[:3000])
    Path("damaged.npz").write_bytes(b"PK\x03\x04" + b"\xff" * 400)
    np.save("whole.npy", X)
    Path("half.npy").write_bytes(Path("whole.npy").read_bytes()[:500])
    for name in ("missing.npz", "folder.npz", "text.npz", "none.npz", "half.npz", "damaged.npz", "half.npy"):
        assert name in says(capsys, name, *TEST[1:])


def test_wrong_examples(folder, capsys):
    np.savez("nolabels.npz", data=X)
    np.savez("oneclass.npz", data=X, labels=np.ones(6, int))
    np.savez("many.npz", data=np.zeros((11, 28, 28)), labels=np.arange(11))
    for name, word in (("nolabels", "no labels"), ("oneclass", "1 digit;"), ("many", "11 digits")):
        assert word in says(capsys, "train.npz", f"{name}.npz", *TRAIN[2:])
    with np.load("val.npz") as val:
        np.savez("lacking.npz", data=val["data"][:10], labels=val["labels"][:10])
    assert "lacks the digit 8" in says(capsys, "train.npz", "lacking.npz", *TRAIN[2:])
    np.savez("tiny.npz", data=X)
    assert "at least 20" in says(capsys, "tiny.npz", "val.npz", *TRAIN[2:])


def test_wrong_models(folder, capsys):
    torch.save({"a": torch.zeros(2)}, "plain.pth")
    state = torch.load("vae.pth")
    torch.save({**state, "_extra_state": {"program": "bird"}}, "bird.pth")
    torch.save({**state, "encoder.0.weight": torch.zeros(3, 3)}, "odd.pth")
    torch.save({**state, "_extra_state": {**state["_extra_state"], "clusters": "three"}}, "shape.pth")
    Path("half.pth").write_bytes(Path("vae.pth").read_bytes()[:-5000])
    Path("text.pth").write_text("hello")
    for name in ("missing.pth", "plain.pth", "bird.pth", "odd.pth", "shape.pth", "half.pth", "text.pth", "."):
        assert name in says(capsys, "recon.npz", "test_reconstruction", name)
    assert "bird" in says(capsys, "recon.npz", "test_reconstruction", "bird.pth")
    assert "missing.pkl" in says(capsys, *TEST[:3], "missing.pkl")
    assert "vae.pth" in says(capsys, *TEST[:3], "vae.pth")
    assert "nowhere" in says(capsys, *TRAIN[:3], "nowhere/vae.pth", "gmm.pkl")
    assert "--epochs" in says(capsys, *TRAIN, "--epochs", "0")


@pytest.mark.parametrize("words", [(), ("train.npz",), ("train.npz", "val.npz", "learn", "vae.pth", "gmm.pkl"),
                                   ("a.npz", "test", "vae.pth"), (*TRAIN, "more")])
def test_an_unknown_mode_shows_the_usage(words, capsys):
    with pytest.raises(SystemExit) as stop:
        vae.run(vae.main, list(words))
    assert stop.value.code == 2
    assert "python vae.py TRAIN VAL train" in capsys.readouterr().err.replace("\n", " ")


def test_help_shows_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        vae.run(vae.main, ["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for line in ("vae.py TRAIN VAL train vae.pth gmm_params.pkl", "vae.py RECON test_reconstruction vae.pth",
                 "test_classifier vae.pth gmm_params.pkl", "--budget", "--no-resume", "--plain"):
        assert line in out


def test_as_a_process_a_mistake_is_status_2(tmp_path):
    done = program(tmp_path, "missing.npz", *TEST[1:])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def fill_the_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))      # bytes a file: a model is larger


def test_a_full_disk_leaves_the_earlier_files(folder):
    before = outputs(folder)
    done = subprocess.run([sys.executable, "-c", QUICK, *TRAIN, "--epochs", "1"], cwd=folder, env=ENV, text=True,
                          capture_output=True, timeout=180, preexec_fn=fill_the_disk)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert outputs(folder) == before
    assert not list(folder.glob("*.part"))


def obey_permissions() -> None:
    """Takes from root the right to write where no one may (capability 1, prctl 24); others never had it."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_a_read_only_folder_leaves_the_earlier_files(folder):
    before = outputs(folder)
    folder.chmod(0o555)
    try:
        for words in ((*TRAIN, "--epochs", "1"), RECON, TEST):
            done = program(folder, *words, preexec_fn=obey_permissions)      # stops before it trains
            assert done.returncode == 2, done.stderr
            assert "cannot be written" in done.stderr
    finally:
        folder.chmod(0o755)
    assert outputs(folder) == before
