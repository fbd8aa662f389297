"""Latently Invertible Autoencoder (LIA), Zhu et al. 2019, arXiv 1906.08090.

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
Section 3.1 is `decoder_step`, section 3.2 `encoder_step`; the network of eqs. 2-4 is `common.InvertibleNetwork`.

Differences from the paper (P) and from the released code (C), and what restores them:
    signs of eqs. 6-8     P's eq. 7 maximises over c a loss that holds + R1, and eq. 8 minimises over f one in which c
                          has no consistent sign.  We read eq. 6 as the critic's loss, to be minimised: c scores
                          realness, and phi, g and f minimise - E c(x~).  There is no flag for the print.
    eq. 8's min over eps  is over f.
    c in stage 2          the asterisk says frozen; the adversarial game of section 3.2, and C, go on training it on
                          eq. 6 with x~ = g(f(x)).  Ours follows the latter.            --critic frozen
    couplings             P has "layer number 8"; C 4 couplings of 2 layers each, which is ours.          --depth 8
    halves                P's eqs. 3, 4 alone never change the top half; the order is reversed between couplings, as C.
    adversarial loss      P Wasserstein (eq. 6), C logistic.  Ours is P's on mlp and dcgan; C's on stylegan, which P's
                          did not train (README).                                       --adversarial
    perceptual loss       P the l2 norm with beta 0.001, C the mean square with 0.00005.
                                                                                --perceptual-norm mse --beta 5e-5
    eps                   P VGG-16 conv4_3.  mlp and dcgan, which P does not have, take the last features of stage 1's
                          critic: P allows any extractor, learned without labels too; beta is then ours.
                                                                                        --perceptual vgg16
                          C's VGG is Keras's, on pixels of 0 ... 255; torchvision's sees them divided by the
                          deviation, so that its features, and with them what beta weighs, have another scale.
    pixel term            P none, C the mean square beside the perceptual one.          --pixel-weight 1
    adversarial weight    P 1, C 0.1.                                                   --adversarial-weight 0.1
    output                linear as StyleGAN's; C has a tanh.                           --rgb tanh
    noise of stage 2      P is silent; fixed, as in C.
    optimisers            P gives none.  Stage 1: Adam (0, 0.99), rates of each level as C, batches as C on 8 GPUs (on
                          fewer ALAE's).  Stage 2: Adam (0.9, 0.99), the rate falling steadily by 0.8 a quarter, 16
                          images a process, as C (ours: less above 256 px); rates of mlp and dcgan are ours.
    growing, length       P is silent; from 8 px, 600,000 images, then as many to fade in a level and as many more, 25
                          million in all, as C.  Other lengths are shared out likewise.  Stage 2: 12 million, in C 14
                          at 256 px.
    mirror images         P is silent.  Ours are off; C's are on for FFHQ.              --flip on
    LSUN                  P ranks 100,000 of the first 500,000 images; ours are the first 100,000.  Cars are cropped to
                          their size, in C letterboxed.
    Adam's state          is kept at a new level, in C it begins anew.                  --adam-state fresh
    style mixing, mean w  P is silent; StyleGAN's (0.9 of images; what an iteration keeps, 0.995), as C.    --mixing 0
    weight averages       P is silent; half-life 10,000 images as C, or a fifth of those since the run or its last level
                          began, if less.  Stage 2 takes the averaged g, as C.  f is averaged too, in C it is not.
    critic's step         in stage 2 takes the x~ of f's step; C makes it anew.
    VAE (section 5.3)     P: KL "as VAE does"; its weight, and the terms beside, are open.  Ours: stage 2's own losses
                          and --kl-weight times the divergence, summed over z, so that only the inference differs.
    mlp, dcgan            are ours, with all their settings.  f of stylegan is C's (P's is a picture), but that the
                          VAE's, whose outputs are mean and log variance, does not end in batch norm.
`--recipe official` takes all of C's choices that have a flag here at once.  The in-domain encoder of Zhu et al. 2020:
--adversarial logistic --pixel-weight 1 --perceptual-norm mse --beta 5e-5 --adversarial-weight 0.08.
"""
import copy
import math
import os
import sys
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
from common import (
    DCGANEncoder,
    DCGANGenerator,
    Error,
    InvertibleNetwork,
    Mapping,
    MLPEncoder,
    MLPGenerator,
    StyleCritic,
    StyleGenerator,
    adam,
    lrelu,
    r1,
    softplus,
    update,
)

