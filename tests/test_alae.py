"""ALAE: Algorithm 1 worked out by hand, eq. 9, its networks, settings and loop."""
import math
import os
import signal
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    TWO,
    assert_equal_runs,
    assert_two_are_one,
    change,
    checkpoint_of,
    draws,
    fill_zip,
    in_double,
    log_of,
    run_here,
    start,
    tiny,
    wait_for,
    write_streaming_script,
)
from PIL import Image
from torch import nn

import alae
import common
import data

# --------------------------------------------------------------------------------------- Algorithm 1, line by line


class Linear(nn.Module):
    """F, G, E, D of one matrix each, so that Algorithm 1 can be worked out by hand."""

    def __init__(self, nz=3, nw=4, nx=5):
        super().__init__()
        def layer(i, o):
            return nn.Linear(i, o, bias=False).double()
        self.F, self.G, self.E, self.D = layer(nz, nw), layer(nw, nx), layer(nx, nw), layer(nw, 1)


def by_hand(A, B, C, d, x, zs, gamma, lr, latent, moves_F):
    """One iteration in numpy: F = A, G = B, E = C, D = d.  -> losses and the new matrices."""
    def sigmoid(t):
        return 1 / (1 + np.exp(-t))

    def softplus(t):
        return np.log1p(np.exp(t))
    state = {}

    def adam(name, p, g):       # beta_1 = 0, beta_2 = 0.99: m = g, v corrected for its bias
        t, v = state.get(name, (0, 0))
        t, v = t + 1, 0.99 * v + 0.01 * g**2
        state[name] = t, v
        return p - lr * g / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)

    n = len(x)
    # Step I.  s_f = d C B A z, s_r = d C x, R1 = gamma/2 |C^T d|^2
    fake = zs[0] @ A.T @ B.T
    s_f, s_r = fake @ C.T @ d, x @ C.T @ d
    L_ED, R1 = softplus(s_f).mean() + softplus(-s_r).mean(), gamma / 2 * ((C.T @ d)**2).sum()
    pull = (sigmoid(s_f) @ fake - sigmoid(-s_r) @ x) / n + gamma * C.T @ d      # dL / d(C^T d)
    C, d = adam("C", C, np.outer(d, pull)), adam("d", d, C @ pull)
    # Step II.  -s_f, through E and D as they are now
    s_f = zs[1] @ A.T @ B.T @ C.T @ d
    L_FG, g = softplus(-s_f).mean(), -sigmoid(-s_f) / n
    A, B = adam("A", A, np.outer(B.T @ C.T @ d, g @ zs[1])), adam("B", B, np.outer(C.T @ d, g @ (zs[1] @ A.T)))
    # Step III.  e = w - C B w
    w = zs[2] @ A.T
    e = w - w @ B.T @ C.T
    scale = 1 / (n * (w.shape[1] if latent == "mean" else 1))
    L_EG = (e**2).sum() * scale
    gA = -2 * scale * (e @ C @ B).T @ zs[2]
    gB, gC = -2 * scale * (e @ C).T @ w, -2 * scale * e.T @ (w @ B.T)
    B, C = adam("B", B, gB), adam("C", C, gC)
    if moves_F:
        A = adam("A", A, gA)
    return (L_ED, R1, L_FG, L_EG), (A, B, C, d)


@pytest.mark.parametrize("flags", [
    [], ["--latent-loss", "sum", "--gamma", "3"], ["--step3", "EGF"], ["--recipe", "official"]])
