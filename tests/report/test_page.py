"""Reports in a real browser: of a tiny run that was killed once, and of 40,000 steps with every metric."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.observe import read_metrics
from tests.report.conftest import NUM_STEPS, SPIKES, VIEWS
from tests.report.synthetic import HOSTILE, write_synthetic
from tests.runs import command, losses_of, poro, write_run, write_tokens

PATIENCE_SECONDS = 240
Look = Callable[..., Any]


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory; the run was killed after its first checkpoint and started again."""
    folder = tmp_path_factory.mktemp("killed")
    write_tokens(folder)
    run_file = write_run(folder / "run.toml", {"training": {"validate_every_steps": 4}})
    launcher = subprocess.Popen(command("train", run_file), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while max(losses_of(folder / "run"), default=0) < 6:
        assert launcher.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait(PATIENCE_SECONDS)
    poro("train", run_file)
    return folder / "run"


@pytest.fixture(scope="module")
def killed_report(killed_run: Path) -> Path:
    report = killed_run.parent / "report.html"
    poro("report", killed_run, "-o", report)
    return report


def x_range(page: Any) -> list[float]:
    found: list[float] = page.evaluate("(({start, end}) => [start, end])(Bokeh.documents[0].roots()[0].x_range)")
    return found


def chart(page: Any, title: str) -> Any:
    return page.locator("section.chart", has=page.get_by_role("heading", name=title, exact=True))


def test_the_page_says_what_the_metrics_of_a_killed_and_resumed_run_say(killed_run: Path, killed_report: Path, look: Look) -> None:
    page = look(killed_report)
    steps = [record for record in read_metrics(killed_run / "metrics.jsonl") if record["event"] == "step"]
    last = page.locator("[data-metric='train/loss']").get_attribute("data-value")
    assert float(last) == steps[-1]["loss"]
    assert page.locator("[data-card='training loss']").inner_text() == f"{steps[-1]['loss']:.4f}"
    assert page.locator("[data-card='step']").inner_text() == "12"
    assert page.locator("[data-card='restarts']").inner_text() == "1"
    assert page.locator("[data-state]").inner_text() == "done"
    text = page.locator("main").inner_text()
    assert "Every source was read as planned, to the token." in text
    assert "every SHA-256 is right" in text
    assert "killed" in text


def test_the_pointer_on_a_curve_says_the_value_there(killed_run: Path, killed_report: Path, look: Look) -> None:
    page = look(killed_report)
    section = chart(page, "Training loss")
    box = section.locator(".place").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("element => element.textContent !== ''", arg=section.locator(".at").element_handle())
    said = section.locator(".at").inner_text()
    loss = float(section.locator("[data-curve] b").inner_text())
    by_step = {record["step"]: record["loss"] for record in read_metrics(killed_run / "metrics.jsonl") if record["event"] == "step"}
    step = next(step for step, known in by_step.items() if f"{known:.4f}" == f"{loss:.4f}")
    assert f"step {step}," in said or "restart at step" in said


@pytest.mark.parametrize("view", VIEWS)
def test_a_long_run_fits_every_screen(view: str, long_report: Path, look: Look) -> None:
    page = look(long_report, view)
    assert page.evaluate("document.documentElement.scrollWidth") <= VIEWS[view]["viewport"]["width"]
    assert page.locator("section.chart canvas").count() >= page.locator("section.chart").count() >= 12
    assert page.locator("[data-card='step']").inner_text() == f"{NUM_STEPS:,}"


def test_labels_are_readable_in_light_and_dark(long_report: Path, look: Look) -> None:
    colours = {}
    for view in ("desktop", "dark"):
        page = look(long_report, view)
        colours[view] = (
            page.evaluate("getComputedStyle(document.querySelector('.chart')).backgroundColor"),
            page.evaluate("Bokeh.documents[0].roots()[0].left[0].major_label_text_color"),
            page.evaluate("getComputedStyle(document.body).color"),
        )
    assert all(light != dark for light, dark in zip(colours["desktop"], colours["dark"], strict=True))


def test_dragging_zooms_all_charts_and_a_button_shows_all_again(long_report: Path, look: Look) -> None:
    page = look(long_report)
    before = x_range(page)
    assert before == [0, NUM_STEPS]
    box = chart(page, "Training loss").locator(".place").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 120, steps=5)
    page.mouse.up()
    page.wait_for_function("Bokeh.documents[0].roots()[0].x_range.end < 30000")
    low, high = x_range(page)
    assert 0.3 * NUM_STEPS < low < high < 0.7 * NUM_STEPS
    assert page.evaluate("new Set(Bokeh.documents[0].roots().map((figure) => figure.x_range.id)).size") == 1
    page.get_by_role("button", name="pan").click()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 100, steps=5)
    page.mouse.up()
    page.wait_for_function("(low) => Bokeh.documents[0].roots()[0].x_range.start < low", arg=low)
    page.get_by_role("button", name="show all").click()
    assert x_range(page) == before


