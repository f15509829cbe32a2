"""An app over the gateway, as docs/gateway.md describes it, that returns what the proxy says about a request."""

from __future__ import annotations

import sys

from fastapi import Request

from penstock.producers.gateway import create_app
from penstock.producers.gateway.server import Server

app = create_app()


@app.get("/v1/address")
async def address(request: Request) -> dict[str, str]:
    client = request.client.host if request.client else ""
    return {"client": client, "scheme": request.url.scheme, **dict(request.headers)}


if __name__ == "__main__":
    Server(app, address="127.0.0.1", port=int(sys.argv[1])).run()
