"""`hasn serve`: the HTTP interface, the queue, and who may use them. The page is tested in test_serve_page.py."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from command import save
from PIL import Image

pytest.importorskip("uvicorn", reason="the extra `web` is not installed")
pytest.importorskip("starlette", reason="the extra `web` is not installed")

from served import Gate, Served, png, served

from hasn_cli.batch.settings import Settings
from hasn_cli.errors import OutputError, UsageError, install_command
from hasn_cli.serve.archive import unique_names
from hasn_cli.serve.asking import Asking, result_name, safe_name
from hasn_cli.serve.engine import Engine
from hasn_cli.serve.limits import Limits
from hasn_cli.serve.security import is_loopback
from hasn_cli.serve.server import choose_token, private_folder

GROUP = "0123456789abcdef"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A server that computes."""
    engine = Engine(Settings(max_pixels=100_000), 2)
    limits = Limits(upload=200_000, input_pixels=100_000, output_pixels=400_000)
    with served(tmp_path_factory.mktemp("real"), engine, limits=limits, weights=("clean", "photo")) as server:
        yield server


@pytest.fixture
def gate(tmp_path):
    """A server whose pictures wait, two at a time, until the gate is opened."""
    engine = Gate()
    with served(tmp_path, engine, limits=Limits(waiting=3, kept=50, stored=60_000)) as server:
        server.gate = engine
        yield server
        engine.opened.set()


def until(condition):
    """Wait until the condition holds. If it never does, the test's time limit ends this."""
    while not condition():
        time.sleep(0.01)


