// Formats times, speeds and texts for display.

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"));
  const hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${parts.join(":")}` : parts.join(":").replace(/^0/, "");
}

export function textOf(segments) {
  return segments.map((segment) => segment.text).join(" ");
}

export function speed(audioSeconds, seconds) {
  return seconds > 0 ? `${(audioSeconds / seconds).toFixed(audioSeconds / seconds < 10 ? 1 : 0)} × real time` : "";
}

export function age(seconds) {
  const format = new Intl.RelativeTimeFormat("en");
  if (seconds < 60) return "just now";
  if (seconds < 3600) return format.format(-Math.floor(seconds / 60), "minute");
  if (seconds < 86_400) return format.format(-Math.floor(seconds / 3600), "hour");
  return format.format(-Math.floor(seconds / 86_400), "day");
}
