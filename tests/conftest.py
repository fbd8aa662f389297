"""Tests import the scripts from the folder above, run on one thread (bit-exact, and no fight over cores) and never
write outside pytest's temporary folders."""
import copy
import csv
import functools
import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
import zipfile
from argparse import Namespace
from contextlib import nullcontext
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import common
import data

try:
    import fcntl
except ImportError:                             # Windows
    fcntl = None

ROOT = Path(__file__).parent.parent
DATA_ROOT = Path(os.environ.get("DATA_ROOT", ROOT / "data"))     # real data, where there is some
# A shell that starts the tests in the background has them ignore these, and so would the scripts that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_report_header():
    """What a report's numbers were computed on: kernels, and with them the last bits, differ by processor."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: "unknown")()
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    told = [f", {k}={os.environ[k]}" for k in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY") if k in os.environ]
    return (f"torch {torch.__version__}, CPU {torch.backends.cpu.get_cpu_capability()}{''.join(told)}, AMX {amx}, "
            f"{os.cpu_count()} cores, GPU {gpu}")


def pytest_terminal_summary(terminalreporter):
    if terminalreporter.verbosity < 0:          # -q leaves the header out
        terminalreporter.write_line(pytest_report_header())


# The scripts are typed some hundreds of times, and what each imports first takes seconds: a process that has imported
# it already forks for each.  What the tests themselves did in theirs is not seen there.
PLAIN = None if sys.platform == "linux" else (sys.executable,)       # other systems' libraries do not survive a fork
READY = multiprocessing.get_context("forkserver")
READY.set_forkserver_preload(["torch", "torchvision", "matplotlib.pyplot", "conftest"])


@functools.cache
def code_of(path):
    return compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)


if os.environ.pop("WARM", ""):                  # in that process: what it imports, and the scripts, compiled once
    for path in ROOT.glob("*.py"):
        code_of(str(path))


@functools.cache
def warm():
    """Start the process that forks."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        m.setenv("WARM", "1")
        forkserver.ensure_running()


def run_script(argv, folder, env, out, err):
    """In the forked process: the script as `python argv...` would run it, its output in two files."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    more = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv, sys.path[:0] = argv, [str(Path(argv[0]).parent), *more]
    if "CURVES" not in env:
        common.curves = lambda *_: None         # they take longer than a small run's training
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = argv[0]
    exec(code_of(argv[0]), vars(main))


def write_streaming_script(path):
    """alae.py, for which every set is too large for memory."""
    path.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r}); import alae, common, data\n"
                    "data.RESIDENT_BYTES = 0\n"
                    "if __name__ == '__main__': common.command(alae.main)\n")


def draws(z, mix=None):
    """What a step draws from, in place of `common.Draw`: codes of the function z(n), mixed by mix(w) if given."""
    return Namespace(z=z, mix=lambda w, F: mix(w) if mix else w)


def optimizers_of(opt):
    return [*vars(opt).values()]


@pytest.fixture(autouse=True)
def seeded():
    """A test draws the same numbers alone, after others and in any of pytest-xdist's workers."""
    torch.manual_seed(0)


@pytest.fixture
def script(tmp_path, tmp_path_factory):
    """script("alae.py", "--kimg", "1") runs it in a temporary folder.  -> CompletedProcess, with text output."""
    def run(name, *flags, code=0, env=None, launcher=PLAIN):
        argv, env = [str(ROOT / name), *map(str, flags)], {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})}
        if launcher:
            done = subprocess.run([*launcher, *argv], cwd=tmp_path, text=True, capture_output=True, env=env)
        else:
            warm()
            out, err = (tmp_path_factory.mktemp("output") / name for name in ("stdout", "stderr"))
            process = READY.Process(target=run_script, args=(argv, tmp_path, env, out, err))
            process.start()
            process.join()
            done = subprocess.CompletedProcess(argv, process.exitcode, out.read_text(), err.read_text())
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done
    return run


TWO = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")


def start(folder, *flags, launcher=(sys.executable,), name="alae.py", **kwargs):
    """A script that goes on while the test does.  -> Popen"""
    return subprocess.Popen([*launcher, str(ROOT / name), *map(str, flags)], cwd=folder, text=True,
                            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs})


