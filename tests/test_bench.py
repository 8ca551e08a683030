"""The bench: sections of the results, kept rows, and that both sides of a comparison are what they are called."""

import json
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.distributions import Normal, kl_divergence

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import bird  # noqa: E402
import vae  # noqa: E402
from bench import birds, digits, mixture, table  # noqa: E402


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "RESULTS.md"
    monkeypatch.setattr(table, "RESULTS", path)
    return path


def test_publish_replaces_its_own_section_only(results):
    before = "# Results\n\nBy hand.\n\n<!-- bench:a -->\nold\n<!-- /bench:a -->\n\nBetween.\n\n"
    after = "\n\n<!-- bench:ab -->\nanother\n<!-- /bench:ab -->\nThe end.\n"
    results.write_text(before + "<!-- bench:b -->\nold\n\\1\n<!-- /bench:b -->" + after)
    table.publish("b", "| new \\1 | 2 |\n")
    assert results.read_text() == before + "<!-- bench:b -->\n\n| new \\1 | 2 |\n\n<!-- /bench:b -->" + after
    table.publish("b", "| new \\1 | 2 |\n")
    assert results.read_text().count("new") == 1


def test_publish_appends_a_new_section(results):
    results.write_text("# Results\n")
    table.publish("new", "text")
    assert results.read_text() == "# Results\n\n<!-- bench:new -->\n\ntext\n\n<!-- /bench:new -->\n"


def test_publish_refuses_a_section_without_an_end(results):
    results.write_text("<!-- bench:a -->\nall of this would be lost\n")
    with pytest.raises(ValueError, match="no <!-- /bench:a -->"):
        table.publish("a", "text")
    assert "would be lost" in results.read_text()


def test_stamp_is_one_line_with_seeds_versions_and_command():
    line = table.stamp([0, 3], "python -m bench.x")
    assert "\n" not in line
    for part in ("seeds 0, 3", f"torch {torch.__version__}", "scikit-learn", "cores", "`python -m bench.x`"):
        assert part in line


@pytest.mark.parametrize("seed", range(3))
def test_both_mixtures_reach_the_same_likelihood(seed):
    assert mixture.difference(seed, iterations=20) < 1e-6


def test_both_mixtures_do_the_same_number_of_iterations():
    z, start = mixture.blobs(500)
    one = mixture.theirs(z, start, 7)
    assert one.n_iter_ == 7
    np.testing.assert_allclose(mixture.ours(z, start, 7).means.numpy(), one.means_, atol=1e-9)
    assert abs(mixture.ours(z, start, 6).means.numpy() - one.means_).max() > 1e-6


def some_digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    bunch = load_digits()
    images = np.stack([digits.enlarge(image) for image in bunch.images[:count]])
    return torch.from_numpy(images).float() / 255, torch.from_numpy(bunch.target[:count]).long()


def test_the_loss_of_the_examples_vae_falls(monkeypatch):
    monkeypatch.setattr(digits.time, "monotonic", count().__next__)      # an epoch a second, on any machine
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
    recon = -torch.distributions.Bernoulli(x_hat, validate_args=False).log_prob(x.flatten(1)).sum()
    torch.testing.assert_close(found, recon + kl_divergence(q, Normal(0.0, 1.0)).sum())


def test_components_are_named_by_the_majority_of_val():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    labels = np.array([1, 4, 8]).repeat(5)
    z_val = centres.repeat(5, axis=0) + 0.1 * rng.normal(size=(15, 2))
    z = centres[rng.integers(3, size=300)] + rng.normal(size=(300, 2))
    assert digits.read_by_mixture(z, z_val, labels, centres[::-1]).tolist() == [8, 4, 1]


def write(folder: Path) -> tuple[Path, Path, Path]:
    images, labels = some_digits(200)
    parts = {"train": slice(60, 160), "val": slice(0, 60), "test": slice(160, 200)}
    for name, part in parts.items():
        np.savez(folder / f"{name}.npz", data=images[part].numpy(), labels=labels[part].numpy())
    return folder / "train.npz", folder / "val.npz", folder / "test.npz"


def test_a_kept_row_is_not_measured_again(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(digits.ROWS, "nestling", lambda bench, seed: calls.append(seed) or {"score": 0.5 + seed})
    monkeypatch.setitem(digits.ROWS, "example", lambda bench, seed: {"score": bench.row("nestling", seed)["score"]})
    bench = digits.Bench(*write(tmp_path), tmp_path, None, "here")
    assert bench.row("example", 1)["score"] == bench.row("nestling", 1)["score"] == 1.5
    again = digits.Bench(bench.train, bench.val, bench.test, tmp_path, None, "there")
    assert again.row("nestling", 1)["stamp"] == "here"
    assert calls == [1]
    digits.Bench(bench.train, bench.val, bench.test, tmp_path, 3.0, "there").row("nestling", 1)   # another budget
    assert calls == [1, 1]
    rows = [json.loads(line) for line in (tmp_path / "digits.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["nestling", "example", "nestling"]


def test_the_vae_starts_the_same_whatever_val_shows(tmp_path):
    """Why the bench fits only the mixture again for one label a class."""
    train, val, _ = write(tmp_path)
    data, shown = vae.DigitDataset(train), vae.DigitDataset(val)
    few = vae.DigitDataset(val)
    first = [int((few.labels == digit).nonzero()[0]) for digit in few.labels.unique()]
    few.images, few.labels = few.images[first], few.labels[first]
    runs = [vae.prepare(data, part, vae.Config(), torch.device("cpu")) for part in (shown, few)]
    for a, b in zip(*(run.net.parameters() for run in runs), strict=True):
        assert torch.equal(a, b)
    for name in ("images", "held", "near"):
        assert torch.equal(*(getattr(run, name) for run in runs))


def test_ten_digits_share_no_image(tmp_path):
    digits.write_ten_digits(tmp_path)
    parts = {name: np.load(tmp_path / f"{name}.npz") for name in ("train", "val", "test")}
    assert "labels" not in parts["train"]
    assert np.bincount(parts["val"]["labels"]).tolist() == [5] * 10
    assert sum(len(part["data"]) for part in parts.values()) == 1797
    seen = [image.tobytes() for part in parts.values() for image in part["data"]]
    assert len(set(seen)) == len(seen)


def test_copies_are_known_and_lie_beside_links_to_all_photos(drawn, tmp_path):
    known = birds.add_copies(drawn / "test", tmp_path / "set", 0.5)
    photos, (paths, _) = bird.find_images(drawn / "test")[0], bird.find_images(tmp_path / "set")
    assert {path.resolve() for path in paths if path.is_symlink()} == {path.resolve() for path in photos}
    assert {path for path in paths if not path.is_symlink()} == known.keys()
    assert 0.3 < len(known) / len(photos) < 0.7
    groups = dict(zip(paths, bird.near_duplicates(bird.decode(paths)).tolist(), strict=True))
    found = [groups[copy] == groups[original] for copy, original in known.items()]
    assert np.mean(found) > 0.9
