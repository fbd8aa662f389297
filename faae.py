"""Flipped-Adversarial AutoEncoders (F-AAE), Zhang, Dang, Lee, Chang, 2018, arXiv 1802.04504, and its family.

The family: what this and the other papers compare with, over plain networks E, G, D.

    python faae.py                                          F-AAE, MLP on 10,000 bundled digits
    python faae.py --data cifar10                           F-AAE, its convolutional networks, 32x32, as section 4.1
    python faae.py --data cifar10 --objective aae           AAE with the same G and E
    python faae.py --data imagenet                          F-AAE at 64x64, on data/imagenet or data/imagenet.zip
    python faae.py --backbone stylegan --data faces.zip     F-AAE on StyleGAN's networks, which is ours
    python faae.py --data mnist --objective bigan           BiGAN, MLP on MNIST, as its own paper and ALAE's table 2
    torchrun --nproc_per_node=8 faae.py --data faces.zip    several GPUs

    z  (B, nz)       prior sample            G  z -> x  generator
    x  (B, C, H, W)  image, in [0, 1] here   E  x -> z  encoder (the code is called z too: there is no mapping network)
                                             D  x, z or a pair (x, z) -> logit; mean_softplus(-D) is -log D of it
The family in the terms of table 1 of the ALAE paper; what is marked * is not in it, and placed by us:

    --objective     (a) data        (b) latent              (c) reciprocity    prior of z        source
    faae *          adversarial     imposed/divergence      latent             unit sphere       F-AAE eq. 4
    aae             similarity      imposed/adversarial     data               unit sphere       F-AAE eq. 2; 1511.05644
    bigan           adversarial     imposed/adversarial     adversarial        U(-1, 1)          F-AAE eq. 3; 1605.09782
    ali             adversarial     imposed/adversarial     adversarial        N(0, I)           1606.00704
    age             adversarial     imposed/adversarial     latent (data *)    unit sphere       1704.02304
    lr *            adversarial     imposed/divergence      latent, E alone    U(-1, 1)          BiGAN's; ALAE table 2
    jlr *           adversarial     imposed/divergence      latent             U(-1, 1)          BiGAN's; ALAE table 2
    ae-l1, ae-l2 *  similarity      free                    data               none              ALAE table 2

Where we differ from a paper, the line says so, with the flag that restores the other; the whole list is in
.github/faae.md.
"""
import copy
import math
from argparse import Namespace
from itertools import pairwise

import common  # before torch, whose threads wait as it says

# isort: split
import torch
import torch.nn.functional as nnf
from torch import nn

import data
from common import CODE, OURS, PAPER, Error, adam, mean_softplus, r1, uncompiled, update

BETA_2 = 0.999              # of Adam
SLOPE = 0.2                 # of leaky ReLU


# --------------------------------------------------------------------------------------- the family
# Each function is one iteration on real images x (B, C, H, W) in [0, 1].  nets: G, E, D, in train
# mode; opt: an Adam of each, by name; draw: a `common.Draw`; amp: context of bf16 passes; h: W_re
# and W_adv, the weights of reciprocity and of the adversarial term, d, a distance, gamma, R1's
# weight, AGE's W_fake and G_steps.  -> losses, unweighted, as LOSSES names them.  Who confuses D
# minimises -log D of the swapped label in place of log(1 - D), as BiGAN and ALI say; F-AAE and AAE
# leave it open.

def l2(a, b):
    """E ||a - b||_2, not squared.   (F-AAE eq. 4, as printed)"""
    return (a.float() - b.float()).flatten(1).norm(dim=1).mean()


def mse(a, b):
    """E (a - b)^2, a mean over dimensions too.  (F-AAE section 5)

    The default as d of eqs. 2 and 4: next to 100 times the norm the adversarial term counts for
    nothing, D always wins, and all samples look alike.
    """
    return (a.float() - b.float()).square().mean()


def squared_l2(a, b):
    """E ||a - b||_2^2, summed over dimensions:
    ours for lr, jlr and ae-l2, whose papers leave it open."""
    return (a.float() - b.float()).square().flatten(1).sum(1).mean()


def gaussian_kl(z):
    """KL(N(m, s^2) || N(0, 1)), m and s^2 the moments of each dimension of sqrt(nz) z over the
    batch; mean over dimensions.  (AGE, on the sphere)

    The closed form; AGE's released code puts a variance where its formula has a deviation.
    """
    z = z.float() * z.shape[1]**0.5
    m, var = z.mean(0), z.var(0, correction=0)
    return (m.square() + var - 1 - var.log()).mean() / 2


