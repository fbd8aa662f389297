"""Frozen networks and distances, beside the packages that the field takes them from, on random weights."""
import hashlib
import json
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import change, fill, options
from PIL import Image
from torch import nn

import common
import eval as evaluation


@pytest.fixture(scope="session")
def inception_weights():
    from torchvision.models import inception_v3
    torch.manual_seed(0)
    net = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
            m.weight.data.uniform_(0.8, 1.2)
            m.bias.data.normal_(0, 0.1)
    return net.state_dict()


@pytest.fixture(scope="session")
def vgg_weights():
    from torchvision.models import vgg16
    torch.manual_seed(0)
    return vgg16(weights=None).state_dict()


def head_weights():
    torch.manual_seed(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 128, 256, 512, 512))}


def smooth(n, seed, size=40):
    """Images (n, 3, size, size) in [-1, 1], uint8's values."""
    torch.manual_seed(seed)
    x = torch.nn.functional.interpolate(torch.rand(n, 3, 8, 8), size=(size, size), mode="bicubic")
    return common.to_float(common.to_uint8(2 * x - 1))


# ------------------------------------------------------------------------------------------ Inception, FID, KID

@pytest.fixture
def pytorch_fid(inception_weights, monkeypatch):
    """pytorch_fid's network at one of its layers, with the same weights."""
    inception = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed")
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: inception_weights)
    return lambda d: inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[d]]).eval()


@pytest.mark.parametrize("d", [64, 192, 2048])
def test_inceptions_features(pytorch_fid, inception_weights, d):
    x = smooth(3, 0)[:, :, :, :31]
    with torch.no_grad():
        theirs = pytorch_fid(d)((x + 1) / 2)[0].mean((2, 3))
        ours = evaluation.Inception(inception_weights).eval().features(x, d)
    assert theirs.abs().mean() > 0.05
    assert (theirs - ours).abs().max() < 1e-4


def test_inception_sees_uint8_and_grey(inception_weights):
    net = evaluation.Inception(inception_weights).eval().requires_grad_(False)
    x = smooth(4, 0)
    f = net.features(x, 64)
    assert f.shape == (4, 64)
    assert torch.equal(net.features(x + 0.3 / 127.5, 64), f)            # rounded away
    assert not torch.equal(net.features(x + 0.7 / 127.5, 64), f)
    assert torch.equal(net.features(x[:, :1], 64), net.features(x[:, :1].repeat(1, 3, 1, 1), 64))


def test_fid_of_folders(pytorch_fid, inception_weights, tmp_path):
    """Of more images than features, whose covariances have no doubtful roots."""
    from pytorch_fid import fid_score
    d, sets, theirs, ours = 64, (smooth(80, 0), 0.8 * smooth(90, 1) - 0.1), [], []
    net = evaluation.Inception(inception_weights).eval().requires_grad_(False)
    extractor = Namespace(d=d, batch=50, features=lambda x: net.features(x, d))
    for name, x in zip("ab", sets, strict=True):
        (tmp_path / name).mkdir()
        for i, image in enumerate(common.to_uint8(x).permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(tmp_path / name / f"{i:04}.png")
        theirs.append(fid_score.calculate_activation_statistics(
            sorted((tmp_path / name).iterdir()), pytorch_fid(d), 50, d, num_workers=0))
        view = Namespace(batch=30, device=torch.device("cpu"))
        ours.append(evaluation.features_of(view, extractor, name, len(x), lambda a, b, x=x: x[a:b])[0].gaussian())
    value = fid_score.calculate_frechet_distance(*theirs[0], *theirs[1])
    assert value > 0.1
    assert evaluation.frechet(*ours) == pytest.approx(value, rel=1e-4)


def test_kernel_distance_is_kid():
    kid = pytest.importorskip("torch_fidelity.metric_kid", reason="torch-fidelity is not installed")
    torch.manual_seed(0)
    a, b = torch.randn(300, 20), torch.randn(260, 20) * 1.2 + 0.1
    theirs = kid.kid_features_to_metric(a, b, kid_subsets=10, kid_subset_size=100, rng_seed=7, verbose=False)
    mean, deviation = evaluation.kernel_distance(a, b, 7, subsets=10, size=100)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6)


