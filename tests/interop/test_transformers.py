"""Published models side by side with transformers; all of it needs the extra [torch]."""

import gguf_files
import numpy as np
import pytest
import tiny
from test_gguf import add_tokenizer

pytest.importorskip('torch', reason='compares with transformers: pip install "lmjax[torch]"')

import by_transformers

from lmjax.data.tokenizer import train
from lmjax.interop import gguf, huggingface

pytestmark = pytest.mark.filterwarnings('default')
NAMES = sorted(set(tiny.CONFIGS) - {'grok-1'})


@pytest.fixture(scope='module')
def tokenizer():
  return train(['a text', 'another text', 'and one more'], 262)


@pytest.mark.parametrize('name', NAMES)
def test_logits_are_equal_before_and_after_export(name, tmp_path, tokenizer):
  path, out = tiny.write_folder(tmp_path / 'in', name), tmp_path / 'out'
  folder = huggingface.read(path)
  params = huggingface.load_params(path, folder)
  expected, found = by_transformers.logits(path), tiny.logits(folder.model, params, tiny.tokens())
  np.testing.assert_allclose(found, expected, atol=1e-4)
  np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))
  huggingface.save(
    out, folder.model, params, tokenizer, ends=folder.ends, length=folder.length, shard_bytes=50_000
  )
  assert len(list(out.glob('*.safetensors'))) > 2
  np.testing.assert_allclose(by_transformers.logits(out), expected, atol=1e-5)


def test_an_exported_tokenizer_gives_the_same_ids(tmp_path, tokenizer):
  path = tiny.write_folder(tmp_path / 'in', 'llama')
  folder = huggingface.read(path)
  params = huggingface.load_params(path, folder)
  template = '{{ messages[0].content }}'
  huggingface.save(tmp_path / 'out', folder.model, params, tokenizer, chat_template=template)
  found = by_transformers.tokenizer(tmp_path / 'out')
  text = 'another  text, Ünïcode 😀'
  assert found(text).input_ids == tokenizer.encode(text).tolist()
  assert found.decode(found(text).input_ids) == text
  assert (found.bos_token_id, found.eos_token_id) == (tokenizer.start, tokenizer.end)
  assert found.chat_template == template


# transformers reads no experts of llama, and of Qwen's shared ones no gate, from GGUF.
@pytest.mark.parametrize('name', sorted(set(gguf_files.ARCHITECTURES) - {'mixtral', 'qwen2_moe'}))
def test_logits_of_a_gguf_file_are_equal(name, tmp_path):
  path = tmp_path / 'model.gguf'
  gguf_files.write(path, name, extra=add_tokenizer)
  file = gguf.read(path)
  expected = by_transformers.logits(tmp_path, path.name, **gguf_files.unread(name))
  found = tiny.logits(file.model, gguf.load_params(file), tiny.tokens())
  np.testing.assert_allclose(found, expected, atol=1e-4)
