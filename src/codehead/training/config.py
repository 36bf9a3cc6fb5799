"""The configuration of one training run: one YAML file, validated once, then trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from codehead.config import DecisionConfig
from codehead.config.blocks import (
    check_keys,
    check_types,
    merged,
    read_block,
    read_yaml,
    require,
    require_block,
    require_that,
)
from codehead.config.first_version import run_as_of_today
from codehead.errors import ConfigurationError
from codehead.registry import unknown

ADAPTATIONS = ("lora", "full", "head")
DTYPES = ("float32", "bfloat16", "float16", "auto", "stored")
SET_ELSEWHERE = {
    "output_dir": "set output_dir at the top level instead",
    "seed": "set seed at the top level instead",
    "resume_from_checkpoint": "omit it: a run resumes from its own last checkpoint",
}
SOFTMAX_ONLY = {
    "label_smoothing_factor": "smoothing is defined on V logits, which a coded head never forms in training",
    "use_liger_kernel": "its fused loss reads the head as V rows, and would train the wrong objective",
}
POSITIVE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
"""Keys of `training` that the Trainer divides by."""
NOT_NEGATIVE = (
    "learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "num_train_epochs",
    "logging_steps", "save_total_limit", "dataloader_num_workers", "label_smoothing_factor", "neftune_noise_alpha",
    "eval_delay",
)  # fmt: skip
"""Keys of `training`: rates and sizes that the Trainer does not check and would fail on only after setup."""
INTERVALS = ("save_steps", "eval_steps")
"""Keys of `training`: numbers of steps, or shares of all steps."""
BLOCKS = ("lr_scheduler_kwargs", "accelerator_config")
BELOW_ONE = ("adam_beta1", "adam_beta2")
LARGEST_SEED = 2**32 - 1
"""The limit of numpy's global generator, which a run also seeds."""
LARGEST_COUNT = 2**31 - 1
"""Steps and examples per step: far beyond what any run has."""
LARGEST_RANK = 2**16
"""LoRA ranks: far beyond the hidden size of any model."""
LARGEST_VOCABULARY = 2**22
"""Entries of a tokenizer trained here; its trainer reserves memory for all of them at once."""


