"""`eval.py list`: every table and figure of the papers that has a command is run, on small runs of every method.  And
numbers of the tables alae-3 to alae-5, of rows of optimisation, and of the times that are said before."""
import copy
import json
import math
import re
import shutil
import struct
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import MNIST, change, fill, fill_zip, options, run_here
from PIL import Image
from torch import nn
from torchvision.models import _api

import alae
import common
import data
import eval as evaluation
import faae
import invgan
import lia

RUNNABLE = [item for item in evaluation.ITEMS if item.runs]
SMALL = ("--width", 16, "--nz", 8, "--nw", 8, "--batch", 8, "--kimg", 0.032, "--snapshot-kimg", 9)
STYLE = ("--backbone", "stylegan", "--resolution", 16, "--start-resolution", 16)


def write_mnist(folder, train, test):
    """The first digits of the bundled ones, in MNIST's own files."""
    folder.mkdir(parents=True)
    for part, images, n in zip(("train", "t10k"), MNIST((28, 28)), (train, test), strict=True):
        for kind, values in (("images-idx3", images.pixels[:n, 0]), ("labels-idx1", images.labels[:n])):
            head = struct.pack(">4B", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}i", *values.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + values.numpy().astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("list")


@pytest.fixture(scope="module")
def runs(folder):
    """Runs of every method, four steps long, on 120 digits.  -> their folders by name"""
    write_mnist(folder / "MNIST/raw", 120, 60)
    fill_zip(folder / "set.zip", 20, size=(64, 64), mode="RGB")
    fill(folder / "frames", 2, size=(64, 64), mode="RGB")
    fill(folder / "edited", 1, size=(16, 16))
    made = {}

    def make(name, method, *flags):
        inherits = {"--decoder", "--restyle"} & set(flags)
        digits = () if inherits or "--data" in flags else ("--data", "mnist", "--data-root", folder)
        size = SMALL[6:] if inherits else SMALL
        run_here(method.main, *digits, *size, *flags, "--out", folder / name)
        made[name] = folder / name
    make("alae", alae)
    make("stylealae", alae, *STYLE)
    for objective in ("faae", "aae", "bigan", "ali", "age"):
        make(objective, faae, "--backbone", "mlp", "--objective", objective)
    make("lia_1", lia, "--stage", 1)
    make("stylegan_1", lia, "--stage", 1, "--mapping", "mlp", "--adversarial", "logistic")
    make("lia_style_1", lia, "--stage", 1, *STYLE)
    make("lia", lia, "--stage", 2, "--decoder", folder / "lia_1", "--log-gradients")
    make("encoded", lia, "--stage", 2, "--decoder", folder / "stylegan_1")
    make("vae", lia, "--stage", 2, "--decoder", folder / "stylegan_1", "--inference", "vae", "--log-gradients")
    make("lia_style", lia, "--stage", 2, "--decoder", folder / "lia_style_1", "--perceptual", "critic")
    for variant in ("full", "naive", "augmented"):
        make(variant, invgan, "--variant", variant)
    make("restyle", invgan, "--restyle", folder / "full")
    make("invgan_style", invgan, *STYLE[:4])
    make("tiles", invgan, "--data", folder / "set.zip", "--backbone", "dcgan", "--patches", 32)
    evaluation.main(["boundary", str(made["lia"]), "--only", "3", "7"])
    return made


def rows_of_list(runs, path, *flags):
    evaluation.main(["list", *map(str, runs), "--json", str(path), *map(str, flags)])
    return {row["title"]: row for row in json.loads(path.read_text())}


@pytest.fixture(scope="module")
def rows(runs, folder):
    """What `list` says of all these runs, by title."""
    return rows_of_list(runs.values(), folder / "list.json")


@pytest.fixture(scope="module")
def views(runs):
    """All these runs, opened, with their sets."""
    made = [evaluation.View(run, options()) for run in runs.values()]
    assert not any(view.missing for view in made)
    return made


@pytest.fixture
def quickly(monkeypatch, folder):
    """Classifiers and distances that take little time."""
    fit = evaluation._fit
    monkeypatch.setattr(evaluation, "_fit", lambda net, n, loss_of, steps=20, batch=16: fit(net, n, loss_of, steps,
                                                                                            batch))
    monkeypatch.setattr(evaluation, "kernel_distance", lambda *_: (0.0, 0.0))
    monkeypatch.setattr(evaluation, "PATH_STEPS", 4)
    monkeypatch.setitem(_api.BUILTIN_MODELS, "tiny", lambda num_classes, **_: nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes)))
    monkeypatch.chdir(folder)


