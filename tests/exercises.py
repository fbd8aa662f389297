"""The exercises that `handout.py` makes of the scripts, in the order of a course, and how they are found in a file: by
`ast`, or by indentation in a file that does not parse.  Their tests are those of `test_exercises.py` under
@grades(name).

A place is "common.py: r1", "common.py: Mapping.forward", or "alae.py: train_step # Step I:", the paragraph of a
function under a comment that begins so.
"""
import ast
import functools
import importlib
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TESTS = "test_exercises.py"


class Exercise(NamedTuple):
    name: str
    title: str
    read: str               # of a paper
    write: str              # what the student writes
    says: str               # what the empty code raises
    minutes: int            # a student's time; the tests take seconds on a laptop
    points: int
    places: tuple           # what is written
    twins: tuple = ()       # code that would give it away; goes with it, and is not graded


EXERCISES = [
    Exercise("logistic", "The logistic loss", "ALAE, Algorithm 1: f = softplus",
        "mean_softplus(t), the mean of log(1 + e^t) over all scores, in fp32; no overflow at t = 1000",
        "ALAE Alg. 1: f(t) = log(1 + e^t), a mean over the batch", 5, 5, ("common.py: mean_softplus",)),
    Exercise("equal-linear", "An equalised layer", "ProGAN (1710.10196), section 4.1",
        "the parameters weight and bias (or None), the constants scale and lr_mul, and the forward pass",
        "ProGAN 4.1: y = c W x + m b, W ~ N(0, 1/m^2)", 15, 10,
        ("common.py: EqualLinear.__init__", "common.py: EqualLinear.forward")),
    Exercise("mapping", "Pixel norm and the mapping network", "ProGAN, section 4.2; StyleGAN (1812.04948), figure 1",
        "pixel_norm along dimension 1, and the forward pass of z -> w through self.layers",
        "ProGAN 4.2 and StyleGAN fig. 1: pixel norm, then layers with leaky ReLU", 15, 10,
        ("common.py: pixel_norm", "common.py: Mapping.forward")),
    Exercise("adain", "Adaptive instance normalisation", "StyleGAN, equation 1 and figure 1",
        "what follows a convolution: noise, bias, leaky ReLU, instance norm (by `moments`), style",
        "StyleGAN eq. 1 and fig. 1: noise, bias, leaky ReLU, AdaIN", 20, 10, ("common.py: StyleLayer.forward",)),
    Exercise("minibatch-std", "Minibatch deviation", "ProGAN, section 3",
        "one more map: the deviation over groups of images (of i, i + N/G, i + 2N/G, ...), as a mean over channels and "
        "pixels",
        "ProGAN 3: the deviation over a group of images, as one more map", 20, 10, ("common.py: minibatch_std",)),
    Exercise("growth", "The schedule of a network that grows", "ProGAN, section 2 and figure 2",
        "Growth.at: images seen -> level, alpha, batch, learning rate",
        "ProGAN 2: which level is on top, and how far it has faded in", 25, 10, ("common.py: Growth.at",)),
    Exercise("r1", "R1", "Mescheder et al. 2018 (1801.04406), equation 9",
        "r1(scores, x), the squared gradient norm of each image, a mean over the batch; without gamma / 2",
        "Mescheder et al. eq. 9: E ||grad_x score(x)||^2", 20, 15, ("common.py: r1",)),
    Exercise("alae-1", "ALAE, step I", "ALAE, Algorithm 1, lines 3-7, and equation 1",
        "the paragraph under its comment: draw w, make fakes, set L_ED and R1, update E and D, move mean_w, which is "
        "fp32, if there is one (it keeps MEAN_W)",
        "ALAE Alg. 1, lines 3-7: E and D tell real from fake", 30, 20, ("alae.py: train_step # Step I:",)),
    Exercise("alae-2", "ALAE, step II", "ALAE, Algorithm 1, lines 8-11",
        "the paragraph under its comment: set L_FG, update F and G",
        "ALAE Alg. 1, lines 8-11: F and G fool E and D", 15, 10, ("alae.py: train_step # Step II:",)),
    Exercise("alae-3", "ALAE, step III", "ALAE, Algorithm 1, lines 12-15, and equation 8",
        'the paragraph under its comment: set L_EG by args.latent_loss ("sum" or "mean" over w\'s args.nw dimensions), '
        'update the networks of args.step3 ("EG", or "EGF", where F learns through G alone)',
        "ALAE Alg. 1, lines 12-15: E inverts G in latent space", 30, 15, ("alae.py: train_step # Step III:",)),
    Exercise("coupling", "The coupling layers and their inverse", "LIA, equations 2-4; NICE (1410.8516)",
        "to_z and to_w by `_shift_and_scale`, which gives a scale of 1 where the coupling is additive",
        "LIA eqs. 3 and 4: couplings, and their inverse", 45, 20,
        ("lia.py: InvertibleNetwork.to_z", "lia.py: InvertibleNetwork.to_w")),
    Exercise("affine", "The network in a coupling, additive and affine", "LIA, section 2.1; Glow (1807.03039), table 1",
        "_shift_and_scale(tau, top): two layers, each with a leaky ReLU; affine: half of the outputs are the shift, "
        "and sigmoid(h + 2) of the others the scale, as in Glow's released code",
        "LIA eq. 3: tau(top half); Glow: scale = sigmoid(h + 2)", 20, 10,
        ("lia.py: InvertibleNetwork._shift_and_scale",)),
    Exercise("lia-critic", "LIA's critic", "LIA, equations 6 and 7",
        "both losses, each as a Wasserstein and as a logistic one, and a step of the critic with R1",
        "LIA eq. 6: c scores realness", 30, 15,
        ("lia.py: move_critic", "lia.py: critic_loss", "lia.py: adversarial_loss")),
    Exercise("lia-1", "LIA, stage 1", "LIA, section 3.1 and equation 7",
        "decoder_step by `move_critic` and `adversarial_loss`; mean_w, fp32, if there is one, keeps MEAN_W",
        "LIA eqs. 7 and 10: the decoder and phi against the critic", 30, 15, ("lia.py: decoder_step",)),
    Exercise("lia-2", "LIA, stage 2", "LIA, section 3.2 and equations 1, 5, 8",
        "perceptual_loss, kl, and encoder_step by `move_critic` and `adversarial_loss`",
        "LIA eqs. 1, 5 and 8: f learns by features and the critic; g and phi stay", 60, 25,
        ("lia.py: encoder_step", "lia.py: perceptual_loss", "lia.py: kl")),
    Exercise("faae-1", "F-AAE, the re-encoding phase", "F-AAE, section 3.1 and equation 4",
        "the paragraph under its comment: set L_re, unweighted, by h.d; update G and E down h.W_re times that",
        "F-AAE eq. 4: G and E bring the code back", 10, 5, ("faae.py: faae # Re-encoding phase",)),
    Exercise("faae-2", "F-AAE, the regularisation phase", "F-AAE, section 3.1 and equation 4",
        "the paragraphs under both comments: set L_D and L_G, unweighted; update D down L_D, with h.gamma / 2 times r1 "
        "of the real images' scores if h.gamma is not 0, then G down h.W_adv times L_G",
        "F-AAE eq. 4: D tells real from generated, and G confuses it", 25, 10,
        ("faae.py: faae # Regularisation phase", "faae.py: faae # ... and G confuses it"),
        twins=("faae.py: lr", "faae.py: jlr")),
    Exercise("bigan", "BiGAN", "BiGAN (1605.09782), equation 3; F-AAE, equation 3",
        "bigan: a step of D on pairs, and one of G and E with swapped labels; real and generated pairs go through D in "
        "one batch, because its batch norm is to have one mean for both",
        "F-AAE eq. 3: D tells (x, E(x)) from (G(z), z)", 40, 15, ("faae.py: bigan",), twins=("faae.py: ali",)),
    Exercise("mmd", "Maximum mean discrepancy", "InvGAN, section 3.2; Gretton et al. 2012, lemma 6",
        "the unbiased estimate under a mean of RBF kernels, whose bandwidths are BANDWIDTHS times the median",
        "InvGAN 3.2: unbiased MMD^2 of two sets of codes", 40, 15, ("invgan.py: mmd",)),
    Exercise("invgan", "InvGAN's three objectives", "InvGAN, sections 3.2 and 4.4, equations 2, 3 and 5",
        "naive, augmented and full, by `mean_square`, `target` and `mmd`; in D's step of full, f's own weights are "
        'held where args.targets is "held"',
        "InvGAN eqs. 2, 3 and 5: codes, features, the second cycle and MMD", 180, 40,
        ("invgan.py: naive", "invgan.py: augmented", "invgan.py: full")),
    Exercise("frechet", "The Frechet distance", "Heusel et al. 2017 (1706.08500), equation 6",
        "frechet of two Gaussians, each a mean and a covariance in float64, by torch.linalg.eigh; a float",
        "Heusel et al. eq. 6: the distance of two Gaussians", 30, 15, ("eval.py: frechet",)),
    Exercise("one-nn", "Nearest neighbour", "ALAE, section 7.1 and table 2",
        "one_nn: the share of test features, in %, whose nearest training feature has their label",
        "ALAE 7.1: accuracy of the nearest neighbour", 10, 5, ("eval.py: one_nn",)),
    Exercise("svm", "A linear SVM", "ALAE, section 7.1 and table 2; Fan et al. 2008 (LIBLINEAR), equation 3",
        "linear_svm: one squared-hinge problem a class, by `minimise`, the bias as one more weight",
        "LIBLINEAR: min |w|^2 / 2 + C sum max(0, 1 - y w.x)^2", 90, 25, ("eval.py: linear_svm",)),
]
NAMED = {exercise.name: exercise for exercise in EXERCISES}


