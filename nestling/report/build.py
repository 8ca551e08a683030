"""A run, its data and an ablation -> the facts of a report -> a PDF of at most three pages.

Facts are plain values: numbers are formatted and sentences are built here, typst only sets them. What is not there is
named as missing. The same inputs give the same bytes.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bird
import vae
from bird import Mistake, check_writable, write_atomic
from nestling import runs
from nestling.ablate import BASELINE, measured_on, settings_of, table
from nestling.explain import counts, draw, gradcam, latent, photos, pointing
from nestling.explain.write import cam_groups
from nestling.report import say
from nestling.report.network import Layer, layers

HERE = Path(__file__).parent
MOST_PAGES = 3
SIZES = (9.5, 9.0, 8.5)                 # pt; the first with which the report fits on three pages is taken
MAPS = 80                               # photos whose heat is measured, over all classes
MOST_CLASSES = 30                       # whose heat maps fit on the sheet

Facts = dict[str, Any]


def report_bird(run: Path, authors: list[str], out: Path, *, ablation: Path | None = None, dataset: Path | None = None,
                notes: Path | None = None) -> int:
    """Writes the report of Part I and returns its number of pages.

    run: a model or its folder. authors: "NAME ENTRY" each. ablation: the folder of `nestling ablate bird`. dataset:
    labelled photos, DATASET/<class>/. Raises Mistake for what is broken; what is missing is named in the report.
    """
    model = runs.model_of(run, "bird")
    net, history = bird.load_model(model), runs.history_of(model)
    size, classes = net.extra["size"], net.extra["classes"]
    album = photos.read_album(net, dataset) if dataset else None
    told = heat_sentences(net, album, dataset) if album and dataset else []
    tell = partial(say.training_bird, saved=net.extra.get("validated"))
    network = network_facts(net, torch.zeros(1, 3, size, size), (3, size, size), merged=True)
    network["say"] = [f"BirdNet has {network['total']} trained numbers, for {len(classes)} classes; the shapes are "
                      f"those of a photo of {size} × {size} px, written down as it passes through. Slabs are as high "
                      "as the maps and as thick as there are channels, both on a logarithmic scale."]

    def facts(folder: Path, level: int) -> Facts:
        return {"title": "Learning birds from photos",
                **common(authors, "Part I: a convolutional network", notes, model, run),
                "tiles": bird_tiles(net, history, album), "network": network,
                "training": curves(history, folder, model, tell, level),
                "ablation": ablation_facts("bird", ablation),
                "confusion": confusion_facts(album, dataset.name if dataset else "", folder),
                "heat": heat_facts(net, album, told, folder, level)}

    return typeset("bird", facts, authors, out)


def report_vae(run: Path, authors: list[str], out: Path, *, ablation: Path | None = None, gmm: Path | None = None,
               train: Path | None = None, val: Path | None = None, test: Path | None = None,
               notes: Path | None = None) -> int:
    """Writes the report of Part II and returns its number of pages.

    run: a model or its folder; the mixture is `gmm`, or gmm_params.pkl beside the model. train, val, test: digits; the
    scores are those of `test`, or of `val` where there is no test. Raises Mistake for what is broken.
    """
    model = runs.model_of(run, "vae")
    net, history, gmm = vae.load_model(model), runs.history_of(model), gmm or model.with_name("gmm_params.pkl")
    mixture = vae.load_mixture(gmm) if gmm.is_file() else None
    data = {name: vae.DigitDataset(path) for name, path in (("train", train), ("val", val), ("test", test)) if path}
    judged = next((data[name] for name in ("test", "val") if name in data and data[name].labels is not None), None)
    network = network_facts(net, torch.zeros(1, vae.SIDE, vae.SIDE), (1, vae.SIDE, vae.SIDE))
    network["say"] = [f"The autoencoder has {network['total']} trained numbers; its latent space has {vae.LATENT} "
                      "dimensions. The shapes are those of one image, written down as it passes through; bars and "
                      "slabs are drawn on a logarithmic scale."]

    def facts(folder: Path, level: int) -> Facts:
        return {"title": "Digits in two dimensions",
                **common(authors, "Part II: an autoencoder and a Gaussian mixture", notes, model, run),
                "tiles": vae_tiles(net, mixture, history, judged), "network": network,
                "training": curves(history, folder, model, say.training_vae, level),
                "reconstruction": reconstruction_facts(net, data.get("val"), folder),
                "manifold": manifold_facts(net, folder, level), **latent_facts(net, mixture, data.get("train"), folder),
                "scores": score_facts(net, mixture, judged, folder), "ablation": ablation_facts("vae", ablation)}

    return typeset("vae", facts, authors, out)


# ---------------------------------------------------------------------------------------------------------------------
# What both reports have
# ---------------------------------------------------------------------------------------------------------------------

def common(authors: list[str], subtitle: str, notes: Path | None, model: Path, run: Path) -> Facts:
    """Authors, the line under the title, the foot, the student's words."""
    known = model.parent / "environment.json"
    machine = runs.read_json(known) if known.is_file() else None
    where = (f", trained on {machine['gpu'] or machine['processor']} with {machine['threads']} "
             f"thread{'s' * (machine['threads'] > 1)} and torch {machine['versions']['torch']}, {machine['date'][:10]}"
             if machine else "")
    return {"authors": authors, "subtitle": f"{subtitle}{where}",
            "footer": f"{model.name} of {model.parent.name or run}",
            "notes": None if notes is None else read_notes(notes),
            "no_notes": "there are no notes; give a text file with --notes to say here what you think of it."}


