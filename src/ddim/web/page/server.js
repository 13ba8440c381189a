// What the server is asked: plain questions, and jobs whose connection is the job.

const PAGE = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
  byte.toString(16).padStart(2, "0"),
).join("");

/** What went wrong, by the server's code; `offline` where there was no answer. */
export class Trouble extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

const listeners = new Set();
let connected = true;

/** Calls back with false when the server is gone, and with true when it is there again. */
export function onConnection(listener) {
  listeners.add(listener);
}

function heard(is) {
  if (is === connected) return;
  connected = is;
  for (const listener of listeners) listener(is);
  if (!is) knock(500);
}

async function knock(wait) {
  await new Promise((resolve) => setTimeout(resolve, wait));
  try {
    await ask("/api/state");
  } catch (trouble) {
    if (trouble.code === "offline") knock(Math.min(wait * 1.5, 5000));
  }
}

async function reach(path, options) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    heard(false);
    throw new Trouble("offline", "");
  }
  heard(true);
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const { code = "failed", text = `${answer.status} ${answer.statusText}` } = body.error ?? {};
  throw new Trouble(code, text);
}

/** The answer to a question. */
export async function ask(path) {
  const answer = await reach(path, { headers: { "X-Page": PAGE } });
  return answer.json();
}

/**
 * The events of a job, one [name, data] after another; the signal ends it, here and there.
 * An event `error` is thrown as Trouble, and so is a stream that breaks off.
 */
export async function* job(path, body, signal) {
  const answer = await reach(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Page": PAGE },
    body: JSON.stringify(body),
    signal,
  });
  let ended = false;
  for await (const [name, data] of events(answer.body.getReader(), signal)) {
    if (name === "error") throw new Trouble(data.code, data.text);
    ended = name === "done" || name === "cancelled";
    yield [name, data];
  }
  if (!ended) {
    heard(false);
    throw new Trouble("offline", "");
  }
}

async function* events(reader, signal) {
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal?.aborted) throw error;
      return;
    }
    if (part.done) return;
    text += decoder.decode(part.value, { stream: true }).replaceAll("\r\n", "\n");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = parse(block);
      if (event) yield event;
    }
  }
}

function parse(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? [name, JSON.parse(data.join("\n"))] : null;
}
