// The engine, live: /ready and /metrics each second, the plugins now and then.

const SAMPLES = 60;
const samples = []; // {time, values}

const figure = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1));
const percent = (value) => `${(100 * value).toFixed(0)} %`;

function setState(className, text) {
  byId("ready").className = `state ${className}`;
  byId("ready").title = text;
  // A status region is read out at each change: only real ones may touch it.
  if (byId("ready-text").textContent !== text) byId("ready-text").textContent = text;
}

async function showReadiness() {
  try {
    const response = await request("ready");
    if (response.ok) return setState("is-ready", "ready");
    if (response.status === 401) return setState("is-waiting", "API key needed");
    const body = await response.json().catch(() => ({}));
    const reason = body.reason || (body.error && body.error.message);
    setState("is-waiting", reason ? `not ready: ${reason}` : "not ready");
  } catch {
    setState("is-down", "unreachable");
  }
}

function rate(name, from, to) {
  const grown = (to.values[name] || 0) - (from.values[name] || 0);
  // A counter that fell belongs to another engine.
  return grown > 0 ? grown / ((to.time - from.time) / 1000) : 0;
}

function ratio(part, whole) {
  const last = samples.at(-1).values;
  const first = samples[0].values;
  const recent = last[whole] - first[whole];
  if (recent > 0 && last[part] >= first[part]) return percent((last[part] - first[part]) / recent);
  return last[whole] > 0 ? percent(last[part] / last[whole]) : "–";
}

function drawSpark(rates) {
  const top = Math.max(...rates, 1) * 1.08;
  const point = (value, index) => {
    const x = 240 - (rates.length - 1 - index) * (240 / (SAMPLES - 1));
    return `${x.toFixed(1)} ${(44 - (value / top) * 43).toFixed(1)}`;
  };
  const line = rates.map(point).join(" L");
  byId("spark-line").setAttribute("d", line && `M${line}`);
  const start = 240 - (rates.length - 1) * (240 / (SAMPLES - 1));
  byId("spark-area").setAttribute("d", line && `M${start.toFixed(1)} 44 L${line} L240 44 Z`);
}

function drawBlocks(values) {
  const total = values.num_kv_blocks || 0;
  const used = Math.round((values.kv_cache_usage_perc || 0) * total);
  // Blocks that a request holds are cached too; the bar shows each block once.
  const listed = values.kv_blocks_cached_free ?? values.kv_blocks_cached ?? 0;
  const cached = Math.min(listed, total - used);
  const share = (count) => (total ? (100 * count) / total : 0);
  byId("blocks-used").setAttribute("width", share(used));
  byId("blocks-cached").setAttribute("x", share(used));
  byId("blocks-cached").setAttribute("width", share(cached));
  const texts = { used: `${used} in use`, cached: `${cached} cached`, free: `${total - used - cached} free` };
  for (const [name, text] of Object.entries(texts)) byId(`legend-${name}`).textContent = text;
  byId("blocks").setAttribute("aria-label", `KV blocks: ${Object.values(texts).join(", ")}`);
}

function showMetrics(values) {
  samples.push({ time: performance.now(), values });
  if (samples.length > SAMPLES) samples.shift();
  const rates = samples.slice(1).map((sample, index) => rate("generation_tokens", samples[index], sample));
  const before = samples.at(-2) || samples.at(-1);
  byId("rate").textContent = figure(rates.at(-1) || 0);
  byId("prompt-rate").textContent = figure(rate("prompt_tokens", before, samples.at(-1)) || 0);
  byId("running").textContent = values.num_requests_running ?? "–";
  byId("waiting").textContent = values.num_requests_waiting ?? "–";
  byId("hits").textContent = ratio("prefix_cache_hits", "prefix_cache_queries");
  const hasDrafts = values.spec_decode_num_draft_tokens > 0;
  byId("acceptance-row").hidden = !hasDrafts;
  if (hasDrafts) byId("acceptance").textContent = ratio("spec_decode_num_accepted_tokens", "spec_decode_num_draft_tokens");
  drawSpark(rates);
  drawBlocks(values);
}

async function pollMetrics() {
  const note = byId("engine-note");
  try {
    const response = await request("metrics");
    if (!response.ok) throw await failureOf(response);
    showMetrics(parseMetrics(await response.text()));
    note.hidden = true;
    byId("engine").hidden = false;
  } catch (error) {
    note.textContent = inPlainWords(error);
    note.hidden = false;
    byId("engine").hidden = !samples.length;
  }
}

async function showPlugins() {
  const list = byId("plugins");
  let body;
  try {
    body = await getJson("plugins");
  } catch {
    list.replaceChildren();
    byId("plugins-count").textContent = "";
    return;
  }
  const items = body.plugins.map((plugin) => {
    const isOn = plugin.is_enabled ?? plugin.enabled;
    const item = element("li", isOn ? "" : "is-off");
    item.append(element("span", "name", plugin.name));
    item.append(element("span", "about", (isOn ? plugin.description : plugin.reason || "off") || ""));
    return item;
  });
  list.replaceChildren(...items);
  const numOn = body.plugins.filter((plugin) => plugin.is_enabled ?? plugin.enabled).length;
  byId("plugins-count").textContent = `${numOn} on, ${items.length - numOn} off`;
}

async function showModels() {
  const select = byId("model");
  try {
    const models = (await getJson("v1/models")).data;
    const chosen = select.value;
    select.replaceChildren(...models.map((model) => new Option(model.id, model.id)));
    if (models.some((model) => model.id === chosen)) select.value = chosen;
  } catch (error) {
    // The state and the panel say why.
  }
}
