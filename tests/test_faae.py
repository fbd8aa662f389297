"""F-AAE and its family: each objective's iteration worked out by hand, networks, settings and loop."""
import copy
import json
import math
from argparse import Namespace
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT, TWO, assert_equal_runs, draws, log_of, run_here
from PIL import Image
from torch import nn
from torch.distributions import Normal, kl_divergence

import common
import data
import eval as evaluation
import faae

# -------------------------------------------------------------------------- each objective's iteration, by hand
# G = B, E = C, D = d, a matrix each.  A phase is (the networks that it moves, its loss in numpy); gradients are
# differences of that loss, so nothing here knows of autograd, of stopped gradients or of the order of the code's lines.

N, NZ, NX = 6, 3, 5


class Net(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.trunk, self.head = nn.Flatten(), nn.Linear(n_in, n_out, bias=False).double()

    def forward(self, x):
        return self.head(self.trunk(x))


def tiny_model(objective, norm=False):
    torch.manual_seed(1)
    E = {"ali": faae.GaussianEncoder, "age": faae.SphereEncoder}.get(objective, faae.Encoder)
    D = {"x": lambda: Net(NX, 1), "z": lambda: Net(NZ, 1),
         "x, z": lambda: faae.PairDiscriminator(nn.Flatten(), Net(NX + NZ, 1))}.get(faae.JUDGES.get(objective))
    model = nn.Module()
    model.G, model.E, model.D = Net(NZ, NX), E(Net(NX, NZ * (1 + (objective == "ali")))), D and D()
    if norm:
        model.D.net = nn.Sequential(nn.BatchNorm1d(NX + NZ, affine=False).double(), model.D.net)
    return model


def plus(t):
    return np.log1p(np.exp(t)).mean()


def on_sphere(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def length(e):
    return np.linalg.norm(e, axis=1).mean()


def kl(z):
    """KL of N(m, s^2) from N(0, 1) for each dimension of sqrt(nz) z: log(1/s) + (s^2 + m^2)/2 - 1/2."""
    z = z * math.sqrt(z.shape[1])
    s = np.sqrt(((z - z.mean(0))**2).mean(0))
    return np.mean(-np.log(s) + (s**2 + z.mean(0)**2) / 2 - 0.5)


def phases(objective, x, z):
    """-> [(networks moved, loss(B, C, d), its weight)], and which of the returned losses each phase's is.

    z: an iterator of draws, taken in the code's order.  Where a phase has several terms, None in place of its loss.
    """
    def G(B, z): return z @ B.T
    def E(C, x): return x @ C.T
    def D(d, *parts): return np.concatenate(parts, 1) @ d.T

    def gan(z):         # D's loss on images, with R1 if asked: of D(x) = d x the gradient is d
        penalty = 1.5 * ("r1" in objective)
        return lambda B, C, d: plus(-D(d, x)) + plus(D(d, G(B, z))) + penalty * (d**2).sum()
    L_D = None if "r1" in objective else 1          # returned without R1

    def fool(z):
        return lambda B, C, d: plus(-D(d, G(B, z)))

    def regress(z, distance):
        return lambda B, C, d: distance(z - E(C, G(B, z)))

    def square(e): return (e**2).sum(1).mean()
    def mean_square(e): return (e**2).mean()

    if objective in ("faae", "faae mse", "faae r1"):
        d_ = mean_square if "mse" in objective else length
        return [("GE", regress(next(z), d_), 100), ("D", gan(next(z)), 1), ("G", fool(next(z)), 0.1)], (0, L_D, 2)
    if objective == "faae joint":
        z1, z2 = next(z), next(z)
        return [("D", gan(z1), 1), ("GE", lambda *p: 100 * regress(z2, length)(*p) + 0.1 * fool(z2)(*p), 1)], (1, None)
    if objective == "aae":
        z1 = next(z)
        return [("GE", lambda B, C, d: length(x - G(B, on_sphere(E(C, x)))), 100),
                ("D", lambda B, C, d: plus(-D(d, z1)) + plus(D(d, E(C, x))), 1),
                ("E", lambda B, C, d: plus(-D(d, E(C, x))), 0.1)], (0, 1, 2)
    if objective in ("bigan", "bigan norm"):
        z1, z2 = next(z), next(z)

        def scores(B, C, d, z):     # real and generated pairs have one mean and one deviation
            pairs = np.concatenate([np.concatenate([x, E(C, x)], 1), np.concatenate([G(B, z), z], 1)])
            if "norm" in objective:
                pairs = (pairs - pairs.mean(0)) / np.sqrt(pairs.var(0) + 1e-5)
            return D(d, pairs[:N]), D(d, pairs[N:])

        def tell(B, C, d):
            real, fake = scores(B, C, d, z1)
            return plus(-real) + plus(fake)

        def confuse(B, C, d):
            real, fake = scores(B, C, d, z2)
            return plus(real) + plus(-fake)
        return [("D", tell, 1), ("GE", confuse, 1)], (0, 1)
    if objective == "ali":
        z1, e1, z2, e2 = (next(z) for _ in range(4))

        def q(C, e):
            h = E(C, x)
            return h[:, :NZ] + np.exp(h[:, NZ:] / 2) * e
        return [("D", lambda B, C, d: plus(-D(d, x, q(C, e1))) + plus(D(d, G(B, z1), z1)), 1),
                ("GE", lambda B, C, d: plus(D(d, x, q(C, e2))) + plus(-D(d, G(B, z2), z2)), 1)], (0, 1)
    if objective in ("age", "age celeba"):
        W_fake, steps = (1, 3) if "celeba" in objective else (0.5, 2)
        z1, *others = (next(z) for _ in range(1 + steps))

        def code(C, x): return on_sphere(E(C, x))

        def spread(z):
            return lambda B, C, d: kl(code(C, G(B, z))) + 1000 * (2 - (z * code(C, G(B, z))).mean())
        return [("E", lambda B, C, d: kl(code(C, x)) - W_fake * kl(code(C, G(B, z1))) + 10 * np.abs(
            x - G(B, code(C, x))).mean(), 1), *[("G", spread(z), 1) for z in others]], (None,) * (1 + steps)
    if objective in ("lr", "lr r1"):
        z1, z2, z3 = (next(z) for _ in range(3))
        return [("D", gan(z1), 1), ("G", fool(z2), 1), ("E", regress(z3, square), 1)], (L_D, 2, 0)
    if objective in ("jlr", "jlr r1"):
        z1, z2 = next(z), next(z)
        return [("D", gan(z1), 1), ("GE", lambda *p: fool(z2)(*p) + 0.25 * regress(z2, square)(*p), 1)], (L_D, None)
    if objective == "ae-l1":
        return [("GE", lambda B, C, d: np.abs(x - G(B, E(C, x))).sum(1).mean(), 1)], (0,)
    if objective == "ae-l2":
        return [("GE", lambda B, C, d: square(x - G(B, E(C, x))), 1)], (0,)


def gradient(loss, matrices, i, eps=1e-6):
    g = np.zeros_like(matrices[i])
    for k in np.ndindex(g.shape):
        up, down = (list(map(np.copy, matrices)) for _ in range(2))
        up[i][k] += eps
        down[i][k] -= eps
        g[k] = (loss(*up) - loss(*down)) / (2 * eps)
    return g


@pytest.mark.parametrize("case", ["faae", "faae mse", "faae r1", "faae joint", "aae", "bigan", "bigan norm", "ali",
                                  "age", "age celeba", "lr", "lr r1", "jlr", "jlr r1", "ae-l1", "ae-l2"])
def test_an_iteration_by_hand(case):
    objective = case.split()[0]
    model, rate = tiny_model(objective, "norm" in case), 1e-3
    torch.manual_seed(2)
    x, codes = torch.randn(N, NX, dtype=torch.float64), torch.randn(4, N, NZ, dtype=torch.float64)
    if faae.PRIORS.get(objective) is faae.sphere:
        codes = nn.functional.normalize(codes, dim=2)
    nets = dict(zip("GED", (model.G, model.E, model.D), strict=True))
    matrices = [next(net.parameters()).detach().numpy().copy() if net else np.zeros((1, 1)) for net in nets.values()]
    z = iter(codes.numpy())
    plan, places = phases(case, x.numpy(), z)
    unused = len(list(z))
    values = []
    for names, loss, weight in plan:
        values.append(loss(*matrices))
        steps = {"GED".index(n): gradient(loss, matrices, "GED".index(n)) for n in names}
        for i, g in steps.items():
            matrices[i] = matrices[i] - rate * weight * g

    opt = Namespace(**{n: torch.optim.SGD(net.parameters(), rate) for n, net in nets.items() if net})
    flags = ["--reenc", "mse" if "mse" in case else "l2"] if objective in ("faae", "aae") else []
    flags += ["--gamma", "3"] if "r1" in case else []
    flags += ["--data", "celeba"] if "celeba" in case else ["--fake-weight", "0.5"] if objective == "age" else []
    args = faae.parse_args(["--objective", objective, "--backbone", "dcgan", *flags])
    args.schedule_kimg = 1
    h = faae.hyper(args, 0)
    step = faae.jlr if "joint" in case else faae.STEPS[objective]
    taken = iter(codes)
    losses = step((model.G, model.E, model.D), opt, x, draws(lambda n: next(taken)), nullcontext, h)
    assert len(list(taken)) == unused           # as many draws, fresh ones
    assert len(losses) == len(faae.LOSSES[objective])
    for i, value in zip(places, values, strict=True):
        assert i is None or losses[i].item() == pytest.approx(value, rel=1e-5)
    for net, value in zip(nets.values(), matrices, strict=True):
        if net:
            after = next(net.parameters()).detach().numpy()
            np.testing.assert_allclose(after, value, rtol=0, atol=3e-6 * max(1, abs(value).max()))


def test_the_losses_of_jlr():
    model = tiny_model("jlr")
    torch.manual_seed(3)
    x, z = torch.randn(N, NX, dtype=torch.float64), torch.randn(2, N, NZ, dtype=torch.float64)
    opt = Namespace(**{n: torch.optim.SGD(net.parameters(), 0.0) for n, net in model.named_children()})
    codes = iter(z)
    L_re, L_D, L_G = faae.jlr((model.G, model.E, model.D), opt, x, draws(lambda n: next(codes)), nullcontext,
                              Namespace(W_re=0.25, W_adv=1.0, d=faae.squared_l2, gamma=0.0))
    fake, second = model.G(z[0]).detach(), model.G(z[1]).detach()
    expected = [((z[1] - model.E(second))**2).sum(1).mean().item(),
                plus(-model.D(x).detach().numpy()) + plus(model.D(fake).detach().numpy()),
                plus(-model.D(second).detach().numpy())]
    assert [v.item() for v in (L_re, L_D, L_G)] == pytest.approx(expected, rel=1e-5)


def test_the_losses_of_age():
    model = tiny_model("age")
    torch.manual_seed(3)
    x, z = torch.randn(N, NX, dtype=torch.float64), nn.functional.normalize(torch.randn(3, N, NZ).double(), dim=2)
    before = copy.deepcopy(model)
    opt = Namespace(G=torch.optim.SGD(model.G.parameters(), 0.0), E=torch.optim.SGD(model.E.parameters(), 0.0))
    codes = iter(z)
    KL_x, KL_fake, L_x, KL_G, L_z = faae.age((model.G, model.E, None), opt, x, draws(lambda n: next(codes)),
                                             nullcontext, Namespace(W_re=1000.0, W_fake=0.5, G_steps=2))

    def code(x):
        return on_sphere(before.E.net(x).detach().numpy())
    fake = [before.G(v).detach() for v in z]
    expected = [kl(code(x)), kl(code(fake[0])), (x - before.G(before.E(x).double())).abs().mean().item(),
                kl(code(fake[2])), 2 - (z[2].numpy() * code(fake[2])).mean()]
    assert [v.item() for v in (KL_x, KL_fake, L_x, KL_G, L_z)] == pytest.approx(expected, rel=1e-5)


def test_ages_encoder_learns_of_g_as_it_is_used():
    """G(E(x)) by running statistics, which are those of samples alone."""
    _, model, opt = small("age")
    seen = []
    norm = next(m for m in model.G.modules() if isinstance(m, nn.BatchNorm1d))
    norm.register_forward_hook(lambda m, inputs, out: seen.append(m.training))
    draw = draws(lambda n: faae.sphere(n, 8, torch.default_generator))
    faae.age((model.G, model.E, None), opt, torch.rand(8, 1, 28, 28), draw, nullcontext,
             Namespace(W_re=1000.0, W_fake=0.5, G_steps=2))
    assert seen == [True, False, True, True]        # fakes, G(E(x)), two steps of G
    assert model.training
    assert norm.num_batches_tracked == 3


def test_ages_divergence_is_the_closed_form():
    torch.manual_seed(0)
    z = torch.randn(1000, 7) * torch.linspace(0.2, 2, 7) + torch.linspace(-1, 1, 7)
    scaled = z.double() * math.sqrt(7)
    fitted = Normal(scaled.mean(0), scaled.std(0, correction=0))
    expected = kl_divergence(fitted, Normal(torch.zeros(7), torch.ones(7))).mean().item()
    assert faae.gaussian_kl(z).item() == pytest.approx(expected, rel=1e-5)
    assert faae.gaussian_kl(faae.sphere(20_000, 50, torch.Generator().manual_seed(0))).item() < 1e-3


MOVES = {"faae": ["GE", "D", "G"], "aae": ["GE", "D", "E"], "bigan": ["D", "GE"], "ali": ["D", "GE"],
         "age": ["E", "G", "G"], "lr": ["D", "G", "E"], "jlr": ["D", "GE"], "ae-l1": ["GE"], "ae-l2": ["GE"]}


def small(objective, backbone="mlp", nz=8, width=16, *flags):
    """-> args, model, optimisers by name, of narrow networks."""
    args = faae.parse_args(["--objective", objective, "--backbone", backbone, "--nz", f"{nz}", "--width", f"{width}",
                            *flags])
    args.image_shape = {"mlp": (1, 28, 28), "dcgan": (3, 32, 32)}[backbone]
    args.schedule_kimg = args.kimg
    torch.manual_seed(0)
    model = faae.make_model(vars(args))
    return args, model, faae.make_optimizers(model, args)


@pytest.mark.parametrize("backbone", ["mlp", "dcgan"])
@pytest.mark.parametrize("objective", MOVES)
def test_each_phase_moves_what_it_names(objective, backbone, monkeypatch):
    args, model, opt = small(objective, backbone, 8, 16, "--decay-kind", "none")
    moved = []

    def spy(loss, *optimizers):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        common.update(loss, *optimizers)
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        whole = {net for net in "GED" if {n for n in before if n.startswith(net + ".")} <= changed}
        assert {n[0] for n in changed} <= whole         # all of a network or nothing
        moved.append("".join(net for net in "GED" if net in {n[0] for n in changed}))
    monkeypatch.setattr(faae, "update", spy)
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(16, *args.image_shape)
    losses = faae.STEPS[objective]((model.G, model.E, model.D), opt, x, draws(lambda n: model.prior(n, rng)),
                                   nullcontext, faae.hyper(args, 0))
    assert moved == MOVES[objective]
    assert all(v.isfinite() for v in losses)


# --------------------------------------------------------------------------------------------- priors, networks

def test_codes_are_uniform_on_the_sphere():
    n, nz = 40_000, 6
    z = faae.sphere(n, nz, torch.Generator().manual_seed(0)).double()
    assert (z.norm(dim=1) - 1).abs().max() < 1e-6
    assert z.mean(0).abs().max() < 4 / math.sqrt(nz * n)
    torch.testing.assert_close(z.T @ z / n, torch.eye(nz).double() / nz, rtol=0, atol=0.005)
    torch.testing.assert_close((z**4).mean(0), torch.full((nz,), 3 / (nz * (nz + 2))).double(), rtol=0.03, atol=0)
    octant = (z[:, :3] > 0).double() @ torch.tensor([1.0, 2, 4]).double()
    assert (torch.bincount(octant.long()) / n - 1 / 8).abs().max() < 0.01


def test_the_other_priors():
    g = torch.Generator().manual_seed(0)
    z = faae.uniform(50_000, 2, g)
    assert (z.min() < -0.999, z.max() > 0.999, z.abs().max() <= 1) == (True, True, True)
    torch.testing.assert_close(z.var(0), torch.full((2,), 1 / 3), rtol=0.02, atol=0)
    z = faae.normal(50_000, 2, g)
    torch.testing.assert_close((z**4).mean(0), torch.full((2,), 3.0), rtol=0.05, atol=0)


@pytest.mark.parametrize("objective", faae.PRIORS)
def test_the_prior_of_each_objective(objective):
    z = small(objective)[1].prior(20_000, torch.Generator().manual_seed(0))
    length = (z**2).sum(1)
    mean, deviation, largest = {
        "faae": (1, 0, 1), "aae": (1, 0, 1), "age": (1, 0, 1),                          # unit sphere
        "bigan": (8 / 3, (8 * 4 / 45)**0.5, 8), "lr": (8 / 3, (8 * 4 / 45)**0.5, 8),    # U(-1, 1), 8 dimensions
        "jlr": (8 / 3, (8 * 4 / 45)**0.5, 8), "ali": (8, 4, math.inf)}[objective]       # chi squared of 8
    assert length.mean().item() == pytest.approx(mean, rel=0.02)
    assert length.std().item() == pytest.approx(deviation, rel=0.03, abs=1e-6)
    assert length.max() <= largest + 1e-5


def lrelu(t):
    return torch.where(t > 0, t, 0.2 * t)


def test_bigans_mlps():
    model = small("bigan", "mlp", 50, 1, "--d-norm", "on")[1]
    assert [tuple(p.shape) for p in model.E.parameters() if p.ndim == 2] == [(1024, 784), (1024, 1024), (50, 1024)]
    assert [tuple(p.shape) for p in model.G.parameters() if p.ndim == 2] == [(1024, 50), (1024, 1024), (784, 1024)]
    assert [tuple(p.shape) for p in model.D.parameters() if p.ndim == 2] == [(1024, 834), (1024, 1024), (1, 1024)]
    norms = {n: [not isinstance(m, nn.Identity) for k, m in net.named_modules() if "norm" in k]
             for n, net in model.named_children()}
    assert norms == {"G": [True, True], "E": [False, True], "D": [False, True]}
    assert not any("norm" in n for n, _ in model.named_parameters())        # neither gain nor bias
    t = torch.randn(8, 50)
    hidden = model.G[0].norm2(model.G[0].layer2(model.G[0].norm1(model.G[0].layer1(t)).relu())).relu()
    assert torch.equal(model.G[0].trunk(t), hidden)
    t = torch.rand(8, 1, 28, 28)
    assert torch.equal(model.E.net.trunk(t), lrelu(model.E.net.norm2(model.E.net.layer2(lrelu(
        model.E.net.layer1(t.flatten(1)))))))
    assert [net.slope for net in (model.G[0], model.E.net, model.D.net)] == [0, 0.2, 0.2]
    for p in model.parameters():
        if p.ndim == 2:
            assert (p.mean().abs().item(), p.std().item()) == pytest.approx((0, 0.02), abs=2e-3)
        else:
            assert p.abs().max() == 0
    x = torch.rand(8, 1, 28, 28) * 2 - 1
    short, long = model.eval().features(x)
    assert (short.shape[1], long.shape[1]) == (50, 1024)
    assert torch.equal(short, model.encode(x))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_section_3_2(size):
    G, E, D = faae.Autoencoder("dcgan", (3, size, size), 256, 1, "faae").children()
    widths = [256, 128, 64, 32, 16][:int(math.log2(size)) - 2]
    assert [c.weight.shape[:2] for c in G.convs] == list(zip(widths, [256, *widths]))
    assert [c.weight.shape[:2] for c in E.net.trunk.convs] == list(zip(widths[::-1], [3, *widths[::-1]]))
    assert all(m.kernel_size == (3, 3) for net in (G, E, D) for m in net.modules() if isinstance(m, nn.Conv2d))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in G.modules()) == len(widths) + 1
    assert sum(isinstance(m, nn.BatchNorm2d) for m in E.modules()) == len(widths)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in D.modules())
    x = G(torch.randn(4, 256))
    assert x.shape == (4, 3, size, size)
    assert 0 < x.min() < x.max() < 1
    assert (E(x).shape, D(x).shape) == ((4, 256), (4, 1))
    for m in [*G.modules(), *E.modules(), *D.modules()]:
        if isinstance(m, nn.Conv2d | nn.Linear):
            fan = (m.weight.shape[0] + m.weight.shape[1]) * m.weight[0, 0].numel()
            assert m.weight.abs().max() <= math.sqrt(6 / fan)
            assert m.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.2)
    assert torch.equal(E(x), E.net(x) / 16)             # 1 / sqrt(nz)
    t = x
    for conv, norm in zip(E.net.trunk.convs, E.net.trunk.norms, strict=True):
        t = nn.functional.max_pool2d(lrelu(norm(conv(t))), 2)
    assert torch.equal(E.net.trunk(x), t.flatten(1))
    z = torch.randn(4, 256)
    t = lrelu(G.norm(G.first(z).view(4, -1, 4, 4)))
    for conv, norm in zip(G.convs, G.norms, strict=True):
        t = lrelu(norm(conv(t.repeat_interleave(2, 2).repeat_interleave(2, 3))))
    assert torch.equal(G(z), G.last(t).sigmoid())


