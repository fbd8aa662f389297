"""Sets, splits, order, resizing, pyramids and ranking of images."""
import json
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA_ROOT, fill, fill_zip, picture
from PIL import Image

import common
import data

# ---------------------------------------------------------------------------------------------------- named sets

def test_mnist_mini():
    train, test = data.load("mnist-mini")
    assert (len(train), len(test), train.shape) == (10000, 2000, (1, 28, 28))
    assert train.pixels.dtype == torch.uint8
    assert (data.Path(data.__file__).parent / "tests" / "mnist-mini.npz").stat().st_size < 2.5e6
    assert torch.bincount(train.labels).min() > 850             # ten digits, about equally many
    padded = data.load("mnist-mini", resolution="32")[1].pixels
    assert torch.equal(padded[:, :, 2:-2, 2:-2], test.pixels)
    assert padded[:, :, :2].sum() + padded[:, :, :, -2:].sum() == 0
    assert data.load("mnist-mini", sizes=[32, 64])[0].shape == (1, 32, 32)


@pytest.mark.parametrize("zipped", [False, True])
def test_celeba(tmp_path, zipped):
    base = tmp_path / "celeba"
    folder, n = base / "img_align_celeba", 31
    folder.mkdir(parents=True)
    for i in range(n):
        picture(i, (178, 218), "RGB").save(folder / f"{i + 1:06d}.jpg")
    if zipped:
        with zipfile.ZipFile(base / "img_align_celeba.zip", "w") as z:
            for path in sorted(folder.iterdir()):
                z.write(path, f"img_align_celeba/{path.name}")
                path.unlink()
        folder.rmdir()
    with pytest.raises(data.DataError, match="there is no .*list_eval_partition.txt; put CelebA's"):
        data.load("celeba", tmp_path)
    train, test = data.load("celeba", tmp_path, "5-1", "32")        # no list needed
    assert (train.ids.tolist(), test.ids.tolist()) == (list(range(25)), list(range(25, 31)))
    assert (train.shape, train.split, train.labels) == ((3, 32, 32), "5-1", None)
    centre = picture(25, (178, 218), "RGB").crop((0, 20, 178, 198)).resize((32, 32), Image.Resampling.BOX)
    difference = test.take([0])[0].permute(1, 2, 0).float() - torch.from_numpy(np.array(centre)).float()
    assert difference.abs().mean() < 3                              # JPEG
    (base / "list_eval_partition.txt").write_text("".join(f"{i + 1:06d}.jpg {i % 3}\n" for i in range(n)) + "\n")
    (base / "list_attr_celeba.txt").write_text("31\nBald Smiling\n" + "".join(
        f"{i + 1:06d}.jpg {1 if i < 9 else -1}  {-1 if i % 2 else 1}\n" for i in range(n)) + "\n")
    train, test = data.load("celeba", tmp_path, sizes=[32, 64, 128, 256])
    assert (train.ids.tolist(), test.ids.tolist()) == (list(range(0, 31, 3)), list(range(2, 31, 3)))
    assert (train.shape, train.split, train.label_names) == ((3, 128, 128), "official", ["Bald", "Smiling"])
    assert train.labels[:, 0].tolist() == [i < 9 for i in range(0, 31, 3)]
    assert train.labels[:, 1].tolist() == [i % 2 == 0 for i in range(0, 31, 3)]
    if not zipped:                                                  # a copy of an image below is not the image
        (folder / "small").mkdir()
        picture(99, (178, 218), "RGB").save(folder / "small" / "000001.jpg")
        again, _ = data.load("celeba", tmp_path, sizes=[32, 64, 128, 256])
        assert torch.equal(again.pixels, train.pixels)
        assert torch.equal(again.labels, train.labels)
    lists = {name: (base / name).read_bytes() for name in ("list_attr_celeba.txt", "list_eval_partition.txt")}
    for name, content in lists.items():
        (base / name).write_bytes(b"\xef\xbb\xbf" + content)       # with a mark of its encoding
    again, _ = data.load("celeba", tmp_path, sizes=[32, 64, 128, 256])
    assert (len(again), again.labels.tolist()) == (len(train), train.labels.tolist())
    for name, texts in dict(zip(lists, (
            (b"image_id,Bald,Smiling\n000001.jpg,-1,1\n000002.jpg,1,1\n", b"1\nBald Smiling\n000001.jpg yes -1\n"),
            (b"image_id,partition\n000001.jpg,0\n", lists["list_eval_partition.txt"] + b"000001.jpg 2\n")),
            strict=True)).items():
        for content in (*texts, lists[name].decode().encode("utf-16")):     # commas; odd marks; a name twice
            (base / name).write_bytes(content)
            with pytest.raises(data.DataError, match=f"{name} is not a n.*; put CelebA's own there"):
                data.load("celeba", tmp_path)
        (base / name).write_bytes(lists[name])
    (base / "list_attr_celeba.txt").write_text("1\nBald Smiling\n000001.jpg 1 -1\n")
    with pytest.raises(data.DataError, match="list_attr_celeba.txt has no line for 000002.jpg"):
        data.load("celeba", tmp_path)
    with pytest.raises(data.DataError, match="celeba has no split 'dw'; it is official .* or 5-1"):
        data.load("celeba", tmp_path, "dw")
    with pytest.raises(data.DataError, match="there is no .*img_align_celeba; put"):
        data.load("celeba", tmp_path / "celeba", "5-1")


