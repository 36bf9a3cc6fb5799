"""A new decision layer for a model: chosen by a budget, fitted to the training text, rounded at the end.

Its code may grow on that text, by columns for the tokens that are confused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from codehead.codes import DESIGNS, Codebook, Confusion, build
from codehead.codes.design import whole_number
from codehead.config import DecisionConfig
from codehead.config.blocks import require_block
from codehead.config.decision import DEFAULT_CODE
from codehead.config.first_version import ENDS
from codehead.errors import ConfigurationError
from codehead.heads import LinearHead
from codehead.layer import DecisionLayer
from codehead.losses import IGNORE
from codehead.models.calibration import check_calibration, fit_scales, fold_scales, text_outputs
from codehead.models.hidden import Statistics, hidden_states, labelled_states
from codehead.models.old_head import check_extras
from codehead.models.own_text import beginnings, write
from codehead.models.probe import SoftmaxHead, softmax_head
from codehead.models.rounding import check_unrounded, to_int4, to_int8
from codehead.models.surgery import attach, is_coded
from codehead.recommendation import recommend
from codehead.training.config import RunConfig
from codehead.training.data import STATISTICS_TOKENS, Text, batch_size_of
from codehead.training.distil import Batch, distil, learn_together
from codehead.training.likely_tokens import LikelyTokens, is_worth_it
from codehead.training.loop import SILENT, Show, Work
from codehead.training.model import find_targets


def within(values: Mapping[str, Any], budget: str) -> tuple[RunConfig, str]:
    """The run of these values with the decision layer of a budget, distilled from the old head; and the layer in words.

    ConfigurationError if the values name a decision layer themselves.
    """
    for name in ("decision", "distil"):
        require_block(values.get(name) or {}, name)
    named = [f"decision.{key}" for key in values.get("decision") or {}] + [key for key in ENDS if values.get(key)]
    if named:
        raise ConfigurationError(
            f"budget is {budget!r}, which chooses the decision layer; omit it, or {', '.join(named)}"
        )
    if not isinstance(values.get("model"), str):
        raise ConfigurationError(f"budget is {budget!r}, a share of the head of an existing model; give --model")
    found, seed = recommend(values["model"], budget=budget), values.get("seed", 0)
    learning = {"seed": seed, **(values.get("distil") or {})}
    layer = {"decision": replace(found.config, seed=seed).to_dict(), "distil": learning}
    return RunConfig.from_dict({**values, **layer}), found.config.told(found.shape)


READ_BATCHES = 8
"""Batches whose hidden states are saved together: the most that is read again after a process was killed."""
WRITERS = 64
"""Texts that the model writes at once, and that are saved together."""


def fit_decision_layer(model: Any, config: RunConfig, text: Text, work: Work = SILENT) -> Any:
    """The model with the decision layer that `config.decision` describes, initialised as `start` and `distil` say.

    If `work` has stages, hidden states are read once, and distillation resumes where it was stopped. Several processes
    share the reading; the first one trains, and the others load what it saved.
    """
    assert config.decision is not None
    code, start = config.decision.code or DEFAULT_CODE, config.decision.start if config.distil is None else "old_head"
    decision = replace(config.decision, code=code, start=start, weights="float", packed=False)
    looks, num_tokens = looks_at_text(config), len(model.get_output_embeddings().weight)
    counts = torch.from_numpy(text.counts(num_tokens)) if looks or _counts(decision) else None
    if counts is not None:
        check_extras(decision, counts)
    if not looks:
        attach(model, decision, statistics=None if counts is None else Statistics(counts))
        check_end(model, config)
        return model
    if config.distil is not None and config.distil.backbone_steps:
        find_targets(model, config.lora)  # fails before anything is learnt
    tokens = 0 if config.distil is None else config.distil.tokens
    own = _own_text(model, text, 0 if counts is None else int(counts.sum()), config, work)
    written = sum(_positions(batch) for batch in own)
    batches = chain(own, text.batches(batch_size_of(config)))
    hidden, labels = _read(model, batches, written + max(STATISTICS_TOKENS, tokens - written), work)
    teacher = softmax_head(model)
    likely = _looked_up(teacher, config, decision, hidden, written, work)
    given = hidden[written:], labels[written:]
    _attach(model, decision, counts if likely is None else likely.expected, *given, work.show)
    check_end(model, config)
    if config.distil is not None:
        with work.processes.main_first():
            _learn(model, teacher, config, text, hidden, labels, likely, work)
    return model


def _looked_up(
    teacher: SoftmaxHead, config: RunConfig, decision: DecisionConfig, hidden: Tensor, written: int, work: Work
) -> LikelyTokens | None:
    """The old head's likely tokens at the training positions; None if a step compares the scores of all tokens.

    The first positions were `written` by the model: how often it expects a token is counted without them.
    """
    options, has_codewords = config.distil, decision.code != "one_vs_all"
    if options is None or options.label_weight or not has_codewords or not is_worth_it(len(teacher.head.weight)):
        return None
    show = partial(work.show, "looking up likely tokens")
    look = partial(LikelyTokens.of, teacher, hidden, show, work.processes, written)
    return LikelyTokens(**work.stages.tensors("likely", lambda: vars(look())))


def _attach(model: Any, decision: DecisionConfig, counts: Any, hidden: Tensor, labels: Tensor, show: Show) -> None:
    """Attach the decision layer, fitted to the statistics of a text: token counts `(V,)`, and hidden states."""
    show("starting the new head", 0, 1)
    statistics = Statistics.of(counts, hidden[:STATISTICS_TOKENS])
    if grows(decision):
        rows = model.get_output_embeddings().weight.detach()
        code = grown(decision, statistics.seen(rows), hidden.float(), labels)
        others = {key: value for key, value in decision.to_dict().items() if key not in ("code", "bits", "code_params")}
        attach(model, code, **others, statistics=statistics)
    else:
        attach(model, decision, statistics=statistics)
    show("starting the new head", 1, 1)


def _learn(
    model: Any,
    teacher: SoftmaxHead,
    config: RunConfig,
    text: Text,
    hidden: Tensor,
    labels: Tensor,
    likely: LikelyTokens | None,
    work: Work,
) -> None:
    """Train the decision layer on the old head, and then the backbone with it, as `config.distil` says."""
    assert config.distil is not None
    options, stages = config.distil, work.stages

    def learning(done: int, total: int, nats: float) -> None:
        work.show("learning the new head", done, total)

    distil(model, teacher, hidden[: options.tokens], options, learning, stages, labels[: options.tokens], likely)
    if options.backbone_steps:
        draw, together = partial(text.draw, batch_size_of(config)), partial(work.show, "learning with the backbone")
        learn_together(model, teacher, draw, options, config.lora, together, stages)


def _own_text(model: Any, text: Text, given: int, config: RunConfig, work: Work) -> list[Batch]:
    """Batches of text that the model writes beside the `given` tokens of a text: a share of `distil.own_text`."""
    options, length, start = config.distil, config.data.block_size, len(text.start)
    if options is None or not options.own_text or length < start + 2:
        return []
    positions = options.own_text * min(options.tokens, given / (1 - options.own_text))
    written = write_texts(model, text.start, int(positions / (length - 1 - start)), length, config.seed, work)
    return [_labelled(ids, start) for some in written for ids in some.split(batch_size_of(config))]


def write_texts(
    model: Any, start: Sequence[int], texts: int, length: int, seed: int = 0, work: Work = SILENT
) -> list[Tensor]:
    """So many texts that the model writes, WRITERS at a time, `(≤ WRITERS, length)` each.

    Each begins with the tokens `start` and one of the whole vocabulary. If `work` has stages, it resumes there.
    """
    size = model.get_input_embeddings().num_embeddings

    def written(done: int) -> dict[str, Tensor]:
        work.show("writing text", done, texts)
        first = beginnings(start, min(WRITERS, texts - done), size, seed + done)
        return {"ids": work.processes.agreed(write(model, first, length, seed + done))}

    return [work.stages.tensors(f"own-{done}", partial(written, done))["ids"] for done in range(0, texts, WRITERS)]


def _labelled(ids: Tensor, start: int) -> Batch:
    """A batch of the model's own text: it did not choose the first `start + 1` tokens."""
    labels = ids.clone()
    labels[:, : start + 1] = IGNORE
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _positions(batch: Batch) -> int:
    return int((batch["labels"][:, 1:] != IGNORE).sum())


