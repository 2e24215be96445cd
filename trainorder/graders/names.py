"""What other frameworks call a grader: verl's `data_source`, SkyRL's `env_class`, open-instruct's `dataset`, slime's `rm_type`."""

from __future__ import annotations

import re

NAMES: dict[str, str] = {
    "number": "openai/gsm8k gsm8k gsm8k_cot svamp asdiv multiarith aqua_number",
    "math": "math strict_math math_rule lighteval/math digitallearninggmbh/math-lighteval huggingfaceh4/math-500 math-500 "
    "math500 hendrycks_math math_dapo dapo deepscaler boxed_math boxed_dapo boxed_deepscaler math_with_judge "
    "math_with_code amc minerva olympiadbench big_math orz latex",
    "text": "flan string_matcher string em exact_match triviaqa nq hotpotqa popqa squad puzzle_matcher",
    "f1": "string_f1 re_search_f1 token_f1",
    "choice": "gpqa boxed_gpqa mmlu mmlu_pro arc arc_easy arc_challenge mcqa multiple_choice commonsense_qa",
    "ifeval": "ifeval_old ifbench boxed_ifbench instruction_following ifeval_g",
    "asserts": "code mbpp mbppplus kodcode pytest",
    "stdio": "code_stdio codecontests code_contests apps codeforces taco livecodebench lcb code_gen primeintellect",
    "entry_point": "humaneval human_eval openai_humaneval humanevalplus openai/openai_humaneval",
    "json_schema": "structured_outputs jsonschema",
    "regex": "regexp pattern",
}
ALIASES: dict[str, str] = {alias: name for name, text in NAMES.items() for alias in text.split()}
"""Name elsewhere, in small letters -> our name."""
FAMILIES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"aime[_\d-]*|numina\w*|math_?500.*|.*/math-?\d*"), "math"),
    (re.compile(r"searchr1_\w+"), "text"),
    (re.compile(r"gsm8k[_-]\w+"), "number"),
)
"""Names that come with years or sources."""
_AGENT = re.compile(r"(_simple)?_agent$")


def resolve(name: str, known: dict[str, str]) -> str | None:
    """Our grader for a name that a row gives; None where there is none.

    >>> resolve("openai/gsm8k", {"number": ""}), resolve("math_simple_agent", {}), resolve("text2sql", {})
    ('number', 'math', None)
    """
    plain = _AGENT.sub("", name.strip().lower())
    if plain in known:
        return plain
    if plain in ALIASES:
        return ALIASES[plain]
    return next((ours for pattern, ours in FAMILIES if pattern.fullmatch(plain)), None)
