"""What the loops of alae.py and faae.py give their steps, and do with what the steps leave; the steps stand still.
The other loops: compiled."""
from argparse import Namespace

import pytest
import torch
from conftest import checkpoint_of, run_here

import alae
import common
import data
import faae
import invgan
import lia

STYLE = ("--backbone", "stylegan", "--resolution", "16", "--width", "64", "--nz", "8")
LEVELS = (*STYLE, "--grow-kimg", "0.6", "--kimg", "3.2", "--batch", "64")       # a new level every 1,200 images


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """loop(method, *flags, act=f) runs a method's loop in a temporary folder; in place of each step f(call) is run.

    -> a call a step: model, opt (by network), x, draw, amp, nets, and the noise that G was given.  model and
    growth of the last run are attributes of `loop`.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common.signal, "signal", lambda *_: None)
    start, growth_of, forward = common.start, common.growth_of, common.StyleGenerator.forward

    def run(method, *flags, rank=0, world=1, rates=None, act=lambda call: None):
        calls, noise, run.averaged, run.shown = [], [], 0, []

        def take(**call):
            call = Namespace(model=run.model, level=getattr(run.model.G, "top", 0), **call)
            noise.clear()
            act(call)
            calls.append(Namespace(**vars(call), noise=list(noise)))
            return [torch.zeros(())] * (4 if method is alae else 3)

        def alaes(nets, opt, x, draw, args, amp, mean_w):
            return take(opt=vars(opt), x=x, draw=draw, amp=amp, nets=nets)

        def faaes(nets, opt, x, draw, amp, h):
            return take(opt=vars(opt), x=x, draw=draw, amp=amp, nets=(None, *nets))

        def broadcast(model):
            run.model = model

        def planned(args, **kwargs):
            run.growth = growth_of(args, **kwargs)
            run.growth.rates = rates or run.growth.rates
            return run.growth

        def listening(G, w, noise_="random"):
            noise.append(noise_)
            return forward(G, w, noise_)

        def count(model):
            assert model is run.model
            run.averaged += 1

        def show(model, x, z):
            run.shown.append((model, getattr(model.G, "top", 0)))
            return dict.fromkeys(common.Run.MEASURES, "")
        monkeypatch.setattr(alae, "train_step", alaes)
        monkeypatch.setitem(faae.STEPS, "faae", faaes)
        for name, spy in dict(broadcast=broadcast, growth_of=planned, average_buffers=count,
                              start=lambda args: (start(args)[0], rank, world), curves=lambda *_: None,
                              inversion_errors=show, snapshot_pictures=lambda *given: show(*given) and {}).items():
            monkeypatch.setattr(common, name, spy)
        monkeypatch.setattr(common.StyleGenerator, "forward", listening)
        run.folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        method.main([*flags, "--snapshot-kimg", "100", "--out", str(run.folder)])
        assert run.averaged == len(calls) > 0                   # statistics of batch norm and mean w, once a step
        return calls
    return run


def of_w(method):
    return ("--nw", "8") if method is alae else ()


@pytest.mark.parametrize("method", [alae, faae])
def test_each_process_takes_its_share_of_the_same_draws(method, loop):
    """Images, mirrors, codes, mixing and noise; and noise of its own, not a view of the whole batch's."""
    flags = (*STYLE, *of_w(method), "--batch", "8", "--kimg", "0.064", *(["--flip", "on"] if method is alae else []))

    def act(call):
        F, G, *_ = call.nets
        call.z = call.draw.z(len(call.x))
        call.w = call.draw.mix(F(call.z), F) if F else call.z
        G(call.w)
    with torch.no_grad():
        whole, *halves = (loop(method, *flags, rank=rank, world=world, act=act)
                          for rank, world in ((0, 1), (0, 2), (1, 2)))
    assert [call.level for call in whole] == [0, 0, 1, 1, 2, 2, 2, 2]
    for rank, half in enumerate(halves):
        for one, share in zip(whole, half, strict=True):
            assert torch.equal(share.x, one.x[rank::2])
            assert torch.equal(share.z, one.z[rank::2])
            torch.testing.assert_close(share.w, one.w[rank::2])
            (ours,), (all_,) = share.noise, one.noise
            assert len(ours) == len(all_) == 2 * one.level + 2
            for eta, of_all in zip(ours, all_, strict=True):
                assert torch.equal(eta, of_all[rank::2])
                assert eta.untyped_storage().nbytes() == 4 * eta.numel()


@pytest.mark.parametrize(("method", "flags", "share", "each_step"), [
    (alae, ("--kimg", "2.2", "--width", "64"), 5, False),
    (alae, ("--backbone", "dcgan", "--batch", "128", "--kimg", "1.1", "--width", "64"), 5, False),
    (alae, (*LEVELS, "--nw", "8"), 5, True), (faae, LEVELS, 20, False)])