def _read(model: Any, batches: Iterable[Batch], tokens: int, work: Work) -> tuple[Tensor, Tensor]:
    """Hidden states `(tokens, hidden)` and labels `(tokens,)` of batches, READ_BATCHES of them at a time.

    Millions of states need not fit into memory: see `Stages.room`.
    """
    hidden, labels, seen = torch.empty(0), list[Tensor](), 0
    labelled = (batch for batch in batches if _positions(batch))
    while seen < tokens:
        some = list(islice(labelled, READ_BATCHES))
        if labels and not some:
            break
        piece = work.stages.tensors(f"text-{len(labels)}", partial(_read_piece, model, some, seen, tokens, work))
        states = piece["hidden"]
        if not labels:
            hidden = work.stages.room("hidden", (tokens, states.shape[1]), states.dtype)
        hidden[seen : seen + len(states)] = states
        labels.append(piece["labels"])
        seen += len(states)
    return hidden[:seen], torch.cat(labels)


def _read_piece(model: Any, batches: list[dict[str, Tensor]], seen: int, tokens: int, work: Work) -> dict[str, Tensor]:
    """The positions of some batches, as far as `tokens` leaves room after the `seen` ones."""

    def progress(done: int, left: int) -> None:
        work.show("reading text", seen + done, tokens)

    hidden, labels = labelled_states(model, batches, tokens - seen, progress, work.processes)
    return {"hidden": hidden, "labels": labels}


