"""Checkpoints in the layout of ALAE's authors: read into runs, and written from them.

The writer and the networks below are worked out from the layout alone; nothing of them is the code's.
"""
import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf
from conftest import checkpoint_of, fill, noisy, options, rows_of, run_here, tiny

import alae
import common
import eval as evaluation

NETS = dict(F="mapping_fl", G="generator", E="discriminator", D="mapping_tl")
ROOT2 = math.sqrt(2)
BLUR = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


def make(size=8, fmap_base=64, fmap_max=512, nz=8, nw=8, channels=3, **kwargs):
    """A StyleALAE of the released code's layers, with random weights everywhere."""
    torch.manual_seed(0)
    kwargs = dict(d_act="none", layers="released") | kwargs
    model = alae.ALAE("stylegan", (channels, size, size), nz, nw, 1, fmap_base=fmap_base, fmap_max=fmap_max, **kwargs)
    noisy(model).mean_w.normal_()
    return model.eval().requires_grad_(False)


def write(path, model, raw=None, **more):
    """A public checkpoint of our networks, key by key."""
    models = {}
    for ending, source in dict(_s=model, **({"": raw} if raw else {})).items():
        ours, levels, nw = source.state_dict(), source.G.levels, source.nw
        sizes = [source.G.blocks[i].conv.weight.shape[0] for i in range(levels)]
        F, G, E, D = {}, {}, {}, {}
        for i in range(8):
            t = ours[f"F.layers.{i}.weight"]
            F[f"map_blocks.{i}.fc.weight"] = t * (ROOT2 * 0.1 / math.sqrt(t.shape[1]))
            F[f"map_blocks.{i}.fc.bias"] = ours[f"F.layers.{i}.bias"] * 0.1
        for i in range(3):
            t, b = ours[f"D.layer{i + 1}.weight"] * (0.1 / math.sqrt(nw)), ours[f"D.layer{i + 1}.bias"] * 0.1
            if i == 2:
                t_, b_, t, b = t, b, torch.randn(2 * nw, nw), torch.randn(2 * nw)       # which nobody reads
                t[nw], b[nw] = t_[0], b_[0]
            D[f"map_blocks.{i}.weight"], D[f"map_blocks.{i}.bias"] = t, b
        G["const"] = ours["G.blocks.0.constant"][None]
        for i, c in enumerate(sizes):
            k, below = levels - 1 - i, sizes[max(i - 1, 0)]
            for n in (1, 2):
                layer = f"G.blocks.{i}.layer{n}"
                G[f"decode_block.{i}.bias_{n}"] = ours[f"{layer}.bias"][None]
                G[f"decode_block.{i}.noise_weight_{n}"] = ours[f"{layer}.noise_gain"][None]
                G[f"decode_block.{i}.style_{n}.weight"] = ours[f"{layer}.style.weight"] / math.sqrt(nw)
                G[f"decode_block.{i}.style_{n}.bias"] = ours[f"{layer}.style.bias"]
            if i:
                t = ours[f"G.blocks.{i}.up.weight"] * (ROOT2 / math.sqrt(9 * below))
                if 4 * 2**i >= 128:
                    t = t.permute(1, 0, 2, 3).flip(2).flip(3).contiguous()
                G[f"decode_block.{i}.conv_1.weight"] = t
            G[f"decode_block.{i}.conv_2.weight"] = ours[f"G.blocks.{i}.conv.weight"] * (ROOT2 / math.sqrt(9 * c))
            G[f"decode_block.{i}.blur.weight"] = BLUR.expand(c, 1, 3, 3)
            G[f"to_rgb.{i}.to_rgb.weight"] = ours[f"G.to_rgb.{i}.weight"] * (0.03 / math.sqrt(c))
            G[f"to_rgb.{i}.to_rgb.bias"] = ours[f"G.to_rgb.{i}.bias"]
            for n, (name, width) in enumerate(dict(conv=c, down=below).items(), 1):
                t = ours[f"E.blocks.{i}.{name}.weight"]
                E[f"encode_block.{k}.conv_{n}.weight"] = t * (ROOT2 / math.sqrt(9 * c))
                E[f"encode_block.{k}.bias_{n}"] = ours[f"E.blocks.{i}.{name}.bias"].reshape(1, -1, 1, 1)
                C = f"E.C.{2 * i + n - 1}"
                E[f"encode_block.{k}.style_{n}.weight"] = ours[f"{C}.weight"] / math.sqrt(2 * width)
                E[f"encode_block.{k}.style_{n}.bias"] = ours[f"{C}.bias"]
            E[f"encode_block.{k}.blur.weight"] = BLUR.expand(c, 1, 3, 3)
            t = ours[f"E.from_rgb.{i}.weight"]
            E[f"from_rgb.{k}.from_rgb.weight"] = t * (ROOT2 / math.sqrt(t.shape[1]))
            E[f"from_rgb.{k}.from_rgb.bias"] = ours[f"E.from_rgb.{i}.bias"]
        models.update({f"{NETS[name]}{ending}": net for name, net in zip("FGED", (F, G, E, D))})
    models["dlatent_avg"] = dict(buff=model.mean_w.repeat(2 * model.G.levels, 1))
    models = {name: {key: t.clone() for key, t in net.items()} for name, net in models.items()}
    torch.save(dict(models=models, **more), path)
    return models


