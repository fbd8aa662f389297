"""Where the code computes each entry of `equations.py`: reads the scripts by their tags and by `ast`, and
runs nothing.

A tag is "eq. 8", "eqs. 3, 4", "Alg. 1 line 6" or "lines 3-7" in a comment or a docstring.  In a method's
own file it means that method's paper; elsewhere the paper's name stands before it ("LIA eq. 3",
"Heusel 2017, eq. 6").
"""
import ast
import io
import re
import token
import tokenize
from pathlib import Path
from typing import NamedTuple

from equations import EQUATIONS, PAPERS

ROOT = Path(__file__).resolve().parent.parent
CODE = ("alae.py", "lia.py", "invgan.py", "faae.py", "common.py", "eval.py", "data.py")
NAMES = {paper.tag: key for key, paper in PAPERS.items() if paper.tag}
SCRIPTS = {paper.script: key for key, paper in PAPERS.items() if paper.script}
SHORT = 20                  # lines: a function that is shorter is lit as a whole by its docstring's tag
TAG = re.compile(rf"""
    (?: (?P<paper> {"|".join(NAMES)} | [A-Z]\w+ (?:\s+et\s+al\.)? \s+ (?:19|20)\d\d ) (?:'s|,)? \s+ )?
    (?: Alg\.\s+1 ,? \s+ )?
    (?P<tag> \b (?P<kind> [Ee]qs?\. | lines? ) \s+
             (?P<numbers> \d+ (?: (?: \s*-\s* | ,\s+ | \s+and\s+ | \s+to\s+ ) \d+)* ))
    """, re.VERBOSE)


class Tag(NamedTuple):
    line: int               # of the number, from 1
    columns: tuple          # first and past the last
    entries: tuple          # (paper, number) of each; paper None if there is none
    ranged: bool            # lines 3-7
    kind: str               # comment (at the end of a line), banner (a line of its own), docstring (in its first
                            # paragraph), remark (in the others), module (its docstring), string
    note: str               # what a comment says after it


class Place(NamedTuple):
    """Lines of code that compute an entry."""
    file: str
    first: int
    last: int
    name: str               # the function or class around them, "" at the top of a file
    note: str


def entries_of(m, own):
    """A match of TAG in the file of the paper `own` -> its (paper, number) pairs, and whether it has a range."""
    kind = "line" if m["kind"].startswith("line") else "eq."
    numbers, ranged = [], False
    for part in re.split(r",\s+|\s+and\s+", m["numbers"]):
        first, *last = re.split(r"\s*-\s*|\s+to\s+", part)
        numbers += range(int(first), int((last or [first])[0]) + 1)
        ranged |= bool(last)
    paper = re.sub(r"\s+(et\s+al\.\s+)?", " ", m["paper"] or "")
    if paper and paper not in NAMES:
        return tuple(("others", f"{paper} {kind} {n}") for n in numbers), ranged
    return tuple((NAMES.get(paper, own), f"{kind} {n}") for n in numbers), ranged


