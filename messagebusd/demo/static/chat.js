// The chat page: everything it shows arrives over the bus, its own messages included.
(function () {
  "use strict";

  const ROOM = "/chat/room";
  const PRIVATE = "/chat/private";
  // Position -1-n asks for the last n messages: 50 of each channel when the page opens.
  const LAST_50 = -51;
  const KEPT_ON_PAGE = 500;
  const SAME_SPEAKER_MS = 5 * 60 * 1000;
  const NAME = /^[\p{L}\p{N}\p{M}._-]{1,32}$/u;
  const LINE_COLOURS = 8;

  const $ = (id) => document.getElementById(id);
  const log = $("log");
  const scroller = $("scroller");
  const text = $("text");

  // --- who I am -----------------------------------------------------------------------------

  const asGuest = new URLSearchParams(location.search).has("guest");
  let me = loadName();

  function randomName() {
    const pick = (words) => words[Math.floor(Math.random() * words.length)];
    const adjectives = ["brisk", "calm", "early", "keen", "lucky", "merry", "quick", "sunny"];
    const nouns = ["badger", "finch", "heron", "lynx", "marten", "otter", "puffin", "wren"];
    return `${pick(adjectives)}-${pick(nouns)}`;
  }

  // A tab keeps its name over a reload; a new tab starts with the name chosen last. Guests, who
  // come from "Open a second window", get one of their own that other tabs do not inherit.
  function loadName() {
    const known = sessionStorage.getItem("name") || (!asGuest && localStorage.getItem("name"));
    const name = known && NAME.test(known) ? known : randomName();
    saveName(name);
    return name;
  }

  function saveName(name) {
    sessionStorage.setItem("name", name);
    if (!asGuest) localStorage.setItem("name", name);
  }

  // A shortcut for this demo alone: here the page itself says who its user is. On a real site it
  // is the proxy (auth_request), a signed token, or the site's lookup webhook that says so, and
  // the proxy removes this header from whatever browsers send.
  function introduce() {
    // As a JSON string, so that a user called 42 or null is still a name; and in ASCII, because
    // header values are.
    const json = JSON.stringify(me).replace(
      /[\u007f-\uffff]/g,
      (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"),
    );
    MessageBus.headers["X-MessageBus-User"] = json;
    $("you").textContent = me;
    $("name").value = me;
  }

  $("rename").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("name").value.trim().normalize("NFC");
    if (!NAME.test(name)) {
      $("name-problem").textContent = "1 to 32 letters, digits, dots, dashes and underscores.";
      return;
    }
    $("name-problem").textContent = "";
    if (name !== me) {
      me = name;
      saveName(me);
      writeTo(null);
      // What was for the old name's eyes only leaves the page; what is for the new one arrives.
      MessageBus.unsubscribe(PRIVATE);
      for (const item of [...log.children]) {
        if (item.message.to) item.remove();
      }
      introduce();
      MessageBus.subscribe(PRIVATE, receive, LAST_50);
      redraw();
    }
    togglePanel(false);
    text.focus();
  });

  // --- the connection -----------------------------------------------------------------------

  const STATES = {
    connecting: ["Connecting", ""],
    streaming: ["Streaming", "over one open response"],
    "long-polling": ["Long polling", "one response for each piece of news"],
    polling: ["Polling", "asking now and then while nobody looks"],
    busy: ["Waiting", "the server asked to come back later"],
    disconnected: ["Disconnected", "keeping its place"],
    reconnecting: ["Reconnecting", "to catch up from where it was"],
  };
  let messagesReceived = 0;
  let pollsOpened = 0;

  function show(state) {
    if (document.body.dataset.state === state) return;
    document.body.dataset.state = state;
    const [title, detail] = STATES[state];
    $("state").textContent = title;
    $("state-detail").textContent = detail;
    $("fact-state").textContent = title.toLowerCase();
  }

  function showFacts() {
    $("fact-messages").textContent = messagesReceived;
    $("fact-polls").textContent = pollsOpened;
    for (const { channel, last_id } of MessageBus.callbacks) {
      $(channel === ROOM ? "fact-room" : "fact-private").textContent = last_id < 0 ? "–" : last_id;
    }
  }

  // Listens in on each poll of the client to see how it goes.
  const poll = MessageBus.ajax;
  MessageBus.ajax = function (options) {
    const xhr = poll(options);
    pollsOpened += 1;
    showFacts();

    const waiting = options.url.endsWith("dlp=t") ? "polling" : "long-polling";
    // A poll that cannot stream shows nothing before its answer: after a failure, keep saying so.
    if (!options.messageBus.chunked && document.body.dataset.state !== "reconnecting") show(waiting);

    const answered = () => {
      if (xhr.status === 429) show("busy");
      else if (xhr.status !== 200) show("reconnecting");
      else if (xhr.getResponseHeader("Content-Type").startsWith("text/plain")) show("streaming");
      else show(waiting);
      if (xhr.status === 200) $("empty").hidden = log.children.length > 0;
      showFacts();
    };
    xhr.addEventListener("progress", answered);
    xhr.addEventListener("load", answered);
    xhr.addEventListener("error", () => show("reconnecting"));
    return xhr;
  };

  // What a closed lid or a tunnel does, at the push of a button.
  $("disconnect").addEventListener("click", () => {
    const disconnect = MessageBus.status() === "started";
    if (disconnect) MessageBus.stop();
    else MessageBus.start();
    show(disconnect ? "disconnected" : "connecting");
    $("disconnect").textContent = disconnect ? "Connect" : "Disconnect";
  });

  // --- the conversation ---------------------------------------------------------------------

  // Anybody with a key may publish here: show what is a chat message, ignore the rest.
  function isChatMessage(data) {
    return (
      typeof data?.text === "string" &&
      typeof data.from === "string" &&
      (data.to === undefined || typeof data.to === "string") &&
      typeof data.at === "number" &&
      !Number.isNaN(new Date(data.at).getTime())
    );
  }

  function receive(message) {
    if (!isChatMessage(message)) return;
    messagesReceived += 1;
    const following = isAtEnd();
    const mine = message.from === me;

    // The two channels arrive one after the other when the page opens: put them in order.
    const item = draw(message);
    let after = log.lastElementChild;
    while (after && after.message.at > message.at) after = after.previousElementSibling;
    if (after) after.after(item);
    else log.prepend(item);
    if (log.children.length > KEPT_ON_PAGE) log.firstElementChild.remove();

    group(item);
    group(item.nextElementSibling);
    $("empty").hidden = true;
    if (following || mine) scrollToEnd();
    else $("newer").hidden = false;
  }

  function element(tag, className, content) {
    const node = document.createElement(tag);
    node.className = className;
    // Never as HTML: names and texts are what somebody typed.
    if (content !== undefined) node.textContent = content;
    return node;
  }

  function draw(message) {
    const item = element("li", "stop");
    item.message = message;
    const mine = message.from === me;
    item.classList.toggle("mine", mine);
    item.classList.toggle("private", Boolean(message.to));
    item.style.setProperty("--speaker", `var(--line-${hash(message.from) % LINE_COLOURS})`);

    const mark = element("span", "mark", initials(message.from));
    mark.setAttribute("aria-hidden", "true");

    const by = element("div", "by");
    by.append(person(message.from));
    if (message.to) {
      by.append(element("span", "to-whom", " to "), person(message.to));
      by.append(element("span", "tag", "private"));
    }
    const at = new Date(message.at);
    const time = element("time", "quiet", at.toLocaleTimeString([], { timeStyle: "short" }));
    time.dateTime = at.toISOString();
    time.title = at.toLocaleString();
    by.append(time);

    item.append(mark, by, element("p", "text", message.text));
    return item;
  }

  function person(name) {
    if (name === me) return element("strong", "person", "you");
    const button = element("button", "person", name);
    button.type = "button";
    button.title = `Write to ${name} only`;
    button.addEventListener("click", () => writeTo(name));
    return button;
  }

  // Messages of one speaker in a row share one heading.
  function group(item) {
    if (!item) return;
    const before = item.previousElementSibling?.message;
    const { from, to, at } = item.message;
    item.classList.toggle(
      "follows",
      before?.from === from && before.to === to && at - before.at < SAME_SPEAKER_MS,
    );
  }

  function redraw() {
    for (const item of [...log.children]) item.replaceWith(draw(item.message));
    for (const item of log.children) group(item);
  }

  function initials(name) {
    const [first, second] = name.split(/[._-]+/).filter(Boolean);
    return [first ?? name, second ?? ""].map((part) => [...part][0] ?? "").join("").toUpperCase();
  }

  // FNV-1a, so that similar names get different colours.
  function hash(name) {
    let h = 0x811c9dc5;
    for (const c of name) h = Math.imul(h ^ c.codePointAt(0), 0x01000193);
    return (h ^ (h >>> 15)) >>> 0;
  }

  function isAtEnd() {
    return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
  }

  function scrollToEnd() {
    scroller.scrollTop = scroller.scrollHeight;
    $("newer").hidden = true;
  }

  scroller.addEventListener("scroll", () => {
    if (isAtEnd()) $("newer").hidden = true;
  });
  $("newer").addEventListener("click", scrollToEnd);
  // A phone's keyboard opens, a window shrinks: stay with the newest message.
  let wasAtEnd = true;
  scroller.addEventListener("scroll", () => (wasAtEnd = isAtEnd()));
  new ResizeObserver(() => wasAtEnd && scrollToEnd()).observe(scroller);

  // --- writing ------------------------------------------------------------------------------

  let recipient = null;

  function writeTo(name) {
    recipient = name;
    $("to").textContent = name ?? "everyone";
    $("to-everyone").hidden = name === null;
    $("composer").classList.toggle("private", name !== null);
    text.focus();
  }

  $("to-everyone").addEventListener("click", () => writeTo(null));

  text.addEventListener("keydown", (event) => {
    // isComposing: Enter that only accepts what an input method suggests.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("composer").requestSubmit();
    }
    if (event.key === "Escape" && recipient !== null) writeTo(null);
  });

  // One message after the other, so that they arrive in the order in which they were written.
  let sending = Promise.resolve();

  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = text.value;
    const message = { from: me, text: typed.trim() };
    if (recipient !== null) message.to = recipient;
    const addressed = /^@([\p{L}\p{N}\p{M}._-]{1,32})\s+([^]+)$/u.exec(message.text);
    if (addressed) [, message.to, message.text] = addressed;
    if (message.text === "") return;

    text.value = "";
    $("problem").textContent = "";
    sending = sending.then(async () => {
      const problem = await send(message);
      if (problem === null) return;
      // Give it back, after whatever has been typed meanwhile.
      text.value = text.value ? `${text.value}\n${typed}` : typed;
      $("problem").textContent = `Not sent. ${problem}`;
    });
  });

  // Returns what went wrong, or null.
  async function send(message) {
    try {
      const response = await fetch("chat/messages", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(message),
      });
      return response.ok ? null : (await response.json()).error;
    } catch {
      return "The server cannot be reached.";
    }
  }

  // --- the side panel of narrow windows -----------------------------------------------------

  const narrow = matchMedia("(max-width: 55rem)");

  function togglePanel(open) {
    $("panel").classList.toggle("open", open);
    if (narrow.matches) $("panel-toggle").setAttribute("aria-expanded", open);
    else $("panel-toggle").removeAttribute("aria-expanded");
  }

  $("panel-toggle").addEventListener("click", () => {
    togglePanel(!$("panel").classList.contains("open"));
    if (!narrow.matches || $("panel").classList.contains("open")) $("name").focus();
  });
  narrow.addEventListener("change", () => togglePanel(false));
  $("panel").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && narrow.matches) {
      togglePanel(false);
      $("panel-toggle").focus();
    }
  });

  // --- go -----------------------------------------------------------------------------------

  togglePanel(false);
  introduce();
  // Waits between failed polls; the client's own 15 s suit a busy site better than a demo.
  MessageBus.callbackInterval = 2000;
  MessageBus.maxPollInterval = 10000;
  // Subscribing while stopped, then starting, sends the first poll at once and with both channels.
  MessageBus.stop();
  MessageBus.subscribe(ROOM, receive, LAST_50);
  MessageBus.subscribe(PRIVATE, receive, LAST_50);
  MessageBus.start();
  // On a phone the focus would bring up the keyboard, over half of the conversation.
  if (matchMedia("(pointer: fine)").matches) text.focus();
})();