BETAS = {"1": (0.0, 0.99), "2": (0.9, 0.99)}    # Adam's, of each stage
LR_MUL = 0.01               # learning rate of the invertible network and of the MLP in its place, relative to g's
MLP_DEPTH = 8               # layers of StyleGAN's mapping network
MEAN_W = 0.995              # what the running mean of w keeps at a step
DECAY = 0.8                 # of stage 2's learning rate, at each quarter of it
PART, TOTAL = 600, 25_000   # thousands of images: of a fade, and of stage 1, on stylegan
RATES = (0.001,) * 5 + (0.0015, 0.002, 0.003, 0.003)        # of stage 1 at 4, 8, ... px


# ---------------------------------------------------------------------------------------------------- networks

class MLP(Mapping):
    """StyleGAN's mapping network in place of phi^-1.   (eq. 9)"""

    def to_w(self, z):
        return self(z)


class TanhGenerator(StyleGenerator):
    def forward(self, w, noise="random"):
        return torch.tanh(super().forward(w, noise))


def conv(c_in, c_out, kernel):
    """A convolution without bias, for the batch norm that follows it has one; weights ~ N(0, 0.02^2)."""
    layer = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


def batch_norm(n, dims=2):
    """With a shift and no scale."""
    layer = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(n, eps=1e-5, momentum=0.1)
    layer.register_parameter("weight", None)
    return layer


class ResidualBlock(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H, W): twice conv3 - batch norm - leaky ReLU, and a shortcut; nothing after."""

    def __init__(self, c_in, c_out):
        super().__init__()
        hidden = min(c_in, c_out)
        self.conv1, self.norm1 = conv(c_in, hidden, 3), batch_norm(hidden)
        self.conv2, self.norm2 = conv(hidden, c_out, 3), batch_norm(c_out)
        if c_in != c_out:
            self.shortcut, self.norm = conv(c_in, c_out, 1), batch_norm(c_out)

    def forward(self, x):
        y = lrelu(self.norm1(self.conv1(x)))
        y = lrelu(self.norm2(self.conv2(y)))
        return y + (lrelu(self.norm(self.shortcut(x))) if hasattr(self, "shortcut") else x)


class ResidualEncoder(nn.Module):
    """f of the released code: conv3 to 64 channels, then down to 4 px a mean of 2x2 and a residual block each, which
    doubles the channels up to 1,024; a dense layer, with batch norm unless its outputs are mean and variance (ours).
    x (N, C, H, W) -> (N, n_out)."""

    def __init__(self, image_shape, n_out, width=1, closing_norm=True):
        super().__init__()
        levels, base = common.levels_of(image_shape)
        channels = [max(min(64 * 2**i, 1024) // width, 1) for i in range(levels)]
        self.first, self.norm = conv(image_shape[0], channels[0], 3), batch_norm(channels[0])
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


def build_networks(backbone, image_shape, nw, width, fmap_base, rgb, inference):
    """-> g, c, f for images of image_shape (C, H, W); f is None without inference, and has 2 nw outputs for "vae"."""
    if backbone == "mlp":
        g, c, f = MLPGenerator(nw, image_shape, width), MLPEncoder(image_shape, 1, width), MLPEncoder
    elif backbone == "dcgan":
        g, c, f = DCGANGenerator(nw, image_shape, width), DCGANEncoder(image_shape, 1, width), DCGANEncoder
    elif backbone == "stylegan":
        g = (TanhGenerator if rgb == "tanh" else StyleGenerator)(nw, image_shape, width, fmap_base)
        c, f = StyleCritic(image_shape, 1, width, fmap_base), partial(ResidualEncoder, closing_norm=inference != "vae")
    return g, c, f(image_shape, nw * (1 + (inference == "vae")), width) if inference else None


class Decoder(nn.Module):
    """What stage 1 trains, z -> w -> x (eq. 10) and the critic, and what `eval.py` asks of it (eval mode)."""

    def __init__(self, backbone, image_shape, nz, nw, width=1, fmap_base=8192, mapping="flow", coupling="additive",
                 depth=4, rgb="linear", inference=None):
        super().__init__()
        self.g, self.c, self.f = build_networks(backbone, image_shape, nw, width, fmap_base, rgb, inference)
        if mapping == "flow":
            self.phi = InvertibleNetwork(nw, depth, coupling, LR_MUL)
            self.unmap = self.phi.to_z          # w -> z, exactly; absent where the mapping has no inverse
        else:
            self.phi = MLP(nz, nw, MLP_DEPTH, LR_MUL)
        self.image_shape, self.nz, self.nw, self.num_layers = tuple(image_shape), nz, nw, 1
        self.grows = backbone == "stylegan"
        if self.grows:
            self.num_layers = self.g.num_layers
            self.register_buffer("mean_w", torch.zeros(nw))

    def prior(self, n, generator):
        """z (n, nz) ~ N(0, I), on the generator's device."""
        return torch.randn(n, self.nz, generator=generator, device=generator.device)

    def map(self, z):
        """w = phi^-1(z), (N, nw)."""
        return self.phi.to_w(z)

    def generate(self, w, noise="fixed"):
        """x = g(w), (N, C, H, W) in [-1, 1], of w (N, nw) or, on stylegan, (N, num_layers, nw).

        noise: "random", "fixed" or "none"; mlp and dcgan have none.
        """
        return self.g.full(self.g(w, noise)) if self.grows else self.g(w)


