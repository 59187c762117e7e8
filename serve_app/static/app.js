// Connects the parts of the page: files go to the queue, live speech to a session, and their results to the transcript and its player.

import * as debug from "./debug.js";
import { button } from "./elements.js";
import { clock, textOf } from "./format.js";
import * as history from "./history.js";
import { LiveSession } from "./live.js";
import { Models } from "./models.js";
import { Player } from "./player.js";
import { Queue } from "./queue.js";
import { Cancelled, exported, models, useKey } from "./server.js";
import { TranscriptView } from "./transcript.js";

const FORMATS = { txt: "text", srt: "srt", vtt: "vtt", csv: "csv", tsv: "tsv", json: "verbose_json" };
const CUE_FIELDS = ["max_line_chars", "max_lines"];

const $ = (id) => document.getElementById(id);
let shown = null; // { name, file, transcript, entry }
let isLive = false;
const known = new Map(); // Stored transcripts by id, so that an edit changes the same object wherever it is shown.

const view = new TranscriptView($("segments"), { play: (seconds) => player.play(seconds), changed: edited });
const player = new Player($("player"), $("waveform"), (seconds) => {
  const row = view.at(seconds);
  if (row && !player.video.paused) row.scrollIntoView({ block: "nearest", behavior: prefersReducedMotion() ? "auto" : "smooth" });
});
const queue = new Queue($("queue"), {
  partial: (job) => job === shown?.job && showPartial(job),
  shown: (job) => showJob(job),
  retried: (job, again) => job === shown?.job && showJob(again),
  finished: (job) => {
    job.entry = { name: job.file.name, at: Date.now(), transcript: job.transcript };
    if (!shown || shown.job === job) showJob(job);
    keep(job.entry);
  },
  failed: (job, error) => error.code === "invalid_api_key" && askForKey(),
});

const chosenModel = new Models($("model"), $("about"), $("server-state"), () => queue.running > 0 || isLive);

function prefersReducedMotion() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

function options() {
  const value = (id) => $(id).value.trim();
  const keywords = value("keywords").split(",").map((word) => word.trim()).filter(Boolean);
  const track = $("track").checkValidity() && value("track") ? +value("track") : null;
  return { model: value("model"), language: value("language"), transport: value("transport"), keywords, track };
}

function add(files) {
  const jobs = [...files].map((file) => queue.add(file, options()));
  $("queue-section").hidden = false;
  chosenModel.watch();
  if (jobs.length && !isLive) showJob(jobs[0]);
}

function openPanel(panel) {
  for (const name of ["welcome", "live", "transcript"]) $(name).hidden = name !== panel;
}

function showJob(job) {
  if (isLive) return;
  if (job.transcript) return showTranscript({ name: job.file.name, file: job.file, transcript: job.transcript, entry: job.entry, job });
  shown = { job };
  openPanel("transcript");
  player.show(null, [], 0);
  view.show([]);
  $("warnings").hidden = $("tools").hidden = $("full").hidden = true;
  showPartial(job);
}

