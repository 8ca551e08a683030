"""Reports: their numbers are the run's, their names are literal, their bytes repeat, and what is missing is said."""

import ast
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from pypdf import PdfReader

import bird
import vae
from nestling import ablate, cli, runs
from nestling.report import build, say
from nestling.report.network import layers

AUTHORS = ["Ana #1_x *y* 2021CS10001", "Пётр Ёлкин 2021CS10002"]


def bird_run(folder: Path, classes: int, settings: list[str], seeds: int) -> Path:
    """A run without training: a network of random weights, made-up history, made-up ablation; and photos."""
    rng = np.random.default_rng(0)
    names = [f"species_{k:02d}" for k in range(classes)]
    for name in names:
        (folder / "photos" / name).mkdir(parents=True)
        for k in range(2):
            pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((80, 60)).save(folder / "photos" / name / f"{k}.jpg")
    torch.manual_seed(0)
    net = bird.BirdNet(classes)
    net.extra |= {"classes": names, "counts": [2] * classes, "size": 64,
                  "validated": {"macro_f1": 0.53125, "accuracy": 0.5625}}
    bird.save_atomic(folder / "bird.pth", net.state_dict())
    rows = [{"epoch": k + 1, "epochs": 6, "size": 96, "lr": 1e-3,
             "train_loss": 2 - k / 4, "train_accuracy": 0.3 + k / 9,
             "val_loss": 2.1 - k / 5, "val_accuracy": 0.3125 + k / 16, "val_macro_f1": 0.25 + k / 16, "best": k < 4,
             "val_score": 0.28125 + k / 16 - (k == 4) / 4, "seconds": 30.0 * (k + 1)} for k in range(5)]
    bird.write_history(folder / "bird.history.jsonl", rows)
    for place, name in enumerate(settings):
        for seed in range(seeds):
            config = ablate.config_of("bird", ablate.settings_of("bird")[name].changes, seed=seed)
            run = runs.ask(folder / "ablation" / name / f"seed-{seed}", "bird", name, config, {"dataset": "/d"})
            runs.write_json(run / "result.json", {"score": 0.8 - 0.011 * place + 0.004 * seed, "minutes": 1.5})
    return folder


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    return bird_run(tmp_path_factory.mktemp("birds"), 3, ["baseline", "no-flip", "no-dropout"], seeds=2)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A VAE of random weights, its mixture, history, and images of three digits."""
    folder, rng = tmp_path_factory.mktemp("digits"), np.random.default_rng(0)
    for name, each in (("train", 30), ("val", 5)):
        labels = np.repeat([1, 4, 8], each)
        images = np.clip(rng.normal(labels[:, None, None] * 20, 30, (len(labels), 28, 28)), 0, 255).astype(np.uint8)
        np.savez(folder / f"{name}.npz", data=images, labels=labels)
    torch.manual_seed(0)
    net = vae.VAE().eval()
    data = vae.DigitDataset(folder / "train.npz")
    z = vae.latent_means(net, data.images)
    vae.save_atomic(folder / "vae.pth", net.state_dict())
    own = torch.arange(len(z))[:, None]
    vae.save_mixture(folder / "gmm_params.pkl", vae.fit_mixture(z, own, z, data.examples(), net.centres))
    vae.write_history(folder / "vae.history.jsonl", [
        {"epoch": k + 1, "phase": "latents", "lr": 1e-3, "recon": 200.0 - k, "kl": 3.0 + k, "held_recon": 210.5 - k,
         "held_kl": 3.25 + k, "ssim": 0.5 + k / 10, "held_ssim": 0.4 + k / 10, "seconds": 15.0} for k in range(3)])
    return folder


def words(pdf: Path) -> str:
    """All that the PDF says, without white space and with typst's hyphens at line ends taken back."""
    return re.sub(r"\s", "", "".join(page.extract_text() for page in PdfReader(io.BytesIO(pdf.read_bytes())).pages))


def check_says(pdf: Path, *sentences: str) -> None:
    """Asserts that the PDF holds each of the words."""
    text = words(pdf)
    for sentence in sentences:
        assert re.sub(r"\s", "", sentence) in text, sentence


