"""What the sandbox's worker gives away before it runs a program: privileges, files, network, other processes, syscalls.

Standard library only; Linux through ctypes. Elsewhere, and where the kernel refuses, the level reached is lower, and
the worker says which and why.
"""

import ctypes
import fnmatch
import importlib
import os
import platform
import struct
import sys
import types

LEVELS = ("process", "filtered", "namespaces")
"""process: own session, resource limits, no environment, no open files, not root.
filtered: also no new privileges, and a syscall allowlist: no network, signals, ptrace, forks.
namespaces: also own user, process, mount, network, ipc and host name spaces, over an empty read-only root."""

NOBODY = 65534
PRELOADED = [
    "abc",
    "array",
    "ast",
    "base64",
    "bisect",
    "calendar",
    "cmath",
    "collections",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "inspect",
    "io",
    "itertools",
    "json",
    "math",
    "numbers",
    "operator",
    "pprint",
    "queue",
    "random",
    "re",
    "statistics",
    "string",
    "struct",
    "textwrap",
    "threading",
    "time",
    "traceback",
    "typing",
    "unicodedata",
    "zlib",
]
"""What a program in full Python may import even where the library's folder cannot be shown to it."""

COVERED, COVERED_FILE = "*-packages", "_sysconfigdata*"
COMPILED = "__pycache__"
OPEN_FILES = "/dev/fd/"
NEWNS, NEWIPC, NEWUTS, NEWUSER, NEWPID, NEWNET = (
    0x00020000,
    0x08000000,
    0x04000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH = 2
PDEATHSIG, DUMPABLE, SECCOMP, SUBREAPER, NO_NEW_PRIVS = 1, 4, 22, 36, 38
SIGKILL = 9


def preload():
    """Import what programs commonly need, while the library's files are in sight."""
    # What the interpreter was built with names folders of the machine; its file is not shown either.
    machine = getattr(sys.implementation, "_multiarch", "")
    built = types.ModuleType(f"_sysconfigdata_{sys.abiflags}_{sys.platform}_{machine}")
    vars(built)["build_time_vars"] = {}
    sys.modules[built.__name__] = built
    for name in PRELOADED:
        importlib.import_module(name)


def forget_the_start():
    """Close the files that this interpreter was started through, and drop what tells of the start."""
    homes = os.environ.pop("PYTHONHOME", "").split(":")
    for path in {*homes, sys.argv[0].rpartition("/")[0]}:
        if path.startswith(OPEN_FILES):
            os.close(int(path.removeprefix(OPEN_FILES)))
    sys.argv[:], sys.orig_argv[:] = [""], [""]


def enter(highest, libraries):
    """Confine this process as far as the kernel allows, at most to `highest`; returns the level and why not a higher one.

    `libraries` shows programs the standard library, read-only. For "namespaces" a child goes on as process 1 of its
    own; the caller's process waits for it and never returns.
    """
    if not sys.platform.startswith("linux"):
        _become_nobody()
        return "process", "not Linux"
    missing = "" if highest == "namespaces" else "not asked for"
    if highest == "namespaces":
        missing = _try(lambda: _enter_namespaces(libraries))
    _become_nobody()
    level = "process" if highest == "process" else "filtered"
    if missing == "":
        _try(lambda: _call("unshare", NEWUSER))
        _drop_capabilities()
        level = "namespaces"
    _call("prctl", PDEATHSIG, SIGKILL, 0, 0, 0)
    if level != "process":
        why = _try(lambda: _call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)) or _probe_filter()
        if why:
            return "process", f"syscall filter: {why}"
    return level, missing


def adopt_orphans():
    """This process ends with its parent, and what its children leave becomes its own child."""
    if sys.platform.startswith("linux"):
        _call("prctl", PDEATHSIG, SIGKILL, 0, 0, 0)
        _call("prctl", SUBREAPER, 1, 0, 0, 0)


def _try(action):
    """Why the action failed, or nothing."""
    try:
        action()
    except OSError as error:
        return str(error) or type(error).__name__
    return ""


