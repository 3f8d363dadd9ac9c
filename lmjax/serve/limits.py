"""How much a server gives to one who asks."""

from lmjax.core.config import Config, leaf


class Limits(Config):
  """How much one may ask. Rates and numbers are those of a key that has none of its own."""

  requests_per_minute: int | None = leaf(
    None, 'Of a key, or of an address where there are no keys.', low=1
  )
  concurrent: int | None = leaf(None, 'Requests of a key, or of an address, at a time.', low=1)
  body_bytes: int = leaf(1 << 20, 'Of a request.', low=1024)
  answer_tokens: int = leaf(
    1024, 'Of an answer, and what it may have where none are asked for.', low=1
  )
  timeout_seconds: float = leaf(
    300.0, 'After which an answer that is not done is given up.', above=0.0
  )
