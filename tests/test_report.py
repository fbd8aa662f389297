"""The labels of figures, figures of several models, and the page of a run."""
import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import cells, change, fill, options, rows_of, shown
from PIL import Image

import common
import eval as evaluation


def evaluate(*args):
    evaluation.main([str(arg) for arg in args])


def read(path):
    return np.array(Image.open(path).convert("RGB"))


def tiles_in(labelled, plain):
    """How often larger the pixels of `plain` are in a labelled picture, and where they begin: (times, top, left)."""
    for times in range(1, 6):
        tiles = plain.repeat(times, 0).repeat(times, 1)
        top = len(labelled) - len(tiles)
        for left in range(labelled.shape[1] - tiles.shape[1] + 1):
            if top >= 0 and np.array_equal(labelled[top:, left:left + tiles.shape[1]], tiles):
                return times, top, left
    raise AssertionError(f"no {plain.shape} in {labelled.shape}")


# ------------------------------------------------------------------------------------------------------------- labels

def test_labels_stand_next_to_their_rows_and_columns():
    images = list(torch.rand(3, 4, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    panel = evaluation.Panel(images, ["real", "", "real"], ["a", "", "reconstruction", "b"], "T")
    picture, plain = evaluation.labelled(panel), evaluation.rows(images)
    times, top, left = tiles_in(picture, plain)
    assert times > 1                                                # "reconstruction" is wider than 28 pixels
    assert left + plain.shape[1] * times == picture.shape[1]
    side = 30 * times
    margin = [picture[top + i * side:top + (i + 1) * side, :left] for i in range(3)]
    assert np.array_equal(margin[0], margin[2])
    assert margin[0].min() < 50                                     # black
    assert (margin[1] == 255).all()
    above = [picture[top // 2:top, left + i * side:left + (i + 1) * side] for i in range(4)]
    assert [strip.min() < 50 for strip in above] == [True, False, True, True]
    assert not np.array_equal(above[0], above[3])
    dark = np.flatnonzero((above[2] < 128).any((0, 2)))             # the word is over the middle of its column
    assert abs((dark[0] + dark[-1]) / 2 - side / 2) < 3
    assert picture[:top // 2, :left + 20].min() < 50                # the title
    for part in (panel._replace(title=""), panel._replace(columns=()), panel._replace(labels=())):
        assert evaluation.labelled(part).size < picture.size
    assert np.array_equal(evaluation.labelled(evaluation.Panel(images)), plain)


@pytest.mark.parametrize("side", [4, 28, 256])
def test_labels_of_any_length_fit(side):
    """A text that is too wide for its column or row is cut into lines, and none is cut off."""
    rows = [torch.zeros(2, 3, side, side)] * 2
    font = evaluation.ImageFont.load_default(12)
    for text in ("w", "5_o_Clock_Shadow +5", "InvGAN augmented, a folder of a very long name", "x" * 60):
        picture = evaluation.labelled(evaluation.Panel(rows, [text, ""], [text, "b"]))
        assert (picture[:, 0] == 255).all()
        assert (picture[0] == 255).all()
        lines = evaluation.wrapped(text, 40, font).split("\n")
        assert max(map(font.getlength, lines)) <= 40
        assert "".join(lines).replace(" ", "") == text.replace("_", "").replace(" ", "")
    assert (evaluation.labelled(evaluation.Panel(rows, ["", ""], ["", "b"]))[:, :side] != 0).any()


@pytest.mark.parametrize("name", ["samples", "reconstructions", "traversal", "morph", "interpolation", "manipulate",
                                  "path", "variants", "inpaint", "merge", "models", "tiles", "deblur"])
def test_labels_change_no_pixel_of_a_figure(dummy, here, name):
    run = dummy("run", dim=1.0)
    flags = []
    if name == "manipulate":
        np.save("up.npy", np.ones((1, 784)))
        flags = ["--boundary", "up.npy"]
    many = ["-n", 2 if name != "morph" else 3]
    evaluate("figure", name, run, *many, *flags, "--out", "on.png")
    evaluate("figure", name, run, *many, *flags, "--labels", "off", "--out", "off.png")
    on, off = read("on.png"), read("off.png")
    _, top, left = tiles_in(on, off)
    assert top + left > 0


def test_runs_are_named(dummy, here):
    runs = [dummy("a"), dummy("b"), change(dummy("c"), label="Other")]
    views = [evaluation.View(run, options()) for run in runs]
    assert evaluation.names_of(views) == ["Dummy, a", "Dummy, b", "Other"]
    assert evaluation.names_of(views[1:]) == ["Dummy", "Other"]
    panel = evaluation.draw_reconstructions(views[1:], views[0].images(range(5)), options(columns=3))
    assert panel.labels == ["original", "Dummy", "Other"] * 2       # two blocks, of 3 and of 2
    assert [len(row) for row in panel.rows] == [3] * 6
    for flags in (["samples", runs[0], runs[2]], ["morph", runs[0], runs[2], "-n", 3]):     # F-AAE with AAE under it
        evaluate("figure", *flags, "--out", "on.png")
        evaluate("figure", *flags, "--labels", "off", "--out", "off.png")
        assert len(read("on.png")) > len(read("off.png"))


def test_columns(dummy, here):
    run = dummy("run")
    evaluate("figure", "samples", run, "-n", 12, "--columns", 4, "--labels", "off", "--out", "s.png")
    assert read("s.png").shape[:2] == (2 + 30 * 3, 2 + 30 * 4)
    evaluate("figure", "interpolation", run, "-n", 1, "--columns", 3, "--labels", "off", "--out", "i.png")
    x = evaluation.View(run, options()).images(range(2))
    picture = cells("i.png", 1, 5)[0]
    np.testing.assert_allclose(picture[2], shown(0.9 * (x[0] + x[1]) / 2), atol=1)
    with pytest.raises(common.Error, match="--columns is for figure samples, .*; leave it out"):
        evaluate("figure", "tiles", run, "--columns", 3)


# ----------------------------------------------------------------------------------------- people, attributes, models

def test_manipulate_has_a_column_an_attribute_and_a_row_a_person(dummy, here):
    run = dummy("run", dim=1.0)
    normals = np.eye(784, dtype=np.float32)[[0, 783]]
    for name, normal in zip(("glasses", "smile"), normals):
        np.save(f"{name}.npy", 3 * normal)                          # only its direction matters
    x = evaluation.View(run, options()).images(range(3)) * 0.1
    fill(Path("set"), 3, size=(28, 28))
    evaluate("figure", "manipulate", run, "--images", "set/000.png", "set/001.png", "set/002.png", "--boundary",
             "glasses.npy", "smile.npy", "--strength", -0.5, 0.25, "--labels", "off", "--out", "m.png")
    picture = cells("m.png", 3, 6)
    for person in range(3):
        x = np.array(Image.open(f"set/{person:03d}.png")).astype(float)
        np.testing.assert_array_equal(picture[person, 0], x)
        np.testing.assert_allclose(picture[person, 1], x, atol=1)
        for column, (place, step) in enumerate(((0, -0.5), (0, 0.25), (783, -0.5), (783, 0.25)), 2):
            moved = x.flatten()
            moved[place] = np.clip(moved[place] + 127.5 * step, 0, 255)
            np.testing.assert_allclose(picture[person, column].flatten(), moved, atol=1)
    view = evaluation.View(run, options())
    args = options(boundary=["glasses.npy", "smile.npy"], strength=[], codes="", force=False,
                   images=["a/me.jpg", "you.png"])
    panel = evaluation.draw_manipulate(view, view.images(range(2)), args)
    assert panel.columns == ["original", "reconstruction", "glasses: +5", "smile: +5"]
    assert panel.labels == ["me", "you"]
    with pytest.raises(common.Error, match="--columns divides -5 ... 5 along one --boundary"):
        evaluate("figure", "manipulate", run, "--boundary", "smile.npy", "--strength", 1, "--columns", 3)


def test_models_side_by_side(dummy, here, capsys):
    """A row an image, a column a model; MSE optimisation is the last, or where a run without an encoder stands."""
    run, other = dummy("run", dim=0.5), change(dummy("other", dim=0.9), label="Other")
    x = evaluation.View(run, options()).images(range(3))
    evaluate("figure", "lia-3", run, other, "-n", 3, "--steps", 300, "--labels", "off", "--out", "m.png")
    picture = cells("m.png", 3, 4)
    for column, expected in enumerate((x, 0.5 * x, 0.9 * x)):
        np.testing.assert_allclose(picture[:, column], shown(expected), atol=1)
    assert np.abs(picture[:, 3] - shown(x)).mean() < 2
    out = capsys.readouterr().out
    assert "MSE optimisation in w of 3 images, 300 steps of Adam, lr 0.05: about" in out
    assert f"Dummy: MSE {(x / 2).square().mean():.4f}  MAE" in out
    views = [evaluation.View(path, options()) for path in (other, run)]
    encode = type(views[0].model).encode
    views[0].can = lambda abilities: "encode" not in abilities      # a stage 1
    panel = evaluation.draw_models(views, x, options(steps=20))
    assert panel.columns == ["original", "MSE optimisation", "Dummy"]
    torch.testing.assert_close(panel.rows[1][2], 0.5 * encode(views[1].model, x)[1].view(1, 28, 28))
    panel = evaluation.draw_interpolation(views, x[:2], options(steps=20))
    assert panel.labels == ["MSE optimisation", "Dummy"]
    assert panel.columns[0] == panel.columns[-1] == "image"
    torch.testing.assert_close(panel.rows[1][4], 0.25 * (x[0] + x[1]))
    with pytest.raises(common.Error, match="--steps is for figure models, interpolation"):
        evaluate("figure", "samples", run, "--steps", 3)


# ---------------------------------------------------------------------------------------------------- the page of a run

class Page(HTMLParser):
    """The text of a page, and what its elements hold."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.words, self.source = [], [], Path(path).read_text()
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, words):
        self.words.append(words)

    def links(self):
        return [values[name] for _, values in self.elements for name in ("src", "href", "data", "action", "srcset")
                if name in values]

    def pictures(self):
        return [base64.b64decode(link[22:]) for link in self.links() if link.startswith("data:image/png;base64,")]


@pytest.fixture
def trained(dummy, here):
    """A run with a log, pictures at three times, a boundary and a figure."""
    run = dummy("run", source=dict(seed="given", resolution="paper", split="code", backbone="ours"))
    (run / "log.csv").write_text("kimg,seconds,images/s,lr,level,alpha,peak_gb,L_D,mse\n0,0.1,,0.1,0,1,1,,0.75\n"
                                 "1,60.5,31,0.1,0,1,1,0.523,0.0625\n2,120,32,0.1,0,1,1,-0.137,0.003217\n")
    for folder, count in dict(samples=3, reconstructions=2).items():
        (run / folder).mkdir()
        for i in range(count):
            evaluation.common.save_png(run / folder / f"{i:06d}.png", np.full((9, 9, 3), 10 * i + count, np.uint8))
    (run / "boundaries").mkdir()
    np.save(run / "boundaries" / "up.npy", np.ones(784))
    (run / "figures").mkdir()
    common.save_png(run / "figures" / "mine.png", np.full((8, 8, 3), 77, np.uint8))
    return run


def test_a_page_holds_all_of_a_run(trained):
    evaluate("report", trained, "--out", "pages", "-n", 50)
    assert [path.name for path in Path("pages").iterdir()] == ["run.html"]
    page = Page("pages/run.html")
    assert all(link.startswith(("#", "data:")) for link in page.links())
    assert "://" not in page.source                                 # nothing from outside
    assert not [tag for tag, _ in page.elements if tag in ("iframe", "object", "embed")]
    pictures = page.pictures()
    for path in trained.rglob("*.png"):
        assert path.read_bytes() in pictures, path
    films = [values for tag, values in page.elements if tag == "img" and "data-kimg" in values]
    assert [(v["alt"], "hidden" in v) for v in films] == [
        ("reconstructions at 0 kimg", True), ("reconstructions at 1 kimg", False), ("samples at 0 kimg", True),
        ("samples at 1 kimg", True), ("samples at 2 kimg", False)]
    assert all(values.get("alt") for tag, values in page.elements if tag == "img")
    assert [values["type"] for tag, values in page.elements if tag == "input"] == ["range"]

    view = evaluation.View(trained, options())
    numbers = evaluation.errors(view, torch.arange(50))
    for name in ("mse", "mae", "mse_mean_image", "mse_wrong_pair"):
        assert evaluation.plain(numbers[name], 4) in page.words, name
    assert "measured for this page, the quick ones: errors, latent, sharpness" in page.text
    assert "50 of 2,000 test images, fixed noise; evaluation seed 0" in page.text
    for row in rows_of(trained / "log.csv")[-1:]:                   # the ends of the curves
        assert {row["L_D"], row["mse"], "32"} <= set(page.words)
    assert "(log scale)" in page.text                               # of mse, 0.75 to 0.003
    assert "1 kimg in 1m00s" in page.text                           # its weights are of 1 kimg
    text = page.text
    places = [text.index(words, text.index("Settings", 200)) for words in (
        "given --seed 0", "of the paper --resolution auto", "of the authors' code --split auto", "ours --backbone none",
        "general")]
    assert places == sorted(places)
    drawn = [values["alt"] for tag, values in page.elements if tag == "img" and values["alt"].startswith("figure ")]
    assert [alt.split()[1] for alt in drawn] == ["samples", "reconstructions", "traversal", "morph", "interpolation",
                                                 "manipulate", "variants", "inpaint", "merge", "figures/mine.png"]
    for words in ("mixing : ", "reads one w, with no styles to mix", "gradients : ", "has no gradients.csv", "edit : "):
        assert words in text
    evaluate("figure", "samples", trained, "--out", "s.png")        # the same as the command that it names
    assert any(np.array_equal(read("s.png"), np.array(Image.open(evaluation.io.BytesIO(p)))) for p in pictures)


def test_pages_of_several_runs_with_given_numbers(trained, dummy, capsys):
    (Path("more") / "x").mkdir(parents=True)
    other = dummy("more/run", dim=0.5)                              # of the same name
    numbers = {str(run): dict(errors=dict(mse=0.12345 + i, n=7, mse_wrong_pair=None, protocol=f"how {i} <b>"),
                              frechet=dict(fid_samples=91.75, kernel=dict(mean=1e-7), n=dict(samples=12345)))
               for i, run in enumerate((trained, other))}
    Path("m.json").write_text(json.dumps(numbers))
    evaluate("report", trained, other, "--out", "pages", "--metrics", "m.json")
    assert sorted(path.name for path in Path("pages").iterdir()) == ["index.html", "run-2.html", "run.html"]
    index = Page("pages/index.html")
    links = [link for link in index.links() if not link.startswith("data:")]
    assert links == ["run.html", "run-2.html"]
    assert "://" not in index.source
    for i, name in enumerate(("run", "run-2")):
        page = Page(f"pages/{name}.html")
        mse = ("0.1235", "1.123")[i]
        for number in (mse, "7", "91.75", "0.0000001", "12,345", "-"):
            assert number in page.words, number
        assert mse in index.words
        assert f"how {i} <b>" in page.text                          # escaped
        assert "from m.json, some of other weights: see the protocols" in page.text
        assert "measured" not in page.text
    assert "wrote pages/run.html" in capsys.readouterr().out


def test_a_run_that_fails_does_not_stop_the_others(trained, dummy, capsys):
    """One that cannot be opened, one whose log is broken, and one of which there is a page."""
    (dummy("broken") / "log.csv").write_text("kimg,seconds\n1,x\n")
    with pytest.raises(common.Error, match=r"log\.csv does not hold a run's rows"):
        evaluate("report", "nothing", "broken", trained, "--out", "pages", "-n", 9)
    assert [path.name for path in Path("pages").iterdir()] == ["run.html"]
    out = capsys.readouterr().out
    assert "nothing: left out: nothing holds no run" in out
    assert "broken: left out: " in out


def test_pictures_of_a_short_run_have_a_slider_too(trained):
    """Snapshots of less than a thousand images have names with a point."""
    for k, name in enumerate(("000000.512", "000000.032", "000010.000")):
        (trained / "samples" / f"{k:06d}.png").rename(trained / "samples" / f"{name}.png")
    film = evaluation.film_of(trained, "samples")
    assert re.findall(r'data-kimg="(\S+)"', film) == ["0.032", "0.512", "10"]


def test_a_page_tells_what_was_trained_up_to_its_weights(trained):
    checkpoint = torch.load(trained / "checkpoint.pt", weights_only=True)
    torch.save({**checkpoint, "seen": 1000}, trained / "checkpoint.pt")
    evaluate("report", trained, "--out", "pages", "-n", 9)
    assert "1 kimg in " in Page("pages/run.html").text
    assert "2 kimg in " not in Page("pages/run.html").text


def test_a_page_leaves_pictures_out_if_they_are_too_many(trained, monkeypatch):
    size = sum(path.stat().st_size for path in (trained / "samples").iterdir())
    monkeypatch.setattr(evaluation, "PAGE_BYTES", size * 0.7)
    film = evaluation.film_of(trained, "samples")
    assert "samples, 2 of 3 pictures" in film
    assert [f'data-kimg="{i}"' in film for i in range(3)] == [True, False, True]
    assert evaluation.film_of(trained, "boundaries") == ""
    monkeypatch.setattr(evaluation, "WIDEST", 300)
    evaluate("report", trained, "--out", "pages", "-n", 9)
    page = Page("pages/run.html")
    evaluate("figure", "traversal", trained, "--out", "t.png")
    wide = Image.open("t.png")
    sizes = [Image.open(evaluation.io.BytesIO(picture)).size for picture in page.pictures()]
    assert max(width for width, _ in sizes) <= 300 < wide.width
    assert wide.reduce(-(-wide.width // 300)).size in sizes
    assert "shown at 1/2 of its size" in page.text


def test_a_page_of_what_is_broken_or_missing(trained, here):
    def fails(match, *flags):
        with pytest.raises(common.Error, match=match) as e:
            evaluate("report", trained, "--out", "pages", *(flags or ("-n", 9)))
        assert "\n" not in str(e.value)
    for content, match in (("{", "x.json holds no numbers of runs"), ("[1]", "holds no numbers of runs"),
                           ('{"a": {"errors": 1}}', "holds no numbers of runs"),
                           ('{"a": {}}', "x.json has no numbers of .*run, but of a; run `eval.py metrics")):
        Path("x.json").write_text(content)
        fails(match, "--metrics", "x.json")
    fails("none.json holds no numbers of runs .FileNotFoundError", "--metrics", "none.json")
    fails("-n is of the numbers that report measures itself", "--metrics", "x.json", "-n", 9)
    whole = (trained / "samples" / "000001.png").read_bytes()
    (trained / "samples" / "000001.png").write_bytes(whole[:40])
    fails("000001.png is no whole picture, or too large a one .*; delete it")
    (trained / "samples" / "000001.png").write_bytes(whole)
    for content in ("", "a,b\n1,2\n", "kimg,seconds,mse\n1,x,3\n", "kimg,mse\n\xff", "kimg,seconds,mse\n"):
        (trained / "log.csv").write_text(content, encoding="latin-1")
        fails("log.csv does not hold a run's rows .*; put back a copy")
    (trained / "log.csv").unlink()
    change(trained, data=str(here / "gone"))                        # and without its set
    evaluate("report", trained, "--out", "pages", "-n", 9)
    page = Page("pages/run.html")
    assert "The run has no log.csv." in page.text
    assert "left out: there is no" in page.text