def test_algorithm_1_by_hand(flags, monkeypatch):
    args = alae.parse_args(["--nw", "4", *flags])
    torch.manual_seed(1)
    model, x = Linear(), torch.randn(6, 5, dtype=torch.float64)
    zs = [torch.randn(6, 3, dtype=torch.float64) for _ in range(3)]
    nets = (model.F, model.G, model.E, model.D)
    A, B, C, d = (net.weight.detach().numpy().copy() for net in nets)
    codes = iter(zs)        # three draws, one a step: a fourth raises
    at = []
    monkeypatch.setattr(alae, "r1", lambda scores, x: at.append(x) or common.r1(scores, x))
    opt = Namespace(**{name: common.adam(net, 0.01, alae.BETAS) for name, net in zip("FGED", nets, strict=True)})
    losses = alae.train_step(nets, opt, x.clone(), draws(lambda n: next(codes)), args)
    assert next(codes, None) is None
    assert len(at) == 1
    assert torch.equal(at[0], x)        # R1 is at the real images, which its value does not tell here
    expected, after = by_hand(A, B, C, d[0], x.numpy(), [z.numpy() for z in zs], args.gamma, 0.01, args.latent_loss,
                              args.step3 == "EGF")
    assert [float(v.detach()) for v in losses] == pytest.approx(expected, rel=1e-5)       # losses are taken in fp32
    for net, value in zip(nets, after, strict=True):
        np.testing.assert_allclose(net.weight.detach().numpy().reshape(value.shape), value, rtol=0, atol=2e-6)


@pytest.mark.parametrize("backbone", ["mlp", "dcgan"])
@pytest.mark.parametrize(("step3", "third"), [("EG", "GE"), ("EGF", "FGE")])
def test_each_step_moves_what_it_names(backbone, step3, third, monkeypatch):
    args, model, opt = tiny(alae, "--backbone", backbone)
    args.step3 = step3
    moved = []

    def spy(loss, *opts):
        before = [p.detach().clone() for p in model.parameters()]
        common.update(loss, *opts)
        names = [name for name, _ in model.named_parameters()]
        changed = {n for n, p, old in zip(names, model.parameters(), before, strict=True) if not torch.equal(p, old)}
        whole = {net for net in "FGED" if {n for n in names if n.startswith(net + ".")} <= changed}
        assert whole == {n[0] for n in changed}         # all of a network or nothing
        moved.append("".join(net for net in "FGED" if net in whole))
    monkeypatch.setattr(alae, "update", spy)
    nets, x = (model.F, model.G, model.E, model.D), torch.rand(4, *args.image_shape)
    alae.train_step(nets, opt, x, draws(lambda n: torch.randn(n, 8)), args)
    assert moved == ["ED", "FG", third]


def test_latent_discriminator():
    w = torch.randn(50, 6)
    for act, affine in (("none", True), ("lrelu", False)):
        D = alae.LatentDiscriminator(6, act)
        assert [tuple(p.shape) for p in D.parameters() if p.ndim == 2] == [(6, 6), (6, 6), (1, 6)]
        gap = D((w[:25] + w[25:]) / 2) - (D(w[:25]) + D(w[25:])) / 2
        assert (gap.abs().max() < 1e-6) == affine
        h = w
        for layer in (D.layer1, D.layer2, D.layer3):
            last = layer is D.layer3
            nn.init.normal_(layer.bias)
            gain = 1 if affine or last else 2
            h = h @ layer.weight.T * (0.1 * math.sqrt(gain / 6)) + 0.1 * layer.bias
            h = h if affine or last else torch.where(h > 0, h, 0.2 * h)
        torch.testing.assert_close(D(w), h)


def test_layers_that_f_d_and_e_share_with_the_released_code():
    """F and D learn at a tenth of the rate, weights N(0, 10^2) and biases times 0.1; E ends in a leaky ReLU, as F."""
    for backbone in ("mlp", "dcgan"):
        args, model, _ = tiny(alae, "--backbone", backbone, "--nz", "64", "--nw", "64")
        x = torch.rand(3, *args.image_shape) * 2 - 1
        for layer in [*model.F.layers, model.D.layer1, model.D.layer2]:
            assert layer.weight.std().item() == pytest.approx(10, rel=0.05)
            nn.init.normal_(layer.bias)
            torch.testing.assert_close(layer(torch.zeros(1, 64))[0], layer.bias / 10)
        nn.init.normal_(model.E.net.head.bias)
        short, long = model.features(x)
        last = long @ model.E.net.head.weight.T / math.sqrt(long.shape[1]) + model.E.net.head.bias
        torch.testing.assert_close(short, torch.where(last > 0, last, 0.2 * last))
        assert (last < 0).any()
    assert len(tiny(alae)[1].F.layers) == len(tiny(alae, "--backbone", "dcgan")[1].F.layers) == 6


