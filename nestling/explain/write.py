"""From a model and data to a folder: figures, and `summary.json` with every number in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import bird
import vae
from nestling import runs
from nestling.explain import draw, gradcam, latent, photos, pointing, sheets
from nestling.files import UserError, say, write_json


def explain_bird(model: Path, dataset: Path, out: Path) -> dict[str, Any]:
    """Class activation maps, confusion matrix and curves of FOLDER/<class>/, and `summary.json`, all into
    `out`.

    cams.png shows all classes, cams/<class>.png one each. Where masks lie beside the set, as a drawn set
    has them, the pointing game is played. Returns the summary.
    """
    net, history = bird.load_model(model), runs.history_of(model)
    if dataset.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"{out} lies in {dataset}, whose images it would become; give another --out.")
    make_folder(out / "cams")
    found = photos.predict_folder(net, dataset)
    sheets.montage([sheets.cam_row(name, shown, out / "cams" / f"{name}.png", ratio=found.ratio)
                    for name, shown in cam_rows(net, found)], out / "cams.png")
    macro, micro = bird.f1(found.labels, found.predicted)
    indices = list(range(len(found.classes)))
    counts, classes = per_class(found.labels.numpy(), found.predicted.numpy(), indices)
    draw.confusion(counts, found.classes, out / "confusion.svg")
    summary: dict[str, Any] = {
        "model": model.name, "photos": len(found.labels), "broken": found.broken,
        "score": (macro + micro) / 2, "macro F1": macro, "micro F1": micro,
        "classes": dict(zip(found.classes, classes, strict=True)),
        "confusion": counts.tolist()}
    if folder := pointing.mask_folder(dataset):
        masks = pointing.read_masks(folder, found.paths, found.pixels.shape[-1])
        summary["pointing game"] = pointing.pointing_game(net, found.pixels, found.labels, masks)
    return finish(model, history, out, summary)


def cam_rows(net: bird.BirdNet, found: photos.Predictions, number: int = 3,
             wrong: int = 1) -> list[tuple[str, list]]:
    """What `sheets.cam_row` takes, for each class: its name and up to `number` photos, `wrong` of them
    misclassified.

    Each map is the evidence for the predicted class, right or wrong.
    """
    rows = []
    each = photos.choose(found.probabilities, found.labels, number, wrong)
    for name, chosen in zip(found.classes, each, strict=True):
        maps = gradcam.cam_maps(net, found.pixels[chosen], found.predicted[chosen]).cpu().numpy()
        rows.append((name, [
            {"photo": found.pixels[i].permute(1, 2, 0).numpy(), "aspect": float(found.aspect[i]), "cam": cam,
             "p": float(found.probabilities[i].max()),
             "wrong": found.classes[found.predicted[i]] if found.predicted[i] != found.labels[i] else ""}
            for i, cam in zip(chosen, maps, strict=True)]))
    return rows


def per_class(labels: NDArray, predicted: NDArray, classes: list[int]) -> tuple[NDArray, list[dict]]:
    """The confusion matrix (K, K), true classes downwards, and precision, recall, F1 of each class."""
    scores = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    keys = ("precision", "recall", "f1", "number")
    return (confusion_matrix(labels, predicted, labels=classes),
            [dict(zip(keys, map(float, row), strict=True)) for row in np.stack(scores, axis=1)])


def explain_vae(model: Path, mixture: Path, data: Path, out: Path) -> dict[str, Any]:
    """Reconstructions, grid, scatter, ellipses, curves; confusion matrix and scores where labels are known.

    All into `out`, with `summary.json`. Returns the summary.
    """
    net, digits = vae.load_model(model), vae.DigitDataset(data)
    gmm = vae.load_mixture(mixture, net)
    history, found = runs.history_of(model), latent.encode(net, gmm, digits)
    make_folder(out)
    sheets.reconstructions(*latent.reconstructions(net, digits), out / "reconstructions.png")
    sheets.manifold(latent.manifold(net), latent.percentiles(), out / "manifold.png")
    group, names, title = latent.groups(found, gmm)
    sheets.latents(found.z, group, names, out / "scatter.svg", title=title)
    components = (gmm.means.numpy(), gmm.covariances.numpy(), [str(digit) for digit in gmm.digits])
    sheets.latents(found.z, group, names, out / "ellipses.svg", mixture=components, wrong=found.wrong,
                   title="ellipses: 1 and 2 σ of each component")
    summary: dict[str, Any] = {
        "model": model.name, "images": len(digits),
        "reconstruction": latent.reconstruction_scores(net, digits),
        "latent mean": found.z.mean(axis=0).tolist(), "latent covariance": np.cov(found.z.T).tolist(),
        "mixture": {"digits": gmm.digits, "weights": gmm.weights.tolist(), "means": gmm.means.tolist(),
                    "covariances": gmm.covariances.tolist(),
                    "log-likelihood, nats a point": gmm.e_step(torch.from_numpy(found.z))[1]}}
    if found.labels is not None:
        classes = sorted({*found.labels.tolist(), *gmm.digits})
        counts, scores = per_class(found.labels, found.predicted, classes)
        draw.confusion(counts, [str(digit) for digit in classes], out / "confusion.svg")
        summary |= {"scores": vae.scores(torch.from_numpy(found.labels), torch.from_numpy(found.predicted)),
                    "digits": dict(zip(map(str, classes), scores, strict=True)), "confusion": counts.tolist(),
                    "misclassified": np.flatnonzero(found.wrong).tolist()}
    return finish(model, history, out, summary)


def make_folder(out: Path) -> None:
    """The folder, with those above it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}); name another folder.") from error


def finish(model: Path, history: list[dict], out: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """The curves, where there is a history, and the summary on the disk."""
    if history:
        draw.curves(history, out / "curves.svg")
    else:
        say(f"note: no epochs in {model.with_suffix('.history.jsonl')}, so no curves.", "stderr")
    write_json(out / "summary.json", summary)
    return summary
