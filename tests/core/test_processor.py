"""What is known of a CPU."""

import pytest

from lmjax.core import processor


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    ('flags : fpu avx2 avx512_bf16 vnni', True),
    ('flags : fpu amx_bf16', True),
    ('Features : fp asimd bf16', True),
    ('flags : fpu avx2 fma avx512f', False),
  ],
)
def test_a_cpu_that_multiplies_bf16_is_known_by_its_flags(flags, expected):
  assert processor.has_bf16(flags) == expected


def test_the_kind_of_a_cpu_names_a_folder():
  assert processor.kind().isalnum()
