"""Print the table of settings in docs/configuration.md, from the settings themselves.

python -m tools.settings_table
"""

import json
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from serve_app.settings import DiarizerSettings, ModelSettings, Settings

HEADER = "| setting | default | meaning |\n|---|---|---|"

LISTS: dict[str, type[BaseModel]] = {"models": ModelSettings, "diarizers": DiarizerSettings}
"""Settings that are lists of groups."""


def leaves(model: type[BaseModel] = Settings, path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting that holds a value, with its path. The settings of a model have paths below `models[]`, and so on."""
    for name, field in model.model_fields.items():
        kind = LISTS.get(name, field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{path}{name}{'[]' if name in LISTS else ''}.")
        else:
            yield path + name, field


def table() -> str:
    """The table as Markdown, one row per setting."""
    return "\n".join([HEADER, *(f"| `{path}` | {_default(field)} | {field.description} |" for path, field in leaves())])


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, dict):
        return f"`{json.dumps(field.default)}`"
    if isinstance(field.default, tuple):
        return f"`[{', '.join(field.default)}]`"
    return "unset" if field.default is None else "empty" if field.default == "" else f"`{field.default}`"


if __name__ == "__main__":
    print(table())
