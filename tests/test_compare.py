"""`hasn compare`: what differs is found, measured and shown; the page works in a browser, by mouse and by keyboard."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hasn_cli.cli.main import run
from hasn_cli.compare import Comparison, Method, bicubic, compare, network
from hasn_cli.compare.comparison import most_telling_part, most_telling_spots
from hasn_cli.compare.page import page
from hasn_cli.compare.sheet import sheet
from hasn_cli.enlarge import Size
from hasn_cli.errors import UsageError
from hasn_cli.images import EncodeOptions, Frame, Metadata, Picture, write_picture

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def picture_of(pixels, name="small.png"):
    return Picture(name, "png", pixels.shape[:2], pixels.shape[2], pixels.dtype, [Frame(pixels)])


def noise(height, width, channels=3, dtype=np.uint8):
    return np.random.default_rng(3).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)


class Nearest:
    """An upscaler whose result is easy to predict."""

    def __init__(self, scale):
        self.scale = scale

    def upscale(self, image, progress=None):
        return image.repeat(self.scale, 0).repeat(self.scale, 1)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    lr = np.full((120, 160, 3), 90, np.uint8)
    lr[30:60, 40:80] = noise(30, 40)  # the only difference is here
    hr = lr.repeat(4, 0).repeat(4, 1)
    methods = [bicubic(Size(4)), network("HASN", "nearest, in truth", Nearest, Size(4))]
    return compare(picture_of(lr), methods, reference=picture_of(hr, "large.png"))


def test_every_method_gives_a_view_of_the_enlarged_size_with_its_time(comparison):
    assert [view.label for view in comparison.views] == ["Bicubic", "HASN", "Reference"]
    assert {view.rgb.shape for view in comparison.views} == {(480, 640, 3)}
    assert [view.seconds is not None for view in comparison.views] == [True, True, False]


def test_the_reference_adds_measurements_and_error_maps(comparison):
    interpolated, exact, _ = comparison.views
    assert interpolated.psnr < 40 and interpolated.ssim < 1
    assert exact.psnr == np.inf and exact.ssim == pytest.approx(1)
    assert exact.error.max() == 0 and interpolated.error[120:240, 160:320].max() > 20
    assert interpolated.error[300:].max() == 0


def test_the_spots_lie_where_the_views_differ_most_and_do_not_overlap(comparison):
    first = comparison.spots[0]
    assert 120 <= first.top + first.side / 2 <= 240 and 160 <= first.left + first.side / 2 <= 320
    levels = [spot.difference for spot in comparison.spots]
    assert levels == sorted(levels, reverse=True)
    for index, a in enumerate(comparison.spots):
        for b in comparison.spots[:index]:
            assert abs(a.top - b.top) >= a.side or abs(a.left - b.left) >= a.side


def test_equal_pictures_have_no_spots():
    same = noise(64, 64)
    assert most_telling_spots(same, same) == ()


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (15, 15), (129, 127)])
def test_spots_stay_inside_pictures_of_any_size(size):
    a = noise(*size)
    for spot in most_telling_spots(a, 255 - a):
        assert spot.top >= 0 and spot.top + spot.side <= size[0]
        assert spot.left >= 0 and spot.left + spot.side <= size[1]


def test_a_spot_states_the_mean_difference_in_grey_levels():
    a = np.zeros((256, 256, 3), np.uint8)
    b = a.copy()
    b[:64, 64:128] = 10
    spot = most_telling_spots(a, b)[0]
    assert (spot.top, spot.left, spot.side) == (0, 64, 64)
    assert spot.difference == pytest.approx(10)


def test_only_the_part_that_differs_is_kept_of_a_large_result(monkeypatch):
    monkeypatch.setattr("hasn_cli.compare.comparison.PART_PIXELS", 128 * 128)
    lr = np.full((128, 128, 3), 90, np.uint8)
    lr[100:110, 20:30] = noise(10, 10)
    methods = [bicubic(Size(2)), network("HASN", "", Nearest, Size(2))]
    part = compare(picture_of(lr), methods)
    assert part.is_part and part.sr_size == (256, 256)
    (top, left), (height, width) = part.origin, part.size
    assert height * width <= 128 * 128
    assert top <= 200 and top + height >= 220 and left <= 40 and left + width >= 60
    np.testing.assert_array_equal(
        part.views[1].rgb, lr.repeat(2, 0).repeat(2, 1)[top : top + height, left : left + width]
    )
    assert compare(picture_of(lr), methods, whole=True).size == (256, 256)


def test_the_part_is_never_larger_than_asked_for():
    a = noise(300, 900)
    for pixels in (10_000, 30_000, 100_000):
        (top, left), (height, width) = most_telling_part(a, 255 - a, pixels)
        assert height * width <= pixels and top + height <= 300 and left + width <= 900


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_gray_transparent_and_deep_pictures_are_compared_as_they_look(channels, dtype):
    lr = noise(20, 24, channels, dtype)
    result = compare(picture_of(lr), [bicubic(Size(2)), network("HASN", "", Nearest, Size(2))])
    view = result.views[1]
    assert view.pixels.dtype == np.uint8 and view.pixels.shape == (40, 48, channels)
    if dtype == np.uint16:
        assert np.abs(view.pixels.astype(int) - lr.repeat(2, 0).repeat(2, 1) / 257).max() <= 0.5


def test_a_reference_of_another_size_is_refused_and_a_small_surplus_is_cut_off():
    lr = noise(20, 20)
    methods = [bicubic(Size(4)), network("HASN", "", Nearest, Size(4))]
    with pytest.raises(UsageError, match="84×84"):
        compare(picture_of(lr), methods, reference=picture_of(noise(84, 84)))
    with pytest.raises(UsageError, match="79×80"):
        compare(picture_of(lr), methods, reference=picture_of(noise(80, 79)))
    rimmed = compare(picture_of(lr), methods, reference=picture_of(noise(83, 82)))
    np.testing.assert_array_equal(rimmed.views[2].rgb, noise(83, 82)[:80, :80])


def test_progress_names_each_method_and_reaches_its_end():
    told = []
    methods = [bicubic(Size(2)), Method("Other", "", bicubic(Size(2)).run)]
    compare(picture_of(noise(9, 9)), methods, progress=lambda label, fraction: told.append((label, fraction)))
    assert [fraction for label, fraction in told if label == "Bicubic"][-1] == 1.0
    assert [fraction for label, fraction in told if label == "Other"][-1] == 1.0


# --- the page, as a text ---


def data_of(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def decoded(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))))


def test_the_page_carries_every_view_without_loss(comparison):
    data = data_of(page(comparison))
    assert [view["label"] for view in data["views"]] == [
        "Bicubic", "HASN", "Reference", "Error of Bicubic", "Error of HASN",
    ]  # fmt: skip
    for view, shown in zip(comparison.views, data["views"], strict=False):
        np.testing.assert_array_equal(decoded(shown["image"]), view.pixels)


def test_the_page_keeps_the_colour_profile():
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lr = picture_of(noise(9, 9))
    lr = replace(lr, metadata=replace(lr.metadata, icc=icc))
    data = data_of(page(compare(lr, [bicubic(Size(2)), network("HASN", "", Nearest, Size(2))])))
    image = Image.open(io.BytesIO(base64.b64decode(data["views"][0]["image"].split(",", 1)[1])))
    assert image.info["icc_profile"] == icc


def test_colours_stated_by_code_points_become_a_profile_of_page_and_sheet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    p3 = Metadata(cicp=bytes([12, 13, 0, 1]))
    write_picture(replace(picture_of(noise(20, 20)), metadata=p3), Path("p3.png"), "png", EncodeOptions())
    assert run(["compare", "p3.png", "-s", "2"]) == 0
    assert run(["compare", "p3.png", "-s", "2", "-o", "sheet.png"]) == 0
    first = data_of(Path("p3_compare.html").read_text(encoding="utf-8"))["views"][0]["image"].split(",", 1)[1]
    for shown in (Image.open(io.BytesIO(base64.b64decode(first))), Image.open("sheet.png")):
        assert b"RGB " in shown.info["icc_profile"][:24]


def test_a_picture_over_the_limit_is_compared_if_asked_to(small, capsys):
    assert run(["compare", str(small), "-s", "2", "--max-megapixels", "0.001"]) == 1
    assert "--max-input-megapixels" in capsys.readouterr().err
    assert run(["compare", str(small), "-s", "2", "--max-megapixels", "0"]) == 0


def test_no_file_name_can_inject_code_into_the_page(comparison):
    evil = "</script><script>alert(1)</script><b>\u2028&amp;"
    text = page(replace(comparison, name=evil), about=evil)
    assert evil not in text
    assert data_of(text)["name"] == evil


def test_the_page_blocks_all_network_access(comparison):
    text = page(comparison)
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", text)


# --- the page, in a browser ---


class Shown:
    """The page as a browser shows it."""

    def __init__(self, driver):
        self.driver = driver

    def __getitem__(self, name):
        return self.driver.find_element("id", name)

    @property
    def divider(self):
        return int(self["handle"].get_attribute("aria-valuenow"))

    @property
    def zoom(self):
        return int(self.driver.execute_script("return document.getElementById('zoom-now').value").split()[0])

    @property
    def corner(self):
        return self.place("image-left")

    def place(self, name):
        """Left and top of an element, CSS pixels of the window."""
        script = "const box = document.getElementById(arguments[0]).getBoundingClientRect(); return [box.x, box.y]"
        return tuple(self.driver.execute_script(script, name))

    def press(self, element, *keys):
        element.send_keys(*keys)

    def drag(self, element, dx, dy=0):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).move_to_element(element).click_and_hold().move_by_offset(dx, dy).release().perform()


@pytest.fixture
def shown(browser, comparison, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page(comparison), encoding="utf-8")
    browser.get_log("browser")
    browser.get(path.as_uri())
    yield Shown(browser)
    assert browser.get_log("browser") == []  # no error, no warning, nothing that the policy had to block


def test_the_divider_follows_the_mouse(shown):
    width = shown["stage"].size["width"]
    assert shown.divider == 50
    shown.drag(shown["handle"], width // 4)
    assert shown.divider == 75
    clip = shown.driver.execute_script("return getComputedStyle(document.getElementById('half-left')).clipPath")
    hidden = float(re.search(r"inset\(0px ([\d.]+)%", clip)[1])
    assert hidden == pytest.approx(25, abs=0.2)
    shown.drag(shown["handle"], -width * 3 // 4)
    assert shown.divider == 0


def test_the_divider_is_a_slider_for_the_keyboard(shown):
    from selenium.webdriver import ActionChains, Keys

    handle = shown["handle"]
    for keys, expected in [
        ((Keys.ARROW_RIGHT,), 51), ((Keys.ARROW_UP,), 52), ((Keys.ARROW_LEFT,), 51), ((Keys.PAGE_DOWN,), 41),
        ((Keys.HOME,), 0), ((Keys.ARROW_LEFT,), 0), ((Keys.END,), 100), ((Keys.PAGE_UP,), 100),
    ]:  # fmt: skip
        shown.press(handle, *keys)
        assert shown.divider == expected
    ActionChains(shown.driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_LEFT).key_up(Keys.SHIFT).perform()
    assert shown.divider == 90
    assert handle.get_attribute("role") == "slider"
    assert handle.get_attribute("aria-valuetext") == "Bicubic on 90 %, HASN on 10 %"


def test_tab_reaches_the_picture_and_every_control(shown):
    from selenium.webdriver import ActionChains, Keys

    reached = []
    for _ in range(12):
        ActionChains(shown.driver).send_keys(Keys.TAB).perform()
        reached.append(shown.driver.switch_to.active_element.get_attribute("id"))
    controls = [
        "stage",
        "handle",
        "pick-left",
        "swap",
        "pick-right",
        "zoom-out",
        "zoom-in",
        "zoom-fit",
        "zoom-one",
        "full",
    ]
    assert [name for name in reached if name in controls] == controls
    for element in shown.driver.find_elements("css selector", "button, select, [role], img"):
        assert element.accessible_name, element.get_attribute("outerHTML")[:80]


def test_zoom_shows_whole_pixels_and_fit_the_whole_picture(shown):
    stage = shown["stage"]
    fitted = shown.zoom
    shown["zoom-one"].click()
    assert shown.zoom == 100
    assert shown["image-left"].size == {"width": 640, "height": 480}
    for expected in (200, 300):
        shown.press(stage, "+")
        assert shown.zoom == expected
    rendering = "return getComputedStyle(document.getElementById('image-left')).imageRendering"
    assert shown.driver.execute_script(rendering) == "pixelated"
    shown.press(stage, "0")
    assert shown.zoom == fitted
    assert shown["image-left"].size["width"] <= stage.size["width"]


def test_a_zoomed_picture_is_moved_by_mouse_and_arrow_keys_but_not_out_of_sight(shown):
    from selenium.webdriver import Keys

    for _ in range(4):
        shown["zoom-in"].click()
    x, y = shown.corner
    shown.press(shown["stage"], Keys.ARROW_RIGHT)
    assert shown.corner == (x - 50, y)
    shown.drag(shown["tag-left"], 30, 20)
    assert shown.corner == (x - 20, y + 20)
    for _ in range(5):
        shown.drag(shown["tag-left"], 900, 500)
    assert shown.corner == pytest.approx(shown.place("stage"), abs=1)


def wheel(shown, x, y, control):
    event = {"type": "mouseWheel", "x": x, "y": y, "deltaX": 0, "deltaY": -100, "modifiers": 2 if control else 0}
    shown.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def test_ctrl_and_the_wheel_zoom_about_the_pointer_and_the_bare_wheel_does_not(shown):
    shown["zoom-one"].click()
    shown.press(shown["stage"], "+")
    (x, y), zoom = shown.corner, shown.zoom
    left, top = shown.place("stage")
    wheel(shown, left + 300, top + 200, control=False)
    assert shown.zoom == zoom
    wheel(shown, left + 300, top + 200, control=True)
    assert shown.zoom > zoom
    grown = shown.zoom / zoom
    expected = left + 300 - (left + 300 - x) * grown, top + 200 - (top + 200 - y) * grown
    assert shown.corner == pytest.approx(expected, abs=5)  # the zoom is shown in whole per cent


def test_two_fingers_zoom(shown):
    left, top = shown.place("stage")

    def touch(kind, *distances):
        points = [{"x": left + 300 + d, "y": top + 200, "id": index} for index, d in enumerate(distances)]
        shown.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    shown["zoom-one"].click()
    shown.press(shown["stage"], "+")
    touch("touchStart", -50, 50)
    for distance in (60, 80, 100):
        touch("touchMove", -distance, distance)
    touch("touchEnd")
    assert shown.zoom == pytest.approx(400, abs=4)


def test_a_double_click_zooms_in_and_out_again(shown):
    from selenium.webdriver import ActionChains

    fitted = shown.zoom
    for expected in (2 * fitted, fitted):
        ActionChains(shown.driver).move_to_element(shown["tag-left"]).double_click().perform()
        assert shown.zoom == pytest.approx(expected, abs=1)


def test_sides_can_be_chosen_and_swapped(shown):
    from selenium.webdriver.support.ui import Select

    Select(shown["pick-right"]).select_by_visible_text("Error of Bicubic")
    assert shown["legend"].is_displayed()
    assert shown["image-right"].get_attribute("alt") == "small.png, Error of Bicubic"
    shown["swap"].click()
    assert shown["image-left"].get_attribute("alt") == "small.png, Error of Bicubic"
    assert shown["image-right"].get_attribute("alt") == "small.png, Bicubic"


def test_a_spot_shows_the_exact_pixels_and_a_click_goes_there(shown, comparison):
    buttons = shown.driver.find_elements("css selector", "#spots button")
    assert len(buttons) == len(comparison.spots)
    pixels = shown.driver.execute_async_script("""
        const done = arguments[0];
        const canvas = document.querySelectorAll("#spots canvas")[1];
        const wait = () => {
          const side = canvas.width;
          const data = canvas.getContext("2d").getImageData(0, 0, side, side).data;
          if (side === 300 || !data[3]) requestAnimationFrame(wait);
          else done([side, Array.from(data)]);
        };
        wait();
    """)
    side, values = pixels
    drawn = np.array(values, np.uint8).reshape(side, side, 4)[..., :3]
    spot, sr = comparison.spots[0], comparison.views[1].rgb
    centre = sr[spot.top + spot.side // 2 - 2 : spot.top + spot.side // 2 + 2, spot.left : spot.left + spot.side]
    assert {tuple(colour) for colour in centre.reshape(-1, 3)[::7]} & {tuple(c) for c in drawn.reshape(-1, 3)}
    assert {tuple(c) for c in drawn.reshape(-1, 3)} <= {tuple(c) for c in sr.reshape(-1, 3)}
    buttons[0].click()
    assert shown.zoom >= 200
    assert shown.driver.switch_to.active_element.get_attribute("id") == "handle"


def test_the_table_shows_times_and_marks_the_best(shown):
    table = shown["figures"].text
    assert "PSNR-Y" in table and " s" in table and "MP/s" in table
    best = [cell.text for cell in shown.driver.find_elements("css selector", "td.best")]
    assert best == ["∞ dB", "1.0000"]


def test_the_theme_can_be_switched(shown):
    ground = "return getComputedStyle(document.body).backgroundColor"
    before = shown.driver.execute_script(ground)
    shown["theme"].click()
    assert shown.driver.execute_script(ground) != before


def test_on_a_phone_nothing_is_wider_than_the_screen(shown):
    shown.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 3, "mobile": True}
    )
    try:
        shown.driver.refresh()
        assert shown.driver.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        shown.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# --- the sheet ---


def test_the_sheet_shows_the_spots_of_every_view(comparison):
    drawn = sheet(comparison)
    assert drawn.ndim == 3 and drawn.shape[2] == 3 and drawn.dtype == np.uint8
    spot, exact = comparison.spots[0], comparison.views[1].rgb
    row = exact[spot.top + spot.side // 2, spot.left + spot.side // 2 - 8 : spot.left + spot.side // 2 + 8]
    flat = drawn.reshape(-1, 3)
    assert all((flat == colour).all(1).any() for colour in row)


def test_the_sheet_can_write_names_that_are_long_or_not_latin(comparison):
    assert sheet(replace(comparison, name="ещё " * 200)).shape == sheet(comparison).shape


def test_a_sheet_of_equal_pictures_is_drawn_too():
    method = network("Same", "", Nearest, Size(2))
    assert sheet(compare(picture_of(noise(30, 40)), [method, method])).shape[2] == 3


# --- the terminal ---

PREVIEW = """
import sys
sys.path.insert(0, {tests!r})
from rich.console import Console
from test_compare import Nearest, noise, picture_of
from hasn_cli.compare import bicubic, compare, network
from hasn_cli.compare.terminal import drawer, preview
from hasn_cli.enlarge import Size
console = Console()
draw = drawer(console)
if draw is None:
    raise SystemExit
