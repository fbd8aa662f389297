"""The tests that grade the exercises of `exercises.py`, on networks of a matrix each, beside what numpy works out in
float64, finite differences and closed forms.

What an exercise builds on and another one writes has a stand-in here, so each is graded alone.  No test needs pytest:
`grade.py` calls them one by one.
"""
import functools
import math
import sys
from argparse import Namespace
from contextlib import ExitStack, nullcontext
from typing import NamedTuple
from unittest.mock import patch

import common  # before torch, whose threads wait as it says

# isort: split
import numpy as np
import torch
from exercises import alone
from torch import nn

import faae
import invgan
import lia


def grades(exercise, **stand_ins):
    """Says which exercise a test grades.  stand_ins: `module_name`=value, what `module.name` is meanwhile."""
    def decorate(test):
        @functools.wraps(test)
        def run():
            torch.manual_seed(0)
            with ExitStack() as stack:
                for name, value in stand_ins.items():
                    module, _, name = name.partition("_")
                    __import__(module)
                    stack.enter_context(patch.object(sys.modules[module], name, value))
                test()
        run.exercise = exercise
        return run
    return decorate


def same(what, got, expected, rtol=1e-4, atol=1e-6):
    """Fails in a line: what it is (with the equation), what was expected, what came."""
    got, expected = (v.detach().double().numpy() if isinstance(v, torch.Tensor) else np.array(v, dtype=float)
                     for v in (got, expected))
    if got.shape != expected.shape and got.size != expected.size:
        raise AssertionError(f"{what}: expected shape {expected.shape}, got {got.shape}")
    got = got.reshape(expected.shape)
    if not np.allclose(got, expected, rtol, atol):
        i = np.unravel_index(np.argmax(np.nan_to_num(abs(got - expected), nan=np.inf)), expected.shape)
        where = f" at {list(map(int, i))}" if expected.size > 1 else ""
        raise AssertionError(f"{what}: expected {expected[i]:.6g}{where}, got {got[i]:.6g}")


def check(truth, what):
    if not truth:
        raise AssertionError(what)


def slope(f, p, step=1e-5):
    """df/dp of a float function of a numpy array, by central differences."""
    grad = np.zeros_like(p)
    for i in np.ndindex(*p.shape):
        d = np.zeros_like(p)
        d[i] = step
        grad[i] = (f(p + d) - f(p - d)) / (2 * step)
    return grad


def randn(*size):
    return torch.randn(*size, dtype=torch.float64)


# Known answers of what other exercises write
def logistic(t):
    return torch.logaddexp(t.double(), torch.zeros_like(t, dtype=torch.float64)).sum() / t.numel()


def numpy_logistic(t):
    return np.logaddexp(0, t).mean()


def sigmoid(t):
    return 1 / (1 + np.exp(-t))


class Matrix(nn.Module):
    """x -> A x of x (N, n).  seen: what it was given."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.A = nn.Parameter(randn(n_out, n_in))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return x.double() @ self.A.T

    def to_w(self, z):
        return self(z)


class Dense(nn.Module):
    """Stands in for an equalised layer: no scale, no bias."""

    def __init__(self, fan_in, fan_out, gain=1, lr_mul=1.0, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, dtype=torch.float64) / 2)

    def forward(self, x):
        return x @ self.weight.T


def value(*networks):
    return [net.A.detach().numpy().copy() for net in networks]


def descent(**networks):
    """An optimiser a network, whose step is the gradient itself."""
    return Namespace(**{name: torch.optim.SGD(net.parameters(), lr=1) for name, net in networks.items()})


def moved(before, *networks):
    """How far each matrix went down: its gradient."""
    return [old - new for old, new in zip(before, value(*networks), strict=True)]


class Codes:
    """Draws of the prior: the test's own, in order."""

    def __init__(self, *zs):
        self.zs = list(zs)

    def z(self, n):
        check(self.zs, "more draws of z than the algorithm has")
        z = self.zs.pop(0)
        check(len(z) == n, f"z: expected a batch of {len(z)}, got {n}")
        return z

    @staticmethod
    def mix(w, F):
        return w


def drawn(n, size, steps):
    return [randn(n, size) for _ in range(steps)]


# ------------------------------------------------------------------------------------------------------- logistic

@grades("logistic")
def test_softplus_values():
    """log(1 + e^t) of single scores"""
    for t in (-3.0, 0.0, 0.5, 4.0):
        same(f"softplus({t}) = log(1 + e^t)", common.mean_softplus(torch.tensor([[t]])), math.log(1 + math.exp(t)))


@grades("logistic")
def test_softplus_is_a_mean():
    """over the batch, and not a sum"""
    t = torch.tensor([[0.0], [1.0], [2.0], [-5.0]])
    same("softplus of four scores: the mean", common.mean_softplus(t), np.log1p(np.exp([0, 1, 2, -5])).mean())


@grades("logistic")
def test_softplus_does_not_overflow():
    """at 1000"""
    same("softplus(1000) is 1000", common.mean_softplus(torch.tensor([[1000.0]])), 1000)
    same("softplus(-1000) is 0", common.mean_softplus(torch.tensor([[-1000.0]])), 0)


@grades("logistic")
def test_softplus_is_fp32():
    """of scores in bf16"""
    got = common.mean_softplus(torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.bfloat16))
    check(got.dtype == torch.float32, f"softplus of bf16 scores: expected float32, got {got.dtype}")
    same("softplus of bf16 scores", got, np.log1p(np.exp([1, 2, 4])).mean(), rtol=1e-6)


# --------------------------------------------------------------------------------------------------- equal-linear

@grades("equal-linear")
def test_equal_linear_by_hand():
    """y = gain m / sqrt(fan_in) W x + m b"""
    layer = common.EqualLinear(6, 3, gain=1.5, lr_mul=0.1)
    nn.init.normal_(layer.bias)
    x, W, b = torch.randn(4, 6), layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    same("y = c W x + m b", layer(x), 1.5 * 0.1 / math.sqrt(6) * x.double().numpy() @ W.T + 0.1 * b)


@grades("equal-linear")
def test_equal_linear_keeps_the_variance():
    """of unit inputs: the output's deviation is the gain, whatever m is"""
    for lr_mul in (1, 0.01):
        y = common.EqualLinear(400, 300, gain=2, lr_mul=lr_mul)(torch.randn(200, 400))
        same(f"the deviation of y at gain 2, m = {lr_mul}", y.std(), 2, rtol=0.05)


@grades("equal-linear")
def test_equal_linear_starts():
    """with W ~ N(0, 1/m^2), of shape (fan_out, fan_in), and b = 0"""
    layer = common.EqualLinear(300, 200, gain=1, lr_mul=0.1)
    check(tuple(layer.weight.shape) == (200, 300), f"W: expected shape (200, 300), got {tuple(layer.weight.shape)}")
    same("the deviation of W, 1/m", layer.weight.std(), 10, rtol=0.05)
    same("b at the start", layer.bias, torch.zeros(200))


@grades("equal-linear")
def test_equal_linear_learns():
    """weight and bias are parameters; without a bias there is one"""
    names = sorted(name for name, _ in common.EqualLinear(3, 2, gain=1).named_parameters())
    check(names == ["bias", "weight"], f"parameters: expected bias and weight, got {names}")
    layer = common.EqualLinear(3, 2, gain=1, bias=False)
    check(layer.bias is None, "bias=False: expected bias None")
    same("bias=False: y at x = 0", layer(torch.zeros(1, 3)), torch.zeros(1, 2))


# -------------------------------------------------------------------------------------------------------- mapping

@grades("mapping")
def test_pixel_norm_by_hand():
    """x over its root mean square"""
    x = randn(5, 7)
    same("x / sqrt(mean x^2)", common.pixel_norm(x), x.numpy() / np.sqrt((x.numpy()**2).mean(1, keepdims=True)))


