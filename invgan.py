"""InvGAN: Invertible GANs, Ghosh et al., GCPR 2022, DOI 10.1007/978-3-031-16788-1_1; numbers are arXiv 2112.04598's.

    python invgan.py                                           DCGAN, 32x32, on 10,000 bundled digits
    python invgan.py --data mnist --variant naive              DCGAN, a model of section 4.4
    python invgan.py --data celeba                             StyleGAN at 128x128
    python invgan.py --data imagenet                           BigGAN on random patches of 32x32 of a folder or zip
                                                               of that name (sections 3.3, 4.3)
    torchrun --nproc_per_node=8 invgan.py --data ffhq          several GPUs
    python invgan.py --restyle RUN                             ReStyle (table 3) over RUN's generator, of any method
    python eval.py metrics runs/invgan-dcgan-mnist-mini        what it learnt, in numbers

    z  (B, nz)       prior sample, N(0, I)            M  z -> w  mapping network
    w  (B, nw)       latent code                      G  w -> x  generator
    x  (B, C, H, W)  image in [-1, 1]                 D  x -> code w~, score c, features f: one trunk and two heads
    w_R              w~ of real images
Section 3.2 is `train_step` and eq. 3 is `full`; section 4.4 compares it with `augmented` and `naive`.  The paper leaves
open all weights, optimisers, rates, widths and lengths; its eq. 4 is a definition.  Where we differ from it, the line
says so; the whole list, with the flags that restore the other reading, is in .github/invgan.md.
"""
import copy
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import common  # before torch, whose threads wait as it says

# isort: split
import torch
import torch.nn.functional as nnf
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

import data
from common import OURS, PAPER, Error, adam, mean_softplus, r1, uncompiled, update

M_DEPTH = dict(mlp=2, dcgan=2, biggan=2, stylegan=8)        # layers of M (section 3.1; mlp: ours)
LR_MUL = 0.01               # learning rate of M, relative to G's
BANDWIDTHS = (0.25, 1, 4)   # of MMD's kernels, times the median squared distance
MEAN_W = 0.995              # stylegan: what the running mean of w keeps at a step
BETAS = dict(mlp=(0.5, 0.999), dcgan=(0.0, 0.99), biggan=(0.0, 0.999), stylegan=(0.0, 0.99))


# -------------------------------------------------------------------------------------- section 3.2

def target(w, args):
    """w as a target: without gradient, because w could shrink to nothing.  --targets moving:
    with it, as printed."""
    return w.detach() if args.targets == "held" else w


# The variants.  x: real images, half the batch; z: noise of the prior; mover: "D" in D's step, "MG"
# in M's and G's; w # w_R in the paper: both batches of codes, joined.
# -> fakes, those of z first; their scores; the terms that are not the GAN's.

def naive(nets, x, z, args, amp, mover):
    """Section 4.4: codes of generated images alone.  x is empty, and z the whole batch."""
    M, G, D = nets
    with torch.set_grad_enabled(mover == "MG"), amp():
        w = M(z)
        fake = G(w)
    with amp():
        of_fake = D(fake)
    L_w = mean_square(target(w, args), of_fake.code)                        # eq. 5; M and G minimise it too
    return fake, of_fake.score, dict(L_w=L_w)


def augmented(nets, x, z, args, amp, mover):
    """Section 4.4: G and D also see codes of real images, w # w_R,
    through which no gradient goes."""
    M, G, D = nets
    with torch.no_grad(), amp():        # an amp of its own: older torch reuses weights that it cast without gradient
        w_R = D(x).code
    with torch.set_grad_enabled(mover == "MG"), amp():
        w_all = torch.cat([M(z).to(w_R.dtype), w_R])                        # w # w_R
        fake = G(w_all)
    with amp():
        of_fake = D(fake)
    L_w = mean_square(target(w_all, args), of_fake.code)                    # eq. 5 over w # w_R
    return fake, of_fake.score, dict(L_w=L_w)


def full(nets, x, z, args, amp, mover):
    """Eq. 3: the same, D learns by w_R, and features, a second cycle and MMD are compared.
    Pixels have no term."""
    M, G, D = nets
    with torch.set_grad_enabled(mover == "D"), amp():
        of_x = D(x)                                                         # P(W|x), all at D(x)
    with amp():
        w = M(z)
        w_all = torch.cat([w.to(of_x.code.dtype), of_x.code])               # w # w_R; one forward: batch norm sees both
        fake = G(w_all)                 # with gradient in D's step too, where D learns through G by w_R
    with amp():
        of_fake = D(fake)
    L_w = mean_square(target(w_all, args), of_fake.code)                    # eq. 3, first term
    f_x, f_fake = of_x.features, of_fake.features[len(z):]
    with amp():
        if mover == "D" and args.targets == "held":     # f is D's trunk, whose weights would shrink the features
            f_x, f_fake = f_x.detach(), features_held(D, fake[len(z):])
        code_again = D(G(of_fake.code)).code                                # the second cycle
    if args.fm == "paired":
        L_fm = mean_square(f_x, f_fake)                                     # eq. 2 as the prose has it, of each image
    else:
        L_fm = torch.linalg.vector_norm(f_x.float().mean(0) - f_fake.float().mean(0))   # eq. 2 as printed, of means
    L_cycle = mean_square(target(of_fake.code, args), code_again)           # eq. 3, third term; printed as w~ - w~
    L_MMD = mmd(w, of_x.code)                                               # eq. 3, fourth term
    return fake, of_fake.score, dict(L_w=L_w, L_fm=L_fm, L_cycle=L_cycle, L_MMD=L_MMD)


