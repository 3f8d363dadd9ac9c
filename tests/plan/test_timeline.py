"""A step in time: what is computed, what is sent beside it, and what the device waits for."""

import pytest

from lmjax.parallel import hlo
from lmjax.plan import timeline
from lmjax.plan.cards import CARDS
from lmjax.plan.timeline import Machine, simulate
from lmjax.plan.work import Work

CARD = CARDS['h100']
MACHINE = Machine(CARD, {'data': 8}, range(8))

PROGRAM = """HloModule m, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (carry: (s32[], bf16[4096,4096])) -> (s32[], bf16[4096,4096]) {
  %carry = (s32[], bf16[4096,4096]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = bf16[4096,4096]{1,0} get-tuple-element(%carry), index=1
  %start = bf16[4096,4096]{1,0} all-reduce-start(%x), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
PRODUCT
  %done = bf16[4096,4096]{1,0} all-reduce-done(%start)
  ROOT %tuple = (s32[], bf16[4096,4096]{1,0}) tuple(%i, %done)
}

%condition (carry: (s32[], bf16[4096,4096])) -> pred[] {
  %carry = (s32[], bf16[4096,4096]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: bf16[4096,4096]) -> bf16[4096,4096] {
  %x = bf16[4096,4096]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %tuple = (s32[], bf16[4096,4096]{1,0}) tuple(%zero, %x)
  %while = (s32[], bf16[4096,4096]{1,0}) while(%tuple), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = bf16[4096,4096]{1,0} get-tuple-element(%while), index=1
}
"""
PRODUCT = '  %product = bf16[4096,4096]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}'


def step(product=PRODUCT, machine=MACHINE):
  return simulate(
    hlo.parse(PROGRAM.replace('PRODUCT\n', f'{product}\n' if product else '')), machine
  )


def test_a_loop_takes_its_rounds():
  found = step(product='')
  (reduced,) = found.talking()
  assert reduced.times == 5
  assert found.seconds == pytest.approx(5 * reduced.seconds)
  assert reduced.loops == (('while', 0.0, reduced.seconds, 5),)


def test_what_nothing_is_computed_beside_is_exposed():
  (reduced,) = step(product='').talking()
  assert reduced.exposed == reduced.seconds


def test_what_is_computed_beside_hides_it():
  found = step()
  (product,), (reduced,) = found.computing(), found.talking()
  assert product.work.flops == 2 * 4096**3
  assert reduced.exposed == pytest.approx(max(0.0, reduced.seconds - product.seconds))
  assert found.seconds == pytest.approx(5 * max(product.seconds, reduced.seconds))
  assert found.exposed_seconds() == pytest.approx(5 * reduced.exposed)
  assert found.flops() == {'product': 5 * 2 * 4096**3}


def test_a_collective_behind_another_leaves_each_its_part_of_the_wait():
  second = PROGRAM.replace(
    '  %done =',
    '  %next = bf16[4096,4096]{1,0} all-reduce-start(%x), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add\n'
    '  %after = bf16[4096,4096]{1,0} all-reduce-done(%next)\n  %done =',
  ).replace('PRODUCT\n', '')
  found = simulate(hlo.parse(second), MACHINE)
  assert found.exposed_seconds() == pytest.approx(found.seconds)
  assert len({event.exposed for event in found.talking()}) == 1


def test_rows_given_to_experts_that_nobody_sent_are_not_computed():
  done = Work('experts', 1e12, 1e9, 'bf16', 'triton grouped_dot')
  assert timeline.compute_seconds(done, CARD) == pytest.approx(
    1e12 / (CARD.flops['bfloat16'] * CARD.matmul), rel=0.01
  )


def test_a_product_takes_the_time_of_its_flops_or_its_bytes():
  large = Work('product', 2.0 * 16384**3, 3 * 2.0 * 16384**2, 'bf16', 'cublas', (16384, 16384))
  at_peak = large.flops / CARD.flops['bfloat16']
  assert timeline.compute_seconds(large, CARD) == pytest.approx(at_peak / CARD.matmul, rel=0.05)
  thin = Work('product', 2.0 * 16384**2, 2.0 * 16384**2, 'bf16', 'cublas', (1, 16384))
  moving = thin.bytes / (CARD.memory_bytes_per_second * CARD.memory)
  assert timeline.compute_seconds(thin, CARD) > moving


def test_products_of_f8_and_f32_have_peaks_of_their_own():
  one = lambda dtype: timeline.compute_seconds(
    Work('product', 1e15, 1.0, dtype, 'cublas', (1 << 15, 1 << 15)), CARD
  )
  assert one('f8e4m3fn') < one('bf16') < one('f32')


def test_a_program_of_another_mesh_is_refused():
  with pytest.raises(ValueError, match='the program has 8 partitions'):
    step(machine=MACHINE._replace(mesh={'data': 4}))


def test_a_loop_of_unknown_length_that_talks_is_refused():
  text = PROGRAM.replace('PRODUCT\n', '').replace('known_trip_count', 'forgotten')
  with pytest.raises(ValueError, match='collectives in a loop of unknown length'):
    simulate(hlo.parse(text), MACHINE)