@grades("mapping")
def test_pixel_norm_of_maps():
    """works along the channels, dimension 1, of each pixel"""
    x = randn(2, 6, 3, 4)
    same("x / sqrt(mean over channels of x^2)", common.pixel_norm(x),
         x.numpy() / np.sqrt((x.numpy()**2).mean(1, keepdims=True)))


@grades("mapping")
def test_pixel_norm_of_zero():
    """is 0, and finite"""
    same("pixel norm of 0", common.pixel_norm(torch.zeros(2, 3)), torch.zeros(2, 3))


@grades("mapping", common_EqualLinear=Dense)
def test_mapping_by_hand():
    """pixel norm once, then layers, each with leaky ReLU 0.2, the last one too"""
    M, z = common.Mapping(4, 5, 3, 1), randn(6, 4)
    w = z.numpy() / np.sqrt((z.numpy()**2).mean(1, keepdims=True))
    for layer in M.layers:
        w = w @ layer.weight.detach().numpy().T
        w = np.where(w > 0, w, 0.2 * w)
    same("w, StyleGAN fig. 1", M(z), w)


@grades("mapping", common_EqualLinear=Dense)
def test_mapping_knows_no_length():
    """of z: w(3 z) = w(z)"""
    M, z = common.Mapping(4, 4, 2, 1), randn(3, 4)
    same("w(3 z), StyleGAN fig. 1", M(3 * z), M(z))


# ---------------------------------------------------------------------------------------------------------- adain

def style_layer():
    layer = common.StyleLayer(3, 5, (4, 4)).double()
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer, randn(2, 3, 4, 4), randn(2, 5), randn(2, 1, 4, 4)


def style_by_hand(layer, x, w, eta):
    x = x.numpy() + layer.noise_gain.detach().numpy() * eta.numpy() + layer.bias.detach().numpy()
    x = np.where(x > 0, x, 0.2 * x)
    x = (x - x.mean((2, 3), keepdims=True)) / x.std((2, 3), keepdims=True)
    style = (w.numpy() @ layer.style.weight.detach().numpy().T)[:, :, None, None]
    return (1 + style[:, :3]) * x + style[:, 3:]


@grades("adain", common_EqualLinear=Dense)
def test_adain_by_hand():
    """noise, bias, leaky ReLU, instance norm, (1 + scale) and shift"""
    layer, x, w, eta = style_layer()
    same("StyleGAN eq. 1", layer(x, w, eta), style_by_hand(layer, x, w, eta))


@grades("adain", common_EqualLinear=Dense)
def test_adain_without_noise():
    """eta None"""
    layer, x, w, eta = style_layer()
    same("StyleGAN eq. 1 without noise", layer(x, w, None), style_by_hand(layer, x, w, 0 * eta))


@grades("adain", common_EqualLinear=Dense)
def test_adain_sets_the_moments():
    """of each channel: its mean is the shift, its deviation |1 + scale|"""
    layer, x, w, eta = style_layer()
    y, style = layer(x, w, eta), w.numpy() @ layer.style.weight.detach().numpy().T
    same("StyleGAN eq. 1: a channel's mean, y_b", y.mean((2, 3)), style[:, 3:])
    same("StyleGAN eq. 1: a channel's deviation, 1 + y_s", y.std((2, 3), correction=0), abs(1 + style[:, :3]))


@grades("adain", common_EqualLinear=Dense)
def test_adain_keeps_images_apart():
    """an image's output does not depend on the others of its batch"""
    layer, x, w, eta = style_layer()
    same("the first image alone", layer(x[:1], w[:1], eta[:1]), layer(x, w, eta)[:1])


# -------------------------------------------------------------------------------------------------- minibatch-std

def deviation_by_hand(x, group):
    """Image i is in a group with i + N/G, i + 2 N/G, ..."""
    x, n = x.numpy(), len(x)
    step = n // group
    return np.array([x[i % step::step].std(0).mean() for i in range(n)])


@grades("minibatch-std")
def test_minibatch_deviation_by_hand():
    """the deviation over a group, as a mean over channels and pixels, the same for all of the group"""
    x = randn(6, 2, 3, 4)
    y = common.minibatch_std(x, 3)
    check(tuple(y.shape) == (6, 3, 3, 4), f"expected one more map, (6, 3, 3, 4), got {tuple(y.shape)}")
    same("x itself comes first", y[:, :2], x)
    same("ProGAN 3: the new map", y[:, 2], np.broadcast_to(deviation_by_hand(x, 3)[:, None, None], (6, 3, 4)))


@grades("minibatch-std")
def test_minibatch_std_of_equal_images():
    """is 0 (1e-4 for the sake of the gradient), which is finite"""
    x = randn(1, 2, 3, 3).repeat(4, 1, 1, 1).requires_grad_()
    y = common.minibatch_std(x, 4)
    same("ProGAN 3: the deviation of equal images", y[:, 2], torch.zeros(4, 3, 3), atol=2e-4)
    y.sum().backward()
    check(x.grad.isfinite().all(), "ProGAN 3: the gradient at equal images is not finite")


@grades("minibatch-std")
def test_minibatch_std_divides_by_n():
    """and not by n - 1: two images at distance 2"""
    x = torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 1, 2, 2)
    same("ProGAN 3: the deviation of 1 and 3", common.minibatch_std(x, 2)[:, 1], torch.ones(2, 2, 2))


@grades("minibatch-std")
def test_minibatch_std_takes_smaller_groups():
    """where they do not divide the batch: 6 images in groups of 4 are groups of 2"""
    x = randn(6, 1, 2, 2)
    same("ProGAN 3: groups of gcd(6, 4)", common.minibatch_std(x, 4)[:, 1, 0, 0], deviation_by_hand(x, 2))


# --------------------------------------------------------------------------------------------------------- growth

def growth(**more):
    return common.Growth([(4, 4), (8, 8), (16, 16)], [32, 16, 8], [0.1, 0.2, 0.3], part=100, **more)


def same_state(what, got, expected):
    got = tuple(got)
    same(f"ProGAN 2, {what}: level", got[0], expected[0])
    same(f"ProGAN 2, {what}: alpha", got[1], expected[1])
    same(f"ProGAN 2, {what}: batch and rate of the level", got[2:], ([32, 16, 8][got[0]], [0.1, 0.2, 0.3][got[0]]))


@grades("growth")
def test_growth_levels():
    """the first lasts two parts, the next fade in for one part and stay for one more"""
    for seen, level, alpha in ((0, 0, 1), (199, 0, 1), (200, 1, 0), (250, 1, 0.5), (300, 1, 1), (399, 1, 1),
                               (425, 2, 0.25)):
        same_state(f"after {seen} images of parts of 100", growth().at(seen), (level, alpha))


@grades("growth")
def test_growth_ends():
    """the last level goes on, at alpha 1"""
    for seen in (500, 700, 10_000):
        same_state(f"after {seen} images of parts of 100", growth().at(seen), (2, 1))


@grades("growth")
def test_growth_from_a_higher_level():
    """which is not faded in"""
    for seen, level, alpha in ((0, 1, 1), (150, 1, 1), (230, 2, 0.3)):
        same_state(f"from level 1, after {seen} images", growth(first=1).at(seen), (level, alpha))


@grades("growth")
def test_growth_options():
    """`skipped` images count as seen; a sine follows (1 - cos(pi alpha)) / 2"""
    same_state("50 images, 175 skipped", growth(skipped=175).at(50), (1, 0.25))
    same_state("half a sine, a quarter in", growth(sine=True).at(225), (1, (1 - math.cos(math.pi / 4)) / 2))


# ------------------------------------------------------------------------------------------------------------- r1

