"""The mixture's EM against scikit-learn's: the same start, full covariances, floor and number of iterations.

    python -m bench.mixture [--threads N]

Both get the same float64 points, the parameters of `Mixture.start` and a tolerance of 0, so each goes through exactly
`iterations` E- and M-steps. scikit-learn ends with one more E-step, so ours is timed with `score` after the fit.
Times are compared in rounds, the two in turn in one process. The table goes into bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import re
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from bench.table import publish, stamp
from vae import Mixture, ring

FLOOR = 1e-6         # added to each variance: our `floor`, their `reg_covar`
PROBLEMS = 100       # of the comparison of likelihoods
MILLION = 1_000_000


# ---- the two sides


def ours(z: Tensor, start: Mixture, iterations: int) -> Mixture:
    """vae.py's EM on z (N, D), so many iterations."""
    return start.fit(z, tol=0.0, most=iterations, floor=FLOOR)


def theirs(z: Tensor, start: Mixture, iterations: int) -> GaussianMixture:
    """scikit-learn's EM on the same points from the same start, so many iterations."""
    mixture = GaussianMixture(len(start.weights), covariance_type="full", tol=0.0, reg_covar=FLOOR,
                              max_iter=iterations, weights_init=start.weights.numpy(), means_init=start.means.numpy(),
                              precisions_init=torch.linalg.inv(start.covariances).numpy())
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):    # a tolerance of 0 is never met
        return mixture.fit(z.numpy())


# ---- the same likelihood


def random_problem(seed: int, points: int = 2000) -> tuple[Tensor, Mixture]:
    """Points of a random mixture, D 1 to 10 and K 1 to 6, and a start at one random point of each component."""
    rng = np.random.default_rng(seed)
    k, dims = int(rng.integers(1, 7)), int(rng.integers(1, 11))
    which = np.concatenate([np.arange(k), rng.choice(k, points - k, p=rng.dirichlet(np.full(k, 5.0)))])   # (N,)
    factors = 0.5 * rng.normal(size=(k, dims, dims)) + np.eye(dims)
    noise = np.einsum("nij,nj->ni", factors[which], rng.normal(size=(points, dims)))
    z = torch.from_numpy(2.0 * rng.normal(size=(k, dims))[which] + noise)                              # (N, D)
    return z, Mixture.start(z, z[:k], FLOOR)


def difference(seed: int, iterations: int = 50) -> float:
    """How far the two log-likelihoods a point lie apart after the fit, in nats."""
    z, start = random_problem(seed)
    return abs(ours(z, start, iterations).score(z) - theirs(z, start, iterations).score(z.numpy()))


# ---- time and memory


def blobs(points: int, seed: int = 0) -> tuple[Tensor, Mixture]:
    """Points (N, 2) in three overlapping blobs, as the latents of three digits lie, and a start beside their means."""
    rng = np.random.default_rng(seed)
    centres, spread = (t.double().numpy() for t in ring(3, separation=1.5))
    z = rng.normal(size=(points, 2))
    z *= spread
    z += centres[rng.integers(3, size=points)]
    return torch.from_numpy(z), Mixture.start(torch.from_numpy(z), torch.from_numpy(0.8 * centres + 0.1), FLOOR)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Mean seconds of one call."""
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def time_both(points: int, iterations: int, rounds: int, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of a fit in each round, ours and theirs; one after the other, so that a slow moment meets both."""
    z, start = blobs(points)
    both = [lambda: ours(z, start, iterations).score(z), lambda: theirs(z, start, iterations)]
    for call in both:
        call()                                                  # the first call is slower
    times = [[seconds(call, repeats) for call in both] for _ in range(rounds)]
    our_times, their_times = map(list, zip(*times, strict=True))
    return our_times, their_times


def extra_memory(side: str, points: int, threads: int) -> float:
    """MiB that a fit of so many points holds at its peak, beyond what the process held before. For a fresh process.

    VmHWM, the peak that Linux keeps a process: `getrusage` would still show the peak of the parent process.
    """
    fit = {"ours": ours, "theirs": theirs}[side]
    with use_threads(threads):
        fit(*blobs(1000), 2)                                    # libraries and threads are now in place
        z, start = blobs(points)
        ctypes.CDLL(None).malloc_trim(0)                        # what the making of the points left free
        Path("/proc/self/clear_refs").write_text("5")           # the peak is counted from here
        before = resident("VmRSS")
        fit(z, start, 3)
        return resident("VmHWM") - before


def resident(name: str) -> float:
    """MiB of this process's memory, by its name in /proc/self/status."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"Linux tells no {name} here"
    return int(found[1]) / 1024


def use_threads(count: int) -> threadpool_limits:
    """The same number of threads for torch and for NumPy's and scikit-learn's libraries, while the result is open."""
    limits = threadpool_limits(count)
    torch.set_num_threads(count)
    return limits


# ---- the table


def row(what: str, our_times: list[float], their_times: list[float]) -> str:
    """Median times in milliseconds and the ratio's median, lowest and highest value."""
    ratios = sorted(b / a for a, b in zip(our_times, their_times, strict=True))
    ms = (f"{1000 * statistics.median(times):.4g}" for times in (our_times, their_times))
    return f"| {what} | {' | '.join(ms)} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"


def main() -> None:
    """Measures all of it and writes the section `mixture`."""
    parser = argparse.ArgumentParser(prog="python -m bench.mixture")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides; default: one a core")
    threads = parser.parse_args().threads
    memory = {}
    for side in ("ours", "theirs"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
            memory[side] = child.submit(extra_memory, side, MILLION, threads).result()
    with use_threads(threads):
        furthest = max(map(difference, range(PROBLEMS)))
        print(f"log-likelihoods differ by {furthest:.1e} nats at most", flush=True)
        rows = [row("15,000 points, 30 iterations, ms", *time_both(15_000, 30, rounds=5, repeats=20))]
        print(rows[-1], flush=True)
        rows.append(row("1,000,000 points, 10 iterations, ms", *time_both(MILLION, 10, rounds=3, repeats=1)))
        print(rows[-1], flush=True)
        where = stamp([0], f"python -m bench.mixture --threads {threads}")
    mib = f"{memory['ours']:.0f} | {memory['theirs']:.0f} | {memory['theirs'] / memory['ours']:.1f}"
    publish("mixture", f"""### The mixture against scikit-learn's

{where}
EM from the same start, full covariances, floor 1e-6, the same number of iterations and of threads; D = 2, K = 3.
Times: medians of 5 and 3 rounds in turn; theirs over ours, median (lowest to highest).

| What | vae.py | scikit-learn | Ratio |
|---|---|---|---|
{chr(10).join(rows)}
| 1,000,000 points, memory beside the points at the peak, MiB | {mib} |

Log-likelihood a point of {PROBLEMS} random problems (seeds 0 to {PROBLEMS - 1}, D 1 to 10, K 1 to 6, 2,000 points, 50
iterations): the two differ by {furthest:.1e} nats at most.
""")


if __name__ == "__main__":
    main()
