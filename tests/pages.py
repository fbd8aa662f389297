"""Write the papers beside the code, as a folder of web pages that need no network: python tests/pages.py OUT

index.html, and a page a method: on the left the paper's equations and the lines of its algorithms (`equations.py`), what
each says, and where we differ; on the right the code that computes them.  A click on one side lights up the other.
"""
import argparse
import ast
import html
import io
import itertools
import keyword
import re
import shutil
import sys
import token
import tokenize
import unicodedata
from pathlib import Path
from typing import NamedTuple

from equations import EQUATIONS, PAPERS

ROOT = Path(__file__).resolve().parent.parent
CODE = ("alae.py", "lia.py", "invgan.py", "faae.py", "common.py", "eval.py", "data.py")
escape = html.escape


# -------------------------------------------------------------------------------- a subset of LaTeX, as MathML
# Core MathML, which browsers set without a script.  Letters of other alphabets are characters of their own there.

LETTERS = dict(alpha="α", beta="β", gamma="γ", epsilon="ϵ", eta="η", theta="θ", mu="μ", sigma="σ", tau="τ", phi="ϕ",
               ell="ℓ", Delta="Δ", nabla="∇")
SIGNS = {"in": "∈", "#": "#", **dict(circ="∘", sim="∼", leftarrow="←", mapsto="↦", leftrightarrow="↔", cdot="⋅",
                                     cdots="⋯", odot="⊙", ge="≥", ne="≠", sum="∑", int="∫")}
TALL = ("sum", "int")
FUNCTIONS = ("log", "min", "max")
LIMITS = ("min", "max", "sum", "overbrace", "underbrace")   # have their indices below and above, not at their side
ALPHABETS = dict(mathbb="DOUBLE-STRUCK", mathcal="SCRIPT", mathbf="BOLD", boldsymbol="BOLD ITALIC")
ACCENTS = dict(tilde="˜")
FENCES = {"(": ")", "[": "]", "lVert": "rVert"}
BARS = {"lVert": "‖", "rVert": "‖", "|": "‖"}
INFIX = set("=+-∘∼∈→←↦↔⋅⊙≥≠,|/")
BEFORE, AFTER = re.compile("<mo[^>]*>[+−]<"), re.compile("<mo[^>]*>(=|:=|≥|←)<")        # where a long row is broken
SPACE = '<mspace width="0.1667em"/>'
TOKEN = re.compile(r"\\(?:text|mathrm|operatorname|begin|end|" + "|".join(ALPHABETS) + r")\{[^}]*\}"
                   r"|\\[a-zA-Z]+|\\.|\d+|:=|'+|[^\s]")