def _counts(decision: DecisionConfig) -> bool:
    """Whether the decision layer depends on how often tokens occur."""
    ordered = decision.assignment == "frequency" or decision.head == "adaptive"
    return bool(ordered or decision.dense_rows or decision.token_bias or decision.extra_bit_tokens)


def looks_at_text(config: RunConfig) -> bool:
    """Whether the decision layer uses hidden states; a code that looks at the old head needs none, but gains from them.

    A new model has no old head to look at.
    """
    decision = config.decision
    assert decision is not None
    if decision.start == "old_head" or config.distil is not None or grows(decision):
        return True
    return not config.is_pretraining and _sees_classes(decision)


def _sees_classes(decision: DecisionConfig) -> bool:
    """Whether the code or the assignment looks at the rows of the old head."""
    if str(decision.assignment).startswith("similar"):
        return True
    if decision.code is None or decision.is_codebook_file:
        return False
    takes = "prototypes" in DESIGNS.get(decision.code).params()
    return takes and not {"prototypes", "samples"} & decision.code_params.keys()


def check_end(model: Any, config: RunConfig) -> None:
    """Raise ConfigurationError, before any training, if the model cannot be calibrated, rounded or packed as asked."""
    if config.calibrate is not None:
        check_calibration(model, config.calibrate.per_bit)
    if is_coded(model) and config.decision is not None:
        if config.decision.weights != "float":
            check_unrounded(model)
        if config.decision.packed:
            model.decision.check_packable()


def calibrated(model: Any, config: RunConfig, text: Text, work: Work) -> dict[str, Any]:
    """Scale the bits of a model on a text, as `config.calibrate` says, in place; returns the entry of `run.json`."""
    options = config.calibrate
    assert options is not None

    def compute() -> dict[str, Any]:
        batches, reading = text.batches(batch_size_of(config)), partial(work.show, "reading other text")
        outputs, labels = text_outputs(model, batches, options.tokens, reading, work.processes)
        progress = partial(work.show, "calibrating")
        found = fit_scales(model.decision, outputs, labels, per_bit=options.per_bit, progress=progress)
        return work.processes.agreed(asdict(found))

    found = work.stages.values("calibration", compute)
    fold_scales(model, found["scales"])
    return {"calibration": found}


def finish(model: Any, config: RunConfig, text: Text, work: Work = SILENT) -> Any:
    """The model with its decision layer stored as `decision.weights` and `decision.packed` say, in place.

    For int4, several processes share the reading of the training `text`, to measure how hidden states vary.
    """
    if config.decision is None:
        return model
    if config.decision.weights == "int8":
        to_int8(model)
    if config.decision.weights == "int4":
        batches, progress = text.batches(batch_size_of(config)), partial(work.show, "reading text to round by")
        to_int4(model, hidden_states(model, batches, STATISTICS_TOKENS, progress, work.processes))
    if config.decision.packed:
        model.decision.packed = True
    return model


