// Plays the recording, draws its waveform and segments, and handles the keys for playback.

import { voiceOf } from "./speakers.js";

const STEP_S = 5;
const MAX_DRAWN_S = 20 * 60; // A longer recording would take gigabytes once decoded: only its segments are drawn.
const MAX_DRAWN_BYTES = 300e6;
const PEAKS_RATE = 8000; // Hz.
const LANE_PX = 44; // Height of a channel's lane, at least.
const MARK_OPACITY = 0.3; // Of a segment in the colour of its voice.

export class Player {
  /** `at(seconds)` is called whenever the position changes. */
  constructor(video, canvas, at) {
    this.video = video;
    this.canvas = canvas;
    this.at = at;
    this.transcript = null;
    this.urls = []; // Of the recording, then of its captions.
    video.addEventListener("play", () => this.follow());
    for (const event of ["seeked", "pause", "loadedmetadata"]) video.addEventListener(event, () => this.moved());
    canvas.addEventListener("click", (e) => this.seek((e.offsetX / canvas.clientWidth) * this.duration));
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Without a `file` (null) the player is hidden. `voices`: the Voices of the transcript; each of its channels has a lane of the waveform. */
  async show(file, transcript = null, voices = null) {
    for (const url of this.urls.splice(0)) URL.revokeObjectURL(url);
    this.peaks = null;
    Object.assign(this, { transcript, voices, lanes: transcript?.channels?.length ? transcript.channels : [null] });
    this.canvas.style.height = this.lanes.length > 1 ? `${Math.max(72, LANE_PX * this.lanes.length)}px` : "";
    this.video.hidden = this.canvas.hidden = !file;
    this.video.replaceChildren();
    if (!file) {
      this.video.removeAttribute("src");
      return this.video.load();
    }
    this.video.classList.toggle("sound", !file.type.startsWith("video/"));
    this.video.src = this.url(file);
    this.draw();
    if (transcript.duration > MAX_DRAWN_S || file.size > MAX_DRAWN_BYTES) return;
    const peaks = await peaksOf(file, this.lanes).catch(() => null);
    if (this.transcript !== transcript) return;
    this.peaks = peaks;
    this.draw();
  }

  url(blob) {
    this.urls.push(URL.createObjectURL(blob));
    return this.urls.at(-1);
  }

  caption(vtt) {
    const track = document.createElement("track");
    for (const url of this.urls.splice(1)) URL.revokeObjectURL(url);
    Object.assign(track, { kind: "captions", label: "Transcript", src: this.url(vtt), default: true });
    this.video.replaceChildren(track);
  }

  get duration() {
    return Number.isFinite(this.video.duration) ? this.video.duration : this.transcript.duration;
  }

  seek(seconds) {
    this.video.currentTime = Math.min(Math.max(0, seconds), this.duration);
  }

  play(seconds) {
    if (this.video.hidden) return;
    this.seek(seconds);
    this.start();
  }

  start() {
    // play() rejects when it is paused at once, which is no error.
    this.video.play().catch(() => {});
  }

  /** Handle a key that no other element uses; returns whether it had an effect. */
  key(name) {
    if (!this.video.checkVisibility()) return false;
    if (name === " ") this.video.paused ? this.start() : this.video.pause();
    else if (name === "ArrowLeft") this.seek(this.video.currentTime - STEP_S);
    else if (name === "ArrowRight") this.seek(this.video.currentTime + STEP_S);
    else return false;
    return true;
  }

  follow() {
    this.moved();
    if (!this.video.paused) requestAnimationFrame(() => this.follow());
  }

  moved() {
    this.at(this.video.currentTime);
    this.draw();
  }

  draw() {
    const { canvas } = this;
    if (canvas.hidden || !canvas.clientWidth) return;
    const scale = devicePixelRatio, width = canvas.clientWidth * scale, height = canvas.clientHeight * scale;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const style = getComputedStyle(canvas), context = canvas.getContext("2d");
    const x = (seconds) => (seconds / this.duration) * width;
    context.clearRect(0, 0, width, height);
    this.lanes.forEach((channel, lane) => {
      context.save();
      context.translate(0, (lane * height) / this.lanes.length);
      this.drawLane(context, style, { channel, peaks: this.peaks?.[lane], x, width, height: height / this.lanes.length, scale });
      context.restore();
    });
    context.fillStyle = style.getPropertyValue("--accent");
    context.fillRect(x(this.video.currentTime) - scale, 0, 2 * scale, height);
  }

  drawLane(context, style, { channel, peaks, x, width, height, scale }) {
    for (const segment of this.transcript.segments) {
      const { start, end } = segment, voice = voiceOf(segment);
      if (channel !== null && segment.channel !== channel) continue;
      context.fillStyle = style.getPropertyValue(voice === null ? "--mark" : `--voice-${this.voices.colour(voice)}`);
      context.globalAlpha = voice === null ? 1 : MARK_OPACITY;
      context.fillRect(x(start), scale, Math.max(1, x(end) - x(start) - scale), height - 2 * scale);
    }
    context.globalAlpha = 1;
    context.fillStyle = style.getPropertyValue(channel === null ? "--wave" : `--voice-${this.voices.colour(channel)}`);
    for (let column = 0; peaks && column < width; column += 2 * scale) {
      const peak = peaks[Math.floor((column / width) * peaks.length)] * height;
      context.fillRect(column, (height - peak) / 2, scale, Math.max(scale, peak));
    }
    if (channel === null) return;
    context.font = `600 ${11 * scale}px ${style.fontFamily}`;
    context.fillText(this.voices.name(channel), 4 * scale, 13 * scale);
  }
}

/** The peaks of the channels, or for a single lane without a number those of the first one; relative to the highest of all. */
async function peaksOf(file, lanes) {
  const context = new OfflineAudioContext(1, 1, PEAKS_RATE);
  const audio = await context.decodeAudioData(await file.arrayBuffer());
  const found = lanes.map((channel) => peaksIn(audio.getChannelData(Math.min(channel ?? 0, audio.numberOfChannels - 1))));
  const max = Math.max(...found.map((peaks) => Math.max(...peaks))) || 1;
  return found.map((peaks) => peaks.map((peak) => peak / max));
}

function peaksIn(samples) {
  const count = Math.min(4000, samples.length), step = samples.length / count;
  const peaks = new Float32Array(count);
  for (let i = 0; i < count; i += 1) {
    for (let n = Math.floor(i * step); n < (i + 1) * step; n += 1) peaks[i] = Math.max(peaks[i], Math.abs(samples[n]));
  }
  return peaks;
}
