// Who speaks in a transcript. A voice is a speaker, by what the server calls him, or the number of a channel. Speakers can have other names: a Map,
// `transcript.names`.

const COLOURS = 8; // .voice-0 to .voice-7 in style.css.

/** Whose segment it is; null if that is not known. */
export function voiceOf({ speaker, channel }) {
  return speaker ?? channel ?? null;
}

export function nameOf(voice, names) {
  return typeof voice === "number" ? `Channel ${voice}` : names?.get(voice) ?? voice;
}

/** What stands before the text of a voice. */
export function labelOf(voice, names) {
  return voice === null ? "" : `${nameOf(voice, names)}: `;
}

/** The segments with the speakers' names in the place of what the server calls them. */
export function withNames({ segments, names }) {
  return names?.size ? segments.map((segment) => (segment.speaker ? { ...segment, speaker: nameOf(segment.speaker, names) } : segment)) : segments;
}

/** The voices of segments, in the order of their numbers, or in which they begin to speak, each with its time in seconds. */
export function timesOf(segments) {
  const times = new Map();
  for (const segment of segments) {
    const voice = voiceOf(segment);
    if (voice !== null) times.set(voice, (times.get(voice) ?? 0) + segment.end - segment.start);
  }
  return new Map([...times].sort(([a], [b]) => (typeof a === "number" && typeof b === "number" ? a - b : 0)));
}

/** Names and colours of the voices of one transcript, which may still grow. */
export class Voices {
  constructor(names = null) {
    this.names = names;
    this.known = [];
  }

  name(voice) {
    return nameOf(voice, this.names);
  }

  /** The number of its colour. Channels have theirs wherever they begin to speak. */
  colour(voice) {
    if (typeof voice === "number") return voice % COLOURS;
    if (!this.known.includes(voice)) this.known.push(voice);
    return this.known.indexOf(voice) % COLOURS;
  }
}

/** The text with the name of whoever speaks at each turn. */
export function turnsOf({ text, segments, names }) {
  if (segments.every((segment) => voiceOf(segment) === null)) return text;
  const turns = [];
  for (const segment of segments) {
    const voice = voiceOf(segment);
    if (turns.length && turns.at(-1).voice === voice) turns.at(-1).texts.push(segment.text);
    else turns.push({ voice, texts: [segment.text] });
  }
  return turns.map(({ voice, texts }) => labelOf(voice, names) + texts.join(" ")).join("\n");
}
