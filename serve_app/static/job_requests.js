// Requests about the jobs of the server; a file is made a job by createJob in server.js.

import { note } from "./debug.js";
import { eventReader } from "./events.js";
import { Cancelled, ServerError, ask, transcriptIn } from "./server.js";

const MAX_SILENCE_MS = 45_000; // The server sends a comment every 15 s.
const PAGE = 50;

/** A page of this key's jobs, newest first: { data, has_more, next }. */
export async function jobsBefore(next) {
  return (await ask(`v1/jobs?limit=${PAGE}${next ? `&before=${next}` : ""}`)).json();
}

export async function findJob(id) {
  return (await ask(`v1/jobs/${id}`)).json();
}

export async function resultOf(id) {
  const format = new URLSearchParams([["response_format", "verbose_json"], ["timestamp_granularities[]", "word"]]);
  return transcriptIn(await (await ask(`v1/jobs/${id}/result?${format}`)).json());
}

/** Cancels a job that has not ended, and resolves with it; removes one that has, and resolves with null. */
export async function cancelOrRemove(id) {
  const answer = await ask(`v1/jobs/${id}`, { method: "DELETE" });
  return answer.status === 204 ? null : answer.json();
}

/** Calls `handle({ event, id, data })` for the events of a job after `lastEventId` until the connection ends. By fetch, because an EventSource
 * cannot send the key. */
export async function follow(id, lastEventId, handle, signal) {
  const silence = new AbortController();
  let timer;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), MAX_SILENCE_MS);
  };
  heard();
  try {
    const either = AbortSignal.any([signal, silence.signal]);
    const answer = await ask(`v1/jobs/${id}/events`, { headers: lastEventId ? { "Last-Event-ID": lastEventId } : {}, signal: either });
    const read = eventReader((event) => {
      note("event", event);
      handle(event);
    });
    for (const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader(); reader; ) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      read(value);
    }
  } catch (error) {
    if (signal.aborted) throw new Cancelled();
    throw error instanceof ServerError ? error : new ServerError("The connection was lost.", "unreachable");
  } finally {
    clearTimeout(timer);
  }
}
