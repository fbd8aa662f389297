"""Checkpoints in the layout of ALAE's authors: read into runs, and written from them.

The writer and the networks below are worked out from the layout alone; nothing of them is the code's.
"""
import json
import math

import pytest
import torch
import torch.nn.functional as nnf
from conftest import checkpoint_of, fill, noisy, rows_of, run_here

import alae
import common

NETS = dict(F="mapping_fl", G="generator", E="discriminator", D="mapping_tl")
ROOT2 = math.sqrt(2)
BLUR = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


def make(size=8, fmap_base=64, fmap_max=512, nz=6, nw=8, channels=3, **kwargs):
    """A StyleALAE of the released code's layers, with random weights everywhere."""
    torch.manual_seed(0)
    kwargs = dict(d_act="none", layers="released") | kwargs
    model = alae.ALAE("stylegan", (channels, size, size), nz, nw, 1, fmap_base=fmap_base, fmap_max=fmap_max, **kwargs)
    noisy(model).mean_w.normal_()
    return model.eval().requires_grad_(False)


def write(path, model, raw=None, **more):
    """A public checkpoint of our networks, key by key."""
    models = {}
    for ending, source in dict(_s=model, **({"": raw} if raw else {})).items():
        ours, levels, nw = source.state_dict(), source.G.levels, source.nw
        sizes = [source.G.blocks[i].conv.weight.shape[0] for i in range(levels)]
        F, G, E, D = {}, {}, {}, {}
        for i in range(8):
            t = ours[f"F.layers.{i}.weight"]
            F[f"map_blocks.{i}.fc.weight"] = t * (ROOT2 * 0.1 / math.sqrt(t.shape[1]))
            F[f"map_blocks.{i}.fc.bias"] = ours[f"F.layers.{i}.bias"] * 0.1
        for i in range(3):
            t, b = ours[f"D.layer{i + 1}.weight"] * (0.1 / math.sqrt(nw)), ours[f"D.layer{i + 1}.bias"] * 0.1
            if i == 2:
                t_, b_, t, b = t, b, torch.randn(2 * nw, nw), torch.randn(2 * nw)       # which nobody reads
                t[nw], b[nw] = t_[0], b_[0]
            D[f"map_blocks.{i}.weight"], D[f"map_blocks.{i}.bias"] = t, b
        G["const"] = ours["G.blocks.0.constant"][None]
        for i, c in enumerate(sizes):
            k, below = levels - 1 - i, sizes[max(i - 1, 0)]
            for n in (1, 2):
                layer = f"G.blocks.{i}.layer{n}"
                G[f"decode_block.{i}.bias_{n}"] = ours[f"{layer}.bias"][None]
                G[f"decode_block.{i}.noise_weight_{n}"] = ours[f"{layer}.noise_gain"][None]
                G[f"decode_block.{i}.style_{n}.weight"] = ours[f"{layer}.style.weight"] / math.sqrt(nw)
                G[f"decode_block.{i}.style_{n}.bias"] = ours[f"{layer}.style.bias"]
            if i:
                t = ours[f"G.blocks.{i}.up.weight"] * (ROOT2 / math.sqrt(9 * below))
                if 4 * 2**i >= 128:
                    t = t.permute(1, 0, 2, 3).flip(2).flip(3).contiguous()
                G[f"decode_block.{i}.conv_1.weight"] = t
            G[f"decode_block.{i}.conv_2.weight"] = ours[f"G.blocks.{i}.conv.weight"] * (ROOT2 / math.sqrt(9 * c))
            G[f"decode_block.{i}.blur.weight"] = BLUR.expand(c, 1, 3, 3)
            G[f"to_rgb.{i}.to_rgb.weight"] = ours[f"G.to_rgb.{i}.weight"] * (0.03 / math.sqrt(c))
            G[f"to_rgb.{i}.to_rgb.bias"] = ours[f"G.to_rgb.{i}.bias"]
            for n, (name, width) in enumerate(dict(conv=c, down=below).items(), 1):
                E[f"encode_block.{k}.conv_{n}.weight"] = ours[f"E.blocks.{i}.{name}.weight"] * (ROOT2 / math.sqrt(9 * c))
                E[f"encode_block.{k}.bias_{n}"] = ours[f"E.blocks.{i}.{name}.bias"].reshape(1, -1, 1, 1)
                C = f"E.C.{2 * i + n - 1}"
                E[f"encode_block.{k}.style_{n}.weight"] = ours[f"{C}.weight"] / math.sqrt(2 * width)
                E[f"encode_block.{k}.style_{n}.bias"] = ours[f"{C}.bias"]
            E[f"encode_block.{k}.blur.weight"] = BLUR.expand(c, 1, 3, 3)
            t = ours[f"E.from_rgb.{i}.weight"]
            E[f"from_rgb.{k}.from_rgb.weight"] = t * (ROOT2 / math.sqrt(t.shape[1]))
            E[f"from_rgb.{k}.from_rgb.bias"] = ours[f"E.from_rgb.{i}.bias"]
        models.update({f"{NETS[name]}{ending}": net for name, net in zip("FGED", (F, G, E, D))})
    models["dlatent_avg"] = dict(buff=model.mean_w.repeat(2 * model.G.levels, 1))
    models = {name: {key: t.clone() for key, t in net.items()} for name, net in models.items()}
    torch.save(dict(models=models, **more), path)
    return models


