"""A browser without a window for the tests, spoken to over a pipe in Chromium's own debugging protocol."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--remote-debugging-pipe",
)  # fmt: skip
KEYS = {"Enter": (13, "\r"), "ArrowRight": (39, ""), "ArrowDown": (40, ""), "Tab": (9, "")}


def found() -> str | None:
    """Where the browser is, if it is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a browser of its own; `logged` holds what its console said, `asked` what it fetched."""

    def __init__(self, profile: Path):
        self.logged: list[str] = []
        self.asked: list[str] = []
        theirs_in, self.out = high(*os.pipe())
        self.into, theirs_out = high(*os.pipe())
        self.process = subprocess.Popen(
            [found(), *OPTIONS, f"--user-data-dir={profile}", "--window-size=1200,900"],
            preexec_fn=lambda: (os.dup2(theirs_in, 3), os.dup2(theirs_out, 4)),
            pass_fds=(3, 4),
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out):
            os.close(end)
        self.buffer, self.number, self.session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """The answer to one command; events that come before it are noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.message()).get("id") != self.number:
            self.note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def message(self) -> dict:
        while b"\0" not in self.buffer:
            part = os.read(self.into, 1 << 16)
            assert part, "the browser has gone"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def note(self, event: dict) -> None:
        about = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self.asked.append(about["request"]["url"])
        elif event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.logged.append(json.dumps(about))

    def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        while self.run("document.readyState + location.protocol") != "completefile:":
            pass

    def run(self, expression: str):
        """What an expression gives in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """A key, where the focus is."""
        code, text = KEYS[key]
        for kind in ("keyDown", "keyUp"):
            given = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **given
            )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for end in (self.out, self.into):
            os.close(end)


def high(*ends: int) -> list[int]:
    """The same pipe ends under numbers above those that the browser wants for its own."""
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends]
    for end in ends:
        os.close(end)
    return moved
