"""The papers next to the code: every tag has its entry, every entry its code and tests, and the pages hold together."""
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pages
import pytest
import tags
from equations import EQUATIONS, PAPERS
from mathml import mathml

METHODS = [key for key, paper in PAPERS.items() if paper.script]


@pytest.fixture(scope="module")
def code():
    return tags.read_code()


@pytest.fixture(scope="module")
def places(code):
    return tags.find_places(code)


def numbers(paper):
    return [e.number for e in EQUATIONS if e.paper == paper]


# ---------------------------------------------------------------------------- the table, and the code

def test_the_table_has_every_number_of_the_four_papers():
    printed = {"alae": [f"eq. {n}" for n in range(1, 10)] + [f"line {n}" for n in range(1, 16)],
               "lia": [f"eq. {n}" for n in range(1, 11)], "invgan": [f"eq. {n}" for n in range(1, 6)],
               "faae": [f"eq. {n}" for n in range(1, 6)]}
    for paper, expected in printed.items():
        assert [n for n in numbers(paper) if re.match(r"eq\.|line", n)] == expected
    phases = ["re-encoding phase", "regularization phase, D", "regularization phase, G"]
    family = ["ALI", "AGE, E", "AGE, G", "AGE, divergence", "LR", "JLR", "AE, l1", "AE, l2"]
    assert numbers("faae")[5:] == phases + family               # AAE and BiGAN are equations 2 and 3
    assert len({e.id for e in EQUATIONS}) == len(EQUATIONS)
    for e in EQUATIONS:
        assert e.section in PAPERS[e.paper].sections
        assert e.says.endswith(".")
        assert set(e.by) <= set(numbers(e.paper))


def test_every_tag_in_the_code_is_in_the_table(code):
    known = {(e.paper, e.number) for e in EQUATIONS}
    strays = [f"{source.name}:{tag.line}: {number} of {paper or 'which paper?'}"
              for source in code.values() for tag in source.tags for paper, number in tag.entries
              if (paper, number) not in known]
    assert not strays, "not in equations.py: " + "; ".join(strays)


def test_every_entry_has_code_or_says_why_it_has_none(code, places):
    tagged = {entry for source in code.values() for tag in source.tags for entry in tag.entries
              if tag.kind in ("comment", "banner", "docstring") and not tag.ranged}
    for e in EQUATIONS:
        step = e.printed.startswith(r"\text{Step")              # a banner has all of its lines
        own = (e.paper, e.number) in tagged or step or e.where or e.by
        assert own or e.none, f"{e.id}: no line is tagged {e.number}"
        for where in e.where:
            assert code[PAPERS[e.paper].script].places_named(where), f"{e.id}: there is no {where}"
        assert bool(places[e]) != bool(e.none), f"{e.id}: {places[e] or 'no line has its tag'}"


def test_tests_of_every_entry_exist():
    known = tags.find_tests()
    for e in EQUATIONS:
        assert e.tests or e.none
        for name in e.tests:
            assert name in known, f"{e.id}: no test is called {name}"
            assert len(known[name]) == 1 or f"test_{e.paper}.py" in known[name], f"{e.id}: which {name}?"


def test_flags_of_every_entry_are_the_scripts_own(code):
    own = {key: tags.find_flags(code, PAPERS[key].script) for key in METHODS}
    for e in EQUATIONS:
        assert not e.flags or set(e.flags) <= set(own[e.paper]), e.id


@pytest.mark.parametrize("key", METHODS)
def test_differences_stand_beside_what_they_concern(key):
    differences = pages.find_differences(key)
    assert len(differences) > 8
    assert len({d.title for d in differences}) == len(differences)
    assert all(d.title and all(text for _, text in d.parts) for d in differences)
    for e in EQUATIONS:
        if e.paper == key and e.differs:
            titles = [pages.simple(d.title) for d in differences]
            assert all(any(title.startswith(pages.simple(begin)) for title in titles) for begin in e.differs), e.id
    r1 = dict(alae="line 6", lia="eq. 6", invgan="eq. 1", faae="eq. 4")[key]
    e, = (e for e in EQUATIONS if (e.paper, e.number) == (key, r1))
    beside = [d.title for d in differences if pages.concerns(d, e)]
    assert len(beside) >= 2
    assert any("R1" in title for title in beside)


# ------------------------------------------------------------------------------------- reading tags

SOURCE = '''"""A module.   (eq. 1)"""


class Net:
    """A class of many methods.   (LIA eqs. 2-4)"""

    def forward(self, x):
        """What it gives; see (ALAE
        eq. 8).
        """
        return x


def step(
    x,
):
    """One iteration of eq. 3."""
    # Step I (lines 3-5; x is line 4)
    with net:
        y = (x +
             1)                 # line 5, eq. 9, of a sum; and eq. 7
    update(y, opt.E, opt.D)

    # Step II: another
    update(x, opt.G)
    a = "line 13"
    return R1(y)                # Mescheder et al. 2018, eq. 9; 3 lines
'''


