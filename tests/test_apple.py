"""Apple's GPU, as far as a CPU can play it: no float64 on it, and no operation on tensors here and there."""
import contextlib
import functools
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fill, options, run_here
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import common
import eval as evaluation

MPS = torch.device("mps")


class Marks:
    """The storages that count as the GPU's."""

    def __init__(self):
        self.known = {}             # a weak reference keeps the address from being used again
        self.inside = False         # a call on the GPU's tensors, which may make zeros on its own

    def has(self, t):
        return isinstance(t, torch.Tensor) and t.untyped_storage()._cdata in self.known

    def put(self, t):
        if isinstance(t, torch.Tensor):
            if t.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
            reference = StorageWeakRef(t.untyped_storage())
            self.known[reference.cdata] = reference
        return t


class Move(torch.autograd.Function):
    """A copy to or from the GPU; gradients come back."""

    @staticmethod
    def forward(ctx, x, marks, to_gpu):
        ctx.marks, ctx.to_gpu = marks, to_gpu
        with torch.utils._python_dispatch._disable_current_modes():
            out = x.clone()
        return marks.put(out) if to_gpu else out

    @staticmethod
    def backward(ctx, g):
        return Move.apply(g, ctx.marks, not ctx.to_gpu), None, None


class Operations(TorchDispatchMode):
    """What is made of tensors on the GPU is there, too, also in the backward pass; others do not go with them."""
    MIXES = ("copy_", "index", "index_put_", "_index_put_impl_", "set_", "lift_fresh")

    def __init__(self, marks):
        super().__init__()
        self.marks = marks

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        there = [self.marks.has(t) for t in tensors]
        name = function.overloadpacket.__name__
        if any(there) and name not in self.MIXES and not all(m or not t.ndim for m, t in zip(there, tensors)):
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found mps:0 and cpu")
        if any(there) and name == "_adaptive_avg_pool2d" and any(a % b for a, b in zip(args[0].shape[2:], args[1])):
            raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes")
        out = function(*args, **kwargs or {})
        if (any(there) or (self.marks.inside and not tensors)) and not (name == "copy_" and not there[0]):
            tree_map(self.marks.put, out)
        return out


class Apple(TorchFunctionMode):
    """Takes "mps" for a device, says which tensors are there, and moves between it and the CPU by copies."""

    def __init__(self):
        super().__init__()
        self.marks = Marks()
        self.seen = 0               # tensors that came to it

    def where(self, t):
        return MPS if self.marks.has(t) else t.device

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        here = bool(args) and self.marks.has(args[0])
        if function == torch.Tensor.device.__get__:
            return self.where(args[0])
        if name in ("numpy", "__array__") and here:
            raise TypeError("can't convert mps:0 device type tensor to numpy")
        wanted = [self.where(a) if name == "to" and isinstance(a, torch.Tensor) else a
                  for a in (*args[name == "to":], kwargs.get("device"))]
        named = [torch.device(d) for d in wanted if isinstance(d, (torch.device, str)) and str(d) in ("mps", "cpu")]
        target = torch.device("cpu") if name == "cpu" else (named or [None])[-1]
        if target is None or name in ("_parse_to", "device"):
            before, self.marks.inside = self.marks.inside, self.marks.inside or here
            try:
                out = function(*args, **kwargs)
            finally:
                self.marks.inside = before
            return tree_map(self.marks.put, out) if here and name.startswith("new_") else out

        def on_cpu(v):
            return "cpu" if isinstance(v, (torch.device, str)) and str(v) == "mps" else v
        if name == "to" and len(args) > 1 and isinstance(args[1], torch.Tensor):
            args = args[0], "cpu", args[1].dtype
        out = function(*map(on_cpu, args), **{k: on_cpu(v) for k, v in kwargs.items()})
        if not isinstance(out, torch.Tensor) or self.where(out) == target:
            return out
        self.seen += target == MPS
        return Move.apply(out, self.marks, target == MPS) if name in ("to", "cpu") else self.marks.put(out)


