"""The exercises are found, graded, and in no copy solved; wrong solutions fail, and right ones pass however they are
written.  This file is in no handout, because it holds solutions."""
import compileall
import csv
import json
import os
import subprocess
import sys
import zipfile

import exercises
import grade
import handout
import pytest
from conftest import ROOT
from exercises import EXERCISES, NAMED, Missing, emptied, grading_tests, place_of, put, scripts, split, text_of

BASE = {file: (ROOT / file).read_text(encoding="utf-8") for file in grade.BASE}
TESTS = grade.base_tests(BASE)
BLANK = {**BASE, **emptied(scripts(), EXERCISES)}


def script(*argv, code=0, folder=ROOT):
    """-> what a script printed."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    made = subprocess.run([sys.executable, *map(str, argv)], cwd=folder, env=env, capture_output=True, text=True,
                          check=False)
    assert made.returncode == code, made.stdout + made.stderr
    return made.stderr if code else made.stdout


# ------------------------------------------------------------------------------------------------------ the table

def test_exercises_are_found():
    texts = scripts()
    for e in EXERCISES:
        for place in (*e.places, *e.twins):
            first, last = place_of(texts[split(place)[0]], place)
            assert last > first, place
        assert "" not in (e.says, e.read, e.write)
        assert 5 <= e.minutes <= 240
        assert e.points >= 5
    assert len(NAMED) == len(EXERCISES) >= 16


def test_each_has_three_tests_that_say_what_they_test():
    for name, tests in grading_tests(BASE[f"tests/{exercises.TESTS}"]).items():
        assert len(tests) >= 3, name
        assert "" not in tests.values(), name


def test_the_pages_count_them():
    for page in ("README.md", ".github/guide.md"):
        assert f"{len(EXERCISES)} exercises" in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(("place", "lacks"), [
    ("common.py: r2", "no r2"), ("common.py: Mapping.backward", "no Mapping.backward"),
    ("alae.py: train_step # Step IV:", "no comment '# Step IV:...'")])
def test_a_name_that_is_gone(place, lacks):
    with pytest.raises(Missing, match=lacks):
        place_of(scripts()[split(place)[0]], place)


def test_copies_without_a_solution():
    """The copy of all exercises holds none of a solution's telling statements, the copy of one less than half."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in handout.parts()
             if path.suffix in (".py", ".md")}
    assert not handout.leaks({**texts, **emptied(scripts(), EXERCISES)}, EXERCISES)
    assert {name for _, name, share in handout.leaks(texts, EXERCISES) if share == 1} == set(NAMED)     # as it should
    for e in EXERCISES:
        assert max([share for _, _, share in handout.leaks({**texts, **emptied(scripts(), [e])}, [e])], default=0) < 0.5


def test_code_is_found_in_a_file_that_does_not_parse():
    texts = scripts()
    for place in [place for e in EXERCISES for place in e.places]:
        text = texts[split(place)[0]]
        assert text_of("def broken(:\n" + text, place) == text_of(text, place)