def test_averages_begin_short_in_a_run_and_in_a_level(method, flags, share, each_step, loop):
    """ema <- beta ema + (1 - beta) weights; half-life: 10,000 images, or 1/share of those since, if less."""
    want, seen = {}, 0

    def act(call):
        nonlocal seen
        every = len(call.x) if each_step else 1024
        half_life = min(10_000, max((seen - 1200 * call.level) / share, 1))
        beta = 0.5 ** (every / half_life) if seen % every < len(call.x) else 1
        for name, p in call.model.named_parameters():
            p.data += 0.01
            want[name] = beta * want.get(name, 0) + (1 - beta) * p.data
        seen += len(call.x)
    levels = {call.level for call in loop(method, *flags, act=act)}
    assert levels == ({0, 1, 2} if "stylegan" in flags else {0})
    assert len(want) > 10
    for ema, _ in loop.shown:                   # what pictures and measures are taken of, and what is saved
        for name, p in ema.named_parameters():
            torch.testing.assert_close(p, want[name])
    saved = torch.load(loop.folder / "checkpoint.pt", weights_only=True)["state"]["ema"]
    assert all(torch.equal(value, saved[name]) for name, value in ema.state_dict().items())
    assert [top for _, top in loop.shown] == ([0, 0, 2, 2] if "stylegan" in flags else [0] * 4)    # start, end


@pytest.mark.parametrize("state", ["kept", "fresh"])
def test_what_becomes_of_adams_state_at_a_new_level(state, loop):
    had = []

    def act(call):
        had.append({name: len(optimizer.state) for name, optimizer in call.opt.items()})
        for optimizer in call.opt.values():
            parameter = optimizer.param_groups[0]["params"][0]
            optimizer.state[parameter] = dict(step=torch.ones(()), exp_avg=parameter * 0, exp_avg_sq=parameter * 0)
    calls = loop(alae, *LEVELS, "--nw", "8", "--adam-state", state, act=act)
    new = [a.level != b.level for a, b in zip([calls[-1], *calls], calls, strict=False)]
    assert sum(new) == 3
    for k, counts in enumerate(had):
        assert counts == dict.fromkeys("FGED", 0 if k == 0 or (new[k] and state == "fresh") else 1)


@pytest.mark.parametrize("method", [alae, faae])
def test_rates_of_each_level(method, loop):
    rates = [0.1, 0.2, 0.4]
    more = of_w(method) or ("--lr", "0.4", "--lr-d", "0.8")     # D's keeps its proportion to the others'

    def act(call):
        call.rates = {name: {g["lr"] for g in optimizer.param_groups} for name, optimizer in call.opt.items()}
    for call in loop(method, *LEVELS, *more, rates=rates, act=act):
        for name, found in call.rates.items():
            rate = rates[call.level] * (2 if method is faae and name == "D" else 1)
            assert [*found] == [pytest.approx(rate)], (call.level, name)


@pytest.mark.parametrize("fade", ["linear", "sine", "faae"])
def test_images_are_blended_as_the_level_fades_in(fade, loop):
    method, more = (faae, ()) if fade == "faae" else (alae, ("--nw", "8", "--fade", fade))
    seen, alphas = 0, []

    def act(call):
        nonlocal seen
        part = (seen - 1200 * call.level) / 600
        alpha = min(part, 1) if call.level else 1
        alpha = (1 - torch.tensor(torch.pi * alpha).cos().item()) / 2 if fade == "sine" else alpha
        images = loop.images.take(data.order(len(loop.images), 0, seen, len(call.x)))
        x = images.float() / 255 if method is faae else common.to_float(images)
        x = torch.nn.functional.avg_pool2d(x, 16 >> (2 + call.level))
        coarse = torch.nn.functional.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(call.x, alpha * x + (1 - alpha) * coarse, rtol=0, atol=0.01)     # uint8 is rounded
        assert call.model.G.alpha.item() == pytest.approx(alpha)
        alphas.append(alpha)
        seen += len(call.x)
    loop.images = data.load("mnist-mini", resolution="16")[0]
    loop(method, *LEVELS, *more, act=act)
    assert sum(0 < alpha < 1 for alpha in alphas) > 10


def test_mirror():
    x = torch.arange(12.0).view(2, 1, 2, 3)
    assert common.mirror(x, torch.tensor([0.49, 0.5])).tolist() == [
        [[[2, 1, 0], [5, 4, 3]]], [[[6, 7, 8], [9, 10, 11]]]]


