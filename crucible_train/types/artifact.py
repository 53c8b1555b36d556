"""What crosses a task boundary: a reference, never the thing itself."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ArtifactRef(BaseModel):
    """Where a stored thing lies and what it must contain.

    ``sha256`` is the digest of the file, or of the listing of a tree of files (path, size and digest of each).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(min_length=1, description="a path or any fsspec URL")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="digest of the content")]
    kind: str = Field(min_length=1, description="what it is: model, conversations, rendered, checkpoint, ...")
    size: int = Field(ge=0, description="bytes")