def test_a_bird_report_holds_the_run_s_numbers_and_the_same_bytes(birds, tmp_path):
    out = tmp_path / "report.pdf"
    arguments = ["report", "bird", str(birds), "--ablation", str(birds / "ablation"),
                 "--dataset", str(birds / "photos"), "--out", str(out),
                 *(part for author in AUTHORS for part in ("--author", author))]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    assert 2 <= len(PdfReader(out).pages) <= 3
    first = PdfReader(out).pages[0].extract_text().splitlines()[0]
    assert all(author in first for author in AUTHORS)

    net = bird.load_model(birds / "bird.pth")
    paths, names = bird.find_images(birds / "photos")
    predicted = bird.predict(net, bird.decode(paths).pixels, 64, torch.device("cpu")).argmax(dim=1).tolist()
    macro, micro = bird.scores([net.extra["classes"].index(name) for name in names], predicted)
    check_says(out, f"{(macro + micro) / 2:.4f} score on 6 photos", f"{macro:.4f} macro F1", f"{micro:.4f} micro F1",
               f"{bird.count_parameters(net):,}", "weights of epoch 4 were kept",
               "accuracy 0.5000, macro F1 0.4375, loss 1.500",
               "the network has accuracy 0.5625, macro F1 0.5312 on the validation photos.",
               "scored 0.1875 lower", "6 epochs were planned", "0.5469 validation score", "2.5 min training, 5 epochs")
    rows = {row["setting"]: row for row in ablate.table("bird", birds / "ablation")}
    for name in ("no-flip", "no-dropout"):
        check_says(out, f"{rows[name]['score']:.4f} ± {rows[name]['spread']:.4f} −{-rows[name]['difference']:.4f}")
    check_says(out, "Beyond the noise, this lowers the score: without dropout (−0.0220, noise 0.0040); without "
               "mirror images",
               "Not measured: without half turns", "Missing: there are no notes")

    again = tmp_path / "again.pdf"
    build.report_bird(birds, AUTHORS, again, ablation=birds / "ablation", dataset=birds / "photos")
    assert again.read_bytes() == out.read_bytes()


def test_twenty_five_classes_and_every_setting_fit_on_three_pages(tmp_path):
    run = bird_run(tmp_path / "run", 25, list(ablate.settings_of("bird")), seeds=2)
    out = tmp_path / "report.pdf"
    assert 2 <= build.report_bird(run / "bird.pth", AUTHORS[:1], out, ablation=run / "ablation",
                                  dataset=run / "photos") <= 3
    check_says(out, "peak learning rate 0.002")
    assert "Notmeasured" not in words(out)


def test_what_is_missing_is_named(birds, tmp_path):
    (tmp_path / "bird.pth").write_bytes((birds / "bird.pth").read_bytes())
    out = tmp_path / "report.pdf"
    run = runs.ask(tmp_path / "half" / "no-flip" / "seed-0", "bird", "no-flip", bird.Config(flip=0), {"dataset": "/d"})
    build.report_bird(tmp_path, AUTHORS, out, ablation=tmp_path / "half")
    check_says(out, "Missing: the run has no bird.history.jsonl", "Missing: no run of the ablation in half is finished",
               "there are no heat maps", "not known which classes are confused")
    runs.write_json(run / "result.json", {"score": 0.5, "minutes": 1.0})
    build.report_bird(tmp_path, AUTHORS, out, ablation=tmp_path / "half")
    check_says(out, "The baseline has no finished run", "0.5000")


