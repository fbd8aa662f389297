"""InvGAN: Invertable GANs, Ghosh et al. 2021, arXiv 2112.04598.

    python invgan.py                                           DCGAN, 32x32, on 10,000 bundled digits
    python invgan.py --data mnist --variant naive              DCGAN, a model of section 4.4
    python invgan.py --data celeba                             StyleGAN at 128x128
    python invgan.py --data imagenet                           BigGAN on random patches of 32x32 of a folder or zip
                                                               of that name (sections 3.3, 4.3)
    torchrun --nproc_per_node=8 invgan.py --data ffhq          several GPUs
    python eval.py metrics runs/invgan-dcgan-mnist-mini        what it learnt, in numbers

    z  (B, nz)       prior sample, N(0, I)            M  z -> w  mapping network
    w  (B, nw)       latent code                      G  w -> x  generator
    x  (B, C, H, W)  image in [-1, 1]                 D  x -> w~, c  discriminator: one trunk, a code and a score
    w_R              w~ of real images                f  x -> features, D's trunk
Section 3.2 is `terms`, which both steps share, and `train_step`.

Differences from the paper (P), which leaves open all weights, optimisers, rates, widths and lengths: these are ours.
At the right, flags for the other reading.
    eq. 1                 M and G take the non-saturating form.                          --gan-loss hinge
    third term of eq. 3   P prints || w~ - w~ ||^2, which is 0.  By the end of section 3.2 the cycle is run once more:
                          ours is || w~ - D(G(w~)) ||^2, the first w~ being held.
    L_fm, eq. 2           P's expectation within the norm compares means only, which the prose says that it does not;
                          ours is the mean square of each image's features less its reconstruction's.  --fm batchmean
    f in L_fm             is D's trunk as it stands: its weights are held there, or they would shrink the features.
    pixels                have no term of their own; P calls L_fm a "pixel space" loss, and it is one of features.
    || M(z) - w~ ||^2     is squared in all variants (P: or of any p), and divided by w's dimensions, as the cycle's:
                          summed, it outweighs the GAN's loss, and G hides codes in speckle that D reads.  P minimises
                          over M too, which could shrink w; ours holds M(z) as a target, and w_R likewise.
    R1                    steadies dcgan too (--gamma); P does not name it.
    eqs. 1, 3: L_GAN      is over z alone, as printed, with as many codes from the prior as there are real images; w_R
                          is half as many, in the other terms alone.  Section 3.2's "half the mini batch" can be read
                          otherwise: half of each, and all of G(w # w_R) fakes.        --gan-codes both
    D                     P's may have batch norm; ours has none, and no minibatch deviation: a score and a code must
                          not depend on the rest of the batch.  biggan's code is linear in all of f, without spectral
                          norm, which would tie its size to the score's.
    G's batch norm        is fed w # w_R together, and by the second cycle.
    MMD                   P: "an RBF kernel".  Ours: three, of 1/4, 1 and 4 times the median squared distance; unbiased.
                          It, batch norm and --fm batchmean see each process's own batch.
    naive, augmented      M and G minimise the code's loss too, as eq. 5's and section 4.4's brackets have it; section
                          3.2's sentence has D alone.  w_R is held in augmented.
    StyleGAN              P cites StyleGAN2 and StyleGAN alike; ours is StyleGAN (2019), at a fixed size, without style
                          mixing, which has no one w to infer.                           --grow
    weight averages       P is silent; half-life 10,000 images, or a fifth of those since the run or its level began, if
                          less.
    mlp                   is ours.
"""
import copy
from contextlib import nullcontext

import common  # before torch, whose threads wait as it says

# isort: split
import torch
import torch.nn.functional as nnf
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

import data
from common import (
    DCGANEncoder,
    DCGANGenerator,
    Error,
    Mapping,
    MLPEncoder,
    MLPGenerator,
    StyleCritic,
    StyleGenerator,
    adam,
    r1,
    softplus,
    update,
)

M_DEPTH = dict(mlp=2, dcgan=2, biggan=2, stylegan=8)        # layers of M (section 3.1)
LR_MUL = 0.01               # learning rate of M, relative to G's
BANDWIDTHS = (0.25, 1, 4)   # of MMD's kernels, times the median squared distance
MEAN_W = 0.995              # stylegan: what the running mean of w keeps at a step


