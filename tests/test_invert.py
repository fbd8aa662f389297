"""Inversion by optimisation, boundaries, and the figures and tables of the LIA paper, on conftest's Dummy: G(w) is
dim w, w = z / 2, E(x) = x."""
import json

import numpy as np
import pytest
import torch
from conftest import cells, fill, options, shown
from PIL import Image

import common
import eval as evaluation


def pixel(x):
    return lambda y: (y - x).square().flatten(1).mean(1)


def test_optimise_in_w(dummy):
    view = evaluation.View(dummy("run", dim=0.5), options())
    x = view.images(range(3))
    v, w, path = evaluation.optimise(view, x, "w", pixel, 400, 0.05, keep=(0, 400))
    assert v is not w
    assert torch.equal(v, w)
    torch.testing.assert_close(w, x.flatten(1) / 0.5, atol=2e-2, rtol=0)
    mean_w = view.codes(1000, 0).mean(0) / 2
    torch.testing.assert_close(path[0], (0.5 * mean_w).view(1, 1, 28, 28).expand(3, -1, -1, -1))
    assert (path[1] - x).abs().max() < 1e-2
    alone = evaluation.optimise(view, x[1:2], "w", pixel, 400, 0.05)[1]
    torch.testing.assert_close(alone, w[1:2])                           # whatever else is in the batch
    v = evaluation.optimise(view, x, "w", pixel, 1, 100.0, "descent")[0]
    torch.testing.assert_close(v, mean_w + 100 * 2 * 0.5 * (x.flatten(1) - 0.5 * mean_w) / 784)


def test_optimise_in_z_stays_in_the_priors_range(dummy):
    view = evaluation.View(dummy("run", dim=1.0), options())
    x = view.images(range(2))                                           # most of it is -1, and w is above -0.5
    v, w, _ = evaluation.optimise(view, x, "z", pixel, 60, 0.2)
    torch.testing.assert_close(w, v / 2)
    assert v.abs().max() <= view.codes(1000, 0).abs().max()
    free = x.flatten(1).abs() < 0.4
    assert (w - x.flatten(1))[free].abs().median() < 0.05
    again = evaluation.optimise(view, x, "z", pixel, 60, 0.2)[0]
    assert torch.equal(v, again)


def test_codes_of_a_sphere_stay_on_it(dummy, monkeypatch):
    view = evaluation.View(dummy("run"), options())
    monkeypatch.setattr(view.model, "prior",
                        lambda n, g: torch.nn.functional.normalize(torch.randn(n, 784, generator=g)))
    v, *_ = evaluation.optimise(view, view.images(range(2)), "z", pixel, 5, 0.1)
    torch.testing.assert_close(v.norm(dim=1), torch.ones(2))


def test_in_domain(dummy):
    view = evaluation.View(dummy("run", dim=0.7), options())
    x = view.images(range(2))
    _, w, path = evaluation.optimise(view, x, "w", pixel, 300, 0.02, domain=True, keep=(0,))
    torch.testing.assert_close(path[0], 0.7 * x)                        # from E(x)
    best = 0.7 * x.flatten(1) / (0.7**2 + 2 * 0.3**2)                   # of (0.7 w - x)^2 + 2 (w - 0.7 w)^2
    torch.testing.assert_close(w, best, atol=5e-3, rtol=0)


def test_perceptual_distances(dummy, monkeypatch):
    """vgg9 is of the features alone, in-domain's of pixels and of conv4_3; the original's are made once."""
    class VGG(torch.nn.Module):
        calls = 0

        def forward(self, x, last):
            assert last == 15
            self.calls += 1
            return [None, 3 * x]

        def conv4_3(self, x):
            self.calls += 1
            return 100 * x
    vgg = VGG()
    monkeypatch.setattr(common, "frozen", lambda *_: vgg)
    view = evaluation.View(dummy("run"), options())
    x, y = torch.rand(2, 3, 1, 28, 28)
    apart = (y - x).square().flatten(1).mean(1)
    for loss, method, factor in (("pixel", "in-domain", 1), ("vgg9", "optimise", 9),
                                 ("vgg9", "in-domain", 1 + 5e-5 * 1e4)):
        far = evaluation.distance_for(view, options(loss=loss, method=method, cache="", vgg=""))(x)
        torch.testing.assert_close(far(y), factor * apart)
        torch.testing.assert_close(far(x), torch.zeros(3))
    assert vgg.calls == 2 * 3