@pytest.mark.parametrize(("objective", "backbone", "scale"), [
    *((o, "dcgan", 1 / 16) for o in ("faae", "aae", "age")), ("bigan", "dcgan", 1), ("aae", "mlp", 1)])
def test_codes_of_spheres_are_scaled_on_dcgan(objective, backbone, scale):
    shape = (1, 28, 28) if backbone == "mlp" else (3, 32, 32)
    assert faae.Autoencoder(backbone, shape, 256, 16, objective).E.scale == scale


def test_no_batch_norm_where_a_pair_is_scored():
    for objective in faae.STEPS:
        conv = faae.Autoencoder("dcgan", (3, 32, 32), 8, 16, objective)
        has = any(isinstance(m, nn.BatchNorm2d) for m in conv.E.modules())
        assert has == (objective not in ("bigan", "ali"))
        assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in (conv.D.modules() if conv.D else ()))
        mlp = faae.Autoencoder("mlp", (1, 28, 28), 8, 16, objective)
        count = [sum(isinstance(m, nn.BatchNorm1d) for m in net.modules()) for net in (mlp.G, mlp.E)]
        assert count == ([2, 0] if objective == "age" else [2, 1])


@torch.no_grad()
def test_the_models_interface():
    for objective in faae.STEPS:
        model = small(objective)[1].eval()
        x = torch.rand(4, 1, 28, 28) * 2 - 1
        w = model.encode(x)
        assert w.shape == (4, 8)
        y = model.generate(w)
        assert (y.shape == x.shape, y.abs().max() <= 1) == (True, True)
        assert hasattr(model, "prior") == (not objective.startswith("ae-"))
        # where the prior is a sphere, a code's length does not count
        assert torch.allclose(model.generate(3 * w), y, atol=1e-6) == (objective in ("faae", "aae", "age"))
    model = small("ali")[1].eval()
    x = torch.rand(4, 1, 28, 28)
    mean, log_var = model.E(x)
    assert torch.equal(model.encode(x * 2 - 1), mean)
    assert mean.shape == log_var.shape


