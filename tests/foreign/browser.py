"""Opens the dashboard in headless Chromium as somebody would who looks at it, and presses the button.

usage: browser.py URL [SCREENSHOT]
"""

import base64
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

from websockets.sync.client import connect

# Shorter than that of the test, which would leave Chromium behind.
PATIENCE = 20
url, screenshot = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None


class Page:
    """A tab, by Chromium's DevTools protocol."""

    def __init__(self, socket):
        self.socket = socket
        self.numbers = itertools.count(1)
        self.complaints = []
        for domain in ["Page", "Runtime", "Log"]:
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            said = json.loads(self.socket.recv(timeout=PATIENCE))
            if said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(said["params"])
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression):
        end = time.monotonic() + PATIENCE
        while not self.value(f"!!({expression})"):
            assert time.monotonic() < end, f"never came to pass: {expression}"
            time.sleep(0.02)

    def has(self, width, height, scheme):
        """A screen of this size, and its user's choice of light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, element):
        """Moves the mouse there and clicks, as a hand does."""
        x, y = self.value(f"(() => {{ const it = {element}; it.scrollIntoView({{block: 'center'}});"
                          "const box = it.getBoundingClientRect();"
                          "return [box.x + box.width / 2, box.y + box.height / 2]; })()")
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"]:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


# The contrast of an element's text with what is behind it, as WCAG has it; 4.5 is enough to read.
CONTRAST = """((name) => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  let ground = document.querySelector(name);
  const ink = numbers(getComputedStyle(ground).color);
  const opaque = (it) => { const c = numbers(getComputedStyle(it).backgroundColor); return (c[3] ?? 1) > 0; };
  while (!opaque(ground)) ground = ground.parentElement;
  const light = (c) => c.slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const both = [light(ink), light(numbers(getComputedStyle(ground).backgroundColor))].sort();
  return (both[1] + 0.05) / (both[0] + 0.05);
})"""


def looks(page):
    """Reads it on a phone and on a desk, in the light and in the dark."""
    grounds = set()
    for width, height in [(360, 740), (1100, 690)]:
        for scheme in ["dark", "light"]:
            page.has(width, height, scheme)
            too_wide = page.value("document.documentElement.scrollWidth - innerWidth")
            assert too_wide <= 0, f"{width} wide: {too_wide} beyond the edge"
            assert page.value("innerWidth") == width, "it is scaled down"
            assert page.value("document.querySelector('#stop').offsetHeight") >= 44
            page.until("document.querySelector('#tiles .busy') && document.querySelector('#tiles .idle')")
            for name in ["#said", "#state", "#stop", "#tiles .busy", "#tiles .idle", "dt", "#sum", ".key"]:
                contrast = page.value(f"document.querySelector('{name}') ? {CONTRAST}('{name}') : 9")
                assert contrast >= 4.5, f"{name} in the {scheme}: {contrast}"
            grounds.add(page.value("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2, grounds


def drive(page):
    page.call("Page.navigate", url=url)
    state = "document.body?.dataset.state"
    page.until(f"{state} === 'serving'")
    page.until("document.querySelectorAll('#tiles .busy').length > 2")
    print("it serves", flush=True)
    looks(page)
    if screenshot:
        # A minute's half in the chart.
        page.until(f"past[past.length - 1][0] - past[0][0] > 25000")
    page.press("document.querySelector('#stop')")
    page.until(f"{state} === 'draining'")
    print(page.value("document.querySelector('#said').textContent").split(".")[0], flush=True)
    assert page.value("document.querySelector('#stop').textContent") == "Do not wait"
    left = "document.querySelectorAll('#tiles .busy').length"
    if screenshot:
        page.until(f"{left} <= 8 && past[past.length - 1][0] - stopped > 2000")
        shot = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        pathlib.Path(screenshot).write_bytes(base64.b64decode(shot["data"]))
    page.until(f"{state} === 'closed'")
    page.until("!document.querySelector('#tiles li')")
    assert page.value("document.querySelector('#stop').disabled")
    assert page.value("document.querySelector('[data-of=active]').textContent") == "0"
    assert page.value("document.querySelector('[data-of=aborted]').textContent") == "0"
    assert "=" in page.value("document.querySelector('#sum').textContent")
    print(page.value("document.querySelector('#report').textContent"), flush=True)
    assert not page.complaints, page.complaints


with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    chromium = subprocess.Popen(
        ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = pathlib.Path(profile, "DevToolsActivePort")
        end = time.monotonic() + PATIENCE
        while not (port.exists() and port.read_text()):
            assert chromium.poll() is None and time.monotonic() < end, "Chromium does not start"
            time.sleep(0.02)
        listed = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
        tabs = json.load(urllib.request.urlopen(listed, timeout=PATIENCE))
        tab = next(tab for tab in tabs if tab["type"] == "page")
        with connect(tab["webSocketDebuggerUrl"], max_size=None) as socket:
            drive(Page(socket))
    finally:
        chromium.terminate()
        chromium.wait()
