"""How other frameworks write a row. A schema is one function and one line in SCHEMAS; the first whose columns a file has is it.

Columns that are null in every row count as absent: parquet unions fill structs with nulls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trainorder.graders.labels import literal
from trainorder.tasks.lines import BadRow, short

ANSWERS = ("answer", "solution", "ground_truth", "label", "target", "expected_answer", "output")
"""Where a row without a schema of its own may hold its answer, by habit."""


@dataclass
class Row:
    """A row in our words; `rest` are the columns that the schema has no use for."""

    prompt: Any
    """Text or messages, as the row has them."""
    answer: Any = None
    grader: Any = None
    """Name that the row gives, a list of names with a list of answers, or None."""
    task: str = ""
    split: Any = None
    solution: Any = None
    """A worked answer, where the row has one beside the answer."""
    rest: dict[str, Any] = field(default_factory=dict)


class Schema(NamedTuple):
    """One framework's rows."""

    has: tuple[str, ...]
    """Columns that such a file has; `a|b` is either."""
    read: Callable[[dict[str, Any]], Row]

    def fits(self, columns: set[str]) -> bool:
        """Whether a file with these columns is one."""
        return all(set(part.split("|")) & columns for part in self.has)


def verl(row: dict[str, Any]) -> Row:
    """`data_source, prompt, ability, reward_model: {style, ground_truth}, extra_info`."""
    model = _mapping(row, "reward_model")
    extra = _mapping(row, "extra_info", needed=False)
    source = str(row.get("data_source") or "")
    return Row(
        _needed(row, "prompt"), model.get("ground_truth"), source, source, extra.get("split")
    )


def skyrl(row: dict[str, Any]) -> Row:
    """`prompt, env_class, reward_spec: {method, ground_truth}`."""
    spec = _mapping(row, "reward_spec", needed=False)
    name = str(row.get("env_class") or row.get("data_source") or "")
    extra = _mapping(row, "extra_info", needed=False)
    return Row(_needed(row, "prompt"), spec.get("ground_truth"), name, name, extra.get("split"))


def open_instruct(row: dict[str, Any]) -> Row:
    """`messages, ground_truth, dataset`; each of the two a text, or lists of the same length. A final answer is left out."""
    names, truth = row.get("dataset"), row.get("ground_truth")
    names = names if isinstance(names, list) else [names]
    truth = truth if isinstance(truth, list) and len(truth) == len(names) else [truth] * len(names)
    if len(names) == 1:
        return Row(_asked(row), truth[0], names[0], str(names[0] or ""))
    return Row(_asked(row), truth, names, str(names[0] or ""))


def nemo_gym(row: dict[str, Any]) -> Row:
    """`responses_create_params: {input}, agent_ref: {name}`, and what the verifier of that agent takes."""
    asked = _mapping(row, "responses_create_params")
    agent = str(_mapping(row, "agent_ref", needed=False).get("name") or row.get("dataset") or "")
    facts = _mapping(row, "verifier_metadata", needed=False)
    answer = next((row[k] for k in ("expected_answer", "answer", "ground_truth") if k in row), None)
    if answer is None and "instruction_id_list" in row:
        answer = {k: row[k] for k in ("instruction_id_list", "kwargs") if k in row}
        agent = agent or "ifeval"
    if answer is None and facts:
        answer = facts.get("unit_tests", facts)
    return Row(_needed(asked, "input"), answer, agent or None, agent)


def nemo_rl(row: dict[str, Any]) -> Row:
    """`messages, task_name` with the answer as the last turn, or `input, output`."""
    name = str(row.get("task_name") or "")
    if "messages" not in row:
        return Row(_needed(row, "input"), row.get("output"), None, name)
    turns = messages(row["messages"])
    if not isinstance(turns, list) or turns[-1]["role"] != "assistant":
        return Row(turns, None, name or None, name)
    return Row(turns[:-1], turns[-1]["content"], name or None, name)


def roll(row: dict[str, Any]) -> Row:
    """`id, messages (a JSON string) or prompt, tag, ground_truth or test_cases (a JSON string)`."""
    answer = row.get("ground_truth")
    answer = answer if _says(answer) else row.get("test_cases")
    asked = row.get("messages")
    tag = str(_needed(row, "tag"))
    return Row(asked if _says(asked) else _needed(row, "prompt"), answer, tag, tag)


def slime(row: dict[str, Any]) -> Row:
    """`prompt, label, metadata: {rm_type, source_name}`."""
    facts = _mapping(row, "metadata", needed=False)
    return Row(
        _needed(row, "prompt"),
        row.get("label"),
        facts.get("rm_type"),
        str(facts.get("source_name") or ""),
    )


def openrlhf(row: dict[str, Any]) -> Row:
    """`context_messages` (or `input`, `prompt`), `answer`, `datasource`."""
    asked = next((row[k] for k in ("context_messages", "input", "prompt") if k in row), None)
    name = str(row.get("datasource") or "")
    return Row(asked, row.get("answer", row.get("label")), name or None, name)


