"""A model's picture features: computed by the model itself, or handed in ready-made.

Every vision-language model of transformers asks its own `get_image_features` for them. That one
public method is what is replaced while training, so nothing here knows a model family.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What a model reads from its vision tower's output: the features, and for Qwen3-VL those of
# some earlier layers.
FEATURES, DEEPSTACK = "pooler_output", "deepstack_features"
PICTURE_INPUT = "pixel_values"

PictureInputs = dict[str, torch.Tensor]
PictureFeatures = dict[str, torch.Tensor]  # name -> [tokens, hidden]


def trainable_outside_language_model(model: "PreTrainedModel") -> list[str]:
    """Names of trainable parameters that can change a picture's features: all but those of the
    decoder and the head. Empty means that the features stay the same while training."""
    decoder = {id(weight) for weight in model.get_decoder().parameters()}
    head = model.get_output_embeddings()
    if head is not None:
        decoder |= {id(weight) for weight in head.parameters()}
    return [
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and id(weight) not in decoder
    ]


def _tower(model: "PreTrainedModel") -> list[torch.nn.Module]:
    """The modules beside the decoder: vision tower and projector."""
    language = [model.get_decoder(), model.get_input_embeddings()]
    stays = {id(module) for part in language for module in part.modules()}
    return [
        child
        for child in model.base_model.children()
        if not any(id(module) in stays for module in child.modules())
    ]


class PictureEncoder:
    """Stands between a model and its vision tower.

    Args:
        model: the vision-language model, without PEFT's wrapper.

    Raises:
        TypeError: the model has no `get_image_features`.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self.inner: Any = model.base_model
        if not hasattr(self.inner, "get_image_features"):
            raise TypeError(f"{type(self.inner).__name__} has no get_image_features")
        self._own: Any = self.inner.get_image_features
        self.frozen = not trainable_outside_language_model(model)
        self.calls = 0  # how often the vision tower ran
        self._given: list[PictureFeatures] | PictureInputs | None = None
        self._like: Any = None  # an output of the vision tower, as a pattern for given features
        self._tower = _tower(model)
        self._rests = False  # whether the tower has left the card
        self.device = model.device
        self.inner.get_image_features = self._get_image_features

    def remove(self) -> None:
        """Leave the model as it was."""
        self._wake()
        del self.inner.get_image_features

    def rest(self) -> None:
        """Take the vision tower off the card; it comes back by itself when it is needed."""
        if self.frozen and self.device.type == "cuda":
            self._move_tower(torch.device("cpu"))
            self._rests = True
            torch.cuda.empty_cache()

    def _wake(self) -> None:
        if self._rests:
            self._move_tower(self.device)
            self._rests = False

    def _move_tower(self, device: torch.device) -> None:
        for module in self._tower:
            module.to(device)

    @contextmanager
    def given(self, pictures: "list[PictureFeatures] | PictureInputs | None") -> Iterator[None]:
        """Within the block, forwards take these features, or compute them from these inputs."""
        self._given = pictures
        try:
            yield
        finally:
            self._given = None

    def placeholder(self) -> torch.Tensor:
        """What to pass as `pixel_values`, so that the model asks for features at all."""
        return torch.empty(0, device=self.device)

    def _get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Called by the model's forward."""
        if self._given is None:
            return self._own(*args, **kwargs)
        if isinstance(self._given, dict):
            # Without what belongs to the language model: bounds of samples, positions.
            return self._compute(self._given)
        return self._assemble(self._given)

    def _compute(self, inputs: PictureInputs) -> Any:
        self.calls += 1
        self._wake()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            output = self._own(**inputs, return_dict=True)
        self._like = self._like or copy.copy(output)
        return output

    def encode(self, inputs: PictureInputs, pictures: int) -> list[PictureFeatures]:
        """Features of some pictures, each by itself.

        Args:
            inputs: what the processor made of them.
            pictures: how many there are.
        """
        with torch.no_grad():
            return split_features(self._compute(inputs), pictures)

    def _assemble(self, features: list[PictureFeatures]) -> Any:
        """The output that the vision tower would have returned."""
        assert self._like is not None, "encode at least one picture first"
        output = copy.copy(self._like)
        for name in (FEATURES, DEEPSTACK):
            if name in output:
                output[name] = _join(self._like[name], features, name)
        return output


def split_features(output: Any, pictures: int) -> list[PictureFeatures]:
    """A vision tower's output for several pictures, as one mapping for each picture."""
    parts = _pieces(output[FEATURES], pictures)
    sizes = [len(part) for part in parts]
    features: list[PictureFeatures] = [{FEATURES: part} for part in parts]
    for level, value in enumerate(output.get(DEEPSTACK) or []):
        pieces = value.split(sizes) if isinstance(value, torch.Tensor) else value
        for picture, piece in zip(features, pieces, strict=True):
            picture[f"{DEEPSTACK}.{level}"] = piece
    return features


def _pieces(value: Any, pictures: int) -> list[torch.Tensor]:
    """[pictures, tokens, hidden] or a list of [tokens, hidden], one for each picture."""
    pieces = list(value)
    if len(pieces) != pictures:
        raise ValueError(f"the vision tower made features of {len(pieces)} pictures: {pictures}?")
    return pieces


def _join(like: Any, features: list[PictureFeatures], name: str) -> Any:
    """The pictures' features in the shape in which the model returned those of others."""
    if name == DEEPSTACK:
        levels = range(len(like))
        return [
            _in_shape_of(like[level], [each[f"{name}.{level}"] for each in features])
            for level in levels
        ]
    if isinstance(like, torch.Tensor):
        return torch.stack([each[name] for each in features])
    return type(like)(each[name] for each in features)


def _in_shape_of(like: Any, parts: list[torch.Tensor]) -> Any:
    return torch.cat(parts) if isinstance(like, torch.Tensor) else type(like)(parts)
