"""The whitelist language of the sandbox: which Python is allowed, and how it is made to give the same result everywhere.

Standard library only. Two things would make a result depend on the machine: the time limit, and addresses in memory.
So work is counted in steps, and nothing that shows or orders by an address can be printed or put into a set.
"""

import ast
import builtins
import operator

STEPS = 1_000_000
"""Loop passes, calls and list items handled by one program on all its inputs; about 0.3 s."""


def words(text):
    """The words as a set."""
    return frozenset(text.split())


NODES = words("""
Module FunctionDef arguments arg Return Expr Assign AugAssign AnnAssign For While If Break Continue
Pass BoolOp And Or BinOp Add Sub Mult Div FloorDiv Mod Pow LShift RShift BitOr BitXor BitAnd UnaryOp
Invert Not UAdd USub Lambda IfExp Dict Set List Tuple ListComp SetComp DictComp GeneratorExp
comprehension Compare Eq NotEq Lt LtE Gt GtE Is IsNot In NotIn Call keyword Constant Attribute
Subscript Slice Starred Name Load Store Del NamedExpr
""")
"""No import, class, try, global, with, f-string, async: none of these is needed to transform a list."""
ATTRIBUTES = words("""
append extend insert pop remove index count sort reverse copy clear get items keys values update add
discard union intersection difference split join strip lower upper startswith endswith replace isdigit
""")
"""Methods of the plain types; no way leads from them to frames, modules or type internals."""
BUILTINS = words("""
abs all any bool dict divmod enumerate filter float int isinstance len list map max min pow range
reversed round set sorted str sum tuple zip
""")
OPERATORS = {
    "Add": "add",
    "Sub": "sub",
    "Mult": "mul",
    "Div": "truediv",
    "FloorDiv": "floordiv",
    "Mod": "mod",
    "Pow": "pow",
    "LShift": "lshift",
    "RShift": "rshift",
    "BitOr": "or_",
    "BitXor": "xor",
    "BitAnd": "and_",
}
IN_PLACE = {name: "i" + function.rstrip("_") for name, function in OPERATORS.items()}
SCALARS = (int, float, complex, str, bytes, range)
CONTAINERS = (list, tuple, set, dict, type({}.keys()), type({}.values()), type({}.items()))


class Forbidden(Exception):
    """The program uses a piece of Python outside the whitelist."""


class StepLimit(Exception):
    """The program took too many steps. The language has no `try`, so it cannot go on from here."""


def compile_function(python, source):
    """`def f(xs):` with this body; unless any Python is allowed, checked and instrumented."""
    body = "\n".join("    " + row for row in source.split("\n"))
    tree = ast.parse("def f(xs):\n" + body)
    allowed: dict = {"__builtins__": vars(builtins), "__name__": "answer"}
    if not python:
        for node in ast.walk(tree):
            check(node)
        tree = ast.fix_missing_locations(Instrument().visit(tree))
        allowed = {"__builtins__": Runtime().names()}
    if len(tree.body) != 1:  # a carriage return or form feed ends the indentation
        raise Forbidden("code outside of the function")
    exec(compile(tree, "<answer>", "exec"), allowed)
    return allowed["f"]


def check(node):
    """Refuse a node outside the whitelist."""
    kind = type(node).__name__
    if kind not in NODES:
        raise Forbidden(kind)
    if kind == "Attribute" and node.attr not in ATTRIBUTES:
        raise Forbidden("attribute " + node.attr)
    for name in (getattr(node, key, None) for key in ("id", "arg", "name")):
        if isinstance(name, str) and name.startswith("_"):
            raise Forbidden("name " + name)


def clear(value):
    """The value, if neither its text nor its hash shows an address: numbers, text, None and containers of these.

    Raises:
        TypeError: it holds a function, a type, an iterator or the like.
    """
    if isinstance(value, CONTAINERS):
        for item in value.items() if isinstance(value, dict) else value:
            clear(item)
    elif value is not None and not isinstance(value, SCALARS):
        raise TypeError("a function, type or iterator has no fixed text or order")
    return value


