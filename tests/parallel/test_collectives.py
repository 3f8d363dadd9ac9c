"""Collectives are read exactly from what XLA compiles: for CPUs here, and for GPUs as it printed them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lmjax.parallel.collectives import Collective, read, summary, wire_bytes

SIZES = {'data': 2, 'fsdp': 2, 'tensor': 2}
WIDE = {'data': 2, 'tensor': 4}
IN_ORDER = tuple(range(8))
# Taken for device ids, the groups of a program over this one lie along no axis of it.
MIXED = (3, 1, 4, 0, 7, 6, 2, 5)


def make_mesh(sizes=SIZES, order=IN_ORDER):
  devices = np.array(jax.devices())[list(order)].reshape(list(sizes.values()))
  return jax.sharding.Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def compile_text(function, *shapes):
  text = jax.jit(function).lower(*shapes).compile().as_text()
  assert text
  return text


def compile_sharded(mesh, body, dtype=jnp.float32):
  """The text of `body` on each device's 8 x 128 of an array."""
  every = P(mesh.axis_names)
  function = jax.shard_map(body, mesh=mesh, in_specs=every, out_specs=every, check_vma=False)
  shape = (8 * mesh.size, 128)
  return compile_text(
    function, jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, every))
  )


def rows(text, mesh):
  """`kind axes dtype bytes count` of each row."""
  return [' '.join(map(str, row.values())) for row in summary(read(text, mesh))]


def program(*lines, partitions=8, before=''):
  """The text of a program whose instructions are `lines`."""
  body = '\n'.join(f'  {line}' for line in lines)
  return (
    f'HloModule jit_f, is_scheduled=true, num_partitions={partitions}\n\n{before}\n'
    f'ENTRY %main (param: f32[8,128]) -> f32[] {{\n{body}\n}}\n'
  )


def every_kind(x):
  """Each collective over one axis, some over two, and two of them in a scan of 5."""

  def step(carry, _):
    carry = jax.lax.psum(carry, 'fsdp') * 0.5
    return carry + jax.lax.psum(jnp.sin(carry), ('data', 'fsdp')), None

  parts = (
    jax.lax.psum(x, ('data', 'tensor')),
    jax.lax.all_gather(x, 'fsdp', tiled=True),
    jax.lax.psum_scatter(x, 'tensor', tiled=True),
    jax.lax.all_to_all(x, 'data', 0, 0, tiled=True),
    jax.lax.ppermute(x, 'fsdp', [(0, 1), (1, 0)]),
    jax.lax.ppermute(x, ('data', 'tensor'), [(0, 1), (1, 2), (2, 3), (3, 0)]),
    jax.lax.scan(step, x, None, length=5)[0],
    jax.lax.psum(x[0, 0], ('data', 'fsdp', 'tensor')),
  )
  return jnp.stack([part.sum() for part in parts])


@pytest.mark.parametrize('order', [IN_ORDER, MIXED])
def test_every_kind_has_its_axes_bytes_and_count_on_any_grid_of_devices(order):
  mesh = make_mesh(order=order)
  text = compile_sharded(mesh, every_kind)
  assert rows(text, mesh) == [
    'all-gather fsdp f32 8192 1',
    'all-reduce data,fsdp f32 4096 5',
    'all-reduce data,fsdp,tensor f32 4 1',
    'all-reduce data,tensor f32 4096 1',
    'all-reduce fsdp f32 4096 5',
    'all-to-all data f32 4096 1',
    'collective-permute data,tensor f32 4096 1',
    'collective-permute fsdp f32 4096 1',
    'reduce-scatter tensor f32 4096 1',
  ]
  assert read(text, mesh) == read(text, mesh.abstract_mesh) == read(text, SIZES)


@pytest.mark.parametrize('order', [IN_ORDER, MIXED])
def test_what_the_partitioner_inserts_has_the_axes_of_the_shardings(order):
  """A stack of layers, tensor-parallel and fully sharded, in a scan: three forms of groups."""
  mesh = make_mesh(order=order)
  place = lambda *spec: NamedSharding(mesh, P(*spec))

  def loss(weights, x):
    def layer(h, w):
      w = jax.lax.with_sharding_constraint(w, place(None, 'tensor'))
      h = jax.lax.with_sharding_constraint(h @ w, place(('data', 'fsdp'), 'tensor'))
      return jnp.tanh(h), None

    return (jax.lax.scan(layer, x, weights)[0] ** 2).sum()

  text = compile_text(
    loss,
    jax.ShapeDtypeStruct((6, 256, 256), jnp.float32, sharding=place(None, 'fsdp', 'tensor')),
    jax.ShapeDtypeStruct((16, 256), jnp.float32, sharding=place(('data', 'fsdp'))),
  )
  for form in ("=mesh['axis_0'=4", '=[4,2]<=[4,2]T(1,0)'):
    assert f'replica_groups{form}' in text
  assert rows(text, mesh) == [
    'all-gather fsdp f32 131072 6',
    'all-gather tensor f32 4096 6',
    'all-reduce data,fsdp f32 4 1',
    'all-reduce tensor f32 4 1',
  ]


