"""The program behind the page: its address, its limits, its headers, and its end, at which nothing is left behind."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

from ..errors import RestoreError
from ..memory import collector_paused
from .sessions import Workspace

_STATIC = Path(__file__).parent / "static"
LOCAL = ("127.0.0.1", "localhost", "::1")
_SWEEP = 60                                  # seconds between two looks for abandoned uploads
# nothing is loaded from anywhere but this program; gradio evaluates functions that it makes of text
_POLICY = ("default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; style-src 'self' 'unsafe-inline'; "
           "script-src 'self' 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
           "base-uri 'self'; form-action 'self'; frame-ancestors 'none'")
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def serve(models, host, port, limits, ready=print, **options):
    """Serve the page until SIGINT or SIGTERM, and delete every photo before returning.

    ``models`` are names or paths, the first the default; ``limits`` :class:`restore.web.sessions.Limits`; ``ready(address)`` is
    called once the page can be opened; ``options`` go to :class:`restore.restorer.Restorer`. Raises :class:`RestoreError` if gradio is missing, a
    model cannot be loaded or the address cannot be had, and ``KeyboardInterrupt`` after SIGINT.
    """
    listening = _listen(host, port)
    with contextlib.ExitStack() as stack:
        stack.callback(listening.close)
        previous = signal.signal(signal.SIGTERM, _terminate)     # uvicorn sends it on after its own end
        stack.callback(signal.signal, signal.SIGTERM, previous)
        workspace = Workspace(limits)
        stack.callback(workspace.close)
        app, page = _application(workspace, models, host in LOCAL, options)
        stack.callback(page.close)
        import uvicorn
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, lifespan="on",
                                ws="none")
        place = f"[{host}]" if ":" in host else host
        listening.listen()                   # who comes before uvicorn does waits instead of being refused
        ready(f"http://{place}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listening])


def _terminate(signum, frame):
    sys.exit(128 + signum)


def _listen(host, port):
    """A bound socket, so that an address which cannot be had is told before the network is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise RestoreError(f"--host {host} --port {port}: {getattr(error, 'strerror', None) or error}; give another --port, or "
                           "--port 0 for any that is free") from error
    return listening


def _application(workspace, models, local, options):
    """The FastAPI application with the page in it, and the page."""
    # read when gradio is imported, or later by it: no analytics, no version check, its files where ours are
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(workspace.uploads), GRADIO_RUN_HISTORY="False",
                      HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")
    with collector_paused():
        try:
            import gradio
            from fastapi import FastAPI, HTTPException
            from fastapi.responses import FileResponse
            from fastapi.staticfiles import StaticFiles
        except ImportError as error:
            raise RestoreError(f"the web page needs {error.name}: pip install 'anydepth[web]'") from error
        from .engine import Engine
        from .layout import Page
    page = Page(workspace, Engine(models, **options), local)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        sweeper = asyncio.create_task(_sweep(workspace))
        yield
        sweeper.cancel()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Guard, limit=workspace.limits.upload)
    app.mount("/page", StaticFiles(directory=_STATIC))

    @app.get("/photo/{token}/{folder}/{name}")
    def photo(token: str, folder: str, name: str):
        session = workspace.by_token(token)
        path = session and session.find(folder, name)
        if not path or not path.is_file():
            raise HTTPException(404, "This photo is no longer here.")
        return FileResponse(path, headers={"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"})

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gradio.themes.Base(primary_hue="blue", neutral_hue="zinc", radius_size="md", **fonts).set(
        button_primary_background_fill="*primary_600", button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700", button_primary_background_fill_hover_dark="*primary_700")
    app = gradio.mount_gradio_app(
        app, page.blocks, path="/", footer_links=[], run_history=False, max_file_size=workspace.limits.upload, ssr_mode=False,
        pwa=False, mcp_server=False, theme=theme, css_paths=_STATIC / "style.css", show_error=True, enable_monitoring=False,
        head='<script src="/page/photo.js"></script>')
    return app, page


async def _sweep(workspace):
    while True:
        await asyncio.sleep(_SWEEP)
        await asyncio.to_thread(workspace.sweep_uploads)


class _Guard:
    """ASGI middleware: our headers on every answer, and uploads that are too large refused before they are read."""

    def __init__(self, app, limit):
        self.app, self.limit = app, limit + 65536                # the form around the file

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []),
                                      *((k.lower().encode(), v.encode()) for k, v in _HEADERS.items())]
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        if scope["method"] == "POST" and length.isdigit() and int(length) > self.limit:
            await send_with_headers({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/plain")]})
            return await send({"type": "http.response.body", "body": b"larger than the limit"})
        return await self.app(scope, receive, send_with_headers)
