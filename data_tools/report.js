// Live counts: every sampled row has one byte per condition, the bin of its value (255: no value) or whether it holds.
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const limits = LIVE.limits.map(limit => ({ ...limit, bins: bytes(limit.bins), start: limit.at }));
const rules = LIVE.rules.map(rule => ({ ...rule, started: rule.rejects,
  parts: rule.parts.map(part => "limit" in part ? part : { fixed: bytes(part.fixed) }) }));
const scale = LIVE.sampled ? LIVE.rows / LIVE.sampled : 1;
const estimate = count => (scale === 1 ? "" : "about ") + Math.round(count * scale).toLocaleString("en");
const holds = (part, row) => {
  if (part.fixed) return part.fixed[row] === 1;
  const limit = limits[part.limit], bin = limit.bins[row];
  return bin !== 255 && (limit.below ? bin <= limit.at : bin > limit.at);
};
const fires = (rule, row) => rule.any ? rule.parts.some(part => holds(part, row)) : rule.parts.every(part => holds(part, row));
const rejected = () => {
  const out = new Uint8Array(LIVE.sampled), counts = rules.map(() => 0);
  rules.forEach((rule, r) => {
    for (let row = 0; row < LIVE.sampled; row++) {
      if (!fires(rule, row)) continue;
      counts[r]++;
      if (rule.rejects) out[row] = 1;
    }
  });
  return { out, counts };
};
const before = rejected().out;
const number = value => String(Number(value.toPrecision(4)));

const update = () => {
  const { out, counts } = rejected();
  let kept = 0, lost = 0, won = 0;
  for (let row = 0; row < LIVE.sampled; row++) {
    kept += !out[row];
    lost += out[row] && !before[row];
    won += !out[row] && before[row];
  }
  document.querySelector("#kept").textContent = estimate(kept);
  document.querySelector("#lost").textContent = estimate(lost);
  document.querySelector("#won").textContent = estimate(won);
  rules.forEach((rule, r) => {
    for (const cell of document.querySelectorAll(`[data-rule="${rule.name}"]`)) {
      cell.textContent = estimate(counts[r]);
      cell.parentElement.dataset.sort = counts[r];
    }
  });
  const changes = new Set();
  rules.filter(rule => rule.rejects !== rule.started).forEach(rule => changes.add(`  ${rule.name}: ${rule.rejects}`));
  limits.filter(limit => limit.at !== limit.start).forEach(limit =>
    changes.add(`  ${limit.rule}.${limit.metric}: ${number(limit.edges[limit.at])}`));
  document.querySelector("#yaml").textContent = changes.size ? "rules:\n" + [...changes].join("\n") : "none";
};

const show = k => {
  const limit = limits[k], value = limit.edges[limit.at];
  document.querySelector(`[data-output="${k}"]`).textContent = number(value);
  let count = 0;
  for (const bin of limit.bins) count += bin !== 255 && (limit.below ? bin <= limit.at : bin > limit.at);
  document.querySelector(`[data-count="${k}"]`).textContent = estimate(count);
  const svg = document.querySelector(`[data-line="${k}"]`), x = 640 * limit.at / Math.max(1, limit.edges.length - 1);
  svg.setAttribute("x1", x);
  svg.setAttribute("x2", x);
  const area = document.querySelector(`[data-area="${k}"]`);
  area.setAttribute("x", limit.below ? 0 : x);
  area.setAttribute("width", limit.below ? x : 640 - x);
  for (const figure of document.querySelectorAll(`figure[data-of="${k}"]`)) {
    const shown = Number(figure.dataset.value);
    figure.classList.toggle("out", limit.below ? shown < value : shown > value);
  }
};

for (const input of document.querySelectorAll("[data-limit]")) {
  input.addEventListener("input", () => {
    limits[input.dataset.limit].at = Number(input.value);
    show(input.dataset.limit);
    update();
  });
}
for (const input of document.querySelectorAll("[data-switch]")) {
  input.addEventListener("change", () => {
    rules.find(rule => rule.name === input.dataset.switch).rejects = input.checked;
    update();
  });
}
document.querySelector("#reset").addEventListener("click", () => {
  limits.forEach((limit, k) => {
    limit.at = limit.start;
    document.querySelector(`[data-limit="${k}"]`).value = limit.at;
    show(k);
  });
  for (const input of document.querySelectorAll("[data-switch]")) {
    const rule = rules.find(rule => rule.name === input.dataset.switch);
    input.checked = rule.rejects = rule.started;
  }
  update();
});
limits.forEach((_, k) => show(k));
update();