# ------------------------------------------------------------------------------- their networks, on their tensors

def lrelu(x):
    return nnf.leaky_relu(x, 0.2)


def up(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def blurred(x):
    return nnf.conv2d(x, BLUR.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])


def linear(net, key, x):
    return x @ net[f"{key}.weight"].T + net[f"{key}.bias"]


def their_F(net, z):
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for i in range(8):
        x = lrelu(linear(net, f"map_blocks.{i}.fc", x))
    return x


def their_D(net, w):
    for i in range(3):
        w = linear(net, f"map_blocks.{i}", w)
    return w[:, w.shape[1] // 2, None]


def their_G(net, w, noise, level, alpha):
    def rgb(i, x):
        return nnf.conv2d(x, net[f"to_rgb.{i}.to_rgb.weight"], net[f"to_rgb.{i}.to_rgb.bias"])
    x = net["const"].repeat(len(w), 1, 1, 1)
    for i in range(level + 1):
        block, before = f"decode_block.{i}", x
        if i and 4 * 2**i < 128:
            x = blurred(nnf.conv2d(up(x), net[f"{block}.conv_1.weight"], padding=1))
        elif i:                 # a transposed convolution of stride 2 with the kernel's four shifts added up
            k = nnf.pad(net[f"{block}.conv_1.weight"], (1, 1, 1, 1))
            k = k[:, :, 1:, 1:] + k[:, :, :-1, 1:] + k[:, :, 1:, :-1] + k[:, :, :-1, :-1]
            x = blurred(nnf.conv_transpose2d(x, k, stride=2, padding=1))
        for n in (1, 2):
            if n == 2:
                x = nnf.conv2d(x, net[f"{block}.conv_2.weight"], padding=1)
            x = lrelu(x + net[f"{block}.noise_weight_{n}"] * noise[2 * i + n - 1] + net[f"{block}.bias_{n}"])
            x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-8).sqrt()
            scale, shift = linear(net, f"{block}.style_{n}", w)[:, :, None, None].chunk(2, 1)
            x = x * (1 + scale) + shift
    return rgb(level, x) if alpha == 1 else alpha * rgb(level, x) + (1 - alpha) * up(rgb(level - 1, before))


def their_E(net, x, levels, level, alpha):
    def rgb(k, x):              # leaky ReLU twice
        return lrelu(lrelu(nnf.conv2d(x, net[f"from_rgb.{k}.from_rgb.weight"], net[f"from_rgb.{k}.from_rgb.bias"])))
    w, first = 0, levels - 1 - level
    y = rgb(first, x)
    for k in range(first, levels):
        block = f"encode_block.{k}"
        for n in (1, 2):
            if n == 2:
                y = blurred(y)
            y = nnf.conv2d(y, net[f"{block}.conv_{n}.weight"], padding=1)
            if n == 2:
                y = nnf.avg_pool2d(y, 2)
            y = lrelu(y + net[f"{block}.bias_{n}"])
            mean, std = y.mean((2, 3)), y.std((2, 3), correction=0)
            w = w + linear(net, f"{block}.style_{n}", torch.cat([mean, std], 1)) * (alpha if k == first else 1)
            y = (y - mean[:, :, None, None]) / std[:, :, None, None]
        if k == first and alpha < 1:
            y = alpha * y + (1 - alpha) * rgb(k + 1, nnf.avg_pool2d(x, 2))
    return w


def assert_agree(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def equal(a, b):
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


@pytest.mark.parametrize(("size", "fmap_max"), [(32, 512), (64, 256), (128, 256), (128, 512)])
def test_networks_agree_with_theirs(here, capsys, size, fmap_max):
    model = make(size, 2048, fmap_max, nz=6, nw=16)
    models = write("a.pth", model)
    assert models["generator_s"]["const"].shape == (1, fmap_max, 4, 4)
    alae.main(["--official", "a.pth"])
    run = f"runs/alae-official-stylegan-a-{size}"
    out = capsys.readouterr().out
    assert f"{size}x{size}, RGB; {fmap_max} channels at 4 px to {4096 // size} at {size}; z of 6, w of 16" in out
    assert f"python eval.py figure reconstructions {run} --images" in out
    found = alae.load(run)
    F, G, E, D = (models[f"{name}_s"] for name in NETS.values())
    generator = torch.Generator().manual_seed(1)
    x, z, w = (torch.randn(2, *shape, generator=generator) for shape in ((3, size, size), (6,), (16,)))
    noise = [torch.randn(2, 1, *found.G.size(i // 2), generator=generator) for i in range(found.num_layers)]
    assert_agree(found.map(z), their_F(F, z))
    assert_agree(found.D(w), their_D(D, w))
    assert torch.equal(found.mean_w, model.mean_w)
    top = found.G.levels - 1
    for level, alpha in ((top, 1.0), (top, 0.3), (top - 1, 1.0)):
        common.grow(level, alpha, found)
        x = nnf.avg_pool2d(x, x.shape[2] // found.E.size()[0])
        assert_agree(found.G(w, noise), their_G(G, w, noise, level, alpha))
        assert_agree(found.E(x), their_E(E, x, top + 1, level, alpha))
