"use strict";

// A link to a span opens it: a link on the page, and the one that led to the page.
const openTarget = () => {
  const span = location.hash.startsWith("#s-") && document.getElementById(location.hash.slice(1));
  if (span) { span.open = true; span.scrollIntoView({ block: "nearest" }); }
};
addEventListener("hashchange", openTarget);
openTarget();

// Keeps the content of #live up to date, unless someone is using it. Opened details stay open.
const EVERY_MS = 2000, live = document.getElementById("live"), place = document.getElementById("live-switch");
let shown = live && live.outerHTML;

const openedBy = (element) => element.matches("details[id] > summary") && element.parentElement.id;
const isBusy = () => {
  const at = document.activeElement;
  return document.hidden || String(getSelection()) !== "" || (live.contains(at) && !openedBy(at));
};

const refresh = async () => {
  const answer = await fetch(location.href, { signal: AbortSignal.timeout(5000) });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.getElementById("live");
  if (!fresh || fresh.outerHTML === shown || isBusy()) return;
  shown = fresh.outerHTML;
  const focused = live.contains(document.activeElement) && openedBy(document.activeElement);
  const isOpen = new Set([...live.querySelectorAll("details[open]")].map((details) => details.id));
  for (const details of fresh.querySelectorAll("details")) details.open = isOpen.has(details.id);
  live.replaceChildren(...fresh.childNodes);
  if (focused) document.getElementById(focused)?.firstElementChild.focus({ preventScroll: true });
};

if (live) {
  const label = document.createElement("label"), box = document.createElement("input");
  box.type = "checkbox";
  box.checked = sessionStorage.getItem("live") !== "off";
  box.addEventListener("change", () => sessionStorage.setItem("live", box.checked ? "on" : "off"));
  label.append(box, " live");
  place.append(label);
  const turn = () => {
    const done = box.checked && !document.hidden ? refresh().catch(() => {}) : Promise.resolve();
    done.finally(() => setTimeout(turn, EVERY_MS));
  };
  setTimeout(turn, EVERY_MS);
}