def test_gamma_of_each_backbone():
    gammas = [alae.parse_args(["--backbone", backbone]).gamma for backbone in ("mlp", "dcgan", "stylegan")]
    assert gammas == [1, 1, 10]
    assert alae.parse_args(["--recipe", "official"]).gamma == 10


def test_encode_says_what_it_takes():
    model = tiny(alae)[1].eval()
    picture = Image.new("L", (28, 28))
    for encode in (model.encode, model.features):
        for wrong in (picture, torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(2, 1, 32, 32),
                      torch.zeros(1, 28, 28)):
            with pytest.raises(ValueError, match=r"images are a float tensor \(N, 1, 28, 28\) in [^\n]*, not [^\n]*$"):
                encode(wrong)


def test_mixing_is_a_share_of_images_on_stylegan(capsys):
    style = ("--backbone", "stylegan")
    assert [alae.parse_args([*style, *m]).mixing for m in ((), ("--mixing", "0"), ("--mixing", "1"))] == [0.9, 0, 1]
    with pytest.raises(common.Error, match="--mixing is for --backbone stylegan"):
        alae.parse_args(["--mixing", "0.5"])
    for wrong in ("1.1", "-0.1", "nan"):
        with pytest.raises(SystemExit):
            alae.parse_args([*style, "--mixing", wrong])
        assert capsys.readouterr().err.startswith("error: argument --mixing: invalid fraction value")


def test_the_models_interface():
    model = tiny(alae)[1].eval()
    x = torch.rand(3, 1, 28, 28) * 2 - 1
    z = model.prior(4, torch.Generator().manual_seed(0))
    assert z.shape == (4, 8)
    w = model.map(z).detach().requires_grad_()
    model.generate(w).sum().backward()
    assert w.grad.abs().sum() > 0
    short, long = model.features(x)
    assert torch.equal(short, model.encode(x))
    assert long.shape == (3, 64)
    black, white = model.see(torch.tensor(-1.0)), model.see(torch.tensor(1.0))
    assert (black, white) == (0, 1)                     # the MLP works on pixels in [0, 1]
    assert model.show(black) == -1
    assert not tiny(alae, "--backbone", "dcgan")[1].unit_range


def test_sizes_of_the_papers_mlp():
    args = alae.parse_args(["--data", "mnist"])
    assert (args.backbone, args.nz, args.nw, args.batch, args.lr) == ("mlp", 50, 50, 128, 0.002)
    assert alae.BETAS == (0.0, 0.99)
    model = alae.ALAE("mlp", (1, 28, 28), args.nz, args.nw, args.width, args.d_act)
    short, long = model.features(torch.zeros(1, 1, 28, 28))
    assert (short.shape[1], long.shape[1]) == (50, 1024)


@pytest.mark.parametrize(("flags", "end"), [((), "sigmoid"), (("--g-end", "linear"), "linear"),
                                             (("--recipe", "official"), "linear")])
def test_the_end_of_the_mlp_generator(flags, end):
    args = alae.parse_args(["--nz", "8", "--nw", "8", "--width", "16", *flags])
    args.image_shape = (1, 28, 28)
    model = alae.ALAE(**alae.network_args(vars(args)))
    w = 20 * torch.randn(4, 8)
    t = {}
    model.G.layer3.register_forward_hook(lambda layer, inputs, out: t.update(t=out.view(4, 1, 28, 28)))
    x = model.generate(w)
    expected = 2 * t["t"] - 1                           # pixels in [0, 1] -> [-1, 1]
    torch.testing.assert_close(x, expected.tanh() if end == "sigmoid" else expected)
    assert (x.abs().max() > 1) == (end == "linear")


def test_an_old_run_keeps_its_linear_generator(here):
    run_here(alae.main, "--g-end", "linear", "--width", "64", "--batch", "16", "--kimg", "0.016", "--out", "old")
    change(here / "old", without=["g_end"])             # a run from before the flag
    assert alae.load("old").G.last is None
    assert alae.parse_args(["--resume", "old"]).g_end == "linear"


