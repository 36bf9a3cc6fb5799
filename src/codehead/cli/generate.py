"""`codehead generate`: continue a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from codehead.cli import options as opt


def generate(
    model: Annotated[str, typer.Argument(help="Folder, hub id or GGUF file, coded or not.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 64,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="Sample; greedy without it.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Sample among the k best.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus sampling.")] = None,
    num_beams: Annotated[int, typer.Option("--num-beams", min=1, help="Beam search; text comes at the end.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, max=opt.LARGEST_SEED, help="Of sampling.")] = 0,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="If not the model's own.")] = None,
    packed: opt.Packed = None,
) -> None:
    """Continue a prompt and show the text as it comes."""
    from codehead.errors import ConfigurationError
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
