"use strict";
// Draws the figures with ECharts and lets arrow keys walk over their values. The numbers come from
// figures.py; colours, units and the dark mode are added here.
const figures = JSON.parse(document.getElementById("data").textContent);
const places = [...document.querySelectorAll(".chart")];
const dark = matchMedia("(prefers-color-scheme: dark)");
// Okabe and Ito's colours, which people with any colour vision tell apart; and cividis.
const palette = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999"];
const heat = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

function text(value, unit) {
  if (value === null || value === undefined) return "none";
  if (typeof value !== "number") return String(value);
  if (unit === "bytes") return bytes(value);
  const number = Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(4)));
  return unit === "s" || unit === "%" ? `${number} ${unit}` : number;
}

function complete({ option, unit }) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const line = style.getPropertyValue("--line").trim();
  const paper = style.getPropertyValue("--paper").trim();
  const kind = option.series[0].type;
  const axis = {
    axisLabel: { color: ink, hideOverlap: true }, nameTextStyle: { color: ink },
    axisLine: { lineStyle: { color: line } }, splitLine: { lineStyle: { color: line } },
    nameLocation: "middle", nameGap: 28,
  };
  const yAxis = { ...axis, nameGap: 8, nameLocation: kind === "heatmap" ? "start" : "end",
    ...option.yAxis };
  if (yAxis.type === "value") {
    yAxis.axisLabel = { ...axis.axisLabel, formatter: (value) => text(value, unit) };
  }
  const whole = {
    animation: false, backgroundColor: "transparent", color: palette,
    textStyle: { fontFamily: "system-ui, sans-serif", color: ink },
    // The page's own label stays; patterns tell apart what colours may not.
    aria: { enabled: true, label: { enabled: false }, decal: { show: kind === "bar" } },
    grid: { left: 8, right: 16, top: kind === "line" || kind === "bar" ? 48 : 28, bottom: 28,
      containLabel: true },
    tooltip: { confine: true, backgroundColor: paper, textStyle: { color: ink },
      valueFormatter: (value) => text(value, unit),
      trigger: kind === "line" || kind === "bar" ? "axis" : "item" },
    ...option,
    xAxis: { ...axis, ...option.xAxis }, yAxis,
  };
  if (kind === "line" || kind === "bar") {
    whole.legend = { type: "scroll", top: 0, textStyle: { color: ink }, pageTextStyle: { color: ink },
      pageIconColor: ink };
  }
  if (kind === "heatmap") {
    whole.visualMap = { min: 0, show: false, inRange: { color: heat }, ...option.visualMap };
    const most = option.visualMap.max;
    whole.series = option.series.map((one) => ({ ...one, data: one.data.map((value) => ({ value,
      label: { show: true, color: value[2] > most / 2 ? "#000000" : "#ffffff",
        formatter: () => text(value[2], unit) } })) }));
  }
  if (kind === "heatmap" || kind === "scatter") {
    whole.tooltip.formatter = (item) => echarts.format.encodeHTML(says(whole, unit, 0, item.dataIndex));
  }
  return whole;
}

// What a value is, in words: for the tooltip and for who listens.
function says(option, unit, series, index) {
  const one = option.series[series];
  const datum = one.data[index];
  if (one.type === "heatmap") {
    const [column, row, value] = datum.value;
    return `${option.yAxis.data[row]} ${option.yAxis.name} ${option.xAxis.name} ` +
      `${option.xAxis.data[column]}: ${text(value, unit)}`;
  }
  if (one.type === "scatter") {
    const when = new Date(datum.value[0]).toLocaleString();
    return `${when}: ${datum.value[1]}${datum.name ? `, ${datum.name}` : ""}`;
  }
  return `${option.xAxis.name} ${option.xAxis.data[index]}, ${one.name}: ${text(datum, unit)}`;
}

places.forEach((place, number) => {
  const { unit } = figures[number];
  const chart = echarts.init(place, null, { renderer: "canvas" });
  const said = place.parentElement.querySelector(".said");
  let option;
  const draw = () => {
    option = complete(figures[number]);
    chart.setOption(option, true);
  };
  draw();
  dark.addEventListener("change", draw);
  new ResizeObserver(() => chart.resize()).observe(place);
  let series = 0, index = -1;
  place.addEventListener("keydown", (event) => {
    const along = { ArrowRight: 1, ArrowLeft: -1 }[event.key] || 0;
    const across = { ArrowDown: 1, ArrowUp: -1 }[event.key] || 0;
    if (event.key === "Escape") {
      chart.dispatchAction({ type: "hideTip" });
      said.textContent = "";
    }
    if (!along && !across) return;
    event.preventDefault();
    const all = option.series;
    series = (series + across + all.length) % all.length;
    const count = all[series].data.length;
    index = index < 0 ? 0 : (index + along + count) % count;
    chart.dispatchAction({ type: "showTip", seriesIndex: series, dataIndex: index });
    said.textContent = says(option, unit, series, index);
  });
});
