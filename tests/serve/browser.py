"""A real headless Chromium, told what to do over its DevTools protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-gpu"]


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.requested: list[str] = []  # every address that the tab asked for
        self.complaints: list[str] = []  # exceptions, and errors on the console
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **params: Any) -> Any:
        """A command, and its answer."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            told = json.loads(self._socket.recv(timeout=60))
            if told.get("id") == number:
                assert "error" not in told, (method, told["error"])
                return told["result"]
            self._note(told)

    def _note(self, told: dict[str, Any]) -> None:
        given = told.get("params", {})
        if told.get("method") == "Network.requestWillBeSent":
            self.requested.append(given["request"]["url"])
        if told.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(given["exceptionDetails"].get("exception", given["exceptionDetails"]))[:500])
        if told.get("method") == "Log.entryAdded" and given["entry"]["level"] == "error" and given["entry"]["source"] != "network":
            self.complaints.append(given["entry"]["text"])

    def open(self, address: str) -> None:
        """Go to an address, and wait until its scripts have begun."""
        self.do("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && document.body !== null")

    def run(self, script: str) -> Any:
        """The value of an expression on the page; promises are waited for."""
        found = self.do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, (script, found["exceptionDetails"])
        return found["result"].get("value")

    def until(self, script: str, what: str = "") -> Any:
        """Wait until an expression is true; its value."""
        deadline = time.monotonic() + 40
        while True:
            found = self.run(script)
            if found:
                return found
            assert time.monotonic() < deadline, f"waited for {what or script}; the page: {self.run('document.body.innerText')[:1500]}"
            time.sleep(0.05)

    def key(self, name: str, code: int = 0) -> None:
        """Press a key, as a person does."""
        text = {"text": name} if len(name) == 1 else {"text": "\r"} if name == "Enter" else {}
        self.do("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, windowsVirtualKeyCode=code, **text)
        self.do("Input.dispatchKeyEvent", type="keyUp", key=name, code=name, windowsVirtualKeyCode=code)

    def click(self, selector: str) -> None:
        """Click in the middle of the first element that matches, where a hand would, once it lies still and nothing covers it."""
        where = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(), x = r.x + r.width / 2, y = r.y + r.height / 2;"
            " return e.contains(document.elementFromPoint(x, y)) ? [x, y] : null; })()"
        )
        deadline, before, place = time.monotonic() + 20, None, self.run(where)
        while place is None or place != before:
            assert time.monotonic() < deadline, f"{selector} does not lie still, or is covered"
            time.sleep(0.1)
            before, place = place, self.run(where)
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """The window, and whether the person prefers dark."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def picture(self) -> bytes:
        """A PNG of what is seen."""
        return base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A tab of a Chromium of its own."""
    assert CHROMIUM
    profile = folder / "profile"
    command = [CHROMIUM, "--headless", "--no-sandbox", *QUIET, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (profile / "DevToolsActivePort").exists() or len((profile / "DevToolsActivePort").read_text().split()) < 2:
            assert process.poll() is None and time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.05)
        port = (profile / "DevToolsActivePort").read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            (tab,) = [one for one in json.load(answer) if one["type"] == "page"]
        with connect(tab["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(30)
