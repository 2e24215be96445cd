"""Mutated params files: each works, or is refused with exit code 2 and a message that names the key. Never a traceback."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from timing import cost

from trainorder.cli import app
from trainorder.config import parse_params
from trainorder.plan.check import check
from trainorder.reading import ParamsError, read_yaml

ROOT = Path(__file__).parents[2]
BASE = """\
policy: {hidden_size: 32, num_layers: 2, num_heads: 2}
tasks:
  math: {train: 64, dev: 16, test: 16, options: {max_value: 20, stories: 0.5}}
  qa: {train: 64, dev: 16, options: {distractors: 4}}
  creative: {train: 240}
  easy: {kind: math, options: {max_value: 12}}
sft: {steps: 150, max_steps: 200, gate: {math: 0.1}, betas: [0.9, 0.98]}
judge: {task: creative, prompts: 80, heldout_prompts: 20, endpoint: {base_url: "http://127.0.0.1:1/v1", api_key_env: KEY}}
rl:
  prompts_per_step: 6
  lr: 3.0e-4
  method: {advantage: [grpo], terms: [{clipped_surrogate: {clip_low: 0.2}}], reduction: token}
phases:
  math: {kind: structured, tasks: {math: 1}, steps: 2, rl: {lr: 1.0e-5, method: {reduction: sequence}}}
  qa: {kind: structured, tasks: {qa: 1}, steps: 2}
  creative: {kind: creative, tasks: {creative: 1}, steps: 2}
  joint: {kind: mixed, tasks: {math: 1, qa: 1, creative: 1}, steps: 6}
orders:
  first: [math, qa, creative]
  second: [creative, qa, math]
  recommended: recommended
  joint: [joint]
