"""Adversarial Latent Autoencoders (ALAE), Pidhorskyi, Adjeroh, Doretto, CVPR 2020, arXiv 2004.04467.

    python alae.py                                             MLP on 10,000 bundled digits, 4 minutes on two cores
    python alae.py --data mnist                                MLP on MNIST, as section 7.1
    python alae.py --data cifar10                              DCGAN, 32x32
    python alae.py --data ffhq                                 StyleALAE at 1024x1024, as section 7.2
    python alae.py --data faces.zip --resolution 64 --width 8 --kimg 100    StyleALAE, small, on a folder or zip
    torchrun --nproc_per_node=8 alae.py --data ffhq            several GPUs
    python eval.py metrics runs/alae-mlp-mnist-mini            what it learnt, in numbers

    z  (B, nz)       prior sample, N(0, I)            F  z -> w  mapping network
    w  (B, nw)       latent code                      G  w -> x  generator
    x  (B, C, H, W)  image in [-1, 1]                 E  x -> w  encoder
                                                      D  w -> logit, the discriminator's second half: D o E judges x
Algorithm 1 is `train_step`; the encoder of section 5 is `StyleEncoder`.

Differences from the paper (P) and from the released code (C), and what restores them:
    R1's gradient         P prints that it is taken with respect to theta_E, theta_D; the penalty that it cites, and C,
                          take it with respect to x.  So do we; there is no flag for the other.
    squared norm, line 14 P sums over w's dimensions, C averages.  Ours averages: a sum makes step III so strong that
                          E(x) shrinks and its features get worse.                              --latent-loss sum
    step III moves F?     P no, C yes (F is reached through G).  Ours follows P.                --step3 EGF
    D                     P an MLP; in C its layers have no activation between, so it is affine. Ours follows P.
                                                                                                --d-act none
    gamma                 P leaves it open, C has 10.  Ours is 1, chosen on MNIST.              --gamma 10
    f = softplus          P's eq. 1 with this f would reward the wrong side; Algorithm 1 is right and is what we follow.
    F's depth for MNIST   P leaves it open; 6 as in C.  Leaky ReLU 0.2 also after the last layer of F and of E: as in C.
    G of mlp              P leaves its last activation open, and C has none.  Ours is a sigmoid, as BiGAN's on the same
                          digits: a linear end leaves speckle.                                      --g-end linear
    learning rate of F, D P leaves it open; 0.1 of the others', as in C.
    weight averages       P is silent; pictures use averaged weights with a half-life of 10,000 images, as in C, or a
                          fifth of the images since the run or its last level began, if less.
    dcgan                 is ours, with its batch and learning rate: not in the paper.
StyleALAE (P leaves open what it does not state; batch and learning rate of each level are C's):
    gamma                 10, as in C.
    length                P: 500,000 images to fade a level in and as many more; then 1 million at 1024 px; 10 million
                          in all.  So the first level, with nothing to fade in, has 1 million, and the last has 2.  By
                          its epochs it would be 8.8 million.  Ours is the first; other lengths are shared out likewise.
                          C has 16 epochs of 60,000 images a level, half of them to fade.         --grow-kimg 480
    style mixing          P trains with it; C in steps I and II, for 0.9 of the batches, with one cut each.  Ours
                          likewise, for 0.9 of the images, each with its own cut, as StyleGAN.    --mixing P
    deviations in E       sqrt(variance + 1e-8); C has no floor, and no finite gradient where a channel is constant.
    fading                alpha grows linearly, in C by half a wave of a sine.              --fade sine
    Adam's state          is kept at a new level, in C it begins anew.                      --adam-state fresh
    layers                as in StyleGAN, and C_i of eq. 9 as printed; in C to-RGB has gain 0.03, from-RGB its leaky
                          ReLU twice, and each C_i a bias.                                  --layers released
    mirror images         P is silent.  Ours are off; C's are on.                           --flip on
    C_i of eq. 9          run-time gain 1, as StyleGAN's style maps.
    mean w                is moved once an iteration, by step I's codes; in C whenever G is run.
`--recipe official` takes all of C's choices that have a flag here at once, but its lengths (StyleALAE's on stylegan).
"""
import copy
import math
from contextlib import nullcontext

import common  # before torch, whose threads wait as it says

# isort: split
import torch
import torch.nn.functional as nnf
from torch import nn

