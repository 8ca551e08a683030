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
class Latents:
    """Latent means z (N, 2), likeliest component (N,), its digit (N,), and the labels (N,) or None."""

    z: Array
    component: NDArray[np.int64]
    predicted: NDArray[np.int64]
    labels: NDArray[np.int64] | None

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which digits are misclassified, (N,); none where the labels are unknown."""
        return np.zeros(len(self.z), bool) if self.labels is None else self.predicted != self.labels


def encode(net: vae.VAE, mixture: vae.GaussianMixture, data: vae.DigitDataset) -> Latents:
    """Encodes and classifies all digits of `data`, as `vae.py test_classifier` does."""
    z = vae.latent_means(net, data.images)
    component = mixture.log_joint(z).argmax(dim=1)
    labels = None if data.labels is None else data.labels.numpy()
    return Latents(z.double().numpy(), component.numpy(), mixture.predict(z).numpy(), labels)


def groups(latents: Latents, mixture: vae.GaussianMixture) -> tuple[NDArray[np.int64], list[str], str]:
    """How to colour latents: by label where known, else by component. Group (N,), names, a title."""
    if latents.labels is not None:
        digits = np.unique(latents.labels)
        return np.searchsorted(digits, latents.labels), list(map(str, digits)), "colour: true digit"
    return latents.component, list(map(str, mixture.digits)), "colour: digit of the likeliest component"


def percentiles(n: int = 20, low: float = 0.05, high: float = 0.95) -> Array:
    """The standard normal's percentiles `low` to `high`, (n,): the assignment's axis of the grid."""
    return norm.ppf(np.linspace(low, high, n))


@torch.no_grad()
def manifold(net: vae.VAE, n: int = 20) -> NDArray[np.float32]:
    """Images (n, n, 28, 28) decoded from the percentile grid: z1 grows to the right, z2 upwards."""
    axis = torch.from_numpy(percentiles(n)).float()
    z = torch.cartesian_prod(axis.flip(0), axis).flip(1)   # (n * n, 2), rows from the top
    return net.decode(z).reshape(n, n, vae.SIDE, vae.SIDE).numpy()


def reconstructions(net: vae.VAE, data: vae.DigitDataset, most: int = 15) -> tuple[NDArray, NDArray]:
    """Up to `most` images, evenly picked from the whole set, and their reconstructions: two (M, 28, 28)."""
    pick = np.linspace(0, len(data) - 1, min(most, len(data))).round().astype(int)
    images = data.images[torch.from_numpy(pick)]
    return images.numpy(), vae.reconstruct(net, images).numpy()


def reconstruction_scores(net: vae.VAE, data: vae.DigitDataset) -> dict[str, float]:
    """The assignment's two scores of the reconstruction, means over all images."""
    decoded = vae.reconstruct(net, data.images)
    return {"1 - MSE": 1 - float((data.images - decoded).square().mean()),
            "SSIM": float(vae.ssim(data.images, decoded).mean())}


def ellipse(mean: Array, covariance: Array, sigmas: float, points: int = 181) -> Array:
    """The contour (points, 2) of a normal distribution, `sigmas` standard deviations from its mean."""
    angle = np.linspace(0, 2 * np.pi, points)
    circle = np.stack([np.cos(angle), np.sin(angle)])      # (2, points)
    return mean + sigmas * (np.linalg.cholesky(covariance) @ circle).T
