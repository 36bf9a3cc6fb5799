"""The plug-in for vLLM: its quantization method, and the coded and screened heads that replace vLLM's.

All other layers are stock. The heads are built from the tensors that vLLM's loader passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import regex
import torch
import transformers.quantizers.auto  # noqa: F401 (before the loader, which it imports as it is imported itself)
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod
from vllm.model_executor.models.utils import WeightsMapper

from codehead.errors import CheckpointError, ConfigurationError
from codehead.layer import WRITTEN
from codehead.models import integrity
from codehead.models.description import Description, expect_written
from codehead.models.integrity import SEALS, check_integers, refuse_missing
from codehead.models.loader import built, check_loaded, expect_vocabulary
from codehead.models.registration import METHOD
from codehead.models.selection import Selection, selecting, spread
from codehead.screening.head import ScreenedLinear
from codehead.screening.model import FIELD, expect_head
from codehead.screening.screen import Screen, Settings
from codehead.vllm.requests import FewTokens

logger = init_logger(__name__)

Tensors = dict[str, Tensor]

ARCHITECTURES = (
    "GPT2LMHeadModel", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM", "LlamaForCausalLM",
    "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
)  # fmt: skip
"""Models whose head vLLM leaves to a quantization method, without changing its outputs."""


class CodedHead(QuantizeMethodBase):
    """Hidden states → bit logits → logits of all tokens, by the head and the decision layer of a checkpoint."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.description = Description.from_dict(config.entry)
        self.received: Tensors = {}

    def create_weights(self, layer: Any, *_: Any, params_dtype: torch.dtype, **__: Any) -> None:
        expect_vocabulary(self.description, layer.org_vocab_size)
        self.dtype, self.device = params_dtype, torch.get_default_device()
        layer.head, layer.decision = built(self.description, layer.embedding_dim, params_dtype)
        layer.load_weights = self.receive

    def receive(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Keep the loader's tensors, by their names within the head, until all files are read."""
        found = dict(weights)
        self.received |= found
        return set(found)

    def process_weights_after_loading(self, layer: Any) -> None:
        _expect_description(self.received, f"decision.{WRITTEN}", self.config.entry)
        tensors = {
            name if name.startswith("decision.") else f"head.{name}": values
            for name, values in self.received.items()
            if name != "weight" or values.numel()  # an empty one keeps stock models from loading
        }
        _fill(layer, tensors)
        for part in (layer.head, layer.decision.corrections, layer.decision.chain):
            if part is not None:
                part.to(self.dtype)
        layer.to(self.device).eval().requires_grad_(False)
        check_loaded(layer, self.description)
        self.received = {}

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`(rows, hidden)` → `(rows, V)`, padded as vLLM pads; −∞ except for the best tokens where these are enough."""
        outputs, classes = layer.head(x), self.description.codebook.num_classes
        count = None if self.config.few is None else self.config.few.of(len(x))
        if count is None or layer.decision.choice().impl != "scan":
            return _padded(layer, layer.decision.logits(outputs))
        found = layer.decision.best(outputs, min(count, classes))
        return _padded(layer, spread(found.ids, found.scores, classes))


class ScreenedHead(UnquantizedEmbeddingMethod):
    """The stock head, plus a code that finds the tokens worth scoring where these are enough."""

    supports_pre_processed_weights = False
    screened: ScreenedLinear | None = None
    """None where all logits are computed."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.settings = Settings.from_dict(config.entry[FIELD])
        self.received: Tensors = {}
        self.has_rows = False

    def create_weights(self, layer: Any, *args: Any, **options: Any) -> None:
        shape = (layer.org_vocab_size, layer.embedding_dim)
        expect_head(self.settings, shape, f"of shape {shape}")
        super().create_weights(layer, *args, **options)
        layer.load_weights = lambda weights: self.receive(layer, weights)

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        self.has_rows = True
        return super().tie_weights(layer, embed_tokens)

    def receive(self, layer: Any, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the rows of an untied head as vLLM does; keep the tensors of the code."""
        found = dict(weights)
        self.received |= found
        rows = self.received.pop("weight", None)
        if rows is not None:
            layer.weight_loader(layer.weight, rows)
            self.has_rows = True
        return set(found)

    def process_weights_after_loading(self, layer: Any) -> None:
        if not self.has_rows:
            refuse_missing({f"{layer.prefix}.weight"})
        super().process_weights_after_loading(layer)
        _expect_description(self.received, f"screen.{WRITTEN}", self.config.entry)
        with torch.device("meta"):
            held = nn.ModuleDict({"screen": Screen(self.settings)})
        _fill(held, self.received)
        check_integers(held)
        self.received = {}
        rows = layer.weight[: self.settings.num_classes].detach()
        screen: Any = held["screen"]
        obstacle = self.obstacle(rows, screen)
        if obstacle is not None:
            logger.warning("The dense head computes all logits: %s.", obstacle)
            return
        screen.prepare(rows, None)
        self.screened = ScreenedLinear.of(rows, screen)

    def obstacle(self, rows: Tensor, screen: Screen) -> str | None:
        """Why the code cannot be used."""
        if self.config.few is None:
            return "start with --logits-processors codehead.vllm.requests:FewTokens, so that greedy and top_k need few"
        return screen.obstacle(rows)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`(rows, hidden)` → `(rows, V)`, padded as vLLM pads; −∞ except for candidates where these are enough."""
        count = None if self.screened is None else self.config.few.of(len(x))
        if self.screened is None or count is None or bias is not None:
            return super().apply(layer, x, bias)
        with selecting(self.screened, Selection(count, 0, [], sampling=False, least=count)):
            return _padded(layer, self.screened(x[:, None])[:, -1])


def _fill(module: nn.Module, tensors: Tensors) -> None:
    """Put the tensors of a checkpoint into a module on the meta device; a CheckpointError unless they fit."""
    try:
        left = module.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the tensors of the checkpoint do not fit quantization_config in config.json ({error}); restore both from "
            "the original checkpoint"
        ) from error
    refuse_missing({name for name in left.missing_keys if not re.search(SEALS, name)})
    if left.unexpected_keys:
        raise CheckpointError(
            f"tensor {left.unexpected_keys[0]} of the checkpoint does not fit quantization_config in "
            "config.json; restore config.json and the weights from the original checkpoint"
        )


def _expect_description(tensors: Tensors, name: str, entry: dict[str, Any]) -> None:
    """Compare the entry in `config.json` with its copy among the tensors, and remove the copy."""
    kept = tensors.pop(name, None)
    if kept is not None:
        expect_written(entry, kept)


def _padded(layer: Any, logits: Tensor) -> Tensor:
    """Logits `(rows, V)` with −∞ for the rows that vLLM adds to a head."""
    return F.pad(logits, (0, layer.num_embeddings_per_partition - logits.shape[-1]), value=-torch.inf)


@register_quantization_config(METHOD)
class CodeheadConfig(QuantizationConfig):
    """The entry `quantization_config` of a coded or screened checkpoint, in the form that vLLM expects.

    Raises:
        ConfigurationError: the architecture, or the way it is served, is not supported.
        CheckpointError: the entry or the files differ from those that were saved.
    """

    few: FewTokens | None = None
    """Set by the logits processor `FewTokens`, in the process where the model is."""

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__()
        self.entry = entry

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CodeheadConfig:
        return cls(config)

    def get_name(self) -> str:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Check what is known before the model is built: its architecture, and the checksums of local files."""
        unknown = sorted({*(getattr(hf_config, "architectures", None) or ())} - {*ARCHITECTURES})
        if unknown:
            raise ConfigurationError(
                f"{unknown[0]} cannot be served with a codehead decision layer: vLLM may not let a plug-in "
                "replace its head (OPT), or changes the head's output (Granite, Cohere), and it is untested. Use "
                f"transformers (`transformers serve`), or one of {', '.join(ARCHITECTURES)}"
            )
        integrity.verify(sorted(Path(model_name).glob(integrity.WEIGHTS.removesuffix("*"))))

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, ParallelLMHead):
            return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None
        if layer.tp_size > 1:
            raise ConfigurationError(
                f"tensor_parallel_size={layer.tp_size} would split the rows of the head over processes, and codewords "
                "are read as a whole; omit tensor_parallel_size, or use pipeline_parallel_size"
            )
        return ScreenedHead(self) if FIELD in self.entry else CodedHead(self)

    def get_checkpoint_weight_mapper(self) -> WeightsMapper:
        """Moves the decision layer, stored beside the head, into the head; some models put a prefix before it."""
        return WeightsMapper(orig_to_new_regex={regex.compile(r"^(?:\w+\.)?decision\."): "lm_head.decision."})


def register() -> None:
    """vLLM calls this in every process; the decorator above has done the work.

    Registration happens on import, because vLLM reports a plug-in that cannot be imported and continues.
    """