class Formula:
    """A parser of one formula: `parts` reads up to a closing token, `atom` one thing, `scripted` it and its indices."""

    def __init__(self, tex):
        self.tex, self.tokens, self.place = tex, TOKEN.findall(tex), 0

    def error(self, what):
        return ValueError(f"{what} in {self.tex!r}")

    def peek(self):
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def next(self):
        if not self.peek():
            raise self.error("something is missing at the end")
        self.place += 1
        return self.tokens[self.place - 1]

    def expect(self, wanted):
        if (found := self.next()) != wanted:
            raise self.error(f"{found} instead of {wanted}")

    def parts(self, *ends):
        """Everything up to one of `ends`, which stays; "" is the end of the formula.  -> a list of MathML"""
        parts, operator = [], True          # a minus that follows no operand is a sign
        while self.peek() not in ends:
            if not self.peek():
                raise self.error(f"{' or '.join(ends)} is missing")
            text = self.peek()
            parts.append(self.scripted(operator))
            operator = text in INFIX or SIGNS.get(text.lstrip("\\")) in INFIX
        return parts

    def row(self, *ends):
        return in_a_row(self.parts(*ends))

    def group(self):
        """What is in braces."""
        self.expect("{")
        inner = self.row("}")
        self.expect("}")
        return inner

    def argument(self):
        return self.group() if self.peek() == "{" else self.atom(True)

    def scripted(self, prefix=False):
        name = self.peek().removeprefix("\\")
        limits, space = name in LIMITS, SPACE * (name in FUNCTIONS)
        base, below, above = self.atom(prefix), "", ""
        while self.peek() in ("_", "^") or self.peek().startswith("'"):
            mark = self.next()
            if mark.startswith("'"):
                above += f"<mo>{'′' * len(mark)}</mo>"
            elif mark == "_":
                below = self.argument()
            else:
                above = self.argument()
        if not below and not above:
            return base
        kinds = ("munderover", "munder", "mover") if limits else ("msubsup", "msub", "msup")
        kind = kinds[0] if below and above else kinds[1] if below else kinds[2]
        marked = f"<{kind}>{base}{below}{above}</{kind}>"
        return f"<mrow>{marked}{space}</mrow>" if space else marked

    def fenced(self, opening, stretchy):
        r"""Up to the bracket that closes it.  With \left any pair does, and both grow with what is between."""
        if stretchy:
            inner = self.row("\\right")
            self.expect("\\right")
            closing = self.next()
        else:
            closing = FENCES[opening]
            closing = f"\\{closing}" if closing in BARS else closing
            inner = self.row(closing)
            self.expect(closing)
        marks = [BARS.get(mark.lstrip("\\"), mark) for mark in (opening, closing)]
        grow = f'stretchy="{str(stretchy).lower()}"'
        return (f'<mrow><mo {grow} form="prefix">{marks[0]}</mo>{inner}'
                f'<mo {grow} form="postfix">{marks[1]}</mo></mrow>')

    def atom(self, prefix=False):
        t = self.next()
        name, _, words = t.removeprefix("\\").removesuffix("}").partition("{") if t[0] == "\\" and t != "\\}" else ("", 0, "")
        if t == "{":
            self.place -= 1
            return self.group()
        if t in FENCES or name in FENCES:
            return self.fenced(name or t, False)
        if t.isdigit():
            return f"<mn>{t}</mn>"
        if t.isalpha():
            return f"<mi>{t}</mi>"
        if t in ("|", "\\|"):
            return f'<mo stretchy="false" lspace="0.1em" rspace="0.1em">{BARS.get(name, "|")}</mo>'
        if t in ("+", "-") and prefix:
            return f'<mo form="prefix">{t.replace("-", "−")}</mo>'
        if t in ("=", ":=", "+", "-", ",", "*", "/"):
            return f"<mo>{t.replace('-', '−').replace('*', '∗')}</mo>"
        if name in LETTERS:
            return f"<mi>{LETTERS[name]}</mi>"
        if name in FUNCTIONS:
            return f"<mi>{name}</mi>" + SPACE * (name not in LIMITS)
        if name in SIGNS or t in ("\\{", "\\}"):
            return f'<mo stretchy="false">{SIGNS.get(name, t[1])}</mo>' if name not in TALL else f"<mo>{SIGNS[name]}</mo>"
        if name in ALPHABETS:
            return "".join(f"<mi>{self.letter(letter, ALPHABETS[name])}</mi>" for letter in words)
        if name == "text":
            return f"<mtext>{escape(words).replace(' ', chr(160))}</mtext>"
        if name in ("mathrm", "operatorname"):
            return f"<mi>{words}</mi>"
        if name in ACCENTS:
            return f'<mover accent="true">{self.group()}<mo stretchy="false">{ACCENTS[name]}</mo></mover>'
        if name == "frac":
            return f"<mfrac>{self.group()}{self.group()}</mfrac>"
        if name in ("underset", "stackrel"):
            other, base = self.group(), self.group()
            if name == "underset":
                return f"<munder>{base}{other}</munder>"
            return f"<mover>{base.replace(' stretchy=' + chr(34) + 'false' + chr(34), '')}{other}</mover>"
        if name in ("overbrace", "underbrace"):
            return f'<mrow class="{name}">{self.group()}</mrow>'      # a line: braces grow in mathematical fonts alone
        if name == "left":
            return self.fenced(self.next(), True)
        if name == "big":
            return f'<mo stretchy="false">{self.next()}</mo>'
        if name == "quad":
            return '<mspace width="1em"/>'
        if name == "begin":
            return self.table(words)
        raise self.error(f"{t}, which is not among what this reads,")

    def letter(self, t, alphabet):
        for name in (f"MATHEMATICAL {alphabet} {'CAPITAL' if t.isupper() else 'SMALL'} {t}", f"{alphabet} CAPITAL {t}"):
            try:
                return unicodedata.lookup(name)
            except KeyError:
                pass
        raise self.error(f"no {alphabet.lower()} {t}")

    def table(self, kind):
        """Rows of cells up to the end of a bmatrix, whose brackets grow, or of an aligned, which is set flush left."""
        rows, end = [[]], "\\\\"
        while end != f"\\end{{{kind}}}":
            rows[-1].append(self.row("&", "\\\\", f"\\end{{{kind}}}"))
            end = self.next()
            if end == "\\\\":
                rows.append([])
        if kind == "bmatrix":
            return f"<mrow><mo>[</mo>{in_a_table(rows)}<mo>]</mo></mrow>"
        return in_a_table(rows, 'class="lines" displaystyle="true"')


def in_a_table(rows, attributes=""):
    cells = "".join("<mtr>" + "".join(f"<mtd>{cell}</mtd>" for cell in row) + "</mtr>" for row in rows)
    return f"<mtable {attributes}>{cells}</mtable>".replace(" >", ">")


def in_a_row(parts):
    return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"


def length(mark):
    """About how many letters wide a part is."""
    small = sum(len(re.sub("<[^>]*>", "", m)) for m in re.findall(r"<m(?:sub|sup)>.*?</m(?:sub|sup)>", mark))
    return len(re.sub("<[^>]*>", "", mark)) - small / 4


def in_lines(parts, most=30):
    """A row that is too long for a phone, broken after = and before + and -, where it has these outside of brackets."""
    rows, width = [[]], 0
    for i, part in enumerate(parts):
        ahead = length(part) + sum(map(length, itertools.takewhile(lambda p: not BEFORE.match(p), parts[i + 1:])))
        if rows[-1] and (BEFORE.match(part) or i and AFTER.match(parts[i - 1])) and width + ahead > most:
            rows.append(['<mspace width="1em"/>'])
            width = 2
        rows[-1].append(part)
        width += length(part)
    if len(rows) == 1:
        return in_a_row(parts)
    return in_a_table([[in_a_row(row)] for row in rows], 'class="lines" displaystyle="true"')


def mathml(tex, block=True):
    """A formula in a subset of LaTeX -> a `math` element, with the LaTeX inside for those who copy it.  ValueError says
    what it cannot read."""
    parts = Formula(tex).parts("")
    row = in_lines(parts) if block else in_a_row(parts)
    return (f'<math display="{"block" if block else "inline"}"><semantics>{row}'
            f'<annotation encoding="application/x-tex">{escape(tex)}</annotation></semantics></math>')


# ------------------------------------------------------------------------------------------ tags in the code

class Tag(NamedTuple):
    """A number that a comment, docstring or other string carries."""
    line: int               # of the number itself, from 1
    columns: tuple          # first and past the last
    entries: tuple          # (paper, number) of each
    ranged: bool            # lines 3-7
    kind: str               # "comment" at the end of a line, "banner" on a line of its own, "docstring", "module", "string"
    note: str               # what a comment says after it


class Place(NamedTuple):
    """Lines of code that compute an entry."""
    file: str
    first: int
    last: int
    name: str               # the function or class, "" at the top of a file
    note: str


