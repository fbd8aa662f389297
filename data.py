"""Image sets: named ones, folders and zips, their splits, labels and loaders.  Images are uint8 until the device.

    mnist-mini   10,000 + 2,000 digits that come with the code; the default
    mnist        28x28 grey.  --split dw, different writers: the official 60,000 / 10,000;
                 --split sw, same writers: the training file shuffled with seed 0, 50,000 / 10,000   (ALAE 7.1)
    cifar10      32x32 RGB, 50,000 / 10,000
    celeba       aligned faces, the centre square of 178x218.  --split official: two parts of its own partition;
                 --split 5-1: the first five sixths and the last sixth of the files (F-AAE 4.1)
    ffhq         1024x1024 faces, 70,000.  --split 60-10: the first 60,000 in file order and the rest (ALAE 7.2);
                 --split 65-5: the first 65,000 and the rest (LIA)
    celeba-hq    1024x1024 faces, 30,000: the first 27,000 and the rest (ALAE 7.2)
    lsun-bedroom, lsun-cat, lsun-car.  --split all: all but the last 10,000, and these; --split 100k: the first 100,000
                 and these (LIA's 100,000 were ranked among 500,000 by a method that it does not spell out)
    FOLDER       any images below it; class = first sub-folder, or labels from its dataset.json
    FILE.zip     the same, zipped; so also what the StyleGAN2/3 tools write: images and a dataset.json with
                 {"labels": [[name, class], ...]}, or a row of attributes in place of the class, or null

X-train.zip next to X-test.zip, and a folder or zip of train/ and test/ (or val/, valid/, validation/), are one set.  A
set without a test part holds out the last tenth (of each class, if there are classes), and 2 images at least.  Links
are followed once, a file counts once, and equal files stand in one part.  What is no image is left out; `Images.about`
says what was read and what was not.  Files of any size and kind are made alike: grey if all looked-at images are,
floats and more than 8 bits scaled by the range of the whole set, transparent pixels on white, the centre cropped to
the wanted aspect, area averaging.

    python data.py prepare --data ffhq     writes ffhq.pyramid beside the set: its images at 4, 8 ... 128 px, uint8, to
                                           be mapped into memory, so that small images need no decoding of large ones
"""
import argparse
import atexit
import contextlib
import copy
import functools
import hashlib
import http.client
import io
import itertools
import json
import logging
import math
import multiprocessing
import os
import re
import shutil
import signal
import stat
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter, deque
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence

CUTS = {  # sets that are folders or zips: what they are, how many (0: any number); split: end of the training part,
          # begin of the test part, counted from the end if below 0.  The first split is the default
    "ffhq": ("FFHQ's 70,000 images (images1024x1024)", 70_000, {"60-10": (60_000, 60_000), "65-5": (65_000, 65_000)}),
    "celeba-hq": ("CelebA-HQ's 30,000 images", 30_000, {"27-3": (27_000, 27_000)}),
    **{f"lsun-{name}": (f"LSUN's {name} images, out of its LMDB,", 0,
                        {"all": (-10_000, -10_000), "100k": (100_000, -10_000)}) for name in ("bedroom", "cat", "car")},
}
NAMES = ("mnist-mini", "mnist", "cifar10", "celeba", *CUTS)
ENDINGS = tuple(".png .apng .jpg .jpeg .jpe .jfif .jp2 .j2k .webp .avif .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm "
                ".pfm .tga .pcx .qoi".split())
HIDDEN = re.compile(r"(^|/)(\.|__MACOSX/|thumbs\.db$|desktop\.ini$)", re.IGNORECASE)     # of systems and file managers
PARTS = ("train", "training"), ("test", "testing", "val", "valid", "validation")    # what folders of parts are called
RESIDENT_BYTES = 2e9        # smaller sets are decoded once and kept on the device
MANY = 200_000              # files of a folder, above which equal ones are not looked for
BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, zlib.error, zipfile.BadZipFile,
          RuntimeError, Image.DecompressionBombError)      # what Pillow and zipfile raise for a damaged image
logging.getLogger("PIL").addHandler(logging.NullHandler())      # what Pillow would say beside our one line
warnings.filterwarnings("ignore", module="PIL")
warnings.filterwarnings("ignore", "This DataLoader will create")        # more workers than cores: they wait for disks


class DataError(Exception):
    """A data set that cannot be used as asked: what was wrong and what to do, in one line."""


class Images:
    """One part ("train" or "test") of a set, at one resolution.

    shape (C, H, W); source, a name, and ids (N,) int64, the images' positions in it: equal (source, id) is the same
    picture, whatever the split; labels: int64 (N,) classes, bool (N, A) attributes, or None; label_names or None.
    pixels: uint8 (N, C, H, W), or None where the set is too large and `read` decodes one image at a time.
    split: the name of its cut, or None; path: of the folder or zip, or None; notes: lines on how it was read.
    """

    def __init__(self, name, part, source, ids, shape, labels=None, label_names=None, pixels=None, read=None,
                 split=None, path=None, notes=()):
        self.name, self.part, self.source, self.split, self.path, self.notes = name, part, source, split, path, notes
        self.ids, self.shape, self.labels, self.label_names = ids, tuple(shape), labels, label_names
        self.pixels, self.read, self._fingerprint = pixels, read, None

    def __len__(self):
        return len(self.ids)

    def take(self, indices, size=None):
        """uint8 (len(indices), C, H, W), or of another (H, W); of resident sets, a whole fraction of theirs."""
        size = tuple(size or self.shape[1:])
        if self.pixels is not None:
            return shrink(self.pixels[torch.as_tensor(indices)], size)
        return torch.from_numpy(np.stack([self.read(int(i), size) for i in indices]))

    def fingerprint(self):
        """8 hex digits of the part's shape, ids, labels and images (up to 100 of those that stay in files)."""
        if self._fingerprint is None:           # all pixels are hashed once
            few = range(0, len(self), math.ceil(len(self) / 100))
            sha = hashlib.sha256(f"{self.part} {self.shape}".encode())
            for array in (self.ids, self.labels, self.take(few) if self.pixels is None else self.pixels):
                sha.update(np.ascontiguousarray([] if array is None else array))
            self._fingerprint = sha.hexdigest()[:8]
        return self._fingerprint

    def means(self):
        """The mean grey of up to 64 evenly spaced images, in 1/256, 4 hex digits each: what a run keeps of its set."""
        few = range(0, len(self), math.ceil(len(self) / 64))
        return "".join(f"{round(256 * self.take([i]).double().mean().item()):04x}" for i in few)

    def unlike(self, args):
        """What tells these training images from those of a run with these args: "what it had, and what these are", or
        "" if nothing does.  Names do not count, nor what a decoder or a new compression changes by less than a grey."""
        shape, n = tuple(args["image_shape"]), args["train_images"]
        had = f"{n:,} images {'x'.join(map(str, shape))}"
        if (self.shape, len(self)) != (shape, n):
            return f"{had}, and {self.name} has {len(self):,}, {'x'.join(map(str, self.shape))}"
        old, new = (np.frombuffer(bytes.fromhex(m), ">u2").astype(int)
                    for m in (args.get("image_means", ""), self.means()))       # runs of old have none
        others = len(old) and (len(old) != len(new) or abs(old - new).max() > 256)
        return f"{had}, and {self.name} has as many others" if others else ""

    def about(self, held_out):
        """Lines on what was read: classes by name and count, and `notes`."""
        if self.labels is None or self.labels.ndim > 1:
            return ["classes: none" if self.labels is None else f"attributes: {self.labels.shape[1]}", *self.notes]
        labels = torch.cat([part.labels for part in (self, held_out) if part.labels is not None])
        found = [(self.label_names[c] if self.label_names else c, n)
                 for c, n in zip(*map(torch.Tensor.tolist, labels.unique(return_counts=True)), strict=True)]
        return ["classes: " + ", ".join(f"{name} ({n:,})" for name, n in found[:12])
                + f" ... {len(found)} in all" * (len(found) > 12), *self.notes]


