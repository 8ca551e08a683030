"""The digits 1, 4 and 8 without or with the network, in the layout of the course's files.

    OUT/train.npz, val.npz (5 of each digit), test.npz     data uint8 (N, 28, 28), labels int64 (N,)
    OUT/recon.npz                                          data only, 10 images

`shipped` are the 8 x 8 handwritten digits that come with scikit-learn, enlarged; `mnist` are the real ones.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from nestling.files import UserError, whole_folder

DIGITS = (1, 4, 8)
VAL_PER_DIGIT = 5
TEST_SHARE = 0.2  # of the shipped digits; MNIST has a test part of its own
RECON = 10


def make_digits(out: Path, source: str = "shipped", seed: int = 0) -> None:
    """Write the four files into the new folder `out`; `recon` shows ten of the test images.

    Raises UserError if `out` is not free, the source is unknown or MNIST cannot be fetched.
    """
    if source not in ("shipped", "mnist"):
        raise UserError(f"--source {source} is unknown; it is shipped or mnist")
    rng = np.random.default_rng(seed)
    with whole_folder(out) as part:
        if source == "shipped":
            data, labels = shipped()
            test = pick(rng, labels, {digit: round(TEST_SHARE * int((labels == digit).sum())) for digit in DIGITS})
            fit, test_data, test_labels = np.setdiff1d(np.arange(len(labels)), test), data[test], labels[test]
            data, labels = data[fit], labels[fit]
        else:
            (data, labels), (test_data, test_labels) = mnist()
        val = pick(rng, labels, dict.fromkeys(DIGITS, VAL_PER_DIGIT))
        train = rng.permutation(np.setdiff1d(np.arange(len(labels)), val))
        np.savez_compressed(part / "train.npz", data=data[train], labels=labels[train])
        np.savez_compressed(part / "val.npz", data=data[val], labels=labels[val])
        np.savez_compressed(part / "test.npz", data=test_data, labels=test_labels)
        np.savez_compressed(part / "recon.npz", data=test_data[rng.choice(len(test_data), RECON, replace=False)])


def pick(rng: np.random.Generator, labels: np.ndarray, counts: dict[int, int]) -> np.ndarray:
    """Indices of so many random examples of each digit, in random order."""
    chosen = [rng.choice(np.flatnonzero(labels == digit), count, replace=False) for digit, count in counts.items()]
    return rng.permutation(np.concatenate(chosen))


def shipped() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1, 4 and 8: data uint8 (537, 28, 28) and labels int64."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    keep = np.isin(bunch.target, DIGITS)
    return np.stack([enlarge(image) for image in bunch.images[keep]]), bunch.target[keep].astype(np.int64)


def enlarge(image: np.ndarray) -> np.ndarray:
    """An 8 x 8 digit of 0..16 as MNIST frames it: 20 x 20, its centre of mass in the middle of 28 x 28; uint8."""
    smooth = Image.fromarray(image.astype(np.float32)).resize((20, 20), Image.Resampling.BICUBIC)
    ink = np.clip((np.asarray(smooth) / 16 - 0.3) / 0.6, 0, 1)  # strokes as dark and edges as steep as MNIST's
    canvas = np.pad(ink, 4)
    middle = np.indices(canvas.shape).reshape(2, -1) @ canvas.ravel() / canvas.sum()
    shift = np.rint(13.5 - middle).astype(int).tolist()
    return (255 * np.roll(canvas, shift, axis=(0, 1))).round().astype(np.uint8)


def mnist() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """MNIST's own training and test parts, 1, 4 and 8 only, fetched by torchvision."""
    from torchvision.datasets import MNIST

    parts = []
    with tempfile.TemporaryDirectory() as root:
        for train in (True, False):
            try:
                part = MNIST(root, train=train, download=True)
            except (OSError, RuntimeError) as error:
                raise UserError(
                    "MNIST cannot be fetched: connect this machine to the network and run the command again, "
                    "or take --source shipped, which needs none"
                ) from error
            keep = np.isin(part.targets.numpy(), DIGITS)
            parts.append((part.data.numpy()[keep], part.targets.numpy()[keep].astype(np.int64)))
    return parts[0], parts[1]
