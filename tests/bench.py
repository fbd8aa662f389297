"""Speed and memory of training, as ratios measured in one run.

    python tests/bench.py                      a few rows
    python tests/bench.py mlp-fp32 mlp-bf16    some of them
    python tests/bench.py --report             every method, backbone and level, with hours to the budgets
    python tests/bench.py --device cuda

Each row trains in a process of its own: the script's own loop, on random images that are in memory.  In turns with its
steps the same process times the matrix product (or convolution) that most of such work goes through, in the row's
precision.  `share` is the part of that product's rate that the whole step reaches, all of its operations counted.
"""
import argparse
import importlib
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import common  # noqa: E402, I001    (before torch, whose threads wait as it says)
import data  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

ROWS = {
    "mlp-fp32":      "alae --data mnist --precision fp32",
    "mlp-bf16":      "alae --data mnist --precision bf16",
    "dcgan32-fp32":  "alae --data cifar10 --resolution 32 --precision fp32",
    "dcgan32-bf16":  "alae --data cifar10 --resolution 32 --precision bf16",
    "style64-fp32":  "alae --data cifar10 --backbone stylegan --resolution 64 --start-resolution 64 --batch 8 "
                     "--precision fp32",
    "style64-bf16":  "alae --data cifar10 --backbone stylegan --resolution 64 --start-resolution 64 --batch 8 "
                     "--precision bf16",
    "faae-fp32":     "faae --data cifar10 --resolution 32 --precision fp32",
    "faae-bf16":     "faae --data cifar10 --resolution 32 --precision bf16",
}
REPORT = (      # the sets decide settings and budgets; stylegan: each level from 4 px to the last
    "alae --data mnist", "alae --data cifar10", "alae --data ffhq",
    "lia --stage 1 --data mnist", "lia --stage 1 --data cifar10", "lia --stage 1 --data ffhq",
    "lia --stage 2 --data mnist", "lia --stage 2 --data cifar10", "lia --stage 2 --data ffhq",
    "invgan --data mnist", "invgan --data mnist --backbone mlp", "invgan --data imagenet", "invgan --data ffhq",
    "invgan --data ffhq --resolution 1024 --grow",
    "faae --data mnist", "faae --data celeba", "faae --data ffhq --backbone stylegan --resolution 1024",
)
PATIENCE = 60       # seconds: larger levels are left out when a step takes longer


