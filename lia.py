"""Latently Invertible Autoencoder (LIA), Zhu et al. 2019, arXiv 1906.08090.

Numbers of equations and sections are those of the text submitted to ICLR 2020 (OpenReview ryefE1SYDr).

    python lia.py                                              stage 1: decoder, an MLP on 10,000 bundled digits
    python lia.py --stage 2 --decoder runs/lia-stage1-mlp-mnist-mini        stage 2: its encoder
    python lia.py --stage 1 --data ffhq                        StyleGAN at 1024x1024 behind the invertible map
    python lia.py --stage 1 --mapping mlp                      plain StyleGAN, in stage 2 Encoded StyleGAN
    python lia.py --stage 2 --decoder RUN --inference vae      the VAE of section 5.3, RUN being of --mapping mlp
    torchrun --nproc_per_node=8 lia.py --stage 1 --data ffhq   several GPUs
    python eval.py metrics runs/lia-stage2-mlp-mnist-mini      what it learnt, in numbers

    z  (B, nz)       prior sample, N(0, I)            phi  w <-> z  invertible network, both ways
    w  (B, nw)       feature, the paper's y           g    w -> x   decoder
    x  (B, C, H, W)  image in [-1, 1]                 f    x -> w   partial encoder
                                                      c    x -> score, the critic: large for real images
                                                      eps  x -> features that reconstructions are compared by
Section 3.1 is `decoder_step`, section 3.2 `encoder_step`; the network of eqs. 2-4 is `InvertibleNetwork`.  Where
we differ from the paper or from the authors' released code ("the code"), the line says so, with the flag that restores
the other; the whole list is in .github/lia.md.  The objective of the in-domain encoder of Zhu et al. 2020 is
--adversarial logistic --pixel-weight 1 --perceptual-norm mse --beta 5e-5 --adversarial-weight 0.08, and on mlp and
dcgan --perceptual vgg16.
"""
import copy
import math
import os
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

import common  # before torch, whose threads wait as it says

# isort: split
import torch
import torch.nn.functional as nnf
from torch import nn

import data
from common import CODE, OURS, PAPER, EqualLinear, Error, adam, lrelu, mean_softplus, r1, uncompiled, update

BETAS = {"1": (0.0, 0.99), "2": (0.9, 0.99)}    # Adam's, of each stage; stage 2's and DECAY as in the code
LR_MUL = 0.01               # learning rate of phi and of the MLP in its place, relative to g's, as in the code
MLP_DEPTH = 8               # layers of StyleGAN's mapping network
MEAN_W = 0.995              # what the running mean of w keeps at a step
DECAY = 0.8                 # of stage 2's learning rate, which falls smoothly by it over each quarter of the run
PART, TOTAL = 600, 25_000   # thousands of images: of a fade, and of stage 1, on stylegan, as in the code
RATES = (0.001,) * 5 + (0.0015, 0.002, 0.003, 0.003)        # of stage 1 at 4, 8, ... px, as in the code


# ----------------------------------------------------------------------------- stage 1, section 3.1

def decoder_step(nets, opt, x, draw, args, amp=nullcontext, mean_w=None):
    """One iteration of stage 1 on real images x (B, C, H, W), a leaf.

    nets: phi, g, c, in train mode.  opt: an Adam of each, by name.  draw:
    a `common.Draw`.  amp: context of bf16 passes.  mean_w: running mean
    of w, moved in place.  -> L_c, R1's term, L_g; means over the batch.
    """
    phi, g, c = nets
    B = len(x)

    # The critic goes down eq. 6 (eq. 7 prints "max over c", see `move_critic`)
    with torch.no_grad(), amp():
        w = phi.to_w(draw.z(B))                                             # eq. 10; eq. 9 with an MLP
        fake = g(draw.mix(w, phi.to_w))
    L_c, R1 = move_critic(c, opt.c, fake, x, args, amp)
    if mean_w is not None:
        mean_w.lerp_(w.float().mean(0), 1 - MEAN_W)

    # phi and g go down -E c(x~), their part of eq. 7
    with amp():
        L_g = adversarial_loss(c(g(draw.mix(phi.to_w(draw.z(B)), phi.to_w))), args.adversarial)
    update(L_g, opt.phi, opt.g)
    return L_c, R1, L_g


def move_critic(c, opt_c, fake, x, args, amp):
    """One step of c down eq. 6, on x~ without gradient and
    real images x.  -> its loss without R1's term; that term.

    Printed, eq. 7 maximises + R1, and eq. 8 gives c
    no one sign: c scores realness here, as in eq. 6.
    """
    with amp():
        fake_score = c(fake)
        real_score = uncompiled(c)(x.requires_grad_())      # never compiled: R1 differentiates it twice
    R1 = args.gamma / 2 * r1(real_score, x)
    L_c = critic_loss(fake_score, real_score, args.adversarial)
    update(L_c + R1, opt_c)                                                 # eq. 6
    return L_c, R1