def words_of(command, folder):
    """The words of a command that `list` has spelled, as a shell gives them, with small numbers and files at hand."""
    assert command.startswith("python eval.py ")
    for said, here in (("python eval.py ", ""), ("--optimise 100", "--optimise 2 --steps 2"),
                       ("--steps 300", "--steps 2"),
                       ("EDITED", str(folder / "edited/000.png")), ("FRAMES", str(folder / "frames"))):
        command = command.replace(said, here)
    kind, name, *words = [str(path) for word in command.split() for path in (
        sorted(folder.glob(word[len(str(folder)) + 1:])) if "*" in word else [word])]
    if name == "alae-2":
        small = []
    elif name == "invgan-2" and kind == "table":
        small = ["-n", 40, "--only", 3, "--classifier", "tiny", "--epochs", 1]
    elif kind == "table":
        small = ["-n", 40]
        runs = [word for word in words if word.startswith(str(folder))]
        words = [word for word in words if word not in runs[2:]]                # two of many
    elif kind == "invert":
        small = ["-n", 2, "--steps", 2]
    else:
        few = evaluation.ALIASES.get(name) in ("traversal", "path")
        no_n = name in ("edit", "invgan-6") or evaluation.ALIASES.get(name) == "gradients"
        small = [] if no_n else ["-n", 1 if few else 2]
    return [kind, name, *words, *map(str, small)]


def numbers(tree):
    """All numbers of a JSON value."""
    if isinstance(tree, dict | list):
        return [v for branch in (tree.values() if isinstance(tree, dict) else tree) for v in numbers(branch)]
    return [tree] if isinstance(tree, float | int) else []


@pytest.mark.parametrize("item", RUNNABLE, ids=lambda item: item.title.replace(" ", "-"))
def test_every_command_runs(item, rows, folder, tmp_path, quickly, capsys):
    row = rows[item.title]
    assert row["missing"] == []
    assert row["ready"]
    assert len(row["commands"]) == 1 + len(item.also)
    for i, command in enumerate(row["commands"]):
        words = words_of(command, folder)
        if words[0] == "table":
            evaluation.main([*words, "--json", str(tmp_path / "t.json")])
            out, found = capsys.readouterr().out, numbers(json.loads((tmp_path / "t.json").read_text()))
            assert len(found) >= 2
            assert all(math.isfinite(v) for v in found)
            lines = [line for line in out.splitlines() if re.match(r"\S.*, ours\b", line)]
            assert lines
            assert all(re.search(r" -?\d+\.\d", line) for line in lines)
        else:
            with warnings.catch_warnings(action="ignore"):
                evaluation.main([*words, "--out", str(tmp_path / f"{i}.png")])
            picture = np.asarray(Image.open(tmp_path / f"{i}.png"))
            assert picture.std() > 5
            assert f"wrote {tmp_path / f'{i}.png'}" in capsys.readouterr().out


@pytest.mark.parametrize("item", RUNNABLE, ids=lambda item: item.title.replace(" ", "-"))
def test_a_run_that_is_missing_is_named(item, views):
    for want in item.runs:
        bare = copy.copy(views[0])
        bare.can = lambda abilities: False                                      # all runs here have a prior
        some = [view for view in views if not want.fits(view)] or [bare]
        _, missing = evaluation.chosen_for(item, some, options(cache=""))
        assert f"a run of {want.words}" in missing


def missing(title, views, **flags):
    item = next(item for item in evaluation.ITEMS if item.title == title)
    return "; ".join(evaluation.chosen_for(item, views, options(cache="", **flags))[1])


