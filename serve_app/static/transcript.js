// The transcript on the page: segments that can be played, searched and edited. To stay responsive with thousands of them, rows
// are added in steps, and the browser renders only the visible ones (content-visibility).

import { button } from "./elements.js";
import { clock } from "./format.js";
import { Voices, voiceOf } from "./speakers.js";

const ROWS_PER_STEP = 60;
const LOW_CONFIDENCE = 0.5; // Words with a lower probability are marked.

export class TranscriptView {
  /** `play(seconds)` is called for a segment or a word, `changed()` after an edit. */
  constructor(list, { play, changed }) {
    this.list = list;
    this.play = play;
    this.changed = changed;
    this.rows = [];
    this.words = [];
    list.addEventListener("click", (e) => this.click(e.target));
  }

  /** `voices`: the Voices of these segments. */
  show(segments, voices = new Voices()) {
    Object.assign(this, { segments, voices, shownVoices: null });
    this.list.classList.remove("voices");
    this.rows = [];
    this.words = [];
    this.now = this.nowRow = null;
    this.list.replaceChildren();
    clearTimeout(this.filling);
    this.fill();
  }

  /** Add a segment at the end. */
  append(segment) {
    if (!this.rows.length) this.list.replaceChildren();
    const row = this.row(segment, this.segments.push(segment) - 1);
    this.rows.push(row);
    this.list.append(row);
  }

  fill() {
    const rows = this.segments.slice(this.rows.length, this.rows.length + ROWS_PER_STEP).map((segment, i) => this.row(segment, this.rows.length + i));
    this.rows.push(...rows);
    this.list.append(...rows);
    if (this.rows.length < this.segments.length) this.filling = setTimeout(() => this.fill());
    else this.indexWords();
  }

  row(segment, index) {
    const item = document.createElement("li");
    item.dataset.index = index;
    const time = button("time quiet", clock(segment.start), `Play from ${clock(segment.start)}`);
    const text = document.createElement("p");
    const edit = button("edit quiet", "Edit", `Edit the segment at ${clock(segment.start)}`);
    const voice = voiceOf(segment);
    if (voice === null) {
      item.append(time, text, edit);
    } else {
      const who = document.createElement("span");
      who.className = `who voice-${this.voices.colour(voice)}`;
      who.textContent = this.voices.name(voice);
      item.append(time, who, text, edit);
      this.list.classList.add("voices");
    }
    item.hidden = !this.isShown(segment);
    fillWords(text, segment);
    return item;
  }

  isShown(segment) {
    return !this.shownVoices || this.shownVoices.has(voiceOf(segment));
  }

  /** Show the segments of these voices only, a Set; null: all. */
  filter(voices) {
    this.shownVoices = voices;
    this.rows.forEach((row, index) => (row.hidden = !this.isShown(this.segments[index])));
  }

  /** Show the names that the voices have now. */
  nameVoices() {
    this.rows.forEach((row, index) => {
      const voice = voiceOf(this.segments[index]);
      if (voice !== null) row.querySelector(".who").textContent = this.voices.name(voice);
    });
  }

  indexWords() {
    this.words = this.rows.flatMap((row, index) => {
      const spans = row.querySelectorAll(".word");
      return (this.segments[index].words ?? []).map((word, i) => ({ start: word.start, end: word.end, index, span: spans[i] }));
    });
    this.words.sort((a, b) => a.start - b.start); // Channels overlap.
  }

  click(target) {
    const row = target.closest("li");
    if (!row) return;
    const segment = this.segments[row.dataset.index];
    if (target.matches(".edit")) this.edit(row, segment);
    else if (target.matches(".time")) this.play(segment.start);
    else if (target.matches(".word")) this.play(Number(target.dataset.start));
  }

  edit(row, segment) {
    const text = row.querySelector("p");
    const area = document.createElement("textarea");
    area.value = segment.text;
    area.rows = 2;
    area.setAttribute("aria-label", `Text of the segment at ${clock(segment.start)}`);
    text.replaceWith(area);
    area.focus();
    let isClosed = false;
    const close = (isKept) => {
      if (isClosed) return;
      isClosed = true;
      const value = area.value.split(/\s+/).filter(Boolean).join(" ");
      if (isKept && value !== segment.text) {
        const words = value.split(" ");
        segment.text = value;
        // A different number of words gets no times here; the server's export spreads them evenly.
        segment.words = words.length === segment.words?.length ? segment.words.map((word, i) => ({ ...word, word: words[i] })) : [];
        this.changed();
      }
      area.replaceWith(text);
      fillWords(text, segment);
      this.indexWords();
      row.querySelector(".edit").focus();
    };
    area.onkeydown = (e) => {
      if (e.key === "Enter" && !e.shiftKey) e.preventDefault();
      if (e.key === "Enter" || e.key === "Escape") close(e.key === "Enter");
      e.stopPropagation();
    };
    area.onblur = () => close(true);
  }

  /** Mark the word and the segment at that time; returns the segment's row if it was not marked before, else null. */
  at(seconds) {
    let low = 0, high = this.words.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.words[middle].start <= seconds) low = middle + 1;
      else high = middle;
    }
    const word = this.words[low - 1];
    const span = word && seconds < word.end + 0.2 ? word.span : null;
    if (span !== this.now) {
      this.now?.classList.remove("current");
      span?.classList.add("current");
      this.now = span;
    }
    const row = word ? this.rows[word.index] : null;
    if (row !== this.nowRow) {
      this.nowRow?.classList.remove("now");
      row?.classList.add("now");
      this.nowRow = row;
      return row;
    }
    return null;
  }

  /** Mark the segments that contain the text, and scroll to the first; returns their rows. */
  search(text) {
    const query = text.trim().toLocaleLowerCase();
    const found = this.rows.filter((row, index) => {
      const isMatch = query !== "" && !row.hidden && this.segments[index].text.toLocaleLowerCase().includes(query);
      row.classList.toggle("match", isMatch);
      return isMatch;
    });
    found[0]?.scrollIntoView({ block: "nearest" });
    return found;
  }
}

function fillWords(element, segment) {
  const words = segment.words?.length ? segment.words : null;
  if (!words) return element.replaceChildren(segment.text);
  element.replaceChildren(...words.flatMap((word, i) => {
    const span = document.createElement("span");
    const isUncertain = word.probability < LOW_CONFIDENCE;
    span.className = isUncertain ? "word uncertain" : "word";
    if (isUncertain) span.title = `Confidence: ${Math.round(100 * word.probability)} %`;
    span.dataset.start = word.start;
    span.textContent = word.word;
    return i ? [" ", span] : [span];
  }));
}
