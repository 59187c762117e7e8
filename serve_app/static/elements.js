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

/** An item of a list of files: its name, a button, a progress bar and its state. */
export function fileRow(name) {
  const item = document.createElement("li");
  const parts = {
    name: button("name quiet", name), action: button("quiet", ""),
    state: document.createElement("span"), progress: document.createElement("progress"),
  };
  parts.state.className = "state";
  parts.progress.setAttribute("aria-label", `Progress of ${name}`);
  item.append(parts.name, parts.action, parts.progress, parts.state);
  return { item, ...parts };
}