def _enter_namespaces(libraries):
    """New namespaces, a child in them, an empty root for it. Raises OSError in the caller's process if it cannot be."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # the outer half: unshares, and forks process 1
        os.close(reader)
        try:
            inner = _unshare_and_fork()
        except OSError as error:
            os.write(writer, str(error).encode())
            os._exit(1)
        if inner == 0:
            try:
                _call("sethostname", b"sandbox", ctypes.c_size_t(7))
                _empty_root(_library() if libraries else [])
            except OSError as error:
                os.write(writer, str(error).encode())
                os._exit(1)
            os.write(writer, b"ok")
            os.close(writer)
            return
        _wait_and_exit(inner, writer)
    os.close(writer)
    said = b"".join(iter(lambda: os.read(reader, 4096), b""))
    os.close(reader)
    if said == b"ok":
        _wait_and_exit(pid)
    os.waitpid(pid, 0)
    raise OSError(said.decode() or "the process in the new namespaces died")


def _unshare_and_fork():
    _call("prctl", PDEATHSIG, SIGKILL, 0, 0, 0)
    flags = NEWNS | NEWIPC | NEWUTS | NEWPID | NEWNET
    uid, gid = os.geteuid(), os.getegid()
    if uid or _try(lambda: _call("unshare", flags)):
        _call("unshare", flags | NEWUSER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
    return os.fork()


def _wait_and_exit(pid, *files):
    for file in (0, 1, *files):
        os.close(file)
    os.closerange(
        3, 256
    )  # the pipes are the child's now: the parent must see them close when it dies
    os.waitpid(pid, 0)
    os._exit(0)


def _library():
    """Folders of the standard library; asked of sysconfig, it would keep where they really are."""
    extensions = [path for path in sys.path if path.endswith("lib-dynload")]
    return dict.fromkeys(path.rpartition("/")[0] for path in (os.__file__, *extensions))


def _empty_root(folders):
    """A read-only root with nothing in it but the standard library of these folders, read-only."""
    _mount(None, "/", None, REC | PRIVATE)
    # A file opened before this namespace was made leads to a mount outside of it, so the path is followed again.
    opened = {name: os.open(os.path.realpath(name), os.O_RDONLY) for name in folders}
    base = "/proc"  # exists everywhere, and nothing below it is needed from here on
    _mount("none", base, "tmpfs", NOSUID | NODEV, "size=256k,mode=755")
    for folder, number in opened.items():
        os.makedirs(base + folder, exist_ok=True)  # noqa: PTH103
        os.fchdir(number)
        os.close(number)
        if _try(lambda folder=folder: _mount(".", base + folder, None, BIND)) == "" and _try(
            lambda folder=folder: _only_the_library(base + folder)
        ):
            _call("umount2", (base + folder).encode(), DETACH)
    os.chdir(base)
    number = {"x86_64": 155, "aarch64": 41}.get(platform.machine())
    if number is None:
        raise OSError(f"pivot_root is not known for {platform.machine()}")
    _call("syscall", ctypes.c_long(number), b".", b".")
    _call("umount2", b".", DETACH)
    os.chdir("/")
    _mount(None, "/", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)


def _only_the_library(folder):
    """Make a mounted library read-only and cover what else lies in it: other packages, and files that name folders.

    Compiled modules hold the paths that they were compiled from.
    """
    _mount(None, folder, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    for place, inside, files in os.walk(folder):
        for name in files:
            if place == folder and fnmatch.fnmatch(name, COVERED_FILE):
                _mount(os.devnull, f"{place}/{name}", None, BIND)
        for name in inside[:]:
            if name == COMPILED or (place == folder and fnmatch.fnmatch(name, COVERED)):
                inside.remove(name)
                _mount("none", f"{place}/{name}", "tmpfs", RDONLY | NOSUID | NODEV, "size=4k")


def _mount(source, target, kind, flags, data=None):
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), data.encode() if data else None)


def _become_nobody():
    """Root is exempt from the limit on processes, and owns too much."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _drop_capabilities():
    header = struct.pack("Ii", 0x20080522, 0)
    _call("capset", header, bytes(24))


def _call(name, *arguments):
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


# Syscalls. A denied one fails with EPERM, so that a program sees an exception and nothing of the outside.

