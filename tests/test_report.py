"""Reports: their numbers are the run's, names literal, bytes the same, and what is missing is said."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pypdf import PdfReader

import bird
import vae
from nestling import ablate, cli, runs
from nestling.explain.write import per_class
from nestling.files import UserError, write_json
from nestling.report import build, pdf, tables
from nestling.report.network import layers

AUTHORS = ["Ana #1_x *y* 2021CS10001", "Пётр Ёлкин 2021CS10002"]


def bird_run(folder: Path, names: list[str], settings: list[str]) -> Path:
    """A run without training: a network of random weights, made-up history, made-up ablation; and photos."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / "photos" / name).mkdir(parents=True)
        for k in range(2):
            pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((80, 60)).save(folder / "photos" / name / f"{k}.jpg")
    torch.manual_seed(0)
    k, net = len(names), bird.BirdNet(len(names))
    net.extra |= {"classes": names, "counts": [2] * k, "size": 32,
                  "validation": {"macro_f1": 0.53125, "accuracy": 0.5625}}
    bird.save(folder / "bird.pth", net.state_dict())
    history(folder / "bird.history.jsonl", [
        {"epoch": k + 1, "epochs": 6, "size": 96, "train_loss": 2 - k / 4, "train_accuracy": 0.3 + k / 9,
         "val_loss": 2.1 - k / 5, "val_accuracy": 0.3125 + k / 16, "val_macro_f1": 0.25 + k / 16,
         "best": k < 4, "seconds": 30.0 * (k + 1)} for k in range(5)])
    for place, name in enumerate(settings):
        for seed in range(2):
            config = bird.Config(**ablate.settings_of("bird")[name].changes, seed=seed)
            run = folder / "ablation" / name / f"seed-{seed}"
            runs.ask(run, "bird", name, config, {"dataset": "/d"})
            write_json(run / "result.json", {"score": 0.8 - 0.011 * place + 0.004 * seed, "minutes": 1.5})
    return folder


