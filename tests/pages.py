"""Write the papers next to the code, as a folder of web pages that need no network: python tests/pages.py OUT

index.html, and a page a method: on the left the paper's equations and the lines of its algorithm, what
each says and where we differ; on the right the code that computes them.  A click on one side lights up
the other.  The entries are in equations.py, how they are found in the code in tags.py.
"""
import argparse
import ast
import functools
import html
import itertools
import keyword
import re
import shutil
import sys
import token
from pathlib import Path
from typing import NamedTuple

from equations import EQUATIONS, PAPERS
from mathml import mathml
from tags import CODE, ROOT, TAG, entries_of, find_flags, find_places, find_tests, read_code, start

LONG = 70                   # lines: of a longer class only the methods that are needed are shown
HELPER = 25                 # lines: functions that are called are shown unless they are longer
ENTRIES = {(e.paper, e.number): e for e in EQUATIONS}


# -------------------------------------------------------------------------- differences, pictures

class Difference(NamedTuple):
    title: str
    parts: tuple            # (heading or "", text) pairs


def find_differences(key):
    """What the method's page, or else its docstring, lists under "Differences"."""
    page, script = ROOT / ".github" / f"{key}.md", ROOT / PAPERS[key].script
    found = differences_of_page(page.read_text(encoding="utf-8")) if page.exists() else []
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return found or differences_of_docstring(docstring)


