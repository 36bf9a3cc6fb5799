"""Where the logs of a run land, for those who look with TensorBoard, Weights & Biases or MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_runs import pretraining

from codehead.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore")  # of the reporters, about themselves


def run(stories: str, folder: Path, reporter: str) -> list[float]:
    """Train for six steps into a folder called `short`; the losses that its record holds."""
    base: dict[str, Any] = pretraining(stories, folder / "short").to_dict()
    config = pretraining(stories, folder / "short", training={**base["training"], "report_to": reporter})
    record = json.loads((train(config, progress=False) / "run.json").read_text())
    return [entry["loss"] for entry in record["log_history"] if "loss" in entry]


def test_tensorboard_finds_the_run_in_its_own_folder(stories: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = run(stories, tmp_path, "tensorboard")
    (place,) = (tmp_path / "short" / "runs").iterdir()
    events = EventAccumulator(str(place)).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)


def test_tensorboard_goes_where_the_environment_says(
    stories: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    run(stories, tmp_path, "tensorboard")
    assert any((tmp_path / "elsewhere").iterdir()) and not (tmp_path / "short" / "runs").exists()


def test_weights_and_biases_offline_names_the_run_as_its_folder(
    stories: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = []
    monkeypatch.setattr(
        wandb, "init", lambda *given, init=wandb.init, **options: names.append(options) or init(**options)
    )
    run(stories, tmp_path, "wandb")
    wandb.finish()
    assert [options["name"] for options in names] == ["short"]
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_mlflow_holds_the_losses_under_the_name_of_the_folder(
    stories: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    losses = run(stories, tmp_path, "mlflow")
    mlflow.end_run()
    client = mlflow.MlflowClient()
    (kept,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert kept.info.run_name == "short" and "eval_loss" in kept.data.metrics
    assert [entry.value for entry in client.get_metric_history(kept.info.run_id, "loss")] == pytest.approx(losses)
