"""How many tokens a row takes, counted by the model's own processor and without its weights."""

import math
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmtune.config.data import DESCRIPTION, PromptConfig
from vlmtune.prompting import build_completion, build_prompt

if TYPE_CHECKING:
    from transformers import ProcessorMixin

PROBES = 3  # picture sizes on which the quick count is held against the real one
PROBED_PIXELS = 4_000_000  # encoding a larger one would cost hundreds of megabytes


class PictureSize(NamedTuple):
    """What the processor makes of a picture: its tokens, and its size after the resize."""

    tokens: int
    width: int
    height: int


class RowSizer:
    """Counts tokens as training will see them: prompt, pictures and description together.

    Args:
        processor: of the base model, with the config's picture limits set.
        prompt: how a row becomes a prompt.
        max_tokens: a row's limit; None takes the tokenizer's.
    """

    def __init__(
        self, processor: "ProcessorMixin", prompt: PromptConfig, max_tokens: int | None
    ) -> None:
        self.processor: Any = processor
        self.prompt = prompt
        self.max_tokens = max_tokens or processor.tokenizer.model_max_length
        self._sizes: dict[tuple[int, int], PictureSize] = {}
        self._probed = 0
        self._quick = hasattr(processor, "_get_num_multimodal_tokens")

    def control_token(self, text: str) -> str | None:
        """A token of the chat format, such as `<|im_end|>`, that a text holds; None as a rule."""
        found = self._control_tokens.search(text)
        return found.group() if found else None

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        tokenizer = self.processor.tokenizer
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        names = sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def text_tokens(self, rows: Sequence[tuple[dict[str, str], int]]) -> list[int]:
        """Tokens of conversations, a picture counted as the tokens that stand for it unexpanded.

        Args:
            rows: fields (with the description, if there is one) and number of pictures of each row.
        """
        texts = [self._conversation(fields, pictures) for fields, pictures in rows]
        encoded = self.processor.tokenizer(texts, add_special_tokens=False)
        return [len(tokens) for tokens in encoded["input_ids"]]

    def _conversation(self, fields: dict[str, str], pictures: int) -> str:
        """The text of prompt and description, as TRL's collator writes it."""
        from trl.data_utils import apply_chat_template, prepare_multimodal_messages

        placeholders: Any = [None] * pictures
        prompt: Any = build_prompt(self.prompt, fields)
        completion: Any = build_completion(fields.get(DESCRIPTION, ""))
        example = {
            "prompt": prepare_multimodal_messages(prompt, images=placeholders),
            "completion": prepare_multimodal_messages(completion),
        }
        written = apply_chat_template(example, self.processor)
        return str(written["prompt"] + written["completion"])

    def picture(self, width: int, height: int) -> PictureSize:
        """Tokens and size after the resize of a picture of this size.

        Raises:
            ValueError: the processor does not take such a picture.
        """
        key = (width, height)
        if key not in self._sizes:
            self._sizes[key] = self._measure(width, height)
        return self._sizes[key]

    def _measure(self, width: int, height: int) -> PictureSize:
        """Most processors can tell without touching a pixel; the first sizes are held against
        what a picture really becomes, and one difference is enough never to trust it again."""
        quick = self._quick_count(width, height) if self._quick else None
        if quick and (self._probed >= PROBES or width * height > PROBED_PIXELS):
            return quick
        real = self._encode_blank(width, height)
        self._probed += 1
        self._quick = self._quick and quick == real
        return real

    def _quick_count(self, width: int, height: int) -> PictureSize | None:
        counted = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        tokens, patches = counted.num_image_tokens, counted.num_image_patches
        patch = getattr(self.processor.image_processor, "patch_size", None)
        merged = getattr(self.processor.image_processor, "merge_size", 1)  # patches a side
        if not tokens or not patches or not isinstance(patch, int):
            return None
        columns, rows = nearest_grid(patches[0] // merged**2, width / height)
        return PictureSize(tokens[0], columns * merged * patch, rows * merged * patch)

    def _encode_blank(self, width: int, height: int) -> PictureSize:
        from PIL import Image

        blank = Image.new("RGB", (width, height))
        text = self._conversation({**dict.fromkeys(self.prompt.fields, ""), DESCRIPTION: ""}, 1)
        encoded = self.processor(
            text=[text], images=[[blank]], add_special_tokens=False, return_tensors="pt"
        )
        plain = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = encoded["input_ids"].shape[1] - len(plain) + 1
        return PictureSize(tokens, *self._resized(encoded))

    def _resized(self, encoded: Any) -> tuple[int, int]:
        """Width and height after the resize, read from what the processor returns."""
        if "image_grid_thw" in encoded:  # pictures cut into a grid of patches
            _, rows, columns = encoded["image_grid_thw"][0].tolist()
            patch = self.processor.image_processor.patch_size
            return columns * patch, rows * patch
        if "image_sizes" in encoded:
            height, width = encoded["image_sizes"][0].tolist()
            return width, height
        height, width = encoded["pixel_values"].shape[-2:]
        return width, height


def nearest_grid(patches: int, aspect: float) -> tuple[int, int]:
    """(columns, rows) whose product is `patches`, and whose ratio is the nearest to `aspect`."""
    divisors = [each for each in range(1, int(patches**0.5) + 1) if patches % each == 0]
    narrow = [(each, patches // each) for each in divisors]
    wide = [(columns, rows) for rows, columns in narrow]
    return min(narrow + wide, key=lambda grid: abs(math.log(grid[0] / grid[1] / aspect)))
