"""Writes a student's copy of the project, in which exercises are empty.

    python tests/handout.py OUT                         all exercises
    python tests/handout.py OUT --exercise r1 alae-1    some of them; the others are solved
    python tests/handout.py OUT --notebook              and each as a notebook, in nbgrader's conventions
    python tests/handout.py --gradescope FILE.zip       the autograder for Gradescope, with the solutions
    python tests/handout.py --check r1                  that this exercise's tests fail without it, and no other's
    python tests/handout.py --check                     the same of all exercises, one by one

The scripts carry no marks: `exercises.py` says where each exercise is.  OUT has no history and no solution; in it
`python tests/grade.py` tells how far one is.
"""
import argparse
import ast
import functools
import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

from exercises import (
    EXERCISES,
    NAMED,
    ROOT,
    TESTS,
    definition,
    emptied,
    grading_tests,
    node_of,
    scripts,
    split,
    text_of,
)
from grade import BASE, base_tests, fail, import_once, outcome

# What a copy is made of, besides the scripts: no results, no caches, and not the tests that hold solutions
PARTS = ("*.py", "*.md", "*.txt", ".ruff.toml", ".gitignore", ".github/*.md", ".github/*.png", "tests/*.py",
         "tests/*.npz", "tests/*.css", "tests/*.js")
SOLVED = ("tests/test_handout.py",)
TELLING = 30                # characters of a statement that would give a solution away

SETUP = """#!/usr/bin/env bash
set -e
apt-get update && apt-get install -y python3 python3-venv
python3 -m venv /autograder/venv
. /autograder/venv/bin/activate
pip install --extra-index-url https://download.pytorch.org/whl/cpu -r /autograder/source/requirements.txt
"""
NEEDS = """import sys
sys.path[:0] = ["..", "../tests"]
from {module} import *
from grade import check"""
RUN = """#!/usr/bin/env bash
cd /autograder/source
. /autograder/venv/bin/activate
python tests/grade.py /autograder/submission --json /autograder/results/results.json --exercise {names}
"""


def parts():
    """Relative paths of what a copy is made of."""
    paths = {path for pattern in PARTS for path in ROOT.glob(pattern) if path.is_file()}
    if (ROOT / ".git").exists():                # a teacher's own files stay at home
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths &= {ROOT / name for name in listed.split("\0")}
    return [path for path in sorted(paths) if path.relative_to(ROOT).as_posix() not in SOLVED]


@functools.lru_cache(256)
def statements(code):
    """The simple statements of a piece of code that are long enough to tell, without spaces."""
    lines = code.split("\n")
    return set().union(*(statements_of("\n".join(lines[node.lineno - 1:node.end_lineno]))
                         for node in ast.parse(code).body))


@functools.lru_cache(None)
def statements_of(code):
    nodes = [node for node in ast.walk(ast.parse(code)) if not isinstance(getattr(node, "value", None), ast.Constant)
             and isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr, ast.Return))]
    return {bare(text) for text in map(ast.unparse, nodes) if len(text) >= TELLING}


def bare(text):
    return "".join(text.split()).replace("'", '"')


def leaks(files, chosen):
    """-> (file, exercise, share of the solution's statements that it holds), of {file: text}."""
    solved, found = scripts(), []
    for exercise in chosen:
        places = [(solved[split(place)[0]], place) for place in exercise.places]
        own = set().union(*(statements(textwrap.dedent("\n".join(text_of(*place)))) for place in places))
        for file, text in files.items():
            held = own & statements(text) if file.endswith(".py") else {s for s in own if s in bare(text)}
            if held:
                found.append((file, exercise.name, len(held) / len(own)))
    return found


