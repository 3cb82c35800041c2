// Conversations and settings of this browser: conversations with their pictures in IndexedDB, settings in localStorage.
// A conversation is {id, title, changed, revision, schema, messages}; a message {role, text, pictures: [{name, blob}], ...}.

const SETTINGS = "mlx-lfm2vl-settings";
const OPEN = "mlx-lfm2vl-open";
let opened;
let saving = Promise.resolve(); // the last of the writes, which wait for each other

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("mlx-lfm2vl", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function run(mode, act) {
  const transaction = (await database()).transaction("conversations", mode);
  const request = act(transaction.objectStore("conversations"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

/** All conversations, the one changed last first. */
export async function loadConversations() {
  const found = await run("readonly", (store) => store.getAll());
  found.forEach((conversation) => settle(conversation, "cancelled")); // the page was closed meanwhile
  return found.sort((one, other) => other.changed - one.changed);
}

/** One conversation as another window has kept it; undefined where there is none. */
export async function loadConversation(id) {
  const found = await run("readonly", (store) => store.get(id));
  if (found) settle(found, "elsewhere");
  return found;
}

function settle(conversation, finish) {
  for (const message of conversation.messages) if (message.running) Object.assign(message, { running: false, finish });
}

/** Keeps a conversation and counts its revision. False, and nothing is kept, where another window has changed it. */
export function saveConversation(conversation) {
  const write = async () => {
    const known = conversation.revision ?? 0;
    let kept = false;
    await run("readwrite", (store) => {
      const found = store.get(conversation.id);
      found.onsuccess = () => {
        kept = (found.result?.revision ?? 0) === known;
        if (kept) store.put({ ...conversation, revision: known + 1 });
      };
      return found;
    });
    if (kept) conversation.revision = known + 1;
    return kept;
  };
  saving = saving.then(write, write);
  return saving;
}

export function deleteConversation(id) {
  return run("readwrite", (store) => store.delete(id));
}

export function newConversation() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "New conversation", changed: Date.now(), messages: [] };
}

/** Remembers which conversation this window has open. */
export function setOpen(id) {
  sessionStorage.setItem(OPEN, id);
}

export function lastOpen() {
  return sessionStorage.getItem(OPEN);
}

export function loadSettings() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
  } catch {
    return {}; // written by something else
  }
}

export function saveSettings(settings) {
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
}
