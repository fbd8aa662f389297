"""A subset of LaTeX as MathML, which browsers set without a script and screen readers read: `mathml(r"\\frac{1}{2}")`.

It is core MathML: letters of other alphabets are characters of their own, and nothing leans on a mathematical font.
"""
import html
import itertools
import re
import unicodedata

LETTERS = dict(alpha="α", beta="β", gamma="γ", epsilon="ϵ", eta="η", theta="θ", mu="μ", sigma="σ", tau="τ", phi="ϕ",
               ell="ℓ", Delta="Δ", nabla="∇")
SIGNS = {"in": "∈", "le": "≤", "circ": "∘", "sim": "∼", "leftarrow": "←", "mapsto": "↦", "leftrightarrow": "↔",
         "cdot": "⋅", "cdots": "⋯", "odot": "⊙", "ge": "≥", "ne": "≠",
         "sum": "∑", "int": "∫", "#": "#", "{": "{", "}": "}"}
TALL = ("sum", "int")
FUNCTIONS = ("log", "min", "max")
LIMITS = ("min", "max", "sum", "overbrace", "underbrace")   # have their indices below and above, not at their side
ALPHABETS = dict(mathbb="DOUBLE-STRUCK", mathcal="SCRIPT", mathbf="BOLD", boldsymbol="BOLD ITALIC")
WORDS = ("text", "mathrm", "operatorname", "begin", "end", *ALPHABETS)      # take plain words in braces
FENCES = {"(": ")", "[": "]", "\\lVert": "\\rVert"}
BARS = {"\\lVert": "‖", "\\rVert": "‖", "\\|": "‖", "|": "|"}
INFIX = set("=+-∘∼∈←↦↔⋅⊙≥≤≠,|/")

TOKEN = re.compile(r"\\(?:" + "|".join(WORDS) + r")\{[^}]*\}|\\[a-zA-Z]+|\\.|\d+|:=|'+|[^\s]")
SPACE = '<mspace width="0.1667em"/>'
STIFF = ' stretchy="false"'
BEFORE, AFTER = re.compile("<mo[^>]*>[+−]<"), re.compile("<mo[^>]*>(=|:=|≥|←)<")     # where a long row is broken
WIDEST = 30                 # letters of a row, on a phone


def mathml(tex, block=True):
    """A formula -> a `math` element, with the LaTeX inside for those who copy it; in a block of its own it is broken
    into lines if it is long.  Raises ValueError for what this cannot read."""
    parts = Formula(tex).parts("")
    row = in_lines(parts) if block else in_a_row(parts)
    return (f'<math display="{"block" if block else "inline"}"><semantics>{row}'
            f'<annotation encoding="application/x-tex">{html.escape(tex)}</annotation></semantics></math>')


