"""What a run says before it begins: on what it runs, over what, how long it may take."""

from typing import TYPE_CHECKING, Any

import jax

from lmjax.core import storage
from lmjax.core.clock import duration_text, peak_flops
from lmjax.core.task import device
from lmjax.parallel.expert import padding_bytes
from lmjax.parallel.pipeline import Plan
from lmjax.parallel.sharding import batch_ways
from lmjax.train.equality import Case, how_certified

if TYPE_CHECKING:
  from lmjax.train.job import Job

# What the estimate assumes of the peak before anything is measured.
_EXPECTED_MFU = 0.4


def header(job: 'Job', first: int) -> str:
  """The lines to show before step `first` + 1."""
  task = job.task
  length = job.work.source.length or 1
  tokens = task.batch * length * task.steps
  flops = job.work.flops_per_token * tokens
  peak, source = peak_flops(job.model.dtype)
  left = (task.last_step - first) / task.steps
  seconds = flops * left / (peak * _EXPECTED_MFU)
  lines = [
    f'device      {device()}, mesh {task.mesh}; peak {peak / 1e9:,.0f} GFLOP/s ({source})',
    *([job.preset.line] if job.preset.compiler_options else []),
    *job.work.lines(job),
    f'run         {task.steps:,} steps x {task.batch} rows x {length} = {tokens:,} tokens, '
    f'{flops:.2e} FLOPs',
    f'estimated   {duration_text(seconds)} of training at {_EXPECTED_MFU:.0%} of the peak',
    f'workdir     {storage.origin(job.workdir)}; every setting is in {job.workdir / "config.json"}',
  ]
  if first:
    lines.append(f'resuming    at step {first:,} of {task.last_step:,}')
  return '\n'.join([*lines, *job.work.notes, ''])


def decoder_lines(job: 'Job', dtype: str) -> list[str]:
  """What there is to say about how a decoder is computed on this mesh; `dtype` was asked for."""
  return [*_dtype_lines(job, dtype), *_pipeline_lines(job), *_expert_lines(job), *_warnings(job)]


def expert_padding(job: 'Job') -> int:
  """Bytes of padding that a device sends to experts and back in a step; 0 where rows alone travel."""
  sizes, model, task = job.task.mesh.sizes, job.model, job.task
  if model.moe is None or sizes['expert'] == 1 or model.moe.capacity_factor is not None:
    return 0
  if jax.default_backend() != 'cpu':
    return 0
  rows = _rows(job) * (_length(job) // sizes['context']) * model.moe.top_k
  one = padding_bytes(rows, model.width, 4, sizes['expert'])  # XLA:CPU sends bf16 as f32
  # There and back in the forward pass, where that is done again, and their gradients.
  exchanges = (4 if model.remat == 'none' else 6) * task.accumulate * model.layers // sizes['pipe']
  plan = _plan(job)
  if plan is None:
    return one * exchanges
  return one * exchanges * plan.ticks // (plan.microbatches * plan.rounds)  # idle stages send too


def pipeline_report(job: 'Job') -> dict[str, Any] | None:
  """What the stages of `mesh.pipe` do; None without."""
  plan = _plan(job)
  if plan is None:
    return None
  return {
    **plan._asdict(),
    'bubble_fraction': plan.bubble_fraction,
    'live_items': plan.live_items,
    'live_activation_bytes': _live_bytes(job, plan),
  }


def _dtype_lines(job: 'Job', dtype: str) -> list[str]:
  if job.model.dtype == dtype:
    return []
  return [
    f'dtype       {job.model.dtype}: this CPU has no instructions for {dtype}, with '
    'which products would be slower'
  ]


def _expert_lines(job: 'Job') -> list[str]:
  padding = expert_padding(job)
  if not padding:
    return []
  return [
    f'experts     {padding / 2**20:,.1f} MiB of padding a device a step travel in whole buffers: '
    'XLA:CPU has no ragged all-to-all'
  ]


def _warnings(job: 'Job') -> list[str]:
  """A line where nobody has compared this way of splitting the work with one device."""
  model, task = job.model, job.task
  kind = 'dense' if model.moe is None else 'moe'
  how = how_certified(Case(task.mesh, kind, True, model.layout, task.accumulate))
  capacity = model.moe is not None and model.moe.capacity_factor is not None
  if capacity and task.mesh.devices > 1:
    how, kind = 'not', 'capacity-bound moe'
  if how == 'itself':
    return []
  parts = ' as a whole, only its axes in twos and threes' if how == 'in parts' else ''
  return [
    f'warning     mesh {task.mesh} with {kind} layers, layout={model.layout} and '
    f'accumulate={task.accumulate} is not in docs/equality.md{parts}: compare some steps with '
    'another mesh'
  ]


def _pipeline_lines(job: 'Job') -> list[str]:
  plan = _plan(job)
  if plan is None:
    return []
  return [
    f'pipeline    {plan.stages} stages, {plan.microbatches} microbatches, {plan.rounds} rounds: '
    f'{plan.bubble_fraction:.0%} idle, {plan.live_items} inputs of a stage alive '
    f'({_live_bytes(job, plan) / 2**20:,.1f} MiB a device) and what remat={job.model.remat} keeps'
  ]


def _plan(job: 'Job') -> Plan | None:
  sizes = job.task.mesh.sizes
  if sizes['pipe'] == 1:
    return None
  return job.model.pipeline.plan(sizes['pipe'], _rows(job))


def _live_bytes(job: 'Job', plan: Plan) -> int:
  """Bytes of the inputs that a device of a stage holds when the backward pass begins."""
  sizes, model = job.task.mesh.sizes, job.model
  positions = _length(job) // (sizes['context'] * sizes['tensor'])
  itemsize = 2 if model.dtype == 'bfloat16' else 4
  return plan.live_items * (_rows(job) // plan.microbatches) * positions * model.width * itemsize


def _rows(job: 'Job') -> int:
  """Rows of a device in one pass."""
  return job.task.batch // job.task.accumulate // batch_ways(job.task.mesh.sizes)


def _length(job: 'Job') -> int:
  return job.work.source.length or 1


def rows_text(rows: dict[str, Any]) -> str:
  """The counts of a manifest in a line."""
  dropped = ', '.join(f'{count:,} {reason}' for reason, count in rows['dropped'].items())
  return f'{rows["in"]:,} rows = {rows["used"]:,} to train on + {rows["held_out"]:,} held out' + (
    f' + dropped: {dropped}' if dropped else ''
  )
