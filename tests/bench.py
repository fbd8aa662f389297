"""Speed and memory of training steps, as ratios measured in one run.

    python tests/bench.py                      every variant
    python tests/bench.py mlp-fp32 mlp-bf16    some
    python tests/bench.py --device cuda

Each variant trains for a while in a process of its own, on random images.  In turns with its steps the same process
times the matrix product (or convolution) that most of its work goes through, in the variant's precision, and the share
of that rate that the whole step reaches is printed: `share` counts every operation of the step against it.
"""
import argparse
import copy
import itertools
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import common  # noqa: E402, I001    (before torch, whose threads wait as it says)
import alae  # noqa: E402
import faae  # noqa: E402
import torch  # noqa: E402

VARIANTS = {
    "mlp-fp32":      ["--backbone", "mlp", "--precision", "fp32"],
    "mlp-bf16":      ["--backbone", "mlp", "--precision", "bf16"],
    "dcgan32-fp32":  ["--backbone", "dcgan", "--resolution", "32", "--precision", "fp32"],
    "dcgan32-bf16":  ["--backbone", "dcgan", "--resolution", "32", "--precision", "bf16"],
    "style64-fp32":  ["--backbone", "stylegan", "--resolution", "64", "--batch", "8", "--precision", "fp32"],
    "style64-bf16":  ["--backbone", "stylegan", "--resolution", "64", "--batch", "8", "--precision", "bf16"],
    "faae-fp32":     ["--objective", "faae", "--backbone", "dcgan", "--resolution", "32", "--precision", "fp32"],
    "faae-bf16":     ["--objective", "faae", "--backbone", "dcgan", "--resolution", "32", "--precision", "bf16"],
}


def make_step(flags, device):
    """-> step(), a whole iteration as in the loop of alae.py or, with --objective, of faae.py, and its arguments."""
    method = faae if "--objective" in flags else alae
    args = method.parse_args(flags)
    args.image_shape = (1, 28, 28) if args.backbone == "mlp" else (3, int(args.resolution), int(args.resolution))
    torch.manual_seed(0)
    if method is alae:
        model = alae.ALAE(**alae.network_args(vars(args))).to(device)
        if model.grows:
            args.lr = common.RATES[-1]
            model.to(memory_format=torch.channels_last)
        opt = Namespace(**{name: common.adam(net, args.lr, alae.BETAS) for name, net in model.named_children()})
    else:
        model = faae.make_model(vars(args)).to(device)
        opt = faae.make_optimizers(model, args)
        args.schedule_kimg = args.kimg
    ema = copy.deepcopy(model)
    rng = torch.Generator(device).manual_seed(0)
    amp = common.autocast(args.precision, device)
    images = torch.randint(256, (4096, *args.image_shape), dtype=torch.uint8, device=device)

    calls, draw = itertools.count(), common.Draw(model, rng, mixing=getattr(args, "mixing", 0.0))
    nets = [model.F, model.G, model.E, model.D] if method is alae else [model.G, model.E, model.D]

    def step():
        x = images[torch.randint(4096, (args.batch,), device=device)]
        if method is alae:
            x = model.see(common.to_float(x))
            alae.train_step(nets, opt, x, draw, args, amp, getattr(model, "mean_w", None))
        else:
            faae.STEPS[args.objective](nets, opt, x.float() / 255, draw, amp, faae.hyper(args, 0))
        every = args.batch if args.backbone == "stylegan" else common.EMA_EVERY
        if next(calls) * args.batch % every < args.batch:
            common.ema_update(ema, model, 0.99)
    return step, args


def make_product(args, device):
    """-> product(), the product in which most of the step's work lies, and its floating-point operations."""
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    if args.backbone == "mlp":
        x, w = (torch.randn(n, 1024, device=device, dtype=dtype) for n in (args.batch, 1024))
        return lambda: torch.nn.functional.linear(x, w), 2 * args.batch * 1024 * 1024
    if args.backbone == "stylegan":
        x = torch.randn(args.batch, 512, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.randn(512, 512, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        return lambda: torch.nn.functional.conv2d(x, w, padding=1), 2 * args.batch * 512 * 512 * 9 * 32 * 32
    if args.method == "faae":
        x = torch.randn(args.batch, 256, 16, 16, device=device, dtype=dtype)
        w = torch.randn(128, 256, 3, 3, device=device, dtype=dtype)
        return lambda: torch.nn.functional.conv2d(x, w, padding=1), 2 * args.batch * 128 * 256 * 9 * 256
    x = torch.randn(args.batch, 64, 16, 16, device=device, dtype=dtype)
    w = torch.randn(128, 64, 4, 4, device=device, dtype=dtype)
    return lambda: torch.nn.functional.conv2d(x, w, stride=2, padding=1), 2 * args.batch * 128 * 64 * 16 * 64


def timed(function, times, device):
    """Mean seconds of a call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(times):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / times


class NoModules:
    """Stands in for flop_counter's record of modules, which breaks on gradients at a leaf that enters one."""
    parents = frozenset({"Global"})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def measure(flags, device, rounds):
    """Alternate the product and the step; -> dict of the medians."""
    if device.type == "cpu":
        common.keep_memory()
    step, args = make_step(flags, device)
    product, product_flops = make_product(args, device)
    from torch.utils.flop_counter import FlopCounterMode
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with counter, torch.random.fork_rng():
        step()
    slow = args.backbone == "stylegan" and device.type == "cpu"         # 20 s a step
    timed(step, 1 if slow else 5, device)
    timed(product, 5 if slow else 50, device)
    steps = 20 if args.backbone == "mlp" or device.type == "cuda" else 1 if slow else 4
    rounds = min(rounds, 5) if slow else rounds
    pairs = [(timed(product, 20 if slow else 100, device), timed(step, steps, device)) for _ in range(rounds)]
    product_s, step_s = (sorted(t)[rounds // 2] for t in zip(*pairs, strict=True))
    rate = product_flops / product_s
    return dict(images_per_s=args.batch / step_s, ms=1e3 * step_s, gflop=counter.get_total_flops() / 1e9,
                rate=rate / 1e9, share=counter.get_total_flops() / step_s / rate,
                peak_gb=common.peak_memory(device) / 1e9)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = common.find_device(args.device)
    if args.one:
        print(json.dumps(measure(VARIANTS[args.one], device, args.rounds)))
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, code {common.code_version()}, medians of {args.rounds} rounds")
    print(f"{'variant':14}{'images/s':>10}{'ms/step':>9}{'GFLOP/step':>12}{'peak GFLOP/s':>14}{'share':>8}"
          f"{'memory GB':>11}")
    first = {}
    for variant in args.variants:
        done = subprocess.run([sys.executable, __file__, "--one", variant, "--device", args.device, "--rounds",
                               str(args.rounds)], stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
        m = json.loads(done.stdout)
        base = first.setdefault(variant.split("-")[0], m)
        form = ".3g" if m["images_per_s"] < 100 else ".0f"
        print(f"{variant:14}{m['images_per_s']:10{form}}{m['ms']:9.1f}{m['gflop']:12.2f}{m['rate']:14.0f}{m['share']:8.0%}"
              f"{m['peak_gb']:11.2f}" + (f"   {m['images_per_s'] / base['images_per_s']:.2f} times the images/s of the "
                                         f"first {variant.split('-')[0]} row" if m is not base else ""), flush=True)


if __name__ == "__main__":
    main()