@pytest.mark.parametrize("objective", faae.STEPS)
def test_encode_says_what_it_takes(objective):
    model = small(objective)[1].eval()
    for encode in (model.encode, model.features):
        for wrong in (Image.new("L", (28, 28)), torch.zeros(2, 1, 32, 32)):
            with pytest.raises(ValueError, match=r"images are a float tensor \(N, 1, 28, 28\) in [^\n]*, not [^\n]*$"):
                encode(wrong)


# ------------------------------------------------------------------------------------------------------ settings

def test_the_papers_settings():
    a = faae.parse_args(["--data", "cifar10"])
    assert (a.objective, a.backbone, a.nz, a.lr, a.lr_d, a.decay, a.decay_kind, a.reencode_weight,
            a.adversarial_weight, a.reenc, a.kimg) == (
        "faae", "dcgan", 256, 3e-4, 1e-3, 1e-4, "inverse", "100", 0.1, "mse", 50 * 50)
    b = faae.parse_args(["--data", "cifar10", "--objective", "aae"])
    assert {k: v for k, v in vars(b).items() if v != vars(a).get(k)} == {                      # the same parameters
        "objective": "aae", "source": {**a.source, "objective": "given"}}
    for objective in ("bigan", "lr", "jlr", "ae-l1", "ae-l2"):
        m = faae.parse_args(["--data", "mnist", "--objective", objective])
        assert (m.backbone, m.nz, m.batch, m.lr, m.beta1, m.decay, m.decay_kind, m.lr_final, m.kimg) == (
            "mlp", 50, 128, 2e-4, 0.5, 2.5e-5, "weight", 0.01, 400 * 60)
    assert faae.parse_args(["--objective", "jlr"]).reencode_weight == "0.25"
    assert [faae.parse_args(["--data", data, "--objective", "bigan"]).d_norm for data in ("mnist", "cifar10")] == [
        "on", "off"]
    for name, expected in (("celeba", (1, 3)), ("cifar10", (1, 2)), ("mnist", (0.5, 2))):
        m = faae.parse_args(["--data", name, "--objective", "age"])
        assert (m.fake_weight, m.g_steps) == expected
    assert faae.parse_args(["--objective", "age"]).reencode_weight == "1000"
    assert faae.parse_args(["--data", "imagenet", "--objective", "age"]).reencode_weight == "2000"
    assert faae.parse_args(["--data", "celeba"]).kimg == pytest.approx(50 * 202_599 * 5 / 6 / 1000, rel=1e-4)
    assert faae.parse_args(["--data", "imagenet"]).kimg == pytest.approx(600 * 1281.167)