def random_images(name, root, split, resolution, skip_bad, sizes, only):
    """In place of `data.load`: a random set of the size and channels that a script asks for, the same at each call."""
    side = int(resolution) if resolution != "auto" else sizes[0]
    shape = (1 if name in data.GREY else 3, side, side)
    n = max(min(2**28 // (side * side), 4096), 64)
    pixels = torch.randint(256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = data.Images(name="random", part="train", source="random", ids=np.arange(n), shape=shape, pixels=pixels)
    return images, images


def span(growth, level, kimg):
    """-> images shown when a level begins, when it has faded in, and when it ends."""
    def begin(level):
        return 2 * growth.part * (level - growth.first) - growth.skipped if level > growth.first else 0
    last = level == len(growth.sizes) - 1
    stable = begin(level) + (growth.part if level > growth.first else 0)
    return begin(level), stable, 1000 * kimg if last else begin(level + 1)


def make_product(args, device):
    """-> product(), the product in which most of a step's work lies, and its floating-point operations."""
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    if args.backbone == "mlp":
        x, w = torch.randn(args.batch, 1024), torch.randn(1024, 1024)
        conv, flops = {}, 2 * x.numel() * 1024
    else:
        shape, kernel, conv = {     # images (N, C, H, W), kernels (C', C, k, k)
            "stylegan": ((8, 512, 32, 32), (512, 512, 3, 3), dict(padding=1)),
            "biggan": ((args.batch, 256, 16, 16), (256, 256, 3, 3), dict(padding=1)),
            "faae": ((args.batch, 256, 16, 16), (128, 256, 3, 3), dict(padding=1)),
            "dcgan": ((args.batch, 64, 16, 16), (128, 64, 4, 4), dict(stride=2, padding=1)),
        }["faae" if (args.method, args.backbone) == ("faae", "dcgan") else args.backbone]
        x, w = torch.randn(shape), torch.randn(kernel)
        flops = 2 * shape[0] * w.numel() * (shape[2] // conv.get("stride", 1))**2
    x, w = x.to(device, dtype), w.to(device, dtype)
    if args.backbone == "stylegan":
        x, w = x.to(memory_format=torch.channels_last), w.to(memory_format=torch.channels_last)
    return lambda: torch.nn.functional.conv2d(x, w, **conv) if conv else torch.nn.functional.linear(x, w), flops


class NoModules:
    """Stands in for flop_counter's record of modules, which breaks on gradients at a leaf that enters one."""
    parents = frozenset({"Global"})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Begun(common.Run):
    """A run that is at its end before its first step: its checkpoint is a decoder for LIA's stage 2."""
    snapshot_due = False
    done = True

    def __init__(self, args, *others, **named):
        super().__init__(args, *others, **named)
        self.seen = int(1000 * args.kimg) - 1       # at the last level

    def finish(self):
        self.save()


class Timed(common.Run):
    """A run at one level, whose steps are timed in turns with the product, and which ends after some rounds."""
    snapshot_due = done = False
    level = -1          # the last one
    rounds = 9
    SECONDS = 0.2       # of steps in a round, and of products

    def __init__(self, args, state, losses, device, growth, trace=""):
        super().__init__(args, state, losses, device, growth)
        level = max(self.level, growth.first) if self.level >= 0 else len(growth.sizes) - 1
        begin, stable, end = span(growth, level, args.kimg)
        self.seen = math.ceil(stable)
        self.images, self.batch = end - begin, growth.at(self.seen)[2]
        self.product, self.flops = make_product(args, device)
        self.steps_begun, self.times = 0, []
        from torch.utils.flop_counter import FlopCounterMode
        self.counter = FlopCounterMode(display=False)
        self.counter.mod_tracker = NoModules()
        self.clock = time.perf_counter()

    def lap(self):
        """Seconds since the last call, the device's work included."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        began, self.clock = self.clock, time.perf_counter()
        return self.clock - began

    def step(self, losses, batch):
        super().step(losses, batch)
        self.steps_begun += 1
        if self.steps_begun == 1:                   # the first takes longer
            self.done = self.lap() > PATIENCE and self.level >= 0
            self.counter.__enter__()
        elif self.steps_begun == 2:
            self.counter.__exit__(None, None, None)
            self.lap()
        elif self.steps_begun == 3:
            seconds = self.lap()
            self.group = max(round(self.SECONDS / seconds), 1)
            self.rounds = max(min(self.rounds, int(PATIENCE / seconds)), 1)
            self.product()
            self.lap()
            self.product()
            self.repeats = max(round(self.SECONDS / self.lap()), 1)
            self.lap()
        elif (self.steps_begun - 3) % self.group == 0:
            step_s = self.lap() / self.group
            for _ in range(self.repeats):
                self.product()
            self.times.append((step_s, self.lap() / self.repeats))
            self.done = len(self.times) == self.rounds

    def finish(self):
        step_s, product_s = map(median, zip(*self.times, strict=True)) if self.times else (None, None)
        rate = self.flops / product_s if self.times else None
        gflop = self.counter.get_total_flops() / 1e9
        print(json.dumps(dict(
            device=str(self.device), px=max(self.growth.sizes[self.growth.at(self.seen)[0]]), batch=self.batch,
            images=self.images, kimg=self.args.kimg, source=self.args.source.get("kimg"), step_s=step_s, gflop=gflop,
            rate=rate and rate / 1e9, share=rate and 1e9 * gflop / step_s / rate,
            peak_gb=common.peak_memory(self.device) / 1e9, levels=len(self.growth.sizes), first=self.growth.first,
            precision=self.args.precision)))


def measure(command, level, device, rounds):
    """Train for a few steps as `command` (a script's name and flags) says; prints the figures as JSON."""
    script, *flags = command.split()
    flags += ["--device", device]
    data.load = random_images
    main = importlib.import_module(script).main
    with tempfile.TemporaryDirectory() as folder:
        if "2" in flags:
            from torchvision.models import vgg16
            torch.save({f"features.{k}": v for k, v in vgg16().features.state_dict().items()}, f"{folder}/vgg.pth")
            common.Run = Begun
            main([*("1" if f == "2" else f for f in flags), "--out", f"{folder}/decoder"])
            at = flags.index("--data")              # which stage 2 takes from its decoder
            flags = flags[:at] + flags[at + 2:] + ["--decoder", f"{folder}/decoder"]
            if common.read_args(f"{folder}/decoder")["backbone"] == "stylegan":
                flags += ["--perceptual", f"{folder}/vgg.pth"]
        common.Run, Timed.level, Timed.rounds = Timed, level, rounds
        main([*flags, "--out", f"{folder}/run"])


def in_a_process(command, level, args):
    """-> the figures of a row, or why there are none."""
    done = subprocess.run([sys.executable, __file__, "--one", command, "--level", str(level), "--device", args.device,
                           "--rounds", str(args.rounds)], capture_output=True, text=True)
    if done.returncode:
        return f"not measured: {(done.stderr.splitlines() or [f'exit status {done.returncode}'])[-1]}"
    row = json.loads(done.stdout.splitlines()[-1])
    return row if row["step_s"] else f"a step takes over {PATIENCE} s"


def number(x):
    return f"{x:.3g}" if x < 100 else f"{x:,.0f}"


def report(args):
    """A row a level; hours are of the images that the script's whole run shows there, and their sum."""
    print(f"{'px':>15}{'batch':>7}{'images/s':>10}{'memory GB':>11}{'share':>7}{'hours':>9}")
    for command in REPORT:
        print(command)
        level, levels, hours = 0, 1, 0.0
        while level < levels:
            row = in_a_process(command, level, args)
            if isinstance(row, str):
                print(f"{'':15}{row}")
                break
            part = row["images"] / row["batch"] * row["step_s"] / 3600
            print(f"{row['px']:15}{row['batch']:7}{number(row['batch'] / row['step_s']):>10}{row['peak_gb']:11.2f}"
                  f"{row['share']:7.0%}{number(part):>9}", flush=True)
            levels, level, hours = row["levels"], max(level, row["first"]) + 1, hours + part
        else:
            whose = dict(paper="the paper's", code="the authors' code's").get(row["source"], "our")
            print(f"{'':15}{whose} {row['kimg']:,g} kimg take {number(hours)} hours, {row['precision']}")


def rows(args):
    print(f"{'variant':14}{'images/s':>10}{'ms/step':>9}{'GFLOP/step':>12}{'peak GFLOP/s':>14}{'share':>8}"
          f"{'memory GB':>11}")
    first = {}
    for name in args.rows:
        row = in_a_process(ROWS[name], -1, args)
        if isinstance(row, str):
            print(f"{name:14} {row}")
            continue
        speed, kind = row["batch"] / row["step_s"], name.split("-")[0]
        base = first.setdefault(kind, speed)
        times = f"   {speed / base:.2f} times the images/s of the first {kind} row" if base != speed else ""
        print(f"{name:14}{number(speed):>10}{1e3 * row['step_s']:9.1f}{row['gflop']:12.2f}{row['rate']:14.0f}"
              f"{row['share']:8.0%}{row['peak_gb']:11.2f}{times}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--report", action="store_true", help="every method, backbone and level")
    parser.add_argument("--device", default="auto", help="cpu, cuda ... (default: the GPU if there is one)")
    parser.add_argument("--rounds", type=int, default=9,
                        help="measurements of each row, of which the median is printed (default: 9)")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--level", type=int, default=-1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args.one, args.level, args.device, args.rounds)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # which ends the row's process, too
    device = common.find_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, code {common.code_version()}, medians of {args.rounds} rounds")
    (report if args.report else rows)(args)


if __name__ == "__main__":
    main()
