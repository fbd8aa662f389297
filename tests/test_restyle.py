"""ReStyle: `invgan.py --restyle RUN`, and table invgan-3."""
import copy
import functools
import json
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    TWO,
    assert_bf16_is_near,
    assert_equal_runs,
    cells,
    changed_by,
    checkpoint_of,
    fill_zip,
    log_of,
    networks,
    options,
    rows_of,
    run_here,
    show_nothing,
    shown,
)
from torch import nn

import alae
import common
import data
import eval as evaluation
import faae
import invgan
import lia

run = functools.partial(run_here, invgan.main)
SMALL = ("--width", "32", "--nz", "6", "--batch", "16", "--kimg", "0.032")
STYLE = ("--backbone", "stylegan", "--data", "set.zip", "--resolution", "8", "--width", "64", "--nz", "6", "--nw", "6",
         "--batch", "8", "--kimg", "0.016")
SOURCES = {     # one of each method; alae's decides by itself that it is an mlp
    "alae": (alae, SMALL), "lia": (lia, (*SMALL, "--nw", "6")), "invgan": (invgan, (*SMALL, "--backbone", "dcgan")),
    "faae": (faae, (*SMALL, "--backbone", "mlp", "--objective", "aae")), "stylegan": (invgan, STYLE),
    "stylelia": (lia, (*STYLE, "--start-resolution", "8")), "ae": (faae, (*SMALL, "--objective", "ae-l1")),
    "patches": (invgan, (*SMALL, "--backbone", "biggan", "--data", "set.zip", "--resolution", "64x32",
                         "--patches", "32")),
    "conv": (faae, (*SMALL, "--backbone", "dcgan", "--data", "set.zip", "--only", "few.txt")),     # of 64 px, at 32
}
BOTH = ("--batch", "8", "--kimg", "0.032", "--snapshot-kimg", "0.016")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """source(one of SOURCES) -> a run's folder, not to be written to."""
    folder = tmp_path_factory.mktemp("sources")
    fill_zip(folder / "set.zip", 40, size=(64, 64))
    names = data.load(folder / "set.zip")[0].names()
    (folder / "few.txt").write_text("\n".join(names[:20]))

    @functools.cache
    def make(name):
        method, flags = SOURCES[name]
        flags = [folder / flag if flag in ("set.zip", "few.txt") else flag for flag in flags]
        run_here(method.main, *flags, "--out", folder / name)
        return folder / name
    return make


# ------------------------------------------------------------------------------------------------ the step, by hand

class Linear(nn.Module):
    """E: images (B, 2, 1, d) -> code, of one matrix."""

    def __init__(self, d, nw):
        super().__init__()
        self.head = nn.Linear(2 * d, nw, bias=False).double()

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("K", [None, 1.0])
def test_a_step_by_hand(steps, K):
    """E x of matrix E, G of B: codes, losses and the gradient in closed form, which stays within each step."""
    rng = np.random.default_rng(0)
    n, d, nw = 4, 5, 3
    x, y0, w0 = rng.normal(size=(n, d)), rng.normal(size=d), rng.normal(size=nw)
    B, K = rng.normal(size=(d, nw)), K and rng.normal(size=(2, d))
    net = Linear(d, nw)
    E = net.head.weight.detach().numpy().copy()
    args = Namespace(iterations=steps, pixel_weight=0.7, perceptual_weight=0.3)
    expected, slope, w, y = [], np.zeros_like(E), np.tile(w0, (n, 1)), np.tile(y0, (n, 1))
    for _ in range(steps):
        seen = np.concatenate([x, y], 1)
        w = w + seen @ E.T                                          # w_t+1 = w_t + E(x, y_t)
        y = w @ B.T
        off = y - x
        loss, to_y = 0.7 * (off**2).mean(), 0.7 * 2 * off / off.size
        if K is not None:                                           # features K y, of one depth, summed, then a mean
            loss += 0.3 * ((off @ K.T)**2).sum(1).mean()
            to_y = to_y + 0.3 * 2 * off @ K.T @ K / n
        expected.append(loss)
        slope += (to_y @ B).T @ seen                                # w_t and y_t are given
    opt = Namespace(E=torch.optim.SGD(net.parameters(), lr=0.1))
    t = {name: torch.from_numpy(v) for name, v in dict(x=x, y0=y0, w0=w0, B=B).items()}
    eps = None if K is None else lambda v: [v.flatten(1).double() @ torch.from_numpy(K).T]
    losses = invgan.restyle_step((net, lambda w: (w @ t["B"].T).view(-1, 1, 1, d)), opt, t["x"].view(n, 1, 1, d),
                                 (t["w0"], t["y0"].view(1, 1, d)), args, eps)
    assert [v.item() for v in losses] == pytest.approx(expected, rel=1e-5)             # taken in fp32
    np.testing.assert_allclose(net.head.weight.detach(), E - 0.1 * slope, rtol=1e-4, atol=1e-5)