# ---------------------------------------------------------------------------------------------------- networks
# BigGAN (1809.11096) for 32x32: residual blocks, spectral norm on all but the code, w in every conditional batch norm.

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
    """Batch norm, then a gain and a bias of each channel that are linear in w.  x (N, C, H, W), w (N, nw)."""

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
        self.norm, self.last = nn.BatchNorm2d(n), sn(nn.Conv2d(n, image_shape[0], 3, padding=1))

    def forward(self, w):
        x = self.first(w).view(len(w), -1, 4, 4)
        for block in self.blocks:
            x = block(x, w)
        return torch.tanh(self.last(torch.relu(self.norm(x))))


class DownBlock(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H/2, W/2), or of the same size."""

    def __init__(self, c_in, c_out, down, first=False):
        super().__init__()
        self.conv1, self.conv2 = sn(nn.Conv2d(c_in, c_out, 3, padding=1)), sn(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.shortcut = sn(nn.Conv2d(c_in, c_out, 1)) if down or c_in != c_out else nn.Identity()
        self.down, self.first = down, first

    def forward(self, x):
        y = self.conv2(torch.relu(self.conv1(x if self.first else torch.relu(x))))
        s = self.shortcut(x)
        return nnf.avg_pool2d(y, 2) + nnf.avg_pool2d(s, 2) if self.down else y + s


class BigGANDiscriminator(nn.Module):
    """x (N, C, 32, 32) -> (N, n_out): two halvings, two more blocks at 8 px; the score is of the sum over pixels.

    (section 3.1)
    """

    def __init__(self, image_shape, n_out, width=1):
        super().__init__()
        n = max(256 // width, 1)
        self.blocks = nn.Sequential(DownBlock(image_shape[0], n, True, first=True), DownBlock(n, n, True),
                                    DownBlock(n, n, False), DownBlock(n, n, False))
        self.score, self.code = sn(nn.Linear(n, 1)), nn.Linear(n * 64, n_out - 1)
        nn.init.normal_(self.code.weight, std=0.02)
        nn.init.zeros_(self.code.bias)

    def trunk(self, x):
        return torch.relu(self.blocks(x)).flatten(1)                        # 8x8 pixels

    def head(self, f):
        return torch.cat([self.score(f.unflatten(1, (-1, 64)).sum(2)), self.code(f)], 1)


@torch.no_grad()
def normalise(average, rounds=5):
    """Find the largest singular values of averaged weights anew, by power iterations from the averaged vectors."""
    for module in average.modules():
        if isinstance(module, ParametrizationList):
            module.train()
            for _ in range(rounds):
                module()
            module.eval()


class Discriminator(nn.Module):
    """D: x -> the code w~ (N, nw), the score c (N, 1) and f(x), the trunk's features (N, n).   (section 3.1)"""

    def __init__(self, net):
        super().__init__()
        self.net = net                          # its head is both heads: a score, then a code

    def forward(self, x):
        f = self.net.trunk(x)
        out = self.net.head(f)
        return out[:, 1:], out[:, :1], f


def build_networks(backbone, image_shape, nz, nw, width, fmap_base):
    """-> M, G, D for images of image_shape (C, H, W)."""
    M = Mapping(nz, nw, M_DEPTH[backbone], LR_MUL)
    if backbone == "mlp":
        G, D = MLPGenerator(nw, image_shape, width), MLPEncoder(image_shape, 1 + nw, width)
    elif backbone == "dcgan":
        G, D = DCGANGenerator(nw, image_shape, width), DCGANEncoder(image_shape, 1 + nw, width)
    elif backbone == "biggan":
        G, D = BigGANGenerator(nw, image_shape, width), BigGANDiscriminator(image_shape, 1 + nw, width)
    elif backbone == "stylegan":
        G = StyleGenerator(nw, image_shape, width, fmap_base)
        D = StyleCritic(image_shape, 1 + nw, width, fmap_base, std_group=0)
    return M, G, Discriminator(D)


