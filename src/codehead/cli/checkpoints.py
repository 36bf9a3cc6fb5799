"""Commands that make a checkpoint from another: `attach`, `convert`, `screen`, `calibrate`, `fold`; and `generate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codehead.boundaries import command
from codehead.cli import options as opt
from codehead.cli.options import check_empty_folder, check_folder, decision_options, given
from codehead.config.blocks import parse_assignment
from codehead.errors import ConfigurationError
from codehead.processes import is_main
from codehead.recommendation import DEFAULT_BUDGET, recommend
from codehead.training.config import RunConfig

if TYPE_CHECKING:
    from codehead.screening.screen import Settings


@decision_options
def attach(
    model: Annotated[str, typer.Argument(help="Hub id, folder or GGUF file of a causal language model.")],
    out: Annotated[Path, typer.Option("--out", callback=opt.expanded, help="Folder of the coded checkpoint.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
    **decision: Any,
) -> None:
    """Replace a model's Softmax head with a code and save it.

    Without --code, the new head is an additive code that starts near the old one, with loss codeword. With --code, the
    defaults below apply: random weights, unless --start old_head.
    """
    from codehead.evaluation.size import model_size
    from codehead.models.surgery import attach as attach_to
    from codehead.models.surgery import describe
    from codehead.training.model import load_model

    check_empty_folder(out, overwrite)
    coded = load_model(model, dtype="stored")
    before = model_size(coded).head_parameters
    attach_to(coded, **given(decision), keep_head=False)
    _save(coded, model, out)
    after = model_size(coded).head_parameters
    state = "starts near the old one" if describe(coded, "tell").fresh == "" else "is untrained"
    train = command("codehead", "finetune", "--model", out, "--train", "FILE", "--out", "FOLDER")
    typer.echo(f"Saved to {out}: {after:,} parameters in the last layer, {before:,} before.")
    typer.echo(f"Its new head {state}: {train}")


def _save(changed: Any, model: str, out: Path) -> None:
    """Save a changed model with the tokenizer of the original one."""
    from codehead.training.folder import RECORD, locked, save_whole
    from codehead.training.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    with locked(out):
        save_whole(changed, tokenizer, out)
        (out / RECORD).unlink(missing_ok=True)  # of the run whose model was overwritten


def convert(
    model: Annotated[str, typer.Argument(help="Hub id, folder or GGUF file of a stock causal language model.")],
    data: Annotated[str, typer.Option("--data", help="Text like yours: hub id or local file.")],
    out: Annotated[Path, typer.Option("--out", callback=opt.expanded, help="Folder of the converted checkpoint.")],
    budget: Annotated[str | None, typer.Option("--budget", help=opt.BUDGET, show_default=DEFAULT_BUDGET)] = None,
    bits: opt.Bits = None,
    speed: opt.Speed = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Distillation steps.")] = 500,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of text to learn from.")] = 200_000,
    own_text: Annotated[
        float,
        typer.Option("--own-text", min=0, help="Share of --tokens that the model writes itself, such as 0.25."),
    ] = 0.0,
    backbone_steps: Annotated[
        int,
        typer.Option(
            "--backbone-steps",
            min=0,
            help="Optional steps that also train the backbone, with LoRA, on your text alone.",
        ),
    ] = 0,
    max_documents: opt.MaxDocuments = None,
    text_field: opt.TextField = None,
    block_size: opt.ExampleTokens = None,
    batch_size: opt.ForwardExamples = 8,
    dtype: opt.Dtype = "auto",
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate/--no-calibrate", help="Fit a temperature on text set aside: 4,096 tokens at most."),
    ] = True,
    packed: Annotated[bool, typer.Option("--packed/--unpacked", help=opt.PACKED)] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, max=opt.LARGEST_SEED, help="Seed of all random choices.")] = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key, as in --set data.subset=en."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
) -> None:
    """Replace a trained model's head with a coded one of a few percent of the bytes, distilled from the old head.

    The backbone stays frozen unless you set --backbone-steps. One document in twenty is held out, and both heads are
    measured on it. To resume a stopped conversion, repeat the command without --overwrite.
    """
    from codehead.conversion import conversion_config, run_conversion

    check_folder(out)
    found = recommend(model, budget=budget, bits=bits, speed=speed)
    changes = dict(map(parse_assignment, assignments or []))
    config = conversion_config(
        model, data, out, found, steps=steps, tokens=tokens, own_text=own_text, backbone_steps=backbone_steps,
        calibrate=calibrate, packed=packed, batch_size=batch_size, block_size=block_size, max_documents=max_documents,
        text_field=text_field, dtype=dtype, seed=seed, changes=changes,
    )  # fmt: skip
    changed = ", ".join(key for key in changes if key.startswith("decision."))
    note = f" --set {changed} changes that." if changed else ""
    if is_main():
        typer.echo(found.config.told(found.shape) + note, err=True)
    _change(run_conversion, config, overwrite, "old head", "new head")
    typer.echo(f"Saved to {out}")


def screen(
    model: Annotated[str, typer.Argument(help="Hub id or local folder of a stock causal language model.")],
    out: Annotated[Path, typer.Option("--out", callback=opt.expanded, help="Folder of the screened checkpoint.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Text like yours: hub id or local file. Without it, the model generates some."),
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="fast (a promised recall), or exact (the dense head's greedy text).")
    ] = "fast",
    recall: Annotated[
        float, typer.Option("--recall", help="Mode fast: promised share of positions where the best token is found.")
    ] = 0.999,
    certificate: Annotated[
        str, typer.Option("--certificate", help="Mode exact: calibrated (fails rarely), or proof (never).")
    ] = "calibrated",
    bits: Annotated[
        int | None,
        typer.Option("--bits", help="Bits of the code per token.", show_default="those with which a step reads least"),
    ] = None,
    positions: Annotated[
        int, typer.Option("--positions", min=8, help="Hidden states to fit and calibrate with.")
    ] = 12_000,
    text_field: opt.TextField = None,
    dtype: opt.Dtype = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Add a code that finds the few tokens worth scoring. Nothing is trained, no weight changes.

    To resume after a stop, repeat the command: hidden states are kept in --out until the end.
    """
    from codehead.screening.build import HIDDEN, screen_checkpoint
    from codehead.training.loop import shown

    if not (out / HIDDEN).is_file():
        check_empty_folder(out, overwrite)
    with shown() as show:
        settings = screen_checkpoint(
            model, out, data=data, mode=mode, recall=recall, certificate=certificate, bits=bits, positions=positions,
            text_field=text_field, dtype=dtype, show=show,
        )  # fmt: skip
    typer.echo(f"{told(settings)}\nSaved to {out}")