def test_invert(dummy, script, tmp_path):
    run = dummy("run", dim=0.5)
    out = script("eval.py", "invert", run, "-n", 3, "--space", "z", "w", "--steps", 20, "--lr", 0.1, "--save-path",
                 "--out", "o/i.png", "--json", "i.json").stdout
    result, x = json.loads((tmp_path / "i.json").read_text()), evaluation.View(run, options()).images(range(3))
    assert list(result) == ["encoder", "optimise, z", "optimise, w"]
    assert result["encoder"]["mse"] == pytest.approx((0.5 * x - x).square().mean().item())
    assert result["encoder"]["mse_wrong_pair"] == pytest.approx((0.5 * x - x.roll(1, 0)).square().mean().item())
    assert f"MSE {result['optimise, w']['mse']:.4f}" in out
    assert "s an image" in out
    w = torch.from_numpy(np.load(tmp_path / "o/i-w.npy"))
    rows = cells(tmp_path / "o/i.png", 4, 3)
    np.testing.assert_array_equal(rows[0], shown(x))
    np.testing.assert_allclose(rows[3], shown((0.5 * w).view(-1, 1, 28, 28).clamp(-1, 1)), atol=1)
    path = cells(tmp_path / "o/i-path-w.png", 3, 1 + len(evaluation.steps_shown(20)))
    np.testing.assert_array_equal(path[:, 0], shown(x))
    np.testing.assert_array_equal(path[:, -1], rows[3])
    z = torch.from_numpy(np.load(tmp_path / "o/i-z.npy"))
    np.testing.assert_allclose(rows[2], shown((0.25 * z).view(-1, 1, 28, 28).clamp(-1, 1)), atol=1)
    files = [fill(tmp_path / "set", 20) / f"{i:03d}.png" for i in range(2)]
    out = script("eval.py", "invert", run, *files, "--method", "encoder", "--out", "e.png").stdout
    assert "2 images" in out
    err = script("eval.py", "invert", run, files[0], "--method", "encoder", "--out", files[0], code=2).stderr
    assert "000.png itself; name another file" in err
    for flags, message in ((("--method", "encoder", "--lr", "1"), "--lr is for --method optimise and in-domain"),
                           (("--method", "encoder", "--space", "z"), "--space is for --method optimise"),
                           (("--space", "w+"), "w+ is for stylegan"),
                           (("--method", "in-domain", "--space", "z"), "has no 'unmap'"),
                           (("--loss", "vgg9", "--vgg", "no.pth"), "there is no no.pth")):
        assert message in script("eval.py", "invert", run, "-n", 2, *flags, code=2).stderr


def test_starts_do_not_depend_on_the_batch(dummy):
    view = evaluation.View(dummy("run"), options())
    x = view.images(range(5))

    def started(x, begin=0):
        return evaluation.optimise(view, x, "z", evaluation.pixel_distance, 0, 0.1, begin=begin)[0]
    assert torch.equal(torch.cat([started(x[:2]), started(x[2:], 2)]), started(x))
    assert len(started(x).unique(dim=0)) == 5


def test_steps_shown():
    assert evaluation.steps_shown(128) == [0, 1, 2, 4, 8, 16, 32, 64, 128]
    for steps in (1, 2, 9, 1000):
        some = evaluation.steps_shown(steps)
        assert some[0] == 0
        assert some[-1] == steps
        assert some == sorted(set(some))


