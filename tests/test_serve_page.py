"""The page of `hasn serve` in a browser: pictures are dropped, watched, compared, downloaded and removed."""

from __future__ import annotations

import base64
import http.server
import io
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command import save
from PIL import Image

pytest.importorskip("uvicorn", reason="the extra `web` is not installed")
pytest.importorskip("starlette", reason="the extra `web` is not installed")

from served import Gate, png, served

from hasn_cli.batch.settings import Settings
from hasn_cli.serve.engine import Engine

DROP = """
const transfer = new DataTransfer();
for (const [name, data] of arguments[0]) {
  transfer.items.add(new File([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], name));
}
for (const kind of ["dragenter", "dragover", "drop"]) {
  const event = new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer });
  document.getElementById("drop").dispatchEvent(event);
}
"""


class Page:
    """The page as a browser shows it."""

    def __init__(self, driver, server):
        self.driver = driver
        self.server = server

    def __getitem__(self, name):
        return self.driver.find_element("id", name)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def cards(self, *states):
        return [card for state in states for card in self.all(f".card.{state}")]

    def drop(self, files):
        """Drop files, given as a list of names and contents, on the page."""
        self.driver.execute_script(DROP, [[name, base64.b64encode(data).decode()] for name, data in files])

    def choose(self, name, value):
        from selenium.webdriver.support.ui import Select

        Select(self[name]).select_by_value(value)

    def until(self, condition):
        """Wait until the condition holds. If it never does, the test's time limit ends this."""
        while not condition():
            time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that computes."""
    with served(tmp_path_factory.mktemp("server"), Engine(Settings(), 2), weights=("clean", "photo")) as running:
        yield running


def opened(browser, server):
    browser.get_log("browser")
    browser.get("about:blank")
    browser.get(server.url)
    browser.execute_script("localStorage.clear()")
    browser.get(server.url)
    return Page(browser, server)


@pytest.fixture
def page(browser, server):
    yield opened(browser, server)
    assert browser.get_log("browser") == []  # no error, no warning, nothing that the policy had to block


def test_three_pictures_are_dropped_watched_compared_and_downloaded(page, hasn, tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / name, size=(40, 30) if name == "a.png" else (24, 30))
        assert hasn(name, "-s", "2", "-o", f"{name[0]}_x2.png").code == 0
    page.choose("scale", "2")
    files = [(name, (tmp_path / name).read_bytes()) for name in ("a.png", "b.png")]
    page.drop([files[0], ("broken.png", b"no picture"), files[1]])
    assert [name.text for name in page.all(".name")] == ["a.png", "broken.png", "b.png"]
    page.until(lambda: len(page.cards("done", "failed")) == 3)

    (failed,) = page.cards("failed")
    assert "not a picture" in failed.text
    assert "2 done, 1 failed" in page["summary"].text
    page.until(lambda: "so are all pictures" in page["live"].get_attribute("textContent"))

    page.all(".card.done .thumb")[0].click()
    assert page["viewer-title"].text == "a.png"
    page.until(lambda: shown_size(page, "image-right") == [80, 60] and shown_size(page, "image-left") == [40, 30])
    handle = page["handle"]
    assert page.driver.switch_to.active_element == handle
    slide(page, handle, page["stage"].size["width"] // 4)
    assert int(handle.get_attribute("aria-valuenow")) == 75
    assert "Before on 75 %, After on 25 %" in handle.get_attribute("aria-valuetext")

    archive = fetched(page, page["zip"].get_attribute("href"))
    with zipfile.ZipFile(io.BytesIO(archive)) as made:
        assert made.namelist() == ["a_x2.png", "b_x2.png"]
        for name in made.namelist():
            assert made.read(name) == (tmp_path / name).read_bytes()  # the same bytes, so the same pixels


def shown_size(page, name):
    """Width and height in pixels of what an `img` shows."""
    script = "const shown = arguments[0]; return [shown.naturalWidth, shown.naturalHeight]"
    return page.driver.execute_script(script, page[name])


def slide(page, handle, dx):
    from selenium.webdriver import ActionChains

    ActionChains(page.driver).move_to_element(handle).click_and_hold().move_by_offset(dx, 0).release().perform()


def fetched(page, address) -> bytes:
    """What a click on a link would download."""
    script = """
        const done = arguments[arguments.length - 1];
        fetch(arguments[0]).then((answer) => answer.blob()).then((blob) => {
          const reader = new FileReader();
          reader.onload = () => done(reader.result.split(",")[1]);
          reader.readAsDataURL(blob);
        });
    """
    return base64.b64decode(page.driver.execute_async_script(script, address))


def test_a_format_that_browsers_cannot_show_is_shown_all_the_same(page):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(Image.open(io.BytesIO(png(30, 20))))).save(buffer, "TIFF")
    page.choose("scale", "3")
    page.drop([("scan.tif", buffer.getvalue())])
    page.until(lambda: page.cards("done"))
    page.until(lambda: shown_size(page, "image-right") == [90, 60] and shown_size(page, "image-left") == [30, 20])
    page.until(lambda: page.all(".thumb img"))
    assert page.all(".card a")[0].get_attribute("download") == "scan_x3.tif"


def test_settings_apply_to_what_is_added_next_and_are_remembered(page):
    page.choose("scale", "2")
    page.choose("format", "webp")
    page["strip"].click()
    page.drop([("a.png", png(20, 10))])
    page.until(lambda: page.cards("done"))
    assert "WEBP" in page.cards("done")[0].text and "40 × 20" in page.cards("done")[0].text
    page.driver.refresh()
    assert page["format"].get_attribute("value") == "webp" and page["strip"].is_selected()
    page.choose("format", "png")
    assert not page["quality"].is_enabled()


def test_weights_can_be_chosen_and_the_automatic_choice_is_explained(page):
    from selenium.webdriver.support.ui import Select

    assert [each.text for each in Select(page["weights"]).options] == [
        "Automatic",
        "Clean pictures",
        "Compressed photos",
    ]
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(32, 24))).save(buffer, "JPEG", quality=50)
    page.drop([("a.jpg", buffer.getvalue())])
    page.until(lambda: page.cards("done"))
    page.until(lambda: "quality about 50" in page["shown-facts"].text)
    page.choose("weights", "clean")
    page.all(".card [aria-label^=Again]")[0].click()
    page.until(lambda: page.cards("done") and "quality about 50" not in page["shown-facts"].text)


def test_tab_reaches_every_control_and_each_has_a_name(page):
    from selenium.webdriver import ActionChains, Keys

    page.drop([("a.png", png())])
    page.until(lambda: page.cards("done"))
    reached = []
    page.driver.execute_script("document.activeElement.blur()")
    for _ in range(30):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.append(page.driver.switch_to.active_element.id)
    controls = [each for each in page.all("button, select, input, a, [role=slider]") if each.is_displayed()]
    for control in controls:
        assert control.accessible_name, control.get_attribute("outerHTML")[:80]
        assert control.id in reached or not control.is_enabled(), control.get_attribute("outerHTML")[:80]


def test_escape_closes_the_comparison_and_removing_deletes_the_files(page):
    from selenium.webdriver import ActionChains, Keys

    page.drop([("a.png", png())])
    page.until(lambda: page.cards("done"))
    page.until(lambda: page["viewer"].is_displayed())
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    assert not page["viewer"].is_displayed()
    page.all(".card [title=Remove]")[0].click()
    assert not page["queue"].is_displayed()


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_nothing_is_wider_than_the_screen(page, width):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        page.drop([("a_rather_long_name_without_any_space_" * 3 + ".png", png()), ("broken.png", b"x" * 100)])
        page.until(lambda: len(page.cards("done", "failed")) == 2)
        page.cards("done")[0].find_element("class name", "thumb").click()
        root = "document.documentElement"
        widths = page.driver.execute_script(f"return [innerWidth, {root}.clientWidth, {root}.scrollWidth]")
        assert widths[0] == width and widths[2] == widths[1]
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_progress_is_shown_and_a_picture_can_be_cancelled_and_tried_again(browser, tmp_path):
    engine = Gate()
    with served(tmp_path, engine) as running:
        page = opened(browser, running)
        page.drop([(f"{number}.png", png()) for number in range(4)])
        page.until(lambda: len(page.cards("running")) == 2 and len(page.cards("waiting")) == 2)
        page.until(lambda: "Computing, 50 %" in page.cards("running")[0].text)
        bar = page.cards("running")[0].find_element("tag name", "progress")
        assert bar.get_attribute("value") == "0.5" and bar.accessible_name
        button(page.cards("running")[0], "Cancel").click()
        page.until(lambda: page.cards("cancelled") and engine.inside == 2)
        engine.opened.set()
        page.until(lambda: len(page.cards("done")) == 3)
        button(page.cards("cancelled")[0], "Try again").click()
        page.until(lambda: len(page.cards("done")) == 4)


def button(card, text):
    return next(each for each in card.find_elements("tag name", "button") if each.text == text)


def test_a_full_queue_makes_the_page_wait_and_try_again(browser, tmp_path):
    from hasn_cli.serve.limits import Limits

    engine = Gate()
    with served(tmp_path, engine, limits=Limits(waiting=1)) as running:
        page = opened(browser, running)
        page.drop([(f"{number}.png", png()) for number in range(5)])
        page.until(lambda: any("Waiting for a place" in card.text for card in page.cards("queued")))
        engine.opened.set()
        page.until(lambda: len(page.cards("done")) == 5)


def test_a_server_that_is_gone_is_named(browser, tmp_path):
    with served(tmp_path, Gate()) as running:
        page = opened(browser, running)
        page.drop([("a.png", png())])
        page.until(lambda: page.cards("running"))
    page.until(lambda: page["problem"].is_displayed())
    assert "does not answer" in page["problem"].text
    page.drop([("b.png", png())])
    page.until(lambda: page.cards("failed"))
    assert "Is the server still running?" in page.cards("failed")[0].text


ATTACK = """
const done = arguments[arguments.length - 1];
const url = arguments[0];
const outcomes = {};
const tried = (name, promise) =>
  promise.then(() => { outcomes[name] = "sent"; }, () => { outcomes[name] = "refused"; });