def read(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def files_in(folder) -> list[str]:
    # unlike rglob, os.walk passes over folders that are deleted meanwhile
    return sorted(name for _, _, names in os.walk(folder) for name in names)


# --- what is computed ---


def test_the_answer_has_the_bytes_that_the_command_line_writes(real, hasn, tmp_path):
    save(tmp_path / "a.png", dpi=(200, 200))
    assert hasn("a.png", "-s", "2", "-o", "b.png").code == 0
    answer = real.upscale((tmp_path / "a.png").read_bytes(), scale=2)
    assert answer.status_code == 200
    assert answer.content == (tmp_path / "b.png").read_bytes()
    assert answer.headers["content-type"] == "image/png"


def test_depth_transparency_and_metadata_survive(real):
    deep = np.random.default_rng(1).integers(0, 65_536, (8, 9), np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG", dpi=(300, 300))
    image = Image.open(io.BytesIO(real.upscale(buffer.getvalue(), scale=2).content))
    assert image.mode.startswith("I") and image.size == (18, 16)
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert read(real.upscale(png(mode="RGBA"), scale=2).content).shape == (32, 40, 4)


def test_parameters_choose_size_format_and_name(real):
    answer = real.upscale(png(), scale="150%", format="jpg", quality=80, strip="true", name="trip/a.png")
    image = Image.open(io.BytesIO(answer.content))
    assert image.format == "JPEG" and image.size == (30, 24)
    assert answer.headers["content-disposition"] == 'attachment; filename="a_x1.5.jpg"'
    assert Image.open(io.BytesIO(real.upscale(png(), fit="50x50").content)).size == (50, 40)
    assert Image.open(io.BytesIO(real.upscale(png(), width=44).content)).size == (44, 35)


def test_a_form_with_a_file_does_the_same_as_a_body(real):
    answer = real.client.post("/upscale", files={"picture": ("café.png", png())}, data={"scale": "2", "format": "webp"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/webp"
    assert read(answer.content).shape == (32, 40, 3)
    assert "caf%C3%A9_x2.webp" in answer.headers["content-disposition"]


def test_weights_are_chosen_for_each_picture_or_by_name_as_on_the_command_line(real, hasn, tmp_path):
    save(tmp_path / "a.jpg", size=(32, 24), quality=50)
    data, results = (tmp_path / "a.jpg").read_bytes(), {}
    for asked, option in (("auto", "hasn"), ("clean", "clean"), ("photo", "photo")):
        assert hasn("a.jpg", "-s", "2", "-w", option, "-o", f"{asked}.png").code == 0
        results[asked] = real.upscale(data, scale=2, weights=asked, format="png").content
        assert results[asked] == (tmp_path / f"{asked}.png").read_bytes()
    assert results["clean"] != results["photo"]
    job = real.wait(real.create(data, scale=2)["id"])
    assert "JPEG, quality about 50" in job["weights"]
    assert real.client.delete(f"/jobs/{job['id']}").status_code == 204


def test_nothing_remains_on_the_disk_after_an_answer(real):
    for data in (png(), b"no picture"):
        real.upscale(data, scale=2)
    until(lambda: not files_in(real.folder))
    assert real.call(lambda: real.jobs.stored) == 0


@pytest.mark.parametrize(
    ("wishes", "status", "words"),
    [
        ({"scale": "17"}, 400, "scale cannot be '17'"),
        ({"scale": "1e999999999"}, 400, "scale cannot be"),
        ({"scale": "2", "width": "40"}, 400, "scale and width or height exclude each other"),
        ({"format": "exe"}, 400, "format cannot be 'exe'"),
        ({"quality": "0"}, 400, "quality cannot be '0'"),
        ({"weights": "../../etc/passwd"}, 400, "weights cannot be"),
        ({"weights": "hf://someone/something"}, 400, "weights cannot be"),
        ({"background": "no colour"}, 400, "unknown colour"),
        ({"colour": "red"}, 400, "there is no parameter 'colour'"),
        ({"group": GROUP}, 400, "there is no parameter 'group'"),
        ({"scale": "16"}, 422, "the result would have"),
    ],
)
def test_a_wrong_wish_is_answered_in_words(real, wishes, status, words):
    answer = real.upscale(png(100, 100), **wishes)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]


def test_hints_name_parameters_instead_of_options(real):
    answer = real.upscale(png(mode="RGBA"), scale=2, format="jpg").json()
    assert "transparency" in answer["error"]
    assert answer["hint"] == "use background=white or format=png"


@pytest.mark.parametrize("data", [b"", b"no picture at all", png()[:60], b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_a_broken_picture_fails_alone(real, data):
    answer = real.upscale(data, scale=2, name="broken.png")
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]
    assert str(real.folder) not in answer.text  # no path of this machine
    assert real.upscale(png(), scale=2).status_code == 200


def test_a_client_that_sends_everything_before_it_reads_still_learns_why_it_was_refused(real):
    head = f"POST /upscale?scale=99 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {4 << 20}\r\n\r\n".encode()
    for request in (head, head.replace(b"scale=99", b"scale=2")):
        assert b'{"error":"' in real.raw(request + b"x" * (4 << 20))


def test_a_file_or_a_picture_over_the_limit_is_refused(real):
    assert real.upscale(b"x" * 300_000).status_code == 413

    def pieces():
        for _ in range(6):
            yield b"x" * 50_000

    assert real.client.post("/upscale", content=pieces()).status_code == 413  # without a declared length
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    answer = real.upscale(bomb.getvalue(), scale=2)
    assert answer.status_code == 422 and "megapixels, over the limit" in answer.json()["error"]


# --- jobs ---


def test_a_job_tells_its_progress_and_keeps_its_result_until_it_is_fetched(real):
    job = real.create(png(), scale=2, name="a.png")
    assert real.wait(job["id"])["state"] == "done"
    job = real.job(job["id"])
    assert job["size"] == [16, 20] and job["target_size"] == [32, 40] and job["progress"] == 1
    kept = real.client.get(job["result"], params={"keep": "true"})
    assert read(kept.content).shape == (32, 40, 3) and len(kept.content) == job["bytes"]
    assert real.client.get(job["result"]).content == kept.content
    until(lambda: real.client.get(f"/jobs/{job['id']}").status_code == 404)
    until(lambda: not files_in(real.folder))


def test_a_failed_job_says_why(real):
    job = real.create(b"no picture", name="a.png")
    job = real.wait(job["id"])
    assert job["state"] == "failed" and "a.png" in job["error"]
    assert real.client.get(f"/jobs/{job['id']}/result").status_code == 409
    assert real.client.delete(f"/jobs/{job['id']}").status_code == 204


def test_a_group_is_followed_together_and_fetched_as_a_zip(real):
    names = ["a.png", "a.png", "in/b.png", "../../evil.png"]
    jobs = [real.create(png(seed=seed), scale=2, name=name, group=GROUP) for seed, name in enumerate(names)]
    jobs.append(real.create(b"broken", name="c.png", group=GROUP))
    over = set()
    with real.client.stream("GET", f"/groups/{GROUP}/events") as stream:
        for line in stream.iter_lines():
            job = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            over |= {job["id"]} if job.get("state") in ("done", "failed") else set()
            if len(over) == len(jobs):
                break
    with zipfile.ZipFile(io.BytesIO(real.client.get(f"/groups/{GROUP}/zip").content)) as archive:
        assert archive.namelist() == ["a_x2.png", "a_x2 (2).png", "in/b_x2.png", "evil_x2.png"]
        assert archive.testzip() is None
        for name, job in zip(archive.namelist(), jobs, strict=False):
            assert archive.read(name) == real.client.get(f"/jobs/{job['id']}/result").content
    assert real.client.delete(f"/jobs/{jobs[-1]['id']}").status_code == 204


def test_a_preview_shows_what_a_browser_cannot(real):
    buffer = io.BytesIO()
    Image.fromarray(read(png())).save(buffer, "TIFF")
    job = real.wait(real.create(buffer.getvalue(), scale=2)["id"])
    before, after = (real.client.get(f"/jobs/{job['id']}/preview/{which}") for which in ("input", "result"))
    assert before.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(read(before.content), read(png()))
    assert read(after.content).shape == (32, 40, 3)
    assert real.call(lambda: real.jobs.stored) == sum(
        path.stat().st_size for path in real.folder.rglob("*") if path.is_file()
    )
    assert real.client.delete(f"/jobs/{job['id']}").status_code == 204
    floats = np.linspace(-1, 2, 100, dtype=np.float32).reshape(10, 10)
    tifffile.imwrite(buffer := io.BytesIO(), floats)
    job = real.wait(real.create(buffer.getvalue(), scale=2, format="tif")["id"])
    shown = read(real.client.get(f"/jobs/{job['id']}/preview/input").content)
    np.testing.assert_array_equal(shown, np.rint(floats.clip(0, 1) * 255))
    assert real.client.delete(f"/jobs/{job['id']}").status_code == 204


def test_two_are_computed_at_a_time_and_the_rest_wait_in_order(gate):
    jobs = [gate.create(png(), name=f"{number}.png") for number in range(4)]
    until(lambda: gate.gate.inside == 2)
    assert [gate.job(job["id"])["state"] for job in jobs] == ["running", "running", "waiting", "waiting"]
    gate.gate.opened.set()
    assert all(gate.wait(job["id"])["state"] == "done" for job in jobs)
    assert gate.gate.most == 2
    assert sorted(gate.gate.names[:2]) == ["0.png", "1.png"] and gate.gate.names[2:] == ["2.png", "3.png"]


def test_a_full_queue_answers_429_with_the_time_to_wait(gate):
    jobs = [gate.create(png()) for _ in range(2)]
    until(lambda: gate.gate.inside == 2)
    jobs += [gate.create(png()) for _ in range(3)]
    answer = gate.upscale(png())
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert gate.client.delete(f"/jobs/{jobs[-1]['id']}").status_code == 204  # which makes room
    assert gate.client.post("/jobs", content=png()).status_code == 202


def test_a_full_disk_quota_is_refused_and_deleting_makes_room(gate):
    job = gate.create(png() + b"\0" * 58_500)
    assert gate.client.post("/jobs", content=png()).status_code == 507
    assert gate.client.delete(f"/jobs/{job['id']}").status_code == 204
    until(lambda: gate.client.post("/jobs", content=png()).status_code == 202)


def test_a_running_job_can_be_cancelled_and_its_files_are_deleted(gate):
    job = gate.create(png())
    until(lambda: gate.gate.inside == 1)
    assert gate.client.delete(f"/jobs/{job['id']}").status_code == 204
    until(lambda: gate.gate.inside == 0 and not files_in(gate.folder))
    assert gate.client.get(f"/jobs/{job['id']}").status_code == 404


def test_a_server_that_stops_tells_those_who_wait(tmp_path):
    statuses = []

    def ask(server):
        statuses.append(server.upscale(png()).status_code)

    engine = Gate()
    with served(tmp_path, engine) as server:
        threads = [threading.Thread(target=ask, args=[server]) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(engine.names) == 2 and server.call(lambda: len(server.jobs._waiting) == 2))
        server.stop()
        for thread in threads:
            thread.join(30)
    assert statuses == [503] * 4


def test_a_client_that_disconnects_frees_its_work(gate):
    data = png()
    with socket.create_connection(("127.0.0.1", gate.port)) as link:
        head = f"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        link.sendall(head.encode() + data)
        until(lambda: gate.gate.inside == 1)
    until(lambda: gate.gate.inside == 0 and not files_in(gate.folder))


def test_an_upload_that_breaks_off_leaves_nothing(gate):
    with socket.create_connection(("127.0.0.1", gate.port)) as link:
        link.sendall(b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n" + b"x" * 1000)
        until(lambda: files_in(gate.folder))
    until(lambda: not files_in(gate.folder))
    assert gate.gate.names == [] and gate.call(lambda: gate.jobs.stored) == 0


def test_results_expire_and_the_jobs_of_a_page_that_was_left_are_cancelled(gate):
    job = gate.create(png(), group=GROUP)
    until(lambda: gate.gate.inside == 1)
    with gate.client.stream("GET", f"/groups/{GROUP}/events") as stream:
        assert next(stream.iter_lines())
    until(lambda: gate.call(lambda: GROUP in gate.jobs._left))
    gate.call(gate.jobs.expire, time.monotonic() + 60)
    assert gate.job(job["id"])["state"] == "running"
    gate.call(gate.jobs.expire, time.monotonic() + 130)
    assert gate.wait(job["id"])["state"] == "cancelled"
    gate.call(gate.jobs.expire, time.monotonic() + 3700)
    assert gate.client.get(f"/jobs/{job['id']}").status_code == 404


def test_an_unexpected_error_is_logged_and_the_queue_goes_on(tmp_path, caplog):
    class Wrong(Gate):
        def compute(self, source, target, name, settings, tell):
            if name == "wrong.png":
                raise ZeroDivisionError("a mistake of ours, with a secret")
            return super().compute(source, target, name, settings, tell)

    engine = Wrong()
    engine.opened.set()
    with served(tmp_path, engine) as server:
        for _ in range(3):
            answer = server.upscale(png(), name="wrong.png")
            assert answer.status_code == 500 and "secret" not in answer.text
        assert server.upscale(png()).status_code == 200
    assert "a mistake of ours" in caplog.text


def test_a_full_disk_is_answered_without_the_server_s_paths(tmp_path):
    class Full(Gate):
        def compute(self, source, target, name, settings, tell):
            raise OutputError(f"{target}: no space left on device")

    with served(tmp_path, Full()) as server:
        answer = server.upscale(png())
        assert answer.status_code == 507 and str(tmp_path) not in answer.text


def test_a_picture_that_takes_too_long_is_given_up(tmp_path):
    engine = Gate()
    with served(tmp_path, engine, limits=Limits(compute=0.05)) as server:
        answer = server.upscale(png(), name="a.png")
        assert answer.status_code == 504 and "a.png" in answer.json()["error"]
        engine.opened.set()


def test_an_upload_that_pauses_is_given_up(tmp_path):
    with served(tmp_path, Gate(), limits=Limits(stall=0.05)) as server:
        head = b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as link, link.makefile("rb") as stream:
            link.sendall(head)
            assert b" 408 " in stream.readline()


def test_many_small_requests_at_once_are_all_answered(real):
    pictures = [png(6, 5, seed=seed) for seed in range(100)]

    def ask(data: bytes) -> tuple[int, tuple[int, ...]]:
        answer = real.upscale(data, scale=2)
        return answer.status_code, read(answer.content).shape

    with ThreadPoolExecutor(100) as threads:
        assert set(threads.map(ask, pictures)) == {(200, (10, 12, 3))}
    until(lambda: not files_in(real.folder))


# --- who may use it ---


def ask(server: Served, headers: dict[str, str], path: str = "/openapi.json", method: str = "GET") -> int:
    return server.client.request(method, path, headers=headers).status_code


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:7654", "127.1.2.3", "[::1]:7654", "localhost."]
)
def test_names_of_this_machine_are_accepted(real, host):
    assert ask(real, {"Host": host}) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.1.5", "0.0.0.0", "",
             "localhost@evil.example", "evil.example#localhost", "localhost:80:80", "[::1", "::1", "2130706433"],
)  # fmt: skip
def test_other_names_are_refused_so_that_no_page_can_rebind_its_own(real, host):
    assert ask(real, {"Host": host}) == 403


def test_a_request_without_or_with_two_host_headers_is_refused(real):
    assert b" 400 " in real.raw(b"GET / HTTP/1.1\r\n\r\n").splitlines()[0]
    assert b" 403 " in real.raw(b"GET / HTTP/1.0\r\n\r\n").splitlines()[0]
    two = real.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n").splitlines()[0]
    assert b" 400 " in two or b" 403 " in two


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "https://localhost.evil", "file://"]
)
@pytest.mark.parametrize("path", ["/upscale", "/jobs", "/jobs/some"])
def test_requests_of_other_pages_are_refused_before_anything_is_read(real, origin, path):
    headers = {"Host": "localhost:7654", "Origin": origin, "Content-Type": "text/plain"}
    assert ask(real, headers, path, "POST") == 403
    assert ask(real, {**headers, "Access-Control-Request-Method": "POST"}, path, "OPTIONS") == 403