import data
from common import (
    DCGANEncoder,
    DCGANGenerator,
    DownConv,
    EqualConv2d,
    EqualLinear,
    Mapping,
    MLPEncoder,
    MLPGenerator,
    StyleGenerator,
    adam,
    blur,
    lrelu,
    moments,
    r1,
    softplus,
    update,
)

BETAS = (0.0, 0.99)         # Adam's beta_1, beta_2 (section 6)
F_DEPTH = dict(mlp=6, dcgan=6, stylegan=8)      # layers of F (StyleALAE: section 5)
MEAN_W = 0.995              # what the running mean of w keeps at a step
LR_MUL = 0.1                # learning rate of F and D, relative to the others'


# ---------------------------------------------------------------------------------------------------- networks

class LatentDiscriminator(nn.Module):
    """D: w (N, nw) -> logit (N, 1), three layers of w's width (section 5).  act "none" makes it affine."""

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
    """E: x -> w (N, nw): a backbone's encoder and the leaky ReLU that F's output has too."""

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
    """A level of E, the mirror of `common.StyleBlock`: (N, c_in, H, W) -> (N, c_out, H/2, W/2) and two styles."""

    def __init__(self, c_in, c_out, size):
        super().__init__()
        self.conv = EqualConv2d(c_in, c_in, 3, gain=math.sqrt(2), padding=1)
        self.down = DownConv(c_in, c_out, math.sqrt(2), fused=min(size) >= common.FUSED_FROM)

    def forward(self, x):
        style1, x = take_style(lrelu(self.conv(x)))
        style2, x = take_style(lrelu(self.down(blur(x))))
        return x, style1, style2


def take_style(y):
    """-> [mu(y); sigma(y)] of each channel, (N, 2C), and y after instance norm.   (section 5)"""
    y, mu, sigma = moments(y)
    return torch.cat([mu, sigma], 1).flatten(1), y * (1 / sigma).to(y.dtype)


class StyleEncoder(common.Growing):
    """E of StyleALAE: x at the top level -> w (N, nw), a sum of linear maps of the styles of all layers.   (fig. 2)"""

    def __init__(self, image_shape, nw, width, fmap_base, layers):
        super().__init__(image_shape, width, fmap_base)
        c, self.slope = self.channels, 0.04 if layers == "released" else 0.2
        self.from_rgb = nn.ModuleList(EqualConv2d(image_shape[0], n, 1, gain=math.sqrt(2)) for n in c)
        self.blocks = nn.ModuleList(
            EncoderBlock(c[i], c[max(i - 1, 0)], self.size(i)) for i in range(self.levels))
        self.C = nn.ModuleList(EqualLinear(2 * n, nw, gain=1, bias=layers == "released")
                               for i in range(self.levels) for n in (c[i], c[max(i - 1, 0)]))

    def styles(self, x):
        """-> [mu(y_i); sigma(y_i)], (N, 2C_i), of the layers from level 0 up."""
        out, y = [], nnf.leaky_relu(self.from_rgb[self.top](x), self.slope)
        for i in range(self.top, -1, -1):
            y, *pair = self.blocks[i](y)
            if self.fades and i == self.top:
                small = nnf.leaky_relu(self.from_rgb[i - 1](nnf.avg_pool2d(x, 2)), self.slope)
                y = self.fade(small, y)
            out = pair + out
        return out

    def features(self, x):
        """-> w (N, nw), and the styles that it is made of, (N, n)."""
        styles = self.styles(x)
        parts = [C(style) for C, style in zip(self.C, styles, strict=False)]
        if self.fades:
            parts[-2:] = [self.alpha * part for part in parts[-2:]]
        return sum(parts), torch.cat(styles, 1)                                                 # eq. 9

    def forward(self, x):
        return self.features(x)[0]


def build_networks(backbone, image_shape, nz, nw, width, d_act, fmap_base, layers, g_end):
    """-> F, G, E, D for images of image_shape (C, H, W)."""
    F = Mapping(nz, nw, F_DEPTH[backbone], LR_MUL)
    D = LatentDiscriminator(nw, d_act)
    if backbone == "mlp":
        G = MLPGenerator(nw, image_shape, width, common.squash if g_end == "sigmoid" else None)
        E = MLPEncoder(image_shape, nw, width)
    elif backbone == "dcgan":
        G, E = DCGANGenerator(nw, image_shape, width), DCGANEncoder(image_shape, nw, width)
    elif backbone == "stylegan":
        G = StyleGenerator(nw, image_shape, width, fmap_base, rgb_gain=0.03 if layers == "released" else 1.0)
        return F, G, StyleEncoder(image_shape, nw, width, fmap_base, layers), D
    return F, G, Encoder(E), D