NAMES = {paper.tag: key for key, paper in PAPERS.items() if paper.tag}
SCRIPTS = {paper.script: key for key, paper in PAPERS.items() if paper.script}
TAG = re.compile(r"(?:(?P<paper>" + "|".join(NAMES) + r"|[A-Z]\w+(?:\s+et\s+al\.)?\s+(?:19|20)\d\d)(?:'s|,)?\s+)?"
                 r"(?:Alg\.\s+1,?\s+)?"
                 r"(?P<tag>\b(?P<kind>[Ee]qs?\.|lines?)\s+(?P<numbers>\d+(?:(?:\s*-\s*|,\s+|\s+and\s+|\s+to\s+)\d+)*))")


class Source:
    """A file of the project: its text, its tree and the tags that it carries."""

    def __init__(self, name, text=None):
        self.name = name
        self.text = (ROOT / name).read_text() if text is None else text
        self.lines = self.text.splitlines()
        self.tree = ast.parse(self.text)
        self.tokens = list(tokenize.generate_tokens(io.StringIO(self.text).readline))
        self.paper = SCRIPTS.get(name)
        self.tags = list(self.find_tags())

    def find_tags(self):
        docstrings = {}
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, False) is not None:
                docstrings[node.body[0].lineno] = "module" if isinstance(node, ast.Module) else "docstring"
        for t in self.tokens:
            if t.type == token.COMMENT:
                kind = "banner" if self.lines[t.start[0] - 1].lstrip().startswith("#") else "comment"
            elif t.type == token.STRING or token.tok_name[t.type] == "FSTRING_MIDDLE":
                kind = docstrings.get(t.start[0], "string") if t.string.startswith('"""') else "string"
            else:
                continue
            for m in TAG.finditer(t.string):
                before = t.string[:m.start("tag")]
                line, column = t.start[0] + before.count("\n"), m.start("tag")
                column = len(before) - before.rindex("\n") - 1 if "\n" in before else t.start[1] + column
                entries, ranged = self.entries(m)
                note = t.string[m.end():].split(";")[0].strip(" ,") if kind == "comment" else ""
                note = "" if TAG.match(note) or note[:1].isdigit() else note
                yield Tag(line, (column, column + len(m["tag"])), entries, ranged, kind, note)

    def entries(self, m):
        """-> the (paper, number) pairs of a match, and whether it has a range; paper None where none is named."""
        kind = "line" if m["kind"].startswith("line") else "eq."
        numbers, ranged = [], False
        for part in re.split(r",\s+|\s+and\s+", m["numbers"]):
            first, _, last = re.sub(r"\s*(-|to)\s*", "-", part).partition("-")
            numbers += range(int(first), int(last or first) + 1)
            ranged |= bool(last)
        paper = re.sub(r"\s+(et\s+al\.\s+)?", " ", m["paper"] or "")
        if paper and paper not in NAMES:
            return tuple(("others", f"{paper} {kind} {n}") for n in numbers), ranged
        return tuple((NAMES.get(paper, self.paper), f"{kind} {n}") for n in numbers), ranged

    # ------------------------------------------------------------------------------------------- places

    def definitions(self):
        """(name, node) of every function and class, methods as Class.method."""
        def walk(node, prefix):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                    yield prefix + child.name, child
                    yield from walk(child, f"{prefix}{child.name}.")
                elif isinstance(child, ast.stmt):
                    yield from walk(child, prefix)
        return walk(self.tree, "")

    def around(self, line):
        """-> name and node of the innermost definition that holds a line, or "", None."""
        held = [(name, node) for name, node in self.definitions() if start(node) <= line <= node.end_lineno]
        return held[-1] if held else ("", None)

    def statement(self, line):
        """First and last line of the innermost statement at a line, or of its head if it has a body."""
        best = line, line
        for node in ast.walk(self.tree):
            if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno:
                last = node.body[0].lineno - 1 if getattr(node, "body", None) else node.end_lineno
                if line <= last and (best == (line, line) or last - node.lineno <= best[1] - best[0]):
                    best = node.lineno, last
        return best

    def paragraph(self, line):
        """First and last line of what stands between two blank lines."""
        first = last = line
        _, node = self.around(line)
        top, bottom = (node.body[0].lineno, node.end_lineno) if node else (1, len(self.lines))
        if node and ast.get_docstring(node) is not None:
            top = node.body[0].end_lineno + 1
        while first > top and self.lines[first - 2].strip():
            first -= 1
        while last < bottom and self.lines[last].strip():
            last += 1
        return first, last

    def place(self, first, last, note=""):
        return Place(self.name, first, last, self.around(first)[0], note)

    def by_definition(self, where):
        """"age" -> the definition of that name; "age: opt.E" -> the paragraph of its update that moves just opt.E."""
        name, _, moved = where.partition(": ")
        node = dict(self.definitions()).get(name)
        if node is None:
            return []
        if not moved:
            return [self.place(start(node), node.end_lineno)]
        return [self.place(*self.paragraph(call.lineno)) for call in ast.walk(node)
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "update"
                and ", ".join(map(ast.unparse, call.args[1:])) == moved]


def start(node):
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


def read_code(names=CODE):
    return {name: Source(name) for name in names}


SHORT = 20                  # lines: of a function that its docstring's tag lights as a whole in any case
EXACT, FUNCTION, RANGE, ABOUT, LOOSE = range(5)     # what a tag stands for: its line, a short function, "lines 3-7", ...


