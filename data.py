"""Image sets: named ones, folders and zips; their parts, labels and batches.

Contents
    a set              Images, one part of a set; Tiles, a set cut into tiles
    opening a set      load: from --data to a training and a test part; sets that are arrays
    the cut            which images are for training and which are held out
    files              Store: the images of a folder or zip, and their labels
    pixels             any picture as uint8; a set into memory
    pyramids           small copies of large images:  python data.py prepare --data ffhq
    ranking            the images nearest to some, along the manifold:  python data.py rank --data lsun-cat ...
    batches            the order of images, and batches on the device

A folder stands for all images below it; an image's class is its first sub-folder.  A zip holds the same.
Either may have a dataset.json as the StyleGAN2/3 tools write it: {"labels": [[name, class], ...]}, a row of
0/1 in place of a class for attributes, or null.  X-train.zip next to X-test.zip is one set, and so is a
folder or zip of train/ and test/ (or val/, valid/, validation/).  Other sets hold out their last tenth (of
each class).  Links are followed, a file counts once, and equal files never stand in both parts (unless a
folder has more than MANY).
"""
import atexit
import contextlib
import copy
import dataclasses
import functools
import hashlib
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
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common  # before torch, whose threads wait as it says

# isort: split
import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence

SPLITS = {  # the first split of a set is its default
    "mnist": {"dw": "different writers", "sw": "same writers: the training file, shuffled"},    # ALAE 7.1
    "celeba": {"official": "its own parts", "5-1": "five sixths and one sixth"},                # F-AAE 4.1
}
CUTS = {  # sets in the order of their files: what they are, how many (0: any number), and where a split ends
          # the training part and begins the test part, from
          # the end if negative.  65-5: LIA; others: ALAE 7.2
    "ffhq": ("FFHQ's 70,000 images (images1024x1024)", 70_000,
             {"60-10": (60_000, 60_000), "65-5": (65_000, 65_000)}),
    "celeba-hq": ("CelebA-HQ's 30,000 images", 30_000, {"27-3": (27_000, 27_000)}),
    **{f"lsun-{name}": (f"LSUN's {name} images, out of its LMDB,", 0,
                        {"all": (-10_000, -10_000), "100k": (100_000, -10_000)})     # LIA ranked its 100k
       for name in ("bedroom", "cat", "car")},
}
GREY = ("mnist-mini", "mnist", "fashion-mnist", "kmnist", "emnist-letters")     # of 28x28
COLOUR = ("cifar10", "svhn")                    # of 32x32
ARRAYS = GREY + COLOUR                          # -mini: 10,000 + 2,000 digits that come with the code
NAMES = ARRAYS + ("celeba",) + tuple(CUTS)
RESIDENT_BYTES = 2e9        # smaller sets are decoded once and kept on the device
MANY = 200_000              # larger folders are not searched for equal files, which takes long
ENDINGS = tuple(".png .apng .jpg .jpeg .jpe .jfif .jp2 .j2k .webp .avif .bmp .dib .gif .tif .tiff "
                ".ppm .pgm .pbm .pnm .pfm .tga .pcx .qoi".split())
HIDDEN = re.compile(r"(^|/)(\.|__MACOSX/|thumbs\.db$|desktop\.ini$)", re.IGNORECASE)
PARTS = ("train", "training"), ("test", "testing", "val", "valid", "validation")    # folders
logging.getLogger("PIL").addHandler(logging.NullHandler())      # our one line says it
warnings.filterwarnings("ignore", module="PIL")
warnings.filterwarnings("ignore", "This DataLoader will create")      # more workers than cores: they wait for disks


class DataError(common.Error):
    """A set that cannot be used as asked."""


# -------------------------------------------------------------------------------------------- a set

@dataclasses.dataclass(eq=False)
class Images:
    """One part of a set at one resolution, in memory or read image by image."""
    name: str                       # of the set, in tables and run folders
    part: str                       # "train" or "test"
    source: str                     # equal source and id: the same picture, whatever the split
    ids: np.ndarray                 # (N,) int64, positions in the source
    shape: tuple                    # (C, H, W)
    labels: torch.Tensor = None     # int64 (N,) classes, bool (N, A) attributes, or None
    label_names: list = None
    pixels: torch.Tensor = None     # uint8 (N, C, H, W), or None if the set is too large
    store: object = None            # the `Store` that it is read from
    split: str = None
    path: Path = None               # of the folder or zip, if --data is one
    notes: tuple = ()               # lines on how the set was read
    only: str = ""                  # 8 hex digits of the names on a list, if --only chose by one
    _fingerprint = None

    def __len__(self):
        return len(self.ids)

    def take(self, indices, size=None):
        """uint8 (len(indices), C, H, W); size: another (H, W), in memory a whole fraction."""
        size = tuple(size or self.shape[1:])
        if self.pixels is not None:
            return shrink(self.pixels[torch.as_tensor(indices)], size)
        return torch.from_numpy(np.stack([self.read(int(i), size) for i in indices]))

    def read(self, i, size):
        """Image i from its file, uint8 (C, *size); with skip_bad the next in place of a bad one."""
        shape = self.shape[:1] + size
        if shape in self.store.pyramid:
            return np.array(self.store.pyramid[shape][self.ids[i]])
        for k in range(len(self)):
            name = self.store.images[self.ids[(i + k) % len(self)]]
            if (image := self.store.image(name, shape)) is not None:
                return image
            tell_once(self.store.told, self.store.bad[name])
        raise self.store.none_readable()

    def __getitem__(self, batch):
        """The batch (indices, size) for PyTorch's loader;
        its error is returned, to come without a traceback."""
        try:
            return self.take(*batch)
        except DataError as e:
            return e

    def select(self, part, chosen):
        """The images at these positions, as a part of the set."""
        return dataclasses.replace(self, part=part, ids=self.ids[chosen],
                                   labels=None if self.labels is None else self.labels[chosen],
                                   pixels=None if self.pixels is None else self.pixels[chosen])

    def names(self):
        """Of the files; the positions in the source of images without."""
        return [self.store.images[i] if self.store else str(i) for i in self.ids]

    def listed(self, path):
        """The images whose names a file lists, a line each, in the set's order.  Raises DataError."""
        try:
            text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")     # of names in other encodings
        except OSError as e:
            raise DataError(f"--only {path} cannot be read ({e.strerror}); name a list of images, as python data.py "
                            f"rank writes it") from None
        wanted = {line for line in text.splitlines() if line.strip()}
        names = self.names()
        unknown = wanted.difference(names, self.store.bad if self.store else ())
        if unknown or not wanted:
            problem = f"names {min(unknown)}, no training image of {self.name}" if unknown else "names no image"
            raise DataError(f"--only {path} {problem}; write it by python data.py rank, of the same set and --split")
        part = self.select(self.part, np.array([i for i, name in enumerate(names) if name in wanted]))
        part.only = hashlib.sha256("\n".join(sorted(wanted)).encode(errors="surrogateescape")).hexdigest()[:8]
        part.notes = list(self.notes) + [f"only: {len(part):,} of {len(self):,} training images, those of {path}"]
        return part

    def fingerprint(self):
        """8 hex digits of shape, ids, labels and images (up to 100 of those that stay in files)."""
        if self._fingerprint is None:           # gigabytes take seconds: once
            some = range(0, len(self), math.ceil(len(self) / 100))
            sha = hashlib.sha256(f"{self.part} {self.shape}".encode())
            pixels = self.take(some) if self.pixels is None else self.pixels
            for array in (self.ids, self.labels, pixels):
                sha.update(np.ascontiguousarray([] if array is None else array))
            self._fingerprint = sha.hexdigest()[:8]
        return self._fingerprint

    def means(self):
        """The mean grey of up to 64 images, 4 hex digits each, by which a run knows its set."""
        some = range(0, len(self), math.ceil(len(self) / 64))
        return "".join(f"{round(256 * self.take([i]).double().mean().item()):04x}" for i in some)

    def unlike(self, args):
        """How these training images differ from those of a run with these args, or "".  Means that
        are less than a grey apart do not count (decoders and compressions differ), nor do names."""
        shape = tuple(args["image_shape"])
        n = args["train_images"]
        had = f"{f'{n:,} ' if n else ''}images {'x'.join(map(str, shape))}, and {self.name} has"
        if n == 0 and self.shape == shape:                  # public weights: of which images is not known
            return ""
        if self.only != args.get("only_digest", ""):
            return f"the images of another list (--only) than {self.only or 'all'}, {args.get('only_digest') or 'all'}"
        if (self.shape, len(self)) != (shape, n):
            return f"{had} {len(self):,}, {'x'.join(map(str, self.shape))}"
        old, new = (np.frombuffer(bytes.fromhex(means), ">u2").astype(int)
                    for means in (args.get("image_means", ""), self.means()))   # early runs have none
        differ = len(old) and (len(old) != len(new) or abs(old - new).max() > 256)
        return f"{had} as many others" if differ else ""

    def about(self, held_out):
        """Lines on what was read: classes by name and count, then `notes`."""
        if self.labels is None:
            kinds = "classes: none"
        elif self.labels.ndim > 1:
            kinds = f"attributes: {self.labels.shape[1]}"
        else:
            labels = torch.cat([part.labels for part in (self, held_out) if part.labels is not None])
            found = [f"{self.label_names[c] if self.label_names else c} ({n:,})"
                     for c, n in sorted(Counter(labels.tolist()).items())]
            more = f" ... {len(found)} in all" if len(found) > 12 else ""
            kinds = f"classes: {', '.join(found[:12])}{more}"
        return [kinds] + list(self.notes)


