// Numbers and times for people.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const count = (value) => (value === null ? "–" : whole.format(value));

/** How often in a second. */
export function rate(value) {
  if (value === null) return "–";
  return value >= 100 ? whole.format(value) : fine.format(value);
}

/** Seconds, in a unit that fits. */
export function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds === 0) return "0 ms";
  if (seconds < 0.001) return `${fine.format(seconds * 1e6)} µs`;
  if (seconds < 1) return `${fine.format(seconds * 1000)} ms`;
  if (seconds < 120) return `${fine.format(seconds)} s`;
  return span(seconds);
}

/** A time from a histogram, whose first bound is a millisecond: below it nothing is known. */
export const latency = (seconds) => (seconds !== null && seconds > 0 && seconds < 0.001 ? "< 1 ms" : duration(seconds));

/** A long time, in its two largest units. */
export function span(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const start = units.findIndex(([, size]) => seconds >= size);
  if (start < 0) return "0 s";
  let rest = Math.floor(seconds);
  return units.slice(start, start + 2).map(([unit, size]) => {
    const number = Math.floor(rest / size);
    rest -= number * size;
    return number ? `${number} ${unit}` : "";
  }).filter(Boolean).join(" ");
}

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let size = value;
  let unit = -1;
  while (size >= 1024 && unit < units.length - 1) { size /= 1024; unit += 1; }
  return `${fine.format(size)} ${units[unit]}`;
}

export const percent = (part) => (part === null ? "–" : `${fine.format(part * 100)} %`);

/** A time of day. `at` is in seconds since the epoch. */
export function clock(at, withSeconds = true) {
  return new Date(at * 1000).toLocaleTimeString("en-GB", withSeconds ? {} : { hour: "2-digit", minute: "2-digit" });
}