def test_a_vae_report_holds_the_run_s_numbers_and_the_same_bytes(digits, tmp_path):
    outs = [tmp_path / "one.pdf", tmp_path / "two.pdf"]
    for out in outs:
        pages = build.report_vae(digits, AUTHORS, out, train=digits / "train.npz", val=digits / "val.npz")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert 2 <= pages <= 3
    net, mixture = vae.load_model(digits / "vae.pth"), vae.load_mixture(digits / "gmm_params.pkl")
    val, train = vae.DigitDataset(digits / "val.npz"), vae.DigitDataset(digits / "train.npz")
    found = vae.scores(val.labels.numpy(), vae.classify(net, mixture, val.images).numpy())
    made = vae.reconstruct(net, val.images)
    right = int((vae.classify(net, mixture, train.images) == train.labels).sum())
    check_says(outs[0], f"{found['(macro F1 + micro F1) / 2']:.4f} score on 15 images",
               f"macro recall {found['macro recall']:.4f}", f"mean SSIM {vae.ssim(val.images, made).mean():.4f}",
               f"1 − MSE is {1 - (val.images - made).square().mean():.4f}",
               f"reads {right} of them", "reconstruction loss 210.500 → 208.500", "0.8 min training, 3 epochs",
               f"{sum(p.numel() for p in net.parameters()):,}", "Missing: no ablation is given")


def test_a_vae_report_without_data_names_what_is_missing(digits, tmp_path):
    (tmp_path / "vae.pth").write_bytes((digits / "vae.pth").read_bytes())
    out = tmp_path / "report.pdf"
    build.report_vae(tmp_path / "vae.pth", AUTHORS, out, val=digits / "val.npz")
    check_says(out, "there is no scatter", "there is no gmm_params.pkl", "no vae.history.jsonl",
               "Over the 15 validation images")


def test_notes_are_set_as_they_are_written(birds, tmp_path):
    notes, out = tmp_path / "notes.md", tmp_path / "report.pdf"
    notes.write_text("# What we saw\n\nIt is **not** a_b *at all*, `x*y` #let\nand 2 * 3.\n\n- one point\n* another\n")
    assert [piece["kind"] for piece in build.read_notes(notes)] == ["heading", "paragraph", "point", "point"]
    assert [run["style"] for run in build.read_notes(notes)[1]["runs"] if run["style"]] == ["strong", "emph", "code"]
    build.report_bird(birds, AUTHORS, out, notes=notes)
    check_says(out, "What we saw", "It is not a_b at all, x*y #let and 2 * 3.", "• one point")
    notes.write_text("We saw much. " * 3000)
    with pytest.raises(bird.Mistake, match="shorten the notes"):
        build.report_bird(birds, AUTHORS, tmp_path / "long.pdf", notes=notes)
    assert not (tmp_path / "long.pdf").exists()


@pytest.mark.parametrize(("author", "sentence"), [("", "no author"), ("Ana \U0010fff0 2021CS1", "no font here has")])
def test_a_name_that_cannot_be_set_is_a_mistake(birds, tmp_path, author, sentence):
    with pytest.raises(bird.Mistake, match=sentence):
        build.report_bird(birds, [author], tmp_path / "report.pdf")


def test_a_broken_input_is_one_sentence_and_status_2(birds, tmp_path, capsys):
    (tmp_path / "bird.pth").write_bytes((birds / "bird.pth").read_bytes())
    (tmp_path / "bird.history.jsonl").write_text('{"epoch": 1}\nhalf a li')
    for run, sentence in ((tmp_path / "none", "does not exist"), (tmp_path, "not a history")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["report", "bird", str(run), "--author", "A 2021CS10001", "--out", str(tmp_path / "r.pdf")])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1


@pytest.mark.parametrize(("net", "x"), [
    (bird.BirdNet(4), torch.zeros(1, 3, 64, 64)), (bird.BirdNet(4, batch_norm=False), torch.zeros(1, 3, 96, 96)),
    (vae.VAE(), torch.zeros(1, 28, 28)), (vae.VAE(0, encoder="conv"), torch.zeros(1, 28, 28))])
def test_the_layers_in_the_report_are_all_of_the_network(net, x):
    rows = layers(net, x)
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in net.parameters())
    assert all(not module._forward_hooks for module in net.modules())


def test_what_pools_the_last_map_is_told_as_it_is():
    assert "mean and maximum over 6 × 6" in [row.what for row in layers(bird.BirdNet(4), torch.rand(1, 3, 96, 96))]


def test_signs_are_true_minuses_and_zero_has_none():
    assert [say.signed(value, 2) for value in (-0.001, 0.0, -1.5, 2)] == ["+0.00", "+0.00", "−1.50", "+2.00"]


