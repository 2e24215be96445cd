"""Attacks on the sandbox in full Python: none gets anything, outlives its program or changes what another one scores.

A program returns "breached" where it got what it wanted. That each of the harmless ones does succeed in an ordinary
interpreter is tested too, so that a typo in an attack cannot pass for a defence.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from trainorder.rewards.sandbox import IsolationError, Limits, Result, Sandbox
from trainorder.tasks.base import Problem
from trainorder.tasks.code import Code

SECRET = "sk-canary-3f9a77c1"
HONEST = "return sum ( xs ) if 'other-answer' else 0"
READS = {
    "passwd": "return 'breached' if open('/etc/passwd').read() else ''",
    "project_file": "return 'breached' if open(HERE).read() else ''",
    "project_folder": "import os\nreturn 'breached' if os.listdir(os.path.dirname(HERE)) else ''",
    "os_walk": "import os\nreturn 'breached' if any(HERE.endswith(n) for d, _, ns in os.walk('/home') for n in ns) or os.path.exists(HERE) else ''",
    "environment": "import os\nreturn 'breached' if any('canary' in v for v in os.environ.values()) else ''",
    "proc_environ": "return 'breached' if open('/proc/self/environ').read() else ''",
    "proc_parent": "import os\nreturn 'breached' if open('/proc/%d/cmdline' % os.getppid()).read() else ''",
    "proc_maps": "return 'breached' if open('/proc/self/maps').read() else ''",
    "open_files": "import os\nreturn 'breached' if len(os.listdir('/proc/self/fd')) > 0 else ''",
    "tcp": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1).send(b'x')\nreturn 'breached'",
    "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))\nreturn 'breached'",
    "unix_socket": "import socket\nsocket.socketpair()\nreturn 'breached'",
    "bind": "import socket\nsocket.create_server(('127.0.0.1', 0))\nreturn 'breached'",
    "os_system": "import os\nreturn 'breached' if os.system('true') == 0 else ''",
    "subprocess": "import subprocess\nsubprocess.run(['/bin/true'], check=True)\nreturn 'breached'",
    "popen": "import os\nos.popen('true').read()\nreturn 'breached' if os.path.exists('/bin/true') else ''",
    "posix_spawn": "import os\npid = os.posix_spawn('/bin/true', ['true'], {})\nreturn 'breached' if os.waitpid(pid, 0)[1] == 0 else ''",
    "fork": "import os\npid = os.fork()\nif pid == 0:\n    os._exit(0)\nos.waitpid(pid, 0)\nreturn 'breached'",
    "thread": "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()\nreturn 'breached'",
    "ctypes_system": "import ctypes\nreturn 'breached' if ctypes.CDLL(None).system(b'true') == 0 else ''",
    "ctypes_fork": "import ctypes, os\npid = ctypes.CDLL(None).fork()\nif pid == 0:\n    os._exit(0)\nreturn 'breached' if pid > 0 else ''",
    "dunder_import": "return 'breached' if __import__('os').path.exists('/etc') else ''",
    "subclasses": "import os\nfound = [c for c in object.__subclasses__() if c.__name__ == '_wrap_close']\nreturn 'breached' if found[0].__init__.__globals__['system']('true') == 0 else ''",
    "signal_probe": "import os\nos.kill(os.getppid(), 0)\nreturn 'breached'",
    "memfd_exec": "import os\nfd = os.memfd_create('x')\nreturn 'breached' if os.write(fd, b'x') else ''",
    "dev_shm": "open('/dev/shm/canary_attack', 'w').close()\nimport os\nos.unlink('/dev/shm/canary_attack')\nreturn 'breached'",
    "write_tmp": "open('/tmp/canary_attack', 'w').close()\nimport os\nos.unlink('/tmp/canary_attack')\nreturn 'breached'",
    "exec_python": "import os, sys\nreturn 'breached' if os.access(sys.executable, os.X_OK) else ''",
    "ptrace_me": "import ctypes\nreturn 'breached' if ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0 else ''",
    "clock_namespace": "import ctypes\nreturn 'breached' if ctypes.CDLL(None).unshare(0x10000000) == 0 else ''",
    "unpickle": "import pickle\nreturn 'breached' if pickle.loads(b\"cposix\\nsystem\\n(S'true'\\ntR.\") == 0 else ''",
    "priority": "import os\nos.nice(1)\nreturn 'breached'",
}
"""Harmless outside: each succeeds in an ordinary interpreter."""
WRECKS = {
    "write_project": "open(HERE, 'w').write('x')\nreturn 'breached'",
    "unlink_project": "import os\nos.unlink(HERE)\nreturn 'breached'",
    "write_root": "open('/x', 'w')\nreturn 'breached'",
    "make_folder": "import os\nos.mkdir('/x')\nreturn 'breached'",
    "write_library": "import os\nopen(os.__file__, 'a')\nreturn 'breached'",
    "remount": "import ctypes\nreturn 'breached' if ctypes.CDLL(None).mount(b'none', b'/', b'tmpfs', 0, None) == 0 else ''",
    "chroot_out": "import os\nos.chroot('.')\nreturn 'breached'",
    "device": "import os\nos.mknod('/sda', 0o60600, 0x800)\nreturn 'breached'",
    "setuid_root": "import os\nos.setuid(0)\nreturn 'breached'",
    "kill_parent": "import os\nos.kill(os.getppid(), 9)\nreturn 'breached'",
    "stop_parent": "import os\nos.kill(os.getppid(), 19)\nreturn 'breached'",
    "kill_all": "import os\nos.kill(-1, 9)\nreturn 'breached'",
    "kill_group": "import os\nos.killpg(os.getpgid(os.getppid()), 9)\nreturn 'breached'",
    "ptrace_parent": "import ctypes, os\nreturn 'breached' if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0 else ''",
    "read_parent_memory": "import ctypes, os\nreturn 'breached' if open('/proc/%d/mem' % os.getppid(), 'rb').read(1) else ''",
    "vm_write": "import ctypes, os\nreturn 'breached' if ctypes.CDLL(None).process_vm_writev(os.getppid(), None, 0, None, 0, 0) >= 0 else ''",
    "pidfd_kill": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)\nreturn 'breached'",
    "raise_limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nreturn 'breached'",
    "become_python": "import os, sys\nos.execv(sys.executable, ['python'])\nreturn 'breached'",
    "loop": "while True:\n    pass",
    "loop_without_timer": "import signal\nsignal.signal(signal.SIGPROF, signal.SIG_IGN)\nsignal.setitimer(signal.ITIMER_PROF, 0)\nwhile True:\n    pass",
    "loop_catching_all": "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
    "sleep": "import time\ntime.sleep(1000)\nreturn 'breached'",
    "regex": "import re\nreturn 'breached' if re.match('(a+)+$', 'a' * 60 + 'b') is None else ''",
    "power": "return 'breached' if 10 ** 10 ** 8 else ''",
    "memory": "x = bytearray(1 << 30)\nreturn 'breached'",
    "list_growth": "x = []\nwhile True:\n    x.append([0] * 100000)",
    "huge_output": "return 'x' * 10 ** 7",
    "print_flood": "while True:\n    print('x' * 100000)",
    "pipe_flood": "import os\nwhile True:\n    os.write(3, b'x' * 65536)",
    "recursion": "return f(xs)",
    "recursion_unbounded": "import sys\nsys.setrecursionlimit(10 ** 9)\nreturn f(xs)",
    "segfault": "import ctypes\nreturn ctypes.string_at(0)",
    "abort": "import os\nos.abort()",
    "exit_zero": "import os\nos._exit(0)",
    "system_exit": "raise SystemExit(0)",
    "print_passed": "print('passed')\nprint('{\"outputs\": [6]}')\nraise ValueError",
    "fake_verdict": 'import os\nos.write(3, b\'{"passed": true, "value": 1.0}\')\nos._exit(0)',
    "garbage_first": "import os\nos.write(3, b'}{')\nreturn 'breached'",
    "not_utf8": "import os\nos.write(3, b'\\xff\\xfe')\nos._exit(0)",
    "deep_json": "import os\nos.write(3, b'{\"outputs\": ' + b'[' * 30000 + b']' * 30000 + b'}')\nos._exit(0)",
    "deep_json_legal": "import os\nos.write(3, b'{\"outputs\": ' + b'[' * 300 + b']' * 300 + b'}')\nos._exit(0)",
    "long_integer": "import os\nos.write(3, b'{\"outputs\": [' + b'9' * 20000 + b']}')\nos._exit(0)",
    "unavailable": 'import os\nos.write(3, b\'{"unavailable": true, "error": null}\')\nos._exit(0)',
    "other_replies": 'import os\nfor fd in {*range(300)} - {3}:\n    try:\n        os.write(fd, b\'{"outputs": ["breached"]}\\n\')\n    except OSError:\n        pass\nos._exit(0)',
    "equal_to_all": "class Six(int):\n    def __eq__(self, other):\n        return True\nreturn Six(6)",
    "text_subclass": "class Text(str):\n    pass\nreturn Text('breached')",
    "reduce": "class Bomb:\n    def __reduce__(self):\n        return print, ('breached',)\nreturn Bomb()",
    "patched_json": "import json\njson.dumps = lambda *a, **k: 'breached'\nreturn 6",
    "patched_worker": "import __main__\n__main__.plain = lambda v, d=0: object()\n__main__.run = None\nreturn 6",
    "no_exit": "import os\nos._exit = lambda code: None\nraise ValueError",
    "hostile_error": "class E(Exception):\n    def __str__(self):\n        raise E\nraise E",
    "frames": "import sys\nframe = sys._getframe()\nwhile frame:\n    if 'other-' + 'answer' in str(frame.f_locals) or 'expected' in frame.f_locals:\n        return 'breached'\n    frame = frame.f_back",
    "objects": "import gc\nreturn 'breached' if any('other-' + 'answer' in str(o) for o in gc.get_objects() if isinstance(o, (dict, list)) and len(o) < 50) else ''",
    "null_byte": "return 'a\x00b' + 'breached'",
    "lone_surrogate": "return '\ud800breached'",
    "bidi": "return 'brea\u202eched' and missing",
    "megabyte": "x = '" + "a" * 1_000_000 + "'\nreturn x",
    "megabyte_of_brackets": "return " + "(" * 500_000,
    "megabyte_of_sums": "return " + "+".join(["1"] * 300_000) + "+ 'breached'",
    "deep_nesting": "\n".join(" " * n + "if 1:" for n in range(200)),
    "form_feed": "pass\n\fimport os\nreturn 'breached'",
    "decorator_of_f": "pass\n\\\n)(",
}
"""Not to be tried outside."""
SWARMS = {
    "fork_bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "sleeping_grandchild": "import os, time\nif os.fork() == 0:\n    os.close(3)\n    time.sleep(1000)\nreturn 6",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.close(3)\n        time.sleep(1000)\n    os._exit(0)\nreturn 6",
    "grandchild_holds_pipe": "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nreturn 6",
    "grandchild_answers_later": 'import os, time\nif os.fork() == 0:\n    time.sleep(0.1)\n    os.write(3, b\'{"outputs": ["breached"]}\')\n    os._exit(0)\nos._exit(0)\n',
    "killer_of_kin": "import os\nos.fork()\nos.kill(-1, 9)",
    "forks_ignoring_signals": "import os, signal, time\nfor s in range(1, 60):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\nos.fork()\nos.close(3)\ntime.sleep(1000)",
}
"""With eight processes allowed: what is left of them has to be killed."""
ATTACKS = READS | WRECKS


@dataclass(frozen=True)
class Field:
    """A folder worth attacking, a server, and sandboxes beside them."""

    file: Path
    port: int
    heard: list[bytes]
    full: Sandbox
    swarm: Sandbox
    plain: Sandbox

    def fill(self, source: str) -> str:
        return source.replace("HERE", repr(str(self.file))).replace("PORT", str(self.port))


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    file = tmp_path_factory.mktemp("project") / "params.yaml"
    file.write_text(SECRET)
    file.chmod(0o666)
    file.parent.chmod(0o777)
    heard: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                with server.accept()[0] as connection:
                    heard.append(connection.recv(1))
            except OSError:
                return

    threading.Thread(target=listen, daemon=True).start()
    limits = Limits(wall_seconds=1.0)
    os.environ["OPENAI_API_KEY"] = SECRET
    boxes = (
        Sandbox(limits, language="python"),
        Sandbox(Limits(wall_seconds=1.0, processes=8), language="python"),
        Sandbox(limits),
    )
    yield Field(file, server.getsockname()[1], heard, *boxes)
    del os.environ["OPENAI_API_KEY"]
    for box in boxes:
        box.close()
    server.close()


def needs_namespaces(box: Sandbox) -> None:
    """Full Python runs nowhere else; a machine without them can only be tested with the whitelist."""
    try:
        box.check()
    except IsolationError as error:
        pytest.skip(str(error))


def descendants(pid: int) -> set[int]:
    """Every process below this one, itself included."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def attack(field: Field, box: Sandbox, source: str) -> Result:
    """Run it between two honest programs; nothing of it may be left, and the honest ones score as ever."""
    needs_namespaces(box)
    number = len(box._seen)
    assert box.run([(HONEST, [[number, 1]])])[0].outputs == [number + 1]
    assert box._worker is not None
    worker, idle = box._worker.pid, descendants(box._worker.pid)
    result = box.run([(field.fill(source), [[3, 1, 2]])])[0]
    assert box._worker is not None
    assert box._worker.pid == worker, "the worker died"
    assert descendants(worker) == idle, "a process is left"
    assert box.run([(HONEST, [[number, 2]])])[0].outputs == [number + 2]
    assert field.file.read_text() == SECRET
    assert [p.name for p in field.file.parent.iterdir()] == ["params.yaml"]
    assert field.heard == []
    assert not result.unavailable, "an attack may not turn a 0 into 'not scored'"
    return result


