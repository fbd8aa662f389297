"""Adversarial Latent Autoencoders (ALAE), Pidhorskyi, Adjeroh, Doretto, CVPR 2020, arXiv 2004.04467.

    python alae.py                                             MLP on 10,000 bundled digits, 5 minutes on two cores
    python alae.py --data mnist                                MLP on MNIST, as section 7.1
    python alae.py --data cifar10                              DCGAN, 32x32
    python alae.py --data ffhq                                 StyleALAE at 1024x1024, section 7.2
    python alae.py --data faces.zip --resolution 64 --width 8 --kimg 300    StyleALAE, small, on a folder or zip
    torchrun --nproc_per_node=8 alae.py --data ffhq            several GPUs
    python alae.py --official FILE                             a run from the authors' weights, to use or to train on
    python eval.py metrics runs/alae-mlp-mnist-mini            what it learnt, in numbers

    z  (B, nz)       prior sample, N(0, I)            F  z -> w  mapping network
    w  (B, nw)       latent code                      G  w -> x  generator
    x  (B, C, H, W)  image in [-1, 1]                 E  x -> w  encoder
                                                      D  w -> logit, the discriminator's second half: D o E judges x
Algorithm 1 is `train_step`; the encoder of section 5 is `StyleEncoder`; eqs. 3-5 are definitions and a goal.  Where we
differ from the paper or from the authors' released code ("the code"), the line says so, with the flag that restores
the other; the whole list is in .github/alae.md.
"""
import copy
import json
import math
import pickle
import re
import sys
from argparse import SUPPRESS, Namespace
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import common  # before torch, whose threads wait as it says

# isort: split
import torch
import torch.nn.functional as nnf
from torch import nn

import data
from common import CODE, OURS, PAPER, EqualConv2d, EqualLinear, adam, lrelu, mean_softplus, r1, uncompiled, update

BETAS = (0.0, 0.99)         # Adam's beta_1, beta_2 (section 6)
F_DEPTH = dict(mlp=6, dcgan=6, stylegan=8)      # layers of F (StyleALAE: section 5; mlp: the code; dcgan: ours)
LR_MUL = 0.1                # learning rate of F and D, relative to the others' (as in the code; the paper has none)
MEAN_W = 0.995              # what the running mean of w keeps at a step; the code moves it whenever G is run


# -------------------------------------------------------------------------------------- Algorithm 1

def train_step(nets, opt, x, draw, args, amp=nullcontext, mean_w=None):
    """One iteration on real images x (B, C, H, W), as E takes them; a leaf, because R1 needs x's
    gradient.

    nets: F, G, E, D, in train mode.  opt: an Adam of each, by name.  draw: a
    `common.Draw`.  amp: context of bf16 passes.  mean_w: running mean of w,
    moved in place.  -> L_ED without R1's term, that term, L_FG, L_EG; means.
    """
    F, G, E, D = nets
    B = len(x)

    # Step I: E and D tell real from fake (Alg. 1, lines 3-7; x is line 4)
    with amp(), torch.no_grad():
        w = F(draw.z(B))                                                    # line 5
        fake = G(draw.mix(w, F))            # style mixing in steps I and II, as in the code; the paper has them open
    with amp():
        fake_score = D(E(fake))
        real_score = uncompiled(D)(uncompiled(E)(x.requires_grad_()))  # never compiled: R1 differentiates it twice
    R1 = args.gamma / 2 * r1(real_score, x)     # gradient with respect to x, as in the code; the paper prints theta
    L_ED = mean_softplus(fake_score) + mean_softplus(-real_score)           # line 6: eq. 1, f(t) = -softplus(-t)
    update(L_ED + R1, opt.E, opt.D)                                         # line 7
    if mean_w is not None:
        mean_w.lerp_(w.float().mean(0), 1 - MEAN_W)

    # Step II: F and G fool them (lines 8-11)
    with amp():
        L_FG = mean_softplus(-D(E(G(draw.mix(F(draw.z(B)), F)))))           # line 9, line 10
    update(L_FG, opt.F, opt.G)                                              # line 11

    # Step III: E inverts G in latent space (lines 12-15)
    with amp():
        with torch.set_grad_enabled(args.step3 == "EGF"):
            w = F(draw.z(B))                                                # line 13
        error = w.detach().float() - E(G(w)).float()        # with EGF, F is reached through G alone
    L_EG = error.square().sum(1).mean()                                     # line 14, eq. 8
    if args.latent_loss == "mean":      # the default, as in the code: a sum is so strong that E(x) shrinks
        L_EG = L_EG / args.nw
    if args.step3 == "EG":
        update(L_EG, opt.E, opt.G)                                          # line 15
    else:
        update(L_EG, opt.E, opt.G, opt.F)   # as in the code

    return L_ED, R1, L_FG, L_EG