class InvGAN(nn.Module):
    """The three networks, and what `eval.py` asks of any model (eval mode)."""

    def __init__(self, backbone, image_shape, nz, nw, width=1, fmap_base=8192):
        super().__init__()
        self.M, self.G, self.D = build_networks(backbone, image_shape, nz, nw, width, fmap_base)
        self.image_shape, self.nz, self.nw, self.num_layers = tuple(image_shape), nz, nw, 1
        self.grows = backbone == "stylegan"
        if self.grows:
            self.num_layers = self.G.num_layers
            self.register_buffer("mean_w", torch.zeros(nw))

    def prior(self, n, generator):
        """z (n, nz) ~ N(0, I), on the generator's device."""
        return torch.randn(n, self.nz, generator=generator, device=generator.device)

    def map(self, z):
        """w = M(z), (N, nw)."""
        return self.M(z)

    def generate(self, w, noise="fixed"):
        """x = G(w), (N, C, H, W), images in [-1, 1] (stylegan does not clip), of w (N, nw) or (N, num_layers, nw).

        noise: "random", "fixed" or "none"; only stylegan has any.
        """
        return self.G.full(self.G(w, noise)) if self.grows else self.G(w)

    def encode(self, x):
        """The code of D(x), (N, nw), of x (N, C, H, W) in [-1, 1]."""
        return self.features(x)[0]

    def features(self, x):
        """-> short (N, nw), the code, and long (N, n), f(x), of x (N, C, H, W) in [-1, 1]."""
        common.check_images(x, self.image_shape)
        code, _, f = self.D(self.D.net.fit(x) if self.grows else x)
        return code, f


# ------------------------------------------------------------------------------------------------------ losses

def mmd(a, b):
    """Unbiased squared maximum mean discrepancy of two sets of codes (N, d), (M, d), in fp32; it may be negative.

    N, M > 1.  The kernel is a mean of exp(- |a - b|^2 / (s m)), m the median squared distance of all pairs, held, and s
    of BANDWIDTHS.   (section 3.2)
    """
    n, m, both = len(a), len(b), torch.cat([a, b]).float()
    squares = both.square().sum(1)
    d = (squares[:, None] + squares - 2 * both @ both.T).clamp(min=0)       # [N+M,N+M]
    pairs = d.detach().flatten()[1:].view(n + m - 1, n + m + 1)[:, :-1]     # all but the diagonal
    median = pairs.median().clamp(min=1e-12)
    k = sum(torch.exp(-d / (s * median)) for s in BANDWIDTHS) / len(BANDWIDTHS)
    k = k - k.diag().diag()
    return k[:n, :n].sum() / (n * (n - 1)) + k[n:, n:].sum() / (m * (m - 1)) - 2 * k[:n, n:].mean()


def squared(a, b):
    """|| a - b ||^2 / nw, a mean over the batch, in fp32."""
    return (a.float() - b.float()).square().mean()


def terms(nets, x, z, args, amp, hold_w=True, hold_f=True, teach_D=True):
    """The batch of eq. 3 and its terms beside the GAN's.

    nets: M, G, D.  x: the real images that w_R is made of, half the batch (none for naive).  hold_w, hold_f: whether
    the targets (w and w_R, and w~ in the second cycle), and f's weights, get no gradient (ours; False: as printed).
    teach_D: whether gradients are wanted at D's weights, or else at M's and G's; only full's go through D(x) and G.
    -> the fakes G(w # w_R), the prior's first, their scores, L_w, L_fm, L_cycle, L_MMD (0 if a variant lacks one).
    """
    M, G, D = nets
    zero = torch.zeros((), device=z.device)
    L_fm = L_cycle = L_mmd = zero
    full = args.variant == "full"
    if args.variant != "naive":
        # under an amp of its own, because older torch reuses weights that autocast has cast without gradient
        with torch.set_grad_enabled(full and teach_D), amp():
            w_R, _, f_x = D(x)                                              # P(W|x), all at D(x) (section 3.2)
    with torch.set_grad_enabled(full or not teach_D), amp():
        w_all = w = M(z)
        if args.variant != "naive":
            w_all = torch.cat([w.to(w_R.dtype), w_R])                       # w # w_R
        fake = G(w_all)                                                     # one forward: batch norm sees both halves
    with amp():
        code, score, f = D(fake)
    L_w = squared(w_all.detach() if hold_w else w_all, code)                        # eq. 3, first term; eq. 5
    if full:
        f_fake = f[len(z):]
        with amp():
            if hold_f and teach_D:
                held = {name: p.detach() for name, p in D.named_parameters()}
                f_x, f_fake = f_x.detach(), functional_call(D, held, (fake[len(z):],))[2]
            again = D(G(code))[0]
        f_x, f_fake = f_x.float(), f_fake.float()
        if args.fm == "paired":
            L_fm = (f_x - f_fake).square().mean()                                           # eq. 2, for each image
        else:
            L_fm = torch.linalg.vector_norm(f_x.mean(0) - f_fake.mean(0))                   # eq. 2, as printed
        L_cycle = squared(code.detach() if hold_w else code, again)                         # eq. 3, third term
        L_mmd = mmd(w, w_R)                                                                 # eq. 3, fourth term
    return fake, score, (L_w, L_fm, L_cycle, L_mmd)


