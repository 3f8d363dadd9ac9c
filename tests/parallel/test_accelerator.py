"""Each accelerator gets its own settings, and a machine without one gets none."""

import jax
import pytest

from lmjax.core import processor
from lmjax.core.errors import UserError
from lmjax.parallel.accelerator import PRESETS, preset
from lmjax.parallel.topology import GPUS


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('cpu', 'cpu'),
    ('NVIDIA A100-SXM4-80GB', 'a100'),
    ('NVIDIA H100 80GB HBM3', 'h100'),
    ('NVIDIA H100 PCIe', 'h100'),
    ('NVIDIA H200', 'h200'),
    ('NVIDIA B200', 'b200'),
    ('NVIDIA GB200', 'gb200'),
    ('NVIDIA GH200 480GB', 'other'),
    ('NVIDIA L4', 'other'),
    ('TPU v5e', 'other'),
  ],
)
def test_a_device_finds_its_preset_by_its_kind(kind, name):
  assert preset(kind).name == name


def test_the_cpu_of_this_machine_gets_measured_flags_that_its_compiler_knows_and_blocked_attention():
  here = preset(jax.devices()[0].device_kind)
  assert (here.name, here.attention) == ('cpu', 'blocked')
  assert all(flag.measured for flag in here.flags.values())
  jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options=here.compiler_options)


def test_every_accelerator_that_can_be_described_has_a_preset_with_sources():
  assert set(GPUS) == set(PRESETS) - {'cpu'}
  for found in PRESETS.values():
    assert all(flag.source for flag in found.flags.values())


def test_a_preset_is_one_line_that_says_what_is_not_measured():
  assert preset('NVIDIA H100 PCIe').line == (
    'preset h100: XLA flags: 12 (not measured), attention by a kernel where it can be, '
    'products in float32 or bfloat16 or float8'
  )
  assert preset('cpu').line == (
    'preset cpu: XLA flags: 1, attention blocked, products in float32 or bfloat16'
  )


def test_products_in_8_bits_are_refused_where_there_are_none():
  with pytest.raises(UserError, match='a100 has no products in float8: pass float32 or bfloat16'):
    PRESETS['a100'].check('auto', 'float8')
  PRESETS['h100'].check('auto', 'float8')
  PRESETS['cpu'].check('auto', 'float8')  # slowly, as tests do


def test_only_a_cpu_without_bf16_computes_in_another_dtype_than_was_asked():
  asked = 'bfloat16' if processor.multiplies_bf16() else 'float32'
  assert PRESETS['cpu'].compute_dtype('bfloat16') == asked
  assert PRESETS['cpu'].compute_dtype('float32') == 'float32'
  assert PRESETS['h100'].compute_dtype('bfloat16') == 'bfloat16'
