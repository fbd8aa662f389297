"""What methods share: layers, losses, optimising, growing, frozen networks, flags, checkpoints and runs."""
import copy
import errno
import math
import os
import signal
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as nnf
from conftest import make_run, noisy
from torch import nn

import alae
import common
import faae
import invgan
import lia


@pytest.mark.parametrize("lr_mul", [1.0, 0.1])
def test_equal_linear(lr_mul):
    torch.manual_seed(0)
    layer = common.EqualLinear(300, 4000, gain=1.5, lr_mul=lr_mul)
    assert layer.weight.std().item() == pytest.approx(1 / lr_mul, rel=0.01)
    nn.init.normal_(layer.bias)
    x = torch.randn(50, 300)
    y = layer(x)
    c = 1.5 * lr_mul / math.sqrt(300)
    torch.testing.assert_close(y, x @ (c * layer.weight).T + lr_mul * layer.bias)
    assert (y - lr_mul * layer.bias).var().item() == pytest.approx(1.5**2, rel=0.05)


@pytest.mark.parametrize("layer", [
    common.EqualConv2d(64, 128, 4, gain=1, stride=2, padding=1),
    common.EqualConv2d(64, 128, 3, gain=1, padding=1),
    common.EqualConvTranspose2d(64, 128, 4, gain=1, stride=2, padding=1)])
def test_equal_convolutions_keep_the_variance(layer):
    y = layer(torch.randn(8, 64, 16, 16))[:, :, 2:-2, 2:-2]     # away from the padding
    assert y.var().item() == pytest.approx(1, rel=0.1)
    assert y.shape[1] == 128
    assert layer.weight.std().item() == pytest.approx(1, rel=0.05)


def test_mapping_and_pixel_norm():
    z = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(common.pixel_norm(z), z / math.sqrt(12.5))
    F = common.Mapping(8, 16, depth=3, lr_mul=0.1)
    assert [tuple(layer.weight.shape) for layer in F.layers] == [(16, 8), (16, 16), (16, 16)]
    z = torch.randn(5, 8)
    torch.testing.assert_close(F(z), F(7 * z))
    w = common.pixel_norm(z)
    for layer in F.layers:
        w = w @ (layer.weight * 0.1 * math.sqrt(2 / layer.weight.shape[1])).T + 0.1 * layer.bias
        w = torch.where(w > 0, w, 0.2 * w)
    torch.testing.assert_close(F(z), w)


def test_mlp_backbone_is_the_papers():
    G, E = common.MLPGenerator(50, (1, 28, 28)), common.MLPEncoder((1, 28, 28), 50)
    sizes = [784, 1024, 1024, 50]
    assert [tuple(layer.weight.shape) for layer in (E.layer1, E.layer2, E.head)] == list(zip(sizes[1:], sizes))
    assert [tuple(layer.weight.shape) for layer in (G.layer3, G.layer2, G.layer1)] == list(zip(sizes, sizes[1:]))
    x = torch.randn(3, 1, 28, 28)
    assert E.trunk(x).shape == (3, 1024)
    assert E(x).shape == (3, 50)
    assert G(E(x)).shape == x.shape


