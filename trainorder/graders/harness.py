"""The program that the sandbox runs for tests: they run in its process, the completion in another that serves calls.

Values come back as plain types only, so that nothing the completion returns, raises, overwrites or exits passes a test: an
object of its own is a handle here, equal to nothing but itself. Sent to the sandbox by itself (graders/code.py), so it imports
the standard library only.
"""

import builtins
import collections
import decimal
import fractions
import importlib
import json
import os
import signal
import sys

SECONDS = 4
"""Processor time of the completion."""
SPECIAL = ("len", "getitem", "next", "str", "call")
"""Special methods that tests may use on an object of the completion; none of them says what is equal, or near to a value."""
SUMS = ("add", "sub", "mul")
"""Those of two objects of the completion. With any other value there is no arithmetic: `abs(f(x) - 3) < 1e-9` would be theirs to say."""
RESERVED = {*dir(builtins), *sys.stdlib_module_names}
"""Names that mean the same in tests as everywhere, whatever the completion defines."""
VERDICT, INPUTS = 3, 4
"""Files of the sandbox that the completion must not reach."""


LINE = None
"""To the completion's process."""


class Unsendable(Exception):
    """A test passes what cannot be sent to another process."""


def run(xs):
    """First [code], whose process starts before this one reads the tests; then [tests, entry point, own names].

    The second call gives the verdict of each test: True, False, or None for what cannot be tested this way.
    """
    global LINE
    if len(xs) > 1:
        return verdicts(LINE, *xs)
    LINE = start(*xs)
    return None


def verdicts(line, tests, entry, own):
    """The verdict of each test; `own` lists the reserved names that the tests take from the completion.

    Tests may import from it too, as from a module `solution`.
    """
    try:
        given = line.receive()
        names = {name: decode(item, line.remote) for name, item in given.items()}
        candidates = [names[entry]] if entry else []
    except Exception:  # the other process is the answer's own: what it sends can raise anything
        return [False] * len(tests)
    shown = {n for n, x in given.items() if n in own or n not in RESERVED or x == {"m": n}}
    sys.modules["solution"] = solution = type(sys)("solution")
    vars(solution).update(names, __all__=sorted(shown))
    return [verdict(test, {name: names[name] for name in shown}, candidates) for test in tests]


def start(code):
    """The tests' side of the pipes to a process that runs the completion."""
    to_answer, from_answer = os.pipe(), os.pipe()
    if os.fork() == 0:
        try:
            for file in (VERDICT, INPUTS, to_answer[1], from_answer[0]):
                os.close(file)
            serve(code, os.fdopen(to_answer[0]), os.fdopen(from_answer[1], "w"))
        finally:
            os._exit(1)
    os.close(to_answer[0])
    os.close(from_answer[1])
    return Line(os.fdopen(to_answer[1], "w"), os.fdopen(from_answer[0]))


def verdict(test, space, candidates):
    """One test: statements, then the functions `check` (of each candidate) or `test_...` that they define."""
    space |= {"__name__": "tests", "__builtins__": builtins}
    before = dict(space)
    try:
        exec(compile(test, "<test>", "exec"), space)
        for candidate in candidates:
            space["check"](candidate)
        for name, value in list(space.items()):
            if name.startswith("test_") and before.get(name) is not value and callable(value):
                value()
    except Unsendable:
        return None
    except BaseException:
        return False
    return True


class Line:
    """The tests' side of the pipe to the completion."""

    def __init__(self, requests, replies):
        self.requests, self.replies = requests, replies
        self.remotes = {}

    def receive(self):
        """The next reply; what the completion raised is raised here, as a builtin exception of that name if there is one."""
        line = self.replies.readline()
        if not line.endswith("\n"):
            raise EOFError("the answer's process ended")
        reply = json.loads(line)
        if "error" in reply:
            name, text = map(str, reply["error"])
            kind = getattr(builtins, name, None)
            good = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if good else type(name, (Exception,), {}))(text)
        return reply["value"]

    def ask(self, **request):
        """The reply to a request."""
        self.requests.write(json.dumps(request) + "\n")
        self.requests.flush()
        return self.receive()

    def remote(self, handle):
        """An object of the completion, which is one object here too."""
        return self.remotes.setdefault(handle, Remote(self, handle))

    def call(self, handle, name, args, kwargs):
        """The value of a call; lists and the like that the call changed are changed here too."""
        value, changed = self.ask(
            do="call",
            of=handle,
            name=name,
            args=encode(list(args), unkept),
            kwargs={key: encode(item, unkept) for key, item in kwargs.items()},
        )
        for old, new in zip(args, changed, strict=True):
            if new is not None:
                refill(old, decode(new, self.remote))
        return decode(value, self.remote)