# ----------------------------------------------------------------------------------------- networks

def squash(t):
    """A smooth clip to [0, 1], of slope 1 at 1/2; of pixels in [-1, 1] it is tanh."""
    return torch.sigmoid(4 * t - 2)


class LatentDiscriminator(nn.Module):
    """D: w (N, nw) -> logit (N, 1), three layers of w's width (section 5).
    act "none", as in the code: affine."""

    def __init__(self, nw, act):
        super().__init__()
        gain = math.sqrt(2) if act == "lrelu" else 1
        self.layer1 = EqualLinear(nw, nw, gain, LR_MUL)
        self.layer2 = EqualLinear(nw, nw, gain, LR_MUL)
        self.layer3 = EqualLinear(nw, 1, 1, LR_MUL)
        self.act = lrelu if act == "lrelu" else nn.Identity()

    def forward(self, w):
        return self.layer3(self.act(self.layer2(self.act(self.layer1(w)))))


class Encoder(nn.Module):
    """E: x -> w (N, nw): a backbone's encoder,
    and the leaky ReLU that F's output has too (as in the code)."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def features(self, x):
        """-> short (N, nw), the code, and long (N, n), the last hidden layer (section 7.1)."""
        long = self.net.trunk(x)
        return lrelu(self.net.head(long)), long

    def forward(self, x):
        return self.features(x)[0]


class EncoderBlock(nn.Module):
    """A level of E, the mirror of `common.StyleBlock`:
    (N, c_in, H, W) -> (N, c_out, H/2, W/2) and two styles."""

    def __init__(self, c_in, c_out, size):
        super().__init__()
        self.conv = EqualConv2d(c_in, c_in, 3, gain=math.sqrt(2), padding=1)
        self.down = common.DownConv(c_in, c_out, math.sqrt(2), fused=min(size) >= common.FUSED_FROM)

    def forward(self, x):
        style1, x = take_style(lrelu(self.conv(x)))
        style2, x = take_style(lrelu(self.down(common.blur(x))))
        return x, style1, style2


def take_style(y):
    """-> [mu(y); sigma(y)] of each channel, (N, 2C), and y after instance norm.
    sigma has a floor.  (section 5)"""
    y, mu, sigma = common.moments(y)
    return torch.cat([mu, sigma], 1).flatten(1), y * (1 / sigma).to(y.dtype)


class StyleEncoder(common.Growing):
    """E of StyleALAE: x at the top level -> w (N, nw), a sum
    of linear maps of the styles of all layers.  (fig. 2)

    C_i has run-time gain 1, as StyleGAN's style maps.  layers: "paper", or "released", whose
    from-RGB has its leaky ReLU twice and each C_i a bias.
    """

    def __init__(self, image_shape, nw, width, fmap_base, layers, fmap_max=512):
        super().__init__(image_shape, width, fmap_base, fmap_max)
        c = self.channels
        self.slope = 0.04 if layers == "released" else 0.2
        self.from_rgb = nn.ModuleList(EqualConv2d(image_shape[0], n, 1, gain=math.sqrt(2)) for n in c)
        self.blocks = nn.ModuleList(EncoderBlock(c[i], c[max(i - 1, 0)], self.size(i)) for i in range(self.levels))
        self.C = nn.ModuleList(EqualLinear(2 * n, nw, gain=1, bias=layers == "released")
                               for i in range(self.levels) for n in (c[i], c[max(i - 1, 0)]))

    def styles(self, x):
        """-> [mu(y_i); sigma(y_i)], (N, 2C_i), of the layers from level 0 up."""
        y = nnf.leaky_relu(self.from_rgb[self.top](x), self.slope)
        styles = []
        for i in range(self.top, -1, -1):
            y, style1, style2 = self.blocks[i](y)
            if self.fades and i == self.top:
                small = nnf.leaky_relu(self.from_rgb[i - 1](nnf.avg_pool2d(x, 2)), self.slope)
                y = self.fade(small, y)
            styles = [style1, style2] + styles
        return styles

    def features(self, x):
        """-> w (N, nw), and the styles that it is made of, (N, n)."""
        styles = self.styles(x)
        parts = [C(style) for C, style in zip(self.C, styles, strict=False)]    # of the levels that there are yet
        if self.fades:                      # the top level's two, as in the code
            parts[-2:] = [self.alpha * part for part in parts[-2:]]
        return sum(parts), torch.cat(styles, 1)                                                 # eq. 9

    def forward(self, x):
        return self.features(x)[0]


# -------------------------------------------------------------------------------------------- model

class ALAE(nn.Module):
    """The four networks, and what `eval.py` asks of any model (eval mode)."""

    def __init__(self, backbone, image_shape, nz, nw, width, d_act, fmap_base=8192, layers="paper", g_end="linear",
                 fmap_max=512):
        super().__init__()
        F = common.Mapping(nz, nw, F_DEPTH[backbone], LR_MUL)
        D = LatentDiscriminator(nw, d_act)
        if backbone == "mlp":
            # the paper has G's end open, and the code's is linear, which leaves speckle; BiGAN's
            # is a sigmoid
            G = common.MLPGenerator(nw, image_shape, width, squash if g_end == "sigmoid" else None)
            E = Encoder(common.MLPEncoder(image_shape, nw, width))
        elif backbone == "dcgan":
            G = common.DCGANGenerator(nw, image_shape, width)
            E = Encoder(common.DCGANEncoder(image_shape, nw, width))
        elif backbone == "stylegan":
            gain = 0.03 if layers == "released" else 1.0
            G = common.StyleGenerator(nw, image_shape, width, fmap_base, gain, fmap_max)
            E = StyleEncoder(image_shape, nw, width, fmap_base, layers, fmap_max)
        self.F, self.G, self.E, self.D = F, G, E, D
        self.image_shape, self.nz, self.nw, self.num_layers = tuple(image_shape), nz, nw, 1
        self.unit_range = backbone == "mlp"     # its networks, and so its R1, work on pixels in [0, 1], as in the code
        self.grows = backbone == "stylegan"
        if self.grows:
            self.num_layers = self.G.num_layers
            self.register_buffer("mean_w", torch.zeros(nw))

    def see(self, x):
        """Images in [-1, 1] -> as E sees them: in its range, and at the level of a growing one."""
        if self.unit_range:
            return (x + 1) / 2
        return self.E.fit(x) if self.grows else x

    def show(self, x):
        """Back again: what G made -> images in [-1, 1] of image_shape."""
        if self.unit_range:
            return x * 2 - 1
        return self.G.full(x) if self.grows else x

    def prior(self, n, generator):
        """z (n, nz) ~ N(0, I), on the generator's device."""
        return torch.randn(n, self.nz, generator=generator, device=generator.device)

    def map(self, z):
        """w = F(z), (N, nw)."""
        return self.F(z)

    def generate(self, w, noise="fixed"):
        """x = G(w, eta), (N, C, H, W), images in [-1, 1] (stylegan, and mlp
        with --g-end linear, do not clip), of w (N, nw) or, on stylegan, (N, num_layers, nw).

        noise: "random", "fixed" or "none"; mlp and dcgan have none.
        """
        return self.show(self.G(w, noise) if self.grows else self.G(w))

    def encode(self, x):
        """w = E(x), (N, nw), of x (N, C, H, W) in [-1, 1].  Raises ValueError if x is not that.

        While a level of stylegan fades in, x is blended
        as real images are in training, even if G made it.
        """
        return self.features(x)[0]

    def features(self, x):
        """-> short (N, nw), long (N, n) features of x (N, C, H, W) in [-1, 1] (section 7.1);
        raises as `encode`."""
        common.check_input(x, self.image_shape)
        return self.E.features(self.see(x))


