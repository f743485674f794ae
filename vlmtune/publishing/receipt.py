"""The receipt of a published model: what it was made of, in hashes, for machines."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from vlmtune.evaluation.gate import Verdict
from vlmtune.publishing.facts import CardFacts
from vlmtune.revision import digest_of, hash_text


class Receipt(BaseModel):
    """What a published model was made of. What is not known is None.

    Attributes:
        kind, base, base_revision, adapter_hash, catalog, catalog_digest, code_commit, lock_hash:
            as in `CardFacts`.
        config_digest: SHA-256 of the resolved configuration, which stands in the model card.
        verdict: of the gate.
        files: how many were tested.
        files_digest: `vlmtune.revision.digest_of` the tested files.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["adapter", "merged"]
    base: str
    base_revision: str
    adapter_hash: str | None
    catalog: str
    catalog_digest: str
    code_commit: str | None
    lock_hash: str | None
    config_digest: str
    verdict: Verdict | None
    files: int | None
    files_digest: str | None

    def to_json(self) -> str:
        """The same text for the same receipt."""
        return self.model_dump_json(indent=2) + "\n"


def make_receipt(facts: CardFacts) -> Receipt:
    """Sum up what is known of a model."""
    return Receipt(
        kind=facts.kind,
        base=facts.base_name,
        base_revision=facts.base_revision,
        adapter_hash=facts.adapter_hash,
        catalog=facts.catalog_name,
        catalog_digest=facts.catalog_digest,
        code_commit=facts.code_commit,
        lock_hash=facts.lock_hash,
        config_digest=hash_text(facts.public_config),
        verdict=facts.decision.verdict if facts.decision else None,
        files=len(facts.files) if facts.files else None,
        files_digest=digest_of(facts.files) if facts.files else None,
    )