def features_held(D, x):
    """D's features of x, with gradient to x and none to D's weights."""
    return functional_call(D, {name: p.detach() for name, p in D.named_parameters()}, (x,)).features


VARIANTS = dict(full=full, augmented=augmented, naive=naive)


def train_step(nets, opt, x, draw, args, amp=nullcontext, mean_w=None):
    """One iteration of eq. 3 on real images x (B, C, H, W): D's step, then M's and G's.

    nets: M, G, D, in train mode.  opt: an Adam of each, by name.  draw: a
    `common.Draw`.  amp: context of bf16 passes. mean_w: running mean of w,
    moved in place.  -> L_D, R1's term, L_G, the variant's terms in D's step.
    """
    M, _, D = nets
    terms_of = VARIANTS[args.variant]
    hinge = args.gan_loss == "hinge"
    half = 0 if args.variant == "naive" else len(x) // 2
    real = x[:half].detach()
    n = B = len(x)                      # L_GAN is over z alone, as printed, with as many codes as real images
    if getattr(args, "gan_codes", "prior") == "both":       # "half the mini batch" (3.2): half of each, all fakes
        n = B - half

    # max over D of L_GAN, min over D of the rest
    fake, _, terms = terms_of(nets, real, draw.z(n), args, amp, "D")
    with amp():
        c_fake = D(fake[:B].detach()).score     # again, without gradient: L_GAN must not reach D through w_R
        c_real = uncompiled(D, args.gamma)(x.requires_grad_(args.gamma > 0)).score  # R1 differentiates it twice
    R1 = args.gamma / 2 * r1(c_real, x) if args.gamma else torch.zeros((), device=x.device)     # steadies dcgan too
    if hinge:
        L_D = torch.relu(1 + c_fake.float()).mean() + torch.relu(1 - c_real.float()).mean()
    else:
        L_D = mean_softplus(c_fake) + mean_softplus(-c_real)                            # eq. 1
    update(L_D + R1 + weighted(terms, args), opt.D)                                     # eq. 3
    if mean_w is not None:
        with torch.no_grad():
            mean_w.lerp_(uncompiled(M)(draw.z(B)).float().mean(0), 1 - MEAN_W)

    # min over M and G
    _, score, terms_MG = terms_of(nets, real, draw.z(n), args, amp, "MG")
    c_fake = score[:B]
    L_G = -c_fake.float().mean() if hinge else mean_softplus(-c_fake)                   # eq. 1, non-saturating
    update(L_G + weighted(terms_MG, args), opt.M, opt.G)                                       # eq. 3

    return [L_D, R1, L_G] + list(terms.values())


def mean_square(a, b):
    """(a - b)^2, a mean over dimensions and the batch, in fp32.
    As a sum, G would hide codes in speckle."""
    return (a.float() - b.float()).square().mean()


def mmd(a, b):
    """Unbiased squared maximum mean discrepancy of codes
    a (n, nw) and b (m, nw), in fp32; it may be negative.

    n, m > 1, of each process's own batch.  The kernel, "an RBF kernel" in
    the paper, is a mean of exp(- |a - b|^2 / (s median)), the median of the
    squared distances of all pairs, held, and s of BANDWIDTHS. (section 3.2)
    """
    n = len(a)
    m = len(b)
    both = torch.cat([a, b]).float()
    squares = both.square().sum(1)
    distance2 = (squares[:, None] + squares - 2 * both @ both.T).clamp(min=0)       # (n + m, n + m)
    # Without its first entry, in rows one longer, the diagonal
    # is the last column; a mask would wait for the device
    off_diagonal = distance2.detach().flatten()[1:].view(n + m - 1, n + m + 1)[:, :-1]
    median = off_diagonal.median().clamp(min=1e-12)
    k = sum(torch.exp(-distance2 / (s * median)) for s in BANDWIDTHS) / len(BANDWIDTHS)
    k = k - k.diag().diag()
    return k[:n, :n].sum() / (n * (n - 1)) + k[n:, n:].sum() / (m * (m - 1)) - 2 * k[:n, n:].mean()


WEIGHTS = dict(L_w="w_weight", L_fm="fm_weight", L_cycle="cycle_weight", L_MMD="mmd_weight")


def weighted(terms, args):
    """The sum of terms, each times its flag."""
    return sum(getattr(args, WEIGHTS[name]) * term for name, term in terms.items())


# ----------------------------------------------------------------------------------------- networks
# BigGAN (1809.11096) for 32x32: residual blocks, spectral
# norm on all but the code, w in every conditional batch norm.

class SpectralNorm(_SpectralNorm):
    """torch's, in fp32 always: in bf16 the largest singular value would be up to 0.5% off."""

    def forward(self, weight):
        with torch.autocast(weight.device.type, enabled=False):
            return super().forward(weight)


def sn(layer):
    """A layer under spectral norm; weights orthogonal at first."""
    nn.init.orthogonal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


