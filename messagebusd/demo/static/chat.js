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

  // {id, name}, as the server says; null before the login. Whose page this is, is decided by the
  // cookie alone, which scripts cannot read. The bus asks the server whose cookie comes with a poll.
  let me = null;
  // After a restart of the server the same person has another id; older messages carry older ids.
  const mine = new Set();

  function randomName() {
    const pick = (words) => words[Math.floor(Math.random() * words.length)];
    const adjectives = ["brisk", "calm", "early", "keen", "lucky", "merry", "quick", "sunny"];
    const nouns = ["badger", "finch", "heron", "lynx", "marten", "otter", "puffin", "wren"];
    return `${pick(adjectives)}-${pick(nouns)}`;
  }

  // Returns {person} or {error}, a text.
  async function session(method, body) {
    try {
      const response = await fetch("chat/session", {
        method,
        headers: body === undefined ? {} : { "Content-Type": "application/json" },
        body: body === undefined ? null : JSON.stringify(body),
      });
      return await response.json();
    } catch {
      return { error: "The server cannot be reached." };
    }
  }

  // Takes a name: the login, or another name for who is logged in. Returns what is wrong, or "".
  async function takeName(typed) {
    const name = typed.trim().normalize("NFC");
    if (!NAME.test(name)) return "1 to 32 letters, digits, dots, dashes and underscores.";
    const { person, error } = await session("POST", { name });
    if (error !== undefined) return error;
    enter(person);
    return "";
  }

  function enter(person) {
    // Somebody else than before, on the same page: nothing of the former person may stay on it.
    if (me !== null && me.id !== person.id && me.name !== person.name) return location.reload();
    me = person;
    mine.add(me.id);
    $("you").textContent = me.name;
    $("name").value = me.name;
    document.body.dataset.visitor = "known";
    // Other tabs of this browser have the same cookie, and hear of it by this.
    localStorage.setItem("person", JSON.stringify(me));
    redraw();
    scrollToEnd();
    if (!disconnected) MessageBus.start();
  }

  function askForName(reason) {
    MessageBus.stop();
    togglePanel(false);
    document.body.dataset.visitor = "nobody";
    show("disconnected");
    $("login-reason").textContent = reason;
    $("login-name").value = me?.name ?? randomName();
    $("login-name").focus();
    $("login-name").select();
  }

  $("login").addEventListener("submit", async (event) => {
    event.preventDefault();
    $("login-problem").textContent = await takeName($("login-name").value);
    if (document.body.dataset.visitor === "known") focusText();
  });

  $("rename").addEventListener("submit", async (event) => {
    event.preventDefault();
    $("name-problem").textContent = await takeName($("name").value);
    if ($("name-problem").textContent !== "") return;
    togglePanel(false);
    text.focus();
  });

  $("logout").addEventListener("click", async () => {
    const { error } = await session("DELETE");
    $("name-problem").textContent = error ?? "";
    if (error !== undefined) return;
    localStorage.removeItem("person");
    location.reload();
  });

  addEventListener("storage", ({ key, newValue }) => {
    if (key !== "person") return;
    const person = newValue === null ? null : JSON.parse(newValue);
    if (person?.id === me?.id) {
      if (person) enter(person);
    } else location.reload();
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
    for (const { channel, last_id } of MessageBus.callbacks) {
      $(channel === ROOM ? "fact-room" : "fact-private").textContent = last_id < 0 ? "–" : last_id;
    }
  }

  const SHOWN = {
    connecting: "connecting",
    failing: "reconnecting",
    offline: "reconnecting",
    "rate-limited": "busy",
    stopped: "disconnected",
  };
  let hasFailed = false;
  MessageBus.on("state", ({ status, mode }) => {
    if (status === "failing" || status === "offline") hasFailed = true;
    if (status === "connected") hasFailed = false;
    // While it tries again, keep saying what is wrong.
    if (status === "connecting" && hasFailed) return;
    show(status === "connected" ? mode : (SHOWN[status] ?? "connecting"));
    // What comes with the first answer is delivered after this.
    if (status === "connected") setTimeout(() => ($("empty").hidden = log.children.length > 0));
    showFacts();
  });
  MessageBus.on("error", ({ status }) => {
    if (status === 403) logInAgain();
  });

  // The server does not know the cookie: it was restarted, or the login is over.
  function logInAgain() {
    if (document.body.dataset.visitor !== "known") return;
    askForName("The chat does not know you any more: it was restarted, or you were away for long.");
  }

  // What a closed lid or a tunnel does, at the push of a button.
  let disconnected = false;
  $("disconnect").addEventListener("click", () => {
    disconnected = !disconnected;
    if (disconnected) MessageBus.stop();
    else MessageBus.start();
    $("disconnect").textContent = disconnected ? "Connect" : "Disconnect";
  });

  // --- the conversation ---------------------------------------------------------------------

  // Anybody with a key may publish here: show what is a chat message, ignore the rest.
  function isPerson(value) {
    return typeof value?.id === "string" && typeof value.name === "string";
  }

  function isChatMessage(data) {
    return (
      typeof data?.text === "string" &&
      isPerson(data.from) &&
      (data.to === undefined || isPerson(data.to)) &&
      typeof data.at === "number" &&
      !Number.isNaN(new Date(data.at).getTime())
    );
  }

  function receive(message) {
    if (!isChatMessage(message)) return;
    messagesReceived += 1;
    const following = isAtEnd();

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
    if (following || mine.has(message.from.id)) scrollToEnd();
    else $("newer").hidden = false;
    showFacts();
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
    item.classList.toggle("mine", mine.has(message.from.id));
    item.classList.toggle("private", Boolean(message.to));
    item.style.setProperty("--speaker", `var(--line-${hash(message.from.name) % LINE_COLOURS})`);

    const mark = element("span", "mark", initials(message.from.name));
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

  function person({ id, name }) {
    if (mine.has(id)) return element("strong", "person", "you");
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
      before?.from.id === from.id &&
        before.from.name === from.name &&
        before.to?.id === to?.id &&
        at - before.at < SAME_SPEAKER_MS,
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
    const message = { text: typed.trim() };
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
      if (response.ok) return null;
      if (response.status === 401) logInAgain();
      return (await response.json()).error;
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

  // Cookies belong to a host name, whatever the port: under its other name this machine shows the
  // chat to somebody else.
  const otherName = { "127.0.0.1": "localhost", localhost: "127.0.0.1" }[location.hostname];
  if (otherName !== undefined) {
    const link = element("a", "", "Open a second window");
    link.href = Object.assign(new URL(location.href), { hostname: otherName }).href;
    link.target = "_blank";
    link.rel = "noopener";
    $("second").replaceChildren(link);
  }

  // On a phone the focus would bring up the keyboard, over half of the conversation.
  function focusText() {
    if (matchMedia("(pointer: fine)").matches) text.focus();
  }

  async function begin() {
    const { person, error } = await session("GET");
    if (error !== undefined) {
      show("reconnecting");
      return setTimeout(begin, 2000);
    }
    if (person === null) return askForName("");
    enter(person);
    focusText();
  }

  togglePanel(false);
  // Waits between failed polls; the client's own 15 s suit a busy site better than a demo.
  MessageBus.callbackInterval = 2000;
  MessageBus.maxPollInterval = 10000;
  // Subscribing while stopped, then starting, sends the first poll at once and with both channels.
  MessageBus.stop();
  MessageBus.subscribe(ROOM, receive, LAST_50);
  MessageBus.subscribe(PRIVATE, receive, LAST_50);
  begin();
})();