@pytest.mark.long("waits for the time limit of full Python")
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_in_full_python_gets_nothing(field: Field, name: str) -> None:
    result = attack(field, field.full, ATTACKS[name])
    assert "breached" not in json.dumps(result.outputs)
    assert SECRET not in str(result)


@pytest.mark.long("waits for the time limit of full Python")
@pytest.mark.parametrize("name", SWARMS)
def test_processes_that_a_program_starts_end_with_it(field: Field, name: str) -> None:
    result = attack(field, field.swarm, SWARMS[name])
    assert result.outputs in (
        None,
        [6],
        ["breached"] if name == "grandchild_answers_later" else None,
    )


@pytest.mark.parametrize("name", [*ATTACKS, *SWARMS])
def test_the_code_task_pays_no_attack(field: Field, name: str) -> None:
    problem = Problem("code/1", "code", "p", "", "", {"inputs": [[3, 1, 2]], "outputs": [6]})
    source = field.fill((ATTACKS | SWARMS)[name])
    [result] = field.plain.run([(source, [[3, 1, 2]])])
    assert result.outputs is None
    assert not result.unavailable
    if len(source) < 2000:  # as a policy would write it, on one line with the tags or between them
        for text in (f" {source} ", f"\n{source}\n", f"\n```python\n{source}\n```\n"):
            completion = f"<think> x </think> <answer>{text}</answer>"
            [reward] = Code().grade([completion], [problem])
            assert reward.value == 0.0