def tell_once(told, problem):
    """Say, once, that an image is left out.  told: a set of what was said."""
    if problem not in told:
        told.add(problem)
        print(f"left out: {problem}", file=sys.stderr)


def tile(x, size):
    """Images (N, C, H, W) -> their tiles, row by row, (N, n, C, size, size).   (InvGAN 3.3)"""
    return x.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


class Tiles(Images):
    """A set cut into tiles of size x size, each with its image's label (InvGAN 3.3); neighbours
    come from different images.  Raises DataError if the sides are no multiples of size."""

    def __init__(self, images, size):
        c, h, w = images.shape
        if h % size or w % size:
            raise DataError(f"{images.name}'s images of {w}x{h} do not cut into tiles of {size}; pass "
                            f"--resolution {max(w // size, 1) * size}x{max(h // size, 1) * size}")
        self.images = images
        self.size = size
        self.per_image = (h // size) * (w // size)
        i, at = self._place(np.arange(len(images) * self.per_image))
        super().__init__(images.name, images.part, f"{images.source}, tiles of {size} of {w}x{h}",
                         images.ids[i] * self.per_image + at, (c, size, size),
                         None if images.labels is None else images.labels[i], images.label_names,
                         split=images.split, path=images.path, notes=images.notes, only=images.only)

    def _place(self, k):
        """-> which image, and which of its tiles, row by row."""
        n = len(self.images)
        return k % n, (k // n + k % n) % self.per_image

    def take(self, indices, size=None):
        i, at = self._place(torch.as_tensor(indices))
        once, which = i.unique(return_inverse=True)             # an image is read once
        return shrink(tile(self.images.take(once), self.size)[which, at], size or (self.size, self.size))


# ------------------------------------------------------------------------------------ opening a set

def load(data, root="data", split="auto", resolution="auto", skip_bad=False, sizes=None, only=""):
    """Opens a set.  -> (train, test), both `Images`.

    data: one of NAMES, or a folder or zip (as typed, or below root).  resolution: "auto", "N" or
    "WxH". sizes: the resolutions that the caller can use; "auto" takes the largest that the images
    fill. only: a file of the names of those training images that are to stay. Raises DataError:
    unknown name or split, missing or empty folder, broken zip, unreadable images.
    """
    if only:
        train, test = load(data, root, split, resolution, skip_bad, sizes)
        return train.listed(only), test
    path = _find(data, root)
    wanted = parse_resolution(resolution)
    splits = CUTS[data][2] if data in CUTS else SPLITS.get(data, {})
    if split == "auto":
        split = next(iter(splits), None)
    elif not splits:
        raise DataError(f"--split {split} is for mnist, celeba, ffhq and lsun; {data} has one split: leave --split out")
    elif split not in splits:
        known = [f"{name} ({SPLITS[data][name]})" if data in SPLITS else name for name in splits]
        raise DataError(f"{data} has no split {split!r}; it is {' or '.join(known)}")
    if data in ARRAYS:
        wanted = wanted or _largest(32, sizes or [32 if data in COLOUR else 28])
        if data == "mnist-mini":
            return _mnist_mini(wanted)
        return _torchvision(data, root, split, wanted)
    if data in NAMES:
        return _named(data, root, path, split, wanted, sizes, skip_bad)
    if path and path.is_file() and path.suffix.lower() in ENDINGS:
        raise DataError(f"{path} is one image, and training needs a folder or zip of them; to reconstruct it by a run "
                        f"that is trained: python eval.py encode RUN {path} --reconstruct out")
    if path:
        return _files(path, wanted, sizes, skip_bad)
    if data == "imagenet":
        raise DataError(f"there is no {Path(root, data)} and no {Path(root, data)}.zip; put its training images there, "
                        f"a folder a class, or name the right --data-root")
    if data.endswith(".zip") or os.sep in data:
        raise DataError(f"there is no {data}, here or under --data-root {root}; check the path")
    raise DataError(f"unknown data set {data!r}, and no folder or zip of that name here or under "
                    f"--data-root {root}; the names are {', '.join(NAMES)}")


def _find(data, root):
    """The folder or zip of a set, or None.  Raises DataError for "", which would be this folder."""
    for flag, value in (("--data", data), ("--data-root", root)):
        if not str(value).strip():
            raise DataError(f"{flag} is empty; name a set, a folder or a zip")
    inside = Path(root) / ("celeba/img_align_celeba" if data == "celeba" else data)
    typed = [] if data in NAMES else [Path(data)]
    return next((path for path in typed + [inside, Path(f"{inside}.zip")] if path.exists()), None)


def base_name(data):
    """The set's name in tables and run folders: faces128-train.zip -> faces128."""
    return Path(data).resolve().name.removesuffix(".zip").removesuffix("-train")


def parse_resolution(text):
    """"64" -> (64, 64), "128x96" -> (128, 96) as (W, H), "auto" -> None."""
    if text == "auto":
        return None
    sides = str(text).split("x")
    if len(sides) > 2 or not all(s.isdecimal() and int(s) > 0 for s in sides):
        raise DataError(f"--resolution {text} is not a size; give N or WxH, such as 64 or 128x96")
    return int(sides[0]), int(sides[-1])


def _largest(native, sizes):
    """(W, H): the largest of sizes that an image of `native` px fills, or else the smallest."""
    return (max([s for s in sizes if s <= native], default=min(sizes)),) * 2


def _mnist_mini(wanted):
    with np.load(Path(__file__).parent / "tests" / "mnist-mini.npz") as f:
        pixels = np.concatenate([f["train_images"], f["test_images"]])
        labels = np.concatenate([f["train_labels"], f["test_labels"]])
    ids = np.r_[:10_000, 60_000:62_000]         # mnist's
    return _in_memory("mnist-mini", ids, pixels, labels, wanted, np.split(np.arange(12_000), [10_000]))


def _torchvision(name, root, split, wanted):
    """A set of torchvision's, downloaded if absent.  ids: the training file's, then the test's."""
    from torchvision.datasets import CIFAR10, EMNIST, KMNIST, MNIST, SVHN, FashionMNIST
    kind = {"mnist": MNIST, "fashion-mnist": FashionMNIST, "kmnist": KMNIST, "emnist-letters": EMNIST,
            "cifar10": CIFAR10, "svhn": SVHN}[name]
    letters = dict(split="letters") if kind is EMNIST else {}
    try:
        if kind is SVHN:
            train, test = (kind(root, split=part, download=True) for part in ("train", "test"))
        else:
            train, test = (kind(root, train=train, download=True, **letters) for train in (True, False))
    except ModuleNotFoundError as e:
        package = e.name.partition(".")[0]
        raise DataError(f"{name} is read through {package}, which is not installed; pip install {package}") from None
    except Exception as e:
        reason = " ".join(f"{type(e).__name__} {e}".split())
        first, second = ("emnist-letters-train", "emnist-letters-test") if letters else ("train", "t10k")
        files = (f"{first}-images-idx3-ubyte, {first}-labels-idx1-ubyte, {second}-images-idx3-ubyte and "
                 f"{second}-labels-idx1-ubyte into {root}/{kind.__name__}/raw" if name in GREY else
                 f"train_32x32.mat and test_32x32.mat into {root}" if kind is SVHN else
                 f"the unpacked cifar-10-batches-py into {root}")
        raise DataError(f"{kind.__name__} is not under --data-root {root}, and its download failed "
                        f"({reason}); put {files}, or name the right --data-root") from None
    for part in (train, test):
        if len(part.data) != len(part.labels if kind is SVHN else part.targets):
            raise DataError(f"{name} under {root} has not as many labels as images; copy its files again")
    if split == "sw" and len(train.data) != 60_000:
        raise DataError(f"{name}'s training file under {root} has {len(train.data):,} images, and its split sw cuts "
                        f"60,000; copy it again")
    pixels = np.concatenate([train.data, test.data])
    if kind is SVHN:
        pixels = pixels.transpose(0, 2, 3, 1)
        labels, names = np.concatenate([train.labels, test.labels]), list("0123456789")
    else:
        labels = np.concatenate([train.targets, test.targets])
        names = train.classes
    if letters:             # its files have rows for columns, and count from 1
        pixels, labels, names = pixels.transpose(0, 2, 1), labels - 1, names[1:]
    ids = np.arange(len(pixels))
    parts = np.split(ids, [len(train.data)])
    if split == "sw":
        parts = np.split(np.random.RandomState(0).permutation(60_000), [50_000])
    return _in_memory(name, ids, pixels, labels, wanted, parts, names, split)


def _in_memory(name, ids, pixels, labels, wanted, parts, names=None, split=None):
    """(train, test) of uint8 digits (N, H, W) or pictures (N, H, W, 3); parts: the positions of
    each.  For another size, digits get a border of two pixels first: 28 px come to 32."""
    digits = pixels.ndim == 3
    if wanted != pixels.shape[2:0:-1]:
        pixels = np.pad(pixels, [(0, 0), (2, 2), (2, 2)]) if digits else pixels
        channels = 1 if digits else 3
        pixels = np.stack([to_array(Image.fromarray(x), channels, wanted) for x in pixels])
    else:
        pixels = pixels[:, None] if digits else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    mnist = name.startswith("mnist")
    whole = Images(name, "train", "mnist" if mnist else name, ids, pixels.shape[1:],
                   torch.from_numpy(labels.astype(np.int64)), list("0123456789") if mnist else names,
                   torch.from_numpy(pixels), split=split)
    return whole.select("train", parts[0]), whole.select("test", parts[1])


# ------------------------------------------------------------------------------------------ the cut

def _named(name, root, path, split, wanted, sizes, skip_bad):
    """(train, test) of celeba, or of a set in `CUTS`."""
    base = Path(root) / name
    if path is None and name == "celeba":
        raise DataError(f"there is no {base / 'img_align_celeba'}; put CelebA's img_align_celeba (folder or "
                        f".zip), list_eval_partition.txt and, for attributes, list_attr_celeba.txt into {base}, "
                        f"or name the right --data-root")
    if path is None:
        raise DataError(f"there is no {base} and no {base}.zip; put {CUTS[name][0]} there, as files in the order of "
                        f"their names (in sub-folders or not) or a zip of the StyleGAN tools, or name the right "
                        f"--data-root")
    store = Store(path, skip_bad)
    n = len(store.images)
    if name == "celeba":
        train, test, labels, label_names = _celeba(store, base, split)
    else:
        end, begin = (i if i >= 0 else n + i for i in CUTS[name][2][split])
        count = CUTS[name][1]
        if n != (count or n) or not 0 < end <= begin < n:
            needs = f"{count:,}" if count else "more"
            raise DataError(f"{path} has {n:,} images, and {name} has {needs}, which its split {split} cuts; "
                            f"complete it, or name it by its path to hold out its last tenth")
        train = range(end)
        test = range(begin, n)
        labels, label_names = store.labels() if "" in store.tables else (None, None)
    survey([store], wanted, sizes or ([178] if name == "celeba" else None))
    whole = Images(name, "train", name, np.arange(n), store.shape, labels, label_names, store=store,
                   split=split, notes=_notes([store]))
    return tuple(_decoded(whole.select(part, np.asarray(chosen)), n)
                 for part, chosen in (("train", train), ("test", test)))


def _celeba(store, base, split):
    """-> positions of both parts, attributes and their names, from the lists in base."""
    n = len(store.images)
    place = {Path(store.images[i]).name: i for i in reversed(range(n))}     # of a name twice, the first
    if split == "5-1":
        train = range(n * 5 // 6)
        test = range(n * 5 // 6, n)
    else:
        partition = base / "list_eval_partition.txt"
        if not partition.exists():
            raise DataError(f"there is no {partition}; put CelebA's there, or pass --split 5-1")
        rows = [line.split() for line in partition.read_text("utf-8-sig", "replace").splitlines() if line.strip()]
        if any(len(row) != 2 for row in rows) or len(dict(rows)) < len(rows):
            raise DataError(f"{partition} is not a name, each once, and a number a line; put CelebA's own there")
        train, test = ([place[name] for name, part in rows if part == number and name in place] for number in "02")
    if not train or not test:
        raise DataError(f"{store.path} has {n} images, and {split} leaves a part empty; complete it")
    table = base / "list_attr_celeba.txt"
    if not table.exists():
        return train, test, None, None
    _, head, *rows = table.read_text("utf-8-sig", "replace").splitlines() + ["", ""]
    names = head.split()
    marks = {name: values for name, *values in map(str.split, filter(str.strip, rows))}
    if not marks or any(len(values) != len(names) or set(values) - {"1", "0", "-1"} for values in marks.values()):
        raise DataError(f"{table} is not a number, a line of names, and a mark of each for every image; put CelebA's "
                        f"own there")
    if lacking := next((name for name in store.images if Path(name).name not in marks), None):
        raise DataError(f"{table} has no line for {lacking}; put CelebA's own there")
    return train, test, torch.tensor([[mark == "1" for mark in marks[Path(name).name]] for name in store.images]), names


def _files(path, wanted, sizes, skip_bad):
    """(train, test) of a folder or zip."""
    stores, held = _parts(Store(path, skip_bad))
    survey(stores, wanted, sizes)
    wholes = []
    names = None
    for part, store in zip(("train", "test"), stores, strict=False):
        labels, names = store.labels(names)
        source = f"{path.resolve()} {part}" if len(stores) == 2 else str(path.resolve())
        ids = np.arange(len(store.images))
        whole = Images(base_name(path), part, source, ids, store.shape, labels, names, store=store, path=path.resolve())
        wholes.append(_decoded(whole, len(stores[0].images)))
    if len({whole.labels.shape[1:] for whole in wholes if whole.labels is not None}) > 1:
        raise DataError(f"{path} has other labels in its test part than in its training part (classes, attributes); "
                        f"make them alike")
    n = len(wholes[0])
    first = _first_of(wholes)
    if len(stores) == 1:
        held_out = _held_out(wholes[0].labels, first)
        twins = first != np.arange(n)
        again = "more than once, each kept in one part"
    else:
        held_out = np.arange(len(first)) >= n
        twins = held_out & (first < n)
        again = "of the test part are in the training part, and count there alone"
    chosen = np.flatnonzero((held_out & held_out[first])[-len(wholes[-1]):])
    if not len(chosen):
        raise DataError(f"{path} has {len(set(first))} image(s) that differ, too few for a training and a test "
                        f"part; add images")
    labels = wholes[-1].labels
    if labels is not None and labels.ndim == 1:         # the head of the test part shows all classes
        place = defaultdict(itertools.count)
        chosen = chosen[np.argsort([next(place[c]) for c in labels[chosen].tolist()], kind="stable")]
    train = wholes[0].select("train", np.flatnonzero(~held_out[:n]))
    test = wholes[-1].select("test", chosen)
    train.notes = [f"held out: {held}, {len(test):,} of {len(train) + len(test):,} images"]
    if twins.any():
        train.notes += [f"equal files: {twins.sum():,} {again}"]
    if len(test) == 1:
        train.notes += ["one held-out image alone: distances between sets of images cannot be measured; add images"]
    if len({whole.labels is None for whole in wholes}) > 1:
        train.notes += ["labels: in one part alone, so nothing is measured by classes"]
    if len(first) > MANY and path.is_dir():
        train.notes += [f"equal files: not looked for among {len(first):,}"]
    train.notes += _notes(stores)
    return train, test


def _parts(store):
    """-> the one or two stores of a set, and which part is held out."""
    path = store.path
    for test in PARTS[1] if path.name.endswith("-train.zip") else ():
        twin = path.with_name(path.name.removesuffix("-train.zip") + f"-{test}.zip")
        if twin.exists():
            return [store, Store(twin, store.skip_bad)], twin.name
    tops = {name.split("/")[0] for name in store.images if "/" in name}
    folders = {top.lower(): top for top in sorted(tops)}
    train, test = (next((folders[name] for name in names if name in folders), None) for names in PARTS)
    if not (train and test):
        return [store], "the last tenth, for there are no folders train and test (or val)"
    if "" in store.tables:
        raise DataError(f"{path} has a dataset.json next to {train} and {test}; put one into each")
    parts = [store.below(train), store.below(test)]
    others = len(store.images) - sum(len(part.images) for part in parts)
    parts[0].left_out = store.left_out + Counter({f"images outside {train} and {test}": others})
    return parts, f"the folder {test}"


def _first_of(wholes):
    """-> (N,) int64, for all images in a row: the position of the first one whose file is equal."""
    files = [(images.store, images.store.images[i]) for images in wholes for i in images.ids]
    first = np.arange(len(files))
    if len(files) > MANY and files[0][0].path.is_dir():
        return first
    alike = dict.fromkeys(range(len(files)), ())
    for closely in range(3):                    # few files are opened, and fewer are read whole
        traits = in_threads(lambda file, closely=closely: file[0].trait(file[1], closely), [files[i] for i in alike])
        alike = {i: known + (trait,) for (i, known), trait in zip(alike.items(), traits, strict=True)}
        count = Counter(alike.values())
        alike = {i: known for i, known in alike.items() if count[known] > 1}
    earliest = {}
    for i, known in alike.items():
        first[i] = earliest.setdefault(known, i)
    return first


def _held_out(labels, first):
    """(N,) bool: the last tenth of the pictures (of each class), 2 or more of 4;
    equal files go with their first."""
    pictures = np.flatnonzero(first == np.arange(len(first)))
    groups = [pictures]
    if labels is not None and labels.ndim == 1:
        classes = (pictures[(labels[pictures] == c).numpy()] for c in labels.unique())
        groups = [group for group in classes if len(group) > 1] or groups
    held = np.zeros(len(first), bool)
    for group in groups:
        n = max(len(group) // 10, min(2 if len(groups) == 1 else 1, len(group) // 2))
        held[group[len(group) - n:]] = True
    return held[first]


def _notes(stores):
    """Lines on what was left out and how values were scaled."""
    left_out = sum((store.left_out for store in stores), Counter())
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in left_out.most_common())
    notes = [f"left out: {kinds}"] if kinds else []
    return notes + [f"floats: 0 ... {255 * by:g} become 0 ... 255" if kind == "F" else
                    f"more than 8 bits: 0 ... {256 * by - 1:.0f} become 0 ... 255"
                    for kind, by in stores[0].divisors.items()]


# -------------------------------------------------------------------------------------------- files

class Store:
    """The image files of a folder or zip, in the order of their names.  Raises DataError if no zip.

    images: names below `top`, the folder that holds them all, or one above that has a dataset.json
    tables: the folders below `top` that have one
    left_out: kinds of files that do not count -> how many
    place: the store's name, also of its pyramid
    shape, divisors: see `survey`;  bad: see `reading`
    """

    def __init__(self, path, skip_bad=False):
        self.path = self.place = Path(path)
        self.skip_bad = skip_bad
        self.bad = {}
        self.told = set()
        self.left_out = Counter()
        self.divisors = {}
        self._zip = self._process = None
        images = []
        tables = []
        for name in sorted(self._walk() if self.path.is_dir() else self._open()[1]):
            kind = Path(name).suffix.lower()
            if HIDDEN.search(name):
                self.left_out["hidden or of a file manager"] += 1
            elif kind in ENDINGS:
                images.append(name)
            elif name.split("/")[-1] == "dataset.json":
                tables.append(name.removesuffix("dataset.json"))
            else:
                self.left_out[kind or "without an ending"] += 1
        shared = os.path.commonprefix(images[:1] + images[-1:])         # noqa: RUF071
        deepest = shared[:shared.rfind("/") + 1]
        self.top = min((t for t in tables if deepest.startswith(t)), key=len, default=deepest)
        self.images = [name.removeprefix(self.top) for name in images]
        self.tables = {t.removeprefix(self.top) for t in tables if t.startswith(self.top)}

    def _walk(self):
        """Yields the names of a folder's files; links come last, and nothing counts twice."""
        plain = [""]
        links = []
        seen = set()
        for queue in (plain, links):                            # both grow on the way
            for name in queue:
                path, inside = f"{self.path}/{name}", ()
                try:
                    about = os.stat(path)
                except OSError:                         # a link to nothing: an error when it is read
                    yield name
                    continue
                if folder := stat.S_ISDIR(about.st_mode):
                    try:
                        inside = sorted(os.scandir(path), key=lambda entry: entry.name)
                    except OSError as e:
                        raise DataError(f"{path} cannot be opened ({e.strerror}); make it readable, or take it "
                                        f"away") from None
                file = about.st_dev, about.st_ino
                if file in seen and (folder or queue is links or about.st_nlink > 1):
                    self.left_out["second names of a file or folder"] += 1
                elif stat.S_ISREG(about.st_mode):
                    yield name
                elif not folder:
                    self.left_out["pipes or devices"] += 1      # opening one may wait for ever
                elif not name.endswith((".pyramid", ".pyramid.part")):
                    for entry in inside:
                        to = links if entry.is_symlink() else queue
                        to.append(f"{name}/{entry.name}".lstrip("/"))
                seen.add(file)

    def _open(self):
        """-> a zip, opened once a process, and its entries by name, with slashes, no folders."""
        if self._process != os.getpid():
            try:
                zipped = zipfile.ZipFile(self.path)
            except OSError as e:
                raise DataError(f"{self.path} cannot be opened ({e.strerror}); check its permissions") from None
            except Exception as e:
                raise DataError(f"{self.path} is not a whole zip file ({e}); make or copy it again") from None
            files = [(entry.filename.replace("\\", "/").removeprefix("./"), entry) for entry in zipped.infolist()]
            files = [(name, entry) for name, entry in files if not name.endswith("/")]
            self._zip, self._process = (zipped, dict(files)), os.getpid()
            self.left_out["second entries of a name"] = len(files) - len(dict(files))
        return self._zip

    def __getstate__(self):
        return {k: v for k, v in vars(self).items() if k != "pyramid"} | dict(_zip=None, _process=None)

    def below(self, folder):
        """The part of it that lies in a folder below `top`."""
        lead = f"{folder}/"
        part = copy.copy(self)
        part._zip, part._process = self._zip, self._process     # to open it again would count its entries again
        part.left_out = Counter()
        part.top = self.top + lead
        part.place = self.path / part.top if self.path.is_dir() else Path(f"{self.path}.{folder}")
        part.images = [name.removeprefix(lead) for name in self.images if name.startswith(lead)]
        part.tables = {name.removeprefix(lead) for name in self.tables if name.startswith(lead)}
        return part

    def bytes(self, name):
        if self.path.is_dir():
            return (self.path / self.top / name).read_bytes()
        zipped, entries = self._open()
        return zipped.read(entries[self.top + name])

    def trait(self, name, closely):
        """What equal files share: 0 their size (in a zip a checksum, too), 1 some bytes, 2 all."""
        try:
            if closely == 2:
                return hashlib.sha256(self.bytes(name)).digest()
            if not self.path.is_dir():
                entry = self._open()[1][self.top + name]
                return entry.file_size, entry.CRC
            size = os.path.getsize(self.path / self.top / name)
            if closely == 0:
                return (size,)
            with open(self.path / self.top / name, "rb") as file:
                file.seek(size // 2)
                return file.read(512)
        except Exception:
            return name

    @contextlib.contextmanager
    def reading(self, name):
        """Around a block that reads an image: if it fails, DataError (skip_bad: `bad`) says why."""
        try:
            yield
        except (DataError, MemoryError):
            raise
        except Exception as e:                          # for a damaged image Pillow raises nearly any
            reason = "it is encrypted" if "encrypted" in str(e) else type(e).__name__
            self.bad[name] = f"{self.path}/{self.top}{name} cannot be read ({reason})"
            if not self.skip_bad:
                raise DataError(f"{self.bad[name]}; mend it or take it away (in training, --skip-bad leaves such files "
                                f"out)") from None

    def picture(self, name):
        return Image.open(io.BytesIO(self.bytes(name)))

    def image(self, name, shape):
        """An image as uint8 (C, H, W); with skip_bad, None if it cannot be read."""
        with self.reading(name):
            return to_array(self.picture(name), shape[0], shape[:0:-1], self.divisors)

    def none_readable(self):
        return DataError(f"{self.place} has no image that can be read; check its files")

    def labels(self, known=None):
        """-> int64 (N,) classes or bool (N, A) attributes, and their names; either may be None.
        known: names of the training part's.  Raises DataError if the labels make no sense."""
        if "" in self.tables:
            return self._table()
        names = self.images
        folder = Path(self.top).name
        if known and folder in known and self.place == self.path:
            names = [f"{folder}/{name}" for name in names]      # a test part of one class
        folders = [name.split("/")[0] for name in names]
        if not all("/" in name for name in names) or len(set(folders).union(known or ())) < 2:
            return None, None
        classes = known or sorted(set(folders))
        if strangers := set(folders).difference(classes):
            raise DataError(f"{self.place} has a class {min(strangers)!r} that the training part has not; take it away")
        number = {name: i for i, name in enumerate(classes)}
        return torch.tensor([number[folder] for folder in folders]), classes

    def _table(self):
        """The labels in dataset.json."""
        try:
            content = json.loads(self.bytes("dataset.json"))
            table = {name.replace("\\", "/"): row for name, row in dict(content["labels"] or {}).items()}
            names = content.get("classes")
        except Exception as e:
            raise DataError(f"{self.place}: dataset.json is not as the StyleGAN tools write it, with a class or "
                            f"a row of attributes an image ({type(e).__name__} {e}); mend it or take it away") from None
        if not table:
            return None, None
        if missing := [name for name in self.images if name not in table]:
            raise DataError(f"{self.place}: dataset.json has no label for {missing[0]}; complete it, or set its "
                            f"labels to null")
        rows = [table[name] for name in self.images]
        lists = [row for row in rows if isinstance(row, list)]
        width = max(map(len, lists), default=0)
        off = -1 if any(-1 in row for row in lists) else 0
        for name, row in zip(self.images, rows, strict=True):
            if width:
                good = isinstance(row, list) and len(row) == width and all(mark in (off, 1) for mark in row)
            else:
                good = type(row) is int and 0 <= row < 2**31
            if not good:
                raise DataError(f"{self.place}: dataset.json gives {name} the label {json.dumps(row)}; labels are "
                                f"whole numbers from 0, or equally long rows of 0/1, -1/1 or booleans")
        labels = torch.tensor(rows)
        need = width or int(labels.max()) + 1
        if names is not None and not (isinstance(names, list) and len(names) >= need):
            raise DataError(f"{self.place}: dataset.json's classes are not a list of {need} names or more; mend it")
        return labels > 0 if width else labels, names

    @functools.cached_property
    def pyramid(self):
        """{(C, H, W): all images at that size, uint8 (N, C, H, W), mapped into memory},
        as `prepare` wrote them.  Raises DataError if it was made of other images."""
        folder = Path(f"{self.place}.pyramid")
        if not folder.exists():
            return {}
        try:
            about = json.loads((folder / "set.json").read_text())
            if about["images"] != self.digest():
                raise DataError(f"{folder} was made of other images than {self.place} has; delete it, or "
                                f"prepare it again")
            n = len(self.images)
            return {tuple(shape): np.memmap(folder / "x".join(map(str, shape)), np.uint8, "r", shape=(n, *shape))
                    for shape in about["shapes"]}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise DataError(f"{folder} cannot be read ({type(e).__name__}); delete it, or prepare it again") from None

    def digest(self):
        """A hash of the images' names and sizes, and of a zip's checksums."""
        top = self.top if self.place == self.path else ""
        about = [(top + name, *self.trait(name, 0)) for name in self.images]
        return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------- pixels

def _values(image):
    return np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)


def divisor(kind, top, bits=(8, 12, 16, 32)):
    """What grey values up to `top` are divided by to fill 0 ... 255: floats (kind "F") may go up to
    about 1, whole numbers ("I") to the next depth in `bits`, because cameras of 12 bits write 16."""
    if kind == "F" and top < 2:
        return 1 / 255
    return 2.0 ** (next((b for b in bits if top < 2**b), 32) - 8)


def to_array(image, channels, size, divisors=None):
    """A Pillow image of any mode -> uint8 (channels, H, W): upright, centre crop, area average.

    Transparent pixels show white.  size: (W, H).  divisors: for modes "I" and "F",
    those of the image's set; without them the image's own largest value decides.
    """
    image = ImageOps.exif_transpose(image)
    kind = image.mode[0]
    if kind in "IF":
        values = _values(image)
        values /= (divisors or {}).get(kind) or divisor(kind, values.max())
        values = values.round() if kind == "F" else values
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != size:
        image = ImageOps.fit(image, size, Image.Resampling.BOX)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_images(paths, channels, size=None, n=None):
    """Image files, and the first n of folders, zips and GIFs -> uint8 (N, channels, H, W).  size:
    (H, W), or None for that of the first image.  Raises DataError if one cannot be read."""
    out = []
    for path in map(Path, paths):
        before = len(out)
        store = None
        try:
            if path.is_dir() or path.suffix.lower() == ".zip":
                store = Store(path)
                pictures = map(store.picture, store.images)
            else:
                image = Image.open(path)                # a photo's preview (MPO) is no second image
                pictures = [image] if image.format == "MPO" else ImageSequence.Iterator(image)
            for image in itertools.islice(pictures, n):
                size = size or ImageOps.exif_transpose(image).size[::-1]
                out.append(torch.tensor(to_array(image, channels, tuple(size)[::-1])))
        except (DataError, MemoryError):
            raise
        except Exception as e:
            if store:                                   # which of its files
                path = f"{path}/{store.top}{store.images[len(out) - before]}"
            if isinstance(e, FileNotFoundError):
                raise DataError(f"there is no {path}; check the path") from None
            reason = type(e).__name__ if store else e
            raise DataError(f"{path} cannot be read as an image ({reason}); name another file") from None
        if len(out) == before:
            raise DataError(f"{path} holds no images; name another")
    return torch.stack(out)


def survey(stores, wanted=None, sizes=None):
    """Sets the stores' shape and divisors, by up to 256 images of the first.

    wanted: (W, H); without it the largest of sizes that the images fill.  Only deep images are
    decoded.  Raises DataError if there is no image, or one that is too small or has values below 0.
    """
    store = stores[0]
    modes = set()
    sides = []
    tops = Counter()            # largest values of deep images, by kind
    if not store.images:
        raise DataError(f"{store.place} has no images in it; they end in {' '.join(ENDINGS)}")
    for i in sorted(permutation(len(store.images), 0, 0)[:256].tolist()):      # even steps may meet one kind alone
        name = store.images[i]
        with store.reading(name):
            image = store.picture(name)
            if (kind := image.mode[0]) in "IF":
                values = _values(image)
                tops[kind] = max(tops[kind], values.max())
                if values.min() < -values.max() / 4:    # less is what resampling leaves
                    raise DataError(f"{store.path}/{store.top}{name} has values from {values.min():g} to "
                                    f"{values.max():g}; scale the set's images to 0 ... 1, 0 ... 255 or 0 ... 65535")
            modes.add(image.mode)
            sides += image.size
    if not sides:
        raise store.none_readable()
    grey = all(mode[0] in "IF" or mode in ("1", "L", "LA") for mode in modes)
    sizes = sizes or common.STYLE_SIZES
    if not wanted and min(sides) < min(sizes):
        raise DataError(f"the images of {store.path} are {min(sides)} px at their smallest side, less than the "
                        f"smallest resolution here, {min(sizes)}; pass --resolution {min(sizes)} to enlarge them")
    w, h = wanted or _largest(min(sides), sizes)
    for each in stores:
        each.shape = 1 if grey else 3, h, w
        each.divisors = {kind: divisor(kind, top, (8, 10, 12, 14, 16, 24, 32)) for kind, top in tops.items()}


def in_threads(function, items, size=64):
    """-> [function(item), ...], by threads; `size` items a job,
    because a job costs as much as a small image."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:        # waits for its threads, or Python may abort at its end
        jobs = pool.map(lambda i: [function(item) for item in items[i:i + size]], range(0, len(items), size))
        return [result for job in jobs for result in job]


def _decoded(images, n):
    """The images, in memory if their set of n is small; with skip_bad, those that can be read."""
    store = images.store
    names = images.names()
    ready = store.pyramid.get(images.shape)
    if n * math.prod(images.shape) >= RESIDENT_BYTES:
        return images
    if ready is not None:
        return dataclasses.replace(images, pixels=torch.from_numpy(ready[images.ids]))

    def decode():
        pixels = in_threads(functools.partial(store.image, shape=images.shape), names)
        good = [i for i, x in enumerate(pixels) if x is not None]
        if not good:
            raise store.none_readable()
        return torch.tensor(good), torch.from_numpy(np.stack([pixels[i] for i in good]))
    key = repr((store.place.resolve(), images.shape, images.part, images.split, store.skip_bad))
    good, pixels = _once(hashlib.sha256(key.encode()).hexdigest()[:16], decode)
    kept = set(good.tolist())
    store.bad |= {name: "" for i, name in enumerate(names) if i not in kept and name not in store.bad}   # process 0's
    if len(good) < len(names) and int(os.environ.get("RANK", 0)) == 0:
        bad = min(set(range(len(names))) - kept)
        print(f"left out {len(names) - len(good)} of {len(names)} images of {store.place} that cannot be read, "
              f"the first {names[bad]}", file=sys.stderr)
    return dataclasses.replace(images.select(images.part, good.numpy()), pixels=pixels)


def _once(key, make):
    """What make() gives, tensors.  Under torchrun process 0 leaves a file of them for
    each other process of its machine, which maps and removes it."""
    rank = int(os.environ.get("RANK", 0))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    path = f"{tempfile.gettempdir()}/decoded-{os.getppid()}-{key}"
    with contextlib.suppress(OSError):                          # there is none on another machine
        if rank and os.stat(f"{path}-{rank}").st_uid == os.getuid():
            made = torch.load(f"{path}-{rank}", mmap=True, weights_only=True)
            os.remove(f"{path}-{rank}")
            return made
    made = make()
    if rank == 0 and processes > 1:                     # torch.save raises RuntimeError if there is no room
        with contextlib.suppress(OSError, RuntimeError), tempfile.NamedTemporaryFile() as file:
            torch.save(made, file)
            file.flush()
            for link in (Path(f"{path}-{other}") for other in range(1, processes)):
                link.unlink(missing_ok=True)                    # of a job that was killed
                atexit.register(link.unlink, missing_ok=True)   # if the other never comes
                os.link(file.name, link)
    return made


# ----------------------------------------------------------------------------------------- pyramids

def prepare(data, root="data", resolution="auto"):
    """Writes PATH.pyramid next to each folder or zip of a set: its images at 4, 8 ... px.  -> them.
    resolution: the largest, "N" or "WxH"; the others are its halves.  Raises DataError."""
    path = _find(data, root)
    if data in ARRAYS:
        raise DataError(f"{data} is small and kept in memory; it needs no pyramid")
    if path is None:
        raise DataError(f"there is no folder or zip {data}, here or under --data-root {root}; check the path")
    stores, _ = _parts(Store(path))
    survey(stores, parse_resolution(resolution), [4, 8, 16, 32, 64, 128])
    channels, h, w = stores[0].shape
    if max(w, h) not in common.STYLE_SIZES:
        raise DataError(f"a pyramid's larger side is 4, 8, ... or 1024 px, not {max(w, h)}; pass another --resolution")
    shapes = [(channels, h >> k, w >> k) for k in range(9) if max(h, w) >> k >= 4 and not (h | w) % 2**k]
    return [_write_pyramid(store, shapes) for store in stores]


def _write_pyramid(store, shapes):
    folder = Path(f"{store.place}.pyramid")
    part = Path(f"{folder}.part")
    try:
        part.mkdir(parents=True)
    except FileExistsError:
        raise DataError(f"{part} is there, so another `prepare` writes it, or was killed; wait for its end, or delete "
                        f"it") from None

    def read(name):
        with store.reading(name):
            image = store.picture(name)
            return [to_array(image, c, (w, h), store.divisors) for c, h, w in shapes]
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(part / "x".join(map(str, shape)), "wb")) for shape in shapes]
            n = len(store.images)
            for begin in range(0, n, 1024):
                for arrays in in_threads(read, store.images[begin:begin + 1024], 16):
                    for file, array in zip(files, arrays, strict=True):
                        file.write(array.tobytes())
                print(f"  {min(begin + 1024, n):,} of {n:,} images", flush=True)
        (part / "set.json").write_text(json.dumps(dict(images=store.digest(), shapes=shapes)))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"wrote {folder}: {n:,} images at " + ", ".join(f"{w}x{h}" for _, h, w in shapes))
    return folder


# ------------------------------------------------------------------------------------------ batches

def shrink(x, size):
    """uint8 images (N, C, H, W) averaged down to (h, w), a whole fraction of theirs, rounded."""
    if x.shape[2:] == tuple(size):
        return x
    return torch.nn.functional.avg_pool2d(x.float(), x.shape[2] // size[0]).round().to(torch.uint8)


@functools.lru_cache(maxsize=4)
def permutation(n, seed, epoch):
    """The order of one pass over n images."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))


def order(n, seed, begin, count):
    """Positions begin ... begin + count - 1 in endless passes over n images.  -> int64 (count,)"""
    out = []
    while count:
        epoch, at = divmod(begin, n)
        out.append(permutation(n, seed, epoch)[at:at + count])
        begin += len(out[-1])
        count -= len(out[-1])
    return torch.cat(out)


def batches(images, plan, seed, seen, device, rank=0, world=1, workers=0):
    """Endless batches of uint8 images on `device`, (batch / world, C, H, W) each.

    plan: batch, or plan(images seen) -> (batch, (H, W)); in memory, sizes are whole fractions of
    the images'. Which images a batch holds depends on (seed, images seen, rank, world) alone: step
    k shows the same ones to the processes together, however many they are.
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
        sampler = ((chosen.tolist(), size) for chosen, size in indices(seen))
        for x in _read_ahead(images, sampler, workers, pin_memory=device.type == "cuda"):
            yield x.to(device, non_blocking=True)


def _leave_signals(worker):
    """Signals are for the training process, which saves and then ends its workers."""
    for name in {"SIGINT", "SIGTERM", "SIGHUP"}.intersection(dir(signal)):      # Windows has no SIGHUP
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.excepthook = lambda *_: None        # of the thread that hands images over, once the training process is gone


def _read_ahead(images, sampler, workers, pin_memory=False):
    """Batches of images by PyTorch's loader, of the sampler's (indices, size); DataError if one
    cannot be read, or is waited for and a worker has been killed."""
    before = multiprocessing.active_children()
    source = iter(torch.utils.data.DataLoader(
        images, None, sampler=sampler, num_workers=workers, prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals, pin_memory=pin_memory))
    workers = set(multiprocessing.active_children()).difference(before)
    if workers and hasattr(signal, "SIGCHLD"):                  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)           # PyTorch's own raises amid a step

    def end():
        for worker in workers:                          # they ignore SIGTERM, and Python would wait
            worker.kill()
    atexit.register(end)
    try:
        for x in source:
            if isinstance(x, DataError):
                raise x
            yield x
    except DataError:
        raise
    except Exception:                                   # after 5 s of waiting PyTorch looks at them
        for worker in workers:
            worker.join(0.1)
        if any(worker.exitcode for worker in workers):
            raise DataError("a process that reads images was killed, most likely because memory ran out; pass "
                            "fewer --workers (0: none); a training run goes on by --resume RUN") from None
        raise
    finally:
        end()
        atexit.unregister(end)


# ------------------------------------------------------------------------------------------ ranking
# LIA 5.2 takes 100,000 of LSUN's first 500,000 images by "ranking algorithm (Zhou et al., 2003)",
# and no more is said. Features, neighbours, kernel and queries are ours.

NEIGHBOURS = 20         # of each image
ALPHA = 0.99            # Zhou's


def nearest(f, k):
    """-> squared distances, positions (N, k) of the k nearest others of each row of f (N, d)."""
    size = f.square().sum(1)
    found = []
    for some in torch.arange(len(f), device=f.device).split(max(2**26 // len(f), 1)):
        d = size[some, None] + size - 2 * f[some] @ f.T
        d[torch.arange(len(some)), some] = math.inf
        found.append(d.topk(k, largest=False))
    values, places = map(torch.cat, zip(*found, strict=True))
    return values.clamp(min=0), places


def similarity(f, k=NEIGHBOURS):
    """S = D^-1/2 W D^-1/2, sparse (N, N), of features f (N, d).  w_ij = exp(-|f_i - f_j|^2 / 2
    sigma^2) if one is among the k nearest of the other, sigma^2 the mean over all such pairs.
    (Zhou et al. 2003, steps 2 and 3)"""
    n = len(f)
    d, j = nearest(f, k)
    i = torch.arange(n, device=f.device)[:, None].expand_as(j)
    pair, which = torch.unique(torch.minimum(i, j) * n + torch.maximum(i, j), return_inverse=True)  # each once
    square = torch.zeros(len(pair), dtype=torch.float64, device=f.device)
    square[which.flatten()] = d.double().flatten()
    w = torch.exp(-square / (2 * square.mean().clamp(min=1e-30)))
    i = pair // n
    j = pair % n
    degree = torch.zeros(n, dtype=torch.float64, device=f.device).index_add_(0, i, w).index_add_(0, j, w)
    scale = degree.clamp(min=1e-300).rsqrt()
    w = w * scale[i] * scale[j]
    places = torch.stack([torch.cat([i, j]), torch.cat([j, i])])
    return torch.sparse_coo_tensor(places, torch.cat([w, w]), (n, n), check_invariants=True).coalesce()


def manifold_ranking(f, queries, k=NEIGHBOURS, alpha=ALPHA, tolerance=1e-12):
    """f* = (I - alpha S)^-1 y, y 1 at the queries and else 0, by conjugate gradients, of features
    f (N, d).  (Zhou et al. 2003, step 4)

    -> (N,) float64, large if a walk from the queries comes by often.
    """
    S = similarity(f, k)
    y = torch.zeros(len(f), dtype=torch.float64, device=f.device)
    y[queries] = 1
    x = torch.zeros_like(y)
    r = y.clone()
    p = y.clone()
    rr = r @ r
    while rr > tolerance**2 * (y @ y):                  # eigenvalues are in 1 -+ alpha: 0.99 takes 150 steps or so
        Ap = p - alpha * torch.mv(S, p)
        step = rr / (p @ Ap)
        x += step * p
        r -= step * Ap
        rr, before = r @ r, rr
        p = r + rr / before * p
    return x


def features_of(images, extract, device, workers=0):
    """extract(float images in [-1, 1]) of all, over their norms: (N, d) float32 on the device."""
    chunks = [(i.tolist(), None) for i in torch.arange(len(images)).split(100)]
    parts = _read_ahead(images, chunks, workers if images.pixels is None else 0)
    out = None
    begin = 0
    shown = time.time()
    for x in parts:
        with torch.no_grad():
            f = torch.nn.functional.normalize(extract(common.to_float(x.to(device))).float())
        out = torch.empty(len(images), f.shape[1], device=device) if out is None else out
        out[begin:begin + len(f)] = f
        begin += len(f)
        if time.time() - shown > 30:
            shown = time.time()
            print(f"  features: {begin:,} of {len(images):,} images", flush=True)
    return out


def rank(args):
    """Writes the names of the -n training images that lie nearest to the queries along the
    manifold, best first. Raises common.Error."""
    device = common.find_device(args.device)
    out = Path(args.out)                                    # looked at before hours of work
    if not out.parent.is_dir():
        raise DataError(f"there is no folder {out.parent}; make it, or name another file by --out")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise DataError(f"{out} is a folder, or in one that cannot be written to; name another file by --out")
    if args.run:
        for flag, given in (("--vgg", args.vgg), ("--resolution", args.resolution != "auto")):
            if given:
                raise DataError(f"{flag} is for features of VGG-16, and --run {args.run} has its own; leave one out")
        stored = common.read_args(args.run)
        model = common.method_of(args.run, stored).load(args.run, device)
        if not hasattr(model, "encode"):
            raise DataError(f"{args.run} ({stored['label']}) has no encoder; name another run, or leave --run out")
        (channels, h, w), extract, of = stored["image_shape"], model.encode, f"{stored['label']}'s encoder, {args.run}"
        args.resolution = f"{w}x{h}"
    else:
        net = common.frozen("vgg", args.vgg, args.cache, common.VGG).to(device)
        of = f"VGG-16 conv5_3, {Path(args.vgg or common.FROZEN['vgg'][0]).name} {net.checksum}, mean over positions"

        def extract(x):
            return net(x)[-1].mean((2, 3))
    images, _ = load(args.data, args.data_root, args.split, args.resolution, args.skip_bad, [16, 32, 64, 128])
    if args.run and images.shape[0] != channels:
        raise DataError(f"{args.run} is of images of {channels} channel(s), and {images.name}'s have "
                        f"{images.shape[0]}; name another run")
    if not args.run and min(images.shape[1:]) < 16:
        raise DataError(f"VGG-16 halves images four times; pass --resolution 16 or more, not {images.shape[-1]}")
    if args.first:
        images = images.select("train", np.arange(min(args.first, len(images))))
    names = images.names()
    place = {name: i for i, name in enumerate(names)}
    files = [query for query in args.query if query not in place]
    if missing := [query for query in files if not Path(query).is_file()]:
        raise DataError(f"--query {missing[0]} is no training image of {images.name}, by its name there such as "
                        f"{names[0]}, and no file; name another")
    n = args.n or max(len(images) // 5, 1)
    if n > len(images) or len(images) <= args.neighbours:
        raise DataError(f"{images.name} has {len(images):,} training images, too few for -n {n:,} of them and "
                        f"--neighbours {args.neighbours}; pass less")
    began = time.time()
    f = features_of(images, extract, device, args.workers)
    if files:                                   # images of their own in the graph, which are not written
        x = read_images(files, images.shape[0], images.shape[1:])
        x = Images("queries", "train", "", np.arange(len(x)), images.shape, pixels=x)
        f = torch.cat([f, features_of(x, extract, device)])
    if not f.isfinite().all():
        raise DataError(f"features of {of} are not finite; take another network")
    made = time.time()
    queries = [place[query] for query in args.query if query in place] + list(range(len(images), len(f)))
    f = common.apple_to_cpu(f)
    scores = manifold_ranking(f, torch.tensor(queries, device=f.device), args.neighbours)[:len(images)].cpu()
    best = scores.argsort(descending=True, stable=True)[:n]
    if apart := int((scores[best] <= 0).sum()):
        print(f"note: {apart:,} of the {n:,} are not connected to a query, and stand last as in the set; pass more "
              f"--query or --neighbours, or a smaller -n")
    common.write_atomic(out, "".join(f"{names[i]}\n" for i in best).encode(errors="surrogateescape"))
    print(f"wrote {args.out}: {n:,} of {len(images):,} training images of {images.name}, best first\n"
          f"ours: {len(queries)} queries, features of {of}, at {images.shape[2]}x{images.shape[1]}, over their norm; "
          f"{args.neighbours} neighbours, Gaussian kernel; Zhou's: alpha {ALPHA}\n"
          f"{made - began:.0f} s of features, {time.time() - made:.0f} s of ranking on {device.type}")


# ------------------------------------------------------------------------------------- command line

def main(argv=None):
    parser = common.Parser(__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    subs = [commands.add_parser(name, doc=text, help=text) for name, text in (
        ("prepare", "writes small copies of a set's images next to it"),
        ("rank", "writes a list of the training images nearest to some, for --only   (LIA 5.2)"))]
    for sub, size in zip(subs, ("largest size", "size at which a network sees the images"), strict=True):
        sub.add_argument("--data", required=True, metavar="NAME|PATH", help="set, or its folder or zip")
        sub.add_argument("--data-root", default="data", metavar="DIR", help="folder of the sets (default data)")
        sub.add_argument("--resolution", default="auto", metavar="N|WxH",
                         help=f"{size} (default 128, or what images fill)")
    add = subs[1].add_argument
    add("--query", nargs="+", required=True, metavar="IMAGE", help="training images, by their names there, or files")
    add("--out", required=True, metavar="FILE", help="file for the list: a name a line, best first")
    add("-n", type=common.positive(int), default=0, metavar="N",
        help="images on the list (default: a fifth, LIA's 0.1 of 0.5 million)")
    add("--first", type=common.positive(int), default=0, metavar="N",
        help="training images that are ranked (LIA: the first 500000; default: all)")
    add("--split", default="auto", help="cut whose training part is ranked (lsun: all, the default)")
    add("--vgg", default="", metavar="FILE", help="weights of VGG-16, perhaps without its top (default: fetched)")
    add("--run", default="", metavar="RUN", help="run whose encoder gives the features, instead of VGG-16")
    add("--neighbours", type=common.positive(int), default=NEIGHBOURS, metavar="K",
        help=f"number of each image's neighbours in the graph (default {NEIGHBOURS})")
    add("--cache", default="cache", metavar="DIR", help="folder for fetched weights (default cache)")
    add("--device", default="auto", help="cpu, cuda ... (default: the GPU if there is one)")
    add("--workers", type=int, choices=range(65), default=2, metavar="N", help="processes that read images (default 2)")
    add("--skip-bad", action="store_true", help="files that cannot be read are left out")
    args = parser.parse_args(argv)
    try:
        if args.command == "prepare":
            prepare(args.data, args.data_root, args.resolution)
        else:
            rank(args)
    except (MemoryError, RuntimeError) as e:
        if not common.is_out_of_memory(e):
            raise
        fewer = ", or --first N" if args.command == "rank" else ""
        raise DataError(f"out of memory; pass a smaller --resolution{fewer}") from None


if __name__ == "__main__":
    common.command(main)
