"""The bench: sections of the results, and that both sides of a comparison are what they are called."""

import shutil
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.datasets import load_digits
from torch.distributions import Bernoulli, Normal, kl_divergence
from torchvision.models import resnet18

sys.path.insert(0, str(ROOT))
import bird
import vae
from bench import birds, digits, fuzz, mixture, table


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n")
    monkeypatch.setattr(table, "RESULTS", path)
    return path


@pytest.fixture(scope="module")
def few(drawn, tmp_path_factory) -> Path:
    """train/ with six photos a class, test/ with one."""
    folder = tmp_path_factory.mktemp("few")
    for part, number in ("train", 6), ("test", 1):
        for species in sorted((drawn / part).iterdir()):
            (folder / part / species.name).mkdir(parents=True)
            for photo in sorted(species.iterdir())[:number]:
                shutil.copy(photo, folder / part / species.name)
    return folder


def table_of(results: Path) -> list[list[str]]:
    """The rows of the published table, without its head."""
    lines = [line for line in results.read_text().splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[1:]]


def cells(results: Path) -> dict[str, list[str]]:
    """The same by the first cell."""
    return {name: rest for name, *rest in table_of(results)}


# ------------------------------------------------------ table

def test_publish_replaces_its_own_section_only(results):
    before = "# Results\n\nBy hand.\n\n<!-- bench:a -->\nold\n<!-- /bench:a -->\n\nBetween.\n\n"
    after = "\n\n<!-- bench:ab -->\nanother\n<!-- /bench:ab -->\nThe end.\n"
    results.write_text(before + "<!-- bench:b -->\nold\n\\1\n<!-- /bench:b -->" + after)
    for _ in range(2):
        table.publish("b", "| new \\1 | 2 |\n")
        new = "<!-- bench:b -->\n\n| new \\1 | 2 |\n\n<!-- /bench:b -->"
        assert results.read_text() == before + new + after


def test_publish_appends_a_new_section(results):
    table.publish("new", "text")
    assert results.read_text() == "# Results\n\n<!-- bench:new -->\n\ntext\n\n<!-- /bench:new -->\n"


def test_publish_refuses_a_section_without_an_end(results):
    results.write_text("<!-- bench:a -->\nall of this would be lost\n")
    with pytest.raises(ValueError, match="no <!-- /bench:a -->"):
        table.publish("a", "text")
    assert "would be lost" in results.read_text()


def test_a_race_is_run_in_turn_and_its_first_round_does_not_count(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(table.time, "perf_counter", lambda: clock[0])

    def side(name: str, seconds: list[float]):
        def call():
            order.append(name)
            clock[0] += seconds.pop(0)
        return call

    a, b, ratio = table.race(side("a", [99, 1, 2, 4]), side("b", [1, 4, 4, 4]), rounds=3)
    assert (a, b, ratio) == (2, 4, "2.00 (1.00 to 4.00)")
    assert order == ["a", "b"] * 4


# ------------------------------------------------------ birds

@pytest.mark.parametrize(("network", "size"), [(birds.ResNet18, 64), (birds.FiveBlocks, 96)])
def test_a_peer_has_the_interface_of_birdnet(network, size):
    net = network(3).eval()
    x = torch.rand(2, 3, size, size)
    h = net.feature_map(x)
    assert h.shape[2:] == (size // 32, size // 32)
    torch.testing.assert_close(net(x), net.head(h.mean(dim=(2, 3))))
    assert net.cam_centre(h).abs().max() <= 1
    other = network(5)                                     # takes on the number of classes
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(x), net(x))


def test_the_resnet18_is_the_one_of_torchvision():
    torch.manual_seed(0)
    net, reference = birds.ResNet18(7).eval(), resnet18(num_classes=7).eval()
    mine = [*net.features.parameters(), *net.head.parameters()]
    for a, b in zip(mine, reference.parameters(), strict=True):
        a.data.copy_(b)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net.classify(net.features(x)), reference(x))