def test_tags_are_read_where_they_stand():
    found = [(t.line, [n for _, n in t.entries], t.kind, t.note) for t in tags.Source("alae.py", SOURCE).tags]
    assert found == [
        (1, ["eq. 1"], "module", ""),
        (5, ["eq. 2", "eq. 3", "eq. 4"], "docstring", ""),
        (9, ["eq. 8"], "docstring", ""),
        (17, ["eq. 3"], "docstring", ""),
        (18, ["line 3", "line 4", "line 5"], "banner", ""),
        (18, ["line 4"], "banner", ""),
        (21, ["line 5"], "comment", ""),
        (21, ["eq. 9"], "comment", "of a sum"),
        (21, ["eq. 7"], "comment", ""),
        (26, ["line 13"], "string", ""),
        (27, ["Mescheder 2018 eq. 9"], "comment", "")]
    source = tags.Source("alae.py", SOURCE)
    assert [t.entries[0][0] for t in source.tags] == ["alae", "lia", "alae"] + ["alae"] * 7 + ["others"]
    assert tags.Source("common.py", SOURCE).tags[0].entries == ((None, "eq. 1"),)
    for t in source.tags:
        assert re.match(r"eqs?\.|lines?", source.lines[t.line - 1][slice(*t.columns)])


def test_a_tag_stands_for_its_lines():
    source = tags.Source("alae.py", SOURCE)
    lit = {(t.line, t.entries[-1][1]): tags.stands_for(source, t)
           for t in source.tags if t.kind not in ("module", "string")}
    assert lit == {
        (5, "eq. 4"): (tags.LOOSE, (4, 11)),                    # a range in a docstring: all of the class
        (9, "eq. 8"): (tags.FUNCTION, (7, 11)),                 # a short method
        (17, "eq. 3"): (tags.FUNCTION, (14, 27)),
        (18, "line 5"): (tags.RANGE, (18, 22)),                 # the paragraph
        (18, "line 4"): (tags.EXACT, (18, 18)),
        (21, "line 5"): (tags.EXACT, (20, 21)),                 # the statement
        (21, "eq. 9"): (tags.EXACT, (20, 21)),
        (21, "eq. 7"): (tags.EXACT, (20, 21)),
        (27, "Mescheder 2018 eq. 9"): (tags.EXACT, (27, 27))}
    assert [p[1:4] for p in source.places_named("step: opt.G")] == [(24, 27, "step")]
    assert [p[1:4] for p in source.places_named("step: opt.E, opt.D")] == [(18, 22, "step")]
    assert [p[1:4] for p in source.places_named("Net.forward")] == [(7, 11, "Net.forward")]
    assert source.places_named("step: opt.D") == source.places_named("walk") == []


def test_remarks_count_where_nothing_else_does():
    text = ('def f():\n    """What eq. 6 has.\n\n    Printed, eq. 8 errs.\n    """\n\n\n'
            'def g():\n    pass        # eq. {}\n')
    for number, lit in ((8, {8: [9], 6: [1]}), (7, {8: [1], 6: [1]})):
        code = {"lia.py": tags.Source("lia.py", text.format(number))}
        entries = [e for e in EQUATIONS if (e.paper, e.number) in (("lia", "eq. 6"), ("lia", "eq. 8"))]
        found = tags.find_places(code, entries)
        assert {int(e.number[4:]): [p.first for p in places] for e, places in found.items()} == lit


def test_flags_are_read_without_running_the_parser():
    text = """add("--gamma", "weight of R1", type=float)
parser.add_argument("--step3", default="EG", help="networks " "moved")
add("--data", help=f"one of {names}")
flag in ("--out", "help")
"""
    code = {"common.py": tags.Source("common.py", ""), "alae.py": tags.Source("alae.py", text)}
    assert tags.find_flags(code, "alae.py") == {"--gamma": "weight of R1", "--step3": "networks moved", "--data": ""}


# ------------------------------------------------------------------------------------------ formulas

def spelled(tex, **kwargs):
    """The MathML of a formula, without what is around it."""
    return re.fullmatch(r'<math display="\w+"><semantics>(.*)<annotation.*', mathml(tex, **kwargs))[1]


