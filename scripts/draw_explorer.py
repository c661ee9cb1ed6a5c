"""Takes a screenshot of a running `ppe-npu explore`: docs/explore.png. It needs Chromium, its driver and Selenium.

python scripts/draw_explorer.py http://127.0.0.1:7860/ [--output docs/explore.png]
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from ppe_npu.files import write_bytes


def screenshot(address: str) -> Image.Image:
    """A screenshot of the page, taken once its pictures and its link are complete."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    with tempfile.TemporaryDirectory() as profile:
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                         "--window-size=1280,1420", f"--user-data-dir={profile}"):  # fmt: skip
            options.add_argument(argument)
        # Both are named, because Selenium would otherwise look for them on the network.
        options.binary_location = shutil.which("chromium") or "chromium"
        browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver"))
        try:
            browser.get(address)
            drawn = "return [...document.querySelectorAll('[id^=picture-] img')].filter(i => i.complete).length > 1 && "
            drawn += "document.querySelector('#link textarea, #link input').value.startsWith('http')"
            WebDriverWait(browser, 120).until(lambda one: one.execute_script(drawn))
            return Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        finally:
            browser.quit()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--output", type=Path, default=Path("docs/explore.png"))
    args = parser.parse_args(argv)
    data = io.BytesIO()
    screenshot(args.address).quantize(128, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    print(write_bytes(args.output, data.getvalue()))


if __name__ == "__main__":
    main()
