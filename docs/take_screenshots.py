"""Take the pictures in the README: run the demo, and take screenshots of its trace in MLflow's UI and as a waterfall.

Needs Chromium (``apt-get install chromium``) and ``pip install playwright``; ``CHROMIUM`` is another browser's path.
With a directory as the argument, all pictures go there, including those in other colours and at a phone's width.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.parse
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

DOCS = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("agent-gateway")
OFFLINE = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
WIDTHS = {"": 1200, "-phone": 390}
FOLD_ALL_BUT = """name => {
    for (const step of document.querySelectorAll(".agent-gateway > ul > li > .below > ul > li"))
        if (!step.textContent.includes(name))
            for (const below of step.querySelectorAll(":scope > .below")) below.open = false;
}"""
"""Fold what is below the agent's steps, except for the one to be shown."""


def ui(page: Page, url: str, mirror: str, picture: Path) -> None:
    """Open a trace in MLflow's UI, choose a mirror span, and save what is seen."""
    page.goto(url)
    drawer = page.locator('[data-component-id="mlflow.evaluations_review.modal"]')
    span = drawer.get_by_text(mirror, exact=True).first
    span.scroll_into_view_if_needed()
    span.click()
    drawer.locator('[role="tab"]', has_text="Attributes").click()
    drawer.get_by_text("endpoint_name").first.wait_for()
    page.mouse.move(0, 0)
    drawer.screenshot(path=picture, animations="disabled")


def waterfall(browser: Browser, html: Path, directory: Path, everything: bool) -> None:
    """Save the waterfall as it is seen in light and in dark."""
    for scheme in SCHEMES:
        for suffix, width in WIDTHS.items():
            if everything or not suffix:
                page = browser.new_page(
                    viewport={"width": width, "height": 640}, device_scale_factor=1.5, color_scheme=scheme
                )
                page.goto(html.as_uri())
                page.evaluate(FOLD_ALL_BUT, "gateway/fallback")
                page.screenshot(path=directory / f"waterfall-{scheme}{suffix}.png", full_page=everything)
                page.close()


def take(outcome: dict[str, object], calls: list[dict[str, object]], directory: Path, everything: bool) -> None:
    """Take all pictures of a demo that is running."""
    call = next(call for call in calls if call["endpoint"] == "fallback")
    trace_id = str(call["trace_id"])
    query = urllib.parse.urlencode({"selectedEvaluationId": trace_id})
    url = f"{outcome['tracking_uri']}/#/experiments/{outcome['experiment_id']}/traces?{query}"
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=executable, args=OFFLINE)
        page = browser.new_page(viewport={"width": 1500, "height": 800}, device_scale_factor=1.5)
        ui(page, url, "gateway/fallback", directory / "joined-trace.png")
        if everything:
            page = browser.new_page(viewport={"width": 1500, "height": 800})
            page.add_init_script("localStorage.setItem('_mlflow_dark_mode_toggle_enabled', 'true')")
            ui(page, url, "gateway/fallback", directory / "joined-trace-dark.png")
        html = Path(temporary, "trace.html")
        tracking = ["--tracking-uri", str(outcome["tracking_uri"])]
        subprocess.run([COMMAND, "trace", trace_id, *tracking, "--html", html], check=True)
        waterfall(browser, html, directory, everything)
        browser.close()


def main(directory: Path, everything: bool) -> None:
    """Run the demo, take the pictures, stop the demo."""
    with subprocess.Popen([COMMAND, "demo", "--keep", "--json"], stdout=subprocess.PIPE, text=True) as demo:
        try:
            lines = ""
            for line in demo.stdout or ():
                lines += line
                if line == "}\n":
                    break
            outcome = json.loads(lines)
            take(outcome, outcome["calls"], directory, everything)
        finally:
            demo.send_signal(signal.SIGINT)
    print(*sorted(path.name for path in directory.glob("*.png")))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS, len(sys.argv) > 1)
