"""Adversarial Latent Autoencoders (ALAE), Pidhorskyi, Adjeroh, Doretto, CVPR 2020, arXiv 2004.04467.

    python alae.py                                             MLP on 10,000 bundled digits, 5 minutes on two cores
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
Algorithm 1 is `train_step`; the encoder of section 5 is `StyleEncoder`.  Where we differ from the paper or from the
released code, the line says so, with the flag that restores the other; the whole list is in .github/alae.md.
"""
import copy
import math
from argparse import Namespace
from contextlib import nullcontext

import common  # before torch, whose threads wait as it says

# isort: split
import torch
import torch.nn.functional as nnf
from torch import nn

import data
from common import CODE, OURS, PAPER, EqualConv2d, EqualLinear, adam, lrelu, plain, r1, softplus, update

BETAS = (0.0, 0.99)         # Adam's beta_1, beta_2 (section 6)
F_DEPTH = dict(mlp=6, dcgan=6, stylegan=8)      # layers of F (StyleALAE: section 5; mlp: the code; dcgan: ours)
LR_MUL = 0.1                # learning rate of F and D, relative to the others' (as in the code; the paper has none)
MEAN_W = 0.995              # what the running mean of w keeps at a step; the code moves it whenever G is run


# ------------------------------------------------------------------------------------------------- Algorithm 1

def train_step(nets, opt, x, draw, args, amp=nullcontext, mean_w=None):
    """One iteration on real images x (B, C, H, W), a leaf in E's range.

    nets: F, G, E, D.  opt: an Adam of each, by name.  draw: a `common.Draw`.  amp: context of bf16 passes.  mean_w:
    running mean of w, moved in place.  -> L_ED, R1's term, L_FG, L_EG; all are means over the batch.
    """
    F, G, E, D = nets
    B = len(x)

    # Step I: E and D tell real from fake (Alg. 1, lines 3-7; x is line 4)
    with amp(), torch.no_grad():
        w = F(draw.z(B))                                                                    # line 5
        fake = G(draw.mix(w, F))            # style mixing in steps I and II, as in the code; the paper has it open
    with amp():
        fake_score = D(E(fake))
        real_score = plain(D)(plain(E)(x.requires_grad_()))     # never compiled: R1 differentiates it twice
    R1 = args.gamma / 2 * r1(real_score, x)     # gradient with respect to x, as in the code; the paper prints theta
    L_ED = softplus(fake_score) + softplus(-real_score)                                     # line 6; eq. 1's signs err
    update(L_ED + R1, opt.E, opt.D)                                                         # line 7
    if mean_w is not None:
        mean_w.lerp_(w.float().mean(0), 1 - MEAN_W)

    # Step II: F and G fool them (lines 8-11)
    with amp():
        L_FG = softplus(-D(E(G(draw.mix(F(draw.z(B)), F)))))                                # lines 9, 10
    update(L_FG, opt.F, opt.G)                                                              # line 11

    # Step III: E inverts G in latent space (lines 12-15)
    with amp():
        with torch.set_grad_enabled(args.step3 == "EGF"):
            w = F(draw.z(B))                                                                # line 13
        error = w.detach().float() - E(G(w)).float()
    L_EG = error.square().sum(1).mean()                                                     # line 14, eq. 8
    if args.latent_loss == "mean":          # as in the code: a sum makes step III so strong that E(x) shrinks
        L_EG = L_EG / args.nw
    if args.step3 == "EG":
        update(L_EG, opt.E, opt.G)                                                          # line 15
    else:
        update(L_EG, opt.E, opt.G, opt.F)   # the code: F is reached through G

    return L_ED, R1, L_FG, L_EG


# ---------------------------------------------------------------------------------------------------- networks

class LatentDiscriminator(nn.Module):
    """D: w (N, nw) -> logit (N, 1), three layers of w's width (section 5).  act "none", as in the code: affine."""

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
    """E: x -> w (N, nw): a backbone's encoder, and the leaky ReLU that F's output has too (as in the code)."""

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
        self.down = common.DownConv(c_in, c_out, math.sqrt(2), fused=min(size) >= common.FUSED_FROM)

    def forward(self, x):
        style1, x = take_style(lrelu(self.conv(x)))
        style2, x = take_style(lrelu(self.down(common.blur(x))))
        return x, style1, style2


def take_style(y):
    """-> [mu(y); sigma(y)] of each channel, (N, 2C), and y after instance norm.  sigma has a floor.   (section 5)"""
    y, mu, sigma = common.moments(y)
    return torch.cat([mu, sigma], 1).flatten(1), y * (1 / sigma).to(y.dtype)