def test_boundary_and_manipulate(dummy, script, tmp_path):
    run = dummy("run", dim=1.0)
    out = script("eval.py", "boundary", run, "--only", "3", "-n", 500, "--json", "b.json").stdout
    result = json.loads((tmp_path / "b.json").read_text())["3"]
    view = evaluation.View(run, options())
    truth = view.test.labels == 3
    normal = torch.from_numpy(np.load(run / "boundaries" / "3.npy"))
    assert normal.shape == (1, 784)
    assert normal.norm().item() == pytest.approx(1, abs=1e-5)
    side = view.images(range(2000)).flatten(1) @ normal[0]
    assert side[truth].mean() > side[~truth].mean()
    majority = 100 * (~truth).double().mean().item()
    assert result["majority"] == pytest.approx(majority, abs=1e-3)
    assert 100 >= result["accuracy"] > majority
    assert f"accuracy {result['accuracy']:.1f} %" in out
    assert "has no label '12'" in script("eval.py", "boundary", run, "--only", "12", code=2).stderr
    view.test.labels = None                             # a part of its own, without
    with pytest.raises(common.Error, match="has no labels in both its parts"):
        evaluation.attributes(view)

    script("eval.py", "figure", "lia-4", run, "--boundary", run / "boundaries" / "3.npy", "-n", 2, "--labels=off",
           "--out", "m.png")
    picture, x = cells(tmp_path / "m.png", 2, 10), view.images(range(2))
    moved = x[1] + 5 * normal.view(1, 28, 28)
    np.testing.assert_array_equal(picture[1, 0], shown(x[1]))
    np.testing.assert_allclose(picture[1, -1], shown(moved.clamp(-1, 1)), atol=1)
    np.save(tmp_path / "short.npy", np.ones(5))
    np.savez(tmp_path / "two.npz", a=np.ones(784))
    np.save(tmp_path / "words.npy", np.array(["a"]))
    (tmp_path / "empty.npy").touch()
    for flags, message in (((), "name one by --boundary"), (("--boundary", "short.npy"), "has codes of 784"),
                           *((("--boundary", name), "is no array of numbers")
                             for name in ("two.npz", "words.npy", "empty.npy")),
                           (("--boundary", run / "args.json"), "is no array of numbers")):
        assert message in script("eval.py", "figure", "manipulate", run, *flags, code=2).stderr
    err = script("eval.py", "figure", "samples", run, "--boundary", "short.npy", code=2).stderr
    assert "--boundary is for figure manipulate" in err


def test_interpolation_in_w_and_z(dummy, script, tmp_path, monkeypatch):
    run = dummy("run", dim=1.0)
    x = evaluation.View(run, options()).images(range(4))
    script("eval.py", "figure", "interpolation", run, "-n", 2, "--labels=off", "--out", "w.png")
    picture = cells(tmp_path / "w.png", 2, 9)
    np.testing.assert_array_equal(picture[1, 0], shown(x[2]))
    np.testing.assert_allclose(picture[1, 4], shown((x[2] + x[3]) / 2), atol=1)
    source = tmp_path / "dummy.py"
    source.write_text(source.read_text().replace("z / 2", "z ** 3") +
                      "Dummy.unmap = lambda self, w: w.sign() * w.abs() ** (1 / 3)\n")
    script("eval.py", "figure", "lia-12", run, "-n", 2, "--labels=off", "--out", "z.png")
    picture = cells(tmp_path / "z.png", 4, 9)
    root = [i.sign() * i.abs() ** (1 / 3) for i in (x[2], x[3])]
    np.testing.assert_allclose(picture[2, 4], shown(((root[0] + root[1]) / 2) ** 3), atol=1)
    np.testing.assert_allclose(picture[3, 4], shown((x[2] + x[3]) / 2), atol=1)
    digit = fill(tmp_path / "digit", 1) / "000.png"
    err = script("eval.py", "figure", "interpolation", run, "--images", digit, code=2).stderr
    assert "takes pairs of images" in err
    monkeypatch.setattr(evaluation, "shared_test_images", lambda views: [torch.arange(5)])
    for n, found in ((0, 4), (1, 2)):
        assert len(evaluation.pairs(4)([evaluation.View(run, options())], options(n=n))) == found


def test_path(dummy, script, tmp_path):
    run = dummy("run", dim=1.0)
    script("eval.py", "figure", "lia-13", run, "-n", 1, "--labels=off", "--out", "p.png")
    picture = cells(tmp_path / "p.png", 2, 10)
    x = shown(evaluation.View(run, options()).images(range(1)))[0]
    np.testing.assert_array_equal(picture[:, -1], np.stack([x, x]))
    assert np.abs(picture[1, -2] - x).mean() < np.abs(picture[1, 0] - x).mean() / 4