both = compare(picture_of(noise(40, 40)), [bicubic(Size(4)), network("HASN", "", Nearest, Size(4))])
for part in preview(both, draw, console.width):
    console.print(part)
"""
SIXEL, KITTY = b"\x1bP", b"\x1b_G"


def on_terminal(answers, **environment):
    """What the preview writes to a terminal with these answers (pattern → answer, with %s for the matched group)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 800, 600))
    script = PREVIEW.format(tests=str(Path(__file__).parent))
    env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "80", **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=env
    )
    os.close(theirs)
    written, deadline = b"", time.monotonic() + 300
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 0.2)[0]:
            continue
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        written += chunk
        for query, answer in answers.items():
            found = re.search(query, chunk)
            if found:
                os.write(ours, answer % found.groups())
    assert process.wait(60) == 0, process.stderr.read().decode()
    process.stderr.close()
    os.close(ours)
    return written


DA1 = rb"\x1b\[c"
KITTY_QUERY = rb"\x1b_Gi=(\d+),[^;]*a=q[^;]*;AAAA\x1b\\"


@pytest.mark.parametrize(
    ("answers", "marks", "never"),
    [
        ({DA1: b"\x1b[?62;4c"}, SIXEL, "▀".encode()),
        ({DA1: b"\x1b[?62c", KITTY_QUERY: b"\x1b_Gi=%s;OK\x1b\\"}, KITTY, SIXEL),
        ({DA1: b"\x1b[?62c", KITTY_QUERY: b"\x1b_Gi=%s;ENOSYS\x1b\\"}, "▀".encode(), SIXEL),
    ],
    ids=["sixel", "kitty", "half blocks"],
)
def test_the_terminal_is_asked_and_gets_the_best_that_it_supports(answers, marks, never):
    written = on_terminal(answers)
    assert marks in written and never not in written
    assert written.count(b"Bicubic") == 3 and written.count(b"mean difference") == 3