# ----------------------------------------------------------------------------------------- settings

RESOLUTIONS = {"mlp": [28], "dcgan": [32, 64, 128], "stylegan": common.STYLE_SIZES}
STYLE = dict(backbone="stylegan")
# Rows of (where it holds, what is set); later rows refine earlier ones.  PAPER (its sections 5 to
# 7), CODE and OURS say where a value comes from.
SETTINGS = [
    (dict(), dict(recipe="paper", backbone="stylegan"),
        PAPER(step3="EG", d_act="lrelu"), CODE(latent_loss="mean"),
        OURS(gamma=1.0, kimg=1000, snapshot_kimg=25)),          # gamma was chosen on MNIST
    (dict(data=data.GREY), dict(backbone="mlp")),
    (dict(data=("mnist", "mnist-mini")), PAPER(backbone="mlp")),
    (dict(data=data.COLOUR), dict(backbone="dcgan")),
    (dict(backbone="mlp"), PAPER(nz=50, nw=50, batch=128, lr=0.002),
        OURS(g_end="sigmoid", kimg=6000, snapshot_kimg=100)),
    # short: a smaller batch and a higher rate get further in 270,000 images than the paper's
    (dict(backbone="mlp", data="mnist-mini"), OURS(kimg=270, snapshot_kimg=10)),
    (dict(backbone="mlp", data="mnist-mini", recipe="paper"), OURS(batch=64, lr=0.008)),
    (dict(backbone="dcgan"), OURS(nz=128, nw=128, batch=32, lr=0.006)),
    # 0: by level and number of processes, see common.complete_levels
    (STYLE, CODE(nz=512, nw=512, lr=0.0, gamma=10.0, fmap_base=8192), PAPER(layers="paper"), OURS(batch=0, kimg=0.0,
        grow_kimg=0.0, snapshot_kimg=0.0, mixing=0.9, fade="linear", adam_state="kept", flip="off")),
    (STYLE | dict(data="celeba"), CODE(resolution="128", nz=256, nw=256, fmap_base=4096, fmap_max=256)),
    (STYLE | dict(data="celeba-hq"), PAPER(resolution="256")),
    # 10 million images: 500,000 to fade a level in, and as many more; code: --grow-kimg 480
    (STYLE | dict(data="ffhq"), PAPER(resolution="1024")),
    (STYLE | dict(data="ffhq", resolution="1024", start_resolution=4, kimg=0.0, grow_kimg=0.0),
        PAPER(kimg=0.0, grow_kimg=0.0)),
    (STYLE | dict(data="lsun-bedroom"), PAPER(resolution="256"), CODE(fmap_base=4096)),
    (STYLE | dict(data=("lsun-cat", "lsun-car")), OURS(resolution="256", fmap_base=4096)),
    (dict(recipe="official", backbone="mlp"), CODE(g_end="linear")),
    (dict(recipe="official"), CODE(step3="EGF", d_act="none", gamma=10.0, fade="sine",
        adam_state="fresh", layers="released", flip="on")),
]


