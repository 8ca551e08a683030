"""`nestling COMMAND ...`: one short function a command; the work is done, and imported, elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from typer import Argument, Option

from nestling import files
from nestling.files import say


def group(help: str) -> typer.Typer:
    """Commands; help without rich, which is slow to import."""
    return typer.Typer(help=help, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


app = group("Learning to see from scratch: birds and digits.")
app.add_typer(data := group("Images to learn from, and a health check of them."), name="data")
app.add_typer(explain := group("What a model looks at: figures, and the numbers in them."), name="explain")
app.add_typer(ablations := group("What each part is worth: one setting changed at a time."), name="ablate")
app.add_typer(reports := group("The report, a PDF of at most 3 pages, from what a run left."), name="report")

Dataset = Annotated[Path, Argument(help="FOLDER/<class>/<image>")]
Folder = Annotated[Path, Argument(help="the new folder")]
Figures = Annotated[Path, Option(help="the folder to write into")]
Seed = Annotated[int, Option(min=0, help="another seed, other images or another split")]


@data.command()
def birds(out: Folder, seed: Seed = 0,
          source: Annotated[Literal["drawn", "kaggle"], Option(help="drawn here, or real photos")] = "drawn",
          per_class: Annotated[int, Option(help="mean number of drawn training images a species")] = 120,
          size: Annotated[int, Option(help="side of a drawn image, px")] = 256) -> None:
    """Ten bird species: OUT/train/<species>/, OUT/test/<species>/, and the masks of drawn ones."""
    if source == "drawn":
        from nestling.data.birds import make_birds
        make_birds(out, per_class, seed, size)
    else:
        from nestling.data.kaggle import fetch_birds
        fetch_birds(out, seed)
    say(f"birds are in {out}/train and {out}/test")


@data.command()
def digits(out: Folder, seed: Seed = 0,
           source: Annotated[Literal["shipped", "mnist"], Option(help="where from")] = "shipped") -> None:
    """The handwritten digits 1, 4 and 8: OUT/train.npz, val.npz, test.npz, recon.npz."""
    from nestling.data.digits import make_digits
    make_digits(out, source, seed)
    say(f"digits are in {out}: train.npz, val.npz, test.npz, recon.npz")


@data.command()
def check(folder: Dataset) -> int:
    """Broken, doubled or odd images and classes of a folder; exit status 1 if there is a fault."""
    from nestling.data import health
    found = health.check(folder)
    faults = sum(finding.fault for finding in found)
    say("\n".join([*map(str, found), "1 fault" if faults == 1 else f"{faults} faults"]))
    return int(faults > 0)


@data.command()
def picture(out: Annotated[Path, Argument(help="the PNG to write")], seed: Seed = 13) -> None:
    """The README's picture of drawn birds and shipped digits."""
    from nestling.data.picture import make_picture
    make_picture(out, seed)


@explain.command("bird")
def explain_bird(model: Annotated[Path, Argument(help="the model of `bird.py train`")], dataset: Dataset,
                 out: Figures) -> None:
    """Class activation maps, confusion matrix, curves, summary.json; a drawn set's masks lie beside it."""
    from nestling.explain import write
    summary = write.explain_bird(model, dataset, out)
    say(f"score {summary['score']:.4f} on {summary['photos']} photos")
    if game := summary.get("pointing game"):
        say(f"pointing game {game['pointing']:.3f} (random weights {game['random_pointing']:.3f}, image "
              f"centre {game['centre']:.3f}); {game['heat_inside']:.3f} of the map on the bird, which covers "
              f"{game['area']:.3f}")
    say(f"figures and summary.json are in {out}")


@explain.command("vae")
def explain_vae(model: Annotated[Path, Argument(help="the model of `vae.py train`")],
                mixture: Annotated[Path, Argument(help="its mixture, such as gmm_params.pkl")],
                data: Annotated[Path, Argument(help="digits, .npz or .npy, with labels or without")],
                out: Figures) -> None:
    """Reconstructions, grid of decoded digits, scatter, ellipses, confusion matrix, curves, summary.json."""
    from nestling.explain import write
    summary = write.explain_vae(model, mixture, data, out)
    for name, value in {**summary["reconstruction"], **summary.get("scores", {})}.items():
        say(f"{name:<26}{value:.4f}")
    say(f"figures and summary.json are in {out}")


