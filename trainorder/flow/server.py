"""Prefect's server, closed to other people's web pages: `python -m trainorder.flow.server --host HOST --port PORT`.

Prefect asks for no password and its own server answers any page that the user's browser has open. Here a request must name
this server as its host (or a page of another name could be pointed at it), and come from its own pages or no page at all.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from trainorder.process import is_loopback
from trainorder.ui import origins

App = Callable[[dict[str, Any], Any, Any], Any]


def guarded(app: App, host: str, port: int) -> App:
    """`app` for requests whose Host and Origin are this server's; every other is answered with 403.

    A server that listens beyond this machine is reached under names that nobody here knows: there, Origin must match Host.
    """
    from starlette.responses import PlainTextResponse

    own = origins(host, port)
    names = {urlsplit(origin).hostname for origin in own}

    async def checked(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            asked, page = f"http://{headers.get(b'host', '')}", headers.get(b"origin")
            known = not is_loopback(host) or urlsplit(asked).hostname in names
            if not known or page not in (None, asked, *own):
                await PlainTextResponse("not from this server's pages", 403)(scope, receive, send)
                return
        await app(scope, receive, send)

    return checked


def main() -> None:
    """Serve until terminated."""
    import uvicorn

    parser = argparse.ArgumentParser(prog="python -m trainorder.flow.server", description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    given = parser.parse_args()
    host, port = given.host, given.port
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(sorted(origins(host, port)))
    from prefect.server.api.server import create_app

    uvicorn.run(
        guarded(create_app(final=True), host, port), host=host, port=port, log_level="error"
    )


if __name__ == "__main__":
    main()