class Quadratic(nn.Module):
    """score(x) = x.A x / 2 + b.x, whose gradient is (A + A^T) x / 2 + b."""

    def __init__(self, n):
        super().__init__()
        self.A, self.b = nn.Parameter(randn(n, n)), nn.Parameter(randn(n))

    def forward(self, x):
        x = x.flatten(1)
        return ((x @ self.A * x).sum(1) / 2 + x @ self.b)[:, None]

    def penalty(self, x, A):
        return (((x @ (A + A.T) / 2 + self.b.detach().numpy())**2).sum(1)).mean()


@grades("r1")
def test_r1_by_hand():
    """of a quadratic critic, whose gradient is known"""
    c, x = Quadratic(4), randn(3, 4).requires_grad_()
    same("E ||grad_x score||^2 (Mescheder et al., eq. 9)", common.r1(c(x), x),
         c.penalty(x.detach().numpy(), c.A.detach().numpy()))


@grades("r1")
def test_r1_of_images():
    """sums over channels and pixels, averages over the batch"""
    x = randn(5, 2, 3, 3).requires_grad_()
    same("eq. 9: a score that sums 18 pixels has gradient 1 in each", common.r1(x.sum((1, 2, 3))[:, None], x), 18)


@grades("r1")
def test_r1_is_a_mean_of_squares():
    """and not the square of a mean: two images with opposite gradients"""
    x = torch.tensor([[2.0], [-2.0]]).requires_grad_()
    same("eq. 9: gradients 2 and -2", common.r1(x.square() / 2, x), 4)


@grades("r1")
def test_r1_is_trained():
    """its gradient reaches the critic: the graph is kept"""
    c, x = Quadratic(3), randn(4, 3).requires_grad_()
    loss = common.r1(c(x), x)
    check(loss.requires_grad, "eq. 9: no gradient of R1 reaches the critic (create_graph)")
    loss.backward()
    same("eq. 9: the gradient of R1 at the critic's weights, by finite differences", c.A.grad,
         slope(lambda A: c.penalty(x.detach().numpy(), A), c.A.detach().numpy()), rtol=1e-3)


# -------------------------------------------------------------------------------------------------- ALAE's steps

def alae_step(heading, steps=1, mean_w=None, **flags):
    """Runs one paragraph of `alae.train_step`.  -> what it sets, x and z, the matrices before, the gradients"""
    nets = F, G, E, D = [Matrix(3, 4), Matrix(4, 5), Matrix(5, 4), Matrix(4, 1)]
    opt, before = descent(F=F, G=G, E=E, D=D), value(*nets)
    zs, x = drawn(6, 3, steps), randn(6, 5)
    args = Namespace(**{**dict(gamma=3.0, latent_loss="sum", step3="EG", nw=4), **flags})

    def closed_r1(scores, at):              # of a linear critic, whatever the images are
        check(at.requires_grad, "line 6: R1 needs x.requires_grad_()")
        same("line 6: R1 is at the real images", at, x)
        grad = torch.autograd.grad(scores.sum(), at, retain_graph=True)[0]
        same("line 6: R1 is of the scores of x", grad, np.broadcast_to(before[3] @ before[2], (6, 5)))
        return (E.A.T @ D.A[0]).square().sum()
    with patch("alae.mean_softplus", logistic), patch("alae.r1", closed_r1):
        made = alone("alae", "train_step", heading)(nets, opt, x.clone(), Codes(*zs), args, nullcontext, mean_w)
    return made, nets, x.numpy(), [z.numpy() for z in zs], before, moved(before, *nets)


def step_1(gamma=3.0, **more):
    made, nets, x, (z,), (A, B, C, d), grads = alae_step("Step I:", gamma=gamma, **more)
    fake = z @ A.T @ B.T
    return made, nets, x, z, (A, B, C, d[0]), fake, fake @ C.T @ d[0], x @ C.T @ d[0], grads


@grades("alae-1")
def test_step_1_losses():
    """L_ED and R1 of line 6"""
    made, _, _, _, (_, _, C, d), _, s_f, s_r, _ = step_1()
    same("line 6: L_ED = f(D(E(fake))) + f(-D(E(x)))", made["L_ED"], numpy_logistic(s_f) + numpy_logistic(-s_r))
    same("line 6: R1 = gamma / 2 ||grad||^2", made["R1"], 1.5 * ((C.T @ d)**2).sum())


@grades("alae-1")
def test_step_1_moves_E_and_D():
    """down the gradient of line 7, worked out by hand"""
    _, _, x, _, (_, _, C, d), fake, s_f, s_r, (_, _, dC, dd) = step_1()
    pull = (sigmoid(s_f) @ fake - sigmoid(-s_r) @ x) / 6 + 3 * C.T @ d
    same("line 7: the gradient of E", dC, np.outer(d, pull))
    same("line 7: the gradient of D", dd[0], C @ pull)


@grades("alae-1")
def test_step_1_moves_no_other():
    """F and G stay"""
    *_, (dA, dB, _, _) = step_1()
    same("line 7: F stays", dA, np.zeros((4, 3)))
    same("line 7: G stays", dB, np.zeros((5, 4)))


@grades("alae-1")
def test_step_1_holds_the_fakes():
    """no graph through F and G (no_grad or detach)"""
    _, (_, _, E, _), *_ = step_1()
    seen = sum(len(t) for t in E.seen)
    check(seen == 12, f"line 6: expected E of fakes and of x, 12 images, got {seen}")
    check(not any(t.grad_fn for t in E.seen), "line 5: the fakes carry a graph of F and G: hold them")


@grades("alae-1")
def test_step_1_mean_w():
    """the running mean of w keeps MEAN_W, and is changed in place"""
    mean_w = torch.ones(4)
    _, _, _, z, (A, *_), *_ = step_1(mean_w=mean_w)
    import alae
    same("the running mean of w", mean_w, alae.MEAN_W + (1 - alae.MEAN_W) * (z @ A.T).mean(0))


def step_2():
    made, _, _, (z,), (A, B, C, d), grads = alae_step("Step II:")
    return made, z, (A, B, C, d[0]), z @ A.T @ B.T @ C.T @ d[0], grads


@grades("alae-2")
def test_step_2_loss():
    """L_FG of line 10, which does not saturate"""
    made, _, _, s_f, _ = step_2()
    same("line 10: L_FG = f(-D(E(G(F(z)))))", made["L_FG"], numpy_logistic(-s_f))


@grades("alae-2")
def test_step_2_moves_F_and_G():
    """down the gradient of line 11, worked out by hand"""
    _, z, (A, B, C, d), s_f, (dA, dB, _, _) = step_2()
    g = -sigmoid(-s_f) / 6
    same("line 11: the gradient of F", dA, np.outer(B.T @ C.T @ d, g @ z))
    same("line 11: the gradient of G", dB, np.outer(C.T @ d, g @ (z @ A.T)))


@grades("alae-2")
def test_step_2_moves_no_other():
    """E and D stay"""
    *_, (_, _, dC, dd) = step_2()
    same("line 11: E stays", dC, np.zeros((4, 5)))
    same("line 11: D stays", dd, np.zeros((1, 4)))


def step_3(**flags):
    made, _, _, (z,), (A, B, C, _), grads = alae_step("Step III:", **flags)
    w = z @ A.T
    return made, z, (A, B, C), w, w - w @ B.T @ C.T, grads


@grades("alae-3")
def test_step_3_loss():
    """eq. 8: a sum over w's dimensions, a mean over the batch"""
    made, _, _, _, e, _ = step_3()
    same("line 14 and eq. 8: L_EG", made["L_EG"], (e**2).sum(1).mean())


@grades("alae-3")
def test_step_3_mean():
    """--latent-loss mean divides by the number of dimensions"""
    made, _, _, _, e, _ = step_3(latent_loss="mean")
    same("L_EG with --latent-loss mean", made["L_EG"], (e**2).mean())