# -------------------------------------------------------------------------------------------------------- grading

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project whose files one test after the other replaces."""
    path = tmp_path_factory.mktemp("project")
    place(path, BASE)
    compileall.compile_dir(path, quiet=1)
    return path


def place(folder, files):
    """Writes files that are as old as what `compileall` made of them."""
    grade.write_files(folder, files)
    for file in files:
        os.utime(folder / file, (10**9, 10**9))


def run(folder, files, names):
    """Runs tests of a project in this process.  -> {test: what is wrong}"""
    changed = {file: text for file, text in files.items() if text != BASE[file]}
    grade.write_files(folder, changed)
    try:
        with pytest.MonkeyPatch.context() as m:
            m.setattr(sys, "dont_write_bytecode", True)
            return {name: wrong for name, wrong in grade.run_tests(folder, names) if wrong}
    finally:
        place(folder, {file: BASE[file] for file in changed})


def own(name):
    return [test for test, of in TESTS.items() if of == name]


@pytest.mark.parametrize("name", ["logistic", "alae-2", "coupling"])
def test_an_empty_exercise_fails_its_own_tests_alone(name, folder):
    assert set(run(folder, {**BASE, **emptied(scripts(), [NAMED[name]])}, list(TESTS))) == set(own(name))


@pytest.mark.parametrize("name", NAMED)
def test_a_solution_needs_no_other(name, folder):
    assert len(run(folder, BLANK, own(name))) == len(own(name))
    assert not run(folder, grade.assemble(BLANK, NAMED[name], BASE), own(name))


# exercise: what a student would write, as (what is replaced in the solution, by what), ...
WRONG = {
    "r1": [
        (", create_graph=True", ""),                                    # R1 teaches nothing
        (".sum(1).mean()", ".mean(1).mean()"),
        (".sum(1).mean()", ".sum()"),
        (".square().flatten(1).sum(1)", ".flatten(1).norm(dim=1)"),     # not squared
        ("scores.sum()", "scores.mean()"),                              # each gradient is divided by the batch
        (".square().flatten(1).sum(1)", ".flatten(1).norm(dim=1).sub(1).square()"),     # WGAN-GP's
        ("gradient.square().flatten(1).sum(1).mean()", "gradient.mean(0).square().sum()"),
        (".mean()", ".mean() / 2"),                                     # the caller has gamma / 2
        (".flatten(1).sum(1)", ".sum(1)"),                              # over channels alone
        ("return gradient", "return gradient.detach()"),
        ("gradient, = torch.autograd.grad(scores.sum(), x, create_graph=True)",
         "scores.sum().backward()\n    gradient = x.grad"),
    ],
    "alae-1": [
        ("(fake_score) + mean_softplus(-real_score)", "(-fake_score) + mean_softplus(real_score)"),
        ("+ mean_softplus(-real_score)", "- mean_softplus(real_score)"),
        ("mean_softplus(fake_score) + mean_softplus", "-mean_softplus(fake_score) - mean_softplus"),
        ("mean_softplus(fake_score) + mean_softplus(-real_score)",
         "B * (mean_softplus(fake_score) + mean_softplus(-real_score))"),
        ("with amp(), torch.no_grad():", "with amp():"),
        ("args.gamma / 2", "args.gamma"),
        ("update(L_ED + R1,", "update(L_ED,"),
        ("update(L_ED + R1,", "update(L_ED - R1,"),
        ("opt.E, opt.D)", "opt.D)"),
        ("opt.E, opt.D)", "opt.E)"),
        ("mean_w.lerp_", "mean_w = mean_w.lerp"),
        ("1 - MEAN_W", "MEAN_W"),
        ("w.float().mean(0)", "w.float().sum(0)"),
    ],
    "coupling": [
        ("reversed(self.tau)", "self.tau"),
        ("bottom / scale - shift", "(bottom - shift) / scale"),
        ("bottom / scale - shift", "bottom / scale + shift"),
        ("bottom / scale - shift", "bottom - shift"),
        ("(bottom + shift) * scale", "bottom * scale + shift"),
        ("(bottom + shift) * scale", "bottom + shift"),
        ("(bottom + shift) * scale", "(bottom - shift) * scale"),
        ("], 1).flip(1)", "], 1)"),
        (".flip(1)", ".flip(0)"),
        (".flip(1)", ".roll(3, 1)"),
        ("(tau, top)", "(tau, bottom)"),
        ("torch.cat([top, ", "torch.cat([bottom, "),
        ("x.flip(1).chunk(2, 1)", "x.chunk(2, 1)"),
    ],
    "mmd": [
        ("k = k - k.diag().diag()", "pass"),                            # a code with itself
        ("(n * (n - 1))", "n**2"),
        ("- 2 * k[:n, n:].mean()", "- k[:n, n:].mean()"),
        ("- 2 * k[:n, n:].mean()", "+ 2 * k[:n, n:].mean()"),
        ("- 2 * k[:n, n:].mean()", "- 2 * k[:n, n:].sum()"),
        ("distance2.detach()", "distance2"),
        (".clamp(min=0)", ".clamp(min=1e-12).sqrt()"),                  # distances, not squared
        (" / len(BANDWIDTHS)", ""),
        ("(s * median)", "(2 * s * median)"),
        ("for s in BANDWIDTHS)", "for s in (1,))"),
        ("return ", "return abs"),
        ("(s * median)", "s"),                                          # fixed bandwidths
        ("distance2.detach().flatten()[1:].view(n + m - 1, n + m + 1)[:, :-1]", "distance2.detach()"),
    ],
}
RIGHT = {
    "r1": ['''
def r1(scores, x):
    gradient = torch.autograd.grad(scores, x, torch.ones_like(scores), create_graph=True)[0].flatten(1)
    return torch.einsum("nd,nd->n", gradient, gradient).mean()
''', '''
def squared_length(v):
    return v.pow(2).sum()

def r1(scores, x):
    total = 0
    for i in range(len(x)):
        g = torch.autograd.grad(scores[i, 0] if scores.ndim == 2 else scores[i], x, create_graph=True)[0][i]
        total = total + squared_length(g)
    return total / len(x)
'''],
    "alae-1": ['''
    z = draw.z(B)
    w = F(z)
    fake = G(draw.mix(w, F)).detach()

    # fakes first
    x.requires_grad_(True)
    a, b = D(E(fake)), D(E(x))
    L_ED = nnf.softplus(a).mean() + nnf.softplus(-b).mean()
    grad = torch.autograd.grad(b.sum(), x, create_graph=True)[0]
    R1 = (grad ** 2).sum() / B * args.gamma / 2

    update(L_ED + R1, opt.E, opt.D)
    if mean_w is not None:
        with torch.no_grad():
            mean_w.mul_(MEAN_W).add_((1 - MEAN_W) * w.mean(0))
''', '''
    with torch.no_grad():
        w = F(draw.z(B))
        fake = G(draw.mix(w, F))
    x = x.requires_grad_()
    real = D(E(x))
    R1 = 0.5 * args.gamma * r1(real, x)
    L_ED = -torch.log(torch.sigmoid(real)).mean() - torch.log(1 - torch.sigmoid(D(E(fake)))).mean()
    update(R1 + L_ED, opt.D, opt.E)
    if mean_w is not None:
        mean_w += (1 - MEAN_W) * (w.mean(0) - mean_w)
'''],
    "coupling": ['''
class InvertibleNetwork(nn.Module):
    def to_z(self, w):
        half = w.shape[1] // 2
        x = w.clone()
        for i in range(len(self.tau)):
            shift, scale = self._shift_and_scale(self.tau[i], x[:, :half])
            bottom = x[:, half:] * scale + shift * scale
            x = torch.hstack([x[:, :half], bottom])[:, torch.arange(2 * half - 1, -1, -1)]
        return x

    def to_w(self, z):
        half = z.shape[1] // 2
        x = z
        for i in range(len(self.tau) - 1, -1, -1):
            x = torch.flip(x, [1])
            shift, scale = self._shift_and_scale(self.tau[i], x[:, :half])
            x = torch.hstack([x[:, :half], (x[:, half:] - shift * scale) / scale])
        return x
''', '''
class InvertibleNetwork(nn.Module):
    def to_z(self, w):
        rows = []
        for row in w:
            x = row[None]
            for tau in self.tau:
                a, b = torch.tensor_split(x, 2, dim=1)
                s, c = self._shift_and_scale(tau, a)
                x = torch.fliplr(torch.cat((a, torch.mul(b + s, c)), dim=-1))
            rows.append(x[0])
        return torch.stack(rows)

    def to_w(self, z):
        for tau in list(self.tau)[::-1]:
            a, b = torch.fliplr(z).chunk(2, dim=-1)
            s, c = self._shift_and_scale(tau, a)
            z = torch.cat((a, torch.div(b, c) - s), dim=-1)
        return z
'''],
    "mmd": ['''
def mmd(a, b):
    n, m = len(a), len(b)
    x = torch.cat([a, b]).double()
    d = ((x[:, None] - x[None]) ** 2).sum(-1)
    off = ~torch.eye(n + m, dtype=torch.bool)
    median = d[off].median().detach()
    total = 0
    for s in BANDWIDTHS:
        k = (-d / s / median).exp()
        total = total + k[:n, :n][off[:n, :n]].mean() + k[n:, n:][off[n:, n:]].mean() - 2 * k[:n, n:].mean()
    return total / len(BANDWIDTHS)
''', '''
import itertools

def rbf(p, q, median):
    return torch.stack([torch.exp(-torch.dot(p - q, p - q) / (s * median)) for s in BANDWIDTHS]).mean()

def mmd(a, b):
    both = list(torch.cat([a, b]).double())
    with torch.no_grad():
        median = torch.stack([torch.dot(p - q, p - q) for p, q in itertools.combinations(both, 2)]).median()
    aa = torch.stack([rbf(p, q, median) for p, q in itertools.combinations(a.double(), 2)]).mean()
    bb = torch.stack([rbf(p, q, median) for p, q in itertools.combinations(b.double(), 2)]).mean()
    ab = torch.stack([rbf(p, q, median) for p in a.double() for q in b.double()]).mean()
    return aa + bb - 2 * ab
'''],
}


@pytest.mark.parametrize(("name", "i"), [(name, i) for name, patches in WRONG.items() for i in range(len(patches))])
def test_wrong_solutions_fail(name, i, folder):
    old, new = WRONG[name][i]
    submission, found = dict(BASE), 0
    for place in NAMED[name].places:
        file = split(place)[0]
        code = "\n".join(text_of(submission[file], place))
        found += code.count(old)
        submission[file] = put(submission[file], place, code.replace(old, new).split("\n"))
    assert found, f"the solution has no {old!r} any more"
    wrong = run(folder, grade.assemble(BASE, NAMED[name], submission), own(name))
    assert wrong


@pytest.mark.parametrize("broken", ["", "\ndef another(:\n    pass\n"])
def test_a_helper_comes_along(broken, folder):
    """with the function that calls it, from a file that parses or not"""
    submission = {**BASE, "common.py": RIGHT["r1"][1] + broken}
    assert not run(folder, grade.assemble(BASE, NAMED["r1"], submission), own("r1"))


@pytest.mark.parametrize(("name", "i"), [(name, i) for name, texts in RIGHT.items() for i in range(len(texts))])
def test_right_solutions_pass(name, i, folder):
    submission, text = dict(BLANK), RIGHT[name][i]
    file, _, heading = split(NAMED[name].places[0])
    if heading:
        submission[file] = put(submission[file], NAMED[name].places[0], text.strip("\n").split("\n"))
    else:
        submission[file] = text
    assert not run(folder, grade.assemble(BASE, NAMED[name], submission), own(name))


def test_the_table_is_large_enough():
    assert len(WRONG) == len(RIGHT) == 4
    assert all(len(set(patches)) >= 10 for patches in WRONG.values())
    assert all(len(texts) >= 2 for texts in RIGHT.values())


def replaced(place, code):
    """The project's script with other code in a place."""
    file = split(place)[0]
    return {file: put(BASE[file], place, code.split("\n"))}


