"""What the OpenAPI page says of bodies: routes parse them themselves, so FastAPI cannot know."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """For a route's `openapi_extra`."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    inline = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inline}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """References replaced by what they mean: there is no shared components section to point to."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}