Runs = Annotated[Path, Option("--out", help="the folder of the runs; those that are done there are kept")]
Seeds = Annotated[int, Option(min=1, help="runs a setting, of seeds 0, 1, ...")]
Only = Annotated[str | None, Option(metavar="A,B", help="these settings; the baseline is always run")]
Minutes = Annotated[float | None, Option(help="minutes a run")]
Epochs = Annotated[int | None, Option(min=1, help="epochs a run, in place of minutes")]
Jobs = Annotated[int, Option(min=1, help="runs at a time on this machine")]
Dask = Annotated[str | None, Option(metavar="ADDRESS", help="of a Dask scheduler whose workers do the runs")]


@ablations.command("bird")
def ablate_bird(dataset: Dataset, out: Runs, seeds: Seeds = 3, only: Only = None, budget: Minutes = None,
                epochs: Epochs = None, jobs: Jobs = 1, dask: Dask = None) -> None:
    """Each augmentation and regularisation left out in turn."""
    from nestling.ablate import ablate
    ablate("bird", {"dataset": dataset}, out, seeds=seeds, only=only, budget=budget, epochs=epochs, jobs=jobs,
           dask=dask)


@ablations.command("vae")
def ablate_vae(train: Annotated[Path, Argument(help="the digits to learn from")],
               val: Annotated[Path, Argument(help="a few labelled digits")], out: Runs, seeds: Seeds = 3,
               only: Only = None, budget: Minutes = None, epochs: Epochs = None, jobs: Jobs = 1,
               dask: Dask = None,
               score_on: Annotated[Path | None, Option(help="digits to score on")] = None) -> None:
    """Loss, prior, warping and regularisation changed in turn."""
    from nestling.ablate import ablate
    ablate("vae", {"train": train, "val": val, "score_on": score_on or val}, out, seeds=seeds, only=only,
           budget=budget, epochs=epochs, jobs=jobs, dask=dask)


Run = Annotated[Path, Argument(help="the model, or the folder of its run")]
Authors = Annotated[list[str], Option("--author", metavar='"NAME ENTRY"', help="once for each of you")]
Pdf = Annotated[Path, Option(help="the PDF to write")]
Ablation = Annotated[Path | None, Option(help="the folder of `nestling ablate`")]
Notes = Annotated[Path | None, Option(help="a text file with your own words")]


@reports.command("bird")
def report_bird(run: Run, authors: Authors, out: Pdf = Path("report.pdf"), ablation: Ablation = None,
                notes: Notes = None,
                dataset: Annotated[Path | None, Option(help="labelled photos")] = None) -> None:
    """Part I: network, curves, what each part is worth, class activation maps."""
    from nestling.report.build import report_bird
    pages = report_bird(run, authors, out, ablation=ablation, dataset=dataset, notes=notes)
    say(f"{out}: {pages} pages")


@reports.command("vae")
def report_vae(run: Run, authors: Authors, out: Pdf = Path("report.pdf"), ablation: Ablation = None,
               notes: Notes = None,
               gmm: Annotated[Path | None, Option(help="default: gmm_params.pkl beside the model")] = None,
               train: Annotated[Path | None, Option(help="training digits, for the scatter")] = None,
               val: Annotated[Path | None, Option(help="validation digits, for the reconstructions")] = None,
               test: Annotated[Path | None, Option(help="digits to score on")] = None) -> None:
    """Part II: network, curves, reconstructions, grid, scatter, ellipses, metrics."""
    from nestling.report.build import report_vae
    pages = report_vae(run, authors, out, ablation=ablation, gmm=gmm, train=train, val=val, test=test,
                       notes=notes)
    say(f"{out}: {pages} pages")


@app.command()
def submit(name: Annotated[Literal["bird", "vae"], Argument(help="which of the two")],
           report: Annotated[Path, Option(help="the PDF, at most 3 pages")],
           link: Annotated[str, Option(help="where the model can be downloaded")],
           entries: Annotated[str, Option(metavar="A,B", help="entry numbers")],
           out: Annotated[Path, Option(help="the zip to write")] = Path("submission.zip"),
           program: Annotated[Path | None, Option(help="default: this project's")] = None) -> None:
    """submission.zip as the assignment asks for it, checked as a grader would."""
    from nestling.submit import submit
    names = submit(name, report, link, entries, out, program)
    say(f"{out} holds {', '.join(names)}; every check went well (the link itself is not fetched)")