# ECOC-ONE for a language model: a code that grows, in rounds, by columns for the tokens that are confused. A round
# trains a linear head on the code so far, on hidden states of the training text, decodes hidden states that it was not
# trained on, and adds columns for what is confused there (`codehead.codes.ecoc_one`). The backbone stays frozen, and
# every bit is a logistic regression.

GROWING = "ecoc_one"
STEPS, BATCH, LEARNING_RATE = 300, 1024, 1e-2
TOLD = ("confusion", "evaluate")
"""Either of these tells the design what is confused, so that no rounds are needed."""
HELD_OUT = 0.25
"""The share of positions at which confusions are counted."""
PIECE = 1024
"""Positions decoded at a time."""


def grows(decision: DecisionConfig) -> bool:
    """Whether the code of a decision layer is to be grown."""
    return decision.code == GROWING and not set(TOLD) & set(decision.code_params)


def grown(decision: DecisionConfig, prototypes: Tensor, hidden: Tensor, labels: Tensor) -> Codebook:
    """The code that `decision` describes, grown in rounds.

    Args:
        decision: `bits` is the final length; `code_params` are those of ecoc_one, with a `start`
            of merged_decoc unless given, and `rounds` (3).
        prototypes: one vector per token, `(V, d)`, e.g. the rows of the Softmax head.
        hidden: hidden states `(tokens, hidden)` of training text.
        labels: the tokens `(tokens,)` to be predicted there.

    Raises ConfigurationError as ecoc_one does, or if the bits do not give every round a column.
    """
    options = dict(decision.code_params)
    rounds = whole_number("code_params.rounds", options.pop("rounds", 3), 1)
    seed = decision.seed
    shared: dict[str, Any] = {"num_classes": len(prototypes), "prototypes": prototypes.numpy(), "seed": seed}
    code = _start(options, shared)
    lengths = _lengths(code.length, decision.bits, rounds)
    for length in lengths:
        confusion = _confusion(code, hidden, labels, seed)
        code = build(GROWING, bits=length, confusion=confusion, start=code, **shared, **{"stop_error": 0.0, **options})
    return code


def _start(options: dict[str, Any], shared: Mapping[str, Any]) -> Codebook:
    """The code of the first round: `options.start`, removed from the options, or one balanced tree."""
    start = options.pop("start", "merged_decoc")
    if isinstance(start, Codebook):
        return start
    nothing = ([0], [0], [1])  # nothing is confused, so no column is added
    return build(GROWING, start=start, confusion=nothing, **shared)


def _lengths(first: int, last: int | None, rounds: int) -> list[int]:
    """The codeword length after every round, in nearly equal steps; by default it ends at twice the first."""
    final = 2 * first if last is None else int(last)
    if final - first < rounds:
        raise ConfigurationError(
            f"bits={final} leaves {max(0, final - first)} columns for {rounds} rounds after a start of {first}; give "
            f"bits={first + rounds} or more, or fewer code_params.rounds"
        )
    return [first + (final - first) * number // rounds for number in range(1, rounds + 1)]


def _confusion(code: Codebook, hidden: Tensor, labels: Tensor, seed: int) -> Confusion:
    """Which tokens a linear head on this code confuses, at held-out positions."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.rand(len(hidden), generator=generator) < HELD_OUT
    layer = _trained(code, hidden[~held_out], labels[~held_out], generator)
    wanted = labels[held_out]
    found = [layer.decode(some).ids[:, 0] for some in hidden[held_out].split(PIECE)]
    return Confusion.of((wanted.numpy(), torch.cat(found).numpy(), torch.ones(len(wanted)).numpy()), code.num_classes)


def _trained(code: Codebook, hidden: Tensor, labels: Tensor, generator: torch.Generator) -> DecisionLayer:
    """A linear head with biases, fitted bit by bit: Adam with a cosine schedule, on positions drawn at random."""
    head = LinearHead(hidden.shape[1], code.length, bias=True)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    layer = DecisionLayer(code, head)
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            chosen = torch.randint(len(hidden), (BATCH,), generator=generator)
            optimizer.zero_grad()
            layer.decision.outputs.loss("bitwise", head(hidden[chosen]), labels[chosen], None).value.backward()
            optimizer.step()
            schedule.step()
    return layer
