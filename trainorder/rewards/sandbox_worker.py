"""The sandbox's own process: reads one JSON request per line, forks a child per program, writes one JSON reply per line.

Started by sandbox.py as a bare interpreter, so it may import the standard library only. Before the first program it gives
away what it can (sandbox_isolation.py); what is left of a program is killed before the next one starts.
"""

import ast
import builtins
import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # run as a bare script, this is no part of a package
import sandbox_isolation as isolation

sys.path.pop()


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


class Forbidden(Exception):
    """The program uses a piece of Python outside the whitelist."""


class Settings:
    """What sandbox.py passes on the command line."""

    def __init__(self, cpu, wall, memory, size, processes, language, highest):
        self.cpu, self.wall = float(cpu), float(wall)
        self.memory, self.size, self.processes = int(memory), int(size), int(processes)
        self.python = language == "python"
        self.highest = highest
        self.filter: isolation.Filter | None = None


def main():
    """Say which isolation was reached, then serve requests until the parent closes the pipe."""
    settings = Settings(*sys.argv[1:])
    # The children get no way to the parent: stdin and stdout move to numbers that every child closes.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if settings.python:
        isolation.preload()
    level, missing = isolation.enter(settings.highest, libraries=settings.python)
    if level != "process":
        settings.filter = isolation.syscall_filter(settings.python, settings.processes > 0)
    replies.write(json.dumps({"level": level, "missing": missing}).encode() + b"\n")
    replies.flush()
    for line in requests:
        reply = run(line, settings, alone=level == "namespaces")
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def run(line, settings, alone):
    """Fork, wait for the result pipe to close, kill what is left, explain what happened."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(line, writer, settings)
    os.close(writer)
    text, why = collect(reader, time.monotonic() + settings.wall, settings.size)
    os.close(reader)
    status = end(pid, alone)
    if why:
        return {"error": "killed: " + why}
    try:
        reply = json.loads(text)
        if isinstance(reply, dict) and isinstance(reply.get("outputs"), list):
            return {"outputs": plain(reply["outputs"], -1)}
        if isinstance(reply, dict):
            return {"error": str(reply.get("error"))[:200]}
    except (ValueError, TypeError, RecursionError):
        pass  # the pipe belongs to the program while it runs: it may hold anything
    spent = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGXCPU)
    return {"error": "killed: cpu" if spent else "killed: no result"}


def end(pid, alone):
    """Kill a program with all it started; returns its wait status.

    As process 1 of a namespace, `kill(-1)` reaches every other process in it at once, whatever session it moved to.
    """
    status = 0
    for kill, target in [(os.kill, -1)] if alone else [(os.killpg, pid), (os.kill, pid)]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(target, signal.SIGKILL)
    while True:
        try:
            ended, code = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if ended == pid:
            status = code


def collect(reader, deadline, size):
    """What the child wrote, and why it was cut off if it was."""
    chunks, total = [], 0
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return b"", "clock"
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return b"".join(chunks), ""
        chunks.append(chunk)
        total += len(chunk)
        if total > size:
            return b"", "output too long"


def child(line, writer, settings):
    """Never returns; its only open file is the result pipe."""
    try:
        try:
            os.setsid()
            confine(writer, settings)
            text = json.dumps(
                {"outputs": outputs(settings.python, *json.loads(line))}, allow_nan=False
            )
        except BaseException as error:
            text = json.dumps({"error": explain(error)})
        data = text.encode()
        while data:
            data = data[os.write(3, data) :]
    finally:
        os._exit(0)


def confine(writer, settings):
    """The result pipe becomes file 3, all others close; limits the child cannot raise again; the syscall filter last."""
    if writer != 3:
        os.dup2(writer, 3)
    os.closerange(4, 256)
    cpu, memory, files = int(settings.cpu) + 1, settings.memory << 20, 16 if settings.python else 4
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_NPROC, (settings.processes, settings.processes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, settings.cpu)
    if settings.filter is not None:
        settings.filter.install()


def outputs(python, source, inputs):
    """The function's values; its arguments are fresh copies, so one call cannot spoil the next."""
    function = compile_function(python, source)
    return [plain(function(value)) for value in inputs]


def compile_function(python, source):
    """`def f(xs):` with this body; unless any Python is allowed, after the whole tree passed the whitelist."""
    body = "\n".join("    " + row for row in source.split("\n"))
    tree = ast.parse("def f(xs):\n" + body)
    allowed = vars(builtins)
    if not python:
        for node in ast.walk(tree):
            check(node)
        allowed = {name: getattr(builtins, name) for name in BUILTINS}
    scope: dict = (
        {"__builtins__": allowed, "__name__": "answer"} if python else {"__builtins__": allowed}
    )
    exec(compile(tree, "<answer>", "exec"), scope)
    return scope["f"]


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


def plain(value, depth=0):
    """The value as JSON keeps it: exact builtin types only, lists at most 8 deep (depth -1: the list of outputs)."""
    if type(value) in (int, float, str, bool, type(None)):
        return value
    if type(value) is list and depth < 8:
        return [plain(item, depth + 1) for item in value]
    raise TypeError("returned " + type(value).__name__)


def explain(error):
    """`NameError: name 'y' is not defined`."""
    if isinstance(error, Forbidden):
        return "forbidden: " + str(error)
    return type(error).__name__ + ": " + str(error)[:160]


if __name__ == "__main__":
    main()