def test_sentences_on_differences_follow_the_noise():
    known = {"baseline": ablate.Setting({}, "all"), "a": ablate.Setting({"x": 1}, "without a"),
             "b": ablate.Setting({"x": 2}, "without b"), "c": ablate.Setting({"x": 3}, "without c")}
    base = {0: {"score": 0.80, "minutes": 1}, 1: {"score": 0.82, "minutes": 1}}
    rows = [ablate.row_of("baseline", known["baseline"], base, [], base),
            ablate.row_of("a", known["a"], {k: {**r, "score": r["score"] + 0.1} for k, r in base.items()}, [], base),
            ablate.row_of("b", known["b"], {k: {**r, "score": r["score"] - 0.01} for k, r in base.items()}, [], base)]
    told = " ".join(say.ablation(rows, known))
    assert "raises the score: without a (+0.1000, noise 0.0200)" in told
    assert "lowers" not in told
    assert "For 1 of 2 settings the difference lies within the noise" in told
    assert say.not_measured(rows, known) == ["Not measured: without c."]


@pytest.mark.parametrize(("score", "said"), [(0.9, "scored the same."), (0.875, "scored 0.0250 lower."),
                                              (0.91, "scored 0.0100 higher.")])
def test_how_the_last_epoch_compares_with_the_kept_one_is_said(score, said):
    numbers = dict.fromkeys(("val_accuracy", "val_macro_f1", "val_loss", "train_loss", "train_accuracy"), 0.5)
    rows = [{"epoch": 1, "epochs": 2, "best": True, "val_score": 0.9, **numbers},
            {"epoch": 2, "epochs": 2, "best": False, "val_score": score, **numbers}]
    assert say.training_bird(rows, saved={"accuracy": 0.5, "macro_f1": 0.5})[-1] == f"The last epoch, 2, {said}"
    assert not any("Saved" in line for line in say.training_bird(rows, saved={"accuracy": 0.5, "macro_f1": 0.5}))


def test_sentences_on_confusions_are_counts_of_the_table():
    table = np.array([[5, 0, 0], [3, 2, 0], [0, 1, 4]])
    told = " ".join(say.confusions(table, ["a", "b", "c"], "photos"))
    assert "11 of the 15 photos are read right" in told
    assert "3 of 5 b as a; 1 of 5 c as b (all 4 errors)" in told
    assert f"c is read best ({8 / 9:.3f}) and b worst ({4 / 8:.3f})" in told
    told = " ".join(say.confusions(np.array([[5, 0, 0], [0, 4, 1], [0, 0, 5]]), ["a", "b", "c"], "photos"))
    assert "1 of 5 b as c (the only error)" in told
    table = np.array([[8, 1, 1, 0], [0, 9, 1, 0], [1, 1, 8, 0], [1, 0, 0, 9]])
    told = " ".join(say.confusions(table, list("abcd"), "photos", most=2))
    assert "1 of 10 a as b; 1 of 10 a as c (together 2 of the 6 errors)" in told
    table = np.array([[3, 1, 0, 0], [1, 3, 0, 0], [0, 0, 4, 0], [0, 0, 0, 4]])
    told = " ".join(say.confusions(table, list("abcd"), "photos"))
    assert "2 classes are read best (1.000) and 2 classes worst (0.750)" in told
    assert "misread" not in " ".join(say.confusions(np.diag([2, 2]), ["a", "b"], "photos"))


def test_sentences_on_heat_say_where_there_is_none():
    shares = np.array([0.2, 0.4, np.nan])
    told = " ".join(say.heat_in_middle(shares, np.array([0, 1, 1]), ["a", "b"]))
    assert "On average 30.0% of the heat" in told
    assert "from 20.0% (a) to 40.0% (b)" in told
    assert "1 map holds no heat" in told


def test_the_report_needs_neither_the_web_page_nor_the_grader():
    for path in (ROOT / "nestling" / "report").glob("*.py"):
        tree = ast.parse(path.read_text())
        named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not any(name.startswith(("nestling.web", "nestling.grade")) for name in named)
