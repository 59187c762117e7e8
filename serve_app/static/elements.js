// Elements that several modules create.

/** A button. `label` is its name for screen readers, where `text` is not enough. */
export function button(className, text, label) {
  const element = document.createElement("button");
  element.type = "button";
  element.className = className;
  element.textContent = text;
  if (label) element.setAttribute("aria-label", label);
  return element;
}
