"""Mistakes in how work is split, each planted in the code of a train step that is then compiled for H100s.

What a report must say of each is the name of the guilty tensor and of what mends it. Shapes are large,
since only then a mistake costs anything, and cost nothing: no array is ever made.
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from typing import IO, Any, NamedTuple

import planted
from planted import Plant, instead, table
from unassembled import cuda_root

from lmjax.core import config
from lmjax.data.tokenizer import TokenizerConfig
from lmjax.models import attention, layers, transformer
from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder
from lmjax.objectives.language import Language
from lmjax.ops import loss, moe
from lmjax.optim.optimizer import AdamW
from lmjax.parallel.mesh import Mesh
from lmjax.plan import cards
from lmjax.plan.compile import compile_here, warnings_in
from lmjax.plan.estimate import Estimate, estimate
from lmjax.plan.explain import Finding, explain
from lmjax.train import state, step
from lmjax.train.pretrain import Pretrain


class Mistake(NamedTuple):
  """A mistake, and what the report on it says.

  Attributes:
    task: what is compiled.
    plant: puts the mistake into the code while it is entered.
    tensor, fix: patterns of the finding that is asked for.
  """

  task: Pretrain
  plant: Plant
  tensor: str
  fix: str


def compiled(task: Pretrain) -> Estimate:
  """The step of `task` on H100s, with what the compiler had to say."""
  with _error_stream() as stream:
    program = compile_here(task, 'h100', xla_gpu_cuda_data_dir=cuda_root())
    stream.seek(0)
    said = stream.read().splitlines()
  return estimate(task, cards.find('h100'), program._replace(warnings=warnings_in(said)))


def findings(mistake: Mistake) -> list[Finding]:
  """What is found in the step of code that has the mistake."""
  with mistake.plant():
    return explain(compiled(mistake.task))


@contextlib.contextmanager
def _error_stream() -> Iterator[IO[str]]:
  """What the process writes to its error stream meanwhile: the compiler knows no `sys.stderr`."""
  kept = os.dup(2)
  try:
    with tempfile.TemporaryFile('w+', errors='replace') as file:
      os.dup2(file.fileno(), 2)
      yield file
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def dense(mesh: Mesh, **changes: Any) -> Pretrain:
  """A step of a decoder of 0.7 billion parameters; `changes` by name of setting."""
  model = Decoder(
    vocab=32_768,
    width=2048,
    layers=8,
    heads=16,
    kv_heads=8,
    head_dim=128,
    mlp=8192,
    head='untied',
    dtype='bfloat16',
    remat='full',
  )
  task = Pretrain(
    steps=1000,
    batch=64,
    length=4096,
    model=model,
    objective=Language(chunk=512, z_loss=1e-4),
    optimizer=AdamW(),
    text=TokenizerConfig(vocab=32_768),
  )
  axes = {f'mesh.{axis}': size for axis, size in mesh.sizes.items()}
  return config.override(task, axes | changes)


def sparse(mesh: Mesh, **changes: Any) -> Pretrain:
  """The same with one layer of experts."""
  task = dense(mesh)
  model = dataclasses.replace(task.model, mlp=4096, layers=1, moe=MoE(experts=4, top_k=2))
  return config.override(dataclasses.replace(task, model=model), changes)


CLEAN = {
  'rows over context': dense(Mesh(fsdp=4, context=2)),
  'layers over pipe': dense(Mesh(fsdp=4, pipe=2), batch=128, **{'objective.chunk': 128}),
  'microbatches': dense(Mesh(data=2, fsdp=4), accumulate=4),
  'what is kept has room': dense(Mesh(fsdp=8), batch=8, **{'model.remat': 'dots'}),
  'layers in a list': dense(Mesh(fsdp=8), **{'model.layout': 'list', 'model.layers': 4}),
  'dense over fsdp and tensor': dense(Mesh(fsdp=4, tensor=2)),
  'dense over data and fsdp': dense(Mesh(data=2, fsdp=4)),
  'experts over fsdp and tensor': sparse(Mesh(fsdp=4, tensor=2)),
  'experts over fsdp and expert': sparse(Mesh(fsdp=4, expert=2)),
}


MISTAKES = {
  'moments are replicated': Mistake(
    dense(Mesh(fsdp=8)),
    instead(state, '_moment_dims', planted.whole_moments),
    tensor='optimizer moments of .*mlp/up',
    fix='train/state.py',
  ),
  'parameters are replicated over fsdp': Mistake(
    dense(Mesh(fsdp=8)), table(embed=()), tensor='layers/mlp/up', fix="'embed'.*fsdp.*sharding.py"
  ),
  'the state is not donated': Mistake(
    dense(Mesh(fsdp=8)), planted.undonated, tensor='state', fix='donate_argnums'
  ),
  'everything of every layer is kept': Mistake(
    dense(Mesh(fsdp=8), batch=128, **{'model.remat': 'none'}),
    nullcontext,
    tensor='every layer',
    fix='--model.remat=full',
  ),
  'a chunk of logits is a whole row': Mistake(
    dense(Mesh(fsdp=8), **{'objective.chunk': 4096}),
    nullcontext,
    tensor='logits',
    fix='--objective.chunk=',
  ),
  'the router sees the whole batch': Mistake(
    sparse(Mesh(data=2, fsdp=4)),
    instead(moe, 'choose', planted.choose_of_all),
    tensor='router',
    fix='ops/moe.py',
  ),
  "the head's gradient is added up after every chunk": Mistake(
    dense(Mesh(data=2, fsdp=4)),
    instead(loss, 'axis_sizes', dict),  # left to the compiler
    tensor='gradient of head',
    fix='ops/loss.py',
  ),
  'weights are gathered in f32': Mistake(
    dense(Mesh(fsdp=8)),
    instead(layers, 'declare', planted.gathered_in_f32),
    tensor='mlp/up',
    fix='bfloat16',
  ),
  'the table is looked up as it lies': Mistake(
    dense(Mesh(data=2, fsdp=4)),
    instead(transformer, 'constrain', planted.constrain_less),
    tensor='embed',
    fix="constrain.*'vocab', None.*models/transformer.py",
  ),
  'products are in f32': Mistake(
    dense(Mesh(data=2, fsdp=4), **{'model.dtype': 'float32'}),
    nullcontext,
    tensor='products',
    fix='--model.dtype=bfloat16',
  ),
  'the vocabulary is on every device': Mistake(
    dense(Mesh(fsdp=4, tensor=2)),
    table(vocab=()),
    tensor='embed, head|logits',
    fix="'vocab'.*sharding.py",
  ),
  'attention has the scores of a whole row': Mistake(
    dense(Mesh(fsdp=8), **{'model.attention': 'blocked', 'model.attention_block': 4096}),
    nullcontext,
    tensor='attention scores',
    fix='--model.attention_block=',
  ),
  'tensor crosses nodes': Mistake(
    dense(Mesh(tensor=16), **{'model.kv_heads': 16, 'batch': 8}),
    nullcontext,
    tensor='residual stream',
    fix='--mesh.tensor=8 --mesh.fsdp=2',
  ),
  'replicas have the same rows': Mistake(
    dense(Mesh(data=2, fsdp=4)),
    table(batch=('fsdp', 'expert'), part=('fsdp', 'expert', 'context')),
    tensor='batch',
    fix="'batch'.*data",
  ),
  'the hidden layer is whole': Mistake(
    dense(Mesh(fsdp=4, tensor=2)),
    instead(layers, 'constrain', planted.constrain_whole),
    tensor='layers/mlp',
    fix='models/layers.py',
  ),
  'the stream is whole on every device of tensor': Mistake(
    dense(Mesh(fsdp=4, tensor=2)),
    table(stream=('context',)),
    tensor='residual stream',
    fix="'stream'",
  ),
  'logits are whole': Mistake(
    dense(Mesh(fsdp=4, tensor=2)),
    instead(transformer, 'constrain', planted.constrain_logits),
    tensor='logits',
    fix="'batch', 'length', 'vocab'",
  ),
  'the stream is f32': Mistake(
    dense(Mesh(data=2, fsdp=4)),
    instead(transformer, 'constrain', planted.constrain_wide),
    tensor='residual stream',
    fix='bfloat16',
  ),
  'heads are on every device of tensor': Mistake(
    dense(Mesh(fsdp=4, tensor=2)),
    table(heads=(), kv_heads=()),
    tensor='layers/attention',
    fix="'heads'.*sharding.py",
  ),
  'microbatches are cut in blocks': Mistake(
    dense(Mesh(data=2, fsdp=4), accumulate=4),
    instead(step, '_accumulated', planted.in_blocks),
    tensor='batch',
    fix='train/step.py',
  ),
  'parameters are split over data': Mistake(
    dense(Mesh(data=2, fsdp=4)), table(embed=('data',)), tensor='layers/mlp', fix="'embed'.*fsdp"
  ),
  'moments of the tables are whole': Mistake(
    dense(Mesh(fsdp=8)),
    instead(state, '_moment_dims', planted.whole_table_moments),
    tensor='optimizer moments of .*(embed|head)',
    fix='train/state.py',
  ),
  'products of every layer are kept': Mistake(
    dense(Mesh(fsdp=8), batch=256, **{'model.remat': 'dots'}),
    nullcontext,
    tensor='every layer',
    fix='--model.remat=full',
  ),
  'experts are on every device of expert': Mistake(
    sparse(Mesh(fsdp=4, expert=2), **{'model.moe.capacity_factor': 1.25}),
    table(expert=()),
    tensor='layers/mlp',
    fix="'expert'.*sharding.py",
  ),
  'layers ask for the rows of all': Mistake(
    dense(Mesh(data=2, fsdp=4)),
    instead(transformer, 'constrain', planted.rows_of_all),
    tensor='batch',
    fix='constrain',
  ),
  'queries are whole': Mistake(
    dense(Mesh(fsdp=4, tensor=2)),
    instead(attention, 'constrain', planted.whole_heads),
    tensor='layers/attention',
    fix='models/attention.py',
  ),
  'attention over context has no ring': Mistake(
    dense(Mesh(fsdp=4, context=2)),
    instead(attention, 'attend_ring', planted.no_ring),
    tensor='layers/attention',
    fix='attention.py',
  ),
}