class LIA(Decoder):
    """What stage 2 adds: f, and eps where that is stage 1's critic, kept as it was."""

    def __init__(self, inference="encoder", perceptual="critic", **kwargs):
        super().__init__(**kwargs, inference=inference)
        self.variational = inference == "vae"
        if perceptual == "critic":
            self.eps = copy.deepcopy(self.c)

    def encode(self, x):
        """w = f(x), (N, nw), of x (N, C, H, W) in [-1, 1]; with --inference vae, of the mean of z."""
        return self.features(x)[0]

    def features(self, x):
        """-> short (N, nw), the code, and long (N, n), the last hidden features of x (N, C, H, W) in [-1, 1]."""
        common.check_images(x, self.image_shape)
        long = self.f.trunk(x)
        short = self.f.head(long)
        return self.map(short.chunk(2, 1)[0]) if self.variational else short, long


def critic_features(c, x):
    """The critic's last feature map (mlp: its last hidden layer), flat."""
    return (c.map(x) if hasattr(c, "map") else c.trunk(x)).flatten(1)


# ----------------------------------------------------------------------------------------------------- settings

PRESETS = {  # ours but for what is said above
    "1 mlp":                 dict(nz=50, nw=50, batch=128, lr=0.002, kimg=2000, snapshot_kimg=100),
    "1 mlp on mnist-mini":   dict(kimg=400, snapshot_kimg=10),
    "2 mlp":                 dict(batch=128, lr=0.001, kimg=2000, snapshot_kimg=100, perceptual="critic"),
    "2 mlp on mnist-mini":   dict(kimg=400, snapshot_kimg=10),
    "1 dcgan":               dict(nz=128, nw=128, batch=32, lr=0.002, kimg=1000, snapshot_kimg=25),
    "2 dcgan":               dict(batch=32, lr=0.001, kimg=1000, snapshot_kimg=25, perceptual="critic"),
    # 0: by level and number of processes, see common.schedule
    "1 stylegan":            dict(nz=512, nw=512, batch=0, lr=0.0, kimg=0.0, snapshot_kimg=0.0, start_resolution=8,
                                  adversarial="logistic"),
    "2 stylegan":            dict(batch=0, lr=0.0001, kimg=12_000, snapshot_kimg=250, adversarial="logistic"),
    "on ffhq":               dict(split="65-5"),
    **{f"on lsun-{name}": dict(split="100k") for name in ("bedroom", "cat", "car")},
    "stylegan on celeba":    dict(resolution="128"),
    "stylegan on celeba-hq": dict(resolution="256"),
    "stylegan on ffhq":      dict(resolution="1024"),
    "stylegan on lsun-car":  dict(resolution="128x96"),
    **{f"stylegan on lsun-{name}": dict(resolution="128") for name in ("bedroom", "cat")},
}
RECIPES = {
    "paper":    {},
    "official": dict(adversarial="logistic", perceptual_norm="mse", pixel_weight=1.0, adversarial_weight=0.1,
                     rgb="tanh", adam_state="fresh", flip="on"),
}
# Weight of each extractor's loss: the paper's, and for the others what makes its gradient at f's output about as large
# as the adversarial one (mlp on mnist, dcgan on faces)
BETA = {"vgg16": 0.001, "critic": 0.3, "pixel": 0.3}
BETA_MSE = 0.00005          # of the released code, with vgg16 and --perceptual-norm mse
# What stage 2 takes from its decoder, and of that, what may be said anew (data where the images have moved)
INHERITED = ("data", "data_root", "split", "resolution", "backbone", "width", "fmap_base", "nz", "nw", "mapping",
             "coupling", "depth", "rgb", "recipe", "adversarial", "gamma")
