"""`nestling COMMAND ...`: one short function a command; the work is done, and imported, elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Learning to see from scratch: birds and digits.")
data = typer.Typer(no_args_is_help=True, help="Pictures to learn from, and a health check of them.")
app.add_typer(data, name="data")
explain = typer.Typer(no_args_is_help=True, help="What a model looks at: figures, and the numbers in them.")
app.add_typer(explain, name="explain")
ablations = typer.Typer(no_args_is_help=True, help="What each part is worth: one setting changed at a time.")
app.add_typer(ablations, name="ablate")
reports = typer.Typer(no_args_is_help=True, help="The report as a PDF of two or three pages, from what a run left.")
app.add_typer(reports, name="report")


@app.callback()
def nestling() -> None:
    """Learning to see from scratch: birds with a network of our own, digits with a 2-d latent space."""


@data.command()
def birds(
    out: Annotated[Path, typer.Argument(help="the new folder")],
    source: Annotated[Literal["drawn", "kaggle"], typer.Option(help="drawn here, or the real photos")] = "drawn",
    per_class: Annotated[int, typer.Option(help="mean number of drawn training pictures a species")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="another seed, other pictures; also of the split of kaggle's")] = 0,
    size: Annotated[int, typer.Option(help="side of a drawn picture, px")] = 256,
) -> None:
    """Ten bird species: OUT/train/<species>/, OUT/test/<species>/, and the masks of drawn ones."""
    if source == "drawn":
        from nestling.data.birds import make_birds

        make_birds(out, per_class, seed, size)
    else:
        from nestling.data.kaggle import fetch_birds

        fetch_birds(out, seed)
    typer.echo(f"birds are in {out}/train and {out}/test")


@data.command()
def digits(
    out: Annotated[Path, typer.Argument(help="the new folder")],
    source: Annotated[Literal["shipped", "mnist"], typer.Option(help="scikit-learn's, or MNIST's")] = "shipped",
    seed: Annotated[int, typer.Option(min=0, help="of the split")] = 0,
) -> None:
    """The handwritten digits 1, 4 and 8: OUT/train.npz, val.npz, test.npz, recon.npz."""
    from nestling.data.digits import make_digits

    make_digits(out, source, seed)
    typer.echo(f"digits are in {out}: train.npz, val.npz, test.npz, recon.npz")


@data.command()
def check(folder: Annotated[Path, typer.Argument(help="FOLDER/<class>/<image>")]) -> None:
    """Broken, doubled or odd images and classes of a folder; exit status 1 if there is a fault."""
    from nestling.data import health

    found = health.check(folder)
    for finding in found:
        typer.echo(str(finding))
    faults = sum(finding.fault for finding in found)
    typer.echo(f"{faults} faults" if faults != 1 else "1 fault")
    raise typer.Exit(int(faults > 0))


@data.command()
def picture(
    out: Annotated[Path, typer.Argument(help="the PNG to write")],
    seed: Annotated[int, typer.Option(min=0, help="other birds, other digits")] = 13,
) -> None:
    """The README's picture of drawn birds and shipped digits."""
    from nestling.data.picture import make_picture

    make_picture(out, seed)


Runs = Annotated[Path, typer.Option("--out", help="the folder of the runs; what is done there is kept")]
Seeds = Annotated[str, typer.Option(help="one run a setting and seed")]
Only = Annotated[str | None, typer.Option(help="settings, separated by commas; the baseline is always run")]
Minutes = Annotated[float | None, typer.Option(help="minutes a run")]
Epochs = Annotated[int | None, typer.Option(min=1, help="epochs a run, in place of minutes")]
Jobs = Annotated[int, typer.Option(min=1, help="runs at a time on this machine")]
Dask = Annotated[str | None, typer.Option(help="ADDRESS of a Dask scheduler whose workers are to run them")]


@ablations.command("bird")
def ablate_bird(dataset: Annotated[Path, typer.Argument(help="DATASET/<class>/<image>")], out: Runs,
                seeds: Seeds = "0,1,2", only: Only = None, budget: Minutes = None, epochs: Epochs = None,
                jobs: Jobs = 1, dask: Dask = None) -> None:  # fmt: skip
    """Each augmentation and regularisation left out in turn, and a grid of learning rates."""
    from nestling.ablate import ablate, seeds_of

    ablate("bird", {"dataset": str(dataset.absolute())}, out.absolute(), seeds=seeds_of(seeds), only=only,
           budget=budget, epochs=epochs, jobs=jobs, dask=dask)  # fmt: skip
    typer.echo(f"{out}/table.csv, table.md and table.svg hold the result")


@ablations.command("vae")
def ablate_vae(train: Annotated[Path, typer.Argument(help="the digits to learn from")],
               val: Annotated[Path, typer.Argument(help="a few labelled digits")], out: Runs,
               seeds: Seeds = "0,1,2", only: Only = None, budget: Minutes = None, epochs: Epochs = None,
               jobs: Jobs = 1, dask: Dask = None,
               score_on: Annotated[Path | None, typer.Option(help="labelled digits to score on; default VAL")] = None,
               ) -> None:  # fmt: skip
    """Loss, prior, warping, encoder and KL weight changed in turn."""
    from nestling.ablate import ablate, seeds_of

    files = {"train": str(train.absolute()), "val": str(val.absolute()), "score_on": str((score_on or val).absolute())}
    ablate("vae", files, out.absolute(), seeds=seeds_of(seeds), only=only,
           budget=budget, epochs=epochs, jobs=jobs, dask=dask)  # fmt: skip
    typer.echo(f"{out}/table.csv, table.md and table.svg hold the result")


