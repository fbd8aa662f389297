"""Runs under faults: two at once in a folder, signals, readers that leave, damaged files, frozen processes."""
import csv
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from argparse import Namespace
from datetime import timedelta
from pathlib import Path

import matplotlib.figure
import pytest
import torch
from conftest import ROOT, TWO, checkpoint_of, make_run, ranks_of, run_here, start, wait_for
from PIL import Image
from torch import nn

import alae
import common
import eval
import faae
import invgan
import lia

SMALL = ("--width", "64", "--nz", "4", "--nw", "4", "--batch", "32")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux has them")


@pytest.fixture(autouse=True)
def restore():
    """What a run in this process changes of it."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    handlers, streams = [signal.getsignal(n) for n in numbers], (sys.stdout, sys.stderr)
    yield
    sys.stdout, sys.stderr = streams
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, to be copied: what resolves, checkpoint, log."""
    out = tmp_path_factory.mktemp("faults") / "run"
    main(alae, *SMALL, "--kimg", "0.064", "--out", out)

    def copy(to):
        shutil.copytree(out, to)
        return to
    return copy


def main(method, *flags):
    if method is eval:
        eval.main([str(flag) for flag in flags])
    else:
        run_here(method.main, *flags)


# ------------------------------------------------------------------------------------------------- one run a folder

@LINUX
def test_a_run_that_is_going_is_not_resumed_and_a_hangup_saves_it(script, tmp_path):
    process = start(tmp_path, *SMALL, "--kimg", "500", "--snapshot-kimg", "100", "--out", "run")
    wait_for(tmp_path / "run" / "checkpoint.pt", process)
    err = script("alae.py", "--resume", "run", code=2).stderr
    assert f"error: run is in use by process {process.pid} on " in err
    assert err.count("\n") == 1
    assert "--resume run" in err
    assert "in use" in script("alae.py", *SMALL, "--out", "run", code=2).stderr
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    seen = checkpoint_of(tmp_path / "run")["seen"]
    assert seen > 0
    assert f"stopped: {seen / 1000:g} kimg" in out
    (tmp_path / "run" / "checkpoint.pt.77.part").write_bytes(b"half of it")
    script("alae.py", "--resume", "run", "--kimg", seen / 1000 + 0.032)
    assert not list((tmp_path / "run").glob("*.part"))


