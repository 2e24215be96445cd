"""The sandbox: what a program may do, what it costs the others, and that a pass cannot be faked."""

from __future__ import annotations

import base64
import itertools
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from trainorder.rewards.sandbox import LEVELS, WORKER, IsolationError, Limits, Result, Sandbox


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(Limits(wall_seconds=1.0))
    yield sandbox
    sandbox.close()


def run(sandbox: Sandbox, source: str, *inputs: object) -> Result:
    return sandbox.run([(source, inputs or ([3, 1, 2],))])[0]


def test_a_program_returns_its_value_for_every_input(shared: Sandbox) -> None:
    result = run(shared, "return sum ( v for v in xs if v < 6 )", [1, 2, 9], [6], [])
    assert result == Result(outputs=[3, 0, 0])


def test_ordinary_python_of_several_lines_runs(shared: Sandbox) -> None:
    source = "best = 0\nfor v in xs:\n    if v > best:\n        best = v\nreturn [best, sorted(xs)]"
    assert run(shared, source).outputs == [[3, [1, 2, 3]]]


def test_a_call_cannot_spoil_the_argument_of_the_next(shared: Sandbox) -> None:
    assert run(shared, "xs.append(7)\nreturn xs", [1], [1]).outputs == [[1, 7], [1, 7]]


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("return (", "SyntaxError"),
        ("return y", "NameError"),
        ("return max ( [ ] )", "ValueError"),
        ("return f ( xs )", "RecursionError"),
        ("return [ 0 ] * 10 ** 12", "MemoryError"),
        ("return len ( [ 0 ] * ( 40 * 2 ** 20 ) )", "MemoryError"),  # 320 MiB, allowed are 256
        ("return 7 ** 9000", "ValueError"),
        ("return ( v for v in xs )", "TypeError: returned generator"),
        ("return { 1 , 2 }", "TypeError: returned set"),
        ("return 1e999", "ValueError"),
        ("return 'ab' * 100000", "killed: output too long"),
        ("while True : pass", "killed: steps"),
        ("return 10 ** 10 ** 8", "killed: steps"),
        ("import os", "forbidden: Import"),
        ("from os import kill", "forbidden: ImportFrom"),
        ("return xs . __class__", "forbidden: attribute __class__"),
        ("return ( v for v in xs ) . gi_frame", "forbidden: attribute gi_frame"),
        ("return '{0.__class__}' . format ( xs )", "forbidden: attribute format"),
        ("return f'{xs!r}'", "forbidden: JoinedStr"),
        ("return __builtins__", "forbidden: name __builtins__"),
        ("class A : pass", "forbidden: ClassDef"),
        ("try :\n    return 1\nfinally :\n    pass", "forbidden: Try"),
        ("global xs", "forbidden: Global"),
        ("return open ( '/etc/passwd' )", "NameError"),
        ("return type ( xs )", "NameError"),
        ("return 1\rimport os", "forbidden: Import"),
        ("return s . pop ( )\rs = [ 1 , 2 ]", "forbidden: code outside of the function"),
        ("return s . pop ( )\n\fs = [ 1 , 2 ]", "forbidden: code outside of the function"),
    ],
)
def test_what_a_program_may_not_do_names_its_reason(
    shared: Sandbox, source: str, error: str
) -> None:
    result = run(shared, source)
    assert result.outputs is None
    assert result.error.startswith(error)
    assert not result.unavailable


def test_a_value_is_an_exact_builtin_type(shared: Sandbox) -> None:
    result = run(shared, "return [ True , 1 , 1.0 , None , 'a' ]")
    assert result.outputs is not None
    assert [type(v) for v in result.outputs[0]] == [bool, int, float, type(None), str]


