"""The experiments of predict.py change what they say, and no more; they ask, run and answer; and the recorded answers
are those that the text gives."""
import ast
import io
import math
import re
import sys

import predict
import pytest
import torch
from conftest import MNIST, ROOT, Enough
from predict import EXPERIMENTS, RECORDED

import common
import data

# What the first number does.  l: larger, s: smaller, a: about the same
ANSWERS = {"alae-sum": "s", "alae-step3": "a", "alae-no-r1": "l", "lia-sign": "l", "lia-bf16": "l",
           "invgan-mmd": "l", "faae-weight": "l", "faae-apart": "a", "faae-aae": "s"}
FLAGS = {"alae-sum": dict(latent_loss=("mean", "sum")), "alae-step3": dict(step3=("EG", "EGF")),
         "alae-no-r1": dict(gamma=(1.0, 0.0)), "lia-sign": {}, "invgan-mmd": dict(mmd_weight=(1.0, 0.0)),
         "faae-weight": dict(reencode_weight=("10", "1000")), "faae-apart": dict(reencode_weight=("10", "1000")),
         "faae-aae": dict(objective=("faae", "aae"))}
names = pytest.mark.parametrize("name", EXPERIMENTS)


def given(name, changed, monkeypatch):
    """-> the method, its arguments and the replaced functions, that one side of an experiment trains with."""
    def stop(*what):
        raise Enough(*what)
    monkeypatch.setattr(predict, "trained", stop)
    with pytest.raises(Enough) as caught:
        EXPERIMENTS[name].run(changed, 0, 1)
    method, flags, changes, seed, kimg = caught.value.args
    assert (seed, kimg) == (0, 1)
    return method, vars(method.parse_args([*flags])), changes


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(data, "_mnist_mini", MNIST)
    monkeypatch.setattr(predict, "TEST", 64)
    yield
    predict.trained.cache_clear()


# ------------------------------------------------------------------------------------------------------- what changes

@pytest.mark.parametrize("name", FLAGS)
def test_nothing_else_changes(name, monkeypatch):
    (method, before, always), (same, after, changes) = (given(name, changed, monkeypatch) for changed in (False, True))
    assert method is same
    differ = {k: (before.get(k), after.get(k)) for k in before | after if before.get(k) != after.get(k)}
    differ.pop("source", None)
    if name == "faae-aae":                      # and what follows from it
        assert differ.keys() <= {"objective", "gamma", "joint", "kimg", "snapshot_kimg"}
        differ = {"objective": differ["objective"]}
    assert differ == FLAGS[name]
    assert changes[:len(always)] == always
    for module, function, _ in changes:
        assert f"`{module.__name__}.{function}`" in EXPERIMENTS[name].change
    assert bool(differ) != bool(changes[len(always):])
    for flag in re.findall(r"--([a-z0-9-]+)", EXPERIMENTS[name].change):
        assert flag.replace("-", "_") in differ


@names
def test_each_runs(name, small):
    """a few steps of each side, until the averages have moved; what was replaced is put back"""
    kept = predict.alae.update, predict.faae.update, predict.lia.r1, torch.Tensor.float, common.curves
    sides = [EXPERIMENTS[name].run(changed, 0, 1.1) for changed in (False, True)]
    assert all([*side] == [*RECORDED[name]] for side in sides)
    assert all(math.isfinite(v) for side in sides for v in side.values())
    assert sides[0] != sides[1]
    assert kept == (predict.alae.update, predict.faae.update, predict.lia.r1, torch.Tensor.float, common.curves)


def test_the_penalty_is_paid_out():
    x = torch.randn(5, 3, requires_grad=True)
    assert predict.negative(common.r1)(x.square().sum(1), x).item() == pytest.approx(
        -4 * x.detach().square().sum(1).mean().item(), rel=1e-5)


def test_moments_apart():
    """Adam moves a weight by its rate where all gradients are alike; two steps whose gradients differ share them."""
    def moves(update):
        p = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.Adam([p], lr=0.1, betas=(0.0, 0.99))
        at = [0.0]
        for scale in (1, 1000) * 3:
            update(scale * p.sum(), optimizer)
            at.append(p.item())
        return [a - b for a, b in zip(at, at[1:], strict=False)]
    assert moves(predict.apart(common.update, 2)) == pytest.approx([0.1] * 6, rel=1e-4)
    shared = moves(common.update)
    assert max(shared[2::2]) < 0.001 < 0.1 < min(shared[1::2])


