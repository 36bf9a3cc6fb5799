"""Commands that advise: which decision layer fits, how large the usual ones are, how good a code is; and `doctor`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.table import Table

from codehead.boundaries import command
from codehead.cli import options as opt
from codehead.codes import Codebook, Quality, build, quality
from codehead.config import DecisionConfig, ModelShape
from codehead.errors import ConfigurationError
from codehead.models.named import model_shape
from codehead.recommendation import DEFAULT_BUDGET, Recommendation, SetUp, Value, shape_of
from codehead.recommendation import recommend as decide

COSTS = {
    "bytes_stored": "bytes stored",
    "bytes_resident": "bytes resident",
    "bytes_read_per_token": "bytes read per token",
    "head_parameters": "parameters",
    "multiply_adds": "multiply-adds per token",
}
SOFTMAX = DecisionConfig(code="one_vs_all")
BUILDS = {
    "convert": "Build it; the backbone stays as it is:",
    "finetune": "Build it, then train head and backbone on your text:",
}


def recommend(
    model: Annotated[str, typer.Argument(help="Hub id, folder, GGUF file or config.json.")],
    budget: Annotated[str | None, typer.Option("--budget", help=opt.BUDGET)] = None,
    bits: opt.Bits = None,
    speed: opt.Speed = None,
    faster: Annotated[
        bool, typer.Option("--faster", help="Measure the speed-up by screening on this machine instead.")
    ] = False,
    details: Annotated[bool, typer.Option("--details", help="Show costs, and the results of each experiment.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which decision layer fits a budget (5%), a codeword length or a speed, and which command builds it.

    Give at most one of --budget, --bits, --speed and --faster. No weights are read.
    """
    given = (("--budget", budget), ("--bits", bits), ("--speed", speed))
    asked = [(name, str(value)) for name, value in given if value is not None]
    if faster:
        _tell_gain(model, asked, as_json)
        return
    found = decide(model, budget=budget, bits=bits, speed=speed)
    commands = _commands(model, asked[0] if asked else ("--budget", DEFAULT_BUDGET))
    if as_json:
        typer.echo(json.dumps(_as_dict(found, commands), indent=2))
    else:
        _show(found, commands, details)


def _tell_gain(model: str, asked: list[tuple[str, str]], as_json: bool) -> None:
    """What `codehead screen` gains here, timed on a head of the model's shape."""
    from codehead.screening.build import gain

    if asked:
        option = "=".join(asked[0])
        raise ConfigurationError(f"--faster keeps the old head, but {option} asks for a new one; omit one of the two")
    shape = shape_of(model)
    found = gain(shape.hidden_size, shape.num_classes)
    line = command("codehead", "screen", _loadable(model), "--out", "FOLDER")
    if as_json:
        typer.echo(json.dumps({"verdict": found.verdict, **found.as_dict(), "command": line}, indent=2))
    else:
        typer.echo(f"{found.verdict}\n" + (f"\n  {line}" if found.pays else ""))


def _loadable(model: str) -> str:
    """A model by the name that commands load it by: the folder of a `config.json`."""
    path = Path(model)
    return str(path.parent) if path.name == "config.json" else model


def _commands(model: str, asked: tuple[str, str]) -> dict[str, str]:
    """The commands that build the decision layer: on a frozen backbone and, for a budget, training the backbone too."""
    model, text, end = _loadable(model), "YOUR_TEXT", ("--out", "FOLDER")
    commands = {"convert": command("codehead", "convert", model, "--data", text, *asked, *end)}
    if asked[0] == "--budget":
        trained = ("codehead", "finetune", "--model", model, "--train", text, *asked, "--adapt", "full", *end)
        commands["finetune"] = command(*trained)
    return commands


def _as_dict(found: Recommendation, commands: dict[str, str]) -> dict[str, Any]:
    expected = []
    for set_up in found.evidence:
        values = {name: asdict(value) for name, value in (set_up.at(found.byte_share) or {}).items()}
        described = {key: value for key, value in asdict(set_up).items() if key != "points"}
        expected.append({**described, "measured": list(set_up.measured), "expected": values or None})
    return {
        "verdict": found.verdict,
        "decision": found.config.to_dict(),
        "bytes_stored": found.config.size(found.shape).bytes_stored,
        "byte_share": found.byte_share,
        "costs": _costs(found.config, found.shape),
        "softmax": _costs(SOFTMAX, found.shape),
        "expected": expected,
        "commands": commands,
    }


def _costs(config: DecisionConfig, shape: ModelShape) -> dict[str, int]:
    values = {**config.size(shape).as_dict(), "multiply_adds": config.multiply_adds(shape)}
    return {name: values[name] for name in COSTS}


def _show(found: Recommendation, commands: dict[str, str], details: bool) -> None:
    typer.echo(f"{found.config.told(found.shape)}\n{found.verdict}")
    if details:
        opt.show(_cost_table(found), _evidence_table(found))
    for name, line in commands.items():
        typer.echo(f"\n{BUILDS[name]}\n  {line}")


