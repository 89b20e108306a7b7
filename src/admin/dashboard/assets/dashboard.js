// What the dashboard does beyond showing pages: new content in open pages, and the buttons, which call the API.
"use strict";

(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  document.documentElement.classList.add("scripted");

  // --- messages ---

  function tell(text, failed = false) {
    const messages = $("#messages");
    messages.classList.toggle("failed", failed);
    messages.textContent = text;
  }

  // --- times ---

  function span(seconds) {
    if (seconds < 100) return `${Math.floor(seconds)} s`;
    if (seconds < 6000) return `${Math.floor(seconds / 60)} min`;
    if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
    return `${Math.floor(seconds / 86400)} days`;
  }

  function ages() {
    for (const time of all("time[datetime]")) {
      const at = new Date(time.dateTime);
      const age = (Date.now() - at) / 1000;
      // Where this machine's clock differs from the server's, the server's words stay.
      if (age >= 0) time.textContent = age < 2 ? "just now" : `${span(age)} ago`;
      const title = at.toLocaleString();
      if (time.title !== title) time.title = title;
    }
  }

  // --- new content ---

  /** The page as it is now, at the same or another address. */
  async function fetched(address) {
    const response = await fetch(address, { headers: { accept: "text/html" }, credentials: "same-origin" });
    if (!response.ok) throw new Error(`${response.status}`);
    return new DOMParser().parseFromString(await response.text(), "text/html");
  }

  /** Whether somebody uses a part of the page just now: then it stays as it is. */
  function busy(part) {
    return part.contains(document.activeElement) || $("details.acts[open]", part) !== null || $("a:hover, button:hover", part) !== null;
  }

  let refreshing = false;

  /** Brings parts of the page up to date. */
  async function refresh(parts, evenBusy = false) {
    if (refreshing || parts.length === 0) return;
    refreshing = true;
    try {
      const page = await fetched(location.href);
      for (const part of parts) {
        const newer = page.getElementById(part.id);
        if (newer && (evenBusy || !busy(part)) && newer.innerHTML !== part.dataset.shown) {
          part.dataset.shown = newer.innerHTML;
          part.replaceChildren(...newer.childNodes);
        }
      }
      const [tabs, newTabs] = [$(".top nav ul"), $(".top nav ul", page)];
      if (tabs && newTabs && !tabs.contains(document.activeElement) && tabs.textContent !== newTabs.textContent) {
        tabs.replaceChildren(...newTabs.childNodes);
      }
      ages();
    } catch {
      // The next event is another chance; the sign of the connection shows what is wrong.
    } finally {
      refreshing = false;
    }
  }

  // --- the log ---

  const MOST = 200;
  let paused = false;
  let waiting = 0;
  let adding = false;
  let told = 0;

  function pause(isPaused) {
    paused = isPaused;
    const button = $("#pause");
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Go on" : "Pause";
    if (!paused) add();
  }

  /** Sends a request that changes something. */
  function change(address, method, headers = {}, body = undefined) {
    // Proves that it is this page that asks, where a login in this browser gives the right to.
    const token = $("meta[name=csrf-token]")?.content;
    const proof = token ? { "x-csrf-token": token } : {};
    return fetch(address, { method, credentials: "same-origin", headers: { ...headers, ...proof }, body });
  }

  /** Puts the pulls that are new at the top of the log. */
  async function add() {
    const log = $("ol#log");
    if (!log || paused || adding) return;
    adding = true;
    waiting = 0;
    try {
      const newest = log.firstElementChild?.dataset.id ?? "0";
      const address = new URL(location.href);
      address.searchParams.set("after", newest);
      const page = await fetched(address);
      const rows = all("ol#log > li", page);
      for (const row of rows) row.classList.add("new");
      if (rows.length > 0) {
        $("#log-panel .nothing")?.remove();
        log.prepend(...rows);
        while (log.children.length > MOST && !log.lastElementChild.contains(document.activeElement)) {
          log.lastElementChild.remove();
        }
        // A screen reader is told now and then, and how many only.
        if (Date.now() - told > 15000) {
          told = Date.now();
          $("#news").textContent = rows.length === 1 ? "1 new pull" : `${rows.length} new pulls`;
        }
      }
      ages();
    } catch {
      // As above.
    } finally {
      adding = false;
    }
  }

  function arrived() {
    waiting += 1;
    if (paused) $("#pause").textContent = `Go on (${waiting} new)`;
  }

  // --- events ---

  function listen() {
    const live = $("#live");
    const parts = all("[data-live]");
    const log = $("ol#log");
    if (parts.length === 0 && !log) return;
    live.hidden = false;
    const due = new Map(parts.map((part) => [part, Date.now() + part.dataset.live * 1000]));
    const source = new EventSource("/api/events");
    const show = (isOn, text) => {
      live.classList.toggle("on", isOn);
      $("#live-text").textContent = text;
    };
    show(false, "connecting");
    source.onopen = () => {
      show(true, "live");
      if (log) add();
    };
    source.onerror = () => show(false, source.readyState === EventSource.CLOSED ? "not live: load the page again" : "connecting again");
    source.addEventListener("pull", arrived);
    source.addEventListener("missed", arrived);
    // Once a second.
    source.addEventListener("stats", () => {
      if (document.hidden) return;
      if (log && waiting > 0 && !paused) add();
      const now = Date.now();
      const late = parts.filter((part) => due.get(part) <= now);
      for (const part of late) due.set(part, now + part.dataset.live * 1000);
      refresh(late);
    });
    addEventListener("pagehide", () => source.close());
    addEventListener("pageshow", (event) => event.persisted && location.reload());
  }

  // --- actions ---

  const ACTIONS = {
    refresh: {
      method: "POST",
      path: "/api/refresh",
      done: (answer) => `${answer.reference}: ${answer.changed ? "there was something new. " : ""}${answer.text}`,
    },
    pin: {
      method: "PUT",
      path: "/api/pins",
      done: (answer) => `${answer.reference} ${answer.changed ? "is pinned now: it is never evicted" : "was pinned already"}`,
    },
    unpin: {
      method: "DELETE",
      path: "/api/pins",
      title: "Unpin this image?",
      question: (reference) => `${reference} may be evicted then.`,
      yes: "Unpin",
      done: (answer) => `${answer.reference} ${answer.changed ? "is no longer pinned" : "was not pinned by name"}`,
    },
    purge: {
      method: "DELETE",
      path: "/api/cache",
      title: "Purge this image?",
      question: (reference) => `${reference} and what only it needs are removed from the cache. The next pull fetches it again.`,
      yes: "Purge",
      done: (answer, reference) => `${reference}: ${answer.objects} objects were removed`,
    },
    run: {
      method: "POST",
      address: (number) => `/api/warm/schedules/${number}`,
      done: (answer, name) => `${name} runs now`,
    },
  };

  function confirmed(action, reference) {
    const dialog = $("#confirm");
    $("#confirm-title").textContent = action.title;
    $("#confirm-text").textContent = action.question(reference);
    $("#confirm-yes").textContent = action.yes;
    dialog.returnValue = "no";
    dialog.showModal();
    return new Promise((resolve) => {
      dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    });
  }

  async function act(button) {
    const { action: name, reference } = button.dataset;
    const action = ACTIONS[name];
    const shown = button.dataset.name ?? reference;
    if (action.question && !(await confirmed(action, reference))) return;
    button.disabled = true;
    tell(`${button.textContent}: ${shown}…`);
    try {
      const address = action.address?.(reference) ?? `${action.path}?${new URLSearchParams({ reference })}`;
      const response = await change(address, action.method);
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error);
      tell(action.done(answer, shown));
    } catch (error) {
      tell(`${shown}: ${error.message}`, true);
    }
    button.disabled = false;
    changed();
  }

  /** Warms the images that a form names. */
  async function warm(form) {
    const words = (name) => form.elements[name].value.split(/[\s,]+/).filter((word) => word !== "");
    const button = $("button", form);
    button.disabled = true;
    try {
      const body = JSON.stringify({ images: words("images"), platforms: words("platforms") });
      const response = await change("/api/warm", "POST", { "content-type": "application/json" }, body);
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error);
      const { length } = answer.images;
      tell(length === 1 ? `${answer.images[0].reference} is being warmed` : `${length} images are being warmed`);
      form.elements.images.value = "";
    } catch (error) {
      tell(error.message, true);
    }
    button.disabled = false;
    changed();
  }

  /** Shows what an action has changed. */
  async function changed() {
    const parts = all("[data-live], [data-changes]");
    for (const part of parts) delete part.dataset.shown;
    await refresh(parts, true);
  }

  async function copy(button) {
    const text = $("pre", button.parentElement).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // Browsers give pages without TLS no clipboard: the text is selected instead.
      getSelection().selectAllChildren($("pre", button.parentElement));
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    if (!button) return;
    if (button.dataset.action) act(button);
    else if (button.dataset.copy !== undefined) copy(button);
    else if (button.id === "pause") pause(!paused);
  });

  document.addEventListener("submit", (event) => {
    if (event.target.id !== "warm") return;
    event.preventDefault();
    warm(event.target);
  });

  // On a narrow screen the row of pages is wider than the screen.
  const tabs = $(".top nav ul");
  const tab = $("[aria-current]", tabs ?? document);
  if (tabs && tab) tabs.scrollLeft = tab.offsetLeft - (tabs.clientWidth - tab.offsetWidth) / 2;
  ages();
  setInterval(ages, 10000);
  listen();
})();
