"""Metrics, tables and figures of any run of any method.

    python eval.py metrics RUN...                  errors, reciprocity, sharpness, Frechet distances, classification
    python eval.py metrics RUN --features inception --only frechet     FID and KID, of samples and reconstructions
    python eval.py metrics RUN --only lpips ppl swd                    perceptual distance and path length; SWD
    python eval.py table NAME RUN...               a table of a paper beside what the runs give, such as alae-2
    python eval.py figure NAME RUN...              a figure of a paper, by content or number: samples, lia-7
    python eval.py invert RUN [IMAGE...]           codes by optimisation, beside the encoder's
    python eval.py boundary RUN                    boundaries of labels in w, for figure manipulate
    python eval.py compare RUN RUN...              the same images through several runs: errors and a picture
    python eval.py list                            what there is

A run is the folder that a training script made.  This file knows of a method only what its `load` returns: map,
generate, encode, features, prior.
"""
import difflib
import functools
import hashlib
import importlib
import inspect
import json
import math
import os
import sys
import time
import warnings
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import common  # before torch, whose threads wait as it says

# isort: split
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import nn

import data
from common import Error

# ------------------------------------------------------------------------------------------------------- 1 Runs


BLOCK = 250             # codes that are drawn together


class Lacks(Error):
    """What a run or its data cannot give; `metrics` leaves that out, unless it was asked for by name."""


def load_method(run, name):
    """The `load` of the method that a run names, from the file of that name."""
    try:
        load = getattr(importlib.import_module(name), "load", None) if str(name).isidentifier() else None
    except ModuleNotFoundError as e:
        if e.name != name:
            raise
        raise Error(f"{run} names the method {name!r}; there is no {name}.py here") from None
    if load is None or [*inspect.signature(load).parameters] != ["run", "device", "weights"]:
        raise Error(f"{run}/args.json names the method {name!r}, which is none; put back what the script wrote")
    return load


class View:
    """A run, opened for evaluation: args (its args.json), model, shape (C, H, W); train and test (data.Images), which
    are read when they are first asked for: what shows no image of the set does without it.  batch: how many images are
    made at a time, as many as memory should hold."""

    def __init__(self, run, options, weights="ema"):
        """options: device, weights ("" for those given here), data and data_root ("" for the run's own), batch or 0."""
        self.run, self.device, self.weights = Path(run), options.device, options.weights or weights
        self.options, self.args = options, common.read_args(run)
        self.model = load_method(run, self.args["method"])(run, self.device, self.weights)
        self.shape = tuple(self.args["image_shape"])
        self.batch = vars(options).get("batch") or common.few(self.shape)
        if self.options.data or self.options.data_root:
            self.part("train")                          # a wrong one shows at once

    @functools.cached_property
    def parts(self):
        """(train, test), or the error that says why the set cannot be had."""
        options, args, (_, h, w) = self.options, self.args, self.shape
        try:
            parts = data.load(options.data or args["data"], options.data_root or args["data_root"], args["split"],
                              args["resolution"] if args.get("patches") else f"{w}x{h}", args["skip_bad"])
            if args.get("patches"):
                parts = tuple(data.Tiles(part, args["patches"]) for part in parts)
        except data.DataError as e:
            return e
        if problem := parts[0].unlike(args):
            return Error(f"{self.run} was trained on {problem}; say where its own images are by --data or --data-root")
        return parts

    @property
    def missing(self):
        """Why the set cannot be had, or None."""
        return self.parts if isinstance(self.parts, Exception) else None

    def part(self, name):
        """"train" or "test" -> data.Images.  Raises Error or data.DataError where the set cannot be had."""
        if self.missing:
            raise self.missing
        return self.parts[("train", "test").index(name)]
    train = property(lambda self: self.part("train"))
    test = property(lambda self: self.part("test"))

    @property
    def title(self):
        return f"{self.args['label']}, {self.args['backbone']}, {self.run}"

    @property
    def protocol(self):
        """What a number of this run depends on, in one line."""
        a, G = self.args, self.growing
        grown = G is not None and (G.top < G.levels - 1 or G.fades)
        name, split = a.get("data_name") or data.base_name(a["data"]), a["split"]
        return (f"{name}{f' {split}' * (split != 'auto')}, {a['backbone']}, "
                f"{f'grown to {max(G.size())} px (alpha {G.alpha:.2f}), ' if grown else ''}"
                f"{'recipe ' + a['recipe'] + ', ' if 'recipe' in a else ''}{a['precision']}, "
                f"{self.model.seen / 1000:g} kimg, training seed {a['seed']}, {self.weights} weights, "
                f"training code {a['versions']['code']}")

    @property
    def growing(self):
        """A growing network of the model, or None."""
        return next((m for m in self.model.modules() if isinstance(m, common.Growing)), None)

    def need(self, *abilities):
        """Raise Error where the model lacks one of the named methods."""
        for ability in abilities:
            if not hasattr(self.model, ability):
                remedy = "train stage 2 on it" if self.args.get("stage") == "1" else "take another run"
                raise Lacks(f"{self.run} ({self.args['label']}) has no {ability!r}, which this needs; {remedy}")

    def made(self, w):
        """G(w) with fixed noise, (N, C, H, W), as many at a time as memory should hold."""
        return torch.cat([self.model.generate(b, noise="fixed") for b in w.split(self.batch)])

    def encoded(self, x):
        """The codes (N, nw) of images (N, C, H, W), as many at a time as memory should hold."""
        return torch.cat([self.model.encode(b) for b in x.split(self.batch)])

    def images(self, indices, part="test"):
        """Images of a part, float (N, C, H, W) in [-1, 1], on the device."""
        return common.to_float(self.part(part).take(indices).to(self.device))

    def codes(self, end, seed, begin=0):
        """z (end - begin, nz): a part of an endless sequence from the prior, the same however it is cut."""
        first = begin // BLOCK
        z = torch.cat([self.model.prior(BLOCK, common.generator(self.device, seed, "evaluation", block))
                       for block in range(first, -(-end // BLOCK))])
        return z[begin - first * BLOCK:end - first * BLOCK]

    @property
    def has_classes(self):
        """Whether all images of both parts have a class."""
        return all(y is not None and y.ndim == 1 and y.min() >= 0 for y in (self.train.labels, self.test.labels))

    @torch.no_grad()
    def features(self, part):
        """(short, long) features of a whole part, on the device."""
        made = [self.model.features(self.images(i, part))
                for i in torch.arange(len(self.part(part))).split(self.batch)]
        return tuple(map(torch.cat, zip(*made, strict=True)))


# ------------------------------------------------------------------------------------------------- 2 Extractors

class Classifier(nn.Module):
    """Tells a set's classes apart, and gives features for Frechet distances; made by `classifier_of`.  name: "digits"
    for MNIST, else the set's; checksum: of its weights; accuracy: on the test part, %."""
    d, official, batch, resize = 128, False, BLOCK, "as they are"

    def __init__(self, channels, classes):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(channels, 32, 5, stride=2, padding=2), nn.Conv2d(32, 32, 3, padding=1),
                                    nn.Conv2d(32, 64, 3, padding=1)])
        self.dense = nn.Linear(64 * 16, self.d)
        self.head = nn.Linear(self.d, classes)
        self.register_buffer("accuracy", torch.zeros(()))

    def features(self, x):  # [N,C,H,W] in [-1,1] -> [N,128]
        for i, conv in enumerate(self.convs):
            x = torch.relu(conv(x))
            x = nnf.max_pool2d(x, 2) if i == 1 else x
        return torch.relu(self.dense(nnf.adaptive_avg_pool2d(x, 4).flatten(1)))

    def forward(self, x):
        return self.head(self.features(x))

    @property
    def checksum(self):
        return hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in self.state_dict().values())).hexdigest()[:8]


class Inception(nn.Module):
    """The network of the FID: Inception of 2015-12-05 with its 1008 classes, as pytorch-fid has ported it.  Differs
    from torchvision's in what its blocks pool: padding does not count, and the last block takes maxima."""
    d, batch, resize = 2048, 50, "uint8, bilinear to 299 px"

    def __init__(self, weights):
        super().__init__()
        from torchvision.models import inception_v3
        self.net = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
        self.net.load_state_dict(weights)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b"):
            _pool_anew(getattr(self.net, name), functools.partial(nnf.avg_pool2d, count_include_pad=False))
        _pool_anew(self.net.Mixed_7c, nnf.max_pool2d)

    def features(self, x, d=None):
        """(N, d) features of x (N, 3 or 1, H, W) in [-1, 1]; d 64 or 192: of the first or second pooling layer."""
        d = d or self.d
        x = common.to_float(common.to_uint8(x)).expand(-1, 3, -1, -1)
        x = nnf.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        for name, layer in self.net.named_children():
            if name == "avgpool":
                break
            x = layer(x)
            if (name, d) in (("maxpool1", 64), ("maxpool2", 192)):
                break
        return x.mean((2, 3))


def _pool_anew(block, pool):
    """Let the last branch of one of torchvision's blocks pool by `pool`."""
    plain = block._forward

    def forward(x):
        return [*plain(x)[:-1], block.branch_pool(pool(x, 3, stride=1, padding=1))]
    block._forward = forward


class PooledVGG(nn.Module):
    """VGG-16 conv5_3, its mean over positions: features of images from 16 px on."""
    d, batch, resize = 512, 50, "uint8"

    def __init__(self, weights):
        super().__init__()
        self.vgg = common.VGG(weights)

    def features(self, x):  # [N,C,H,W] in [-1,1] -> [N,512]
        return self.vgg(common.to_float(common.to_uint8(x)))[-1].mean((2, 3))


class LPIPS(nn.Module):
    """Learned perceptual distance, VGG-16, version 0.1: a, b (N, 3 or 1, H, W) in [-1, 1] -> (N,).  Zhang et al. 2018,
    eq. 1.  weights: of the heads, as the lpips package keeps them; they are loaded strictly."""

    def __init__(self, vgg, weights):
        super().__init__()
        self.vgg = vgg
        self.heads = nn.ParameterList(torch.empty(c, 1, 1) for c in (64, 128, 256, 512, 512))
        self.heads.load_state_dict({str(i): weights.pop(f"lin{i}.model.1.weight")[0] for i in range(5)} | weights)

    def forward(self, a, b):
        total = 0
        for f, g, head in zip(self.vgg(a), self.vgg(b), self.heads, strict=True):
            f, g = (t / (t.square().sum(1, keepdim=True).sqrt() + 1e-10) for t in (f, g))
            total = total + ((f - g).square() * head).sum(1).mean((1, 2))
        return total


def extractor_of(view, args):
    """The network of --features: Inception, VGG-16, or the classifier of the run's own data ("auto").  It has title,
    the distance's name: FID with the published Inception alone.  Raises Error where it is not to be had."""
    if args.features == "inception":
        with common.rank_zero_first():
            net = common.frozen("inception", args.inception, args.cache, Inception).to(view.device)
        net.name, net.title = "Inception", "FID" if net.official else f"Frechet ({Path(args.inception).name})"
        return net
    if args.features == "vgg16":
        if min(view.shape[1:]) < 16:
            raise Lacks(f"{view.run}: VGG-16 halves images four times; these, of {min(view.shape[1:])} px, are too "
                        f"small")
        with common.rank_zero_first():
            net = common.frozen("vgg", args.vgg, args.cache, PooledVGG).to(view.device)
        file = Path(args.vgg or common.FROZEN["vgg"][0]).name
        net.official, net.name, net.title = False, f"VGG-16 conv5_3, {file}", f"Frechet ({file} {net.checksum})"
        return net
    if args.features not in ("auto", name := classifier_name(view)):
        raise Error(f"{view.run}: there are no features {args.features!r}; --features can be inception, vgg16, or "
                    f"{name}, which are learnt from its own data")
    with common.rank_zero_first():
        net = classifier_of(view, args.cache)
    net.title = f"Frechet ({net.name})"
    return net


def lpips_of(view, args):
    """LPIPS, with title and checksum, by --vgg and --lpips or fetched.  Raises Error where it is not to be had."""
    seen = min(view.shape[1:]) // (2 if args.face_crop else 1)
    if seen < 16:
        raise Lacks(f"{view.run}: LPIPS's network halves images four times; these, of {seen} px"
                    f"{' after the face crop' * args.face_crop}, are too small")
    with common.rank_zero_first():
        vgg = common.frozen("vgg", args.vgg, args.cache, common.VGG)
        net = common.frozen("lpips", args.lpips, args.cache, lambda weights: LPIPS(vgg, weights))
    net.checksum = ", ".join(f"{name} {part.checksum}{' (not the published one)' * (not part.official)}"
                             for name, part in (("VGG-16", vgg), ("heads", net)))
    net.official &= vgg.official
    files = [Path(file).name for file in (args.vgg, args.lpips) if file]
    net.title = "LPIPS" if net.official else f"distance ({', '.join(files)})"
    return net.to(view.device)


def classifier_name(view):
    return "digits" if view.train.source == "mnist" else view.train.name


def classifier_of(view, cache):
    """The classifier of a run's data, trained on the training part's labels the first time and kept in `cache`.  1,500
    steps of 128 images, Adam, one-cycle learning rate, seed 0.  Raises Lacks where there are no classes."""
    if not view.has_classes:
        raise Lacks(f"{view.run}: {view.train.name} has no class labels, from which to train a classifier; "
                    f"for distances --features inception and vgg16 need none")
    train, name = view.train, classifier_name(view)
    path = Path(cache) / f"classifier-{name}-{'x'.join(map(str, train.shape))}-{train.fingerprint()}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Classifier(train.shape[0], int(train.labels.max()) + 1)
    net.name, net = name, net.to(view.device, memory_format=torch.channels_last)        # a third faster on a CPU
    if path.exists():
        _from_cache(path, view.device, net.load_state_dict)
        return net.eval().requires_grad_(False)
    print(f"training a classifier of {train.name} once, for Frechet ({name}) and label flips", flush=True)
    _fit(net, len(train), lambda i: nnf.cross_entropy(net(view.images(i, "train")), train.labels[i].to(view.device)))
    right = sum((net(view.images(i)).argmax(1).cpu() == view.test.labels[i]).sum().item()
                for i in torch.arange(len(view.test)).split(500))
    net.accuracy.fill_(100 * right / len(view.test))
    _to_cache(path, net.state_dict())
    return net


def _from_cache(path, device, use):
    try:
        return use(torch.load(path, map_location=device, weights_only=True))
    except Exception as e:      # torch.load lets through whatever the damage leads to
        raise Error(f"{path} cannot be read ({type(e).__name__}); delete it, and it is made anew") from None


def _to_cache(path, value):
    try:
        common.save(path, value)
        print(f"wrote {path}", flush=True)
    except OSError as e:
        print(f"warning: {path} cannot be written ({e.strerror}), so it will be made again next time", flush=True)


