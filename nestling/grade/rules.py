"""What a program's syntax tree tells of the assignment's rules: findings for a person, no verdicts.

The program is read, never run; comments and strings are no findings. Who wants to hide a call from this can: the
walls are those of the box that the program runs in.
"""

from __future__ import annotations

import ast
import codecs
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from nestling.grade.facts import Finding
from nestling.grade.intake import printable, regular

MAX_SOURCE = 250_000                                 # bytes; the tree takes a thousand times as many
MAX_FINDINGS = 100                                   # of one file
ENCODINGS = {"utf-8", "utf-8-sig", "iso8859-1", "ascii", "cp1252"}
READY = ("torchvision.models", "timm", "transformers", "segmentation_models_pytorch", "segmentation_models",
         "efficientnet_pytorch", "pretrainedmodels", "pytorchcv", "open_clip", "clip", "diffusers",
         "keras.applications", "tensorflow.keras.applications")
DOWNLOADS = ("torch.hub", "torch.utils.model_zoo", "huggingface_hub")
LOADERS = {"from_pretrained", "load_state_dict_from_url"}
WEIGHTS = {"weights", "weights_backbone", "encoder_weights"}
PRETRAINED = {"pretrained", "pretrained_backbone"}
CODE = ("subprocess", "ctypes", "cffi", "socket", "urllib", "requests", "http.client", "ftplib", "httpx",
        "aiohttp", "gdown", "wget", "runpy", "pty", "importlib.import_module", "torch.utils.cpp_extension",
        "os.system", "os.popen", "os.fork")
CODE_BEGINS = ("os.exec", "os.spawn", "os.posix_spawn")
BUILTINS = {"eval", "exec", "__import__"}
ESTIMATORS = tuple(f"sklearn.{name}" for name in (
    "mixture", "cluster", "svm", "ensemble", "linear_model", "neighbors", "naive_bayes", "tree", "neural_network",
    "discriminant_analysis", "decomposition", "manifold", "gaussian_process", "semi_supervised",
    "cross_decomposition", "kernel_ridge", "kernel_approximation", "multiclass", "calibration", "isotonic"))
SKLEARN_OF_VAE = ("sklearn.metrics", "sklearn.model_selection", "sklearn.preprocessing")
SCIPY = ("scipy.stats", "scipy.cluster", "scipy.optimize", "scipy.spatial")
SCIPY_OF_VAE = ("scipy.stats.norm",)                 # for the percentiles of the grid
SEED = 0                                             # of the assignment

Found = tuple[int, str, str]                         # line, kind, sentence
Function = ast.FunctionDef | ast.AsyncFunctionDef


def check_source(path: Path, part: str) -> list[Finding]:
    """Findings of the kinds pretrained, ready network, scikit-learn, scipy, code and seed, by line.

    part: bird or vae. A kind appears once a line. What is no valid Python is a finding of the kind code.
    OSError: no regular file.
    """
    with regular(path) as file:
        data = file.read(MAX_SOURCE + 1)
    try:
        if len(data) > MAX_SOURCE:
            raise ValueError(f"it is larger than {MAX_SOURCE:,} bytes")
        encoding = codecs.lookup(tokenize.detect_encoding(io.BytesIO(data).readline)[0]).name
        if encoding not in ENCODINGS:                # some take minutes, some hide code in comments
            raise ValueError(f"its encoding is {encoding}")
        text = data.decode(encoding)
        with warnings.catch_warnings():              # of odd escapes in strings
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
        names = Names(tree)
        found = [*mentions(tree, names, part), *calls(tree, names), *seeds(tree, names)]
    except SyntaxError as error:
        return [Finding("code", f"{path.name} is no valid Python: {printable(error.msg)[:200]}.", path.name,
                        error.lineno or 0, printable((error.text or "").strip())[:200])]
    except (ValueError, RecursionError, MemoryError) as error:
        reason = printable(str(error))[:200] or "it is nested too deeply"
        return [Finding("code", f"{path.name} cannot be checked: {reason}.", path.name)]
    lines = ["", *re.split("\r\n|\r|\n", text)]
    once = {(line, kind): sentence for line, kind, sentence in reversed(found)}
    return [Finding(kind, sentence, path.name, line, printable("".join(lines[line:line + 1]).strip())[:200])
            for (line, kind), sentence in sorted(once.items())][:MAX_FINDINGS]