def test_couplings_in_low_precision():
    before, after = (predict.through_couplings(changed, 0, 0) for changed in (False, True))
    assert before["error of w"] < 1e-3 < 0.1 < after["error of w"]


# ---------------------------------------------------------------------------------------------------------- answers

def test_recorded_answers_are_those_of_the_text():
    assert ANSWERS.keys() == EXPERIMENTS.keys() == RECORDED.keys()
    for name, recorded in RECORDED.items():
        assert all(len(side) == len(predict.SEEDS) for sides in recorded.values() for side in sides)
        sides = next(iter(recorded.values()))
        assert [predict.verdict(*pair) for pair in zip(*sides, strict=True)] == [ANSWERS[name]] * 3, name


def test_the_guide_has_the_table():
    guide = (ROOT / ".github" / "guide.md").read_text(encoding="utf-8")
    assert predict.table() in guide
    assert re.search(r"code [0-9a-f]{7}", predict.RECORDED_ON)[0] in guide


def test_the_list(capsys):
    predict.main([])
    told = capsys.readouterr().out
    for name, e in EXPERIMENTS.items():
        assert re.search(rf"^{name} +{re.escape(e.source)}$", told, re.MULTILINE)
        assert re.search(r"eqs?\. \d|line \d", e.source)
        assert e.question.endswith("?")
        assert e.why.endswith(".")
    assert len(EXPERIMENTS) >= 8


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stdin", "says"), [
    (Terminal("s\n"), "You said smaller: right."), (Terminal("Larger\n"), "You said larger: it is smaller."),
    (Terminal("\n"), ""), (io.StringIO("s\n"), "")])
def test_a_prediction(stdin, says, monkeypatch, capsys):
    e = EXPERIMENTS["alae-sum"]
    numbers = [dict.fromkeys(RECORDED["alae-sum"], v) for v in (2.0, 1.0)]
    monkeypatch.setitem(EXPERIMENTS, "alae-sum", e._replace(run=lambda changed, seed, kimg: numbers[changed]))
    monkeypatch.setattr(sys, "stdin", stdin)
    predict.main(["alae-sum"])
    told = capsys.readouterr().out
    assert re.findall("You said.*", told) == [says][:bool(says)]
    assert ("Your prediction" in told) == stdin.isatty()
    assert re.search(r"size of E\(x\) +2 +1 +smaller ", told)
    assert told.index(e.question[:40]) < told.index("size of E(x)") < told.index(e.why[:40])


def test_a_line_to_paste(monkeypatch, capsys):
    numbers = lambda changed, seed, kimg: {"a size": 1 + seed + 10 * changed, "an error": 0.12345}      # noqa: E731
    monkeypatch.setitem(EXPERIMENTS, "alae-sum", EXPERIMENTS["alae-sum"]._replace(run=numbers))
    predict.main(["alae-sum", "--record"])
    assert ast.literal_eval("{" + capsys.readouterr().out + "}") == {
        "alae-sum": {"a size": ((1, 2, 3), (11, 12, 13)), "an error": ((0.123,) * 3,) * 2}}


def test_a_name_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as end:
        predict.main(["alae-r1"])
    assert end.value.code == 2
    assert "there is no alae-r1; choose from alae-sum, " in capsys.readouterr().err


@pytest.mark.parametrize(("name", "where", "what"), [
    ("alae-sum", predict.alae, "train_step"), ("lia-bf16", predict.lia, "InvertibleNetwork"),
    ("lia-sign", common, "r1")])
def test_code_that_is_not_written_yet(name, where, what, small, monkeypatch):
    def empty(*_, **__):
        raise NotImplementedError("eq. 0")
    monkeypatch.setattr(where, what, empty)
    monkeypatch.setattr(predict, "KIMG", 0.2)
    with pytest.raises(common.Error, match="^not written yet: eq. 0; write it first$"):
        predict.main([name])
