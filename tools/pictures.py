"""Pictures for the docs, of the demo's run: its report on a desktop, on a phone and in the dark, and `poro watch`.

`make pictures` runs it.

    python tools/pictures.py [RUN_DIRECTORY] [--out docs]

Needs chromium; the pictures are cut where a reader's patience ends, and kept small: 256 colours are enough for curves.
"""

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console

from megatron_poro.errors import PoroError
from megatron_poro.report.page import write_report
from megatron_poro.report.watch import open_run, render
from megatron_poro.slurm.status import read_status

MOST_BYTES = 300_000
DESKTOP, PHONE = {"width": 1280, "height": 1180}, {"width": 375, "height": 812}
PICTURES: dict[str, dict[str, Any]] = {
    "report-desktop": {"viewport": DESKTOP},
    "report-phone": {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2},
    "report-dark": {"viewport": DESKTOP, "color_scheme": "dark"},
}


def main() -> int:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path("demo-out/runs/continued")
    parser.add_argument("run", metavar="RUN_DIRECTORY", nargs="?", type=Path, default=default, help=f"default: {default}")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("docs"), help="default: docs")
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        print("error: chromium is missing: apt-get install -y --no-install-recommends chromium", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.html"
        try:
            write_report([args.run], report)
            _draw_screen(args.run, args.out / "watch.svg")
        except PoroError as error:
            print(f"error: {error}; `make run` makes the demo's", file=sys.stderr)
            return 2
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for name, view in PICTURES.items():
                path = args.out / f"{name}.png"
                _take(browser, report, path, view)
                print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
            browser.close()
    return 0


def _draw_screen(run_directory: Path, path: Path) -> None:
    """What `poro watch` shows, as a terminal of 80 columns."""
    console = Console(width=80, record=True, file=io.StringIO(), force_terminal=True)
    run = open_run(run_directory)
    run.refresh()
    console.print(render(run, read_status(run_directory), width=80))
    console.save_svg(str(path), title="poro watch")
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def _take(browser: Any, report: Path, path: Path, view: dict[str, Any]) -> None:
    page = browser.new_page(**view)
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    page.wait_for_function("Bokeh.documents[0].is_idle")
    page.wait_for_timeout(500)  # the last frame is painted after the document is idle
    if not view.get("is_mobile"):
        place = page.locator("#chart-0").bounding_box()
        page.mouse.move(place["x"] + place["width"] * 0.515, place["y"] + place["height"] / 2)
        page.wait_for_timeout(300)
    page.screenshot(path=path)
    page.close()
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than {MOST_BYTES}")


if __name__ == "__main__":
    sys.exit(main())
