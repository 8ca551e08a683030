"""Inputs tell nothing of the truth; what a submission wrote is scored by the letter and by stated rules."""

import io
import os
import pickle
import stat
import time
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from sklearn.metrics import f1_score
from torchvision.datasets import ImageFolder

import bird
import vae
from nestling.files import UserError
from nestling.grade.lay import lay_birds, lay_digits
from nestling.grade.score import read_regular, score_labels, score_reconstruction

TRUTH = [0, 1, 2, 2]
GOOD = "Predicted_Label\n0\n1\n2\n2\n"


def photos(folder: Path, sizes: dict[str, int], suffix: str = ".JPG") -> Path:
    """Class folders of photos, the number of whose class is their colour."""
    for k, (name, size) in enumerate(sizes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(size):
            Image.new("RGB", (8, 8), (20 * k, i, 0)).save(folder / name / f"{name}_{i}{suffix}", "PNG")
    return folder


def digits(path: Path, labels: list[int] | None, dtype: str = "uint8", **more) -> Path:
    """A .npz of images whose corner is their number and whose next pixel is their label."""
    count = 12 if labels is None else len(labels)
    data = np.random.default_rng(0).integers(0, 90, (count, 28, 28)).astype(dtype)
    data[:, 0, 0] = np.arange(count)
    if labels is not None:
        data[:, 0, 1] = labels
        more["labels"] = np.array(labels, dtype="int32")
    np.savez(path, data=data, **more)
    return path


# ------------------------------------------------------ what is laid

def test_photos_are_dealt_evenly_in_imagefolder_s_order(tmp_path):
    sizes = {"wren": 11, "heron": 5, "owl": 8}
    test = photos(tmp_path / "test", sizes)
    (test / "wren" / "._wren_0.JPG").write_bytes(b"left by macOS")
    train = photos(tmp_path / "train", {"wren": 1, "heron": 1, "owl": 1, "ibis": 1})
    laid = lay_birds(test, train, tmp_path / "out")
    seen = ImageFolder(laid.folder)
    assert laid.paths == {"test": tmp_path / "out"}
    assert laid.classes == seen.classes == ["heron", "ibis", "owl", "wren"]
    assert Counter(seen.targets) == {0: 6, 1: 6, 2: 6, 3: 6}
    colours = {0: "wren", 20: "heron", 40: "owl"}
    truth = [colours[np.array(image)[0, 0, 0]] for image, _ in seen]
    assert [laid.classes[label] for label in laid.truth] == truth
    names = sorted(path.name for path in laid.folder.glob("*/*"))
    assert names == [f"{i:05d}.jpg" for i in range(24)]
    assert {stat.S_IMODE(path.stat().st_mode) for path in laid.folder.glob("*/*")} == {0o444}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (laid.folder, *laid.folder.iterdir())} == {0o755}


def test_the_teacher_s_photos_stay_as_they_are(tmp_path):
    test = photos(tmp_path / "test", {"a": 2, "b": 2})
    before = {path: (path.read_bytes(), path.stat()) for path in test.glob("*/*")}
    lay_birds(test, None, tmp_path / "out")
    for path, (content, info) in before.items():
        now = path.stat()
        assert path.read_bytes() == content
        assert (now.st_mode, now.st_nlink, now.st_mtime) == (info.st_mode, 1, info.st_mtime)


def test_the_order_depends_on_contents_and_seed_alone(tmp_path):
    sizes = {"a": 20, "b": 20, "c": 20}
    test = photos(tmp_path / "test", sizes)
    laid = [lay_birds(test, None, tmp_path / f"out{i}", seed) for i, seed in enumerate((0, 0, 1))]
    assert laid[0].digest == laid[1].digest != laid[2].digest
    assert laid[0].truth == laid[1].truth != laid[2].truth
    for name in sizes:                               # renamed, so that a class's photos come in another order
        for path in (test / name).iterdir():
            path.rename(path.with_name(f"{99 - int(path.stem[2:])}.JPG"))
    assert lay_birds(test, None, tmp_path / "renamed").digest == laid[0].digest
    folder = np.arange(60) // 20                     # rows of a folder: each class in each of them
    assert np.abs(np.corrcoef(folder, laid[0].truth)[0, 1]) < 0.3
    assert (np.diff(np.array(laid[0].truth).reshape(3, 20)) < 0).any(axis=1).all()


