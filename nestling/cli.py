"""`nestling COMMAND ...`: one short function a command; the work is done, and imported, elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Learning to see from scratch: birds and digits.")
data = typer.Typer(no_args_is_help=True, help="Pictures to learn from, and a health check of them.")
app.add_typer(data, name="data")


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
