"""Whether the files that are published are, byte for byte, those that were tested."""

from collections.abc import Mapping

from vlmtune.errors import UserError
from vlmtune.revision import differences

NAMED_FILES = 5  # in an error; a merged model may have dozens


class NotWhatWasTested(UserError):
    """Files differ from those that were tested, so nothing may be said of how good they are.

    Attributes:
        files: name -> changed, missing or added.
    """

    def __init__(self, where: str, files: dict[str, str], mend: str) -> None:
        named = ", ".join(f"{name} ({what})" for name, what in list(files.items())[:NAMED_FILES])
        more = f" and {len(files) - NAMED_FILES} more" if len(files) > NAMED_FILES else ""
        super().__init__(f"{where} is not what was tested: {named}{more}.", mend)
        self.files = files


def require_same(
    tested: Mapping[str, str], found: Mapping[str, str], where: str, mend: str
) -> None:
    """Refuse files that are not those that were tested.

    Args:
        tested: name -> SHA-256 as of the test.
        found: name -> SHA-256 now.
        where: what was looked at, for the error.
        mend: what to do about it, for the error.

    Raises:
        NotWhatWasTested: a file is changed, missing or added.
    """
    if files := differences(tested, found):
        raise NotWhatWasTested(where, files, mend)