class ConditionalNorm(nn.Module):
    """Batch norm, then a gain and a bias of each channel that are linear in w.
    x (N, C, H, W), w (N, nw)."""

    def __init__(self, channels, nw):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.bias = (sn(nn.Linear(nw, channels, bias=False)) for _ in range(2))

    def forward(self, x, w):
        return self.norm(x) * (1 + self.gain(w))[:, :, None, None] + self.bias(w)[:, :, None, None]


class UpBlock(nn.Module):
    """(N, c, H, W) -> (N, c, 2H, 2W)."""

    def __init__(self, channels, nw):
        super().__init__()
        self.norm1, self.norm2 = (ConditionalNorm(channels, nw) for _ in range(2))
        self.conv1, self.conv2 = (sn(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2))
        self.shortcut = sn(nn.Conv2d(channels, channels, 1))

    def forward(self, x, w):
        y = self.conv1(common.upscale(torch.relu(self.norm1(x, w))))
        return self.conv2(torch.relu(self.norm2(y, w))) + self.shortcut(common.upscale(x))


class BigGANGenerator(nn.Module):
    """w (N, nw) -> x (N, C, 32, 32) in [-1, 1]: 256 channels over width at 4, 8, 16 and 32 px."""

    def __init__(self, nw, image_shape, width=1):
        super().__init__()
        n = max(256 // width, 1)
        self.first = sn(nn.Linear(nw, n * 16))
        self.blocks = nn.ModuleList(UpBlock(n, nw) for _ in range(3))
        self.norm = nn.BatchNorm2d(n)
        self.last = sn(nn.Conv2d(n, image_shape[0], 3, padding=1))

    def forward(self, w):
        x = self.first(w).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, w)
        return torch.tanh(self.last(torch.relu(self.norm(x))))


class DownBlock(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H/2, W/2), or of the same size."""

    def __init__(self, c_in, c_out, down, first=False):
        super().__init__()
        self.conv1 = sn(nn.Conv2d(c_in, c_out, 3, padding=1))
        self.conv2 = sn(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = sn(nn.Conv2d(c_in, c_out, 1)) if down or c_in != c_out else nn.Identity()
        self.down, self.first = down, first

    def forward(self, x):
        y = self.conv2(torch.relu(self.conv1(x if self.first else torch.relu(x))))
        s = self.shortcut(x)
        return nnf.avg_pool2d(y, 2) + nnf.avg_pool2d(s, 2) if self.down else y + s


class BigGANDiscriminator(nn.Module):
    """x (N, C, 32, 32) -> (N, n_out): two halvings, two more blocks at 8 px; the score is of the
    sum over pixels.  (section 3.1)"""

    def __init__(self, image_shape, n_out, width=1):
        super().__init__()
        n = max(256 // width, 1)
        self.blocks = nn.Sequential(DownBlock(image_shape[0], n, True, first=True), DownBlock(n, n, True),
                                    DownBlock(n, n, False), DownBlock(n, n, False))
        self.score = sn(nn.Linear(n, 1))
        self.code = nn.Linear(n * 64, n_out - 1)        # without spectral norm, which would tie its size to the score's
        nn.init.normal_(self.code.weight, std=0.02)
        nn.init.zeros_(self.code.bias)

    def trunk(self, x):
        return torch.relu(self.blocks(x)).flatten(1)                        # 8x8 pixels

    def head(self, f):
        return torch.cat([self.score(f.unflatten(1, (-1, 64)).sum(2)), self.code(f)], 1)


@torch.no_grad()
def normalise(ema):
    """Find the largest singular values of averaged weights again, by power iterations from the
    averaged vectors."""
    for module in ema.modules():
        if isinstance(module, ParametrizationList):
            module.train()
            for _ in range(5):
                module()
            module.eval()


class Judged(NamedTuple):
    """What D says of images: the code w~ (N, nw), the score c (N, 1), and f(x),
    the trunk's features (N, n)."""
    code: torch.Tensor
    score: torch.Tensor
    features: torch.Tensor


class Discriminator(nn.Module):
    """D: x -> `Judged`.  (section 3.1)

    Without batch norm and minibatch deviation, which the
    paper may have: a code must not depend on its batch mates.
    """

    def __init__(self, net):
        super().__init__()
        self.net = net                          # its head is both heads: a score, then a code

    def forward(self, x):
        f = self.net.trunk(x)
        out = self.net.head(f)
        return Judged(code=out[:, 1:], score=out[:, :1], features=f)


# -------------------------------------------------------------------------------------------- model

