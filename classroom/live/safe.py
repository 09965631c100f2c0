"""Who may look at the page and use it: a browser on this machine that was given the address.

- The address has a token, which the first request swaps for a cookie. After that it is worth
  nothing, so it may be seen on a projector.
- `Host` and `Origin` must be ours, so that no page from elsewhere reaches us through the browser;
  a WebSocket has to name its origin.
- The page loads our own files and nothing else, and no other page can frame it.

Cookies know no ports: if the same browser visits another server on 127.0.0.1, that gets it, too.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from endpoint import HOST

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SAFE_METHODS = {"GET", "HEAD"}


class Door:
    """Lets in one browser: the first that brings the token, and then its cookie."""

    def __init__(self, port: int) -> None:
        self.host = f"{HOST}:{port}"
        self.origin = f"http://{self.host}"
        self._cookie_name = f"live{port}"
        self._token = secrets.token_urlsafe(32)
        self._cookie = secrets.token_urlsafe(32)

    @property
    def address(self) -> str:
        """What to open, once."""
        return f"{self.origin}/?token={self._token}"

    @property
    def headers(self) -> Mapping[str, str]:
        """What stands above every answer."""
        return {
            "Content-Security-Policy": (
                "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                f"connect-src 'self' ws://{self.host}; "
                "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
            ),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request, or refuse it in a sentence."""
        self._check_place(request)
        if self._has_cookie(request):
            return await handler(request)
        return self._admit(request)

    async def sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Put the headers on an answer, refusals included."""
        response.headers.update(self.headers)

    def _check_place(self, request: web.Request) -> None:
        if request.headers.getall("Host", []) != [self.host]:
            raise web.HTTPForbidden(text="this is another host")
        origins = request.headers.getall("Origin", [])
        may_be_silent = request.method in SAFE_METHODS and "Upgrade" not in request.headers
        if origins != [self.origin] and (origins or not may_be_silent):
            raise web.HTTPForbidden(text="this comes from another page")

    def _has_cookie(self, request: web.Request) -> bool:
        return same(request.cookies.get(self._cookie_name, ""), self._cookie)

    def _admit(self, request: web.Request) -> web.StreamResponse:
        """Swap the token for the cookie."""
        given = request.query.get("token", "")
        is_first = request.path == "/" and request.method == "GET"
        if not (is_first and self._token and same(given, self._token)):
            what_to_do = "copy all of it" if self._token else "start it again"
            raise web.HTTPForbidden(
                text=f"the address that the terminal shows opens this page once; {what_to_do}"
            )
        self._token = ""
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(
            self._cookie_name, self._cookie, path="/", httponly=True, samesite="Strict"
        )
        return response


def same(one: str, other: str) -> bool:
    """Compare two secrets in constant time; bytes in a header that are no UTF-8 are surrogates."""
    return secrets.compare_digest(
        one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass")
    )
