"""The arrays behind the figures of a VAE and its mixture. Images are (N, 28, 28) in 0..1, latents (N, 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

import vae

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """How a set of digits lies in the plane and is read.

    z (N, 2) latent means; component (N,) the likeliest one; predicted (N,) its digit; labels (N,) or None.
    """

    z: Array
    component: NDArray[np.int64]
    predicted: NDArray[np.int64]
    labels: NDArray[np.int64] | None

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which digits are misread, (N,); none where the labels are unknown."""
        return np.zeros(len(self.z), bool) if self.labels is None else self.predicted != self.labels


def read(net: vae.VAE, mixture: vae.Mixture, data: vae.DigitDataset) -> Reading:
    """Encodes and reads all digits of `data`, as `vae.py test_classifier` does."""
    z = vae.latent_means(net, data.images)
    component = mixture.predict(z)
    predicted = torch.tensor(mixture.digits)[component]
    labels = None if data.labels is None else data.labels.numpy()
    return Reading(z.double().numpy(), component.numpy(), predicted.numpy(), labels)


def groups(reading: Reading, mixture: vae.Mixture) -> tuple[NDArray[np.int64], list[str], str]:
    """How to colour the latents: by digit where labels are known, else by component. Group (N,), names, a title."""
    if reading.labels is not None:
        digits = np.unique(reading.labels)
        return np.searchsorted(digits, reading.labels), [str(digit) for digit in digits], "colour: the true digit"
    return reading.component, [str(digit) for digit in mixture.digits or []], "colour: the likeliest component's digit"


def percentiles(n: int = 20, low: float = 0.05, high: float = 0.95) -> Array:
    """The standard normal's percentiles `low` to `high`, (n,): the assignment's axis of the grid."""
    return norm.ppf(np.linspace(low, high, n))


@torch.no_grad()
def manifold(net: vae.VAE, n: int = 20) -> NDArray[np.float32]:
    """Images (n, n, 28, 28) decoded from the percentile grid: z1 grows to the right, z2 upwards, as in a plot."""
    axis = torch.from_numpy(percentiles(n)).float()
    z = torch.cartesian_prod(axis.flip(0), axis).flip(1)  # (n * n, 2), rows from the top
    return net.decode(z).reshape(n, n, vae.SIDE, vae.SIDE).numpy()


def reconstructions(net: vae.VAE, data: vae.DigitDataset, most: int = 15) -> tuple[NDArray, NDArray]:
    """Up to `most` images, evenly picked from the whole set, and what `vae.py` makes of them: two (M, 28, 28)."""
    pick = np.linspace(0, len(data) - 1, min(most, len(data))).round().astype(int)
    images = data.images[torch.from_numpy(pick)]
    return images.numpy(), vae.reconstruct(net, images).numpy()


def likeness(net: vae.VAE, data: vae.DigitDataset) -> dict[str, float]:
    """The assignment's two scores of the reconstruction of all images, means over the images."""
    from skimage.metrics import structural_similarity  # not needed elsewhere, and slow to import

    images, made = data.images.numpy(), vae.reconstruct(net, data.images).numpy()
    alike = [structural_similarity(x, x_hat, data_range=1) for x, x_hat in zip(images, made, strict=True)]
    return {"1 - MSE": float(1 - np.square(images - made).mean()), "SSIM": float(np.mean(alike))}


def ellipse(mean: Array, covariance: Array, sigmas: float, points: int = 181) -> Array:
    """The outline (points, 2) of all that lies `sigmas` standard deviations from the mean of a normal distribution."""
    angle = np.linspace(0, 2 * np.pi, points)
    circle = np.stack([np.cos(angle), np.sin(angle)])  # (2, points)
    return mean + sigmas * (np.linalg.cholesky(covariance) @ circle).T
