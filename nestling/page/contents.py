"""What a page shows of models and data, as plain values: photos to try, mistakes, the points of the plane, curves."""

from __future__ import annotations

import base64
import contextlib
import io
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import bird
import vae
from nestling import runs
from nestling.explain.gradcam import grad_cam
from nestling.files import UserError, read_json

MOST_PHOTOS, MOST_POINTS, SAMPLES, WORST = 600, 2000, 12, 24
MOST_MISTAKES = 200
MOST_BYTES = 10e6                      # of a history
RIGHT = 6                              # photos behind a cell of the confusion matrix's diagonal
COLUMNS = {bird.STORED: 12, 14: 50}    # of a sprite, by the side of its thumbnails
Photo = tuple[Path, int]               # and its label


def encoded(image: Image.Image, kind: str, **options: Any) -> str:
    """An image as base64 of its file."""
    image.save(buffer := io.BytesIO(), kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def sprite(thumbnails: np.ndarray, kind: str, **options: Any) -> dict[str, Any]:
    """Thumbnails (N, s, s) or (N, s, s, 3) uint8, side by side in one image."""
    side = thumbnails.shape[1]
    columns = COLUMNS[side]
    missing = -len(thumbnails) % columns
    cells = np.concatenate([thumbnails, np.zeros((missing, *thumbnails.shape[1:]), np.uint8)])
    grid = cells.reshape(-1, columns, *cells.shape[1:]).swapaxes(1, 2)          # (rows, s, columns, s, ...)
    sheet = Image.fromarray(grid.reshape(-1, columns * side, *cells.shape[3:]))
    return {"side": side, "columns": columns, "type": f"image/{kind}", "image": encoded(sheet, kind, **options)}


def evenly(items: list[Any], most: int) -> list[Any]:
    """Up to `most` of them, evenly spread."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


# ------------------------------------------------------ photos

def labelled_photos(classes: list[str], data: Path | None, run: Path | None) -> tuple[list[Photo], str]:
    """Those of the model's classes below DATA, or else those that the training of RUN validated on; the set's name."""
    folders = [data / "test", data, data / "birds" / "test", data / "birds"] if data else []
    for folder in folders:
        if any((folder / name).is_dir() for name in classes):
            return of_classes(folder, classes), "test"
    if run and (run / "config.json").is_file():
        match read_json(run / "config.json"):
            case {"program": "bird", "data": {"dataset": str(dataset)}, "config": {"seed": int(seed)}}:
                photos = of_classes(Path(dataset), classes)
                return [photos[i] for i in bird.load_data(Path(dataset), seed).val], "validation"
    return [], ""


def of_classes(folder: Path, classes: list[str]) -> list[Photo]:
    """FOLDER/<class>/<image>, but for hidden ones and for classes that the model does not know."""
    return [(path, classes.index(name)) for path, name in zip(*bird.find_images(folder), strict=True)
            if name in classes and not bird.hidden(path, folder)]


def photos(net: bird.BirdNet, found: list[Photo], name: str) -> dict[str, Any]:
    """Samples to try, and what the network makes of up to 600 photos: counts, mistakes, worst ones.

    name: of the set that they are from.
    """
    classes: list[str] = net.extra["classes"]
    found = evenly(found, MOST_PHOTOS)
    pixels, aspect, broken = bird.decode([path for path, _ in found], "left out of the page")
    rows = np.setdiff1d(np.arange(len(found)), broken)
    if not len(rows):
        return {}
    found, pixels, aspect = [found[i] for i in rows], pixels[rows], aspect[rows]
    labels, p = torch.tensor([label for _, label in found]), bird.predict(net, pixels)
    predicted, loss = p.argmax(dim=1), -p.gather(1, labels[:, None])[:, 0].clamp(min=1e-7).log()
    matrix = torch.zeros(len(classes), len(classes), dtype=torch.long)
    matrix.index_put_((labels, predicted), torch.tensor(1), accumulate=True)
    worst = loss.argsort(descending=True, stable=True)[:WORST].tolist()
    unsure = [i for k in range(len(classes)) for i in worst_of(loss, (labels == k) & (predicted == k), RIGHT)]
    wrong = worst_of(loss, predicted != labels, MOST_MISTAKES)
    shown = sorted({*wrong, *worst, *unsure})
    heat = heat_maps(net, pixels[shown], predicted[shown])
    heat = (255 * heat / heat.amax(dim=(1, 2), keepdim=True).clamp(min=1e-9)).round().byte()
    mistakes = {
        "classes": classes, "set": name, "photos": len(found), "matrix": matrix.tolist(),
        "worst": [shown.index(i) for i in worst], "h": heat.shape[1], "w": heat.shape[2],
        **sprite(pixels[shown].permute(0, 2, 3, 1).numpy(), "jpeg", quality=85),
        "shown": [{"file": found[i][0].name, "aspect": round(float(aspect[i]), 3), "label": int(labels[i]),
                   "predicted": int(predicted[i]), "p": round(float(p[i, predicted[i]]), 4),
                   "p_label": round(float(p[i, labels[i]]), 4), "loss": round(float(loss[i]), 3),
                   "heat": base64.b64encode(map_.numpy().tobytes()).decode()}
                  for i, map_ in zip(shown, heat, strict=True)]}
    one_each = [i for k in range(len(classes)) for i in (labels == k).nonzero()[:, 0].tolist()[:1]]
    chosen = evenly(one_each, SAMPLES)
    chosen += evenly([i for i in range(len(found)) if i not in chosen], SAMPLES - len(chosen))
    return {"samples": list(samples([found[i] for i in chosen], classes)), "mistakes": mistakes}


def worst_of(loss: Tensor, among: Tensor, most: int) -> list[int]:
    """The rows of highest loss among some."""
    rows = among.nonzero()[:, 0]
    return rows[loss[rows].argsort(descending=True, stable=True)][:most].tolist()


@torch.no_grad()
def heat_maps(net: bird.BirdNet, pixels: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM (N, h, w) of `predict`'s first view."""
    edge, maps = pixels.shape[-1] // 20, []
    for batch, classes in zip(pixels.split(64), target.split(64), strict=True):
        x = bird.resize(batch[:, :, edge:-edge, edge:-edge], net.extra["size"]).float() / 255
        maps.append(grad_cam(net, x, classes))
    return torch.cat(maps)


def samples(chosen: list[Photo], classes: list[str], side: int = 480) -> Iterator[dict[str, str]]:
    """Photos to try, as small JPEGs without the metadata of the originals; damaged ones are left out."""
    for path, label in chosen:
        pixels = np.empty((3, side, side), np.uint8)
        with warnings.catch_warnings(action="ignore"):     # of damaged EXIF
            aspect = bird.decode_image(path, pixels)
        if isinstance(aspect, float):
            width, height = max(1, round(side * min(1, aspect))), max(1, round(side * min(1, 1 / aspect)))
            small = Image.fromarray(pixels.transpose(1, 2, 0)).resize((width, height))
            yield {"name": f"{classes[label]}/{path.name}", "label": classes[label],
                   "image": encoded(small, "jpeg", quality=85)}


# ------------------------------------------------------ digits

def points(net: vae.VAE, data: Path) -> dict[str, Any] | None:
    """Up to 2,000 images of train.npz and test.npz in DATA or DATA/digits, with their latent means.

    A label of -1 is unknown. error: mean squared error that 99 % of the reconstructions do not exceed. None where
    there is no such file.
    """
    paths = [folder / name for folder in (data, data / "digits") for name in ("train.npz", "test.npz")]
    sets = [vae.DigitDataset(path) for path in paths if path.is_file()]
    if not sets:
        return None
    images = torch.cat([each.images for each in sets])
    labels = torch.cat([torch.full((len(each),), -1) if each.labels is None else each.labels for each in sets])
    rows = evenly(list(range(len(images))), MOST_POINTS)
    images, labels, z = images[rows], labels[rows], vae.latent_means(net, images[rows])
    with torch.no_grad():
        error = (net.cpu().decode(z) - images).square().mean(dim=(1, 2)).quantile(0.99)
    thumbnails = (255 * F.avg_pool2d(images[:, None], 2)[:, 0]).round().byte().numpy()
    return {"z": z.double().numpy().round(4).tolist(), "labels": labels.tolist(), "error": float(error),
            **sprite(thumbnails, "png", optimize=True)}


# ------------------------------------------------------ trainings

def histories(models: list[Path], run: Path | None) -> dict[str, Any]:
    """Of the trainings in the folder RUN, or else of the models: rows by program.

    age: seconds since the last row, in tens, where the training's checkpoint says that it is not at its end; else
    None. Of two histories of a program the newer one counts; a damaged one is left out.
    """
    paths = run.glob("*.history.jsonl") if run else [path.with_suffix(".history.jsonl") for path in models]
    found = []
    for path in paths:
        with contextlib.suppress(UserError, OSError):      # it may vanish meanwhile
            if path.stat().st_size > MOST_BYTES:
                continue
            written, name = path.stat().st_mtime, path.name.removesuffix(".history.jsonl")
            if rows := runs.history_of(path.with_name(f"{name}.pth")):
                running = path.with_name(f"{name}.checkpoint.pt").is_file()
                age = round(max(0.0, time.time() - written), -1) if running else None
                found.append((written, "vae" if "phase" in rows[0] else "bird", {"rows": rows, "age": age}))
    return {program: history for _, program, history in sorted(found, key=lambda each: each[0])}
