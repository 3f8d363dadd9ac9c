"""GGUF files: every family, every kind of quantisation, the tokenizer inside, and the real SmolLM2."""

import gguf as package
import gguf_files
import numpy as np
import pytest
import tiny

from lmjax.core.errors import UserError
from lmjax.data import chat
from lmjax.interop import gguf
from lmjax.interop.load import load
from lmjax.ops.rope import RopeScaling, frequencies

TYPES = package.GGMLQuantizationType


@pytest.mark.parametrize('name', gguf_files.ARCHITECTURES)
def test_a_file_gives_the_model_it_was_made_from(name, tmp_path):
  path = tmp_path / 'model.gguf'
  model, params = gguf_files.write(path, name)
  file = gguf.read(path)
  assert file.model == model
  for (key, found), (_, expected) in zip(
    *(sorted(tiny.tree.paths(p)) for p in (gguf.load_params(file), params)), strict=True
  ):
    np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=key)


def test_rope_of_llama_3_is_found_in_its_divisors(tmp_path):
  scaling = RopeScaling(kind='llama3', factor=8.0)
  divisors = frequencies(10, 5e5, None) / frequencies(10, 5e5, scaling)
  scaled = lambda writer: writer.add_tensor('rope_freqs.weight', divisors.astype(np.float32))
  gguf_files.write(tmp_path / 'model.gguf', 'llama', extra=scaled)
  file = gguf.read(tmp_path / 'model.gguf')
  assert file.model.rope.scaling == scaling
  gguf.load_params(file)
  other = lambda writer: writer.add_tensor('rope_freqs.weight', np.arange(1, 6, dtype=np.float32))
  gguf_files.write(tmp_path / 'other.gguf', 'llama', extra=other)
  with pytest.raises(UserError, match='rope_freqs.weight is not the rope scaling of Llama 3'):
    gguf.read(tmp_path / 'other.gguf')


def test_a_linear_stretch_of_rope_is_read(tmp_path):
  def stretch(writer):
    writer.add_rope_scaling_type(package.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)

  gguf_files.write(tmp_path / 'model.gguf', 'qwen3', extra=stretch)
  assert gguf.read(tmp_path / 'model.gguf').model.rope.scaling == RopeScaling(factor=4.0)


def half(raw: np.ndarray) -> np.ndarray:
  return raw.copy().view(np.float16).astype(np.float32)


