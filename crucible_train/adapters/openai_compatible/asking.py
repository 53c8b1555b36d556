"""One completion, in whichever form a server gives it."""

from typing import Any

from crucible_train.adapters.openai_compatible import llama_cpp
from crucible_train.adapters.openai_compatible.answers import Completion, read
from crucible_train.adapters.openai_compatible.dialects import Dialect
from crucible_train.adapters.openai_compatible.transport import Transport


async def complete(transport: Transport, dialect: Dialect, body: dict[str, Any], vocab_size: int) -> Completion:
    """The answer to a request."""
    if dialect.name == "llama.cpp":
        return await llama_cpp.complete(transport, body, vocab_size)
    return read(Completion, await transport.post(dialect.path, body))
