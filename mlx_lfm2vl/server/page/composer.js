// The field of the question, its pictures and videos. It calls `send({text, pictures})`; pictures are {name, blob}, and
// videos are among them.

import { notice } from "./dom.js";
import { isDocument, isVideo, removableItem } from "./messages.js";

const MOST_BYTES = 50 * 2 ** 20;

/** Makes the form of the page work. `open` shows a picture large. Returns what the rest of the page needs of it. */
export function makeComposer({ send, open }) {
  const form = document.getElementById("composer");
  const prompt = document.getElementById("prompt");
  const list = document.getElementById("pictures");
  const files = document.getElementById("files");
  const drop = document.getElementById("drop");
  let pictures = [];

  function show() {
    list.replaceChildren(...pictures.map((picture) => removableItem(picture, open, () => {
      pictures = pictures.filter((other) => other !== picture);
      show();
      prompt.focus();
    })));
    list.hidden = !pictures.length;
  }

  function grow() {
    prompt.style.height = "auto";
    prompt.style.height = `${Math.min(prompt.scrollHeight, window.innerHeight * 0.4)}px`;
  }

  function add(given) {
    for (const file of given) {
      if (!looksLikePicture(file) && !isVideo({ name: file.name, blob: file })) notice(`${file.name} is no picture, video or PDF document.`);
      else if (file.size > MOST_BYTES) notice(`${file.name} has ${Math.round(file.size / 2 ** 20)} MB; a file may have ${MOST_BYTES / 2 ** 20} MB.`);
      else pictures.push({ name: file.name || "pasted picture", blob: file });
    }
    show();
    prompt.focus();
  }

  function setText(text) {
    prompt.value = text;
    grow();
    prompt.focus();
  }

  function set(text, chosen) {
    pictures = [...chosen];
    show();
    setText(text);
  }

  async function submit() {
    const text = prompt.value.trim();
    if (!text && !pictures.length) return;
    const taken = await send({ text, pictures });
    if (taken) set("", []);
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  prompt.addEventListener("input", grow);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  });
  prompt.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) { event.preventDefault(); add(event.clipboardData.files); }
  });
  document.getElementById("choose").addEventListener("click", () => files.click());
  files.addEventListener("change", () => { add(files.files); files.value = ""; });

  let inside = 0;
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  const over = (count) => { inside = count; drop.hidden = count <= 0; };
  window.addEventListener("dragenter", (event) => { if (carriesFiles(event)) { event.preventDefault(); over(inside + 1); } });
  window.addEventListener("dragleave", (event) => { if (carriesFiles(event)) over(inside - 1); });
  window.addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
  window.addEventListener("drop", (event) => { if (carriesFiles(event)) { event.preventDefault(); over(0); add(event.dataTransfer.files); } });

  show();
  return { set, setText, draft: () => ({ text: prompt.value, pictures }), focus: () => prompt.focus() };
}

function looksLikePicture(file) {
  return file.type.startsWith("image/") || /\.(heic|heif|avif|tiff?)$/i.test(file.name) || isDocument({ name: file.name, blob: file });
}