def wait_for(path, process, rows=0, seconds=120):
    """Until the file that the process writes is there, with more than `rows` lines."""
    end = time.time() + seconds
    while not path.exists() or (rows and len(path.read_text().splitlines()) <= rows):
        assert process.poll() is None, process.communicate()
        assert time.time() < end, f"there is no {path}" if not path.exists() else path.read_text()
        time.sleep(0.02)


def ranks_of(process):
    """pid of each rank below a torchrun."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    ranks = {}
    for pid in children:
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        environment = dict(line.split(b"=", 1) for line in lines if b"=" in line)
        if b"RANK" in environment:
            ranks[int(environment[b"RANK"])] = int(pid)
    return ranks


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A temporary folder to be in, and signals left alone, for scripts run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path


MNIST = functools.cache(data._mnist_mini)


def run_here(main, *flags, until=math.inf):
    """A method's main in this process, without what takes time and is tested elsewhere.  until: asked to stop after so
    many images."""
    step, fixed_inputs = common.Run.step, common.fixed_inputs

    def stopping(self, *args):
        step(self, *args)
        self.stop = self.seen >= until
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt) if until < math.inf else nullcontext():
        m.setattr(common.Run, "step", stopping)
        m.setattr(signal, "signal", lambda *_: None)
        m.setattr(common, "curves", lambda *_: None)
        m.setattr(common, "fixed_inputs", lambda *given: [v if v is None else v[:16] for v in fixed_inputs(*given)])
        m.setattr(data, "_mnist_mini", MNIST)
        main([str(flag) for flag in flags])


# ------------------------------------------------------------------------------------------------- images, run folders

def picture(i, size=(40, 40), mode="L"):
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (size[1], size[0]), np.uint8)).convert(mode)


def fill(folder, n=20, first=0, **kwargs):
    """Pictures first ... first + n - 1, of which no two are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        picture(i, **kwargs).save(folder / f"{i:03d}.png")
    return folder


def fill_zip(path, n=20, labels="class", first=0, **kwargs):
    names = [f"00000/img{i:08d}.png" for i in range(n)]
    rows = {"class": [[m, i % 3] for i, m in enumerate(names)], "none": None,
            "attributes": [[m, [2 * (i % 2) - 1, 1]] for i, m in enumerate(names)]}[labels]
    with zipfile.ZipFile(path, "w") as z:
        for i, name in enumerate(names):
            b = io.BytesIO()
            picture(first + i, **kwargs).save(b, "png")
            z.writestr(name, b.getvalue())
        z.writestr("dataset.json", json.dumps({"labels": rows}))
    return path


def cells(path, rows, columns, size=28):
    """The cells of a grid, (rows, columns, size, size), of its first channel."""
    picture = np.array(Image.open(path))[:, :, 0].astype(float)
    assert picture.shape == (2 + (size + 2) * rows, 2 + (size + 2) * columns)
    return np.array([[picture[2 + (size + 2) * r:(size + 2) * (r + 1), 2 + (size + 2) * c:(size + 2) * (c + 1)]
                      for c in range(columns)] for r in range(rows)])


def shown(x):
    return common.to_uint8(x)[..., 0, :, :].numpy().astype(float)


