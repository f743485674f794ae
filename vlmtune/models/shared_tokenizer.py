"""One tokenizer for several threads."""

import copy
import threading
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import ProcessorMixin

WAITING = ("__call__", "decode", "batch_decode")


def with_shared_tokenizer(processor: "ProcessorMixin") -> "ProcessorMixin":
    """The same processor with a tokenizer that one thread at a time uses; others wait.

    A tokenizer sets its padding and truncation before it encodes; of a thread that sets others in
    between, it takes those. A copy for each thread would take half a second apiece for a vocabulary
    of 150,000, in which no other thread can do anything.
    """
    lock = threading.RLock()

    def waiting(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def wait(*args: Any, **kwargs: Any) -> Any:
            with lock:
                return method(*args, **kwargs)

        return wait

    own = processor.tokenizer
    methods = {name: waiting(getattr(type(own), name)) for name in WAITING}
    tokenizer = copy.copy(own)
    tokenizer.__class__ = type(type(own).__name__, (type(own),), methods)
    shared = copy.copy(processor)
    shared.tokenizer = tokenizer
    return shared


def for_this_thread(processor: "ProcessorMixin") -> "ProcessorMixin":
    """A copy with the same tokenizer."""
    return copy.deepcopy(processor, {id(processor.tokenizer): processor.tokenizer})
