"""What goes wrong, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

A message says what was given, what is allowed and what to do; never a path or a trace of this machine.
"""

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lmjax.core.errors import UserError, nearest


class ErrorDetail(BaseModel):
  message: str
  type: str
  param: str | None = None
  code: str | None = None


class ErrorBody(BaseModel):
  error: ErrorDetail


# What every route of the API may answer, for its OpenAPI document.
REFUSALS: dict[int | str, dict[str, Any]] = {
  400: {'model': ErrorBody, 'description': 'The request is wrong.'},
  401: {'model': ErrorBody, 'description': 'No valid API key.'},
  403: {'model': ErrorBody, 'description': 'Not from this page or host.'},
  404: {'model': ErrorBody, 'description': 'No such model.'},
  405: {'model': ErrorBody, 'description': 'No such method.'},
  408: {'model': ErrorBody, 'description': 'Not done before its deadline.'},
  413: {'model': ErrorBody, 'description': 'The body is too large.'},
  415: {'model': ErrorBody, 'description': 'The body is not JSON.'},
  429: {'model': ErrorBody, 'description': 'Too much at once: see Retry-After.'},
  500: {'model': ErrorBody, 'description': 'A mistake of the server.'},
  503: {'model': ErrorBody, 'description': 'Not ready yet, or not any more.'},
}

STREAM: dict[int | str, dict[str, Any]] = {
  200: {'content': {'text/event-stream': {}}, 'description': 'The answer, whole or streamed.'}
}


TOO_LARGE = 'body_too_large'
"""The code of 413."""


class ApiError(Exception):
  """An answer that is an error."""

  def __init__(
    self,
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    retry_seconds: int | None = None,
  ) -> None:
    super().__init__(message)
    self.status, self.message, self.code, self.param = status, message, code, param
    self.retry_seconds = retry_seconds

  @property
  def body(self) -> dict[str, Any]:
    detail = {'message': self.message, 'type': _kind(self.status)}
    return {'error': {**detail, 'param': self.param, 'code': self.code}}

  def response(self) -> Response:
    headers = {} if self.retry_seconds is None else {'Retry-After': str(self.retry_seconds)}
    if self.status == 401:
      headers['WWW-Authenticate'] = 'Bearer'
    return reply(self.body, self.status, headers)


def reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
  """JSON in UTF-8; what a client sent that has none is replaced."""
  text = json.dumps(body, ensure_ascii=False, separators=(',', ':'), allow_nan=False)
  return Response(text.encode('utf-8', 'replace'), status, headers, 'application/json')


def add_handlers(app: FastAPI) -> None:
  """Has every error of the application answered in the one shape."""

  async def api_error(_: Request, error: Any) -> Response:
    return error.response()

  async def user_error(_: Request, error: Any) -> Response:
    return ApiError(400, str(error), code='invalid_value').response()

  async def http_error(request: Request, error: Any) -> Response:
    said = {
      400: 'the body is no JSON: send a JSON object',
      404: f'there is no {request.url.path}: see /openapi.json',
      405: f'{request.url.path} knows no {request.method}: see /openapi.json',
    }
    message = said.get(error.status_code, str(error.detail))
    code = TOO_LARGE if error.status_code == 413 else None
    answer = ApiError(error.status_code, message, code=code).response()
    answer.headers.update(error.headers or {})
    return answer

  async def invalid(request: Request, error: Any) -> Response:
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if request.method == 'POST' and kind != 'application/json' and not kind.endswith('+json'):
      sent = f'comes as {kind[:60]!r}' if kind else 'does not say what it is'
      message = f'the body {sent}: send JSON with the header Content-Type: application/json'
      return ApiError(415, message).response()
    return _invalid(error.errors()[0]).response()

  async def unexpected(_: Request, error: Exception) -> Response:
    return ApiError(
      500, 'a mistake of the server: its log has more under this request id'
    ).response()

  app.add_exception_handler(ApiError, api_error)
  app.add_exception_handler(UserError, user_error)
  app.add_exception_handler(HTTPException, http_error)
  app.add_exception_handler(RequestValidationError, invalid)
  app.add_exception_handler(Exception, unexpected)


def unknown_model(name: str, known: list[str]) -> ApiError:
  message = f'there is no model {name!r}: {nearest(name, known)}'
  return ApiError(404, message, code='model_not_found', param='model')


def _invalid(found: dict[str, Any]) -> ApiError:
  """The first thing that is wrong with a body, by pydantic."""
  # pydantic also names its validators there, as function-after[...] and list[...].
  place = [str(part) for part in found['loc'] if part != 'body' and '[' not in str(part)]
  param = '.'.join(place) or None
  said = found['msg']
  if found['type'] == 'json_invalid':
    return ApiError(400, f'the body is no JSON: {found["ctx"]["error"]}: send a JSON object')
  if found['type'] == 'missing':
    said = 'is missing: add it' if param else 'the body is missing: send a JSON object'
    return ApiError(400, f'{param or ""} {said}'.strip(), code='missing_parameter', param=param)
  if found['type'] == 'extra_forbidden':
    return ApiError(400, f'{param}: no such parameter', code='unknown_parameter', param=param)
  message = said[:1].lower() + said[1:]
  return ApiError(400, f'{param or "the body"}: {message}', code='invalid_value', param=param)


def _kind(status: int) -> str:
  if status == 401:
    return 'authentication_error'
  if status == 403:
    return 'permission_error'
  if status == 429:
    return 'rate_limit_error'
  return 'invalid_request_error' if status < 500 else 'server_error'