HEAVY = {
    "comparison": "while a == b : pass",
    "comparisons": "while a == b == a : pass",
    "search": "return [ 1 in a for i in c ]",
    "search in a generator": "return [ 1 ] in ( a for i in c )",
    "slice": "for i in c :\n    d = a [ : ]",
    "assigned slice": "for i in c :\n    a [ 1 : 2 ] = [ 3 ]",
    "starred": "for i in c :\n    d = [ * a ]",
    "unpacked": "for i in c :\n    d , * e = a",
    "unpacked by a loop": "for d , * e in [ a ] * 100000 : pass",
    "unpacked by a comprehension": "return len ( [ d for d , * e in [ a ] * 100000 ] )",
    "function by value": "return len ( list ( map ( max , [ a ] * 100000 ) ) )",
    "type by value": "return len ( list ( map ( list , [ a ] * 100000 ) ) )",
    "method by value": "return len ( list ( map ( a . count , a ) ) )",
    "method of a type": "return len ( list ( map ( list . copy , [ a ] * 100000 ) ) )",
    "key": "return len ( sorted ( [ a ] * 100000 , key = sum ) )",
    "sum of lists": "return len ( sum ( ( [ v ] for v in range ( 200000 ) ) , [ ] ) )",
    "sum of long integers": "return sum ( [ 1 << 6400000 ] * 300000 ) % 7",
    "power": "return pow ( 3 , 10 ** 8 ) % 7",
    "power of a power": "n = 3 ** 20000\nreturn pow ( n , n , n + 1 ) % 7",
    "squares of an item": "s = [ 3 ]\nfor i in range ( 40 ) :\n    s [ 0 ] *= s [ 0 ]",
    "round": "return round ( 5 , - 10 ** 9 )",
    "division": "return ( 1 << 6400000 ) // ( 3 << 3000000 )",
    "negation": "n = 1 << 32000000\nfor i in c :\n    m = - n",
    "key of a dict": "t = ( 0 , ) * 100000\nd = { t : 1 }\nfor i in c :\n    m = d [ t ]",
    "copied dict": "d = { i : 0 for i in range ( 100000 ) }\nfor i in c :\n    m = { ** d }",
    "text": "t = 'a' * 15000\nfor i in c :\n    m = t . replace ( 'a' , t )",
    "text of lists in lists": "for i in range ( 6 ) :\n    a = [ a ] * 100\nreturn len ( str ( a ) )",
    "lists in lists": "for i in range ( 6 ) :\n    a = [ a ] * 100\nreturn a",
    "sorted lists": "return len ( sorted ( [ a , b ] * 100000 ) )",
}


def test_work_inside_of_a_single_operation_is_counted(shared: Sandbox) -> None:
    start = "a = [ 0 ] * 100000\nb = [ 0 ] * 100000\nc = range ( 300000 )\n"
    results = shared.run([(start + source, [[0]]) for source in HEAVY.values()])
    found = {name: (r.error, r.unavailable) for name, r in zip(HEAVY, results, strict=True)}
    assert found == dict.fromkeys(HEAVY, ("killed: steps", False))


@pytest.mark.parametrize("limits", [Limits(cpu_seconds=0.01), Limits(wall_seconds=0.001)])
def test_what_a_slow_machine_ends_has_no_result(limits: Limits) -> None:
    sandbox = Sandbox(limits)
    result = run(sandbox, "while True : pass")
    assert (result.error in ("killed: cpu", "killed: clock"), result.unavailable) == (True, True)
    sandbox.close()


def test_a_loop_costs_one_sample_and_little_time(sandbox: Sandbox) -> None:
    started = time.monotonic()
    results = sandbox.run([("return 1", [[0]]), ("while True : pass", [[0]]), ("return 2", [[0]])])
    assert [result.outputs for result in results] == [[1], None, [2]]
    assert time.monotonic() - started < 60  # it would never end by itself
    assert sandbox.restarts == 0


def test_a_program_has_the_result_it_has_alone_whatever_shares_its_process() -> None:
    sources = [
        "return xs",
        "return [ 0 ] * 10 ** 12",  # MemoryError, which ends the process it is not the first of
        "xs . append ( 4 )\nreturn xs",
        "return 'ab' * 100000",
        "while True : pass",
        "return f ( xs )",
        "return 7 // 0",
        "return sorted ( { 'a' , 'b' , 'c' , 'd' } ) + list ( { 'a' , 'b' , 'c' , 'd' } )",
    ]
    sandbox = Sandbox(remember=0)
    programs = [(source, [[1, 2]]) for source in sources]
    alone = [sandbox.run([program])[0] for program in programs]
    assert [result.error[:12] for result in alone] == [
        "", "MemoryError:", "", "killed: outp", "killed: step", "RecursionErr", "ZeroDivision", "",
    ]  # fmt: skip
    assert sandbox.run(programs * 2) == alone * 2
    assert sandbox.run(programs[::-1]) == alone[::-1]
    sandbox.close()


