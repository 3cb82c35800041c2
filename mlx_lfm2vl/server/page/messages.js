// Elements of a conversation's messages. What a message can do (retry, edit) is given by app.js.

import { readBoxes, drawBoxes } from "./boxes.js";
import { element, copyText, icon, iconButton } from "./dom.js";
import { markdown } from "./markdown.js";
import { jsonTable } from "./table.js";

const REASONS = {
  length: "The answer stopped at its longest length.",
  cancelled: "Stopped.",
  elsewhere: "Asked in another window, where the answer comes.",
};
const addresses = new WeakMap(); // of pictures' blobs

/** An address by which a blob can be shown. */
export function addressOf(blob) {
  if (!addresses.has(blob)) addresses.set(blob, URL.createObjectURL(blob));
  return addresses.get(blob);
}

/** Frees what showing a blob has taken. */
export function forget(blob) {
  URL.revokeObjectURL(addresses.get(blob));
  addresses.delete(blob);
}

/** Whether a picture of a message is a video. */
export function isVideo({ name, blob }) {
  return blob.type.startsWith("video/") || /\.(mp4|m4v|mov|webm|mkv|avi|mpe?g|ogv)$/i.test(name);
}

/** Whether a picture of a message is a PDF document, of which the server makes pictures. */
export function isDocument({ name, blob }) {
  return blob.type === "application/pdf" || /\.pdf$/i.test(name);
}

/** A small picture or a video; a name for a document, and where the browser cannot show a picture's format. */
export function thumbnail({ name, blob }, open) {
  if (isVideo({ name, blob })) {
    return element("video", { src: addressOf(blob), title: name, "aria-label": name, controls: true, muted: true, playsinline: true, preload: "metadata" });
  }
  if (isDocument({ name, blob })) return element("span", { class: "thumbnail document", title: name }, icon("form"), name);
  const picture = element("img", { src: addressOf(blob), alt: name, loading: "lazy" });
  const button = element("button", { type: "button", class: "thumbnail", title: name, onclick: () => open(picture) }, picture);
  picture.addEventListener("error", () => {
    button.replaceChildren(element("span", { class: "no-preview", text: name }));
    button.disabled = true;
  });
  return button;
}

/** An item of a list of pictures that can be taken out. */
export function removableItem(picture, open, remove) {
  return element("li", {}, thumbnail(picture, open), iconButton("close", `Remove ${picture.name}`, remove));
}

/** A question while it is edited. `send` takes its text and pictures; `cancel` leaves it as it was. */
export function editElement(message, { send, cancel, open }) {
  let pictures = message.pictures;
  const list = element("ul", { class: "picture-list", "aria-label": "Pictures of the edited question" });
  const field = element("textarea", { rows: "3", "aria-label": "The edited question" });
  const show = () => {
    list.replaceChildren(...pictures.map((picture) => removableItem(picture, open, () => {
      pictures = pictures.filter((other) => other !== picture);
      show();
      field.focus();
    })));
    list.hidden = !pictures.length;
  };
  const submit = (event) => {
    event.preventDefault();
    const text = field.value.trim();
    if (text || pictures.length) send({ text, pictures });
  };
  field.value = message.text;
  show();
  return element("li", { class: "question" }, element("form", {
    class: "edit",
    onsubmit: submit,
    onkeydown: (event) => {
      if (event.key === "Escape") { event.stopPropagation(); cancel(); }
      if (event.key === "Enter" && event.target === field && !event.shiftKey && !event.isComposing) submit(event);
    },
  }, list, field, element("div", { class: "actions" },
    element("button", { type: "button", text: "Cancel", onclick: cancel }),
    element("button", { class: "primary", text: "Send" }))));
}

/** A question as it stands in the conversation. */
export function questionElement(message, { edit, open }) {
  return element("li", { class: "question" },
    element("h2", { class: "hidden-label", text: "You" }),
    message.pictures.length ? element("div", { class: "pictures" }, ...message.pictures.map((picture) => thumbnail(picture, open))) : null,
    message.text ? element("p", { class: "said", text: message.text }) : null,
    element("div", { class: "message-tools" },
      iconButton("edit", "Edit the question", edit),
      message.text ? iconButton("copy", "Copy the question", () => copyText(message.text)) : null));
}

/** An answer: its element, and a function that shows what the message holds by now. */
export function answerElement(message, pictures, { retry }) {
  const body = element("div", { class: "answer-body" });
  const foot = element("div", { class: "foot" });
  const made = element("li", { class: "answer" }, element("h2", { class: "hidden-label", text: "Answer" }), body, foot);

  function show() {
    made.toggleAttribute("data-running", Boolean(message.running));
    body.replaceChildren(bodyOf(message, pictures));
    foot.replaceChildren();
    if (message.error) foot.append(element("p", { class: "error", role: "alert", text: message.error }));
    else if (REASONS[message.finish]) foot.append(element("p", { class: "fine", text: REASONS[message.finish] }));
    if (message.running) return;
    foot.append(element("div", { class: "message-tools" },
      message.text ? iconButton("copy", "Copy the answer", () => copyText(message.text)) : null,
      iconButton("retry", "Answer again", retry),
      message.usage ? element("span", { class: "fine", text: speed(message) }) : null));
  }
  show();
  return [made, show];
}

function bodyOf(message, pictures) {
  if (!message.text && message.running) return element("p", { class: "waiting" }, element("span", { class: "hidden-label", text: "The answer is on its way" }), element("i"), element("i"), element("i"));
  const boxes = message.running ? null : readBoxes(message.text);
  if (boxes && boxes.some((box) => box.picture < pictures.length)) {
    return element("div", {}, drawBoxes(boxes, pictures.map((picture) => addressOf(picture.blob))), source(message.text));
  }
  const table = message.schema ? jsonTable(message.text) : null;
  if (table) return element("div", {}, table, source(message.text));
  if (message.schema && message.text) return element("pre", { tabindex: "0" }, element("code", { text: message.text }));
  return markdown(message.text);
}

function source(text) {
  return element("details", {}, element("summary", { text: "As the model wrote it" }), element("pre", { tabindex: "0" }, element("code", { text })));
}

/** How fast the answer came, and how much of the question was known already. */
function speed({ usage, firstToken, seconds }) {
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const measured = usage.completion_tokens > 1 && seconds - firstToken > 0.05; // not where all of it came at once
  const rate = measured ? (usage.completion_tokens - 1) / (seconds - firstToken) : null;
  return [
    `${usage.completion_tokens} ${usage.completion_tokens === 1 ? "token" : "tokens"}`,
    rate ? `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s` : null,
    firstToken ? `first after ${firstToken.toFixed(firstToken < 10 ? 2 : 0)} s` : null,
    `${usage.prompt_tokens} in the question${cached ? `, ${cached} cached` : ""}`,
  ].filter(Boolean).join(" · ");
}
