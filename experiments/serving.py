"""A trained or published model, for others to talk to."""

from lmjax.core.registry import experiment
from lmjax.serve.task import ApiKey, Serve
from lmjax.serve.terminal import Chat


@experiment
def serve() -> Serve:
  """Answer at http://127.0.0.1:8000, as OpenAI's API and as a page; --checkpoint=RUN for your own."""
  return Serve()


@experiment
def chat() -> Chat:
  """Talk with a model in the terminal; --checkpoint=RUN for your own."""
  return Chat()


@experiment
def api_key() -> ApiKey:
  """Make a key for those who may ask a server: --name=NAME --api_keys=FILE."""
  return ApiKey()
