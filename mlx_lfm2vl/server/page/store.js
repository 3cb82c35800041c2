// Conversations and settings of this browser: conversations with their pictures in IndexedDB, settings in localStorage.
// A conversation is {id, title, changed, messages}; a message {role, text, pictures: [{name, blob}], ...}.

const SETTINGS = "mlx-lfm2vl-settings";
let opened;

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
  for (const message of found.flatMap((conversation) => conversation.messages)) {
    if (message.running) Object.assign(message, { running: false, finish: "cancelled" }); // the page was closed meanwhile
  }
  return found.sort((one, other) => other.changed - one.changed);
}

export function saveConversation(conversation) {
  return run("readwrite", (store) => store.put(conversation));
}

export function deleteConversation(id) {
  return run("readwrite", (store) => store.delete(id));
}

export function newConversation() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "New conversation", changed: Date.now(), messages: [] };
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
