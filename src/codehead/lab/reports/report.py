"""A folder of results → a self-contained page, and Markdown with pictures."""

from __future__ import annotations

import re
import unicodedata
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codehead.lab.reports.drawing import Picture, png
from codehead.lab.reports.evidence import Damaged, encoders, files, origin, read_evidence
from codehead.lab.reports.paper import SOURCE, SOURCE_ADDRESS, TABLES, compare
from codehead.lab.reports.pictures import pictures
from codehead.lab.reports.summary import Estimate, Row, by_setting, grouped, label_of, setting_title, summarise
from codehead.lab.reports.tables import Table, decoder_tables, markdown, percent, table_of
from codehead.lab.result import Result

TERMS = {
    "(n, d)": "codeword length n in bits and private hidden width d of every bit; d = 0 is a single linear map",
    "ECOC head": "one linear map from the hidden state to n bit logits",
    "MTL-ECOC head": "a private hidden layer of width d before each of the n bits",
    "Minimal": "the token's index in binary, ⌈log₂ V⌉ bits",
    "MinRandom": "the minimal bits, then random ones",
    "codeword loss": "cross entropy over the codewords of all tokens instead of one binary problem per bit",
    "Loss/node": "binary cross entropy of training, mean over bits and over the last tenth of the logged steps",
    "Top-1, top-5": "share of the test tokens that are the first, or among the first five, of the head's ranking",
    "Perplexity, bits/byte": "of the posterior over tokens on the test split; bits per byte compare across tokenizers",
    "P, R, F1": "BERTScore of generated answers against reference answers, mean over prompts",
    "of Softmax, × Softmax": "divided by the Softmax head of the same seed and setting, then averaged over seeds",
    "Resident": "bytes in memory: weights, packed codebook, and the float32 matrix that decoding unpacks from it",
    "Bytes": "stored: weights (bf16, or as the name says), biases, codebook, scales; share of the Softmax head's",
    "code 5%": "a head with a code that takes 5% of the Softmax head's bytes; its full description is below the table",
    "+ 88 dense rows": "a full row of weights for each of the 88 most frequent tokens, and a bias for every token",
    "+ 128 extra bits for 2,048 tokens": "longer codewords for the 2,048 most frequent tokens",
    "int8, int4": "weights are integers with a scale per row; with int4, biases are int8",
    "trained on": "the head was first distilled from the Softmax head, then trained with the backbone, as Softmax was",
    "backbone too": "the backbone was distilled together with the head, from the finished model alone",
    "int4, error-corrected": "the Softmax head of the same run, quantised; errors corrected column by column (GPTQ)",
    "±": "half-width of the 95% t-interval over seeds",
}


