"""The OpenAPI document: FastAPI's, corrected where this server behaves differently."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from serve_app.api.exports import Export
from serve_app.api.schemas import ErrorBody, TranscriptDelta, TranscriptDone, TranscriptProgress, TranscriptSegment

SCHEMAS = "#/components/schemas/{model}"
STREAMED = (TranscriptDelta, TranscriptSegment, TranscriptProgress, TranscriptDone, ErrorBody)
"""What a server-sent event may hold."""

STREAM_ITEM: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "event": {"type": "string", "description": "`error` for a failure; absent otherwise."},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"oneOf": [{"$ref": SCHEMAS.format(model=model.__name__)} for model in STREAMED]},
        },
    },
}
"""One server-sent event, for `itemSchema` of OpenAPI 3.2; tools for 3.1 ignore it."""

NEVER_SENT = "422"
"""FastAPI's status for an invalid request. This server answers 400, as OpenAI does."""

UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")
"""Schemas of that status."""

FORM_PREFIX = "Body_"
"""Names of the schemas of forms begin with it."""


def install(api: FastAPI) -> None:
    """Replace the OpenAPI document of the application."""
    generate = api.openapi

    def describe() -> dict[str, Any]:
        if api.openapi_schema is None:
            schema = generate()
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop(NEVER_SENT, None)
            schemas = schema["components"]["schemas"]
            _, streamed = models_json_schema([(model, "serialization") for model in STREAMED], ref_template=SCHEMAS)
            _, exported = models_json_schema([(Export, "validation")], ref_template=SCHEMAS)
            schemas |= streamed["$defs"] | exported["$defs"]
            for name in UNUSED_SCHEMAS:
                schemas.pop(name, None)
            for form in (schemas[name] for name in schemas if name.startswith(FORM_PREFIX)):
                form["properties"] = {name: _form_field(field) for name, field in form["properties"].items()}
            api.openapi_schema = schema
        return api.openapi_schema

    api.openapi = describe  # type: ignore[method-assign]  # the way that FastAPI documents


def _form_field(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of a form field without null, which no form can hold."""
    kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
    described: dict[str, Any] = {name: value for name, value in field.items() if name != "anyOf"}
    return described | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {})