def rows_of(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def log_of(run):
    """A run's log without what differs each time."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images/s", "peak_gb")}
            for row in rows_of(run / "log.csv")]


def checkpoint_of(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)


def flat(tree):
    if isinstance(tree, dict):
        return [v for k in sorted(tree, key=str) for v in flat(tree[k])]
    return [v for t in tree for v in flat(t)] if isinstance(tree, (list, tuple)) else [tree]


def assert_equal_runs(a, b):
    """To the bit: what training changes, and the log."""
    a_, b_ = checkpoint_of(a), checkpoint_of(b)
    for x, y in zip(*(flat([c["seen"], c["sums"], c["steps"], c["state"]]) for c in (a_, b_)), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    assert log_of(a) == log_of(b)


def in_double(folder, name):
    """-> the words that run a script in float64, for `script`.

    Adam divides a gradient by its own size.  In fp32 what rounding leaves of a gradient that should be 0 is above its
    epsilon, and moves a weight as far as any other, either way; in float64 it is far below.
    """
    (folder / "double.py").write_text(
        f"import runpy, sys, torch; sys.path.insert(0, {str(ROOT)!r})\n"
        "torch.set_default_dtype(torch.float64)\n"
        "torch.Tensor.float = torch.Tensor.double\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n")
    return folder / "double.py", ROOT / name


def assert_two_are_one(start, one, two):
    """One process and two went from `start` to the same weights.  -> how far, by name"""
    for which in ("model", "ema"):
        for key, value in one[which].items():       # equal but for the order of sums
            assert (value - two[which][key]).abs().max() < 1e-8, (which, key)
    assert torch.equal(one["rng"], two["rng"])
    return {key: (value - start["model"][key]).abs().double().mean() for key, value in one["model"].items()}


# ------------------------------------------------------------------------------------------------- networks and steps

SHAPES = {"mlp": (1, 28, 28), "dcgan": (1, 32, 32), "biggan": (1, 32, 32), "stylegan": (1, 8, 8)}


def tiny(method, *flags, lr=0.001, **more):
    """Narrow networks of alae, lia or invgan.  more: further arguments.  -> args, model, Adams by name"""
    args = method.parse_args(["--nz", "8", "--nw", "8", "--width", "16", *flags])
    vars(args).update({"image_shape": SHAPES[args.backbone], **more})
    torch.manual_seed(0)
    model = {"alae": "ALAE", "lia": "LIA", "invgan": "InvGAN"}[method.__name__]
    model = getattr(method, model)(**method.network_args(vars(args)))
    opt = {name: common.adam(net, lr, (0.0, 0.99)) for name, net in model.named_children()}
    return args, model, Namespace(**opt)


def noisy(module):
    """Give every parameter a random value, so that zeros at the start hide nothing.  -> module"""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return module


def changed_by(model, function, *args):
    """The names of a model's tensors that a call changes."""
    before = copy.deepcopy(model.state_dict())
    function(*args)
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


def networks(keys):
    """The networks that tensors belong to."""
    return {k.partition(".")[0] for k in keys}


def assert_bf16_is_near(model, updates, step):
    """step(model, optimizers by name, amp) -> losses.  updates: the networks that move together.

    Over three seeds losses were up to 0.02 of 1 + |loss| off, and updates 0.23 of their norm; 1 if a gradient is lost.
    """
    nets, losses, moved = " ".join(updates).split(), [], []
    if any(isinstance(m, common.Growing) for m in model.modules()):     # equal pixels lead instance norm to divide by
        for p in model.parameters():                                    # what is rounding alone
            p.data += 0.3 * torch.randn_like(p)
    for precision in ("fp32", "bf16"):
        after = copy.deepcopy(model)
        opt = Namespace(**{net: torch.optim.SGD(getattr(after, net).parameters(), lr=1e-3) for net in nets})
        torch.manual_seed(3)                                            # random noise
        values = step(after, opt, common.autocast(precision, torch.device("cpu")))
        losses.append(torch.stack([v.detach() for v in values]))
        moved.append([torch.cat([(a - b).detach().flatten() for net in group.split() for a, b in zip(
            getattr(after, net).parameters(), getattr(model, net).parameters(), strict=True)]) for group in updates])
    assert losses[0].dtype == losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.05)
    assert not torch.equal(*losses)
    for plain, fast in zip(*moved, strict=True):
        assert 0 < (fast - plain).norm() < 0.45 * plain.norm()


# ----------------------------------------------------------------------------------------------- what a loop does

class Enough(Exception):
    """Ends a run at its first step."""


def show_nothing(monkeypatch):
    """Snapshots without pictures and measures, which take time."""
    monkeypatch.setattr(common, "inversion_errors", lambda *_: dict.fromkeys(common.Run.MEASURES, ""))
    monkeypatch.setattr(common, "snapshot_pictures", lambda *_: {})


def watch(monkeypatch, look, module, name):
    """-> a list of what look(model, optimizers, x, call) makes of that which the loop gives to each step."""
    step, seen = getattr(module, name), []
    show_nothing(monkeypatch)
    call = calls(monkeypatch)
    monkeypatch.setattr(module, name, lambda *given: seen.append(look(*call(given))) or step(*given))
    return seen