@dataclass(frozen=True)
class Report:
    """The parts in reading order."""

    title: str
    subtitle: str
    description: str
    findings: tuple[str, ...]
    damaged: tuple[Damaged, ...]
    comparisons: tuple[Table, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    samples: tuple[Sample, ...]
    origin: tuple[tuple[str, list[str]], ...]
    files: tuple[tuple[str, str], ...]  # name, beginning of the checksum


def compose(folder: str | Path) -> Report:
    """The whole content of a folder's result files; raises DataError as `read_evidence` does."""
    evidence = read_evidence(folder)
    results, rows = list(evidence.results.values()), summarise(evidence)
    newest = max(results, key=lambda result: str(result.provenance.get("started_at", "")))  # seeds may be added later
    number = results[0].config.get("paper")
    return Report(
        title=results[0].config["protocol"],
        subtitle=f"Protocol {number} of the paper: {TABLES[number].title}" if number else "Heads compared",
        description=(newest.config.get("description") or "").strip(),
        findings=tuple(findings(rows)),
        damaged=evidence.damaged,
        comparisons=tuple(compare(number, rows, *encoders(results))) if number else (),
        tables=(
            *(table_of(group, setting_title(setting) or "All heads") for setting, group in by_setting(rows).items()),
            *decoder_tables(rows),
        ),
        pictures=tuple(pictures(rows, results)),
        samples=tuple(samples(results, rows)),
        origin=tuple(origin(evidence)),
        files=tuple(files(evidence)),
    )


@dataclass(frozen=True)
class Rendered:
    """The files written, and the result files omitted."""

    page: Path  # report.html, which needs no other file
    markdown: Path  # report.md, with two pictures beside it
    damaged: tuple[Damaged, ...]


def render(results_folder: str | Path, out: str | Path | None = None) -> Rendered:
    """Write `report.html`, `report.md` and its pictures into `out` (default: `report` beside the results).

    Damaged files are named in the report and excluded from every number. Raises DataError if no file is intact or if
    they come from several protocols.
    """
    folder = Path(out) if out is not None else Path(results_folder).parent / "report"
    report = compose(results_folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Rendered(write_page(report, folder), write_markdown(report, folder), report.damaged)


# The numbers of a protocol in sentences, each a fact from the tables.


BUDGETS = (0.02, 0.15, 0.55)  # largest share of the Softmax head's bytes, or parameters where bytes are not known
METRICS = {"share": "top-1 accuracy", "f1_share": "BERTScore F1"}


def findings(rows: Sequence[Row]) -> list[str]:
    """One paragraph per setting, one on rows that cannot be compared, and one on the intervals."""
    paragraphs = [_of_setting(setting, group) for setting, group in by_setting(rows).items()]
    whole = [paragraph for paragraph in (*paragraphs, _without_reference(rows), _certainty(rows)) if paragraph]
    return [paragraph.replace(" ± ", "\u00a0±\u00a0") for paragraph in whole]  # no line ends inside a number


def _of_setting(setting: str, rows: Sequence[Row]) -> str:
    """Results of the best heads within growing budgets; a budget that changes nothing is omitted."""
    sentences = []
    unit = "bytes" if all(row.byte_share is not None for row in rows) else "parameters"
    told: dict[str, Row] = {}
    for budget in BUDGETS:
        within = [row for row in rows if not row.is_reference and (_share(row, unit) or 1.0) <= budget]
        best = {metric: _best(metric, within) for metric in METRICS if _best(metric, within)}
        new = {metric: row for metric, row in best.items() if row and told.get(metric) is not row}
        told |= new
        for cell in dict.fromkeys(row.cell for row in new.values()):
            metrics = [metric for metric, row in new.items() if row.cell == cell]
            sentences.append(_sentence(budget, unit, metrics, new[metrics[0]], within))
    beginning = f"{setting_title(setting)}: " if setting else ""
    return beginning + " ".join(sentences) if sentences else ""


def _share(row: Row, unit: str) -> float | None:
    return row.byte_share if unit == "bytes" else row.parameter_share


def _best(metric: str, rows: Sequence[Row]) -> Row | None:
    return max((row for row in rows if metric in row.values), key=lambda row: row.values[metric].mean, default=None)


def _sentence(budget: float, unit: str, metrics: Sequence[str], best: Row, within: Sequence[Row]) -> str:
    """`Of the 3 heads with at most 15% of Softmax’s bytes, … keeps most: 82.1 ± 8.7% of its BERTScore F1.`"""
    reached = " and ".join(
        f"{percent(best.values[metric])} of {'its' if number else 'Softmax’s'} {METRICS[metric]}"
        for number, metric in enumerate(metrics)
    )
    size = percent(_share(best, unit))
    if len(within) == 1:
        return f"With {size} of Softmax’s {unit}, {best.name} reaches {reached}."
    return (
        f"Of the {len(within)} heads with at most {budget:.0%} of Softmax’s {unit}, {best.name} ({size}) keeps "
        f"most: {reached}{_doubt(metrics, best, within)}."
    )


def _doubt(metrics: Sequence[str], best: Row, within: Sequence[Row]) -> str:
    """`; the interval of … overlaps in BERTScore F1`: the metric is named where another tells the heads apart."""
    rivals = {
        (metric, row.name)
        for metric in metrics
        for row in within
        if row is not best and metric in row.values and _overlap(row.values[metric], best.values[metric])
    }
    names, places = ({pair[part] for pair in rivals} for part in (1, 0))
    some = min(names) if len(names) == 1 else f"{len(names)} others"
    where = "" if len(places) == len(metrics) else f" in {METRICS[min(places, default=metrics[0])]}"
    return f"; the interval of {some} overlaps{where}" if rivals else ""


def _overlap(one: Estimate, other: Estimate) -> bool:
    if one.half_width is None or other.half_width is None:
        return False
    return abs(one.mean - other.mean) <= one.half_width + other.half_width


def _without_reference(rows: Sequence[Row]) -> str:
    """Which rows have no shares of the reference, and which of its seeds are missing."""
    told = [
        f"{setting_title(row.setting)}: {row.name} (seed {seeds})" if row.setting else f"{row.name} (seed {seeds})"
        for row in rows
        if (seeds := ", ".join(map(str, row.unmatched)))
    ]
    if not told:
        return ""
    return f"Not compared with the reference, which has no result of the same seed: {'; '.join(told)}."


def _certainty(rows: Sequence[Row]) -> str:
    seeds = {row.seeds for row in rows}
    if seeds == {1}:
        return "There is one seed, so no interval: small differences between heads may be chance."
    single = "" if 1 not in seeds else " Rows of one seed have none: small differences there may be chance."
    return f"± is the half-width of the 95% t-interval over seeds.{single}"


# Generated answers side by side. A model's text is made safe to display; the template escapes it.


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
    """The prompts that all heads of one setting were given, with their answers at the smallest seed."""
    order = {(row.setting, row.cell): number for number, row in enumerate(rows)}
    answered = [result for result in results if (result.metrics.get("answers") or {}).get("samples")]
    answered.sort(key=lambda result: order[result.config["setting"], result.config["cell"]])
    found = []
    for setting, group in grouped(answered, lambda result: str(result.config["setting"])).items():
        seed = min(result.config["seed"] for result in group)
        found += _of_group(setting, [result for result in group if result.config["seed"] == seed])
    return found


def instruction_of(prompt: str) -> tuple[str, str]:
    """Instruction and input of an Alpaca prompt; of another prompt its end, where the question is."""
    match = INSTRUCTION.search(prompt)
    if match:
        return harmless(match["instruction"], QUESTION_LENGTH), harmless(match["input"] or "", QUESTION_LENGTH)
    prompt = prompt.strip()
    return harmless(prompt if len(prompt) <= QUESTION_LENGTH else f"… {prompt[-QUESTION_LENGTH:]}", ANSWER_LENGTH), ""


def harmless(text: str, limit: int = ANSWER_LENGTH) -> str:
    """The text without invisible characters, which could turn the reading direction or break a file, and shortened."""
    lines = text.strip().replace("\r\n", "\n")
    text = "".join("�" if _is_invisible(letter) else letter for letter in lines)
    return text if len(text) <= limit else text[:limit].rstrip() + " …"


def _of_group(setting: str, group: Sequence[Result]) -> list[Sample]:
    answers = [
        {sample["prompt"]: sample["answer"] for sample in result.metrics["answers"]["samples"]} for result in group
    ]
    found = []
    for sample in group[0].metrics["answers"]["samples"]:
        given = [
            (label_of(result), harmless(by_prompt[sample["prompt"]]) or NOTHING)
            for result, by_prompt in zip(group, answers, strict=True)
            if sample["prompt"] in by_prompt
        ]
        prompt, context = instruction_of(sample["prompt"])
        found.append(Sample(setting, prompt, context, harmless(sample["reference"]) or NOTHING, tuple(given)))
    return found


def _is_invisible(letter: str) -> bool:
    """Control, format (bidirectional marks) and surrogate characters, except line ends and emoji joiners."""
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn") and letter not in "\n\t\u200d"


# A report → one HTML file (style and pictures inside, no script, nothing from the network), and Markdown with PNG
# pictures beside it, for places that show no HTML.


PAGE, MARKDOWN = "report.html", "report.md"
ROOM = 2  # pictures beside the Markdown; the page has all of them
FIRST = ("frontier", "width", "length", "tradeoff-f1", "tradeoff", "curves")  # names, or beginnings before a setting's
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


def write_page(report: Report, folder: Path) -> Path:
    """Write `report.html`; the same results give the same bytes."""
    return _write(folder / PAGE, page(report))


def page(report: Report) -> str:
    """The page as HTML."""
    figures = [(picture, b64encode(png(picture)).decode()) for picture in report.pictures]
    return _filled("page.html", report=report, figures=figures)


def write_markdown(report: Report, folder: Path) -> Path:
    """Write `report.md` and its pictures, at most two."""
    shown = chosen(report.pictures)
    for picture in shown:
        (folder / f"{picture.name}.png").write_bytes(png(picture))
    return _write(folder / MARKDOWN, _filled("report.md", report=report, pictures=shown).rstrip() + "\n")


def chosen(pictures: Sequence[Picture]) -> list[Picture]:
    """The most informative ones, the first of FIRST."""

    def place(picture: Picture) -> int:
        names = (number for number, name in enumerate(FIRST) if f"{picture.name}-".startswith(f"{name}-"))
        return next(names, len(FIRST))

    return sorted(pictures, key=place)[:ROOM]


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _filled(template: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("codehead.lab.reports"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "markdown": markdown}
    fixed = {"terms": TERMS, "source": SOURCE, "source_address": SOURCE_ADDRESS}
    return environment.get_template(template).render(**fixed, **values)


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
