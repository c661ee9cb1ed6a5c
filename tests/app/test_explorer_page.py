"""The explorer in a real browser: upload, change, click, stream, error texts, labels, links, two users at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import addresses, opened, wait
from PIL import Image

pytest.importorskip("gradio", reason="Gradio is not installed: make test-app has it")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
# The label of each usable part for a screen reader. Gradio labels its own buttons inside of parts.
NAMELESS = """
return [...document.querySelectorAll("input, textarea, select, button, a[href]")].filter(
    e => e.offsetParent !== null && !(e.labels && e.labels.length) && !e.getAttribute("aria-label") &&
         !e.getAttribute("aria-labelledby") && !e.title && !e.textContent.trim() && !e.querySelector("img[alt]")
).map(e => e.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def address(tiny_folder):
    """The address of the explorer's page, started from the command line on a free port."""
    code = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"
    port = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    command = [sys.executable, "-m", "ppe_npu.cli", "explore", "--model", tiny_folder, "--port", port]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("GRADIO_ANALYTICS_ENABLED", None)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            said = []
            for line in run.stdout:
                said.append(line)
                if line.startswith("open "):
                    break
            assert said, "nothing was said"
            assert said[-1].startswith("open http://127.0.0.1:"), "".join(said)
            yield said[-1].split()[1]
        finally:
            run.terminate()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    yield from opened(tmp_path_factory.mktemp("profile"))


class Screen:
    """The page as a person uses it."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get("about:blank")  # the same address again is a new visit, too
        browser.get(address)
        wait(lambda: "mean over its layers" in self.text("costs") and self.settled(), "the page is there")

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def text(self, name):
        return self.find(f"#{name}").text

    def labelled(self, label):
        named = f"contains(@aria-label, '{label}') or ancestor::label[contains(., '{label}')]"
        path = f"//*[self::input or self::textarea][{named}]"
        return next(one for one in self.browser.find_elements("xpath", path) if one.is_displayed())

    def settled(self):
        """Whether the link is the one from Python, completed in the browser, and the message that of a done change."""
        return self.link().startswith("http") and self.text("message")

    def link(self):
        return self.find("#link textarea, #link input").get_attribute("value")

    def row(self, words):
        """The cells of a row of the costs."""
        lines = self.browser.find_elements("css selector", "table.costs tr")
        line = next(line for line in lines if words in line.text)
        return [cell.text for cell in line.find_elements("css selector", "td")]

    def type(self, label, text):
        """Types with the keyboard alone."""
        from selenium.webdriver import Keys

        box = self.labelled(label)
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text, Keys.ENTER)

    def pixels(self, name):
        return self.find(f"#picture-{name} img").get_attribute("src")


@pytest.fixture
def screen(chromium, address):
    return Screen(chromium, address)


def test_groups_and_costs_stand_side_by_side(screen):
    assert screen.row("visual tokens in the decoder") == ["300", "75 (25%)"]
    for name, words in (("dense", "300 visual tokens, of which 300"), ("left", "300 visual tokens, of which 75")):
        assert words in screen.find(f"#picture-{name} img").get_attribute("alt")
        assert screen.find(f"#picture-{name} img").size["width"] > 200
    assert "became part of" in screen.text("token-left")
    assert len(screen.browser.find_elements("css selector", "#picture-right img")) == 0


def test_a_change_of_the_budget_by_keyboard_changes_groups_costs_and_link(screen):
    from selenium.webdriver import Keys

    before = screen.pixels("left")
    slider = screen.find("input[type=range][aria-label*=Budget]")
    slider.send_keys(Keys.ARROW_RIGHT)
    wait(lambda: screen.row("visual tokens in the decoder")[1] == "78 (26%)", "one step more")
    wait(lambda: "budget=0.26" in screen.link(), "the link")
    assert screen.pixels("left") != before
    assert screen.browser.current_url == screen.link()
    seconds = float(re.search(r"Made in ([\d.]+) s", screen.text("message"))[1])
    print(f"a change of the budget took {seconds} s")


def test_a_click_says_what_became_of_a_token(screen):
    from selenium.webdriver import ActionChains

    image = screen.find("#picture-dense img")
    width, height = image.size["width"], image.size["height"]
    # The middle of column 9 in row 12: offsets are from the middle of the picture.
    across, down = (9.5 / 20 - 0.5) * width, (12.5 / 15 - 0.5) * height
    ActionChains(screen.browser).move_to_element_with_offset(image, across, down).click().perform()
    wait(lambda: "The token at (12, 9) " in screen.text("token-left"), "the token that was clicked")
    assert "(12, 9) stayed by itself" in screen.text("token-dense")
    wait(lambda: "place=249" in screen.link(), "the link")
    screen.type("by number", "7")
    wait(lambda: "The token at (0, 7) " in screen.text("token-left"), "the token by its number")


def test_answers_stream_and_are_timed(screen, tiny_folder):
    screen.browser.execute_script(
        "window.seen = []; setInterval(() => {const now = document.querySelector('#answer-dense textarea').value; "
        "if (now !== window.seen.at(-1)) window.seen.push(now)}, 2)"
    )
    screen.find("#ask").click()
    times = "time to first token"
    wait(lambda: all(cell.split(" (")[0].endswith(" ms") for cell in screen.row(times)), "both answers")
    seen = screen.browser.execute_script("return window.seen")
    assert len(seen) > 2, seen  # nothing, then piece by piece
    answer = screen.find("#answer-dense textarea").get_attribute("value")
    assert all(answer.startswith(part) for part in seen)
    command = ["ppe_npu.cli", "describe", "--model", tiny_folder, "--image", "house.png", "--prompt", "shape red",
               "--compression", "dense", "--max-new-tokens", "64", "--max-pixels", "19200", "--json"]  # fmt: skip
    from ppe_npu.explorer.sources import ours

    folder = Path(tiny_folder)
    ours("house", 8).frames[0].save(folder / "house.png")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert answer.split() == json.loads(done.stdout)["answer"].split()


def test_two_methods_side_by_side_and_a_link_that_restores_them(screen, address):
    steps = "pixelprune:threshold=0.02 + dpc_knn"
    for label, text in (("Right: another method", steps), ("Question", "row blue & <b>")):
        screen.type(label, text)
        screen.find("h1").click()
    wait(lambda: "number" in screen.text("token-right") and "row+blue" in screen.link(), "the second method")
    costs, link = screen.row("prompt tokens"), screen.link()
    assert steps in unquote(urlsplit(link).query.replace("+", " "))
    assert len(costs) == 3
    again = Screen(screen.browser, link)
    assert again.row("prompt tokens") == costs
    assert again.labelled("Question").get_attribute("value") == "row blue & <b>"
    assert again.link() == link


def test_settings_are_taken_along_as_json_and_python(screen):
    from ppe_npu.config import CompressionConfig
    from ppe_npu.explorer.state import Settings

    config = Settings().compression("left", 2)
    screen.browser.find_element("xpath", "//button[contains(., 'Export these settings')]").click()
    links = wait(lambda: screen.browser.find_elements("css selector", "a.save"), "links")
    assert [one.get_attribute("download") for one in links] == ["left.json", "left.py"]
    script = "return fetch(arguments[0]).then(answer => answer.text())"
    texts = [screen.browser.execute_script(script, one.get_attribute("href")) for one in links]
    assert CompressionConfig.from_dict(json.loads(texts[0])) == config
    assert texts[1].splitlines()[-1] == "compress(model, config)"
    assert texts[1].count("\n") == 3


def test_uploads_and_what_is_wrong_with_them_in_one_line(screen, tmp_path, write_clip):
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "photo.jpg")
    (tmp_path / "broken.png").write_bytes((tmp_path / "photo.jpg").read_bytes()[:900])
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    first = screen.pixels("left")

    def upload(path):
        for close in screen.browser.find_elements("css selector", "button[aria-label*=lear]"):
            close.click()
        box = wait(lambda: screen.find("input[type=file]"), "a place for files")
        box.send_keys(str(path))

    for name, words in (("broken.png", "broken.png"), ("broken.mp4", "broken.mp4"), ("huge.png", "200 megapixels")):
        upload(tmp_path / name)
        wait(lambda said=words: said in screen.text("message"), f"an error for {name}")
        assert screen.text("message").startswith("Error: ")
        assert "\n" not in screen.text("message")
        assert screen.pixels("left") == first
    upload(tmp_path / "photo.jpg")
    wait(lambda: "Made in" in screen.text("message") and screen.pixels("left") != first, "the picture")
    assert "source=yours" in wait(lambda: "yours" in screen.link() and screen.link(), "the link")
    upload(write_clip("clip.mp4"))
    wait(lambda: screen.row("visual tokens in the vision tower")[0] not in ("300", "289"), "the video")
    again = Screen(screen.browser, wait(lambda: screen.settled() and screen.link(), "the link of the video"))
    assert "a link holds no files" in again.text("message")


def test_what_cannot_be_is_one_line_and_the_rest_stays(screen, address):
    screen.type("Left: method", "nothing")
    screen.find("h1").click()
    wait(lambda: "nothing" in screen.text("message"), "the error")
    assert screen.text("message").startswith("Error: ")
    assert screen.row("visual tokens in the decoder") == ["300", "75 (25%)"]
    other = Screen(screen.browser, f"{address}?budget=3&source=house")
    assert "budget" in other.text("message")
    assert other.row("visual tokens in the decoder") == ["300", "75 (25%)"]
    evil = Screen(screen.browser, f"{address}?left=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    assert "<img src=x onerror=alert(1)>" in evil.text("message")
    assert not evil.browser.find_elements("css selector", "img[src=x]")


def test_two_users_at_once_have_pages_of_their_own(screen, address):
    first = screen.browser.current_window_handle
    screen.browser.switch_to.new_window("tab")
    second = Screen(screen.browser, f"{address}?source=scene+3&left=tome&budget=0.5")
    try:
        assert second.row("visual tokens in the decoder") == ["36", "18 (50%)"]
        second.find("#ask").click()
        screen.browser.switch_to.window(first)
        screen.type("by number", "5")
        wait(lambda: "The token at (0, 5) " in screen.text("token-left"), "the first user's token")
        assert screen.row("visual tokens in the decoder") == ["300", "75 (25%)"]
        screen.browser.switch_to.window(second.browser.window_handles[-1])
        wait(lambda: "ms" in second.row("time to first token")[1], "the second user's answers")
        assert second.row("visual tokens in the decoder") == ["36", "18 (50%)"]
        assert second.text("token-left").startswith("The token at (0, 0) ")
    finally:
        screen.browser.close()
        screen.browser.switch_to.window(first)


def test_every_part_has_a_name_for_a_screen_reader(screen):
    assert screen.browser.execute_script(NAMELESS) == []
    pictures = screen.browser.find_elements("css selector", "[id^=picture-] img")
    assert all(picture.get_attribute("alt") for picture in pictures)
    assert screen.find("table.costs caption").text
    assert {cell.get_attribute("scope") for cell in screen.browser.find_elements("css selector", "table.costs th")} == {
        "row",
        "col",
    }


def test_nothing_outside_of_this_machine_is_asked(chromium, address):
    addresses(chromium)
    Screen(chromium, address)
    asked = addresses(chromium)
    assert len(asked) > 5
    assert {urlsplit(one).hostname for one in asked if one.startswith(("http", "ws"))} == {"127.0.0.1"}
    blocked = "return fetch('https://example.org/').then(() => 'sent', () => 'refused')"
    assert chromium.execute_script(blocked) == "refused"
    violated = [entry["message"] for entry in chromium.get_log("browser") if "example.org" in entry["message"]]
    assert any("Content Security Policy" in said for said in violated)