def test_about_half_of_the_images_are_mirrored_left_to_right(loop):
    flags = (*STYLE, "--nw", "8", "--start-resolution", "16", "--batch", "64", "--kimg", "0.64")
    images = data.load("mnist-mini", resolution="16")[0]
    plain = common.to_float(images.take(data.order(len(images), 0, 0, 640)))
    assert torch.equal(torch.cat([call.x for call in loop(alae, *flags)]), plain)
    mirrored = torch.cat([call.x for call in loop(alae, *flags, "--flip", "on")])
    same, flipped = ((mirrored == x).flatten(1).all(1) for x in (plain, plain.flip(3)))
    assert (same | flipped).all()
    assert 0.4 < flipped.float().mean() < 0.6


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_mixing_is_the_share_of_images_with_two_codes(share, loop):
    flags = (*STYLE, "--nw", "8", "--start-resolution", "16", "--batch", "64", "--kimg", "0.64")

    def act(call):
        w = torch.full((64, 8), 7.0)
        call.rows = call.draw.mix(w, call.nets[0])
        assert call.rows.shape == (64, 6, 8)
        call.other = (call.rows != 7).flatten(1).any(1)
    found = torch.cat([call.other for call in loop(alae, *flags, "--mixing", str(share), act=act)]).float().mean()
    assert abs(found - share) < (0.1 if share == 0.5 else 1e-6)


@pytest.mark.parametrize(("flags", "low"), [(("--width", "64"), 0), (("--backbone", "dcgan", "--width", "64"), -1)])
def test_alaes_images_and_codes(flags, low, loop):
    """Images in [0, 1] on mlp and in [-1, 1] on dcgan, in the order of the seed; z is N(0, I) and fresh; no mixing."""
    def act(call):
        call.z, call.again = call.draw.z(64), call.draw.z(64)
        assert call.draw.mix(call.z, None) is call.z
        assert all(group["betas"] == (0.0, 0.99) for opt in call.opt.values() for group in opt.param_groups)
    calls = loop(alae, *flags, "--batch", "64", "--kimg", "0.64", "--seed", "3", act=act)
    images = data.load("mnist-mini", resolution="32" if low else "28")[0]
    for k, call in enumerate(calls):
        x = images.take(data.order(10_000, 3, 64 * k, 64)).float() / 255
        torch.testing.assert_close(call.x, low + (1 - low) * x)
    z = torch.cat([t for call in calls for t in (call.z, call.again)])
    assert len(z.unique(dim=0)) == len(z) == 1280
    assert (z.mean().item(), z.std().item()) == pytest.approx((0, 1), abs=0.02)


@pytest.mark.parametrize(("method", "networks"), [(alae, "FGED"), (faae, "GED")])
def test_precision_and_compiled_passes_reach_the_step(method, networks, loop, monkeypatch):
    used = []

    def compiled(*networks):
        return [lambda *given, network=network: used.append(network) or network(*given) for network in networks]
    monkeypatch.setattr(common, "compiled", compiled)

    def act(call):
        with call.amp():
            call.bf16 = torch.is_autocast_enabled("cpu")
        used.clear()
        F, G, E, D = call.nets
        for network in (F, G, E, D):
            if network:
                network(call.draw.z(len(call.x)) if network in (F, G) else call.x if network is E or method is faae else
                        torch.zeros(len(call.x), 50))
        call.used = [name for name in "FGED" for network in used if network is getattr(call.model, name, None)]
    flags = ("--width", "64", "--batch", "32", "--kimg", "0.032")
    call, = loop(method, *flags, act=act)
    assert (call.bf16, call.used) == (False, [])
    call, = loop(method, *flags, "--precision", "bf16", "--compile", act=act)
    assert (call.bf16, call.used) == (True, [*networks])


def test_compiled_runs_of_lia_and_invgan_are_plain_ones(here, monkeypatch):
    """Both stages, and ReStyle: their --compile compiles these networks, and changes no weight."""
    plain, made = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda net: made.append(type(net).__name__) or plain(net, backend="eager"))
    short = ("--batch", "16", "--kimg", "0.032")
    small = ("--backbone", "mlp", "--width", "64", *short)
    G, E = "MLPGenerator", "MLPEncoder"
    for name, method, flags, networks in (
            ("first", lia, small, [G, E]),
            ("second", lia, ("--stage", "2", "--decoder", "first", *short), [E, G, E]),
            ("invgan", invgan, small, ["Mapping", G, "Discriminator"]),
            ("restyle", invgan, ("--restyle", "invgan", *short), [E])):
        made.clear()
        for out, more in ((name, ()), (f"{name}-fast", ("--compile",))):
            run_here(method.main, *flags, *more, "--out", out)
        assert made == networks
        a, b = (checkpoint_of(here / out)["state"]["model"] for out in (name, f"{name}-fast"))
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)
