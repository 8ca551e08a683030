"""From a model and data to a folder: figures, and `summary.json` with every number in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bird
import vae
from nestling import runs
from nestling.explain import counts, draw, gradcam, latent, photos, pointing


def explain_bird(model: Path, dataset: Path, out: Path) -> dict[str, Any]:
    """Heat maps of FOLDER/<class>/, the confusion matrix, the training's curves, `summary.json`, all into `out`.

    cams.png shows all classes, cams/<class>.png one each. Where masks lie beside the set, as a drawn set has them, the
    pointing game is played. Returns the summary.
    """
    net, history = bird.load_model(model), history_of(model)
    make_folder(out / "cams")
    album = photos.read_album(net, dataset, scratch=out)
    groups = cam_groups(net, album)
    for group in groups:
        draw.cam_sheet([group], out / "cams" / f"{group['name']}.png")
    draw.cam_sheet(groups, out / "cams.png", blocks=2, width=30.0)
    table = counts.confusion(album.labels.numpy(), album.predicted.numpy(), list(range(len(album.classes))))
    draw.confusion(table, album.classes, out / "confusion.svg")
    macro, micro = bird.scores(album.labels.tolist(), album.predicted.tolist())
    summary: dict[str, Any] = {
        "model": model.name, "photos": len(album.labels), "broken": album.broken, "score": (macro + micro) / 2,
        "macro F1": macro, "micro F1": micro,
        "classes": dict(zip(album.classes, counts.per_class(table), strict=True)),
        "confusion": table.tolist()}
    if folder := pointing.masks_of(dataset):
        masks = pointing.read_masks(folder, album.names, album.pixels.shape[-1])
        summary["pointing game"] = pointing.pointing_game(net, album.pixels, album.labels, masks)
    return finish(history, out, summary)


def cam_groups(net: bird.BirdNet, album: photos.Album, right: int = 3, wrong: int = 2) -> list[dict]:
    """What `draw.cam_sheet` takes, one group a class: `right` surest right photos and `wrong` surest wrong ones.

    Each map is the evidence for the class that the network names, right or wrong.
    """
    groups = []
    for name, pair in zip(album.classes, photos.choose(album.p, album.labels, right, wrong), strict=True):
        chosen = [*pair[0], *pair[1]]
        maps = gradcam.look(net, album.pixels[chosen], album.predicted[chosen]).cpu().numpy()
        groups.append({"name": name, "tiles": [
            {"photo": album.pixels[i].permute(1, 2, 0).numpy(), "aspect": float(album.aspect[i]), "heat": heat,
             "named": album.classes[album.predicted[i]], "p": float(album.p[i].max()),
             "p_true": float(album.p[i, album.labels[i]]), "right": i in pair[0]}
            for i, heat in zip(chosen, maps, strict=True)]})
    return groups


def explain_vae(model: Path, mixture: Path, data: Path, out: Path) -> dict[str, Any]:
    """Reconstructions, grid, scatter, ellipses, curves; confusion matrix and scores where labels are known.

    All into `out`, with `summary.json`. Returns the summary.
    """
    net, components, digits = vae.load_model(model), vae.load_mixture(mixture), vae.DigitDataset(data)
    history = history_of(model)
    reading = latent.read(net, components, digits)
    make_folder(out)
    draw.reconstructions(*latent.reconstructions(net, digits), out / "reconstructions.png")
    draw.manifold(latent.manifold(net), latent.percentiles(), out / "manifold.png")
    group, names, title = latent.groups(reading, components)
    draw.scatter(reading.z, group, names, out / "scatter.svg", title=title)
    draw.ellipses(reading.z, group, names, components.means.numpy(), components.covariances.numpy(),
                  out / "ellipses.svg", component_names=[str(d) for d in components.digits or []],
                  wrong=reading.wrong, title="ellipses: 1 and 2 σ of each component")
    summary: dict[str, Any] = {
        "model": model.name, "images": len(digits), "reconstruction": latent.likeness(net, digits),
        "latent mean": reading.z.mean(axis=0).tolist(), "latent covariance": np.cov(reading.z.T).tolist(),
        "mixture": {"digits": components.digits, "weights": components.weights.tolist(),
                    "means": components.means.tolist(), "covariances": components.covariances.tolist(),
                    "nats a point": components.score(torch.from_numpy(reading.z))}}
    if reading.labels is not None:
        seen = sorted({*reading.labels.tolist(), *(components.digits or [])})
        table = counts.confusion(reading.labels, reading.predicted, seen)
        draw.confusion(table, [str(digit) for digit in seen], out / "confusion.svg")
        summary |= {"scores": {name: float(v) for name, v in vae.scores(reading.labels, reading.predicted).items()},
                    "digits": dict(zip(map(str, seen), counts.per_class(table), strict=True)),
                    "confusion": table.tolist(), "misread": np.flatnonzero(reading.wrong).tolist()}
    return finish(history, out, summary)


def make_folder(out: Path) -> None:
    """The folder, with those above it. Raises Mistake if it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise bird.Mistake(f"{out} cannot be made ({error.strerror}); name a folder that can be written.") from error


def history_of(model: Path) -> list[dict]:
    """The rows that the training left beside the model; none, and a word about it, where there are none."""
    rows = runs.history_of(model)
    if not rows:
        bird.note(f"no epochs in {model.with_suffix('.history.jsonl')}, so no curves are drawn; `train` writes it.")
    return rows


def finish(history: list[dict], out: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """The curves, where there is a history, and the summary on the disk."""
    if history:
        draw.curves(history, out / "curves.svg")
    bird.write_atomic(out / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary
