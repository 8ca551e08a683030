"""The networks of the page, in Chromium, against torch in float32 on the same photos and digits.

    python -m bench.page BIRD_MODEL PHOTOS VAE_MODEL GMM DIGITS

Times are of the browser's CPU, one thread, after the first call. The table goes into bench/RESULTS.md.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from playwright.sync_api import Page, sync_playwright
from torch import Tensor

import bird
import vae
from bench.table import publish, rows, stamp
from nestling.page import build
from nestling.page.contents import heat_maps
from nestling.page.export import export_bird, export_vae

COUNT = 200                # photos and digits, evenly spread
LOOK = """text => {
  const rgb = Uint8Array.from(atob(text), c => c.charCodeAt(0)), {heat, probabilities} = birds.look(rgb);
  return {heat: [...heat], look: [...probabilities], predict: birds.predict(rgb).probabilities};
}"""

FIRST = "text => { birds.look(Uint8Array.from(atob(text), c => c.charCodeAt(0))); }"


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """An empty page of Chromium."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium.new_page()
        chromium.close()


def cpu(page: Page, script: str, given: Any, times: int) -> float:
    """CPU seconds of the page's thread for one call of the script."""
    page.evaluate(script, given)
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})

    def now() -> float:
        metrics = client.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    before = now()
    for _ in range(times):
        page.evaluate(script, given)
    return (now() - before) / times


def photos(page: Page, net: bird.BirdNet, folder: Path) -> list[list[str]]:
    """Labels, probabilities and heat maps of the photos in FOLDER/<class>/."""
    paths, _ = bird.find_images(folder)
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, COUNT).astype(int)]
    pixels, _, _ = bird.decode(paths, "left as it is")
    texts = [base64.b64encode(each.permute(1, 2, 0).numpy().tobytes()).decode() for each in pixels]
    seen = [page.evaluate(LOOK, text) for text in texts]
    expected = bird.predict(net, pixels), bird.predict(net, pixels, tta=False)
    p, look = (torch.tensor([each[name] for each in seen]) for name in ("predict", "look"))
    heat = heat_maps(net, pixels, (label := expected[1].argmax(dim=1)))                    # (N, h, w)
    ours = torch.tensor([each["heat"] for each in seen]).view(len(seen), -1, *heat.shape[1:])
    ours = ours[range(len(seen)), label]
    same = int((p.argmax(dim=1) == expected[0].argmax(dim=1)).sum())
    return [["photos of equal label, four views", f"{same} of {len(paths)}"],
            ["largest difference of a probability, four views", f"{(p - expected[0]).abs().max():.5f}"],
            ["largest difference of a probability, one view", f"{(look - expected[1]).abs().max():.5f}"],
            ["largest difference of a heat map, shares of its peak",
             f"{((ours - heat).abs().amax(dim=(1, 2)) / heat.amax(dim=(1, 2)).clamp(min=1e-9)).max():.5f}"],
            [f"first look at {net.extra['size']} px, CPU ms",
             f"{1000 * cpu(page, FIRST, texts[0], 10):.0f}"]]


@torch.no_grad()
def digits(page: Page, net: vae.VAE, mixture: vae.GaussianMixture, path: Path) -> list[list[str]]:
    """Latents and decoded images of digits."""
    images = vae.DigitDataset(path).images
    x = images[np.linspace(0, len(images) - 1, COUNT).astype(int)]
    z, _ = net.encode(x)
    seen = page.evaluate("xs => xs.map(x => digits.encode(x).mu)", x.flatten(1).tolist())
    made = page.evaluate("zs => zs.map(z => [...digits.decode(z)])", z.tolist())
    labels = page.evaluate("""zs => zs.map(z => { const r = digits.mixture.responsibilities(z);
      return digits.mixture.digits[r.indexOf(Math.max(...r))]; })""", seen)
    return [["digits of equal label", f"{int((Tensor(labels) == mixture.predict(z)).sum())} of {len(x)}"],
            ["largest difference of a latent mean", f"{(Tensor(seen) - z).abs().max():.5f}"],
            ["largest difference of a decoded pixel", f"{(Tensor(made) - net.decode(z).flatten(1)).abs().max():.5f}"],
            ["a point decoded, CPU ms", f"{1000 * cpu(page, 'z => { digits.decode(z); }', z[0].tolist(), 100):.1f}"]]


def main(bird_path: str, folder: str, vae_path: str, gmm_path: str, digits_path: str) -> None:
    """Compares, and writes the section."""
    bird.autocast = lambda device: torch.autocast(device.type, enabled=False)      # float32, as the page has it
    net, coder = bird.load_model(Path(bird_path)), vae.load_model(vae_path)
    mixture = vae.load_mixture(gmm_path, coder)
    with browser() as page:
        page.add_script_tag(content=(build.HERE / "nets.js").read_text("utf-8"))
        page.evaluate("model => { globalThis.birds = Nets.bird(model); }", export_bird(net))
        page.evaluate("model => { globalThis.digits = Nets.vae(model); }", export_vae(coder, mixture))
        found = photos(page, net, Path(folder)) + digits(page, coder, mixture, Path(digits_path))
    publish("page", f"""### The page against torch

{stamp("python -m bench.page BIRD_MODEL PHOTOS VAE_MODEL GMM DIGITS")}
{COUNT} photos and as many digits; torch computes in float32, as the page does. `bird.py test` on a machine with
bfloat16 differs from either by more.

| What | Value |
|---|---|
{rows(found)}
""")


if __name__ == "__main__":
    main(*sys.argv[1:])