def weighted(parts, args):
    weights = args.w_weight, args.fm_weight, args.cycle_weight, args.mmd_weight
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))


def train_step(model, optimizers, x, draw_z, args, amp=nullcontext, nets=None, hold_w=True, hold_f=True):
    """One iteration of eq. 3 on real images x (B, C, H, W), a leaf: D's step, then that of M and G.

    draw_z(n) -> z (n, nz).  amp: context of bf16 passes.  nets: M, G, D for the passes that are differentiated once.
    hold_w, hold_f: see `terms`.
    -> L_D, R1's term, L_G, and L_w, L_fm, L_cycle, L_MMD as of D's step; means over the batch.
    """
    nets, (opt_M, opt_G, opt_D) = nets or (model.M, model.G, model.D), optimizers
    half = 0 if args.variant == "naive" else len(x) // 2
    real = x[:half].detach()
    n = len(x) if args.gan_codes == "prior" else len(x) - half              # codes of the prior, M(z)
    judged = slice(n if args.gan_codes == "prior" else None)                # fakes of L_GAN
    hinge = args.gan_loss == "hinge"

    # max over D of L_GAN, min over D of the rest
    fake, _, parts = terms(nets, real, draw_z(n), args, amp, hold_w, hold_f)
    with amp():
        c_fake = nets[2](fake[judged].detach())[1]
        c_real = model.D(x.requires_grad_() if args.gamma else x)[1]        # never compiled: R1 differentiates it twice
    R1 = args.gamma / 2 * r1(c_real, x) if args.gamma else torch.zeros((), device=x.device)
    if hinge:
        L_D = torch.relu(1 + c_fake.float()).mean() + torch.relu(1 - c_real.float()).mean()
    else:
        L_D = softplus(c_fake) + softplus(-c_real)                                          # eq. 1
    update(L_D + R1 + weighted(parts, args), opt_D)                                         # eq. 3

    # min over M and G
    if hasattr(model, "mean_w"):
        with torch.no_grad():
            model.mean_w.lerp_(model.M(draw_z(len(x))).float().mean(0), 1 - MEAN_W)
    _, scores, again = terms(nets, real, draw_z(n), args, amp, hold_w, teach_D=False)
    c_fake = scores[judged]
    L_G = -c_fake.float().mean() if hinge else softplus(-c_fake)                            # eq. 1, non-saturating
    update(L_G + weighted(again, args), opt_M, opt_G)                                       # eq. 3

    return L_D, R1, L_G, *parts


# ----------------------------------------------------------------------------------------------------- settings

PRESETS = {  # ours: the paper states none
    "mlp":                  dict(nz=50, nw=50, batch=128, lr=0.002, kimg=2000, snapshot_kimg=100),
    "mlp on mnist-mini":    dict(kimg=400, snapshot_kimg=10),
    "dcgan":                dict(nz=64, nw=64, batch=32, lr=0.002, gamma=1.0, kimg=1000, snapshot_kimg=25),
    "dcgan on mnist":       dict(kimg=1200),
    "dcgan on mnist-mini":  dict(kimg=60, snapshot_kimg=5),
    "biggan":               dict(nz=128, nw=128, batch=32, lr=0.001, lr_d=0.002, fm_weight=100.0, kimg=5000,
                                snapshot_kimg=100),
    "biggan on imagenet":   dict(patches=32, resolution="128"),
    "stylegan":             dict(nz=512, nw=512, batch=32, lr=0.0015, gamma=10.0, kimg=10_000, snapshot_kimg=250),
    "stylegan on celeba":   dict(resolution="128"),
    "stylegan on ffhq":     dict(resolution="128"),
    "on ffhq":              dict(split="65-5"),
}
BETAS = dict(mlp=(0.5, 0.999), dcgan=(0.0, 0.99), biggan=(0.0, 0.999), stylegan=(0.0, 0.99))
LABELS = dict(full="InvGAN", augmented="InvGAN augmented", naive="InvGAN naive")
RESOLUTIONS = {"mlp": [28], "dcgan": [32, 64, 128], "stylegan": common.STYLE_SIZES, "biggan": [32]}