def parse_args(argv=None):
    parser = common.method_parser(__doc__, RESOLUTIONS)
    add = parser.group("method")
    add("--recipe", "choices of the printed method, or of the released code",
        choices=["paper", "official"])
    add("--gamma", "weight of R1, over 2 (Alg. 1 line 6; paper: open; code: 10)",
        type=common.not_negative, metavar="W")
    add("--latent-loss", "reduction over w's dimensions (Alg. 1 line 14: sum; code: mean)",
        choices=["mean", "sum"])
    add("--step3", "networks that step III moves (Alg. 1 line 15: EG; code: EGF)",
        choices=["EG", "EGF"])
    add("--d-act", "activation between D's layers (code: none)", choices=["lrelu", "none"])
    add("--g-end", "last activation of G (code: linear)",
        only=dict(backbone="mlp"), choices=["sigmoid", "linear"])
    add("--mixing", "share of images that mix the styles of two codes (StyleGAN 0.9; code: of batches)",
        only=STYLE, type=common.fraction, metavar="P")
    add("--fade", "growth of alpha (code: half a wave of a sine)",
        only=STYLE, choices=["linear", "sine"])
    add("--adam-state", "state of Adam at a new level (code: fresh)",
        only=STYLE, choices=["kept", "fresh"])
    add("--freeze-d", "blocks of E, from the image on, that stay as --init has them (FreezeD; ours)",
        rare=True, type=common.count, default=0, metavar="N")
    add("--fmap-max", "most channels, over --width (code: 512, celeba 256)", only=STYLE, rare=True,
        type=common.positive(int), default=512, metavar="N")
    add("--layers", "gains, slope, biases of E's and G's ends",
        only=STYLE, choices=["paper", "released"])
    add("--flip", "mirroring of half of the images (code: on)", only=STYLE, choices=["off", "on"])
    add = parser.group("public weights")                # see `convert`
    add("--official", "checkpoint of the authors' code, made into a run folder; with --out and --batch alone",
        metavar="FILE", default=SUPPRESS)
    add("--export", "file for the authors' code to write the averaged weights of --resume RUN to",
        metavar="FILE", default=SUPPRESS)
    return common.resolve(parser, "alae", SETTINGS, argv, network_args,
                          formerly=dict(g_end="linear", fmap_max=512))


# --------------------------------------------------------------------------------------------- main

