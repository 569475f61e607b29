// Elements, made without markup: whatever is shown came over the network, and stays text.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Properties are attributes; those named `on…` listen, and `class` may be a list. */
export function h(tag, properties = {}, ...children) {
  return dress(document.createElement(tag), properties, children);
}

/** The same for drawings. */
export function s(tag, properties = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), properties, children);
}

function dress(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.setAttribute("class", [value].flat().filter(Boolean).join(" "));
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false));
  return element;
}

/** A labelled field; what belongs to the field itself is set on `input`. */
export function field(label, input, hint) {
  const id = `f${(field.count = (field.count ?? 0) + 1)}`;
  input.id = id;
  if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
  return h("div", { class: "field" },
    h("label", { for: id }, label),
    input,
    hint && h("p", { class: "hint", id: `${id}-hint` }, hint));
}

/** Says something for a moment, also to those who hear the page. */
export function toast(text, kind = "good") {
  const shown = h("div", { class: ["toast", kind] }, text);
  document.getElementById("toasts").append(shown);
  setTimeout(() => shown.remove(), 6000);
}

/** Asks before something is done; whether it shall be. */
export function confirm(title, text, action) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { class: "dialog", "aria-labelledby": "dialog-title" },
      h("form", { method: "dialog" },
        h("h2", { id: "dialog-title" }, title),
        h("p", {}, text),
        h("div", { class: "actions" },
          h("button", { value: "no", class: "button" }, "Cancel"),
          h("button", { value: "yes", class: ["button", "danger"] }, action))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    // The form's method closes the dialog; nothing is sent anywhere.
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** What to say where there is nothing to show. */
export function empty(title, text, ...more) {
  return h("div", { class: "empty" }, h("h2", {}, title), h("p", {}, text), more);
}

/** A problem of the API, as a note. */
export function problemNote(problem, retry) {
  return h("div", { class: ["note", "bad"], role: "alert" },
    h("strong", {}, problem.title), " ", problem.message,
    h("span", { class: "codes" },
      h("code", {}, problem.code),
      problem.requestId && h("span", {}, " request ", h("code", {}, problem.requestId))),
    retry && h("button", { class: "button", type: "button", onclick: retry }, "Try again"));
}