def calls(monkeypatch):
    """-> call(what a step is given) -> model, optimizers, x, and the rest by name."""
    models, broadcast = [], common.broadcast
    monkeypatch.setattr(common, "broadcast", lambda model: models.append(model) or broadcast(model))

    def call(given):
        nets, opt, x, *rest = given
        draw, args, amp, *_ = rest if isinstance(rest[0], common.Draw) else rest[1:]        # eps is before them
        return models[-1], optimizers_of(opt), x, Namespace(nets=nets, draw=draw, args=args, amp=amp)
    return call


def modes(model, optimizers, *_):
    """-> rate and betas of each optimizer, networks with a part in training mode, networks with weights to be moved."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return ([(group["lr"], group["betas"]) for group in groups],
            {name for name, net in model.named_children() if any(m.training for m in net.modules())},
            {name for name, net in model.named_children() if any(p.requires_grad for p in net.parameters())})


def autocasts(model, optimizers, x, call):
    with call.amp():
        return torch.is_autocast_enabled("cpu")


def averages(monkeypatch, every):
    """-> a list of the run's average, and of the parameters of its model and average, after each step; and a list of
    the models that snapshots were made of.  The average moves each `every` images."""
    step, steps, shown = common.Run.step, [], []

    def spy(self, *args):
        both = [copy.deepcopy([*self.state[k].parameters()]) for k in ("model", "ema")]
        steps.append((self.state["ema"], *both))
        step(self, *args)

    def show(model, x, z):
        shown.append(model)
        return dict.fromkeys(common.Run.MEASURES, "")
    monkeypatch.setattr(common.Run, "step", spy)
    monkeypatch.setattr(common, "inversion_errors", show)
    monkeypatch.setattr(common, "snapshot_pictures", lambda *given: show(*given) and {})
    monkeypatch.setattr(common, "EMA_EVERY", every)
    return steps, shown


def assert_averaged(steps, shown, batch, since):
    """since: the images shown since the run or its level began, at the start of each step."""
    before = steps[0][1]                    # at the first step hardly anything of the initial weights is kept
    for (_, model, ema), images in zip(steps, since, strict=True):
        beta = 0.5 ** (batch / max(images / 5, 1))
        expected = [beta * a + (1 - beta) * b for a, b in zip(before, model, strict=True)]
        torch.testing.assert_close(ema, expected, rtol=1e-5, atol=1e-6)
        before = ema
    assert any(not torch.equal(a, b) for a, b in zip(model, ema, strict=True))
    assert all(model is steps[0][0] for model in shown)
    assert not any(m.training for m in shown[0].modules())


def shares_of(flags, look, name, module, monkeypatch):
    """-> what look(...) gives of the first step, in one process and in each of two."""
    def of(rank, world):
        seen, start = [], common.start

        def stop(*given):
            seen.extend(look(*call(given)))
            raise Enough
        with monkeypatch.context() as m:
            show_nothing(m)
            call = calls(m)
            m.setattr(common, "start", lambda args: (start(args)[0], rank, world))
            m.setattr(module, name, stop)
            with pytest.raises(Enough):
                run_here(module.main, *flags, "--out", f"run-{rank}-{world}")
        return [v.detach() for v in seen]
    return of(0, 1), of(0, 2), of(1, 2)


def assert_shared(one, *two):
    for rank, seen in enumerate(two):
        torch.testing.assert_close(seen, [v[rank::2] for v in one])
        assert {v.untyped_storage().nbytes() for v in seen if v.ndim == 4} <= {     # noise: its own, and no view
            v.numel() * v.element_size() for v in seen if v.ndim == 4}


def noise_of(G, net, w, monkeypatch):
    """What `net` draws for G."""
    etas = []
    monkeypatch.setattr(G, "forward", lambda w, noise: etas.extend(noise) or w)
    net(w)
    return etas


# --------------------------------------------------------------------------------- a method that eval has never met
# x is 28x28; w is x itself.  E keeps it, G dims it by `dim`, so every number can be worked out.

DUMMY = """
import torch, common
class Dummy(torch.nn.Module):
    image_shape, nz, nw, num_layers = (1, 28, 28), 784, 784, 1
    def __init__(self, dim): super().__init__(); self.dim = torch.nn.Parameter(torch.tensor(dim))
    def prior(self, n, generator): return torch.rand(n, 784, generator=generator) * 2 - 1
    def map(self, z): return z / 2
    def generate(self, w, noise="fixed"): return (w * self.dim).view(-1, 1, 28, 28)
    def encode(self, x): return x.flatten(1)
    def features(self, x): return x.flatten(1)[:, ::16], x.flatten(1)[:, ::8]
