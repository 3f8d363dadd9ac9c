"""What a compiled step comes to: counts that follow from the model, and sums that add up."""

import itertools
import math

import pytest
from programs import DENSE, EXPERTS, compiled

from lmjax.parallel.mesh import Mesh
from lmjax.plan import estimate, formula, memory
from lmjax.plan.cards import CARDS
from lmjax.plan.formula import Way

CARD = CARDS['h100']
CASES = {
  'dense': (DENSE, Mesh(data=2, fsdp=4)),
  'experts': (EXPERTS, Mesh(fsdp=4, expert=2)),
}


@pytest.fixture(params=['dense', pytest.param('experts', marks=pytest.mark.slow)])
def found(request):
  task, program = compiled(*CASES[request.param])
  return estimate.estimate(task, CARD, program)


def test_products_are_those_of_training(found):
  # All but attention; with the forward pass done again, four thirds of what training counts.
  task, model = found.task, estimate.model_of(found.task)
  attention = 12 * model.layers * model.heads * model.head_dim * task.length
  wanted = (model.flops_per_token(task.length) - attention) * task.batch * task.length
  flops = estimate.flops_rows(found)
  products = (flops['products'] + flops['experts']) * 1e15 * task.mesh.devices
  # The last products of a layer are not needed again, blocks of rows of an expert are filled up.
  assert 1.1 * wanted < products < 1.6 * wanted


def test_memory_of_all_owners_is_the_peak(found):
  rows = estimate.memory_rows(found)
  assert sum(row['gib'] for row in rows) == pytest.approx(found.peak_gib)
  by_owner = {row['owner']: row['gib'] for row in rows}
  sizes = formula.sizes_of(found.task, estimate.model_of(found.task))
  parameters = sum(
    4.0 * size / formula._ways(dims, found.task.mesh.sizes) for size, dims in sizes.parameters
  )
  assert by_owner['parameters'] * 2**30 == pytest.approx(parameters, rel=0.01)


def test_what_lives_at_once_is_near_what_the_compiler_allocates(found):
  live = sum(buffer.bytes for buffer in memory.fullest(found.module))
  assert found.program.temporary_bytes / 2 < live < 2 * found.program.temporary_bytes


def test_the_drawn_timeline_is_as_long_as_the_step(found):
  rows = estimate.timeline_rows(found)
  end = max(row['start_ms'] + row['ms'] for row in rows)
  assert end == pytest.approx(1e3 * found.timeline.seconds, rel=0.01)
  for stream in ('compute', 'network'):
    lane = [row for row in rows if row['stream'] == stream]
    for one, following in itertools.pairwise(lane):
      assert one['start_ms'] + one['ms'] <= following['start_ms'] + 1e-6


def test_traffic_adds_up_over_axes(found):
  traffic = estimate.traffic_rows(found)
  assert sum(estimate.wire_gib(traffic).values()) == pytest.approx(sum(r['gib'] for r in traffic))
  assert all(0 <= row['exposed_gib'] <= row['gib'] * (1 + 1e-9) for row in traffic)
  assert not any(row['between_nodes'] for row in traffic)  # 8 GPUs are one node


def test_the_formula_is_near_the_compiler(found):
  sizes = formula.sizes_of(found.task, estimate.model_of(found.task))
  way = Way(found.task.mesh, found.task.accumulate, found.task.model.remat)
  guess = formula.guess(sizes, way, CARD)
  assert guess is not None
  assert 1 / 3 < guess.bytes / found.program.peak_bytes < 3
  assert math.isclose(guess.seconds, sum(guess.parts.values()))
