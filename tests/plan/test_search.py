"""The search: every way it offers can be run, and what it picks is what the formula finds best."""

import dataclasses

import pytest

from lmjax.core import config, registry
from lmjax.parallel.mesh import Mesh
from lmjax.plan import figures, formula, search
from lmjax.plan.cards import CARDS
from lmjax.plan.estimate import model_of
from lmjax.plan.formula import Way

CARD = CARDS['h100']
SEVENTY = registry.find('posts_dense_70b')
MOE = registry.find('posts_moe_314b')


@pytest.mark.parametrize(('task', 'gpus'), [(SEVENTY, 128), (MOE, 1024)])
def test_every_way_uses_all_gpus_and_most_can_be_made(task, gpus):
  sizes = formula.sizes_of(task, model_of(task))
  ways = list(search.all_ways(sizes, gpus, CARD))
  assert len(ways) == len(set(ways)) > 100
  assert {way.mesh.devices for way in ways} == {gpus}
  some = ways[:: len(ways) // 40]
  made = [search.apply(task, way) for way in some]
  assert sum(one is not None for one in made) > 0.9 * len(made)


def test_the_search_gives_each_mesh_once_fastest_first():
  sizes = formula.sizes_of(SEVENTY, model_of(SEVENTY))
  found = []
  for task in search.promising(SEVENTY, 256, CARD):
    found.append(formula.guess(sizes, Way(task.mesh, task.accumulate, task.model.remat), CARD))
    if len(found) == 10:
      break
  assert len({one.way.mesh for one in found}) == 10
  assert [one.seconds for one in found] == sorted(one.seconds for one in found)
  assert all(one.bytes <= search._WORTH * CARD.usable_bytes for one in found)


def test_the_formula_is_near_what_was_compiled_for_h100s():
  # Peaks in GiB as compiled with this commit's models, jax 0.10.2, 2026-11-25.
  compiled = {'posts_dense_8b': 15.3, 'posts_dense_70b': 26.0, 'posts_moe_314b': 49.8}
  for name, peak in compiled.items():
    task = registry.find(name)
    sizes = formula.sizes_of(task, model_of(task))
    guess = formula.guess(sizes, Way(task.mesh, task.accumulate, task.model.remat), CARD)
    assert guess.bytes / 2**30 == pytest.approx(peak, rel=0.25), name


def test_more_remat_needs_less_memory_and_more_time():
  sizes = formula.sizes_of(SEVENTY, model_of(SEVENTY))
  guesses = [formula.guess(sizes, Way(SEVENTY.mesh, 1, remat), CARD) for remat in formula.REMATS]
  none, dots, full, offload = guesses
  assert none.bytes > dots.bytes > full.bytes > offload.bytes
  assert none.seconds < dots.seconds < full.seconds


def test_arrays_that_the_kernel_for_experts_cannot_count_are_no_way():
  sizes = formula.sizes_of(MOE, model_of(MOE))
  huge = Way(Mesh(fsdp=128, expert=8), 1, 'full')
  assert formula.guess(sizes, huge, CARD) is None


def test_flags_say_what_differs_and_make_it():
  changed = config.override(SEVENTY, {'mesh.data': 4, 'model.remat': 'dots', 'batch': 2048})
  flags = search.flags(changed, SEVENTY)
  assert flags == '--batch=2048 --mesh.data=4 --model.remat=dots'
  words = dict(word.removeprefix('--').split('=') for word in flags.split())
  leaves = {leaf.name: leaf for leaf in config.leaves(SEVENTY)}
  parsed = {name: config.parse(leaves[name], text) for name, text in words.items()}
  assert config.override(SEVENTY, parsed) == changed


def test_changes_that_save_memory_are_sorted_by_what_they_cost():
  task = config.override(SEVENTY, {'mesh.data': 1, 'mesh.fsdp': 16, 'mesh.tensor': 8, 'batch': 128})
  greedy = dataclasses.replace(task, model=dataclasses.replace(task.model, remat='none'))
  found = search.changes(greedy, CARD)
  assert found
  assert greedy not in found
  assert any(one.model.remat == 'full' for one in found)


@pytest.mark.parametrize(
  ('gpus', 'better'),
  [(10_000, 10_240), (1_000, 1_024), (10_240, None), (1_024, None), (8, None), (24, None)],
)
def test_a_rounder_number_of_gpus_is_found_where_there_is_one(gpus, better):
  assert figures.rounder(gpus) == better


def test_10000_gpus_are_told_why_10240():
  (note,) = figures.awkward(10_000)
  assert '10,000 = 2^4 x 5^4' in note
  assert 'at most 16 ways' in note
  assert '10,240 = 2^11 x 5 leaves 2,048' in note
  assert note.endswith('prefer --gpus=10240')