@app.command()
def grade(submissions: Annotated[list[Path] | None, Argument(help="zips, folders, a Gradescope export")] = None,
          part: Annotated[Literal["bird", "vae"], Option(help="which of the two")] = "bird",
          out: Annotated[Path, Option(help="the folder of the results")] = Path("graded"),
          test: Annotated[Path | None, Option(help="the held-out photos or digits, with their labels")] = None,
          train: Annotated[Path | None, Option(help="to train anew, too")] = None,
          val: Annotated[Path | None, Option(help="vae: the labelled digits")] = None,
          recon: Annotated[Path | None, Option(help="vae: digits to reconstruct; default: those of --test")] = None,
          models: Annotated[Path | None, Option(help="the models, a file or folder an entry number")] = None,
          rubric: Annotated[Path | None, Option(help="marks and penalties, TOML")] = None,
          jobs: Jobs = 1, minutes: Annotated[float | None, Option(help="at most, a training")] = None,
          dask: Dask = None, python: Annotated[Path | None, Option(help="that the programs get")] = None,
          again: Annotated[bool, Option("--again", help="marks anew from --out; nothing is run")] = False,
          unsafe: Annotated[bool, Option("--unsafe", help="without a sandbox, where none stands")] = False,
          make_autograder: Annotated[Path | None, Option(help="write Gradescope's zip instead")] = None) -> None:
    """Runs submissions in a sandbox, scores them, and writes marks, feedback and a page for the class."""
    if make_autograder:
        from nestling.grade.autograder import make
        make(make_autograder, part, test, val, recon, rubric)
        say(f"{make_autograder}: upload it to Gradescope as the autograder")
    elif again:
        from nestling.grade.batch import grade_again
        say(f"{out}: {len(grade_again(out, part, rubric))} submissions have new marks")
    else:
        from nestling.grade.batch import grade
        grade(submissions or [], part, out, test=test, train=train, val=val, recon=recon, models=models,
              rubric=rubric, jobs=jobs, minutes=minutes, dask=dask, python=python, unsafe=unsafe)


BirdModel = Annotated[Path | None, Option("--bird", help="the model of `bird.py train`")]
VaeModel = Annotated[Path | None, Option("--vae", help="the model of `vae.py train`")]
Mixture = Annotated[Path | None, Option("--gmm", help="its mixture, such as gmm_params.pkl")]
Data = Annotated[Path | None, Option(help="labelled photos and digits to show; best unseen in training")]
RunFolder = Annotated[Path | None, Option(help="the folder of a training, for its curves")]


@app.command()
def page(bird: BirdModel = None, vae: VaeModel = None, gmm: Mixture = None, data: Data = None,
         run: RunFolder = None, out: Annotated[Path | None, Option(help="default: page.html, or page/")] = None,
         folder: Annotated[bool, Option("--folder", help="--out is a folder for a web server")] = False) -> None:
    """One HTML file in which a browser runs both models: to open, to mail, to put on any host."""
    from nestling.page import build
    out = out or Path("page" if folder else "page.html")
    size = build.make_page(out, bird, vae, gmm, data, run, folder)
    say(f"{out}: {size / 1e6:.1f} MB")


@app.command()
def web(bird: BirdModel = None, vae: VaeModel = None, gmm: Mixture = None, data: Data = None,
        run: RunFolder = None, port: Annotated[int, Option(min=0, max=65535, help="0: any that is free")] = 8000,
        host: Annotated[str, Option(help="0.0.0.0 shows it to the whole network")] = "127.0.0.1") -> None:
    """The same page from a server on this machine, with the curves of a running training as they grow."""
    from nestling.page import build, contents, serve

    def made() -> str:
        blocks, footer = build.gather(bird, vae, gmm, data, run)
        return build.html({"histories": {}} | blocks, footer, live=True)

    models = [path for path in (bird, vae) if path]
    serve.serve(made, lambda: contents.histories(models, run), host, port)


def call(arguments: list[str] | None) -> int | None:
    """Runs a command; what typer raises becomes what any program raises."""
    try:
        return app(arguments, prog_name="nestling", standalone_mode=False)
    except typer.Abort:                              # Ctrl-C, in older versions of typer
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):         # of the command line
            message = error.format_message().replace("Value error, ", "")
            raise files.UserError(f"{message} (see nestling --help)") from error
        raise


def main(arguments: list[str] | None = None) -> NoReturn:
    """The exit status: 2 and one sentence on stderr for a user's mistake."""
    sys.exit(files.run(call, arguments))


if __name__ == "__main__":
    main()
