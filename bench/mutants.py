"""Do the tests notice when a rule is wrong? `python -m bench.mutants [MODULE …]`.

Each small fault that can be put into a module of the core (a comparison turned, an operator swapped, a number off by
one, a statement left out) is put in by itself, and the module's tests are run. A fault that no test notices is listed
with its line. Takes a second or two for each; give modules to do less, `--lines 120-150` to look at a few. Needs the
packages of the extra `dev`, which `bin/test` installs.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import hypothesis  # noqa: F401 - imported before forking, so that no run has to
import pydantic  # noqa: F401
import pytest

PACKAGE = "scheduler_worker.core"
ROOT = Path(__file__).parents[1]
TESTS = {
    "fairness": ("test_fairness", "test_turns", "test_policy_change", "test_scheduler", "test_fairness_bound"),
    "preemption": ("test_preemption",),
    "admission": ("test_admission",),
    "batch_limit": ("test_batch_limit", "test_scheduler"),
    "forecast": ("test_forecast",),
    "turns": ("test_turns", "test_fairness", "test_scheduler", "test_determinism"),
    "lockstep": ("test_chunks", "test_scheduler", "test_in_flight", "test_determinism", "test_preemption"),
}
BARE = ("-x", "-q", "--noconftest", "-c", os.devnull, "--rootdir", str(ROOT), "-pno:cacheprovider", "-pno:django")
"""The core's tests need nothing of the other parts', which take seconds to import."""

TIMEOUT_S = 60
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One node of the module's tree and what stands there instead."""

    line: int
    node: ast.AST
    instead: ast.AST

    def __str__(self) -> str:
        return f"line {self.line}: `{_code(self.node)}` → `{_code(self.instead)}`"


def _code(node: ast.AST) -> str:
    return type(node).__name__ if isinstance(node, ast.operator | ast.cmpop | ast.boolop) else ast.unparse(node)


def faults_of(tree: ast.Module) -> list[Fault]:
    """Every fault, in the order of the code; annotations, decorators and imports are left alone."""
    found: list[Fault] = []
    for node in _nodes(tree):
        found.extend(Fault(getattr(node, "lineno", 0), node, instead) for instead in _instead_of(node))
    return sorted(found, key=lambda one: one.line)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _nodes(child)


def _instead_of(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=operators):
            for place, operator in enumerate(operators):
                turned = OPERATORS[type(operator)]()
                yield _copy(node, ops=[*operators[:place], turned, *operators[place + 1 :]])
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in OPERATORS:
            yield _copy(node, op=OPERATORS[type(node.op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield _copy(node, value=not value)
        case ast.Constant(value=int(value) | float(value)):
            yield _copy(node, value=value + 1)
        case ast.Name(id=name) if name in NAMES:
            yield _copy(node, id=NAMES[name])
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield _copy(ast.Pass(), lineno=node.lineno, col_offset=node.col_offset)


def _copy(node: ast.AST, **changes: object) -> ast.AST:
    fields = {**dict(ast.iter_fields(node)), **changes}
    return ast.copy_location(type(node)(**fields), node)


class _Replace(ast.NodeTransformer):
    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def visit(self, node: ast.AST) -> ast.AST:
        return self._fault.instead if node is self._fault.node else self.generic_visit(node)


class _Faulty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads the module from a tree in place of its file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self._name, self._path, self._tree = name, path, tree

    def find_spec(
        self, fullname: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == self._name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(ast.fix_missing_locations(self._tree), str(self._path), "exec"), module.__dict__)


def is_noticed(module: str, path: Path, tree: ast.Module, fault: Fault | None) -> bool:
    """Whether the module's tests fail with this fault (None: none), in a process of their own."""
    child = os.fork()
    if child == 0:
        if fault is not None:
            _Replace(fault).visit(tree)
        os._exit(_run_tests(module, path, tree))
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) != 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _run_tests(module: str, path: Path, tree: ast.Module) -> int:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.meta_path.insert(0, _Faulty(f"{PACKAGE}.{module}", path, tree))
    files = [str(ROOT / "tests" / "core" / f"{name}.py") for name in TESTS[module]]
    try:
        return int(pytest.main([*BARE, *files]))
    except BaseException:
        return 1


def survivors_of(module: str, lines: range | None) -> tuple[int, list[Fault]]:
    """How many faults there are, and those that the tests do not notice."""
    path = ROOT / "scheduler_worker" / "core" / f"{module}.py"
    tree = ast.parse(path.read_text())
    if is_noticed(module, path, tree, None):
        raise SystemExit(f"the tests of {module} fail without any fault: mend that first")
    faults = [one for one in faults_of(tree) if lines is None or one.line in lines]
    survivors = []
    for number, fault in enumerate(faults, start=1):
        print(f"\r{module}: {number} of {len(faults)}", end="", file=sys.stderr, flush=True)
        if not is_noticed(module, path, tree, fault):
            survivors.append(fault)
            print(f"\r{module}.py {fault}", flush=True)
    return len(faults), survivors


def main(arguments: Sequence[str] | None = None) -> None:
    """Print every survivor, then a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(TESTS), choices=[*TESTS, []], metavar="MODULE")
    parser.add_argument("--lines", help="only these, as in 120-150")
    options = parser.parse_args(arguments)
    first, _, last = (options.lines or "").partition("-")
    lines = range(int(first), int(last or first) + 1) if first else None
    rows = [(module, *survivors_of(module, lines)) for module in options.modules or TESTS]
    print(f"\r{'module':12} {'faults':>7} {'noticed':>8} {'survive':>8}")
    for module, num_faults, survivors in rows:
        print(f"{module:12} {num_faults:>7} {num_faults - len(survivors):>8} {len(survivors):>8}")


if __name__ == "__main__":
    main()
