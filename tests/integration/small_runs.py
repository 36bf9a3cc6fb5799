"""Runs of training that take a second: what tests of the training share."""

import json

from transformers import TrainerCallback

from codehead.training.config import RunConfig
from codehead.training.model import load_model

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "red",
    "dog",
    "ran",
    "to",
    "park",
    "two",
    "small",
    "big",
    "birds",
]
TEXT = "The cat sat on the mat.\n\nThe dog ran to the park.\n\n" * 12
CODED = {"code": "minrandom", "bits": 20}
CORRECTED = {**CODED, "loss": "codeword", "dense_rows": 20, "token_bias": True}


def pretraining(stories, output_dir, **changes):
    values = {
        "model": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 160},
        "tokenizer": {"train": "bpe", "vocab_size": 270},
        "data": {"train": stories, "validation_fraction": 0.2, "block_size": 32},
        "decision": CODED,
        "training": {
            "max_steps": 6,
            "save_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
        },
        "output_dir": str(output_dir),
    }
    return RunConfig.from_dict({**values, **changes})


def finetuning(model, source, output_dir, **changes):
    base = pretraining(source, output_dir).to_dict()
    return RunConfig.from_dict(
        {
            **base,
            "model": str(model),
            "tokenizer": None,
            "decision": None,
            "adapt": None,
            "data": {"train": source, "block_size": 160},
            **changes,
        }
    )


def log(folder):
    return json.loads((folder / "run.json").read_text())["log_history"]


def losses(folder):
    return [entry["loss"] for entry in log(folder) if "loss" in entry]


def weights(folder):
    return dict(load_model(str(folder)).named_parameters())


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt
