"""The mixture's laws, and its equality with scikit-learn's."""

import math
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import vae  # noqa: E402
from vae import Mistake, Mixture, load_mixture, save_mixture  # noqa: E402


def random_mixture(k: int, dims: int, rng: np.random.Generator, apart: float = 4.0) -> Mixture:
    factors = rng.normal(size=(k, dims, dims)) * 0.5 + np.eye(dims)
    weights = rng.dirichlet(np.full(k, 5.0))
    return Mixture(torch.tensor(weights), torch.tensor(rng.normal(size=(k, dims)) * apart),
                   torch.tensor(factors @ factors.transpose(0, 2, 1) + 0.05 * np.eye(dims)))


def draw(mixture: Mixture, n: int, rng: np.random.Generator) -> torch.Tensor:
    which = rng.choice(len(mixture.weights), size=n, p=mixture.weights.numpy())
    factors = torch.linalg.cholesky(mixture.covariances)[torch.tensor(which)]
    noise = torch.tensor(rng.normal(size=(n, mixture.means.shape[1])))
    return mixture.means[torch.tensor(which)] + (factors @ noise[:, :, None])[:, :, 0]


def problem(seed: int, k: int = 3, dims: int = 2, n: int = 400) -> tuple[torch.Tensor, Mixture]:
    rng = np.random.default_rng(seed)
    z = draw(random_mixture(k, dims, rng), n, rng)
    return z, Mixture.start(z, z[rng.choice(n, k, replace=False)])


@pytest.mark.parametrize("seed", range(20))
def test_likelihood_never_falls_without_floor(seed):
    z, mixture = problem(seed)
    scores = []
    for _ in range(40):
        sums, score = mixture.sweep(z)
        scores.append(score)
        mixture = mixture.m_step(sums, floor=0.0)
    assert min(np.diff(scores)) > -1e-12


@pytest.mark.parametrize("dims", range(1, 11))
def test_responsibilities_are_a_distribution_and_densities_those_of_torch(dims):
    z, mixture = problem(dims, k=4, dims=dims)
    r, log_px, _ = mixture.e_step(z)
    parts = torch.distributions.MultivariateNormal(mixture.means, mixture.covariances)
    reference = torch.logsumexp(parts.log_prob(z[:, None]) + mixture.weights.log(), dim=1)
    torch.testing.assert_close(r.sum(dim=0), torch.ones(len(z), dtype=torch.float64))
    torch.testing.assert_close(log_px, reference)
    assert mixture.score(z) == pytest.approx(float(reference.mean()), abs=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_truth_is_recovered_from_its_own_samples(seed):
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * np.arange(3) / 3
    truth = Mixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
                    torch.tensor(np.stack([6 * np.cos(angle), 6 * np.sin(angle)], axis=1)),
                    random_mixture(3, 2, rng).covariances)
    found = Mixture.start(z := draw(truth, 50_000, rng), truth.means + 1).fit(z)
    torch.testing.assert_close(found.weights, truth.weights, atol=0.01, rtol=0)
    torch.testing.assert_close(found.means, truth.means, atol=0.08, rtol=0)
    torch.testing.assert_close(found.covariances, truth.covariances, atol=0.12, rtol=0.05)


@pytest.mark.parametrize("seed", range(100))
def test_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    k, dims = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    z, start = problem(seed, k, dims, n=int(rng.integers(200, 800)))
    floor, tol, most = 1e-6, 1e-4, 60
    theirs = GaussianMixture(k, reg_covar=floor, tol=tol, max_iter=most, weights_init=start.weights.numpy(),
                             means_init=start.means.numpy(), precisions_init=np.linalg.inv(start.covariances.numpy()))
    with pytest.warns() if not converges(theirs, z) else nothing():
        theirs.fit(z.numpy())
    ours = start.fit(z, tol=tol, most=most, floor=floor)
    assert ours.score(z) == pytest.approx(theirs.score(z.numpy()), abs=1e-6)
    np.testing.assert_allclose(ours.means.numpy(), theirs.means_, atol=1e-6)
    np.testing.assert_allclose(ours.covariances.numpy(), theirs.covariances_, atol=1e-6)
    assert (ours.predict(z).numpy() == theirs.predict(z.numpy())).all()