def faae(nets, opt, x, draw, amp, h):
    """F-AAE (eq. 4): min_{G,E} max_D  log D(x) + log(1 - D(G(z))) + alpha ||z - E(G(z))||,
    alpha = W_re / W_adv.

    ||.|| is d, by default the mean square (as printed: --reenc l2).  The print swaps the indices of
    E and G. Adam divides a gradient by its running size, so a weight cancels if each phase has an
    Adam of its own.  Both steps of G share one, so that W_re : W_adv matters.  R1 is ours (--gamma).
    """
    G, E, D = nets
    # Re-encoding phase: G and E bring the code back (section 3.1)
    with amp():
        z = draw.z(len(x))
        L_re = h.d(z, E(G(z)))                                              # eq. 4
    update(h.W_re * L_re, opt.G, opt.E)

    # Regularisation phase: D tells real from generated ...
    with amp():
        with torch.no_grad():
            fake = G(draw.z(len(x)))
        real_score = uncompiled(D, h.gamma)(x.requires_grad_(h.gamma > 0))      # R1 differentiates it twice
        L_D = mean_softplus(-real_score) + mean_softplus(D(fake))           # eq. 4
    update(L_D + h.gamma / 2 * r1(real_score, x) if h.gamma else L_D, opt.D)

    # ... and G confuses it
    with amp():
        L_G = mean_softplus(-D(G(draw.z(len(x)))))                          # eq. 4
    update(h.W_adv * L_G, opt.G)
    return L_re, L_D, L_G


def aae(nets, opt, x, draw, amp, h):
    """AAE (eq. 2): min_{G,E} max_D  log D(z) + log(1 - D(E(x))) + d(x, G(E(x)))."""
    G, E, D = nets
    # Reconstruction: G and E bring the image back
    with amp():
        L_rec = h.d(x, G(unit(E(x))))       # the direction of a code, as it is decoded later; D sees all of it
    update(h.W_re * L_rec, opt.G, opt.E)

    # D tells codes of the prior from codes of images ...
    with amp():
        with torch.no_grad():
            code = E(x)
        L_D = mean_softplus(-D(draw.z(len(x)))) + mean_softplus(D(code))
    update(L_D, opt.D)

    # ... and E confuses it
    with amp():
        L_E = mean_softplus(-D(E(x)))
    update(h.W_adv * L_E, opt.E)
    return L_rec, L_D, L_E


def bigan(nets, opt, x, draw, amp, h):
    """BiGAN (eq. 3): min_{G,E} max_D  log D(x, E(x)) + log(1 - D(G(z), z))."""
    G, E, D = nets
    # D tells (x, E(x)) from (G(z), z), in one batch, so that
    # its batch norm (--d-norm on) has one mean for both
    with amp():
        with torch.no_grad():
            z = draw.z(len(x))
            fake, code = G(z), E(x)
        real_score, fake_score = D(torch.cat([x, fake]), torch.cat([code, z])).chunk(2)
        L_D = mean_softplus(-real_score) + mean_softplus(fake_score)
    update(L_D, opt.D)

    # G and E confuse it, each with the other's label
    with amp():
        z = draw.z(len(x))
        real_score, fake_score = D(torch.cat([x, G(z)]), torch.cat([E(x), z])).chunk(2)
        L_GE = mean_softplus(real_score) + mean_softplus(-fake_score)
    update(L_GE, opt.G, opt.E)
    return L_D, L_GE


def ali(nets, opt, x, draw, amp, h):
    """ALI: BiGAN's game with z ~ q(z|x) = N(mean, exp(log_var)),
    reparameterised by a draw of the prior N(0, I)."""
    G, E, D = nets
    # D tells (x, z ~ q(z|x)) from (G(z), z)
    with amp():
        with torch.no_grad():
            z = draw.z(len(x))
            mean, log_var = E(x)
            fake, code = G(z), mean + (log_var / 2).exp() * draw.z(len(x))
        L_D = mean_softplus(-D(x, code)) + mean_softplus(D(fake, z))
    update(L_D, opt.D)

    # G and E confuse it, each with the other's label
    with amp():
        z = draw.z(len(x))
        mean, log_var = E(x)
        code = mean + (log_var / 2).exp() * draw.z(len(x))                  # the prior's draw is the noise, N(0, I)
        L_GE = mean_softplus(D(x, code)) + mean_softplus(-D(G(z), z))
    update(L_GE, opt.G, opt.E)
    return L_D, L_GE