def history(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    return bird_run(tmp_path_factory.mktemp("birds"), ["a_very_long_name_of_a_class_of_birds", "b#", "c"],
                    ["baseline", "no-hflip", "no-dropout"])


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A VAE of random weights, its mixture, history, and images of three digits."""
    folder, rng = tmp_path_factory.mktemp("digits"), np.random.default_rng(0)
    for name, each in (("train", 30), ("val", 5)):
        labels = np.repeat([1, 4, 8], each)
        images = np.clip(rng.normal(labels[:, None, None] * 20, 30, (len(labels), 28, 28)), 0, 255)
        np.savez(folder / f"{name}.npz", data=images.astype(np.uint8), labels=labels)
    torch.manual_seed(0)
    net = vae.VAE().eval()
    train, val = (vae.DigitDataset(folder / f"{name}.npz") for name in ("train", "val"))
    vae.save(folder / "vae.pth", net.state_dict())
    vae.save_mixture(folder / "gmm_params.pkl", vae.fit_mixture(net, train.images, val.images, val.labels))
    history(folder / "vae.history.jsonl", [
        {"epoch": k + 1, "phase": "latents", "recon": 200.0 - k, "kl": 3.0 + k, "held_recon": 210.5 - k,
         "held_kl": 3.25 + k, "ssim": 0.5 + k / 10, "held_ssim": 0.4 + k / 10, "seconds": 15.0 * (k + 1)}
        for k in range(3)])
    return folder


def words(path: Path) -> str:
    """All that the PDF says, without white space."""
    pages = PdfReader(io.BytesIO(path.read_bytes())).pages
    return re.sub(r"\s", "", "".join(page.extract_text() for page in pages))


def check_says(path: Path, *sentences: str) -> None:
    """Asserts that the PDF holds each of the words."""
    text = words(path)
    for sentence in sentences:
        assert re.sub(r"\s", "", sentence) in text, sentence


@pytest.mark.slow
def test_a_bird_report_holds_the_numbers_of_the_run_and_the_same_bytes(birds, tmp_path):
    out = tmp_path / "report.pdf"
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", "bird", str(birds), "--ablation", str(birds / "ablation"),
                  "--dataset", str(birds / "photos"), "--out", str(out),
                  *(part for author in AUTHORS for part in ("--author", author))])
    assert ended.value.code == 0
    assert 2 <= len(PdfReader(out).pages) <= 3
    first = PdfReader(out).pages[0].extract_text().splitlines()[0]
    assert all(author in first for author in AUTHORS)

    net = bird.load_model(birds / "bird.pth")
    paths, names = bird.find_images(birds / "photos")
    labels = torch.tensor([net.extra["classes"].index(name) for name in names])
    predicted = bird.predict(net, bird.decode(paths, "")[0]).argmax(dim=1)
    macro, micro = bird.f1(labels, predicted)
    check_says(out, f"{(macro + micro) / 2:.4f} score on 6 photos", f"{macro:.4f} macro F1",
               f"{micro:.4f} micro F1", f"{sum(p.numel() for p in net.parameters()):,} trained parameters",
               "lowest validation loss: saved 4 of 6 1.250 0.6333 1.500 0.5000 0.4375", "last epoch 5 of 6",
               "test-time augmentation 0.5625 0.5312", "0.5469 validation score",
               "2.5 min training, 5 epochs", *names)
    rows = {row["setting"]: row for row in ablate.table("bird", birds / "ablation")}
    for name in ("no-hflip", "no-dropout"):
        row = rows[name]
        check_says(out, f"{row['score']:.4f} ± {row['spread']:.4f} −{-row['difference']:.4f}")
    check_says(out, "Not measured: without vertical flips", "Missing: there are no notes")

    again = tmp_path / "again.pdf"
    build.report_bird(birds, AUTHORS, again, ablation=birds / "ablation", dataset=birds / "photos")
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.slow
def test_twenty_five_classes_and_every_setting_fit_on_three_pages(tmp_path):
    names, settings = [f"species_{k:02d}" for k in range(25)], ablate.settings_of("bird")
    run, out = bird_run(tmp_path / "run", names, list(settings)), tmp_path / "report.pdf"
    assert 2 <= build.report_bird(run / "bird.pth", AUTHORS[:1], out, ablation=run / "ablation",
                                  dataset=run / "photos") <= 3
    check_says(out, *(setting.what for setting in settings.values()), *names)
    assert "Notmeasured" not in words(out)


def test_what_is_missing_is_named(birds, tmp_path):
    (tmp_path / "bird.pth").write_bytes((birds / "bird.pth").read_bytes())
    out = tmp_path / "report.pdf"
    run = tmp_path / "half" / "no-hflip" / "seed-0"
    runs.ask(run, "bird", "no-hflip", bird.Config(hflip=0), {"dataset": "/d"})
    build.report_bird(tmp_path, AUTHORS, out, ablation=tmp_path / "half")
    check_says(out, "Missing: the run has no bird.history.jsonl", "no run of the ablation in half is done",
               "there are no class activation maps", "not known which classes are confused")
    write_json(run / "result.json", {"score": 0.5, "minutes": 1.0})
    build.report_bird(tmp_path, AUTHORS, out, ablation=tmp_path / "half")
    check_says(out, "without horizontal flips 1 0.5000", "Not measured: all defaults")


@pytest.mark.slow
def test_a_vae_report_holds_the_numbers_of_the_run_and_the_same_bytes(digits, tmp_path):
    outs = [tmp_path / "one.pdf", tmp_path / "two.pdf"]
    for out in outs:
        pages = build.report_vae(digits, AUTHORS, out, train=digits / "train.npz", val=digits / "val.npz")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert 2 <= pages <= 3
    net, mixture = vae.load_model(digits / "vae.pth"), vae.load_mixture(digits / "gmm_params.pkl")
    val, train = vae.DigitDataset(digits / "val.npz"), vae.DigitDataset(digits / "train.npz")
    found = vae.scores(val.labels, vae.classify(net, mixture, val.images))
    decoded = vae.reconstruct(net, val.images)
    right = int((vae.classify(net, mixture, train.images) == train.labels).sum())
    check_says(outs[0], f"{found['(macro F1 + micro F1) / 2']:.4f} score on 15 images",
               f"macro recall {found['macro recall']:.4f}",
               f"mean SSIM {vae.ssim(val.images, decoded).mean():.4f}",
               f"1 − MSE {1 - (val.images - decoded).square().mean():.4f}", f"{right} of 90 are classified",
               "reconstruction, nats an image 200.000 → 198.000 210.500 → 208.500",
               "0.8 min training, 3 epochs", f"{sum(p.numel() for p in net.parameters()):,} trained",
               "Missing: no ablation is given")


def test_a_vae_report_without_data_names_what_is_missing(digits, tmp_path):
    (tmp_path / "vae.pth").write_bytes((digits / "vae.pth").read_bytes())
    out = tmp_path / "report.pdf"
    build.report_vae(tmp_path / "vae.pth", AUTHORS, out, val=digits / "val.npz")
    check_says(out, "there is no scatter", "no mixture is beside the model", "no vae.history.jsonl",
               "Over all 15: 1 − MSE")
    with pytest.raises(vae.UserError, match=r"typo\.pkl .*No such file"):      # it was named
        build.report_vae(tmp_path / "vae.pth", AUTHORS, out, gmm=tmp_path / "typo.pkl")


def test_notes_are_set_as_they_are_written(birds, tmp_path):
    notes, out = tmp_path / "notes.md", tmp_path / "report.pdf"
    notes.write_text("# What we saw\nIt is **not** c_d *all*, `x*y` #let\nand 2 * 3.\n\n- one point\n* b\n")
    pieces = pdf.read_notes(notes)
    assert [piece["kind"] for piece in pieces] == ["heading", "paragraph", "point", "point"]
    assert [run["style"] for run in pieces[1]["runs"] if run["style"]] == ["strong", "emph", "code"]
    build.report_bird(birds, AUTHORS, out, notes=notes)
    check_says(out, "What we saw", "It is not c_d all, x*y #let and 2 * 3.", "• one point")
    notes.write_text("You found it: 你好 \U0010fff0")
    with pytest.raises(UserError, match=r"no font here has .* notes"):
        build.report_bird(birds, AUTHORS, tmp_path / "long.pdf", notes=notes)
    notes.write_text("We saw much. " * 3000)
    with pytest.raises(UserError, match="shorten the notes"):
        build.report_bird(birds, AUTHORS, tmp_path / "long.pdf", notes=notes)
    assert not (tmp_path / "long.pdf").exists()


@pytest.mark.parametrize(("author", "sentence"), [("", "no author"), ("A \U0010fff0", "no font here has")])
def test_a_name_that_cannot_be_set_is_a_user_error(author, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        pdf.typeset("bird", {"authors": [author]}, tmp_path, tmp_path / "report.pdf")


def test_a_broken_input_is_one_sentence_and_status_2(birds, tmp_path, capsys):
    (tmp_path / "bird.pth").write_bytes((birds / "bird.pth").read_bytes())
    (tmp_path / "bird.history.jsonl").write_text('{"epoch": 1}\nhalf a li')
    listed = shutil.copytree(birds, tmp_path / "listed")
    (listed / "environment.json").write_text("[1]")
    for run, fact in ((tmp_path / "none", "does not exist"), (tmp_path, "history"), (listed, "environment.json")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["report", "bird", str(run), "--author", "A 2021", "--out", str(tmp_path / "r.pdf")])
        assert ended.value.code == 2
        printed = capsys.readouterr().err
        assert fact in printed
        assert printed.count("\n") == 1


@pytest.mark.parametrize(("net", "x"), [
    (bird.BirdNet(4), torch.rand(1, 3, 64, 64)),
    (bird.BirdNet(4, batch_norm=False), torch.rand(1, 3, 96, 96)),
    (vae.VAE(), torch.rand(1, 28, 28)), (vae.VAE(0), torch.rand(1, 28, 28))])
def test_the_layers_in_the_report_are_all_of_the_network(net, x):
    rows, _ = layers(net, x)
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in net.parameters())
    assert rows[-1]["shape"] == [4 if isinstance(net, bird.BirdNet) else 784]
    assert all(not module._forward_hooks for module in net.modules())


def test_the_last_map_is_pooled_by_mean_and_maximum():
    (row,) = [row for row in layers(bird.BirdNet(4), torch.rand(1, 3, 96, 96))[0] if "over" in row["what"]]
    assert row["what"].startswith("mean and maximum over 6 × 6")
    assert row["shape"] == [512]


def test_signs_are_true_minuses_and_zero_has_none():
    assert [tables.signed(value, 2) for value in (-0.001, -1.5, 2)] == ["+0.00", "−1.50", "+2.00"]


def test_the_confusion_table_has_counts_shares_and_scores():
    labels, predicted = np.array([0] * 5 + [1] * 5 + [2] * 4), np.array([0] * 5 + [0] * 3 + [1] * 6)
    counts, classes = per_class(labels, predicted, [0, 1, 2])
    table = tables.confusion(counts, ["a", "b", "c"], classes)
    assert table["counts"] == [[5, 0, 0], [3, 2, 0], [0, 4, 0]]
    assert table["shares"] == [[1, 0, 0], [0.6, 0.4, 0], [0, 1, 0]]
    assert table["scores"][:2] == [["0.625", "1.000", "0.769"], ["0.333", "0.400", "0.364"]]
    assert table["scores"][2] == ["0.000", "0.000", "0.000"]


def test_the_ablation_table_has_finished_settings_only():
    setting = ablate.Setting({}, "what")
    base = {0: {"score": 0.80, "minutes": 1}, 1: {"score": 0.82, "minutes": 1}}
    worse = {k: {**result, "score": result["score"] - 0.1} for k, result in base.items()}
    rows = tables.ablation([ablate.row_of(name, setting, done, [], base)
                            for name, done in (("baseline", base), ("a", worse), ("b", {}))])
    assert [row["base"] for row in rows] == [True, False]
    assert [(row["signed"], row["verdict"]) for row in rows] == [("", ""), ("−0.1000", "yes")]
