"""eval.py demo: what the page's server answers, on conftest's Dummy (G(w) is dim w, E(x) = x) and on tiny models."""
import contextlib
import http.client
import io
import json
import re
import signal
import socket
import sys
import threading
import urllib.request
import zlib
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import dummies, fill, noisy, options, picture, shown, start, tiny
from PIL import Image

import alae
import common
import data
import eval as evaluation
import lia


def view_of(model, run):
    """A view of a model without a run."""
    view = object.__new__(evaluation.View)
    model.seen = 0
    vars(view).update(run=run, device=torch.device("cpu"), model=model.eval(), shape=tuple(model.image_shape),
                      title="a run", growing=None, weights="ema", args=dict(method="a method", label="LIA", stage="1"))
    return view


@contextlib.contextmanager
def serving(*views):
    with evaluation.Server(views, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Two runs, of which the second dims images more."""
    with pytest.MonkeyPatch.context() as m:
        make = dummies(tmp_path_factory.mktemp("runs"), m)
        runs = [make("bright", dim=0.9), make("dark", dim=0.25)]
        views = [evaluation.View(run, options()) for run in runs]
        sys.modules.pop("dummy")
    (runs[0] / "samples").mkdir()
    picture(0).save(runs[0] / "samples" / "000001.png")
    (runs[0] / "secret.png").symlink_to(runs[0] / "args.json")
    with serving(*views) as server:
        yield server


def ask(server, method, path, body=None, **headers):
    """-> status, body.  headers: Host="...", Sec_Fetch_Site="..." """
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()


def good(server, *args):
    status, content = ask(server, *args)
    assert status == 200, content
    return content


def bytes_of(image, kind="png"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def pixels(content):
    """The bytes of a grey PNG -> (1, H, W)."""
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.mode) == ("PNG", "L")
    return np.asarray(image)[None]


def sliders(a, **changes):
    return json.dumps({**dict(space="w", a=a, b=a, t=0, moves={}, levels=[], psi=1), **changes})


# ---------------------------------------------------------------------------------------------------------- answers

def test_reconstructions_are_those_of_training_s_code_to_the_bit(server, tmp_path):
    photo = fill(tmp_path / "photos", 1, size=(70, 50), mode="RGB") / "000.png"
    x = common.to_float(data.read_images([photo], 1, (28, 28)))
    for i, played in enumerate(server.played):
        code = json.loads(good(server, "POST", f"/photo?run={i}", photo.read_bytes()))
        made = pixels(good(server, "POST", f"/draw?run={i}", sliders(code["w"])))
        assert np.array_equal(made, common.to_uint8(common.reconstruct(played.model, x))[0].numpy())
        original = urllib.request.urlopen(code["picture"]).read()
        assert np.array_equal(pixels(original), common.to_uint8(x)[0].numpy())
        assert code["z"] is None                                    # there is no exact inverse


def test_every_route_answers(server, tmp_path):
    html = good(server, "GET", "/").decode()
    assert html.startswith("<!doctype html>")
    about = json.loads(good(server, "GET", "/runs"))
    assert [run["name"] for run in about] == ["bright", "dark"]
    assert about[0]["pictures"] == ["samples/000001.png"]           # and not the link
    assert good(server, "GET", "/picture?run=0&of=samples%2F000001.png") == bytes_of(picture(0))
    sample = json.loads(good(server, "GET", "/sample?run=1&of=251"))
    view = server.played[1].view
    z = evaluation.codes_of_seeds(view, [251])[0]                   # as `samples` does
    assert torch.equal(torch.tensor(sample["z"]), z)
    assert torch.equal(torch.tensor(sample["w"]), z / 2)
    made = pixels(good(server, "POST", "/draw?run=1", sliders(sample["w"])))
    assert np.array_equal(made, shown((z / 2 * 0.25).view(1, 28, 28))[None])
    test = json.loads(good(server, "GET", "/test?run=0&of=1999"))
    assert torch.equal(torch.tensor(test["w"]), view.images([1999]).flatten())
    (tmp_path / "codes.npz").write_bytes(good(server, "POST", "/codes?run=0", sliders(test["w"])))
    w, _ = evaluation.read_codes(tmp_path / "codes.npz", server.played[0].view)         # as `decode` does
    assert torch.equal(w, view.images([1999]).flatten(1))
    with pytest.raises(common.Error, match="other weights"):
        evaluation.read_codes(tmp_path / "codes.npz", view)


def test_the_page_needs_no_network_and_names_what_it_has():
    assert not re.search(r"https?:|//\w+\.", evaluation.PAGE)
    script = evaluation.PAGE.partition("<script>")[2]
    ids = re.findall(r'(?<=[(])"#(\w+)"', script)
    assert len(ids) > 5
    assert set(ids) <= set(re.findall(r' id="(\w+)"', evaluation.PAGE))
    paths = set(re.findall(r'`(\w+)\?', script)) | set(re.findall(r'data-path="(\w+)"', evaluation.PAGE)) | {"photo"}
    assert paths == {route.partition("/")[2] for route in evaluation.ROUTES}


# ------------------------------------------------------------------------------------------------------------- codes

class Scaled(torch.nn.Module):
    """w is z with its axes scaled by 1 ... 12."""
    image_shape, nz, nw, num_layers = (1, 3, 4), 12, 12, 1

    def prior(self, n, generator):
        return torch.randn(n, 12, generator=generator)

    def map(self, z):
        return z * torch.arange(1.0, 13)

    def unmap(self, w):
        return w / torch.arange(1.0, 13)

    def generate(self, w, noise):
        return w.view(-1, 1, 3, 4)


def test_directions_are_as_long_as_a_standard_deviation(tmp_path):
    (tmp_path / "boundaries").mkdir()
    normal = np.ones((1, 12), np.float32)
    np.save(tmp_path / "boundaries" / "smile.npy", normal)
    view = view_of(Scaled(), tmp_path)
    w = Scaled().map(view.codes(10_000, 0)).double().numpy()
    directions = {name: v.numpy() for name, v in evaluation.Played(view).directions.items()}
    assert list(directions) == ["boundary smile", *[f"principal direction {i}" for i in range(1, 11)]]
    _, lengths, axes = np.linalg.svd(w - w.mean(0), full_matrices=False)
    for i in range(10):
        v = directions[f"principal direction {i + 1}"]
        np.testing.assert_allclose(np.linalg.norm(v), lengths[i] / 10_000**0.5, rtol=1e-5)
        np.testing.assert_allclose(abs(v @ axes[i]), np.linalg.norm(v), rtol=1e-4)
    unit = normal[0] / 12**0.5
    np.testing.assert_allclose(directions["boundary smile"], unit * (w @ unit).std(ddof=1), rtol=1e-5)


def test_a_way_in_z_goes_through_the_map_and_codes_keep_their_z(tmp_path):
    torch.manual_seed(0)
    model = lia.Decoder("mlp", (1, 28, 28), 6, 6, width=64)
    noisy(model)
    with serving(view_of(model, tmp_path)) as server:
        a, b = (json.loads(good(server, "GET", f"/sample?run=0&of={n}"))["z"] for n in (3, 4))
        asked = sliders(a, space="z", b=b, t=0.25)
        made = pixels(good(server, "POST", "/draw?run=0", asked))
        z = 0.75 * torch.tensor([a]) + 0.25 * torch.tensor([b])
        with torch.no_grad():
            expected = shown(model.generate(model.map(z)))
        assert np.abs(made - expected).max() <= 1 < expected.std()
        arrays = np.load(io.BytesIO(good(server, "POST", "/codes?run=0", asked)))
    torch.testing.assert_close(torch.from_numpy(arrays["z"]), z, rtol=1e-3, atol=1e-3)
    status, _ = ask_of(model, tmp_path, "POST", "/photo?run=0", bytes_of(picture(0)))
    assert status == 400                                                        # it has no encoder


def ask_of(model, run, *args):
    with serving(view_of(model, run)) as server:
        return ask(server, *args)


def test_styles_of_some_levels_and_truncation(tmp_path):
    _, model, _ = tiny(alae, "--backbone", "stylegan")
    noisy(model)
    with torch.no_grad():
        model.mean_w.uniform_(-1, 1)
    view = view_of(model, tmp_path)
    view.growing = model.G
    with serving(view) as server:
        played, = server.played
        assert json.loads(good(server, "GET", "/runs"))[0]["levels"] == [4, 8]
        a, b = model.prior(2, torch.Generator().manual_seed(1))
        asked = json.loads(sliders(a.tolist(), b=b.tolist(), t=0.5, levels=[1], psi=0.5,
                                   moves={"principal direction 2": -1.5, "another run's": 3}))
        middle = (a + b) / 2 - 1.5 * played.directions["principal direction 2"]
        expected = torch.stack([(row + model.mean_w) / 2 for row in (middle, middle, b, b)])[None]
        torch.testing.assert_close(played.code(**asked), expected)
        made = np.asarray(Image.open(io.BytesIO(good(server, "POST", "/draw?run=0", json.dumps(asked)))))
        with torch.no_grad():
            assert np.abs(made - shown(model.generate(expected, noise="fixed"))).max() <= 1
        arrays = np.load(io.BytesIO(good(server, "POST", "/codes?run=0", json.dumps(asked))))
        torch.testing.assert_close(torch.from_numpy(arrays["w"]), expected)


# -------------------------------------------------------------------------------------------------- what is refused

def bomb(side):
    """A small PNG whose header says side x side."""
    png = bytearray(bytes_of(Image.new("L", (1, 1))))
    png[16:24] = side.to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    return bytes(png)


W = [0.0] * 784
HOSTILE = {
    "an unknown route": (404, "no such page", ("GET", "/etc")),
    "a method of another route": (404, "no such page", ("GET", "/draw?run=0")),
    "a path out of the run": (404, "no such picture", ("GET", "/picture?run=0&of=../../../../etc/passwd")),
    "a path as a route": (404, "no such page", ("GET", "/../../../etc/passwd")),
    "a file of the run that is no picture": (404, "no such picture", ("GET", "/picture?run=0&of=args.json")),
    "a link in the run": (404, "no such picture", ("GET", "/picture?run=0&of=secret.png")),
    "no run": (400, "from 0 to 1", ("GET", "/sample?of=0")),
    "a run too many": (400, "from 0 to 1", ("GET", "/sample?run=2&of=0")),
    "a number below 0": (400, "from 0 to 1,999", ("GET", "/test?run=0&of=-1")),
    "a test image too many": (400, "from 0 to 1,999", ("GET", "/test?run=0&of=2000")),
    "no image": (415, "cannot be read as an image", ("POST", "/photo?run=0", b"hello")),
    "half an image": (415, "cannot be read", ("POST", "/photo?run=0", bytes_of(picture(0))[:900])),
    "a program in PostScript": (415, "cannot be read", ("POST", "/photo?run=0", b"%!PS-Adobe-3.0 EPSF-3.0\n"
                                                        b"%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")),
    "a decompression bomb": (413, "50 million pixels", ("POST", "/photo?run=0", bomb(20_000))),
    "one that Pillow would open": (413, "50 million pixels", ("POST", "/photo?run=0", bomb(8_000))),
    "no JSON": (400, "no codes", ("POST", "/draw?run=0", b"{")),
    "deep JSON": (400, "no codes", ("POST", "/draw?run=0", b"[" * 100_000)),
    "another run's codes": (400, "no codes", ("POST", "/draw?run=0", sliders(W[1:]))),
    "codes that are no numbers": (400, "no codes", ("POST", "/draw?run=0", sliders(["x"] * 784))),
    "infinite codes": (400, "no codes", ("POST", "/draw?run=0", sliders([1e39] * 784))),
    "a huge number": (400, "no codes", ("POST", "/codes?run=0", sliders(W, t=10**400))),
    "fields that are missing": (400, "no codes", ("POST", "/draw?run=0", "{}")),
}


def test_what_is_wrong_gets_a_sentence(server, capfd):
    for name, (status, sentence, asked) in HOSTILE.items():
        got, content = ask(server, *asked)
        assert (name, got) == (name, status)
        assert sentence in content.decode(), name
        assert len(content.splitlines()) == 1, name
    good(server, "GET", "/runs")                                                # it is alive
    assert capfd.readouterr().err == ""


def test_a_pillow_without_a_format_reads_the_others(monkeypatch):
    """Formats are tried in turn, and one that is not there stopped those after it."""
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    buffer = io.BytesIO()
    picture(0).save(buffer, "BMP")
    assert evaluation.read_photo(buffer.getvalue(), (3, 8, 8)).shape == (1, 3, 8, 8)


def test_only_the_page_may_ask(server):
    for headers in [dict(Host="evil.example"), dict(Host="127.0.0.1"), dict(Host="127.0.0.1:1"),
                    dict(Origin="http://evil.example"), dict(Origin="null"), dict(Sec_Fetch_Site="cross-site"),
                    dict(Sec_Fetch_Site="same-site")]:
        for asked in [("POST", "/draw?run=0", sliders(W)), ("GET", "/sample?run=0&of=0")]:
            assert (headers, ask(server, *asked, **headers)[0]) == (headers, 403)
    own = f"localhost:{server.server_address[1]}"
    good(server, "POST", "/draw?run=0", sliders(W))
    assert ask(server, "POST", "/draw?run=0", sliders(W), Host=own, Origin=f"http://{own}",
               Sec_Fetch_Site="same-origin")[0] == 200
    assert ask(server, "GET", "/", Sec_Fetch_Site="cross-site")[0] == 200       # a link on another page


def test_a_body_s_length_is_said_and_limited(server):
    for length, status in dict.fromkeys(["-1", "x", "9" * 99, ""], 411).items() | {("100000000", 413)}:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
        with contextlib.closing(connection):
            connection.putrequest("POST", "/photo?run=0")
            if length:
                connection.putheader("Content-Length", length)
            connection.endheaders()
            answer = connection.getresponse()
            assert (length, answer.status, answer.getheader("Connection")) == (length, status, "close")


def test_a_slow_body_is_given_up_and_holds_up_nobody(server, monkeypatch):
    monkeypatch.setattr(evaluation.Request, "timeout", 0.5)
    with socket.create_connection(server.server_address) as slow:
        slow.sendall(b"POST /photo?run=0 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 9\r\n\r\nhalf"
                     % server.server_address[1])
        good(server, "POST", "/draw?run=0", sliders(W))
        assert slow.recv(9999).startswith(b"HTTP/1.1 408 ")
    with socket.create_connection(server.server_address) as silent:             # not even a request
        assert silent.recv(9999) == b""


def test_head_is_get_without_its_body(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request("HEAD", "/")
    answer = connection.getresponse()
    assert (answer.status, int(answer.getheader("Content-Length"))) == (200, len(evaluation.PAGE.encode()))
    assert answer.read() == b""
    connection.close()


def test_a_flood_is_answered(server):
    with ThreadPoolExecutor(200) as many:
        answers = list(many.map(lambda i: ask(server, "POST", "/draw?run=0", sliders([i / 200] * 784)), range(200)))
    for i, (status, content) in enumerate(answers):
        assert status == 200
        assert (pixels(content) == common.to_uint8(torch.tensor(i / 200 * 0.9)).item()).all()
    good(server, "GET", "/runs")


# ----------------------------------------------------------------------------------------------------------- command

def test_the_command_serves_until_it_is_interrupted(dummy, tmp_path):
    run = dummy("run")
    process = start(tmp_path, "demo", run, "--port", 0, name="eval.py")
    try:
        address = re.search(r"open (http://127\.0\.0\.1:\d+) ", process.stdout.readline())[1]
        assert urllib.request.urlopen(address).read() == evaluation.PAGE.encode()
        port = address.rpartition(":")[2]
        with pytest.raises(common.Error, match=f"port {port} cannot be had"):
            evaluation.demo(Namespace(**vars(options()), runs=[run], port=int(port)))
        (run / "boundaries" / "x.npy").mkdir(parents=True)              # an error of files is none of the port
        with pytest.raises((common.Error, OSError), match=r"x\.npy"):
            evaluation.demo(Namespace(**vars(options()), runs=[run], port=0))
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


@pytest.mark.parametrize("text", ["-1", "80", "65536", "http"])
def test_ports_that_are_refused(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluation.parse_args(["demo", "run", "--port", text])
    assert "--port" in capsys.readouterr().err