def test_what_breaks_one_exercise_costs_that_alone(tmp_path):
    submission = {**BASE,
                  **replaced("common.py: r1", "def r1(scores, x):\n    while True: __import__('time').sleep(9)"),
                  **replaced("lia.py: kl", "def kl(mu, logvar):\n    import os\n    print('so far')\n    os._exit(3)"),
                  **replaced("faae.py: bigan", "def bigan(nets, opt, x, draw, amp, h):\n    return (1")}
    del submission["eval.py"]

    def message(name, limit=60):
        g = grade.grade(BASE, NAMED[name], submission, limit)
        assert (g.score == g.exercise.points) == (not g.message)
        return g.message
    assert message("r1", limit=1) == "took more than 1 seconds: an endless loop?"
    assert message("lia-2") == "the process ended, with exit status 3"
    assert message("bigan").startswith("SyntaxError: ")
    assert message("frechet") == "eval.py is missing"
    assert [message(name) for name in ("logistic", "lia-1", "faae-1")] == ["", "", ""]


@pytest.mark.parametrize(("code", "says"), [
    ("def r1(scores, x):\n    g, = torch.autograd.grad(scores.sum(), x, create_graph=True)\n    return (g**2).sum()",
     "E ||grad_x score||^2 (Mescheder et al., eq. 9): expected "),
    ("def r1(scores, x):\n    raise NotImplementedError('eq. 9')", "not written yet: eq. 9"),
    ("def r1(scores, x):\n    return scores.no_such()",
     "AttributeError: 'Tensor' object has no attribute 'no_such', at: return scores.no_such()")])