def test_a_clock_that_ends_one_program_costs_those_around_it_nothing() -> None:
    sandbox = Sandbox(Limits(cpu_seconds=0.02), remember=0)
    programs = [("return 1", [[0]]), ("while True : pass", [[0]]), ("return 2", [[0]])]
    results = sandbox.run(programs)
    assert [(r.outputs, r.unavailable) for r in results] == [
        ([1], False),
        (None, True),
        ([2], False),
    ]
    sandbox.close()


def test_equal_programs_run_once_and_are_remembered(sandbox: Sandbox) -> None:
    started = time.monotonic()
    first = sandbox.run([("while True : pass", [[0]])] * 500)
    assert sandbox.run([("while True : pass", [[0]])] * 500) == first
    assert time.monotonic() - started < 60  # 500 runs of .25 s of CPU are 125 s


def test_remembered_results_are_bounded_in_bytes() -> None:
    sandbox = Sandbox(remember=40_000)
    programs = [(f"return [ [ ] ] * 3000 # {n}", [[0]]) for n in range(8)]
    tracemalloc.start()
    sandbox.run(programs)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 200_000  # 8 results of 3,000 lists are 1.5 MB as objects
    started = sandbox.restarts
    assert sandbox.run(programs)[0].outputs == [[[]] * 3000]
    assert sandbox.restarts == started
    sandbox.close()


SAME_EVERYWHERE = {
    "text of a function": "return str ( f )",
    "digits of an address": "return int ( str ( max ) [ -5 : -1 ] , 16 )",
    "percent": "return '%r' % f",
    "percent in place": "s = '%s'\ns %= ( f , )\nreturn s",
    "percent of an item": "s = [ '%s' ]\ns [ 0 ] %= ( f , )\nreturn s [ 0 ]",
    "inside a list": "return str ( [ lambda : 0 ] )",
    "mapped": "return list ( map ( str , [ f ] ) )",
    "iterator": "return str ( zip ( xs ) )",
    "method": "return str ( xs . append )",
    "order of functions": "return [ g ( 0 ) for g in { lambda x : 1 , lambda x : 2 , lambda x : 3 , len , max } ]",
    "none in a set": "return list ( { None , 'a' , 'b' , 7 } )",
    "added later": "s = set ( )\nfor g in ( len , max , None , 3 ) :\n    s . add ( g )\nreturn [ g == 3 for g in s ]",
    "keys of functions": "d = { len : 1 , max : 2 , f : 3 }\nreturn [ d [ k ] for k in d . keys ( ) | { 1 } ]",
    "error with an address": "return { } [ f ]",
    "loop": "n = 0\nwhile n < 4000000 :\n    n += 1\nreturn n",
    "long loop that ends": "n = 0\nfor i in range ( 100000 ) :\n    n += i % 3\nreturn n",
    "sum of a long range": "return sum ( range ( 20000000 ) )",
    "comprehension": "return len ( [ 0 for i in xs * 1000000 ] )",
    "long numbers": "n = 3\nfor i in range ( 40 ) :\n    n = n * n\nreturn n % 7",
}


@pytest.mark.long("compares every kind of sandbox")
def test_a_program_has_the_same_result_in_every_sandbox() -> None:
    results = []
    for number in range(4):
        box = Sandbox()
        box.run([("return 1", [[0]] * number)])  # another history
        programs = [(source, [[3, 1, 2]]) for source in SAME_EVERYWHERE.values()]
        results.append(
            box.run(programs if number % 2 else programs[::-1])[:: 1 if number % 2 else -1]
        )
        box.close()
    for name, *got in zip(SAME_EVERYWHERE, *results, strict=True):
        assert len({str(result) for result in got}) == 1, name
        assert "0x7" not in str(got[0]), name
    known = dict(zip(SAME_EVERYWHERE, results[0], strict=True))
    assert known["long loop that ends"].outputs == [99999]
    assert known["loop"].error == "killed: steps"


