// Which files are sent as jobs, so that the server goes on with them when the page is closed.

const LONG_S = 30 * 60;
const LARGE_BYTES = 200e6;
const MAX_LOOK_MS = 10_000; // So long the browser may take to find out a file's length.

/** Whether a file is sent as a job. `which`: "all" files, "none", or "long" ones. */
export async function isBackground(file, which) {
  return which === "all" || (which === "long" && (file.size > LARGE_BYTES || (await lengthOf(file)) > LONG_S));
}

/** Seconds; 0 for a file whose length the browser cannot tell. */
async function lengthOf(file) {
  const audio = document.createElement("audio");
  audio.preload = "metadata";
  audio.src = URL.createObjectURL(file);
  await new Promise((resolve) => {
    audio.onloadedmetadata = audio.onerror = resolve;
    setTimeout(resolve, MAX_LOOK_MS);
  });
  const seconds = audio.duration;
  URL.revokeObjectURL(audio.src);
  audio.removeAttribute("src");
  return Number.isFinite(seconds) ? seconds : 0;
}
