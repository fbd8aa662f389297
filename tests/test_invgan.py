"""InvGAN: the step of eq. 3 and of section 4.4 worked out by hand, MMD, BigGAN, settings and loop."""
import copy
import functools
import json
import math
import re
import subprocess
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    SHAPES,
    TWO,
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
    options,
    rows_of,
    run_here,
    shares_of,
    tiny,
    watch,
)
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode

import common
import data
import eval as evaluation
import invgan

VARIANTS = ("naive", "augmented", "full")

# ------------------------------------------------------------------------------- eqs. 1 to 3 and section 4.4, by hand

class Trunk(nn.Module):
    """D: features C x, a score and a code that are H times these."""

    def __init__(self):
        super().__init__()
        self.f, self.head = (nn.Linear(i, o, bias=False).double() for i, o in ((5, 4), (4, 1 + 2)))

    def forward(self, x):
        out = self.head(self.f(x))
        return invgan.Judged(out[:, 1:], out[:, :1], self.f(x))


class Linear(nn.Module):
    """M, G and D of a matrix or two, A, B and C, H."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.M, self.G = (nn.Linear(i, o, bias=False).double() for i, o in ((3, 2), (2, 5)))
        self.D = Trunk()


def mmd_by_loop(a, b):
    """The unbiased estimate, pair by pair."""
    def squared(u, v):
        return sum((i - j)**2 for i, j in zip(u, v, strict=True))

    def mean_kernel(pairs):
        k = [sum(np.e**(-squared(u, v) / (s * m)) for s in (0.25, 1, 4)) / 3 for u, v in pairs]
        return sum(k) / len(k)

    def apart(c):
        return [(u, v) for i, u in enumerate(c) for j, v in enumerate(c) if i != j]
    distances = sorted(squared(u, v).item() for u, v in apart([*a, *b]))
    m = distances[(len(distances) - 1) // 2]
    return mean_kernel(apart(a)) + mean_kernel(apart(b)) - 2 * mean_kernel([(u, v) for u in a for v in b])


def step(model, opt, x, z, args, amp=nullcontext):
    """A step on codes z(n)."""
    return invgan.train_step((model.M, model.G, model.D), opt, x, draws(z), args, amp, getattr(model, "mean_w", None))


def by_hand(A, B, C, H, x, z, args):
    """The fakes and L_w, L_fm, L_cycle, L_MMD; no gradient goes through detach(), nor through held() but as printed."""
    def held(v):
        return v.detach() if args.targets == "held" else v

    def code(v):
        return v @ C.T @ H[1:].T
    w_all, full = z @ A.T, args.variant == "full"
    if args.variant != "naive":
        w_all = torch.cat([z @ A.T, code(x) if full else code(x).detach()])
    fake = w_all @ B.T
    L_w, L_fm, L_cycle, L_mmd = ((held(w_all) - code(fake))**2).mean(), 0, 0, 0
    if full:
        e = held(x @ C.T) - fake[len(z):] @ held(C).T
        L_fm = (e**2).sum() / e.numel() if args.fm == "paired" else (e.mean(0)**2).sum()**0.5
        L_cycle = ((held(code(fake)) - code(code(fake) @ B.T))**2).mean()
        L_mmd = mmd_by_loop(z @ A.T, code(x))
    return fake, (L_w, L_fm, L_cycle, L_mmd)


@pytest.mark.parametrize(("form", "codes"), [("logistic", "prior"), ("logistic", "both"), ("hinge", "prior")])
@pytest.mark.parametrize(("variant", "fm", "targets"), [
    ("naive", "paired", "held"), ("augmented", "paired", "held"), ("full", "paired", "held"),
    ("full", "batchmean", "held"), ("naive", "paired", "moving"), ("full", "paired", "moving")])
def test_a_step_by_hand(variant, fm, targets, form, codes):
    others = ["--fm", fm, "--fm-weight", "0.4", "--cycle-weight", "0.3", "--mmd-weight", "1.5"] * (variant == "full")
    if variant != "naive":
        others += ["--gan-codes", codes]
    args = invgan.parse_args(["--variant", variant, "--gan-loss", form, "--targets", targets, "--gamma", "3",
                              "--w-weight", "0.7", *others])
    model, n = Linear(), 3 if codes == "both" and variant != "naive" else 6         # all of the batch are M(z), or half
    x, zs = torch.randn(6, 5).double(), torch.randn(2, n, 3).double()
    A, B, C, H = (p.detach().clone().requires_grad_() for p in model.parameters())
    noise = {n: iter(zs)}       # of n codes, one a step: a third raises
    opt = Namespace(**{name: torch.optim.SGD(net.parameters(), lr=0.1) for name, net in model.named_children()})
    losses = step(model, opt, x.clone(), lambda count: next(noise[count]), args)
    assert next(noise[n], None) is None

    def weighted(parts):
        return sum(weight * part for weight, part in zip((0.7, 0.4, 0.3, 1.5), parts, strict=True))
    fake, parts = by_hand(A, B, C, H, x[:3], zs[0], args)
    c_fake, c_real = fake[:6].detach() @ C.T @ H[0], x @ C.T @ H[0]
    assert len(c_fake) == len(c_real) == 6
    if form == "hinge":
        L_D = (1 + c_fake).clamp(min=0).sum() / 6 + (1 - c_real).clamp(min=0).sum() / 6
    else:
        L_D = ((1 + c_fake.exp()).log() + (1 + (-c_real).exp()).log()).sum() / 6    # -log(1 - D(G)) - log D(x)
    R1 = 3 / 2 * (H[0] @ C).square().sum()                                          # the score's slope is C^T h
    gC, gH = torch.autograd.grad(L_D + R1 + weighted(parts), (C, H))
    C, H = C - 0.1 * gC, H - 0.1 * gH
    fake, after = by_hand(A, B, C, H, x[:3], zs[1], args)
    c_fake = fake[:6] @ C.T @ H[0]
    L_G = -c_fake.mean() if form == "hinge" else (1 + (-c_fake).exp()).log().mean()
    gA, gB = torch.autograd.grad(L_G + weighted(after), (A, B))
    expected = [float(torch.as_tensor(v).detach()) for v in (L_D, R1, L_G, *parts)]
    own = len(expected) if variant == "full" else 4
    assert [v.item() for v in losses] == pytest.approx(expected[:own], rel=1e-5, abs=1e-6)
    assert [v > 1e-5 for v in expected[3:6]] == [True] + [variant == "full"] * 2
    for p, value in zip(model.parameters(), (A - 0.1 * gA, B - 0.1 * gB, C, H), strict=True):
        torch.testing.assert_close(p, value, rtol=0, atol=1e-6)                     # losses are taken in fp32


def test_mmd():
    for n, m, d in ((2, 2, 3), (7, 7, 5), (3, 2, 4)):
        a, b = torch.randn(n, d), torch.randn(m, d) * 2 + 1
        assert invgan.mmd(a, b).item() == pytest.approx(mmd_by_loop(a.double().numpy(), b.double().numpy()), rel=1e-4,
                                                          abs=1e-5)
        assert invgan.mmd(a.bfloat16(), b.bfloat16()).dtype == torch.float32
    assert invgan.mmd(torch.ones(4, 3), torch.ones(4, 3)).item() == 0       # nan neither
    g = torch.Generator().manual_seed(0)
    values = torch.tensor([[invgan.mmd(torch.randn(8, 4, generator=g), torch.randn(8, 4, generator=g) + shift)
                            for shift in (0, 0.5, 1, 2)] for _ in range(400)])
    mean, deviation = values.mean(0), values.std(0) / 20
    assert abs(mean[0]) < 3 * deviation[0]
    assert values[:, 0].min() < 0
    assert (mean[1:] - mean[:-1] > 3 * deviation[1:]).all()


# ----------------------------------------------------------------------------------------------------- gradients

def small(*flags, lr=0.001):
    """-> args, model, optimizers, x (8 images)."""
    args, model, opt = tiny(invgan, *flags, lr=lr)
    return args, model, opt, torch.rand(8, *args.image_shape) * 2 - 1


@pytest.mark.parametrize("fm_weight", ["0", "2"])
def test_what_teaches_d(fm_weight):
    """The score sees fakes without their codes; feature matching reaches D through w_R and G, and not through f."""
    args, model, opt, x = small("--backbone", "mlp", "--gan-codes", "both", "--fm-weight", fm_weight, "--w-weight", "0",
                               "--cycle-weight", "0", "--mmd-weight", "0", lr=0.0)
    M, G, D = (copy.deepcopy(net) for net in (model.M, model.G, model.D))
    z = torch.randn(4, 8)
    step(model, opt, x.clone(), lambda n: z, args)              # at rate 0: gradients alone
    f, w_R = copy.deepcopy(D).requires_grad_(False), D(x[:4])[0]
    matching = (f(x[:4])[2] - f(G(w_R))[2]).square().mean()
    fakes = torch.cat([G(M(z)), G(w_R)]).detach()
    adversarial = -torch.log(torch.sigmoid(D(x)[1])).mean() - torch.log(1 - torch.sigmoid(D(fakes)[1])).mean()
    expected = torch.autograd.grad(adversarial + int(fm_weight) * matching, [*D.parameters()], retain_graph=True)
    for p, g in zip(model.D.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-7)
    trunk, head = model.D.net.layer1.weight, model.D.net.head.weight.grad
    plain, = torch.autograd.grad(adversarial, D.net.layer1.weight)
    assert torch.allclose(trunk.grad, plain, rtol=1e-4, atol=1e-7) == (fm_weight == "0")
    assert (head[0].any(), head[1:].any()) == (True, fm_weight == "2")              # the score's row, the code's


def test_mmd_teaches_m_and_d():
    args, model, _, x = small("--backbone", "mlp")
    L_mmd = invgan.full((model.M, model.G, model.D), x, torch.randn(8, 8), args, nullcontext, "D")[2]["L_MMD"]
    M, D, G = model.M.layers[0].weight, model.D.net, model.G.layer1.weight
    *reached, head, none = torch.autograd.grad(L_mmd, (M, D.layer1.weight, D.head.weight, G), allow_unused=True)
    assert none is None
    assert all(g.any() for g in (*reached, head[1:]))
    assert not head[0].any()                                                        # the score's row


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backbone", SHAPES)
def test_what_each_step_moves(backbone, variant, monkeypatch):
    args, model, opt, x = small("--backbone", backbone, "--variant", variant)
    moved, changed = [], functools.partial(changed_by, model)
    monkeypatch.setattr(invgan, "update", lambda *args: moved.append(changed(common.update, *args)))
    names = changed(step, model, opt, x, lambda n: torch.randn(n, 8), args)
    assert [networks(keys) for keys in moved] == [{"D"}, {"M", "G"}]
    assert networks(names) == {"M", "G", "D"} | ({"mean_w"} if backbone == "stylegan" else set())
    if backbone != "stylegan":                          # which has layers of levels that are not on top
        assert moved[0] | moved[1] >= {k for k, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backbone", SHAPES)
def test_bf16_steps_are_near_fp32_ones(backbone, variant):
    args, model, _, x = small("--backbone", backbone, "--variant", variant)
    z = torch.randn(24, 8)

    def of(model, opt, amp):
        codes = iter(z)
        return step(model, opt, x.clone(), lambda n: torch.stack([next(codes) for _ in range(n)]), args, amp)
    assert_bf16_is_near(model, ("M G", "D"), of)


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_and_half(variant):
    args, model, _, x = small("--backbone", "dcgan", "--variant", variant)
    M, G, D = model.M, model.G, model.D
    codes, seen, z = [], [], torch.randn(4, 8)
    norms, other, w = copy.deepcopy(G), copy.deepcopy(G), M(z)
    G.register_forward_pre_hook(lambda _, inputs: codes.append(inputs[0]))
    D.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    real = x[:0] if variant == "naive" else x[:4]
    fake, score, _ = invgan.VARIANTS[variant]((M, G, D), real, z, args, nullcontext, "D")
    if variant == "naive":
        assert torch.equal(codes[0], w)
        assert len(codes) == len(seen) == 1                                         # D sees fakes alone
        return
    torch.testing.assert_close(codes[0], torch.cat([w, D(x[:4])[0]]))
    assert (len(codes), len(fake), len(score)) == (1 + (variant == "full"), 8, 8)   # once, and the second cycle
    torch.testing.assert_close(fake, norms(codes[0]))                               # of one batch's statistics
    assert not torch.allclose(fake[:4], other(w), atol=1e-3)


@pytest.mark.parametrize(("variant", "passes"), [
    ("naive", "mg DDD MGD"), ("augmented", "dmg DDD dMGD"), ("full", "DMGDDGD DD dMGDGD")])
def test_passes_keep_a_graph_where_it_teaches(variant, passes):
    """In capitals: D's step goes through D(x), M and G in full alone, M's and G's never through D(x)."""
    args, model, opt, x = small("--backbone", "dcgan", "--variant", variant)
    seen = []
    for name in "MGD":
        getattr(model, name).register_forward_hook(lambda _, inputs, out, name=name: seen.append(
            name if (out[0] if name == "D" else out).requires_grad else name.lower()))
    step(model, opt, x, lambda n: torch.randn(n, 8), args)
    assert "".join(seen) == passes.replace(" ", "")


