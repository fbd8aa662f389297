"""Predict, then run: small changes to the methods, and what they do.

    python tests/predict.py                     the experiments
    python tests/predict.py alae-sum            asks for a prediction, trains with and without the change, answers
    python tests/predict.py alae-sum --seed 1   with another seed
    python tests/predict.py alae-sum --record   seeds 0, 1, 2: the line for RECORDED below (no name: all of them)
    python tests/predict.py --table             the recorded answers, as a table

Each (lia-bf16 apart) trains two narrow MLPs on the bundled digits by a script's own main, in less than a minute on
one core.  A change is a flag, or another function in place of one of a script's; the output names it.
"""
import argparse
import functools
import io
import itertools
import math
import signal
import sys
import tempfile
import textwrap
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # before torch, whose threads wait as it says

# isort: split
import torch

import alae
import data
import eval as evaluation
import faae
import invgan
import lia

SEEDS = (0, 1, 2)
ALIKE = 1.25                # numbers whose ratio is below this are about the same
TEST = 2000                 # the bundled test images
KIMG = 25                   # thousands of images that a run shows
WORDS = dict(l="larger", s="smaller", a="about the same")


# ------------------------------------------------------------------------------------------------------- measures
# model, x (N, C, H, W) in [-1, 1] -> a number.  Of 2,000 test images, or as many samples.

def samples(model):
    """w (TEST, nw) of the prior, and the images that it makes."""
    w = model.map(model.prior(TEST, torch.Generator().manual_seed(0)))
    return w, model.generate(w).clamp(-1, 1)


def code_size(model, x):
    return model.encode(x).std(0).mean()


def image_error(model, x):
    return (common.reconstruct(model, x) - x).square().mean()


def code_error(model, x):
    w, made = samples(model)
    return (model.encode(made) - w).square().mean() / w.var(0).mean()


def sharpness(model, x):
    return evaluation.sharpness(common.reconstruct(model, x)).mean() / evaluation.sharpness(x).mean()


def sample_distance(model, x):
    """The Frechet distance of samples and test images, averaged to 7x7 pixels."""
    gaussians = []
    for images in (samples(model)[1], x):
        pixels = torch.nn.functional.adaptive_avg_pool2d(images, 7).flatten(1).double()
        gaussians.append((pixels.mean(0), pixels.T.cov()))
    return evaluation.frechet(*gaussians)


def slope(judge):
    """E ||grad_x score||^2 of the scores judge(model)(x)."""
    def measure(model, x):
        with torch.enable_grad():
            x = model.see(x).requires_grad_()
            return common.r1(judge(model)(x), x).detach()
    return measure


def code_distance(model, x):
    return invgan.mmd(samples(model)[0], model.encode(x))


# -------------------------------------------------------------------------------------------------------- changes
# The function that is replaced -> the one in its place.

def negative(r1):
    return lambda scores, x: -r1(scores, x)


def apart(update, steps=3):
    """update, which keeps the moments of each of an iteration's steps apart."""
    kept, calls = {}, itertools.count()

    def with_own_moments(loss, *optimizers):
        step = next(calls) % steps
        for optimizer in optimizers:
            optimizer.state = kept.setdefault((step, optimizer), defaultdict(dict))
        update(loss, *optimizers)
    return with_own_moments


def low(to_fp32):
    return lambda x: x


# ----------------------------------------------------------------------------------------------------------- runs

QUIET = (  # what takes time and is not looked at
    (common, "curves", lambda _: lambda *given: None), (common, "snapshot_pictures", lambda _: lambda *given: {}),
    (common, "inversion_errors", lambda _: lambda *given: dict.fromkeys(common.Run.MEASURES, "")))


@functools.lru_cache(16)
def trained(method, flags, changes, seed, kimg):
    """-> the averaged model that the script's main trains with these flags; (module, name, change) of changes: with
    change(function) in place of a function."""
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(redirect_stdout(io.StringIO()))
        for module, name, change in (*QUIET, *changes):
            stack.enter_context(mock.patch.object(module, name, change(getattr(module, name))))
        try:
            method.main([*flags, "--kimg", str(kimg), "--snapshot-kimg", "1000", "--seed", str(seed), "--device", "cpu",
                         "--out", f"{folder}/run"])
            return method.load(f"{folder}/run")
        finally:
            for number, handler in handlers:
                signal.signal(number, handler)


