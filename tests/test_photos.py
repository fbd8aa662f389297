"""Photos, codes and films as files: eval.py's samples, encode, decode, interpolate; models in Python and exported."""
import csv
import json
import os
import re
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TWO, change, fill, picture, tiny
from PIL import Image

import alae
import common
import data
import eval as evaluation
import invgan
import lia


def run_of(folder, method, *flags, seed=0):
    """A run folder of narrow, untrained networks."""
    args, model, _ = tiny(method, *flags)
    torch.manual_seed(seed)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    stored = dict(vars(args), method=method.__name__, label="Tiny", image_shape=[*args.image_shape], train_images=10000,
                  versions=dict(torch="0", code="unknown"), precision="fp32")
    stored |= {name: 1.0 for name in ("kimg", "grow_kimg", "snapshot_kimg") if name in stored} | dict(batch=8, lr=0.001)
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps(stored))
    torch.save(dict(args=stored, seen=1000, state=dict(ema=model.state_dict(), model=model.state_dict())),
               folder / "checkpoint.pt")
    return folder


@pytest.fixture
def run(tmp_path):
    """Of ALAE's MLP, 28x28."""
    return run_of(tmp_path / "run", alae)


@pytest.fixture
def style(tmp_path):
    """Of StyleALAE, 8x8 and grey."""
    return run_of(tmp_path / "style", alae, "--backbone", "stylegan")


@pytest.fixture
def photos(tmp_path):
    return fill(tmp_path / "photos", 5, size=(50, 40), mode="RGB")


def evaluate(*words):
    evaluation.main([str(word) for word in words])


def shown(path):
    return np.array(Image.open(path))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}


# ---------------------------------------------------------------------------------------------------- samples

@pytest.mark.parametrize("noise", ["fixed", "random"])
def test_a_seed_is_a_picture(style, tmp_path, noise):
    """Whatever -n, --seeds and what was there before."""
    evaluate("samples", style, "--out", tmp_path / "a", "-n", 70, "--noise", noise)
    evaluate("samples", style, "--out", tmp_path / "b", "--seeds", "69,3,40-42", "--noise", noise)
    whole, some = files(tmp_path / "a"), files(tmp_path / "b")
    assert sorted(whole) == [f"seed{i:04d}.png" for i in range(70)]
    assert {name: whole[name] for name in some} == some
    assert len(some) == 5
    assert len({*whole.values()}) == 70
    view = evaluation.View(style, evaluation.Namespace(device=torch.device("cpu"), weights="", data="", data_root=""))
    z = view.model.prior(1, common.generator(torch.device("cpu"), 41, "evaluation"))
    if noise == "fixed":
        x = view.model.generate(view.model.map(z), noise="fixed")
        assert np.abs(shown(tmp_path / "a" / "seed0041.png") - common.to_uint8(x)[0, 0].numpy().astype(int)).max() <= 1