def main(argv=None):
    if convert(sys.argv[1:] if argv is None else argv):
        return
    args = parse_args(argv)
    common.check_resolution(args, RESOLUTIONS)
    device, rank, world = common.start(args)
    with common.rank_zero_first():
        images, held_out = data.load(args.data, args.data_root, args.split, args.resolution, args.skip_bad,
                                     RESOLUTIONS[args.backbone], args.only)
    grows = args.backbone == "stylegan"
    if args.resume:
        common.check_images(args, images)
    else:
        if grows:
            common.complete_levels(args, images.shape, world)
        common.complete(args, images, held_out, label="StyleALAE" if grows else "ALAE",
                        words=["" if args.recipe == "paper" else args.recipe,
                               "linear" if (args.recipe, getattr(args, "g_end", "")) == ("paper", "linear") else ""],
                        constants=[f"F depth {F_DEPTH[args.backbone]}", f"lr of F and D x{LR_MUL}",
                                   f"mean w {MEAN_W}" if grows else ""])
    growth = common.growth_of(args, sine=grows and args.fade == "sine")

    model = ALAE(**network_args(vars(args))).to(device)
    if grows or device.type == "cuda":          # dcgan too: what tensor cores take
        model.to(memory_format=torch.channels_last)
    if args.init:
        common.begin_from(args, model, device)
    if args.freeze_d:
        common.hold(model.E, args)
    common.broadcast(model)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    opt = Namespace(**{name: adam(net, args.lr, BETAS) for name, net in model.named_children()})
    rng = common.generator(device, args.seed, "training")

    # What training changes, and so what a checkpoint holds
    state = dict(model=model, ema=ema, opt_F=opt.F, opt_G=opt.G, opt_E=opt.E, opt_D=opt.D, rng=rng)
    run = common.Run(args, state, losses=("L_ED", "R1", "L_FG", "L_EG"), device=device, growth=growth)
    batches = data.batches(images, growth.plan, args.seed, run.seen, device, rank, world, args.workers)
    amp = common.autocast(args.precision, device)
    draw = common.Draw(model, rng, rank, world, getattr(args, "mixing", 0.0))
    F, G, E, D = common.compiled(model.F, model.G, model.E, model.D) if args.compile else model.children()
    nets = F, draw.noisy(G), E, D
    fixed_x, fixed_z = common.fixed_inputs(ema, held_out, args.seed, device)

    while True:
        level, alpha, batch, lr = growth.at(run.seen)
        common.set_rate(lr, opt.F, opt.G, opt.E, opt.D)
        if common.grow(level, alpha, model, ema) and args.adam_state == "fresh":
            for optimizer in vars(opt).values():
                optimizer.state.clear()
        if run.snapshot_due:
            run.snapshot(lr, ema, fixed_x, fixed_z, level, alpha)
        if run.done:
            break
        x = common.to_float(next(batches))
        if grows and args.flip == "on":
            x = common.mirror(x, draw.uniform(len(x)))
        losses = train_step(nets, opt, model.see(x), draw, args, amp, getattr(model, "mean_w", None))
        common.average_buffers(model)
        common.update_ema(ema, model, run.seen, batch, growth.since(run.seen), each_step=grows)
        run.step(losses, batch)
    run.finish()


# --------------------------------------------------------------------------------------------- load

def network_args(args):
    """The keyword arguments of `ALAE` among a run's arguments."""
    names = ("backbone", "image_shape", "nz", "nw", "width", "d_act", "fmap_base", "layers", "g_end", "fmap_max")
    return {k: args[k] for k in names if k in args}


def make_model(args):
    """The untrained model of a run's arguments."""
    return ALAE(**network_args(args))


def load(run, device="cpu", weights="ema", kimg=None):
    """The model of a run folder, in eval mode; weights "ema" (averaged) or "raw"; kimg: of
    --keep-kimg.  Raises common.Error."""
    return common.load_model(run, "alae", make_model, device, weights, kimg)


# ----------------------------------------------------------------------------------- public weights
# A checkpoint of the authors' code, github.com/podgorskiy/ALAE, is a dict whose "models" has a
# state dict for each network, averaged (NAME_s) and perhaps raw (NAME), and one for the mean w.

PUBLIC = dict(F="mapping_fl", G="generator", E="discriminator", D="mapping_tl")
TRANSPOSED_FROM = 128       # px from which its generator scales up by a transposed convolution
BLUR = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16


