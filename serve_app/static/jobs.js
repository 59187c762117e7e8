// The list of this key's jobs, which the server works on whether or not a page is open. It is kept up to date in two ways: the open job and
// some running ones are followed by their events, the others are asked for again and again.

import { fileRow } from "./elements.js";
import { age, clock } from "./format.js";
import { cancelOrRemove, findJob, follow, jobsBefore } from "./job_requests.js";
import { Cancelled } from "./server.js";

const MAX_FOLLOWED = 2; // A browser opens six connections to a server over HTTP/1.1, in all its tabs; uploads need some.
const MAX_POSITIONS = 5; // Jobs whose place in the server's queue is asked for, one request each.
const POLL_MS = 3000;
const MIN_PAUSE_MS = 500, MAX_PAUSE_MS = 15_000; // Before a lost connection is opened again.
const AGES_MS = 30_000;
const DAY = { day: "numeric", month: "short" };

export class JobList {
  /** `view` has offered(isOffered), isOpen(job), shown(job), changed(job), restarted(job), removed(job), and attempt(action), which shows errors. */
  constructor(list, older, news, view) {
    Object.assign(this, { list, older, news, view, jobs: new Map() });
    older.onclick = () => view.attempt(() => this.showOlder());
    document.addEventListener("visibilitychange", () => (document.hidden ? this.schedule() : this.isOffered && this.refresh()));
    setInterval(() => document.hidden || [...this.jobs.values()].forEach(draw), AGES_MS);
  }

  get pending() {
    return [...this.jobs.values()].filter((job) => !isEnded(job));
  }

  /** Show the jobs of the present key, if the server has jobs. */
  load() {
    for (const job of [...this.jobs.values()]) this.drop(job);
    this.isOffered = this.next = undefined;
    this.isFailing = false;
    return this.refresh();
  }

  async refresh() {
    const call = (this.latest = {});
    clearTimeout(this.timer);
    try {
      const page = await jobsBefore();
      const queued = page.data.filter((body) => body.state === "queued").slice(-MAX_POSITIONS);
      const bodies = [...page.data, ...(await Promise.all(queued.map((body) => findJob(body.id).catch(() => body))))];
      if (this.latest !== call) return;
      this.offer(true);
      this.isFailing = false;
      this.take(page);
      for (const body of bodies) this.put(body);
      this.schedule();
    } catch (error) {
      if (this.latest !== call) return;
      const wasOffered = this.isOffered === true;
      if (error.status === 404 || error.status === 401) this.stop(error.status === 401 && wasOffered);
      else this.timer = setTimeout(() => this.refresh(), POLL_MS);
      // The first failure is shown, not its repetitions. At first the page asks for a key by itself.
      const isExpected = error.status === 404 || (error.status === 401 && !wasOffered);
      if (!isExpected && !this.isFailing) this.view.attempt(() => Promise.reject(error));
      this.isFailing = true;
    }
  }

  offer(isOffered) {
    if (isOffered !== this.isOffered) this.view.offered((this.isOffered = isOffered));
  }

  /** No more requests until `load`. */
  stop(isOffered) {
    clearTimeout(this.timer);
    for (const job of this.jobs.values()) unfollow(job);
    this.offer(isOffered);
  }

  /** Forget the jobs that are not on the newest page though they would have to be, as they have been removed or have expired. */
  take({ data, has_more: hasMore, next }) {
    const known = new Set(data.map(({ id }) => id));
    const isGone = (job) => !known.has(job.id) && (!hasMore || job.body.created_at > data.at(-1).created_at);
    for (const job of [...this.jobs.values()].filter(isGone)) this.drop(job);
    if (this.next === undefined) this.setNext(next);
  }

  setNext(next) {
    this.next = next;
    this.older.hidden = next === null;
  }

  async showOlder() {
    const { data, next } = await jobsBefore(this.next);
    const added = data.map((body) => this.put(body));
    this.setNext(next);
    added[0]?.row.name.focus();
  }

  /** Add the job that was made of a file. */
  add(body, file) {
    const job = this.put(body);
    job.file = file;
    this.expect();
    return job;
  }

  /** The answer to a request in progress does not have the newest change. */
  expect() {
    this.latest = {};
    this.schedule();
  }

  /** Add a job, or take over what is new of it. */
  put(body) {
    const known = this.jobs.get(body.id);
    if (known) {
      this.update(known, body);
      return known;
    }
    const name = body.filename || body.id;
    const job = { id: body.id, name, file: null, body, state: body.state, text: "", segments: [], lastEventId: "", row: fileRow(name) };
    job.row.name.onclick = () => this.view.shown(job);
    job.row.action.onclick = () => this.act(job);
    const after = [...this.jobs.values()].filter((other) => other.body.created_at < body.created_at);
    const newest = after.reduce((a, b) => (a && a.body.created_at > b.body.created_at ? a : b), null);
    this.jobs.set(job.id, job);
    this.list.insertBefore(job.row.item, newest?.row.item ?? null);
    this.list.closest("section").hidden = false;
    draw(job);
    return job;
  }

