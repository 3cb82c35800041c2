// Elements are made by these functions only. Text is always set as text, so nothing that a model says is markup.

/** An element with properties and children; a property that begins with "on" is a listener, others are attributes. */
export function element(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function fill(made, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "text") made.textContent = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** An icon of the sprite in index.html. */
export function icon(name) {
  return svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#icon-${name}` }));
}

/** A button with an icon and a name for screen readers. */
export function iconButton(picture, name, onclick, properties = {}) {
  return element("button", { type: "button", class: "icon-button", title: name, "aria-label": name, onclick, ...properties }, icon(picture));
}

let noticeTimer;

/** Shows a line for some seconds, which screen readers say. With `undo` it has a button that calls this. */
export function notice(text, undo) {
  const place = document.getElementById("notice");
  const button = undo && element("button", { type: "button", text: "Undo", onclick: () => { hideNotice(); undo(); } });
  place.replaceChildren(text, ...(button ? [button] : []));
  place.hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(hideNotice, undo ? 20_000 : 6000);
}

export function hideNotice() {
  document.getElementById("notice").hidden = true;
}

/** Puts a text on the clipboard, and says so. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    notice("Copied.");
  } catch {
    notice("The browser does not allow copying here. Select the text and copy it.");
  }
}

/** Offers a text as a file. */
export function saveText(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