def age(nets, opt, x, draw, amp, h, W_x=10):
    """AGE: E min KL(E(x)) - W_fake KL(E(G(z))) + W_x |x - G(E(x))|;
    G min KL(E(G(z))) + W_re (2 - mean z E(G(z))).

    W_x is of pixels in [0, 1].  mean z E(G(z)) is over
    dimensions too, a cosine / nz: the published W_re is 1000.
    """
    G, E, _ = nets
    # E tells real from generated by how their codes are spread, and keeps what G needs
    with amp():
        with torch.no_grad():
            fake = G(draw.z(len(x)))
        code = E(x)
        G.eval()                            # by running statistics, as G(E(x)) is seen later
        L_x = (x - G(code).float()).abs().mean()
        G.train()
        KL_x, KL_fake = gaussian_kl(code), gaussian_kl(E(fake))
    update(KL_x - h.W_fake * KL_fake + W_x * L_x, opt.E)

    # G spreads the codes of its images as the prior's, each at its place
    for _ in range(h.G_steps):
        with amp():
            z = draw.z(len(x))
            code = E(G(z))
            KL_G, L_z = gaussian_kl(code), 2 - (z * code).mean()
        update(KL_G + h.W_re * L_z, opt.G)
    return KL_x, KL_fake, L_x, KL_G, L_z


def lr(nets, opt, x, draw, amp, h):
    """Latent regressor: a GAN (eq. 1), and E alone min ||z - E(G(z))||_2^2."""
    G, E, D = nets
    # D tells real from generated
    with amp():
        with torch.no_grad():
            fake = G(draw.z(len(x)))
        real_score = uncompiled(D, h.gamma)(x.requires_grad_(h.gamma > 0))      # R1 differentiates it twice
        L_D = mean_softplus(-real_score) + mean_softplus(D(fake))
    update(L_D + h.gamma / 2 * r1(real_score, x) if h.gamma else L_D, opt.D)

    # G confuses it
    with amp():
        L_G = mean_softplus(-D(G(draw.z(len(x)))))
    update(L_G, opt.G)

    # E brings the code back
    with amp():
        z = draw.z(len(x))
        with torch.no_grad():
            fake = G(z)
        L_re = squared_l2(z, E(fake))
    update(L_re, opt.E)
    return L_re, L_D, L_G


def jlr(nets, opt, x, draw, amp, h):
    """Joint latent regressor: a GAN (eq. 1), and G and E min W_re ||z - E(G(z))||_2^2.
    F-AAE's --joint, of its d."""
    G, E, D = nets
    # D tells real from generated
    with amp():
        with torch.no_grad():
            fake = G(draw.z(len(x)))
        real_score = uncompiled(D, h.gamma)(x.requires_grad_(h.gamma > 0))      # R1 differentiates it twice
        L_D = mean_softplus(-real_score) + mean_softplus(D(fake))
    update(L_D + h.gamma / 2 * r1(real_score, x) if h.gamma else L_D, opt.D)

    # G confuses it, and G and E bring the code back
    with amp():
        z = draw.z(len(x))
        fake = G(z)
        L_re, L_G = h.d(z, E(fake)), mean_softplus(-D(fake))
    update(h.W_re * L_re + h.W_adv * L_G, opt.G, opt.E)
    return L_re, L_D, L_G


def ae_l1(nets, opt, x, draw, amp, h):
    """Autoencoder: min_{G,E} ||x - G(E(x))||_1."""
    G, E, _ = nets
    with amp():
        L = (x - G(E(x)).float()).abs().flatten(1).sum(1).mean()
    update(L, opt.G, opt.E)
    return L,


def ae_l2(nets, opt, x, draw, amp, h):
    """Autoencoder: min_{G,E} ||x - G(E(x))||_2^2."""
    G, E, _ = nets
    with amp():
        L = squared_l2(x, G(E(x)))
    update(L, opt.G, opt.E)
    return L,


def sphere(n, nz, generator):
    """z (n, nz), uniform on the unit sphere: a normal vector over its length.   (F-AAE 3.1)"""
    return unit(normal(n, nz, generator))


def uniform(n, nz, generator):
    """z (n, nz) ~ U(-1, 1).   (BiGAN)"""
    return torch.rand(n, nz, generator=generator, device=generator.device) * 2 - 1


def normal(n, nz, generator):
    """z (n, nz) ~ N(0, I).   (ALI)"""
    return torch.randn(n, nz, generator=generator, device=generator.device)


def unit(z):
    """Each row over its length: onto the unit sphere."""
    return z / z.float().norm(dim=-1, keepdim=True).clamp(min=1e-12)


STEPS = {"faae": faae, "aae": aae, "bigan": bigan, "ali": ali, "age": age, "lr": lr, "jlr": jlr, "ae-l1": ae_l1,
         "ae-l2": ae_l2}
LOSSES = {"faae": ("L_re", "L_D", "L_G"), "aae": ("L_rec", "L_D", "L_E"), "bigan": ("L_D", "L_GE"),
          "ali": ("L_D", "L_GE"), "age": ("KL_x", "KL_fake", "L_x", "KL_G", "L_z"), "lr": ("L_re", "L_D", "L_G"),
          "jlr": ("L_re", "L_D", "L_G"), "ae-l1": ("L",), "ae-l2": ("L",)}
LABELS = {"faae": "F-AAE", "aae": "AAE", "bigan": "BiGAN", "ali": "ALI", "age": "AGE", "lr": "LR", "jlr": "JLR",
          "ae-l1": "AE l1", "ae-l2": "AE l2"}
