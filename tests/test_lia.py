"""LIA: the invertible network, both stages worked out by hand, the VAE, settings and loop."""
import copy
import functools
import hashlib
import json
import math
import shutil
import subprocess
import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as nnf
from conftest import (
    ROOT,
    TWO,
    Enough,
    assert_averaged,
    assert_bf16_is_near,
    assert_equal_runs,
    assert_shared,
    autocasts,
    averages,
    change,
    changed_by,
    checkpoint_of,
    draws,
    fill_zip,
    modes,
    networks,
    noise_of,
    noisy,
    picture,
    rows_of,
    run_here,
    shares_of,
    tiny,
    watch,
)
from torch import nn
from torch.distributions import Normal, kl_divergence

import common
import data
import lia

# ----------------------------------------------------------------------------------------- the invertible network


def random_flow(n, depth=4, coupling="additive", dtype=torch.float64):
    """With random biases, so that zeros at the start hide nothing."""
    torch.manual_seed(0)
    net = lia.InvertibleNetwork(n, depth, coupling).to(dtype)
    for p in net.parameters():
        if p.ndim == 1:
            nn.init.normal_(p, std=30)
    return net


def encoded(net, w):
    """Eq. 3 and, affine, its scale for each coupling; the order is reversed after it.  -> z, log |det dz/dw|"""
    half, log_det = w.shape[1] // 2, 0
    for tau in net.tau:
        top, bottom = h, _ = w[:, :half], w[:, half:]
        for layer in tau:
            h = h @ layer.weight.T * (0.01 * math.sqrt(2 / layer.weight.shape[1])) + 0.01 * layer.bias
            h = torch.where(h > 0, h, 0.2 * h)
        scale = 1 / (1 + torch.exp(-h[:, half:] - 2)) if net.affine else torch.ones_like(bottom)
        log_det = log_det + scale.log().sum(1)
        w = torch.cat([top, (bottom + h[:, :half]) * scale], 1)[:, torch.arange(2 * half - 1, -1, -1)]
    return w, log_det


def test_one_coupling_by_hand():
    net = lia.InvertibleNetwork(2, 1)
    (first, second), = net.tau
    with torch.no_grad():       # tau(t) = lrelu((-2 1) lrelu((t -t)) + 1), by weights over their run-time scale
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]) / (0.01 * math.sqrt(2)))
        second.weight.copy_(torch.tensor([[-2.0, 1.0]]) / 0.01)
        second.bias.fill_(1 / 0.01)
    w = torch.tensor([[3.0, 10.0], [-1.0, 10.0]])
    z = torch.tensor([[10 + 0.2 * (-2 * 3 - 0.2 * 3 + 1), 3.0], [10 + 2 * 0.2 + 1 + 1, -1.0]])
    torch.testing.assert_close(net.to_z(w), z)          # phi adds
    torch.testing.assert_close(net.to_w(z), w)          # phi^-1 subtracts


@pytest.mark.parametrize("coupling", ["additive", "affine"])
@pytest.mark.parametrize("depth", [4, 8])
def test_the_network_is_invertible(depth, coupling):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        net, v = random_flow(64, depth, coupling, dtype), torch.randn(20, 64, dtype=dtype)
        assert (net.to_w(net.to_z(v)) - v).abs().max() < tolerance * v.abs().max()
        w = net.to_w(v)
        assert w.isfinite().all()
        assert (net.to_z(w) - v).abs().max() < tolerance * w.abs().max()
    assert len(net.tau) == depth


@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_its_values_and_determinant(coupling):
    net, w = random_flow(6, 4, coupling), torch.randn(1, 6, dtype=torch.float64)
    for tau in net.tau:
        nn.init.normal_(tau[1].weight, std=100)         # an affine one's scales are constant at first
    z, log_det = encoded(net, w)
    torch.testing.assert_close(net.to_z(w), z)
    jacobian = torch.autograd.functional.jacobian(lambda v: net.to_z(v[None])[0], w[0])
    assert torch.linalg.det(jacobian).abs().item() == pytest.approx(log_det.exp().item(), rel=1e-10)
    assert (log_det.item() == 0) == (coupling == "additive")
    assert (jacobian != 0).all()                        # the halves take turns


def test_an_affine_coupling_begins_with_one_scale():
    net = lia.InvertibleNetwork(6, 1, "affine")
    shift, scale = net._shift_and_scale(net.tau[0], torch.randn(5, 3))
    torch.testing.assert_close(scale, torch.full((5, 3), 1 / (1 + math.exp(-2))))
    assert shift.std() > 0.01