ANEW = ("data", "data_root", "recipe", "adversarial", "gamma")
STAGE_1 = ("grow_kimg", "start_resolution", "adam_state", "mixing")
STAGE_2 = ("decoder", "inference", "kl_weight", "beta", "perceptual", "perceptual_norm", "pixel_weight",
           "adversarial_weight", "critic", "log_gradients")
STYLE_FLAGS = ("rgb", "adam_state", "mixing")
RESOLUTIONS = {"mlp": [28], "dcgan": [32, 64, 128], "stylegan": common.STYLE_SIZES}


def parse_args(argv=None):
    parser = common.Parser(__doc__)
    common.add_flags(parser, backbones=RESOLUTIONS)
    add = parser.add_argument
    add("--stage", default="1", choices=["1", "2"], help="1: decoder and critic (section 3.1); 2: encoder (3.2)")
    add("--decoder", default="", metavar="RUN", help="stage 2: the run of stage 1")
    add("--recipe", default="paper", choices=RECIPES, help="the printed method, or the released code's choices")
    add("--mapping", default="flow", choices=["flow", "mlp"], help="z to w: invertible (eq. 10) or StyleGAN's (eq. 9)")
    add("--coupling", default="additive", choices=["additive", "affine"], help="of the invertible network (eqs. 3, 4)")
    add("--depth", type=common.positive(int), default=4, help="couplings of the invertible network")
    add("--adversarial", default="wasserstein", choices=["wasserstein", "logistic"], help="form of eq. 6 (stylegan: "
        "logistic)")
    add("--gamma", type=float, default=10.0, help="weight of R1, over 2 (eq. 6)")
    add("--rgb", default="linear", choices=["linear", "tanh"], help="stylegan: its output (released code: tanh)")
    add("--flip", default="off", choices=["off", "on"], help="mirror half of the images (released code, on FFHQ: on)")
    add("--adam-state", default="kept", choices=["kept", "fresh"],
        help="stylegan, stage 1: what becomes of it at a new level (released code: fresh)")
    add("--mixing", type=common.fraction, default=0.9, metavar="P",
        help="stylegan, stage 1: share of images that mix the styles of two codes (StyleGAN 0.9)")
    add("--inference", default="encoder", choices=["encoder", "vae"], help="stage 2: x to w, or x to N(mu, sigma) of z")
    add("--kl-weight", type=float, default=0.01, help="stage 2, vae: of the divergence from the prior (not stated)")
    add("--beta", type=float, default=0.0, help="stage 2: weight of the perceptual loss (eq. 8; default by extractor: "
        "vgg16 0.001; not stated: critic, pixel 0.3)")
    add("--perceptual", default="vgg16", metavar="vgg16|critic|pixel|FILE", help="stage 2: eps of eq. 5: VGG-16 "
        "conv4_3 (FILE: its weights), last features of stage 1's critic, or the image itself")
    add("--perceptual-norm", default="l2", choices=["l2", "mse"], help="stage 2: of eq. 5; released code mse, the mean")
    add("--pixel-weight", type=float, default=0.0, help="stage 2: of the mean squared error (released code 1)")
    add("--adversarial-weight", type=float, default=1.0, help="stage 2: of f's adversarial loss (released code 0.1)")
    add("--critic", default="finetune", choices=["finetune", "frozen"], help="stage 2: goes on learning, or does not")
    add("--log-gradients", action="store_true", help="stage 2: mean |gradient| of f's first, middle and last layer and "
        "the losses of each step, into gradients.csv")
    given = common.explicit(parser, argv)
    inherited = [] if given.get("resume") else check_stage(given)
    args = common.resolve(parser, "lia", PRESETS, RECIPES, default_backbone,
                          [*inherited, *(sys.argv[1:] if argv is None else argv)], STYLE_FLAGS)
    unused = {"1": STAGE_2, "2": STAGE_1}[args.stage] + ("coupling", "depth") * (args.mapping == "mlp")
    if args.resume:
        return without(args, unused)
    if args.mapping == "flow" and (args.nz != args.nw or args.nw % 2):
        raise Error(f"an invertible network maps z to w of the same, even dimension, not {args.nz} to {args.nw}; pass "
                    f"--nz and --nw alike, or --mapping mlp")
    if args.stage == "2":
        if "beta" not in given:
            vgg = args.perceptual not in ("critic", "pixel")
            args.beta = BETA_MSE if vgg and args.perceptual_norm == "mse" else BETA["vgg16" if vgg else args.perceptual]
        if args.inference == "vae" and args.mapping != "mlp":
            raise Error(f"--inference vae is about a decoder of --mapping mlp (section 5.3), and {args.decoder} is one "
                        f"of {args.mapping}; name another, or leave --inference out")
        unused += ("kl_weight",) * (args.inference != "vae")
    return without(args, unused)


