// What the page asks of the server: models, transcriptions over HTTP and WebSocket, and transcripts in other formats.

import { note } from "./debug.js";
import { textOf } from "./format.js";

const BYTES_AHEAD = 1 << 20; // What a WebSocket may hold before more of a file is read.
const PIECE_BYTES = 256 << 10;

const ADVICE = {
  invalid_audio: "Try to play it; if that works, save it in another format.",
  upload_too_large: "Cut it, or save its sound alone, as MP3 for example.",
  audio_too_long: "Cut it into shorter files.",
  overloaded: "Try again in a moment.",
  rate_limit_exceeded: "Try again in a minute.",
  model_unavailable: "Try again in a while, or choose another model.",
  shutting_down: "Try again in a while.",
  unreachable: "Is the server running, and are you connected to it? Then try again.",
};

export class ServerError extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
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

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function failure(text, status) {
  try {
    const { message, code } = JSON.parse(text).error;
    return new ServerError(message, code);
  } catch {
    return new ServerError(`The server answered ${status}.`, "unknown");
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch {
    throw new ServerError("The server cannot be reached.", "unreachable");
  }
  note(`${options.method ?? "GET"} ${path}: ${answer.status}`);
  if (!answer.ok) throw failure(await answer.text(), answer.status);
  return answer;
}

export async function models() {
  return (await (await ask("v1/models")).json()).data.map((model) => model.id);
}

/** The transcript as a Blob, as the API would have answered in that format. */
export async function exported(transcript, format, cues = {}) {
  const { language, duration, segments, warnings } = transcript;
  const body = JSON.stringify({ response_format: format, language, duration, segments, warnings, ...cues });
  const answer = await ask("v1/audio/transcriptions/export", {
    method: "POST", body, headers: { "Content-Type": "application/json" },
  });
  return answer.blob();
}

function fields(options) {
  const list = [["stream", "true"], ["include[]", "progress"], ["response_format", "verbose_json"]];
  list.push(["timestamp_granularities[]", "word"]);
  if (options.model) list.push(["model", options.model]);
  if (options.language) list.push(["language", options.language]);
  for (const word of options.keywords) list.push(["keywords[]", word]);
  return list;
}

export function curl(file, options) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const form = fields(options).map(([name, value]) => `-F ${quoted(`${name}=${value}`)}`);
  const bearer = key ? ["-H 'Authorization: Bearer KEY'"] : [];
  const url = new URL("v1/audio/transcriptions", document.baseURI);
  return ["curl -N", ...bearer, `-F ${quoted(`file=@${file.name}`)}`, ...form, quoted(url.href)].join(" ");
}

/** Transcribe a file. `watch` has sent(share), progress(event), text(delta) and segment(segment). */
export function transcribe(file, options, watch, signal) {
  return (options.transport === "websocket" ? bySocket : byHttp)(file, options, watch, signal);
}

// XMLHttpRequest, since fetch does not tell how much of an upload has been sent.
function byHttp(file, options, watch, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("file", file);
    for (const [name, value] of fields(options)) form.append(name, value);
    let taken = 0;
    const take = () => {
      const text = request.responseText;
      for (let end; (end = text.indexOf("\n\n", taken)) >= 0; taken = end + 2) {
        const lines = text.slice(taken, end).split("\n");
        const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
        if (data) event(JSON.parse(data));
      }
    };
    const event = (message) => {
      if (message.error) return reject(new ServerError(message.error.message, message.error.code));
      note("event", message);
      if (message.type === "transcript.progress") watch.progress(message);
      else if (message.type === "transcript.text.delta") watch.text(message.delta);
      else if (message.type === "transcript.text.done") resolve(message.content);
    };
    request.upload.onprogress = (e) => watch.sent(e.lengthComputable ? e.loaded / e.total : 0);
    request.upload.onload = () => watch.sent(1);
    request.onprogress = () => request.status === 200 && take();
    request.onload = () => {
      if (request.status !== 200) return reject(failure(request.responseText, request.status));
      take();
      reject(new ServerError("The answer broke off.", "unreachable"));
    };
    request.onerror = () => reject(new ServerError("The server cannot be reached, or the connection broke.", "unreachable"));
    request.onabort = () => reject(new Cancelled());
    signal.addEventListener("abort", () => request.abort());
    request.open("POST", "v1/audio/transcriptions");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    note("POST v1/audio/transcriptions", { file: file.name, bytes: file.size });
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

/** What comes over a socket, to its end: the transcript. `watch` has segment(segment), and partial(words) where those come. */
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
        const { language, final_duration_processed_seconds: duration, warnings } = message;
        // Segments may have been edited meanwhile.
        resolve({ text: textOf(segments), language, duration, segments, warnings });
      }
    });
    socket.addEventListener("close", (e) => reject(closeError(e.code)));
  });
}

function closeError(code) {
  return new ServerError(code === 1006 ? "The server cannot be reached, or the connection broke." : `The server closed the connection (${code}).`, "unreachable");
}

function bySocket(file, options, watch, signal) {
  return new Promise((resolve, reject) => {
    const { model, language, keywords } = options;
    const socket = openSocket({ model, language, keywords });
    socket.addEventListener("open", () => send(socket, file, watch, signal).catch((error) => {
      reject(new ServerError(`The file cannot be read: ${error.message}`, "file"));
      socket.close();
    }));
    const segment = (heard) => {
      watch.segment(heard);
      watch.progress({ audio_s: heard.end });
    };
    transcriptOf(socket, { segment }).then(resolve, reject);
    signal.addEventListener("abort", () => {
      socket.close();
      reject(new Cancelled());
    });
  });
}

async function send(socket, file, watch, signal) {
  for (let start = 0; start < file.size; start += PIECE_BYTES) {
    const piece = await file.slice(start, start + PIECE_BYTES).arrayBuffer();
    const isWanted = () => !signal.aborted && socket.readyState === WebSocket.OPEN;
    while (isWanted() && socket.bufferedAmount > BYTES_AHEAD) await new Promise((go) => setTimeout(go, 20));
    if (!isWanted()) return;
    socket.send(piece);
    watch.sent(Math.min(1, (start + PIECE_BYTES) / file.size));
  }
  socket.send("END");
}