def test_our_own_page_may_ask_and_a_link_from_elsewhere_may_only_open_the_page(real):
    own = {"Host": "localhost:7654", "Origin": "http://localhost:7654", "Sec-Fetch-Site": "same-origin"}
    assert ask(real, own) == 200
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert ask(real, visit, "/") == 200
    assert ask(real, visit) == 403
    assert ask(real, {**visit, "Sec-Fetch-Dest": "iframe"}, "/") == 403
    assert ask(real, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "/assets/page.js") == 403
    assert ask(real, {"Sec-Fetch-Site": "same-site"}, "/upscale", "POST") == 403


def test_every_answer_forbids_frames_sniffing_and_other_sources(real):
    for path in ("/", "/openapi.json", "/nothing", "/assets/page.js"):
        headers = real.client.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


TOKEN = "only-for-this-test-0123456789"


@pytest.fixture
def closed(tmp_path):
    """A server with a token."""
    engine = Gate()
    engine.opened.set()
    with served(tmp_path, engine, token=TOKEN) as server:
        yield server


def test_without_the_token_nothing_is_answered(closed):
    for path in (
        "/",
        "/openapi.json",
        "/assets/page.js",
        f"/?token={TOKEN[:-1]}",
        "/?token=",
        f"/openapi.json?token={TOKEN}",
    ):
        assert closed.client.get(path).status_code == 401, path
    for given in ("Bearer wrong", "Bearer", f"Basic {TOKEN}", TOKEN, "Bearer \xe9"):
        assert closed.client.get("/", headers={"Authorization": given.encode("latin-1")}).status_code == 401
    assert closed.upscale(png()).status_code == 401


