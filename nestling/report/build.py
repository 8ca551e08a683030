"""A run, its data and an ablation -> the facts of a report -> a PDF of at most three pages.

Facts are plain values: numbers are formatted and figures drawn here, once; typst only sets them. What is
not there is named as missing. The same inputs give the same bytes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import bird
import vae
from nestling import ablate, runs
from nestling.explain import draw, gradcam, latent, photos, pointing, sheets
from nestling.explain.write import cam_rows, per_class
from nestling.files import check_outputs, read_json
from nestling.report import tables
from nestling.report.network import network_facts
from nestling.report.pdf import read_notes, typeset

MEASURED = 80                              # photos whose maps are measured, over all classes
MOST_CLASSES = 28                          # whose maps fit into the report

Facts = dict[str, Any]


def report_bird(run: Path, authors: list[str], out: Path, *, ablation: Path | None = None,
                dataset: Path | None = None, notes: Path | None = None) -> int:
    """Writes the report of Part I and returns its number of pages.

    run: a model or its folder. authors: "NAME ENTRY" each. ablation: the folder of `nestling ablate
    bird`. dataset: labelled photos, DATASET/<class>/.
    """
    model = runs.model_of(run, "bird")
    check_outputs([out], filter(None, (model, notes)))
    net, history = bird.load_model(model), runs.history_of(model)
    size, saved = net.extra["size"], net.extra.get("validation")
    network = network_facts(net, torch.zeros(1, 3, size, size), merged=True)
    found, tiles = photos.predict_folder(net, dataset) if dataset else None, []
    if found:
        macro, micro = bird.f1(found.labels, found.predicted)
        tiles = [(f"{(macro + micro) / 2:.4f}", f"score on {len(found.labels)} photos"),
                 (f"{macro:.4f}", "macro F1"), (f"{micro:.4f}", "micro F1 = accuracy")]
    if saved:
        tiles.append((f"{(saved['macro_f1'] + saved['accuracy']) / 2:.4f}", "validation score"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return typeset("bird", {
            **common("Learning birds from photos", "Part I: a convolutional network", authors, notes, model),
            "tiles": tiles + common_tiles(history, network), "network": network, "size_px": size,
            "training": curves(history, folder, model)
            | ({"table": tables.training_bird(history, saved)} if history else {}),
            "confusion": confusion_facts(found, dataset), "cams": cam_facts(net, found, dataset, folder),
            "ablation": ablation_facts("bird", ablation)}, folder, out)


def report_vae(run: Path, authors: list[str], out: Path, *, ablation: Path | None = None,
               gmm: Path | None = None, train: Path | None = None, val: Path | None = None,
               test: Path | None = None, notes: Path | None = None) -> int:
    """Writes the report of Part II and returns its number of pages.

    run: a model or its folder; the mixture is `gmm`, or gmm_params.pkl beside the model. train, val,
    test: digits; the scores are those of `test`, or of `val` where there is no test.
    """
    model = runs.model_of(run, "vae")
    check_outputs([out], filter(None, (model, gmm, train, val, test, notes)))
    net, history = vae.load_model(model), runs.history_of(model)
    beside = model.with_name("gmm_params.pkl")
    mixture = vae.load_mixture(gmm or beside, net) if gmm or beside.is_file() else None
    data = {path: vae.DigitDataset(path) for path in (train, val, test) if path}
    labelled = [data[path] for path in (test, val) if path and data[path].labels is not None]
    network = network_facts(net, torch.zeros(1, vae.SIDE, vae.SIDE))
    scores, tiles = score_facts(net, mixture, labelled[0] if labelled else None), []
    if scores["missing"] is None:
        tiles = [(scores["table"]["rows"][0][1], f"score on {len(labelled[0])} images")]
    if labelled:
        similar = latent.reconstruction_scores(net, labelled[0])
        tiles += [(f"{similar['SSIM']:.4f}", "SSIM"), (f"{similar['1 - MSE']:.4f}", "1 − MSE")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grid = sheets.manifold(latent.manifold(net), latent.percentiles(), folder / "manifold.png")
        return typeset("vae", {
            **common("Digits in two dimensions", "Part II: a variational autoencoder and a Gaussian mixture",
                     authors, notes, model),
            "tiles": tiles + common_tiles(history, network), "network": network,
            "training": curves(history, folder, model)
            | ({"table": tables.training_vae(history)} if history else {}),
            "reconstruction": reconstruction_facts(net, data[val] if val else None, folder),
            "latents": latent_facts(net, mixture, data[train] if train else None, folder),
            "manifold": grid.name, "scores": scores,
            "ablation": ablation_facts("vae", ablation)}, folder, out)


# ------------------------------------------------------ what both reports have

def part(missing: str | None = None, **facts: Any) -> Facts:
    """A part of the report, or the sentence that it is missing."""
    return {"missing": missing, **facts}


def common(title: str, subtitle: str, authors: list[str], notes: Path | None, model: Path) -> Facts:
    """Head, foot and the student's words."""
    known = model.parent / "environment.json"
    if known.is_file():
        machine = read_json(known, "gpu", "processor", "versions", "date")
        torch_version = dict(machine["versions"]).get("torch", "?")
        subtitle += (f", trained on {machine['gpu'] or machine['processor']} with torch {torch_version}, "
                     f"{machine['date'][:10]}")
    return {"title": title, "subtitle": subtitle, "authors": authors, "footer": model.name,
            "notes": None if notes is None else read_notes(notes)}


