// Requests to the server: models, transcriptions over HTTP and WebSocket, and exports in other formats.

import { note } from "./debug.js";
import { eventReader } from "./events.js";
import { textOf } from "./format.js";
import { withNames } from "./speakers.js";

const MAX_BUFFERED_BYTES = 1 << 20; // No more of a file is read while a WebSocket has so many unsent bytes.
const CHUNK_BYTES = 256 << 10;

const ADVICE = {
  invalid_audio: "Try to play the file; if that works, save it in another format.",
  upload_too_large: "Split the file, or save only its audio, for example as MP3.",
  audio_too_long: "Split the file into shorter ones.",
  overloaded: "Try again in a moment.",
  rate_limit_exceeded: "Try again in a minute.",
  model_unavailable: "Try again later, or choose another model.",
  shutting_down: "Try again later.",
  unreachable: "Is the server running, and are you connected to it? Then try again.",
};

export class ServerError extends Error {
  /** `status` is that of the answer; 0: there was none. */
  constructor(message, code, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
    this.advice = ADVICE[code] ?? "";
  }
}

export class Cancelled extends Error {}

let key = localStorage.getItem("key") ?? "";

export function useKey(value, isKept) {
  key = value;
  if (value && isKept) localStorage.setItem("key", value);
  else localStorage.removeItem("key");
}

export function hasKey() {
  return key !== "";
}

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function failure(text, status) {
  try {
    const { message, code } = JSON.parse(text).error;
    return new ServerError(message, code, status);
  } catch {
    return new ServerError(`The server answered ${status}.`, "unknown", status);
  }
}

/** Resolves with the Response; rejects with a ServerError for one that is not ok. */
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch {
    if (options.signal?.aborted) throw new Cancelled();
    throw new ServerError("The server cannot be reached.", "unreachable");
  }
  note(`${options.method ?? "GET"} ${path}: ${answer.status}`);
  if (!answer.ok) throw failure(await answer.text(), answer.status);
  return answer;
}

export async function models() {
  return (await (await ask("v1/models")).json()).data;
}

/** The state of each model. The status of the answer is 503 until all are loaded. */
export async function modelStates() {
  return (await (await fetch("ready", { headers: headers() })).json()).models ?? [];
}

/** The transcript as a Blob, the same as a transcription in that format returns. */
export async function exported(transcript, format, cues = {}) {
  const { language, duration, warnings } = transcript;
  const body = JSON.stringify({ response_format: format, language, duration, segments: withNames(transcript), warnings, ...cues });
  const answer = await ask("v1/audio/transcriptions/export", {
    method: "POST", body, headers: { "Content-Type": "application/json" },
  });
  return answer.blob();
}

function fields(options) {
  const list = [["response_format", "verbose_json"], ["timestamp_granularities[]", "word"]];
  if (options.model) list.push(["model", options.model]);
  if (options.language) list.push(["language", options.language]);
  if (options.track !== null) list.push(["track", options.track]);
  if (options.who === "channels") list.push(["multichannel", "true"]);
  if (options.who === "speakers") list.push(["diarize", "true"]);
  for (const word of options.keywords) list.push(["keywords[]", word]);
  return list;
}

const STREAM_FIELDS = [["stream", "true"], ["include[]", "progress"]];

export function curl(file, options, isBackground) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const form = [...(isBackground ? [] : STREAM_FIELDS), ...fields(options)].map(([name, value]) => `-F ${quoted(`${name}=${value}`)}`);
  const bearer = key ? ["-H 'Authorization: Bearer KEY'"] : [];
  const url = new URL(isBackground ? "v1/jobs" : "v1/audio/transcriptions", document.baseURI);
  return ["curl -N", ...bearer, `-F ${quoted(`file=@${file.name}`)}`, ...form, quoted(url.href)].join(" ");
}

/** What is kept of `verbose_json`: of channels only their numbers, as all segments are there already. */
export function transcriptIn({ channels, ...content }) {
  return channels ? { ...content, channels: channels.map(({ channel }) => channel) } : content;
}

/** Transcribe a file. `watch` has sent(share), progress(event), text(event) and segment(segment). */
export function transcribe(file, options, watch, signal) {
  return (options.transport === "websocket" ? overWebSocket : overHttp)(file, options, watch, signal);
}

function overHttp(file, options, watch, signal) {
  return new Promise((resolve, reject) => {
    const received = eventReader(({ data: message }) => {
      if (message.error) return reject(new ServerError(message.error.message, message.error.code));
      note("event", message);
      if (message.type === "transcript.progress") watch.progress(message);
      else if (message.type === "transcript.text.delta") watch.text(message);
      else if (message.type === "transcript.text.done") resolve(transcriptIn(message.content));
    });
    upload("v1/audio/transcriptions", file, [...STREAM_FIELDS, ...fields(options)], { sent: watch.sent, received }, signal).then(
      () => reject(new ServerError("The response ended before the transcript.", "unreachable")), reject);
  });
}