def test_the_token_is_taken_from_the_header_or_from_the_cookie_that_the_link_sets(closed):
    assert closed.client.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    answer = closed.client.get(f"/?token={TOKEN}")
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert closed.client.get("/").status_code == 200  # the client keeps cookies
    assert closed.upscale(png()).status_code == 200
    assert closed.client.post("/upscale", content=png(), headers={"Origin": "http://evil.example"}).status_code == 403


def test_a_server_for_others_is_found_by_any_address_but_only_by_known_names(tmp_path):
    options = {"host": "0.0.0.0", "token": TOKEN, "allowed_hosts": ["pictures.example"]}
    with served(tmp_path, Gate(), **options) as server:  # it listens on the loopback all the same
        token = {"Authorization": f"Bearer {TOKEN}"}
        for host in ("192.168.1.5:7654", "[fe80::1]", "pictures.example", "PICTURES.example:443", socket.gethostname()):
            assert ask(server, {"Host": host, **token}) == 200, host
        for host in ("evil.example", "pictures.example.evil.example", "192.168.1.5.evil.example"):
            assert ask(server, {"Host": host, **token}) == 403, host
        assert ask(server, {"Host": "192.168.1.5"}) == 401


def test_a_server_for_others_gets_a_token_and_a_weak_one_is_refused():
    assert choose_token("127.0.0.1", None) is None
    assert len(choose_token("0.0.0.0", None)) >= 32
    assert choose_token("0.0.0.0", TOKEN) == choose_token("127.0.0.1", TOKEN) == TOKEN
    for weak in ("short", "with spaces in between them", "newline\nin-the-middle-of-it"):
        with pytest.raises(UsageError):
            choose_token("0.0.0.0", weak)
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org", "")))


