"""The header's count of padding is what the compiled programs of these meshes were seen to send."""

from types import SimpleNamespace
from typing import Any

import pytest

from lmjax.models.moe import MoE
from lmjax.models.transformer import Decoder
from lmjax.parallel.mesh import Mesh
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
  job: Any = SimpleNamespace(model=model, task=task)
  assert expert_padding(job) == expected