PRIORS = {"faae": sphere, "aae": sphere, "age": sphere, "bigan": uniform, "lr": uniform, "jlr": uniform, "ali": normal}
JUDGES = {"faae": "x", "lr": "x", "jlr": "x", "aae": "z", "bigan": "x, z", "ali": "x, z"}       # D's input
DISTANCES = {"l2": l2, "mse": mse}


# ----------------------------------------------------------------------------------------- networks

class MLP(nn.Module):
    """n_in - hidden - hidden - n_out; batch norm without
    gain and bias where `norms` says so.  (BiGAN on MNIST)

    N(0, 0.02) weights are ours, as is that E's and D's first hidden layer has no norm.
    """

    def __init__(self, n_in, n_out, hidden, norms=(False, False), slope=SLOPE):
        super().__init__()
        self.layer1 = nn.Linear(n_in, hidden, bias=not norms[0])
        self.layer2 = nn.Linear(hidden, hidden, bias=not norms[1])
        self.norm1, self.norm2 = (nn.BatchNorm1d(hidden, affine=False) if norm else nn.Identity() for norm in norms)
        self.head = nn.Linear(hidden, n_out)
        self.slope = slope
        for layer in (self.layer1, self.layer2, self.head):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def trunk(self, x):  # [N,...] -> [N,hidden]
        x = nnf.leaky_relu(self.norm1(self.layer1(x.flatten(1))), self.slope)
        return nnf.leaky_relu(self.norm2(self.layer2(x)), self.slope)

    def forward(self, x):
        return self.head(self.trunk(x))