class InvGAN(nn.Module):
    """The three networks, and what `eval.py` asks of any model (eval mode)."""

    def __init__(self, backbone, image_shape, nz, nw, width=1, fmap_base=8192):
        super().__init__()
        self.M = common.Mapping(nz, nw, M_DEPTH[backbone], LR_MUL)
        if backbone == "mlp":
            self.G = common.MLPGenerator(nw, image_shape, width)
            D = common.MLPEncoder(image_shape, 1 + nw, width)
        elif backbone == "dcgan":
            self.G = common.DCGANGenerator(nw, image_shape, width)
            D = common.DCGANEncoder(image_shape, 1 + nw, width)
        elif backbone == "biggan":
            self.G = BigGANGenerator(nw, image_shape, width)
            D = BigGANDiscriminator(image_shape, 1 + nw, width)
        elif backbone == "stylegan":            # StyleGAN (2019); the paper cites StyleGAN2 and StyleGAN alike
            self.G = common.StyleGenerator(nw, image_shape, width, fmap_base)
            D = common.StyleCritic(image_shape, 1 + nw, width, fmap_base, std_group=0)
        self.D = Discriminator(D)
        self.image_shape, self.nz, self.nw, self.num_layers = tuple(image_shape), nz, nw, 1
        self.grows = backbone == "stylegan"
        if self.grows:
            self.num_layers = self.G.num_layers
            self.register_buffer("mean_w", torch.zeros(nw))

    def see(self, x):
        """Images in [-1, 1] -> as D sees them: at the level of a growing one."""
        return self.D.net.fit(x) if self.grows else x

    def show(self, x):
        """What G made -> images of image_shape."""
        return self.G.full(x) if self.grows else x

    def prior(self, n, generator):
        """z (n, nz) ~ N(0, I), on the generator's device."""
        return torch.randn(n, self.nz, generator=generator, device=generator.device)

    def map(self, z):
        """w = M(z), (N, nw)."""
        return self.M(z)

    def generate(self, w, noise="fixed"):
        """x = G(w), (N, C, H, W), images in [-1, 1] (mlp and stylegan
        do not clip), of w (N, nw) or, on stylegan, (N, num_layers, nw).

        noise: "random", "fixed" or "none"; only stylegan has any.
        """
        return self.show(self.G(w, noise) if self.grows else self.G(w))

    def encode(self, x):
        """The code of D(x), (N, nw), of x (N, C, H, W) in [-1, 1]."""
        return self.features(x)[0]

    def features(self, x):
        """-> short (N, nw), the code, and long (N, n), f(x), of x (N, C, H, W) in [-1, 1]."""
        common.check_input(x, self.image_shape)
        out = self.D(self.see(x))
        return out.code, out.features


# ----------------------------------------------------------------------------------------- settings

RESOLUTIONS = {"mlp": [28], "dcgan": [32, 64, 128], "stylegan": common.STYLE_SIZES, "biggan": [32]}
LABELS = dict(full="InvGAN", augmented="InvGAN augmented", naive="InvGAN naive")
PLAIN, RESTYLE = dict(restyle=False), dict(restyle=True)
STYLE, FULL = dict(backbone="stylegan"), PLAIN | dict(variant="full")
# Rows of (where it holds, what is set); later rows refine earlier ones.  PAPER, OURS: the source.
SETTINGS = [
    (dict(), dict(backbone="stylegan")),
    (PLAIN, PAPER(variant="full", gan_loss="logistic", gan_codes="prior"),
        OURS(targets="held", gamma=0.0, lr_d=0.0, w_weight=1.0, fm_weight=1.0, cycle_weight=1.0, mmd_weight=1.0,
             fm="paired")),
    (dict(data=data.ARRAYS), dict(backbone="dcgan")),
    (dict(data="imagenet"), dict(backbone="biggan")),
    (dict(backbone="mlp"), OURS(nz=50, nw=50, batch=128, lr=0.002, kimg=2000, snapshot_kimg=100)),
    (dict(backbone="mlp", data="mnist-mini"), OURS(kimg=400, snapshot_kimg=10)),
    # with codes weighed 0.1 and not 1, samples get better and reconstructions hardly worse
    (dict(backbone="dcgan"), OURS(nz=64, nw=64, batch=32, lr=0.006, gamma=1.0, w_weight=0.1, cycle_weight=0.1,
        kimg=1000, snapshot_kimg=25)),
    (dict(backbone="dcgan", data="mnist"), OURS(lr=0.012, kimg=1200)),
    (dict(backbone="dcgan", data="mnist-mini"), OURS(lr=0.012, width=4, kimg=100, snapshot_kimg=5)),
    (dict(backbone="biggan"),
        OURS(nz=128, nw=128, batch=32, lr=0.001, lr_d=0.002, fm_weight=100.0, kimg=5000, snapshot_kimg=100)),
    (dict(backbone="biggan", data="imagenet"), PAPER(patches=32), OURS(resolution="128")),
    (STYLE, OURS(nz=512, nw=512, fmap_base=8192, batch=32, lr=0.0015, gamma=10.0, kimg=10_000, snapshot_kimg=250,
        grow_kimg=0.0)),
    (STYLE | dict(data=("celeba", "ffhq")), PAPER(resolution="128")),
    (dict(data="ffhq"), OURS(split="65-5")),            # LIA's
    (RESTYLE, OURS(iterations=5, pixel_weight=1.0, batch=32, lr=0.002, kimg=1000, snapshot_kimg=25)),
    (RESTYLE | dict(vgg=True), OURS(perceptual_weight=0.8)),
    (RESTYLE | dict(data="mnist-mini"), OURS(kimg=100, snapshot_kimg=5)),
    (RESTYLE | STYLE, OURS(codes="w+", batch=8, lr=0.001)),
]