class nothing:  # noqa: N801 - used like contextlib.nullcontext
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def converges(theirs: GaussianMixture, z: torch.Tensor) -> bool:
    import warnings

    from sklearn.base import clone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(theirs).fit(z.numpy()).converged_


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1e5), (1e-3, -7.0)])
def test_invariant_to_scale_and_shift(scale, shift):
    z, start = problem(3)
    plain = start.fit(z)
    moved = Mixture.start(z * scale + shift, start.means * scale + shift).fit(z * scale + shift)
    same = Mixture.start(z, start.means).fit(z)
    assert (moved.predict(z * scale + shift) == same.predict(z)).all()
    assert moved.score(z * scale + shift) == pytest.approx(same.score(z) - 2 * math.log(scale), abs=1e-4)
    assert plain.means.shape == moved.means.shape


def test_components_may_come_in_any_order():
    z, start = problem(5)
    order = [2, 0, 1]
    a = start.fit(z)
    b = Mixture(start.weights[order], start.means[order], start.covariances[order]).fit(z)
    torch.testing.assert_close(b.means, a.means[order])
    assert (torch.tensor(order)[b.predict(z)] == a.predict(z)).all()


def test_a_collapsed_component_stays_finite():
    rng = np.random.default_rng(0)
    z = torch.cat((torch.tensor(rng.normal(size=(300, 2))), torch.full((50, 2), 9.0, dtype=torch.float64)))
    found = Mixture.start(z, torch.tensor([[0.0, 0.0], [9.0, 9.0]])).fit(z)
    assert math.isfinite(found.score(z))
    assert found.weights.tolist() == pytest.approx([300 / 350, 50 / 350], abs=1e-3)


def test_a_dead_component_takes_half_of_the_heaviest():
    rng = np.random.default_rng(1)
    z = torch.tensor(np.concatenate([rng.normal(-5, 1, (400, 2)), rng.normal(5, 1, (400, 2)),
                                     rng.normal((5, -5), 1, (400, 2))]))
    found = Mixture.start(z, torch.tensor([[-5.0, -5.0], [5.0, 0.0], [1e6, 1e6]])).fit(z)
    assert found.weights.tolist() == pytest.approx([1 / 3] * 3, abs=0.01)


def test_duplicates_only():
    z = torch.full((40, 2), 3.0)
    found = Mixture.start(z, torch.tensor([[3.0, 3.0], [4.0, 4.0]])).fit(z)
    assert math.isfinite(found.score(z))
    torch.testing.assert_close(found.weights.sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("dims", [1, 2, 10])
def test_one_component_is_mean_and_covariance(dims):
    z, _ = problem(7, k=1, dims=dims)
    found = Mixture.start(z, z[:1]).fit(z, floor=0.0)
    torch.testing.assert_close(found.means[0], z.mean(dim=0))
    torch.testing.assert_close(found.covariances[0], torch.cov(z.T, correction=0).reshape(dims, dims))


def test_a_million_points_in_bounded_memory_and_time():
    rng = np.random.default_rng(2)
    z = draw(random_mixture(3, 2, rng), 1_000_000, rng)
    start = Mixture.start(z[:1000], z[[0, 500, 900]])
    tracemalloc.start()
    began = time.monotonic()
    found = start.fit(z, most=10)
    assert time.monotonic() - began < 30
    assert tracemalloc.get_traced_memory()[1] < 5e6      # Python's own; torch's chunks are 8192 points each
    tracemalloc.stop()
    assert found.score(z) >= start.score(z)
    assert len(found.predict(z)) == len(z)


SHARED = """
import sys, torch
sys.path.insert(0, {root!r})
import vae
torch.distributed.init_process_group("gloo", init_method={address!r}, world_size=2, rank=int(sys.argv[1]))
z, means = torch.load({data!r})
found = vae.Mixture.start(z[int(sys.argv[1])::2], means).fit(z[int(sys.argv[1])::2])
torch.save([found.weights, found.means, found.covariances], {data!r} + sys.argv[1])
torch.distributed.destroy_process_group()
"""


def test_two_processes_find_what_one_finds(tmp_path):
    z, start = problem(11, n=1001)
    data = str(tmp_path / "z.pt")
    torch.save([z, start.means], data)
    code = SHARED.format(root=str(ROOT), address=f"file://{tmp_path}/meet", data=data)
    both = [subprocess.Popen([sys.executable, "-c", code, rank], env={**os.environ, "OMP_NUM_THREADS": "1"})
            for rank in "01"]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    alone = Mixture.start(z, start.means).fit(z)
    for rank in "01":
        for mine, theirs in zip((alone.weights, alone.means, alone.covariances), torch.load(data + rank), strict=True):
            torch.testing.assert_close(theirs, mine, atol=1e-6, rtol=1e-6)


# ---- the file


def named() -> Mixture:
    _, mixture = problem(1)
    mixture.digits = [1, 4, 8]
    return mixture


def test_the_file_holds_plain_values_and_comes_back_equal(tmp_path):
    mixture = named()
    save_mixture(tmp_path / "gmm.pkl", mixture)
    plain = pickle.loads((tmp_path / "gmm.pkl").read_bytes())
    assert set(plain) == {"program", "version", "weights", "means", "covariances", "digits"}
    assert all(type(v) in (str, int, list) for v in plain.values())
    assert type(plain["means"][0][0]) is float
    back = load_mixture(tmp_path / "gmm.pkl")
    assert back.digits == [1, 4, 8]
    for name in ("weights", "means", "covariances"):
        assert torch.equal(getattr(back, name), getattr(mixture, name))


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_in_other_peoples_files_is_read(tmp_path, protocol):
    mixture = named()
    foreign = {"weights": mixture.weights.numpy(), "means": mixture.means.numpy(),
               "covariances": mixture.covariances.numpy(), "digits": [np.int64(1), np.int64(4), np.int64(8)]}
    (tmp_path / "gmm.pkl").write_bytes(pickle.dumps(foreign, protocol=protocol))
    assert load_mixture(tmp_path / "gmm.pkl").digits == [1, 4, 8]


class Payload:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, protocol):
    mark = tmp_path / "ran"
    for attack in (Payload(os.system, f"touch {mark}"), Payload(eval, f"open({str(mark)!r}, 'w')"),
                   Payload(open, str(mark), "w"), Payload(getattr, vae, "torch")):
        (tmp_path / "gmm.pkl").write_bytes(pickle.dumps({"weights": attack}, protocol=protocol)
                                           if attack.args[0] is not vae else b"cbuiltins\ngetattr\n.")
        with pytest.raises(Mistake, match=r"gmm\.pkl: refused"):
            load_mixture(tmp_path / "gmm.pkl")
        assert not mark.exists()