class Tiles(Images):
    """Another set cut into tiles of size x size, each an image with its image's label.   (InvGAN 3.3)

    Neighbours in it are parts of different images.  Raises DataError where the sides are no multiples of size.
    """

    def __init__(self, images, size):
        c, h, w = images.shape
        if h % size or w % size:
            raise DataError(f"{images.name}'s images of {w}x{h} do not cut into tiles of {size}; pass --resolution "
                            f"{max(w // size, 1) * size}x{max(h // size, 1) * size}")
        self.images, self.size, self.per = images, size, (h // size) * (w // size)
        i, tile = self._place(np.arange(len(images) * self.per))
        super().__init__(images.name, images.part, f"{images.source}, tiles of {size} of {w}x{h}",
                         np.asarray(images.ids)[i] * self.per + tile, (c, size, size),
                         None if images.labels is None else images.labels[i], images.label_names, split=images.split,
                         path=images.path, notes=images.notes)

    def _place(self, k):
        """-> which image, and which of its tiles, row by row."""
        n = len(self.images)
        return k % n, (k // n + k % n) % self.per

    def take(self, indices, size=None):
        i, tile = self._place(torch.as_tensor(indices))
        known, back = i.unique(return_inverse=True)             # an image is read once
        whole, s, columns = self.images.take(known), self.size, self.images.shape[2] // self.size
        x = torch.stack([whole[b, :, s * (t // columns):s * (t // columns + 1), s * (t % columns):s * (t % columns + 1)]
                         for b, t in zip(back.tolist(), tile.tolist(), strict=True)])
        return shrink(x, tuple(size)) if size else x


# ------------------------------------------------------------------------------------------------- opening a set

def load(data, root="data", split="auto", resolution="auto", skip_bad=False, sizes=None):
    """Open a set.  -> (train, test), both `Images`.

    data: a name of NAMES, or the path of a folder or zip (as typed, or below root).  resolution: "auto", "N" or "WxH",
    pixels; sizes: the resolutions that the caller can use, from which "auto" takes the largest that the set's images
    hold.  Raises DataError: unknown name, missing or empty folder, no zip, unknown split, unreadable images.
    """
    _not_empty(data, root)
    wanted = parse_resolution(resolution)
    if data == "mnist":
        return _mnist(root, split, wanted or _digit_size(sizes))
    if data == "celeba":
        return _celeba(root, split, wanted, skip_bad, sizes)
    if data in CUTS:
        return _cut(data, root, split, wanted, skip_bad, sizes)
    if split != "auto":
        raise DataError(f"--split {split} is for mnist, celeba, ffhq and lsun; {data} has one split: leave --split out")
    if data == "mnist-mini":
        return _mnist_mini(wanted or _digit_size(sizes))
    if data == "cifar10":
        return _cifar10(root, wanted or _default_size(32, sizes))
    for path in (Path(data), Path(root) / data, Path(root) / f"{data}.zip"):
        if path.exists():
            return _files(path, wanted, skip_bad, sizes)
    if data.endswith(".zip") or os.sep in data:
        raise DataError(f"there is no {data}, here or under --data-root {root}; check the path")
    raise DataError(f"unknown data set {data!r}, and no folder or zip of that name here or under --data-root {root}; "
                    f"the names are {', '.join(NAMES)}")


def _not_empty(data, root):
    """Raise DataError where an unset variable has left --data or --data-root empty: it would be this folder."""
    for flag, value in (("--data", data), ("--data-root", root)):
        if not str(value).strip():
            raise DataError(f"{flag} is empty; name a set, a folder or a zip")


def base_name(data):
    """The set's name in tables and run folders: faces128-train.zip -> faces128."""
    name = Path(data).resolve().name
    return name.removesuffix(".zip").removesuffix("-train")


def parse_resolution(text):
    """"64" -> (64, 64), "128x96" -> (128, 96) as (W, H), "auto" -> None."""
    if text == "auto":
        return None
    sides = str(text).split("x")
    if len(sides) > 2 or not all(s.isdecimal() and int(s) > 0 for s in sides):
        raise DataError(f"--resolution {text} is not a size; give N or WxH in pixels, such as 64 or 128x96")
    return int(sides[0]), int(sides[-1])


def _default_size(native, sizes):
    """(W, H): the largest of sizes that an image of `native` px holds, or else the smallest."""
    return (max([s for s in sizes or [native] if s <= native], default=min(sizes or [native])),) * 2


def _resident(name, source, parts, wanted, label_names, pad=0, split=None):
    """(train, test) from arrays: parts = two of (ids, pixels (N, H, W[, C]) uint8, labels).

    Sizes other than the native one are resampled from the images with a black border of `pad` pixels.
    """
    out = []
    for part, (ids, pixels, labels) in zip(("train", "test"), parts, strict=True):
        if wanted == pixels.shape[2:0:-1]:
            pixels = pixels[:, None] if pixels.ndim == 3 else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        else:
            pixels = np.pad(pixels, [(0, 0), (pad, pad), (pad, pad), (0, 0)][:pixels.ndim])
            pixels = np.stack([to_array(Image.fromarray(p), 1 if p.ndim == 2 else 3, wanted) for p in pixels])
        labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
        out.append(Images(name, part, source, np.asarray(ids), pixels.shape[1:], labels, label_names,
                          torch.from_numpy(pixels), split=split))
    return tuple(out)


# MNIST's ids are 0 ... 59,999 for the training file and 60,000 ... for the test file, in every split and in mnist-mini.
# At 32 px digits are padded by two pixels on each side.
DIGITS = [str(i) for i in range(10)]


def _digit_size(sizes):
    return _default_size(28 if 28 in (sizes or [28]) else 32, sizes)


def _mnist_mini(wanted):
    with np.load(Path(__file__).parent / "tests" / "mnist-mini.npz") as f:
        parts = [(first + np.arange(len(f[f"{part}_labels"])), f[f"{part}_images"], f[f"{part}_labels"])
                 for part, first in (("train", 0), ("test", 60000))]
    return _resident("mnist-mini", "mnist", parts, wanted, DIGITS, pad=2)


def _mnist(root, split, wanted):
    if split not in ("auto", "dw", "sw"):
        raise DataError(f"mnist has no split {split!r}; it is dw (different writers) or sw (same writers)")
    train, test = (_torchvision("MNIST", root, train=t, files="train-images-idx3-ubyte, train-labels-idx1-ubyte, "
                                "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte into {}/MNIST/raw") for t in (1, 0))
    images, labels = train.data.numpy(), train.targets.numpy()
    if split == "sw":
        order = np.random.RandomState(0).permutation(60000)
        parts = [(ids, images[ids], labels[ids]) for ids in (order[:50000], order[50000:])]
    else:
        parts = [(np.arange(60000), images, labels),
                 (60000 + np.arange(10000), test.data.numpy(), test.targets.numpy())]
    return _resident("mnist", "mnist", parts, wanted, DIGITS, pad=2, split="sw" if split == "sw" else "dw")


def _cifar10(root, wanted):
    train, test = (_torchvision("CIFAR10", root, train=t, files="the unpacked cifar-10-batches-py into {}")
                   for t in (1, 0))
    parts = [(np.arange(50000), train.data, train.targets), (50000 + np.arange(10000), test.data, test.targets)]
    return _resident("cifar10", "cifar10", parts, wanted, train.classes)


def _torchvision(name, root, train, files):
    """A torchvision set, downloaded when absent.  Raises DataError naming the files where that fails."""
    import torchvision
    try:
        return getattr(torchvision.datasets, name)(root, train=bool(train), download=True)
    except (RuntimeError, OSError, ValueError, http.client.HTTPException) as e:
        reason = " ".join(f"{type(e).__name__} {e}".split())
        raise DataError(f"{name} is neither under --data-root {root} nor to be downloaded ({reason}); "
                        f"put {files.format(root)}, or name the right --data-root") from None


# --------------------------------------------------------------------------------------------- folders and zips

class Store:
    """The image files of a folder or a zip: `images`, names below `top`, the folder that all of them lie in.

    place: what messages and pyramids are named by.  left_out: kind -> how many files are no images, or count already.
    A zip is opened once a process.  Raises DataError where it cannot be.
    """

    def __init__(self, path):
        self.path = self.place = Path(path)
        self.left_out, self.divisors, self._odd = Counter(), {}, {}
        self._zip, self._pid = None, None
        self.images, tables = [], set()
        for name in sorted(self._walk() if self.path.is_dir() else self._list()):
            if HIDDEN.search(name):
                self.left_out["hidden or of a file manager"] += 1
            elif name.lower().endswith(ENDINGS):
                self.images.append(name)
            elif name.split("/")[-1] == "dataset.json":
                tables.add(name)
            else:
                self.left_out[Path(name).suffix.lower() or "without an ending"] += 1
        around = os.path.commonprefix(self.images[:1] + self.images[-1:]).split("/")[:-1]       # noqa: RUF071
        tops = list(itertools.accumulate([""] + [f + "/" for f in around]))
        self.top = next((t for t in tops if t + "dataset.json" in tables), tops[-1])
        self.images = [n[len(self.top):] for n in self.images]
        self.tables = {n[len(self.top):].rpartition("dataset.json")[0] for n in tables if n.startswith(self.top)}

    def _walk(self):
        """The names of a folder's files.  Links are followed, after all else, and no file or folder counts twice."""
        names, seen, here, links = [], set(), deque([""]), deque()
        while here or links:
            linked = not here
            name = (links if linked else here).popleft()
            try:
                about = os.stat(path := f"{self.path}/{name}")
                key, folder = (about.st_dev, about.st_ino), stat.S_ISDIR(about.st_mode)
                inside = sorted(os.scandir(path), key=lambda e: e.name) if folder else ()
            except OSError:                                     # a link to nothing: said when it is read
                names.append(name)
                continue
            if key in seen and (folder or linked or about.st_nlink > 1):
                self.left_out["second names of a file or folder"] += 1
            elif stat.S_ISREG(about.st_mode):
                names.append(name)
            elif not folder:
                self.left_out["pipes or devices"] += 1          # opening one may wait for ever
            elif not name.endswith(".pyramid"):
                for entry in inside:
                    (links if linked or entry.is_symlink() else here).append(f"{name}/{entry.name}".lstrip("/"))
            seen.add(key)
        return names

    def _list(self):
        """The names of a zip's files, with slashes."""
        try:
            listed = self._open().namelist()
        except (*BROKEN, FileNotFoundError) as e:
            raise DataError(f"{self.path} is not a whole zip file ({e}); make or copy it again") from None
        plain = [n.replace("\\", "/").removeprefix("./") for n in listed]
        self._odd = {name: n for name, n in zip(plain, listed, strict=True) if name != n}
        files = [n for n in plain if not n.endswith("/")]
        self.left_out["second entries of a name"] = len(files) - len({*files})
        return {*files}

    def below(self, folder):
        """The part of it that lies in a folder below `top`."""
        part = copy.copy(self)
        part.left_out, part.top = Counter(), f"{self.top}{folder}/"
        part.place = self.path / part.top if self.path.is_dir() else Path(f"{self.path}.{folder}")
        part.images, part.tables = ([n.removeprefix(f"{folder}/") for n in names if n.startswith(f"{folder}/")]
                                    for names in (self.images, self.tables))
        return part

    def __getstate__(self):
        return {**vars(self), "_zip": None, "_pid": None}

    def _open(self):
        if self._pid != os.getpid():
            self._zip, self._pid = zipfile.ZipFile(self.path), os.getpid()
        return self._zip

    def bytes(self, name):
        return (self.path / self.top / name).read_bytes() if self.path.is_dir() else self._open().read(self.info(name))

    def info(self, name):
        """What a zip's directory says of a file."""
        return self._open().getinfo(self._odd.get(self.top + name, self.top + name))

    def trait(self, name, k):
        """What equal files have in common, the closer the larger k is: 0 the size, 1 some bytes, 2 all of them."""
        path = self.path / self.top / name
        try:
            if k == 2:
                return hashlib.sha256(self.bytes(name)).digest()
            if not self.path.is_dir():
                return self.info(name).file_size, self.info(name).CRC
            if k == 0:
                return path.stat().st_size
            with open(path, "rb") as f:
                f.seek(path.stat().st_size // 2)
                return f.read(512)
        except BROKEN:
            return name

    @contextlib.contextmanager
    def opened(self, name, remedy="mend it or take it away, or leave such files out by --skip-bad"):
        """An image as Pillow opens it.  Raises DataError naming the file if that, or the block, fails."""
        try:
            yield Image.open(io.BytesIO(self.bytes(name)))
        except BROKEN as e:
            reason = "it is encrypted" if "encrypted" in str(e) else type(e).__name__
            raise DataError(f"{self.path}/{self.top}{name} cannot be read ({reason}); {remedy}") from None

    def image(self, name, shape, **remedy):
        """One image as uint8 of shape (C, H, W), or for a list of shapes a list.  Raises DataError naming the file."""
        with self.opened(name, **remedy) as image:
            if isinstance(shape, list):
                return [to_array(image, s[0], s[:0:-1], self.divisors) for s in shape]
            return to_array(image, shape[0], shape[:0:-1], self.divisors)

    def labels(self, known=None):
        """-> (int64 (N,) classes, bool (N, A) attributes or None; label names or None) of `images`.

        From dataset.json or the first sub-folders.  known: class names to index by, those of the training part.
        Raises DataError where they cannot be understood.
        """
        if "" in self.tables:
            return self._table()
        names = self.images
        if known and (alone := self.top.split("/")[-2:][0]) in known and self.place == self.path:
            names = [f"{alone}/{n}" for n in names]             # a test part of one class
        tops = [n.split("/")[0] for n in names]
        if not all("/" in n for n in names) or len({*tops, *(known or ())}) < 2:
            return None, None
        classes = known or sorted(set(tops))
        if strangers := set(tops) - set(classes):
            raise DataError(f"{self.place} has a class {min(strangers)!r} that the training part has not; take it away")
        number = {name: i for i, name in enumerate(classes)}
        return torch.tensor([number[t] for t in tops]), classes

    def _table(self):
        try:
            content = json.loads(self.bytes("dataset.json"))
            if not content["labels"]:
                return None, None
            rows = {n.replace("\\", "/"): row for n, row in dict(content["labels"]).items()}
            names = content.get("classes")
        except (*BROKEN, AttributeError, KeyError) as e:
            raise DataError(f"{self.place}: dataset.json is not as the StyleGAN tools write it, with a class or a row "
                            f"of attributes an image ({type(e).__name__} {e}); mend it or take it away") from None
        if missing := [n for n in self.images if n not in rows]:
            raise DataError(f"{self.place}: dataset.json has no label for {missing[0]}; complete it, or set its labels "
                            f"to null")
        rows = {n: rows[n] for n in self.images}
        lists = [row for row in rows.values() if isinstance(row, list)]
        width, values = max(map(len, lists), default=0), (-1, 1) if any(-1 in row for row in lists) else (0, 1)
        for name, row in rows.items():
            if not (isinstance(row, list) and len(row) == width and all(v in values for v in row) if width
                    else type(row) is int and 0 <= row < 2**31):
                raise DataError(f"{self.place}: dataset.json gives {name} the label {json.dumps(row)}; labels are "
                                f"whole numbers from 0, or equally long rows of 0/1, -1/1 or booleans")
        labels = torch.tensor([*rows.values()])
        labels = labels.long() if labels.ndim == 1 else labels > 0
        need = width or int(labels.max()) + 1
        if names is not None and not (isinstance(names, list) and len(names) >= need):
            raise DataError(f"{self.place}: dataset.json's classes are not a list of {need} names or more; mend it")
        return labels, names


def _files(path, wanted, skip_bad, sizes):
    """(train, test) of a folder or zip; see the top of this file for which images are which."""
    stores, held = _parts(path)
    grey, smallest = _survey(stores, skip_bad)
    if wanted is None:
        holds = [s for s in sizes or [2**k for k in range(2, 11)] if s <= smallest]
        if not holds:
            raise DataError(f"the images of {path} are {smallest} px at their smallest side, less than the smallest "
                            f"resolution here, {min(sizes)}; pass --resolution {min(sizes)} to enlarge them")
        wanted = (max(holds),) * 2
    shape = (1 if grey else 3, wanted[1], wanted[0])
    whole, label_names = [], None
    for part, store in zip(("train", "test"), stores, strict=False):
        labels, label_names = store.labels(label_names)
        source = f"{path.resolve()} {part}" if len(stores) == 2 else str(path.resolve())
        whole.append(_part(base_name(path), part, source, store, np.arange(len(store.images)), shape, labels,
                           label_names, skip_bad, len(stores[0].images), path=path.resolve()))
    first, n = _first_of(whole), len(whole[0])
    if len(stores) == 1:
        held_out, again = _held_out(whole[0].labels, first), "more than once, each kept in one part"
        chosen, twins = (~held_out, held_out), first != np.arange(n)
    else:
        twins, again = first[n:] < n, "of the test part are in the training part, and count there alone"
        chosen = np.ones(n, bool), ~twins
    if not chosen[1].any():
        raise DataError(f"{path} has {len({*first})} image(s) that differ, too few for a training and a test part; add "
                        f"images")
    train, test = (_select(images, part, np.flatnonzero(which)) for images, part, which in
                   zip((whole[0], whole[-1]), ("train", "test"), chosen, strict=True))
    train.notes = [f"held out: {held}, {len(test):,} of {len(train) + len(test):,} images"]
    if twins.any():
        train.notes += [f"equal files: {twins.sum():,} {again}"]
    if len(test) == 1:
        train.notes += ["one held-out image alone: distances between sets of images cannot be measured; add images"]
    if len(first) > MANY and stores[0].path.is_dir():
        train.notes += [f"equal files: not looked for among {len(first):,}"]
    train.notes += _notes(stores)
    return train, test


def _notes(stores):
    """Lines on what was left out and on how values were scaled."""
    left = sum((store.left_out for store in stores), Counter())
    notes = [f"left out: {', '.join(f'{n:,} {kind}' for kind, n in left.most_common())}"] if left else []
    return notes + [f"floats: 0 ... {255 * by:g} become 0 ... 255" if kind == "F" else
                    f"more than 8 bits: 0 ... {256 * by - 1:.0f} become 0 ... 255"
                    for kind, by in stores[0].divisors.items()]


def _first_of(parts):
    """-> (N,) int64, for all images of the parts in a row: the place of the first one whose file is equal.

    By size, then some bytes of those of one size, then all of those that are still alike.  Not looked for in folders of
    more than MANY files, nearly all of which would be opened.
    """
    files = [(images.read.store, images.read.store.images[i]) for images in parts for i in images.ids]
    if len(files) > MANY and files[0][0].path.is_dir():
        return np.arange(len(files))
    first, groups = np.arange(len(files)), [range(len(files))]
    with ThreadPool(os.cpu_count()) as pool:
        for k in range(3):
            alike, places = {}, list(itertools.chain(*groups))
            traits = pool.starmap(Store.trait, [(*files[i], k) for i in places], 256)
            numbers = [number for number, group in enumerate(groups) for _ in group]
            for i, key in zip(places, zip(numbers, traits, strict=True), strict=True):
                alike.setdefault(key, []).append(i)
            groups = [group for group in alike.values() if len(group) > 1]
    for group in groups:
        first[group] = group[0]
    return first


def _held_out(labels, first):
    """(N,) bool: the last tenth of the pictures (of each class), 2 or more of 4; equal files go with their first."""
    pictures = np.flatnonzero(first == np.arange(len(first)))
    groups, held = [pictures], np.zeros(len(first), bool)
    if labels is not None and labels.ndim == 1:
        groups = [g for c in labels.unique() if len(g := pictures[(labels[pictures] == c).numpy()]) > 1] or groups
    for group in groups:
        n = max(len(group) // 10, min(2 if len(groups) == 1 else 1, len(group) // 2))
        held[group[len(group) - n:]] = True
    return held[first]


def _select(images, part, chosen):
    """Some images of a whole folder or zip, as a part of the set; a test part's head shows all classes."""
    labels = images.labels
    if labels is not None and part == "test" and labels.ndim == 1:
        chosen = chosen[_interleave(labels[chosen])]
    out = copy.copy(images)
    out.part, out.ids, out.labels = part, images.ids[chosen], None if labels is None else labels[chosen]
    if images.pixels is None:
        out.read = Reader(images.read.store, out.ids, images.shape, images.read.skip_bad)
    else:
        out.pixels = images.pixels[chosen]
    return out


def _part(name, part, source, store, ids, shape, labels, label_names, skip_bad, whole, **kwargs):
    """The `Images` of ids of a store; decoded at once where the set, of `whole` images, is small."""
    images = Images(name, part, source, ids, shape, None if labels is None else labels[ids], label_names,
                    read=Reader(store, ids, shape, skip_bad), notes=_notes([store]), **kwargs)
    if whole * math.prod(shape) < RESIDENT_BYTES:
        _decode(images)
    return images


def _cut(name, root, split, wanted, skip_bad, sizes):
    """(train, test) of a set in `CUTS`: a folder or zip of its name below root."""
    what, count, splits = CUTS[name]
    split = next(iter(splits)) if split == "auto" else split
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; it is {' or '.join(splits)}")
    folder = Path(root) / name
    path = next((p for p in (folder, Path(f"{folder}.zip")) if p.exists()), None)
    if path is None:
        raise DataError(f"there is no {folder} and no {folder}.zip; put {what} there, as files in the order of their "
                        f"names (in sub-folders or not) or a zip of the StyleGAN tools, or name the right --data-root")
    store = Store(path)
    n = len(store.images)
    end, begin = (i if i >= 0 else n + i for i in splits[split])
    if n != (count or n) or not 0 < end <= begin < n:
        raise DataError(f"{path} has {n:,} images, and {name} has {f'{count:,}' if count else 'more'}, which its split "
                        f"{split} cuts; complete it, or name it by its path to hold out its last tenth")
    grey, smallest = _survey([store], skip_bad)
    wanted = wanted or _default_size(smallest, sizes)
    labels, label_names = store.labels() if "" in store.tables else (None, None)
    shape = (1 if grey else 3, wanted[1], wanted[0])
    return tuple(_part(name, part, name, store, ids, shape, labels, label_names, skip_bad, n, split=split)
                 for part, ids in (("train", np.arange(end)), ("test", np.arange(begin, n))))


def _celeba(root, split, wanted, skip_bad, sizes):
    """CelebA as torchvision lays it out: img_align_celeba (folder or zip) and its lists below root/celeba."""
    base = Path(root) / "celeba"
    path = next((p for p in (base / "img_align_celeba", base / "img_align_celeba.zip") if p.exists()), None)
    if split not in ("auto", "official", "5-1"):
        raise DataError(f"celeba has no split {split!r}; it is official, or 5-1 (five sixths and one sixth)")
    split = "official" if split == "auto" else split
    needed = base / ("img_align_celeba" if path is None else "list_eval_partition.txt")
    if path is None or (split == "official" and not needed.exists()):
        raise DataError(f"there is no {needed}; put CelebA's img_align_celeba (folder or .zip), "
                        f"list_eval_partition.txt and, for attributes, list_attr_celeba.txt into {base}, or name the "
                        f"right --data-root")
    store = Store(path)
    order = {Path(n).name: i for i, n in enumerate(store.images)}
    n = len(order)
    if split == "5-1":
        parts = np.arange(n * 5 // 6), np.arange(n * 5 // 6, n)
    else:
        rows = [line.split() for line in needed.read_text().splitlines()]
        parts = [np.array([order[name] for name, p in rows if p == which and name in order]) for which in "02"]
    if not all(map(len, parts)):
        raise DataError(f"{path} has {n} images, and {split} leaves a part of them empty; complete it")
    labels = label_names = None
    if (base / "list_attr_celeba.txt").exists():
        _, head, *rows = (base / "list_attr_celeba.txt").read_text().splitlines()
        label_names, labels = head.split(), torch.zeros(n, len(head.split()), dtype=torch.bool)
        for name, *values in map(str.split, rows):
            if name in order:
                labels[order[name]] = torch.tensor([v == "1" for v in values])
    wanted = wanted or _default_size(178, sizes)
    shape = (3, wanted[1], wanted[0])
    return tuple(_part("celeba", part, "celeba", store, ids, shape, labels, label_names, skip_bad, n, split=split)
                 for part, ids in zip(("train", "test"), parts, strict=True))


def _parts(path):
    """-> the one or two stores of the set at `path`, and which part is held out."""
    store = Store(path)
    for test in PARTS[1] if path.name.endswith("-train.zip") else ():
        twin = path.with_name(path.name.removesuffix("-train.zip") + f"-{test}.zip")
        if twin.exists():
            return [store, Store(twin)], twin.name
    folders = {n.split("/")[0].lower(): n.split("/")[0] for n in store.images if "/" in n}
    train, test = (next((folders[name] for name in names if name in folders), None) for names in PARTS)
    if not (train and test):
        return [store], "the last tenth, for there are no folders train and test (or val)"
    if "" in store.tables:
        raise DataError(f"{path} has a dataset.json beside {train} and {test}; put one into each of them")
    parts = [store.below(train), store.below(test)]
    parts[0].left_out = store.left_out + Counter({f"images outside {train} and {test}":
                                                  len(store.images) - sum(len(p.images) for p in parts)})
    return parts, f"the folder {test}"


def _interleave(labels):
    """The order first of each class, second of each class ...: the head of a test part shows all classes."""
    place = torch.zeros_like(labels)
    for c in labels.unique():
        place[labels == c] = torch.arange((labels == c).sum())
    return np.argsort(place.numpy(), kind="stable")


def _survey(stores, skip_bad):
    """(all grey?, smallest side) over up to 256 evenly spaced images of the first of stores; only those of more than 8
    bits are decoded, for all stores' `divisors`.  Raises DataError: no image, values below 0."""
    store, tops = stores[0], {}
    if not store.images:
        raise DataError(f"{store.place} has no images in it; they end in {' '.join(ENDINGS)}")
    grey, smallest, seen = True, math.inf, 0
    for name in store.images[::math.ceil(len(store.images) / 256)]:
        try:
            with store.opened(name) as image:
                deep = image.mode[0] in "IF"
                values = _values(image) if deep else np.zeros(1)
        except DataError:
            if skip_bad:
                continue
            raise
        if deep:
            tops[image.mode[0]] = max(values.max(), tops.get(image.mode[0], 0))
        if values.min() < -values.max() / 4:                    # less is what resampling leaves
            raise DataError(f"{store.path}/{store.top}{name} has values from {values.min():g} to {values.max():g}; "
                            f"scale the set's images to 0 ... 1, 0 ... 255 or 0 ... 65535")
        grey &= image.mode in ("1", "L", "LA") or deep
        smallest, seen = min(smallest, *image.size), seen + 1
    if not seen:
        raise DataError(f"{store.place} has no image that can be read; check its files")
    for each in stores:
        each.divisors = {kind: divisor(kind, top, (8, 10, 12, 14, 16, 24, 32)) for kind, top in tops.items()}
    return grey, smallest


def read_images(paths, channels, size=None, n=None):
    """Image files, and the first n of folders, zips and GIFs -> uint8 (N, channels, H, W); size (H, W), or None: that
    of the first image.  Raises DataError where one cannot be read."""
    out = []
    for path in map(Path, paths):
        try:
            if path.is_dir() or path.suffix.lower() == ".zip":
                store = Store(path)
                pictures = (Image.open(io.BytesIO(store.bytes(name))) for name in store.images)
            else:
                image = Image.open(path)                        # a photo's preview (MPO) is no second image
                pictures = [image] if image.format == "MPO" else ImageSequence.Iterator(image)
            before = len(out)
            for image in itertools.islice(pictures, n):
                size = size or ImageOps.exif_transpose(image).size[::-1]
                out.append(torch.tensor(to_array(image, channels, tuple(size)[::-1])))
        except BROKEN as e:
            raise DataError(f"{path} cannot be read as an image ({e}); name another file") from None
        if len(out) == before:
            raise DataError(f"{path} holds no images; name another")
    return torch.stack(out)


class Reader:
    """reader(i, (H, W)) -> image i as (C, H, W) uint8, from the set's pyramid where that has the size.

    With skip_bad an unreadable image's place is taken by the next one.
    """

    def __init__(self, store, ids, shape, skip_bad):
        self.store, self.ids, self.names = store, ids, [store.images[i] for i in ids]
        self.shape, self.skip_bad, self.told = shape, skip_bad, set()
        self.pyramid = pyramid_of(store)

    def mapped(self, size):
        """The whole store's images at (H, W), uint8 (N, C, H, W) mapped into memory, or None."""
        return self.pyramid.get((self.shape[0], *size))

    def __call__(self, i, size):
        if (ready := self.mapped(size)) is not None:
            return np.array(ready[self.ids[i]])
        for k in range(i, i + len(self.names)):
            name = self.names[k % len(self.names)]
            try:
                return self.store.image(name, (self.shape[0], *size))
            except DataError as e:
                if not self.skip_bad:
                    raise
                if name not in self.told:
                    self.told.add(name)
                    print(f"left out: {e}".split(";")[0], file=sys.stderr)
        raise DataError(f"{self.store.place} has no image that can be read; check its files")


def _decode(images):
    """Read the whole part into images.pixels; with skip_bad leave out, and count, what cannot be read."""
    reader = images.read
    if (ready := reader.mapped(images.shape[1:])) is not None:
        images.pixels = torch.from_numpy(ready[reader.ids])
        return

    def read(name):
        try:
            return reader.store.image(name, images.shape)
        except DataError:
            if not reader.skip_bad:
                raise

    def decode():
        with ThreadPool(os.cpu_count()) as pool:
            pixels = list(pool.imap(read, reader.names, chunksize=64))
        good = [i for i, p in enumerate(pixels) if p is not None]
        if not good:
            raise DataError(f"{reader.store.place} has no image that can be read; check its files")
        return torch.tensor(good), torch.from_numpy(np.stack([pixels[i] for i in good]))
    key = repr((reader.store.place.resolve(), images.shape, images.part, images.split, reader.skip_bad))
    good, images.pixels = _once(hashlib.sha256(key.encode()).hexdigest()[:16], decode)
    good = good.numpy()
    if (left := len(images) - len(good)) and int(os.environ.get("RANK", 0)) == 0:
        bad = min({*range(len(images))} - {*good.tolist()})
        print(f"left out {left} of {len(images)} images of {reader.store.place} that cannot be read, the first "
              f"{reader.names[bad]}", file=sys.stderr)
    images.ids, images.labels = images.ids[good], None if images.labels is None else images.labels[good]


def _once(key, make):
    """What make() gives, tensors.  Of the processes that torchrun starts on a machine, the first leaves them in a
    temporary file, the others map that, and the last one removes it."""
    others, first = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1, int(os.environ.get("RANK", 0)) == 0
    path = Path(tempfile.gettempdir(), f"decoded-{os.getppid()}-{key}")
    with contextlib.suppress(OSError):                          # on another machine there is none
        if others > 0 and not first and path.stat().st_uid == os.getuid():
            made = torch.load(path, mmap=True, weights_only=True)
            with open(f"{path}.readers", "ab", 0) as file:
                file.write(b".")
                if file.tell() == others:
                    path.unlink()
                    Path(file.name).unlink()
            return made
    made = make()
    if others > 0 and first:
        for left in (path, Path(f"{path}.readers")):            # by a job that was killed
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
            atexit.register(left.unlink, missing_ok=True)       # should not all of the others come
        # without room for it torch.save raises RuntimeError
        with contextlib.suppress(OSError, RuntimeError), tempfile.NamedTemporaryFile(dir=path.parent) as file:
            torch.save(made, file)
            file.flush()
            os.link(file.name, path)
    return made


def pyramid_of(store):
    """-> {(C, H, W): all images of a store at that size, uint8 (N, C, H, W), mapped into memory}, as `prepare` made it.

    Empty where there is none.  Raises DataError where it is that of other images.
    """
    folder = Path(f"{store.place}.pyramid")
    if not folder.exists():
        return {}
    try:
        about = json.loads((folder / "set.json").read_text())
        if about["images"] != _digest(store):
            raise DataError(f"{folder} was made of other images than {store.place} has; delete it, or prepare it anew")
        return {tuple(shape): np.memmap(folder / "x".join(map(str, shape)), np.uint8, "r",
                                        shape=(len(store.images), *shape)) for shape in about["shapes"]}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{folder} cannot be read ({type(e).__name__}); delete it, or prepare it anew") from None


def _digest(store):
    """Of the names and sizes of a store's images, and of a zip's checksums."""
    lead = store.top if store.place == store.path else ""
    if store.path.is_dir():
        about = [(lead + n, (store.path / store.top / n).stat().st_size) for n in store.images]
    else:
        about = [(lead + n, store.info(n).file_size, store.info(n).CRC) for n in store.images]
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def prepare(data, root="data", resolution="auto"):
    """Write PATH.pyramid beside each folder or zip of a set: its images at 4, 8, ... px, as `Reader` has them.

    resolution: the largest, "N" or "WxH"; others are its halves.  -> the folders.  Raises DataError.
    """
    _not_empty(data, root)
    celeba = Path(root) / "celeba" / "img_align_celeba"
    found = [p for p in ((celeba, Path(f"{celeba}.zip")) if data == "celeba" else
                         (*[Path(data)] * (data not in NAMES), Path(root) / data, Path(root) / f"{data}.zip"))
             if p.exists()]
    if data in ("mnist-mini", "mnist", "cifar10"):
        raise DataError(f"{data} is small and kept in memory; it needs no pyramid")
    if not found:
        raise DataError(f"there is no folder or zip {data}, here or under --data-root {root}; check the path")
    stores, out = _parts(found[0])[0], []
    grey, smallest = _survey(stores, False)
    w, h = parse_resolution(resolution) or (min(2**int(math.log2(smallest)), 128),) * 2
    if max(w, h) not in [4 << k for k in range(9)]:
        raise DataError(f"a pyramid's larger side is 4, 8, ... or 1024 px, not {max(w, h)}; pass another --resolution")
    shapes = [(1 if grey else 3, h >> k, w >> k) for k in range(9) if max(h, w) >> k >= 4 and not (h | w) % 2**k]
    for store in stores:
        folder = Path(f"{store.place}.pyramid")
        part = Path(f"{folder}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)

        read = functools.partial(store.image, shape=shapes, remedy="mend it or take it away")
        try:
            with contextlib.ExitStack() as stack, ThreadPool(os.cpu_count()) as pool:
                files = [stack.enter_context(open(part / "x".join(map(str, shape)), "wb")) for shape in shapes]
                for begin in range(0, len(store.images), 1024):
                    for arrays in pool.map(read, store.images[begin:begin + 1024], 16):
                        for file, array in zip(files, arrays, strict=True):
                            file.write(array.tobytes())
                    print(f"  {min(begin + 1024, len(store.images)):,} of {len(store.images):,} images", flush=True)
            (part / "set.json").write_text(json.dumps(dict(images=_digest(store), shapes=shapes)))
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        print(f"wrote {folder}: {len(store.images):,} images at " + ", ".join(f"{s[2]}x{s[1]}" for s in shapes))
        out.append(folder)
    return out


def _values(image):
    return np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)


def divisor(kind, top, bits=(8, 12, 16, 32)):
    """What grey values of more than 8 bits are divided by, to come to 0 ... 255: floats (kind "F") up to about 1, or
    the next depth in `bits` of whole numbers (kind "I") up to `top`, as cameras of 12 bits write files of 16."""
    if kind == "F" and top < 2:
        return 1 / 255
    return 2.0 ** (next((b for b in bits if top < 2**b), 32) - 8)


def to_array(image, channels, size, divisors=None):
    """A Pillow image of any mode -> uint8 (channels, H, W): upright, centre crop to the aspect of size, area average.

    Transparent pixels show white; CMYK and palettes become RGB.  size = (W, H).  divisors: {"I" or "F": that of the
    image's set}; without, the image's own largest value decides.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":                       # older versions of Pillow open 16-bit files as mode I
        kind, values = image.mode[0], _values(image)
        values /= (divisors or {}).get(kind) or divisor(kind, values.max())
        image = Image.fromarray((values.round() if kind == "F" else values).clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    (w, h), (W, H) = image.size, size
    scale = min(w / W, h / H)
    left, top = (w - scale * W) / 2, (h - scale * H) / 2
    if (w, h) != (W, H):
        box = max(left, 0), max(top, 0), min(left + scale * W, w), min(top + scale * H, h)      # rounding
        image = image.resize((W, H), Image.Resampling.BOX, box=box)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


# ------------------------------------------------------------------------------------------------------- loading

def shrink(x, size):
    """uint8 images (N, C, H, W) averaged down to size (h, w), a whole fraction of theirs, rounded."""
    if x.shape[2:] == tuple(size):
        return x
    return torch.nn.functional.avg_pool2d(x.float(), x.shape[2] // size[0]).round().to(torch.uint8)


@functools.lru_cache(maxsize=4)
def permutation(n, seed, epoch):
    """The order of one pass over n images."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))


def order(n, seed, begin, count):
    """Positions begin ... begin + count - 1 of the endless stream of passes over n images.  -> int64 (count,)"""
    out = []
    while count:
        epoch, at = divmod(begin, n)
        out.append(permutation(n, seed, epoch)[at:at + count])
        begin, count = begin + len(out[-1]), count - len(out[-1])
    return torch.cat(out)


def batches(images, plan, seed, seen, device, rank=0, world=1, workers=0):
    """Endless batches of uint8 images on `device`, (batch / world, C, H, W) each.

    plan: batch, or plan(images seen) -> (batch, (H, W)); of resident sets, sizes are whole fractions of the images'.
    Which images a batch holds is a function of (seed, images seen, rank, world): step k shows the same ones to the
    processes together, however many they are.
    """
    def indices(begin):
        told = rank > 0
        while True:
            batch, size = plan(begin) if callable(plan) else (plan, images.shape[1:])
            if batch > len(images) and not told:
                told = True
                print(f"note: a batch of {batch} is more than the {len(images)} training images: each step shows some "
                      f"twice or more, and a run soon knows them by heart; add images, or pass a smaller --batch")
            yield order(len(images), seed, begin, batch)[rank::world], size
            begin += batch
    if images.pixels is not None:
        pixels = small = images.pixels.to(device)
        for chosen, size in indices(seen):
            if small.shape[2:] != tuple(size):          # a new level: the whole set, once
                whole = pixels.shape[2:] == tuple(size)
                small = pixels if whole else torch.cat([shrink(part, size) for part in pixels.split(64)])
            yield small[chosen.to(device, non_blocking=True)]
    else:
        loader = torch.utils.data.DataLoader(
            _Caught(images), sampler=((chosen.tolist(), size) for chosen, size in indices(seen)), batch_size=None,
            num_workers=workers, collate_fn=_as_it_is, prefetch_factor=4 if workers else None,
            worker_init_fn=_leave_signals, pin_memory=device.type == "cuda")
        for x in _watched(loader):
            if isinstance(x, DataError):
                raise x
            yield x.to(device, non_blocking=True)


def _watched(loader):
    """An endless loader's batches; DataError as soon as one is waited for and a worker has been killed.

    At the end the workers are killed: they leave SIGTERM to the training process, and Python would wait for them.
    """
    before = {*multiprocessing.active_children()}
    source, waiting, child = iter(loader), False, getattr(signal, "SIGCHLD", None)      # None on Windows
    workers = {*multiprocessing.active_children()} - before

    def look(*_):
        if waiting and any(worker.exitcode for worker in workers):
            raise DataError("a process that reads images was killed, most likely because memory ran out; go on from "
                            "the last checkpoint by --resume RUN, with fewer --workers (0: none)")

    def end():
        if child and workers:
            signal.signal(child, signal.SIG_DFL)                # or it would be taken for a fault
        for worker in workers:
            worker.kill()
    atexit.register(end)
    if child and workers:
        signal.signal(child, look)
    try:
        while True:
            waiting = True
            look()
            try:
                x = next(source)
            except Exception:                                   # from what the killed one had sent
                for worker in workers:
                    worker.join(0.1)
                look()
                raise
            waiting = False
            yield x
    finally:
        end()
        atexit.unregister(end)


def _leave_signals(worker):
    """Signals are for the training process, which saves and then ends its workers."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):                               # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.excepthook = lambda *_: None        # what hands images over, when the training process hangs up on it


def _as_it_is(batch):
    return batch


class _Caught(torch.utils.data.Dataset):
    """Whole batches; an unreadable image comes back as the error, so that a worker adds no traceback to it."""

    def __init__(self, images):
        self.images = images

    def __getitem__(self, chosen):
        indices, size = chosen
        try:
            return self.images.take(indices, size)
        except DataError as e:
            return e


# ------------------------------------------------------------------------------------------------------- prepare

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(required=True, metavar="prepare").add_parser("prepare", allow_abbrev=False)
    parser.error = sub.error = lambda message: parser.exit(2, f"error: {message}; see python data.py prepare --help\n")
    sub.add_argument("--data", required=True, metavar="NAME|PATH", help="a folder or zip, or its name there")
    sub.add_argument("--data-root", default="data", metavar="DIR", help="where named sets lie")
    sub.add_argument("--resolution", default="auto", metavar="N|WxH",
                     help="the largest size; the default is 128, or what the images hold")
    try:
        prepare(**{{"data_root": "root"}.get(k, k): v for k, v in vars(parser.parse_args(argv)).items()})
    except DataError as e:
        parser.exit(2, f"error: {e}\n")
    except OSError as e:
        parser.exit(2, f"error: {e.filename or 'a file'}: {e.strerror}; make room, or check its permissions\n")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
