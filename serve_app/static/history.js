// Earlier transcripts, stored in this browser's IndexedDB. Recordings are not stored.

import { button } from "./elements.js";
import { clock } from "./format.js";

function run(mode, action) {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("parakeet", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("transcripts", { keyPath: "id", autoIncrement: true });
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const transaction = opening.result.transaction("transcripts", mode);
      const request = action(transaction.objectStore("transcripts"));
      transaction.oncomplete = () => {
        opening.result.close();
        resolve(request.result);
      };
      // Covers errors at commit too, such as a full storage.
      transaction.onabort = () => {
        opening.result.close();
        reject(transaction.error);
      };
    };
  });
}

export const keep = (entry) => run("readwrite", (store) => store.put(entry));
export const all = () => run("readonly", (store) => store.getAll());
export const forget = (id) => run("readwrite", (store) => store.delete(id));

/** The list of earlier transcripts. An entry is { name, at, transcript }, with the id of its job if there is one; it gets an `id` when it is kept. */
export class Earlier {
  /** `shown(entry)` is called for a click, `failed()` when a transcript could not be kept. */
  constructor(list, { shown, failed }) {
    Object.assign(this, { list, shown, failed });
    this.known = new Map(); // By id, so that an edit changes the same object wherever it is shown.
    this.draw();
  }

  ofJob(id) {
    return [...this.known.values()].find(({ job }) => job === id);
  }

  async keep(entry) {
    try {
      entry.id = await keep(entry);
      this.known.set(entry.id, entry);
    } catch {
      this.failed();
    }
    this.draw();
  }

  async forget(entry) {
    const { id } = entry;
    this.known.delete(id);
    delete entry.id;
    await forget(id);
    this.draw();
  }

  forgetAll() {
    return Promise.all([...this.known.values()].map((entry) => this.forget(entry)));
  }

  async draw() {
    const entries = (await all().catch(() => [])).map((entry) => this.known.get(entry.id) ?? entry);
    for (const entry of entries) this.known.set(entry.id, entry);
    this.list.closest("section").hidden = !entries.length;
    this.list.replaceChildren(...entries.reverse().map((entry) => this.row(entry)));
  }

  row(entry) {
    const item = document.createElement("li");
    const name = button("name quiet", entry.name), remove = button("quiet", "Delete", `Delete ${entry.name}`);
    name.onclick = () => this.shown(entry);
    remove.onclick = () => this.forget(entry);
    const at = document.createElement("span");
    at.className = "state";
    at.textContent = `${new Date(entry.at).toLocaleString()} · ${clock(entry.transcript.duration)}`;
    item.append(name, remove, at);
    return item;
  }
}
