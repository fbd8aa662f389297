"""Metrics, tables and figures of any run of any method.

    python eval.py metrics RUN...          errors, reciprocity, sharpness, distances, accuracies
    python eval.py metrics RUN --features inception --only frechet      FID and KID
    python eval.py metrics RUN --only lpips ppl swd                     perceptual distances; SWD
    python eval.py table NAME RUN...       a paper's table next to the runs' numbers, such as alae-2
    python eval.py figure NAME RUN...      a paper's figure, by content or number: samples, lia-7
    python eval.py list [RUN...]           every table and figure of the papers; which of them runs suffice for
    python eval.py COMMAND --help          flags of these commands and of the others

A run is the folder that a training script made.  This file knows a method only by what its `load`
returns: map, generate, encode, features, prior.

Sections: 1 runs, 2 counting, 3 pictures; 4 errors, 5 FID, KID, precision, classes, 6 LPIPS, PPL,
7 SWD, 8 the table of measures; 9 the papers' tables; 10-13 figures, 14 `list`; 15 inversion, 16
photos, codes, films; 17 commands, 18 compare --table, 19 demo, 20 report; 21 flags.
"""
import base64
import collections
import concurrent.futures
import contextlib
import copy
import csv
import difflib
import functools
import hashlib
import html
import http.server
import inspect
import io
import json
import math
import os
import re
import shlex
import socketserver
import string
import sys
import textwrap
import time
import traceback
import urllib.parse
import warnings
import zipfile
from argparse import ArgumentTypeError, Namespace
from collections import namedtuple
from pathlib import Path

import common  # before torch, whose threads wait as it says

# isort: split
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import data
from common import Error
from data import tile

# ------------------------------------------------------------------------------------------- 1 Runs

BLOCK = 250                     # codes drawn together
PRIOR = ("prior", "map")        # methods of a model that has samples


class Lacks(Error):
    """Not available for this run; `metrics` leaves it out, and fails if nothing else is left."""


class View:
    """A run opened for evaluation: its args, model, image shape (C, H, W), and its set, read on
    use.  options: device, weights, data, data_root, perhaps batch, kimg; empty ones are as the run
    has."""

    def __init__(self, run, options, weights="ema"):
        for name in ("inception", "vgg", "lpips"):      # before the first measure
            if (file := getattr(options, name, "")) and not Path(file).exists():
                raise Error(f"there is no {file}; --{name} takes the file that is at {common.FROZEN[name][0]}")
        if Path(getattr(options, "cache", ".")).is_file():
            raise Error(f"--cache {options.cache} is a file; name a folder")
        self.run = Path(run)
        self.args = common.read_args(run)
        self.options = options
        self.device = options.device
        self.weights = options.weights or weights
        kept = dict(kimg=options.kimg) if getattr(options, "kimg", None) else {}
        self.model = common.method_of(run, self.args).load(run, self.device, self.weights, **kept).requires_grad_(False)
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise Error(f"{run}: its weights are not finite; the run has diverged")
        self.shape = tuple(self.args["image_shape"])
        self.batch = getattr(options, "batch", 0) or common.few(self.shape)     # made at a time
        self.grey = "; grey repeated to RGB" if self.shape[0] == 1 else ""
        self.growing = next((m for m in self.model.modules() if isinstance(m, common.Growing)), None)
        self.measured = {}                              # features of its pictures, which two measures take
        self.title = f"{self.args['label']}, {self.args['backbone']}, {self.run}"
        if options.data or options.data_root:
            self.part("train")                          # a wrong one shows at once

    @property
    def name(self):
        """The folder's own name, whatever link leads to it."""
        return self.run.resolve().name

    @functools.cached_property
    def parts(self):
        """(train, test), data.Images.  Raises Error without the set."""
        options, args = self.options, self.args
        tiles = args.get("patches")
        size = args["resolution"] if tiles else f"{self.shape[2]}x{self.shape[1]}"
        if not (options.data or args["data"]):          # of public weights
            raise Error(f"the images of {self.run} are not known; name a set by --data, or pictures by --images")
        only = args.get("only", "")
        if only and not Path(only).exists() and not Path(only := str(self.run / Path(only).name)).exists():
            raise Error(f"{args['only']}, the list of {self.run}'s images, has moved; put it into {self.run}")
        parts = data.load(options.data or args["data"], options.data_root or args["data_root"], args["split"], size,
                          args["skip_bad"], only=only)
        if tiles:
            parts = tuple(data.Tiles(part, tiles) for part in parts)
        if problem := parts[0].unlike(args):
            raise Error(f"{self.run} was trained on {problem}; say where its own images are by --data or --data-root")
        return parts

    def part(self, name):
        """The "train" or the "test" part."""
        return self.parts[0] if name == "train" else self.parts[1]
    train = property(lambda self: self.part("train"))
    test = property(lambda self: self.part("test"))

    @functools.cached_property
    def missing(self):
        """Why the set is not available, or None."""
        try:
            self.part("train")
        except Error as e:
            return e

    @property
    def protocol(self):
        """What every number of this run depends on, in one line."""
        a = self.args
        G = self.growing
        name = a.get("data_name") or data.base_name(a["data"])
        words = [name if a["split"] == "auto" else f"{name} {a['split']}", a["backbone"]]
        if G is not None and (G.top < G.levels - 1 or G.fades):
            words.append(f"grown to {max(G.size())} px (alpha {G.alpha:.2f})")
        if "recipe" in a:
            words.append(f"recipe {a['recipe']}")
        if a["precision"] != "auto":                    # of public weights that were not trained on
            words.append(a["precision"])
        words += [f"{self.model.seen / 1000:g} kimg", f"training seed {a['seed']}"]
        return f"{', '.join(words)}, {self.weights} weights, training code {a['versions']['code']}"

    def can(self, abilities):
        """Whether the model has all of these methods."""
        return all(hasattr(self.model, ability) for ability in abilities)

    def need(self, abilities):
        """Raises Lacks unless the model has all of these methods."""
        for ability in abilities:
            if not hasattr(self.model, ability):
                stage_2 = self.args.get("stage") == "1" and ability != "mean_w"
                remedy = "train stage 2 on it" if stage_2 else "take another run"
                raise Lacks(f"{self.run} ({self.args['label']}) has no {ability!r}, which this needs; {remedy}")

    def made(self, w):
        """G(w) with fixed noise, (N, C, H, W)."""
        return torch.cat([self.model.generate(part, noise="fixed") for part in w.split(self.batch)])

    def encoded(self, x):
        """E(x), (N, nw)."""
        return torch.cat([self.model.encode(part) for part in x.split(self.batch)])

    def images(self, indices, part="test"):
        """Images of a part, float (N, C, H, W) in [-1, 1], on the device."""
        return common.to_float(self.part(part).take(indices).to(self.device))

    def codes(self, end, seed, begin=0):
        """z (end - begin, nz): a stretch of an endless sequence from the prior, in any cuts."""
        drawn = [self.model.prior(BLOCK, common.generator(self.device, seed, "evaluation", block))
                 for block in range(begin // BLOCK, math.ceil(end / BLOCK))]
        return torch.cat(drawn)[begin % BLOCK:][:end - begin]

    @property
    def has_classes(self):
        """Whether all images of both parts have a class."""
        return all(part.labels is not None and part.labels.ndim == 1 and part.labels.min() >= 0 for part in self.parts)

    def features(self, part):
        """The model's (short, long) features of a whole part, on the device."""
        made = [self.model.features(self.images(i, part))
                for i in torch.arange(len(self.part(part))).split(self.batch)]
        return tuple(map(torch.cat, zip(*made, strict=True)))


# --------------------------------------------------------------------------------------- 2 Counting
# Measures (except swd and classifiers) keep float64 sums, not images: memory does not grow with their
# number.  Any number of processes gives the same.

def double(t):
    """A tensor in float64, on its device if that has float64."""
    return common.apple_to_cpu(t).double()


def seed_noise(seed, block):
    """Seed torch's own generators, from which G draws its noise, for one block of images."""
    torch.manual_seed(common.generator("cpu", seed, "noise", block).initial_seed())


def progress(what, n, size, shared=True):
    """Yields begin and end of batches of n things, shared by all processes; says how far it is."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if shared and dist.is_initialized() else (0, 1)
    terminal = sys.stdout.isatty()
    began = shown = time.time()
    for begin in range(rank * size, n, world * size):
        yield begin, min(begin + size, n)
        if time.time() - shown > (1 if terminal else 30):
            shown = time.time()
            done = min(begin + world * size, n)
            left = common.duration((shown - began) * (n - done) / done)
            text = f"  {what}: {done:,} of {n:,}, {left} left"
            print(f"\r{text:<79}" if terminal else text, end="" if terminal else "\n", flush=True)
    if terminal and shown > began:
        print(f"\r{'':79}", end="\r", flush=True)


def clock(view):
    """The time, once the device has finished its work."""
    if view.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.time()


def seconds_of(view, n, size, make):
    """How long make(begin, end) takes for n things, `size` at a time: by the first batch, after a
    small one that prepares.  -> seconds, and what it made of the first batch"""
    size = min(size, n)
    make(0, min(size, 2))
    began = clock(view)
    made = make(0, size)
    world = dist.get_world_size() if dist.is_initialized() else 1
    return (clock(view) - began) * n / size / world, made


def seconds_of_steps(view, run, steps, times):
    """How long run(steps) takes, so many times, by its first steps."""
    def time_of(steps):
        began = clock(view)
        run(steps)
        return clock(view) - began
    time_of(1)                                              # the first call also prepares
    return max(time_of(4) - time_of(1), 0) / 3 * steps * times


def tell_time(what, seconds):
    """Says how long something will take, before it starts."""
    print(f"  {what}: about {common.duration(seconds)}", flush=True)


def leads():
    """Whether this process writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def add_up(tensor):
    """Replaces a tensor by its sum over all processes.  -> it"""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


class Means:
    """Means of named quantities over everything that all processes add."""

    def __init__(self, device, *names):
        self.names = names
        self.sums = double(torch.zeros(1 + len(names), device=device))      # first, n

    def add(self, **values):
        """values: (N,) each."""
        counted = torch.stack([double(values[name]) for name in self.names])
        self.sums += torch.cat([torch.ones_like(counted[:1]), counted]).sum(1)

    def result(self):
        """-> dict of floats, and n, how many."""
        n = add_up(self.sums)[0].item()
        return dict(zip(self.names, (self.sums[1:] / n).tolist(), strict=True), n=int(n))


def per_image(t):
    """The mean over each image of t (N, ...): (N,)."""
    return t.flatten(1).mean(1)


def evenly(n, many):
    """`many` of n places, evenly spaced, or all of them."""
    return torch.linspace(0, n - 1, min(many, n), dtype=torch.float64).long()


def scattered(n, many):
    """`many` of n places, a random one of each of as many equal parts, or all of them.  -> in order

    Even spaces would take one kind where kinds alternate: MNIST's training file has its two groups
    of writers by turns.
    """
    if many >= n:
        return torch.arange(n)
    chance = torch.from_numpy(np.random.RandomState(0).rand(many))
    return ((torch.arange(many) + chance) * (n / many)).long().clamp(max=n - 1)


def test_indices(view, args):
    """The first -n test images, 10,000 by default, or all if there are fewer."""
    return torch.arange(min(args.n or 10_000, len(view.test)))


def code_count(view, args):
    """-n, or as many codes as test images; 10,000 if the set is not available."""
    return args.n or (10_000 if view.missing else len(test_indices(view, args)))


def with_next(view, indices, begin, end):
    """The test images of a batch, and the next one; after the last one the first."""
    return view.images(indices[[i % len(indices) for i in range(begin, end + 1)]])


def reconstructed(view, indices):
    """Yields batches of these test images, their reconstructions, and the next image of each."""
    for begin, end in progress("test images", len(indices), view.batch):
        x = with_next(view, indices, begin, end)
        yield x[:-1], common.reconstruct(view.model, x[:-1]), x[1:]


def training_mean(view):
    """The mean of up to 10,000 training images from all over the part, (1, C, H, W)."""
    indices = scattered(len(view.train), 10_000)
    total = sum(double(view.images(i, "train").sum(0, keepdim=True)) for i in indices.split(common.few(view.shape)))
    return (total / len(indices)).float().to(view.device)


def of_test(view, n):
    every = "all " if n == len(view.test) else ""
    return f"{every}{n:,} of {len(view.test):,} test images, fixed noise"


def cell(value, form=".2f"):
    """A number as a table shows it; several, joined by /; "-" for None; a word as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, (tuple, list)):
        return "/".join(cell(v, form) for v in value)
    return "-" if value is None else format(value, form)


def mean_of(values):
    """-> mean, standard deviation (over n - 1); None if there are too few values."""
    return (float(np.mean(values)) if values else None,
            float(np.std(values, ddof=1)) if values and len(values) > 1 else None)


def spread(values, form, alike=True):
    """The mean of numbers as a table shows it, ± their deviation if there are several.
    alike: even if all are equal."""
    mean, deviation = mean_of(values)
    return cell(mean, form) + (f" ± {deviation:{form}}" if deviation or (alike and deviation == 0) else "")


def plain(value, n):
    """A number to n digits, never as 1e+04."""
    return np.format_float_positional(value, n, unique=False, fractional=False, trim="-")


# --------------------------------------------------------------------- 3 Pictures that are measured

PARTS = dict(train="training", test="test")
# words: what its pictures are called; needs: methods of the model; noise: what a protocol says
Kind = namedtuple("Kind", "words needs noise", defaults=("",))
KINDS = {
    "samples": Kind("samples", PRIOR, "samples with random noise and no truncation"),
    "resamples": Kind("samples reconstructed", ("prior", "map", "encode")),
    "reconstructions": Kind("test images reconstructed", ("encode",), "reconstructions with fixed noise"),
    "midpoints": Kind("midpoints of test images", ("encode",)),
    "training": Kind("training images reconstructed", ("encode",), "reconstructions with fixed noise"),
    "real": Kind("test images themselves", ()),
}


def available(view, kinds):
    """The kinds of pictures that the model can make.  Raises Lacks if only real ones are left."""
    can = [kind for kind in kinds if view.can(KINDS[kind].needs)]
    if can == ["real"]:
        view.need(["encode"])
    return can


def pictures(view, kind, args):
    """How many pictures of a kind there are, and make(begin, end) -> (N, C, H, W) in [-1, 1].
    midpoints: of the mean of two neighbouring test images' codes.   (InvGAN, table 1)"""
    model = view.model
    part = "train" if kind == "training" else "test"
    indices = scattered(len(view.train), args.n or 10_000) if part == "train" else test_indices(view, args)

    def make(begin, end):
        if kind == "midpoints":
            w = model.encode(with_next(view, indices, begin, end))
            return model.generate((w[:-1] + w[1:]) / 2, noise="fixed").clamp(-1, 1)
        if kind in ("samples", "resamples"):
            w = model.map(view.codes(end, args.seed, begin))
            seed_noise(args.seed, begin)                # whichever process draws it
            x = model.generate(w, noise="random").clamp(-1, 1)
        else:
            x = view.images(indices[begin:end], part)
        return x if kind in ("samples", "real") else common.reconstruct(model, x)
    return code_count(view, args) if kind in ("samples", "resamples") else len(indices), make


def each(m, name):
    """The numbers NAME_KIND in words, such as "samples 0.910   test images reconstructed 0.423"."""
    return "   ".join(f"{words} {m[f'{name}_{kind}']:.3f}" for kind, (words, _, _) in KINDS.items()
                      if f"{name}_{kind}" in m)


def of_each(counts):
    """{kind: n} in words."""
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values())):,} of each"
    return ", ".join(f"{n:,} {KINDS[kind].words}" for kind, n in counts.items())


def noise_of(kinds):
    return "; ".join(dict.fromkeys(KINDS[kind].noise for kind in KINDS if kind in kinds and KINDS[kind].noise))


# ----------------------------------------------------------------------- 4 Errors, codes, sharpness
# A measure takes (view, args) and gives a Result.  MEASURES says what it needs and how it is shown.

# numbers: for --json, with n; protocol: what they depend on besides the run; title: the distance's
# name, FID only with the published network; notes: more lines
Result = namedtuple("Result", "numbers protocol title notes", defaults=("", []))


def errors(view, indices):
    """Errors of the clipped reconstructions of test images, in [-1, 1], and two floors.  -> dict
    mae_28: of the inner 28x28 pixels of padded digits.  mse_mean_image: of the training mean
    instead of a reconstruction.  mse_wrong_pair: of it and the next image; None of one image."""
    mean_image = training_mean(view)
    names = ["mse", "mae", "psnr", "mse_mean_image", "mse_wrong_pair"]
    if view.test.source == "mnist" and view.test.shape[1] == 32:
        names.append("mae_28")
    means = Means(view.device, *names)
    for x, y, after in reconstructed(view, indices):
        mse = per_image((y - x).square())
        off = (y - x).abs()
        means.add(mse=mse, mae=per_image(off), psnr=10 * (4 / mse.clamp(min=1e-10)).log10(),        # 106 dB if exact
                  mae_28=per_image(off[:, :, 2:-2, 2:-2]),
                  mse_mean_image=per_image((mean_image - x).square()),
                  mse_wrong_pair=per_image((y - after).square()))
    m = means.result()
    if len(indices) == 1:
        m["mse_wrong_pair"] = None
    return dict(m, mse_255=m["mse"] * 127.5**2)


def measure_errors(view, args):
    """`errors` of the first -n test images."""
    m = errors(view, test_indices(view, args))
    return Result(m, of_test(view, m["n"]))


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


def told_apart(a, b, folds=5):
    """How often (%) a logistic regression tells other rows of a (N, d) from rows of b (M, d),
    standardised: min_w,c |w|^2 / 2 + sum_i log(1 + exp(-y_i (w.x_i + c))), as scikit-learn."""
    x = double(torch.cat([a, b]))
    x = nnf.pad((x - x.mean(0)) / x.std(0, correction=0).clamp(min=1e-8), (0, 1), value=1.0)
    sign = torch.cat([x.new_full([len(a)], -1), x.new_ones(len(b))])
    fold = torch.cat([torch.arange(len(a)), torch.arange(len(b))]).to(x.device) % folds
    right = 0
    for k in range(folds):
        def objective(w, x=x[fold != k], sign=sign[fold != k]):
            return w[:-1].square().sum() / 2 + nnf.softplus(-sign * (x @ w)).sum()
        w = minimise(objective, x.new_zeros(x.shape[1]))
        right += ((sign * (x @ w)).sign()[fold == k] + 1).sum().item() / 2      # undecided: half
    return 100 * right / len(x)


def measure_latent(view, args):
    """How far E(G(w)) is from w of the prior (ALAE 4.1), |.| a dimension (recip_w) and ||.||
    (norm_w; wrong pair: to the next w), and if w are told apart from codes of images."""
    model = view.model
    n = code_count(view, args)
    means = Means(view.device, "recip_w", "norm_w", "norm_w_wrong_pair")
    sums = double(torch.zeros(2, model.nw, device=view.device))     # of w and w^2
    for begin, end in progress("codes", n, view.batch):
        w = model.map(view.codes(end + 1, args.seed, begin))
        w, after = w[:-1], w[1:]
        back = model.encode(model.generate(w, noise="fixed"))
        means.add(recip_w=(back - w).abs().mean(1), norm_w=(back - w).norm(dim=1),
                  norm_w_wrong_pair=(back - after).norm(dim=1))
        w = double(w)
        sums += torch.stack([w.sum(0), w.square().sum(0)])
    m = means.result()
    mean, square = add_up(sums) / n
    variance = (square - mean.square()).clamp(min=0) * n / max(n - 1, 1)
    m["std_w"] = variance.sqrt().mean().item()
    k = 0 if view.missing else min(len(test_indices(view, args)), n)
    how = f"{n:,} codes, fixed noise, no truncation"
    if k < 10:
        few = view.missing or f"10 are needed, and there are {k}"
        return Result(m, how, notes=[f"codes of real images left out: {few}"])
    both = torch.zeros(2, k, model.nw, device=view.device)
    for begin, end in progress("codes of the prior and of images", k, view.batch):
        both[0, begin:end] = model.map(view.codes(end, args.seed, begin))
        both[1, begin:end] = model.encode(view.images(torch.arange(begin, end)))
    m["told_apart"] = told_apart(add_up(both[0]), add_up(both[1]))
    return Result(m, f"{how}; told apart by logistic regression, 5-fold, {k:,} of each", notes=[
        f"codes of the prior and of test images are told apart in {m['told_apart']:.1f} % (cannot be: 50.0 %, "
        f"give or take {50 / math.sqrt(2 * k):.1f})"])


def sharpness(x):
    """Variance of the Laplacian of each image's grey values, (N,): low if it is blurred."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=x.device)
    return nnf.conv2d(x.mean(1, keepdim=True), kernel[None, None]).flatten(1).var(1)


def measure_sharpness(view, args):
    """Mean variance of the Laplacian of samples and reconstructions, over the test images'."""
    variance = {}
    n = {}
    for kind in available(view, ("real", "samples", "reconstructions")):
        n[kind], make = pictures(view, kind, args)
        means = Means(view.device, "variance")
        for begin, end in progress(KINDS[kind].words, n[kind], view.batch):
            means.add(variance=sharpness(make(begin, end)))
        variance[kind] = means.result()["variance"]
    if not variance["real"]:
        raise Lacks(f"{view.run}: its test images are flat, so there is no sharpness to compare with")
    ratios = {f"sharpness_{kind}": v / variance["real"] for kind, v in variance.items() if kind != "real"}
    return Result(dict(ratios, n=n), f"{of_each(n)}; {noise_of(n)}")


# ------------------------------------------------ 5 Features: Frechet and kernel distances, classes

class Classifier(nn.Module):
    """Tells a set's classes apart; gives features for distances.  accuracy: % of the test part."""
    d = 128
    batch = BLOCK
    resize = "as they are"

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
        x = nnf.adaptive_avg_pool2d(common.apple_to_cpu(x), 4).to(x.device)     # Apple's knows whole fractions alone
        return torch.relu(self.dense(x.flatten(1)))

    def forward(self, x):
        return self.head(self.features(x))

    @property
    def checksum(self):
        return hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in self.state_dict().values())).hexdigest()[:8]


class Inception(nn.Module):
    """The network of the FID: Inception of 2015-12-05, 1008 classes, as pytorch-fid has ported it.
    Unlike torchvision's it does not count padding in means, and its last block takes maxima."""
    d = 2048
    batch = 50
    resize = "uint8, bilinear to 299 px"

    def __init__(self, weights):
        super().__init__()
        from torchvision.models import inception_v3
        self.net = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
        self.net.load_state_dict(weights)
        average = functools.partial(nnf.avg_pool2d, count_include_pad=False)
        for name, block in self.net.named_children():           # Mixed_6a and 7a halve the size
            if name.startswith("Mixed") and name not in ("Mixed_6a", "Mixed_7a"):
                pool_differently(block, nnf.max_pool2d if name == "Mixed_7c" else average)

    def features(self, x, d=None):
        """(N, d) features of x (N, 3 or 1, H, W) in [-1, 1]; d 64, 192: of the first poolings."""
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


def pool_differently(block, pool):
    """Lets the last branch of one of torchvision's Inception blocks pool by `pool`."""
    branches = block._forward
    block._forward = lambda x: branches(x)[:-1] + [block.branch_pool(pool(x, 3, stride=1, padding=1))]


class PooledVGG(common.VGG):
    """VGG-16 conv5_3, averaged over positions: features of images from 16 px on."""
    d = 512
    batch = 50
    resize = "uint8"

    def features(self, x):  # [N,C,H,W] in [-1,1] -> [N,512]
        return self(common.to_float(common.to_uint8(x)))[-1].mean((2, 3))


def extractor_of(view, args):
    """The network of --features, whose title names the distance.  Raises Error without it."""
    if args.features not in ("auto", "inception", "vgg16", name := classifier_name(view)):
        raise Error(f"{view.run}: there are no features {args.features!r}; --features can be inception, vgg16, or "
                    f"{name}, which are learnt from its own data")
    if args.features == "vgg16":
        check_halvings(view, "VGG-16", crop=False)
    with common.rank_zero_first():
        if args.features == "inception":
            net = common.frozen("inception", args.inception, args.cache, Inception)
            net.name = "Inception"
            net.title = "FID" if net.official else f"Frechet ({Path(args.inception).name})"
        elif args.features == "vgg16":
            net = common.frozen("vgg", args.vgg, args.cache, PooledVGG)
            file = Path(args.vgg or common.FROZEN["vgg"][0]).name
            net.name = f"VGG-16 conv5_3, {file}"
            net.title = f"Frechet ({file} {net.checksum})"
        else:
            net = classifier_of(view, args.cache)
            net.title = f"Frechet ({net.name})"
    return net.to(view.device)


def classifier_name(view):
    return "digits" if view.train.source == "mnist" else view.train.name


def classifier_of(view, cache):
    """The classifier of a run's data, trained once, then in `cache`.  Raises Lacks if it cannot be."""
    if not view.has_classes:
        raise Lacks(f"{view.run}: {view.train.name} has no class labels, from which to train a classifier; "
                    f"for distances --features inception and vgg16 need none")
    train = view.train
    name = classifier_name(view)
    path = Path(cache) / f"classifier-{name}-{'x'.join(map(str, train.shape))}-{train.fingerprint()}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Classifier(train.shape[0], int(train.labels.max()) + 1)
    net.to(view.device, memory_format=torch.channels_last)              # a third faster on a CPU
    net.name = name
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
    except Exception as e:      # damage can lead to any exception
        raise Error(f"{path} cannot be read ({type(e).__name__}); delete it, and it is made anew") from None


def _to_cache(path, value):
    try:
        common.save(path, value)
        print(f"wrote {path}", flush=True)
    except OSError as e:
        print(f"warning: {path} cannot be written ({e.strerror}), so it will be made again next time", flush=True)


