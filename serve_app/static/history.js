// Earlier transcripts, stored in this browser's IndexedDB. Recordings are not stored.

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