def test_data_and_weights_that_are_missing_are_named(runs, views, tmp_path, monkeypatch):
    """Labels, or weights in their place; boundaries; gradients; pictures in common; a set that has moved."""
    view = dict(zip(runs, views, strict=True))
    moved = shutil.copytree(runs["stylealae"], tmp_path / "moved")
    moved = evaluation.View(change(moved, data_root=str(tmp_path)), options())
    monkeypatch.setattr(evaluation.data, "_torchvision", fails)
    assert "MNIST is not there" in missing("figure alae-5", [moved])
    assert missing("figure alae-6", [moved]) == ""                              # samples need no images
    shutil.copytree(runs["lia"], tmp_path / "lia")
    (tmp_path / "lia/gradients.csv").unlink()
    shutil.rmtree(tmp_path / "lia/boundaries")
    lia_alone = copy.copy(view["lia"])
    lia_alone.run = tmp_path / "lia"
    assert missing("figure lia-4", [lia_alone]).startswith(f"boundaries: python eval.py boundary {tmp_path}/lia makes")
    assert "has no gradients.csv; train stage 2" in missing("figure lia-7", [lia_alone, view["vae"]])
    small = copy.copy(view["aae"])
    small.shape = (1, 14, 14)
    assert missing("figure faae-5", [view["faae"], small]) == "a run of AAE (--objective aae)"     # not of that size
    assert missing("figure faae-5", [view["faae"], small, view["aae"]]) == ""

    item = next(item for item in evaluation.ITEMS if item.title == "table lia-2")
    with monkeypatch.context() as m:                                            # one of two has labels
        m.setattr(evaluation.View, "has_classes", property(lambda self: self.run == runs["alae"]))
        assert evaluation.chosen_for(item, [view["aae"], view["alae"]], options(cache="")) == ([view["alae"]], [])
    monkeypatch.setattr(evaluation.View, "has_classes", False)
    assert missing("table alae-2", [view["alae"]]) == f"{runs['alae']}: mnist has no class labels"
    for title, names in (("table lia-2", ["inception"]), ("table alae-4", ["vgg", "lpips"])):
        assert missing(title, [view["alae"]]) == (f"{runs['alae']}: mnist has no class labels; without them, weights: "
                                                  + ", ".join(f"--{name} FILE" for name in names))
        assert missing(title, [view["alae"]], **dict.fromkeys(names, "file")) == ""
    (tmp_path / "pt_inception-2015-12-05-6726825d.pth").touch()
    assert evaluation.chosen_for(item, [view["alae"]], options(cache=tmp_path)) == ([view["alae"]], [])
    for flags, shown in ((("--inception", "i"), "--inception i"), ((), "--features inception")):    # else by classes
        args = evaluation.parse_args(["list", "--cache", "here", *flags])
        assert evaluation.spelled("table lia-2 RUN", [view["alae"]], args) == (
            f"python eval.py table lia-2 {runs['alae']} --cache here {shown}")
        assert evaluation.spelled("table alae-2 RUN", [view["alae"]], args) == (
            f"python eval.py table alae-2 {runs['alae']} --cache here")


def fails(*_):
    raise data.DataError("MNIST is not there")