# ------------------------------------------------------------------------------------------------------ networks

@pytest.mark.parametrize("backbone", SHAPES)
def test_networks(backbone):
    _, model, _, x = small("--backbone", backbone)
    assert len(model.M.layers) == (8 if backbone == "stylegan" else 2)
    trunk, calls = model.D.net.trunk, []
    model.D.net.trunk = lambda v: calls.append(trunk(v)) or calls[-1]
    code, score, f = model.D(x)
    assert (code.shape, score.shape, len(calls)) == ((8, 8), (8, 1), 1)
    assert torch.equal(f, calls[0])
    w, made = model.eval().encode(x), model.generate(code)
    assert torch.equal(w, model.encode(x))
    assert torch.equal(w, model.features(x)[0])
    others = torch.cat([x[:2], torch.randn(5, *x.shape[1:])])
    for a, b in ((model.encode(others)[:2], w[:2]), (model.encode(x[:1]), w[:1]), (model.generate(code[:1]), made[:1])):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)                      # whatever its batch mates
    assert made.shape == x.shape
    with pytest.raises(ValueError, match=r"images are a float tensor \(N, 1, .* not torch.float32 \(8, 3, 16, 16\)"):
        model.encode(torch.zeros(8, 3, 16, 16))


def layers_of(*nets):
    """All but the plain layer of the code."""
    return {f"{i}.{k}": m for i, net in enumerate(nets) for k, m in net.named_modules()
            if isinstance(m, (nn.Conv2d, nn.Linear)) and not k.endswith("net.code")}