@grades("alae-3")
def test_step_3_moves_E_and_G():
    """down the gradient of line 15; F and D stay"""
    _, _, (_, B, C), w, e, (dA, dB, dC, dd) = step_3()
    same("line 15: the gradient of E", dC, -2 / 6 * e.T @ (w @ B.T))
    same("line 15: the gradient of G", dB, -2 / 6 * (e @ C).T @ w)
    same("line 15: F stays", dA, np.zeros((4, 3)))
    same("line 15: D stays", dd, np.zeros((1, 4)))


@grades("alae-3")
def test_step_3_EGF():
    """the code's step: F moves too, through G alone, because w itself is held"""
    _, z, (_, B, C), w, e, (dA, dB, dC, dd) = step_3(step3="EGF")
    same("--step3 EGF: the gradient of E", dC, -2 / 6 * e.T @ (w @ B.T))
    same("--step3 EGF: the gradient of G", dB, -2 / 6 * (e @ C).T @ w)
    same("--step3 EGF: D stays", dd, np.zeros((1, 4)))
    same("--step3 EGF: the gradient of F, w as a target held", dA, -2 / 6 * (e @ C @ B).T @ z)


# ------------------------------------------------------------------------------------------- coupling and affine

def flow(coupling="additive", depth=3):
    """A network of 6 dimensions whose shift and scale are known functions of the top half."""
    with patch("lia.EqualLinear", Dense):
        phi = lia.InvertibleNetwork(6, depth, coupling)
    K = randn(3, 3)
    phi.numbers = {id(tau): i for i, tau in enumerate(phi.tau)}

    def shift_and_scale(tau, top):
        h = torch.tanh(top.double() @ K + phi.numbers[id(tau)]).to(top.dtype)
        return h, (1.5 + h if coupling == "affine" else 1)
    phi._shift_and_scale = shift_and_scale
    return phi, K.numpy()


def flow_by_hand(w, K, affine, depth=3):
    for i in range(depth):
        top, bottom = w[:, :3], w[:, 3:]
        h = np.tanh(top @ K + i)
        w = np.concatenate([top, (bottom + h) * (1.5 + h if affine else 1)], 1)[:, ::-1]
    return w


@grades("coupling")
def test_coupling_forward():
    """w -> z: the bottom half is shifted, then scaled; the order of dimensions is reversed after each coupling"""
    for coupling in ("additive", "affine"):
        (phi, K), w = flow(coupling), randn(4, 6)
        same(f"LIA eq. 3, {coupling}: z", phi.to_z(w), flow_by_hand(w.numpy(), K, coupling == "affine"))


@grades("coupling")
def test_coupling_inverse():
    """z -> w takes z back, in float64 to the last digits, in both orders"""
    for coupling in ("additive", "affine"):
        (phi, _), w = flow(coupling, 4), randn(5, 6)
        same(f"LIA eq. 4, {coupling}: to_w(to_z(w))", phi.to_w(phi.to_z(w)), w, rtol=1e-9, atol=1e-9)
        same(f"LIA eq. 4, {coupling}: to_z(to_w(z))", phi.to_z(phi.to_w(w)), w, rtol=1e-9, atol=1e-9)


@grades("coupling")
def test_coupling_inverse_by_hand():
    """one coupling, from z"""
    (phi, K), z = flow("affine", 1), randn(4, 6)
    x = z.numpy()[:, ::-1]
    h = np.tanh(x[:, :3] @ K)
    same("LIA eq. 4: w = [top, bottom / scale - shift]", phi.to_w(z),
         np.concatenate([x[:, :3], x[:, 3:] / (1.5 + h) - h], 1))


@grades("coupling")
def test_coupling_keeps_the_volume():
    """an additive coupling's Jacobian has determinant 1 or -1"""
    (phi, _), w = flow(), randn(6)
    J = torch.autograd.functional.jacobian(lambda w: phi.to_z(w[None])[0], w)
    same("NICE: |det dz/dw|", torch.linalg.det(J).abs(), 1)


def coupling_net(coupling):
    with patch("lia.EqualLinear", Dense):
        phi = lia.InvertibleNetwork(6, 1, coupling)
    for p in phi.parameters():
        nn.init.normal_(p)
    top = randn(4, 3)
    h = top.numpy()
    for layer in phi.tau[0]:
        h = h @ layer.weight.detach().numpy().T
        h = np.where(h > 0, h, 0.2 * h)
    return phi, top, h


@grades("affine")
def test_additive_shift():
    """two layers, with leaky ReLU 0.2 after both"""
    phi, top, h = coupling_net("additive")
    same("LIA eq. 3: tau(top half)", phi._shift_and_scale(phi.tau[0], top)[0], h)


@grades("affine")
def test_additive_scale():
    """is 1"""
    phi, top, _ = coupling_net("additive")
    scale = torch.as_tensor(phi._shift_and_scale(phi.tau[0], top)[1], dtype=torch.float64)
    same("LIA eq. 3: an additive coupling's scale", scale.expand(4, 3), torch.ones(4, 3))


@grades("affine")
def test_affine_shift_and_scale():
    """the first half of the outputs is the shift, sigmoid(h + 2) of the second the scale"""
    phi, top, h = coupling_net("affine")
    shift, scale = phi._shift_and_scale(phi.tau[0], top)
    same("Glow, table 1: the shift", shift, h[:, :3])
    same("Glow: the scale, sigmoid(h + 2)", scale, sigmoid(h[:, 3:] + 2))


# ------------------------------------------------------------------------------------------------------------ LIA

def wrong_sign_free(fake, form):
    """What phi, g and f minimise: known, for the stages."""
    return logistic(-fake) if form == "logistic" else fake.double().sum() * -1 / len(fake)


@grades("lia-critic", lia_mean_softplus=logistic)
def test_critic_loss():
    """c is large for real images"""
    fake, real = randn(5, 1), randn(5, 1)
    f, r = fake.numpy(), real.numpy()
    same("LIA eq. 6: E c(x~) - E c(x)", lia.critic_loss(fake, real, "wasserstein"), f.mean() - r.mean())
    same("the logistic loss in place of eq. 6", lia.critic_loss(fake, real, "logistic"),
         numpy_logistic(f) + numpy_logistic(-r))


@grades("lia-critic", lia_mean_softplus=logistic)
def test_adversarial_loss():
    """who is judged raises the score"""
    fake = randn(5, 1)
    same("LIA eq. 7: - E c(x~)", lia.adversarial_loss(fake, "wasserstein"), -fake.numpy().mean())
    same("the logistic loss, which does not saturate", lia.adversarial_loss(fake, "logistic"),
         numpy_logistic(-fake.numpy()))


def critic_moves(form="wasserstein"):
    c, fake, x = Matrix(4, 1), randn(6, 4), randn(6, 4)
    (d,), opt = value(c), descent(c=c)

    def closed_r1(scores, x):
        same("LIA eq. 6: R1 is of the scores of x",
             torch.autograd.grad(scores.sum(), x, retain_graph=True)[0], np.broadcast_to(d, (6, 4)))
        return c.A.square().sum()
    with patch("lia.mean_softplus", logistic), patch("lia.r1", closed_r1):
        made = lia.move_critic(c, opt.c, fake, x.clone(), Namespace(gamma=3.0, adversarial=form), nullcontext)
    return made, fake.numpy(), x.numpy(), d, moved([d], c)[0]


@grades("lia-critic")
def test_move_critic_losses():
    """gives the loss without R1's term, and that term"""
    (L_c, R1), fake, x, d, _ = critic_moves()
    same("LIA eq. 6 without R1", L_c, (fake @ d.T).mean() - (x @ d.T).mean())
    same("LIA eq. 6: gamma / 2 ||grad c||^2", R1, 1.5 * (d**2).sum())