def broken_files():
    m = named()
    good = {"weights": m.weights.tolist(), "means": m.means.tolist(), "covariances": m.covariances.tolist(),
            "digits": m.digits}
    yield b""
    yield b"not a pickle"
    yield pickle.dumps(good)[:-40]
    yield pickle.dumps([1, 2])
    yield pickle.dumps({k: v for k, v in good.items() if k != "means"})
    yield pickle.dumps({**good, "digits": [1, 4]})
    yield pickle.dumps({**good, "weights": [float("nan")] * 3})
    yield pickle.dumps({**good, "covariances": [[[0.0, 0.0], [0.0, 0.0]]] * 3})
    yield pickle.dumps({**good, "means": [[0.0]] * 3})
    yield pickle.dumps({**good, "digits": ["one", "four", "eight"]})


@pytest.mark.parametrize("content", list(broken_files()), ids=range(10))
def test_broken_files_are_mistakes(tmp_path, content):
    (tmp_path / "gmm.pkl").write_bytes(content)
    with pytest.raises(Mistake, match=r"gmm\.pkl"):
        load_mixture(tmp_path / "gmm.pkl")


def test_names_go_to_the_clearest_case_first():
    mixture = Mixture(torch.full((3,), 1 / 3).double(), torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]]).double(),
                      torch.eye(2).double().repeat(3, 1, 1))
    z = torch.tensor([[5.0, 0.0], [0.0, 5.0], [0.2, 0.0]])
    found = vae.name_components(mixture, z, torch.tensor([[0], [1], [2]]), torch.tensor([7, 2, 9]))
    assert found.digits == [2, 7, 9]
    assert found.read(z).tolist() == [7, 2, 9]


def test_one_example_in_a_wrong_component_does_not_swap_two_names():
    """The 8 lies in the component of the 4, nearer to its middle than the 4 does; what looks like it does not."""
    g = torch.Generator().manual_seed(0)
    z = torch.cat([middle + torch.randn(100, 2, generator=g) for middle in torch.tensor([[0.0, 0.0], [20.0, 0.0]])])
    near = torch.stack([torch.arange(10), torch.arange(100, 110)])                # of the 4, of the 8
    z_val, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([4, 8])
    mixture = vae.fit_mixture(z, near, z_val, labels, torch.tensor([[0.0, 0.0], [20.0, 0.0]]))
    assert mixture.read(z).tolist() == [4] * 100 + [8] * 100