def write_copy(out, chosen, notebook):
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in parts()
             if path.suffix in (".py", ".md")}
    texts.update(emptied(scripts(), chosen))
    texts["EXERCISES.md"] = overview(chosen, notebook)
    for file, name, share in leaks(texts, chosen):
        if share >= 0.5:
            sys.exit(fail(f"{file} holds {share:.0%} of exercise {name}; give it a twin in tests/exercises.py"))
    for path in parts():
        target = out / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for file, text in texts.items():
        (out / file).write_text(text, encoding="utf-8")
    with zipfile.ZipFile(out / "tests" / "handout.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for file in BASE:
            z.writestr(file, texts[file])
        z.comment = " ".join(exercise.name for exercise in chosen).encode()
    if notebook:
        (out / "notebooks").mkdir()
        for number, exercise in enumerate(chosen, 1):
            book = json.dumps(make_notebook(exercise, texts), indent=1)
            (out / "notebooks" / f"{number:02d}-{exercise.name}.ipynb").write_text(book, encoding="utf-8")


def overview(chosen, notebook):
    """EXERCISES.md."""
    tests = grading_tests((ROOT / "tests" / TESTS).read_text(encoding="utf-8"))
    lines = ["# Exercises", "", "Code that raises NotImplementedError is yours to write. Its docstring gives shapes "
             "and ranges, and the tests in tests/test_exercises.py compare it with closed forms, finite differences "
             "and numbers that numpy works out.", "", "    pip install -r requirements.txt pytest",
             "    python tests/grade.py                     # all, in a minute or two",
             "    python tests/grade.py --exercise r1       # one",
             "    python -m pytest tests/test_exercises.py  # the same tests, with tracebacks", "",
             "Each exercise is graded by itself: one that is empty or broken does not fail another. A helper of yours "
             "may be a new function, class, constant or import at the top of the same file; new methods, other files "
             "and changed helpers are not graded. In a notebook a helper stands inside the function."]
    if notebook:
        lines += ["", "The folder notebooks has each exercise as a notebook."]
    lines += ["", "| exercise | time | points | where |", "|---|---|---|---|"]
    for e in chosen:
        where = ", ".join(f"`{split(place)[0]}` `{split(place)[1]}`" for place in unique(e.places))
        lines.append(f"| [{e.title}](#{e.name}) | {duration(e.minutes)} | {e.points} | {where} |")
    lines.append(f"| all | {duration(sum(e.minutes for e in chosen))} | {sum(e.points for e in chosen)} | |")
    for e in chosen:
        lines += ["", f'## <a id="{e.name}"></a>{e.title}', "", *describe(e, tests[e.name])]
    return "\n".join(lines) + "\n"


def describe(e, tests):
    """What to read, to write, and what is tested, as Markdown."""
    places = []
    for place in e.places:
        file, name, heading = split(place)
        places.append(f"`{name}` of `{file}`" + (f", below `# {heading}`" if heading else ""))
    return [f"Read: {e.read}. Write: {e.write}.", "", f"Where: {'; '.join(places)}. About {duration(e.minutes)}, "
            f"{e.points} points; `python tests/grade.py --exercise {e.name}` takes seconds.", "",
            *(f"- `{name}`: {' '.join(says.split())}" for name, says in tests.items())]


def unique(places):
    """One place a function."""
    return list({split(place)[:2]: place for place in places}.values())


def duration(minutes):
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"


# ------------------------------------------------------------------------------------------------------ notebooks

def cell(kind, source, **nbgrader):
    made = dict(cell_type=kind, id=nbgrader.get("grade_id", "intro"), metadata={}, source=source)
    if nbgrader:
        made["metadata"] = dict(nbgrader=dict(schema_version=3, task=False, **nbgrader))
    if kind == "code":
        made.update(execution_count=None, outputs=[])
    return made


def make_notebook(e, texts):
    """One exercise as a notebook: nbgrader's solution cells, then a test cell a test, whose points add up."""
    tests = grading_tests(texts[f"tests/{TESTS}"])[e.name]
    file, name, _ = split(e.places[0])
    module, about = Path(file).stem, []
    if "." in name:                             # what the class of a method says
        of = node_of(ast.parse(texts[file]), name.partition(".")[0])
        about = ["", "```", f"class {of.name}:", ast.get_docstring(of), "```"]
    cells = [cell("markdown", "\n".join([f"# {e.title}", "", *describe(e, tests), *about])),
             cell("code", NEEDS.format(module=module), grade=False, solution=False, locked=True,
                  grade_id=f"{e.name}-setup")]
    names = [split(place)[1].split(".")[-1] for place in unique(e.places)]
    for name, place in zip(names, unique(e.places), strict=True):
        text = texts[split(place)[0]]
        first, last = definition(text, split(place)[1])
        cells.append(cell("code", textwrap.dedent("\n".join(text.split("\n")[first:last])), grade=False, solution=True,
                          locked=False, grade_id=f"{e.name}-{name.strip('_')}"))
    share = round(e.points / len(tests), 2)
    for i, test in enumerate(tests):
        points = share if i else round(e.points - share * (len(tests) - 1), 2)
        cells.append(cell("code", f"check({e.name!r}, {test!r}, {', '.join(names)})", grade=True, solution=False,
                          locked=True, points=points, grade_id=test))
    kernel = dict(display_name="Python 3", language="python", name="python3")
    return dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)


