// Debug mode: a log of all messages with their times, and the last upload as a curl command.

const MAX_LINES = 2000;
const MAX_LINE_CHARS = 2000;
const lines = [];
const began = performance.now();
let isShown = false;
let isDrawPending = false;

export function note(event, data) {
  const text = data === undefined ? "" : ` ${typeof data === "string" ? data : JSON.stringify(data)}`;
  lines.push(`${((performance.now() - began) / 1000).toFixed(3).padStart(9)} ${event}${text}`.slice(0, MAX_LINE_CHARS));
  if (lines.length > MAX_LINES) lines.shift();
  draw();
}

export function showCurl(line) {
  document.getElementById("curl").textContent = line;
}

export function show(isWanted) {
  isShown = isWanted;
  document.getElementById("debug").hidden = !isWanted;
  draw();
}

function draw() {
  if (!isShown || isDrawPending) return;
  isDrawPending = true;
  requestAnimationFrame(() => {
    isDrawPending = false;
    const log = document.getElementById("log");
    log.textContent = lines.join("\n");
    log.scrollTop = log.scrollHeight;
  });
}