def _fit(net, n, loss_of, steps=1500, batch=128):
    """Trains a classifier: Adam with a one-cycle rate on loss_of(which of the n images)."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for begin, _ in progress("images for the classifier", steps * batch, batch, shared=False):
        loss = loss_of(data.order(n, 0, begin, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval().requires_grad_(False)


class Moments:
    """Mean and covariance of features, added batch by batch in float64."""

    def __init__(self, d, device="cpu"):
        self.n, self.sum, self.outer = (
            double(torch.zeros(size, device=device)) for size in ((), d, (d, d)))

    def add(self, features):
        """features (N, d)."""
        f = double(features)
        self.n += len(f)
        self.sum += f.sum(0)
        self.outer += f.T @ f

    def reduce(self):
        """Adds up those of all processes."""
        for tensor in (self.n, self.sum, self.outer):
            add_up(tensor)

    def gaussian(self):
        """-> mean (d,), covariance (d, d) over n - 1, on the CPU."""
        mean = self.sum / self.n
        return mean.cpu(), ((self.outer - self.n * mean.outer(mean)) / (self.n - 1)).cpu()


def frechet(a, b):
    """Frechet distance of Gaussians, (mean (d,), covariance (d, d)), float64.  (Heusel 2017, eq. 6)
    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), by symmetric eigenvalues."""
    (m_a, C_a), (m_b, C_b) = a, b
    values, vectors = torch.linalg.eigh(C_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ C_b @ root).clamp(min=0).sqrt().sum()
    return ((m_a - m_b).square().sum() + C_a.trace() + C_b.trace() - 2 * cross).item()


KEPT = 10_000           # features of each set from which the kernel distance draws its subsets
SUBSET = 1000           # features of a subset


def kernel_distance(a, b, seed, subsets=100, size=SUBSET):
    """KID: unbiased MMD^2 under the kernel (x.y / d + 1)^3 (Binkowski et al. 2018, eq. 4) of
    features a (N, d) and b (M, d).  -> mean and standard deviation over random subsets."""
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1)**3
    rng = np.random.RandomState(seed)
    values = []
    size = min(size, len(a), len(b))
    for _ in range(subsets):
        x = double(a[torch.from_numpy(rng.choice(len(a), size, replace=False)).to(a.device)])
        y = double(b[torch.from_numpy(rng.choice(len(b), size, replace=False)).to(b.device)])
        xx = kernel(x, x)
        yy = kernel(y, y)
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        values.append((within - 2 * kernel(x, y).mean()).item())
    return float(np.mean(values)), float(np.std(values))


SOON = 5                # seconds: what takes less is not said before


def features_of(view, extractor, what, n, make):
    """`Moments` of the features of n images, make(begin, end), and up to KEPT of the features."""
    def features(begin, end):
        return extractor.features(make(begin, end))
    size = min(view.batch, extractor.batch)
    seconds, made = seconds_of(view, n, size, features)
    if seconds > SOON:
        tell_time(f"features of {what}", seconds)
    places = scattered(n, KEPT).to(view.device)
    moments = Moments(extractor.d, view.device)
    kept = torch.zeros(len(places), extractor.d, device=view.device)
    for begin, end in progress(what, n, size):
        f = features(begin, end) if begin else made
        moments.add(f)
        here = (places >= begin) & (places < end)
        kept[here] = f[places[here] - begin]
    moments.reduce()
    return moments, add_up(kept)


def features_made(view, extractor, kind, args):
    """`features_of` a kind of pictures, made once for all measures, after their number."""
    key = extractor.checksum, kind, args.n, args.seed
    if key not in view.measured:
        n, make = pictures(view, kind, args)
        moments, kept = features_of(view, extractor, KINDS[kind].words, n, make)
        if not moments.sum.isfinite().all():
            raise Error(f"{view.run}: features of its {KINDS[kind].words} are not finite; the run has diverged")
        view.measured[key] = n, moments, kept
    return view.measured[key]


def reference(view, extractor, cache, part="train", most=0, flip=None):
    """Gaussian of a part's features, and up to KEPT of the features; kept in `cache`. most: how
    many images, from all over it (0: all).  flip: the seed by which half of them are flipped."""
    images = view.part(part)
    places = scattered(len(images), most or len(images))
    words = (f"-{most}" if len(places) < len(images) else "") + ("" if flip is None else f"-flip{flip}")
    path = Path(cache) / f"reference-{extractor.checksum}-{images.fingerprint()}{words}.pt"
    flipped = torch.from_numpy(np.random.RandomState(flip).rand(len(places)) < 0.5)

    def make(begin, end):
        x = view.images(places[begin:end], part)
        some = flipped[begin:end].to(x.device)
        return x if flip is None else torch.where(some[:, None, None, None], x.flip(3), x)
    if add_up(torch.tensor(int(not path.exists()), device=view.device)) == 0:           # all have it
        return _from_cache(path, "cpu", lambda v: ((v["mean"], v["covariance"]), v["kept"].to(view.device)))
    if len(places) < 2:
        raise Lacks(f"{view.run}: a distance needs 2 {part} images or more, and there is {len(places)}")
    moments, kept = features_of(view, extractor, f"the {part} part", len(places), make)
    mean, covariance = moments.gaussian()
    if leads():
        _to_cache(path, dict(mean=mean, covariance=covariance, kept=kept.cpu()))
    return (mean, covariance), kept


def measure_frechet(view, args, wanted=("samples", "resamples", "reconstructions", "midpoints", "real"), most=0,
                    flip=False):
    """Frechet and kernel distances to the training part or --reference: FID and KID by Inception.
    most, flip: to so many of its images (0: all), half of them flipped."""
    extractor = extractor_of(view, args)
    part = args.reference or "train"
    kinds = available(view, wanted)
    real, kept_real = reference(view, extractor, args.cache, part, most, args.seed if flip else None)
    fid, kid = ("fid", "kid") if extractor.title == "FID" else ("frechet", "kernel")
    m = {"extractor": f"{extractor.name} {extractor.checksum}"}
    n = {}
    notes = []
    for kind in kinds:
        many, moments, kept = features_made(view, extractor, kind, args)
        if many < 2:
            notes.append(f"left out: {KINDS[kind].words}: a distance needs 2 or more, and this is {many}")
            continue
        n[kind] = many
        m[f"{fid}_{kind}"] = frechet(moments.gaussian(), real)
        m[f"{kid}_{kind}"], m[f"{kid}_{kind}_deviation"] = kernel_distance(kept, kept_real, args.seed)
    if not n:
        raise Lacks(f"{view.run}: {notes[-1].removeprefix('left out: ')}")
    images = view.part(part)
    taken = min(most or len(images), len(images))
    few = min(taken, min(n.values()))
    if few <= extractor.d:
        notes.append(f"warning: {few:,} images are too few for {extractor.d:,} features, whose covariance they do not "
                     f"fill; the kernel distance stands few images better")
    if few <= SUBSET:
        notes.append(f"warning: {few:,} images are no more than a subset of the kernel distance ({SUBSET:,}); subsets "
                     f"of {few:,} share images, and its deviation comes out too small")
    grey = "" if isinstance(extractor, Classifier) else view.grey
    return Result(dict(m, n=n), (
        f"features of {m['extractor']}, images {extractor.resize}{grey}; {of_each(n)} against {taken:,} "
        f"{f'of {len(images):,} ' if taken < len(images) else ''}{PARTS[part]} images ({images.fingerprint()}), "
        f"{'half of them' if flip else 'not'} flipped; kernel distance "
        f"over 100 subsets of up to {SUBSET:,}, from up to {KEPT:,} of each; {noise_of(n)}"),
        extractor.title, notes)


def show_frechet(m, title):
    fid, kid, name = ("fid", "kid", "KID") if title == "FID" else ("frechet", "kernel", "kernel distance")
    kernels = [f"{KINDS[kind].words} {plain(m[f'{kid}_{kind}'], 4)} ({plain(m[f'{kid}_{kind}_deviation'], 2)})"
               for kind in m["n"]]
    return [f"{title}: {each(m, fid)}", f"{name} (deviation over 100 subsets): " + "   ".join(kernels)]


NEIGHBOUR = 3           # whose distance is the radius around a feature (Kynkaanniemi's k)


def radii(f, k=NEIGHBOUR, block=1000):
    """How far the k-th nearest other is from each of f (N, d); itself, at 0, is the first."""
    return torch.cat([torch.cdist(some, f).kthvalue(k + 1).values for some in f.split(block)])


def precision_recall(real, made, k=NEIGHBOUR, block=1000, r=None):
    """Precision: the share of features made (M, d) no farther from one of real (N, d), of `radii` r,
    than its k-th nearest other.  Recall: with the two exchanged.  (Kynkaanniemi 2019, eqs. 1, 2)"""
    real, made = double(real), double(made)

    def inside(f, centres, r):
        return sum((torch.cdist(some, centres) <= r).any(1).sum().item() for some in f.split(block)) / len(f)
    r = radii(real, k, block) if r is None else r
    return inside(made, real, r), inside(real, made, radii(made, k, block))


def measure_precision(view, args, wanted=("samples", "reconstructions", "real")):
    """Precision (how many pictures look real) and recall (how many real ones could be made), by
    `frechet`'s features, as many of the pictures as of the training part or --reference."""
    extractor = extractor_of(view, args)
    part = args.reference or "train"
    _, real = reference(view, extractor, args.cache, part)
    m = {"extractor": f"{extractor.name} {extractor.checksum}"}
    n = {}
    k = NEIGHBOUR
    r = {}                                                              # of so many real ones
    for kind in available(view, wanted):
        _, _, made = features_made(view, extractor, kind, args)
        many = n[kind] = min(len(real), len(made))
        if many <= k:
            raise Lacks(f"{view.run}: a {k}rd neighbour needs {k + 1} images or more, and there are {many}")
        some, made = (f[evenly(len(f), many).to(f.device)] for f in (real, made))
        if many not in r:
            r[many] = radii(double(some))
        m[f"precision_{kind}"], m[f"recall_{kind}"] = precision_recall(some, made, r=r[many])
    images = view.part(part)
    grey = "" if isinstance(extractor, Classifier) else view.grey
    return Result(dict(m, n=n), (
        f"k {k}; features of {m['extractor']}, images {extractor.resize}{grey}; {of_each(n)}, and as many of "
        f"{len(images):,} {PARTS[part]} images ({images.fingerprint()}), evenly spaced; {noise_of(n)}"))


def measure_flips(view, args):
    """% of reconstructions that the set's classifier takes for another class than the original."""
    with common.rank_zero_first():
        net = classifier_of(view, args.cache)
    indices = test_indices(view, args)
    means = Means(view.device, "flips")
    for x, y, _ in reconstructed(view, indices):
        means.add(flips=net(x).argmax(1) != net(y).argmax(1))
    m = means.result()
    m = dict(m, flips=100 * m["flips"], accuracy=net.accuracy.item(), extractor=f"{net.name} {net.checksum}")
    return Result(m, f"classifier {m['extractor']}; {of_test(view, m['n'])}")


def one_nn(train, train_labels, test, test_labels):
    """Accuracy (%) of the nearest training feature's label.  (N, d), (N,), (M, d), (M,)."""
    nearest = torch.cat([torch.cdist(x, train).argmin(1) for x in test.split(500)])     # for memory
    return 100 * (train_labels[nearest] == test_labels).sum().item() / len(test)


def linear_svm(x, y, classes, C=0.02):
    """A linear SVM a class, as liblinear's: min_w |w|^2 / 2 + C sum_i max(0, 1 - y_i w.x_i)^2. x
    (N, d) float, y (N,) int64 -> w (d + 1, classes); its last row is the bias, regularised too."""
    x = nnf.pad(x, (0, 1), value=1.0)
    sign = nnf.one_hot(y, classes).to(x) * 2 - 1                            # [N,classes]
    # Solved for v = L^T w, L L^T = I + 2 C x^T x, where the problem is round: L-BFGS takes few steps
    eye = torch.eye(x.shape[1], device=x.device, dtype=x.dtype)
    L, failed = torch.linalg.cholesky_ex(eye + 2 * C * x.T @ x)
    if failed:                                                              # too large for fp32
        gram = sum(part.T @ part for part in map(double, x.split(5000)))
        L = torch.linalg.cholesky(eye.to(gram) + 2 * C * gram).to(x)

    def weights(v):
        return torch.linalg.solve_triangular(L.T, v, upper=True)

    def objective(v):
        w = weights(v)
        return w.square().sum() / 2 + C * (1 - sign * (x @ w)).relu().square().sum()
    return weights(minimise(objective, x.new_zeros(x.shape[1], classes)))


def svm_scores(w, x):
    """(N, classes); the largest is the predicted class."""
    return nnf.pad(x, (0, 1), value=1.0) @ w


ACCURACIES = ("1nn_short", "1nn_long", "svm_short", "svm_long")


def classification(view):
    """ACCURACIES (%) of 1-NN and linear SVM on short and long features of the training images."""
    y = view.train.labels.to(view.device)
    y_test = view.test.labels.to(view.device)
    result = {}
    for name, x, x_test in zip(("short", "long"), view.features("train"), view.features("test"), strict=True):
        if not (x.isfinite().all() and x_test.isfinite().all()):
            raise Error(f"{view.run}: its {name} features are not finite; the run has diverged")
        result[f"1nn_{name}"] = one_nn(x, y, x_test, y_test)
        w = linear_svm(x, y, int(y.max()) + 1)
        right = svm_scores(w, x_test).argmax(1) == y_test
        result[f"svm_{name}"] = 100 * right.float().mean().item()
    return result


def measure_classifiers(view, args):
    """1-NN and linear SVM on the model's features.   (ALAE, table 2)"""
    if not view.has_classes:
        raise Lacks(f"{view.run}: {view.train.name} has no class labels to be told apart")
    c = classification(view) if leads() else dict.fromkeys(ACCURACIES, 0)
    return Result(dict(c, n=len(view.test)),
                  f"unscaled features of {len(view.train):,} training and all {len(view.test):,} test images, C 0.02")


# --------------------------------------------------------------- 6 Perceptual distances: LPIPS, PPL

class LPIPS(nn.Module):
    """Learned perceptual distance, VGG-16, version 0.1: a, b (N, 3 or 1, H, W) in [-1, 1] -> (N,).
    weights: of the heads, as the lpips package keeps them.   (Zhang et al. 2018, eq. 1)"""

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


