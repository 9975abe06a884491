"""What OHIF shows of a study, seen through headless Chromium.

`python ohif_process.py DIST ARCHIVE_PORT STUDY OUT CHROMIUM` opens the study, its Segmentation and
its reports, leaves pictures in OUT, and prints what stands on the screen as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ohif_site import served
from playwright.sync_api import Page, sync_playwright

SIZE = {"width": 1200, "height": 700}
# Without a graphics card; and as root, whom Chromium's sandbox refuses.
SOFTWARE = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]  # fmt: skip
PANE = "[data-cy=viewport-pane]"
POINTS = """svg => [...svg.querySelectorAll('g[data-annotation-uid]')].map(words => {
  const shaft = svg.querySelector('line');
  return {
    uid: words.dataset.annotationUid,
    lines: [...words.querySelectorAll('tspan')].map(line => line.textContent),
    tip: [shaft.x2.baseVal.value, shaft.y2.baseVal.value],
  };
})"""


class Viewer:
    """A study that is open, and its pictures."""

    def __init__(self, page: Page, out: Path) -> None:
        self.page = page
        self.out = out

    def series(self) -> list[str]:
        """Name what the study browser lists."""
        return self.page.locator("[data-cy^=study-browser-thumbnail]").all_inner_texts()

    def open(self, words: str) -> None:
        """Show the series that is called so."""
        self.page.locator("[data-cy^=study-browser-thumbnail]", has_text=words).first.dblclick()

    def settled(self, name: str) -> None:
        """Take the picture of a screen that no longer changes."""
        self.page.mouse.move(1150, 600)
        before = b""
        for _ in range(40):
            now = self.page.screenshot()
            if now == before:
                break
            before = now
        (self.out / f"{name}.png").write_bytes(before)

    @property
    def slice(self) -> str:
        """What stands in the lower right corner: instance number, place in the stack."""
        return self.page.locator("[data-cy=viewport-overlay-bottom-right]").inner_text()

    @property
    def canvas(self) -> list[float]:
        """Where on the screen the images are: left, top, width, height."""
        box = self.page.locator(f"{PANE} canvas").first.bounding_box()
        assert box is not None
        return [box["x"], box["y"], box["width"], box["height"]]


def segmentation(viewer: Viewer) -> dict[str, Any]:
    """Open the Segmentation, go to its second segment, and show the slice with it and without."""
    page = viewer.page
    viewer.open("AI SEG")
    page.get_by_text("Yes", exact=True).click()
    page.locator("[data-cy=panelSegmentation-btn]").click()
    rows = page.locator("[data-cy=data-row]")
    rows.nth(1).click()
    viewer.settled("ohif-seg")
    seen = {
        "segments": rows.all_inner_texts(),
        "slice": viewer.slice,
        "canvas": viewer.canvas,
        "sides": page.locator(f"{PANE} .orientation-marker").all_inner_texts(),
    }
    page.locator("[data-cy^=all-segments-visibility-toggle]").first.click()
    viewer.settled("plain")
    return seen


def report(viewer: Viewer, words: str, count: int) -> list[dict[str, Any]]:
    """Step through the measurements of a report, and take a picture of the last."""
    page = viewer.page
    viewer.open(words)
    seen: list[dict[str, Any]] = []
    while len(seen) < count:
        if seen:
            page.locator("[data-cy=viewport-action-arrows-right]").click()
        page.wait_for_function(
            f"""known => {{
              const words = document.querySelector('{PANE} svg g[data-annotation-uid]');
              return words && words.dataset.annotationUid !== known;
            }}""",
            arg=seen[-1]["uid"] if seen else "",
        )
        (point,) = page.locator(f"{PANE} svg.svg-layer").first.evaluate(POINTS)
        seen.append({**point, "slice": viewer.slice, "canvas": viewer.canvas})
    viewer.settled("ohif-sr")
    return seen


def text(viewer: Viewer, words: str) -> str:
    """Return what a report without measurements shows."""
    viewer.open(words)
    shown = viewer.page.get_by_text("AI Results Report")
    shown.wait_for()
    viewer.settled("ohif-text")
    return viewer.page.locator(PANE).inner_text()


def main() -> None:
    dist, port, study, out, chromium = sys.argv[1:]
    errors: list[str] = []
    with served(Path(dist), int(port)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=SOFTWARE)
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script("localStorage.setItem('shownTours', '[\"basicViewerTour\"]')")
        page.goto(f"{url}/viewer?StudyInstanceUIDs={study}")
        page.locator(f"{PANE} canvas").first.wait_for()
        viewer = Viewer(page, Path(out))
        seen = {
            "isolated": page.evaluate("crossOriginIsolated"),
            "series": viewer.series(),
            "seg": segmentation(viewer),
            "measurements": report(viewer, "AI report phantom-chest", 4),
            "text": text(viewer, "AI report phantom-nothing"),
            "errors": errors,
        }
        browser.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