def parse_args(argv=None):
    parser = common.method_parser(__doc__, RESOLUTIONS, grows=dict(grow=True))
    add = parser.group("method")
    add("--variant", "model: eq. 3, or one of section 4.4", only=PLAIN, choices=LABELS)
    add("--gan-loss", "form of eq. 1", only=PLAIN, choices=["logistic", "hinge"])
    add("--gan-codes", "codes whose images L_GAN judges: M(z), or M(z) and w_R, half of each (eqs. 1, 3)",
        only=PLAIN | dict(variant=("full", "augmented")), choices=["prior", "both"])
    add("--targets", "codes and features that others are to meet: held, or moving as printed (eqs. 2, 3, 5)",
        only=PLAIN, choices=["held", "moving"])
    add("--gamma", "weight of R1, over 2", only=PLAIN, type=common.not_negative, metavar="W")
    add("--lr-d", "learning rate of D (0: the others')", only=PLAIN, metavar="R",
        type=common.not_negative)
    add("--w-weight", "weight of || w - D(G(w)) ||^2, over w and w_R (eq. 3)", only=PLAIN, metavar="W",
        type=common.not_negative)
    add("--fm-weight", "weight of feature matching (eq. 2)", only=FULL, type=common.not_negative, metavar="W")
    add("--cycle-weight", "weight of the second cycle (eq. 3)", only=FULL, type=common.not_negative, metavar="W")
    add("--mmd-weight", "weight of MMD between w and w_R (eq. 3)", only=FULL, type=common.not_negative, metavar="W")
    add("--fm", "feature matching of each image, or of means as printed", only=FULL, choices=["paired", "batchmean"])
    add("--freeze-d", "blocks of D, from the image on, that stay as --init has them (FreezeD; ours)", only=PLAIN,
        rare=True, type=common.count, default=0, metavar="N")
    add("--patches", "side of random patches to train on (section 4.3)", type=common.positive(int), default=0,
        metavar="N")
    add("--grow", "growing from --start-resolution (default: at the full size)", only=PLAIN | STYLE,
        action="store_true")
    add = parser.group("ReStyle (table 3)")
    add("--restyle", "run of any method, for whose generator an encoder learns to correct codes step by step",
        only=RESTYLE, default="", metavar="RUN")
    add("--iterations", "number of steps, from the mean code on (default: 5)", only=RESTYLE,
        type=common.positive(int, 100), metavar="N")
    add("--codes", "what is corrected: w, or w+, which has a row a layer (default: w+)", only=RESTYLE | STYLE,
        choices=["w", "w+"])
    add("--pixel-weight", "weight of the mean squared error (default: 1)", only=RESTYLE, metavar="W",
        type=common.not_negative)
    add("--vgg", "weights of VGG-16, whose features are compared as well", only=RESTYLE, default="", metavar="FILE")
    add("--perceptual-weight", "weight of the distance of these features (default: 0.8)",
        only=RESTYLE | dict(vgg=True), type=common.not_negative, metavar="W")
    formerly = dict(gan_codes="both", targets="held")
    args = common.resolve(parser, "invgan", SETTINGS, argv, network_args, formerly, inherit)
    if args.init and not args.resume and (getattr(args, "restyle", "") or "generator" in common.read_args(args.init)):
        raise Error("--init does not go with --restyle, whose generator is trained already; leave it out")
    if args.patches and getattr(args, "grow", False):
        raise Error("--grow does not go with --patches, which are all of one size; leave one of them out")
    if args.patches and args.patches not in RESOLUTIONS[args.backbone]:
        sizes = " or ".join(map(str, RESOLUTIONS[args.backbone]))
        raise Error(f"{args.backbone} trains on patches of {sizes} px, not {args.patches}")
    if hasattr(args, "restyle") and not args.pixel_weight and not (args.vgg and args.perceptual_weight):
        raise Error("--pixel-weight 0 leaves --restyle no loss; add --vgg FILE")
    return args


# --------------------------------------------------------------------------------------------- main

def main(argv=None):
    args = parse_args(argv)
    if not args.patches:
        common.check_resolution(args, RESOLUTIONS)
    (train_restyle if hasattr(args, "restyle") else train)(args)


def load_images(args, sizes):
    """-> the training images as they are read, of one of `sizes` unless they are cut into patches;
    the same, or patches of them, as they are shown; those held out."""
    with common.rank_zero_first():
        whole, held_out = data.load(args.data, args.data_root, args.split, args.resolution, args.skip_bad,
                                    None if args.patches else sizes, args.only)
    if args.patches:
        return whole, data.Tiles(whole, args.patches), data.Tiles(held_out, args.patches)
    return whole, whole, held_out


