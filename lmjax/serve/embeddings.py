"""/v1/embeddings: texts as vectors of length one, the mean of the model's final hidden states.

Decoders that were not trained for it order texts only roughly; an encoder takes this place by an
`Embedder` of its own.
"""

import base64
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import anyio
import anyio.to_thread
import jax
import jax.numpy as jnp
import numpy as np
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from lmjax.core.types import Params
from lmjax.models.transformer import Decoder
from lmjax.serve.completions import read_prompts
from lmjax.serve.errors import REFUSALS, ApiError, reply
from lmjax.serve.schemas import EmbeddingList, EmbeddingRequest
from lmjax.serve.service import Service

_SHORTEST = 64  # texts are padded to it, or to a power of two, so that few lengths compile


class Embedder(Protocol):
  """Token ids of texts to f32 [texts, D], each of length one; called once at a time."""

  def __call__(self, texts: Sequence[Sequence[int]]) -> np.ndarray: ...

  def preparations(self) -> list[Callable[[], Any]]:
    """What makes it ready, a part each; see `Service.preparations`."""
    ...


class MeanHidden:
  """The mean over a text of a decoder's final hidden states."""

  def __init__(self, model: Decoder, params: Params, longest: int) -> None:
    """`longest`: tokens that a text may have."""
    self._model, self._params, self._longest = model, params, longest

  def __call__(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
    return np.stack([self._embed(text) for text in texts])

  def preparations(self) -> list[Callable[[], Any]]:
    """Compiles a length each."""
    lengths = sorted({self._padded(length) for length in range(1, self._longest + 1)})
    return [functools.partial(self._embed, [0] * length) for length in lengths]

  def _padded(self, length: int) -> int:
    return min(max(_SHORTEST, 1 << (length - 1).bit_length()), self._longest)

  def _embed(self, text: Sequence[int]) -> np.ndarray:
    length = self._padded(len(text))
    tokens_1L = np.zeros((1, length), np.int32)
    tokens_1L[0, : len(text)] = text
    return np.asarray(_mean_hidden(self._model, self._params, tokens_1L, len(text)))


@functools.partial(jax.jit, static_argnums=0)
def _mean_hidden(model: Decoder, params: Params, tokens_1L, length) -> jax.Array:
  places_1L = jnp.arange(tokens_1L.shape[1])[None]
  real_1L = (places_1L < length).astype(jnp.int32)
  hidden_1LD = model.apply(params, tokens_1L, real_1L, places_1L).hidden_BLD
  sum_D = jnp.einsum('BLD,BL->D', hidden_1LD.astype(jnp.float32), real_1L.astype(jnp.float32))
  return sum_D / jnp.maximum(jnp.linalg.norm(sum_D), 1e-30)


def embedding_routes(service: Service, embedder: Embedder) -> APIRouter:
  """The route, for one model."""
  router = APIRouter()
  service.preparations += embedder.preparations()
  one = anyio.CapacityLimiter(1)  # at a time: the engine wants the processor too

  @router.post('/v1/embeddings', response_model=EmbeddingList, responses=REFUSALS)
  async def create_embedding(body: EmbeddingRequest, http: Request) -> Any:
    """Turns texts, or token ids, into vectors."""
    service.check(body.model)
    texts = await run_in_threadpool(read_prompts, service, body.input, 'input')
    longest, most = max(map(len, texts)), service.engine.slots
    if longest > most:
      message = f'a text has {longest} tokens, and {most} fit: shorten it'
      raise ApiError(400, message, code='context_length_exceeded', param='input')
    if one.statistics().tasks_waiting >= service.batching.queue:
      raise ApiError(
        429, 'as many requests wait as may: try again', code='overloaded', retry_seconds=5
      )
    vectors_ND = await anyio.to_thread.run_sync(embedder, texts, limiter=one)
    width = vectors_ND.shape[1]
    if body.dimensions is not None and body.dimensions != width:
      raise ApiError(
        400, f'dimensions={body.dimensions}: this model has {width}', param='dimensions'
      )
    tokens = sum(map(len, texts))
    http.scope['state']['audit'] |= {'model': body.model, 'prompt_tokens': tokens}
    data = [
      {'object': 'embedding', 'index': i, 'embedding': _written(vector, body.encoding_format)}
      for i, vector in enumerate(vectors_ND)
    ]
    usage = {'prompt_tokens': tokens, 'total_tokens': tokens}
    return reply({'object': 'list', 'data': data, 'model': service.name, 'usage': usage})

  return router


def _written(vector_D: np.ndarray, form: str | None) -> list[float] | str:
  if form == 'base64':
    return base64.b64encode(vector_D.astype('<f4').tobytes()).decode()
  return vector_D.tolist()