def test_list_as_text(runs, folder, script, capsys):
    """Every number of the papers once, in 120 columns; commands with a space or a flag are for the shell to take."""
    evaluation.main(["list"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    for paper, tables, figures in (("alae", 5, 9), ("lia", 2, 19), ("invgan", 3, 8), ("faae", 0, 9)):
        for kind, most in (("table", tables), ("figure", figures)):
            found = re.findall(rf"^{kind} {paper}-(\d+) ", out, re.MULTILINE)
            assert [int(number) for number in found] == [*range(1, most + 1)]
    for text in ("[diagram]", "[words, nothing to run]", "runs of BiGAN (--objective bigan), ALAE (--backbone mlp)",
                 *evaluation.MEASURES, *evaluation.FIGURES, "interpolate"):
        assert text in out
    assert {item.draws for item in evaluation.ITEMS} <= {"", *evaluation.FIGURES}
    spaced = shutil.copytree(runs["alae"], folder / "a run")
    evaluation.main(["list", str(spaced), "--data-root", str(folder)])
    out = capsys.readouterr().out
    assert f"ready: python eval.py figure alae-4 '{spaced}' --data-root {folder}" in out
    assert "missing: a run of BiGAN (--objective bigan)" in out
    shutil.rmtree(spaced)
    err = script("eval.py", "list", runs["alae"], "nothing", code=2).stderr
    assert err == "error: nothing holds no run (there is no such folder); name a folder that a script made\n"


# ----------------------------------------------------- tables alae-3 to 5, rows of optimisation, times, on Dummy's G

class Four(evaluation.Classifier):
    """Features that are the means of the quarters of an image."""
    d, batch, official, name, title, checksum = 4, 500, False, "four", "Frechet (four)", "0"

    def __init__(self):
        super(evaluation.Classifier, self).__init__()

    def features(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture
def four(monkeypatch):
    monkeypatch.setattr(evaluation, "extractor_of", lambda *_: Four())
    monkeypatch.setattr(evaluation, "kernel_distance", lambda *_: (0.0, 0.0))


def moments(x):
    f = Four().features(x).double()
    return f.mean(0), f.T.cov()


def test_distances_to_some_images_half_of_them_flipped(dummy, tmp_path):
    view = evaluation.View(dummy("run"), options())
    x = view.images(evaluation.scattered(10_000, 50), "train")
    flipped = np.random.RandomState(3).rand(50) < 0.5
    assert 10 < flipped.sum() < 40
    for flip in (None, 3):
        for _ in range(2):                                                      # counted, then read
            (mean, covariance), kept = evaluation.reference(view, Four(), tmp_path, most=50, flip=flip)
            torch.testing.assert_close((mean, covariance), moments(x), rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(kept, Four().features(x))
        x = torch.where(torch.from_numpy(flipped)[:, None, None, None], x.flip(3), x)
    assert len(list(tmp_path.glob("reference-*.pt"))) == 2


def test_table_alae_3(dummy, four, tmp_path, capsys):
    run = str(dummy("run", dim=0.5))
    view = evaluation.View(run, options())
    samples = view.model.generate(view.model.map(view.codes(60, 0)))
    train = view.images(evaluation.scattered(10_000, 60), "train")
    for sources, x in (("test", view.images(range(60))), ("train", train)):
        for most in (0, 80):
            real = moments(view.images(evaluation.scattered(10_000, most or 10000), "train"))
            rows = evaluation.table_alae_3([run], options(cache=str(tmp_path), n=60, sources=sources, reference_n=most))
            out = capsys.readouterr().out
            generation, reconstruction = rows.values()
            key = "mnist-mini, Frechet (four)"
            assert generation[key] == pytest.approx(evaluation.frechet(moments(samples), real), rel=1e-3)
            assert reconstruction[key] == pytest.approx(evaluation.frechet(moments(0.5 * x), real), rel=1e-3)
            assert ("against 80 of 10,000 training images" if most else "against 10,000 training images") in out
            for label in ("generation, 60 to train, ours", f"reconstruction, 60 of {sources} to train, ours"):
                assert re.search(rf"^Dummy {label} +- +- +\d+\.\d\d", out, re.MULTILINE)
    assert re.search(r"^StyleALAE reconstruction, paper +16.52 +15.92 +-$", out, re.MULTILINE)
    assert re.search(r"^PGGAN \(quoted\), paper +- +8.34", out, re.MULTILINE)


def test_tables_alae_4_and_5(dummy, four, tmp_path, capsys):
    """G(w) = w / 2 and map(z) = z / 2, so along W a step of epsilon moves the image by epsilon (b - a) / 4."""
    run = str(dummy("run", dim=0.5))
    view = evaluation.View(run, options())
    a, b = view.codes(400, 0)[0::2], view.codes(400, 0)[1::2]
    length = Four().features((b - a).view(-1, 1, 28, 28) / 4).square().mean(1).sort().values[1:-1].mean().item()
    args = options(cache=str(tmp_path), n=200)
    in_z, in_w = evaluation.table_alae_4([run], args).values()
    assert in_w["full, PPL by four"] == pytest.approx(length, rel=0.1)
    assert in_w["end, PPL by four"] == pytest.approx(length, rel=0.1)
    assert in_z["full, PPL by four"] > 0
    out = capsys.readouterr().out
    assert re.search(r"^StyleALAE, W, paper +134.5 +103.4", out, re.MULTILINE)
    assert re.search(r"^StyleGAN, Z \(quoted\), paper +412.0 +lost", out, re.MULTILINE)
    assert "Dummy, W, 200 pairs, ours" in out
    assert "PPL by four: about 0m0" in out[:out.index("StyleGAN")]                        # before anything is shown
    row = evaluation.table_alae_5([run], args)[run]
    assert row["PPL full, PPL by four"] == in_w["full, PPL by four"]
    samples = view.model.generate(view.model.map(view.codes(200, 0)))
    real = moments(view.images(range(10000), "train"))
    assert row["Frechet (four)"] == pytest.approx(evaluation.frechet(moments(samples), real), rel=1e-3)
    assert re.search(r"^StyleALAE, paper +19.21 +33.29", capsys.readouterr().out, re.MULTILINE)


def test_path_lengths_by_lpips_where_its_weights_are_named(dummy, monkeypatch):
    view, asked = evaluation.View(dummy("run"), options()), []
    monkeypatch.setattr(evaluation, "lpips_of", lambda *_: asked.append(1))
    for flags in (dict(features="inception"), dict(lpips="heads.pth")):
        evaluation.paths_by(view, options(**flags))
    assert len(asked) == 2


def test_rows_of_optimisation(dummy, four, tmp_path, monkeypatch, capsys):
    """G dims by 0.7 and E keeps: a descent finds x / 0.7, in-domain what both agree on; once for all measures."""
    run, optimise, whole = str(dummy("run", dim=0.7)), evaluation.optimise, []

    def counted(view, x, space, distance, steps, *rest, **more):
        whole.append(len(x) if steps == 400 else 0)
        return optimise(view, x, space, distance, steps, *rest, **more)
    monkeypatch.setattr(evaluation, "optimise", counted)
    x = evaluation.View(run, options()).images(range(5))
    args = options(cache=str(tmp_path), n=60, optimise=5, steps=400)
    encoder, descent = evaluation.table_lia_1([run], args).values()
    assert sum(whole) == 5
    assert encoder["label"] == "Dummy"
    assert encoder["MSE x1000"] > 10 > 0.1 > descent["MSE x1000"]
    assert descent["label"] == "MSE-based optimization, 5 images"
    assert "400 steps of Adam, lr 0.01, in w, from the mean w, loss pixel" in descent["protocol"]
    assert "5 of 2,000 test images" in descent["protocol"]
    out = capsys.readouterr().out
    assert re.search(r"^  optimisation of 5 images: about \d+m\d\ds$", out, re.MULTILINE)
    assert re.search(r"^MSE-based optimization, 5 images, ours ", out, re.MULTILINE)

    encoder, domain, descent = evaluation.table_invgan_1([run], args).values()
    agreed = 0.7 * x / (0.7**2 + 2 * 0.3**2)                    # least (0.7 w - x)^2 + 2 (w - 0.7 w)^2
    assert domain["MAE"] == pytest.approx((0.7 * agreed.clamp(-1 / 0.7, 1 / 0.7) - x).abs().mean().item(), abs=0.005)
    assert descent["MAE"] < 0.01
    assert domain["label"] == "Dummy In-D. Inv., 5 images"
    assert set(domain) - set(descent) == {"RandRec, Frechet (four)", "IntTs, Frechet (four)"}
    assert descent["s an image"] > 0


def test_a_generator_alone_has_a_row_of_optimisation(dummy, four, tmp_path, monkeypatch):
    run = str(dummy("run"))
    monkeypatch.delattr(sys.modules["dummy"].Dummy, "encode")
    args = options(cache=str(tmp_path), n=20, optimise=3, steps=2)
    (row,) = evaluation.table_lia_1([run], args).values()
    assert row["label"] == "MSE-based optimization, 3 images"
    args.optimise = 0
    with pytest.raises(evaluation.Lacks, match="has no 'encode'"):
        evaluation.table_lia_1([run], args)


def test_an_autoencoder_has_no_row_of_optimisation(dummy, four, tmp_path, monkeypatch):
    run = str(dummy("run"))
    monkeypatch.delattr(sys.modules["dummy"].Dummy, "prior")
    (row,) = evaluation.table_lia_1([run], options(cache=str(tmp_path), n=20, optimise=3, steps=2)).values()
    assert row["label"] == "Dummy"


def test_times_are_measured(dummy, monkeypatch):
    """By a clock that an image moves by half a second; a step of a descent by 3, after 100 of preparation."""
    view, now = evaluation.View(dummy("run"), options()), [0.0]

    def pass_by(seconds):
        now[0] += seconds
    monkeypatch.setattr(evaluation, "clock", lambda view: now[0])
    assert evaluation.seconds_of(view, 100, 10, lambda begin, end: pass_by((end - begin) / 2))[0] == 50
    assert evaluation.seconds_of(view, 3, 10, lambda begin, end: pass_by((end - begin) / 2))[0] == 1.5
    assert evaluation.seconds_of_steps(view, lambda steps: pass_by(100 + 3 * steps), 200, 4) == 3 * 200 * 4


def test_flags_of_tables(dummy):
    run = dummy("run")
    for flags, message in ((("lia-2", "--optimise", 3), "--optimise is for table lia-1, invgan-1"),
                           (("lia-1", "--steps", 3), "--steps is of the rows by --optimise N"),
                           (("lia-1", "--flip"), "--flip is for table alae-3, alae-5"),
                           (("alae-3", "--face-crop"), "--face-crop is for table alae-4, alae-5"),
                           (("alae-2", "-n", 5), "-n changes nothing in table alae-2"),
                           (("alae-2", "--inception", "i.pth"), "--inception changes nothing in table alae-2"),
                           (("lia-2", "--vgg", "v.pth"), "--vgg is of --features vgg16, --lpips and in-domain rows"),
                           (("alae-4", "--lpips", "l", "--features", "digits"), "in place of --features digits; leave"),
                           (("alae-3", "--inception", "i", "--features", "digits"), "--inception is of no use with"),
                           (("invgan-2", "--features", "vgg16"), "--features changes nothing in table invgan-2")):
        with pytest.raises(common.Error, match=message):
            evaluation.main(["table", flags[0], str(run), *map(str, flags[1:])])
