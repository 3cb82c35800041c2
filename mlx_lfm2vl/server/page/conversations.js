// The conversations of this browser: a list in step with the store and with other windows of the page. A conversation
// that two windows go on with at once becomes two, so that no turn is lost.

import { notice } from "./dom.js";
import { forget } from "./messages.js";
import { deleteConversation, loadConversation, loadConversations, newConversation, saveConversation } from "./store.js";

/** `changed` is called with a conversation that is not as it was; one that is `busy` is left alone. */
export function makeConversations({ changed, busy }) {
  const others = new BroadcastChannel("mlx-lfm2vl");
  let list = [];

  function sorted() {
    return list.sort((one, other) => other.changed - one.changed);
  }

  async function load() {
    const loaded = await loadConversations();
    list = [...list, ...loaded.filter(({ id }) => !list.some((own) => own.id === id))];
  }

  async function keep(conversation) {
    if (!conversation.messages.length) return; // it was deleted while it was answered
    if (!list.includes(conversation)) list.push(conversation);
    try {
      if (!(await saveConversation(conversation))) await part(conversation);
      others.postMessage(conversation.id);
    } catch {
      notice("This browser does not keep conversations here; this one is lost when the page is closed.");
    }
  }

  /** Keeps a conversation beside what another window has made of it. */
  async function part(conversation) {
    const theirs = await loadConversation(conversation.id);
    if (theirs) list.push(theirs);
    Object.assign(conversation, { id: newConversation().id, title: `${conversation.title} (copy)`, revision: 0 });
    await saveConversation(conversation);
    notice("Another window went on with this conversation. What was asked here is kept as a copy.");
  }

  async function remove(conversation) {
    list = list.filter((other) => other !== conversation);
    letGo(conversation);
    Object.assign(conversation, { messages: [], revision: 0 });
    try {
      await deleteConversation(conversation.id);
      others.postMessage(conversation.id);
    } catch {
      notice("This browser keeps no conversations here, so there was nothing to delete.");
    }
  }

  /** Takes what another window has made of a conversation. */
  async function take(id) {
    const theirs = await loadConversation(id);
    const own = list.find((conversation) => conversation.id === id);
    if (own && busy(own)) return; // it is parted when it is kept
    if (own && (theirs ? theirs.revision === own.revision : !own.revision)) return;
    if (own) letGo(own);
    if (!theirs) list = list.filter((conversation) => conversation !== own);
    else if (own) Object.assign(own, { ...theirs, schema: own.schema });
    else list.push(theirs);
    if (own && !theirs) Object.assign(own, { messages: [], revision: 0 });
    changed(own ?? theirs);
  }

  others.addEventListener("message", ({ data }) => take(data));
  return { load, keep, remove, take, sorted, find: (id) => list.find((conversation) => conversation.id === id) };
}

function letGo(conversation) {
  for (const picture of conversation.messages.flatMap((message) => message.pictures)) forget(picture.blob);
}