def test_a_preset_is_chosen_by_what_it_names_alone():
    """Not by a folder, a run or a data set that happens to have its name."""
    for flags in (["--out", "age"], ["--data", "jlr", "--backbone", "mlp"], ["--data-root", "jlr"]):
        assert faae.parse_args(flags).reencode_weight == ("10" if "--data" in flags else "3"), flags
    assert faae.parse_args(["--data", "mnist", "--objective", "lr", "--out", "mnist-mini"]).kimg == 24_000
    assert faae.parse_args(["--data", "few", "--out", "celeba"]).split == "auto"
    assert faae.parse_args(["--data", "celeba"]).split == "5-1"
    assert faae.parse_args(["--data", "imagenet"]).resolution == "64"


def test_what_is_printed_as_ours():
    def said(source, *flags):
        args = faae.parse_args(flags)
        return {name for name in vars(args) if args.source.get(name) == source} - {"snapshot_kimg"}
    ours = partial(said, "ours")
    assert ours() == {"nz", "batch", "lr", "lr_d", "beta1", "decay", "decay_kind", "lr_final", "kimg",
                      "reencode_weight", "adversarial_weight", "reenc", "gamma"}                       # F-AAE on mlp
    assert ours("--data", "cifar10") == {"batch", "beta1", "decay_kind", "lr_final", "reenc"}
    assert "kimg" in said("given", "--data", "cifar10", "--kimg", "250")
    assert ours("--data", "mnist", "--objective", "bigan") == set()
    assert ours("--data", "mnist", "--objective", "jlr", "--kimg", "4000") == set()
    assert "reencode_weight" in ours("--objective", "age")              # published for convolutional networks alone
    assert "reencode_weight" in said("code", "--objective", "age", "--data", "cifar10")
    assert "kimg" in ours("--data", "mnist", "--objective", "bigan", "--split", "sw")      # fewer images an epoch
    assert "kimg" not in ours("--data", "celeba") | ours("--data", "imagenet")
    assert "kimg" in ours("--data", "few", "--backbone", "dcgan")
    assert "fake_weight" in ours("--objective", "age")
    assert not {"fake_weight", "g_steps"} & ours("--objective", "age", "--data", "celeba")
    assert "kimg" in ours("--data", "mnist", "--backbone", "dcgan")                        # BiGAN's length, not F-AAE's
    assert "kimg" in ours("--data", "celeba", "--split", "official")