def test_the_distance_of_features():
    rng = np.random.default_rng(1)
    a, b = ([rng.normal(size=(3, c, s, s)).astype("f4") for c, s in ((4, 6), (7, 2))] for _ in range(2))
    per_depth = []
    for f, g in zip(a, b, strict=True):
        size = len(f[0, 0])
        pixels = [(f[i, :, r, c], g[i, :, r, c]) for i in range(3) for r in range(size) for c in range(size)]
        per_depth.append(np.mean([((u / np.linalg.norm(u) - v / np.linalg.norm(v))**2).sum() for u, v in pixels]))
    f, g = (invgan.unit_features(lambda x: [torch.from_numpy(v) for v in x], made) for made in (a, b))
    assert invgan.feature_distance(f, g).item() == pytest.approx(np.mean(per_depth), rel=1e-5)
    assert invgan.feature_distance(f, f).item() == 0
    zero = torch.zeros(1, 3, 2, 2, requires_grad=True)              # a ReLU may leave nothing
    invgan.feature_distance(invgan.unit_features(lambda x: [x], zero), [torch.ones(1, 3, 2, 2)]).backward()
    assert zero.grad.isfinite().all()


def made(source, name, **more):
    """A ReStyle model of random weights over a source's G."""
    stored = common.read_args(source(name))
    G = invgan.method_of(source(name), stored).load(source(name))
    torch.manual_seed(1)
    model = invgan.ReStyle(G, stored["backbone"], 64, **more).requires_grad_(False).eval()
    nn.init.normal_(model.E.head.weight)
    model.find_mean(torch.Generator().manual_seed(0))
    model.E.requires_grad_(True).train()
    return model


@pytest.mark.parametrize("name", ["alae", "invgan", "faae", "stylegan", "patches"])
def test_what_a_step_moves(name, source):
    model = made(source, name)
    opt = Namespace(E=common.adam(model.E, 0.01, (0.9, 0.99)))
    x = torch.rand(4, *model.image_shape) * 2 - 1
    args = Namespace(iterations=2, pixel_weight=1.0)
    start = model.mean_w, model.mean_x
    names = changed_by(model, invgan.restyle_step, (model.E, model.generate), opt, x, start, args)
    assert networks(names) == {"E"}
    assert all(p.grad is None for p in model.G.parameters())
    if name != "stylegan":                              # which has layers of levels that are not on top
        assert names == {f"E.{k}" for k, _ in model.E.named_parameters()}


def test_bf16_steps_are_near_fp32_ones(source):
    model = made(source, "invgan")
    nn.init.normal_(model.E.head.weight, std=0.1)
    x = torch.rand(8, *model.image_shape) * 2 - 1
    assert_bf16_is_near(model, ("E",), lambda model, opt, amp: invgan.restyle_step(
        (model.E, model.generate), opt, x, (model.mean_w, model.mean_x), Namespace(iterations=3, pixel_weight=1.0),
        amp=amp))


# ---------------------------------------------------------------------------------------------------------- the model

@pytest.mark.parametrize(("name", "codes"), [("alae", "w"), ("invgan", "w"), ("faae", "w"), ("stylegan", "w"),
                                             ("stylegan", "w+")])
