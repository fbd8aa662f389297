"""The StyleGAN backbone, StyleALAE and growing."""
import math
import os
import signal
import subprocess
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from conftest import (
    ROOT,
    TWO,
    assert_equal_runs,
    assert_two_are_one,
    checkpoint_of,
    draws,
    fill_zip,
    in_double,
    log_of,
    noisy,
    ranks_of,
    run_here,
    start,
    tiny,
    wait_for,
)
from torch.utils._python_dispatch import TorchDispatchMode

import alae
import common
import faae

# ---------------------------------------------------------------------------------------------- layers, by hand


def lrelu(x):
    return np.where(x > 0, x, 0.2 * x)


def test_a_style_layer_by_hand():
    layer = noisy(common.StyleLayer(3, 5, (2, 4)))
    x, w, eta = torch.randn(2, 3, 2, 4), torch.randn(2, 5), torch.randn(2, 1, 2, 4)
    y = lrelu(x.numpy() + layer.noise_gain.detach().numpy() * eta.numpy() + layer.bias.detach().numpy())
    y = (y - y.mean((2, 3), keepdims=True)) / np.sqrt(y.var((2, 3), keepdims=True) + 1e-8)
    style = w.numpy() @ layer.style.weight.detach().numpy().T / math.sqrt(5) + layer.style.bias.detach().numpy()
    expected = (1 + style[:, :3, None, None]) * y + style[:, 3:, None, None]
    np.testing.assert_allclose(layer(x, w, eta).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    fresh = common.StyleLayer(3, 5, (2, 4))
    assert torch.equal(fresh(x, w, eta), fresh(x, w, None))             # noise has no weight at the start
    assert fresh.noise_gain.shape == (3, 1, 1)                          # one a channel


def test_instance_norm():
    x = torch.randn(4, 3, 5, 7, dtype=torch.float64) * 3 + 2
    y, mean, std = common.moments(x)
    np.testing.assert_allclose(mean.flatten().numpy(), x.numpy().mean((2, 3)).ravel())
    np.testing.assert_allclose(std.flatten().numpy(), x.numpy().std((2, 3)).ravel(), rtol=1e-6)
    torch.testing.assert_close(y + mean, x)
    constant = torch.full((1, 1, 4, 4), 3.0, requires_grad=True)
    y, _, std = common.moments(constant)
    ((y / std).sum() + std.sum()).backward()
    assert constant.grad.isfinite().all()
    assert std.item() == pytest.approx(1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_make_no_map_of_another_type_or_order(dtype):
    """Next to channels_last, adding a map in the plain order takes several times as long."""
    maps = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape == x.shape and 0 not in out.stride():
                maps.append((out.dtype, out.is_contiguous(memory_format=torch.channels_last)))
            return out
    layer, w, eta = noisy(common.StyleLayer(3, 5, (4, 8))), torch.randn(2, 5), torch.randn(2, 1, 4, 8)
    x, g = (torch.randn(2, 3, 4, 8).to(dtype).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    with Watch():
        layer(x, w, eta).backward(g)
        y, mu, sigma = common.moments(x)
        torch.autograd.grad([y, mu, sigma], [x], [g, torch.ones_like(mu), torch.ones_like(sigma)])
    assert len(maps) > 20
    assert set(maps) == {(dtype, True)}


def test_blur_and_scaling():
    spot = torch.zeros(1, 1, 5, 5)
    spot[0, 0, 2, 2] = 16
    assert common.blur(spot)[0, 0, 1:4, 1:4].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    small = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(common.blur, small)
    assert torch.autograd.gradgradcheck(common.blur, small)
    x = torch.randn(2, 3, 8, 6)
    for kind in (common.UpConv, common.DownConv):
        plain, fused = (kind(3, 5, 1.5, fused=f) for f in (False, True))
        noisy(plain)
        fused.load_state_dict(plain.state_dict())
        torch.testing.assert_close(plain(x), fused(x), rtol=1e-5, atol=1e-5)
    scaled = plain.weight * 1.5 / math.sqrt(27)                         # equalised
    torch.testing.assert_close(plain(x), nnf.avg_pool2d(nnf.conv2d(x, scaled, plain.bias, padding=1), 2))
    up = noisy(common.UpConv(3, 5, 1.5, fused=False))
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), nnf.conv2d(doubled, up.weight * 1.5 / math.sqrt(27), padding=1))


@pytest.mark.parametrize("kind", [common.UpConv, common.DownConv])
def test_fused_scaling_is_scaling(kind):
    """Values, gradients, and the gradients of an R1 penalty, in fp64."""
    plain, fused = (kind(3, 5, 1.5, fused=f).double() for f in (False, True))
    noisy(plain)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64, requires_grad=True)
    found = []
    for layer in (plain, fused):
        y = layer(x)
        score = y.square().sum()        # has a second derivative
        penalty = torch.autograd.grad(score, x, create_graph=True)[0].square().sum()
        found += [(y, *torch.autograd.grad(score, [x, *layer.parameters()], retain_graph=True),
                   *torch.autograd.grad(penalty, [x, *layer.parameters()]))]
    torch.testing.assert_close(*found)


