// The page: conversations, the one that is open, and the answer that is running. State lives here; the other modules
// make elements of it.

import { ApiError, chat } from "./api.js";
import { makeComposer } from "./composer.js";
import { makeConversations } from "./conversations.js";
import { element, hideNotice, iconButton, notice } from "./dom.js";
import { inWords } from "./errors.js";
import { answerElement, editElement, isDocument, isVideo, questionElement } from "./messages.js";
import { makeModels } from "./models.js";
import { makeSettings } from "./settings.js";
import { lastOpen, newConversation, setOpen } from "./store.js";

const IDEAS = ["What is in this picture?", "Read the text in this picture.", "Provide bounding boxes for every shape."];
const byId = (id) => document.getElementById(id);
const scroll = byId("scroll");
const settings = makeSettings({ schemaChanged: (schema) => { current.schema = schema; } });
const models = makeModels(settings);
const composer = makeComposer({ send, open: openPicture });
const conversations = makeConversations({
  changed: showChanged,
  busy: (conversation) => running?.conversation === conversation || (conversation === current && editing !== null),
});
const drafts = new WeakMap(); // from conversations to {text, pictures} that were not sent
let current = newConversation();
let running = null; // {conversation, controller}
let editing = null; // the question that is edited

// Answering

/** Takes a question. False if one is being answered. */
async function send({ text, pictures }) {
  if (running) return false;
  const conversation = current;
  editing = null;
  hideNotice(); // what it offers to undo was before this
  conversation.messages.push({ role: "user", text, pictures });
  if (conversation.messages.length === 1) conversation.title = titleOf({ text, pictures });
  answer(conversation);
  return true;
}

function titleOf({ text, pictures }) {
  return (text || pictures[0].name).slice(0, 60);
}

/** Answers the last question of a conversation. */
async function answer(conversation) {
  const message = { role: "assistant", text: "", pictures: [], running: true, schema: settings.hasSchema() };
  const body = settings.body();
  const asked = answerable(conversation.messages);
  const controller = new AbortController();
  running = { conversation, controller };
  conversation.messages.push(message);
  showBusy();
  showMessages();
  scroll.scrollTop = scroll.scrollHeight;
  await keep(conversation); // a page that is closed meanwhile loses no question
  const started = performance.now();
  const since = () => (performance.now() - started) / 1000;
  let sent = [];
  try {
    if (!models.chosen()) await models.show(); // a question may come before their first list
    body.model = models.chosen();
    sent = [...(settings.system() ? [[]] : []), ...asked.map(({ pictures }) => pictures.map(({ name }) => name))];
    body.messages = await requestMessages(asked);
    for await (const event of chat(body, controller.signal)) {
      if (event.text) {
        message.firstToken ??= since();
        message.seconds = since();
        message.text += event.text;
        refresh(message);
      }
      if (event.usage) message.usage = event.usage;
      if (event.finish) message.finish = event.finish;
    }
  } catch (error) {
    if (error.name === "AbortError") message.finish = "cancelled";
    else message.error = error instanceof ApiError ? inWords(error.message, sent) : error.message;
    if (error instanceof ApiError && error.status === 401) models.askForKey();
  }
  delete message.running;
  running = null;
  conversation.changed = Date.now();
  refresh(message);
  showBusy();
  byId("spoken").textContent = message.error ?? message.text;
  await keep(conversation);
  models.show();
}

/** The messages that a request repeats: not those of which only an error came. */
function answerable(messages) {
  return messages.filter(({ text, error }) => text || !error);
}

async function requestMessages(messages) {
  const made = settings.system() ? [{ role: "system", content: settings.system() }] : [];
  for (const { role, text, pictures } of messages) {
    const urls = await Promise.all(pictures.map((picture) => dataUri(picture.blob)));
    const parts = urls.map((url, index) => isVideo(pictures[index])
      ? { type: "video_url", video_url: { url } }
      : { type: "image_url", image_url: { url } });
    made.push({ role, content: parts.length ? [...parts, ...(text ? [{ type: "text", text }] : [])] : text });
  }
  return made;
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("A picture of this conversation cannot be read any more."));
    reader.readAsDataURL(blob);
  });
}

function stop() {
  running?.controller.abort();
}

/** Answers anew from a place in the conversation, there by another question if one is given. It can be undone. */
function replace(index, question) {
  if (running) return notice("Another answer is running. Stop it first.");
  const conversation = current;
  const before = conversation.messages;
  const after = [...before.slice(0, index), ...(question ? [question] : [])];
  const title = conversation.title;
  editing = null;
  Object.assign(conversation, { messages: after, title: index === 0 ? titleOf(after[0]) : title });
  answer(conversation);
  notice(before.length > after.length ? "What followed was replaced." : "The answer was replaced.", () => {
    if (conversation.messages !== after) return; // another window has changed it
    if (running?.conversation === conversation) stop();
    Object.assign(conversation, { messages: before, title });
    if (conversation === current) {
      editing = null;
      showMessages();
    }
    keep(conversation);
  });
}