def public_layout(model):
    """-> {network: {their key: (ours, factor, form)}}:
    theirs is factor * ours, in a form of `to_public`.

    They keep weights as used, because their optimiser does what our run-time scale does.
    """
    F, G, E, D = {}, {}, {}, {}

    def layer(net, key, ours, bias=None, form=""):
        net[f"{key}.weight"] = ours.weight, ours.scale, form
        if ours.bias is not None:
            net[bias or f"{key}.bias"] = ours.bias, getattr(ours, "lr_mul", 1), "map" if bias else form

    for i, ours in enumerate(model.F.layers):
        layer(F, f"map_blocks.{i}.fc", ours)

    layer(D, "map_blocks.0", model.D.layer1)
    layer(D, "map_blocks.1", model.D.layer2)
    layer(D, "map_blocks.2", model.D.layer3, form="middle")

    G["const"] = model.G.blocks[0].constant, 1, "map"
    for i, block in enumerate(model.G.blocks):
        theirs = f"decode_block.{i}"
        if i > 0:
            form = "transposed" if max(model.G.size(i)) >= TRANSPOSED_FROM else ""
            layer(G, f"{theirs}.conv_1", block.up, form=form)
        layer(G, f"{theirs}.conv_2", block.conv)
        for n, ours in enumerate([block.layer1, block.layer2], 1):
            G[f"{theirs}.bias_{n}"] = ours.bias, 1, "map"
            G[f"{theirs}.noise_weight_{n}"] = ours.noise_gain, 1, "map"
            layer(G, f"{theirs}.style_{n}", ours.style)
        layer(G, f"to_rgb.{i}.to_rgb", model.G.to_rgb[i])

    for i, block in enumerate(model.E.blocks):
        k = model.E.levels - 1 - i              # theirs count from the highest resolution down
        theirs = f"encode_block.{k}"
        layer(E, f"{theirs}.conv_1", block.conv, bias=f"{theirs}.bias_1")
        layer(E, f"{theirs}.conv_2", block.down, bias=f"{theirs}.bias_2")
        for n, C in enumerate(model.E.C[2 * i:2 * i + 2], 1):
            E[f"{theirs}.style_{n}.bias"] = torch.zeros(model.nw), 1, ""        # --layers paper has none
            layer(E, f"{theirs}.style_{n}", C)
        layer(E, f"from_rgb.{k}.from_rgb", model.E.from_rgb[i])

    return dict(F=F, G=G, E=E, D=D)


def to_public(t, form, nw):
    """map: (C,) or (C, H, W) -> (1, C, H, W).  transposed: a kernel with its first two axes swapped
    and its last two flipped.  middle: row nw of 2 nw, the one that their D reads."""
    if form == "map":
        return t.reshape((1, len(t)) + (t.shape[1:] or (1, 1)))
    if form == "transposed":
        return t.transpose(0, 1).flip(2, 3)
    if form == "middle":
        rows = t.new_zeros((2 * nw,) + t.shape[1:])
        rows[nw] = t[0]
        return rows
    return t


def from_public(t, form, nw, shape):
    """The way back, to a tensor of ours of that shape."""
    if form == "transposed":
        t = t.transpose(0, 1).flip(2, 3)
    elif form == "middle":
        t = t[nw:nw + 1]
    return t.reshape(shape)


def read_public(path):
    """-> {name: state dict} of a public checkpoint.  Only tensors are read;
    nothing in the file is run."""
    try:
        models = dict(torch.load(path, map_location="cpu", weights_only=True))["models"]
        models = {name: {key.removeprefix("module."): t for key, t in tensors.items()}
                  for name, tensors in models.items() if isinstance(tensors, dict)}
    except OSError as e:
        raise common.Error(f"{path} cannot be opened ({e.strerror}); check the path") from None
    except Exception as e:      # torch.load lets through whatever the damage leads to
        if common.is_out_of_memory(e):
            raise
        if wanted := re.search(r"GLOBAL (\S+)", str(e)):
            raise common.Error(f"{path} wants {wanted[1]} to be run, which is refused: weights are tensors; take the "
                               f"authors' file, or save its 'models' alone") from None
        if isinstance(e, (pickle.UnpicklingError, RuntimeError, EOFError)):
            raise common.Error(f"{path} cannot be read; it is damaged, incomplete or no checkpoint: download it "
                               f"again") from None
        raise common.Error(f"{path} is no dict with state dicts in 'models', as the authors' code writes; take a file "
                           f"of theirs") from None
    for name in [f"{net}_s" for net in PUBLIC.values()] + ["dlatent_avg"]:
        if name not in models:
            raise common.Error(f"{path}: models has no {name}; take a checkpoint as the authors' code wrote it")
    return models