def test_fused_from_16():
    G, critic = common.StyleGenerator(8, (3, 64, 64), width=64), common.StyleCritic((3, 64, 64), 1, width=64)
    assert [b.up.fused for b in G.blocks[1:]] == [False] + [True] * 3               # 8; 16, 32, 64
    assert [b.down.fused for b in critic.blocks] == [False] + [True] * 3


def test_synthesis_by_hand():
    """Level 0 and 1: constant, layer, convolution, layer; up-scaling, convolution, blur, layer, convolution, layer."""
    G = noisy(common.StyleGenerator(6, (3, 8, 8), width=128))
    w, eta = torch.randn(2, 4, 6), [torch.randn(2, 1, s, s) for s in (4, 4, 8, 8)]
    a, b = G.blocks
    root = math.sqrt(2)

    def conv(x, weight):
        return nnf.conv2d(x, weight * root / math.sqrt(weight.shape[1] * 9), padding=1)
    x = a.layer1(a.constant[None].repeat(2, 1, 1, 1), w[:, 0], eta[0])
    x = a.layer2(conv(x, a.conv.weight), w[:, 1], eta[1])
    x = b.layer1(common.blur(conv(common.upscale(x), b.up.weight)), w[:, 2], eta[2])
    x = b.layer2(conv(x, b.conv.weight), w[:, 3], eta[3])
    rgb = torch.einsum("nchw,oc->nohw", x, G.to_rgb[1].weight[:, :, 0, 0]) / math.sqrt(4)
    torch.testing.assert_close(G(w, eta), rgb + G.to_rgb[1].bias[:, None, None], rtol=1e-4, atol=1e-4)
    assert a.conv.bias is None                                          # noise comes before the only bias


def test_start_values():
    G = common.StyleGenerator(8, (3, 16, 16))
    assert all(b.constant.eq(1).all() for b in G.blocks[:1])
    for name, p in G.named_parameters():
        if name.endswith(("bias", "noise_gain")):
            assert not p.any(), name
        elif "constant" not in name:
            assert p.std().item() == pytest.approx(1, abs=0.15), name   # N(0, 1), scaled at run time


def test_noise_modes():
    G = noisy(common.StyleGenerator(8, (1, 16, 16), width=64))
    w = torch.randn(2, 8)
    assert torch.equal(G(w, "fixed"), G(w, "fixed"))
    assert not torch.equal(G(w, "random"), G(w, "random"))
    assert torch.equal(G(w, "none"), G(w, [torch.zeros(2, 1, s, s) for s in (4, 4, 8, 8, 16, 16)]))
    assert not torch.equal(G(w, "none"), G(w, "fixed"))
    again = common.StyleGenerator(8, (1, 16, 16), width=64)
    again.load_state_dict(G.state_dict())
    assert torch.equal(G(w, "fixed"), again(w, "fixed"))                # fixed noise is saved
    one = [eta[:1] for eta in G.draw_noise(2, torch.Generator().manual_seed(3))]
    assert torch.equal(one[0], G.draw_noise(2, torch.Generator().manual_seed(3))[0][:1])