def test_half_blocks_show_squares():
    written = on_terminal({DA1: b"\x1b[?62c", KITTY_QUERY: b"\x1b_Gi=%s;ENOSYS\x1b\\"}).decode()
    rows = [line.count("▀") for line in written.splitlines() if "▀" in line]
    assert set(rows) == {79}  # two squares of 39 columns, which are half as wide as rows are high, and one between
    assert len(rows) in (3 * 19, 3 * 20)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=["dumb", "no colour"])
def test_a_terminal_without_pictures_or_colours_gets_nothing(environment):
    assert on_terminal({}, **environment) == b""


# --- the command ---


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.png"
    Image.open(EXAMPLES / "flower.png").convert("RGB").crop((40, 40, 88, 80)).save(path)
    return path


def test_the_command_writes_the_page_beside_the_picture(small, capsys):
    assert run(["compare", str(small), "-s", "2"]) == 0
    text = small.with_name("small_compare.html").read_text(encoding="utf-8")
    data = data_of(text)
    assert [view["label"] for view in data["views"]] == ["Bicubic", "HASN"]
    assert data["lrSize"] == [40, 48] and data["srSize"] == [80, 96] and data["factor"] == 2
    out, err = capsys.readouterr()
    assert out == "" and "small_compare.html" in err and "HASN" in err