def test_loops_in_loops_multiply():
  mesh = make_mesh(WIDE)

  def inner(carry, _):
    return jnp.sin(jax.lax.psum(carry, 'tensor')), None

  def outer(carry, _):
    return jax.lax.scan(inner, jnp.cos(jax.lax.psum(carry, 'data')), None, length=5)[0], None

  text = compile_sharded(mesh, lambda x: jax.lax.scan(outer, x, None, length=7)[0])
  assert rows(text, mesh) == ['all-reduce data f32 4096 7', 'all-reduce tensor f32 4096 35']


def test_every_branch_of_a_conditional_counts():
  mesh = make_mesh(WIDE)
  swap = lambda x: jax.lax.ppermute(x, 'data', [(0, 1), (1, 0)])
  add = lambda x: jax.lax.psum(x, 'tensor')
  text = compile_sharded(mesh, lambda x: jax.lax.cond(x[0, 0] > 0, add, swap, x))
  assert rows(text, mesh) == [
    'all-reduce tensor f32 4096 1',
    'collective-permute data f32 4096 1',
  ]


def test_a_loop_of_unknown_length_is_refused_only_where_it_talks():
  mesh = make_mesh(WIDE)
  until = lambda body: lambda x: jax.lax.while_loop(lambda c: c.sum() > 1, body, x)
  silent = compile_sharded(mesh, until(lambda c: c * 0.5))
  assert read(silent, mesh) == []
  talking = compile_sharded(mesh, until(lambda c: jax.lax.psum(c, 'data') * 0.1))
  with pytest.raises(ValueError, match=r'loop of unknown length: %while\S* = .* while\('):
    read(talking, mesh)


@pytest.mark.parametrize(
  ('dtype', 'expected'),
  [('bool', 'pred 4096'), ('int8', 's8 4096'), ('uint32', 'u32 16384'), ('complex64', 'c64 32768')],
)
def test_bytes_are_those_of_the_type(dtype, expected):
  mesh = make_mesh(WIDE)
  gather = functools.partial(jax.lax.all_gather, axis_name='tensor', tiled=True)
  text = compile_sharded(mesh, gather, jnp.dtype(dtype))
  assert rows(text, mesh) == [f'all-gather tensor {expected} 1']


def test_groups_of_a_part_of_an_axis_say_how_many():
  """A dimension of 16 over 4 devices, seen as 2 x 8, has 2 devices along each of the two."""
  mesh = make_mesh(WIDE)
  split = NamedSharding(mesh, P('tensor'))
  text = compile_text(
    lambda x: jax.lax.with_sharding_constraint(x, split).reshape(2, 8, 16).sum(1),
    jax.ShapeDtypeStruct((16, 16), jnp.float32, sharding=split),
  )
  assert 'device_ids=([2,4]T(1,0))' in text
  assert rows(text, mesh) == ['all-gather tensor:2 f32 128 1', 'all-reduce tensor:2 f32 64 1']


def test_a_program_of_another_mesh_is_refused():
  text = compile_sharded(make_mesh(WIDE), lambda x: jax.lax.psum(x, 'data'))
  with pytest.raises(ValueError, match='has 8 partitions: it is not of the mesh'):
    read(text, {'data': 2, 'tensor': 2})
  with pytest.raises(ValueError, match='not the text of a compiled program'):
    read('', {'data': 1})


def test_one_device_has_no_collectives():
  mesh = make_mesh({'data': 1}, order=(5,))
  assert read(compile_sharded(mesh, lambda x: jax.lax.psum(x, 'data')), mesh) == []


