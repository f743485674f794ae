"""Packed training from end to end, on the demo's tiny model and real TRL, PEFT and bitsandbytes."""

import logging
import shutil
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.tolerance import rounding_bound
from tests.unit.conftest import Demo
from vlmtune.config.training import PackingConfig
from vlmtune.errors import UserError
from vlmtune.models.fp8 import FP8

# As the demo's model is deep, some 60 roundings to bf16 one after the other go into a token's loss,
# in each of two runs; a step's loss is the mean over 300 tokens and more.
LOSS_ROUNDING = rounding_bound(torch.bfloat16, 2 * 60 / 300)


def losses(record: Any) -> list[float]:
    """The loss of each step."""
    return [log["loss"] for log in record.log_history if "loss" in log]


def tokens_seen(adapter: Any) -> list[float]:
    """Tokens trained on up to each step."""
    return [log["num_tokens"] for log in adapter.record.log_history if "loss" in log]


class Killed(Exception):
    """Stands for the end of the process."""


class KillAfter(TrainerCallback):
    """Ends the training once a step is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer."""
        if state.global_step == self.step:
            raise Killed


def test_resuming_in_mid_epoch_ends_in_the_same_bits(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, in the second epoch, after a kill."""
    saving = {"max_steps": 10, "save_strategy": "steps", "save_steps": 4}
    straight = demo.adapter(demo.plan("straight", training=saving))
    plan = demo.plan("resumed", training=saving)
    with monkeypatch.context() as patched:
        import vlmtune.training.trainer as module

        build = module.build_trainer

        def build_and_kill(*args: Any) -> Any:
            trainer = build(*args)
            trainer.add_callback(KillAfter(9))
            return trainer

        patched.setattr(module, "build_trainer", build_and_kill)
        with pytest.raises(Killed):
            demo.adapter(plan)
    resumed = demo.adapter(plan)
    assert resumed.record.resumed_from == 8
    assert losses(resumed.record)[-2:] == losses(straight.record)[-2:]
    tokens = [
        [log.get("num_tokens") for log in run.record.log_history] for run in (straight, resumed)
    ]
    assert tokens[0] == tokens[1]
    assert resumed.content_hash == straight.content_hash


def test_the_same_bits_whoever_filled_the_cache(demo: Demo) -> None:
    """Fresh features, ones from the cache, ones that a training on other rows has left, and ones
    that no cache keeps."""
    first = demo.adapter(demo.plan("first"))
    cached = demo.adapter(demo.plan("cached"))
    others = demo.plan("others", features=demo.folder / "shared")
    demo.adapter(others, demo.train.select(range(20, 48)))
    shared = demo.adapter(demo.plan("shared", features=demo.folder / "shared"))
    computed = demo.adapter(demo.plan("computed", features=None))
    hashes = {each.content_hash for each in (first, cached, shared, computed)}
    assert len(hashes) == 1


def test_damaged_features_are_computed_again(demo: Demo, caplog: pytest.LogCaptureFixture) -> None:
    """Flipped, cut, swapped: the adapter is the same bit for bit, and one warning counts them."""
    whole = demo.adapter(demo.plan("whole", features=None))
    demo.trainer(demo.plan("prepared")).layout.close()
    files = sorted((demo.folder / "features").rglob("*.safetensors"))
    for at, path in enumerate(files):
        content = bytearray(path.read_bytes())
        if at % 3 == 0:
            content[at * 7 % len(content)] ^= 1
        elif at % 3 == 1:
            del content[-1:]
        else:
            content = bytearray(files[0].read_bytes())
        path.write_bytes(content)
    damaged = demo.adapter(demo.plan("damaged"))
    unread = [path for path in files if path.exists()]
    assert len(files) == 56 and len(unread) == 8  # the held-out ones
    (warning,) = (each.getMessage() for each in caplog.records if each.levelno == logging.WARNING)
    assert warning.startswith("48 files in the cache of picture features were damaged")
    assert damaged.content_hash == whole.content_hash
    print(warning)


def test_pictures_are_encoded_one_by_one_where_others_change_their_bits(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out on the first ones; else they go through the vision tower together."""
    from vlmtune.models.vision import FEATURES, PictureEncoder

    own, sizes = PictureEncoder.encode, []

    def encode(self: Any, inputs: Any, pictures: int) -> Any:
        sizes.append(pictures)
        found = own(self, inputs, pictures)
        return [{**each, FEATURES: each[FEATURES] + (pictures > 1)} for each in found]

    def stored(name: str) -> dict[str, bytes]:
        demo.trainer(demo.plan(name, features=demo.folder / f"{name}_features")).layout.close()
        files = (demo.folder / f"{name}_features").rglob("*.safetensors")
        return {path.name: path.read_bytes() for path in files}

    expected = stored("equal")
    monkeypatch.setattr(PictureEncoder, "encode", encode)
    assert stored("unequal") == expected and len(expected) == 56
    first = next(at for at, size in enumerate(sizes) if size == 1)
    assert sizes[first - 1] > 1 and set(sizes[first : first + 48]) == {1}


def test_input_workers_change_nothing(demo: Demo) -> None:
    """Two processes prepare and collate just what one does."""
    alone = demo.adapter(demo.plan("alone"))
    helped = demo.adapter(demo.plan("helped", training={"dataloader_num_workers": 2}))
    assert alone.content_hash == helped.content_hash


def test_the_vision_tower_rests_while_training(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared once; no picture is decoded and no feature computed in any epoch."""
    trainer = demo.trainer(demo.plan(training={"max_steps": 14}))
    pictures = trainer.layout.pictures
    calls = pictures.calls
    decoded: list[Any] = []
    source = trainer.layout.collator.sources["train"]
    monkeypatch.setattr(type(source), "__getitem__", recording(type(source), source, decoded))
    trainer.train()
    assert trainer.state.epoch > 2 and calls > 0
    assert pictures.calls == calls and not decoded


def recording(dataset: type, watched: Any, decoded: list[Any]) -> Any:
    """`__getitem__` that notes what is read from one data set."""
    own: Any = dataset.__getitem__

    def get(self: Any, key: Any) -> Any:
        if self is watched:
            decoded.append(key)
        return own(self, key)

    return get


def test_lost_features_are_computed_again(demo: Demo) -> None:
    """Another run may have thrown them out of the cache in the meantime."""
    whole = demo.adapter(demo.plan("whole"))
    trainer = demo.trainer(demo.plan("lost"))
    calls = trainer.layout.pictures.calls
    shutil.rmtree(demo.folder / "features")
    trainer.train()
    assert trainer.layout.pictures.calls > calls
    assert losses(trainer.state) == losses(whole.record)


def test_packed_and_padded_losses_agree(demo: Demo) -> None:
    """All rows in one step, so that both see the same ones."""
    options = {
        "per_device_train_batch_size": 48,
        "gradient_accumulation_steps": 1,
        "max_steps": 6,
    }
    lora = {"lora_dropout": 0.0}
    large = PackingConfig(max_tokens=10_000)
    packed = demo.adapter(demo.plan("packed", training=options, lora=lora, packing=large))
    off = PackingConfig(packed=False)
    padded = demo.adapter(demo.plan("padded", training=options, lora=lora, packing=off))
    assert packed.record.layout["packed"] and not padded.record.layout["packed"]
    assert losses(packed.record) == pytest.approx(losses(padded.record), rel=LOSS_ROUNDING)
    assert losses(packed.record)[-1] < losses(packed.record)[0] - 0.5


def test_tokens_are_counted(demo: Demo) -> None:
    """A pack counts for its tokens, not for one."""
    trainer = demo.trainer(demo.plan(training={"max_steps": 12}))
    trainer.train()
    tokens = sum(trainer.layout.tokens)
    last = [log for log in trainer.state.log_history if "loss" in log][-1]
    assert last["num_tokens"] == trainer.state.num_input_tokens_seen == 2 * tokens
    assert trainer.state.total_flos == 6 * 2 * tokens * trainer.model.num_parameters(
        exclude_embeddings=True
    )
    assert last["fill"] == 1.0 and 0 <= last["data_wait"] < 1
    ratio = last["tokens_per_second"] / last["samples_per_second"]
    assert min(trainer.layout.tokens) < ratio < max(trainer.layout.tokens)


def test_a_model_that_refuses_packs_is_trained_padded(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says why."""
    import vlmtune.models.attention as attention

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("no bounds here")

    monkeypatch.setattr(attention, "_sample_by_sample", refuse)
    caplog.set_level(logging.INFO, "vlmtune")
    adapter = demo.adapter(demo.plan(training={"max_steps": 1}))
    assert adapter.record.layout["packed"] is False
    assert "padded batches: NotImplementedError: no bounds here" in caplog.text


def test_a_row_larger_than_a_pack(demo: Demo) -> None:
    """Names the row and what to set."""
    with pytest.raises(UserError, match=r"tokens is larger than a pack of 50: row \w+"):
        demo.adapter(demo.plan(packing=PackingConfig(max_tokens=50)))


def test_a_full_card(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to set, and to what."""
    from vlmtune.training.trainer import CatalogTrainer

    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CatalogTrainer, "training_step", full)
    with pytest.raises(UserError) as raised:
        demo.adapter(demo.plan())
    assert "gradient_checkpointing=true" in str(raised.value)
    assert "packing.max_tokens=" in str(raised.value)


def test_a_trained_vision_tower_is_not_cached(demo: Demo) -> None:
    """Its features change with each step."""
    lora = {"target_modules": r".*(visual.*\.(qkv|fc1)|language_model.*\.(q|v)_proj)"}
    trainer = demo.trainer(demo.plan(lora=lora, training={"max_steps": 2}))
    assert trainer.layout.collator.cache is None
    calls = trainer.layout.pictures.calls
    trainer.train()
    assert trainer.layout.pictures.calls == calls + 2 * trainer.args.gradient_accumulation_steps
    moved = [
        float(weight.detach().abs().sum())
        for name, weight in trainer.model.named_parameters()
        if "visual" in name and "lora_B" in name
    ]
    assert moved and all(moved)


def test_rows_without_pictures_can_be_packed(demo: Demo) -> None:
    """Among others, and alone."""
    bare = demo.train.with_format(None).map(lambda row: {"images": []})
    trainer = demo.trainer(demo.plan(training={"max_steps": 2}), bare)
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.layout.facts["packed"]


def test_frozen_weights_in_fp8_train_alike(demo: Demo) -> None:
    """In packs, as in 4 bits; the losses of the first steps differ as rounding to fp8 explains: of
    two factors of some 28 products one after the other, and in the mean over 300 tokens."""
    plain = demo.adapter(demo.plan("nf4"))
    fp8 = demo.adapter(demo.plan("fp8", fp8=True))
    assert fp8.record.layout["packed"]
    assert losses(fp8.record) != losses(plain.record)
    assert losses(fp8.record) == pytest.approx(
        losses(plain.record), rel=rounding_bound(FP8, 2 * 28 / 300, margin=1)
    )


def test_a_loss_that_is_no_number_stops_training(
    demo: Demo, caplog: pytest.LogCaptureFixture
) -> None:
    """At the step where it appears, between two log lines; the checkpoints of before stay, and
    none is written after it."""
    options = {"learning_rate": 1e30, "max_steps": 4, "logging_steps": 100, "max_grad_norm": 1e9}
    plan = demo.plan(training={**options, "save_strategy": "steps", "save_steps": 1})
    with pytest.raises(UserError) as raised:
        demo.adapter(plan)
    assert str(raised.value) == (
        "the loss is nan at step 2, with a learning rate of 7.5e+29. Lower training.learning_rate "
        "and training.max_grad_norm (1.0 is usual)."
    )
    assert [path.name for path in plan.folder.glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (plan.folder / "adapter").exists() and "loss 0.0000" not in caplog.text


class Overflow(TrainerCallback):
    """Lets the gradients of the third step overflow, or the weights after it."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer before the batches of a step."""
        if self.what == "gradients" and state.global_step == 2:
            trained(kwargs["model"]).register_hook(lambda gradient: gradient + float("inf"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after the optimizer's step."""
        if self.what == "weights" and state.global_step == 3:
            trained(kwargs["model"]).data.fill_(float("inf"))


def trained(model: Any) -> Any:
    """One of the tensors that are trained."""
    return next(weight for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize(
    ("overflows", "evaluated", "problem"),
    [
        ("gradients", False, "the norm of the gradients is inf at step 3"),
        ("weights", False, "the largest weight of the adapter is inf at step 3"),
        ("weights", True, "the held-out loss is nan at step 3"),
    ],
)
def test_no_checkpoint_after_what_is_no_number(
    demo: Demo, overflows: str, evaluated: bool, problem: str
) -> None:
    """Neither gradients nor weights nor the held-out loss pass unseen, after the last step too."""
    saving = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "logging_steps": 100}
    evaluating = {"eval_strategy": "steps", "eval_steps": 3} if evaluated else {}
    plan = demo.plan(training={**saving, **evaluating, "learning_rate": 1e-4})
    trainer = demo.trainer(plan)
    trainer.add_callback(Overflow(overflows))
    with pytest.raises(UserError, match=f"{problem}, with a learning rate of .* Lower training"):
        trainer.train()
    assert sorted(path.name for path in plan.folder.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]


def test_what_to_lower(demo: Demo) -> None:
    """The advice fits the config and the step."""
    from vlmtune.training.trainer import not_finite

    plain = str(not_finite("the loss", float("nan"), 7, 1e-4, demo.plan()))
    assert plain.endswith("learning rate of 0.0001. Lower training.learning_rate.")
    options = {"training": {"max_grad_norm": 0.0}, "fp8": True}
    every = str(not_finite("the loss", float("nan"), 1, 1e-4, demo.plan(**options)))
    assert "max_grad_norm" in every and "nf4" in every and "the base model may not" in every
