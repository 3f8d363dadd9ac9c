"""/search: posts of an index by words, meaning and filters, page by page, and an answer made of them."""

import base64
import hashlib
import json
import time
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from lmjax.search.query import Filters, Query, parse, read_date
from lmjax.search.searcher import Hit, Searcher
from lmjax.serve.answering import FromPosts, answer_question
from lmjax.serve.errors import REFUSALS, ApiError, reply
from lmjax.serve.schemas import Strict, Text
from lmjax.serve.service import Service


class SearchRequest(Strict):
  """`query` is as people type it, filters in it too; the others come on top of it.

  Attributes:
    answer: whether the model is to answer `query` from what is found.
  """

  query: Text = ''
  authors: list[Text] = Field(default=[], max_length=100)
  languages: list[Text] = Field(default=[], max_length=100)
  hashtags: list[Text] = Field(default=[], max_length=100)
  since: Text | None = None
  until: Text | None = None
  has_link: bool | None = None
  limit: int = Field(default=10, ge=1, le=100)
  cursor: Text | None = None
  answer: bool = False


class FoundPost(Strict):
  """A hit.

  Attributes:
    highlights: (from, to) in `snippet`, characters.
    why, reasons: in words, and what each feature adds to the score.
    copies: ids of posts that say the same.
  """

  id: str
  text: str
  title: str
  author: str
  time: float | None
  language: str
  likes: float | None
  score: float
  relevant: bool
  why: str
  reasons: dict[str, float]
  snippet: str
  highlights: list[tuple[int, int]]
  copies: list[str]


class FoundPosts(Strict):
  """`cursor` asks for the next ones, none at the end; `relevant`: whether anything close was found.

  Attributes:
    milliseconds: what finding took, without answering.
    answer: none where it was not asked for.
  """

  object: str
  data: list[FoundPost]
  relevant: bool
  cursor: str | None
  milliseconds: float
  answer: FromPosts | None


def search_routes(searcher: Searcher | None, service: Service) -> APIRouter:
  """The route, for one index or for none.

  Args:
    service: the model that answers from what is found.
  """
  router = APIRouter()

  @router.post('/search', response_model=FoundPosts, responses=REFUSALS)
  async def search(body: SearchRequest, http: Request) -> Any:
    """Finds posts."""
    if searcher is None:
      raise ApiError(404, 'no index is searched here: start the server with --index=FOLDER')
    http.scope['state']['audit'] |= {'asked': body.model_dump(exclude={'cursor', 'limit'})}
    query = read_query(body)
    if body.answer and (body.cursor is not None or not query.text):
      raise ApiError(
        400,
        'answer: is for the first page of a query with words: send query and no cursor',
        code='invalid_value',
        param='answer',
      )
    after = _read_cursor(body.cursor, query)
    begun = time.perf_counter()
    hits, last = await run_in_threadpool(searcher.hits, query, body.limit, after)
    milliseconds = 1000 * (time.perf_counter() - begun)
    answer = await answer_question(service, query.text, hits, http) if body.answer else None
    return reply(
      {
        'object': 'list',
        'data': [_shown(hit) for hit in hits],
        'relevant': any(hit.relevant for hit in hits),
        'cursor': None if last is None else _write_cursor(last, query),
        'milliseconds': round(milliseconds, 2),
        'answer': answer,
      }
    )

  return router


def read_query(body: SearchRequest) -> Query:
  """What is asked for; QueryError, or ApiError naming the parameter, where it cannot be understood."""
  more = Filters(
    authors=tuple(name.lstrip('@').lower() for name in body.authors),
    languages=tuple(code.lower() for code in body.languages),
    tags=tuple(tag.lstrip('#').lower() for tag in body.hashtags),
    since=None if body.since is None else read_date('since', body.since),
    until=None if body.until is None else read_date('until', body.until),
    link=body.has_link,
  )
  if not body.query.strip() and more != Filters():
    return Query('', more)
  query = parse(body.query)
  own = query.filters
  filters = own._replace(
    authors=own.authors + more.authors,
    languages=own.languages + more.languages,
    tags=own.tags + more.tags,
    since=own.since if more.since is None else more.since,
    until=own.until if more.until is None else more.until,
    link=own.link if more.link is None else more.link,
  )
  return query._replace(filters=filters)


def _shown(hit: Hit) -> dict[str, Any]:
  kept = hit._asdict()
  document = kept.pop('document')._asdict()
  del kept['number'], kept['meaning'], kept['words']
  return {**document, **kept, 'relevant': hit.relevant, 'why': hit.why}


def _write_cursor(last: tuple[float, int], query: Query) -> str:
  return base64.urlsafe_b64encode(json.dumps([*last, _digest(query)]).encode()).decode()


def _read_cursor(cursor: str | None, query: Query) -> tuple[float, int] | None:
  if cursor is None:
    return None
  try:
    score, number, digest = json.loads(base64.b64decode(cursor, b'-_', validate=True))
    after = float(score), int(number)
  except (ValueError, TypeError, OverflowError, RecursionError):
    raise ApiError(
      400, 'cursor: is none of ours: send it as it came', code='invalid_value', param='cursor'
    ) from None
  if digest != _digest(query):
    raise ApiError(
      400,
      'cursor: is of another query: send it with the query that it came with',
      code='invalid_value',
      param='cursor',
    )
  return after


def _digest(query: Query) -> str:
  return hashlib.blake2b(repr(query).encode(), digest_size=6).hexdigest()
