"""The files of the site, for MkDocs: its `hooks` call this module, see mkdocs.yml.

MkDocs knows one folder of pages. Here every file keeps the path that it has in the repository, so that the pages' relative links
lead to the same files on the site and in the repository.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

PATTERNS = (
    *("*.md", "docs/**/*", "benchmarks/*.md", "serve_app/bundled/*.md", "tests/data/**/*.md"),
    *("configs/*", "deploy/**/*", "mkdocs.yml", "NOTICE", "LICENSE"),
)
"""Pages, and files that pages may link to."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The files of the repository, and the theme's own of those that MkDocs found."""
    of_theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern) if path.is_file()})
    return Files(
        [*of_theme, *(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)) for path in paths)]
    )
