// Connects the parts of the page: files go to the queue, live speech to a session, and their results to the transcript and its player.

import * as debug from "./debug.js";
import { isBackground } from "./background.js";
import { offerDownloads } from "./downloads.js";
import { button } from "./elements.js";
import { clock, textOf } from "./format.js";
import { Earlier } from "./history.js";
import { resultOf } from "./job_requests.js";
import { JobList } from "./jobs.js";
import { LiveSession, LiveText, incomplete } from "./live.js";
import { Models } from "./models.js";
import { offerSpeakers, options } from "./options.js";
import { Player } from "./player.js";
import { Queue } from "./queue.js";
import { Cancelled, exported, hasKey, models, useKey } from "./server.js";
import { Voices, turnsOf } from "./speakers.js";
import { TranscriptView } from "./transcript.js";
import { VoiceList } from "./voice_list.js";

const IN_PROGRESS = { running: "in progress", waiting: "in progress" };

const $ = (id) => document.getElementById(id);
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
let shown = null; // { name, file, transcript, entry, job }, or { job } without a transcript yet: one of the queue or of the server.
let isLive = false;

const view = new TranscriptView($("segments"), { play: (seconds) => player.play(seconds), changed: edited });
const player = new Player($("player"), $("waveform"), (seconds) => {
  const row = view.at(seconds);
  if (row && !player.video.paused) row.scrollIntoView({ block: "nearest", behavior: reducedMotion.matches ? "auto" : "smooth" });
});
const voiceList = new VoiceList($("voices"), { filtered: (voices) => view.filter(voices), renamed });
const queue = new Queue($("queue"), {
  partial: (job) => job === shown?.job && showPartial(job),
  shown: (job) => showJob(job),
  retried: (job, again) => job === shown?.job && showJob(again),
  finished: (job) => {
    job.entry = { name: job.name, at: Date.now(), transcript: job.transcript };
    if (!shown || shown.job === job) showJob(job);
    earlier.keep(job.entry);
  },
  sent: (job, body) => {
    const made = jobs.add(body, job.file);
    if (!shown || shown.job === job) openJob(made);
    if (job.row.item.contains(document.activeElement)) made.row.name.focus();
  },
  failed: (job, error) => error.code === "invalid_api_key" && askForKey(),
});
const jobs = new JobList($("jobs"), $("older-jobs"), $("jobs-news"), {
  offered: offerJobs,
  isOpen: (job) => job === shown?.job,
  shown: async (job) => {
    await openJob(job);
    const { top, bottom } = $("result").getBoundingClientRect();
    if (top > innerHeight / 2 || bottom < 100) $("result").scrollIntoView();
  },
  changed: (job) => job === shown?.job && (job.state === "completed" ? openJob(job) : showPartial(job)),
  restarted: (job) => job === shown?.job && showJob(job),
  removed: (job) => {
    if (job !== shown?.job || job.transcript) return;
    shown = null;
    if (!isLive) openPanel("welcome");
  },
  attempt,
});
const earlier = new Earlier($("history"), {
  shown: (entry) => !isLive && showTranscript({ ...entry, file: null, entry }),
  failed: () => notify("This transcript could not be saved in this browser."),
});

const chosenModel = new Models($("model"), $("about"), $("server-state"), {
  isNeeded: () => queue.running > 0 || isLive || jobs.pending.length > 0,
  chosen: ({ diarizers }) => offerSpeakers(diarizers?.length > 0),
});

function add(files) {
  const which = jobs.isOffered ? $("background").value : "none";
  const added = [...files].map((file) => queue.add(file, {
    ...options(), isBackground: () => isBackground(file, which), requestId: [...crypto.getRandomValues(new Uint8Array(16))].join("-"),
  }));
  chosenModel.watch();
  if (added.length && !isLive) showJob(added[0]);
}

function offerJobs(isOffered) {
  $("background-choice").hidden = !isOffered;
  $("jobs-without-key").hidden = hasKey();
  $("storage").textContent = isOffered ? "The server stores it only for files sent in the background." : "The server does not store it.";
}

function openPanel(panel) {
  for (const name of ["welcome", "live", "transcript"]) $(name).hidden = name !== panel;
}

function showJob(job) {
  if (isLive) return;
  if (job.transcript) return showTranscript({ name: job.name, file: job.file, transcript: job.transcript, entry: job.entry, job });
  shown = { job };
  openPanel("transcript");
  player.show(null);
  view.show([]);
  $("segments").classList.toggle("fixed", "body" in job); // The transcript takes the place of what events tell of a job.
  $("warnings").hidden = $("tools").hidden = $("full").hidden = $("voices").hidden = true;
  showPartial(job);
}

/** Show a job of the server, and its transcript once there is one. */
async function openJob(job) {
  if (isLive) return;
  if (job === shown?.job && !job.transcript) showPartial(job);
  else showJob(job);
  jobs.schedule();
  if (job.state !== "completed" || job.transcript) return;
  await attempt(async () => {
    const kept = earlier.ofJob(job.id);
    const entry = kept ?? { name: job.name, at: 1000 * job.body.ended_at, transcript: await resultOf(job.id), job: job.id };
    if (job.transcript) return;
    job.transcript = entry.transcript;
    job.entry = entry;
    if (shown?.job === job) showJob(job);
    if (!kept) earlier.keep(entry);
  });
}

function showPartial(job) {
  $("facts").textContent = `${job.name}: ${IN_PROGRESS[job.state] ?? job.state}`;
  $("warnings").hidden = !job.body?.error;
  $("warnings").textContent = job.body?.error?.message ?? "";
  if (job.segments.length) {
    for (const segment of job.segments.slice(view.segments.length)) view.append(segment);
  } else {
    const text = document.createElement("li");
    text.textContent = job.text;
    $("segments").replaceChildren(text);
  }
}

