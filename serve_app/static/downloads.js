// Buttons that download the transcript in each format, as the server makes it.

import { button } from "./elements.js";
import { cues } from "./options.js";
import { exported } from "./server.js";

const FORMATS = { txt: "text", srt: "srt", vtt: "vtt", csv: "csv", tsv: "tsv", json: "verbose_json" };

/** Adds the buttons to `element`. `shown()` returns { transcript, name }; `attempt(action)` shows errors. */
export function offerDownloads(element, shown, attempt) {
  for (const extension of Object.keys(FORMATS)) {
    const choice = button("", extension, `Download as ${extension}`);
    choice.onclick = () => attempt(() => download(shown(), extension));
    element.append(choice);
  }
}

async function download({ transcript, name }, extension) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await exported(transcript, FORMATS[extension], cues()));
  link.download = `${name.replace(/\.[^.]*$/, "")}.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
