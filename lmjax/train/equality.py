"""Whether a mesh moves arrays and never numbers: losses and gradients over it, and on one device.

The same small model, batch and weights, in f32; on the mesh also which collectives the compiled
program has. `ParallelSmoke` does it for several meshes.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lmjax.core import tree
from lmjax.core.config import leaf
from lmjax.core.errors import UserError
from lmjax.core.task import Report, Task
from lmjax.core.types import Batch, Params
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.parallel import collectives, sharding
from lmjax.parallel.mesh import AXES, Mesh
from lmjax.train.state import batch_sharding
from lmjax.train.step import make_gradients

TOLERANCE = 1e-5
"""Largest difference of a gradient, as a share of the largest number of its tensor."""

_CERTIFIED = Path(__file__).with_name('equality.json')
_VOCAB, _ROWS, _LENGTH = 96, 16, 16
SEED = 4
"""With it experts are chosen by a clear margin, which rounding cannot turn."""
QUICK = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}
"""Compiler options under which XLA:CPU compiles a model that runs for milliseconds twice as fast."""

Kind = Literal['dense', 'moe']
_KINDS: tuple[Kind, ...] = ('dense', 'moe')


class Case(NamedTuple):
  """One way of running the same computation."""

  mesh: Mesh
  kind: Kind
  packed: bool
  layout: Literal['scan', 'list']
  accumulate: int

  def __str__(self) -> str:
    packing = 'packed' if self.packed else 'unpacked'
    mesh = ','.join(f'{axis}={size}' for axis, size in self.mesh.sizes.items() if size > 1)
    return f'{mesh} {self.kind} {packing} {self.layout} x{self.accumulate}'

  @property
  def axes(self) -> frozenset[str]:
    return frozenset(axis for axis, size in self.mesh.sizes.items() if size > 1)


class Found(NamedTuple):
  """What a case gave beside what one device does.

  Attributes:
    loss, loss_reference: nats, summed over tokens.
    gradient_error: largest |difference| / max |reference| of any tensor.
    collectives: rows of `collectives.summary`.
  """

  loss: float
  loss_reference: float
  gradient_error: float
  collectives: list[dict[str, Any]]


def how_certified(case: Case) -> Literal['itself', 'in parts', 'not']:
  """Whether the committed table has `case`, of whatever sizes its axes are.

  In parts it has one of several axes whose every two are there in this way, and every three in the
  plainest way that there is.
  """
  if not case.axes:
    return 'itself'
  with _CERTIFIED.open(encoding='utf-8') as file:
    known = set(json.load(file))
  way = (case.kind, case.packed, case.layout, case.accumulate > 1)
  if _key(case.axes, way) in known:
    return 'itself'
  plain = (case.kind, True, 'scan', False)
  some = lambda count: itertools.combinations(sorted(case.axes), count)
  parts = [_key(axes, way) for axes in some(2)] + [_key(axes, plain) for axes in some(3)]
  return 'in parts' if len(case.axes) > 1 and known.issuperset(parts) else 'not'


def certificate(cases: list[Case]) -> str:
  """What `how_certified` reads, of cases that were found equal."""
  ways = [(c.axes, (c.kind, c.packed, c.layout, c.accumulate > 1)) for c in cases]
  return json.dumps(sorted(_key(*way) for way in ways), indent=0) + '\n'


def _key(axes: Iterable[str], way: tuple[str, bool, str, bool]) -> str:
  kind, packed, layout, accumulates = way
  said = [
    kind,
    'packed' if packed else 'unpacked',
    layout,
    'accumulated' if accumulates else 'whole',
  ]
  return ' '.join(['+'.join(sorted(axes)), *said])


def table(found: Iterable[tuple[Case, Found]]) -> str:
  """A Markdown table with a line for each case."""
  head = ['mesh', 'model', 'rows', 'layers', 'microbatches', 'loss error', 'gradient error']
  lines = [head, ['---'] * len(head)]
  for case, one in found:
    mesh = ' '.join(f'{axis}={size}' for axis, size in case.mesh.sizes.items() if size > 1)
    rows = 'packed' if case.packed else 'unpacked'
    loss = f'{abs(one.loss / one.loss_reference - 1):.1e}'
    errors = [loss, f'{one.gradient_error:.1e}']
    lines.append([mesh, case.kind, rows, case.layout, str(case.accumulate), *errors])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def grid() -> list[Case]:
  """Each axis and each pair of axes with everything that they may disturb, each three with the rest.

  Pipelines have no listed layers.
  """
  alone = [Mesh(**{axis: 2 if axis == 'pipe' else 4}) for axis in AXES]
  pairs = [Mesh(**dict.fromkeys(axes, 2)) for axes in itertools.combinations(AXES, 2)]
  threes = [Mesh(**dict.fromkeys(axes, 2)) for axes in itertools.combinations(AXES, 3)]
  ways = list(itertools.product(_KINDS, (True, False), ('scan', 'list'), (1, 2)))
  cases = [Case(mesh, *way) for mesh in alone + pairs for way in ways]
  cases = [case for case in cases if not (case.mesh.pipe > 1 and case.layout == 'list')]
  return cases + [Case(mesh, kind, True, 'scan', 1) for mesh in threes for kind in _KINDS]


def compare(case: Case) -> Found:
  """Runs `case` on the devices of its mesh and compares it with one device."""
  loss, reference = reference_gradients(case.kind, case.packed)
  found, grads = _run(case)
  return Found(found, loss, _error(grads, reference), compiled(case)[1])


def small_model(kind: Kind, layout: str = 'scan') -> Decoder:
  """A decoder that every axis can split 2 ways and all but `pipe` 4 ways."""
  return Decoder(
    vocab=_VOCAB,
    width=32,
    layers=2,
    heads=8,
    kv_heads=4,
    head_dim=4,
    mlp=48,
    head='untied' if kind == 'moe' else 'tied',
    moe=MoE(experts=4, top_k=2) if kind == 'moe' else None,
    layout=layout,  # type: ignore[arg-type]
  )


def random_params(model: Decoder, seed: int = 0) -> Params:
  """Parameters with nothing at zero (fresh ones make every block the identity), made without XLA.

  They are drawn in the stacked layout, so that both layouts of a model get the same.
  """
  stacked = dataclasses.replace(model, layout='scan')
  shapes = stacked.shapes()
  rng = np.random.default_rng(seed)

  def draw(path: str, x: jax.ShapeDtypeStruct) -> np.ndarray:
    start = 1.0 if path.endswith('scale') else 0.0
    return np.asarray(start + 0.2 * rng.normal(size=x.shape), x.dtype)

  params = tree.map_with_path(draw, shapes)
  if model.layout == 'scan':
    return params
  return tree.map_with_path(lambda _, x: np.asarray(x), tree.unstack(params))


def make_batch(packed: bool) -> Batch:
  """Rows of random tokens: whole ones, or of posts that share a row and leave some of it empty."""
  rng = np.random.default_rng(SEED)
  shape = (_ROWS, _LENGTH)
  tokens, targets = (rng.integers(0, _VOCAB, shape, np.int32) for _ in range(2))
  segments = np.ones(shape, np.int32)
  if packed:
    ends = np.sort(rng.integers(1, _LENGTH + 1, (_ROWS, 3)), axis=1)
    segments = 1 + (np.arange(_LENGTH)[None, None] >= ends[:, :, None]).sum(1, dtype=np.int32)
    segments[segments == 4] = 0
  starts = np.diff(segments, axis=1, prepend=-1) != 0
  place = np.broadcast_to(np.arange(_LENGTH, dtype=np.int32), shape)
  positions = place - np.maximum.accumulate(np.where(starts, place, 0), axis=1)
  weights: Any = (segments > 0).astype(np.float32)
  arrays: tuple[Any, ...] = (tokens, targets, weights, segments, positions)
  return Batch(*arrays)


@functools.cache
def reference_gradients(kind: Kind, packed: bool) -> tuple[float, Params]:
  """The summed loss and its gradients on one device, layers stacked."""
  model = small_model(kind)
  step = jax.jit(make_gradients(Language(chunk=8), model, 1), compiler_options=QUICK)
  grads, loss, _ = step(random_params(model, SEED), make_batch(packed), jax.random.key(0))
  return loss.total.item(), jax.device_get(grads)


def _run(case: Case) -> tuple[float, Params]:
  """The summed loss and its gradients of `case`, layers stacked."""
  program, _ = compiled(case)
  model, mesh = small_model(case.kind, case.layout), case.mesh.build()
  params = jax.device_put(random_params(model, SEED), sharding.shardings(mesh, model.dims()))
  batch = jax.device_put(make_batch(case.packed), batch_sharding(mesh))
  grads, loss, _ = program(params, batch, jax.random.key(0))
  return loss.total.item(), jax.device_get(tree.stack(jax.device_get(grads)))


def compiled(case: Case) -> tuple[Any, list[dict[str, Any]]]:
  """The program of `case`, which its packing does not change, and its collectives."""
  return _compiled(case._replace(packed=True))


@functools.lru_cache(4)
def _compiled(case: Case) -> tuple[Any, list[dict[str, Any]]]:
  model, mesh = small_model(case.kind, case.layout), case.mesh.build()
  sharding.check_mesh(case.mesh.sizes, model, _ROWS // case.accumulate, _LENGTH, case.accumulate)
  layout = sharding.shardings(mesh, model.dims())
  shapes = model.shapes()
  place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  params = jax.tree.map(place, shapes, layout)
  batch = jax.tree.map(lambda x: place(x, batch_sharding(mesh)), make_batch(True))
  step = make_gradients(Language(chunk=8), model, case.accumulate)
  jitted = jax.jit(step, out_shardings=(layout, None, None), compiler_options=QUICK)
  with jax.set_mesh(mesh):
    program = jitted.lower(params, batch, jax.random.key(0)).compile()
  return program, collectives.summary(collectives.read(program.as_text() or '', mesh))


def _error(found: Params, expected: Params) -> float:
  """The largest of any tensor; NaN if there is one anywhere, which Python's `max` would pass over."""
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))