# --- connections ---


def closed_by_server(link) -> bool:
    """Read until the server ends the connection. If it never does, the test's time limit ends this."""
    try:
        while link.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


def test_a_head_that_never_ends_is_cut_off(tmp_path):
    with served(tmp_path, Gate(), head_seconds=0.05) as server:
        for begun in (b"", b"GET / HTTP/1.1\r\nHost: localh"):
            with socket.create_connection(("127.0.0.1", server.port)) as link:
                link.sendall(begun)
                assert closed_by_server(link)
        with socket.create_connection(("127.0.0.1", server.port)) as link:  # the second request of a connection
            link.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT")
            assert b" 200 " in link.recv(100)
            assert closed_by_server(link)


def test_a_huge_head_is_refused(real):
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000
    assert real.raw(head).startswith(b"HTTP/1.1 400 ")  # it is not even at its end
    assert real.raw(head + b"\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert real.client.get("/", headers={"X": "x" * 100_000}).status_code in (400, 431)
    assert real.client.get("/").status_code == 200


def test_idle_connections_cannot_keep_others_out(tmp_path):
    with served(tmp_path, Gate()) as server:
        links = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(700)]
        try:
            assert server.client.get("/openapi.json").status_code == 200
        finally:
            for link in links:
                link.close()


@pytest.mark.parametrize(
    "path", ["/assets/../jobs.py", "/assets/..%2f..%2fetc%2fpasswd", "/assets//etc/passwd", "/jobs/..%2f..",
             "/jobs/%00/result", "/assets/page.py", "//etc/passwd", "/assets/%2e%2e/server.py"],
)  # fmt: skip
def test_no_path_leads_to_a_file(real, path):
    answer = real.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert b" 404 " in answer.splitlines()[0]