class StyleEncoder(common.Growing):
    """E of StyleALAE: x at the top level -> w (N, nw), a sum of linear maps of the styles of all layers.   (fig. 2)

    C_i has run-time gain 1, as StyleGAN's style maps.  layers: "paper", or "released", whose from-RGB has its leaky
    ReLU twice and each C_i a bias.
    """

    def __init__(self, image_shape, nw, width, fmap_base, layers):
        super().__init__(image_shape, width, fmap_base)
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
        parts = [C(style) for C, style in zip(self.C, styles, strict=False)]
        if self.fades:
            parts[-2:] = [self.alpha * part for part in parts[-2:]]
        return sum(parts), torch.cat(styles, 1)                                                 # eq. 9

    def forward(self, x):
        return self.features(x)[0]


def build_networks(backbone, image_shape, nz, nw, width, d_act, fmap_base, layers, g_end):
    """-> F, G, E, D for images of image_shape (C, H, W)."""
    F = common.Mapping(nz, nw, F_DEPTH[backbone], LR_MUL)
    D = LatentDiscriminator(nw, d_act)
    if backbone == "mlp":
        # the paper has G's end open, and the code's is linear, which leaves speckle; BiGAN's is a sigmoid
        G = common.MLPGenerator(nw, image_shape, width, common.squash if g_end == "sigmoid" else None)
        E = Encoder(common.MLPEncoder(image_shape, nw, width))
    elif backbone == "dcgan":
        G = common.DCGANGenerator(nw, image_shape, width)
        E = Encoder(common.DCGANEncoder(image_shape, nw, width))
    elif backbone == "stylegan":
        G = common.StyleGenerator(nw, image_shape, width, fmap_base, rgb_gain=0.03 if layers == "released" else 1.0)
        E = StyleEncoder(image_shape, nw, width, fmap_base, layers)
    return F, G, E, D


# ------------------------------------------------------------------------------------------------------- model

class ALAE(nn.Module):
    """The four networks, and what `eval.py` asks of any model (eval mode)."""

    def __init__(self, backbone, image_shape, nz, nw, width, d_act, fmap_base=8192, layers="paper", g_end="linear"):
        super().__init__()
        self.F, self.G, self.E, self.D = build_networks(
            backbone, image_shape, nz, nw, width, d_act, fmap_base, layers, g_end)
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
        """x = G(w, eta), (N, C, H, W) in [-1, 1], of w (N, nw) or, on stylegan, (N, num_layers, nw).

        noise: "random", "fixed" or "none"; mlp and dcgan have none.
        """
        return self.show(self.G(w, noise) if self.grows else self.G(w))

    def encode(self, x):
        """w = E(x), (N, nw), of x (N, C, H, W) in [-1, 1].  Raises ValueError if x is not that.

        While a level of stylegan fades in, x is blended as real images are in training, even if G made it.
        """
        common.check_input(x, self.image_shape)
        return self.E(self.see(x))

    def features(self, x):
        """-> short (N, nw), long (N, n) features of x (N, C, H, W) in [-1, 1] (section 7.1); raises as `encode`."""
        common.check_input(x, self.image_shape)
        return self.E.features(self.see(x))


# ---------------------------------------------------------------------------------------------------- settings