# ------------------------------------------------------------------------------------------------------ autograder

def write_gradescope(path, chosen):
    """The zip that Gradescope takes as an autograder.  It holds the solutions."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name in (*BASE, "tests/grade.py", "requirements.txt"):
            z.write(ROOT / name, name)
        for name, text in (("setup.sh", SETUP), ("run_autograder", RUN.format(names=" ".join(e.name for e in chosen)))):
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.external_attr = 0o100755 << 16                     # may be run
            z.writestr(info, text)


def what_else_fails(exercise):
    """In the handout of one exercise exactly its own grading tests fail.  -> a list of what is otherwise."""
    base = {file: (ROOT / file).read_text(encoding="utf-8") for file in BASE}
    tests = base_tests(base)
    results, ended, _ = outcome({**base, **emptied(scripts(), [exercise])}, list(tests), limit=600)
    return [f"{name} of {tests[name]} {'fails: ' + wrong if wrong else 'passes'}" for name, wrong in results.items()
            if bool(wrong) != (tests[name] == exercise.name)] + [ended] * bool(ended)


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="new folder of the copy")
    parser.add_argument("--exercise", nargs="+", metavar="NAME", choices=NAMED, default=list(NAMED),
                        help=f"exercises that are empty: {', '.join(NAMED)}")
    parser.add_argument("--notebook", action="store_true", help="the exercises as notebooks, too")
    parser.add_argument("--gradescope", type=Path, metavar="FILE", help="zip of the autograder")
    parser.add_argument("--check", nargs="*", metavar="NAME", choices=NAMED,
                        help="exercises to check one by one (default: all)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    chosen = [e for e in EXERCISES if e.name in args.exercise]
    if not (args.out or args.gradescope or args.check is not None):
        sys.exit(fail("nothing to write; pass a folder OUT, --gradescope FILE.zip or --check"))
    if (ROOT / "tests" / "handout.zip").exists():
        sys.exit(fail(f"{ROOT} is a handout itself, without solutions; run this in the project"))
    if args.out and args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        sys.exit(fail(f"{args.out} is there already; name a new folder"))
    try:
        if args.out:
            write_copy(args.out, chosen, args.notebook)
            print(f"{args.out}: {len(chosen)} exercises, {sum(e.points for e in chosen)} points; see EXERCISES.md")
        if args.gradescope:
            write_gradescope(args.gradescope, chosen)
            print(args.gradescope)
    except OSError as e:
        sys.exit(fail(f"{e.filename}: {e.strerror}; name another place"))
    failed = False
    import_once()
    for name in [] if args.check is None else args.check or NAMED:
        wrong = what_else_fails(NAMED[name])
        failed |= bool(wrong)
        print(f"{name}: {'; '.join(wrong) or 'its own tests fail without it, and no others'}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