# --------------------------------------------------------------------------------------------------- finding code
# Lines count from 0; a range is (first, past the last).

class Missing(Exception):
    """A file without a place, in one line."""


def split(place):
    """-> file, name, the beginning of a comment or ""."""
    file, rest = place.split(": ", 1)
    name, _, heading = rest.partition(" # ")
    return file, name, heading


@functools.lru_cache(64)
def tree_of(text):
    """-> the module's tree, or None if it does not parse."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def node_of(tree, name):
    """The function "f" or method "C.f" of a tree, or None."""
    for part in name.split("."):
        tree = next((n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == part), None)
        if tree is None:
            return None
    return tree


def indent(line):
    return len(line) - len(line.lstrip())


def definition(text, name):
    """-> range of a function or method, with its decorators.  Raises Missing."""
    tree, lines = tree_of(text), text.split("\n")
    if tree is not None:
        node = node_of(tree, name)
        if node is None:
            raise Missing(f"there is no {name} any more")
        return start_of(node) - 1, node.end_lineno
    first, last = 0, len(lines)
    for part in name.split("."):
        heads = [i for i in range(first, last) if re.match(rf"\s*(class|def)\s+{part}\b", lines[i])]
        if not heads:
            raise Missing(f"there is no {name} any more")
        first, last = heads[0], next((i for i in range(heads[0] + 1, last) if lines[i].strip()
            and not re.match(r"\s*[)#]", lines[i]) and indent(lines[i]) <= indent(lines[heads[0]])), last)
    while not lines[last - 1].strip() or re.match(r"\S", lines[last - 1]) or "@" == lines[last - 1].strip()[0]:
        last -= 1
    return first, last


def headings(place):
    """The comments under which exercises stand in the function of a place."""
    return [split(other)[2] for e in EXERCISES for other in e.places if split(other)[:2] == split(place)[:2]]


def place_of(text, place):
    """-> range of a place.  A paragraph begins below its comment and ends above that of another exercise, or where the
    function returns.  Raises Missing."""
    _, name, heading = split(place)
    first, last = definition(text, name)
    if not heading:
        return first, last
    lines, others = text.split("\n"), tuple(f"# {other}" for other in headings(place))
    head = next((i for i in range(first, last) if lines[i].strip().startswith(f"# {heading}")), None)
    if head is None:
        raise Missing(f"{name} has no comment '# {heading}...' any more")
    ends = (i for i in range(head + 1, last) if lines[i].strip().startswith(others)
            or lines[i].startswith(" " * indent(lines[head]) + "return"))
    first, last = head + 1, next(ends, last)
    while last > first and not lines[last - 1].strip():
        last -= 1
    return first, last


def text_of(text, place):
    """The lines of a place."""
    first, last = place_of(text, place)
    return text.split("\n")[first:last]


def put(base, place, lines):
    """-> base with these lines in a place, a definition at the indentation that it has there."""
    first, last = place_of(base, place)
    old = base.split("\n")
    if lines and not split(place)[2]:
        space, given = " " * indent(old[first]), indent(lines[0])
        lines = [space + line[given:] if line.strip() else "" for line in lines]
    return "\n".join(old[:first] + lines + old[last:])


def helpers(text, base, used):
    """Functions, classes, constants and imports at the top of a student's file that the base lacks and the lines `used`
    need."""
    known, new = top_names(base), top_names(text)
    found, words = [], set(re.findall(r"\w+", "\n".join(used)))
    while wanted := [name for name in new if name in words and name not in known]:
        found.append(new.pop(wanted[0]))
        words |= set(re.findall(r"\w+", found[-1]))
    return "\n\n".join(dict.fromkeys(reversed(found)))


def top_names(text):
    """{name: its source} of what stands at the top of a file; of one that does not parse, functions, classes and
    imports."""
    tree, lines = tree_of(text), text.split("\n")
    if tree is not None:
        return {name: "\n".join(lines[start_of(node) - 1:node.end_lineno]) for node in tree.body
                for name in names_of(node)}
    found = {name: "\n".join(lines[slice(*definition(text, name))]) for name in re.findall(
        r"^(?:def|class) (\w+)", text, re.MULTILINE)}
    imports = [line for line in lines if re.match(r"(import|from) .*\w$", line) and tree_of(line)]
    return {**found, **{name: line for line in imports for name in names_of(tree_of(line).body[0])}}


def start_of(node):
    """The first line of a statement, its decorators' too."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def names_of(node):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    return [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []


def body_of(text, place):
    """-> range of a place without signature and docstring, and its indentation."""
    first, last = place_of(text, place)
    lines = text.split("\n")
    _, name, heading = split(place)
    if heading:
        while lines[first].strip().startswith("#"):             # what goes on about the step
            first += 1
        return first, last, indent(lines[first])
    node = node_of(tree_of(text), name)
    statement = node.body[0]
    documented = ast.get_docstring(node, clean=False) is not None
    first = statement.end_lineno if documented else statement.lineno - 1
    while lines[first - 1].strip().startswith("#"):             # a comment above the first statement tells
        first -= 1
    return first, last, statement.col_offset


def emptied(texts, exercises):
    """{file: text} -> the same in which these exercises raise NotImplementedError."""
    texts, edits = dict(texts), {}
    for exercise in exercises:
        for place in (*exercise.places, *exercise.twins):
            file = split(place)[0]
            says = exercise.says if place in exercise.places else f"as in exercise {exercise.name}: {exercise.says}"
            edits.setdefault(file, []).append((*body_of(texts[file], place), says))
    for file, found in edits.items():
        lines = texts[file].split("\n")
        for first, last, space, says in sorted(found, reverse=True):
            lines[first:last] = [f'{" " * space}raise NotImplementedError("{says}")']
        texts[file] = "\n".join(lines)
    return texts