def test_decay():
    a = Namespace(decay=1e-4, decay_kind="inverse", lr_final=1.0, batch=64, schedule_kimg=1)
    assert [faae.lr_share(a, 64 * t) for t in (0, 1, 10_000, 40_000)] == pytest.approx([1, 1 / 1.0001, 1 / 2, 1 / 5])
    a = Namespace(decay=2.5e-5, decay_kind="weight", lr_final=0.01, batch=128, schedule_kimg=400)
    assert [faae.lr_share(a, 1000 * k) for k in (0, 200, 300, 400, 500)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    opt = small("bigan")[2]
    matrices, vectors = opt.E.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (2.5e-5, 0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert all(g["weight_decay"] == 0 for g in small("faae", "dcgan")[2].E.param_groups)
    net = common.StyleGenerator(8, (1, 8, 8), 64)
    matrices, others = common.adam(net, 1e-3, (0.0, 0.99), 0.1).param_groups
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in matrices["params"]} == {"weight"}
    assert not [names[id(p)] for p in others["params"] if names[id(p)].endswith("weight")]
    assert [g["lr"] for o in (opt.G, opt.E, opt.D) for g in o.param_groups] == [2e-4] * len(
        opt.G.param_groups + opt.E.param_groups + opt.D.param_groups)
    _, _, opt = small("faae", "dcgan")
    assert (opt.G.param_groups[0]["lr"], opt.E.param_groups[0]["lr"], opt.D.param_groups[0]["lr"]) == (3e-4, 3e-4, 1e-3)
    assert opt.G.param_groups[0]["betas"] == (0.9, 0.999)


def test_imagenets_schedule():
    a = faae.parse_args(["--data", "imagenet"])
    a.schedule_kimg = a.kimg
    weights = [faae.hyper(a, 1000 * a.kimg * epoch / 600).W_re for epoch in (0, 199, 201, 599, 700)]
    assert weights == [30, 30, 100, 100, 100]


# --------------------------------------------------------------------------------------------------- the script

SMALL = ("--width", "16", "--batch", "32", "--snapshot-kimg", "0.5")


@pytest.mark.parametrize("objective", ["faae", "age", "bigan", "ae-l1"])
def test_script_and_resume_to_the_bit(script, tmp_path, objective):
    flags = (*SMALL, "--objective", objective, *(["--reencode-weight", "3,7"] if objective == "faae" else []))
    script("faae.py", *flags, "--kimg", 2, "--out", "whole", env=dict(CURVES="1"))
    rows = log_of(tmp_path / "whole")
    assert all(math.isfinite(float(v)) for row in rows[1:] for v in row.values() if v != "")
    assert (tmp_path / "whole" / "samples").exists() == (objective != "ae-l1")
    assert (tmp_path / "whole" / "curves.png").exists()

    # stopped after 1 kimg, with schedules laid out for 2
    text = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); import common, faae\n"
            "Run = common.Run\n"
            "class Early(Run):\n"
            "    done = property(lambda self: self.seen >= 1000)\n"
            "common.Run = Early\n"
            "common.command(faae.main)\n")
    (tmp_path / "early.py").write_text(text)
    script(tmp_path / "early.py", *flags, "--kimg", 2, "--out", "parts")
    script("faae.py", "--resume", "parts", "--kimg", 2)
    assert log_of(tmp_path / "parts") == rows
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_more_kimg_extend_the_last_learning_rate(script, tmp_path):
    script("faae.py", *SMALL, "--objective", "ae-l2", "--kimg", 1, "--out", "run")
    assert "schedules stay those of 1 kimg" in script("faae.py", "--resume", "run", "--kimg", 2).stdout
    err = script("faae.py", "--resume", "run", "--kimg", 1.5, code=2).stderr
    assert err == "error: run has shown 2.016 kimg already; pass a longer --kimg, or none\n"
    assert json.loads((tmp_path / "run" / "args.json").read_text())["kimg"] == 2
    rates = {float(r["kimg"]): float(r["lr"]) for r in log_of(tmp_path / "run")}
    assert rates[0] == 2e-4
    assert [v for k, v in rates.items() if k >= 1] == pytest.approx([2e-6] * 3)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["state"]
    assert [g["lr"] for n in "GE" for g in state[f"opt_{n}"]["param_groups"]] == pytest.approx([2e-6] * 4)


