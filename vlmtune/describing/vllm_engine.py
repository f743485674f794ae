"""vLLM as the engine: a server's scheduler for batch work on a GPU, where it is installed.

It is no dependency of this project: it brings a torch of its own. `describe.engine: vllm`.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlmtune.config.model import ModelConfig
from vlmtune.encoding import write_prompt
from vlmtune.errors import UserError
from vlmtune.evaluation.batches import AUTO
from vlmtune.evaluation.generation import WrittenText
from vlmtune.models.describer import Describer
from vlmtune.models.processor import load_processor

if TYPE_CHECKING:
    from datasets import Dataset

INSTALL = "Install it with `pip install vllm`, or set describe.engine to transformers."
ROWS_AT_ONCE = 256  # whose pictures are in memory; vLLM itself decides how many it works on
# Options of transformers.GenerationConfig -> of vllm.SamplingParams.
OPTIONS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}


class VllmWriter:
    """Writes descriptions with a merged model.

    Raises:
        UserError: vLLM is not installed, the model is not merged, or an option means nothing to it.
    """

    def __init__(
        self,
        describer: Describer,
        config: ModelConfig,
        options: dict[str, Any],
        batch_size: int | str,
    ) -> None:
        sampling = sampling_options(options)
        try:
            from vllm import LLM, SamplingParams
        except ImportError:
            raise UserError("describe.engine is vllm, which is not installed.", INSTALL) from None
        if describer.merged.folder is None:
            raise UserError(
                f"vllm describes with a merged model only: {describer.merged.record.reason}.",
                "Set describe.engine to transformers, or train with merge.enabled.",
            )
        folder = str(describer.merged.folder)
        self.processor = load_processor(folder, None, config)
        self.rows_at_once = ROWS_AT_ONCE if batch_size == AUTO else int(batch_size)
        self.sampling = SamplingParams(**sampling)
        self.llm = LLM(model=folder, dtype="bfloat16", trust_remote_code=config.trust_remote_code)

    def __call__(self, rows: "Dataset") -> Iterator[list[WrittenText]]:
        """Describe rows with `prompt` and `images`, some at a time."""
        for start in range(0, len(rows), self.rows_at_once):
            batch = rows[start : start + self.rows_at_once]
            requests = [
                self._request(prompt, images)
                for prompt, images in zip(batch["prompt"], batch["images"], strict=True)
            ]
            yield self._write(start, requests)

    def _write(self, start: int, requests: list[dict[str, Any]]) -> list[WrittenText]:
        began = time.monotonic()
        answers = self.llm.generate(requests, self.sampling, use_tqdm=False)
        share = (time.monotonic() - began) / len(requests)
        written = [answer.outputs[0] for answer in answers]
        return [written_text(start + number, each, share) for number, each in enumerate(written)]

    def _request(self, prompt: list[dict[str, str]], images: list[Any]) -> dict[str, Any]:
        """Token ids of the very prompt of training; vLLM expands the pictures' places."""
        text, pictures = write_prompt(self.processor, prompt, images)
        tokens = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return {"prompt_token_ids": tokens, "multi_modal_data": {"image": pictures}}


def written_text(row: int, output: Any, seconds: float) -> WrittenText:
    """From a vllm.CompletionOutput; it finished for `length` where max_tokens was reached."""
    cut = output.finish_reason == "length"
    return WrittenText(row, output.text.strip(), len(output.token_ids), cut, seconds)


def sampling_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of transformers.GenerationConfig under vLLM's names.

    Raises:
        UserError: one of them has no counterpart.
    """
    asked = {name: value for name, value in options.items() if value is not None}
    greedy = not asked.pop("do_sample", False)
    unknown = [name for name in asked if name not in OPTIONS]
    if unknown:
        raise UserError(
            f"describe.engine vllm has nothing for generation.{unknown[0]}.",
            "Leave it out, or set describe.engine to transformers.",
        )
    sampling = {OPTIONS[name]: value for name, value in asked.items()}
    return sampling | {"temperature": 0.0} if greedy else sampling