def parse_args(argv=None):
    parser = common.Parser(__doc__)
    common.add_flags(parser, backbones=RESOLUTIONS)
    add = parser.add_argument
    add("--variant", default="full", choices=LABELS, help="eq. 3, or the models of section 4.4")
    add("--gan-loss", default="logistic", choices=["logistic", "hinge"], help="form of eq. 1")
    add("--gan-codes", default="prior", choices=["prior", "both"],
        help="codes whose images L_GAN judges: M(z), or M(z) and w_R, half of each (eqs. 1, 3)")
    add("--gamma", type=float, default=0.0, help="weight of R1, over 2 (dcgan: 1; stylegan: 10)")
    add("--lr-d", type=common.positive(float), default=0.0, help="learning rate of D (default: --lr; biggan: 0.002)")
    add("--w-weight", type=float, default=1.0, help="of || w - D(G(w)) ||^2, over w and w_R (eq. 3)")
    add("--fm-weight", type=float, default=1.0, help="of feature matching (eq. 2; biggan: 100)")
    add("--cycle-weight", type=float, default=1.0, help="of the second cycle (eq. 3)")
    add("--mmd-weight", type=float, default=1.0, help="of MMD between w and w_R (eq. 3)")
    add("--fm", default="paired", choices=["paired", "batchmean"], help="feature matching of each image, or as printed")
    add("--patches", type=common.positive(int), default=0, metavar="N",
        help="train on random N x N patches (biggan: 32)")
    add("--grow", action="store_true", help="stylegan: grow from --start-resolution")
    given = common.explicit(parser, argv)
    for needed, flags in ((("grow", True), ("grow_kimg", "start_resolution")),
                          (("variant", "full"), ("fm", "fm_weight", "cycle_weight", "mmd_weight"))):
        name, value = needed
        if not given.get("resume") and given.get(name, parser.get_default(name)) != value and {*flags} & {*given}:
            flag = min({*flags} & {*given}).replace("_", "-")
            raise Error(f"--{flag} is for --{name}{'' if value is True else f' {value}'}; leave it out, or pass that")
    args = common.resolve(parser, "invgan", PRESETS, {}, default_backbone, argv, ("grow",), {"gan_codes": "both"})
    if args.patches and (args.patches not in RESOLUTIONS[args.backbone] or getattr(args, "grow", False)):
        sizes = " or ".join(map(str, RESOLUTIONS[args.backbone]))
        raise Error(f"{args.backbone} trains on patches of {sizes} px, without --grow; not {args.patches}")
    return args


def default_backbone(name):
    return {"mnist": "dcgan", "mnist-mini": "dcgan", "cifar10": "dcgan", "imagenet": "biggan"}.get(name, "stylegan")


def unstated(args):
    """The settings of a run that are ours: all but the variant and the form of its loss."""
    skip = {"data", "data_root", "split", "resolution", "workers", "skip_bad", "backbone", "device", "precision",
            "compile", "out", "resume", "seed", "variant", "gan_loss", "method", "snapshot_kimg", "patches", "width",
            "grow", "start_resolution"}
    return [name for name in vars(args) if name not in skip]


# ----------------------------------------------------------------------------------------------------- training

