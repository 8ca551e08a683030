"""The mixture of vae.py: the laws of EM, its equality with scikit-learn's, and a file that cannot harm."""

import math
import os
import pickle

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference
from torch.distributions import MultivariateNormal

from vae import VAE, GaussianMixture, UserError, load_mixture, save_mixture


def random_mixture(rng: np.random.Generator, k: int = 3, dims: int = 2) -> GaussianMixture:
    factors = 0.5 * rng.normal(size=(k, dims, dims)) + np.eye(dims)
    covariances = factors @ factors.transpose(0, 2, 1) + 0.05 * np.eye(dims)
    means, weights = 3 * rng.normal(size=(k, dims)), rng.dirichlet(np.full(k, 5.0))
    return GaussianMixture(torch.tensor(weights), torch.tensor(means), torch.tensor(covariances), [*range(k)])


def draw(mixture: GaussianMixture, rng: np.random.Generator, n: int) -> torch.Tensor:
    which = torch.tensor(rng.choice(len(mixture.weights), n, p=mixture.weights.numpy()))
    noise = torch.tensor(rng.normal(size=(n, mixture.means.shape[1], 1)))
    return mixture.means[which] + (torch.linalg.cholesky(mixture.covariances)[which] @ noise)[:, :, 0]


def problem(seed: int, k: int = 3, dims: int = 2, n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of a random mixture, and k of them as the means to start at."""
    rng = np.random.default_rng(seed)
    z = draw(random_mixture(rng, k, dims), rng, n)
    return z, z[torch.tensor(rng.choice(n, k, replace=False))]


# ---- the laws of EM


@pytest.mark.parametrize("seed", range(10))
def test_the_likelihood_never_falls(seed):
    z, start = problem(seed)
    mixture = GaussianMixture.fit(z, start, [1, 4, 8], max_iter=1)
    r, likelihood = mixture.e_step(z)
    likelihoods = [likelihood]
    for _ in range(40):
        mixture.m_step(z, r, floor=0.0)
        r, likelihood = mixture.e_step(z)
        likelihoods.append(likelihood)
    assert min(np.diff(likelihoods)) > -1e-12
    assert likelihoods[-1] > likelihoods[0]


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_densities_are_those_of_torch_and_responsibilities_sum_to_1(dims):
    rng = np.random.default_rng(dims)
    mixture, z = random_mixture(rng, 4, dims), 3 * torch.tensor(rng.normal(size=(200, dims)))
    density = MultivariateNormal(mixture.means, mixture.covariances).log_prob(z[:, None])
    expected = density + mixture.weights.log()
    torch.testing.assert_close(mixture.log_joint(z), expected)
    r, likelihood = mixture.e_step(z)
    torch.testing.assert_close(r, expected.softmax(dim=1))
    torch.testing.assert_close(r.sum(dim=1), torch.ones(len(z), dtype=torch.float64))
    assert likelihood == pytest.approx(float(expected.logsumexp(dim=1).mean()))
    assert torch.equal(mixture.predict(z), expected.argmax(dim=1))              # component k is the digit k


@pytest.mark.parametrize("seed", range(60))
def test_equals_scikit_learn_after_as_many_steps(seed):
    rng = np.random.default_rng(seed)
    k, dims, steps = (int(n) for n in rng.integers((1, 1, 1), (6, 5, 30)))
    z, start = problem(seed, k, dims, n=int(rng.integers(200, 600)))
    ours = GaussianMixture.fit(z, start, list(range(k)), tol=-math.inf, max_iter=steps + 1)
    first = GaussianMixture.fit(z, start, list(range(k)), max_iter=1)
    theirs = Reference(k, tol=0.0, max_iter=steps, reg_covar=1e-6 * float(z.var(dim=0).mean()),
                       weights_init=first.weights.numpy(), means_init=first.means.numpy(),
                       precisions_init=np.linalg.inv(first.covariances.numpy()))
    with pytest.warns(ConvergenceWarning):
        theirs.fit(z.numpy())
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, f"{name}_"), atol=1e-6, rtol=1e-6)
    assert ours.e_step(z)[1] == pytest.approx(theirs.score(z.numpy()), abs=1e-8)
    assert (ours.predict(z).numpy() == theirs.predict(z.numpy())).all()


def test_one_component_is_mean_and_covariance():
    z, start = problem(7, k=1, dims=3)
    found = GaussianMixture.fit(z, start, [1])
    torch.testing.assert_close(found.means[0], z.mean(dim=0))
    torch.testing.assert_close(found.covariances[0], torch.cov(z.T, correction=0), atol=1e-4, rtol=1e-4)


def test_the_truth_is_recovered_from_its_samples():
    rng = np.random.default_rng(0)
    truth = GaussianMixture(torch.tensor([0.5, 0.3, 0.2]).double(),
                            torch.tensor([[6.0, 0.0], [-3.0, 5.0], [-3.0, -5.0]]).double(),
                            random_mixture(rng).covariances, [1, 4, 8])
    found = GaussianMixture.fit(draw(truth, rng, 50_000), truth.means + 1, [1, 4, 8])
    torch.testing.assert_close(found.weights, truth.weights, atol=0.01, rtol=0)
    torch.testing.assert_close(found.means, truth.means, atol=0.06, rtol=0)
    torch.testing.assert_close(found.covariances, truth.covariances, atol=0.1, rtol=0.05)


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1e5), (1e-3, -7.0)])
def test_scale_and_shift_change_nothing_else(scale, shift):
    z, start = problem(3)
    same = GaussianMixture.fit(z, start, [1, 4, 8])
    moved = GaussianMixture.fit(z * scale + shift, start * scale + shift, [1, 4, 8])
    assert torch.equal(moved.predict(z * scale + shift), same.predict(z))
    likelihood = same.e_step(z)[1] - 2 * math.log(scale)
    assert moved.e_step(z * scale + shift)[1] == pytest.approx(likelihood, abs=1e-4)
    torch.testing.assert_close((moved.means - shift) / scale, same.means, atol=1e-4, rtol=1e-4)


def test_components_keep_the_order_of_the_starts_and_their_digits():
    z, start = problem(5)
    order = [2, 0, 1]
    a = GaussianMixture.fit(z, start, [1, 4, 8])
    b = GaussianMixture.fit(z, start[order], [8, 1, 4])
    torch.testing.assert_close(b.means, a.means[order])
    assert b.digits == [8, 1, 4]
    assert torch.equal(b.predict(z), a.predict(z))


@pytest.mark.parametrize("n", [300, 0])
def test_equal_points_stay_finite(n):
    z = torch.cat((torch.randn(n, 2).double(), torch.full((50, 2), 9.0).double()))
    found = GaussianMixture.fit(z, torch.tensor([[0.0, 0.0], [9.0, 9.0]]), [1, 4])
    assert math.isfinite(found.e_step(z)[1])
    assert found.weights.tolist() == pytest.approx([n / (n + 50), 50 / (n + 50)], abs=1e-3)


# ---- the file


def test_the_file_holds_plain_values_and_comes_back_exactly(tmp_path):
    mixture = random_mixture(np.random.default_rng(1))
    save_mixture(tmp_path / "gmm.pkl", mixture)
    plain = pickle.loads((tmp_path / "gmm.pkl").read_bytes())
    assert set(plain) == {"weights", "means", "covariances", "digits"}
    assert [type(plain["means"]), type(plain["means"][0][0]), type(plain["digits"][0])] == [list, float, int]
    back = load_mixture(tmp_path / "gmm.pkl")
    assert back.digits == mixture.digits
    for name in ("weights", "means", "covariances"):
        assert torch.equal(getattr(back, name), getattr(mixture, name))


def test_a_mixture_of_another_model_is_refused(tmp_path):
    (net, other), mixture = (VAE(), VAE()), random_mixture(np.random.default_rng(1))
    save_mixture(tmp_path / "gmm.pkl", mixture, net)
    assert load_mixture(tmp_path / "gmm.pkl", net).digits == load_mixture(tmp_path / "gmm.pkl").digits
    with pytest.raises(UserError, match="not of this model"):
        load_mixture(tmp_path / "gmm.pkl", other)
    save_mixture(tmp_path / "gmm.pkl", mixture)            # others' files name no model
    assert load_mixture(tmp_path / "gmm.pkl", other).digits == mixture.digits


class Call:
    """Pickled, a call: whoever unpickles it makes it."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def pickled(protocol: int = 4, **changes) -> bytes:
    """A mixture's file, but for some of its entries."""
    plain = {"weights": [0.5, 0.25, 0.25], "means": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]],
             "covariances": [[[1.0, 0.0], [0.0, 1.0]] for _ in range(3)], "digits": [1, 4, 8], **changes}
    return pickle.dumps({name: value for name, value in plain.items() if value is not None}, protocol)


