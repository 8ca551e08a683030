"""Models, data, run -> a page: one HTML file, or a folder to host, in which a browser runs the networks."""

from __future__ import annotations

import base64
import hashlib
import json
import string
from html import escape
from pathlib import Path
from typing import Any

from torch import nn

import bird
import vae
from nestling.files import UserError, check_outputs, finite, say, whole_folder, write_atomic
from nestling.page import contents
from nestling.page.export import export_bird, export_vae

HERE = Path(__file__).parent
SCRIPTS = tuple(f"{name}.js" for name in (
    "common", "photos", "cover", "birds", "mistakes", "plane", "draw", "digits", "training", "start"))
Blocks = dict[str, Any]                # id -> plain values that the page's scripts read


def make_page(out: Path, bird_path: Path | None = None, vae_path: Path | None = None, gmm_path: Path | None = None,
              data: Path | None = None, run: Path | None = None, folder: bool = False) -> int:
    """Writes OUT, an HTML file, or a folder whose index.html fetches the blocks; the size of all in bytes.

    The other arguments are those of `gather`.
    """
    given = bird_path, vae_path, gmm_path, data, run
    if not folder:
        if out.is_file() and not is_page(out):
            raise UserError(f"{out} exists and is no page; name another file to write.")
        check_outputs([out])
        write_atomic(out, page := html(*gather(*given)).encode())
        return len(page)
    with whole_folder(out) as part:
        blocks, footer = gather(*given)
        for name, value in blocks.items():
            (part / f"{name}.json").write_text(as_json(value))
        (part / "index.html").write_text(html(blocks, footer, files=True), "utf-8")
    return sum(path.stat().st_size for path in out.iterdir())


def is_page(path: Path) -> bool:
    """Does the file begin as a page does? Another one is not overwritten: it may be data or a model."""
    try:
        with open(path, "rb") as file:
            return file.read(15) == b"<!DOCTYPE html>"
    except OSError:
        return False


def gather(bird_path: Path | None, vae_path: Path | None, gmm_path: Path | None, data: Path | None = None,
           run: Path | None = None) -> tuple[Blocks, str]:
    """What the page holds, and its footer.

    DATA holds photos, as test/<class>/ or <class>/, and digits, as train.npz and test.npz; or folders birds/ and
    digits/ of these. RUN is the folder of a training.
    """
    if bool(vae_path) != bool(gmm_path):
        raise UserError("--vae and --gmm belong together; name the two files that one training saved.")
    if not (bird_path or vae_path or run):
        raise UserError("a page needs a model; give --bird bird.pth, --vae vae.pth with --gmm gmm_params.pkl, or "
                        "--run RUN.")
    for folder, what in ((data, "photos, or with train.npz and test.npz"), (run, "a training")):
        if folder and not folder.is_dir():
            raise UserError(f"{folder} is no folder; name one with {what}.")
    try:
        return collect(bird_path, vae_path, gmm_path, data, run)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); name another.") from error


def collect(bird_path: Path | None, vae_path: Path | None, gmm_path: Path | None, data: Path | None,
            run: Path | None) -> tuple[Blocks, str]:
    """What `gather` returns, of arguments that fit together."""
    blocks: Blocks = {}
    facts = []
    if bird_path:
        net = bird.load_model(bird_path)
        blocks["bird-model"] = export_bird(net)
        found, name = contents.labelled_photos(net.extra["classes"], data, run)
        if found:
            blocks |= contents.photos(net, found, name)
        facts.append(fact("Birds", net, bird_path))
    if vae_path and gmm_path:
        coder = vae.load_model(vae_path)
        blocks["vae-model"] = export_vae(coder, vae.load_mixture(gmm_path, coder))
        if data and (points := contents.points(coder, data)):
            blocks["points"] = points
        facts.append(fact("Digits", coder, vae_path))
    if (trained := contents.histories([path for path in (bird_path, vae_path) if path], run)) or run:
        blocks["histories"] = trained
    if data and not {"mistakes", "points"} & set(blocks):
        say(f"note: {data} holds no photos of the model's classes, and no train.npz or test.npz.", "stderr")
    return blocks, " ".join(facts)


def fact(title: str, net: nn.Module, path: Path) -> str:
    """What the footer says of a model: its size, its file and that file's digest."""
    parameters, digest = sum(p.numel() for p in net.parameters()), hashlib.sha256(path.read_bytes()).hexdigest()
    name = path.name.encode(errors="replace").decode()     # a name may hold bytes that are no letters
    return f"{title}: {name} (SHA-256 {digest[:12]}), {parameters:,} parameters."


def html(blocks: Blocks, footer: str, files: bool = False, live: bool = False) -> str:
    """The page. Its policy allows the scripts and the style in it, by their hashes, and nothing else.

    files: the blocks lie beside the page. live: a server tells of running trainings.
    """
    def digest(text: str) -> str:
        return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    def read(*names: str) -> str:
        return "".join((HERE / name).read_text("utf-8") for name in names)

    style, nets, app = read("style.css"), read("nets.js"), read(*SCRIPTS)
    data = (f'<script type="application/json" id="data-{name}" data-file="{name}.json"></script>' if files else
            f'<script type="application/json" id="data-{name}">{as_json(value)}</script>'
            for name, value in blocks.items())
    return string.Template(read("page.html")).substitute(
        style=style, nets=nets, app=app, worker=read("worker.js"), footer=escape(footer), blocks="\n".join(data),
        style_hash=digest(style), nets_hash=digest(nets), app_hash=digest(app),
        connect="connect-src 'self'; " if files or live else "", live=" data-live" if live else "")


def as_json(value: Any) -> str:
    """JSON without a `<`, so that no `</script` and no `<!--` can be in it; what is not finite as null."""
    return json.dumps(finite(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
