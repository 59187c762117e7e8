// Server-sent events.

/** Returns a function that takes the text of a stream, piece by piece; `handle({ event, id, data })` gets each event, its data parsed as JSON. */
export function eventReader(handle) {
  let text = "";
  return (piece) => {
    text += piece;
    let start = 0;
    for (let end; (end = text.indexOf("\n\n", start)) >= 0; start = end + 2) {
      const fields = {};
      for (const line of text.slice(start, end).split("\n")) {
        const colon = line.indexOf(":"), name = line.slice(0, colon), value = line.slice(colon + 1).replace(/^ /, "");
        if (colon > 0) fields[name] = name in fields ? `${fields[name]}\n${value}` : value;
      }
      if (fields.data) handle({ ...fields, data: JSON.parse(fields.data) });
    }
    text = text.slice(start);
  };
}