def test_samples_go_on(run, tmp_path, capsys):
    evaluate("samples", run, "--out", tmp_path / "a", "-n", 40)
    whole = files(tmp_path / "a")
    for i in range(10, 40):
        (tmp_path / "a" / f"seed{i:04d}.png").unlink()
    (tmp_path / "a" / "seed0001.png").write_bytes(b"mine")
    evaluate("samples", run, "--out", tmp_path / "a", "-n", 40)
    assert "10 of 40 pictures are" in capsys.readouterr().out
    assert files(tmp_path / "a") == {**whole, "seed0001.png": b"mine"}
    for flags in (["--noise", "none"], ["--weights", "raw"]):
        with pytest.raises(common.Error, match="holds samples of something else"):
            evaluate("samples", run, "--out", tmp_path / "a", "-n", 41, *flags)
    change(run, seed=1)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    state["state"]["ema"]["G.layer1.bias"] += 1
    torch.save(state, run / "checkpoint.pt")
    with pytest.raises(common.Error, match="holds samples of something else .*digest"):
        evaluate("samples", run, "--out", tmp_path / "a", "-n", 41)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_samples(run, tmp_path, monkeypatch, world):
    """What each of several processes writes, one after the other, is what one writes."""
    evaluate("samples", run, "--out", tmp_path / "one", "-n", 100)
    shares = []
    monkeypatch.setattr(evaluation.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(evaluation.dist, "barrier", lambda: None)
    monkeypatch.setattr(evaluation.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(evaluation.dist, "get_world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(evaluation.dist, "get_rank", lambda rank=rank: rank)
        before = set(files(tmp_path / "many")) if shares else set()
        monkeypatch.setattr(evaluation, "os", SimpleNamespace(
            **{**vars(os), "scandir": lambda folder: iter(())}))                      # as if all looked at once
        evaluate("samples", run, "--out", tmp_path / "many", "-n", 100)
        monkeypatch.undo() if rank == world - 1 else None
        shares.append({*files(tmp_path / "many")} - before)
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert all(shares)
    assert sum(map(len, shares)) == 100


def test_zip_of_samples(run, tmp_path, capsys):
    """As dataset_tool.py of StyleGAN writes it, the same bytes each time; training reads it."""
    evaluate("samples", run, "--out", tmp_path / "a.zip", "--seeds", "0-3,1000")
    evaluate("samples", run, "--out", tmp_path / "b.zip", "--seeds", "0-3,1000")
    evaluate("samples", run, "--out", tmp_path / "folder", "--seeds", "0-3,1000")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as z:
        assert z.namelist() == [*(f"00000/img0000000{i}.png" for i in range(4)), "00001/img00001000.png",
                                "dataset.json"]
        assert {entry.compress_type for entry in z.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(z.read("dataset.json")) == {"labels": None}
        assert z.read("00001/img00001000.png") == (tmp_path / "folder" / "seed1000.png").read_bytes()
    train, test = data.load(str(tmp_path / "a.zip"))
    assert train.shape == (1, 16, 16)
    assert len(train) + len(test) == 5
    assert train.labels is None
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(common.Error, match="is there already"):
        evaluate("samples", run, "--out", tmp_path / "a.zip", "-n", 3)


def test_truncation_of_samples(style, tmp_path):
    evaluate("samples", style, "--out", tmp_path / "a", "-n", 2, "--truncation", "1e-9", "--truncation-layers", 99)
    evaluate("samples", style, "--out", tmp_path / "b", "-n", 2)
    (a, a2), (b, b2) = ([*files(tmp_path / name).values()] for name in "ab")
    assert a == a2 != b
    assert b != b2


@pytest.mark.parametrize(("text", "seeds"), [("0,1,4-6", [0, 1, 4, 5, 6]), ("7", [7]), ("3-3,2", [3, 2])])
def test_seeds_as_the_stylegan_tools_read_them(text, seeds):
    assert evaluation.seed_ranges(text) == seeds


@pytest.mark.parametrize("text", ["", "3-1", "a", "1-", "-1", "1,,2", "0-99999999", str(2**32)])
def test_seeds_that_are_none(run, text, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate("samples", run, "--out", tmp_path / "a", f"--seeds={text}")
    assert re.fullmatch(r"error: [^\n]*--seeds[^\n]*\n", capsys.readouterr().err)


# ------------------------------------------------------------------------------------------------- encode, decode

def test_encode_then_decode_is_figure_reconstructions(run, photos, tmp_path, capsys):
    """To the bit; and each array is what it should be."""
    evaluate("encode", run, photos, "--out", tmp_path / "codes.npz", "--reconstruct", tmp_path / "pairs")
    evaluate("decode", run, tmp_path / "codes.npz", "--out", tmp_path / "made")
    evaluate("figure", "reconstructions", run, "--images", photos, "--labels=off", "--out", tmp_path / "figure.png")
    figure, both = shown(tmp_path / "figure.png")[:, :, 0], capsys.readouterr().out
    model = alae.load(run)
    x = common.to_float(data.read_images([photos], 1, (28, 28)))
    before = (photos / "000.png").read_bytes()
    with pytest.raises(common.Error, match="would write over the images themselves"):
        evaluate("encode", run, photos, "--out", tmp_path / "c.npz", "--reconstruct", photos)
    assert (photos / "000.png").read_bytes() == before
    with np.load(tmp_path / "codes.npz") as codes:
        assert {*codes.files} == {"w", "names", "run"}
        assert codes["w"].dtype == np.float32
        assert np.array_equal(codes["w"], model.encode(x).numpy())
        assert list(codes["names"]) == [f"{photos}/{i:03d}.png" for i in range(5)]
        about = json.loads(str(codes["run"]))
        assert (about["method"], about["run"], about["kimg"]) == ("alae", "run", 1.0)
    for i in range(5):
        made = shown(tmp_path / "made" / f"{i:03d}.png")
        left = 2 + 30 * i
        assert np.array_equal(made, figure[32:60, left:left + 28])
        assert np.array_equal(shown(tmp_path / "pairs" / f"{i:03d}.png"), np.concatenate([figure[2:30, left:left + 28],
                                                                                          made], 1))
    y = common.reconstruct(model, x)
    mean = data.load("mnist-mini")[0].pixels.double().mean(0) / 127.5 - 1
    expected = torch.stack([(y - x).square().mean((1, 2, 3)), (y - x).abs().mean((1, 2, 3)),
                            (mean - x).square().mean((1, 2, 3)), (y - x.roll(-1, 0)).square().mean((1, 2, 3))], 1)
    with open(tmp_path / "pairs" / "errors.csv", newline="") as f:
        head, *table = csv.reader(f)
    assert head == ["name", "mse", "mae", "mse_mean_image", "mse_wrong_pair"]
    np.testing.assert_allclose(np.array([row[1:] for row in table], float), expected.numpy(), rtol=1e-4)
    assert f"MSE {expected[:, 0].mean():.4f} " in both
    evaluate("decode", run, tmp_path / "codes.npz", "--out", tmp_path / "made")
    assert "5 pictures (5 over older ones)" in capsys.readouterr().out


def test_batches_and_processes_of_encode(run, photos, tmp_path, script, monkeypatch):
    """Codes and errors are the same in batches of 2, and on two processes."""
    for name, batch in (("a", 250), ("b", 2)):
        monkeypatch.setattr(common, "few", lambda shape, batch=batch: batch)
        evaluate("encode", run, photos, "--out", tmp_path / f"{name}.npz", "--reconstruct", tmp_path / name)
    monkeypatch.undo()
    script("eval.py", "encode", run, photos, "--out", "c.npz", "--reconstruct", "c", launcher=TWO)
    a, b, c = (np.load(tmp_path / f"{name}.npz") for name in "abc")
    np.testing.assert_allclose(a["w"], b["w"], atol=1e-5)
    assert np.array_equal(a["w"], c["w"])
    assert files(tmp_path / "a") == files(tmp_path / "c")
    errors = [np.genfromtxt(tmp_path / name / "errors.csv", delimiter=",", skip_header=1)[:, 1:] for name in "abc"]
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-4)
    assert np.array_equal(errors[0], errors[2])


def test_z_and_its_way_back(tmp_path, photos):
    """LIA has an exact inverse, and so z: decoded, it gives what w gives."""
    folder = change(run_of(tmp_path / "lia", lia), stage="2")
    view = evaluation.View(folder, evaluation.Namespace(device=torch.device("cpu"), weights="", data="", data_root=""))
    z = evaluation.codes_of_seeds(view, [3, 4])
    w = view.model.map(z)
    torch.testing.assert_close(view.model.unmap(w), z, rtol=1e-3, atol=1e-3)
    np.savez(tmp_path / "own.npz", z=z, w=w)
    evaluate("decode", folder, tmp_path / "own.npz", "--out", tmp_path / "z", "--space", "z")
    evaluate("decode", folder, tmp_path / "own.npz", "--out", tmp_path / "w")
    assert files(tmp_path / "z") == files(tmp_path / "w")
    evaluate("encode", folder, photos, "--out", tmp_path / "codes.npz")
    with np.load(tmp_path / "codes.npz") as codes:
        assert np.array_equal(codes["z"], view.model.unmap(torch.tensor(codes["w"])).numpy())
        assert not np.allclose(codes["z"], codes["w"], atol=0.1)
    evaluate("interpolate", folder, tmp_path / "codes.npz", "--space", "z", "--frames", 5, "--out", tmp_path / "film")
    evaluate("decode", folder, tmp_path / "codes.npz", "--space", "z", "--out", tmp_path / "made")
    for a, b in zip(*(sorted((tmp_path / name).iterdir()) for name in ("film", "made")), strict=True):
        assert np.abs(shown(a).astype(int) - shown(b)).max() <= 1


def test_decode_takes_arrays_of_numpy(style, tmp_path):
    model = alae.load(style)
    w = np.random.default_rng(0).standard_normal((3, 8))
    layered = np.repeat(w[:, None], model.num_layers, 1)
    np.save(tmp_path / "w.npy", w)
    np.savez(tmp_path / "unnamed.npz", layered)
    for name in ("w.npy", "unnamed.npz"):
        evaluate("decode", style, tmp_path / name, "--out", tmp_path / name.partition(".")[0])
    made = files(tmp_path / "w")
    assert sorted(made) == [f"code{i:04d}.png" for i in range(3)]
    assert made == files(tmp_path / "unnamed")
    x = common.to_uint8(model.generate(torch.tensor(w).float(), noise="fixed"))
    assert np.array_equal(shown(tmp_path / "w" / "code0002.png"), x[2, 0])


@pytest.mark.parametrize(("array", "words"), [
    (np.zeros((2, 9)), "numbers of (N, 8)"), (np.array(["a"]), "numbers of (N, 8)"), (np.zeros((0, 8)), "(0, 8)"),
    (np.full((2, 8), np.nan), "not finite"), (np.zeros((2, 2, 8)), "(2, 2, 8)"),
    (np.array([{}], object), "holds no arrays of numbers")])
def test_arrays_that_are_no_codes(run, tmp_path, array, words):
    np.save(tmp_path / "codes.npy", array)
    with pytest.raises(common.Error, match=re.escape(words)):
        evaluate("decode", run, tmp_path / "codes.npy", "--out", tmp_path / "made")


def test_a_lone_array_is_taken_by_its_name(run, tmp_path):
    """z is not read as w; an array of another name is, such as numpy's arr_0."""
    np.savez(tmp_path / "codes.npz", z=np.zeros((2, 8), np.float32))
    with pytest.raises(common.Error, match="has no array 'w', only z; add it; decode and interp"):
        evaluate("decode", run, tmp_path / "codes.npz", "--out", tmp_path / "made")
    for lone in (dict(arr_0=np.zeros((2, 8))), dict(mine=np.zeros((3, 8)))):
        np.savez(tmp_path / "codes.npz", **lone)
        evaluate("decode", run, tmp_path / "codes.npz", "--out", tmp_path / "made", "--force")
    assert len(files(tmp_path / "made")) == 3
    with zipfile.ZipFile(tmp_path / "codes.npz", "w") as z:
        z.writestr("w", "no numbers")
    with pytest.raises(common.Error, match=r"numbers of \(N, 8\)"):
        evaluate("decode", run, tmp_path / "codes.npz", "--out", tmp_path / "made")


def test_codes_belong_to_a_run(run, photos, tmp_path):
    evaluate("encode", run, photos, "--out", tmp_path / "codes.npz")
    other = run_of(tmp_path / "other", alae, seed=1)
    with pytest.raises(common.Error, match="holds codes of run at 1.0 kimg"):
        evaluate("decode", other, tmp_path / "codes.npz", "--out", tmp_path / "made")
    evaluate("decode", other, tmp_path / "codes.npz", "--out", tmp_path / "made", "--force")
    assert len(files(tmp_path / "made")) == 5


def test_codes_whose_run_is_no_dict(run, tmp_path):
    np.savez(tmp_path / "codes.npz", w=np.zeros((2, 8), np.float32), run=np.array('["mine"]'))
    with pytest.raises(common.Error, match="its array run is not as `eval.py encode` writes it; take it out"):
        evaluate("decode", run, tmp_path / "codes.npz", "--out", tmp_path / "made")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.TGZ", "a.7z"])
def test_archives_that_are_not_written(run, tmp_path, name):
    with pytest.raises(common.Error, match="is no archive that is written here; name a .zip or a folder"):
        evaluate("samples", run, "--out", tmp_path / name, "-n", 1)
    assert not (tmp_path / name).exists()


def test_one_good_photo_has_no_wrong_pair(run, photos, tmp_path, capsys):
    """Left alone by --skip-bad it would be its own; the last of two is paired with the first."""
    good = (photos / "000.png").read_bytes()
    for broken, wrong in (("1234", [False]), ("234", [True, True]), ("0234", [False]), ("023", [True, True])):
        for i in range(5):
            (photos / f"00{i}.png").write_bytes(good + bytes(i))
        for i in broken:
            (photos / f"00{i}.png").write_bytes(good[:99])
        evaluate("encode", run, photos, "--out", tmp_path / "c.npz", "--reconstruct", tmp_path / "out", "--skip-bad")
        with open(tmp_path / "out" / "errors.csv", newline="") as f:
            assert [bool(row["mse_wrong_pair"]) for row in csv.DictReader(f)] == wrong, broken
        assert (", - of wrong pairs" in capsys.readouterr().out) == (wrong == [False])


def test_photos_that_are_inverted_are_noted(run, tmp_path, capsys):
    """The bundled digits' mean greys are 9 to 56, and half of that width around it is near."""
    train, test = data.load("mnist-mini")
    change(run, image_means=train.means())
    (tmp_path / "digits").mkdir()
    for i, x in enumerate(test.take(range(7))[:, 0].numpy()):
        Image.fromarray(x if i < 3 else 255 - x).save(tmp_path / "digits" / f"{i}.png")
    evaluate("encode", run, *sorted((tmp_path / "digits").iterdir())[:6], "--out", tmp_path / "c.npz")
    assert "note" not in capsys.readouterr().out                        # three of six
    evaluate("encode", run, tmp_path / "digits", "--out", tmp_path / "c.npz")
    assert re.search(r"note: \S+ was trained on \S+, and makes nothing else; "
                     r"4 of 7 images have a mean grey of 2\d\d, and the training images' is 9 to 56 \(of 255\)",
                     capsys.readouterr().out)
    for words in (("figure", "reconstructions", run, "--images", tmp_path / "digits", "--out", tmp_path / "f.png"),
                  ("interpolate", run, tmp_path / "digits", "--out", tmp_path / "f.gif", "--frames", 2)):
        evaluate(*words)
        assert "makes nothing else; 4 of 7 images have a mean grey of" in capsys.readouterr().out
    assert evaluation.unusual(np.array([79.0]), train.means()) == ""
    assert evaluation.unusual(np.array([80.0]), train.means()).endswith("badly; if they show the same things, change "
                                                                        "their brightness first")
    assert evaluation.unusual(np.array([200.0]), train.means()).endswith("things, invert them first, for example by "
                                                                         "PIL.ImageOps.invert")
    assert evaluation.unusual(np.array([255.0]), "") == ""              # of public weights nothing is known


def test_names_of_pictures():
    """Of codes that another may have made: no folder is left, and no two are alike."""
    names = ["a/b.jpg", "c/b.png", "../../etc/passwd", "..", "C:\\x\\B.jpg", "é 1.png", "a:b?.png", ""]
    made = evaluation.file_names(names)
    assert made[:3] == ["b", "b-2", "passwd"]
    assert made[4:7] == ["B-3", "é 1", "a_b_"]
    assert all(name and not name.startswith(".") and "/" not in name for name in made)
    assert len({name.lower() for name in made}) == len(names)


# -------------------------------------------------------------------------------------------------------- odd photos

SCENE = np.zeros((40, 40), np.uint8)
SCENE[:20, :20] = 255               # white at the top left


def odd(folder):
    """-> {name: file of the scene, or of one that no reader can take}"""
    scene = Image.fromarray(SCENE)
    turned = Image.Exif()
    turned[0x0112] = 6                                                              # shown turned by 90 degrees
    scene.transpose(Image.Transpose.ROTATE_90).convert("RGB").save(folder / "exif.jpg", exif=turned, quality=95)
    scene.convert("RGB").convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(SCENE.astype(np.uint16) * 257).save(folder / "deep.png")
    scene.convert("P").save(folder / "palette.png")
    scene.save(folder / "moving.gif", save_all=True, append_images=[Image.fromarray(255 - SCENE)])
    see_through = np.stack([np.zeros_like(SCENE)] * 3 + [255 - SCENE], 2)             # black; the white is a hole
    Image.fromarray(see_through, "RGBA").save(folder / "transparent.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("how", ["files", "folder"])
def test_odd_photos_are_upright(run, tmp_path, how):
    (tmp_path / "odd").mkdir()
    paths = odd(tmp_path / "odd")
    assert len(paths) == 6
    evaluate("encode", run, *(paths if how == "files" else [tmp_path / "odd"]), "--out", tmp_path / "codes.npz",
             "--reconstruct", tmp_path / "pairs")
    for path in paths:
        seen = shown(tmp_path / "pairs" / f"{path.stem}.png")[:, :28].astype(int)
        expected = np.kron([[255, 0], [0, 0]], np.ones((14, 14)))
        assert np.abs(seen - expected).mean() < 3, path


def test_photos_of_odd_sizes(run, tmp_path):
    """One pixel fills the picture; of a strip 10,000 px wide the middle is taken."""
    Image.new("L", (1, 1), 200).save(tmp_path / "dot.png")
    strip = np.zeros((20, 10_000), np.uint8)
    strip[:, 4990:5010] = 255
    Image.fromarray(strip).save(tmp_path / "strip.png")
    evaluate("encode", run, tmp_path / "dot.png", tmp_path / "strip.png", "--out", tmp_path / "codes.npz",
             "--reconstruct", tmp_path / "pairs")
    assert (shown(tmp_path / "pairs" / "dot.png")[:, :28] == 200).all()
    assert (shown(tmp_path / "pairs" / "strip.png")[:, :28] == 255).all()


@pytest.mark.parametrize("how", ["file", "folder"])
def test_truncated_photos_are_named(run, photos, tmp_path, how, capsys):
    whole = (photos / "002.png").read_bytes()
    (photos / "002.png").write_bytes(whole[:len(whole) // 2])
    paths = [photos] if how == "folder" else sorted(photos.iterdir())
    with pytest.raises(data.DataError, match=r"^[^\n]*photos/002.png cannot be read[^\n]*$"):
        evaluate("encode", run, *paths, "--out", tmp_path / "codes.npz")
    assert not (tmp_path / "codes.npz").exists()
    evaluate("encode", run, *paths, "--out", tmp_path / "codes.npz", "--reconstruct", tmp_path / "pairs", "--skip-bad")
    assert capsys.readouterr().err.count("002.png cannot be read") == 1
    kept = ["000", "001", "003", "004"]
    with np.load(tmp_path / "codes.npz") as codes:
        assert [name[-7:-4] for name in codes["names"]] == kept
        model = alae.load(run)
        x = torch.cat([common.open_image(photos / f"{name}.png", model) for name in kept])
        np.testing.assert_allclose(codes["w"], model.encode(x).numpy(), atol=1e-5)
    assert sorted(files(tmp_path / "pairs")) == [f"{name}.png" for name in kept]


# ------------------------------------------------------------------------------------------------------------- films

def test_along():
    """Straight lines in w, great circles in z; a loop ends one step before its beginning."""
    points = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    torch.testing.assert_close(evaluation.along(points, 4, "w", False),
                               torch.tensor([[3.0, 0], [2, 1], [1, 2], [0, 3]]))
    torch.testing.assert_close(evaluation.along(points, 4, "w", True),
                               torch.tensor([[3.0, 0], [1.5, 1.5], [0, 3], [1.5, 1.5]]))
    angle = torch.tensor([0, torch.pi / 6, torch.pi / 3, torch.pi / 2])
    torch.testing.assert_close(evaluation.along(points, 4, "z", False), 3 * torch.stack([angle.cos(), angle.sin()], 1))
    layered = torch.randn(3, 4, 8)
    assert torch.equal(evaluation.along(layered, 5, "w", False)[::2], layered)


@pytest.mark.parametrize("ending", [".gif", ".webp", ""])
def test_films(style, photos, tmp_path, ending):
    """From a photo through a seed to codes of layers, as a film and as frames."""
    model = alae.load(style)
    np.save(tmp_path / "layered.npy", np.random.default_rng(0).standard_normal((1, model.num_layers, 8)))
    evaluate("samples", style, "--out", tmp_path / "samples", "--seeds", 12)
    evaluate("interpolate", style, photos / "000.png", "seed:12", tmp_path / "layered.npy", "--frames", 5,
             "--out", tmp_path / f"film{ending}")
    if ending:
        with Image.open(tmp_path / f"film{ending}") as film:
            assert film.n_frames == 5
            assert film.size == (8, 8)
            assert film.info["loop"] == 0
        return
    frames = [shown(tmp_path / "film" / f"frame{i:04d}.png").astype(int) for i in range(5)]
    first = common.to_uint8(common.reconstruct(model, common.open_image(photos / "000.png", model)))
    assert np.abs(frames[0] - first[0, 0].numpy()).max() <= 1
    assert np.abs(frames[2] - shown(tmp_path / "samples" / "seed0012.png")).max() <= 1
    assert all((a != b).any() for a, b in zip(frames, frames[1:], strict=False))
    with pytest.raises(common.Error, match="holds frames already"):
        evaluate("interpolate", style, "seed:1", "seed:2", "--out", tmp_path / "film")


@pytest.mark.parametrize(("words", "message"), [
    (["seed:1", "--out", "f.gif"], "another; this is one; name another, too"),
    (["seed:1", "seed:2", "--out", "f.mp4"], "is no film"),
    (["none.jpg", "seed:2", "--out", "f.gif"], "there is no none.jpg; check the path"),
    (["f.gif", "seed:2", "--out", "./f.gif"], "--out ./f.gif would write over ./f.gif itself; name another file"),
    (["photo", "seed:2", "--space", "z", "--out", "f.gif"], "has no 'unmap'")])
def test_films_that_cannot_be(run, photos, words, message):
    words = [photos / "000.png" if word == "photo" else word for word in words]
    with pytest.raises((common.Error, data.DataError), match=message):
        evaluate("interpolate", run, *words)


# ------------------------------------------------------------------------------------ commands take each other's files

def test_a_boundary_between_two_folders(run, tmp_path):
    """encode's codes make a boundary; figure manipulate moves other codes along it, here invert's."""
    for name, grey in (("dark", 60), ("light", 200)):
        (tmp_path / name).mkdir()
        for i in range(8):
            Image.fromarray((np.array(picture(i)) // 4 + grey - 30).astype(np.uint8)).save(tmp_path / name / f"{i}.png")
        evaluate("encode", run, tmp_path / name, "--out", tmp_path / f"{name}.npz")
    evaluate("boundary", run, "--codes", tmp_path / "dark.npz", tmp_path / "light.npz")
    normal = np.load(run / "boundaries" / "dark-light.npy")
    assert normal.shape == (1, 8)
    assert np.linalg.norm(normal) == pytest.approx(1)
    dark, light = (np.load(tmp_path / f"{name}.npz")["w"] @ normal[0] for name in ("dark", "light"))
    assert dark.max() < light.min()
    evaluate("invert", run, tmp_path / "dark" / "0.png", "--steps", 2, "--out", tmp_path / "invert.png")
    for codes in ("invert-w.npy", "dark.npz"):
        evaluate("figure", "manipulate", run, "--codes", tmp_path / codes, "--boundary",
                 run / "boundaries" / "dark-light.npy", "--labels=off", "--out", tmp_path / "moved.png")
    evaluate("decode", run, tmp_path / "dark.npz", "--out", tmp_path / "made")
    assert np.array_equal(shown(tmp_path / "moved.png")[2:30, 2:30, 0], shown(tmp_path / "made" / "0.png"))
    evaluate("decode", run, tmp_path / "invert-w.npy", "--out", tmp_path / "made")
    assert (tmp_path / "made" / "code0000.png").exists()


# ------------------------------------------------------------------------------------------------------- in Python

def test_readme_code(run, tmp_path, photos, monkeypatch, here):
    """The Python of the README, on a run and two photos of the names that it has."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    for name in ("me.jpg", "you.jpg"):
        Image.open(photos / "001.png").save(tmp_path / name)
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "alae-mlp-mnist-mini")
    names = {}
    exec(blocks[0], names)
    model = alae.load("runs/alae-mlp-mnist-mini")
    assert Image.open(tmp_path / "mixed.png").size == (2 + 3 * 30, 2 + 30)
    x = common.open_image("me.jpg", model)
    assert np.array_equal(shown("mixed.png")[2:30, 2:30, 0],
                          common.to_uint8(model.generate(model.encode(x)))[0, 0].numpy())


def test_show_and_open_image(tmp_path, photos):
    _, model, _ = tiny(alae)
    x = common.open_image(photos / "000.png", model)
    assert x.shape == (1, 1, 28, 28)
    assert torch.equal(common.to_uint8(x), data.read_images([photos / "000.png"], 1, (28, 28)))
    assert np.array_equal(np.array(common.show(x))[:, :, 0], common.to_uint8(x)[0, 0])
    assert common.show(x[0]).size == (28, 28)
    assert common.show(x.expand(9, -1, -1, -1)).size == (2 + 8 * 30, 2 + 2 * 30)
    with pytest.raises(data.DataError, match="none.png"):
        common.open_image("none.png", model)


class Part(torch.nn.Module):
    """One method of a model as a module, for torch.export and traces."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, t):
        return getattr(self.model, self.name)(t)


@pytest.mark.parametrize(("method", "backbone", "name"), [
    (alae, "mlp", "encode"), (alae, "stylegan", "generate"), (alae, "stylegan", "encode"),
    (invgan, "dcgan", "generate"), (invgan, "dcgan", "encode")])
@pytest.mark.filterwarnings("ignore")
def test_export_and_trace(method, backbone, name):
    """Of a batch as large as the example to the bit; a trace takes any other, too."""
    _, model, _ = tiny(method, "--backbone", backbone)
    part = Part(model.eval().requires_grad_(False), name)
    x = torch.randn(5, 8) if name == "generate" else torch.rand(5, *model.image_shape) * 2 - 1
    y = part(x)
    torch.testing.assert_close(torch.export.export(part, (x,)).module()(x), y, rtol=0, atol=1e-6)
    traced = torch.jit.trace(part, (x[:3],))
    torch.testing.assert_close(traced(x), y, rtol=1e-4, atol=1e-5)
    assert (y[0] - y[1]).abs().max() > 1e-3