def test_two_weights_are_compared_with_each_other(small, tmp_path):
    from hasn_cli.weights import bundled_path

    other = tmp_path / "mine.safetensors"
    shutil.copy(bundled_path(3), other)
    target = tmp_path / "two.html"
    assert run(["compare", str(small), "-s", "3", "-w", "clean", "-w", str(other), "-o", str(target)]) == 0
    data = data_of(target.read_text(encoding="utf-8"))
    assert [view["label"] for view in data["views"]] == ["clean", "mine"]
    assert data["spots"] == []  # the same weights under two names


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (["hasn"], ["HASN"]),
        (["hasn", "released"], ["HASN", "released"]),
        (["runs/new.pth", "me/model"], ["new", "me/model"]),
        (["me/model@v1.2"], ["me/model@v1.2"]),
        (["a/x4.pth", "b/x4.pth"], ["x4 (1)", "x4 (2)"]),
        (["hasn", "hasn"], ["HASN (1)", "HASN (2)"]),
    ],
)
def test_labels_are_short_and_distinct(weights, expected):
    from hasn_cli.cli.compare import labels

    assert labels(weights) == expected


def test_a_sheet_that_its_format_cannot_hold_is_refused(small, capsys):
    assert run(["compare", str(small), "-s", "2", "-o", "sheet.ico"]) == 1
    said = capsys.readouterr().err
    assert "too many for ICO" in said and "-o sheet.png" in said
    assert not (small.parent / "sheet.ico").exists()