# ------------------------------------------------------------------------------- their networks, on their tensors

def lrelu(x):
    return nnf.leaky_relu(x, 0.2)


def up(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def blurred(x):
    return nnf.conv2d(x, BLUR.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])


def linear(net, key, x):
    return x @ net[f"{key}.weight"].T + net[f"{key}.bias"]


def their_F(net, z):
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for i in range(8):
        x = lrelu(linear(net, f"map_blocks.{i}.fc", x))
    return x


def their_D(net, w):
    for i in range(3):
        w = linear(net, f"map_blocks.{i}", w)
    return w[:, w.shape[1] // 2, None]


def their_G(net, w, noise, level, alpha):
    def rgb(i, x):
        return nnf.conv2d(x, net[f"to_rgb.{i}.to_rgb.weight"], net[f"to_rgb.{i}.to_rgb.bias"])
    x = net["const"].repeat(len(w), 1, 1, 1)
    for i in range(level + 1):
        block, before = f"decode_block.{i}", x
        if i and 4 * 2**i < 128:
            x = blurred(nnf.conv2d(up(x), net[f"{block}.conv_1.weight"], padding=1))
        elif i:                 # a transposed convolution of stride 2 with the kernel's four shifts added up
            k = nnf.pad(net[f"{block}.conv_1.weight"], (1, 1, 1, 1))
            k = k[:, :, 1:, 1:] + k[:, :, :-1, 1:] + k[:, :, 1:, :-1] + k[:, :, :-1, :-1]
            x = blurred(nnf.conv_transpose2d(x, k, stride=2, padding=1))
        for n in (1, 2):
            if n == 2:
                x = nnf.conv2d(x, net[f"{block}.conv_2.weight"], padding=1)
            x = lrelu(x + net[f"{block}.noise_weight_{n}"] * noise[2 * i + n - 1] + net[f"{block}.bias_{n}"])
            x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-8).sqrt()
            scale, shift = linear(net, f"{block}.style_{n}", w)[:, :, None, None].chunk(2, 1)
            x = x * (1 + scale) + shift
    return rgb(level, x) if alpha == 1 else alpha * rgb(level, x) + (1 - alpha) * up(rgb(level - 1, before))


def their_E(net, x, levels, level, alpha):
    def rgb(k, x):              # leaky ReLU twice
        return lrelu(lrelu(nnf.conv2d(x, net[f"from_rgb.{k}.from_rgb.weight"], net[f"from_rgb.{k}.from_rgb.bias"])))
    w, first = 0, levels - 1 - level
    y = rgb(first, x)
    for k in range(first, levels):
        block = f"encode_block.{k}"
        for n in (1, 2):
            if n == 2:
                y = blurred(y)
            y = nnf.conv2d(y, net[f"{block}.conv_{n}.weight"], padding=1)
            if n == 2:
                y = nnf.avg_pool2d(y, 2)
            y = lrelu(y + net[f"{block}.bias_{n}"])
            mean, std = y.mean((2, 3)), y.std((2, 3), correction=0)
            w = w + linear(net, f"{block}.style_{n}", torch.cat([mean, std], 1)) * (alpha if k == first else 1)
            y = (y - mean[:, :, None, None]) / std[:, :, None, None]
        if k == first and alpha < 1:
            y = alpha * y + (1 - alpha) * rgb(k + 1, nnf.avg_pool2d(x, 2))
    return w


