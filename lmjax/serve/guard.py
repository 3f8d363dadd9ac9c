"""What every request goes through: its id, its key, its size, where it may come from, and what is told of it.

Knows nothing of models.
"""

import secrets
import time
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmjax.serve.audit import Audit
from lmjax.serve.errors import TOO_LARGE, ApiError
from lmjax.serve.keys import Key, Keys
from lmjax.serve.metrics import Metrics

_HEADERS = {
  'X-Content-Type-Options': 'nosniff',
  'X-Frame-Options': 'DENY',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Content-Security-Policy': (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  ),
}
_KEYED = ('/metrics', '/search', '/ads')  # paths beside those of /v1 and below /ads that want a key
LOOPBACK = ('127.0.0.1', 'localhost', '::1')


class Guard:
  """Around the application.

  Args:
    local: only this machine may ask, so a page elsewhere that has its name lead here is refused.
  """

  def __init__(
    self, app: ASGIApp, *, keys: Keys, metrics: Metrics, audit: Audit, body_bytes: int, local: bool
  ) -> None:
    self._app, self._keys, self._metrics, self._audit = app, keys, metrics, audit
    self._body_bytes, self._local = body_bytes, local

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    if scope['method'] == 'HEAD':  # as GET; the server leaves the body out
      scope = {**scope, 'method': 'GET'}
    headers = {name.decode('latin-1'): x.decode('latin-1') for name, x in scope['headers']}
    entry: dict[str, Any] = {'request': f'req-{secrets.token_hex(12)}'}
    scope.setdefault('state', {})['audit'] = entry
    begun, status = time.monotonic(), 500

    async def answer(message: Message) -> None:
      nonlocal status
      if message['type'] == 'http.response.start':
        status = message['status']
        extra = {**_HEADERS, 'X-Request-Id': entry['request']}
        message['headers'] = [
          *message['headers'],
          *((name.encode(), text.encode()) for name, text in extra.items()),
        ]
      await send(message)

    try:
      await self._admit(scope, headers, receive, answer)
    except ApiError as error:
      await error.response()(scope, receive, answer)
    finally:
      route = getattr(scope.get('route'), 'path', 'other')
      self._metrics.answered(route, status)
      if _is_keyed(scope['path']) and scope['path'] != '/metrics':
        seconds = round(time.monotonic() - begun, 4)
        told = {'route': scope['path'], 'status': status, 'seconds': seconds}
        self._audit.write({**entry, **told})

  async def _admit(
    self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send
  ) -> None:
    """Lets a request through, or raises ApiError."""
    self._check_origin(headers)
    size = headers.get('content-length', '0')
    if not size.isdecimal() or int(size) > self._body_bytes:
      raise self._too_large()
    limited = self._limited(receive)
    path = scope['path']
    if not _is_keyed(path):
      await self._app(scope, limited, send)
      return
    address = (scope.get('client') or ('unknown',))[0]
    key = self._keys.owner(headers, address)
    scope['state']['key'] = key
    scope['state']['audit']['key'] = key.name
    if scope['method'] != 'POST':
      await self._app(scope, limited, send)
      return
    self._keys.take(key)
    with self._keys.running(key):
      await self._app(scope, limited, send)

  def _check_origin(self, headers: Mapping[str, str]) -> None:
    """Refuses pages of others (no CORS), and other names for this machine (DNS rebinding)."""
    host = headers.get('host', '')
    name = host.rpartition(':')[0] if host.rpartition(':')[2].isdecimal() else host
    if self._local and name.strip('[]') not in LOOPBACK:
      raise ApiError(403, f'this server answers as {" or ".join(LOOPBACK)} alone: use one of these')
    origin = headers.get('origin')
    if origin is not None and origin.partition('://')[2] != host:
      raise ApiError(403, 'pages of other sites may not ask this server: ask from its own page')

  def _limited(self, receive: Receive) -> Receive:
    """`receive` that counts, as a body may come without saying how long it is."""
    seen = 0

    async def limited() -> Message:
      nonlocal seen
      message = await receive()
      seen += len(message.get('body', b''))
      if seen > self._body_bytes:
        raise HTTPException(413, self._too_large().message)
      return message

    return limited

  def _too_large(self) -> ApiError:
    return ApiError(
      413, f'the body has more than {self._body_bytes:,} bytes: send less', code=TOO_LARGE
    )


def _is_keyed(path: str) -> bool:
  return path.startswith(('/v1/', '/ads/')) or path in _KEYED


def key_of(scope: Mapping[str, Any]) -> Key:
  return scope['state']['key']
