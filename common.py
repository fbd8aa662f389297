"""What methods share, from the papers' parts to the plumbing of a run.

    1  Layers        EqualLinear, EqualConv2d, EqualConvTranspose2d, pixel_norm, Mapping
    2  Backbones     mlp: MLPGenerator, MLPEncoder       dcgan: DCGANGenerator, DCGANEncoder
    3  StyleGAN      Growing, StyleGenerator, StyleCritic, mix_styles;  Growth: the schedule
    4  Losses        mean_softplus, r1
    5  Weights       adam, update, set_rate, Draw, uncompiled, compiled, update_ema
    6  Held out      check_input, fixed_inputs, reconstruct, inversion_errors
    7  Frozen        frozen, VGG
    8  Processes     start, notes, join, watch, rank_zero_first, generator, autocast, average_buffers
    9  Flags         PAPER, CODE, OURS, method_parser, resolve, check_resolution, complete, check_images
    10 The run       Run: folder, log, checkpoint, progress;  read_args, load_model
    11 Pictures      to_float, to_uint8, grid, pairs, snapshot_pictures, open_image, show, curves
    12 Errors        Error, command

Images are float (B, C, H, W) in [-1, 1] from `to_float` on and uint8 before it.
"""
import atexit
import contextlib
import csv
import errno
import hashlib
import importlib
import inspect
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

# How often a torch thread looks for work before it sleeps.  By default it looks so long that, next
# to another busy program, the other threads wait for it: a step took 14 times as long
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")       # what an Apple GPU lacks runs on the CPU

import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import nn


class Error(Exception):
    """A mistake that the user can correct, as one line: what was wrong and what to do."""


# ----------------------------------------------------------------------------------------- 1 Layers

def lrelu(x):
    return nnf.leaky_relu(x, 0.2)


class EqualLinear(nn.Module):
    """y = c W x + m b,  c = gain * m / sqrt(fan_in),  W ~ N(0, 1/m^2),  m = lr_mul.   (ProGAN 4.1)

    c multiplies x, which is smaller than W.  (N, fan_in) -> (N, fan_out).
    """

    def __init__(self, fan_in, fan_out, gain, lr_mul=1.0, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) / lr_mul)
        self.bias = nn.Parameter(torch.zeros(fan_out)) if bias else None
        self.scale = gain * lr_mul / math.sqrt(fan_in)
        self.lr_mul = lr_mul

    def forward(self, x):
        return nnf.linear(x * self.scale, self.weight, None if self.bias is None else self.bias * self.lr_mul)


