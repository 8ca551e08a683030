"""The tab of the trainings, and the server behind `nestling web`."""

import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager

import pytest
from conftest import ROOT, bird_rows, vae_rows, write_history
from playwright.sync_api import expect

from nestling.files import UserError
from nestling.page import build, contents, serve


@contextmanager
def serving(page, histories, port=0, host="127.0.0.1"):
    with serve.server(lambda: page, histories, host, port) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield running.server_address[1]
        finally:
            running.shutdown()
            thread.join()


# ------------------------------------------------------ the tab

@pytest.mark.slow
def test_the_live_view_follows_whatever_becomes_of_a_training(chromium):
    """It waits for the first epoch; a history may grow, be damaged or be replaced, a server stop and start again."""
    given, faults = {}, []
    site = build.html({"histories": {}}, "", live=True)
    page = chromium.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: "ERR_CONNECTION_REFUSED" in message.text or faults.append(message.text))
    page.clock.install()                                   # polls come when they are called

    def next_poll():
        page.clock.fast_forward(3000)

    box = page.locator("#trainings")
    with serving(site, lambda: given) as port:
        with page.expect_response("**/history.json"):
            page.goto(f"http://127.0.0.1:{port}/#tab=training&epoch-vae=2")
        expect(page.locator("#waiting")).to_be_visible()
        given = {"bird": {"rows": bird_rows(1), "age": 0}}
        next_poll()
        expect(box).to_contain_text("1 of 4 epochs in 1.0 minutes. It is running: about 3 minutes left.")
        expect(page.locator("#waiting")).to_be_hidden()
        given = {"bird": {"rows": bird_rows(3), "age": 0}, "vae": {"rows": vae_rows(3, 0), "age": 0}}
        next_poll()
        expect(box).to_contain_text("3 of 4 epochs in 3.0 minutes. It is running: about 1 minute left.")
        expect(box).to_contain_text("about 1 minute left of its first phase of two")
        assert [page.locator(f"#epoch-{name}").input_value() for name in ("bird", "vae")] == ["3", "2"]
        given = {}                                         # both are damaged
        with page.expect_response("**/history.json"):
            next_poll()
        given = {"bird": {"rows": bird_rows(2), "age": 600}}
        next_poll()
        expect(box).to_contain_text("2 of 4 epochs in 2.0 minutes. No new epoch for 10 minutes: it may have stopped.")
        expect(box).to_contain_text("3 epochs in 3.0 minutes")         # the last good one
        expect(page.locator("#epoch-bird")).to_have_js_property("max", "2")
    next_poll()
    expect(page.locator("#lost")).to_be_visible()
    given = {"bird": {"rows": bird_rows(4), "age": None}}
    with serving(site, lambda: given, port):
        next_poll()
        expect(page.locator("#lost")).to_be_hidden()
        expect(box).to_contain_text("4 epochs in 4.0 minutes. Epoch 2 has the lowest validation loss")
    page.close()
    assert not faults


@pytest.mark.slow
def test_minutes_left(visit):
    """Of a training's phase, less those since its last epoch; photos that will grow take longer."""
    page = visit("#tab=training")

    def left(rows, age=0):
        return page.evaluate("([rows, age]) => activity(rows, age)", [rows, age])

    assert left(vae_rows(3, 1)) == "It is running: about 3 minutes left."          # not 12: the phase counts
    assert left(bird_rows(1), 60) == "It is running: about 2 minutes left."
    assert left(bird_rows(3), 31) == "It is running: less than a minute left."
    assert left(bird_rows(4)) == "Its last epoch is done."
    assert left(vae_rows(4, 0)) == "Its first phase of two is done."
    assert left([{**row, "size": 64} for row in bird_rows(1)]) == "It is running: about 6 minutes left."
    older = [{key: value for key, value in row.items() if key != "progress"} for row in vae_rows(2, 1)]
    assert left(older) == "It is running."


@pytest.mark.slow
def test_an_epoch_is_chosen_by_keys_mouse_and_touch(visit):
    """Its values stand in the legend and in the link."""
    page = visit("#tab=training&epoch-bird=2&epoch-vae=99", has_touch=True, viewport={"width": 360, "height": 800})
    slider, loss = page.locator("#epoch-bird"), page.locator("figure", has_text="nats per photo")
    expect(loss.locator("figcaption")).to_contain_text("training 0.500")
    expect(page.locator("#epoch-vae")).to_have_value("5")              # there is no epoch 99
    expect(loss.locator("svg[role=img]")).to_have_attribute(
        "aria-label", re.compile("epochs 1 to 3: training from 1.00 to 0.333"))
    slider.press("ArrowRight")                                         # the last one: not in the link
    expect(page).to_have_url(re.compile(r"^(?!.*epoch-bird)"))
    expect(loss.locator("figcaption")).to_contain_text("validation 0.333")
    picture = loss.locator("svg[role=img]")
    picture.click(position={"x": 50, "y": 100})
    expect(slider).to_have_value("1")
    picture.tap(position={"x": 160, "y": 100})
    expect(slider).to_have_value("2")
    expect(page).to_have_url(re.compile("epoch-bird=2"))
    expect(slider).to_have_attribute("aria-valuetext", re.compile("2, after 2.0 minutes, lowest validation loss"))


