"""Every command that README, CONTRIBUTING and docs show, and how the tests know that it works."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMANDS = "bash"
"""Language of a block of which every line is a command; the others are in LANGUAGES."""
LANGUAGES = {COMMANDS, "yaml", "yml", "text"}
"""`yaml`: lines of params.yaml; `yml`: of another file; `text`: what a command prints, or a tree."""
STARTS = (
    "trainorder", "dvc", "make", "python", "pip", "git", "prefect", "mlflow", "apt-get", "pytest", "docker", "kubectl",
)  # fmt: skip
"""Between backticks a text is a command where it begins with one of these and goes on."""

HERE = "run in the small project that the pipeline's tests train"
PARSED = "its module is asked for --help, which must name the options"
DRY = "make says what it would do"
PIPELINE, DVC = "tests/pipeline/test_pipeline.py::", "tests/pipeline/test_dvc.py::"
FLOW, UI, SWEEP = (
    "tests/unit/test_flow.py::",
    "tests/unit/test_ui.py::",
    "tests/unit/test_sweep.py::",
)
CLONES = PIPELINE + "test_a_second_clone_pulls_everything_and_trains_nothing"
ELSEWHERE = "not here: "

KNOWN = {
    r"trainorder (check|plan( --dag)?|table|recommend( --apply)?|verify( --cache)?|gc( --yes)?|doctor|report)": HERE,
    r"trainorder (compare|show|power|methods)\b.*": HERE,
    r"trainorder probe (?!--predict).*": HERE,
    r"trainorder probe --predict.*": "tests/unit/test_probes.py::test_a_probe_that_goes_with_forgetting_is_told_from_one_that_does_not",
    r"trainorder mixture": "tests/unit/test_mixture.py::test_it_names_the_best_mixture_of_the_measured_curve",
    r"trainorder export NODE FOLDER": "tests/pipeline/test_own_model.py::test_a_node_is_exported_whole_and_another_model_stales_the_base",
    r"trainorder init\b.*": "tests/unit/test_packaging.py::test_an_installed_wheel_makes_a_project_that_plans",
    r"trainorder run": PIPELINE + "test_a_second_run_trains_nothing",
    r"trainorder run --dry-run": "tests/unit/test_dry_run.py::test_a_dry_run_tries_one_problem_of_each_task_and_judge_and_trains_nothing",
    r"trainorder run --set \S+=.* --exp \S+": PIPELINE + "test_a_run_with_other_params_is_saved_as_an_experiment_that_can_be_applied",
    r"trainorder run --seeds .*": SWEEP + "test_seeds_are_added_to_every_way_of_writing_them_and_nothing_else_changes",
    r"trainorder run --until-settled.*": "tests/unit/test_sequential.py::test_rounds_add_a_quarter_more_seeds_and_note_their_looks",
    r"trainorder run --params configs/\w+\.yaml": "tests/contracts/test_dvc_yaml.py::test_every_shipped_params_file_can_work_and_plans",
    r"trainorder deploy.*": FLOW + "test_orders_edited_in_the_run_form_train_only_what_is_new_and_cancelling_stops_it",
    r"trainorder ui( --host)?": UI + "test_a_clone_that_pulled_sees_the_runs_in_mlflow",
    r"dvc (repro|status|params diff|metrics show|plots show|exp show.*)": HERE,
    r"dvc dag\b.*": HERE,
    r"dvc (metrics|plots) diff later_qa lr-1": DVC + "test_metrics_and_plots_are_shown_and_compared_with_a_commit",
    r"dvc exp run -S .*": DVC + "test_exp_run_changes_values_and_refuses_an_order_in_one_line",
    r"dvc (push --run-cache|pull|repro --pull|remote add -d store \S+)": CLONES,
    r"dvc cache dir --local \S+": "tests/unit/test_storage.py::test_gc_leaves_a_shared_cache_alone",
    r"git (add|commit|pull)\b.*": CLONES,
    r"make \w+": DRY,
    r"make run PIP_ARGS=.*": DRY,
    r"python -m (benchmarks\.\w+|flows\.search|trainorder\.rl\.replay)( .*)?": PARSED,
    r"python -m stages\.X": "tests/contracts/test_dvc_yaml.py::test_every_stage_module_exists_and_takes_the_arguments_it_is_given",
    r"python -m stages\.build_data": PIPELINE + "test_every_phase_learns_something",
    r"python tests/unit/test_footprint.py": "tests/unit/test_footprint.py::test_activations_are_within_a_quarter_of_what_a_process_takes",
    r"python -m venv \.venv": ELSEWHERE + "`make install` runs it",
    r"trainorder --install-completion": ELSEWHERE + "changes the shell of the user",
    r"pytest --durations=20": ELSEWHERE + "the tests themselves",
    r"git clone( <.*>)?": ELSEWHERE + "the address is its owner's",
    r"cd [\w-]+": ELSEWHERE + "of the shell",
    r"source \.venv/bin/activate": ELSEWHERE + "of the shell",
    r"export \w+=\S+": ELSEWHERE + "of the shell",
    r"(pip install|apt-get install) .*": ELSEWHERE + "needs a network",
    r"(TRAINORDER_CLONE=\$PWD )?prefect worker start .*": ELSEWHERE + "two workers take CPU minutes: `python -m benchmarks.work_pool`",
    r"prefect work-pool create --type (docker|kubernetes) \w+": ELSEWHERE + "needs a cluster",
}  # fmt: skip
"""Commands, as a regular expression -> how a test knows that they work, or why none does."""

STAND_INS = {
    "NODE": "s0--math", "NAME": "dapo", "A": "structured_first", "B": "joint",
    "s0--math--code": "s0--math--qa", "s0--code": "s0--qa", "base": "s0", "plan/s0--math--code/dvc.yaml:train": "plan/s0--math--qa/dvc.yaml:train",
    "refreshed": "creative_first", "control": "joint", "majority_at_8": "greedy",
}  # fmt: skip
"""Word of a command -> what stands for it in the small project."""


def shown() -> dict[str, str]:
    """Every command, without its comment -> the page that shows it."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [
            line
            for language, block in FENCE.findall(text)
            if language == COMMANDS
            for line in block.splitlines()
        ]
        inline = " ".join(FENCE.sub("", text).split())
        lines += re.findall(rf"`((?:{'|'.join(STARTS)}) [^`]+)`", inline)
        for command in commands(lines):
            found.setdefault(command, page.relative_to(ROOT).as_posix())
    return found


def commands(lines: list[str]) -> Iterator[str]:
    """The commands of lines: without comments, those joined by && one by one."""
    for line in lines:
        for part in re.sub(r"(^|\s)#.*", "", line).split(" && "):
            if part.strip():
                yield part.strip()


def how(command: str) -> list[str]:
    """The entries of KNOWN that a command matches; it should be one."""
    return [way for pattern, way in KNOWN.items() if re.fullmatch(pattern, command)]


def to_run_here() -> list[list[str]]:
    """Words of every command that is run in the small project, with its stand-ins; those that change it come last."""
    found = set[tuple[str, ...]]()
    for command in shown():
        if how(command) == [HERE]:
            text = command.replace("probe A B", "probe base s0--math").replace("[NAME]", "")
            found.add(tuple(STAND_INS.get(word, word) for word in shlex.split(text)))
    changing = {"--apply", "--yes"}
    return sorted(map(list, found), key=lambda words: (not changing.isdisjoint(words), words))