def part(missing: str | None = None, figure: Path | None = None, sentences: list[str] | None = None, **more) -> Facts:
    """A part of the report: a figure and what it shows, or the sentence that it is missing."""
    return {"missing": missing, "figure": figure and figure.name, "say": sentences or [], **more}


def tile(value: str, label: str) -> Facts:
    """One number of those that matter most."""
    return {"value": value, "label": label}


def network_facts(net: nn.Module, x: Tensor, given: tuple[int, ...], merged: bool = False) -> Facts:
    """The layers that x passes, by part (`lanes`), and the sizes that scale the drawing; merged: parts in one lane."""
    rows = layers(net, x)
    lanes: dict[str, list[Layer]] = {}
    for row in rows:
        lanes.setdefault("" if merged else row.part, []).append(row)
    maps = [row.shape for row in rows if len(row.shape) == 3] + [given]
    total, number, drawn = sum(row.parameters for row in rows), 0, []
    for name, lane in lanes.items():
        shown = [] if lane[0].part == "decoder" else [layer_facts(Layer(name, "", given, 0), "in", total)]
        for row in lane:
            number += 1
            shown.append(layer_facts(row, str(number), total))
        drawn.append({"name": name, "layers": shown})
    return {"lanes": drawn, "total": f"{total:,}", "most": {
        "side": max(shape[1] for shape in maps), "channels": max(shape[0] for shape in maps),
        "width": max([row.shape[0] for row in rows if len(row.shape) == 1], default=1)}}


def layer_facts(row: Layer, mark: str, total: int) -> Facts:
    """One layer as typst takes it."""
    times = f"{row.times} × [{row.what}]" if row.times > 1 else row.what
    return {"mark": mark, "what": times, "shape": list(row.shape), "size": " × ".join(map(str, row.shape)),
            "count": f"{row.parameters:,}" if row.parameters else "–", "share": row.parameters / total}


def curves(history: list[dict], folder: Path, model: Path, tell: Callable[[list[dict]], list[str]],
           level: int) -> Facts:
    """The training's curves; without learning rate and time where room is short."""
    if not history:
        return part(f"the run has no {model.with_suffix('.history.jsonl').name} beside the model, so there are no "
                    "curves; training writes it.")
    short = {"lr", "seconds"} if level else set()
    rows = [{key: value for key, value in row.items() if key not in short} for row in history]
    return part(figure=draw.curves(rows, folder / "curves.svg"), sentences=tell(history))