RESOLUTIONS = {"mlp": [28], "dcgan": [32, 64, 128], "stylegan": common.STYLE_SIZES}
STYLE = dict(backbone="stylegan")
SETTINGS = [  # later rows refine earlier ones; the paper's are of sections 6 and 7
    (dict(), dict(recipe="paper", backbone="stylegan"),
        PAPER(step3="EG", d_act="lrelu"), CODE(latent_loss="mean"),
        OURS(gamma=1.0, kimg=1000, snapshot_kimg=25)),          # gamma was chosen on MNIST
    (dict(data=("mnist", "mnist-mini")), PAPER(backbone="mlp")),
    (dict(data="cifar10"), dict(backbone="dcgan")),
    (dict(backbone="mlp"), PAPER(nz=50, nw=50, batch=128, lr=0.002),
        OURS(g_end="sigmoid", kimg=6000, snapshot_kimg=100)),
    # short: a smaller batch and a higher rate get further in 270,000 images than the paper's
    (dict(backbone="mlp", data="mnist-mini"), OURS(kimg=270, snapshot_kimg=10)),
    (dict(backbone="mlp", data="mnist-mini", recipe="paper"), OURS(batch=64, lr=0.008)),
    (dict(backbone="dcgan"), OURS(nz=128, nw=128, batch=32, lr=0.006)),
    # 0: by level and number of processes, see common.complete_levels
    (STYLE, CODE(nz=512, nw=512, lr=0.0, gamma=10.0, fmap_base=8192), OURS(batch=0, kimg=0.0, grow_kimg=0.0,
        snapshot_kimg=0.0, mixing=0.9, fade="linear", adam_state="kept", layers="paper", flip="off")),
    (STYLE | dict(data="celeba"), CODE(resolution="128", nz=256, nw=256)),
    (STYLE | dict(data="celeba-hq"), PAPER(resolution="256")),
    # 10 million images: 500,000 to fade a level in, and as many more; code: --grow-kimg 480
    (STYLE | dict(data="ffhq"), PAPER(resolution="1024")),
    (STYLE | dict(data="ffhq", resolution="1024", kimg=0.0, grow_kimg=0.0), PAPER(kimg=0.0, grow_kimg=0.0)),
    (STYLE | dict(data="lsun-bedroom"), PAPER(resolution="256"), CODE(fmap_base=4096)),
    (STYLE | dict(data=("lsun-cat", "lsun-car")), OURS(resolution="256", fmap_base=4096)),
    (dict(recipe="official", backbone="mlp"), CODE(g_end="linear")),
    (dict(recipe="official"), CODE(latent_loss="mean", step3="EGF", d_act="none", gamma=10.0, fade="sine",
        adam_state="fresh", layers="released", flip="on")),
]


def parse_args(argv=None):
    parser = common.method_parser(__doc__, RESOLUTIONS)
    add = parser.group("method")
    add("--recipe", "choices of the printed method, or of the released code", choices=["paper", "official"])
    add("--gamma", "weight of R1, over 2 (Alg. 1 line 6; paper: open; code: 10)", type=float, metavar="W")
    add("--latent-loss", "reduction over w's dimensions (Alg. 1 line 14: sum)", choices=["mean", "sum"])
    add("--step3", "networks that step III moves (Alg. 1 line 15: EG; code: EGF)", choices=["EG", "EGF"])
    add("--d-act", "activation between D's layers (code: none)", choices=["lrelu", "none"])
    add("--g-end", "last activation of G (code: linear)", only=dict(backbone="mlp"), choices=["sigmoid", "linear"])
    add("--mixing", "share of images that mix the styles of two codes (StyleGAN 0.9; code: of batches)", only=STYLE,
        type=common.fraction, metavar="P")
    add("--fade", "growth of alpha (code: half a wave of a sine)", only=STYLE, choices=["linear", "sine"])
    add("--adam-state", "state of Adam at a new level (code: fresh)", only=STYLE, choices=["kept", "fresh"])
    add("--layers", "gains, slope, biases of E's and G's ends", only=STYLE, choices=["paper", "released"])
    add("--flip", "mirroring of half of the images (code: on)", only=STYLE, choices=["off", "on"])
    return common.resolve(parser, "alae", SETTINGS, argv, formerly=dict(g_end="linear"))


# -------------------------------------------------------------------------------------------------------- main

def main(argv=None):
    args = parse_args(argv)
    common.check_resolution(args, RESOLUTIONS)
    device, rank, world = common.start(args)
    with common.rank_zero_first():
        images, held_out = data.load(args.data, args.data_root, args.split, args.resolution, args.skip_bad,
                                     RESOLUTIONS[args.backbone])
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
            run.snapshot(lr, common.held_out(ema, fixed_x, fixed_z), common.snapshot_pictures(ema, fixed_x, fixed_z),
                         level, alpha)
        if run.done:
            break
        x = common.to_float(next(batches))
        if grows and args.flip == "on":
            x = common.mirror(x, draw.uniform(len(x)))
        losses = train_step(nets, opt, model.see(x), draw, args, amp, getattr(model, "mean_w", None))
        common.average_buffers(model)
        common.average(ema, model, run.seen, batch, growth.since(run.seen), each_step=grows)
        run.step(losses, batch)
    run.finish()


# -------------------------------------------------------------------------------------------------------- load

def network_args(args):
    """The keyword arguments of `ALAE` among a run's arguments."""
    names = ("backbone", "image_shape", "nz", "nw", "width", "d_act", "fmap_base", "layers", "g_end")
    return {k: args[k] for k in names if k in args}


def load(run, device="cpu", weights="ema"):
    """The model of a run folder, in eval mode; weights "ema" (averaged) or "raw".  Raises common.Error."""
    args = common.read_args(run, "alae")
    with common.fitting(run):
        return common.load_weights(run, args, ALAE(**network_args(args)), weights, device)


if __name__ == "__main__":
    common.command(main, data.DataError)
