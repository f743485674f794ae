"""One run of a pipeline: resolve, check, run, keep, tell."""

import logging
import secrets
import time
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from orchestration.champion import follow_registry, is_settled, standing
from orchestration.inputs import (
    ResolvedInputs,
    check_device,
    check_disk,
    disk_needed,
    resolve_inputs,
)
from orchestration.places import find_places
from orchestration.run_folder import (
    PAGES,
    fill_run_folder,
    make_run_folder,
    write_failure,
    write_summary,
)
from orchestration.stack import ActiveStack, use_stack
from orchestration.trained_model import TrainedModel
from orchestration.training_plan import resolve_training
from vlmtune.config.loading import dump_config
from vlmtune.config.publishing import HubConfig
from vlmtune.config.tree import FinetuneConfig
from vlmtune.errors import UserError
from vlmtune.tracking.provenance import find_provenance
from vlmtune.tracking.registry import Registry, Version
from vlmtune.training.checkpoints import remove_finished

logger = logging.getLogger(__name__)

FINETUNE, CHECK, DESCRIBE = "finetune", "check", "describe"


@dataclass(frozen=True)
class RunOutcome:
    """A finished run: its folder, its summary and the stack it ran on."""

    folder: Path
    summary: dict[str, Any]
    stack: ActiveStack


def run_pipeline(
    name: str,
    config: FinetuneConfig,
    stack_name: str | None,
    use_cache: bool,
    trained: TrainedModel | None = None,
) -> RunOutcome:
    """Run a pipeline and fill the run's folder, also when a step fails.

    Args:
        name: finetune; check to read and judge the catalog only; or describe.
        trained: the model that describes.

    Raises:
        UserError: something the user can mend, from the checks or from a step.
    """
    from steps.made_from import training_inputs
    from steps.registry import open_registry

    inputs = resolve_inputs(config, trained)
    if name != CHECK:
        check_device(config)
    if name == FINETUNE:
        config, training = resolve_training(config, inputs.base)
        logger.info("Training: %s", training)
    stack = use_stack(stack_name)
    if stack.artifact_folder:
        check_disk(stack.artifact_folder, disk_needed(config, models=name == FINETUNE))
    known = {"catalog_version": inputs.catalog_version, "base": inputs.base}
    arguments = known | _own_arguments(config, inputs, trained)
    if name != FINETUNE:
        return run_configured(name, config, stack, "", use_cache, arguments)
    registry = open_registry(config.data.catalog_name)
    made_from = training_inputs(config, inputs.base, inputs.catalog_version)
    arguments["champion"] = registry.rival(made_from) if registry else None
    arguments["registered"] = is_settled(registry, registry and registry.made_from(made_from))
    outcome = run_configured(name, config, stack, made_from, use_cache, arguments)
    remove_finished(config.output.work_dir / "checkpoints", outcome.summary["run_name"])
    if registry and outcome.summary["gate"]["verdict"] == "promoted":
        note_standing(outcome, registry, registry.made_from(made_from))
    follow_registry(registry)
    return outcome


def note_standing(outcome: RunOutcome, registry: Registry, version: Version | None) -> None:
    """Add to the summary what the registry says of the run's version, as of now."""
    outcome.summary["registry"] = standing(registry, version)
    write_summary(outcome.folder, outcome.summary)


def _own_arguments(
    config: FinetuneConfig, inputs: ResolvedInputs, trained: TrainedModel | None
) -> dict[str, Any]:
    """What only some pipelines take."""
    if trained:
        return {"chosen": trained.chosen}
    return {"previous": _previous_ledger(config, inputs)}


def run_configured(
    name: str,
    config: FinetuneConfig,
    stack: ActiveStack,
    made_from: str,
    use_cache: bool,
    arguments: dict[str, Any],
    version: str | None = None,
) -> RunOutcome:
    """Run a pipeline in a folder of its own, which is filled also when a step fails.

    Args:
        made_from: fingerprint of all that the run's model is made from, for the registry.
        arguments: of the pipeline, besides `config` and `tracker`.
        version: number of the registered version that it is about, if there is one.
    """
    require_secrets(config.hub)
    places = find_places(config)
    start = time.monotonic()
    run_name = f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = make_run_folder(config.output.runs_dir, name, run_name, dump_config(config))
    try:
        pipeline = configured_pipeline(name, config, run_name, use_cache, made_from, version)
        pipeline(config=config, tracker=stack.tracker, **arguments)
        summary = _fill(folder, run_name, config, places)
    except BaseException:
        _keep_what_there_is(folder, run_name, config, places, time.monotonic() - start)
        raise
    return RunOutcome(folder, summary, stack)


