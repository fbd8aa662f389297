"""Adversarial Latent Autoencoders (ALAE), Pidhorskyi, Adjeroh, Doretto, CVPR 2020, arXiv 2004.04467.

    python alae.py                                             MLP on 10,000 bundled digits, 4 minutes on two cores
    python alae.py --data mnist                                MLP on MNIST, as section 7.1
    python alae.py --data cifar10                              DCGAN, 32x32
    python alae.py --data faces.zip --resolution 64            DCGAN on a folder or zip of images
    torchrun --nproc_per_node=8 alae.py --data faces.zip       several GPUs
    python eval.py metrics runs/alae-mlp-mnist-mini            what it learnt, in numbers

    z  (B, nz)       prior sample, N(0, I)            F  z -> w  mapping network
    w  (B, nw)       latent code                      G  w -> x  generator
    x  (B, C, H, W)  image in [-1, 1]                 E  x -> w  encoder
                                                      D  w -> logit, the discriminator's second half: D o E judges x
Algorithm 1 is `train_step`.

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
    learning rate of F, D P leaves it open; 0.1 of the others', as in C.
    weight averages       P is silent; pictures use averaged weights with a half-life of 10,000 images, as in C.
    dcgan                 is ours, with its batch and learning rate: not in the paper.
`--recipe official` takes all that C does at once.
"""
import copy
import math
from contextlib import nullcontext

import torch
from torch import nn

import common
import data
from common import (
    DCGANEncoder,
    DCGANGenerator,
    EqualLinear,
    Mapping,
    MLPEncoder,
    MLPGenerator,
    adam,
    ema_update,
    lrelu,
    r1,
    softplus,
    update,
)

BETAS = (0.0, 0.99)         # Adam's beta_1, beta_2 (section 6)
F_DEPTH = 6                 # layers of F
LR_MUL = 0.1                # learning rate of F and D, relative to the others'
EMA_HALF_LIFE = 10_000      # images
EMA_EVERY = 1024            # images between updates of the average: at each step they would take 2% of the MLP's time


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


def build_networks(backbone, image_shape, nz, nw, width, d_act):
    """-> F, G, E, D for images of image_shape (C, H, W)."""
    F = Mapping(nz, nw, F_DEPTH, LR_MUL)
    D = LatentDiscriminator(nw, d_act)
    if backbone == "mlp":
        G, E = MLPGenerator(nw, image_shape, width), MLPEncoder(image_shape, nw, width)
    elif backbone == "dcgan":
        G, E = DCGANGenerator(nw, image_shape, width), DCGANEncoder(image_shape, nw, width)
    return F, G, Encoder(E), D


class ALAE(nn.Module):
    """The four networks, and what `eval.py` asks of any model (eval mode)."""

    def __init__(self, backbone, image_shape, nz, nw, width, d_act):
        super().__init__()
        self.F, self.G, self.E, self.D = build_networks(backbone, image_shape, nz, nw, width, d_act)
        self.image_shape, self.nz, self.nw, self.num_layers = tuple(image_shape), nz, nw, 1
        self.unit_range = backbone == "mlp"     # its networks, and so its R1, work on pixels in [0, 1], as in C

    def inward(self, x):
        """Images in [-1, 1] -> in the range of E's input and G's output."""
        return (x + 1) / 2 if self.unit_range else x

    def outward(self, x):
        return x * 2 - 1 if self.unit_range else x

    def prior(self, n, generator):
        """z (n, nz) ~ N(0, I), on the generator's device."""
        return torch.randn(n, self.nz, generator=generator, device=generator.device)

    def map(self, z):
        """w = F(z), (N, nw)."""
        return self.F(z)

    def generate(self, w, noise="fixed"):
        """x = G(w), (N, C, H, W) in [-1, 1]; mlp and dcgan take no noise."""
        return self.outward(self.G(w))

    def encode(self, x):
        """w = E(x), (N, nw), of x (N, C, H, W) in [-1, 1]."""
        return self.E(self.inward(x))

    def features(self, x):
        """-> short (N, nw), long (N, n) features of x (N, C, H, W) in [-1, 1] (section 7.1)."""
        return self.E.features(self.inward(x))


# ----------------------------------------------------------------------------------------------------- settings

PRESETS = {  # the paper's settings where it states them: batch, lr, sizes (sections 6, 7.1); the rest is ours
    "mlp":               dict(nz=50, nw=50, batch=128, lr=0.002, gamma=1.0, kimg=6000, snapshot_kimg=100),
    "mlp on mnist-mini": dict(kimg=400, snapshot_kimg=10),
    "dcgan":             dict(nz=128, nw=128, batch=32, lr=0.006, gamma=1.0, kimg=1000, snapshot_kimg=25),
}
RECIPES = {
    "paper":    {},
    "official": dict(latent_loss="mean", step3="EGF", d_act="none", gamma=10.0),
}
UNSTATED = {"mlp": ("gamma", "kimg"), "dcgan": ("gamma", "kimg", "batch", "lr", "nz", "nw")}
RESOLUTIONS = {"mlp": [28], "dcgan": [32, 64, 128]}


