"""How the server describes itself: FastAPI's OpenAPI document, true to what this server does."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from serve_app.api.schemas import ErrorBody, TranscriptDelta, TranscriptDone, TranscriptProgress

SCHEMAS = "#/components/schemas/{model}"
STREAMED = (TranscriptDelta, TranscriptProgress, TranscriptDone, ErrorBody)

STREAM_ITEM: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "event": {"type": "string", "description": "`error` for a failure, else absent."},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"oneOf": [{"$ref": SCHEMAS.format(model=model.__name__)} for model in STREAMED]},
        },
    },
}
"""One server-sent event, as OpenAPI 3.2 describes the items of a stream."""

NEVER_SENT = "422"
"""FastAPI's status for a request that is not valid; here it is 400, as OpenAI has it."""

UNUSED = ("HTTPValidationError", "ValidationError")
FORM = "Body_"


def install(api: FastAPI) -> None:
    """Replace the application's description."""
    generate = api.openapi

    def describe() -> dict[str, Any]:
        if api.openapi_schema is None:
            schema = generate()
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop(NEVER_SENT, None)
            schemas = schema["components"]["schemas"]
            _, streamed = models_json_schema([(model, "serialization") for model in STREAMED], ref_template=SCHEMAS)
            schemas |= streamed["$defs"]
            for name in UNUSED:
                schemas.pop(name, None)
            for form in (schemas[name] for name in schemas if name.startswith(FORM)):
                form["properties"] = {name: _without_null(field) for name, field in form["properties"].items()}
            api.openapi_schema = schema
        return api.openapi_schema

    api.openapi = describe  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """A form has no null: a field is there or is not."""
    kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
    return {name: value for name, value in field.items() if name != "anyOf"} | kinds[0] if len(kinds) == 1 else field