def test_mnist_mini_is_the_head_of_mnist():
    if not (DATA_ROOT / "MNIST").exists():
        pytest.skip(f"no MNIST below {DATA_ROOT}")
    for mini, full in zip(data.load("mnist-mini"), data.load("mnist", DATA_ROOT), strict=True):
        assert torch.equal(mini.pixels, full.pixels[:len(mini)])
        assert torch.equal(mini.labels, full.labels[:len(mini)])
        assert (mini.ids == full.ids[:len(mini)]).all()


@pytest.fixture(scope="module")
def mnist_root(tmp_path_factory):
    """idx files of MNIST's size in which an image spells its own place, and its label is that modulo 10."""
    root = tmp_path_factory.mktemp("data")
    (root / "MNIST" / "raw").mkdir(parents=True)
    for name, first, n in (("train", 0, 60000), ("t10k", 60000, 10000)):
        images = np.zeros((n, 784), np.uint8)
        images[:, :4] = np.arange(first, first + n, dtype=">u4").view(np.uint8).reshape(n, 4)
        head = np.array([0x803, n, 28, 28], ">u4").tobytes()
        (root / "MNIST" / "raw" / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = (np.arange(first, first + n) % 10).astype(np.uint8)
        (root / "MNIST" / "raw" / f"{name}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, n], ">u4").tobytes() + labels.tobytes())
    return root


def places(images):
    return images.pixels[:, 0, 0, :4].numpy().copy().view(">u4")[:, 0].astype(np.int64)


@pytest.mark.parametrize(("split", "sizes"), [("dw", (60000, 10000)), ("sw", (50000, 10000))])
def test_mnist_splits(mnist_root, split, sizes):
    train, test = data.load("mnist", mnist_root, split)
    assert (len(train), len(test), train.split) == (*sizes, split)
    for part in (train, test):
        assert (places(part) == part.ids).all()
        assert (part.labels.numpy() == part.ids % 10).all()
    ids = np.concatenate([train.ids, test.ids])
    assert len(np.unique(ids)) == sum(sizes)                    # disjoint
    if split == "dw":
        assert (train.ids < 60000).all()
        assert (test.ids >= 60000).all()
    else:                                                       # the official training file alone, shuffled with seed 0
        assert ids.max() == 59999
        assert (ids == np.random.RandomState(0).permutation(60000)).all()


def test_a_split_that_is_not_there(mnist_root):
    with pytest.raises(data.DataError, match="no split 'xw'"):
        data.load("mnist", mnist_root, "xw")
    with pytest.raises(data.DataError, match="leave --split out"):
        data.load("mnist-mini", split="sw")


# --------------------------------------------------------------------------------------------- decoding and cutting

def test_modes_become_alike():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)

    def array(image, channels=3):
        return data.to_array(image, channels, (8, 8))
    L = Image.fromarray(grey)
    assert (array(L, 1) == grey).all()
    assert (array(L) == grey).all()
    assert (array(Image.fromarray(grey.astype(np.uint16) * 256 + 5), 1) == grey).all()        # 16-bit
    assert (array(Image.fromarray(grey.astype(np.int32) * 256), 1) == grey).all()
    half = Image.merge("LA", (L, Image.fromarray(np.where(grey > 31, 255, 0).astype(np.uint8))))
    assert (array(half, 1) == np.where(grey > 31, grey, 255)).all()                           # transparent shows white
    rgb = np.stack([grey, grey[::-1], grey.T], 2)
    assert (array(Image.fromarray(rgb)) == rgb.transpose(2, 0, 1)).all()
    opaque = Image.fromarray(np.concatenate([rgb, np.full((8, 8, 1), 255, np.uint8)], 2))
    assert (array(opaque) == rgb.transpose(2, 0, 1)).all()
    assert (array(Image.fromarray(255 - rgb).convert("CMYK")) == 255 - rgb.transpose(2, 0, 1)).all()
    palette = Image.fromarray(grey % 4)
    palette = palette.convert("P")
    palette.putpalette([v for i in range(256) for v in (i, 2 * i % 256, 3)])
    assert array(palette).shape == (3, 8, 8)
    assert (array(palette)[2] == 3).all()


def test_crop_and_area_resize():
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = np.arange(16).reshape(4, 4) * 16
    out = data.to_array(Image.fromarray(wide), 1, (2, 2))[0]
    middle = wide[:, 4:8].reshape(2, 2, 2, 2).mean((1, 3))
    assert np.abs(out - middle).max() <= 0.5                    # the centre square, each pixel the mean of four
    assert data.to_array(Image.fromarray(wide), 1, (8, 4)).shape == (1, 4, 8)
    assert (data.to_array(Image.fromarray(wide), 1, (8, 4))[0] == wide[:, 2:10]).all()


def test_any_size_can_be_cropped():
    for w in range(500, 530):
        for size in ((28, 28), (31, 17)):
            out = data.to_array(Image.new("L", (w, 1205 - w), 77), 1, size)
            assert out.shape == (1, size[1], size[0])
            assert (out == 77).all()


@pytest.mark.parametrize("text", ["0", "x", "12x", "-4", "3.5"])
def test_bad_resolutions(text):
    with pytest.raises(data.DataError, match="is not a size"):
        data.load("mnist-mini", resolution=text)


# ------------------------------------------------------------------------------------------------ folders and zips

def test_folder(tmp_path):
    folder = fill(tmp_path / "pictures", 20)
    train, test = data.load(str(folder), sizes=[32, 64])
    assert (len(train), len(test), train.shape, train.name) == (18, 2, (1, 32, 32), "pictures")
    assert test.ids.tolist() == [18, 19]
    assert train.labels is None
    train, _ = data.load("pictures", tmp_path, resolution="40")
    assert (train.pixels[3, 0].numpy() == np.asarray(picture(3))).all()
    picture(0, mode="RGB").save(folder / "zzz.png")
    assert data.load(str(folder))[0].shape[0] == 3              # one coloured image makes the set RGB
    for i in range(600):
        picture(i, (4, 4), "RGB" if i % 3 else "L").save(fill(tmp_path / "mixed", 0) / f"{i:03d}.png")
    assert data.load(str(tmp_path / "mixed"))[0].shape[0] == 3  # and so if grey and coloured ones alternate


def test_classes_of_one_part_alone_are_noted(tmp_path):
    fill(tmp_path / "set" / "train", 20)
    for k, name in enumerate(("ant", "bee")):
        fill(tmp_path / "set" / "test" / name, 4, first=100 + 4 * k)
    train, test = data.load(str(tmp_path / "set"))
    assert (train.labels, test.labels.tolist()) == (None, [0, 1] * 4)
    assert "labels: in one part alone, so nothing is measured by classes" in train.notes


def test_folder_of_classes(tmp_path):
    for name, n in (("ant", 20), ("bee", 10)):
        fill(tmp_path / "set" / name, n, first=100 * n)
    train, test = data.load(str(tmp_path / "set"))
    assert train.label_names == ["ant", "bee"]
    assert torch.bincount(train.labels).tolist() == [18, 9]
    assert torch.bincount(test.labels).tolist() == [2, 1]       # the last tenth of each class
    assert not set(train.ids) & set(test.ids)


def test_folder_of_parts(tmp_path):
    for part, classes in (("train", "abc"), ("test", "ac")):
        for c in classes:
            fill(tmp_path / "set" / part / c, 4, first=4 * ord(c) + 1000 * len(part))
    train, test = data.load(str(tmp_path / "set"))
    assert (len(train), len(test)) == (12, 8)
    assert test.labels.tolist() == [0, 2] * 4           # of the training part's a, b, c; the head shows all classes
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    fill(tmp_path / "set" / "test" / "d", 1, first=9999)
    with pytest.raises(data.DataError, match="class 'd' that the training part has not"):
        data.load(str(tmp_path / "set"))


@pytest.mark.parametrize("rows", [[["b.png", 1]], 7, [[7, 1]], [["a.png"]]])
def test_labels_that_cannot_be_understood(tmp_path, rows):
    folder = fill(tmp_path / "set", 0)
    picture(0).save(folder / "a.png")
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    with pytest.raises(data.DataError, match=r"dataset\.json (is not as|has no label for a\.png)"):
        data.load(str(folder))


@pytest.mark.parametrize("label", ["cat", None, -1, 0.5, 1.7, True, math.nan, math.inf, 10**30, [], [[1]], [2, 0],
                                   [0.5, 1], ["1", "0"], [1], [-1, 0], {}])
def test_a_label_of_no_class_and_no_attributes_is_named(tmp_path, label):
    """Beside a class, and beside a row of two attributes: one line that names the image."""
    folder = fill(tmp_path / "set", 8)
    for other in (1, [0, 1]):
        rows = {f"{i:03d}.png": other for i in range(8)}
        (folder / "dataset.json").write_text(json.dumps({"labels": [*{**rows, "003.png": label}.items()]}))
        with pytest.raises(data.DataError, match=r"^[^\n]*dataset\.json gives 00[0-3]\.png the label [^\n]*$"):
            data.load(str(folder))


@pytest.mark.parametrize(("on", "off"), [(1, 0), (1, -1), (True, False)])
def test_attributes_are_of_three_kinds(tmp_path, on, off):
    folder = fill(tmp_path / "set", 20)
    rows = [[f"{i:03d}.png", [on if i % 3 else off, off]] for i in range(20)]
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    train, _ = data.load(str(folder))
    assert train.labels.tolist() == [[i % 3 > 0, False] for i in range(18)]


def test_names_of_classes_must_be_as_many(tmp_path):
    folder = fill(tmp_path / "set", 8)
    rows = [[f"{i:03d}.png", i % 3] for i in range(8)]
    for names in (["a", "b"], "abc", {"a": 1}):
        (folder / "dataset.json").write_text(json.dumps({"labels": rows, "classes": names}))
        with pytest.raises(data.DataError, match="classes are not a list of 3 names or more"):
            data.load(str(folder))


@pytest.mark.parametrize("labels", ["class", "attributes", "none"])
def test_zip(tmp_path, labels):
    train, test = data.load(str(fill_zip(tmp_path / "set.zip", 30, labels)))
    assert len(train) + len(test) == 30
    if labels == "class":
        assert (train.labels.numpy() == train.ids % 3).all()
    elif labels == "attributes":
        assert train.labels.shape == (27, 2)
        assert train.labels.dtype == torch.bool
        assert (train.labels[:, 0].numpy() == train.ids % 2).all()
    else:
        assert train.labels is None


def test_train_and_test_zip_are_one_set(tmp_path):
    fill_zip(tmp_path / "faces-train.zip", 9)
    fill_zip(tmp_path / "faces-test.zip", 4, first=9)
    train, test = data.load(str(tmp_path / "faces-train.zip"))
    assert (len(train), len(test), train.name) == (9, 4, "faces")
    assert train.source != test.source


def test_missing_sets(tmp_path):
    with pytest.raises(data.DataError, match=r"unknown data set 'minst'.*mnist-mini, mnist, .*cifar10"):
        data.load("minst", tmp_path)
    with pytest.raises(data.DataError, match="there is no .*gone.zip"):
        data.load(str(tmp_path / "gone.zip"), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(data.DataError, match="has no images in it"):
        data.load(str(tmp_path / "empty"))
    (tmp_path / "text.zip").write_text("not a zip")
    with pytest.raises(data.DataError, match="not a whole zip file"):
        data.load(str(tmp_path / "text.zip"))
    fill(tmp_path / "one", 1)
    photo = tmp_path / "one" / "000.png"
    with pytest.raises(data.DataError, match=f"is one image, .* python eval.py encode RUN {photo} --reconstruct out$"):
        data.load(str(photo))
    with pytest.raises(data.DataError, match="too few"):
        data.load(str(tmp_path / "one"))
    with pytest.raises(data.DataError, match="40 px at their smallest side.*--resolution 64"):
        data.load(str(fill(tmp_path / "small")), sizes=[64, 128])


def test_absent_mnist_names_its_files(tmp_path, monkeypatch):
    import torchvision

    def fail(self):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    with pytest.raises(data.DataError, match=r"put train-images-idx3-ubyte, .* into .*/MNIST/raw"):
        data.load("mnist", tmp_path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("resident", [True, False])
def test_truncated_image(tmp_path, monkeypatch, capsys, resident):
    if not resident:
        monkeypatch.setattr(data, "RESIDENT_BYTES", 0)
    folder = fill(tmp_path / "set", 20)
    truncate(folder / "007.png")

    def read(**kwargs):
        train, _ = data.load(str(folder), **kwargs)
        return train, train.take(range(len(train)))
    with pytest.raises(data.DataError, match=r"set/007.png cannot be read .*--skip-bad"):
        read()
    train, x = read(skip_bad=True)
    told = capsys.readouterr().err
    assert "007.png" in told
    if resident:
        assert len(train) == 17
        assert 7 not in train.ids
        assert "left out 1 of 20" in told
    else:
        assert torch.equal(x[7], x[8])      # its place is taken by the next one


def test_zip_with_a_broken_member(tmp_path):
    path = fill_zip(tmp_path / "set.zip", 20)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as z:
        at = z.getinfo("00000/img00000005.png").header_offset
    content[at + 200:at + 400] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=r"set.zip/00000/img00000005.png cannot be read"):
        data.load(str(path))
    assert len(data.load(str(path), skip_bad=True)[0]) == 20 - 3 - 1     # one of each class is held out, one is broken


# --------------------------------------------------------------------------------------------------------- loading

def test_order_is_one_permutation_a_pass():
    stream = data.order(10, 3, 0, 40)
    for k in range(4):
        assert sorted(stream[10 * k:10 * k + 10].tolist()) == list(range(10))
    assert not torch.equal(stream[:10], stream[10:20])
    assert torch.equal(data.order(10, 3, 7, 16), stream[7:23])
    assert not torch.equal(data.order(10, 4, 0, 40), stream)


def first_batches(images, n, *args, **kwargs):
    source = data.batches(images, *args, **kwargs)
    return torch.cat([next(source) for _ in range(n)])


def test_batches_are_a_function_of_what_was_seen(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    path = str(fill_zip(tmp_path / "set.zip", 30))
    resident, _ = data.load(path)
    whole = first_batches(resident, 6, 8, seed=1, seen=0, device=cpu)
    assert torch.equal(first_batches(resident, 4, 8, seed=1, seen=16, device=cpu), whole[16:])
    halves = [first_batches(resident, 6, 8, 1, 0, cpu, rank, 2) for rank in (0, 1)]
    for rank in (0, 1):
        assert torch.equal(halves[rank], torch.cat([b[rank::2] for b in whole.split(8)]))
    monkeypatch.setattr(data, "RESIDENT_BYTES", 0)
    streamed, _ = data.load(path)
    assert streamed.pixels is None
    for workers in (0, 2):
        assert torch.equal(first_batches(streamed, 6, 8, 1, 0, cpu, workers=workers), whole)


def test_streaming_where_workers_are_spawned(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "RESIDENT_BYTES", 0)
    loader = torch.utils.data.DataLoader
    monkeypatch.setattr(torch.utils.data, "DataLoader",
                        lambda *a, **k: loader(*a, **k, multiprocessing_context="spawn"))
    train, _ = data.load(str(fill(tmp_path / "set", 20)))
    x = first_batches(train, 2, 6, 0, 0, torch.device("cpu"), workers=1)
    assert torch.equal(x, train.take(data.order(18, 0, 0, 12)))


def test_an_unreadable_image_in_a_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "RESIDENT_BYTES", 0)
    folder = fill(tmp_path / "set", 20)
    truncate(folder / "007.png")
    train, _ = data.load(str(folder))
    with pytest.raises(data.DataError, match="^[^\n]*007.png cannot be read[^\n]*$"):     # one line, no traceback in it
        first_batches(train, 5, 9, 0, 0, torch.device("cpu"), workers=1)


# ------------------------------------------------------------------------------------------------ cuts and pyramids

@pytest.mark.parametrize("zipped", [False, True])
def test_sets_with_cuts(tmp_path, monkeypatch, zipped):
    """FFHQ's layout, with few images: both papers' cuts, in file order."""
    for name in ("ffhq", "lsun-cat"):
        with pytest.raises(data.DataError, match=rf"there is no .*{name} and no .*{name}\.zip; put .* there, as files"):
            data.load(name, tmp_path)
    if zipped:
        fill_zip(tmp_path / "ffhq.zip", 14, mode="RGB")
    else:
        for i in range(14):
            folder = tmp_path / "ffhq" / f"{i // 5 * 1000:05d}"
            folder.mkdir(parents=True, exist_ok=True)
            picture(i, mode="RGB").save(folder / f"{i:05d}.png")
    with pytest.raises(data.DataError, match="has 14 images, and ffhq has 70,000, which its split 60-10 cuts"):
        data.load("ffhq", tmp_path)
    what, count, splits = data.CUTS["ffhq"]
    assert (count, splits) == (70_000, {"60-10": (60_000, 60_000), "65-5": (65_000, 65_000)})
    assert data.CUTS["celeba-hq"][1:] == (30_000, {"27-3": (27_000, 27_000)})
    monkeypatch.setitem(data.CUTS, "ffhq", (what, 14, {"60-10": (12, 12), "65-5": (13, 13)}))
    for split, n in (("auto", 12), ("60-10", 12), ("65-5", 13)):
        train, test = data.load("ffhq", tmp_path, split, "16")
        assert (train.ids.tolist(), test.ids.tolist()) == (list(range(n)), list(range(n, 14)))
        assert train.split == ("60-10" if n == 12 else "65-5")
        assert train.source == test.source == "ffhq"
    assert np.array_equal(test.pixels[0], data.to_array(picture(13, mode="RGB"), 3, (16, 16)))
    assert (train.labels is None) == (not zipped)                       # sub-folders are no classes
    with pytest.raises(data.DataError, match="ffhq has no split 'x'; it is 60-10 or 65-5"):
        data.load("ffhq", tmp_path, "x")
    monkeypatch.setitem(data.CUTS, "lsun-cat", ("", 0, {"all": (-3, -3), "100k": (8, -3)}))
    old = tmp_path / ("ffhq.zip" if zipped else "ffhq")
    old.rename(tmp_path / old.name.replace("ffhq", "lsun-cat"))
    parts = [[p.ids.tolist() for p in data.load("lsun-cat", tmp_path, split, "16")] for split in ("all", "100k")]
    assert parts == [[list(range(11)), [11, 12, 13]], [list(range(8)), [11, 12, 13]]]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pyramid_changes_nothing_but_time(tmp_path, monkeypatch, zipped):
    make = fill_zip if zipped else fill
    path = make(tmp_path / ("set.zip" if zipped else "set"), 30)

    def train(resident):
        monkeypatch.setattr(data, "RESIDENT_BYTES", 2e9 * resident)
        return data.load(str(path), resolution="32")[0]
    before = train(True)
    eighth = train(False).take([3], (8, 8))
    data.main(["prepare", "--data", str(path)])
    with monkeypatch.context() as m:
        m.setattr(data, "to_array", None)                               # nothing is decoded from here on
        for resident in (False, True):
            after = train(resident)
            assert (after.pixels is None) == (not resident)
            assert after.ids.tolist() == before.ids.tolist()
            assert torch.equal(after.take(range(10)), before.pixels[:10])
            assert len(pickle.dumps(after.store)) < 5000                # as a process that reads images gets it
        assert torch.equal(train(False).take([3], (8, 8)), eighth)
    make(path, 30, size=(41, 40))                                       # other images of the same names
    with pytest.raises(data.DataError, match="was made of other images"):
        train(True)


@pytest.mark.parametrize(("flags", "message"), [
    (["--data", "nothing"], "there is no folder or zip nothing"), (["--data", "set", "--resolution", "12"], "not 12"),
    (["--data", "set", "--resolution", "3"], "not 3"), (["--dat", "set"], "--data"), (["--data", "empty"], "has no i")])
def test_prepare_refuses(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "set", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as end:
        common.command(lambda: data.main(["prepare", *flags]))
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_prepare_finds_celeba(tmp_path):
    fill(tmp_path / "celeba" / "img_align_celeba", 6, size=(178, 218), mode="RGB")
    data.main(["prepare", "--data", "celeba", "--data-root", str(tmp_path)])
    store = data.load("celeba", tmp_path, "5-1")[0].store
    assert sorted(store.pyramid) == [(3, s, s) for s in (4, 8, 16, 32, 64, 128)]


def test_ranking_is_the_inverse_of_zhou():
    """Against a dense W, a row at a time, and (I - 0.99 S)^-1 y, on 500 points."""
    n, k = 500, 7
    rng = np.random.RandomState(0)
    f = (rng.randn(n, 6) + 4 * rng.randint(3, size=(n, 1))).astype(np.float32)
    d = np.square(f[:, None].astype(np.float64) - f).sum(2)
    near = np.zeros((n, n), bool)
    for i in range(n):
        near[i, np.argsort(d[i])[1:k + 1]] = True           # the first is itself
    near |= near.T
    W = np.where(near, np.exp(-d / (2 * d[near].mean())), 0)
    S = W / np.sqrt(np.outer(W.sum(0), W.sum(1)))
    y = np.zeros(n)
    y[[3, 8]] = 1
    exact = np.linalg.solve(np.eye(n) - 0.99 * S, y)
    torch.testing.assert_close(data.similarity(torch.from_numpy(f), k).to_dense(), torch.from_numpy(S), rtol=1e-4,
                               atol=1e-7)
    ranked = data.manifold_ranking(torch.from_numpy(f).double(), torch.tensor([3, 8]), k)
    assert np.abs(ranked.numpy() - exact).max() < 1e-6
    assert exact.max() > 0.5


def test_rank_writes_a_list_and_only_reads_it(tmp_path, monkeypatch, capsys):
    """Grey values are the features: a query's list is of its own shade, whatever file or name it is."""
    monkeypatch.chdir(tmp_path)
    for i in range(60):
        shade = np.full((16, 16), (20 if i % 2 else 200) + i // 4, np.uint8)
        shade[0, 0] = i                                     # no two files are equal
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(shade).save(tmp_path / "set" / f"{i:02}.png")
    Image.fromarray(np.full((20, 20), 25, np.uint8)).save("query.png")
    monkeypatch.setattr(common, "frozen", lambda *args: Grey())
    for query, odd in (("10.png", 0), ("query.png", 1)):
        data.main(["rank", "--data", "set", "--query", query, "-n", "20", "--neighbours", "4", "--out", "list.txt"])
        names = Path("list.txt").read_text().split()
        assert len(set(names)) == 20
        assert {int(name[:2]) % 2 for name in names} == {odd}
    assert "20 of 54 training images of set" in capsys.readouterr().out
    whole, held = data.load("set")
    for resident in (1e9, 0):
        monkeypatch.setattr(data, "RESIDENT_BYTES", resident)
        train, test = data.load("set", only="list.txt")
        assert train.names() == sorted(names)
        assert torch.equal(train.take(range(20)), whole.take([whole.names().index(name) for name in sorted(names)]))
        assert len(test) == len(held)
        assert train.notes[-1] == "only: 20 of 54 training images, those of list.txt"
    args = dict(image_shape=[1, 16, 16], train_images=20, only_digest=train.only)
    assert train.unlike(args) == ""
    Path("list.txt").write_text("\n".join([*names[1:], "00.png"]))
    assert "another list" in data.load("set", only="list.txt")[0].unlike(args)
    assert "another list" in whole.unlike(args)


def test_features_of_a_set_that_is_read_from_files(tmp_path, monkeypatch):
    """What one in memory gives, divided by its norm; the last block is a short one."""
    fill(tmp_path / "set", 130)
    resident = data.load(str(tmp_path / "set"), resolution="16")[0]
    monkeypatch.setattr(data, "RESIDENT_BYTES", 0)
    streamed = data.load(str(tmp_path / "set"), resolution="16")[0]
    assert (len(streamed), streamed.pixels) == (117, None)
    x = resident.pixels.flatten(1) / 127.5 - 1
    for images, workers in ((resident, 0), (streamed, 0), (streamed, 2)):
        made = data.features_of(images, lambda x: x.flatten(1), torch.device("cpu"), workers)
        torch.testing.assert_close(made, x / x.norm(dim=1, keepdim=True))


class Grey:
    """In place of VGG-16: one feature map that turns with the shade."""
    checksum = "0"

    def to(self, device):
        return self

    def __call__(self, x):
        return [torch.cat([x.cos(), x.sin()], 1)]


@pytest.mark.parametrize(("flags", "message"), [
    (["--query", "no.png"], "no.png is no training image of set, by its name there such as 000.png"),
    (["--query", "000.png", "-n", "40"], "too few for -n 40"),
    (["--query", "000.png", "--run", "set"], "--resolution is for features of VGG-16"),
    (["--query", "000.png", "-n", "0"], "-n"), (["--query", "000.png"], "--neighbours 20"),
    (["--query", "000.png", "--out", "no/list.txt"], "there is no folder no; make it")])
def test_rank_refuses(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "set", 12)
    monkeypatch.setattr(common, "frozen", lambda *args: Grey())
    with pytest.raises(SystemExit) as end:
        common.command(lambda: data.main(["rank", "--data", "set", "--out", "list.txt", "--resolution", "16", *flags]))
    err = capsys.readouterr().err
    assert (end.value.code, err.count("\n"), err.startswith("error: ")) == (2, 1, True), err
    assert message in err
    assert not Path("list.txt").exists()


@pytest.mark.parametrize(("content", "message"), [
    ("000.png\nz.png\n", "names z.png, no training image of set"), ("\n", "names no image"), (None, "cannot be read")])
def test_a_list_that_does_not_fit(tmp_path, content, message):
    fill(tmp_path / "set", 12)
    if content:
        (tmp_path / "list.txt").write_text(content)
    with pytest.raises(data.DataError, match=message):
        data.load(str(tmp_path / "set"), only=tmp_path / "list.txt")


def test_batches_of_a_plan(tmp_path):
    """Sizes and batches that change as a run grows, of resident and of streamed sets."""
    train = data.load(str(fill_zip(tmp_path / "set.zip", 40, size=(32, 32))), resolution="32")[0]
    streamed = data.Images("set", "train", "set", train.ids, train.shape, store=train.store)

    def plan(seen):
        return (8, (8, 8)) if seen < 16 else (4, (32, 32))
    cpu = torch.device("cpu")
    for images in (train, streamed):
        got = [x for _, x in zip(range(4), data.batches(images, plan, 0, 0, cpu), strict=False)]
        assert [tuple(x.shape) for x in got] == [(8, 1, 8, 8)] * 2 + [(4, 1, 32, 32)] * 2
        chosen = data.order(len(train), 0, 0, 24)
        assert torch.equal(got[2], train.pixels[chosen[16:20]])
        mean = train.pixels[chosen[:8]].float().view(8, 1, 8, 4, 8, 4).mean((3, 5))
        assert (got[0].float() - mean).abs().max() <= 1                 # Pillow rounds twice
        assert torch.equal(next(data.batches(images, plan, 0, 20, cpu)), got[3])