function edit(message) {
  if (running) return notice("Another answer is running. Stop it first.");
  editing = message;
  showMessages();
  document.querySelector(".edit textarea").focus();
}

function leaveEdit() {
  editing = null;
  showMessages();
  composer.focus();
  if (current.revision) conversations.take(current.id); // another window may have gone on
}

async function keep(conversation) {
  await conversations.keep(conversation);
  showConversations();
}

// Showing

const shows = new Map(); // from messages to the functions that show them
let frame = 0;

function refresh(message) {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => {
    const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
    shows.get(message)?.();
    if (atEnd) scroll.scrollTop = scroll.scrollHeight;
  });
}

function showMessages() {
  shows.clear();
  let pictures = [];
  const made = current.messages.map((message, index) => {
    if (message === editing) return editElement(message, { send: ({ text, pictures }) => replace(index, { role: "user", text, pictures }), cancel: leaveEdit, open: openPicture });
    if (message.role === "user") {
      pictures = [...pictures, ...message.pictures.filter((picture) => !isVideo(picture))];
      return questionElement(message, { edit: () => edit(message), open: openPicture });
    }
    const document = pictures.findIndex(isDocument); // the numbers behind it depend on its pages
    const [row, show] = answerElement(message, document < 0 ? pictures : pictures.slice(0, document), { retry: () => replace(index) });
    shows.set(message, show);
    return row;
  });
  byId("messages").replaceChildren(...made);
  byId("welcome").hidden = made.length > 0;
  document.title = made.length ? `${current.title} · mlx-lfm2vl` : "mlx-lfm2vl";
}

function showConversations() {
  if (current.messages.length) setOpen(current.id);
  byId("conversations").replaceChildren(...conversations.sorted().map((conversation) => element("li", {},
    element("button", { type: "button", class: "conversation", "aria-current": conversation === current ? "true" : null, title: conversation.title, onclick: () => openConversation(conversation) }, conversation.title),
    iconButton("delete", `Delete ${conversation.title}`, () => remove(conversation)))));
}

/** Shows what another window has made of a conversation. */
function showChanged(conversation) {
  if (conversation !== current) showConversations();
  else if (!current.messages.length) openConversation(newConversation());
  else {
    showMessages();
    showConversations();
  }
}

function openConversation(conversation) {
  if (conversation !== current) exchangeDrafts(conversation);
  current = conversation;
  editing = null;
  setOpen(conversation.id);
  showMessages();
  showConversations();
  showSidebar(false);
  scroll.scrollTop = scroll.scrollHeight;
  composer.focus();
}

/** Puts what was not sent aside, with its conversation, and brings back what the other conversation has. */
function exchangeDrafts(conversation) {
  const left = current;
  const draft = composer.draft();
  drafts.set(left, draft);
  const { text, pictures } = drafts.get(conversation) ?? { text: "", pictures: [] };
  composer.set(text, pictures);
  settings.useSchema(conversation.schema ?? null);
  if (!left.messages.length && (draft.text || draft.pictures.length)) notice("The question was put aside.", () => openConversation(left));
}

async function remove(conversation) {
  if (!window.confirm(`Delete "${conversation.title}"?`)) return;
  if (running?.conversation === conversation) stop();
  await conversations.remove(conversation);
  if (conversation === current) openConversation(newConversation());
  else showConversations();
}

function showBusy() {
  byId("send").hidden = Boolean(running);
  byId("stop").hidden = !running;
}

function showSidebar(open) {
  document.body.toggleAttribute("data-sidebar", open);
  byId("shade").hidden = !open;
  byId("open-sidebar").setAttribute("aria-expanded", String(open));
}

function openPicture(picture) {
  const large = byId("viewer-picture");
  large.src = picture.src;
  large.alt = picture.alt;
  byId("viewer").showModal();
}

// Beginning

byId("new").addEventListener("click", () => openConversation(newConversation()));
byId("stop").addEventListener("click", stop);
byId("open-sidebar").addEventListener("click", () => { showSidebar(true); byId("close-sidebar").focus(); });
for (const id of ["close-sidebar", "shade"]) byId(id).addEventListener("click", () => { showSidebar(false); byId("open-sidebar").focus(); });
byId("viewer-close").addEventListener("click", () => byId("viewer").close());
byId("viewer").addEventListener("click", (event) => { if (event.target === byId("viewer")) byId("viewer").close(); });
byId("ideas").append(...IDEAS.map((text) => element("button", { type: "button", text, onclick: () => composer.setText(text) })));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (document.body.hasAttribute("data-sidebar")) showSidebar(false);
    else stop();
  }
});
setInterval(() => { if (running && !document.hidden) models.show(); }, 1500); // the download of a model that is asked for first

showMessages();
models.show();
conversations.load().then(() => {
  const last = conversations.find(lastOpen());
  const { text, pictures } = composer.draft();
  if (last && !current.messages.length && !text && !pictures.length) openConversation(last);
  showConversations();
}, () => notice("This browser keeps no conversations here."));
composer.focus();