def train(method, flags, measures, changed, seed, kimg, less=(), more=(), changes=(), always=()):
    """One side of an experiment: trains with `flags` and, if changed, `more` flags and changes, else `less`.
    -> its numbers"""
    model = trained(method, (*NARROW, *flags, *(more if changed else less)),
                    (*always, *(changes if changed else ())), seed, kimg)
    x = common.to_float(data.load("mnist-mini")[1].take(range(TEST)))
    with torch.no_grad():
        return {name: float(measure(model, x)) for name, measure in measures.items()}


NARROW = ("--data", "mnist-mini", "--backbone", "mlp", "--width", "16")


def through_couplings(changed, seed, kimg):
    """w -> z -> w through 8 couplings.  Changed: in bf16, from which phi does not return to fp32."""
    torch.manual_seed(seed)
    phi, w = lia.InvertibleNetwork(512, depth=8), torch.randn(256, 512)
    with ExitStack() as stack, torch.no_grad():
        if changed:
            phi, w = phi.bfloat16(), w.bfloat16()
            stack.enter_context(mock.patch.object(torch.Tensor, "float", low(torch.Tensor.float)))
        z = phi.to_z(w)
        back = phi.to_w(z)
    return {"error of w": (back.double() - w.double()).abs().max().item(), "size of z": z.double().std().item()}


class Experiment(NamedTuple):
    source: str             # the equation or line
    question: str           # about the first number that is measured
    change: str
    why: str
    run: Callable           # (changed, seed, kimg) -> {what is measured: number}


def critic(model):
    return model.c


def judge(model):
    return lambda x: model.D(model.E(x))


ALAE = {"size of E(x)": code_size, "MSE of images": image_error}
INVGAN = ("--batch", "64", "--lr", "0.004", "--gamma", "1", "--w-weight", "0.1", "--cycle-weight", "0.1")
FAAE = ("--batch", "64", "--lr", "0.002", "--lr-d", "0.002")
PRINTED = ("--reencode-weight", "10", "--gamma", "0")       # F-AAE without R1
CODES = {"distance of samples": sample_distance, "error of codes": code_error}

