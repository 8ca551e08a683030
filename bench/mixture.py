"""EM of vae.py's GaussianMixture against scikit-learn's, from the same start, over as many iterations.

    python -m bench.mixture

Both get the same float64 points, full covariances, the same floor of the variances and no tolerance.
Times are compared in rounds, the two in turn in one process. The table goes into bench/RESULTS.md.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import sklearn.mixture
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

import vae
from bench.table import publish, race, rows, stamp

PROBLEMS = 100       # of the comparison of likelihoods


def ours(z: Tensor, means: Tensor, iterations: int) -> vae.GaussianMixture:
    """vae.py's EM on z (N, D). The M-step of its start is not counted as an iteration."""
    return vae.GaussianMixture.fit(z, means, list(range(len(means))), tol=-math.inf, max_iter=iterations + 1)


def theirs(z: Tensor, start: vae.GaussianMixture, iterations: int) -> sklearn.mixture.GaussianMixture:
    """scikit-learn's EM on the same points from `start`."""
    mixture = sklearn.mixture.GaussianMixture(
        len(start.weights), tol=0.0, max_iter=iterations, reg_covar=1e-6 * float(z.var(dim=0).mean()),
        weights_init=start.weights.numpy(), means_init=start.means.numpy(),
        precisions_init=torch.linalg.inv(start.covariances).numpy())
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):    # no tolerance is never met
        return mixture.fit(z.numpy())


def random_problem(seed: int, points: int = 2000) -> tuple[Tensor, Tensor]:
    """Points (N, D) of a random mixture, D 1 to 10, and one of each of its components (K, D), K 1 to 6."""
    rng = np.random.default_rng(seed)
    k, dims = int(rng.integers(1, 7)), int(rng.integers(1, 11))
    component = np.concatenate([np.arange(k), rng.choice(k, points - k, p=rng.dirichlet(np.full(k, 5.0)))])
    factors = 0.5 * rng.normal(size=(k, dims, dims)) + np.eye(dims)
    noise = np.einsum("nij,nj->ni", factors[component], rng.normal(size=(points, dims)))
    z = torch.from_numpy(2.0 * rng.normal(size=(k, dims))[component] + noise)
    return z, z[:k]


def difference(seed: int, iterations: int = 50) -> float:
    """Between the two mean log-likelihoods after the fit, in nats."""
    z, means = random_problem(seed)
    reached = theirs(z, ours(z, means, 0), iterations).score(z.numpy())
    return abs(ours(z, means, iterations).e_step(z)[1] - reached)


def latents(points: int) -> tuple[Tensor, Tensor]:
    """Points (N, 2) in three overlapping clusters, as the latents of digits, and inexact means (3, 2)."""
    means, std = (t.double() for t in vae.prior(3, separation=1.5))
    g = torch.Generator().manual_seed(0)
    z = torch.randn(points, 2, generator=g, dtype=torch.float64) * std
    return z + means[torch.randint(3, (points,), generator=g)], 0.8 * means + 0.1


def speed(points: int, iterations: int, rounds: int) -> tuple[str, ...]:
    """Cells of the table: median milliseconds of both, and the ratio."""
    z, means = latents(points)
    start = ours(z, means, 0)
    a, b, ratio = race(lambda: ours(z, means, iterations), lambda: theirs(z, start, iterations), rounds)
    return f"{points:,} points, {iterations} iterations, ms", f"{1000 * a:.0f}", f"{1000 * b:.0f}", ratio


def main() -> None:
    """Measures all of it and writes the section `mixture`."""
    furthest = max(map(difference, range(PROBLEMS)))
    table = rows([speed(15_000, 30, rounds=15), speed(1_000_000, 10, rounds=3)])
    publish("mixture", f"""### The mixture against scikit-learn's

{stamp("python -m bench.mixture")} EM from the same start, full covariances, the same number of iterations;
D = 2, K = 3. Medians of 15 and 3 rounds in turn; theirs over ours, median (lowest to highest).

| What | vae.py | scikit-learn | Ratio |
|---|---|---|---|
{table}

Mean log-likelihood on {PROBLEMS} random problems (D 1 to 10, K 1 to 6, 2,000 points, 50 iterations):
the two differ by {furthest:.1e} nats at most.
""")


if __name__ == "__main__":
    main()