def load(run, device="cpu", weights="ema"):
    return common.load_model(run, "dummy", lambda args: Dummy(0.0), device, weights, None)
"""


def dummies(folder, monkeypatch):
    """make("name", dim=0.9, data="mnist-mini") writes a run of a method in a file of its own.  -> its folder"""
    (folder / "dummy.py").write_text(DUMMY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    import dummy as method

    def make(name, dim=0.9, data="mnist-mini", data_root="data", split="auto", **more):
        args = dict(method="dummy", label="Dummy", backbone="none", data=data, data_root=str(data_root), split=split,
                    resolution="auto", skip_bad=False, seed=0, image_shape=[1, 28, 28],
                    precision="fp32", versions=dict(torch="0", code="unknown"),
                    train_images=10000 if data == "mnist-mini" else 50000 if split == "sw" else 60000, **more)
        (folder / name).mkdir()
        (folder / name / "args.json").write_text(json.dumps(args))
        state = {k: method.Dummy(d).state_dict() for k, d in (("ema", dim), ("model", dim / 2))}
        torch.save(dict(args=args, seen=1000, state=state), folder / name / "checkpoint.pt")
        return folder / name
    return make


@pytest.fixture
def dummy(tmp_path, monkeypatch):
    """`dummies` in the test's folder."""
    yield dummies(tmp_path, monkeypatch)
    sys.modules.pop("dummy")


def change(run, without=(), **changes):
    """Give a run other arguments, in args.json and in its checkpoint.  without: those that it is to lack."""
    args = {**json.loads((run / "args.json").read_text()), **changes}
    args = {name: value for name, value in args.items() if name not in without}
    (run / "args.json").write_text(json.dumps(args))
    torch.save({**checkpoint_of(run), "args": args}, run / "checkpoint.pt")
    return run


def options(**changes):
    return Namespace(**{**dict(device=torch.device("cpu"), weights="", data="", data_root="", seed=0, n=0, images=[],
                               features="auto", inception="", vgg="", lpips="", face_crop=False, batch=0, only=[],
                               reference="", optimise=0, steps=0, sources="test", reference_n=0, flip=False,
                               columns=0),
                        **changes})


def make_run(folder, growth=None, losses=("a", "b"), **changes):
    """A `common.Run` of a small layer that has taken one step."""
    args = dict(out=str(folder), resume="", kimg=1, batch=10, snapshot_kimg=1, keep_kimg=0, lr=0.1, method="alae",
                backbone="mlp", precision="fp32")
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    optimizer = common.adam(model, 0.1, (0.0, 0.99))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"model": model, "ema": torch.nn.Linear(2, 2), "opt": optimizer, "rng": torch.Generator()}
    return common.Run(Namespace(**{**args, **changes}), state, losses, torch.device("cpu"),
                      growth or common.Growth([(8, 8)], [8], [0.1]))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where the classifier of the bundled digits is kept, trained once for all tests, a fifth as long as for users, by
    the first of pytest-xdist's workers that needs it."""
    import eval as evaluation
    fit, folder = evaluation._fit, tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "classifier"
    folder.mkdir(exist_ok=True)
    evaluation._fit = lambda net, n, loss_of, steps=300, batch=128: fit(net, n, loss_of, steps, batch)
    view = object.__new__(evaluation.View)
    vars(view).update(run="tests", device=torch.device("cpu"), parts=data.load("mnist-mini"))
    with open(folder / ".lock", "w") as lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        evaluation.classifier_of(view, folder)
    return folder
