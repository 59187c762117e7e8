// Plays the recording, draws its waveform and segments, and handles the keys for playback.

const STEP_S = 5;
const MAX_DRAWN_S = 20 * 60; // A longer recording would take gigabytes once decoded: only its segments are drawn.
const MAX_DRAWN_BYTES = 300e6;
const PEAKS_RATE = 8000; // Hz.

export class Player {
  /** `at(seconds)` is called whenever the position changes. */
  constructor(video, canvas, at) {
    this.video = video;
    this.canvas = canvas;
    this.at = at;
    this.segments = [];
    this.urls = []; // Of the recording, then of its captions.
    video.addEventListener("play", () => this.follow());
    for (const event of ["seeked", "pause", "loadedmetadata"]) video.addEventListener(event, () => this.moved());
    canvas.addEventListener("click", (e) => this.seek((e.offsetX / canvas.clientWidth) * this.duration));
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Without a `file` (null) the player is hidden. */
  async show(file, segments, duration) {
    for (const url of this.urls.splice(0)) URL.revokeObjectURL(url);
    this.peaks = null;
    this.segments = segments;
    this.length = duration;
    this.video.hidden = this.canvas.hidden = !file;
    this.video.replaceChildren();
    if (!file) {
      this.video.removeAttribute("src");
      return this.video.load();
    }
    this.video.classList.toggle("sound", !file.type.startsWith("video/"));
    this.video.src = this.url(file);
    this.draw();
    if (duration > MAX_DRAWN_S || file.size > MAX_DRAWN_BYTES) return;
    const peaks = await peaksOf(file).catch(() => null);
    if (this.segments !== segments) return;
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
    return Number.isFinite(this.video.duration) ? this.video.duration : this.length;
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
    const [mark, wave, accent] = ["--mark", "--wave", "--accent"].map((name) => style.getPropertyValue(name));
    const x = (seconds) => (seconds / this.duration) * width;
    context.clearRect(0, 0, width, height);
    context.fillStyle = mark;
    for (const { start, end } of this.segments) context.fillRect(x(start), 0, Math.max(1, x(end) - x(start) - scale), height);
    context.fillStyle = wave;
    for (let column = 0; this.peaks && column < width; column += 2 * scale) {
      const peak = this.peaks[Math.floor((column / width) * this.peaks.length)] * height;
      context.fillRect(column, (height - peak) / 2, scale, Math.max(scale, peak));
    }
    context.fillStyle = accent;
    context.fillRect(x(this.video.currentTime) - scale, 0, 2 * scale, height);
  }
}

async function peaksOf(file) {
  const context = new OfflineAudioContext(1, 1, PEAKS_RATE);
  const samples = (await context.decodeAudioData(await file.arrayBuffer())).getChannelData(0);
  const count = Math.min(4000, samples.length), step = samples.length / count;
  const peaks = new Float32Array(count);
  for (let i = 0; i < count; i += 1) {
    for (let n = Math.floor(i * step); n < (i + 1) * step; n += 1) peaks[i] = Math.max(peaks[i], Math.abs(samples[n]));
  }
  const max = Math.max(...peaks) || 1;
  return peaks.map((peak) => peak / max);
}