@grades("lia-critic")
def test_move_critic_gradient():
    """c goes down the loss plus R1: eq. 7 prints + R1 under a max, which would reward steep critics"""
    _, fake, x, d, dd = critic_moves()
    same("LIA eq. 6: the gradient of c", dd[0], fake.mean(0) - x.mean(0) + 3 * d[0])
    (L_c, _), fake, x, d, dd = critic_moves("logistic")
    s_f, s_r = fake @ d[0], x @ d[0]
    same("--adversarial logistic: L_c", L_c, numpy_logistic(s_f) + numpy_logistic(-s_r))
    same("--adversarial logistic: the gradient of c", dd[0],
         (sigmoid(s_f) @ fake - sigmoid(-s_r) @ x) / 6 + 3 * d[0])


def stage_1(mean_w=None, form="wasserstein"):
    phi, g, c = nets = Matrix(3, 4), Matrix(4, 5), Matrix(5, 1)
    before, zs, x, calls = value(*nets), drawn(6, 3, 2), randn(6, 5), []

    def move_critic(c, opt_c, fake, x, args, amp):
        calls.append((fake, x))
        return torch.tensor(3.0), torch.tensor(4.0)
    args = Namespace(gamma=3.0, adversarial=form)
    with patch("lia.move_critic", move_critic), patch("lia.adversarial_loss", wrong_sign_free):
        made = lia.decoder_step(nets, descent(phi=phi, g=g, c=c), x, Codes(*zs), args, mean_w=mean_w)
    check(len(calls) == 1, f"LIA 3.1: expected one step of the critic by move_critic, got {len(calls)}")
    return made, calls[0], [z.numpy() for z in zs], x, before, moved(before, *nets)


@grades("lia-1")
def test_stage_1_critic():
    """gets g(phi^-1(z)), held, and the real images"""
    _, (fake, real), zs, x, (A, B, _), _ = stage_1()
    same("LIA eq. 10: x~ = g(phi^-1(z))", fake, zs[0] @ A.T @ B.T)
    check(real is x, "LIA 3.1: the critic's real images are x")
    check(not fake.requires_grad, "LIA 3.1: x~ carries a graph of phi and g: hold it for the critic")


@grades("lia-1")
def test_stage_1_losses():
    """L_c, R1's term, L_g, the last of a new z"""
    (L_c, R1, L_g), _, zs, _, (A, B, d), _ = stage_1()
    same("LIA eq. 7: L_c", L_c, 3)
    same("LIA eq. 7: R1's term", R1, 4)
    same("LIA eq. 7: L_g = - E c(g(phi^-1(z)))", L_g, -(zs[1] @ A.T @ B.T @ d[0]).mean())
    (*_, L_g), _, zs, _, (A, B, d), _ = stage_1(form="logistic")
    same("--adversarial logistic: L_g", L_g, numpy_logistic(-zs[1] @ A.T @ B.T @ d[0]))


@grades("lia-1")
def test_stage_1_moves_phi_and_g():
    """down the gradient, worked out by hand; c stays"""
    _, _, zs, _, (A, B, d), (dA, dB, dd) = stage_1()
    same("LIA eq. 7: the gradient of phi", dA, -np.outer(B.T @ d[0], zs[1].mean(0)))
    same("LIA eq. 7: the gradient of g", dB, -np.outer(d[0], (zs[1] @ A.T).mean(0)))
    same("LIA eq. 7: c stays", dd, np.zeros((1, 5)))


@grades("lia-1")
def test_stage_1_mean_w():
    """the running mean of w keeps MEAN_W, and is changed in place"""
    mean_w = torch.ones(4)
    _, _, zs, _, (A, *_), _ = stage_1(mean_w)
    same("the running mean of w", mean_w, lia.MEAN_W + (1 - lia.MEAN_W) * (zs[0] @ A.T).mean(0))


def stage_2(**flags):
    args = Namespace(**{**dict(inference="encoder", perceptual_norm="l2", beta=0.5, pixel_weight=0.0, gamma=1.0,
        adversarial_weight=0.7, adversarial="wasserstein", critic="finetune", kl_weight=0.1), **flags})
    vae = args.inference == "vae"
    nets = Matrix(5, 6 if vae else 4), Matrix(4, 5), Matrix(5, 1), Matrix(3, 4)
    P, before, zs, x, calls = randn(3, 5), value(*nets), drawn(6, 3, 1), randn(6, 5), []

    def move_critic(c, opt_c, fake, x, args, amp):
        calls.append((fake, x))
        return torch.tensor(3.0), torch.tensor(4.0)
    with patch("lia.move_critic", move_critic), patch("lia.adversarial_loss", wrong_sign_free):
        made = lia.encoder_step(nets, descent(f=nets[0], c=nets[2]), x, lambda x: x @ P.T, Codes(*zs), args)
    return made, calls, args, x.numpy(), zs[0].numpy(), before, P.numpy(), moved(before, *nets)


def stage_2_by_hand(C, args, x, z, B, d, A, P):
    """-> L_rec, L_adv, divergence, of f's matrix C."""
    w, divergence = x @ C.T, 0.0
    if args.inference == "vae":
        mu, logvar = w[:, :3], w[:, 3:]
        divergence = args.kl_weight * ((mu**2 + np.exp(logvar) - 1 - logvar) / 2).sum(1).mean()
        w = (mu + np.exp(logvar / 2) * z) @ A.T
    x_hat = w @ B.T
    e = (x - x_hat) @ P.T
    L_eps = (e**2).mean() if args.perceptual_norm == "mse" else np.sqrt((e**2).sum(1)).mean()
    L_rec = args.beta * L_eps + args.pixel_weight * ((x - x_hat)**2).mean()
    scores = x_hat @ d[0]
    L_adv = numpy_logistic(-scores) if args.adversarial == "logistic" else -scores.mean()
    return L_rec, args.adversarial_weight * L_adv, divergence


def assert_stage_2(**flags):
    made, _, args, x, z, (C, B, d, A), P, (dC, dB, dd, dA) = stage_2(**flags)
    expected = stage_2_by_hand(C, args, x, z, B, d, A, P)
    for what, got, value in zip(("eq. 5: the reconstruction", "eq. 8: the critic's term"), made, expected):
        same(f"LIA {what}", got, value)
    if args.inference == "vae":
        same("LIA eq. 1: the divergence", made[4], expected[2])
    same("LIA eq. 8: the gradient of f, by finite differences", dC,
         slope(lambda C: sum(stage_2_by_hand(C, args, x, z, B, d, A, P)), C), rtol=1e-3, atol=1e-5)
    for name, grad in (("g", dB), ("c", dd), ("phi", dA)):
        same(f"LIA eq. 8: {name} stays", grad, np.zeros_like(grad))


@grades("lia-2")
def test_perceptual_loss():
    """eq. 5: the norm of each image's difference, and not its square; a mean over the batch"""
    x, y = randn(4, 2, 3, 3), randn(4, 2, 3, 3)
    d = 3 * (x - y).numpy().reshape(4, -1)
    same("LIA eq. 5", lia.perceptual_loss(lambda x: 3 * x, x, y, "l2"), np.sqrt((d**2).sum(1)).mean())
    same("the mean square in place of eq. 5", lia.perceptual_loss(lambda x: 3 * x, x, y, "mse"), (d**2).mean())


@grades("lia-2")
def test_kl():
    """eq. 1: 0 at N(0, 1), the closed form elsewhere"""
    same("LIA eq. 1: KL(N(0, 1) || N(0, 1))", lia.kl(torch.zeros(3, 4), torch.zeros(3, 4)), 0)
    same("LIA eq. 1: KL(N(1, 4) || N(0, 1)) in two dimensions",
         lia.kl(torch.ones(3, 2), torch.full((3, 2), math.log(4))), 2 * (1 + 4 - 1 - math.log(4)) / 2)


@grades("lia-2")
def test_stage_2_f():
    """moves down eq. 8; g, c and phi stay"""
    assert_stage_2()
    assert_stage_2(perceptual_norm="mse", pixel_weight=2.0, adversarial="logistic")


@grades("lia-2")
def test_stage_2_vae():
    """z = mu + sigma eps, and the divergence"""
    assert_stage_2(inference="vae")