def without(args, names):
    return Namespace(**{k: v for k, v in vars(args).items() if k not in names})


def check_stage(given):
    """The flags that stage 2 takes from its decoder, as words; none for stage 1.  Raises `Error` for flags that have no
    meaning beside the others."""
    stage = given.get("stage", "1")
    if wrong := {*given} & {*(STAGE_2 if stage == "1" else STAGE_1)}:
        flag, other = min(wrong).replace("_", "-"), "21"[int(stage) - 1]
        raise Error(f"--{flag} is for --stage {other}; leave it out, or pass --stage {other}")
    if "kl_weight" in given and given.get("inference") != "vae":
        raise Error("--kl-weight is for --inference vae; leave it out, or name that")
    if given.get("mapping") == "mlp" and (wrong := {*given} & {"depth", "coupling"}):
        raise Error(f"--{min(wrong)} is for --mapping flow; leave it out, or name that")
    return inherit(given) if stage == "2" else []


def inherit(given):
    """The flags that stage 2 takes from its decoder.  Raises `Error` where a given one contradicts them."""
    if "decoder" not in given:
        raise Error("--stage 2 trains the encoder of a decoder that is there; train one with --stage 1, and name its "
                    "run folder by --decoder RUN")
    run = given["decoder"]
    stored = common.read_args(run, "lia")
    if stored["stage"] != "1":
        raise Error(f"{run} is a run of stage 2; name the run of stage 1, {stored['decoder']}")
    common.read_checkpoint(run, stored, "cpu")
    for key in INHERITED:
        if key in given and key not in ANEW and str(given[key]) != str(stored.get(key)):
            raise Error(f"the decoder {run} has --{key.replace('_', '-')} {stored.get(key)}, not {given[key]}; leave "
                        f"the flag out, or train another decoder")
    stored.update(stored["given"])              # "auto" where it was, so that the run's folder is named likewise
    skip = {"adversarial"} if "recipe" in given else set()
    return [word for key in INHERITED if key in stored and key not in skip
            for word in (f"--{key.replace('_', '-')}", str(stored[key]))]


def unstated(args):
    """The settings of a run that the paper leaves open."""
    ours = ["kimg", "batch", "lr", "nz", "nw", "depth", "grow_kimg", "batches", "rates", "start_resolution",
            "adam_state", "rgb", "flip", "mixing", "fmap_base", "kl_weight"]
    if getattr(args, "perceptual", "vgg16") in ("critic", "pixel"):
        ours += ["perceptual", "beta"]
    return [name for name in ours if hasattr(args, name) and not (args.backbone == "stylegan" and name in ("nz", "nw"))]


def default_backbone(name):
    return {"mnist": "mlp", "mnist-mini": "mlp", "cifar10": "dcgan"}.get(name, "stylegan")


def label(args):
    """The paper's name of what a run is."""
    if args.stage == "1" and args.mapping == "mlp":
        return "StyleGAN" + " (Wasserstein)" * (args.adversarial == "wasserstein")
    if getattr(args, "inference", "") == "vae":
        return "VAE"
    return "LIA" if args.mapping == "flow" else "Encoded StyleGAN"


# ----------------------------------------------------------------------------------------------------- training

def critic_loss(fake, real, form):
    """Eq. 6 without R1, which c minimises: scores of x~ less those of x, or the logistic loss in its place."""
    if form == "logistic":
        return softplus(fake) + softplus(-real)
    return fake.float().mean() - real.float().mean()


def adversarial_loss(fake, form):
    """What phi, g and f minimise of eqs. 7 and 8: minus the score of x~."""
    return softplus(-fake) if form == "logistic" else -fake.float().mean()


def move_critic(c, opt_c, fake, x, args, amp, plain_c=None):
    """One step of c down eq. 6, on x~ without gradient and real images x.  -> the loss without R1's term, that term"""
    with amp():
        fake_score = c(fake)
        real_score = (plain_c or c)(x.requires_grad_())     # never compiled: R1 differentiates it twice
    R1 = args.gamma / 2 * r1(real_score, x)
    L_c = critic_loss(fake_score, real_score, args.adversarial) + R1                        # eq. 6
    update(L_c, opt_c)
    return L_c - R1, R1


