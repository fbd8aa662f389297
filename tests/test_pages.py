"""The README and the pages in .github tell the truth: their commands parse, and their flags, names, links and pictures
exist."""
import argparse
import functools
import importlib
import inspect
import re
import shlex
from itertools import pairwise

import pytest
from conftest import ROOT, run_here
from torch.distributed.run import get_args_parser

import lia

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / ".github").glob("*.md"))]
METHODS = ["alae", "lia", "invgan", "faae"]
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def page_of(method):
    return ROOT / ".github" / f"{method}.md"


# ------------------------------------------------------------------------------------------------ reading a page

def code(page):
    """-> the text of a page's code blocks and of its code spans, two lists."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return blocks, [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", rest)]


def commands(page):
    """The words of each `python` and `torchrun` command of a page, once for each value of a loop around it."""
    blocks, spans = code(page)
    for text in blocks + spans:
        name, values = "", [""]
        for line in text.replace("\\\n", " ").splitlines():
            if loop := re.match(r"for (\w+) in ([^;#]+); do", line):
                name, values = loop[1], loop[2].split()
            elif line.startswith("done"):
                name, values = "", [""]
            for command in line.split("&&"):
                for value in values if f"${name}" in command else [""]:
                    if re.match(r"\s*(python|torchrun) ", command):
                        words = shlex.split(command.replace(f"${name}", value), comments=True)
                        yield [word.strip("[]") for word in words if word != "..."]


def slugs(page):
    """The anchors that GitHub gives to a page's headings."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


# ------------------------------------------------------------------------------------------- the scripts' parsers

class Found(Exception):
    pass


def parser_of(script):
    """The parser of a script, as its parse_args or main makes it."""
    module = importlib.import_module(script.rpartition("/")[2].removesuffix(".py"))
    parse = getattr(module, "parse_args", None) or module.main

    def found(parser, *_):
        raise Found(parser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", found)
        with pytest.raises(Found) as caught:
            parse([]) if inspect.signature(parse).parameters else parse()
    return caught.value.args[0]


def subparsers(parser):
    """-> {name: parser} of its commands, such as eval.py's."""
    return next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})


def flags_of(script):
    parser = parser_of(script)
    return {flag for p in (parser, *subparsers(parser).values()) for flag in p._option_string_actions}


def launch(words):
    """-> script and its words, of `python SCRIPT ...` or `torchrun ... SCRIPT ...`, whose own flags parse too."""
    if words[0] == "torchrun":
        args = get_args_parser().parse_args(words[1:])
        return args.training_script, args.training_script_args
    return words[1], words[2:]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """decoder(mapping) trains a small stage 1 of LIA.  -> its folder"""
    folder = tmp_path_factory.mktemp("decoders")

    @functools.cache
    def make(mapping):
        run_here(lia.main, "--mapping", mapping, "--kimg", "0.1", "--width", "64", "--out", folder / mapping)
        return str(folder / mapping)
    return make


# ----------------------------------------------------------------------------------------------------- the tests

@by_name
def test_commands_parse(page, decoder):
    """Each command is what its script's parser takes; a method's also keeps its rules on which flags go together."""
    seen = 0
    for words in commands(page):
        name, given = launch(words)
        if name == "-m":                                    # python -m pytest
            continue
        seen += 1
        assert (ROOT / name).is_file(), words
        try:
            parser_of(name).parse_args(given)
            if name.removesuffix(".py") in METHODS and not {"--resume", "--init"} & {*given}:     # of a run
                if "--decoder" in given:
                    given[given.index("--decoder") + 1] = decoder("mlp" if "vae" in given else "flow")
                if "--restyle" in given:
                    given[given.index("--restyle") + 1] = decoder("flow")
                importlib.import_module(name.removesuffix(".py")).parse_args(given)
        except SystemExit as end:
            if end.code:                                    # 0: --help
                pytest.fail(f"does not parse: {' '.join(words)}")
    assert seen


@by_name
def test_flags_exist(page):
    """Each flag on a method's page is one of its script, of eval.py or of torchrun; elsewhere, of any script."""
    others = [*METHODS, "eval", "data", "bench", "handout", "grade", "predict"]
    scripts = [page.stem, "eval"] if page.stem in METHODS else others
    known = {flag for name in scripts for flag in flags_of(name)} | {*get_args_parser()._option_string_actions}
    assert {*FLAG.findall(page.read_text())} <= known