@grades("lia-2")
def test_stage_2_critic():
    """learns on g(f(x)) from before f moved, held; not at all with --critic frozen"""
    made, calls, _, x, _, (C, B, *_), *_ = stage_2()
    check(len(calls) == 1, f"LIA 3.2: expected one step of the critic by move_critic, got {len(calls)}")
    fake, real = calls[0]
    same("LIA 3.2: x~ = g(f(x)) from before f moved", fake, x @ C.T @ B.T)
    check(not fake.requires_grad, "LIA 3.2: x~ carries the graph of f: detach it for the critic")
    same("LIA 3.2: the real images", real, x)
    same("L_c and R1's term", torch.stack([*made[2:4]]), [3, 4])
    made, calls, *_ = stage_2(critic="frozen")
    check(not calls, "--critic frozen: c must not move")
    same("--critic frozen: L_c and R1's term", torch.stack([*made[2:4]]), [0, 0])


# ---------------------------------------------------------------------------------------------------------- F-AAE

def faae_phase(*headings, steps=1, gamma=0.0):
    G, E, D = Matrix(3, 5), Matrix(5, 3), Matrix(5, 1)
    before, zs, x = value(G, E, D), drawn(6, 3, steps), randn(6, 5)
    h = Namespace(W_re=7.0, W_adv=0.3, gamma=gamma, d=lambda a, b: (a.double() - b.double()).abs().sum() / len(a))

    def closed_r1(scores, x):
        same("R1 is of the scores of x", torch.autograd.grad(scores.sum(), x, retain_graph=True)[0],
             np.broadcast_to(before[2], (6, 5)))
        return D.A.square().sum()
    with patch("faae.mean_softplus", logistic), patch("faae.r1", closed_r1):
        made = alone("faae", "faae", *headings)((G, E, D), descent(G=G, E=E, D=D), x, Codes(*zs), nullcontext, h)
    return made, (G, E, D), x.detach().numpy(), [z.numpy() for z in zs], before, moved(before, G, E, D)


def reencoding():
    made, _, _, (z,), (B, C, _), grads = faae_phase("Re-encoding phase")
    return made, z, B, C, np.sign(z - z @ B.T @ C.T), grads


@grades("faae-1")
def test_reencoding_loss():
    """the distance h.d of z and E(G(z)), unweighted"""
    made, z, B, C, _, _ = reencoding()
    same("F-AAE eq. 4: d(z, E(G(z))), here a sum of |.|", made["L_re"], abs(z - z @ B.T @ C.T).sum() / 6)


@grades("faae-1")
def test_reencoding_moves_G():
    """W_re times the gradient of d"""
    _, z, _, C, s, (dB, _, _) = reencoding()
    same("F-AAE eq. 4: the gradient of G, times W_re", dB, -7 / 6 * (s @ C).T @ z)


@grades("faae-1")
def test_reencoding_moves_E():
    """as much, and D stays"""
    _, z, B, _, s, (_, dC, dd) = reencoding()
    same("F-AAE eq. 4: the gradient of E, times W_re", dC, -7 / 6 * s.T @ (z @ B.T))
    same("F-AAE 3.1: D stays", dd, np.zeros((1, 5)))


REGULARISATION = ("Regularisation phase", "... and G confuses it")


def regularisation(gamma=0.0):
    made, nets, x, zs, (B, _, d), grads = faae_phase(*REGULARISATION, steps=2, gamma=gamma)
    return made, nets, x, zs, B, d[0], grads


@grades("faae-2")
def test_regularisation_judges():
    """L_D: real images are real, generated ones are not"""
    made, _, x, zs, B, d, (_, _, dd) = regularisation()
    fake = zs[0] @ B.T
    same("F-AAE eq. 4: L_D = -log D(x) - log(1 - D(G(z)))", made["L_D"],
         numpy_logistic(-x @ d) + numpy_logistic(fake @ d))
    same("F-AAE eq. 4: the gradient of D", dd[0], (sigmoid(fake @ d) @ fake - sigmoid(-x @ d) @ x) / 6)


@grades("faae-2")
def test_regularisation_with_R1():
    """h.gamma / 2 times R1 of real images is added to D's loss"""
    _, _, x, zs, B, d, (_, _, dd) = regularisation(gamma=4.0)
    fake = zs[0] @ B.T
    same("R1: the gradient of gamma / 2 ||d D(x) / dx||^2, which is gamma D here", dd[0],
         (sigmoid(fake @ d) @ fake - sigmoid(-x @ d) @ x) / 6 + 4 * d)


@grades("faae-2")
def test_regularisation_confuses():
    """L_G by D as it is now, of a new z; G goes down W_adv times its gradient"""
    made, _, _, zs, B, d, (dB, _, dd) = regularisation()
    d = d - dd[0]
    s = zs[1] @ B.T @ d
    same("F-AAE eq. 4: L_G = -log D(G(z)), after D's step", made["L_G"], numpy_logistic(-s))
    same("F-AAE eq. 4: the gradient of G, times W_adv", dB, -0.3 / 6 * np.outer(d, sigmoid(-s) @ zs[1]))


@grades("faae-2")
def test_regularisation_moves_no_other():
    """E stays, and D's step holds the images of G"""
    _, (_, _, D), *_, (_, dC, _) = regularisation()
    same("F-AAE 3.1: E stays", dC, np.zeros((3, 5)))
    judged = sum(len(t) for t in D.seen)
    check(judged == 18, f"F-AAE eq. 4: expected D of x, of generated images, and of those of a new z, 18 images, got "
          f"{judged}")
    check(sum(t.grad_fn is not None for t in D.seen) == 1, "F-AAE eq. 4: D's step carries G's graph: hold its images")


class Pair(Matrix):
    def forward(self, x, z):
        return super().forward(torch.cat([x, z], 1))


def bigan(moves="GED"):
    G, E, D = Matrix(3, 5), Matrix(5, 3), Pair(8, 1)
    before, zs, x, opt = value(G, E, D), drawn(6, 3, 2), randn(6, 5), descent(G=G, E=E, D=D)
    for name, optimizer in vars(opt).items():
        optimizer.param_groups[0]["lr"] = float(name in moves)
    with patch("faae.mean_softplus", logistic):
        made = faae.bigan((G, E, D), opt, x, Codes(*zs), nullcontext, None)
    return made, D, x.numpy(), [z.numpy() for z in zs], before, moved(before, G, E, D)


def bigan_loss(B, C, d, x, z, real):
    """The loss of D (real = -1), or of G and E (1), who swap the labels."""
    scores = [np.concatenate(pair, 1) @ d[0] for pair in ((x, x @ C.T), (z @ B.T, z))]
    return numpy_logistic(real * scores[0]) + numpy_logistic(-real * scores[1])


@grades("bigan")
def test_bigan_losses():
    """of D, and of G and E with the other labels, by D as it is then"""
    (L_D, L_GE), _, x, zs, (B, C, d), (_, _, dd) = bigan()
    same("F-AAE eq. 3: L_D = -log D(x, E(x)) - log(1 - D(G(z), z))", L_D, bigan_loss(B, C, d, x, zs[0], -1))
    same("F-AAE eq. 3: L_GE, labels swapped, after D's step", L_GE, bigan_loss(B, C, d - dd, x, zs[1], 1))


@grades("bigan")
def test_bigan_moves_D():
    """once, down its loss"""
    *_, x, zs, (B, C, d), (_, _, dd) = bigan()
    same("F-AAE eq. 3: the gradient of D, by finite differences", dd,
         slope(lambda d: bigan_loss(B, C, d, x, zs[0], -1), d), atol=1e-5)