COMPUTE = [
    "read",
    "write",
    "close",
    "fstat",
    "lseek",
    "mmap",
    "mprotect",
    "munmap",
    "brk",
    "mremap",
    "madvise",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "futex",
    "getpid",
    "gettid",
    "getrandom",
    "clock_gettime",
    "clock_getres",
    "sched_yield",
    "getrusage",
    "exit",
    "exit_group",
]
"""What an interpreter needs to compute and to write its result."""
LOOK = [
    "open",
    "openat",
    "stat",
    "lstat",
    "newfstatat",
    "statx",
    "access",
    "faccessat",
    "readlink",
    "readlinkat",
    "getdents64",
    "pread64",
    "dup",
    "fcntl",
    "ioctl",
    "getcwd",
    "nanosleep",
    "clock_nanosleep",
    "getitimer",
    "setitimer",
    "getuid",
    "getgid",
    "geteuid",
    "getegid",
    "getppid",
    "uname",
    "sysinfo",
    "times",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "pipe",
    "pipe2",
]
"""Reading files and waiting, in full Python; the empty root decides what there is to read."""
FORK = ["clone", "fork", "vfork", "wait4", "setsid", "set_robust_list", "rseq"]
"""Where a program may start processes."""
NUMBERS = {
    "x86_64": (
        0xC000003E,
        "read 0 write 1 open 2 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12 "
        "rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 ioctl 16 pread64 17 access 21 pipe 22 select 23 "
        "sched_yield 24 mremap 25 madvise 28 dup 32 nanosleep 35 getitimer 36 setitimer 38 getpid 39 clone 56 fork 57 "
        "vfork 58 exit 60 wait4 61 uname 63 fcntl 72 getcwd 79 readlink 89 getrusage 98 sysinfo 99 times 100 "
        "getuid 102 getgid 104 geteuid 107 getegid 108 getppid 110 setsid 112 sigaltstack 131 gettid 186 futex 202 "
        "getdents64 217 clock_gettime 228 clock_getres 229 clock_nanosleep 230 exit_group 231 openat 257 "
        "newfstatat 262 faccessat 269 pselect6 270 ppoll 271 set_robust_list 273 pipe2 293 readlinkat 267 "
        "getrandom 318 statx 332 rseq 334",
    ),
    "aarch64": (
        0xC00000B7,
        "getcwd 17 dup 23 fcntl 25 ioctl 29 faccessat 48 openat 56 close 57 pipe2 59 getdents64 61 lseek 62 read 63 "
        "write 64 pread64 67 pselect6 72 ppoll 73 readlinkat 78 newfstatat 79 fstat 80 exit 93 exit_group 94 futex 98 "
        "set_robust_list 99 nanosleep 101 getitimer 102 setitimer 103 clock_gettime 113 clock_getres 114 "
        "clock_nanosleep 115 sched_yield 124 sigaltstack 132 rt_sigaction 134 rt_sigprocmask 135 rt_sigreturn 139 "
        "times 153 setsid 157 uname 160 getrusage 165 getpid 172 getppid 173 getuid 174 geteuid 175 getgid 176 "
        "getegid 177 gettid 178 sysinfo 179 brk 214 munmap 215 mremap 216 clone 220 mmap 222 mprotect 226 "
        "madvise 233 wait4 260 getrandom 278 statx 291 rseq 293",
    ),
}
"""Machine -> AUDIT_ARCH and its syscall numbers."""
LOAD, EQUAL, ABOVE, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000
X32 = 0x40000000


class Filter:
    """A seccomp program, ready to install after a fork."""

    def __init__(self, code):
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(self._code))
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def install(self):
        """Irrevocable for this process and its children."""
        if self._prctl(SECCOMP, 2, self._program, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"seccomp: {os.strerror(number)}")


def syscall_filter(python, forks):
    """The allowlist of one language: plain computing, or full Python, which may read and wait."""
    arch, table = NUMBERS[platform.machine()]
    words = table.split()
    numbers = {name: int(number) for name, number in zip(words[::2], words[1::2], strict=True)}
    names = [*COMPUTE, *(LOOK if python else []), *(FORK if forks else [])]
    allowed = [numbers[name] for name in names if name in numbers]
    rows = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    rows.append((ABOVE, len(allowed), 0, X32))
    rows += [(EQUAL, len(allowed) - i, 0, number) for i, number in enumerate(allowed)]
    rows += [(RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    return Filter(b"".join(struct.pack("HBBI", *row) for row in rows))


def _probe_filter():
    """Why a child cannot install the filter, or nothing."""
    if platform.machine() not in NUMBERS:
        return f"no syscall table for {platform.machine()}"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            syscall_filter(False, False).install()
            code = 0
        finally:
            os._exit(code)
    return "the kernel refuses seccomp" if os.waitpid(pid, 0)[1] else ""