def find_places(code, equations=EQUATIONS):
    """-> {entry: [Place, ...]}: where the code computes each, the most exact tags first.

    The end of a line, or the docstring of a short function, outdoes a range ("lines 3-7") in a banner, and this any other
    docstring, which then stands for all of its function.
    """
    ranks = {}                                              # (paper, number) -> {rank: places}
    for source in code.values():
        for tag in source.tags:
            if tag.kind in ("module", "string"):
                continue
            if tag.kind == "comment":
                rank, lines = EXACT, source.statement(tag.line)
            elif tag.kind == "banner":
                others = any(t.ranged for t in source.tags if t.line == tag.line and t.kind == "banner")
                lines = (tag.line, tag.line) if others and not tag.ranged else source.paragraph(tag.line)
                rank = RANGE if tag.ranged else EXACT
            else:
                _, node = source.around(tag.line)
                lines = start(node), node.end_lineno
                short = isinstance(node, ast.FunctionDef) and lines[1] - lines[0] < SHORT
                rank = LOOSE if tag.ranged else FUNCTION if short else ABOUT
            for entry in tag.entries:
                ranks.setdefault(entry, {}).setdefault(rank, []).append(source.place(*lines, tag.note))
    found = {}
    for e in equations:
        ranked = ranks.get((e.paper, e.number), {})
        exact = ranked.get(EXACT, []) + ranked.get(FUNCTION, []) or ranked.get(min(ranked, default=LOOSE), [])
        named = code[PAPERS[e.paper].script].by_definition(e.where) if e.where else []
        found[e] = [*named, *(place for place in exact if place not in named)]
    numbered = {(e.paper, e.number): e for e in equations}
    for e in equations:
        others = [place for number in e.by for place in found[numbered[e.paper, number]]]
        found[e] = found[e] + [place._replace(note="") for place in others if place not in found[e]]
    return found


# ------------------------------------------------------------------------------- differences, flags, pictures

SHARED = ("--reencode-weight",)             # a flag of several objectives, which does not say which of them is meant


class Difference(NamedTuple):
    title: str
    parts: tuple            # (heading or "", text) pairs


def find_differences(key):
    """What the method's page, or else its docstring, lists under "Differences"."""
    page, script = ROOT / ".github" / f"{key}.md", ROOT / PAPERS[key].script
    found = differences_of_page(page.read_text()) if page.exists() else []
    return found or differences_of_docstring(ast.get_docstring(ast.parse(script.read_text())) or "")


def differences_of_page(text):
    """Rows of the tables, or items of the lists, under headings that name differences."""
    found, level, heads, group = [], 0, None, ""
    for line in text.splitlines():
        if m := re.match(r"(#+) (.*)", line):
            if len(m[1]) <= level:
                level = 0
            if not level and "difference" in m[2].lower():
                level = len(m[1])
            heads, group = None, m[2]
        elif not level:
            pass
        elif line.startswith("|"):
            cells = [plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if heads is None:
                heads = cells
            elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells) and heads[0] == "":
                parts = tuple((head, cell) for head, cell in zip(heads[1:], cells[1:], strict=False)
                              if cell not in ("", "none"))
                twice = any(d.title == cells[0] for d in found)
                found.append(Difference(f"{cells[0]} ({group})" if twice else cells[0], parts))
        elif m := re.match(r"[-*] (?:\*\*)?(.+?)(?:\*\*|:)\s*(.*)", line):
            found.append(Difference(plain(m[1]).rstrip(":"), (("", plain(m[2])),)))
        elif line.startswith("  ") and found and heads is None:
            (head, text), = found[-1].parts
            found[-1] = Difference(found[-1].title, ((head, f"{text} {plain(line)}"),))
        elif not line.strip():
            heads = None
    return found


def plain(markdown):
    """Markdown without emphasis and links; `code` stays."""
    markdown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown.replace("\\|", "|"))
    return re.sub(r"\*\*(.+?)\*\*", r"\1", markdown).strip()


def differences_of_docstring(text):
    """A title of up to 21 characters after four spaces, and what is said of it from column 26 on."""
    found, inside = [], False
    for line in text.splitlines():
        if line.startswith("Differences"):
            inside = True
        elif inside and re.match(r" {4}\S", line):
            found.append(Difference(line[4:26].strip(), (("", line[26:].strip()),)))
        elif inside and found and line.startswith(" " * 26):
            found[-1] = Difference(found[-1].title, (("", f"{found[-1].parts[0][1]} {line.strip()}"),))
        elif inside and found and line.startswith("`"):
            break
    return [Difference(d.title, (("", re.sub(r"\s+", " ", d.parts[0][1])),)) for d in found]


def concerns(difference, equation):
    """Whether a difference names the equation's number, one of its flags, or is named by it."""
    text = f"{difference.title} {' '.join(part for _, part in difference.parts)}"
    number = equation.paper, equation.number
    source = Source(PAPERS[equation.paper].script, "")
    named = any(number in source.entries(m)[0] for m in TAG.finditer(text))
    title = simple(difference.title)
    return (named or any(re.search(rf"{flag}(?![\w-])", text) for flag in equation.flags if flag not in SHARED)
            or any(title.startswith(simple(begin)) for begin in equation.differs))


def simple(title):
    return title.lower().replace("−", "-").replace("‖", "||").replace("`", "").replace(" ", "")


def find_flags(code, script):
    """{flag: help} of a script's parser, read without running it."""
    found = {}
    for name in ("common.py", script):
        for node in ast.walk(code[name].tree):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                flag, text = node.args[0].value, next((k.value for k in node.keywords if k.arg == "help"), None)
                if isinstance(flag, str) and flag.startswith("--") and text is not None:
                    try:
                        found[flag] = ast.literal_eval(text)
                    except ValueError:                      # a help text that is put together when it runs
                        found[flag] = ""
    return found