def test_the_command_writes_a_sheet_if_the_output_is_named_like_a_picture(small, tmp_path):
    target = tmp_path / "sheet.webp"
    assert run(["compare", str(small), "-s", "2", "-o", str(target), "-q"]) == 0
    with Image.open(target) as image:
        assert image.format == "WEBP" and image.width > image.height > 300


@pytest.mark.parametrize("target", ["page.html", "sheet.png"])
def test_names_that_are_not_unicode_or_contain_control_characters_are_escaped(
    small, tmp_path, monkeypatch, capsys, target
):
    import torch

    from hasn_cli.weights import load_network

    picture = small.rename(tmp_path / os.fsdecode(b"caf\xe9\x1b[31m.png"))
    other = tmp_path / os.fsdecode(b"w\xe9.pth")
    torch.save(load_network("hasn", 2).state_dict(), other)
    arguments = ["compare", str(picture), "-s", "2", "-w", "hasn", "-w", str(other), "-o", str(tmp_path / target)]
    monkeypatch.setattr(sys, "argv", ["hasn", *arguments])
    assert run(arguments) == 0
    assert "\x1b" not in capsys.readouterr().err
    if target == "page.html":
        data = data_of((tmp_path / target).read_text(encoding="utf-8"))
        assert data["name"] == "caf\\udce9\\x1b[31m.png" and data["views"][1]["label"] == "w\\udce9"
        assert "caf\\udce9" in data["about"]
    else:
        with Image.open(tmp_path / target) as image:
            assert image.format == "PNG"


