"""The real photos: "Identify-the-Birds" from Kaggle, split into the layout OUT/train/<class>, OUT/test/<class>."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from nestling.files import UserError, whole_folder

DATASET = "aayushkt/identify-the-birds"
TRAIN = Path("Birds", "train")  # below the downloaded folder
TEST_SHARE = 0.2


def fetch_birds(out: Path, seed: int = 0) -> None:
    """Fetch the photos and lay them out in the new folder `out`, a random fifth of each class as `test`.

    Files are linked to Kaggle's cache where the disk allows it, else copied. Raises UserError if kagglehub is missing,
    Kaggle cannot be reached, or what it sends is laid out otherwise.
    """
    try:
        import kagglehub
    except ImportError as error:
        remedy = "pip install 'nestling[kaggle]', or take --source drawn"
        raise UserError(f"--source kaggle needs kagglehub: {remedy}") from error
    try:
        root = Path(kagglehub.dataset_download(DATASET)) / TRAIN
    except Exception as error:  # whatever the client raises, the remedy is the same
        raise UserError(
            f"Kaggle's {DATASET} cannot be fetched ({type(error).__name__}): connect this machine to the network and "
            "run the command again, or take --source drawn, which needs none"
        ) from error
    classes = sorted(folder for folder in root.glob("*") if folder.is_dir())
    if not classes:
        raise UserError(f"{DATASET} has no class folders in {root}: its layout has changed; copy the photos by hand")
    rng = np.random.default_rng(seed)
    with whole_folder(out) as part:
        for folder in classes:
            photos = sorted(path for path in folder.iterdir() if path.is_file())
            tested = set(rng.choice(len(photos), round(TEST_SHARE * len(photos)), replace=False).tolist())
            for name in ("train", "test"):
                (part / name / folder.name).mkdir(parents=True)
            for k, photo in enumerate(photos):
                place(photo, part / ("test" if k in tested else "train") / folder.name / photo.name)


def place(source: Path, target: Path) -> None:
    """Link a file, or copy it to another disk."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
