"""Grades the exercises, each in a process of its own.

    python tests/grade.py                               this copy: points, and the first thing that is wrong
    python tests/grade.py --exercise r1 coupling        some exercises
    python tests/grade.py FOLDER --json results.json    a submission, in Gradescope's format
    python tests/grade.py --against FOLDER              each folder in FOLDER, into FOLDER/grades.csv

What a student wrote for an exercise is moved into a fresh copy of the project and tested there, so a syntax error, an
endless loop or a missing file costs the exercises that it is in, and no other.
"""
import argparse
import csv
import importlib
import inspect
import io
import json
import linecache
import multiprocessing
import os
import sys
import tempfile
import textwrap
import time
import traceback
import zipfile
from pathlib import Path
from typing import NamedTuple

import exercises
from exercises import EXERCISES, NAMED, ROOT, TESTS, Missing, put, split, text_of

HANDED_OUT = Path(__file__).resolve().parent / "handout.zip"    # in a student's copy: the files as they were
SCRIPTS = ("common.py", "data.py", "eval.py", "alae.py", "lia.py", "invgan.py", "faae.py")
BASE = (*SCRIPTS, "tests/exercises.py", f"tests/{TESTS}")
LIMIT = 60                  # seconds for the tests of an exercise
CONTEXT = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")


def import_once():
    """Has the processes that are to come begin with what takes seconds to import."""
    if sys.platform != "win32":
        CONTEXT.set_forkserver_preload(["torch", "numpy"])


class Grade(NamedTuple):
    exercise: exercises.Exercise
    passed: int
    tests: int
    message: str            # the first thing that is wrong, in a line, or ""
    printed: str = ""       # by the student's code

    @property
    def score(self):
        return round(self.exercise.points * self.passed / self.tests, 1)


def read_base():
    """-> {file: text} that submissions are moved into, and names of the exercises: as handed out, or the project."""
    if not HANDED_OUT.exists():
        return {file: (ROOT / file).read_text(encoding="utf-8") for file in BASE}, list(NAMED)
    with zipfile.ZipFile(HANDED_OUT) as z:
        return {file: z.read(file).decode() for file in z.namelist()}, z.comment.decode().split()


def read_submission(folder):
    """-> {script: text} of those that are there; a folder's only folder stands for it."""
    inner = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    if len(inner) == 1 and not any((folder / name).exists() for name in SCRIPTS):
        folder = inner[0]
    texts = {name: (folder / name).read_bytes().decode("utf-8-sig", "replace") for name in SCRIPTS
             if (folder / name).is_file()}
    return {name: text.replace("\r\n", "\n").replace("\t", "    ") for name, text in texts.items()}


def assemble(base, exercise, submission):
    """-> base with what a submission has for an exercise.  Raises Missing, in the student's words."""
    files, used = dict(base), {}
    for place in exercise.places:
        file = split(place)[0]
        if file not in submission:
            raise Missing(f"{file} is missing")
        lines = text_of(submission[file], place)
        used.setdefault(file, []).extend(lines)
        files[file] = put(files[file], place, lines)
    for file, lines in used.items():
        files[file] += "\n\n" + exercises.helpers(submission[file], base[file], lines) + "\n"
        try:
            compile(files[file], file, "exec")
        except (SyntaxError, ValueError) as e:
            raise Missing(f"{type(e).__name__}: {e.args[0]}: {(getattr(e, 'text', '') or '').strip()}") from None
    return files


def told(error, folder):
    """An exception as a line: what a test says, or the line of the student's that raised it."""
    if isinstance(error, AssertionError) and str(error):
        return str(error).split("\n")[0]
    frames, line = traceback.extract_tb(error.__traceback__), ""
    if isinstance(error, NotImplementedError) and Path(frames[-1].filename).parent == folder:
        return f"not written yet: {error}"
    for frame in frames:
        if Path(frame.filename).parent == folder:
            line = f", at: {linecache.getline(frame.filename, frame.lineno).strip()}"
    return (f"{type(error).__name__}: {error}".split("\n")[0] + line)[:500]