def test_mlp_and_dcgan_by_hand():
    assert [common.dcgan_channels(n) for n in (32, 128)] == [[256, 128, 64], [512, 512, 256, 128, 64]]
    root, w = math.sqrt(2), torch.randn(4, 5)

    def act(y):
        return torch.where(y > 0, y, 0.2 * y)

    def dense(layer, y, gain):
        return y @ layer.weight.T * gain / math.sqrt(y.shape[1]) + layer.bias

    def norm(layer, y):
        y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        return (y * layer.weight[:, None, None] + layer.bias[:, None, None]).relu()

    def up(layer, y, gain):
        scale = gain * 2 / math.sqrt(len(layer.weight) * 16)
        return nnf.conv_transpose2d(y, layer.weight * scale, layer.bias, stride=2, padding=1)

    G, E = noisy(common.MLPGenerator(5, (1, 4, 4), 128)), noisy(common.MLPEncoder((1, 4, 4), 5, 128))
    x = torch.randn(4, 1, 4, 4)
    h = act(dense(E.layer2, act(dense(E.layer1, x.flatten(1), root)), root))
    torch.testing.assert_close(E.trunk(x), h)
    torch.testing.assert_close(E(x), dense(E.head, h, 1))
    h = act(dense(G.layer2, act(dense(G.layer1, w, root)), root))
    torch.testing.assert_close(G(w).flatten(1), dense(G.layer3, h, 1))

    G, E = noisy(common.DCGANGenerator(5, (3, 32, 32), 64)), noisy(common.DCGANEncoder((3, 32, 32), 5, 64))
    y = norm(G.norms[0], dense(G.first, w, root).view(4, 4, 4, 4))
    for layer, bn in zip(G.convs, G.norms[1:], strict=True):
        y = norm(bn, up(layer, y, root))
    torch.testing.assert_close(G(w), up(G.last, y, 1).tanh(), rtol=1e-4, atol=1e-4)
    y = x = torch.randn(4, 3, 32, 32)
    for c in E.convs:
        y = act(nnf.conv2d(y, c.weight * root / math.sqrt(c.weight[0].numel()), c.bias, stride=2, padding=1))
    torch.testing.assert_close(E(x), dense(E.head, y.flatten(1), 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_dcgan_backbone(size):
    G, E = common.DCGANGenerator(16, (3, size, size), width=8), common.DCGANEncoder((3, size, size), 16, width=8)
    x = torch.randn(4, 3, size, size)
    assert E.trunk(x).shape == (4, common.dcgan_channels(size, 8)[0] * 16)
    y = G(E(x))
    assert y.shape == x.shape
    assert y.abs().max() <= 1
    assert 0.2 < y.std() < 0.9                                  # tanh of a variance of about 1
    torch.testing.assert_close(E(x)[:1], E(x[:1]))              # a code does not depend on its batch mates
    assert not any(isinstance(m, nn.BatchNorm2d) for m in E.modules())


def test_softplus_is_fp32_and_averages():
    t = torch.tensor([[-2.0], [0.5]], dtype=torch.bfloat16)
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(0.5))) / 2
    assert common.mean_softplus(t).item() == pytest.approx(expected, rel=1e-6)


