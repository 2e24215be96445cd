"""The sandbox's own process: reads one JSON request per line, forks children for it, writes one JSON reply per program.

A request is a list of programs. Those of the whitelist language share a child: nothing that they can name outlives a
program, and a fork takes several times as long as one. In full Python a request has one program.

Started by sandbox.py as a bare interpreter, so it may import the standard library only. Before the first program it gives
away what it can (sandbox_isolation.py); what is left of a program is killed before the next one starts.
"""

import contextlib
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

sys.path.pop()


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
            line = receive(requests)
            for reply in run(line, settings, alone) if line else ():
                send(writer, reply)
            os._exit(0 if line else 1)
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
    given, why = 0, ""
    for text, why in texts(reader, settings):
        reply = None if why else understood(text, settings)
        if reply is None:
            break
        yield reply
        given += 1
        if first + given == count:
            break
    os.close(reader)
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


def texts(reader, settings):
    """What a child wrote, and why it was cut off if it was: a line per program, or all of it in full Python."""
    rest, deadline = b"", time.monotonic() + settings.wall
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            yield b"", "clock"
            return
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


def child(line, first, writer, settings):
    """Never returns; its only open file is the result pipe."""
    end_of_text = "" if settings.python else "\n"
    try:
        for number, program in enumerate(json.loads(line)[first:]):
            try:
                if number == 0:
                    os.setsid()
                    confine(writer, settings)
                values = outputs(settings.python, *program)
                text = json.dumps({"outputs": values}, allow_nan=False)
            except BaseException as error:
                if number and isinstance(error, MemoryError):
                    return
                text = json.dumps({"error": explain(error)})
            data = (text + end_of_text).encode()
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
    function = language.compile_function(python, source)
    return [plain(function(value)) for value in inputs]


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
    if isinstance(error, language.StepLimit):
        return "killed: steps"
    return type(error).__name__ + ": " + re.sub("0x[0-9a-f]+", "0x", str(error)[:160])


if __name__ == "__main__":
    main()
