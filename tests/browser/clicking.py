"""Clicks on the page of a view, from a page of the same server around it, which needs no web driver."""

from __future__ import annotations

import asyncio
import queue
from typing import Any

from tornado.web import RequestHandler

# The viewer picks what is under the mouse after a move, when it has drawn again.
PAGE = """<!DOCTYPE html><style>body{margin:0}iframe{border:0;width:1000px;height:600px}</style>
<iframe src="URL"></iframe><script>
const frame = document.querySelector("iframe"), pause = (ms) => new Promise((done) => setTimeout(done, ms));
const panel = () => frame.contentDocument?.querySelector(".neuroglancer-rendered-data-panel");
(async () => {
  for (;;) {
    const {x, y} = await (await fetch("/clicks/next")).json();
    while (!panel()) await pause(20);
    const box = panel().getBoundingClientRect(), {MouseEvent} = frame.contentWindow;
    const at = {clientX: box.left + x, clientY: box.top + y, bubbles: true, view: frame.contentWindow};
    for (const type of ["mouseenter", "mouseover", "mousemove", "mousemove"]) {
      panel().dispatchEvent(new MouseEvent(type, at));
      await pause(150);
    }
    panel().dispatchEvent(new MouseEvent("dblclick", {...at, button: 0, detail: 2}));
  }
})();
</script>"""


class Clicks:
    """A page with a view in it.

    Attributes
    ----------
    url
        Address of the page.
    """

    def __init__(self, view: Any) -> None:
        self._wanted: queue.Queue[dict[str, int]] = queue.Queue()
        self.url = f"{view.url.partition('/v/')[0]}/clicks"
        options = {"wanted": self._wanted, "page": PAGE.replace("URL", view.url)}
        view._server.app.add_handlers(".*", [("/clicks", _Page, options), ("/clicks/next", _Next, options)])

    def double_click(self, x: int, y: int) -> None:
        """Double click on the first panel of the viewer, at pixels from its upper left."""
        self._wanted.put({"x": x, "y": y})


class _Handler(RequestHandler):
    def initialize(self, wanted: Any, page: str) -> None:
        self._wanted, self._page = wanted, page


class _Page(_Handler):
    def get(self) -> None:
        self.finish(self._page)


class _Next(_Handler):
    async def get(self) -> None:
        while self._wanted.empty():
            await asyncio.sleep(0.05)
        self.finish(self._wanted.get())
