"""Draws the pictures of the server's page in the docs: a real Chromium in front of a real server with the demo model.

python -m tools.page_pictures
"""

import shutil
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from mlx_lfm2vl.server.run import Server, Settings

ROOT = Path(__file__).parents[1]
IMAGES, SCENE = ROOT / "docs" / "images", ROOT / "examples" / "scene.png"
WIDE, PHONE = {"width": 1000, "height": 640}, {"width": 390, "height": 700}


def opened(browser: Browser, url: str, size: dict[str, int], scheme: str) -> Page:
    """A page of its own, once it knows the models."""
    context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(240_000)  # a machine that is busy
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#model option", state="attached")
    return page


def ask(page: Page, text: str, picture: Path | None = None) -> None:
    """Asks, and waits for the whole answer."""
    if picture is not None:
        page.set_input_files("#files", str(picture))
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_selector(".answer:last-child .message-tools")
    page.wait_for_timeout(300)  # until the view has scrolled


def main() -> None:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    server = Server(Settings(port=0), write=lambda line: None)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = opened(browser, server.url, WIDE, "light")
        ask(page, "What is in this image?", SCENE)
        page.screenshot(path=IMAGES / "page.png")
        page = opened(browser, server.url, WIDE, "dark")
        ask(page, "Provide bounding boxes for the pink square.", SCENE)
        page.screenshot(path=IMAGES / "page-boxes.png")
        page = opened(browser, server.url, PHONE, "light")
        ask(page, "What is in this image?", SCENE)
        ask(page, "Where is the square?")
        page.screenshot(path=IMAGES / "page-phone.png")
        browser.close()
    server.stop()
    thread.join()
    for name in ("page", "page-boxes", "page-phone"):  # a quarter of the size, without a loss that is seen
        file = IMAGES / f"{name}.png"
        Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    main()
