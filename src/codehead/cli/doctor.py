"""`codehead doctor`: what this installation can do, and how a model decodes here."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="Hub id or local folder of a coded or screened checkpoint.")
    ] = None,
) -> None:
    """Tell the versions that are used, whether FAISS scans codes here, and how a model finds its tokens, and why."""
    for name, value in _installation().items():
        typer.echo(f"{name:<14}{value}")
    if model is not None:
        typer.echo(f"{'model':<14}{_told(model)}")


def _installation() -> dict[str, str]:
    import platform
    from importlib import metadata

    import torch

    from codehead.decoding import fast_scan

    scanning = "not installed: codes are scored one and all (pip install 'codehead[fast]')"
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


def _told(name: str) -> str:
    from codehead.models import is_coded
    from codehead.screening.model import is_screened
    from codehead.training.model import load_model

    model: Any = load_model(name, dtype="auto")
    if is_screened(model):
        obstacle = model.obstacle()
        return f"screened, {model.screen.extra_repr()}" if obstacle is None else f"screened, but {obstacle}"
    if is_coded(model):
        choice = model.decision.choice()
        return f"coded, decoded by {choice.impl}: {choice.why}"
    return "stock: codehead screen makes its head faster"
