"""What the `source` of a model may be, and which file of the Hugging Face hub it names."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

BUILT_IN = ("bundled", "simulated")
"""Sources that need no file of the user."""

MAIN = "main"
"""The revision of a source that names none: the default branch."""

_HUB = re.compile(
    r"(?P<repository>(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*))"
    r"(:(?P<file>(\w[\w.-]*/)*\w[\w.-]*\.nemo))?"
    r"(@(?P<revision>\w[\w.-]*(/\w[\w.-]*)*))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a model repository on the hub, at a branch, a tag or a commit."""

    repository: str
    file: str
    revision: str
    is_conventional: bool
    """The source is `owner/name` alone, so that the file is `name.nemo` and any copy of it will do."""


def hub_file(source: str) -> HubFile | None:
    """The file that `owner/name`, `owner/name:file.nemo` or either with `@revision` names; None: it is no hub source.

    Without `:`, the file is `name.nemo`; without `@`, the revision is MAIN. `folder/file.nemo` is a path, not a repository.
    """
    match = _HUB.fullmatch(source)
    if match is None or (":" not in source and "@" not in source and source.endswith(".nemo")):
        return None
    file, revision = match["file"], match["revision"]
    return HubFile(match["repository"], file or f"{match['name']}.nemo", revision or MAIN, file is None and revision is None)


def problem_of(source: str) -> str:
    """Why a `source` cannot be one, whatever files exist; empty: nothing is wrong with its form.

    A path is recognised by its ending `.nemo` or by its beginning (`/`, `./`, `../`, `~`). Other names may be files too.
    """
    if source in BUILT_IN or hub_file(source) or os.path.isfile(os.path.expanduser(source)):
        return ""
    if source.startswith(("/", "./", "../", "~")) or (source.endswith(".nemo") and ":" not in source):
        return ""
    if re.match(r"\w[\w.-]*/\w[\w.-]*[:@]", source, re.ASCII):
        return f"`source: {source}` is not `owner/name:file.nemo@revision`, of which the last two parts may be missing"
    return (
        f"`source: {source}` is neither a model on the hub (`owner/name`) nor the path of a file "
        "(`/folder/file.nemo`, `./file`), nor one of " + ", ".join(f"`{name}`" for name in BUILT_IN)
    )


def bundled_model_path() -> Path:
    """Path of the `.nemo` file of the bundled model."""
    return Path(__file__).parent / "bundled" / "digits.nemo"


def bundled_diarizer_path() -> Path:
    """The same of the bundled diarizer."""
    return Path(__file__).parent / "bundled" / "speakers.nemo"