def test_volatility():
    rng = np.random.RandomState(0)
    trend = np.exp(np.sin(np.linspace(0, 6, 20_000)))
    assert evaluation.volatility(trend) < 2e-3
    assert evaluation.volatility(trend * np.exp(0.1 * rng.randn(20_000))) == pytest.approx(0.1, rel=0.03)
    assert evaluation.volatility(np.r_[1e9 * rng.rand(10_000), trend[10_000:]]) < 2e-3     # the first half is left out


def test_gradients(dummy, script, tmp_path):
    run, rng = dummy("run"), np.random.RandomState(0)
    for damage in (b"", b"\xff\xfe\x00", b"a,b\n1,2\n3,4\n5,6\n", b"\n\n"):
        (run / "gradients.csv").write_bytes(damage)
        err = script("eval.py", "figure", "gradients", run, code=2).stderr
        assert err.startswith(f"error: {run}/gradients.csv is not what --log-gradients writes")
    (run / "gradients.csv").unlink()
    assert "has no gradients.csv" in script("eval.py", "figure", "gradients", run, code=2).stderr
    for rows in ("", "0,1,2,3,4\n", "0,1,2,3,4\n1,1,2,3,4\n2,1"):         # the last one torn
        (run / "gradients.csv").write_text("kimg,L_rec,first,middle,last\n" + rows)
        err = script("eval.py", "figure", "gradients", run, code=2).stderr
        assert f"has {rows.count('4')} iterations, too few for a curve; train on with --resume" in err
    g = np.exp(0.2 * rng.randn(400, 3))
    (run / "gradients.csv").write_text("kimg,L_rec,first,middle,last\n" + "\n".join(
        f"{i / 10},1,{a},{b},{c}" for i, (a, b, c) in enumerate(g)))
    out = script("eval.py", "figure", "lia-7", run, "--out", "g.png").stdout
    each = [evaluation.volatility(column) for column in g.T]
    assert f"volatility {np.mean(each):.4f}   (first {each[0]:.4f}" in out
    assert Image.open(tmp_path / "g.png").size[0] > 1000


def test_tables_of_lia(dummy, script, cache, tmp_path):
    run = dummy("run")
    out = script("eval.py", "table", "lia-1", run, "-n", 300, "--cache", cache, "--json", "t.json").stdout
    assert "LIA, paper                                 16.88           10.01           18.10" in out
    assert "Frechet distances to the train part, SWD to the test part" in out
    head, ours = (next(line for line in out.splitlines() if line.startswith(label))
                  for label in (" " * 32, "Dummy, ours"))
    assert head.split()[0] == "FID"
    assert head.endswith("Frechet (digits)")
    assert ours.split()[2] == "-"                           # in the column of the paper's FID
    row = json.loads((tmp_path / "t.json").read_text())[str(run)]
    view, args = evaluation.View(run, options()), options(n=300, cache=cache)
    e = evaluation.errors(view, torch.arange(300))
    assert row["MSE x1000"] == pytest.approx(1000 * e["mse"])
    assert row["MSE, 0-255"] == pytest.approx(e["mse_255"])
    assert row["wrong pairs"] == pytest.approx(1000 * e["mse_wrong_pair"])
    frechet = evaluation.measure_frechet(view, args).numbers
    assert row["Frechet (digits)"] == pytest.approx(frechet["frechet_reconstructions"], rel=1e-4)
    swd = evaluation.measure_swd(view, args).numbers
    assert row["SWD x1000"] == pytest.approx(swd["swd_reconstructions"], rel=1e-4)
    out = script("eval.py", "table", "lia-2", run, "-n", 300, "--cache", cache, "--json", "t.json").stdout
    assert "StyleGAN, paper                             6.23            7.36            3.09            4.88" in out
    row = json.loads((tmp_path / "t.json").read_text())[str(run)]
    assert row["mnist-mini, Frechet (digits)"] == pytest.approx(frechet["frechet_samples"], rel=1e-4)
    out = script("eval.py", "table", "lia-1", run, "-n", 300, "--cache", cache, "--reference", "test").stdout
    assert "Frechet distances to the test part, SWD to the test part" in out