class ParallelSmoke(Task):
  """Runs a small model over several meshes and compares it with one device."""

  devices: int = leaf(8, 'Virtual devices that a CPU is split into.', low=2)
  meshes: tuple[str, ...] = leaf(
    (
      'data=4:fsdp=2',
      'fsdp=2:tensor=4',
      'expert=4:fsdp=2',
      'context=4:tensor=2',
      'pipe=2:data=2:fsdp=2',
      'fsdp=2:expert=2:tensor=2',
      'pipe=2:expert=2:context=2',
    ),
    'Meshes to run over, each as AXIS=SIZE:AXIS=SIZE.',
  )
  kind: Literal['dense', 'moe'] = leaf('moe', 'Which small model.')

  def run(self, workdir: Path) -> Report:
    """Prints a line for each mesh; the last one, and `equal` of the report, say if all agree."""
    del workdir
    meshes = [_parse_mesh(text) for text in self.meshes]
    for mesh in meshes:
      sharding.check_mesh(mesh.sizes, small_model(self.kind), _ROWS, _LENGTH)
    if jax.config.jax_num_cpu_devices < self.devices:  # type: ignore[attr-defined]
      _split_cpu(self.devices)
    rows = []
    print(f'{"mesh":34} {"loss":>12} {"one device":>12} {"gradient error":>15}  collectives')
    for mesh in meshes:
      found = compare(Case(mesh, self.kind, True, 'scan', 1))
      count = sum(row['count'] for row in found.collectives)
      print(
        f'{mesh!s:34} {found.loss:12.4f} {found.loss_reference:12.4f} '
        f'{found.gradient_error:15.1e}  {count}',
        flush=True,
      )
      rows.append(
        {
          'mesh': {axis: size for axis, size in mesh.sizes.items() if size > 1},
          'loss': found.loss,
          'loss_reference': found.loss_reference,
          'max_gradient_error': found.gradient_error,
          'collectives': found.collectives,
        }
      )
    worst = float(np.max([row['max_gradient_error'] for row in rows]))
    verdict = 'equal' if worst <= TOLERANCE else 'NOT equal'
    print(f'{verdict} to one device: largest error {worst:.1e}, allowed {TOLERANCE:.0e}')
    equal = worst <= TOLERANCE
    return {'kind': self.kind, 'tolerance': TOLERANCE, 'equal': equal, 'ok': equal, 'meshes': rows}


def _parse_mesh(text: str) -> Mesh:
  pairs = [part.partition('=') for part in text.split(':')]
  if not all(axis in AXES and size.isdigit() and int(size) for axis, _, size in pairs):
    raise UserError(
      f'meshes={text}: expected AXIS=SIZE:AXIS=SIZE with axes of {", ".join(AXES)}, '
      'such as fsdp=2:tensor=4'
    )
  if len({axis for axis, _, _ in pairs}) < len(pairs):
    raise UserError(f'meshes={text} has an axis twice: pass each once, with its whole size')
  return Mesh(**{axis: int(size) for axis, _, size in pairs})


def _split_cpu(devices: int) -> None:
  with contextlib.suppress(RuntimeError):  # the devices are made already, as by XLA_FLAGS
    jax.config.update('jax_num_cpu_devices', devices)
