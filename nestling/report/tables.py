"""Measured numbers -> rows of text, and nothing that was not measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Table = dict[str, Any]                     # {"columns": [text], "rows": [[text]]}, but for `confusion`


def signed(value: float, places: int = 4) -> str:
    """A number with its sign, a true minus; what rounds to zero is +0."""
    return f"{round(float(value), places) + 0.0:+.{places}f}".replace("-", "−")


def training_bird(history: list[dict], saved: dict[str, float] | None = None) -> Table:
    """The first, the best and the last epoch, and the model in the file, of validation scores `saved`."""
    best = ([row for row in history if row["best"]] or history)[-1]
    keys = {"train_loss": ".3f", "train_accuracy": ".4f", "val_loss": ".3f", "val_accuracy": ".4f",
            "val_macro_f1": ".4f"}
    chosen = {"first epoch": history[0], "lowest validation loss: saved": best, "last epoch": history[-1]}
    rows = [[name, f"{row['epoch']} of {row['epochs']}", *(f"{row[key]:{keys[key]}}" for key in keys)]
            for name, row in chosen.items()]
    if saved:
        rows.append(["saved model: BN recalibrated, test-time augmentation", "", "", "", "",
                     f"{saved['accuracy']:.4f}", f"{saved['macro_f1']:.4f}"])
    return {"columns": ["", "epoch", "training loss", "accuracy", "validation loss", "accuracy", "macro F1"],
            "rows": rows}


def training_vae(history: list[dict]) -> Table:
    """Each term of the loss, from the first to the last epoch of its phase, in training and held out."""
    names = {"clusters": {"information": "mutual information, nats"},
             "latents": {"recon": "reconstruction, nats an image", "kl": "KL divergence, nats an image",
                         "ssim": "SSIM"}}
    rows = []
    for phase in dict.fromkeys(row["phase"] for row in history):
        epochs = [row for row in history if row["phase"] == phase]
        for key, name in names[phase].items():
            moved = (f"{epochs[0][of]:.3f} → {epochs[-1][of]:.3f}" for of in (key, f"held_{key}"))
            rows.append([f"{phase}, {len(epochs)}", name, *moved])
    return {"columns": ["phase, epochs", "", "training", "held-out"], "rows": rows}


def confusion(counts: NDArray, names: list[str], classes: list[dict[str, float]]) -> Table:
    """A confusion matrix (K, K), its shares of each row, and the scores of `write.per_class`."""
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return {"names": names, "counts": counts.tolist(), "shares": share.tolist(),
            "scores": [[f"{row[key]:.3f}" for key in ("precision", "recall", "f1")] for row in classes]}


def pointing(game: dict[str, Any]) -> Table:
    """The numbers of `pointing.pointing_game`."""
    rows = [["this network", game["pointing"], game["heat_inside"]],
            ["random weights", game["random_pointing"], game["random_heat_inside"]],
            ["no network: centre of the picture, even spread", game["centre"], game["area"]]]
    return {"columns": [f"{game['photos']} photos", "maximum on the bird", "evidence on the bird"],
            "rows": [[name, *(f"{value:.1%}" for value in values)] for name, *values in rows]}


def ablation(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `ablate.table` that have a finished run, as text and as numbers for the bars."""
    verdict = {True: "yes", False: "no", None: "not known"}
    shown = []
    for row in (row for row in rows if row["runs"]):
        compared, spread = row["difference"] is not None, row["spread"]
        shown.append({
            "what": row["what"], "runs": str(row["runs"]), "base": row["setting"] == "baseline",
            "score": f"{row['score']:.4f}" + (f" ± {spread:.4f}" if spread is not None else ""),
            "ssim": "" if row["ssim"] is None else f"{row['ssim']:.4f}",
            "signed": signed(row["difference"]) if compared else "",
            "verdict": verdict[row["beyond"]] if compared else "", "minutes": f"{row['minutes']:.1f}",
            **{key: row[key] for key in ("difference", "noise", "beyond")}})
    return shown