Run = Annotated[Path, typer.Argument(help="the model, or the folder of its run")]
Authors = Annotated[list[str], typer.Option("--author", help='"NAME ENTRY"; once for each of you')]
Pdf = Annotated[Path, typer.Option("--out", help="the PDF to write")]
Ablation = Annotated[Path | None, typer.Option(help="the folder of `nestling ablate`")]
Notes = Annotated[Path | None, typer.Option(help="a text file with your own words")]


@reports.command("bird")
def report_bird(run: Run, author: Authors, out: Pdf = Path("report.pdf"), ablation: Ablation = None,
                dataset: Annotated[Path | None, typer.Option(help="labelled photos, DATASET/<class>/")] = None,
                notes: Notes = None) -> None:  # fmt: skip
    """Part I: network, curves, what each part is worth, heat maps."""
    from nestling.report.build import report_bird

    pages = report_bird(run, author, out, ablation=ablation, dataset=dataset, notes=notes)
    typer.echo(f"{out}: {pages} page{'s' * (pages > 1)}")


@reports.command("vae")
def report_vae(run: Run, author: Authors, out: Pdf = Path("report.pdf"), ablation: Ablation = None,
               gmm: Annotated[Path | None, typer.Option(help="default: gmm_params.pkl beside the model")] = None,
               train: Annotated[Path | None, typer.Option(help="the digits it learned from, for the scatter")] = None,
               val: Annotated[Path | None, typer.Option(help="the validation digits, for the reconstructions")] = None,
               test: Annotated[Path | None, typer.Option(help="labelled digits to score on; default VAL")] = None,
               notes: Notes = None) -> None:  # fmt: skip
    """Part II: network, curves, reconstructions, grid, scatter, ellipses, metrics."""
    from nestling.report.build import report_vae

    pages = report_vae(run, author, out, ablation=ablation, gmm=gmm, train=train, val=val, test=test, notes=notes)
    typer.echo(f"{out}: {pages} page{'s' * (pages > 1)}")


@app.command()
def submit(
    program: Annotated[Literal["bird", "vae"], typer.Argument(help="which of the two")],
    report: Annotated[Path, typer.Option(help="the PDF, at most 3 pages")],
    link: Annotated[str, typer.Option(help="where the model can be downloaded")],
    entries: Annotated[str, typer.Option(help="entry numbers, separated by commas")],
    out: Annotated[Path, typer.Option(help="the zip to write")] = Path("submission.zip"),
    source: Annotated[Path | None, typer.Option("--program", help="bird.py or vae.py; default: this project's")] = None,
) -> None:
    """submission.zip as the assignment asks for it, checked as a grader would."""
    from nestling.submit import home_of, submit

    names = submit(program, source or home_of(program), report, link, entries, out)
    typer.echo(f"{out} holds {', '.join(names)}; every check went well (the link itself is not fetched)")


@explain.command("bird")
def explain_bird(
    model: Annotated[Path, typer.Argument(help="the model of `bird.py train`, such as bird.pth")],
    dataset: Annotated[Path, typer.Argument(help="FOLDER/<class>/<image>; masks of a drawn set are found beside it")],
    out: Annotated[Path, typer.Option(help="the folder to write into")],
) -> None:
    """Heat maps of the surest right and wrong photos of each class, confusion matrix, curves, summary.json."""
    from nestling.explain import write

    summary = write.explain_bird(model, dataset, out)
    typer.echo(f"score {summary['score']:.4f} on {summary['photos']} photos")
    if game := summary.get("pointing game"):
        typer.echo(
            f"pointing game {game['pointing']:.3f} (random weights {game['random_pointing']:.3f}, the picture's middle "
            f"{game['centre']:.3f}); heat inside the bird {game['heat_inside']:.3f} of {game['area']:.3f} of the area"
        )
    typer.echo(f"figures and summary.json are in {out}")


@explain.command("vae")
def explain_vae(
    model: Annotated[Path, typer.Argument(help="the model of `vae.py train`, such as vae.pth")],
    mixture: Annotated[Path, typer.Argument(help="its mixture, such as gmm_params.pkl")],
    digits_file: Annotated[Path, typer.Argument(metavar="DATA", help="digits, .npz or .npy, with labels or without")],
    out: Annotated[Path, typer.Option(help="the folder to write into")],
) -> None:
    """Reconstructions, the grid of decoded digits, scatter, ellipses, confusion matrix, curves, summary.json."""
    from nestling.explain import write

    summary = write.explain_vae(model, mixture, digits_file, out)
    for name, value in {**summary["reconstruction"], **summary.get("scores", {})}.items():
        typer.echo(f"{name:<26}{value:.4f}")
    typer.echo(f"figures and summary.json are in {out}")


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a mistake of the user's becomes one sentence on stderr and exit status 2."""
    try:
        status = app(arguments, prog_name="nestling", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # of the command line itself
            sentence = error.format_message().replace("Value error, ", "").splitlines()
        elif type(error).__name__ == "Mistake":  # bird and vae stand alone, so each has its own
            sentence = str(error).splitlines()
        else:
            raise
        if sentence:  # none where the help has been shown instead
            print(f"error: {' '.join(sentence)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
