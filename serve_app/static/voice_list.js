// The list of those who speak: how long each does, whose segments are shown, and what they are called.

import { button } from "./elements.js";
import { clock } from "./format.js";
import { timesOf } from "./speakers.js";

const MAX_NAME_CHARS = 64;

export class VoiceList {
  /** `filtered(voices)` is called with the Set of those to show, or null for all; `renamed()` once a name is changed. */
  constructor(list, { filtered, renamed }) {
    Object.assign(this, { list, filtered, renamed });
  }

  /** `voices`: the Voices of the transcript. */
  show(transcript, voices) {
    Object.assign(this, { transcript, voices, chosen: new Set() });
    this.times = timesOf(transcript.segments);
    this.list.hidden = this.times.size === 0;
    this.draw();
  }

  draw() {
    const total = [...this.times.values()].reduce((sum, seconds) => sum + seconds, 0) || 1;
    this.list.replaceChildren(...[...this.times].map(([voice, seconds]) => this.row(voice, seconds, seconds / total)));
  }

  row(voice, seconds, share) {
    const item = document.createElement("li"), time = document.createElement("span");
    const name = this.voices.name(voice);
    const choice = button(`voice-${this.voices.colour(voice)}`, name, `Show only ${name}`);
    choice.setAttribute("aria-pressed", this.chosen.has(voice));
    choice.onclick = () => this.choose(voice, choice);
    time.className = "state";
    time.textContent = `${clock(seconds)}, ${Math.round(100 * share)} %`;
    item.append(choice, time);
    if (typeof voice === "string") {
      const rename = button("quiet", "Rename", `Rename ${name}`);
      rename.onclick = () => this.rename(voice, item, choice);
      item.append(rename);
    }
    return item;
  }

  choose(voice, choice) {
    if (!this.chosen.delete(voice)) this.chosen.add(voice);
    choice.setAttribute("aria-pressed", this.chosen.has(voice));
    this.filtered(this.chosen.size ? this.chosen : null);
  }

  rename(voice, item, choice) {
    const input = document.createElement("input");
    Object.assign(input, { value: this.voices.name(voice), maxLength: MAX_NAME_CHARS, autocomplete: "off" });
    input.setAttribute("aria-label", `Name of ${input.value}`);
    choice.replaceWith(input);
    input.focus();
    input.select();
    let isClosed = false;
    const close = (isKept) => {
      if (isClosed) return;
      isClosed = true;
      const name = input.value.trim(), hasFocus = item.contains(document.activeElement), index = [...this.list.children].indexOf(item);
      const isChanged = isKept && name !== this.voices.name(voice);
      if (isChanged) this.call(voice, name);
      this.draw();
      if (hasFocus) this.list.children[index].querySelector(".quiet").focus();
      if (isChanged) this.renamed();
    };
    input.onkeydown = (e) => {
      if (e.key === "Enter" || e.key === "Escape") {
        e.preventDefault(); // Else the button that gets the focus is pressed.
        close(e.key === "Enter");
      }
      e.stopPropagation();
    };
    input.onblur = () => close(true);
  }

  /** An empty name gives back the one by the server. */
  call(voice, name) {
    const names = (this.transcript.names ??= new Map());
    if (name && name !== voice) names.set(voice, name);
    else names.delete(voice);
    this.voices.names = names;
  }
}