function showPartial(job) {
  $("facts").textContent = `${job.file.name}: ${["running", "waiting"].includes(job.state) ? "in progress" : job.state}`;
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
  const took = next.job ? [`first text after ${next.job.times.firstSegment?.toFixed(1) ?? "-"} s`, `complete after ${next.job.times.total.toFixed(1)} s`] : [];
  const facts = [name, clock(transcript.duration), `${transcript.segments.length} segments`, `${words} words`, transcript.language, ...took];
  $("facts").textContent = facts.join(" · ");
  $("tools").hidden = $("full").hidden = false;
  $("full-text").textContent = transcript.text;
  $("warnings").hidden = !transcript.warnings?.length;
  $("warnings").textContent = transcript.warnings?.join(" ") ?? "";
  $("search").value = $("found").textContent = "";
  view.show(transcript.segments);
  player.show(file, transcript.segments, transcript.duration);
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
  $("full-text").textContent = transcript.text;
  if (entry.id !== undefined) keep(entry);
  if (file) caption(shown);
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

async function download(extension) {
  const { transcript, name } = shown;
  const link = document.createElement("a");
  const cues = Object.fromEntries(CUE_FIELDS.filter((name) => $(name).value && $(name).checkValidity()).map((name) => [name, +$(name).value]));
  link.href = URL.createObjectURL(await exported(transcript, FORMATS[extension], cues));
  link.download = `${name.replace(/\.[^.]*$/, "")}.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
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

async function keep(entry) {
  try {
    entry.id = await history.keep(entry);
    known.set(entry.id, entry);
  } catch {
    notify("This transcript could not be saved in this browser.");
  }
  listHistory();
}

function forget(entry) {
  const { id } = entry;
  known.delete(id);
  delete entry.id;
  return history.forget(id).then(listHistory);
}

async function listHistory() {
  const entries = (await history.all().catch(() => [])).map((entry) => known.get(entry.id) ?? entry);
  for (const entry of entries) known.set(entry.id, entry);
  $("history-section").hidden = !entries.length;
  $("history").replaceChildren(...entries.reverse().map((entry) => {
    const item = document.createElement("li");
    const name = button("name quiet", entry.name), remove = button("quiet", "Delete", `Delete ${entry.name}`);
    name.onclick = () => !isLive && showTranscript({ ...entry, file: null, entry });
    remove.onclick = () => forget(entry);
    const at = document.createElement("span");
    at.className = "state";
    at.textContent = `${new Date(entry.at).toLocaleString()} · ${clock(entry.transcript.duration)}`;
    item.append(name, remove, at);
    return item;
  }));
}

async function live() {
  const text = $("live-text"), partial = document.createElement("span");
  let isFollowing = true;
  partial.className = "partial";
  const follow = () => isFollowing && (text.scrollTop = text.scrollHeight);
  const session = new LiveSession(options(), {
    segment: (segment) => {
      text.querySelector(".final")?.remove();
      partial.replaceChildren();
      partial.before(`${segment.text} `);
      follow();
    },
    partial: (words) => {
      const final = document.createElement("span");
      final.className = "final";
      final.textContent = words.filter((word) => word.is_final).map((word) => `${word.word} `).join("");
      partial.replaceChildren(words.filter((word) => !word.is_final).map((word) => word.word).join(" "));
      text.querySelector(".final")?.remove();
      partial.before(final);
      follow();
    },
    level: (share) => ($("level").value = share),
  });
  text.onscroll = () => (isFollowing = text.scrollHeight - text.scrollTop - text.clientHeight < 30);
  text.replaceChildren(partial);
  isLive = $("record").disabled = true;
  player.video.pause();
  openPanel("live");
  chosenModel.watch();
  const began = performance.now();
  const timer = setInterval(() => ($("elapsed").textContent = clock((performance.now() - began) / 1000)), 250);
  $("stop").onclick = () => session.stop();
  $("stop").focus();
  let transcript;
  await attempt(async () => (transcript = await session.start()));
  clearInterval(timer);
  const file = await session.recording;
  isLive = $("record").disabled = false;
  transcript ??= session.segments.length ? incomplete(session.segments) : null;
  if (!transcript) return openPanel(shown ? "transcript" : "welcome");
  const name = `Microphone, ${new Date().toLocaleString()}`;
  const entry = { name, at: Date.now(), transcript };
  showTranscript({ name, file, transcript, entry });
  keep(entry);
}

function incomplete(segments) {
  const warnings = ["The connection was lost: the end is missing."];
  return { text: textOf(segments), language: "unknown", duration: segments.at(-1).end, segments, warnings };
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
};
$("debug-toggle").onchange = () => debug.show($("debug-toggle").checked);
$("model").onchange = () => localStorage.setItem("model", $("model").value);
$("forget-all").onclick = () => Promise.all([...known.values()].map(forget));
$("copy").onclick = () => attempt(async () => {
  await navigator.clipboard.writeText(shown.transcript.text);
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 2000);
});
$("search").oninput = () => {
  const found = view.search($("search").value);
  $("found").textContent = $("search").value.trim() ? `${found.length} found` : "";
};
for (const extension of Object.keys(FORMATS)) {
  const choice = button("", extension, `Download as ${extension}`);
  choice.onclick = () => attempt(() => download(extension));
  $("downloads").append(choice);
}

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

connect();
listHistory();
