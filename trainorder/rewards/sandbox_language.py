"""The whitelist language of the sandbox: which Python is allowed, and how it is made to give the same result everywhere.

Standard library only. Two things would make a result depend on the machine: the time limit, and addresses in memory.
So work is counted in steps, inside of Python's own functions too, and nothing that shows or orders by an address can be
printed or put into a set.
"""

import ast
import builtins
import operator

LENGTH = 100_000
"""Characters of a program; parsing a longer one is work that nothing counts."""
STEPS = 1_000_000
"""Loop passes, calls, list items and words of long integers handled by one program on all its inputs; about 0.3 s, and
where it does nothing but what is dearest, still less than the sandbox's limit on processor time."""


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
TYPES = words("bool dict float int list range set str tuple")
CHEAP = words("append add discard get keys values items len isinstance")
"""What takes no longer for more items."""
LAZY = words("all any enumerate filter map reversed zip")
"""What takes an iterator's items one by one."""
SIZED = words("len isinstance")
"""What does not look at the items of its arguments."""
SCALARS = (int, float, complex, str, bytes, range)
SMALL = (float, bool, type(None))
TEXTS = (str, bytes, range)
CONTAINERS = (list, tuple, set, dict, type({}.keys()), type({}.values()), type({}.items()))
HASHED = (set, dict, type({}.keys()))


class Forbidden(Exception):
    """The program uses a piece of Python outside the whitelist."""


class StepLimit(Exception):
    """The program took too many steps. The language has no `try`, so it cannot go on from here."""