# Collectives as XLA printed them for H100s, less metadata and settings; their operands abridged.
GPU = {
  'all-reduce data,fsdp bf16 65536': """
    %gemm_fusion_dot.3 = bf16[256,128]{1,0} fusion(%param), kind=kCustom, calls=%gemm_computation
    %all-reduce-start = bf16[256,128]{1,0} all-reduce-start(%gemm_fusion_dot.3), channel_id=5, replica_groups=[2,4]<=[4,2]T(1,0), use_global_device_ids=true, to_apply=%add.1.clone
    %all-reduce-done = bf16[256,128]{1,0} all-reduce-done(%all-reduce-start)""",
  'all-reduce data,fsdp,tensor f32 4': """
    %loss = f32[] parameter(0)
    %all-reduce-start.1 = f32[] all-reduce-start(%loss), channel_id=8, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=%add
    %all-reduce-done.1 = f32[] all-reduce-done(%all-reduce-start.1)""",
  'all-gather tensor bf16 2048': """
    %bitcast.183.0 = bf16[4,128]{0,1} bitcast(%param)
    %all-gather-start = (bf16[4,128]{0,1}, bf16[4,256]{0,1}) all-gather-start(%bitcast.183.0), channel_id=2, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={1}, use_global_device_ids=true
    %all-gather-done = bf16[4,256]{0,1} all-gather-done(%all-gather-start)""",
  'all-gather fsdp,tensor bf16,f32 3072': """
    %param.2 = f32[8,16]{1,0} parameter(0), sharding={devices=[8,1]<=[8]}
    %param.3 = bf16[8,16]{1,0} parameter(1), sharding={devices=[8,1]<=[8]}
    %all-gather-start = ((f32[8,16]{1,0}, bf16[8,16]{1,0}), (f32[32,16]{1,0}, bf16[32,16]{1,0})) all-gather-start(%param.2, %param.3), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, use_global_device_ids=true
    %all-gather-done = (f32[32,16]{1,0}, bf16[32,16]{1,0}) all-gather-done(%all-gather-start)""",
  'all-gather fsdp,tensor f8e4m3fn 512': """
    %param.1 = f8e4m3fn[8,16]{1,0} parameter(0)
    %all-gather-start = (f8e4m3fn[8,16]{1,0}, f8e4m3fn[32,16]{1,0}) all-gather-start(%param.1), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, use_global_device_ids=true
    ROOT %all-gather-done = f8e4m3fn[32,16]{1,0} all-gather-done(%all-gather-start)""",
  'reduce-scatter tensor bf16 2048': """
    %gemm_fusion_dot.2 = bf16[4,256]{0,1} fusion(%param), kind=kCustom, calls=%gemm_computation
    %reduce-scatter-start = ((bf16[4,256]{0,1}), bf16[4,128]{0,1}) reduce-scatter-start(%gemm_fusion_dot.2), channel_id=9, replica_groups=[4,2]<=[8], use_global_device_ids=true, dimensions={1}, to_apply=%add
    %reduce-scatter-done = bf16[4,128]{0,1} reduce-scatter-done(%reduce-scatter-start)""",
  'all-to-all data f32 4096': """
    %param.3 = f32[8,128]{1,0} parameter(0)
    %all-to-all-start = ((f32[8,128]{1,0}), f32[8,128]{1,0}) all-to-all-start(%param.3), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}
    %all-to-all-done = f32[8,128]{1,0} all-to-all-done(%all-to-all-start)""",
  'ragged-all-to-all fsdp,tensor f32 512': """
    %param.2 = f32[8,16]{1,0} parameter(0)
    %copy.5 = f32[16,16]{1,0} copy(%param.3)
    %sizes = s64[4]{0} fusion(%id), kind=kLoop, calls=%fused
    %ragged-all-to-all-start = ((f32[8,16]{1,0}, f32[16,16]{1,0}, s64[4]{0}, s64[4]{0}, s64[4]{0}, /*index=5*/s64[4]{0}), f32[16,16]{1,0}) ragged-all-to-all-start(%param.2, %copy.5, %sizes, %sizes, %sizes, /*index=5*/%sizes), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}
    ROOT %ragged-all-to-all-done = f32[16,16]{1,0} ragged-all-to-all-done(%ragged-all-to-all-start)""",
  'collective-permute fsdp f32 4096': """
    %param.3 = f32[8,128]{1,0} parameter(0)
    %collective-permute-start = (f32[8,128]{1,0}, f32[8,128]{1,0}) collective-permute-start(%param.3), channel_id=1, source_target_pairs={{0,2},{2,0},{1,3},{3,1},{4,6},{6,4},{5,7},{7,5}}
    %collective-permute-done = f32[8,128]{1,0} collective-permute-done(%collective-permute-start)""",
  'collective-broadcast fsdp,tensor f32 512': """
    %param.1 = f32[8,16]{1,0} parameter(0)
    %collective-broadcast-start = ((f32[8,16]{1,0}), f32[8,16]{1,0}) collective-broadcast-start(%param.1), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}
    %collective-broadcast-done = f32[8,16]{1,0} collective-broadcast-done(%collective-broadcast-start)""",
}
LEAVES = """
%add (x: f32[], y: f32[]) -> f32[] {
}

%add.1.clone (x: bf16[], y: bf16[]) -> bf16[] {
}

%gemm_computation (x: f32[]) -> bf16[] {
}

%fused (x: f32[]) -> s64[4] {
}
"""