@pytest.mark.parametrize("method", METHODS)
def test_values_of_flags(method):
    """A value that a method's page gives to a flag (`--step3 EGF`) is one that the flag takes."""
    parsers = [parser_of(method), *subparsers(parser_of("eval")).values()]
    for span in code(page_of(method))[1]:
        for flag, value in pairwise(span.split() if span.startswith("--") else []):
            if not flag.startswith("--") or value.startswith("--"):
                continue
            values = []
            for parser in parsers:
                action = parser._option_string_actions.get(flag)
                try:
                    if action and (action.choices or not re.fullmatch("[A-Z]+", value)):     # N, RUN: any value
                        parser._get_values(action, [value])
                    values += [value] * bool(action)
                except argparse.ArgumentError:
                    pass
            assert values, (flag, value)


@pytest.mark.parametrize("method", METHODS)
def test_own_flags_are_named(method):
    """A method's page names every flag that is not shared by all four scripts."""
    shared = set.intersection(*map(flags_of, METHODS))
    assert flags_of(method) - shared <= {*FLAG.findall(page_of(method).read_text())}


@pytest.mark.parametrize("method", ["alae", "lia"])
def test_recipes_are_written_out(method, decoder):
    """A method's page names every flag that a --recipe sets."""
    module, action = importlib.import_module(method), parser_of(method)._option_string_actions["--recipe"]
    starts = [["--backbone", name] for name in ("mlp", "dcgan", "stylegan")]
    if method == "lia":
        starts += [["--stage", "2", "--decoder", decoder("flow")]]
    named = {*FLAG.findall(page_of(method).read_text())}
    for recipe in action.choices:
        assert f"--recipe {recipe}" in page_of(method).read_text() or recipe == module.parse_args([]).recipe
        for start in starts:
            default, others = (vars(module.parse_args([*start, *more])) for more in ([], ["--recipe", recipe]))
            changed = {f"--{name.replace('_', '-')}" for name in others if others[name] != default.get(name)}
            assert changed - {"--recipe", "--source"} <= named, start


@by_name
def test_links_and_pictures(page):
    """Relative links lead to files of the project, their anchors to headings; pictures say in words what they show."""
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    assert not re.findall(r"!\[\]\(|<img (?![^>]*alt=\"[^\"])", text)
    for target in targets:
        if re.match(r"https://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), target
        assert file.is_relative_to(ROOT.resolve()), target
        assert not anchor or anchor in slugs(file), target


def test_every_picture_is_shown():
    shown = {name.rpartition("/")[2] for page in PAGES for name in re.findall(r"[\w./-]+\.png", page.read_text())}
    assert {path.name for path in (ROOT / ".github").glob("*.png")} <= shown


@by_name
def test_names_of_code_and_files_exist(page):
    """`alae.train_step` is in alae.py; `tests/test_alae.py`, or `test_alae.py`, is a file."""
    for span in code(page)[1]:
        module, _, name = span.partition(".")
        if re.fullmatch(r"[\w/]+\.py", span):
            assert (ROOT / span).is_file() or (ROOT / "tests" / span).is_file(), span
        elif module in (*METHODS, "common", "data", "eval") and name.isidentifier():
            assert hasattr(importlib.import_module(module), name), span


def test_readme_is_short_and_begins_with_what_to_do():
    text = README.read_text()
    assert len(text.encode()) <= 14_000
    first = text.splitlines()[:30]
    assert {"pip install -r requirements.txt", "python alae.py"} <= {*first}
    for method in METHODS:
        assert any(f"(.github/{method}.md)" in line for line in first)
    assert len(re.findall(r"<img ", "\n".join(first))) == len(METHODS)
    assert re.search(r"^pip install -r requirements\.txt pytest && python -m pytest tests", text, re.MULTILINE)


@by_name
def test_speaks_of_the_project_alone(page):
    found = re.findall(r"(?<![\w.])/(?:work|root|home|tmp|mnt)/|\b(?:sandbox|workplace|session|helper|ledger)s?\b",
                       page.read_text(), re.IGNORECASE)
    assert not found


@by_name
def test_tables_are_whole(page):
    """Each row of a table has as many cells as its head."""
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table