def sizes_of(*nets):
    """The largest singular value of each layer."""
    return {k: torch.linalg.matrix_norm(m.weight.flatten(1), 2).item() for k, m in layers_of(*nets).items()}


def test_blocks_of_biggan_by_hand():
    """Each with its weights over their largest singular value."""
    torch.manual_seed(0)

    def conv(layer, x):
        w = layer.parametrizations.weight.original.detach()
        u, v = (getattr(layer.parametrizations.weight[0], k) for k in ("_u", "_v"))
        return nn.functional.conv2d(x, w / (u @ w.flatten(1) @ v), layer.bias, padding=layer.padding)

    def normed(norm, x, w):
        gain, bias = ((w @ layer.weight.T)[:, :, None, None] for layer in (norm.gain, norm.bias))
        return (x - norm.norm.running_mean[:, None, None]) / (norm.norm.running_var[:, None, None] + 1e-5).sqrt() * (
            1 + gain) + bias
    x, w = torch.randn(2, 4, 8, 8), torch.randn(2, 5)
    for c_out, down, first in ((6, True, True), (4, True, False), (4, False, False)):
        block = invgan.DownBlock(4, c_out, down, first).eval()
        y = conv(block.conv2, conv(block.conv1, x if first else x.clamp(min=0)).clamp(min=0))
        y = y + (conv(block.shortcut, x) if down else x)
        torch.testing.assert_close(block(x), y.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)) if down else y)
    block = invgan.UpBlock(4, 5).eval()
    for norm in (block.norm1, block.norm2):
        norm.norm.running_mean.normal_()
        norm.norm.running_var.uniform_(0.5, 2)
    y = conv(block.conv1, common.upscale(normed(block.norm1, x, w).clamp(min=0)))
    y = conv(block.conv2, normed(block.norm2, y, w).clamp(min=0)) + conv(block.shortcut, common.upscale(x))
    torch.testing.assert_close(block(x, w), y, rtol=1e-4, atol=1e-5)
    D, x = invgan.BigGANDiscriminator((3, 32, 32), 6, 64).eval(), torch.randn(2, 3, 32, 32)
    f = D.blocks(x).clamp(min=0)
    torch.testing.assert_close(D.trunk(x), f.flatten(1))
    assert (f == 0).any()
    torch.testing.assert_close(D.head(D.trunk(x)), torch.cat(
        [f.sum((2, 3)) @ D.score.weight.T + D.score.bias, f.flatten(1) @ D.code.weight.T + D.code.bias], 1))