@pytest.mark.slow
def test_peers_are_trained_alike_and_each_is_measured(few, tmp_path, results, monkeypatch):
    monkeypatch.setattr(birds, "FIGURE", tmp_path / "birds.png")
    monkeypatch.setitem(birds.NETWORKS, "five blocks", (birds.FiveBlocks, (0.002,)))
    trained = []
    train = bird.train

    def spy(folder: Path, model: Path, cfg: bird.Config) -> tuple[float, float]:
        trained.append((folder, model.stem, cfg, bird.BirdNet))
        return train(folder, model, cfg)

    monkeypatch.setattr(bird, "train", spy)
    cfg, out = bird.Config(epochs=1, seed=3, batch_size=32), tmp_path / "peers"
    birds.peers(few / "train", few / "test", cfg, out)
    assert bird.BirdNet is birds.Peer.__base__             # put back
    assert [network for *_, network in trained] == [bird.BirdNet, birds.ResNet18, birds.FiveBlocks]
    assert {folder for folder, *_ in trained} == {few / "train"}
    assert [c for *_, c, _ in trained] == [cfg, cfg, replace(cfg, lr=0.002)]

    found = cells(results)
    assert list(found) == list(birds.NETWORKS)
    paths, names = bird.find_images(few / "test")
    pixels, _, _ = bird.decode(paths, "")
    net = bird.load_model(out / "bird.py-0.008-seed3.pth")
    labels = [net.extra["classes"].index(name) for name in names]
    macro, micro = bird.f1(labels, bird.predict(net, pixels).argmax(dim=1))
    expected = birds.validated(net), (macro + micro) / 2, 1 - micro
    assert found["bird.py"][3:] == [*(f"{value:.4f}" for value in expected), "1.00"]
    for row in found.values():
        assert float(row[-1]) == pytest.approx(float(row[-2]) / float(found["bird.py"][-2]), abs=0.01)
    assert (tmp_path / "birds.png").read_bytes().startswith(b"\x89PNG")

    before = results.read_text()
    birds.peers(few / "train", few / "test", cfg, out)             # nothing is trained anew
    assert len(trained) == 3
    assert results.read_text() == before


