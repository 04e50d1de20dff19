"""A headless Chromium over its debugging pipe: loads pages, runs JavaScript, collects errors and requests."""

import json
import os
import shutil
import subprocess
import tempfile
import time

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)


class Page:
    """One page. `errors` has console errors and exceptions, `requests` every address asked for."""

    def __init__(self, url: str, **settings: str) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._replies: dict[int, dict] = {}
        self._number = 0
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._out = os.pipe()
        self._in, from_write = os.pipe()
        # the browser reads commands on descriptor 3 and writes answers on 4
        arguments = (
            f"exec 3<&{to_read} 4>&{from_write}; exec {CHROMIUM} --headless=new --no-sandbox --disable-gpu "
            f"--disable-dev-shm-usage --remote-debugging-pipe --user-data-dir={self._folder.name} about:blank"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", arguments],
            pass_fds=(to_read, from_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        self._buffer = b""
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Network", "Page", "Log"):
            self.call(f"{domain}.enable")
        for name, value in settings.items():
            feature = {"name": name.replace("_", "-"), "value": value}
            self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=url)
        until = time.monotonic() + 60
        while self("document.readyState") != "complete" and time.monotonic() < until:
            time.sleep(0.05)

    def call(self, method: str, **params: object) -> dict:
        """Send one command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while self._number not in self._replies:
            self._read()
        reply = self._replies.pop(self._number)
        assert "error" not in reply, reply
        return reply.get("result", {})

    def _read(self) -> None:
        chunk = os.read(self._in, 1 << 20)
        assert chunk, "the browser ended"
        *whole, self._buffer = (self._buffer + chunk).split(b"\0")
        for raw in whole:
            event = json.loads(raw)
            if "id" in event:
                self._replies[event["id"]] = event
            elif event["method"] == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(event["params"]["exceptionDetails"]))
            elif event["method"] in ("Runtime.consoleAPICalled", "Log.entryAdded"):
                kind = event["params"].get("type") or event["params"]["entry"]["level"]
                if kind in ("error", "warning", "assert"):
                    self.errors.append(json.dumps(event["params"]))
            elif event["method"] == "Network.requestWillBeSent":
                self.requests.append(event["params"]["request"]["url"])

    def __call__(self, script: str) -> object:
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._out)
        os.close(self._in)
        self._folder.cleanup()