def check_halvings(view, net, crop):
    """Raise Lacks if images, or with `crop` what `as_ppl_sees` keeps of them, are too small for VGG-16."""
    seen = 4 * (min(view.shape[1:]) // 8) if crop else min(view.shape[1:])
    if seen < 16:
        raise Lacks(f"{view.run}: {net} halves images four times; these, of {seen} px"
                    f"{' after the face crop' if crop else ''}, are too small")


def lpips_of(view, args, crop=False):
    """LPIPS, from --vgg and --lpips or fetched, with title and checksum."""
    check_halvings(view, "LPIPS's network", crop)
    with common.rank_zero_first():
        vgg = common.frozen("vgg", args.vgg, args.cache, common.VGG)
        net = common.frozen("lpips", args.lpips, args.cache, lambda weights: LPIPS(vgg, weights))
    net.checksum = ", ".join(f"{name} {part.checksum}{'' if part.official else ' (not the published one)'}"
                             for name, part in (("VGG-16", vgg), ("heads", net)))
    net.official &= vgg.official
    files = [Path(file).name for file in (args.vgg, args.lpips) if file]
    net.title = "LPIPS" if net.official else f"distance ({', '.join(files)})"
    return net.to(view.device)


def measure_lpips(view, args):
    """LPIPS of test images to their reconstructions, the training-mean image and wrong pairs."""
    net = lpips_of(view, args)
    indices = test_indices(view, args)
    mean_image = training_mean(view)
    right = "lpips" if net.official else "distance"
    means = Means(view.device, right, f"{right}_mean_image", f"{right}_wrong_pair")
    for x, y, after in reconstructed(view, indices):
        means.add(**{right: net(y, x), f"{right}_mean_image": net(mean_image.expand_as(x), x),
                     f"{right}_wrong_pair": net(y, after)})
    m = means.result()
    if len(indices) == 1:
        m[f"{right}_wrong_pair"] = None
    return Result(m, f"{net.checksum}{view.grey}, images as they are; {of_test(view, m['n'])}", net.title)


def show_lpips(m, title):
    right, mean_image, wrong_pair, _ = m.values()
    return [f"{title}: {right:.4f}   (floors: {mean_image:.4f} of the training-mean image, "
            f"{cell(wrong_pair, '.4f')} of reconstructions paired with the wrong originals)"]


def slerp(a, b, t):
    """From a to b along the sphere, (N, d); t (N, 1).  Lengths change linearly, for any prior."""
    length = (1 - t) * a.norm(dim=1, keepdim=True) + t * b.norm(dim=1, keepdim=True)
    a, b = nnf.normalize(a, dim=1), nnf.normalize(b, dim=1)
    cos = (a * b).sum(1, keepdim=True)
    c = nnf.normalize(b - cos * a, dim=1)
    angle = t * cos.clamp(-1, 1).acos()
    return length * nnf.normalize(a * angle.cos() + c * angle.sin(), dim=1)


def within_percentiles(d):
    """The mean of the values of d (N,) from its 1st to its 99th percentile.   (StyleGAN's PPL)"""
    d = d.cpu().numpy()
    lower = np.percentile(d, 1, method="lower")
    upper = np.percentile(d, 99, method="higher")
    return float(d[(lower <= d) & (d <= upper)].mean())


EPSILON = 1e-4          # how far apart the two images of a pair are
PATHS = [(space, part) for space in "zw" for part in ("full", "end")]


def measure_ppl(view, args, net=None, paths=PATHS):
    """Perceptual path length in Z (slerp) and W (lerp), by `net` or LPIPS.   (StyleGAN 4.1)"""
    net = net or lpips_of(view, args, args.face_crop)
    n = code_count(view, args)
    name = "ppl" if net.official else "path"
    title = "PPL" if net.official else f"PPL by {net.title}"
    start = torch.zeros(n, 1, device=view.device)
    seconds, _ = seconds_of(view, n, view.batch, lambda begin, end: net(
        *pairs_apart(view, args, "z", start, begin, end)))
    tell_time(title, len(paths) * seconds)
    m = {f"{name}_{space}_{part}": path_length(view, args, net, n, space, part) for space, part in paths}
    crop = "of the face crop, " if args.face_crop else ""
    grey = "" if isinstance(getattr(net, "extractor", None), Classifier) else view.grey
    return Result(dict(m, n=n), (
        f"{n:,} pairs each, epsilon {EPSILON:g}, slerp in Z with lengths kept, {net.checksum}{grey}; "
        f"{crop}images above 256 px averaged down to it; mean between the 1st and 99th percentile; random noise, one "
        f"for both ends, no truncation"), title)


def pairs_apart(view, args, space, t, begin, end):
    """The begin-th ... end-th pairs of images EPSILON apart, at t (N, 1) of their paths."""
    codes = view.codes(2 * end, args.seed, 2 * begin)
    a, b = (codes if space == "z" else view.model.map(codes)).unflatten(0, (-1, 2)).unbind(1)
    for at in (t[begin:end], t[begin:end] + EPSILON):
        w = view.model.map(slerp(a, b, at)) if space == "z" else a + at * (b - a)
        seed_noise(args.seed, begin)         # the same for both ends
        yield as_ppl_sees(view.model.generate(w, noise="random"), args.face_crop)


def path_length(view, args, net, n, space, part):
    """Distance of images EPSILON apart, over EPSILON^2, along n paths (full) or at starts (end)."""
    d = double(torch.zeros(n, device=view.device))
    t = torch.from_numpy(np.random.RandomState(args.seed).rand(n, 1)).float().to(view.device) * (part == "full")
    for begin, end in progress(f"pairs in {space.upper()}, {part}", n, view.batch):
        d[begin:end] = double(net(*pairs_apart(view, args, space, t, begin, end))) / EPSILON**2
    return within_percentiles(add_up(d))


def as_ppl_sees(x, face_crop):
    """Images averaged down to 256 px; face_crop takes rows 3/8 to 7/8, columns 2/8 to 6/8."""
    if face_crop:
        h = x.shape[2] // 8
        w = x.shape[3] // 8
        x = x[:, :, 3 * h:7 * h, 2 * w:6 * w]
    return nnf.avg_pool2d(x, max(x.shape[2] // 256, 1))


# -------------------------------------------------------------------- 7 Sliced Wasserstein distance

def swd_levels(shape):
    """Sizes (h, w) of the pyramid's levels for images (C, H, W); the smaller side is 16 or more."""
    sizes = []
    h, w = shape[1:]
    while min(h, w) >= 16 and not (sizes and min(sizes[-1]) < 32):
        sizes.append((h, w))
        h, w = math.ceil(h / 2), math.ceil(w / 2)
    return sizes


def laplacian(x, level):
    """A level of the Laplacian pyramid of x (N, C, H, W): (N, C, H / 2^level, W / 2^level); below
    32 pixels the last one, which is what remains of the image itself.  (ProGAN 5)"""
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


def patches(x, top, left):
    """7x7 patches of x (N, C, H, W) around rows `top`, columns `left`, (N, n) -> (N n, C, 7, 7)."""
    windows = x.unfold(2, 7, 1).unfold(3, 7, 1)                     # [N,C,H-6,W-6,7,7]
    image = torch.arange(len(x), device=x.device)[:, None]
    return windows[image, :, top.to(x.device) - 3, left.to(x.device) - 3].flatten(0, 1)


def descriptors(view, what, n, make, level, size, seed):
    """128 random patches of each of n images, make(begin, end), at a level, (h, w) = size."""
    rng = np.random.RandomState(seed)
    out = torch.zeros(128 * n, view.shape[0], 7, 7, device=view.device)
    top, left = (torch.from_numpy(rng.randint(3, side - 3, (n, 128))) for side in size)
    for begin, end in progress(what, n, view.batch):
        x = laplacian(common.to_uint8(make(begin, end)).float(), level)
        out[128 * begin:128 * end] = patches(x, top[begin:end], left[begin:end])
    return add_up(out)


def sliced_wasserstein(a, b, rng):
    """Sliced Wasserstein distance, times 1,000, of patches (M, C, h, w), standardised.  (ProGAN 5)"""
    for t in (a, b):
        for channel in t.unbind(1):
            channel -= channel.mean()
            channel /= channel.std(correction=0).clamp(min=1e-8)         # 0 if G has collapsed
    a, b = a.flatten(1), b.flatten(1)
    total = 0.0

    def in_order(t):        # numpy sorts several times as fast as torch on a CPU
        return t.sort(1).values if t.is_cuda else torch.from_numpy(np.sort(t.cpu().numpy(), 1))
    for _ in range(4):
        d = rng.randn(a.shape[1], 128)
        d = torch.from_numpy(d / np.sqrt(np.square(d).sum(0))).to(a).T
        for some in d.split(16):                                         # for memory
            off = in_order(some @ a.T) - in_order(some @ b.T)
            total += off.abs().sum(dtype=torch.float64).item()
    return 1000 * total / (4 * 128 * len(a))


def measure_swd(view, args, wanted=("samples", "reconstructions")):
    """SWD of reconstructions to their test images, and of samples to training images, or of both to
    --reference.  At most 16,384 images, a level's patches in memory at a time.   (LIA, table 1)"""
    sizes = swd_levels(view.shape)
    if not sizes:
        raise Lacks(f"{view.run}: the distance needs images of 16 pixels or more, and these have "
                    f"{min(view.shape[1:])}")
    m = {"n": {}}
    against = []
    originals = dict(samples="train", reconstructions="test")
    for kind in available(view, wanted):
        n, make = pictures(view, kind, args)
        n = min(n, 16_384)
        part = args.reference or originals[kind]
        places = scattered(len(view.train), n) if part == "train" else test_indices(view, args)[:n]

        def real(begin, end, places=places, part=part):
            return view.images(places[begin:end], part)
        n = len(places)
        levels = {}
        for level, size in enumerate(sizes):
            a, b = (descriptors(view, f"{KINDS[kind].words}, patches at {size[0]} px", n, images, level, size,
                                [args.seed, level, i]) for i, images in enumerate((real, make)))
            levels[size[0]] = sliced_wasserstein(a, b, np.random.RandomState([args.seed, level]))
        m[f"swd_{kind}"] = sum(levels.values()) / len(levels)
        m[f"swd_{kind}_levels"] = levels
        m["n"][kind] = n
        against.append(f"{n:,} {KINDS[kind].words} against as many {PARTS[part]} images")
    return Result(m, f"128 patches of 7x7 an image and level, 512 directions; uint8; {', '.join(against)}; "
                     f"{noise_of(m['n'])}")


# -------------------------------------------------------------------------- 8 The table of measures

# count(view, args) -> Result; show(numbers, title) -> lines; alone: not without --only
Measure = namedtuple("Measure", "count needs show alone", defaults=(False,))
MEASURES = {
    "errors": Measure(measure_errors, ("encode", "generate"), lambda m, _: [
        f"MSE {m['mse']:.4f} on [-1, 1], {m['mse_255']:.1f} on [0, 255]   MAE {m['mae']:.4f}"
        + (f" ({m['mae_28']:.4f} without the border)" if "mae_28" in m else "") + f"   PSNR {m['psnr']:.2f} dB",
        f"floors: MSE {m['mse_mean_image']:.4f} of the training-mean image, "
        f"{cell(m['mse_wrong_pair'], '.4f')} of reconstructions paired with the wrong originals"]),
    "latent": Measure(measure_latent, PRIOR + ("encode",), lambda m, _: [
        f"|E(G(w)) - w| {m['recip_w']:.4f} a dimension (w deviates by {m['std_w']:.4f})   ||E(G(w)) - w|| "
        f"{m['norm_w']:.4f} (codes paired wrongly {m['norm_w_wrong_pair']:.4f})"]),
    "sharpness": Measure(measure_sharpness, (), lambda m, _: [
        each(m, "sharpness") + "   (variance of the Laplacian over that of the test images)"]),
    "frechet": Measure(measure_frechet, (), show_frechet),
    "precision": Measure(measure_precision, (), lambda m, _: [
        f"precision (looks real): {each(m, 'precision')}",
        f"recall (covers the set): {each(m, 'recall')}"]),
    "flips": Measure(measure_flips, ("encode", "generate"), lambda m, _: [
        f"{m['flips']:.2f} % of reconstructions change the class that a classifier sees (it is right on "
        f"{m['accuracy']:.2f} % of the test part)"]),
    "classifiers": Measure(measure_classifiers, ("features",), lambda m, _: [
        f"1-NN: short features {m['1nn_short']:.2f} %   long {m['1nn_long']:.2f} %",
        f"linear SVM: short features {m['svm_short']:.2f} %   long {m['svm_long']:.2f} %"]),
    "lpips": Measure(measure_lpips, ("encode", "generate"), show_lpips, alone=True),
    "swd": Measure(measure_swd, (), lambda m, _: ["SWD x 1,000: " + "   ".join(
        f"{KINDS[kind].words} {m[f'swd_{kind}']:.2f} ("
        + ", ".join(f"{h} px {v:.2f}" for h, v in m[f"swd_{kind}_levels"].items()) + ")"
        for kind in m["n"])], alone=True),
    "ppl": Measure(measure_ppl, PRIOR, lambda m, title: [f"{title}: " + "   ".join(
        f"{space.upper()} {part} {length:.2f}" for (space, part), length in zip(PATHS, m.values()))], alone=True),
}


# ----------------------------------------------------------------------------- 9 The papers' tables

PAPER = {  # the papers' numbers; None where a paper gives none
    "alae-2": {  # accuracy (%) on MNIST: 1-NN SW short, long, SVM SW short, long, then the same DW
        "AE l1":  (97.15, 97.43, 88.71, 97.27, 96.84, 96.80, 89.78, 97.72),
        "AE l2":  (97.52, 97.37, 88.78, 97.23, 97.05, 96.77, 89.78, 97.72),
        "LR":     (92.79, 97.28, 89.74, 97.56, 91.90, 96.69, 90.03, 97.80),
        "JLR":    (92.54, 97.02, 89.23, 97.19, 91.97, 96.45, 90.82, 97.62),
        "BiGAN":  (95.83, 97.14, 90.52, 97.59, 95.38, 96.81, 91.34, 97.74),
        "ALAE":   (93.79, 97.61, 93.47, 98.20, 94.59, 97.47, 94.23, 98.64),
    },
    "alae-3": {  # FID: FFHQ, LSUN bedroom; quoted: from other papers
        "StyleGAN (quoted)": (4.40, 2.65), "PGGAN (quoted)": (None, 8.34), "IntroVAE (quoted)": (None, 8.84),
        "Pioneer (quoted)": (None, 18.39), "Balanced Pioneer (quoted)": (None, 17.89),
        "StyleALAE generation": (13.09, 17.13), "StyleALAE reconstruction": (16.52, 15.92),
    },
    "alae-4": {  # PPL on FFHQ, full and end; lost: the column ends have in print, not in the text that we have
        "StyleGAN, Z (quoted)": (412.0, "lost"), "StyleGAN without mixing, W (quoted)": (200.5, "lost"),
        "StyleGAN, W (quoted)": (231.5, "lost"), "StyleALAE, Z": (300.5, "lost"), "StyleALAE, W": (134.5, 103.4),
    },
    "alae-5": {  # CelebA-HQ, 256 px: FID by 50,000 samples, PPL full (in which space, it does not say; the code: W)
        "PGGAN (quoted)": (8.03, 229.2), "GLOW (quoted)": (68.93, 219.6), "PIONEER (quoted)": (39.17, 155.2),
        "Balanced PIONEER (quoted)": (25.25, 146.2), "StyleALAE": (19.21, 33.29),
    },
    "lia-1": {  # FFHQ's last 5,000 images reconstructed: FID, SWD, MSE (likely in 0.001 on [-1, 1])
        "LIA": (16.88, 10.01, 18.10), "ALI": (74.98, 15.09, 32.61), "AGE": (118.88, 38.70, 29.91),
        "MSE-based optimization": (44.79, 43.44, 18.81), "Encoded StyleGAN": (22.26, 15.82, 23.18),
    },
    "lia-2": {  # FID of 50,000 samples to as many real images: FFHQ, LSUN cat, car, bedroom
        "StyleGAN": (6.23, 7.36, 3.09, 4.88), "LIA": (6.28, 7.08, 2.52, 4.36),
    },
    "invgan-1": {  # FID by 500, 50,000 images: Rand, RandRec, TsRec, IntTs; MAE; seconds an image
        "GHFeat, FFHQ": ((49.65, 14.59), (56.71, 23.93), (None, 13.73), (68.45, 38.01), 0.129, 0.045),
        "FFHQ Enc. (*)": ((46.82, 14.38), None, (88.48, None), None, 0.460, None),
        "FFHQ MSE opt. (*)": ((46.82, 14.38), None, (58.04, None), None, 0.106, None),
        "FFHQ In-D. Inv. (*)": ((46.82, 14.38), (52.02, None), (42.64, None), (71.83, None), 0.115, 99.76),
        "InvGAN, DCGAN, MNIST": ((17.44, 6.10), (16.76, 4.25), (17.77, 4.70), (26.04, 11.44), 0.070, 3.3e-5),
        "InvGAN, StyleGAN, CelebA": ((26.63, 4.81), (24.35, 3.51), (24.37, 4.14), (32.37, 15.60), 0.150, 1.0e-3),
        "InvGAN, StyleGAN, FFHQ": ((49.14, 12.12), (44.42, 8.85), (41.14, 7.15), (49.52, 14.36), 0.255, 2.0e-3),
    },
    "invgan-2": {  # average precision, deviation over 20 attributes; scored on (row), trained on
        "originals": ((0.81, 0.15), (0.77, 0.16), (0.79, 0.15)),
        "tiles": ((0.79, 0.16), (0.80, 0.15), (0.78, 0.16)),
        "reconstructions": ((0.81, 0.15), (0.78, 0.16), (0.81, 0.14)),
    },
    "invgan-3": {  # FID by 500, 50,000 images of ReStyle on FFHQ: Rand, RandRec
        "ReStyle, FFHQ, 1 step": ((40.33, 4.71), (57.63, 29.56)),
        "ReStyle, FFHQ, 2 steps": ((40.33, 4.71), (53.09, 22.88)),
        "ReStyle, FFHQ, 3 steps": ((40.33, 4.71), (51.68, 20.80)),
        "ReStyle, FFHQ, 4 steps": ((40.33, 4.71), (51.49, 19.93)),
    },
}
# InvGAN does not name its 20 of CelebA's 40 attributes; ours come nearest to halving the set.
CELEBA_20 = ("Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Big_Lips", "Big_Nose", "Black_Hair", "Brown_Hair",
             "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "No_Beard", "Oval_Face", "Pointy_Nose",
             "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Lipstick", "Young")


OF_A_TRIAL = {"given", "source", "seed", "out", "resume", "device", "workers", "snapshot_kimg",
              "keep_kimg", "data_root", "versions", "image_means"}      # in these, trials of one setting may differ


def unlike(view, other):
    """The first setting in which two runs differ that are to be trials of one, and both values; or None."""
    settings = [v.args | {"images shown": f"{v.model.seen / 1000:g} kimg"} for v in (view, other)]
    for key in settings[0] | settings[1]:
        values = [some.get(key) for some in settings]
        if key not in OF_A_TRIAL and values[0] != values[1]:
            return key, *values


def check_once(runs):
    """Raises Error if one run is named twice, which is one trial."""
    folders = [Path(run).resolve() for run in runs]
    if twice := [run for run, folder in zip(runs, folders) if folders.count(folder) > 1]:
        raise Error(f"{twice[0]} is named twice, and is one trial; leave one out")


def table_alae_2(runs, args):
    """ALAE's table 2: every run is one trial of its label and split; trials are averaged."""
    check_once(runs)
    trials = {}
    for run in runs:
        view = View(run, args, "raw")
        if view.test.source != "mnist" or view.test.split is None:
            raise Error(f"{run} was trained on {view.test.name}; table alae-2 is about --data mnist (--split dw or sw)")
        view.need(["features"])
        done = trials.setdefault((view.args["label"], view.test.split), [])
        other = done[0][0] if done else view
        if differ := unlike(view, other):
            key, mine, theirs = differ
            raise Error(f"{run} and {other.run} differ in {key} ({mine}, {theirs}), so they are not trials of one "
                        f"setting; make a table of each")
        result = classification(view)
        done.append((view, result))
        print(f"{view.title}: " + "  ".join(f"{c} {result[c]:.2f}" for c in ACCURACIES), flush=True)
    heads = [f"{c} {split}" for split in ("SW", "DW") for c in ACCURACIES]
    lines = []
    for label in dict.fromkeys(list(PAPER["alae-2"]) + [label for label, _ in trials]):
        ours = {f"{c} {split.upper()}": spread([result[c] for _, result in done], ".2f") for c in ACCURACIES
                for (other, split), done in trials.items() if other == label}
        paper = dict(zip(heads, PAPER["alae-2"].get(label, ())))
        lines += [(f"{label}, {whose}", cells) for whose, cells in (("paper", paper), ("ours", ours)) if cells]
    print("\nMNIST accuracy (%), table 2 of the ALAE paper (mean of 5 trials there; ours: mean ± standard deviation "
          "of the runs listed below)")
    print_columns(lines, heads, lambda _: ".2f", 24)
    print("Euclidean 1-NN; linear SVM, L2-regularised squared hinge, C = 0.02; unscaled features of the whole training "
          "part, scored on the whole test part.")
    print(f"Evaluation code {common.code_version()}.")
    for (label, split), done in trials.items():
        print(f"ours, {label} {split.upper()}: {len(done)} run(s): " + "; ".join(v.protocol for v, _ in done))
    return {f"{label} {split}": [dict(run=str(v.run), protocol=v.protocol, **r) for v, r in done]
            for (label, split), done in trials.items()}


def print_columns(rows, heads, form, left=0, right=14, corner=""):
    """Rows (label, {column: value}) under heads, the columns' names.  form(column): the format of its
    numbers; left, right: the least widths of labels and of columns; corner: above the labels."""
    widths = {c: max(len(c) + 2, right) for c in heads}
    left = max([left] + [len(label) for label, _ in rows])
    print(f"{corner:{left}}" + "".join(f"{c:>{width}}" for c, width in widths.items()))
    for label, cells in rows:
        print(f"{label:{left}}" + "".join(f"{cell(cells.get(c), form(c)):>{width}}" for c, width in widths.items()))


def next_to_paper(name, columns, runs, args, measure):
    """Prints table `name`: the paper's rows, then the runs', measure(view) -> (label, {column:
    number}, protocol) of each.  columns: the paper's, and their formats; ours are after them."""
    out = {}
    ours = []
    for run in runs:
        view = View(run, args)
        print(f"  {view.title}:", flush=True)
        for i, (label, cells, protocol) in enumerate(measure(view)):
            out[f"{run}, {label}" if i else str(run)] = dict(
                label=label, **cells, protocol=f"{protocol}; evaluation seed {args.seed}; {view.protocol}")
            ours.append((f"{label}, ours", cells))
            print(f"  {label}: " + "  ".join(f"{c} {cell(v, columns.get(c, '.2f'))}" for c, v in cells.items()),
                  flush=True)
    papers = [(f"{label}, paper", dict(zip(columns, cells))) for label, cells in PAPER[name].items()]
    heads = list(columns) + [c for _, cells in ours for c in cells]
    print_columns(papers + ours, heads, lambda c: columns.get(c, ".2f"), 32, 16)
    print(f"Evaluation code {common.code_version()}.")
    for label, row in out.items():
        print(f"{label}: {row['protocol']}")
    return out


def frechet_of(view, args, wanted, most=0, flip=False):
    """-> the Frechet distances of kinds of pictures; the distance's name; what they depend on."""
    m, protocol, title, notes = measure_frechet(view, args, wanted, most, flip)
    return [m.get(f"fid_{kind}", m.get(f"frechet_{kind}")) for kind in wanted], title, "; ".join(
        [title, protocol] + notes)


def named(column, title):
    """A column's name, with its distance's unless that is the FID."""
    return column if title == "FID" else f"{column}, {title}"


def table_alae_3(runs, args):
    """ALAE's table 3: Frechet distances of samples, and of reconstructions of the test part, as the
    paper says, or of --sources train; to the training part, or to --reference-n of it, --flip."""
    kinds = "samples", dict(test="reconstructions", train="training")[args.sources]

    def measure(view):
        view.need(PRIOR + ("encode",))
        distances, title, how = frechet_of(view, args, kinds, args.reference_n, args.flip)
        for kind, distance in zip(kinds, distances, strict=True):
            n, _ = pictures(view, kind, args)
            row = f"generation, {n:,}" if kind == "samples" else f"reconstruction, {n:,} of {args.sources}"
            label = f"{view.args['label']} {row} to {args.reference or 'train'}"
            yield label, {named(view.train.name, title): distance}, how
    print(f"Frechet distances of samples, and of reconstructions of the {PARTS[args.sources]} part; FID is "
          f"by Inception (the released code: -n 50000 --sources train --reference-n 50000 --flip)")
    return next_to_paper("alae-3", dict.fromkeys(("ffhq", "lsun-bedroom"), ".2f"), runs, args, measure)


def paths_by(view, args):
    """What measures path lengths: LPIPS with --features inception or --lpips, else the mean square
    between features of `extractor_of`."""
    if args.features == "inception" or args.lpips:
        return lpips_of(view, args, args.face_crop)
    if args.features == "vgg16":
        check_halvings(view, "VGG-16", args.face_crop)
    net = extractor_of(view, args)
    features = net.features if isinstance(net, Classifier) else lambda x: net(x)[-1].mean((2, 3))

    def distance(a, b):
        return per_image((features(a) - features(b)).square())
    distance.extractor = net
    distance.official = False
    distance.title = net.title.removeprefix("Frechet ").strip("()")
    distance.checksum = f"mean square of features of {net.name} {net.checksum}"
    return distance


def ppl_of(view, args, paths):
    """-> path lengths, what their columns have after "full" or "end", what they depend on, and n."""
    m, protocol, title, _ = measure_ppl(view, args, paths_by(view, args), paths)
    return list(m.values())[:-1], "" if title == "PPL" else f", {title}", f"{title}; {protocol}", m["n"]


def table_alae_4(runs, args):
    """ALAE's table 4: perceptual path lengths in Z and in W, of whole paths and of their ends."""
    def measure(view):
        view.need(PRIOR)
        lengths, by, how, n = ppl_of(view, args, PATHS)
        return [(f"{view.args['label']}, {space}, {n:,} pairs", {f"full{by}": full, f"end{by}": end}, how)
                for space, full, end in zip("ZW", lengths[0::2], lengths[1::2], strict=True)]
    print(f"Path lengths{', of the face crop' if args.face_crop else ''} (the released code: -n 50000 --face-crop).  "
          f"lost: the text of the paper that we have lacks it")
    return next_to_paper("alae-4", dict(full=".1f", end=".1f"), runs, args, measure)


def table_alae_5(runs, args):
    """ALAE's table 5: Frechet distance of samples, and length of whole paths in W (as the code)."""
    def measure(view):
        view.need(PRIOR)
        (distance,), title, how = frechet_of(view, args, ["samples"], args.reference_n, args.flip)
        (length,), by, how_long, pairs = ppl_of(view, args, [("w", "full")])
        return [(f"{view.args['label']}, {code_count(view, args):,} to {args.reference or 'train'}, {pairs:,} pairs",
                 {title: distance, f"PPL full{by}": length}, f"{how}; {how_long}")]
    print(f"Frechet distances of samples, FID by Inception; path lengths in W"
          f"{', of the face crop' if args.face_crop else ''} (the paper: -n 50000; it does not name the space)")
    return next_to_paper("alae-5", {"FID": ".2f", "PPL full": ".2f"}, runs, args, measure)


def changed(args, **flags):
    """args with other values of some flags."""
    return Namespace(**{**vars(args), **flags})


class Descent:
    """A run's model whose encoder is `optimise`, in w: from the mean w, or its E (in-domain)."""

    def __init__(self, view, args, domain=False):
        self.model, self.found = view.model, {}
        self.steps = args.steps or (100 if domain else 1000)
        loss = changed(args, loss="vgg9" if domain and args.vgg else "pixel", method="in-domain")
        distance = distance_for(view, loss)
        sphere = on_sphere(view.codes(CLIP_DRAWS, args.seed))
        start = "E(x)" if domain else "a draw of the prior" if sphere else "the mean w"
        self.how = (f"{self.steps} steps of Adam, lr {LR:g}, in w, from {start}, loss pixel"
                    f"{' and conv4_3' if loss.loss == 'vgg9' else ''}{' and codes' if domain else ''}")
        self.descend = lambda x, steps: optimise(view, x, "w", distance, steps, LR, domain=domain, seed=args.seed,
                                                 begin=len(self.found))[1]

    def __getattr__(self, name):
        return getattr(self.model, name)

    def encode(self, x):
        """Each image is optimised once, whatever asks for it."""
        keys = [image.cpu().numpy().tobytes() for image in x]
        new = [i for i, key in enumerate(keys) if key not in self.found]
        if new:
            with torch.enable_grad():
                found = self.descend(x[new], self.steps)
            self.found.update(zip([keys[i] for i in new], found, strict=True))
        return torch.stack([self.found[key] for key in keys])


def by_descent(view, args, domain=False):
    """-> the view with a `Descent` in place of its encoder, which has found the codes of the first
    --optimise test images; args for so many; and what it depends on."""
    view.need(PRIOR)
    n = min(args.optimise, len(view.test))
    model = Descent(view, args, domain)
    what = f"{'in-domain inversion' if domain else 'optimisation'} of {n} images"
    x = view.images(torch.arange(min(n, view.batch)))
    tell_time(what, seconds_of_steps(view, lambda steps: model.descend(x, steps), model.steps,
                                     math.ceil(n / view.batch)))
    began = clock(view)
    for begin, end in progress(what, n, view.batch, shared=False):
        model.encode(view.images(torch.arange(begin, end)))
    model.seconds = (clock(view) - began) / n
    other = copy.copy(view)
    other.model, other.measured = model, {}
    return other, changed(args, n=n), model.how


def table_lia_1(runs, args):
    """LIA's table 1: how well test images are reconstructed; MSE in 0.001 on [-1, 1], and on [0,
    255]. FID is to the training part, SWD to the test originals; --reference: both to one.
    --optimise N: also a row of MSE optimisation on each run's generator, of the first N."""
    def row(label, view, args):
        (distance,), title, how = frechet_of(view, args, ["reconstructions"])
        swd = measure_swd(view, args, ["reconstructions"])
        e = errors(view, test_indices(view, args))
        wrong = e["mse_wrong_pair"] and 1000 * e["mse_wrong_pair"]
        return label, {"SWD x1000": swd.numbers["swd_reconstructions"], "MSE x1000": 1000 * e["mse"],
                       "MSE, 0-255": e["mse_255"], "mean image": 1000 * e["mse_mean_image"], "wrong pairs": wrong,
                       title: distance}, f"{how}; SWD: {swd.protocol}; MSE: {of_test(view, e['n'])}"

    def measure(view):
        if view.can(["encode"]) or not args.optimise:
            view.need(["encode"])
            yield row(view.args["label"], view, args)
        if args.optimise and (view.can(PRIOR) or not view.can(["encode"])):     # without a prior E's row alone
            other, few, how = by_descent(view, args)
            label, cells, protocol = row(f"MSE-based optimization, {few.n} images", other, few)
            yield label, cells, f"{how}; {protocol}"

    print(f"Reconstructions of test images: Frechet distances to the {args.reference or 'train'} part, SWD to the "
          f"{args.reference or 'test'} part (--reference: both to one; the paper does not say to which)")
    columns = ("FID", "SWD x1000", "MSE x1000", "MSE, 0-255", "mean image", "wrong pairs")
    out = next_to_paper("lia-1", dict.fromkeys(columns, ".2f"), runs, args, measure)
    print("MSE on [-1, 1] is times 1,000, and so of the two floors; of what the paper's is, it does not say.")
    return out


def table_lia_2(runs, args):
    """LIA's table 2: Frechet distances of samples; the paper's are FIDs of 50,000 (-n) to as many real
    images (--reference-n)."""
    def measure(view):
        view.need(PRIOR)
        (distance,), title, how = frechet_of(view, args, ["samples"], args.reference_n)
        return [(view.args["label"], {named(view.train.name, title): distance}, how)]
    sets = ("ffhq", "lsun-cat", "lsun-car", "lsun-bedroom")
    print("FID of samples on each set; what is no FID, or of another set, has a column of its own")
    return next_to_paper("lia-2", dict.fromkeys(sets, ".2f"), runs, args, measure)


def table_invgan_1(runs, args):
    """InvGAN's table 1: MAE, seconds to encode and decode an image, and Frechet distances by 500
    and by 50,000 (-n) samples, reconstructed samples, reconstructed test images and midpoints.
    --optimise N: also rows of in-domain inversion and of MSE optimisation, of N of each."""
    names = dict(samples="Rand", resamples="RandRec", reconstructions="TsRec", midpoints="IntTs")
    most = args.n or 50_000

    def row(label, view, args, counts, names):
        x = view.images(torch.arange(min(view.batch, common.few(view.shape), counts[-1], len(view.test))))
        seconds = seconds_an_image(view, x)
        cells, how, e = distances_and_errors(view, args, counts, names)
        cells.update({"MAE": e["mae"], "s an image": seconds, "MAE, 28x28": e.get("mae_28")})
        return label, cells, (
            f"{how}; MAE: {of_test(view, e['n'])}, floors (MSE) {e['mse_mean_image']:.4f} of the mean image, "
            f"{cell(e['mse_wrong_pair'], '.4f')} of wrong pairs, itself {e['mse']:.4f}; seconds: {len(x)} images at "
            f"once on {view.device.type}, {torch.get_num_threads()} threads")

    def measure(view):
        view.need(PRIOR + ("encode",))
        yield row(view.args["label"], view, args, (500, most), names)
        for domain in (True, False) if args.optimise else ():
            other, few, how = by_descent(view, args, domain)
            name = "In-D. Inv." if domain else "MSE opt."
            own = names if domain else dict(samples="Rand", reconstructions="TsRec")
            label, cells, protocol = row(f"{view.args['label']} {name}, {few.n} images", other, few, (few.n,), own)
            yield label, cells, f"{how}; {protocol}"
    columns = {**dict.fromkeys(names.values(), ".2f"), "MAE": ".3f", "s an image": ".1e", "MAE, 28x28": ".3f"}
    out = next_to_paper("invgan-1", columns, runs, args, measure)
    print(f"Distances by 500 and by {most:,} images, or as many as there are.  *: what the paper gives "
          f"as MAE there is the root of a mean square, which is no less")
    return out


def seconds_an_image(view, x):
    """Seconds to encode and decode an image, of x (N, C, H, W) at once."""
    if isinstance(view.model, Descent):
        return view.model.seconds
    common.reconstruct(view.model, x)                           # the first call also prepares
    began = clock(view)
    common.reconstruct(view.model, x)
    return (clock(view) - began) / len(x)


def distances_and_errors(view, args, counts, names):
    """Frechet distances of pictures (names: {kind: column}) by each of the counts, errors by the
    last.  -> the cells of a row {column: distances}, what they depend on, the errors"""
    found = [frechet_of(view, changed(args, n=n), names) for n in counts]
    cells = {named(column, found[-1][1]): [distances[i] for distances, _, _ in found]
             for i, column in enumerate(names.values())}
    e = errors(view, test_indices(view, changed(args, n=counts[-1])))
    return cells, "; and ".join(how for _, _, how in found), e


def table_invgan_3(runs, args):
    """InvGAN's table 3: ReStyle's Frechet distances after each of its steps, by 500 and by 50,000
    (-n) images, those of training and test images, which the paper lacks, too; and errors."""
    names = dict(samples="Rand", resamples="RandRec", training="TrRec", reconstructions="TsRec")
    most = args.n or 50_000
    out = {}
    table = [(f"{label}, paper", dict(zip(names.values(), cells)))
             for label, cells in PAPER["invgan-3"].items()]
    for run in runs:
        view = View(run, args)
        if "generator" not in view.args:
            raise Error(f"{run} is no run of ReStyle; table invgan-3 takes runs of `python invgan.py --restyle RUN`")
        steps = view.args["iterations"]
        print(f"{run}: by 500 and by {most:,} images, each after {steps} step{'s' if steps > 1 else ''}; fewer by -n")
        rows = []
        for i in range(steps):
            view.model.iterations = i + 1
            view.measured = {key: value for key, value in view.measured.items() if key[1] == "samples"}
            row, how, e = distances_and_errors(view, args, (500, most), names)
            row.update({"MSE": e["mse"], "MAE": e["mae"]})
            if "mae_28" in e:
                row["MAE, 28x28"] = e["mae_28"]
            rows.append(row)
            table.append((f"{view.args['label']}, {i + 1} step{'s' if i else ''}, ours", row))
        floors = {"mean image": dict(MSE=e["mse_mean_image"]), "wrong pairs": dict(MSE=e["mse_wrong_pair"])}
        table += [(f"  floor: {name}", cells) for name, cells in floors.items()]
        out[str(run)] = dict(label=view.args["label"], steps=rows, floors=floors, protocol=(
            f"{how}; errors: {of_test(view, e['n'])}; evaluation seed {args.seed}; {view.protocol}"))
    heads = [name for _, cells in table for name in cells]
    print_columns(table, heads, lambda name: ".4f" if name[0] == "M" else ".2f")
    print(f"Evaluation code {common.code_version()}.")
    for run, row in out.items():
        print(f"{run}: {row['protocol']}")
    print(f"Distances by 500 and by {most:,} images, or as many as there are: of samples (Rand), and of samples, "
          f"training and test images reconstructed.  The paper has none of training and test images: its ReStyle "
          f"was trained on all of FFHQ.")
    return out


def average_precision(scores, truth):
    """Mean precision over recalls, weighted by their steps; ties are one step.  (N,), (N,) bool."""
    scores, truth = map(common.apple_to_cpu, (scores, truth))
    descending, places = scores.sort(descending=True)
    hits = truth[places].double().cumsum(0)
    end = torch.cat([descending[1:] != descending[:-1], truth.new_ones(1)])     # the last of each tie
    counts = torch.arange(1, len(scores) + 1, device=scores.device)[end]
    recall = hits[end] / hits[-1]
    return (recall.diff(prepend=recall.new_zeros(1)) * hits[end] / counts).sum().item()


def attributes(view, only=()):
    """Classes or attributes of a set, those in `only` if any.  Raises Error if there are none.
    -> names (A), and who has them: training part (N, A) bool, test part (M, A) bool."""
    y = view.train.labels
    y_test = view.test.labels
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
    """Goes through labels (N, A), (M, A) by name, except those that all images of a part share."""
    for name, target, truth in zip(names, y.T, y_test.T, strict=True):
        if min(len(target.unique()), len(truth.unique())) < 2:
            print(f"  {name:24} left out: all images of a part are alike in it")
        else:
            yield name, target, truth


def table_invgan_2(runs, args):
    """InvGAN's table 2: what classifiers see in reconstructions by a run and one of --patches. (4.1)
    For each class or attribute (--only), a network of torchvision (--classifier) is trained for
    --epochs on -n training images and on reconstructions of each run, and scored on the test's."""
    if len(runs) != 2:
        raise Error("table invgan-2 takes two runs: one of whole images, and one of --patches")
    view = View(runs[0], args)
    tiler = View(runs[1], changed(args, data="", data_root=""))     # of its own set
    if view.args.get("patches") or not tiler.args.get("patches"):
        raise Error(f"table invgan-2 takes first a run of whole images, then one of --patches, not {' '.join(runs)}")
    view.need(("encode", "generate"))
    check_classifier(view, args)
    some = CELEBA_20 if view.train.source == "celeba" else ()
    names, y, y_test = attributes(view, args.only or some)
    made = dict(originals=lambda x: x, tiles=lambda x: through_tiles(tiler, x),
                reconstructions=lambda x: common.reconstruct(view.model, x))
    chosen = scattered(len(y), args.n or len(y))
    n_test = len(y_test)
    x = common.to_uint8(view.images(torch.arange(min(64, len(view.train))), "train")).cpu()
    seconds = seconds_of_steps(         # of training alone; the rest of the table is short
        view, lambda steps: binary_classifier(x, torch.zeros(len(x)), view.device, args, steps),
        max(args.epochs * len(chosen) // 64, 1), 3 * len(names))
    print(f"{len(names)} labels, a {args.classifier} on each of 3 sets, {args.epochs} epochs of {len(chosen):,} "
          f"images: about {common.duration(seconds)}, and "
          f"{3 * (len(chosen) + n_test) * math.prod(view.shape) / 1e9:.2g} GB of memory (fewer labels by --only, "
          f"images by -n, epochs by --epochs)", flush=True)

    def sets(part, indices):
        size = (len(indices),) + view.shape
        made_of = {kind: torch.empty(size, dtype=torch.uint8) for kind in made}
        for kind, make in made.items():
            for begin, end in progress(f"{part}: {kind}", len(indices), view.batch):
                x = view.images(indices[begin:end], part)
                made_of[kind][begin:end] = common.to_uint8(make(x)).cpu()
        return made_of
    train = sets("train", chosen)
    test = sets("test", torch.arange(n_test))
    precisions = {kind: {scored: [] for scored in made} for kind in made}
    shares = {}
    for name, target, truth in telling(names, y[chosen], y_test):
        shares[name] = truth.float().mean().item()
        for kind, x in train.items():
            net = binary_classifier(x, target, view.device, args)
            for scored, images in test.items():
                scores = torch.cat([logits(net, part, view.device) for part in images.split(256)]).cpu()
                precisions[kind][scored].append(average_precision(scores, truth.bool()))
            print(f"  {name}, trained on {kind}: " + "  ".join(
                f"{scored} {precisions[kind][scored][-1]:.3f}" for scored in made), flush=True)
    if not shares:
        raise Error(f"{view.train.name} has no label that tells its images apart; take another set"
                    + (", or more of -n" if len(chosen) < len(y) else ""))
    out = {scored: {kind: (float(np.mean(precisions[kind][scored])), float(np.std(precisions[kind][scored])))
                    for kind in made} for scored in made}
    lines = []
    for scored, row in out.items():
        paper = dict(zip(made, PAPER["invgan-2"][scored], strict=True))
        lines += [(f"{scored}, paper", paper), (f"{scored}, ours", row)]
    print_columns(lines, made, lambda _: ".2f", 32, 20, "scored on, by what is trained on")
    print(f"Average precision, its mean and deviation over {len(shares)} labels ({', '.join(shares)}), by "
          f"{args.classifier}, {args.epochs} epochs of {len(chosen):,} images, {precision_on(view.device)}, scored on "
          f"{n_test:,}; saying yes to all has {np.mean(list(shares.values())):.2f}; evaluation seed {args.seed}; "
          f"tiles by {tiler.title} ({tiler.protocol}); {view.title} ({view.protocol}); evaluation code "
          f"{common.code_version()}")
    return out


def classifier_net(args):
    """The network of torchvision that --classifier names, with one output."""
    from torchvision.models import get_model
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            return get_model(args.classifier, weights=None, num_classes=1)
    except ValueError as e:
        raise Error(f"--classifier: {e}; name one of torchvision's, such as resnet18") from None


def check_classifier(view, args):
    """Raise Error unless --classifier gives scores of the view's images in training."""
    try:
        logits(classifier_net(args), torch.zeros(2, *view.shape, dtype=torch.uint8), torch.device("cpu"))
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as e:      # nets of another kind
        if common.is_out_of_memory(e):
            raise
        raise Error(f"--classifier {args.classifier} does not take images of {view.shape[2]}x{view.shape[1]} "
                    f"({type(e).__name__}); name another, such as resnet18") from None


def precision_on(device):
    return "bf16" if device.type == "cuda" and common.has_bf16(device) else "fp32"


def logits(net, x, device):
    """Scores of uint8 images (N, C, H, W) on any device, grey or RGB -> (N,) on `device`."""
    with common.autocast(precision_on(device), device)():
        return net(common.to_float(x.to(device, non_blocking=True)).expand(-1, 3, -1, -1)).flatten().float()


def binary_classifier(x, target, device, args, steps=0):
    """A network that tells if target (N,) of uint8 images (N, C, H, W) is 1; batches of 64 (ours)."""
    net = classifier_net(args).to(device, memory_format=torch.channels_last)
    target = target.float().to(device)
    _fit(net, len(x), lambda i: nnf.binary_cross_entropy_with_logits(logits(net, x[i], device), target[i.to(device)]),
        steps or max(args.epochs * len(x) // 64, 1), 64)
    return net


TABLES = {"alae-2": table_alae_2, "alae-3": table_alae_3, "alae-4": table_alae_4, "alae-5": table_alae_5,
          "lia-1": table_lia_1, "lia-2": table_lia_2, "invgan-1": table_invgan_1, "invgan-2": table_invgan_2,
          "invgan-3": table_invgan_3}


# -------------------------------------------------------------------- 10 Figures: images and panels
# A figure draws panels of a run, or a picture (H, W, 3) uint8; those of several runs stand one above
# the other.  A few draw all runs together.  FIGURES says what each needs.

MIXED = (("coarse", 0, 4, 3), ("middle", 4, 8, 2), ("fine", 8, 18, 1))      # first, end layer; rows
EXTRAPOLATION = (0.5, 1.0, 2.0)         # InvGAN's fig. 3 shows three strengths without numbers
PATH_STEPS = 200
PATH_LR = 0.05
WINDOW = 0.5            # deviation of the Gaussian window over codes, in frames; not in InvGAN

# rows: of images (N, C, H, W) in [-1, 1], N equal; labels: a text left of each row; columns: above
# each column; title: above it all.  Empty ones take no room
Panel = namedtuple("Panel", "rows labels columns title", defaults=((), (), ""))


def rows(images):
    """A list of rows of images, each (N, C, H, W) in [-1, 1], N equal -> a picture."""
    return common.grid(torch.cat([row.cpu() for row in images]), len(images[0]))


def blocks(images, labels=(), columns=16):
    """Rows of any length, cut into blocks of so many columns, one below the other -> a panel."""
    columns = min(columns or 16, len(images[0]))
    blank = torch.ones_like(images[0][:1]).expand(-len(images[0]) % columns, -1, -1, -1)
    cut = [torch.cat([row, blank]).split(columns) for row in images]
    return Panel([row for block in zip(*cut, strict=True) for row in block], labels and list(labels) * len(cut[0]))


def wrapped(text, width, font):
    """A text in lines that are no wider than `width` pixels; words that are too long are broken."""
    def lines(n):
        return textwrap.wrap(text.replace("_", " "), n)
    fits = (n for n in range(len(text), 1, -1) if all(font.getlength(part) <= width for part in lines(n)))
    return "\n".join(lines(next(fits, 1)))


def labelled(panel):
    """A panel's picture, with its labels in black on white left of it and above.  Small images are
    enlarged by a whole number, up to about 128 pixels, until a word fits over a column."""
    picture = rows(panel.rows)
    if not (panel.title or any(panel.labels) or any(panel.columns)):
        return picture
    h, w = (side + 2 for side in panel.rows[0].shape[2:])
    size = max(12, h // 16)
    font = ImageFont.load_default(size)
    height = math.ceil(1.25 * size)
    gap = size // 2
    words = [font.getlength(word) + gap for text in panel.columns for word in re.split("[ _]", text)]
    times = min(math.ceil(max(words, default=0) / w), max(round(128 / w), 1))
    times = max(times, math.ceil(height / h) if panel.labels else 1, 1)
    if picture.size * times**2 > 2**28:
        times = 1
    picture = picture.repeat(times, 0).repeat(times, 1)
    h, w = h * times, w * times

    columns = [wrapped(text, w - gap, font) for text in panel.columns]
    labels = []
    for text in panel.labels:                       # in as many lines as the row has room for
        width = 8 * size
        while (label := wrapped(text, width, font)).count("\n") >= max(h // height, 1):
            width += size
        labels.append(label)
    left = max((math.ceil(font.getlength(part)) + 2 * gap for text in labels for part in text.split("\n")), default=0)
    title = height + gap if panel.title else 0
    top = title + max((height * (text.count("\n") + 1) + gap for text in columns), default=0)
    wide = max(left + picture.shape[1], math.ceil(font.getlength(panel.title)) + 2 * gap)
    canvas = Image.new("RGB", (wide, top + picture.shape[0]), "white")
    canvas.paste(Image.fromarray(picture), (left, top))
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, gap), panel.title, 0, font)
    for i, text in enumerate(columns):
        middle = left + times + i * w + w // 2
        draw.multiline_text((middle, top - gap // 2), text, 0, font, "md", height - size, "center")
    for i, text in enumerate(labels):
        draw.multiline_text((left - gap, top + i * h + h // 2), text, 0, font, "rm", height - size, "right")
    return np.asarray(canvas)


def picture_of_panels(panels, labels):
    """A panel, several one above the other with white lines between, or a picture -> a picture."""
    if isinstance(panels, np.ndarray):
        return panels
    panels = [panels] if isinstance(panels, Panel) else panels
    made = [labelled(panel) if labels == "on" else rows(panel.rows) for panel in panels]
    width = max(p.shape[1] for p in made)
    return np.concatenate([np.pad(p, [(0, 4), (0, width - p.shape[1]), (0, 0)], constant_values=255)
                           for p in made])[:-4]


def names_of(views, labels=()):
    """Their labels, by default the methods, and the folder if several have one label."""
    labels = labels or [view.args["label"] for view in views]
    return [f"{label}, {view.name}" if labels.count(label) > 1 else label
            for label, view in zip(labels, views)]


def line(a, b, steps):
    """Straight lines from each a to its b, both (N, d) -> (N, steps, d), ends included."""
    t = torch.linspace(0, 1, steps, device=a.device)[None, :, None]
    return (1 - t) * a[:, None] + t * b[:, None]


def fractions(steps):
    """Where on a `line` each step is, as labels."""
    return [f"{t:.2f}".rstrip("0").rstrip(".") for t in np.linspace(0, 1, steps)]


def bilinear(corners, steps):
    """Corners (4, d): top left, top right, bottom left, bottom right -> (steps, steps, d)."""
    left, right = line(corners[:2], corners[2:], steps)                     # [steps,d]
    return line(left, right, steps)


def tell_errors(views, x, made, names=()):
    """Prints how far each view's reconstructions of these images are, and two floors.  names: of
    ways to codes, in place of the views'."""
    for view, y, name in zip(views, made, names or [view.title for view in views], strict=True):
        wrong = f", {(y.roll(1, 0) - x).square().mean():.4f} of wrong pairs" if len(x) > 1 else ""
        print(f"{name}: MSE {(y - x).square().mean():.4f}  MAE {(y - x).abs().mean():.4f}  floors MSE "
              f"{(x - x.mean((2, 3), keepdim=True)).square().mean():.4f} of each image's mean colour{wrong} "
              f"({len(x)} images of {x.shape[3]}x{x.shape[2]}, fixed noise; {view.protocol})")


def shared_test_images(views):
    """Where in each view's test part the images are that all have and none was trained on."""
    parts = [view.test for view in views]
    ids = parts[0].ids
    for view, part in zip(views, parts):
        if part.source != parts[0].source or part.shape != parts[0].shape:
            raise Error(f"{views[0].run} and {view.run} have no test images in common ({parts[0].name} "
                        f"{'x'.join(map(str, parts[0].shape))}, {part.name} {'x'.join(map(str, part.shape))}); "
                        f"compare runs of one data set and resolution")
        ids = ids[np.isin(ids, part.ids)]
        if view.train.source == part.source:
            ids = ids[~np.isin(ids, view.train.ids)]
    if not len(ids):
        raise Error(f"the runs' test parts have no image in common that none of them was trained on "
                    f"({', '.join(v.protocol.split(',')[0] for v in views)}); compare runs of one split")
    orders = [np.argsort(part.ids) for part in parts]
    return [torch.from_numpy(order[np.searchsorted(part.ids, ids, sorter=order)]) for part, order in zip(parts, orders)]


def real_images(views, args, n, choose=None, most=None):
    """Real images (N, C, H, W) for all views: --images (of a folder at `most` the first ones), else
    n test images, or those that are chosen."""
    if args.images:
        shape = views[0].shape
        if any(view.shape != shape for view in views):
            raise Error("the runs' images differ in size or colour, so they cannot share --images; draw them apart")
        pixels = data.read_images(args.images, shape[0], shape[1:], most)
        for view in views:
            tell_unusual(view, pixels.float().mean((1, 2, 3)))
        return common.to_float(pixels).to(views[0].device)
    shared = shared_test_images(views)[0]
    return views[0].images(shared[choose(views[0], shared) if choose else slice(n)])


def first(many):
    """A figure's images: the first -n of --images (default: all), else of the test images (`many`)."""
    return lambda views, args: real_images(views, args, args.n or many, most=args.n or None)[:args.n or None]


def pairs(many):
    """A figure's images in pairs: the first 2 -n of --images (default: all), else of the test images
    (`many`)."""
    def choose(views, args):
        x = real_images(views, args, 2 * (args.n or many), most=2 * args.n or None)
        x = x[:2 * args.n or None] if args.images else x[:len(x) // 2 * 2]
        if len(x) % 2 or not len(x):
            raise Error(f"figure {args.name} takes pairs of images, not {len(x)}; name an even number by --images")
        return x
    return choose


def how_many(args, x):
    return f"--images names {len(x)}" if args.images else f"there are {len(x)} test images"


def one_of_four_classes(view, indices):
    """Where in `indices` the first images of four classes are; else the first four."""
    labels = view.test.labels[indices] if view.has_classes else torch.arange(len(indices))
    places = [(labels == c).nonzero()[0].item() for c in labels.unique()[:4]]
    return places if len(places) == 4 else list(range(min(4, len(indices))))


def of_any_size(views, args):
    """A figure's images: --images (-n of a folder) or --frames, at --resolution or the first one's
    size; else the first -n test images of the one run, whole if it has --patches."""
    view = views[0]
    w, h = data.parse_resolution(args.resolution) or (0, 0)
    if paths := [args.frames] if args.frames else args.images:
        most = sys.maxsize if args.frames else args.n or 4
        x = data.read_images(paths, view.shape[0], (h, w) if h else None, most)
    elif h:
        raise Error("--resolution is of --images or --frames; name some, or leave it out")
    elif len(views) > 1:
        raise Error("several runs have no test images of one size; name some by --images")
    else:
        whole = getattr(view.test, "images", view.test)
        x = whole.take(torch.arange(min(args.n or 4, len(whole))))
    return common.to_float(x).to(view.device)


# --------------------------------------------------------------------- 11 Figures: codes and styles

def truncate(w, mean_w, psi, layers, num_layers):
    """mean_w + psi (w - mean_w) in the first `layers`, (N, num_layers, nw).   (StyleGAN, app. B)"""
    if w.ndim == 2:
        w = w[:, None].expand(-1, num_layers, -1)
    scale = torch.where(torch.arange(num_layers, device=w.device) < layers, psi, 1.0)
    return mean_w + scale[:, None] * (w - mean_w)


def draw_samples(view, _, args):
    """Images of codes from the prior, perhaps with --truncation (ALAE fig. 6, F-AAE fig. 8)."""
    columns = args.columns or (8 if len(args.runs) == 1 else 16)
    w = view.model.map(view.codes(args.n or 64, args.seed))
    if args.truncation != 1:
        view.need(["mean_w"])
        w = truncate(w, view.model.mean_w, args.truncation, args.truncation_layers, view.model.num_layers)
    title = view.args["label"] + (f", truncation {args.truncation:g}" if args.truncation != 1 else "")
    return blocks([view.made(w)], columns=columns)._replace(title=f"{title}, codes of seed {args.seed}")


def reconstructed_by(views):
    return names_of(views) if len(views) > 1 else ["reconstruction"]


def with_reconstructions(views, images, labels, args):
    """Rows of images, and the reconstructions of the last row by each view -> a panel."""
    made = [common.reconstruct(view.model, images[-1]) for view in views]
    return blocks(images + made, labels + reconstructed_by(views), args.columns)


def draw_reconstructions(views, x, args):
    """Test images, and under each row their reconstructions (ALAE fig. 3, F-AAE figs. 5-7)."""
    return with_reconstructions(views, [x], ["original"], args)


def draw_variants(views, x, args):
    """Test images, and under each row reconstructions and differences (InvGAN 4.4, fig. 5)."""
    made = [common.reconstruct(view.model, x) for view in views]
    tell_errors(views, x, made)
    images, labels = [x], ["original"]
    for y, name in zip(made, reconstructed_by(views), strict=True):
        images += [y, (x - y).abs() - 1]                                            # -1 is black
        labels += [name, "difference"]
    return blocks(images, labels, args.columns)


def draw_morph(view, x, args):
    """Decoded bilinear mixtures of the codes of four real images (F-AAE eq. 5, fig. 9)."""
    if len(x) != 4:
        raise Error(f"figure morph takes 4 images, one a corner, and {how_many(args, x)}")
    return Panel([view.made(w) for w in bilinear(view.encoded(x), args.n or 7)], title=view.args["label"])


def ways_to_codes(views, x, args):
    """(name, view, w) of each way to codes w of images x: a run's encoder, and with --steps MSE
    optimisation, over a run that lacks an encoder, or else, as the last way, over the first run."""
    encode = [view.can(["encode"]) for view in views]
    if args.steps and all(encode):
        views, encode = views + views[:1], encode + [False]
    names = [view.args["label"] if own else "MSE optimisation" for view, own in zip(views, encode)]
    return [(name, view, view.encoded(x) if own else optimised(view, x, args))
            for name, view, own in zip(names_of(views, names), views, encode, strict=True)]


def optimised(view, x, args):
    """Codes w of images x after --steps steps of Adam on the mean square error of pixels."""
    def codes(x, steps):
        return torch.cat([optimise(view, part, "w", pixel_distance, steps, PATH_LR, seed=args.seed,
                                   begin=i * view.batch)[1] for i, part in enumerate(x.split(view.batch))])
    tell_time(f"{view.title}: MSE optimisation in w of {len(x)} images, {args.steps} steps of Adam, lr {PATH_LR}",
              seconds_of_steps(view, lambda steps: codes(x[:view.batch], steps), args.steps,
                               math.ceil(len(x) / view.batch)))
    return codes(x, args.steps)


def draw_models(views, x, args):
    """An image a row, and its reconstruction by each model a column (LIA figs. 3, 14)."""
    ways = ways_to_codes(views, x, args)
    made = [view.made(w).clamp(-1, 1) for _, view, w in ways]
    names = [name for name, _, _ in ways]
    tell_errors([view for _, view, _ in ways], x, made, names)
    return Panel(list(torch.stack([x] + made, 1)), columns=["original"] + names)


def draw_interpolation(views, x, args):
    """Pairs of real images joined in w, and in z if the map has an inverse (LIA figs. 6, 11, 12), a
    panel a run; or, by --steps, in w alone, with a row a model (fig. 9)."""
    steps = args.columns or 7

    def panel(ways, title=""):          # ways: (label, view, a path of codes for each pair)
        return Panel([torch.cat([x[2 * i:2 * i + 1], view.made(path[i]), x[2 * i + 1:2 * i + 2]])
                      for i in range(len(x) // 2) for _, view, path in ways],
                     [label for label, _, _ in ways] * (len(x) // 2), ["image"] + fractions(steps) + ["image"], title)
    if args.steps:
        return panel([(name, view, line(w[0::2], w[1::2], steps)) for name, view, w in ways_to_codes(views, x, args)])
    panels = []
    for view, name in zip(views, names_of(views), strict=True):
        w = view.encoded(x)
        ways = [("w", view, line(w[0::2], w[1::2], steps))]
        if view.can(["unmap"]):
            z = [view.model.unmap(pair).split(1) for pair in w.split(2)]
            ways.insert(0, ("z", view, [view.model.map(line(*pair, steps)[0]) for pair in z]))
        print(f"{view.name}: rows of each pair: " + ", ".join(f"in {space}" for space, _, _ in ways))
        panels.append(panel(ways, name))
    return panels


def joined_samples(view, w, many):
    """Pairs of indices of samples w: of one digit each, or any if there are no classes."""
    if view.missing or not view.has_classes:
        print(f"{view.name}: any two samples are joined, because there are no classes ({view.missing or 'unlabelled'})")
        return torch.arange(2 * many).view(-1, 2).tolist()
    few = scattered(len(view.train), 5000)
    known = torch.cat([view.model.features(view.images(i, "train"))[1] for i in few.split(view.batch)])
    made = torch.cat([view.model.features(x)[1] for x in view.made(w).split(view.batch)])
    digit = view.train.labels[few][torch.cdist(made, known).argmin(1).cpu()]
    found = [(digit == c).nonzero().flatten()[:2].tolist() for c in digit.unique()]
    return [pair for pair in found if len(pair) == 2][:many]


def draw_traversal(view, _, args):
    """Pairs of samples of one digit, joined in Z (odd rows) and in W (ALAE fig. 4).  Real images
    have no z.  A sample's digit is the nearest training image's, by long features."""
    many = args.n or 5
    steps = args.columns or 12
    if steps == 1:
        raise Error("figure traversal compares neighbours on a line; pass --columns 2 or more")
    z = view.codes(max(200, 2 * many), args.seed)
    w = view.model.map(z)
    joined = joined_samples(view, w, many)
    if 0 < len(joined) < many:
        print(f"{view.name}: {len(joined)} pairs, not {many}: one a class, of those that two of {len(z)} samples show")
    if not joined:
        raise Error(f"figure traversal joins samples of one class, and no two of {len(z)} show one; pass -n "
                    f"{len(z) // 2 + 1} or more")
    a, b = map(list, zip(*joined))
    if torch.equal(w, z):
        print(f"{view.name}: w is z here ({view.args['label']} has no mapping), so both rows of a pair are one")
    along_z = view.model.map(line(z[a], z[b], steps).flatten(0, 1)).unflatten(0, (len(a), steps))
    along_w = line(w[a], w[b], steps)
    picture = [view.made(path) for pair in zip(along_z, along_w) for path in pair]
    for name, paths in (("Z", picture[0::2]), ("W", picture[1::2])):
        jumps = torch.stack([per_image((p[1:] - p[:-1]).square()).sqrt() for p in paths])
        print(f"{view.name}: along {name} the largest step between neighbours is {jumps.amax(1).mean():.3f}, "
              f"the mean step {jumps.mean():.3f} (root mean square over pixels in [-1, 1], {len(paths)} pairs)")
    return Panel(picture, ["Z", "W"] * len(a), fractions(steps), view.args["label"])


def style_layers(view):
    """How many layers that have grown read a style.  Raises Lacks if all layers read one w."""
    if view.model.num_layers == 1:
        raise Lacks(f"{view.run} ({view.args['backbone']}) reads one w, with no styles to mix; take a stylegan run (of "
                    f"ReStyle one with --codes w)")
    return 2 * view.growing.top + 2


def draw_mixing(view, _, args):
    """Style mixing (ALAE fig. 9): sources on top, destinations on the left, and these with some
    styles of the sources.  Real images, or samples with --generated."""
    used = style_layers(view)
    bands = [(name, range(begin, min(end, used)), many) for name, begin, end, many in MIXED if begin < used]
    n = args.n or 5
    m = sum(many for _, _, many in bands)
    if args.generated:
        w = view.model.map(view.codes(n + m, args.seed))
        x = view.made(w)
    else:
        x = real_images([view], args, n + m, most=n + m)[:n + m]
        if len(x) < n + m:
            raise Error(f"figure mixing takes {n + m} images, {n} sources (-n) and {m} destinations, and "
                        f"{how_many(args, x)}")
        w = view.encoded(x)
    picture = [torch.cat([torch.ones_like(x[:1]), x[:n]])]
    labels = [""]
    for name, band, many in bands:
        for _ in range(many):
            destination = n + len(labels) - 1
            mixed = w[destination, None, None].expand(n, view.model.num_layers, -1).clone()
            mixed[:, band] = w[:n, None]
            picture.append(torch.cat([x[destination][None], view.made(mixed)]))
            labels.append(f"{name} styles")
    print(f"{view.name}: rows from the second on: " + ", ".join(
        f"{many} with {name} styles (layers {band[0]}-{band[-1]}) of the sources" for name, band, many in bands))
    return Panel(picture, labels, ["destination"] + ["source"] * n, view.args["label"])


def draw_styles(view, x, args):
    """The first 0, 1, 2 ... styles of one image in another, between them (InvGAN figs. 2, 8)."""
    used = style_layers(view)
    print(f"columns: an image, its reconstruction with the first 0 ... {used} styles of another, the other")
    taken = torch.ones(used + 1, view.model.num_layers, dtype=torch.bool, device=view.device).tril(-1)
    w = view.encoded(x)
    return Panel([torch.cat([a_x[None], view.made(torch.where(taken[:, :, None], b, a)), b_x[None]])
                  for a, b, a_x, b_x in zip(w[0::2], w[1::2], x[0::2], x[1::2], strict=True)],
                 columns=["image"] + [str(i) for i in range(used + 1)] + ["other"], title=view.args["label"])


def read_normal(path, view):
    """A boundary's unit normal, (nw,), from a .npy of (nw,) or (1, nw)."""
    try:
        normal = torch.from_numpy(np.load(path, allow_pickle=False)).float().flatten()
    except Exception as e:                      # np.load lets through whatever the damage leads to
        raise Error(f"{path} is no array of numbers ({type(e).__name__}); name a .npy, such as `eval.py boundary` "
                    f"makes") from None
    if not 0 < normal.norm() < math.inf:
        raise Error(f"{path} is no direction, because its length is {normal.norm():g}; make it again by eval.py "
                    f"boundary")
    if len(normal) != view.model.nw:
        raise Error(f"{path} holds {len(normal)} numbers, and {view.run} has codes of {view.model.nw}; take a boundary "
                    f"of this run")
    return (normal / normal.norm()).to(view.device)


def draw_manipulate(view, x, args):
    """Real images, or --codes, a row each, moved along normals: along one --boundary by -5 to 5, as
    LIA's code, along several by 5 each (figs. 4, 17), or by what --strength says."""
    if not args.boundary:
        raise Error("figure manipulate moves codes along a normal; name one by --boundary FILE.npy "
                    "(`eval.py boundary RUN` makes them)")
    if args.codes and args.images:
        raise Error("figure manipulate moves --images or --codes; leave one of them out")
    if args.force and not args.codes:
        raise Error("--force is for --codes; leave it out")
    if args.columns and (args.strength or len(args.boundary) > 1):
        raise Error("--columns divides -5 ... 5 along one --boundary; leave it out with several, and with --strength")
    w = (read_codes(args.codes, view, force=args.force)[0][:args.n or 4].to(view.device) if args.codes else
         view.encoded(x))
    steps = args.strength or ([5.0] if len(args.boundary) > 1 else torch.linspace(-5, 5, args.columns or 8).tolist())
    normals = [read_normal(path, view) for path in args.boundary]
    moves = [step * normal for normal in normals for step in steps]
    moves = torch.stack([torch.zeros_like(normals[0])] + moves)
    moves = moves if w.ndim == 2 else moves[:, None]
    picture = [view.made(code + moves) for code in w]
    names = [Path(path).stem for path in args.boundary]
    columns = ["reconstruction"] + [f"{name}: {step:+.2g}" for name in names for step in steps]
    if not args.codes:
        picture = [torch.cat([image[None], row]) for image, row in zip(x, picture, strict=True)]
        columns = ["original"] + columns
    return Panel(picture, stems(args, len(w)), columns, view.args["label"])


def stems(args, n):
    """Names of the files that --images names, if it names n, as labels of rows."""
    return [Path(path).stem for path in args.images] if len(args.images) == n else []


def steps_shown(steps):
    """Up to 9 steps of a path: 0, the last, and between them ever fewer."""
    return sorted({0, steps} | {round(steps ** (i / 7)) for i in range(8)})


def draw_path(view, x, args):
    """Optimisation in z (upper rows) and in w (lower), step by step (LIA fig. 13)."""
    tell_time(f"{view.name}: optimisation in z and in w", seconds_of_steps(
        view, lambda steps: optimise(view, x, "z", pixel_distance, steps, PATH_LR), PATH_STEPS, 2))
    keep = steps_shown(PATH_STEPS)
    both = [optimise(view, x, space, pixel_distance, PATH_STEPS, PATH_LR, seed=args.seed, keep=keep)[2]
            for space in ("z", "w")]
    return Panel([torch.cat([step[i:i + 1] for step in path + [x]]) for i in range(len(x)) for path in both],
                 ["z", "w"] * len(x), [f"step {step}" for step in keep] + ["original"], view.args["label"])


# -------------------------------------------------------------- 12 Figures: edits, tiles, gradients

def draw_inpaint(views, x, args):
    """Test images without a random square of a third of their smaller side (ours), reconstructed."""
    rng = np.random.RandomState(args.seed)
    side = min(x.shape[2:]) // 3
    cut = x.clone()
    for image in cut:
        top, left = (rng.randint(0, length - side + 1) for length in x.shape[2:])
        image[:, top:top + side, left:left + side] = 0
    return with_reconstructions(views, [x, cut], ["original", "without a square"], args)


def draw_merge(views, x, args):
    """The right half (or what is white in --mask) of one image in another, reconstructed."""
    a = x[0::2]
    b = x[1::2]
    mask = torch.arange(a.shape[3], device=a.device) >= a.shape[3] // 2
    if args.mask:
        mask = common.to_float(data.read_images([args.mask], 1, a.shape[2:], 1)).to(a.device) > 0
        if mask.all() or not mask.any():
            raise Error(f"{args.mask} is all {'white' if mask.any() else 'black'} (what is transparent is white); make "
                        f"it white on black")
    return with_reconstructions(views, [a, b, torch.where(mask, b, a)], ["first", "second", "merged"], args)


def draw_edit(views, x, args):
    """Files that were edited by hand (--images), and their reconstructions."""
    if not args.images:
        raise Error("figure edit reconstructs what you have edited; name the files by --images")
    return with_reconstructions(views, [x], ["edited"], args)


def untile(tiles, columns):
    """`tile` backwards: (N, n, C, size, size) -> (N, C, n / columns * size, columns * size)."""
    return tiles.unflatten(1, (-1, columns)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def codes_of_tiles(view, x):
    """Images (N, c, H, W), grey or RGB -> the codes of their tiles, (N, n, nw)."""
    view.need(("encode", "generate"))
    c, size, width = view.model.image_shape
    h, w = x.shape[2:]
    if size != width:
        raise Error(f"{view.run} makes images of {width}x{size}; tiles are square, so take another run")
    if h % size or w % size:
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


def draw_tiles(views, x, args):
    """Images of any size, their reconstructions by tiles, and the differences (InvGAN fig. 4)."""
    made = [through_tiles(view, x) for view in views]
    tell_errors(views, x, made)
    labels = [name for name in names_of(views) for _ in x]
    return Panel([torch.stack(row) for y in made for row in zip(x, y, (x - y).abs() - 1)],
                 labels if len(views) > 1 else stems(args, len(x)), ["original", "reconstruction", "difference"])


def draw_deblur(view, x, args):
    """De-blurring: w + a (w - w blurred) of an image halved and enlarged (InvGAN 4.3, fig. 3).  The
    paper's text has the opposite sign, which blurs.  Half, bicubic, a Gaussian of 1 pixel: ours."""
    from torchvision.transforms.functional import gaussian_blur
    low = nnf.interpolate(nnf.avg_pool2d(x, 2), size=x.shape[2:], mode="bicubic").clamp(-1, 1)
    w = codes_of_tiles(view, low)
    w_blurred = codes_of_tiles(view, gaussian_blur(low, 7, 1.0))
    made = {"original": x, "enlarged": low, "reconstructed": from_tiles(view, w, x)}
    made.update({f"a = {a:g}": from_tiles(view, w + a * (w - w_blurred), x) for a in EXTRAPOLATION})
    print(f"{view.name}: sharpness (variance of the Laplacian over the original's): " + "  ".join(
        f"{name} {sharpness(y).mean() / sharpness(x).mean():.3f}" for name, y in made.items() if y is not x))
    return Panel(list(torch.stack(list(made.values()), 1)), stems(args, len(x)), list(made), view.args["label"])


def between(codes, n):
    """Codes of frames (T, ...) -> of (T - 1) n + 1, by a Gaussian window.   (InvGAN 4.3)"""
    at = torch.arange((len(codes) - 1) * n + 1, device=codes.device)[:, None] / n
    apart = at - torch.arange(len(codes), device=codes.device)
    weights = torch.exp(-apart.square() / (2 * WINDOW**2))
    return torch.einsum("st,t...->s...", weights / weights.sum(1, keepdim=True), codes)


def draw_frames(views, _, args):
    """Frames of a video (--frames) by tiles, and -n times as many from means of neighbours' codes
    (InvGAN fig. 6); also written as NAME.gif, and frame by frame into a folder NAME."""
    if not args.frames or len(views) > 1:
        raise Error("figure frames takes one run, and --frames, a folder of images or a GIF")
    view = views[0]
    times = args.n or 4
    own = not args.out                          # the run's own folder, which this command alone fills
    args.out = Path(args.out or view.run / "figures" / "frames.png").with_suffix(".png")
    folder = args.out.with_suffix("")
    film = args.out.with_suffix(".gif")
    if Path(args.frames).resolve() in (film.resolve(), folder.resolve(), folder.resolve().parent):
        raise Error(f"--out {args.out} would write over {args.frames}; name another")
    older = list(folder.glob("[0-9][0-9][0-9][0-9].png"))
    if older and not own:
        raise Error(f"{folder} holds pictures already; name another --out, or delete it")
    x = of_any_size(views, args)
    if len(x) < 2:
        raise Error(f"{args.frames} has one frame, and interpolation needs two or more")
    codes = codes_of_tiles(view, x)
    y, many = (from_tiles(view, w, x[:1]) for w in (codes, between(codes, times)))
    folder.mkdir(parents=True, exist_ok=True)
    for old in older:
        old.unlink()
    frames = [common.grid(frame[None], 1) for frame in many]
    write_pictures((folder / f"{i:04d}.png", frame) for i, frame in enumerate(frames))
    print(f"{write(film, film_of_pictures(frames, 'gif', 80))}: {len(many)} frames, also in {folder}\n"
          f"rows: {len(x)} frames, reconstructed, and with {times - 1} more between neighbours")
    tell_errors(views, x, [y])
    return [Panel([t[:16]], title=title) for t, title in ((x, "frames"), (y, "reconstructions"),
                                                          (many, f"{times} times as many"))]


def volatility(gradients):
    """Deviation of log mean |gradient| about its running median of 101, in a run's last half."""
    g = np.log(gradients[len(gradients) // 2:])
    window = min(101, len(g) // 2 * 2 - 1)
    median = np.median(np.lib.stride_tricks.sliding_window_view(g, window), axis=1)
    return (g[window // 2:window // 2 + len(median)] - median).std()


def read_gradients(view):
    """gradients.csv of a run as an array with named columns."""
    path = view.run / "gradients.csv"
    if not path.exists():
        raise Error(f"{view.run} has no gradients.csv; train stage 2 of lia.py with --log-gradients")
    try:
        with warnings.catch_warnings(action="ignore"):              # the error below says it
            values = np.genfromtxt(path, delimiter=",", names=True, invalid_raise=False)
        values = np.atleast_1d(values)[["kimg", "first", "middle", "last", "L_rec"]]
    except (OSError, ValueError, LookupError, TypeError, StopIteration) as e:
        raise Error(f"{path} is not what --log-gradients writes ({type(e).__name__}); train again with it") from None
    if len(values) < 3:
        raise Error(f"{path} has {len(values)} iterations, too few for a curve; train on with --resume {view.run}")
    return values


def draw_gradients(views, _, args):
    """Mean |gradient| of three layers of the encoder, and its loss (LIA figs. 7, 18)."""
    from matplotlib.figure import Figure as Plot
    panel = Plot(figsize=(16, 4), layout="constrained")
    axes = panel.subplots(1, 4)
    for view in views:
        values = read_gradients(view)
        for ax, name in zip(axes, ("first", "middle", "last", "L_rec"), strict=True):
            ax.plot(values["kimg"], values[name], linewidth=0.3, label=f"{view.args['label']} ({view.name})")
            ax.set_title(name)
            ax.set_yscale("log")
            ax.set_xlabel("kimg")
        v = {name: volatility(values[name]) for name in ("first", "middle", "last")}
        layers = "  ".join(f"{name} {value:.4f}" for name, value in v.items())
        few = "   too few iterations to compare" if len(values) < 2000 else ""
        print(f"{view.title}: volatility {np.mean(list(v.values())):.4f}   ({layers}; {len(values):,} iterations; "
              f"{view.protocol}){few}")
    for handle in axes[0].legend().get_lines():
        handle.set_linewidth(2)
    return np.asarray(Image.open(io.BytesIO(common.bytes_of(panel.savefig, format="png", dpi="figure"))).convert("RGB"))


# -------------------------------------------------------------------------- 13 The table of figures

# draw(view, images, args) -> panel, panels or picture, or of all views if `together`; images(views,
# args), or None if it takes none; legend: what is where
Figure = namedtuple("Figure", "draw needs images legend together", defaults=(("encode",), None, "", False))
FIGURES = {
    "samples": Figure(draw_samples, PRIOR),
    "reconstructions": Figure(draw_reconstructions, images=first(32), together=True),
    "models": Figure(draw_models, images=first(8), together=True),
    "traversal": Figure(draw_traversal, ("prior", "map", "features")),
    "morph": Figure(draw_morph, images=lambda views, args: real_images(views, args, 4, one_of_four_classes)),
    "mixing": Figure(draw_mixing, images=lambda *_: None),
    "interpolation": Figure(draw_interpolation, images=pairs(4), together=True),
    "manipulate": Figure(
        draw_manipulate, images=lambda views, args: None if args.codes else first(4)(views, args),
        legend="columns: original (none with --codes), reconstruction, then the code moved along each unit normal"),
    "path": Figure(
        draw_path, PRIOR, first(4), legend=f"columns: after {', '.join(map(str, steps_shown(PATH_STEPS)))} "
        f"steps of Adam, lr {PATH_LR}, then the original"),
    "gradients": Figure(draw_gradients, (), together=True),
    "styles": Figure(draw_styles, images=pairs(4)),
    "variants": Figure(draw_variants, images=first(16), together=True,
                       legend="rows: images, then reconstructions and differences of each run"),
    "inpaint": Figure(draw_inpaint, images=first(16), together=True,
                      legend="rows: images, the same without a square, reconstructions of each run"),
    "merge": Figure(draw_merge, images=pairs(16), together=True,
                    legend="rows: first images, second images, both merged, reconstructions of each run"),
    "edit": Figure(draw_edit, images=first(16), together=True,
                   legend="rows: edited images, reconstructions of each run"),
    "tiles": Figure(draw_tiles, images=of_any_size, together=True,
                    legend="columns: images, reconstructions, differences"),
    "deblur": Figure(
        draw_deblur, images=of_any_size,
        legend="columns: images, half their size enlarged, reconstructed, and w + a (w - w blurred), a = "
        + ", ".join(f"{a:g}" for a in EXTRAPOLATION)),
    "frames": Figure(draw_frames, together=True),
}


# ---------------------------------------------------------- 14 Every table and figure of the papers

# A run that an item takes.  words: what it is; fits(view); many: all that fit, not the first alone
Want = namedtuple("Want", "words fits many", defaults=(False,))


def run_of(*labels, many=False, **settings):
    """A run with one of the papers' names (labels), and with settings, as `common.holds` reads them."""
    flags = " ".join(common.flag(name) + ("" if value is True else f" {value}") for name, value in settings.items())
    return Want(" or ".join(labels) + (f" ({flags})" if flags else ""),
                lambda view: common.holds(dict(settings, label=labels), view.args), many)


def run_with(words, abilities):
    """All runs whose model has these methods."""
    return Want(f"any method that has {words}", lambda view: view.can(abilities), True)


# A table or figure of a paper.  title: as the command has it; shows: what; runs: a `Want` each;
# draws: the figure in FIGURES; paper: its data; needs: "images" of the runs' set, its "labels",
# what "features" or "paths" take; flags: more of the command, words in capitals are files of the
# user's own; also: more commands; note: if there is nothing to run, why
Item = namedtuple("Item", "title shows runs draws paper needs flags also note",
                  defaults=((), "", "", "images", "", (), ""))
MLP_ALAE = run_of("ALAE", backbone="mlp")
STYLE_ALAE = run_of("StyleALAE")
LIA_2 = run_of("LIA", stage="2")
LIA_STYLE = run_of("LIA", stage="2", backbone="stylegan")
ENCODED = run_of("Encoded StyleGAN", stage="2", mapping="mlp")
ALI, AGE, BIGAN, AAE = (run_of(name, objective=name.lower()) for name in ("ALI", "AGE", "BiGAN", "AAE"))
FAAE = run_of("F-AAE")
GRADIENTS = (run_of("LIA", stage="2", log_gradients=True), run_of("VAE", inference="vae", log_gradients=True))
FIVE = (LIA_2, ALI, AGE, ENCODED)
INVGAN = run_of("InvGAN")
INVGAN_STYLE = run_of("InvGAN", backbone="stylegan")
TILES = run_of("InvGAN", patches=True)
EDITS = ("figure inpaint RUN", "figure merge RUN", "figure edit RUN --images EDITED")
BY_PRIOR = run_with("a prior", PRIOR)
BY_BOTH = run_with("a prior and an encoder", PRIOR + ("encode",))
ITEMS = [
    Item("table alae-1", "what autoencoders match, and where", note="words, nothing to run"),
    Item("table alae-2", "accuracy (%) of 1-NN and SVM on short and long features",
         (run_of("ALAE", "BiGAN", "LR", "JLR", "AE l1", "AE l2", data="mnist", many=True),), paper="MNIST",
         needs="labels"),
    Item("table alae-3", "FID of generations and reconstructions; all but StyleALAE quoted", (BY_BOTH,),
         paper="FFHQ at 1024 px, LSUN bedroom at 256 px", needs="features"),
    Item("table alae-4", "PPL, full and end, in Z and W; StyleGAN quoted", (BY_PRIOR,), paper="FFHQ at 1024 px",
         needs="paths"),
    Item("table alae-5", "FID and PPL; all but StyleALAE quoted", (BY_PRIOR,), paper="CelebA-HQ at 256 px",
         needs="features paths"),
    Item("figure alae-1", "architecture of ALAE", note="diagram"),
    Item("figure alae-2", "architecture of StyleALAE", note="diagram"),
    Item("figure alae-3", "reconstructions: images, BiGAN's, ALAE's", (BIGAN, MLP_ALAE), "reconstructions", "MNIST"),
    Item("figure alae-4", "samples of one digit joined in Z and in W", (MLP_ALAE,), "traversal", "MNIST", ""),
    Item("figure alae-5", "reconstructions", (STYLE_ALAE,), "reconstructions", "FFHQ at 1024 px"),
    Item("figure alae-6", "generations", (STYLE_ALAE,), "samples", "FFHQ at 1024 px", ""),
    Item("figure alae-7", "generations and reconstructions", (STYLE_ALAE,), "reconstructions", "LSUN bedroom at 256 px",
         also=("figure samples RUN",)),
    Item("figure alae-8", "reconstructions; PIONEERs' are quoted", (STYLE_ALAE,), "reconstructions",
         "CelebA-HQ at 256 px"),
    Item("figure alae-9", "style mixing of real images", (STYLE_ALAE,), "mixing", "celebrities' photos: --images"),
    Item("table lia-1", "FID, SWD, MSE of reconstructions", (run_with("an encoder", ["encode"]),), paper="FFHQ",
         needs="features levels", flags="--optimise 100"),
    Item("table lia-2", "FID of samples", (BY_PRIOR,), paper="FFHQ, LSUN cat, car, bedroom", needs="features"),
    Item("figure lia-1", "modules of LIA", note="diagram"),
    Item("figure lia-2", "two-stage training", note="diagram"),
    Item("figure lia-3", "reconstructions of five models", FIVE, "models", "FFHQ", flags="--steps 300"),
    Item("figure lia-4", "faces moved along boundaries: glass, pose, gender, smile, age", (LIA_2,), "manipulate",
         "FFHQ", flags="--boundary BOUNDARIES"),
    Item("figure lia-5", "reconstructions", (LIA_2,), "reconstructions", "LSUN cat, bedroom, car"),
    Item("figure lia-6", "interpolation of real images", (LIA_2,), "interpolation", "LSUN"),
    Item("figure lia-7", "gradients and losses of LIA's encoder and a VAE's", GRADIENTS, "gradients", "FFHQ", ""),
    Item("figure lia-8", "generations of StyleGAN and LIA",
         (run_of("StyleGAN", "StyleGAN (Wasserstein)", mapping="mlp", stage="1"), run_of("LIA")), "samples",
         "FFHQ, LSUN", ""),
    Item("figure lia-9", "interpolation of real images, by f and by MSE optimisation; Glow's row is quoted", (LIA_2,),
         "interpolation", "FFHQ", flags="--steps 300"),
    Item("figure lia-10", "style mixing of real images", (LIA_STYLE,), "mixing", "FFHQ"),
    Item("figure lia-11", "interpolation of real images", (LIA_2,), "interpolation", "FFHQ, LSUN"),
    Item("figure lia-12", "interpolation in z and in w", (run_of("LIA", stage="2", mapping="flow"),), "interpolation",
         "FFHQ, LSUN"),
    Item("figure lia-13", "steps of optimisation in z and in w", (run_of("LIA"),), "path", "FFHQ"),
    Item("figure lia-14", "reconstructions of five models", FIVE, "models", "FFHQ", flags="--steps 300"),
    Item("figure lia-15", "reconstructions", (LIA_2,), "reconstructions", "LSUN"),
    Item("figure lia-16", "reconstructions", (LIA_2,), "reconstructions", "LSUN"),
    Item("figure lia-17", "faces moved along boundaries", (LIA_2,), "manipulate", "FFHQ",
         flags="--boundary BOUNDARIES"),
    Item("figure lia-18", "gradients of the encoders' middle layer", GRADIENTS, "gradients", "FFHQ", ""),
    Item("figure lia-19", "layers of LIA", note="diagram"),
    Item("table invgan-1", "FID of samples, reconstructions, midpoints; MAE; seconds; all but InvGAN quoted",
         (BY_BOTH,), paper="MNIST, CelebA and FFHQ at 128 px", needs="features", flags="--optimise 100"),
    Item("table invgan-2", "average precision of classifiers that see reconstructions",
         (Want("InvGAN", lambda view: INVGAN.fits(view) and not view.args.get("patches")), TILES),
         paper="CelebA at 128 px, ImageNet", needs="attributes"),
    Item("table invgan-3", "FID of ReStyle's reconstructions by iteration; quoted but for ours",
         (Want("ReStyle (invgan.py --restyle RUN)", lambda view: "generator" in view.args, True),),
         paper="FFHQ", needs="features"),
    Item("figure invgan-1", "training of InvGAN", note="diagram"),
    Item("figure invgan-2", "style mixing, in-painting, merging, editing", (INVGAN_STYLE,), "styles", "FFHQ at 128 px",
         also=EDITS),
    Item("figure invgan-3", "de-blurring by extrapolated codes of tiles", (TILES,), "deblur", "--images of FFHQ"),
    Item("figure invgan-4", "reconstructions tile by tile, and differences", (TILES,), "tiles",
         "ImageNet, --images of FFHQ"),
    Item("figure invgan-5", "reconstructions and differences of three variants",
         (run_of("InvGAN naive", variant="naive"), run_of("InvGAN augmented", variant="augmented"), INVGAN),
         "variants", "MNIST"),
    Item("figure invgan-6", "a video tile by tile, and frames between", (TILES,), "frames", "UCF101", "",
         "--frames FRAMES"),
    Item("figure invgan-7", "reconstructions", (INVGAN,), "reconstructions", "CelebA at 128 px"),
    Item("figure invgan-8", "style mixing, in-painting, merging, editing", (INVGAN_STYLE,), "styles",
         "CelebA at 128 px", also=EDITS),
    Item("figure faae-1", "framework of F-AAE", note="diagram"),
    Item("figure faae-2", "framework of a GAN", note="diagram"),
    Item("figure faae-3", "framework of AAE", note="diagram"),
    Item("figure faae-4", "framework of BiGAN", note="diagram"),
    Item("figure faae-5", "reconstructions of AAE and F-AAE", (AAE, FAAE), "reconstructions", "CIFAR-10"),
    Item("figure faae-6", "reconstructions of AAE and F-AAE", (AAE, FAAE), "reconstructions", "CelebA at 32 px"),
    Item("figure faae-7", "reconstructions of BiGAN (quoted there), AAE and F-AAE", (BIGAN, AAE, FAAE),
         "reconstructions", "ImageNet at 64 px"),
    Item("figure faae-8", "generations of F-AAE and AAE", (FAAE, AAE), "samples", "CelebA at 32 px", ""),
    Item("figure faae-9", "morphs between four real images, F-AAE's and AAE's", (FAAE, AAE), "morph",
         "CelebA at 32 px"),
]
ALIASES = {item.title.removeprefix("figure "): item.draws for item in ITEMS if item.draws}
NEEDS = {"images": "images of the runs' set", "labels": "class labels of the set",
         "attributes": "classes or attributes of the set",
         "features": "Inception's weights, or class labels for a classifier (without --features)",
         "levels": "images of 16 px or more",
         "paths": "LPIPS's weights, or class labels for a classifier (without --features)"}
OPENED = "data data_root cache inception vgg lpips".split()         # flags of list that its commands get


def spelled(command, views, args):
    """A command with these runs in place of RUN, and the flags by which `list` found their data."""
    kind, name, _ = command.split(maxsplit=2)
    taken = {action.dest for action in args.commands[kind]._actions if takes(action, name)}
    runs = " ".join(shlex.quote(str(view.run)) for view in views)
    command = re.sub(r"RUN(\.\.\.)?( RUN(\.\.\.)?)*", lambda _: runs, command)
    command = command.replace("BOUNDARIES", f"{shlex.quote(str(views[0].run))}/boundaries/*.npy")
    flags = {flag: getattr(args, flag) for flag in OPENED
             if flag in taken and getattr(args, flag) != args.parser.get_default(flag)}
    if "features" in taken and "inception" not in flags and not all(view.has_classes for view in views):
        flags["features"] = "inception"         # without it a classifier is asked for
    return f"python eval.py {command}" + "".join(f" {common.flag(k)} {shlex.quote(v)}" for k, v in flags.items())


def lacking(item, views, args):
    """What an item still needs, if it has its runs: a list of sentences."""
    def at_hand(name):
        return getattr(args, name) or Path(args.cache, Path(common.FROZEN[name][0]).name).exists()
    lack = []
    for view in views[:1] if item.title == "table invgan-2" else views:     # there the first run's set is shown to all
        if item.needs and view.missing:
            lack.append(str(view.missing))
            continue
        for need, names in dict(labels=[], features=["inception"], paths=["vgg", "lpips"]).items():
            if need not in item.needs or (names and all(map(at_hand, names))):
                continue
            if need == "paths" and (args.lpips or (args.inception and item.title == "table alae-5")):
                lack.append("both files of LPIPS: --vgg FILE, --lpips FILE")
            elif not view.has_classes:
                weights = f"; without them, weights: {', '.join(f'--{name} FILE' for name in names)}" if names else ""
                lack.append(f"{view.run}: {view.train.name} has no class labels{weights}")
        if "levels" in item.needs and not swd_levels(view.shape):
            lack.append(f"{view.run}: images of 16 px or more")
        check = read_gradients if item.draws == "gradients" else attributes if "attributes" in item.needs else None
        if check:
            try:
                check(view)
            except Error as e:
                lack.append(str(e))
        if "BOUNDARIES" in item.flags and not any((view.run / "boundaries").glob("*.npy")):
            lack.append(f"boundaries: python eval.py boundary {shlex.quote(str(view.run))} makes them of labels")
    if len(views) > 1 and item.draws and FIGURES[item.draws].together and item.needs and not lack:
        try:
            shared_test_images(views)
        except Error as e:
            lack.append(str(e))
    return lack


def chosen_for(item, views, args):
    """Which of the runs an item takes (a figure: of one set and size), and what is missing, a list."""
    groups = {}
    for view in views:
        name = view.args.get("data_name") or view.args["data"]
        key = (name if view.missing else view.test.source, view.shape) if item.draws else ()
        groups.setdefault(key, []).append(view)
    choices = []
    for group in groups.values():
        fit = {want: [view for view in group if want.fits(view)] for want in item.runs}
        lack = [f"a run of {want.words}" for want in item.runs if not fit[want]]
        some = []
        for want, found in fit.items():
            if want.many:               # those that lack something are left out, unless all do
                some += [view for view in found if not lacking(item, [view], args)] or found
            else:
                some += found[:1]
        if item.title == "table alae-2":
            some = [view for view in some if not any(unlike(view, other) for other in some[:some.index(view)]
                                                     if (view.args["label"], view.test.split)
                                                     == (other.args["label"], other.test.split))]
        choices.append((some, lack or lacking(item, some, args)))
    return min(choices, key=lambda choice: len(choice[1]))


def listed(args):
    """Print every table and figure of the papers: what it shows, its command and what that needs,
    or whether the given runs suffice."""
    views = [View(run, args) for run in args.runs]
    out = []
    paper = ""
    for item in ITEMS:
        runs = " ".join("RUN..." if want.many else "RUN" for want in item.runs)
        commands = [f"{item.title} {runs} {item.flags}".rstrip(), *item.also] if runs else []
        row = dict(title=item.title, shows=item.shows, paper=item.paper, note=item.note,
                   runs=[want.words for want in item.runs],
                   needs=[NEEDS[need] for need in item.needs.split()] if item.runs else [],
                   commands=[f"python eval.py {command}" for command in commands])
        method = item.title.split()[1].partition("-")[0]
        if method != paper:
            heading = dict(alae="ALAE", lia="LIA", invgan="InvGAN", faae="F-AAE")[method]
            print(f"\n{heading}" if paper else heading)
            paper = method
        print(filled(f"{item.title:16}{item.shows}   [{item.note or item.paper}]", ""))
        if views and item.runs:
            some, row["missing"] = chosen_for(item, views, args)
            row["ready"] = not row["missing"]
            if row["ready"]:
                row["commands"] = [spelled(command, some if i == 0 else some[:1], args)
                                   for i, command in enumerate(commands)]
                print("\n".join(f"    ready: {command}" for command in row["commands"]))
            else:
                print(filled(f"missing: {'; '.join(row['missing'])}"))
        elif item.runs:
            needs = "; ".join([f"runs of {', '.join(row['runs'])}", *row["needs"]])
            print(filled(f"{'; '.join(commands)}   needs: {needs}"))
        out.append(row)
    if not views:
        print(f"\nmetrics  {' '.join(MEASURES)}\ntable    {' '.join(TABLES)}")
        print(textwrap.fill(f"figure   {' '.join(FIGURES)}", 120, subsequent_indent=" " * 9))
        print("others   " + " ".join(command.__name__ for command in COMMANDS[3:]))
    return out


def filled(text, indent="    "):
    return textwrap.fill(text, 120, initial_indent=indent, subsequent_indent="        ", break_long_words=False,
                         break_on_hyphens=False)


# ------------------------------------------------------------------------- 15 Inversion, boundaries

LR = 0.01               # of Adam
CLIP_DRAWS = 1000       # z is clipped to the range of so many draws from the prior


def pixel_distance(x):
    """Images or maps x (N, ...) -> y -> the mean square of each y - x, (N,)."""
    return lambda y: per_image((y - x).square())


def distance_for(view, args):
    """x -> y -> (N,), images.  --loss pixel: mean square; vgg9: of VGG-16 conv3_3, layer 9 of LIA's
    code (Keras's weights, 256 px, over 82,890); in-domain: of pixels + 0.00005 of conv4_3."""
    if args.loss == "pixel":
        return pixel_distance
    vgg = common.frozen("vgg", args.vgg, args.cache, common.VGG).to(view.device)

    def distance(x):
        pixels = pixel_distance(x)
        if args.method == "in-domain":
            maps = pixel_distance(vgg.conv4_3(x))
            return lambda y: pixels(y) + 5e-5 * maps(vgg.conv4_3(y))
        maps = pixel_distance(vgg(x, last=15)[-1])
        return lambda y: maps(vgg(y, last=15)[-1])
    return distance


def on_sphere(draws):
    """Whether codes z (N, nz) of a prior have one length."""
    norms = draws.norm(dim=1)
    return bool(norms.std() < 1e-3 * norms.mean())


def optimise(view, x, space, distance, steps, lr, optimizer="adam", domain=False, seed=0, keep=(), begin=0):
    """Codes whose images are like x (N, C, H, W), each alone, by gradient descent over z, w or w+,
    from a draw in z, else from the mean w.  In z, what leaves the prior's range is drawn again
    (stochastic clipping, Lipton and Tripathi 2017).  domain: starts from E(x) and asks E to agree,
    + 2 mean (w - E(G(w)))^2 (Zhu et al. 2020).  On a sphere, every start is a draw, and codes stay
    on it.  begin: images before these, whose draws are others.  -> the code in its space, w, and the
    images at the steps in `keep`"""
    model = view.model
    path = []
    view.need(PRIOR)
    draws = view.codes(CLIP_DRAWS, seed)
    length = draws.norm(dim=1).mean()
    limit = draws.abs().max()
    sphere = on_sphere(draws)
    if domain:
        view.need(("encode", "unmap") if space == "z" else ("encode",))
        v = model.encode(x)
        v = model.unmap(v) if space == "z" else v
    elif space == "z" or sphere:
        v = view.codes(begin + len(x), seed, begin)
    else:
        v = getattr(model, "mean_w", model.map(draws).mean(0)).expand(len(x), -1)
    if space == "w+":
        v = v[:, None].expand(-1, model.num_layers, -1)
    v = v.clone().requires_grad_()
    descent = (torch.optim.Adam if optimizer == "adam" else torch.optim.SGD)([v], lr=lr)
    rng = common.generator(view.device, seed, "evaluation", CLIP_DRAWS + begin)         # draws of its own
    far = distance(x)
    for step in range(steps + 1):
        w = model.map(v) if space == "z" else v
        y = model.generate(w, noise="fixed")
        if step in keep:
            path.append(y.detach().clamp(-1, 1))
        if step == steps:
            return v.detach(), w.detach(), path
        loss = far(y)                                                               # [N]
        if domain:
            back = model.encode(y)[:, None] if space == "w+" else model.encode(y)
            loss = loss + 2 * per_image((w - back).square())
        descent.zero_grad()
        loss.sum().backward()
        descent.step()
        if sphere:
            v.data *= length / v.norm(dim=-1, keepdim=True)
        elif space == "z":
            v.data = torch.where(v.abs() > limit, model.prior(len(v), rng), v)


def write(path, content):
    """Writes bytes, whole or not at all; their folder is made.  -> what is told of it"""
    path.parent.mkdir(parents=True, exist_ok=True)
    older = " over an older one" if path.exists() else ""
    common.write_atomic(path, content)
    return f"wrote {path}{older}"


def write_array(path, t):
    """Writes a tensor as .npy.  -> what is told of it"""
    return write(path, common.bytes_of(np.save, t.cpu().numpy()))


def invert(args):
    """Codes of images, the encoder's and by optimisation: errors, and seconds an image.

    IMAGE are files; without any, the first -n test images.  Writes a picture, and NAME-SPACE.npy.
    """
    check_out(args)
    view = View(args.run, args)
    domain = args.method == "in-domain"
    for name in ("steps", "lr", "save_path", "space", "loss", "optimizer") if args.method == "encoder" else ():
        if getattr(args, name) != args.parser.get_default(name):
            raise Error(f"{common.flag(name)} is for --method optimise and in-domain; leave it out")
    steps = args.steps or (100 if domain else 1000)
    lr = args.lr or (LR if args.optimizer == "adam" else 1.0)
    if args.method != "optimise":
        view.need(["encode"])
    if args.method != "encoder":
        view.need(PRIOR)
    if domain and "z" in args.space:
        view.need(["unmap"])
    if args.vgg and args.loss == "pixel":
        raise Error("--vgg is for --loss vgg9; add that, or leave it out")
    if "w+" in args.space and view.model.num_layers == 1:
        raise Error(f"{view.run} ({view.args['backbone']}) has one w for all layers; w+ is for stylegan")
    x = first(16)([view], args)
    floor = None if view.missing else (x - training_mean(view)).square().mean().item()
    todo = (["encoder"] if view.can(["encode"]) else []) + (args.space if args.method != "encoder" else [])
    distance = distance_for(view, args) if todo != ["encoder"] else None
    keep = steps_shown(steps) if args.save_path else ()

    def codes(space, x, steps=steps, begin=0):
        if space != "encoder":
            return optimise(view, x, space, distance, steps, lr, args.optimizer, domain, args.seed, keep, begin)
        w = view.model.encode(x)
        return w, w, []

    stem = Path(args.out or view.run / "figures" / "invert.png")
    out = {}
    picture = [x]
    for space in todo:
        view.made(codes(space, x[:view.batch], steps=1)[1])         # the first call also prepares
        if space != "encoder":
            tell_time(f"{args.method}, {space}, of {len(x)} images", seconds_of_steps(view, lambda some, space=space: (
                codes(space, x[:view.batch], steps=some)), steps, math.ceil(len(x) / view.batch)))
        began = clock(view)
        v, w, path = zip(*(codes(space, part, begin=i * view.batch) for i, part in enumerate(x.split(view.batch))),
                         strict=True)
        y = view.made(torch.cat(w)).clamp(-1, 1)
        seconds = (clock(view) - began) / len(x)
        mse = (y - x).square().mean().item()
        wrong = (y - x.roll(1, 0)).square().mean().item() if len(x) > 1 else None
        name = space if space == "encoder" else f"{args.method}, {space}"
        out[name] = dict(mse=mse, mse_wrong_pair=wrong, mse_mean_image=floor, seconds=seconds, n=len(x))
        print(f"  {name:16} MSE {mse:.4f}   wrong pairs {cell(wrong, '.4f')}   mean image {cell(floor, '.4f')}   "
              f"{plain(seconds, 4)} s an image", flush=True)
        picture.append(y)
        print(f"  {write_array(stem.with_name(f'{stem.stem}-{space}.npy'), torch.cat(v))}")
        if path[0]:
            on_the_way = [torch.cat(images) for images in zip(*path, strict=True)]
            write_picture(rows(torch.stack([x] + on_the_way, 1)), stem.with_name(f"{stem.stem}-path-{space}.png"))
    loss = f"{'pixel and conv4_3' if args.loss == 'vgg9' else 'pixel'}, and codes" if domain else args.loss
    how = f"{steps} steps of {args.optimizer}, lr {lr:g}, loss {loss}; " if args.method != "encoder" else ""
    print(f"{len(x)} images, {min(len(x), view.batch)} at once; {how}fixed noise; {depends_on(view, args)}, "
          f"{torch.get_num_threads()} threads")
    write_picture(rows(blocks(picture).rows), stem)
    print("rows from the top: originals, " + ", ".join(out))
    if floor is None:
        print(f"no mean image: {view.missing}")
    return out


def depends_on(view, args):
    """What every number depends on, in words."""
    return (f"evaluation seed {args.seed}; {view.protocol}; evaluation code {common.code_version()} on "
            f"{view.device.type}")


def write_normal(view, args, name, normal):
    """NAME.npy, (1, nw), of a boundary's normal (nw,).  -> what is told of it"""
    name = re.sub(r"[^\w. ()+-]", "_", name)           # a label's may be a path
    return write_array(Path(args.out or view.run / "boundaries") / f"{name}.npy", (normal / normal.norm())[None])


def boundary(args):
    """Linear boundaries in w from the labels of the data: boundaries/NAME.npy, a unit normal each.

    A linear SVM on codes of -n training images, as InterFaceGAN's; scored on the test part.  With
    --codes A B, from the codes of one file to the other's, such as of photos with glasses: A-B.npy.
    """
    if args.force and not args.codes:
        raise Error("--force is for --codes; leave it out")
    view = View(args.run, args)
    if args.codes:
        if args.only or args.n:
            raise Error("--only and -n choose among the set's labels and images; leave them out with --codes")
        return boundary_between(view, args)
    view.need(["encode"])
    names, y, y_test = attributes(view, args.only)
    out = {}
    chosen = scattered(len(y), args.n or 20_000)
    w, w_test = (torch.cat([view.model.encode(view.images(i, part)) for i in places.split(view.batch)])
                 for part, places in (("train", chosen), ("test", torch.arange(len(y_test)))))
    for name, target, truth in telling(names, y[chosen].to(view.device), y_test.to(view.device)):
        normal = linear_svm(w, target.long(), 2)[:, 1]
        right = (svm_scores(normal, w_test) > 0) == truth
        rates = [100 * right[truth == side].float().mean().item() for side in (False, True)]
        share = 100 * max(truth.float().mean().item(), 1 - truth.float().mean().item())
        out[name] = dict(accuracy=100 * right.float().mean().item(), balanced=sum(rates) / 2, majority=share)
        wrote = write_normal(view, args, name, normal[:-1])
        print(f"  {name:24} accuracy {out[name]['accuracy']:.1f} %, mean of both sides "
              f"{sum(rates) / 2:.1f} %   (always the more frequent side: {share:.1f} %)   {wrote}", flush=True)
    if not out:
        raise Error(f"{view.train.name} has no label that tells its images apart; take another set, or more of -n")
    print(f"linear SVM, C = 0.02, on {len(chosen):,} training codes, scored on {len(y_test):,} test images; "
          f"{view.protocol}; evaluation code {common.code_version()}")
    return out


def boundary_between(view, args):
    """boundary --codes A B: the boundary from the codes of one file to the other's, as A-B.npy."""
    a, b = (read_codes(path, view, force=args.force)[0].to(view.device) for path in args.codes)
    if a.ndim > 2 or b.ndim > 2 or min(len(a), len(b)) < 5:
        raise Error(f"a boundary needs 5 or more codes (N, nw) a side, and {args.codes[0]} and {args.codes[1]} hold "
                    f"{tuple(a.shape)} and {tuple(b.shape)}; add images")
    target = torch.cat([torch.zeros(len(a)), torch.ones(len(b))]).long().to(view.device)
    normal = linear_svm(torch.cat([a, b]), target, 2)[:-1, 1]
    name = f"{Path(args.codes[0]).stem}-{Path(args.codes[1]).stem}"
    accuracy = told_apart(a, b)
    wrote = write_normal(view, args, name, normal)
    print(f"  {name:24} a logistic regression tells them apart in {accuracy:.1f} % (5 folds of {len(target):,})   "
          f"{wrote}")
    return {name: dict(accuracy=accuracy, n=len(target))}


# ------------------------------------------------------------------------------ 16 Photos and codes
# samples, encode, decode, interpolate: pictures, codes and films as files.

BLOCK_OF_SEEDS = 32     # seeds whose pictures are made together, because last bits depend on the batch
FRAME_MS = 40           # how long a film shows a frame


class Photos:
    """Images (C, H, W) = shape of files, folders and zips, read one at a time as training reads
    them; of a file that moves, the first frame.  names: paths."""

    def __init__(self, paths, shape, skip_bad=False):
        self.shape, self.skip_bad = tuple(shape), skip_bad
        self.names = []         # of each image
        self.places = []        # its store, and its name there
        self.told = set()
        for path in map(Path, paths):
            if path.is_dir() or path.suffix.lower() == ".zip":
                store = data.Store(path, skip_bad)
                data.survey([store], shape[:0:-1])
                self.names += [f"{path}/{store.top}{name}" for name in store.images]
                self.places += [(store, name) for name in store.images]
            else:
                self.names.append(str(path))
                self.places.append((None, path))

    def __len__(self):
        return len(self.names)

    def read(self, i):
        """Image i, uint8 (C, H, W); with skip_bad, None if it cannot be read."""
        store, name = self.places[i]
        try:
            if store is None:
                return data.read_images([name], self.shape[0], self.shape[1:], 1)[0]
            image = store.image(name, self.shape)
            if image is not None:
                return torch.tensor(image)      # a copy: it may be read-only
            problem = store.bad[name]
        except data.DataError as e:
            if not self.skip_bad:
                raise
            problem = e
        data.tell_once(self.told, str(problem))


def identity(view):
    """What codes belong to: the run, how long it was trained, and a digest of its weights."""
    sha = hashlib.sha256()
    for tensor in view.model.state_dict().values():
        sha.update(np.ascontiguousarray(tensor.cpu()))
    return dict(method=view.args["method"], run=view.name, kimg=view.model.seen / 1000,
                weights=view.weights, digest=sha.hexdigest()[:16])


def read_codes(path, view, space="w", force=False):
    """Codes of a file -> float (N, nw), (N, num_layers, nw) or, in space z, (N, nz), on the CPU, and
    their names.  A .npz holds arrays w or z, such as `encode` writes, a .npy one array."""
    try:
        loaded = np.load(path, allow_pickle=False)
        file = {space: loaded} if isinstance(loaded, np.ndarray) else {k: np.asarray(v) for k, v in loaded.items()}
        names = [str(name) for name in file["names"]] if "names" in file else None
        about = json.loads(str(file["run"])) if "run" in file else {}
    except Exception as e:                      # np.load lets through whatever the damage leads to
        raise Error(f"{path} holds no arrays of numbers ({type(e).__name__}); name a .npz of `eval.py encode`, or a "
                    f".npy") from None
    if len(file) == 1 and not file.keys() & {"w", "z"}:         # numpy calls an array without a name arr_0
        file = {space: next(iter(file.values()))}
    if space not in file:
        raise Error(f"{path} has no array {space!r}, only {', '.join(file)}; add it"
                    + ("; decode and interpolate take its z by --space z" if "z" in file else ""))
    if not isinstance(about, dict):
        raise Error(f"{path}: its array run is not as `eval.py encode` writes it; take it out")
    codes = file[space]
    model = view.model
    if about and not force and about.get("digest") != (known := identity(view))["digest"]:
        raise Error(f"{path} holds codes of {about.get('run')} at {about.get('kimg')} kimg, {about.get('weights')} "
                    f"weights, and {view.run} has other weights ({known['kimg']:g} kimg, {known['weights']}); take "
                    f"that run, or pass --force")
    codes = codes[None] if codes.ndim == 1 else codes
    shapes = [(model.nz,)] if space == "z" else [(model.nw,), (model.num_layers, model.nw)][:model.num_layers]
    if codes.dtype.kind not in "fiu" or codes.shape[1:] not in shapes or not len(codes):
        wanted = " or ".join(f"(N, {', '.join(map(str, shape))})" for shape in shapes)
        raise Error(f"{path} holds {codes.dtype} of {codes.shape}, and codes in {space} of {view.run} are numbers of "
                    f"{wanted}; bring them to that shape")
    codes = torch.from_numpy(codes.astype(np.float32))
    if not codes.isfinite().all():
        raise Error(f"{path} holds numbers that are not finite; mend them")
    return codes, names if names and len(names) == len(codes) else None


def file_names(names):
    """Names of files, paths perhaps -> names of their pictures, all different, without ending."""
    out = {}                                    # by lower case: some file systems do not tell them apart
    for name in names:
        stem = k = re.sub(r"[^\w. ()+-]", "_", Path(name.replace("\\", "/")).stem)[:100].lstrip(".") or "image"
        again = 2
        while k.lower() in out:
            k, again = f"{stem}-{again}", again + 1
        out[k.lower()] = k
    return list(out.values())


def picture_of(x):
    """An image (C, H, W) in [-1, 1] -> (H, W) or (H, W, 3) uint8."""
    return common.to_uint8(x).cpu().permute(1, 2, 0).squeeze(2).numpy()


def write_pictures(items):
    """Writes PNGs of items, (path, picture), in threads, a few ahead; each whole or not at all."""
    ahead = collections.deque()
    with concurrent.futures.ThreadPoolExecutor() as pool:       # waits for its threads, or Python may abort at its end
        for item in items:
            ahead.append(pool.submit(common.save_png, *item))
            if len(ahead) > 4 * os.cpu_count():
                ahead.popleft().result()
        for job in ahead:
            job.result()


def film_of_pictures(pictures, kind, ms):
    """Pictures, (H, W) or (H, W, 3) uint8 -> the bytes of a "gif" or "webp" that shows each for ms milliseconds."""
    images = map(Image.fromarray, pictures)
    return common.bytes_of(next(images).save, kind, save_all=True, append_images=images, duration=ms, loop=0,
                           quality=90)


def wait_for_all():
    if dist.is_initialized():
        dist.barrier()


def make_folder(flag, folder, names, images):
    """Makes the folder of a flag for PNGs of these names.  -> how many are there already, in words.
    Raises Error if one would be written over one of the images (paths)."""
    own = {Path(image).resolve() for image in images}
    if own and any((folder / f"{name}.png").resolve() in own for name in names):
        raise Error(f"{flag} {folder} would write over the images themselves; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    older = len({entry.name for entry in os.scandir(folder)} & {f"{name}.png" for name in names})
    wait_for_all()                              # all have looked before one writes
    return f" ({older:,} over older ones)" if older else ""


def drawn(view, codes, space, what):
    """Yields the numbers of codes (N, ...), and their pictures, with fixed noise."""
    for begin, end in progress(what, len(codes), view.batch):
        code = codes[begin:end].to(view.device)
        x = view.model.generate(view.model.map(code) if space == "z" else code, noise="fixed")
        yield from zip(range(begin, end), map(picture_of, x), strict=True)


def codes_of_seeds(view, seeds):
    """z of each seed, (N, nz): of the seed alone, and the same on any device."""
    z = [view.model.prior(1, common.generator(torch.device("cpu"), int(seed), "evaluation")) for seed in seeds]
    return torch.cat(z).to(view.device)


def samples(args):
    """Samples as PNG files, seed0000.png ..., or as a zip in the StyleGAN tools' layout.

    A seed is a picture, whatever the others are: z and noise depend on it alone.  Files that are
    there are left, so the same command goes on if it was interrupted.  torchrun shares the work.
    """
    view = View(args.run, args)
    view.need(PRIOR if args.truncation == 1 else PRIOR + ("mean_w",))
    check_truncation(args)
    if bool(args.n) == bool(args.seeds):
        raise Error("samples takes -n N or --seeds, such as 0,1,4-6; pass one of them")
    seeds = sorted(set(args.seeds)) or range(args.n)
    out = Path(args.out)
    zipped = out.suffix.lower() == ".zip"
    if out.suffix.lower() in {".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}:
        raise Error(f"--out {out} is no archive that is written here; name a .zip or a folder")
    if zipped and out.exists():
        raise Error(f"{out} is there already; delete it, or name another --out")
    folder = out.with_name(f"{out.name}.part") if zipped else out
    about = dict(identity(view), truncation=args.truncation, truncation_layers=args.truncation_layers,
                 noise=args.noise)
    there = prepare_folder(folder, about)
    name = "seed{:04d}.png".format
    left = {seed for seed in seeds if name(seed) not in there}
    if len(left) < len(seeds):
        print(f"{len(seeds) - len(left):,} of {len(seeds):,} pictures are in {folder} already, and stay")
    size = min(view.batch, BLOCK_OF_SEEDS)
    blocks = sorted({seed // size for seed in left})

    def pictures():
        for at, _ in progress(f"blocks of {size} seeds", len(blocks), 1):
            first_seed = blocks[at] * size
            w = view.model.map(codes_of_seeds(view, range(first_seed, first_seed + size)))
            if args.truncation != 1:
                w = truncate(w, view.model.mean_w, args.truncation, args.truncation_layers, view.model.num_layers)
            seed_noise(0, first_seed // size)
            x = view.model.generate(w, noise=args.noise)
            for seed, image in enumerate(x, first_seed):
                if seed in left:
                    yield folder / name(seed), picture_of(image)
    write_pictures(pictures())
    wait_for_all()
    if zipped and leads():
        pack(out, folder, {f"{f'{seed:08d}'[:5]}/img{seed:08d}.png": folder / name(seed) for seed in seeds})
    truncation = "" if args.truncation == 1 else f", truncation {args.truncation:g}"
    n = len(seeds if zipped else left)
    print(f"wrote {n:,} pictures into {out} ({args.noise} noise{truncation}; {view.protocol})")


def prepare_folder(folder, about):
    """Makes a folder of samples, and notes in samples.json what they are of.  -> its files' names"""
    note = folder / "samples.json"
    there = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    try:
        old = json.loads(note.read_text()) if note.exists() else {}
    except ValueError:
        old = None
    if not isinstance(old, dict):
        old = {"samples.json": "damaged"}
    if old != about and (old or any(re.fullmatch(r"seed\d+\.png", name) for name in there)):
        differs = ", ".join(f"{k} {v}" for k, v in old.items() if about.get(k) != v) or "unknown"
        raise Error(f"{folder} holds samples of something else ({differs}); name another --out, or delete it")
    wait_for_all()                              # all have looked before one writes
    folder.mkdir(parents=True, exist_ok=True)
    if leads() and old != about:
        common.write_atomic(note, json.dumps(about, indent=1).encode())
    return there


def pack(out, folder, files):
    """A zip of files, {name in it: path}, as the StyleGAN tools write it; then the folder goes."""
    part = out.with_name(f"{out.name}.new")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as z:       # the same bytes each time: no date
        for name, path in files.items():
            z.writestr(zipfile.ZipInfo(name), path.read_bytes())
        z.writestr(zipfile.ZipInfo("dataset.json"), json.dumps(dict(labels=None)))
    os.replace(part, out)
    for path in [*folder.glob("seed*.png"), folder / "samples.json"]:
        path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()                          # unless it holds files of the user's


def encode(args):
    """Codes of photos, folders and zips, read as training reads them, as arrays in a .npz file.

    w (N, nw) float32; z, if the map has an exact inverse; names; run, what the codes belong to.
    --reconstruct writes each image next to its reconstruction, and errors.csv with two floors.
    torchrun shares the work.
    """
    view = View(args.run, args)
    view.need(["encode", "generate"] if args.reconstruct else ["encode"])
    out, folder = Path(args.out), Path(args.reconstruct) if args.reconstruct else None
    if out.suffix != ".npz":
        raise Error(f"--out {out} names no .npz; pass {out / 'codes.npz' if out.is_dir() else out.with_suffix('.npz')}")
    photos = Photos(args.images, view.shape, args.skip_bad)
    n = len(photos)
    mean = None if not folder or view.missing else training_mean(view)      # without a folder no set is opened
    w = torch.zeros(n, view.model.nw)
    told = torch.zeros(n, len(ERRORS), dtype=torch.float64)
    good = torch.zeros(n, dtype=torch.int64)
    grey = torch.zeros(n)
    stems = file_names(photos.names)
    over = make_folder("--reconstruct", folder, stems, photos.names) if folder else ""

    def pictures():
        for begin, end in progress("images", n, view.batch):
            images = list(pool.map(photos.read, [i % n for i in range(begin, end + bool(folder))]))
            following = images.pop() if folder else None
            rows = [i for i in range(begin, end) if images[i - begin] is not None]
            if not rows:
                continue
            pixels = torch.stack([image for image in images if image is not None])
            x = common.to_float(pixels).to(view.device)
            code = view.model.encode(x)
            w[rows], good[rows], grey[rows] = code.cpu(), 1, pixels.float().mean((1, 2, 3))
            if folder:
                y = view.model.generate(code, noise="fixed").clamp(-1, 1)
                last = x[:1] if following is None else common.to_float(following[None]).to(view.device)
                others = torch.cat([x[1:], last])
                floor = x.new_full((len(x),), math.nan) if mean is None else per_image((mean - x).square())
                wrong = per_image((y - others).square())
                if (end % n if following is not None else rows[0]) == rows[-1]:     # it would be paired with itself
                    wrong[-1] = math.nan
                columns = [per_image((y - x).square()), per_image((y - x).abs()), floor, wrong]
                told[rows] = torch.stack(columns, 1).cpu().double()
                for i, a, b in zip(rows, x, y, strict=True):
                    yield folder / f"{stems[i]}.png", np.concatenate([picture_of(a), picture_of(b)], 1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        write_pictures(pictures())
    kept = add_up(good).bool()
    w, told, grey = (add_up(t)[kept] for t in (w, told, grey))
    if not len(w):
        raise Error("none of the images can be read; name others")
    names = [name for name, ok in zip(photos.names, kept.tolist(), strict=True) if ok]
    arrays = dict(w=w.numpy(), names=np.array(names), run=np.array(json.dumps(identity(view))))
    if view.can(["unmap"]):
        arrays["z"] = torch.cat([view.model.unmap(b.to(view.device)).cpu() for b in w.split(view.batch)]).numpy()
    if leads():
        print(f"{write(out, common.bytes_of(np.savez, **arrays))}: "
              + ", ".join(f"{k} {v.shape}" for k, v in arrays.items() if v.ndim))
        if folder:
            tell_photos(folder, names, told, view, over)
        tell_unusual(view, grey)


def unusual(grey, means):
    """That the mean greys (N,) of most photos are far from the training images', of which a run notes
    64 (data.Images.means), or "".  Far: out of their range by more than half its width, as none of
    11,449 test images of MNIST and of faces is, and every inverted digit."""
    usual = np.frombuffer(bytes.fromhex(means), ">u2") / 256
    if not len(usual):
        return ""
    low, high = usual.min(), usual.max()
    far = np.maximum(low - grey, grey - high) > (high - low) / 2
    if 2 * far.sum() <= len(grey):
        return ""
    middle = np.median(grey[far])
    inverted = max(low - (255 - middle), 255 - middle - high) < max(low - middle, middle - high)
    remedy = "invert them first, for example by PIL.ImageOps.invert" if inverted else "change their brightness first"
    return (f"{far.sum():,} of {len(grey):,} images have a mean grey of {middle:.0f}, and the training images' is "
            f"{low:.0f} to {high:.0f} (of 255), so they may be reconstructed badly; if they show the same things, "
            f"{remedy}")


def tell_unusual(view, grey):
    """Notes if photos of these mean greys (N,) are unlike the run's own images."""
    if note := unusual(grey.numpy(), view.args.get("image_means", "")):
        known = view.args.get("data_name") or data.base_name(view.args["data"])
        print(f"note: {view.run} was trained on {known}, and makes nothing else; {note}")


ERRORS = ("mse", "mae", "mse_mean_image", "mse_wrong_pair")


def csv_of(lines):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def tell_photos(folder, names, told, view, over):
    """Writes errors.csv, a row an image; prints the means of its columns (N, 4)."""
    table = [("name",) + ERRORS]
    for name, row in zip(names, told.tolist(), strict=True):
        table.append([name] + ["" if math.isnan(v) else f"{v:.6g}" for v in row])
    common.write_atomic(folder / "errors.csv", csv_of(table).encode(errors="surrogateescape"))
    mse, mae, mean_image, wrong = [None if math.isnan(v) else v for v in told.nanmean(0).tolist()]
    print(f"wrote {len(names):,} pictures{over} and errors.csv into {folder}: original, reconstruction")
    print(f"MSE {mse:.4f}  MAE {mae:.4f}  floors MSE {cell(mean_image, '.4f')} of the training-mean image, "
          f"{cell(wrong, '.4f')} of wrong pairs (on [-1, 1], fixed noise; {view.protocol})")
    if view.missing:
        print(f"no mean image: {view.missing}")


def decode(args):
    """Pictures of codes: w (N, nw), w+ (N, num_layers, nw) or, with --space z, z (N, nz).

    The file is encode's, invert's, or of numpy.save or numpy.savez.  torchrun shares the work.
    """
    view = View(args.run, args)
    view.need(["generate"] if args.space == "w" else ["generate", "map"])
    codes, names = read_codes(args.codes, view, args.space, args.force)
    stems = file_names(names) if names else [f"code{i:04d}" for i in range(len(codes))]
    folder = Path(args.out)
    over = make_folder("--out", folder, stems, names or ())
    made = drawn(view, codes, args.space, "codes")
    write_pictures((folder / f"{stems[i]}.png", picture) for i, picture in made)
    wait_for_all()
    print(f"wrote {len(codes):,} pictures{over} into {folder} (fixed noise; {view.protocol})")


def points_of(view, points, space, force):
    """The codes of a film's points, (N, d) or (N, num_layers, nw): of photos, seeds, and codes."""
    codes = []
    greys = []
    for point in points:
        if seed := re.fullmatch(r"seed:(\d{1,10})", point):
            view.need(PRIOR)
            z = codes_of_seeds(view, [seed[1]])
            codes.append(z if space == "z" else view.model.map(z))
        elif point.endswith((".npz", ".npy")):
            codes.append(read_codes(point, view, space, force)[0].to(view.device))
        else:
            view.need(["encode"] if space == "w" else ["encode", "unmap"])
            photos = Photos([point], view.shape)
            for i in range(len(photos)):
                pixels = photos.read(i)[None]
                greys.append(pixels.float().mean())
                w = view.model.encode(common.to_float(pixels).to(view.device))
                codes.append(view.model.unmap(w) if space == "z" else w)
    if greys:
        tell_unusual(view, torch.stack(greys))
    if any(code.ndim == 3 for code in codes):
        codes = [code if code.ndim == 3 else code[:, None].expand(-1, view.model.num_layers, -1) for code in codes]
    return torch.cat(codes)


def along(codes, frames, space, loop):
    """Codes (N, ...) of points -> (frames, ...) on the way through them: straight lines in w, great
    circles in z (`slerp`).  loop: back to the first, which then is not shown twice."""
    n = len(codes)
    if loop:
        codes = torch.cat([codes, codes[:1]])
        at = torch.arange(frames, dtype=torch.float64) * n / frames
    else:
        at = torch.linspace(0, n - 1, frames, dtype=torch.float64)
    i = at.long().clamp(max=len(codes) - 2)
    t = (at - i).float().to(codes.device)
    t = t.view([-1] + [1] * (codes.ndim - 1))
    return slerp(codes[i], codes[i + 1], t) if space == "z" else torch.lerp(codes[i], codes[i + 1], t)


def interpolate(args):
    """A film from image to image, by their codes: .gif, .webp, or frame0000.png ... in a folder.

    POINT is a photo, a folder or zip of them, a seed as `samples` has it (seed:12), or codes.
    """
    out = Path(args.out)
    film = out.suffix.lower() in (".gif", ".webp")
    if out.suffix and not film:
        raise Error(f"--out {out} is no film; name a .gif, a .webp or a folder")
    check_spares(args, args.points)
    if not film and out.is_dir() and any(out.glob("frame*.png")):
        raise Error(f"{out} holds frames already; name another --out, or delete it")
    view = View(args.run, args)
    view.need(["generate"] if args.space == "w" else ["generate", "map"])
    codes = points_of(view, args.points, args.space, args.force)
    if len(codes) < 2 or args.frames < 2:
        few = "--frames 1 is too few; pass 2 or more" if args.frames < 2 else "this is one; name another, too"
        raise Error(f"a film goes from one image to another; {few}")
    path = along(codes, args.frames, args.space, args.loop)
    frames = drawn(view, path, args.space, "frames")
    (out.parent if film else out).mkdir(parents=True, exist_ok=True)
    if film:
        wrote = write(out, film_of_pictures((picture for _, picture in frames), out.suffix[1:].lower(), FRAME_MS))
    else:
        write_pictures((out / f"frame{i:04d}.png", picture) for i, picture in frames)
        wrote = f"wrote {out}"
    print(f"{wrote}: {args.frames} frames through {len(codes)} images in {args.space}"
          f"{', and back' if args.loop else ''} (fixed noise; {view.protocol})")


# -------------------------------------------------------------------------------------- 17 Commands

def check_measured(args, chosen):
    """Raises Error if a flag is given that none of the chosen measures takes."""
    perceptual = ["lpips", "ppl"]
    distances = ["frechet", "precision"]
    for flag, names in dict(inception=distances, features=distances, reference=distances + ["swd"],
                            vgg=perceptual + (distances if args.features == "vgg16" else []), lpips=perceptual,
                            face_crop=["ppl"]).items():
        default = args.parser.get_default(flag)
        if getattr(args, flag, default) != default and not set(names) & set(chosen):
            raise Error(f"{common.flag(flag)} is for {' and '.join(names)}; ask for that by --only "
                        f"{' '.join(names)}")


def metrics(args):
    """Print numbers of every run, with what each depends on under it.

    frechet prints FID and KID with --features inception, else distances of features of VGG-16
    (vgg16) or of a classifier that is trained once on the set's labels.  inception, vgg16, lpips
    and ppl fetch weights into --cache unless --inception, --vgg and --lpips name files.  A measure
    that fails is left out; the rest goes on, to exit status 2.
    """
    chosen = list(dict.fromkeys(name for names in args.only for name in names)) or [
        name for name, measure in MEASURES.items() if not measure.alone]
    check_measured(args, chosen)
    out = {}
    lack = None
    failed = None
    for run in args.runs:
        out[str(run)] = {}
        try:
            view = View(run, args)
        except Error as e:
            failed = e
            if len(args.runs) > 1:              # else it is said at the end alone
                print(f"{run}: left out: {e}", flush=True)
            continue
        print(view.title)
        for name in chosen:
            measure = MEASURES[name]
            try:
                view.need(measure.needs)
                numbers, how, title, notes = measure.count(view, args)
            except Error as e:
                if not isinstance(e, Lacks):
                    failed = e
                    if dist.is_initialized():
                        raise                   # the others may be in the middle of it
                lack = e
                print(f"  {name + ':':13}left out: {e}", flush=True)
                continue
            n = numbers["n"]
            few = min(n.values()) if isinstance(n, dict) else n
            if few < 100:
                notes = notes + [f"warning: of {few} only, so that others would give other numbers"]
            protocol = f"{how}; {depends_on(view, args)}"
            label = f"{name}:"
            for text in measure.show(numbers, title) + notes + [f"[{protocol}]"]:
                print(f"  {label:13}{text}", flush=True)
                label = ""
            out[str(run)][name] = dict(numbers, seed=args.seed, protocol=protocol)
            if Path(args.json).is_file() or not Path(args.json).exists():   # a pipe gets all at the end
                write_json(args, out)
    if failed or (lack and not any(out.values())):
        write_json(args, out)
        raise failed or lack
    return out


def write_json(args, result):
    if getattr(args, "json", "") and leads():
        common.write_atomic(Path(args.json), json.dumps(result, indent=1).encode())


def check_truncation(args):
    if args.truncation_layers != 8 and args.truncation == 1:
        raise Error("--truncation-layers says where, not how much: add --truncation, such as 0.7")


def takes(action, name):
    """Whether a flag means something to the table or figure of that name."""
    only = getattr(action, "only", ())
    return name in only if only else name not in getattr(action, "unless", ())


def check_owners(args):
    """Raises Error if a flag is given that this table or figure does not take."""
    for action in args.parser._actions:
        if getattr(args, action.dest, action.default) != action.default and not takes(action, args.name):
            why = (f"is for {args.command} {', '.join(action.only)}" if action.only else
                   f"changes nothing in {args.command} {args.name}")
            raise Error(f"{action.option_strings[0]} {why}; leave it out")


def table(args):
    """Print one of the papers' tables next to what the runs give."""
    check_owners(args)
    if args.steps and not args.optimise:
        raise Error("--steps is of the rows by --optimise N; add that, or leave it out")
    by_lpips = args.name in ("alae-4", "alae-5") and (args.lpips or args.features == "inception")
    if args.name == "alae-4" and args.lpips and args.features not in ("auto", "inception"):
        raise Error(f"--lpips measures the paths of alae-4 in place of --features {args.features}; leave one out")
    if args.vgg and not (args.features == "vgg16" or by_lpips or (args.name == "invgan-1" and args.optimise)):
        raise Error("--vgg is of --features vgg16, --lpips and in-domain rows; add one of them, or leave it out")
    return TABLES[args.name](args.runs, args)


def figure(args):
    """Draw one of the papers' figures, of one run or of several together."""
    args.name = ALIASES.get(args.name, args.name)
    row = FIGURES[args.name]
    check_owners(args)
    if args.images and (row.images is None or args.generated):
        raise Error(f"figure {args.name} shows no real images{' with --generated' if args.generated else ''}; leave "
                    f"--images out{' and name the --frames' if args.name == 'frames' else ''}")
    check_truncation(args)
    check_out(args, (".png", ".gif") if args.name == "frames" else (".png",))
    views = [View(run, args) for run in args.runs]
    picture = picture_of_figure(args, views)
    if row.legend:
        print(row.legend)
    folder = views[0].run / "figures" if len(views) == 1 else views[0].run.parent
    write_picture(picture, args.out or folder / f"{args.name}.png")
    if len(views) > 1:
        print("runs in order: " + ", ".join(v.title for v in views))


def picture_of_figure(args, views):
    """-> the picture of the figure args.name of these views.  Raises Error for what it lacks."""
    row = FIGURES[args.name]
    for view in views:
        by_optimisation = args.steps and not view.can(["encode"])
        view.need(PRIOR if args.generated or by_optimisation else () if args.codes else row.needs)
    side = args.n**2 if args.name == "morph" else args.n
    if (pixels := side * math.prod(views[0].shape[1:])) > 2**28:
        raise Error(f"-n {args.n} would be a picture of {pixels:.2g} pixels; pass a smaller -n")
    x = row.images(views, args) if row.images else None
    if row.together:
        return picture_of_panels(row.draw(views, x, args), args.labels)
    panels = [row.draw(view, x, args) for view in views]
    if len(views) > 1:
        panels = [panel._replace(title=name + panel.title.removeprefix(view.args["label"]))
                  for panel, view, name in zip(panels, views, names_of(views))]
    return picture_of_panels(panels, args.labels)


def compare(args):
    """The same test images through every run: a picture, real ones on top, and errors of each run.

    --table: a row a run of what it cost and what it gives, each on its own test part.  Runs that
    differ in nothing but the seed share a row, mean ± deviation.  Columns are left out if no run
    has them; what the rows' numbers do not have in common is noted.  --only, --format, --features,
    --reference, --inception, --vgg, --cache and --seed are for --table.
    """
    if args.table:
        return compare_table(args)
    for name in ("only", "format", "inception", "features", "reference", "vgg", "seed", "cache"):
        if getattr(args, name) != args.parser.get_default(name):
            raise Error(f"--{name} is for compare --table; add that, or leave it out")
    check_out(args)
    views = [View(run, args) for run in args.runs]
    places = [p[:args.n or 10_000] for p in shared_test_images(views)]
    code = common.code_version()
    out = {}
    picture = [views[0].images(places[0][:16])]
    print(f"{len(places[0]):,} test images that all runs have in common; errors on [-1, 1]; floors: the "
          f"training-mean image, reconstructions paired with the wrong originals")
    for view, indices in zip(views, places):
        view.need(("encode", "generate"))
        m = errors(view, indices)
        picture.append(common.reconstruct(view.model, view.images(indices[:16])))
        protocol = f"fixed noise; {view.protocol}; evaluation code {code}"
        out[str(view.run)] = dict(m, protocol=f"{m['n']:,} test images that all runs have in common, {protocol}")
        print(f"  {view.title}: MSE {m['mse']:.4f}  MAE {m['mae']:.4f}  floors MSE {m['mse_mean_image']:.4f} "
              f"{cell(m['mse_wrong_pair'], '.4f')}   ({protocol})")
    write_picture(rows(picture), args.out or views[0].run.parent / "compare.png")
    print("rows from the top: real images, then " + ", ".join(v.title for v in views))
    return out


# ------------------------------------------------------------------------------- 18 compare --table

# Columns: head, measure ("": of the run itself), its number, format
COLUMNS = (
    ("images shown", "", "seen", ",.0f"), ("batch", "", "batch", ",.0f"), ("seconds", "", "seconds", ",.0f"),
    ("peak GB", "", "peak_gb", ".2f"),
    ("MSE", "errors", "mse", ".4f"), ("MSE of the mean image", "errors", "mse_mean_image", ".4f"),
    ("MSE of wrong pairs", "errors", "mse_wrong_pair", ".4f"), ("|G(E(x)) - x|", "errors", "mae", ".4f"),
    ("|E(G(w)) - w|", "latent", "recip_w", ".4f"), ("codes told apart, %", "latent", "told_apart", ".1f"),
    ("label flips, %", "flips", "flips", ".2f"),
    *((f"Frechet, {kind}", "frechet", f"frechet_{kind}", ".2f")
      for kind in ("samples", "reconstructions", "midpoints")),
    *((f"{what}, {kind}", "precision", f"{what}_{kind}", ".3f") for kind in ("samples", "reconstructions")
      for what in ("precision", "recall")),
    *((f"{method} {length}, %", "classifiers", f"{key}_{length}", ".2f")
      for method, key in (("1-NN", "1nn"), ("SVM", "svm")) for length in ("short", "long")),
)
Row = namedtuple("Row", "name label runs numbers facts how")       # numbers: {(measure, number): a value a run}


def rows_until(view, log):
    """Places of the rows of a run's log up to its weights, which may be kept ones."""
    return [i for i, kimg in enumerate(log.get("kimg", [])) if kimg * 1000 <= view.model.seen + 0.5]


def cost(view):
    """Seconds and peak memory (GB) of training, by the run's log: {} if it has none."""
    try:
        log = read_log(view.run)
    except Error:
        return {}
    rows = rows_until(view, log)
    found = {name: [log[name][i] for i in rows if log[name][i] is not None]
             for name in ("seconds", "peak_gb") if name in log}
    return {name: max(values) for name, values in found.items() if values}


def measured(view, run, args, names):
    """-> the `Row` of a run of that name alone; names: of measures."""
    of_run = dict(cost(view), seen=view.model.seen, batch=view.args.get("batch"))
    numbers = {("", key): value for key, value in of_run.items()}
    shape = "x".join(map(str, view.shape))
    name = " ".join(filter(None, (view.test.name, view.test.split)))
    facts = {"data": f"{name} {shape} ({view.test.fingerprint()})"}
    kinds = dict(frechet=dict(wanted=("samples", "reconstructions", "midpoints")),
                 precision=dict(wanted=("samples", "reconstructions")))
    how = {}
    for name in names:
        try:
            view.need(MEASURES[name].needs)
            m, how[name], title, _ = MEASURES[name].count(view, args, **kinds.get(name, {}))
        except Lacks as e:
            print(f"  {name} left out: {e}", flush=True)
            continue
        for key in [key for _, measure, key, _ in COLUMNS if measure == name]:
            numbers[name, key] = m.get(key, m.get(key.replace("frechet", "fid")))
        facts[f"n of {name}"] = m["n"]
        facts["features"] = m.get("extractor", facts.get("features"))
        facts["distance"] = title or facts.get("distance")
    return Row(run, f"{view.args['label']}, {view.args['backbone']}", {run: view.protocol},
               {key: [v] for key, v in numbers.items() if v is not None}, {k: v for k, v in facts.items() if v}, how)


def pooled(trials):
    """Rows of runs of one setting -> one."""
    runs = {}
    numbers = {}
    name = joint_name([row.name for row in trials])
    for row in trials:
        for what, fact in trials[0].facts.items():
            if row.facts.get(what) != fact:
                raise Error(f"{name} have the same settings, but differ in {what}; make a table of each")
        runs.update(row.runs)
        for key, values in row.numbers.items():
            numbers[key] = numbers.get(key, []) + values
    return trials[0]._replace(name=name, runs=runs, numbers=numbers)


def joint_name(names):
    """a8, a9, a10 -> a{8,9,10}, as a shell writes it; a number stays whole."""
    if len(names) == 1:
        return names[0]
    begin = os.path.commonprefix(names).rstrip("0123456789")                                # noqa: RUF071
    rest = [name.removeprefix(begin) for name in names]
    end = os.path.commonprefix([name[::-1] for name in rest])[::-1].lstrip("0123456789")    # noqa: RUF071
    return f"{begin}{{{','.join(name.removesuffix(end) for name in rest)}}}{end}"


def compare_table(args):
    """The equal-budget table: prints it, or writes it to --out.  -> for --json"""
    form = args.format or {".csv": "csv", ".md": "markdown"}.get(Path(args.out).suffix, "text")
    if args.out and not args.format and Path(args.out).suffix not in (".csv", ".md", ".txt"):
        raise Error(f"--out {args.out} does not say of which kind the table is to be; end it in .csv, .md or .txt")
    have = list(dict.fromkeys(measure for _, measure, _, _ in COLUMNS if measure))
    asked = {name for names in args.only for name in names}
    if strangers := asked.difference(have):
        raise Error(f"the table has no column of {min(strangers)}; --only can be {', '.join(have)}")
    names = [name for name in have if name in asked] or have
    check_measured(args, names)
    check_once(args.runs)
    for run in args.runs:
        common.read_args(run)                           # a wrong one shows at once
    short = [" ".join(Path(run).resolve().name.split()) for run in args.runs]
    short = short if len(set(short)) == len(short) else args.runs
    trials = {}
    with contextlib.redirect_stdout(sys.stderr if leads() else sys.stdout):     # the table alone goes to a pipe
        for run, name in zip(args.runs, short, strict=True):
            view = View(run, args)
            print(view.title, flush=True)
            own = OF_A_TRIAL | {"decoder"}
            files = {k: Path(view.args[k]).name for k in ("perceptual", "vgg") if view.args.get(k)}
            setting = repr([sorted((k, repr(v)) for k, v in (view.args | files).items() if k not in own),
                            view.model.seen])
            trials.setdefault(setting, []).append(measured(view, name, args, names))
    table = [pooled(of_one) for of_one in trials.values()]
    columns = [column for column in COLUMNS if any(row.numbers.get(column[1:3]) for row in table)]
    text = dict(text=as_text, csv=as_csv, markdown=as_markdown)[form](table, columns, notes_of(table, args))
    if not args.out:
        print(text, end="")
    elif leads():
        print(write(Path(args.out), text.encode(errors="surrogateescape")))
    return {row.name: dict(label=row.label, facts=row.facts, protocol=row.runs, how=row.how, numbers={
        f"{measure or 'run'} {key}": dict(zip(("mean", "deviation"), mean_of(values)), values=values)
        for (measure, key), values in row.numbers.items() if values}) for row in table}


def notes_of(table, args):
    """Lines under the table: what rows do not have in common, then what the numbers depend on."""
    notes = []
    for what in dict.fromkeys(what for row in table for what in row.facts):
        groups = {}
        for row in table:
            if fact := row.facts.get(what):
                words = of_each(fact) if isinstance(fact, dict) else f"{fact:,}" if isinstance(fact, int) else fact
                groups.setdefault(words, []).append(row.name)
        if len(groups) > 1:
            notes.append(f"rows differ in {what}, so compare those of one alone: "
                         + "; ".join(f"{value}: {', '.join(rows)}" for value, rows in groups.items()))
    if any(len(row.runs) > 1 for row in table):
        notes.append("mean ± standard deviation over the runs of a setting, which may differ in seed, device and code, "
                     "and LIA's decoders in length, batch and rate")
    hows = {}
    for row in table:
        for name, how in row.how.items():
            hows.setdefault((name, how), []).append(row.name)
    for (name, how), rows in hows.items():
        several = len([other for other, _ in hows if other == name]) > 1
        notes.append(f"{name} ({', '.join(rows)}): {how}" if several else f"{name}: {how}")
    notes += [f"{run}: {protocol}" for row in table for run, protocol in row.runs.items()]
    notes.append(f"evaluation seed {args.seed}, evaluation code {common.code_version()} on {args.device.type}")
    return notes


def heads_of(table, columns):
    """The columns' heads; a Frechet distance has its own name if all rows' have it."""
    titles = {row.facts["distance"] for row in table if "distance" in row.facts}
    title = titles.pop() if len(titles) == 1 else "Frechet"
    return [head.replace("Frechet", title) for head, _, _, _ in columns]


def shown(table, columns):
    """Rows of text: name, method, how many runs if that is above 1 anywhere, then a cell a column;
    and how many cells are no numbers."""
    out = [["run", "method", "runs"] + heads_of(table, columns)]
    for row in table:
        out.append([row.name, row.label, str(len(row.runs))])
        for _, measure, key, form in columns:
            out[-1].append(spread(row.numbers.get((measure, key)), form, alike=False))
    if any(len(row.runs) > 1 for row in table):
        return out, 3
    return [row[:2] + row[3:] for row in out], 2


def as_text(table, columns, notes):
    """Blocks of columns, 120 characters wide at most, each with the rows' names."""
    lines, first = shown(table, columns)
    texts = []
    for i, column in enumerate(zip(*lines, strict=True)):
        width = max(map(len, column))
        texts.append([text.ljust(width) if i < 2 else text.rjust(width) for text in column])
    names = texts[0]
    blocks = [names]
    for i, column in enumerate(texts[1:], 1):
        if i >= first and len(blocks[-1][0]) + 2 + len(column[0]) > 120:
            blocks.append(names)
        blocks[-1] = [f"{line}  {text}" for line, text in zip(blocks[-1], column, strict=True)]
    return "\n\n".join("\n".join(lines) for lines in [*blocks, notes]) + "\n"


def as_markdown(table, columns, notes):
    """A row a run; a row a measure if there are over a dozen, and more of them than runs."""
    lines, first = shown(table, columns)
    lines = [[text.replace("|", "\\|").replace("<", "&lt;") for text in line] for line in lines]
    if len(lines[0]) > max(12, len(lines)):
        lines, first = list(zip(*lines, strict=True)), 1
    lines.insert(1, ["---"] * first + ["---:"] * (len(lines[0]) - first))
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return body + "\n" + "".join(f"- {note}\n" for note in notes)


def as_csv(table, columns, notes):
    """Numbers to 6 digits; deviations have columns of their own, as protocols and notes."""
    many = 2 if any(len(row.runs) > 1 for row in table) else 1              # columns of a number
    heads = [words for head in heads_of(table, columns) for words in (head, f"{head}, deviation")[:many]]
    lines = [["run", "method", "runs"] + heads + ["protocol", "notes"]]
    for row in table:
        values = [v for column in columns for v in mean_of(row.numbers.get(column[1:3]))[:many]]
        cells = ["" if v is None else f"{v:.6g}" if abs(v) < 1e5 else f"{v:.0f}" for v in values]
        cells += ["; ".join(row.runs.values()), " | ".join(notes)]
        lines.append([row.name, row.label, len(row.runs)] + cells)
    return csv_of(lines)


def check_out(args, endings=(".png",)):
    out = Path(args.out or "picture.png")
    if out.suffix not in endings:
        better = out / "picture.png" if out.is_dir() else out.with_suffix(".png")
        raise Error(f"--out {args.out} names no PNG; pictures are PNGs: pass {better}")
    check_spares(args, [*getattr(args, "images", []), getattr(args, "mask", "")])


def check_spares(args, given):
    """Raises Error if --out is one of the user's own files."""
    if args.out and Path(args.out).resolve() in [Path(path).resolve() for path in given if path]:
        raise Error(f"--out {args.out} would write over {args.out} itself; name another file")


def write_picture(picture, path):
    if leads():
        print(write(Path(path), common.bytes_of(Image.fromarray(picture).save, "png")))


# ------------------------------------------------------------------------------------------ 19 Demo
# A page that only this machine reaches.  Codes travel with each request, so the server keeps nothing
# but the models, which one thread runs.  The page waits for each picture, then asks for the next.

BODY = 20 * 2**20
PIXELS = 50_000_000  # bytes of a request and pixels of a photo, at most
PHOTOS = "PNG JPEG WEBP AVIF GIF BMP TIFF PPM".split()      # formats; none that runs another program, as EPS does
GUARDS = {                                  # the browser runs nothing but the page, and shows it in no other one
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class Refused(Exception):
    """A request without an answer: its status, and why, in a sentence for the page."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


def whole(text, end, name):
    """"12" -> 12, below end."""
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) >= end:
        raise Refused(400, f"The number of the {name} is from 0 to {end - 1:,}.")
    return int(text)


def read_photo(content, shape):
    """The bytes of an image file -> (1, C, H, W) in [-1, 1], read as in training."""
    try:
        Image.init()
        image = Image.open(io.BytesIO(content), formats=[kind for kind in PHOTOS if kind in Image.OPEN])
        if image.width * image.height > PIXELS:
            raise Image.DecompressionBombError
        return common.to_float(torch.tensor(data.to_array(image, shape[0], shape[:0:-1])))[None]
    except Image.DecompressionBombError:
        raise Refused(413, f"The photo has more than {PIXELS // 10**6} million pixels; take a smaller one.") from None
    except Exception as e:                              # for a damaged image Pillow raises nearly any
        raise Refused(415, f"This file cannot be read as an image ({type(e).__name__}); take a whole PNG, JPEG, WebP, "
                           f"GIF, BMP or TIFF.") from None


def png(x):
    """An image (1, C, H, W) in [-1, 1] -> the bytes of a PNG."""
    return common.bytes_of(Image.fromarray(picture_of(x[0])).save, "png", compress_level=1)


class Played:
    """A view, and what the page asks of it: methods from str or bytes, of a request, to bytes."""

    def __init__(self, view):
        self.view, self.model, self.directions, w = view, view.model, {}, None
        if view.can(PRIOR):
            w = self.model.map(view.codes(10_000, 0))
            w = double(w - w.mean(0))
        for path in sorted((view.run / "boundaries").glob("*.npy")):
            normal = read_normal(path, view)
            scale = 1 if w is None else (w @ double(normal)).std().float()
            self.directions[f"boundary {path.stem}"] = normal * scale
        if w is not None:
            variances, vectors = torch.linalg.eigh(w.T @ w / len(w))            # the smallest first
            scaled = (vectors * variances.clamp(min=0).sqrt()).float().T.flip(0).to(view.device)
            self.directions.update({f"principal direction {i}": v for i, v in enumerate(scaled[:10], 1)})

    def about(self):
        """What the page is to show.  pictures: the run's PNGs, the only files that are served."""
        run, grown = self.view.run, self.view.growing
        pictures = [p.relative_to(run).as_posix() for p in run.rglob("*.png") if p.is_file() and not p.is_symlink()]
        return dict(title=self.view.title, name=self.view.name, pictures=sorted(pictures),
                    prior=hasattr(self.model, "prior"), mean_w=hasattr(self.model, "mean_w"),
                    directions=list(self.directions),
                    levels=[] if self.model.num_layers == 1 else [max(grown.size(i)) for i in range(grown.top + 1)])

    def picture(self, name):
        if name not in self.about()["pictures"]:
            raise Refused(404, "The run has no such picture.")
        return (self.view.run / name).read_bytes()

    def start(self, x, w, z=None):
        """An image's picture, w, and z if that is known."""
        if z is None and hasattr(self.model, "unmap"):
            z = self.model.unmap(w)
        about = dict(picture=inlined(png(x)), w=w[0].tolist(), z=None if z is None else z[0].tolist())
        return json.dumps(about).encode()

    def start_real(self, x):
        self.view.need(["encode"])
        return self.start(x, self.model.encode(x))

    def photo(self, content):
        return self.start_real(read_photo(content, self.view.shape).to(self.view.device))

    def test(self, number):
        return self.start_real(self.view.images([whole(number, len(self.view.test), "test image")]))

    def sample(self, number):
        """The picture of a seed, the number, as `samples` has it."""
        self.view.need(PRIOR)
        z = codes_of_seeds(self.view, [whole(number, 10**9, "sample")])
        w = self.model.map(z)
        return self.start(self.model.generate(w, noise="fixed"), w, z)

    def code(self, space, a, b, t, moves, levels, psi):
        """w (1, nw) or (1, num_layers, nw): from a to b by t, straight in `space`, moved by standard
        deviations along directions, with b's styles at levels, psi times as far from the mean w."""
        def tensor(values, *size):
            v = torch.tensor(np.asarray(values, float)).float().to(self.view.device)
            if v.shape != size or not v.isfinite().all():
                raise ValueError
            return v
        model = self.model
        a, b = (tensor(values, 1, model.nz if space == "z" else model.nw) for values in ([a], [b]))
        w = torch.lerp(a, b, tensor(t))
        if space == "z":
            w, b = model.map(w), model.map(b)
        for name, amount in moves.items():
            if name in self.directions:                 # else it is another run's
                w = w + tensor(amount) * self.directions[name]
        if levels and model.num_layers > 1:
            w = w[:, None].repeat(1, model.num_layers, 1)
            for level in set(levels):
                w[:, 2 * level:2 * level + 2] = b[:, None]
        if psi != 1 and hasattr(model, "mean_w"):
            w = truncate(w, model.mean_w, tensor(psi), model.num_layers, model.num_layers)
        return w

    def asked(self, content):
        try:
            return self.code(**json.loads(content))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as e:
            raise Refused(400, f"These are no codes and sliders of this run ({type(e).__name__}).") from None

    def draw(self, content):
        return png(self.model.generate(self.asked(content), noise="fixed"))

    def codes(self, content):
        """An .npz such as `encode` writes and `decode` reads, of w, and of z if w has one."""
        w = self.asked(content)
        z = dict(z=self.model.unmap(w).cpu().numpy()) if hasattr(self.model, "unmap") and w.ndim == 2 else {}
        return common.bytes_of(np.savez, w=w.cpu().numpy(), names=["demo"], run=json.dumps(identity(self.view)), **z)


ROUTES = {"GET /picture": ("image/png", Played.picture), "GET /test": ("application/json", Played.test),
          "GET /sample": ("application/json", Played.sample), "POST /photo": ("application/json", Played.photo),
          "POST /draw": ("image/png", Played.draw), "POST /codes": ("application/octet-stream", Played.codes)}


class Request(http.server.BaseHTTPRequestHandler):
    """Answers one connection's requests; whatever is wrong becomes a status and a sentence."""
    protocol_version = "HTTP/1.1"       # a connection serves many frames
    disable_nagle_algorithm = True      # or each would wait 40 ms
    timeout = 15                        # seconds to wait for more of a request

    def do_GET(self):
        status, kind = 200, "text/plain; charset=utf-8"
        try:
            kind, content = self.answer()
        except (Refused, Error) as e:
            status, content = getattr(e, "status", 400), str(e).encode()
        except Exception:
            traceback.print_exc()
            status, content = 500, b"This went wrong; the terminal says how."
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), **GUARDS}
        if status != 200 or self.command != "POST":         # something of the request may be left unread
            headers["Connection"] = "close"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)
    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass

    def answer(self):
        """-> content type, bytes."""
        path, _, query = self.path.partition("?")
        self.check_origin(path)
        route = f"{self.command} {path}".replace("HEAD", "GET")
        if route == "GET /":
            return "text/html; charset=utf-8", PAGE.encode()
        if route == "GET /runs":
            return "application/json", json.dumps([played.about() for played in self.server.played]).encode()
        if route not in ROUTES:
            raise Refused(404, "There is no such page.")
        query, (kind, function) = dict(urllib.parse.parse_qsl(query)), ROUTES[route]
        run = self.server.played[whole(query.get("run", ""), len(self.server.played), "run")]
        return kind, self.server.work(function, run, self.body() if self.command == "POST" else query.get("of", ""))

    def check_origin(self, path):
        """Only this page may ask: other sites can have this machine's browser send requests, too."""
        host = self.headers.get("Host")
        port = self.server.server_address[1]
        if host not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            raise Refused(403, f"This page is http://127.0.0.1:{port}.")
        site = self.headers.get("Sec-Fetch-Site", "none") if path != "/" else "none"        # a link may lead to it
        if self.headers.get("Origin", f"http://{host}") != f"http://{host}" or site not in ("none", "same-origin"):
            raise Refused(403, "Another site's page asked for this.")

    def body(self):
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,15}", length):
            raise Refused(411, "A request has to say how long it is.")
        if int(length) > BODY:
            raise Refused(413, f"The file has more than {BODY // 2**20} MB; take a smaller one.")
        content = b""
        with contextlib.suppress(TimeoutError):
            content = self.rfile.read(int(length))
        if len(content) < int(length):
            raise Refused(408, "The upload took too long; try again.")
        return content


class Server(socketserver.ThreadingTCPServer):
    """Serves views on 127.0.0.1; port 0 takes any free one."""
    allow_reuse_address = daemon_threads = True
    request_queue_size = 256

    def __init__(self, views, port):
        try:
            super().__init__(("127.0.0.1", port), Request)
        except OSError as e:
            raise Error(f"port {port} cannot be had ({e.strerror}); name another by --port, or 0 for any") from None
        self.worker = concurrent.futures.ThreadPoolExecutor(1, initializer=torch.set_grad_enabled, initargs=(False,))
        self.played = [self.work(Played, view) for view in views]

    def handle_error(self, *_):
        """Whoever asked has gone; `Request` tells other errors."""

    def work(self, function, *args):
        """function(*args) in the one thread that runs models."""
        return self.worker.submit(function, *args).result()


def demo(args):
    """A page in the browser: photos through the runs, sliders along directions of w, style mixing.

    It needs no network, and only this machine reaches it.  Ctrl-C ends it.
    """
    views = [View(run, args) for run in args.runs]
    with Server(views, args.port) as server:
        print(f"open http://127.0.0.1:{server.server_address[1]} on this machine; Ctrl-C ends it", flush=True)
        server.serve_forever()


# How the pages of `demo` and `report` begin
HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; font: 1rem/1.45 system-ui, sans-serif }
  body { max-width: 90rem; margin: 0 auto; padding: 0 1rem 3rem; overflow-wrap: anywhere }
  h1 { font-size: 1.5rem; margin: 1rem 0 .2rem }
  [hidden] { display: none !important }
  [type=range] { display: block; width: 100%; min-height: 2rem; margin: 0 }
  :focus-visible { outline: 3px solid currentColor; outline-offset: 2px }
</style>
"""
PAGE = HEAD + r"""<title>Codes to play with</title>
<style>
  h2 { font-size: 1rem; margin: 0 0 .5rem }
  [role=status] { min-height: 1.4em; margin: .2rem 0 .5rem; font-weight: 600 }
  main { display: grid; gap: 1rem; grid-template-columns: 20rem minmax(0, 1fr); align-items: start }
  #images { grid-row: span 2; display: grid; gap: 1rem }
  #runs { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)) }
  fieldset, section { border: 1px solid GrayText; border-radius: .5rem; padding: .7rem; margin: 0; min-width: 0 }
  fieldset > label { display: block; margin-bottom: .4rem }
  .figures { display: grid; gap: .5rem; grid-auto-flow: column; grid-auto-columns: minmax(0, 15rem) }
  figure { margin: 0; font-size: .85rem }
  figure :is(img, canvas) { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
                            image-rendering: pixelated }
  button, select, input { font: inherit; min-height: 2.2rem; max-width: 100%; box-sizing: border-box }
  [type=file] { width: 100%; padding: .8rem; border: 2px dashed GrayText; border-radius: .5rem }
  #images form { display: flex; gap: .5rem; margin-top: .5rem }
  #images form * { flex: 1; min-width: 0 }
  [type=checkbox] { min-height: 1.3rem; vertical-align: middle }
  output { float: right }
  #levels { display: flex; flex-wrap: wrap; gap: 0 .8rem; margin: 0 0 .4rem }
  #moves { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)) }
  details { margin-top: .7rem }
  details img { display: block; max-width: 100%; margin-top: .5rem }
  @media (max-width: 55rem) {
    main { grid-template-columns: minmax(0, 1fr) }
    #runs { position: sticky; top: 0; max-height: 50vh; overflow: auto; background: Canvas }
  }
</style>
<h1>Codes to play with</h1>
<p role="status">Starting ...</p>
<main>
  <div id="images"></div>
  <div id="runs"></div>
  <form id="sliders"><fieldset><legend>Picture</legend>
    <label>From A to B <output></output><input type="range" name="t" min="0" max="1" step="0.01" value="0"></label>
    <label>straight in <select name="space"><option>w</option><option>z</option></select></label>
    <p id="levels">Styles of B at </p>
    <label id="psi">Truncation <output></output>
      <input type="range" name="psi" min="0" max="1.5" step="0.01" value="1"></label>
    <div id="moves"></div>
    <button type="reset">Reset</button>
  </fieldset></form>
</main>
<template id="image">
  <fieldset><legend></legend>
    <label>Drop or choose a photo <input type="file" accept="image/*"></label>
    <form data-path="sample"><button>Sample</button>
      <input type="number" min="0" value="0" aria-label="number of the sample"></form>
    <form data-path="test"><button>Test image</button>
      <input type="number" min="0" value="0" aria-label="number of the test image"></form>
  </fieldset>
</template>
<template id="run">
  <section><h2></h2>
    <div class="figures">
      <figure hidden><img class="A" alt="image A">A <a download="A.png">PNG</a></figure>
      <figure><canvas role="img" aria-label="what the run makes"></canvas>Picture
        <a download="picture.png" href="#">PNG</a> <a class="codes" href="#">codes</a></figure>
      <figure><canvas role="img" aria-label="difference of picture and A"></canvas>Difference
        <a download="difference.png" href="#">PNG</a></figure>
      <figure hidden><img class="B" alt="image B">B <a download="B.png">PNG</a></figure>
    </div>
    <details><summary>Curves and pictures of the run</summary>
      <select aria-label="picture"></select><img alt=""></details>
  </section>
</template>
<script>
"use strict";
const $ = css => document.querySelector(css), copy = id => $(id).content.cloneNode(true).firstElementChild;
const sliders = $("#sliders"), runs = [], turns = {A: 0, B: 0};
const say = text => $("[role=status]").textContent = text;

async function ask(path, body) {        // the answer; throws the sentence that says why there is none
  const failed = () => { throw new Error("There is no answer; eval.py demo may have ended."); };
  const answer = await fetch(path, body && {method: "POST", body}).catch(failed);
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

async function load(slot, path, file) { // an image into slot A or B of every run
  if (file && file.size > 20 * 2 ** 20) return say("The file has more than 20 MB; take a smaller one.");
  const turn = ++turns[slot], wrong = new Set();
  for (const run of runs) {
    try {
      const code = await (await ask(`${path}&run=${run.number}`, file)).json();
      if (turn != turns[slot]) return;                          // another image has been asked for since
      run[slot] = code;
      if (!code.z && sliders.space.value == "z") {
        sliders.space.value = "w";
        moved();
      }
      const image = run.part(`img.${slot}`);
      image.src = image.nextElementSibling.href = code.picture;
      image.parentElement.hidden = false;
      await image.decode();
      draw(run);
    } catch (e) { wrong.add(e.message); }
  }
  const z = runs.every(run => [run.A, run.B].every(code => !code || code.z));
  sliders.space.options[1].disabled = !z;
  say([...wrong].join(" "));
}

function asked(run) {                   // what the sliders ask of a run
  const form = new FormData(sliders), a = run.A || run.B, b = run.B || a, space = form.get("space"), moves = {};
  for (const [name, value] of form) if (name.startsWith("move ") && +value) moves[name.slice(5)] = +value;
  return JSON.stringify({space, a: a[space], b: b[space], t: +form.get("t"), moves,
                         levels: form.getAll("level").map(Number), psi: +form.get("psi")});
}

async function draw(run) {              // one request at a time; what moves meanwhile is asked for once, after it
  run.stale = true;
  if (run.busy || !(run.A || run.B)) return;
  run.busy = true;
  while (run.stale) {
    run.stale = false;
    try {
      const picture = await (await ask(`draw?run=${run.number}`, asked(run))).blob();
      show(run, await createImageBitmap(picture));
    } catch (e) { say(e.message); }
  }
  run.busy = false;
}

function show(run, picture) {           // it, and |it - A|, pixel by pixel
  const [made, difference] = run.canvases.map(canvas => {
    canvas.width = picture.width;
    canvas.height = picture.height;
    return canvas.getContext("2d");
  });
  made.drawImage(picture, 0, 0);
  difference.drawImage(run.part("img.A"), 0, 0);
  difference.globalCompositeOperation = "difference";
  difference.drawImage(picture, 0, 0);
}

function moved() {
  for (const output of sliders.querySelectorAll("output")) output.value = output.nextElementSibling.value;
  runs.forEach(draw);
}

function addImage(slot) {
  const field = copy("#image");
  field.querySelector("legend").textContent = `Image ${slot}`;
  field.querySelector("[type=file]").onchange = e => e.target.files[0] && load(slot, "photo?", e.target.files[0]);
  for (const form of field.querySelectorAll("form")) {
    form.onsubmit = e => { e.preventDefault(); load(slot, `${form.dataset.path}?of=${form[1].value}`); };
  }
  $("#images").append(field);
}

function addRun(about, number) {
  const section = copy("#run"), run = {number, part: css => section.querySelector(css)};
  run.part("h2").textContent = about.title;
  run.canvases = [...section.querySelectorAll("canvas")];
  for (const canvas of run.canvases) canvas.nextElementSibling.onclick = e => e.target.href = canvas.toDataURL();
  run.part(".codes").onclick = async e => {
    e.preventDefault();
    try {
      const href = URL.createObjectURL(await (await ask(`codes?run=${number}`, asked(run))).blob());
      Object.assign(document.createElement("a"), {href, download: `${about.name}.npz`}).click();
    } catch (e) { say(e.message); }
  };
  const choice = run.part("details select"), image = run.part("details img");
  choice.append(...about.pictures.map(name => new Option(name)));
  choice.onchange = run.part("details").ontoggle = () => {
    image.src = `picture?run=${number}&of=${encodeURIComponent(choice.value)}`;
  };
  run.part("details").hidden = !about.pictures.length;
  $("#runs").append(section);
  runs.push(run);
}

function addInput(place, text, values) {        // a slider or a box, with its label
  const label = document.createElement("label"), input = document.createElement("input");
  for (const [name, value] of Object.entries(values)) input.setAttribute(name, value);
  label.append(text, ...(values.type == "range" ? [document.createElement("output")] : []), input);
  place.append(label, " ");
}

async function start() {
  const about = await (await ask("runs")).json();
  ["A", "B"].forEach(addImage);
  about.forEach(addRun);
  const levels = about.map(run => run.levels).sort((a, b) => b.length - a.length)[0];
  levels.forEach((size, value) => addInput($("#levels"), `${size} px`, {type: "checkbox", name: "level", value}));
  for (const name of new Set(about.flatMap(run => run.directions)))
    addInput($("#moves"), name, {type: "range", name: `move ${name}`, min: -4, max: 4, step: 0.05, value: 0});
  $("#levels").hidden = !levels.length;
  $("#psi").hidden = !about.some(run => run.mean_w);
  sliders.oninput = moved;
  sliders.onreset = () => setTimeout(moved);
  window.ondragover = window.ondrop = e => e.target.type == "file" || e.preventDefault();     // beside it: stay here
  moved();
  await load("A", about.every(run => run.prior) ? "sample?of=0" : "test?of=0");
}
start().catch(e => say(e.message));
</script>
</html>
"""


# ---------------------------------------------------------------------------------------- 20 Report
# A page a run, in one file: numbers first, then pictures, curves, figures and settings.

QUICK = ("errors", "latent", "sharpness")       # what is measured without --metrics
REPORT_N = 500                                  # of so many images
HEADLINES = {                                   # numbers that matter most, and how they are read
    "errors mse": "MSE of reconstructions", "errors mse_mean_image": "floor: MSE of the mean image",
    "errors mse_wrong_pair": "floor: MSE of wrong pairs", "flips flips": "label flips, %",
    "frechet fid_samples": "FID of samples", "frechet frechet_samples": "Frechet, samples",
    "frechet fid_reconstructions": "FID of reconstructions",
    "frechet frechet_reconstructions": "Frechet, reconstructions",
    "precision precision_samples": "precision of samples", "precision recall_samples": "recall of samples",
    "latent recip_w": "|E(G(w)) - w| a dimension", "classifiers 1nn_long": "1-NN, long features, %"}
ASIDE = dict(models="other runs next to this one", edit="pictures that were edited by hand", frames="a film",
             path="minutes of optimisation", tiles="a run with --patches, or larger images by --images",
             deblur="a run with --patches, or larger images by --images")       # figures that need more than the run
FILMS = ("reconstructions", "samples")
SETTING_OF = dict(given="given", inherited="of the run that it begins from", paper="of the paper",
                  code="of the authors' code", ours="ours")
WIDEST = 1600                                   # pixels; wider figures are shown smaller
PAGE_BYTES = 30 * 2**20                         # of pictures by time; of more than that, some are left out


def shown_number(value):
    """A number of a measure as text; "-" for None, and what is no number as it is."""
    if isinstance(value, float):
        return plain(value, 4) if math.isfinite(value) else str(value)
    return "-" if value is None else f"{value:,}" if type(value) is int else str(value)


def flat_numbers(numbers, before=""):
    """{"n": {"samples": 5}} -> {"n samples": 5}."""
    out = {}
    for name, value in numbers.items():
        name = before + name
        out.update(flat_numbers(value, f"{name} ") if isinstance(value, dict) else {name: value})
    return out


def read_metrics(path):
    """What `metrics --json` has written: {run: {measure: {name: number}}}."""
    try:
        found = json.loads(Path(path).read_text())
        if not all(isinstance(numbers, dict) for measures in found.values() for numbers in measures.values()):
            raise TypeError
    except (OSError, ValueError, AttributeError, TypeError) as e:
        raise Error(f"{path} holds no numbers of runs ({type(e).__name__}); name a file of `eval.py metrics "
                    f"--json`") from None
    return found


def numbers_of(view, args, found):
    """-> {measure: numbers} of a run, of `found` or, if None, of now; and where they are from."""
    if found is not None:
        here = [numbers for run, numbers in found.items() if Path(run).resolve() == view.run.resolve()]
        if not here:
            raise Error(f"{args.metrics} has no numbers of {view.run}, but of {', '.join(found) or 'no run'}; run "
                        f"`eval.py metrics {view.run} --json FILE`")
        of_these = all(view.protocol in numbers["protocol"] for numbers in here[0].values() if "protocol" in numbers)
        return here[0], f"from {args.metrics}{'' if of_these else ', some of other weights: see the protocols'}"
    out = {}
    for name in QUICK:
        try:
            view.need(MEASURES[name].needs)
            numbers, how, _, _ = MEASURES[name].count(view, args)
            out[name] = dict(numbers, protocol=f"{how}; {depends_on(view, args)}")
        except Error as e:
            out[name] = dict(protocol=f"left out: {e}")
    return out, f"measured for this page, the quick ones: {', '.join(QUICK)}"


def read_log(run):
    """log.csv of a run -> {column: numbers, None where there is none}; {} without the file."""
    path = run / "log.csv"
    if not path.exists():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as f:
            rows = [row for row in csv.DictReader(f) if row["kimg"] and row["seconds"]]
        return {name: [float(row[name]) if row[name] else None for row in rows] for name in rows[0]}
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as e:
        raise Error(f"{path} does not hold a run's rows ({type(e).__name__}); put back a copy, or move it "
                    f"away") from None


def chart(name, kimg, values):
    """A curve of log.csv as SVG; logarithmic where it spans two orders of magnitude."""
    points = [(k, v) for k, v in zip(kimg, values) if v is not None and math.isfinite(v)]
    if not points:
        return ""
    x, y = np.array(points).T
    low, high = y.min(), y.max()
    logs = low > 0 and high > 100 * low
    ends = (math.log(low), math.log(high)) if logs else (low, high)
    across = 300 * (x - x[0]) / max(x[-1] - x[0], 1e-9)
    up = 100 - 100 * ((np.log(y) if logs else y) - ends[0]) / max(ends[1] - ends[0], 1e-12)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up))
    dot = f'<circle cx="{across[-1]:.1f}" cy="{up[-1]:.1f}" r="3"/>'
    last = shown_number(float(y[-1]))
    return (f'<figure><figcaption>{html.escape(name)} <b>{last}</b>{" (log scale)" if logs else ""}</figcaption>'
            f'<svg viewBox="-4 -4 308 108" role="img" aria-label="{html.escape(name)}, at the end {last}">'
            f'<polyline points="{line}"/>{dot}</svg><p>{shown_number(float(low))} to {shown_number(float(high))}; '
            f"{x[0]:g} to {x[-1]:g} kimg</p></figure>")


def inlined(content):
    """The bytes of a PNG -> an address that holds them."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def checked_png(path):
    try:
        Image.open(path).verify()
        return path.read_bytes()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise Error(f"{path} is no whole picture, or too large a one ({type(e).__name__}); delete it") from None


def film_of(run, kind):
    """-> <figure> of a folder's pictures, such as samples, of which the slider shows one, or ""."""
    paths = sorted((p for p in (run / kind).glob("*.png") if re.fullmatch(r"\d+(\.\d+)?", p.stem)),
                   key=lambda path: float(path.stem))
    if not paths:
        return ""
    size = sum(path.stat().st_size for path in paths)
    kept = [paths[i] for i in evenly(len(paths), max(2, int(len(paths) * PAGE_BYTES / max(size, 1))))]
    images = [f'<img data-kimg="{float(path.stem):g}" alt="{kind} at {float(path.stem):g} kimg" '
              f'src="{inlined(checked_png(path))}"{"" if path == kept[-1] else " hidden"}>' for path in kept]
    left_out = f", {len(kept)} of {len(paths)} pictures" if len(kept) < len(paths) else ""
    return f"<figure><figcaption>{kind}{left_out}</figcaption>{''.join(images)}</figure>"


def figure_of(name, content, note):
    return (f'<figure><figcaption><b>{html.escape(name)}</b></figcaption><img alt="figure {html.escape(name)}" '
            f'src="{inlined(content)}"><p>{html.escape(note)}</p></figure>')


def figures_of(view, args):
    """-> <figure>s that the run alone gives or its folder holds, and <li>s about the others."""
    made = []
    rest = []
    for name, row in FIGURES.items():
        command = ["figure", name, str(view.run)]
        if name == "manipulate" and (normals := sorted((view.run / "boundaries").glob("*.npy"))[:5]):
            command += ["--boundary", *map(str, normals)]
        if name in ("reconstructions", "variants", "inpaint", "merge"):
            command += ["--columns", "8"]               # for a phone
        for flag in ("seed", "weights", "kimg", "data", "data_root"):
            if (value := getattr(args, flag)) != args.parser.get_default(flag):
                command += [common.flag(flag), str(value)]
        own = parse_args(command)
        own.device = args.device
        said = io.StringIO()
        try:
            if name in ASIDE and not (name in ("tiles", "deblur") and view.args.get("patches")):
                raise Error(ASIDE[name])
            with contextlib.redirect_stdout(said):
                image = Image.fromarray(picture_of_figure(own, [view]))
        except Error as e:
            rest.append(f"<li><b>{name}</b>: {html.escape(str(e))}</li>")
            continue
        papers = ", ".join(number for number, other in ALIASES.items() if other == name)
        smaller = math.ceil(image.width / WIDEST)
        words = [f"eval.py {shlex.join(command)}", f"shown at 1/{smaller} of its size" if smaller > 1 else "",
                 row.legend] + said.getvalue().splitlines()
        made.append(figure_of(f"{name} ({papers})" if papers else name,
                              common.bytes_of(image.reduce(smaller).save, "png"), ". ".join(filter(None, words))))
    for path in sorted((view.run / "figures").glob("*.png")):
        made.append(figure_of(f"figures/{path.name}", checked_png(path), "made earlier, perhaps with other weights"))
    return "".join(made), "".join(rest)


def settings_table(args):
    """A run's arguments by where they are from, as rows of a table."""
    aside = {"source", "given", "image_means", "versions", "method", "label", "resume"}
    rows = dict.fromkeys([*SETTING_OF.values(), "general"], "")
    for name, value in args.items():
        if name not in aside:
            title = SETTING_OF.get(args.get("source", {}).get(name), "general")
            rows[title] += f"<tr><th scope=row>{html.escape(common.flag(name))}<td>{html.escape(str(value))}"
    return "".join(f"<tbody><tr><th colspan=2 scope=rowgroup class=source>{title}{lines}</tbody>"
                   for title, lines in rows.items() if lines)


def page_of(view, args, found):
    """-> the page of a run, and its headlines, {words: number}."""
    log = read_log(view.run)                            # what may be broken comes before what takes long
    films = "".join(film_of(view.run, kind) for kind in FILMS)
    numbers, origin = numbers_of(view, args, found)
    flat = flat_numbers(numbers)
    heads = {words: shown_number(flat[name]) for name, words in HEADLINES.items() if flat.get(name) is not None}
    first = next((name.split()[0] for name in HEADLINES if flat.get(name) is not None), None)
    measured = []
    for measure, some in numbers.items():
        protocol = some.setdefault("protocol", "no protocol is given")
        lines = "".join(f"<tr><th scope=row>{html.escape(name)}<td>{html.escape(shown_number(value))}"
                        for name, value in flat_numbers(some).items() if name != "protocol")
        measured.append(f"<h3>{html.escape(measure)}</h3><table>{lines}</table><p>{html.escape(str(protocol))}</p>")
    curves = [chart(name, log["kimg"], values) for name, values in log.items() if common.is_curve(name)]
    figures, rest = figures_of(view, args)
    rows = rows_until(view, log)
    trained = f"{log['kimg'][rows[-1]]:g} kimg in {common.duration(log['seconds'][rows[-1]])}; " if rows else ""
    versions = ", ".join(f"{name} {version}" for name, version in view.args["versions"].items())
    page = string.Template(REPORT).substitute(
        title=html.escape(f"{view.args['label']}, {view.name}"),
        about=html.escape(f"{trained}{view.protocol}; {versions}"), origin=html.escape(origin),
        heads="".join(f"<div><dt>{html.escape(words)}<dd>{html.escape(value)}</div>" for words, value in heads.items()),
        protocol=html.escape(str(numbers[first]["protocol"] if first else
                                 "None of those that matter most is among them")),
        measured="".join(measured), films=films or "<p>The run has none.",
        curves="".join(curves) or "<p>The run has no log.csv.", figures=figures, rest=rest,
        settings=settings_table(view.args))
    return page, heads


def report(args):
    """Write a page a run, to read without a terminal: numbers, pictures by time, curves, figures.

    Each page is one file that needs no network; several runs have an index, too.  Numbers are those
    of --metrics, a file of `metrics --json`, or else errors, latent and sharpness of 500 (-n)
    images.  A run that fails is left out; the rest goes on, to exit status 2.
    """
    if args.metrics and args.n:
        raise Error("-n is of the numbers that report measures itself; leave it or --metrics out")
    found = read_metrics(args.metrics) if args.metrics else None
    args.n = args.n or REPORT_N
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    names = ["index"]
    failed = None
    for run in args.runs:
        try:
            view = View(run, args)
            page, heads = page_of(view, args, found)
        except Error as e:
            failed = e
            if len(args.runs) > 1:              # else it is said at the end alone
                print(f"{run}: left out: {e}", flush=True)
            continue
        stem = re.sub(r"[^\w.-]", "_", view.name) or "run"
        name = next(n for n in [stem] + [f"{stem}-{i}" for i in range(2, len(args.runs) + 2)] if n not in names)
        names.append(name)
        pages.append((view.title, heads, f"{name}.html"))
        write_page(folder / f"{name}.html", page)
    if len(pages) > 1:
        columns = [words for words in HEADLINES.values() if any(words in heads for _, heads, _ in pages)]
        lines = "".join(f'<tr><th scope=row><a href="{urllib.parse.quote(file)}">{html.escape(title)}</a>'
                        + "".join(f"<td>{html.escape(heads.get(words, '-'))}" for words in columns)
                        for title, heads, file in pages)
        heading = "".join(f"<th scope=col>{html.escape(words)}" for words in columns)
        write_page(folder / "index.html", string.Template(INDEX).substitute(heading=heading, lines=lines))
    if failed:
        raise failed


def write_page(path, page):
    print(f"{write(path, page.encode(errors='surrogateescape'))} ({len(page) / 2**20:.1f} MB)", flush=True)


TABLE_STYLE = """<style>
  body { max-width: 75rem }
  .wide { overflow-x: auto }
  table { border-collapse: collapse; font-size: .9rem }
  th, td { text-align: left; font-weight: normal; padding: .15rem .8rem .15rem 0; vertical-align: top;
           border-bottom: 1px solid color-mix(in srgb, GrayText 40%, transparent) }
  td { font-variant-numeric: tabular-nums }
</style>
"""
REPORT = HEAD + r"""<title>$title</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
  script-src 'unsafe-inline'">
<style>
  h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid GrayText }
  h3 { font-size: 1rem; margin: 1rem 0 .2rem }
  nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: .6rem 0 }
  .small, p { font-size: .85rem }
  .heads { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); margin: .8rem 0 }
  .heads div { border: 1px solid GrayText; border-radius: .5rem; padding: .5rem .7rem }
  .heads div:first-child { border-width: 3px }
  dt { font-size: .85rem }
  dd { margin: 0; font-size: 1.4rem; font-weight: 600 }
  figure { margin: 0 0 1.5rem; min-width: 0 }
  figcaption { margin-bottom: .3rem }
  img { max-width: 100%; height: auto }
  figure p { margin: .3rem 0 0 }
  .films, .curves { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr)) }
  .films { grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); align-items: start }
  .films img { width: 100%; image-rendering: pixelated }
  .curves figure { margin: 0 }
  .drawn { columns: 2 30rem; column-gap: 2rem }
  .drawn figure { break-inside: avoid }
  svg { display: block; width: 100%; border: 1px solid GrayText }
  polyline { fill: none; stroke: currentColor; stroke-width: 1.5 }
  circle { fill: currentColor }
  .source { font-weight: 600; padding-top: .8rem }
</style>
""" + TABLE_STYLE + r"""<h1>$title</h1>
<p class="small">$about</p>
<nav aria-label="parts of the page"><a href="#time">Pictures by time</a> <a href="#curves">Curves</a>
  <a href="#figures">Figures</a> <a href="#numbers">All numbers</a> <a href="#settings">Settings</a></nav>
<main>
<dl class="heads">$heads</dl>
<p>Numbers $origin. $protocol. <a href="#numbers">All numbers, and what each depends on</a></p>
<section id="time"><h2>Pictures by time</h2>
  <label id="time-label">At <output>the end</output>
    <input type="range" min="0" step="1" aria-label="pictures at so many thousand images"></label>
  <div class="films">$films</div></section>
<section id="curves"><h2>Curves</h2><div class="curves">$curves</div></section>
<section id="figures"><h2>Figures</h2><div class="drawn">$figures</div>
  <h3>Not here, and what they need</h3><ul class="small">$rest</ul></section>
<section id="numbers"><h2>All numbers</h2><p>Numbers $origin.</p>$measured</section>
<section id="settings"><h2>Settings</h2><div class="wide"><table>$settings</table></div></section>
</main>
<script>
"use strict";
const slider = document.querySelector("[type=range]"), output = document.querySelector("output");
const films = [...document.querySelectorAll(".films figure")].map(film => [...film.querySelectorAll("img")]);
const times = [...new Set(films.flat().map(image => +image.dataset.kimg))].sort((a, b) => a - b);
function show() {                       // of each film the last picture up to then
  output.value = times[slider.value] + " kimg";
  slider.setAttribute("aria-valuetext", output.value);
  for (const film of films) {
    const now = film.findLast(image => +image.dataset.kimg <= times[slider.value]) || film[0];
    for (const image of film) image.hidden = image != now;
  }
}
document.querySelector("#time-label").hidden = times.length < 2;
slider.max = slider.value = times.length - 1;
slider.oninput = show;
if (times.length) show();
</script>
</html>
"""
INDEX = HEAD + "<title>Runs</title>\n" + TABLE_STYLE + """<h1>Runs</h1>
<p>Compare numbers of one data set and one protocol; each page says its own.</p>
<div class="wide" tabindex="0"><table><thead><tr><th scope="col">run$heading<tbody>$lines</table></div>
</html>
"""


# ---------------------------------------------------------------------------------- 21 Command line

def measure_names(text):
    """"errors" or "errors,latent" -> a list.  What argparse shows of a wrong one."""
    for name in text.split(","):
        if name and name not in MEASURES and Path(name).is_dir():
            raise ArgumentTypeError(f"{name} is a folder; name RUN before --only")
        if name not in MEASURES:
            fid = name.lower() in ("fid", "kid")
            hint = "FID and KID are frechet, with --features inception" if fid else "name RUN before --only"
            raise ArgumentTypeError(f"there is no measure {name!r} but {', '.join(MEASURES)}; {hint}")
    return text.split(",")


def one_of(kind, names):
    """An argparse type: one of names; an error shows those that are nearest."""
    def parse(text):
        if text in names:
            return text
        if any(text == item.title.removeprefix(f"{kind} ") for item in ITEMS if item.note):
            raise ArgumentTypeError(f"{kind} {text} has no result to run; see `eval.py list`")
        near = " or ".join(difflib.get_close_matches(text, names, cutoff=0.5))
        raise ArgumentTypeError((f"{text} is a folder; the {kind}'s name comes before it" if Path(text).is_dir() else
                                 f"there is no {kind} {text!r}{near and ', but ' + near}") + "; see `eval.py list`")
    return parse


def seed_ranges(text):
    """An argparse type: "0,1,4-6" -> [0, 1, 4, 5, 6], as the StyleGAN tools read it."""
    out = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        try:
            seeds = range(common.seed(low), common.seed(high if dash else low) + 1)
        except ValueError:
            seeds = ()
        if not 0 < len(seeds) <= 10**7:
            raise ArgumentTypeError(f"{part!r} is no seed and no range of up to ten million, such as 4-6")
        out += seeds
    return out


# A new command is a function of args in COMMANDS, whose docstring is its help; flags are below.
COMMANDS = (metrics, table, figure, samples, encode, decode, interpolate, compare, invert, boundary, demo, report)
SHARED = ["metrics", "compare", "samples", "encode", "decode"] + [      # commands and tables for several processes
    f"table {name}" for name in TABLES if name not in ("alae-2", "invgan-2")]


def parse_args(argv=None):
    parser = common.Parser(__doc__.split("A run is")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    subs = {}
    for function in COMMANDS:
        doc = inspect.getdoc(function)
        sub = subs[function.__name__] = commands.add_parser(function.__name__, doc=doc, help=doc.splitlines()[0])
        sub.set_defaults(function=function, parser=sub)

    def add(to, *flags, help="", only="", unless="", **options):
        """only, unless: the tables or figures that a flag of these commands is for, or is not for"""
        for name in to.split():
            words = f"{only.replace(' ', ', ')}: {help}" if only and name == to else help
            action = subs[name].add_argument(*flags, help=words, **options)
            action.only, action.unless = only.split(), unless.split()
    every = " ".join(subs)
    subs["list"] = commands.add_parser("list", help="Every table and figure of the papers, and what runs suffice for.",
                                       doc=inspect.getdoc(listed))
    subs["list"].set_defaults(function=listed, parser=subs["list"], commands=subs, device="cpu", weights="", kimg=None)
    add("list", "runs", nargs="*", metavar="RUN", help="run folders")
    file = dict(default="", metavar="FILE")
    some = dict(nargs="+", default=[])
    number = dict(type=common.positive(int, 10**9), default=0)
    for kind, names in dict(table=list(TABLES), figure=list(FIGURES) + list(ALIASES)).items():
        add(kind, "name", type=one_of(kind, names), help=", ".join(names))
    add("metrics table figure compare demo report", "runs", nargs="+", metavar="RUN", help="run folders")
    add("samples encode decode interpolate invert boundary", "run", metavar="RUN", help="run folder")
    add("invert", "images", nargs="*", metavar="IMAGE", help="files (default: -n test images)")
    add("encode", "images", nargs="+", metavar="PATH", help="photos, folders and zips")
    add("decode", "codes", metavar="CODES", help="codes, .npz or .npy")
    add("interpolate", "points", nargs="+", metavar="POINT", help="photo, folder, zip, seed:N, .npz or .npy of codes")

    alone = ", ".join(name for name, measure in MEASURES.items() if measure.alone)
    add("metrics", "--only", type=measure_names, metavar="NAME", **some,
        help=f"measures, after RUN: {', '.join(MEASURES)} (default: all except {alone})")
    add("table", "--only", metavar="NAME", **some, only="invgan-2",
        help="labels, after RUN (default: 20 of CelebA's, all of other sets)")
    add("boundary", "--only", metavar="NAME", **some, help="labels, after RUN (default: all)")
    for names, default in {"metrics table compare": "10,000; tables invgan-1, invgan-3: 50,000",
                           "invert": "16", "boundary": "20,000", "report": "500"}.items():
        add(names, "-n", **number, unless="alae-2", help=f"number of images (default: {default})")
    add("figure", "-n", **number, unless="gradients", help="number of images (morph: along a side; "
        "traversal, interpolation, styles, merge: pairs; frames: times as many)")
    add("metrics table compare list", "--inception", **file, unless="alae-2 alae-4 invgan-2",
        help="weights of the FID's network, pt_inception-2015-12-05-6726825d.pth (default: fetched)")
    add("metrics table compare", "--features", default="auto", metavar="NAME", unless="alae-2 invgan-2",
        help="features for distances: inception, vgg16, or a classifier's of the set's labels "
             "(digits for MNIST, else the set's name; the default)")
    add("metrics table compare", "--reference", default="", choices=["train", "test"], unless="alae-2 alae-4 invgan-2",
        help="part that distances are to (default: train; SWD of reconstructions: their originals)")
    add("metrics table list", "--lpips", **file, only="alae-4 alae-5",
        help="heads of LPIPS-VGG 0.1, vgg.pth, for lpips and ppl (tables alae-4, alae-5: PPL by LPIPS, as with "
             "--features inception; else by the features that --features names)")
    add("metrics table compare invert list", "--vgg", **file, unless="alae-2 invgan-2",
        help="weights of VGG-16, vgg16-397923af.pth or others, perhaps without its top, for --features vgg16, lpips, "
             "ppl and --loss vgg9 (default: fetched)")
    add("metrics table", "--face-crop", action="store_true", only="alae-4 alae-5",
        help="ppl, alae-4, alae-5: the part where a face is (rows 3/8 to 7/8, columns 2/8 to 6/8)")
    add("table", "--classifier", default="resnet50", metavar="NAME", only="invgan-2",
        help="network of torchvision (default: resnet50)")
    add("table", "--epochs", type=common.positive(int), default=20, only="invgan-2",
        help="epochs of each classifier (default: 20)")
    add("invert", "--method", default="optimise", choices=["optimise", "in-domain", "encoder"],
        help="how codes are found: by gradient descent, the same from and near the encoder's code, or the encoder "
             "alone")
    add("invert", "--space", nargs="+", default=["w"], choices=["z", "w", "w+"],
        help="spaces of the codes, after IMAGE (default: w)")
    add("invert", "--loss", default="pixel", choices=["pixel", "vgg9"],
        help="loss: mean square of pixels, or of VGG-16 conv3_3 (in-domain: of pixels and of conv4_3)")
    add("table", "--optimise", **number, metavar="N", only="lia-1 invgan-1",
        help="rows of optimisation of the first N test images (default: none)")
    add("table", "--sources", default="test", choices=["test", "train"], only="alae-3",
        help="part whose images are reconstructed (default: test, as the paper; released code: train)")
    add("table", "--reference-n", **number, metavar="N", only="alae-3 alae-5 lia-2",
        help="number of training images that distances are to (default: all; ALAE's code and LIA's paper: 50000)")
    add("table", "--flip", action="store_true", only="alae-3 alae-5",
        help="half of the images that distances are to are flipped, as in the released code")
    add("invert table", "--steps", **number, only="lia-1 invgan-1",
        help="steps of descent (default: 1000, in-domain 100)")
    add("figure", "--steps", **number, metavar="N", only="models interpolation",
        help="steps of MSE optimisation, shown as well, or for an encoder that a run lacks")
    add("invert", "--optimizer", default="adam", choices=["adam", "descent"],
        help="optimiser: Adam, or plain gradient descent (default: adam)")
    add("invert", "--lr", type=common.positive(float), default=0.0,
        help="learning rate (default: 0.01, 1 with descent)")
    add("invert", "--save-path", action="store_true", help="pictures of the way there, too")
    add("figure", "--images", metavar="PATH", **some, help="real images instead of the test part's "
        "(morph: 4; mixing: -n sources, then 6 destinations; 5 at 32 and 16 px, 3 below)")
    add("figure", "--labels", default="on", choices=["on", "off"], unless="gradients",
        help="text next to rows and columns (default: on)")
    add("figure", "--columns", type=common.positive(int, 1000), default=0, metavar="N",
        only="samples reconstructions traversal interpolation manipulate variants inpaint merge edit",
        help="images in a row (traversal, interpolation, manipulate: steps)")
    add("figure", "--strength", type=common.number("number", float, math.isfinite), metavar="D", **some,
        only="manipulate", help="distances along the normals (default: -5 ... 5; of several boundaries 5)")
    add("figure", "--generated", action="store_true", only="mixing", help="samples instead of real images")
    add("figure", "--mask", **file, only="merge", help="picture that is white where the second image is to be")
    add("figure", "--frames", **file, only="frames", help="folder of images, or GIF")
    add("figure", "--resolution", default="auto", metavar="N|WxH", only="tiles deblur frames",
        help="size of --images and --frames")
    add("figure", "--boundary", metavar="FILE", **some, only="manipulate", help=".npy files of normals in w")
    add("figure", "--codes", **file, only="manipulate", help=".npz or .npy of codes instead of images")
    add("boundary", "--codes", nargs=2, default=[], metavar="FILE",
        help="two files of codes, .npz or .npy, instead of labels")
    add("samples", "-n", **number, help="number of samples, of seeds 0 ... N - 1")
    add("samples", "--seeds", type=seed_ranges, default=[], help="seeds, such as 0,1,4-6")
    add("samples", "--noise", default="fixed", choices=["fixed", "random", "none"],
        help="noise of stylegan: the run's own, each seed's own, or none (default: fixed)")
    add("encode", "--reconstruct", default="", metavar="DIR",
        help="folder for each image next to its reconstruction, and errors.csv")
    add("encode", "--skip-bad", action="store_true", help="files that cannot be read are left out")
    add("decode interpolate", "--space", default="w", choices=["z", "w"], help="space of the codes (default: w)")
    add("interpolate", "--frames", type=common.positive(int, 100_000), default=60, metavar="N",
        help="number of frames (default: 60; 25 a second)")
    add("interpolate", "--loop", action="store_true", help="way back to the first image at the end, too")
    add("decode interpolate boundary", "--force", action="store_true", help="codes of other weights are taken, too")
    add("figure", "--force", action="store_true", only="manipulate",
        help="--codes of other weights are taken, too")
    add("figure samples", "--truncation", type=common.positive(float), default=1.0, metavar="PSI", only="samples",
        help="distance of w to the mean w, times PSI (figure: of samples; StyleGAN 0.7; default: 1)")
    add("figure samples", "--truncation-layers", type=common.positive(int), default=8, metavar="N", only="samples",
        help="number of layers, from the first on, that are truncated (default: 8)")
    add(every, "--weights", default="", choices=["ema", "raw"],
        help="weights: averaged, or as trained (default: ema; table alae-2: raw)")
    add("metrics table compare figure invert report", "--seed", type=common.seed, default=0, unless="alae-2 morph "
        "gradients reconstructions variants styles manipulate merge edit tiles deblur frames",
        help="evaluation seed of the codes z and all other draws (default: 0)")
    add(every, "--kimg", type=common.positive(int), metavar="K",
        help="averaged weights that --keep-kimg kept at K thousand images (default: the last ones)")
    add(every, "--device", default="auto", help="cpu, cuda, mps ... (default: the GPU if there is one)")
    add("metrics table compare", "--batch", type=common.positive(int), default=0,
        help="images at a time (default: by their size); random noise depends on it")
    add(every + " list", "--data", default="", metavar="PATH", help="the runs' images, if they have moved")
    add(every + " list", "--data-root", default="", metavar="DIR", help="folder of named sets, if moved")
    add("metrics table compare invert list", "--cache", default="cache", metavar="DIR",
        help="folder for fetched weights, classifiers and statistics of real images")
    add("metrics table compare invert boundary list", "--json", **file, help="file for the numbers")
    add("figure invert", "--out", **file, help="file for the picture")
    add("compare", "--out", **file, help="file for the picture, or for the table: .md, .csv or .txt")
    add("boundary", "--out", default="", metavar="FOLDER", help="folder for the boundaries")
    add("demo", "--port", type=common.number("port", int, lambda n: n == 0 or 1024 <= n < 2**16), default=8000,
        help="port on 127.0.0.1 (default: 8000; 0: any free one)")         # below 1024 it takes rights
    add("report", "--out", required=True, metavar="DIR", help="folder for the pages")
    add("report", "--metrics", **file, help="numbers to show, of `eval.py metrics --json FILE`")
    add("samples", "--out", required=True, metavar="DIR|FILE.zip", help="folder or zip for the pictures")
    add("encode", "--out", default="codes.npz", metavar="FILE", help="file for the codes (default: codes.npz)")
    add("decode", "--out", required=True, metavar="DIR", help="folder for the pictures")
    add("interpolate", "--out", required=True, metavar="FILE|DIR", help="film, .gif or .webp, or folder of frames")
    add("compare", "--table", action="store_true", help="table of budgets and measures, a row a run, seeds pooled")
    add("compare", "--only", type=measure_names, metavar="NAME", **some, help="--table: measures, after RUN")
    add("compare", "--format", default="", choices=["text", "csv", "markdown"],
        help="--table: how it is written (default: by the ending of --out, else text)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    work = " ".join(filter(None, (args.command, getattr(args, "name", ""))))
    if getattr(args, "inception", "") and hasattr(args, "features"):
        if args.features not in ("auto", "inception"):
            raise Error(f"--inception is of no use with --features {args.features}; leave one of them out")
        args.features = "inception"
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and work not in SHARED:
        if int(os.environ.get("RANK", 0)):
            sys.exit(2)                             # the first process says why
        raise Error(f"{work} is the work of one process; run it by python, without torchrun")
    args.device, rank, world = common.join(args.device)
    if rank:
        sys.stdout = open(os.devnull, "w")
    numbers = getattr(args, "json", "")
    if numbers and Path(numbers).is_dir():
        raise Error(f"--json {numbers} is a folder; name a file in it")
    if Path(numbers).is_file() and (
            not numbers.endswith(".json") or Path(numbers).name in ("args.json", "dataset.json")):
        raise Error(f"--json {numbers} is there, and holds no numbers of this script; name another file")
    if not Path(numbers).parent.is_dir():
        raise Error(f"there is no folder {Path(numbers).parent}; make it, or name another file by --json")
    write_json(args, args.function(args))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    common.command(main, "pass fewer images by -n, a smaller --batch if the command has one, or another --device")