def critic_loss(fake, real, form):
    """The critic's loss, eq. 6 without R1's term:
    E c(x~) - E c(x), or the logistic loss in its place."""
    if form == "logistic":
        return mean_softplus(fake) + mean_softplus(-real)
    return fake.float().mean() - real.float().mean()


def adversarial_loss(fake, form):
    """The loss of phi, g and f in eqs. 7 and 8: -E c(x~), or the logistic loss in its place."""
    return mean_softplus(-fake) if form == "logistic" else -fake.float().mean()


# ----------------------------------------------------------------------------- stage 2, section 3.2

def encoder_step(nets, opt, x, eps, draw, args, amp=nullcontext):
    """One iteration of stage 2 on real images x (B, C, H, W), a leaf; g and phi stay as they are.

    nets: f, c, in train mode, and g, phi, in eval mode.
    opt: an Adam of f, c.  eps: images -> features.
    -> L_rec; L_adv, weighed; L_c and R1's term, 0 if c
    is frozen; with --inference vae also the divergence, weighed.
    """
    f, g, c, phi = nets
    L_c = R1 = divergence = torch.zeros((), device=x.device)
    with amp():
        w = f(x)                                                            # eq. 2, without phi
    if args.inference == "vae":             # f has mean and log variance of z in place of w (section 5.3)
        mu, logvar = w.float().chunk(2, 1)
        w = phi.to_w(mu + (logvar / 2).exp() * draw.z(len(x)))
        divergence = args.kl_weight * kl(mu, logvar)                        # eq. 1; the weight is ours
    with amp():
        x_tilde = g(w)                        # with fixed noise, as in the code
        L_eps = perceptual_loss(eps, x, x_tilde, args.perceptual_norm)                        # eq. 5
        L_adv = args.adversarial_weight * adversarial_loss(c(x_tilde), args.adversarial)
    L_rec = args.beta * L_eps
    if args.pixel_weight:                   # as in the code
        L_rec = L_rec + args.pixel_weight * (x - x_tilde.float()).square().mean()
    update(L_rec + L_adv + divergence, opt.f)                               # eq. 8; its min is over f

    if args.critic == "finetune":           # as in the code; by eq. 8's asterisk c is frozen
        L_c, R1 = move_critic(c, opt.c, x_tilde.detach(), x, args, amp)       # eq. 6, x~ = g(f(x)) from before f moved
    return (L_rec, L_adv, L_c, R1, divergence) if args.inference == "vae" else (L_rec, L_adv, L_c, R1)


def perceptual_loss(eps, x, x_tilde, norm):
    """Eq. 5: || eps(x) - eps(x~) ||_2 of each image, or the mean square;
    a mean over the batch, in fp32."""
    d = (eps(x).float() - eps(x_tilde).float()).flatten(1)
    return d.square().mean() if norm == "mse" else torch.linalg.vector_norm(d, dim=1).mean()


def kl(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, I)), summed over dimensions, a mean over the batch.   (eq. 1)"""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()


# ----------------------------------------------------------------------------------------- networks

class InvertibleNetwork(nn.Module):
    """phi: w -> z and its inverse, couplings that share their parameters between the two.  (eqs. 2-4)

    A coupling adds tau(top half) to the bottom half, tau being two equalised layers, n and n/2
    wide, with leaky ReLU 0.2 after both; affine (Glow): also multiplies it by sigmoid(h + 2), h
    being 0 at first.  After each coupling the order of the dimensions is reversed, so that the
    halves take turns, so n is even.  All of it is in fp32 (float64 stays), under autocast too.
    """

    def __init__(self, n, depth=4, coupling="additive"):
        super().__init__()
        self.affine = coupling == "affine"
        out = n if self.affine else n // 2
        self.tau = nn.ModuleList(nn.ModuleList(
            [EqualLinear(n // 2, n, math.sqrt(2), LR_MUL), EqualLinear(n, out, math.sqrt(2), LR_MUL)])
            for _ in range(depth))
        if self.affine:
            for tau in self.tau:
                nn.init.zeros_(tau[1].weight[n // 2:])

    def _shift_and_scale(self, tau, top):
        h = lrelu(tau[1](lrelu(tau[0](top))))
        if not self.affine:
            return h, 1
        shift, h = h.chunk(2, 1)
        return shift, torch.sigmoid(h + 2)

    def to_z(self, w):
        """phi: w (N, n) -> z (N, n)."""
        with torch.autocast(w.device.type, enabled=False):
            x = w if w.dtype == torch.float64 else w.float()
            for tau in self.tau:
                top, bottom = x.chunk(2, 1)
                shift, scale = self._shift_and_scale(tau, top)
                x = torch.cat([top, (bottom + shift) * scale], 1).flip(1)   # eq. 3
        return x

    def to_w(self, z):
        """phi^-1: z (N, n) -> w (N, n)."""
        with torch.autocast(z.device.type, enabled=False):
            x = z if z.dtype == torch.float64 else z.float()
            for tau in reversed(self.tau):
                top, bottom = x.flip(1).chunk(2, 1)
                shift, scale = self._shift_and_scale(tau, top)
                x = torch.cat([top, bottom / scale - shift], 1)             # eq. 4
        return x


class MLP(common.Mapping):
    """StyleGAN's mapping network in place of phi^-1.   (eq. 9)"""

    def to_w(self, z):
        return self(z)