class Generator(torch.Generator):
    """One of the GPU's numbers, drawn on the CPU."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.on = torch.device(device)
        return made

    device = property(lambda self: self.on)


@pytest.fixture
def apple(monkeypatch):
    """A machine with Apple's GPU and no other."""
    mode, load, run_backward = Apple(), torch.load, torch.autograd._engine_run_backward

    def running(outputs, *args, **kwargs):      # a function's own backward is in the mode, too
        with mode, monkeypatch.context() as m:
            m.setattr(mode.marks, "inside", any(map(mode.marks.has, outputs)))
            return run_backward(outputs, *args, **kwargs)

    def loading(*args, map_location="cpu", **kwargs):
        tree = load(*args, map_location="cpu", **kwargs)
        return tree_map(lambda v: v.to(map_location) if isinstance(v, torch.Tensor) else v, tree)
    monkeypatch.setattr(torch, "load", loading)
    monkeypatch.setattr(torch.autograd, "_engine_run_backward", running)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    there = functools.wraps(torch.backends.mps.is_available)(lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", there)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mode)
        stack.enter_context(Operations(mode.marks))
        yield mode


def test_float64_on_it_is_an_error(apple):
    x = torch.zeros(3, device="mps", requires_grad=True)
    assert (x + 1).device == x.clone().device == torch.zeros_like(x).device == MPS != x.cpu().device
    x.exp().sum().backward()
    assert x.grad.device == MPS
    for wrong in (x.double, lambda: x.sum(dtype=torch.float64), lambda: torch.zeros(3).double().to(x.device),
                  lambda: torch.zeros(3, dtype=torch.float64, device="mps")):
        with pytest.raises(TypeError, match="float64"):
            wrong()
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.zeros(3)
    assert evaluation.double(x).dtype == torch.float64


def test_it_is_taken_if_it_works(apple, monkeypatch, capsys):
    assert common.find_device("auto") == MPS
    with pytest.raises(common.Error, match="--device can be cpu or mps"):
        common.find_device("cuda:7")
    with monkeypatch.context() as m:
        m.setenv("WORLD_SIZE", "2")
        assert common.find_device("auto").type == "cpu"
        with pytest.raises(common.Error, match="--device mps is for one process"):
            common.join("mps")
    monkeypatch.setattr(common, "lrelu", lambda x: torch.nn.functional.leaky_relu(x, 0.2 + 0.02 * (x.device == MPS)))
    assert common.find_device("auto").type == "cpu"
    assert "(other numbers than on the CPU), so the CPU is taken" in capsys.readouterr().err


STYLE = ("--backbone", "stylegan")
TRAINED = [("alae", 28), ("alae", 16, *STYLE), ("lia", 16, *STYLE), ("invgan", 28),
           ("invgan", 32, "--backbone", "biggan"),
           *(("faae", 28, "--objective", name) for name in ("faae", "bigan", "age", "ae-l1"))]


def train(method, *flags):
    run_here(importlib.import_module(method).main, *flags, "--batch", 4)


@pytest.mark.parametrize(("method", "size", "flags"), [(method, size, flags) for method, size, *flags in TRAINED],
                         ids=[f"{row[0]}-{row[-1]}" for row in TRAINED])
def test_training(method, size, flags, apple, here):
    """A step and its snapshots; ALAE goes on from its checkpoint, LIA to stage 2."""
    fill(Path("photos"), size=(size, size))
    flags = [*(("--backbone", "mlp") if size == 28 else ()), *flags]
    train(method, "--data", "photos", *flags, "--width", 64, "--kimg", 0.004, "--out", "run")
    if method == "alae" and size == 28:
        train(method, "--resume", "run", "--kimg", 0.008)
    if method == "lia":
        train(method, "--stage", 2, "--decoder", "run", "--perceptual", "critic", "--kimg", 0.004, "--out", "second")
    assert apple.seen > 40


class Squares(torch.nn.Module):
    """Squared differences in place of LPIPS."""
    title, checksum, official = "LPIPS", "none", True

    def forward(self, a, b):
        return (a - b).square().mean((1, 2, 3))


@pytest.fixture
def run(apple, here, monkeypatch):
    """ALAE after a step, on photos of two classes; a classifier is trained for two steps."""
    for kind in "ab":
        fill(Path("photos", kind), n=60, first=60 * (kind == "b"), size=(28, 28))
    fit = evaluation._fit
    monkeypatch.setattr(evaluation, "_fit", lambda net, n, loss_of: fit(net, n, loss_of, 2, 8))
    monkeypatch.setattr(evaluation, "lpips_of", lambda view, args, crop=False: Squares())
    train("alae", "--data", "photos", "--backbone", "mlp", "--width", 64, "--kimg", 0.004, "--out", "run")
    return Path("run")


@pytest.mark.parametrize("name", evaluation.MEASURES)
def test_measures(name, run):
    """Each measure gives there what it gives on the CPU."""
    numbers = []
    for device in (MPS, torch.device("cpu")):
        args = options(device=device, cache=Path(device.type))
        numbers.append(evaluation.MEASURES[name].count(evaluation.View(run, args), args).numbers)
    assert numbers[0].keys() == numbers[1].keys()
    for there, here in zip(*map(tree_leaves, numbers), strict=True):
        assert there == here if isinstance(there, str) else there == pytest.approx(here, rel=1e-5)


def test_commands(run):
    made = []
    for device in ("mps", "cpu"):
        for words in ("encode run photos --out codes.npz --reconstruct out", "decode run codes.npz --out decoded",
                      "samples run -n 4 --out samples", "interpolate run seed:1 seed:2 --out f.gif --frames 3",
                      "boundary run --out boundaries", "figure traversal run -n 2 --out t.png",
                      "invert run --steps 2 -n 2 --out i.png"):
            for out in ("out", "decoded", "samples", "boundaries"):
                shutil.rmtree(out, ignore_errors=True)
            evaluation.main([*words.split(), "--device", device])
        made.append(np.load("codes.npz")["w"])
        view = evaluation.View(run, options(device=torch.device(device)))
        made.append(torch.stack([*evaluation.Played(view).directions.values()]).cpu().numpy())
    for there, here in zip(made[:2], made[2:], strict=True):
        assert np.abs(there) == pytest.approx(np.abs(here), abs=1e-5)       # an axis has no sign


def test_a_measure_that_forgets_is_caught(run, monkeypatch):
    monkeypatch.setattr(evaluation, "double", torch.Tensor.double)
    args = options(device=MPS)
    with pytest.raises(TypeError, match="float64"):
        evaluation.measure_errors(evaluation.View(run, args), args)