def parse_args(argv=None):
    parser = common.Parser(__doc__)
    common.add_flags(parser, backbones=RESOLUTIONS)
    add = parser.add_argument
    add("--recipe", default="paper", choices=RECIPES,
        help="the printed method (but for line 14's mean, see the differences), or all that the released code does")
    add("--gamma", type=float, default=1.0, help="weight of R1, over 2 (Alg. 1 line 6; not stated; released code 10)")
    add("--latent-loss", default="mean", choices=["mean", "sum"], help="over w's dimensions (Alg. 1 line 14: sum)")
    add("--step3", default="EG", choices=["EG", "EGF"], help="networks that step III moves (Alg. 1 line 15: EG)")
    add("--d-act", default="lrelu", choices=["lrelu", "none"], help="activation between D's layers")
    return common.resolve(parser, "alae", PRESETS, RECIPES, default_backbone, argv)


def default_backbone(name):
    return "mlp" if name in ("mnist", "mnist-mini") else "dcgan"


# ----------------------------------------------------------------------------------------------------- training

def train_step(model, optimizers, x, draw_z, args, amp=nullcontext, fast=None):
    """One iteration of Algorithm 1 on real images x (B, C, H, W), a leaf in E's range.

    draw_z() -> z (B, nz), fresh at each call.  amp: context of bf16 passes.  fast: compiled F, G, E, D for the passes
    that are differentiated once.  -> L_ED without R1's term, R1's term, L_FG, L_EG; all are means over the batch.
    """
    F, G, E, D = fast or (model.F, model.G, model.E, model.D)
    opt_F, opt_G, opt_E, opt_D = optimizers

    # Step I: E and D tell real from fake (Alg. 1, lines 3-7; x is line 4)
    with amp(), torch.no_grad():
        fake = G(F(draw_z()))                                                               # line 5
    with amp():
        fake_score = D(E(fake))
        real_score = model.D(model.E(x.requires_grad_()))       # never compiled: R1 differentiates it twice
    R1 = args.gamma / 2 * r1(real_score, x)
    L_ED = softplus(fake_score) + softplus(-real_score) + R1                                # line 6
    update(L_ED, opt_E, opt_D)                                                              # line 7

    # Step II: F and G fool them (lines 8-11)
    with amp():
        L_FG = softplus(-D(E(G(F(draw_z())))))                                              # lines 9, 10
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
    common.settle(args, images, held_out, label="ALAE", named=dict(recipe="paper"), unstated=UNSTATED[args.backbone],
                  constants=f"F depth {F_DEPTH}  lr of F and D x{LR_MUL}  ema half-life {EMA_HALF_LIFE:,} images")
    model = ALAE(**network_args(vars(args))).to(device)
    common.broadcast(model)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizers = opt_F, opt_G, opt_E, opt_D = [
        adam(network, args.lr, BETAS) for network in (model.F, model.G, model.E, model.D)]
    rng = common.generator(device, args.seed, "training")

    # What training changes, and so what a checkpoint holds
    state = dict(model=model, ema=ema, opt_F=opt_F, opt_G=opt_G, opt_E=opt_E, opt_D=opt_D, rng=rng)
    run = common.Run(args, state, losses=("L_ED", "R1", "L_FG", "L_EG"), device=device)
    batches = data.batches(images, args.batch, args.seed, run.seen, device, rank, world, args.workers)
    amp = common.autocast(args.precision, device)
    fast = [torch.compile(n) for n in (model.F, model.G, model.E, model.D)] if args.compile else None
    ema_every = max(args.batch, EMA_EVERY)
    fixed_x = common.to_float(held_out.take(range(min(len(held_out), 1000))).to(device))
    fixed_z = ema.prior(1000, common.generator(device, args.seed, "pictures"))

    def draw_z():       # all processes draw the whole batch and take their share
        return model.prior(args.batch, rng)[rank::world]

    while True:
        if run.snapshot_due:
            run.snapshot(args.lr, common.held_out(ema, fixed_x, fixed_z),
                         common.snapshot_pictures(ema, fixed_x, fixed_z))
        if run.done:
            break
        x = model.inward(common.to_float(next(batches)))
        losses = train_step(model, optimizers, x, draw_z, args, amp, fast)
        common.average_buffers(model)
        if run.seen % ema_every < args.batch:
            ema_update(ema, model, beta=0.5 ** (ema_every / EMA_HALF_LIFE))
        run.step(losses)
    run.finish()


# ------------------------------------------------------------------------------------------------ trained model

def network_args(args):
    """The keyword arguments of `ALAE` among a run's arguments."""
    return {k: args[k] for k in ("backbone", "image_shape", "nz", "nw", "width", "d_act")}


def load(run, device="cpu", weights="ema"):
    """The model of a run folder, in eval mode; weights "ema" (averaged) or "raw".  Raises common.Error."""
    args = common.read_args(run, "alae")
    return common.load_weights(run, args, ALAE(**network_args(args)), weights, device)


if __name__ == "__main__":
    common.command(main, data.DataError)
