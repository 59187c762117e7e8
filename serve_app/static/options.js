// What is asked of the server for the next files, and for downloads.

const CUE_FIELDS = ["max_line_chars", "max_lines"];

const $ = (id) => document.getElementById(id);
const value = (id) => $(id).value.trim();

/** Of a file or of live speech. `who`: "channels" or "speakers" are told apart; "": nobody is. */
export function options() {
  const keywords = value("keywords").split(",").map((word) => word.trim()).filter(Boolean);
  const track = $("track").checkValidity() && value("track") ? +value("track") : null;
  const who = value("who");
  // Speakers are found in files that come over HTTP.
  const transport = who === "speakers" ? "rest" : value("transport");
  return { model: value("model"), language: value("language"), transport, keywords, track, who };
}

/** Of subtitles: how large their cues may be. */
export function cues() {
  return Object.fromEntries(CUE_FIELDS.filter((name) => $(name).value && $(name).checkValidity()).map((name) => [name, +$(name).value]));
}

/** Whether the chosen model's server can find out who speaks. */
export function offerSpeakers(isOffered) {
  const option = $("who").querySelector("[value='speakers']");
  option.hidden = option.disabled = !isOffered;
  if (option.disabled && option.selected) $("who").value = "";
}