def test_the_network_is_fp32_and_shares_its_parameters():
    net, w = random_flow(16, dtype=torch.float32), torch.randn(5, 16)
    z = net.to_z(w)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.to_z(w), z)
        assert torch.equal(net.to_w(z.bfloat16()), net.to_w(z.bfloat16().float()))
        assert net.to_z(w.bfloat16()).dtype == net.to_w(z.bfloat16()).dtype == torch.float32
    net.to_w(torch.randn(5, 16)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    assert not torch.allclose(net.to_z(w), z)           # phi has moved with phi^-1, whose inverse it stays
    torch.testing.assert_close(net.to_w(net.to_z(w)), w, rtol=0, atol=1e-3)


# ------------------------------------------------------------------------------------------ eqs. 5 to 8, by hand

class Linear(nn.Module):
    """phi, g, f and c of one matrix each, A, B, C and d."""
    variational, grows = False, False

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.phi, self.g, self.f, self.c = (nn.Linear(i, o, bias=False).double()
                                            for i, o in ((3, 4), (4, 5), (5, 4), (5, 1)))
        self.phi.to_w = self.phi.forward

    def matrices(self):
        return [net.weight.detach().clone().squeeze(0) for net in (self.phi, self.g, self.f, self.c)]


def critics(form, fake, real):
    """What c minimises, without R1, and its slopes in the scores of x~ and of x."""
    if form == "wasserstein":
        return fake.mean() - real.mean(), torch.ones_like(fake) / len(fake), -torch.ones_like(real) / len(real)
    loss = torch.log1p(fake.exp()) + torch.log1p((-real).exp())
    return loss.mean(), fake.sigmoid() / len(fake), -(-real).sigmoid() / len(real)


def others(form, fake):
    """What phi, g and f minimise, and its slope."""
    if form == "wasserstein":
        return -fake.mean(), -torch.ones_like(fake) / len(fake)
    return torch.log1p((-fake).exp()).mean(), -(-fake).sigmoid() / len(fake)


def sgd(**nets):
    return Namespace(**{name: torch.optim.SGD(net.parameters(), lr=0.1) for name, net in nets.items()})


def stage_1(model, opt, x, z, args, amp=nullcontext, mix=None):
    """A step on codes z()."""
    return lia.decoder_step((model.phi, model.g, model.c), opt, x, draws(lambda n: z(), mix), args, amp,
                            getattr(model, "mean_w", None))


def stage_2(model, opt, x, eps, args, amp=nullcontext, z=None):
    """A step on codes z(), which the VAE alone draws."""
    g = functools.partial(model.g, noise="fixed") if model.grows else model.g
    return lia.encoder_step((model.f, g, model.c, model.phi), opt, x, eps, draws(lambda n: z()), args, amp)


@pytest.mark.parametrize("form", ["wasserstein", "logistic"])
def test_the_decoders_step_by_hand(form):
    args, model = lia.parse_args(["--adversarial", form, "--gamma", "3"]), Linear()
    A, B, C, d = model.matrices()
    x, (z1, z2) = torch.randn(6, 5).double(), torch.randn(2, 6, 3).double()
    codes = iter([z1, z2])      # one a step: a third raises
    losses = stage_1(model, sgd(phi=model.phi, g=model.g, c=model.c), x.clone(), lambda: next(codes), args)
    assert next(codes, None) is None
    fake = z1 @ A.T @ B.T
    L_c, s_fake, s_real = critics(form, fake @ d, x @ d)
    R1 = 3 / 2 * d @ d                                                  # the gradient of d x is d
    d = d - 0.1 * (s_fake @ fake + s_real @ x + 3 * d)
    w = z2 @ A.T
    L_g, slope = others(form, w @ B.T @ d)                              # by the new c
    A, B = A - 0.1 * torch.outer(B.T @ d, slope @ z2), B - 0.1 * torch.outer(d, slope @ w)
    assert [v.item() for v in losses] == pytest.approx([L_c.item(), R1.item(), L_g.item()], rel=1e-5, abs=1e-5)
    torch.testing.assert_close(model.matrices(), [A, B, C, d], rtol=0, atol=1e-6)       # losses are taken in fp32


@pytest.mark.parametrize("form", ["wasserstein", "logistic"])
@pytest.mark.parametrize(("norm", "critic"), [("l2", "finetune"), ("mse", "finetune"), ("l2", "frozen")])
def test_the_encoders_step_by_hand(form, norm, critic):
    args = Namespace(beta=0.7, perceptual_norm=norm, pixel_weight=0.4, adversarial_weight=0.3, adversarial=form,
                     gamma=3.0, critic=critic, inference="encoder")
    model, x = Linear(), torch.randn(6, 5).double()
    A, B, C, d = model.matrices()
    losses = stage_2(model, sgd(f=model.f, c=model.c), x.clone(), lambda v: 3 * v, args)
    x_hat = x @ C.T @ B.T
    e = x - x_hat
    length = e.square().sum(1, keepdim=True).sqrt()
    L_adv, slope = others(form, x_hat @ d)
    L_rec = 0.7 * (3 * length if norm == "l2" else 9 * e**2).mean() + 0.4 * (e**2).mean()
    pull = -0.7 * (3 * e / length / 6 if norm == "l2" else 9 * 2 * e / 30) - 0.4 * 2 * e / 30
    C = C - 0.1 * B.T @ (pull + 0.3 * torch.outer(slope, d)).T @ x
    L_c, s_fake, s_real = critics(form, x_hat @ d, x @ d)               # of the x~ before f moved
    expected = [L_rec, 0.3 * L_adv, L_c, 3 / 2 * d @ d]
    if critic == "frozen":
        expected[2:] = 0, 0
    else:
        d = d - 0.1 * (s_fake @ x_hat + s_real @ x + 3 * d)
    assert [v.item() for v in losses] == pytest.approx([float(v) for v in expected], rel=1e-5, abs=1e-5)
    torch.testing.assert_close(model.matrices(), [A, B, C, d], rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------------------- the networks themselves

def stages(*flags, inference="encoder"):
    """-> args, model, optimizers of stage 1, of stage 2.  With f and eps in both stages, so that either could move."""
    args, model, opt = tiny(
        lia, *flags, inference=inference, kl_weight=0.5, beta=1.0, perceptual="critic", perceptual_norm="l2",
        pixel_weight=0.0, adversarial_weight=1.0, critic="finetune")
    return args, model, Namespace(phi=opt.phi, g=opt.g, c=opt.c), Namespace(f=opt.f, c=opt.c)


def freeze(model):
    """As stage 2 has it."""
    model.requires_grad_(False).eval()
    for network in (model.f, model.c):
        network.requires_grad_(True).train()


@pytest.mark.parametrize("form", ["wasserstein", "logistic"])
def test_the_signs(form, monkeypatch):
    """c's step tells real from fake, the others' raises c(x~); R1 is of each image's own gradient."""
    args, model, decoder, encoder = stages("--adversarial", form, "--gamma", "0")
    args.beta = 0.0
    x, z, signs = torch.rand(16, 1, 28, 28) * 2 - 1, torch.randn(16, 8), []

    @torch.no_grad()
    def scores():
        return torch.stack([model.c(v).mean() for v in (x, model.g(model.map(z)), model.g(model.f(x)))])

    def spy(loss, *optimizers):
        before = scores()
        common.update(loss, *optimizers)
        signs.append((scores() - before).sign().tolist())
    monkeypatch.setattr(lia, "update", spy)
    stage_1(model, decoder, x.clone(), lambda: z, args)
    stage_2(model, encoder, x.clone(), lambda v: v, args)
    assert (signs[0][:2], signs[1][:2], signs[2], signs[3][::2]) == ([1, -1], [0, 1], [0, 0, 1], [1, -1])

    args.gamma, c = 10, copy.deepcopy(model.c)
    squares = [torch.autograd.grad(c(v[None]).sum(), v)[0].square().sum().item() for v in x.clone().requires_grad_()]
    _, R1, _ = stage_1(model, decoder, x.clone(), lambda: z, args)
    assert R1.item() == pytest.approx(10 / 2 * sum(squares) / 16, rel=1e-4)


@pytest.mark.parametrize("form", ["wasserstein", "logistic"])
@pytest.mark.parametrize("backbone", ["mlp", "dcgan", "stylegan"])
def test_bf16_steps_are_near_fp32_ones(backbone, form):
    args, model, *_ = stages("--backbone", backbone, "--adversarial", form)
    x, zs = torch.rand(8, *args.image_shape) * 2 - 1, torch.randn(2, 8, 8)

    def first(model, opt, amp):
        codes = iter(zs)
        return stage_1(model, opt, x.clone(), lambda: next(codes), args, amp)
    assert_bf16_is_near(model, ("phi g", "c"), first)
    freeze(model)
    assert_bf16_is_near(model, ("f", "c"), lambda model, opt, amp: stage_2(
        model, opt, x.clone(), lambda v: lia.critic_features(model.eps, v), args, amp))


@pytest.mark.parametrize("backbone", ["mlp", "dcgan", "stylegan"])
def test_what_each_step_moves(backbone, monkeypatch):
    args, model, decoder, encoder = stages("--backbone", backbone, "--adversarial", "logistic")
    noisy(model)
    moved, x = [], torch.rand(4, *args.image_shape) * 2 - 1
    changed = functools.partial(changed_by, model)
    monkeypatch.setattr(lia, "update", lambda *args: moved.append(changed(common.update, *args)))
    names = changed(stage_1, model, decoder, x.clone(), lambda: torch.randn(4, 8), args)
    assert networks(names) == {"c", "phi", "g"} | ({"mean_w"} if backbone == "stylegan" else set())
    freeze(model)
    step = functools.partial(stage_2, model, encoder, x.clone(), lambda v: lia.critic_features(model.eps, v))
    assert networks(changed(step, args)) == {"f", "c"}                  # and no statistics of g's
    args.critic = "frozen"
    assert networks(changed(step, args)) == {"f"}
    assert [networks(keys) for keys in moved] == [{"c"}, {"phi", "g"}, {"f"}, {"c"}, {"f"}]
    if backbone == "mlp":                                               # whole networks
        assert moved[0] | moved[1] == {k for k in model.state_dict() if k.startswith(("c.", "phi.", "g."))}


def test_the_perceptual_loss_and_the_divergence():
    x, y = torch.randn(2, 3, 1, 4, 4)
    d = 2 * (x - y).numpy().reshape(3, -1)
    for norm, expected in (("l2", np.sqrt((d**2).sum(1)).mean()), ("mse", (d**2).mean())):
        assert lia.perceptual_loss(lambda v: 2 * v, x, y, norm).item() == pytest.approx(expected)
        same = x.clone().requires_grad_()
        lia.perceptual_loss(lambda v: 2 * v, x, same, norm).backward()
        assert not same.grad.any()                                      # nan neither
    mu, logvar = torch.randn(2, 5, 7)
    expected = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(torch.zeros(7), torch.ones(7))).sum(1).mean()
    torch.testing.assert_close(lia.kl(mu, logvar), expected)


def test_stage_2_is_deterministic_and_has_one_w():
    args, model, _, _ = stages("--backbone", "stylegan")
    x, losses = torch.rand(2, 1, 8, 8) * 2 - 1, []
    for _ in range(2):
        noisy(model)
        freeze(model)
        step = stage_2(model, sgd(f=model.f, c=model.c), x.clone(), lambda v: v, args)
        losses.append([v.item() for v in step])
    assert losses[0] == losses[1]
    model.eval()
    w = model.encode(x)
    first = model.generate(w)
    assert torch.equal(first, model.generate(model.encode(x)))
    assert torch.equal(first, model.generate(w[:, None].expand(2, model.num_layers, 8)))
    assert not torch.equal(first, model.generate(w, "random"))          # there is noise, but a fixed one
    short, long = model.features(x)
    assert torch.equal(short, w)
    assert (w.shape, long.shape, model.num_layers) == ((2, 8), (2, 4 * 4 * 8), 4)


@pytest.mark.parametrize(("inference", "mapping"), [("encoder", "flow"), ("vae", "mlp")])
def test_phi_is_for_the_vae_alone(inference, mapping, monkeypatch):
    args, model, _, encoder = stages("--mapping", mapping, inference=inference)
    freeze(model)
    x, noise, calls, minimised = torch.rand(6, 1, 28, 28), torch.randn(6, 8), [], []
    phi, code, divergence = copy.deepcopy(model.phi), model.f(x), torch.zeros(())
    if inference == "vae":
        mu, logvar = code[:, :8], code[:, 8:]
        torch.testing.assert_close(model.encode(x), phi.to_w(mu))
        code, prior = phi.to_w(mu + torch.exp(0.5 * logvar) * noise), Normal(torch.zeros(8), torch.ones(8))
        divergence = 0.5 * kl_divergence(Normal(mu, (logvar / 2).exp()), prior).sum(1).mean()
    distance, score = (x - model.g(code)).flatten(1).norm(dim=1).mean(), model.c(model.g(code)).mean()
    for name in ("to_z", "to_w"):
        monkeypatch.setattr(model.phi, name, lambda v, name=name: calls.append(name) or phi.to_w(v), raising=False)
    monkeypatch.setattr(lia, "update", lambda loss, *opts: minimised.append(loss) or common.update(loss, *opts))
    losses = stage_2(model, encoder, x.clone(), lambda v: v, args, z=lambda: noise)
    torch.testing.assert_close(losses[::4], (distance, divergence) if inference == "vae" else (distance,))
    torch.testing.assert_close(minimised[0], distance - score + divergence)
    assert calls == ["to_w"] * (inference == "vae")


def test_the_vae_of_a_mapping_between_two_dimensions():
    """f gives mean and log variance of z, whatever w's dimension."""
    model = lia.LIA("vae", backbone="mlp", image_shape=(1, 28, 28), nz=6, nw=8, width=16, mapping="mlp").eval()
    x = torch.rand(3, 1, 28, 28)
    assert (model.f(x).shape, model.encode(x).shape) == ((3, 12), (3, 8))


def test_images_that_encoders_do_not_take_are_one_line():
    _, model, _, _ = stages()
    for x, given in ((PIL.Image.new("L", (28, 28)), "Image"), (np.zeros((1, 1, 28, 28)), "ndarray"),
                     (torch.zeros(1, 3, 32, 32), r"torch.float32 \(1, 3, 32, 32\)"),
                     (torch.zeros(1, 28, 28), r"torch.float32 \(1, 28, 28\)"),
                     (torch.zeros(1, 1, 28, 28, dtype=torch.uint8), r"torch.uint8 \(1, 1, 28, 28\)")):
        for function in (model.encode, model.features):
            with pytest.raises(ValueError, match=rf"float tensor \(N, 1, 28, 28\) in \[-1, 1\], not {given}; data"):
                function(x)
    for n in (1, 5):
        assert model.encode(torch.zeros(n, 1, 28, 28)).shape == (n, 8)


def test_an_encoder_can_be_exported_and_compiled():
    _, model, _, _ = stages()

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model.eval()

        def forward(self, x):
            return self.model.encode(x)
    x = torch.randn(3, 1, 28, 28)
    exported = torch.export.export(Encoder(), (x,), dynamic_shapes=({0: torch.export.Dim("N")},)).module()
    compiled = torch.compile(Encoder(), backend="eager", fullgraph=True)
    for v in (x, torch.randn(5, 1, 28, 28)):
        torch.testing.assert_close(exported(v), model.encode(v))
        torch.testing.assert_close(compiled(v), model.encode(v))


def test_the_released_encoder():
    with torch.device("meta"):
        f = lia.ResidualEncoder((3, 128, 128), 512)
    assert [f.first.out_channels] + [b.conv2.out_channels for b in f.blocks] == [64, 128, 256, 512, 1024, 1024]
    assert [b.conv1.out_channels for b in f.blocks] == [64, 128, 256, 512, 1024]        # the smaller of the two
    assert (f.head[0].in_features, f.head[0].out_features) == (1024 * 4 * 4, 512)
    f = lia.ResidualEncoder((3, 96, 128), 10, width=4)
    for name, p in f.named_parameters():
        assert p.ndim > 1 or name.endswith("bias")                      # batch norm's shift; it has no scale
        assert p.ndim == 1 or p.std().item() == pytest.approx(0.02, rel=0.15), name
    y = f(torch.randn(6, 3, 96, 128))
    assert y.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(10), rtol=0, atol=1e-3)