@pytest.mark.parametrize('expected', GPU)
def test_pairs_of_a_gpu_are_one_each(expected):
  text = program(*GPU[expected].strip().splitlines(), before=LEAVES)
  assert rows(text, SIZES) == [f'{expected} 1']


def test_a_wrapped_collective_is_one():
  wrapped = """
%async_computation (p: f32[8,128]) -> f32[4,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %rs = f32[4,128]{1,0} reduce-scatter(%p), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}, use_global_device_ids=true, dimensions={0}
}
"""
  text = program(
    '%x = f32[8,128]{1,0} parameter(0)',
    '%start = ((f32[8,128]{1,0}), f32[4,128]{1,0}) async-start(%x), calls=%async_computation',
    '%update = ((f32[8,128]{1,0}), f32[4,128]{1,0}) async-update(%start), calls=%async_computation',
    'ROOT %done = f32[4,128]{1,0} async-done(%update), calls=%async_computation',
    before=wrapped,
  )
  assert read(text, SIZES) == [Collective('reduce-scatter', ('tensor',), 4096, 1, 'f32')]


@pytest.mark.parametrize(
  ('groups', 'axes'),
  [
    ('{}', 'data,fsdp,tensor'),
    ('{{7,5},{4,6},{3,1},{0,2}}', 'fsdp'),
    ('[2,4]<=[2,2,2]T(1,0,2)', 'data,tensor'),
    ('[2,4]<=[8]', 'fsdp,tensor'),
    ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", 'data,tensor'),
    ('mesh[a=8] {a:(2)2}', 'fsdp'),
    ('mesh[a=8] {a:(1)2,a:(4)2}', 'data,tensor'),
    ("mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'a'}", 'tensor'),
    ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", 'data'),
  ],
)
def test_groups_are_read_in_every_form(groups, axes):
  text = program(
    '%x = f32[8,128]{1,0} parameter(0)',
    f'%y = f32[8,128]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=%add',
    before=LEAVES,
  )
  assert rows(text, SIZES) == [f'all-reduce {axes} f32 4096 1']


@pytest.mark.parametrize(
  'alone',
  [
    'all-reduce(%x), channel_id=1, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add',
    'collective-permute(%x), channel_id=1, source_target_pairs={{0,0},{5,5}}',
    'collective-permute(%x), channel_id=1, source_target_pairs={}',
  ],
)
def test_a_device_alone_is_left_out(alone):
  text = program('%x = f32[8,128]{1,0} parameter(0)', f'%y = f32[8,128]{{1,0}} {alone}')
  assert read(text, SIZES) == []


@pytest.mark.parametrize(
  ('unknown', 'message'),
  [
    ('all-reduce(%x), replica_groups=<8>', r'who takes part in %y = .* all-reduce\(%x\)'),
    (
      'send(%x, %t), frontend_attributes={_xla_send_recv_source_target_pairs="{{0,1}}"}',
      'who takes part in %y',
    ),
    (
      'all-swap(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}',
      'unknown collective: %y = .* all-swap',
    ),
    ('all-reduce(%x), replica_groups={{0,1,2},{3,4,5},{6,7}}', 'groups of different sizes'),
    (
      'all-reduce(%x), replica_groups={{0,3},{1,2},{4,7},{5,6}}',
      'not groups along axes of the mesh',
    ),
    ('all-reduce(%x), channel_id=1, replica_groups={{0}}', 'not groups along axes of the mesh'),
  ],
)
def test_what_cannot_be_read_is_refused(unknown, message):
  text = program('%x = f32[8,128]{1,0} parameter(0)', f'%y = f32[8,128]{{1,0}} {unknown}')
  with pytest.raises(ValueError, match=message):
    read(text, SIZES)


def test_a_summary_adds_what_is_alike_in_one_order():
  found = [
    Collective('all-reduce', ('data', 'fsdp'), 64, 5, 'f32'),
    Collective('all-gather', ('tensor',), 32, 1, 'bf16'),
    Collective('all-reduce', ('data', 'fsdp'), 64, 2, 'f32'),
  ]
  expected = [
    {'kind': 'all-gather', 'axes': 'tensor', 'dtype': 'bf16', 'bytes': 32, 'count': 1},
    {'kind': 'all-reduce', 'axes': 'data,fsdp', 'dtype': 'f32', 'bytes': 64, 'count': 7},
  ]
  assert json.loads(json.dumps(summary(found))) == summary(found[::-1]) == expected


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [
    ('all-reduce', 1400),
    ('all-gather', 700),
    ('reduce-scatter', 700),
    ('all-to-all', 700),
    ('ragged-all-to-all', 700),
    ('collective-permute', 800),
    ('collective-broadcast', 800),
  ],
)
def test_wire_bytes_are_those_of_rings(kind, expected):
  assert wire_bytes(Collective(kind, ('data',), 800, 3, 'f32'), 8) == expected
