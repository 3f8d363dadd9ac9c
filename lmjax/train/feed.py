"""Batches onto devices: a process reads the rows that its devices hold, and all agree when to stop."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.data.loader import Batches
from lmjax.parallel import hosts
from lmjax.train.audit import Audit
from lmjax.train.state import batch_sharding

STOP = 'stop'  # the metric that says whether some process was asked to


class Feed:
  """The batches of `loader` laid out over `mesh`, of which this process reads its part.

  Attributes:
    rows: the rows of each batch that some device of this process holds, in order. Processes that
      split another dimension (tensor, context, pipe) read the same ones.
  """

  def __init__(self, loader: Batches, mesh: jax.sharding.Mesh, audit: Audit) -> None:
    self._loader, self._mesh, self._audit = loader, mesh, audit
    self._size = loader.batch_rows
    held = self._sharding((self._size,)).addressable_devices_indices_map((self._size,)).values()
    slices = [range(self._size)[index[0]] for index in held if index is not None]
    self.rows = sorted({row for rows in slices for row in rows})

  def batches(self, first: int, last: int) -> Iterator[Any]:
    """Batches first .. last - 1, each on its devices."""
    read = self._loader.iterate(first, last, self.rows)
    with contextlib.closing(read):  # type: ignore[type-var]
      for step, batch in zip(range(first, last), read, strict=True):
        self._audit.batch(step, self.rows, batch, self._loader.bytes_read)
        yield self._place(batch)

  def abstract(self) -> Any:
    """A batch without its numbers, for compiling."""

    def struct(x_R: np.ndarray) -> jax.ShapeDtypeStruct:
      shape = (self._size, *x_R.shape[1:])
      return jax.ShapeDtypeStruct(shape, x_R.dtype, sharding=self._sharding(shape))

    return jax.tree.map(struct, self._loader.batch(0, self.rows[:1]))

  def _place(self, batch: Any) -> Any:
    one = lambda x_R: place(x_R, self._sharding(x_R.shape), self._size, self.rows)
    return jax.tree.map(one, batch)

  def _sharding(self, shape: tuple[int, ...]) -> NamedSharding:
    """Of an array of a batch: split along its rows, and along its length where it has one."""
    has_length = shape[1:2] == (self._loader.length,)
    return batch_sharding(self._mesh, ('batch', 'length') if has_length else ('batch',))


def place(
  batch: Any, sharding: NamedSharding, size: int, rows: list[int] | range | None = None
) -> Any:
  """`batch`, which holds `rows` of the `size` rows of a global one, as their part of global arrays."""
  have = np.arange(size) if rows is None else np.asarray(rows)

  def one(x_RL: np.ndarray) -> jax.Array:
    def shard(index: Any) -> np.ndarray:
      wanted = range(size)[index[0]]
      begin = int(np.searchsorted(have, wanted.start))
      return x_RL[begin : begin + len(wanted), *index[1:]]

    return jax.make_array_from_callback((size, *x_RL.shape[1:]), sharding, shard)

  return jax.tree.map(one, batch)


class Agreement:
  """Has the processes of a run stop at the same step, by a flag of each that the step itself takes.

  A step's metrics then hold whether any process had been asked to stop when it was dispatched; all
  read them at the same place of the loop. With one process nothing is added to the step.
  """

  def __init__(self, mesh: jax.sharding.Mesh, asked: Callable[[], bool]) -> None:
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._devices, self._asked = mesh.size, asked

  def within(self, train_step: Callable) -> Callable:
    """`train_step` that also takes the flags, and gives their maximum among its metrics."""
    if hosts.count() == 1:
      return train_step

    def step(state: Any, batch: Any, flags_P: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
      state, metrics = train_step(state, batch)
      return state, metrics | {STOP: jnp.max(flags_P)}

    return step

  def flags(self) -> tuple[jax.Array, ...]:
    """What the step takes after the batch: this process's flag on each of its devices."""
    if hosts.count() == 1:
      return ()
    flag = np.full(1, self._asked(), np.int32)
    return (jax.make_array_from_callback((self._devices,), self._sharding, lambda index: flag),)
