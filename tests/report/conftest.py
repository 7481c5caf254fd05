"""Pages in a real Chromium that reach no network; without it such tests skip, or fail under PORO_REQUIRE_CHROMIUM."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.report.page import write_report
from tests.report.synthetic import write_synthetic

NUM_STEPS = 40_000
SPIKES = {777: 50.0, 20_001: 30.0, 33_333: 0.1}
VIEWS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 375, "height": 812}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
}
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_MISSING = "chromium is missing: apt-get install -y --no-install-recommends chromium"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium, without a head."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if not found:
        assert "PORO_REQUIRE_CHROMIUM" not in os.environ, _MISSING
        pytest.skip(_MISSING)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a report in a view. At the end of the test it has asked the network for nothing and complained about nothing."""
    asked: list[str] = []
    complaints: list[str] = []
    contexts = []

    def note_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def refuse(route: Any) -> None:
        asked.append(route.request.url)
        route.abort()

    def look_at(report: Path, view: str = "desktop") -> Any:
        context = browser.new_context(**VIEWS[view])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.route(lambda url: url != report.as_uri(), refuse)
        page.on("console", note_console)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield look_at
    for context in contexts:
        context.close()
    assert asked == []
    assert complaints == []


@pytest.fixture(scope="session")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a synthetic run of NUM_STEPS steps with SPIKES."""
    return write_synthetic(tmp_path_factory.mktemp("long"), NUM_STEPS, spikes=SPIKES)


@pytest.fixture(scope="session")
def long_report(long_run: Path) -> Path:
    """Its report."""
    report = long_run.parent / "report.html"
    write_report([long_run], report)
    return report