@pytest.mark.parametrize(("tex", "expected"), [
    ("x", "<mi>x</mi>"),
    ("12", "<mn>12</mn>"),
    (r"\gamma", "<mi>γ</mi>"),
    (r"x_i^2", "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>"),
    (r"x^{ab}", "<msup><mi>x</mi><mrow><mi>a</mi><mi>b</mi></mrow></msup>"),
    (r"z'", "<msup><mi>z</mi><mo>′</mo></msup>"),
    (r"\frac{1}{n}", "<mfrac><mn>1</mn><mi>n</mi></mfrac>"),
    ("a-b", "<mrow><mi>a</mi><mo>−</mo><mi>b</mi></mrow>"),
    ("=-b", '<mrow><mo>=</mo><mo form="prefix">−</mo><mi>b</mi></mrow>'),
    (r"\mathbb{E}", "<mi>𝔼</mi>"),
    (r"\mathbb{R}", "<mi>ℝ</mi>"),                              # not in the block of the others
    (r"\mathcal{L}", "<mi>ℒ</mi>"),
    (r"\mathbf{z}", "<mi>𝐳</mi>"),
    (r"\boldsymbol{x}", "<mi>𝒙</mi>"),
    (r"\text{a b}", "<mtext>a\N{NO-BREAK SPACE}b</mtext>"),
    (r"\operatorname{softplus}", "<mi>softplus</mi>"),
    (r"\tilde{w}", '<mover accent="true"><mi>w</mi><mo stretchy="false">˜</mo></mover>'),
    (r"\underset{x}{\mathbb{E}}", "<munder><mi>𝔼</mi><mi>x</mi></munder>"),
    (r"\stackrel{f}{\mapsto}", "<mover><mo>↦</mo><mi>f</mi></mover>"),
    (r"\sum_i", "<munder><mo>∑</mo><mi>i</mi></munder>"),
    (r"\int_w", '<msub><mo>∫</mo><mi>w</mi></msub>'),
    (r"\max_D", '<mrow><munder><mi>max</mi><mi>D</mi></munder><mspace width="0.1667em"/></mrow>'),
    ("(a)", '<mrow><mo stretchy="false" form="prefix">(</mo><mi>a</mi>'
            '<mo stretchy="false" form="postfix">)</mo></mrow>'),
    (r"\lVert a \rVert_2", '<msub><mrow><mo stretchy="false" form="prefix">‖</mo><mi>a</mi>'
                           '<mo stretchy="false" form="postfix">‖</mo></mrow><mn>2</mn></msub>'),
    (r"\left[ a \right)", '<mrow><mo stretchy="true" form="prefix">[</mo><mi>a</mi>'
                          '<mo stretchy="true" form="postfix">)</mo></mrow>'),
    (r"\begin{bmatrix} a \\ b \end{bmatrix}", "<mrow><mo>[</mo><mtable><mtr><mtd><mi>a</mi></mtd></mtr>"
                                              "<mtr><mtd><mi>b</mi></mtd></mtr></mtable><mo>]</mo></mrow>"),
    (r"\begin{aligned} & a \\ & b \end{aligned}",
     '<mtable class="lines" displaystyle="true"><mtr><mtd><mrow></mrow></mtd><mtd><mi>a</mi></mtd></mtr>'
     "<mtr><mtd><mrow></mrow></mtd><mtd><mi>b</mi></mtd></mtr></mtable>"),
])
def test_latex_as_mathml(tex, expected):
    assert spelled(tex) == expected


@pytest.mark.parametrize("tex", [r"\unknown", "(a", r"\frac{1}", "x_", "a)", r"\left( a", "}", r"\mathbb{1}",
                                 r"\begin{bmatrix} a", r"\lVert a", "@"])
def test_what_is_no_such_latex_is_refused(tex):
    with pytest.raises(ValueError, match=re.escape(repr(tex))):
        mathml(tex)


def test_long_rows_are_broken_before_signs_and_after_equals():
    short, long = "a = b + c", "a = " + " + ".join(["(b - c)"] * 9)
    assert "mtable" not in spelled(short)
    rows = spelled(long).split("<mtr>")
    assert len(rows) > 2
    assert all("<mo>+</mo>" in row[:60] for row in rows[2:])    # never within brackets
    assert "mtable" not in spelled(long, block=False)


def test_every_formula_is_set():
    for e in EQUATIONS:
        for tex in filter(None, (e.printed, e.reading)):
            tree = ElementTree.fromstring(mathml(tex))
            assert tree.find("semantics/annotation").text == tex
            assert len(tree.find("semantics")) == 2             # one thing, and its LaTeX
            for kind, children in dict(mfrac=2, msub=2, msup=2, munder=2, mover=2, msubsup=3, munderover=3).items():
                assert all(len(node) == children for node in tree.iter(kind)), (e.id, kind)
    for paper in PAPERS.values():
        for tex, _, _ in paper.symbols:
            mathml(tex, block=False)


# --------------------------------------------------------------------------------------- differences

