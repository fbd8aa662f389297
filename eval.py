"""Metrics, tables and figures of any run of any method.

    python eval.py metrics RUN...                  errors, reciprocity, sharpness, Frechet distances, classification
    python eval.py table alae-2 RUN...             MNIST classification beside the paper's numbers
    python eval.py figure samples RUN...           F-AAE's figure 8
    python eval.py figure reconstructions RUN...   ALAE's figure 3, F-AAE's 5 to 7
    python eval.py figure traversal RUN...         ALAE's figure 4
    python eval.py figure morph RUN...             F-AAE's figure 9
    python eval.py compare RUN RUN...              the same images through several runs: errors and a picture
    python eval.py list                            what there is

A run is the folder that a training script made.  This file knows of a method only what its `load` returns: map,
generate, encode, features, prior.
    1  Runs         View
    2  Extractors   Classifier, trained on a set's labels
    3  Metrics      image_metrics, Moments, frechet, sharpness, one_nn, linear_svm
    4  Tables       PAPER, table_alae_2
    5  Figures      samples, reconstructions, traversal, morph
    6  Commands
"""
import hashlib
import importlib
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import nn

import common
import data
from common import Error

# ------------------------------------------------------------------------------------------------------ 1 Runs


class View:
    """A run, opened for evaluation: args (its args.json), model, train and test (data.Images)."""

    def __init__(self, run, options, weights="ema"):
        """options: device, weights ("" for those given here), data and data_root ("" for the run's own)."""
        self.run, self.device, self.weights = Path(run), options.device, options.weights or weights
        self.args = args = common.read_args(run)
        try:
            self.model = importlib.import_module(args["method"]).load(run, self.device, self.weights)
        except ModuleNotFoundError as e:
            if e.name != args["method"]:
                raise
            raise Error(f"{run} names the method {args['method']!r}; there is no {args['method']}.py here") from None
        c, h, w = args["image_shape"]
        self.train, self.test = data.load(options.data or args["data"], options.data_root or args["data_root"],
                                          args["split"], f"{w}x{h}", args["skip_bad"])
        if (self.train.shape, len(self.train)) != ((c, h, w), args["train_images"]):
            raise Error(f"{run} was trained on {args['train_images']:,} images {c}x{h}x{w}, and {self.train.name} has "
                        f"{len(self.train):,}, {'x'.join(map(str, self.train.shape))}; say where its own images are "
                        f"by --data or --data-root")

    @property
    def title(self):
        return f"{self.args['label']}, {self.args['backbone']}, {self.run.name}"

    @property
    def protocol(self):
        """What a number of this run depends on, in one line."""
        a = self.args
        return (f"{self.test.name}{' ' + self.test.split if self.test.split else ''}, {a['backbone']}, "
                f"{'recipe ' + a['recipe'] + ', ' if 'recipe' in a else ''}{a['precision']}, "
                f"{self.model.seen / 1000:g} kimg, seed {a['seed']}, {self.weights} weights, "
                f"training code {a['versions']['code']}")

    def need(self, *abilities):
        """Raise Error where the model lacks one of the named methods."""
        for ability in abilities:
            if not hasattr(self.model, ability):
                raise Error(f"{self.run} ({self.args['label']}) has no {ability!r}, which this needs; take another run")

    def images(self, indices, part="test"):
        """Images of a part, float (N, C, H, W) in [-1, 1], on the device."""
        return common.to_float(getattr(self, part).take(indices).to(self.device))

    def codes(self, n, seed):
        """z (n, nz) from the prior."""
        return self.model.prior(n, common.generator(self.device, seed, "evaluation"))

    @property
    def has_classes(self):
        """Whether all images of both parts have a class."""
        return all(y is not None and y.ndim == 1 and y.min() >= 0 for y in (self.train.labels, self.test.labels))

    @torch.no_grad()
    def features(self, part):
        """(short, long) features of a whole part, on the device."""
        images = getattr(self, part)
        chunks = [self.model.features(self.images(i, part)) for i in torch.arange(len(images)).split(1000)]
        return tuple(torch.cat(c) for c in zip(*chunks, strict=True))


# ------------------------------------------------------------------------------------------------ 2 Extractors

