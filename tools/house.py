"""Measure how the package is laid out: `python tools/house.py CHECKOUT [CHECKOUT ...]`, a column for each checkout.

Nothing of a checkout is imported or run, its source is parsed. `--where` lists what was counted. What is counted how:

- *Code lines* are those with anything but comments and docstrings on them.
- *Hops to the loss*: from `cli.main` to the verb's `run`, then the shortest way by calls to the function that calls
  `.backward()`, then the objective's `forward`. `x.name(...)` is followed where the function says of which class `x` is, or one
  class alone has such a method.
- *Files to open*: the modules on that way, and those of what the functions on it call (what they raise left out).
- *Option names*, where a class has a field of that name, and commands: in strings that are not docstrings.
- *Folders of a verb's options*: those of its config class and of the functions that take it as a parameter.
- *Circles*: groups of files, or of rooms beside each other, that import each other in a ring, imports inside functions included.
- *Lists of the verbs*: statements, or imports or assignments in a row, that name three verbs or more.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path

ROOT = "beitkit"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:[-.][a-z0-9]+)*")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = tuple[str, str]
"""Module, and the name of a function or method in it, as `loop`, `Trainer.step`."""


class House:
    """The package of one checkout."""

    def __init__(self, checkout: Path) -> None:
        self.folder = checkout / ROOT
        paths = sorted(self.folder.rglob("*.py"))
        if not paths:
            sys.exit(f"{checkout} holds no package {ROOT}")
        self.texts = {_dotted(path.relative_to(checkout)): path.read_text(encoding="utf-8") for path in paths}
        self.paths = {_dotted(path.relative_to(checkout)): path for path in paths}
        self.trees = {name: ast.parse(text) for name, text in self.texts.items()}

    def code_lines(self) -> int:
        """Lines with anything but comments and docstrings."""
        skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        total = 0
        for name, text in self.texts.items():
            tokens = tokenize.generate_tokens(io.StringIO(text).readline)
            lines = {line for token in tokens if token.type not in skipped for line in range(token.start[0], token.end[0] + 1)}
            for text_alone in _docstrings(self.trees[name]):
                lines -= set(range(text_alone.lineno, (text_alone.end_lineno or 0) + 1))
            total += len(lines)
        return total

    @staticmethod
    def other_lines(folder: Path, *endings: str) -> int:
        """Lines of the files with these endings."""
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*") if path.suffix in endings)

    def folders(self) -> Counter[str]:
        """Python files of each folder, without `__init__.py`."""
        found = (path.parent for path in self.paths.values() if path.name != "__init__.py")
        return Counter(folder.relative_to(self.folder.parent).as_posix() for folder in found)

    @cached_property
    def functions(self) -> dict[Function, ast.AST]:
        """Functions of modules and methods of their classes."""
        found: dict[Function, ast.AST] = {}
        for module, tree in self.trees.items():
            for node in tree.body:
                if isinstance(node, FUNCTIONS):
                    found[module, node.name] = node
                elif isinstance(node, ast.ClassDef):
                    found |= {(module, f"{node.name}.{part.name}"): part for part in node.body if isinstance(part, FUNCTIONS)}
        return found

    @cached_property
    def classes(self) -> list[Function]:
        """Module and name of every class of a module."""
        return [
            (module, node.name) for module, tree in self.trees.items() for node in tree.body if isinstance(node, ast.ClassDef)
        ]

    @cached_property
    def methods(self) -> dict[str, list[Function]]:
        """All methods of a name."""
        found = defaultdict(list)
        for module, name in self.functions:
            found[name.rpartition(".")[2]] += [(module, name)] if "." in name else []
        return found

    @cached_property
    def names(self) -> dict[str, dict[str, Function]]:
        """What a name means in a module: the module that defines it, and its name there; "" for the module itself."""
        found: dict[str, dict[str, Function]] = {module: {} for module in self.trees}
        for module, name in (*self.functions, *self.classes):
            found[module] |= {name: (module, name)} if "." not in name else {}
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == ROOT:
                    for alias in node.names:
                        inner = f"{node.module}.{alias.name}"
                        target = (inner, "") if inner in self.trees else (node.module, alias.name)
                        found[module][alias.asname or alias.name] = target
        return found

    def calls(self, function: Function) -> Iterator[Function]:
        """The package's functions that a function calls, as far as its source says which."""
        known = self.names[function[0]]
        kinds = self._kinds(function)
        raised = {id(node.exc) for node in ast.walk(self.functions[function]) if isinstance(node, ast.Raise)}
        for node in ast.walk(self.functions[function]):
            if not isinstance(node, ast.Call) or id(node) in raised:
                continue
            if isinstance(node.func, ast.Name) and node.func.id in known:
                home, called = known[node.func.id]
                yield (home, f"{called}.__init__") if (home, called) in self.classes else (home, called)
            elif isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                home, kind = kinds.get(owner, ("", ""))
                called = f"{kind}.{node.func.attr}" if kind else node.func.attr
                if (home, called) in self.functions:
                    yield home, called
                elif len(self.methods[node.func.attr]) == 1:
                    yield self.methods[node.func.attr][0]

    def _kinds(self, function: Function) -> dict[str, Function]:
        """Class of every name in a function: its own class, parameters by their annotation, variables by a call of the class."""
        module, name = function
        known, node = self.names[module], self.functions[function]
        named = [(argument.arg, argument.annotation) for argument in ast.walk(node) if isinstance(argument, ast.arg)]
        for part in ast.walk(node):
            if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name) and isinstance(part.value, ast.Call):
                named.append((part.targets[0].id, part.value.func))
        found = {key: known[kind.id] for key, kind in named if isinstance(kind, ast.Name) and kind.id in known}
        return known | found | {"self": (module, name.partition(".")[0])}

    def way_to_the_loss(self, verb: str = "pretrain") -> list[Function]:
        """From the command line to the function that takes the objective's loss and calls `.backward()`."""
        begin = next((module, "run") for module in (f"{ROOT}.runs.{verb}.run", f"{ROOT}.runs.{verb}") if module in self.trees)
        ways, waiting = {begin: [(f"{ROOT}.cli", "main"), begin]}, deque([begin])
        while waiting:
            here = waiting.popleft()
            if any(isinstance(node, ast.Attribute) and node.attr == "backward" for node in ast.walk(self.functions[here])):
                return ways[here]
            for called in self.calls(here):
                if called in self.functions and called not in ways:
                    ways[called] = [*ways[here], called]
                    waiting.append(called)
        sys.exit(f"no way leads from {'.'.join(begin)} to a loss")

    def files_to_open(self) -> set[str]:
        """The modules on the way to the loss, and those of what its functions call."""
        way = self.way_to_the_loss()
        called = {module for step in way for module, _ in self.calls(step)}
        return (
            {module for module, _ in way} | {module for module in called if module in self.trees} | {f"{ROOT}.objectives.masked"}
        )

    def strings(self, module: str) -> Iterator[str]:
        """The strings of a module that are not docstrings."""
        alone = {id(node) for node in _docstrings(self.trees[module])}
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
                yield node.value

    def named(self, pattern: re.Pattern[str], without: tuple[str, ...], only: str = ROOT) -> list[str]:
        """What strings hold of a pattern, in the modules of `only` and not of the rooms `without`, each with its module."""
        modules = [
            module for module in self.trees if _within(module, only) and not any(_within(module, room) for room in without)
        ]
        return [f"{module}: {found}" for module in modules for text in self.strings(module) for found in pattern.findall(text)]

    def options(self, without: tuple[str, ...], only: str = ROOT) -> list[str]:
        """Names of options in strings; what no class has as a field is another program's."""
        parts = [
            part
            for tree in self.trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for part in node.body
        ]
        fields = {part.target.id for part in parts if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)}
        found = self.named(OPTION, without, only)
        return [option for option in found if re.split(r"--|[.]", option)[-1].replace("-", "_") in fields]

    @cached_property
    def verbs(self) -> dict[str, str]:
        """Verbs of the table, and the classes of their options."""
        for module in (f"{ROOT}.verbs", f"{ROOT}.cli"):
            for node in self.trees[module].body:
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and node.targets[0].id == "VERBS":  # type: ignore[attr-defined]
                    keys = [ast.literal_eval(key) for key in node.value.keys if key is not None]
                    return dict(zip(keys, map(self._class_in, node.value.values), strict=True))
        sys.exit("no table VERBS in cli.py or verbs.py")

    def _class_in(self, row: ast.expr) -> str:
        """The class that a row of the table of verbs names: "Class" or "module:Class"."""
        words = [
            node.value.rpartition(":")[2]
            for node in ast.walk(row)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        return next(word for word in words if word in {name for _, name in self.classes})

    def option_folders(self) -> dict[str, set[str]]:
        """For every verb the folders of its options' class and of the functions that take it."""
        found = {}
        for verb, config in self.verbs.items():
            modules = {module for module, name in self.classes if name == config}
            for (module, _), node in self.functions.items():
                arguments = (*node.args.args, *node.args.kwonlyargs)  # type: ignore[attr-defined]
                if any(argument.annotation is not None and ast.unparse(argument.annotation) == config for argument in arguments):
                    modules.add(module)
            found[verb] = {module.rpartition(".")[0] for module in modules}
        return found

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Modules that each module imports, type checkers' imports left out."""
        found = {}
        for module, tree in self.trees.items():
            targets = set()
            for node in _without_type_checking(tree):
                if isinstance(node, ast.Import):
                    targets |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    inner = {f"{node.module}.{alias.name}" for alias in node.names}
                    targets |= {name if name in self.trees else node.module for name in inner}
            found[module] = targets & self.trees.keys() - {module}
        return found

    def imports_of_the_root(self) -> list[str]:
        """Modules that import the package as a whole."""
        return [
            module for module, targets in self.imports.items() if ROOT in targets and module not in (ROOT, f"{ROOT}.__main__")
        ]

    def circles(self) -> tuple[list[set[str]], list[set[str]]]:
        """Files, and rooms beside each other, that import each other in a ring."""
        rooms: list[set[str]] = []
        for inside in sorted({module.rpartition(".")[0] for module in self.trees} - {""}):
            graph: dict[str, set[str]] = defaultdict(set)
            for module, targets in self.imports.items():
                for target in targets:
                    one, other = _child(module, inside), _child(target, inside)
                    if one and other and one != other:
                        graph[one].add(other)
            rooms += _rings(graph)
        return _rings({module: targets - {ROOT} for module, targets in self.imports.items()}), rooms

    def lists_of_verbs(self) -> list[str]:
        """Module and line of every statement, or row of them, that names three verbs or more."""
        found = []
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
                    for _, group in groupby(body if isinstance(body, list) else [], key=type):
                        found += [f"{module}:{line}" for line in self._lists(list(group))]
        return found

    def _lists(self, statements: list[ast.stmt]) -> Iterator[int]:
        known = {verb.replace("-", "_") for verb in self.verbs}
        alone = [
            (node, _verbs_in(node, known))
            for node in statements
            if isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign)
        ]
        yield from (node.lineno for node, verbs in alone if len(verbs) >= 3)
        in_row = {verb for _, verbs in alone if len(verbs) < 3 for verb in verbs}
        if len(in_row) >= 3:
            yield alone[0][0].lineno

    def rows(self) -> Iterator[tuple[str, int, Iterable[object]]]:
        """What is measured, its value, and what was counted."""
        lengths = {module: len(text.splitlines()) for module, text in self.texts.items()}
        folders, longest = self.folders(), max(lengths, key=lengths.__getitem__)
        sizes = {name: node.end_lineno - node.lineno + 1 for name, node in self.functions.items()}  # type: ignore[attr-defined]
        function = max(sizes, key=sizes.__getitem__)
        yield "files", len(self.texts), ()
        yield "lines", sum(lengths.values()), ()
        yield "code lines", self.code_lines(), ()
        folder, count = folders.most_common(1)[0]
        yield "lines of its templates and styles", self.other_lines(self.folder, ".jinja", ".html", ".css"), ()
        yield (
            "lines of `benchmarks/`, which are not in the package",
            self.other_lines(self.folder.parent / "benchmarks", ".py"),
            (),
        )
        yield "most files in a folder", count, [folder]
        yield "longest file, lines", lengths[longest], [longest]
        yield "longest function, lines", sizes[function], [".".join(function)]
        way = [".".join(step) for step in self.way_to_the_loss()]
        yield "hops from the command line to the loss", len(way), [*way, "the objective's forward"]
        arguments = self.functions[f"{ROOT}.train.loop", "fit"].args  # type: ignore[attr-defined]
        names = [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]
        yield "parameters of `fit`", len(names), names
        opened = self.files_to_open()
        yield "files to open from `pretrain` to its loss", len(opened), sorted(opened)
        top = (f"{ROOT}.runs", f"{ROOT}.cli", f"{ROOT}.verbs", f"{ROOT}.configs")
        options, verbs = self.options(top), re.compile(rf"\b{ROOT} (?:{'|'.join(self.verbs)})\b")
        yield "option names in messages below `runs/`, without `configs/`", len(options), options
        options = self.options((f"{ROOT}.configs.verbs", f"{ROOT}.configs.recipes"), f"{ROOT}.configs")
        yield "option names in messages of `configs/`, without those of one verb", len(options), options
        commands = self.named(verbs, top[:3])
        yield "commands (`beitkit VERB`) in messages below `runs/`", len(commands), commands
        twice = [name for name, count in Counter(name for _, name in self.classes).items() if count > 1]
        yield "class names used more than once", len(twice), twice
        touched = self.option_folders()
        most = max(touched, key=lambda verb: len(touched[verb]))
        yield "folders of one verb's options, at most", len(touched[most]), [most, *sorted(touched[most])]
        files, rooms = self.circles()
        yield "circles of files", len(files), files
        yield "circles of rooms", len(rooms), rooms
        root = self.imports_of_the_root()
        yield "imports of the package root from below", len(root), root
        lists = self.lists_of_verbs()
        yield "lists of the verbs", len(lists), lists


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Strings that stand alone: docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def _within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def _child(module: str, room: str) -> str:
    """The part of a room that a module is in; "" for another room's, and for the room's own `__init__`."""
    return module.removeprefix(f"{room}.").partition(".")[0] if module.startswith(f"{room}.") else ""