# --- names ---


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("photo.jpg", "photo.jpg"), ("trip/photo.jpg", "trip/photo.jpg"), ("../../etc/passwd", "etc/passwd"),
        ("C:\\temp\\a.png", "C_/temp/a.png"), ("/a.png", "a.png"), ("", "picture"), ("..", "picture"),
        ("a\0b\n.png", "a_b_.png"), ("con.png", "_con.png"), (".htaccess", "_.htaccess"),
        ("a\u202egnp.exe", "a_gnp.exe"), ("x" * 300 + ".png", "x" * 96 + ".png"),
        ("a/./b", "a/b"), ("Cafe\u0301.png", "Café.png"), ("<b>.png", "_b_.png"),
    ],
)  # fmt: skip
def test_a_client_s_name_is_made_safe(given, safe):
    assert safe_name(given) == safe


def test_results_are_named_as_on_the_command_line():
    four = Asking(Settings()).read([]).settings
    assert result_name("photo.JPG", four, "jpeg") == "photo_x4.JPG"
    assert result_name("in/photo.jpg", four, "png") == "in/photo_x4.png"
    assert result_name("notes", four, "png") == "notes_x4.png"
    assert result_name("photo.NEF", four, "tiff") == "photo_x4.tif"
    assert unique_names(["a.png", "A.png", "b/a.png", "a.png"]) == ["a.png", "A (2).png", "b/a.png", "a (3).png"]


