"""What an instruction does is counted: products exactly, kernels by their formulas, the rest by its bytes."""

import math

import jax
import jax.numpy as jnp
import pytest

from lmjax.ops.attention_gpu import choose
from lmjax.parallel import hlo
from lmjax.parallel.topology import compile_there, describe
from lmjax.plan.work import work


def gpu_program(run, *arrays):
  """`run` compiled for one H100."""
  device = jax.sharding.SingleDeviceSharding(describe('h100', 1, 1).devices[0])
  arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for x in arrays]
  lowered = jax.jit(run).trace(*arrays).lower(lowering_platforms=('cuda',))
  return hlo.parse(compile_there(lowered).as_text())


def everything(module):
  """Work of all that is scheduled in the entry."""
  instructions = module.computations[module.entry]
  types = {each.name: each.type for each in instructions}
  return [work(module, each, types) for each in instructions]


def array(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize('place', ['cpu', 'gpu'])
def test_products_are_counted_exactly(place):
  run = lambda x, w: jnp.tanh(jnp.einsum('BLD,DHK->BLHK', x, w))
  arrays = (array(2, 64, 96), array(96, 4, 32))
  if place == 'gpu':
    module = gpu_program(run, *arrays)
  else:
    module = hlo.parse(jax.jit(run).lower(*arrays).compile().as_text())
  found = [each for each in everything(module) if each.flops]
  assert sum(each.flops for each in found) == 2 * 2 * 64 * 96 * 4 * 32
  assert {each.kind for each in found} == {'product'}


def test_attention_in_a_kernel_is_counted_by_the_scores_that_causality_leaves():
  B, L, H, K = 2, 256, 4, 64
  attend = choose('pallas', softcap=None, windows=(0,), head_dim=K)
  total = lambda q, segments: jnp.sum(
    attend(q, q, q, segments, window=0, block=128, scale=0.1, dtype='bfloat16')
  )
  arrays = (array(B, L, H, K, dtype=jnp.bfloat16), array(B, L, dtype=jnp.int32))
  found = [each for each in everything(gpu_program(jax.grad(total), *arrays)) if each.flops]
  product = 2 * B * H * L * L * K / 2
  assert sorted(each.flops / product for each in found) == [2, 7]
  assert {each.kind for each in found} == {'attention'}


def test_of_a_stack_a_fusion_reads_the_slice_that_it_takes():
  def run(stack, i):
    return jnp.tanh(jax.lax.dynamic_index_in_dim(stack, i, keepdims=False)) * 2

  module = gpu_program(run, array(100, 64, 64), array(dtype=jnp.int32))
  moved = sum(each.bytes for each in everything(module))
  slice_bytes = 4 * 64 * 64
  assert 2 * slice_bytes <= moved < 4 * slice_bytes


CUDNN = """HloModule m, is_scheduled=true, num_partitions=1

ENTRY %main (q: bf16[2,1024,8,128], k: bf16[2,1024,2,128]) -> bf16[2,1024,8,128] {
  %q = bf16[2,1024,8,128]{3,2,1,0} parameter(0)
  %k = bf16[2,1024,2,128]{3,2,1,0} parameter(1)
  %fmha = (bf16[2,1024,8,128]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config":{"mask_type":"CAUSAL"}}
  ROOT %out = bf16[2,1024,8,128]{3,1,2,0} get-tuple-element(%fmha), index=0
}
"""


def test_attention_inside_cudnn_is_added():
  (found,) = [each for each in everything(hlo.parse(CUDNN)) if each.flops]
  assert found.kind == 'attention'
  assert found.kernel == 'cudnn attention'
  assert found.flops == 2 * 2 * math.prod((2, 1024, 8, 128)) * 1024 / 2


def test_a_kernel_that_nobody_counted_is_no_guess():
  text = CUDNN.replace('__cudnn$fmhaSoftmax', '__gpu$xla.gpu.triton')
  with pytest.raises(ValueError, match='unknown kernel'):
    everything(hlo.parse(text))