class ALAE(nn.Module):
    """The four networks, and what `eval.py` asks of any model (eval mode)."""

    def __init__(self, backbone, image_shape, nz, nw, width, d_act, fmap_base=8192, layers="paper", g_end="linear"):
        super().__init__()
        self.F, self.G, self.E, self.D = build_networks(backbone, image_shape, nz, nw, width, d_act, fmap_base, layers,
                                                        g_end)
        self.image_shape, self.nz, self.nw, self.num_layers = tuple(image_shape), nz, nw, 1
        self.unit_range = backbone == "mlp"     # its networks, and so its R1, work on pixels in [0, 1], as in C
        self.grows = backbone == "stylegan"
        if self.grows:
            self.num_layers = self.G.num_layers
            self.register_buffer("mean_w", torch.zeros(nw))

    def inward(self, x):
        """Images in [-1, 1] -> in the range of E's input and G's output, and as a growing E sees them."""
        return (x + 1) / 2 if self.unit_range else self.E.fit(x) if self.grows else x

    def outward(self, x):
        """Back again; images of a level below the last are enlarged to image_shape."""
        return x * 2 - 1 if self.unit_range else self.G.full(x) if self.grows else x

    def prior(self, n, generator):
        """z (n, nz) ~ N(0, I), on the generator's device."""
        return torch.randn(n, self.nz, generator=generator, device=generator.device)

    def map(self, z):
        """w = F(z), (N, nw)."""
        return self.F(z)

    def generate(self, w, noise="fixed"):
        """x = G(w, eta), (N, C, H, W) in [-1, 1], of w (N, nw) or, on stylegan, (N, num_layers, nw).

        noise: "random", "fixed" or "none"; mlp and dcgan have none.
        """
        return self.outward(self.G(w, noise) if self.grows else self.G(w))

    def encode(self, x):
        """w = E(x), (N, nw), of x (N, C, H, W) in [-1, 1].

        While a level of stylegan fades in, x is blended as real images are in training, even if G made it.  Raises
        ValueError if x is not that.
        """
        common.check_images(x, self.image_shape)
        return self.E(self.inward(x))

    def features(self, x):
        """-> short (N, nw), long (N, n) features of x (N, C, H, W) in [-1, 1] (section 7.1); raises as `encode`."""
        common.check_images(x, self.image_shape)
        return self.E.features(self.inward(x))


# ----------------------------------------------------------------------------------------------------- settings

PRESETS = {  # the paper's settings where it states them: batch, lr, sizes (sections 6, 7.1); the rest is ours
    "mlp":               dict(nz=50, nw=50, batch=128, lr=0.002, gamma=1.0, kimg=6000, snapshot_kimg=100),
    "mlp on mnist-mini": dict(kimg=400, snapshot_kimg=10),
    "dcgan":             dict(nz=128, nw=128, batch=32, lr=0.006, gamma=1.0, kimg=1000, snapshot_kimg=25),
    # 0: by level and number of processes, see common.schedule
    "stylegan":               dict(nz=512, nw=512, batch=0, lr=0.0, gamma=10.0, kimg=0.0, snapshot_kimg=0.0),
    "stylegan on celeba":     dict(resolution="128", nz=256, nw=256),
    "stylegan on celeba-hq":  dict(resolution="256"),
    "stylegan on ffhq":       dict(resolution="1024"),
    **{f"stylegan on lsun-{name}": dict(resolution="256", fmap_base=4096) for name in ("bedroom", "cat", "car")},
}
RECIPES = {
    "paper":    {},
    "official": dict(latent_loss="mean", step3="EGF", d_act="none", g_end="linear", gamma=10.0, fade="sine",
                     adam_state="fresh", layers="released", flip="on"),
}
STYLE_FLAGS = ("fade", "adam_state", "layers", "flip", "mixing")
UNSTATED = {"mlp": ("gamma", "g_end", "kimg"), "dcgan": ("gamma", "kimg", "batch", "lr", "nz", "nw"),
            "stylegan": ("gamma", "kimg", "grow_kimg", "batches", "rates", "nz", "nw", "fmap_base", *STYLE_FLAGS)}
