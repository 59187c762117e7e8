// Debug mode: every message with its time, the request as a curl line.

const MAX_LINES = 2000;
const MAX_TOTAL_CHARS = 2000;
const lines = [];
const began = performance.now();
let isShown = false;
let isDrawing = false;

export function note(what, data) {
  const text = data === undefined ? "" : ` ${typeof data === "string" ? data : JSON.stringify(data)}`;
  lines.push(`${((performance.now() - began) / 1000).toFixed(3).padStart(9)} ${what}${text}`.slice(0, MAX_TOTAL_CHARS));
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
  if (!isShown || isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    const log = document.getElementById("log");
    log.textContent = lines.join("\n");
    log.scrollTop = log.scrollHeight;
  });
}
