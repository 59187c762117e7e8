// Pieces of the page that are made again and again.

/** A button; `label` says what the text alone does not. */
export function button(className, text, label) {
  const element = document.createElement("button");
  element.type = "button";
  element.className = className;
  element.textContent = text;
  if (label) element.setAttribute("aria-label", label);
  return element;
}
