// The page: conversations, the one that is open, and the answer that is running. State lives here; the other modules
// make elements of it.

import { ApiError, chat, hasKey, listModels, setKey } from "./api.js";
import { makeComposer } from "./composer.js";
import { element, iconButton, notice } from "./dom.js";
import { inWords } from "./errors.js";
import { answerElement, forget, questionElement } from "./messages.js";
import { makeSettings } from "./settings.js";
import { deleteConversation, loadConversations, newConversation, saveConversation } from "./store.js";

const IDEAS = ["What is in this picture?", "Read the text in this picture.", "Provide bounding boxes for every shape."];
const byId = (id) => document.getElementById(id);
const scroll = byId("scroll");
const settings = makeSettings();
const composer = makeComposer({ send, open: openPicture });
let conversations = [];
let current = newConversation();
let running = null; // {conversation, controller}

// Answering

/** Takes a question. False if one is being answered. */
async function send({ text, pictures }) {
  if (running) return false;
  const conversation = current;
  conversation.messages.push({ role: "user", text, pictures });
  if (conversation.messages.length === 1) conversation.title = (text || pictures[0].name).slice(0, 60);
  answer(conversation);
  return true;
}

/** Answers the last question of a conversation. */
async function answer(conversation) {
  const message = { role: "assistant", text: "", pictures: [], running: true, schema: settings.hasSchema() };
  const body = settings.body();
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
    if (!byId("model").value) await showModels(); // a question may come before their first list
    body.model = byId("model").value;
    const asked = answerable(conversation.messages.slice(0, -1));
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
    if (error instanceof ApiError && error.status === 401) askForKey();
  }
  delete message.running;
  running = null;
  conversation.changed = Date.now();
  refresh(message);
  showBusy();
  byId("spoken").textContent = message.error ?? message.text;
  await keep(conversation);
  showModels();
}

/** The messages that a request repeats: not those of which only an error came. */
function answerable(messages) {
  return messages.filter(({ text, error }) => text || !error);
}

async function requestMessages(messages) {
  const made = settings.system() ? [{ role: "system", content: settings.system() }] : [];
  for (const { role, text, pictures } of messages) {
    const urls = await Promise.all(pictures.map((picture) => dataUri(picture.blob)));
    const parts = urls.map((url) => ({ type: "image_url", image_url: { url } }));
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

/** Answers a question again, without what followed it. */
function retry(index) {
  if (running) return notice("Another answer is running. Stop it first.");
  current.messages.length = index;
  answer(current);
}

/** Takes a question back into the field, with what followed it. */
function edit(index) {
  if (running) return notice("Another answer is running. Stop it first.");
  const { text, pictures } = current.messages[index];
  current.messages.length = index;
  composer.set(text, pictures);
  showMessages();
  keep(current);
}

async function keep(conversation) {
  try {
    if (conversation.messages.length) {
      if (!conversations.includes(conversation)) conversations.push(conversation);
      await saveConversation(conversation);
    } else {
      conversations = conversations.filter((other) => other !== conversation);
      await deleteConversation(conversation.id);
    }
  } catch {
    notice("This browser does not keep conversations here; this one is lost when the page is closed.");
  }
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
    if (message.role === "user") {
      pictures = [...pictures, ...message.pictures];
      return questionElement(message, { edit: () => edit(index), open: openPicture });
    }
    const [row, show] = answerElement(message, pictures, { retry: () => retry(index) });
    shows.set(message, show);
    return row;
  });
  byId("messages").replaceChildren(...made);
  byId("welcome").hidden = made.length > 0;
  document.title = made.length ? `${current.title} · mlx-lfm2vl` : "mlx-lfm2vl";
}

function showConversations() {
  conversations.sort((one, other) => other.changed - one.changed);
  byId("conversations").replaceChildren(...conversations.map((conversation) => element("li", {},
    element("button", { type: "button", class: "conversation", "aria-current": conversation === current ? "true" : null, title: conversation.title, onclick: () => openConversation(conversation) }, conversation.title),
    iconButton("delete", `Delete ${conversation.title}`, () => remove(conversation)))));
}

function openConversation(conversation) {
  current = conversation;
  showMessages();
  showConversations();
  showSidebar(false);
  scroll.scrollTop = scroll.scrollHeight;
  composer.focus();
}

async function remove(conversation) {
  if (!window.confirm(`Delete "${conversation.title}"?`)) return;
  if (running?.conversation === conversation) stop();
  for (const picture of conversation.messages.flatMap((message) => message.pictures)) forget(picture.blob);
  conversation.messages = [];
  if (conversation === current) openConversation(newConversation());
  await keep(conversation);
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

// Models

async function showModels() {
  const select = byId("model");
  const state = byId("model-state");
  try {
    const models = await listModels();
    const chosen = select.value || settings.model();
    select.replaceChildren(...models.map(({ id }) => element("option", { value: id, text: id.split("/").at(-1) })));
    if (models.some(({ id }) => id === chosen)) select.value = chosen;
    state.textContent = stateOf(models.find(({ id }) => id === select.value));
  } catch (error) {
    state.textContent = error.message;
    if (error.status === 401) askForKey();
  }
}

function stateOf(model) {
  const { state, progress } = model ?? {};
  if (!["loading", "downloading"].includes(state)) return "";
  return progress?.total ? `${state}, ${Math.round((100 * progress.done) / progress.total)} %` : state;
}

function askForKey() {
  const dialog = byId("key");
  if (dialog.open) return;
  byId("key-error").textContent = hasKey() ? "The server refused this key." : "";
  dialog.addEventListener("close", () => { setKey(byId("key-text").value); showModels(); }, { once: true });
  dialog.showModal();
}

// Beginning

byId("new").addEventListener("click", () => openConversation(newConversation()));
byId("stop").addEventListener("click", stop);
byId("open-sidebar").addEventListener("click", () => { showSidebar(true); byId("close-sidebar").focus(); });
for (const id of ["close-sidebar", "shade"]) byId(id).addEventListener("click", () => { showSidebar(false); byId("open-sidebar").focus(); });
byId("viewer-close").addEventListener("click", () => byId("viewer").close());
byId("viewer").addEventListener("click", (event) => { if (event.target === byId("viewer")) byId("viewer").close(); });
byId("model").addEventListener("change", () => { settings.setModel(byId("model").value); showModels(); });
byId("ideas").append(...IDEAS.map((text) => element("button", { type: "button", text, onclick: () => composer.setText(text) })));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (document.body.hasAttribute("data-sidebar")) showSidebar(false);
    else stop();
  }
});
setInterval(() => { if (running && !document.hidden) showModels(); }, 1500); // the download of a model that is asked for first

showMessages();
showModels();
loadConversations().then((loaded) => { conversations = loaded; showConversations(); }, () => notice("This browser keeps no conversations here."));
composer.focus();