def ms_swift(row: dict[str, Any]) -> Row:
    """`messages` (or `query`), `solution`, and columns for reward functions."""
    asked = _asked(row) if "messages" in row else _needed(row, "query")
    if "system" in row and not isinstance(asked, list):
        asked = [_turn("system", row["system"]), _turn("user", asked)]
    return Row(asked, row.get("solution"), row.get("task"), str(row.get("task") or ""))


def areal(row: dict[str, Any]) -> Row:
    """`messages, answer`."""
    return Row(_asked(row), row.get("answer"))


def verifiers(row: dict[str, Any]) -> Row:
    """Rows of verifiers before 0.4: `question` or `prompt`, `answer`, `info` (a mapping or a JSON string)."""
    facts = _mapping(row, "info", needed=False)
    asked = row["prompt"] if "prompt" in row else _needed(row, "question")
    answer = row["answer"] if _says(row.get("answer")) else facts.get("answer")
    return Row(asked, answer, row.get("task"), str(row.get("task") or ""))


def trainorder(row: dict[str, Any]) -> Row:
    """Ours: `prompt, answer`, and `grader`, `choices`, `think`, `task`, `split` where they help."""
    return Row(
        _needed(row, "prompt"),
        row.get("answer"),
        row.get("grader"),
        str(row.get("task") or ""),
        row.get("split"),
        row.get("think"),
    )


def trl(row: dict[str, Any]) -> Row:
    """`prompt` and columns for reward functions; the answer in `solution`, `answer` or `ground_truth` by habit."""
    answer = next((row[key] for key in ANSWERS if _says(row.get(key))), None)
    name = str(row.get("task") or row.get("environment") or "")
    return Row(_needed(row, "prompt"), answer, name or None, name, row.get("split"))


SCHEMAS: dict[str, Schema] = {
    "verl": Schema(("data_source", "reward_model"), verl),
    "SkyRL": Schema(("env_class|reward_spec", "prompt"), skyrl),
    "open-instruct": Schema(("messages", "ground_truth", "dataset"), open_instruct),
    "NeMo Gym": Schema(("responses_create_params",), nemo_gym),
    "ROLL": Schema(("tag", "id", "messages|prompt"), roll),
    "slime": Schema(("prompt", "label"), slime),
    "NeMo-RL": Schema(("messages|input", "task_name|output"), nemo_rl),
    "OpenRLHF": Schema(("context_messages|datasource", "answer|label"), openrlhf),
    "ms-swift": Schema(("messages|query", "solution"), ms_swift),
    "AReaL": Schema(("messages", "answer"), areal),
    "verifiers": Schema(("question|prompt", "question|info", "answer|info"), verifiers),
    "trainorder": Schema(("prompt", "answer"), trainorder),
    "TRL": Schema(("prompt",), trl),
}
"""Name -> schema, the more particular ones first."""

GUESSED = frozenset({"TRL", "OpenRLHF", "ms-swift", "NeMo-RL", "verifiers"})
"""Schemas whose `task` names a grader by habit only: one that is no grader says nothing."""


def own(columns: Mapping[str, str]) -> Callable[[dict[str, Any]], Row]:
    """A schema from `columns: {prompt: question, answer: gold}`; a dotted name goes into a mapping (`extra_info.level`)."""

    def read(row: dict[str, Any]) -> Row:
        found = {ours: at(row, theirs) for ours, theirs in columns.items()}
        prompt = found.get("prompt")
        if prompt is None:
            raise BadRow(
                f"no column {columns.get('prompt', 'prompt')!r}; it has {', '.join(sorted(row))}"
            )
        if found.get("system") is not None and not isinstance(prompt, list):
            prompt = [_turn("system", found["system"]), _turn("user", prompt)]
        return Row(
            prompt,
            found.get("answer"),
            found.get("grader"),
            str(found.get("task") or ""),
            found.get("split"),
            found.get("think"),
            {"choices": found["choices"]} if found.get("choices") is not None else {},
        )

    return read


def messages(value: Any) -> Any:
    """Messages, also where a text holds them as JSON or as a Python literal; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        found = literal(value)
        if (
            isinstance(found, list)
            and found
            and all(isinstance(m, dict) and "role" in m for m in found)
        ):
            return found
    return value


def at(row: Mapping[str, Any], path: str) -> Any:
    """What a row has in a column, or at a dotted name in a mapping (`extra_info.level`)."""
    value: Any = row
    if path in row:
        return row[path]
    for part in path.split("."):
        value = literal(value) if isinstance(value, str) else value
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _asked(row: dict[str, Any]) -> Any:
    """The messages without a final answer."""
    turns = messages(_needed(row, "messages"))
    if isinstance(turns, list) and len(turns) > 1 and turns[-1].get("role") == "assistant":
        return turns[:-1]
    return turns


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _says(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and not value.strip())


def _needed(row: Mapping[str, Any], key: str) -> Any:
    if row.get(key) is None:
        raise BadRow(f"no {key!r}; it has {', '.join(map(short, sorted(row))) or 'nothing'}")
    return row[key]


def _mapping(row: Mapping[str, Any], key: str, *, needed: bool = True) -> dict[str, Any]:
    value = row.get(key)
    value = literal(value) if isinstance(value, str) else value
    if value is None and not needed:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    if needed:
        raise BadRow(f"{key}: a mapping is needed, got {short(value)}")
    return {}
