// Wiring: what the controls do, what is remembered for this tab, and the clock.

function remember(input, name) {
  input.value = sessionStorage.getItem(name) ?? input.value;
  input.addEventListener("change", () => sessionStorage.setItem(name, input.value));
}

function wireComposer() {
  const input = byId("input");
  input.addEventListener("input", () => grow(input));
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
  });
  for (const [id, action] of Object.entries({ send, stop, regenerate, clear: clearAll })) {
    byId(id).addEventListener("click", action);
  }
  input.focus();
}

function wirePanel() {
  const toggle = byId("panel-toggle");
  toggle.addEventListener("click", () => {
    const isShown = document.body.classList.toggle("shows-panel");
    toggle.setAttribute("aria-expanded", isShown);
    toggle.textContent = isShown ? "Chat" : "Engine";
  });
}

async function tick(count) {
  if (!document.hidden) {
    await Promise.all([showReadiness(), pollMetrics()]);
    if (!byId("model").options.length) await showModels();
    if (count % 10 === 0) await showPlugins();
  }
  setTimeout(tick, 1000, count + 1);
}

remember(byId("key"), "quire.key");
remember(byId("system"), "quire.system");
remember(byId("stop-strings"), "quire.stop");
for (const input of byId("settings").querySelectorAll("input")) remember(input, `quire.${input.dataset.field}`);
byId("key").addEventListener("change", () => {
  showModels();
  showPlugins();
});
wireComposer();
wirePanel();
tick(0);
