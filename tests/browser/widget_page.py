"""A page that runs the browser side of an anywidget in Chromium, against the widget in this process.

Messages are those of ipywidgets' protocol; only their transport is a replacement, HTTP instead of the kernel's
websocket, and the model that anywidget gives to `render` is written anew in the page.
"""

from __future__ import annotations

import base64
import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from browser import chromium

START_S = 60.0

PAGE = """<!DOCTYPE html><meta charset="utf-8"><style>{css}</style><body><div id="widget"></div>
<script type="module">
const listeners = {{}}, state = {{}}, unsaved = {{}};
let sending = null;
function decoded(message) {{
  message.buffer_paths.forEach((path, n) => {{
    let at = message.state;
    for (const key of path.slice(0, -1)) at = at[key];
    at[path.at(-1)] = new DataView(Uint8Array.from(atob(message.buffers[n]), (c) => c.charCodeAt(0)).buffer);
  }});
  return message.state;
}}
async function post(data) {{
  const answer = await fetch("/comm", {{ method: "POST", body: JSON.stringify(data) }});
  for (const message of await answer.json()) {{
    const changed = decoded(message);
    Object.assign(state, changed);
    for (const name of Object.keys(changed)) (listeners[`change:${{name}}`] || []).forEach((call) => call());
  }}
}}
const model = {{
  get: (name) => state[name],
  set: (name, value) => {{
    if (state[name] === value) return;
    state[name] = unsaved[name] = value;
    (listeners[`change:${{name}}`] || []).forEach((call) => call());
  }},
  on: (name, call) => (listeners[name] ??= []).push(call),
  send: (content) => post({{ method: "custom", content }}),
  // One update is on its way at a time, as in ipywidgets; those that come meanwhile are joined.
  save_changes: async () => {{
    if (sending) return;
    while (Object.keys(unsaved).length) {{
      const changes = {{ ...unsaved }};
      Object.keys(unsaved).forEach((name) => delete unsaved[name]);
      sending = post({{ method: "update", state: changes, buffer_paths: [] }});
      await sending;
    }}
    sending = null;
  }},
}};
async function until(condition, what) {{
  for (let n = 0; n < 1000; n++) {{
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }}
  throw new Error(`in vain: ${{what || condition}}`);
}}
async function main() {{
  await post({{ method: "request_state" }});
  const {{ default: widget }} = await import("/widget.js");
  widget.render({{ model, el: document.getElementById("widget") }});
  const root = document.querySelector("#widget > div");
  for (;;) {{
    const script = await (await fetch("/script")).text();
    let result;
    try {{
      const run = new (async () => {{}}).constructor("root", "model", "until", script);
      result = {{ value: await run(root, model, until) }};
    }} catch (error) {{ result = {{ error: String(error && error.stack || error) }}; }}
    await fetch("/result", {{ method: "POST", body: JSON.stringify(result) }});
  }}
}}
main().catch((error) => fetch("/result", {{ method: "POST", body: JSON.stringify({{ error: String(error.stack) }}) }}));
</script>"""


class WidgetPage:
    """A widget in a browser; made by `open_widget`."""

    def __init__(self, widget: Any) -> None:
        self._widget, self._sent, self._lock = widget, [], threading.Lock()
        self._scripts: queue.Queue[str] = queue.Queue()
        self._results: queue.Queue[dict[str, Any]] = queue.Queue()
        self.received: list[dict[str, Any]] = []
        widget.comm.publish_msg = self._publish

    def run(self, script: str, timeout_s: float = START_S) -> Any:
        """Run the body of an async function of `root`, `model` and `until` in the page, and return what it returns."""
        self._scripts.put(script)
        result = self._results.get(timeout=timeout_s)
        if "error" in result:
            raise AssertionError(result["error"])
        return result.get("value")

    def _publish(self, kind: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any) -> None:
        if data and data.get("method") == "update":
            encoded = [base64.b64encode(buffer).decode() for buffer in buffers or ()]
            self._sent.append({"state": data["state"], "buffer_paths": data["buffer_paths"], "buffers": encoded})

    def handle(self, data: dict[str, Any]) -> list[Any]:
        """Give the widget a message, one at a time as a kernel does, and return those that it has sent."""
        with self._lock:
            self.received.append(data)
            self._widget.comm.handle_msg({"content": {"data": data}, "buffers": []})
            sent, self._sent = self._sent, []
            return sent


@contextmanager
def open_widget(widget: Any, folder: Path) -> Iterator[WidgetPage]:
    """Show a widget in a browser until the ``with`` block ends; raise `BrowserUnavailable` without one."""
    folder.mkdir(exist_ok=True)
    page = WidgetPage(widget)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/script":
                self._answer(page._scripts.get(), "text/plain")
            elif self.path == "/widget.js":
                self._answer(str(widget._esm), "text/javascript")
            else:
                self._answer(PAGE.format(css=widget._css), "text/html")

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/result":
                page._results.put(content)
                self._answer("", "text/plain")
            else:
                self._answer(json.dumps(page.handle(content)), "application/json")

        def _answer(self, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(ConnectionError):  # the browser has ended
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with chromium.running(chromium.program(), f"http://127.0.0.1:{server.server_port}/", folder):
            yield page
    finally:
        page._scripts.put("")  # ends the request that waits for a script
        server.shutdown()
        server.server_close()
        thread.join()