def test_two_starts_into_one_folder_leave_one_run(tmp_path):
    out = tmp_path / "run"
    both = [start(tmp_path, *SMALL, "--kimg", "0.064", "--seed", seed, "--out", out) for seed in (1, 2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], errors
    assert any("is in use by" in err or "already holds a run" in err for err in errors)
    winner = [p.returncode for p in both].index(0) + 1
    assert json.loads((out / "args.json").read_text())["seed"] == checkpoint_of(out)["args"]["seed"] == winner


def test_a_folder_is_claimed_before_anything_is_in_it(tmp_path):
    """Between another process's claim and its first file."""
    (tmp_path / "run").mkdir()
    code = ("import fcntl, sys, time; f = open('run/.lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
            "f.write('process 7 on there'); f.flush(); print('locked', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(common.Error, match="is in use by process 7 on there; wait for its end"):
        make_run(tmp_path / "run")
    other.kill()
    other.wait()
    make_run(tmp_path / "run")


def test_files_of_a_run_without_its_arguments_are_not_written_over(folder, tmp_path):
    run = folder(tmp_path / "run")
    (run / "args.json").unlink()
    assert "already holds a run" in message(main, alae, *SMALL, "--out", run)


def test_several_processes_learn_that_a_folder_is_taken(tmp_path, monkeypatch):
    """Process 0 says so, and the others leave without a word."""
    make_run(tmp_path / "run")
    shared = []
    job = Namespace(is_initialized=lambda: True, broadcast_object_list=lambda objects: shared.append(objects[0]))
    monkeypatch.setattr(common, "dist", job)
    with pytest.raises(common.Error, match="already holds a run"):
        make_run(tmp_path / "run")
    job.broadcast_object_list = lambda objects: objects.__setitem__(0, shared[0])
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as e:
        make_run(tmp_path / "run")
    assert e.value.code == 2


# --------------------------------------------------------------------------------------------------------- signals

def test_nohup_is_left_alone(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    make_run(tmp_path / "run")
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


# ----------------------------------------------------------------------------------------------- files, where they go

@LINUX
def test_writing_through_what_is_no_plain_file(tmp_path):
    target, link, fifo = tmp_path / "target", tmp_path / "link", tmp_path / "fifo"
    target.write_bytes(b"old")
    link.symlink_to("target")
    common.write_atomic(link, b"new")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"new")
    os.mkfifo(fifo)
    got = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    common.write_atomic(fifo, b"through")
    reader.join(10)
    assert (got, stat.S_ISFIFO(fifo.stat().st_mode)) == ([b"through"], True)
    common.write_atomic(Path(os.devnull), b"away")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert {p.name for p in tmp_path.iterdir()} == {"target", "link", "fifo"}


@LINUX
def test_numbers_and_pictures_go_into_devices(folder, tmp_path, monkeypatch):
    """`--json` into a pipe, which takes the numbers once, and `--out` through a link."""
    folder(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    got = []
    reader = threading.Thread(target=lambda: got.append(Path("fifo").read_text()), daemon=True)
    reader.start()
    main(eval, "metrics", "run", "--only", "errors,latent", "-n", "64", "--json", "fifo")
    reader.join(10)
    assert set(json.loads(got[0])["run"]) == {"errors", "latent"}
    Path("link.png").symlink_to("picture.png")
    main(eval, "figure", "samples", "run", "--out", "link.png")
    assert Path("link.png").is_symlink()
    assert Path("picture.png").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------------- standard output

def test_a_run_goes_on_when_nobody_reads(tmp_path):
    process = start(tmp_path, *SMALL, "--kimg", "0.2", "--out", "run")
    assert process.stdout.readline().startswith("ALAE on mnist-mini")
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(60), err) == (0, "")
    assert checkpoint_of(tmp_path / "run")["seen"] >= 200


@LINUX
def test_a_run_with_its_output_closed(tmp_path):
    command = [sys.executable, str(ROOT / "alae.py"), *SMALL, "--kimg", "0.1", "--out", "run"]
    done = subprocess.run(f"{' '.join(command)} >&- 2>&-", shell=True, cwd=tmp_path, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert checkpoint_of(tmp_path / "run")["seen"] >= 100


# --------------------------------------------------------------------------------------------------- damaged folders

def damage(run, changes):
    """Change values of args.json; None takes one away."""
    args = json.loads((run / "args.json").read_text())
    for key, value in changes.items():
        args.pop(key) if value is KeyError else args.update({key: value})
    (run / "args.json").write_text(json.dumps(args))


ARGS = {"width": "x", "nz": -1, "nw": None, "backbone": 7, "versions": None, "method": "../x", "batch": [], "seed": -3,
        "kimg": "long", "lr": None, "precision": "fp8", "image_shape": [1, 28], "train_images": None, "d_act": "x",
        "gamma": None, "batches": None, "schedule_kimg": None, "latent_loss": 3, "skip_bad": "yes", "data": None,
        "image_means": "xyz"}


def message(call, *args):
    """What the `Error`, which must come, says."""
    with pytest.raises((common.Error, alae.data.DataError)) as e:
        call(*args)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("key", ARGS)
def test_edited_arguments_are_named(folder, tmp_path, key):
    run = folder(tmp_path / "run")
    damage(run, {key: ARGS[key]})
    said = message(main, alae, "--resume", run)
    assert key in said
    assert str(run) in said
    assert "put back" in said or "no readable args.json" in said or "different runs" in said
    if key not in ("gamma", "kimg", "lr", "skip_bad", "data"):      # which no network is made of
        said = message(alae.load, run)
        assert str(run) in said


@pytest.mark.parametrize("key", ["versions", "schedule_kimg", "data_name", "image_shape", "train_images", "method"])
def test_missing_arguments_are_named(folder, tmp_path, key):
    run = folder(tmp_path / "run")
    damage(run, {key: KeyError})
    said = message(main, alae, "--resume", run)
    assert str(run) in said
    assert key in said or "no readable args.json" in said


CHECKPOINTS = {
    "args a list": lambda c: c.update(args=[1]),
    "no state": lambda c: c.pop("state"),
    "state a list": lambda c: c.update(state=[]),
    "no average": lambda c: c["state"].pop("ema"),
    "a key missing": lambda c: c["state"]["ema"].pop("F.layers.0.weight"),
    "another shape": lambda c: c["state"]["ema"].update({"F.layers.0.weight": torch.zeros(3, 3)}),
    "a weight a string": lambda c: c["state"]["ema"].update({"F.layers.0.weight": "x"}),
    "seen a string": lambda c: c.update(seen="12"),
    "seen missing": lambda c: c.pop("seen"),
    "sums None": lambda c: c.update(sums=None),
    "sums of fewer losses": lambda c: c.update(sums=[0.0]),
    "steps a string": lambda c: c.update(steps="x"),
    "seconds missing": lambda c: c.pop("seconds"),
    "an optimiser's groups": lambda c: c["state"]["opt_G"].update(param_groups=[]),
    "an optimiser's moments": lambda c: c["state"]["opt_G"]["state"][0].update(exp_avg=torch.zeros(3)),
    "moments missing": lambda c: c["state"]["opt_G"]["state"][0].pop("exp_avg_sq"),
    "rng a list": lambda c: c["state"].update(rng=[1]),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_that_are_not_right_are_named(folder, tmp_path, name):
    run = folder(tmp_path / "run")
    checkpoint = checkpoint_of(run)
    CHECKPOINTS[name](checkpoint)
    torch.save(checkpoint, run / "checkpoint.pt")
    said = message(main, alae, "--resume", run, "--kimg", "0.128")
    assert str(run / "checkpoint.pt") in said
    assert "put back a copy" in said
    if {"args", "state", "average", "key", "shape", "weight", "seen"} & {*name.split()}:
        assert str(run) in message(alae.load, run)


@pytest.mark.parametrize("text", [b"", b"\n\n", b"a,b,c\n1,2,3\n", b"\xff\xfe\x00kimg", None], ids=[
    "empty", "blank", "foreign", "undecodable", "no number"])
def test_a_foreign_log_is_named(folder, tmp_path, text):
    run = folder(tmp_path / "run")
    if text is None:
        header = (run / "log.csv").read_bytes().splitlines()[0]
        text = header + b"\n" + b",".join([b"x"] * (header.count(b",") + 1)) + b"\n"
    (run / "log.csv").write_bytes(text)
    said = message(main, alae, "--resume", run, "--kimg", "0.128")
    assert str(run / "log.csv") in said
    assert "put back a copy" in said
    assert (run / "log.csv").read_bytes() == text


@pytest.mark.parametrize(("method", "flags", "key", "value"), [
    (lia, (), "depth", "x"), (invgan, ("--backbone", "mlp"), "variant", 3), (faae, (), "objective", "x")])
def test_every_method_names_its_damaged_arguments(tmp_path, method, flags, key, value):
    run = tmp_path / "run"
    main(method, *SMALL, *flags[:2], "--kimg", "0.032", *(() if method is not faae else ("--nw", "4")), "--out", run)
    method.load(run)
    damage(run, {key: value})
    assert str(run) in message(method.load, run)
    assert str(run) in message(main, method, "--resume", run)


@LINUX
def test_the_log_is_on_the_disk_as_the_checkpoint_is(tmp_path, monkeypatch):
    run, synced = make_run(tmp_path / "run"), []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda n: (synced.append(Path(os.readlink(f"/proc/self/fd/{n}")).name), sync(n)))
    run.step([torch.tensor(1.0), torch.tensor(2.0)], 10)
    run.snapshot(0.1, nn.Identity(), torch.zeros(1, 1, 8, 8), None)
    assert "log.csv" in synced


# -------------------------------------------------------------------------------------------------------- hostile flags

@pytest.mark.parametrize("flag", ["--out", "--data", "--resume", "--data-root"])
def test_an_empty_value_is_refused(flag):
    assert f"{flag} is empty" in message(alae.parse_args, [flag, ""])


def test_an_absurd_batch_is_refused(capsys):
    with pytest.raises(SystemExit) as e:
        alae.parse_args(["--batch", "2000000000"])
    assert e.value.code == 2
    assert "up to 65,536" in capsys.readouterr().err
    assert alae.parse_args(["--batch", "65536"]).batch == 65536


def test_networks_have_a_unit_at_any_width():
    G, E = common.MLPGenerator(5, (1, 4, 4), width=100_000), common.MLPEncoder((1, 4, 4), 5, width=100_000)
    assert E(G(torch.zeros(2, 5))).shape == (2, 5)


# ----------------------------------------------------------------------------------------------------------- processes

@LINUX
def test_a_frozen_process_ends_the_job(script, tmp_path):
    process = start(tmp_path, *SMALL, "--kimg", "500", "--snapshot-kimg", "1", "--out", "run", launcher=TWO,
                    env={**os.environ, "WATCH_SECONDS": "3"})
    wait_for(tmp_path / "run" / "checkpoint.pt", process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGSTOP)
    began = time.time()
    while Path(f"/proc/{ranks[0]}").exists() and time.time() - began < 30:
        time.sleep(0.1)
    os.kill(ranks[1], signal.SIGKILL)           # as torchrun does, 30 s later
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.count("error: process 1 of 2 has not answered for 3 s") == 1
    script("alae.py", "--resume", "run", "--kimg", checkpoint_of(tmp_path / "run")["seen"] / 1000 + 0.032)


def test_waiting_is_not_frozen(monkeypatch):
    store = common.dist.TCPStore("localhost", 0, is_master=True)
    for name, value in dict(MASTER_ADDR="localhost", MASTER_PORT=store.port, WATCH_SECONDS="1").items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(common.dist, "is_initialized", lambda: True)
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    watching = threading.Thread(target=common.watch, args=(0, 2, threading.Event()), daemon=True)
    watching.start()
    for _ in range(12):                         # it lives, and does nothing else
        store.add("alive/1", 1)
        time.sleep(0.25)
    assert (watching.is_alive(), ended) == (True, [])
    watching.join(10)                           # it does not live
    assert ended == [2]


def test_a_process_ends_while_it_asks_for_the_others(tmp_path):
    """Python ends a thread that comes back from C++, and that aborts."""
    (tmp_path / "ends.py").write_text(f"""if True:
        import os, sys, threading, time
        sys.path.insert(0, {str(ROOT)!r})
        import common
        store = common.dist.TCPStore("localhost", 0, is_master=True)
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(store.port), RANK="0", WORLD_SIZE="2")
        asked = threading.Event()
        class Busy:
            def add(self, *given):
                asked.set()
                return [store.add("x", 1) for _ in range(300)][-1]
        joined = []
        common.dist.TCPStore, common.dist.is_initialized = lambda *_, **__: Busy(), lambda: bool(joined)
        common.dist.init_process_group = lambda *_, **__: joined.append("gloo")
        common.join("cpu")
        asked.wait(10)
        raise SystemExit(3)
        """)
    done = subprocess.run([sys.executable, "ends.py"], cwd=tmp_path, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (3, "")


def test_processes_wait_for_days(monkeypatch):
    asked = {}
    monkeypatch.setattr(common.dist, "init_process_group", lambda *args, **kwargs: asked.update(kwargs))
    monkeypatch.setattr(common.threading, "Thread", lambda **kwargs: Namespace(start=lambda: None, join=lambda _: None))
    for name, value in dict(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0").items():
        monkeypatch.setenv(name, value)
    common.join("cpu")
    assert asked["timeout"] >= timedelta(days=1)


class Job:
    """dist of a job of two whose other process was asked to stop at its step `at`."""
    ReduceOp = common.dist.ReduceOp

    def __init__(self, at):
        self.at, self.rounds = at, 0

    def is_initialized(self):
        return True

    def broadcast_object_list(self, objects):
        pass

    def all_reduce(self, flag, operation, async_op=False):
        assert flag.device.type == "cpu"
        assert async_op
        self.rounds += 1
        asked, wanted = self.rounds, flag
        return Namespace(wait=lambda: wanted.fill_(signal.SIGTERM) if asked >= self.at else None)


def test_processes_stop_at_the_same_step_without_waiting_for_the_device(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(common, "dist", Job(at=3))
    stops = []
    for _ in range(5):
        run.step([torch.tensor(1.0), torch.tensor(2.0)], 10)
        stops.append(run.stop)
    assert stops == [False, False, False, True, True]


@pytest.mark.parametrize(("error", "line"), [
    (common.dist.DistBackendError("NCCL error: cuda error 2 'out of memory'"), "out of memory;"),
    (common.dist.DistBackendError("NCCL error: ncclRemoteError"), "another process of this job has ended"),
    (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed"), "another process of this job has ended")])
def test_what_a_failed_collective_means(error, line, capsys):
    def fail():
        raise error
    with pytest.raises(SystemExit):
        common.command(fail)
    assert f"error: {line}" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ precision

@pytest.mark.parametrize(("native", "backbone", "asked", "got", "told"), [
    (True, "dcgan", "auto", "bf16", ""), (False, "dcgan", "auto", "fp32", "no bf16 of its own"),
    (False, "mlp", "auto", "fp32", ""), (False, "stylegan", "bf16", "bf16", "no fast bf16 on this GPU")])
def test_bf16_is_the_default_only_where_a_gpu_has_it(monkeypatch, native, backbone, asked, got, told):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(common, "join", lambda name: (gpu, 0, 1))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    args = Namespace(batch=8, seed=0, device="cuda", backbone=backbone, width=1, precision=asked)
    common.start(args)
    assert args.precision == got
    said = [*common.notes(args, gpu)]
    assert told in "".join(said)
    assert len(said) == bool(told)


def test_fp32_is_not_tf32(monkeypatch):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    common.start(Namespace(batch=8, seed=0, device="cpu", backbone="mlp", width=1, precision="fp32"))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.benchmark


# ------------------------------------------------------------------------------------------------- what a run shows

def progress(tmp_path, monkeypatch, capsys, seconds, growth=None, kimg=1000.0):
    """The last progress line of a run whose steps of 1,000 images end at these seconds."""
    run, clock = make_run(tmp_path / "run", growth, kimg=kimg), [time.time()]
    monkeypatch.setattr(common.time, "time", lambda: clock[0])
    began = clock[0]
    for second in seconds:
        clock[0] = began + second
        run.shown = 0.0
        run.step([torch.tensor(1.0), torch.tensor(2.0)], 1000)
    return run, capsys.readouterr().out.splitlines()[-1]


def test_the_rate_is_of_half_a_minute_and_reads_as_a_number(tmp_path, monkeypatch, capsys):
    steady = [0.5 * i for i in range(3, 203)]                       # 2,000 images/s ...
    run, line = progress(tmp_path, monkeypatch, capsys, [*steady, steady[-1] + 5])      # ... and then one step of 5 s
    assert 1500 < run.rate < 2000
    assert f"  {run.rate:,.0f} images/s  " in line
    assert "," in f"{run.rate:,.0f}"
    left = (1_000_000 - run.seen) / run.rate
    assert line.rstrip().endswith(f"images/s  {common.duration(left)} left")


@pytest.mark.parametrize(("cores", "faster", "end"), [(1.0, 3, 1), (1.0, 0.5, 2), (1.95, 1, 2)])
def test_a_run_beside_a_busy_program_goes_on_with_fewer_threads(tmp_path, monkeypatch, capsys, cores, faster, end):
    """Two threads that get `cores` of a CPU; one thread is `faster` times as fast."""
    run, clock, threads = make_run(tmp_path / "run"), [time.time(), 0.0], [2]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(common.time, "time", lambda: clock[0])
    monkeypatch.setattr(common.time, "process_time", lambda: clock[1])
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    for _ in range(60):
        clock[0], clock[1] = clock[0] + 1.1, clock[1] + 1.1 * min(cores, threads[-1])
        run.step([torch.tensor(1.0), torch.tensor(2.0)], 1000 if threads[-1] == 2 else int(1000 * faster))
    assert threads[-1] == end
    assert len(threads) == {3: 2, 0.5: 3, 1: 1}[faster]             # none, one or, if it did not help, one and back
    assert ("note: this machine is busy, so 1 of 2 threads go on, 3.0 times as fast" in capsys.readouterr().out) == (
        end == 1)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_omp_num_threads_settles_the_number(tmp_path, monkeypatch, threads):
    run, clock = make_run(tmp_path / "run"), [time.time()]
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(common.time, "time", lambda: clock[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", None)             # not to be called
    for _ in range(20):
        clock[0] += 1.1
        run.step([torch.tensor(1.0), torch.tensor(2.0)], 1000)


def test_a_growing_run_says_how_long_it_takes_at_least(tmp_path, monkeypatch, capsys):
    growth = common.Growth([(4, 4), (8, 8)], [8, 8], [0.1, 0.1], part=200_000)
    _, line = progress(tmp_path, monkeypatch, capsys, [2, 4, 6], growth, kimg=603.0)
    assert "  500 images/s  at least 20m00s left" in line


def test_short_runs_take_four_snapshots():
    assert alae.parse_args(["--kimg", "8"]).snapshot_kimg == 2
    assert alae.parse_args([]).snapshot_kimg == 10
    assert alae.parse_args(["--kimg", "8", "--snapshot-kimg", "5"]).snapshot_kimg == 5


@pytest.mark.parametrize(("rows", "marked"), [(1, True), (3, True), (200, False)])
def test_curves_show_single_points(tmp_path, monkeypatch, rows, marked):
    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig",
                        lambda figure, file, **kwargs: drawn.extend(figure.axes[0].lines))
    with open(tmp_path / "log.csv", "w", newline="") as f:
        csv.writer(f).writerows([("kimg", "L"), *([i, i] for i in range(rows))])
    common.curves(tmp_path / "log.csv", tmp_path / "curves.png")
    assert (drawn[0].get_marker() not in ("", "None")) == marked


def test_a_misspelt_folder_comes_before_any_note(script):
    done = script("alae.py", "--data", "no/such", "--backbone", "stylegan", code=2)
    assert done.stdout == ""
    assert "there is no no/such" in done.stderr


def test_the_same_images_under_another_name_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, shade in (("one", 0), ("other", 5)):
        os.mkdir(name)
        for i in range(20):
            Image.new("L", (28, 28), (10 * i + shade) % 256).save(f"{name}/{i:02d}.png")
    main(alae, "--data", "one", "--backbone", "mlp", *SMALL, "--kimg", "0.1", "--out", "run")
    os.rename("one", "renamed")
    resume = alae, "--resume", "run", "--data"
    main(*resume, "renamed", "--kimg", "0.2")
    assert "and other has as many others" in message(main, *resume, "other", "--kimg", "0.3")