def test_sizes():
    channels = [common.style_channels(level) for level in range(9)]
    assert channels == [512, 512, 512, 512, 256, 128, 64, 32, 16]
    assert [common.style_channels(level, 1, 4096) for level in range(7)] == [512, 512, 512, 256, 128, 64, 32]
    assert [common.style_channels(level, 8) for level in (0, 4)] == [64, 32]
    car = common.StyleGenerator(8, (3, 96, 128), width=64)
    assert (car.base, car.num_layers) == ((3, 4), 12)
    assert car(torch.randn(1, 8)).shape == (1, 3, 96, 128)
    assert common.StyleGenerator(8, (3, 128, 128), width=64).num_layers == 12


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_at_1024():
    """The released code's: F 2.10, G 24.12, E 26.97, D 1.05 million.

    As printed, eq. 9 has no biases (18 x 512 less), and D ends in one unit, not in 1,024 of which one is read.
    """
    with torch.device("meta"):
        released = alae.ALAE("stylegan", (3, 1024, 1024), 512, 512, 1, "none", layers="released")
        paper = alae.ALAE("stylegan", (3, 1024, 1024), 512, 512, 1, "lrelu")
    assert [round(count(m) / 1e6, 2) for m in (released.F, released.G, released.E)] == [2.10, 24.12, 26.97]
    assert [count(m) for m in (paper.F, paper.G)] == [count(released.F), count(released.G)]
    assert count(released.E) - count(paper.E) == 18 * 512
    assert count(paper.D) == count(released.D) == 2 * 513 * 512 + 513
    assert round((count(paper.D) + 513 * 1023) / 1e6, 2) == 1.05
    assert paper.num_layers == 18


# --------------------------------------------------------------------------------------------------- what grows

def pair(make):
    """A network for 16 px at level 2, and one for 8 px with the same weights in its levels."""
    large, small = noisy(make(16)), make(8)
    values = large.state_dict()
    small.load_state_dict({k: v for k, v in values.items() if k in small.state_dict()}, strict=False)
    small.grow(1, 1.0)
    return large, small


