/** Bring a field of the form into view and put the cursor there, however often it is asked for. */
export function showField(path: string): void {
  const field = document.getElementById(`f-${path}`);
  field?.scrollIntoView({ block: 'center' });
  field?.focus({ preventScroll: true });
}