def train(args):
    device, rank, world = common.start(args)
    least = dict(full=4, augmented=2, naive=1)[args.variant]        # MMD needs halves of 2
    if args.batch // world < least:
        raise Error(f"--batch {args.batch} leaves a process {args.batch // world} image(s), and {args.variant} needs "
                    f"{least}; pass --batch {least * world} or more")
    args.lr_d = args.lr_d or args.lr

    whole, images, held_out = load_images(args, RESOLUTIONS[args.backbone])
    grows = getattr(args, "grow", False)        # never with style mixing, which has no one w to infer
    if args.resume:
        common.check_images(args, images)
    else:
        if grows:
            common.complete_levels(args, images.shape, world)
        words = [args.variant, args.gan_loss, getattr(args, "gan_codes", "prior"), args.targets,
                 getattr(args, "fm", "paired"), f"patches{args.patches}"]
        usual = ("full", "logistic", "prior", "held", "paired", "patches0")
        common.complete(args, images, held_out, label=LABELS[args.variant],
                        words=[word for word in words if word not in usual],
                        constants=[f"M depth {M_DEPTH[args.backbone]}", f"lr of M x{LR_MUL}",
                                   f"Adam {BETAS[args.backbone]}",
                                   f"MMD's bandwidths {BANDWIDTHS}" if args.variant == "full" else "",
                                   f"mean w {MEAN_W}" if args.backbone == "stylegan" else ""])
    if grows:
        growth = common.growth_of(args)
    else:
        n = common.levels_of(images.shape)[0] if args.backbone == "stylegan" else 1
        growth = common.Growth([whole.shape[1:]] * n, [args.batch] * n, [args.lr] * n, first=n - 1)

    model = InvGAN(**network_args(vars(args))).to(device)
    if args.backbone != "mlp":
        model.to(memory_format=torch.channels_last)
    if args.init:
        common.begin_from(args, model, device)
    if args.freeze_d:
        common.hold(model.D, args)
    common.broadcast(model)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    opt = Namespace(**{name: adam(net, args.lr_d if name == "D" else args.lr, BETAS[args.backbone])
                       for name, net in model.named_children()})
    rng = common.generator(device, args.seed, "training")

    # What training changes, and so what a checkpoint holds
    state = dict(model=model, ema=ema, opt_M=opt.M, opt_G=opt.G, opt_D=opt.D, rng=rng)
    names = ["L_D", "R1", "L_G"] + (list(WEIGHTS) if args.variant == "full" else ["L_w"])
    run = common.Run(args, state, names, device, growth)
    batches = data.batches(whole, growth.plan, args.seed, run.seen, device, rank, world, args.workers)
    amp = common.autocast(args.precision, device)
    draw = common.Draw(model, rng, rank, world)
    M, G, D = common.compiled(model.M, model.G, model.D) if args.compile else model.children()
    nets = M, draw.noisy(G), D
    fixed_x, fixed_z = common.fixed_inputs(ema, held_out, args.seed, device)

    while True:
        level, alpha, batch, lr = growth.at(run.seen)
        common.set_rate(lr, opt.M, opt.G)
        common.set_rate(lr * args.lr_d / args.lr, opt.D)
        common.grow(level, alpha, model, ema)
        if run.snapshot_due:
            run.snapshot(lr, ema, fixed_x, fixed_z, level, alpha)
        if run.done:
            break
        x = next(batches)
        if args.patches:
            x = random_patches(x, args.patches, draw.uniform(len(x), 2))
        x = model.see(common.to_float(x))
        losses = train_step(nets, opt, x, draw, args, amp, getattr(model, "mean_w", None))
        common.average_buffers(model)
        if common.update_ema(ema, model, run.seen, batch, growth.since(run.seen), each_step=model.grows):
            normalise(ema)
        run.step(losses, batch)
    run.finish()