def test_differences_of_a_page():
    text = ("# M\n\n| | paper |\n|---|---|\n| none of these | x |\n\n## Differences\n\n### All\n\n"
            "| | paper | ours | flag |\n|:---|---|---|---|\n| gamma | 10 | **1**, [measured](#there) | `--gamma` |\n"
            "| norm \\|x\\| | | a mean | none |\n\n| sizes | a |\n|---|---|\n| not | this |\n\n### Others\n\n"
            "| | paper |\n|---|---|\n| gamma | 5 |\n\n- **signs**: are ours\n  and more\n- steps: two\n\n## Results\n\n"
            "| | x |\n|---|---|\n| nor | this |\n")
    assert pages.differences_of_page(text) == [
        ("gamma", (("paper", "10"), ("ours", "**1**, measured"), ("flag", "`--gamma`"))),
        ("norm |x|", (("ours", "a mean"),)),
        ("gamma (Others)", (("paper", "5"),)),
        ("signs", (("", "are ours and more"),)),
        ("steps", (("", "two"),))]


def test_differences_of_a_docstring():
    text = ("M.\n\nDifferences from the paper (P):\n    signs of eqs. 6-8     are ours.  So\n" + " " * 26
            + "it is.        --sign\nMore (P leaves it open):\n    squared norm, line 14 P sums.\n`--recipe` ends it.\n"
            "    not               this\n")
    assert pages.differences_of_docstring(text) == [
        ("signs of eqs. 6-8", (("", "are ours.  So it is. --sign"),)), ("squared norm, line 14", (("", "P sums."),))]


# ------------------------------------------------------------------------------------------ the site

class Page(HTMLParser):
    """A page whose elements must close in order: its ids, its links, and what it loads."""
    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.loads = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" else []
        self.loads += [attributes[name] for name in ("src", "href") if name in attributes and tag != "a"]
        if tag == "img":
            assert attributes["alt"]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):              # <mspace/>
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "new" / "folder"
    assert pages.main([str(out)]) == 0
    return out


def test_the_site_is_whole(site):
    parsed = {path.name: Page(path.read_text(encoding="utf-8")) for path in site.glob("*.html")}
    assert set(parsed) == {"index.html", *(f"{key}.html" for key in PAPERS)}
    for name, page in parsed.items():
        assert (site / name).stat().st_size < 3e6
        assert len(set(page.ids)) == len(page.ids)
        for load in page.loads:                                 # nothing from elsewhere, no script file
            assert load.startswith("data:") or (site / load).is_file(), load
        for link in page.links:
            file, _, anchor = link.partition("#")
            assert link.startswith("https://") or not anchor or anchor in parsed[file or name].ids, (name, link)
            assert link.startswith("https://") or not file or file in parsed
    for e in EQUATIONS:
        assert e.id in parsed[f"{e.paper}.html"].ids
        assert f"{e.paper}.html#{e.id}" in parsed["index.html"].links


def test_code_on_a_page_is_the_code(site, code, places):
    for key in PAPERS:
        html = (site / f"{key}.html").read_text(encoding="utf-8")
        shown = dict(re.findall(r'<span id="([\w-]+)" data-n="\d+"[^>]*>(.*?)\n</span>', html))
        for id, line in shown.items():
            file, number = re.fullmatch(r"(\w+)-(\d+)", id).groups()
            text = re.sub(r"<[^>]*>", "", re.sub(r'<a class="chip".*?</a>', "", line))
            text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
            expected = code[f"{file}.py"].lines[int(number) - 1]
            assert text.split() == expected.split()
            assert re.match(" *", text)[0] == re.match(" *", expected)[0]
        for e in EQUATIONS:                                     # lit lines are those of the table
            lit = set(re.findall(rf'<span id="([\w-]+)" data-n="\d+" class="on" data-eq="(?:[^"]* )?{e.id}[" ]', html))
            here = places[e] if e.paper == key else []
            assert lit == {f"{p.file[:-3]}-{n}" for p in here for n in range(p.first, p.last + 1)}


@pytest.mark.parametrize("key", METHODS)
def test_a_page_names_the_edition_of_its_numbers(site, key):
    text = (site / f"{key}.html").read_text(encoding="utf-8")
    assert f"The numbers are those of {PAPERS[key].edition}" in text
    assert dict(alae="2004.04467", lia="ryefE1SYDr", invgan="2112.04598", faae="1802.04504")[key] in text


def test_the_script_runs_alone_and_refuses_what_it_cannot_write(tmp_path):
    """Without torch: where a page is made there may be Python and no more."""
    argv = [sys.executable, "-X", "importtime", str(tags.ROOT / "tests" / "pages.py")]
    done = subprocess.run([*argv, "out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert (tmp_path / "out" / "index.html").is_file()
    assert not re.search(r"\| +(torch|numpy|matplotlib)$", done.stderr, re.MULTILINE)
    (tmp_path / "file").write_text("mine")
    done = subprocess.run([argv[0], argv[3], "file"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: cannot write file: [^\n]*; choose another folder\n", done.stderr)
    assert (tmp_path / "file").read_text() == "mine"