# ------------------------------------------------------ histories

def test_histories_of_a_run(tmp_path):
    """The newer one of a program; none that is damaged or cut; with its age while there is a checkpoint."""
    old, new, digits = (tmp_path / f"{name}.history.jsonl" for name in ("old", "new.2", "vae"))
    write_history(old, bird_rows(3))
    write_history(new, bird_rows(1))
    os.utime(old, (1e9, 1e9))
    digits.write_text('{"epoch": 1, "pha')
    assert contents.histories([], tmp_path) == {"bird": {"rows": bird_rows(1), "age": None}}
    (tmp_path / "new.2.checkpoint.pt").touch()
    os.utime(new, (time.time() - 100,) * 2)
    assert 100 <= contents.histories([tmp_path / "new.2.pth"], None)["bird"]["age"] < 200
    new.write_text("")
    assert len(contents.histories([], tmp_path)["bird"]["rows"]) == 3
    assert contents.histories([tmp_path / "gone.pth"], None) == contents.histories([], tmp_path / "gone") == {}


# ------------------------------------------------------ the server

def ask(port, path="/", method="GET", host="127.0.0.1", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers={"Host": host, **headers})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_the_server_answers_two_addresses_under_its_own_name():
    """A DNS server may map any other name to 127.0.0.1: a foreign site would read the page."""
    with serving("page", lambda: {"bird": {"loss": float("nan")}}) as port:
        answer, content = ask(port)
        assert (answer.status, content) == (200, b"page")
        again, nothing = ask(port, **{"If-None-Match": answer.headers["ETag"]})
        assert (again.status, nothing) == (304, b"")
        assert ask(port, "/history.json")[1] == b'{"bird": {"loss": null}}'
        for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1:1", f"[::1]:{port}", "[::1]"):
            assert ask(port, host=host)[0].status == 200
        for host in ("", "example.org", f"127.0.0.1.example.org:{port}", "[::1", "192.168.1.1"):
            assert ask(port, host=host)[0].status == 404
        for path in ("/bird.pth", "/../serve.py", "/?x", "http://127.0.0.1/"):
            assert ask(port, path)[0].status == 404
        assert [ask(port, method=method)[0].status for method in ("POST", "HEAD", "PUT")] == [501] * 3
    with serving("page", dict, host="0.0.0.0") as port:                # asked for: all may read
        assert ask(port, host="example.org")[0].status == 200


def test_no_client_stops_the_server(capfd):
    """Neither garbage nor one that hangs up; nothing is printed, and no thread stays."""
    threads = threading.active_count()
    with serving("x" * 20_000_000, dict) as port:
        for request in (b"\x16\x03\x01\xff\r\n\r\n", b"\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"GET /" + b"a" * 70_000,
                        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET / HT", b""):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(request)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()                                 # with a reset
        assert ask(port, "/history.json")[0].status == 200
    until = time.monotonic() + 30
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == threads
    assert capfd.readouterr() == ("", "")


def test_an_address_that_cannot_be_had_is_one_sentence():
    with serving("page", dict) as port, pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be listened on"):
        serve.server(str, dict, "127.0.0.1", port)
    for host, port in (("nowhere.invalid", 0), ("a..b", 0), ("127.0.0.1", 99999)):
        with pytest.raises(UserError, match="give another --port or --host"):
            serve.server(str, dict, host, port)


@pytest.mark.slow
def test_the_command_serves_a_run_until_ctrl_c(tmp_path):
    words = "-m", "nestling.cli", "web", "--run", str(tmp_path), "--host", "0.0.0.0", "--port", "0"
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE,                 # what runs in the background ignores Ctrl-C
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    address = process.stdout.readline().split()[0]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    assert b'id="data-histories"' in urllib.request.urlopen(address).read()
    write_history(tmp_path / "bird.history.jsonl", bird_rows(2))       # a training begins
    assert json.loads(urllib.request.urlopen(f"{address}history.json").read())["bird"]["rows"] == bird_rows(2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (130, False)