def decoder_step(model, optimizers, x, draw_z, args, amp=nullcontext, nets=None, mix=lambda w: w):
    """One iteration of stage 1 (section 3.1) on real images x (B, C, H, W), a leaf.

    draw_z() -> z (B, nz), fresh at each call.  amp: context of bf16 passes.  nets: g, c for the passes that are
    differentiated once.  mix: style mixing.  -> L_c without R1's term, R1's term, L_g; means over the batch.
    """
    (g, c), (opt_phi, opt_g, opt_c) = nets or (model.g, model.c), optimizers

    # max over c of eq. 7
    with torch.no_grad(), amp():
        w = model.phi.to_w(draw_z())                                                        # eq. 10
        fake = g(mix(w))
    losses = move_critic(c, opt_c, fake, x, args, amp, model.c)
    if hasattr(model, "mean_w"):
        model.mean_w.lerp_(w.float().mean(0), 1 - MEAN_W)

    # min over phi and g of eq. 7
    with amp():
        L_g = adversarial_loss(c(g(mix(model.phi.to_w(draw_z())))), args.adversarial)
    update(L_g, opt_phi, opt_g)
    return *losses, L_g


def perceptual_loss(eps, x, x_hat, norm):
    """Eq. 5: || eps(x) - eps(x~) ||_2 of each image, or the mean square; a mean over the batch, in fp32."""
    d = (eps(x).float() - eps(x_hat).float()).flatten(1)
    return d.square().mean() if norm == "mse" else torch.linalg.vector_norm(d, dim=1).mean()


def kl(mu, logvar):
    """KL(N(mu, sigma^2) || N(0, I)), summed over dimensions, a mean over the batch.   (eq. 1)"""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean()


def encoder_step(model, optimizers, x, eps, args, amp=nullcontext, nets=None, rng=None):
    """One iteration of stage 2 (section 3.2) on real images x (B, C, H, W), a leaf; g and phi stay as they are.

    eps: images -> features.  nets: f, g, c for the passes that are differentiated once.  rng() -> N(0, 1) of z's
    shape, for the VAE.  -> L_f without its adversarial term and divergence, that term, L_c without R1's term, R1's
    term, the divergence; what there is not is 0.
    """
    (f, g, c), (opt_f, opt_c) = nets or (model.f, model.g, model.c), optimizers
    divergence = zero = torch.zeros((), device=x.device)
    with amp():
        w = f(x)                                                                            # eq. 2, without phi
    if model.variational:
        mu, logvar = w.float().chunk(2, 1)
        w = model.map(mu + (logvar / 2).exp() * rng())
        divergence = args.kl_weight * kl(mu, logvar)                                        # eq. 1
    with amp():
        x_hat = g(w, "fixed") if model.grows else g(w)
        L_eps = perceptual_loss(eps, x, x_hat, args.perceptual_norm)                        # eq. 5
        L_adv = args.adversarial_weight * adversarial_loss(c(x_hat), args.adversarial)
    L_rec = args.beta * L_eps
    if args.pixel_weight:
        L_rec = L_rec + args.pixel_weight * (x - x_hat.float()).square().mean()
    update(L_rec + L_adv + divergence, opt_f)                                               # eq. 8

    L_c, R1 = zero, zero
    if args.critic == "finetune":
        L_c, R1 = move_critic(c, opt_c, x_hat.detach(), x, args, amp, model.c)              # eq. 6, x~ = g(f(x))
    return L_rec, L_adv, L_c, R1, divergence