  update(job, body) {
    // An answer that was on its way for longer may be older than an event.
    if (isEnded(job) && !isEnded(body)) return;
    const hasChanged = body.state !== job.state;
    const position = body.queue_position ?? job.body.queue_position; // Lists and events leave it out.
    job.body = { ...body, queue_position: position };
    job.state = body.state;
    draw(job);
    if (hasChanged) {
      this.news.textContent = `${job.name}: ${job.state}`;
      if (isEnded(job)) unfollow(job);
      this.schedule();
    }
    if (hasChanged || !isEnded(job)) this.view.changed(job);
  }

  drop(job) {
    unfollow(job);
    this.jobs.delete(job.id);
    const next = job.row.item.nextElementSibling ?? job.row.item.previousElementSibling;
    // Else the focus is lost with the button that has it.
    if (job.row.item.contains(document.activeElement)) next?.querySelector(".name").focus();
    job.row.item.remove();
    this.list.closest("section").hidden = !this.jobs.size;
    this.view.removed(job);
  }

  /** The job's button: cancel or remove. */
  async act(job) {
    // A second click would remove what the first one has cancelled.
    if (job.isBusy) return;
    job.isBusy = true;
    await this.view.attempt(async () => {
      const body = await cancelOrRemove(job.id).catch((error) => {
        if (error.status !== 404) throw error;
        return null;
      });
      if (body) this.update(job, body);
      else this.drop(job);
      this.expect();
    });
    job.isBusy = false;
  }

  /** Follow the jobs that are to be followed now, and ask for the others after a while. */
  schedule() {
    const { pending } = this, isOpen = (job) => this.view.isOpen(job);
    const wanted = [...pending.filter(isOpen), ...pending.filter((job) => !isOpen(job) && job.state === "running")];
    const followed = new Set(document.hidden ? [] : wanted.slice(0, MAX_FOLLOWED));
    for (const job of pending) followed.has(job) ? this.follow(job) : unfollow(job);
    clearTimeout(this.timer);
    const isAsked = !document.hidden && pending.some((job) => job.state === "queued" || !followed.has(job));
    if (isAsked) this.timer = setTimeout(() => this.refresh(), POLL_MS);
  }

  async follow(job) {
    if (job.following) return;
    const { signal } = (job.following = new AbortController());
    let pauseMs = MIN_PAUSE_MS;
    const handle = (event) => {
      pauseMs = MIN_PAUSE_MS;
      if (!signal.aborted) this.handle(job, event);
    };
    while (!signal.aborted) {
      try {
        await follow(job.id, job.lastEventId, handle, signal);
      } catch (error) {
        if (error instanceof Cancelled) return;
        if (error.status === 404) return this.drop(job);
        if (error.status === 401) return this.refresh();
        job.isLost = true;
        draw(job);
      }
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
      pauseMs = Math.min(2 * pauseMs, MAX_PAUSE_MS);
    }
  }

  handle(job, { event, id, data }) {
    job.lastEventId = id;
    job.isLost = false;
    if (event === "segment") {
      job.segments.push(data);
      this.view.changed(job);
    } else if (event === "restart") {
      job.segments = [];
      this.view.restarted(job);
    } else {
      this.update(job, data);
    }
  }
}

function unfollow(job) {
  job.following?.abort();
  job.following = null;
}

function isEnded({ state }) {
  return state !== "queued" && state !== "running";
}

function draw({ name, body, row, isLost }) {
  const { state, done_s: done, audio_s: audio, queue_position: position } = body;
  row.item.className = state;
  row.progress.hidden = state !== "running";
  if (audio) row.progress.value = done / audio;
  else row.progress.removeAttribute("value");
  row.action.textContent = isEnded(body) ? "Remove" : "Cancel";
  row.action.setAttribute("aria-label", `${row.action.textContent}: ${name}`);
  const details = {
    queued: position ? `queued, place ${position}` : "queued",
    running: `running, ${clock(done)}${audio ? ` of ${clock(audio)}` : ""}${isLost ? ", connection lost" : ""}`,
    completed: `completed, ${clock(audio ?? done)}`,
    failed: `failed: ${body.error?.message}`,
  };
  const kept = body.expires_at ? [`kept until ${new Date(1000 * body.expires_at).toLocaleDateString([], DAY)}`] : [];
  row.state.textContent = [details[state] ?? state, age(Date.now() / 1000 - body.created_at), ...kept].join(" · ");
}
