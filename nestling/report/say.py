"""Measured numbers -> sentences. Nothing is said that the numbers given do not carry."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling.ablate import BASELINE, Setting


def signed(value: float, places: int = 4) -> str:
    """A number with its sign, a true minus; what rounds to zero is +0."""
    return f"{round(float(value), places) + 0.0:+.{places}f}".replace("-", "−")


def training_bird(rows: list[dict], saved: dict[str, float] | None = None) -> list[str]:
    """What bird.py's history shows: the epoch that was kept, the gap to training, how it ended.

    saved: accuracy and macro F1 of the network in the file, whose batch statistics are not those of the epoch.
    """
    best = [row for row in rows if row["best"]][-1]
    first, last = rows[0], rows[-1]
    said = [f"The weights of epoch {best['epoch']} were kept, whose loss on the validation photos was the lowest: "
            f"accuracy {best['val_accuracy']:.4f}, macro F1 {best['val_macro_f1']:.4f}, loss {best['val_loss']:.3f}"
            + ("." if best is first else f" (after epoch {first['epoch']}: accuracy {first['val_accuracy']:.4f}, loss "
                                         f"{first['val_loss']:.3f})."),
            f"In that epoch the training loss was {best['train_loss']:.3f} and the training accuracy "
            f"{best['train_accuracy']:.4f}, measured on the augmented photos while the network was learning from them."]
    if saved and (saved["accuracy"], saved["macro_f1"]) != (best["val_accuracy"], best["val_macro_f1"]):
        said.append(f"Saved with batch statistics of photos that are not augmented, the network has accuracy "
                    f"{saved['accuracy']:.4f}, macro F1 {saved['macro_f1']:.4f} on the validation photos.")
    if last is not best:
        lower = round(best["val_score"] - last["val_score"], 4)
        said.append(f"The last epoch, {last['epoch']}, scored "
                    + (f"{abs(lower):.4f} {'lower' if lower > 0 else 'higher'}." if lower else "the same."))
    if last["epoch"] < last["epochs"]:
        said.append(f"{last['epochs']} epochs were planned; the training ended before that.")
    return said


def training_vae(rows: list[dict]) -> list[str]:
    """What vae.py's history shows: how each part of the loss moved, phase by phase."""
    said = []
    for phase in dict.fromkeys(row["phase"] for row in rows):
        of = [row for row in rows if row["phase"] == phase]
        moved = [f"{name} {of[0][key]:.3f} → {of[-1][key]:.3f}" for key, name in (
            ("held_recon", "reconstruction loss"), ("held_kl", "KL term"), ("held_ssim", "SSIM"),
            ("held_information", "information (nats)")) if key in of[0] and of[0][key] != of[-1][key]]
        said.append(f"The phase “{phase}” took {len(of)} epoch{'s' * (len(of) != 1)}"
                    + (f"; on the held-out images, from its first to its last: {', '.join(moved)}." if moved else "."))
    return said


def ablation(rows: list[dict[str, Any]], known: dict[str, Setting], most: int = 5) -> list[str]:
    """Which settings differ from the baseline by more than the noise, and which were not measured.

    rows: `ablate.table`'s; known: all settings there are.
    """
    base = next((row for row in rows if row["setting"] == BASELINE and row["runs"]), None)
    if base is None:
        return ["The baseline has no finished run, so no difference can be given."]
    seeds = base["runs"]
    said = [f"The baseline scored {base['score']:.4f}" + (f" ± {base['spread']:.4f}" if seeds > 1 else "")
            + f" over {seeds} seed{'s' * (seeds > 1)}."]
    compared = sorted((row for row in rows if row["difference"] is not None), key=lambda row: row["difference"])
    worse = [row for row in compared if row["beyond"] and row["difference"] < 0]
    better = [row for row in reversed(compared) if row["beyond"] and row["difference"] > 0]
    for group, verb in ((worse, "lowers"), (better, "raises")):
        if group:
            told = [f"{row['what']} ({signed(row['difference'])}, noise {row['noise']:.4f})" for row in group[:most]]
            said.append(f"Beyond the noise, this {verb} the score: {'; '.join(told)}"
                        + (f"; and {len(group) - most} more in the table." if len(group) > most else "."))
    within = [row for row in compared if row["beyond"] is False]
    if within:
        whom = "it matters" if len(within) == 1 else "they matter"
        said.append(f"For {len(within)} of {len(compared)} settings the difference lies within the noise: these runs "
                    f"do not show that {whom}.")
    unknown = [row for row in compared if row["beyond"] is None]
    if unknown:
        whom = "With one seed a setting" if len(unknown) == len(compared) else f"For {len(unknown)} settings"
        said.append(f"{whom} the noise is not known, so the difference cannot be told from chance.")
    return said


