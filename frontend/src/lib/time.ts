// Instants in UTC and durations in words.

const two = (value: number): string => String(value).padStart(2, '0');

/** 03:07:46 of an instant in seconds since the epoch. */
export function clock(at: number): string {
  const date = new Date(Math.floor(at) * 1000);
  return `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}:${two(date.getUTCSeconds())}`;
}

export function utc(at: number): string {
  return `${clock(at)} UTC`;
}

/** 03:05 for chart axes. */
export function clockMinutes(at: number): string {
  return clock(at).slice(0, 5);
}

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

/** 21 Nov, in UTC. */
export function day(at: number): string {
  const date = new Date(at * 1000);
  return `${date.getUTCDate()} ${MONTHS[date.getUTCMonth()] ?? ''}`;
}

/** 21 Nov, 22:48, in UTC. */
export function dayAndTime(at: number): string {
  return `${day(at)}, ${clockMinutes(at)}`;
}

/** An instant beside a duration: the clock alone while it is today, else with the day. */
export function instant(at: number, now: number): string {
  const isToday = Math.floor(at / 86_400) === Math.floor(now / 86_400);
  return isToday ? utc(at) : `${dayAndTime(at)} UTC`;
}

/** The instant of an ISO 8601 text, in seconds since the epoch. */
export function parseInstant(text: string): number {
  return Date.parse(text) / 1000;
}

/** At most two units, the smaller one left out when it is zero: 6 s, 4 min 20 s, 31 h, 6 d 4 h. */
export function duration(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return pair(s, 60, 'min', 's');
  if (s < 86_400) return pair(Math.floor(s / 60), 60, 'h', 'min');
  return pair(Math.floor(s / 3600), 24, 'd', 'h');
}

function pair(smallUnits: number, perLarge: number, large: string, small: string): string {
  const rest = smallUnits % perLarge;
  const whole = `${Math.floor(smallUnits / perLarge)} ${large}`;
  return rest === 0 ? whole : `${whole} ${rest} ${small}`;
}

/** An age as a panel writes it: tenths below 10 s. */
export function age(seconds: number): string {
  const s = Math.max(0, seconds);
  return s < 9.95 ? `${s.toFixed(1)} s` : duration(s);
}