# --- the description ---


def test_the_description_names_every_route_and_every_parameter(real):
    from hasn_cli.serve.app import make_app

    content = real.client.get("/openapi.json").json()
    app = make_app(real.jobs, Asking(Settings()))
    routes = {(route.path, method.lower()) for route in app.routes for method in route.methods - {"HEAD"}}
    routes = {(path, method) for path, method in routes if path not in ("/", "/openapi.json", "/assets/{name}")}
    assert {(path, method) for path, methods in content["paths"].items() for method in methods} == routes
    parameters = content["paths"]["/upscale"]["post"]["parameters"]
    assert {p["name"] for p in parameters} == set(Asking(Settings()).parameters())
    assert all(p["description"] for p in parameters)


# --- the process ---


@pytest.fixture
def process(tmp_path):
    """`hasn serve` as a user starts it; yields its process and its port. Its temporary files go to `tmp_path`."""
    command = [sys.executable, "-m", "hasn_cli", "serve", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as running:
        line = running.stderr.readline()
        assert line.startswith("hasn serve: http://127.0.0.1:"), line
        yield running, int(line.rstrip("/\n").rpartition(":")[2])
        running.kill()


def test_ctrl_c_ends_the_server_while_it_computes_and_leaves_nothing(process, tmp_path):
    running, port = process
    with socket.create_connection(("127.0.0.1", port)) as link:
        data = png(1500, 1000)
        head = f"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        link.sendall(head.encode() + data)
        until(lambda: [path for path in tmp_path.rglob("input") if path.stat().st_size == len(data)])
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    assert not list(tmp_path.glob("hasn-serve-*"))


def test_a_server_that_was_killed_leaves_a_folder_that_the_next_one_deletes(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "hasn-serve-left"
    left.mkdir()
    (left / "lock").touch()
    with private_folder() as folder:
        assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0
        assert not left.exists()
        with private_folder() as other:
            assert folder.exists() and other != folder  # the other one is in use
    assert not folder.exists()


@pytest.mark.parametrize(("command", "module"), [("serve", "uvicorn"), ("watch", "watchfiles")])
def test_without_the_extra_the_error_says_what_to_install(hasn, tmp_path, monkeypatch, command, module):
    (tmp_path / "in").mkdir()
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "hasn_cli.serve.server")
    result = hasn(*([command] if command == "serve" else [command, "in", "-o", "out"]))
    assert result.code == 1 and install_command("web") in result.err


@pytest.mark.parametrize("arguments", [["--port", "x"], ["--host", "no such name"], ["--max-upload", "-1"]])
def test_a_wrong_command_is_refused(hasn, arguments):
    assert hasn("serve", *arguments).code == 2


def test_a_port_in_use_is_named(hasn):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = hasn("serve", "--port", taken.getsockname()[1])
    assert result.code == 1 and "cannot listen" in result.err and "--port 0" in result.err