def test_the_released_encoder_by_hand():
    f, block = lia.ResidualEncoder((1, 8, 8), 3, width=16).eval(), lia.ResidualBlock(5, 5).eval()
    for norm in [m for net in (f, block) for m in net.modules() if hasattr(m, "running_var")]:
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)

    def normed(m, y):
        return nnf.batch_norm(y, m.running_mean, m.running_var, bias=m.bias, eps=1e-5)

    def part(conv, norm, y):
        return nnf.leaky_relu(normed(norm, nnf.conv2d(y, conv.weight, padding=conv.weight.shape[2] // 2)), 0.2)

    def twice(b, y):
        return part(b.conv2, b.norm2, part(b.conv1, b.norm1, y))
    x = torch.randn(2, 5, 8, 8)
    torch.testing.assert_close(block(x), twice(block, x) + x)
    x, (b,) = torch.randn(2, 1, 8, 8), f.blocks                         # 4 channels, then 8
    y = part(f.first, f.norm, x).view(2, 4, 4, 2, 4, 2).mean((3, 5))
    y = (twice(b, y) + part(b.shortcut, b.norm, y)).reshape(2, 8 * 16)
    torch.testing.assert_close(f(x), normed(f.head[1], y @ f.head[0].weight.T))


# --------------------------------------------------------------------------------------------------- the script

SMALL = ("--width", "16", "--nz", "8", "--nw", "8", "--batch", "32", "--kimg", "0.5", "--snapshot-kimg", "0.2")
STYLE = ("--backbone", "stylegan", "--width", "64", "--nz", "8", "--nw", "8", "--batch", "8", "--kimg", "0.1")
EIGHT, PLAIN = (*STYLE, "--resolution", "8"), ("--mapping", "mlp")
DECODERS = {"mlp": SMALL, "plain mlp": (*SMALL, *PLAIN), "dcgan": (*SMALL, "--backbone", "dcgan"),
            "stylegan": EIGHT, "plain stylegan": (*EIGHT, *PLAIN)}
run = functools.partial(run_here, lia.main)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """decoder(one of DECODERS) -> its run folder, not to be written to."""
    @functools.cache
    def make(name="mlp"):
        folder = tmp_path_factory.mktemp("lia") / "decoder"
        run(*DECODERS[name], "--out", folder)
        return folder
    return make


BAD = {
    "no decoder": ((), "--stage 2 trains the encoder of a decoder that is there; train one with --stage 1"),
    "another method's": (("--decoder", "alae"), "alae is a run of alae.py, not of lia.py"),
    "stage 2's": (("--decoder", "second"), "second is a run of stage 2; name the run of stage 1, first"),
    "no run": (("--decoder", "nowhere"), "nowhere holds no run"),
    "width": (("--width", "8"), "has --width 16, not 8; leave the flag out"),
    "nw": (("--nw", "10"), "has --nw 8, not 10; leave the flag out"),
    "grow-kimg": (("--grow-kimg", "3"), "--grow-kimg is for --stage 1"),
    "kl-weight": (("--kl-weight", "3"), "--kl-weight is for --inference vae"),
    "vae of flow": (("--inference", "vae"), "is about a decoder of --mapping mlp"),
    "other images": (("--data", "grey.zip"), "decoder was trained on 10,000 images 1x28x28, and grey has "),
    "rgb images": (("--data", "rgb.zip"), "decoder was trained on"),
    "vgg": (("--perceptual", "no.pth"), r"/no.pth; --perceptual takes .*; or pass --perceptual critic or .* pixel"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_flags_of_stage_2(name, here, decoder):
    for folder, args in (("alae", dict(method="alae")), ("second", dict(method="lia", stage="2", decoder="first"))):
        Path(folder).mkdir()
        Path(folder, "args.json").write_text(json.dumps({**args, "backbone": "mlp", "image_shape": [1, 28, 28]}))
    for mode, image in (("L", "grey"), ("RGB", "rgb")):
        fill_zip(here / f"{image}.zip", 40, mode=mode, size=(28, 28))
    flags, message = BAD[name]
    if flags and flags[0] != "--decoder":
        flags = ("--decoder", decoder(), *flags)
    with pytest.raises(common.Error, match=message) as error:
        run("--stage", "2", "--batch", "8", "--kimg", "0.01", *flags, "--out", "run")
    assert "\n" not in str(error.value)
    assert not Path("run").exists()


@pytest.mark.parametrize(("flags", "message"), [
    (["--beta", "1"], "--beta is for --stage 2; leave it out, or pass that"),
    (["--nz", "7", "--nw", "7"], "of the same, even dimension, not 7 to 7"),
    (["--nz", "6", "--nw", "8"], "not 6 to 8; pass --nz and --nw alike, or --mapping mlp"),
    (["--mapping", "mlp", "--depth", "8"], "--depth is for --mapping flow"),
    (["--backbone", "dcgan", "--rgb", "tanh"], "--rgb is for --backbone mlp or stylegan")])
def test_bad_flags_of_stage_1(flags, message):
    with pytest.raises(common.Error, match=message):
        lia.parse_args(flags)
    assert lia.parse_args(["--nz", "7", "--nw", "5", "--mapping", "mlp"]).nw == 5


def test_a_resumed_stage_2_finds_its_vgg_from_another_folder(here, decoder, monkeypatch):
    """And it may be named again as it was at first."""
    files, vgg = [], nn.Module()
    vgg.conv4_3 = lambda x: x
    monkeypatch.setattr(common, "frozen", lambda name, file, *_: files.append(file) or vgg)
    run("--stage", "2", "--decoder", decoder(), "--perceptual", "vgg.pth", "--batch", "32", "--kimg", "0.032",
        "--out", "run")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    run("--resume", here / "run", "--kimg", "0.064")
    monkeypatch.chdir(here)
    run("--resume", "run", "--perceptual", "vgg.pth", "--kimg", "0.096")
    assert files == [str(here / "vgg.pth")] * 3
    with pytest.raises(common.Error, match=r"was trained with --perceptual .*/vgg.pth, not other.pth"):
        run("--resume", "run", "--perceptual", "other.pth", "--kimg", "0.128")


@pytest.mark.parametrize("name", ["stage", "given", "train_images"])
def test_a_decoder_whose_arguments_lack_one_is_named(name, here, decoder):
    shutil.copytree(decoder(), "first")
    change(Path("first"), without=[name])
    with pytest.raises(common.Error, match=f"first/args.json: {name} is missing; put back"):
        lia.parse_args(["--stage", "2", "--decoder", "first"])


def test_a_decoder_that_has_not_grown_is_refused(here):
    run(*STYLE, "--resolution", "16", "--grow-kimg", "0.2", "--out", "first")
    with pytest.raises(common.Error, match="first has grown to 8 px only"):
        run("--stage", "2", "--decoder", "first", "--perceptual", "critic", "--kimg", "0.04", "--out", "run")


def test_the_batch_of_stage_2(here):
    fill_zip(here / "set.zip", 40, size=(8, 8))
    run(*STYLE, "--data", "set.zip", "--out", "first")                  # no word of the resolution
    flags = ("--stage", "2", "--decoder", "first", "--perceptual", "critic", "--kimg", "0.04")
    run(*flags, "--out", "second")
    assert json.loads(Path("second/args.json").read_text())["batch"] == 16
    assert [lia.batch_of(side, 2) for side in (8, 256, 512, 1024)] == [32, 32, 16, 8]
    with pytest.raises(common.Error, match="--batch"):                  # f has batch norm
        run(*flags, "--batch", "1", "--out", "third")


@pytest.mark.parametrize(("name", "split"), [("ffhq", "65-5"), ("lsun-cat", "100k"), ("lsun-car", "100k")])
def test_the_papers_split(name, split):
    assert lia.parse_args(["--data", name]).split == split


@pytest.mark.parametrize("name", ["stylegan", "plain stylegan"])
def test_losses_of_the_paper_whatever_the_mapping(name, decoder):
    args = lia.parse_args(["--stage", "2", "--decoder", str(decoder(name))])
    assert (args.adversarial, args.perceptual, args.perceptual_norm, args.beta, args.gamma, args.pixel_weight,
            args.adversarial_weight, args.critic) == ("logistic", "vgg16", "l2", 0.001, 10, 0, 1, "finetune")


def test_the_printed_form_where_it_trains():
    """Wasserstein, but on stylegan, where it has to be asked for."""
    forms = [lia.parse_args(["--backbone", *words.split()]).adversarial for words in (
        "mlp", "dcgan", "stylegan", "stylegan --mapping mlp", "stylegan --adversarial wasserstein")]
    assert forms == ["wasserstein", "wasserstein", "logistic", "logistic", "wasserstein"]


def test_the_official_recipe(decoder):
    args = lia.parse_args(["--backbone", "stylegan", "--recipe", "official"])
    assert (args.adversarial, args.rgb, args.adam_state, args.flip) == ("logistic", "tanh", "fresh", "off")
    assert lia.parse_args(["--data", "ffhq", "--recipe", "official"]).flip == "on"      # the code: FFHQ alone
    for name in ("mlp", "stylegan"):
        args = lia.parse_args(["--stage", "2", "--decoder", str(decoder(name)), "--recipe", "official",
                               "--perceptual", "vgg16"])
        assert (args.adversarial, args.perceptual_norm, args.beta, args.pixel_weight, args.adversarial_weight) == (
            "logistic", "mse", 5e-5, 1, 0.1)
    linear, tanh = (noisy(lia.Decoder("stylegan", (1, 8, 8), 8, 8, 64, rgb=rgb).g)
                    for rgb in ("linear", "tanh"))
    tanh.load_state_dict(linear.state_dict())
    x, y = (net(torch.ones(4, 8), "fixed") for net in (linear, tanh))
    assert x.abs().max() > 1 >= y.abs().max()
    torch.testing.assert_close(y, torch.tanh(x))


def test_the_mlps_output(here, decoder):
    """tanh, ours; linear on request, and in runs from before the flag, in whose stage 2 too."""
    assert lia.parse_args(["--backbone", "mlp"]).rgb == "tanh"
    linear, tanh = (lia.Decoder("mlp", (1, 28, 28), 8, 8, 64, rgb=rgb).g for rgb in ("linear", "tanh"))
    tanh.load_state_dict(linear.state_dict())
    w = 9 * torch.ones(4, 8)
    assert linear(w).abs().max() > 1
    torch.testing.assert_close(tanh(w), torch.tanh(linear(w)))

    run("--width", "64", "--batch", "8", "--kimg", "0.016", "--rgb", "linear", "--gamma", "3", "--out", "old")
    change(Path("old"), without=["rgb"])
    assert lia.load("old").g.last is None
    args = lia.parse_args(["--stage", "2", "--decoder", "old/"])
    assert (args.rgb, args.gamma) == ("linear", 3)
    assert args.decoder == str(here / "old")            # from any folder
    assert lia.parse_args(["--resume", "old"]).rgb == "linear"


@pytest.mark.parametrize(("name", "layers"), [
    ("mlp", ("layer1", "layer2", "head")), ("dcgan", ("convs.0", "convs.2", "head")),
    ("plain stylegan", ("first", "blocks.0.conv2", "head.0"))])
def test_stage_2_keeps_what_stage_1_made(name, layers, here, decoder, monkeypatch):
    first, step, trace, begin, model = decoder(name), lia.encoder_step, [], {}, None

    def files():
        return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in first.rglob("*") if p.is_file()}

    def spy(*given):
        begin.update({} if trace else copy.deepcopy(model.state_dict()))
        losses = step(*given)
        gradients = [model.f.get_submodule(n).weight.grad.abs().mean() for n in layers]
        trace.append([v.item() for v in (*losses[:4], *gradients)])
        return losses
    def broadcast(made):
        nonlocal model
        model = made
    monkeypatch.setattr(lia, "encoder_step", spy)
    monkeypatch.setattr(common, "broadcast", broadcast)
    before = files()
    run("--stage", "2", "--decoder", first, "--kimg", "0.256", "--batch", "32", "--snapshot-kimg", "0.1",
        "--perceptual", "critic", "--log-gradients", "--out", "second")
    assert files() == before
    assert {p.name for p in (here / "second").iterdir()} == {
        ".lock", "args.json", "checkpoint.pt", "gradients.csv", "log.csv", "reconstructions", "samples"}

    stage_1, stage_2 = (checkpoint_of(folder)["state"] for folder in (first, here / "second"))
    averaged, trained, after = stage_1["ema"], stage_1["model"], stage_2["model"]
    assert all(any(not torch.equal(v, averaged[k]) for k, v in trained.items() if k[0] == net) for net in "cg")
    for k, v in begin.items():
        net, _, rest = k.partition(".")
        assert net == "f" or torch.equal(v, trained[f"c.{rest}"] if net in ("c", "eps") else averaged[k]), k
        assert net in ("f", "c") or (torch.equal(v, after[k]) and torch.equal(v, stage_2["ema"][k])), k
    assert any(not torch.equal(v, after[k]) for k, v in begin.items() if k[0] == "c")

    rows = rows_of("second/gradients.csv")
    assert list(rows[0]) == ["kimg", "L_rec", "L_adv", "L_c", "R1", "first", "middle", "last"]
    expected = [[32 * (i + 1) / 1000, *values] for i, values in enumerate(trace)]
    np.testing.assert_allclose([list(map(float, row.values())) for row in rows], expected, rtol=1e-6)
    for row in rows_of("second/log.csv"):
        share = 0.8**(4 * float(row["kimg"]) / 0.256)
        assert float(row["lr"]) == pytest.approx(share * (0.0001 if "stylegan" in name else 0.001))


@pytest.mark.parametrize(("name", "inference"), [("mlp", "encoder"), ("plain stylegan", "vae")])
def test_load(name, inference, here, decoder):
    run("--stage", "2", "--decoder", decoder(name), "--inference", inference, "--perceptual", "pixel", "--kimg", "0.04",
        "--batch", "8", "--out", "second")
    for folder in (decoder(name), here / "second"):
        for weights, key in (("ema", "ema"), ("raw", "model")):
            model, state = lia.load(folder, weights=weights), checkpoint_of(folder)["state"][key]
            assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
            assert (model.training, hasattr(model, "encode"), hasattr(model, "unmap")) == (
                False, folder.name == "second", name == "mlp")
            if name == "mlp":
                other, z = copy.deepcopy(model), model.prior(5, torch.Generator().manual_seed(0))
                torch.testing.assert_close(model.unmap(model.map(z)), z, rtol=0, atol=1e-4)
                assert other.unmap.__self__ is other.phi


@pytest.mark.parametrize(("name", "inference"), [("mlp", "encoder"), ("plain mlp", "vae")])
def test_stage_2_resumes_to_the_bit(name, inference, here, decoder):
    flags = ("--stage", "2", "--decoder", "first", "--kimg", "0.5", "--batch", "32", "--snapshot-kimg", "0.2",
             "--inference", inference, "--log-gradients")
    shutil.copytree(decoder(name), "first")
    run(*flags, "--out", "whole")
    run(*flags, "--out", "parts", until=300)
    assert checkpoint_of(here / "parts")["seen"] == 320
    with open("parts/gradients.csv", "a") as f:         # as a kill leaves it, after the checkpoint
        f.write(f"0.352{',1' * (7 + (inference == 'vae'))}\r\n0.384,1,1")
    shutil.rmtree("first")                              # which is not needed any more
    run("--resume", "parts")
    assert_equal_runs(here / "whole", here / "parts")
    rows = rows_of("whole/gradients.csv")
    assert rows == rows_of("parts/gradients.csv")
    assert [float(row["kimg"]) for row in rows] == [32 * (i + 1) / 1000 for i in range(16)]


def test_growing_stage_1_resumes_to_the_bit(here):
    """Stopped while a level fades in; with Adam begun anew at that level."""
    flags = (*STYLE, "--resolution", "16", "--grow-kimg", "0.12", "--kimg", "0.48", "--snapshot-kimg", "0.2",
             "--recipe", "official")
    run(*flags, "--out", "whole")
    assert [(float(row["kimg"]), row["level"]) for row in rows_of("whole/log.csv")] == [
        (0, "1"), (0.2, "2"), (0.4, "2"), (0.48, "2")]
    run(*flags, "--out", "parts", until=190)
    assert checkpoint_of(here / "parts")["state"]["model"]["g.alpha"].item() == pytest.approx((192 - 120) / 120)
    run("--resume", "parts")
    assert_equal_runs(here / "whole", here / "parts")
    state = checkpoint_of(here / "whole")["state"]
    for name in ("opt_phi", "opt_g", "opt_c"):
        assert max(int(s["step"]) for s in state[name]["state"].values()) == (480 - 120) / 8
    assert lia.load("parts").g.top == 2


def test_ffhq_as_typed(here, monkeypatch):
    """At 1024 px if nothing is said; here smaller, for time."""
    for i in range(14):
        folder = here / "data" / "ffhq" / f"{i // 5 * 1000:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(i, mode="RGB").save(folder / f"{i:05d}.png")
    monkeypatch.setitem(data.CUTS, "ffhq", (data.CUTS["ffhq"][0], 14, {"60-10": (12, 12), "65-5": (13, 13)}))
    assert lia.parse_args(["--stage", "1", "--data", "ffhq"]).resolution == "1024"
    monkeypatch.setattr(lia, "SETTINGS", [*lia.SETTINGS, (dict(data="ffhq"), dict(resolution="64"))])
    run("--stage", "1", "--data", "ffhq", "--width", "64", "--kimg", "0.1", "--snapshot-kimg", "0.1")
    folder, = (here / "runs").iterdir()
    model = lia.load(folder)
    assert (model.image_shape, model.nz, model.nw, model.num_layers, model.g.top) == ((3, 64, 64), 512, 512, 10, 4)
    assert math.isfinite(float(rows_of(folder / "log.csv")[-1]["L_c"]))
    assert json.loads((folder / "args.json").read_text())["train_images"] == 13


def test_two_processes_are_one(here):
    """In both stages, and for the VAE, whose draws are shared out."""
    stages = {"lia-1": [], "lia-2": ["--stage", "2", "--decoder", "one-lia-1"], "vae-1": ["--mapping", "mlp"],
              "vae-2": ["--stage", "2", "--decoder", "one-vae-1", "--inference", "vae"]}
    (here / "all.py").write_text(f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        import common, lia
        common.curves = common.dist.destroy_process_group = lambda *_: None     # the next run goes on with the group
        def main():
            for stage, flags in {stages!r}.items():
                small = {SMALL!r} if stage[-1] == "1" else ["--batch", "32"]
                lia.main([*small, *flags, "--kimg", "0.128", "--out", f"{{sys.argv[1]}}-{{stage}}"])
        common.command(main)
        """)
    for name, launcher in (("one", [sys.executable]), ("two", TWO)):
        done = subprocess.run([*launcher, "all.py", name], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    for stage in stages:
        one, two = (checkpoint_of(here / f"{name}-{stage}") for name in ("one", "two"))
        assert torch.equal(one["state"]["rng"], two["state"]["rng"])
        torch.manual_seed(0)
        start = (lia.Decoder if stage[-1] == "1" else lia.LIA)(**lia.network_args(one["args"])).state_dict()
        for k, v in one["state"]["model"].items():      # equal but for the order of sums
            if k in ("c.head.bias", "eps.head.bias"):   # which eq. 6 does not depend on
                continue
            moved = (v - start[k]).abs().mean()         # in stage 2, phi and g to those of stage 1
            assert moved > 1e-4, k
            assert (v - two["state"]["model"][k]).abs().mean() < 0.01 * moved, k


# ---------------------------------------------------------------------------------------------- what the loops do

def test_features_of_the_critic_are_those_of_stage_1():
    """The kept critic, eps, compares images, and not the one that trains on."""
    model = stages()[1]
    torch.nn.init.normal_(model.c.layer1.weight)
    x = torch.rand(4, *model.image_shape)
    eps = lia.extractor(Namespace(perceptual="critic"), model, "cpu")
    assert torch.equal(eps(x), lia.critic_features(model.eps, x))
    assert not torch.equal(eps(x), lia.critic_features(model.c, x))
    assert lia.extractor(Namespace(perceptual="pixel"), model, "cpu")(x) is x


def test_noise_of_stage_2_is_fixed(here, decoder, monkeypatch):
    seen = watch(monkeypatch, lambda model, optimizers, x, call: call.nets[1].keywords, lia, "encoder_step")
    run("--stage", "2", "--decoder", decoder("plain stylegan"), "--kimg", "0.016", "--batch", "16", "--perceptual",
        "critic", "--out", "second")
    assert seen == [dict(noise="fixed")]


def test_networks_and_optimizers_of_each_stage(here, decoder, monkeypatch):
    first = watch(monkeypatch, modes, lia, "decoder_step")
    run(*DECODERS["dcgan"], "--kimg", "0.032", "--lr", "0.003", "--out", "first")       # g has batch norm
    assert first == [([(0.003, (0.0, 0.99))] * 3, {"phi", "g", "c"}, {"phi", "g", "c"})]
    second = watch(monkeypatch, modes, lia, "encoder_step")
    for name in ("mlp", "plain stylegan"):                                              # where f has batch norm
        run("--stage", "2", "--decoder", decoder(name), "--kimg", "0.016", "--batch", "16", "--perceptual", "critic",
            "--lr", "0.003", "--out", name)
    assert second == [([(0.003, (0.9, 0.99))] * 2, {"f", "c"}, {"f", "c"})] * 2


@pytest.mark.parametrize("mapping", ["flow", "mlp"])
def test_the_mapping_learns_at_a_hundredth_of_the_rate(mapping):
    _, model, decoder, _ = stages("--mapping", mapping)
    layer = (model.phi.tau[0] if mapping == "flow" else model.phi.layers)[0]
    common.update(model.phi.to_w(torch.randn(4, 8)).sum(), decoder.phi)
    moved = layer(torch.zeros(1, layer.weight.shape[1]))                                # zero before
    torch.testing.assert_close(moved.abs().max(), torch.tensor(0.001 * 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision(precision, here, decoder, monkeypatch):
    first = decoder()
    seen = [watch(monkeypatch, autocasts, lia, name) for name in ("decoder_step", "encoder_step")]
    flags = ("--kimg", "0.032", "--batch", "32", "--precision", precision)
    run(*SMALL, *flags, "--out", "first")
    run("--stage", "2", "--decoder", first, *flags, "--out", "second")
    assert seen == [[precision == "bf16"]] * 2


@pytest.mark.parametrize("name", ["mlp", "dcgan", "stage 2", "growing"])
def test_averages(name, here, decoder, monkeypatch):
    """Their half-life is a fifth of the images shown since the run, or its level, began."""
    flags = {"mlp": (*SMALL, "--kimg", "0.128"), "dcgan": (*DECODERS["dcgan"], "--kimg", "0.128"),
             "growing": (*STYLE, "--batch", "32", "--resolution", "16", "--grow-kimg", "0.064", "--kimg", "0.128"),
             "stage 2": ("--stage", "2", "--decoder", decoder(), "--batch", "32", "--kimg", "0.128")}[name]
    steps, shown = averages(monkeypatch, 32)
    run(*flags, "--snapshot-kimg", "1", "--out", "run")
    assert_averaged(steps, shown, 32, [0, 32, 0, 32] if name == "growing" else [0, 32, 64, 96])


@pytest.mark.parametrize("flip", ["on", "off"])
@pytest.mark.parametrize("stage", ["1", "2"])
def test_flip(stage, flip, here, decoder, monkeypatch):
    flags = ("--stage", "2", "--decoder", decoder(), "--batch", "32") if stage == "2" else SMALL
    seen = watch(monkeypatch, lambda model, optimizers, x, *_: x.detach().clone(), lia,
                 "encoder_step" if stage == "2" else "decoder_step")
    monkeypatch.setattr(common, "mirror", lambda x, draw: x - 2 if len(draw) == len(x) else None)
    run(*flags, "--flip", flip, "--kimg", "0.032", "--out", "run")
    assert (seen[0].max() <= -1) == (flip == "on")


def test_both_steps_of_stage_1_mix_styles(monkeypatch):
    args, model, decoder, _ = stages("--backbone", "stylegan")
    phi, seen, zs = copy.deepcopy(model.phi), [], torch.randn(2, 4, 8)
    codes = iter(zs)
    model.g.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    stage_1(model, decoder, torch.rand(4, 1, 8, 8), lambda: next(codes), args, mix=lambda w: 2 * w + 1)
    torch.testing.assert_close(seen, [2 * phi.to_w(z) + 1 for z in zs])
    torch.testing.assert_close(model.mean_w, 0.005 * phi.to_w(zs[0]).mean(0))           # of codes that are not mixed


def test_mixing(here, monkeypatch):
    seen, mix = [], common.mix_styles
    monkeypatch.setattr(common, "mix_styles", lambda *given: seen.append(given) or mix(*given))
    for flags, share in (((), 0.9), (("--mixing", "0.3"), 0.3), (("--mixing", "0"), 0)):
        run(*EIGHT, *flags, "--kimg", "0.008", "--out", f"run{share}")
        assert json.loads(Path(f"run{share}/args.json").read_text())["mixing"] == share
        assert [(top, p) for _, _, top, p, _ in seen] == [(1, share)] * 2               # in both steps
        for w, others, _, _, draw in seen:
            assert (draw.shape, w.shape) == ((8, 2), others.shape)
            assert not torch.isclose(w, others).any(1).all()
        seen.clear()
    for wrong in (["--backbone", "stylegan", "--mixing", "1.5"], ["--backbone", "stylegan", "--mixing", "nan"],
                  ["--gamma", "-1"]):
        with pytest.raises(SystemExit):
            lia.parse_args(wrong)
    with pytest.raises(common.Error, match="--mixing is for --backbone stylegan"):
        lia.parse_args(["--mixing", "0.5"])
    with pytest.raises(common.Error, match="--mixing is for --stage 1"):
        lia.parse_args(["--stage", "2", "--decoder", "run0.3", "--mixing", "0.5"])
    assert not hasattr(lia.parse_args(["--stage", "2", "--decoder", "run0.3"]), "mixing")


def test_a_run_that_knows_no_mixing_goes_on(here):
    run(*EIGHT, "--kimg", "0.032", "--out", "whole")
    run(*EIGHT, "--kimg", "0.032", "--out", "parts", until=10)
    assert common.read_args("parts")["mixing"] == 0.9
    change(Path("parts"), without=["mixing"])
    assert lia.load("parts").num_layers == 4
    run("--resume", "parts")
    assert_equal_runs(here / "whole", here / "parts")


def test_rates_and_lengths_of_the_released_code(monkeypatch):
    growth_of, growths = common.growth_of, []

    def stop(args, **kwargs):
        args.image_shape = 3, 1024, 1024
        growths.append(growth_of(args, **kwargs))
        assert args.kimg == 25_000
        raise Enough
    monkeypatch.setattr(common, "growth_of", stop)
    monkeypatch.setattr(common, "complete", lambda *_, **__: None)
    monkeypatch.setattr(data, "load", lambda *_: (Namespace(shape=(3, 1024, 1024)), None))
    with pytest.raises(Enough):
        run("--data", "ffhq", "--device", "cpu")
    levels = {}
    for kimg in range(0, 25_000, 100):
        level, _, _, lr = growths[0].at(1000 * kimg)
        levels.setdefault(level, []).append((kimg, lr))
    # from 8 px, 600,000 images; then as many to fade a level in and as many more
    assert [rows[0] for rows in levels.values()] == [
        (0, 0.001), (600, 0.001), (1800, 0.001), (3000, 0.001), (4200, 0.0015), (5400, 0.002), (6600, 0.003),
        (7800, 0.003)]
    assert list(levels) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_rate_and_the_images_of_a_level(here, monkeypatch):
    monkeypatch.setattr(lia, "RATES", (0.001, 0.002, 0.004))
    seen = watch(monkeypatch, lambda model, optimizers, x, *_: (
        model.g.top, {group["lr"] for o in optimizers for group in o.param_groups}, x.detach().clone(),
        sum(len(o.state) for o in optimizers)), lia, "decoder_step")
    run(*STYLE, "--resolution", "16", "--grow-kimg", "0.016", "--kimg", "0.032", "--out", "run")
    assert [(top, lr) for top, lr, *_ in seen] == [(1, {0.002})] * 2 + [(2, {0.004})] * 2
    x = seen[2][2]                                                                      # alpha is 0
    torch.testing.assert_close(x, nnf.interpolate(nnf.avg_pool2d(x, 2), scale_factor=2))
    assert x.shape == (8, 1, 16, 16)
    assert seen[2][3] >= seen[1][3] > 0                                                 # what Adam knows is kept


def test_two_processes_share_what_stage_1_draws(here, monkeypatch):
    def look(model, optimizers, x, call):
        z = call.draw.z(len(x))
        mixed = call.draw.mix(model.phi.to_w(z), model.phi.to_w)
        return [x, z, mixed, *noise_of(model.g, call.nets[1], z, monkeypatch)]
    one, *two = shares_of((*EIGHT, "--flip", "on"), look, "decoder_step", lia, monkeypatch)
    assert [tuple(v.shape) for v in one] == [(8, 1, 8, 8), (8, 8), (8, 4, 8), *[(8, 1, 4, 4)] * 2, *[(8, 1, 8, 8)] * 2]
    assert all(abs(eta.mean()) < 0.5 and abs(eta.std() - 1) < 0.3 for eta in one[3:])
    assert_shared(one, *two)


def test_two_processes_share_what_stage_2_draws(here, decoder, monkeypatch):
    flags = ("--stage", "2", "--decoder", decoder("plain mlp"), "--inference", "vae", "--batch", "8", "--flip", "on")
    one, *two = shares_of(flags, lambda model, optimizers, x, call: [x, call.draw.z(len(x))], "encoder_step", lia,
                          monkeypatch)
    assert [tuple(v.shape) for v in one] == [(8, 1, 28, 28), (8, 8)]
    assert_shared(one, *two)


def test_statistics_are_averaged_over_processes_before_the_average_takes_them(here, decoder, monkeypatch):
    first, calls = decoder(), []
    monkeypatch.setattr(common, "average_buffers", lambda model: calls.append(model))
    monkeypatch.setattr(common, "update_ema", lambda ema, model, *_, **__: calls.append(model))
    run(*SMALL, "--kimg", "0.032", "--out", "first")
    run("--stage", "2", "--decoder", first, "--kimg", "0.032", "--batch", "32", "--out", "second")
    assert [type(model) for model in calls] == [lia.Decoder] * 2 + [lia.LIA] * 2
    assert calls[0] is calls[1]
    assert calls[2] is calls[3]


def test_a_longer_stage_2_keeps_its_rates(here, decoder, monkeypatch):
    seen = watch(monkeypatch, modes, lia, "encoder_step")
    flags = ("--stage", "2", "--decoder", decoder(), "--batch", "32", "--snapshot-kimg", "0.032")
    run(*flags, "--kimg", "0.128", "--out", "run")
    run("--resume", "run", "--kimg", "0.192")
    rates = [0.001 * 0.8**min(i, 4) for i in range(7)]
    assert [float(row["lr"]) for row in rows_of("run/log.csv")] == pytest.approx(rates)
    assert [lr for groups, *_ in seen for lr, _ in groups] == pytest.approx([r for r in rates[:6] for _ in "fc"])
