"""A tiny encoder in a folder as sentence-transformers writes it, whose vectors say which words there are."""

import json

import jax
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models, normalizers, pre_tokenizers, processors

from lmjax.interop import names, tensors
from lmjax.models.encoder import Encoder

MODEL = Encoder(vocab=64, width=16, layers=2, heads=2, mlp=32, positions=48)
WORDS = [
  *('cats', 'dogs', 'birds', 'fish', 'sleep', 'run', 'fly', 'swim', 'all', 'day'),
  *('at', 'night', 'in', 'the', 'sea', 'of', 'green', 'red', 'big', 'small'),
]


def write_encoder(path, seed=0):
  """Writes the folder and returns its path."""
  path.mkdir()
  params = MODEL.init(jax.random.key(seed))
  params = {name: _filled(value, seed) for name, value in params.items()}
  pieces = tensors.pieces(MODEL, names.BERT, 'outputs first')
  save_file(dict(tensors.give(params, pieces)), path / 'model.safetensors')
  config = {
    'model_type': 'bert',
    'hidden_act': 'gelu',
    'vocab_size': MODEL.vocab,
    'hidden_size': MODEL.width,
    'num_hidden_layers': MODEL.layers,
    'num_attention_heads': MODEL.heads,
    'intermediate_size': MODEL.mlp,
    'max_position_embeddings': MODEL.positions,
    'type_vocab_size': MODEL.types,
    'layer_norm_eps': MODEL.norm.eps,
  }
  (path / 'config.json').write_text(json.dumps(config))
  vocab = {word: index for index, word in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', *WORDS])}
  tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token='[UNK]'))
  tokenizer.normalizer = normalizers.BertNormalizer()
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
  tokenizer.save(str(path / 'tokenizer.json'))
  return path


def _filled(tree, seed):
  """`tree` with small numbers where it is zero, so that every parameter counts."""
  return jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(seed + x.size), x.shape), tree
  )


def write_jsonl(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def shared_words(queries, documents):
  """A teacher: how many words a query and a document have in common."""
  pairs = zip(queries, documents, strict=True)
  return [len(set(query.split()) & set(document.split())) for query, document in pairs]


def says_nothing(queries, documents):
  """A teacher that is wrong: it gives no score."""
  del queries, documents
  return []
