"""An open web page, and what a person does with it."""

from pathlib import Path

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, expect

WAIT_MS = 60_000
"""Everything that is waited for takes less, milliseconds."""

expect.set_options(timeout=WAIT_MS)


class Visit:
    """A page that was opened, and what its console said."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.set_default_timeout(WAIT_MS)
        self.page.goto(url)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def forgive(self, expected: str) -> None:
        """The browser tells of every request that was refused; this one was to be."""
        assert any(expected in complaint for complaint in self.complaints)
        self.complaints = [complaint for complaint in self.complaints if expected not in complaint]

    def choose(self, *paths: Path) -> None:
        self.page.locator("#files").set_input_files([str(path) for path in paths])

    def wait_until_done(self, files: int = 1) -> None:
        expect(self.page.locator("#queue li.done")).to_have_count(files)

    def said(self) -> str:
        expect(self.page.locator("#segments .word").first).to_be_visible()
        return " ".join(self.page.locator("#segments p").all_inner_texts())

    def exported(self, extension: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=f"Download as {extension}", exact=True).click()
        assert download.value.suggested_filename.endswith(f".{extension}")
        return Path(download.value.path()).read_bytes()