def channels(resolution, width):
    """Channels of the blocks of section 3.2's G, at 8, 16, ... resolution px;
    E's from the other end."""
    return [max(c // width, 1) for c in (256, 128, 64, 32, 16)[:resolution.bit_length() - 3]]


def glorot(layer):
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ConvGenerator(nn.Module):
    """z -> x in [0, 1]: a dense layer to 4x4, then [upsample x2, conv 3x3] blocks, batch norm and
    leaky ReLU after each; a last convolution and a sigmoid.  (F-AAE 3.2, which leaves kernels,
    widths, slope and weights to us)"""

    def __init__(self, nz, image_shape, width):
        super().__init__()
        widths = channels(image_shape[1], width)
        self.first = glorot(nn.Linear(nz, widths[0] * 16, bias=False))
        self.norm = nn.BatchNorm2d(widths[0])
        self.convs = nn.ModuleList(
            glorot(nn.Conv2d(i, o, 3, padding=1, bias=False)) for i, o in pairwise(widths[:1] + widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in widths)
        self.last = glorot(nn.Conv2d(widths[-1], image_shape[0], 3, padding=1))

    def forward(self, z):
        x = self.first(z).unflatten(1, (-1, 4, 4))                           # [N,256,4,4]
        x = nnf.leaky_relu(self.norm(x), SLOPE)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = common.upscale(x)
            x = nnf.leaky_relu(norm(conv(x)), SLOPE)                        # [N,c,2H,2W]
        return torch.sigmoid(self.last(x))


class ConvTrunk(nn.Module):
    """x -> (N, 256 * 16): the generator in reverse order, max-pooling in place of upsampling.
    (F-AAE 3.2)"""

    def __init__(self, image_shape, width, norm):
        super().__init__()
        widths = [image_shape[0]] + channels(image_shape[1], width)[::-1]
        self.convs = nn.ModuleList(
            glorot(nn.Conv2d(i, o, 3, padding=1, bias=not norm)) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) if norm else nn.Identity() for c in widths[1:])
        self.n_out = widths[-1] * 16

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnf.max_pool2d(nnf.leaky_relu(norm(conv(x)), SLOPE), 2)     # [N,c,H/2,W/2]
        return x.flatten(1)


class ConvNet(nn.Module):
    """x -> (N, n_out): E or D.   (F-AAE 3.2)

    No batch norm in D, nor in E if D scores its code with x (bigan, ali), because a score must not
    see its batch mates; aae's E has F-AAE's (section 4.1).
    """

    def __init__(self, image_shape, n_out, width, norm):
        super().__init__()
        self.trunk = ConvTrunk(image_shape, width, norm)
        self.head = glorot(nn.Linear(self.trunk.n_out, n_out))

    def forward(self, x):
        return self.head(self.trunk(x))


class StyleImages(common.StyleGenerator):
    """StyleGAN's synthesis, fed with z: (N, nz) -> x in [0, 1] at the top level.   (ours)"""

    def forward(self, z, noise="random"):
        return torch.sigmoid(super().forward(z, noise))


class Encoder(nn.Module):
    """E: x -> code (N, nz), `scale` times the net's output."""

    def __init__(self, net, scale=1.0):
        super().__init__()
        self.net, self.scale = net, scale

    def features(self, x):
        """-> short (N, nz), the code, and long (N, n), the last hidden layer."""
        long = self.net.trunk(x)
        return self.net.head(long) * self.scale, long

    def forward(self, x):
        return self.features(x)[0]


class GaussianEncoder(Encoder):
    """ALI's E: x -> mean, log_var (N, nz) of q(z|x) = N(mean, exp(log_var));
    the mean is what is used of it later."""

    def features(self, x):
        short, long = super().features(x)
        return short.chunk(2, 1)[0], long

    def forward(self, x):
        return self.net(x).chunk(2, 1)


class SphereEncoder(Encoder):
    """AGE's E: codes on the unit sphere."""

    def features(self, x):
        short, long = super().features(x)
        return unit(short), long


class PairDiscriminator(nn.Module):
    """D of a pair: (x, z) -> logit (N, 1)."""

    def __init__(self, trunk, net):
        super().__init__()
        self.trunk, self.net = trunk, net

    def forward(self, x, z):
        return self.net(torch.cat([self.trunk(x), z], 1))


# -------------------------------------------------------------------------------------------- model

class Autoencoder(nn.Module):
    """G, E, D (None where the objective has none), and what `eval.py` asks of any model (eval
    mode).  The family has no mapping: w is z."""

    def __init__(self, backbone, image_shape, nz, width, objective, fmap_base=8192, d_norm="off"):
        super().__init__()
        judges, D = JUDGES.get(objective), None
        n_code = 2 * nz if objective == "ali" else nz
        pixels = math.prod(image_shape)
        hidden = max(1024 // width, 1)
        norms = (False, d_norm == "on")
        if backbone == "mlp":
            G = nn.Sequential(MLP(nz, pixels, hidden, (True, True), slope=0), nn.Sigmoid(),
                              nn.Unflatten(1, image_shape))
            E = MLP(pixels, n_code, hidden, (False, objective != "age"))    # AGE's has no batch norm here: ours
            if judges:
                D = MLP({"x": pixels, "z": nz, "x, z": pixels + nz}[judges], 1, hidden, norms)
            trunk = nn.Flatten()
        elif backbone == "dcgan":
            G = ConvGenerator(nz, image_shape, width)
            E = ConvNet(image_shape, n_code, width, norm=judges != "x, z")
            trunk = ConvTrunk(image_shape, width, norm=False)
            if judges == "x":
                D = ConvNet(image_shape, 1, width, norm=False)
            elif judges == "z":
                D = MLP(nz, 1, max(256 // width, 1))
            elif judges:
                D = MLP(trunk.n_out + nz, 1, hidden, norms)
        elif backbone == "stylegan":            # ours
            G = StyleImages(nz, image_shape, width, fmap_base)
            E = common.StyleCritic(image_shape, nz, width, fmap_base, std_group=0)
            if judges == "z":
                D = MLP(nz, 1, max(256 // width, 1))
            else:
                D = common.StyleCritic(image_shape, 1, width, fmap_base)
        if judges == "x, z":
            D = PairDiscriminator(trunk, D)
        # z's norm is 1 there; without this E's first codes are many times as long
        scale = nz**-0.5 if backbone != "mlp" and PRIORS.get(objective) is sphere else 1.0
        kind = {"ali": GaussianEncoder, "age": SphereEncoder}.get(objective, Encoder)
        self.G, self.E, self.D = G, kind(E, scale), D
        self.image_shape, self.nz, self.nw, self.num_layers = tuple(image_shape), nz, nz, 1
        self.sample = PRIORS.get(objective)
        self.grows = backbone == "stylegan"
        if self.grows:
            self.num_layers = self.G.num_layers

    def fit(self, x):
        """Images in [0, 1] at the level of growing networks."""
        return self.G.fit(x) if self.grows else x

    def see(self, x):
        """Images in [-1, 1] -> as E sees them: in [0, 1], and at its level."""
        return self.fit((x + 1) / 2)

    def show(self, x):
        """What G made -> images in [-1, 1] of image_shape."""
        return (self.G.full(x) if self.grows else x) * 2 - 1

    def generate(self, w, noise="fixed"):
        """x = G(w), (N, C, H, W) in [-1, 1], of w (N, nw) or, on stylegan, (N, num_layers, nw).

        Of w's direction where the prior is a sphere (F-AAE eq. 5), because E's output is not
        normalised in training. noise: "random", "fixed" or "none", on stylegan.
        """
        w = unit(w) if self.sample is sphere else w     # eq. 5
        return self.show(self.G(w, noise) if self.grows else self.G(w))

    def encode(self, x):
        """w = E(x), (N, nw), of x (N, C, H, W) in [-1, 1], not normalised, except AGE's;
        ALI's mean."""
        return self.features(x)[0]

    def features(self, x):
        """-> short (N, nw), long (N, n) features of x (N, C, H, W) in [-1, 1].
        Raises ValueError if x is not."""
        common.check_input(x, self.image_shape)
        return self.E.features(self.see(x))


class GenerativeAutoencoder(Autoencoder):
    """One with a prior."""

    def prior(self, n, generator):
        """z (n, nz) of the objective's prior, on the generator's device."""
        return self.sample(n, self.nz, generator)

    def map(self, z):
        """w = z."""
        return z


# ----------------------------------------------------------------------------------------- settings

RESOLUTIONS = {"mlp": [28], "dcgan": [32, 64, 128], "stylegan": common.STYLE_SIZES}
MLPS, CONVS, STYLE = dict(backbone="mlp"), dict(backbone="dcgan"), dict(backbone="stylegan")
# Settings of F-AAE's section 4.1; E has G's rate.  The decay
# is read as Keras has it: lr / (1 + 1e-4 t) after t steps
SECTION_4 = CONVS | dict(objective=("faae", "aae"))
F_AAE = dict(nz=256, lr=3e-4, lr_d=1e-3, decay=1e-4, reencode_weight="100", adversarial_weight=0.1)
# Those of BiGAN on permutation-invariant MNIST
MNIST = MLPS | dict(objective=("bigan", "lr", "jlr", "ae-l1", "ae-l2"))
BIGAN = dict(nz=50, batch=128, lr=2e-4, lr_d=2e-4, beta1=0.5, decay=2.5e-5, decay_kind="weight", lr_final=0.01)
# Rows of (where it holds, what is set); later rows refine earlier ones.  PAPER, OURS: the source.
SETTINGS = [
    (dict(), dict(objective="faae", backbone="dcgan"),
        PAPER(gamma=0.0), OURS(reencode_weight="100", adversarial_weight=0.1, reenc="mse", fake_weight=0.5, g_steps=2,
        d_norm="off", beta1=0.9, lr_final=1.0)),
    (dict(data=data.GREY), dict(backbone="mlp")),
    (CONVS, OURS(batch=32, decay_kind="inverse", kimg=2500, snapshot_kimg=50, **F_AAE)),
    (SECTION_4, PAPER(**F_AAE)),
    (SECTION_4 | dict(data="cifar10"), PAPER(kimg=50 * 50)),            # 50 epochs
    (dict(data="celeba"), OURS(split="5-1")),
    (dict(data="celeba", objective=("faae", "aae")), PAPER(split="5-1")),
    (CONVS | dict(data="celeba"), OURS(kimg=50 * 168.832)),
    (SECTION_4 | dict(data="celeba", split="5-1"), PAPER(kimg=50 * 168.832)),
    (CONVS | dict(data="imagenet"),
        OURS(resolution="64", reencode_weight="30,100", kimg=600 * 1281.167, snapshot_kimg=1000)),
    (SECTION_4 | dict(data="imagenet"), PAPER(resolution="64")),
    (SECTION_4 | dict(data="imagenet", split="auto"), PAPER(reencode_weight="30,100", kimg=600 * 1281.167)),
    (MLPS, OURS(kimg=24_000, snapshot_kimg=500, **BIGAN)),
    (MNIST, PAPER(**BIGAN)),
    (MNIST | dict(data="mnist", split=("auto", "dw")), PAPER(kimg=400 * 60)),
    (MLPS | dict(data="mnist-mini"), OURS(kimg=400, snapshot_kimg=20)),
    (MLPS | dict(objective="faae"), OURS(reencode_weight="10")),
    # Without R1 all samples look alike: D has no norm, and few images.  A larger W_re makes speckle, by which E reads z
    (MLPS | dict(data="mnist-mini", objective="faae"),
        OURS(gamma=1.0, reencode_weight="3", batch=64, lr=0.001, lr_d=0.001, kimg=200, snapshot_kimg=10)),
    (CONVS | dict(objective=("bigan", "ali", "age", "lr", "jlr")),
        OURS(batch=64, lr=2e-4, lr_d=2e-4, beta1=0.5, decay=0.0, decay_kind="none")),
    # 0: by level, see common.complete_levels
    (STYLE, OURS(nz=512, fmap_base=8192, batch=0, lr=0.0, lr_d=0.0, beta1=0.0, decay=0.0, decay_kind="none", kimg=0.0,
        grow_kimg=0.0, snapshot_kimg=0.0)),
    # As published by others than F-AAE
    (MLPS | dict(objective="bigan"), PAPER(d_norm="on")),               # in two batches G learns nothing on MNIST
    (dict(objective="age"), OURS(reencode_weight="1000")),
    (CONVS | dict(objective="age"),
        CODE(reencode_weight="1000", fake_weight=1.0, g_steps=2, batch=64, lr=2e-4, beta1=0.5)),
    (dict(objective="age", data="celeba"), CODE(g_steps=3)),
    (dict(objective="age", data="imagenet"), CODE(reencode_weight="2000")),
    (dict(objective="jlr"), PAPER(reencode_weight="0.25")),             # weighs it for both G and E here
]


def weights(text):
    """An argparse type: "100", or "30,100",
    the first of which holds for the first third of training."""
    values = [common.positive(float)(v) for v in text.split(",")]
    if len(values) <= 2:
        return ",".join(f"{v:g}" for v in values)
    raise ValueError


weights.__name__ = "weight, or two with a comma between"        # for argparse
below_one = common.number("number in [0, 1)", float, lambda value: 0 <= value < 1)


def parse_args(argv=None):
    parser = common.method_parser(__doc__, RESOLUTIONS)
    add = parser.group("method")
    positive = common.positive(float)
    add("--objective", "member of the family (see the top of faae.py)", choices=STEPS)
    add("--reencode-weight", "W_re, weight of reciprocity (aae: images' error); of two, one is for the first third",
        only=dict(objective=("faae", "aae", "age", "jlr")), type=weights, metavar="W[,W]")
    add("--adversarial-weight", "W_adv, weight of G's (aae: E's) adversarial term (section 4.1: 0.1)",
        only=dict(objective=("faae", "aae")), type=positive, metavar="W")
    add("--reenc", "d of eqs. 2 and 4: l2, the norm as printed, or mse, the mean square",
        only=dict(objective=("faae", "aae")), choices=DISTANCES)
    add("--gamma", "weight of R1, over 2 (ours; the papers: 0)", only=dict(objective=("faae", "lr", "jlr")),
        type=common.not_negative, metavar="W")
    add("--joint", "one step of G down both of its terms, after D's", only=dict(objective="faae"), action="store_true")
    add("--lr-d", "learning rate of D; --lr is G's and E's", only=dict(objective=tuple(JUDGES)), type=positive,
        metavar="R")
    add("--beta1", "beta_1 of Adam", type=below_one, metavar="B")
    add("--decay", "size of the decay that --decay-kind names (section 4.1: 1e-4)", type=below_one, metavar="D")
    add("--decay-kind", "inverse: rate lr / (1 + decay t) after t times --batch images; weight: Adam's weight_decay",
        choices=["inverse", "weight", "none"])
    add("--lr-final", "share of the learning rates left at the end, after a fall in the second half (BiGAN: 0.01)",
        type=positive, metavar="S")
    add("--fake-weight", "W_fake of AGE, weight of E(G(z))'s divergence in E's step (code: 1)",
        only=dict(objective="age"), rare=True, type=positive, metavar="W")
    add("--g-steps", "steps of AGE's G for one of E (code: 2, on CelebA 3)", only=dict(objective="age"), rare=True,
        type=common.positive(int), metavar="N")
    add("--d-norm", "batch norm in D's MLP (BiGAN on MNIST: on)", only=dict(objective="bigan"), rare=True,
        choices=["off", "on"])
    args = common.resolve(parser, "faae", SETTINGS, argv, network_args,
                          formerly=dict(gamma=0.0, d_norm="off"))
    if args.backbone == "stylegan" and args.objective not in ("faae", "aae"):
        raise Error(f"--backbone stylegan is for --objective faae or aae; take another backbone for {args.objective}")
    if args.nw not in (None, args.nz):
        raise Error(f"--nw {args.nw} differs from nz {args.nz}, but here z is the code itself: leave --nw out")
    args.nw = args.nz
    if args.objective == "age" and args.nz < 2:
        raise Error("--nz 1: AGE's codes lie on a sphere, which has two points then; pass 2 or more")
    given = [name for name in ("decay", "decay_kind") if not args.resume and args.source.get(name) == "given"]
    if given == ["decay_kind"] and args.decay_kind == "none":
        args.decay = 0.0
    if "decay" in given and args.decay and args.decay_kind == "none":
        raise Error(f"--decay {args.decay} says how much, not how: add --decay-kind inverse or weight")
    if "decay_kind" in given and args.decay_kind != "none" and not args.decay:
        raise Error(f"--decay-kind {args.decay_kind} says how, not how much: add --decay, such as 1e-4")
    return args


# --------------------------------------------------------------------------------------------- main

def make_optimizers(model, args):
    """-> Namespace of an Adam a network: G, E, D."""
    decay = args.decay if args.decay_kind == "weight" else 0.0
    return Namespace(**{name: adam(network, args.lr_d if name == "D" else args.lr, (args.beta1, BETA_2), decay)
                        for name, network in model.named_children()})


def lr_share(args, seen):
    """What the learning rates are multiplied by once `seen` images have been shown."""
    inverse = 1 / (1 + args.decay * seen / args.batch) if args.decay_kind == "inverse" else 1.0
    past_half = min(max(2 * seen / (1000 * args.schedule_kimg) - 1, 0), 1)
    return inverse * args.lr_final**past_half


def hyper(args, seen):
    """-> h of the steps, once `seen` images have been shown."""
    W_re = getattr(args, "reencode_weight", "1").split(",")[0 if seen < 1000 * args.schedule_kimg / 3 else -1]
    d = DISTANCES[args.reenc] if hasattr(args, "reenc") else squared_l2
    return Namespace(W_re=float(W_re), W_adv=getattr(args, "adversarial_weight", 1.0), d=d,
                     gamma=getattr(args, "gamma", 0.0), W_fake=getattr(args, "fake_weight", 0.0),
                     G_steps=getattr(args, "g_steps", 0))


def main(argv=None):
    args = parse_args(argv)
    common.check_resolution(args, RESOLUTIONS)
    device, rank, world = common.start(args)
    if args.batch // world < 2 and args.backbone != "stylegan":
        raise Error(f"--batch {args.batch} leaves a process {args.batch // world} image(s), and batch norm needs 2; "
                    f"pass --batch {2 * world} or more")

    grows = args.backbone == "stylegan"
    sizes = RESOLUTIONS[args.backbone]
    with common.rank_zero_first():
        images, held_out = data.load(args.data, args.data_root, args.split, args.resolution, args.skip_bad,
                                     sizes if grows else sizes[:1], args.only)
    if args.resume:
        common.check_images(args, images)
    else:
        if grows:
            common.complete_levels(args, images.shape, world)
        if hasattr(args, "lr_d"):
            args.lr_d = args.lr_d or args.lr
        widths = channels(images.shape[1], args.width)
        common.complete(args, images, held_out, label=LABELS[args.objective],
                        words=["" if args.objective == "faae" else args.objective],
                        default_split="5-1" if args.data == "celeba" else "dw",
                        constants=[f"beta2 {BETA_2}", f"leaky ReLU {SLOPE}",
                                   f"channels {widths}" if args.backbone == "dcgan" else ""])
    growth = common.growth_of(args)

    model = make_model(vars(args)).to(device)
    if grows or device.type == "cuda":          # dcgan too: what tensor cores take
        model.to(memory_format=torch.channels_last)
    if args.init:
        common.begin_from(args, model, device)
    common.broadcast(model)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    opt = make_optimizers(model, args)
    rng = common.generator(device, args.seed, "training")

    # What training changes, and so what a checkpoint holds
    state = dict(model=model, ema=ema, **{f"opt_{n}": o for n, o in vars(opt).items()}, rng=rng)
    step = jlr if getattr(args, "joint", False) else STEPS[args.objective]
    run = common.Run(args, state, losses=LOSSES[args.objective], device=device, growth=growth)
    batches = data.batches(images, growth.plan, args.seed, run.seen, device, rank, world, args.workers)
    amp = common.autocast(args.precision, device)
    draw = common.Draw(model, rng, rank, world)
    G, E, D = common.compiled(model.G, model.E, model.D) if args.compile else (model.G, model.E, model.D)
    nets = draw.noisy(G), E, D
    fixed_x, fixed_z = common.fixed_inputs(model, held_out, args.seed, device)

    while True:
        level, alpha, batch, rate = growth.at(run.seen)
        common.grow(level, alpha, model, ema)
        share = lr_share(args, run.seen)
        if run.snapshot_due:
            run.snapshot(share * rate, ema, fixed_x, fixed_z, level, alpha)
        if run.done:
            break
        for name, optimizer in vars(opt).items():
            common.set_rate(share * (args.lr_d * (rate / args.lr) if name == "D" else rate), optimizer)
        x = model.fit(next(batches).float() / 255)
        losses = step(nets, opt, x, draw, amp, hyper(args, run.seen))
        common.average_buffers(model)
        # Short at first, or batch norm's first statistics would linger
        common.update_ema(ema, model, run.seen, batch, growth.since(run.seen), share=20)
        run.step(losses, batch)
    run.finish()


# --------------------------------------------------------------------------------------------- load

def network_args(args):
    """The keyword arguments of a model among a run's arguments."""
    names = ("backbone", "image_shape", "nz", "width", "objective", "fmap_base", "d_norm")
    return {k: args[k] for k in names if k in args}


def make_model(args):
    """The untrained model of a run's arguments."""
    kind = GenerativeAutoencoder if args["objective"] in PRIORS else Autoencoder
    return kind(**network_args(args))


def load(run, device="cpu", weights="ema", kimg=None):
    """The model of a run folder, in eval mode; weights "ema" (averaged) or "raw"; kimg: of
    --keep-kimg.  Raises common.Error."""
    return common.load_model(run, "faae", make_model, device, weights, kimg)


if __name__ == "__main__":
    common.command(main)
