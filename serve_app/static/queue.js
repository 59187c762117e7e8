// The queue of files: two at a time are transcribed or sent as jobs, in the order in which they were added. Shows the state of each.

import { Cancelled, createJob, curl, transcribe } from "./server.js";
import { note, showCurl } from "./debug.js";
import { fileRow } from "./elements.js";
import { clock, speed } from "./format.js";
import { labelOf, voiceOf } from "./speakers.js";

const MAX_PARALLEL = 2;

export class Queue {
  /** `view` has partial(job), shown(job), retried(job, again), finished(job), sent(job, made) and failed(job, error). */
  constructor(list, view) {
    this.list = list;
    this.view = view;
    this.waiting = [];
    this.running = 0;
    this.sending = 0; // Files that become jobs once they are sent.
  }

  /** `options.isBackground()` resolves with whether the file is to be sent as a job, which the server goes on with by itself. */
  add(file, options) {
    const job = { name: file.name, file, options, abort: new AbortController(), text: "", segments: [], row: fileRow(file.name) };
    job.row.state.setAttribute("role", "status");
    job.row.action.onclick = () => this.act(job);
    job.row.name.onclick = () => this.view.shown(job);
    this.list.append(job.row.item);
    this.list.closest("section").hidden = false;
    this.waiting.push(job);
    this.setState(job, "waiting");
    this.next();
    return job;
  }

  /** The job's button: cancel, remove or try again. */
  act(job) {
    if (job.state === "running" || job.state === "waiting") {
      job.abort.abort();
      this.waiting = this.waiting.filter((other) => other !== job);
      if (job.state === "waiting") this.end(job, "cancelled");
    } else if (job.state === "done") {
      job.row.item.remove();
    } else {
      job.row.item.remove();
      this.view.retried(job, this.add(job.file, job.options));
    }
  }

  setState(job, state, text = state) {
    job.state = state;
    job.row.item.className = state;
    job.row.state.textContent = text;
    job.row.progress.hidden = state !== "running";
    job.row.action.textContent = { running: "Cancel", waiting: "Cancel", done: "Remove" }[state] ?? "Try again";
    job.row.action.setAttribute("aria-label", `${job.row.action.textContent}: ${job.name}`);
  }

  end(job, state, text) {
    this.setState(job, state, text);
    this.view.partial(job);
  }

  next() {
    while (this.running < MAX_PARALLEL && this.waiting.length) {
      this.running += 1;
      this.run(this.waiting.shift()).finally(() => {
        this.running -= 1;
        this.next();
      });
    }
  }

  async run(job) {
    this.setState(job, "running", "sending");
    job.isBackground = await job.options.isBackground();
    if (job.abort.signal.aborted) return this.end(job, "cancelled");
    showCurl(curl(job.file, job.options, job.isBackground));
    try {
      await (job.isBackground ? this.send(job) : this.transcribe(job));
    } catch (error) {
      if (error instanceof Cancelled) return this.end(job, "cancelled");
      note(`${job.name} failed: ${error.message}`);
      this.end(job, "failed", [error.message, error.advice].filter(Boolean).join(" "));
      this.view.failed(job, error);
    }
  }

  async send(job) {
    const sent = (share) => {
      job.row.progress.value = share;
      job.row.state.textContent = share < 1 ? sending(share) : "sent, the server looks at it";
    };
    this.sending += 1;
    const made = await createJob(job.file, job.options, sent, job.abort.signal).finally(() => (this.sending -= 1));
    job.state = "sent";
    this.view.sent(job, made);
    job.row.item.remove();
    this.list.closest("section").hidden = !this.list.children.length;
  }

  async transcribe(job) {
    const began = performance.now();
    const times = (job.times = {}); // Seconds since the start.
    const elapsed = () => (performance.now() - began) / 1000;
    const watch = {
      sent: (share) => {
        if (share >= 1) times.upload ??= elapsed();
        if (times.answered) return;
        job.row.progress.value = share / 2;
        job.row.state.textContent = share < 1 ? sending(share) : "sent, waiting for the server";
      },
      progress: ({ audio_s: audio, total_s: total, windows_done: done, windows_planned: planned }) => {
        times.answered ??= elapsed();
        if (total) job.row.progress.value = 0.5 + audio / total / 2;
        else job.row.progress.removeAttribute("value");
        const seconds = elapsed() - Math.min(times.upload ?? 0, times.answered);
        const windows = planned ? `, ${done} of ${planned} windows` : "";
        job.row.state.textContent = `${clock(audio)}${total ? ` of ${clock(total)}` : ""}${windows}, ${speed(audio, seconds)}`;
      },
      text: (event) => {
        times.firstSegment ??= elapsed();
        const voice = voiceOf(event);
        if (voice === (job.voice ?? null)) job.text += event.delta;
        else job.text += `${job.text && "\n"}${labelOf(voice)}${event.delta.trim()}`;
        job.voice = voice;
        this.view.partial(job);
      },
      segment: (segment) => {
        times.firstSegment ??= elapsed();
        job.segments.push(segment);
        this.view.partial(job);
      },
    };
    job.transcript = await transcribe(job.file, job.options, watch, job.abort.signal);
    times.total = elapsed();
    this.setState(job, "done", `${clock(job.transcript.duration)} in ${times.total.toFixed(1)} s, ${speed(job.transcript.duration, times.total)}`);
    note(`timings of ${job.name} (s)`, Object.fromEntries(Object.entries(times).map(([name, value]) => [name, +value.toFixed(3)])));
    this.view.finished(job);
  }
}

function sending(share) {
  return `sending, ${Math.floor(100 * share)} %`;
}