def scripts(folder=ROOT):
    """{file: text} of the scripts that have exercises."""
    files = dict.fromkeys(split(place)[0] for exercise in EXERCISES for place in exercise.places)
    return {file: (folder / file).read_text(encoding="utf-8") for file in files}


def grading_tests(text):
    """The text of TESTS -> {exercise: {test: its docstring}}."""
    found = {name: {} for name in NAMED}
    for node in ast.parse(text).body:
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "grades":
                found[decorator.args[0].value][node.name] = ast.get_docstring(node) or ""
    return found


def alone(script, name, *wanted):
    """A function that runs the paragraphs under these comments, after what stands above the first exercise, and gives
    all variables: a step can be run while the others are empty."""
    module = importlib.import_module(script)
    text = Path(module.__file__).read_text(encoding="utf-8")
    node, places = node_of(ast.parse(text), name), [f"{script}.py: {name} # {heading}" for heading in wanted]
    top = min(place_of(text, f"{script}.py: {name} # {h}")[0] for h in headings(places[0]))
    ranges = [(0, top), *(place_of(text, place) for place in places)]
    node.body = [s for s in node.body if any(first < s.lineno <= last for first, last in ranges)]
    node.body += ast.parse("def f():\n return locals()").body[0].body
    exec(compile(ast.fix_missing_locations(ast.Module([node], [])), module.__file__, "exec"), vars(module), made := {})
    return made[name]
