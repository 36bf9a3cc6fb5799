"""What a report says, before it becomes a page or Markdown: every part made from the result files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codehead.lab.reports.analyses import analyses
from codehead.lab.reports.answers import Sample, samples
from codehead.lab.reports.comparison import compare
from codehead.lab.reports.decoder_table import decoder_tables
from codehead.lab.reports.drawing import Picture
from codehead.lab.reports.evidence import Damaged, read_evidence
from codehead.lab.reports.findings import findings
from codehead.lab.reports.frontier import frontier
from codehead.lab.reports.origin import encoders, files, origin
from codehead.lab.reports.paper import SOURCE, SOURCE_ADDRESS, TABLES
from codehead.lab.reports.pictures import all_curves, tradeoff
from codehead.lab.reports.summary import Row, by_setting, setting_title, summarise
from codehead.lab.reports.tables import Table, table_of
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
    "+ 88 tokens": "dense rows for the most frequent tokens, beside the code, and a bias for every token",
    "+ 128 bits for 2,048": "extra bits for so many tokens, the most frequent ones",
    "int8, int4": "the weights of a head end as integers with a scale per row; of int4, biases as int8",
    "trained on": "the head learnt from the Softmax head first, and then with the backbone, as Softmax did",
    "backbone too": "the backbone learnt along with the head, from the finished model and nothing else",
    "int4, error-corrected": "the Softmax head of the same run, quantised; errors corrected column by column (GPTQ)",
    "±": "half width of the 95% t-interval over seeds",
}


@dataclass(frozen=True)
class Report:
    """The parts in the order of reading."""

    title: str
    subtitle: str
    description: str
    findings: tuple[str, ...]
    terms: Mapping[str, str]
    damaged: tuple[Damaged, ...]
    source: str  # of the comparison; empty without one
    source_address: str
    comparisons: tuple[Table, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    samples: tuple[Sample, ...]
    origin: tuple[tuple[str, list[str]], ...]
    files: tuple[tuple[str, str], ...]  # name, beginning of the checksum


def compose(folder: str | Path) -> Report:
    """Everything that the result files of a folder have to say; raises DataError as `read_evidence` does."""
    evidence = read_evidence(folder)
    results, rows = list(evidence.results.values()), summarise(evidence)
    config = results[0].config
    number = config.get("paper")
    return Report(
        title=config["protocol"],
        subtitle=f"Protocol {number} of the paper: {TABLES[number].title}" if number else "Heads compared",
        description=(config.get("description") or "").strip(),
        findings=tuple(findings(rows)),
        terms=TERMS,
        damaged=evidence.damaged,
        source=SOURCE if number else "",
        source_address=SOURCE_ADDRESS,
        comparisons=tuple(compare(number, rows, *encoders(results))) if number else (),
        tables=tuple(_tables(rows)),
        pictures=tuple(_pictures(rows, results)),
        samples=tuple(samples(results, rows)),
        origin=tuple(origin(evidence)),
        files=tuple(files(evidence)),
    )


def _tables(rows: Sequence[Row]) -> list[Table]:
    return [
        *(table_of(group, setting_title(setting) or "All heads") for setting, group in by_setting(rows).items()),
        *decoder_tables(rows),
    ]


def _pictures(rows: Sequence[Row], results: Sequence[Result]) -> list[Picture]:
    """Top-1 against parameters and the curves always, the rest where there is something to show."""
    scored = any("f1" in row.values for row in rows)
    sized = any(row.bytes_resident for row in rows)
    wanted = [(metric, size) for metric in ("top1", "f1") for size in ("parameters", "bytes")]
    tradeoffs = [
        tradeoff(rows, metric, size)
        for metric, size in wanted
        if (metric == "top1" or scored) and (size == "parameters" or sized)
    ]
    return [*frontier(rows), *tradeoffs, *all_curves(results), *analyses(rows)]
