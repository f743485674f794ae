"""The listed options are those of the installed libraries."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from vlmtune.config.forwarded import SFT_OWNED, known_options

TARGETS = (
    "trl.SFTConfig",
    "peft.LoraConfig",
    "transformers.BitsAndBytesConfig",
    "transformers.GenerationConfig",
)


def test_list_equals_the_live_classes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`forwarded_options.json` is what `make lock` would write now."""
    monkeypatch.syspath_prepend(str(root / "scripts"))
    script = importlib.import_module("list_forwarded_options")
    try:
        live = json.loads(json.dumps(script.collect()))
    finally:
        sys.modules.pop("list_forwarded_options")
    for target in TARGETS:
        assert known_options(target) == live[target]
    assert set(live) == set(TARGETS)


def test_owned_options_exist() -> None:
    """Each option that is refused with a hint is one that TRL has."""
    assert set(SFT_OWNED) <= set(known_options("trl.SFTConfig"))


def test_trl_sends_telemetry_through_the_hub_client() -> None:
    """TRL's only way out is the Hub client's, whose switch test_environment.py holds."""
    import huggingface_hub.utils
    from trl.trainer import base_trainer

    assert base_trainer.send_telemetry is huggingface_hub.utils.send_telemetry