def differences_of_page(text):
    """Rows of the tables whose first column has no heading, and items of the lists, under a heading
    that speaks of differences."""
    found, level, heads, group = [], 0, None, ""
    for line in text.splitlines():
        if m := re.match(r"(#+) (.*)", line):
            level = level if len(m[1]) > level else 0
            if not level and "difference" in m[2].lower():
                level = len(m[1])
            heads, group = None, m[2]
        elif not level:
            continue
        elif line.startswith("|"):
            cells = [plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if heads is None:
                heads = cells
            elif heads[0] == "" and not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                parts = tuple((head, cell) for head, cell in zip(heads[1:], cells[1:], strict=False)
                              if cell not in ("", "none"))
                found.append(Difference(titled(cells[0], group, found), parts))
        elif m := re.match(r"[-*] (?:\*\*)?(.+?)(?:\*\*:?|:)\s*(.*)", line):
            found.append(Difference(plain(m[1]).rstrip(":"), (("", plain(m[2])),)))
        elif line.startswith("  ") and found and heads is None:
            found[-1] = longer(found[-1], plain(line))
        elif not line.strip():
            heads = None
    return found


def differences_of_docstring(text):
    """A title of up to 21 characters after four spaces, and what is said of it from column 26 on."""
    found, inside, group = [], False, ""
    for line in text.splitlines():
        if line.startswith("Differences"):
            inside = True
        elif inside and re.match(r" {4}\S", line):
            title = titled(line[4:26].strip(), group, found)
            found.append(Difference(title, (("", line[26:].strip()),)))
        elif inside and found and line.startswith(" " * 26):
            found[-1] = longer(found[-1], re.sub(r"\s+", " ", line.strip()))
        elif found and line.startswith("`"):
            break
        elif inside and line[:1].strip():
            group = line.split(" (")[0]
    return found


def titled(title, group, found):
    """Where a title is there already, it says what it is of."""
    return f"{title} ({group})" if any(d.title == title for d in found) else title


def longer(difference, text):
    *others, (head, said) = difference.parts
    return Difference(difference.title, (*others, (head, f"{said} {text}")))


def plain(markdown):
    """Markdown without links; `code` and **emphasis** stay."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown.replace("\\|", "|")).strip()


SHARED = ("--reencode-weight",)     # a flag of several objectives: it does not say which is meant


def concerns(difference, e):
    """Whether a difference names the entry's number or one of its flags, or the entry names it."""
    text = " ".join([difference.title, *(text for _, text in difference.parts)])
    named = any((e.paper, e.number) in entries_of(m, e.paper)[0] for m in TAG.finditer(text))
    flagged = any(re.search(rf"{flag}(?![\w-])", text) for flag in e.flags if flag not in SHARED)
    return named or flagged or any(simple(difference.title).startswith(simple(d)) for d in e.differs)


def simple(title):
    return title.lower().replace("−", "-").replace("‖", "||").replace("`", "").replace(" ", "")


def find_pictures(document):
    """(file, what it shows) of each picture of a Markdown file, in its order; none if it is not there."""
    found = {}
    for m in re.finditer(r"!\[([^\]]*)\]\(([^)\s]+)\)|<img\s[^>]*>",
                         document.read_text(encoding="utf-8") if document.exists() else ""):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', m[0]))
        file = (document.parent / (m[2] or attributes.get("src", ""))).resolve()
        if file.is_file():
            found.setdefault(file, m[1] or attributes.get("alt") or file.stem)
    return list(found.items())


# ------------------------------------------------------------------------------ the code, as HTML

class Block(NamedTuple):
    """A function, class or method that a page shows."""
    file: str
    name: str
    first: int
    last: int
    called: bool            # shown only because another calls it


def find_blocks(code, key, found):
    """What a page shows: definitions with an entry of the paper, and the functions that these call."""
    blocks, script = {}, PAPERS[key].script
    for e, places in found.items():
        for place in places if e.paper == key else ():
            block = block_of(code[place.file], place)
            blocks[block[:2]] = block
    for files in (CODE, (script,)):                     # the script's helpers, and what they call
        for block in list(blocks.values()):
            for called in calls(code, block) if block.file in files else ():
                blocks.setdefault(called[:2], called)
    order = [script, *(name for name in CODE if name != script)]
    return sorted(blocks.values(), key=lambda block: (order.index(block.file), block.first))


def block_of(source, place):
    if not place.name:
        return Block(source.name, f"line {place.first}", place.first, place.last, False)
    name, *inner = place.name.split(".")
    node = source.definitions[name]
    if inner and isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno > LONG:
        name = f"{name}.{inner[0]}"
        node = source.definitions[name]
    return Block(source.name, name, start(node), node.end_lineno, False)


def calls(code, block):
    """Blocks of the short functions of the same file, or of common.py, that a block calls."""
    functions = {}
    for file in ("common.py", block.file):
        functions.update({node.name: (file, node) for node in code[file].tree.body
                          if isinstance(node, ast.FunctionDef) and node.end_lineno - start(node) < HELPER
                          and "contextmanager" not in " ".join(map(ast.unparse, node.decorator_list))})
    for node in ast.walk(code[block.file].definitions.get(block.name, ast.Module([], []))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).removeprefix("common.")
            if name in functions and name != block.name:
                file, called = functions[name]
                yield Block(file, name, start(called), called.end_lineno, True)


@functools.cache
def coloured(source):
    """{line: [(first column, past the last, class), ...]}: comments, strings, numbers, keywords, and
    names that are defined."""
    found, before = {}, ""
    for t in source.tokens:
        kind = {token.COMMENT: "c", token.STRING: "s", token.NUMBER: "n"}.get(t.type)
        if token.tok_name[t.type].startswith("FSTRING"):
            kind = "s"
        elif t.type == token.NAME:
            kind = "k" if keyword.iskeyword(t.string) else "d" if before in ("def", "class") else None
        before = t.string
        for line in range(t.start[0], t.end[0] + 1) if kind else ():
            first = t.start[1] if line == t.start[0] else 0
            last = t.end[1] if line == t.end[0] else len(source.lines[line - 1])
            found.setdefault(line, []).append((first, last, kind))
    return found


def render_line(source, number, colours, key):
    """A line of code: coloured, its tags as links to their entries.  Spaces before a comment are two."""
    text = source.lines[number - 1]
    links = {}
    for tag in source.tags:
        known = [ENTRIES[entry] for entry in tag.entries if entry in ENTRIES]
        if tag.line == number and known:
            page = "" if known[0].paper == key else f"{known[0].paper}.html"
            links[tag.columns] = f"{page}#{known[0].id}"
    out, column = [], 0
    for first, last, kind in [*colours.get(number, []), (len(text), len(text), "")]:
        gap = text[column:first]
        out.append(escape(gap.rstrip() + "  " if kind == "c" and text[:first].strip() else gap))
        inner, column = [], first
        for (begin, end), target in sorted(links.items()):
            if first <= begin and end <= last:
                inner.append(f'{escape(text[column:begin])}<a href="{target}">{escape(text[begin:end])}</a>')
                column = end
        inner.append(escape(text[column:last]))
        out.append(f'<span class="{kind}">{"".join(inner)}</span>' if kind else "".join(inner))
        column = last
    return "".join(out)


def render_block(source, block, key, lit, chips):
    """lit, chips: {(file, line): entries} that a line belongs to, and whose numbers stand at its end."""
    colours, rows = coloured(source), []
    for number in range(block.first, block.last + 1):
        entries = lit.get((block.file, number), [])
        marks = f' class="on" data-eq="{" ".join(e.id for e in entries)}"' if entries else ""
        ends = "".join(f' <a class="chip" href="#{e.id}">{escape(e.number)}</a>'
                       for e in chips.get((block.file, number), []))
        line = render_line(source, number, colours, key)
        rows.append(f'<span id="{anchor(block.file, number)}" data-n="{number}"{marks}>{line}{ends}\n</span>')
    called = " <i>called above</i>" if block.called else ""
    return (f'<section class="block" aria-label="{block.file}, {block.name}">'
            f"<h3>{block.file} <b>{block.name}</b>{called}</h3>"
            f"<pre><code>{''.join(rows)}</code></pre></section>")


def anchor(file, line):
    return f"{file.removesuffix('.py')}-{line}"


# --------------------------------------------------------------------------------- the paper, as HTML

def escape(text):
    return html.escape(text, quote=False)


def inline(text):
    """Text with `code` and **emphasis** in it."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)


def card(e, places, differences, flags, tests):
    """An entry."""
    parts = [f'<h3><a href="#{e.id}">{label(e)}</a></h3>', formula(e.printed), f"<p>{inline(e.says)}</p>"]
    if e.note or e.reading:
        ours = f" We compute:</p>{formula(e.reading)}" if e.reading else "</p>"
        parts.append(f'<div class="print"><p><b>In print.</b> {inline(e.note)}{ours}</div>')
    if places:
        links = ", ".join(
            f'<a href="#{anchor(p.file, p.first)}">{p.file}:{p.first}{f"-{p.last}" * (p.last > p.first)}</a> '
            f"<code>{p.name}</code>{f' ({escape(p.note)})' if p.note else ''}" for p in places)
        parts.append(f"<p>Code{f' (as {and_(e.by)})' if e.by else ''}: {links}</p>")
    else:
        parts.append(f"<p>No line of code. {inline(e.none)}</p>")
    if symbols := symbols_of(e):
        parts.append('<p class="soft">' + "; ".join(
            f"{mathml(tex, block=False)} {escape(shape)} {escape(what)}" for tex, shape, what in symbols) + "</p>")
    items = [told(d) for d in differences]
    items += [f"<code>{flag}</code> {inline(flags[flag])}" for flag in e.flags if flags.get(flag)]
    if items:
        parts.append(f'<div class="soft">Differences and flags:{bullets(items)}</div>')
    if e.tests:
        own = f"test_{e.paper}.py"                          # a name may stand in several files
        files = itertools.groupby(e.tests, key=lambda name: own if own in tests[name] else tests[name][0])
        parts.append('<p class="soft">Tests: ' + "; ".join(
            f"{file}: " + ", ".join(f"<code>{name}</code>" for name in names) for file, names in files) + "</p>")
    first = f' data-first="{anchor(places[0].file, places[0].first)}"' if places else ""
    return f'<article class="eq" id="{e.id}" data-number="{e.number}"{first}>{"".join(parts)}</article>'


def label(e):
    return re.sub("^eq.", "Equation", re.sub("^line", "Algorithm 1, line", e.number))


def formula(tex):
    return f'<div class="formula">{mathml(tex)}</div>'


def and_(words):
    return " and ".join(words)


def bullets(items):
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def told(difference):
    said = "; ".join(f"{escape(head)}: {inline(text)}" if head else inline(text) for head, text in difference.parts)
    return f"<i>{inline(difference.title)}</i>: {said}"


def symbols_of(e):
    """Those of the paper's symbols that the formula has."""
    tex = re.sub(r"\\(?:text|operatorname|mathrm)\{[^}]*\}", "", e.printed + e.reading)
    tex, found = re.sub(r"\\(?:boldsymbol|mathbf)\{(\w)\}", r"\1", tex), []
    for symbol in sorted(PAPERS[e.paper].symbols, key=lambda symbol: -len(symbol[0])):    # w_R before w
        pattern = rf"(?<![\\a-zA-Z]){re.escape(symbol[0])}(?![a-zA-Z])"
        if re.search(pattern, tex):
            found.append(symbol)
            tex = re.sub(pattern, " ", tex)
    return [symbol for symbol in PAPERS[e.paper].symbols if symbol in found]


def section_of(e):
    return "Algorithm 1" if e.number.startswith("line") else e.section


def heading(paper, section):
    title = paper.sections.get(section, "ALAE training, section 6")
    numbered = section[0].isdigit() or section.startswith("A.")
    return escape(f"{f'Section {section}' if numbered else section.capitalize()}: {title}")


def gallery(pictures):
    figures = "".join(f'<figure><img src="pictures/{file.name}" alt="{html.escape(alt)}">'
                      f"<figcaption>{escape(alt)}</figcaption></figure>" for file, alt in pictures)
    return f'<h2>Pictures</h2><div class="pictures">{figures}</div>' if pictures else ""


# ----------------------------------------------------------------------------------------- the pages

def page(key, title, head, body, script=""):
    links = " ".join(f'<a href="{name}.html"{" aria-current=page" * (name == key)}>{text}</a>'
                     for name, text in [("index", "Overview"), *((k, p.name) for k, p in PAPERS.items())])
    ending = f'<div id="said" class="hidden" role="status"></div>\n<script>\n{script}</script>\n' if script else ""
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body class="{"sides" if script else "text"}">
<header><nav aria-label="Pages">{links}</nav>{head}</header>
{body}
{ending}</body>
</html>
"""


def method_page(key, code, found, tests, pictures):
    paper, entries = PAPERS[key], [e for e in EQUATIONS if e.paper == key]
    differences = find_differences(key) if paper.script else []
    flags = find_flags(code, paper.script) if paper.script else {}
    near = {e: [d for d in differences if concerns(d, e)] for e in entries}

    left = ['<div class="numbers">']
    left += [f'<a href="#{e.id}">{e.number}</a>' for e in entries] + ["</div>"]
    if any(head == "" for d in differences for head, _ in d.parts):
        left.append('<p class="soft">In differences P is the paper, C the released code.</p>')
    elif differences:
        left.append('<p class="soft">In differences, what the code does is in <b>bold</b>.</p>')
    for section, group in itertools.groupby(entries, key=section_of):
        left.append(f"<h2>{heading(paper, section)}</h2>")
        left += [card(e, found[e], near[e], flags, tests) for e in group]
    rows = "".join(f"<tr><td>{mathml(tex, block=False)}</td><td>{escape(shape)}</td><td>{escape(what)}</td></tr>"
                   for tex, shape, what in paper.symbols)
    left.append(f"<h2>Symbols and shapes</h2><table>{rows}</table>")
    if rest := [d for d in differences if not any(d in some for some in near.values())]:
        left.append(f"<h2>Other differences</h2>{bullets(map(told, rest))}")
    left.append(gallery(pictures))

    lit, chips = lit_lines(code, entries, found)
    right = [render_block(code[block.file], block, key, lit, chips) for block in find_blocks(code, key, found)]
    head = f"<h1>{escape(paper.title)}</h1>"
    if paper.script:
        links = " · ".join(f'<a href="{address}">{escape(text)}</a>' for text, address in paper.links)
        head += f'<p class="soft">{paper.authors}. The numbers are those of {paper.edition}. {links}</p>'
    body = "".join(f'<div class="side" role="region" aria-label="{name}" tabindex="0">{"".join(parts)}</div>'
                   for name, parts in (("The paper", left), ("The code", right)))
    script = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
    return page(key, f"{paper.name} next to its code", head, f"<main>{body}</main>", script)


def lit_lines(code, entries, found):
    """-> {(file, line): entries} that a click on a line may mean, those with the fewest lines first, and of those that
    no tag in the code links to, where they begin."""
    lit, chips = {}, {}
    for e in sorted(entries, key=lambda e: sum(p.last + 1 - p.first for p in found[e])):
        for p in found[e]:
            for line in range(p.first, p.last + 1):
                here = lit.setdefault((p.file, line), [])
                here += [e] * (e not in here)
            tagged = any((e.paper, e.number) in tag.entries and p.first <= tag.line <= p.last
                         for tag in code[p.file].tags)
            if not tagged:
                chips.setdefault((p.file, p.first), []).append(e)
    return lit, chips


def index_page(pictures):
    sections = []
    for key, paper in PAPERS.items():
        about = f"<p>{escape(paper.title)}. {paper.authors}. The numbers are those of {paper.edition}.</p>"
        says = [f'<a href="{key}.html#{e.id}">{e.number}</a> {inline(e.says)}' for e in EQUATIONS if e.paper == key]
        sections.append(f'<section><h2><a href="{key}.html">{paper.name}</a></h2>'
                        f"{about if paper.script else ''}{bullets(says)}</section>")
    body = f"""<main>
<p>Each page has a paper's equations and algorithm lines on the left, and the code that computes them on
the right. Click an equation, or move to its number with the tab key and press enter: its lines of code
light up. Click a marked line: its equation does. Formulas of the four papers are as printed, and what is
wrong in print is said next to them; borrowed formulas are in this project's letters.</p>
<p>The code names them by tags: <code># eq. 8</code> or <code># line 6</code> in a method's own file,
<code># LIA eq. 3</code> in a file that methods share.</p>
{"".join(sections)}
{gallery(pictures)}
</main>"""
    return page("index", "The papers next to the code", "<h1>The papers next to the code</h1>", body)


def write(out):
    """Write the site into a folder, over an older one.  -> its pages"""
    code = read_code()
    found, tests = find_places(code), find_tests()
    pictures = {key: find_pictures(ROOT / ".github" / f"{key}.md") for key in PAPERS}
    pictures["index"] = find_pictures(ROOT / "README.md")
    pages = {"index": index_page(pictures["index"]),
             **{key: method_page(key, code, found, tests, pictures[key]) for key in PAPERS}}
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for file in {file for some in pictures.values() for file, _ in some}:
        shutil.copyfile(file, out / "pictures" / file.name)
    for name, text in pages.items():
        (out / f"{name}.html").write_text(text, encoding="utf-8")
    return [out / f"{name}.html" for name in pages]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the pages, made if it is not there")
    out = parser.parse_args(argv).out
    try:
        pages = write(out)
    except OSError as e:
        print(f"error: cannot write {out}: {e.strerror}; choose another folder", file=sys.stderr)
        return 2
    print(f"{len(pages)} pages: open {pages[0]} in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
