"""--init begins a run from another's averaged weights; --only takes a list's images; --keep-kimg keeps weights; sets
of torchvision by name."""
import csv
import importlib
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from conftest import change, checkpoint_of, fill, options, run_here

import alae
import common
import data
import eval as evaluation

SMALL = ("--width", "64", "--batch", "64", "--seed", "3")
METHODS = {"alae": (), "lia": (), "invgan": ("--backbone", "mlp"), "faae": ("--objective", "aae")}


def train(method, *flags):
    run_here(importlib.import_module(method).main, *flags)


def measures(run):
    """mse and recip_w of the first and the last row of log.csv."""
    with open(Path(run, "log.csv"), newline="") as f:
        rows = [(row["mse"], row["recip_w"]) for row in csv.DictReader(f)]
    return rows[0], rows[-1]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_begins_from_averaged_weights(method, tmp_path, monkeypatch):
    """Its measures before the first step are the other run's last ones, and its optimisers are new."""
    monkeypatch.chdir(tmp_path)
    train(method, *SMALL, *METHODS[method], "--kimg", 0.256, "--out", "first")
    train(method, "--init", "first", "--seed", 3, "--batch", 64, "--lr", 0.0007, "--kimg", 0.064, "--out", "second")
    if method == "lia":         # stage 1 has no encoder to measure
        before = checkpoint_of(Path("first"))["state"]["ema"]
        after = checkpoint_of(Path("second"))["state"]["model"]
        assert all((after[k] - before[k]).abs().max() < 0.001 for k in before if before[k].is_floating_point())
        assert any((after[k] != before[k]).any() for k in before)
    else:
        assert measures("second")[0] == measures("first")[1] != measures("first")[0]
    args = common.read_args("second")
    assert (args["width"], args["lr"], args["init"]) == (64, 0.0007, str(tmp_path / "first"))
    assert checkpoint_of(Path("second"))["seen"] == 64
    state = checkpoint_of(Path("second"))["state"]
    steps = [int(s["step"]) for k, v in state.items() if k.startswith("opt_") for s in v["state"].values()]
    assert 1 <= max(steps) <= 2             # the first run's Adams have taken 4 or more
    train(method, "--resume", "second", "--kimg", 0.128)        # goes on from its own checkpoint
    assert checkpoint_of(Path("second"))["seen"] == 128


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_a_list_alone(method, tmp_path, monkeypatch):
    """Its images are the list's, for eval.py and --resume too.  The list may move, but not change."""
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("".join(f"{i}\n" for i in range(1000, 900, -1)))
    train(method, *SMALL, *METHODS[method], "--only", "list.txt", "--kimg", 0.064, "--out", "run")
    args = common.read_args("run")
    assert (args["train_images"], args["only"]) == (100, str(tmp_path / "list.txt"))
    train_part = evaluation.View("run", options()).train
    assert train_part.ids.tolist() == list(range(901, 1001))
    if method == "lia":
        train(method, "--stage", 2, "--decoder", "run", "--kimg", 0.128, "--batch", 64, "--out", "encoder")
        assert evaluation.View("encoder", options()).train.only == train_part.only
    Path("list.txt").rename("moved.txt")
    with pytest.raises(data.DataError, match=r"--only .*list.txt cannot be read"):
        train(method, "--resume", "run", "--kimg", 0.128)
    train(method, "--resume", "run", "--kimg", 0.128, "--only", "moved.txt")
    assert checkpoint_of(Path("run"))["seen"] == 128
    Path("moved.txt").write_text("".join(f"{i}\n" for i in range(902, 1002)))
    with pytest.raises(common.Error, match="the images of another list"):
        train(method, "--resume", "run", "--kimg", 0.192)