def train(steps, precision="fp32", fast=None):
    """-> model, losses (steps, 4), after so many steps of a narrow MLP on the bundled digits, batch 64."""
    args, model, opt = tiny(alae, "--nz", "16", "--nw", "16", "--width", "4", lr=0.002)
    images, rng, cpu = data.load("mnist-mini")[0], torch.Generator().manual_seed(0), torch.device("cpu")
    nets = [fast(net) if fast else net for net in (model.F, model.G, model.E, model.D)]
    losses = []
    for _, x in zip(range(steps), data.batches(images, 64, 0, 0, cpu), strict=False):
        losses.append(torch.stack([v.detach() for v in alae.train_step(
            nets, opt, model.see(common.to_float(x)), draws(lambda n: model.prior(n, rng)), args,
            common.autocast(precision, cpu))]))
    return model, losses and torch.stack(losses)


@torch.no_grad()
def distance_to_mean_digit(model):
    real = common.to_float(data.load("mnist-mini")[1].pixels).mean(0)
    made = model.generate(model.map(model.prior(500, torch.Generator().manual_seed(1)))).mean(0)
    return (made - real).square().mean().item()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_precisions_learn(precision):
    model, losses = train(300, precision)
    assert losses.isfinite().all()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[-50:, 0].mean() < 2 * math.log(2)                     # E and D tell real from fake better than chance
    assert losses[-50:, 3].mean() < 0.5 * losses[:50, 3].mean()         # E inverts G better and better
    assert distance_to_mean_digit(train(0)[0]) > 0.5                    # F and G come close to the data
    assert distance_to_mean_digit(model) < 0.1


def test_compiled_passes_agree_with_plain_ones():
    def fast(net):
        return torch.compile(net, backend="aot_eager")      # all of the compiler but its code generator
    torch.testing.assert_close(train(3)[1], train(3, fast=fast)[1], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ the script, as typed

SMALL = ("--width", "16", "--batch", "32", "--snapshot-kimg", "1")
def test_script_and_resume_to_the_bit(script, tmp_path):
    script("alae.py", *SMALL, "--kimg", 4, "--out", "whole", env=dict(CURVES="1"))
    whole = tmp_path / "whole"
    rows = log_of(whole)
    assert [float(r["kimg"]) for r in rows] == pytest.approx([0, 1.024, 2.016, 3.008, 4.0])
    assert all(math.isfinite(float(v)) for row in rows[1:] for v in row.values())
    for name in ("samples/000000.png", "samples/000004.png", "reconstructions/000004.png", "curves.png", "args.json"):
        assert (whole / name).stat().st_size > 500, name

    script("alae.py", *SMALL, "--kimg", 2, "--out", "parts")
    script("alae.py", "--resume", "parts", "--kimg", 4)
    assert_equal_runs(whole, tmp_path / "parts")


def test_dcgan_resumes_to_the_bit(here):
    flags = (*SMALL, "--backbone", "dcgan", "--snapshot-kimg", "0.4")
    run_here(alae.main, *flags, "--kimg", 1, "--out", "whole")
    run_here(alae.main, *flags, "--kimg", 1, "--out", "parts", until=500)
    run_here(alae.main, "--resume", "parts")
    assert_equal_runs(here / "whole", here / "parts")


def test_stopped_at_any_moment(script, tmp_path):
    script("alae.py", *SMALL, "--kimg", 8, "--out", "whole")
    for number in (signal.SIGKILL, signal.SIGINT):
        parts = f"parts-{number:d}"
        process = start(tmp_path, *SMALL, "--kimg", 8, "--out", parts)
        wait_for(tmp_path / parts / "log.csv", process, 3)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert f"go on with --resume {parts}" in out
            assert "Traceback" not in err
        with open(tmp_path / parts / "log.csv", "a") as f:
            f.write("7.5,torn")                         # as a kill in the middle of a write leaves it
        script("alae.py", "--resume", parts)
        assert_equal_runs(tmp_path / "whole", tmp_path / parts)


def test_killed_before_the_first_checkpoint(script, tmp_path):
    script("alae.py", *SMALL, "--kimg", 1, "--out", "run")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    assert "has log.csv, but no checkpoint.pt; put back a copy" in script("alae.py", "--resume", "run", code=2).stderr
    log = tmp_path / "run" / "log.csv"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))      # the head, and kimg 0
    script("alae.py", "--resume", "run")
    assert checkpoint_of(tmp_path / "run")["seen"] == 1024
    assert [row["kimg"] for row in log_of(tmp_path / "run")] == ["0.0", "1.024"]