def told(settings: Settings) -> str:
    """The promise and the measurement."""
    code = f"{settings.bits} bits per token; {settings.candidates} of {settings.num_classes:,} rows are scored"
    measured = f"{settings.measured:.3%} at {settings.test_positions:,} other positions"
    if settings.mode == "fast":
        promise = (
            f"recall at least {settings.promised:.3%}, with {settings.confidence:.0%} confidence, on text like that of "
            f"the {settings.calibration_positions:,} calibration positions"
        )
        return f"{code}.\nPromised: {promise}. Measured: {measured}."
    if settings.factor == 1:
        return f"{code}.\nThe dense head decides wherever another token cannot be excluded by proof."
    return (
        f"{code}.\nThe dense head decides wherever another token cannot be excluded; that fails at no more than "
        f"{1 - settings.promised:.3%} of positions, with {settings.confidence:.0%} confidence. The best token was "
        f"among the candidates: {measured}."
    )


HELD_OUT = 0.2
"""The share of the documents that is held out and measured before and after."""


def calibrate(
    model: Annotated[str, typer.Argument(help="Hub id or local folder of a coded checkpoint.")],
    data: Annotated[str, typer.Option("--data", help="Text that the model was not trained on: hub id or local file.")],
    out: Annotated[Path, typer.Option("--out", callback=opt.expanded, help="Folder of the calibrated checkpoint.")],
    per_bit: Annotated[
        bool, typer.Option("--per-bit/--temperature", help="A scale for every bit, or one for all.")
    ] = True,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to fit the scales to.")] = 20_000,
    max_documents: opt.MaxDocuments = None,
    text_field: opt.TextField = None,
    block_size: opt.ExampleTokens = None,
    batch_size: opt.ForwardExamples = 8,
    dtype: opt.Dtype = "auto",
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=opt.LARGEST_SEED, help="Seed for choosing the held-out documents.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
) -> None:
    """Scale the bits of a coded checkpoint so that its confidence matches its accuracy; nothing else changes.

    A fifth of the documents is held out: the model is measured on it before and after.
    """
    from codehead.conversion import recalibrate

    check_folder(out)
    text = {"train": data, "block_size": block_size, "max_documents": max_documents, "text_field": text_field}
    fitted = {"tokens": tokens, "per_bit": per_bit}
    config = _measured_run(model, out, batch_size, text, calibrate=fitted, seed=seed, dtype=dtype)
    found = _change(recalibrate, config, overwrite, "before", "after")["calibration"]
    least, most = min(found["scales"]), max(found["scales"])
    typer.echo(f"Bits scaled by {least:.3g} to {most:.3g}, fitted to {found['tokens']:,} other tokens. Saved to {out}")