@pytest.mark.parametrize(
    ("source", "outputs"),
    [
        ("return str ( 12 ) + '%d,%s' % ( 3 , [ None , 1.5 ] )", ["123,[None, 1.5]"]),
        ("return isinstance ( 'a' , str ) and isinstance ( { 1 } , set )", [True]),
        ("return isinstance ( 'a' , ( str , set ) ) and not isinstance ( 1 , str )", [True]),
        ("return sorted ( { 3 , 1 } | set ( xs ) )", [[1, 2, 3]]),
        ("s = { 1 }\ns . add ( 2 )\ns |= { 5 }\nreturn sum ( s )", [8]),
        ("ys = xs\nys += [ 9 ]\nreturn xs", [[3, 1, 2, 9]]),
        ("xs [ 0 ] -= 1\nxs [ 1 ] *= 4\nreturn xs", [[2, 4, 2]]),
        ("g = lambda v , k = 2 : v ** k\nreturn list ( map ( g , xs ) )", [[9, 1, 4]]),
        (
            "def g ( n ) :\n    return 1 if n < 2 else n * g ( n - 1 )\nreturn g ( 50 ) % 1007",
            [None],
        ),
        (
            "return [ max ( xs , key = lambda v : - v ) , str . join ( ',' , [ 'a' , 'b' ] ) ]",
            [[1, "a,b"]],
        ),
        ("return { str ( v ) : v for v in xs } [ '3' ]", [3]),
        ("return - xs [ 0 ] // 2 , 7 % 3 , 1 << 3 , 6 & 3 , 6 ^ 3", None),
        (
            "ys = xs [ : : - 1 ] + [ * xs , 9 ]\nys [ 1 : 3 ] = [ 7 ]\nreturn ys",
            [[2, 7, 3, 1, 2, 9]],
        ),
        ("a , * b = xs\nreturn [ a , b , 1 in b , 3 not in b , 1 < a <= 3 ]", [None]),
        ("return [ b for a , * b in [ xs , ( 1 , ) ] ]", [[[1, 2], []]]),
        (
            "xs [ 1 : ] += [ 5 ]\nxs [ 0 ] **= 2\nd = { 'a' : [ 1 ] }\nd [ 'a' ] += [ 2 ]\nreturn [ xs , d [ 'a' ] ]",
            [None],
        ),
        (
            "return [ sum ( [ [ 1 ] , [ 2 ] ] , [ 3 ] ) , sum ( xs , start = 10 ) , sum ( v / 2 for v in xs ) ]",
            [None],
        ),
        (
            "return [ * divmod ( 17 , 5 ) , pow ( 3 , 200 , 7 ) , pow ( 2 , - 1 ) , round ( 12345 , - 2 ) , round ( 2.567 , 1 ) ]",
            [None],
        ),
        ("return 3 in ( 1 // ( v - 3 ) if v < 3 else v for v in [ 3 , 3 ] )", [True]),
        (
            "return [ sorted ( [ [ 1 , 2 ] , [ 0 ] ] , key = sum ) , max ( 'b' , 'a' ) , min ( [ ] , default = 4 ) ]",
            [None],
        ),
        ("return list ( zip ( xs , enumerate ( xs , start = 1 ) ) ) [ 0 ] [ 1 ] [ 0 ]", [1]),
        (
            "return [ any ( map ( bool , xs ) ) , all ( v for v in xs ) , list ( filter ( None , [ 0 , 1 ] ) ) , list ( reversed ( xs ) ) ]",
            [None],
        ),
        (
            "d = dict ( zip ( 'ab' , xs ) )\nd . update ( { 'c' : 1 } )\nreturn [ list ( d ) , list ( d . values ( ) ) , d . get ( 'z' , 0 ) , 'a' in d , { ** d } == d ]",
            [None],
        ),
        (
            "return isinstance ( [ ] , ( list , dict ) ) and isinstance ( True , int ) and not isinstance ( 1 , bool )",
            [True],
        ),
        (
            "ys = [ v * v for v in xs if ( w := v + 1 ) > 2 ]\nys . sort ( reverse = True )\nys . insert ( 0 , ys . pop ( ) )\nreturn ys",
            [[4, 9]],
        ),
        (
            "f = xs . count\nreturn list ( map ( f , [ 1 , 5 ] ) ) + [ len ( { 1 , 2 } & { 2 } ) , 'a-b' . split ( '-' ) == [ 'a' , 'b' ] ]",
            [None],
        ),
        (
            "return list ( range ( 3 ) ) + list ( range ( 9 , 2 , - 3 ) ) + [ 2 in range ( 3 ) ]",
            [None],
        ),
    ],
)
def test_counting_steps_changes_no_result(shared: Sandbox, source: str, outputs: object) -> None:
    scope: dict[str, Any] = {}
    exec("def f(xs):\n" + textwrap.indent(source, "    "), scope)
    result, plain = run(shared, source), scope["f"]([3, 1, 2])
    if isinstance(plain, tuple):
        assert result.error == "TypeError: returned tuple"
    else:
        assert result.outputs == [plain], result
        assert outputs in ([None], [plain])