class Formula:
    """A parser: `parts` reads up to a closing token, `atom` one thing, `scripted` it and its indices.  -> MathML"""

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
            operator = text in INFIX or SIGNS.get(text[1:]) in INFIX
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
        base, below, above = self.atom(prefix), "", ""
        while self.peek() in ("_", "^") or self.peek().startswith("'"):
            mark = self.next()
            if below if mark == "_" else above:
                raise self.error("two indices")
            if mark == "_":
                below = self.argument()
            else:
                above = self.argument() if mark == "^" else f"<mo>{'′' * len(mark)}</mo>"
        if not below and not above:
            return base
        both, low, high = ("munderover", "munder", "mover") if name in LIMITS else ("msubsup", "msub", "msup")
        kind = both if below and above else low if below else high
        marked = f"<{kind}>{base}{below}{above}</{kind}>"
        return f"<mrow>{marked}{SPACE}</mrow>" if name in FUNCTIONS else marked

    def fenced(self, opening, grows):
        r"""Up to the bracket that closes it.  With \left and \right any pair does, and both grow."""
        closing = "\\right" if grows else FENCES[opening]
        inner = self.row(closing)
        self.expect(closing)
        closing = self.next() if grows else closing
        grow = ' stretchy="true"' if grows else STIFF
        return (f'<mrow><mo{grow} form="prefix">{BARS.get(opening, opening)}</mo>{inner}'
                f'<mo{grow} form="postfix">{BARS.get(closing, closing)}</mo></mrow>')

    def atom(self, prefix=False):
        t = self.next()
        if t == "{":
            self.place -= 1
            return self.group()
        if t in FENCES:
            return self.fenced(t, False)
        if t in ("|", "\\|"):
            return f'<mo{STIFF} lspace="0.1em" rspace="0.1em">{BARS[t]}</mo>'
        if t.isdigit():
            return f"<mn>{t}</mn>"
        if t.isalpha():
            return f"<mi>{t}</mi>"
        if t in ("=", ":=", "+", "-", ",", "*", "/"):
            form = ' form="prefix"' if prefix and t in "+-" else ""
            return f"<mo{form}>{t.replace('-', '−').replace('*', '∗')}</mo>"
        if t[0] == "\\":
            name, _, words = t[1:].partition("{")
            return self.command(name or t[1:], words.removesuffix("}"))
        raise self.error(f"{t}, which is not among what this reads,")

    def command(self, name, words):
        if name in LETTERS:
            return f"<mi>{LETTERS[name]}</mi>"
        if name in FUNCTIONS:
            return f"<mi>{name}</mi>" + SPACE * (name not in LIMITS)
        if name in SIGNS:
            return f"<mo{'' if name in TALL else STIFF}>{SIGNS[name]}</mo>"
        if name in ALPHABETS:
            return "".join(f"<mi>{self.letter(letter, ALPHABETS[name])}</mi>" for letter in words)
        if name in ("mathrm", "operatorname"):
            return f"<mi>{words}</mi>"
        if name == "text":
            return f"<mtext>{html.escape(words).replace(' ', chr(160))}</mtext>"
        if name == "tilde":
            return f'<mover accent="true">{self.group()}<mo{STIFF}>˜</mo></mover>'
        if name == "frac":
            return f"<mfrac>{self.group()}{self.group()}</mfrac>"
        if name == "underset":
            below = self.group()
            return f"<munder>{self.group()}{below}</munder>"
        if name == "stackrel":
            above = self.group()
            return f"<mover>{self.group().replace(STIFF, '')}{above}</mover>"
        if name in ("overbrace", "underbrace"):             # a line, because braces grow in mathematical fonts alone
            return f'<mrow class="{name}">{self.group()}</mrow>'
        if name == "left":
            return self.fenced(self.next(), True)
        if name == "big":                                   # a bracket that may close in another line
            return f"<mo{STIFF}>{self.next()}</mo>"
        if name == "quad":
            return '<mspace width="1em"/>'
        if name == "begin":
            return self.table(words)
        raise self.error(f"\\{name}, which is not among what this reads,")

    def letter(self, letter, alphabet):
        case = "CAPITAL" if letter.isupper() else "SMALL"
        for name in (f"MATHEMATICAL {alphabet} {case} {letter}", f"{alphabet} {case} {letter}"):
            try:
                return unicodedata.lookup(name)
            except KeyError:
                pass
        raise self.error(f"no {alphabet.lower()} {letter}")

    def table(self, kind):
        """Rows of cells up to the end of a bmatrix, whose brackets grow, or of an aligned, which is set flush left."""
        rows, end, last = [[]], "", f"\\end{{{kind}}}"
        while end != last:
            rows[-1].append(self.row("&", "\\\\", last))
            end = self.next()
            if end == "\\\\":
                rows.append([])
        if kind == "bmatrix":
            return f"<mrow><mo>[</mo>{in_a_table(rows)}<mo>]</mo></mrow>"
        return in_a_table(rows, ' class="lines" displaystyle="true"')


def in_a_row(parts):
    return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"


def in_a_table(rows, attributes=""):
    cells = "".join("<mtr>" + "".join(f"<mtd>{cell}</mtd>" for cell in row) + "</mtr>" for row in rows)
    return f"<mtable{attributes}>{cells}</mtable>"


def in_lines(parts):
    """A row, broken after = and before + and - if it has these outside of brackets and is too long for a phone."""
    rows, width = [[]], 0
    for i, part in enumerate(parts):
        ahead = length(part) + sum(map(length, itertools.takewhile(lambda p: not BEFORE.match(p), parts[i + 1:])))
        may = rows[-1] and (BEFORE.match(part) or AFTER.match(parts[i - 1]))
        if may and width + ahead > WIDEST:
            rows.append(['<mspace width="1em"/>'])
            width = 2
        rows[-1].append(part)
        width += length(part)
    if len(rows) == 1:
        return in_a_row(parts)
    return in_a_table([[in_a_row(row)] for row in rows], ' class="lines" displaystyle="true"')


def length(part):
    """About how many letters wide some MathML is."""
    small = sum(len(re.sub("<[^>]*>", "", m)) for m in re.findall(r"<m(?:sub|sup)>.*?</m(?:sub|sup)>", part))
    return len(re.sub("<[^>]*>", "", part)) - small / 4