/** Have a file transcribed as a job, whatever becomes of this page. `sent(share)` tells of the upload. Resolves with the job, the same one if the
 * request is repeated with the same `options.requestId`. */
export async function createJob(file, options, sent, signal) {
  let text = "";
  const received = (piece) => (text += piece);
  await upload("v1/jobs", file, fields(options), { sent, received, headers: { "Idempotency-Key": options.requestId } }, signal);
  return JSON.parse(text);
}

/** Send a form. `watch` has sent(share), received(piece of the answer's text), and maybe headers of the request. By XMLHttpRequest, because fetch
 * does not report the progress of an upload. */
function upload(path, file, formFields, watch, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("file", file);
    for (const [name, value] of formFields) form.append(name, value);
    let taken = 0;
    const take = () => {
      const text = request.responseText;
      watch.received(text.slice(taken));
      taken = text.length;
    };
    const isOk = () => request.status >= 200 && request.status < 300;
    request.upload.onprogress = (e) => watch.sent(e.lengthComputable ? e.loaded / e.total : 0);
    request.upload.onload = () => watch.sent(1);
    request.onprogress = () => isOk() && take();
    request.onload = () => {
      if (!isOk()) return reject(failure(request.responseText, request.status));
      take();
      resolve();
    };
    request.onerror = () => reject(new ServerError("The server cannot be reached, or the connection was lost.", "unreachable"));
    request.onabort = () => reject(new Cancelled());
    signal.addEventListener("abort", () => request.abort());
    request.open("POST", path);
    for (const [name, value] of Object.entries({ ...headers(), ...watch.headers })) request.setRequestHeader(name, value);
    note(`POST ${path}`, { file: file.name, bytes: file.size });
    request.send(form);
  });
}

export function openSocket(config) {
  const url = new URL("v1/audio/transcriptions/ws", document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  socket.addEventListener("open", () => {
    const chosen = Object.fromEntries(Object.entries(config).filter(([, value]) => value?.length !== 0 && value != null));
    note("WebSocket open", chosen);
    socket.send(JSON.stringify(key ? { ...chosen, api_key: key } : chosen));
  });
  socket.addEventListener("message", (e) => note("message", e.data));
  socket.addEventListener("close", (e) => note(`WebSocket closed: ${e.code} ${e.reason}`));
  return socket;
}

/** Resolves with the transcript at the end. `watch` has segment(segment), and partial(words) if partial results were asked for. */
export function transcriptOf(socket, watch) {
  const segments = [];
  return new Promise((resolve, reject) => {
    socket.addEventListener("message", (e) => {
      const message = JSON.parse(e.data);
      if (message.type === "segment") {
        const { type, ...segment } = message;
        segments.push(segment);
        watch.segment(segment);
      } else if (message.type === "partial") {
        watch.partial(message.words);
      } else if (message.type === "error") {
        reject(new ServerError(message.error, message.code));
      } else if (message.type === "final_transcription") {
        const { language, final_duration_processed_seconds: duration, warnings, channels } = message;
        // Not the message's text: segments may have been edited meanwhile.
        resolve(transcriptIn({ text: textOf(segments), language, duration, segments, warnings, channels }));
      }
    });
    socket.addEventListener("close", (e) => reject(closeError(e.code)));
  });
}

function closeError(code) {
  return new ServerError(code === 1006 ? "The server cannot be reached, or the connection was lost." : `The server closed the connection (${code}).`, "unreachable");
}

function overWebSocket(file, options, watch, signal) {
  return new Promise((resolve, reject) => {
    const { model, language, keywords, track, who } = options;
    const socket = openSocket({ media: true, model, language, keywords, track, multichannel: who === "channels" || null });
    socket.addEventListener("open", () => send(socket, file, watch, signal).catch((error) => {
      reject(new ServerError(`The file cannot be read: ${error.message}`, "file"));
      socket.close();
    }));
    const segment = (received) => {
      watch.segment(received);
      watch.progress({ audio_s: received.end });
    };
    transcriptOf(socket, { segment }).then(resolve, reject);
    signal.addEventListener("abort", () => {
      socket.close();
      reject(new Cancelled());
    });
  });
}

async function send(socket, file, watch, signal) {
  for (let start = 0; start < file.size; start += CHUNK_BYTES) {
    const chunk = await file.slice(start, start + CHUNK_BYTES).arrayBuffer();
    const canSend = () => !signal.aborted && socket.readyState === WebSocket.OPEN;
    while (canSend() && socket.bufferedAmount > MAX_BUFFERED_BYTES) await new Promise((go) => setTimeout(go, 20));
    if (!canSend()) return;
    socket.send(chunk);
    watch.sent(Math.min(1, (start + CHUNK_BYTES) / file.size));
  }
  socket.send("END");
}
