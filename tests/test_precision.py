"""A step in bf16 beside the same one in fp32: its losses, and the gradient of each phase at each network it moves."""
from argparse import Namespace
from contextlib import nullcontext

import pytest
import torch
from conftest import draws

import alae
import common
import faae

CASES = [(alae, backbone, "alae") for backbone in ("mlp", "dcgan", "stylegan")] + [
    (faae, backbone, objective) for backbone in ("mlp", "dcgan", "stylegan") for objective in faae.STEPS
    if backbone != "stylegan" or objective in ("faae", "aae")]


def a_step(method, backbone, objective, amp, monkeypatch):
    """-> losses, and {(phase, network): gradient}.  Nothing is moved: each phase starts from the same weights."""
    args = method.parse_args(["--backbone", backbone, "--nz", "16", "--width", "32" if backbone == "stylegan" else "8",
                              *(["--nw", "16"] if method is alae else ["--objective", objective])])
    args.image_shape = {"mlp": (1, 28, 28), "dcgan": (3, 32, 32), "stylegan": (3, 16, 16)}[backbone]
    args.schedule_kimg = 1
    torch.manual_seed(0)
    model = alae.ALAE(**alae.network_args(vars(args))) if method is alae else faae.make_model(vars(args))
    if model.grows:
        common.grow(2, 0.5, model)
    opt = {name: torch.optim.SGD(network.parameters(), lr=0.0) for name, network in model.named_children()}
    gradients = {}

    def update(loss, *optimizers):
        assert loss.dtype == torch.float32
        common.update(loss, *optimizers)
        phase = len({phase for phase, _ in gradients})
        for name in [name for name in opt if opt[name] in optimizers]:
            found = [p.grad.flatten() for p in getattr(model, name).parameters() if p.grad is not None]
            gradients[phase, name] = torch.cat(found)
    monkeypatch.setattr(method, "update", update)
    x, rng = torch.rand(16, *args.image_shape), torch.Generator().manual_seed(0)

    nets, draw = [*model.children()], draws(lambda n: model.prior(n, rng))
    if method is alae:
        losses = alae.train_step(nets, Namespace(**opt), model.see(x * 2 - 1), draw, args, amp)
    else:
        nets = model.G, model.E, model.D
        losses = faae.STEPS[objective](nets, Namespace(**opt), model.fit(x), draw, amp, faae.hyper(args, 0))
    return torch.stack([loss.detach() for loss in losses]), gradients


@pytest.mark.parametrize(("method", "backbone", "objective"), CASES)
def test_a_bf16_step_agrees_with_fp32(method, backbone, objective, monkeypatch):
    (losses, gradients), (low_losses, low_gradients) = (
        a_step(method, backbone, objective, amp, monkeypatch)
        for amp in (nullcontext, common.autocast("bf16", torch.device("cpu"))))
    torch.testing.assert_close(low_losses, losses, rtol=0.03, atol=0.003)       # at most 0.008 was measured
    assert gradients.keys() == low_gradients.keys()
    for where, g in gradients.items():
        assert (low_gradients[where] - g).norm() < 0.6 * g.norm(), where        # at most 0.40, and 2 for a wrong sign
