// The transcript on the page: segments that can be played, searched and edited. Thousands of them stay smooth: they are put in a
// few at a time, and the browser draws what is in sight (content-visibility).

import { button } from "./elements.js";
import { clock } from "./format.js";

const AT_ONCE = 60;
const DOUBTFUL = 0.5;

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

  show(segments) {
    this.segments = segments;
    this.rows = [];
    this.words = [];
    this.now = this.nowRow = null;
    this.list.replaceChildren();
    clearTimeout(this.filling);
    this.fill();
  }

  /** One more at the end. */
  append(segment) {
    if (!this.rows.length) this.list.replaceChildren();
    const row = this.row(segment, this.segments.push(segment) - 1);
    this.rows.push(row);
    this.list.append(row);
  }

  fill() {
    const rows = this.segments.slice(this.rows.length, this.rows.length + AT_ONCE).map((segment, i) => this.row(segment, this.rows.length + i));
    this.rows.push(...rows);
    this.list.append(...rows);
    if (this.rows.length < this.segments.length) this.filling = setTimeout(() => this.fill());
    else this.index();
  }

  row(segment, place) {
    const item = document.createElement("li");
    item.dataset.place = place;
    const time = button("time quiet", clock(segment.start), `Play from ${clock(segment.start)}`);
    const text = document.createElement("p");
    const edit = button("edit quiet", "Edit", `Edit the segment at ${clock(segment.start)}`);
    item.append(time, text, edit);
    fillWords(text, segment);
    return item;
  }

  index() {
    this.words = this.rows.flatMap((row, place) => {
      const spans = row.querySelectorAll(".word");
      return (this.segments[place].words ?? []).map((word, i) => ({ start: word.start, end: word.end, place, span: spans[i] }));
    });
  }

  click(target) {
    const row = target.closest("li");
    if (!row) return;
    const segment = this.segments[row.dataset.place];
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
    let isOver = false;
    const end = (isKept) => {
      if (isOver) return;
      isOver = true;
      const value = area.value.split(/\s+/).filter(Boolean).join(" ");
      if (isKept && value !== segment.text) {
        const words = value.split(" ");
        segment.text = value;
        // Other words have times of their own only in the server's export.
        segment.words = words.length === segment.words?.length ? segment.words.map((word, i) => ({ ...word, word: words[i] })) : [];
        this.changed();
      }
      area.replaceWith(text);
      fillWords(text, segment);
      this.index();
      row.querySelector(".edit").focus();
    };
    area.onkeydown = (e) => {
      if (e.key === "Enter" && !e.shiftKey) e.preventDefault();
      if (e.key === "Enter" || e.key === "Escape") end(e.key === "Enter");
      e.stopPropagation();
    };
    area.onblur = () => end(true);
  }

  /** Mark what is being said. */
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
      this.now?.classList.remove("said");
      span?.classList.add("said");
      this.now = span;
    }
    const row = word ? this.rows[word.place] : null;
    if (row !== this.nowRow) {
      this.nowRow?.classList.remove("now");
      row?.classList.add("now");
      this.nowRow = row;
      return row;
    }
    return null;
  }

  /** How many segments have that text; the first comes into sight. */
  search(text) {
    const wanted = text.trim().toLocaleLowerCase();
    const found = this.rows.filter((row, place) => {
      const isMatch = wanted !== "" && this.segments[place].text.toLocaleLowerCase().includes(wanted);
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
    const isDoubtful = word.probability < DOUBTFUL;
    span.className = isDoubtful ? "word doubtful" : "word";
    if (isDoubtful) span.title = `Doubtful: ${Math.round(100 * word.probability)} %`;
    span.dataset.start = word.start;
    span.textContent = word.word;
    return i ? [" ", span] : [span];
  }));
}
