// Live speech: sends the microphone's audio to the server, and receives words, first partial and then final.

import { textOf } from "./format.js";
import { Cancelled, ServerError, openSocket, transcriptOf } from "./server.js";

const MAX_BUFFERED_BYTES = 4 << 20; // With more unsent audio the connection counts as lost.

/** `watch` has segment(segment), partial(words) and level(share). Resolves with the transcript and the recording once stopped. */
export class LiveSession {
  constructor(options, watch) {
    this.options = options;
    this.watch = watch;
    this.segments = [];
    this.early = []; // Audio recorded before the connection is open.
    this.isStopped = false;
  }

  async start() {
    try {
      return await this.run();
    } finally {
      this.release();
      this.socket?.close();
    }
  }

  async run() {
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    } catch (error) {
      throw new ServerError(`The microphone cannot be used: ${error.message}.`, "microphone");
    }
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule(new URL("microphone-worklet.js", import.meta.url));
    if (this.isStopped) throw new Cancelled();
    const { model, language, keywords } = this.options;
    const { sampleRate: sample_rate } = this.context;
    this.socket = openSocket({ encoding: "pcm_s16le", sample_rate, interim_results: true, model, language, keywords });
    this.socket.addEventListener("open", () => this.opened());
    const segment = (received) => {
      this.segments.push(received);
      this.watch.segment(received);
    };
    const done = transcriptOf(this.socket, { segment, partial: (words) => this.watch.partial(words) });
    done.catch(() => {}); // It may reject while the next lines run, before the caller awaits it.
    this.stream.getTracks()[0].onended = () => this.stop();
    const node = new AudioWorkletNode(this.context, "microphone");
    node.port.onmessage = ({ data: { block, level } }) => this.send(block, level);
    this.context.createMediaStreamSource(this.stream).connect(node);
    this.record();
    return done;
  }

  record() {
    const chunks = [];
    this.recorder = new MediaRecorder(this.stream);
    this.recorder.ondataavailable = (e) => chunks.push(e.data);
    this.recording = new Promise((resolve) => {
      this.recorder.onstop = () => resolve(new File(chunks, "microphone.webm", { type: this.recorder.mimeType }));
    });
    this.recorder.start(1000);
  }

  send(block, level) {
    this.watch.level(level);
    if (this.isStopped) return;
    if (this.socket.readyState === WebSocket.CONNECTING) this.early.push(block);
    else if (this.socket.bufferedAmount > MAX_BUFFERED_BYTES) this.socket.close();
    else if (this.socket.readyState === WebSocket.OPEN) this.socket.send(block);
  }

  opened() {
    for (const block of this.early.splice(0)) this.socket.send(block);
    if (this.isStopped) this.socket.send("END");
  }

  /** Stop recording; the audio so far is still transcribed. A second call closes the connection without waiting for that. */
  stop() {
    if (this.isStopped) return this.socket?.close();
    this.isStopped = true;
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send("END");
    this.release();
  }

  release() {
    if (this.recorder && this.recorder.state !== "inactive") this.recorder.stop();
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    if (this.context && this.context.state !== "closed") this.context.close();
  }
}

/** The words of a session on the page, and the level of its microphone: what a LiveSession calls. */
export class LiveText {
  constructor(element, meter) {
    Object.assign(this, { element, meter, isFollowing: true, partialText: document.createElement("span") });
    this.partialText.className = "partial";
    element.replaceChildren(this.partialText);
    element.onscroll = () => (this.isFollowing = element.scrollHeight - element.scrollTop - element.clientHeight < 30);
  }

  segment(segment) {
    this.element.querySelector(".final")?.remove();
    this.partialText.replaceChildren();
    this.partialText.before(`${segment.text} `);
    this.follow();
  }

  partial(words) {
    const final = document.createElement("span");
    final.className = "final";
    final.textContent = words.filter((word) => word.is_final).map((word) => `${word.word} `).join("");
    this.partialText.replaceChildren(words.filter((word) => !word.is_final).map((word) => word.word).join(" "));
    this.element.querySelector(".final")?.remove();
    this.partialText.before(final);
    this.follow();
  }

  level(share) {
    this.meter.value = share;
  }

  follow() {
    if (this.isFollowing) this.element.scrollTop = this.element.scrollHeight;
  }
}

/** The transcript of a session whose connection was lost. */
export function incomplete(segments) {
  const warnings = ["The connection was lost: the end is missing."];
  return { text: textOf(segments), language: "unknown", duration: segments.at(-1).end, segments, warnings };
}
