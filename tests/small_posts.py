"""Generated posts of which is known who wrote what, when and with which tags, for a tiny encoder's words."""

import random

from small_encoder import WORDS

from lmjax.search.sets import Document

DAY = 86_400.0
START = 1_704_067_200.0  # 2024-01-01
AUTHORS, LANGUAGES = ('Ada', 'bob', 'Eve'), ('en', 'de', '')


def make_posts(count, seed=0):
  """Post n is of day n."""
  rng = random.Random(seed)
  return [
    Document(
      f'p{n}',
      ' '.join(
        [
          *rng.sample(WORDS, 5),
          f'mark{n}',
          *(['#Pets'] if n % 3 == 0 else []),
          *([f'https://example.org/{n}'] if n % 4 == 0 else []),
        ]
      ),
      '',
      AUTHORS[n % 3],
      START + n * DAY if n % 10 else None,
      LANGUAGES[n % len(LANGUAGES)],
      float(n) if n % 2 else None,
    )
    for n in range(count)
  ]
