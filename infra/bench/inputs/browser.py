"""A page in headless Chromium, driven over its debugging protocol. For the explorer's test and benchmark."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--hide-scrollbars", "--window-size=1366,768", "--remote-debugging-port=0",
)  # fmt: skip

START_S, CALL_S = 60.0, 120.0


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome on this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One page, as a context manager; needs the package websockets."""

    def __init__(self) -> None:
        self.console: list[str] = []
        """Errors and warnings of the console, and what the browser refused to load."""
        self.requested: list[str] = []
        """Addresses that were requested."""

    async def __aenter__(self) -> Page:
        import websockets

        chromium = find_chromium()
        if chromium is None:
            raise FileNotFoundError("found no Chromium on the PATH; install the package chromium.")
        self._folder = Path(tempfile.mkdtemp(prefix="cytolake-chromium-"))
        self._process = subprocess.Popen(
            [chromium, *FLAGS, f"--user-data-dir={self._folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._socket = await websockets.connect(await self._address(), max_size=None, proxy=None)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await self._socket.close()
        self._process.terminate()
        self._process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its result."""
        number = len(self._waiting) + 1
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        answer = await asyncio.wait_for(self._waiting[number], CALL_S)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    async def run(self, script: str) -> Any:
        """Value of a JavaScript expression, awaited where it is a promise."""
        answer = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script[:100]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def until(self, condition: str, timeout_s: float = 60.0) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            TimeoutError: It is not yet; with the last messages of the console.
        """
        end = time.monotonic() + timeout_s
        while not await self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} is not true after {timeout_s:g} s. Console: {self.console[-5:]}")
            await asyncio.sleep(0.1)

    async def go(self, address: str) -> None:
        await self.send("Page.navigate", url=address)

    async def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def drag(self, path: list[tuple[float, float]]) -> None:
        """Press the mouse at the first place, move through the others, and let go."""
        await self.mouse("mousePressed", *path[0])
        for place in path:
            await self.mouse("mouseMoved", *place)
            await asyncio.sleep(0.03)
        await self.mouse("mouseReleased", *path[-1])

    async def mouse(self, kind: str, x: float, y: float) -> None:
        buttons = {} if kind == "mouseReleased" else {"buttons": 1}
        await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, **buttons)

    async def screenshot(self, path: Path) -> None:
        answer = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    async def _address(self) -> str:
        """Of the page's debugging socket."""
        note = self._folder / "DevToolsActivePort"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if note.is_file() and note.read_text().count("\n"):
                with opener.open(f"http://127.0.0.1:{note.read_text().split()[0]}/json") as answer:
                    pages = [target for target in json.load(answer) if target["type"] == "page"]
                if pages:
                    return str(pages[0]["webSocketDebuggerUrl"])
            await asyncio.sleep(0.1)
        raise TimeoutError(f"Chromium shows no page after {START_S:g} s.")

    async def _read(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            if "id" in message:
                self._waiting[message["id"]].set_result(message)
                continue
            about = message["params"]
            match message["method"]:
                case "Runtime.exceptionThrown":
                    self.console.append(str(about["exceptionDetails"].get("exception", {}).get("description")))
                case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning"):
                    self.console.append(
                        " ".join(str(each.get("value", each.get("description"))) for each in about["args"])
                    )
                case "Log.entryAdded" if "GL Driver Message" not in about["entry"]["text"]:
                    self.console.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
                case "Network.requestWillBeSent":
                    self.requested.append(about["request"]["url"])
