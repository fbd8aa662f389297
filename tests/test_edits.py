"""The tables and figures of the InvGAN paper, on conftest's Dummy: G(w) is dim w, E(x) = x, on digits of 28x28."""
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import cells, fill, fill_zip, options, shown
from PIL import Image
from torch import nn

import common
import data
import eval as evaluation

INNER = np.s_[:, :, 2:-2, 2:-2]


def noise_file(path, w, h, mode="L"):
    pixels = np.random.RandomState(w + h).randint(0, 256, (h, w) if mode == "L" else (h, w, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_average_precision_by_hand():
    scores, truth = torch.tensor([3.0, 2, 1, 0]), torch.tensor([True, False, True, False])
    assert evaluation.average_precision(scores, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert evaluation.average_precision(torch.ones(4), truth) == pytest.approx(0.5)             # a tie is one step


def test_average_precision_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.RandomState(0)
    for n, ties in ((50, False), (300, True), (3, False)):
        scores, truth = rng.randn(n), rng.rand(n) < 0.3
        truth[0] = True
        scores = scores.round() if ties else scores
        ours = evaluation.average_precision(torch.from_numpy(scores), torch.from_numpy(truth))
        assert ours == pytest.approx(metrics.average_precision_score(truth, scores))


def test_tile_and_untile():
    x = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    tiles = evaluation.tile(x, 4)
    assert tiles.shape == (2, 6, 3, 4, 4)
    assert torch.equal(tiles[1, 4], x[1, :, 4:8, 4:8])                          # row by row
    assert torch.equal(evaluation.untile(tiles, 3), x)


def test_codes_of_tiles(dummy):
    view = evaluation.View(dummy("run", dim=0.5), options())
    x = torch.rand(2, 1, 56, 84) * 2 - 1
    codes = evaluation.codes_of_tiles(view, x)
    torch.testing.assert_close(codes[1, 3], x[1, 0, 28:, :28].flatten())
    torch.testing.assert_close(evaluation.through_tiles(view, x), 0.5 * x)
    with pytest.raises(common.Error, match=r"84x57 do not cut into .*run's tiles of 28; bring them to 84x56 "):
        evaluation.codes_of_tiles(view, torch.zeros(1, 1, 57, 84))
    with pytest.raises(common.Error, match="makes grey images"):
        evaluation.codes_of_tiles(view, torch.zeros(1, 3, 28, 28))


def test_grey_images_through_a_network_of_colours(dummy, monkeypatch):
    view = evaluation.View(dummy("run", dim=1.0), options())
    view.model.image_shape = 3, 28, 28
    monkeypatch.setattr(view.model, "generate", lambda w, noise: w.view(-1, 3, 28, 28) * torch.tensor(
        [0.0, 0.3, 0.6]).view(3, 1, 1))
    x = torch.rand(1, 1, 28, 56)
    torch.testing.assert_close(evaluation.through_tiles(view, x), 0.3 * x)


def test_read_images(tmp_path):
    folder, zipped = fill(tmp_path / "set", 5), fill_zip(tmp_path / "z.zip", 4)
    paths = [folder / "000.png", folder, zipped]
    assert len(data.read_images(paths, 1, (8, 12))) == 1 + 5 + 4
    x = data.read_images(paths, 3, (8, 12), n=2)
    assert x.shape == (5, 3, 8, 12)
    assert torch.equal(x[0], x[1])
    np.testing.assert_array_equal(data.read_images([folder / "003.png"], 3)[0].permute(1, 2, 0),
                                  np.array(Image.open(folder / "003.png").convert("RGB")))
    frames = [Image.new("L", (6, 4), 80 * i) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(data.read_images([tmp_path / "a.gif"], 1)[:, 0, 0, 0], [0, 80, 160], atol=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no image")
    for path in ("empty", "bad.png", "none.png"):
        with pytest.raises(data.DataError, match=path):
            data.read_images([tmp_path / path], 1)


def test_between():
    codes = torch.tensor([0.0, 1, 2, 3, 4]).view(5, 1, 1).expand(5, 2, 3)
    many = evaluation.between(codes, 4)
    assert many.shape == (17, 2, 3)
    torch.testing.assert_close(many[8, 0, 0], torch.tensor(2.0))                # symmetric about a frame in the middle
    torch.testing.assert_close(many[10, 0, 0], torch.tensor(2.5))
    assert (many[1:] > many[:-1]).all()
    near, far = np.exp(-0.25**2 / 0.5), np.exp(-0.75**2 / 0.5)                   # a window of half a frame
    expected = sum(i * np.exp(-(i - 0.25)**2 / 0.5) for i in range(5)) / sum(np.exp(-(i - 0.25)**2 / 0.5)
                                                                              for i in range(5))
    assert far < near
    assert many[1, 0, 0].item() == pytest.approx(expected)
    torch.testing.assert_close(evaluation.between(torch.ones(3, 2), 3), torch.ones(7, 2))


def test_figures_of_edits(dummy, script, tmp_path):
    run, other = dummy("run", dim=0.5), dummy("other", dim=1.0)
    x = evaluation.View(run, options()).images(range(6))

    out = script("eval.py", "figure", "variants", run, other, "-n", 6, "--labels=off", "--out", "v.png").stdout
    wrong = (0.5 * x.roll(1, 0) - x).square().mean()
    assert (f"MSE {(x / 2).square().mean():.4f}  MAE {(x / 2).abs().mean():.4f}  floors MSE "
            f"{x.var((2, 3), False).mean():.4f} of each image's mean colour, {wrong:.4f} of wrong pairs (6 images of "
            "28x28") in out
    rows = cells(tmp_path / "v.png", 5, 6)
    for row, expected in zip(rows, (x, 0.5 * x, (0.5 * x).abs() - 1, x, -torch.ones_like(x)), strict=True):
        np.testing.assert_allclose(row, shown(expected), atol=1)

    script("eval.py", "figure", "inpaint", run, "-n", 6, "--labels=off", "--out", "i.png")
    rows = cells(tmp_path / "i.png", 3, 6)
    np.testing.assert_array_equal(rows[0], shown(x))
    places = []
    for cut, whole in zip(rows[1], rows[0], strict=True):
        changed = np.argwhere(cut != whole)
        places.append(tuple(changed.min(0)))
        assert set(cut[cut != whole]) == {common.to_uint8(torch.zeros(1)).item()}
        assert (changed.max(0) - changed.min(0) < 28 // 3).all()
        assert np.ptp(changed[:, 0]) + 1 == np.ptp(changed[:, 1]) + 1 == 28 // 3
    assert len({*places}) == 6                                                  # somewhere else each time
    np.testing.assert_allclose(rows[2], (rows[1] - 127.5) * 0.5 + 127.5, atol=1)

    script("eval.py", "figure", "merge", run, "-n", 3, "--labels=off", "--out", "m.png")
    rows = cells(tmp_path / "m.png", 4, 3)
    np.testing.assert_array_equal(rows[:2], [shown(x[0::2]), shown(x[1::2])])
    np.testing.assert_array_equal(rows[2][:, :, :14], rows[0][:, :, :14])
    np.testing.assert_array_equal(rows[2][:, :, 14:], rows[1][:, :, 14:])
    mask = np.zeros((28, 28), np.uint8)
    mask[3:9, 20:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    script("eval.py", "figure", "merge", run, "-n", 3, "--mask", "mask.png", "--labels=off", "--out", "m.png")
    rows = cells(tmp_path / "m.png", 4, 3)
    np.testing.assert_array_equal(rows[2], np.where(mask > 0, rows[1], rows[0]))
    np.testing.assert_allclose(rows[3], (rows[2] - 127.5) * 0.5 + 127.5, atol=1)

    edited = noise_file(tmp_path / "edited.png", 28, 28)
    script("eval.py", "figure", "edit", run, "--images", edited, "--labels=off", "--out", "e.png")
    rows = cells(tmp_path / "e.png", 2, 1)
    np.testing.assert_array_equal(rows[0, 0], np.array(Image.open(edited)))
    np.testing.assert_allclose(rows[1], (rows[0] - 127.5) * 0.5 + 127.5, atol=1)


def test_figures_of_tiles(dummy, script, tmp_path):
    run = dummy("run", dim=0.5)
    files = [noise_file(tmp_path / f"{i}.png", 84, 56) for i in range(2)]
    pixels = np.array(Image.open(files[0])).astype(float)
    out = script("eval.py", "figure", "tiles", run, "--images", *files, "--labels=off", "--out", "t.png").stdout
    picture = np.array(Image.open(tmp_path / "t.png"))[:, :, 0].astype(float)
    assert picture.shape == (2 + 2 * (56 + 2), 2 + 3 * (84 + 2))
    half = (pixels - 127.5) * 0.5
    for column, expected in enumerate((pixels, half + 127.5, np.abs(half))):
        part = picture[2:58, 2 + 86 * column:86 * (column + 1)]
        np.testing.assert_allclose(part, expected, atol=1)
    mse = np.square(half / 127.5).mean()
    assert f"MSE {mse:.4f}" in out

    out = script("eval.py", "figure", "deblur", run, "--images", files[0], "--resolution", "56x28", "--labels=off",
                 "--out", "d.png")
    picture = np.array(Image.open(tmp_path / "d.png"))[:, :, 0].astype(float)
    assert picture.shape == (2 + 30, 2 + 6 * 58)
    _, low, made, *sharper = (picture[2:30, 2 + 58 * i:58 * (i + 1)] - 127.5 for i in range(6))
    np.testing.assert_allclose(made, 0.5 * low, atol=1)
    variance = [np.var(np.diff(p, axis=1)) for p in (made, *sharper)]
    assert variance == sorted(variance)                                         # sharper with a
    assert "a = 2" in out.stdout

    script("eval.py", "figure", "frames", run, "--frames", tmp_path / "nothing.gif", code=2)
    frames = [Image.fromarray(np.full((28, 56), 40 * i, np.uint8)) for i in range(3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert "would write over" in script("eval.py", "figure", "frames", run, "--frames", tmp_path / "film.gif", "--out",
                                        "film.gif", code=2).stderr
    for n in (9, 5):                                                            # nothing of the first is left
        out = script("eval.py", "figure", "frames", run, "--frames", tmp_path / "film.gif", "-n", n).stdout
    assert "floors MSE 0.0000 of each image's mean colour" in out               # flat frames
    made = run / "figures"
    assert Image.open(made / "frames.png").size[0] > 56
    assert Image.open(made / "frames.gif").n_frames == len([*(made / "frames").iterdir()]) == 11
    middle = np.array(Image.open(made / "frames/0005.png"))[2:-2, 2:-2]
    (tmp_path / "o/mine").mkdir(parents=True)
    (tmp_path / "o/mine/0000.png").write_bytes(b"a picture of the user's")
    err = script("eval.py", "figure", "frames", run, "--frames", tmp_path / "film.gif", "--out", "o/mine.gif",
                 code=2).stderr
    assert "o/mine holds pictures already; name another --out" in err
    assert (tmp_path / "o/mine/0000.png").read_bytes() == b"a picture of the user's"
    np.testing.assert_allclose(middle, (40 - 127.5) * 0.5 + 127.5, atol=1)


def test_figures_refuse(dummy, script, tmp_path):
    run = dummy("run")
    file, odd, black = (*(noise_file(tmp_path / f"{w}.png", w, h) for w, h in ((60, 60), (57, 29))),
                        tmp_path / "black.png")
    Image.new("L", (28, 28)).save(black)
    for flags, message in ((("styles", run), "reads one w"),
                           (("edit", run), "name the files by --images"),
                           (("frames", run), "takes one run, and --frames"),
                           (("frames", run, "--frames", file, "--resolution", "56"), "has one frame"),
                           (("tiles", run, "--images", file), "60x60 do not cut into"),
                           (("deblur", run, "--images", odd), "57x29 do not cut into"),
                           (("merge", run, "--images", file), "takes pairs"),
                           (("merge", run, "--mask", black), "is all black"),
                           (("tiles", run, "--resolution", "28"), "--resolution is of --images"),
                           (("tiles", run, run), "name some by --images"),
                           (("frames", run, "--images", file), "leave --images out and name the --frames"),
                           (("inpaint", run, "--mask", file), "--mask is for figure merge"),
                           (("samples", run, "--resolution", "56"), "--resolution is for figure tiles"),
                           (("samples", run, "--out", "s.jpg"), "pictures are PNGs: pass s.png"),
                           (("samples", run, "--out", "."), "pictures are PNGs: pass picture.png"),
                           (("manipulate", run, "--boundary", "b.npy", "--force"), "--force is for --codes; leave"),
                           (("traversal", run, "--columns", 1), "compares neighbours on a line; pass --columns 2")):
        assert message in script("eval.py", "figure", *flags, code=2).stderr


def test_table_invgan_1(dummy, tmp_path, monkeypatch, capsys):
    class Four:
        d, batch, official, name, title, checksum, resize = 4, 500, False, "four", "Frechet (four)", "0", "as they are"

        def features(self, x):
            return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
    monkeypatch.setattr(evaluation, "extractor_of", lambda *_: Four())
    monkeypatch.setattr(evaluation, "kernel_distance", lambda *_: (0.0, 0.0))          # most of the time
    run = str(dummy("run", dim=0.5))
    args = options(cache=str(tmp_path), n=600)
    row = evaluation.table_invgan_1([run], args)[run]
    view = evaluation.View(run, args)
    x = view.images(range(600))
    assert row["MAE"] == pytest.approx((0.5 * x).abs().mean().item(), rel=1e-5)
    assert row["MAE, 28x28"] is None                                            # it has no border
    assert row["s an image"] > 0
    for i, n in enumerate((500, 600)):
        args.n = n
        for name, kind in dict(Rand="samples", RandRec="resamples", TsRec="reconstructions", IntTs="midpoints").items():
            assert row[f"{name}, Frechet (four)"][i] == pytest.approx(evaluation.frechet_of(view, args, [kind])[0][0],
                                                                      rel=1e-4)
    out = capsys.readouterr().out
    table = {line[:32].strip(): line[32:] for line in out.splitlines()}
    assert table[""].split()[:4] == ["Rand", "RandRec", "TsRec", "IntTs"]
    assert table["InvGAN, DCGAN, MNIST, paper"].split()[0] == "17.44/6.10"
    assert table["Dummy, ours"].split()[:4] == ["-"] * 4            # the paper's FIDs and ours share no column
    evaluation.table_invgan_1([run], options(cache=str(tmp_path)))              # 50,000, of 2,000
    assert "all 2,000 of 2,000 test images" in capsys.readouterr().out


def test_mae_of_padded_digits():
    """Errors in the border count in the one and not in the other."""
    class View:
        device, batch, train, shape = torch.device("cpu"), 2, None, (1, 32, 32)
        test = type("Test", (), dict(source="mnist", shape=(1, 32, 32)))()
        need = images = None
    view = View()
    view.need = lambda *_: None
    view.images = lambda indices, part="test": -torch.ones(len(indices), 1, 32, 32)
    view.train = [0] * 4
    y = -torch.ones(1, 1, 32, 32)
    y[:, :, 0, 0], y[:, :, 16, 16] = 1, 0
    view.model = type("Model", (), dict(image_shape=(1, 32, 32), encode=staticmethod(lambda x: x),
                                        generate=staticmethod(lambda w, noise: y.expand_as(w))))()
    m = evaluation.errors(view, torch.arange(4))
    assert m["mae"] == pytest.approx(3 / 1024)
    assert m["mae_28"] == pytest.approx(1 / 784)


def test_attributes():
    train, test = (SimpleNamespace(name="set", labels=torch.tensor(y), label_names=None) for y in ([1, -1, 0], [2, 0]))
    names, y, y_test = evaluation.attributes(SimpleNamespace(train=train, test=test))
    assert names == ["0", "1", "2"]
    assert y.tolist() == [[False, True, False], [False, False, False], [True, False, False]]   # -1: of no class
    assert y_test.tolist() == [[False, False, True], [True, False, False]]


@pytest.fixture
def classifier(monkeypatch):
    """A small one among torchvision's."""
    from torchvision.models import _api
    monkeypatch.setitem(_api.BUILTIN_MODELS, "tiny", lambda num_classes, **_: nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 28 * 28, 32), nn.ReLU(), nn.Linear(32, num_classes)))
    return "tiny"


def test_table_invgan_2(dummy, classifier, tmp_path, monkeypatch, capsys):
    run, tiler = dummy("run", dim=1.0), dummy("tiler", dim=0.0, patches=28)
    monkeypatch.chdir(tmp_path)
    table = "table", "invgan-2", "--classifier", classifier
    evaluation.main([*table, str(run), str(tiler), "--only", "0", "--epochs", "4", "-n", "640", "--json", "t.json"])
    out, m = capsys.readouterr().out, json.loads((tmp_path / "t.json").read_text())
    share = (evaluation.View(run, options()).test.labels == 0).float().mean().item()
    assert m["originals"]["originals"] == m["reconstructions"]["reconstructions"]       # G(E(x)) = x
    assert m["originals"]["reconstructions"] == m["originals"]["originals"]
    assert m["originals"]["originals"][0] > 3 * share                                   # has learnt something
    assert m["tiles"]["tiles"][0] == pytest.approx(share)                               # all alike: nothing to see
    assert "0.81/0.15" in out
    assert f"saying yes to all has {share:.2f}" in out
    said = re.match(r"1 labels, a tiny on each of 3 sets, 4 epochs of 640 images: about (\d+)m(\d+)s, and "
                    r"0.0062 GB of memory", out)                                        # before anything is trained
    assert 60 * int(said[1]) + int(said[2]) < 600
    for flags, message in (((run,), "takes two runs"), ((tiler, run), "first a run of whole images"),
                           ((run, tiler, "--only", "x"), "has no label 'x'"),
                           ((run, tiler, "-n", 1), "no label that tells its images apart"),
                           ((run, tiler, "--classifier", "nonet", "-n", 64), "--classifier: ")):
        with pytest.raises(common.Error, match=re.escape(message)):
            evaluation.main([*table, *map(str, flags)])
    net = evaluation.binary_classifier(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.arange(4) % 2,
                                       torch.device("cpu"), options(classifier="resnet18"), steps=1)
    assert net.fc.out_features == 1


def test_table_invgan_2_takes_20_attributes_of_celeba(dummy, classifier, monkeypatch, capsys):
    """No set but a batch is on the device, and the time is said before."""
    names = [*evaluation.CELEBA_20, "Bald", "Blurry"]
    assert len({*evaluation.CELEBA_20}) == 20
    view = evaluation.View(dummy("run", dim=1.0), options())
    for part in (view.train, view.test):
        part.labels, part.label_names = part.labels[:, None] == torch.arange(len(names)) % 10, names
    tiler = evaluation.View(dummy("tiler", patches=28), options())
    monkeypatch.setattr(evaluation, "View", lambda run, args: dict(run=view, tiler=tiler)[run])
    monkeypatch.setattr(evaluation, "seconds_of_steps", lambda view, run, steps, times: 120 * times)
    fitted, largest = [], [0]
    monkeypatch.setattr(evaluation, "_fit", lambda net, n, *_: fitted.append(n) or net.eval())
    monkeypatch.setattr(evaluation, "logits", lambda net, x, device: largest.append(len(x)) or torch.rand(len(x)))
    args = options(classifier=classifier, epochs=1, n=128)
    for source, labels in (("celeba", 20), ("mnist", 22)):
        view.train.source = source
        fitted.clear()
        evaluation.table_invgan_2(["run", "tiler"], args)
        assert f"{labels} labels, a tiny on each of 3 sets" in (out := capsys.readouterr().out)
        assert f"about {labels // 10}h" in out                                           # 120 s each
        assert fitted == [128] * 3 * labels
    assert max(largest) == 256
