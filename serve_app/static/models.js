// The models of the server: which one is chosen, what it can do, and its state until it is loaded.

import { modelStates } from "./server.js";

const POLL_MS = 1000;
const LOADING = { starting: "Starting", downloading: "Downloading", loading: "Loading" };
const MAX_NAMED_LANGUAGES = 3;

export class Models {
  /** `isNeeded` tells whether a file or live speech waits for the model, which loads on demand; `chosen(model)` is called with each choice. */
  constructor(select, about, state, { isNeeded, chosen }) {
    Object.assign(this, { select, about, state, isNeeded, chosen, models: [] });
    select.addEventListener("change", () => this.showChosen());
  }

  show(models, preferred) {
    this.models = models;
    this.select.replaceChildren(...models.map(({ id }) => new Option(id)));
    if (models.some(({ id }) => id === preferred)) this.select.value = preferred;
    this.showChosen();
  }

  showChosen() {
    const chosen = this.models.find(({ id }) => id === this.select.value);
    this.about.textContent = chosen ? `${chosen.id}: ${chosen.description || spoken(chosen.languages)}` : "";
    if (chosen) this.chosen(chosen);
    this.watch();
  }

  /** Shows the state of the chosen model, again and again while it loads. */
  async watch() {
    const call = (this.latest = {});
    clearTimeout(this.timer);
    const name = this.select.value;
    const states = await modelStates().catch(() => null);
    if (this.latest !== call || !states) return;
    const { state, detail } = states.find(({ id }) => id === name) ?? { state: "ready" };
    this.state.textContent = described(name, state, detail);
    if (state in LOADING || (state === "unloaded" && this.isNeeded())) this.timer = setTimeout(() => this.watch(), POLL_MS);
  }
}

function described(name, state, detail) {
  if (state in LOADING) return `${LOADING[state]} ${name}${detail ? `: ${detail}` : ""}`;
  if (state === "unloaded") return `Ready; ${name} is loaded with the first file`;
  if (state === "failed") return `${name} is unavailable: ${detail}`;
  return "Ready";
}

function spoken(languages) {
  if (languages.length > MAX_NAMED_LANGUAGES) return `${languages.length} languages`;
  const names = new Intl.DisplayNames("en", { type: "language" });
  return languages.map((code) => names.of(code)).join(", ");
}
