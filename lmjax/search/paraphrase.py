"""Posts in other words, by a language model that can chat, each made once."""

import functools
from collections.abc import Sequence

import numpy as np

from lmjax.core import tree
from lmjax.core.errors import UserError
from lmjax.core.metrics import progress
from lmjax.data import chat
from lmjax.generate.engine import generate
from lmjax.generate.prepare import prepare
from lmjax.generate.sampler import Sampler
from lmjax.interop.load import Loaded
from lmjax.search.kept import kept

_ASKED = 'Say this in other words, in one sentence, and nothing else:\n\n'
_TOKENS = 60  # of a paraphrase at most
_TOGETHER = 16  # posts of one call


def paraphrase(loaded: Loaded, texts: Sequence[str]) -> list[str]:
  """What the model makes of each text, its likeliest words; kept in LMJAX_CACHE under model and texts.

  Raises:
    UserError: it was not taught to chat.
  """
  template, words = loaded.chat_template, loaded.tokenizer
  if template is None:
    raise UserError(
      f'--paraphraser: {loaded.path} has no chat template: pass a model that was taught to chat'
    )

  def make() -> np.ndarray:
    ask = functools.partial(chat.encode, template, tokenizer=words, answer=True)
    model, params = prepare(loaded.model, loaded.params)
    said: list[str] = []
    show = progress('posts said in other words')
    for start in range(0, len(texts), _TOGETHER):
      some = texts[start : start + _TOGETHER]
      prompts = [ask([{'role': 'user', 'content': _ASKED + text}]) for text in some]
      new = generate(
        model, params, prompts, sampler=Sampler(temperature=0.0), max_tokens=_TOKENS,
        end=loaded.ends[0], vocab=words.vocab, seed=0,
      )  # fmt: skip
      said += [' '.join(words.text(tokens).split()) for tokens in new]
      show(len(some), len(texts))
    return np.array(said, np.str_)

  weights = tree.sha256(tree.stack(loaded.params))
  return kept('paraphrases', [weights, _ASKED, str(_TOKENS), *texts], make).tolist()