def test_kernel_distance_by_hand():
    a, b = torch.tensor([[0.0, 0], [2, 0], [1, 1]]), torch.tensor([[0.0, 2], [2, 2], [1, 0]])

    def k(x, y):
        return ((x * y).sum().item() / 2 + 1)**3
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = (sum(k(a[i], a[j]) + k(b[i], b[j]) for i, j in pairs) / 6
                - 2 * sum(k(x, y) for x in a for y in b) / 9)
    assert evaluation.kernel_distance(a, b, 0, subsets=3) == pytest.approx((expected, 0), abs=1e-9)
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    same, far = evaluation.kernel_distance(x[:2000], x[2000:], 0), evaluation.kernel_distance(x[:2000], x[2000:] + 1, 0)
    assert abs(same[0]) < 2 * same[1] / 10 + 0.01 < far[0] / 20


# ------------------------------------------------------------------------------------------------- VGG, LPIPS

def test_lpips(vgg_weights):
    lpips = pytest.importorskip("lpips", reason="lpips is not installed")
    theirs, heads = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False), head_weights()
    convs = [m for m in theirs.net.modules() if isinstance(m, nn.Conv2d)]
    ours = [key for key in vgg_weights if key.startswith("features") and vgg_weights[key].ndim == 4]
    for conv, key in zip(convs, ours, strict=True):
        conv.load_state_dict(dict(weight=vgg_weights[key], bias=vgg_weights[key.replace("weight", "bias")]))
    theirs.load_state_dict(heads, strict=False)
    net = evaluation.LPIPS(common.VGG(vgg_weights), heads).eval()
    a, b = smooth(4, 0, 48), smooth(4, 1, 48)
    with torch.no_grad():
        for x, y in ((a, b), (a, a), (a[:, :1], b[:, :1])):
            expected = theirs(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)).flatten()
            torch.testing.assert_close(net(x, y), expected, rtol=1e-5, atol=1e-7)
    assert net(a, b).min() > 1e-3


