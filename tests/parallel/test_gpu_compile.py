"""What is made for GPUs compiles for GPUs that are not here, and becomes what it should become."""

import functools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.core.errors import UserError
from lmjax.ops import moe
from lmjax.ops.attention_gpu import choose
from lmjax.ops.dot import dot
from lmjax.parallel.accelerator import PRESETS
from lmjax.parallel.mesh import Mesh
from lmjax.parallel.topology import GPUS, compile_there, describe

ONE = Mesh()
KERNEL = 'custom_call_target="__gpu$xla.gpu.triton"'


def compiled(run, *arrays, accelerator='h100', mesh=ONE, split=(), options=None):
  """The text of `run` compiled for an accelerator.

  Args:
    arrays: ShapeDtypeStructs, in any tree.
    split: the PartitionSpec of all of them.
  """
  devices = mesh.over(describe(accelerator).devices[: mesh.devices])
  layout = NamedSharding(devices, PartitionSpec(*split))
  arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), arrays)
  with jax.set_mesh(devices):
    return compile_there(jax.jit(run).trace(*arrays).lower(), options).as_text()


def array(*shape, dtype='float32'):
  return jax.ShapeDtypeStruct(shape, dtype)


def fresh(code, **environment):
  """A new Python without JAX_PLATFORMS that runs `code`, warnings being errors."""
  clean = {name: value for name, value in os.environ.items() if name != 'JAX_PLATFORMS'}
  return subprocess.run(
    [sys.executable, '-W', 'error', '-c', code],
    env=clean | environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.parametrize('name', sorted(GPUS))
def test_a_described_accelerator_has_its_hosts_and_compiles(name):
  devices = describe(name, hosts=3, per_host=4).devices
  assert [device.process_index for device in devices] == [0] * 4 + [1] * 4 + [2] * 4
  assert devices[0].device_kind == GPUS[name].name
  assert 'HloModule' in compiled(jnp.tanh, array(8, 8), accelerator=name)


def test_a_program_for_elsewhere_is_not_kept_as_it_could_not_be_read_back():
  def nowhere_here(x):
    return jnp.cosh(x)

  compiled(nowhere_here, array(8, 8))
  assert not list(Path(jax.config.jax_compilation_cache_dir).glob('*nowhere_here*'))


def test_a_gpu_of_ones_own_needs_no_name():
  own = GPUS['h100']._replace(name='NVIDIA H20', cores=78)
  assert [device.device_kind for device in describe(own, per_host=2).devices] == ['NVIDIA H20'] * 2
  assert 'HloModule' in compiled(jnp.tanh, array(8, 8), accelerator=own)


def test_an_accelerator_that_nobody_described_is_refused():
  with pytest.raises(UserError, match="cannot describe accelerator 'h10': did you mean h100"):
    describe('h10')


def test_without_the_compiler_the_error_names_the_extra(monkeypatch):
  for plugin in ('xla_cuda12', 'xla_cuda13'):
    monkeypatch.setitem(sys.modules, f'jax_plugins.{plugin}', None)
  with pytest.raises(UserError, match=r"run pip install 'lmjax\[plan\]'"):
    describe('h100')


def test_where_jax_looks_for_a_driver_in_vain_the_error_says_what_to_set():
  done = fresh('from lmjax.parallel.topology import describe; describe("h100")')
  assert done.returncode == 1
  assert 'UserError: JAX_PLATFORMS= has JAX look for an NVIDIA driver' in done.stderr
  assert 'set JAX_PLATFORMS=cpu' in done.stderr


def test_the_compiler_for_gpus_does_not_disturb_a_machine_without_one():
  code = 'import jax; print(jax.devices()[0].platform)'
  assert fresh(code).stdout == 'cpu\n'  # JAX logs that it found no CUDA, and goes on
  quiet = fresh(code, JAX_PLATFORMS='cpu')
  assert (quiet.stdout, quiet.stderr) == ('cpu\n', '')


def test_packed_attention_is_a_kernel_on_gpus_on_each_device_its_rows_and_heads():
  attend = choose('auto', softcap=None, windows=(0,), head_dim=128)
  total = lambda q, k, v, segments: jnp.sum(
    attend(q, k, v, segments[:, :, 0, 0], window=0, block=128, scale=0.1, dtype='bfloat16') ** 2
  )
  kv = array(4, 256, 2, 128, dtype='bfloat16')
  text = compiled(
    jax.grad(total, (0, 1, 2)),
    array(4, 256, 8, 128, dtype='bfloat16'),
    kv,
    kv,
    array(4, 256, 2, 1, dtype='int32'),
    mesh=Mesh(data=2, tensor=2),
    split=('data', None, 'tensor'),
  )
  assert text.count(KERNEL) == 3  # forward, and two of the backward pass
  assert dot_flops(text) == 0
  assert not re.search(r'all-gather|all-to-all', text)


def dropless(run):
  """Gradients of a layer of experts, of sorted rows."""
  total = lambda x, sizes, weights: jnp.sum(run(weights, jax.nn.silu, x, sizes) ** 2)
  weights = moe.Experts(None, array(4, 64, 96), array(4, 96, 64))
  gradients = lambda x, sizes, up, down: jax.grad(total, (0, 2))(
    x, sizes, moe.Experts(None, up, down)
  )
  sizes = array(4, dtype='int32')
  return compiled(gradients, array(512, 64), sizes, weights.up_EDF, weights.down_EFD)


def dot_flops(text):
  """Of all products in a program without loops that XLA itself makes."""
  shapes = {
    name: [int(n) for n in sizes.split(',') if n]
    for name, sizes in re.findall(r'(%[\w.-]+) = \w+\[([\d,]*)\]', text)
  }
  total = 0
  for result, left, dims in re.findall(
    r'(%[\w.-]+) = \S+ dot\((%[\w.-]+),.*?lhs_contracting_dims=\{([\d,]+)\}', text
  ):
    depth = math.prod(shapes[left][int(dim)] for dim in dims.split(','))
    total += 2 * depth * math.prod(shapes[result])
  return total


def test_experts_on_gpus_are_a_grouped_product_and_nothing_is_dense():
  text = dropless(
    lambda weights, act, *rows: moe.run_sorted(weights, lambda _, up: act(up), 'bfloat16', *rows)
  )
  assert text.count(KERNEL) == 6  # up and down; forward, and to rows and weights
  assert dot_flops(text) == 0
  assert not re.search(r'ragged-dot|cublas', text)


def test_ragged_dot_would_multiply_every_row_by_every_expert():
  # Why there is a kernel of our own. Where this fails, XLA has learnt it: measure, and delete ours.
  text = dropless(
    lambda weights, act, *rows: moe._run_ragged(lambda _, up: act(up), 'bfloat16', *rows, weights)
  )
  one_expert_a_row = 6 * 2 * 512 * 64 * 96
  assert dot_flops(text) == 4 * one_expert_a_row


def test_float8_products_are_8_bit_products_forward_and_backward():
  product = lambda x, w: jnp.sum(dot('BLD,DF->BLF', x, w, 'float8') ** 2)
  text = compiled(
    jax.grad(product, (0, 1)),
    array(2, 256, 512, dtype='bfloat16'),
    array(512, 1024),
    options=PRESETS['h100'].compiler_options,
  )
  calls = re.findall(r'custom_call_target="(__cublas[^"]*)"', text)
  assert calls == ['__cublas$lt$matmul$f8'] * 3
  assert 'f8e5m2' in text
  assert 'f8e4m3fn' in text


def layers(x_BD, w_NDD):
  """A stack of layers whose weights are gathered one at a time."""
  body = lambda x_BD, w_DD: (jnp.tanh(dot('BD,DE->BE', x_BD, w_DD, 'bfloat16')), None)
  return jnp.sum(jax.lax.scan(body, x_BD, w_NDD)[0])


@pytest.mark.parametrize('name', sorted({*PRESETS} - {'cpu'}))
def test_every_flag_of_a_preset_is_one_that_xla_knows(name):
  run = functools.partial(
    compiled,
    jax.grad(layers, 1),
    array(256, 256),
    array(4, 256, 256),
    accelerator=name,
    mesh=Mesh(fsdp=8),
    split=(None, 'fsdp'),
  )
  options = PRESETS[name].compiler_options
  assert '__cublas$' in run(options=options)
  with pytest.raises(jax.errors.JaxRuntimeError, match='No such compile option'):
    run(options=options | {'xla_gpu_enable_wishes': True})