def _cost_table(found: Recommendation) -> Table:
    table, whole = opt.number_table("this head", "Softmax", "ratio"), _costs(SOFTMAX, found.shape)
    for name, value in _costs(found.config, found.shape).items():
        table.add_row(COSTS[name], f"{value:,}", f"{whole[name]:,}", f"{value / whole[name]:.1%}")
    return table


def _evidence_table(found: Recommendation) -> Table:
    """Our experiments' results at its share of the bytes, those with a hidden size like the model's first."""
    title = f"What heads of {found.byte_share:.2%} of the bytes kept of Softmax in our experiments. Yours may differ."
    table = Table(box=SIMPLE_HEAD, show_edge=False, title=title, title_justify="left", title_style="")
    for name in ("top-1 accuracy", "perplexity"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("measured on a model")
    for set_up in found.evidence:
        seeds = f"{set_up.seeds} seed{'' if set_up.seeds == 1 else 's'}"
        source = ", ".join(part for part in (set_up.results, set_up.setting, seeds) if part)
        name = f"{set_up.model}: " if set_up.model else ""
        model = f"{name}H={set_up.hidden_size:,}, V={set_up.num_classes:,}, after {set_up.learnt} ({source})"
        table.add_row(*_values(set_up, found.byte_share), model)
    return table


def _values(set_up: SetUp, share: float) -> tuple[str, str]:
    """Top-1 accuracy and perplexity at a share of bytes, or where they were measured instead."""
    values = set_up.at(share)
    if values is None:
        low, high = set_up.measured
        return "–", f"{low:.1%} to {high:.1%} only"
    top1, perplexity = values["top1_share"], values["perplexity_ratio"]
    return f"{_with_width(top1, 100, '.1f')}%", f"× {_with_width(perplexity, 1, '.2f')}"


def _with_width(value: Value, factor: float, form: str) -> str:
    """`95.8 ± 0.5`."""
    parts = (value.mean,) if value.half_width is None else (value.mean, value.half_width)
    return " ± ".join(format(factor * part, form) for part in parts)


SIZES = {
    "parameters": ("head_parameters", ","),
    "share of\nSoftmax": ("share_of_softmax", ".2%"),
    "bytes\nresident": ("bytes_resident", ","),
    "bytes read\nper token": ("bytes_read_per_token", ","),
}
NOTES = (
    "Weights in bf16. Resident: weights, packed codebook, and the codeword matrix that decoding keeps "
    "unpacked in float32. Read per token: weights and that matrix."
)
TIED = (
    "This model ties its head to the input embedding, which stays ({embedding} bytes): a code reduces what is read "
    "per token, not memory."
)
UNTIED = "The input embedding is not counted. If a model ties its head to it, the embedding stays."


def params(
    model: Annotated[
        str | None, typer.Argument(help="Hub id, folder, GGUF file or config.json.", show_default=False)
    ] = None,
    hidden_size: Annotated[
        int | None, typer.Option("--hidden-size", min=1, help="Hidden size H, instead of a model.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", min=2, help="Vocabulary size V, instead of a model.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the last-layer parameters and bytes of the usual configurations."""
    from codehead.evaluation.size import compare_configurations

    if model is not None and hidden_size is None and vocab_size is None:
        shape = model_shape(model)
    elif model is None and hidden_size is not None and vocab_size is not None:
        shape = ModelShape(hidden_size, vocab_size)
    else:
        raise ConfigurationError("give either a model, or both --hidden-size and --vocab-size")
    rows = compare_configurations(shape)
    if as_json:
        values = {"hidden_size": shape.hidden_size, "vocab_size": shape.num_classes, "tied": shape.tied}
        typer.echo(json.dumps({**values, "configurations": rows}, indent=2))
    else:
        _show_sizes(shape, rows)


def _show_sizes(shape: ModelShape, rows: list[dict[str, Any]]) -> None:
    title = f"Decision layers for H = {shape.hidden_size:,}, V = {shape.num_classes:,}"
    table = opt.number_table(*SIZES, first="configuration (n, d)", title=title, padding=(0, 1, 0, 0))  # fits 80 columns
    for row in rows:
        table.add_row(row["configuration"], *(format(row[key], form) for key, form in SIZES.values()))
    opt.show(table, NOTES, TIED.format(embedding=f"{shape.softmax_bytes:,}") if shape.tied else UNTIED)


MAX_BARS, BAR_WIDTH = 16, 40
"""The most bars in the histogram of row distances, and the most characters in a bar."""


def code(
    design: Annotated[str, typer.Argument(help="Name of the coding design, e.g. minrandom.", show_default=False)],
    classes: Annotated[
        int, typer.Option("--classes", max=2**31 - 1, help="Number of classes (tokens), V.", show_default=False)
    ],
    bits: Annotated[
        int | None, typer.Option("--bits", help="Codeword length n.", show_default="the design's own")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random columns.")] = 0,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="KEY=VALUE", help="An option of the design; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", callback=opt.expanded, help="Safetensors file to write.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the --out file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Build a codebook and show how good it is: row and column separation, balance, size."""
    opt.check_file(out, overwrite)
    config = DecisionConfig(code=design, bits=bits, seed=seed, code_params=opt.key_values("--param", param or []))
    codebook = build(design, classes, bits=config.bits, seed=config.seed, **config.code_params)
    measured = quality(codebook)
    if out is not None:
        codebook.save(out)
    if as_json:
        names = ("design", "num_classes", "length", "seed", "params", "checksum")
        found = {name: getattr(codebook, name) for name in names}
        found |= {"ternary": codebook.is_ternary, "bytes": codebook.nbytes, "quality": measured.as_dict()}
        typer.echo(json.dumps(found, indent=2))
    else:
        opt.show(_measures(codebook, measured), _histogram(measured))
        if out is not None:
            typer.echo(f"Saved to {out}")


def _measures(codebook: Codebook, measured: Quality) -> Table:
    """The table of measures; those from a sample say so."""
    rows, columns = _bound(measured.exact, measured.pairs), _bound(measured.columns_exact, measured.column_pairs)
    column = "–" if measured.column_distance is None else f"{columns[0]}{measured.column_distance:g}"
    shares = f"from {measured.balance_min:.3g} to {measured.balance_max:.3g}"
    symbols = "−1, 0, +1" if codebook.is_ternary else "−1, +1"
    origin = "of SHA-256" if codebook.seed is None else f"of SHA-256, seed {codebook.seed}"
    title = f"{codebook.design}: {codebook.num_classes:,} classes × {codebook.length:,} bits"
    table = opt.number_table("value", first="measure", title=title)
    table.add_column("", style="dim")
    table.add_row("row distance, least", f"{rows[0]}{measured.row_distance_min:g}", rows[1])
    table.add_row("row distance, mean", f"{measured.row_distance_mean:.2f}", rows[1])
    table.add_row("correctable bits", f"{rows[0]}{measured.correctable_bits}", "⌊(least row distance − 1) / 2⌋")
    table.add_row("column distance, least", column, columns[1])
    table.add_row("share of +1, mean", f"{measured.balance_mean:.3g}", shares)
    table.add_row("symbols", symbols, f"{codebook.nbytes:,} bytes" if codebook.nbytes else "implicit: nothing stored")
    table.add_row("checksum", codebook.checksum[:12], origin)
    return table


def _bound(exact: bool, pairs: int) -> tuple[str, str]:
    """The sign before a minimum distance, and the pairs that it was found among."""
    return ("", f"all {pairs:,} pairs") if exact else ("≤ ", f"a sample of {pairs:,} pairs")


def _histogram(measured: Quality) -> Table:
    """Bars of the row distances, in bins of equal width."""
    bins = _bins(measured.row_histogram)
    most = max(bins.values())
    table = Table(title="row distances", box=None, padding=(0, 1), show_header=False)
    table.add_column(justify="right", style="bold")
    table.add_column(width=BAR_WIDTH)
    table.add_column(justify="right", style="dim")
    for label, pairs in bins.items():
        table.add_row(label, Bar(most, 0, pairs, color="cyan"), f"{pairs:,}")
    return table


def _bins(histogram: dict[float, int]) -> dict[str, int]:
    """The pairs by label: single distances if there are few, else ranges, from a distance on."""
    if len(histogram) <= MAX_BARS:
        return {f"{distance:g}": pairs for distance, pairs in histogram.items()}
    least = min(histogram)
    width = -(-(max(histogram) - least + 1) // MAX_BARS)
    bins: Counter[str] = Counter()
    for distance, pairs in histogram.items():
        bins[f"{least + (distance - least) // width * width:g} …"] += pairs
    return bins


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="Hub id or local folder of a coded or screened checkpoint.")
    ] = None,
) -> None:
    """Show installed versions, whether FAISS is used, and how a model finds its tokens, with the reason."""
    for name, value in _installation().items():
        typer.echo(f"{name:<14}{value}")
    if model is not None:
        typer.echo(f"{'model':<14}{_decoding_of(model)}")


def _installation() -> dict[str, str]:
    import platform
    from importlib import metadata

    import torch

    from codehead.decoding import fast_scan

    scanning = "not installed: every codeword is scored (pip install 'codehead[fast]')"
    if fast_scan.available():
        import faiss

        scanning = f"{faiss.__version__}, {faiss.get_compile_options().strip()}"
    graphics = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "codehead": metadata.version("codehead"),
        "Python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "transformers": metadata.version("transformers"),
        "FAISS": scanning,
        "GPU": graphics,
    }


def _decoding_of(name: str) -> str:
    from codehead.models.surgery import is_coded
    from codehead.screening.model import is_screened
    from codehead.training.model import load_model

    model: Any = load_model(name, dtype="auto")
    if is_screened(model):
        obstacle = model.obstacle()
        return f"screened, {model.screen.extra_repr()}" if obstacle is None else f"screened, but {obstacle}"
    if is_coded(model):
        choice = model.decision.choice()
        return f"coded, decoded by {choice.impl}: {choice.why}"
    return "stock; codehead screen can make its head faster"