EXPERIMENTS = {
    "alae-sum": Experiment(
        "ALAE Alg. 1 line 14",
        "Step III prints a sum over w's 50 dimensions, the authors' code takes their mean. What does the sum do to the "
        "size of E(x), its deviation over test images?",
        "`--latent-loss sum`",
        "Steps I and III share E's Adam, II and III share G's, so a step III that is 50 times stronger outweighs steps "
        "I and II. Alone it is a regression on w: where an image says little about its code, the least squared error "
        "is at the mean code, so E(x) varies less.",
        functools.partial(train, alae, (), ALAE, more=("--latent-loss", "sum"))),
    "alae-step3": Experiment(
        "ALAE Alg. 1 line 15",
        "The paper moves E and G in step III, the code moves F too, through G alone. What does that do to the size of "
        "E(x)?",
        "`--step3 EGF`",
        "F(z) as the target is held either way. What reaches F through G is a small gradient next to step II's, which "
        "goes through the same G.",
        functools.partial(train, alae, (), ALAE, more=("--step3", "EGF"))),
    "alae-no-r1": Experiment(
        "ALAE Alg. 1 line 6",
        "Leave R1 out. What happens to the squared gradient of D(E(x)) at test images?",
        "`--gamma 0`",
        "Nothing else bounds how steep D o E may become: it tells real from fake ever more surely, and what G learns "
        "by gets noisier, so samples and reconstructions are worse.",
        functools.partial(train, alae, (),
                          {"squared gradient": slope(judge), "MSE of images": image_error,
                           "distance of samples": sample_distance}, more=("--gamma", "0"))),
    "lia-sign": Experiment(
        "LIA eqs. 6 and 7",
        "Eq. 7 maximises eq. 6 over c, and so + R1 with it. Take that as printed: c is paid for its gradient. What "
        "happens to that gradient?",
        "`lia.r1`, negative",
        "A penalty with its sign turned has no optimum: c gets steeper at each step, and its scores say nothing. The "
        "critic is meant to minimise eq. 6, by which it scores realness.",
        functools.partial(train, lia, ("--batch", "32", "--lr", "0.002"),
                          {"squared gradient": slope(critic), "distance of samples": sample_distance},
                          changes=((lia, "r1", negative),))),
    "lia-bf16": Experiment(
        "LIA eqs. 3 and 4",
        "Codes go from w to z through 8 couplings, and back. In bf16 in place of fp32, what happens to the error?",
        "`torch.Tensor.float`, by which phi goes back to fp32",
        "The inverse is exact in algebra alone: each coupling rounds, to 24 bits in fp32 and to 8 in bf16, and tau "
        "passes the difference on to the next. So phi stays out of autocast.",
        through_couplings),
    "invgan-mmd": Experiment(
        "InvGAN eq. 3, fourth term",
        "Leave MMD out. What happens to the distance (MMD) between codes of the prior and of test images?",
        "`--mmd-weight 0`",
        "The other terms bring codes of made images back to their w, and do not ask where those of real images lie. "
        "MMD alone draws the two sets together.",
        functools.partial(train, invgan, INVGAN, {"distance of codes": code_distance, "MSE of images": image_error},
                          more=("--mmd-weight", "0"))),
    "faae-weight": Experiment(
        "F-AAE eq. 4",
        "Weigh re-encoding 1000 in place of 10. What happens to the distance of samples from test images?",
        "`--reencode-weight 1000`",
        "G has one Adam for both phases, and both gradients are divided by one size, re-encoding's: what D says hardly "
        "moves G. Codes come back better, from images that need not look real.",
        functools.partial(train, faae, FAAE + PRINTED, CODES, more=("--reencode-weight", "1000"))),
    "faae-apart": Experiment(
        "F-AAE eq. 4",
        "Weigh re-encoding 1000 in place of 10, in a program where each phase has an Adam of its own. What happens to "
        "the error of codes?",
        "`--reencode-weight 1000`; in both runs `faae.update` gives each phase its own moments of Adam, so the weight "
        "cancels",
        "Adam divides a gradient by its usual size, so a phase's weight leaves its steps as they are, and W_re and "
        "W_adv do nothing. With one Adam for both phases of G, both gradients are divided by one size.",
        functools.partial(train, faae, FAAE + PRINTED, dict(reversed(CODES.items())),
                          more=("--reencode-weight", "1000"), always=((faae, "update", apart),))),
    "faae-aae": Experiment(
        "F-AAE eqs. 2 and 4",
        "F-AAE brings codes back and judges images, AAE brings images back and judges codes. With AAE, what happens to "
        "the sharpness of reconstructions?",
        "`--objective aae`",
        "A mean square over pixels is least for the mean of all images that a code may stand for, which is blurred. "
        "F-AAE never compares pixels: its images have to look real, and their errors are larger.",
        functools.partial(train, faae, (*FAAE, "--reencode-weight", "10"),
                          {"sharpness": sharpness, "MSE of images": image_error},
                          less=("--gamma", "0"), more=("--objective", "aae"))),
}
RECORDED_ON = "one core of an Intel Xeon with AMX, torch 2.14.1, the scripts of code c9e04a7, 2026-11-27"
RECORDED = {  # {what is measured: (as it is, changed), of each seed}, as --record prints it
    "alae-sum": {
        "size of E(x)": ((0.383, 0.39, 0.386), (0.171, 0.204, 0.173)),
        "MSE of images": ((0.259, 0.243, 0.264), (0.403, 0.441, 0.305)),
    },
    "alae-step3": {
        "size of E(x)": ((0.383, 0.39, 0.386), (0.358, 0.392, 0.341)),
        "MSE of images": ((0.259, 0.243, 0.264), (0.264, 0.248, 0.249)),
    },
    "alae-no-r1": {
        "squared gradient": ((0.174, 0.177, 0.166), (27.7, 37.7, 55.2)),
        "MSE of images": ((0.259, 0.243, 0.264), (0.406, 0.398, 0.414)),
        "distance of samples": ((1.51, 1.51, 1.74), (4.25, 4.25, 5.42)),
    },
    "lia-sign": {
        "squared gradient": ((0.197, 0.126, 0.2), (509000.0, 684000.0, 512000.0)),
        "distance of samples": ((2.97, 3.15, 3.1), (7.68, 6.03, 6.78)),
    },
    "lia-bf16": {
        "error of w": ((5.41e-05, 5.66e-05, 6.56e-05), (1.05, 1.15, 1.27)),
        "size of z": ((7.64, 8.45, 9.04), (7.63, 8.45, 9.04)),
    },
    "invgan-mmd": {
        "distance of codes": ((0.0307, 0.042, 0.0428), (0.111, 0.187, 0.187)),
        "MSE of images": ((0.501, 0.594, 0.615), (0.481, 0.465, 0.492)),
    },
    "faae-weight": {
        "distance of samples": ((5.69, 5.07, 4.76), (19.8, 19.3, 20.1)),
        "error of codes": ((0.623, 0.65, 0.638), (0.477, 0.478, 0.471)),
    },
    "faae-apart": {
        "error of codes": ((0.55, 0.573, 0.557), (0.55, 0.58, 0.554)),
        "distance of samples": ((5.31, 5.72, 6.71), (5.09, 5.62, 7.29)),
    },
    "faae-aae": {
        "sharpness": ((0.756, 1.13, 0.98), (0.0532, 0.0567, 0.0547)),
        "MSE of images": ((0.298, 0.298, 0.291), (0.162, 0.157, 0.162)),
    },
}