def test_the_picture_may_come_through_a_pipe(small, path_with_hasn):
    def piped(*arguments):
        command = ["hasn", "compare", "-", "-s", "2", *arguments]
        env = {**os.environ, "PATH": path_with_hasn}
        return subprocess.run(command, input=small.read_bytes(), env=env, cwd=small.parent, capture_output=True)

    assert piped("-o", "page.html").returncode == 0
    assert data_of(small.with_name("page.html").read_text(encoding="utf-8"))["lrSize"] == [40, 48]
    assert piped().returncode == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "result.txt"], 2, "unknown ending"),
        (["-o", "taken.html"], 1, "exists already"),
        (["--reference", "small.png"], 2, "--reference is the large original"),
        (["-w", "nowhere.pth"], 1, "nowhere.pth"),
        (["-o", "taken.html/page.html"], 1, "taken.html is a file, not a folder"),
        (["-s", "17"], 2, "17"),
    ],
)
def test_an_impossible_comparison_is_an_error_and_writes_nothing(small, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(small.parent)
    Path("taken.html").write_text("mine")
    assert run(["compare", "small.png", *arguments]) == code
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in small.parent.iterdir()) == ["small.png", "taken.html"]
    assert Path("taken.html").read_text() == "mine"


def test_without_a_terminal_the_preview_does_nothing(small, capsys):
    assert run(["compare", str(small), "--terminal"]) == 0
    told = capsys.readouterr()
    assert told.out == "" and "stdout is not a terminal" in told.err
    assert [path.name for path in small.parent.iterdir()] == ["small.png"]