merges: {ties: {method: ties, density: 0.2}}
seeds: [0, 1]
grading: {seconds: 5, max_unscored: 0.1}
measure: {bootstrap: 100, level: 0.9}
"""
DATA: dict[str, Any] = YAML(typ="safe", pure=True).load(BASE)
SECRET = "sk-canary0123456789abcdef"
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 10**13, -(10**13), 10**9, 0.5, 1.5, -0.0, 1e-300, 1e300, math.nan, math.inf,
    -math.inf, "", " ", "x", "math", "0", "1e-4", "null", "a\nb", "a\x00b", "\u202e", "\U0001f642" * 50, "x" * 5000,
    "../../etc/passwd", "{}", "%s", "${x}", "{{ x }}", "@", "s0--math", "s0@math", "recommended", [], {}, [[]], [{}],
    [None], [1, 1], ["math"], ["math", "math"], {"math": 1}, {"a": {"b": {}}}, {"": 1}, {"a b": 1}, {"x" * 300: 1},
    SECRET, "https://user:pass@host/v1", ["x"] * 3000, "2001-99-99", "grpo", {"grpo": None}, {"grpo": {}, "rloo": {}},
]  # fmt: skip


def places(data: Any, loc: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if loc:
        yield loc
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in items:
        yield from places(value, (*loc, key))


PLACES = list(places(DATA))


def at(data: Any, loc: tuple[Any, ...]) -> Any:
    for key in loc:
        data = data[key]
    return data


def mutate(rng: random.Random) -> tuple[dict[str, Any], set[str]]:
    """The base with one to three changes, and the words of which a refusal has to say one."""
    data, words = copy.deepcopy(DATA), set[str]()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        loc = rng.choice(list(places(data)))
        parent, key = at(data, loc[:-1]), loc[-1]
        words |= {str(part) for part in loc if isinstance(part, str)}
        how = rng.randrange(6)
        if how <= 1:
            parent[key] = copy.deepcopy(rng.choice(ODD))
        elif how == 2:
            del parent[key]
        elif how == 3 and isinstance(parent, dict):
            typo = rng.choice(
                (f"{key}s", str(key)[1:], f"{key}_", str(key).upper(), str(key)[::-1])
            )
            parent[typo] = parent.pop(key)
            words.add(typo)
        elif how == 4:
            other = rng.choice(PLACES)
            parent[key] = copy.deepcopy(at(DATA, other))
            words |= {str(part) for part in other}
        elif isinstance(at(data, loc), dict):
            name = rng.choice(("api_key", "steps", "x", "kind", "rl", "options", "__class__", "1"))
            at(data, loc)[name] = copy.deepcopy(rng.choice(ODD))
            words.add(name)
    return data, words


def verdict(folder: Path, text: str | bytes) -> tuple[int, str]:
    """Exit code and stderr of `trainorder check`, in this process."""
    file = folder / "params.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    err = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stderr(err),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            app(["check"])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, err.getvalue()


def written(data: Any) -> str:
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_unicode = True
    yaml.default_flow_style = False  # between brackets DVC takes no address without quotes
    yaml.dump(data, stream)
    return stream.getvalue()


def test_the_base_works(tmp_path: Path) -> None:
    assert verdict(tmp_path, BASE) == (0, "")


def test_mutated_values_are_accepted_or_refused_by_name() -> None:
    """As a file would give them, nan and the like included, through all that `trainorder check` checks."""
    accepted = 0
    for seed in range(600):
        data, words = mutate(random.Random(seed))
        try:
            params = parse_params(data)
            check(params)
            accepted += 1
        except ParamsError as error:
            text = str(error)
            assert any(word in text for word in words), (seed, words, text[:300])
            assert len(text) < 20_000, seed
            assert SECRET not in text, seed
    assert 40 < accepted < 560


@pytest.mark.long("hundreds of mutated files")
def test_mutated_files_through_the_command(tmp_path: Path) -> None:
    codes = []
    for seed in range(150):
        data, words = mutate(random.Random(10_000 + seed))
        code, said = verdict(tmp_path, written(data))
        codes.append(code)
        assert code in (0, 2), (seed, said)
        assert "Traceback" not in said
        assert code == 0 or any(word in said for word in words), (seed, words, said[:300])
    assert {*codes} == {0, 2}


def test_damaged_text_through_the_command(tmp_path: Path) -> None:
    rng = random.Random(0)
    odd = [
        "\t",
        "\x00",
        "&a ",
        "*a ",
        "!!python/object:os.system ",
        "? ",
        ": ",
        "- ",
        "#",
        '"',
        "'",
        "[",
        "}",
        "|",
        ">",
        "%",
        "@",
        "`",
        "\ufeff",
        "\x85",
        "<<: ",
        "---\n",
        "\r",
        "é",
        "0x",
        "!!binary ",
        "!!set ",
        "2001-99-99",
    ]
    for number in range(100):
        text = BASE
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(text))
            how = rng.randrange(4)
            if how == 0:
                text = text[:place] + rng.choice(odd) + text[place:]
            elif how == 1:
                text = text[:place] + text[place + rng.randint(1, 12) :]
            elif how == 2:
                lines = text.split("\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                text = "\n".join(lines)
            else:
                text = text[:place]
            text = text or "x"
        code, said = verdict(tmp_path, text)
        assert code in (0, 2), (number, text)
        assert code == 0 or "params.yaml" in said or "error: " in said
        assert "Traceback" not in said


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10)
)
BOMBS: dict[str, tuple[str | bytes, str]] = {
    "billion laughs": (LAUGHS, "more than 20000 values"),
    "laughs in options": (BASE.replace("creative: {train: 240}", "creative: {train: 240, options: {x: &a [1,1,1,1,1,1,1,1,1,1], y: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a], z: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b], u: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c], v: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]}}"), "more than 20000 values"),
    "deep lists": ("tasks: " + "[" * 5000 + "]" * 5000, "line 1: nested deeper than 20 levels"),
    "deep maps": ("tasks: " + "{a: " * 60 + "1" + "}" * 60, "nested deeper than 20 levels"),
    "merge keys": (MERGES, "more than 20000 values"),
    "merge lists": ("a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n}\n  <<:\n" + f"  - *a{n - 1}\n" * 10 for n in range(1, 9)), "more than 20000 values"),
    "anchored keys": ("&a0 k0: &b0 [x]\n" + "".join(f"&a{n} k{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 12)}]\n" for n in range(1, 9)), "more than 20000 values"),
    "merges in lists": ("x:\n- &a0 {x: 1}\n" + "".join(f"- &a{n} [{{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}]\n" for n in range(1, 9)), "more than 20000 values"),
    "a merge of itself": ("tasks: &a {<<: *a}", "alias *a stands inside itself"),
    "a bomb as a key": ("? &a [x, x]\n: 1\n", "must be a short text, not a list or mapping"),
    "deep blocks": ("".join(f"{' ' * n}a{n}:\n" for n in range(300)), "nested deeper than 20 levels"),
    "many values": (BASE + "x: [" + "1, " * 50_000 + "1]\n", "more than 20000 values"),
    "utf-16": (BASE.encode("utf-16"), "must be UTF-8, and it looks like UTF-16"),
    "utf-32": (BASE.encode("utf-32-be"), "must be UTF-8, and it looks like UTF-16 or UTF-32"),
    "an unknown tag": (BASE.replace("train: 240", "train: !mine 240"), "could not determine a constructor for the tag '!mine'"),
    "a number in words": (BASE.replace("train: 240", "train: !!int many"), "tasks.creative.train (line 5): 'many' is no int"),
    "itself": ("tasks: &a [*a]", "line 1: alias *a stands inside itself"),
    "huge integer": (BASE.replace("steps: 150", "steps: " + "9" * 5000), "sft.steps (line 7): "),
    "large integer": (BASE.replace("steps: 150", "steps: " + "9" * 30), "sft.steps: at most 1000000000000 is allowed"),
    "nan": (BASE.replace("lr: 3.0e-4", "lr: .nan"), "rl.lr: must be a finite number, got nan"),
    "inf": (BASE.replace("lr: 3.0e-4", "lr: .inf"), "rl.lr: must be a finite number, got inf"),
    "overflow": (BASE.replace("lr: 3.0e-4", "lr: 1.0e999"), "rl.lr: must be a finite number, got inf"),
    "duplicate key": (BASE + "seeds: [3]\n", "duplicate key"),
    "nested duplicate": (BASE.replace("train: 240", "train: 240, train: 3"), "duplicate key"),
    "python object": (BASE + "x: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
    "not utf-8": (b"tasks: \xff\xfe\n", "must be UTF-8, and line 1 is not"),
    "binary": (BASE.replace("train: 240", "train: !!binary aGVsbG8="), "tasks.creative.train"),
    "date": (BASE.replace("train: 240", "train: 2001-01-01"), "tasks.creative.train: must be text, number"),
    "bad date": (BASE.replace("train: 240", "train: 2001-99-99"), "tasks.creative.train"),
    "list as key": ("? [a, b]\n: 1\n", "params.yaml"),
    "number as key": (BASE.replace("creative: {train: 240}", "1: {train: 240}"), "tasks: a key must be a short text, got 1"),
    "two documents": (BASE + "---\na: 1\n", "not valid YAML"),
    "too long": ("#" * 300_000, "at most 262144 are read"),
    "empty": ("", "must hold keys like"),
    "a secret": (BASE.replace("api_key_env: KEY", f"model: {SECRET}"), "judge.endpoint.model: this looks like a secret"),
    "a key's key": (BASE.replace("api_key_env: KEY", "api_key: hunter2"), "judge.endpoint.api_key: this looks like a secret"),
    "a key in a list": (BASE.replace("[grpo]", f"[{SECRET}]"), "rl.method.advantage.0: this looks like a secret"),
    "a password": (BASE.replace("http://127", "http://me:hunter2@127"), "judge.endpoint.base_url: this looks like a secret"),
    "not a variable": (BASE.replace("api_key_env: KEY", "api_key_env: my key"), "judge.endpoint.api_key_env"),
}  # fmt: skip


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What the check of ordinary params costs, in CPU seconds: a twentieth of one."""
    folder = tmp_path_factory.mktemp("ordinary")
    return cost(lambda: verdict(folder, BASE))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once_and_explained(
    tmp_path: Path, name: str, ordinary: float
) -> None:
    text, reason = BOMBS[name]
    code, said = verdict(tmp_path, text)
    assert cost(lambda: verdict(tmp_path, text), turns=2) < 100 * ordinary
    assert code == 2
    assert reason in said
    assert len(said) < 5000
    assert SECRET not in said
    assert "hunter2" not in said