class Runtime:
    """What an instrumented program calls instead of Python's own operations."""

    def __init__(self):
        self.left = STEPS

    def names(self):
        """The program's builtins."""
        known = {name: getattr(builtins, name) for name in BUILTINS}
        known |= {"str": _guarded(str, lambda text: text), "set": _guarded(set, _orderable)}
        known["range"] = _guarded(range, self.measured)
        own = {"_tick": self.tick, "_call": self.call, "_operate": self.operate}
        return known | own | {"_set": known["set"], "_clear": clear}

    def tick(self, count=1):
        """Count steps; True, so that it fits into a comprehension's conditions."""
        self.left -= count
        if self.left < 0:
            raise StepLimit
        return True

    def measured(self, value):
        """A range costs its length, whatever walks over it."""
        self.tick(_size(value))
        return value

    def call(self, function, *arguments, **named):
        """A call costs the sizes of its arguments and of the object whose method it is."""
        owner = getattr(function, "__self__", None)
        self.tick(1 + sum(map(_size, (owner, *arguments))))
        result = function(*arguments, **named)
        for changed in (owner, result):
            if type(changed) is set:
                _orderable(changed)
        return result

    def operate(self, name, left, right):
        """An operation costs the size of what comes out, known before it is computed where that may be huge."""
        if type(left) is str and name in ("mod", "imod"):
            clear(right)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            if name in ("pow", "ipow") and right > 0:
                bits *= right
            elif name in ("lshift", "ilshift"):
                bits += max(0, right)
            elif name in ("mul", "imul"):
                bits *= 1 + right.bit_length() // 64
            self.tick(1 + bits // 64)
        result = getattr(operator, name)(left, right)
        self.tick(1 + _size(result))
        return _orderable(result) if type(result) is set else result


def _size(value):
    return len(value) if type(value) in (list, tuple, set, dict, str, bytes, range) else 0


def _orderable(value):
    """The set, if its order is the same everywhere: None hashes by its address."""
    clear(value)
    if None in value:
        raise TypeError("None in a set has no fixed order")
    return value


def _guarded(kind, after):
    """A stand-in for a type: its calls are checked, and it still works as a type in `isinstance`."""

    class Meta(type):
        def __call__(cls, *arguments):
            if kind is str:
                any(map(clear, arguments))
            return after(kind(*arguments))

        def __instancecheck__(cls, value):
            return isinstance(value, kind)

        def __getattr__(cls, name):
            return getattr(kind, name)

    return Meta(kind.__name__, (), {})


class Instrument(ast.NodeTransformer):
    """Lets every loop pass, call and operation go through `Runtime`."""

    def _call(self, name, *arguments):
        return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])

    def _loop(self, node):
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(self._call("_tick")))
        return node

    visit_For = visit_While = visit_FunctionDef = _loop

    def visit_comprehension(self, node):
        """A step per pass."""
        self.generic_visit(node)
        node.ifs.insert(0, self._call("_tick"))
        return node

    def visit_Lambda(self, node):
        """A step per call."""
        self.generic_visit(node)
        node.body = ast.IfExp(self._call("_tick"), node.body, ast.Constant(None))
        return node

    def visit_Call(self, node):
        """f(x) -> _call(f, x)."""
        self.generic_visit(node)
        return ast.Call(ast.Name("_call", ast.Load()), [node.func, *node.args], node.keywords)

    def visit_BinOp(self, node):
        """A + b -> _operate("add", a, b)."""
        self.generic_visit(node)
        name = ast.Constant(OPERATORS[type(node.op).__name__])
        return self._call("_operate", name, node.left, node.right)

    def visit_AugAssign(self, node):
        """A += b -> a = _operate("iadd", a, b); where a is an item, only b is checked."""
        self.generic_visit(node)
        if not isinstance(node.target, ast.Name):
            node.value = self._call("_clear", node.value)
            return node
        name = ast.Constant(IN_PLACE[type(node.op).__name__])
        old = ast.Name(node.target.id, ast.Load())
        return ast.Assign([node.target], self._call("_operate", name, old, node.value))

    def visit_Set(self, node):
        """{a, b} -> _set([a, b])."""
        self.generic_visit(node)
        return self._call("_set", ast.List(node.elts, ast.Load()))

    def visit_SetComp(self, node):
        """{a for ...} -> _set([a for ...])."""
        self.generic_visit(node)
        return self._call("_set", ast.ListComp(node.elt, node.generators))
