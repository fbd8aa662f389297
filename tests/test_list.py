"""`eval.py list`: every table and figure of the papers that has a command is run, on small runs of every method."""
import copy
import json
import math
import re
import shutil
import struct
import warnings

import numpy as np
import pytest
from conftest import MNIST, change, fill, fill_zip, options, run_here
from PIL import Image
from torch import nn
from torchvision.models import _api

import alae
import data
import eval as evaluation
import faae
import invgan
import lia

RUNNABLE = [item for item in evaluation.ITEMS if item.runs and item.title != "table invgan-3"]
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
        digits = () if "--decoder" in flags or "--data" in flags else ("--data", "mnist", "--data-root", folder)
        size = SMALL[6:] if "--decoder" in flags else SMALL
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
    return [evaluation.View(run, options()) for run in runs.values()]


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
        small = [] if name in ("edit", "invgan-6") else ["-n", 1 if few else 2]
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
        some = [view for view in views if not want.fits(view)]
        if some:
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

    monkeypatch.setattr(evaluation.View, "has_classes", False)
    assert missing("table alae-2", [view["alae"]]) == f"{runs['alae']}: mnist has no class labels"
    for title, names in (("table lia-2", ["inception"]), ("table alae-4", ["vgg", "lpips"])):
        assert missing(title, [view["alae"]]) == (f"{runs['alae']}: mnist has no class labels; without them, weights: "
                                                  + ", ".join(f"--{name} FILE" for name in names))
        assert missing(title, [view["alae"]], **dict.fromkeys(names, "file")) == ""
    (tmp_path / "pt_inception-2015-12-05-6726825d.pth").touch()
    item = next(item for item in evaluation.ITEMS if item.title == "table lia-2")
    assert evaluation.chosen_for(item, [view["alae"]], options(cache=tmp_path)) == ([view["alae"]], [])


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
    assert err == "error: nothing holds no run (no readable args.json); name a folder that a script made\n"