def main(argv=None):
    args = parse_args(argv)
    if not args.patches:
        common.check_resolution(args, RESOLUTIONS)
    device, rank, world = common.start(args)
    if args.batch // world < 4 and args.variant == "full":
        raise Error(f"--batch {args.batch} leaves a process {args.batch // world} images, and MMD needs halves of 2; "
                    f"pass --batch {4 * world} or more")
    args.lr_d = args.lr_d or args.lr

    with common.rank_zero_first():
        whole, held_out = data.load(args.data, args.data_root, args.split, args.resolution, args.skip_bad,
                                    None if args.patches else RESOLUTIONS[args.backbone])
    images = whole
    if args.patches:
        images, held_out = data.Tiles(whole, args.patches), data.Tiles(held_out, args.patches)
    if getattr(args, "grow", False):
        growth = common.schedule(args, images.shape, world)
    else:
        n = common.levels_of(images.shape)[0] if args.backbone == "stylegan" else 1
        growth = common.Growth([whole.shape[1:]] * n, [args.batch] * n, [args.lr] * n, first=n - 1)
    common.settle(args, images, held_out, label=LABELS[args.variant], unstated=unstated(args),
                  named=[args.variant] * (args.variant != "full") + [args.gan_loss] * (args.gan_loss != "logistic")
                  + [args.fm] * (args.fm != "paired") + [f"patches{args.patches}"] * bool(args.patches),
                  constants=f"M depth {M_DEPTH[args.backbone]}  lr of M x{LR_MUL}  Adam {BETAS[args.backbone]}  "
                  f"MMD's bandwidths {BANDWIDTHS}  ema half-life {common.EMA_HALF_LIFE:,} images"
                  + f"  mean w {MEAN_W}" * (args.backbone == "stylegan"))
    model = InvGAN(**network_args(vars(args))).to(device)
    if args.backbone != "mlp":
        model.to(memory_format=torch.channels_last)
    common.broadcast(model)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizers = opt_M, opt_G, opt_D = [adam(network, lr, BETAS[args.backbone]) for network, lr in (
        (model.M, args.lr), (model.G, args.lr), (model.D, args.lr_d))]
    rng = common.generator(device, args.seed, "training")

    # What training changes, and so what a checkpoint holds
    state = dict(model=model, ema=ema, opt_M=opt_M, opt_G=opt_G, opt_D=opt_D, rng=rng)
    names = ["L_D", "R1", "L_G", "L_w"] + ["L_fm", "L_cycle", "L_MMD"] * (args.variant == "full")
    run = common.Run(args, state, names, device, growth)
    batches = data.batches(whole, growth.plan, args.seed, run.seen, device, rank, world, args.workers)
    amp = common.autocast(args.precision, device)
    M, G, D = common.compiled(model.M, model.G, model.D) if args.compile else (model.M, model.G, model.D)
    fixed_x, fixed_z = common.fixed_inputs(ema, held_out, args.seed, device)

    # All processes draw for the whole batch, and take their share
    def draw_z(n):
        return model.prior(n * world, rng)[rank::world]

    def noisy_G(w):
        return G(w, [eta[rank::world].clone() for eta in model.G.draw_noise(len(w) * world, rng)])

    nets = M, noisy_G if model.grows else G, D
    while True:
        level, alpha, batch, lr = growth.at(run.seen)
        common.set_rate(lr, opt_M, opt_G)
        common.set_rate(lr * args.lr_d / args.lr, opt_D)
        common.grow(level, alpha, model, ema)
        if run.snapshot_due:
            run.snapshot(lr, common.held_out(ema, fixed_x, fixed_z), common.snapshot_pictures(ema, fixed_x, fixed_z),
                         level, alpha)
        if run.done:
            break
        x = next(batches)
        if args.patches:
            x = random_patches(x, args.patches, torch.rand(batch, 2, generator=rng, device=device)[rank::world])
        x = common.to_float(x)
        losses = train_step(model, optimizers, model.D.net.fit(x) if model.grows else x, draw_z, args, amp, nets)
        common.average_buffers(model)
        if common.average(ema, model, run.seen, batch, growth.since(run.seen), each_step=model.grows):
            normalise(ema)
        run.step(losses[:len(names)], batch)
    run.finish()


def random_patches(x, size, draw):
    """A size x size part of each image x (N, C, H, W), where draw (N, 2) ~ U(0, 1) says.   (section 4.3)"""
    n, _, h, w = x.shape
    steps = torch.arange(size, device=x.device)
    rows = (draw[:, :1] * (h - size + 1)).long() + steps
    columns = (draw[:, 1:] * (w - size + 1)).long() + steps
    return x[torch.arange(n, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------------ trained model

def network_args(args):
    """The keyword arguments of `InvGAN` among a run's arguments."""
    return {k: args[k] for k in ("backbone", "image_shape", "nz", "nw", "width", "fmap_base") if k in args}


def load(run, device="cpu", weights="ema"):
    """The model of a run folder, in eval mode; weights "ema" (averaged) or "raw".  Raises common.Error."""
    args = common.read_args(run, "invgan")
    with common.fitting(run):
        return common.load_weights(run, args, InvGAN(**network_args(args)), weights, device)


if __name__ == "__main__":
    common.command(main, data.DataError)
