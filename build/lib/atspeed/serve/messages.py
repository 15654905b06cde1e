"""What a request asks, as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from genrec.runtime.errors import UserError


def _check_item(item: Any) -> Any:
    if type(item) not in (int, str):
        raise ValueError("is not an item: give its number, or its raw id as a text")
    return item


RequestItem = Annotated[
    Any, AfterValidator(_check_item), WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}]})
]


class RecommendRequest(BaseModel):
    """One history, and what may stand in its list."""

    model_config = ConfigDict(extra="forbid", strict=True)

    history: list[RequestItem] = Field(min_length=1, description="items, oldest first: numbers, or raw ids")
    k: int = Field(default=20, ge=1, description="length of the list")
    exclude: list[RequestItem] = Field(default=[], description="items that are not to stand in the list")
    exclude_seen: bool = Field(default=False, description="nor those of the history")
    allow: list[RequestItem] | None = Field(default=None, description="the only items that may stand in it; null: any")
    on_unknown: Literal["error", "skip"] = Field(
        default="error", description="what becomes of items that the catalogue lacks: error refuses the request"
    )
    tree: bool = Field(default=False, description="also draw the token tree of the request, as SVG")

    @classmethod
    def parse(cls, body: bytes) -> RecommendRequest:
        """Read a request. Raises UserError, one line that names the field."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise UserError(one_line(error)) from error


class ReloadRequest(BaseModel):
    """What is to be served from now on; what is not given stays as it is, and is read again."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    target_model: str | None = None
    draft_model: str | None = None
    index: str | None = None
    raw_ids: str | None = None
    titles: str | None = None
    stop_list: str | None = None


def one_line(error: ValidationError) -> str:
    """The first of the errors, after the name of its field."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ")
    return f"{where}: {said}" if where else said