def test_the_generator_grows():
    large, small = pair(lambda size: common.StyleGenerator(6, (3, size, size), width=64))
    w, noise = torch.randn(2, 6, 6), [torch.randn(2, 1, s, s) for s in (4, 4, 8, 8, 16, 16)]
    whole = large(w, noise)
    large.grow(2, 0.0)
    assert torch.equal(large(w, noise), common.upscale(small(w[:, :4], noise)))
    large.grow(2, 0.25)
    torch.testing.assert_close(large(w, noise), 0.75 * common.upscale(small(w[:, :4], noise)) + 0.25 * whole)
    large.grow(2, 1.0)
    assert torch.equal(large(w, noise), whole)
    large.grow(1, 1.0)
    assert torch.equal(large(w, noise), small(w[:, :4], noise))
    assert large.full(large(w, noise)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("make", [
    lambda size: common.StyleCritic((3, size, size), 2, width=64),
    lambda size: alae.StyleEncoder((3, size, size), 6, 64, 8192, "paper"),
    lambda size: alae.StyleEncoder((3, size, size), 6, 64, 8192, "released")])
def test_critic_and_encoder_grow(make):
    large, small = pair(make)
    x = torch.randn(4, 3, 16, 16)
    whole = large(x)
    large.grow(2, 0.0)
    torch.testing.assert_close(large(x), small(nnf.avg_pool2d(x, 2)), rtol=1e-5, atol=1e-5)
    large.grow(2, 0.5)
    assert not torch.allclose(large(x), whole)
    large.grow(2, 1.0)
    assert torch.equal(large(x), whole)


def test_the_critic_by_hand():
    D = noisy(common.StyleCritic((3, 8, 8), 2, width=128))
    x, (block,) = torch.randn(8, 3, 8, 8), D.blocks

    def act(y):
        return torch.where(y > 0, y, 0.2 * y)

    def conv(layer, y):
        scale = math.sqrt(2 / layer.weight[0].numel())
        return nnf.conv2d(y, layer.weight * scale, layer.bias, padding=layer.weight.shape[2] // 2)

    def dense(layer, y, gain):
        return y @ layer.weight.T * gain / math.sqrt(y.shape[1]) + layer.bias

    y = act(conv(block.conv, act(conv(D.from_rgb[1], x))))
    y = act(nnf.avg_pool2d(conv(block.down, common.blur(y)), 2))
    std = torch.stack([(y[m::2].var(0, correction=0) + 1e-8).sqrt().mean() for m in (0, 1)] * 4)    # groups of four
    y = torch.cat([y, std[:, None, None, None].expand(8, 1, 4, 4)], 1)
    f = act(dense(D.dense, act(conv(D.conv, y)).flatten(1), math.sqrt(2)))
    torch.testing.assert_close(D(x), dense(D.head, f, 1), rtol=1e-4, atol=1e-4)


def test_real_images_fade():
    E = common.StyleCritic((1, 16, 16), 1, width=64)
    x = torch.rand(2, 1, 32, 32)
    at_16 = x.view(2, 1, 16, 2, 16, 2).mean((3, 5))
    coarse = at_16.view(2, 1, 8, 2, 8, 2).mean((3, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    for alpha in (0.0, 0.3, 1.0):
        E.grow(2, alpha)
        torch.testing.assert_close(E.fit(x), alpha * at_16 + (1 - alpha) * coarse)
    E.grow(0, 1.0)
    torch.testing.assert_close(E.fit(x)[:, 0, 1, 1], x[:, 0, 8:16, 8:16].mean((1, 2)))


def test_equation_9():
    """w = sum_i C_i [mu(y_i); sigma(y_i)], N = 2 a block, summed directly."""
    E = noisy(alae.StyleEncoder((3, 8, 8), 6, 64, 8192, "paper"))
    x, root = torch.randn(2, 3, 8, 8), math.sqrt(2)
    y = nnf.leaky_relu(nnf.conv2d(x, E.from_rgb[1].weight * root / math.sqrt(3), E.from_rgb[1].bias), 0.2)
    w = 0
    for i in (1, 0):
        block = E.blocks[i]
        for k, conv in enumerate((block.conv, block.down)):
            y = common.blur(y) if k else y
            y = nnf.conv2d(y, conv.weight * root / math.sqrt(8 * 9), padding=1)
            y = (nnf.avg_pool2d(y, 2) if k else y) + conv.bias[:, None, None]
            y = nnf.leaky_relu(y, 0.2)
            mu, sigma = y.mean((2, 3)), y.std((2, 3), correction=0)
            C = E.C[2 * i + k]
            w = w + torch.cat([mu, sigma], 1) @ C.weight.T / math.sqrt(16)
            y = (y - mu[..., None, None]) / sigma[..., None, None]
    torch.testing.assert_close(E(x), w, rtol=1e-4, atol=1e-3)
    assert len(E.C) == 4
    assert all(C.bias is None for C in E.C)
    assert E.features(x)[1].shape == (2, 4 * 16)


@pytest.mark.parametrize("value", [-1, -1 / 255, 1 / 255, 1])
def test_flat_images_have_finite_gradients(value):
    E = alae.StyleEncoder((3, 32, 32), 6, 64, 8192, "paper")
    x = torch.full((2, 3, 32, 32), float(value), requires_grad=True)
    for block in E.blocks:
        torch.nn.init.zeros_(block.conv.weight[0])      # a channel without deviation: padding makes all others uneven
    gradient, = torch.autograd.grad(E(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in E.parameters() if p.grad is not None)


def test_minibatch_std_by_hand():
    x = torch.randn(8, 3, 2, 2)
    y = common.minibatch_std(x, 4)
    assert torch.equal(y[:, :3], x)
    for m in range(2):                                                  # StyleGAN's groups are m, m + 2, m + 4, m + 6
        expected = np.sqrt(x[m::2].numpy().var(0) + 1e-8).mean()
        np.testing.assert_allclose(y[m::2, 3].numpy(), expected, rtol=1e-5)
    assert common.minibatch_std(x[:6], 4).shape == (6, 4, 2, 2)         # groups of two
    assert not common.minibatch_std(x[:1], 4)[:, 3].gt(1e-3).any()


def test_style_mixing():
    n, top = 20_000, 4
    w, others = torch.zeros(n, 1), torch.ones(n, 1)
    draw = torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
    mixed = common.mix_styles(w, others, top, 0.9, draw)[:, :, 0]
    assert mixed.shape == (n, 10)
    assert torch.equal(mixed.sort(1).values, mixed)                     # the first code's layers come first
    cut = 10 - mixed.sum(1)
    assert (cut == 10).float().mean().item() == pytest.approx(0.1, abs=0.01)
    shares = torch.stack([(cut == k).float().mean() for k in range(1, 10)])
    torch.testing.assert_close(shares, torch.full((9,), 0.1), rtol=0, atol=0.01)        # 1 ... 9, alike
    assert not common.mix_styles(w, others, top, 0.0, draw).any()


# --------------------------------------------------------------------------------------------------- the schedule

def schedule(size, world, *flags):
    args = alae.parse_args(["--backbone", "stylegan", *map(str, flags)])
    args.image_shape = (3, size, size)
    common.complete_levels(args, args.image_shape, world)
    return common.growth_of(args), args


@pytest.mark.parametrize(("world", "batches"), [
    (8, [512, 256, 128, 64, 32, 32, 32, 32, 32]), (4, [512, 256, 128, 64, 32, 32, 32, 32, 16]),
    (2, [512, 256, 128, 64, 32, 32, 16, 8, 4]), (1, [512, 256, 128, 64, 32, 16, 8, 4, 2])])
def test_the_papers_schedule(world, batches):
    growth, args = schedule(1024, world)
    assert (args.kimg, args.grow_kimg, args.batch, args.lr) == (10_000, 500, batches[-1], 0.003)
    assert growth.batches == batches
    assert growth.rates == [0.0015] * 6 + [0.002, 0.003, 0.003]
    for kimg, level, alpha in ((0, 0, 1), (999, 0, 1), (1000, 1, 0), (1250, 1, 0.5), (1500, 1, 1), (1999, 1, 1),
                               (2000, 2, 0), (8000, 8, 0), (8400, 8, 0.8), (8500, 8, 1), (30_000, 8, 1)):
        assert growth.at(1000 * kimg)[:2] == (level, pytest.approx(alpha)), kimg
        assert growth.plan(1000 * kimg) == (batches[level], (4 << level,) * 2)
    assert growth.since(2_000_700) == 700
    assert growth.since(700) == 700


def test_other_lengths():
    growth, args = schedule(32, 1, "--kimg", 20)
    assert args.grow_kimg == 2
    assert [growth.at(1000 * k)[0] for k in (0, 3.9, 4, 8, 12, 19.9)] == [0, 0, 1, 2, 3, 3]
    growth, _ = schedule(1024, 1, "--kimg", 0.4)                         # eight steps a part, or more
    assert growth.batches == [2] * 9
    _, args = schedule(32, 1, "--grow-kimg", 3)
    assert args.kimg == 30
    growth, args = schedule(32, 1, "--grow-kimg", 3, "--kimg", 100, "--start-resolution", 8)
    assert [growth.at(1000 * k)[0] for k in (0, 5.9, 6, 12, 99)] == [1, 1, 2, 3, 3]
    growth, args = schedule(64, 2, "--batch", 6, "--lr", 0.003, "--grow-kimg", 1)
    assert growth.batches == [96, 48, 24, 12, 6]
    assert growth.rates == [0.003] * 5
    growth, _ = schedule(32, 1, "--start-resolution", 32)
    assert growth.at(0)[:2] == (3, 1.0)
    growth, args = schedule(64, 3, "--batch", 3, "--kimg", 30)
    assert [b % 3 for b in growth.batches] == [0] * 5
    sine = common.Growth([(4, 4), (8, 8)], [1, 1], [1, 1], 0, 100, sine=True)
    assert [sine.at(200 + s)[1] for s in (0, 25, 50, 100)] == pytest.approx([0, (1 - math.sqrt(0.5)) / 2, 0.5, 1])
    _, args = schedule(128, 3)
    assert args.batch == args.batches[-1] == 33
    with pytest.raises(common.Error, match="--start-resolution 64 is above the images' 32 px"):
        schedule(32, 1, "--start-resolution", 64)


def test_the_official_recipe():
    args = alae.parse_args(["--backbone", "stylegan", "--recipe", "official"])
    assert (args.fade, args.adam_state, args.layers, args.flip) == ("sine", "fresh", "released", "on")
    model = alae.ALAE(**alae.network_args({**vars(args), "image_shape": (3, 8, 8), "width": 64}))
    assert model.G.to_rgb[0].scale == pytest.approx(0.03 / math.sqrt(8))
    assert model.E.slope == pytest.approx(0.2 * 0.2)
    assert len(model.F.layers) == 8
    for flag in ("--fade=sine", "--adam-state=fresh", "--layers=released", "--flip=on"):
        with pytest.raises(common.Error, match="is for --backbone stylegan"):
            alae.parse_args([flag])
    assert not hasattr(alae.parse_args(["--recipe", "official"]), "flip")


# ------------------------------------------------------------------------------------------------------ a step

STYLE = ("--backbone", "stylegan", "--width", "64")


def test_what_a_step_moves_and_mixes(monkeypatch):
    args, model, opt = tiny(alae, *STYLE, image_shape=(1, 16, 16))
    nets = model.F, model.G, model.E, model.D
    common.grow(1, 0.5, model)
    moved, mixes, codes = [], [], []

    def spy(loss, *opts):
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        common.update(loss, *opts)
        moved.append({k for k, p in model.named_parameters() if not torch.equal(p, before[k])})
    monkeypatch.setattr(alae, "update", spy)

    def z(n):
        codes.append(torch.randn(n, 8))
        return codes[-1]

    def mix(w):
        mixes.append(len(moved))
        return common.mix_styles(w, model.F(torch.randn(4, 8)), 1, 0.9, torch.rand(4, 2))
    alae.train_step(nets, opt, model.see(torch.rand(4, 1, 16, 16)), draws(z, mix), args, mean_w=model.mean_w)
    assert [{k[0] for k in keys} for keys in moved] == [{"E", "D"}, {"F", "G"}, {"G", "E"}]
    assert mixes == [0, 1]                                              # steps I and II
    asleep = ("G.blocks.2", "G.to_rgb.2", "E.blocks.2", "E.from_rgb.2", "E.C.4", "E.C.5")
    assert not any(k.startswith(asleep) for keys in moved for k in keys)
    assert any(k.startswith("G.to_rgb.0") for k in moved[1])            # which fades out
    with torch.no_grad():       # 0.995 of nothing, and 0.005 of the mean F(z) of step I, by the F of that time
        F = tiny(alae, *STYLE, image_shape=(1, 16, 16))[1].F
        torch.testing.assert_close(model.mean_w, 0.005 * F(codes[0]).mean(0))


def test_a_style_step_agrees():
    """Channels last and compiled passes with the plain step, while a level fades in."""
    def losses(prepare=lambda model: model, compiled=False):
        args, model, opt = tiny(alae, *STYLE)
        common.grow(1, 0.5, prepare(model))
        nets = model.F, model.G, model.E, model.D
        if compiled:
            nets = [torch.compile(net, backend="aot_eager") for net in nets]
        torch.manual_seed(3)
        draw = draws(lambda n: torch.randn(n, 8))
        return torch.stack([v.detach() for _ in range(2) for v in alae.train_step(
            nets, opt, torch.rand(4, 1, 8, 8), draw, args)])
    plain = losses()
    last = losses(prepare=lambda model: model.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(losses(compiled=True), plain, rtol=1e-3, atol=1e-4)


def test_each_level_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    args, model, opt = tiny(alae, *STYLE, image_shape=(1, 16, 16))
    nets = common.compiled(model.F, model.G, model.E, model.D)
    compiled = []
    for level, alpha in ((0, 1.0), (1, 0.5), (1, 1.0), (2, 0.3), (2, 0.6), (2, 1.0), (2, 1.0)):
        common.grow(level, alpha, model)
        x = model.see(torch.rand(4, 1, 16, 16))
        alae.train_step(nets, opt, x, draws(lambda n: torch.randn(n, 8)), args)
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    new = [b > a for a, b in pairwise([0, *compiled])]
    assert new == [True, True, True, True, False, True, False]          # none for another alpha


def test_the_models_interface():
    model = tiny(alae, *STYLE, image_shape=(1, 16, 16))[1]
    model.eval()
    x, z = torch.rand(3, 1, 16, 16) * 2 - 1, torch.randn(4, 8)
    for level, alpha in ((0, 1.0), (1, 0.5), (2, 1.0)):
        common.grow(level, alpha, model)
        w = model.map(z).detach().requires_grad_()
        assert model.generate(w).shape == (4, 1, 16, 16)                # whatever the level
        model.generate(w, "none").sum().backward()
        assert w.grad.abs().sum() > 0
        assert model.encode(x).shape == (3, 8)
        assert torch.equal(model.features(x)[0], model.encode(x))
    rows = torch.randn(2, 6, 8)
    other = rows.clone()
    other[:, 5] += 1
    assert model.num_layers == 6
    assert not torch.equal(model.generate(rows), model.generate(other))


# ------------------------------------------------------------------------------------------- the scripts, as typed

SMALL = ("--backbone", "stylegan", "--resolution", "16", "--width", "64", "--nz", "16", "--batch", "8")


@pytest.mark.parametrize(("method", "extra"), [
    (alae, ("--nw", "16", "--recipe", "official")), (faae, ("--objective", "aae"))])
def test_growing_runs_resume_to_the_bit(method, extra, here):
    """Stopped while a level fades in, and again in the step after a new one began."""
    flags = (*SMALL, *extra, "--snapshot-kimg", "0.2", "--kimg", "0.96")
    run_here(method.main, *flags, "--out", "whole")                     # parts of 120 images
    rows = log_of(here / "whole")
    assert [(float(row["kimg"]), int(row["level"])) for row in rows] == [
        (0, 0), (0.21, 0), (0.405, 1), (0.6, 2), (0.8, 2), (0.96, 2)]
    assert all(math.isfinite(float(v)) for row in rows[1:] for v in row.values())

    run_here(method.main, *flags, "--out", "parts", until=300)
    at = checkpoint_of(here / "parts")
    assert (at["seen"], int(at["state"]["model"]["G.level"])) == (300, 1)
    assert 0 < at["state"]["model"]["G.alpha"] < 1
    run_here(method.main, "--resume", "parts", until=490)
    assert checkpoint_of(here / "parts")["seen"] == 496
    run_here(method.main, "--resume", "parts")
    assert_equal_runs(here / "whole", here / "parts")


def test_two_processes_are_one_through_a_growth_step(script, tmp_path):
    words = in_double(tmp_path, "alae.py")
    flags = (*SMALL, "--nw", "16", "--grow-kimg", "0.16", "--snapshot-kimg", "0.32")
    script(*words, *flags, "--kimg", "0.288", "--out", "start")         # level 1 begins at 320 images
    script(*words, "--resume", "start", "--kimg", "0.368", "--out", "one")
    script(*words, "--resume", "start", "--kimg", "0.368", "--out", "two", launcher=TWO)
    start, one, two = (checkpoint_of(tmp_path / name)["state"] for name in ("start", "one", "two"))
    assert (int(start["model"]["G.level"]), int(one["model"]["G.level"])) == (0, 1)
    moved = assert_two_are_one(start, one, two)
    assert min(moved[key] for key in moved if key.endswith("weight") and key[0] in "FD") > 1e-3
    assert min(moved[f"{net}.blocks.{i}.conv.weight"] for net in "GE" for i in (0, 1)) > 1e-3
    assert moved["mean_w"] > 1e-3


CHECK = """if True:
    import sys, torch, torch.distributed as dist
    sys.path.insert(0, sys.argv[1])
    import common
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    critic = common.StyleCritic((1, 8, 8), 1, width=64)
    alone = common.StyleCritic((1, 8, 8), 1, width=64)
    alone.load_state_dict(critic.state_dict())
    optimizer, other = (torch.optim.SGD(c.parameters(), lr=0.1) for c in (critic, alone))
    for n in (8, 4):
        x = torch.randn(n, 1, 8, 8)
        whole = common.mean_softplus(alone(x))
        halves = sum(common.mean_softplus(alone(x[half::2])) for half in (0, 1)) / 2
        # Shares of 4 have the groups of the whole batch, smaller ones have groups of their own
        assert (abs(whole - halves) < 1e-6) == (n == 8)
        common.update(common.mean_softplus(critic(x[dist.get_rank()::2])), optimizer)
        other.zero_grad()
        halves.backward()
        other.step()
        for a, b in zip(critic.parameters(), alone.parameters()):
            torch.testing.assert_close(a, b)
    dist.barrier()
    dist.destroy_process_group()
    """


def test_minibatch_std_of_several_processes(tmp_path):
    (tmp_path / "check.py").write_text(CHECK)
    done = subprocess.run([*TWO, str(tmp_path / "check.py"), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_job(tmp_path, script, victim):
    flags = (*SMALL, "--nw", "16", "--kimg", "500", "--grow-kimg", "0.1", "--snapshot-kimg", "0.2", "--out", "run")
    process = start(tmp_path, *flags, launcher=TWO)
    wait_for(tmp_path / "run" / "log.csv", process, 3)
    os.kill(ranks_of(process)[victim], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "another process of this job has ended" in err or "Signal 9 (SIGKILL)" in err
    script("alae.py", "--resume", "run", "--kimg", checkpoint_of(tmp_path / "run")["seen"] / 1000 + 0.032)


def test_alae_on_other_shapes(script, tmp_path):
    fill_zip(tmp_path / "set.zip", 40)
    script("alae.py", "--data", "set.zip", "--resolution", "32x24", "--width", "64", "--nz", "8", "--nw", "8",
           "--batch", "4", "--kimg", "0.2", "--out", "run")
    model = alae.load(tmp_path / "run")
    assert (model.image_shape, model.G.base) == ((1, 24, 32), (3, 4))
    for size, message in (("48", "not 48"), ("32x20", "not 32x20"), ("8x32", "not 8x32")):
        err = script("alae.py", "--data", "set.zip", "--resolution", size, "--out", "bad", code=2).stderr
        assert message in err
        assert err.count("\n") == 1


def test_refusals(script):
    err = script("faae.py", "--backbone", "stylegan", "--objective", "bigan", code=2).stderr
    assert err == "error: --backbone stylegan is for --objective faae or aae; take another backbone for bigan\n"
    err = script("alae.py", "--grow-kimg", "3", code=2).stderr
    assert "--grow-kimg is for --backbone stylegan" in err


def test_faae_s_networks():
    args = faae.parse_args(["--backbone", "stylegan"])
    model = faae.make_model({**vars(args), "image_shape": (1, 16, 16), "width": 64, "nz": 8})
    z = model.prior(6, torch.Generator().manual_seed(0))
    x = model.generate(z)
    assert (x.min() >= -1, x.max() <= 1, x.shape) == (True, True, (6, 1, 16, 16))
    code = model.encode(x)
    torch.testing.assert_close(code[:1], model.encode(x[:1]))           # E has no minibatch stddev, D has
    x = (x + 1) / 2
    assert not torch.allclose(model.D(x)[:1], model.D(x[:1]))
    rows = z[:, None].expand(-1, model.num_layers, -1)
    torch.testing.assert_close(model.generate(z), model.generate(rows))
    common.grow(1, 0.5, model)                                          # E sees real images as in training
    torch.testing.assert_close(model.encode(x * 2 - 1), model.E(model.G.fit(x)))