def common_tiles(history: list[dict], network: Facts) -> list[tuple[str, str]]:
    """Time and size."""
    tiles = [(f"{row['seconds'] / 60:.1f} min", f"training, {len(history)} epochs") for row in history[-1:]]
    return [*tiles, (f"{network['millions']:.2f} M", "parameters")]


def curves(history: list[dict], folder: Path, model: Path) -> Facts:
    """The training's curves."""
    if not history:
        return part(f"the run has no {model.with_suffix('.history.jsonl').name} beside the model, so there "
                    "are no curves; training writes it.")
    return part(figure=draw.curves(history, folder / "curves.svg").name)


def ablation_facts(program: str, out: Path | None) -> Facts:
    """The table of the ablation."""
    if out is None:
        return part(f"no ablation is given; `nestling ablate {program}` makes one, --ablation names it.")
    measured = ablate.table(program, out)
    if not (rows := tables.ablation(measured)):
        return part(f"no run of the ablation in {out.name} is done; `nestling ablate {program}` resumes.")
    whats, settings = {row["what"] for row in rows}, ablate.settings_of(program).values()
    sizes = [abs(row[key]) for row in rows for key in ("difference", "noise") if row[key] is not None]
    return part(rows=rows, most=max(sizes, default=0) or 1.0, ssim=program == "vae",
                caption=ablate.measured_on(program, out),
                unmeasured="; ".join(setting.what for setting in settings if setting.what not in whats),
                failed="; ".join(f"{row['what']} ({why})" for row in measured for why in row["failed"]))


# ------------------------------------------------------ Part I

def confusion_facts(found: photos.Predictions | None, dataset: Path | None) -> Facts:
    """The confusion matrix with the scores of each class."""
    if found is None or dataset is None:
        return part("no labelled photos are given, so it is not known which classes are confused; name them "
                    "with --dataset.")
    k = len(found.classes)
    counts, scores = per_class(found.labels.numpy(), found.predicted.numpy(), list(range(k)))
    return part(table=tables.confusion(counts, found.classes, scores),
                where=f"{len(found.labels)} photos in {dataset.name}")