def test_validation_chooses_the_learning_rate(few, tmp_path, results, monkeypatch):
    """Not the held-out set: of two models the one that validated better is scored."""
    monkeypatch.setattr(birds, "FIGURE", tmp_path / "birds.png")
    monkeypatch.setattr(birds, "NETWORKS", {"bird.py": (bird.BirdNet, (0.1, 0.2, 0.3))})

    def train(folder: Path, model: Path, cfg: bird.Config) -> None:
        net = bird.BirdNet(10)
        net.extra |= {"classes": sorted(path.name for path in folder.iterdir()), "size": 32}
        score = {0.1: 0.5, 0.2: 0.75, 0.3: 0.25}[cfg.lr]
        net.extra["validation"] = {"macro_f1": score, "accuracy": score}
        bird.save(model, net.state_dict())
        bird.record(model.with_suffix(".history.jsonl"), [fuzz.ROW | {"seconds": 60.0, "val_score": 0.5}])

    monkeypatch.setattr(bird, "train", train)
    birds.peers(few / "test", few / "test", bird.Config(), tmp_path)
    assert cells(results)["bird.py"][1:4] == ["1", "1.0", "0.7500"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")      # on a single core
def test_both_sides_of_the_pipeline_take_the_same_steps(few, results, monkeypatch):
    seen: list[tuple] = []                                 # shapes of the batches
    steps_of_ours: list[tuple] = []
    steps_of_theirs: list[tuple] = []

    def step(self, x: torch.Tensor, target: torch.Tensor, lr: float) -> None:
        assert target.shape == (len(x), 10)
        seen.append(tuple(x.shape))

    def race(ours, theirs, rounds: int) -> tuple[float, float, str]:
        for side, call in ((steps_of_ours, ours), (steps_of_theirs, theirs)):
            call()
            side += seen
            seen.clear()
        return 1.0, 2.0, "2.00"

    monkeypatch.setattr(birds, "make_birds", lambda out, **_: shutil.copytree(few, out))
    monkeypatch.setattr(bird.Training, "step", step)
    monkeypatch.setattr(bird, "test", lambda *_: None)
    monkeypatch.setattr(birds, "race", race)
    birds.speed(photos=0, cfg=bird.Config(batch_size=32))
    photos = len(bird.find_images(few / "train")[0])
    assert steps_of_ours == steps_of_theirs
    assert {shape[0] for shape in steps_of_ours} == {32}
    assert {shape[2] for shape in steps_of_ours} == {bird.image_size(k / 5, 5, photos) for k in range(5)}
    first, *_ = cells(results).values()
    assert first == [str(photos), f"{photos / 2:.0f}", "2.00"]


# ------------------------------------------------------ the mixture

@pytest.mark.parametrize("seed", range(3))
def test_both_mixtures_reach_the_same_likelihood(seed):
    assert mixture.difference(seed, iterations=20) < 1e-6


def test_both_mixtures_do_the_same_number_of_iterations():
    z, means = mixture.latents(500)
    reference = mixture.theirs(z, mixture.ours(z, means, 0), 7)
    assert reference.n_iter_ == 7
    np.testing.assert_allclose(mixture.ours(z, means, 7).means.numpy(), reference.means_, atol=1e-9)
    assert abs(mixture.ours(z, means, 6).means.numpy() - reference.means_).max() > 1e-6


# ------------------------------------------------------ digits

def some_digits(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's digits, enlarged: (N, 28, 28) in 0..1 and their labels."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images[:number]).float()[:, None] / 16
    return torch.nn.functional.interpolate(images, size=28)[:, 0], torch.from_numpy(bunch.target[:number])


def test_the_loss_of_the_examples_vae_falls(monkeypatch):
    monkeypatch.setattr(digits.time, "monotonic", count().__next__)    # an epoch a second
    torch.manual_seed(0)
    losses = digits.train_peer(digits.example(), some_digits(200)[0], seconds=20)
    assert len(losses) == 20
    assert losses[-1] < 0.6 * losses[0]


def test_the_loss_of_the_examples_vae_is_cross_entropy_and_kl():
    torch.manual_seed(0)
    net, (x, _) = digits.ExampleVAE(), some_digits(4)
    mu, logvar = net.encode(x)
    torch.manual_seed(1)
    found = net.loss(x)
    torch.manual_seed(1)
    q = Normal(mu, (0.5 * logvar).exp())
    x_hat = net.decoder(mu + q.stddev * torch.randn_like(mu))
    recon = -Bernoulli(x_hat, validate_args=False).log_prob(x.flatten(1)).sum()
    torch.testing.assert_close(found, recon + kl_divergence(q, Normal(0.0, 1.0)).sum())


def test_components_have_the_digits_of_the_class_means_they_start_at():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    labels = np.array([1, 4, 8]).repeat(5)
    z_val = centres.repeat(5, axis=0) + 0.1 * rng.normal(size=(15, 2))
    z = centres[rng.integers(3, size=300)] + rng.normal(size=(300, 2))
    assert digits.sklearn_mixture(z, z_val, labels, centres[::-1]).tolist() == [8, 4, 1]


def test_a_perfect_reconstruction_and_classification_score_1():
    data = vae.DigitDataset.__new__(vae.DigitDataset)
    data.images, data.labels = some_digits(20)
    assert digits.judge(data, data.labels, data.images) == ["1.0000"] * 3


def test_all_have_the_time_that_vae_py_took(tmp_path, results, monkeypatch):
    images, labels = some_digits(200)
    files = [tmp_path / name for name in ("train.npz", "val.npz", "test.npz")]
    for file, part in zip(files, (slice(60, 160), slice(0, 60), slice(160, 200)), strict=True):
        np.savez(file, data=images[part].numpy(), labels=labels[part].numpy())
    seconds, train_peer = [], digits.train_peer

    def one_epoch(peer: digits.Peer, x: torch.Tensor, allowed: float) -> list[float]:
        seconds.append(allowed)
        return train_peer(peer, x, 0.0)

    monkeypatch.setattr(digits, "train_peer", one_epoch)
    monkeypatch.setattr(digits, "PEERS", {"example": digits.example})
    monkeypatch.setattr(digits, "ours", lambda files, seed, minutes: (["0.5"] * 3, minutes / 2))
    digits.main([*map(str, files), "--seeds", "0,1", "--minutes", "0.5"])
    assert seconds == [15.0, 15.0]
    rows = table_of(results)
    assert [row[0] for row in rows] == ["vae.py", "example"] * 2
    assert [row[1] for row in rows] == ["0", "0", "1", "1"]
    assert all(0 <= float(value) <= 1 for row in rows for value in row[2:5])