def _without_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from _without_type_checking(child)


def _verbs_in(statement: ast.stmt, known: set[str]) -> set[str]:
    """Verbs that a statement names: as a word of its own, as an imported or assigned name, or in lines of commands."""
    words: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words |= {node.value, *re.findall(rf"\b{ROOT} ([\w-]+)", node.value)}
        elif isinstance(node, ast.alias):
            words.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            words.add(node.id)
    return {word.replace("-", "_") for word in words} & known


def _rings(graph: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected parts of more than one node."""

    def reach(start: str) -> set[str]:
        found, waiting = set(), [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - found
            found |= new
            waiting += new
        return found

    reached = {node: reach(node) for node in graph}
    rings = {
        frozenset(other for other in reached[node] if node in reached.get(other, ())) for node in graph if node in reached[node]
    }
    return [set(ring) for ring in rings]


def main() -> None:
    """Print the table of the checkouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT")
    parser.add_argument("--where", action="store_true", help="list what was counted")
    arguments = parser.parse_args()
    houses = [House(checkout) for checkout in arguments.checkouts]
    print("| |" + "".join(f" {checkout.resolve().name} |" for checkout in arguments.checkouts))
    print("|---|" + "---|" * len(houses))
    tables = [list(house.rows()) for house in houses]
    for row in zip(*tables, strict=True):
        print(f"| {row[0][0]} |" + "".join(f" {value:,} |" for _, value, _ in row))
    if arguments.where:
        for checkout, table in zip(arguments.checkouts, tables, strict=True):
            print(f"\n{checkout}")
            for name, _, counted in table:
                print(f"  {name}:", "; ".join(str(sorted(one) if isinstance(one, set) else one) for one in counted))


if __name__ == "__main__":
    main()