async function showTranscript(next) {
  shown = next;
  const { transcript, file, name } = next;
  openPanel("transcript");
  const words = transcript.segments.reduce((sum, segment) => sum + (segment.words?.length ?? 0), 0);
  const took = next.job?.times ? [`first text after ${next.job.times.firstSegment?.toFixed(1) ?? "-"} s`, `complete after ${next.job.times.total.toFixed(1)} s`] : [];
  const facts = [name, clock(transcript.duration), `${transcript.segments.length} segments`, `${words} words`, transcript.language, ...took];
  $("facts").textContent = facts.join(" · ");
  $("tools").hidden = $("full").hidden = false;
  $("full-text").textContent = turnsOf(transcript);
  $("warnings").hidden = !transcript.warnings?.length;
  $("warnings").textContent = transcript.warnings?.join(" ") ?? "";
  $("search").value = $("found").textContent = "";
  const voices = new Voices(transcript.names);
  voiceList.show(transcript, voices);
  view.show(transcript.segments, voices);
  $("segments").classList.remove("fixed");
  player.show(file, transcript, voices);
  if (file) await caption(next);
}

async function caption(of) {
  const vtt = await exported(of.transcript, "vtt").catch(() => null);
  if (vtt && shown === of) player.caption(vtt);
}

function edited() {
  if (!shown.transcript) return; // The file is still in progress; its segments keep the edit.
  const { transcript, entry, file } = shown;
  transcript.text = textOf(transcript.segments);
  $("full-text").textContent = turnsOf(transcript);
  if (entry.id !== undefined) earlier.keep(entry);
  if (file) caption(shown);
}

function renamed() {
  view.nameVoices();
  edited();
}

async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    if (error instanceof Cancelled) return;
    debug.note(`failed: ${error.message}`);
    if (error.code === "invalid_api_key") askForKey();
    notify([error.message, error.advice].filter(Boolean).join(" "));
  }
}

function notify(text) {
  const line = document.createElement("p");
  const close = button("", "Close");
  close.onclick = () => line.remove();
  line.append(text, close);
  $("notice").replaceChildren(line);
}

function askForKey() {
  const dialog = $("key-dialog");
  if (dialog.open) return;
  dialog.returnValue = "";
  dialog.showModal();
}

async function connect() {
  const call = (connect.latest = {});
  clearTimeout(connect.retry);
  try {
    const found = await models();
    if (connect.latest !== call) return;
    chosenModel.show(found, localStorage.getItem("model"));
  } catch (error) {
    if (connect.latest !== call) return;
    $("server-state").textContent = error.code === "invalid_api_key" ? "API key required" : error.message;
    if (error.code === "invalid_api_key") askForKey();
    else connect.retry = setTimeout(connect, 5000);
  }
}

async function live() {
  const session = new LiveSession(options(), new LiveText($("live-text"), $("level")));
  isLive = $("record").disabled = true;
  player.video.pause();
  openPanel("live");
  chosenModel.watch();
  const began = performance.now();
  const timer = setInterval(() => ($("elapsed").textContent = clock((performance.now() - began) / 1000)), 250);
  $("stop").onclick = () => session.stop();
  $("stop").focus();
  let transcript = await attempt(() => session.start());
  clearInterval(timer);
  const file = await session.recording;
  isLive = $("record").disabled = false;
  transcript ??= session.segments.length ? incomplete(session.segments) : null;
  if (!transcript) return openPanel(shown ? "transcript" : "welcome");
  const name = `Microphone, ${new Date().toLocaleString()}`;
  const entry = { name, at: Date.now(), transcript };
  showTranscript({ name, file, transcript, entry });
  earlier.keep(entry);
}

$("choose").onclick = () => $("files").click();
$("files").onchange = () => {
  add($("files").files);
  $("files").value = "";
};
$("record").onclick = live;
$("key-button").onclick = askForKey;
$("key-dialog").onclose = () => {
  const chosen = $("key-dialog").returnValue, value = $("key").value.trim();
  $("key").value = "";
  if (!chosen) return;
  useKey(chosen === "ok" ? value : "", $("keep-key").checked);
  if (chosen === "ok") connect();
  jobs.load();
};
$("debug-toggle").onchange = () => debug.show($("debug-toggle").checked);
$("model").onchange = () => localStorage.setItem("model", $("model").value);
$("background").value = localStorage.getItem("background") ?? "long";
$("background").onchange = () => localStorage.setItem("background", $("background").value);
$("forget-all").onclick = () => earlier.forgetAll();
$("copy").onclick = () => attempt(async () => {
  await navigator.clipboard.writeText(turnsOf(shown.transcript));
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 2000);
});
$("search").oninput = () => {
  const found = view.search($("search").value);
  $("found").textContent = $("search").value.trim() ? `${found.length} found` : "";
};
offerDownloads($("downloads"), () => shown, attempt);

addEventListener("dragover", (e) => {
  e.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", (e) => e.relatedTarget ?? $("drop").classList.remove("over"));
addEventListener("drop", (e) => {
  e.preventDefault();
  $("drop").classList.remove("over");
  add(e.dataTransfer.files);
});
addEventListener("paste", (e) => e.clipboardData.files.length && add(e.clipboardData.files));
addEventListener("keydown", (e) => {
  const isUsed = e.target.closest("input, select, textarea, button, summary, a, video, dialog, [tabindex='0']");
  if (!isUsed && !e.ctrlKey && !e.metaKey && !e.altKey && player.key(e.key)) e.preventDefault();
});

addEventListener("beforeunload", (e) => queue.sending && e.preventDefault());

connect();
jobs.load();