class Classifier(nn.Module):
    """Tells a set's classes apart, and gives features for Frechet distances; made by `classifier_of`.

    name: "digits" for MNIST, else the set's; checksum: of its weights; accuracy: on the test part, %.
    """
    WIDTH = 128

    def __init__(self, channels, classes):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(channels, 32, 5, stride=2, padding=2), nn.Conv2d(32, 32, 3, padding=1),
                                    nn.Conv2d(32, 64, 3, padding=1)])
        self.dense = nn.Linear(64 * 16, self.WIDTH)
        self.head = nn.Linear(self.WIDTH, classes)
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


def classifier_of(view, cache):
    """The classifier of a run's data, trained on the training part's labels the first time and kept in `cache`.

    2,000 steps of 128 images, Adam, one-cycle learning rate, seed 0.  Raises Error where there are no classes.
    """
    if not view.has_classes:
        raise Error(f"{view.run}: {view.train.name} has no class labels, from which to train the feature extractor")
    train, name = view.train, "digits" if view.train.source == "mnist" else view.train.name
    path = Path(cache) / f"classifier-{name}-{'x'.join(map(str, train.shape))}-{train.fingerprint()}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Classifier(train.shape[0], int(train.labels.max()) + 1).to(view.device)
    net.name = name
    if path.exists():
        try:
            net.load_state_dict(torch.load(path, map_location=view.device, weights_only=True))
        except Exception as e:      # torch.load lets through whatever the damage leads to
            raise Error(f"{path} cannot be read ({type(e).__name__}); delete it, and it is made anew") from None
        return net.eval().requires_grad_(False)
    print(f"training a classifier of {train.name} once, for Frechet ({name}) and label flips; this takes a minute or "
          f"several on a CPU", flush=True)
    _fit(net, view)
    right = sum((net(view.images(i)).argmax(1).cpu() == view.test.labels[i]).sum().item()
                for i in torch.arange(len(view.test)).split(500))
    net.accuracy.fill_(100 * right / len(view.test))
    common.save(path, net.state_dict())
    print(f"wrote {path} ({net.accuracy:.2f} % right on the test part)", flush=True)
    return net