@pytest.mark.parametrize(("test", "train", "remedy"), [
    ({"a": 2, "b": 2}, {"a": 1, "c": 1}, "class folder 'b', which .*train lacks; rename or remove it"),
    ({"a": 1}, {"a": 1, "b": 1}, "fewer than its 2 classes; add some"),
    ({}, {"a": 1}, "test cannot be read"), ({"": 2}, None, "expected .*<class name>/<image>.jpg"),
])
def test_a_test_set_that_cannot_be_dealt_is_refused(tmp_path, test, train, remedy):
    photos(tmp_path / "test", test)
    with pytest.raises(UserError, match=remedy):
        lay_birds(tmp_path / "test", photos(tmp_path / "train", train) if train else None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_digits_are_mixed_and_their_labels_tell_nothing(tmp_path, dtype):
    labels = [1] * 5 + [4] * 4 + [8] * 6
    test = digits(tmp_path / "t.npz", labels, dtype)
    recon = digits(tmp_path / "r.npz", None, names=np.arange(12))
    val = digits(tmp_path / "v.npz", [1, 4, 8])
    laid = lay_digits(test, recon, val, test, tmp_path / "out")
    assert sorted(path.name for path in laid.folder.iterdir()) == ["recon.npz", "test.npz", "train.npz", "val.npz"]
    assert laid.paths == {name: tmp_path / "out" / f"{name}.npz" for name in ("test", "recon", "val", "train")}
    with np.load(laid.paths["test"]) as arrays:
        assert sorted(arrays) == ["data", "labels"]
        assert arrays["labels"].tolist() == [1, 4, 8] * 5
        assert (arrays["labels"].dtype, arrays["data"].dtype) == (np.int32, np.dtype(dtype))
        assert arrays["data"][:, 0, 1].tolist() == laid.truth
        assert sorted(arrays["data"][:, 0, 0]) == list(range(15)) != arrays["data"][:, 0, 0].tolist()
    assert laid.images is not None
    with np.load(laid.paths["recon"]) as arrays:
        assert sorted(arrays) == ["data", "labels"]
        np.testing.assert_allclose(arrays["data"] / 255, laid.images, atol=1e-7)
    assert (laid.images.dtype, laid.images.shape, laid.classes) == (np.float32, (12, 28, 28), ["1", "4", "8"])
    assert laid.paths["val"].read_bytes() == val.read_bytes()
    assert laid.paths["train"].read_bytes() == test.read_bytes()
    for path in laid.paths.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert [info.date_time[0] for info in zipfile.ZipFile(laid.paths["test"]).infolist()] == [1980] * 2
    assert lay_digits(test, recon, val, test, tmp_path / "again").digest == laid.digest
    assert lay_digits(test, recon, val, test, tmp_path / "other", seed=1).digest != laid.digest


def test_digits_of_another_form_are_laid_in_the_assignment_s(tmp_path):
    with np.load(digits(tmp_path / "t.npz", [1, 4, 8])) as arrays:
        np.savez(tmp_path / "flat.npz", x=arrays["data"].reshape(3, 784), y=arrays["labels"].reshape(3, 1))
    laid = lay_digits(tmp_path / "flat.npz", None, None, None, tmp_path / "out")
    with np.load(laid.paths["test"]) as arrays:
        assert (arrays["data"].shape, arrays["labels"].tolist()) == ((3, 28, 28), [1, 4, 8])
        assert arrays["data"][:, 0, 1].tolist() == laid.truth
    assert laid.images is None


def test_unlabelled_digits_and_missing_files_are_refused(tmp_path):
    good, bare = digits(tmp_path / "t.npz", [1, 4, 8]), digits(tmp_path / "bare.npz", None)
    np.save(tmp_path / "train.npy", np.zeros((3, 28, 28), np.uint8))
    for files, remedy in [((bare, None, None, None), "must have `labels`, each 1, 4 or 8"),
                          ((digits(tmp_path / "7.npz", [1, 7]), None, None, None), "each 1, 4 or 8"),
                          ((good, None, bare, None), "bare.npz has no `labels`; add them"),
                          ((good, None, None, tmp_path / "train.npy"), "write it with numpy.savez"),
                          ((good, tmp_path / "none.npz", None, None), "none.npz")]:
        with pytest.raises(UserError, match=remedy):
            lay_digits(*files, tmp_path / "out")
        assert not (tmp_path / "out").exists()


# ------------------------------------------------------ labels

CSV = [                              # name, content, strict accuracy, found accuracy, kinds of findings
    ("bird.csv", GOOD, 1, 1, []),
    ("bird.csv", GOOD.rstrip("\n"), 1, 1, []),
    ("bird.csv", GOOD.replace("\n", "\r\n"), 1, 1, []), ("bird.csv", GOOD.replace("\n", "\r"), 1, 1, []),
    ("bird.csv", "Predicted_Label\n0\n1\n2\n0\n", .75, .75, []),
    ("bird.csv", "Predicted_Label\n0\n1\n2\n7\n", .75, .75, ["labels"]),
    ("bird.csv", "Predicted_Label\n0\n1\n2\n-1\n", .75, .75, ["labels"]),
    ("bird.csv", "Predicted_Label\n0\n1\n2\nowl\n", 0, .75, ["labels"]),
    ("bird.csv", "Predicted_Label\n0\n1\n2\n2.5\n", 0, .75, ["labels"]),
    ("bird.csv", "Predicted_Label\n0\n1\n2\n" + "9" * 400 + "\n", 0, .75, ["labels"]),
    ("bird.csv", "Predicted_Label\n0\n1\n2\n", 0, .75, ["rows"]),
    ("bird.csv", GOOD + "1\n", 0, 1, ["rows"]),
    ("bird.csv", GOOD.replace("L", "l"), 0, 1, ["column"]),
    ("bird.csv", GOOD.replace("_", " "), 0, 1, ["column"]),
    ("bird.csv", GOOD.replace("Predicted_L", "l"), 0, 1, ["column"]),
    ("bird.csv", "0\n1\n2\n2\n", 0, 1, ["column"]),
    ("bird.csv", "0\n0\n1\n2\n2\n", 0, 1, ["column"]),                           # pandas' own header
    ("bird.csv", ",0\n0,0\n1,1\n2,2\n3,2\n", 0, 1, ["column"]),
    ("bird.csv", ",Predicted_Label\n0,0\n1,1\n2,2\n3,2\n", 0, 1, ["column"]),
    ("bird.csv", "Predicted_Label\n0,0\n1,1\n2,2\n3,2\n", 0, 1, ["column"]),
    ("bird.csv", "id;label\n1;0\n2;1\n3;2\n4;2\n", 0, 1, ["column"]),
    ("bird.csv", "file,prediction,p\na.jpg,0,.5\nb.jpg,1,1\nc.jpg,2,1\nd.jpg,2,1\n", 0, 1, ["column"]),
    ("bird.csv", "a.jpg,0\nb.jpg,1\nc.jpg,2\nd.jpg,2\n", 0, 1, ["column"]),
    ("bird.csv", b"\xef\xbb\xbf" + GOOD.encode(), 0, 1, ["encoding"]),
    ("bird.csv", GOOD.encode("utf-16"), 0, 1, ["encoding"]),
    ("bird.csv", GOOD + "\n", 0, 1, ["encoding"]),
    ("bird.csv", GOOD.replace("\n", "\n\n"), 0, 1, ["encoding"]),
    ("bird.csv", GOOD.replace("2\n", "2.0\n"), 0, 1, ["encoding"]),
    ("bird.csv", GOOD.replace("2\n", "2.000e+00\n"), 0, 1, ["encoding"]),
    ("bird.csv", GOOD.replace("2\n", '"2"\n'), 0, 1, ["encoding"]),
    ("bird.csv", GOOD.replace("2\n", " 2\n"), 0, 1, ["encoding"]),
    ("bird.csv", b"\xef\xbb\xbfpredicted_label\r\n0.0\r\n1.0\r\n", 0, .5, ["column", "encoding", "rows"]),
    ("predictions.CSV", GOOD, 0, 1, ["name"]), ("bird.txt", GOOD, 0, 0, None),
    ("predictions.csv", "Predicted_Label\n0\n", 0, 0, None),                     # of another length: not taken
    ("bird.csv", "a,b\n0,1\n1,0\n2,0\n2,1\n", 0, 0, None),                       # which of the two?
    ("bird.csv", "", 0, 0, None), ("bird.csv", "Predicted_Label\n", 0, 0, None),
    ("bird.csv", "\n \n", 0, 0, None), ("bird.csv", "owl\nowl\n", 0, 0, None),
    ("bird.csv", '"' + 150_000 * "0\n", 0, 0, None), ("bird.csv", 900_000 * ",", 0, 0, None),
    ("bird.csv", 2_000_000 * "0", 0, 0, None), ("bird.csv", b"\x00\xff\x1b[31m" * 99, 0, 0, None),
]


@pytest.mark.parametrize(("name", "content", "strict", "found", "kinds"), CSV)
def test_a_csv_by_the_letter_and_by_the_rules(tmp_path, name, content, strict, found, kinds):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    scored = score_labels(tmp_path, "bird.csv", TRUTH, [0, 1, 2])
    assert scored == score_labels(tmp_path, "bird.csv", TRUTH, [0, 1, 2])
    assert (scored.strict["accuracy"], scored.found["micro_f1"]) == (strict, found)
    assert (scored.strict == scored.found) or not any(scored.strict.values())
    assert ("missing" in scored.details) == (kinds is None)
    assert [finding.kind for finding in scored.findings] == (kinds or [])
    assert all(finding.text.endswith(".") and finding.text.isprintable() for finding in scored.findings)


def test_scores_are_scikit_learn_s_and_the_project_s_own(tmp_path):
    g = np.random.default_rng(0)
    digit = np.array([1, 4, 8])
    truth = digit[g.integers(0, 3, 200)]
    predicted = np.where(g.random(200) < 0.7, truth, digit[g.integers(0, 3, 200)])
    (tmp_path / "vae.csv").write_text("\n".join(["Predicted_Label", *map(str, predicted)]))
    scored = score_labels(tmp_path, "vae.csv", truth.tolist(), [1, 4, 8])
    macro, micro = (f1_score(truth, predicted, average=average) for average in ("macro", "micro"))
    assert scored.found["score"] == pytest.approx((macro + micro) / 2)
    assert scored.strict == scored.found
    f1 = bird.f1(list(truth), list(predicted))
    assert (scored.found["macro_f1"], scored.found["micro_f1"]) == pytest.approx(f1)
    own = vae.scores(torch.tensor(truth), torch.tensor(predicted))
    assert list(scored.found.values()) == pytest.approx(list(own.values()))
    assert np.trace(scored.details["confusion"]) == (truth == predicted).sum()
    assert [each["number"] for each in scored.details["per_class"]] == np.bincount(truth)[digit].tolist()
    assert np.mean([each["f1"] for each in scored.details["per_class"]]) == pytest.approx(macro)


def test_the_mean_is_over_the_classes_that_occur_and_absent_rows_are_wrong(tmp_path):
    (tmp_path / "bird.csv").write_text("Predicted_Label\n0\n0\n3\n9\n")
    scored = score_labels(tmp_path, "bird.csv", [0, 0, 0, 2, 2], list(range(5)))
    assert scored.found["macro_f1"] == pytest.approx((0.8 + 0) / 2)
    assert (scored.found["accuracy"], scored.details["invalid"]) == (0.4, 2)
    assert scored.details["confusion"][0] == [2, 0, 0, 1, 0]
    assert (scored.details["classes"], sum(map(sum, scored.details["confusion"]))) == (list("01234"), 3)


def test_cluster_numbers_are_told_and_not_matched(tmp_path):
    (tmp_path / "vae.csv").write_text("Predicted_Label\n0\n1\n2\n")
    scored = score_labels(tmp_path, "vae.csv", [1, 4, 8], [1, 4, 8])
    assert [finding.kind for finding in scored.findings] == ["labels"]
    assert "cluster numbers" in scored.findings[0].text
    assert scored.found["accuracy"] == 0
    (tmp_path / "vae.csv").write_text("Predicted_Label\n1\n1\n1\n")
    assert not score_labels(tmp_path, "vae.csv", [1, 4, 8], [1, 4, 8]).findings


def test_a_file_that_was_handed_in_or_has_a_rival_is_no_output(tmp_path):
    (tmp_path / "bird.csv").write_text(GOOD)
    scored = score_labels(tmp_path, "bird.csv", TRUTH, [0, 1, 2], {"bird.csv"})
    assert scored.details == {"missing": "bird.csv was handed in, not written by the program."}
    (tmp_path / "a.csv").write_text(GOOD)
    scored = score_labels(tmp_path, "bird.csv", TRUTH, [0, 1, 2], {"bird.csv"})
    assert (scored.found["score"], scored.findings[0].kind, scored.findings[0].file) == (1, "name", "a.csv")
    (tmp_path / "\x1b[31m\udcff.csv").write_text(GOOD)
    scored = score_labels(tmp_path, "bird.csv", TRUTH, [0, 1, 2], {"bird.csv"})
    assert "would fit: \\x1b[31m\\xdcff.csv, a.csv." in scored.details["missing"]
    assert scored.found == scored.strict == dict.fromkeys(scored.found, 0.0)
    scored = score_labels(tmp_path, "bird.csv", TRUTH, [0, 1, 2])        # the contract's name comes first
    assert (scored.strict["score"], scored.findings) == (1, ())


# ------------------------------------------------------ reconstructions

G = np.random.default_rng(0)
IMAGES = np.round(G.random((12, 28, 28)) ** 4, 2)
MADE = np.clip(IMAGES + G.normal(0, 0.1, IMAGES.shape), 0, 1).astype(np.float32)
OVER = MADE * 1.2 - 0.05
HOLED = np.where(MADE > 0.9, np.nan, MADE)
NAME = "vae_reconstructed.npz"

NPZ = [                              # name, arrays, by the letter, what is scored, kinds of findings
    (NAME, {"data": MADE}, True, MADE, []),
    (NAME, {"data": MADE.astype(">f8")}, True, MADE, []),
    (NAME, {"data": np.asfortranarray(MADE)}, True, MADE, []),
    (NAME, {"images": MADE}, False, MADE, ["key"]),
    (NAME, {"reconstructed_images": MADE, "original_images": IMAGES}, False, MADE, ["key"]),
    (NAME, {"a": MADE, "b": (255 * IMAGES).astype(np.uint8)}, False, MADE, ["key"]),
    (NAME, {"data": IMAGES, "recon": MADE}, False, MADE, ["key"]),
    (NAME, {"data": MADE, "latents": MADE[:, 0, :2], "names": np.array(["a"])}, False, MADE, ["key"]),
    (NAME, {"images": MADE, "grid": MADE[:9]}, False, MADE, ["key"]),
    (NAME, {"data": IMAGES}, True, IMAGES, ["values"]),
    (NAME, {"data": MADE.reshape(12, 784)}, False, MADE, ["values"]),
    (NAME, {"data": MADE[:, None]}, False, MADE, ["values"]),
    (NAME, {"data": MADE[..., None]}, False, MADE, ["values"]),
    (NAME, {"data": 255 * MADE}, False, MADE, ["values"]),
    (NAME, {"data": (255 * MADE).astype(np.uint8)}, False, np.floor(255 * MADE) / 255, ["values"]),
    (NAME, {"data": OVER}, False, OVER.clip(0, 1), ["values"]),
    (NAME, {"data": HOLED}, False, np.nan_to_num(HOLED), ["values"]),
    (NAME, {"data": np.where(MADE > 0.99, np.inf, MADE)}, False, np.where(MADE > 0.99, 1, MADE), ["values"]),
    (NAME, {"data": MADE[:8]}, False, MADE[:8], ["values"]),
    (NAME, {"data": np.concatenate([MADE, MADE[:3]])}, False, MADE, ["values"]),
    ("test_reconstruction.npz", {"data": MADE}, False, MADE, ["name"]),
    ("test_reconstruction.npz", {"x_recon": 255 * MADE}, False, MADE, ["name", "key", "values"]),
    ("test_reconstruction.npz", {"data": MADE[:8]}, False, None, None),
    (NAME, {"data": MADE[0]}, False, None, None), (NAME, {"data": MADE[:0]}, False, None, None),
    (NAME, {"data": MADE + 0j}, False, None, None), (NAME, {"data": MADE.astype(str)}, False, None, None),
    (NAME, {"recon_1": MADE, "recon_2": MADE}, False, None, None), (NAME, {}, False, None, None),
    (NAME, {f"a{i}": MADE[:1] for i in range(9)}, False, None, None),
]


def worth(images: np.ndarray) -> dict[str, float]:
    """The assignment's scores; absent images have none."""
    pairs = list(zip(IMAGES, images.astype(np.float64), strict=False))
    ssim = [structural_similarity(a, b, data_range=1) for a, b in pairs] + [0] * (12 - len(pairs))
    return {"ssim": np.mean(ssim), "one_minus_mse": np.mean([1 - ((a - b) ** 2).mean() for a, b in pairs]
                                                           + [0] * (12 - len(pairs)))}


@pytest.mark.parametrize(("name", "arrays", "letter", "scored_as", "kinds"), NPZ)
def test_an_npz_by_the_letter_and_by_the_rules(tmp_path, name, arrays, letter, scored_as, kinds):
    np.savez_compressed(tmp_path / name, **arrays)
    scored = score_reconstruction(tmp_path, NAME, IMAGES)
    assert scored == score_reconstruction(tmp_path, NAME, IMAGES)
    zero = {"ssim": 0.0, "one_minus_mse": 0.0}
    assert scored.found == pytest.approx(zero if scored_as is None else worth(scored_as), abs=1e-6)
    assert scored.strict == (scored.found if letter else zero)
    assert [finding.kind for finding in scored.findings] == (kinds or [])
    assert all(finding.text.endswith(".") for finding in scored.findings)
    if scored_as is None:
        assert scored.details["missing"].endswith(".")
    else:
        assert np.shape(scored.details["originals"]) == (10, 28, 28)
        assert scored.details["images"][0] == np.rint(255 * scored_as[0].astype(np.float64)).tolist()


def test_reconstructions_are_scored_as_vae_does(tmp_path):
    np.savez(tmp_path / NAME, data=MADE)
    scored = score_reconstruction(tmp_path, NAME, IMAGES.astype(np.float32))
    own = vae.ssim(torch.from_numpy(IMAGES), torch.from_numpy(MADE).double()).mean()
    assert scored.found["ssim"] == pytest.approx(float(own), abs=1e-6)


def test_the_input_beside_the_reconstructions_is_not_taken_for_them(tmp_path):
    np.savez(tmp_path / "originals.npz", data=IMAGES)
    np.savez(tmp_path / "recon.npz", data=MADE)
    scored = score_reconstruction(tmp_path, NAME, IMAGES)
    assert scored.found == pytest.approx(worth(MADE))
    assert [(finding.kind, finding.file) for finding in scored.findings] == [("name", "recon.npz")]
    assert "missing" in score_reconstruction(tmp_path, NAME, IMAGES, {"recon.npz", "originals.npz"}).details


# ------------------------------------------------------ hostile files

def hostile(path: Path, what: str) -> None:
    """Puts there what is no regular, small file."""
    match what:
        case "link":
            path.symlink_to("/etc/passwd")
        case "dangling link":
            path.symlink_to(path.with_name("nowhere"))
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "sparse":
            path.touch()
            os.truncate(path, 2**40)


@pytest.mark.parametrize(("what", "reason"), [
    ("link", "it is a link"), ("dangling link", "it is a link"), ("pipe", "a folder, a pipe or a device"),
    ("folder", "a folder, a pipe or a device"), ("sparse", "has 1,099,511,627,776 bytes, more than"),
    ("nothing", "No such file")])
def test_no_link_pipe_folder_or_giant_is_read(tmp_path, what, reason):
    for name in ("bird.csv", "bird2.csv", NAME, "another.npz"):
        hostile(tmp_path / name, what)
    with pytest.raises(ValueError, match=reason):
        read_regular(tmp_path / "bird.csv", 1000)
    for scored in (score_labels(tmp_path, "bird.csv", TRUTH, [0, 1, 2]),
                   score_reconstruction(tmp_path, NAME, IMAGES)):
        assert scored.found == scored.strict == dict.fromkeys(scored.found, 0.0)
        assert "was not written" if what == "nothing" else reason in scored.details["missing"]


ZEROS = bytes(2**24)


def header(shape: str, descr: str = "'|u1'", version: int = 1, length: int | None = None) -> bytes:
    """The head of a .npy file."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return (b"\x93NUMPY" + bytes([version, 0])
            + (length or len(text)).to_bytes(2 if version == 1 else 4, "little") + text)


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(("content", "method"), [
    (header("(12, 28, 28)") + ZEROS, zipfile.ZIP_DEFLATED),                       # 16 MB in 16 kB
    (header("(21399, 28, 28)") + ZEROS, zipfile.ZIP_DEFLATED),
    (header("(12, 28, 28)", version=2, length=2**24) + ZEROS, zipfile.ZIP_DEFLATED),
    (header("(12, 28, 28)") + ZEROS, zipfile.ZIP_BZIP2),
    (header("(12, 28, 28)", "'|u1'") + bytes(100), zipfile.ZIP_STORED),          # cut off
    (header("(12, 28, 28)", "'|O'") + bytes(9408), zipfile.ZIP_STORED),
    (header("(12, 28, 28)", "[('a', '<f4', (4, 4))]") + bytes(9408), zipfile.ZIP_STORED),
    (header("(12, 28, -28)") + bytes(9408), zipfile.ZIP_STORED),
    (header("(10**9,)") + bytes(9408), zipfile.ZIP_STORED),
    (header("(" * 900) + bytes(9408), zipfile.ZIP_STORED),
    (header("()", "'<f8'") + bytes(8), zipfile.ZIP_STORED),
    (b"no array", zipfile.ZIP_STORED),
])
def test_a_bomb_or_a_damaged_npz_costs_nothing(tmp_path, content, method):
    with zipfile.ZipFile(tmp_path / NAME, "w", method, compresslevel=1) as archive:
        archive.writestr("data.npy", content)
    tracemalloc.start()
    began = time.perf_counter()
    scored = score_reconstruction(tmp_path, NAME, IMAGES)
    seconds, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (scored.found["ssim"], scored.findings) == (0, ())
    assert scored.details["missing"].startswith(NAME)
    assert peak < 10e6
    assert seconds < 1


def test_a_zip_that_understates_its_size_or_lists_millions_is_bounded(tmp_path):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("data.npy", header("(12, 28, 28)") + ZEROS)
    true = (len(header("(12, 28, 28)")) + 2**24).to_bytes(4, "little")
    forged = buffer.getvalue().replace(true, (10_000).to_bytes(4, "little"))
    entry = forged[forged.index(b"PK\x01\x02"):forged.index(b"PK\x05\x06")]
    many = forged[:forged.index(b"PK\x01\x02")] + entry * 10_000 + forged[forged.index(b"PK\x05\x06"):]
    tracemalloc.start()
    for content in (forged, many):
        (tmp_path / NAME).write_bytes(content)
        score_reconstruction(tmp_path, NAME, IMAGES)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_nothing_is_unpickled(tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")] * 12, dtype=object)
    np.savez(tmp_path / NAME, data=trap, recon=MADE)
    scored = score_reconstruction(tmp_path, NAME, IMAGES)
    assert scored.found == pytest.approx(worth(MADE))
    (tmp_path / NAME).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert "cannot be read as arrays" in score_reconstruction(tmp_path, NAME, IMAGES).details["missing"]
    assert not (tmp_path / "sprung").exists()
