"""Tests import the scripts from the folder above, run on one thread (bit-exact, and no fight over cores) and never
write outside pytest's temporary folders."""
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
DATA_ROOT = Path(os.environ.get("DATA_ROOT", ROOT / "data"))     # real data, where there is some
sys.path.insert(0, str(ROOT))
# A shell that starts the tests in the background has them ignore these, and so would the scripts that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


# The scripts are typed some hundreds of times, and what each imports first takes seconds: a process that has imported
# it already forks for each.  What the tests themselves did in theirs is not seen there.
PLAIN = None if sys.platform == "linux" else (sys.executable,)       # other systems' libraries do not survive a fork
READY = multiprocessing.get_context("forkserver")
READY.set_forkserver_preload(["torch", "torchvision", "matplotlib.pyplot"])


def run_script(argv, folder, env, out, err):
    """In the forked process: the script as `python argv...` would run it, its output in two files."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    more = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv, sys.path[:0] = argv, [str(Path(argv[0]).parent), *more]
    runpy.run_path(argv[0], run_name="__main__")


def write_streaming_script(path):
    """alae.py, for which every set is too large for memory."""
    path.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r}); import alae, common, data\n"
                    "data.RESIDENT_BYTES = 0\n"
                    "if __name__ == '__main__': common.command(alae.main, data.DataError)\n")


def draws(z, mix=None):
    """What a step draws from, in place of `common.Draw`: codes of the function z(n), mixed by mix(w) if given."""
    return Namespace(z=z, mix=lambda w, F: mix(w) if mix else w)


def optimizers_of(opt):
    return [*vars(opt).values()]


@pytest.fixture
def script(tmp_path, tmp_path_factory):
    """script("alae.py", "--kimg", "1") runs it in a temporary folder.  -> CompletedProcess, with text output."""
    def run(name, *flags, code=0, env=None, launcher=PLAIN):
        argv, env = [str(ROOT / name), *map(str, flags)], {**os.environ, "CUDA_VISIBLE_DEVICES": "", **(env or {})}
        if launcher:
            done = subprocess.run([*launcher, *argv], cwd=tmp_path, text=True, capture_output=True, env=env)
        else:
            out, err = (tmp_path_factory.mktemp("output") / name for name in ("stdout", "stderr"))
            process = READY.Process(target=run_script, args=(argv, tmp_path, env, out, err))
            process.start()
            process.join()
            done = subprocess.CompletedProcess(argv, process.exitcode, out.read_text(), err.read_text())
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done
    return run


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
    return common.load_weights(run, common.read_args(run, "dummy"), Dummy(0.0), weights, device)
"""


@pytest.fixture
def dummy(tmp_path, monkeypatch):
    """dummy("name", dim=0.9, data="mnist-mini") writes a run of a method in a file of its own.  -> its folder"""
    (tmp_path / "dummy.py").write_text(DUMMY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    import dummy as method

    def make(name, dim=0.9, data="mnist-mini", data_root="data", split="auto", **more):
        args = dict(method="dummy", label="Dummy", backbone="none", data=data, data_root=str(data_root), split=split,
                    resolution="auto", skip_bad=False, seed=0, image_shape=[1, 28, 28],
                    precision="fp32", versions=dict(torch="0", code="unknown"),
                    train_images=10000 if data == "mnist-mini" else 50000 if split == "sw" else 60000, **more)
        (tmp_path / name).mkdir()
        (tmp_path / name / "args.json").write_text(json.dumps(args))
        state = {k: method.Dummy(d).state_dict() for k, d in (("ema", dim), ("model", dim / 2))}
        torch.save(dict(args=args, seen=1000, state=state), tmp_path / name / "checkpoint.pt")
        return tmp_path / name
    yield make
    sys.modules.pop("dummy")


def options(**changes):
    return Namespace(**{**dict(device=torch.device("cpu"), weights="", data="", data_root="", seed=0, n=0, images=[],
                               features="auto", inception="", vgg="", lpips="", face_crop=False, batch=0, only=[],
                               reference=""),
                        **changes})


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where the classifier of the bundled digits is kept, trained once for all tests, a fifth as long as for users."""
    import data
    import eval as evaluation
    fit, folder = evaluation._fit, tmp_path_factory.mktemp("cache")
    evaluation._fit = lambda net, n, loss_of, steps=300, batch=128: fit(net, n, loss_of, steps, batch)
    view = object.__new__(evaluation.View)
    vars(view).update(run="tests", device=torch.device("cpu"), parts=data.load("mnist-mini"))
    evaluation.classifier_of(view, folder)
    return folder