@grades("bigan")
def test_bigan_moves_G_and_E():
    """both, down the loss with swapped labels"""
    *_, x, zs, (B, C, d), (dB, dC, _) = bigan(moves="GE")
    same("F-AAE eq. 3: the gradient of G", dB, slope(lambda B: bigan_loss(B, C, d, x, zs[1], 1), B), atol=1e-5)
    same("F-AAE eq. 3: the gradient of E", dC, slope(lambda C: bigan_loss(B, C, d, x, zs[1], 1), C), atol=1e-5)


@grades("bigan")
def test_bigan_holds_the_pairs():
    """in D's step: neither images nor codes carry a graph of G and E"""
    _, D, *_ = bigan()
    scored = [len(t) for t in D.seen]
    check(scored == [12, 12], f"F-AAE eq. 3: expected 12 pairs for D in one batch, and 12 more, got {scored}")
    held = sum(len(t) for t in D.seen if not t.requires_grad)
    check(held >= 12, "F-AAE eq. 3: D's step carries a graph of G or E: hold its pairs")


# --------------------------------------------------------------------------------------------------------- InvGAN

def mmd_by_hand(a, b, median=None):
    both = np.concatenate([a, b])
    far = [((p - q)**2).sum() for i, p in enumerate(both) for j, q in enumerate(both) if i != j]
    median = median or sorted(far)[(len(far) - 1) // 2]

    def k(p, q):
        return np.mean([np.exp(-((p - q)**2).sum() / (s * median)) for s in (0.25, 1, 4)])
    aa = np.mean([k(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j])
    bb = np.mean([k(p, q) for i, p in enumerate(b) for j, q in enumerate(b) if i != j])
    return aa + bb - 2 * np.mean([k(p, q) for p in a for q in b]), median


@grades("mmd")
def test_mmd_by_hand():
    """pair by pair, a pair of one code with itself left out"""
    a, b = randn(4, 3), randn(3, 3) + 0.5                       # 21 pairs, so that one is in the middle
    same("InvGAN 3.2: MMD^2", invgan.mmd(a, b), mmd_by_hand(a.numpy(), b.numpy())[0])


@grades("mmd")
def test_mmd_is_unbiased():
    """its mean over sets of one distribution is 0, so half of the values are negative"""
    values = torch.stack([invgan.mmd(randn(4, 2), randn(4, 2)) for _ in range(400)])
    same("InvGAN 3.2: the mean of MMD^2 where a and b are alike", values.mean(), 0, atol=4 * float(values.std()) / 20)
    check((values < 0).any(), "InvGAN 3.2: the unbiased estimate may be negative; this one never is")


@grades("mmd")
def test_mmd_grows_with_distance():
    """from about 0 to 2 at most"""
    a, b = randn(30, 2), randn(30, 2)
    near, far = float(invgan.mmd(a, b)), float(invgan.mmd(a, b + 5))
    check(near < 0.2 < 0.5 < far < 2, f"InvGAN 3.2: expected MMD^2 near 0 for like sets and in (0.5, 2) for far ones, "
          f"got {near:.3g} and {far:.3g}")


@grades("mmd")
def test_mmd_holds_its_bandwidth():
    """the gradient does not go through the median"""
    a, b = randn(5, 2).requires_grad_(), randn(2, 2)            # the median is of a pair with a code of a
    median = mmd_by_hand(a.detach().numpy(), b.numpy())[1]
    invgan.mmd(a, b).backward()
    same("InvGAN 3.2: the gradient at a, the median held", a.grad,
         slope(lambda a: mmd_by_hand(a, b.numpy(), median)[0], a.detach().numpy()), rtol=2e-3, atol=1e-5)


class Judged(NamedTuple):
    code: torch.Tensor
    score: torch.Tensor
    features: torch.Tensor


class TwoHeads(nn.Module):
    """D: features tanh(T x), a code P f, a score q f."""

    def __init__(self):
        super().__init__()
        self.T, self.P, self.q = (nn.Parameter(randn(*size)) for size in ((4, 5), (3, 4), (1, 4)))
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        f = torch.tanh(x @ self.T.T)
        return Judged(f @ self.P.T, f @ self.q.T, f)


def known_mmd(a, b):
    """Stands in for the real one: a distance of means."""
    return (a.double().mean(0) - b.double().mean(0)).square().sum()


class Setting:
    """One call of a variant.  loss(name) -> a term worked out by numpy, of matrices of which some are held."""

    def __init__(self, variant, mover, fm="paired", targets="held"):
        self.M, self.G, self.D = Matrix(2, 3), Matrix(3, 5), TwoHeads()
        self.z, self.x = randn(4, 2), randn(0 if variant == "naive" else 4, 5)
        self.now = dict(M=self.M.A, G=self.G.A, T=self.D.T, P=self.D.P, q=self.D.q)
        self.now = {name: p.detach().numpy().copy() for name, p in self.now.items()}
        self.variant, self.mover, self.fm, self.held = variant, mover, fm, targets == "held"
        with patch("invgan.mmd", known_mmd):
            self.fake, self.score, self.terms = getattr(invgan, variant)(
                (self.M, self.G, self.D), self.x, self.z, Namespace(fm=fm, targets=targets), nullcontext, mover)

    def expected(self, **change):
        """The terms at other matrices.  What the method holds is taken at the present ones."""
        now, p = self.now, {**self.now, **change}
        x, z = self.x.numpy(), self.z.numpy()

        def features(x, q=p):
            return np.tanh(x @ q["T"].T)
        f_of = now if self.mover == "D" and self.held else p
        of_x = now if self.mover == "MG" or self.variant == "augmented" else p
        w_R = features(x, of_x) @ of_x["P"].T
        w = np.concatenate([z @ p["M"].T, w_R])
        fake = w @ p["G"].T
        code = features(fake) @ p["P"].T
        target = np.concatenate([z @ now["M"].T, features(x, now) @ now["P"].T]) if self.held else w
        terms = dict(L_w=((target - code)**2).mean())
        if self.variant == "full":
            target_2 = features(target @ now["G"].T, now) @ now["P"].T if self.held else code
            again = features(code @ p["G"].T) @ p["P"].T
            f_x, f_fake = features(x, f_of), features(fake[len(z):], f_of)
            if self.fm == "paired":
                terms["L_fm"] = ((f_x - f_fake)**2).mean()
            else:
                terms["L_fm"] = np.linalg.norm(f_x.mean(0) - f_fake.mean(0))
            terms["L_cycle"] = ((target_2 - again)**2).mean()
            terms["L_MMD"] = (((z @ p["M"].T).mean(0) - w_R.mean(0))**2).sum()
        return terms, fake, features(fake) @ p["q"].T

    def assert_values(self):
        terms, fake, score = self.expected()
        same("InvGAN: fakes of w # w_R", self.fake, fake)
        same("InvGAN: their scores", self.score, score)
        check(set(self.terms) == set(terms), f"terms: expected {sorted(terms)}, got {sorted(self.terms)}")
        for name, number in terms.items():
            same(f"InvGAN {EQUATION[name]}: {name}", self.terms[name], number)

    def assert_gradients(self, name, *matrices):
        parameters = dict(M=self.M.A, G=self.G.A, T=self.D.T, P=self.D.P)
        for matrix in matrices:
            grad, = torch.autograd.grad(self.terms[name], parameters[matrix], retain_graph=True, allow_unused=True)
            number = slope(lambda p, matrix=matrix: self.expected(**{matrix: p})[0][name], self.now[matrix])
            same(f"InvGAN {EQUATION[name]}, step of {self.mover}: gradient of {name} at {OF[matrix]}",
                 torch.zeros(number.shape) if grad is None else grad, number, rtol=1e-3, atol=1e-5)


EQUATION = dict(L_w="eq. 3, first term", L_fm="eq. 2", L_cycle="eq. 3, third term", L_MMD="eq. 3, fourth term")
OF = dict(M="M", G="G", T="D's trunk", P="D's head of codes")


@grades("invgan")
def test_naive():
    """||w - D(G(w))||^2 of codes of M alone, w held as a target"""
    Setting("naive", "D").assert_values()
    Setting("naive", "D").assert_gradients("L_w", "T", "P")
    Setting("naive", "MG").assert_gradients("L_w", "M", "G")


@grades("invgan")
def test_augmented():
    """codes of real images too, through which no gradient goes"""
    Setting("augmented", "D").assert_values()
    Setting("augmented", "D").assert_gradients("L_w", "T", "P")
    Setting("augmented", "MG").assert_gradients("L_w", "M", "G")


@grades("invgan")
def test_full_values():
    """all four terms of eq. 3, features in pairs or as means"""
    Setting("full", "D").assert_values()
    Setting("full", "MG", fm="batchmean").assert_values()


@grades("invgan")
def test_full_w_and_cycle():
    """targets are held; in D's step w_R learns through G"""
    for name in ("L_w", "L_cycle"):
        Setting("full", "D").assert_gradients(name, "T", "P")
        Setting("full", "MG").assert_gradients(name, "M", "G")


@grades("invgan")
def test_full_features():
    """D's step: f's own weights are held, or they would shrink the features"""
    Setting("full", "D").assert_gradients("L_fm", "T", "P")
    Setting("full", "MG").assert_gradients("L_fm", "M", "G")


@grades("invgan")
def test_full_mmd():
    """teaches D through w_R, and M through w"""
    Setting("full", "D").assert_gradients("L_MMD", "T", "P")
    Setting("full", "MG").assert_gradients("L_MMD", "M")


@grades("invgan")
def test_targets_that_move():
    """--targets moving, as printed: w is trained as a target too, and f by D"""
    Setting("naive", "MG", targets="moving").assert_gradients("L_w", "M")
    for name in ("L_w", "L_cycle"):
        Setting("full", "MG", targets="moving").assert_gradients(name, "M", "G")
    for name in ("L_w", "L_cycle", "L_fm"):
        Setting("full", "D", targets="moving").assert_gradients(name, "T", "P")


@grades("invgan")
def test_one_batch():
    """w # w_R goes through G at once: batch norm must not tell the two apart"""
    for variant in ("augmented", "full"):
        rows = [len(w) for w in Setting(variant, "D").G.seen]
        check(rows[0] == 8, f"InvGAN 3.2, {variant}: expected G of w # w_R, 8 codes, first; got batches of {rows}")


# ------------------------------------------------------------------------------------------- measures of eval.py

def gaussian(d, seed):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(d, d))
    return torch.tensor(rng.normal(size=d)), torch.tensor(A @ A.T)


def frechet(a, b):
    import eval as evaluation
    return evaluation.frechet(a, b)


@grades("frechet")
def test_frechet_of_means():
    """equal covariances: |m_a - m_b|^2"""
    m, C = gaussian(4, 1)
    same("Heusel et al. eq. 6: equal sets", frechet((m, C), (m, C)), 0, atol=1e-6)
    same("Heusel et al. eq. 6: a shift by 2 in each of 4 dimensions", frechet((m, C), (m + 2, C)), 16)


@grades("frechet")
def test_frechet_of_independent_dimensions():
    """diagonal covariances: a sum of (sigma_a - sigma_b)^2"""
    zero = torch.zeros(3, dtype=torch.float64)
    a, b = torch.tensor([1.0, 4, 9]).double(), torch.tensor([4.0, 4, 1]).double()
    same("Heusel et al. eq. 6: deviations 1, 2, 3 and 2, 2, 1", frechet((zero, a.diag()), (zero, b.diag())), 1 + 0 + 4)


@grades("frechet")
def test_frechet_of_turned_ellipses():
    """covariances that do not commute, in two dimensions: tr S^1/2 = sqrt(tr S + 2 sqrt(det S)) of S = C_a C_b"""
    (m, C), (n, B) = gaussian(2, 2), gaussian(2, 3)
    S = C.numpy() @ B.numpy()
    cross = math.sqrt(np.trace(S) + 2 * math.sqrt(np.linalg.det(S)))
    same("Heusel et al. eq. 6", frechet((m, C), (n, B)),
         float((m - n).square().sum() + C.trace() + B.trace()) - 2 * cross)


@grades("frechet")
def test_frechet_of_flat_sets():
    """singular covariances, fewer images than features, whose eigenvalues may be rounded below 0"""
    m, A = torch.zeros(9, dtype=torch.float64), randn(9, 3)
    C = A @ A.T
    same("Heusel et al. eq. 6: C and 4 C, of rank 3 in 9 dimensions, are tr C apart", frechet((m, C), (m, 4 * C)),
         C.trace(), atol=1e-5)
    value = frechet((m, C), gaussian(9, 4))
    check(isinstance(value, float) and math.isfinite(value), f"Heusel et al. eq. 6: expected a float, got {value!r}")


def one_nn(*given):
    import eval as evaluation
    return evaluation.one_nn(*given)


@grades("one-nn")
def test_one_nn_by_hand():
    """one pair at a time"""
    train, labels, test, truth = randn(20, 3), torch.arange(20) % 4, randn(30, 3), torch.arange(30) % 4
    right = [labels[np.argmin([((t - x)**2).sum() for x in train.numpy()])] == y for t, y in zip(test.numpy(), truth)]
    same("ALAE 7.1: accuracy, %", one_nn(train, labels, test, truth), 100 * np.mean(right))


@grades("one-nn")
def test_one_nn_of_itself():
    """is right, always, also of more than a thousand"""
    x, y = randn(1100, 2), torch.arange(1100) % 7
    same("ALAE 7.1: accuracy of the training features, %", one_nn(x, y, x, y), 100)


@grades("one-nn")
def test_one_nn_takes_the_nearest():
    """in distance, and not in angle"""
    train = torch.tensor([[1.0, 0.0], [10.0, 10.0]])
    same("ALAE 7.1: (1, 1) is nearer to (1, 0) than to (10, 10)",
         one_nn(train, torch.tensor([0, 1]), torch.tensor([[1.0, 1.0]]), torch.tensor([0])), 100)


def svm(C=0.5, n=40, d=3, classes=3):
    """-> features, signs, and the weights that linear_svm finds."""
    import eval as evaluation
    x, y = randn(n, d), torch.arange(n) % classes
    x[:, 0] += y
    w = evaluation.linear_svm(x, y, classes, C)
    check(tuple(w.shape) == (d + 1, classes), f"w: expected shape {(d + 1, classes)}, got {tuple(w.shape)}")
    return np.pad(x.numpy(), ((0, 0), (0, 1)), constant_values=1), 2 * np.eye(classes)[y] - 1, w.numpy()


def svm_gradient(x, sign, w, C):
    """Of |w|^2 / 2 + C sum_i max(0, 1 - y_i w.x_i)^2, by class."""
    return w - 2 * C * x.T @ (sign * np.maximum(0, 1 - sign * (x @ w)))


@grades("svm")
def test_svm_is_the_minimum():
    """of the problem, whose gradient is 0 there"""
    for C in (0.5, 0.02):
        x, sign, w = svm(C)
        gradient = svm_gradient(x, sign, w, C)[:-1]
        same(f"LIBLINEAR eq. 3, C = {C}: the gradient at w", gradient, np.zeros((3, 3)), atol=2e-3)


@grades("svm")
def test_svm_regularises_the_bias():
    """as liblinear does: the bias, the last row of w, is one more weight"""
    x, sign, w = svm()
    same("LIBLINEAR eq. 3: the gradient at the bias", svm_gradient(x, sign, w, 0.5)[-1], np.zeros(3), atol=2e-3)


@grades("svm")
def test_svm_of_one_feature():
    """two points at -1 and 1: |w|^2/2 + 2 C (1 - w)^2 has its minimum at 4 C / (1 + 4 C)"""
    import eval as evaluation
    w = evaluation.linear_svm(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2, 0.25)
    same("LIBLINEAR eq. 3: w of class 1", w[:, 1], [0.5, 0], atol=1e-3)