@torch.enable_grad()
def _fit(net, n, loss_of, steps=1500, batch=128):
    """Train a classifier: loss_of(which of the n images) is what a step minimises."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for begin, _ in Count("images for the classifier", steps * batch, batch, shared=False):
        loss = loss_of(data.order(n, 0, begin, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval().requires_grad_(False)


# --------------------------------------------------------------------------------------------------- 3 Counting
# What goes through many images keeps sums, not images, so that memory does not grow with their number; sums are float64
# and added over processes, so that any number of these gives the same.

class Count:
    """Goes through n things in batches and tells how far it is: `for begin, end in Count("samples", n, 250)`.  Of
    several processes each has every so-many-th batch, unless not `shared`."""

    def __init__(self, what, n, size, shared=True):
        self.what, self.n, self.size, self.shared = what, n, size, shared and dist.is_initialized()

    def __iter__(self):
        rank, world = (dist.get_rank(), dist.get_world_size()) if self.shared else (0, 1)
        terminal, began = sys.stdout.isatty(), time.time()
        shown = began
        for begin in range(rank * self.size, self.n, world * self.size):
            yield begin, min(begin + self.size, self.n)
            if time.time() - shown > (1 if terminal else 30):
                shown, done = time.time(), min(begin + world * self.size, self.n)
                left = common.duration((shown - began) * (self.n - done) / done)
                line = f"  {self.what}: {done:,} of {self.n:,}, {left} left"
                print(f"\r{line:<79}" if terminal else line, end="" if terminal else "\n", flush=True)
        if terminal and shown > began:
            print(f"\r{'':79}", end="\r", flush=True)


def leads():
    """Whether this process is the only one, or the one that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def add_up(tensor):
    """Replace a tensor by its sum over all processes.  -> it"""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


class Means:
    """Means of named quantities, each (N,) or, with d, (N, d), over all that was counted by all processes."""

    def __init__(self, device, *names, d=None):
        self.names = names
        self.n = torch.zeros((), dtype=torch.float64, device=device)
        self.sums = torch.zeros(len(names), *[d] * (d is not None), dtype=torch.float64, device=device)

    def add(self, **values):
        self.n += len(values[self.names[0]])
        self.sums += torch.stack([values[name].double().sum(0) for name in self.names])

    def result(self):
        """-> dict of floats, or of tensors (d,); n, how many."""
        n = int(add_up(self.n))
        means = add_up(self.sums) / n
        return dict(zip(self.names, means if means.ndim > 1 else means.tolist(), strict=True), n=n)


# -------------------------------------------------------------------------------------------------- 4 Distances

class Moments:
    """Mean and covariance of features, added batch by batch in float64; memory does not grow with their number."""

    def __init__(self, d, device="cpu"):
        self.n, self.sum, self.outer = (torch.zeros(s, dtype=torch.float64, device=device) for s in ((), d, (d, d)))

    def add(self, features):
        """features (N, d)."""
        f = features.double()
        self.n += len(f)
        self.sum += f.sum(0)
        self.outer += f.T @ f

    def reduce(self):
        """Add up those of all processes."""
        for tensor in (self.n, self.sum, self.outer):
            add_up(tensor)

    def gaussian(self):
        """-> mean (d,), covariance (d, d) over n - 1, on the CPU."""
        mean = self.sum / self.n
        return mean.cpu(), ((self.outer - self.n * mean.outer(mean)) / (self.n - 1)).cpu()


def frechet(a, b):
    """Frechet distance of two Gaussians, each (mean (d,), covariance (d, d)), float64:
    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), by symmetric eigenvalues.   (Heusel 2017, eq. 6)"""
    (m_a, C_a), (m_b, C_b) = a, b
    values, vectors = torch.linalg.eigh(C_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ C_b @ root).clamp(min=0).sqrt().sum()
    return ((m_a - m_b).square().sum() + C_a.trace() + C_b.trace() - 2 * cross).item()


def sharpness(x):
    """Variance of the Laplacian over each image's grey values, (N,): blurred images have little.  x (N, C, H, W)."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=x.device)
    return nnf.conv2d(x.mean(1, keepdim=True), kernel[None, None]).flatten(1).var(1)


KEPT = 10_000           # features of each set that the kernel distance draws its subsets from
SUBSET = 1000           # features of a subset


def kernel_distance(a, b, seed, subsets=100, size=SUBSET):
    """KID: unbiased MMD^2 under the kernel (x.y / d + 1)^3.   (Binkowski et al. 2018, eq. 4 and section 4)  a, b (N,
    d), (M, d) features -> mean, standard deviation over random subsets."""
    rng, values = np.random.RandomState(seed), []
    size = min(size, len(a), len(b))
    for _ in range(subsets):
        x = a[torch.from_numpy(rng.choice(len(a), size, replace=False)).to(a.device)].double()
        y = b[torch.from_numpy(rng.choice(len(b), size, replace=False)).to(b.device)].double()
        xx, yy, xy = ((p @ q.T / x.shape[1] + 1)**3 for p, q in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        values.append((within - 2 * xy.mean()).item())
    return float(np.mean(values)), float(np.std(values))


def swd_levels(shape):
    """Sizes (h, w) of the pyramid's levels for images (C, H, W): H, H/2 ... while the smaller side is 16 or more."""
    sizes, (h, w) = [], shape[1:]
    while min(h, w) >= 16 and not (sizes and min(sizes[-1]) < 32):
        sizes.append((h, w))
        h, w = math.ceil(h / 2), math.ceil(w / 2)
    return sizes


def laplacian(x, level):
    """A level of the Laplacian pyramid of x (N, C, H, W): (N, C, H / 2^level, W / 2^level).   (ProGAN 5)  Below 32
    pixels it is the last, and what is left of the image itself."""
    taps = x.new_tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = taps.outer(taps).expand(x.shape[1], 1, 5, 5)

    def blur(t):
        return nnf.conv2d(nnf.pad(t, (2, 2, 2, 2), mode="reflect"), kernel, groups=t.shape[1])
    for _ in range(level):
        x = blur(x)[:, :, ::2, ::2]
    if min(x.shape[2:]) < 32:
        return x
    up = torch.zeros_like(x)
    up[:, :, ::2, ::2] = blur(x)[:, :, ::2, ::2]
    return x - 4 * blur(up)


def patches(x, rows, cols, size=7):
    """Patches of x (N, C, H, W) whose middles are at rows, cols (N, n) -> (N n, C, size, size)."""
    rows, cols = (t.to(x.device)[:, :, None, None, None] for t in (rows, cols))
    around = torch.arange(-(size // 2), size // 2 + 1, device=x.device)
    image = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(x.shape[1], device=x.device).view(1, 1, -1, 1, 1)
    return x[image, channel, rows + around.view(size, 1), cols + around].flatten(0, 1)


def sliced_wasserstein(a, b, rng, repeats=4, directions=128, chunk=16):
    """Sliced Wasserstein distance, times 1,000, of two sets of patches (M, C, h, w).   (ProGAN 5)  Each channel of each
    set is first brought, in place, to mean 0 and deviation 1.  chunk: of directions, for memory."""
    for t in (a, b):
        for channel in t.unbind(1):
            channel -= channel.mean()
            channel /= channel.std(correction=0).clamp(min=1e-8)         # of one colour where a generator collapsed
    a, b, total = a.flatten(1), b.flatten(1), 0.0
    for _ in range(repeats):
        d = rng.randn(a.shape[1], directions)
        d = torch.from_numpy(d / np.sqrt(np.square(d).sum(0))).to(a).T
        for some in d.split(chunk):
            total += (ordered(some @ a.T) - ordered(some @ b.T)).abs().sum(dtype=torch.float64).item()
    return 1000 * total / (repeats * directions * len(a))


def ordered(t):
    """Each row of t (M, N) in ascending order; numpy sorts on a CPU several times as fast as torch."""
    return t.sort(1).values if t.is_cuda else torch.from_numpy(np.sort(t.cpu().numpy(), 1))


def slerp(a, b, t):
    """From a to b along the sphere, (N, d); t (N, 1).  Lengths go linearly, so that any prior is kept to its own."""
    length = (1 - t) * a.norm(dim=1, keepdim=True) + t * b.norm(dim=1, keepdim=True)
    a, b = nnf.normalize(a, dim=1), nnf.normalize(b, dim=1)
    cos = (a * b).sum(1, keepdim=True)
    c = nnf.normalize(b - cos * a, dim=1)
    angle = t * cos.clamp(-1, 1).acos()
    return length * nnf.normalize(a * angle.cos() + c * angle.sin(), dim=1)


def within_percentiles(d, low=1, high=99):
    """The mean of those of d (N,) that lie between two percentiles, themselves among d.   (StyleGAN's PPL)"""
    d = d.cpu().numpy()
    lower, upper = np.percentile(d, low, method="lower"), np.percentile(d, high, method="higher")
    return float(d[(lower <= d) & (d <= upper)].mean())


def one_nn(train, train_labels, test, test_labels, chunk=500):
    """Accuracy (%) of the nearest training feature's label, Euclidean.  (N, d), (N,), (M, d), (M,); any N, M."""
    hits, squares = 0, train.square().sum(1)
    for x, y in zip(test.split(chunk), test_labels.split(chunk), strict=True):
        nearest = torch.addmm(squares, x, train.T, alpha=-2).argmin(1)      # |a|^2 - 2 a.b, [chunk,N]
        hits += (train_labels[nearest] == y).sum().item()
    return 100 * hits / len(test)


def linear_svm(x, y, classes, C=0.02):
    """One linear SVM a class against the rest, as liblinear's: min_w |w|^2 / 2 + C sum_i max(0, 1 - y_i w.x_i)^2.

    x (N, d) float, y (N,) int64.  A constant 1 is appended to x, so that the bias is regularised too.
    -> w (d + 1, classes); scores are `svm_scores(w, x)`.
    """
    x = nnf.pad(x, (0, 1), value=1.0)
    sign = nnf.one_hot(y, classes).to(x) * 2 - 1                            # [N,classes]
    # Solved for v = L^T w, L L^T = I + 2 C x^T x, where the problem is round and L-BFGS takes few steps.
    L, failed = torch.linalg.cholesky_ex(torch.eye(x.shape[1], device=x.device, dtype=x.dtype) + 2 * C * x.T @ x)
    if failed:                                                              # features too large for fp32
        gram = sum(part.T @ part for part in map(torch.Tensor.double, x.split(5000)))
        L = torch.linalg.cholesky(torch.eye(len(gram), device=x.device) + 2 * C * gram).to(x.dtype)

    def weights(v):
        return torch.linalg.solve_triangular(L.T, v, upper=True)

    def objective(v):
        w = weights(v)
        return w.square().sum() / 2 + C * (1 - sign * (x @ w)).relu().square().sum()
    return weights(minimise(objective, x.new_zeros(x.shape[1], classes)))


def svm_scores(w, x):
    """(N, classes): the largest is the predicted class."""
    return nnf.pad(x, (0, 1), value=1.0) @ w


def told_apart(a, b, folds=5):
    """How often (%) a logistic regression tells rows of a (N, d) from rows of b (M, d) that it was not fitted to.

    Dimensions are first brought to mean 0 and deviation 1, and every folds-th row is told by a fit to the others:
    min_w,c |w|^2 / 2 + sum_i log(1 + exp(-y_i (w.x_i + c))), scikit-learn's with C = 1.
    """
    x, right = torch.cat([a, b]).double(), 0
    x = nnf.pad((x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-8), (0, 1), value=1.0)
    sign = torch.cat([x.new_full([len(a)], -1), x.new_ones(len(b))])
    fold = torch.cat([torch.arange(len(a)), torch.arange(len(b))]).to(x.device) % folds
    for k in range(folds):
        fitted = fold != k
        w = minimise(lambda w, x=x[fitted], sign=sign[fitted]: w[:-1].square().sum() / 2
                     + nnf.softplus(-sign * (x @ w)).sum(), x.new_zeros(x.shape[1]))
        right += ((sign * (x @ w)).sign()[~fitted] + 1).sum().item() / 2         # undecided is half right
    return 100 * right / len(x)


def minimise(loss, start):
    """The argument at which a smooth loss is least, by L-BFGS."""
    v = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([v], max_iter=500, history_size=20, tolerance_grad=1e-6, tolerance_change=1e-9,
                               line_search_fn="strong_wolfe")

    def objective():
        solver.zero_grad()
        value = loss(v)
        value.backward()
        return value

    solver.step(objective)
    return v.detach()


def average_precision(scores, truth):
    """Mean of the precisions at each recall, weighted by its step; scores (N,), truth (N,) bool; ties are one step.
    (InvGAN, table 2)"""
    ordered, order = scores.sort(descending=True)
    hits = truth[order].double().cumsum(0)
    end = torch.cat([ordered[1:] != ordered[:-1], truth.new_ones(1)])                   # the last of each tie
    places = torch.arange(1, len(scores) + 1, device=scores.device)[end]
    recall = hits[end] / hits[-1]
    return (recall.diff(prepend=recall.new_zeros(1)) * hits[end] / places).sum().item()


def classification(view):
    """Accuracies (%) of 1-NN and linear SVM on short and long features, fitted on the whole training part.  -> dict"""
    view.need("features")
    y, y_test = view.train.labels.to(view.device), view.test.labels.to(view.device)
    result = {}
    for name, x, x_test in zip(("short", "long"), view.features("train"), view.features("test"), strict=True):
        result[f"1nn_{name}"] = one_nn(x, y, x_test, y_test)
        w = linear_svm(x, y, int(y.max()) + 1)
        result[f"svm_{name}"] = 100 * (svm_scores(w, x_test).argmax(1) == y_test).float().mean().item()
    return result


# --------------------------------------------------------------------------------------------------- 5 Measures
# A function each: (view, args) -> numbers (dict), lines to print, and what these depend on beside the run.

def test_indices(view, args):
    """The first -n test images, 10,000 by default, or as many as there are."""
    return torch.arange(min(args.n or 10_000, len(view.test)))


def evenly(n, many):
    """`many` of n places, evenly spaced, or all of them."""
    return torch.linspace(0, n - 1, min(many, n), dtype=torch.float64).long()


def code_count(view, args):
    """-n, or as many codes as test images; 10,000 where the set is not here."""
    return args.n or (10_000 if view.missing else len(test_indices(view, args)))


def of_test(view, n):
    return f"{'all ' * (n == len(view.test))}{n:,} of {len(view.test):,} test images"


@torch.no_grad()
def errors(view, indices):
    """Errors of the reconstructions of these test images, beside two floors.   -> dict

    mse, mae: means over pixels in [-1, 1], of reconstructions clipped to it;  mse_255: over pixels in [0, 255];  psnr:
    mean over images of 10 log10(4 / mse), dB;  mae_28: of padded digits' inner 28x28 pixels.
    mse_mean_image: of the training mean as every reconstruction;
    mse_wrong_pair: of each reconstruction against the next image in `indices`; None of one image.
    """
    view.need("encode", "generate")
    mean_image = training_mean(view)
    padded = view.test.source == "mnist" and view.test.shape[1] == 32
    means = Means(view.device, "mse", "mae", "psnr", "mse_mean_image", "mse_wrong_pair", *["mae_28"] * padded)
    for begin, end in Count("test images", len(indices), view.batch):
        x, after = (t := with_next(view, indices, begin, end))[:-1], t[1:]
        y = common.reconstruct(view.model, x)
        mse, off = (y - x).square().flatten(1).mean(1), (y - x).abs()
        means.add(mse=mse, mae=off.flatten(1).mean(1), psnr=10 * (4 / mse).log10(),
                  mae_28=off[:, :, 2:-2, 2:-2].flatten(1).mean(1) if padded else None,
                  mse_mean_image=(mean_image - x).square().flatten(1).mean(1),
                  mse_wrong_pair=(y - after).square().flatten(1).mean(1))
    m = means.result()
    return dict(m, mse_255=m["mse"] * 127.5**2, mse_wrong_pair=m["mse_wrong_pair"] if len(indices) > 1 else None)


def with_next(view, indices, begin, end):
    """The begin-th ... end-th of these test images, one more than a batch (after the last comes the first)."""
    return view.images(indices[[i % len(indices) for i in range(begin, end + 1)]])


def measure_errors(view, args):
    m = errors(view, test_indices(view, args))
    digits = f" ({m['mae_28']:.4f} without the border)" if "mae_28" in m else ""
    return m, [f"MSE {m['mse']:.4f} on [-1, 1], {m['mse_255']:.1f} on [0, 255]   MAE {m['mae']:.4f}{digits}   "
               f"PSNR {m['psnr']:.2f} dB",
               f"floors: MSE {m['mse_mean_image']:.4f} of the training-mean image, "
               f"{cell(m['mse_wrong_pair'], '.4f')} of reconstructions paired with the wrong originals"], (
        f"{of_test(view, m['n'])}, fixed noise")


@torch.no_grad()
def measure_latent(view, args):
    """How far E(G(w)) is from w, over codes of the prior (ALAE 4.1); and how far codes of the prior can be told from
    those of real images.

    recip_w: mean |E(G(w)) - w| per dimension; std_w: mean deviation of w's dimensions; norm_w: mean ||E(G(w)) - w||;
    norm_w_wrong_pair: the same with each E(G(w)) beside the next w; told_apart: `told_apart` of w and E(x), of as many
    test images x.
    """
    view.need("prior", "map", "encode")
    n, model = code_count(view, args), view.model
    means = Means(view.device, "recip_w", "norm_w", "norm_w_wrong_pair")
    squares = Means(view.device, "w", "w2", d=model.nw)
    for begin, end in Count("codes", n, view.batch):
        w = model.map(view.codes(end + 1, args.seed, begin))
        w, after = w[:-1], w[1:]
        back = model.encode(model.generate(w, noise="fixed"))
        means.add(recip_w=(back - w).abs().mean(1), norm_w=(back - w).norm(dim=1),
                  norm_w_wrong_pair=(back - after).norm(dim=1))
        squares.add(w=w, w2=w.double().square())
    m, s = means.result(), squares.result()
    m["std_w"] = ((s["w2"] - s["w"].square()).clamp(min=0) * m["n"] / max(m["n"] - 1, 1)).sqrt().mean().item()
    lines = [f"|E(G(w)) - w| {m['recip_w']:.4f} a dimension (w deviates by {m['std_w']:.4f})   ||E(G(w)) - w|| "
             f"{m['norm_w']:.4f} (codes paired wrongly {m['norm_w_wrong_pair']:.4f})"]
    k, how = 0 if view.missing else min(len(test_indices(view, args)), n), f"{n:,} codes, fixed noise, no truncation"
    if k < 10:
        few = view.missing or f"10 are needed, and there are {k}"
        return m, [*lines, f"codes of real images left out: {few}"], how
    both = torch.zeros(2, k, model.nw, device=view.device)
    for begin, end in Count("codes of the prior and of images", k, view.batch):
        both[0, begin:end] = model.map(view.codes(end, args.seed, begin))
        both[1, begin:end] = model.encode(view.images(torch.arange(begin, end)))
    m["told_apart"] = told_apart(*add_up(both))
    lines.append(f"codes of the prior and of test images are told apart in {m['told_apart']:.1f} % (cannot be: 50.0 %, "
                 f"give or take {50 / math.sqrt(2 * k):.1f})")
    return m, lines, f"{how}; told apart by logistic regression, 5-fold, {k:,} of each"


KINDS = {"samples": "samples", "resamples": "samples reconstructed", "reconstructions": "test images reconstructed",
         "midpoints": "midpoints of test images", "real": "test images themselves"}


def pictures(view, kind, args):
    """Images of a kind: how many, and a function that makes the begin-th ... (end - 1)-th, (N, C, H, W) in [-1, 1].

    samples: of codes from the prior, with random noise;  resamples: these, reconstructed;  real: test images;
    reconstructions: of them;  midpoints: decoded from the mean of a test image's code and the next one's.
    (InvGAN, table 1: RandFID, RandRecFID, -, TsRecFID, IntTsFID)
    """
    model, indices = view.model, test_indices(view, args)

    def samples(begin, end):
        w = model.map(view.codes(end, args.seed, begin))
        common.seed_noise(args.seed, begin)                 # whichever process draws it
        return model.generate(w, noise="random").clamp(-1, 1)

    def midpoints(begin, end):
        w = model.encode(with_next(view, indices, begin, end))
        return model.generate((w[:-1] + w[1:]) / 2, noise="fixed").clamp(-1, 1)

    make = dict(samples=samples, resamples=lambda b, e: common.reconstruct(model, samples(b, e)), midpoints=midpoints,
                real=lambda b, e: view.images(indices[b:e]),
                reconstructions=lambda b, e: common.reconstruct(model, view.images(indices[b:e])))[kind]
    return code_count(view, args) if kind in ("samples", "resamples") else len(indices), make


def kinds(view, *wanted):
    """Those of the wanted kinds of pictures that the model can make.  Raises Lacks where that is none but real ones."""
    needs = dict(samples=("prior", "map"), resamples=("prior", "map", "encode"), reconstructions=("encode",),
                 midpoints=("encode",), real=())
    can = [kind for kind in wanted if all(hasattr(view.model, ability) for ability in needs[kind])]
    if can == ["real"]:
        view.need("encode")
    return can


@torch.no_grad()
def measure_sharpness(view, args):
    """Mean variance of the Laplacian, of samples and reconstructions, over that of the test images."""
    m = {}
    for kind in kinds(view, "real", "samples", "reconstructions"):
        n, make = pictures(view, kind, args)
        means = Means(view.device, "variance")
        for begin, end in Count(KINDS[kind], n, view.batch):
            means.add(variance=sharpness(make(begin, end)))
        m[kind] = means.result()
    ratio = {kind: m[kind]["variance"] / m["real"]["variance"] for kind in m if kind != "real"}
    out = {f"sharpness_{kind}": value for kind, value in ratio.items()} | {"n": {kind: m[kind]["n"] for kind in m}}
    return out, ["   ".join(f"{KINDS[kind]} {value:.3f}" for kind, value in ratio.items())
                 + "   (variance of the Laplacian over that of the test images)"
                 ], f"{of_each(out['n'])}; {noise_of(m)}"


def of_each(counts):
    """{kind: n} in words."""
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values())):,} of each"
    return ", ".join(f"{n:,} {KINDS[kind]}" for kind, n in counts.items())


