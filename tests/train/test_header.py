"""What the header says of a mesh: bytes of padding as compiled programs send them, and no more than is known."""

from types import SimpleNamespace
from typing import Any

import pytest

from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder
from lmjax.parallel.mesh import Mesh
from lmjax.train import header
from lmjax.train.header import expert_padding

SIZES = {'vocab': 96, 'width': 48, 'layers': 2, 'heads': 8, 'kv_heads': 4, 'head_dim': 4, 'mlp': 48}


@pytest.mark.parametrize(
  ('mesh', 'settings', 'expected'),
  [
    (Mesh(expert=2), {}, 393_216),
    (Mesh(expert=2), {'remat': 'full'}, 589_824),
    (Mesh(expert=2), {'remat': 'dots', 'dtype': 'bfloat16'}, 589_824),
    (Mesh(expert=2, pipe=2), {}, 221_184),
    (Mesh(expert=2, pipe=2), {'remat': 'offload'}, 331_776),
    (Mesh(data=2), {}, 0),
  ],
  ids=str,
)
def test_padding_to_experts_counts_what_is_recomputed_and_idle_stages(mesh, settings, expected):
  model: Any = Decoder(**SIZES, moe=MoE(experts=4, top_k=2), **settings)
  task = SimpleNamespace(mesh=mesh, batch=16, length=16, accumulate=1)
  work = SimpleNamespace(source=SimpleNamespace(length=task.length))
  job: Any = SimpleNamespace(model=model, task=task, work=work)
  assert expert_padding(job) == expected


@pytest.mark.parametrize(
  ('mesh', 'settings', 'said'),
  [
    (Mesh(), {'layout': 'list'}, None),
    (Mesh(data=16), {}, None),
    (Mesh(fsdp=4, tensor=8), {'layout': 'list'}, None),
    (Mesh(data=2, fsdp=4, tensor=8), {}, None),
    (
      Mesh(data=10, fsdp=16, expert=8, tensor=8),
      {'moe': MoE(experts=8)},
      'mesh data=10 x fsdp=16 x expert=8 x tensor=8 with moe layers, layout=scan and accumulate=1 is '
      'not in docs/equality.md as a whole, only its axes in twos and threes: compare',
    ),
    (
      Mesh(expert=2),
      {'moe': MoE(experts=8, capacity_factor=1.5)},
      'mesh expert=2 with capacity-bound moe layers, layout=scan and accumulate=1 is not in '
      'docs/equality.md: compare some steps with another mesh',
    ),
    (Mesh(), {'moe': MoE(experts=8, capacity_factor=1.5)}, None),
  ],
  ids=str,
)
def test_a_way_that_nobody_compared_with_one_device_is_warned_of_once(mesh, settings, said):
  task = SimpleNamespace(mesh=mesh, accumulate=1)
  job: Any = SimpleNamespace(model=Decoder(**SIZES, **settings), task=task)
  lines = header._warnings(job)
  assert len(lines) == (said is not None)
  assert all(line.startswith(f'warning     {said}') for line in lines)
