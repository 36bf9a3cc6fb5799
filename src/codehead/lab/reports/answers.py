"""Generated answers side by side. Whatever a model wrote is made harmless to look at; escaping is the template's."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from codehead.lab.reports.naming import label_of
from codehead.lab.reports.summary import Row, setting_size
from codehead.lab.result import Result

QUESTION_LENGTH = 400  # characters
ANSWER_LENGTH = 700
INSTRUCTION = re.compile(
    r"### Instruction:\n(?P<instruction>.*?)\n+(?:### Input:\n(?P<input>.*?)\n+)?### Response:\s*\Z", re.DOTALL
)
NOTHING = "(nothing)"


@dataclass(frozen=True)
class Sample:
    """One prompt with the answer of every head."""

    setting: str
    prompt: str
    context: str  # the input of an instruction, or empty
    reference: str
    answers: tuple[tuple[str, str], ...]  # label, text


def samples(results: Sequence[Result], rows: Sequence[Row]) -> list[Sample]:
    """The prompts that the heads of one setting were all given, with their answers at the smallest seed."""
    order = {(row.setting, row.cell): number for number, row in enumerate(rows)}
    found = []
    for setting in sorted({result.config["setting"] for result in results}, key=setting_size):
        with_answers = [
            result
            for result in results
            if result.config["setting"] == setting and (result.metrics.get("answers") or {}).get("samples")
        ]
        seed = min((result.config["seed"] for result in with_answers), default=None)
        group = sorted(
            (result for result in with_answers if result.config["seed"] == seed),
            key=lambda result: order[setting, result.config["cell"]],
        )
        found += _of_group(setting, group)
    return found


def instruction_of(prompt: str) -> tuple[str, str]:
    """Instruction and input of an Alpaca prompt; of another prompt its end, where the question stands."""
    match = INSTRUCTION.search(prompt)
    if match:
        return shown(match["instruction"], QUESTION_LENGTH), shown(match["input"] or "", QUESTION_LENGTH)
    prompt = prompt.strip()
    return shown(prompt if len(prompt) <= QUESTION_LENGTH else f"… {prompt[-QUESTION_LENGTH:]}", ANSWER_LENGTH), ""


def shown(text: str, limit: int = ANSWER_LENGTH) -> str:
    """The text without invisible characters, which could turn the reading direction or break a file, and shortened."""
    lines = text.strip().replace("\r\n", "\n")
    text = "".join("�" if _is_invisible(letter) else letter for letter in lines)
    return text if len(text) <= limit else text[:limit].rstrip() + " …"


def _of_group(setting: str, group: Sequence[Result]) -> list[Sample]:
    if not group:
        return []
    answers = [
        {sample["prompt"]: sample["answer"] for sample in result.metrics["answers"]["samples"]} for result in group
    ]
    found = []
    for sample in group[0].metrics["answers"]["samples"]:
        given = [
            (label_of(result), shown(by_prompt[sample["prompt"]]) or NOTHING)
            for result, by_prompt in zip(group, answers, strict=True)
            if sample["prompt"] in by_prompt
        ]
        prompt, context = instruction_of(sample["prompt"])
        found.append(Sample(setting, prompt, context, shown(sample["reference"]) or NOTHING, tuple(given)))
    return found


def _is_invisible(letter: str) -> bool:
    """Control, format (bidirectional marks) and surrogate characters, but not what ends lines and joins emoji."""
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn") and letter not in "\n\t\u200d"