def test_the_packages_heads_are_the_ones_that_are_named():
    lpips = pytest.importorskip("lpips", reason="lpips is not installed")
    from pathlib import Path
    weights = (Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth").read_bytes()
    assert hashlib.sha256(weights).hexdigest()[:8] == common.FROZEN["lpips"][1]


def test_vggs_features(vgg_weights):
    from torchvision.models import vgg16
    net = common.VGG(vgg_weights).eval().requires_grad_(False)
    x = smooth(2, 0, 48).requires_grad_()
    with torch.device("meta"):
        plain = vgg16(weights=None)
    plain.load_state_dict(vgg_weights, assign=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = ((x + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    f = net.conv4_3(x)
    assert f.shape == (2, 512, 6, 6)
    torch.testing.assert_close(f, plain.features[:23](seen), rtol=1e-4, atol=1e-5)
    taps = net(x)
    assert [t.shape[1] for t in taps] == [64, 128, 256, 512, 512]
    assert torch.equal(taps[3], f)
    f.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())


# -------------------------------------------------------------------------------------------------- the files

def test_frozen_weights(tmp_path, monkeypatch, capsys):
    """Fetched from a file:// address, and checked; a file that is given is taken as it is, under no official name."""
    source = tmp_path / "public" / "net.pth"
    source.parent.mkdir()
    torch.save({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]

    def build(weights):
        net = nn.Linear(3, 2)
        net.load_state_dict(weights)
        return net

    def get(file="", cache="cache", digest=digest, url=""):
        monkeypatch.setitem(common.FROZEN, "vgg", (url or source.as_uri(), digest))
        return common.frozen("vgg", str(file), tmp_path / cache, build)
    net = get()
    assert (net.official, net.checksum, net.training) == (True, digest, False)
    assert not any(p.requires_grad for p in net.parameters())
    assert "fetching file:" in capsys.readouterr().out
    assert get().official
    assert capsys.readouterr().out == ""                                    # from the cache
    assert get(source, digest="00000000").official is False
    assert get(source).official
    with pytest.raises(common.Error, match="cannot be fetched .*pass --vgg FILE"):
        get(cache="two", digest="00000000")
    assert not list((tmp_path / "two").iterdir())
    with pytest.raises(common.Error, match="cannot be fetched .*get file:.*/nowhere.pth by other means"):
        get(cache="two", url=(tmp_path / "nowhere.pth").as_uri())
    with pytest.raises(common.Error, match="there is no .*none.pth; --vgg takes the file that is at file:"):
        get(tmp_path / "none.pth")
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.ones(2, 3)}, other)
    with pytest.raises(common.Error, match="does not hold the vgg weights, but others; --vgg takes the file .*file:"):
        get(other)
    other.write_bytes(b"nothing")
    with pytest.raises(common.Error, match="cannot be read as weights .*; --vgg takes the file that is at file:"):
        get(other)
    torch.save([1, 2], other)
    with pytest.raises(common.Error, match="does not hold the vgg weights, but others"):
        get(other)
    torch.save({"weight": torch.zeros(2, 3), "bias": torch.ones(2)}, tmp_path / "cache" / "net.pth")
    with pytest.raises(common.Error, match="is not the file that is at .*; delete it"):
        get()
    (tmp_path / "cache" / "net.pth").write_bytes(b"broken")
    with pytest.raises(common.Error, match="cannot be read as weights .*; delete it, and it is fetched again"):
        get()


def test_metrics_by_inception(dummy, inception_weights, here, monkeypatch, capsys):
    """Random weights are no FID."""
    monkeypatch.setattr(evaluation.Inception, "d", 64)                      # for speed
    torch.save(inception_weights, "random.pth")
    run = str(change(dummy("run"), data=str(fill(here / "set", 20, size=(28, 28))), train_images=18))
    flags = "metrics", run, "--features", "inception", "--inception"
    evaluation.main([*flags, "random.pth", "--only", "frechet", "--json", "m.json"])
    out, checksum = capsys.readouterr().out, hashlib.sha256((here / "random.pth").read_bytes()).hexdigest()[:8]
    for text in ("Frechet (random.pth): samples ", "warning: 2 images are too few for 64 features",
                 f"features of Inception {checksum}, images uint8, bilinear to 299 px; grey repeated to RGB; 2 of each "
                 f"against 18 training images"):
        assert text in out, text
    assert "FID" not in out
    assert "KID" not in out
    numbers = json.loads((here / "m.json").read_text())[run]["frechet"]
    assert numbers["frechet_real"] > 0
    assert list((here / "cache").glob(f"reference-{checksum}-*.pt"))
    with pytest.raises(common.Error, match=r"there is no none.pth; --inception takes the file that is at https://"):
        evaluation.main([*flags, "none.pth"])
    evaluation.main(["metrics", run])
    out = capsys.readouterr().out
    assert "frechet:     left out: " in out
    assert "--features inception and vgg16 need none" in out


@pytest.fixture(scope="module")
def trunk(vgg_weights, tmp_path_factory):
    """A file of VGG-16's convolutions alone, in half precision."""
    path = tmp_path_factory.mktemp("vgg") / "trunk.pth"
    torch.save({k: v.half() for k, v in vgg_weights.items() if k.startswith("features.")}, path)
    return path


def test_vgg_without_its_top(vgg_weights, trunk, tmp_path):
    net = common.frozen("vgg", str(trunk), tmp_path, common.VGG)
    x = smooth(2, 0, 32)
    for ours, whole in zip(net(x), common.VGG(vgg_weights)(x), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - whole).abs().max() < 0.01 * whole.abs().max()
    weights = torch.load(trunk)
    for damage in ({k: v for k, v in weights.items() if k != "features.28.bias"},                   # missing
                   {**weights, "features.0.weight": torch.zeros(64, 1, 3, 3)},                      # misshapen
                   {**weights, "features.31.weight": torch.zeros(1)}, {**weights, "features.0.bias": "none"}, {1: 2}):
        torch.save(damage, tmp_path / "bad.pth")
        with pytest.raises(common.Error, match="bad.pth does not hold the vgg weights, but others; --vgg takes"):
            common.frozen("vgg", str(tmp_path / "bad.pth"), tmp_path, common.VGG)


def test_frechet_by_vgg16(dummy, trunk, script, tmp_path, monkeypatch):
    """Named after the file, never FID, whatever its checksum."""
    checksum = hashlib.sha256(trunk.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(common.FROZEN, "vgg", ("https://x/v.pth", checksum))
    args = options(n=6, features="vgg16", vgg=str(trunk), cache=tmp_path)
    view = evaluation.View(dummy("run", dim=0.5), args)
    view.train.ids, view.train.pixels = view.train.ids[:9], view.train.pixels[:9]
    m, how, title, notes = evaluation.measure_frechet(view, args, ["reconstructions"])
    lines = [*evaluation.show_frechet(m, title), *notes]
    assert lines[0].startswith(f"Frechet (trunk.pth {checksum}): ")
    assert f"features of VGG-16 conv5_3, trunk.pth {checksum}, images uint8; grey repeated to RGB; 6 of each" in how
    assert "FID" not in "".join(lines) + how
    net = common.frozen("vgg", str(trunk), tmp_path, common.VGG)

    def gaussian(x):
        f = net(common.to_float(common.to_uint8(x)))[-1].mean((2, 3)).double()
        return f.mean(0), f.T.cov()
    with torch.no_grad():
        real, made = gaussian(view.images(range(9), "train")), gaussian(0.5 * view.images(range(6)))
    assert m["frechet_reconstructions"] == pytest.approx(evaluation.frechet(made, real), rel=1e-3)
    view.shape = 1, 8, 8
    with pytest.raises(evaluation.Lacks, match="halves images four times; these, of 8 px, are too small"):
        evaluation.extractor_of(view, args)
    flags = ("--features", "vgg16", "--vgg", trunk, "-n", 4, "--cache", tmp_path)
    run = view.run
    change(run, data=str(fill(tmp_path / "set", 20, size=(28, 28))), train_images=18)
    assert f"Frechet (trunk.pth {checksum}): samples" in script("eval.py", "metrics", run, *flags, "--only", "frechet"
                                                                ).stdout
    assert f"Frechet (trunk.pth {checksum})\n" in script("eval.py", "table", "lia-1", run, *flags).stdout
    script("eval.py", "invert", run, "--vgg", trunk, "--loss", "vgg9", "--steps", 2, "-n", 2)
    script("eval.py", "invert", run, "--vgg", trunk, "--loss", "vgg9", "--steps", 2, "-n", 2, "--method", "in-domain")


def test_published_weights_alone_are_named(dummy, inception_weights, tmp_path, monkeypatch):
    torch.save(inception_weights, tmp_path / "inception.pth")
    sha = hashlib.sha256((tmp_path / "inception.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(common.FROZEN, "inception", ("https://x/inception.pth", sha))
    monkeypatch.setattr(evaluation.Inception, "d", 64)                      # for speed
    args = options(n=2, features="inception", inception=str(tmp_path / "inception.pth"), cache=tmp_path)
    view = evaluation.View(dummy("run"), args)
    view.train.ids, view.train.pixels = view.train.ids[:4], view.train.pixels[:4]
    m, _, title, _ = evaluation.measure_frechet(view, args)
    lines = evaluation.show_frechet(m, title)
    assert lines[0].startswith("FID: samples ")
    assert lines[1].startswith("KID (")
    assert {"fid_samples", "fid_resamples", "fid_reconstructions", "fid_midpoints", "kid_samples"} < set(m)


def test_lpips_of_files(dummy, vgg_weights, tmp_path, monkeypatch):
    torch.save({k: v for k, v in vgg_weights.items() if k.startswith("features.")}, tmp_path / "v.pth")
    torch.save(head_weights(), tmp_path / "h.pth")
    args = options(n=3, cache=tmp_path, vgg=str(tmp_path / "v.pth"), lpips=str(tmp_path / "h.pth"))
    view = evaluation.View(dummy("run"), args)
    m, how, title, _ = evaluation.measure_lpips(view, args)
    assert evaluation.show_lpips(m, title)[0].startswith("distance (v.pth, h.pth): ")
    assert "heads " in how
    assert how.count("(not the published one)") == 2
    assert "; grey repeated to RGB" in how
    net = evaluation.LPIPS(common.VGG(vgg_weights), head_weights())
    x = view.images(range(3))
    assert m["distance"] == pytest.approx(net(0.9 * x, x).mean().item(), rel=1e-4)
    sha = hashlib.sha256((tmp_path / "h.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(common.FROZEN, "lpips", ("https://x/h.pth", sha))
    assert evaluation.lpips_of(view, args).title == "distance (v.pth, h.pth)"           # VGG is still another
    sha = hashlib.sha256((tmp_path / "v.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(common.FROZEN, "vgg", ("https://x/v.pth", sha))
    assert set(evaluation.measure_lpips(view, args)[0]) == {"lpips", "lpips_mean_image", "lpips_wrong_pair", "n"}
    assert evaluation.lpips_of(view, args).title == "LPIPS"
    with pytest.raises(common.Error, match="does not hold the lpips weights, but others"):
        evaluation.lpips_of(view, options(cache=tmp_path, vgg=args.vgg, lpips=args.vgg))
    view.shape = (1, 8, 8)
    with pytest.raises(evaluation.Lacks, match="halves images four times; these, of 8 px, are too small"):
        evaluation.lpips_of(view, args)
    view.shape = (1, 28, 28)
    with pytest.raises(evaluation.Lacks, match="these, of 12 px after the face crop, are too small"):
        evaluation.lpips_of(view, args, crop=True)


# ---------------------------------------------------------------------------------------------------- SWD, slerp
# The published algorithm (ProGAN, section 5) in plain numpy.

BINOMIAL = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256


def np_blur(x, gain=1.0):
    padded = np.pad(x, [(0, 0), (0, 0), (2, 2), (2, 2)], mode="reflect")
    h, w = x.shape[2:]
    return gain * sum(BINOMIAL[i, j] * padded[:, :, i:i + h, j:j + w] for i in range(5) for j in range(5))


def np_pyramid(x):
    levels = [x]
    while min(levels[-1].shape[2:]) >= 32:
        small = np_blur(levels[-1])[:, :, ::2, ::2]
        large = np.zeros_like(levels[-1])
        large[:, :, ::2, ::2] = small
        levels[-1] = levels[-1] - np_blur(large, 4)
        levels.append(small)
    return levels


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 28, 28), (3, 96, 128), (3, 63, 250)])
def test_laplacian_pyramid(shape):
    x = torch.rand(2, *shape).double() * 255
    theirs = np_pyramid(x.numpy())
    assert evaluation.swd_levels(shape) == [t.shape[2:] for t in theirs]
    for level, t in enumerate(theirs):
        torch.testing.assert_close(evaluation.laplacian(x, level), torch.from_numpy(t))
    assert evaluation.swd_levels((3, 15, 40)) == []


def test_patches():
    x = torch.arange(2 * 3 * 20 * 24).view(2, 3, 20, 24).float()
    p = evaluation.patches(x, torch.randint(3, 17, (2, 50)), torch.randint(3, 21, (2, 50)))
    assert p.shape == (100, 3, 7, 7)
    for patch, first in zip(p, p[:, 0, 0, 0].long().tolist(), strict=True):
        image, row, col = first // 1440, first % 1440 // 24, first % 24
        assert torch.equal(patch, x[image, :, row:row + 7, col:col + 7])
    assert (p[:, 0, 0, 0].long() // 1440).tolist() == [0] * 50 + [1] * 50


def test_descriptors():
    """128 patches an image from every place where one fits, the same in any batch."""
    x = torch.arange(160 * 12 * 14).view(160, 1, 12, 14) % 251
    sets = []
    for batch in (160, 7):
        view = Namespace(shape=(1, 12, 14), device=torch.device("cpu"), batch=batch)
        sets.append(evaluation.descriptors(view, "x", 160, lambda a, b: common.to_float(x[a:b]), 0, (12, 14),
                                           [0, 1]))
    assert torch.equal(*sets)
    assert sets[0].shape == (160 * 128, 1, 7, 7)
    places = x.float().unfold(2, 7, 1).unfold(3, 7, 1)                      # [160,1,6,8,7,7]
    for image in (0, 159):
        own = {tuple(p.flatten().tolist()) for p in sets[0][128 * image:128 * (image + 1)]}
        assert own <= {tuple(p.flatten().tolist()) for p in places[image].flatten(0, 2)}
        assert len(own) > 30
    rows = [(p[0, 0, 0] - x[i // 128, 0, 0, 0]) % 251 // 14 for i, p in enumerate(sets[0])]
    assert {int(r) for r in rows} >= set(range(6))


def test_sliced_wasserstein_distance():
    a, b = (evaluation.patches(x, *torch.randint(3, 37, (2, 20, 128)))
            for x in (smooth(20, 0) * 127.5, smooth(20, 1) * 60 + 9 * torch.randn(20, 3, 40, 40)))
    rng, total = np.random.RandomState(5), []
    A, B = ((t - t.mean((0, 2, 3), keepdims=True)) / t.std((0, 2, 3), keepdims=True)
            for t in (a.double().numpy(), b.double().numpy()))
    A, B = A.reshape(len(A), -1), B.reshape(len(B), -1)
    for _ in range(4):
        d = rng.randn(147, 128)
        d /= np.sqrt((d**2).sum(0))
        total.append(np.abs(np.sort(A @ d, 0) - np.sort(B @ d, 0)).mean())
    expected = 1000 * np.mean(total)
    assert expected > 10
    assert evaluation.sliced_wasserstein(a.clone(), b, np.random.RandomState(5)) == pytest.approx(expected, rel=1e-4)
    assert evaluation.sliced_wasserstein(a.clone(), a.clone(), np.random.RandomState(5)) == 0
    assert evaluation.sliced_wasserstein(a.clone(), 3 * a + 1, np.random.RandomState(5)) < 0.01
    assert evaluation.sliced_wasserstein(a.clone(), torch.ones_like(a), np.random.RandomState(5)) > 100


def test_slerp():
    a, b = torch.tensor([[2.0, 0, 0]]).double(), torch.tensor([[0, 4.0, 0]]).double()
    half = evaluation.slerp(a, b, 0.5)
    torch.testing.assert_close(half, torch.tensor([[1.0, 1, 0]]).double() * 3 / math.sqrt(2))
    torch.manual_seed(0)
    a, b = torch.randn(2, 50, 8).double()
    torch.testing.assert_close(evaluation.slerp(a, b, 0.0), a)
    torch.testing.assert_close(evaluation.slerp(a, b, torch.ones(50, 1).double()), b)


def test_slerp_against_torch_fidelity():
    utils = pytest.importorskip("torch_fidelity.utils", reason="torch-fidelity is not installed")
    torch.manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, 50, 8).double(), dim=2)
    for t in (0.3, 1e-4):
        torch.testing.assert_close(evaluation.slerp(a, b, t), utils.batch_interp(a, b, t, "slerp_unit"))