def ablation_facts(program: str, out: Path | None) -> Facts:
    """The table of the ablation as typst takes it."""
    if out is None:
        return part(f"no ablation is given; `nestling ablate {program}` makes one, --ablation names it.")
    rows, known = table(program, out), settings_of(program)
    done = [row for row in rows if row["runs"]]
    if not done:
        return part(f"no run of the ablation in {out.name} is finished; the same `nestling ablate {program}` goes on.")
    most = max([abs(row[key]) for row in done for key in ("difference", "noise") if row[key] is not None], default=0)
    return part(sentences=say.ablation(rows, known), open=say.not_measured(rows, known), most=most or 1.0,
                ssim=program == "vae", rows=[ablation_row(row) for row in done],
                caption=f"{measured_on(program, out)} Bars: difference from the baseline; whiskers: the noise, which "
                        "is the root of the sum of the setting's and the baseline's variances over seeds.")


def ablation_row(row: dict[str, Any]) -> Facts:
    """One row of `ablate.table` in words."""
    spread = f" ± {row['spread']:.4f}" if row["spread"] is not None else ""
    verdict = {True: "yes", False: "no", None: "not known"}[row["beyond"]] if row["difference"] is not None else ""
    return {"what": row["what"], "base": row["setting"] == BASELINE, "runs": str(row["runs"]),
            "score": f"{row['score']:.4f}{spread}", "ssim": "" if row["ssim"] is None else f"{row['ssim']:.4f}",
            "said": "" if row["difference"] is None else say.signed(row["difference"]), "difference": row["difference"],
            "noise": row["noise"], "beyond": row["beyond"], "verdict": verdict, "minutes": f"{row['minutes']:.1f}"}


def read_notes(path: Path) -> list[Facts]:
    """The student's words: paragraphs, `# headings` and `- points`, with **strong**, *emph* and `code` in them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{path} cannot be read as text; name a text file (UTF-8) with --notes.") from error
    pieces: list[Facts] = []
    fresh = True
    for line in text.splitlines():
        kind, body = "paragraph", line.strip()
        if found := re.match(r"#{1,6}\s+(.*)|[-*]\s+(.*)", body):
            kind, body = ("heading", found[1]) if found[1] is not None else ("point", found[2])
        if body and kind == "paragraph" and not fresh and pieces[-1]["kind"] != "heading":
            pieces[-1]["text"] += f" {body}"
        elif body:
            pieces.append({"kind": kind, "text": body})
        fresh = not body
    return [{"kind": piece["kind"], "runs": styled(piece["text"])} for piece in pieces]


def styled(text: str) -> list[dict[str, str]]:
    """Markdown's three marks within a line -> runs of text with a style."""
    made = []
    for found in re.finditer(r"\*\*(\S.*?)\*\*|\*(\S.*?)\*|`(.+?)`|(.+?)(?=\*\*\S|\*\S|`|$)|(.)", text):
        named = zip(("strong", "emph", "code"), found.groups(), strict=False)
        style = next((name for name, group in named if group), "")
        made.append({"text": next(group for group in found.groups() if group), "style": style})
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Part I
# ---------------------------------------------------------------------------------------------------------------------

def bird_tiles(net: bird.BirdNet, history: list[dict], album: photos.Album | None) -> list[Facts]:
    """The numbers that matter most."""
    tiles = []
    if album:
        macro, micro = bird.scores(album.labels.tolist(), album.predicted.tolist())
        tiles += [tile(f"{(macro + micro) / 2:.4f}", f"score on {len(album.labels)} photos"),
                  tile(f"{macro:.4f}", "macro F1"), tile(f"{micro:.4f}", "micro F1 = accuracy")]
    if saved := net.extra.get("validated"):            # the history's are of other batch statistics
        tiles.append(tile(f"{(saved['macro_f1'] + saved['accuracy']) / 2:.4f}", "validation score"))
    if history:
        tiles.append(tile(f"{history[-1]['seconds'] / 60:.1f} min", f"training, {len(history)} epochs"))
    return [*tiles, tile(f"{bird.count_parameters(net) / 1e6:.2f} M", "parameters")]