def require_secrets(hub: HubConfig) -> None:
    """Raise UserError if ZenML does not know the secret that the push will ask for."""
    from zenml.client import Client

    for name in hub.secrets:
        try:
            known = Client().get_secret(name, allow_partial_name_match=False).secret_values
        except KeyError:
            known = {}
        if "HF_TOKEN" not in known:
            raise UserError(
                f"hub.token_secret: ZenML has no secret {name!r} with the key HF_TOKEN.",
                f"zenml secret create {name} --HF_TOKEN=..., or set HF_TOKEN instead.",
            )


def _previous_ledger(config: FinetuneConfig, inputs: ResolvedInputs) -> str | None:
    from steps.previous import find_previous, ledger_inputs

    made_from = ledger_inputs(
        config.data, config.prompt, config.model, inputs.base, inputs.catalog_version
    )
    return find_previous(config.data, made_from)


def configured_pipeline(
    name: str,
    config: FinetuneConfig,
    run_name: str | None,
    use_cache: bool,
    made_from: str,
    version: str | None = None,
) -> Any:
    """The pipeline with what its steps may know of the run as a whole."""
    from steps.context import RunContext

    context = RunContext(
        config=config.model_dump(mode="json"),
        config_yaml=dump_config(config),
        provenance=find_provenance(),
        work_dir=config.output.work_dir.resolve(),
        catalog_name=config.data.catalog_name,
        inputs=made_from,
        version=version,
    )
    options: dict[str, Any] = {"extra": {"run_context": context.model_dump(mode="json")}}
    if run_name:
        options["run_name"] = run_name
    if not use_cache:
        options["enable_cache"] = False
    pipeline = getattr(import_module(f"pipelines.{name}"), name)
    return pipeline.with_options(**options)


def _fill(
    folder: Path, run_name: str, config: FinetuneConfig, places: dict[str, str | None]
) -> dict[str, Any]:
    from zenml.client import Client

    run = Client().get_pipeline_run(run_name, allow_name_prefix_match=False)
    return fill_run_folder(folder, run, config.hub, places)


def _keep_what_there_is(
    folder: Path,
    run_name: str,
    config: FinetuneConfig,
    places: dict[str, str | None],
    seconds: float,
) -> None:
    """Leave a summary of a failed run, without hiding the error that failed it."""
    try:
        _fill(folder, run_name, config, places)
        if (folder / PAGES["ledger_page"]).exists():
            logger.warning("What became of each row: %s", folder / PAGES["ledger_page"])
    except Exception:  # ZenML may not know of the run yet
        logger.debug("no record of the failed run", exc_info=True)
        write_failure(folder, run_name, seconds, places)


def plan(
    name: str, config: FinetuneConfig, inputs: ResolvedInputs, trained: TrainedModel | None = None
) -> list[tuple[str, str]]:
    """What a run would do, step by step, for `--dry-run`."""
    steps = _reading_steps(config, inputs)
    if trained:
        return [steps[0], ("describe_catalog", f"with {trained.describe(config)}")]
    return steps if name == CHECK else steps + _training_steps(config, inputs)


def _reading_steps(config: FinetuneConfig, inputs: ResolvedInputs) -> list[tuple[str, str]]:
    data = config.data
    sources = ", ".join(source.source for source in data.all_sources)
    by = ", ".join(data.held_out.fields) or "row"
    return [
        ("load_dataset", f"{sources} ({inputs.catalog_version[:19]})"),
        ("report_catalog", "data report, ledger page, and what changed"),
        (
            "format_messages",
            f"hold out {data.held_out.fraction:.0%} by {by}; stop above "
            f"{data.max_quarantine:.0%} in quarantine",
        ),
    ]


def _training_steps(config: FinetuneConfig, inputs: ResolvedInputs) -> list[tuple[str, str]]:
    hub = config.hub
    pushed = (
        f"push {', '.join(hub.push)} to {hub.repo_id}" if hub.repo_id else "leave ready to push"
    )
    return [
        ("load_quantized_model", f"{inputs.base.id} at {inputs.base.revision[:19]}"),
        (
            "train_qlora",
            f"LoRA r={config.lora.get('r', 8)}; {resolve_training(config, inputs.base)[1]}",
        ),
        ("evaluate_generations", f"at most {config.evaluation.max_rows} held-out rows"),
        ("merge_adapter", "into the bf16 base" if config.merge.enabled else "skipped"),
        ("push_to_hub", pushed),
    ]