# ------------------------------------------------------------------ names and what they stand for

class Names:
    """What the names of a program stand for: modules and constants."""

    def __init__(self, tree: ast.Module):
        self.imported: dict[str, str] = {}           # name -> module, or module.name
        self.calls: dict[str, list[ast.Call]] = {}   # of a function of this name, by anybody
        self.owner: dict[ast.Call, Function] = {}    # the innermost function around a call
        self.constants: dict[str, set[object]] = {}  # of variables, attributes and options, wherever they are set
        self.parameters: dict[tuple[Function, str], set[object]] = {}
        self.places: dict[Function, dict[str, int]] = {}
        for node in ast.walk(tree):                  # the outer ones first
            self.imported |= {bound: whole for bound, whole, _, _ in imports(node)}
            for name, value in assigned(node):
                self.constants.setdefault(name, set()).add(value)
            if isinstance(node, Function):
                self.places[node] = positions(node)
                self.owner |= {call: node for call in ast.walk(node) if isinstance(call, ast.Call)}
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                self.calls.setdefault(name, []).append(node)

    def dotted(self, node: ast.AST) -> str:
        """torchvision.models.resnet18 for an expression that means it; empty where no import tells."""
        parts = chain(node)
        return ".".join([self.imported[parts[0]], *parts[1:]]) if parts and parts[0] in self.imported else ""

    def values(self, node: ast.AST | None, owner: Function | None) -> set[object]:
        """The constants that an expression in a function may be; with None among them where it may be others."""
        if isinstance(node, ast.Constant):
            return {node.value}
        parts = chain(node)
        if not parts:
            return {None}
        if owner and len(parts) == 1 and parts[0] in self.places[owner]:
            return self.of_parameter(owner, parts[0])
        return self.constants.get(parts[-1], {None})

    def of_parameter(self, function: Function, name: str) -> set[object]:
        """The constants that a function's parameter gets from its calls, or else its default."""
        key = function, name
        if key not in self.parameters:
            self.parameters[key] = {None}            # while it is found: of a function that calls itself
            default, place = defaults(function).get(name), self.places[function][name]
            found: set[object] = set()
            for call in self.calls.get(function.name, []):
                given = [word.value for word in call.keywords if word.arg == name] + call.args[place:place + 1]
                found |= self.values(given[0], self.owner.get(call)) if given else self.values(default, None)
            self.parameters[key] = found or self.values(default, None)
        return self.parameters[key]


def imports(node: ast.AST) -> Iterator[tuple[str, str, str, int]]:
    """Of an import: the name that it binds, what this stands for, what is imported, and the line."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            first = alias.name.split(".")[0]
            yield alias.asname or first, alias.name if alias.asname else first, alias.name, alias.lineno
    elif isinstance(node, ast.ImportFrom) and not node.level:
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield alias.asname or alias.name, whole, whole, alias.lineno


def assigned(node: ast.AST) -> Iterator[tuple[str, object]]:
    """The names that get a constant: SEED = 0, cfg.seed = 0, seed: int = 0, add_argument("--seed", default=0)."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr | ast.AugAssign):
        targets = [node.target]
    for target in targets:
        if parts := chain(target):
            value = getattr(node, "value", None)
            if value is not None:
                plain = isinstance(value, ast.Constant) and not isinstance(node, ast.AugAssign)
                yield parts[-1], value.value if plain else None
    if isinstance(node, ast.Call) and chain(node.func)[-1:] == ["add_argument"]:
        flags = [word.value for word in node.args if isinstance(word, ast.Constant)]
        for word in node.keywords:
            if word.arg == "default" and isinstance(word.value, ast.Constant):
                yield from ((str(flag).lstrip("-").replace("-", "_"), word.value.value) for flag in flags)


def chain(node: ast.AST | None) -> list[str]:
    """The parts of a.b.c; empty for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def positions(function: Function) -> dict[str, int]:
    """A function's parameters and their places in a call, without self."""
    names = [word.arg for word in (*function.args.posonlyargs, *function.args.args)]
    first = names[:1] in (["self"], ["cls"])
    return {name: place for place, name in enumerate(names[first:])} | {
        word.arg: len(names) for word in function.args.kwonlyargs}


