"""The sandbox's own process: reads one JSON request per line, forks children for it, writes one JSON reply per program.

A request is a list of programs. Those of the whitelist language share a child: nothing that they can name outlives a
program, and a fork takes several times as long as one. In full Python a request has one program, and its child gets the
source and each input when it comes to them: what a program forks finds no later input in its memory.

Started by sandbox.py as a bare interpreter, so it may import the standard library only. Before the first program it gives
away what it can (sandbox_isolation.py); what is left of a program is killed before the next one starts.
"""

import contextlib
import fcntl
import json
import os
import re
import resource
import select
import signal
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # run as a bare script, this is no part of a package
import sandbox_isolation as isolation  # pyrefly: ignore[missing-import]
import sandbox_language as language  # pyrefly: ignore[missing-import]
import sandbox_runtime as runtime  # pyrefly: ignore[missing-import]

sys.path.pop()


HEAD = 8
"""Bytes that say how long the source or input after them is."""


class Settings:
    """What sandbox.py passes on the command line."""

    def __init__(self, cpu, wall, memory, size, processes, kind, highest):
        self.cpu, self.wall = float(cpu), float(wall)
        self.memory, self.size, self.processes = int(memory), int(size), int(processes)
        self.python = kind == "python"
        self.highest = highest
        self.filter: isolation.Filter | None = None


def main():
    """Say which isolation was reached, then serve requests until the parent closes the pipe."""
    settings = Settings(*sys.argv[1:])
    # The children get no way to the parent: stdin and stdout move to numbers that every child closes.
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if settings.python:
        isolation.preload()
    level, missing = isolation.enter(settings.highest, libraries=settings.python)
    if settings.python:
        isolation.forget_the_start()
    if level != "process":
        settings.filter = isolation.syscall_filter(settings.python, settings.processes > 0)
    os.write(replies, json.dumps({"level": level, "missing": missing}).encode() + b"\n")
    while serve(requests, replies, settings, alone=level == "namespaces"):
        pass


def serve(requests, replies, settings, alone):
    """One request; False at the end of the requests, or where the process for it failed.

    In full Python each request has a process of its own, so that no program finds anything of an earlier one in its
    memory: the reply passes from pipe to pipe inside the kernel. Its line ends once nothing of the program is left.
    """
    if not settings.python:
        line = receive(requests)
        for reply in run(line, settings, alone) if line else ():
            send(replies, reply)
            os.write(replies, b"\n")
        return bool(line)
    select.select([requests], [], [])
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            isolation.adopt_orphans()
            reply = run_free(requests, settings, alone)
            if reply:
                send(writer, reply)
            os._exit(0 if reply else 1)
        finally:
            os._exit(2)
    os.close(writer)
    forward(reader, replies)
    os.close(reader)
    if os.waitpid(pid, 0)[1] != 0:
        return False
    os.write(replies, b"\n")
    return True


def forward(reader, replies):
    """Everything from one pipe into the other."""
    if hasattr(os, "splice"):
        while os.splice(reader, replies, 1 << 16):
            pass
    else:
        while data := os.read(reader, 1 << 16):
            os.write(replies, data)


def receive(requests):
    """One line, without the rest of the file: nothing follows it before its reply."""
    chunks = []
    while not chunks or not chunks[-1].endswith(b"\n"):
        chunk = os.read(requests, 1 << 20)
        if not chunk:
            return b""
        chunks.append(chunk)
    return b"".join(chunks)


def send(writer, reply):
    """JSON without the end of its line."""
    data = json.dumps(reply).encode()
    while data:
        data = data[os.write(writer, data) :]


def run(line, settings, alone):
    """The reply to each program of a request, in order.

    Where one ends its process, or finds too little memory left by those before it, the next process begins with it: so
    its result is the one it has alone.
    """
    count, done = len(json.loads(line)), 0
    while done < count:
        for reply in run_from(done, count, line, settings, alone):
            yield reply
            done += 1


