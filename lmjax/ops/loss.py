"""Cross-entropy over a large vocabulary, a chunk of positions at a time.

B batch, L length, D width, V vocab. Knows nothing of the model: logits come from a function.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.core.types import Mean, Params
from lmjax.parallel.sharding import axis_sizes, on_rows

LogitsFunction = Callable[[Params, jax.Array], jax.Array]


def cross_entropy(
  logits_of: LogitsFunction,
  head: Params,
  hidden_BLD: jax.Array,
  targets_BL: jax.Array,
  weights_BL: jax.Array,
  *,
  chunk: int,
  z_loss: float = 0.0,
) -> Mean:
  """Weighted sum of -log softmax(logits)[target] (+ z_loss * logsumexp^2), f32 nats.

  The z-loss is PaLM's (arXiv:2204.02311, section 5). Each chunk's gradient is taken while its logits
  exist, so B x L x V is never in memory and no logits are computed twice.

  Args:
    logits_of: (head, hidden_BLD) -> f32 logits_BLV.
    head: the parameters that `logits_of` reads; gradients flow to them and to hidden_BLD.
    weights_BL: f32, 0 where a position has no loss.
    chunk: positions of a device's row at a time; all where it does not divide them.
  """
  total: Any = _total(logits_of, chunk, z_loss, head, hidden_BLD, targets_BL, weights_BL)
  return Mean(total, jnp.sum(weights_BL))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _total(logits_of, chunk, z_loss, head, hidden_BLD, targets_BL, weights_BL):
  return _forward(logits_of, chunk, z_loss, head, hidden_BLD, targets_BL, weights_BL)[0]


def _forward(logits_of, chunk, z_loss, head, hidden_BLD, targets_BL, weights_BL):
  """The sum, and its gradients; those to the head are added up over devices after the last chunk.

  Left to the compiler, they would be after every chunk: 2 GiB each of posts_dense_8b.
  """
  run = functools.partial(_run, functools.partial(_chunk_loss, logits_of, z_loss), chunk)
  rows = (hidden_BLD, targets_BL, weights_BL)
  if not axis_sizes():
    total, dhead, dhidden_BLD = run(head, *rows)
    return total, (dhead, dhidden_BLD)
  part = lambda head, *rows: _stack_sums(*run(head, *rows))
  out_dims = (('part',), ('part',), ('batch', 'length'))
  total_W, dhead, dhidden_BLD = on_rows(part, whole=1, out_dims=out_dims)(head, *rows)
  return jnp.sum(total_W), (jax.tree.map(lambda x: jnp.sum(x, axis=0), dhead), dhidden_BLD)


def _stack_sums(total, dhead, dhidden_BLD):
  """What a device has of the sums, with a first dimension for the devices."""
  return total[None], jax.tree.map(lambda x: x[None], dhead), dhidden_BLD


def _run(loss_of, chunk: int, head: Params, hidden_BLD, targets_BL, weights_BL):
  """The sum over all chunks, its gradients to the head, and to hidden_BLD."""
  loss_and_grads = jax.value_and_grad(loss_of, argnums=(0, 1))

  def body(carry, rows):
    total, head_grads = carry
    loss, (dhead, dhidden) = loss_and_grads(head, *rows)
    return (total + loss, jax.tree.map(jnp.add, head_grads, dhead)), dhidden

  size = _size(chunk, hidden_BLD.shape[1])
  # Of the rows, so that in a `shard_map` it counts as different on every device, as the sums are.
  zero = jnp.zeros_like(weights_BL, shape=()) + 0 * jnp.ravel(weights_BL)[0]
  start = (zero, jax.tree.map(jnp.zeros_like, head))
  chunks = tuple(_cut(x, size) for x in (hidden_BLD, targets_BL, weights_BL))
  (total, dhead), dhidden = jax.lax.scan(body, start, chunks)
  return total, dhead, jnp.moveaxis(dhidden, 0, 1).reshape(hidden_BLD.shape)


def _backward(logits_of, chunk, z_loss, residuals, scale):
  dhead, dhidden_BLD = jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), residuals)
  return dhead, dhidden_BLD, None, None


_total.defvjp(_forward, _backward)


def _chunk_loss(logits_of, z_loss, head, hidden_BLD, targets_BL, weights_BL):
  logits_BLV = logits_of(head, hidden_BLD)
  logsumexp_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
  loss_BL = logsumexp_BL - target_logits(logits_BLV, targets_BL)
  if z_loss:
    loss_BL += z_loss * jnp.square(logsumexp_BL)
  return jnp.sum(loss_BL * weights_BL)


def target_logits(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
  """logits[..., target] as a masked sum, which stays local when V is sharded (a gather would not)."""
  ids_11V = jnp.arange(logits_BLV.shape[-1])[None, None, :]
  return jnp.sum(jnp.where(ids_11V == targets_BL[:, :, None], logits_BLV, 0.0), axis=-1)


def logprobs(
  logits_of: LogitsFunction,
  head: Params,
  hidden_BLD: jax.Array,
  targets_BL: jax.Array,
  *,
  chunk: int,
) -> tuple[jax.Array, jax.Array]:
  """log p of each target, and the entropy of each distribution, f32 nats [B, L]; logits `chunked`."""

  def some(head, hidden_BLD, targets_BL):
    logits_BLV = logits_of(head, hidden_BLD)
    logsumexp_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    mean_BL = jnp.sum(jax.nn.softmax(logits_BLV, axis=-1) * logits_BLV, axis=-1)
    return target_logits(logits_BLV, targets_BL) - logsumexp_BL, logsumexp_BL - mean_BL

  return chunked(some, head, (hidden_BLD, targets_BL), chunk)


def chunked(some: Callable[..., Any], head: Any, rows: tuple[jax.Array, ...], chunk: int) -> Any:
  """`some(head, *rows)` of arrays [B, L, ...], `chunk` positions of a row at a time.

  What it computes on the way is computed again for gradients, which may be any.
  """
  again = jax.checkpoint(some)
  size = _size(chunk, rows[0].shape[1])
  found = jax.lax.map(lambda part: again(head, *part), tuple(_cut(x, size) for x in rows))
  join = lambda x: jnp.moveaxis(x, 0, 1).reshape(*rows[0].shape[:2], *x.shape[3:])
  return jax.tree.map(join, found)


def _size(chunk: int, length: int) -> int:
  return chunk if 0 < chunk < length and length % chunk == 0 else length


def _cut(x: jax.Array, size: int) -> jax.Array:
  """Chunks of `size` positions, the first dimension to go through."""
  return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)