def find_pictures(document):
    """(file, what it shows) of each picture in a Markdown file that exists, in its order."""
    if not document.exists():
        return []
    found = {}
    for line in document.read_text().splitlines():
        for m in re.finditer(r"!\[([^\]]*)\]\(([^)\s]+)\)|<img\s[^>]*>", line):
            src, alt = m[2], m[1]
            if src is None:
                attributes = dict(re.findall(r'(\w+)="([^"]*)"', m[0]))
                src, alt = attributes.get("src", ""), attributes.get("alt", "")
            file = (document.parent / src).resolve()
            if file.is_file():
                found.setdefault(file, alt or file.stem)
    return list(found.items())


def find_tests():
    """{name: file} of every test, without running any."""
    return {node.name: path.name for path in sorted((ROOT / "tests").glob("test_*.py"))
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


# ------------------------------------------------------------------------------------------------ the code, as HTML

class Block(NamedTuple):
    file: str
    name: str
    first: int
    last: int
    called: bool            # shown because a step calls it


LONG = 70                   # lines: of a longer class only the methods that are needed are shown


def find_blocks(code, paper, found):
    """The definitions that a page shows: those with an entry of the paper, then the functions that these call."""
    blocks, script = {}, PAPERS[paper].script
    for entry, places in found.items():
        for place in places:
            if entry.paper == paper:
                block = block_of(code[place.file], place)
                blocks[block[:2]] = block
    for round_ in range(2):                                 # the script's own helpers, and what they call
        for block in list(blocks.values()):
            if round_ and block.file != script:
                continue
            for called in calls(code, block):
                blocks.setdefault(called[:2], called)
    order = [script, *(name for name in CODE if name != script)]
    return sorted(blocks.values(), key=lambda b: (order.index(b.file), b.first))


def block_of(source, place):
    parts = place.name.split(".")
    nodes = dict(source.definitions())
    if not place.name:
        return Block(source.name, f"line {place.first}", place.first, place.last, False)
    node = nodes[parts[0]]
    name = parts[0]
    if isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno > LONG and len(parts) > 1:
        name, node = ".".join(parts[:2]), nodes[".".join(parts[:2])]
    return Block(source.name, name, start(node), node.end_lineno, False)


def calls(code, block):
    """Blocks of the functions of the same file, or of common.py, that a block calls."""
    source, homes = code[block.file], {}
    for name in ("common.py", block.file):
        homes.update({node.name: (name, node) for node in code[name].tree.body if isinstance(node, ast.FunctionDef)})
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and block.first <= node.lineno <= block.last:
            name = ast.unparse(node.func).removeprefix("common.")
            if name in homes and name != block.name:
                file, called = homes[name]
                yield Block(file, name, start(called), called.end_lineno, True)


def segments(source):
    """{line: [(first column, past the last, class), ...]} of what is coloured."""
    found, before = {}, None
    for t in source.tokens:
        kind = {token.COMMENT: "c", token.STRING: "s", token.NUMBER: "n"}.get(t.type)
        if token.tok_name[t.type].startswith("FSTRING"):
            kind = "s"
        if t.type == token.NAME:
            kind = "k" if keyword.iskeyword(t.string) else "d" if before in ("def", "class") else None
        before = t.string
        if kind:
            for line in range(t.start[0], t.end[0] + 1):
                first = t.start[1] if line == t.start[0] else 0
                last = t.end[1] if line == t.end[0] else len(source.lines[line - 1])
                found.setdefault(line, []).append((first, last, kind))
    return found


def render_line(source, number, coloured, page, known):
    """A line of code as HTML: coloured, its tags as links to their entries."""
    text = source.lines[number - 1]
    links = {}
    for tag in source.tags:
        if tag.line == number and (entry := next((e for e in tag.entries if e in known), None)):
            links[tag.columns[0]] = tag.columns[1], known[entry]
    out, column = [], 0
    for first, last, kind in [*coloured.get(number, []), (len(text), len(text), None)]:
        gap = text[column:first]
        out.append(escape(gap.rstrip() + "  " if kind == "c" and text[:first].strip() else gap))
        inner, at = [], first
        for here, (end, entry) in sorted(links.items()):
            if first <= here and end <= last:
                target = f"#{entry.id}" if entry.paper == page else f"{entry.paper}.html#{entry.id}"
                inner.append(f'{escape(text[at:here])}<a href="{target}">{escape(text[here:end])}</a>')
                at = end
        inner.append(escape(text[at:last]))
        out.append(f'<span class="{kind}">{"".join(inner)}</span>' if kind else "".join(inner))
        column = last
    return "".join(out)


def render_block(code, block, page, lit, chips, known):
    source = code[block.file]
    coloured = segments(source)
    rows = []
    for number in range(block.first, block.last + 1):
        entries = lit.get((block.file, number), [])
        marks = f' class="on" data-eq="{" ".join(e.id for e in entries)}"' if entries else ""
        ends = "".join(f' <a class="chip" href="#{e.id}">{escape(e.number)}</a>'
                       for e in chips.get((block.file, number), []))
        line = render_line(source, number, coloured, page, known)
        rows.append(f'<span id="{anchor(block.file, number)}" data-n="{number}"{marks}>{line}{ends}\n</span>')
    title = f"{escape(block.file)} <b>{escape(block.name)}</b>" + (" <i>called above</i>" if block.called else "")
    return (f'<section class="block" aria-label="{escape(block.file)}, {escape(block.name)}"><h3>{title}</h3>'
            f'<pre><code>{"".join(rows)}</code></pre></section>')


def anchor(file, line):
    return f"{file.removesuffix('.py')}-{line}"


# ----------------------------------------------------------------------------------------------------- the pages

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --soft: #59636e; --line: #d5dae0; --card: #f6f8fa;
  --link: #0b5cc0; --lit: #fff3c4; --edge: #b7791f; --k: #b3003c; --s: #0a5c36; --c: #5f6975; --n: #0b5cc0; --d: #6b2fb3 }
@media (prefers-color-scheme: dark) { :root { --back: #0f1318; --text: #e4e8ec; --soft: #9aa5b1; --line: #2c343d;
  --card: #171c22; --link: #79b4ff; --lit: #4a3b0c; --edge: #e0b040; --k: #ff8aa5; --s: #7fd6a2; --c: #95a1ad;
  --n: #8cc0ff; --d: #cda6ff } }
* { box-sizing: border-box }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back) }
a { color: var(--link) }
:focus-visible { outline: 2px solid var(--edge); outline-offset: 1px }
header { padding: .5rem 1rem; border-bottom: 1px solid var(--line) }
header nav a { margin-right: .9em; white-space: nowrap }
header nav a[aria-current] { color: inherit; font-weight: 600; text-decoration: none }
h1 { font-size: 1.25rem; margin: .2rem 0 }
h2 { font-size: 1.05rem; margin: 1.6rem 0 .5rem }
h3 { font-size: 1rem; margin: 0 }
p { margin: .4rem 0 }
.soft, .soft code { color: var(--soft); font-size: .875rem }
code, pre { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .8125rem }
main { max-width: 60rem; margin: 0 auto; padding: 0 1rem 3rem }
main.sides { max-width: none; padding: 0; display: grid; grid-template-columns: minmax(22rem, 1fr) minmax(0, min(60rem, 64vw)) }
body.page { display: flex; flex-direction: column; height: 100vh; height: 100dvh }
body.page main { flex: 1; min-height: 0 }
.side { overflow: auto; padding: 0 1rem 3rem; min-width: 0; min-height: 0 }
.side + .side { border-left: 1px solid var(--line); padding: 0 .5rem 3rem }
.numbers { display: flex; flex-wrap: wrap; gap: .25rem; margin: .6rem 0 }
.numbers a, .chip { border: 1px solid var(--line); border-radius: .3rem; padding: 0 .4em; text-decoration: none;
  font: .8125rem/1.7 system-ui, sans-serif; white-space: nowrap }
.chip { background: var(--card) }
article.eq { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem; margin: .6rem 0; cursor: pointer }
article.eq.lit, article.eq:target { border-color: var(--edge); box-shadow: inset .25rem 0 var(--edge);
  background: color-mix(in srgb, var(--lit) 45%, var(--back)) }
.formula { overflow-x: auto; padding: .35rem 0 }
math { font-size: 1.1rem; font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", "Noto Sans Math", math }
math .overbrace { border-top: 1px solid; border-radius: .3em; padding-top: .2em }
math .underbrace { border-bottom: 1px solid; border-radius: .3em; padding-bottom: .25em }
.formula math { text-align: left; display: block math; width: max-content; min-width: 100% }
math .lines mtd, mtable.lines mtd { text-align: left; padding: .15em 0 }
.print { border-left: 3px solid var(--edge); padding-left: .6rem }
ul { margin: .3rem 0; padding-left: 1.2rem }
li { margin: .2rem 0 }
.block h3 { font-weight: 400; font-size: .875rem; color: var(--soft); margin: 1rem 0 .2rem }
.block h3 b { color: var(--text) }
pre { margin: 0; padding: .4rem 0; background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  overflow-x: auto; line-height: 1.45; tab-size: 4 }
pre code { display: block; width: max-content; min-width: 100%; font-size: .75rem }
pre code > span { display: block; padding: 0 .3rem 0 3.5em; text-indent: -3em; scroll-margin: 30vh }
pre code > span::before { content: attr(data-n); display: inline-block; width: 2.4em; margin-right: .6em; text-align: right;
  color: var(--soft); text-indent: 0; user-select: none }
pre code > span.on { cursor: pointer; box-shadow: inset 3px 0 color-mix(in srgb, var(--edge) 55%, transparent) }
pre code > span.lit, pre code > span:target { background: var(--lit); box-shadow: inset .3rem 0 var(--edge) }
.k { color: var(--k) } .s { color: var(--s) } .c { color: var(--c) } .n { color: var(--n) }
.d { color: var(--d); font-weight: 600 }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
figure { margin: 0; max-width: 100% }
img { max-width: 100%; max-height: 26rem; height: auto; background: #fff }
figcaption { font-size: .8125rem; color: var(--soft); max-width: 30rem }
table { border-collapse: collapse } td, th { text-align: left; vertical-align: top; padding: .15rem .9rem .15rem 0 }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
@media (max-width: 56rem) {
  main.sides { grid-template-columns: minmax(0, 1fr); grid-template-rows: minmax(0, 11fr) minmax(0, 9fr) }
  .side { padding: 0 .7rem 2rem } .side + .side { border-left: 0; padding: 0 .3rem 2rem; border-top: 3px solid var(--edge) }
  pre code { width: auto } pre code > span { white-space: pre-wrap; overflow-wrap: anywhere; padding-right: .4rem;
    scroll-margin: 15vh }
  header nav a { margin-right: .4em; font-size: .875rem } pre code { font-size: .6875rem } math { font-size: 1rem } h1 { font-size: 1.05rem } header { padding: .3rem .7rem } header .soft { display: none }
}
@media print {
  :root { color-scheme: light; --back: #fff; --text: #000; --soft: #444; --card: #fff; --link: #000; --lit: #fff }
  body.page { display: block; height: auto } main.sides { display: block } .side { overflow: visible; padding: 0 }
  .side + .side { border: 0; break-before: page } article.eq { break-inside: avoid } header nav, .numbers { display: none }
  .formula { overflow: visible } pre code { width: auto; font-size: 7pt } pre { border: 0; overflow: visible }
  pre code > span { white-space: pre-wrap; overflow-wrap: anywhere }
}
"""

SCRIPT = """
const calm = matchMedia('(prefers-reduced-motion: reduce)'), said = document.getElementById('said');
let current = '';
function go(e) { e.scrollIntoView({block: 'center', behavior: calm.matches ? 'auto' : 'smooth'}); }
function show(id, from) {
  const card = document.getElementById(id), lines = [...document.querySelectorAll(`[data-eq~="${id}"]`)];
  document.querySelectorAll('.lit').forEach(e => e.classList.remove('lit'));
  if (!card || !card.matches('.eq')) return;
  card.classList.add('lit');
  lines.forEach(e => e.classList.add('lit'));
  if (from !== 'code' && lines.length) go(lines[0]);
  if (from !== 'paper') go(card);
  current = id;
  history.replaceState(null, '', '#' + id);
  said.textContent = card.dataset.number + ': ' + (lines.length ? lines.length + ' lines of code are lit' : 'no line of code');
}
document.addEventListener('click', event => {
  const link = event.target.closest('a'), line = event.target.closest('[data-eq]'), card = event.target.closest('.eq');
  if (getSelection().toString()) return;
  if (link) {
    const id = (link.getAttribute('href') || '').slice(1), target = document.getElementById(id);
    if (link.getAttribute('href')[0] !== '#' || !target) return;
    event.preventDefault();
    if (target.matches('.eq')) show(id, link.closest('pre') ? 'code' : card ? 'paper' : '');
    else { if (card) show(card.id, 'paper'); go(target); }
  } else if (line) {
    const ids = line.dataset.eq.split(' ');
    show(ids[(ids.indexOf(current) + 1) % ids.length], 'code');
  } else if (card) show(card.id, 'paper');
});
const follow = () => {
  const id = location.hash.slice(1), line = document.getElementById(id);
  if (!line) return;
  if (line.matches('.eq')) show(id); else go(line);
};
addEventListener('hashchange', follow);
follow();
"""


def page(title, heading, body, current, kind="", script=""):
    links = " ".join(
        f'<a href="{name}.html"{" aria-current=" + chr(34) + "page" + chr(34) if name == current else ""}>{text}</a>'
        for name, text in [("index", "Overview"), *((key, p.tag or "Borrowed") for key, p in PAPERS.items())])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body{f' class="{kind}"' if kind else ""}>
<header><nav aria-label="Pages">{links}</nav>{heading}</header>
{body}
{f'<div id="said" class="hidden" role="status"></div><script>{script}</script>' if script else ""}
</body>
</html>
"""


def card(code, e, places, differences, flags, tests):
    """An entry on the left."""
    paper = PAPERS[e.paper]
    parts = [f'<h3><a href="#{e.id}">{escape(label(e))}</a></h3><div class="formula">{mathml(e.printed)}</div>',
             f"<p>{inline(e.says)}</p>"]
    if e.note or e.reading:
        reading = f'<div class="formula">{mathml(e.reading)}</div>' if e.reading else ""
        parts.append(f'<div class="print"><p><b>In print.</b> {inline(e.note)}{" We compute:" if e.reading else ""}</p>'
                     f'{reading}</div>')
    if places:
        links = ", ".join(f'<a href="#{anchor(p.file, p.first)}">{escape(p.file)}:{lines(p)}</a> <code>{escape(p.name)}</code>'
                          + (f" ({escape(p.note)})" if p.note else "") for p in places)
        as_ = f" (as {' and '.join(e.by)})" if e.by else ""
        parts.append(f"<p>Code{as_}: {links}</p>")
    else:
        parts.append(f"<p>No line of code: {inline(e.none[0].lower() + e.none[1:])}</p>")
    if symbols := symbols_of(e.printed + e.reading, paper.symbols):
        parts.append('<p class="soft">' + "; ".join(f"{mathml(tex, False)} {escape(shape)} {escape(what)}"
                                                   for tex, shape, what in symbols) + "</p>")
    items = [f"<b>{inline(d.title)}</b>: " + "; ".join(f"{escape(h)}: {inline(t)}" if h else inline(t) for h, t in d.parts)
             for d in differences]
    items += [f"<code>{flag}</code> {inline(flags[flag])}" for flag in e.flags if flags.get(flag)]
    if items:
        parts.append('<div class="soft">Differences and flags:<ul>' + "".join(f"<li>{i}</li>" for i in items) + "</ul></div>")
    if e.tests:
        files = itertools.groupby(e.tests, key=lambda name: tests.get(name, ""))
        parts.append('<p class="soft">Tests: ' + "; ".join(
            f"{file}: " + ", ".join(f"<code>{name}</code>" for name in names) for file, names in files) + "</p>")
    return (f'<article class="eq" id="{e.id}" data-number="{escape(e.number)}">' + "".join(parts) + "</article>")


def label(e):
    return e.number.replace("eq.", "Equation").replace("line", "Algorithm 1, line")


def lines(place):
    return str(place.first) if place.first == place.last else f"{place.first}-{place.last}"


def inline(text):
    """Text with `code` in it -> HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def symbols_of(tex, symbols):
    """Those of a paper's symbols that a formula has."""
    tex = re.sub(r"\\(?:boldsymbol|mathbf)\{(\w)\}", r"\1", re.sub(r"\\(?:text|operatorname|mathrm)\{[^}]*\}", "", tex))
    found = []
    for symbol in sorted(symbols, key=lambda s: -len(s[0])):
        pattern = rf"(?<![\\a-zA-Z]){re.escape(symbol[0])}(?![a-zA-Z])" if symbol[0][0] != "\\" else (
            rf"{re.escape(symbol[0])}(?![a-zA-Z])")
        if re.search(pattern, tex):
            found.append(symbol)
            tex = re.sub(pattern, " ", tex)
    return [symbol for symbol in symbols if symbol in found]


def method_page(code, key, found, tests, copied):
    paper, entries = PAPERS[key], [e for e in EQUATIONS if e.paper == key]
    differences = find_differences(key) if paper.script else []
    flags = find_flags(code, paper.script) if paper.script else {}
    near = {e: [d for d in differences if concerns(d, e)] for e in entries} if differences else {}
    left = ['<div class="numbers">' + "".join(f'<a href="#{e.id}">{escape(e.number)}</a>' for e in entries) + "</div>"]
    if differences and not any(head for d in differences for head, _ in d.parts):
        left.append('<p class="soft">In differences P is the paper, C the released code.</p>')
    for section, group in itertools.groupby(entries, key=lambda e: "Algorithm 1" if "line" in e.number else e.section):
        title = paper.sections.get(section, "ALAE training, section 6" if section == "Algorithm 1" else "")
        left.append(f"<h2>{escape(section if section[0] == 'A' and len(section) > 3 else heading(section))}: "
                    f"{escape(title)}</h2>")
        left += [card(code, e, found[e], near.get(e, []), flags, tests) for e in group]
    rows = "".join(f"<tr><td>{mathml(tex, False)}</td><td>{escape(shape)}</td><td>{escape(what)}</td></tr>"
                   for tex, shape, what in paper.symbols)
    left.append(f"<h2>Symbols and shapes</h2><table>{rows}</table>")
    if rest := [d for d in differences if not any(d in some for some in near.values())]:
        left.append("<h2>Other differences</h2><ul>" + "".join(
            f"<li><b>{inline(d.title)}</b>: " + "; ".join(f"{escape(h)}: {inline(t)}" if h else inline(t) for h, t in d.parts)
            + "</li>" for d in rest) + "</ul>")
    left.append(gallery(copied.get(key, [])))
    lit, chips, known = {}, {}, {(e.paper, e.number): e for e in EQUATIONS}
    for e in entries:
        for place in found[e]:
            for line in range(place.first, place.last + 1):
                if e not in lit.setdefault((place.file, line), []):
                    lit[place.file, line].append(e)
            tagged = any((e.paper, e.number) in tag.entries and place.first <= tag.line <= place.last
                         for tag in code[place.file].tags)
            if not tagged and e not in chips.setdefault((place.file, place.first), []):
                chips[place.file, place.first].append(e)
    for some in lit.values():                               # a click takes the entry with the fewest lines first
        some.sort(key=lambda e: sum(p.last + 1 - p.first for p in found[e]))
    right = [render_block(code, block, key, lit, chips, known) for block in find_blocks(code, key, found)]
    links = " · ".join(f'<a href="{address}">{escape(text)}</a>' for text, address in paper.links)
    head = (f"<h1>{escape(paper.title)}</h1>"
            f'<p class="soft">{escape(paper.authors)}. The numbers are those of {escape(paper.edition)}. {links}</p>'
            if paper.script else f"<h1>{escape(paper.title)}</h1>")
    body = (f'<main class="sides"><div class="side" role="region" aria-label="The paper" tabindex="0">{"".join(left)}</div>'
            f'<div class="side" role="region" aria-label="The code" tabindex="0">{"".join(right)}</div></main>')
    return page(f"{paper.tag or paper.title} beside its code", head, body, key, "page", SCRIPT)


def heading(section):
    return f"Section {section}" if section[0].isdigit() or section.startswith("A.") else section.capitalize()


def gallery(pictures):
    if not pictures:
        return ""
    return '<h2>Pictures</h2><div class="pictures">' + "".join(
        f'<figure><img src="pictures/{file.name}" alt="{escape(alt)}" loading="lazy"><figcaption>{escape(alt)}</figcaption>'
        f"</figure>" for file, alt in pictures) + "</div>"


def index_page(copied):
    sections = []
    for key, paper in PAPERS.items():
        about = f"{paper.title}. {paper.authors}. The numbers are those of {paper.edition}."
        says = "".join(f'<li><a href="{key}.html#{e.id}">{escape(e.number)}</a> {inline(e.says)}</li>'
                       for e in EQUATIONS if e.paper == key)
        sections.append(f'<section><h2><a href="{key}.html">{escape(paper.tag or paper.title)}</a></h2>'
                        f"{f'<p>{escape(about)}</p>' if paper.script else ''}<ul>{says}</ul></section>")
    body = f"""<main>
<p>Each page has a paper's equations and algorithm lines on the left and the code that computes them on the right. Click an
equation, or move to its number with the tab key and press enter: its lines of code light up. Click a marked line: its
equation does. Formulas are as printed; what is wrong in print is said next to them.</p>
<p>The code names them by tags: <code># eq. 8</code> or <code># line 6</code> in a method's own file, <code># LIA eq. 3</code>
in a file that methods share.</p>
{"".join(sections)}
{gallery(copied.get("index", []))}
</main>"""
    return page("The papers beside the code", "<h1>The papers beside the code</h1>", body, "index")


def write(out):
    """Write the site into a folder, over an older one.  -> the pages"""
    code = read_code()
    found, tests = find_places(code), find_tests()
    copied = {key: find_pictures(ROOT / ".github" / f"{key}.md") for key in PAPERS}
    copied["index"] = find_pictures(ROOT / "README.md")
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for file in {file for pictures in copied.values() for file, _ in pictures}:
        shutil.copyfile(file, out / "pictures" / file.name)
    pages = {"index": index_page(copied), **{key: method_page(code, key, found, tests, copied) for key in PAPERS}}
    for name, text in pages.items():
        (out / f"{name}.html").write_text(text, encoding="utf-8")
    return [out / f"{name}.html" for name in pages]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the pages, made if there is none")
    out = parser.parse_args(argv).out
    try:
        pages = write(out)
    except OSError as e:
        print(f"error: cannot write {out}: {e.strerror}; take another folder", file=sys.stderr)
        return 2
    print(f"{len(pages)} pages: open {pages[0]} in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