def test_spectral_norm_is_fp32_under_autocast():
    """On a GPU, whose autocast would take its products in bf16: here one of fake tensors."""
    products = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function in (torch.ops.aten.mv.default, torch.ops.aten.convolution.default):
                products.append(out.dtype)
            return out
    with FakeTensorMode(), torch.device("cuda"):
        layer, x = invgan.sn(nn.Conv2d(3, 8, 3)), torch.empty(2, 3, 8, 8)
        torch.set_autocast_enabled("cuda", True)            # torch.autocast itself asks for a GPU
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            with Watch():
                layer(x)
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert products == [torch.float32] * 3 + [torch.bfloat16]


def test_biggan():
    torch.manual_seed(0)
    M, G, D = invgan.InvGAN("biggan", (3, 32, 32), 6, 5, 8).children()
    w, conditional, shapes = M(torch.randn(4, 6)), [], []
    norms = [m for m in G.modules() if isinstance(m, invgan.ConditionalNorm)]
    for m in norms:
        m.register_forward_hook(lambda m, inputs, out: conditional.append((m, *inputs, out)))
    for b in (*G.blocks, *D.net.blocks):
        b.register_forward_hook(lambda m, inputs, out: shapes.append(tuple(out.shape)))
    x = G(w)
    code, score, f = D(x)
    assert (len(norms), {m for m, *_ in conditional}) == (6, {*norms})
    for m, y, v, out in conditional:
        assert torch.equal(v, w)                                                    # whole, in each
        y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        gain, bias = ((v @ layer.weight.T)[:, :, None, None] for layer in (m.gain, m.bias))
        torch.testing.assert_close(out, y * (1 + gain) + bias, rtol=1e-3, atol=1e-4)
    assert shapes == [(4, 32, s, s) for s in (8, 16, 32, 16, 8, 8, 8)]
    assert (x.shape, code.shape, score.shape, f.shape) == ((4, 3, 32, 32), (4, 5), (4, 1), (4, 32 * 64))
    assert x.abs().max() <= 1

    layers = layers_of(G, D)
    plain = D.net.code
    assert not is_parametrized(plain)
    assert plain.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not plain.bias.any()
    assert len(layers) == (1 + 3 * 7 + 1) + (4 * 3 - 2 + 1)
    with torch.no_grad():
        for layer in layers.values():
            assert is_parametrized(layer, "weight")
            layer.parametrizations.weight.original.normal_(0, 3)
        for _ in range(60):                                                         # a power iteration each
            D(G(w))
        assert sizes_of(G, D) == pytest.approx(dict.fromkeys(layers, 1), abs=0.03)


