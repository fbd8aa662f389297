"""Metrics, tables and figures of any run of any method.

    python eval.py metrics RUN...               errors, reciprocity, and what the features know of the labels
    python eval.py table alae-2 RUN...          MNIST classification beside the paper's numbers
    python eval.py figure samples RUN
    python eval.py figure reconstructions RUN   ALAE's figure 3
    python eval.py figure traversal RUN         ALAE's figure 4
    python eval.py compare RUN RUN...           the same images through several runs, side by side
    python eval.py list                         what there is

A run is the folder that a training script made.  This file knows of a method only what its `load` returns: map,
generate, encode, features, prior.
    1  Runs         View
    2  Metrics      image_metrics, one_nn, linear_svm
    3  Tables       PAPER, table_alae_2
    4  Figures      samples, reconstructions, traversal
    5  Commands
"""
import importlib
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as nnf

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
        """Whether both parts have class labels, and the model features to tell them by."""
        labels = self.train.labels, self.test.labels
        return hasattr(self.model, "features") and all(y is not None and y.ndim == 1 for y in labels)

    @torch.no_grad()
    def features(self, part):
        """(short, long) features of a whole part, on the device."""
        images = getattr(self, part)
        chunks = [self.model.features(self.images(i, part)) for i in torch.arange(len(images)).split(1000)]
        return tuple(torch.cat(c) for c in zip(*chunks, strict=True))


# --------------------------------------------------------------------------------------------------- 2 Metrics

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
    L = torch.linalg.cholesky(torch.eye(x.shape[1], device=x.device, dtype=x.dtype) + 2 * C * x.T @ x)
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


# ---------------------------------------------------------------------------------------------------- 3 Tables
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
    own = {"seed", "out", "resume", "device", "workers", "snapshot_kimg", "data_root", "versions"}
    for run in runs:
        view = View(run, args, "raw")
        if view.test.source != "mnist" or view.test.split is None:
            raise Error(f"{run} was trained on {view.test.name}; table alae-2 is about --data mnist (--split dw or sw)")
        done = trials.setdefault((view.args["label"], view.test.split), [])
        for key, value in view.args.items() if done else ():
            if key not in own and value != done[0][0].args[key]:
                raise Error(f"{run} and {done[0][0].run} differ in {key} ({value}, {done[0][0].args[key]}), so they "
                            f"are not trials of one setting; make a table of each")
        result = classification(view)
        done.append((view, result))
        print(f"{view.title}: " + "  ".join(f"{c} {result[c]:.2f}" for c in COLUMNS_ALAE_2), flush=True)
    heads = [f"{c} {s.upper()}" for s in ("sw", "dw") for c in COLUMNS_ALAE_2]
    print("\nMNIST accuracy (%), table 2 of the ALAE paper (mean of 5 trials there)")
    print(f"{'':24}" + "".join(f"{h:>14}" for h in heads))
    for label, numbers in PAPER["alae-2"].items():
        print(f"{label + ', paper':24}" + "".join(f"{v:14.2f}" for v in numbers))
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


# --------------------------------------------------------------------------------------------------- 4 Figures
# Each makes a picture (H, W, 3) uint8 of one run from a few primitives: rows of images, and straight lines in a space.

def rows(*rows_of_images):
    """Rows of images, each (N, C, H, W) in [-1, 1], N equal -> a picture."""
    return common.grid(torch.cat([r.cpu() for r in rows_of_images]), len(rows_of_images[0]))


def lines(a, b, steps):
    """Straight lines from each a to its b, both (N, d) -> (N, steps, d), ends included."""
    t = torch.linspace(0, 1, steps, device=a.device)[None, :, None]
    return (1 - t) * a[:, None] + t * b[:, None]


def figure_samples(view, args):
    """Images of codes from the prior."""
    view.need("prior", "map")
    x = view.model.generate(view.model.map(view.codes(args.n or 64, args.seed)), noise="fixed")
    return common.grid(x, 8)


def figure_reconstructions(view, args):
    """Test images and, under each row of them, their reconstructions (ALAE fig. 3)."""
    x = view.images(range(min(args.n or 32, len(view.test))))
    return common.pairs(x, common.reconstruct(view.model, x))


