"""Requests that change something come from our own pages, or from a program with a login of its own.

A browser sends logins, cookies and what a proxy adds with requests of any site. So a request that a browser may have
sent must be of the same origin and carry the token of the cookie `_xsrf`, which other sites cannot read.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

_OF_BROWSERS = ("Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Referer", "Cookie")


def check_origin(handler: RequestHandler, proxy_header: str | None) -> None:
    """Check a request that may change something.

    Arguments:
        proxy_header: in which a proxy names the person; such a login may have come from a cookie of the proxy's.

    Raises:
        HTTPError: 403, another site may have sent it.
    """
    headers = handler.request.headers
    by_browser = any(name in headers for name in _OF_BROWSERS)
    by_proxy = proxy_header is not None and proxy_header in headers
    if not by_browser and not by_proxy:
        return  # with a login of its own, or none, which is refused later
    if not _same_origin(handler.request):
        raise HTTPError(403, "the request comes from another site and was refused")
    if "X-XSRFToken" not in headers and "X-CSRFToken" not in headers and not handler.get_body_argument("_xsrf", ""):
        raise HTTPError(403, "the request has no token of this site (X-XSRFToken); load the page again")
    RequestHandler.check_xsrf_cookie(handler)


def _same_origin(request: HTTPServerRequest) -> bool:
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    source = request.headers.get("Origin") or request.headers.get("Referer")
    return source is None or (source != "null" and urlsplit(source).netloc == request.host)