def test_two_processes_are_one(script, tmp_path):
    words = in_double(tmp_path, "alae.py")
    script(*words, *SMALL, "--kimg", "0.032", "--out", "start")
    script(*words, *SMALL, "--kimg", "0.160", "--out", "one")           # four steps more
    script(*words, *SMALL, "--kimg", "0.160", "--out", "two", launcher=TWO)
    moved = assert_two_are_one(*(checkpoint_of(tmp_path / name)["state"] for name in ("start", "one", "two")))
    assert min(moved.values()) > 1e-3
    for a, b in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert float(a["mse"]) == pytest.approx(float(b["mse"]), rel=1e-6)


def test_processes_with_batch_norm_stop_together_and_resume(tmp_path, script):
    flags = ("--backbone", "dcgan", *SMALL, "--kimg", "50", "--out", "run")
    process = start(tmp_path, *flags, launcher=TWO)
    wait_for(tmp_path / "run" / "log.csv", process, 2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert "go on with --resume run" in out
    seen = checkpoint_of(tmp_path / "run")["seen"]
    script("alae.py", "--resume", "run", "--kimg", (seen + 64) / 1000, launcher=TWO)
    assert checkpoint_of(tmp_path / "run")["seen"] == seen + 64


def test_average_buffers(tmp_path):
    code = """if True:
        import sys, torch, torch.distributed
        sys.path.insert(0, sys.argv[1])
        import common
        torch.distributed.init_process_group("gloo")
        norm = torch.nn.BatchNorm1d(2)
        norm.running_mean.fill_(torch.distributed.get_rank())
        common.average_buffers(norm)
        assert norm.running_mean.tolist() == [0.5, 0.5]
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        """
    (tmp_path / "check.py").write_text(code)
    done = subprocess.run([*TWO, str(tmp_path / "check.py"), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_load_gives_averaged_or_raw_weights(script, tmp_path):
    script("alae.py", *SMALL, "--kimg", 1, "--out", "run")
    state = checkpoint_of(tmp_path / "run")["state"]
    for weights, name in (("ema", "ema"), ("raw", "model")):
        model = alae.load(tmp_path / "run", weights=weights)
        assert not model.training
        assert all(torch.equal(v, state[name][k]) for k, v in model.state_dict().items())
    assert not torch.equal(state["ema"]["G.layer1.weight"], state["model"]["G.layer1.weight"])


def test_default_run_folder(here):
    flags = ("--kimg", "0.1", "--width", "64", "--batch", "32")
    run_here(alae.main, *flags)
    run_here(alae.main, *flags, "--recipe", "official", "--backbone", "dcgan", "--resolution", "64", "--seed", "3")
    assert {p.name for p in (here / "runs").iterdir()} == {
        "alae-mlp-mnist-mini", "alae-official-dcgan-mnist-mini-64-s3"}


BAD = {
    "unknown data": (("--data", "minst"), "unknown data set 'minst'"),
    "unknown flag": (("--gama", "3"), "unrecognized arguments: --gama 3"),
    "gamma": (("--gamma", "-1"), "--gamma: invalid positive float or 0 value: '-1'"),
    "unknown backbone": (("--backbone", "resnet"), "--backbone: invalid choice: 'resnet'"),
    "missing folder": (("--data", "no/such/folder"), "there is no no/such/folder"),
    "folder without images": (("--data", "."), "has no images in it"),
    "resolution": (("--backbone", "dcgan", "--resolution", "48"), "32 or 64 or 128 px, not 48"),
    "resolution of another": (("--resolution", "64"), "pass --backbone dcgan"),
    "resume of nothing": (("--resume", "."), "holds no run"),
    "device": (("--device", "cuda:7"), "there is no device 'cuda:7' here"),
    "not a device": (("--device", "gpu"), "there is no device 'gpu' here"),
    "not finite": ((*SMALL, "--lr", "1e30", "--kimg", "1"), "is nan at "),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(script, tmp_path, name):
    flags, message = BAD[name]
    done = script("alae.py", *flags, code=2)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_streamed_set_trains_and_stops(tmp_path, script):
    """A set too large for memory, read by workers: a signal to the whole process group still leaves a checkpoint."""
    fill_zip(tmp_path / "set.zip", 100)
    write_streaming_script(tmp_path / "small.py")
    process = subprocess.Popen(
        [sys.executable, "small.py", "--data", "set.zip", *SMALL, "--kimg", "100", "--out", "run"], cwd=tmp_path,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(tmp_path / "run" / "log.csv", process, 2)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    seen = checkpoint_of(tmp_path / "run")["seen"]
    assert f"stopped: {seen / 1000:g} kimg" in out
    script("alae.py", "--resume", "run", "--kimg", seen / 1000 + 0.032)     # on the device, in the same order


def test_data_that_have_moved(tmp_path, script):
    fill_zip(tmp_path / "set.zip", 40)
    flags = ("--data", "set.zip", "--backbone", "mlp", *SMALL, "--kimg", "0.1", "--out", "run")
    script("alae.py", *flags)
    (tmp_path / "new").mkdir()
    (tmp_path / "set.zip").rename(tmp_path / "new" / "renamed.zip")
    assert "there is no" in script("eval.py", "compare", "run", code=2).stderr
    assert "MSE" in script("eval.py", "compare", "run", "--data", "new/renamed.zip").stdout
    script("alae.py", "--resume", "run", "--data", "new/renamed.zip", "--kimg", "0.2")
    fill_zip(tmp_path / "new" / "renamed.zip", 40, first=100)
    for flags in (("alae.py", "--resume"), ("eval.py", "compare")):
        err = script(*flags, "run", code=2).stderr
        assert "was trained on 37 images 1x28x28, and renamed has as many others; say where" in err
    err = script("alae.py", "--resume", "run", "--data", "mnist-mini", code=2).stderr
    assert "and mnist-mini has 10,000" in err


def test_bf16_through_the_script(script, tmp_path):
    script("alae.py", *SMALL, "--kimg", "0.1", "--precision", "bf16", "--backbone", "dcgan", "--out", "bf16")
    assert all(math.isfinite(float(v)) for v in log_of(tmp_path / "bf16")[-1].values())


def test_run_folders_are_protected(script, tmp_path):
    flags = (*SMALL, "--kimg", "0.1", "--out", "run")
    script("alae.py", *flags)
    assert "already holds a run; go on with it by --resume run" in script("alae.py", *flags, code=2).stderr
    err = script("alae.py", "--resume", "run", "--backbone", "dcgan", code=2).stderr
    assert "was trained with --backbone mlp, not dcgan" in err
    args = tmp_path / "run" / "args.json"
    text = args.read_text()
    args.write_text(text.replace('"method": "alae"', '"method": "lia"'))
    assert "run is a run of lia.py, not of alae.py" in script("alae.py", "--resume", "run", code=2).stderr
    args.write_text(text.replace('"width": 16', '"width": 8'))
    assert "width = 16, but args.json says 8" in script("alae.py", "--resume", "run", code=2).stderr


def test_a_batch_that_the_processes_do_not_divide(script):
    done = script("alae.py", "--batch", "33", code=2, env={"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})
    assert done.stderr == "error: --batch 33 does not divide among 2 processes; pass a multiple of 2, such as 32\n"


def test_a_lower_level_s_batch_that_the_processes_do_not_divide(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(common.Error, match="batch of 52 at a lower level does not divide among 3 .* as many as it beg"):
        common.start(Namespace(batch=6, batches=[54, 52, 6]))


def test_a_second_signal_leaves_an_agreed_stop(monkeypatch):
    run = object.__new__(common.Run)
    run.stop, run.stop_wanted = False, 0
    monkeypatch.setattr(common.dist, "is_initialized", lambda: True)
    run._on_signal(signal.SIGTERM, None)
    assert (run.stop, run.stop_wanted) == (False, signal.SIGTERM)       # all processes agree upon the step first
    run.stop = True
    run._on_signal(signal.SIGTERM, None)
    assert run.stop