def assert_agree(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def unequal(a, b):
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


@pytest.mark.parametrize(("size", "fmap_max"), [(32, 512), (64, 256), (128, 256), (128, 512)])
def test_networks_agree_with_theirs(here, capsys, size, fmap_max):
    model = make(size, 2048, fmap_max, nz=16, nw=16)
    models = write("a.pth", model)
    assert models["generator_s"]["const"].shape == (1, fmap_max, 4, 4)
    alae.main(["--official", "a.pth"])
    run = f"runs/alae-official-stylegan-a-{size}"
    out = capsys.readouterr().out
    assert f"{size}x{size}, RGB; {fmap_max} channels at 4 px to {4096 // size} at {size}; z of 16, w of 16" in out
    assert f"python eval.py figure reconstructions {run} --images" in out
    found = alae.load(run)
    F, G, E, D = (models[f"{name}_s"] for name in NETS.values())
    generator = torch.Generator().manual_seed(1)
    x, z, w = (torch.randn(2, *shape, generator=generator) for shape in ((3, size, size), (16,), (16,)))
    noise = [torch.randn(2, 1, *found.G.size(i // 2), generator=generator) for i in range(found.num_layers)]
    assert_agree(found.map(z), their_F(F, z))
    assert_agree(found.D(w), their_D(D, w))
    assert torch.equal(found.mean_w, model.mean_w)
    top = found.G.levels - 1
    for level, alpha in ((top, 1.0), (top, 0.3), (top - 1, 1.0)):
        common.grow(level, alpha, found)
        x = nnf.avg_pool2d(x, x.shape[2] // found.E.size()[0])
        assert_agree(found.G(w, noise), their_G(G, w, noise, level, alpha))
        assert_agree(found.E(x), their_E(E, x, top + 1, level, alpha))


def test_averaged_and_raw_weights_of_a_file(here, capsys):
    """Of several processes, with an optimiser next to them; training goes on with fresh ones, on any set at first."""
    model, raw = make(), make()
    for p in raw.parameters():
        p.data += 1
    models = write("b.pth", model, raw, auxiliary=dict(optimizer=dict(state={0: dict(exp_avg=torch.ones(3))})))
    models = {name: {f"module.{key}": t for key, t in net.items()} for name, net in models.items()}
    torch.save(dict(models=models), "c.pth")
    for name in "bc":
        alae.main(["--official", f"{name}.pth", "--out", name, "--batch", "4"])
        assert "averaged weights and raw ones" in capsys.readouterr().out
    args, checkpoint = common.read_args("b"), checkpoint_of(here / "b")
    assert [args[k] for k in ("recipe", "gamma", "step3", "flip", "fade", "adam_state")] == [
        "official", 10, "EGF", "on", "sine", "fresh"]       # as it trains on
    assert "auto" not in evaluation.View("b", options()).protocol
    assert not unequal(checkpoint["state"]["ema"], checkpoint_of(here / "c")["state"]["ema"])
    for which, source in dict(model=raw, ema=model).items():
        for key, value in source.named_parameters():
            torch.testing.assert_close(checkpoint["state"][which][key], value, rtol=1e-6, atol=0, msg=key)
    assert not any(checkpoint["state"][f"opt_{net}"]["state"] for net in "FGED")

    run_here(alae.main, "--resume", "b", "--data", fill(here / "p", 20, mode="RGB"), "--kimg", "0.008")
    assert "optimisers, and the averaging of weights, begin fresh" in capsys.readouterr().out
    assert [row["kimg"] for row in rows_of(here / "b" / "log.csv")] == ["0.0", "0.008"]
    assert len(checkpoint_of(here / "b")["state"]["opt_G"]["state"])
    assert common.read_args("b")["train_images"] == 18
    with pytest.raises(common.Error, match="was trained on 18 images 3x8x8, and q has 27"):
        alae.main(["--resume", "b", "--data", str(fill(here / "q", 30, mode="RGB"))])
    run_here(alae.main, "--resume", "b", "--kimg", "0.012")
    assert "fresh" not in capsys.readouterr().out


def make_run(folder, model, **settings):
    """A run folder of a model that `make` made."""
    given = dict(image_shape=model.image_shape, nz=model.nz, nw=model.nw, fmap_base=64) | settings
    flags = "--backbone stylegan --recipe official --kimg 1 --snapshot-kimg 1 --batch 1 --lr 1"
    args = vars(alae.parse_args(flags.split())) | given
    common.save(folder / "checkpoint.pt", dict(args={}, seen=0, state=dict(ema=model.state_dict())))
    common.write_atomic(folder / "args.json", json.dumps(args).encode())


@pytest.mark.parametrize("more", [dict(), dict(size=128, fmap_base=512), dict(channels=1)])
def test_a_run_goes_out_and_comes_back(here, capsys, more):
    """As the writer above has it; and back to the bit, noise and all, because the noise depends on the seed alone."""
    model = make(**more)
    make_run(here / "run", model, **{key: more[key] for key in more if key == "fmap_base"})
    alae.main(["--export", "out.pth", "--resume", "run"])
    assert "note" not in capsys.readouterr().out
    found = torch.load("out.pth", weights_only=True)["models"]
    for name, net in write("a.pth", model).items():
        assert net.keys() == found[name].keys()
        for key, t in net.items():
            value = found[name][key].float()
            if name == "mapping_tl_s" and "map_blocks.2." in key:       # the row that is read
                t, value = t[model.nw], value[model.nw]
            torch.testing.assert_close(value, t, rtol=1e-6, atol=0, msg=key)
    alae.main(["--official", "out.pth", "--out", "back"])
    assert unequal(checkpoint_of(here / "back")["state"]["ema"], model.state_dict()) == []


def test_other_ends_go_out_with_a_note(here, capsys):
    """F and G are the same there; D has no activations and E other slopes."""
    model = make(d_act="lrelu", layers="paper")
    make_run(here / "run", model, d_act="lrelu", layers="paper")
    alae.main(["--export", "out.pth", "--resume", "run"])
    assert "so they give other codes or scores" in capsys.readouterr().out
    alae.main(["--official", "out.pth", "--out", "back"])
    back, z = alae.load("back"), torch.randn(2, 8)
    torch.testing.assert_close(back.generate(back.map(z)), model.generate(model.map(z)), rtol=1e-5, atol=1e-5)
    assert not any(C.bias.any() for C in back.E.C)


def refused(*argv):
    with pytest.raises(common.Error) as e:
        alae.main([str(word) for word in argv])
    assert "\n" not in str(e.value)
    return str(e.value)


def test_each_damage_is_named(here):
    models = write("a.pth", make())
    places = [("generator_s", "const"), ("generator_s", "to_rgb.0.to_rgb.weight"),
              ("generator_s", "to_rgb.1.to_rgb.weight"), ("generator_s", "decode_block.1.conv_1.weight"),
              ("generator_s", "decode_block.0.bias_1"), ("discriminator_s", "encode_block.1.bias_1"),
              ("discriminator_s", "encode_block.0.style_2.bias"), ("discriminator_s", "from_rgb.0.from_rgb.weight"),
              ("mapping_fl_s", "map_blocks.0.fc.weight"), ("mapping_fl_s", "map_blocks.0.fc.bias"),
              ("mapping_fl_s", "map_blocks.7.fc.weight"),
              ("mapping_tl_s", "map_blocks.2.weight"), ("dlatent_avg", "buff")]
    for net, key in places:
        t = models[net][key]
        damages = {"is missing": None, "is unexpected": t, "not finite": t * math.inf,
                   "is no tensor of numbers": t.long(), "not": torch.cat([t, t], min(1, t.ndim - 1))}
        for what, damaged in damages.items():
            broken = {name: dict(tensors) for name, tensors in models.items()}
            if damaged is None:
                del broken[net][key]
            else:
                broken[net][key if what != "is unexpected" else f"{key}.more"] = damaged
            torch.save(dict(models=broken), "x.pth")
            line = refused("--official", "x.pth", "--out", "x")
            named = f"{key}.more" if what == "is unexpected" else key
            assert re.match(rf"x\.pth: {net} {re.escape(named)} .*{what}", line), line
    models["generator_s"]["decode_block.1.blur.weight"][0, 0, 1, 1] = 0.3
    torch.save(dict(models=models), "x.pth")
    assert "generator_s decode_block.1.blur.weight is not (1 2 1) / 4" in refused("--official", "x.pth", "--out", "x")
    del models["discriminator_s"]
    torch.save(dict(models=models), "x.pth")
    assert "models has no discriminator_s" in refused("--official", "x.pth", "--out", "x")
    assert not (here / "x").exists()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_files_that_are_none(here):
    write("a.pth", make(), auxiliary=Bomb())
    line = refused("--official", "a.pth")
    assert re.search(r"wants \w+\.mkdir to be run, which is refused", line)
    assert not Path("exploded").exists()
    for content in (torch.zeros(3), [1], dict(state=1), dict(models=[1]), dict(models=torch.zeros(2))):
        torch.save(content, "a.pth")
        assert "is no dict with state dicts in 'models'" in refused("--official", "a.pth")
    write("a.pth", make())
    whole = Path("a.pth").read_bytes()
    for content in (b"", whole[:len(whole) // 2], b"<html>not found</html>"):
        Path("a.pth").write_bytes(content)
        assert "a.pth cannot be read; it is damaged" in refused("--official", "a.pth")
    assert "cannot be opened (No such file" in refused("--official", "b.pth")
    assert "cannot be opened (Is a directory" in refused("--official", here)
    assert not Path("runs").exists()


def test_note_of_a_file_from_before_the_end_of_training(here, capsys):
    models = write("a.pth", make())
    models["dlatent_avg"]["buff"][3] += 1
    torch.save(dict(models=models), "a.pth")
    alae.main(["--official", "a.pth", "--out", "a"])
    assert "its training had not ended" in capsys.readouterr().out
    assert "already holds a run" in refused("--official", "a.pth", "--out", "a")


def test_what_is_not_exported(here):
    model = make()
    for name, settings in {"mlp": dict(backbone="mlp"), "dcgan": dict(backbone="dcgan"),
                           "not square": dict(backbone="stylegan")}.items():
        make_run(here / name, model, **settings)
        args = json.loads(Path(name, "args.json").read_text())
        Path(name, "args.json").write_text(json.dumps(args | dict(image_shape=[3, 4, 8])))
        assert f"is of {settings['backbone']}, 8x4, and the authors' code has square stylegan alone" in refused(
            "--export", "out.pth", "--resume", name)
    common.grow(1, 0.5, model)
    make_run(here / "run", model)
    assert "has grown to" in refused("--export", "out.pth", "--resume", "run")
    make_run(here / "odd", make(fmap_base=50), fmap_base=50)
    assert "odd has [25, 12] channels, and the authors' code doubles them" in refused(
        "--export", "out.pth", "--resume", "odd")
    make_run(here / "two", make(nz=6))
    assert "two has --nz 6 and --nw 8, and the authors' code has one size" in refused(
        "--export", "out.pth", "--resume", "two")
    Path("out.pth").touch()
    assert "out.pth exists" in refused("--export", "out.pth", "--resume", "run")
    with pytest.raises(SystemExit):
        alae.main(["--official", "a.pth", "--nz", "3"])         # which the file decides


def test_most_channels():
    assert [common.style_channels(level, 1, 4096, 256) for level in range(6)] == [256, 256, 256, 256, 128, 64]
    args = alae.parse_args(["--data", "celeba"])
    assert (args.fmap_base, args.fmap_max, args.nz, args.nw) == (4096, 256, 256, 256)
    assert alae.parse_args(["--data", "ffhq"]).fmap_max == 512
    _, model, _ = tiny(alae, "--backbone", "stylegan", "--fmap-max", "64")
    assert model.G.channels == model.E.channels == [4, 4]       # over --width 16