def not_measured(rows: list[dict[str, Any]], known: dict[str, Setting]) -> list[str]:
    """The settings that have no finished run, and the failures with their reasons; in sentences."""
    done = {row["setting"] for row in rows if row["runs"]}
    open_ = [setting.what for name, setting in known.items() if name not in done]
    failed = [f"{row['what']} ({reason})" for row in rows for reason in row["failed"]]
    told = (("Not measured", open_), ("Failed", failed))
    return [f"{what}: {'; '.join(names)}." for what, names in told if names]


def confusions(table: NDArray, names: list[str], what: str, most: int = 3) -> list[str]:
    """The classes that are taken for one another most often, and the best and worst read; table (K, K) as counted."""
    right, true = table.diagonal(), table.sum(axis=1)
    wrong = int(table.sum() - right.sum())
    said = [f"{int(right.sum())} of the {int(table.sum())} {what} are read right."]
    off = table - np.diag(right)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    pairs = [(int(off.flat[k]), *divmod(int(k), len(names))) for k in order if off.flat[k] > 0]
    if pairs:
        told = [f"{count} of {true[i]} {names[i]} as {names[j]}" for count, i, j in pairs]
        together = sum(count for count, *_ in pairs)
        whole = "the only error" if wrong == 1 else f"all {wrong} errors"
        share = f"together {together} of the {wrong} errors" if together < wrong else whole
        said.append(f"Most often misread: {'; '.join(told)} ({share}).")
    f1 = 2 * right / np.maximum(true + table.sum(axis=0), 1)
    seen = np.flatnonzero(true)
    if len(seen) > 1 and f1[seen].min() < f1[seen].max():
        best, worst = (seen[f1[seen] == end] for end in (f1[seen].max(), f1[seen].min()))
        who, whom = (names[tied[0]] if len(tied) == 1 else f"{len(tied)} classes" for tied in (best, worst))
        said.append(f"By F1, {who} {'is' if len(best) == 1 else 'are'} read best ({f1[best[0]]:.3f}) and {whom} worst "
                    f"({f1[worst[0]]:.3f}).")
    return said


def heat_on_masks(game: dict[str, Any]) -> list[str]:
    """Where the heat lies, where the bird's outline is known; game: `explain.pointing.pointing_game`'s."""
    seeds = len(game["random_seeds"])
    return [f"The birds' outlines are known: in {game['pointing']:.1%} of {game['photos']} photos the hottest cell of "
            f"the true class's map lies on the bird, and {game['heat_inside']:.1%} of the heat lies inside it.",
            f"The bird covers {game['area']:.1%} of the picture, and its centre in {game['centre']:.1%} of the photos; "
            f"the maps of {seeds} network{'s' * (seeds > 1)} with random weights reach {game['random_pointing']:.1%} "
            f"and {game['random_heat_inside']:.1%}."
            + (f" {empty_maps(game['empty'])}" if game["empty"] else "")]


def empty_maps(count: int) -> str:
    """How many maps are zero throughout."""
    return f"{count} map{'s hold' if count > 1 else ' holds'} no heat at all."


def heat_in_middle(shares: NDArray, labels: NDArray, names: list[str], half: float = 0.25) -> list[str]:
    """Where the heat lies, without outlines: shares (N,) of each map's heat in the middle of the picture; NaN: none."""
    known = np.isfinite(shares)
    if not known.any():
        return [f"None of the {len(shares)} maps holds any heat."]
    said = [f"On average {shares[known].mean():.1%} of the heat lies in the middle {half:.0%} of the picture "
            f"({known.sum()} photos, maps of the true class); spread evenly it would be {half:.0%}."]
    means = {k: shares[known & (labels == k)].mean() for k in np.unique(labels[known])}
    if len(means) > 1:
        high, low = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        said.append(f"By class the share runs from {means[low]:.1%} ({names[low]}) to {means[high]:.1%} "
                    f"({names[high]}).")
    if not known.all():
        said.append(empty_maps(int((~known).sum())))
    return said


def latents(z: NDArray, what: str) -> str:
    """How near the latent means (N, 2) are to the prior's mean 0 and covariance 1."""
    mean, (xx, xy, yy) = z.mean(axis=0), np.cov(z.T)[np.triu_indices(2)]
    return (f"The latent means of {len(z)} {what} have the mean ({signed(mean[0], 2)}, {signed(mean[1], 2)}), the "
            f"variances {xx:.2f} and {yy:.2f} and the correlation {signed(xy / np.sqrt(xx * yy), 2)}; the standard "
            "normal has 0, 1 and 0.")