TOUCH, ROW = Call(os.system, "touch canary"), [0.0, 1.0]
REFUSED = {                                                # before anything is loaded
    "call": pickled(weights=TOUCH), "call, protocol 0": pickled(0, weights=TOUCH),
    "call, protocol 2": pickled(2, weights=TOUCH), "opens": pickled(weights=Call(open, "canary", "w")),
    "GLOBAL": b"cbuiltins\ngetattr\n.", "REDUCE": b"cos\nsystem\n(S'touch canary'\ntR.",
    "INST": b"(S'touch canary'\nios\nsystem\n.", "OBJ": b"(cos\nsystem\nS'touch canary'\no.",
    "NEWOBJ": b"\x80\x02cbuiltins\nint\n)\x81.", "BUILD": b"}}b.", "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": b"Pcanary\n.", "array": pickled(weights=np.ones(3)), "scalar": pickled(digits=[np.int64(1)]),
    "tensor": pickled(means=torch.zeros(3, 2)), "set": pickled(digits={1, 4, 8}),
    "memo bomb": b"\x80\x02]r\xff\xff\xff\x7f.", "shared": pickled(means=[ROW, ROW, ROW]),
}
BROKEN = {
    "nothing": b"", "text": b"not a pickle", "half": pickled()[:-40], "STOP": b".", "list": pickle.dumps([]),
    "no means": pickled(means=None), "two": pickled(digits=[1, 4]), "words": pickled(digits=["a", "b", "c"]),
    "one latent": pickled(means=[[0.0], [1.0], [2.0]]), "ragged": pickled(means=[[0.0], [1.0, 2.0], []]),
    "NaN": pickled(weights=[math.nan, 0.5, 0.5]), "infinite": pickled(means=[[math.inf, 0.0] for _ in "abc"]),
    "negative": pickled(weights=[-0.5, 1.0, 0.5]), "infinite digit": pickled(digits=[math.inf, 4, 8]),
    "singular": pickled(covariances=[[[0.0, 0.0], [0.0, 0.0]] for _ in range(3)]),
    "not positive definite": pickled(covariances=[[[1.0, 2.0], [2.0, 1.0]] for _ in range(3)]),
    "sum": pickled(weights=[10.0, 10.0, 10.0]), "no weight": pickled(weights=[0.0, 0.0, 1.0]),
    "not symmetric": pickled(covariances=[[[1.0, 5.0], [0.0, 1.0]], *([[1.0, 0.0], [0.0, 1.0]] for _ in "ab")]),
    "same digit": pickled(digits=[1, 1, 1]), "no digit": pickled(digits=[1, 4, 10]), "foreign": pickled(program="bird"),
    "numbers": pickled(weights=1.0, means=2.0), "deep": b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f].", "long string": b"\x80\x02X\xff\xff\xff\x7fa.",
    "empty stack": b"a.", "append to a dict": b"}}a.", "no mark": b"]e.",
}


@pytest.mark.parametrize("name", [*REFUSED, *BROKEN])
def test_any_other_pickle_is_one_sentence_and_runs_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gmm.pkl").write_bytes({**REFUSED, **BROKEN}[name])
    with pytest.raises(UserError, match=r"^gmm\.pkl .+\.$") as refusal:
        load_mixture("gmm.pkl")
    assert "\n" not in str(refusal.value)
    assert ("list" in str(refusal.value) and "save" in str(refusal.value)) or name in BROKEN
    assert [path.name for path in tmp_path.iterdir()] == ["gmm.pkl"]
    (tmp_path / "gmm.pkl").write_bytes(pickled())          # what the table changes is a good file
    assert load_mixture("gmm.pkl").digits == [1, 4, 8]