@pytest.mark.parametrize("flags", [[], ["--joint"], ["--reenc", "l2", "--reencode-weight", "3,7"],
                                   ["--objective", "aae", "--adversarial-weight", "5"], ["--objective", "bigan"]])
def test_what_the_loop_gives_its_step(flags, here, monkeypatch):
    """Which step, and with what: images in [0, 1], fresh codes, weights."""
    args, calls = faae.parse_args(flags), []

    def spied(name):
        def step(nets, opt, x, draw, amp, h):
            calls.append((name, x, draw.z(len(x)), draw.z(len(x)), h))
            return [torch.zeros(())] * len(faae.LOSSES[args.objective])
        return step
    monkeypatch.setattr(faae, "STEPS", {name: spied(name) for name in faae.STEPS})
    monkeypatch.setattr(faae, "jlr", spied("joint"))
    run_here(faae.main, *flags, "--kimg", "0.096", "--batch", "32", "--width", "64", "--out", "run")
    images = data.load("mnist-mini")[0]
    assert [c[0] for c in calls] == ["joint" if "--joint" in flags else args.objective] * 3
    for k, (_, x, z1, z2, h) in enumerate(calls):
        assert torch.equal(x, images.take(data.order(10_000, 0, 32 * k, 32)).float() / 255)
        assert z1.shape == (32, 50)
        assert not torch.equal(z1, z2)
        weights = {"--reencode-weight": (3, 7)}.get(flags[2] if len(flags) > 2 else "", None)
        assert h.W_re == (weights[k > 0] if weights else {"faae": 3, "aae": 100, "bigan": 1}[args.objective])
        assert h.gamma == {"faae": 1}.get(args.objective, 0)
        assert h.W_adv == {"faae": 0.1, "aae": 5, "bigan": 1}[args.objective]
        assert h.d is (faae.l2 if "l2" in flags else faae.squared_l2 if args.objective == "bigan" else faae.mse)


