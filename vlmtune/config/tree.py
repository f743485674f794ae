"""The whole configuration of a run."""

from typing import Self

from pydantic import Field, model_validator

from vlmtune.config.data import DESCRIPTION, PICTURE, DataConfig, PromptConfig
from vlmtune.config.describing import DescribeConfig
from vlmtune.config.evaluation import EvaluationConfig, GateConfig
from vlmtune.config.forwarded import (
    BitsAndBytesOptions,
    GenerationOptions,
    LoraOptions,
    SFTOptions,
)
from vlmtune.config.model import ModelConfig
from vlmtune.config.publishing import HubConfig, MergeConfig, TrackingConfig
from vlmtune.config.section import Section
from vlmtune.config.training import (
    ComputeConfig,
    OutputConfig,
    PackingConfig,
    VisionCacheConfig,
)


class FinetuneConfig(Section):
    """Everything that decides what a run does. `quantization`, `lora`, `training` and
    `generation` are handed on under their own names, so their libraries' documentation holds.
    """

    seed: int = Field(42, ge=0, lt=2**32, description="of the LoRA weights and the row order")
    data: DataConfig
    prompt: PromptConfig
    model: ModelConfig
    quantization: BitsAndBytesOptions = Field(description="transformers.BitsAndBytesConfig")
    lora: LoraOptions = Field(description="peft.LoraConfig")
    training: SFTOptions = Field(description="trl.SFTConfig")
    packing: PackingConfig = PackingConfig()
    compute: ComputeConfig = ComputeConfig()
    vision_cache: VisionCacheConfig = VisionCacheConfig()
    generation: GenerationOptions = Field(
        {"max_new_tokens": 256, "do_sample": False}, description="transformers.GenerationConfig"
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    describe: DescribeConfig = DescribeConfig()
    merge: MergeConfig = MergeConfig()
    hub: HubConfig = HubConfig()
    tracking: TrackingConfig = TrackingConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _prompt_names_mapped_fields(self) -> Self:
        known = [field for field in self.data.columns if field not in (PICTURE, DESCRIPTION)]
        for field in self.prompt.fields:
            if field == DESCRIPTION:
                raise ValueError("prompt.template gives the answer away: it names {description}")
            if field not in known:
                raise ValueError(
                    f"prompt.template names the field {{{field}}}, which data.columns lacks "
                    f"(it has {', '.join(known) or 'none'})"
                )
        return self

    @model_validator(mode="after")
    def _copied_fields_are_mapped(self) -> Self:
        named = {
            "evaluation.copied_fields": self.evaluation.copied_fields,
            "evaluation.rules.named_fields": self.evaluation.rules.named_fields,
        }
        for key, fields in named.items():
            for field in fields:
                if field not in self.data.columns:
                    raise ValueError(f"{key} names {field!r}, which data.columns lacks")
        return self

    @model_validator(mode="after")
    def _merged_push_needs_a_merge(self) -> Self:
        if self.hub.repo_id and "merged" in self.hub.push and not self.merge.enabled:
            raise ValueError("hub.push names the merged model, but merge.enabled is false")
        return self