RESOLUTIONS = {"mlp": [28], "dcgan": [32, 64, 128], "stylegan": common.STYLE_SIZES}


def parse_args(argv=None):
    parser = common.Parser(__doc__)
    common.add_flags(parser, backbones=RESOLUTIONS)
    add = parser.add_argument
    add("--recipe", default="paper", choices=RECIPES,
        help="the printed method (but for line 14's mean, see the differences), or the released code's choices")
    add("--gamma", type=float, default=1.0, help="weight of R1, over 2 (Alg. 1 line 6; not stated; released code 10)")
    add("--latent-loss", default="mean", choices=["mean", "sum"], help="over w's dimensions (Alg. 1 line 14: sum)")
    add("--step3", default="EG", choices=["EG", "EGF"], help="networks that step III moves (Alg. 1 line 15: EG)")
    add("--d-act", default="lrelu", choices=["lrelu", "none"], help="activation between D's layers")
    add("--g-end", default="sigmoid", choices=["sigmoid", "linear"],
        help="mlp: last activation of G (not stated; released code: linear)")
    add("--fade", default="linear", choices=["linear", "sine"], help="stylegan: how alpha grows (released code: sine)")
    add("--adam-state", default="kept", choices=["kept", "fresh"],
        help="stylegan: what becomes of it at a new level (released code: fresh)")
    add("--layers", default="paper", choices=["paper", "released"], help="stylegan: see the differences")
    add("--flip", default="off", choices=["off", "on"], help="stylegan: mirror half of the images (released code: on)")
    add("--mixing", type=common.fraction, default=0.9, metavar="P",
        help="stylegan: share of images that mix the styles of two codes (StyleGAN 0.9)")
    return common.resolve(parser, "alae", PRESETS, RECIPES, default_backbone, argv, STYLE_FLAGS, {"g_end": "linear"})


def unstated(args):
    """The settings of a run that are ours: the paper leaves them open (lengths: it has those of FFHQ alone)."""
    stated = {*RECIPES[args.recipe]}
    if args.backbone == "stylegan" and (args.data, args.kimg, args.grow_kimg) == ("ffhq", 10_000, 500):
        stated |= {"kimg", "grow_kimg"}
    return [name for name in UNSTATED[args.backbone] if name not in stated]


def default_backbone(name):
    return {"mnist": "mlp", "mnist-mini": "mlp", "cifar10": "dcgan"}.get(name, "stylegan")


# ----------------------------------------------------------------------------------------------------- training

def train_step(model, optimizers, x, draw_z, args, amp=nullcontext, nets=None, mix=lambda w: w):
    """One iteration of Algorithm 1 on real images x (B, C, H, W), a leaf in E's range.

    draw_z() -> z (B, nz), fresh at each call.  amp: context of bf16 passes.  nets: F, G, E, D for the passes that are
    differentiated once, compiled, or with noise.  mix: style mixing of w with other codes, in steps I and II.
    -> L_ED without R1's term, R1's term, L_FG, L_EG; all are means over the batch.
    """
    F, G, E, D = nets or (model.F, model.G, model.E, model.D)
    opt_F, opt_G, opt_E, opt_D = optimizers

    # Step I: E and D tell real from fake (Alg. 1, lines 3-7; x is line 4)
    with amp(), torch.no_grad():
        w = F(draw_z())                                                                     # line 5
        fake = G(mix(w))
    with amp():
        fake_score = D(E(fake))
        real_score = model.D(model.E(x.requires_grad_()))       # never compiled: R1 differentiates it twice
    R1 = args.gamma / 2 * r1(real_score, x)
    L_ED = softplus(fake_score) + softplus(-real_score) + R1                                # line 6
    update(L_ED, opt_E, opt_D)                                                              # line 7
    if hasattr(model, "mean_w"):
        model.mean_w.lerp_(w.float().mean(0), 1 - MEAN_W)

    # Step II: F and G fool them (lines 8-11)
    with amp():
        L_FG = softplus(-D(E(G(mix(F(draw_z()))))))                                         # lines 9, 10
    update(L_FG, opt_F, opt_G)                                                              # line 11

    # Step III: E inverts G in latent space (lines 12-15)
    with amp():
        with torch.set_grad_enabled(args.step3 == "EGF"):
            w = F(draw_z())                                                                 # line 13
        error = w.detach().float() - E(G(w)).float()                                        # line 14, eq. 8
    L_EG = error.square().sum(1).mean() / (args.nw if args.latent_loss == "mean" else 1)
    update(L_EG, *((opt_E, opt_G) if args.step3 == "EG" else (opt_E, opt_G, opt_F)))        # line 15

    return L_ED - R1, R1, L_FG, L_EG