def test_rates_and_average_in_the_loop(here, monkeypatch):
    """D has a rate of its own, all decay, and the average takes (1 - beta) of the new weights every 1024 images."""
    seen, want = [], {}

    def step(nets, opt, x, draw, amp, h):
        t = len(seen)
        seen.append([[g["lr"] for g in getattr(opt, n).param_groups] for n in "GED"])
        for name, p in draw.model.named_parameters():
            p.data += 0.01
            if t == 0:
                want[name] = p.data.clone()
            elif t % 8 == 0:        # 128 t images have been shown, of which a twentieth is the half-life
                beta = 0.5 ** (1024 / (128 * t / 20))
                want[name] = beta * want[name] + (1 - beta) * p.data
        return [torch.zeros(())] * 3
    monkeypatch.setitem(faae.STEPS, "faae", step)
    run_here(faae.main, "--lr", "0.3", "--lr-d", "0.7", "--decay", "0.5", "--decay-kind", "inverse", "--lr-final", "1",
             "--kimg", "2.176", "--batch", "128", "--width", "64", "--out", "run")
    for t, rates in enumerate(seen):
        for of_network, lr in zip(rates, (0.3, 0.3, 0.7), strict=True):
            assert of_network == pytest.approx([lr / (1 + 0.5 * t)] * len(of_network))
    ema = torch.load("run/checkpoint.pt", weights_only=True)["state"]["ema"]
    assert len(seen) == 17
    assert len(want) > 10
    for name, value in want.items():
        torch.testing.assert_close(ema[name], value)


@pytest.mark.parametrize("objective", ["faae", "ali"])
def test_compiled_networks_agree_with_plain_ones(objective):
    results, calls = [], []
    for compiled in (False, True):
        args, model, opt = small(objective)
        for net in model.children() if compiled else ():
            net.compile(backend=lambda graph, inputs: calls.append(1) or graph.forward)
        rng = torch.Generator().manual_seed(0)
        torch.manual_seed(1)
        for _ in range(2):
            draw = draws(lambda n, m=model, r=rng: m.prior(n, r))
            losses = faae.STEPS[objective]((model.G, model.E, model.D), opt, torch.rand(16, 1, 28, 28), draw,
                                           nullcontext, faae.hyper(args, 0))
        results.append(torch.stack(losses))
        assert (len(calls) >= 3) == compiled                        # G, E and D
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("gamma", "passes"), [(0.0, 3), (1.0, 2)])
@pytest.mark.parametrize("objective", ["faae", "lr", "jlr"])
def test_only_what_r1_differentiates_twice_is_not_compiled(objective, gamma, passes):
    args, model, opt = small(objective)
    args.gamma = gamma
    calls = []

    class Compiled(torch.nn.Module):            # as torch.compile makes it
        def __init__(self, net):
            super().__init__()
            self._orig_mod = net

        def forward(self, x):
            calls.append(x)
            return self._orig_mod(x)
    draw = draws(lambda n: model.prior(n, torch.Generator().manual_seed(0)))
    faae.STEPS[objective]((model.G, model.E, Compiled(model.D)), opt, torch.rand(16, 1, 28, 28), draw, nullcontext,
                          faae.hyper(args, 0))
    assert len(calls) == passes


@pytest.mark.parametrize("objective", faae.STEPS)
def test_every_objective_runs_on_dcgan(objective, here, capsys):
    run_here(faae.main, "--backbone", "dcgan", "--objective", objective, "--width", "16", "--batch", "32", "--kimg",
             "0.064", "--out", "run")
    evaluation.main(["figure", "reconstructions", "run"])
    assert "wrote run/figures/reconstructions.png" in capsys.readouterr().out


def test_default_run_folder(here):
    flags = ("--kimg", "0.05", "--width", "64", "--batch", "32")
    run_here(faae.main, *flags)
    run_here(faae.main, *flags, "--objective", "ae-l1", "--backbone", "dcgan")
    assert {p.name for p in (here / "runs").iterdir()} == {"faae-mlp-mnist-mini", "faae-ae-l1-dcgan-mnist-mini"}


