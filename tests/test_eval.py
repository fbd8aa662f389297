"""Measures, tables and figures of eval.py against independent values and other libraries."""
import csv
import functools
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import DATA_ROOT, ROOT, TWO, change, fill, options, run_here
from PIL import Image

import alae
import common
import data
import eval as evaluation

# ----------------------------------------------------------------------------------------------- classifiers


def blobs(n=400, d=12, classes=4, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(9), dtype=dtype)
    y = torch.randint(classes, (n,), generator=g)
    return centres[y] + torch.randn(n, d, generator=g, dtype=dtype), y


def test_one_nn():
    (x, y), (x2, y2) = blobs(), blobs(150, seed=1)
    nearest = torch.stack([(x - q).square().sum(1) for q in x2]).argmin(1)
    expected = 100 * (y[nearest] == y2).double().mean().item()
    assert evaluation.one_nn(x, y, x2, y2) == pytest.approx(expected)
    many, labels = x2.repeat(4, 1), y2.repeat(4)                # more than are compared at a time
    assert evaluation.one_nn(x, y, many, labels) == pytest.approx(expected)
    assert evaluation.one_nn(x, y, x, y) == 100


def test_linear_svm_minimises_liblinears_objective():
    x, y = blobs()
    w = evaluation.linear_svm(x, y, 4, C=0.05)
    assert w.shape == (13, 4)
    x1, sign = torch.nn.functional.pad(x, (0, 1), value=1.0), torch.nn.functional.one_hot(y).double() * 2 - 1
    slack = (1 - sign * (x1 @ w)).relu()
    gradient = w - 2 * 0.05 * x1.T @ (sign * slack)             # of |w|^2 / 2 + C sum slack^2
    assert gradient.abs().max() < 1e-4
    assert torch.equal(evaluation.svm_scores(w, x), x1 @ w)


def test_linear_svm_of_large_features():
    """Where fp32's normal matrix is no longer positive."""
    x, y = blobs()
    big = torch.cat([x] * 4, 1) * 3e4
    x1 = torch.nn.functional.pad(big, (0, 1), value=1.0).float()
    assert torch.linalg.cholesky_ex(torch.eye(49) + 0.04 * x1.T @ x1)[1] > 0
    w = evaluation.linear_svm(big.float(), y, 4)
    accuracy = (evaluation.svm_scores(w, big.float()).argmax(1) == y).double().mean()
    w = evaluation.linear_svm(x, y, 4)
    assert accuracy > (evaluation.svm_scores(w, x).argmax(1) == y).double().mean() - 0.02


def test_one_nn_and_svm_against_scikit_learn():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import LinearSVC
    train, test = data.load("mnist-mini")
    x, x2 = (part.pixels.flatten(1).double() / 255 for part in (train, test))
    x, y = x[:3000], train.labels[:3000]
    theirs = KNeighborsClassifier(1, algorithm="brute").fit(x, y).score(x2, test.labels)
    assert evaluation.one_nn(x, y, x2, test.labels) == pytest.approx(100 * theirs)
    x, x2 = x[:, ::5], x2[:, ::5]
    svc = LinearSVC(C=0.02, dual=False, tol=1e-8, max_iter=5000).fit(x, y)
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.float32, 2e-3)):
        w = evaluation.linear_svm(x.to(dtype), y, 10).double()
        torch.testing.assert_close(w[:-1].T, torch.tensor(svc.coef_), rtol=0, atol=tolerance)
        torch.testing.assert_close(w[-1], torch.tensor(svc.intercept_), rtol=0, atol=tolerance)
        accuracy = (evaluation.svm_scores(w, x2).argmax(1) == test.labels).double().mean().item()
        assert accuracy == pytest.approx(svc.score(x2, test.labels), abs=6e-4)


def gaussians(n, d, apart, seed=0):
    """Two sets (n, d) from N(0, I), the second moved by `apart` along the diagonal."""
    a, b = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a, b + apart / d**0.5


def test_sets_are_told_apart_as_far_as_they_differ():
    """Of Gaussians `apart` deviations from each other the best classifier is right in Phi(apart / 2)."""
    a, b = gaussians(2000, 8, 0)
    assert abs(evaluation.told_apart(a, b) - 50) < 3                # the deviation is 50 / sqrt(4000) = 0.8
    for apart in (0.5, 2.0):
        a, b = gaussians(2000, 8, apart)
        best = 50 * (1 + math.erf(apart / 2 / 2**0.5))
        assert evaluation.told_apart(a, b) == pytest.approx(best, abs=2.5)
        assert evaluation.told_apart(1000 * a.float() + 7, 1000 * b.float() + 7) == pytest.approx(best, abs=2.5)
    assert evaluation.told_apart(a, a) == pytest.approx(50, abs=1)
    assert evaluation.told_apart(a, b + 100) == 100
    assert 0 <= evaluation.told_apart(torch.ones(20, 3), torch.ones(20, 3)) <= 100      # collapsed codes


def test_told_apart_against_scikit_learn():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_score
    a, b = gaussians(150, 6, 0.7)
    b = 1.3 * b[:120]
    x = torch.cat([a, b])
    x = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    fold = np.r_[np.arange(150) % 5, np.arange(120) % 5]
    right = cross_val_score(LogisticRegression(tol=1e-9, max_iter=1000), x, np.arange(270) >= 150,
                            cv=PredefinedSplit(fold))
    assert 100 * right.mean() > 55
    assert evaluation.told_apart(a, b) == pytest.approx(100 * right.mean())


# --------------------------------------------------------------------------------- Frechet distance, sharpness

def moments(*batches):
    m = evaluation.Moments(batches[0].shape[1])
    for b in batches:
        m.add(b)
    return m.gaussian()


def test_frechet_of_gaussians_with_known_moments():
    eye = torch.eye(3).double()
    for m, s, t in ((0.0, 1.0, 1.0), (2.0, 1.0, 1.0), (0.5, 4.0, 0.25)):        # |m|^2 + d (sqrt s - sqrt t)^2
        a, b = (torch.zeros(3).double(), s * eye), (torch.full((3,), m).double(), t * eye)
        expected = 3 * m**2 + 3 * (s**0.5 - t**0.5)**2
        assert evaluation.frechet(a, b) == pytest.approx(expected, abs=1e-6)
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(5, 5).double())[0]
    s, t = torch.rand(5).double(), torch.rand(5).double()           # covariances that commute
    d = evaluation.frechet((torch.zeros(5).double(), q * s @ q.T), (torch.ones(5).double(), q * t @ q.T))
    assert d == pytest.approx((5 + (s.sqrt() - t.sqrt()).square().sum()).item(), abs=1e-6)
    # two dimensions, which do not commute: tr (A B)^1/2 = sqrt(tr AB + 2 sqrt(det A det B))
    A, B = (x @ x.T for x in torch.randn(2, 2, 2).double())
    d = evaluation.frechet((torch.zeros(2).double(), A), (torch.zeros(2).double(), B))
    root = ((A @ B).trace() + 2 * (A.det() * B.det()).sqrt()).sqrt()
    assert d == pytest.approx((A.trace() + B.trace() - 2 * root).item(), abs=1e-6)