def run_from(first, count, line, settings, alone):
    """Fork, yield the replies from program `first` on, at least one, and kill what is left."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(line, first, writer, settings)
    os.close(writer)
    yield from replies_of(pid, texts(reader, settings), count - first, settings, alone)
    os.close(reader)


def run_free(requests, settings, alone):
    """The reply to the next request, of one program in full Python; None at the end of the requests.

    The program's process starts before this one reads the request, so that nothing of it is in that process's memory.
    """
    (given, giving), (reader, writer) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        free_child(given, writer, settings)
    os.close(given)
    os.close(writer)
    line = receive(requests)
    if not line:
        return None
    [(source, inputs)] = json.loads(line)
    packets = [json.dumps(each).encode() for each in (source, *inputs)]
    packed = b"".join(len(data).to_bytes(HEAD, "big") + data for data in packets)
    written = texts(reader, settings, giving, packed)
    [reply] = replies_of(pid, written, 1, settings, alone)
    return reply


def replies_of(pid, written, most, settings, alone):
    """Yield the replies of a child, at least one, and kill what is left of it."""
    given, why = 0, ""
    for text, why in written:
        reply = None if why else understood(text, settings)
        if reply is None:
            break
        yield reply
        given += 1
        if given == most:
            break
    status = end(pid, alone)
    if not given:
        yield failure(why, status, settings)


def understood(text, settings):
    """The reply that a child wrote; None where it is none: the pipe belongs to the program while it runs."""
    try:
        reply = json.loads(text)
        if isinstance(reply, dict) and isinstance(reply.get("outputs"), list):
            reply = {"outputs": plain(reply["outputs"], -1)}
            # Written again, 1e15 and an accent take several times the bytes that the program sent.
            short = len(json.dumps(reply, allow_nan=False)) <= settings.size
            return reply if short else {"error": "killed: output too long"}
        if isinstance(reply, dict):
            return {"error": str(reply.get("error"))[:200]}
    except (ValueError, TypeError, RecursionError):
        pass
    return None


def failure(why, status, settings):
    """The reply for a program without one: why it was cut off, or else what its process ended of."""
    # Steps end a whitelisted program; the clock, the timer and the kernel's hunger for memory tell of the machine.
    unavailable = {} if settings.python else {"unavailable": True}
    if why:
        return {"error": "killed: " + why, **(unavailable if why == "clock" else {})}
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGPROF, signal.SIGXCPU):
        return {"error": "killed: cpu", **unavailable}
    return {"error": "killed: no result", **(unavailable if number == signal.SIGKILL else {})}


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


def texts(reader, settings, giving=-1, packed=b""):
    """What a child wrote, and why it was cut off if it was: a line per program, or all of it in full Python.

    Meanwhile it is sent `packed` through the pipe `giving`.
    """
    rest, deadline, packed = b"", time.monotonic() + settings.wall, memoryview(packed)
    if packed:
        os.set_blocking(giving, False)
    while True:
        left = deadline - time.monotonic()
        writers = [giving] if packed else []
        readable, writable, _ = select.select([reader], writers, [], max(0, left))
        if left <= 0 or not (readable or writable):
            yield b"", "clock"
            return
        if writable:
            packed = given_some(giving, packed)
        if not readable:
            continue
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            yield rest, ""
            return
        rest += chunk
        if not settings.python:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                yield (line, "") if len(line) <= settings.size else (b"", "output too long")
                deadline = time.monotonic() + settings.wall
        if len(rest) > settings.size:
            yield b"", "output too long"
            return


def given_some(giving, data):
    """What is left after writing what the pipe takes; nothing where its reader is gone. Closed at the end."""
    try:
        data = data[os.write(giving, data) :]
    except BrokenPipeError:
        data = data[:0]
    if not data:
        os.close(giving)
    return data


def child(line, first, writer, settings):
    """Never returns; its only open file is the result pipe."""
    try:
        for number, (source, inputs) in enumerate(json.loads(line)[first:]):
            try:
                if number == 0:
                    os.setsid()
                    confine([writer], settings)
                function = language.compile_function(source, runtime.Runtime())
                # Arguments are fresh copies, so one call cannot spoil the next.
                values = [plain(function(value)) for value in inputs]
                text = json.dumps({"outputs": values}, allow_nan=False)
            except BaseException as error:
                if number and isinstance(error, MemoryError):
                    return
                text = json.dumps({"error": explain(error)})
            send_text(text + "\n")
    finally:
        os._exit(0)


def free_child(given, writer, settings):
    """The same for a program in full Python, which is still to come through the pipe `given`."""
    try:
        try:
            os.setsid()
            confine([writer, given], settings)
            packets = taken()
            function = language.compile_python(next(packets))
            values = [plain(function(value)) for value in packets]
            text = json.dumps({"outputs": values}, allow_nan=False)
        except BaseException as error:
            text = json.dumps({"error": explain(error)})
        send_text(text)
    finally:
        os._exit(0)


def taken():
    """What comes through file 4, none of it read before it is asked for."""
    while head := exactly(HEAD):
        yield json.loads(exactly(int.from_bytes(head)))


def exactly(count):
    """So many bytes of file 4; fewer at its end."""
    data = bytearray()
    while len(data) < count and (chunk := os.read(4, count - len(data))):
        data += chunk
    return data


def send_text(text):
    """Through the result pipe."""
    data = text.encode()
    while data:
        data = data[os.write(3, data) :]


def confine(files, settings):
    """The files become 3 (results) and 4 (inputs), all others close; limits the child cannot raise again; the filter last."""
    for number, file in enumerate([fcntl.fcntl(file, fcntl.F_DUPFD, 16) for file in files], 3):
        os.dup2(file, number)
    os.closerange(3 + len(files), 256)
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


def plain(value, depth=0):
    """The value as JSON keeps it: exact builtin types only, lists at most 8 deep (depth -1: the list of outputs)."""
    if type(value) in (int, float, str, bool, type(None)):
        return value
    if type(value) is list and depth < 8:
        return [plain(item, depth + 1) for item in value]
    raise TypeError("returned " + type(value).__name__)


def explain(error):
    """`NameError: name 'y' is not defined`; without addresses, which differ from run to run."""
    if isinstance(error, language.Forbidden):
        return "forbidden: " + str(error)
    if isinstance(error, runtime.StepLimit):
        return "killed: steps"
    return type(error).__name__ + ": " + re.sub("0x[0-9a-f]+", "0x", str(error)[:160])


if __name__ == "__main__":
    main()