BAD = {
    "joint": (("--objective", "aae", "--joint"), "--joint is for --objective faae; leave it out, or pass that"),
    "weight": (("--objective", "bigan", "--reencode-weight", "3"), "is for --objective faae or aae or age or jlr;"),
    "adversarial": (("--objective", "age", "--adversarial-weight", "3"), "is for --objective faae or aae;"),
    "norm": (("--objective", "jlr", "--reenc", "mse"), "--reenc is for --objective faae or aae;"),
    "no D": (("--objective", "ae-l2", "--lr-d", "0.1"), "--lr-d is for --objective faae or lr or jlr or aae or"),
    "fake": (("--fake-weight", "1"), "--fake-weight is for --objective age;"),
    "norm of D": (("--objective", "ali", "--d-norm", "on"), "--d-norm is for --objective bigan;"),
    "nw": (("--nz", "20", "--nw", "30"), "z is the code itself"),
    "three weights": (("--reencode-weight", "1,2,3"), "--reencode-weight: invalid weight"),
    "objective": (("--objective", "gan"), "invalid choice: 'gan'"),
    "size": (("--backbone", "dcgan", "--resolution", "256"), "32 or 64 or 128 px, not 256"),
    "beta1": (("--beta1", "1"), "--beta1: invalid number in [0, 1) value: '1'"),
    "decay": (("--decay", "-1"), "--decay: invalid number in [0, 1)"),
    "no kind": (("--objective", "ali", "--backbone", "dcgan", "--decay", "0.1"), "add --decay-kind inverse or weight"),
    "no decay": (("--objective", "ali", "--backbone", "dcgan", "--decay-kind", "weight"), "add --decay, such as 1e-4"),
    "batch": (("--batch", "1"), "batch norm needs 2; pass --batch 2 or more"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_flags_say_why(script, name):
    flags, message = BAD[name]
    done = script("faae.py", *flags, code=2)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_resume_knows_the_runs_own_flags(script):
    script("faae.py", *SMALL, "--objective", "bigan", "--kimg", "0.1", "--out", "run")
    for weight in ("3", "100"):
        err = script("faae.py", "--resume", "run", "--reencode-weight", weight, code=2).stderr
        assert "--reencode-weight is for --objective faae or aae or age or jlr; leave it out" in err
    script("faae.py", *SMALL, "--reencode-weight", "3,7", "--kimg", "0.1", "--out", "two")
    script("faae.py", "--resume", "two", "--reencode-weight", "3,7", "--kimg", "0.2")
    err = script("faae.py", "--resume", "two", "--reencode-weight", "4", code=2).stderr
    assert "was trained with --reencode-weight 3,7, not 4" in err


def test_no_prior_no_generation(script):
    script("faae.py", *SMALL, "--objective", "ae-l2", "--kimg", "0.1", "--out", "run")
    err = script("eval.py", "figure", "samples", "run", code=2).stderr
    assert err == "error: run (AE l2) has no 'prior', which this needs; take another run\n"
    err = script("eval.py", "figure", "traversal", "run", code=2).stderr
    assert "has no 'prior'" in err


def test_two_processes_share_each_draw(script, tmp_path):
    (tmp_path / "spy.py").write_text(f"""if True:
        import os, sys, torch
        sys.path.insert(0, {str(ROOT)!r})
        import common, faae
        plain, seen = faae.faae, []
        def spy(nets, opt, x, draw, amp, h):
            z = common.Draw.z
            def keep(self, n):
                seen.append(z(self, n))
                return seen[-1]
            common.Draw.z = keep
            losses = plain(nets, opt, x, draw, amp, h)
            common.Draw.z = z
            return losses
        faae.STEPS["faae"] = spy
        def main():
            faae.main()
            torch.save(seen, "draws" + os.environ.get("RANK", ""))
        common.command(main)
        """)
    flags = (*SMALL, "--kimg", "0.064")
    script(tmp_path / "spy.py", *flags, "--out", "one")
    script(tmp_path / "spy.py", *flags, "--out", "two", launcher=TWO)
    one, a, b = (torch.load(tmp_path / f"draws{rank}") for rank in ("", 0, 1))
    assert len(one) == 2 * 3
    for whole, even, odd in zip(one, a, b, strict=True):
        assert torch.equal(whole[0::2], even)
        assert torch.equal(whole[1::2], odd)
    state = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)["state"]
    assert all(v.isfinite().all() for v in state["model"].values())


@torch.no_grad()
def test_morph_corners_are_reconstructions():
    for objective in ("faae", "aae", "bigan"):
        _, model, _ = small(objective)
        model.eval()
        x = common.to_float(data.load("mnist-mini")[1].pixels[:4])
        codes = evaluation.bilinear(model.encode(x), 5)
        corners = codes[[0, 0, -1, -1], [0, -1, 0, -1]]
        torch.testing.assert_close(model.generate(corners), common.reconstruct(model, x), rtol=0, atol=1e-6)
        middle = model.encode(x).mean(0)
        torch.testing.assert_close(codes[2, 2], middle, rtol=1e-5, atol=1e-6)
        if objective != "bigan":                        # eq. 5: G reads the mixture's direction
            torch.testing.assert_close(model.generate(middle[None]), model.G(faae.unit(middle[None])) * 2 - 1)


@pytest.mark.parametrize("objective", ["faae", "ae-l2"])
def test_it_learns(objective):
    args, model, opt = small(objective, "mlp", 16, 4)
    train, test = data.load("mnist-mini")
    rng, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    x_test = common.to_float(test.pixels[:500])
    h = faae.hyper(args, 0)
    for _, x in zip(range(300), data.batches(train, 64, 0, 0, cpu), strict=False):
        faae.STEPS[objective]((model.G, model.E, model.D), opt, x.float() / 255, draws(lambda n: model.prior(n, rng)),
                              nullcontext, h)
    model.eval()
    if objective == "ae-l2":
        floor = (x_test - common.to_float(train.pixels).mean(0)).square().mean()
        assert (common.reconstruct(model, x_test) - x_test).square().mean() < 0.7 * floor
    else:
        w = model.prior(500, rng)
        back = model.encode(model.generate(w))
        assert (back - w).norm(dim=1).mean() < 0.7 * (back - w.roll(1, 0)).norm(dim=1).mean()


def test_a_resumed_run_has_no_settings_of_other_objectives(here):
    run_here(faae.main, "--objective", "aae", "--backbone", "mlp", "--width", "64", "--nz", "4", "--batch", "8",
             "--kimg", "0.016", "--out", "run")
    before = common.read_args("run")
    run_here(faae.main, "--resume", "run", "--kimg", "0.032")
    assert common.read_args("run").keys() == before.keys()