@torch.enable_grad()
def _fit(net, view, steps=2000, batch=128):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        chosen = data.order(len(view.train), 0, step * batch, batch)
        loss = nnf.cross_entropy(net(view.images(chosen, "train")), view.train.labels[chosen].to(view.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval().requires_grad_(False)


# --------------------------------------------------------------------------------------------------- 3 Metrics

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
        if dist.is_initialized():
            for tensor in (self.n, self.sum, self.outer):
                dist.all_reduce(tensor)

    def gaussian(self):
        """-> mean (d,), covariance (d, d) over n - 1, on the CPU."""
        mean = self.sum / self.n
        return mean.cpu(), ((self.outer - self.n * mean.outer(mean)) / (self.n - 1)).cpu()


def frechet(a, b):
    """Frechet distance of two Gaussians, each (mean (d,), covariance (d, d)), float64:

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), by symmetric eigenvalues.   (Heusel et al. 2017, eq. 6)
    """
    (m_a, C_a), (m_b, C_b) = a, b
    values, vectors = torch.linalg.eigh(C_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ C_b @ root).clamp(min=0).sqrt().sum()
    return ((m_a - m_b).square().sum() + C_a.trace() + C_b.trace() - 2 * cross).item()


def sharpness(x):
    """Variance of the Laplacian over each image's grey values, (N,): blurred images have little.  x (N, C, H, W)."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=x.device)
    return nnf.conv2d(x.mean(1, keepdim=True), kernel[None, None]).flatten(1).var(1)


@torch.no_grad()
def reference(view, extractor, cache):
    """The Gaussian of the whole training part's features, kept in `cache`."""
    path = Path(cache) / f"moments-{extractor.checksum}-{view.train.fingerprint()}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    moments = Moments(Classifier.WIDTH, view.device)
    for chunk in torch.arange(len(view.train)).split(500):
        moments.add(extractor.features(view.images(chunk, "train")))
    common.save(path, moments.gaussian())
    return moments.gaussian()


@torch.no_grad()
def distribution_metrics(view, indices, seed, extractor=None, real=None):
    """How reconstructions of these test images, and as many samples, compare with real images.   -> dict

    sharpness_*: mean variance of the Laplacian over that of the test images.  With an extractor: frechet_* to `real`, a
    Gaussian of its features; flips: % of reconstructions that it takes for another class than the original.
    *_real: of the test images themselves; *_samples only where there is a prior.
    """
    def part(name, begin, end):
        if name == "samples":
            return view.model.generate(w[begin:end], noise="fixed").clamp(-1, 1)
        x = view.images(indices[begin:end])
        return x if name == "real" else common.reconstruct(view.model, x)

    names, sharp, classes, out = ["real", "reconstructions"], {}, {"real": [], "reconstructions": []}, {}
    if hasattr(view.model, "prior"):
        names.append("samples")
        w = view.model.map(view.codes(len(indices), seed))
    for name in names:
        sharp[name], moments = 0.0, Moments(Classifier.WIDTH, view.device)
        for begin in range(0, len(indices), 500):
            x = part(name, begin, begin + 500)
            sharp[name] += sharpness(x).sum().item()
            if extractor:
                f = extractor.features(x)
                moments.add(f)
                if name in classes:
                    classes[name].append(extractor.head(f).argmax(1))
        if name != "real":
            out[f"sharpness_{name}"] = sharp[name] / sharp["real"]
        if extractor:
            out[f"frechet_{name}"] = frechet(moments.gaussian(), real)
    if extractor:
        flipped = torch.cat(classes["real"]) != torch.cat(classes["reconstructions"])
        out["flips"] = 100 * flipped.float().mean().item()
    return out


@torch.no_grad()
def image_metrics(view, indices):
    """Errors of the reconstructions of these test images, beside two floors.   -> dict

    mse, mae: means over pixels in [-1, 1], of reconstructions clipped to it;  psnr: mean over images of
    10 log10(4 / mse), dB.  mse_mean_image: of the training mean as every reconstruction;  mse_wrong_pair: of each image
    against the reconstruction of another, the one before it in `indices`.  Raises Error for fewer than 2 images.
    """
    n = len(indices)
    if n < 2:
        raise Error(f"{view.run}: errors and their floors need 2 test images or more, and this would take {n} of "
                    f"{len(view.test)}; raise -n, or evaluate on more images by --data")
    view.need("encode", "generate")
    mean_image = training_mean(view)
    total = dict.fromkeys(("mse", "mae", "psnr", "mse_mean_image", "mse_wrong_pair"), 0.0)
    before = common.reconstruct(view.model, view.images(indices[-1:]))
    for chunk in indices.split(500):
        x = view.images(chunk)
        y = common.reconstruct(view.model, x)
        mse = (y - x).square().flatten(1).mean(1)
        wrong = torch.cat([before, y[:-1]])
        sums = dict(mse=mse, mae=(y - x).abs().flatten(1).mean(1), psnr=10 * (4 / mse).log10(),
                    mse_mean_image=(mean_image - x).square().flatten(1).mean(1),
                    mse_wrong_pair=(wrong - x).square().flatten(1).mean(1))
        for key, value in sums.items():
            total[key] += value.sum().item()
        before = y[-1:]
    return dict(n=n, **{k: v / n for k, v in total.items()})


def shared_test_images(views):
    """Positions, in each view's test part, of the images that all have and none was trained on, a tensor a view.

    In the order of the first view's.  Raises Error where there are none.
    """
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
    v = torch.zeros(x.shape[1], classes, device=x.device, dtype=x.dtype, requires_grad=True)
    solver = torch.optim.LBFGS([v], max_iter=500, history_size=20, tolerance_grad=1e-6, tolerance_change=1e-9,
                               line_search_fn="strong_wolfe")

    def weights():
        return torch.linalg.solve_triangular(L.T, v, upper=True)

    def objective():
        solver.zero_grad()
        w = weights()
        loss = w.square().sum() / 2 + C * (1 - sign * (x @ w)).relu().square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    return weights().detach()


def svm_scores(w, x):
    """(N, classes): the largest is the predicted class."""
    return nnf.pad(x, (0, 1), value=1.0) @ w


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


# ---------------------------------------------------------------------------------------------------- 4 Tables
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
}


def table_alae_2(runs, args):
    """ALAE's table 2: every run is one trial of its label and split; trials are averaged."""
    trials = {}
    own = {"schedule_kimg", "seed", "out", "resume", "device", "workers", "snapshot_kimg", "data_root", "versions"}
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
        if label in PAPER["alae-2"]:
            print(f"{label + ', paper':24}" + "".join(f"{v:14.2f}" for v in PAPER["alae-2"][label]))
        if any(key[0] == label for key in trials):
            cells = []
            for split in ("sw", "dw"):
                done = [r for _, r in trials.get((label, split), [])]
                cells += [sum(r[c] for r in done) / len(done) if done else None for c in COLUMNS_ALAE_2]
            print(f"{label + ', ours':24}" + "".join("             -" if v is None else f"{v:14.2f}" for v in cells))
    print("Euclidean 1-NN; linear SVM, L2-regularised squared hinge, C = 0.02; unscaled features of the whole training "
          "part, scored on the whole test part.")
    for (label, split), done in trials.items():
        print(f"ours, {label} {split.upper()}: {len(done)} run(s): " + "; ".join(v.protocol for v, _ in done))
    return {f"{label} {split}": [dict(run=str(v.run), protocol=v.protocol, **r) for v, r in done]
            for (label, split), done in trials.items()}


TABLES = {"alae-2": table_alae_2}


# --------------------------------------------------------------------------------------------------- 5 Figures
# Each makes a picture (H, W, 3) uint8 of one run or several from a few primitives: rows of images, and straight lines
# in a space.

def rows(*rows_of_images):
    """Rows of images, each (N, C, H, W) in [-1, 1], N equal -> a picture."""
    return common.grid(torch.cat([r.cpu() for r in rows_of_images]), len(rows_of_images[0]))


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
        shape = views[0].test.shape
        if any(v.test.shape != shape for v in views):
            raise Error("the runs' images differ in size or colour, so they cannot share --images; draw them apart")
        return common.to_float(torch.stack([data.read_image(p, shape) for p in args.images])).to(views[0].device)
    shared = shared_test_images(views)[0]
    return views[0].images(shared[choose(views[0], shared)])


def one_of_four_classes(view, indices):
    """Where in `indices` the first images of four classes are; the first four where there are no four."""
    labels = view.test.labels[indices] if view.has_classes else torch.arange(len(indices))
    first = [(labels == c).nonzero()[0].item() for c in labels.unique()[:4]]
    return first if len(first) == 4 else list(range(min(4, len(indices))))


def figure_samples(views, args):
    """Images of codes from the prior; several runs one above the other (F-AAE fig. 8)."""
    pictures = []
    for view in views:
        view.need("prior", "map")
        x = view.model.generate(view.model.map(view.codes(args.n or 64, args.seed)), noise="fixed")
        pictures.append(common.grid(x, 8 if len(views) == 1 else 16))
    return stack(*pictures)


def figure_reconstructions(views, args):
    """Test images and, under each row of them, their reconstructions, a row a run (ALAE fig. 3, F-AAE figs. 5-7)."""
    for view in views:
        view.need("encode", "generate")
    x = real_images(views, args, lambda *_: slice(args.n or 32))
    columns = min(16, len(x))
    all_rows = [x, *(common.reconstruct(view.model, x) for view in views)]
    blank = x.new_ones(-len(x) % columns, *x.shape[1:])                     # fills up the last row
    blocks = zip(*(torch.cat([r, blank]).split(columns) for r in all_rows), strict=True)
    return rows(*(row for block in blocks for row in block))


def figure_morph(views, args):
    """Four real images at the corners of a panel, decoded mixtures of their codes between; a panel a run.

    F-AAE's figure 9.  The weights of eq. 5 are bilinear.  A model whose prior is a sphere normalises the mixture when
    it decodes it.
    """
    for view in views:
        view.need("encode", "generate")
    x = real_images(views, args, one_of_four_classes)
    if len(x) != 4:
        raise Error("figure morph takes 4 images, one a corner, and " + (
            f"--images names {len(x)}" if args.images else f"there are {len(x)} test images"))
    panels = []
    for view in views:
        codes = bilinear(view.model.encode(x), args.n or 7)
        panels.append(rows(*(view.model.generate(row, noise="fixed") for row in codes)))
    return stack(*panels)


def figure_traversal(views, args):
    """Pairs of samples that show the same digit, joined in Z (odd rows) and the same pairs joined in W (even rows)
    (ALAE fig. 4).

    A real image has no z (F is not inverted), so both ends are samples.  Which digit a sample shows is told by the
    nearest training image's label, in the space of long features.
    """
    return stack(*(traversal(view, args) for view in views))


def traversal(view, args):
    view.need("prior", "map", "features")
    pairs, steps, labels = args.n or 5, 12, view.train.labels
    z = view.codes(max(200, 2 * pairs), args.seed)
    w = view.model.map(z)
    if labels is not None and labels.ndim == 1:
        few = torch.arange(0, len(view.train), math.ceil(len(view.train) / 5000))
        known = view.model.features(view.images(few, "train"))[1]
        made = view.model.features(view.model.generate(w, noise="fixed"))[1]
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


FIGURES = {"samples": figure_samples, "reconstructions": figure_reconstructions, "traversal": figure_traversal,
           "morph": figure_morph}
ALIASES = {"alae-3": "reconstructions", "alae-4": "traversal", "faae-5": "reconstructions", "faae-6": "reconstructions",
           "faae-7": "reconstructions", "faae-8": "samples", "faae-9": "morph"}


# -------------------------------------------------------------------------------------------------- 6 Commands

def metrics(args):
    """Print every metric of every run."""
    out = {}
    for run in args.runs:
        view = View(run, args)
        indices = torch.arange(min(args.n or 10_000, len(view.test)))
        m = image_metrics(view, indices)
        print(f"{view.title}\n  ({view.protocol}; first {m['n']:,} test images; {m['n']:,} codes, seed {args.seed})")
        print(f"  reconstruction  MSE {m['mse']:.4f}  MAE {m['mae']:.4f}  PSNR {m['psnr']:.2f} dB   on [-1, 1]")
        print(f"  floors          MSE {m['mse_mean_image']:.4f} of the training-mean image, {m['mse_wrong_pair']:.4f} "
              f"of reconstructions paired with the wrong originals")
        if hasattr(view.model, "prior"):
            m.update(common.latent_reciprocity(view.model, view.codes(m["n"], args.seed)))
            print(f"  latent          |E(G(w)) - w| {m['recip_w']:.4f} a dimension (w deviates by {m['std_w']:.4f});   "
                  f"||E(G(w)) - w|| {m['norm_w']:.4f} (codes paired wrongly {m['norm_w_wrong_pair']:.4f})")
        extractor = classifier_of(view, args.cache) if view.has_classes else None
        real = reference(view, extractor, args.cache) if extractor else None
        m.update(distribution_metrics(view, indices, args.seed, extractor, real))
        made = [part for part in ("samples", "reconstructions", "real") if f"sharpness_{part}" in m]
        print("  sharpness       " + "   ".join(f"{p} {m[f'sharpness_{p}']:.3f}" for p in made)
              + "   (variance of the Laplacian over that of the test images)")
        if extractor:
            m["extractor"] = f"{extractor.name} {extractor.checksum}"
            made = [part for part in ("samples", "reconstructions", "real") if f"frechet_{part}" in m]
            print(f"  Frechet ({extractor.name})  " + "   ".join(f"{p} {m[f'frechet_{p}']:.3f}" for p in made)
                  + f"   ({m['n']:,} each against {len(view.train):,} training images; features of a classifier, "
                  f"{extractor.checksum}{'; too few images for 128 features' if m['n'] <= Classifier.WIDTH else ''})")
            print(f"  label flips     {m['flips']:.2f} % of reconstructions change the class that this classifier sees "
                  f"(it is right on {extractor.accuracy:.2f} % of the test part)")
        if view.has_classes and hasattr(view.model, "features"):
            c = classification(view)
            print(f"  1-NN            short features {c['1nn_short']:.2f} %   long {c['1nn_long']:.2f} %")
            print(f"  linear SVM      short features {c['svm_short']:.2f} %   long {c['svm_long']:.2f} %")
            m.update(c)
        out[str(run)] = dict(protocol=view.protocol, **m)
    return out


def table(args):
    """Print one of the papers' tables beside what the runs give."""
    if args.name not in TABLES:
        raise Error(f"there is no table {args.name!r}; there is {', '.join(TABLES)}")
    return TABLES[args.name](args.runs, args)


@torch.no_grad()
def figure(args):
    """Draw one of the papers' figures, of one run or of several together."""
    name = ALIASES.get(args.name, args.name)
    if name not in FIGURES:
        raise Error(f"there is no figure {args.name!r}; there are {', '.join([*FIGURES, *ALIASES])}")
    if args.images and name not in ("reconstructions", "morph"):
        raise Error(f"figure {name} shows no real images; leave --images out")
    views = [View(run, args) for run in args.runs]
    picture = FIGURES[name](views, args)
    write_picture(picture, args.out or (views[0].run / "figures" if len(views) == 1 else Path()) / f"{name}.png")
    if len(views) > 1:
        print("from the top: " + ", ".join(v.title for v in views))


@torch.no_grad()
def compare(args):
    """The same test images through every run: a picture with the real row on top, and a line of errors a run."""
    views = [View(run, args) for run in args.runs]
    places = [p[:args.n or 10_000] for p in shared_test_images(views)]
    out, pictures = {}, []
    print(f"{len(places[0]):,} test images that all runs have in common; errors on [-1, 1]; floors: the "
          f"training-mean image, reconstructions paired with the wrong originals")
    for view, indices in zip(views, places):
        m = image_metrics(view, indices)
        x = view.images(indices[:16])
        pictures += [x] * (not pictures) + [common.reconstruct(view.model, x)]
        out[str(view.run)] = dict(protocol=view.protocol, **m)
        print(f"  {view.title}: MSE {m['mse']:.4f}  MAE {m['mae']:.4f}  floors MSE {m['mse_mean_image']:.4f} "
              f"{m['mse_wrong_pair']:.4f}   ({view.protocol})")
    write_picture(rows(*pictures), args.out or "compare.png")
    print("rows from the top: real images, then " + ", ".join(v.title for v in views))
    return out


def write_picture(picture, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    common.save_png(path, picture)
    print(f"wrote {path}")


def parse_args(argv=None):
    parser = common.Parser(__doc__.split("A run is")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("metrics", metrics), ("table", table), ("figure", figure), ("compare", compare)):
        sub = commands.add_parser(name, doc=function.__doc__, help=function.__doc__.splitlines()[0])
        sub.set_defaults(function=function)
        if name in ("table", "figure"):
            sub.add_argument("name", help=", ".join(TABLES if name == "table" else [*FIGURES, *ALIASES]))
        add = sub.add_argument
        add("runs", nargs="+", metavar="RUN", help="run folders")
        add("--device", default="auto", help="cpu, cuda ...; the GPU if there is one")
        add("--data", default="", metavar="NAME|PATH", help="where the runs' images are, if they have moved")
        add("--data-root", default="", metavar="DIR", help="where named sets are, if they have moved")
        if name == "metrics":
            add("--cache", default="cache", metavar="DIR", help="where the classifier of a labelled set is kept")
        if name == "figure":
            add("--images", nargs="+", default=[], metavar="PATH", help="real images in place of the test part's")
        if name in ("metrics", "figure"):
            add("--seed", type=int, default=0, help="of the codes z")
        if name != "table":
            add("-n", type=common.positive(int), default=0, help="how many images" + (
                " (morph: along a side; traversal: pairs)" if name == "figure" else ""))
        add("--weights", default="", choices=["ema", "raw"],
            help="averaged, or as trained (default: ema; table alae-2: raw)")
        if name != "figure":
            add("--json", default="", metavar="FILE", help="also write the numbers there")
        if name in ("figure", "compare"):
            add("--out", default="", metavar="FILE", help="the picture")
    commands.add_parser("list", help="The tables and figures that there are.")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.command == "list":
        print(f"metrics  compare\ntable    {' '.join(TABLES)}\nfigure   {' '.join(FIGURES)}   (as in the papers: "
              + ", ".join(f"{k} = {v}" for k, v in ALIASES.items()) + ")")
        return
    args.device = common.find_device(args.device)
    result = args.function(args)
    if vars(args).get("json"):
        common.write_atomic(Path(args.json), json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    common.command(main, data.DataError)
