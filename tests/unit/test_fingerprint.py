"""A fingerprint changes when what the code does changes, and for no other reason."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainorder import fingerprint
from trainorder.config import parse_params
from trainorder.fingerprint import Code, closure, compute, meaning
from trainorder.plan import compile_plan
from trainorder.reading import read_yaml
from trainorder.tasks import TASKS

ROOT = Path(__file__).parents[2]


def digest(source: str) -> str:
    return meaning(ast.parse(source))


SAME = {
    "a comment": ("x = 1", "x = 1  # why"),
    "formatting": ("f(a,b)", "f(\n    a,\n    b,\n)"),
    "a docstring": ("def f():\n    return 1", 'def f():\n    """Text."""\n    return 1'),
    "an attribute's text": (
        "class A:\n    x: int = 1",
        'class A:\n    x: int = 1\n    """Text."""',
    ),
    "a new section": ("x = 1", "x = 1\nclass A(Section):\n    y: int = 1"),
    "quotes": ("x = 'a'", 'x = "a"'),
    "an import for types only": ("x = 1", "if TYPE_CHECKING:\n    import torch\nx = 1"),
    "a default of a section": (
        "class A(Section):\n    x: int = 1",
        "class A(Section):\n    x: int = 2\n    y: int = 0",
    ),
    "a task in the registry": (
        "T = {'a': 'trainorder.a:A'}",
        "T = {'a': 'trainorder.a:A', 'b': 'trainorder.b:B'}",
    ),
}
DIFFERENT = {
    "a number": ("x = 1", "x = 2"),
    "an integer made a float": ("x = 1", "x = 1.0"),
    "a returned expression": ("def f(a): return a + 1", "def f(a): return a - 1"),
    "a default": ("def f(a=1): pass", "def f(a=2): pass"),
    "a name": ("x = 1", "y = 1"),
    "order of statements": ("a()\nb()", "b()\na()"),
    "a decorator": ("def f(): pass", "@g\ndef f(): pass"),
    "a text that is used": ("x = 'a'", "x = 'b'"),
    "the body of an if": ("if debug:\n    a()", "if debug:\n    b()"),
    "a method of a section": (
        "class A(Section):\n    def f(self): return 1",
        "class A(Section):\n    def f(self): return 2",
    ),
    "an ordinary dict": ("T = {'a': 'x'}", "T = {'a': 'x', 'b': 'y'}"),
    "a class moved into another's base": ("class A: x = 1", "class A(B): x = 1"),
}


@pytest.mark.parametrize("case", SAME)
def test_means_the_same(case: str):
    one, other = SAME[case]
    assert digest(one) == digest(other)


@pytest.mark.parametrize("case", DIFFERENT)
def test_means_something_else(case: str):
    one, other = DIFFERENT[case]
    assert digest(one) != digest(other)


def world(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


PROJECT = {
    "stages/rl.py": "import torch\nfrom trainorder.rl import trainer\n",
    "trainorder/__init__.py": "",
    "trainorder/config.py": "x = 1\n",
    "trainorder/other.py": "x = 1\n",
    "trainorder/rl/__init__.py": "",
    "trainorder/rl/trainer.py": "def train():\n    from trainorder.rl.late import f\n    return f()\n",
    "trainorder/rl/late.py": "from ..config import x\nWORKER = 'worker.py'\n",
    "trainorder/rl/worker.py": "y = 1\n",
    "trainorder/rl/page.html": "<p>",
    "trainorder/rl/notes.md": "text",
}


def test_the_closure_follows_lazy_and_relative_imports_and_modules_run_by_name(tmp_path: Path):
    assert closure(world(tmp_path, PROJECT), "stages.rl") == [
        "stages/rl.py",
        "trainorder/__init__.py",
        "trainorder/config.py",
        "trainorder/rl/__init__.py",
        "trainorder/rl/late.py",
        "trainorder/rl/page.html",
        "trainorder/rl/trainer.py",
        "trainorder/rl/worker.py",
    ]


def test_a_changed_file_of_the_closure_changes_exactly_its_line(tmp_path: Path):
    root = world(tmp_path, PROJECT)
    code = {"rl": Code("stages.rl")}
    before = compute(code, root)["rl"].splitlines()
    for name, text in {"trainorder/other.py": "x = 2\n", "trainorder/rl/notes.md": "other"}.items():
        (root / name).write_text(text)
    assert compute(code, root)["rl"].splitlines() == before
    (root / "trainorder/rl/late.py").write_text(
        "from ..config import x as z\nWORKER = 'worker.py'\n"
    )
    (root / "trainorder/rl/page.html").write_text("<div>")
    after = compute(code, root)["rl"].splitlines()
    changed = {new.split()[0] for old, new in zip(before, after, strict=True) if old != new}
    assert changed == {"trainorder/rl/late.py", "trainorder/rl/page.html"}


def test_a_phase_covers_its_own_tasks_code_and_no_others():
    code = {name: Code("stages.merge", frozenset({TASKS[name]})) for name in ("math", "qa")}
    texts = compute(code, ROOT)
    assert "trainorder/tasks/math.py" in texts["math"]
    assert "trainorder/tasks/qa.py" not in texts["math"]
    assert "trainorder.tasks.qa:Qa" in texts["qa"]


SMOKE = read_yaml(ROOT / "configs" / "smoke.yaml")


def files_of_a_phase(**sections: object) -> set[str]:
    """Files that the fingerprint of the first structured phase of smoke.yaml covers under these sections."""
    plan = compile_plan(parse_params({**SMOKE, **sections}))
    code = plan.code()
    name = next(n for n, c in code.items() if c.module == "stages.rl" and "creative" not in n)
    return {line.split()[0] for line in compute({name: code[name]}, ROOT)[name].splitlines()}


RL, ROLLOUT = "trainorder/rl", "trainorder/rollout"


@pytest.mark.parametrize(
    ("sections", "covered", "left_out"),
    [
        (
            {},
            {f"{RL}/backend.py", f"{ROLLOUT}/torch_engine.py"},
            {
                f"{RL}/deepspeed_backend.py",
                f"{ROLLOUT}/vllm_engine.py",
                "trainorder/tracking/__init__.py",
            },
        ),
        (
            {"rollout": {"backend": "vllm"}},
            {f"{ROLLOUT}/vllm_engine.py"},
            {f"{ROLLOUT}/torch_engine.py", f"{ROLLOUT}/decoders.py"},
        ),
        (
            {"training": {"backend": "deepspeed"}},
            {f"{RL}/deepspeed_backend.py", f"{ROLLOUT}/torch_engine.py"},
            {f"{ROLLOUT}/vllm_engine.py", f"{RL}/speed.py"},
        ),
    ],
    ids=["plain", "vllm", "deepspeed"],
)
def test_a_phase_covers_the_engine_and_backend_that_params_name(
    sections: dict[str, object], covered: set[str], left_out: set[str]
):
    files = files_of_a_phase(**sections)
    assert covered <= files
    assert not left_out & files


@pytest.mark.parametrize("backend", ["local", "endpoint"])
def test_only_what_meets_a_judged_task_covers_the_judge_that_params_name(backend: str):
    endpoint = {"base_url": "http://127.0.0.1:8000/v1", "model": "any"}
    judge = {**SMOKE["judge"], "backend": backend, "endpoint": endpoint}
    code = compile_plan(parse_params({**SMOKE, "judge": judge})).code()
    texts = compute(code, ROOT)
    own, other = "trainorder/judges/preference.py ", "trainorder/judges/endpoint.py "
    if backend == "endpoint":
        own, other = other, own
    for name in (
        "judge_reward" if backend == "local" else "judge_endpoint",
        "evaluate",
        "phase_creative",
    ):
        assert own in texts[name]
    assert other not in texts["evaluate"] + texts["phase_creative"]
    assert own not in texts["phase_math"] + texts["sft_warmup"]


LISTING = """
from trainorder.rl.registry import advantage, term
EPS = 1e-6
def centred(x): return x - x.mean()
def scale(x): return x / EPS
@advantage
def grpo(roll, state): return scale(centred(roll))
@advantage
def rloo(roll, state): return centred(roll)
@term(needs=frozenset())
def kl(live, roll, state): return shared(live)
def shared(x): return x
class Unused: pass
"""


FAMILY = "trainorder/rl/pieces/baselines.py"


def print_of(
    tmp_path: Path, text: str, *pieces: tuple[str, str], user: str = "", **families: str
) -> str:
    files = {
        "stages/rl.py": f"from trainorder.rl import pieces as _pieces\n{user}\n",
        "trainorder/rl/pieces/__init__.py": "import pkgutil\n",
        FAMILY: text,
        **{f"trainorder/rl/pieces/{name}.py": text for name, text in families.items()},
    }
    return compute({"x": Code("stages.rl", pieces=frozenset(pieces))}, world(tmp_path, files))["x"]


@pytest.mark.parametrize(
    ("edit", "changes_grpo", "changes_kl"),
    [
        (("centred(roll)\n@term", "centred(roll) * 2\n@term"), False, False),
        (("scale(centred(roll))", "scale(roll)"), True, False),
        (("x / EPS", "x * EPS"), True, False),
        (("return shared(live)", "return live"), False, True),
        (("def shared(x): return x", "def shared(x): return -x"), False, True),
        (("1e-6", "1e-8"), True, False),
        (("EPS = 1e-6", "EPS: float = 1e-6"), True, False),
        (("\nEPS", "\nprint()\nEPS"), True, True),
        (("import advantage, term", "import advantage, edit, term"), False, False),
        (("import advantage, term", "import advantage, kl as term"), False, True),
        (("class Unused: pass", "@term\ndef cispo(live, roll, state): return live"), False, False),
        (("class Unused: pass", "class Unused: x = 1"), False, False),
        (("def centred", "# why\ndef centred"), False, False),
    ],
)
def test_a_phase_covers_the_pieces_it_names_and_what_they_call(
    tmp_path: Path, edit: tuple[str, str], changes_grpo: bool, changes_kl: bool
):
    assert LISTING.count(edit[0]) == 1
    edited = LISTING.replace(*edit)
    grpo, kl = ("advantage", "grpo"), ("terms", "kl")
    for piece, changes in ((grpo, changes_grpo), (kl, changes_kl)):
        before, after = (print_of(tmp_path, text, piece) for text in (LISTING, edited))
        assert (before != after) == changes


@pytest.mark.parametrize(
    "user",
    [
        "from trainorder.rl.pieces import baselines\nbaselines.rloo(1, 2)",
        "from trainorder.rl.pieces.baselines import rloo as r",
        "import trainorder.rl.pieces.baselines\ntrainorder.rl.pieces.baselines.rloo",
    ],
)
def test_a_piece_that_other_code_calls_is_covered_though_no_params_name_it(
    tmp_path: Path, user: str
):
    edited = LISTING.replace("centred(roll)\n@term", "centred(roll) * 2\n@term")
    before, after = (print_of(tmp_path, text, user=user) for text in (LISTING, edited))
    assert before != after


def test_a_new_family_of_pieces_changes_no_phase_that_names_none_of_it(tmp_path: Path):
    family = "from trainorder.rl.registry import term\n@term\ndef cispo(live, roll, state): ..."
    grpo, cispo = ("advantage", "grpo"), ("terms", "cispo")
    before, after = (
        print_of(tmp_path, LISTING, grpo),
        print_of(tmp_path, LISTING, grpo, more=family),
    )
    assert before == after
    assert FAMILY in after
    named = print_of(tmp_path, LISTING, grpo, cispo, more=family)
    assert "trainorder/rl/pieces/more.py" in named
    changed = print_of(tmp_path, LISTING, grpo, cispo, more=family.replace("...", "return live"))
    assert changed != named


def test_the_worker_of_the_sandbox_is_covered():
    assert "trainorder/rewards/sandbox_worker.py" in closure(ROOT, "trainorder.rewards.sandbox")


def test_write_touches_only_what_changed_and_removes_what_left(tmp_path: Path):
    folder = tmp_path / "prints"
    fingerprint.write({"a": "1\n", "b": "1\n", "phase_gone": "1\n"}, folder)
    stamps = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    fingerprint.write({"a": "1\n", "b": "2\n"}, folder)
    assert sorted(f.name for f in folder.iterdir()) == ["a", "b"]
    assert (folder / "a").stat().st_mtime_ns == stamps["a"]
    assert (folder / "b").read_text() == "2\n"


def test_needs_neither_torch_nor_any_of_the_stages():
    script = (
        "import sys; from trainorder.fingerprint import Code, compute;"
        "compute({'rl': Code('stages.build_data', frozenset({'trainorder.tasks.math:Math'}))});"
        "print([m for m in ('torch', 'transformers', 'pandas', 'stages') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert done.stdout == "[]\n"


FIND = """
import json, sys, time
from pathlib import Path
from trainorder.fingerprint import Code, compute
start = time.process_time()
found = compute({"a": Code("trainorder.a"), "b": Code("trainorder.b")}, Path(sys.argv[1]))
print(json.dumps([found, time.process_time() - start]))
"""


def found(root: Path, cache: Path) -> tuple[dict[str, str], float]:
    """Fingerprints and their CPU seconds, in a process of its own with this cache folder."""
    command = [sys.executable, "-c", FIND, str(root)]
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, check=True)
    return tuple(json.loads(done.stdout))


def test_a_remembered_file_costs_no_parsing_and_a_changed_one_is_parsed_again(tmp_path: Path):
    (tmp_path / "trainorder").mkdir()
    a, b = tmp_path / "trainorder" / "a.py", tmp_path / "trainorder" / "b.py"
    a.write_text("from trainorder import b\n" + "x = [1, 2, (3, 4)]\n" * 20_000)
    b.write_text("y = 1\n")
    cache = tmp_path / "cache"
    first, parsing = found(tmp_path, cache)
    again, reading = found(tmp_path, cache)
    assert again == first
    assert reading < parsing / 3
    b.write_text("y = 2\n")  # of the same size
    changed, _ = found(tmp_path, cache)
    assert changed.keys() == first.keys()
    assert all(changed[name] != first[name] for name in first)
    assert changed["a"].splitlines()[0] == first["a"].splitlines()[0]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"x": {"imports": 1}}', None])
def test_what_is_remembered_may_be_damaged_or_impossible_to_keep(tmp_path: Path, content):
    (tmp_path / "trainorder").mkdir()
    for name in "ab":
        (tmp_path / "trainorder" / f"{name}.py").write_text("x = 1\n")
    cache = tmp_path / "cache"
    whole, _ = found(tmp_path, cache)
    (file,) = (cache / "trainorder").iterdir()
    if content is None:
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(content)
    assert found(tmp_path, cache)[0] == whole