class EqualConv2d(nn.Module):
    """A convolution with run-time scale c = gain / sqrt(c_in k^2), W ~ N(0, 1).   (ProGAN 4.1)"""

    def __init__(self, c_in, c_out, kernel, gain, stride=1, padding=0, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        self.scale = gain / math.sqrt(c_in * kernel**2)
        self.stride, self.padding = stride, padding

    def forward(self, x):  # [N,c_in,H,W] -> [N,c_out,H/stride,W/stride]
        if x.numel() < self.weight.numel():     # the smaller of the two is scaled
            return nnf.conv2d(x * self.scale, self.weight, self.bias, self.stride, self.padding)
        return nnf.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


class EqualConvTranspose2d(nn.Module):
    """Transposed; k^2 / stride^2 weights of a channel reach an output pixel: its fan-in."""

    def __init__(self, c_in, c_out, kernel, gain, stride=1, padding=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_in, c_out, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.scale = gain * stride / math.sqrt(c_in * kernel**2)
        self.stride, self.padding = stride, padding

    def forward(self, x):  # [N,c_in,H,W] -> [N,c_out,stride*H,stride*W]
        return nnf.conv_transpose2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


def pixel_norm(x):
    """x over its root mean square along dimension 1.   (ProGAN 4.2)"""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Mapping(nn.Module):
    """z -> w: pixel norm, then `depth` equalised layers with leaky ReLU 0.2.  (StyleGAN, fig. 1)"""

    def __init__(self, nz, nw, depth, lr_mul):
        super().__init__()
        widths = [nz] + [nw] * depth
        self.layers = nn.ModuleList(EqualLinear(i, o, gain=math.sqrt(2), lr_mul=lr_mul) for i, o in pairwise(widths))

    def forward(self, z):  # [N,nz] -> [N,nw]
        w = pixel_norm(z)
        for layer in self.layers:
            w = lrelu(layer(w))
        return w


# -------------------------------------------------------------------------------------- 2 Backbones
# A generator maps (N, nw) to images, an encoder images to (N, n_out).  An encoder is a
# trunk, whose output is what the papers call long features, and a linear head.

class MLPGenerator(nn.Module):
    """nw - 1024 - 1024 - C H W, leaky ReLU between; `last`, a function, ends it.   (ALAE 7.1)"""

    def __init__(self, nw, image_shape, width=1, last=None):
        super().__init__()
        hidden = max(1024 // width, 1)
        self.image_shape = tuple(image_shape)
        self.last = last
        self.layer1 = EqualLinear(nw, hidden, gain=math.sqrt(2))
        self.layer2 = EqualLinear(hidden, hidden, gain=math.sqrt(2))
        self.layer3 = EqualLinear(hidden, math.prod(image_shape), gain=1)

    def forward(self, w):
        x = self.layer3(lrelu(self.layer2(lrelu(self.layer1(w))))).unflatten(1, self.image_shape)
        return self.last(x) if self.last else x


class MLPEncoder(nn.Module):
    """C H W - 1024 - 1024 - n_out, the mirror; long features are the second hidden layer."""

    def __init__(self, image_shape, n_out, width=1):
        super().__init__()
        hidden = max(1024 // width, 1)
        self.layer1 = EqualLinear(math.prod(image_shape), hidden, gain=math.sqrt(2))
        self.layer2 = EqualLinear(hidden, hidden, gain=math.sqrt(2))
        self.head = EqualLinear(hidden, n_out, gain=1)

    def trunk(self, x):  # [N,C,H,W] -> [N,1024]
        return lrelu(self.layer2(lrelu(self.layer1(x.flatten(1)))))

    def forward(self, x):
        return self.head(self.trunk(x))


def dcgan_channels(resolution, width=1):
    """Channels at 4, 8, ... resolution/2 px: 64 at half size, doubling downwards, at most 512."""
    levels = int(math.log2(resolution)) - 2
    return [max(min(64 * 2**(levels - 1 - i), 512) // width, 1) for i in range(levels)]


class DCGANGenerator(nn.Module):
    """DCGAN (1511.06434): dense, transposed 4x4 convolutions of stride 2; batch norm, ReLU; tanh.

    Weights are equalised, so that one learning rate serves every backbone (ours).
    """

    def __init__(self, nw, image_shape, width=1):
        super().__init__()
        channels = dcgan_channels(image_shape[1], width)
        self.first = EqualLinear(nw, channels[0] * 16, gain=math.sqrt(2))
        self.convs = nn.ModuleList(EqualConvTranspose2d(i, o, 4, gain=math.sqrt(2), stride=2, padding=1)
                                   for i, o in pairwise(channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.last = EqualConvTranspose2d(channels[-1], image_shape[0], 4, gain=1, stride=2, padding=1)

    def forward(self, w):
        x = self.first(w).unflatten(1, (-1, 4, 4))               # [N,c,4,4]
        x = torch.relu(self.norms[0](x))
        for conv, norm in zip(self.convs, self.norms[1:], strict=True):
            x = torch.relu(norm(conv(x)))                        # [N,c/2,2H,2W]
        return torch.tanh(self.last(x))


class DCGANEncoder(nn.Module):
    """DCGAN's discriminator: 4x4 convolutions of stride 2, leaky ReLU 0.2, a dense head.

    No batch norm: a code or a score must not depend on the other images of its batch.
    """

    def __init__(self, image_shape, n_out, width=1):
        super().__init__()
        channels = [image_shape[0]] + dcgan_channels(image_shape[1], width)[::-1]
        self.convs = nn.ModuleList(EqualConv2d(i, o, 4, gain=math.sqrt(2), stride=2, padding=1)
                                   for i, o in pairwise(channels))
        self.head = EqualLinear(channels[-1] * 16, n_out, gain=1)

    def trunk(self, x):  # [N,C,H,W] -> [N,c*16]
        for conv in self.convs:
            x = lrelu(conv(x))
        return x.flatten(1)

    def forward(self, x):
        return self.head(self.trunk(x))


# --------------------------------------------------------------------------------------- 3 StyleGAN
# Karras, Laine, Aila 2019, 1812.04948.  Networks that grow hold their level (resolution
# 4 * 2^level) and alpha, which fades that level in, as buffers; `grow` sets them.

STYLE_SIZES = [4 * 2**level for level in range(9)]      # of the larger side
FUSED_FROM = 16     # px of the larger image from which scaling is fused (StyleGAN 128): 4 products in place of 9, but
                    # the kernel must be made, which costs more than it saves below 16


def levels_of(image_shape):
    """-> number of levels of images (C, H, W), and (h, w) of level 0, whose larger side is 4."""
    _, h, w = image_shape
    n = int(math.log2(max(h, w))) - 1
    return n, (h >> n - 1, w >> n - 1)


def style_channels(level, width=1, fmap_base=8192, fmap_max=512):
    """Channels at 4 * 2^level px: min(fmap_base / 2^(level+1), fmap_max) / width."""
    return max(min(fmap_base // 2**(level + 1), fmap_max) // width, 1)


class Growing(nn.Module):
    """A network with blocks for levels 0, 1 ..., of which `level` is on top, faded in by alpha."""

    def __init__(self, image_shape, width, fmap_base, fmap_max=512):
        super().__init__()
        self.levels, self.base = levels_of(image_shape)
        self.channels = [style_channels(level, width, fmap_base, fmap_max) for level in range(self.levels)]
        self.register_buffer("level", torch.tensor(0))
        self.register_buffer("alpha", torch.tensor(1.0))
        self.grow(self.levels - 1, 1.0)

    def grow(self, level, alpha):
        """alpha in [0, 1]: 0 is the smaller network, 1 the larger."""
        self.level.fill_(level)
        self.alpha.fill_(alpha)
        self.top = level                        # the same, without asking the device
        self.fades = level > 0 and alpha < 1

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self.grow(int(self.level), float(self.alpha))

    def fade(self, small, large):
        """(1 - alpha) small + alpha large."""
        return small + self.alpha * (large - small)

    def size(self, level=None):
        """(H, W) of images at a level, the top one if not given."""
        level = self.top if level is None else level
        return self.base[0] << level, self.base[1] << level

    def fit(self, x):
        """Resizes real images to the top level, blended as the fade requires.   (ProGAN 2)"""
        if x.shape[2:] != self.size():
            x = nnf.avg_pool2d(x, x.shape[2] // self.size()[0])
        return self.fade(upscale(nnf.avg_pool2d(x, 2)), x) if self.fades else x

    def full(self, x):
        """Images of the top level, enlarged to the last one's size."""
        return x if self.top == self.levels - 1 else upscale(x, 2**(self.levels - 1 - self.top))


def grow(level, alpha, *modules):
    """Set level and alpha of every growing network in modules.  -> whether that changed a level"""
    networks = [m for module in modules for m in module.modules() if isinstance(m, Growing)]
    changed = any(m.top != level for m in networks)
    for m in networks:
        m.grow(level, alpha)
    return changed


# CUDA's autocast takes upscaling, sums and powers in fp32, the CPU's does not.  Of whole maps
# that would be twice the memory, so these functions set their own precision, the same everywhere.
own_precision = torch.autocast("cuda", enabled=False)


@own_precision
def upscale(x, factor=2):
    return nnf.interpolate(x, scale_factor=factor, mode="nearest")


class Blur(torch.autograd.Function):
    """The 3x3 binomial filter (1 2 1) / 4 in both directions.  Symmetric, so it is its own
    gradient.  Written out because autograd's double backward of a depthwise convolution is slow."""

    @staticmethod
    def forward(ctx, x):
        taps = (2 - torch.arange(-1, 2, dtype=x.dtype, device=x.device).abs()) / 4  # made there: a GPU need not wait
        return nnf.conv2d(x, taps.outer(taps).expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])

    @staticmethod
    def backward(ctx, g):
        return Blur.apply(g)


blur = Blur.apply


class UpConv(EqualConv2d):
    """Nearest up-scaling, then an equalised 3x3 convolution; fused: as one transposed 4x4 one."""

    def __init__(self, c_in, c_out, gain, fused):
        super().__init__(c_in, c_out, 3, gain, padding=1, bias=False)
        self.fused = fused

    def forward(self, x):  # [N,c_in,H,W] -> [N,c_out,2H,2W]
        if not self.fused:
            return super().forward(upscale(x))
        # in conv_transpose2d's own order
        w = self.weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)
        w = nnf.avg_pool2d(w.flip(2, 3) * (4 * self.scale), 2, stride=1, padding=1)
        return nnf.conv_transpose2d(x, w, stride=2, padding=1)


class DownConv(EqualConv2d):
    """An equalised 3x3 convolution, then means of 2x2.  fused: the same as one 4x4 of stride 2."""

    def __init__(self, c_in, c_out, gain, fused):
        super().__init__(c_in, c_out, 3, gain, padding=1)
        self.fused = fused

    def forward(self, x):  # [N,c_in,H,W] -> [N,c_out,H/2,W/2]
        if not self.fused:
            return nnf.avg_pool2d(super().forward(x), 2)
        w = nnf.avg_pool2d(self.weight * self.scale, 2, stride=1, padding=1)    # mean of the four places
        return nnf.conv2d(x, w, self.bias, stride=2, padding=1)


@own_precision
def moments(x):
    """x (N, C, H, W) -> x - mu, in x's precision; mu and sigma
    (N, C, 1, 1), fp32.  Instance norm is (x - mu) / sigma.

    sigma of a constant channel is 1e-4, so that its gradient is finite.  A sum of bf16 adds up in
    fp32 and is rounded once.  With dtype=fp32 its gradient would be a whole map, in an order of
    memory that is slow next to channels_last.
    """
    n, fp32 = x.shape[2] * x.shape[3], torch.promote_types(x.dtype, torch.float32)
    mu = x.sum((2, 3), keepdim=True).to(fp32) / n       # / n and the sign where tensors, and their gradients, are small
    x = x + (-mu).to(x.dtype)
    return x, mu, (x.square().sum((2, 3), keepdim=True).to(fp32) / n + 1e-8).sqrt()


class StyleLayer(nn.Module):
    """What follows a convolution: noise, bias, leaky ReLU, norm, style.   (StyleGAN, fig. 1)"""

    def __init__(self, channels, nw, size):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.noise_gain = nn.Parameter(torch.zeros(channels, 1, 1))
        self.style = EqualLinear(nw, 2 * channels, gain=1)
        self.register_buffer("noise", torch.randn(1, 1, *size))         # what "fixed" stands for

    def forward(self, x, w, eta):  # x [N,C,H,W], w [N,nw], eta [N,1,H,W] or None
        if eta is not None:
            x = torch.addcmul(x, self.noise_gain.to(x.dtype), eta.to(x.dtype))      # keeps x's order of memory
        x, _, sigma = moments(lrelu(x + self.bias.to(x.dtype)))
        scale, shift = self.style(w)[:, :, None, None].chunk(2, 1)          # 2 x [N,C,1,1]
        return ((1 + scale) / sigma).to(x.dtype) * x + shift.to(x.dtype)


class StyleBlock(nn.Module):
    """A level: two convolutions with a `StyleLayer` each; level 0 begins with a constant."""

    def __init__(self, level, c_in, c_out, nw, size):
        super().__init__()
        if level == 0:
            self.constant = nn.Parameter(torch.ones(c_out, *size))
        else:
            self.up = UpConv(c_in, c_out, math.sqrt(2), fused=min(size) >= FUSED_FROM)
        self.layer1 = StyleLayer(c_out, nw, size)
        self.conv = EqualConv2d(c_out, c_out, 3, gain=math.sqrt(2), padding=1, bias=False)
        self.layer2 = StyleLayer(c_out, nw, size)

    def forward(self, x, w1, w2, eta1, eta2):
        x = self.constant.expand(w1.shape[0], -1, -1, -1) if x is None else blur(self.up(x))
        return self.layer2(self.conv(self.layer1(x, w1, eta1)), w2, eta2)


class StyleGenerator(Growing):
    """w (N, nw), or (N, L, nw) with a row a layer, -> x (N, C, H, W) at the top level, linear.

    num_layers is L = 2 levels.  noise: "random" (torch's own generators), "fixed" (a buffer a
    layer), "none", or a list of a (N, 1, H, W) a layer, such as `draw_noise` gives.
    """

    def __init__(self, nw, image_shape, width=1, fmap_base=8192, rgb_gain=1.0, fmap_max=512):
        super().__init__(image_shape, width, fmap_base, fmap_max)
        c = self.channels
        self.blocks = nn.ModuleList(StyleBlock(i, c[max(i - 1, 0)], c[i], nw, self.size(i)) for i in range(self.levels))
        self.to_rgb = nn.ModuleList(EqualConv2d(n, image_shape[0], 1, gain=rgb_gain) for n in c)
        self.num_layers = 2 * self.levels

    def draw_noise(self, n, generator=None):
        """N(0, 1), (n, 1, H, W), for each layer up to the top level, on the networks' device."""
        device = self.alpha.device
        return [torch.empty(n, 1, *self.size(i // 2), device=device).normal_(generator=generator)
                for i in range(2 * self.top + 2)]       # torch.randn cannot be compiled for any n

    def forward(self, w, noise="random"):
        if w.ndim == 2:
            w = w[:, None].expand(-1, self.num_layers, -1)
        eta = noise
        if noise == "random":
            eta = self.draw_noise(len(w))
        elif noise in ("fixed", "none"):
            eta = [layer.noise if noise == "fixed" else None for b in self.blocks for layer in (b.layer1, b.layer2)]
        x = None
        for i, block in enumerate(self.blocks[:self.top + 1]):
            before = x
            x = block(x, w[:, 2 * i], w[:, 2 * i + 1], eta[2 * i], eta[2 * i + 1])
        rgb = self.to_rgb[self.top](x)
        if self.fades:
            rgb = self.fade(upscale(self.to_rgb[self.top - 1](before)), rgb)
        return rgb


def mix_styles(w, others, top, p, draw):
    """Style mixing: with probability p an image's layers from a random one on take another style.

    w, others (N, nw) -> (N, 2 top + 2, nw), for a generator grown to level `top`; draw (N, 2) ~
    U(0, 1) decides.  (StyleGAN 3.1)
    """
    layers = 2 * top + 2
    cut = torch.where(draw[:, 0] < p, 1 + (draw[:, 1] * (layers - 1)).floor(), layers)  # 1 ... layers - 1
    keep = torch.arange(layers, device=w.device) < cut[:, None]
    return torch.where(keep[:, :, None], w[:, None], others[:, None])


def minibatch_std(x, group):
    """x and one more map: the deviation over `group`
    images, a mean over channels and pixels.  (ProGAN 3)

    Image i is in a group with i + N/G, i + 2N/G, ..., where G is gcd(N, group): a group that does
    not divide the batch is smaller.
    """
    group = math.gcd(len(x), group)
    y = x.unflatten(0, (group, -1)).float()                                 # [G,N/G,C,H,W]
    y = (y.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3)).to(x.dtype)  # [N/G]
    return torch.cat([x, y.repeat(group)[:, None, None, None].expand_as(x[:, :1])], 1)


class CriticBlock(nn.Module):
    """conv3 - lrelu - blur - conv3 and halving - lrelu: (N, c_in, H, W) -> (N, c_out, H/2, W/2)."""

    def __init__(self, c_in, c_out, size):
        super().__init__()
        self.conv = EqualConv2d(c_in, c_in, 3, gain=math.sqrt(2), padding=1)
        self.down = DownConv(c_in, c_out, math.sqrt(2), fused=min(size) >= FUSED_FROM)

    def forward(self, x):
        return lrelu(self.down(blur(lrelu(self.conv(x)))))


class StyleCritic(Growing):
    """The discriminator as a trunk, x at the top level -> (N, n), and a linear head -> (N, n_out).

    std_group: of minibatch stddev, which makes a score depend on its batch mates; 0 for none.
    """

    def __init__(self, image_shape, n_out, width=1, fmap_base=8192, std_group=4):
        super().__init__(image_shape, width, fmap_base)
        c = self.channels
        self.std_group = std_group
        self.from_rgb = nn.ModuleList(EqualConv2d(image_shape[0], n, 1, gain=math.sqrt(2)) for n in c)
        self.blocks = nn.ModuleList(CriticBlock(c[i + 1], c[i], self.size(i + 1)) for i in range(self.levels - 1))
        self.conv = EqualConv2d(c[0] + (std_group > 0), c[0], 3, gain=math.sqrt(2), padding=1)
        self.dense = EqualLinear(c[0] * math.prod(self.base), c[0], gain=math.sqrt(2))
        self.head = EqualLinear(c[0], n_out, gain=1)

    def map(self, x):
        """-> the last map, (N, C, h, w) of level 0's size, of each image alone."""
        y = lrelu(self.from_rgb[self.top](x))
        for i in range(self.top - 1, -1, -1):
            y = self.blocks[i](y)
            if self.fades and i == self.top - 1:
                y = self.fade(lrelu(self.from_rgb[i](nnf.avg_pool2d(x, 2))), y)
        return y

    def trunk(self, x):
        y = self.map(x)
        if self.std_group:
            y = minibatch_std(y, self.std_group)
        return lrelu(self.dense(lrelu(self.conv(y)).flatten(1)))

    def forward(self, x):
        return self.head(self.trunk(x))


# Images a step at 4, 8, ... px by number of GPUs, and learning rates, of ALAE's released code.  It
# has none for 512 px and above on 2 GPUs, and 256 and above on 1: halved, ours.
BATCHES = {8: (512, 256, 128, 64, 32, 32, 32, 32, 32), 4: (512, 256, 128, 64, 32, 32, 32, 32, 16),
           2: (512, 256, 128, 64, 32, 32, 16, 8, 4), 1: (512, 256, 128, 64, 32, 16, 8, 4, 2)}
RATES = (0.0015,) * 6 + (0.002, 0.003, 0.003)


@dataclass
class Growth:
    """The schedule of a run: images seen -> level, alpha, batch and learning rate.  (ProGAN 2)

    Level `first` lasts 2 `part` images less `skipped`, each one above it `part` while it fades in
    and `part` more; the last goes on.  sizes (H, W), batches, rates: one a level.  sine: alpha
    follows half a wave in place of a line.
    """
    sizes: list
    batches: list
    rates: list
    first: int = 0
    part: float = math.inf
    sine: bool = False
    skipped: float = 0

    def at(self, seen):
        """-> level, alpha, batch, learning rate."""
        seen = seen + self.skipped
        level = min(self.first + int(seen // (2 * self.part)), len(self.sizes) - 1)
        alpha = 1.0 if level == self.first else min(seen / self.part - 2 * (level - self.first), 1.0)
        if self.sine:
            alpha = (1 - math.cos(math.pi * alpha)) / 2
        return level, alpha, self.batches[level], self.rates[level]

    def since(self, seen):
        """-> images shown since the top level began."""
        level = self.at(seen)[0]
        return seen + self.skipped - 2 * self.part * (level - self.first) if level > self.first else seen

    def plan(self, seen):
        """-> batch and size of the next images, for `data.batches`."""
        level, _, batch, _ = self.at(seen)
        return batch, self.sizes[level]


def growth_of(args, sine=False, short=False):
    """The `Growth` of a run, by its arguments; of one level unless `complete_levels` gave it more.

    sine: see `Growth`.  short: the first level lasts one part.
    """
    if not hasattr(args, "batches"):
        return Growth([tuple(args.image_shape[1:])], [args.batch], [args.lr])
    n, (h, w) = levels_of(args.image_shape)
    sizes = [(h << level, w << level) for level in range(n)]
    first = STYLE_SIZES.index(args.start_resolution)
    part = 1000 * args.grow_kimg
    return Growth(sizes, args.batches, args.rates, first, part, sine, skipped=part if short else 0)


# ----------------------------------------------------------------------------------------- 4 Losses

def mean_softplus(t):
    """log(1 + e^t), averaged over the batch, in fp32: the logistic loss of a score's sign.
    (ALAE Alg. 1)"""
    return nnf.softplus(t.float()).mean()


def r1(scores, x):
    """E ||grad_x score(x)||^2: squared l2 norm per image,
    averaged over the batch.  (Mescheder et al. 2018, eq. 9)

    scores (N, 1) are those of x (N, ...); x is fp32 and requires grad, so the norm is fp32.  The
    caller multiplies by gamma / 2.
    """
    gradient, = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


# ---------------------------------------------------------------------------------------- 5 Weights

def adam(module, lr, betas, decay=0.0):
    """One Adam a network: moments belong to parameters, so steps that share a network share them.

    decay times a matrix or kernel is added to its gradient;
    biases, gains and constants have 1 or 3 dimensions.
    """
    moving = [p for p in module.parameters() if p.requires_grad]
    groups = [dict(params=[p for p in moving if p.ndim in (2, 4) or not decay], weight_decay=decay)]
    if decay:
        groups += [dict(params=[p for p in moving if p.ndim not in (2, 4)])]
    return torch.optim.Adam(groups, lr=lr, betas=betas, eps=1e-8, fused=True)


def update(loss, *optimizers):
    """Move exactly the parameters of `optimizers` one step down `loss`, averaged over processes.

    Gradients are taken at these parameters alone; one that `loss` does not depend on stays.
    """
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    average_over_processes([p.grad for p in parameters if p.grad is not None])
    for optimizer in optimizers:
        optimizer.step()


def set_rate(lr, *optimizers):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


class Draw:
    """What the steps of a run draw: every process draws for the whole batch and takes its share.

    model: whose prior it is, and on stylegan whose generator.  mixing: share of images that mix
    styles.
    """

    def __init__(self, model, rng, rank=0, world=1, mixing=0.0):
        self.model = model
        self.rng = rng
        self.mixing = mixing
        self.world = world
        self.share = slice(rank, None, world)
        self.G = next((m for m in model.modules() if isinstance(m, StyleGenerator)), None)

    def z(self, n):
        """Codes of the prior, (n, nz)."""
        return self.model.prior(n * self.world, self.rng)[self.share]

    def uniform(self, n, *size):
        """U(0, 1), (n, *size)."""
        return torch.rand(n * self.world, *size, generator=self.rng, device=self.rng.device)[self.share]

    def mix(self, w, F):
        """Codes w (n, nw) of F, on stylegan with others' styles mixed in; see `mix_styles`."""
        if self.G is None:
            return w
        draw = self.uniform(len(w), 2)      # before z: another order would be another run
        return mix_styles(w, F(self.z(len(w))), self.G.top, self.mixing, draw)

    def noisy(self, G):
        """G, compiled or not, whose noise in training is drawn here if it has any."""
        if self.G is None:
            return G

        def noisy_G(w):
            noise = self.G.draw_noise(len(w) * self.world, self.rng)
            return G(w, [eta[self.share].clone() for eta in noise])     # a view would keep the rest
        return noisy_G


def uncompiled(net, twice=True):
    """The network behind a compiled one, unless its pass is not differentiated `twice`."""
    return getattr(net, "_orig_mod", net) if twice else net


def compiled(*networks):
    """torch.compile each; a growing network has a graph a level,
    and more for the ways it is called."""
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 256
    return [torch.compile(network) for network in networks]


EMA_HALF_LIFE = 10_000      # images
EMA_EVERY = 1024            # images between its moves, which take 2% of the MLP's time if made at each step


@torch.no_grad()
def update_ema(ema, model, seen, batch, since=math.inf, each_step=False, share=5):
    """ema <- beta ema + (1 - beta) model, if due, after the step of `batch` images that began at
    `seen`; buffers of whole numbers are copied.  -> whether it was due

    Its half-life is EMA_HALF_LIFE images, or 1/share of `since`, the images since the run or its
    level began, if that is less (ours; papers are silent).
    """
    every = batch if each_step else max(batch, EMA_EVERY)
    if seen % every >= batch:
        return False
    beta = 0.5 ** (every / min(EMA_HALF_LIFE, max(since / share, 1)))
    both = list(zip(ema.state_dict().values(), model.state_dict().values(), strict=True))
    floats = [(a, b) for a, b in both if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - beta)
    for a, b in both:
        if not a.is_floating_point():
            a.copy_(b)
    return True


# --------------------------------------------------------------------------------------- 6 Held out

def check_input(x, shape):
    """Raise ValueError unless x is float images (N, *shape), as encoders take them."""
    tensor = isinstance(x, torch.Tensor)
    if not tensor or not x.is_floating_point() or tuple(x.shape[1:]) != tuple(shape):
        given = f"{x.dtype} {tuple(x.shape)}" if tensor else type(x).__name__
        raise ValueError(f"images are a float tensor (N, {', '.join(map(str, shape))}) in [-1, 1], not {given}; "
                         f"data.read_images and common.to_float make one")


def few(image_shape):
    """How many images of image_shape (C, H, W) to make at a time."""
    return max(min(2**20 // math.prod(image_shape[1:]), 250), 1)


@torch.no_grad()
def reconstruct(model, x):
    """G(E(x)) clipped to [-1, 1], as it is shown; all reconstruction errors are of this."""
    made = [model.generate(model.encode(part), noise="fixed") for part in x.split(few(x.shape[1:]))]
    return torch.cat(made).clamp(-1, 1)


def fixed_inputs(model, images, seed, device):
    """x and z of all snapshots: the first held-out images, float, and codes (None without a prior).

    1,000 of them up to 64 px, fewer of larger images.
    """
    n = max(min(1000, 2**22 // math.prod(model.image_shape[1:])), 16)
    z = model.prior(n, generator(device, seed, "pictures")) if hasattr(model, "prior") else None
    return to_float(images.take(range(min(len(images), n))).to(device)), z


@torch.no_grad()
def inversion_errors(model, x, z):
    """How far off images x (N, C, H, W) in [-1, 1] and codes of z (N, nz) come back.

    -> dict of floats: mse, mean (G(E(x)) - x)^2 per pixel; recip_x, mean |G(E(x)) - x|; recip_w,
    mean |E(G(w)) - w|.  recip_w is "" if z is None, and all are "" without an encoder.
    """
    if not hasattr(model, "encode"):
        return dict.fromkeys(Run.MEASURES, "")
    error = reconstruct(model, x) - x
    recip_w = ""
    if z is not None:
        w = [model.map(b) for b in z.split(few(x.shape[1:]))]
        back = [model.encode(model.generate(b, noise="fixed")) for b in w]
        recip_w = (torch.cat(back) - torch.cat(w)).abs().mean().item()
    return dict(mse=error.square().mean().item(), recip_x=error.abs().mean().item(), recip_w=recip_w)


# -------------------------------------------------------------------------------- 7 Frozen networks
# Pretrained networks: weights from the user's file, or a download that is checked by
# its digest.  eval.py has Inception and LPIPS, because it alone uses them.

FROZEN = {  # flag: where the weights are, the beginning of the file's SHA-256
    "inception": ("https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                  "pt_inception-2015-12-05-6726825d.pth", "6726825d"),
    "vgg": ("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
    "lpips": ("https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
              "a78928a0"),
}


def frozen(name, file, cache, build, flag=None):
    """build(state dict) -> network, of the weights in `file`; if that is "", fetched into `cache`.

    flag: what takes a file in the caller's script, --name if not given. The
    network is in eval mode and its weights need no gradient.  It has checksum
    (8 digits of the file's SHA-256) and official (whether they are those of
    `FROZEN`).  Raises `Error` if the weights cannot be had or do not fit.
    """
    url, digest = FROZEN[name]
    flag = flag or f"--{name}"
    path = Path(file or Path(cache) / Path(url).name)
    if not file and not path.exists():
        print(f"fetching {url} into {cache}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as e:
            raise Error(f"the {name} weights cannot be fetched ({e}); get {url} by other means and pass {flag} FILE"
                        ) from None
    remedy = f"{flag} takes the file that is at {url}" if file else "delete it, and it is fetched again"
    try:
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Error(f"there is no {path}; {remedy}") from None
    except Exception as e:      # torch.load lets through whatever the damage leads to
        raise Error(f"{path} cannot be read as weights ({type(e).__name__}); {remedy}") from None
    try:
        network = build(weights)
    except (RuntimeError, LookupError, TypeError, AttributeError) as e:
        if is_out_of_memory(e):
            raise
        raise Error(f"{path} does not hold the {name} weights, but others; {remedy}") from None
    network.checksum = checksum
    network.official = checksum == digest
    if not file and not network.official:
        raise Error(f"{path} is not the file that is at {url}; {remedy}")
    return network.eval().requires_grad_(False)


class VGG(nn.Module):
    """VGG-16 up to conv5_3: x (N, 3 or 1, H, W) in [-1, 1] -> activations after the
    ReLU of conv1_2, conv2_2, conv3_3, conv4_3, conv5_3; gradients reach x.

    weights: torchvision's, with or without the classifier, of any precision.  Their input
    is divided by ImageNet's deviation.  LIA's are Keras's, which see [0, 255] less the
    mean, so that the scale of the activations, and with it a loss's weight, is another.
    """
    TAPS = (3, 8, 15, 22, 29)

    def __init__(self, weights):
        super().__init__()
        from torchvision.models import vgg16
        with torch.device("meta"):                          # the classifier alone would take 500 MB
            self.layers = vgg16(weights=None, init_weights=False).features[:30]
        self.layers.load_state_dict({key.removeprefix("features."): value.float() for key, value in weights.items()
                                     if not key.startswith("classifier.")}, assign=True)
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])    # of ImageNet, in [-1, 1]
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def forward(self, x, last=29):
        taps = []
        x = (x - self.mean) / self.std                      # one grey channel becomes three
        for i, layer in enumerate(self.layers[:last + 1]):
            x = layer(x)
            if i in self.TAPS:
                taps.append(x)
        return taps

    def conv4_3(self, x):
        """(N, 512, H/8, W/8), the perceptual features epsilon of LIA's eq. 5."""
        return self(x, last=22)[-1]


# -------------------------------------------------------------------------------------- 8 Processes

def start(args):
    """Join the other processes of `torchrun`, if any, and seed.  -> device, rank, world.

    Sets args.precision if "auto".  Raises `Error` for a batch that does not divide, and as `join`.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if args.batch % world:
        raise Error(f"--batch {args.batch} does not divide among {world} processes; "
                    f"pass a multiple of {world}, such as {max(args.batch // world, 1) * world}")
    first = STYLE_SIZES.index(getattr(args, "start_resolution", 4))
    if wrong := [n for n in getattr(args, "batches", [])[first:] if n % world]:
        raise Error(f"the run's batch of {wrong[0]} at a lower level does not divide among {world} processes; "
                    f"resume it on as many as it began with")
    device, rank, world = join(args.device)
    sys.stdout = Unread(sys.stdout)
    sys.stderr = Unread(sys.stderr)
    torch.backends.cudnn.benchmark = True       # sizes stay the same within a level
    torch.manual_seed(args.seed)
    if args.precision == "auto":
        bf16 = device.type == "cuda" and args.backbone != "mlp" and has_bf16(device)
        args.precision = "bf16" if bf16 else "fp32"
    return device, rank, world


class Unread:
    """A run's output: the run goes on when its reader has gone (`| head`, a closed terminal)."""

    def __init__(self, stream):
        self.stream = stream.stream if isinstance(stream, Unread) else stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:                             # what is buffered goes the same way
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def has_bf16(device):
    """Whether a device multiplies in bf16 itself; some GPUs, and CPUs with AVX2, emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    built = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return built and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def notes(args, device):
    """Yields a line for each thing that makes a run slow on its device."""
    here = "CPU" if device.type == "cpu" else "GPU"
    if here == "CPU" and args.backbone == "stylegan" and args.width < 4:
        yield f"on a CPU a step of stylegan at --width {args.width} takes minutes; --width 8 or more suits one"
    if args.precision == "bf16" and not has_bf16(device):
        yield f"torch has no fast bf16 on this {here}; without --precision bf16 a step may take a tenth of the time"
    elif here == "GPU" and args.backbone != "mlp" and not has_bf16(device):
        yield "this GPU has no bf16 of its own, so that fp32 is the default"


def join(name):
    """Join the other processes of `torchrun`, if any.  -> device, rank, world.

    One process a GPU (NCCL), or several on the CPU (gloo).  Processes wait for each other as long
    as it takes; if one dies, the job ends, see `watch`.  fp32 is fp32 from here on, not TF32.
    Raises `Error` for a missing device.
    """
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    device = find_device(name, int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        if world > 1 and device.index != int(os.environ["LOCAL_RANK"]):
            raise Error(f"--device {name} would put {world} processes on one GPU; pass --device cuda")
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_memory()
    if device.type == "mps" and world > 1:
        raise Error(f"--device {name} is for one process; leave torchrun out, or pass --device cpu")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=7))
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(rank, world, ended), daemon=True)
        watcher.start()
        atexit.register(lambda: (ended.set(), watcher.join(5)))     # torch aborts if Python ends amid a call to a store
    return device, rank, world


def watch(rank, world, ended):
    """End this process with a line if the next one of its job has been dead for WATCH_SECONDS.

    Each counts up in the job's store, also a slow or waiting one, but not a frozen one. Rounds are
    counted, not seconds, so that a whole job can be paused and go on.
    """
    patience = float(os.environ.get("WATCH_SECONDS", 20))
    following = (rank + 1) % world
    last = rounds = 0
    try:
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        while dist.is_initialized() and not ended.wait(0.5) and rounds < 2 * patience:
            store.add(f"alive/{rank}", 1)
            count = store.add(f"alive/{following}", 0)
            rounds = rounds + 1 if count == last else 0
            last = count
    except (RuntimeError, KeyError, ValueError):    # the store has gone, and the job with it
        return
    if dist.is_initialized() and not ended.is_set():
        with contextlib.suppress(OSError):
            os.write(2, f"error: process {following} of {world} has not answered for {patience:g} s; end it, and go on "
                        f"from the last checkpoint, which is whole, by --resume RUN\n".encode())
        os._exit(2)                                 # the main thread waits for that process


def find_device(name, local_rank=0):
    """-> torch.device; "auto" is the GPU if there is one, a GPU without a number this process's.

    Apple's is taken by one process alone, and if
    `apple_works`.  Raises `Error` if the device is not there.
    """
    apple = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and apple and int(os.environ.get("WORLD_SIZE", 1)) == 1:
            name = "mps" if apple_works() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as e:
        if name == "cuda" and local_rank >= torch.cuda.device_count() > 0:
            raise Error(f"there are more processes than GPUs; pass --nproc_per_node={torch.cuda.device_count()} to "
                        f"torchrun") from None
        if is_out_of_memory(e):
            raise Error(f"{name} has no free memory; end what else runs there, or pass another --device") from None
        found = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())] + (["mps"] if apple else [])
        raise Error(f"there is no device {name!r} here; --device can be {' or '.join(found)}") from None
    return device


def apple_works():
    """Whether R1's gradients of a small critic are on Apple's GPU what they are on the CPU;
    says so if they are not."""
    def gradients(device):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            critic = StyleCritic((3, 32, 32), 1, width=64)
            x = torch.randn(4, 3, 32, 32)
        critic.to(device, memory_format=torch.channels_last)
        x = x.to(device).requires_grad_()
        r1(critic(x), x).backward()
        return [p.grad.cpu() for p in critic.parameters() if p.grad is not None]
    try:
        if all((a - b).norm() <= 0.01 * b.norm() + 1e-6 for a, b in zip(gradients("mps"), gradients("cpu"))):
            return True
        problem = "other numbers than on the CPU"
    except (RuntimeError, TypeError) as e:
        problem = " ".join(str(e).split())[:100]
    print(f"note: training does not work on this Apple GPU with torch {torch.__version__} ({problem}), so the CPU is "
          f"taken", file=sys.stderr)
    return False


def apple_to_cpu(t):
    """A tensor on an Apple GPU, which lacks float64 and more, on the CPU; others as they are."""
    return t.cpu() if t.device.type == "mps" else t


def keep_memory():
    """Have glibc keep freed memory.  The kernel would clear each page that it lends again: 5% (fp32)
    to 13% (bf16) of a step of the MLP, and 60% of StyleALAE's reconstructions at 64 px, whose maps
    are large.  Without glibc nothing happens."""
    import ctypes
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 1 << 30) or mallopt(-3, 1 << 25)        # M_MMAP_THRESHOLD: an older glibc takes no more
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


@contextlib.contextmanager
def rank_zero_first():
    """Process 0 runs the block first, so that the others find what it downloads."""
    first = int(os.environ.get("RANK", 0)) == 0
    if dist.is_initialized() and not first:
        dist.barrier()
    try:
        yield
    finally:
        if dist.is_initialized() and first:
            dist.barrier()


def generator(device, seed, use, block=0):
    """A torch.Generator on device for one use of a run's
    seed: "training", "pictures", "evaluation" or "noise".

    No two uses or blocks draw the same numbers; the initialisation has the seed itself. Usual seeds
    stay below 2^32, because the CPU's generator sees only the lowest 32 bits.
    """
    number = ("training", "pictures", "evaluation", "noise").index(use) + 1
    return torch.Generator(device).manual_seed(1_000_003 * (seed + 1) + 10 * block + number)


def broadcast(module):
    """Give every process the weights and buffers of process 0."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def autocast(precision, device):
    """-> a function that makes the context of a forward pass: bf16 autocast, or none for "fp32"."""
    if precision == "fp32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def average_buffers(module):
    """Replace the statistics of batch norm, and the mean w, by their means over processes."""
    moving = ("running_mean", "running_var", "mean_w")
    average_over_processes([b for name, b in module.named_buffers() if name.split(".")[-1] in moving])


@torch.no_grad()
def average_over_processes(tensors):
    """Replace each tensor by its mean over processes, in one flat reduction."""
    if not dist.is_initialized() or not tensors:
        return
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


# ------------------------------------------------------------------------------------------ 9 Flags

class PAPER(dict):
    """Settings that the method's paper states."""


class CODE(dict):
    """Settings of its authors' code that the paper leaves open, or has otherwise."""


class OURS(dict):
    """Settings that are ours, because neither has them."""


class Parser(ArgumentParser):
    """argparse with whole flag names only and one `error:` line.  `group` gives flags the means
    to say what they are for, and keeps those marked rare out of --help, for --help-all."""

    def __init__(self, doc=None, **kwargs):
        super().__init__(description=doc, allow_abbrev=False, formatter_class=lambda prog: RawDescriptionHelpFormatter(
            prog, max_help_position=32, width=120), **kwargs)

    def group(self, title):
        """-> add(name, ...), as add_argument, into a group of --help.  only: values of
        other flags, the condition (see `holds`) under which the flag means something."""
        group = self.add_argument_group(title)

        def add(name, help, only=None, rare=False, **kwargs):
            text = SUPPRESS if rare and "--help-all" not in sys.argv else help
            group.add_argument(name, help=text, **kwargs).only = only or {}
        return add

    def error(self, message):
        self.exit(2, f"error: {message}; `python {self.prog} --help` lists the flags\n")


def number(name, kind, good):
    """An argparse type, `name` in its message: an int or float of which good(value) is true."""
    def parse(text):
        value = kind(text)
        if not good(value):
            raise ValueError
        return value
    parse.__name__ = name
    return parse


def positive(kind, most=math.inf):
    """An argparse type: int or float, above zero, finite and not above `most`."""
    name = f"positive {kind.__name__}" + ("" if most == math.inf else f" up to {most:,}")
    return number(name, kind, lambda value: 0 < value <= most and value < math.inf)


kimg = number("positive float", float, lambda value: 1e-6 <= value <= 1e12)
not_negative = number("positive float or 0", float, lambda value: 0 <= value < math.inf)
count = number("whole number", int, lambda value: value >= 0)
fraction = number("fraction", float, lambda value: 0 <= value <= 1)
seed = number("seed", int, lambda value: 0 <= value < 2**32)        # what all generators take


def size(text):
    """An argparse type of --resolution: "28x28" -> "28"."""
    w, _, h = text.partition("x")
    return w if w == h else text


def method_parser(doc, backbones, grows=None):
    """-> a `Parser` with the flags that all four scripts share.

    doc: of the script; its first line heads --help.  backbones: their names.  grows: the condition
    under which a run grows, by default that it is a stylegan.
    """
    parser = Parser(doc.partition("\n")[0], usage=f"python {Path(sys.argv[0]).name} [--flag value] ...")
    style = dict(backbone="stylegan")
    grows = grows or style
    parser.epilog = ("In brackets: defaults of the backbone, and of the method that runs without flags; sets, such as "
                     "the bundled digits, may have others.  Every run prints its settings, and which are the paper's.")

    add = parser.group("data")
    add("--data", "set name (.github/guide.md), folder or zip of images", default="mnist-mini", metavar="NAME|PATH")
    add("--data-root", "folder of named sets, to which they are downloaded", default="data", metavar="DIR")
    add("--resolution", "image size in pixels, cropped to that aspect", type=size, default="auto", metavar="N|WxH")
    add("--split", "cut where papers differ (mnist: dw, sw; celeba: official, 5-1; ffhq: 60-10, 65-5; lsun-...: all, "
        "100k)", rare=True, default="auto")
    add("--workers", "processes that read images, for sets too large for memory (0: none)", rare=True, type=int,
        choices=range(65), metavar="N", default=2)
    add("--only", "list of the training images that are taken, as `python data.py rank` writes it", rare=True,
        default="", metavar="FILE")
    add("--skip-bad", "images that cannot be read are left out and counted (in a set too large for memory the next "
        "image takes the place of each, and each is named)", rare=True, action="store_true")

    add = parser.group("networks")
    add("--backbone", "networks (default: by the data)", default="auto", choices=["auto"] + list(backbones))
    add("--width", "divisor of all channel counts: 2 halves them", default=1, type=positive(int), metavar="K")
    add("--fmap-base", "stylegan: channels at 4 * 2^l px are this / 2^(l+1), at most 512 (ALAE: --fmap-max), over "
        "--width", only=style, rare=True, type=positive(int), default=8192, metavar="N")
    add("--nz", "dimensions of z", type=positive(int), metavar="N")
    add("--nw", "dimensions of w", type=positive(int), metavar="N")

    add = parser.group("training")
    add("--kimg", "length in thousands of real images", type=kimg, metavar="K")
    add("--batch", "images a step, over all processes (stylegan: at the last level)",
        type=positive(int, 65_536), metavar="N")
    add("--lr", "learning rate of Adam (stylegan: at the last level)", type=positive(float), metavar="R")
    add("--grow-kimg", "thousands of images that each level takes to fade in, and again before the next one (default: "
        "--kimg in the method's proportions)", only=grows, rare=True, type=kimg, default=0.0, metavar="K")
    add("--start-resolution", "size of the larger side to grow from (the final one: no growing)", only=grows, rare=True,
        type=positive(int), default=4, choices=STYLE_SIZES, metavar="N")
    add("--seed", "random seed of weights, codes and image order", default=0, type=seed, metavar="S")
    add("--init", "run whose averaged weights this one begins from, with other images", default="", metavar="RUN")

    add = parser.group("run")
    add("--out", "run folder (default: runs/METHOD-BACKBONE-DATA, and words such as variant, split, seed)",
        default="auto", metavar="RUN")
    add("--resume", "run to go on with", default="", metavar="RUN")
    add("--snapshot-kimg", "thousands of images between pictures, log rows and checkpoints", type=kimg, metavar="K")
    add("--keep-kimg", "thousands of images between averaged weights that stay, in RUN/kept, each of the next snapshot "
        "(default: none stay)", rare=True, type=positive(int), default=0, metavar="K")
    add("--device", "cpu, cuda, cuda:1, mps ... (default: the GPU if there is one)", default="auto")
    add("--precision", "number format of the networks' products (auto: bf16 on a GPU that has it, except for mlp; fp32 "
        "is not TF32)", rare=True, default="auto", choices=["auto", "fp32", "bf16"])
    add("--compile", "torch.compile of the networks, except LIA's phi, ReStyle's generator, and what R1 differentiates "
        "twice", rare=True, action="store_true")
    add("--help-all", "all flags, with the rare ones", action="help")
    return parser


# What --resume may change; data, data_root and only to where the same images are
RESUMABLE = ("kimg", "out", "workers", "device", "snapshot_kimg", "keep_kimg", "data", "data_root", "only",
             "skip_bad")


def holds(condition, values):
    """Whether values have what a condition asks for: flag=value, flag=(one, another), or True or
    False for a flag that is set or not."""
    for name, wanted in condition.items():
        value = bool(values.get(name)) if isinstance(wanted, bool) else values.get(name)
        if value not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            return False
    return True


def flag(name):
    """"grow_kimg" -> "--grow-kimg"."""
    return f"--{name.replace('_', '-')}"


def look_up(table, values, given):
    """-> values completed by the rows of a method's table,
    and a dict of which are whose: given, paper, code, ours.

    table: (condition, settings, ...) each; later rows
    refine earlier ones, none changes what is given.
    """
    values = values | given
    source = dict.fromkeys(given, "given")
    for condition, *rows in table:
        for row in rows if holds(condition, values) else ():
            new = {k: v for k, v in row.items() if k not in given}
            values.update(new)
            source.update(dict.fromkeys(new, type(row).__name__.lower()))
    return values, source


def say_defaults(parser, table, defaults):
    """End the help of each flag that the table sets with its value, by backbone if they differ."""
    backbones = [b for a in parser._actions if a.dest == "backbone" for b in a.choices if b != "auto"]
    taken = [look_up(table, defaults | dict(data=""), dict(backbone=b))[0] for b in backbones]
    for action in parser._actions:
        if action.default is None and action.help != SUPPRESS:
            values = {b: v[action.dest] for b, v in zip(backbones, taken, strict=True) if v[action.dest] is not None}
            by_level = action.dest in ("kimg", "batch", "lr", "lr_d", "snapshot_kimg") and "(0:" not in action.help
            shown = [f"{b} by level" if v == 0 and by_level else f"{b} {v}" for b, v in values.items()]
            if len(values) == len(backbones) and len(set(values.values())) == 1:
                shown = [values["mlp"]]
            action.help += f" [{', '.join(map(str, shown))}]" if shown else ""


def settings_of(run, given, method, parser, networks, formerly):
    """-> the settings of the networks of --init's run.  Raises `Error` if one is given otherwise."""
    stored = formerly | read_args(run, method, parser)
    if missing := {"resolution", "image_shape"} - stored.keys():
        raise damaged(Path(run, "args.json"), f"{min(missing)} is missing")
    settings = networks(stored) | dict(resolution=stored["resolution"])
    free = ["resolution"] if stored.get("patches") or given.get("patches") else []      # of what patches are cut from
    _, h, w = settings.pop("image_shape")
    for name, value in settings.items():
        if name in given and name not in free and str(given[name]) != str(value):
            raise Error(f"the networks of {run} have {flag(name)} {value}, not {given[name]}; leave the flag out, or "
                        f"begin without --init")
    return settings | dict(start_resolution=max(h, w))          # it has grown


def resolve(parser, method, table, argv, networks, formerly, inherit=None):
    """argv -> Namespace of all settings: explicit flag > table (see `look_up`) > parser's default.

    With --resume the run's own args.json takes the place of table and defaults.  networks(args) ->
    the arguments of the method's model.  formerly: settings of runs from before their flags.
    inherit(given) -> settings of another run to begin from.  Adds `method`, `source` and `resume`,
    a path or "".  Raises `Error` for a flag that has no meaning with the others, or contradicts
    the run.
    """
    defaults = vars(parser.parse_args([]))
    unset = object()
    if {"-h", "--help", "--help-all"} & set(sys.argv if argv is None else argv):
        say_defaults(parser, table, defaults)
    given = vars(parser.parse_args(argv, Namespace(**dict.fromkeys(defaults, unset))))
    given = {k: v for k, v in given.items() if v is not unset}
    for name, value in given.items():
        if value == "":
            raise Error(f"{flag(name)} is empty (a variable that is not set?); leave it out, or fill it")
    run = given.pop("resume", "")
    own = stored = {}
    if run:
        run = str(Path(run))
        stored = read_args(run, method, parser)
        if missing := {"versions", "schedule_kimg", "data_name", "train_images"} - stored.keys():
            raise damaged(Path(run, "args.json"), f"{min(missing)} is missing")
        own = stored
        stored = formerly | stored
    elif given.get("backbone") == "auto":
        del given["backbone"]
    inherited = inherit(given) if inherit and not run else {}
    if "init" in given:
        if not run:
            inherited.update(settings_of(given["init"], given, method, parser, networks, formerly))
        given["init"] = str(Path(given["init"]).resolve())
    elif given.get("freeze_d") and not run and "restyle" not in given:
        raise Error("--freeze-d keeps what --init RUN has learnt; add that, or leave it out")
    values, source = look_up(table, defaults, stored or inherited | given)
    source.update(dict.fromkeys(inherited.keys() - given.keys(), "inherited"))

    useless = {a.dest: a.only for a in parser._actions if not holds(getattr(a, "only", {}), values)}
    for name in sorted(useless.keys() & given.keys()):
        wanted = [(flag(k), " or ".join(v) if isinstance(v, tuple) else v) for k, v in useless[name].items()
                  if not holds({k: v}, values)]
        if others := [k for k, v in wanted if v is False]:
            raise Error(f"{flag(name)} is of no use with {others[0]}; leave one of them out")
        where = " ".join(k if v is True else f"{k} {v}" for k, v in wanted)
        raise Error(f"{flag(name)} is for {where}; leave it out, or pass that")
    values = {k: v for k, v in values.items() if k in own or k not in useless}
    if run:
        values.update(out=run, resume=run)
        if "out" in given and Path(given["out"]).resolve() == Path(run).resolve():
            del given["out"]
        for name, value in given.items():
            if name in RESUMABLE:
                values[name] = value
            elif str(stored.get(name)) not in (str(value), str(Path(str(value)).resolve())) and value != "auto":
                raise Error(f"{run} was trained with {flag(name)} {stored.get(name)}, not {value}; leave "
                            f"the flag out to resume it, or start another run with --out")
        return Namespace(**values)
    if "snapshot_kimg" not in given:
        values["snapshot_kimg"] = min(values["snapshot_kimg"], values["kimg"] / 4)
    return Namespace(**values, method=method, source=source)


def check_resolution(args, resolutions):
    """Raise `Error` where args.resolution is given and args.backbone cannot make it."""
    sizes = resolutions[args.backbone]
    sides = args.resolution.split("x")
    if args.backbone == "stylegan" and all(s.isdecimal() for s in sides) and len(sides) == 2:
        small, large = sorted(map(int, sides))
        if large in STYLE_SIZES and small in (large // 2, large * 3 // 4, large):
            return
        raise Error(f"stylegan makes WxH whose larger side is one of {', '.join(map(str, STYLE_SIZES))} and whose "
                    f"other is 1/2, 3/4 or all of it, such as 128x96; not {args.resolution}")
    if args.resolution != "auto" and args.resolution not in [s for n in sizes for s in (f"{n}", f"{n}x{n}")]:
        others = [b for b, n in resolutions.items() if args.resolution in map(str, n)]
        wanted = int(sides[0]) if sides[0].isdecimal() else 0
        near = min(sizes, key=lambda size: abs(size - wanted))
        raise Error(f"{args.backbone} makes images of {' or '.join(map(str, sizes))} px, not {args.resolution}; "
                    + (f"pass --backbone {others[0]}, or " if others else "pass ") + f"--resolution {near}")


def complete_levels(args, image_shape, world, rates=RATES, part=500, total=None):
    """Complete what depends on the number of levels in a stylegan's args: kimg, grow_kimg,
    snapshot_kimg, batch, lr, batches and rates.  Raises `Error` where sizes do not fit.

    rates: at 4, 8, ... px; part: thousands of images of a fade, by default; total: of
    its whole training, if that is not two parts more than the levels'.
    """
    n, _ = levels_of(image_shape)
    first = STYLE_SIZES.index(args.start_resolution)
    if first >= n:
        size = max(image_shape[1:])
        raise Error(f"--start-resolution {args.start_resolution} is above the images' {size} px; pass {size} or less")
    table = BATCHES[max(k for k in BATCHES if k <= world)]
    parts = total / part if total else 2 * (n - first) + 2
    args.batch = args.batch or table[n - 1]
    args.lr = args.lr or rates[n - 1]
    args.grow_kimg = args.grow_kimg or (args.kimg / parts if args.kimg else part)
    args.kimg = args.kimg or args.grow_kimg * parts
    most = max(args.batch, 1000 * args.grow_kimg / 8)       # ours: short runs get eight steps a part
    tops = [max(args.batch, k) for k in BATCHES[8]]         # ours: of a large --batch low levels are not thousands
    args.batches = [max(round(min(k * args.batch / table[n - 1], top, most) / world), 1) * world
                    for k, top in zip(table[:n], tops)]
    args.batch = args.batches[-1]
    args.rates = [rate * args.lr / rates[n - 1] for rate in rates[:n]]
    args.snapshot_kimg = args.snapshot_kimg or args.kimg / 20


def complete(args, images, held_out, label, words, constants, default_split="dw"):
    """Complete a new run's arguments by what its data decide, and print them.

    label: the paper's name of the method; words: of the folder's name, between method and backbone,
    "" for none; constants: what is no flag, as text.  Sets also image_shape, train_images,
    image_means, versions, schedule_kimg (the --kimg that schedules are laid out for, whatever
    --resume makes of it), and what is "auto" of split, resolution and out:
    runs/<method>[-<word>]-<backbone>-<data>[-<split>][-<resolution>][-init][-s<seed>].
    """
    args.given = dict(split=args.split, resolution=args.resolution)
    vars(args).update(label=label, schedule_kimg=args.kimg, data_name=images.name, image_shape=list(images.shape),
                      train_images=len(images), image_means=images.means(), only_digest=images.only)
    args.versions = dict(torch=str(torch.__version__), code=code_version())
    if args.out == "auto":
        size = "auto" if args.init and args.source.get("resolution") == "inherited" else args.resolution
        parts = [args.method] + words + [
            args.backbone, images.name, args.split if args.split not in ("auto", default_split) else "",
            Path(args.only).stem, size if size != "auto" else "", "init" if args.init else "",
            f"s{args.seed}" if args.seed else ""]
        args.out = str(Path("runs", "-".join(part for part in parts if part)))
    h, w = getattr(images, "images", images).shape[1:]          # of tiles: of what they are cut from
    args.resolution = str(w) if w == h else f"{w}x{h}"
    args.split = images.split or "auto"
    keep_place(args, images)
    if int(os.environ.get("RANK", 0)):
        return
    print(f"{label} on {images.name}: {len(images):,} training and {len(held_out):,} held-out images, "
          f"{'x'.join(map(str, images.shape))}; run folder {args.out}")
    print("\n".join(images.about(held_out)))
    hidden = {"method", "label", "resume", "versions", "out", "data", "data_root", "data_name", "train_images",
              "image_means", "schedule_kimg", "given", "source", "only_digest"}
    source = {**args.source, "batches": args.source.get("batch"), "rates": args.source.get("lr")}
    other = Path(args.init or getattr(args, "decoder", "") or getattr(args, "restyle", "")).name
    titles = dict(none="settings", given="given", inherited=f"of {other}", paper="of the paper",
                  code="of the authors' code", ours="ours")
    lines = {title: [] for title in titles.values()}
    for name, value in vars(args).items():
        if name not in hidden and value != "":
            lines[titles.get(source.get(name), "settings")].append(f"{name} {value}")
    lines["constants"] = [c for c in constants if c] + [f"ema half-life {EMA_HALF_LIFE:,} images"]
    for title, shown in lines.items():
        if shown:
            print(f"{title}: {'  '.join(shown)}")


def check_images(args, images):
    """Raise `Error` unless these are the resumed run's images; note where it goes on."""
    if problem := images.unlike(vars(args)):
        raise Error(f"{args.resume} was trained on {problem}; say where its own images are by --data, "
                    f"--data-root or --only")
    keep_place(args, images)
    fresh = not args.train_images               # of public weights: from now on these are its images
    if fresh:
        vars(args).update(data_name=images.name, train_images=len(images), image_means=images.means(),
                          only_digest=images.only)
    code = code_version()
    if code not in args.versions["code"]:
        args.versions["code"] += f", {code}"
    if int(os.environ.get("RANK", 0)) == 0:
        where = f" as {args.out}" if args.out != args.resume else ""
        longer = f"; schedules stay those of {args.schedule_kimg:g} kimg" if args.kimg > args.schedule_kimg else ""
        begin = "; optimisers, and the averaging of weights, begin fresh from the public ones" if fresh else ""
        print(f"resuming {args.resume}{where}{longer}{begin}")


def keep_place(args, images):
    """Note where the images are, in case the run is resumed from another folder."""
    args.data_root = str(Path(args.data_root).resolve())
    args.data = str(images.path or args.data)
    args.only = args.only and str(Path(args.only).resolve())


# --------------------------------------------------------------------------------------- 10 The run

def write_atomic(path, data):
    """Write bytes so that `path`, or what it links to, holds all of them or what it held before.

    A device or pipe gets them directly.
    """
    if (path.exists() and not path.is_file()) or path.parent == Path("/dev"):
        with open(path, "ab") as f:
            f.write(data)
        return
    path = Path(os.path.realpath(path))
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:           # Ctrl-C too
        part.unlink(missing_ok=True)
        raise


def bytes_of(save, *args, **options):
    """What save(file, ...) writes."""
    file = io.BytesIO()
    save(file, *args, **options)
    return file.getvalue()


def save(path, value):
    """torch.save, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, bytes_of(lambda file: torch.save(value, file)))


def code_version():
    """The git commit of this code, with a + if files were changed since; "unknown" outside git."""
    describe = ["git", "-C", Path(__file__).parent, "describe", "--always", "--exclude=*", "--abbrev=10", "--dirty=+"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def method_of(run, args):
    """The script of the method that a run's arguments name, for its `load`."""
    name = args["method"]
    try:
        method = importlib.import_module(name) if str(name).isidentifier() else None
    except ModuleNotFoundError as e:
        if e.name != name:
            raise
        raise Error(f"{run} names the method {name!r}; there is no {name}.py here") from None
    load = getattr(method, "load", lambda: None)
    if list(inspect.signature(load).parameters)[:3] != ["run", "device", "weights"]:
        raise Error(f"{run}/args.json names the method {name!r}, which is none; put back what the script wrote")
    return method


def damaged(path, what):
    """-> the `Error` for a file that was changed since a run wrote it."""
    return Error(f"{path}: {what}; put back a copy of the file, or train again in another folder")


@contextlib.contextmanager
def fitting(path):
    """Turns what goes wrong in the block, because `path` does not fit its run, into an `Error`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        if is_out_of_memory(e):
            raise
        raise damaged(path, f"does not fit ({type(e).__name__}: {' '.join(str(e).split())[:200]})") from None


FITS = {  # what args.json has besides flags, and whether it is as a run wrote it
    "method": lambda value, args: value.isidentifier(),
    "backbone": lambda value, args: isinstance(value, str),
    "image_shape": lambda value, args: len(value) == 3 and all(type(n) is int and n > 0 for n in value),
    "batches": lambda value, args: all(type(n) is int and n > 0 for n in value)
        and len(value) == levels_of(args["image_shape"])[0],
    "rates": lambda value, args: min(value) > 0 and len(value) == levels_of(args["image_shape"])[0],
    "versions": lambda value, args: isinstance(value["code"], str),
    "given": lambda value, args: {"split", "resolution"} <= set(value),
    "train_images": lambda value, args: value >= 0,      # 0: unknown, of public weights
    "image_means": lambda value, args: len(bytes.fromhex(value)) % 2 == 0,
    "schedule_kimg": lambda value, args: value > 0,
}


def read_args(run, method=None, parser=None):
    """The resolved arguments of a run folder, flags as the command line would have them.

    parser: whose flags they are; those that all methods share if not given.  Raises
    `Error` if the folder holds none, damaged ones, or another method's.
    """
    path = Path(run, "args.json")
    try:
        args = json.loads(path.read_text())
        args["method"], args["backbone"], args["image_shape"]
    except (OSError, ValueError, KeyError, TypeError):
        why = "no readable args.json" if Path(run).is_dir() else "it is no folder" if Path(run).exists() else (
            "there is no such folder")
        raise Error(f"{run} holds no run ({why}); name a folder that a script made") from None
    for name, fits in FITS.items():
        try:
            good = name not in args or fits(args[name], args)
        except (LookupError, TypeError, ValueError, AttributeError):
            good = False
        if not good:
            raise damaged(path, f"{name} cannot be {args[name]!r}")
    if method not in (None, args["method"]):
        raise Error(f"{run} is a run of {args['method']}.py, not of {method}.py; use that script")
    for action in (parser or method_parser("", [args["backbone"]]))._actions:
        name = action.dest
        value = args.get(name, action.default)
        try:
            if value is None and name in args:
                raise ValueError
            if value == action.default:
                continue
            if action.type:
                args[name] = value = action.type(str(value))
            known = action.choices or [value if action.type else str(value)]
            if value is not True if action.nargs == 0 else value not in known:
                raise ValueError
        except (ValueError, TypeError, ArgumentTypeError):
            raise damaged(path, f"{name} cannot be {value!r}") from None
    return args


def read_checkpoint(run, args, device, name="checkpoint.pt"):
    """A checkpoint, on `device`.  Raises `Error` if it is missing, broken or of other settings."""
    path = Path(run) / name
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        written = checkpoint["args"].items()
        if type(checkpoint["seen"]) is not int or not isinstance(checkpoint["state"], dict):
            raise TypeError
    except FileNotFoundError:
        kept = ", ".join(path.stem.lstrip("0") for path in sorted(Path(run, "kept").glob("*.pt")))
        raise Error(f"{run} has no {name}; " + ("train it first" if name == "checkpoint.pt" else
                    f"it keeps the weights of these kimg: {kept or 'none (see --keep-kimg)'}")) from None
    except OSError as e:
        raise Error(f"{path} cannot be opened ({e.strerror}); check its permissions and the disk") from None
    except Exception as e:      # torch.load lets through whatever the damage leads to
        if is_out_of_memory(e):
            raise
        raise Error(f"{path} cannot be read ({type(e).__name__}); it is damaged or not a checkpoint of this project: "
                    f"put back a copy, or train again in another folder") from None
    for key, value in written:
        if key not in RESUMABLE + ("resume", "versions") and value != args.get(key):
            raise Error(f"{path} was written with {key} = {value}, but args.json says {args.get(key)}; "
                        f"the two files belong to different runs")
    return checkpoint


def begin_from(args, model, device):
    """Give a new run the averaged weights of --init.

    Raises `Error` for images of another shape, and for a run that has not grown up.
    """
    if args.resume and Path(args.resume, "checkpoint.pt").exists():
        return
    stored = read_args(args.init)
    if stored["image_shape"] != args.image_shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (stored["image_shape"], args.image_shape))
        raise Error(f"--init {args.init} makes images of {theirs}, and these are {ours}; begin without it")
    checkpoint = read_checkpoint(args.init, stored, device)
    with fitting(args.init):
        model.load_state_dict(checkpoint["state"]["ema"])
    check_grown(args.init, model)


def hold(net, args):
    """Keep the first --freeze-d blocks of a network that sees images as --init has them; stylegan's
    from-RGB goes with them.  (FreezeD, Mo et al. 2020, 2002.10964; not in the papers)

    A block halves the image (biggan's last two do not), or is a layer of mlp.  Raises `Error` if there are not so many.
    """
    n = args.freeze_d
    net = getattr(net, "net", net)
    blocks = [net.layer1, net.layer2] if hasattr(net, "layer1") else list(getattr(net, "convs", None) or net.blocks)
    if n > len(blocks):
        raise Error(f"--freeze-d {n} is too many: {args.backbone} has {len(blocks)} blocks here; pass fewer")
    if isinstance(net, Growing):                # its blocks begin at 4 px
        blocks = [net.from_rgb] + blocks[::-1]
        n += 1
    for block in blocks[:n]:
        block.requires_grad_(False)


def check_grown(run, model):
    """Raise `Error` for a model whose networks have not grown up."""
    for m in model.modules():
        if isinstance(m, Growing) and (m.top < m.levels - 1 or m.fades):
            raise Error(f"{run} has grown to {max(m.size())} px only, alpha {float(m.alpha):.2f}; go on with it by "
                        f"--resume first")


def load_model(run, method, make_model, device, weights, kimg):
    """make_model(args) with a run's averaged ("ema") or trained ("raw") weights, in eval mode;
    kimg: with those that were kept there, None for the last ones.  Raises `Error`."""
    if weights not in ("ema", "raw"):
        raise Error(f"weights are 'ema' or 'raw', not {weights!r}")
    args = read_args(run, method)
    with fitting(run):
        model = make_model(args)
        checkpoint = read_checkpoint(run, args, device, "checkpoint.pt" if kimg is None else f"kept/{kimg:06d}.pt")
        if kimg is not None and weights == "raw":
            raise Error(f"{run} keeps averaged weights alone; leave out kimg, or weights raw")
        model.load_state_dict(checkpoint["state"]["ema" if weights == "ema" else "model"])
        model.seen = checkpoint["seen"]
        return model.to(device).eval().requires_grad_(False)


class Run:
    """The folder of a run that trains: log.csv, checkpoint.pt, pictures.  Process 0 writes, and
    shows progress.

    args: with `out`; with args.resume the checkpoint is read into state.  state: name -> what
    training changes (modules, optimisers, torch generators).  losses: their names, in the order
    of `step`.  trace: a file of the folder for a row of losses a step, or "".  Raises `Error` for
    a folder that already holds a run.
    """
    HEADER = ("kimg", "seconds", "images/s", "lr", "level", "alpha", "peak_gb")
    MEASURES = ("mse", "recip_x", "recip_w")

    def __init__(self, args, state, losses, device, growth, trace=""):
        self.args = args
        self.state = state
        self.losses = tuple(losses)
        self.device = device
        self.growth = growth
        self.folder = Path(args.out)            # with --resume A --out B, goes on from A in B
        self.writer = int(os.environ.get("RANK", 0)) == 0
        self.seen = 0
        self.seconds = 0.0                      # of training before this process
        self.last_snapshot = -1
        self.saved = 0                          # images of the checkpoint
        self.sums = [0.0 for _ in losses]       # since the last row of log.csv
        self.steps = 0
        self.trace = trace
        self.columns = {"log.csv": self.HEADER + self.losses + self.MEASURES}
        if trace:
            self.columns[trace] = ("kimg",) + self.losses
        self._claim()
        if args.resume:
            self._resume(Path(args.resume))
        self.looked = self.shown = time.time()
        self.began = self.looked - self.seconds
        self.drawn = 0.0
        self.rate = 0.0                         # images/s
        self.rated = None                       # images and time at the last look at the clock
        self.lately = self.during = 0.0         # images, and their seconds, of which the rate is made
        self.window = None                      # images, time, CPU seconds when it began
        self.trial = None           # threads and rate before a trial of fewer; False: it did not help
        self.pending = []                       # (images, losses not yet fetched from the device)
        self.stop = False                       # a signal asked to stop, and all processes agree
        self.stop_wanted = 0                    # which signal this process had,
        self.stop_asked = 0.0                   # and when
        self.asked = None                       # which signal any process had at the last step
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:     # as under nohup
            numbers += [signal.SIGHUP]
        for number in numbers:
            signal.signal(number, self._on_signal)
        if self.writer:
            text = json.dumps({**vars(args), "resume": ""}, indent=1)
            write_atomic(self.folder / "args.json", text.encode())
            for line in notes(args, device):
                print(f"note: {line}")
            end = max(growth.sizes[growth.at(1000 * args.kimg - 1)[0]])
            if end < max(growth.sizes[-1]) and not args.resume:
                print(f"with --kimg {args.kimg:g} and --grow-kimg {args.grow_kimg:g} it ends at {end} px")

    # -- what the loop asks

    @property
    def done(self):
        return self.stop or self.seen >= self.args.kimg * 1000

    @property
    def snapshot_due(self):
        every = self.args.snapshot_kimg * 1000
        return not self.stop and (self.last_snapshot < 0 or self.seen // every != self.last_snapshot // every
                                  or (self.seen >= self.args.kimg * 1000 and self.seen != self.last_snapshot))

    def step(self, losses, batch):
        """Count a step of `batch` images.  losses: scalar tensors, fetched about once a second."""
        self.seen += batch
        self.pending.append((self.seen, torch.stack([loss.detach().float() for loss in losses])))
        if dist.is_initialized():       # all stop at the same step, the one after; asked without waiting for the GPU
            if self.asked:
                self.asked[1].wait()
                self.stop = self.asked[0].item() > 0
            flag = torch.tensor(self.stop_wanted)
            self.asked = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True)
        if time.time() - self.looked > 1:
            self._look()

    def snapshot(self, lr, model, x, z, level=0, alpha=1.0):
        """Write a row of log.csv, pictures, curves.png and the checkpoint.

        model: the averaged one;  x, z: see `fixed_inputs`.
        """
        self._fetch()
        self._check()
        if self.writer:
            measures = inversion_errors(model, x, z)
            pictures = snapshot_pictures(model, x, z)
            with self._writing():
                self._show(measures, pictures, lr, level, alpha)
        self.sums = [0.0 for _ in self.losses]
        self.steps = 0
        self.last_snapshot = self.seen
        self.save()
        self.rated = self.window = None         # do not count the time that this took
        if self.writer and self.seen == 0:
            print("pictures: " + " and ".join(f"{self.folder}/{name}" for name in pictures), flush=True)

    def save(self, file="checkpoint.pt", names=None):
        """Write state, or what it has of these names, and how far the run is."""
        if not names:
            self.saved = self.seen              # in every process: any may be the one that says so
        if not self.writer:
            return
        args = {k: v for k, v in vars(self.args).items() if k != "resume"}
        state = {name: v.get_state() if isinstance(v, torch.Generator) else v.state_dict()
                 for name, v in self.state.items() if not names or name in names}
        checkpoint = dict(args=args, seen=self.seen, seconds=time.time() - self.began, sums=self.sums,
                          steps=self.steps, last_snapshot=self.last_snapshot, state=state)
        with self._writing():
            save(self.folder / file, checkpoint)

    def finish(self):
        """Last words.  After a signal: write the checkpoint, then leave as interrupted."""
        self._fetch()
        if self.stop:
            self._check()
            self.save()
        if dist.is_initialized():
            dist.barrier()                      # the others wait for process 0's checkpoint
            dist.destroy_process_group()
        if self.writer:
            word, then = ("stopped", "go on with --resume") if self.stop else ("done", "python eval.py metrics")
            seconds = duration(time.time() - self.began)
            self._say(f"{word}: {self.seen / 1000:g} kimg in {seconds}; {then} {self.folder}")
        if self.stop:
            raise KeyboardInterrupt

    # -- inside

    def _claim(self):
        """Make the folder this process's for as long as it lives.
        Raises `Error` in every process if it is taken."""
        problem = [self._occupied() if self.writer else ""]
        if dist.is_initialized():
            dist.broadcast_object_list(problem)
            if problem[0] and not self.writer:
                sys.exit(2)                     # process 0 says why
        if problem[0]:
            raise Error(problem[0])

    def _occupied(self):
        """Lock the folder and look into it.  -> who has it or what it holds, and what to do,
        or ""."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.folder / ".lock", "a+")
        try:
            import fcntl
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.lock.seek(0)
            return (f"{self.folder} is in use by {self.lock.read() or 'another process'}; wait for its end, or stop "
                    f"it, and --resume {self.folder}; or name another folder by --out")
        except (ImportError, OSError):
            pass                                # Windows, or a disk without locks
        self.lock.truncate(0)
        self.lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self.lock.flush()
        if self.args.out == self.args.resume:
            for part in self.folder.rglob("*.[0-9]*.part"):         # of a process that was killed
                if part.is_file():
                    part.unlink()
        elif any((self.folder / name).exists() for name in ("args.json", "checkpoint.pt", "log.csv")):
            return (f"{self.folder} already holds a run; go on with it by --resume {self.folder}, or name another "
                    f"folder by --out")
        return ""

    def _show(self, measures, pictures, lr, level, alpha):
        """What a snapshot writes, except the checkpoint."""
        means = [s / self.steps if self.steps else "" for s in self.sums]
        row = [self.seen / 1000, round(time.time() - self.began, 1), round(self.rate, 1) or "", lr, level, alpha,
               round(peak_memory(self.device) / 1e9, 3)]
        log = self._append("log.csv", [row + means + [measures[k] for k in self.MEASURES]])
        for name, picture in pictures.items():
            (self.folder / name).mkdir(exist_ok=True)
            last = -1 if self.last_snapshot < 0 else self.last_snapshot // 1000
            whole = self.args.snapshot_kimg >= 1 and self.seen // 1000 != last      # else it has the last one's name
            kimg = f"{self.seen // 1000:06d}" if whole else f"{self.seen / 1000:010.3f}"
            save_png(self.folder / name / f"{kimg}.png", picture)
        if time.time() - self.drawn > 30 or self.seen >= self.args.kimg * 1000:
            curves(log, self.folder / "curves.png")
            self.drawn = time.time()
        keep = self.args.keep_kimg * 1000
        if keep and self.seen and self.seen // keep != self.last_snapshot // keep:
            self.save(f"kept/{int(self.seen / 1000):06d}.pt", ["ema"])

    @contextlib.contextmanager
    def _writing(self):
        """Around what writes to the folder: if that fails, `Error` says how to go on."""
        try:
            yield
        except OSError as e:
            raise Error(f"{e.filename or self.folder} could not be written ({e.strerror}); the last checkpoint is "
                        f"whole: make room and --resume {self.folder}") from None

    def _on_signal(self, number, frame):
        if not self.stop_wanted:
            self.stop_wanted = number
            self.stop_asked = time.time()
        elif time.time() - self.stop_asked > 2:     # a second Ctrl-C stops at once
            raise KeyboardInterrupt
        self.stop = self.stop or not dist.is_initialized()     # several processes agree in step

    def _resume(self, source):
        """Read source's checkpoint, and take over the rows of its log.csv up to there."""
        tables = self.columns if self.writer else {}
        if not (source / "checkpoint.pt").exists():     # stopped before the first one: begin again
            for log in (source / name for name in self.columns):
                if log.exists() and log.read_bytes().count(b"\n") > 2:  # the head and kimg 0
                    raise Error(f"{source} has {log.name}, but no checkpoint.pt; put back a copy, or train again in "
                                f"another folder")
            if self.writer:
                print(f"note: {source} has no checkpoint.pt, so it begins from nothing")
            for name in tables:
                (self.folder / name).unlink(missing_ok=True)
            return
        checkpoint = read_checkpoint(source, vars(self.args), self.device)
        with fitting(source / "checkpoint.pt"):
            for name, target in self.state.items():
                self._take(target, checkpoint["state"][name], checkpoint["seen"])
            for name, kind in dict(seen=int, steps=int, seconds=float, last_snapshot=int, sums=list).items():
                setattr(self, name, kind(checkpoint[name]))
            self.saved = self.seen
            if len(self.sums) != len(self.losses):
                raise ValueError(f"{len(self.sums)} losses for {', '.join(self.losses)}")
        if self.seen - max(getattr(self.args, "batches", [self.args.batch])) >= self.args.kimg * 1000:
            raise Error(f"{source} has shown {self.seen / 1000:g} kimg already; pass a longer --kimg, or none")
        for name, columns in tables.items():
            if not (source / name).is_file():
                continue
            try:
                with open(source / name, newline="", encoding="utf-8") as f:
                    header, *rows = csv.reader(f)
                if header != list(columns):
                    raise ValueError
                rows = [row for row in rows if len(row) == len(columns) and float(row[0]) * 1000 <= self.seen + 0.5]
            except (ValueError, csv.Error):
                raise Error(f"{source / name} does not hold this run's rows; put back a copy, or move it away, and a "
                            f"new one begins") from None
            text = io.StringIO()
            csv.writer(text).writerows([columns] + rows)
            write_atomic(self.folder / name, text.getvalue().encode())

    def _take(self, target, value, seen):
        """Put a checkpoint's value into a module, an optimiser or a generator."""
        if not isinstance(target, torch.Generator):
            target.load_state_dict(value)
            for p, kept in getattr(target, "state", {}).items():       # which Adam does not look at
                if not kept["exp_avg"].shape == kept["exp_avg_sq"].shape == p.shape:
                    raise ValueError("an optimiser's moments are of another shape")
                for name in ("exp_avg", "exp_avg_sq"):      # the fused step goes by their order in memory, as p's
                    kept[name] = torch.empty_like(p).copy_(kept[name])
            return
        try:
            target.set_state(value.cpu())
        except RuntimeError:                # the state of another kind of device
            target.manual_seed(self.args.seed + seen)

    def _append(self, name, rows):
        path = self.folder / name
        if not path.exists():
            rows = [self.columns[name]] + rows
        with open(path, "a", newline="") as f:
            csv.writer(f).writerows(rows)
            f.flush()
            os.fsync(f.fileno())
        return path

    def _fetch(self):
        """Bring the pending losses over and add them up; stop at the first that is not finite."""
        if not self.pending:
            return
        seen = [n for n, _ in self.pending]
        values = torch.stack([losses for _, losses in self.pending]).cpu().double()     # [steps,losses]
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            step, i = bad[0].tolist()
            raise Error(f"{self.losses[i]} is {values[step, i].item()} at {seen[step] / 1000:g} kimg; the checkpoint "
                        f"of {self.saved / 1000:g} kimg is kept: try a lower --lr or stronger regularisation")
        if self.trace and self.writer:
            with self._writing():
                self._append(self.trace, [[n / 1000] + row for n, row in zip(seen, values.tolist(), strict=True)])
        for row in values.tolist():             # one by one, so that the sum does not depend on when it is fetched
            self.sums = [s + v for s, v in zip(self.sums, row, strict=True)]
        self.steps += len(values)
        self.recent = values[-1].tolist()
        self.pending = []

    def _check(self):
        """Raise `Error` if weights are not finite: a loss is of those before its update."""
        for name, net in self.state.items():
            tensors = [*net.parameters(), *net.buffers()] if isinstance(net, nn.Module) else []
            if not all(t.isfinite().all() for t in tensors):
                raise Error(f"{name} has weights that are not finite at {self.seen / 1000:g} kimg; the checkpoint of "
                            f"{self.saved / 1000:g} kimg is kept: try a lower --lr or stronger regularisation")

    def _spare_threads(self):
        """Next to another busy program on a CPU, try fewer threads; keep them if that is faster.

        Each step waits for the thread that the other program has put aside: with two threads on two
        cores and one such program the MLP falls to a sixth of its speed, with one thread to a
        half.  OMP_NUM_THREADS settles the number.
        """
        threads = torch.get_num_threads()
        settled = self.trial is False or (threads == 1 and not self.trial)
        if self.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ or settled:
            return
        now = (self.seen, time.time(), time.process_time())
        self.window = self.window or now
        images, seconds, busy = [b - a for a, b in zip(self.window, now, strict=True)]
        if seconds < 5:
            return
        self.window = now
        if self.trial:
            before, rate_before = self.trial
            faster = images / seconds / rate_before
            self.trial = None
            if faster < 1:                      # something else slows it, such as reading images
                self.trial = False
                torch.set_num_threads(before)
            elif self.writer:
                self._say(f"note: this machine is busy, so {threads} of {before} threads go on, {faster:.1f} times as "
                          f"fast; OMP_NUM_THREADS sets their number")
        elif busy / seconds < 0.7 * threads:
            self.trial = (threads, images / seconds)
            torch.set_num_threads(max(round(busy / seconds), 1))

    def _say(self, line):
        """Print a line below the progress line."""
        print(("\n" if sys.stdout.isatty() else "") + line, flush=True)

    def _look(self):
        """Once a second: fetch losses, measure the rate,
        print the line (every 30 s if not on a terminal)."""
        self._fetch()
        now = self.looked = time.time()
        if self.rated:
            seconds = now - self.rated[1]
            kept = math.exp(-seconds / 30)          # what is 30 s old counts 1/e
            self.lately = self.lately * kept + self.seen - self.rated[0]
            self.during = self.during * kept + seconds
            self.rate = self.lately / max(self.during, 1e-9)
        self.rated = (self.seen, now)
        self._spare_threads()
        terminal = sys.stdout.isatty()
        if self.writer and (terminal or now - self.shown > 30):
            left = (self.args.kimg * 1000 - self.seen) / max(self.rate, 1e-9)
            line = f"{self.seen / 1000:.1f} of {self.args.kimg:g} kimg  " + "  ".join(
                f"{name} {value:.3f}" for name, value in zip(self.losses, self.recent, strict=True))
            level, alpha, _, _ = self.growth.at(self.seen)
            last = level == len(self.growth.sizes) - 1      # an image takes longer at the levels above
            if len(self.growth.sizes) > 1:
                line += f"  {max(self.growth.sizes[level])} px" + (f", alpha {alpha:.2f}" if alpha < 1 else "")
            if self.rate > 0:
                rate = f"{self.rate:,.0f}" if self.rate >= 100 else f"{self.rate:.3g}"
                line += f"  {rate} images/s  {'' if last else 'at least '}{duration(left)} left"
            print(f"\r{line:<100}" if terminal else line, end="" if terminal else "\n", flush=True)
            self.shown = now


def duration(seconds):
    """90 -> "1m30s"."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s"


def peak_memory(device):
    """Bytes: the most that was allocated on a GPU, or the process's largest size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:                         # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# -------------------------------------------------------------------------------------- 11 Pictures

def to_float(x):
    """uint8 0 ... 255 -> float in [-1, 1]."""
    return x.float() / 127.5 - 1


def mirror(x, draw):
    """Images (N, C, H, W), those with draw (N,) < 0.5 mirrored."""
    return torch.where(draw[:, None, None, None] < 0.5, x.flip(3), x)


def to_uint8(x):
    """Float in [-1, 1] -> uint8, rounded and clipped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(x, columns):
    """Images (N, C, H, W) in [-1, 1], row by row -> a picture (H', W', 3) uint8."""
    import torchvision
    return torchvision.utils.make_grid(to_uint8(x.cpu()), columns, padding=2, pad_value=255).permute(1, 2, 0).numpy()


def pairs(x, y, columns=16):
    """A picture of rows of x (N, C, H, W), each above the same row of y;
    an incomplete last row is left out."""
    columns = min(columns, len(x))
    n = len(x) // columns * columns
    rows = [row for pair in zip(x[:n].split(columns), y[:n].split(columns)) for row in pair]
    return grid(torch.cat(rows), columns)


@torch.no_grad()
def snapshot_pictures(model, x, z):
    """-> samples from z, unless it is None, and, with an encoder, x above its reconstructions.

    For `Run.snapshot`.  64 samples and 32 pairs up to 256 px, fewer of larger images.
    """
    columns = max(min(8, 2048 // x.shape[3]), 2)
    pictures = {}
    if hasattr(model, "encode"):
        x = x[:columns**2 // 2]
        pictures["reconstructions"] = pairs(x, reconstruct(model, x), 2 * columns)
    if z is not None:
        w = model.map(z[:columns**2])
        x = torch.cat([model.generate(b, noise="fixed") for b in w.split(few(x.shape[1:]))])
        pictures["samples"] = grid(x, columns)
    return pictures


def open_image(path, model):
    """An image file of any size and kind, as a model takes it: float (1, C, H, W) in [-1, 1], on
    its device.  It is put upright, cropped at the centre and averaged to the model's size; of a
    file that moves, its first frame.

    Raises data.DataError if it cannot be read.
    """
    from data import read_images
    c, h, w = model.image_shape
    return to_float(read_images([path], c, (h, w), 1)).to(next(model.parameters()).device)


def show(x):
    """Images (N, C, H, W), or one (C, H, W), in [-1, 1] -> a PIL image, which a notebook displays;
    up to 8 in a row."""
    from PIL import Image
    x = x[None] if x.ndim == 3 else x
    return Image.fromarray(grid(x.detach(), min(len(x), 8)))


def save_png(path, picture):
    """Write a (H, W, C) uint8 picture, whole or not at all."""
    from PIL import Image
    write_atomic(Path(path), bytes_of(Image.fromarray(picture).save, "png"))


def is_curve(column):
    """Whether a column of log.csv is drawn: speed, losses and measures."""
    return column == "images/s" or column not in Run.HEADER


def curves(log, path):
    """Plot images/s, losses and measures of log.csv against kimg, a panel each."""
    import matplotlib.figure
    with open(log, newline="") as f:
        rows = list(csv.DictReader(f))
    kimg = [float(row["kimg"]) for row in rows]
    names = [n for n in rows[0] if is_curve(n) and any(row[n] for row in rows)]
    columns = max(math.ceil(len(names) / 2), 1)
    figure = matplotlib.figure.Figure(figsize=(4 * columns, 6), layout="constrained")
    for i, name in enumerate(names, 1):
        axes = figure.add_subplot(2, columns, i)
        values = [float(row[name] or "nan") for row in rows]
        axes.plot(kimg, values, marker="o" if len(rows) < 10 else "")
        axes.set_title(name)
        axes.set_xlabel("kimg")
    write_atomic(Path(path), bytes_of(figure.savefig, format="png", dpi=80))


# ---------------------------------------------------------------------------------------- 12 Errors

def is_out_of_memory(e):
    """The GPU's allocator raises torch.OutOfMemoryError, the CPU's a plain RuntimeError."""
    return isinstance(e, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(e, RuntimeError) and ("allocate memory" in str(e) or "out of memory" in str(e)))     # NCCL's too


def command(main, remedy="pass a smaller --batch, a smaller --resolution or a larger --width"):
    """Run a script's `main` and exit: 0; 2 with one `error:` line for `Error`, no memory (with a
    remedy), no room on the disk; 130 when interrupted.  Anything else is a bug and keeps its traceback."""
    code = 0
    message = None
    for name in ("stdout", "stderr"):           # closed by whoever began it
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    if hasattr(sys.stdout, "reconfigure"):      # names of files that the terminal cannot spell
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        code = 130
    except Error as e:
        message = str(e)
    except (MemoryError, RuntimeError) as e:
        if is_out_of_memory(e):
            message = f"out of memory; {remedy}"
        elif "InvalidCxxCompiler" in str(e):
            message = "--compile needs a C++ compiler, and none works here; install one (g++), or leave --compile out"
        elif isinstance(e, dist.DistError) or "gloo" in str(e):         # what NCCL and gloo raise
            message = ("another process of this job has ended; see what it said, and go on from the last checkpoint, "
                       "which is whole, by --resume RUN")
        else:
            raise
    except BrokenPipeError:                     # whoever read the output has gone
        sys.stdout = None
    except OSError as e:
        if e.errno is None:
            raise
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        message = (f"{e.filename or 'a file'}: {e.strerror}; "
                   + ("make room, or name another place" if full else "check the path and its permissions"))
    if message:
        code = 2
        print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
