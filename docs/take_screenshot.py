"""Takes docs/joined-trace.png, the picture in the README: runs the demo and photographs its trace in MLflow's UI.

Needs Chromium (``apt-get install chromium``) and ``pip install playwright``; ``CHROMIUM`` names another browser.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.parse
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).with_name("joined-trace.png")
OFFLINE = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def photograph(page_url: str, mirror_name: str, path: Path) -> None:
    """Open a trace in MLflow's UI, choose a mirror span, and save the page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=OFFLINE
        )
        page = browser.new_page(viewport={"width": 1500, "height": 800}, device_scale_factor=1.5)
        page.goto(page_url)
        drawer = page.locator('[data-component-id="mlflow.evaluations_review.modal"]')
        mirror = drawer.get_by_text(mirror_name, exact=True).first
        mirror.scroll_into_view_if_needed()
        mirror.click()
        drawer.locator('[role="tab"]', has_text="Attributes").click()
        drawer.get_by_text("endpoint_name").first.wait_for()
        page.mouse.move(0, 0)
        drawer.screenshot(path=path, animations="disabled")
        browser.close()


def main() -> None:
    """Run the demo, take the picture, stop the demo."""
    command = [Path(sys.executable).with_name("agent-gateway"), "demo", "--keep", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        try:
            lines = ""
            for line in demo.stdout or ():
                lines += line
                if line == "}\n":
                    break
            outcome = json.loads(lines)
            call = next(call for call in outcome["calls"] if call["endpoint"] == "fallback")
            query = urllib.parse.urlencode({"selectedEvaluationId": call["trace_id"]})
            url = f"{outcome['tracking_uri']}/#/experiments/{outcome['experiment_id']}/traces?{query}"
            photograph(url, call["mirror"]["name"], PICTURE)
        finally:
            demo.send_signal(signal.SIGINT)
    print(PICTURE)


if __name__ == "__main__":
    main()