class Remote:
    """A handle of an object that lives in the completion's process."""

    def __init__(self, line, handle):
        object.__setattr__(self, "_line", line)
        object.__setattr__(self, "_handle", handle)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return decode(self._line.ask(do="get", of=self._handle, name=name), self._line.remote)

    def __setattr__(self, name, value):
        self._line.ask(do="set", of=self._handle, name=name, value=encode(value, unkept))

    def __bool__(self):
        return bool(self._line.ask(do="truth", of=self._handle))

    def __iter__(self):
        """Its items, as many as it says it has: one that hides them passes no test of every item."""
        count = 0
        for item in self._line.call(self._handle, "__iter__", (), {}):
            count += 1
            yield item
        said = self._line.ask(do="length", of=self._handle)
        if said is not None and said != {"i": hex(count)}:
            raise TypeError("an object has another length than items")


def special(name):
    """A method that is called over there."""
    return lambda self, *args, **kwargs: self._line.call(self._handle, name, args, kwargs)


def between(name):
    """The same, where the other side is an object of the completion too."""
    method = special(name)
    return lambda self, other: method(self, other) if type(other) is Remote else NotImplemented


for word in SPECIAL:
    setattr(Remote, f"__{word}__", special("" if word == "call" else f"__{word}__"))
for word in SUMS:
    setattr(Remote, f"__{word}__", between(f"__{word}__"))


def unkept(value):
    """The handle of an object that came from the completion."""
    if type(value) is Remote:
        return {"o": value._handle}
    raise Unsendable(type(value).__name__)


def refill(old, new):
    """Give a container the content it has after a call."""
    if type(old) is list:
        old[:] = new
    elif type(old) in (dict, set):
        old.clear()
        old.update(new)


def serve(code, requests, replies):
    """The completion's process: its names, then the reply to every request."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends this process
    objects, places = [], {}

    def keep(value):
        if id(value) not in places:
            places[id(value)] = len(objects)
            objects.append(value)  # which also keeps its id from being another's
        return {"o": places[id(value)]}

    def reply(work):
        try:
            text = json.dumps({"value": work()})
        except BaseException as error:
            text = json.dumps({"error": [type(error).__name__, str(error)[:200]]})
        replies.write(text + "\n")
        replies.flush()

    def names():
        space = {"__name__": "answer", "__builtins__": builtins}
        exec(compile(code, "<answer>", "exec"), space)
        shown = {name: item for name, item in space.items() if not name.startswith("__")}
        return {name: encode(item, keep) for name, item in shown.items()}

    def act(request):
        target = objects[request["of"]]
        if request["do"] == "get":
            return encode(getattr(target, request["name"]), keep)
        if request["do"] == "truth":
            return bool(target)
        if request["do"] == "length":
            return encode(len(target), keep) if hasattr(target, "__len__") else None
        find = objects.__getitem__
        if request["do"] == "set":
            return setattr(target, request["name"], decode(request["value"], find))
        args = decode(request["args"], find)
        kwargs = {name: decode(item, find) for name, item in request["kwargs"].items()}
        value = (getattr(target, request["name"]) if request["name"] else target)(*args, **kwargs)
        filled = [encode(a, keep) if type(a) in (list, dict, set) else None for a in args]
        return [encode(value, keep), filled]

    reply(names)
    for line in requests:
        request = json.loads(line)
        reply(lambda request=request: act(request))
    os._exit(0)


def encode(value, keep):
    """A value as JSON: plain types exactly, a module by its name, anything else as `keep` says."""
    kind = type(value)
    if kind in (bool, str, type(None)):
        return value
    if kind is int:
        return {"i": hex(value)}
    if kind is float:
        return {"f": value.hex()}
    if kind is complex:
        return {"c": [value.real.hex(), value.imag.hex()]}
    if kind is bytes:
        return {"b": value.hex()}
    if kind is decimal.Decimal:
        return {"n": str(value)}
    if kind is fractions.Fraction:
        return {"q": f"{value.numerator}/{value.denominator}"}
    if kind is list:
        return [encode(item, keep) for item in value]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [encode(item, keep) for item in value]}
    if kind in (dict, collections.Counter, collections.defaultdict, collections.OrderedDict):
        return {"d": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    if kind is type(os):
        return {"m": value.__name__}
    return keep(value)


def decode(value, find):
    """What `encode` was given; `find` gives the object of a handle."""
    if isinstance(value, list):
        return [decode(item, find) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, inner)] = value.items()
    made = {
        "i": lambda: int(inner, 16),
        "f": lambda: float.fromhex(inner),
        "c": lambda: complex(*map(float.fromhex, inner)),
        "b": lambda: bytes.fromhex(inner),
        "n": lambda: decimal.Decimal(inner),
        "q": lambda: fractions.Fraction(inner),
        "d": lambda: {decode(k, find): decode(v, find) for k, v in inner},
        "m": lambda: importlib.import_module(inner),
        "o": lambda: find(inner),
    }
    if kind in made:
        return made[kind]()
    items = [decode(item, find) for item in inner]
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](items)


def talk(xs):
    """What a program prints for an input, as `[text]`, or null where it fails; xs = [code, input]."""
    import io
    import sys

    code, given = xs
    sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()), encoding="utf-8")
    sys.stdout = printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    try:
        exec(compile(code, "<answer>", "exec"), {"__name__": "__main__", "__builtins__": builtins})
    except SystemExit:
        pass
    except BaseException:
        return None
    printed.flush()
    return [printed.buffer.getvalue().decode("utf-8", "replace")]
