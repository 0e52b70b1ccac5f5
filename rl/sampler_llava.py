"""LLaVA-OneVision for vLLM: several images of a prompt as the model was trained on them, and LoRA on its language model.

vLLM's own processor cuts each of several images into tiles, as if it were the prompt's only one: ten times the tokens, and
another prompt than the Hugging Face processor makes of the same images. vLLM's own class takes no adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vllm.model_executor.models.interfaces import SupportsLoRA
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdate


class OverviewsOfSeveral(LlavaOnevisionMultiModalProcessor):
    """One image: an overview and tiles, as vLLM does it. Several: an overview and one end mark each."""

    def _get_hf_mm_inputs(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> Any:
        inputs = super()._get_hf_mm_inputs(mm_items, hf_kwargs)
        if "images" in inputs.hf_data:
            # A list in a list: the images of one prompt.
            inputs.hf_data["images"] = [inputs.hf_data["images"]]
        return inputs

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        updates: Sequence[PromptUpdate] = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        if mm_items.get_all_counts().get("image", 0) <= 1:
            return updates
        processor = self.info.get_hf_processor(**hf_processor_mm_kwargs)
        tokens = processor.num_image_tokens + 1 - (processor.vision_feature_select_strategy == "default")
        placeholder = self.info.get_hf_config().image_token_index
        overview = PromptReplacement("image", target=[placeholder], replacement=[placeholder] * tokens)
        return [overview, *(update for update in updates if update.modality != "image")]

    def _cached_apply_hf_processor(self, inputs: Any, timing_ctx: Any) -> Any:
        """Never from the processor's cache, which asks for missing images one by one, as if each were alone.

        An image has another name among others than alone, or vLLM would take one's features for the other's.
        """
        result = self._apply_hf_processor(inputs, timing_ctx)
        hashes = result.hashes.get("image", [])
        if len(hashes) > 1:
            result = result._replace(hashes={**result.hashes, "image": [f"{name}-overview" for name in hashes]})
        return result


@MULTIMODAL_REGISTRY.register_processor(
    OverviewsOfSeveral, info=LlavaOnevisionProcessingInfo, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class LlavaOnevision(LlavaOnevisionForConditionalGeneration, SupportsLoRA):
    """vLLM's model under another prompt processor; adapters on the language model, as vLLM has them for LLaVA-NeXT."""

    packed_modules_mapping: ClassVar = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def get_mm_mapping(self) -> MultiModelKeys:
        """Where vLLM finds the language model."""
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="multi_modal_projector", tower_model="vision_tower"
        )
