"""What seed files are asked for, read off the syntax trees of all kernels, and that ``kernels`` stands alone.

No ``break``, ``continue`` or early ``return`` in a kernel, blocks that are powers of two, grids of at least one.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernels
from kernels.fused import block_of

SOURCES = sorted(Path(kernels.__file__).parent.rglob("*.py"))
PATHS = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)


def jit_functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            "jit" in ast.unparse(d).split("(")[0] for d in node.decorator_list
        ):
            yield node


def forbidden(function: ast.FunctionDef) -> list[str]:
    """Statements a kernel must not have: break, continue, and any return but the last statement of all."""
    found = [type(node).__name__ for node in ast.walk(function) if isinstance(node, (ast.Break, ast.Continue))]
    returns = [node for node in ast.walk(function) if isinstance(node, ast.Return)]
    return found + ["Return" for node in returns if node is not function.body[-1]]


@PATHS
def test_kernels_have_no_break_continue_or_early_return(path: Path):
    for function in jit_functions(ast.parse(path.read_text())):
        assert forbidden(function) == [], function.name


def test_the_syntax_trees_hold_every_kernel():
    found = {function.name for path in SOURCES for function in jit_functions(ast.parse(path.read_text()))}
    assert found >= {"rope_kernel", "rotate_rows", "rotate", "rounded_product", "qk_kernel", "attention_kernel"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("for i in range(3):\n  break", ["Break"]),
        ("for i in range(3):\n  continue", ["Continue"]),
        ("if x:\n  return\nreturn", ["Return"]),
        ("return 1", []),
        ("if x:\n  return 1", ["Return"]),
        ("return 1\nx = 2", ["Return"]),
    ],
)
def test_the_check_of_syntax_trees_sees_what_is_forbidden(body: str, expected: list[str]):
    source = "@triton.jit\ndef kernel(x):\n" + "".join(f"  {line}\n" for line in body.splitlines())
    (function,) = jit_functions(ast.parse(source))
    assert forbidden(function) == expected


ROUNDED = ("next_power_of_2", "block_of")
HOLDERS, SIDES = ("tile", "tiles", "self"), ("rows", "columns", "keys")
#: Constants of the modules that are powers of two.
CONSTANTS = {
    ast.unparse(node.targets[0])
    for path in SOURCES
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and type(node.value.value) is int
    if node.value.value > 0 and node.value.value & (node.value.value - 1) == 0
}


def is_power_of_two(node: ast.expr) -> bool:
    """Whether an expression says of itself that it is one: a number, a side of a tile, or rounded up to one.

    Sides of tiles and what block_of gives are powers of two by what makes them: the tests below say so.
    """
    if isinstance(node, ast.Name):
        return node.id in CONSTANTS
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int) and node.value > 0 and node.value & (node.value - 1) == 0
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id in HOLDERS and node.attr in SIDES
    return isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ROUNDED


def odd_blocks(tree: ast.AST) -> list[str]:
    """Blocks, in kernels and where they are launched, that are not seen to be powers of two."""
    jit = {id(inner) for function in jit_functions(tree) for inner in ast.walk(function)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.arange":
            end = node.args[1]
            if not is_power_of_two(end) and not (isinstance(end, ast.Name) and end.id.startswith("BLOCK")):
                found.append(ast.unparse(node))
        pairs: list[tuple[str, ast.expr]] = []
        if isinstance(node, ast.Call) and id(node) not in jit:
            pairs = [(key.arg, key.value) for key in node.keywords if key.arg]
        elif isinstance(node, ast.Dict):
            pairs = [(k.value, v) for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)]
        found += [name for name, value in pairs if str(name).startswith("BLOCK_") and not is_power_of_two(value)]
    return found


def launches(tree: ast.AST, kernels_of: set[str]) -> Iterator[tuple[ast.FunctionDef, ast.Subscript]]:
    """``kernel[grid]`` and the function that it stands in."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in kernels_of:
                    yield function, node


def conditions_of(function: ast.AST, node: ast.AST) -> list[ast.expr]:
    """What holds where a node is: the tests of every ``if`` around it, but those that ask for one of several."""
    return [
        branch.test
        for branch in ast.walk(function)
        if isinstance(branch, ast.If)
        and not (isinstance(branch.test, ast.BoolOp) and isinstance(branch.test.op, ast.Or))
        and any(node is inner for statement in branch.body for inner in ast.walk(statement))
    ]