@pytest.mark.parametrize("name", READS)
def test_the_same_attack_succeeds_outside(field: Field, name: str) -> None:
    body = textwrap.indent(field.fill(READS[name]), "    ")
    code = f"def f(xs):\n{body}\nprint(f([3, 1, 2]))"
    heard = list(field.heard)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    for _ in range(100):
        if name != "tcp" or field.heard != heard:
            break
        threading.Event().wait(0.02)
    field.heard.clear()
    assert "breached" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "sent",
    [
        "'{\"outputs\": [[' + '1e15,' * 11000 + '1]]}'",  # within the bound, four times as long as JSON
        "'{\"outputs\": [\"' + chr(233) * 30000 + '\"]}'",
        "'{\"outputs\": [[' + '1,' * 300000 + '1]]}'",
        "'{\"error\": \"' + 'x' * 60000 + '\"}'",
        "'[' * 60000",
        "'{\"outputs\": []}'",  # not one output per input
        "'{\"outputs\": [6, 6]}'",
    ],
)
def test_bytes_that_a_program_sends_itself_are_bounded_and_cost_it_its_score(
    field: Field, sent: str
) -> None:
    source = f"import os\ndata = ({sent}).encode()\nwhile data:\n    data = data[os.write(3, data):]\nos._exit(0)"
    restarts = field.full.restarts
    result = attack(field, field.full, source)
    assert result.outputs is None
    assert len(result.error) < 300
    assert field.full.restarts == restarts