def test_a_killed_worker_is_replaced_and_costs_nothing(sandbox: Sandbox) -> None:
    assert run(sandbox, "return 1").outputs == [1]
    assert sandbox._worker is not None
    os.kill(sandbox._worker.pid, signal.SIGKILL)
    sandbox._worker.wait()
    assert run(sandbox, "return 2").outputs == [2]


def test_a_program_on_which_the_worker_dies_has_no_result_and_the_others_have(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = sandbox._ask

    def dies_on_bomb(requests: Sequence[bytes]) -> list[Result]:
        before = list(itertools.takewhile(lambda request: b"bomb" not in request, requests))
        results = ask(before) if before else []
        if len(before) < len(requests):
            sandbox._start().kill()
        return results

    monkeypatch.setattr(sandbox, "_ask", dies_on_bomb)
    programs = [("return 1", [[0]]), ("return 'bomb'", [[0]]), ("return 3", [[0]])]
    results = sandbox.run(programs)
    assert [(r.outputs, r.unavailable) for r in results] == [
        ([1], False),
        (None, True),
        ([3], False),
    ]
    monkeypatch.setattr(sandbox, "_ask", ask)
    assert sandbox.run(programs)[1].outputs == [
        "bomb"
    ]  # a failure of the sandbox is not remembered


def test_a_stopped_worker_is_replaced(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainorder.rewards.sandbox.GRACE_SECONDS", 0.1)
    run(sandbox, "return 1")
    assert sandbox._worker is not None
    os.killpg(sandbox._worker.pid, signal.SIGSTOP)  # the worker and its process in the namespace
    assert run(sandbox, "return 2").outputs == [2]
    assert sandbox.restarts == 1


def test_no_process_is_left_after_close() -> None:
    sandbox = Sandbox()
    run(sandbox, "return 1")
    assert sandbox._worker is not None
    pid = sandbox._worker.pid
    sandbox.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_sets_have_one_order_in_every_worker() -> None:
    orders = []
    for _ in range(3):
        sandbox = Sandbox()
        orders.append(run(sandbox, "return list ( { 'a' , 'b' , 'c' , 'd' , 'e' , 'f' } )").outputs)
        sandbox.close()
    assert orders[0] == orders[1] == orders[2]


def test_a_program_costs_less_than_the_start_of_an_interpreter() -> None:
    sandbox, programs, starts = Sandbox(), 150, 20
    before = _seconds_of_children()
    sandbox.run([(f"return [ v + {n} for v in xs ]", [[1, 2, 3]] * 4) for n in range(programs)])
    sandbox.close()  # only then is the worker's time, its children included, counted here
    between = _seconds_of_children()
    for _ in range(starts):
        subprocess.run([sys.executable, "-S", "-c", "pass"], check=True)
    after = _seconds_of_children()
    assert (between - before) / programs < (after - between) / starts


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


FOUND = """
import gc, os, sys, types
found = []
def keep(value):
    found.append(repr(value))
def read(path):
    try:
        with open(path, "rb") as file:
            keep(file.read())
    except OSError as error:
        keep(error)
"""
"""Collects what a program can find out; the last lines return what names the machine, without ever being told it."""
LOOKS = {
    "arguments": "keep([sys.argv, sys.orig_argv, sys.executable, sys._base_executable])",
    "search path": "keep([sys.path, sys.path_importer_cache, sys.meta_path])",
    "prefixes": "keep({k: v for k, v in vars(sys).items() if isinstance(v, str)})",
    "environment": "keep([os.environ, os.environb])",
    "environment of the process": "import ctypes\nenviron = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')\nfor i in range(9):\n    if not environ[i]: break\n    keep(environ[i])",
    "name of the process": "import ctypes\nfor name in ('program_invocation_name', '__progname_full'):\n    keep(ctypes.c_char_p.in_dll(ctypes.CDLL(None), name).value)",
    "maps": "for name in ('maps', 'cmdline', 'environ', 'mountinfo', 'mounts', 'status', 'comm', 'auxv'):\n    for who in ('self', 'thread-self', '1', str(os.getppid())):\n        read(f'/proc/{who}/{name}')",
    "links": "for path in ('/proc/self/exe', '/proc/self/cwd', '/proc/self/root', '/proc/self/fd/0', '/dev/fd/200', '/dev/fd/201', '/dev/fd/202'):\n    try:\n        keep(os.readlink(path))\n    except OSError as error:\n        keep(error)",
    "open files": "for number in range(1024):\n    try:\n        os.fstat(number)\n    except OSError:\n        continue\n    if number > 4: found.append('HOST: file ' + str(number))",
    "sysconfig": "import sysconfig\nkeep([sysconfig.get_config_vars(), sysconfig.get_paths(), sysconfig.get_makefile_filename()])",
    "site": "import site\nkeep([site.getsitepackages(), site.getuserbase()])",
    "modules": "for module in list(sys.modules.values()):\n    keep({k: v for k, v in vars(module).items() if isinstance(v, (str, list, tuple))})\n    keep(vars(module).get('__spec__'))",
    "code": "for value in gc.get_objects():\n    if isinstance(value, types.FunctionType): keep(value.__code__.co_filename)",
    "frames": "frame = sys._getframe()\nwhile frame:\n    keep([frame.f_code.co_filename, frame.f_locals, {k: v for k, v in frame.f_globals.items() if isinstance(v, str)}])\n    frame = frame.f_back",
    "heap": "for value in gc.get_objects():\n    if isinstance(value, (list, tuple)): keep([v for v in value if isinstance(v, str)])\n    elif isinstance(value, dict): keep([v for v in value.values() if isinstance(v, str)])",
    "host": "keep(os.uname())\nkeep(os.getcwd())",
    "files": "for place, inside, files in os.walk('/'):\n    for name in files:\n        if name.endswith(('.pyc', '.pth', 'Makefile', 'METADATA')) or name.startswith('_sysconfig'):\n            read(place + '/' + name)\n            found[-1] = found[-1][:3000]\n    if place.endswith('-packages') and inside: found.append('HOST: packages ' + str(inside))",
}


def test_a_program_in_full_python_learns_nothing_of_the_machine() -> None:
    sandbox = Sandbox(Limits(output_bytes=1 << 20, cpu_seconds=20), language="python")
    folders = {WORKER.parent, Path(sys.base_prefix), Path(sys.prefix), Path.home()}
    names = {f"'{platform.node()}'"} | {str(folder) for folder in folders - {Path("/usr")}}
    last = "import base64\nreturn base64.b64encode(zlib.compress(chr(10).join(found).encode())).decode()"
    programs = [(f"{FOUND}\n{look}\nimport zlib\n{last}", [[0]]) for look in LOOKS.values()]
    for look, result in zip(LOOKS, sandbox.run(programs), strict=True):
        assert result.outputs, (look, result)
        text = zlib.decompress(base64.b64decode(result.outputs[0])).decode()
        assert "HOST: " not in text, (look, text[text.index("HOST: ") :][:300])
        for name in names:
            assert name not in text, (look, name, text[max(0, text.index(name) - 200) :][:400])
    sandbox.close()


REACHES = {
    "files": "import os\nreturn [os.listdir('/'), os.path.exists('/etc/passwd'), os.access('/', os.W_OK)]",
    "network": "import socket\nreturn len(socket.socket().getsockname())",
    "processes": "import os\nos.fork()\nreturn 1",
    "signals": "import os\nos.kill(-1, 9)\nreturn 1",
    "root": "import os\nos.setuid(0)\nreturn 1",
    "namespace": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nreturn [libc.unshare(0x10000000), ctypes.get_errno()]",
    "mount": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nreturn [libc.mount(b'none', b'/proc', b'tmpfs', 0, None), ctypes.get_errno()]",
    "capabilities": "import ctypes\ndata = ctypes.create_string_buffer(24)\nlibc = ctypes.CDLL(None, use_errno=True)\nreturn [libc.capget(b'\\x22\\x05\\x08\\x20' + bytes(4), data), ctypes.get_errno()]",
    "memory": "return len(bytearray(1 << 30))",
    "descriptors": "import os\nreturn [os.dup(3) for _ in range(99)]",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (99, 99))\nreturn 1",
    "loop": "while True : pass",
    "kept": "import os\nopen('/kept', 'w')\nreturn 1",
}
AS_USER = f"""
import json, os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import ordinary_user
ordinary_user.become(int(sys.argv[1]))
from trainorder.rewards.sandbox import IsolationError, Limits, Sandbox
plain, free = Sandbox(), Sandbox(Limits(cpu_seconds=0.5), language="python")
level, missing = plain.check()
found = [r.outputs or r.error for r in plain.run([("return sum ( xs )", [[1, 2]]), ("import os", [[0]])])]
try:
    found += [r.outputs or r.error for r in free.run([(s, [[0]]) for s in json.loads(sys.argv[2])])]
except IsolationError as error:
    found.append(str(error))
print(json.dumps([os.geteuid(), level, missing, found]))
plain.close(), free.close()
"""


@pytest.mark.long("compares every kind of sandbox")
def test_the_sandbox_of_an_ordinary_user_is_as_strong_as_roots(tmp_path: Path) -> None:
    results = []
    for user in {0, 65534} if os.geteuid() == 0 else {os.geteuid()}:
        arguments = [str(user), json.dumps(list(REACHES.values()))]
        command = [sys.executable, "-c", AS_USER, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        euid, level, missing, found = json.loads(done.stdout)
        assert euid == user
        if (
            level != "namespaces"
        ):  # the kernel keeps them from this user: said, and nothing free runs
            assert missing
            assert "must run at 'namespaces'" in found[-1]
        results.append(found)
    assert results[0][:2] == [[3], "forbidden: Import"]
    assert [found[: len(results[-1])] for found in results] == [results[-1]] * len(results)
    if len(results[0]) > 3:
        reached = dict(zip(REACHES, results[0][2:], strict=True))
        assert reached.pop("files") == [[["dev"], False, False]]
        refused = {name: got for name, got in reached.items() if isinstance(got, str)}
        no_right = {name: [[-1, 1]] for name in ("namespace", "mount", "capabilities")}
        assert reached == refused | no_right


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_computes_the_same(shared: Sandbox, level: str) -> None:
    programs = [
        (source, [[3, 1, 2], []])
        for source in ("return sum ( xs )", "return y", "return max ( xs )")
    ]
    box = Sandbox(highest=level)
    if box.check().level != level:
        pytest.skip(f"this machine reaches {box.check()}")
    assert box.run(programs) == shared.run(programs)
    box.close()


def test_a_level_below_the_wanted_one_refuses_to_start_and_says_why() -> None:
    box = Sandbox(minimum="namespaces", highest="filtered")
    with pytest.raises(
        IsolationError,
        match=r"grading\.isolation: .* at 'namespaces', this machine reaches 'filtered'",
    ):
        box.run([("return 1", [[0]])])
    assert box._worker is None


@pytest.mark.parametrize("free", [{"language": "python"}, {"limits": Limits(processes=2)}])
def test_free_programs_need_namespaces(free: dict[str, object]) -> None:
    with pytest.raises(IsolationError, match="'namespaces'"):
        Sandbox(highest="filtered", **free).check()


def test_a_crash_of_the_outer_process_takes_the_inner_one_along(sandbox: Sandbox) -> None:
    run(sandbox, "return 1")
    assert sandbox._worker is not None
    group = sandbox._worker.pid
    os.kill(group, signal.SIGKILL)
    sandbox._worker.wait()
    for _ in range(500):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("a process of the killed worker lives on")
