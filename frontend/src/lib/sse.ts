// Server-sent events as they arrive in pieces: bytes in, the data of whole events out.

export class EventReader {
  private rest = '';

  /** The data of every event completed by this piece of text. */
  push(text: string): string[] {
    this.rest += text;
    const parts = this.rest.split(/\r?\n\r?\n/);
    this.rest = parts.pop() ?? '';
    return parts.flatMap(dataOf);
  }
}

function dataOf(event: string): string[] {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith('data:'));
  return lines.length === 0 ? [] : [lines.map((line) => line.slice(5).replace(/^ /, '')).join('\n')];
}