def defaults(function: Function) -> dict[str, ast.expr]:
    """The parameters' default values."""
    words = function.args
    names = [word.arg for word in (*words.posonlyargs, *words.args)]
    named = zip([word.arg for word in words.kwonlyargs], words.kw_defaults, strict=True)
    return dict(zip(reversed(names), reversed(words.defaults), strict=False)) | {
        name: value for name, value in named if value}


def below(name: str, modules: tuple[str, ...]) -> bool:
    """Whether it is one of the modules, or something in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


# ------------------------------------------------------------------ the rules

def mentions(tree: ast.Module, names: Names, part: str) -> Iterator[Found]:
    """Imports and uses of what the rules speak of."""
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):                      # the outer ones first
        for _, _, name, line in imports(node):
            yield from mention(name, line, part)
        if isinstance(node, ast.Attribute):
            inner.add(node.value)                    # of a chain, the outermost tells all
            if node.attr in LOADERS:
                yield node.lineno, "pretrained", f"{node.attr} loads weights that were trained elsewhere."
        if isinstance(node, ast.Attribute | ast.Name) and node not in inner:
            yield from mention(names.dotted(node), node.lineno, part)


def mention(name: str, line: int, part: str) -> Iterator[Found]:
    """What the rules say of one dotted name."""
    shown = name[:100]
    if below(name, READY):
        yield line, "ready network", f"{shown} holds networks that others designed."
    if below(name, DOWNLOADS) or name.rpartition(".")[2] in LOADERS:
        yield line, "pretrained", f"{shown} loads weights that were trained elsewhere."
    if below(name, CODE) or name.startswith(CODE_BEGINS):
        yield line, "code", f"{shown} runs other code or reaches the network."
    if below(name, ESTIMATORS) or (
            part == "vae" and name.startswith("sklearn.") and not below(name, SKLEARN_OF_VAE)):
        yield line, "scikit-learn", f"{shown} is beyond what the assignment allows of scikit-learn."
    if part == "vae" and below(name, SCIPY) and name != "scipy.stats" and not below(name, SCIPY_OF_VAE):
        yield line, "scipy", f"{shown} is SciPy's, where the assignment asks for one's own code."


def calls(tree: ast.Module, names: Names) -> Iterator[Found]:
    """Calls that ask for pretrained weights or run a string."""
    own = {node.name for node in tree.body if isinstance(node, Function)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in BUILTINS - own - set(names.imported):
            yield node.lineno, "code", f"{node.func.id} runs other code."
        ready = below(names.dotted(node.func), READY)
        for word in node.keywords:
            plain = word.value.value if isinstance(word.value, ast.Constant) else ...
            asked = ready and plain not in (None, False)
            if (word.arg in PRETRAINED and (asked or plain is True)) or (
                    word.arg in WEIGHTS and (asked or is_weights(word.value))):
                yield word.lineno, "pretrained", f"{word.arg}= asks for weights that were trained elsewhere."
        for given in node.args[:2]:
            if ready and (getattr(given, "value", None) is True or (chain(given) and is_weights(given))):
                yield given.lineno, "pretrained", "The call asks for weights that were trained elsewhere."


def is_weights(node: ast.AST) -> bool:
    """Whether a value names weights of torchvision: ResNet18_Weights.DEFAULT, "IMAGENET1K_V1"."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and bool(re.match("default$|imagenet|coco", node.value, re.IGNORECASE))
    return any(part.endswith("_Weights") for part in chain(node))


def seeds(tree: ast.Module, names: Names) -> Iterator[Found]:
    """Calls of torch.manual_seed and seed_everything with another constant than 0; or that there is none."""
    seeded = False
    for node in ast.walk(tree):
        parts = chain(node.func) if isinstance(node, ast.Call) else []
        if not parts or not isinstance(node, ast.Call):
            continue
        name = names.dotted(node.func) or ".".join(parts)
        torch_s = name in ("manual_seed", "torch.manual_seed", "torch.random.manual_seed")
        if not (torch_s or parts[-1] == "seed_everything" or name.startswith("torch.cuda.manual_seed")):
            continue
        seeded |= not name.startswith("torch.cuda.")
        given = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "seed")]
        values = names.values(given[0], names.owner.get(node)) if given else {None}
        if not values & {None, SEED}:
            shown = ", ".join(sorted(printable(repr(value))[:40] for value in values))
            yield node.lineno, "seed", f"{parts[-1]} is called with {shown}, not {SEED}."
    if not seeded:
        yield 0, "seed", "Nothing calls torch.manual_seed, so two trainings differ."