def test_the_first_thing_that_is_wrong_in_a_line(code, says, folder):
    wrong = run(folder, grade.assemble(BASE, NAMED["r1"], {**BASE, **replaced("common.py: r1", code)}), own("r1"))
    first = next(iter(wrong.values()))
    assert first.startswith(says)
    assert "\n" not in first


# --------------------------------------------------------------------------------------------------------- copies

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A handout of two exercises, with notebooks."""
    out = tmp_path_factory.mktemp("class") / "copy"
    script("tests/handout.py", out, "--exercise", "r1", "logistic", "--notebook")
    return out


def test_a_copy(copy):
    files = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert not [name for name in files if any(word in name for word in (".git/", "cache", ".pyc", "test_handout"))]
    assert {*grade.BASE, "tests/grade.py", "tests/handout.zip", "EXERCISES.md", "README.md", "requirements.txt",
            "notebooks/01-logistic.ipynb", "notebooks/02-r1.ipynb"} <= files
    text = (copy / "common.py").read_text()
    assert text.count('raise NotImplementedError("Mescheder et al. eq. 9') == 1
    assert text.count("NotImplementedError") == BASE["common.py"].count("NotImplementedError") + 2
    told = (copy / "EXERCISES.md").read_text()
    assert all(word in told for word in ("The logistic loss", "20 min", "test_r1_is_trained", "equation 9"))


def test_a_copy_is_graded(copy, tmp_path):
    told = script("tests/grade.py", "--json", tmp_path / "results.json", folder=copy)
    assert told.splitlines()[0] == "    0 of  5  logistic      not written yet: " + NAMED["logistic"].says
    assert told.splitlines()[-1] == "    0 of 20"
    tests = json.loads((tmp_path / "results.json").read_text())["tests"]
    assert [(t["score"], t["max_score"], t["visibility"]) for t in tests] == [(0, 5, "visible"), (0, 15, "visible")]
    assert tests[1]["name"] == "r1: R1"
    assert "not written yet" in tests[1]["output"]


def test_a_folder_of_submissions(copy, tmp_path):
    grade.write_files(tmp_path / "ada", {file: BASE[file] for file in grade.SCRIPTS})
    grade.write_files(tmp_path / "bob" / "my copy", {"common.py": (copy / "common.py").read_text()})
    told = script("tests/grade.py", "--against", tmp_path, "--exercise", "logistic")
    assert told.splitlines() == ["    5 of 5  ada", "    0 of 5  bob", str(tmp_path / "grades.csv")]
    rows = list(csv.reader(open(tmp_path / "grades.csv", newline="")))
    assert rows == [["submission", "logistic", "total"], ["points", "5", "5"], ["ada", "5.0", "5.0"],
                    ["bob", "0.0", "0.0"]]


CELLS = """
import json, linecache, sys
cells, names = json.load(open(sys.argv[1]))["cells"], {}
for i, cell in enumerate(cells):
    if cell["cell_type"] == "code":
        told, source = cell["metadata"]["nbgrader"], cell["source"]
        if told["solution"] and len(sys.argv) > 2:
            source = open(sys.argv[2]).read()
        linecache.cache[f"cell {i}"] = len(source), None, source.splitlines(True), f"cell {i}"
        try:
            exec(compile(source, f"cell {i}", "exec"), names)
            got = told.get("points", 0)
        except AssertionError as e:
            got = str(e)
        if told["grade"]:
            print(got)