def run_tests(folder, names):
    """Runs tests of the project in a folder, in this process.  Yields each one's name and "", or what is wrong."""
    folder = Path(folder).resolve()
    hidden = {name: sys.modules.pop(name) for name in [Path(file).stem for file in SCRIPTS] + [Path(TESTS).stem]
              if name in sys.modules}
    sys.path[:0] = [str(folder), str(folder / "tests")]
    try:
        for name in names:
            try:
                importlib.invalidate_caches()
                getattr(importlib.import_module(Path(TESTS).stem), name)()
                yield name, ""
            except (Exception, SystemExit) as e:
                yield name, told(e, folder)
    finally:
        del sys.path[:2]
        for name in [Path(file).stem for file in SCRIPTS] + [Path(TESTS).stem]:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def child(folder, names, connection):
    """In the new process: what each test gives goes through the connection, what is printed into a file."""
    os.chdir(folder)
    for number in (1, 2):
        os.dup2(os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.dont_write_bytecode = True
    import torch
    torch.set_num_threads(1)
    for result in run_tests(folder, names):
        connection.send(result)
    os._exit(0)


def write_files(folder, files):
    for file, text in files.items():
        path = Path(folder) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def grade(base, exercise, submission, limit=LIMIT, names=None):
    """-> the Grade of an exercise in a submission, {file: text}.  names: of its tests, all of them if not given."""
    names = names or [name for name, of in base_tests(base).items() if of == exercise.name]
    try:
        files = assemble(base, exercise, submission)
    except Missing as e:
        return Grade(exercise, 0, len(names), str(e))
    results, ended, printed = outcome(files, names, limit)
    wrong = [message for message in results.values() if message] + [ended] * bool(ended)
    return Grade(exercise, sum(not message for message in results.values()), len(names), "".join(wrong[:1]), printed)


def outcome(files, names, limit=LIMIT):
    """Runs tests of a project, {file: text}, in another process.  -> {test: "" or what is wrong}, why the process
    ended early or "", and what it printed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_files(folder, files)
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=child, args=(folder, names, sender))
        process.start()
        sender.close()
        results, end = {}, time.monotonic() + limit
        try:
            while len(results) < len(names) and receiver.poll(max(end - time.monotonic(), 0)):
                results.update([receiver.recv()])
            ended = "" if len(results) == len(names) else f"took more than {limit:g} seconds: an endless loop?"
        except (EOFError, OSError):
            process.join(5)
            ended = f"the process ended, with exit status {process.exitcode}"
        process.kill()
        process.join()
        printed = Path(folder, "printed.txt")
        printed = printed.read_text(errors="replace")[-2000:] if printed.exists() else ""
    return results, ended, printed


def base_tests(base):
    """{test: exercise}, in the order of the file."""
    found = exercises.grading_tests(base[f"tests/{TESTS}"])
    return {test: name for name, tests in found.items() for test in tests}


def gradescope(grades):
    """Gradescope's results, https://gradescope-autograders.readthedocs.io/en/latest/specs/."""
    def output(grade):
        text = grade.message or f"all {grade.tests} tests pass"
        return f"{grade.passed} of {grade.tests} tests pass\n{text}\n{grade.printed}" if grade.message else text
    return dict(tests=[dict(score=g.score, max_score=g.exercise.points, name=f"{g.exercise.name}: {g.exercise.title}",
                            output=output(g), visibility="visible") for g in grades])


def show(grade):
    line = f"{grade.score:5g} of {grade.exercise.points:2d}  {grade.exercise.name:14}"
    print(f"{line}{grade.message}".rstrip(), flush=True)


def write_whole(path, text):
    """A file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8", newline="")
    os.replace(part, path)


def check(name, test, *written):
    """For notebooks: raises AssertionError, in a line, unless these functions pass a test of an exercise."""
    import_once()
    base, _ = read_base()
    sources = {f.__name__: textwrap.dedent(inspect.getsource(f)) for f in written}
    submission = dict(base)
    for place in NAMED[name].places:
        file, function, _ = split(place)
        source = sources[function.split(".")[-1]].rstrip().split("\n")
        submission[file] = put(submission[file], f"{file}: {function}", source)
    message = grade(base, NAMED[name], submission, names=[test]).message
    if message:
        raise AssertionError(message)


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT, help="submission; this copy if not given")
    parser.add_argument("--exercise", nargs="+", metavar="NAME", choices=NAMED, help="exercises to grade")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for results as Gradescope reads them")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="folder of submissions, a folder each")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="file for the grades of --against")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="S", help="seconds for the tests of an exercise")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    for folder in (args.folder, args.against or ROOT):
        if not folder.is_dir():
            sys.exit(fail(f"there is no folder {folder}; pass one that holds the scripts"))
    import_once()
    base, names = read_base()
    chosen = [e for e in EXERCISES if e.name in (args.exercise or names)]
    try:
        if args.against:
            grade_all(args, base, chosen)
            return
        submission, grades = read_submission(args.folder), []
        for exercise in chosen:
            grades.append(grade(base, exercise, submission, args.limit))
            show(grades[-1])
        print(f"{sum(g.score for g in grades):5g} of {sum(e.points for e in chosen)}")
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            write_whole(args.json, json.dumps(gradescope(grades), indent=1))
    except OSError as e:
        sys.exit(fail(f"{e.filename}: {e.strerror}; name another place"))


def grade_all(args, base, chosen):
    """A row of points for each submission."""
    rows = [["submission", *(e.name for e in chosen), "total"], ["points", *(e.points for e in chosen),
            sum(e.points for e in chosen)]]
    for folder in sorted(path for path in args.against.iterdir() if path.is_dir() and path.name[0] != "."):
        submission = read_submission(folder)
        scores = [grade(base, exercise, submission, args.limit).score for exercise in chosen]
        rows.append([folder.name, *scores, round(sum(scores), 1)])
        print(f"{rows[-1][-1]:5g} of {rows[1][-1]}  {folder.name}", flush=True)
    path = args.csv or args.against / "grades.csv"
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_whole(path, text.getvalue())
    print(path)


def fail(message):
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