class TanhGenerator(common.StyleGenerator):
    def forward(self, w, noise="random"):
        return torch.tanh(super().forward(w, noise))


def conv(c_in, c_out, kernel):
    """A convolution without bias, because the batch norm after it has one;
    weights ~ N(0, 0.02^2)."""
    layer = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


def batch_norm(n, dims=2):
    """With a shift and no scale."""
    layer = nn.BatchNorm2d(n) if dims == 2 else nn.BatchNorm1d(n)
    layer.register_parameter("weight", None)
    return layer


class ResidualBlock(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H, W): twice conv3 - batch norm - leaky ReLU, and a shortcut;
    nothing after."""

    def __init__(self, c_in, c_out):
        super().__init__()
        hidden = min(c_in, c_out)
        self.conv1 = conv(c_in, hidden, 3)
        self.norm1 = batch_norm(hidden)
        self.conv2 = conv(hidden, c_out, 3)
        self.norm2 = batch_norm(c_out)
        if c_in != c_out:
            self.shortcut = conv(c_in, c_out, 1)
            self.norm = batch_norm(c_out)

    def forward(self, x):
        y = lrelu(self.norm1(self.conv1(x)))
        y = lrelu(self.norm2(self.conv2(y)))
        return y + (lrelu(self.norm(self.shortcut(x))) if hasattr(self, "shortcut") else x)


class ResidualEncoder(nn.Module):
    """f of the released code (the paper's is a picture): x (N, C, H, W) -> (N, n_out).

    conv3 to 64 channels; down to 4 px, each time a mean of 2x2 and a
    residual block, which doubles the channels up to 1,024; a dense layer,
    with batch norm unless its outputs are mean and log variance (ours).
    """

    def __init__(self, image_shape, n_out, width=1, closing_norm=True):
        super().__init__()
        levels, base = common.levels_of(image_shape)
        channels = [max(min(64 * 2**i, 1024) // width, 1) for i in range(levels)]
        self.first = conv(image_shape[0], channels[0], 3)
        self.norm = batch_norm(channels[0])
        self.blocks = nn.ModuleList(ResidualBlock(i, o) for i, o in pairwise(channels))
        dense = nn.Linear(channels[-1] * math.prod(base), n_out, bias=not closing_norm)
        nn.init.normal_(dense.weight, std=0.02)
        self.head = nn.Sequential(dense, batch_norm(n_out, 1)) if closing_norm else dense

    def trunk(self, x):
        y = lrelu(self.norm(self.first(x)))
        for block in self.blocks:
            y = block(nnf.avg_pool2d(y, 2))
        return y.flatten(1)

    def forward(self, x):
        return self.head(self.trunk(x))


# -------------------------------------------------------------------------------------------- model

class Decoder(nn.Module):
    """What stage 1 trains, z -> w -> x (eq. 10) and the critic,
    and what `eval.py` asks of it (eval mode)."""

    def __init__(self, backbone, image_shape, nz, nw, width=1, fmap_base=8192, mapping="flow", coupling="additive",
                 depth=4, rgb="linear", inference=None):
        super().__init__()
        if backbone == "mlp":
            self.g = common.MLPGenerator(nw, image_shape, width, last=torch.tanh if rgb == "tanh" else None)
            self.c = common.MLPEncoder(image_shape, 1, width)
            f = common.MLPEncoder
        elif backbone == "dcgan":
            self.g = common.DCGANGenerator(nw, image_shape, width)
            self.c = common.DCGANEncoder(image_shape, 1, width)
            f = common.DCGANEncoder
        elif backbone == "stylegan":
            kind = TanhGenerator if rgb == "tanh" else common.StyleGenerator
            self.g = kind(nw, image_shape, width, fmap_base)
            self.c = common.StyleCritic(image_shape, 1, width, fmap_base)
            f = partial(ResidualEncoder, closing_norm=inference != "vae")
        if inference:                           # stage 2
            self.f = f(image_shape, 2 * nz if inference == "vae" else nw, width)
        if mapping == "flow":
            self.phi = InvertibleNetwork(nw, depth, coupling)
            self.unmap = self.phi.to_z          # w -> z, exactly; absent where the mapping has no inverse
        else:
            self.phi = MLP(nz, nw, MLP_DEPTH, LR_MUL)
        self.image_shape, self.nz, self.nw, self.num_layers = tuple(image_shape), nz, nw, 1
        self.grows = backbone == "stylegan"
        if self.grows:
            self.num_layers = self.g.num_layers
            self.register_buffer("mean_w", torch.zeros(nw))

    def see(self, x):
        """Images in [-1, 1] -> as c sees them: at the level of a growing one."""
        return self.c.fit(x) if self.grows else x

    def show(self, x):
        """What g made -> images of image_shape."""
        return self.g.full(x) if self.grows else x

    def prior(self, n, generator):
        """z (n, nz) ~ N(0, I), on the generator's device."""
        return torch.randn(n, self.nz, generator=generator, device=generator.device)

    def map(self, z):
        """w = phi^-1(z), (N, nw)."""
        return self.phi.to_w(z)

    def generate(self, w, noise="fixed"):
        """x = g(w), (N, C, H, W), images in [-1, 1] (with --rgb linear not clipped), of w (N, nw) or,
        on stylegan, (N, num_layers, nw).

        noise: "random", "fixed" or "none"; mlp and dcgan have none.
        """
        return self.show(self.g(w, noise) if self.grows else self.g(w))


class LIA(Decoder):
    """What stage 2 adds: f, and eps where that is stage 1's critic, kept as it was."""

    def __init__(self, inference="encoder", perceptual="critic", **kwargs):
        super().__init__(**kwargs, inference=inference)
        self.variational = inference == "vae"
        if perceptual == "critic":
            self.eps = copy.deepcopy(self.c)

    def encode(self, x):
        """w = f(x), (N, nw), of x (N, C, H, W) in [-1, 1];
        with --inference vae, of the mean of z."""
        return self.features(x)[0]

    def features(self, x):
        """-> short (N, nw), the code, and long (N, n), the last hidden features of x (N, C, H, W)
        in [-1, 1]."""
        common.check_input(x, self.image_shape)
        long = self.f.trunk(x)
        short = self.f.head(long)
        return self.map(short.chunk(2, 1)[0]) if self.variational else short, long


def critic_features(c, x):
    """The critic's last feature map (mlp: its last hidden layer), flat."""
    return (c.map(x) if hasattr(c, "map") else c.trunk(x)).flatten(1)


# ----------------------------------------------------------------------------------------- settings

RESOLUTIONS = {"mlp": [28], "dcgan": [32, 64, 128], "stylegan": common.STYLE_SIZES}
STYLE, STAGE_1, STAGE_2 = dict(backbone="stylegan"), dict(stage="1"), dict(stage="2")
LSUN = ("lsun-bedroom", "lsun-cat", "lsun-car")
# LSUN: the first 100,000 images, where the paper ranks that many of the first 500,000
SPLITS = {"ffhq": "65-5", **dict.fromkeys(LSUN, "100k")}
# Rows of (where it holds, what is set); later rows
# refine earlier ones.  PAPER, CODE, OURS: the source.
SETTINGS = [
    (dict(), dict(recipe="paper", stage="1", backbone="stylegan"),
        PAPER(mapping="flow", coupling="additive", adversarial="wasserstein", gamma=10.0, inference="encoder",
              perceptual="vgg16", perceptual_norm="l2", beta=0.001, pixel_weight=0.0, adversarial_weight=1.0),
        CODE(depth=4, critic="finetune"), OURS(flip="off", kl_weight=0.01)),
    (dict(data=data.GREY), dict(backbone="mlp")),
    (dict(data=data.COLOUR), dict(backbone="dcgan")),
    # a linear end leaves speckle: on the bundled digits Frechet
    # (digits) of samples was 648 with it, and 136 with tanh
    (dict(backbone="mlp"), OURS(batch=128, kimg=2000, snapshot_kimg=100, perceptual="critic", rgb="tanh")),
    (dict(backbone="mlp", data="mnist-mini"), OURS(kimg=400, snapshot_kimg=10)),
    (dict(backbone="dcgan"), OURS(batch=32, kimg=1000, snapshot_kimg=25, perceptual="critic")),
    (STAGE_1 | dict(backbone="mlp"), OURS(nz=50, nw=50, lr=0.002)),
    # short: a smaller batch and a higher rate get further in 270,000 images
    (STAGE_1 | dict(backbone="mlp", data="mnist-mini", recipe="paper"), OURS(kimg=270, batch=64, lr=0.008)),
    (STAGE_1 | dict(backbone="dcgan"), OURS(nz=128, nw=128, lr=0.002)),
    (STAGE_2 | dict(backbone=("mlp", "dcgan")), OURS(lr=0.001)),
    # 0: by level and number of processes, see common.complete_levels and train_encoder
    (STYLE, CODE(adversarial="logistic", start_resolution=8, mixing=0.9, fmap_base=8192),
        PAPER(nz=512, nw=512, rgb="linear"), OURS(batch=0, adam_state="kept", grow_kimg=0.0)),
    (STAGE_1 | STYLE, CODE(lr=0.0), OURS(kimg=0.0, snapshot_kimg=0.0)),
    # the published length is the code's
    (STAGE_1 | STYLE | dict(kimg=0.0, grow_kimg=0.0), CODE(kimg=0.0, grow_kimg=0.0)),
    (STAGE_2 | STYLE, CODE(lr=0.0001, kimg=12_000), OURS(snapshot_kimg=250)),
    (dict(data="ffhq"), PAPER(split=SPLITS["ffhq"])),
    (dict(data=LSUN, only=""), OURS(split="100k")),         # the paper ranks them: --only
    (STYLE | dict(data=("lsun-bedroom", "lsun-cat")), PAPER(resolution="128")),
    (STYLE | dict(data="celeba"), OURS(resolution="128")),
    (STYLE | dict(data="celeba-hq"), OURS(resolution="256")),
    (STYLE | dict(data="ffhq"), OURS(resolution="1024")),
    (STYLE | dict(data="lsun-car"), PAPER(resolution="128x96")),       # cropped to it, in the code letterboxed
    (dict(recipe="official"), CODE(adversarial="logistic", perceptual_norm="mse", pixel_weight=1.0,
        adversarial_weight=0.1, rgb="tanh", adam_state="fresh")),
    (dict(recipe="official", data="ffhq"), CODE(flip="on")),
    (dict(perceptual_norm="mse"), CODE(beta=0.00005)),
    # What makes its gradient at f's output about as large
    # as the adversarial one (mlp on mnist, dcgan on faces; with the l2 norm)
    (dict(perceptual=("critic", "pixel")), OURS(beta=0.3)),
]
# What stage 2 takes from its decoder, and of that, what
# may be given again (data where the images have moved)
INHERITED = ("data", "data_root", "only", "split", "resolution", "backbone", "width", "fmap_base", "nz", "nw",
             "mapping", "coupling", "depth", "rgb", "recipe", "adversarial", "gamma")
AGAIN = ("data", "data_root", "only", "recipe", "adversarial", "gamma")


def parse_args(argv=None):
    parser = common.method_parser(__doc__, RESOLUTIONS, grows=STAGE_1 | STYLE)
    parser.epilog += "  Those of --kimg, --batch, --lr and --snapshot-kimg are stage 1's."
    add = parser.group("method")
    flow = dict(mapping="flow")
    add("--recipe", "choices of the printed method, or of the released code",
        choices=["paper", "official"])
    add("--stage", "1: decoder and critic (section 3.1); 2: encoder (3.2)", choices=["1", "2"])
    add("--mapping", "map from z to w: invertible (eq. 10) or StyleGAN's (eq. 9)",
        choices=["flow", "mlp"])
    add("--coupling", "couplings of the invertible network: of eqs. 3 and 4, or with a scale too (section 2.1)",
        only=flow, rare=True, choices=["additive", "affine"])
    add("--depth", "number of couplings (paper: \"layer number 8\"; code: 4 of 2 layers)",
        only=flow, rare=True, type=common.positive(int), metavar="N")
    add("--adversarial", "form of eq. 6 (paper: wasserstein; code: logistic)",
        choices=["wasserstein", "logistic"])
    add("--gamma", "weight of R1's term, which is gamma / 2 |grad c|^2 (eq. 6)",
        type=common.not_negative, metavar="W")
    add("--rgb", "last activation of g (code: tanh)",
        only=dict(backbone=("mlp", "stylegan")), rare=True, choices=["linear", "tanh"])
    add("--flip", "mirroring of half of the images (code, on FFHQ: on)", choices=["off", "on"])
    add("--adam-state", "state of Adam at a new level (code: fresh)",
        only=STAGE_1 | STYLE, rare=True, choices=["kept", "fresh"])
    add("--freeze-d", "blocks of c, from the image on, that stay as --init has them (FreezeD; ours)",
        only=STAGE_1, rare=True, type=common.count, default=0, metavar="N")
    add("--mixing", "share of images that mix the styles of two codes (StyleGAN 0.9)",
        only=STAGE_1 | STYLE, type=common.fraction, metavar="P")
    add = parser.group("method, stage 2")
    add("--decoder", "run of stage 1", only=STAGE_2, default="", metavar="RUN")
    add("--inference", "output of f: w, or mean and log variance of z (section 5.3)", only=STAGE_2,
        choices=["encoder", "vae"])
    add("--kl-weight", "weight of the divergence from the prior (paper: not stated)",
        only=STAGE_2 | dict(inference="vae"), type=common.not_negative, metavar="W")
    add("--perceptual", "eps of eq. 5: VGG-16 conv4_3 (FILE: its weights), stage 1's critic's features, or pixels",
        only=STAGE_2, metavar="vgg16|critic|pixel|FILE")
    add("--perceptual-norm", "norm of eq. 5 (code: mse)",
        only=STAGE_2, rare=True, choices=["l2", "mse"])
    add("--beta", "weight of the perceptual loss (eq. 8: 0.001 with vgg16; code: 5e-5 with mse)",
        only=STAGE_2, type=common.not_negative, metavar="W")
    add("--pixel-weight", "weight of the mean squared error (code: 1)",
        only=STAGE_2, type=common.not_negative, metavar="W")
    add("--adversarial-weight", "weight of f's adversarial loss (code: 0.1)",
        only=STAGE_2, type=common.not_negative, metavar="W")
    add("--critic", "critic in stage 2: finetune, as the code, or frozen, as eq. 8's asterisk says",
        only=STAGE_2, choices=["finetune", "frozen"])
    add("--log-gradients", "gradients.csv, a row a step: mean |gradient| of f's first, middle, last layer, and losses",
        only=STAGE_2, rare=True, action="store_true")
    args = common.resolve(parser, "lia", SETTINGS, argv, network_args, formerly=dict(rgb="linear"),
                          inherit=partial(inherit, parser))
    if args.init and args.stage == "2":
        raise Error("--init is for --stage 1, because stage 2 begins from its decoder; leave it out")
    if args.init and not args.resume and common.read_args(args.init).get("stage") == "2":
        raise Error(f"--init {args.init} is a run of stage 2; name its run of stage 1, or pass --stage 2 --decoder")
    if args.mapping == "flow" and (args.nz != args.nw or args.nw % 2):
        raise Error(f"an invertible network maps z to w of the same, even dimension, not {args.nz} to {args.nw}; pass "
                    f"--nz and --nw alike, or --mapping mlp")
    if args.stage == "2" and args.inference == "vae" and args.mapping != "mlp":
        raise Error(f"--inference vae is about a decoder of --mapping mlp (section 5.3), and {args.decoder} is one "
                    f"of {args.mapping}; name another, or leave --inference out")
    return args


def inherit(parser, given):
    """-> the settings that stage 2 takes from its decoder.
    Raises `Error` where a given one contradicts them."""
    if given.get("stage", "1") == "1":
        return {}
    if "decoder" not in given:
        raise Error("--stage 2 trains the encoder of a decoder that is there; train one with --stage 1, and name its "
                    "run folder by --decoder RUN")
    run = given["decoder"]
    stored = common.read_args(run, "lia", parser)
    if stored["backbone"] != "dcgan":
        stored = dict(rgb="linear") | stored    # as before its flag
    if stored.get("stage") == "2":
        raise Error(f"{run} is a run of stage 2; name the run of stage 1, {stored['decoder']}")
    if missing := {"stage", "given", "train_images"} - stored.keys():
        raise common.damaged(Path(run, "args.json"), f"{min(missing)} is missing")
    common.read_checkpoint(run, stored, "cpu")
    for key in INHERITED:
        if key in given and key in stored and key not in AGAIN and str(given[key]) != str(stored[key]):
            raise Error(f"the decoder {run} has {common.flag(key)} {stored[key]}, not {given[key]}; leave the flag "
                        f"out, or train another decoder")
    stored.update(stored["given"])              # "auto" where it was, so that the run's folder has the same name
    if "recipe" in given:
        stored.pop("adversarial", None)
    given["decoder"] = str(Path(run).resolve())         # in case it is resumed from another folder
    return {key: stored[key] for key in INHERITED if key in stored}


def label(args):
    """The paper's name of what a run is."""
    if args.stage == "1" and args.mapping == "mlp":
        return "StyleGAN" if args.adversarial == "logistic" else "StyleGAN (Wasserstein)"
    if args.stage == "2" and args.inference == "vae":
        return "VAE"
    return "LIA" if args.mapping == "flow" else "Encoded StyleGAN"


def complete(args, images, held_out, constants):
    words = [f"stage{args.stage}", args.mapping, getattr(args, "inference", "encoder"), args.recipe]
    common.complete(args, images, held_out, label(args), default_split=SPLITS.get(args.data, "dw"),
                    words=[word for word in words if word not in ("flow", "encoder", "paper")],
                    constants=[f"Adam {BETAS[args.stage]}"] + constants)


# --------------------------------------------------------------------------------------------- main

def main(argv=None):
    args = parse_args(argv)
    common.check_resolution(args, RESOLUTIONS)
    (train_decoder if args.stage == "1" else train_encoder)(args)


def train_decoder(args):
    """Stage 1, section 3.1."""
    device, rank, world = common.start(args)
    with common.rank_zero_first():
        images, held_out = data.load(args.data, args.data_root, args.split, args.resolution, args.skip_bad,
                                     RESOLUTIONS[args.backbone], args.only)
    grows = args.backbone == "stylegan"
    if args.resume:
        common.check_images(args, images)
    else:
        if grows:
            common.complete_levels(args, images.shape, world, rates=RATES, part=PART, total=TOTAL)
        complete(args, images, held_out, [f"lr of phi x{LR_MUL}", f"mean w {MEAN_W}" if grows else ""])
    growth = common.growth_of(args, short=True)

    model = Decoder(**network_args(vars(args))).to(device)
    if grows or device.type == "cuda":          # dcgan too: what tensor cores take
        model.to(memory_format=torch.channels_last)
    if args.init:
        common.begin_from(args, model, device)
    if args.freeze_d:
        common.hold(model.c, args)
    common.broadcast(model)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    opt = Namespace(**{name: adam(getattr(model, name), args.lr, BETAS["1"]) for name in ("phi", "g", "c")})
    rng = common.generator(device, args.seed, "training")

    # What training changes, and so what a checkpoint holds
    state = dict(model=model, ema=ema, opt_phi=opt.phi, opt_g=opt.g, opt_c=opt.c, rng=rng)
    run = common.Run(args, state, losses=("L_c", "R1", "L_g"), device=device, growth=growth)
    batches = data.batches(images, growth.plan, args.seed, run.seen, device, rank, world, args.workers)
    amp = common.autocast(args.precision, device)
    draw = common.Draw(model, rng, rank, world, getattr(args, "mixing", 0.0))
    g, c = common.compiled(model.g, model.c) if args.compile else (model.g, model.c)
    nets = model.phi, draw.noisy(g), c
    fixed_x, fixed_z = common.fixed_inputs(ema, held_out, args.seed, device)

    while True:
        level, alpha, batch, lr = growth.at(run.seen)
        common.set_rate(lr, opt.phi, opt.g, opt.c)
        if common.grow(level, alpha, model, ema) and args.adam_state == "fresh":
            for optimizer in vars(opt).values():
                optimizer.state.clear()
        if run.snapshot_due:
            run.snapshot(lr, ema, fixed_x, fixed_z, level, alpha)
        if run.done:
            break
        x = common.to_float(next(batches))
        if args.flip == "on":
            x = common.mirror(x, draw.uniform(len(x)))
        losses = decoder_step(nets, opt, model.see(x), draw, args, amp, getattr(model, "mean_w", None))
        common.average_buffers(model)
        common.update_ema(ema, model, run.seen, batch, growth.since(run.seen), each_step=grows)
        run.step(losses, batch)
    run.finish()


def batch_of(side, world):
    """Images a step of stage 2: 16 a process as in the code, fewer above 256 px."""
    return world * min(16, 4096 // side)


def train_encoder(args):
    """Stage 2, section 3.2."""
    if not args.batch:
        side = max(common.read_args(args.decoder, "lia")["image_shape"][1:])
        args.batch = batch_of(side, int(os.environ.get("WORLD_SIZE", 1)))
    device, rank, world = common.start(args)
    if args.backbone == "stylegan" and args.inference == "encoder" and args.batch // world < 2:
        raise Error(f"--batch {args.batch} leaves a process {args.batch // world} image, and f's batch norm needs 2; "
                    f"pass --batch {2 * world} or more")
    with common.rank_zero_first():
        images, held_out = data.load(args.data, args.data_root, args.split, args.resolution, args.skip_bad,
                                     RESOLUTIONS[args.backbone], args.only)
    began = args.resume and Path(args.resume, "checkpoint.pt").exists()
    if not began and (problem := images.unlike(common.read_args(args.decoder, "lia"))):
        raise Error(f"the decoder {args.decoder} was trained on {problem}; say where its own images are by --data or "
                    f"--data-root")
    if args.resume:
        common.check_images(args, images)
    else:
        if args.perceptual not in ("vgg16", "critic", "pixel"):
            args.perceptual = str(Path(args.perceptual).resolve())      # in case it is resumed from another folder
        complete(args, images, held_out, [f"lr decay {DECAY} a quarter"])
    growth = common.growth_of(args)

    model = LIA(**network_args(vars(args))).to(device)
    if args.backbone == "stylegan" or device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    if not began:
        take_decoder(model, args.decoder, device)
    model.requires_grad_(False).eval()          # g and phi stay so: batch norm too
    for network in (model.f, model.c):
        network.requires_grad_(True).train()
    common.broadcast(model)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    eps = extractor(args, model, device)
    opt = Namespace(f=adam(model.f, args.lr, BETAS["2"]), c=adam(model.c, args.lr, BETAS["2"]))
    rng = common.generator(device, args.seed, "training")

    state = dict(model=model, ema=ema, opt_f=opt.f, opt_c=opt.c, rng=rng)
    names = ["L_rec", "L_adv", "L_c", "R1"]
    if model.variational:
        names += ["KL"]
    if args.log_gradients:
        names += ["first", "middle", "last"]
    run = common.Run(args, state, names, device, growth, trace="gradients.csv" if args.log_gradients else "")
    batches = data.batches(images, growth.plan, args.seed, run.seen, device, rank, world, args.workers)
    amp = common.autocast(args.precision, device)
    draw = common.Draw(model, rng, rank, world)
    f, g, c = common.compiled(model.f, model.g, model.c) if args.compile else (model.f, model.g, model.c)
    nets = f, partial(g, noise="fixed") if model.grows else g, c, model.phi
    fixed_x, fixed_z = common.fixed_inputs(ema, held_out, args.seed, device)

    while True:
        lr = args.lr * DECAY ** min(4 * run.seen / (1000 * args.schedule_kimg), 4)
        common.set_rate(lr, opt.f, opt.c)
        if run.snapshot_due:
            run.snapshot(lr, ema, fixed_x, fixed_z)
        if run.done:
            break
        x = common.to_float(next(batches))
        if args.flip == "on":
            x = common.mirror(x, draw.uniform(len(x)))
        losses = encoder_step(nets, opt, x, eps, draw, args, amp)
        if args.log_gradients:
            losses += tuple(p.grad.abs().mean() for p in three_layers(model.f))
        common.average_buffers(model)
        common.update_ema(ema, model, run.seen, args.batch, run.seen)
        run.step(losses, args.batch)
    run.finish()


def extractor(args, model, device):
    """eps of eq. 5, images in [-1, 1] -> features.
    Raises `Error` where weights are not to be had."""
    if args.perceptual == "pixel":
        return lambda x: x
    if args.perceptual == "critic":
        return lambda x: critic_features(model.eps, x)
    try:
        with common.rank_zero_first():
            return common.frozen("vgg", "" if args.perceptual == "vgg16" else args.perceptual, "cache", common.VGG,
                                 "--perceptual").to(device).conv4_3
    except Error as e:
        raise Error(f"{e}; or pass --perceptual critic or --perceptual pixel") from None


def three_layers(f):
    """The weights of f's first, middle and last layer (figures 7 and 18)."""
    layers = [p for p in f.parameters() if p.ndim > 1]
    return layers[0], layers[len(layers) // 2], layers[-1]


def take_decoder(model, run, device):
    """Give a model of stage 2 what stage 1 trained:
    the averaged phi and g, and the critic as it is, also as eps."""
    averaged = load(run, device, "ema")
    trained = load(run, device, "raw")
    common.check_grown(run, averaged)
    model.phi.load_state_dict(averaged.phi.state_dict())
    model.g.load_state_dict(averaged.g.state_dict())
    for network in (model.c, getattr(model, "eps", model.c)):
        network.load_state_dict(trained.c.state_dict())
    if hasattr(model, "mean_w"):
        model.mean_w.copy_(averaged.mean_w)


# --------------------------------------------------------------------------------------------- load

def network_args(args):
    """The keyword arguments of `Decoder` (stage 1) or `LIA` (stage 2) among a run's arguments."""
    names = ("backbone", "image_shape", "nz", "nw", "width", "fmap_base", "mapping", "coupling", "depth", "rgb",
             "inference", "perceptual")
    return {k: args[k] for k in names if k in args}


def make_model(args):
    """The untrained model of a run's arguments."""
    return (Decoder if args["stage"] == "1" else LIA)(**network_args(args))


def load(run, device="cpu", weights="ema", kimg=None):
    """The model of a run folder, in eval mode; weights "ema" (averaged) or "raw"; kimg: of
    --keep-kimg.  Raises common.Error."""
    return common.load_model(run, "lia", make_model, device, weights, kimg)


if __name__ == "__main__":
    common.command(main)