def test_the_axis_goes_from_steps_to_tokens(long_report: Path, look: Look) -> None:
    page = look(long_report)
    page.get_by_role("button", name="tokens", exact=True).click()
    assert x_range(page) == [0, NUM_STEPS * 8 * 64]


def test_spikes_are_in_the_data_and_shown_when_asked_for(long_report: Path, look: Look) -> None:
    page = look(long_report)
    source = "Bokeh.documents[0].roots()[0].renderers.find((renderer) => renderer.name === 'curve-0-0').data_source.data"
    sent = dict(zip(page.evaluate(f"Array.from({source}.step)"), page.evaluate(f"Array.from({source}.value)"), strict=True))
    assert {step: round(sent[step], 3) for step in SPIKES} == SPIKES
    page.get_by_role("button", name="spikes").click()
    page.wait_for_function("Bokeh.documents[0].roots()[0].y_range.end > 50")


def test_a_tap_on_a_phone_says_the_value_and_the_page_still_scrolls(long_report: Path, look: Look) -> None:
    page = look(long_report, "phone")
    section = chart(page, "Training loss")
    section.locator(".place").scroll_into_view_if_needed()
    box = section.locator(".place").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + 100)
    page.wait_for_function("element => element.textContent !== ''", arg=section.locator(".at").element_handle())
    assert float(section.locator("[data-curve] b").inner_text()) > 2
    tools = "Bokeh.documents[0].roots().flatMap((figure) => figure.toolbar.tools)"
    assert page.evaluate(f"{tools}.filter((tool) => tool.active && /Zoom|Pan/.test(tool.type)).length") == 0


def test_a_click_on_a_name_hides_its_curve_and_on_a_mark_all_of_its_kind(long_report: Path, look: Look) -> None:
    page = look(long_report)
    hidden = (
        "Bokeh.documents[0].roots().flatMap((figure) => figure.renderers).filter((each) => !each.visible).map((each) => each.name)"
    )
    chart(page, "Training loss").locator("[data-curve]").click()
    assert page.evaluate(hidden) == ["curve-0-0", "mean-0-0"]
    chart(page, "Training loss").locator("[data-curve]").click()
    page.locator("[data-mark=restart]").click()
    names = page.evaluate(hidden)
    assert len(names) == page.locator("section.chart").count()
    assert all(name.endswith("-restart") for name in names)


def test_a_hostile_source_name_is_text(long_report: Path, look: Look) -> None:
    page = look(long_report)
    assert HOSTILE in chart(page, "Training loss by source").inner_text()
    assert f"<script>{HOSTILE[8:13]}" not in long_report.read_text()


def test_runs_of_other_batch_sizes_lie_over_each_other_at_equal_tokens(tmp_path: Path, look: Look) -> None:
    runs = [write_synthetic(tmp_path / f"batch{batch}", 2000 // batch, batch=batch) for batch in (4, 8)]
    poro("report", *runs, "-o", tmp_path / "report.html")
    page = look(tmp_path / "report.html")
    assert x_range(page) == [0, 2000 * 64]
    assert chart(page, "Training loss").locator("[data-curve]").count() == 2
    page.get_by_role("button", name="step", exact=True).click()
    assert x_range(page) == [0, 500]


def test_a_long_report_is_below_five_megabytes(long_report: Path) -> None:
    assert long_report.stat().st_size < 5e6