"""


def test_a_notebook(copy, tmp_path):
    """Its cells, one after the other: without a solution no point, with one all."""
    book, solution = copy / "notebooks" / "01-logistic.ipynb", tmp_path / "solution.py"
    solution.write_text("\n".join(text_of(BASE["common.py"], "common.py: mean_softplus")))
    told = script("-c", CELLS, book, folder=book.parent).splitlines()
    assert told == ["not written yet: " + NAMED["logistic"].says] * len(own("logistic"))
    told = script("-c", CELLS, book, solution, folder=book.parent).splitlines()
    assert sum(map(float, told)) == NAMED["logistic"].points


def test_notebooks_keep_nbgraders_conventions():
    for exercise in EXERCISES:
        book = handout.make_notebook(exercise, BLANK)
        assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
        marks = [c["metadata"]["nbgrader"] for c in book["cells"] if c["cell_type"] == "code"]
        assert all({"schema_version", "grade", "solution", "locked", "task", "grade_id"} <= set(m) for m in marks)
        assert sum(m.get("points", 0) for m in marks) == pytest.approx(exercise.points)
        assert all(m["solution"] != m["locked"] for m in marks)
        ids = [c["id"] for c in book["cells"]]
        assert len(set(ids)) == len(ids)
        assert all(len(i) <= 64 and set(i) <= set("abcdefghijklmnopqrstuvwxyzEFGDABCSMR0123456789_-") for i in ids), ids
        for c in book["cells"]:
            if c["cell_type"] == "code":
                compile(c["source"], exercise.name, "exec")


@pytest.mark.skipif(sys.platform == "win32", reason="the autograder is a shell script")
def test_the_autograder(tmp_path):
    script("tests/handout.py", "--gradescope", tmp_path / "auto.zip", "--exercise", "logistic")
    with zipfile.ZipFile(tmp_path / "auto.zip") as z:
        assert all(z.getinfo(name).external_attr >> 16 == 0o100755 for name in ("setup.sh", "run_autograder"))
        z.extractall(tmp_path / "source")
    grade.write_files(tmp_path / "submission", {"common.py": BLANK["common.py"]})
    run = (tmp_path / "source" / "run_autograder").read_text()
    run = run.replace(". /autograder/venv/bin/activate\npython", sys.executable).replace("/autograder", str(tmp_path))
    subprocess.run(["bash", "-c", run], check=True, capture_output=True)
    result, = json.loads((tmp_path / "results" / "results.json").read_text())["tests"]
    assert (result["score"], result["max_score"]) == (0, 5)


@pytest.mark.parametrize(("argv", "says"), [
    (("tests/handout.py",), "nothing to write"), (("tests/handout.py", "tests"), "tests is there already"),
    (("tests/grade.py", "nowhere"), "there is no folder nowhere")])
def test_bad_arguments_are_one_line(argv, says):
    told = script(*argv, code=2)
    assert told.startswith("error: ")
    assert says in told
    assert told.count("\n") == 1


def test_a_handout_makes_no_handout(copy, tmp_path):
    assert "a handout itself" in script("tests/handout.py", tmp_path / "again", code=2, folder=copy)