@pytest.mark.long("starts the command dozens of times")
def test_dozens_in_processes_of_their_own(tmp_path: Path) -> None:
    """Forked from one that has imported the command: exit code, one message on stderr, nothing on stdout."""
    texts = [text for text, _ in BOMBS.values()][:6]
    texts += [written(mutate(random.Random(20_000 + seed))[0]) for seed in range(6)]
    for number, text in enumerate(texts):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "params.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    script = (
        "import os, subprocess, sys\n"
        "import trainorder.plan.compile, trainorder.preflight, typer, yaml\n"
        "from trainorder.cli import app\n"
        "for n in range(int(sys.argv[1])):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os.chdir(str(n)); sys.stdout = open('out', 'w'); sys.stderr = open('err', 'w'); app(['check'])\n"
        "    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "    open(f'{n}/code', 'w').write(str(code))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(len(texts))], cwd=tmp_path, check=True)
    for number in range(len(texts)):
        folder = tmp_path / str(number)
        code, out, err = ((folder / name).read_text() for name in ("code", "out", "err"))
        assert code in ("0", "2"), err
        assert "Traceback" not in err
        assert (out == "") == (code == "2")
        assert err.startswith("error: ") == (code == "2")


@pytest.mark.parametrize("text", [
    BASE, BASE.replace("train: 240", "train: &n 240, dev: *n"), "a:\n  u: http://h:1/v1\n  x: b:c\n  y:\n  - b:c\n",
    "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: {<<: [*a, {z: 3}], x: 4}", "\ufeffa: [1,]",
    "a: [010, 0o10, 0x1F, 0b11, 1_000, +5, 3e-4, 3E4, .5, 5., 1__0, 08, -0o7, 1.5e+3, -.5]\nt: 12:30:45",
    "a: [yes, on, True, ~, Null, .inf, -.INF, 2001-01-01, '', |-\n]".replace(", |-\n", ""), "a: |\n  b\n\n  c\n", "", "# x\n",
    "a: !!int 0x1_0\nb: !!float 3\nc: !!str 5\nd: !!bool 'true'\ne: !!set {x}\nf: !!binary aGk=",
])  # fmt: skip
def test_yaml_is_read_as_dvc_reads_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.yaml").write_text(text, encoding="utf-8")
    assert repr(read_yaml(tmp_path / "file.yaml")) == repr(YAML(typ="safe", pure=True).load(text))


