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
"""One server-sent event, in the way of OpenAPI 3.2, which tools for 3.1 pass over."""

NEVER_SENT = "422"
"""FastAPI's status for a request that is not valid; here it is 400, as OpenAI has it."""

UNUSED = ("HTTPValidationError", "ValidationError")
FORM = "Body_"
REFUSED = frozenset({"diarized_json"})


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
                form["properties"] = {name: _as_sent(field) for name, field in form["properties"].items()}
            api.openapi_schema = schema
        return api.openapi_schema

    api.openapi = describe  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _as_sent(field: dict[str, Any]) -> dict[str, Any]:
    """A form has no null: a field is there or is not. And what is always refused is not on offer."""
    kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return field
    described: dict[str, Any] = {name: value for name, value in field.items() if name != "anyOf"} | kinds[0]
    if "enum" in described:
        described["enum"] = [choice for choice in described["enum"] if choice not in REFUSED]
    return described