@pytest.mark.parametrize(("flags", "message"), [
    (["--width", "8"], "the networks of first have --width 64, not 8"),
    (["--g-end", "linear"], "have --g-end sigmoid, not linear"),
    (["--resolution", "32"], "have --resolution 28, not 32"),
    (["--data", "rgb"], "first makes images of 1x28x28, and these are 3x28x28"),
    (["--init", "nothing"], "nothing holds no run")])
def test_networks_of_another_kind_are_refused(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train("alae", *SMALL, "--kimg", 0.064, "--out", "first")
    Path("rgb").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(256, size=(28, 28, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(f"rgb/{i}.png")
    with pytest.raises(common.Error, match=message):
        train("alae", "--init", "first", "--kimg", 0.064, "--out", "second", *flags)


def test_a_run_from_before_a_flag_keeps_what_it_had(tmp_path, monkeypatch):
    """--rgb of LIA's mlp had no flag once, and was linear."""
    monkeypatch.chdir(tmp_path)
    train("lia", *SMALL, "--kimg", 0.064, "--rgb", "linear", "--out", "first")
    change(Path("first"), without=["rgb", "init", "keep_kimg"])
    train("lia", "--init", "first", "--batch", 64, "--kimg", 0.064, "--out", "second")
    assert common.read_args("second")["rgb"] == "linear"


def test_a_resumed_run_clears_away_its_own_parts_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train("alae", *SMALL, "--kimg", 0.064, "--out", "first")
    Path("first/kept").mkdir()
    Path("first/samples.zip.part").mkdir()              # which `eval.py samples` goes on with
    Path("first/kept/000001.pt.123.part").touch()
    Path("first/kept/mine.pt").touch()
    with pytest.raises(common.Error, match="it keeps the weights of these kimg: mine"):
        alae.load("first", kimg=5)
    train("alae", "--resume", "first", "--kimg", 0.128)
    assert Path("first/samples.zip.part").is_dir()
    assert not Path("first/kept/000001.pt.123.part").exists()


def test_stage_2_begins_from_its_decoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train("lia", *SMALL, "--kimg", 0.064, "--out", "first")
    with pytest.raises(common.Error, match="--init is for --stage 1"):
        train("lia", "--stage", 2, "--decoder", "first", "--init", "first")
    train("lia", "--stage", 2, "--decoder", "first", "--batch", 64, "--kimg", 0.064, "--out", "second")
    with pytest.raises(common.Error, match="second is a run of stage 2; name its run of stage 1"):
        train("lia", "--init", "second", "--out", "third")


def test_a_growing_run_begins_grown_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--backbone", "stylegan", "--resolution", 8, "--width", 256, "--batch", 4)
    train("alae", *small, "--kimg", 0.016, "--grow-kimg", 0.008, "--out", "half")
    with pytest.raises(common.Error, match="half has grown to 8 px only, alpha 0.00"):
        train("alae", "--init", "half", "--batch", 4, "--kimg", 0.004, "--out", "second")
    train("alae", *small, "--start-resolution", 8, "--kimg", 0.004, "--out", "whole")
    train("alae", "--init", "whole", "--batch", 4, "--kimg", 0.004, "--out", "third")
    assert common.read_args("third")["start_resolution"] == 8


def test_kept_weights_are_those_of_then(tmp_path, monkeypatch):
    """What a run of 2 kimg keeps at 1 is the average that a run of 1 kimg ends with."""
    monkeypatch.chdir(tmp_path)
    train("alae", *SMALL, "--kimg", 2.048, "--snapshot-kimg", 0.512, "--keep-kimg", 1, "--out", "long")
    train("alae", *SMALL, "--kimg", 1.024, "--out", "short")
    assert sorted(path.name for path in Path("long/kept").iterdir()) == ["000001.pt", "000002.pt"]
    kept, last = alae.load("long", kimg=1).state_dict(), alae.load("short").state_dict()
    assert all(kept[name].equal(last[name]) for name in last)
    assert set(torch.load("long/kept/000001.pt", weights_only=True)["state"]) == {"ema"}
    with pytest.raises(common.Error, match="long has no kept/000005.pt; it keeps the weights of these kimg: 1, 2"):
        alae.load("long", kimg=5)
    with pytest.raises(common.Error, match="keeps averaged weights alone"):
        alae.load("long", weights="raw", kimg=1)

    for run, flags in (("long", ["--kimg", "1"]), ("short", [])):
        evaluation.main(["figure", "samples", run, *flags, "--out", f"{run}.png"])
    assert Path("long.png").read_bytes() == Path("short.png").read_bytes()


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist", "emnist-letters", "mnist"])
def test_sets_of_torchvision(name, monkeypatch):
    """Letters lie on their side in their files, and count from 1; the others are as they are."""
    pixels = {True: torch.randint(256, (52, 28, 28), dtype=torch.uint8),
              False: torch.randint(256, (26, 28, 28), dtype=torch.uint8)}
    letters = name == "emnist-letters"

    class Fake:
        def __init__(self, root, train, download, **more):
            assert more == (dict(split="letters") if letters else {})
            self.data, n = pixels[train], len(pixels[train])
            self.targets = torch.arange(n) % 26 + 1 if letters else torch.arange(n) % 10
            self.classes = ["N/A", *"abcdefghijklmnopqrstuvwxyz"] if letters else [f"class {i}" for i in range(10)]

    kind = {"fashion-mnist": "FashionMNIST", "kmnist": "KMNIST", "emnist-letters": "EMNIST", "mnist": "MNIST"}[name]
    monkeypatch.setattr(torchvision.datasets, kind, Fake)
    train, test = data.load(name)
    wanted = np.swapaxes(pixels[True].numpy(), 1, 2) if letters else pixels[True].numpy()
    assert (train.pixels[:, 0].numpy() == wanted).all()
    assert (len(train), len(test), train.shape) == (52, 26, (1, 28, 28))
    assert train.labels[:3].tolist() == [0, 1, 2]
    assert train.label_names[1] == dict(mnist="1").get(name, "b" if letters else "class 1")
    assert (train.source == "mnist") == (name == "mnist")
    assert alae.parse_args(["--data", name]).backbone == "mlp"


def test_svhn(tmp_path, monkeypatch):
    """Its files, as SciPy writes them, have pixels as (H, W, C, N), and 10 for the digit 0."""
    scipy_io = pytest.importorskip("scipy.io", reason="SciPy is not installed")
    pixels = {name: torch.randint(256, (32, 32, 3, n), dtype=torch.uint8).numpy()
              for name, n in dict(train=20, test=10).items()}
    for name, x in pixels.items():
        scipy_io.savemat(tmp_path / f"{name}_32x32.mat", dict(X=x, y=np.arange(x.shape[3])[:, None] % 10 + 1))
    monkeypatch.setattr(torchvision.datasets.SVHN, "download", lambda self: None)
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    train, test = data.load("svhn", tmp_path)
    assert (len(train), len(test), train.shape) == (20, 10, (3, 32, 32))
    assert (train.take([3])[0].permute(1, 2, 0).numpy() == pixels["train"][..., 3]).all()
    assert test.take([9])[0, 2, 1, 0] == pixels["test"][1, 0, 2, 9]
    assert train.labels[[0, 8, 9]].tolist() == [1, 9, 0]
    for method in METHODS:
        assert importlib.import_module(method).parse_args(["--data", "svhn"]).backbone == "dcgan"
    for name in ("scipy", "scipy.io"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(data.DataError, match="svhn is read through scipy, which is not installed; pip install scipy$"):
        data.load("svhn", tmp_path)


def test_what_a_run_takes_over_is_named(here, capsys):
    """It is not printed as given, what is empty is not printed, and the folder's name is not longer for it."""
    fill(Path("photos"), size=(28, 28))
    run_here(alae.main, "--data", "photos", "--backbone", "mlp", *SMALL, "--kimg", 0.064, "--out", "first")
    told = capsys.readouterr().out
    assert "seed 3" in told
    assert "init" not in told
    run_here(alae.main, "--data", "photos", "--init", "first", "--batch", 64, "--kimg", 0.064)
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert lines["given"].split("  ") == ["kimg 0.064", "batch 64", f"init {here / 'first'}"]
    assert {"resolution 28", "backbone mlp", "width 64", "g_end sigmoid"} <= {*lines["of first"].split("  ")}
    assert Path("runs/alae-mlp-photos-init/args.json").exists()
    run_here(alae.main, "--data", "photos", "--init", "first", "--resolution", "28x28", "--batch", 64, "--kimg", 0.064,
             "--out", "third")
    assert common.read_args("third")["resolution"] == "28"


def test_patches_are_taken_over(here):
    fill(Path("photos"), size=(64, 64))
    small = ["--batch", 4, "--kimg", 0.004]
    run_here(importlib.import_module("invgan").main, "--data", "photos", "--backbone", "biggan", "--patches", 32,
             "--width", 64, *small, "--out", "first")
    run_here(importlib.import_module("invgan").main, "--data", "photos", "--init", "first", *small, "--out", "second")
    run_here(importlib.import_module("invgan").main, "--data", "photos", "--init", "first", *small, "--resolution", 32,
             "--out", "third")                                  # patches of smaller images
    for name, size in (("second", "64"), ("third", "32")):
        args = common.read_args(name)
        assert (args["patches"], args["image_shape"], args["resolution"]) == (32, [1, 32, 32], size)


@pytest.mark.parametrize(("method", "backbone", "size", "held"), [
    ("alae", "mlp", 28, "E.net.layer1"),
    ("alae", "dcgan", 32, "E.net.convs.0"),
    ("alae", "stylegan", 8, "E.from_rgb E.blocks.1"),
    ("lia", "stylegan", 8, "c.from_rgb c.blocks.0"),
    ("invgan", "dcgan", 32, "D.net.convs.0"),
    ("invgan", "biggan", 32, "D.net.blocks.0")])
def test_blocks_at_the_image_are_held(method, backbone, size, held, here):
    """They keep the first run's averaged weights, also when the run goes on; all other matrices move."""
    fill(Path("photos"), size=(size, size))
    flags = ["--data", "photos", "--backbone", backbone, "--width", 64, "--batch", 4]
    flags += ["--start-resolution", 8] if backbone == "stylegan" else []
    run_here(importlib.import_module(method).main, *flags, "--kimg", 0.004, "--out", "first")
    second = ["--init", "first", "--data", "photos", "--batch", 4, "--freeze-d", 1, "--kimg", 0.008, "--out", "second"]
    run_here(importlib.import_module(method).main, *second)
    run_here(importlib.import_module(method).main, "--resume", "second", "--kimg", 0.012)
    before, after = checkpoint_of(Path("first"))["state"]["ema"], checkpoint_of(Path("second"))["state"]["model"]
    weights = {k for k, v in before.items() if v.ndim in (2, 4) and "noise" not in k and "_rgb.0" not in k}  # of 4 px
    assert {k for k in weights if torch.equal(before[k], after[k])} == {
        k for k in weights if k.startswith(tuple(f"{part}." for part in held.split()))} != set()


def test_nothing_is_held_without_a_run_to_begin_from(here):
    fill(Path("photos"), size=(28, 28))
    small = ["--data", "photos", "--backbone", "mlp", *SMALL, "--kimg", 0.064]
    with pytest.raises(common.Error, match="--freeze-d keeps what --init RUN has learnt"):
        run_here(alae.main, *small, "--freeze-d", 1)
    run_here(alae.main, *small, "--out", "first")
    with pytest.raises(common.Error, match="--freeze-d 3 is too many: mlp has 2 blocks here"):
        run_here(alae.main, *small[:2], "--init", "first", "--freeze-d", 3)