def require_rate(value: float | None, name: str) -> None:
    """Raise ConfigurationError unless a learning rate is None, or 0 or more."""
    require_that(value is None or 0 <= value < math.inf, name, value, "give a number of 0 or more")


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from. A source is a hub id (`name` or `name:split`) or a local file."""

    train: str | list[str]  # several sources are read one after the other
    validation: str | None = None
    test: str | None = None
    validation_fraction: float = 0.0  # share of the training documents; only without `validation`
    subset: str | None = None  # configuration name of a hub dataset
    text_field: str | None = None  # None: the fields of instruction records if there are any, else `text`
    as_text: bool = False  # read instruction records as plain text, the prompt followed by the response
    block_size: int = 256  # tokens per block of text, and at most per record
    max_documents: int | None = None  # of the training source
    max_validation_documents: int | None = None

    def __post_init__(self) -> None:
        are_named = bool(self.train_sources) and all(isinstance(name, str) and name for name in self.train_sources)
        require_that(are_named, "data.train", self.train, "give a hub id or a local file, or a list of them")
        require(self.block_size, "data.block_size", minimum=2)
        for name in ("max_documents", "max_validation_documents"):
            if getattr(self, name) is not None:
                require(getattr(self, name), f"data.{name}", minimum=1)
        part = self.validation_fraction
        is_part = isinstance(part, int | float) and 0 <= part < 1
        require_that(is_part, "data.validation_fraction", part, "give a number from 0 to below 1")
        for name in ("validation", "test"):
            require_that(getattr(self, name) != "", f"data.{name}", "", "give a hub id or a local file, or omit it")
        if self.validation and self.validation_fraction:
            raise ConfigurationError(
                "data.validation and data.validation_fraction are both set; validation data come either "
                "from their own source or from a part of the training documents: remove one of the two"
            )

    @property
    def train_sources(self) -> list[str]:
        """The sources of the training text."""
        return [self.train] if isinstance(self.train, str) else list(self.train or [])

    @property
    def sources(self) -> list[str]:
        """The sources of all splits: training, validation, test."""
        return [*self.train_sources, *(source for source in (self.validation, self.test) if source)]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    target_modules: str | list[str] = "auto"  # auto: every linear map of the attention blocks

    def __post_init__(self) -> None:
        require(self.r, "lora.r", minimum=1, maximum=LARGEST_RANK)
        require_that(0 <= self.dropout < 1, "lora.dropout", self.dropout, "give a number from 0 to below 1")
        names = [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules
        are_named = isinstance(names, list) and bool(names) and all(isinstance(name, str) and name for name in names)
        remedy = "give auto, or names such as [q_proj, v_proj]"
        require_that(are_named, "lora.target_modules", self.target_modules, remedy)


@dataclass(frozen=True)
class Distillation:
    """How a new decision layer learns from the Softmax head that it replaces, before the main training."""

    steps: int = 500
    batch_tokens: int = 512  # positions per step
    learning_rate: float | None = None  # of the head and the per-token extras; falls to zero along a cosine. None:
    # 1e-3, or 1% of the root mean square of a row of weights if that is less
    code_learning_rate: float = 1e-2  # of the numbers whose signs are the code; 0 keeps the code as it is
    tokens: int = 200_000  # positions of text to learn from; their hidden states stay in memory
    own_text: float = 0.0  # the share of them in text that the model writes itself: other text than yours loses less
    label_weight: float = 0.0  # of the labels' cross entropy; the rest goes to the old head's distribution
    backbone_steps: int = 0  # then steps of LoRA on the backbone (`lora`, no dropout) with the head, without own text;
    # 0: it stays frozen
    backbone_learning_rate: float = 1e-3  # in these steps; the head's is at most learning_rate, by default 1% of the
    # root mean square of its median row
    seed: int = 0  # of the order of positions

    def __post_init__(self) -> None:
        for name in ("steps", "batch_tokens", "tokens"):
            require(getattr(self, name), f"distil.{name}", minimum=1)
        for name in ("label_weight", "own_text"):
            value = getattr(self, name)
            is_share = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
            require_that(is_share, f"distil.{name}", value, "give a share from 0 to 1")
        require_that(self.own_text < 1, "distil.own_text", self.own_text, "some text must be yours: give less than 1")
        require(self.backbone_steps, "distil.backbone_steps", minimum=0)
        require(self.seed, "distil.seed", minimum=0, maximum=LARGEST_SEED)
        for name in ("learning_rate", "code_learning_rate", "backbone_learning_rate"):
            require_rate(getattr(self, name), f"distil.{name}")


@dataclass(frozen=True)
class Calibration:
    """How the bit logits of a decision layer are scaled at the end, so that the codeword posterior is calibrated."""

    tokens: int = 20_000  # positions of held-out text
    per_bit: bool = True  # a scale for every bit; otherwise one for all, a temperature

    def __post_init__(self) -> None:
        require(self.tokens, "calibrate.tokens", minimum=1)


UNSET = ("calibrate", "head_learning_rate")
"""Keys of a run that are recorded only if they are set."""


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    `model` is a hub id or a local folder (fine-tuning), or an architecture such as
    `{model_type: gpt2, n_embd: 192}` (pretraining from scratch). `decision` is the new decision layer, whose code is
    minrandom unless it names one; None keeps the model's own. `training` holds the literal fields of
    `transformers.TrainingArguments`.
    """

    model: str | dict[str, Any]
    data: DataConfig
    output_dir: str
    tokenizer: str | dict[str, Any] | None = None  # None: the model's own
    decision: DecisionConfig | None = None
    distil: Distillation | None = None  # a new decision layer learns from the old head first; None: it does not
    calibrate: Calibration | None = None  # at the end, on the validation data; None: no calibration
    adapt: str | None = None  # None: lora for an existing model, full for a new one
    lora: LoraConfig = field(default_factory=LoraConfig)
    training: dict[str, Any] = field(default_factory=dict)
    head_learning_rate: float | None = None  # of the decision layer in training. None: training.learning_rate, but at
    # most 1% of the root mean square of its median row for a code already fitted to its tokens
    seed: int = 0
    dtype: str = "float32"  # to load an existing model in; `training.bf16` sets the arithmetic

    def __post_init__(self) -> None:
        require_block(self.training, "training")
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        is_named = isinstance(self.output_dir, str) and bool(self.output_dir)
        require_that(is_named, "output_dir", self.output_dir, "name the folder of this run")
        require(self.seed, "seed", minimum=0, maximum=LARGEST_SEED)
        self._check_model()
        self._check_tokenizer()
        self._check_adaptation()
        if self.decision is not None:
            refuse_softmax_only(self.training)
        require_rate(self.head_learning_rate, "head_learning_rate")
        self._check_distillation()
        self._check_calibration()
        self._check_training()
        self._check_validation()

    @property
    def is_pretraining(self) -> bool:
        """Whether the model is a new one, built from a literal architecture."""
        return isinstance(self.model, dict)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values; `from_dict` restores it.

        Keys in UNSET are included only if set, so that runs older than these keys keep their checksums.
        """
        values = {**asdict(self), "decision": None if self.decision is None else self.decision.to_dict()}
        return {key: value for key, value in values.items() if key not in UNSET or value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> RunConfig:
        """Build and validate, with `overrides` (dotted keys → values) laid over the values.

        Raises ConfigurationError for unknown or missing keys.
        """
        blocks = run_as_of_today(merged(values, overrides or {}))
        if blocks.get("decision") is not None:
            blocks["decision"] = DecisionConfig.from_dict(blocks["decision"])
        blocks["data"] = read_block(DataConfig, blocks.get("data"), "data")
        blocks["lora"] = read_block(LoraConfig, blocks.get("lora"), "lora")
        for name, kind in (("distil", Distillation), ("calibrate", Calibration)):
            if blocks.get(name) is not None:
                blocks[name] = read_block(kind, blocks[name], name)
        if blocks.get("training") is None:
            blocks["training"] = {}
        return read_block(cls, blocks, "")

    @classmethod
    def from_yaml(cls, path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
        """Read `path` (None: overrides alone), then lay `overrides` (dotted keys → values) over it."""
        return cls.from_dict(read_yaml(Path(path)) if path is not None else {}, overrides)

    def _check_model(self) -> None:
        if isinstance(self.model, dict):
            require_block(self.model, "model")
            if not isinstance(self.model.get("model_type"), str):
                raise ConfigurationError(
                    "model is an architecture without model_type; add one, for example model_type: gpt2"
                )
            for key, value in self.model.items():
                is_number = not isinstance(value, float) or math.isfinite(value)
                require_that(is_number, f"model.{key}", value, "give a finite number")
        elif not isinstance(self.model, str) or not self.model:
            raise ConfigurationError(
                f"model is {self.model!r}; give a hub id, a local folder or an architecture "
                "such as {model_type: gpt2, n_embd: 192}"
            )

    def _check_tokenizer(self) -> None:
        if isinstance(self.tokenizer, dict):
            check_keys(self.tokenizer, ("train", "vocab_size"), "tokenizer")
            kind, size = self.tokenizer.get("train"), self.tokenizer.get("vocab_size")
            require_that(kind == "bpe", "tokenizer.train", kind, "the only kind is 'bpe'")
            require(size, "tokenizer.vocab_size", minimum=257, maximum=LARGEST_VOCABULARY)
        elif self.tokenizer == "":
            raise ConfigurationError("tokenizer is ''; give a hub id or a local folder, or omit it")
        elif not isinstance(self.tokenizer, str) and (self.tokenizer is not None or self.is_pretraining):
            what = "missing" if self.tokenizer is None else repr(self.tokenizer)
            raise ConfigurationError(
                f"tokenizer is {what}; give a hub id, a local folder or {{train: bpe, vocab_size: 8192}} "
                "(only an existing model brings its own)"
            )

    def _check_adaptation(self) -> None:
        if self.adapt is None:
            object.__setattr__(self, "adapt", "full" if self.is_pretraining else "lora")
        if self.adapt not in ADAPTATIONS:
            raise unknown("adapt", self.adapt, ADAPTATIONS)
        if self.is_pretraining and self.adapt != "full":
            raise ConfigurationError(
                f"adapt is {self.adapt!r}, but a new model has nothing to adapt: remove the key or set full"
            )

    def _check_distillation(self) -> None:
        starts = self.decision is not None and self.decision.start == "old_head"
        if self.is_pretraining and (starts or self.distil is not None):
            raise ConfigurationError(
                f"{'distil' if self.distil is not None else 'decision.start'} is set, but a new model has no trained "
                "head to learn from: remove it, or fine-tune an existing model"
            )
        if self.distil is not None and self.decision is None:
            raise ConfigurationError("distil is set, but there is no new decision layer to learn: give decision")

    def _check_calibration(self) -> None:
        implicit = self.decision is not None and self.decision.code == "one_vs_all"
        if self.calibrate is not None and self.calibrate.per_bit and implicit:
            raise ConfigurationError(
                "calibrate.per_bit is true, but the code one_vs_all has as many bits as tokens, and a scale for each "
                "would be fitted to noise; give calibrate: {per_bit: false}"
            )

    def _check_training(self) -> None:
        for key, remedy in SET_ELSEWHERE.items():
            if key in self.training:
                raise ConfigurationError(f"training.{key} is set; {remedy}")
        from transformers import TrainingArguments  # heavy: only a run with a training block needs it

        check_keys(self.training, [f.name for f in fields(TrainingArguments) if f.init], "training")
        others = {key: value for key, value in self.training.items() if key != "fsdp" or not isinstance(value, bool)}
        check_types(TrainingArguments, others, "training")  # fsdp is declared as text, but documented as true or false
        self._check_ranges()
        steps, epochs = self.training.get("max_steps") or 0, self.training.get("num_train_epochs")
        is_counted = "max_steps" not in self.training or steps == -1 or steps >= 1
        require_that(is_counted, "training.max_steps", steps, "give a number of steps, or -1 to count epochs")
        ends = epochs is None or epochs > 0 or steps >= 1
        require_that(ends, "training.num_train_epochs", epochs, "give a number above 0, or max_steps")

    def _check_ranges(self) -> None:
        """Check numbers in `training` that would otherwise fail only after setup, or ruin the weights."""
        for key, value in self.training.items():
            name = f"training.{key}"
            if value is None:
                continue
            if key in POSITIVE:
                require(value, name, minimum=1, maximum=LARGEST_COUNT)
            if key in NOT_NEGATIVE:
                require_that(0 <= value <= LARGEST_COUNT, name, value, f"give a number from 0 to {LARGEST_COUNT}")
            if key in BLOCKS:
                require_block(value, name)
            if key in INTERVALS:
                require_that(0 < value <= LARGEST_COUNT, name, value, "give a number of steps, or a share of all")
            if key in BELOW_ONE:
                require_that(0 <= value < 1, name, value, "give a number from 0 to below 1")
            if key == "data_seed":
                require(value, name, minimum=0, maximum=LARGEST_SEED)
            if key == "max_steps":
                require_that(value <= LARGEST_COUNT, name, value, f"give at most {LARGEST_COUNT}")

    def _check_validation(self) -> None:
        strategy = self.training.get("eval_strategy") or "no"
        needing = f"training.eval_strategy is {strategy!r}" if strategy != "no" else "calibrate is given"
        is_needed = strategy != "no" or self.calibrate is not None
        if is_needed and not (self.data.validation or self.data.validation_fraction):
            raise ConfigurationError(
                f"{needing}, which needs validation data: give data.validation or data.validation_fraction, or "
                "remove the key"
            )


def refuse_softmax_only(training: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for options of the Trainer that only make sense with V logits."""
    for key, why in SOFTMAX_ONLY.items():
        if training.get(key):
            raise ConfigurationError(
                f"training.{key} is {training[key]!r}, which no coded head supports: {why}; remove it"
            )
