"""Folders and zips as people have them: layouts, what lies beside the images, links, depths, equal files."""
import errno
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from multiprocessing.reduction import DupFd
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fill, picture, write_streaming_script
from PIL import Image

import common
import data


def zipped(folder, around=""):
    """The folder as a zip beside it, all names below `around`."""
    with zipfile.ZipFile(f"{folder}.zip", "w") as z:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                z.write(path, f"{around}{path.relative_to(folder)}")
    return f"{folder}.zip"


def classes_of(folder, names="ab", n=20):
    for i, name in enumerate(names):
        fill(folder / name, n, first=1000 * i)
    return folder


def same(left, right):
    return all(torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)
               and a.label_names == b.label_names for a, b in zip(left, right, strict=True))


def notes(images):
    return "\n".join(images[0].about(images[1]))


# --------------------------------------------------------------------------------------------------------- layouts

@pytest.mark.parametrize("around", ["", "set/", "a/b/"])
def test_a_zip_of_class_folders_reads_as_the_folder_does(tmp_path, around):
    folder = classes_of(tmp_path / "set")
    parts = data.load(str(folder))
    assert parts[0].labels.bincount().tolist() == [18, 18]
    assert same(parts, data.load(zipped(folder, around)))
    assert "classes: a (20), b (20)" in notes(parts)
    (tmp_path / "outer").mkdir()
    folder.rename(tmp_path / "outer" / "set")
    assert same(parts, data.load(str(tmp_path / "outer")))              # unzipped into a folder of its own


def test_a_zipped_folder_keeps_the_labels_inside_it(tmp_path):
    folder = fill(tmp_path / "set", 20)
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{i:03d}.png", i % 3] for i in range(20)]}))
    train, test = data.load(zipped(folder, "myset/"))
    assert (train.labels.numpy() == train.ids % 3).all()
    assert (test.labels.numpy() == test.ids % 3).all()


@pytest.mark.parametrize("backward", ["names", "labels", "both"])
def test_back_slashes_are_slashes(tmp_path, backward):
    names = [f"00000/img{i}.png" for i in range(9)]
    rows = [[n.replace("/", "\\") if backward != "names" else n, i % 2] for i, n in enumerate(names)]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as z:
        for i, name in enumerate(names):
            info = zipfile.ZipInfo("x")
            info.filename = name.replace("/", "\\") if backward != "labels" else name
            file = io.BytesIO()
            picture(i).save(file, "png")
            z.writestr(info, file.getvalue())
        z.writestr("dataset.json", json.dumps({"labels": rows}))
    train, test = data.load(str(tmp_path / "set.zip"))
    assert len(train) + len(test) == 9
    assert (train.labels.numpy() == train.ids % 2).all()


@pytest.mark.parametrize("held", ["test", "val", "valid", "validation", "Test"])
@pytest.mark.parametrize("is_zip", [False, True])
def test_parts_by_the_names_that_people_give_them(tmp_path, held, is_zip):
    folder = tmp_path / "set"
    classes_of(folder / "train", "abc", 4)
    for c in "ab":
        fill(folder / held / c, 2, first=5000 * ord(c))
    fill(folder / "unlabelled", 3, first=10**7)
    parts = train, test = data.load(zipped(folder, "set/") if is_zip else str(folder))
    assert (len(train), len(test), train.label_names) == (12, 4, ["a", "b", "c"])
    assert test.labels.tolist() == [0, 1] * 2
    assert train.source != test.source
    assert f"held out: the folder {held}, 4 of 16 images" in notes(parts)
    assert f"left out: 3 images outside train and {held}" in notes(parts)


def test_of_test_and_val_the_test_folder_is_held_out(tmp_path):
    for i, part in enumerate(("train", "val", "test")):
        fill(tmp_path / "set" / part, 4, first=100 * i)
    train, test = data.load(str(tmp_path / "set"))
    fill(tmp_path / "alone" / "test", 4, first=200)
    assert torch.equal(test.pixels, torch.cat([p.pixels for p in data.load(str(tmp_path / "alone"))]))
    assert "left out: 4 images outside train and test" in notes((train, test))


def test_a_test_zip_of_one_class(tmp_path):
    for part, names in (("train", "ab"), ("val", "b")):
        folder = tmp_path / f"set-{part}"
        for i, name in enumerate(names):
            fill(folder / name, 3, first=100 * i + 1000 * len(part))
        zipped(folder)
    train, test = data.load(str(tmp_path / "set-train.zip"))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0] * 3 + [1] * 3, [1] * 3)


def test_classes_in_one_part_and_attributes_in_the_other_are_refused(tmp_path):
    for part, first, label in (("train", 0, 1), ("test", 10, [0, 1])):
        folder = fill(tmp_path / "set" / part, 4, first=first)
        rows = [[path.name, label] for path in sorted(folder.iterdir())]
        (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    with pytest.raises(data.DataError, match="has other labels in its test part than in its training part"):
        data.load(str(tmp_path / "set"))


def test_labels_beside_the_parts_are_refused(tmp_path):
    for i, part in enumerate(("train", "test")):
        fill(tmp_path / "set" / part, 2, first=10 * i)
    (tmp_path / "set" / "dataset.json").write_text('{"labels": null}')
    with pytest.raises(data.DataError, match="dataset.json next to train and test; put one into each"):
        data.load(str(tmp_path / "set"))


# ----------------------------------------------------------------------------------- what lies beside the images

@pytest.mark.parametrize("is_zip", [False, True])
def test_what_is_no_image_is_left_out_and_counted_by_kind(tmp_path, is_zip):
    folder = classes_of(tmp_path / "set", n=10)
    for name in ("a/.DS_Store", "b/Thumbs.db", "__MACOSX/a/._000.png", ".ipynb_checkpoints/000.png", "a/._001.png",
                 "labels.csv", "a/notes.txt", "b/notes.txt", "README", "a/clip.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\1")
    parts = data.load(zipped(folder) if is_zip else str(folder))
    assert sum(map(len, parts)) == 20
    assert parts[0].label_names == ["a", "b"]
    line, = (line for line in notes(parts).split("\n") if line.startswith("left out"))
    assert sorted(line.removeprefix("left out: ").split(", ")) == sorted(
        ["5 hidden or of a file manager", "2 .txt", "1 .csv", "1 without an ending", "1 .mp4"])


@pytest.mark.parametrize(("ending", "kind"), [("jfif", "jpeg"), ("JPE", "jpeg"), ("tga", "tga"), ("jp2", "jpeg2000"),
                                              ("pbm", "ppm"), ("dib", "dib"), ("pcx", "pcx"), ("avif", "avif")])
def test_endings_that_pillow_reads(tmp_path, ending, kind):
    if not Image.registered_extensions().get(f".{ending.lower()}"):
        pytest.skip(f"this Pillow reads no {ending}")
    folder = fill(tmp_path / "set", 9)
    picture(9, mode="RGB").convert("1" if ending == "pbm" else "RGB").save(folder / f"x.{ending}", kind)
    assert sum(map(len, data.load(str(folder)))) == 10


# ------------------------------------------------------------------------------------------------- links and pipes

def test_links_are_followed_once_and_a_file_counts_once(tmp_path):
    """Links to the set itself, in two steps, to a file of it twice; and what a link alone leads to is in it."""
    folder, other = fill(tmp_path / "set", 12), fill(tmp_path / "other", 3, first=50)
    for name, target in (("loop", folder), ("loop2", folder), ("more", other), ("again", other), ("0.png", "003.png"),
                         ("00.png", other / "050.png"), ("zz.png", folder / "003.png")):
        (folder / name).symlink_to(target)
    os.link(folder / "004.png", folder / "hard.png")
    (other / "back").symlink_to(folder)
    parts = data.load(str(folder))
    assert sum(map(len, parts)) == 15
    read = [parts[0].store.images[i] for part in parts for i in part.ids]
    assert sorted(read) == sorted([f"{i:03d}.png" for i in range(12)] + ["00.png", "again/051.png", "again/052.png"])
    assert "left out: 8 second names of a file or folder" in notes(parts)


def test_a_link_between_two_parts_counts_for_training_alone(tmp_path):
    fill(tmp_path / "set" / "train", 6)
    fill(tmp_path / "set" / "test", 3, first=6)
    (tmp_path / "set" / "test" / "twin.png").symlink_to("../train/002.png")
    train, test = data.load(str(tmp_path / "set"))
    assert (len(train), len(test)) == (6, 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    folder = fill(tmp_path / "set", 8)
    os.mkfifo(folder / "x.png")
    assert data.Store(folder).images == [f"{i:03d}.png" for i in range(8)]      # to open another would wait
    parts = data.load(str(folder))
    assert sum(map(len, parts)) == 8
    assert "left out: 1 pipes or devices" in notes(parts)


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path):
    folder = fill(tmp_path / "set", 8)
    (folder / "x.png").symlink_to("gone.png")
    with pytest.raises(data.DataError, match="set/x.png cannot be read"):
        data.load(str(folder))
    assert sum(map(len, data.load(str(folder), skip_bad=True))) == 8


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_a_zip_counts_once(tmp_path):
    path = zipped(fill(tmp_path / "set", 10))
    with zipfile.ZipFile(path, "a") as z:
        z.write(tmp_path / "set" / "004.png", "003.png")
    parts = data.load(path)
    assert sum(map(len, parts)) == 10
    assert "left out: 1 second entries of a name" in notes(parts)
    for part in ("train", "test"):
        (tmp_path / "parts" / part).mkdir(parents=True)
        for i in range(4):
            picture(100 * len(part) + i).save(tmp_path / "parts" / part / f"{i}.png")
    path = zipped(tmp_path / "parts")
    with zipfile.ZipFile(path, "a") as z:
        z.write(tmp_path / "set" / "004.png", "train/0.png")
    assert "left out: 1 second entries of a name" in notes(data.load(path))     # by both parts together


def test_an_encrypted_file_is_one_line(tmp_path):
    path = Path(zipped(fill(tmp_path / "set", 10)))
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):             # the flags of the file, and of its entry
        content[content.index(signature) + at] |= 1
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=r"set.zip/000.png cannot be read \(it is encrypted\)"):
        data.load(str(path))
    assert sum(map(len, data.load(str(path), skip_bad=True))) == 9