def compile_function(python, source):
    """`def f(xs):` with this body; unless any Python is allowed, checked and instrumented."""
    if not python and len(source) > LENGTH:
        raise Forbidden(f"over {LENGTH} characters")
    body = "\n".join("    " + row for row in source.split("\n"))
    tree = ast.parse("def f(xs):\n" + body)
    allowed: dict = {"__builtins__": vars(builtins), "__name__": "answer"}
    runtime = Runtime()
    if not python:
        for node in ast.walk(tree):
            check(node)
        tree = ast.fix_missing_locations(Instrument().visit(tree))
        allowed = {"__builtins__": runtime.names()}
    if len(tree.body) != 1:  # a carriage return or form feed ends the indentation
        raise Forbidden("code outside of the function")
    exec(compile(tree, "<answer>", "exec"), allowed)
    function = allowed["f"]
    return function if python else lambda value: runtime.look(function(value))


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
    """What an instrumented program calls instead of Python's own operations.

    Whatever it can call counts its own work, also where Python calls it (`map ( max , rows )`), so no combination of C
    functions does much more than it counts.
    """

    def __init__(self):
        self.left = STEPS

    def names(self):
        """The program's builtins, and the names that the instrumented program uses."""
        known = {name: self.metered(getattr(builtins, name)) for name in BUILTINS - TYPES}
        known |= {name: self.guarded(getattr(builtins, name)) for name in TYPES}
        known |= {"sum": self.sum, "pow": self.pow, "round": self.round, "divmod": self.divmod}
        own = {"_tick": self.tick, "_operate": self.operate, "_attribute": self.attribute}
        own |= {"_look": self.look, "_part": self.part, "_update": self.update, "_slice": slice}
        return known | own | {"_set": known["set"], "_within": self.within}

    def tick(self, count=1):
        """Count steps; True, so that it fits into a comprehension's conditions."""
        self.left -= count
        if self.left < 0:
            raise StepLimit
        return True

    def look(self, value):
        """The value, after counting all that walking through it takes: items, letters, words of long integers."""
        kind = type(value)
        if kind is int:
            self.tick(value.bit_length() >> 6)
        elif kind in TEXTS:
            self.tick(len(value))
        elif kind in CONTAINERS:
            self.tick(len(value))
            for item in value:
                if type(item) not in SMALL:
                    self.look(item)
            if kind is dict:
                self.look(value.values())
        return value

    def clear(self, value):
        """The value, if neither its text nor its hash shows an address.

        Raises:
            TypeError: it holds a function, a type, an iterator or the like.
        """
        return clear(self.look(value))

    def orderable(self, value):
        """The set, if its order is the same everywhere: None hashes by its address."""
        self.clear(value)
        if None in value:
            raise TypeError("None in a set has no fixed order")
        return value

    def part(self, value):
        """The value, after counting its items only: what a copy of it takes."""
        self.tick(_size(value))
        return value

    def call(self, function, *arguments, **named):
        """A call costs the sizes of its arguments, of what it gives, and of the object whose method it is."""
        owner = getattr(function, "__self__", None)
        name = getattr(function, "__name__", "")
        self.tick()
        if name not in CHEAP:
            self.look(owner)
        if name not in CHEAP | LAZY:
            arguments = [_settled(value) for value in arguments]
        if name not in SIZED:
            for value in arguments:
                self.look(value)
        result = function(*arguments, **named)
        for changed in (owner, result):
            if type(changed) is set:
                self.orderable(changed)
        return self.part(result)

    def metered(self, function):
        """The function, counting its work wherever it is called."""

        def call(*arguments, **named):
            return self.call(function, *arguments, **named)

        return call

    def guarded(self, kind):
        """A stand-in for a type: its calls are counted and checked, and it still works as a type in `isinstance`."""
        runtime = self

        class Meta(type):
            def __call__(cls, *arguments, **named):
                if kind is str:
                    any(map(runtime.clear, arguments))
                return runtime.call(kind, *arguments, **named)

            def __instancecheck__(cls, value):
                return isinstance(value, kind)

            def __getattr__(cls, name):
                return runtime.metered(getattr(kind, name))

        return Meta(kind.__name__, (), {})

    def attribute(self, owner, name):
        """A method that counts its work."""
        found = getattr(owner, name)
        return found if isinstance(owner, type) else self.metered(found)

    def sum(self, values, start=0):
        """Adding up lists or long integers takes the square of their number; numbers that fit into a word do not."""
        items = _settled(self.look(values))
        self.look(items)
        if all(type(v) in SMALL or (type(v) is int and abs(v) < 1 << 64) for v in (*items, start)):
            return sum(items, start)
        if isinstance(start, str):
            return sum(items, start)  # refused, with Python's own words
        for item in items:
            start = self.operate("add", start, item)
        return start

    def pow(self, base, exponent, modulus=None):
        """The power, costing what it multiplies."""
        if modulus is None:
            return self.operate("pow", base, exponent)
        if all(isinstance(v, int) for v in (base, exponent, modulus)):
            self.tick((1 + exponent.bit_length()) * (1 + _words(modulus)) ** 2)
        return pow(base, exponent, modulus)

    def round(self, number, digits=None):
        """The rounded number; an integer is divided by a power of ten."""
        if isinstance(number, int) and isinstance(digits, int) and digits < 0:
            self.operate("pow", 10, -digits)
        return round(self.look(number), digits)

    def divmod(self, left, right):
        """Both from one division, at the price of two."""
        return self.operate("floordiv", left, right), self.operate("mod", left, right)

    def within(self, left, right):
        """`left in right`: a hash for sets and dicts, else a comparison per item."""
        self.look(left)
        if type(right) in HASHED:
            return left in right
        if not hasattr(right, "__next__"):
            return left in self.look(right)
        return any(item is left or self.look(item) == left for item in right)

    def update(self, owner, key, name, value):
        """`owner[key] += value`."""
        owner[key] = self.operate(name, owner[self.look(key)], value)

    def operate(self, name, left, right):
        """An operation costs the size of what comes out, known before it is computed where that may be huge."""
        if type(left) is str and name in ("mod", "imod"):
            self.clear(right)
        if isinstance(left, int) and isinstance(right, int):
            words, others = _words(left), _words(right)
            if name in ("pow", "ipow") and right > 0:
                words = 1 + left.bit_length() * right // 64
                words *= 1 + words // 64
            elif name in ("lshift", "ilshift"):
                words += max(0, right) // 64
            elif name.strip("i") in ("mul", "floordiv", "mod", "truediv"):
                words *= others
            self.tick(words + others)
        else:
            self.look(right)
            if not name.startswith("i"):
                self.part(left)
        result = getattr(operator, name)(left, right)
        self.tick(1 + _size(result))
        return self.orderable(result) if type(result) is set else result


def _words(number):
    return 1 + number.bit_length() // 64


def _size(value):
    return len(value) if type(value) in TEXTS or type(value) in CONTAINERS else 0


def _settled(value):
    """An iterator's items: only they tell what work they are."""
    return list(value) if hasattr(value, "__next__") else value


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