def confusion_facts(album: photos.Album | None, where: str, folder: Path) -> Facts:
    """The confusion matrix and what stands out in it."""
    if album is None:
        return part("no labelled photos are given, so it is not known which classes are confused; name them with "
                    "--dataset.")
    names, k = album.classes, len(album.classes)
    found = counts.confusion(album.labels.numpy(), album.predicted.numpy(), list(range(k)))
    width = 6.5 if k <= 5 else 8.4 if k <= 14 else 10.2
    rows = [[name if len(name) <= 26 else f"{name[:25]}…", str(row["number"]),
             *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))]
            for name, row in zip(names, counts.per_class(found), strict=True)]
    return part(figure=draw.confusion(found, names, folder / "confusion.svg", width=width), width=width,
                rows=rows if k <= 14 else [], sentences=say.confusions(found, names, f"photos in {where}"))


def heat_facts(net: bird.BirdNet, album: photos.Album | None, told: list[str], folder: Path, level: int) -> Facts:
    """The heat maps of each class, and the sentences `told` about where the heat lies."""
    if album is None:
        return part("no labelled photos are given, so there are no heat maps; name them with --dataset.")
    k = len(album.classes)
    blocks, tiles, right = (1, 8, 5) if k <= 3 else (2, 5, 3) if k <= 10 else (3, 4, 3) if k <= 15 else (5, 2, 1)
    if level and k <= 10:
        blocks, tiles, right = (2, 6, 4) if k > 3 else (1, 10, 6)
    groups = cam_groups(net, album, right, tiles - right)[:MOST_CLASSES]
    shown = [f"Shown are the first {MOST_CLASSES} of {k} classes."] if k > MOST_CLASSES else []
    return part(figure=draw.cam_sheet(groups, folder / "cams.png", blocks=blocks, tiles=tiles), sentences=told + shown)