LEAVES = "import builtins, json, sys\nbuiltins.left = sys.left = json.left = ['k4n4ry-' * 9]\nreturn 'k4n4ry-' * 9"
LOOKS = """\
import builtins, gc, json, sys
word, found, frame = ''.join(['k4n4', 'ry']), [], sys._getframe(1)
while frame is not None:
    found += [name for name, value in frame.f_locals.items() if word in str(value)]
    frame = frame.f_back
for held in gc.get_objects():
    if type(held) in (list, tuple, dict):
        values = list(held.values()) if type(held) is dict else held
        found += [type(held).__name__ for v in values if type(v) in (str, bytes) and word in str(v)]
return found + [name for name in ('builtins', 'json', 'sys') if hasattr(sys.modules[name], 'left')]"""


def test_nothing_of_one_program_is_found_by_the_next(field: Field) -> None:
    needs_namespaces(field.full)
    left, looked = field.full.run([(LEAVES, [[1]]), (LOOKS, [[1]])])
    assert left.outputs == ["k4n4ry-" * 9]
    assert looked.outputs == [[]], looked


def test_attacks_are_many(field: Field) -> None:
    assert len(ATTACKS | SWARMS) >= 40
    needs_namespaces(field.full)
    assert field.full.check().level == "namespaces"


def test_no_process_is_left_of_any_sandbox(field: Field) -> None:
    box = Sandbox(Limits(wall_seconds=1.0, processes=8), language="python")
    needs_namespaces(box)
    box.run([(SWARMS["daemon"], [[1]])])
    assert box._worker is not None
    everyone = descendants(box._worker.pid)
    assert len(everyone) == 3  # the waiting outer half twice, and process 1 of the namespace
    box.close()
    alive = {pid for pid in everyone if Path(f"/proc/{pid}").exists() and _runs(pid)}
    assert not alive


def _runs(pid: int) -> bool:
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        threading.Event().wait(0.01)
    return True