def start(node):
    """The first line of a definition, its decorators' too."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


class Source:
    """A file of the project: its text, its tree, its tokens and the tags that it carries."""

    def __init__(self, name, text=None):
        self.name, self.paper = name, SCRIPTS.get(name)
        self.text = (ROOT / name).read_text(encoding="utf-8") if text is None else text
        self.lines = self.text.splitlines()
        self.tree = ast.parse(self.text)
        self.statements = [node for node in ast.walk(self.tree) if isinstance(node, ast.stmt)]
        self.tokens = list(tokenize.generate_tokens(io.StringIO(self.text).readline))
        self.definitions = dict(self.walk(self.tree, ""))       # {"function", "Class.method": node}, outer ones first
        self.tags = list(self.find_tags())

    def walk(self, node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                yield prefix + child.name, child
                yield from self.walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.stmt):
                yield from self.walk(child, prefix)

    def find_tags(self):
        docstrings = {}                                         # line: kind
        for node in (self.tree, *self.definitions.values()):
            if ast.get_docstring(node, clean=False) is not None:
                docstrings[node.body[0].lineno] = "module" if node is self.tree else "docstring"
        for t in self.tokens:
            (row, column), text = t.start, t.string
            if t.type == token.COMMENT:
                kind = "comment" if self.lines[row - 1][:column].strip() else "banner"
            elif t.type == token.STRING or token.tok_name[t.type] == "FSTRING_MIDDLE":
                kind = docstrings.get(row, "string")
            else:
                continue
            for m in TAG.finditer(text):
                before = text[:m.start("tag")]
                first = len(before) - before.rindex("\n") - 1 if "\n" in before else column + len(before)
                note = re.match(r"(?:, (?!eqs?\.|lines?)([^;]*))?", text[m.end():])[1] if kind == "comment" else ""
                columns = first, first + len(m["tag"])
                remark = kind == "docstring" and re.search(r"\n\s*\n", before)
                yield Tag(row + before.count("\n"), columns, *entries_of(m, self.paper),
                          "remark" if remark else kind, note or "")

    def around(self, line):
        """-> name and node of the innermost definition that holds a line, or "", None."""
        held = [(name, node) for name, node in self.definitions.items() if start(node) <= line <= node.end_lineno]
        return held[-1] if held else ("", None)

    def statement(self, line):
        """First and last line of the innermost statement at a line; of one with a body, its head."""
        best = line, line
        for node in self.statements:
            if node.lineno <= line:
                last = node.body[0].lineno - 1 if getattr(node, "body", None) else node.end_lineno
                if line <= last and (best == (line, line) or last - node.lineno <= best[1] - best[0]):
                    best = node.lineno, last
        return best

    def paragraph(self, line):
        """First and last line of what stands between two blank lines, without a docstring above."""
        _, node = self.around(line)
        top, bottom = (node.body[0].lineno, node.end_lineno) if node else (1, len(self.lines))
        if node and ast.get_docstring(node) is not None:
            top = node.body[0].end_lineno + 1
        first = last = line
        while first > top and self.lines[first - 2].strip():
            first -= 1
        while last < bottom and self.lines[last].strip():
            last += 1
        return first, last

    def place(self, first, last, note=""):
        return Place(self.name, first, last, self.around(first)[0], note)

    def places_named(self, where):
        """"age" -> the definition of that name; "age: opt.E" -> the paragraph of its update that moves just opt.E."""
        name, _, moved = where.partition(": ")
        node = self.definitions.get(name)
        if node is None or not moved:
            return [self.place(start(node), node.end_lineno)] if node else []
        return [self.place(*self.paragraph(call.lineno)) for call in ast.walk(node)
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "update"
                and ", ".join(map(ast.unparse, call.args[1:])) == moved]


def read_code(names=CODE):
    return {name: Source(name) for name in names}


EXACT, FUNCTION, RANGE, ABOUT, LOOSE = range(5)


def stands_for(source, tag):
    """How exact a tag is, and the first and last line that it stands for: the statement before a comment,
    the paragraph under a banner, the function or class of a docstring."""
    if tag.kind == "comment":
        return EXACT, source.statement(tag.line)
    if tag.kind == "banner":
        beside = [other for other in source.tags if other.line == tag.line]
        if any(other.ranged for other in beside) and not tag.ranged:       # "lines 3-7; x is line 4"
            return EXACT, (tag.line, tag.line)
        return RANGE if tag.ranged else EXACT, source.paragraph(tag.line)
    _, node = source.around(tag.line)
    lines = start(node), node.end_lineno
    if tag.ranged or tag.kind == "remark":
        return LOOSE, lines
    return FUNCTION if isinstance(node, ast.FunctionDef) and lines[1] - lines[0] < SHORT else ABOUT, lines


def find_places(code, equations=EQUATIONS):
    """-> {entry: [Place, ...]}, the most telling first: what the entry names itself, then lines and short
    functions with its tag (if there are none, the next most exact tags), then the lines of the entries
    that it names."""
    ranks = {}                                                  # (paper, number): {rank: places}
    for source in code.values():
        for tag in source.tags:
            if tag.kind in ("module", "string"):
                continue
            rank, lines = stands_for(source, tag)
            for entry in tag.entries:
                ranks.setdefault(entry, {}).setdefault(rank, []).append(source.place(*lines, tag.note))
    found = {}
    for e in equations:
        ranked = ranks.get((e.paper, e.number), {})
        tagged = ranked.get(EXACT, []) + ranked.get(FUNCTION, []) or ranked.get(min(ranked, default=LOOSE), [])
        named = [place for where in e.where for place in code[PAPERS[e.paper].script].places_named(where)]
        found[e] = named + tagged
    numbered = {(e.paper, e.number): e for e in equations}
    for e in equations:
        found[e] = found[e] + [place._replace(note="") for number in e.by for place in found[numbered[e.paper, number]]]
    return {e: without_doubles(places) for e, places in found.items()}


def without_doubles(places):
    found = {}
    for place in places:
        found.setdefault(place[:3], place)
    return list(found.values())


def find_tests(folder=ROOT / "tests"):
    """{name: files} of every test."""
    found = {}
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.setdefault(node.name, []).append(path.name)
    return found


def find_flags(code, script):
    """{flag: help} of a script's own parser, where the help is a keyword or what follows the flag."""
    found = {}
    for name in ("common.py", script):
        for node in ast.walk(code[name].tree):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                texts = [k.value for k in node.keywords if k.arg == "help"] + node.args[1:]
                flag, text = node.args[0].value, (texts or [None])[0]
                if isinstance(flag, str) and flag.startswith("--") and text is not None:
                    try:
                        found[flag] = ast.literal_eval(text)
                    except ValueError:                          # put together when it runs
                        found[flag] = ""
    return found