# ------------------------------------------------------------------------------------------------------------ main

def verdict(before, after):
    """-> a key of WORDS."""
    if max(before, after) <= ALIKE * min(before, after):
        return "a"
    return "l" if after > before else "s"


def spread(values):
    """Mean and standard deviation over the seeds."""
    mean = sum(values) / len(values)
    return f"{mean:.3g} ± {math.sqrt(sum((v - mean)**2 for v in values) / (len(values) - 1)):.2g}"


def ask(what):
    """-> a key of WORDS, or "" without a terminal or an answer."""
    if not sys.stdin.isatty():
        return ""
    while True:
        print(f"Your prediction: {what} will be larger (l), smaller (s), about the same, within 25 % (a)? ", end="",
              flush=True)
        said = sys.stdin.readline()
        word = "about the same" if (word := said.strip().lower()) == "same" else word
        found = [key for key, meaning in WORDS.items() if word in (key, meaning)]
        if found or not word:
            return "".join(found)


def show(name, seed):
    e = EXPERIMENTS[name]
    print(f"{name}: {e.source}\n{textwrap.fill(e.question, 100)}\nChanged: {e.change}", flush=True)
    key = next(iter(RECORDED[name]))
    said = ask(key)
    begin = time.time()
    numbers = [e.run(changed, seed, KIMG) for changed in (False, True)]
    print(f"\n{f'seed {seed}, {time.time() - begin:.0f} s':20}{'as it is':>12}{'changed':>12}{'':16}"
          f"recorded, seeds {SEEDS[0]}-{SEEDS[-1]}")
    for what, recorded in RECORDED[name].items():
        before, after = numbers[0][what], numbers[1][what]
        print(f"{what:20}{before:12.3g}{after:12.3g}   {WORDS[verdict(before, after)]:16}"
              f"{' -> '.join(map(spread, recorded))}")
    if said in WORDS:
        found = verdict(numbers[0][key], numbers[1][key])
        print(f"You said {WORDS[said]}: {'right' if said == found else f'it is {WORDS[found]}'}.")
    print(f"\n{textwrap.fill(e.why, 100)}\n({RECORDED_ON})")


def record(name):
    """-> the line of RECORDED."""
    runs = [[EXPERIMENTS[name].run(changed, seed, KIMG) for seed in SEEDS] for changed in (False, True)]
    found = {what: tuple(tuple(float(f"{numbers[what]:.3g}") for numbers in side) for side in runs)
             for what in runs[0][0]}
    items = [f"        {what!r}: {sides}," for what, sides in found.items()]
    return "\n".join([f'    "{name}": {{', *items, "    },"]).replace("'", '"')


def table():
    """The recorded answers, in Markdown."""
    rows = ["| experiment | of | what is changed | measured | as it is | changed |", "|---|---|---|---|---|---|"]
    for name, recorded in RECORDED.items():
        e = EXPERIMENTS[name]
        for i, (what, sides) in enumerate(recorded.items()):
            cells = ["", "", ""] if i else [f"`{name}`", e.source, e.change]
            rows.append(f"| {' | '.join([*cells, what, *map(spread, sides)])} |")
    return "\n".join(rows)


def known(name):
    """An argparse type: the name of an experiment."""
    if name in EXPERIMENTS:
        return name
    raise argparse.ArgumentTypeError(f"there is no {name}; choose from {', '.join(EXPERIMENTS)}")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("names", nargs="*", type=known, metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--seed", type=common.seed, default=0, help="random seed of the runs")
    parser.add_argument("--record", action="store_true", help="line for RECORDED, of seeds 0, 1, 2")
    parser.add_argument("--table", action="store_true", help="recorded answers as a table")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.table:
        print(table())
    for name in args.names or (EXPERIMENTS if args.record else ()):
        try:
            if args.record:
                print(record(name), flush=True)
            else:
                show(name, args.seed)
        except NotImplementedError as e:        # in a handout
            raise common.Error(f"not written yet: {e}; write it first") from None
    if not (args.names or args.record or args.table):
        for name, e in EXPERIMENTS.items():
            print(f"{name:16}{e.source}\n{textwrap.indent(textwrap.fill(e.question, 84), 16 * ' ')}")


if __name__ == "__main__":
    common.command(main)
