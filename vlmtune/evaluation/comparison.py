"""Several models on exactly the same held-out rows: what each writes, and how it scores."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmtune.catalog.catalog import ROW_ID, Catalog
from vlmtune.config.evaluation import EvaluationConfig
from vlmtune.evaluation.batches import AUTO
from vlmtune.evaluation.generation import describe
from vlmtune.evaluation.likelihood import answer_losses
from vlmtune.evaluation.picture_test import other_pictures, with_other_pictures
from vlmtune.evaluation.results import BASE, CHAMPION, TUNED, EvaluationReport
from vlmtune.evaluation.scoring import Answers, HeldOut, build_report
from vlmtune.models.adapter import Adapter, without_adapter
from vlmtune.prompting import with_pictures
from vlmtune.sampling import draw_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, ProcessorMixin

# Losses need the logits of whole answers: of the rows described at a time, one in so many.
LOSS_SHARE, LOSS_BATCH = 4, 4


@dataclass(frozen=True)
class Exam:
    """Held-out rows and how models are asked about them.

    Attributes:
        rows: at most `max_rows` of the held-out rows, drawn over all groups; in the catalog's
            order.
        held_out_rows: how many there are.
        partners: place of a row -> place of the row whose picture it is shown in the picture test.
    """

    catalog: Catalog
    rows: "Dataset"
    held_out_rows: int
    config: EvaluationConfig
    generation: dict[str, Any]
    partners: dict[int, int] = field(default_factory=dict)

    def answers(
        self,
        name: str,
        model: "PreTrainedModel | PeftModel",
        processor: "ProcessorMixin",
        picture_test: bool,
    ) -> Answers:
        """Let a model describe all rows, and some of them again with other rows' pictures."""
        size = self.config.batch_size
        rows = with_pictures(self.rows, self.catalog)
        written, seconds = describe(model, processor, rows, self.generation, size, label=name)
        together = LOSS_BATCH if size == AUTO else max(1, int(size) // LOSS_SHARE)
        losses = answer_losses(model, processor, rows, together, name)
        swapped: dict[int, str] = {}
        if picture_test and self.partners:
            others = with_pictures(with_other_pictures(self.rows, self.partners), self.catalog)
            label = f"{name} (other pictures)"
            again, _ = describe(model, processor, others, self.generation, size, label=label)
            texts = [each.text for each in again]
            swapped = dict(zip(self.partners, texts, strict=True))
        return Answers(
            texts=[each.text for each in written],
            losses=losses,
            cut={each.row for each in written if each.cut},
            swapped=swapped,
            seconds=seconds,
        )

    @property
    def held_out(self) -> HeldOut:
        """The catalog's own texts of the rows, to score against."""
        return HeldOut(
            records=list(self.catalog.texts().select(self.rows["row"])),
            groups=list(self.rows["group"]),
            shared_with_train=list(self.rows["shared_with_train"]),
            prompts=[[part["content"] for part in prompt] for prompt in self.rows["prompt"]],
            rows=self.held_out_rows,
            partners=self.partners,
        )


def make_exam(
    held_out: "Dataset", catalog: Catalog, config: EvaluationConfig, generation: dict[str, Any]
) -> Exam:
    """Draw the rows over all held-out groups.

    Args:
        held_out: `Examples.held_out`.
        generation: options of transformers.GenerationConfig.
    """
    rows = draw_rows(held_out, config.max_rows)
    partners = other_pictures(rows, catalog, config.picture_rows)
    return Exam(catalog, rows, len(held_out), config, generation, partners)


def compare(
    exam: Exam,
    model: "PeftModel",
    processor: "ProcessorMixin",
    champion: "Adapter | None" = None,
    champion_answers: Answers | None = None,
) -> EvaluationReport:
    """Ask the base and the tuned model, one loaded model with its adapter switched off and on.

    Args:
        model: the base with the tuned adapter attached.
        champion: adapter of the champion on the same base.
        champion_answers: what a champion on another base has written.
    """
    answers = {}
    with without_adapter(model) as base:
        answers[BASE] = exam.answers(BASE, base, processor, picture_test=False)
    answers[TUNED] = exam.answers(TUNED, model, processor, picture_test=True)
    if champion:
        with other_adapter(model, champion):
            answers[CHAMPION] = exam.answers(CHAMPION, model, processor, picture_test=False)
    elif champion_answers:
        answers[CHAMPION] = champion_answers
    return build_report(exam.held_out, answers, exam.config)


@contextmanager
def other_adapter(model: "PeftModel", adapter: Adapter) -> Iterator[None]:
    """The same loaded base with another adapter switched on."""
    own = model.active_adapter
    model.load_adapter(str(adapter.folder), CHAMPION, is_trainable=False)
    model.set_adapter(CHAMPION)
    try:
        yield
    finally:
        model.set_adapter(own)
        model.delete_adapter(CHAMPION)


def picture_finder(catalog: Catalog) -> Callable[[str], bytes]:
    """A function from a row's id to its first encoded picture."""
    numbers = {row_id: number for number, row_id in enumerate(catalog.rows[ROW_ID])}
    return lambda row_id: catalog.pictures(numbers[row_id])[0]