def test_moments_in_any_split():
    torch.manual_seed(0)
    x = torch.randn(1000, 6) @ torch.randn(6, 6) + 5
    mean, cov = moments(x)
    torch.testing.assert_close(mean, x.double().mean(0))
    torch.testing.assert_close(cov, x.double().T.cov())
    for size in (1, 7, 400):
        for a, b in zip(moments(*x.split(size)), (mean, cov), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert evaluation.frechet(moments(x), moments(*x.split(9))) == pytest.approx(0, abs=1e-6)
    assert evaluation.frechet(moments(x), moments(x + 2)) == pytest.approx(4 * 6, abs=1e-4)     # fp32 sums


def test_moments_over_processes(tmp_path):
    (tmp_path / "check.py").write_text("""if True:
        import sys, torch, torch.distributed
        sys.path.insert(0, sys.argv[1])
        import eval as evaluation
        torch.distributed.init_process_group("gloo")
        x = torch.randn(101, 4, generator=torch.Generator().manual_seed(0))
        part, whole = evaluation.Moments(4), evaluation.Moments(4)
        part.add(x[torch.distributed.get_rank()::2])
        part.reduce()
        whole.add(x)
        assert part.n == 101
        for a, b in zip(part.gaussian(), whole.gaussian()):
            torch.testing.assert_close(a, b)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        """)
    done = subprocess.run([*TWO, str(tmp_path / "check.py"), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_sharpness():
    x = common.to_float(data.load("mnist-mini")[1].pixels[:50])
    blurred = torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    assert (evaluation.sharpness(blurred) < 0.5 * evaluation.sharpness(x)).all()
    torch.testing.assert_close(evaluation.sharpness(0.5 * x), 0.25 * evaluation.sharpness(x))
    assert evaluation.sharpness(torch.full((2, 3, 8, 8), 0.7)).abs().max() < 1e-10
    image = torch.zeros(1, 1, 3, 4)
    image[0, 0, 1, 1] = 1                   # its Laplacian inside: -4 and 1
    assert evaluation.sharpness(image).item() == pytest.approx(12.5)


def test_bilinear():
    corners = torch.tensor([[0.0], [1], [10], [11]])
    panel = evaluation.bilinear(corners, 3)[:, :, 0]
    assert panel.tolist() == [[0, 0.5, 1], [5, 5.5, 6], [10, 10.5, 11]]


# ---------------------------------------------------------------------- a method that eval has never met (conftest.py)

def test_errors(dummy):
    view = evaluation.View(dummy("run"), options(batch=7))
    m = evaluation.errors(view, torch.arange(1200))
    x = common.to_float(view.test.pixels[:1200])
    y = 0.9 * x
    assert m["n"] == 1200
    assert m["mse"] == pytest.approx((0.1 * x).square().mean().item(), rel=1e-4)
    assert m["mse_255"] == pytest.approx(((y - x) * 127.5).square().mean().item(), rel=1e-4)
    assert m["mae"] == pytest.approx((0.1 * x).abs().mean().item(), rel=1e-4)
    each = (0.1 * x).square().flatten(1).mean(1)
    assert m["psnr"] == pytest.approx((10 * (4 / each).log10()).mean().item(), rel=1e-4)
    mean = common.to_float(view.train.pixels).mean(0)
    assert m["mse_mean_image"] == pytest.approx((x - mean).square().mean().item(), rel=1e-4)
    assert m["mse_wrong_pair"] == pytest.approx((y - x.roll(-1, 0)).square().mean().item(), rel=1e-4)
    raw = evaluation.errors(evaluation.View(view.run, options(weights="raw")), torch.arange(1200))
    assert raw["mse"] == pytest.approx((0.55 * x).square().mean().item(), rel=1e-4)
    m = evaluation.measure_errors(view, options(n=1)).numbers           # of one image there is no wrong pair
    assert m["mse"] == pytest.approx((0.1 * x[0]).square().mean().item(), rel=1e-4)
    assert m["mse_wrong_pair"] is None
    assert "training-mean image, - of reconstructions paired" in evaluation.MEASURES["errors"].show(m, "")[1]


def test_latent_errors(dummy):
    view = evaluation.View(dummy("run"), options())
    m = evaluation.measure_latent(view, options(n=600)).numbers
    w, after = view.codes(601, 0)[:-1] / 2, view.codes(601, 0)[1:] / 2          # and E(G(w)) = 0.9 w
    assert m["n"] == 600
    assert m["recip_w"] == pytest.approx((0.1 * w).abs().mean().item(), rel=1e-3)
    assert m["std_w"] == pytest.approx(w.std(0).mean().item(), rel=1e-3)
    assert m["norm_w"] == pytest.approx((0.1 * w).norm(dim=1).mean().item(), rel=1e-3)
    assert m["norm_w_wrong_pair"] == pytest.approx((0.9 * w - after).norm(dim=1).mean().item(), rel=1e-3)
    assert m["told_apart"] == evaluation.told_apart(w, view.images(range(600)).flatten(1)) > 99


def test_codes_are_one_sequence(dummy):
    view = evaluation.View(dummy("run"), options())
    z = view.codes(1000, 3)
    assert len(z.unique(dim=0)) == 1000
    for begin, end in ((0, 1), (249, 251), (250, 500), (120, 999)):
        assert torch.equal(view.codes(end, 3, begin), z[begin:end])
    assert not (view.codes(1000, 4) == z).any(1).any()


def test_sharpness_and_flips(dummy, cache):
    args = options(n=500, cache=cache)
    view = evaluation.View(dummy("run", dim=0.5), args)
    m = evaluation.measure_sharpness(view, args).numbers
    assert m["sharpness_reconstructions"] == pytest.approx(0.25, rel=1e-4)      # G(E(x)) = x / 2
    x, y = view.images(range(500)), view.model.generate(view.model.map(view.codes(500, 0)))
    ratio = evaluation.sharpness(y).mean() / evaluation.sharpness(x).mean()
    assert m["sharpness_samples"] == pytest.approx(ratio.item(), rel=1e-4)
    flat = evaluation.View(dummy("flat", dim=0.5), args)
    flat.images = lambda indices, part="test": torch.zeros(len(indices), 1, 28, 28)
    with pytest.raises(evaluation.Lacks, match="its test images are flat"):
        evaluation.measure_sharpness(flat, args)
    net = evaluation.classifier_of(view, cache)
    flips = 100 * (net(x).argmax(1) != net(x / 2).argmax(1)).double().mean().item()
    assert 0 < flips < 95
    assert evaluation.measure_flips(view, args).numbers["flips"] == pytest.approx(flips)


def test_frechet_measures(dummy, cache, tmp_path):
    args = options(n=500, cache=cache, batch=300)
    view = evaluation.View(dummy("run", dim=0.5), args)
    net = evaluation.classifier_of(view, cache)
    m, _, title, notes = evaluation.measure_frechet(view, args)
    shown = evaluation.show_frechet(m, title)
    assert shown[0].startswith("Frechet (digits): ")
    assert not [line for line in (*shown, *notes) if "FID" in line or "KID" in line]
    assert [line.startswith("warning: 500 images are no more than a subset") for line in notes] == [True]
    x, w = view.images(range(500)), view.model.map(view.codes(500, 0))
    y = view.model.generate(w)
    sets = dict(real=x, reconstructions=x / 2, samples=y, resamples=y / 2, midpoints=(x + x.roll(-1, 0)) / 4)
    train = net.features(view.images(range(len(view.train)), "train"))
    for kind, images in sets.items():
        f = net.features(images)
        assert m[f"frechet_{kind}"] == pytest.approx(evaluation.frechet(moments(f), moments(train)), rel=1e-3)
    kernel, _ = evaluation.kernel_distance(net.features(sets["midpoints"]), train, 0)
    assert m["kernel_midpoints"] == pytest.approx(kernel, rel=1e-3)
    assert m["n"] == dict.fromkeys(sets, 500)
    assert m["frechet_real"] < 0.1 * m["frechet_reconstructions"] < 0.1 * m["frechet_samples"]
    path, = cache.glob(f"reference-{net.checksum}-{view.train.fingerprint()}.pt")
    assert evaluation.measure_frechet(view, args).numbers == m                  # the reference from the cache
    m, how, _, notes = evaluation.measure_frechet(view, options(n=100, cache=cache, reference="test"), ["real"])
    assert "128 features" in notes[-2]
    assert "100 images are no more than a subset of the kernel distance (1,000)" in notes[-1]
    expected = evaluation.frechet(moments(net.features(x[:100])), moments(net.features(view.images(range(2000)))))
    assert m["frechet_real"] == pytest.approx(expected, rel=1e-3)
    assert "100 of each against 2,000 test images" in how
    assert m["kernel_real_deviation"] > 0
    with pytest.raises(evaluation.Lacks, match="test images themselves: a distance needs 2 or more, and this is 1"):
        evaluation.measure_frechet(view, options(n=1, cache=cache))
    with pytest.raises(common.Error, match="no features 'cats'; --features can be inception, vgg16, or digits"):
        evaluation.measure_frechet(view, options(n=100, cache=cache, features="cats"))
    (tmp_path / "broken").mkdir()
    shutil.copy(next(cache.glob("classifier-*")), tmp_path / "broken")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other")
    for content in (b"no", (tmp_path / "other").read_bytes()):
        (tmp_path / "broken" / path.name).write_bytes(content)
        with pytest.raises(common.Error, match="cannot be read .*delete it"):
            evaluation.measure_frechet(view, options(n=100, cache=tmp_path / "broken"))


def test_precision_and_recall_by_hand():
    """On a line, k = 1: real balls end at -1 ... 1, 0 ... 2, 1 ... 5, 3 ... 17, made ones at -3.9 ... 4.9, 0.5 ... 9.3,
    19 ... 21, 20 ... 22."""
    real, made = (torch.tensor(values)[:, None] for values in ([0.0, 1, 3, 10], [0.5, 4.9, 20, 21]))
    assert evaluation.precision_recall(real, made, k=1) == (0.5, 0.75)


def test_precision_and_recall_of_half_a_set():
    """Pictures of one of two classes look real and cover half; pictures of both, half of them spoilt, the converse."""
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    two = torch.cat([x, x + 1000])
    assert evaluation.precision_recall(two, x + 1e-3, block=30) == (1, 0.5)
    assert evaluation.precision_recall(x, two + 1e-3) == (0.5, 1)


def test_precision_and_recall_against_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_prc", reason="torch-fidelity is not installed")
    rng = torch.Generator().manual_seed(1)
    real, made = torch.randn(300, 8, generator=rng).double(), 0.8 * torch.randn(250, 8, generator=rng).double() + 0.3
    theirs = fidelity.prc_features_to_metric(made, real, verbose=False)
    ours = evaluation.precision_recall(real, made, block=70)
    assert ours == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)      # theirs is fp32
    assert 0.05 < ours[1] < ours[0] < 1


def test_precision_takes_the_features_of_frechet(dummy, cache, monkeypatch):
    """Equal numbers, evenly spaced in the training part; each picture goes through the network once."""
    args = options(n=400, cache=cache)
    view = evaluation.View(dummy("run", dim=0.5), args)
    net = evaluation.classifier_of(view, cache)
    evaluation.measure_frechet(view, args)
    radii, asked = evaluation.radii, []
    monkeypatch.setattr(evaluation.Classifier, "features", None)
    monkeypatch.setattr(evaluation, "radii", lambda *given: asked.append(1) or radii(*given))
    m, how, _, _ = evaluation.measure_precision(view, args)
    assert len(asked) == 4                                      # of the real ones once, and of each kind
    monkeypatch.undo()
    real = net.features(view.images(torch.linspace(0, 9999, 400).long(), "train"))      # all 10,000 are kept
    x = view.images(range(400))
    for kind, images in dict(samples=view.model.generate(view.model.map(view.codes(400, 0))), reconstructions=x / 2,
                             real=x).items():
        expected = evaluation.precision_recall(real, net.features(images))
        assert (m[f"precision_{kind}"], m[f"recall_{kind}"]) == pytest.approx(expected, abs=0.006), kind
    assert m["precision_real"] > 0.6 > m["precision_samples"]
    assert how.startswith("k 3; features of digits ")
    assert "400 of each, and as many of 10,000 training images" in how
    with pytest.raises(evaluation.Lacks, match="a 3rd neighbour needs 4 images or more, and there are 3"):
        evaluation.measure_precision(view, options(n=3, cache=cache))


@pytest.mark.parametrize("batch", [7, 2])       # 2: some batches have none that is kept
def test_some_features_are_kept(batch, monkeypatch):
    monkeypatch.setattr(evaluation, "KEPT", 10)
    view, extractor = Namespace(device=torch.device("cpu"), batch=batch), Namespace(d=2, batch=9, features=lambda x: x)
    x = torch.arange(96.0).view(48, 2)
    m, kept = evaluation.features_of(view, extractor, "x", 48, lambda begin, end: x[begin:end])
    assert torch.equal(kept, x[evaluation.scattered(48, 10)])
    torch.testing.assert_close(m.gaussian()[0], x.double().mean(0))


@pytest.fixture(autouse=True)
def few_subsets(monkeypatch):
    """A kernel distance is a mean over 100 subsets, which take most of a Frechet measure's time."""
    monkeypatch.setattr(evaluation, "kernel_distance", functools.partial(evaluation.kernel_distance, subsets=5))


@pytest.fixture
def squares(monkeypatch):
    """Squared differences in place of LPIPS."""
    def distance(a, b):
        return (a - b).double().square().flatten(1).mean(1)
    distance.title, distance.checksum, distance.official = "squares", "0", False
    monkeypatch.setattr(evaluation, "lpips_of", lambda view, args, crop=False: distance)


def test_path_length_of_a_linear_generator(dummy, squares):
    """G(w) = w / 2 and map(z) = z / 2, so along W every step of epsilon moves the image by epsilon (b - a) / 4."""
    args = options(n=300)
    view = evaluation.View(dummy("run", dim=0.5), args)
    m, _, title, _ = evaluation.measure_ppl(view, args)
    a, b = view.codes(600, 0)[0::2], view.codes(600, 0)[1::2]
    d = ((b - a) / 4).square().mean(1)
    d = d.sort().values[2:-2].mean().item()          # 300 values: the 1st percentile is the third of them
    assert m["path_w_full"] == pytest.approx(d, rel=0.02)
    assert m["path_w_end"] == pytest.approx(d, rel=0.02)
    angle = (a * b).sum(1).div(a.norm(dim=1) * b.norm(dim=1)).acos()
    arc = (angle * (a.norm(dim=1) + b.norm(dim=1)) / 8).square() / 784
    assert m["path_z_full"] == pytest.approx(arc.sort().values[2:-2].mean().item(), rel=0.05)
    assert m["n"] == 300
    assert evaluation.MEASURES["ppl"].show(m, title)[0].startswith("PPL by squares: Z full")


def test_path_lengths_of_a_curved_generator(dummy, squares, monkeypatch):
    """Paths are sampled along their whole length or at their ends, under one noise, in the crop that is asked for."""
    args, seen = options(n=200, face_crop=True), []
    view = evaluation.View(dummy("run"), args)

    def generate(w, noise):
        assert noise == "random"
        return (w.double().cumsum(1).pow(3) + 1000 * torch.randn(1)).view(-1, 1, 28, 28)
    monkeypatch.setattr(view.model, "generate", generate)
    monkeypatch.setattr(view.model, "map", lambda z: z.abs())
    monkeypatch.setattr(evaluation, "as_ppl_sees", lambda x, crop: seen.append(crop) or x.double())
    m = evaluation.measure_ppl(view, args).numbers
    assert set(seen) == {True}
    a, b = view.codes(400, 0)[0::2].double(), view.codes(400, 0)[1::2].double()
    t = torch.from_numpy(np.random.RandomState(0).rand(200, 1))

    def expected(space, t):     # by finer steps, without noise
        def image(t):
            w = evaluation.slerp(a, b, t).abs() if space == "z" else a.abs() + t * (b.abs() - a.abs())
            return w.cumsum(1).pow(3)
        return evaluation.within_percentiles(((image(t + 1e-6) - image(t)) / 1e-6).square().mean(1))
    values = {f"path_{space}_{part}": expected(space, t * (part == "full"))
              for space in "zw" for part in ("full", "end")}
    assert {k: v for k, v in m.items() if k != "n"} == pytest.approx(values, rel=0.02)
    assert values["path_z_full"] > 2 * values["path_z_end"] > 4 * values["path_w_end"]


def test_what_ppl_sees():
    x = torch.arange(2 * 3 * 1024 * 1024).view(2, 3, 1024, 1024).double()
    assert torch.equal(evaluation.as_ppl_sees(x, False)[0, 0, 0, 0], x[0, 0, :4, :4].mean())
    assert evaluation.as_ppl_sees(x, False).shape == (2, 3, 256, 256)
    assert torch.equal(evaluation.as_ppl_sees(x, True)[1, 2, 0, 0], x[1, 2, 384:386, 256:258].mean())
    assert evaluation.as_ppl_sees(x, True).shape == (2, 3, 256, 256)
    assert torch.equal(evaluation.as_ppl_sees(x[:, :, :64, :64], False), x[:, :, :64, :64])
    assert evaluation.as_ppl_sees(x[:, :, :64, :64], True).shape == (2, 3, 32, 32)


def test_within_percentiles():
    d = torch.randperm(1000).double()**3
    assert evaluation.within_percentiles(d) == pytest.approx(d.sort().values[9:991].mean().item(), rel=1e-12)
    assert evaluation.within_percentiles(torch.tensor([3.0])) == 3


def test_perceptual_distance_of_pairs(dummy, squares):
    args = options(n=40)
    view = evaluation.View(dummy("run"), args)
    x = view.images(range(40))
    m, _, title, _ = evaluation.measure_lpips(view, args)
    assert m["distance"] == pytest.approx((0.1 * x).square().mean().item(), rel=1e-4)
    mean = common.to_float(view.train.pixels).mean(0)
    assert m["distance_mean_image"] == pytest.approx((mean - x).square().mean().item(), rel=1e-4)
    assert m["distance_wrong_pair"] == pytest.approx((0.9 * x - x.roll(-1, 0)).square().mean().item(), rel=1e-4)
    assert evaluation.show_lpips(m, title)[0].startswith("squares: ")


def test_swd_of_reconstructions_and_samples(dummy):
    """Each set is brought to one contrast, so a dimmer image is none other, and noise is."""
    args = options(n=60)
    view = evaluation.View(dummy("run", dim=0.9), args)
    m = evaluation.measure_swd(view, args).numbers
    assert m["n"] == dict(samples=60, reconstructions=60)
    assert m["swd_reconstructions"] == m["swd_reconstructions_levels"][28]
    assert m["swd_reconstructions"] < 40 < m["swd_samples"]
    x = view.images(range(60))
    sets = []
    for i, t in enumerate((x, 0.9 * x)):
        rng = np.random.RandomState([0, 0, i])
        rows, cols = (torch.from_numpy(rng.randint(3, 25, (60, 128))) for _ in range(2))
        sets.append(evaluation.patches(common.to_uint8(t).float(), rows, cols))
    a, b = sets
    expected = evaluation.sliced_wasserstein(a, b, np.random.RandomState([0, 0]))
    assert m["swd_reconstructions"] == pytest.approx(expected, rel=1e-6)


def test_swd_of_samples_is_to_training_images(dummy):
    """Unless --reference asks for the test part; of reconstructions it is to their originals, or to training images."""
    view = evaluation.View(dummy("run", dim=0.9), options())
    made = view.model.generate(view.model.map(view.codes(60, 0)))
    train, test = view.images(evaluation.scattered(10_000, 60), "train"), view.images(range(60))

    def swd(a, b):
        sets = []
        for i, t in enumerate((a, b)):
            rng = np.random.RandomState([0, 0, i])
            rows, cols = (torch.from_numpy(rng.randint(3, 25, (60, 128))) for _ in range(2))
            sets.append(evaluation.patches(common.to_uint8(t).float(), rows, cols))
        return evaluation.sliced_wasserstein(*sets, np.random.RandomState([0, 0]))
    values = {part: (swd(part, made), swd(part, 0.9 * test)) for part in (train, test)}
    for reference, samples, reconstructions in (("", train, test), ("train", train, train), ("test", test, test)):
        m, how, *_ = evaluation.measure_swd(view, options(n=60, reference=reference))
        assert m["swd_samples"] == pytest.approx(values[samples][0], rel=1e-6)
        assert m["swd_reconstructions"] == pytest.approx(values[reconstructions][1], rel=1e-6)
        assert f"60 samples against as many {'training' if samples is train else 'test'} images" in how
    assert len({*values[train], *values[test]}) == 4


def test_any_number_of_processes(dummy, script, tmp_path, cache):
    """Two processes print what one does, of a generator with noise; the second says nothing."""
    run = dummy("run")
    view = evaluation.View(run, options())
    evaluation.reference(view, evaluation.classifier_of(view, cache), cache)            # both read it
    source = tmp_path / "dummy.py"
    source.write_text(source.read_text().replace("return (w * self.dim)", "return (w * self.dim + (noise == 'random') "
                                                 "* 0.1 * torch.randn_like(w))"))
    flags = ("metrics", run, "-n", 300, "--cache", cache, "--batch", 64, "--only", "errors", "latent", "sharpness",
             "frechet", "precision", "flips", "classifiers", "swd")
    one = script("eval.py", *flags, "--json", "one.json").stdout
    two = script("eval.py", *flags, "--json", "two.json", launcher=TWO).stdout
    a, b = (json.loads((tmp_path / f"{name}.json").read_text())[str(run)] for name in ("one", "two"))
    assert list(a) == list(b) == list(flags[flags.index("--only") + 1:])
    for name, numbers in a.items():
        for key, value in numbers.items():
            close = isinstance(value, (int, float))
            assert b[name][key] == (pytest.approx(value, rel=1e-6, abs=1e-6) if close else value), (name, key)
    one, two = (re.sub(r"about \dm\d\ds", "", out) for out in (one, two))      # how long it takes may differ
    assert one == two


def test_scattered_places():
    """One of each of equal parts, in order, without the period of a set in which two kinds alternate, as MNIST's."""
    for n, many in ((60_000, 10_000), (60_000, 30_000), (11, 10), (7, 3)):
        places = evaluation.scattered(n, many)
        assert ((places >= torch.arange(many) * n // many) & (places <= (torch.arange(many) + 1) * n // many)).all()
        assert places.diff().min() >= 0
        assert places.max() < n
        assert n < 100 or (places % 2).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(evaluation.scattered(5, 9), torch.arange(5))


def test_trials_that_agree_are_no_single_run():
    assert [evaluation.spread(values, ".2f") for values in ([], [97.0], [97.0, 97.0])] == ["-", "97.00", "97.00 ± 0.00"]
    assert evaluation.spread([5, 5], ",.0f", alike=False) == "5"


def test_a_diverged_run_has_no_numbers(dummy):
    run = dummy("run")
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    next(iter(checkpoint["state"]["ema"].values())).view(-1)[0] = math.nan
    torch.save(checkpoint, run / "checkpoint.pt")
    with pytest.raises(common.Error, match="run: its weights are not finite; the run has diverged"):
        evaluation.View(run, options())


def test_what_metrics_refuses(dummy, script, tmp_path, cache):
    run = dummy("run")
    for flags, message in (
            (("--only", "errors", "cats"), "there is no measure 'cats' but errors, latent"),
            (("--only", "fid"), "FID and KID are frechet, with --features inception"),
            (("--only", "errors", run), "run is a folder; name RUN before --only"),
            (("--seed", "-1"), "invalid seed value: '-1'"),
            (("-n", "1" + 20 * "0"), "-n: invalid positive int up to 1,000,000,000 value"),
            (("--json", "nowhere/m.json"), "there is no folder nowhere; make it, or name another file by --json"),
            (("--json", tmp_path), "is a folder; name a file in it"),
            (("--json", run / "args.json"), "args.json is there, and holds no numbers of this script; name another"),
            (("--json", run / "checkpoint.pt"), "checkpoint.pt is there, and holds no numbers"),
            (("--only", "errors", "frechet", "--inception", "i.pth", "--features", "inception"), "there is no i.pth"),
            (("--cache", run / "args.json"), "args.json is a file; name a folder"),
            (("--face-crop",), "--face-crop is for ppl; ask for that by --only ppl"),
            (("--vgg", "v.pth"), "--vgg is for lpips and ppl; ask for that by --only lpips ppl"),
            (("--inception", "i.pth", "--features", "digits"), "--inception is of no use with --features digits")):
        done = script("eval.py", "metrics", run, "--cache", cache, *flags, code=2)
        assert message in done.stderr
        assert "MSE" not in done.stdout                 # refused before anything is counted


def test_what_cannot_be_measured_does_not_stop_the_rest(dummy, script, tmp_path, cache):
    """Neither the next measure nor the next run; the exit status and one line tell."""
    run = dummy("run")
    done = script("eval.py", "metrics", tmp_path / "nothing", run, "--only", "frechet,errors", "sharpness", "-n", 99,
                  "--json", "m.json", "--features", "cats", "--cache", cache, code=2)
    assert f"{tmp_path}/nothing: left out: {tmp_path}/nothing holds no run" in done.stdout
    assert "frechet:     left out: " in done.stdout
    assert done.stderr.startswith("error: ")
    assert "there are no features 'cats'" in done.stderr
    assert done.stderr.count("\n") == 1
    numbers = json.loads((tmp_path / "m.json").read_text())
    assert [*numbers[str(run)]] == ["errors", "sharpness"]
    assert "warning: of 99 only" in done.stdout


def test_what_is_wrong_with_the_only_run_is_said_once(script):
    done = script("eval.py", "metrics", "nothing", code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: nothing holds no run")


def test_one_held_out_image(dummy, script, tmp_path):
    """What needs two is left out, without advice that cannot help."""
    run = change(dummy("run"), data=str(fill(tmp_path / "set", 3, size=(28, 28))), train_images=2)
    done = script("eval.py", "metrics", run, "--only", "errors", "latent", "sharpness", "swd", "--json", "m.json")
    numbers = json.loads((tmp_path / "m.json").read_text())[str(run)]
    assert [*numbers] == ["errors", "latent", "sharpness", "swd"]
    assert "codes of real images left out: 10 are needed, and there are 1" in done.stdout
    assert done.stdout.count("warning: of 1 only, so that others would give other numbers") == 4
    assert "raise -n" not in done.stdout
    out = script("eval.py", "compare", run, "--out", "c.png").stdout
    assert f"{numbers['errors']['mse_mean_image']:.4f} -   (" in out


def test_a_run_whose_set_is_elsewhere(dummy, script, tmp_path):
    """What shows no image of the set runs; the rest refuses in a line."""
    run = change(dummy("run"), data=str(tmp_path / "gone"))
    digits = [fill(tmp_path / "set", 4, size=(28, 28)) / f"{i:03d}.png" for i in range(2)]
    here = dummy("here")
    for name, *flags in (("samples",), ("reconstructions", "--images", *digits), ("interpolation", "--images", *digits),
                         ("traversal",)):
        out = script("eval.py", "figure", name, run, *flags, "--labels=off", "--out", "a.png").stdout
        assert "any two samples are joined" in out or name != "traversal"
        if name != "traversal":
            script("eval.py", "figure", name, here, *flags, "--labels=off", "--out", "b.png")
            assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    out = script("eval.py", "invert", run, *digits, "--method", "encoder", "--out", "i.png").stdout
    assert "mean image -" in out
    assert f"no mean image: there is no {tmp_path}/gone" in out
    out = script("eval.py", "metrics", run, "--only", "latent", "-n", 50).stdout
    assert "|E(G(w)) - w|" in out
    assert "codes of real images left out: there is no" in out
    done = script("eval.py", "metrics", run, "--only", "errors", "latent", "-n", 50, code=2)
    assert "errors:      left out: there is no" in done.stdout
    assert "|E(G(w)) - w|" in done.stdout
    for command in (("figure", "reconstructions"), ("compare",), ("boundary",), ("table", "lia-2"),
                    ("metrics", "--data", "nowhere.zip", "--only", "latent")):
        err = script("eval.py", command[0], *command[1:2] * (len(command) == 2), run, *command[1:] * (len(command) > 2),
                     code=2).stderr
        assert err.startswith("error: there is no ")
        assert err.count("\n") == 1


@pytest.mark.parametrize("method", ["../x", "", 7, "json", "data", "numpy"])
def test_a_method_that_is_none(dummy, script, method):
    err = script("eval.py", "figure", "samples", change(dummy("run"), method=method), code=2).stderr
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_names_of_figures_and_tables(dummy, script, tmp_path):
    run = dummy("run")
    for flags, message in ((("figure", "reconstruction", run), "no figure 'reconstruction', but reconstructions"),
                           (("table", "lia-9", run), "there is no table 'lia-9', but lia-"),
                           (("figure", "zzz", run), "there is no figure 'zzz'; see `eval.py list`"),
                           (("figure", run), "run is a folder; the figure's name comes before it"),
                           (("table", run, run), "run is a folder; the table's name comes before it"),
                           (("figure", "samples"), "required: RUN"),
                           (("figure", "samples", run, "-n", 10**14), "-n: invalid positive int up to 1,000,000,000"),
                           (("figure", "samples", run, "-n", 10**9), "would be a picture of 7.8e+11 pixels; pass"),
                           (("figure", "morph", run, "-n", 10**5), "would be a picture of 7.8e+12 pixels")):
        err = script("eval.py", *flags, code=2).stderr
        assert message in err
        assert err.count("\n") == 1
        assert len(err) < 250


def test_what_lacks_the_second_stage_says_so(dummy):
    view = evaluation.View(change(dummy("run"), stage="1"), options())
    with pytest.raises(evaluation.Lacks, match="has no 'fly', which this needs; train stage 2 on it"):
        view.need(["fly"])


def test_work_that_is_not_shared_refuses_several_processes(dummy, script):
    """They would wait for the first until NCCL's watchdog ends the job."""
    run = dummy("run")
    for flags in (("invert", run), ("boundary", run), ("table", "invgan-2", run, run), ("table", "alae-2", run),
                  ("figure", "samples", run)):
        for rank in "01":
            done = script("eval.py", *flags, env=dict(WORLD_SIZE="2", RANK=rank), code=2)
            named = " ".join(flag for flag in flags if isinstance(flag, str))
            assert done.stderr == (f"error: {named} is the work of one process; run it by python, without torchrun\n"
                                   ) * (rank == "0")


def test_closed_standard_output(dummy):
    command = f"{sys.executable} {ROOT / 'eval.py'} metrics {dummy('run')} --only errors -n 20 >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_pictures_of_several_runs_stand_beside_them(dummy, script, tmp_path, monkeypatch):
    runs = [dummy(name) for name in "ab"]
    (tmp_path / "elsewhere").mkdir()
    env = dict(PYTHONPATH=os.environ["PYTHONPATH"])
    for command, name in ((("compare",), "compare"), (("figure", "samples"), "samples")):
        (tmp_path / "elsewhere" / "runs").mkdir(exist_ok=True)
        out = script("eval.py", *command, *runs, "-n", 20, env=env).stdout
        assert f"wrote {tmp_path}/{name}.png\n" in out
        assert f"wrote {tmp_path}/{name}.png over an older one\n" in script("eval.py", *command, *runs, "-n", 20).stdout


def test_protocols_name_both_seeds(dummy, script):
    run = change(dummy("run"), seed=5)
    out = script("eval.py", "metrics", run, "--only", "errors", "-n", 20, "--seed", 3).stdout
    assert "; evaluation seed 3; " in out
    assert ", training seed 5, " in out


def test_numbers_in_plain_digits():
    assert [evaluation.plain(v, 4) for v in (12345.6, 2040, 1.5, 0.000123456, 0)] == [
        "12350", "2040", "1.5", "0.0001235", "0"]


def test_a_cache_that_cannot_be_written(dummy, cache, monkeypatch, capsys):
    def full(path, value):
        raise OSError(28, "No space left on device")
    view = evaluation.View(dummy("run"), options())
    net = evaluation.classifier_of(view, cache)
    monkeypatch.setattr(common, "save", full)
    monkeypatch.setattr(evaluation.Classifier, "checksum", "other")
    (mean, _), kept = evaluation.reference(view, net, cache)
    assert mean.shape == (128,)
    assert kept.shape == (10000, 128)
    assert "cannot be written (No space left on device), so it will be made again" in capsys.readouterr().out


def test_several_processes_leave_nobody_waiting(dummy, script, tmp_path):
    """Where all lack the same, and where one has to wait for another's work."""
    run = dummy("run")
    change(run, data=str(fill(tmp_path / "set", 40, size=(28, 28))), train_images=36)
    out = script("eval.py", "metrics", run, launcher=TWO).stdout
    for name in ("frechet", "flips", "classifiers"):
        assert f"{name + ':':13}left out: " in out
    assert "errors:      MSE" in out


def test_weights_as_trained(dummy, script, tmp_path):
    run = dummy("run")
    out = script("eval.py", "metrics", run, "--weights", "raw", "--only", "errors", "-n", 50, "--json", "m.json").stdout
    assert "raw weights" in out
    x = common.to_float(data.load("mnist-mini")[1].pixels[:50])
    m = json.loads((tmp_path / "m.json").read_text())[str(run)]["errors"]
    assert m["mse"] == pytest.approx((0.55 * x).square().mean().item(), rel=1e-4)


def test_a_run_that_diverged(dummy, cache):
    view = evaluation.View(dummy("run"), options())
    next(view.model.parameters()).data.fill_(math.nan)      # as where finite weights overflow in a pass
    with pytest.raises(common.Error, match="features of its samples are not finite; the run has diverged"):
        evaluation.measure_frechet(view, options(n=10, cache=cache))
    view.model.features = lambda x: (x.flatten(1), x.flatten(1) / 0)
    with pytest.raises(common.Error, match="its long features are not finite; the run has diverged"):
        evaluation.measure_classifiers(view, options())


def test_interrupted_metrics_keep_what_was_measured(dummy, tmp_path):
    run = dummy("run")
    source = tmp_path / "dummy.py"
    source.write_text(source.read_text().replace("def prior(self, n, generator):", "def prior(self, n, generator): "
                                                 "import time; print('drawing', flush=True); time.sleep(60);"))
    process = subprocess.Popen([sys.executable, str(ROOT / "eval.py"), "metrics", str(run), "-n", "50", "--json",
                                "m.json"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = ""
    for line in process.stdout:
        said += line
        if line.endswith("drawing\n"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    numbers = json.loads((tmp_path / "m.json").read_text())[str(run)]
    assert list(numbers) == ["errors"]
    assert numbers["errors"]["n"] == 50
    assert f"MSE {numbers['errors']['mse']:.4f}" in said


def test_the_classifier_is_trained_once(dummy, cache, capsys):
    view = evaluation.View(dummy("run"), options())
    net = evaluation.classifier_of(view, cache)
    assert net.name == "digits"
    right = (net(view.images(range(2000))).argmax(1) == view.test.labels).double().mean().item()
    assert net.accuracy.item() == pytest.approx(100 * right)
    assert right > 0.95
    capsys.readouterr()
    again = evaluation.classifier_of(view, cache)
    assert capsys.readouterr().out == ""                # read, not trained
    assert again.checksum == net.checksum
    path, = cache.glob("classifier-digits-1x28x28-*.pt")
    (cache / "broken").mkdir()
    (cache / "broken" / path.name).write_bytes(b"no")
    with pytest.raises(common.Error, match="cannot be read .*delete it"):
        evaluation.classifier_of(view, cache / "broken")
    for labels in (None, view.train.labels - 1):        # -1: an image without a class
        view.train.labels = labels
        with pytest.raises(common.Error, match="has no class labels"):
            evaluation.classifier_of(view, cache)


def test_held_out_measures_agree_with_metrics(dummy):
    view = evaluation.View(dummy("run", dim=1.5), options())         # leaves [-1, 1], and is clipped
    m = evaluation.errors(view, torch.arange(600))
    h = common.inversion_errors(view.model, view.images(range(600)), view.codes(600, 0))
    assert (h["mse"], h["recip_x"]) == pytest.approx((m["mse"], m["mae"]), rel=1e-4)
    assert h["recip_w"] == pytest.approx(evaluation.measure_latent(view, options(n=600)).numbers["recip_w"], rel=1e-4)
    assert common.inversion_errors(view.model, view.images(range(600)), None)["recip_w"] == ""
    x = view.images(range(600))
    assert m["mse"] == pytest.approx(((1.5 * x).clamp(-1, 1) - x).square().mean().item(), rel=1e-4)


def test_commands_on_an_unknown_method(dummy, script, tmp_path, cache):
    a, b = dummy("a", 0.9), dummy("b", 0.5)
    out = script("eval.py", "metrics", a, "-n", 500, "--json", "m.json", "--cache", cache).stdout
    numbers = json.loads((tmp_path / "m.json").read_text())[str(a)]
    assert list(numbers) == ["errors", "latent", "sharpness", "frechet", "precision", "flips", "classifiers"]
    for text in (f"MSE {numbers['errors']['mse']:.4f}", "wrong originals", "500 of 2,000 test images", "ema weights",
                 f"1-NN: short features {numbers['classifiers']['1nn_short']:.2f} %"):
        assert text in out, text
    for name, words in dict(
            errors=("500 of 2,000 test images", "fixed noise"), latent=("500 codes", "no truncation"),
            frechet=("features of digits", "500 of each", "10,000 training images", "random noise", "no truncation"),
            flips=("classifier digits",), classifiers=("all 2,000 test images",)).items():
        line = f"[{numbers[name]['protocol']}]"
        assert line in out
        for word in (*words, "evaluation seed 0", "training seed 0", "mnist-mini", "ema weights",
                     f"evaluation code {common.code_version()}"):
            assert word in line, (name, word)
    for name, size in (("samples", (8, 8)), ("reconstructions", (16, 4)), ("alae-4", (12, 10)), ("morph", (7, 7))):
        script("eval.py", "figure", name, a, "--labels=off", "--out", f"{name}.png")
        assert Image.open(tmp_path / f"{name}.png").size == tuple(2 + 30 * n for n in size)
    out = script("eval.py", "figure", "faae-5", a, b, "-n", 20, "--labels=off").stdout     # two runs under the real row
    assert out.index(f"Dummy, none, {a}") < out.index(f"Dummy, none, {b}")
    assert Image.open(tmp_path / "reconstructions.png").size == (2 + 30 * 16, 2 + 30 * 6)      # 16 and 4, filled up
    out = script("eval.py", "compare", a, b).stdout
    assert "2,000 test images that all runs have in common" in out
    assert Image.open(tmp_path / "compare.png").size == (2 + 30 * 16, 2 + 30 * 3)
    first, second = (float(line.split("MSE ")[1].split()[0]) for line in out.splitlines() if "MSE" in line)
    assert second > first * 20
    assert "alae-2" in script("eval.py", "list").stdout


@pytest.mark.skipif(not (DATA_ROOT / "MNIST").exists(), reason=f"no MNIST below {DATA_ROOT}")
def test_compare_takes_what_no_run_was_trained_on(dummy, script):
    mini, dw = dummy("mini"), dummy("dw", data="mnist", data_root=DATA_ROOT)
    sw = dummy("sw", data="mnist", data_root=DATA_ROOT, split="sw")
    assert "2,000 test images that all" in script("eval.py", "compare", mini, dw).stdout
    assert "no image in common" in script("eval.py", "compare", dw, sw, code=2).stderr


def test_compare_table(dummy, script, tmp_path, cache):
    """Two seeds of one setting share a row; a longer batch has its own; only one run has a log."""
    a, b, c = dummy("a0", dim=0.9, batch=32), dummy("a1", dim=0.8, batch=32), dummy("c", dim=0.5, batch=64)
    change(b, seed=1, source=dict(seed="given"))
    (c / "log.csv").write_text("kimg,seconds,peak_gb,mse\n0,0.5,2.5,\n1,12.0,1.5,0.1\n2,90.0,9.0,0.1\n")   # 1 was seen
    flags = ("compare", "--table", a, b, c, "-n", 100, "--cache", cache)
    done = script("eval.py", *flags, "--only", "errors", "--format", "csv", "--json", "t.json")
    pooled, single = csv.DictReader(io.StringIO(done.stdout))
    mean = evaluation.View(a, options()).images(range(100)).square().mean().item()
    assert [pooled[k] for k in ("run", "method", "runs", "images shown", "batch", "seconds")] == [
        "a{0,1}", "Dummy, none", "2", "1000", "32", ""]
    assert float(pooled["MSE"]) == pytest.approx(mean * (0.1**2 + 0.2**2) / 2, rel=1e-5)
    assert float(pooled["MSE, deviation"]) == pytest.approx(mean * (0.2**2 - 0.1**2) / 2**0.5, rel=1e-5)
    assert [single[k] for k in ("run", "runs", "batch", "seconds", "peak GB", "MSE, deviation")] == [
        "c", "1", "64", "12", "2.5", ""]
    assert float(single["MSE"]) == pytest.approx(mean * 0.5**2, rel=1e-5)
    assert not [head for head in pooled if "flips" in head or "Frechet" in head]                # no run has them
    assert "training seed 0" in pooled["protocol"]
    assert "training seed 1" in pooled["protocol"]
    kept = json.loads((tmp_path / "t.json").read_text())["a{0,1}"]["numbers"]["errors mse"]
    assert kept["values"] == pytest.approx([mean * 0.1**2, mean * 0.2**2], rel=1e-5)

    script("eval.py", *flags, "--out", "t.md")                  # so many measures of two settings: a row a measure
    table, _, notes = (tmp_path / "t.md").read_text().partition("\n\n")
    head, rule, *rest = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    assert (head, rule) == (["run", "a{0,1}", "c"], ["---", "---:", "---:"])
    assert rest[0] == ["method", "Dummy, none", "Dummy, none"]
    first, cells = ({row[0]: row[i] for row in rest} for i in (1, 2))
    assert r"\|E(G(w)) - w\|" in cells
    assert {"Frechet (digits), midpoints", "recall, samples", "SVM long, %", "label flips, %"} <= set(cells)
    assert first["MSE"].startswith(f"{mean * 0.025:.4f} ± ")
    view = evaluation.View(c, options())
    how = options(n=100, cache=cache)
    assert cells["Frechet (digits), samples"] == f"{evaluation.frechet_of(view, how, ['samples'])[0][0]:.2f}"
    m = evaluation.measure_precision(view, how).numbers
    assert cells["recall, reconstructions"] == f"{m['recall_reconstructions']:.3f}"
    assert cells["label flips, %"] == f"{evaluation.measure_flips(view, how).numbers['flips']:.2f}"
    assert "- mean ± standard deviation over the runs of a setting, which may differ in seed" in notes
    few = script("eval.py", *flags, "--only", "errors", "--format", "markdown").stdout.splitlines()
    head, first = next(few[i::2][:2] for i, line in enumerate(few) if line.startswith("| run | method | runs | "))
    assert first.startswith("| a{0,1} | Dummy, none | 2 | 1,000 | ")        # few measures: a row a setting
    assert head.count(" | ") == first.count(" | ")
    text = script("eval.py", *flags, "--only", "errors,flips").stdout
    assert max(len(line) for line in text.splitlines() if line.startswith(("a{0,1}  ", "run"))) <= 120
    assert "of wrong pairs" in text


def test_what_compare_table_refuses(dummy, script):
    run = dummy("run", batch=32)
    for flags, message in ((("--only", "errors"), "--only is for compare --table"),
                           (("--seed", 3), "--seed is for compare --table"),
                           (("--table", "--only", "swd"), "no column of swd; --only can be errors"),
                           (("--table", "--out", "t.png"), "end it in .csv, .md or .txt"),
                           ((run, "--table"), "is named twice, and is one trial; leave one out"),
                           (("--table", "--only", "errors", "--reference", "test"), "--reference is for frechet and"),
                           (("--table", "--format", "csv", "--only", "errors,no"), "no measure 'no'")):
        assert message in script("eval.py", "compare", run, *flags, code=2).stderr


def test_rows_that_do_not_compare_are_noted():
    facts = dict(a=("mnist", dict(samples=5, real=5)), b=("faces", dict(samples=5, real=4)),
                 c=("mnist", dict(samples=5, real=5)))
    rows = [evaluation.Row(name, "Dummy", {name: "protocol"}, {}, {"data": of, "features": "f", "n of frechet": n}, {})
            for name, (of, n) in facts.items()]
    notes = evaluation.notes_of(rows, options())
    assert notes[:2] == ["rows differ in data, so compare those of one alone: mnist: a, c; faces: b",
                         "rows differ in n of frechet, so compare those of one alone: 5 of each: a, c; "
                         "5 samples, 4 test images themselves: b"]
    assert notes[2:5] == ["a: protocol", "b: protocol", "c: protocol"]


def test_joint_names():
    assert evaluation.joint_name(["a-new0", "a-new1", "a-new2"]) == "a-new{0,1,2}"
    assert evaluation.joint_name(["x-s0-b", "x-s10-b"]) == "x-s{0,10}-b"
    assert evaluation.joint_name(["x", "x-s1"]) == "x{,-s1}"
    assert evaluation.joint_name(["x"]) == "x"


def test_line():
    a = evaluation.line(torch.zeros(2, 3), torch.tensor([[1.0, 2, 4], [0, 0, 8]]), 5)
    assert a.shape == (2, 5, 3)
    assert a[0, :, 2].tolist() == [0, 1, 2, 3, 4]
    assert a[1, -1].tolist() == [0, 0, 8]


def test_figures_keep_the_test_parts_order(dummy, tmp_path):
    """A folder's test part interleaves its classes, so the first rows show all of them."""
    for name, n in (("a", 200), ("b", 40), ("c", 40), ("d", 40)):
        fill(tmp_path / "set" / name, n, first=1000 * ord(name), size=(28, 28))
    run = change(dummy("run"), data=str(tmp_path / "set"), train_images=288)
    view = evaluation.View(run, options())
    assert torch.equal(evaluation.shared_test_images([view])[0], torch.arange(32))
    corners = evaluation.one_of_four_classes(view, torch.arange(32))
    assert view.test.labels[corners].tolist() == [0, 1, 2, 3]
    x = evaluation.real_images([view], options(), 5)
    assert torch.equal(x, view.images(range(5)))
    assert evaluation.one_of_four_classes(view, torch.arange(3)) == [0, 1, 2]


def test_figures_of_given_images(dummy, tmp_path, script):
    run = dummy("run")
    paths = [fill(tmp_path / "set", 20) / f"{i:03d}.png" for i in range(17)]
    script("eval.py", "figure", "reconstructions", run, "--images", *paths, "--labels=off", "--out", "a.png")
    assert Image.open(tmp_path / "a.png").size == (2 + 30 * 16, 2 + 30 * 4)         # the 17th in a row of its own
    script("eval.py", "figure", "morph", run, "--images", *paths[:4], "-n", 3, "--labels=off", "--out", "b.png")
    panel = torch.from_numpy(np.array(Image.open(tmp_path / "b.png")))[:, :, 0].double()
    cells = [panel[2 + 30 * r:30 + 30 * r, 2 + 30 * c:30 + 30 * c] for r in (0, 2) for c in (0, 2)]
    for path, cell in zip(paths, cells, strict=False):                              # G(E(x)) = 0.9 x
        x = common.to_float(data.read_images([path], 1, (28, 28)))[0, 0]
        assert (cell - (0.9 * x + 1) * 127.5).abs().max() <= 1
    err = script("eval.py", "figure", "samples", run, "--images", paths[0], code=2).stderr
    assert "figure samples shows no real images; leave --images out" in err


def test_traversal_joins_samples_that_show_one_digit(dummy, monkeypatch):
    view = evaluation.View(dummy("run", dim=2.0), options())
    z = view.codes(200, 0)
    view.train.labels = torch.arange(len(view.train)) % 3               # classes 0, 1, 2
    few = evaluation.scattered(10_000, 5000)

    def features(x):        # real images by their label; sample i as of class (i // 2) % 3
        place = few % 3 if len(x) == len(few) else torch.arange(len(x)) // 2 % 3
        return None, torch.nn.functional.one_hot(place, 3).float()
    monkeypatch.setattr(view.model, "features", features)
    drawn = evaluation.draw_traversal(view, None, options(n=3)).rows
    for c, row in enumerate(drawn[::2]):
        ends = view.model.generate(view.model.map(z[[2 * c, 2 * c + 1]]))
        torch.testing.assert_close(row[[0, -1]], ends)


def test_traversal_draws_both_lines(dummy, capsys):
    view = evaluation.View(dummy("run", dim=2.0), options())    # map(z) = z / 2 and G(w) = 2 w: Z's lines are W's
    picture = torch.tensor(evaluation.rows(evaluation.draw_traversal(view, None, options(n=1)).rows))[:, :, 0]
    z_row, w_row = picture[2:30], picture[32:60]
    assert torch.equal(z_row, w_row)
    first, last = z_row[:, 2:30].int(), z_row[:, 332:360].int()
    assert ((first + last) / 2 - z_row[:, 2 + 5 * 30:30 + 5 * 30]).abs().max() < 15     # near the middle of the line
    assert "along Z" in capsys.readouterr().out


def test_table_needs_mnist(dummy, script):
    assert "table alae-2 is about --data mnist" in script("eval.py", "table", "alae-2", dummy("run"), code=2).stderr


def test_table_alae_2(dummy, monkeypatch, capsys):
    """Means over trials, beside the paper's numbers."""
    runs = [dummy(f"run{i}", given=dict(split="dw" if i else "auto", resolution="auto")) for i in range(3)]
    accuracies = iter([(90, 91, 92, 93), (94, 95, 96, 97), (50, 51, 52, 53)])

    def classified(view):
        return dict(zip(evaluation.ACCURACIES, next(accuracies), strict=True))

    class Known(evaluation.View):
        def __init__(self, run, options, weights):
            super().__init__(run, options, weights)
            assert self.weights == "raw"
            self.args["label"] = "ALAE"
            self.test.split = "sw" if run == runs[2] else "dw"
    monkeypatch.setattr(evaluation, "View", Known)
    monkeypatch.setattr(evaluation, "classification", classified)
    args = evaluation.parse_args(["table", "alae-2", *map(str, runs)])
    args.device = torch.device("cpu")
    result = evaluation.table_alae_2(runs, args)
    other = change(dummy("other", split="auto"), backbone="more")
    accuracies = iter([(1, 2, 3, 4)])
    with pytest.raises(common.Error, match="differ in backbone .more, none., so they are not trials"):
        evaluation.table_alae_2([runs[0], other], args)
    for first, second in ((runs[0], other), (other, runs[0])):          # a setting that one of them lacks
        change(other, backbone="none", freeze_d=2)
        accuracies = iter([(1, 2, 3, 4)])
        with pytest.raises(common.Error, match="differ in freeze_d .(2, None|None, 2)., so"):
            evaluation.table_alae_2([first, second], args)
    shorter = dummy("shorter")
    checkpoint = torch.load(shorter / "checkpoint.pt", weights_only=True)
    torch.save({**checkpoint, "seen": 500}, shorter / "checkpoint.pt")
    accuracies = iter([(1, 2, 3, 4)])
    with pytest.raises(common.Error, match=r"differ in images shown .0.5 kimg, "):
        evaluation.table_alae_2([runs[0], shorter], args)
    with pytest.raises(common.Error, match="run0 is named twice, and is one trial"):
        evaluation.table_alae_2([runs[0], runs[1], f"{runs[0]}/"], args)
    out = capsys.readouterr().out.splitlines()
    row = next(line for line in out if line.startswith("ALAE, ours"))
    assert row.removeprefix("ALAE, ours").split() == (
        "50.00 51.00 52.00 53.00 92.00 ± 2.83 93.00 ± 2.83 94.00 ± 2.83 95.00 ± 2.83".split())
    row = next(line for line in out if line.startswith("ALAE, paper"))
    assert [float(v) for v in row.split()[2:]] == [93.79, 97.61, 93.47, 98.20, 94.59, 97.47, 94.23, 98.64]
    assert len(result["ALAE dw"]) == 2


def test_what_a_run_cannot_do_is_refused(dummy, script, tmp_path, cache):
    run = dummy("run")
    source = tmp_path / "dummy.py"
    source.write_text(source.read_text().replace("def prior", "def _prior"))
    assert "has no 'prior', which this needs" in script("eval.py", "figure", "samples", run, code=2).stderr
    out = script("eval.py", "metrics", run, "-n", 200, "--cache", cache).stdout
    assert "reconstructions change the class" in out
    assert "|E(G(w)) - w|" not in out
    assert "latent:      left out: " in out
    assert "samples 1." not in out
    assert "has no 'prior'" in script("eval.py", "metrics", run, "--only", "latent", code=2).stderr
    assert "left out: " in script("eval.py", "metrics", run, "--only", "latent", "errors", "-n", 9).stdout
    digit = fill(tmp_path / "digit", 1) / "000.png"
    for name, path, message in (("reconstructions", "no.png", "there is no no.png; check the path"),
                                ("morph", digit, "takes 4 images, one a corner, and --images names 1")):
        assert message in script("eval.py", "figure", name, run, "--images", path, code=2).stderr
    assert "say where its own images are" in script("eval.py", "metrics", run, "--data", fill(tmp_path / "set"),
                                                    code=2).stderr
    source.unlink()
    assert "there is no dummy.py here" in script("eval.py", "metrics", run, code=2).stderr


# ------------------------------------------------------------------------------------------- what stylegan runs have

@pytest.fixture(scope="module")
def style_run(tmp_path_factory):
    """A StyleALAE of 64 px after one step, on digits enlarged to that."""
    folder = tmp_path_factory.mktemp("style")
    run_here(alae.main, "--backbone", "stylegan", "--resolution", "64", "--width", "64", "--nz", "8", "--nw", "8",
             "--kimg", "0.004", "--batch", "4", "--start-resolution", "64", "--out", folder / "run")
    return folder / "run"


def test_figure_mixing(style_run, script, tmp_path):
    for flags, source in (((), "real"), (("--generated",), "generated")):
        out = script("eval.py", "figure", "mixing", style_run, "-n", 3, "--labels=off", "--out", "m.png", *flags).stdout
        assert ("3 with coarse styles (layers 0-3) of the sources, 2 with middle styles (layers 4-7) of the sources, "
                "1 with fine styles (layers 8-9) of the sources") in out
        picture = np.array(Image.open(tmp_path / "m.png"))
        assert picture.shape == (2 + 66 * 7, 2 + 66 * 4, 3)
        cell = {(r, c): picture[2 + 66 * r:66 + 66 * r, 2 + 66 * c:66 + 66 * c] for r in range(7) for c in range(4)}
        view = evaluation.View(style_run, options())
        with torch.no_grad():
            w = view.model.map(view.codes(9, 0)) if source == "generated" else view.model.encode(view.images(range(9)))
            x = view.made(w) if source == "generated" else view.images(range(9))
            assert (cell[0, 0] == 255).all()
            np.testing.assert_array_equal(cell[0, 2][:, :, 0], common.to_uint8(x[1])[0])        # a source
            np.testing.assert_array_equal(cell[4, 0][:, :, 0], common.to_uint8(x[6])[0])        # a destination
            for row, band in ((1, slice(0, 4)), (4, slice(4, 8)), (6, slice(8, None))):
                mixed = w[2 + row, None].repeat(10, 1)
                mixed[band] = w[2]                                                              # the third source
                expected = common.to_uint8(view.model.generate(mixed[None], "fixed"))[0, 0]
                assert np.abs(cell[row, 3][:, :, 0] - expected.numpy().astype(int)).max() <= 1


def test_truncation():
    w, mean_w = torch.randn(3, 5), torch.randn(5)
    out = evaluation.truncate(w, mean_w, 0.7, 2, 6)
    assert out.shape == (3, 6, 5)
    torch.testing.assert_close(out[:, 1], mean_w + 0.7 * (w - mean_w))
    torch.testing.assert_close(out[:, 2:], w[:, None].expand(-1, 4, -1))
    torch.testing.assert_close(evaluation.truncate(out, mean_w, 1.0, 2, 6), out)


def test_truncation_in_samples(style_run, script, tmp_path):
    script("eval.py", "figure", "samples", style_run, "-n", 8, "--truncation", 0.5, "--truncation-layers", 3,
           "--labels=off", "--out", "t.png")
    view = evaluation.View(style_run, options())
    with torch.no_grad():
        w = view.model.map(view.codes(8, 0))[:, None].repeat(1, 10, 1)
        w[:, :3] = view.model.mean_w + 0.5 * (w[:, :3] - view.model.mean_w)
        expected = common.grid(view.made(w), 8).astype(int)
    assert np.abs(np.array(Image.open(tmp_path / "t.png")) - expected).max() <= 1
    for flags, message in ((("--truncation-layers", "3"), "add --truncation"),
                           (("--truncation", "nan"), "--truncation"),
                           (("--generated",), "--generated is for figure mixing")):
        err = script("eval.py", "figure", "samples", style_run, *flags, code=2).stderr
        assert message in err
        assert err.count("\n") == 1


def test_stylegan_s_figures_refuse(dummy, script):
    run = dummy("run")
    assert "reads one w, with no styles to mix" in script("eval.py", "figure", "mixing", run, code=2).stderr
    err = script("eval.py", "figure", "samples", run, "--truncation", "0.7", code=2).stderr
    assert "has no 'mean_w', which this needs" in err
