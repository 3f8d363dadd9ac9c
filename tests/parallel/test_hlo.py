"""The text of a compiled program is taken apart without loss: arrays, operands, loops, source lines."""

import jax
import jax.numpy as jnp
import pytest

from lmjax.parallel import hlo


def compiled(run, *shapes):
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return hlo.parse(jax.jit(run).lower(*arrays).compile().as_text())


def everything(module):
  return [each for found in module.computations.values() for each in found]


def loops(module):
  return [
    (each, name)
    for name, found in module.computations.items()
    for each in found
    if each.opcode == 'while'
  ]


def test_a_loop_is_found_with_its_rounds():
  module = compiled(lambda x: jax.lax.fori_loop(0, 7, lambda _, x: jnp.sin(x @ x), x), (8, 8))
  ((loop, where),) = loops(module)
  assert module.rounds(loop, where) == 7
  assert all(name in module.computations for name in loop.called)


@pytest.mark.parametrize(('start', 'end'), [(0, 7), (2, 7), (0, 8)])
def test_rounds_are_reckoned_where_the_compiler_does_not_say(start, end):
  run = lambda x: jax.lax.fori_loop(start, end, lambda _, x: jnp.sin(x @ x), x)
  text = jax.jit(run).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile().as_text()
  module = hlo.parse(text.replace('known_trip_count', 'forgotten'))
  ((loop, where),) = loops(module)
  assert module.rounds(loop, where) == end - start


def test_a_loop_that_ends_when_it_will_has_no_number_of_rounds():
  run = lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: x / 2, x)
  module = compiled(run, (8, 8))
  ((loop, where),) = loops(module)
  assert module.rounds(loop, where) is None


def test_an_instruction_leads_to_the_line_that_wrote_it():
  module = compiled(lambda x: jnp.cosh(x) @ x, (8, 8))
  found = {frame for each in everything(module) for frame in module.frames(each)[:1]}
  assert any(__file__ in frame for frame in found)
  assert all(frame.rpartition(':')[2].isdigit() for frame in found)


def test_operands_are_names_of_the_same_computation():
  module = compiled(lambda x, y: x @ y + jnp.sum(x), (8, 4), (4, 8))
  for instructions in module.computations.values():
    names = {each.name for each in instructions}
    for each in instructions:
      if each.opcode not in ('parameter', 'constant'):
        assert set(each.operands) <= names, str(each)


def test_types_have_arrays_with_their_bytes_and_memory():
  found = hlo.arrays('(bf16[2,8,128]{2,1,0:T(8,128)S(5)}, s4[3]{0}, pred[], f32[<=6,2]{1,0})')
  assert [(array.dtype, array.shape, array.bytes) for array in found] == [
    ('bf16', (2, 8, 128), 4096),
    ('s4', (3,), 2),
    ('pred', (), 1),
    ('f32', (6, 2), 48),
  ]
  assert [array.space for array in found] == ['S(5)', '', '', '']
  assert found[0].size == 2048


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match="not the text of a compiled program: 'hello'"):
    hlo.parse('hello')