def figure_traversal(view, args):
    """Pairs of samples that show the same digit, joined in Z (odd rows) and the same pairs joined in W (even rows)
    (ALAE fig. 4).

    A real image has no z (F is not inverted), so both ends are samples.  Which digit a sample shows is told by the
    nearest training image's label, in the space of long features.
    """
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
    along_z = view.model.map(lines(z[a], z[b], steps).flatten(0, 1)).unflatten(0, (len(a), steps))
    along_w = lines(w[a], w[b], steps)
    x = [view.model.generate(p, noise="fixed") for pair in zip(along_z, along_w, strict=True) for p in pair]
    for name, path in (("Z", x[0::2]), ("W", x[1::2])):
        jumps = torch.stack([(p[1:] - p[:-1]).square().flatten(1).mean(1).sqrt() for p in path])
        print(f"{view.run.name}: along {name} the largest step between neighbours is {jumps.amax(1).mean():.3f}, the "
              f"mean step {jumps.mean():.3f} (root mean square over pixels in [-1, 1], {len(path)} pairs)")
    return rows(*x)


FIGURES = {"samples": figure_samples, "reconstructions": figure_reconstructions, "traversal": figure_traversal}
ALIASES = {"alae-3": "reconstructions", "alae-4": "traversal"}


# -------------------------------------------------------------------------------------------------- 5 Commands

def metrics(args):
    """Print every metric of every run."""
    out = {}
    for run in args.runs:
        view = View(run, args)
        m = image_metrics(view, torch.arange(min(args.n or 10_000, len(view.test))))
        print(f"{view.title}\n  ({view.protocol}; first {m['n']:,} test images; {m['n']:,} codes, seed {args.seed})")
        print(f"  reconstruction  MSE {m['mse']:.4f}  MAE {m['mae']:.4f}  PSNR {m['psnr']:.2f} dB   on [-1, 1]")
        print(f"  floors          MSE {m['mse_mean_image']:.4f} of the training-mean image, {m['mse_wrong_pair']:.4f} "
              f"of reconstructions paired with the wrong originals")
        if hasattr(view.model, "prior"):
            m["recip_w"], m["std_w"] = common.latent_reciprocity(view.model, view.codes(m["n"], args.seed))
        print(f"  reciprocity     |G(E(x)) - x| {m['mae']:.4f}" + (
            f"   |E(G(w)) - w| {m['recip_w']:.4f} (w deviates by {m['std_w']:.4f})" if "recip_w" in m else ""))
        if view.has_classes:
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
    """Draw one of the papers' figures for every run."""
    name = ALIASES.get(args.name, args.name)
    if name not in FIGURES:
        raise Error(f"there is no figure {args.name!r}; there are {', '.join([*FIGURES, *ALIASES])}")
    if args.out and len(args.runs) > 1:
        raise Error("--out names one picture, and there are several runs; leave it out, or draw them one by one")
    for run in args.runs:
        view = View(run, args)
        write_picture(FIGURES[name](view, args), args.out or view.run / "figures" / f"{name}.png")


@torch.no_grad()
def compare(args):
    """The same test images through every run: a picture with the real row on top, and a line of errors a run."""
    views = [View(run, args) for run in args.runs]
    first = views[0]
    for view in views[1:]:
        if view.test.source != first.test.source or view.test.shape != first.test.shape:
            raise Error(f"{first.run} and {view.run} have no test images in common ({first.test.name} "
                        f"{'x'.join(map(str, first.test.shape))}, {view.test.name} "
                        f"{'x'.join(map(str, view.test.shape))}); compare runs of one data set and resolution")
    common_ids = set(first.test.ids.tolist()).intersection(*(v.test.ids.tolist() for v in views))
    for view in views:                          # nor may any of them have been trained on
        common_ids -= set(view.train.ids.tolist()) if view.train.source == first.test.source else set()
    ids = sorted(common_ids)[:args.n or 10_000]
    if not ids:
        raise Error(f"the runs' test parts have no image in common that none of them was trained on "
                    f"({', '.join(v.protocol.split(',')[0] for v in views)}); compare runs of one split")
    out, pictures = {}, []
    print(f"{len(ids):,} test images that all runs have in common; errors on [-1, 1]; floors: the training-mean image, "
          f"reconstructions paired with the wrong originals")
    for view in views:
        place = {int(i): k for k, i in enumerate(view.test.ids)}
        indices = torch.tensor([place[i] for i in ids])
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
        if name in ("metrics", "figure"):
            add("--seed", type=int, default=0, help="of the codes z")
        if name != "table":
            add("-n", type=common.positive(int), default=0, help="how many images")
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