def test_pillow_adds_nothing_to_our_line(tmp_path, script):
    """A TIFF whose header promises more samples than Pillow decodes."""
    folder = fill(tmp_path / "set", 8)
    file = io.BytesIO()
    picture(0, mode="RGB").save(file, "tiff")
    content = bytearray(file.getvalue())
    at = content.index(b"\x15\x01\x03\x00\x01\x00\x00\x00")             # SamplesPerPixel, a short
    content[at + 8:at + 10] = b"\xff\x00"
    (folder / "bad.tif").write_bytes(content)
    err = script("data.py", "prepare", "--data", "set", code=2).stderr
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "set/bad.tif cannot be read" in err


@pytest.mark.parametrize("flags", [("--data", ""), ("--data", "  "), ("--data", "mnist-mini", "--data-root", "")])
def test_empty_names_are_refused(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(fill(tmp_path / "set"))
    values = dict(zip(flags[::2], flags[1::2], strict=True))
    with pytest.raises(data.DataError, match=r"^--data(-root)? is empty; name a "):
        data.load(values["--data"], values.get("--data-root", "data"))
    with pytest.raises(SystemExit, match="2"):
        common.command(lambda: data.main(["prepare", *flags]))
    assert "is empty" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- depths

GREY = np.random.default_rng(0).integers(0, 256, (12, 32, 32)).astype(np.float64)
GREY[:, 0, 0] = 255


def save_all(folder, values, ending="tif"):
    folder.mkdir()
    for i, x in enumerate(values):
        Image.fromarray(x).save(folder / f"{i:03d}.{ending}")
    return folder


@pytest.mark.parametrize(("name", "values", "says"), [
    ("8 bits", GREY.astype(np.uint16), "0 ... 255 become"),
    ("10 bits", (GREY * 4 + 3).astype(np.uint16), "0 ... 1023 become"),
    ("12 bits", (GREY * 16 + 7).astype(np.uint16), "0 ... 4095 become"),
    ("14 bits", (GREY * 64 + 7).astype(np.uint16), "0 ... 16383 become"),
    ("16 bits", (GREY * 256 + 7).astype(np.uint16), "0 ... 65535 become"),
    ("32-bit file", (GREY * 16).astype(np.int32), "0 ... 4095 become"),
    ("floats to 1", (GREY / 255).astype(np.float32), "floats: 0 ... 1 become"),
    ("floats between", (GREY - 0.4).clip(0).astype(np.float32), "floats: 0 ... 255 become"),
    ("floats to 255", GREY.astype(np.float32), "floats: 0 ... 255 become")])
def test_the_range_of_the_whole_set_decides_its_scale(tmp_path, name, values, says):
    """Though single images are darker: scaled by their own range, these would be brightened."""
    values = values.copy()
    values[5] = values[5] / 16
    parts = data.load(str(save_all(tmp_path / "set", values)), resolution="32")
    x = torch.cat([p.pixels for p in parts])[:, 0].numpy().astype(int)
    whole = np.delete(np.arange(12), 5)
    assert np.array_equal(x[whole], GREY[whole])
    assert np.abs(x[5] - GREY[5] / 16).max() <= 1
    assert says in notes(parts)


def test_values_below_zero_are_refused(tmp_path):
    folder = save_all(tmp_path / "set", (GREY / 127.5 - 1).astype(np.float32))
    with pytest.raises(data.DataError, match="set/000.tif has values from -1 to 1; scale the set's images to 0"):
        data.load(str(folder))


def test_values_that_are_no_numbers_are_black(tmp_path):
    values = (GREY / 255).astype(np.float32)
    values[3, 4, 5:8] = np.nan, np.inf, -np.inf
    x = data.load(str(save_all(tmp_path / "set", values)), resolution="32")[0].pixels[3, 0]
    assert x[4, 5:8].tolist() == [0, 0, 0]
    assert np.array_equal(x[8:], GREY[3, 8:])


def test_a_single_photo_of_12_bits_or_of_floats(tmp_path):
    folder = save_all(tmp_path / "set", [(GREY[0] * 16).astype(np.uint16), (GREY[0] / 255).astype(np.float32),
                                         (GREY[0] * 256).astype(np.uint16), GREY[0].astype(np.uint8)])
    x = data.read_images(sorted(folder.iterdir()), 1)
    assert (x[:, 0].numpy() == GREY[0]).all()


# ------------------------------------------------------------------------------------------------------ held out

@pytest.mark.parametrize("is_zip", [False, True])
def test_equal_files_stand_in_one_part(tmp_path, is_zip):
    folder = fill(tmp_path / "set", 40)
    for old, new in ((3, "zz1"), (4, "zz2"), (39, "000a"), (38, "000b"),       # of the head at the tail, and back
                     (37, "zz3")):                                          # and within the test part
        shutil.copy(folder / f"{old:03d}.png", folder / f"{new}.png")
    parts = train, test = data.load(zipped(folder) if is_zip else str(folder))
    assert (len(train) + len(test), len(test)) == (45, 5)
    a, b = ({bytes(x) for x in part.pixels.numpy()} for part in parts)
    assert not a & b
    assert (len(a), len(b)) == (36, 4)
    assert "equal files: 5 more than once, each kept in one part" in notes(parts)
    assert len(data.load(str(fill(tmp_path / "plain", 40)))[1]) == 4


def test_files_of_one_size_are_compared_to_the_last_byte(tmp_path):
    """Uncompressed files that are equal in size and in their middle."""
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(20):
        x = np.zeros((40, 40), np.uint8)
        x[-1, -1] = i // 2                                              # pairs of equal files
        Image.fromarray(x).save(folder / f"{i % 2}{i:02d}.bmp")
    train, test = data.load(str(folder), resolution="40")
    assert "equal files: 10 more than once" in notes((train, test))
    assert not {*train.pixels[:, 0, -1, -1].tolist()} & {*test.pixels[:, 0, -1, -1].tolist()}
    assert len({*test.pixels[:, 0, -1, -1].tolist()}) == 2


def test_a_test_part_keeps_no_picture_of_the_training_part(tmp_path):
    for part, n in (("train", 8), ("test", 10)):
        fill(tmp_path / "set" / part, n)
    parts = data.load(str(tmp_path / "set"))
    assert [len(p) for p in parts] == [8, 2]
    assert parts[1].ids.tolist() == [8, 9]
    assert "equal files: 8 of the test part are in the training part, and count there alone" in notes(parts)
    for name in ("008.png", "009.png"):
        (tmp_path / "set" / "test" / name).unlink()
    with pytest.raises(data.DataError, match="has 8 image.s. that differ, too few for a training and a test"):
        data.load(str(tmp_path / "set"))


@pytest.mark.parametrize(("n", "held"), [(2, 1), (3, 1), (4, 2), (9, 2), (19, 2), (29, 2), (30, 3), (100, 10)])
def test_two_images_are_held_out_if_there_are_four(tmp_path, n, held):
    parts = data.load(str(fill(tmp_path / "set", n)))
    assert [len(p) for p in parts] == [n - held, held]
    assert ("one held-out image alone" in notes(parts)) == (held == 1)


def test_classes_of_one_image_each_are_held_out_as_one(tmp_path):
    for i in range(20):
        fill(tmp_path / "set" / f"person{i:02d}", 1, first=i)
    train, test = data.load(str(tmp_path / "set"))
    assert (len(train), len(test)) == (18, 2)
    fill(tmp_path / "two" / "a", 8)
    fill(tmp_path / "two" / "b", 1, first=8)
    assert len(data.load(str(tmp_path / "two"))[1]) == 2


@pytest.mark.parametrize("is_zip", [False, True])
def test_images_that_cannot_be_read_are_left_out_before_the_cut(tmp_path, capsys, is_zip):
    folder = fill(tmp_path / "set", 14)
    for name in ("012.png", "013.png"):
        (folder / name).write_bytes(b"no image")
    train, test = data.load(zipped(folder) if is_zip else str(folder), skip_bad=True)
    assert (train.ids.tolist(), test.ids.tolist()) == (list(range(10)), [10, 11])
    assert "left out 2 of 14 images" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ what identifies a set

def test_a_set_is_known_by_its_images_and_not_by_its_name(tmp_path):
    train, _ = data.load(str(fill(tmp_path / "set", 40)))
    args = dict(image_shape=list(train.shape), train_images=len(train), image_means=train.means())
    (tmp_path / "set").rename(tmp_path / "other")
    renamed, _ = data.load(str(tmp_path / "other"))
    assert renamed.unlike(args) == ""
    assert renamed.fingerprint() == train.fingerprint()
    assert data.load(zipped(tmp_path / "other", "x/"))[0].unlike(args) == ""
    others, _ = data.load(str(fill(tmp_path / "others", 40, first=100)))
    assert others.unlike(args) == "36 images 1x32x32, and others has as many others"
    old = {k: v for k, v in args.items() if k != "image_means"}         # as runs of old have it
    assert others.unlike(old) == ""
    fewer, _ = data.load(str(fill(tmp_path / "fewer", 30)))
    assert fewer.unlike(old) == "36 images 1x32x32, and fewer has 27, 1x32x32"
    assert fewer.unlike({**old, "train_images": 0, "image_shape": [3, 64, 64]}) == (     # of public weights
        "images 3x64x64, and fewer has 27, 1x32x32")
    Image.new("L", (40, 40), 140).save(tmp_path / "other" / "007.png")  # one of them is another
    assert data.load(str(tmp_path / "other"))[0].unlike(args) != ""


def test_classes_are_told_by_name_and_count(tmp_path):
    classes_of(tmp_path / "set", [f"c{i:02d}" for i in range(15)], 2)
    line = data.load(str(tmp_path / "set"))
    first = notes(line).split("\n")[0]
    assert first == "classes: " + ", ".join(f"c{i:02d} (2)" for i in range(12)) + " ... 15 in all"
    assert notes(data.load(str(fill(tmp_path / "plain")))).startswith("classes: none\nheld out: the last tenth")


# ------------------------------------------------------------------------------------------- processes of one job

def test_processes_of_a_machine_decode_a_set_once(tmp_path, monkeypatch):
    folder = fill(tmp_path / "set", 20)
    (folder / "007.png").write_bytes(b"no image")
    alone = data.load(str(folder), skip_bad=True)
    monkeypatch.setattr(data.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    first = data.load(str(folder), skip_bad=True)
    monkeypatch.setattr(data.Store, "image", None)                      # nothing is decoded from here on
    for rank in "12":
        assert len([*(tmp_path / "temporary").iterdir()]) == 3 - int(rank)      # one for each that will come
        monkeypatch.setenv("RANK", rank)
        for a, b, c in zip(alone, first, data.load(str(folder), skip_bad=True), strict=True):
            assert torch.equal(a.pixels, b.pixels)
            assert torch.equal(a.pixels, c.pixels)
            assert a.ids.tolist() == c.ids.tolist()
    assert not [*(tmp_path / "temporary").iterdir()]
    monkeypatch.undo()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")                         # on another machine: by itself
    monkeypatch.setenv("RANK", "4")
    assert len(data.load(str(folder), skip_bad=True)[0]) == len(alone[0])


def test_batches_for_a_gpu_are_pinned(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "RESIDENT_BYTES", 0)
    train, _ = data.load(str(fill(tmp_path / "set")))
    seen = []

    def loader(*args, pin_memory=False, **kwargs):
        seen.append(pin_memory)
        return iter([torch.zeros(1)])
    monkeypatch.setattr(torch.utils.data, "DataLoader", loader)
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **k: x)
        next(data.batches(train, 4, 0, 0, torch.device(device)))
    assert seen == [False, True]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("batch", [18, 20])
def test_a_batch_larger_than_the_set_is_said_once(tmp_path, capsys, batch, rank):
    train, _ = data.load(str(fill(tmp_path / "set")))
    source = data.batches(train, batch, 0, 0, torch.device("cpu"), rank, 2)
    for _ in range(3):
        assert len(next(source)) == batch // 2
    assert capsys.readouterr().out.count("a batch of 20 is more than the 18 training images") == (batch > 18
                                                                                                  and rank == 0)




class Slow(data.Images):
    """Of which the last image takes for ever."""

    def take(self, indices, size=None):
        if len(self) - 1 in indices:
            time.sleep(1000)
        return super().take(indices, size)


def slow_batches(folder, monkeypatch):
    """-> batches of ten images, and their two workers."""
    monkeypatch.setattr(data, "RESIDENT_BYTES", 0)
    train, _ = data.load(str(fill(folder, 40)))
    slow = Slow("set", "train", "set", train.ids, train.shape, store=train.store)
    before = {*multiprocessing.active_children()}
    source = data.batches(slow, 1, 0, 0, torch.device("cpu"), workers=2)
    next(source)
    return source, {*multiprocessing.active_children()} - before


def test_a_worker_is_missed_when_a_batch_is_wanted_and_not_amid_a_step(tmp_path, monkeypatch):
    source, workers = slow_batches(tmp_path / "set", monkeypatch)
    os.kill(min(worker.pid for worker in workers), signal.SIGKILL)
    time.sleep(0.5)                                                     # a step, or a checkpoint that is written
    with pytest.raises(data.DataError, match="a process that reads images was killed"):
        for _ in source:
            pass
    assert not {*multiprocessing.active_children()} & workers


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path / "set" / "a", 4)
    (tmp_path / "set" / "a" / "9.png").write_bytes(b"no picture")
    with pytest.raises(data.DataError, match=r"set/a/9.png cannot be read as an image \(UnidentifiedImageError\)"):
        data.read_images([tmp_path / "set"], 1)
    scan = os.scandir

    def guarded(folder):
        if str(folder).endswith("/a"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scan(folder)
    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(data.DataError, match=r"set/a cannot be opened \(Permission denied\); make it readable, or tak"):
        data.load(tmp_path / "set")


def test_workers_that_are_busy_do_not_hold_up_the_end(tmp_path, monkeypatch):
    source, workers = slow_batches(tmp_path / "set", monkeypatch)
    time.sleep(1)
    source.close()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="tells the workers by /proc")
