"""What a program of the whitelist language calls: Python's own functions and operations, each counting its work in steps.

Standard library only. Two things would make a result depend on the machine: the time limit, and addresses in memory. So work
is counted, inside of Python's own functions too, and nothing that shows or orders by an address can be printed or put into a set.
"""

import builtins
import operator

STEPS = 1_000_000
"""Loop passes, calls, list items and words of long integers handled by one program on all its inputs; about 0.3 s, and
where it does nothing but what is dearest, still less than the sandbox's limit on processor time."""
TYPES = frozenset(["bool", "dict", "float", "int", "list", "range", "set", "str", "tuple"])
CHEAP = frozenset(
    ["append", "add", "discard", "get", "keys", "values", "items", "len", "isinstance"]
)
"""What takes no longer for more items."""
LAZY = frozenset(["all", "any", "enumerate", "filter", "map", "reversed", "zip"])
"""What takes an iterator's items one by one."""
OTHERS = frozenset(
    ["abs", "divmod", "isinstance", "len", "max", "min", "pow", "round", "sorted", "sum"]
)
SIZED = frozenset(["len", "isinstance"])
"""What does not look at the items of its arguments."""
SCALARS = (int, float, complex, str, bytes, range)
SMALL = (float, bool, type(None))
TEXTS = (str, bytes, range)
CONTAINERS = (list, tuple, set, dict, type({}.keys()), type({}.values()), type({}.items()))
HASHED = (set, dict, type({}.keys()))


class StepLimit(Exception):
    """The program took too many steps. The language has no `try`, so it cannot go on from here."""


class Runtime:
    """What an instrumented program calls instead of Python's own operations.

    Whatever it can call counts its own work, also where Python calls it (`map ( max , rows )`), so no combination of C
    functions does much more than it counts.
    """

    def __init__(self):
        self.left = STEPS

    def names(self):
        """The program's builtins, and the names that the instrumented program uses."""
        known = {name: self.metered(getattr(builtins, name)) for name in LAZY | OTHERS}
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
        """The value, if neither its text nor its hash shows an address: numbers, text, None and containers of these.

        Raises:
            TypeError: it holds a function, a type, an iterator or the like.
        """
        return _clear(self.look(value))

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


def _clear(value):
    if isinstance(value, CONTAINERS):
        for item in value.items() if isinstance(value, dict) else value:
            _clear(item)
    elif value is not None and not isinstance(value, SCALARS):
        raise TypeError("a function, type or iterator has no fixed text or order")
    return value


def _words(number):
    return 1 + number.bit_length() // 64


def _size(value):
    return len(value) if type(value) in TEXTS or type(value) in CONTAINERS else 0


def _settled(value):
    """An iterator's items: only they tell what work they are."""
    return list(value) if hasattr(value, "__next__") else value