@pytest.mark.parametrize("text", ["a: {b: http://x/v1}", "a: [package:x]", "a: [[1, {b:c: 2}]]"])
def test_a_colon_that_dvc_refuses_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(YAMLFileCorruptedError):  # libyaml as ruamel.yaml.clib has it
        parse_yaml(text, "file.yaml")
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(
        ParamsError, match=r"line 1, a.*: between brackets a text with a colon needs"
    ):
        read_yaml(tmp_path / "file.yaml")


def test_256_kib_are_checked_at_once(tmp_path: Path, ordinary: float) -> None:
    orders = "".join(f"  o{n}: [math, qa, creative]\n" for n in range(6000))
    for text, code in (
        (BASE + "#" * (250 << 10), 0),
        (BASE + "\n".join(["", *["# a comment of some words"] * 9000]), 0),
        (BASE.replace("orders:\n", f"orders:\n{orders}"), 2),
        (BASE.replace("seeds: [0, 1]", f"seeds: [{', '.join(map(str, range(15_000)))}]"), 2),
        (BASE + "x: " + "y" * (250 << 10), 2),
        (BASE + "x: [" * 60_000, 2),
    ):
        assert verdict(tmp_path, text)[0] == code
        assert cost(lambda text=text: verdict(tmp_path, text), turns=2) < 100 * ordinary


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(place=st.sampled_from(PLACES), value=JSON)
@example(place=("orders", "first"), value=["math"] * 400)
@pytest.mark.long("hundreds of mutated files")
def test_any_value_anywhere_is_accepted_or_refused(place: tuple[Any, ...], value: Any) -> None:
    data = copy.deepcopy(DATA)
    at(data, place[:-1])[place[-1]] = value
    with contextlib.suppress(ParamsError):
        check(parse_params(data))


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(JSON)
def test_any_data_is_no_traceback(data: Any) -> None:
    with contextlib.suppress(ParamsError):
        check(parse_params(json.loads(json.dumps(data))))