def cam_facts(net: bird.BirdNet, found: photos.Predictions | None, dataset: Path | None,
              folder: Path) -> Facts:
    """Class activation maps of each class, and where those of the true classes lie.

    On the birds, where masks are known, else in the middle of the picture.
    """
    if found is None or dataset is None:
        return part("no labelled photos are given, so there are no class activation maps; name them with "
                    "--dataset.")
    k = len(found.classes)
    columns, places, wrong = (1, 5, 2) if k <= 3 else (2, 3, 1) if k <= 12 else (4, 2, 1)
    rows = cam_rows(net, found, places, wrong)[:MOST_CLASSES]
    figures = [sheets.cam_row(name, shown, folder / f"cam{k}.png", places=places,
                              width=draw.FULL / columns - 0.3, ratio=found.ratio)
               for k, (name, shown) in enumerate(rows)]
    facts = part(figures=[figure.name for figure in figures], columns=columns, table=None, middle="")

    each = [(found.labels == label).nonzero()[:, 0] for label in found.labels.unique()]
    some = torch.cat([of[::-(-len(of) * len(each) // MEASURED)] for of in each])
    pixels, labels = found.pixels[some], found.labels[some]
    if masks := pointing.mask_folder(dataset):
        known = pointing.read_masks(masks, [found.paths[i] for i in some.tolist()], pixels.shape[-1])
        game = pointing.pointing_game(net, pixels, labels, known, seeds=(0,))
        return facts | {"table": tables.pointing(game)}
    middle = torch.zeros(len(some), 64, 64, dtype=torch.bool)
    middle[:, 16:48, 16:48] = True
    share = pointing.share_inside(gradcam.cam_maps(net, pixels, labels).cpu(), middle).mean().item()
    return facts | {"middle": f"Over {len(some)} maps of the true class, {share:.0%} of the evidence lies in "
                              "the central quarter of the picture; spread evenly it would be 25%."}


# ------------------------------------------------------ Part II

def reconstruction_facts(net: vae.VAE, data: vae.DigitDataset | None, folder: Path) -> Facts:
    """The validation images beside what is decoded for them."""
    if data is None:
        return part("no validation images are given, so there are no reconstructions; name them with --val.")
    similar = latent.reconstruction_scores(net, data)
    figure = sheets.reconstructions(*latent.reconstructions(net, data), folder / "reconstructions.png")
    return part(figure=figure.name, caption=(
        f"Validation images and their reconstructions. Over all {len(data)}: 1 − MSE "
        f"{similar['1 - MSE']:.4f}, mean SSIM {similar['SSIM']:.4f}."))


def latent_facts(net: vae.VAE, mixture: vae.GaussianMixture | None, data: vae.DigitDataset | None,
                 folder: Path) -> Facts:
    """The scatter of the training images' latent means, and the mixture over it."""
    if data is None or mixture is None:
        what = "training images are given (--train)" if mixture else "mixture is beside the model (--gmm)"
        return part(f"no {what}, so there is no scatter of latent means and no ellipses.")
    found = latent.encode(net, mixture, data)
    group, names, title = latent.groups(found, mixture)
    components = (mixture.means.numpy(), mixture.covariances.numpy(), list(map(str, mixture.digits)))
    figures = [sheets.latents(found.z, group, names, folder / "scatter.svg", title=title),
               sheets.latents(found.z, group, names, folder / "ellipses.svg", wrong=found.wrong,
                              mixture=components, title="ellipses: 1 and 2 σ of each component")]
    z = torch.from_numpy(found.z)
    (x, y), covariance, signed = z.mean(dim=0).tolist(), z.T.cov().tolist(), tables.signed
    right = "" if found.labels is None else (
        f" {int((~found.wrong).sum())} of {len(data)} are classified as their labels say, which training "
        "does not use.")
    return part(figures=[figure.name for figure in figures], caption=(
        f"Latent means of the {len(data)} training images: mean ({signed(x, 2)}, {signed(y, 2)}), variances "
        f"{covariance[0][0]:.2f} and {covariance[1][1]:.2f}, covariance {signed(covariance[0][1], 2)}; the "
        f"prior has 0, 1 and 0. Log-likelihood under the mixture: {signed(mixture.e_step(z)[1], 3)} nats a "
        f"point.{right}"))


def score_facts(net: vae.VAE, mixture: vae.GaussianMixture | None, data: vae.DigitDataset | None) -> Facts:
    """The assignment's metrics, the mixture's numbers, the confusion matrix."""
    if mixture is None or data is None or data.labels is None:
        what = "labelled digits are given (--test)" if mixture else "mixture is beside the model (--gmm)"
        return part(f"no {what}, so there are no metrics.")
    predicted = vae.classify(net, mixture, data.images)
    digits = sorted({*data.labels.tolist(), *mixture.digits})
    counts, classes = per_class(data.labels.numpy(), predicted.numpy(), digits)
    scores = [[name, f"{value:.4f}"] for name, value in vae.scores(data.labels, predicted).items()]
    components = [[str(digit), f"{weight:.3f}", f"({tables.signed(mean[0], 2)}, {tables.signed(mean[1], 2)})",
                   ", ".join(f"{variance**0.5:.2f}" for variance in covariance.diagonal())]
                  for digit, weight, mean, covariance in zip(
                      mixture.digits, mixture.weights, mixture.means, mixture.covariances, strict=True)]
    return part(where=f"{len(data)} images of {data.path.name}",
                table={"columns": ["score", ""], "rows": scores},
                confusion=tables.confusion(counts, list(map(str, digits)), classes),
                components={"columns": ["component", "weight", "mean", "σ"], "rows": components})