def test_codes_after_each_number_of_steps(name, codes, source):
    model = made(source, name, codes=codes).eval()
    x, layers = torch.rand(3, *model.image_shape) * 2 - 1, 4 if name == "stylegan" else 1
    z = torch.randn(2, model.nz)
    assert (model.nw, model.num_layers) == ((24, 1) if codes == "w+" else (model.G.nw, layers))

    def picture(w):
        return model.G.generate(w.view(-1, 4, 6) if codes == "w+" else w, noise="fixed")
    prior = model.G.prior(10_000, torch.Generator().manual_seed(0))
    w = model.G.map(prior).mean(0).repeat(4 if codes == "w+" else 1)
    torch.testing.assert_close(model.mean_w, w, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.mean_x, picture(model.mean_w[None])[0])
    w = model.mean_w.repeat(3, 1)
    for steps in range(1, 6):
        both = torch.cat([x, picture(w)], 1)
        w = w + model.E(both)
        model.iterations = steps
        code, long = model.features(x)
        torch.testing.assert_close(code, w, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(long, model.E.trunk(both), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model.encode(x), code)
    torch.testing.assert_close(model.generate(model.map(z)), model.G.generate(model.G.map(z)))
    assert model.map(z).shape == (2, model.nw)
    with pytest.raises(ValueError, match="images are a float tensor"):
        model.encode(torch.zeros(8, 2, 16, 16))
    if codes == "w+":                                   # a row a layer, the first row the first layer's
        rows = torch.randn(2, 4, 6)
        torch.testing.assert_close(model.generate(rows.flatten(1)), model.G.generate(rows))
        torch.testing.assert_close(model.generate(rows), model.G.generate(rows))


def test_codes_of_one_w_keep_an_exact_inverse(source):
    model = made(source, "lia")
    z = torch.randn(3, 6)
    torch.testing.assert_close(model.unmap(model.map(z)), z, rtol=1e-4, atol=1e-5)
    model = made(source, "stylelia", codes="w")
    torch.testing.assert_close(model.unmap(model.map(z)), z, rtol=1e-4, atol=1e-5)
    assert not hasattr(made(source, "stylelia", codes="w+"), "unmap")


# --------------------------------------------------------------------------------------------------------- the script

def test_patches_are_cut_from_images_of_another_size(source, here):
    run("--restyle", source("patches"), *BOTH, "--resolution", "32", "--out", "run")
    assert common.read_args("run")["resolution"] == "32"


@pytest.mark.parametrize("name", ["alae", "lia", "invgan", "faae", "stylegan", "patches", "conv"])
def test_a_run_leaves_g_as_it_was_to_the_bit(name, source, here):
    before = checkpoint_of(source(name))["state"]["ema"]
    run("--restyle", source(name), *BOTH, "--out", "run")
    checkpoint, stored = checkpoint_of(here / "run"), common.read_args(source(name))
    for which in ("model", "ema"):
        after = checkpoint["state"][which]
        assert {k.removeprefix("G.") for k in after if k.startswith("G.")} == before.keys()
        assert all(torch.equal(after[f"G.{k}"], v) for k, v in before.items())
    model, trained = invgan.load("run"), invgan.load("run", weights="raw")
    assert not any(torch.equal(v, trained.E.state_dict()[k]) for k, v in model.E.state_dict().items() if "head" in k)
    args = common.read_args("run")
    assert [args[k] for k in ("nz", "nw", "backbone", "resolution", "train_images", "only", "patches")] == [
        stored.get(k, 0) for k in ("nz", "nw", "backbone", "resolution", "train_images", "only", "patches")]
    assert args["label"] == f"ReStyle over {stored['label']}"
    assert getattr(model, "rows", 1) == (4 if name == "stylegan" else 1)               # w+ where there are styles
    x = torch.rand(3, *model.image_shape)
    source_model = invgan.method_of(source(name), stored).load(source(name))
    assert torch.equal(model.G.generate(model.G.map(torch.ones(2, model.nz))),
                       source_model.generate(source_model.map(torch.ones(2, model.nz))))
    assert model.encode(x).shape == (3, model.nw)
    rows = rows_of("run/log.csv")
    assert {"L_1", "L_5", "mse"} < rows[0].keys()
    assert len(list(Path("run/reconstructions").iterdir())) == len(rows) == 3
    assert torch.load("run/checkpoint.pt", weights_only=True)["args"]["generator"] == stored


def test_the_source_is_not_needed_afterwards(source, here, monkeypatch):
    run("--restyle", source("invgan"), *BOTH, "--out", "run", until=16)
    monkeypatch.setattr(common, "read_args", lambda run, *given, read=common.read_args: read(
        "nowhere" if Path(run) == source("invgan") else run, *given))
    run("--resume", "run")
    view = evaluation.View("run", options(n=20))
    assert evaluation.measure_errors(view, options(n=20)).numbers["n"] == 20


@pytest.mark.parametrize("name", ["invgan", "stylegan", "patches"])
def test_resume_to_the_bit(name, source, here):
    run("--restyle", source(name), *BOTH, "--out", "whole")
    run("--restyle", source(name), *BOTH, "--out", "parts", until=20)
    assert checkpoint_of(here / "parts")["seen"] == 24
    run("--resume", "parts")
    assert_equal_runs(here / "whole", here / "parts")


def test_two_processes_are_one(source, here, script):
    flags = ("--restyle", source("alae"), *BOTH, "--snapshot-kimg", 1)
    run(*flags, "--out", "one")
    script("invgan.py", *flags, "--out", "two", launcher=TWO)
    one, two = (checkpoint_of(here / name)["state"] for name in ("one", "two"))
    torch.manual_seed(0)
    start = invgan.ReStyle(alae.load(source("alae")), **invgan.restyle_args(common.read_args("one"))).state_dict()
    for k, v in one["model"].items():                   # equal but for the order of sums
        if k.startswith("E."):
            moved = (v - start[k]).abs().mean()
            assert moved > 1e-4, k
            assert (v - two["model"][k]).abs().mean() < 0.01 * moved, k
        else:
            assert torch.equal(v, two["model"][k]), k


def test_a_row_of_the_log_is_the_mean_of_its_steps(source, here, monkeypatch):
    losses, step = [], invgan.restyle_step
    monkeypatch.setattr(invgan, "restyle_step", lambda *given: losses.append(step(*given)) or losses[-1])
    run("--restyle", source("alae"), *BOTH, "--iterations", 3, "--out", "run")
    assert len(losses) == 4
    means = np.mean([[v.item() for v in steps] for steps in losses[2:]], 0)
    assert [float(log_of(Path("run"))[-1][f"L_{t}"]) for t in (1, 2, 3)] == pytest.approx(means.tolist(), rel=1e-5)
    assert invgan.load("run").iterations == 3


def test_the_first_codes_are_the_mean(source, here, monkeypatch):
    """Until E moves, and its picture is compared with x: the first loss of all steps is the same."""
    losses, step = [], invgan.restyle_step
    monkeypatch.setattr(invgan, "restyle_step", lambda *given: losses.append((given, step(*given))) or losses[-1][1])
    run("--restyle", source("invgan"), *BOTH, "--kimg", "0.008", "--out", "run")
    (_, _, x, (_, y), _, eps, _), first = losses[0]
    assert [v.item() for v in first] == pytest.approx([(y - x).square().mean().item()] * 5, rel=1e-5)
    assert eps is None


def test_vgg(source, here, monkeypatch):
    """Its features are compared in each step, by the weight of the flag, and held."""
    pooled = nn.AvgPool2d(4)
    monkeypatch.setattr(common, "frozen", lambda name, file, *_: pooled if file.endswith("/vgg.pth") else None)
    monkeypatch.setattr(pooled, "forward", lambda x: [nn.functional.avg_pool2d(x, 4).flatten(2).mT[:, :, :, None]])
    losses, step = [], invgan.restyle_step
    monkeypatch.setattr(invgan, "restyle_step", lambda *given: losses.append((given, step(*given))) or losses[-1][1])
    show_nothing(monkeypatch)
    run("--restyle", source("invgan"), *BOTH, "--vgg", "vgg.pth", "--pixel-weight", 0, "--perceptual-weight", 2.5,
        "--kimg", "0.008", "--out", "run")
    (_, _, x, (_, y), *_), first = losses[0]
    a, b = (nn.functional.avg_pool2d(v, 4).flatten(2)[:, 0] for v in (x, y.expand_as(x)))           # (B, 64)
    cosine = (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    assert first[0].item() == pytest.approx(2.5 * (2 - 2 * cosine).mean().item(), rel=1e-4)     # of one pixel an image
    assert invgan.parse_args(["--restyle", str(source("invgan")), "--vgg", "x"]).perceptual_weight == 0.8


BAD = {
    "no run": (lambda source: ("nowhere",), "nowhere holds no run"),
    "no prior": (lambda source: (source("ae"),), r"ae \(AE l1\) has no prior, whose mean code would be the first; nam"),
    "a run of restyle": (lambda source: ("second",), "second is a run of --restyle itself; name its generator's, fir"),
    "another method's": (lambda source: ("strange",), "names the method 'strange'; there is no strange.py here"),
    "no checkpoint": (lambda source: ("empty",), "empty has no checkpoint.pt; train it first"),
    "nw": (lambda source: (source("alae"), "--nw", 5), "has --nw 50, not 5; leave the flag out"),
    "backbone": (lambda source: (source("alae"), "--backbone", "dcgan"), "has --backbone mlp, not dcgan"),
    "resolution": (lambda source: (source("invgan"), "--resolution", 64), "has --resolution 32, not 64"),
    "patches": (lambda source: (source("patches"), "--patches", 16), "has --patches 32, not 16"),
    "colours": (lambda source: (source("invgan"), "--data", "rgb.zip"),
                "makes images of 1x32x32, and these are 3x32x32; name others by --data"),
    "not grown": (lambda source: (source("stylegan"),), "has grown to 4 px only"),
    "InvGAN's": (lambda source: (source("invgan"), "--gamma", 1), "--gamma is of no use with --restyle; leave one"),
    "variant": (lambda source: (source("invgan"), "--fm", "paired"), "--fm is of no use with --restyle; leave one"),
    "frozen blocks": (lambda source: (source("invgan"), "--freeze-d", 1), "--freeze-d is of no use with --restyle"),
    "no loss": (lambda source: (source("invgan"), "--pixel-weight", 0), "--pixel-weight 0 leaves --restyle no loss"),
    "codes": (lambda source: (source("invgan"), "--codes", "w+"), "--codes is for --backbone stylegan; leave it out"),
    "features": (lambda source: (source("invgan"), "--perceptual-weight", 1), "-weight is for --vgg; leave it out"),
    "init": (lambda source: (source("invgan"), "--init", source("invgan")), "--init does not go with --restyle"),
    "iterations": (lambda source: (source("invgan"), "--iterations", 0), "--iterations: invalid positive int"),
    "no such file": (lambda source: (source("invgan"), "--vgg", "no.pth"), "/no.pth; --vgg takes the file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_runs_are_one_line(name, source, here, capsys, monkeypatch):
    runs = dict(second=dict(method="invgan", generator={}, restyle="first"), empty=dict(method="alae"),
                strange=dict(method="strange"))
    for folder, args in runs.items():
        Path(folder).mkdir()
        Path(folder, "args.json").write_text(json.dumps({**args, "backbone": "mlp", "image_shape": [1, 28, 28]}))
    fill_zip(here / "rgb.zip", 40, mode="RGB", size=(32, 32))
    flags, message = BAD[name]
    flags = flags(source)
    if name == "not grown":
        def shrunk(run, device="cpu", weights="ema", load=invgan.load):
            model = load(run, device, weights)
            common.grow(0, 1.0, model)
            return model
        monkeypatch.setattr(invgan, "load", shrunk)
    with pytest.raises((common.Error, data.DataError, SystemExit)) as error:
        run("--restyle", *flags, *BOTH, "--out", "run")
    text = capsys.readouterr().err.strip() if error.type is SystemExit else str(error.value)
    assert re.search(message, text), text
    assert "\n" not in text
    assert not Path("run").exists()


def test_flags_of_restyle_alone(capsys):
    with pytest.raises(common.Error, match="--iterations is for --restyle; leave it out, or pass that"):
        invgan.parse_args(["--iterations", "3"])
    args = vars(invgan.parse_args([]))
    assert not {"restyle", "iterations", "codes", "vgg", "pixel_weight", "generator"} & args.keys()


def test_other_images_of_the_same_shape(source, here):
    """Are taken if they are named; if the run's own have changed, it is said."""
    fill_zip(here / "grey.zip", 40, size=(32, 32))
    run("--restyle", source("invgan"), "--data", "grey.zip", *BOTH, "--kimg", "0.008", "--out", "run")
    assert common.read_args("run")["data_name"] == "grey"
    stored = common.read_args(source("invgan"))
    images = data.load("mnist-mini", resolution="32")[0]
    G = Namespace(prior=1, map=1, image_shape=(1, 32, 32), modules=list)
    invgan.check_generator("run", stored, G, images, images)
    images.ids = images.ids[:-1]
    images.pixels = images.pixels[:-1]
    with pytest.raises(common.Error, match="was trained on 10,000 images 1x32x32, and mnist-mini has 9,999"):
        invgan.check_generator("run", stored, G, images, images)


# ------------------------------------------------------------------------------------------------------- the evaluation

def test_table_invgan_3(source, here, cache, capsys):
    run("--restyle", source("alae"), *BOTH, "--iterations", 3, "--out", "run")
    args = evaluation.parse_args(["table", "invgan-3", "run", "-n", "40", "--reference", "test", "--cache", str(cache)])
    args.device = torch.device("cpu")
    out = evaluation.table_invgan_3(args.runs, args)["run"]
    lines = capsys.readouterr().out.splitlines()
    paper = next(line for line in lines if line.startswith("ReStyle, FFHQ, 3 steps, paper"))
    assert paper.split()[5:7] == ["40.33/4.71", "51.68/20.80"]
    model = invgan.load("run")
    train, test = data.load("mnist-mini")
    extractor = evaluation.extractor_of(evaluation.View("run", args), args)
    moments = evaluation.Moments(extractor.d, args.device)
    moments.add(extractor.features(common.to_float(test.pixels)))
    real = moments.gaussian()

    def distance(x):
        moments = evaluation.Moments(extractor.d, args.device)
        moments.add(extractor.features(x.clamp(-1, 1)))
        return evaluation.frechet(moments.gaussian(), real)
    view = evaluation.View("run", args)
    samples = model.generate(model.map(view.codes(40, 0)))
    x, x_train = (common.to_float(part.take(range(40))) for part in (test, train))
    for steps in (1, 2, 3):
        model.iterations = steps
        row = out["steps"][steps - 1]
        y, again, of_train = (common.reconstruct(model, v) for v in (x, samples.clamp(-1, 1), x_train))
        assert row["MAE"] == pytest.approx((y - x).abs().mean().item(), rel=1e-4)
        assert row["MSE"] == pytest.approx((y - x).square().mean().item(), rel=1e-4)
        for head, made in dict(Rand=samples, RandRec=again, TrRec=of_train, TsRec=y).items():
            assert row[f"{head}, Frechet (digits)"][1] == pytest.approx(distance(made), rel=1e-3), (steps, head)
        line = next(line for line in lines if line.startswith(f"ReStyle over ALAE, {steps} step"))
        assert f"{row['MAE']:.4f}" in line.split()
    mean = common.to_float(train.pixels).mean(0)
    assert out["floors"]["mean image"]["MSE"] == pytest.approx((mean - x).square().mean().item(), rel=1e-4)
    wrong = (y - x.roll(-1, 0)).square().mean().item()
    assert out["floors"]["wrong pairs"]["MSE"] == pytest.approx(wrong, rel=1e-4)
    args.runs = [str(source("alae"))]
    with pytest.raises(common.Error, match=r"is no run of ReStyle; table invgan-3 takes runs of `python invgan.py --r"):
        evaluation.table_invgan_3(args.runs, args)


def test_eval_takes_its_runs(source, here, monkeypatch):
    monkeypatch.setattr(common, "join", lambda device: (torch.device("cpu"), 0, 1))

    def call(*words):
        evaluation.main([*map(str, words)])
    run("--restyle", source("stylegan"), *BOTH, "--out", "run")
    call("metrics", "run", "--only", "errors", "latent", "sharpness", "-n", 4, "--json", "m.json")
    numbers = json.loads(Path("m.json").read_text())["run"]
    assert {*numbers} == {"errors", "latent", "sharpness"}
    call("figure", "reconstructions", "run", "-n", 2, "--out", "r.png")
    call("figure", "interpolation", "run", "-n", 2, "--out", "i.png")
    call("compare", "run", source("stylegan"), "-n", 2, "--out", "c.png")
    call("encode", "run", source("stylegan").parent / "set.zip", "--out", "codes.npz")
    call("decode", "run", "codes.npz", "--out", "pictures")
    assert np.load("codes.npz")["w"].shape == (40, 24)
    run("--restyle", source("invgan"), *BOTH, "--kimg", "0.008", "--out", "one-w")
    for folder, size in (("run", 8), ("one-w", 32)):            # truncated to nothing, all samples are the mean code's
        call("figure", "samples", folder, "-n", 2, "--truncation", 1e-9, "--labels", "off",
             "--out", "s.png")
        a, b = cells("s.png", 1, 2, size)[0]
        np.testing.assert_allclose(a, b, atol=1)
        np.testing.assert_allclose(a, shown(invgan.load(folder).mean_x), atol=1)
    assert len(list(Path("pictures").glob("*.png"))) == 40


def test_a_deep_copy_keeps_one_g(source):
    model = made(source, "lia")
    other = copy.deepcopy(model, {id(m): m for m in model.G.modules()})
    assert other.G is model.G
    assert other.E is not model.E
    assert other.unmap.__self__ is model.unmap.__self__