def public_sizes(path, models):
    """The arguments of an `ALAE` that the weights fit.  Each is
    asked of three tensors, so that a damaged one stands out."""
    def usual(*places):
        found = [models[f"{PUBLIC[net]}_s"].get(key) for net, key, _ in places]
        sizes = [t.shape[axis] for t, (_, _, axis) in zip(found, places, strict=True) if getattr(t, "ndim", 0) > axis]
        if not sizes:
            raise common.Error(f"{path}: {PUBLIC[places[0][0]]}_s {places[0][1]} is missing; take a whole checkpoint")
        return Counter(sizes).most_common(1)[0][0]

    def numbered(net, pattern):
        return sum(1 for key in models[f"{PUBLIC[net]}_s"] if re.fullmatch(pattern, key))

    levels, _ = Counter([numbered("G", r"to_rgb\.\d+\.to_rgb\.weight"), numbered("E", r"encode_block\.\d+\.bias_1"),
                         numbered("G", r"decode_block\.\d+\.bias_1")]).most_common(1)[0]
    colours = usual(("G", "to_rgb.0.to_rgb.bias", 0), ("G", "to_rgb.0.to_rgb.weight", 0),
                    ("E", "from_rgb.0.from_rgb.weight", 1))
    top = usual(("E", "from_rgb.0.from_rgb.bias", 0), ("E", "from_rgb.0.from_rgb.weight", 0),
                ("E", "encode_block.0.bias_1", 1))
    n = usual(("F", "map_blocks.0.fc.bias", 0), ("F", "map_blocks.1.fc.bias", 0), ("D", "map_blocks.0.bias", 0))
    if 2 << levels not in common.STYLE_SIZES:
        raise common.Error(f"{path} has {levels} levels, and there are 1 (4 px) to {len(common.STYLE_SIZES)} "
                           f"({common.STYLE_SIZES[-1]} px); take a checkpoint as the authors' code wrote it")
    return dict(
        image_shape=[colours, 2 << levels, 2 << levels], fmap_base=top << levels, nz=n, nw=n,     # z is of w's size
        fmap_max=usual(("G", "const", 1), ("G", "decode_block.0.bias_1", 1), ("G", "decode_block.0.bias_2", 1)))


@torch.no_grad()
def fill(model, path, models, ending):
    """Put a public checkpoint's networks, NAME + ending, into a model.
    Raises common.Error for what does not fit."""
    def check(good, name, key, what):
        if not good:
            raise common.Error(f"{path}: {name} {key} {what}; take a checkpoint as the authors' code wrote it")

    layout = {f"{PUBLIC[net]}{ending}": rows for net, rows in public_layout(model).items()}
    layout["dlatent_avg"] = {"buff": (model.mean_w.expand(model.num_layers, -1), 1, "")}
    for name, rows in layout.items():
        for key in rows:
            check(key in models[name], name, key, "is missing")
        for key, t in models[name].items():
            check(isinstance(t, torch.Tensor) and t.is_floating_point(), name, key, "is no tensor of numbers")
            if key.endswith(".blur.weight"):    # a constant there
                check(t.shape[1:] == (1, 3, 3) and torch.allclose(t.float(), BLUR), name, key, "is not (1 2 1) / 4")
                continue
            check(key in rows, name, key, "is unexpected")
            ours, factor, form = rows[key]
            shape = to_public(ours.to("meta"), form, model.nw).shape
            check(t.shape == shape, name, key, f"is {'x'.join(map(str, t.shape))}, not {'x'.join(map(str, shape))}")
            check(t.isfinite().all(), name, key, "has numbers that are not finite")
            if name != "dlatent_avg":
                ours.copy_(from_public(t.double(), form, model.nw, ours.shape) / factor)
    model.mean_w.copy_(models["dlatent_avg"]["buff"][0])        # a row a layer, equal at the end of training


def official(path, out, batch):
    """Make a run folder of a public checkpoint.
    Its set is unknown, and its optimisers are not taken."""
    models = read_public(path)
    sizes = public_sizes(path, models)
    c, size, _ = shape = sizes.pop("image_shape")
    given = dict(backbone="stylegan", recipe="official", resolution=size, start_resolution=size,
                 snapshot_kimg=10, **sizes)
    given.update({k: v for k, v in dict(out=out, batch=batch).items() if v})
    args = parse_args([word for name, value in given.items() for word in (common.flag(name), str(value))])
    common.check_resolution(args, RESOLUTIONS)
    common.complete_levels(args, shape, world=1)
    name = Path(path).stem
    if not out:
        args.out = str(Path("runs", f"alae-official-stylegan-{name}-{size}"))
    folder = Path(args.out)
    if (folder / "args.json").exists() or (folder / "log.csv").exists():
        raise common.Error(f"{folder} already holds a run; name another folder by --out")
    # What `common.complete` takes from a set.  These are left
    # out of the checkpoint, because training will have them
    unknown = dict(data_name=name, train_images=0, image_means="", precision=args.precision)
    vars(args).update(unknown, data="", label="StyleALAE", image_shape=shape, schedule_kimg=args.kimg,
                      given=dict(split="auto", resolution="auto"),
                      versions=dict(torch=str(torch.__version__), code=f"of the authors ({Path(path).name})"))

    torch.manual_seed(args.seed)                # of the fixed noise, which the file has not
    ema = ALAE(**network_args(vars(args)))
    fill(ema, path, models, "_s")
    model = ema
    raw = all(net in models for net in PUBLIC.values())
    if raw:
        model = copy.deepcopy(ema)
        fill(model, path, models, "")
    state = dict(model=model, ema=ema, rng=common.generator(torch.device("cpu"), args.seed, "training"))
    state.update({f"opt_{name}": adam(net, args.lr, BETAS) for name, net in model.named_children()})
    common.save(folder / "checkpoint.pt", dict(
        args={k: v for k, v in vars(args).items() if k not in unknown and k != "resume"}, seen=0, seconds=0.0,
        last_snapshot=-1, sums=[0.0] * 4, steps=0,
        state={k: v.get_state() if k == "rng" else v.state_dict() for k, v in state.items()}))
    common.write_atomic(folder / "args.json", json.dumps(vars(args), indent=1).encode())

    channels = ema.G.channels
    print(f"{path}: StyleALAE at {size}x{size}, {'grey' if c == 1 else 'RGB'}; {channels[0]} channels at 4 px to "
          f"{channels[-1]} at {size}; z of {args.nz}, w of {args.nw}; averaged weights{' and raw ones' if raw else ''}")
    rows = models["dlatent_avg"]["buff"]
    if not rows.eq(rows[0]).all():
        print("note: its mean codes differ between layers, so its training had not ended, and the levels above its own "
              "are noise")
    print(f"run folder {folder}; python eval.py figure reconstructions {folder} --images photo.jpg\n"
          f"python alae.py --resume {folder} --data photos/ trains on, with fresh optimisers")