def naive(kind: str, raw: np.ndarray) -> np.ndarray:
  """Numbers of one block by the description of its format in ggml's `block_*` structs."""
  if kind == 'Q8_0':
    return half(raw[:2]) * raw[2:].view(np.int8)
  if kind in ('Q4_0', 'Q4_1'):
    quants = raw[-16:]
    both = np.concatenate([quants & 15, quants >> 4]).astype(np.float32)
    return half(raw[:2]) * (both - 8) if kind == 'Q4_0' else half(raw[:2]) * both + half(raw[2:4])
  if kind == 'Q4_K':  # d, dmin, 8 scales and 8 minima of 6 bits, 256 numbers of 4 bits
    d, least, s, quants = half(raw[:2]), half(raw[2:4]), raw[4:16], raw[16:]
    out = []
    for j in range(8):
      scale = s[j] & 63 if j < 4 else (s[j + 4] & 15) | (s[j - 4] >> 6) << 4
      low = s[j + 4] & 63 if j < 4 else (s[j + 4] >> 4) | (s[j] >> 6) << 4
      part = quants[32 * (j // 2) :][:32]
      part = part >> 4 if j % 2 else part & 15
      out.append(d * int(scale) * part.astype(np.float32) - least * int(low))
    return np.concatenate(out)
  low, high, scales, d = raw[:128], raw[128:192], raw[192:208].view(np.int8), half(raw[208:])
  out = np.zeros(256, np.float32)  # Q6_K: 4 low bits, 2 high bits, 16 scales, d
  for i in range(256):
    group, place = divmod(i, 128)
    quarter, lane = divmod(place, 32)
    nibble = low[64 * group + lane + 32 * (quarter % 2)] >> (4 * (quarter // 2)) & 15
    top = high[32 * group + lane] >> (2 * quarter) & 3
    out[i] = d[0] * int(scales[i // 16]) * (int(nibble | top << 4) - 32)
  return out


@pytest.mark.parametrize('kind', ['Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K'])
def test_quantised_numbers_are_those_of_the_format(kind, tmp_path):
  size, width = package.GGML_QUANT_SIZES[TYPES[kind]]
  rng = np.random.default_rng(0)
  raw = rng.integers(0, 256, (3, 2 * width), dtype=np.uint8)
  blocks = raw.reshape(6, width)
  scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
  halves = {'Q6_K': [208], 'Q8_0': [0], 'Q4_0': [0]}.get(kind, [0, 2])
  for place in halves:  # any two bytes may be no number
    blocks[:, place : place + 2] = scale
  writer = package.GGUFWriter(tmp_path / 'one.gguf', 'llama')
  writer.add_tensor('some', raw, raw_dtype=TYPES[kind])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  (tensor,) = package.GGUFReader(tmp_path / 'one.gguf').tensors
  found = gguf.dequantise('one.gguf', {'some': tensor}, 'some')
  expected = np.concatenate([naive(kind, block) for block in blocks]).reshape(3, 2 * size)
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_quantised_or_half_file_is_near_the_whole_one(tmp_path):
  def quantise(writer):
    (tensors,) = writer.tensors
    for number, (key, info) in enumerate(list(tensors.items())):
      kind = TYPES.Q8_0 if info.tensor.shape[-1] % 32 == 0 else TYPES.F16
      if info.tensor.ndim == 2 and number % 2:
        del tensors[key]
        writer.add_tensor(key, package.quantize(info.tensor, kind), raw_dtype=kind)

  _, params = gguf_files.write(tmp_path / 'model.gguf', 'gpt2', extra=quantise)
  found = gguf.load_params(gguf.read(tmp_path / 'model.gguf'))
  different = 0
  for (_, a), (_, b) in zip(*map(tiny.tree.paths, (found, params)), strict=True):
    np.testing.assert_allclose(a, b, atol=0.01)
    different += not np.array_equal(a, b)
  assert different > 3


def add_tokenizer(writer, words='smollm', missing=b'\x04'):
  """Bytes but for those missing, a merge and two control tokens."""
  from lmjax.data.tokenizer import _byte_chars

  chars = [char for byte, char in enumerate(_byte_chars()) if byte not in missing]
  spelled = ['<|endoftext|>', '<|im_end|>', *chars, '12', 'th']
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(words)
  writer.add_token_list(spelled)
  writer.add_token_types([3, 3] + [1] * (len(spelled) - 2))
  writer.add_token_merges(['1 2', 't h'])
  writer.add_eos_token_id(1)
  writer.add_chat_template('{{ messages[0].content }}')


def test_the_tokenizer_is_made_of_what_the_file_says(tmp_path):
  gguf_files.write(tmp_path / 'model.gguf', 'llama', extra=add_tokenizer)
  file = gguf.read(tmp_path / 'model.gguf')
  tokenizer = gguf.load_tokenizer(file)
  spell = lambda text: [tokenizer.name(token) for token in tokenizer.encode(text)]
  assert spell('that 12') == ['th', 'a', 't', 'Ġ', '1', '2']  # digits stand alone
  assert spell('<|im_end|>') == list('<|im_end|>')
  assert (
    tokenizer.text(tokenizer.encode('é 😀\x04.')) == 'é 😀.'
  )  # a byte without a token is left out
  assert (tokenizer.start, tokenizer.end, tokenizer.before) == (0, 0, ())
  assert tokenizer.controls == {'<|endoftext|>': 0, '<|im_end|>': 1}
  assert (file.ends, file.length, file.chat_template) == ((1,), 64, '{{ messages[0].content }}')


def test_an_unknown_tokenizer_is_refused(tmp_path):
  other = lambda writer: add_tokenizer(writer, words='tekken')
  gguf_files.write(tmp_path / 'model.gguf', 'llama', extra=other)
  with pytest.raises(UserError, match="pre-tokenizer 'tekken', not known here"):
    gguf.load_tokenizer(gguf.read(tmp_path / 'model.gguf'))


def test_an_unknown_architecture_is_refused(tmp_path):
  writer = package.GGUFWriter(tmp_path / 'model.gguf', 'mamba')
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(UserError, match="architecture 'mamba', not known here: known are: gemma2"):
    gguf.read(tmp_path / 'model.gguf')


def test_a_file_that_does_not_match_names_the_tensor(tmp_path):
  def cut(writer):
    (tensors,) = writer.tensors
    del tensors['blk.2.ffn_up.weight']
    writer.add_tensor('blk.2.ffn_up.weight', np.zeros((71, 48), np.float32))

  gguf_files.write(tmp_path / 'model.gguf', 'llama', extra=cut)
  told = r'tensor blk.2.ffn_up.weight: expected shape \(72, 48\), found \(71, 48\)'
  with pytest.raises(UserError, match=told):
    gguf.load_params(gguf.read(tmp_path / 'model.gguf'))


@pytest.mark.slow
def test_smollm2_is_what_transformers_makes_of_the_same_file():
  """Downloads 93 MB the first time. Measured: logits 1.2e-4 apart at a scale of 40."""
  torch = pytest.importorskip('torch', reason='compares with transformers')
  from by_transformers import load as load_reference

  from lmjax.generate.engine import generate
  from lmjax.generate.sampler import Sampler

  loaded = load('smollm2-135m-instruct')
  reference = load_reference(loaded.path.parent, loaded.path.name)
  message = {'role': 'user', 'content': 'Tell me about the sea and its fish in a long story.'}
  ids = chat.encode(loaded.chat_template or '', [message], loaded.tokenizer, answer=True)
  rows = torch.tensor(ids[None].astype(np.int64))
  with torch.no_grad():
    expected = reference(rows).logits.numpy()
    how = {'attention_mask': torch.ones_like(rows), 'do_sample': False}
    said = reference.generate(rows, min_new_tokens=100, max_new_tokens=100, **how)
  found = tiny.logits(loaded.model, loaded.params, ids[None])
  np.testing.assert_allclose(found, expected, atol=5e-4)
  np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))
  greedy = {'sampler': Sampler(temperature=0.0), 'max_tokens': 100, 'end': -1, 'seed': 0}
  (new,) = generate(loaded.model, loaded.params, [ids], vocab=loaded.tokenizer.vocab, **greedy)
  np.testing.assert_array_equal(new, said[0, len(ids) :].numpy())