def heat_sentences(net: bird.BirdNet, album: photos.Album, dataset: Path) -> list[str]:
    """Where the heat lies: against the birds' outlines where they are known, else against the middle of the picture."""
    each = max(2, MAPS // len(album.classes))
    members = [(album.labels == label).nonzero()[:, 0] for label in album.labels.unique()]
    some = torch.cat([of[torch.linspace(0, len(of) - 1, min(each, len(of))).round().long()] for of in members])
    pixels, labels = album.pixels[some], album.labels[some]
    if masks := pointing.masks_of(dataset):
        outlines = pointing.read_masks(masks, [album.names[i] for i in some.tolist()], pixels.shape[-1])
        return say.heat_on_masks(pointing.pointing_game(net, pixels, labels, outlines, seeds=(0,)))
    warm = gradcam.heat(gradcam.look(net, pixels, labels).cpu(), 64)
    total, middle = warm.sum(dim=(1, 2)), warm[:, 16:48, 16:48].sum(dim=(1, 2))
    shares = torch.where(total > 0, middle / total, torch.nan)
    return say.heat_in_middle(shares.numpy(), labels.numpy(), album.classes)


# ---------------------------------------------------------------------------------------------------------------------
# Part II
# ---------------------------------------------------------------------------------------------------------------------

def vae_tiles(net: vae.VAE, mixture: vae.Mixture | None, history: list[dict],
              judged: vae.DigitDataset | None) -> list[Facts]:
    """The numbers that matter most."""
    tiles = []
    if judged is not None and mixture is not None:
        found = digit_scores(net, mixture, judged)
        tiles += [tile(f"{found['(macro F1 + micro F1) / 2']:.4f}", f"score on {len(judged)} images")]
    if judged is not None:
        alike = latent.likeness(net, judged)
        tiles += [tile(f"{alike['SSIM']:.4f}", "SSIM"), tile(f"{alike['1 - MSE']:.4f}", "1 − MSE")]
    if history:
        minutes = sum(row["seconds"] for row in history) / 60
        tiles.append(tile(f"{minutes:.1f} min", f"training, {len(history)} epochs"))
    return [*tiles, tile(f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M", "parameters")]


def digit_scores(net: vae.VAE, mixture: vae.Mixture, judged: vae.DigitDataset) -> dict[str, float]:
    """The assignment's scores of reading, as `vae.py` computes them."""
    assert judged.labels is not None
    return vae.scores(judged.labels.numpy(), vae.classify(net, mixture, judged.images).numpy())


def reconstruction_facts(net: vae.VAE, data: vae.DigitDataset | None, folder: Path) -> Facts:
    """The validation images beside what is decoded for them."""
    if data is None:
        return part("no validation images are given, so there are no reconstructions; name them with --val.")
    figure = draw.reconstructions(*latent.reconstructions(net, data), folder / "reconstructions.png")
    alike = latent.likeness(net, data)
    return part(figure=figure, sentences=[
        f"Over the {len(data)} validation images, 1 − MSE is {alike['1 - MSE']:.4f} and the mean SSIM "
        f"{alike['SSIM']:.4f}."])


def manifold_facts(net: vae.VAE, folder: Path, level: int) -> Facts:
    """The 20 x 20 grid."""
    axis = latent.percentiles()
    return part(figure=draw.manifold(latent.manifold(net), axis, folder / "manifold.png"),
                width=65 - 8 * level, sentences=[
        f"Each of the 20 × 20 images is decoded from a point of the grid of the standard normal's percentiles 5 to 95 "
        f"(from −{-axis[0]:.2f} to {axis[-1]:.2f} on both axes)."])


def latent_facts(net: vae.VAE, mixture: vae.Mixture | None, data: vae.DigitDataset | None, folder: Path) -> Facts:
    """The scatter of the training images' latent means, and the mixture over it."""
    if data is None:
        return {"scatter": part("no training images are given, so there is no scatter of their latent means; name them "
                                "with --train."),
                "ellipses": part("no training images are given, so the mixture is not drawn over them.")}
    z = vae.latent_means(net, data.images).double().numpy()
    sentences = [say.latents(z, "training images")]
    if mixture is None:
        plain = np.zeros(len(z), dtype=np.int64)
        return {"scatter": part(figure=draw.scatter(z, plain, ["training images"], folder / "scatter.svg"),
                                sentences=sentences),
                "ellipses": part("there is no gmm_params.pkl beside the model, so no ellipses; name it with --gmm.")}
    reading = latent.read(net, mixture, data)
    group, names, title = latent.groups(reading, mixture)
    drawn = draw.ellipses(z, group, names, mixture.means.numpy(), mixture.covariances.numpy(), folder / "ellipses.svg",
                          component_names=[str(digit) for digit in mixture.digits or []], wrong=reading.wrong,
                          title="ellipses: 1 and 2 σ of each component")
    told = [f"The mixture gives them {say.signed(mixture.score(torch.from_numpy(z)), 3)} nats a point."]
    if reading.labels is not None:
        told.append(f"It reads {int((~reading.wrong).sum())} of them as their labels say, which the training does not "
                    "use.")
    return {"scatter": part(figure=draw.scatter(z, group, names, folder / "scatter.svg", title=title),
                            sentences=sentences), "ellipses": part(figure=drawn, sentences=told)}


def score_facts(net: vae.VAE, mixture: vae.Mixture | None, judged: vae.DigitDataset | None, folder: Path) -> Facts:
    """The assignment's metrics, the mixture's numbers, the confusion matrix."""
    if mixture is None or judged is None or judged.labels is None:
        what = "no labelled digits are given (--test or --val)" if mixture else "there is no gmm_params.pkl (--gmm)"
        return part(f"{what}, so there are no metrics.")
    reading = latent.read(net, mixture, judged)
    seen = sorted({*judged.labels.tolist(), *(mixture.digits or [])})
    found = counts.confusion(judged.labels.numpy(), reading.predicted, seen)
    names, quoted = [str(digit) for digit in seen], [f"“{digit}”" for digit in seen]
    rows = [[name.replace("(macro F1 + micro F1) / 2", "(macro + micro F1) / 2"), f"{value:.4f}"]
            for name, value in digit_scores(net, mixture, judged).items()]
    components = [[str(digit), f"{weight:.3f}", f"({say.signed(mean[0], 2)}, {say.signed(mean[1], 2)})",
                   f"{covariance[0, 0] ** 0.5:.2f}, {covariance[1, 1] ** 0.5:.2f}"]
                  for digit, weight, mean, covariance in zip(mixture.digits or [], mixture.weights.tolist(),
                                                             mixture.means, mixture.covariances, strict=True)]
    return part(figure=draw.confusion(found, names, folder / "digits.svg", width=5.0), rows=rows, components=components,
                sentences=say.confusions(found, quoted, f"images of {judged.path.name}"))


# ---------------------------------------------------------------------------------------------------------------------
# Setting
# ---------------------------------------------------------------------------------------------------------------------

def typeset(program: str, facts: Callable[[Path, int], Facts], authors: list[str], out: Path) -> int:
    """Sets the report as large as three pages allow and writes the PDF; returns the number of pages.

    Raises Mistake if it does not fit, if no author is named, or if no font here has the letters of a name.
    """
    try:
        import typst
        from pypdf import PdfReader
    except ImportError as error:
        raise Mistake("reports are set by typst and counted by pypdf: pip install 'nestling[report]'.") from error
    if not authors or not all(author.strip() for author in authors):
        raise Mistake("no author is named; give --author \"NAME ENTRY\" for each of you.")
    check_writable(out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source in HERE.glob("*.typ"):
            shutil.copy(source, folder)
        compiler = typst.Compiler(str(folder / f"{program}.typ"), root=name, font_paths=fonts_for("".join(authors)),
                                  ignore_system_fonts=True)
        for level, size in enumerate(SIZES):
            data = json.dumps({**facts(folder, level), "size": size}, ensure_ascii=False)
            pdf = compiler.compile(format="pdf", sys_inputs={"data": data}, timestamp=0)
            assert isinstance(pdf, bytes)
            pages = len(PdfReader(io.BytesIO(pdf)).pages)
            if pages <= MOST_PAGES:
                write_atomic(out, pdf)
                return pages
    raise Mistake(f"{out} is not written: the report has {pages} pages and may have {MOST_PAGES}; shorten the notes.")


def fonts_for(text: str) -> Any:
    """Typst's own fonts and DejaVu Sans, which comes with matplotlib; where they lack a letter, the system's too.

    Raises Mistake if no font on this machine has it: a name must not turn into boxes.
    """
    import matplotlib
    import typst

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [str(folder / f"DejaVuSans{style}.ttf") for style in ("", "-Bold", "-Oblique", "-BoldOblique")]
    own = typst.Fonts(include_system_fonts=False, font_paths=files)
    lacking = draw.lacking(text)
    if not lacking:
        return own
    everything = typst.Fonts(include_system_fonts=True, font_paths=files)
    for font in everything.fonts():
        lacking -= letters_of(font.path) if lacking and font.path else set()
    if lacking:
        raise Mistake(f"no font here has the letter {min(lacking)} of an author's name; install one that does (on "
                      "Debian: fonts-noto), or write the name in Latin letters.")
    return everything


def letters_of(font: str) -> set[str]:
    """All letters that a font file has; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return {chr(code) for code in FT2Font(font).get_charmap()}
    except (RuntimeError, OSError):
        return set()