# --------------------------------------------------------------------------------------------- tiles and patches

def images_of(n=5, h=32, w=64, streamed=False):
    pixels = torch.randint(256, (n, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = data.Images("set", "train", "set", np.arange(n) * 3 + 1, (3, h, w), torch.arange(n) % 2, pixels=pixels)
    if streamed:
        images.pixels, images.read = None, lambda i, size: data.shrink(pixels[i:i + 1], size)[0].numpy()
    return images, pixels


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("size", [8, 16, 32])
def test_tiles(size, streamed):
    images, pixels = images_of(streamed=streamed)
    tiles, rows, columns = data.Tiles(images, size), 32 // size, 64 // size
    assert (tiles.shape, len(tiles)) == ((3, size, size), 5 * rows * columns)
    parts = tiles.take(range(len(tiles)))
    order = tiles.ids.argsort()                                             # whole images, row by row
    whole = parts[order].view(5, rows, columns, 3, size, size).permute(0, 3, 1, 4, 2, 5).reshape(5, 3, 32, 64)
    assert torch.equal(whole, pixels)
    some = torch.tensor([7, 0, 9, 7])
    half = parts[some].float().view(4, 3, size // 2, 2, size // 2, 2).mean((3, 5)).round()
    assert torch.equal(tiles.take(some), parts[some])
    assert torch.equal(tiles.take(some, (size // 2, size // 2)).float(), half)
    assert len({*tiles.ids.tolist()}) == len(tiles)
    assert tiles.labels[order].tolist() == [i % 2 for i in range(5) for _ in range(rows * columns)]
    neighbours = tiles.ids // (rows * columns)
    assert (neighbours[1:] != neighbours[:-1]).all()
    part = data.Images("set", "test", "set", images.ids[3:], images.shape, pixels=pixels[3:])
    assert sorted(data.Tiles(part, size).ids) == sorted(tiles.ids)[3 * rows * columns:]         # in another split
    assert [len(data.Tiles(images_of(2, n, n)[0], 32)) for n in (256, 128)] == [2 * 64, 2 * 16]


def test_tiles_of_another_resolution_are_other_pictures():
    a, b = (data.Tiles(images_of(2, n, n)[0], 16) for n in (32, 64))
    assert a.source != b.source or not {*a.ids.tolist()} & {*b.ids.tolist()}


def test_sizes_that_do_not_tile(tmp_path):
    fill_zip(tmp_path / "set.zip", 12, size=(50, 40))
    for w, h, fits in ((50, 40, "48x32"), (50, 32, "48x32"), (10, 40, "16x32")):
        images = data.load(str(tmp_path / "set.zip"), resolution=f"{w}x{h}")[0]
        with pytest.raises(data.DataError, match=f"of {w}x{h} do not cut into tiles of 16; pass --resolution {fits}$"):
            data.Tiles(images, 16)
        data.Tiles(data.load(str(tmp_path / "set.zip"), resolution=fits)[0], 16)


def test_random_patches():
    x, draw = torch.randn(4, 3, 10, 13), torch.tensor([[0, 0], [1 - 2**-24, 1 - 2**-24], [0.5, 0.2], [0.99, 0]])
    parts = invgan.random_patches(x, 4, draw)
    for i, (row, column) in enumerate([(0, 0), (6, 9), (3, 2), (6, 0)]):
        assert torch.equal(parts[i], x[i, :, row:row + 4, column:column + 4])
    assert torch.equal(invgan.random_patches(x, 4, draw), parts)
    draw, x = torch.rand(3000, 2, generator=torch.Generator().manual_seed(0)), torch.arange(12.0).view(1, 1, 3, 4)
    corners = invgan.random_patches(x.expand(3000, -1, -1, -1), 2, draw)[:, 0, 0, 0]
    assert all((corners == v).float().mean().item() == pytest.approx(1 / 6, abs=0.03) for v in (0, 1, 2, 4, 5, 6))


# ---------------------------------------------------------------------------------------------------- the script

SMALL = ("--width", "16", "--nz", "8", "--nw", "8", "--batch", "16", "--kimg", "0.16", "--snapshot-kimg", "0.1")
PATCHES = ("--data", "set.zip", "--resolution", "64x32", "--patches", "32")
BIGGAN = (*SMALL, "--backbone", "biggan", "--width", "32", "--batch", "8", *PATCHES)
STYLE = (*SMALL, "--backbone", "stylegan", "--width", "64", "--batch", "8", "--data", "set.zip")
run = functools.partial(run_here, invgan.main)


@pytest.fixture
def here(here):
    """With 40 images of 64x64."""
    fill_zip(here / "set.zip", 40, size=(64, 64))
    return here


BAD = {
    "biggan's patches": ((*BIGGAN[:-1], "16"), "biggan trains on patches of 32 px, not 16"),
    "biggan's size": (("--backbone", "biggan", "--resolution", "64"), "biggan makes images of 32 px, not 64"),
    "dcgan's patches": (("--backbone", "dcgan", "--data", "set.zip", "--resolution", "40", "--patches", "20"), "20"),
    "gamma": (("--gamma", "nan"), "--gamma: invalid positive float or 0 value: 'nan'"),
    "batch": (("--batch", "2"), "--batch 2 .* pass --batch 4 or more"),
    "fm without pairs": (("--variant", "naive", "--fm", "batchmean"), "--fm is for --variant full; leave it out"),
    "fade without growing": ((*STYLE, "--grow-kimg", "1"), "--grow-kimg is for --grow; leave it out, or pass that"),
    "no tiles": (("--data", "set.zip", "--resolution", "40", "--patches", "32"), "pass --resolution 32x32"),
    "smaller than a patch": (("--patches", "32"), "images of 28x28 do not cut .* pass --resolution 32x32"),
    "grow": (("--grow",), "--grow is for --backbone stylegan"),
    "grow and patches": ((*STYLE, "--resolution", "32", "--grow", "--grow-kimg", "0.02", "--patches", "16"),
                         "--grow does not go with --patches"),
    "rate of D": (("--lr-d", "-1"), "--lr-d: invalid positive float or 0 value: '-1'"),
    "infinite rate of D": (("--lr-d", "inf"), "--lr-d: invalid positive float or 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_flags_are_one_line(name, here, capsys):
    flags, message = BAD[name]
    with pytest.raises((common.Error, data.DataError, SystemExit)) as error:
        run(*SMALL, *flags, "--kimg", "0.04", "--out", "run")
    text = capsys.readouterr().err.strip() if error.type is SystemExit else str(error.value)
    assert re.search(message, text)
    assert "\n" not in text
    assert not Path("run").exists()


@pytest.mark.parametrize(("variant", "flags"), [
    ("full", ()), ("naive", ()), ("full", PATCHES), ("full", BIGGAN),
    ("full", (*STYLE, "--resolution", "16", "--grow", "--grow-kimg", "0.04", "--start-resolution", "8"))])
def test_resume_to_the_bit(variant, flags, here):
    flags = (*SMALL, "--backbone", "dcgan", "--variant", variant, *flags)
    run(*flags, "--out", "whole")
    run(*flags, "--out", "parts", until=60)
    assert checkpoint_of(here / "parts")["seen"] == 64
    run("--resume", "parts")
    assert_equal_runs(here / "whole", here / "parts")
    rows, terms = rows_of("whole/log.csv"), {"L_fm", "L_cycle", "L_MMD"}
    assert {*rows[0]} & terms == (terms if variant == "full" else set())
    assert all(math.isfinite(float(v)) for k, v in rows[-1].items() if k != "images/s")


def test_an_old_run_goes_on_with_both_kinds_of_codes(here):
    run(*SMALL, "--backbone", "dcgan", "--gan-codes", "both", "--kimg", "0.032", "--out", "old")
    change(here / "old", without=["gan_codes"])         # a run from before the flag
    assert invgan.parse_args(["--resume", "old"]).gan_codes == "both"
    assert invgan.parse_args([]).gan_codes == "prior"


def test_stylegan_at_its_size(here, monkeypatch):
    seen = watch(monkeypatch, lambda model, _, x, call: (model.G.top, *x.shape[2:]), invgan, "train_step")
    run(*STYLE, "--resolution", 16, "--kimg", "0.016", "--out", "run")
    assert seen == [(2, 16, 16)] * 2                    # from the first step on
    model = invgan.load("run")
    assert (model.G.top, model.D.net.top, model.num_layers) == (2, 2, 6)


def test_styles_of_one_image_in_another(here):
    run(*STYLE, "--resolution", 16, "--kimg", "0.008", "--out", "run")
    view = evaluation.View("run", options(n=2))
    (a, b), model = view.images([0, 1]), view.model
    picture = evaluation.rows(evaluation.draw_styles(view, torch.stack([a, b]), options(n=1)).rows)
    columns = [a, *(model.generate(torch.cat([model.encode(b[None])[:, None].expand(-1, k, -1),
                                              model.encode(a[None])[:, None].expand(-1, 6 - k, -1)], 1))[0]
                    for k in range(7)), b]
    assert (columns[1] - columns[7]).abs().mean() > 1e-3
    np.testing.assert_allclose(picture, common.grid(torch.stack(columns), 9), atol=1)


@pytest.mark.parametrize("backbone", ["dcgan", "biggan"])
def test_compiled_passes_agree_with_plain_ones(backbone):
    def losses(fast):
        torch.manual_seed(0)
        model = invgan.InvGAN(backbone, (1, 32, 32), 8, 8, 64)
        size = 32
        if backbone == "biggan":        # of fewer blocks, because compiling them takes the time
            model.G.blocks, model.D.net.blocks, size = model.G.blocks[:1], model.D.net.blocks[::2], 8
            model.D.net.blocks[0].down = False
        nets = tuple(map(fast, (model.M, model.G, model.D)))
        opt = Namespace(**{name: common.adam(net, 1e-3, (0.0, 0.99)) for name, net in model.named_children()})
        args = invgan.parse_args(["--backbone", backbone, "--gamma", "1"])
        x, draw = torch.randn(8, 1, size, size), torch.Generator().manual_seed(0)
        return [torch.stack(invgan.train_step(nets, opt, x.clone(), draws(lambda n: torch.randn(
            n, 8, generator=draw)), args)) for _ in range(3)]
    for plain, compiled in zip(losses(lambda net: net), losses(lambda net: torch.compile(net, backend="aot_eager")),
                               strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-5)


def test_stylegan_that_grows(here):
    run(*STYLE, "--resolution", 16, "--grow", "--grow-kimg", "0.04", "--start-resolution", 8, "--out", "run")
    assert [row["level"] for row in rows_of("run/log.csv")] == ["1", "2", "2"]
    assert invgan.load("run").G.top == 2


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_spectral_norm_after_training(weights, here, monkeypatch):
    monkeypatch.setattr(common, "EMA_EVERY", 8)
    run(*BIGGAN, "--lr", "0.02", "--lr-d", "0.02", "--out", "run")
    model = invgan.load("run", weights=weights)
    # One power iteration a step leaves raw weights 0.05 to 0.07 off; averages that are not normalised anew, 0.5
    assert sizes_of(model.G, model.D) == pytest.approx(dict.fromkeys(layers_of(model.G, model.D), 1), abs=0.2)


def test_patches_of_biggan(here, script):
    run(*BIGGAN, "--out", "run")
    args = json.loads(Path("run/args.json").read_text())
    assert (args["image_shape"], args["train_images"], args["patches"]) == ([1, 32, 32], 37 * 2, 32)
    for weights, key in (("raw", "model"), ("ema", "ema")):
        model, state = invgan.load("run", weights=weights), checkpoint_of(here / "run")["state"][key]
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert not model.training
    script("eval.py", "metrics", "run", "--only", "errors", "latent", "-n", 6, "--json", "m.json")
    x = common.to_float(data.load("set.zip", resolution="64x32")[1].pixels)         # 3 images, two tiles each
    x = torch.stack([t for image in x for t in (image[:, :, :32], image[:, :, 32:])])
    mae = (model.generate(model.encode(x)) - x).abs().mean().item()
    assert json.loads(Path("m.json").read_text())["run"]["errors"]["mae"] == pytest.approx(mae, rel=1e-4)


def test_two_processes(here):
    """Their weights stay equal, and are those of one process where no batch norm and no MMD looks at half a batch."""
    mlp = {"naive-mlp": ["--variant", "naive"], "augmented-mlp": ["--variant", "augmented"],
           "full-mlp": ["--mmd-weight", "0"]}
    runs = {**{name: ["--backbone", "mlp", *flags] for name, flags in mlp.items()}, "biggan": BIGGAN,
            **{variant: ["--variant", variant, "--backbone", "dcgan"] for variant in VARIANTS},
            "stylegan": [*STYLE, "--resolution", "8"]}
    runs = {name: [*SMALL, *flags, "--snapshot-kimg", "9", "--kimg", "0.064"] for name, flags in runs.items()}
    (here / "all.py").write_text(f"""if True:
        import functools, os, sys
        sys.path.insert(0, {str(ROOT)!r})
        import torch, common, data, invgan
        torch.set_num_threads(1)
        common.curves = common.dist.destroy_process_group = lambda *_: None     # the next run goes on with the group
        data._mnist_mini, finish = functools.cache(data._mnist_mini), common.Run.finish
        def keep(self):
            state = {{f"{{k}}.{{name}}": v for k in ("model", "ema") for name, v in self.state[k].state_dict().items()}}
            torch.save(state, f"{{self.folder}}-{{os.environ['RANK']}}.pt")
            finish(self)
        common.Run.finish = keep
        def main():
            for name, flags in {runs!r}.items():
                invgan.main([*flags, "--out", name])
        common.command(main)
        """)
    done = subprocess.run([*TWO, "all.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in runs:
        a, b = (torch.load(f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert [k for k, v in a.items() if not torch.equal(v, b[k])] == [], name
    for name in mlp:
        run(*runs[name], "--out", f"{name}-one")
        torch.manual_seed(0)
        start = invgan.InvGAN("mlp", (1, 28, 28), 8, 8, 16).state_dict()
        two = checkpoint_of(here / name)["state"]["model"]
        for k, v in checkpoint_of(here / f"{name}-one")["state"]["model"].items():      # but for the order of sums
            moved = (v - start[k]).abs().mean()
            assert moved > 1e-4, k
            assert (v - two[k]).abs().mean() < 0.01 * moved, k


# ---------------------------------------------------------------------------------------------- what the loop does

def test_modes_rates_and_betas(here, monkeypatch):
    seen = watch(monkeypatch, modes, invgan, "train_step")
    for flags, rate, rate_of_D, betas in (
            ((*SMALL, "--backbone", "mlp", "--lr", "0.003"), 0.003, 0.003, (0.5, 0.999)),
            ((*SMALL, "--backbone", "dcgan", "--lr-d", "0.005"), 0.012, 0.005, (0.0, 0.99)),
            ((*STYLE, "--resolution", 8, "--lr-d", "0.005"), 0.0015, 0.005, (0.0, 0.99)),
            (BIGGAN, 0.001, 0.002, (0.0, 0.999)),
            ((*BIGGAN, "--lr-d", "0", "--out", "run"), 0.001, 0.001, (0.0, 0.999))):        # the others'
        seen.clear()
        run(*flags, "--kimg", "0.008")
        assert seen == [([(rate, betas)] * 2 + [(rate_of_D, betas)], {*"MGD"}, {*"MGD"})]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision(precision, here, monkeypatch):
    seen = watch(monkeypatch, autocasts, invgan, "train_step")
    run(*SMALL, "--kimg", "0.016", "--precision", precision, "--out", "run")
    assert seen == [precision == "bf16"]


def test_m_learns_at_a_hundredth_of_the_rate():
    for backbone in SHAPES:
        _, model, opt, _ = small("--backbone", backbone)
        common.update(model.M(torch.randn(4, 8)).sum(), opt.M)
        moved = model.M.layers[0](torch.zeros(1, 8))                                    # zero before
        torch.testing.assert_close(moved.abs().max(), torch.tensor(0.001 * 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("backbone", ["dcgan", "biggan", "growing"])
def test_averages(backbone, here, monkeypatch):
    """Their half-life is a fifth of the images shown since the run, or its level, began."""
    flags = {"dcgan": (*SMALL, "--backbone", "dcgan"), "biggan": (*BIGGAN, "--batch", "16"),
             "growing": (*STYLE, "--batch", "16", "--resolution", "16", "--grow", "--grow-kimg", "0.016",
                         "--start-resolution", "8")}[backbone]
    steps, shown = averages(monkeypatch, 1024 if backbone == "growing" else 16)         # growing: after each step
    run(*flags, "--kimg", "0.064", "--snapshot-kimg", "1", "--out", "run")
    assert_averaged(steps, shown, 16, [0, 16, 0, 16] if backbone == "growing" else [0, 16, 32, 48])


@pytest.mark.parametrize("name", ["stylegan", "patches", "dcgan"])
def test_two_processes_share_what_is_drawn(name, here, monkeypatch):
    def look(model, optimizers, x, call):
        z = call.draw.z(len(x) // 2)
        return [x, z, *(noise_of(model.G, call.nets[1], z, monkeypatch) if name == "stylegan" else ())]
    flags = {"stylegan": (*STYLE, "--resolution", 8), "patches": (*BIGGAN, "--resolution", "64x64"),
             "dcgan": (*SMALL, "--backbone", "dcgan")}[name]
    one, *two = shares_of(flags, look, "train_step", invgan, monkeypatch)
    assert_shared(one, *two)
    assert len(one) == (2 + 4 if name == "stylegan" else 2)
    assert all(abs(eta.mean()) < 0.5 and abs(eta.std() - 1) < 0.3 for eta in one[2:])


def test_the_mean_w():
    args, model, opt, x = small("--backbone", "stylegan")
    M, codes = copy.deepcopy(model.M), []
    step(model, opt, x, lambda n: codes.append(torch.randn(n, 8)) or codes[-1], args)
    torch.testing.assert_close(model.mean_w, 0.005 * M(codes[1]).mean(0))


def test_the_rates_and_the_images_of_a_level(here, monkeypatch):
    complete, rates = common.complete_levels, []
    monkeypatch.setattr(common, "complete_levels", lambda *given: complete(*given, rates=(0.001, 0.002, 0.004)))
    seen = watch(monkeypatch, lambda model, optimizers, x, *_: rates.append(modes(model, optimizers)[0])
                 or x.detach().clone(), invgan, "train_step")
    run(*STYLE, "--resolution", 16, "--grow", "--grow-kimg", "0.008", "--start-resolution", 8, "--kimg", "0.032",
        "--lr", "0.001", "--lr-d", "0.003", "--out", "run")
    assert [lr for groups in rates for lr, _ in groups] == pytest.approx(
        2 * [0.0005, 0.0005, 0.0015] + 2 * [0.001, 0.001, 0.003])
    assert [v.shape[2] for v in seen] == [8, 8, 16, 16]
    x = seen[2]                                                                         # alpha is 0
    torch.testing.assert_close(x, common.upscale(nn.functional.avg_pool2d(x, 2)))


def test_statistics_are_averaged_over_processes_before_the_average_takes_them(here, monkeypatch):
    calls = []
    monkeypatch.setattr(common, "average_buffers", lambda model: calls.append(model))
    monkeypatch.setattr(common, "update_ema", lambda ema, model, *_, **__: calls.append(model))
    run(*SMALL, "--kimg", "0.016", "--out", "run")
    assert len(calls) == 2
    assert calls[0] is calls[1]