def three_layers(f):
    """The weights of f's first, middle and last layer (figures 7 and 18)."""
    layers = [p for p in f.parameters() if p.ndim > 1]
    return layers[0], layers[len(layers) // 2], layers[-1]


def extractor(args, model, device):
    """eps of eq. 5, images in [-1, 1] -> features.  Raises `Error` where weights are not to be had."""
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


def main(argv=None):
    args = parse_args(argv)
    common.check_resolution(args, RESOLUTIONS)
    (train_decoder if args.stage == "1" else train_encoder)(args)


def train_decoder(args):
    """Stage 1, section 3.1."""
    device, rank, world = common.start(args)
    with common.rank_zero_first():
        images, held_out = data.load(args.data, args.data_root, args.split, args.resolution, args.skip_bad,
                                     RESOLUTIONS[args.backbone])
    grows = args.backbone == "stylegan"
    growth = common.schedule(args, images.shape, world, rates=RATES, part=PART, total=TOTAL, short=True)
    common.settle(args, images, held_out, label=label(args), unstated=unstated(args), constants=constants(args),
                  named=folder_words(args), default_split=default_split(args))
    model = Decoder(**network_args(vars(args))).to(device)
    if grows or device.type == "cuda":  # dcgan too: what tensor cores take
        model.to(memory_format=torch.channels_last)
    common.broadcast(model)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizers = opt_phi, opt_g, opt_c = [adam(net, args.lr, BETAS["1"]) for net in (model.phi, model.g, model.c)]
    rng = common.generator(device, args.seed, "training")

    # What training changes, and so what a checkpoint holds
    state = dict(model=model, ema=ema, opt_phi=opt_phi, opt_g=opt_g, opt_c=opt_c, rng=rng)
    run = common.Run(args, state, losses=("L_c", "R1", "L_g"), device=device, growth=growth)
    batches = data.batches(images, growth.plan, args.seed, run.seen, device, rank, world, args.workers)
    amp = common.autocast(args.precision, device)
    g, c = common.compiled(model.g, model.c) if args.compile else (model.g, model.c)
    fixed_x, fixed_z = common.fixed_inputs(ema, held_out, args.seed, device)

    # All processes draw for the whole batch, and take their share
    def draw_z():
        return model.prior(batch, rng)[rank::world]

    def mix(w):
        if not grows:
            return w
        draw = torch.rand(batch, 2, generator=rng, device=device)[rank::world]
        return common.mix_styles(w, model.phi.to_w(draw_z()), model.g.top, args.mixing, draw)

    def noisy_g(w):
        return g(w, [eta[rank::world].clone() for eta in model.g.draw_noise(batch, rng)])

    nets = noisy_g if grows else g, c
    while True:
        level, alpha, batch, lr = growth.at(run.seen)
        common.set_rate(lr, *optimizers)
        if common.grow(level, alpha, model, ema) and args.adam_state == "fresh":
            for optimizer in optimizers:
                optimizer.state.clear()
        if run.snapshot_due:
            run.snapshot(lr, common.held_out(ema, fixed_x, fixed_z), common.snapshot_pictures(ema, fixed_x, fixed_z),
                         level, alpha)
        if run.done:
            break
        x = common.to_float(next(batches))
        if args.flip == "on":
            x = common.mirror(x, torch.rand(batch, generator=rng, device=device)[rank::world])
        losses = decoder_step(model, optimizers, model.c.fit(x) if grows else x, draw_z, args, amp, nets, mix)
        common.average_buffers(model)
        common.average(ema, model, run.seen, batch, growth.since(run.seen), each_step=grows)
        run.step(losses, batch)
    run.finish()


def train_encoder(args):
    """Stage 2, section 3.2."""
    if not args.batch:
        side = max(common.read_args(args.decoder, "lia")["image_shape"][1:])
        args.batch = int(os.environ.get("WORLD_SIZE", 1)) * min(16, 4096 // side)
    device, rank, world = common.start(args)
    if args.backbone == "stylegan" and args.batch // world < 2:
        raise Error(f"--batch {args.batch} leaves a process {args.batch // world} image, and f's batch norm needs 2; "
                    f"pass --batch {2 * world} or more")
    with common.rank_zero_first():
        images, held_out = data.load(args.data, args.data_root, args.split, args.resolution, args.skip_bad,
                                     RESOLUTIONS[args.backbone])
    growth = common.Growth([tuple(images.shape[1:])], [args.batch], [args.lr])
    began = args.resume and Path(args.resume, "checkpoint.pt").exists()
    if not began:
        check_decoder(args, images)
    common.settle(args, images, held_out, label=label(args), named=folder_words(args), unstated=unstated(args),
                  constants=constants(args), default_split=default_split(args))
    model = LIA(**network_args(vars(args))).to(device)
    if args.backbone == "stylegan" or device.type == "cuda":  # dcgan too: what tensor cores take
        model.to(memory_format=torch.channels_last)
    if not began:
        take_decoder(model, args.decoder, device)
    model.requires_grad_(False).eval()          # g and phi stay so: batch norm too
    for network in (model.f, model.c):
        network.train()
    model.f.requires_grad_(True)
    model.c.requires_grad_(True)
    common.broadcast(model)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    eps = extractor(args, model, device)
    opt_f, opt_c = (adam(network, args.lr, BETAS["2"]) for network in (model.f, model.c))
    rng = common.generator(device, args.seed, "training")

    state = dict(model=model, ema=ema, opt_f=opt_f, opt_c=opt_c, rng=rng)
    names = ["L_rec", "L_adv", "L_c", "R1"] + ["KL"] * model.variational
    names += ["first", "middle", "last"] * args.log_gradients
    run = common.Run(args, state, names, device, growth, trace="gradients.csv" if args.log_gradients else "")
    batches = data.batches(images, growth.plan, args.seed, run.seen, device, rank, world, args.workers)
    amp = common.autocast(args.precision, device)
    nets = common.compiled(model.f, model.g, model.c) if args.compile else (model.f, model.g, model.c)
    fixed_x, fixed_z = common.fixed_inputs(ema, held_out, args.seed, device)

    while True:
        lr = args.lr * DECAY ** min(4 * run.seen / (1000 * args.schedule_kimg), 4)
        common.set_rate(lr, opt_f, opt_c)
        if run.snapshot_due:
            run.snapshot(lr, common.held_out(ema, fixed_x, fixed_z), common.snapshot_pictures(ema, fixed_x, fixed_z))
        if run.done:
            break
        x = common.to_float(next(batches))
        if args.flip == "on":
            x = common.mirror(x, torch.rand(args.batch, generator=rng, device=device)[rank::world])
        losses = encoder_step(model, (opt_f, opt_c), x, eps, args, amp, nets,
                              lambda: model.prior(args.batch, rng)[rank::world])
        losses = losses[:5 if model.variational else 4]
        if args.log_gradients:
            losses = *losses, *(p.grad.abs().mean() for p in three_layers(model.f))
        common.average_buffers(model)
        common.average(ema, model, run.seen, args.batch, run.seen)
        run.step(losses, args.batch)
    run.finish()


def folder_words(args):
    """What the run folder's name has between method and backbone."""
    return [f"stage{args.stage}", *(v for v in (args.mapping, getattr(args, "inference", "encoder"), args.recipe)
                                    if v not in ("flow", "encoder", "paper"))]


def default_split(args):
    return PRESETS.get(f"on {args.data}", {}).get("split", "dw")


def constants(args):
    """What is no flag and the paper leaves open, for the first lines of a run."""
    text = f"Adam {BETAS[args.stage]}  ema half-life {common.EMA_HALF_LIFE:,} images"
    if args.stage == "2":
        return text + f"  lr decay {DECAY} a quarter"
    return text + f"  lr of phi x{LR_MUL}" + f"  mean w {MEAN_W}" * (args.backbone == "stylegan")


def check_decoder(args, images):
    """Raise `Error` where the images are not those that the decoder was trained on."""
    if problem := images.unlike(common.read_args(args.decoder, "lia")):
        raise Error(f"the decoder {args.decoder} was trained on {problem}; say where its own images are by --data or "
                    f"--data-root")


def take_decoder(model, run, device):
    """Give a model of stage 2 what stage 1 trained: the averaged phi and g, and the critic as it is, also as eps."""
    averaged, trained = load(run, device, "ema"), load(run, device, "raw")
    if averaged.grows and (averaged.g.top < averaged.g.levels - 1 or averaged.g.fades):
        raise Error(f"{run} has grown to {max(averaged.g.size())} px only, alpha {float(averaged.g.alpha):.2f}; go on "
                    f"with it by --resume first")
    model.phi.load_state_dict(averaged.phi.state_dict())
    model.g.load_state_dict(averaged.g.state_dict())
    for network in (model.c, getattr(model, "eps", model.c)):
        network.load_state_dict(trained.c.state_dict())
    if hasattr(model, "mean_w"):
        model.mean_w.copy_(averaged.mean_w)


# ------------------------------------------------------------------------------------------------ trained model

def network_args(args):
    """The keyword arguments of `Decoder` (stage 1) or `LIA` (stage 2) among a run's arguments."""
    names = ("backbone", "image_shape", "nz", "nw", "width", "fmap_base", "mapping", "coupling", "depth", "rgb",
             "inference", "perceptual")
    return {k: args[k] for k in names if k in args}


def load(run, device="cpu", weights="ema"):
    """The model of a run folder, in eval mode; weights "ema" (averaged) or "raw".  Raises common.Error."""
    args = common.read_args(run, "lia")
    with common.fitting(run):
        model = (Decoder if args["stage"] == "1" else LIA)(**network_args(args))
        return common.load_weights(run, args, model, weights, device)


if __name__ == "__main__":
    common.command(main, data.DataError)