def export(path, run):
    """Write the averaged weights of a StyleALAE run as a
    public checkpoint.  Raises common.Error for other runs.

    What a factor makes is float64, so that `official` gets the same weights back to the bit.
    The fixed noise is not in the file.
    """
    args = common.read_args(run, "alae")
    _, h, w = args["image_shape"]
    if args["backbone"] != "stylegan" or h != w:
        raise common.Error(f"{run} is of {args['backbone']}, {w}x{h}, and the authors' code has square stylegan "
                           f"alone; take such a run")
    if args["nz"] != args["nw"]:
        raise common.Error(f"{run} has --nz {args['nz']} and --nw {args['nw']}, and the authors' code has one size; "
                           f"take a run where they are equal")
    if Path(path).exists():
        raise common.Error(f"{path} exists; name a new file")
    model = load(run)
    common.check_grown(run, model)              # a public checkpoint does not hold its level
    channels = model.G.channels
    last = model.G.levels - 1
    if channels != [min(channels[-1] << last - i, channels[0]) for i in range(last + 1)]:
        raise common.Error(f"{run} has {channels} channels, and the authors' code doubles them from each level to the "
                           f"one below, up to a most; take a run whose --width and --fmap-base are powers of 2")
    models = {}
    for net, rows in public_layout(model).items():
        tensors = models[f"{PUBLIC[net]}_s"] = {}
        for key, (ours, factor, form) in rows.items():
            theirs = to_public(ours if factor == 1 else ours.double() * factor, form, model.nw)
            tensors[key] = theirs.detach().contiguous()
    for i, n in enumerate(channels):
        models["generator_s"][f"decode_block.{i}.blur.weight"] = BLUR.repeat(n, 1, 1, 1)
        models["discriminator_s"][f"encode_block.{last - i}.blur.weight"] = BLUR.repeat(n, 1, 1, 1)
    models["dlatent_avg"] = dict(buff=model.mean_w.repeat(model.num_layers, 1))
    common.save(Path(path), dict(models=models))
    print(f"{path}: F, G, E, D and the mean w of {run}, averaged weights")
    if args["layers"] != "released" or args["d_act"] != "none":
        print(f"note: trained with --layers {args['layers']} --d-act {args['d_act']}; the authors' networks are "
              f"--layers released --d-act none, so they give other codes or scores (samples are the same)")


def convert(argv):
    """What --official and --export ask for.  -> whether they do"""
    flags = {word.partition("=")[0] for word in argv}
    if not flags & {"--official", "--export"} or flags & {"-h", "--help", "--help-all"}:
        return False
    parser = common.Parser()
    if "--official" in flags:
        parser.add_argument("--official", required=True)
        parser.add_argument("--out")
        parser.add_argument("--batch", type=common.positive(int, 65_536))
        args = parser.parse_args(argv)
        official(args.official, args.out, args.batch)
    else:
        parser.add_argument("--export", required=True)
        parser.add_argument("--resume", required=True)
        args = parser.parse_args(argv)
        export(args.export, args.resume)
    return True


if __name__ == "__main__":
    common.command(main)