def main(argv=None):
    args = parse_args(argv)
    common.check_resolution(args, RESOLUTIONS)
    device, rank, world = common.start(args)

    with common.rank_zero_first():
        images, held_out = data.load(args.data, args.data_root, args.split, args.resolution, args.skip_bad,
                                     RESOLUTIONS[args.backbone])
    grows = args.backbone == "stylegan"
    growth = common.schedule(args, images.shape, world, sine=grows and args.fade == "sine")
    common.settle(args, images, held_out, label="StyleALAE" if grows else "ALAE",
                  named=[args.recipe] * (args.recipe != "paper"), unstated=unstated(args),
                  constants=f"F depth {F_DEPTH[args.backbone]}  lr of F and D x{LR_MUL}  ema half-life "
                            f"{common.EMA_HALF_LIFE:,} images" + f"  mean w {MEAN_W}" * grows)
    model = ALAE(**network_args(vars(args))).to(device)
    if grows or device.type == "cuda":  # dcgan too: what tensor cores take
        model.to(memory_format=torch.channels_last)
    common.broadcast(model)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizers = opt_F, opt_G, opt_E, opt_D = [
        adam(network, args.lr, BETAS) for network in (model.F, model.G, model.E, model.D)]
    rng = common.generator(device, args.seed, "training")

    # What training changes, and so what a checkpoint holds
    state = dict(model=model, ema=ema, opt_F=opt_F, opt_G=opt_G, opt_E=opt_E, opt_D=opt_D, rng=rng)
    run = common.Run(args, state, losses=("L_ED", "R1", "L_FG", "L_EG"), device=device, growth=growth)
    batches = data.batches(images, growth.plan, args.seed, run.seen, device, rank, world, args.workers)
    amp = common.autocast(args.precision, device)
    F, G, E, D = model.F, model.G, model.E, model.D
    if args.compile:
        F, G, E, D = common.compiled(F, G, E, D)
    fixed_x, fixed_z = common.fixed_inputs(ema, held_out, args.seed, device)

    # All processes draw for the whole batch, and take their share
    def draw_z():
        return model.prior(batch, rng)[rank::world]

    def mix(w):
        if not grows:
            return w
        draw = torch.rand(batch, 2, generator=rng, device=device)[rank::world]
        return common.mix_styles(w, F(draw_z()), model.G.top, args.mixing, draw)

    def noisy_G(w):
        return G(w, [eta[rank::world].clone() for eta in model.G.draw_noise(batch, rng)])  # a view would keep the rest

    nets = F, noisy_G if grows else G, E, D
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
        if grows and args.flip == "on":
            x = common.mirror(x, torch.rand(batch, generator=rng, device=device)[rank::world])
        losses = train_step(model, optimizers, model.inward(x), draw_z, args, amp, nets, mix)
        common.average_buffers(model)
        common.average(ema, model, run.seen, batch, growth.since(run.seen), each_step=grows)
        run.step(losses, batch)
    run.finish()


# ------------------------------------------------------------------------------------------------ trained model

def network_args(args):
    """The keyword arguments of `ALAE` among a run's arguments."""
    return {k: args[k] for k in ("backbone", "image_shape", "nz", "nw", "width", "d_act", "fmap_base", "layers",
                                 "g_end") if k in args}


def load(run, device="cpu", weights="ema"):
    """The model of a run folder, in eval mode; weights "ema" (averaged) or "raw".  Raises common.Error."""
    args = common.read_args(run, "alae")
    with common.fitting(run):
        return common.load_weights(run, args, ALAE(**network_args(args)), weights, device)


if __name__ == "__main__":
    common.command(main, data.DataError)