def test_r1_of_a_linear_critic():
    a = torch.randn(1, 12, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    penalty = common.r1(x.flatten(1) @ a.T, x)
    torch.testing.assert_close(penalty, a.square().sum())
    penalty.backward()
    torch.testing.assert_close(a.grad, 2 * a.detach())


def test_r1_is_a_mean_over_images():
    x = torch.tensor([[1.0], [2.0], [4.0]], requires_grad=True)
    assert common.r1(x.square(), x).item() == pytest.approx((2**2 + 4**2 + 8**2) / 3)


def test_ema_of_parameters_and_buffers():
    model = nn.BatchNorm1d(1)
    ema = copy.deepcopy(model)
    model.weight.data.fill_(3.0)
    model.running_mean.fill_(10.0)
    model.num_batches_tracked.fill_(7)
    common.update_ema(ema, model, seen=0, batch=10_000)             # its half-life: beta is 1/2
    assert ema.weight.item() == pytest.approx(0.5 * 1 + 0.5 * 3)
    assert ema.running_mean.item() == pytest.approx(0.5 * 10)
    assert ema.num_batches_tracked.item() == 7
    assert model.weight.item() == 3.0


def test_when_an_average_moves_and_how_far():
    """Of ema = 0, model = 1, it is 1 - 0.5^(images / half-life)."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)

    def moved(*args, **kwargs):
        ema = copy.deepcopy(model)
        ema.weight.data.zero_()
        common.update_ema(ema, model, *args, **kwargs)
        return ema.weight.item()
    assert moved(0, 128) == pytest.approx(1 - 0.5 ** (1024 / 10_000))
    assert moved(128, 128) == moved(1000, 32) == 0                      # within 1,024 images
    assert moved(1024 * 9 + 100, 128) > 0
    assert moved(128, 128, each_step=True) == pytest.approx(1 - 0.5 ** (128 / 10_000))
    assert moved(2048, 128, since=5000) == pytest.approx(1 - 0.5 ** (1024 / 1000))
    assert moved(2048, 128, since=5000, share=20) == pytest.approx(1 - 0.5 ** (1024 / 250))
    assert moved(4096, 2048) == pytest.approx(1 - 0.5 ** (2048 / 10_000))


def test_update_moves_what_it_names():
    a, b, c = (nn.Linear(2, 2) for _ in range(3))
    optimizers = {m: common.adam(m, 0.1, (0.0, 0.99)) for m in (a, b, c)}
    before = copy.deepcopy([a.state_dict(), b.state_dict(), c.state_dict()])
    loss = b(a(torch.ones(1, 2))).sum()
    common.update(loss, optimizers[b], optimizers[c])
    same = [[torch.equal(old[k], new[k]) for k in old] for old, new in
            zip(before, (a.state_dict(), b.state_dict(), c.state_dict()), strict=True)]
    assert same == [[True, True], [False, False], [True, True]]     # loss does not depend on c: not stepped
    assert all(p.grad is None for p in a.parameters())


def test_fused_adam_is_adam():
    torch.manual_seed(0)
    ours = nn.Linear(5, 5)
    theirs = copy.deepcopy(ours)
    fast = common.adam(ours, 0.01, (0.0, 0.99))
    plain = torch.optim.Adam(theirs.parameters(), lr=0.01, betas=(0.0, 0.99), eps=1e-8, foreach=False, fused=False)
    for _ in range(20):
        x = torch.randn(3, 5)
        for model, optimizer in ((ours, fast), (theirs, plain)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-6)


def test_moments_are_laid_out_as_the_parameters():
    """dcgan is channels_last on a GPU and not on a CPU: a run that goes on on the other kind is the same run."""
    torch.manual_seed(0)
    plain = common.EqualConv2d(6, 8, 3, gain=1)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x = torch.randn(5, 2, 6, 4, 4)

    def train(layer, optimizer):
        for batch in x:
            common.update(layer(batch).square().mean(), optimizer)

    first = common.adam(last, 0.01, (0.5, 0.99))
    train(last, first)
    for here, there in ((plain, last), (last, plain)):
        a, b = (common.adam(layer, 0.01, (0.5, 0.99)) for layer in (here, there))
        here.load_state_dict(there.state_dict())
        for optimizer in (a, b):
            common.Run._take(None, optimizer, copy.deepcopy(first.state_dict()), 0)
        train(here, a)
        train(there, b)
        torch.testing.assert_close(here.weight, there.weight, rtol=1e-5, atol=1e-6)


def test_pixels_round_trip():
    x = torch.arange(256, dtype=torch.uint8)
    assert common.to_float(x).min() == -1
    assert common.to_float(x).max() == 1
    assert torch.equal(common.to_uint8(common.to_float(x)), x)
    assert common.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def resolve(*flags):
    table = [
        (dict(), dict(recipe="paper", backbone="mlp", snapshot_kimg=50), common.PAPER(nz=50, nw=50, batch=128)),
        (dict(backbone="mlp"), common.OURS(lr=0.1, kimg=10.0, gamma=1.0)),
        (dict(backbone="mlp", data=("digits", "letters")), common.PAPER(kimg=5.0)),
        (dict(recipe="official"), common.CODE(kimg=7.0, gamma=10.0))]
    return common.resolve(PARSER(), "alae", table, list(flags), networks=dict, formerly={})


def PARSER():
    parser = common.method_parser("", ["mlp"])
    add = parser.group("method")
    add("--recipe", "choices")
    add("--gamma", "weight", type=float)
    add("--digits", "only there", only=dict(data="digits", recipe=("paper", "official")), default=3)
    return parser


def test_precedence_of_flags():
    assert resolve().kimg == 10
    assert resolve("--data", "digits").kimg == 5
    assert resolve("--data", "digits", "--recipe", "official").kimg == 7
    assert resolve("--data", "digits", "--recipe", "official", "--kimg", "3").kimg == 3
    assert (resolve().lr, resolve().gamma, resolve("--recipe", "official").gamma) == (0.1, 1.0, 10.0)
    assert None not in vars(resolve()).values()


def test_where_a_setting_comes_from():
    def sources(*flags):
        args = resolve(*flags)
        return [args.source.get(name) for name in ("kimg", "gamma", "batch", "width")]
    assert sources() == ["ours", "ours", "paper", None]
    assert sources("--data", "letters") == ["paper", "ours", "paper", None]
    assert sources("--recipe", "official", "--width", "2") == ["code", "code", "paper", "given"]


def test_a_flag_is_refused_where_it_means_nothing():
    assert resolve("--data", "digits", "--digits", "4").digits == "4"
    assert not hasattr(resolve("--data", "letters"), "digits")
    for flags, where in ((("--data", "letters"), "--data digits"),
                         (("--recipe", "none"), "--data digits --recipe paper or official")):
        with pytest.raises(common.Error) as e:
            resolve(*flags, "--digits", "4")
        assert str(e.value) == f"--digits is for {where}; leave it out, or pass that"


def test_flags_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit) as e:
        resolve("--gam", "3")
    assert e.value.code == 2
    assert capsys.readouterr().err.startswith("error: unrecognized arguments: --gam 3;")


@pytest.mark.parametrize(("precision", "fast", "told"), [
    ("bf16", False, True), ("bf16", True, False), ("fp32", False, False)])
def test_slow_bf16_is_told(precision, fast, told, monkeypatch):
    monkeypatch.setattr(common, "has_bf16", lambda device: fast)
    said = [*common.notes(Namespace(backbone="dcgan", width=1, precision=precision), torch.device("cpu"))]
    assert any("torch has no fast bf16 on this CPU" in line for line in said) == told


@pytest.mark.parametrize("flags", [("--batch", "0"), ("--batch", "two"), ("--kimg", "nan"), ("--kimg", "-1"),
                                   ("--lr", "inf")])
def test_numbers_are_checked(flags, capsys):
    with pytest.raises(SystemExit):
        resolve(*flags)
    assert f"argument {flags[0]}: invalid positive" in capsys.readouterr().err


@pytest.mark.parametrize("method", [alae, lia, invgan, faae])
def test_every_preset_key_is_a_flag(method, monkeypatch):
    parsers, whole = [], common.resolve
    monkeypatch.setattr(common, "resolve", lambda p, *rest, **named: parsers.append(p) or whole(p, *rest, **named))
    for backbone in method.RESOLUTIONS:
        assert None not in vars(method.parse_args(["--backbone", backbone])).values()
    flags = {action.dest for action in parsers[0]._actions}
    for condition, *rows in method.SETTINGS:
        assert set().union(condition, *rows) <= flags, condition


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    common.write_atomic(path, b"old")

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        common.write_atomic(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(autouse=True)
def restore_signals():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    run.save()
    with pytest.raises(common.Error, match=r"backbone = mlp, but args.json says dcgan"):
        make_run(tmp_path / "run", resume=str(tmp_path / "run"), backbone="dcgan")
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"PK broken")
    with pytest.raises(common.Error, match="cannot be read"):
        make_run(tmp_path / "run", resume=str(tmp_path / "run"))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = make_run(tmp_path / "run")
    run.step([torch.tensor(1.0), torch.tensor(2.0)], 10)
    run.step([torch.tensor(1.0), torch.tensor(float("nan"))], 10)
    run.step([torch.tensor(float("nan")), torch.tensor(float("nan"))], 10)
    with pytest.raises(common.Error, match=r"b is nan at 0.02 kimg;"):
        run.finish()


@pytest.mark.parametrize("stopped", [False, True])
def test_weights_that_are_not_finite_do_not_replace_a_checkpoint(tmp_path, stopped):
    """The losses of a step are of the weights before it."""
    run = make_run(tmp_path / "run")
    run.save()
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    run.step([torch.tensor(1.0), torch.tensor(2.0)], 10)
    net = next(v for v in run.state.values() if isinstance(v, nn.Module))
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = math.inf
    run.stop = stopped
    with pytest.raises(common.Error, match="has weights that are not finite at 0.01 kimg; the checkpoint of 0 kimg is"):
        run.finish() if stopped else run.snapshot(0.1, nn.Identity(), torch.zeros(1, 1, 8, 8), None)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(os, "fsync", lambda n: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    for write in (run.save, lambda: run.snapshot(0.1, nn.Identity(), torch.zeros(1, 1, 8, 8), None)):
        with pytest.raises(common.Error, match=r"could not be written \(No space left on device\); the last check"):
            write()


def test_resume_into_another_folder(tmp_path):
    run = make_run(tmp_path / "a")
    run.step([torch.tensor(1.0), torch.tensor(2.0)], 10)
    run.snapshot(0.1, nn.Identity(), torch.zeros(1, 1, 8, 8), None)
    before = {p: p.read_bytes() for p in (tmp_path / "a").glob("*.*")}
    run = make_run(tmp_path / "b", resume=str(tmp_path / "a"))
    assert run.seen == 10
    run.step([torch.tensor(1.0), torch.tensor(2.0)], 10)
    run.snapshot(0.1, nn.Identity(), torch.zeros(1, 1, 8, 8), None)
    assert len((tmp_path / "b" / "log.csv").read_text().splitlines()) == 3
    assert before == {p: p.read_bytes() for p in (tmp_path / "a").glob("*.*")}


def test_uses_of_a_seed_draw_different_numbers():
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    draws = [torch.randn(5)] + [torch.randn(5, generator=common.generator(cpu, seed, use))
                                for seed in (0, 1) for use in ("training", "pictures", "evaluation")]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_pairs_picture_keeps_each_over_its_own():
    x = torch.arange(20.0).view(20, 1, 1, 1) / 10 - 1
    picture = common.pairs(x, -x)
    shown = picture[2::3, 2::3, 0]                      # one pixel an image, two pixels between
    assert shown.shape == (2, 16)
    assert (shown[0] == common.to_uint8(x[:16, 0, 0, 0]).numpy()).all()
    assert (shown[1] == common.to_uint8(-x[:16, 0, 0, 0]).numpy()).all()
    assert common.pairs(x[:3], x[:3])[2::3, 2::3].shape[:2] == (2, 3)


@pytest.mark.parametrize(("error", "code", "line"), [
    (common.Error("a thing; do that"), 2, "error: a thing; do that\n"),
    (torch.OutOfMemoryError("CUDA out of memory"), 2, "--batch"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "--batch"),
    (OSError(errno.ENOSPC, "No space left on device", "log.csv"), 2, "log.csv: No space left on device"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "no/m.json"), 2, "no/m.json: No such file"),
    (KeyboardInterrupt(), 130, ""), (None, 0, "")])
def test_exit_codes(error, code, line, capsys):
    def main():
        if error:
            raise error
    with pytest.raises(SystemExit) as e:
        common.command(main)
    assert e.value.code == code
    assert line in capsys.readouterr().err


def test_bugs_keep_their_traceback():
    def main():
        raise RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        common.command(main)