def noise_of(kinds):
    return "; ".join(["samples with random noise and no truncation"] * ("samples" in kinds)
                     + ["reconstructions with fixed noise"] * ("reconstructions" in kinds))


def features_of(view, extractor, what, n, make):
    """`Moments` of the features of n images, make(begin, end), and up to KEPT of the features, evenly spaced."""
    step = math.ceil(n / KEPT)
    moments = Moments(extractor.d, view.device)
    kept = torch.zeros(math.ceil(n / step), extractor.d, device=view.device)
    for begin, end in Count(what, n, min(view.batch, extractor.batch)):
        f = extractor.features(make(begin, end))
        moments.add(f)
        places = torch.arange(-(-begin // step) * step, end, step, device=view.device)
        kept[places // step] = f[places - begin]
    moments.reduce()
    return moments, add_up(kept)


def reference(view, extractor, cache, part="train"):
    """Gaussian of a whole part's features, and up to KEPT of the features; kept in `cache`.  -> both"""
    images = view.part(part)
    path = Path(cache) / f"reference-{extractor.checksum}-{images.fingerprint()}.pt"
    if add_up(torch.tensor(int(not path.exists()), device=view.device)) == 0:           # all processes see it
        return _from_cache(path, "cpu", lambda v: ((v["mean"], v["covariance"]), v["kept"].to(view.device)))
    if len(images) < 2:
        raise Lacks(f"{view.run}: a distance needs 2 {part} images or more, and there is {len(images)}")
    moments, kept = features_of(view, extractor, f"features of the {part} part", len(images),
                                lambda begin, end: view.images(torch.arange(begin, end), part))
    mean, covariance = moments.gaussian()
    if leads():
        _to_cache(path, dict(mean=mean, covariance=covariance, kept=kept.cpu()))
    return (mean, covariance), kept


@torch.no_grad()
def measure_frechet(view, args, wanted=KINDS):
    """Frechet and kernel distances to the training part (or --reference test); FID and KID if the features are the
    published Inception's."""
    extractor, part = extractor_of(view, args), args.reference or "train"
    real, kept_real = reference(view, extractor, args.cache, part)
    frechet_name, kernel_name = ("fid", "kid") if extractor.official else ("frechet", "kernel")
    m, lines, notes, counts = {"extractor": f"{extractor.name} {extractor.checksum}"}, ([], []), [], {}
    for kind in kinds(view, *wanted):
        n, make = pictures(view, kind, args)
        if n < 2:
            notes.append(f"left out: {KINDS[kind]}: a distance needs 2 or more, and this is {n}")
            continue
        moments, kept = features_of(view, extractor, KINDS[kind], n, make)
        if not moments.sum.isfinite().all():
            raise Error(f"{view.run}: features of its {KINDS[kind]} are not finite; the run has diverged")
        counts[kind] = n
        m[f"{frechet_name}_{kind}"] = frechet(moments.gaussian(), real)
        m[f"{kernel_name}_{kind}"], spread = kernel_distance(kept, kept_real, args.seed)
        m[f"{kernel_name}_{kind}_deviation"] = spread
        lines[0].append(f"{KINDS[kind]} {m[f'{frechet_name}_{kind}']:.3f}")
        lines[1].append(f"{KINDS[kind]} {plain(m[f'{kernel_name}_{kind}'], 4)} ({plain(spread, 2)})")
    if not counts:
        raise Lacks(f"{view.run}: {notes[-1].removeprefix('left out: ')}")
    many = len(view.part(part))
    few = min(*counts.values(), many)
    if few < extractor.d:
        notes.append(f"warning: {few:,} images are too few for {extractor.d:,} features, whose covariance they do not "
                     f"fill; the kernel distance stands few images better")
    if few < SUBSET:
        notes.append(f"warning: {few:,} images are fewer than a subset of the kernel distance ({SUBSET:,}); subsets of "
                     f"{few:,} share images, and its deviation comes out too small")
    m["n"] = counts
    grey = "; grey repeated to RGB" * (not isinstance(extractor, Classifier) and view.shape[0] == 1)
    return m, [f"{extractor.title}: " + "   ".join(lines[0]),
               f"{'KID' if extractor.official else 'kernel distance'} (deviation over 100 subsets): "
               + "   ".join(lines[1]), *notes], (
        f"features of {m['extractor']}, images {extractor.resize}{grey}; {of_each(counts)} against {many:,} "
        f"{part}{'ing' * (part == 'train')} images ({view.part(part).fingerprint()}), not flipped; kernel distance "
        f"over 100 subsets of {min(few, SUBSET):,}, from up to {KEPT:,} of each; {noise_of(counts)}")


def plain(value, n):
    """A number to n digits, never as 1e+04."""
    return np.format_float_positional(value, n, unique=False, fractional=False, trim="-")


@torch.no_grad()
def measure_flips(view, args):
    """% of reconstructions that the set's classifier takes for another class than the original."""
    view.need("encode", "generate")
    with common.rank_zero_first():
        net = classifier_of(view, args.cache)
    indices, means = test_indices(view, args), Means(view.device, "flips")
    for begin, end in Count("test images", len(indices), view.batch):
        x = view.images(indices[begin:end])
        means.add(flips=net(x).argmax(1) != net(common.reconstruct(view.model, x)).argmax(1))
    m = means.result()
    m.update(flips=100 * m["flips"], accuracy=net.accuracy.item(), extractor=f"{net.name} {net.checksum}")
    return m, [f"{m['flips']:.2f} % of reconstructions change the class that a classifier sees (it is right on "
               f"{net.accuracy:.2f} % of the test part)"], (
        f"classifier {m['extractor']}; {of_test(view, m['n'])}, fixed noise")


def measure_classifiers(view, args):
    """1-NN and linear SVM on the model's features.   (ALAE, table 2)"""
    view.need("features")
    if not view.has_classes:
        raise Lacks(f"{view.run}: {view.train.name} has no class labels to be told apart")
    c = classification(view) if leads() else dict.fromkeys(COLUMNS_ALAE_2, 0)
    return dict(c, n=len(view.test)), [f"1-NN: short features {c['1nn_short']:.2f} %   long {c['1nn_long']:.2f} %",
               f"linear SVM: short features {c['svm_short']:.2f} %   long {c['svm_long']:.2f} %"
               ], f"unscaled features of {len(view.train):,} training and all {len(view.test):,} test images, C 0.02"


@torch.no_grad()
def measure_lpips(view, args):
    """LPIPS of test images and their reconstructions, of the training-mean image, and of the wrong pairs."""
    view.need("encode", "generate")
    net, indices, mean_image = lpips_of(view, args), test_indices(view, args), training_mean(view)
    means = Means(view.device, "right", "mean_image", "wrong_pair")
    for begin, end in Count("test images", len(indices), view.batch):
        x, after = (t := with_next(view, indices, begin, end))[:-1], t[1:]
        y = common.reconstruct(view.model, x)
        means.add(right=net(y, x), mean_image=net(mean_image.expand_as(x), x), wrong_pair=net(y, after))
    d = means.result()
    name, d["wrong_pair"] = "lpips" if net.official else "distance", d["wrong_pair"] if len(indices) > 1 else None
    m = {name: d["right"], f"{name}_mean_image": d["mean_image"], f"{name}_wrong_pair": d["wrong_pair"], "n": d["n"]}
    return m, [f"{net.title}: {d['right']:.4f}   (floors: {d['mean_image']:.4f} of the training-mean image, "
               f"{cell(d['wrong_pair'], '.4f')} of reconstructions paired with the wrong originals)"], (
        f"{net.checksum}{'; grey repeated to RGB' * (view.shape[0] == 1)}, images as they are; "
        f"{of_test(view, m['n'])}, fixed noise")


@torch.no_grad()
def measure_ppl(view, args, epsilon=1e-4):
    """Perceptual path length in Z (slerp) and W (lerp), of whole paths and of their ends.   (StyleGAN 4.1)"""
    view.need("prior", "map")
    net, model, n = lpips_of(view, args), view.model, code_count(view, args)
    m, text = {}, []
    for space in "zw":
        for part in ("full", "end"):
            d = torch.zeros(n, dtype=torch.float64, device=view.device)
            t = torch.from_numpy(np.random.RandomState(args.seed).rand(n, 1)).to(view.device).float() * (part == "full")
            for begin, end in Count(f"pairs in {space.upper()}, {part}", n, view.batch):
                codes = view.codes(2 * end, args.seed, 2 * begin)
                a, b = (codes if space == "z" else model.map(codes)).unflatten(0, (-1, 2)).unbind(1)
                ends = []
                for at in (t[begin:end], t[begin:end] + epsilon):
                    w = model.map(slerp(a, b, at)) if space == "z" else a + at * (b - a)
                    common.seed_noise(args.seed, begin)         # the same for both ends
                    ends.append(as_ppl_sees(model.generate(w, noise="random"), args.face_crop))
                d[begin:end] = net(*ends).double() / epsilon**2
            value = m[f"{'ppl' if net.official else 'path'}_{space}_{part}"] = within_percentiles(add_up(d))
            text.append(f"{space.upper()} {part} {value:.2f}")
    m["n"] = n
    return m, [f"PPL{'' if net.official else f' by {net.title}'}: " + "   ".join(text)], (
        f"{n:,} pairs each, epsilon {epsilon:g}, slerp in Z with lengths kept, {net.checksum}"
        f"{'; grey repeated to RGB' * (view.shape[0] == 1)}; {'of the face crop, ' * args.face_crop}images above "
        f"256 px averaged down to it; mean between the 1st and 99th percentile; random noise, one for both ends, no "
        f"truncation")


def as_ppl_sees(x, face_crop):
    """Images (N, C, H, W), of which face_crop takes rows 3/8 to 7/8, columns 2/8 to 6/8, averaged down to 256 px."""
    if face_crop:
        h, w = x.shape[2] // 8, x.shape[3] // 8
        x = x[:, :, 3 * h:7 * h, 2 * w:6 * w]
    return nnf.avg_pool2d(x, max(x.shape[2] // 256, 1))


@torch.no_grad()
def measure_swd(view, args):
    """Sliced Wasserstein distances, times 1,000: reconstructions from their test images, samples from training images
    (--reference: both from those).  At most 16,384 images; in memory, 128 patches of each for a level and set at a
    time.   (ProGAN 5; LIA, table 1)"""
    sizes = swd_levels(view.shape)
    if not sizes:
        raise Lacks(f"{view.run}: the distance needs images of 16 pixels or more, and these have "
                    f"{min(view.shape[1:])}")
    m, text, against = {"n": {}}, [], []
    parts = dict(samples="train", reconstructions="test")
    for kind in kinds(view, *parts):
        (n, make), part, levels = pictures(view, kind, args), args.reference or parts[kind], {}
        n = min(n, 16_384)
        places = evenly(len(view.train), n) if part == "train" else test_indices(view, args)[:n]
        n, other = len(places), lambda b, e, i=places, part=part: view.images(i[b:e], part)
        for level, size in enumerate(sizes):
            what = f"{KINDS[kind]}, patches at {size[0]} px"
            sets = [descriptors(view, what, n, images, level, size, [args.seed, level, i])
                    for i, images in enumerate((other, make))]
            levels[size[0]] = sliced_wasserstein(*sets, np.random.RandomState([args.seed, level]))
        m[f"swd_{kind}"], m[f"swd_{kind}_levels"], m["n"][kind] = sum(levels.values()) / len(levels), levels, n
        text.append(f"{KINDS[kind]} {m[f'swd_{kind}']:.2f} (" +
                    ", ".join(f"{h} px {v:.2f}" for h, v in levels.items()) + ")")
        against.append(f"{n:,} {KINDS[kind]} against as many {part}{'ing' * (part == 'train')} images")
    return m, ["SWD x 1,000: " + "   ".join(text)], (
        f"128 patches of 7x7 an image and level, 512 directions; uint8; {', '.join(against)}; {noise_of(m['n'])}")


def descriptors(view, what, n, make, level, size, seed):
    """128 random patches of each of n images, make(begin, end), at a level of the pyramid: (128 n, C, 7, 7).  size: (h,
    w) of that level."""
    rng, out = np.random.RandomState(seed), torch.zeros(128 * n, view.shape[0], 7, 7, device=view.device)
    rows, cols = (torch.from_numpy(rng.randint(3, side - 3, (n, 128))) for side in size)
    for begin, end in Count(what, n, view.batch):
        x = laplacian(common.to_uint8(make(begin, end)).float(), level)
        out[128 * begin:128 * end] = patches(x, rows[begin:end], cols[begin:end])
    return add_up(out)


MEASURES = dict(errors=measure_errors, latent=measure_latent, sharpness=measure_sharpness, frechet=measure_frechet,
                flips=measure_flips, classifiers=measure_classifiers, lpips=measure_lpips, swd=measure_swd,
                ppl=measure_ppl)
BY_NAME_ALONE = ("lpips", "swd", "ppl")         # slow, or in need of weights that are not there yet


def shared_test_images(views):
    """Positions, in each view's test part, of the images that all have and none was trained on, a tensor a view.  In
    the order of the first view's.  Raises Error where there are none."""
    first = views[0]
    for view in views[1:]:
        if view.test.source != first.test.source or view.test.shape != first.test.shape:
            raise Error(f"{first.run} and {view.run} have no test images in common ({first.test.name} "
                        f"{'x'.join(map(str, first.test.shape))}, {view.test.name} "
                        f"{'x'.join(map(str, view.test.shape))}); compare runs of one data set and resolution")
    ids = set(first.test.ids.tolist()).intersection(*(v.test.ids.tolist() for v in views))
    for view in views:                          # nor may any of them have been trained on
        ids -= set(view.train.ids.tolist()) if view.train.source == first.test.source else set()
    if not ids:
        raise Error(f"the runs' test parts have no image in common that none of them was trained on "
                    f"({', '.join(v.protocol.split(',')[0] for v in views)}); compare runs of one split")
    places = [{int(i): k for k, i in enumerate(v.test.ids)} for v in views]
    return [torch.tensor([place[i] for i in first.test.ids.tolist() if i in ids]) for place in places]


def training_mean(view):
    """The mean of (up to 10,000 evenly spaced) training images, (1, C, H, W)."""
    indices = torch.arange(0, len(view.train), math.ceil(len(view.train) / 10_000))
    return sum(view.images(i, "train").sum(0, keepdim=True) for i in indices.split(500)) / len(indices)


# ----------------------------------------------------------------------------------------------------- 6 Tables
# The papers' numbers; None where a paper gives none.
COLUMNS_ALAE_2 = ("1nn_short", "1nn_long", "svm_short", "svm_long")
PAPER = {
    "alae-2": {  # accuracy (%) on MNIST; rows: 1-NN SW short, long, SVM SW short, long, then the same DW
        "AE l1":  (97.15, 97.43, 88.71, 97.27, 96.84, 96.80, 89.78, 97.72),
        "AE l2":  (97.52, 97.37, 88.78, 97.23, 97.05, 96.77, 89.78, 97.72),
        "LR":     (92.79, 97.28, 89.74, 97.56, 91.90, 96.69, 90.03, 97.80),
        "JLR":    (92.54, 97.02, 89.23, 97.19, 91.97, 96.45, 90.82, 97.62),
        "BiGAN":  (95.83, 97.14, 90.52, 97.59, 95.38, 96.81, 91.34, 97.74),
        "ALAE":   (93.79, 97.61, 93.47, 98.20, 94.59, 97.47, 94.23, 98.64),
    },
    "lia-1": {  # FFHQ's last 5,000 images reconstructed: FID, SWD, MSE (unit not stated; likely 0.001 on [-1, 1])
        "LIA": (16.88, 10.01, 18.10), "ALI": (74.98, 15.09, 32.61), "AGE": (118.88, 38.70, 29.91),
        "MSE-based optimization": (44.79, 43.44, 18.81), "Encoded StyleGAN": (22.26, 15.82, 23.18),
    },
    "lia-2": {  # FID of samples, 50,000 and as many real images: FFHQ, LSUN cat, car, bedroom
        "StyleGAN": (6.23, 7.36, 3.09, 4.88), "LIA": (6.28, 7.08, 2.52, 4.36),
    },
    "invgan-1": {  # FID by 500 and by 50,000 images: RandFID, RandRecFID, TsRecFID, IntTsFID; MAE; seconds an image
        "GHFeat, FFHQ": ((49.65, 14.59), (56.71, 23.93), (None, 13.73), (68.45, 38.01), 0.129, 0.045),
        "FFHQ Enc. (*)": ((46.82, 14.38), None, (88.48, None), None, 0.460, None),
        "FFHQ MSE opt. (*)": ((46.82, 14.38), None, (58.04, None), None, 0.106, None),
        "FFHQ In-D. Inv. (*)": ((46.82, 14.38), (52.02, None), (42.64, None), (71.83, None), 0.115, 99.76),
        "InvGAN, DCGAN, MNIST": ((17.44, 6.10), (16.76, 4.25), (17.77, 4.70), (26.04, 11.44), 0.070, 3.3e-5),
        "InvGAN, StyleGAN, CelebA": ((26.63, 4.81), (24.35, 3.51), (24.37, 4.14), (32.37, 15.60), 0.150, 1.0e-3),
        "InvGAN, StyleGAN, FFHQ": ((49.14, 12.12), (44.42, 8.85), (41.14, 7.15), (49.52, 14.36), 0.255, 2.0e-3),
    },
    "invgan-2": {  # mean average precision and deviation over 20 attributes; rows: scored on; columns: trained on
        "originals": ((0.81, 0.15), (0.77, 0.16), (0.79, 0.15)),
        "tiles": ((0.79, 0.16), (0.80, 0.15), (0.78, 0.16)),
        "reconstructions": ((0.81, 0.15), (0.78, 0.16), (0.81, 0.14)),
    },
}
# InvGAN does not say which 20 of CelebA's 40 attributes; ours are those that come nearest to halving the set.
CELEBA_20 = ("Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Big_Lips", "Big_Nose", "Black_Hair", "Brown_Hair",
             "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "No_Beard", "Oval_Face", "Pointy_Nose",
             "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Lipstick", "Young")


def table_alae_2(runs, args):
    """ALAE's table 2: every run is one trial of its label and split; trials are averaged."""
    trials = {}
    own = {"given", "schedule_kimg", "seed", "out", "resume", "device", "workers", "snapshot_kimg", "data_root",
           "versions", "image_means"}
    for run in runs:
        view = View(run, args, "raw")
        if view.test.source != "mnist" or view.test.split is None:
            raise Error(f"{run} was trained on {view.test.name}; table alae-2 is about --data mnist (--split dw or sw)")
        done = trials.setdefault((view.args["label"], view.test.split), [])
        if done:
            first = done[0][0].args
            for key, value in view.args.items():
                if key not in own and value != first.get(key):
                    raise Error(f"{run} and {done[0][0].run} differ in {key} ({value}, {first.get(key)}), so they are "
                                f"not trials of one setting; make a table of each")
        result = classification(view)
        done.append((view, result))
        print(f"{view.title}: " + "  ".join(f"{c} {result[c]:.2f}" for c in COLUMNS_ALAE_2), flush=True)
    heads = [f"{c} {s.upper()}" for s in ("sw", "dw") for c in COLUMNS_ALAE_2]
    print("\nMNIST accuracy (%), table 2 of the ALAE paper (mean of 5 trials there)")
    print(f"{'':24}" + "".join(f"{h:>14}" for h in heads))
    for label in dict.fromkeys([*PAPER["alae-2"], *(label for label, _ in trials)]):
        ours = [np.mean([r[c] for _, r in done]) if (done := trials.get((label, split))) else None
                for split in ("sw", "dw") for c in COLUMNS_ALAE_2]
        for whose, cells in (("paper", PAPER["alae-2"].get(label, ())), ("ours", ours)):
            if {*cells} - {None}:
                print(f"{f'{label}, {whose}':24}" + "".join(f"{'-' if v is None else f'{v:.2f}':>14}" for v in cells))
    print("Euclidean 1-NN; linear SVM, L2-regularised squared hinge, C = 0.02; unscaled features of the whole training "
          "part, scored on the whole test part.")
    print(f"Evaluation code {common.code_version()}.")
    for (label, split), done in trials.items():
        print(f"ours, {label} {split.upper()}: {len(done)} run(s): " + "; ".join(v.protocol for v, _ in done))
    return {f"{label} {split}": [dict(run=str(v.run), protocol=v.protocol, **r) for v, r in done]
            for (label, split), done in trials.items()}


def cell(value, form=".2f"):
    """A table's cell: a number, several, or nothing."""
    if isinstance(value, (tuple, list)):
        return "/".join(cell(v, form) for v in value)
    return "-" if value is None else format(value, form)


def beside_paper(name, columns, runs, args, measure):
    """Print table `name`: the paper's rows, and what measure(view) -> ({column: number}, protocol) gives of each run.
    columns: the paper's, name -> how its numbers are written; a run's other columns, of another extractor's distances,
    stand behind these."""
    out, lines = {}, []
    for run in runs:
        view = View(run, args)
        cells, protocol = measure(view)
        out[str(run)] = dict(label=view.args["label"], **cells, protocol=f"{protocol}; evaluation seed {args.seed}; "
                                                                         f"{view.protocol}")
        lines.append((view.args["label"] + ", ours", cells))
        print(f"  {view.title}: " + "  ".join(f"{c} {cell(v, columns.get(c, '.2f'))}" for c, v in cells.items()),
              flush=True)
    heads = dict.fromkeys([*columns, *(c for _, cells in lines for c in cells)])
    papers = ((f"{label}, paper", dict(zip(columns, cells))) for label, cells in PAPER[name].items())
    print(f"{'':32}" + "".join(f"{c:>{max(len(c) + 2, 16)}}" for c in heads))
    for label, cells in (*papers, *lines):
        print(f"{label:32}" + "".join(
            f"{cell(cells.get(c), columns.get(c, '.2f')):>{max(len(c) + 2, 16)}}" for c in heads))
    print(f"Evaluation code {common.code_version()}.")
    for label, row in out.items():
        print(f"{label}: {row['protocol']}")
    return out


def frechet_of(view, args, *wanted):
    """-> the Frechet distance of each kind of pictures; the distance's name; what they depend on."""
    m, lines, how = measure_frechet(view, args, wanted)
    name = lines[0].split(":")[0]
    return [m.get(f"fid_{kind}", m.get(f"frechet_{kind}")) for kind in wanted], name, f"{name}; {how}"


def column(title, name):
    """Where a distance goes: under the paper's title if it is an FID too, else under one of its own."""
    return title if name == "FID" else f"{title}, {name}" if title else name


def table_lia_1(runs, args):
    """LIA's table 1: how well test images are reconstructed; MSE in units of 0.001 on [-1, 1], and on [0, 255].
    Distances of reconstructions, FID to the training part and SWD to the test originals (--reference: both to one)."""
    def measure(view):
        view.need("encode")
        (distance,), name, how = frechet_of(view, args, "reconstructions")
        m, e = measure_swd(view, args), errors(view, test_indices(view, args))
        wrong = e["mse_wrong_pair"] and 1000 * e["mse_wrong_pair"]
        return {"SWD x1000": m[0]["swd_reconstructions"], "MSE x1000": 1000 * e["mse"], "MSE, 0-255": e["mse_255"],
                "mean image": 1000 * e["mse_mean_image"], "wrong pairs": wrong, name: distance}, (
            f"{how}; SWD: {m[2]}; MSE: {of_test(view, e['n'])}, fixed noise")
    print(f"Reconstructions of test images: Frechet distances to the {args.reference or 'train'} part, SWD to the "
          f"{args.reference or 'test'} part (--reference: both to one; the paper does not say to which)")
    columns = "FID", "SWD x1000", "MSE x1000", "MSE, 0-255", "mean image", "wrong pairs"
    out = beside_paper("lia-1", dict.fromkeys(columns, ".2f"), runs, args, measure)
    print("MSE on [-1, 1] is times 1,000, and so of the two floors; of what the paper's is, it does not say.")
    return out


def table_lia_2(runs, args):
    """LIA's table 2: Frechet distances of samples; the paper's are FIDs of 50,000 (-n), by --features inception."""
    def measure(view):
        view.need("prior", "map")
        (distance,), name, how = frechet_of(view, args, "samples")
        return {column(view.train.name, name): distance}, how
    sets = "ffhq", "lsun-cat", "lsun-car", "lsun-bedroom"
    print("FID of samples on each set; what is no FID, or of another set, has a column of its own")
    return beside_paper("lia-2", dict.fromkeys(sets, ".2f"), runs, args, measure)


def clock(view):
    """The time, once the device has done what it was given."""
    if view.device.type == "cuda":
        torch.cuda.synchronize()
    return time.time()


def table_invgan_1(runs, args):
    """InvGAN's table 1: Frechet distances of 500 and of 50,000 (-n) images, or as many as there are, of samples, these
    reconstructed, test images reconstructed, and midpoints of these; MAE; seconds to encode and decode an image."""
    names = {"samples": "Rand", "resamples": "RandRec", "reconstructions": "TsRec", "midpoints": "IntTs"}

    def measure(view):
        view.need("prior", "map", "encode")
        by_few, whole = (Namespace(**{**vars(args), "n": n}) for n in (500, args.n or 50_000))
        (few, _, how_few), (many, name, how) = (frechet_of(view, options, *names) for options in (by_few, whole))
        e, x = errors(view, test_indices(view, whole)), view.images(torch.arange(min(view.batch, len(view.test))))
        common.reconstruct(view.model, x)                       # the first call also prepares
        began = clock(view)
        common.reconstruct(view.model, x)
        seconds = (clock(view) - began) / len(x)
        distances = {column(title, name): both for title, *both in zip(names.values(), few, many, strict=True)}
        return {**distances, "MAE": e["mae"], "s an image": seconds, "MAE, 28x28": e.get("mae_28")}, (
            f"{how_few}; and {how}; MAE: {of_test(view, e['n'])}, fixed noise, floors (MSE) {e['mse_mean_image']:.4f} "
            f"of the mean image, {cell(e['mse_wrong_pair'], '.4f')} of wrong pairs, itself {e['mse']:.4f}; seconds: "
            f"{len(x)} images at once on {view.device.type}, {torch.get_num_threads()} threads")
    columns = {**dict.fromkeys(names.values(), ".2f"), "MAE": ".3f", "s an image": ".1e", "MAE, 28x28": ".3f"}
    out = beside_paper("invgan-1", columns, runs, args, measure)
    print(f"Distances by 500 and by {args.n or 50_000:,} images, or as many as there are.  *: what the paper gives "
          f"as MAE there is the root of a mean square, which is no less")
    return out


@torch.no_grad()
def table_invgan_2(runs, args):
    """InvGAN's table 2, of a run and one of --patches, which may be of other data: whether reconstructions of the first
    one's data, whole and tile by tile, keep what classifiers see.   (4.1)

    For each class or attribute (--only; of CelebA's 20, CELEBA_20) a network of torchvision (--classifier) is trained
    for --epochs on originals and on either's reconstructions of training images (-n, evenly spaced), and scored on
    those of the whole test part.  All of them stay in the host's memory, as uint8; a GPU computes in bf16 if it can.
    """
    if len(runs) != 2:
        raise Error("table invgan-2 takes two runs: one of whole images, and one of --patches")
    view, tiler = View(runs[0], args), View(runs[1], Namespace(**{**vars(args), "data": "", "data_root": ""}))
    if view.args.get("patches") or not tiler.args.get("patches"):
        raise Error(f"table invgan-2 takes first a run of whole images, then one of --patches, not {' '.join(runs)}")
    view.need("encode", "generate")
    classifier_net(args)                                    # says now whether there is one of that name
    torch.backends.cudnn.allow_tf32 = True
    names, y, y_test = attributes(view, args.only or CELEBA_20 * (view.train.source == "celeba"))
    made = dict(originals=lambda x: x, tiles=lambda x: through_tiles(tiler, x),
                reconstructions=lambda x: common.reconstruct(view.model, x))
    places = dict(train=evenly(len(y), args.n or len(y)), test=torch.arange(len(y_test)))
    n, n_test = map(len, places.values())
    seconds = 3 * len(names) * seconds_of_training(view, n, args)
    print(f"{len(names)} labels, a {args.classifier} on each of 3 sets, {args.epochs} epochs of {n:,} images: about "
          f"{common.duration(seconds)}, and {3 * (n + n_test) * math.prod(view.shape) / 1e9:.2g} GB of memory (fewer "
          f"labels by --only, images by -n, epochs by --epochs)", flush=True)
    sets = {part: {kind: torch.empty(len(indices), *view.shape, dtype=torch.uint8) for kind in made}
            for part, indices in places.items()}
    for part, kind in ((part, kind) for part in places for kind in made):
        for begin, end in Count(f"{part}: {kind}", len(places[part]), view.batch):
            x = view.images(places[part][begin:end], part)
            sets[part][kind][begin:end] = common.to_uint8(made[kind](x)).cpu()
    precisions, shares = {kind: {scored: [] for scored in made} for kind in made}, {}
    for name, target, truth in telling(names, y[places["train"]], y_test):
        shares[name] = truth.float().mean().item()
        for kind, x in sets["train"].items():
            net = binary_classifier(x, target, view.device, args)
            for scored, images in sets["test"].items():
                precisions[kind][scored].append(average_precision(classified(net, images, view.device), truth.bool()))
            print(f"  {name}, trained on {kind}: " + "  ".join(
                f"{scored} {precisions[kind][scored][-1]:.3f}" for scored in made), flush=True)
    if not shares:
        raise Error(f"{view.train.name} has no label that tells its images apart; take another set" +
                    ", or more of -n" * (n < len(y)))
    out = {scored: {kind: (float(np.mean(precisions[kind][scored])), float(np.std(precisions[kind][scored])))
                    for kind in made} for scored in made}
    print(f"{'scored on':32}" + "".join(f"{kind:>20}" for kind in made) + "   (trained on)")
    for scored, row in out.items():
        print(f"{scored + ', paper':32}" + "".join(f"{cell(v):>20}" for v in PAPER["invgan-2"][scored]))
        print(f"{scored + ', ours':32}" + "".join(f"{cell(v):>20}" for v in row.values()))
    print(f"Average precision, its mean and deviation over {len(shares)} labels ({', '.join(shares)}), by "
          f"{args.classifier}, {args.epochs} epochs of {n:,} images, {precision_on(view.device)}, scored on "
          f"{n_test:,}; saying yes to all has {np.mean([*shares.values()]):.2f}; evaluation seed {args.seed}; tiles by "
          f"{tiler.title} ({tiler.protocol}); {view.title} ({view.protocol}); evaluation code {common.code_version()}")
    return out


def seconds_of_training(view, n, args):
    """How long a classifier of n images takes, by its first steps; what else the table does takes little beside it."""
    x = common.to_uint8(view.images(torch.arange(min(64, len(view.train))), "train")).cpu()

    def train(steps):
        began = clock(view)
        binary_classifier(x, torch.zeros(len(x)), view.device, args, steps)
        return clock(view) - began
    train(1)                                                # the first call also prepares
    return max(train(3) - train(1), 0) / 2 * steps_of(n, args)


def classifier_net(args):
    """The network of torchvision that --classifier names, with one output."""
    from torchvision.models import get_model
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            return get_model(args.classifier, weights=None, num_classes=1)
    except ValueError as e:
        raise Error(f"--classifier: {e}; name one of torchvision's, such as resnet18") from None


def precision_on(device):
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def steps_of(n, args):
    return max(args.epochs * n // 64, 1)


def logits(net, x, device):
    """Of uint8 images (N, C, H, W), wherever they are, grey or RGB -> (N,) on device."""
    with common.autocast(precision_on(device), device)():
        return net(common.to_float(x.to(device, non_blocking=True)).expand(-1, 3, -1, -1)).flatten().float()


def classified(net, x, device):
    """The same of any number of images -> (N,) on the CPU."""
    return torch.cat([logits(net, part, device) for part in x.split(256)]).cpu()


def binary_classifier(x, target, device, args, steps=0):
    """A network that tells whether target (N,) of uint8 images x (N, C, H, W) is 1.   (InvGAN 4.1)  From random
    weights, by Adam, with a one-cycle rate and batches of 64: ours."""
    net, target = classifier_net(args).to(device, memory_format=torch.channels_last), target.float().to(device)
    _fit(net, len(x), lambda i: nnf.binary_cross_entropy_with_logits(logits(net, x[i], device), target[i.to(device)]),
         steps or steps_of(len(x), args), 64)
    return net


TABLES = {"alae-2": table_alae_2, "lia-1": table_lia_1, "lia-2": table_lia_2, "invgan-1": table_invgan_1,
          "invgan-2": table_invgan_2}


# -------------------------------------------------------------------------------------------------- 7 Inversion

CLIP_DRAWS = 1000       # z is clipped to the range of so many draws from the prior


def pixel_distance(x):
    """Images or maps x (N, ...) -> y -> the mean square of each y - x, (N,)."""
    return lambda y: (y - x).square().flatten(1).mean(1)


def distance_for(view, args):
    """x -> y -> (N,), images: --loss pixel, their mean square; vgg9, that of VGG-16 conv3_3, or in-domain that of
    pixels and 0.00005 times that of conv4_3.  conv3_3 is layer 9 of the code that LIA names, which has Keras's weights,
    takes it at 256 px, and over 82,890."""
    if args.loss == "pixel":
        return pixel_distance
    vgg = common.frozen("vgg", args.vgg, args.cache, common.VGG).to(view.device)
    features = vgg.conv4_3 if args.method == "in-domain" else lambda x: vgg(x, last=15)[-1]

    def from_x(x):
        pixels, maps = pixel_distance(x), pixel_distance(features(x))
        if args.method == "in-domain":
            return lambda y: pixels(y) + 5e-5 * maps(features(y))
        return lambda y: maps(features(y))
    return from_x


def optimise(view, x, space, distance, steps, lr, optimizer="adam", domain=False, seed=0, keep=()):
    """Codes whose images are like x (N, C, H, W), each by itself, by gradient descent over z, w or w+.

    Starts from a draw in z, else from the mean w.  In z, what leaves the prior's range is drawn anew (stochastic
    clipping, Lipton and Tripathi 2017).  domain: starts from E(x), and asks that E agrees, + 2 mean (w - E(G(w)))^2
    (Zhu et al. 2020).  Where the prior is a sphere, every start is a draw, and codes stay on it.
    -> the code in its space, w, and the images at the steps in `keep`.
    """
    model, path = view.model, []
    view.need("prior", "map")
    draws = view.codes(CLIP_DRAWS, seed)
    norms, limit = draws.norm(dim=1), draws.abs().max()
    sphere = bool(norms.std() < 1e-3 * norms.mean())
    if domain:
        view.need("encode", *["unmap"] * (space == "z"))
        v = model.encode(x)
        v = model.unmap(v) if space == "z" else v
    elif space == "z" or sphere:
        v = view.codes(len(x), seed)
    else:
        v = getattr(model, "mean_w", model.map(draws).mean(0)).expand(len(x), -1)
    if space == "w+":
        v = v[:, None].expand(-1, model.num_layers, -1)
    v = v.clone().requires_grad_()
    descent = (torch.optim.Adam if optimizer == "adam" else torch.optim.SGD)([v], lr=lr)
    rng, far = common.generator(view.device, seed, "evaluation", CLIP_DRAWS), distance(x)     # draws of its own
    for step in range(steps + 1):
        with torch.enable_grad():
            w = model.map(v) if space == "z" else v
            y = model.generate(w, noise="fixed")
            if step in keep:
                path.append(y.detach().clamp(-1, 1))
            if step == steps:
                return v.detach(), w.detach(), path
            loss = far(y)                                                               # [N]
            if domain:
                back = model.encode(y)
                loss = loss + 2 * (w - (back[:, None] if space == "w+" else back)).square().flatten(1).mean(1)
            descent.zero_grad()
            loss.sum().backward()
        descent.step()
        if sphere:
            v.data *= norms.mean() / v.norm(dim=-1, keepdim=True)
        elif space == "z":
            v.data = torch.where(v.abs() > limit, model.prior(len(v), rng), v)


def frames(steps, n=9):
    """Steps to show of a path: 0, the last, and between them ever fewer."""
    return sorted({0, steps, *(round(steps ** (i / (n - 2))) for i in range(n - 1))})


@torch.no_grad()
def invert(args):
    """Codes of images: the encoder's, and those found by optimisation, with errors and seconds an image, decoding too.

    IMAGE are files; without any, the first -n test images.  Writes a picture, and beside it the codes, NAME-SPACE.npy.
    """
    check_out(args)
    view, domain = View(args.run, args), args.method == "in-domain"
    if args.method == "encoder" and (args.steps or args.lr or args.save_path):
        raise Error("--steps, --lr and --save-path are for --method optimise and in-domain; leave them out")
    steps, lr = args.steps or (100 if domain else 1000), args.lr or (0.01 if args.optimizer == "adam" else 1.0)
    if args.method != "optimise":
        view.need("encode")
    if "w+" in args.space and view.model.num_layers == 1:
        raise Error(f"{view.run} ({view.args['backbone']}) has one w for all layers; w+ is for stylegan")
    x = real_images([view], args, lambda *_: slice(args.n or 16))
    all_rows, out, stem = [x], {}, Path(args.out or view.run / "figures" / "invert.png")
    floor = None if view.missing else (x - training_mean(view)).square().mean().item()
    todo = ["encoder"] * hasattr(view.model, "encode") + (args.space if args.method != "encoder" else [])
    distance = distance_for(view, args) if todo != ["encoder"] else None

    def codes(space, x, steps=steps):
        if space == "encoder":
            w = view.model.encode(x)
            return w, w, []
        return optimise(view, x, space, distance, steps, lr, args.optimizer, domain, args.seed,
                        frames(steps) if args.save_path else ())

    for space in todo:
        view.made(codes(space, x[:view.batch], steps=1)[1])             # the first call also prepares
        began = clock(view)
        v, w, path = zip(*(codes(space, part) for part in x.split(view.batch)), strict=True)
        y = view.made(torch.cat(w)).clamp(-1, 1)
        seconds = (clock(view) - began) / len(x)
        mse, wrong = ((y - other).square().mean().item() for other in (x, x.roll(1, 0)))
        name = space if space == "encoder" else f"{args.method}, {space}"
        wrong = wrong if len(x) > 1 else None
        out[name] = dict(mse=mse, mse_wrong_pair=wrong, mse_mean_image=floor, seconds=seconds, n=len(x))
        print(f"  {name:16} MSE {mse:.4f}   wrong pairs {cell(wrong, '.4f')}   mean image {cell(floor, '.4f')}   "
              f"{plain(seconds, 4)} s an image", flush=True)
        all_rows.append(y)
        stem.parent.mkdir(parents=True, exist_ok=True)
        np.save(stem.with_name(f"{stem.stem}-{space}.npy"), torch.cat(v).cpu().numpy())
        if path[0]:
            steps_shown = [torch.cat(images) for images in zip(*path, strict=True)]
            write_picture(rows(*torch.stack([x, *steps_shown], 1)), stem.with_name(f"{stem.stem}-path-{space}.png"))
    print(f"{len(x)} images, {min(len(x), view.batch)} at once; "
          + (f"{steps} steps of {args.optimizer}, lr {lr:g}, loss {args.loss}; " * (args.method != "encoder"))
          + f"fixed noise; evaluation seed {args.seed}; {view.protocol}; evaluation code {common.code_version()} on "
          f"{view.device.type}, {torch.get_num_threads()} threads")
    write_picture(blocks(*all_rows), stem)
    print("rows from the top: originals, " + ", ".join(out)
          + (f"\nno mean image: {view.missing}" if floor is None else ""))
    return out


def attributes(view, only=()):
    """-> names of a set's classes or attributes, those in `only` if any, and who has them: (N, A), (M, A) bool of the
    training and of the test part.  Raises Error where there are none."""
    y, y_test = view.train.labels, view.test.labels
    if y is None or y_test is None:
        raise Error(f"{view.train.name} has no labels in both its parts; take a set with classes or attributes")
    if y.ndim == 1:                                         # -1: of none
        y, y_test = (nnf.one_hot(t + 1, int(max(y.max(), y_test.max())) + 2)[:, 1:].bool() for t in (y, y_test))
    names = [str(name) for name in view.train.label_names or range(y.shape[1])]
    if unknown := [name for name in only if name not in names]:
        raise Error(f"{view.train.name} has no label {unknown[0]!r}; it has {', '.join(names)}")
    chosen = [names.index(name) for name in only or names]
    return [names[i] for i in chosen], y[:, chosen], y_test[:, chosen]


def telling(names, y, y_test):
    """Goes through labels (N, A), (M, A) by name, but for those in which all images of a part are alike."""
    for name, target, truth in zip(names, y.T, y_test.T, strict=True):
        if min(len(target.unique()), len(truth.unique())) < 2:
            print(f"  {name:24} left out: all images of a part are alike in it")
        else:
            yield name, target, truth


@torch.no_grad()
def boundary(args):
    """Linear boundaries in w from the labels of the data: a file boundaries/NAME.npy, a unit normal, an attribute.

    A linear SVM on codes of training images (-n, evenly spaced), as InterFaceGAN's; scored on the test part.
    """
    view = View(args.run, args)
    view.need("encode")
    names, y, y_test = attributes(view, args.only)
    chosen, out = evenly(len(y), args.n or 20_000), {}
    w, w_test = (torch.cat([view.model.encode(view.images(i, part)) for i in indices.split(view.batch)])
                 for part, indices in (("train", chosen), ("test", torch.arange(len(y_test)))))
    for name, target, truth in telling(names, y[chosen].to(view.device), y_test.to(view.device)):
        normal = linear_svm(w, target.long(), 2)[:, 1]
        right = (svm_scores(normal, w_test) > 0) == truth
        rates = [100 * right[truth == side].float().mean().item() for side in (False, True)]
        share = 100 * max(truth.float().mean().item(), 1 - truth.float().mean().item())
        out[name] = dict(accuracy=100 * right.float().mean().item(), balanced=sum(rates) / 2, majority=share)
        path = Path(args.out or view.run / "boundaries") / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, (normal[:-1] / normal[:-1].norm()).cpu().numpy()[None])
        print(f"  {name:24} accuracy {out[name]['accuracy']:.1f} %, mean of both sides {sum(rates) / 2:.1f} %   "
              f"(always the more frequent side: {share:.1f} %)   wrote {path}", flush=True)
    print(f"linear SVM, C = 0.02, on {len(chosen):,} training codes, scored on {len(y_test):,} test images; "
          f"{view.protocol}; evaluation code {common.code_version()}")
    return out


# ---------------------------------------------------------------------------------------------------- 8 Figures
# Each makes a picture (H, W, 3) uint8 of one run or several from a few primitives: rows of images, and straight lines
# in a space.

MIXED = (("coarse", 0, 4, 3), ("middle", 4, 8, 2), ("fine", 8, None, 1))      # first, end layer; rows in the figure
EXTRAPOLATION = (0.5, 1.0, 2.0)         # InvGAN fig. 3 shows three strengths, and does not name them
WINDOW = 0.5            # deviation of the Gaussian window over codes, in frames (InvGAN's figure 6 does not say)


def rows(*rows_of_images):
    """Rows of images, each (N, C, H, W) in [-1, 1], N equal -> a picture."""
    return common.grid(torch.cat([r.cpu() for r in rows_of_images]), len(rows_of_images[0]))


def blocks(*rows_of_images, columns=16):
    """Rows of any length, cut into blocks of 16 columns that stand one below the other."""
    columns = min(columns, len(rows_of_images[0]))
    blank = rows_of_images[0].new_ones(-len(rows_of_images[0]) % columns, *rows_of_images[0].shape[1:])
    cut = zip(*(torch.cat([r, blank]).split(columns) for r in rows_of_images), strict=True)
    return rows(*(row for block in cut for row in block))


def stack(*pictures):
    """Pictures, one above the other, a white line between."""
    width = max(p.shape[1] for p in pictures)
    pictures = [np.pad(p, [(0, 4), (0, width - p.shape[1]), (0, 0)], constant_values=255) for p in pictures]
    return np.concatenate(pictures)[:-4]


def lines(a, b, steps):
    """Straight lines from each a to its b, both (N, d) -> (N, steps, d), ends included."""
    t = torch.linspace(0, 1, steps, device=a.device)[None, :, None]
    return (1 - t) * a[:, None] + t * b[:, None]


def bilinear(corners, steps):
    """(4, d), the corners top left, top right, bottom left, bottom right -> (steps, steps, d), corners included."""
    left, right = lines(corners[:2], corners[2:], steps)                    # [steps,d]
    return lines(left, right, steps)


def real_images(views, args, choose):
    """Real images (N, C, H, W) for all views: those of --images, else choose(view, shared test images) of these."""
    if args.images:
        c, *size = views[0].shape
        if any(v.shape != (c, *size) for v in views):
            raise Error("the runs' images differ in size or colour, so they cannot share --images; draw them apart")
        return common.to_float(data.read_images(args.images, c, size)).to(views[0].device)
    shared = shared_test_images(views)[0]
    return views[0].images(shared[choose(views[0], shared)])


def image_pairs(views, args, n, name):
    """Pairs of real images, one after the other: of --images, else the first 2 n (-n) of the views' test images, or as
    many as there are."""
    x = real_images(views, args, lambda _, shared: slice(min(2 * (args.n or n), len(shared) // 2 * 2)))
    if len(x) % 2 or not len(x):
        raise Error(f"figure {name} takes pairs of images, not {len(x)}; name an even number by --images")
    return x


def one_of_four_classes(view, indices):
    """Where in `indices` the first images of four classes are; the first four where there are no four."""
    labels = view.test.labels[indices] if view.has_classes else torch.arange(len(indices))
    first = [(labels == c).nonzero()[0].item() for c in labels.unique()[:4]]
    return first if len(first) == 4 else list(range(min(4, len(indices))))


def truncate(w, mean_w, psi, layers, num_layers):
    """w' = mean_w + psi (w - mean_w) in the first `layers` of num_layers, (N, num_layers, nw).   (StyleGAN, app. B)"""
    if w.ndim == 2:
        w = w[:, None].expand(-1, num_layers, -1)
    scale = torch.where(torch.arange(num_layers, device=w.device) < layers, psi, 1.0)
    return mean_w + scale[:, None] * (w - mean_w)


def figure_samples(views, args):
    """Images of codes from the prior; several runs one above the other (ALAE fig. 6, F-AAE fig. 8).  --truncation draws
    w towards the mean w, in the first --truncation-layers layers."""
    pictures = []
    for view in views:
        w = view.model.map(view.codes(args.n or 64, args.seed))
        if args.truncation != 1:
            view.need("mean_w")
            w = truncate(w, view.model.mean_w, args.truncation, args.truncation_layers, view.model.num_layers)
        pictures.append(common.grid(view.made(w), 8 if len(views) == 1 else 16))
    return stack(*pictures)


def figure_reconstructions(views, args):
    """Test images and, under each row of them, their reconstructions, a row a run (ALAE fig. 3, F-AAE figs. 5-7)."""
    x = real_images(views, args, lambda *_: slice(args.n or 32))
    return blocks(x, *(common.reconstruct(view.model, x) for view in views))


def figure_morph(views, args):
    """Four real images at the corners of a panel, decoded mixtures of their codes between, by bilinear weights (F-AAE
    eq. 5, fig. 9); a panel a run.  A model whose prior is a sphere normalises the mixture when it decodes it."""
    x = real_images(views, args, one_of_four_classes)
    if len(x) != 4:
        raise Error("figure morph takes 4 images, one a corner, and " + (
            f"--images names {len(x)}" if args.images else f"there are {len(x)} test images"))
    return stack(*(rows(*map(view.made, bilinear(view.encoded(x), args.n or 7))) for view in views))


def style_layers(view):
    """How many layers read a style, of those that have grown.  Raises Lacks where all read one w."""
    if view.model.num_layers == 1:
        raise Lacks(f"{view.run} ({view.args['backbone']}) reads one w, with no styles to mix; take a stylegan run")
    return 2 * view.growing.top + 2


def figure_mixing(views, args):
    """Style mixing (ALAE fig. 9): on top sources, on the left destinations, and the destinations with coarse (layers
    0-3: three rows), middle (4-7: two rows) or fine styles (8 and above: a row) of the sources; a panel a run.  Both
    are real images, the first -n (5) and the next 3 to 6 (a row each); with --generated, samples and their codes."""
    pictures = []
    for view in views:
        used, layers = style_layers(view), view.model.num_layers
        bands = [(name, range(a, min(b or used, used)), rows_of) for name, a, b, rows_of in MIXED if a < used]
        n, m = args.n or 5, sum(count for *_, count in bands)
        if args.generated:
            w = view.model.map(view.codes(n + m, args.seed))
            x = view.made(w)
        else:
            x = real_images([view], args, lambda *_, end=n + m: slice(end))
            if len(x) < n + m:
                raise Error(f"figure mixing takes {n + m} images, {n} sources (-n) and {m} destinations, and "
                            + (f"--images names {len(x)}" if args.images else f"there are {len(x)} test images"))
            x = x[:n + m]
            w = view.encoded(x)
        blank, destination = torch.ones_like(x[:1]), n
        picture = [torch.cat([blank, x[:n]])]
        for _, band, count in bands:
            for _ in range(count):
                mixed = w[destination, None, None].expand(n, layers, -1).clone()
                mixed[:, band] = w[:n, None]
                picture.append(torch.cat([x[destination][None], view.made(mixed)]))
                destination += 1
        pictures.append(rows(*picture))
        print(f"{view.run.name}: rows from the second on: " + ", ".join(
            f"{count} with {name} styles (layers {band[0]}-{band[-1]}) of the sources" for name, band, count in bands))
    return stack(*pictures)


def figure_styles(views, args):
    """The first 0, 1, 2 ... style vectors of one image's code in the place of another's, between the two images
    (InvGAN 4.2, figs. 2, 8); -n pairs of real images, a block a run."""
    x, all_rows = image_pairs(views, args, 4, "styles"), []
    for view in views:
        used, layers = style_layers(view), view.model.num_layers
        print(f"columns: an image, its reconstruction with the first 0 ... {used} styles of another, the other")
        first = torch.arange(layers, device=view.device) < torch.arange(used + 1, device=view.device)[:, None]
        w = view.encoded(x)
        all_rows += [torch.cat([a_x[None], view.made(torch.where(first[:, :, None], b, a)), b_x[None]])
                     for a, b, a_x, b_x in zip(w[0::2], w[1::2], x[0::2], x[1::2], strict=True)]
    return rows(*all_rows)


def figure_variants(views, args):
    """Test images, and under each row of them, a pair of rows a run: reconstructions and absolute differences (InvGAN
    4.4, fig. 5)."""
    x = real_images(views, args, lambda *_: slice(args.n or 16))
    made = [common.reconstruct(view.model, x) for view in views]
    print("rows: images, then reconstructions and differences of each run")
    tell_errors(views, x, made)
    return blocks(x, *(row for y in made for row in (y, difference(x, y))))


def tell_errors(views, x, made):
    """Print how far each view's reconstructions of these images are, beside two floors."""
    for view, y in zip(views, made, strict=True):
        wrong = (y.roll(1, 0) - x).square().mean()
        print(f"{view.title}: MSE {(y - x).square().mean():.4f}  MAE {(y - x).abs().mean():.4f}  floors MSE "
              f"{(x - x.mean((2, 3), keepdim=True)).square().mean():.4f} of each image's mean colour" + (
              f", {wrong:.4f} of wrong pairs" * (len(x) > 1)) + f" ({len(x)} images of {x.shape[3]}x{x.shape[2]}, "
              f"fixed noise; {view.protocol})")


def difference(x, y):
    """|x - y|, from black to white."""
    return (x - y).abs() - 1


def remade(views, *rows_of_images):
    """Rows of images, the last of them composed of the others, and its reconstruction, a row a run."""
    print(f"rows: {len(rows_of_images)} of what is given and made of it, then reconstructions")
    return blocks(*rows_of_images, *(common.reconstruct(view.model, rows_of_images[-1]) for view in views))


def figure_inpaint(views, args):
    """Test images, the same with a square of a third of their height (ours) set to 0 at a random place, and the
    reconstructions of these, a row a run (InvGAN 4.2, figs. 2, 8)."""
    x, rng = real_images(views, args, lambda *_: slice(args.n or 16)), np.random.RandomState(args.seed)
    side, cut = x.shape[2] // 3, x.clone()
    for image in cut:
        top, left = (rng.randint(0, length - side + 1) for length in x.shape[2:])
        image[:, top:top + side, left:left + side] = 0
    return remade(views, x, cut)


def figure_merge(views, args):
    """Pairs of test images, the left half of the first beside the right half of the second, or, where the --mask is
    white, the second in the first, and the reconstructions of these, a row a run (InvGAN 4.2, figs. 2, 8)."""
    x = image_pairs(views, args, 16, "merge")
    a, b = x[0::2], x[1::2]
    mask = torch.arange(a.shape[3], device=a.device) >= a.shape[3] // 2
    if args.mask:
        mask = common.to_float(data.read_images([args.mask], 1, a.shape[2:])).to(a.device) > 0
        if mask.all() or not mask.any():
            raise Error(f"{args.mask} is all {'white' if mask.any() else 'black'} (what is transparent is white); make "
                        f"it white on black")
    return remade(views, a, b, torch.where(mask, b, a))


def figure_edit(views, args):
    """Files that were edited by hand (--images), over their reconstructions, a row a run (InvGAN 4.2, figs. 2, 8)."""
    if not args.images:
        raise Error("figure edit reconstructs what you have edited; name the files by --images")
    return remade(views, real_images(views, args, None))


def tile(x, size):
    """Images (N, C, H, W) -> their tiles, row by row, (N, H/size * W/size, C, size, size).   (InvGAN 3.3)"""
    return x.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


def untile(tiles, columns):
    """`tile` backwards: (N, n, C, size, size) -> (N, C, n / columns * size, columns * size)."""
    return tiles.unflatten(1, (-1, columns)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def codes_of_tiles(view, x):
    """Images (N, c, H, W), grey or RGB -> the codes of their tiles, (N, n, nw), each inverted alone.   (InvGAN 3.3)
    Raises Error for sizes that are no multiple of the run's."""
    view.need("encode", "generate")
    (c, *shape), (h, w) = view.model.image_shape, x.shape[2:]
    if shape[0] != shape[1]:
        raise Error(f"{view.run} makes images of {shape[1]}x{shape[0]}; tiles are square, so take another run")
    if h % (size := shape[0]) or w % size:
        raise Error(f"images of {w}x{h} do not cut into {view.run}'s tiles of {size}; bring them to "
                    f"{max(w // size, 1) * size}x{max(h // size, 1) * size} (--images: by --resolution)")
    if c < x.shape[1]:
        raise Error(f"{view.run} makes grey images, and these are RGB; take a run on RGB images")
    tiles = tile(x.expand(-1, c, -1, -1), size)
    return view.encoded(tiles.flatten(0, 1)).unflatten(0, tiles.shape[:2])


def from_tiles(view, codes, like):
    """Images of codes of tiles (N, n, nw), as wide and as colourful as `like`, in [-1, 1]."""
    x = untile(view.made(codes.flatten(0, 1)).unflatten(0, codes.shape[:2]), like.shape[3] // view.model.image_shape[2])
    return (x if x.shape[1] == like.shape[1] else x.mean(1, keepdim=True)).clamp(-1, 1)


def through_tiles(view, x):
    """Images (N, C, H, W) reconstructed tile by tile."""
    return from_tiles(view, codes_of_tiles(view, x), x)


def whole_images(views, args, paths):
    """Real images that tiles are cut from, (N, C, H, W): of these files, the first -n of a folder or zip, at
    --resolution or the first one's size; else the first -n test images of the one run, of --patches whole."""
    view, *others = views
    c, (w, h) = view.shape[0], data.parse_resolution(args.resolution) or (0, 0)
    if paths:
        x = data.read_images(paths, c, (h, w) if h else None, args.n or 4)
    elif h:
        raise Error("--resolution is of --images or --frames; name some, or leave it out")
    elif others:
        raise Error("several runs have no test images of one size; name some by --images")
    else:
        x = getattr(view.test, "images", view.test).take(torch.arange(min(args.n or 4, len(view.test))))
    return common.to_float(x).to(view.device)


def figure_tiles(views, args):
    """Images of any size, their reconstructions tile by tile, and the absolute differences, in three columns; -n
    images, a block a run (InvGAN 3.3, fig. 4)."""
    x = whole_images(views, args, args.images)
    print("columns: images, reconstructions, differences")
    made = [through_tiles(view, x) for view in views]
    tell_errors(views, x, made)
    return rows(*(torch.stack(row) for y in made for row in zip(x, y, difference(x, y), strict=True)))


def figure_deblur(views, args):
    """De-blurring by extrapolation in the codes of tiles (InvGAN 4.3, fig. 3): an image, its half size enlarged again
    (bicubic), the reconstruction of that, and w + a (w - w of that blurred), a = 0.5, 1, 2; -n images, a block a run.
    The paper's text has the opposite sign, which blurs.  Half, and blurred by a Gaussian of deviation 1 pixel: ours."""
    from torchvision.transforms.functional import gaussian_blur
    x = whole_images(views, args, args.images)
    low = nnf.interpolate(nnf.avg_pool2d(x, 2), size=x.shape[2:], mode="bicubic").clamp(-1, 1)
    blurred = gaussian_blur(low, 7, 1.0)
    print("columns: images, half their size enlarged, reconstructed, and w + a (w - w blurred), a = "
          + ", ".join(f"{a:g}" for a in EXTRAPOLATION))
    all_rows = []
    for view in views:
        w, w_blurred = codes_of_tiles(view, low), codes_of_tiles(view, blurred)
        columns = [x, low, *(from_tiles(view, w + a * (w - w_blurred), x) for a in (0, *EXTRAPOLATION))]
        all_rows += [torch.stack(row) for row in zip(*columns, strict=True)]
        print(f"{view.run.name}: sharpness (variance of the Laplacian over the original's): " + "  ".join(
            f"{name} {(sharpness(y).mean() / sharpness(x).mean()).item():.3f}" for name, y in zip(
                ("enlarged", "reconstructed", *(f"a = {a:g}" for a in EXTRAPOLATION)), columns[1:], strict=True)))
    return rows(*all_rows)


def between(codes, n):
    """Codes of frames (T, ...) -> those of (T - 1) n + 1: means of neighbours by a Gaussian window, also where there
    was a frame.   (InvGAN 4.3)"""
    at = torch.arange((len(codes) - 1) * n + 1, device=codes.device)[:, None] / n
    weights = torch.exp(-(at - torch.arange(len(codes), device=codes.device)).square() / (2 * WINDOW**2))
    return torch.einsum("st,t...->s...", weights / weights.sum(1, keepdim=True), codes)


def figure_frames(views, args):
    """Frames of a video (--frames, a folder or a GIF), their reconstructions tile by tile, and -n (4) times as many,
    averages of neighbours' codes (InvGAN fig. 6); also written as NAME.gif and frame by frame into a folder NAME."""
    from PIL import Image
    if not args.frames or len(views) > 1:
        raise Error("figure frames takes one run, and --frames, a folder of images or a GIF")
    view, times = views[0], args.n or 4
    args.n = sys.maxsize                                                                # all frames
    args.out = Path(args.out or view.run / "figures" / "frames.png").with_suffix(".png")
    folder, film = args.out.with_suffix(""), args.out.with_suffix(".gif")
    if film.resolve() == Path(args.frames).resolve() or folder.resolve() == Path(args.frames).resolve():
        raise Error(f"--out {args.out} would write over {args.frames}; name another")
    x = whole_images(views, args, [args.frames])
    if len(x) < 2:
        raise Error(f"{args.frames} has one frame, and interpolation needs two or more")
    codes = codes_of_tiles(view, x)
    y, many = (from_tiles(view, w, x[:1]) for w in (codes, between(codes, times)))
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9][0-9].png"):
        old.unlink()
    pictures = [common.grid(frame[None].cpu(), 1) for frame in many]
    for i, picture in enumerate(pictures):
        common.save_png(folder / f"{i:04d}.png", picture)
    first, *others = map(Image.fromarray, pictures)
    first.save(film, save_all=True, append_images=others, duration=80, loop=0)
    print(f"wrote {film}: {len(many)} frames, also in {folder}\nrows: {len(x)} frames, reconstructed, and with "
          f"{times - 1} more between neighbours")
    tell_errors(views, x, [y])
    return stack(*(rows(t[:16]) for t in (x, y, many)))


def figure_traversal(views, args):
    """Pairs of samples that show one digit, joined in Z (odd rows), and again in W (even rows) (ALAE fig. 4).  A real
    image has no z (F is not inverted), so both ends are samples.  Which digit a sample shows is told by the nearest
    training image's label, in the space of long features; without labels any two are joined."""
    return stack(*(traversal(view, args) for view in views))


def traversal(view, args):
    pairs, steps, labels = args.n or 5, 12, None if (why := view.missing) else view.train.labels
    if why:
        print(f"{view.run.name}: any two samples are joined, because there are no labels ({why})")
    z = view.codes(max(200, 2 * pairs), args.seed)
    w = view.model.map(z)
    if labels is not None and labels.ndim == 1:
        few = torch.arange(0, len(view.train), math.ceil(len(view.train) / 5000))
        known = torch.cat([view.model.features(view.images(i, "train"))[1] for i in few.split(view.batch)])
        made = torch.cat([view.model.features(x)[1] for x in view.made(w).split(view.batch)])
        digit = labels[few][torch.cdist(made, known).argmin(1).cpu()]
        chosen = [(digit == c).nonzero().flatten()[:2].tolist() for c in digit.unique()]
        chosen = [pair for pair in chosen if len(pair) == 2][:pairs]
    else:
        chosen = [(2 * i, 2 * i + 1) for i in range(pairs)]
    a, b = (list(t) for t in zip(*chosen, strict=True))
    if torch.equal(w, z):
        print(f"{view.run.name}: w is z here ({view.args['label']} has no mapping), so both rows of a pair are one")
    along_z = view.model.map(lines(z[a], z[b], steps).flatten(0, 1)).unflatten(0, (len(a), steps))
    along_w = lines(w[a], w[b], steps)
    x = [view.model.generate(p, noise="fixed") for pair in zip(along_z, along_w, strict=True) for p in pair]
    for name, path in (("Z", x[0::2]), ("W", x[1::2])):
        jumps = torch.stack([(p[1:] - p[:-1]).square().flatten(1).mean(1).sqrt() for p in path])
        print(f"{view.run.name}: along {name} the largest step between neighbours is {jumps.amax(1).mean():.3f}, the "
              f"mean step {jumps.mean():.3f} (root mean square over pixels in [-1, 1], {len(path)} pairs)")
    return rows(*x)


def figure_interpolation(views, args):
    """Real images joined in w, 7 steps, originals at the ends; where the map has an inverse also in z, above (LIA
    figs. 6, 9, 11, 12); -n pairs, a block a run."""
    x = image_pairs(views, args, 4, "interpolation")
    all_rows = []
    for view in views:
        w = view.encoded(x)
        for i in range(0, len(x), 2):
            paths = [lines(w[i:i + 1], w[i + 1:i + 2], 7)[0]]
            if hasattr(view.model, "unmap"):
                z = view.model.unmap(w[i:i + 2])
                paths.insert(0, view.model.map(lines(z[:1], z[1:], 7)[0]))
            all_rows += [torch.cat([x[i:i + 1], view.made(path), x[i + 1:i + 2]]) for path in paths]
        print(f"{view.run.name}: rows of each pair: " + ("in z, in w" if len(paths) > 1 else "in w"))
    return rows(*all_rows)


def figure_manipulate(views, args):
    """Real images, their reconstructions, and these moved along --boundary in w, by -5 to 5 as in the released code of
    LIA (figs. 4, 17); a block a boundary and run, -n images."""
    if not args.boundary:
        raise Error("figure manipulate moves codes along a normal; name one by --boundary FILE.npy "
                    "(`eval.py boundary RUN` makes them)")
    x = real_images(views, args, lambda *_: slice(args.n or 4))
    all_rows, steps = [], torch.linspace(-5, 5, 8, device=x.device)[:, None]
    for view in views:
        w = view.encoded(x)
        for path in args.boundary:
            normal = read_normal(path, view)
            all_rows += [torch.cat([x[i:i + 1], view.made(torch.cat([w[i:i + 1], w[i] + steps * normal]))])
                         for i in range(len(x))]
    print("columns: original, reconstruction, then the code moved by -5 ... 5 along the unit normal; blocks: "
          + ", ".join(f"{v.run.name} {Path(p).stem}" for v in views for p in args.boundary))
    return rows(*all_rows)


def read_normal(path, view):
    """A boundary's unit normal, (nw,), from a .npy of (nw,) or (1, nw)."""
    try:
        normal = torch.from_numpy(np.load(path, allow_pickle=False)).float().flatten().to(view.device)
    except (OSError, ValueError) as e:
        raise Error(f"{path} is no array of numbers ({type(e).__name__}); name a .npy, such as `eval.py boundary` makes"
                    ) from None
    if len(normal) != view.model.nw or not normal.norm() > 0:
        raise Error(f"{path} holds {len(normal)} numbers, and {view.run} has codes of {view.model.nw}; take a boundary "
                    f"of this run")
    return normal / normal.norm()


def figure_path(views, args):
    """Images along the path of an optimisation of pixels in z (upper row of each pair) and in w (lower), from its start
    to its end, beside the image that is looked for (LIA fig. 13); -n images, a block a run."""
    x, all_rows, steps, lr = real_images(views, args, lambda *_: slice(args.n or 4)), [], 200, 0.05
    for view in views:
        both = [optimise(view, x, space, pixel_distance, steps, lr, seed=args.seed, keep=frames(steps))[2]
                for space in ("z", "w")]
        all_rows += [torch.cat([*(step[i:i + 1] for step in path), x[i:i + 1]]) for i in range(len(x)) for path in both]
    print(f"columns: after {', '.join(map(str, frames(steps)))} steps of Adam, lr {lr}, then the original")
    return rows(*all_rows)


def volatility(gradients, window=101):
    """Deviation of log mean |gradient| about its running median, over the last half of a run; window: iterations."""
    g = np.log(gradients[len(gradients) // 2:])
    window = min(window, len(g) // 2 * 2 - 1)
    median = np.median(np.lib.stride_tricks.sliding_window_view(g, window), axis=1)
    return (g[window // 2:window // 2 + len(median)] - median).std()


def read_gradients(view):
    """gradients.csv of a run as an array with named columns."""
    path = view.run / "gradients.csv"
    if not path.exists():
        raise Error(f"{view.run} has no gradients.csv; train stage 2 of lia.py with --log-gradients")
    try:
        with warnings.catch_warnings(action="ignore"):              # the error below says it
            table = np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True, invalid_raise=False))
        table = table[["kimg", "first", "middle", "last", "L_rec"]]
    except (OSError, ValueError, LookupError, TypeError, StopIteration) as e:
        raise Error(f"{path} is not what --log-gradients writes ({type(e).__name__}); train again with it") from None
    if len(table) < 3:
        raise Error(f"{path} has {len(table)} iterations, too few for a curve; train on with --resume {view.run}")
    return table


def figure_gradients(views, args):
    """Mean |gradient| of the encoder's first, middle and last layer, and its reconstruction loss, of every iteration, a
    colour a run (LIA figs. 7, 18); prints the volatility of each, and their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    panel = Figure(figsize=(16, 4), layout="constrained")
    axes = panel.subplots(1, 4)
    for view in views:
        table = read_gradients(view)
        for ax, name in zip(axes, ("first", "middle", "last", "L_rec"), strict=True):
            ax.plot(table["kimg"], table[name], linewidth=0.3, label=f"{view.args['label']} ({view.run.name})")
            ax.set_title(name)
            ax.set_yscale("log")
            ax.set_xlabel("kimg")
        each = {name: volatility(table[name]) for name in ("first", "middle", "last")}
        print(f"{view.title}: volatility {np.mean([*each.values()]):.4f}   (" + "  ".join(
            f"{name} {v:.4f}" for name, v in each.items()) + f"; {len(table):,} iterations; {view.protocol})"
            + "   too few iterations to compare" * (len(table) < 2000))
    for line in axes[0].legend().get_lines():
        line.set_linewidth(2)
    canvas = FigureCanvasAgg(panel)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


FIGURES = {"samples": figure_samples, "reconstructions": figure_reconstructions, "traversal": figure_traversal,
           "morph": figure_morph, "mixing": figure_mixing, "interpolation": figure_interpolation,
           "manipulate": figure_manipulate, "path": figure_path, "gradients": figure_gradients,
           "styles": figure_styles, "variants": figure_variants, "inpaint": figure_inpaint, "merge": figure_merge,
           "edit": figure_edit, "tiles": figure_tiles, "deblur": figure_deblur, "frames": figure_frames}
ALIASES = {alias: name for name, those in dict(         # the papers' numbers
    reconstructions="alae-3 alae-5 alae-7 alae-8 faae-5 faae-6 faae-7 lia-3 lia-5 lia-14 lia-15 lia-16 invgan-7",
    samples="alae-6 faae-8 lia-8", traversal="alae-4", mixing="alae-9 lia-10", morph="faae-9", path="lia-13",
    manipulate="lia-4 lia-17", interpolation="lia-6 lia-9 lia-11 lia-12", gradients="lia-7 lia-18",
    styles="invgan-2 invgan-8", deblur="invgan-3", tiles="invgan-4", variants="invgan-5", frames="invgan-6",
).items() for alias in those.split()}


# --------------------------------------------------------------------------------------------------- 9 Commands

def metrics(args):
    """Print numbers of every run, with what each depends on under it.

    frechet prints FID and KID with --features inception, else distances between features of VGG-16 (vgg16) or of a
    classifier that is trained once on the set's labels.  inception, vgg16, lpips and ppl fetch weights into --cache, if
    no --inception, --vgg and --lpips name files.  What cannot be measured is said; the rest goes on, to exit status 2.
    """
    chosen = list(dict.fromkeys(name for some in args.only for name in some)) or [
        name for name in MEASURES if name not in BY_NAME_ALONE]
    if args.inception and args.features != "inception":
        raise Error(f"--inception is of no use with --features {args.features}; leave one of them out")
    for flag, of in dict(inception="frechet", vgg="lpips ppl" + " frechet" * (args.features == "vgg16"),
                         lpips="lpips ppl", face_crop="ppl").items():
        if getattr(args, flag) and not {*of.split()} & {*chosen}:
            raise Error(f"--{flag.replace('_', '-')} is for {of.replace(' ', ' and ')}; ask for that by --only {of}")
    out, code, lack, failed = {}, f"{common.code_version()} on {args.device.type}", None, None
    for run in args.runs:
        done = out[str(run)] = {}
        try:
            view = View(run, args)
        except (Error, data.DataError) as e:
            failed = e
            print(f"{run}: left out: {e}", flush=True)
            continue
        print(view.title)
        for name in chosen:
            try:
                numbers, lines, how = MEASURES[name](view, args)
            except (Error, data.DataError) as e:
                if not isinstance(e, Lacks):
                    failed = e
                    if dist.is_initialized():
                        raise                   # the others may be in the middle of it
                lack = e
                print(f"  {name + ':':13}left out: {e}", flush=True)
                continue
            n = numbers["n"]
            if (few := min(n.values()) if isinstance(n, dict) else n) < 100:
                lines = [*lines, f"warning: of {few} only, so that others would give other numbers"]
            protocol = f"{how}; evaluation seed {args.seed}; {view.protocol}; evaluation code {code}"
            for label, line in zip([name, *[""] * len(lines)], [*lines, f"[{protocol}]"], strict=True):
                print(f"  {label + ':' * bool(label):13}{line}", flush=True)
            done[name] = dict(numbers, seed=args.seed, protocol=protocol)
            if Path(args.json).is_file() or not Path(args.json).exists():       # a pipe gets all of it at the end
                write_json(args, out)
    if failed or (lack and not any(out.values())):
        write_json(args, out)
        raise failed or lack
    return out


def write_json(args, result):
    if getattr(args, "json", "") and leads():
        common.write_atomic(Path(args.json), json.dumps(result, indent=1).encode())


def table(args):
    """Print one of the papers' tables beside what the runs give."""
    for flag, unset in dict(only=[], classifier="resnet50", epochs=20).items():
        if args.name != "invgan-2" and getattr(args, flag) != unset:
            raise Error(f"--{flag} is for table invgan-2; leave it out")
    return TABLES[args.name](args.runs, args)


@torch.no_grad()
def figure(args):
    """Draw one of the papers' figures, of one run or of several together."""
    name = ALIASES.get(args.name, args.name)
    if args.images and (name in ("samples", "traversal", "gradients", "frames") or args.generated):
        raise Error(f"figure {name} shows no real images{' with --generated' * args.generated}; leave --images out"
                    + " and name the --frames" * (name == "frames"))
    if args.truncation_layers != 8 and args.truncation == 1:
        raise Error("--truncation-layers says where, not how much: add --truncation, such as 0.7")
    for flag, (of, unset) in dict(generated=("mixing", False), truncation=("samples", 1.0), mask=("merge", ""),
                                  truncation_layers=("samples", 8), boundary=("manipulate", []), frames=("frames", ""),
                                  resolution=("tiles deblur frames", "auto")).items():
        if name not in of.split() and getattr(args, flag) != unset:
            raise Error(f"--{flag.replace('_', '-')} is for figure {of.replace(' ', ', ')}; leave it out")
    check_out(args, *[".gif"] * (name == "frames"))
    views = [View(run, args) for run in args.runs]
    needs = dict(samples="prior map", path="prior map", traversal="prior map features", gradients="")
    for view in views:
        view.need(*("prior map" if args.generated else needs.get(name, "encode")).split())
    if (pixels := args.n ** (2 if name == "morph" else 1) * math.prod(views[0].shape[1:])) > 2**28:
        raise Error(f"-n {args.n} would be a picture of {pixels:.2g} pixels; pass a smaller -n")
    picture = FIGURES[name](views, args)
    beside = views[0].run / "figures" if len(views) == 1 else views[0].run.parent
    write_picture(picture, args.out or beside / f"{name}.png")
    if len(views) > 1:
        print("runs from the top: " + ", ".join(v.title for v in views))


@torch.no_grad()
def compare(args):
    """The same test images through every run: a picture with the real row on top, and a line of errors a run."""
    check_out(args)
    views = [View(run, args) for run in args.runs]
    places = [p[:args.n or 10_000] for p in shared_test_images(views)]
    out, pictures, code = {}, [], common.code_version()
    print(f"{len(places[0]):,} test images that all runs have in common; errors on [-1, 1]; floors: the "
          f"training-mean image, reconstructions paired with the wrong originals")
    for view, indices in zip(views, places):
        m = errors(view, indices)
        x = view.images(indices[:16])
        pictures += [x] * (not pictures) + [common.reconstruct(view.model, x)]
        protocol = f"fixed noise; {view.protocol}; evaluation code {code}"
        out[str(view.run)] = dict(m, protocol=f"{m['n']:,} test images that all runs have in common, {protocol}")
        print(f"  {view.title}: MSE {m['mse']:.4f}  MAE {m['mae']:.4f}  floors MSE {m['mse_mean_image']:.4f} "
              f"{cell(m['mse_wrong_pair'], '.4f')}   ({protocol})")
    write_picture(rows(*pictures), args.out or views[0].run.parent / "compare.png")
    print("rows from the top: real images, then " + ", ".join(v.title for v in views))
    return out


def check_out(args, *also):
    if args.out and Path(args.out).suffix not in (".png", *also):
        raise Error(f"--out {args.out} names no PNG; pictures are PNGs: pass {Path(args.out).with_suffix('.png')}")


def write_picture(picture, path):
    if leads():
        path, old = Path(path), Path(path).exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        common.save_png(path, picture)
        print(f"wrote {path}" + " over an older one" * old)


def measure_names(text):
    """"errors" or "errors,latent" -> a list.  What argparse shows of a wrong one."""
    if wrong := [name for name in text.split(",") if name not in MEASURES]:
        raise ArgumentTypeError(f"there is no measure {wrong[0]!r} but {', '.join(MEASURES)}" + (
            "; FID and KID are frechet, with --features inception" if wrong[0].lower() in ("fid", "kid") else
            "; name RUN before --only"))
    return text.split(",")


def one_of(kind, names):
    """An argparse type: one of names; an error shows those that are nearest."""
    def parse(text):
        if text in names:
            return text
        near = ", but " + ", ".join(difflib.get_close_matches(text, names, cutoff=0.5))
        raise ArgumentTypeError((f"{text} is a folder; the {kind}'s name comes before it" if Path(text).is_dir() else
                                 f"there is no {kind} {text!r}{near.removesuffix(', but ')}") + "; see `eval.py list`")
    return parse


def count(text):
    """An argparse type: how many, up to a thousand million."""
    if not 0 < int(text) <= 10**9:
        raise ValueError
    return int(text)


def parse_args(argv=None):
    parser = common.Parser(__doc__.split("A run is")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("metrics", metrics), ("table", table), ("figure", figure), ("compare", compare),
                           ("invert", invert), ("boundary", boundary)):
        sub = commands.add_parser(name, doc=function.__doc__, help=function.__doc__.splitlines()[0])
        sub.set_defaults(function=function)
        if name in ("table", "figure"):
            names = [*TABLES] if name == "table" else [*FIGURES, *ALIASES]
            sub.add_argument("name", type=one_of(name, names), help=", ".join(names))
        add = sub.add_argument
        if name in ("invert", "boundary"):
            add("run", metavar="RUN", help="run folder")
        else:
            add("runs", nargs="+", metavar="RUN", help="run folders")
        add("--device", default="auto", help="cpu, cuda ...; the GPU if there is one")
        add("--data", default="", metavar="NAME|PATH", help="where the runs' images are, if they have moved")
        add("--data-root", default="", metavar="DIR", help="where named sets are, if they have moved")
        if name == "metrics":
            add("--only", nargs="+", default=[], type=measure_names, metavar="NAME",
                help=f"of {', '.join(MEASURES)}; default: all but {', '.join(BY_NAME_ALONE)}.  After RUN")
            add("--lpips", default="", metavar="FILE", help="heads of LPIPS-VGG 0.1, vgg.pth, for lpips and ppl")
            add("--face-crop", action="store_true", help="ppl: of the part where a face is (rows 3/8 to 7/8, columns "
                "2/8 to 6/8)")
        if name in ("metrics", "table"):
            add("--features", default="auto", metavar="NAME",
                help="that distances are between: inception, vgg16, or those of a classifier of the set's own labels "
                     "(digits for MNIST, else the set's name; the default)")
            add("--reference", default="", choices=["train", "test"], help="images that distances are to (default: the "
                "training part, but SWD of reconstructions: their originals)")
            add("--inception", default="", metavar="FILE", help="pt_inception-2015-12-05-6726825d.pth")
            add("--batch", type=common.positive(int), default=0,
                help="images at a time; default: by their size (random noise depends on it)")
        if name == "table":
            add("--classifier", default="resnet50", metavar="NAME", help="invgan-2: a network of torchvision")
            add("--epochs", type=common.positive(int), default=20, help="invgan-2: of each classifier")
            add("--only", nargs="+", default=[], metavar="NAME",
                help="invgan-2: of these labels; after RUN (default: 20 of CelebA's, all of other sets)")
        if name in ("metrics", "table", "invert"):
            add("--vgg", default="", metavar="FILE", help="vgg16-397923af.pth, or another VGG-16 with or without its "
                "top, for --features vgg16, lpips, ppl and --loss vgg9")
            add("--cache", default="cache", metavar="DIR",
                help="where fetched weights, classifiers and statistics of real images are kept")
        if name == "invert":
            add("images", nargs="*", metavar="IMAGE", help="files; without any the first -n test images")
            add("--method", default="optimise", choices=["optimise", "in-domain", "encoder"],
                help="gradient descent, the same from the encoder's code and near codes that it knows, or that alone")
            add("--space", nargs="+", default=["w"], choices=["z", "w", "w+"], help="where; after IMAGE")
            add("--loss", default="pixel", choices=["pixel", "vgg9"],
                help="mean square of pixels, or of VGG-16 conv3_3 (in-domain: of pixels, and of conv4_3)")
            add("--steps", type=common.positive(int), default=0, help="default 1000, in-domain 100")
            add("--optimizer", default="adam", choices=["adam", "descent"])
            add("--lr", type=common.positive(float), default=0.0, help="default 0.01 with adam, 1 with descent")
            add("--save-path", action="store_true", help="also pictures of the way there")
        if name == "boundary":
            add("--only", nargs="+", default=[], metavar="NAME", help="of these labels; after RUN")
        if name == "figure":
            add("--images", nargs="+", default=[], metavar="PATH", help="real images in place of the test part's "
                "(morph: 4; mixing: -n sources, then 6 destinations, 5 below 64 px)")
            add("--generated", action="store_true", help="mixing: samples in place of real images")
            add("--mask", default="", metavar="FILE", help="merge: white where the second image is to be")
            add("--frames", default="", metavar="PATH", help="frames: a folder of images, or a GIF")
            add("--resolution", default="auto", metavar="N|WxH", help="tiles, deblur, frames: of --images and --frames")
            add("--boundary", nargs="+", default=[], metavar="FILE", help="manipulate: .npy of normals in w")
            add("--truncation", type=common.positive(float), default=1.0, metavar="PSI",
                help="samples: w is drawn towards the mean w, to PSI times its distance (StyleGAN 0.7; default: not)")
            add("--truncation-layers", type=common.positive(int), default=8, metavar="N",
                help="samples: of so many layers from the first on")
        if name in ("metrics", "figure", "table", "invert"):
            add("--seed", type=common.seed, default=0, help="evaluation seed: of the codes z, and what else is drawn")
        add("-n", type=count, default=0, help="how many images" + (
            " (morph: along a side; traversal, interpolation, styles, merge: pairs; frames: times as many)"
            if name == "figure" else ""))
        add("--weights", default="", choices=["ema", "raw"],
            help="averaged, or as trained (default: ema; table alae-2: raw)")
        if name != "figure":
            add("--json", default="", metavar="FILE", help="also write the numbers there")
        if name in ("figure", "compare", "invert", "boundary"):
            add("--out", default="", metavar="FILE", help="the picture" if name != "boundary" else "the folder")
    commands.add_parser("list", help="The tables and figures that there are.")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.command == "list":
        print(f"metrics  {' '.join(MEASURES)}\ncompare\ninvert\nboundary")
        print(f"table    {' '.join(TABLES)}\nfigure   {' '.join(FIGURES)}   (as in the papers: "
              + ", ".join(f"{k} = {v}" for k, v in ALIASES.items()) + "; invgan-2 and -8 also: inpaint, merge, edit)")
        return
    if vars(args).get("inception") and args.features == "auto":
        args.features = "inception"
    shared = args.command in ("metrics", "compare") or vars(args).get("name") in ("lia-1", "lia-2", "invgan-1")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not shared:
        if int(os.environ.get("RANK", 0)):
            sys.exit(2)
        raise Error(f"{' '.join(filter(None, (args.command, vars(args).get('name'))))} is the work of one process; run "
                    f"it by python, without torchrun")
    args.device, rank, world = common.join(args.device)
    torch.backends.cudnn.allow_tf32 = False         # PPL's differences would drown in it
    if rank or sys.stdout is None:                  # None: it was closed
        sys.stdout = open(os.devnull, "w")
    json_folder = Path(vars(args).get("json", "")).parent
    if not json_folder.is_dir():
        raise Error(f"there is no folder {json_folder}; make it, or name another file by --json")
    write_json(args, args.function(args))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    common.command(main, data.DataError)