def test_a_killed_worker_ends_the_run_in_one_line(tmp_path, script):
    """As one does that the system kills because memory has run out; on one core, where torch warns of two workers."""
    fill(tmp_path / "set", 40)
    write_streaming_script(tmp_path / "small.py")
    core = min(os.sched_getaffinity(0))
    process = subprocess.Popen(
        [sys.executable, "small.py", "--data", "set", "--backbone", "mlp", "--width", "16", "--resolution", "28",
         "--batch", "8", "--kimg", "1000", "--out", "run"], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, [core]))
    workers = []
    while process.poll() is None and len(workers) < 2:
        time.sleep(0.1)
        workers = (Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                   if (tmp_path / "run" / "checkpoint.pt").exists() else [])
    os.kill(int(workers[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=90)          # Python with torch takes seconds to end on a busy machine
    assert (process.returncode, err.count("\n")) == (2, 1)
    assert err.startswith("error: a process that reads images was killed")
    until = time.time() + 30
    while alive := [worker for worker in workers if Path(f"/proc/{worker}").exists()]:       # they are being ended
        assert time.time() < until, alive
        time.sleep(0.1)
    seen = torch.load(tmp_path / "run" / "checkpoint.pt")["seen"]
    script("alae.py", "--resume", "run", "--kimg", seen / 1000 + 0.032)


def hand_over(pipe):
    """In a reader: one file for the training process."""
    data._leave_signals(0)
    pipe.send(DupFd(0))
    pipe.recv()


@pytest.mark.skipif(sys.platform != "linux", reason="images go from process to process as open files")
def test_a_reader_that_is_hung_up_on_says_nothing(capfd):
    """As the training process does where the end of another reader interrupts it."""
    ours, theirs = multiprocessing.Pipe()
    reader = multiprocessing.get_context("fork").Process(target=hand_over, args=(theirs,))
    reader.start()
    file = ours.recv()
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(file._id[0])
    os.close(file.detach())                                         # after that, it still hands over
    ours.send("the end")
    reader.join()
    assert (reader.exitcode, capfd.readouterr().err) == (0, "")


def test_equal_files_are_not_looked_for_in_huge_folders(tmp_path, monkeypatch):
    fill(tmp_path / "set", 12)
    monkeypatch.setattr(data.Store, "trait", None)                  # not to be called
    monkeypatch.setattr(data, "MANY", 11)
    train, test = data.load(str(tmp_path / "set"))
    assert (len(train), len(test)) == (10, 2)
    assert "equal files: not looked for among 12" in train.notes


def test_a_photos_preview_is_no_second_image(tmp_path):
    photo, preview = (Image.new("RGB", (side, side), "red") for side in (64, 16))
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    assert data.read_images([tmp_path / "a.jpg"], 3).shape == (1, 3, 64, 64)


def test_what_one_process_decoded_is_shared_only_where_there_is_room(monkeypatch, tmp_path):
    monkeypatch.setattr(data.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("unexpected pos 896 vs 808")))
    assert data._once("key", lambda: 5) == 5
    assert not [*tmp_path.iterdir()]
