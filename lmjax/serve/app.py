"""The application: every family of routes, behind the guard."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

import lmjax
from lmjax.search.searcher import Searcher
from lmjax.serve.ads import Desk, ads_routes
from lmjax.serve.audit import Audit
from lmjax.serve.chat import chat_routes
from lmjax.serve.completions import completion_routes
from lmjax.serve.embeddings import MeanHidden, embedding_routes
from lmjax.serve.errors import add_handlers
from lmjax.serve.guard import Guard
from lmjax.serve.keys import Keys
from lmjax.serve.search import search_routes
from lmjax.serve.service import Service
from lmjax.serve.state import state_routes

PAGE = Path(__file__).with_name('page')


def _page() -> FileResponse:
  return FileResponse(PAGE / 'index.html')


def build_app(
  service: Service,
  *,
  keys: Keys,
  audit: Audit,
  local: bool,
  searcher: Searcher | None = None,
  desk: Desk | None = None,
) -> FastAPI:
  """The server of one model.

  Args:
    local: only this machine may ask.
    searcher: of the index that /search asks, or None.
    desk: where /ads makes advertisements, or None.
  """
  app = FastAPI(title='lmjax', version=lmjax.__version__, docs_url=None, redoc_url=None)
  app.include_router(chat_routes(service))
  app.include_router(completion_routes(service))
  embedder = MeanHidden(service.model, service.params, service.engine.slots)
  app.include_router(embedding_routes(service, embedder))
  service.preparations.append(lambda: service.grammars)
  app.include_router(search_routes(searcher, service))
  app.include_router(ads_routes(service, desk))
  app.include_router(state_routes(service))
  app.mount('/page', StaticFiles(directory=PAGE), name='page')
  app.add_api_route('/', _page, include_in_schema=False)
  add_handlers(app)
  app.add_middleware(
    Guard,
    keys=keys,
    metrics=service.metrics,
    audit=audit,
    body_bytes=service.limits.body_bytes,
    local=local,
  )
  describe = app.openapi

  def openapi() -> dict[str, Any]:
    """FastAPI's own, without the status 422, which is never answered."""
    document = describe()
    for path in document['paths'].values():
      for operation in path.values():
        operation['responses'].pop('422', None)
    return document

  app.openapi = openapi
  return app