def empty_grids(tree: ast.AST, kernels_of: set[str]) -> list[str]:
    """Grids of which nothing says that they are at least one: max(1, …), a return before, or a test of the grid."""
    found = []
    for function, node in launches(tree, kernels_of):
        guarded = any(
            isinstance(s, ast.If)
            and isinstance(s.test, ast.UnaryOp)
            and isinstance(s.test.op, ast.Not)
            and isinstance(s.body[-1], ast.Return)
            and s.lineno < node.lineno
            for s in function.body
        )
        sizes = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for size in sizes:
            least = (
                isinstance(size, ast.Call) and ast.unparse(size.func) == "max" and "1" in map(ast.unparse, size.args)
            )
            tested = any(
                ast.unparse(size)
                in map(ast.unparse, condition.values if isinstance(condition, ast.BoolOp) else [condition])
                for condition in conditions_of(function, node)
            )
            if not (guarded or least or tested or (isinstance(size, ast.Constant) and size.value >= 1)):
                found.append(ast.unparse(node))
    return found


LAUNCHED = {"kernel", "compiled"}  # as ``enqueue`` names what it launches
KERNELS = {function.name for path in SOURCES for function in jit_functions(ast.parse(path.read_text()))}


@PATHS
def test_blocks_are_powers_of_two(path: Path):
    assert odd_blocks(ast.parse(path.read_text())) == []


def test_blocks_of_columns_are_powers_of_two():
    assert all((block := block_of(n)) >= max(n, 16) and block & (block - 1) == 0 for n in range(300))


def test_sides_of_tiles_are_written_as_powers_of_two():
    calls = [
        node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Tiles"
        if not isinstance(node.args[0], ast.Starred)  # of the table, a pin or choose_tile
    ]
    assert len(calls) > 10
    for call in calls:
        for side in call.args[:2]:
            either = (side.body, side.orelse) if isinstance(side, ast.IfExp) else (side,)
            flat = [b for a in either for b in ((a.body, a.orelse) if isinstance(a, ast.IfExp) else (a,))]
            assert all(isinstance(one, ast.Constant) and is_power_of_two(one) for one in flat), ast.unparse(call)


@PATHS
def test_grids_are_at_least_one(path: Path):
    assert empty_grids(ast.parse(path.read_text()), KERNELS | LAUNCHED) == []


def test_every_kernel_is_launched_where_grids_are_looked_at():
    found = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        found |= {node.value.id for _, node in launches(tree, KERNELS)}
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        found |= {ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) in ("enqueue", "Prepared")}
    assert found >= {name for name in KERNELS if name.endswith("_kernel")}
    own = ast.parse(Path(kernels.launch.__file__).read_text())  # the one launch of all that are handed to it
    assert {node.value.id for _, node in launches(own, LAUNCHED)} == LAUNCHED


@pytest.mark.parametrize(
    ("body", "blocks", "grids"),
    [
        ("k[(n,)](x, BLOCK_R=tile.rows)", 0, 1),
        ("k[(max(1, n), 1)](x, BLOCK_R=64)", 0, 0),
        ("k[max(n, 1)](x, BLOCK_R=48)", 1, 0),
        ("if not n:\n  return\nk[(n, m)](x, BLOCK_R=triton.next_power_of_2(n))", 0, 0),
        ("k[(n, 1)](x, BLOCK_R=n)\nif not n:\n  return", 1, 1),
        ("constants = {'BLOCK_C': width, 'OTHER': width}", 1, 0),
        ("d = tl.arange(0, width)", 1, 0),
        ("d = tl.arange(0, BLOCK_D) + tl.arange(0, 16)", 0, 0),
        ("k[(0,)](x)", 0, 1),
    ],
)
def test_the_checks_of_blocks_and_grids_see_what_is_forbidden(body: str, blocks: int, grids: int):
    tree = ast.parse("def launch(n):\n" + "".join(f"  {line}\n" for line in body.splitlines()))
    assert len(odd_blocks(tree)) == blocks
    assert len(empty_grids(tree, {"k"})) == grids


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


@PATHS
def test_no_source_of_kernels_imports_fuzzrope(path: Path):
    tree = ast.parse(path.read_text())
    assert "fuzzrope" not in imported(tree)
    assert not any(isinstance(n, ast.Constant) and n.value == "fuzzrope" for n in ast.walk(tree))
