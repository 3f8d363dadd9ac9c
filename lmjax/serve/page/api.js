// The server's API, as any client would use it.

import { readKey } from './settings.js';

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function isReady() {
  try {
    return (await fetch('/ready')).ok;
  } catch {
    return false;
  }
}

export async function listModels() {
  return (await (await ask('/v1/models')).json()).data;
}

/** Streams an answer: yields { text } as it comes, at last { reason, usage }. */
export async function* streamChat(body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await ask('/v1/chat/completions', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(asked),
    signal,
  });
  let reason = null;
  for await (const row of events(response.body)) {
    if (row.error) throw new ApiError(0, row.error.message);
    const [choice] = row.choices;
    if (choice?.delta.content) yield { text: choice.delta.content };
    reason = choice?.finish_reason ?? reason;
    if (row.usage) yield { reason, usage: row.usage };
  }
}

/** Posts of the server's index: { data, relevant, cursor, milliseconds }. */
export function searchPosts(body, signal) {
  return postJson('/search', body, signal);
}

/** What a route answers to a JSON body. */
export async function postJson(path, body, signal) {
  const response = await ask(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
    signal,
  });
  return response.json();
}

/** A file of the server's, with the key that an address in the page could not send. */
export async function fetchBlob(path) {
  return (await ask(path)).blob();
}

async function ask(path, options = {}) {
  const key = readKey();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(0, 'The server does not answer: is it running?');
  }
  if (!response.ok) throw new ApiError(response.status, await told(response));
  return response;
}

async function told(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}`;
  }
}

/** The JSON of each server-sent event up to [DONE]. */
async function* events(body) {
  let text = '';
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const rows = text.split('\n\n');
    text = rows.pop();
    for (const row of rows) {
      const data = row.replace(/^data: /, '');
      if (data === '[DONE]') return;
      yield JSON.parse(data);
    }
  }
}
