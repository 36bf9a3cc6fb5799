"""What vLLM asks of a quantization method, answered for the head alone: all other layers are stock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import regex
import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.utils import WeightsMapper

from codehead.errors import ConfigurationError
from codehead.models import integrity
from codehead.models.registration import METHOD
from codehead.screening.model import FIELD
from codehead.vllm.heads import CodedHead, ScreenedHead
from codehead.vllm.requests import FewTokens

ARCHITECTURES = (
    "GPT2LMHeadModel", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM", "LlamaForCausalLM",
    "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
)  # fmt: skip
"""Models of which vLLM hands the head to a quantization method and leaves its outputs as they are."""


@register_quantization_config(METHOD)
class CodeheadConfig(QuantizationConfig):
    """The entry `quantization_config` of a coded or screened checkpoint, as vLLM wants to hold it.

    Raises:
        ConfigurationError: the architecture or the way it is served was not made to work.
        CheckpointError: the entry or the files are not those that were saved.
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
                f"{unknown[0]} cannot be served with a codehead decision layer: vLLM may not hand its head to a "
                "plug-in (OPT), or changes what the head gives (Granite, Cohere), and nobody has looked. Use "
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
        kind: Any = ScreenedHead if FIELD in self.entry else CodedHead
        method: QuantizeMethodBase = kind(self)
        return method

    def get_checkpoint_weight_mapper(self) -> WeightsMapper:
        """The decision layer, which lies beside the head in files, goes to it; some models put a prefix before it."""
        return WeightsMapper(orig_to_new_regex={regex.compile(r"^(?:\w+\.)?decision\."): "lm_head.decision."})


def register() -> None:
    """What vLLM calls in every process; the decorator above has done it.

    So it is on import, because vLLM reports a plug-in that cannot be imported, and goes on.
    """
