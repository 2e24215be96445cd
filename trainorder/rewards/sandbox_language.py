"""The whitelist language of the sandbox: which Python is allowed, and how it is made to count its work (sandbox_runtime.py).

Standard library only.
"""

import ast
import builtins

LENGTH = 100_000
"""Characters of a program; parsing a longer one is work that nothing counts."""


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


class Forbidden(Exception):
    """The program uses a piece of Python outside the whitelist."""


def compile_function(source, runtime):
    """`def f(xs):` with this body, checked, and instrumented so that the runtime counts its work."""
    if len(source) > LENGTH:
        raise Forbidden(f"over {LENGTH} characters")
    tree = parsed(source)
    for node in ast.walk(tree):
        check(node)
    tree = ast.fix_missing_locations(Instrument().visit(tree))
    function = defined(tree, {"__builtins__": runtime.names()})
    return lambda value: runtime.look(function(value))


def compile_python(source):
    """`def f(xs):` with this body, which may be any Python."""
    return defined(parsed(source), {"__builtins__": vars(builtins), "__name__": "answer"})


def parsed(source):
    """The syntax tree of the function."""
    return ast.parse("def f(xs):\n" + "\n".join("    " + row for row in source.split("\n")))


def defined(tree, names):
    """The function, which sees these names."""
    if len(tree.body) != 1:  # a carriage return or form feed ends the indentation
        raise Forbidden("code outside of the function")
    exec(compile(tree, "<answer>", "exec"), names)
    return names["f"]


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


class Instrument(ast.NodeTransformer):
    """Lets every loop pass, call and operation go through `Runtime`."""

    def _call(self, name, *arguments):
        return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])

    def _rests(self, target):
        """What `*a` of a loop's target copied."""
        rests = [node.value for node in ast.walk(target) if isinstance(node, ast.Starred)]
        names = [node.id for node in rests if isinstance(node, ast.Name)]
        if len(names) < len(rests):
            raise Forbidden("Starred")
        return [self._call("_part", ast.Name(name, ast.Load())) for name in names]

    def _loop(self, node):
        rests = self._rests(node.target) if isinstance(node, ast.For) else []
        self.generic_visit(node)
        node.body[:0] = [ast.Expr(each) for each in (self._call("_tick"), *rests)]
        return node

    visit_For = visit_While = visit_FunctionDef = _loop

    def visit_comprehension(self, node):
        """A step per pass."""
        rests = self._rests(node.target)
        self.generic_visit(node)
        counted = [ast.BoolOp(ast.Or(), [each, ast.Constant(True)]) for each in rests]
        node.ifs[:0] = [self._call("_tick"), *counted]
        return node

    def visit_Lambda(self, node):
        """A step per call."""
        self.generic_visit(node)
        node.body = ast.IfExp(self._call("_tick"), node.body, ast.Constant(None))
        return node

    def visit_Attribute(self, node):
        """A.b -> _attribute(a, "b")."""
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        return self._call("_attribute", node.value, ast.Constant(node.attr))

    def visit_BinOp(self, node):
        """A + b -> _operate("add", a, b)."""
        self.generic_visit(node)
        name = ast.Constant(OPERATORS[type(node.op).__name__])
        return self._call("_operate", name, node.left, node.right)

    def visit_UnaryOp(self, node):
        """-a -> -_look(a)."""
        self.generic_visit(node)
        if not isinstance(node.op, ast.Not):
            node.operand = self._looked(node.operand)
        return node

    def visit_Compare(self, node):
        """A in b -> _within(a, b); a < b -> _look(a) < _look(b)."""
        self.generic_visit(node)
        if len(node.ops) == 1 and isinstance(node.ops[0], ast.In | ast.NotIn):
            found = self._call("_within", node.left, node.comparators[0])
            return ast.UnaryOp(ast.Not(), found) if isinstance(node.ops[0], ast.NotIn) else found
        if not all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            node.left = self._looked(node.left)
            node.comparators = [self._looked(side) for side in node.comparators]
        return node

    def _looked(self, node):
        return node if isinstance(node, ast.Constant) else self._call("_look", node)

    def visit_Subscript(self, node):
        """What a slice copies or moves is counted, and so is what a key hashes."""
        self.generic_visit(node)
        if not isinstance(node.slice, ast.Slice):
            node.slice = self._looked(node.slice)
        elif isinstance(node.ctx, ast.Load):
            return self._call("_part", node)
        if not isinstance(node.ctx, ast.Load) and not isinstance(node.slice, ast.Constant):
            moved = isinstance(node.slice, ast.Slice) or isinstance(node.ctx, ast.Del)
            node.value = self._call("_part", node.value) if moved else node.value
        return node

    def visit_Starred(self, node):
        """*a -> *_part(a)."""
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            node.value = self._call("_part", node.value)
        return node

    def visit_Dict(self, node):
        """Keys are hashed, and `**a` is copied."""
        self.generic_visit(node)
        for i, key in enumerate(node.keys):
            if key is None:
                node.values[i] = self._call("_look", node.values[i])
            else:
                node.keys[i] = self._looked(key)
        return node

    def visit_DictComp(self, node):
        """Keys are hashed."""
        self.generic_visit(node)
        node.key = self._call("_look", node.key)
        return node

    def visit_Assign(self, node):
        """A, *b = c copies what c holds; so does a[:] = c."""
        self.generic_visit(node)
        if any(isinstance(target, ast.Tuple | ast.List | ast.Subscript) for target in node.targets):
            node.value = self._call("_part", node.value)
        return node

    def visit_AugAssign(self, node):
        """A += b -> a = _operate("iadd", a, b); a[b] += c -> _update(a, b, "iadd", c)."""
        name, target = ast.Constant(IN_PLACE[type(node.op).__name__]), node.target
        value = self.visit(node.value)
        if isinstance(target, ast.Name):
            old = ast.Name(target.id, ast.Load())
            return ast.Assign([target], self._call("_operate", name, old, value))
        if isinstance(target, ast.Subscript):
            key = target.slice
            if isinstance(key, ast.Slice):
                ends = (key.lower, key.upper, key.step)
                key = self._call("_slice", *(end or ast.Constant(None) for end in ends))
            owner = self.visit(target.value)
            return ast.Expr(self._call("_update", owner, self.visit(key), name, value))
        raise Forbidden("assignment to an attribute")

    def visit_Set(self, node):
        """{a, b} -> _set([a, b])."""
        self.generic_visit(node)
        return self._call("_set", ast.List(node.elts, ast.Load()))

    def visit_SetComp(self, node):
        """{a for ...} -> _set([a for ...])."""
        self.generic_visit(node)
        return self._call("_set", ast.ListComp(node.elt, node.generators))
