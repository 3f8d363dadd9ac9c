"""What the server says of itself: its models, whether it is up, whether it is ready, its counts."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from lmjax.serve.errors import REFUSALS, ApiError, reply, unknown_model
from lmjax.serve.schemas import ModelCard, ModelList
from lmjax.serve.service import Service


def state_routes(service: Service) -> APIRouter:
  """The routes, for one model."""
  router = APIRouter()

  def card() -> dict[str, Any]:
    said = {'id': service.name, 'object': 'model', 'created': service.created}
    return {**said, 'owned_by': 'lmjax', 'context_length': service.engine.slots}

  @router.get('/v1/models', response_model=ModelList, responses=REFUSALS)
  async def list_models() -> Any:
    """The models that may be asked for."""
    return reply({'object': 'list', 'data': [card()]})

  @router.get('/v1/models/{model:path}', response_model=ModelCard, responses=REFUSALS)
  async def retrieve_model(model: str) -> Any:
    """One of them."""
    if model != service.name:
      raise unknown_model(model, [service.name])
    return reply(card())

  @router.get('/health', responses=REFUSALS)
  async def health() -> dict[str, str]:
    """Whether the process answers at all, and its engine has not failed."""
    service.check_engine()
    return {'status': 'ok'}

  @router.get('/ready', responses=REFUSALS)
  async def ready() -> dict[str, str]:
    """Whether requests are answered: 503 while the model is made ready."""
    service.check_engine()
    if not service.ready:
      raise ApiError(503, 'not ready', retry_seconds=5)
    return {'status': 'ready'}

  @router.get('/metrics', response_class=PlainTextResponse, responses=REFUSALS)
  async def metrics() -> Response:
    """Counts and histograms in Prometheus' format."""
    return Response(service.metrics.text(), media_type='text/plain; version=0.0.4')

  return router
