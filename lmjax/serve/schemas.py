"""The bodies of the API: OpenAI's, checked strictly, with what is ours marked as such."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

SEEDS = 2**32


def _check_unicode(text: str) -> str:
  if not text.isascii():
    try:
      text.encode()
    except UnicodeEncodeError:
      raise ValueError('half a surrogate pair is no character: send text in Unicode') from None
  return text


Text = Annotated[str, AfterValidator(_check_unicode)]


class Strict(BaseModel):
  """A part of a request: nothing that is not declared, nothing of another type."""

  model_config = ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)


class TextPart(Strict):
  type: Literal['text']
  text: Text


class FunctionCall(Strict):
  name: Text
  arguments: Text


class ToolCall(Strict):
  id: Text = ''
  type: Literal['function'] = 'function'
  function: FunctionCall


class Message(Strict):
  role: Literal['system', 'developer', 'user', 'assistant', 'tool']
  content: Text | list[TextPart] | None = None
  name: Text | None = None
  tool_calls: list[ToolCall] | None = None
  tool_call_id: Text | None = None
  refusal: Text | None = None
  # Which OpenAI's client adds to an answer that is sent back.
  annotations: Annotated[list[Any], Field(max_length=0)] | None = None
  audio: None = None
  function_call: None = None


class FunctionOffer(Strict):
  name: Text = Field(min_length=1, max_length=64)
  description: Text | None = None
  parameters: dict[Text, Any] | None = None
  strict: bool | None = None


class Tool(Strict):
  type: Literal['function']
  function: FunctionOffer


class ToolName(Strict):
  name: Text


class ToolChoice(Strict):
  type: Literal['function']
  function: ToolName


class PlainFormat(Strict):
  type: Literal['text', 'json_object']


class JsonSchema(Strict):
  model_config = ConfigDict(populate_by_name=True)

  name: Text = ''
  description: Text | None = None
  fields: dict[Text, Any] | None = Field(None, alias='schema')
  strict: bool | None = None


class SchemaFormat(Strict):
  type: Literal['json_schema']
  json_schema: JsonSchema


class RegexFormat(Strict):
  """Ours: an answer that a regular expression (Rust's syntax) matches as a whole."""

  type: Literal['regex']
  pattern: Text


Format = Annotated[PlainFormat | SchemaFormat | RegexFormat, Field(discriminator='type')]


class StreamOptions(Strict):
  include_usage: bool = False
  include_obfuscation: bool | None = None


class Generation(Strict):
  """What requests for chat and for completions share."""

  model: Text
  temperature: float | None = Field(None, ge=0, le=2)
  top_p: float | None = Field(None, gt=0, le=1, description='1: no limit.')
  n: int | None = Field(None, ge=1, le=16)
  seed: int | None = None
  stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
  max_tokens: int | None = Field(None, ge=1)
  presence_penalty: float | None = Field(None, ge=-2, le=2)
  frequency_penalty: float | None = Field(None, ge=-2, le=2)
  logit_bias: dict[Text, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
    None, max_length=1024
  )
  stream: bool | None = None
  stream_options: StreamOptions | None = None
  response_format: Format | None = None
  user: Text | None = None
  # Ours.
  top_k: int | None = Field(None, ge=-1, description='0 and -1: no limit.')
  min_p: float | None = Field(None, ge=0, le=1, description='0: no limit.')
  repetition_penalty: float | None = Field(None, gt=0, le=10)
  stop_token_ids: list[int] | None = Field(None, max_length=64)
  priority: int | None = Field(
    None, ge=0, le=100, description="How far behind others it may wait, on top of its key's."
  )
  timeout_seconds: float | None = Field(None, gt=0, le=3600)


class ChatRequest(Generation):
  messages: list[Message] = Field(min_length=1)
  max_completion_tokens: int | None = Field(None, ge=1)
  logprobs: bool | None = None
  top_logprobs: int | None = Field(None, ge=0, le=20)
  tools: list[Tool] | None = Field(None, max_length=128)
  tool_choice: Literal['none', 'auto', 'required'] | ToolChoice | None = None
  parallel_tool_calls: bool | None = None
  store: bool | None = None
  metadata: dict[Text, Text] | None = None


class CompletionRequest(Generation):
  prompt: Text | list[Text] | list[int] | list[list[int]]
  logprobs: int | None = Field(None, ge=0, le=20)
  echo: bool | None = None
  suffix: None = None
  best_of: int | None = Field(None, ge=1, le=1)


class EmbeddingRequest(Strict):
  model: Text
  input: Text | list[Text] | list[int] | list[list[int]]
  encoding_format: Literal['float', 'base64'] | None = None
  dimensions: int | None = Field(None, ge=1)
  user: Text | None = None


class PromptDetails(BaseModel):
  cached_tokens: int


class Usage(BaseModel):
  prompt_tokens: int
  completion_tokens: int
  total_tokens: int
  prompt_tokens_details: PromptDetails


class ChatMessage(BaseModel):
  role: Literal['assistant']
  content: str | None
  tool_calls: list[ToolCall] | None = None


Reason = Literal['stop', 'length', 'content_filter', 'tool_calls']


class ChatChoice(BaseModel):
  index: int
  message: ChatMessage
  finish_reason: Reason
  logprobs: dict[str, Any] | None


class ChatCompletion(BaseModel):
  id: str
  object: Literal['chat.completion']
  created: int
  model: str
  choices: list[ChatChoice]
  usage: Usage


class CompletionChoice(BaseModel):
  index: int
  text: str
  finish_reason: Reason
  logprobs: dict[str, Any] | None


class Completion(BaseModel):
  id: str
  object: Literal['text_completion']
  created: int
  model: str
  choices: list[CompletionChoice]
  usage: Usage


class ModelCard(BaseModel):
  id: str
  object: Literal['model']
  created: int
  owned_by: str
  context_length: int


class ModelList(BaseModel):
  object: Literal['list']
  data: list[ModelCard]


class Embedding(BaseModel):
  object: Literal['embedding']
  index: int
  embedding: list[float] | str


class EmbeddingUsage(BaseModel):
  prompt_tokens: int
  total_tokens: int


class EmbeddingList(BaseModel):
  object: Literal['list']
  data: list[Embedding]
  model: str
  usage: EmbeddingUsage