def random_patches(x, size, draw):
    """A size x size part of each image x (N, C, H, W), where draw (N, 2) ~ U(0, 1) says.
    (section 4.3)"""
    n, _, h, w = x.shape
    steps = torch.arange(size, device=x.device)
    rows = (draw[:, :1] * (h - size + 1)).long() + steps
    columns = (draw[:, 1:] * (w - size + 1)).long() + steps
    return x[torch.arange(n, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------ ReStyle
# Alaluf, Patashnik, Cohen-Or 2021, arXiv 2104.02699, with which the
# supplement's table 3 compares.  E sees an image next to its reconstruction so
# far, and corrects the code.  All numbers are ours, and so is the network of E.

RESTYLE_BETAS = (0.9, 0.99)
MEAN_OF = 10_000            # codes of the prior whose mean is the first code


def restyle_step(nets, opt, x, start, args, eps=None, amp=nullcontext):
    """One iteration of ReStyle on real images x (B, C, H, W); E moves once, down the losses of
    all N steps.

    nets: E, and G, frozen.  opt: an Adam of E.  start: the mean code w_0 (nw,) and its picture y_0
    (C, H, W).  eps: images -> list of features, or None.  amp: context of bf16 passes.  -> the loss
    after each step, means over the batch.
    """
    E, G = nets
    w, y = (first.expand(len(x), *first.shape) for first in start)
    eps_x = eps(x) if eps else []
    parameters = [p for group in opt.E.param_groups for p in group["params"]]
    opt.E.zero_grad(set_to_none=True)
    losses = []
    for _ in range(args.iterations):
        with amp():
            w = w.detach() + E(torch.cat([x, y.detach()], 1))                   # w_t+1 = w_t + E(x, y_t)
            y = G(w)                                                            # y_t+1 = G(w_t+1)
        L = args.pixel_weight * (y.float() - x).square().mean()
        if eps:
            L = L + args.perceptual_weight * feature_distance(eps(y), eps_x)
        L.backward(inputs=parameters)       # at once: a step's graph goes before the next one is made
        losses.append(L)
    common.average_over_processes([p.grad for p in parameters if p.grad is not None])
    opt.E.step()
    return losses


def unit_features(vgg, x):
    """VGG-16's features of x at five depths, each pixel's divided by their norm,
    as LPIPS has them; fp32."""
    return [nnf.normalize(f.float(), dim=1, eps=1e-10) for f in vgg(x)]


def feature_distance(a, b):
    """LPIPS without its learnt weights: squared differences, summed over channels,
    means over the rest and depths."""
    return sum((f - g).square().sum(1).mean() for f, g in zip(a, b, strict=True)) / len(a)


class ReStyle(nn.Module):
    """A frozen model G of any method, E, and what `eval.py` asks of any model (eval mode).

    codes: "w", or "w+" for a row of nw numbers a layer of a stylegan;
    these are one flat code (N, num_layers nw) here. iterations: how many
    steps `encode` makes; it may be set to another number at any time.
    """

    def __init__(self, G, backbone, width=1, fmap_base=8192, codes="w", iterations=5):
        super().__init__()
        self.G = G
        self.image_shape, self.nz, self.iterations = G.image_shape, G.nz, iterations
        self.rows = G.num_layers if codes == "w+" else 1
        self.nw = self.rows * G.nw
        self.num_layers = 1 if codes == "w+" else G.num_layers
        if codes == "w" and hasattr(G, "unmap"):
            self.unmap = G.unmap
        c, h, w = G.image_shape
        if backbone == "mlp":
            self.E = common.MLPEncoder((2 * c, h, w), self.nw, width)
        elif backbone in ("dcgan", "biggan"):
            self.E = common.DCGANEncoder((2 * c, h, w), self.nw, width)
        elif backbone == "stylegan":
            self.E = common.StyleCritic((2 * c, h, w), self.nw, width, fmap_base, std_group=0)
        nn.init.zeros_(self.E.head.weight)              # the first reconstructions are the mean code's
        self.register_buffer("mean_w", torch.zeros(self.nw))
        self.register_buffer("mean_x", torch.zeros(self.image_shape))

    @torch.no_grad()
    def find_mean(self, generator):
        """Set mean_w to the mean of codes of the prior, and mean_x to its picture."""
        z = self.prior(MEAN_OF, generator)
        self.mean_w.copy_(torch.cat([self.map(part) for part in z.split(500)]).mean(0))
        self.mean_x.copy_(self.generate(self.mean_w[None])[0])

    def prior(self, n, generator):
        """z (n, nz) of G's prior, on the generator's device."""
        return self.G.prior(n, generator)

    def map(self, z):
        """The code of z, (N, nw); as w+, w once a row."""
        return self.G.map(z).repeat(1, self.rows)

    def generate(self, w, noise="fixed"):
        """x = G(w), (N, C, H, W) in [-1, 1], of w (N, nw)
        or (N, num_layers, nw); w+ also with a row a layer.

        noise: "random", "fixed" or "none", on stylegan.
        """
        if self.num_layers == 1:
            w = w.flatten(1)
        return self.G.generate(w.unflatten(1, (self.rows, -1)) if self.rows > 1 else w, noise)

    def encode(self, x):
        """The code (N, nw) of x (N, C, H, W) in [-1, 1], after `iterations` steps."""
        return self.features(x)[0]

    def features(self, x):
        """-> short (N, nw), the code, and long (N, n), E's features at the last step."""
        common.check_input(x, self.image_shape)
        w, y = (first.expand(len(x), *first.shape) for first in (self.mean_w, self.mean_x))
        for t in range(self.iterations):
            if t:
                y = self.generate(w)
            long = self.E.trunk(torch.cat([x, y], 1))
            w = w + self.E.head(long)
        return w, long


# What a run of --restyle takes from its generator's, and of that, what may be given otherwise
INHERITED = ("data", "data_root", "split", "only", "resolution", "backbone", "width", "fmap_base", "nz", "nw",
             "patches")
AGAIN = ("data", "data_root", "split", "only", "width", "fmap_base")


def inherit(given):
    """-> --patches of --init's run, or the settings that --restyle takes from its generator's.
    Raises `Error` where a given one contradicts."""
    if "init" in given:
        return dict(patches=common.read_args(given["init"], "invgan").get("patches", 0))
    if "restyle" not in given:
        return {}
    run = given["restyle"]
    stored = common.read_args(run)
    if "generator" in stored:
        raise Error(f"{run} is a run of --restyle itself; name its generator's, {stored['restyle']}")
    method_of(run, stored)
    common.read_checkpoint(run, stored, "cpu")
    again = AGAIN + (("resolution",) if stored.get("patches") else ())      # of what patches are cut from
    for key in INHERITED:
        if key in given and key not in again and str(given[key]) != str(stored.get(key, 0)):
            raise Error(f"the generator of {run} has {common.flag(key)} {stored.get(key, 0)}, not {given[key]}; leave "
                        f"the flag out")
    if "data" in given:
        for key in ("split", "only"):
            stored.pop(key, None)
    elif not stored["data"]:
        raise Error(f"the images of {run} are not known; name a set by --data")
    else:
        stored.update(stored.get("given", {}))      # "auto" where it was, so that folders have the same names
    return {key: stored[key] for key in INHERITED if key in stored}


def method_of(run, args):
    """The script of a run, by which its networks can be made again."""
    method = common.method_of(run, args)
    if not hasattr(method, "make_model"):
        raise Error(f"networks of {args['method']}.py cannot be made again; --restyle takes runs of other methods")
    return method


def train_restyle(args):
    device, rank, world = common.start(args)
    stored = args.generator if args.resume else common.read_args(args.restyle)
    whole, images, held_out = load_images(args, [max(stored["image_shape"][1:])])
    began = args.resume and Path(args.resume, "checkpoint.pt").exists()
    method = method_of(args.restyle, stored)
    G = method.make_model(stored) if began else method.load(args.restyle)
    if not began:
        check_generator(args.restyle, stored, G, whole, images)
    if args.vgg and min(images.shape[1:]) < 16:
        raise Error("--vgg halves images four times, and these are smaller than 16 px; leave it out")
    if args.resume:
        common.check_images(args, images)
    else:
        codes = getattr(args, "codes", "")
        args.vgg = args.vgg and str(Path(args.vgg).resolve())
        common.complete(args, images, held_out, label=f"ReStyle over {stored['label']}",
                        words=["restyle", stored["method"], codes if codes == "w" else ""],
                        constants=[f"Adam {RESTYLE_BETAS}", f"mean of {MEAN_OF:,} codes"])
        args.generator = stored                 # all that makes its networks again; its weights are in the checkpoint
    growth = common.Growth([whole.shape[1:]], [args.batch], [args.lr])

    model = ReStyle(G, **restyle_args(vars(args))).to(device)
    if args.backbone != "mlp":
        model.to(memory_format=torch.channels_last)
    model.requires_grad_(False).eval()          # G stays so: batch norm too
    model.E.requires_grad_(True).train()
    if not began:
        model.find_mean(common.generator(device, args.seed, "pictures", 1))
    common.broadcast(model)
    ema = copy.deepcopy(model, {id(m): m for m in model.G.modules()}).eval().requires_grad_(False)      # G is one
    opt = Namespace(E=adam(model.E, args.lr, RESTYLE_BETAS))
    rng = common.generator(device, args.seed, "training")
    eps = None
    if args.vgg:
        with common.rank_zero_first():
            eps = partial(unit_features, common.frozen("vgg", args.vgg, "cache", common.VGG).to(device))

    state = dict(model=model, ema=ema, opt_E=opt.E, rng=rng)
    run = common.Run(args, state, [f"L_{t + 1}" for t in range(args.iterations)], device, growth)
    batches = data.batches(whole, growth.plan, args.seed, run.seen, device, rank, world, args.workers)
    amp = common.autocast(args.precision, device)
    draw = common.Draw(model, rng, rank, world)
    E = common.compiled(model.E)[0] if args.compile else model.E
    fixed_x, fixed_z = common.fixed_inputs(ema, held_out, args.seed, device)

    while True:
        if run.snapshot_due:
            run.snapshot(args.lr, ema, fixed_x, fixed_z)
        if run.done:
            break
        x = next(batches)
        if args.patches:
            x = random_patches(x, args.patches, draw.uniform(len(x), 2))
        x = common.to_float(x)
        losses = restyle_step((E, model.generate), opt, x, (model.mean_w, model.mean_x), args, eps, amp)
        common.update_ema(ema, model, run.seen, args.batch, run.seen)
        run.step(losses, args.batch)
    run.finish()


def check_generator(run, stored, G, whole, images):
    """Raise `Error` unless G, of a run with these arguments, has a prior,
    has grown up and makes such images, which may be cut from `whole` ones."""
    if not (hasattr(G, "prior") and hasattr(G, "map")):
        raise Error(f"{run} ({stored['label']}) has no prior, whose mean code would be the first; name a run that has "
                    f"samples")
    common.check_grown(run, G)
    if images.shape != G.image_shape:
        ours, theirs = ("x".join(map(str, shape)) for shape in (images.shape, G.image_shape))
        raise Error(f"the generator of {run} makes images of {theirs}, and these are {ours}; name others by --data")
    _, h, w = whole.shape
    same = images.name == stored.get("data_name") and stored["resolution"] in (f"{w}x{h}", str(w))
    if same and (problem := images.unlike(stored)):
        raise Error(f"{run} was trained on {problem}; say where its own images are by --data-root or "
                    f"--only")


# --------------------------------------------------------------------------------------------- load

def network_args(args):
    """The keyword arguments of `InvGAN` among a run's arguments."""
    return {k: args[k] for k in ("backbone", "image_shape", "nz", "nw", "width", "fmap_base") if k in args}


def restyle_args(args):
    """The keyword arguments of `ReStyle`, except G, among a run's arguments."""
    return {k: args[k] for k in ("backbone", "width", "fmap_base", "codes", "iterations") if k in args}


def make_model(args):
    """The untrained model of a run's arguments."""
    if "generator" not in args:
        return InvGAN(**network_args(args))
    method = method_of(args["restyle"], args["generator"])
    return ReStyle(method.make_model(args["generator"]), **restyle_args(args))


def load(run, device="cpu", weights="ema", kimg=None):
    """The model of a run folder, in eval mode; weights "ema" (averaged) or "raw"; kimg: of
    --keep-kimg.  Raises common.Error."""
    return common.load_model(run, "invgan", make_model, device, weights, kimg)


if __name__ == "__main__":
    common.command(main)