def fold(
    model: Annotated[str, typer.Argument(help="Hub id or local folder of a coded checkpoint.")],
    out: Annotated[Path, typer.Option("--out", callback=opt.expanded, help="Folder of the stock checkpoint.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Text like yours, to approximate a bias per token for which the model has no place."
        ),
    ] = None,
    max_documents: opt.MaxDocuments = None,
    text_field: opt.TextField = None,
    block_size: opt.ExampleTokens = None,
    batch_size: opt.ForwardExamples = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write a coded model out as the stock model with the same logits, for tools that lack codes (GGUF, ONNX, MLX).

    The head is full-size again. A bias per token, which convert adds by default, has no place in Llama, Qwen or
    Gemma: with --data it is approximated, and the model measured before and after on a fifth of the documents.
    """
    from codehead.conversion import run_folding
    from codehead.models.folding import fold as fold_head
    from codehead.training.model import load_model

    if data is None:
        check_empty_folder(out, overwrite)
        _save(fold_head(load_model(model, dtype="stored")), model, out)
    else:
        check_folder(out)
        text = {"train": data, "block_size": block_size, "max_documents": max_documents, "text_field": text_field}
        config = _measured_run(model, out, batch_size, text, dtype="stored")
        _change(run_folding, config, overwrite, "coded", "folded")
    typer.echo(f"Saved to {out}")


def _measured_run(model: str, out: Path, batch_size: int, text: dict[str, Any], **more: Any) -> RunConfig:
    """A run that changes a checkpoint and measures it before and after on held-out documents of a text."""
    text = {**text, "validation_fraction": HELD_OUT, "block_size": text["block_size"] or opt.block_size_for(model)}
    training = {"per_device_train_batch_size": batch_size}
    return RunConfig.from_dict({"model": model, "output_dir": str(out), "data": text, "training": training, **more})


def generate(
    model: Annotated[str, typer.Argument(help="Folder, hub id or GGUF file, coded or not.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")],
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            min=1,
            help="Tokens to generate at most.",
            show_default="64, or as many as the model takes",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="Sampling temperature; greedy if omitted.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Sample among the k best tokens.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus sampling.")] = None,
    num_beams: Annotated[
        int, typer.Option("--num-beams", min=1, help="Number of beams; the text is shown at the end.")
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, max=opt.LARGEST_SEED, help="Seed for sampling.")] = 0,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Tokenizer to use instead of the model's own.")
    ] = None,
    packed: opt.Packed = None,
) -> None:
    """Continue a prompt and show the text as it is generated."""
    from codehead.evaluation.generation import generate_text

    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigurationError(f"--prompt is {prompt!r}, which is not UTF-8 text; convert it") from None

    pieces = generate_text(
        model,
        prompt,
        tokenizer_name=tokenizer,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_beams=num_beams,
        seed=seed,
        packed=packed,
        write=lambda text: typer.echo(text, nl=False),
    )
    typer.echo("" if pieces.endswith("\n") else "\n", nl=False)


MEASURES = {
    "top1": ("top-1 accuracy", "{:.2%}"),
    "top5": ("top-5 accuracy", "{:.2%}"),
    "perplexity": ("perplexity", "{:,.2f}"),
    "bits_per_byte": ("bits per byte", "{:.4f}"),
    "bytes_in_bf16": ("bytes of the head, stored", "{:,}"),
}


def _change(run: Callable[..., dict[str, Any]], config: RunConfig, overwrite: bool, *names: str) -> dict[str, Any]:
    """Change a model, print the measurements `before` and `after` in columns of these names; return the record."""
    from codehead.training.loop import shown

    with shown() as show:
        record = run(config, overwrite=overwrite, show=show)
    before, after = record["before"], record["after"]
    table = opt.number_table(*names, "ratio", title=f"{before['tokens']:,} held-out tokens")
    for name, (label, form) in MEASURES.items():
        old, new = before[name], after[name]
        if old is not None and new is not None:
            table.add_row(label, form.format(old), form.format(new), f"{new / old:.3f}" if old else "–")
    opt.show(table)
    return record