const loads = (element, address) => new Promise((yes, no) => {
  element.onload = yes;
  element.onerror = no;
  element[element.tagName === "LINK" ? "href" : "src"] = address;
  document.body.append(element);
});
const post = (options) => fetch(`${url}/upscale?scale=2`, { method: "POST", body: "x".repeat(100), ...options });
const form = document.createElement("form");
Object.assign(form, { method: "post", action: `${url}/jobs`, target: "frame", enctype: "multipart/form-data" });
const frame = Object.assign(document.createElement("iframe"), { name: "frame" });
document.body.append(frame, form);
form.submit();
Promise.all([
  tried("cors", post({})),
  post({ mode: "no-cors" }).catch(() => {}),
  navigator.sendBeacon(`${url}/jobs`, "x".repeat(100)),
  tried("read", fetch(`${url}/openapi.json`).then((answer) => answer.text())),
  tried("script", loads(document.createElement("script"), `${url}/assets/page.js`)),
  tried("image", loads(new Image(), `${url}/jobs/some/result`)),
  new Promise((resume) => { frame.onload = resume; }),
]).then(() => done(outcomes));
"""


def test_a_page_of_another_server_can_neither_use_nor_read_nor_frame_it(browser, tmp_path):
    class Evil(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>evil</title><body>")

        def log_message(self, *args):
            pass

    engine = Gate()
    engine.opened.set()
    evil = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    threading.Thread(target=evil.serve_forever, daemon=True).start()
    try:
        with served(tmp_path, engine) as running:
            for origin in ("localhost", "127.0.0.1"):
                browser.get(f"http://{origin}:{evil.server_port}/")
                outcomes = browser.execute_async_script(ATTACK, running.url)
                assert outcomes == {"cors": "refused", "read": "refused", "script": "refused", "image": "refused"}
            browser.switch_to.frame("frame")
            assert "hasn" not in browser.title
            browser.switch_to.default_content()
            assert engine.names == [] and running.call(lambda: running.jobs.stored) == 0
    finally:
        evil.shutdown()
        evil.server_close()


def test_the_page_comes_with_its_token_link_only(browser, tmp_path):
    token = "only-for-this-test-0123456789"
    with served(tmp_path, Gate(), token=token) as running:
        browser.get(running.url)
        assert "needs its token" in browser.page_source
        browser.get(f"{running.url}/?token={token}")
        assert browser.current_url == f"{running.url}/"
        assert browser.find_element("id", "choose").is_displayed()


def test_the_page_is_small_and_asks_no_other_server():
    folder = Path(__file__).resolve().parent.parent / "hasn_cli"
    compare = sum((folder / "compare" / name).stat().st_size for name in ("page.js", "viewer.js"))
    assert (folder / "serve" / "page.js").stat().st_size < 1.5 * compare
    for name in ("page.html", "page.css", "page.js"):
        text = (folder / "serve" / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text
